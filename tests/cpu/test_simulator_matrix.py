"""mma.sync, ldmatrix, stmatrix, movmatrix against matrices placed by the ISA's lane formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_kit import launch, out, ptx, ro
from simulator_reference import (
    BF16,
    F16,
    F32,
    TF32,
    Format,
    fragment_a,
    fragment_b,
    fragment_c,
    gather,
    scatter,
    to_bits,
    to_values,
)

Array = np.ndarray[Any, Any]
FORMATS = {"f16": F16, "bf16": BF16, "tf32": TF32}


def registers(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


def per_lane(name: str, count: int, first: int, op: str) -> str:
    """Loads or stores a lane's ``count`` words of the buffer ``name`` (32, count), word by word."""
    lines = [f"mul.wide.u32 %d0, %lane, {4 * count};  add.u64 %d1, %{name}, %d0;"]
    for i in range(count):
        place = f"[%d1+{4 * i}]"
        lines.append(
            f"ld.global.b32 %r{first + i}, {place};"
            if op == "ld"
            else f"st.global.b32 {place}, %r{first + i};"
        )
    return "\n  ".join(lines)


def multiply(kind: str, k: int, accumulator: str, a: Array, b: Array, c: Array) -> Array:
    """D = A B + C by one mma.m16n8kK. ``a b`` are bit patterns, ``c`` float64; returns D as float64."""
    tf32 = kind == "tf32"
    layouts = fragment_a(k, tf32), fragment_b(k, tf32), fragment_c()
    acc = F16 if accumulator == "f16" else F32
    packed = [scatter(m, layout) for m, layout in zip((a, b, to_bits(c, acc)), layouts, strict=True)]
    na, nb, nc = (p.shape[1] for p in packed)
    mma = f"mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{kind}.{kind}.{accumulator}"
    body = "\n  ".join([
        per_lane("a", na, 10, "ld"), per_lane("b", nb, 20, "ld"), per_lane("c", nc, 30, "ld"),
        f"{mma} {registers(40, nc)}, {registers(10, na)}, {registers(20, nb)}, {registers(30, nc)};",
        per_lane("d", nc, 40, "st"),
    ])  # fmt: skip
    args = {"a": ro(packed[0]), "b": ro(packed[1]), "c": ro(packed[2]), "d": out((32, nc))}
    result = launch(ptx(body, "a b c d"), args)
    dtype = np.uint16 if acc is F16 else np.uint32
    return to_values(gather(result["d"], fragment_c(), (16, 8), dtype), acc)


CASES = [(kind, k, acc) for kind, k, acc in (
    ("f16", 16, "f32"), ("f16", 16, "f16"), ("f16", 8, "f32"), ("f16", 8, "f16"),
    ("bf16", 16, "f32"), ("bf16", 8, "f32"), ("tf32", 8, "f32"), ("tf32", 4, "f32"),
)]  # fmt: skip


@pytest.mark.parametrize(("kind", "k", "accumulator"), CASES)
def test_mma_of_integers_is_exact(kind: str, k: int, accumulator: str, rng: np.random.Generator) -> None:
    """Small integers: no order of summation rounds, so the product must be exact."""
    a, b, c = (rng.integers(-7, 8, shape).astype(float) for shape in ((16, k), (k, 8), (16, 8)))
    fmt = FORMATS[kind]
    assert np.array_equal(multiply(kind, k, accumulator, to_bits(a, fmt), to_bits(b, fmt), c), a @ b + c)


@pytest.mark.parametrize(("kind", "k", "accumulator"), CASES)
def test_mma_puts_each_element_where_the_isa_says(
    kind: str, k: int, accumulator: str, rng: np.random.Generator
) -> None:
    """A single one in A, and rows of B recognisable by their values."""
    fmt = FORMATS[kind]
    for _ in range(3):
        row, inner = int(rng.integers(16)), int(rng.integers(k))
        a = np.zeros((16, k))
        a[row, inner] = 1
        b = np.arange(k * 8, dtype=float).reshape(k, 8)
        want = np.zeros((16, 8))
        want[row] = b[inner]
        assert np.array_equal(
            multiply(kind, k, accumulator, to_bits(a, fmt), to_bits(b, fmt), np.zeros((16, 8))), want
        )


@pytest.mark.parametrize(("kind", "k", "accumulator"), CASES)
def test_mma_of_reals_is_accurate(kind: str, k: int, accumulator: str, rng: np.random.Generator) -> None:
    fmt: Format = FORMATS[kind]
    bits = [to_bits(rng.standard_normal(shape), fmt) for shape in ((16, k), (k, 8))]
    if kind == "tf32":
        bits = [b & np.uint32(0xFFFFE000) for b in bits]
    a, b = (to_values(x, fmt) for x in bits)
    c = to_values(to_bits(rng.standard_normal((16, 8)), F16), F16)
    size = np.abs(a) @ np.abs(b) + np.abs(c)
    unit = 2.0**-10 if accumulator == "f16" else 2.0**-22
    assert (np.abs(multiply(kind, k, accumulator, *bits, c) - (a @ b + c)) <= unit * size).all()


def test_mma_accumulator_overflows_to_infinity_in_f16() -> None:
    a, b = np.full((16, 16), 128.0), np.full((16, 8), 128.0)
    got = multiply("f16", 16, "f16", to_bits(a, F16), to_bits(b, F16), np.zeros((16, 8)))
    assert np.isposinf(got).all()
    assert (multiply("f16", 16, "f32", to_bits(a, F16), to_bits(b, F16), np.zeros((16, 8))) == 2.0**18).all()


def rows_in_shared(rng: np.random.Generator, matrices: int) -> tuple[Array, Array]:
    """A shared image of 4 KB and the scattered 16-byte rows in it: (matrices, 8) byte offsets."""
    return rng.integers(0, 2**16, 2048).astype(np.uint16), rng.permutation(256)[: 8 * matrices].reshape(
        matrices, 8
    ) * 16


STAGE = """
  mov.u32 %r0, %lane;
FILL:
  shl.b32 %r1, %r0, 4;  cvt.u64.u32 %d0, %r1;  add.u64 %d1, %x, %d0;  add.u32 %r2, %sm, %r1;
  ld.global.v4.b32 {%r3, %r4, %r5, %r6}, [%d1];  st.shared.v4.b32 [%r2], {%r3, %r4, %r5, %r6};
  add.u32 %r0, %r0, 32;  setp.lt.u32 %p1, %r0, 256;  @%p1 bra FILL;
  bar.warp.sync 0xffffffff;
"""


def eights(words: Array, trans: bool) -> Array:
    """The 8x8 matrices in a warp's registers (32, n): lane 4r+c holds elements 2c, 2c+1 of row (column) r."""
    pairs = np.ascontiguousarray(words.T).view(np.uint16).reshape(-1, 8, 8)
    return pairs.transpose(0, 2, 1) if trans else pairs


@pytest.mark.parametrize("matrices", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("space", [".shared", ""])
def test_ldmatrix(matrices: int, trans: bool, space: str, rng: np.random.Generator) -> None:
    """Lane 8m+r gives the address of row r of matrix m; the other lanes' addresses do not count."""
    image, rows = rows_in_shared(rng, matrices)
    offsets = np.resize(rows.ravel(), 32).astype(np.uint32)
    offsets[8 * matrices :] = 0x00FFFF01  # nobody's addresses: from sm_80 on, only those of the rows count
    name = f"ldmatrix.sync.aligned.m8n8.x{matrices}{'.trans' if trans else ''}{space}.b16"
    generic = "cvt.u64.u32 %d2, %r7;  cvta.shared.u64 %d2, %d2;" if not space else ""
    body = f"""{STAGE}
      mul.wide.u32 %d0, %lane, 4;  add.u64 %d1, %o, %d0;  ld.global.u32 %r7, [%d1];  add.u32 %r7, %r7, %sm;
      {generic}
      {name} {registers(10, matrices)}, [{"%r7" if space else "%d2"}];
      {per_lane("y", matrices, 10, "st")}"""
    args = {"x": ro(image), "o": ro(offsets), "y": out((32, matrices))}
    got = launch(ptx(body, "x o y", shared=4096), args)["y"]
    want = image.reshape(256, 8)[rows // 16]
    assert np.array_equal(eights(got, trans), want)


@pytest.mark.parametrize("matrices", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_stmatrix(matrices: int, trans: bool, rng: np.random.Generator) -> None:
    image, rows = rows_in_shared(rng, matrices)
    offsets = np.resize(rows.ravel(), 32).astype(np.uint32)
    words = rng.integers(0, 2**32, (32, matrices), np.uint64).astype(np.uint32)
    name = f"stmatrix.sync.aligned.m8n8.x{matrices}{'.trans' if trans else ''}.shared.b16"
    body = f"""{STAGE}
      mul.wide.u32 %d0, %lane, 4;  add.u64 %d1, %o, %d0;  ld.global.u32 %r7, [%d1];  add.u32 %r7, %r7, %sm;
      {per_lane("v", matrices, 10, "ld")}
      {name} [%r7], {registers(10, matrices)};
      bar.warp.sync -1;
      mov.u32 %r0, %lane;
    DRAIN:
      shl.b32 %r1, %r0, 4;  cvt.u64.u32 %d0, %r1;  add.u64 %d1, %y, %d0;  add.u32 %r2, %sm, %r1;
      ld.shared.v4.b32 {{%r3, %r4, %r5, %r6}}, [%r2];  st.global.v4.b32 [%d1], {{%r3, %r4, %r5, %r6}};
      add.u32 %r0, %r0, 32;  setp.lt.u32 %p1, %r0, 256;  @%p1 bra DRAIN;"""
    args = {"x": ro(image), "o": ro(offsets), "v": ro(words), "y": out(2048, np.uint16)}
    got = launch(ptx(body, "x o v y", shared=4096), args)["y"]
    want = image.reshape(256, 8).copy()
    want[rows // 16] = eights(words, trans)
    assert np.array_equal(got.reshape(256, 8), want)


def test_movmatrix_transposes(rng: np.random.Generator) -> None:
    words = rng.integers(0, 2**32, (32, 1), np.uint64).astype(np.uint32)
    body = f"""{per_lane("x", 1, 10, "ld")}
      movmatrix.sync.aligned.m8n8.trans.b16 %r11, %r10;
      {per_lane("y", 1, 11, "st")}"""
    got = launch(ptx(body, "x y"), {"x": ro(words), "y": out((32, 1))})["y"]
    assert np.array_equal(eights(got, False)[0], eights(words, False)[0].T)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_register_chain_of_two_products(kind: str, rng: np.random.Generator) -> None:
    """ldmatrix feeds A, ldmatrix.trans feeds B; two C tiles become an A operand as they stand."""
    fmt = FORMATS[kind]
    x, f, g = (rng.integers(-3, 4, (16, 16)).astype(float) for _ in range(3))
    image = np.zeros(2048, np.uint16)
    image[:768] = np.concatenate([to_bits(m, fmt).ravel() for m in (x, f, g)])
    tiles = []
    address = """
      and.b32 %r7, %lane, 15;  shl.b32 %r7, %r7, 5;  shr.u32 %r8, %lane, 4;  shl.b32 %r8, %r8, 4;
      add.u32 %r7, %r7, %r8;
      add.u32 %r7, %r7, %sm;
      ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r7];
      ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r14, %r15, %r16, %r17}, [%r7+512];
      ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r18, %r19, %r20, %r21}, [%r7+1024];
      mov.f32 %f0, 0f00000000;"""
    zero = "{%f0, %f0, %f0, %f0}"
    mma = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    for half in range(2):
        a, b = "{%r10, %r11, %r12, %r13}", f"{{%r{14 + 2 * half}, %r{15 + 2 * half}}}"
        low = 10 + 4 * half
        tiles.append(f"{mma} {{%f{low}, %f{low + 1}, %f{low + 2}, %f{low + 3}}}, {a}, {b}, {zero};")
        tiles.append(f"cvt.rn.{kind}x2.f32 %r{22 + 2 * half}, %f{low + 1}, %f{low};")
        tiles.append(f"cvt.rn.{kind}x2.f32 %r{23 + 2 * half}, %f{low + 3}, %f{low + 2};")
    for half in range(2):
        low = 20 + 4 * half
        b = f"{{%r{18 + 2 * half}, %r{19 + 2 * half}}}"
        tiles.append(
            f"{mma} {{%f{low}, %f{low + 1}, %f{low + 2}, %f{low + 3}}}, {registers(22, 4)}, {b}, {zero};"
        )
    tiles.append("mul.wide.u32 %d0, %lane, 32;  add.u64 %d1, %y, %d0;")
    tiles += [f"st.global.f32 [%d1+{4 * i}], %f{20 + i};" for i in range(8)]
    body = STAGE + address + "\n".join(tiles)
    got = launch(ptx(body, "x y", shared=4096), {"x": ro(image), "y": out((32, 8), np.float32)})["y"]
    parts = [
        gather(got[:, 4 * h : 4 * h + 4].copy().view(np.uint32), fragment_c(), (16, 8), np.float32)
        for h in range(2)
    ]
    assert np.array_equal(np.hstack(parts), x @ f @ g)

"""wmma: documented behaviour holds for every seed; reliance on the place of an element does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_kit import Result, launch, out, ptx, ro
from simulator_reference import BF16, F16, F32, to_bits, to_values

Array = np.ndarray[Any, Any]
FORMATS = {"f16": F16, "bf16": BF16}
SHAPES = [(16, 16, 16), (32, 8, 16), (8, 32, 16)]


def count(which: str, kind: str, shape: tuple[int, int, int]) -> int:
    """Registers of a fragment (PTX ISA, "Matrix Fragments for WMMA")."""
    if which in "cd":
        return 8 if kind == "f32" else 4
    if kind == "f16":
        return 8
    return {16: 4, 8: 2, 32: 8}[shape[0] if which == "a" else shape[1]]


def vector(first: int, size: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(size)) + "}"


def stored(matrix: Array, layout: str, stride: int) -> Array:
    """The memory image of ``matrix`` in ``layout``; the gaps hold values that would spoil the result."""
    rows = matrix if layout == "row" else matrix.T
    image = np.full(
        (rows.shape[0], stride), 0x3C3C if matrix.dtype == np.uint16 else 0x42420000, matrix.dtype
    )
    image[:, : rows.shape[1]] = rows
    return image.ravel()


def fetched(image: Array, shape: tuple[int, int], layout: str, stride: int) -> Array:
    rows, columns = shape if layout == "row" else shape[::-1]
    matrix = image.reshape(rows, stride)[:, :columns]
    return matrix if layout == "row" else matrix.T


def product(
    kind: str,
    shape: tuple[int, int, int],
    layouts: str,
    acc: str,
    space: str,
    rng: np.random.Generator,
    between: str = "",
    seed: int = 0,
    pad: int = 8,
) -> tuple[Array, Array, Array, Array]:
    """(A, B, C, D) as float64 of D = A B + C by one wmma; rows are padded, D has the layout of C."""
    m, n, k = shape
    fmt, accf = FORMATS[kind], F16 if acc == "f16" else F32
    la, lb, lc = ({"r": "row", "c": "col"}[x] for x in layouts)
    a, b, c = (rng.integers(-5, 6, s).astype(float) for s in ((m, k), (k, n), (m, n)))
    stride = {
        "a": (k if la == "row" else m) + pad,
        "b": (n if lb == "row" else k) + pad,
        "c": (n if lc == "row" else m) + pad,
    }
    ia, ib = (stored(to_bits(v, fmt), lay, stride[s]) for v, lay, s in ((a, la, "a"), (b, lb, "b")))
    ic = stored(to_bits(c, accf), lc, stride["c"])
    na, nb, nc = count("a", kind, shape), count("b", kind, shape), count("c", acc, shape)
    name = f"m{m}n{n}k{k}"
    types = f"{acc}.{acc}" if kind == "f16" else "f32.bf16.bf16.f32"
    prefix, addr = "", {"a": "%a", "b": "%b", "c": "%c"}
    if space != ".global":
        prefix, addr = staging(ia, ib, ic, space)
    body = f"""{prefix}
      wmma.load.a.sync.aligned.{la}.{name}{space}.{kind} {vector(10, na)}, [{addr["a"]}], {stride["a"]};
      mov.u32 %r9, {stride["b"]};
      wmma.load.b.sync.aligned.{lb}.{name}{space}.{kind} {vector(20, nb)}, [{addr["b"]}], %r9;
      wmma.load.c.sync.aligned.{lc}.{name}{space}.{acc} {vector(30, nc)}, [{addr["c"]}], {stride["c"]};
      {between}
      wmma.mma.sync.aligned.{la}.{lb}.{name}.{types} {vector(40, nc)},
        {vector(10, na)}, {vector(20, nb)}, {vector(30, nc)};
      wmma.store.d.sync.aligned.{lc}.{name}.global.{acc} [%d], {vector(40, nc)}, {stride["c"]};"""
    args = {"a": ro(ia), "b": ro(ib), "c": ro(ic), "d": np.zeros_like(ic)}
    result = launch(ptx(body, "a b c d", shared=8192 if space != ".global" else 0), args, seed=seed)
    image = result["d"]
    gaps = image.reshape(-1, stride["c"])[:, stride["c"] - pad :] if pad else image[:0]
    assert not gaps.any(), "wmma.store wrote between the rows"
    return a, b, c, to_values(fetched(image, (m, n), lc, stride["c"]), accf)


def staging(ia: Array, ib: Array, ic: Array, space: str) -> tuple[str, dict[str, str]]:
    """Copies the three images to shared memory, at 0, 2048, 4096; with addresses of that space or generic."""
    lines, addr = [], {}
    for i, (name, image) in enumerate((("a", ia), ("b", ib), ("c", ic))):
        lines.append(f"""
          mov.u32 %r0, %lane;
        COPY{i}:
          shl.b32 %r1, %r0, 2;  cvt.u64.u32 %d0, %r1;  add.u64 %d1, %{name}, %d0;  add.u32 %r2, %sm, %r1;
          ld.global.b32 %r3, [%d1];  st.shared.b32 [%r2+{2048 * i}], %r3;
          add.u32 %r0, %r0, 32;  setp.lt.u32 %p1, %r0, {image.nbytes // 4};  @%p1 bra COPY{i};
          add.u32 %r{4 + i}, %sm, {2048 * i};""")
        addr[name] = f"%r{4 + i}"
        if not space:
            lines.append(f"cvt.u64.u32 %d{4 + i}, %r{4 + i};  cvta.shared.u64 %d{4 + i}, %d{4 + i};")
            addr[name] = f"%d{4 + i}"
    return "\n".join(lines) + "\n  bar.warp.sync -1;", addr


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "acc"), [("f16", "f32"), ("f16", "f16"), ("bf16", "f32")])
@pytest.mark.parametrize("layouts", ["rrr", "rcr", "crc", "ccr"])
def test_product_in_every_layout(
    shape: tuple[int, int, int], kind: str, acc: str, layouts: str, rng: np.random.Generator
) -> None:
    seed = int(rng.integers(2**31))
    a, b, c, d = product(kind, shape, layouts, acc, ".global", rng, seed=seed)
    assert np.array_equal(d, a @ b + c)


@pytest.mark.parametrize("space", [".shared", ""])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_product_from_shared_memory(space: str, kind: str, rng: np.random.Generator) -> None:
    a, b, c, d = product(kind, (16, 16, 16), "rcr", "f32", space, rng)
    assert np.array_equal(d, a @ b + c)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_elementwise_operations_are_independent_of_the_layout(
    seed: int, rng: np.random.Generator
) -> None:
    """Scaling every element of C and of A alike is documented to work, wherever the elements are."""
    scale = "\n".join(f"fma.rn.f32 %r{30 + i}, %r{30 + i}, 0f40000000, 0f3F800000;" for i in range(8))
    scale += "mov.b32 %r8, 0x42004200;" + "\n".join(
        f"mul.rn.f16x2 %r{10 + i}, %r{10 + i}, %r8;" for i in range(8)
    )
    a, b, c, d = product(
        "f16", (16, 16, 16), "rrr", "f32", ".global", rng, between=scale.replace("%r", "%r"), seed=seed
    )
    assert np.array_equal(d, 3 * a @ b + 2 * c + 1)


def expose(load: str, registers: int, seed: int, rng: np.random.Generator) -> Array:
    """A kernel that wrongly takes a lane's registers for a fixed part of the matrix."""
    body = f"""{load}
      mul.wide.u32 %d0, %lane, {4 * registers};  add.u64 %d1, %y, %d0;
      """ + "\n".join(f"st.global.b32 [%d1+{4 * i}], %r{10 + i};" for i in range(registers))
    x = rng.permutation(256).astype(np.float32) if "f32" in load else rng.permutation(256).astype(np.float16)
    return launch(ptx(body, "x y"), {"x": ro(x), "y": out((32, registers))}, seed=seed)["y"].copy()


LOADS = {
    "accumulator": (f"wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(10, 8)}, [%x], 16;", 8),
    "a": (f"wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {vector(10, 8)}, [%x], 16;", 8),
    "b": (f"wmma.load.b.sync.aligned.col.m16n16k16.global.bf16 {vector(10, 4)}, [%x], 16;", 4),
}


@pytest.mark.parametrize("which", LOADS)
def test_reliance_on_the_layout_shows_as_results_that_differ_by_seed(which: str) -> None:
    load, registers = LOADS[which]
    results = [expose(load, registers, seed, np.random.default_rng(5)) for seed in (0, 0, 1, 2)]
    assert np.array_equal(results[0], results[1]), "one seed has to give one result"
    assert len({r.tobytes() for r in results}) == 3, "the layout must be drawn from the seed"


@pytest.mark.parametrize("seed", [3, 4])
def test_accumulator_fragment_holds_every_element_once(seed: int) -> None:
    load, registers = LOADS["accumulator"]
    got = expose(load, registers, seed, np.random.default_rng(5)).view(np.float32)
    assert np.array_equal(np.sort(got.ravel()), np.arange(256))


@pytest.mark.parametrize(("acc", "words"), [("f32", 8), ("f16", 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_load_and_store_round_trip(
    acc: str, words: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    """Stored in the other layout, a matrix comes out transposed; strides may differ."""
    m, n, k = shape
    dtype = np.float32 if acc == "f32" else np.uint16
    matrix = rng.permutation(m * n).reshape(m, n).astype(dtype)
    name = f"m{m}n{n}k{k}"
    body = f"""
      wmma.load.c.sync.aligned.row.{name}.global.{acc} {vector(10, words)}, [%x], {n};
      wmma.store.d.sync.aligned.row.{name}.global.{acc} [%y], {vector(10, words)}, {n + 8};
      wmma.store.d.sync.aligned.col.{name}.global.{acc} [%z], {vector(10, words)}, {m};"""
    y, z = np.zeros((m, n + 8), dtype), out((n, m), dtype)
    got: Result = launch(ptx(body, "x y z"), {"x": ro(matrix), "y": y, "z": z}, seed=int(rng.integers(99)))
    assert np.array_equal(got["y"][:, :n], matrix)
    assert not got["y"][:, n:].any()
    assert np.array_equal(got["z"], matrix.T)


def test_default_stride_is_the_dense_one(rng: np.random.Generator) -> None:
    matrix = rng.permutation(256).reshape(16, 16).astype(np.float32)
    body = f"""
      wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(10, 8)}, [%x];
      wmma.store.d.sync.aligned.col.m16n16k16.global.f32 [%y], {vector(10, 8)};"""
    got = launch(ptx(body, "x y"), {"x": ro(matrix), "y": out((16, 16), np.float32)})["y"]
    assert np.array_equal(got, matrix.T)


def test_chain_of_products_keeps_its_accumulator_in_registers(rng: np.random.Generator) -> None:
    """Three products into one accumulator that starts from registers set to zero: any layout must do."""
    a, b = (rng.integers(-4, 5, (3, 16, 16)).astype(np.float16) for _ in range(2))
    loop = f"""
      {"".join(f"mov.f32 %r{30 + i}, 0f00000000; " for i in range(8))}
      mov.u32 %r0, 0;
    NEXT:
      wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {vector(10, 8)}, [%a], 16;
      wmma.load.b.sync.aligned.row.m16n16k16.global.f16 {vector(20, 8)}, [%b], 16;
      wmma.mma.sync.aligned.row.row.m16n16k16.f32.f32 {vector(30, 8)},
        {vector(10, 8)}, {vector(20, 8)}, {vector(30, 8)};
      add.u64 %a, %a, 512;  add.u64 %b, %b, 512;
      add.u32 %r0, %r0, 1;  setp.lt.u32 %p1, %r0, 3;  @%p1 bra NEXT;
      wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%d], {vector(30, 8)}, 16;"""
    got = launch(ptx(loop, "a b d"), {"a": ro(a), "b": ro(b), "d": out((16, 16), np.float32)}, seed=9)
    assert np.array_equal(got["d"], np.einsum("sij,sjk->ik", a.astype(float), b.astype(float)))

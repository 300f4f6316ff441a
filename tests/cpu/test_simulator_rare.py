"""Instructions that kernels of this project seldom need, held to the PTX ISA's definitions all the same."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from simulator_draw import STORAGE, agree, draw_floats, operands, pairs, typed
from simulator_kit import check, lanes, launch, out, ptx, ro
from simulator_reference import BF16, F32, F64, Number, convert, decode, each, encode, signed

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("kind", ["u32", "s32"])
@pytest.mark.parametrize(("half", "shift"), [("lo", 0), ("hi", 16)])
def test_products_of_24_bits(kind: str, half: str, shift: int, rng: np.random.Generator) -> None:
    a, b = pairs(rng, 32)
    c = rng.permutation(a)
    code = f"mul24.{half}.{kind} %x, %a, %b;  mad24.{half}.{kind} %y, %a, %b, %c;"
    got = lanes(code, {"a": a, "b": b, "c": c}, {"x": np.uint32, "y": np.uint32})

    def part(v: int) -> int:
        return signed(v, 24) if kind == "s32" else v & 0xFFFFFF

    want = each(lambda x, y: part(x) * part(y) >> shift, np.uint32, a, b)
    check(got["x"], want, f"mul24.{half}.{kind}", a=a, b=b)
    check(got["y"], want + c, f"mad24.{half}.{kind}", a=a, b=b, c=c)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_sum_of_absolute_differences(kind: str, rng: np.random.Generator) -> None:
    bits, read = typed(kind)
    a, b = pairs(rng, bits)
    c = rng.permutation(b)
    got = lanes(f"sad.{kind} %d, %a, %b, %c;", {"a": a, "b": b, "c": c}, {"d": STORAGE[bits]})["d"]
    check(
        got, each(lambda x, y, z: abs(read(x) - read(y)) + z, STORAGE[bits], a, b, c), f"sad.{kind}", a=a, b=b
    )


@pytest.mark.parametrize("left", ["u32", "s32"])
@pytest.mark.parametrize("right", ["u32", "s32"])
def test_dot_products_of_packed_integers(left: str, right: str, rng: np.random.Generator) -> None:
    a, b = pairs(rng, 32)
    c = rng.permutation(b)

    def parts(v: int, bits: int, kind: str) -> list[int]:
        fields = [v >> s & (1 << bits) - 1 for s in range(0, 32, bits)]
        return [signed(f, bits) for f in fields] if kind == "s32" else fields

    def dot(x: list[int], y: list[int], z: int) -> int:
        return sum(p * q for p, q in zip(x, y, strict=True)) + z

    code = f"""
      dp4a.{left}.{right} %x, %a, %b, %c;
      dp2a.lo.{left}.{right} %y, %a, %b, %c;  dp2a.hi.{left}.{right} %z, %a, %b, %c;"""
    got = lanes(code, {"a": a, "b": b, "c": c}, dict.fromkeys("xyz", np.uint32))
    four = each(lambda x, y, z: dot(parts(x, 8, left), parts(y, 8, right), z), np.uint32, a, b, c)
    check(got["x"], four, "dp4a", a=a, b=b, c=c)
    for name, first in (("y", 0), ("z", 2)):
        two = each(
            lambda x, y, z, f=first: dot(parts(x, 16, left), parts(y, 8, right)[f : f + 2], z),
            np.uint32,
            a,
            b,
            c,
        )
        check(got[name], two, "dp2a", a=a, b=b, c=c)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_position_of_the_leading_bit(kind: str, rng: np.random.Generator) -> None:
    bits, read = typed(kind)
    a, _ = pairs(rng, bits)

    def position(v: int) -> int:
        value = read(v)
        return (~value if value < 0 else value).bit_length() - 1

    got = lanes(
        f"bfind.{kind} %x, %a;  bfind.shiftamt.{kind} %y, %a;", {"a": a}, {"x": np.uint32, "y": np.uint32}
    )
    check(got["x"], each(position, np.uint32, a), f"bfind.{kind}", a=a)
    shift = each(lambda v: bits - 1 - position(v) if position(v) >= 0 else -1, np.uint32, a)
    check(got["y"], shift, f"bfind.shiftamt.{kind}", a=a)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_bit_masks(mode: str, rng: np.random.Generator) -> None:
    special = [0, 1, 5, 16, 31, 32, 33, 63, 64, 255]
    a = np.array([x for x in special for _ in special] + rng.integers(0, 40, 28).tolist(), np.uint32)
    b = np.array(special * len(special) + rng.integers(0, 40, 28).tolist(), np.uint32)

    def mask(first: int, width: int) -> int:
        if mode == "wrap":
            first, width = first % 32, width % 32
        return ((1 << width) - 1) << first if first < 32 else 0

    got = lanes(f"bmsk.{mode}.b32 %d, %a, %b;", {"a": a, "b": b}, {"d": np.uint32})["d"]
    check(got, each(mask, np.uint32, a, b), f"bmsk.{mode}", a=a, b=b)


DIRECTED = ["rz", "rm", "rp"]


@pytest.mark.parametrize("mode", DIRECTED)
def test_directed_division_reciprocal_and_root(mode: str, rng: np.random.Generator) -> None:
    """The exact quotient as a fraction; of the root, the neighbours whose squares enclose the argument."""
    a, b = (v[(v & 0x7F800000 != 0x7F800000) & (v & 0x7FFFFFFF != 0)][:160] for v in operands(rng, F32, 2))
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    code = f"""
      div.{mode}.f32 %x, %a, %b;  rcp.{mode}.f32 %y, %b;
      and.b32 %r1, %a, 0x7fffffff;  sqrt.{mode}.f32 %z, %r1;"""
    got = lanes(code, {"a": a, "b": b}, dict.fromkeys("xyz", np.uint32))
    for name, tops in (("x", a), ("y", np.full(n, 0x3F800000, np.uint32))):
        want = []
        for p, q in zip(tops.tolist(), b.tolist(), strict=True):
            top, bottom = decode(p, F32), decode(q, F32)
            size = abs(top.exact) / abs(bottom.exact)
            want.append(encode(Number(top.negative != bottom.negative, size), F32, mode))
        agree(got[name], np.array(want, np.uint32), F32, f"div/rcp.{mode}", a=tops, b=b)
    for bits, root in zip((a & np.uint32(0x7FFFFFFF)).tolist(), got["z"].tolist(), strict=True):
        exact, here = decode(bits, F32).exact, decode(root, F32).exact
        low, high = decode(root - 1, F32).exact, decode(root + 1, F32).exact
        if mode == "rp":
            assert low**2 < exact <= here**2, f"sqrt.{mode}({bits:#x}) = {root:#x}"
        else:
            assert here**2 <= exact < high**2, f"sqrt.{mode}({bits:#x}) = {root:#x}"


@pytest.mark.parametrize("op", ["div", "sqrt", "rcp"])
def test_double_division_and_roots(op: str, rng: np.random.Generator) -> None:
    a, b = operands(rng, F64, 2)
    x, y = a.view(np.float64), b.view(np.float64)
    arguments = "%a, %b" if op == "div" else "%a"
    got = lanes(f"{op}.rn.f64 %d, {arguments};", {"a": a, "b": b}, {"d": np.uint64})["d"]
    with np.errstate(all="ignore"):
        want = {"div": lambda: x / y, "sqrt": lambda: np.sqrt(x), "rcp": lambda: 1 / x}[op]()
    agree(got, want.view(np.uint64), F64, f"{op}.rn.f64", a=a, b=b)


def test_properties_and_signs_of_floats(rng: np.random.Generator) -> None:
    a, b = operands(rng, F32, 2)
    names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
    code = "\n".join(f"testp.{name}.f32 %p1, %a;  selp.u32 %o{name}, 1, 0, %p1;" for name in names)
    outs = dict.fromkeys([f"o{name}" for name in names] + ["s"], np.uint32)
    got = lanes(code + "\ncopysign.f32 %s, %a, %b;", {"a": a, "b": b}, outs)
    exponent, fraction = a >> np.uint32(23) & np.uint32(255), a & np.uint32(0x7FFFFF)
    nan, infinite, tiny = (
        (exponent == 255) & (fraction != 0),
        (exponent == 255) & (fraction == 0),
        exponent == 0,
    )
    subnormal = tiny & (fraction != 0)
    wants = [exponent != 255, infinite, ~nan, nan, ~nan & ~infinite & ~subnormal, subnormal]
    for name, want in zip(names, wants, strict=True):
        check(got[f"o{name}"], want, f"testp.{name}", a=a)
    check(got["s"], a & np.uint32(1 << 31) | b & np.uint32(0x7FFFFFFF), "copysign", a=a, b=b)


@pytest.mark.parametrize(("name", "atom"), [("inc", "inc"), ("dec", "dec")])
def test_wrapping_counters(name: str, atom: str) -> None:
    """inc: old >= limit ? 0 : old + 1; dec: old == 0 or old > limit ? limit : old - 1; 32 times."""
    for start in (0, 4, 9, 1000):
        s = np.array([start], np.uint32)
        launch(ptx(f"atom.global.{atom}.u32 %r0, [%s], 6;", "s"), {"s": s}, block=32)
        value = start
        for _ in range(32):
            if name == "inc":
                value = 0 if value >= 6 else value + 1
            else:
                value = 6 if value == 0 or value > 6 else value - 1
        assert s[0] == value


def test_atomics_on_64_bits(rng: np.random.Generator) -> None:
    v = rng.integers(0, 2**63, 32, np.uint64)
    body = """
      mul.wide.u32 %d0, %tx, 8;  add.u64 %d1, %v, %d0;  ld.global.u64 %d2, [%d1];
      red.global.add.u64 [%s], %d2;  red.global.max.u64 [%s+8], %d2;  red.global.min.s64 [%s+16], %d2;
      atom.global.exch.b64 %d3, [%s+24], %d2;  atom.global.cas.b64 %d4, [%s+32], 7, %d2;"""
    s = np.array([3, 0, 2**63 - 1, 0, 7], np.uint64)
    launch(ptx(body, "v s"), {"v": ro(v), "s": s})
    assert s[0] == v.sum(dtype=np.uint64) + np.uint64(3)
    assert s[1] == v.max()
    assert s[2] == v.min()
    assert s[3] in v
    assert s[4] in v


def test_elected_leader_is_one_lane() -> None:
    body = """
      elect.sync %r1|%p1, 0xffffffff;  selp.u32 %r2, 1, 0, %p1;
      mul.wide.u32 %d0, %tx, 8;  add.u64 %d1, %y, %d0;
      st.global.v2.u32 [%d1], {%r1, %r2};"""
    got = launch(ptx(body, "y"), {"y": out((64, 2))}, block=64)["y"].reshape(2, 32, 2)
    for warp in got:
        leaders = np.flatnonzero(warp[:, 1])
        assert len(leaders) == 1
        assert (warp[:, 0] == leaders[0]).all()


def test_doubles_to_bf16_round_once(rng: np.random.Generator) -> None:
    a = draw_floats(rng, F64, 160)
    got = lanes("cvt.rn.bf16.f64 %d, %a;", {"a": a}, {"d": np.uint16})["d"]
    agree(got, convert(a, F64, BF16, "rn"), BF16, "cvt.rn.bf16.f64", a=a)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("s32", -(2**31), 2**31 - 1), ("u32", 0, 2**32 - 1), ("s16", -(2**15), 2**15 - 1)],
)
def test_halves_and_doubles_to_integers(kind: str, low: int, high: int, rng: np.random.Generator) -> None:
    half = np.concatenate(
        [rng.uniform(-100, 100, 60), [0.5, 1.5, -0.5, 65504, -65504, 1e-7, 0, -0.0]]
    ).astype(np.float16)
    double = np.concatenate(
        [rng.uniform(-1e10, 1e10, 60), [0.5, 2.5, -2.5, 1e300, -1e300, 2147483647.5, 0, -0.0]]
    )
    wide = np.uint16 if kind == "s16" else np.uint32
    for mode, rounding in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        code = f"cvt.{mode}.{kind}.f16 %x, %a;  cvt.{mode}.{kind}.f64 %y, %b;"
        got = lanes(code, {"a": half.view(np.uint16), "b": double.view(np.uint64)}, {"x": wide, "y": wide})
        for name, values in (("x", half.astype(np.float64)), ("y", double)):
            want = [
                int(Fraction(min(max(v, low), high))) % 2 ** (8 * np.dtype(wide).itemsize)
                for v in rounding(values)
            ]
            check(got[name], np.array(want, wide), f"cvt.{mode}.{kind}", a=double.view(np.uint64))

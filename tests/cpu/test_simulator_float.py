"""Floating-point instructions: one rounding of the exact result, as directed; NaN, ftz, sat, overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from simulator_draw import FORMATS, agree, draw_floats, operands
from simulator_kit import check, lanes
from simulator_reference import (
    F16,
    F32,
    F64,
    Format,
    Number,
    add,
    apply,
    decode,
    fma,
    halves,
    is_nan,
    maximum,
    minimum,
    mul,
    negate,
    pack,
    sub,
)

Array = np.ndarray[Any, Any]
OPS: dict[str, tuple[Callable[..., Number], int]] = {
    "add": (add, 2),
    "sub": (sub, 2),
    "mul": (mul, 2),
    "fma": (fma, 3),
}


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("flags", ["", ".ftz", ".sat", ".ftz.sat"])
def test_f32_arithmetic_rounds_once(op: str, mode: str, flags: str, rng: np.random.Generator) -> None:
    meaning, count = OPS[op]
    ins = dict(zip("abc", operands(rng, F32, count), strict=False))
    got = lanes(f"{op}.{mode}{flags}.f32 %d, {', '.join('%' + n for n in ins)};", ins, {"d": np.uint32})["d"]
    want = apply(meaning, F32, *ins.values(), mode=mode, ftz="ftz" in flags, sat="sat" in flags)
    agree(got, want, F32, f"{op}.{mode}{flags}.f32", **ins)


@pytest.mark.parametrize("op", OPS)
def test_f64_arithmetic(op: str, rng: np.random.Generator) -> None:
    meaning, count = OPS[op]
    ins = dict(zip("abc", operands(rng, F64, count), strict=False))
    got = lanes(f"{op}.rn.f64 %d, {', '.join('%' + n for n in ins)};", ins, {"d": np.uint64})["d"]
    agree(got, apply(meaning, F64, *ins.values()), F64, f"{op}.rn.f64", **ins)


def test_fma_does_not_round_the_product() -> None:
    """(1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 exactly; a product rounded to float32 first gives 0."""
    a = np.full(32, 1 + 2.0**-12, np.float32)
    c = np.full(32, -(1 + 2.0**-11), np.float32)
    got = lanes(
        "fma.rn.f32 %d, %a, %a, %c;", {"a": a.view(np.uint32), "c": c.view(np.uint32)}, {"d": np.uint32}
    )["d"]
    assert (got.view(np.float32) == np.float32(2.0**-24)).all()


def test_fma_rounds_once_where_float64_would_round_twice() -> None:
    """2^24 + (1 + a remainder near 2^-36): float64 drops the remainder and sees a tie."""
    a, b, c = (np.full(32, bits, np.uint32) for bits in (0x3F800800, 0x3F7FF001, 0x4B800000))
    wide = a.view(np.float32).astype(np.float64) * b.view(np.float32) + c.view(np.float32)
    want = apply(fma, F32, a, b, c)
    assert (wide.astype(np.float32).view(np.uint32) != want).all()
    check(
        lanes("fma.rn.f32 %d, %a, %b, %c;", {"a": a, "b": b, "c": c}, {"d": np.uint32})["d"],
        want,
        "fma.rn.f32",
        a=a,
        b=b,
        c=c,
    )


def test_fma_of_doubles_keeps_a_product_beyond_the_largest_number() -> None:
    """The product is not rounded: the sum decides about overflow, infinity meets a finite product."""
    huge, inf = 0x7FEFFFFFFFFFFFFE, 0x7FF0000000000000
    top = 1 << 63
    rows = [
        (huge, huge, inf | top),
        (huge, huge | top, inf),
        (huge, huge, huge | top),
        (huge, 0x4000000000000000, huge | top),
    ]
    a, b, c = (np.array(column * 8, np.uint64) for column in zip(*rows, strict=True))
    got = lanes("fma.rn.f64 %d, %a, %b, %c;", {"a": a, "b": b, "c": c}, {"d": np.uint64})["d"]
    check(got, apply(fma, F64, a, b, c), "fma.rn.f64", a=a, b=b, c=c)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("op", OPS)
def test_packed_half_arithmetic(op: str, kind: str, rng: np.random.Generator) -> None:
    fmt, (meaning, count) = FORMATS[kind], OPS[op]
    low, high = operands(rng, fmt, count), [rng.permutation(x) for x in operands(rng, fmt, count)]
    ins = {name: pack(x, y) for name, x, y in zip("abc", low, high, strict=False)}
    got = lanes(f"{op}.rn.{kind}x2 %d, {', '.join('%' + n for n in ins)};", ins, {"d": np.uint32})["d"]
    for half, parts, place in ((0, low, "low"), (1, high, "high")):
        want = apply(meaning, fmt, *parts)
        agree(
            halves(got)[half], want, fmt, f"{op}.rn.{kind}x2 {place}", **dict(zip("abc", parts, strict=False))
        )
    single = lanes(
        f"{op}.rn.{kind} %d, {', '.join('%' + n for n in ins)};",
        dict(zip("abc", low, strict=False)),
        {"d": np.uint16},
    )["d"]
    agree(single, apply(meaning, fmt, *low), fmt, f"{op}.rn.{kind}", **dict(zip("abc", low, strict=False)))


@pytest.mark.parametrize("flags", [".ftz", ".sat", ".ftz.sat"])
def test_half_flush_and_saturation(flags: str, rng: np.random.Generator) -> None:
    a, b, c = operands(rng, F16, 3)
    got = lanes(f"fma.rn{flags}.f16 %d, %a, %b, %c;", {"a": a, "b": b, "c": c}, {"d": np.uint16})["d"]
    agree(
        got,
        apply(fma, F16, a, b, c, ftz="ftz" in flags, sat="sat" in flags),
        F16,
        f"fma.rn{flags}.f16",
        a=a,
        b=b,
        c=c,
    )


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_packed_fma_relu(kind: str, rng: np.random.Generator) -> None:
    fmt = FORMATS[kind[:-2]]
    a, b, c = operands(rng, fmt, 3)
    words = {n: pack(x, x[::-1]) for n, x in (("a", a), ("b", b), ("c", c))}
    got, _ = halves(lanes(f"fma.rn.relu.{kind} %d, %a, %b, %c;", words, {"d": np.uint32})["d"])
    got = np.where(got == 0x8000, 0, got).astype(np.uint16)  # the ISA does not say which zero -0 becomes
    want = apply(fma, fmt, a, b, c)
    negative = (want >> np.uint16(15) == 1) & ~is_nan(want, fmt)
    agree(got, np.where(negative, 0, want), fmt, f"fma.rn.relu.{kind}", a=a, b=b, c=c)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "f16x2", "bf16x2"])
def test_minimum_and_maximum(kind: str, rng: np.random.Generator) -> None:
    """A NaN loses; both NaN give NaN; -0 < +0; ``.NaN`` lets the NaN win."""
    fmt = FORMATS[kind.removesuffix("x2")]
    a, b = operands(rng, fmt, 2)
    ins = {"a": pack(a, b), "b": pack(b, a)} if kind.endswith("x2") else {"a": a, "b": b}
    dtype = ins["a"].dtype
    code = "\n".join(
        f"{op}{nan}.{kind} %{name}, %a, %b;"
        for name, op, nan in (("u", "min", ""), ("v", "max", ""), ("x", "min", ".NaN"), ("y", "max", ".NaN"))
    )
    got = lanes(code, ins, dict.fromkeys("uvxy", dtype))
    if kind.endswith("x2"):
        swapped = {name: halves(value)[1] for name, value in got.items()}
        got = {name: halves(value)[0] for name, value in got.items()}
        for name in got:
            agree(swapped[name], got[name], fmt, f"upper half of {kind} ({name})", a=a, b=b)
    low, high = apply(minimum, fmt, a, b), apply(maximum, fmt, a, b)
    nan = is_nan(a, fmt) | is_nan(b, fmt)
    quiet = (1 << fmt.bits - 1) - 1
    for name, want in (
        ("u", low),
        ("v", high),
        ("x", np.where(nan, quiet, low)),
        ("y", np.where(nan, quiet, high)),
    ):
        agree(got[name], want, fmt, f"min/max {kind} ({name})", a=a, b=b)


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
def test_sign_operations_touch_the_sign_only(kind: str, rng: np.random.Generator) -> None:
    fmt = FORMATS[kind.removesuffix("x2")]
    a = draw_floats(rng, fmt, 222)
    b = rng.permutation(a)
    words = pack(a, b) if kind.endswith("x2") else a
    got = lanes(
        f"neg.{kind} %x, %a;\n abs.{kind} %y, %a;", {"a": words}, {"x": words.dtype, "y": words.dtype}
    )
    parts = [(0, a), (1, b)] if kind.endswith("x2") else [(None, a)]
    for half, value in parts:
        flipped, cleared = (got[n] if half is None else halves(got[n])[half] for n in "xy")
        top = value.dtype.type(1 << fmt.bits - 1)
        agree(flipped, value ^ top, fmt, f"neg.{kind}", a=value)
        agree(cleared, value & ~top, fmt, f"abs.{kind}", a=value)


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_comparison_of_floats(kind: str, rng: np.random.Generator) -> None:
    """Ordered comparisons are false on NaN, the unordered ones (…u) true; num and nan ask for it."""
    fmt = FORMATS[kind]
    a, b = operands(rng, fmt, 2)
    x, y = (np.array([_float(int(v), fmt) for v in value]) for value in (a, b))
    nan = np.isnan(x) | np.isnan(y)
    plain = {"eq": x == y, "ne": (x != y) & ~nan, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
    wants = plain | {name + "u": value | nan for name, value in plain.items()} | {"num": ~nan, "nan": nan}
    outs = dict.fromkeys([f"o{name}" for name in wants], np.uint32)
    code = "\n".join(f"setp.{name}.{kind} %p1, %a, %b;\n selp.u32 %o{name}, 1, 0, %p1;" for name in wants)
    got = lanes(code, {"a": a, "b": b}, outs)
    for name, want in wants.items():
        check(got[f"o{name}"], want, f"setp.{name}.{kind}", a=a, b=b)


def _float(bits: int, fmt: Format) -> float:
    number = decode(bits, fmt)
    size = float(number.size)
    return -size if number.negative else size


def test_packed_comparison_and_flushing_comparison(rng: np.random.Generator) -> None:
    a, b = operands(rng, F16, 2)
    c, d = operands(rng, F32, 2)
    code = """
      setp.lt.f16x2 %p1|%p2, %a, %b;  selp.u32 %x, 1, 0, %p1;  selp.u32 %y, 1, 0, %p2;
      setp.gt.ftz.f32 %p3, %c, %d;  selp.u32 %z, 1, 0, %p3;"""
    n = min(len(a), len(c))
    a, b, c, d = a[:n], b[:n], c[:n], d[:n]
    got = lanes(code, {"a": pack(a, b), "b": pack(b, a), "c": c, "d": d}, dict.fromkeys("xyz", np.uint32))
    with np.errstate(invalid="ignore"):
        check(got["x"], a.view(np.float16) < b.view(np.float16), "setp.lt.f16x2 low", a=a, b=b)
        check(got["y"], b.view(np.float16) < a.view(np.float16), "setp.lt.f16x2 high", a=a, b=b)
        flushed = [np.where(np.abs(v.view(np.float32)) < 2.0**-126, 0, v.view(np.float32)) for v in (c, d)]
        check(got["z"], flushed[0] > flushed[1], "setp.gt.ftz.f32", c=c, d=d)


EXACT = {"div": (np.divide, 2), "rcp": (lambda x: 1 / x, 1), "sqrt": (np.sqrt, 1)}


@pytest.mark.parametrize("op", EXACT)
def test_division_and_root_round_to_nearest(op: str, rng: np.random.Generator) -> None:
    meaning, count = EXACT[op]
    ins = dict(zip("ab", operands(rng, F32, count), strict=False))
    if count == 1:
        ins["a"] = draw_floats(rng, F32, 980)
    got = lanes(f"{op}.rn.f32 %d, {', '.join('%' + n for n in ins)};", ins, {"d": np.uint32})["d"]
    with np.errstate(
        all="ignore"
    ):  # float64 carries more than twice float32's digits: rounding twice is innocuous
        want = (
            meaning(*(v.view(np.float32).astype(np.float64) for v in ins.values()))
            .astype(np.float32)
            .view(np.uint32)
        )
    agree(got, want, F32, f"{op}.rn.f32", **ins)


APPROXIMATE: dict[str, tuple[Callable[[Array], Array], float, float, float, float]] = {
    # operation: meaning, range of arguments, relative and absolute error allowed by the PTX ISA
    "ex2.approx.ftz.f32": (np.exp2, -100, 100, 2.0**-22, 0),
    "lg2.approx.ftz.f32": (np.log2, 2.0**-20, 2.0**20, 2.0**-21, 2.0**-22),
    "sin.approx.f32": (np.sin, -np.pi, np.pi, 0, 2.0**-20.5),
    "cos.approx.f32": (np.cos, -np.pi, np.pi, 0, 2.0**-20.5),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, 0.01, 1000, 2.0**-22.5, 0),
    "sqrt.approx.ftz.f32": (np.sqrt, 0, 1e6, 2.0**-22, 0),
    "rsqrt.approx.ftz.f32": (lambda x: 1 / np.sqrt(x), 1e-6, 1e6, 2.0**-22, 0),
    "tanh.approx.f32": (np.tanh, -5, 5, 2.0**-10.9, 0),
}


@pytest.mark.parametrize("op", APPROXIMATE)
def test_approximations_stay_within_their_error(op: str, rng: np.random.Generator) -> None:
    meaning, low, high, relative, absolute = APPROXIMATE[op]
    a = rng.uniform(low, high, 512).astype(np.float32)
    got = lanes(f"{op} %d, %a;", {"a": a.view(np.uint32)}, {"d": np.uint32})["d"].view(np.float32)
    want = meaning(a.astype(np.float64))
    error = np.abs(got - want) - relative * np.abs(want) - absolute
    worst = int(error.argmax())
    assert error[worst] <= 0, f"{op}({a[worst]}) = {got[worst]}, not {want[worst]}"


@pytest.mark.parametrize("form", ["div.approx.f32", "div.full.f32"])
def test_approximate_division(form: str, rng: np.random.Generator) -> None:
    a, b = (rng.uniform(0.1, 100, 256).astype(np.float32) for _ in range(2))
    got = lanes(f"{form} %d, %a, %b;", {"a": a.view(np.uint32), "b": b.view(np.uint32)}, {"d": np.uint32})[
        "d"
    ].view(np.float32)
    assert (np.abs(got - a.astype(float) / b) <= 2 * 2.0**-23 * a / b).all()


def test_negated_operands_and_immediates(rng: np.random.Generator) -> None:
    a = draw_floats(rng, F32, 222)
    code = """
      add.f32 %x, %a, 0f3F800000;  mul.f32 %y, %a, 0f40490FDB;  fma.rn.f32 %z, %a, 0fBF800000, 0f00000000;
      mov.f32 %u, 0f7F800000;  mov.f64 %v, 0d3FF8000000000000;  mov.b32 %w, 1.5;"""
    code = code.replace("mov.b32 %w, 1.5;", "mov.f32 %w, 1.5;")
    outs = dict.fromkeys("xyzuw", np.uint32) | {"v": np.uint64}
    got = lanes(code, {"a": a}, outs)
    one, pi, zero = (np.full(len(a), v, np.uint32) for v in (0x3F800000, 0x40490FDB, 0))
    agree(got["x"], apply(add, F32, a, one), F32, "add immediate", a=a)
    agree(got["y"], apply(mul, F32, a, pi), F32, "mul immediate", a=a)
    agree(
        got["z"],
        apply(lambda p, q, mode: fma(negate(p), q, Number(False, decode(0, F32).size), mode), F32, a, one),
        F32,
        "fma",
        a=a,
    )
    assert (got["u"] == 0x7F800000).all()
    assert (got["v"] == 0x3FF8000000000000).all()
    assert (got["w"] == 0x3FC00000).all()
    assert not zero.any()

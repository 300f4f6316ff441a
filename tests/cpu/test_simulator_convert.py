"""Conversions: rounding as directed, overflow, subnormals, NaN, saturation, packed operands, extension."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from simulator_draw import FORMATS, STORAGE, agree, draw_floats, draw_integers, edges, operands, typed
from simulator_kit import check, lanes
from simulator_reference import (
    F32,
    NAN,
    TF32,
    Number,
    convert,
    decode,
    each,
    encode,
    halves,
    is_nan,
    signed,
    special,
    whole,
)

Array = np.ndarray[Any, Any]
CONVERSIONS = [
    ("f16", "f32", "rn rz rm rp"), ("bf16", "f32", "rn rz"), ("f32", "f64", "rn rz rm rp"),
    ("f16", "f64", "rn rz rm rp"),
    ("tf32", "f32", "rna"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "source", "modes"), CONVERSIONS)
def test_narrowing_conversion_rounds_as_told(
    target: str, source: str, modes: str, rng: np.random.Generator
) -> None:
    to, of = (FORMATS | {"tf32": TF32})[target], FORMATS[source]
    a = draw_floats(rng, of, 380)
    step = 1 << of.mantissa - to.mantissa
    exact = a[: len(a) // 2] // STORAGE[of.bits](step) * STORAGE[of.bits](step)  # ties, and their neighbours
    overflow = (
        to.infinity >> to.mantissa
    ) - to.bias + of.bias << of.mantissa  # the edge of the target's range
    limits = (
        [overflow + d for d in (-step, -step // 2 - 1, -step // 2, -1, 0, 1)]
        if to.exponent < of.exponent
        else [of.infinity - 1]
    )
    tiny = [
        (of.bias - to.bias + 1 - to.mantissa - e << of.mantissa) + d
        for e in (0, 1, 2)
        for d in (-1, 0, 1)
        if to.exponent < of.exponent
    ]
    ties = [exact, exact + STORAGE[of.bits](step // 2), exact + STORAGE[of.bits](step // 2 + 1)]
    a = np.concatenate([a, *ties, np.array(limits + tiny, a.dtype)])
    a = np.concatenate([a, a ^ a.dtype.type(1 << of.bits - 1)])
    width = np.uint16 if to.bits == 16 else np.uint32
    for mode in modes.split():
        got = lanes(f"cvt.{mode}.{target}.{source} %d, %a;", {"a": a}, {"d": width})["d"]
        want = convert(a, of, to, mode)
        if to is TF32:
            want, got = want << np.uint64(13), got & np.uint32(0xFFFFE000)
            agree(got, want, F32, f"cvt.{mode}.{target}.{source}", a=a)
            continue
        agree(got, want, to, f"cvt.{mode}.{target}.{source}", a=a)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("relu", ["", ".relu"])
def test_packing_conversion_puts_the_first_operand_high(
    kind: str, mode: str, relu: str, rng: np.random.Generator
) -> None:
    a, b = operands(rng, F32, 2)
    got = lanes(f"cvt.{mode}{relu}.{kind}x2.f32 %d, %a, %b;", {"a": a, "b": b}, {"d": np.uint32})["d"]
    for half, value in ((1, a), (0, b)):
        want = convert(value, F32, FORMATS[kind], mode).astype(np.uint16)
        if relu:
            want = np.where((want >> np.uint16(15) == 1) & ~is_nan(want, FORMATS[kind]), 0, want)
        found = halves(got)[half]
        if relu:  # the ISA does not say which zero a negative zero becomes
            found = np.where(found == 0x8000, 0, found).astype(np.uint16)
        agree(found, want, FORMATS[kind], f"cvt.{mode}{relu}.{kind}x2.f32 half {half}", a=value)


@pytest.mark.parametrize(
    ("target", "source"), [("f32", "f16"), ("f32", "bf16"), ("f64", "f32"), ("f64", "f16")]
)
def test_widening_conversion_is_exact(target: str, source: str, rng: np.random.Generator) -> None:
    of, to = FORMATS[source], FORMATS[target]
    a = draw_floats(rng, of, 480)
    got = lanes(f"cvt.{target}.{source} %d, %a;", {"a": a}, {"d": STORAGE[to.bits]})["d"]
    agree(got, convert(a, of, to, "rn"), to, f"cvt.{target}.{source}", a=a)


@pytest.mark.parametrize(
    "form",
    [
        "rn.ftz.f16.f32",
        "rn.sat.f16.f32",
        "rn.ftz.f32.f64",
        "ftz.f32.f16",
        "sat.f32.f32",
        "ftz.f32.f32",
        "rn.sat.f32.f64",
    ],
)
def test_conversion_flush_and_saturation(form: str, rng: np.random.Generator) -> None:
    target, source = form.split(".")[-2:]
    a = draw_floats(rng, FORMATS[source], 480)
    got = lanes(f"cvt.{form} %d, %a;", {"a": a}, {"d": STORAGE[FORMATS[target].bits]})["d"]
    want = convert(a, FORMATS[source], FORMATS[target], "rn", "ftz" in form, "sat" in form)
    agree(got, want, FORMATS[target], f"cvt.{form}", a=a)


INTEGER_MODES = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


@pytest.mark.parametrize("mode", INTEGER_MODES)
@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u8"])
def test_float_to_integer_clamps(kind: str, mode: str, rng: np.random.Generator) -> None:
    bits, is_signed = int(kind[1:]), kind[0] == "s"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    values = np.concatenate(
        [rng.uniform(-20, 20, 40), np.arange(-8, 8) / 2, [2.0**bits, -(2.0**bits), 2.0 ** (bits - 1)]]
    )
    values = np.concatenate([values, rng.standard_normal(40) * 2.0 ** rng.integers(0, bits + 3, 40)]).astype(
        np.float32
    )
    a = np.concatenate([np.array(special(F32), np.uint32), values.view(np.uint32)])
    width = STORAGE[max(16, bits)]
    want = []
    for pattern in a.tolist():
        number = decode(pattern, F32)
        if number.size == NAN:
            want.append(0 if bits < 64 else 1 << 63)
        elif isinstance(number.size, str):
            want.append(low if number.negative else high)
        else:
            steps = whole(number.size, INTEGER_MODES[mode], number.negative)
            want.append(min(high, max(low, -steps if number.negative else steps)))
    keep = (
        ~is_nan(a, F32) if bits == 64 else np.ones(len(a), bool)
    )  # NaN to 64 bits has changed between ISA versions
    got = lanes(f"cvt.{mode}.{kind}.f32 %d, %a;", {"a": a}, {"d": width})["d"]
    expected = np.array([w & (1 << 8 * np.dtype(width).itemsize) - 1 for w in want], width)
    check(got[keep], expected[keep], f"cvt.{mode}.{kind}.f32", a=a[keep])


@pytest.mark.parametrize("mode", INTEGER_MODES)
def test_round_to_integral_float(mode: str, rng: np.random.Generator) -> None:
    a = np.concatenate(
        [np.array(special(F32), np.uint32), (np.arange(-60, 60) / 4).astype(np.float32).view(np.uint32)]
    )
    got = lanes(f"cvt.{mode}.f32.f32 %d, %a;", {"a": a}, {"d": np.uint32})["d"].view(np.float32)
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    want = rounding(a.view(np.float32))
    agree(got.view(np.uint32), want.view(np.uint32), F32, f"cvt.{mode}.f32.f32", a=a)


@pytest.mark.parametrize("source", ["u32", "s32", "u64", "s64", "u16", "s8"])
@pytest.mark.parametrize("target", ["f32", "f16", "f64"])
def test_integer_to_float(source: str, target: str, rng: np.random.Generator) -> None:
    bits, to = int(source[1:]), FORMATS[target]
    storage = STORAGE[max(16, bits)]
    a = np.concatenate(
        [
            np.array(
                [0, 1, 2047, 2049, 65519, 65520, 65535, 2**24 + 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1],
                np.uint64,
            ),
            rng.integers(0, 2**64 - 1, 100, np.uint64) >> rng.integers(0, 64, 100, np.uint64),
        ]
    ).astype(storage)
    directed = ("rm", "rp") if target == "f64" else ("rz", "rm", "rp")
    for mode in ("rn", *directed):
        got = lanes(f"cvt.{mode}.{target}.{source} %d, %a;", {"a": a}, {"d": STORAGE[to.bits]})["d"]
        low = a.astype(np.uint64) & np.uint64((1 << bits) - 1)
        values = [int(v) - (1 << bits) if source[0] == "s" and int(v) >> bits - 1 else int(v) for v in low]
        want = np.array([encode(Number(v < 0, Fraction(abs(v))), to, mode) for v in values], np.uint64)
        agree(got, want, to, f"cvt.{mode}.{target}.{source}", a=a)


INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("sat", ["", ".sat"])
def test_integer_conversion_extends_wraps_or_saturates(
    target: str, sat: str, rng: np.random.Generator
) -> None:
    for source in INTEGERS:
        bits, read = typed(source)
        wide, _ = typed(target)
        low, high = (-(1 << wide - 1), (1 << wide - 1) - 1) if target[0] == "s" else (0, (1 << wide) - 1)
        below, above = (-(1 << bits - 1), (1 << bits - 1) - 1) if source[0] == "s" else (0, (1 << bits) - 1)
        if sat and low <= below and above <= high:
            continue  # the ISA forbids .sat where nothing can saturate
        storage = max(16, bits)
        a = np.array(edges(bits) + edges(storage) + draw_integers(rng, storage, 74), STORAGE[storage])
        got = lanes(f"cvt{sat}.{target}.{source} %c, %a;", {"a": a}, {"c": STORAGE[max(16, wide)]})["c"]

        def convert(
            v: int,
            bits: int = bits,
            read: Callable[[int], int] = read,
            low: int = low,
            high: int = high,
            wide: int = wide,
        ) -> int:
            value = read(v & (1 << bits) - 1)
            if sat:
                value = max(low, min(high, value))
            value &= (1 << wide) - 1
            return (
                signed(value, wide) if target[0] == "s" else value
            )  # cvt extends up to the register's width

        check(got, each(convert, STORAGE[max(16, wide)], a), f"cvt{sat}.{target}.{source}", a=a)

"""Exact rounding between binary formats, in arrays.

A result that passes through float64 is rounded to odd there (a sticky last bit), so that the second
rounding is the only one that counts.
"""

from __future__ import annotations

import numpy as np

from fftgen.simulator.types import Array

F32_NAN = np.uint32(0x7FFFFFFF)
H_NAN = np.uint16(0x7FFF)
_ODD = np.uint64(1)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """float64 sum and its rounding error: a + b = s + e exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def to_odd(s: Array, error: Array) -> Array:
    """The float64 next to ``s + error`` rounded to odd; ``s`` is the nearest, ``error`` what it lacks."""
    lacking = (error != 0) & np.isfinite(s)
    if not lacking.any():
        return s
    bits = s.view(np.uint64)
    away = (error > 0) == (s > 0)  # the true value is larger in magnitude than s
    truncated = np.where(lacking & ~away, bits - _ODD, bits)
    return np.where(lacking, truncated | _ODD, truncated).view(np.float64)


def minus_zero(total: Array, a: Array, b: Array) -> Array:
    """Rounded down, an exact zero that is a sum of unlike signs is -0."""
    zero = (total == 0) & (np.signbit(a) != np.signbit(b))
    return np.where(zero, -0.0, total) if zero.any() else total


def add_odd(a: Array, b: Array) -> Array:
    """a + b of float64 arrays, rounded to odd."""
    with np.errstate(all="ignore"):
        s, e = two_sum(a, b)
        return to_odd(s, np.where(np.isfinite(e), e, 0.0))


def fma_odd(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of values whose product is exact in float64, rounded to odd."""
    return add_odd(a * b, c)


def round_f32(x: Array, mode: str = "rn") -> Array:
    """float64 (rounded to odd, or exact) to float32 in mode rn, rz, rm or rp."""
    with np.errstate(all="ignore"):
        near = x.astype(np.float32)
        if mode == "rn":
            return near
        back = near.astype(np.float64)
        if mode == "rz":
            wrong = np.abs(back) > np.abs(x)
            return np.where(wrong, np.nextafter(near, np.float32(0)), near)
        if mode == "rm":
            return np.where(back > x, np.nextafter(near, np.float32(-np.inf)), near)
        return np.where(back < x, np.nextafter(near, np.float32(np.inf)), near)


def f32_odd(x: Array) -> Array:
    """float64 to float32, rounded to odd."""
    with np.errstate(all="ignore"):
        toward = round_f32(x, "rz")
        inexact = np.isfinite(x) & (toward.astype(np.float64) != x)
        bits: Array = toward.view(np.uint32) | inexact.astype(np.uint32)
        return bits.view(np.float32)


def bf16_bits(x: Array, mode: str = "rn") -> Array:
    """float32 to bfloat16 bits (uint16); a NaN becomes 0x7FFF."""
    u = np.ascontiguousarray(x).view(np.uint32)
    if mode == "rn":
        rounded = (u + (np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    else:
        rounded = u >> np.uint32(16)
        if mode != "rz":
            lost = ((u & np.uint32(0xFFFF)) != 0) & np.isfinite(x)
            negative = (u >> np.uint32(31)) != 0
            rounded = rounded + (lost & (negative if mode == "rm" else ~negative)).astype(np.uint32)
    result: Array = rounded.astype(np.uint16)
    nan = np.isnan(x)
    if nan.any():
        result[nan] = H_NAN
    return result


def bf16_from_f64(x: Array) -> Array:
    """float64 (rounded to odd, or exact) to the nearest bfloat16 bits."""
    return bf16_bits(f32_odd(x))


def bf16_value(bits: Array) -> Array:
    """bfloat16 bits to float32, exactly."""
    value: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return value


def f16_bits(x: Array, mode: str = "rn") -> Array:
    """float32 or float64 (exact or rounded to odd) to float16 bits; a NaN becomes 0x7FFF."""
    with np.errstate(all="ignore"):
        near = x.astype(np.float16)
        if mode != "rn":
            wide = x.astype(np.float64)
            back = near.astype(np.float64)
            if mode == "rz":
                near = np.where(np.abs(back) > np.abs(wide), np.nextafter(near, np.float16(0)), near)
            elif mode == "rm":
                near = np.where(back > wide, np.nextafter(near, np.float16(-np.inf)), near)
            else:
                near = np.where(back < wide, np.nextafter(near, np.float16(np.inf)), near)
        bits = near.view(np.uint16)
        nan = np.isnan(x)
        if nan.any():
            bits = np.where(nan, H_NAN, bits)
        return bits


def f16_value(bits: Array) -> Array:
    """float16 bits to float32, exactly."""
    return bits.view(np.float16).astype(np.float32)


def canonical(x: Array) -> Array:
    """float32 with every NaN made the canonical one (0x7FFFFFFF)."""
    nan = np.isnan(x)
    if nan.any():
        x = x.copy()
        x.view(np.uint32)[nan] = F32_NAN
    return x


def flush(x: Array) -> Array:
    """float32 with subnormals replaced by zeros of their sign (``.ftz``)."""
    tiny = np.abs(x) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), x), x)

"""Reference arithmetic of the simulator tests: IEEE formats in exact rationals, fragments by lane formula.

All of it is written from IEEE 754 and the PTX ISA, value by value, and shares no code with the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: exponent bits and stored significand bits."""

    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa


F16, BF16, TF32, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 10), Format(8, 23), Format(11, 52)
NAN, INF = "nan", "inf"


@dataclass(frozen=True)
class Number:
    """A sign and a magnitude: a rational, INF or NAN."""

    negative: bool
    size: Fraction | str

    @property
    def exact(self) -> Fraction:
        assert isinstance(self.size, Fraction)
        return -self.size if self.negative else self.size


NOT_A_NUMBER = Number(False, NAN)


def decode(bits: int, fmt: Format, ftz: bool = False) -> Number:
    """The value of a bit pattern; ``ftz`` reads subnormals as zero of the same sign."""
    negative = bool(bits >> (fmt.bits - 1) & 1)
    exponent = bits >> fmt.mantissa & ((1 << fmt.exponent) - 1)
    fraction = bits & ((1 << fmt.mantissa) - 1)
    if exponent == (1 << fmt.exponent) - 1:
        return Number(negative, NAN if fraction else INF)
    if exponent == 0:
        return Number(negative, Fraction(0) if ftz else _scaled(fraction, 1 - fmt.bias - fmt.mantissa))
    return Number(negative, _scaled(fraction | 1 << fmt.mantissa, exponent - fmt.bias - fmt.mantissa))


def _scaled(value: int, power: int) -> Fraction:
    return Fraction(value << power) if power >= 0 else Fraction(value, 1 << -power)


def whole(value: Fraction, mode: str, negative: bool) -> int:
    """The non-negative ``value`` rounded to an integer; the directed modes look at the sign."""
    floor, rest = divmod(value, 1)
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
        "rm": rest > 0 and negative,
        "rp": rest > 0 and not negative,
    }[mode]
    return int(floor) + up


def encode(number: Number, fmt: Format, mode: str = "rn", ftz: bool = False, sat: bool = False) -> int:
    """The bit pattern of ``number`` rounded once. NaN is the canonical one (all ones but the sign)."""
    if number.size == NAN:
        return 0 if sat else (1 << (fmt.bits - 1)) - 1
    if sat:
        if number.negative:
            return 0
        if number.size == INF or number.exact >= 1:
            number = Number(False, Fraction(1))
    sign = number.negative << (fmt.bits - 1)
    if number.size == INF:
        return sign | fmt.infinity
    size = abs(number.exact)
    if size == 0:
        return sign
    power = size.numerator.bit_length() - size.denominator.bit_length()
    power -= size < _scaled(1, power)
    lowest = max(power, 1 - fmt.bias) - fmt.mantissa
    steps = whole(size / _scaled(1, lowest), mode, number.negative)
    pattern = (
        steps
        if lowest == 1 - fmt.bias - fmt.mantissa
        else steps + ((lowest + fmt.bias + fmt.mantissa - 1) << fmt.mantissa)
    )
    if pattern >= fmt.infinity:
        outward = mode in ("rn", "rna") or mode == ("rm" if number.negative else "rp")
        pattern = fmt.infinity if outward else fmt.infinity - 1
    if ftz and pattern < 1 << fmt.mantissa:
        pattern = 0
    return sign | pattern


def fma(a: Number, b: Number, c: Number, mode: str = "rn") -> Number:
    """``a*b + c`` exactly, with the sign of an exact zero by IEEE 754 6.3."""
    sign = a.negative != b.negative
    if NAN in (a.size, b.size, c.size):
        return NOT_A_NUMBER
    if INF in (a.size, b.size):
        if 0 in (a.size, b.size) or (c.size == INF and c.negative != sign):
            return NOT_A_NUMBER
        return Number(sign, INF)
    if c.size == INF:
        return c
    value = a.exact * b.exact + c.exact
    if value == 0:
        product_sign_wins = sign == c.negative
        return Number(sign if product_sign_wins else mode == "rm", Fraction(0))
    return Number(value < 0, abs(value))


ONE = Number(False, Fraction(1))


def negate(a: Number) -> Number:
    return Number(not a.negative, a.size)


def add(a: Number, b: Number, mode: str = "rn") -> Number:
    return fma(a, ONE, b, mode)


def sub(a: Number, b: Number, mode: str = "rn") -> Number:
    return fma(a, ONE, negate(b), mode)


def mul(a: Number, b: Number, mode: str = "rn") -> Number:
    return fma(a, b, Number(a.negative != b.negative, Fraction(0)), mode)


def minimum(a: Number, b: Number, mode: str = "rn") -> Number:
    """The ISA's min: a NaN loses against a number, and -0 lies below +0."""
    if NAN in (a.size, b.size):
        return b if a.size == NAN else a
    return a if _key(a) <= _key(b) else b


def maximum(a: Number, b: Number, mode: str = "rn") -> Number:
    if NAN in (a.size, b.size):
        return b if a.size == NAN else a
    return a if _key(a) >= _key(b) else b


def _key(a: Number) -> tuple[int, Fraction, bool]:
    if a.size == INF:
        return (-1 if a.negative else 1, Fraction(0), False)
    return (0, a.exact, not a.negative)


def apply(
    op: Callable[..., Number],
    fmt: Format,
    *operands: Array,
    mode: str = "rn",
    ftz: bool = False,
    sat: bool = False,
) -> Array:
    """``op`` over arrays of bit patterns."""
    rows = zip(*(operand.tolist() for operand in operands), strict=True)
    bits = [encode(op(*(decode(v, fmt, ftz) for v in row), mode), fmt, mode, ftz, sat) for row in rows]
    return np.array(bits, operands[0].dtype)


def convert(
    bits: Array, source: Format, target: Format, mode: str, ftz: bool = False, sat: bool = False
) -> Array:
    """Bit patterns of ``source`` values in ``target``. ``ftz`` flushes on the 32-bit side only."""
    flush_in, flush_out = ftz and source is F32, ftz and target is F32
    return np.array(
        [encode(decode(v, source, flush_in), target, mode, flush_out, sat) for v in bits.tolist()], np.uint64
    )


def is_nan(bits: Array, fmt: Format) -> Array:
    return (bits & np.array((1 << (fmt.bits - 1)) - 1, bits.dtype)) > np.array(fmt.infinity, bits.dtype)


def special(fmt: Format) -> list[int]:
    """Bit patterns at the edges of a format: zeros, subnormals, neighbours of one, ties, infinities, NaN."""
    one, inf, half = fmt.bias << fmt.mantissa, fmt.infinity, 1 << (fmt.mantissa - 1)
    positive = [
        0,
        1,
        2,
        3,
        half,
        (1 << fmt.mantissa) - 1,
        1 << fmt.mantissa,
        (1 << fmt.mantissa) + 1,
        one - 1,
        one,
    ]
    positive += [one + 1, one + half, one + (1 << fmt.mantissa), inf - 1, inf - 2, inf, inf | half]
    return positive + [p | 1 << (fmt.bits - 1) for p in positive]


def pack(low: Array, high: Array) -> Array:
    """Two 16-bit patterns in one 32-bit word, ``low`` in the lower half."""
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)


def halves(words: Array) -> tuple[Array, Array]:
    return (words & np.uint32(0xFFFF)).astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)


def to_bits(values: Array, fmt: Format) -> Array:
    """Values of float64 in ``fmt``, to nearest even, as bit patterns of the format's storage."""
    wide = np.ascontiguousarray(values, np.float64).view(np.uint64)
    storage = np.uint16 if fmt.bits == 16 else np.uint32
    bits = convert(wide.ravel(), F64, F32 if fmt is TF32 else fmt, "rn").reshape(wide.shape)
    return bits.astype(storage)


def to_values(bits: Array, fmt: Format) -> Array:
    """Bit patterns of ``fmt`` as float64."""
    if fmt is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return (
        bits.astype(np.uint16).view(np.float16).astype(np.float64)
        if fmt is F16
        else bits.view(np.float32).astype(float)
    )


# Fragments of mma.m16n8kK (PTX ISA, "Matrix Fragments for mma.m16n8k4/k8/k16"): element i of a lane's part
# lies at (row, column). group = lane / 4, member = lane % 4.
Layout = list[list[tuple[int, int]]]


def _layout(place: Callable[[int, int, int], tuple[int, int]], count: int) -> Layout:
    return [[place(lane // 4, lane % 4, i) for i in range(count)] for lane in range(32)]


def fragment_a(k: int, tf32: bool) -> Layout:
    if tf32:
        return _layout(lambda g, t, i: (g + 8 * (i % 2), t + 4 * (i // 2)), k // 2)
    return _layout(lambda g, t, i: (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)), k // 2)


def fragment_b(k: int, tf32: bool) -> Layout:
    if tf32:
        return _layout(lambda g, t, i: (t + 4 * i, g), k // 4)
    return _layout(lambda g, t, i: (2 * t + i % 2 + 8 * (i // 2), g), k // 4)


def fragment_c() -> Layout:
    return _layout(lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2), 4)


def scatter(matrix: Array, layout: Layout) -> Array:
    """The registers of a warp holding ``matrix``: (32, n) words; 16-bit elements go in pairs, low first."""
    elements = np.array([[matrix[place] for place in lane] for lane in layout])
    return np.ascontiguousarray(elements).view(np.uint32)


def gather(registers: Array, layout: Layout, shape: tuple[int, int], dtype: Any) -> Array:
    """The matrix of ``shape`` in the registers (32, n) of a warp; every element must be held exactly once."""
    elements = np.ascontiguousarray(registers, np.uint32).view(dtype)
    matrix, seen = np.zeros(shape, dtype), np.zeros(shape, int)
    for lane, places in enumerate(layout):
        for i, place in enumerate(places):
            matrix[place] = elements[lane, i]
            seen[place] += 1
    assert (seen == 1).all()
    return matrix


def signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned value."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def each(op: Callable[..., int], dtype: Any, *operands: Iterable[int]) -> Array:
    """``op`` over integers, wrapped to the unsigned ``dtype``."""
    mask = (1 << 8 * np.dtype(dtype).itemsize) - 1
    return np.array([op(*(int(v) for v in row)) & mask for row in zip(*operands, strict=True)], dtype)

"""Inputs of the simulator tests: values at the edges of a type and random ones; how results compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from simulator_kit import check
from simulator_reference import BF16, F16, F32, F64, Format, is_nan, signed, special

Array = np.ndarray[Any, Any]
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
STORAGE = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def draw_floats(rng: np.random.Generator, fmt: Format, count: int) -> Array:
    """Special values, then random patterns, then values of moderate size (which cancel and round)."""
    edge = special(fmt)
    wild = (
        rng.integers(0, 1 << fmt.bits, count, np.uint64)
        if fmt.bits < 64
        else rng.integers(0, 2**64 - 1, count, np.uint64)
    )
    mild = (fmt.bias - 12 << fmt.mantissa) + (wild % np.uint64(24 << fmt.mantissa)) | wild & np.uint64(
        1 << fmt.bits - 1
    )
    return np.concatenate([np.array(edge, np.uint64), wild[::2], mild[1::2]]).astype(STORAGE[fmt.bits])


def operands(rng: np.random.Generator, fmt: Format, count: int) -> list[Array]:
    """``count`` operands: all pairs of special values, and random ones."""
    edge = np.array(special(fmt), STORAGE[fmt.bits])[::2]
    square = [np.repeat(edge, len(edge)), np.tile(edge, len(edge))]
    third = rng.permutation(square[0])
    return [np.concatenate([fixed, draw_floats(rng, fmt, 182)]) for fixed in [*square, third][:count]]


def agree(got: Array, want: Array, fmt: Format, what: str, **inputs: Array) -> None:
    """Bit for bit, but any NaN for a NaN: the ISA leaves the payload open."""
    want = want.astype(got.dtype)
    both = is_nan(got, fmt) & is_nan(want, fmt)
    check(np.where(both, want, got), want, what, **inputs)


def edges(bits: int) -> list[int]:
    top = 1 << bits
    return [0, 1, 2, 3, 7, top // 2 - 1, top // 2, top // 2 + 1, top - 2, top - 1, 0x5555555555555555 % top]


def draw_integers(rng: np.random.Generator, bits: int, count: int) -> list[int]:
    """Random integers of every magnitude up to ``bits`` bits."""
    return [
        int(v) >> int(s)
        for v, s in zip(
            rng.integers(0, 1 << bits, count, np.uint64, endpoint=False)
            if bits < 64
            else rng.integers(0, 2**64 - 1, count, np.uint64, endpoint=True),
            rng.integers(0, bits, count),
            strict=True,
        )
    ]


def pairs(rng: np.random.Generator, bits: int) -> tuple[Array, Array]:
    special = edges(bits)
    a = [x for x in special for _ in special] + draw_integers(rng, bits, 135)
    b = special * len(special) + draw_integers(rng, bits, 135)
    return np.array(a, STORAGE[bits]), np.array(b, STORAGE[bits])


def typed(kind: str) -> tuple[int, Callable[[int], int]]:
    bits = int(kind[1:])
    return bits, (lambda v: signed(v, bits)) if kind[0] == "s" else (lambda v: v)

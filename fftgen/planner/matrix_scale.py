"""By what a DFT matrix is scaled: so that a convolution is bounded, and 16 bits hold the entries best.

What a matrix is multiplied by is undone in fp32 at the output, with 1/N, so it costs nothing. About
1/sqrt(radix) it is unitary (design 1.8); within WINDOW of that the factor is free, and a matrix has few
distinct entries: cos(2 pi j / 16) takes five absolute values. Some factor brings all of these near numbers
that fp16 holds: the matrix of radix 16 then is off by 1.5e-5 (relative, Frobenius norm), where with a power
of two it is by 8.3e-5, and that of radix 32 by 5.1e-5, not 1.1e-4. In bf16 that makes a whole convolution a
fifth more exact. Matrices with the weights of a right-angle transform have four times the entries and gain
the less: 9.2e-5 for 1.14e-4 at radix 16.

Batch pairs keep to powers of two. A mean is one number of their spectrum, which every stage on the way back
hands out in equal parts: a power of two leaves these exact, anything else rounds all of them alike, and
signals with a mean of 100 lose what white noise gains. The weights of a right-angle transform spread a
mean. But the cosines of radix 16 come out small in fp16, and with them white noise or a spike that passes
three such stages there and back, by 2.7e-4 where all of the error is 9e-4, while a mean meets exact entries:
half of it is undone at the output of pairs of fp16 rows (``Plan.residual``). That takes a twentieth of the
largest error away. (bf16 rows, whose own rounding hides white noise's, have no room for larger means.)

A mean is rounded some three times as the one number that it is: its transform, the filter's frequency 0 and
their product. Where one block has a filter's spectrum it is multiplied by what makes frequency 0 a power of
two, but for what is given back, and the output by the inverse (templates/filter_transform.j2): neither that
nor a product with it is rounded then. Means are off by 1.6e-4 instead of 3.3e-4 (standard deviation), and by
1e-5 instead of 1.5e-4 on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fftgen.dtypes import decode, dtype, encode

WINDOW = 2.0**0.25  # a stage may let white noise grow or shrink by 1.5 dB, so four of them by 6
EFFORT = 1 << 17  # entries rounded in a search: a millisecond


def matrix_scales(radices: Sequence[int], right_angle: bool, operand: str) -> tuple[float, ...]:
    """The factor of each stage's matrix, whose entries are rounded to ``operand``."""
    if right_angle:
        return tuple(matrix_scale(radix, n == 0, operand) for n, radix in enumerate(radices))
    scales: list[float] = []
    grown = 0.0  # log2 of the norm of white noise: kept within 3 dB
    for radix in radices:
        grown += math.log2(radix) / 2
        less = math.floor(grown + 0.5)
        grown -= less
        scales.append(math.ldexp(1.0, -less))
    return tuple(scales)


@lru_cache(maxsize=256)
def kept(radix: int, scale: float, operand: str) -> float:
    """What a DFT matrix without weights, rounded to ``operand``, and its adjoint leave of white noise."""
    turns = np.outer(np.arange(radix), np.arange(radix)) % radix / radix
    kind = dtype(operand)
    parts = (scale * f(2 * np.pi * turns) for f in (np.cos, np.sin))
    squares = sum(np.square(decode(encode(part, kind), kind).astype(np.float64)) for part in parts)
    return float(np.mean(squares)) / scale**2


@lru_cache(maxsize=256)
def matrix_scale(radix: int, weighted: bool, operand: str) -> float:
    """The factor of a DFT matrix (design 1.2) that rounding to ``operand`` changes least.

    That is, by the least relative Frobenius norm among about EFFORT / (distinct entries) candidates.
    ``weighted``: the matrix carries the weights of a right-angle transform (design 1.4).
    """
    turn = 4 * radix
    k, n = np.arange(radix)[:, None], np.arange(radix)
    phase = (n if weighted else 0) - 4 * k * n  # in parts of a turn
    # |cos| of the real parts and of the imaginary ones, a quarter of a turn on; half a turn changes its sign.
    part = np.stack([phase, phase + radix]) % (turn // 2)
    entries, counts = np.unique(np.minimum(part, turn // 2 - part), return_counts=True)
    values = np.cos(2 * np.pi / turn * entries)
    # Multiples of a power of two: the same on every machine.
    low, high = radix**-0.5 / WINDOW, radix**-0.5 * WINDOW
    step = math.ldexp(1.0, math.ceil(math.log2((high - low) * len(values) / EFFORT)))
    candidates = step * np.arange(math.ceil(low / step), math.floor(high / step) + 1)
    exact = candidates[:, None] * values
    kind = dtype(operand)
    off = decode(encode(exact, kind), kind) - exact
    worth = (off**2 @ counts) / candidates**2
    return float(candidates[np.argmin(worth)])

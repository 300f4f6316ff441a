"""DFTs of few points in packed fp16, as threads do them (templates/device/butterflies.cuh): all sums rounded.

Of a power of two by decimation in time; of three and five from sums and differences of x[b] and x[B - b].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import FP16, decode, encode

Real = npt.NDArray[np.floating[Any]]
Complex = npt.NDArray[np.complexfloating[Any, Any]]


def fp16(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The nearest numbers of fp16."""
    return decode(encode(values, FP16), FP16)


def from_parts(real: Real, imaginary: Real) -> Complex:
    """complex64 out of its parts: a sum with 1j times the imaginary one would spread what is not finite."""
    z = np.empty(real.shape, np.complex64)
    z.real, z.imag = real, imaginary
    return z


def halves(values: Complex) -> Complex:
    """The nearest complex numbers of two in fp16."""
    return from_parts(fp16(values.real), fp16(values.imag))


ROOT, SINE_3, ROOT_5 = (float(fp16(x)) for x in (0.5**0.5, 0.75**0.5, 5**0.5 / 4))
SINE_5, SINE_5_2 = (float(fp16(np.sin(2 * np.pi * k / 5))) for k in (1, 2))


def butterflies(x: Sequence[Complex], *, inverse: bool) -> list[Complex]:
    """X[k] = sum_b w^(k b) x[b] for w = exp(-2 pi i / B), or its conjugate: B = 1, 2, 3, 4, 5 or 8 arrays."""
    if len(x) == 1:
        return list(x)
    if len(x) in (3, 5):
        found = _three(*x) if len(x) == 3 else _five(*x)
        return [found[0], *found[:0:-1]] if inverse else found
    even, odd = butterflies(x[0::2], inverse=inverse), butterflies(x[1::2], inverse=inverse)
    quarter = np.complex64(1j if inverse else -1j)
    sums, differences = [], []
    for k, (e, o) in enumerate(zip(even, odd, strict=True)):
        turned, factor = o, 1.0
        if 4 * k >= len(x):
            turned = quarter * o
        if 4 * k % len(x):  # an eighth of a turn: the sum is rounded before the product, which an FMA takes
            turned, factor = halves(turned + quarter * turned), ROOT
        sums.append(_plus(e, turned, factor))
        differences.append(_plus(e, turned, -factor))
    return sums + differences


def _plus(x: Complex, y: Complex, w: complex) -> Complex:
    """x + y w, rounded once."""
    return halves(x + np.asarray(y, np.complex128) * w)


def _three(x0: Complex, x1: Complex, x2: Complex) -> list[Complex]:
    both, apart = halves(x1 + x2), halves(x1 - x2)
    least = _plus(x0, both, -0.5)
    return [halves(x0 + both), _plus(least, apart, -1j * SINE_3), _plus(least, apart, 1j * SINE_3)]


def _five(x0: Complex, x1: Complex, x2: Complex, x3: Complex, x4: Complex) -> list[Complex]:
    near, far, u, v = halves(x1 + x4), halves(x2 + x3), halves(x1 - x4), halves(x2 - x3)
    both, apart = halves(near + far), halves(near - far)
    least = _plus(x0, both, -0.25)
    first, second = _plus(least, apart, ROOT_5), _plus(least, apart, -ROOT_5)
    across = _plus(_times(v, SINE_5_2), u, SINE_5), _plus(_times(u, SINE_5_2), v, -SINE_5)
    one, two = (np.complex64(1j) * z for z in across)
    return [halves(x0 + both), *(halves(z) for z in (first - one, second - two, second + two, first + one))]


def _times(x: Complex, w: float) -> Complex:
    return halves(np.asarray(x, np.complex128) * w)

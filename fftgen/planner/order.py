"""Monarch order: which frequency stands where after the stages of a transform (design 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from fftgen.planner import fragments
from fftgen.planner.plan import SIMT, Plan


def monarch_permutation(factors: Sequence[int]) -> npt.NDArray[np.int64]:
    """The frequency at each position of a spectrum in Monarch order, int64 ``(N,)``.

    Position ``(k_1, ..., k_p)``, the last digit fastest, holds frequency ``k_1 + N_1 k_2 + N_1 N_2 k_3
    + ...``: the digits of the position read backwards. ``natural[monarch_permutation(factors)]`` brings
    a spectrum from natural into Monarch order; ``numpy.argsort`` of it goes back.
    """
    natural = np.arange(prod(factors), dtype=np.int64).reshape(tuple(reversed(factors)))
    return np.ascontiguousarray(natural.transpose()).reshape(-1)


def spectrum_digits(plan: Plan) -> tuple[tuple[int, int], ...]:
    """How the kernels of a plan read a channel's spectrum: digits (extent, stride), the slowest first.

    The place of a number, read in this mixed radix, gives digits that, times their strides, add up to the
    number's index in the natural spectrum as real numbers: 2 k for the real part of frequency k, 2 k + 1
    for the imaginary part.
    """
    if plan.engine == "mma":
        return fragments.spectrum_digits(plan)
    if plan.engine == SIMT:
        return _digits_by_thread(plan)
    return ((2, 1), *_by_frequency(plan))  # plane by plane


def _digits_by_thread(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Of the engine "simt": rows as their stages leave them, but for the last: neighbouring threads read
    neighbouring frequencies of it. Both parts side by side."""
    found, outer = _by_frequency(plan), len(plan.device_stages)
    return (*found[:outer], found[-1], *found[outer:-1], (2, 1))


def _by_frequency(plan: Plan) -> list[tuple[int, int]]:
    """Digits of a place where stages leave frequencies, and their strides over numbers."""
    found, stride = [], 2
    for radix in plan.factors:
        found.append((radix, stride))
        stride *= radix
    return found


def sum_digits(plan: Plan) -> tuple[tuple[int, int], ...]:
    """The same for a part of a filter's gradient in the frequency domain, in fp32.

    As a spectrum, but for the eight numbers of a lane: four of every lane, then the other four, so that the
    lanes of a warp reach neighbouring 16-byte pieces.
    """
    if plan.engine == SIMT:  # rows as their stages leave them, plane by plane
        digits, outer = _by_frequency(plan), len(plan.device_stages)
        return (*digits[:outer], (2, 1), *digits[outer:])
    *tiles, g, t, column_half, row_half, pair = spectrum_digits(plan)
    return (*tiles, column_half, g, t, row_half, pair)


def spectrum_index(plan: Plan) -> npt.NDArray[np.int64]:
    """The index in the natural spectrum of every number of a stored one, int64 ``(2 N,)``."""
    return _index(spectrum_digits(plan))


def sum_index(plan: Plan) -> npt.NDArray[np.int64]:
    """The same for a part of a filter's gradient."""
    return _index(sum_digits(plan))


def same_spectrum(one: Plan, other: Plan) -> bool:
    """Whether kernels of two plans read a filter's spectrum alike: numbers, order and scale."""
    return spectrum_digits(one) == spectrum_digits(other) and all(
        getattr(one, name) == getattr(other, name)
        for name in ("spectrum_type", "packing", "fold", "residual")
    )


def stored_places(plan: Plan) -> npt.NDArray[np.int64]:
    """The index ``k M_1 + r`` of what stands at each place of the workspace after the first device stage."""
    rest = plan.stages[0].rest
    rows = np.arange(plan.factors[0])[:, None] * rest
    return np.asarray((rows + fragments.workspace_order(plan, rest)).reshape(-1), np.int64)


def _index(digits: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    index = np.zeros(1, np.int64)
    for extent, stride in digits:
        index = (index[:, None] + stride * np.arange(extent)).reshape(-1)
    return index

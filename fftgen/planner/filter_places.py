"""Where a stored spectrum has what stands at the places of its transform: both as digits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from math import gcd
from operator import mul

import numpy as np

from fftgen.errors import InternalError
from fftgen.planner.filter import Digits, Pieces
from fftgen.planner.order import spectrum_digits, sum_digits
from fftgen.planner.plan import SIMT, Plan

PIECE = 8  # frequencies of a stored piece: 16 bytes in each plane
SUM_PIECE = 4  # and of a piece of a sum of spectra, in fp32


def _split(digits: Iterable[tuple[int, int]], at: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Digits (extent, stride), each broken wherever its range of strides crosses one in ``at``."""
    for extent, stride in digits:
        cuts = [stride, *(c for c in at if stride < c < stride * extent), stride * extent]
        if any(high % low for low, high in pairwise(cuts)):
            raise InternalError(f"digit of {extent} times {stride} does not split at {cuts}")
        yield from reversed([(high // low, low) for low, high in pairwise(cuts)])


def transform_places(digits: Digits, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Digits over frequencies as digits over the places where decimation in frequency leaves them.

    Place k_1 N/R_1 + k_2 N/(R_1 R_2) + ... holds frequency k_1 + R_1 k_2 + ...
    """
    ends = list(accumulate(chosen, mul))
    found = []
    for extent, stride in _split(digits, ends):
        stage = next(i for i, end in enumerate(ends) if stride < end)
        within = stride // (ends[stage] // chosen[stage])
        found.append((extent, ends[-1] // ends[stage] * within))
    return found


def joined(digits: Iterable[tuple[int, int]]) -> Digits:
    """Digits, the fastest first, with neighbours that are one digit made one."""
    found: list[tuple[int, int]] = []
    for extent, stride in digits:
        if found and found[-1][0] * found[-1][1] == stride:
            found[-1] = (found[-1][0] * extent, found[-1][1])
        else:
            found.append((extent, stride))
    return tuple(found)


def pieces(plan: Plan, chosen: Sequence[int], row: int) -> Pieces:
    """Of a spectrum; ``row``: points of a row of the transform, all of them where a block holds it."""
    return _pieces(plan, chosen, row, spectrum_digits(plan), PIECE)


def sum_pieces(plan: Plan, chosen: Sequence[int], row: int) -> Pieces:
    """Of a sum of spectra."""
    if plan.engine == SIMT:  # places in their order
        places, count = ((row // SUM_PIECE, SUM_PIECE),), plan.transform // row
        return Pieces(places, places, tuple(range(SUM_PIECE)), row, ((count, 2 * row),), ((count, 1),))
    return _pieces(plan, chosen, row, sum_digits(plan), SUM_PIECE)


def _pieces(plan: Plan, chosen: Sequence[int], row: int, stored: Digits, size: int) -> Pieces:
    """Of numbers in the order ``stored`` (the slowest digit first), in pieces of ``size``."""
    steps: dict[int, int] = {}  # from number to number of a stored digit, by its stride
    step = 1
    for extent, stride in reversed(stored):
        if extent > 1:
            steps[stride] = step
        step *= extent
    # Digits (extent, stride over places, stride over numbers), the fastest first: in a row; of its number.
    # In the order of spectra: pieces of neighbouring threads go to other banks, and come from whole sectors.
    inside: list[tuple[int, int, int]] = []
    across: list[tuple[int, int, int]] = []
    for extent, stride in reversed([d for d in spectrum_digits(plan) if d[0] > 1 and d[1] > 1]):
        at = steps[stride]
        for part, place in reversed(transform_places(((extent, stride // 2),), chosen)):
            (inside if place < row else across).append((part, place, at))
            at *= part
    offsets = np.zeros(1, np.int64)
    while len(offsets) < size:
        extent, place, at = inside.pop(0)
        take = gcd(extent, size // len(offsets))
        if at != len(offsets) or take == 1:
            raise InternalError(f"the fastest digits of {plan.name} hold no piece of {size} numbers")
        offsets = (place * np.arange(take)[:, None] + offsets).reshape(-1)
        if extent > take:
            inside.insert(0, (extent // take, place * take, at * take))
    return Pieces(
        at=joined((extent, at) for extent, _, at in inside),
        places=joined((extent, place) for extent, place, _ in inside),
        offsets=tuple(int(x) for x in offsets),
        plane=steps[1],
        rows=joined((extent, at) for extent, _, at in across),
        row_places=joined((extent, place // row) for extent, place, _ in across),
    )

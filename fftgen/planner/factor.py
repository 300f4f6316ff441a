"""Length -> Monarch factorisations: which complex lengths exist, and how each splits into radices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from fftgen.planner.plan import HALF_TILE, TILE

MIN_TRANSFORM = TILE * TILE
MAX_RADIX = 128
MAX_ORDER = 4


@lru_cache(maxsize=4096)
def factorisations(length: int, order: int) -> tuple[tuple[int, ...], ...]:
    """All ordered ways to write ``length`` as ``order`` radices, each a multiple of 16 up to 128."""
    if order == 1:
        return ((length,),) if length % TILE == 0 and TILE <= length <= MAX_RADIX else ()
    return tuple(
        (radix, *rest)
        for radix in range(TILE, MAX_RADIX + 1, TILE)
        if length % radix == 0
        for rest in factorisations(length // radix, order - 1)
    )


def abreast(length: int) -> tuple[int, ...]:
    """The factors with a first radix of half a tile, for two channels abreast; none of other lengths.

    Of 2048 points alone: half of what 4096 points take (16 x 16 x 16). Other lengths have these factors with
    radix 16 for one, or chains of longer radices, which are dearer.
    """
    return (HALF_TILE, TILE, TILE) if length == HALF_TILE * TILE * TILE else ()


def factorable(length: int) -> bool:
    """Whether a complex transform of this length exists at order 2, 3 or 4."""
    return any(factorisations(length, order) for order in range(2, MAX_ORDER + 1))


def transforms(at_least: int, at_most: int) -> Iterator[int]:
    """Transform lengths in a range, ascending. They are products of multiples of 16: multiples of 256."""
    start = -(-max(at_least, MIN_TRANSFORM) // MIN_TRANSFORM) * MIN_TRANSFORM
    return (n for n in range(start, at_most + 1, MIN_TRANSFORM) if factorable(n))

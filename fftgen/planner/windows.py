"""Long signals and short filters: transforms of a window instead of transforms of everything.

A result needs as many steps of the signal as the filter has taps. So a window of M points makes M - overlap
results of its own, overlap being the taps that reach back and ahead (overlap-save), and what one block holds
goes through device memory once, where longer transforms pass a workspace. By the model a causal row of
1 048 576 points with 128 taps takes 0.3 of the time so, with 4096 taps 0.4 (sm_90).

The first window starts with the signal and has its filters as they are. All others begin ``lead`` steps
before their first result, so their filters are moved by that: every tap acts backwards in time, tap j of k at
lead - j, tap j of k_rev at lead + j. What is wanted are then a window's first results (``Args::results``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from fftgen.planner.cost import cost, filter_cost
from fftgen.planner.one_launch import expected
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.targets import target

PIECE = 8  # steps that aligned rows are read and written in
LENGTHS = tuple(1 << n for n in range(10, 16))  # of windows, that some chip's blocks hold
WORTH = 0.9  # of the time of one transform, at most: by the model, which knows neither any better
# The same for a backward pass, which one pass over the whole makes all of: windows take one for the signals'
# gradients, one for that of the output's gate and one for the filter's.
WORTH_BACKWARD = 0.6
LEAST_OF_GRADIENTS = 2048  # points: kernels of a block's warps that share a row take signals of two lengths
HOST_SECONDS = 10e-6  # what the host takes for a call of a few windows: the chip may wait for it


class Windows(NamedTuple):
    """How a signal is cut: transforms of ``length``, the first result of each ``lead`` steps from its start.

    A window makes ``step`` results, the first one, which has nothing before it, ``first``.
    """

    length: int
    lead: int
    step: int
    first: int

    def count(self, steps: int) -> int:
        """Windows of a signal."""
        return 1 + max(0, -(-(steps - self.first) // self.step))


class Cut(NamedTuple):
    """Windows that one call takes: ``number`` of them, ``step`` steps apart, as rows of a batch.

    ``row``: of one row of the batch; None: of all, one window. ``start``: where the first one begins,
    ``steps`` what it holds, ``at`` where its ``results`` go.
    """

    row: int | None
    number: int
    step: int
    start: int
    steps: int
    at: int
    results: int


def of(length: int, ahead: int, back: int) -> Windows | None:
    """Windows of a transform's length for so many taps of k and of k_rev (0: none); None: they do not fit."""
    lead = -(-max(0, ahead - 1) // PIECE) * PIECE
    room = length - max(0, back - 1)  # a result's taps that act backwards in time reach ahead
    first, step = (n // PIECE * PIECE for n in (room, room - lead))
    return Windows(length, lead, step, first) if step > 0 else None


def possible(steps: int, ahead: int, back: int) -> bool:
    """Whether a signal of so many steps may be cut at all."""
    return any(2 * n <= steps and of(n, ahead, back) is not None for n in LENGTHS)


def cuts(found: Windows, batch: int, steps: int) -> Iterator[Cut]:
    """The calls that make all results, as few as there may be; the first one is that of the first window.

    Full windows of a row are rows of a batch; so are the same windows of all rows, where rows are more.
    """
    step = found.step
    yield Cut(None, 1, step, 0, min(found.length, steps), 0, min(found.first, steps))
    reach = found.length - found.lead  # of a window, from its first result on
    full = max(0, (steps - found.first - reach) // step + 1)
    by_row = batch < full
    for row in range(batch if by_row else 0):
        yield Cut(row, full, step, found.first - found.lead, found.length, found.first, step)
    for number in range(full if by_row else 0, found.count(steps) - 1):
        at = found.first + number * step
        start = at - found.lead
        yield Cut(None, 1, step, start, min(found.length, steps - start), at, min(step, steps - at))


def windows(
    plan: Plan,
    shape: tuple[int, int, int],
    ahead: int,
    back: int,
    planned: Callable[[Problem], Plan | None],
    worth: float = WORTH,
    least: int = 0,
) -> Windows | None:
    """The windows that a causal call had better take; None: one transform of everything.

    ``plan``: of the whole; ``shape`` (batch, channels, steps); ``ahead``, ``back``: taps of k and k_rev;
    ``planned``: the plan of a causal problem, if it can be had; ``worth``: of the time of one transform;
    ``least``: points of a window.
    """
    batch, channels, steps = shape
    row, spectrum = seconds(plan)
    shortest, best = worth * channels * (batch * row + spectrum), None
    for length in LENGTHS:
        found = of(length, ahead, back)
        if found is None or length < least or 2 * length > steps or length >= plan.transform:
            continue
        other = planned(Problem("causal", length, plan.problem.dtype))
        if other is None or other.device_stages:
            continue
        row, spectrum = seconds(other)
        calls = sum(1 for _ in cuts(found, batch, steps))
        time = channels * (batch * found.count(steps) * row + 2 * spectrum) + (calls - 1) * HOST_SECONDS
        if time < shortest:
            shortest, best = time, found
    return best


class Shorter(NamedTuple):
    """Windows, and the share of the time of one transform of everything that they are predicted to take."""

    windows: Windows
    share: float


def of_many_rows(plan: Plan, taps: int, planned: Callable[[Problem], Plan | None]) -> Shorter | None:
    """The windows of causal calls with so many rows that neither filters nor calls count."""
    steps = plan.problem.length
    found = windows(plan, (1 << 20, 1, steps), taps, 0, planned) if plan.problem.causal else None
    if found is None:
        return None
    one = planned(Problem("causal", found.length, plan.problem.dtype))
    assert one is not None
    return Shorter(found, found.count(steps) * seconds(one)[0] / seconds(plan)[0])


@lru_cache(maxsize=256)
def seconds(plan: Plan, gated: bool = False) -> tuple[float, float]:
    """Predicted for one row, with both gates where it is ``gated``, and for the spectrum of its filter."""
    chip = target(plan.target)
    row = expected(plan, cost(plan, chip, gated=gated)) / plan.rows_per_item
    return row, filter_cost(plan, chip).predicted

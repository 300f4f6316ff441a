"""Rows of several sections of N points, each of which one block transforms.

A row x of P N points and its filter k, in sections x_q and k_j of N: section p of the result is the sum over
q up to p of x_q k_(p-q), as far as its N points, and of what x_q k_(p-q-1) has beyond them. In the ring of
right-angle transforms, where x^N is i, what is beyond is the imaginary part, and Re(-i z) = Im(z); so with
X_q the transform of x_q

    Y_p = sum_q X_q K_(p-q),   K_0 = T(k_0),   K_j = T(k_j) - i T(k_(j-1)),

and every y_p is the real part of what Y_p is transformed back to: P real transforms there and P back, as for
rows of N, and P (P + 1) / 2 products (a block Toeplitz matrix, without another transform around it). K_j is
the spectrum of a filter with taps k_j and, acting backwards in time, the m-th of them k_(j-1) at N - m, since
-i x^n is x^(n-N).

With a filter that acts backwards as well (FULL), or on a circle of P N steps (CIRCULANT), later sections act
on earlier ones: Y_p = sum_q X_q M_(p-q) over all q, M_d the spectrum of a filter with the taps that act d N
steps later and on, and, acting backwards, those of up to N steps before: 2 P - 1 distances, or P on the
circle. There all products are taken, P^2 of them, when the last transform of a row is made, tile by tile:
what the others come to replaces their transforms, and waits for its way back.

A block keeps the transforms of earlier sections in the L2, 4 bytes a point, where one stage of a Monarch
decomposition more takes the whole of each row through it four times, by kernels that take longer than all
that is counted of them (cost.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from fftgen.planner.plan import CIRCULANT, FULL, LOWER, SCALED, Plan
from fftgen.planner.windows import WORTH, seconds
from fftgen.problem import Problem
from fftgen.targets import Target, target

# Sections. Products grow with their square. What a section throws away, the imaginary part, is as large as
# what it keeps, so that of 32 768 points the noise is 1.2 of what rounding to bf16 costs (1.25 is allowed),
# of six sections as of two. Sums of a gradient have registers for six; where later sections act on earlier
# ones, all transforms of a tile are in registers at once, and factors of all pairs in shared memory.
MOST, MOST_OF_ALL = 6, 5
# Of a section: what blocks hold. Transforms of lengths between them take no less time than the next of these.
LENGTHS = (8192, 12_288, 16_384, 20_480, 24_576, 32_768, 40_960)


Planned = Callable[[Problem], Plan | None]


def possible(problem: Problem) -> bool:
    """Whether there may be sections: a plan tells. Every call asks, and most rows are shorter than any."""
    return LENGTHS[0] < problem.length <= MOST * LENGTHS[-1] and any(_fits(problem, n) for n in LENGTHS)


def _fits(problem: Problem, length: int, back: bool = False) -> bool:
    """Whether sections of so many points may make up rows of a problem."""
    whole = problem.causal or problem.length % length == 0
    most = MOST if problem.causal and not back else MOST_OF_ALL
    return whole and length < problem.length <= most * length


def sectioned(problem: Problem, length: int, planned: Planned, back: bool = False) -> Plan | None:
    """The plan of a problem in sections of so many points; None: there is none.

    ``planned``: the plan of a causal problem, if it can be had. ``back``: with a filter that acts backwards;
    those of a circle do anyway.
    """
    if not _fits(problem, length, back):
        return None
    matrix = CIRCULANT if not problem.causal else FULL if back else LOWER
    plan = planned(Problem("causal", length, problem.dtype))
    if plan is None or target(plan.target).virtual or plan.engine != "mma" or plan.compute_format != SCALED:
        return None
    if plan.memory_class != "block":
        return None
    if plan.transform != length or plan.abreast > 1:
        return None
    return replace(plan, problem=problem, sections=_count(problem, length), matrix=matrix)


def _count(problem: Problem, length: int) -> int:
    return -(-problem.length // length)


def of(problem: Problem, planned: Planned, back: bool = False) -> tuple[Plan, ...]:
    """The plans of a problem in sections: for each number of them that of the shortest there are."""
    found: dict[int, Plan] = {}
    for length in LENGTHS:
        count = _count(problem, length)
        if count not in found:
            plan = sectioned(problem, length, planned, back)
            if plan is not None:
                found[count] = plan
    return tuple(found.values())


def of_many_rows(plan: Plan, others: Sequence[Plan]) -> Plan | None:
    """Of plans in sections the one that had better take many rows of ``plan``'s; None: there is none."""
    best = min(others, key=lambda other: share(plan, other), default=None)
    return best if best is not None and share(plan, best) < WORTH else None


def both_ways(plan: Plan) -> Plan | None:
    """A causal plan in sections with filters that act backwards as well; None: there are too many for it."""
    return replace(plan, matrix=FULL) if _fits(plan.problem, plan.transform, back=True) else None


def share(plan: Plan, other: Plan) -> float:
    """Of the time of ``plan`` what ``other`` is predicted to take, of rows that fill the chip."""
    return seconds(other)[0] / seconds(plan)[0]


class Shorter(NamedTuple):
    """A plan in sections, and the share of the time of one transform of everything that it is to take."""

    plan: Plan
    share: float


def shorter(
    plan: Plan,
    others: Iterable[Plan],
    batch: int,
    channels: int,
    kept: bool = False,
    prepared: bool = False,
    chip: Target | None = None,
) -> Shorter | None:
    """The plan in sections that takes so many rows in least time, by the model; None: ``plan`` takes less.

    A block takes a row, so that few rows leave most of a chip idle: the last turn counts as a whole one.
    ``kept``: a backward pass would read the spectrum of ``plan`` again, and has to make it without.
    ``prepared``: spectra are there; ``chip``: the GPU that is there.
    """
    chip, rows = chip or target(plan.target), batch * channels
    row, whole = seconds(plan)
    one, best = rows * row + (0.0 if prepared else channels * whole), None
    for other in others:
        row, spectrum = seconds(other)
        at_once = chip.multiprocessors * other.body.resident
        spectra = 0.0 if prepared else other.distances * spectrum + (whole if kept else 0.0)
        time = -(-rows // at_once) * at_once * row + channels * spectra
        if time < one * (best.share if best else WORTH):
            best = Shorter(other, time / one)
    return best

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
from itertools import product
from typing import NamedTuple

from fftgen.planner import spread
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

# What sections throw away makes noise 1.41 times that of a transform: in fp16, with columns by butterflies,
# 1.20e-3 to 1.23e-3, where 1.2e-3 are allowed. The first of causal ones has less, and makes up for others.
LOSSY = {20_480: spread.MOST, 24_576: spread.MOST, 40_960: 4}

Planned = Callable[[Problem], Plan | None]


def possible(problem: Problem) -> bool:
    """Whether there may be sections: a plan tells. Every call asks, and most rows are shorter than any."""
    if not LENGTHS[0] < problem.length <= spread.MOST * LENGTHS[-1]:
        return False
    return any(_fits(problem, n, spread_out=True) for n in LENGTHS)


def _fits(problem: Problem, length: int, back: bool = False, spread_out: bool = False) -> bool:
    """Whether sections of so many points may make up rows of a problem."""
    count, lower = _count(problem, length), problem.causal and not back
    if problem.dtype == "fp16" and length in LOSSY and not (lower and count <= LOSSY[length]):
        return False
    most = spread.MOST if spread_out else MOST if lower else MOST_OF_ALL
    return (problem.causal or problem.length % length == 0) and 1 < count <= most


def sectioned(
    problem: Problem, length: int, planned: Planned, back: bool = False, spread_out: bool = False
) -> Plan | None:
    """The plan of a problem in sections of so many points; None: there is none.

    ``planned``: the plan of a causal problem, if it can be had. ``back``: with a filter that acts backwards;
    those of a circle do anyway. ``spread_out``: by clusters (spread.py).
    """
    if not _fits(problem, length, back, spread_out):
        return None
    matrix = CIRCULANT if not problem.causal else FULL if back else LOWER
    plan = planned(Problem("causal", length, problem.dtype))
    if plan is None or target(plan.target).virtual or plan.engine != "mma" or plan.compute_format != SCALED:
        return None
    if plan.memory_class != "block":
        return None
    if plan.transform != length or plan.abreast > 1:
        return None
    count = _count(problem, length)
    return replace(plan, problem=problem, sections=count, matrix=matrix, spread=spread_out)


def _count(problem: Problem, length: int) -> int:
    return -(-problem.length // length)


def of(problem: Problem, planned: Planned, back: bool = False) -> tuple[Plan, ...]:
    """The plans of a problem in sections: for each number of them that of the shortest there are, by blocks
    that take all of a row, then by clusters."""
    found: dict[tuple[bool, int], Plan] = {}
    for spread_out, length in product((False, True), LENGTHS):
        kind = spread_out, _count(problem, length)
        if kind not in found:
            plan = sectioned(problem, length, planned, back, spread_out)
            if plan is not None:
                found[kind] = plan
    return tuple(found.values())


def of_many_rows(plan: Plan, others: Sequence[Plan], gated: bool = False) -> Plan | None:
    """Of plans in sections the one that had better take many rows of ``plan``'s; None: there is none."""
    best = min(others, key=lambda other: share(plan, other, gated), default=None)
    return best if best is not None and share(plan, best, gated) < WORTH else None


def both_ways(plan: Plan) -> Plan | None:
    """A causal plan in sections with filters that act backwards as well; None: too many for it, or noise."""
    return replace(plan, matrix=FULL) if _fits(plan.problem, plan.transform, True, plan.spread) else None


def share(plan: Plan, other: Plan, gated: bool = False) -> float:
    """Of the time of ``plan`` what ``other`` is predicted to take, of rows that fill the chip."""
    return seconds(other, gated)[0] / seconds(plan, gated)[0]


def same_spectra(plan: Plan, other: Plan) -> bool:
    """Whether spectra that kernels of one plan of a problem make are those that the other's read."""
    return (plan.sections, plan.transform) == (other.sections, other.transform)


class Shorter(NamedTuple):
    """A plan in sections, and the share of the time of one transform of everything that it is to take."""

    plan: Plan
    share: float


def shorter(
    plan: Plan,
    others: Iterable[Plan],
    batch: int,
    channels: int,
    kept: Plan | None = None,
    prepared: bool = False,
    gated: bool = False,
    chip: Target | None = None,
) -> Shorter | None:
    """The plan in sections that takes so many rows in least time, by the model, or if that is nearly as good
    the one that many rows take; None: ``plan`` takes less.

    A block takes a row, so that few rows leave most of a chip idle: the last turn counts as a whole one.
    ``kept``: whose spectra a backward pass reads again, and has to make where others were made;
    ``prepared``: spectra are there; ``gated``: both gates are; ``chip``: the GPU that is there.
    """
    chip, rows = chip or target(plan.target), batch * channels

    def spectra(of: Plan) -> float:
        again = 0.0 if kept is None or same_spectra(of, kept) else kept.distances * seconds(kept)[1]
        return 0.0 if prepared else channels * (of.distances * seconds(of)[1] + again)

    one, there = rows * seconds(plan, gated)[0] + spectra(plan), tuple(others)
    shares = {
        other: (_as_many(other, rows, chip) * seconds(other, gated)[0] + spectra(other)) / one
        for other in there
    }
    best = min(there, key=lambda other: shares[other], default=None)
    if best is None or shares[best] >= WORTH:
        return None
    # What many rows take is loaded as a rule, and another takes seconds to load.
    usual = of_many_rows(plan, there)
    if usual is not None and WORTH * shares[usual] <= shares[best] and shares[usual] < WORTH:
        best = usual
    return Shorter(best, shares[best])


def of_any_batch(
    plan: Plan, others: Iterable[Plan], channels: int, batches: Sequence[int], chip: Target
) -> Plan | None:
    """The plan in sections that takes less time than ``plan`` whatever the batch is, of these the least for
    the last one, where spectra are there; None: there is none."""

    def taken(other: Plan, batch: int) -> Shorter | None:
        return shorter(plan, (other,), batch, channels, prepared=True, chip=chip)

    found = (other for other in others if all(taken(other, batch) for batch in batches))
    best = shorter(plan, found, batches[-1], channels, prepared=True, chip=chip)
    return best.plan if best else None


def _as_many(plan: Plan, rows: int, chip: Target) -> float:
    """Rows that a chip with work for all of it takes in the time of so many: the last turn is a whole one."""
    if plan.spread:  # what many rows leave idle is in their time
        return rows * spread.stretch(plan, rows, chip) / spread.stretch(plan, spread.MANY, chip)
    at_once = chip.multiprocessors * plan.body.resident
    return -(-rows // at_once) * at_once

"""All gradients of a causal convolution whose rows have sections (sections.py).

With X_q and V_p the transforms of the sections of x and of the cotangent times its gate, in the ring where
x^N is i, conj(X_q) V_p has negative powers as well: x^-m is -i x^(N-m). So

    out_gate:  Y_p = sum_(q<=p) X_q K_(p-q), as in the convolution
    u:         A_p = sum_(q>=p) V_q conj(K_(q-p)), with the same K_j = T(k_j) - i T(k_(j-1))
    filter:    D_j = sum over rows and q of conj(X_q) (V_(q+j) + i V_(q+j+1))

and all that is wanted are real parts: conj(K_j) = conj T(k_j) + i conj T(k_(j-1)), and Re(i z) = -Im(z) takes
what x^-m became to the section before.

Both signals go the way of the convolution, the cotangent from its last section to its first, by one kernel,
whose blocks take rows of either in turn, and every transform is kept. A second kernel reads all that were
kept of some rows and makes D_j: of few rows at a time, so that they are in the L2. There a sum is added to
once for all rows of a channel that are under way; a block that kept a sum of its own would add to it, 8 bytes
a point, with every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from fftgen.planner import spread
from fftgen.planner.call_cost import gradient_call
from fftgen.planner.cost import filter_cost
from fftgen.planner.filter_design import transposed
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import gradient_cost
from fftgen.planner.layouts import every_layout
from fftgen.planner.plan import LOWER, TILE, Kernel, Plan
from fftgen.planner.windows import WORTH
from fftgen.targets import target

CLOSE = 1.03  # times less time than the layout of the convolution: less is not worth another
SUMS_WARPS = 8
# By sections, whose spectra and sums a thread has in registers (as compiled: 122 and 128 of them, then 255).
RESIDENT = {2: 2, 3: 2, 4: 1, 5: 1, 6: 1}


@lru_cache(maxsize=64)
def in_sections(plan: Plan) -> Gradient:
    """The kernels of all gradients of a plan in sections, whose spectra they read.

    Of its layouts the one that takes least by the model: with two blocks to a multiprocessor more rows are
    under way than the L2 may hold the transforms of. Clusters that share sections (spread.py) have a row of
    both signals at a time, and add to the filter's sums.
    """
    chip = target(plan.target)
    planned = replace(plan, filter=transposed(plan, chip))
    if plan.spread:
        return Gradient(planned, replace(plan.body, role="gradient"), -1, -1, signals=True)
    places = SUMS_WARPS // 2 * plan.sections * 8 * TILE**2
    sums = Kernel("sums", 0, SUMS_WARPS, 0, RESIDENT[plan.sections], 0, 0, 0, -1, 0, places)

    def of(layout: Plan) -> Gradient:
        laid_out = replace(planned, stages=layout.stages, kernels=layout.kernels, tables=layout.tables)
        return Gradient(laid_out, replace(layout.body, role="gradient"), -1, -1, signals=True, sums=sums)

    def seconds(found: Gradient) -> float:
        return gradient_cost(found, chip, gated=True).predicted

    own = of(plan)
    best = min((of(layout) for layout in every_layout(plan, chip)), key=seconds, default=own)
    return best if CLOSE * seconds(best) < seconds(own) else own


def trained(plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """Those of plans in sections of which there are gradients."""
    causal = (p for p in plans if p.matrix == LOWER and p.problem.causal)
    return tuple(p for p in causal if p.spread or p.sections in RESIDENT)


class Prepared(NamedTuple):
    """What spectra are there: of rows in so many sections (1: of the whole) of so many points."""

    sections: int
    points: int


def shorter(
    whole: Gradient,
    plan: Plan,
    others: Iterable[Plan],
    batch: int,
    channels: int,
    gated: bool = True,
    prepared: Prepared | None = None,
    alone: bool = False,
) -> Plan | None:
    """Of plans in sections the one whose gradients take a call's rows in least time, by the model; None:
    ``whole``, the kernels of one transform of everything, takes less, whose spectra are those of ``plan``.

    ``gated``: with both gates; ``prepared``: the spectra that are there; ``alone``: of the filter's gradient
    and no other, which takes none, by ``whole``, the kernels of that.
    """

    chip = target(plan.target)

    def time(found: Gradient, of: Plan) -> float:
        price = gradient_cost(found, chip, gated=gated, alone=alone)
        call = gradient_call(found, chip, price, batch, channels)
        there = alone or prepared == Prepared(of.sections, of.transform)
        spectra = 0.0 if there else of.sections * filter_cost(of, chip).predicted
        return call.time + channels * spectra

    best, least = None, WORTH * time(whole, plan)
    for other in others:
        taken = time(in_sections(other), other)
        if taken < least:
            best, least = other, taken
    return best


def of_many_rows(whole: Gradient, others: Sequence[Plan]) -> Plan | None:
    """Of plans in sections the one whose gradients had better take many rows; None: ``whole`` takes less."""
    best = min(others, key=lambda plan: share(whole, plan), default=None)
    return best if best is not None and share(whole, best) < WORTH else None


def share(whole: Gradient, plan: Plan, gated: bool = True) -> float:
    """Of the time of ``whole`` what gradients of a plan in sections are predicted to take, of many rows."""
    chip = target(plan.target)
    cut, one = (gradient_cost(found, chip, gated=gated) for found in (in_sections(plan), whole))
    idle = spread.stretch(plan, spread.MANY, chip, signals=2) if plan.spread else 1.0
    return cut.expected(idle) / one.predicted

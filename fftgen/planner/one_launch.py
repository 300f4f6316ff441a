"""What a plan is expected to take, and the ways to do all stages of a long transform by one launch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fftgen.planner import mma_rules, spread
from fftgen.planner.cost import Cost, cost, in_one_launch
from fftgen.planner.layouts import is_exact, with_outer_split
from fftgen.planner.plan import Kernel, Plan
from fftgen.planner.whole import MANY, full, held_kernel, share, stretch, whole_kernel
from fftgen.targets import Target
from fftgen.targets import target as find_target

ALONE = 1.1  # times longer than predicted takes a block that has a multiprocessor for itself


def expected(plan: Plan, price: Cost) -> float:
    """Predicted seconds, with those that busiest resources do not hide, weighed by what no model knows.

    Of the one launch of all stages, where there is one: most calls take it.
    Two blocks of 16 384 points on a multiprocessor take 10 % less time than one of twice the warps, which all
    stop at the same barrier (measured on an H200, results/).
    """
    chip = find_target(plan.target)
    ways = one_launches(plan, price, chip)
    if ways:
        return weight(plan, price) * ways[0].seconds
    idle = spread.stretch(plan, spread.MANY, chip) if plan.spread else 1.0
    return weight(plan, price) * price.expected(idle)


def weight(plan: Plan, price: Cost) -> float:
    """Times longer than predicted, for what no model knows."""
    alone = plan.block_stage and resident_warps(plan, price) == plan.body.warps
    return (ALONE if alone else 1.0) * (mma_rules.spilling(plan) if plan.engine == "mma" else 1.0)


class OneLaunch(NamedTuple):
    """A plan with the kernel of all its stages, and the seconds that a transform is expected to take:
    predicted, weighed by what no model knows."""

    plan: Plan
    seconds: float

    def __str__(self) -> str:
        kernel = self.plan.whole
        assert kernel is not None
        part = share(self.plan, kernel)
        place = f"{part} of every row in shared memory" if part else "rows in the L2"
        levels = "two levels" if self.plan.inner[0].two_levels else "one level"
        return (
            f"{place}, {kernel.resident} x {kernel.warps} warps on a multiprocessor, twiddles of rows in "
            f"{levels}: {1e9 * self.seconds:.2f} ns per transform"
        )


def one_launches(plan: Plan, price: Cost, chip: Target) -> tuple[OneLaunch, ...]:
    """The ways to do all of a plan's stages by one launch, the quickest first: rows in the L2, or in part in
    the shared memory of single blocks, where the L1 has little room and twiddles come in two levels. Empty
    where there is none."""
    in_l2 = whole_kernel(plan, chip)
    if in_l2 is None:
        return ()

    def judged(of: Plan, kernel: Kernel) -> OneLaunch:
        found = replace(of, whole=kernel)
        many = full(found, chip)
        idle = stretch(found, many, MANY, chip) if many else 1.0
        seconds = in_one_launch(found, price if of is plan else cost(of, chip), chip).expected(idle)
        return OneLaunch(found, seconds * (ALONE if kernel.resident < in_l2.resident else 1.0))

    ways = [judged(plan, in_l2)]
    held = held_kernel(plan, chip)
    if held is not None:
        stage = plan.inner[0]
        if stage.two_levels or mma_rules.one_level_fits(stage, held, chip):
            ways.append(judged(plan, held))
        elif not is_exact(plan.problem, plan.real_input):
            ways.append(judged(with_outer_split(plan, mma_rules.two_levels(plan.body)), held))
    return tuple(sorted(ways, key=lambda way: way.seconds))


def resident_warps(plan: Plan, price: Cost) -> int:
    """Warps of the inner stages on a multiprocessor."""
    return next(k.resident for k in price.kernels if k.name == plan.body.label)

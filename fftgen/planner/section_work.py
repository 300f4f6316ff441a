"""What the kernel of rows in sections (sections.py) does for one of them, as work.py has it."""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner import spread
from fftgen.planner.plan import LOWER, Kernel, Plan
from fftgen.planner.work import ELEMENT, Work, kernel_work
from fftgen.problem import Problem
from fftgen.targets import Target

# Instructions of a warp for 128 complex elements (as compiled): of each section beside its transform, which
# is kept, joined and looked for; of each product of one with the spectrum of another distance.
SECTION, SECTION_PRODUCT = 17, 16
# The same where sections are spread; and of a block's warp in every row, around its transforms and products.
SPREAD, SPREAD_PRODUCT, SPREAD_ROW = 23, 15.6, 575
LANES = 32


def in_sections(plan: Plan, kernel: Kernel, target: Target, gated: bool) -> Work:
    """What the kernel does for all sections of a row: what it does for one, so many times, and for products
    with transforms of others, which are kept."""
    one, count = kernel_work(alone(plan), kernel, target, gated), plan.sections
    products, spectrum = products_of(plan), ELEMENT * plan.transform
    if plan.spread:  # every transform goes there and back twice, and every spectrum is read once
        loaded = stored = 2 * count
        read, under_way = plan.distances, spread.under_way(plan, target)
        around = SPREAD_ROW * kernel.warps * spread.many(plan, target).size
        instructions = SPREAD * count + SPREAD_PRODUCT * products + around * 128 / plan.transform
        keeping = factor_bytes(plan, spread.packs(plan)) + (read - count) * spectrum
    else:
        if plan.matrix == LOWER:  # every product takes an earlier transform anew
            loaded, stored = products, count - 1
        else:  # all are taken with the last transform, and what they come to replaces what was kept
            loaded = stored = 2 * (count - 1)
        read = count + products
        under_way = target.multiprocessors * kernel.resident * (count - 1) * spectrum
        instructions = SECTION * count + SECTION_PRODUCT * products
        keeping = products * spectrum
    outside = (loaded + stored) * spectrum if under_way > spread.ROOM * target.l2_bytes else 0
    return replace(
        one,
        tensor_ops=count * one.tensor_ops,
        loaded=count * one.loaded,
        stored=count * one.stored,
        gates=count * one.gates,
        device_bytes=count * one.device_bytes + outside,
        workspace_loaded=loaded * spectrum,
        workspace_stored=stored * spectrum,
        spectrum=read * spectrum,
        tables=count * one.tables,
        shared_bytes=count * one.shared_bytes + keeping,
        instructions=count * one.instructions + plan.transform / 128 * instructions,
    )


def products_of(plan: Plan) -> int:
    """Products of a section with the spectrum of a distance that a row takes: where sections are spread all
    of them, else without those of sections with their own."""
    count = plan.sections
    others = count * (count - 1) // (2 if plan.matrix == LOWER else 1)
    return others + count if plan.spread else others


def factor_bytes(plan: Plan, packs: int) -> int:
    """Bytes that lanes load of what products are multiplied by where sections are spread, in pieces of 16.

    For every ``packs`` words of a lane.
    """
    count = plan.sections
    terms = range(1, count + 1) if plan.matrix == LOWER else [count] * count
    loaded = sum(n // 4 * 16 + (0, 4, 8, 16)[n % 4] for n in terms)
    return plan.transform // (2 * LANES * packs) * loaded * LANES


def alone(plan: Plan) -> Plan:
    """The plan of one of a row's sections by itself."""
    problem = Problem("causal", plan.transform, plan.problem.dtype)
    return replace(plan, sections=1, spread=False, matrix=LOWER, problem=problem)

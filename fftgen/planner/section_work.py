"""What the kernel of rows in sections (sections.py) does for one of them, as work.py has it."""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner.plan import LOWER, Kernel, Plan
from fftgen.planner.work import ELEMENT, Work, kernel_work
from fftgen.problem import Problem
from fftgen.targets import Target

# Instructions of a warp for 128 complex elements (as compiled): of each section beside its transform, which
# is kept, joined and looked for; of each product of one with the spectrum of another distance.
SECTION, SECTION_PRODUCT = 17, 16
SECTIONS_ROOM = 0.7  # of the L2: what is read of more was measured to miss (targets.py)


def in_sections(plan: Plan, kernel: Kernel, target: Target, gated: bool) -> Work:
    """What one does for all sections of a row: what it does for one, so many times, and for products with
    transforms of earlier ones, which are kept."""
    one, count = kernel_work(alone(plan), kernel, target, gated), plan.sections
    products, spectrum = count * (count - 1), ELEMENT * plan.transform  # with other sections
    kept = target.multiprocessors * kernel.resident * (count - 1) * spectrum
    if plan.matrix == LOWER:  # every product takes an earlier transform anew
        products //= 2
        loaded, stored = products, count - 1
    else:  # all are taken with the last transform, and what they come to replaces what was kept
        loaded = stored = 2 * (count - 1)
    outside = (loaded + stored) * spectrum if kept > SECTIONS_ROOM * target.l2_bytes else 0
    return replace(
        one,
        tensor_ops=count * one.tensor_ops,
        loaded=count * one.loaded,
        stored=count * one.stored,
        gates=count * one.gates,
        device_bytes=count * one.device_bytes + outside,
        workspace_loaded=loaded * spectrum,
        workspace_stored=stored * spectrum,
        spectrum=count * one.spectrum + products * spectrum,
        tables=count * one.tables,
        shared_bytes=count * one.shared_bytes + products * spectrum,
        instructions=count * one.instructions
        + plan.transform / 128 * (SECTION * count + SECTION_PRODUCT * products),
    )


def alone(plan: Plan) -> Plan:
    """The plan of one of a row's sections by itself."""
    problem = Problem("causal", plan.transform, plan.problem.dtype)
    return replace(plan, sections=1, matrix=LOWER, problem=problem)

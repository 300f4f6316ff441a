"""What the kernels of gradients in sections do for one row of u and its row of the cotangent.

As gradient_work.py has it: of full length, operations and bytes as the simulator counts them, instructions an
estimate.
"""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner import section_work, spread, work
from fftgen.planner.cost import work_of
from fftgen.planner.gradient_plan import FORWARD, Gradient
from fftgen.planner.instructions import THERE, gating
from fftgen.planner.plan import Plan
from fftgen.planner.section_work import LANES
from fftgen.planner.work import ELEMENT, Work
from fftgen.targets import Target

# Instructions of a warp for 128 complex elements, of sections or of products of two (as compiled, sm_80 and
# sm_90): a second result of the cotangent's; spectra loaded and widened; two that meet, in fp32.
SECOND_RESULT, LOADED, MEETING = 12.0, 24.3, 23.3
# Where clusters share sections, of each: widened, added to sums in device memory; of two that meet.
SPREAD_SUMS, SPREAD_MEETING = 61.5, 21.5
SUMS_AT_ONCE = 8  # words of a lane's sums: templates/device/spread_sums.cuh
SUM = 8  # bytes of a complex number of them


def both_work(found: Gradient, target: Target, gated: bool = False, alone: bool = False) -> Work:
    """What the kernel of both signals does. ``gated``: with both gates, whose gradients are made as well.

    ``alone``: of the filter's gradient, and no other.
    """
    plan, body = found.plan, found.plan.body
    x = v = _there(plan, target, gated)
    row, rows = x.loaded, 2 + (2 if gated else 0)
    if not alone:
        v = work_of(replace(plan, outputs=2 if gated else 1), body, target, gated)
        x = work_of(plan, body, target, True) if gated else x
        rows += 3 if gated else 1
    made = {name: getattr(x, name) + getattr(v, name) for name in vars(v)}
    # Every transform is kept, and gates that are signals are in the L2 since.
    made["workspace_stored"] = _kept(plan)
    outside = _kept(plan) + made["workspace_loaded"] if _spills(found, target) else 0
    made["device_bytes"] = rows * row + outside
    made["instructions"] += SECOND_RESULT * (gated and not alone) * plan.points / 128
    return Work(**made)


def spread_work(found: Gradient, target: Target, gated: bool = False, alone: bool = False) -> Work:
    """The same where clusters share the sections of both, with what a row adds to the sums."""
    plan, body, count = found.plan, found.plan.body, found.plan.sections
    x = v = _there(plan, target, gated)
    row, rows, back = x.loaded, 2 + (2 if gated else 0), 0
    if not alone:
        v = work_of(replace(plan, outputs=2 if gated else 1), body, target, gated)
        x = work_of(plan, body, target, True) if gated else x
        rows, back = rows + (3 if gated else 1), 1 + gated
    made = {name: getattr(x, name) + getattr(v, name) for name in vars(v)}
    section, sums = ELEMENT * plan.transform, SUM * plan.points
    packs = spread.gradient_packs(plan)
    # Of so many sums at a time, and how many sections of the first signal each turn reads.
    turns = range(count, 0, -(SUMS_AT_ONCE // packs))
    factors = section_work.factor_bytes(plan, packs) * back
    meeting = plan.transform // (2 * LANES * packs) * (count + sum(turns)) * 4 * LANES
    made["shared_bytes"] += factors + meeting - back * section_work.factor_bytes(plan, spread.packs(plan))
    made["workspace_stored"] += section * count * (2 - back)
    if spread.held(plan):  # what products have not read
        made["workspace_loaded"] += section * count * (2 - back)
        read = min(back, 1) * section * count
        made["shared_bytes"] += read - made["spectrum"]
        made["spectrum"] = read
    else:  # the second signal once more, the first for so many sums at a time
        made["workspace_loaded"] += section * (count + sum(turns))
    spills = spread.under_way(plan, target, 2) > spread.ROOM * target.l2_bytes
    outside = made["workspace_loaded"] + made["workspace_stored"] if spills else 0
    made["workspace_loaded"] += sums
    made["workspace_stored"] += sums
    made["device_bytes"] = rows * row + outside + 2 * sums
    each = SPREAD_SUMS * count + SPREAD_MEETING * count * (count + 1) / 2
    made["instructions"] += plan.transform / 128 * each
    made["instructions"] += SECOND_RESULT * (gated and not alone) * plan.points / 128
    return Work(**made)


def sums_work(found: Gradient, target: Target) -> Work:
    """What the kernel of the sums does, to which one row of a channel adds: not what it does once for all."""
    plan = found.plan
    count = plan.sections
    each = LOADED * count + MEETING * count * (count + 1) / 2
    return Work(
        workspace_loaded=_kept(plan),
        device_bytes=_kept(plan) if _spills(found, target) else 0,
        instructions=plan.transform / 128 * each,
    )


def rows_at_once(found: Gradient, chip: Target) -> int:
    """Rows that go through the workspace together: as many as the chip takes of both signals at a time, or
    some times that, as far as their spectra stay in the L2."""
    turn = max(1, chip.multiprocessors * found.kernel.resident // 2)
    return turn * max(1, int(spread.ROOM * chip.l2_bytes / (turn * _kept(found.plan))))


def _kept(plan: Plan) -> int:
    """Bytes of the spectra of both signals of a row."""
    return 2 * ELEMENT * plan.points


def _spills(found: Gradient, chip: Target) -> bool:
    """Whether the spectra of what goes together do not stay in the L2."""
    return rows_at_once(found, chip) * _kept(found.plan) > spread.ROOM * chip.l2_bytes


def _there(plan: Plan, target: Target, gated: bool) -> Work:
    """What is done for a row whose spectra alone are wanted."""
    body, n, count = plan.body, plan.transform, plan.sections
    whole = work_of(plan, body, target)
    alone = section_work.alone(plan)
    sizes = {t.name: t.nbytes for t in plan.tables}
    ahead = sum(sizes[name] for name in FORWARD)
    rows = n // (plan.factors[-1] * plan.factors[-2])
    shared = ahead * rows // body.group + 2 * ELEMENT * n + int(work.outer_twiddles(plan, False) * n)
    shared += work.column_matrices(plan, body, False)
    return Work(
        tensor_ops=count * work.tensor_ops(alone, body, (THERE,)),
        loaded=whole.loaded,
        gates=whole.loaded if gated else 0,
        tables=whole.tables // 2,
        shared_bytes=count * shared,
        instructions=(whole.instructions - _products(plan)) / 2 + gating(alone, gated * whole.loaded),
    )


def _products(plan: Plan) -> float:
    """Instructions of a row's products with the spectra of other distances."""
    each = section_work.SPREAD_PRODUCT if plan.spread else section_work.SECTION_PRODUCT
    return plan.transform / 128 * each * section_work.products_of(plan)

"""Two gradients by one transform: a convolution's kernels that store every result twice, each with its gate.

du = in_gate * a and d in_gate = u * a for the same a, the adjoint applied to out_gate * v (design 1.5). The
kernels are the plan's own but for their last step, so a spectrum made for the plan serves them, and they
have no filter kernels of their own.
"""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner import mma_kernels, simt
from fftgen.planner.filter import Filter
from fftgen.planner.plan import SIMT, Kernel, Plan
from fftgen.planner.whole import brought_in_place
from fftgen.targets import target as find_target

LONG_COLUMNS = 128  # of the device stage: two results take the registers of 12 warps, not of 16
MOST_WARPS = 16  # resident, of the other columns of the device stage
# Up to so many points in a warp two results take the registers of so many warps: of one row, of a pair.
WARPS = ((512, (20, 20)), (1024, (16, 12)), (2048, (12, 8)))
# Above, pairs find no registers for the addresses of four results, nor do those of two channels for eight (as
# compiled).
LATE_POINTS = 16_384


def twin(plan: Plan) -> Plan | None:
    """The plan with two outputs; None on the engine "wmma", whose callers convolve twice."""
    if plan.engine == SIMT:
        return simt.twin(plan, find_target(plan.target))
    if plan.engine != "mma":
        return None
    kernels = tuple(roomy(plan, k) for k in plan.kernels)
    both = replace(plan, outputs=2, filter=Filter(), kernels=kernels)
    return replace(both, whole=brought_in_place(both, plan.whole) if plan.whole else None)


def roomy(plan: Plan, kernel: Kernel) -> Kernel:
    """A kernel with as many registers as its two results need (as compiled)."""
    if kernel.role == "columns_inverse":
        few = replace(kernel, resident=min(kernel.resident, MOST_WARPS // kernel.warps))
        if plan.factors[0] >= LONG_COLUMNS:
            few = replace(kernel, warps=4, items=4, resident=3)
        chip = find_target(plan.target)
        return mma_kernels.with_gates(few, plan.factors[0], plan.rows_per_item, chip, outputs=2)
    if plan.memory_class == "warp":
        most = next(warps[plan.rows_per_item - 1] for points, warps in WARPS if plan.transform <= points)
        many = kernel.resident * kernel.warps > most
        return _laid_out(plan, kernel, *((4, most // 4) if many else (kernel.warps, kernel.resident)))
    return kernel


def _laid_out(plan: Plan, kernel: Kernel, warps: int, resident: int) -> Kernel:
    """A warp's kernel with so many warps, and room for the gates of both results."""
    bare = mma_kernels.without_brought(kernel, plan)
    scales_at = bare.staging_at // bare.warps * warps if bare.staging_at > 0 else -1
    tables_at = bare.matrices_at // bare.warps * warps
    shared = bare.shared_bytes - bare.matrices_at + tables_at
    bare = replace(
        bare,
        warps=warps,
        items=warps * bare.group,
        resident=resident,
        staging_at=scales_at,
        matrices_at=tables_at,
        shared_bytes=shared,
    )
    return mma_kernels.with_brought(bare, plan.rows_per_item, find_target(plan.target), outputs=2)


def prefix(plan: Plan) -> str:
    """Which of the sinks in templates/device/sinks.cuh a plan's results go to, by the start of its name."""
    if plan.outputs == 1:
        return ""
    late = plan.rows_per_item == 2 and (plan.row_length > LATE_POINTS or plan.abreast > 1)
    return "late_twin_" if late and not plan.device_stages else "twin_"

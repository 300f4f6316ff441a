"""Two gradients by one transform: a convolution's kernels that store every result twice, each with its gate.

du = in_gate * a and d in_gate = u * a for the same a, the adjoint applied to out_gate * v (design 1.5). The
kernels are the plan's own but for their last step, so a spectrum made for the plan serves them, and they
have no filter kernels of their own.
"""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner import fragments
from fftgen.planner.filter import Filter
from fftgen.planner.plan import Kernel, Plan

LONG_COLUMNS = 128  # of the device stage: two results take the registers of 12 warps, not of 16
LATE_POINTS = 16_384  # above, pairs find no registers for the addresses of four results (as compiled)


def twin(plan: Plan) -> Plan | None:
    """The plan with two outputs; None on the engine "wmma", whose callers convolve twice."""
    if plan.engine != "mma":
        return None
    return replace(plan, outputs=2, filter=Filter(), kernels=tuple(_roomy(plan, k) for k in plan.kernels))


def _roomy(plan: Plan, kernel: Kernel) -> Kernel:
    """A kernel with as many registers as its two results need."""
    if kernel.role != "columns_inverse" or plan.factors[0] < LONG_COLUMNS:
        return kernel
    return replace(kernel, warps=4, items=4, resident=3)


def prefix(plan: Plan) -> str:
    """Which of the sinks in templates/device/signal.cuh a plan's results go to, by the start of its name."""
    if plan.outputs == 1:
        return ""
    late = fragments.once(plan) or (plan.rows_per_item == 2 and plan.row_length > LATE_POINTS)
    return "late_twin_" if late and not plan.device_stages else "twin_"

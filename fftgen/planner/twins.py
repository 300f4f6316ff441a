"""Two gradients by one transform: a convolution's kernels that store every result twice, each with its gate.

du = in_gate * a and d in_gate = u * a for the same a, the adjoint applied to out_gate * v (design 1.5). The
kernels are the plan's own but for their last step, so a spectrum made for the plan serves them, and they
have no filter kernels of their own.
"""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner.filter import Filter
from fftgen.planner.plan import Plan

LATE_POINTS = (
    16_384  # pairs of longer rows leave no registers for the addresses of four results (as compiled)
)


def twin(plan: Plan) -> Plan | None:
    """The plan with two outputs; None on the engine "wmma", whose callers convolve twice."""
    return replace(plan, outputs=2, filter=Filter()) if plan.engine == "mma" else None


def prefix(plan: Plan) -> str:
    """Which of the sinks in templates/device/signal.cuh a plan's results go to, by the start of its name."""
    if plan.outputs == 1:
        return ""
    late = plan.rows_per_item == 2 and plan.block_stage and plan.row_length > LATE_POINTS
    return "late_twin_" if late and not plan.device_stages else "twin_"

"""What a whole call costs: launches one after another, each in waves of blocks, the last partly filled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fftgen.planner.cost import Cost, KernelCost
from fftgen.planner.launch import launches
from fftgen.planner.plan import Plan
from fftgen.targets import Target

# From the end of a kernel to the start of the next in a stream. An assumption: nobody has measured it here.
LAUNCH_SECONDS = 3e-6
CHIP_WIDE = ("device memory", "L2")  # shared by all multiprocessors: a few busy ones can use them up


@dataclass(frozen=True)
class CallCost:
    """A call on (batch, channels, length), ungated, the spectrum prepared: seconds are predictions.

    ``last_wave``: seconds of all that the last, partly filled waves cost beyond their share of work.
    """

    batch: int
    channels: int
    launches: int
    fixed: float
    last_wave: float
    time: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def call_cost(plan: Plan, target: Target, price: Cost, batch: int, channels: int) -> CallCost:
    """``price`` is the plan's cost of one transform, as planned or as compiled."""
    costs = {k.name: k for k in price.kernels}
    made = launches(plan, batch, channels, min(plan.problem.length, plan.transform))
    total = even = 0.0
    for launch in made:
        kernel = costs[launch.kernel.label]
        even += launch.items * kernel.time
        total += launch.items * _time(kernel, waves(launch.grid, kernel, launch.kernel.warps, target))
    fixed = len(made) * LAUNCH_SECONDS
    return CallCost(batch, channels, len(made), fixed, total - even, total + fixed)


def waves(grid: int, kernel: KernelCost, warps: int, target: Target) -> float:
    """Fillings of the chip that a grid makes: 1.5 are two waves, the last one half full."""
    return grid / (target.multiprocessors * max(1, kernel.resident // warps))


def _time(kernel: KernelCost, filled: float) -> float:
    """Seconds for one transform when the last wave takes as long as a full one.

    What multiprocessors do by themselves waits for the last wave; of chip-wide resources it takes its share.
    """
    stretch = -(-filled // 1) / filled
    return max(s * (1 if name in CHIP_WIDE else stretch) for name, s in kernel.seconds.items())

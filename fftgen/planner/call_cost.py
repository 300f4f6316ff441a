"""What a whole call costs: launches one after another, each in waves of blocks, the last partly filled.

A kernel is not done when its busiest resource is: what the others do is hidden behind that in part. How
far, what a launch costs beside its work, and what a call does beside its launches, was fitted to 54 rows
that were measured on an H200 (results/): a call of each length, gated and not, with its filter's kernels,
and gated calls of long transforms in chunks of 12 to 60 MB, which tell launches from all else. The four
figures (two below, two of kernels in cost.py) give those with a root mean square of 9 %, the worst (2048
points) 27 % too long (test_cost_fit.py). Kernels around the inner stages hide nothing of one resource behind
another, and take longer than all of them. Those whose strips have 16 columns take the L2 twice as long for
their bytes as for wider pieces (work.py: ``narrow``): without that calls of 4 194 304 points come out 11 and
14 % too short, of 2 097 152 7 %, with it 0 to 4. The rows do not tell the rates themselves: with the clock
that was seen there (1.75 GHz) or the rate of the L2 left open a fit comes to the same, so those of targets.py
stay as documents have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fftgen.planner import gradient_launch, spread
from fftgen.planner.cost import Cost, KernelCost, in_one_launch
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import SIDES
from fftgen.planner.launch import Launch, items_per_channel, launches, together
from fftgen.planner.plan import Plan
from fftgen.planner.whole import stretch
from fftgen.targets import Target

CALL_SECONDS = 17.1e-6  # beside its launches: until the first kernel runs, and after the last
LAUNCH_SECONDS = 1.28e-6  # what the chip idles between a kernel and the next


@dataclass(frozen=True)
class CallCost:
    """A call on (batch, channels, length), the spectrum prepared: seconds are predictions.

    ``fixed``: beside the work of kernels; ``last_wave``: what the last, partly filled waves cost beyond their
    share of work; ``showing``: what the busiest resource of each kernel does not hide.
    """

    batch: int
    channels: int
    launches: int
    fixed: float
    last_wave: float
    showing: float
    time: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def call_cost(plan: Plan, target: Target, price: Cost, batch: int, channels: int) -> CallCost:
    """``price`` is the plan's cost of one transform, as planned or as compiled, with gates or without.

    Where one launch carries out all stages, it takes what theirs take, without their launches and waves;
    what different stages of different transforms hide of each other is not in it.
    """
    whole, items = together(plan, batch, channels), items_per_channel(plan, batch) * channels
    if whole is not None and plan.whole is not None:
        stages = in_one_launch(plan, price, target).kernels
        return _clustered(stages, (batch, channels), items, stretch(plan, whole, items, target))
    if plan.spread:
        return _clustered(price.kernels, (batch, channels), items, spread.stretch(plan, items, target))
    costs = {k.name: k for k in price.kernels}
    made = launches(plan, batch, channels, min(plan.problem.length, plan.points))
    return _call(
        [(launch, costs[launch.kernel.label]) for launch in made], target, batch, channels, plan.abreast
    )


def gradient_call(found: Gradient, target: Target, price: Cost, batch: int, channels: int) -> CallCost:
    """The same for a gradient. The way from its sums to taps is not in it."""
    if found.plan.spread:
        taken = gradient_launch.stretch(found, batch, channels, target)
        return _clustered(price.kernels, (batch, channels), batch * channels, taken)
    costs = {k.name: k for k in price.kernels}
    length = min(found.plan.problem.length, found.plan.transform)
    made = [
        (each.launch, costs.get(f"{each.launch.kernel.label} {SIDES[each.side]}"))
        if each.side >= 0
        else (each.launch, costs["sums" if each.launch.kernel == found.sums else found.label])
        for each in gradient_launch.launches(found, batch, channels, length)
    ]
    pairs = [(launch, kernel) for launch, kernel in made if kernel]
    return _call(pairs, target, batch, channels, found.plan.abreast)


def _call(
    made: Sequence[tuple[Launch, KernelCost]], target: Target, batch: int, channels: int, abreast: int
) -> CallCost:
    """``abreast``: transforms of an item."""
    total = even = showing = 0.0
    for launch, kernel in made:
        items = abreast * launch.items
        even += items * kernel.time
        showing += items * kernel.showing
        total += items * _time(kernel, waves(launch.grid, kernel, launch.kernel.warps, target))
    fixed = CALL_SECONDS + len(made) * LAUNCH_SECONDS
    return CallCost(batch, channels, len(made), fixed, total - even, showing, total + showing + fixed)


def _clustered(stages: Sequence[KernelCost], shape: tuple[int, int], items: int, stretch: float) -> CallCost:
    """One launch of clusters that take stage after stage of an item, a transform or a row, and draw the next.

    ``stretch``: times longer than if all of the chip had as much to do.
    """
    total = items * sum(k.stretched(stretch) for k in stages)
    showing = items * sum(k.showing for k in stages)
    last = total - items * sum(k.time for k in stages)
    fixed = CALL_SECONDS + LAUNCH_SECONDS
    return CallCost(*shape, 1, fixed, last, showing, total + showing + fixed)


def waves(grid: int, kernel: KernelCost, warps: int, target: Target) -> float:
    """Fillings of the chip that a grid makes: 1.5 are two waves, the last one half full."""
    return grid / (target.multiprocessors * max(1, kernel.resident // warps))


def _time(kernel: KernelCost, filled: float) -> float:
    """Seconds for one transform when the last wave takes as long as a full one.

    What multiprocessors do by themselves waits for the last wave; of chip-wide resources it takes its share.
    """
    return kernel.stretched(-(-filled // 1) / filled)

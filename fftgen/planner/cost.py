"""What a plan costs: exact counts of work, and the time a target needs for them.

Counts are per transform (one batch row in right-angle mode, two rows in batch-pair mode) at full length,
without gates. The time is the largest of work / rate over the resources (design 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from fftgen.planner.plan import TILE, Plan
from fftgen.targets import Target

STAGING_TRAFFIC = 16  # bytes per complex element: two fp32 written, two read back
OPERAND_TRAFFIC = 8  # two 16-bit numbers written, two read
INSTRUCTIONS_PER_ELEMENT = 1.1  # per complex element and stage and direction, wmma engine, per lane
LAUNCH_SECONDS = 3e-6


@dataclass(frozen=True)
class Cost:
    """Work of one transform and the seconds that its resources need on a full chip."""

    tensor_ops: int  # 16x16x16 matrix instructions
    device_bytes: int  # read and written in device memory, the least possible
    workspace_bytes: int  # read and written in the workspace (L2 as a rule)
    shared_bytes: int
    seconds: dict[str, float]

    @property
    def time(self) -> float:
        return max(self.seconds.values())

    @property
    def bound(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])


def tensor_ops(plan: Plan) -> int:
    """16x16x16 matrix instructions of a transform of full length: exact.

    Every stage multiplies N/256 output tiles by radix/16 operand tiles, with four real products per
    complex one, forward and inverse; the first stage reads and the last writes real numbers in
    right-angle mode (two products), unless a circular fold needs the imaginary parts of the output.
    """
    tiles = plan.transform // (TILE * TILE)
    total = 0
    for number, stage in enumerate(plan.stages, 1):
        forward = 2 if plan.real_input and number == 1 else 4
        inverse = 2 if plan.real_input and number == 1 and not plan.fold else 4
        total += tiles * (stage.radix // TILE) * (forward + inverse)
    return total


def device_bytes(plan: Plan) -> int:
    """Bytes of signals that one transform must read and write at full length, ungated: exact."""
    return 4 * plan.rows_per_item * min(plan.problem.length, plan.transform)


def workspace_bytes(plan: Plan) -> int:
    """Bytes that device stages write and read in the workspace: exact at full length."""
    n = plan.transform
    device = len(plan.device_stages)
    if not device:
        return 0
    # Every device stage but the first reads and writes in each direction, the rows once, the first
    # stage writes on the way in and reads on the way out; the fold adds one more write and read.
    passes = 2 * (2 * (device - 1)) + 2 + 2
    fold = 4 * (n + plan.fold) if plan.fold else 0  # all of it is written, two numbers a step are read
    return passes * 4 * n + fold


def occupancy(plan: Plan, target: Target) -> float:
    """Warps resident per multiprocessor in the worst kernel, as far as shared memory and slots decide."""
    worst = float(target.warps_sm)
    for kernel in plan.kernels:
        shared = kernel.shared_bytes + target.shared_reserved
        blocks = min(target.shared_sm // shared if shared else target.blocks_sm, target.blocks_sm)
        worst = min(worst, blocks * kernel.warps)
    return worst


def cost(plan: Plan, target: Target) -> Cost:
    """Counts and seconds of one transform when the chip is full."""
    n = plan.transform
    ops = tensor_ops(plan)
    device = device_bytes(plan)
    workspace = workspace_bytes(plan)
    passes = 2 * plan.order
    if plan.engine == "mma":
        return _mma_cost(plan, target, ops, device)
    shared = passes * n * (STAGING_TRAFFIC + OPERAND_TRAFFIC)
    sms, clock = target.multiprocessors, target.clock
    # A matrix unit reaches its rate only when enough warps hide the latency of what feeds it.
    fill = min(1.0, occupancy(plan, target) / 16)
    instructions = passes * n * INSTRUCTIONS_PER_ELEMENT + 12 * ops
    seconds = {
        "device memory": device / target.bandwidth,
        "L2": (device + workspace) / target.l2_bandwidth,
        "shared memory": shared / (128 * sms * clock) / fill,
        "tensor cores": 2 * TILE**3 * ops / target.tensor_rate / fill,
        "issue slots": instructions / (4 * sms * clock) / fill,
    }
    return Cost(ops, device, workspace, shared, seconds)


def _mma_cost(plan: Plan, target: Target, ops: int, device: int) -> Cost:
    """The register chain: what crosses shared memory is the exchange and the tables."""
    pieces = plan.transform / 128  # of 128 complex elements, one matrix result of a warp
    kernel = plan.body
    exchange = 2 * 8 * plan.transform if plan.block_stage else 4 * plan.transform * plan.rows_per_item
    tables = sum(t.nbytes for t in plan.tables if not t.name.startswith("outer"))
    reads = tables * max(1.0, plan.transform / (plan.factors[-1] * plan.factors[-2])) / kernel.group
    shared = exchange + reads
    twists = 2 * plan.order - 1
    instructions = 2 * ops + pieces * (8 * twists + 30 * plan.rows_per_item + 20)
    fill = min(1.0, occupancy(plan, target) / 16)
    chip = target.multiprocessors * target.clock
    seconds = {
        "device memory": device / target.bandwidth,
        "shared memory": shared / (128 * chip) / fill,
        "tensor cores": 2 * TILE**3 * ops / target.tensor_rate / fill,
        "instructions": instructions / (4 * chip) / fill,
    }
    return Cost(ops, device, 0, int(shared), seconds)

"""What a plan costs: exact counts of work, and the time a target needs for them.

Counts are per transform (one batch row in right-angle mode, two rows in batch-pair mode) at full length,
without gates. The time is the largest of work / rate over the resources (design 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from fftgen.planner import fragments
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
    right-angle mode (two products).
    """
    tiles = plan.transform // (TILE * TILE)
    total = 0
    for number, stage in enumerate(plan.stages, 1):
        products = 2 if plan.real_input and number == 1 else 4
        total += tiles * (stage.radix // TILE) * 2 * products
    return total


def matrix_operations(plan: Plan) -> int:
    """Matrix instructions of one transform as the engine issues them: exact.

    "wmma": 16x16x16; "mma": m16n8k16, two to one of those.
    """
    return tensor_ops(plan) * (2 if plan.engine == "mma" else 1)


def device_bytes(plan: Plan) -> int:
    """Bytes of signals that one transform must read and write at full length, ungated: exact."""
    return 4 * plan.rows_per_item * min(plan.problem.length, plan.transform)


def workspace_bytes(plan: Plan) -> int:
    """Bytes that device stages write and read in the workspace: exact at full length."""
    device = len(plan.device_stages)
    if not device:
        return 0
    # Every device stage but the first reads and writes in each direction, the rows once, the first
    # stage writes on the way in and reads on the way out.
    passes = 2 * (2 * (device - 1)) + 2 + 2
    return passes * 4 * plan.transform


def occupancy(plan: Plan, target: Target) -> float:
    """Warps resident per multiprocessor in the worst kernel: by shared memory, slots and the plan."""
    worst = float(target.warps_sm)
    for kernel in plan.kernels:
        shared = kernel.shared_bytes + target.shared_reserved
        by_shared = target.shared_sm // shared if shared else target.blocks_sm
        blocks = min(by_shared, target.blocks_sm, kernel.resident)
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
        return _mma_cost(plan, target, ops, device, workspace)
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


def mma_shared_bytes(plan: Plan) -> int:
    """Bytes of one transform through the shared-memory and L1 pipes: exchanges, tables, spectrum, twiddles.

    An exchange writes and reads 4 bytes a complex element; a table of the register chain is read once for
    each group of rows that a warp takes at a time, one of columns once for each strip.
    """
    n, body = plan.transform, plan.body
    sizes = {t.name: t.nbytes for t in plan.tables}
    chain = sum(sizes[name] for name in sizes.keys() & fragments.CHAIN)
    rows = n // (plan.factors[-1] * plan.factors[-2])
    total = 4 * n + chain * rows // body.group  # the spectrum, and what the chain reads
    if plan.block_stage:
        transforms = n // plan.row_length
        columns = plan.row_length // plan.inner[0].radix
        total += 16 * n + 8 * n  # two exchanges, outer twiddles there and back
        total += (
            transforms * columns * (sizes["columns"] // (8 * body.columns) + sizes["columns_inverse"] // 32)
        )
    else:
        total += 2 * 2 * n * (1 if plan.real_input and not plan.device_stages else 2)
    if plan.device_stages:
        width = plan.kernel("columns", 1).columns
        total += 8 * n + (sizes["device"] + sizes["device_inverse"]) * plan.stages[0].rest // (8 * width)
    return int(total)


def mma_instructions(plan: Plan, ops: int) -> float:
    """Instructions of warps for one transform, as compiled code has them (counted for 256 to 32768 points).

    For every 128 complex elements: two HMMA a 16x16x16 product, eight instructions a complex factor, and
    what loads, scales, converts, exchanges and addresses.
    """
    factors = 2 * plan.order - 1 + (2 if plan.device_stages else 0)
    norms = 8 if plan.rows_per_item == 2 else 0  # of the two rows of a pair
    return 2 * ops + plan.transform / 128 * (8 * factors + 28 * plan.rows_per_item + norms + 40)


def _mma_cost(plan: Plan, target: Target, ops: int, device: int, workspace: int) -> Cost:
    """The register chain: see the two counts above."""
    n = plan.transform
    shared = mma_shared_bytes(plan)
    # Outer twiddles are too large for shared memory; they stay in what it leaves of the L1 cache, or do not.
    tables = sum(t.nbytes for t in plan.tables if t.name.startswith("outer"))
    body = plan.body
    left = target.shared_sm - body.resident * (body.shared_bytes + target.shared_reserved)
    tables = 8 * n if tables > left else 0
    peaks = device // 2 if plan.device_stages else 0
    fill = min(1.0, occupancy(plan, target) / 16)
    chip = target.multiprocessors * target.clock
    seconds = {
        "device memory": device / target.bandwidth,
        "L2": (device + workspace + peaks + 4 * n + tables) / target.l2_bandwidth,
        "shared memory": (shared + workspace + device) / (128 * chip) / fill,
        "tensor cores": 2 * TILE**3 * ops / target.tensor_rate / fill,
        "issue slots": mma_instructions(plan, ops) / (4 * chip) / fill,
    }
    return Cost(ops, device, workspace, shared, seconds)

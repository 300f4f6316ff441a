"""What a plan costs: the work of its kernels, and the time a target needs for it (design 5.2).

Counts are per transform (one batch row in right-angle mode, two rows in batch-pair mode) at full length,
without gates unless they are asked for. The time of a kernel is the largest of work / rate over the
resources, and a part of what the others take. Kernels run one after another, so the time of a plan is the
sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from string import digits
from typing import Any

from fftgen.dtypes import dtype
from fftgen.planner import filter_work, section_work, simt_work
from fftgen.planner import work as counts
from fftgen.planner.instructions import BACK, THERE, ratios_made
from fftgen.planner.plan import SIMT, TILE, Kernel, Plan
from fftgen.planner.whole import holding, share
from fftgen.planner.work import Work
from fftgen.targets import Target

RESOURCES = ("device memory", "L2", "shared memory", "tensor cores", "issue slots")
PIPE_BYTES = 128  # of shared memory and L1, a cycle and multiprocessor
SCHEDULERS = 4  # of a multiprocessor, an instruction of a warp a cycle each
FILL_WARPS = 16  # resident warps from which on latencies are hidden
# Instructions for 128 elements that places in shared memory take more than those in the workspace (compiled).
ADDRESSES = {"columns": 1, "rows": 7, "columns_inverse": 4}
POWERS = 100  # for a strip of a pair, to find what scales its rows: in one launch once a transform
# Of the other resources' time: of inner stages, of those around. These take longer than all that is counted
# of them, one after the other: something holds them up that no count knows.
SHOWING, SHOWING_OUTSIDE = 0.255, 1.15
CHIP_WIDE = ("device memory", "L2")  # shared by all multiprocessors: a few busy ones can use them up


@dataclass(frozen=True)
class Compiled:
    """What the machine code of a plan's kernels says, by their labels; what is missing stays an estimate.

    ``registers`` of a thread; ``instructions`` that warps issue for one transform (one filter).
    """

    registers: Mapping[str, int] = field(default_factory=dict)
    instructions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCost:
    """One kernel: its work for a transform, and the seconds that each resource of a full chip needs for it.

    ``resident``: warps on a multiprocessor.
    """

    name: str
    work: Work
    resident: int
    seconds: dict[str, float]

    @property
    def time(self) -> float:
        """Seconds of the busiest resource."""
        return max(self.seconds.values())

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def showing(self) -> float:
        """Seconds that the busiest resource does not hide of the others (as fitted: call_cost.py)."""
        share = SHOWING_OUTSIDE if self.name.startswith(("peaks", "columns")) else SHOWING
        return share * (sum(self.seconds.values()) - self.time)

    @property
    def predicted(self) -> float:
        """Seconds that the kernel takes: its busiest resource, and what that does not hide of the others."""
        return self.time + self.showing

    def stretched(self, by: float) -> float:
        """Seconds of the busiest resource, where those of a multiprocessor have so many times more to do."""
        return max(s * (1 if name in CHIP_WIDE else by) for name, s in self.seconds.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers: bytes, operations, seconds. ``time`` is what is predicted, ``showing`` included."""
        done = self.work
        return {
            "kernel": self.name,
            "tensor_ops": done.tensor_ops,
            "device_bytes": done.device_bytes,
            "workspace_bytes": done.workspace_bytes,
            "l2_bytes": done.l2_bytes,
            "shared_bytes": done.pipe_bytes,
            "instructions": round(done.instructions, 1),
            "resident_warps": self.resident,
            "seconds": self.seconds,
            "showing": self.showing,
            "time": self.predicted,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Cost:
    """Work of one transform and the seconds that it needs on a full chip, kernel by kernel."""

    kernels: tuple[KernelCost, ...]

    @property
    def tensor_ops(self) -> int:
        """16x16x16 matrix instructions."""
        return sum(k.work.tensor_ops for k in self.kernels)

    @property
    def device_bytes(self) -> int:
        """Bytes read and written in device memory, the least possible."""
        return sum(k.work.device_bytes for k in self.kernels)

    @property
    def workspace_bytes(self) -> int:
        """Bytes read and written in the workspace (L2 as a rule)."""
        return sum(k.work.workspace_bytes for k in self.kernels)

    @property
    def shared_bytes(self) -> int:
        return sum(k.work.shared_bytes for k in self.kernels)

    @property
    def seconds(self) -> dict[str, float]:
        """What each resource is busy, all kernels together."""
        return {name: sum(k.seconds[name] for k in self.kernels) for name in RESOURCES}

    @property
    def time(self) -> float:
        """Seconds of the busiest resource of every kernel, added up."""
        return sum(k.time for k in self.kernels)

    @property
    def showing(self) -> float:
        return sum(k.showing for k in self.kernels)

    @property
    def predicted(self) -> float:
        """Seconds of all kernels, what their busiest resources do not hide included."""
        return self.time + self.showing

    def expected(self, stretch: float) -> float:
        """The same where multiprocessors have ``stretch`` times as much to do, as others are idle."""
        return sum(k.stretched(stretch) for k in self.kernels) + self.showing

    @property
    def bounding(self) -> dict[str, float]:
        """Of ``time``, the seconds in which each resource is the busiest of its kernel."""
        return {name: sum(k.time for k in self.kernels if k.bound == name) for name in RESOURCES}

    @property
    def bound(self) -> str:
        """The resource that bounds the kernels longest: not always the one that is busy longest."""
        share = self.bounding
        return max(share, key=lambda name: share[name])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, of all kernels and of each. ``time`` is what is predicted, ``showing`` included."""
        return {
            "tensor_ops": self.tensor_ops,
            "device_bytes": self.device_bytes,
            "workspace_bytes": self.workspace_bytes,
            "shared_bytes": self.shared_bytes,
            "seconds": self.seconds,
            "bound": self.bound,
            "showing": self.showing,
            "time": self.predicted,
            "kernels": [k.as_dict() for k in self.kernels],
        }


def tensor_ops(plan: Plan, ways: tuple[str, ...] = (THERE, BACK)) -> int:
    """16x16x16 matrix instructions of a transform of full length, or of one way of it: exact."""
    if plan.engine == SIMT:
        return 0
    return plan.sections * sum(counts.tensor_ops(plan, kernel, ways) for kernel in plan.kernels)


def matrix_operations(plan: Plan) -> int:
    """Matrix instructions of one transform as the engine issues them: exact.

    "wmma": 16x16x16; "mma": m16n8k16, two to one of those.
    """
    return tensor_ops(plan) * (2 if plan.engine == "mma" else 1)


def device_bytes(plan: Plan) -> int:
    """Bytes of signals that one transform must read and write at full length, ungated: exact."""
    held = min(plan.problem.length, plan.points)
    numbers = (1 + plan.outputs) * plan.rows_per_item * held
    return dtype(plan.problem.dtype).nbytes * numbers


def workspace_bytes(plan: Plan) -> int:
    """Bytes that device stages write and read in the workspace: exact at full length."""
    if plan.engine == SIMT:
        return 4 * plan.point_bytes * plan.transform if plan.device_stages else 0
    return sum(sum(counts.workspace(plan, kernel)) for kernel in plan.kernels)


def resident_blocks(
    shared_bytes: int, warps: int, target: Target, planned: int, registers: int | None = None
) -> int:
    """Blocks of a kernel on a multiprocessor, with ``registers`` of a thread as compiled.

    Without them ``planned`` blocks are what the plan has the compiler leave room for.
    """
    if registers is None:
        return min(planned, target.resident_blocks(warps, shared_bytes))
    return target.resident_blocks(warps, shared_bytes, registers)


def cost(plan: Plan, target: Target, compiled: Compiled | None = None, gated: bool = False) -> Cost:
    """Counts and seconds of one transform when the chip is full. ``gated``: the input, and every result."""
    known = compiled or Compiled()
    found = []
    for kernel in plan.kernels:
        done = work_of(plan, kernel, target, gated)
        size = (kernel.shared_bytes, kernel.warps, kernel.resident)
        found.append(kernel_cost(kernel.label, done, size, target, known.registers.get(kernel.label), known))
    return Cost(tuple(found))


def work_of(plan: Plan, kernel: Kernel, target: Target, gated: bool = False) -> Work:
    """What one kernel of the convolution does for one transform. ``gated``: the input, and every result.

    Where a row has sections, for all of them.
    """
    if plan.engine == SIMT:
        return simt_work.kernel_work(plan, kernel, target, gated)
    if plan.sections > 1:
        return section_work.in_sections(plan, kernel, target, gated)
    return counts.kernel_work(plan, kernel, target, gated)


def in_one_launch(plan: Plan, price: Cost, target: Target) -> Cost:
    """The same where one launch does all stages (planner/whole.py), stage by stage.

    What blocks have of the rows in their shared memory passes no workspace in the L2, and leaves less room in
    the L1.
    """
    if plan.whole is None:
        return price
    return Cost(tuple(_beside_others(k, plan, plan.whole, target) for k in price.kernels))


def _beside_others(kernel: KernelCost, plan: Plan, whole: Kernel, target: Target) -> KernelCost:
    """A stage as the one launch does it. Columns meet rows of all blocks of a cluster that holds some."""
    work, part = kernel.work, share(plan, whole)
    loaded, stored = int(part * work.workspace_loaded), int(part * work.workspace_stored)
    instructions, remote, tables = work.instructions, 0, work.tables
    shared = work.shared_bytes + loaded + stored
    if kernel.name.startswith("columns"):  # what comes by way of shared memory, here and there
        alone = plan.kernel(kernel.name.rstrip(digits)).brought > 0
        back = kernel.name.startswith("columns_inverse")
        here = whole.brought > (0 if back else plan.outputs)
        shared += (here - alone) * (work.gates + (0 if back else work.loaded))
    if part:
        instructions += ADDRESSES.get(kernel.name.rstrip(digits), 0) * plan.transform / 128
    if kernel.name.startswith("columns"):
        blocks = holding(plan, whole) if whole.row else 1
        remote = (loaded + stored) * (blocks - 1) // blocks
        if not plan.real_input:
            instructions -= POWERS * plan.stages[0].rest / (8 * plan.kernel("columns").columns)
    elif kernel.name == plan.body.label:
        tables = counts.far_twiddles(plan, whole, target)
        if plan.strip_peaks:  # once a transform
            instructions -= ratios_made(plan) * plan.transform / 128
    done = replace(
        work,
        workspace_loaded=work.workspace_loaded - loaded,
        workspace_stored=work.workspace_stored - stored,
        shared_bytes=shared,
        remote=remote,
        tables=tables,
        instructions=instructions,
    )
    return replace(kernel, work=done, seconds=_seconds(done, target, kernel.resident))


def filter_cost(
    plan: Plan, target: Target, taps: int | None = None, compiled: Compiled | None = None
) -> Cost:
    """Counts and seconds of one channel's spectrum by the plan's filter kernels; empty where it has none.

    ``taps``: of the filter, by default as many as the transform holds.
    """
    known = compiled or Compiled()
    found = []
    for kernel in plan.filter.kernels:
        done = (simt_work if plan.engine == SIMT else filter_work).filter_work(plan, kernel, target, taps)
        size = (kernel.shared_bytes, kernel.threads // 32, kernel.resident)
        found.append(kernel_cost(kernel.role, done, size, target, known.registers.get(kernel.role), known))
    return Cost(tuple(found))


def kernel_cost(
    label: str,
    done: Work,
    size: tuple[int, int, int],
    target: Target,
    registers: int | None,
    compiled: Compiled,
) -> KernelCost:
    """``size``: shared bytes and warps of a block, and blocks that the plan leaves registers for."""
    shared, warps, planned = size
    blocks = resident_blocks(shared, warps, target, planned, registers)
    done = replace(done, instructions=compiled.instructions.get(label, done.instructions))
    return KernelCost(label, done, blocks * warps, _seconds(done, target, blocks * warps))


def _seconds(done: Work, target: Target, resident: int) -> dict[str, float]:
    """By resource. What a multiprocessor does by itself reaches its rate only when enough warps hide the
    latency of what feeds it."""
    fill = min(1.0, resident / FILL_WARPS)
    chip = target.multiprocessors * target.clock
    return {
        "device memory": done.device_bytes / target.bandwidth,
        "L2": done.l2_busy_bytes / target.l2_bandwidth,
        "shared memory": done.pipe_bytes / (PIPE_BYTES * chip) / fill,
        "tensor cores": 2 * TILE**3 * done.tensor_ops / target.tensor_rate / fill,
        "issue slots": done.instructions / (SCHEDULERS * chip) / fill,
    }

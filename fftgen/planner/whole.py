"""Long transforms by one launch: clusters of blocks take all stages of a transform, one after another.

What the device class does in a launch a stage and chunk, one kernel does with barriers between the stages:
each cluster has a transform's place in the workspace for itself, and draws the next one when it is done. No
launch waits for the last block of the one before, and while some clusters wait for memory others compute.
Where blocks form no clusters (before sm_90) a block does a transform alone.

The place is in the L2, or in the shared memory of the cluster's blocks, a share of the rows in each (design
2.2, cluster class): then nothing but signals, spectra and tables passes the L2. That takes as many blocks as
hold a transform, two with a multiprocessor each at 65 536 points: by the model what the L2 is spared (9 %) is
what single blocks lost elsewhere (BLOCKS), so the planner takes the L2.

Or it is in both: a block has the first lines of every row's matrix in its shared memory, as many as fit, and
the others in the L2. Three quarters of 65 536 points fit a block of a multiprocessor of sm_90 (``held``),
whose columns then meet nothing of other blocks. What is the shorter by the model is taken (one_launch.py).
No GPU has told yet; ``fftgen tune`` times all.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import NamedTuple

from fftgen.planner.fragments import ALIGNMENT
from fftgen.planner.mma_kernels import gate_pieces, ratio_bytes
from fftgen.planner.mma_rules import OPERANDS, operands
from fftgen.planner.plan import Kernel, Plan
from fftgen.targets import Target
from fftgen.targets import target as find_target

# Warps of a block, and blocks of a multiprocessor: two that are in different stages of different transforms
# hide more than one of twice the warps, which all stop at the same barrier (16 384 points on an H200: 10 %,
# results/). Both leave 128 registers a thread.
BLOCKS = ((8, 2), (16, 1))
CLUSTERS = 90  # capability from which on blocks form clusters: PTX ISA, barrier.cluster
SIZES = (1, 2, 4, 8)  # blocks of a cluster; 8 is the most that every chip takes
# Of the L2 for what is under way: signals, spectra and results pass through it, too, and reads of more than
# 0.7 of it were measured to miss (targets.py).
ROOM = 0.6
LEAST = 0.25  # of a transform in shared memory: less is not worth its addresses
BUSY = 0.8  # of the chip at least, when there is work for all of it
ENOUGH = 0.45  # of it, when there is not
MANY = 1 << 30  # transforms, more than any chip takes at a time


class Clusters(NamedTuple):
    """How a launch is cut: blocks of a cluster, and clusters, each with a place in the workspace."""

    size: int
    total: int


def whole_kernel(plan: Plan, chip: Target) -> Kernel | None:
    """The kernel that does all of a plan's stages, if the plan is of that kind and it pays on the chip."""
    fitting = whole_kernels(plan, chip)
    for room, kernels in ((ROOM, fitting), (1.0, fitting[::-1])):
        for kernel in kernels:
            if _shape(plan, chip, kernel.resident, room):
                return kernel
    return None


def whole_kernels(plan: Plan, chip: Target) -> tuple[Kernel, ...]:
    """Every kernel that can do all of a plan's stages, whether it pays or not."""
    if plan.engine != "mma" or not plan.scaled or len(plan.device_stages) != 1 or not plan.block_stage:
        return ()
    if chip.virtual:
        return ()
    return tuple(k for warps, resident in BLOCKS if (k := _kernel(plan, chip, warps, resident)))


def cluster_kernels(plan: Plan, chip: Target) -> tuple[Kernel, ...]:
    """Every kernel that does the same with rows, or a part of each, in the shared memory of a cluster's
    blocks."""
    if not whole_kernels(plan, chip) or chip.capability < CLUSTERS:
        return ()
    sizes = (size for size in SIZES[1:] if plan.stages[0].radix % size == 0)
    found = (_fullest(plan, chip, *blocks, size) for blocks, size in product(BLOCKS, sizes))
    return tuple(k for k in found if k)


def held_kernel(plan: Plan, chip: Target) -> Kernel | None:
    """The kernel of single blocks that have a part of every row in their shared memory."""
    return _fullest(plan, chip, *BLOCKS[-1], 1) if whole_kernels(plan, chip) else None


def _fullest(plan: Plan, chip: Target, warps: int, resident: int, size: int) -> Kernel | None:
    """The kernel of clusters whose shared memory has as many lines of every row as fit, if these are enough
    and the L2 has room for the others."""
    lines, rows = plan.inner[0].radix, plan.stages[0].radix // size
    for held in range(lines, int(LEAST * lines), -1):
        if kernel := _kernel(plan, chip, warps, resident, rows, held):
            left = 4 * plan.transform * (1 - share(plan, kernel)) * chip.most_clusters(size, resident)
            return kernel if left <= ROOM * chip.l2_bytes else None
    return None


def cluster_sizes(plan: Plan, chip: Target) -> tuple[int, ...]:
    """Sizes of clusters that leave every cluster a place in the L2, and some of the chip to every one."""
    if plan.whole is None:
        return ()
    if plan.whole.row:
        return (holding(plan, plan.whole),)
    resident = plan.whole.resident
    enough = ENOUGH * chip.multiprocessors * resident
    sizes = SIZES if chip.capability >= CLUSTERS else SIZES[:1]
    return tuple(s for s in sizes if s * _places(plan, chip, chip.most_clusters(s, resident), 1.0) >= enough)


def _places(plan: Plan, chip: Target, total: int, room: float) -> int:
    """Clusters, of so many that the chip holds, that have a place in that share of the L2."""
    return min(total, int(room * chip.l2_bytes) // (4 * plan.transform))


def holding(plan: Plan, kernel: Kernel) -> int:
    """Blocks whose shared memory has all rows of a transform, or some lines of them, ``kernel.row`` each."""
    return plan.stages[0].radix // kernel.row


def share(plan: Plan, kernel: Kernel) -> Fraction:
    """Of a transform, what stands in the shared memory of blocks, and not in the workspace."""
    return Fraction(kernel.held, plan.inner[0].radix)


def _kernel(
    plan: Plan, chip: Target, warps: int, resident: int, rows: int = 0, held: int = 0
) -> Kernel | None:
    """A block of so many warps, which take rows in teams of as many as the kernel of rows has; of more where
    that has just the registers for its strips (as compiled: here they would spill). ``rows`` of which its
    shared memory has ``held`` lines each, 0: each team's one."""
    body, stage = plan.body, plan.inner[0]
    strips, team = stage.rest // (8 * body.columns), body.warps
    while operands(strips // team, stage.radix, body.columns, False) == OPERANDS and 2 * team <= warps:
        team *= 2
    teams, rest = divmod(warps, team)
    lines = 4 * stage.rest * held, 4 * stage.rest * (stage.radix - held)
    out_of_step = 128 if rows else 0  # templates/device/cluster_rows.cuh
    at = rows * (lines[0] + out_of_step) + (teams * (lines[1] + out_of_step) if lines[1] else 0)
    at = -(-at // ALIGNMENT) * ALIGNMENT
    ratios = at + body.shared_bytes - body.matrices_at  # behind the tables
    shared = ratios + (ratio_bytes(stage, plan.kernel("columns").columns) if plan.strip_peaks else 0)
    if (
        not teams
        or rest
        or strips % team
        or (rows and rows % teams)
        or shared > chip.shared_block
        or chip.resident_blocks(warps, shared) < resident
    ):
        return None
    staging = ratios if plan.strip_peaks else -1
    kernel = Kernel("whole", 0, warps, teams, resident, 0, rows, 0, staging, at, shared, held=held)
    return brought_in_place(plan, kernel)


def brought_in_place(plan: Plan, kernel: Kernel) -> Kernel:
    """The kernel, whose columns have signals and the gates of their results on their way (``with_gates``) in
    the place of the teams' rows, as far as that has room, or can have it."""
    around, radix, chip = plan.kernel("columns"), plan.stages[0].radix, find_target(plan.target)
    if kernel.row:
        return replace(kernel, plane=0, brought=0)
    signals = 0
    if around.brought:
        # Room for a strip and its gate to each warp; what brings strips to a power stands behind.
        more = max(0, 16 * around.plane * kernel.warps - kernel.matrices_at)
        staging, at, shared = (x + more for x in (kernel.staging_at, kernel.matrices_at, kernel.shared_bytes))
        if shared <= chip.shared_block and chip.resident_blocks(kernel.warps, shared) >= kernel.resident:
            kernel = replace(kernel, staging_at=staging, matrices_at=at, shared_bytes=shared)
            signals = around.brought
    pieces = gate_pieces(radix, around.columns, plan.rows_per_item, plan.outputs)
    if 16 * pieces * kernel.warps > kernel.matrices_at:
        return replace(kernel, plane=0, brought=0)
    return replace(kernel, plane=pieces, brought=signals + plan.outputs)


def _shape(plan: Plan, chip: Target, resident: int, room: float) -> Clusters | None:
    """As few blocks to a cluster as keep all that is under way in so much of the L2; None: none do."""
    blocks = chip.multiprocessors * resident
    for size in SIZES if chip.capability >= CLUSTERS else SIZES[:1]:
        total = _places(plan, chip, chip.most_clusters(size, resident), room)
        if size * total >= BUSY * blocks:
            return Clusters(size, total)
    return None


def clusters(plan: Plan, items: int, chip: Target | None = None) -> Clusters | None:
    """The clusters for so many transforms of a plan; None: better in a launch for each stage.

    More blocks to a cluster where there are fewer transforms than clusters. ``chip``: the GPU that is there.
    """
    if plan.whole is None:
        return None
    chip, resident = chip or find_target(plan.target), plan.whole.resident
    blocks = chip.multiprocessors * resident
    if plan.whole.row:  # these do not grow where there are few transforms: stages by themselves are quicker
        size = holding(plan, plan.whole)
        total = chip.most_clusters(size, resident)
        if total == 0:
            return None
        turns = -(-items // total)
        return Clusters(size, min(items, total)) if items >= BUSY * turns * total else None
    if plan.cluster:
        total = min(items, _places(plan, chip, chip.most_clusters(plan.cluster, resident), 1.0))
        return Clusters(plan.cluster, total) if plan.cluster * total >= ENOUGH * blocks else None
    found = _shape(plan, chip, resident, ROOM) or _shape(plan, chip, resident, 1.0)
    if found is None:  # on no chip that plans are made for
        return None
    size, total = found
    while items < total and size < SIZES[-1] and chip.capability >= CLUSTERS and 2 * size * items <= blocks:
        size, total = 2 * size, min(total, chip.most_clusters(2 * size, resident))
    total = min(total, items)
    return Clusters(size, total) if size * total >= ENOUGH * blocks else None


def full(plan: Plan, chip: Target | None = None) -> Clusters | None:
    """The clusters for more transforms than any chip has clusters; None: no plan for one launch."""
    return clusters(plan, MANY, chip)


def turns(found: Clusters, items: int, resident: int, chip: Target) -> int:
    """How often clusters of a launch draw, of ``resident`` blocks to a multiprocessor, until all is done."""
    return -(-items // max(1, min(found.total, chip.clusters(found.size, resident))))


def stretch(plan: Plan, found: Clusters, items: int, chip: Target) -> float:
    """Times longer than if all of the chip had as much to do: what clusters leave idle, and the last turn.

    Of a plan that has the kernel, and the clusters of so many transforms.
    """
    assert plan.whole is not None
    resident = plan.whole.resident
    taken = turns(found, items, resident, chip)
    return taken * chip.multiprocessors * resident / (found.size * items)


def fewest(plan: Plan) -> int:
    """The fewest transforms that one launch carries out, of a plan that has the kernel."""
    return next(n for n in range(1, 1 << 20) if clusters(plan, n))

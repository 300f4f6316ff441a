"""What every kernel of a plan does for one transform: operations and bytes exactly, instructions estimated.

One transform is a batch row in right-angle mode, two rows in batch-pair mode, of full length and without
gates. Operations and bytes of signals, workspace and spectrum are those that the simulator counts (tests
hold them equal, kernel by kernel); instructions are an estimate (instructions.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from fftgen.planner import fragments
from fftgen.planner.instructions import (
    BACK,
    THERE,
    directions,
    gating,
    mma_instructions,
    passes,
    wmma_instructions,
)
from fftgen.planner.mma_rules import steady
from fftgen.planner.plan import TILE, Kernel, Plan
from fftgen.targets import Target

STAGING_TRAFFIC = 16  # bytes per complex element: two fp32 written, two read back
OPERAND_TRAFFIC = 8  # two 16-bit numbers written, two read
# How much longer bytes of another block's shared memory take than one's own: about 16 a cycle and
# multiprocessor instead of 128 (3.27 TB/s between the pairs of an H100 PCIe, arXiv 2402.13499).
REMOTE = 8
VECTOR = 8  # numbers of a piece of 16 bytes
KEPT_ROWS = 64  # of a group of columns, on the way back, that stay in registers for all row tiles
LOW_RUN = 32  # columns of a row that four threads store together, with low twiddles of their own
ELEMENT = 4  # bytes of a complex number of two 16-bit parts: workspace and spectrum
NARROW = 2  # columns of a thread in the device stage that make pieces of 32 bytes: 16 to a strip


@dataclass(frozen=True)
class Work:
    """The work of one kernel for one transform.

    ``loaded`` and ``stored``: bytes of signals (of a filter's kernel: taps, and the stored spectrum);
    ``gates``: of those that multiply them. ``device_bytes``: what of all these device memory has to move; a
    second read of a row comes from the L2. ``tables``: bytes of constants that no first-level cache holds.
    ``shared_bytes``: through the pipe of shared memory and L1, signals and workspace apart; ``remote`` of
    them to and from other blocks of a cluster. ``instructions``: of warps. ``narrow``: signals, gates and the
    workspace come in pieces of one sector of 32 bytes.
    """

    tensor_ops: int = 0  # 16x16x16
    loaded: int = 0
    stored: int = 0
    gates: int = 0
    device_bytes: int = 0
    workspace_loaded: int = 0
    workspace_stored: int = 0
    spectrum: int = 0
    tables: int = 0
    shared_bytes: int = 0
    remote: int = 0
    instructions: float = 0.0
    narrow: bool = False

    @property
    def workspace_bytes(self) -> int:
        return self.workspace_loaded + self.workspace_stored

    @property
    def signal_bytes(self) -> int:
        """Of signals, gates and the workspace."""
        return self.loaded + self.stored + self.gates + self.workspace_bytes

    @property
    def l2_bytes(self) -> int:
        """All that multiprocessors exchange with the L2."""
        return self.signal_bytes + self.spectrum + self.tables

    @property
    def l2_busy_bytes(self) -> int:
        """The same with those in pieces of one sector twice: two of a line take the L2 as long as one (as
        fitted: call_cost.py)."""
        return self.l2_bytes + (self.signal_bytes if self.narrow else 0)

    @property
    def pipe_bytes(self) -> int:
        """All that passes the pipe of shared memory and L1, 128 bytes a cycle and multiprocessor; bytes of
        other blocks count for as many as would take as long."""
        return self.shared_bytes + (REMOTE - 1) * self.remote + self.signal_bytes


def kernel_work(plan: Plan, kernel: Kernel, target: Target, gated: bool = False) -> Work:
    """What one kernel of the convolution does for one transform. ``gated``: the input, and every result."""
    ops = tensor_ops(plan, kernel)
    loaded, stored = _signals(plan, kernel)
    workspace_loaded, workspace_stored = workspace(plan, kernel)
    again = kernel.role == "columns" and any(k.role == "peaks" for k in plan.kernels)
    body = kernel == plan.body
    mma = plan.engine == "mma"
    # Before its columns for the peak of a row.
    reads = 2 if not mma and plan.scaled and kernel.role == "convolve" else 1
    inward, outward = (loaded, stored) if gated else (0, 0)
    instructions = mma_instructions(plan, kernel, ops) if mma else wmma_instructions(plan, kernel, ops)
    shared = _mma_shared(plan, kernel) if mma else _wmma_shared(plan, kernel)
    if kernel.brought:  # read; written as they are loaded
        gates = kernel.role == "columns_inverse" or kernel.brought > 2
        shared += inward + (outward if gates else 0) + (loaded if kernel.role == "columns" else 0)
    return Work(
        tensor_ops=ops,
        loaded=reads * loaded,
        stored=stored,
        gates=reads * inward + outward,
        device_bytes=(0 if again else loaded + inward) + stored + outward,
        workspace_loaded=workspace_loaded,
        workspace_stored=workspace_stored,
        spectrum=ELEMENT * plan.transform if body else 0,
        tables=far_twiddles(plan, kernel, target) if mma and body else 0,
        shared_bytes=shared,
        instructions=instructions + gating(plan, inward + outward),
        narrow=mma and kernel.role in ("columns", "columns_inverse") and kernel.columns == NARROW,
    )


def tensor_ops(plan: Plan, kernel: Kernel, ways: tuple[str, ...] = (THERE, BACK)) -> int:
    """16x16x16 matrix instructions of a kernel for one transform of full length: exact.

    Every stage multiplies N/256 output tiles by radix/16 operand tiles, with four real products per
    complex one, forward and inverse; the first stage reads and the last writes real numbers in
    right-angle mode (two products). By halves it takes half of them there, three quarters of them back, and
    so many there where even numbers stand before odd ones; one of B products where B butterflies do the rest.
    """
    return sum(
        _stage_ops(plan, number, way)
        for number, directions in directions(plan, kernel).items()
        for way in directions
        if way in ways
    )


def _stage_ops(plan: Plan, number: int, way: str) -> int:
    stage = plan.stages[number - 1]
    products = 2 if plan.real_input and number == 1 else 4
    every = plan.transform // (TILE * TILE) * (stage.lines // TILE) * products
    if stage.butterflies > 1:
        return every // stage.butterflies
    if way == THERE:
        if number == 1 and plan.engine == "mma" and fragments.parted(plan.stages, plan.real_input):
            return every * 3 // 4
        return every // 2 if stage.halves else every
    return every * 3 // 4 if plan.halves_back(stage) else every


def _signals(plan: Plan, kernel: Kernel) -> tuple[int, int]:
    """Bytes of u that a kernel loads and of y that it stores."""
    row = 2 * plan.rows_per_item * min(plan.problem.length, plan.transform)
    loads = kernel.role in ("convolve", "peaks") or (kernel.role, kernel.stage) == ("columns", 1)
    stores = kernel.role == "convolve" or (kernel.role, kernel.stage) == ("columns_inverse", 1)
    return row if loads else 0, plan.outputs * row if stores else 0


def workspace(plan: Plan, kernel: Kernel) -> tuple[int, int]:
    """Bytes of the workspace that a kernel loads and stores: all of it, 4 bytes a complex number.

    Between the tensor and the workspace only one of both.
    """
    whole = ELEMENT * plan.transform
    if kernel.role == "rows":
        return whole, whole
    if kernel.role == "columns":
        return (0 if kernel.stage == 1 else whole), whole
    if kernel.role == "columns_inverse":
        return whole, (whole if kernel.stage > 1 else 0)
    return 0, 0


def _wmma_shared(plan: Plan, kernel: Kernel) -> int:
    return passes(plan, kernel) * plan.transform * (STAGING_TRAFFIC + OPERAND_TRAFFIC)


def far_twiddles(plan: Plan, kernel: Kernel, target: Target) -> int:
    """Bytes of the outer twiddles from the L2, beside the shared memory of a kernel."""
    outer = [t.nbytes for t in plan.tables if t.name.startswith("outer")]
    return missed(2 * ELEMENT * plan.transform, sum(outer), kernel, target)


def missed(read: int, tables: int, kernel: Kernel, target: Target) -> int:
    """Bytes that come from the L2, of ``read`` from tables of so many bytes in device memory: as far as these
    do not fit the L1 cache beside the resident blocks of a kernel."""
    left = target.l1_beside(kernel.resident, kernel.shared_bytes)
    return read * max(0, tables - left) // tables if tables else 0


def outer_twiddles(plan: Plan, back: bool) -> float:
    """Bytes of the outer twiddles that threads load, a point of the transform: there, or back.

    Of two levels a number of the low one for every point, and of the high one, each part twice, for so many
    as a thread stores at a time. There channels abreast share them (back as well, as ptxas sees, but not the
    PTX, which is counted here). Back, pieces that a thread stores of a row tile share the low one where the
    runs of columns that they lie in do (columns.cuh: store_rows).
    """
    stage, columns = plan.inner[0], plan.factors[-1]
    if not back:
        high = 2 * ELEMENT / (2 * plan.body.columns) if stage.two_levels else 0
        return (ELEMENT + high) / plan.abreast
    if not stage.two_levels:
        return ELEMENT
    runs = stage.split // LOW_RUN
    pieces = columns // TILE
    different = min(runs, columns // LOW_RUN) if pieces > 1 and TILE // 2 % runs == 0 else pieces
    return ELEMENT * different / pieces + 2 * ELEMENT / VECTOR


def _mma_shared(plan: Plan, kernel: Kernel) -> int:
    """Exchanges, tables, spectrum, twiddles.

    An exchange writes and reads 4 bytes a complex element; a table of the register chain is read once for
    each group of rows that a warp takes at a time, one of columns once for each strip. Low twiddles that a
    warp keeps (mma_rules.steady) are not counted: its first strip is one of many.
    """
    n = plan.transform
    sizes = {t.name: t.nbytes for t in plan.tables}
    if kernel.role in ("columns", "columns_inverse"):
        width = plan.kernel("columns", 1).columns
        matrix = "device" if kernel.role == "columns" else "device_inverse"
        low = 0 if kernel.role in steady(plan).twiddles else ELEMENT * n
        return low + ELEMENT * n // width + sizes[matrix] * plan.stages[0].rest // (8 * width)
    if kernel.role == "peaks":
        return 0
    chain = sum(sizes[name] for name in sizes.keys() & fragments.CHAIN)
    rows = n // (plan.factors[-1] * plan.factors[-2])
    total = 4 * n + chain * rows // kernel.group
    if not plan.block_stage:
        copies = 2 * n * plan.rows_per_item if kernel.brought else 0  # read; written as signals are loaded
        return total + copies + 2 * 2 * n * (1 if plan.real_input and not plan.device_stages else 2)
    transforms = n // plan.row_length
    matrices = column_matrices(plan, kernel, False) + column_matrices(plan, kernel, True)
    twiddles = outer_twiddles(plan, False) + outer_twiddles(plan, True)
    again = int((twiddles + read_again(plan, kernel)) * n)
    # Two exchanges, outer twiddles there and back.
    return total + 16 * n + again + ratios_read(plan, kernel) + transforms * matrices


def read_again(plan: Plan, kernel: Kernel) -> int:
    """Bytes of a point of a block's columns that are read once more on the way back (columns.cuh: KEEP, ONE):
    for every row tile but one, where rows are too many for registers or warps share the tiles of a group."""
    stage = plan.inner[0]
    tiles = stage.butterflies == 1 and (stage.lines > KEPT_ROWS or stage.rest // 32 < kernel.warps)
    return ELEMENT * (stage.lines // TILE - 1) if tiles else 0


def ratios_read(plan: Plan, kernel: Kernel) -> int:
    """Bytes of what brings strips of the workspace to the power of their row: a word of each lane for every
    two of its rows, which all its columns share."""
    return 2 * plan.transform // kernel.columns if plan.strip_peaks else 0


def column_matrices(plan: Plan, kernel: Kernel, back: bool) -> int:
    """Bytes of the matrix of a block's columns that its warps load for a row, there or back; channels abreast
    share them."""
    size = next(t.nbytes for t in plan.tables if t.name == ("columns_inverse" if back else "columns"))
    columns = plan.inner[0].rest
    if not back:
        return size * columns // (8 * kernel.columns * plan.abreast)
    groups = columns // 32
    return size * (min(groups, kernel.warps) if steady(plan).columns else groups) // plan.abreast

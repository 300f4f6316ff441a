"""What every kernel of a plan does for one transform: operations and bytes exactly, instructions estimated.

One transform is a batch row in right-angle mode, two rows in batch-pair mode, of full length and without
gates. Operations and bytes of signals, workspace and spectrum are those that the simulator counts (tests
hold them equal, kernel by kernel); instructions are an estimate for plans that nobody has compiled yet
(``fftgen/hot_path.py`` counts them in the compiled code of those that were).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fftgen.planner import fragments
from fftgen.planner.mma_rules import steady
from fftgen.planner.plan import LOWER, TILE, Kernel, Plan
from fftgen.problem import Problem
from fftgen.targets import Target

STAGING_TRAFFIC = 16  # bytes per complex element: two fp32 written, two read back
OPERAND_TRAFFIC = 8  # two 16-bit numbers written, two read
# How much longer bytes of another block's shared memory take than one's own: about 16 a cycle and
# multiprocessor instead of 128 (3.27 TB/s between the pairs of an H100 PCIe, arXiv 2402.13499).
REMOTE = 8
VECTOR = 8  # numbers of a piece of 16 bytes
KEPT_ROWS = 64  # of a group of columns, on the way back, that stay in registers for all row tiles
LOW_RUN = 32  # columns of a row that four threads store together, with low twiddles of their own
THERE, BACK = "forward", "inverse"
ELEMENT = 4  # bytes of a complex number of two 16-bit parts: workspace and spectrum
WMMA_PER_ELEMENT = 1.1  # instructions per complex element, stage and direction, per lane
WMMA_PER_PRODUCT = 12
CONVERTED = 4  # instructions that 128 elements of a result in fp32 take to become operands
SECOND = 85  # of a warp, for the rows of another channel: addresses, a power of two, tables from their start
HALVED = 3  # and a stage by halves: four sums, less what it spares in loads of its matrices
RESCALED = 4  # and strips of the workspace, to reach the power of their row
SECTION = 17  # and where a row has sections, of each beside its transform: kept, joined, looked for
SECTION_PRODUCT = 16  # and of each product of one with the spectrum of another distance
SECTIONS_ROOM = 0.7  # of the L2: what is read of more was measured to miss (targets.py)
GATE, NARROW_GATE = 13, 16.5  # and a gate on a row: loaded, widened, multiplied; in pieces of 4 bytes, or 8


@dataclass(frozen=True)
class Work:
    """The work of one kernel for one transform.

    ``loaded`` and ``stored``: bytes of signals (of a filter's kernel: taps, and the stored spectrum);
    ``gates``: of those that multiply them. ``device_bytes``: what of all these device memory has to move; a
    second read of a row comes from the L2. ``tables``: bytes of constants that no first-level cache holds.
    ``shared_bytes``: through the pipe of shared memory and L1, signals and workspace apart; ``remote`` of
    them to and from other blocks of a cluster. ``instructions``: of warps.
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

    @property
    def workspace_bytes(self) -> int:
        return self.workspace_loaded + self.workspace_stored

    @property
    def l2_bytes(self) -> int:
        """All that multiprocessors exchange with the L2."""
        signals = self.loaded + self.stored + self.gates
        return signals + self.workspace_bytes + self.spectrum + self.tables

    @property
    def pipe_bytes(self) -> int:
        """All that passes the pipe of shared memory and L1, 128 bytes a cycle and multiprocessor; bytes of
        other blocks count for as many as would take as long."""
        signals = self.loaded + self.stored + self.gates + self.workspace_bytes
        return self.shared_bytes + (REMOTE - 1) * self.remote + signals


def kernel_work(plan: Plan, kernel: Kernel, target: Target, gated: bool = False) -> Work:
    """What one kernel of the convolution does for one transform. ``gated``: the input, and every result.

    Where a row has sections, for all of them.
    """
    if plan.sections > 1:
        return _in_sections(plan, kernel, target, gated)
    ops = tensor_ops(plan, kernel)
    loaded, stored = _signals(plan, kernel)
    workspace_loaded, workspace_stored = workspace(plan, kernel)
    again = kernel.role == "columns" and any(k.role == "peaks" for k in plan.kernels)
    body = kernel == plan.body
    mma = plan.engine == "mma"
    # Before its columns for the peak of a row.
    reads = 2 if not mma and plan.scaled and kernel.role == "convolve" else 1
    inward, outward = (loaded, stored) if gated else (0, 0)
    instructions = mma_instructions(plan, kernel, ops) if mma else _wmma_instructions(plan, kernel, ops)
    shared = _mma_shared(plan, kernel) if mma else _wmma_shared(plan, kernel)
    if kernel.brought:  # read; written as they are loaded
        shared += inward + (outward if kernel.brought > 2 else 0)
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
    )


def _in_sections(plan: Plan, kernel: Kernel, target: Target, gated: bool) -> Work:
    """What one does for all sections of a row: what it does for one, so many times, and for products with
    transforms of earlier ones, which are kept."""
    one, count = kernel_work(alone(plan), kernel, target, gated), plan.sections
    products, spectrum = count * (count - 1), ELEMENT * plan.transform  # with other sections
    kept = target.multiprocessors * kernel.resident * (count - 1) * spectrum
    if plan.matrix == LOWER:  # every product takes an earlier transform anew
        products //= 2
        loaded, stored = products, count - 1
    else:  # all are taken with the last transform, and what they come to replaces what was kept
        loaded = stored = 2 * (count - 1)
    outside = (loaded + stored) * spectrum if kept > SECTIONS_ROOM * target.l2_bytes else 0
    return replace(
        one,
        tensor_ops=count * one.tensor_ops,
        loaded=count * one.loaded,
        stored=count * one.stored,
        gates=count * one.gates,
        device_bytes=count * one.device_bytes + outside,
        workspace_loaded=loaded * spectrum,
        workspace_stored=stored * spectrum,
        spectrum=count * one.spectrum + products * spectrum,
        tables=count * one.tables,
        shared_bytes=count * one.shared_bytes + products * spectrum,
        instructions=count * one.instructions
        + plan.transform / 128 * (SECTION * count + SECTION_PRODUCT * products),
    )


def alone(plan: Plan) -> Plan:
    """The plan of one of a row's sections by itself."""
    problem = Problem("causal", plan.transform, plan.problem.dtype)
    return replace(plan, sections=1, matrix=LOWER, problem=problem)


def gating(plan: Plan, gates: int) -> float:
    """Instructions that take so many bytes of gates to signals and results (as compiled, sm_80 and sm_90)."""
    narrow = not plan.device_stages and (
        plan.body.columns == 2 if plan.block_stage else plan.factors[-1] == TILE
    )
    rows = gates / (2 * min(plan.problem.length, plan.transform))
    return rows * plan.transform / 128 * (NARROW_GATE if narrow else GATE)


def _directions(plan: Plan, kernel: Kernel) -> dict[int, tuple[str, ...]]:
    """The stages (1-based) that a kernel carries out, and in which directions."""
    if kernel.role == "columns":
        return {kernel.stage: (THERE,)}
    if kernel.role == "columns_inverse":
        return {kernel.stage: (BACK,)}
    if kernel.role in ("convolve", "rows"):
        first = len(plan.device_stages) + 1
        return dict.fromkeys(range(first, plan.order + 1), (THERE, BACK))
    return {}


def tensor_ops(plan: Plan, kernel: Kernel, ways: tuple[str, ...] = (THERE, BACK)) -> int:
    """16x16x16 matrix instructions of a kernel for one transform of full length: exact.

    Every stage multiplies N/256 output tiles by radix/16 operand tiles, with four real products per
    complex one, forward and inverse; the first stage reads and the last writes real numbers in
    right-angle mode (two products). By halves it takes half of them there, three quarters of them back, and
    so many there where even numbers stand before odd ones.
    """
    return sum(
        _stage_ops(plan, number, way)
        for number, directions in _directions(plan, kernel).items()
        for way in directions
        if way in ways
    )


def _stage_ops(plan: Plan, number: int, way: str) -> int:
    stage = plan.stages[number - 1]
    products = 2 if plan.real_input and number == 1 else 4
    every = plan.transform // (TILE * TILE) * (stage.lines // TILE) * products
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
    return _passes(plan, kernel) * plan.transform * (STAGING_TRAFFIC + OPERAND_TRAFFIC)


def _wmma_instructions(plan: Plan, kernel: Kernel, ops: int) -> float:
    found = _passes(plan, kernel) * plan.transform * WMMA_PER_ELEMENT + WMMA_PER_PRODUCT * ops
    looked = plan.scaled and kernel.role in ("convolve", "peaks")
    return found + _peaks_instructions(plan) if looked else found


def _peaks_instructions(plan: Plan) -> float:
    """To look at rows for what they are scaled by."""
    return 24.0 * plan.rows_per_item * plan.transform / 128


def _passes(plan: Plan, kernel: Kernel) -> int:
    return sum(map(len, _directions(plan, kernel).values()))


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
    tiles = stage.lines > KEPT_ROWS or stage.rest // 32 < kernel.warps
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


def mma_instructions(plan: Plan, kernel: Kernel, ops: int) -> float:
    """Instructions of warps for one transform on the engine "mma".

    Two HMMA a 16x16x16 product, and what loads, scales, converts, multiplies by twiddles, exchanges and
    addresses: coefficients fitted for every 128 complex elements to the compiled code of 154 kernels of 256
    to 2**20 points on sm_80 and sm_90 (hot_path.py), of 100 more where nothing is scaled. They miss it by at
    most 10 % in a block's kernel, 7 % in a warp's and 8 % in a device stage's; a test holds them to that over
    the portfolio.
    """
    if kernel.role == "peaks":
        return _peaks_instructions(plan)
    if kernel.role in ("columns", "columns_inverse"):
        each = _device_instructions(plan, kernel)
    elif plan.block_stage:
        each = _block_instructions(plan, kernel)
    else:
        each = _warp_instructions(plan, kernel)
    halved = sum(plan.stages[number - 1].halves for number in _directions(plan, kernel))
    each += CONVERTED * _wide_sums(plan, kernel) + HALVED * halved + signs(plan, kernel)
    return 2 * ops + plan.transform / 128 * each


def signs(plan: Plan, kernel: Kernel) -> float:
    """Instructions for 128 complex elements that make -im and the half of a matrix that its table leaves out,
    less those that would load them: four for a plane of a tile, or one.
    """
    tables = {t.name: t for t in plan.tables}

    def made(name: str) -> int:
        """Of a matrix, each tile of which is loaded once."""
        table = tables[name]
        stage, tiles = plan.stages[table.stage - 1], table.shape[0] * table.shape[1]
        whole = stage.halves or tiles == (stage.lines // TILE) ** 2
        if plan.real_input and table.stage == 1:
            return 0 if whole else 6 * tiles
        return 3 * tiles if whole else 12 * tiles

    if kernel.role in ("columns", "columns_inverse"):
        name = "device" if kernel.role == "columns" else "device_inverse"
        points = 8 * kernel.columns * plan.stages[0].radix
        return made(name) * 128 / points
    chain = sum(made(name) for name in tables.keys() & fragments.CHAIN & fragments.MATRICES)
    found = chain * 128 / (kernel.group * plan.factors[-1] * plan.factors[-2])
    if plan.block_stage:
        lines = plan.inner[0].lines
        found += made("columns") * 16 / (kernel.columns * lines) + made("columns_inverse") * 4 / lines
    return found


def _wide_sums(plan: Plan, kernel: Kernel) -> int:
    """Results between stages in fp32 (Plan.wide_sums, wide_columns); where nothing is scaled, all are."""
    if not plan.scaled:
        return 0
    if kernel.role in ("columns", "columns_inverse"):
        return int(kernel.role == "columns" and plan.wide_columns(plan.stages[0]))
    *outer, first = plan.inner[:-1]
    chain = plan.wide_sums and first.radix > TILE
    # The last stages of all, in a warp by itself, end in fp32 anyway.
    return sum(map(plan.wide_columns, outer)) + (2 if plan.block_stage else 1) * chain


def _device_instructions(plan: Plan, kernel: Kernel) -> float:
    """A strip of columns: what is the same for all its rows weighs less where there are many, or where it
    stays in registers from one strip to the next.
    """
    pair, tiles, wide = not plan.real_input, plan.stages[0].radix / TILE, not plan.scaled
    held = kernel.role in steady(plan).twiddles
    if kernel.role == "columns":
        wider = (20 - 12 / tiles) * wide
        peaks = (2 + 7 / tiles) * (plan.strip_peaks > 0)
        return 25.5 + 36.5 * pair + 47 / kernel.columns + 12 / tiles + peaks + wider - 1.2 * held
    two = (15 + 12 / tiles) * pair
    return 16 + two + 60 / kernel.columns + 15 / tiles + 37 * wide - 3.5 * held


def _warp_instructions(plan: Plan, kernel: Kernel) -> float:
    """Transforms in a warp's registers: a row's scale costs the more the shorter it is, and results of 16
    columns are stored in pieces of half the width. Where nothing is scaled, products in fp32 outweigh both.
    """
    if not plan.scaled:
        return 121
    narrow = 11 * (plan.inner[1].radix == TILE)
    if kernel.role == "rows":
        return 64 + narrow
    each, scale = (73, 11) if plan.rows_per_item == 1 else (117, 60)
    return each + narrow + scale * 256 / plan.transform


def _block_instructions(plan: Plan, kernel: Kernel) -> float:
    """Columns, rows, columns by a block. Warps that get no row, or one less than others, wait: slots pass.

    Operands of tall real columns are loaded anew for every row tile on the way out.
    """
    tensor = kernel.role == "convolve"
    tiles = sum(s.lines for s in plan.inner) / TILE
    turns = plan.inner[0].lines / (kernel.warps * kernel.group)
    idle = (-(-turns // 1) / turns - 1) * (87 if turns < 1 else 13 if plan.scaled else 130)
    levels = 16.5 * plan.inner[0].two_levels  # of twiddles: products by the high ones
    second = (plan.abreast - 1) * SECOND * kernel.warps * 128 / (plan.abreast * plan.transform)
    if not plan.scaled:
        return 167 + 4 * tensor + 4.5 * (tiles - 3) + idle + levels
    tall = 33 * (plan.rows_per_item == 1 and plan.inner[0].radix > 64)
    signals = tensor * (25 + 65.5 * (plan.rows_per_item - 1) + tall)
    return 70 + signals + rescaling(plan) + 0.5 * (tiles - 3) + 73 / kernel.columns + idle + levels + second


def rescaling(plan: Plan) -> float:
    """Instructions for 128 elements of a row of the workspace that bring its strips to the row's power."""
    return RESCALED + ratios_made(plan) if plan.strip_peaks else 0.0


def ratios_made(plan: Plan) -> float:
    """Those of them that find what strips are multiplied by."""
    return 16 / plan.kernel("columns").columns

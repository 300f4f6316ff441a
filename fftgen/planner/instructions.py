"""Instructions that kernels issue, estimated for plans that nobody has compiled yet.

``fftgen/hot_path.py`` counts them in the compiled code of those that were; figures here are fitted to that.
"""

from __future__ import annotations

from fftgen.planner import fragments
from fftgen.planner.mma_rules import steady
from fftgen.planner.plan import TILE, Kernel, Plan

WMMA_PER_ELEMENT = 1.1  # instructions per complex element, stage and direction, per lane
WMMA_PER_PRODUCT = 12
CONVERTED = 4  # instructions that 128 elements of a result in fp32 take to become operands
SECOND = 85  # of a warp, for the rows of another channel: addresses, a power of two, tables from their start
HALVED = 3  # and a stage by halves: four sums, less what it spares in loads of its matrices
# And butterflies across so many tiles, one way: 12, 16, 36 and 52 for as many complex numbers twice.
SUMS = {1: 0.0, 3: 8.0, 4: 8.0, 5: 14.4, 8: 13.0}
RESCALED = 4  # and strips of the workspace, to reach the power of their row
GATE, NARROW_GATE = 13, 16.5  # and a gate on a row: loaded, widened, multiplied; in pieces of 4 bytes, or 8
THERE, BACK = "forward", "inverse"


def mma_instructions(plan: Plan, kernel: Kernel, ops: int) -> float:
    """Instructions of warps for one transform on the engine "mma".

    Two HMMA a 16x16x16 product, and what loads, scales, converts, multiplies by twiddles, exchanges and
    addresses: coefficients fitted for every 128 complex elements to the compiled code of 154 kernels of 256
    to 2**20 points on sm_80 and sm_90 (hot_path.py), of 100 more where nothing is scaled. They miss it by at
    most 10 % in a block's kernel, 7 % in a warp's and 8 % in a device stage's; a test holds them to that over
    the portfolio.
    """
    if kernel.role == "peaks":
        return peaks_instructions(plan)
    if kernel.role in ("columns", "columns_inverse"):
        each = _device_instructions(plan, kernel)
    elif plan.block_stage:
        each = _block_instructions(plan, kernel)
    else:
        each = _warp_instructions(plan, kernel)
    halved = sum(plan.stages[number - 1].halves for number in directions(plan, kernel))
    each += CONVERTED * _wide_sums(plan, kernel) + HALVED * halved + signs(plan, kernel)
    return 2 * ops + plan.transform / 128 * each


def _device_instructions(plan: Plan, kernel: Kernel) -> float:
    """A strip of columns: what is the same for all its rows weighs less where there are many, or where it
    stays in registers from one strip to the next.
    """
    pair, tiles, wide = not plan.real_input, plan.stages[0].radix / TILE, not plan.scaled
    held = kernel.role in steady(plan).twiddles
    sums = SUMS[plan.stages[0].butterflies]
    if kernel.role == "columns":
        wider = (20 - 12 / tiles) * wide
        peaks = (2 + 7 / tiles) * (plan.strip_peaks > 0)
        ahead = (1 + 9 / tiles) * (kernel.brought > 0)
        if sums:
            return 26.5 + sums + 36 / kernel.columns + peaks + ahead
        return (
            24 + 38 * pair + 47 / kernel.columns + (9 + 3 * pair) / tiles + peaks + ahead + wider - 1.2 * held
        )
    if sums:
        return 32 + sums + 19 / kernel.columns
    two = (15 + 12 / tiles) * pair
    return 16 + two + 60 / kernel.columns + 13 / tiles + 37 * wide - 3.5 * held


def _warp_instructions(plan: Plan, kernel: Kernel) -> float:
    """Transforms in a warp's registers: a row's scale costs the more the shorter it is, and results of 16
    columns are stored in pieces of half the width. Where nothing is scaled, products in fp32 outweigh both.
    """
    if not plan.scaled:
        return 121
    narrow = 11 * (plan.inner[1].radix == TILE)
    if kernel.role == "rows":
        return 64 + narrow
    each, scale = (72, 11) if plan.rows_per_item == 1 else (117, 60)
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
    few = plan.inner[0].butterflies
    tall = 33 * (plan.rows_per_item == 1 and plan.inner[0].radix > 64 and few == 1)
    signals = tensor * (24.5 - 22 / kernel.columns + 60.5 * (plan.rows_per_item - 1) + tall + 1.4 * SUMS[few])
    return 70 + signals + rescaling(plan) + 0.5 * (tiles - 3) + 73 / kernel.columns + idle + levels + second


def signs(plan: Plan, kernel: Kernel) -> float:
    """Instructions for 128 complex elements that make -im and the half of a matrix that its table leaves out,
    less those that would load them: four for a plane of a tile, or one.
    """
    tables = {t.name: t for t in plan.tables}

    def made(name: str) -> int:
        """Of a matrix, each tile of which is loaded once."""
        table = tables[name]
        stage, tiles = plan.stages[table.stage - 1], table.shape[0] * table.shape[1]
        whole = stage.halves or stage.butterflies > 1 or tiles == (stage.lines // TILE) ** 2
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


def rescaling(plan: Plan) -> float:
    """Instructions for 128 elements of a row of the workspace that bring its strips to the row's power."""
    return RESCALED + ratios_made(plan) if plan.strip_peaks else 0.0


def ratios_made(plan: Plan) -> float:
    """Those of them that find what strips are multiplied by."""
    return 16 / plan.kernel("columns").columns


def wmma_instructions(plan: Plan, kernel: Kernel, ops: int) -> float:
    found = passes(plan, kernel) * plan.transform * WMMA_PER_ELEMENT + WMMA_PER_PRODUCT * ops
    looked = plan.scaled and kernel.role in ("convolve", "peaks")
    return found + peaks_instructions(plan) if looked else found


def peaks_instructions(plan: Plan) -> float:
    """To look at rows for what they are scaled by."""
    return 24.0 * plan.rows_per_item * plan.transform / 128


def gating(plan: Plan, gates: int) -> float:
    """Instructions that take so many bytes of gates to signals and results (as compiled, sm_80 and sm_90)."""
    narrow = not plan.device_stages and (
        plan.body.columns == 2 if plan.block_stage else plan.factors[-1] == TILE
    )
    rows = gates / (2 * min(plan.problem.length, plan.transform))
    return rows * plan.transform / 128 * (NARROW_GATE if narrow else GATE)


def directions(plan: Plan, kernel: Kernel) -> dict[int, tuple[str, ...]]:
    """The stages (1-based) that a kernel carries out, and in which directions."""
    if kernel.role == "columns":
        return {kernel.stage: (THERE,)}
    if kernel.role == "columns_inverse":
        return {kernel.stage: (BACK,)}
    if kernel.role in ("convolve", "rows"):
        first = len(plan.device_stages) + 1
        return dict.fromkeys(range(first, plan.order + 1), (THERE, BACK))
    return {}


def passes(plan: Plan, kernel: Kernel) -> int:
    return sum(map(len, directions(plan, kernel).values()))

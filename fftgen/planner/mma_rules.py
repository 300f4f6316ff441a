"""What the "mma" engine can run, each predicate with its reason, and how a plan's stages use it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fftgen.planner.plan import BF16_FP32, HALF_TILE, SCALED, TILE, Kernel, Plan, Stage
from fftgen.planner.rules import Shape
from fftgen.targets import Target
from fftgen.targets import target as find_target

CAPABILITY = 80  # mma.m16n8k16, redux.sync and bf16 conversions: PTX ISA, from sm_80
AHEAD = 90  # cp.async.bulk.prefetch: PTX ISA, from sm_90
CHAIN_POINTS = 1024  # a warp takes so many points through the register chain at a time
WARP_POINTS = 2048  # and so many where a whole transform fits it, at the cost of resident warps
CHAIN_COLUMNS = (16, 32, 64)  # of the last stage: pieces of 32 columns come out 16 bytes wide
FORMATS = (SCALED, BF16_FP32)  # the first one is the planner's choice: faster and more exact
# Times longer than predicted, at a guess, where a block finds too few registers for its columns: some dozens
# of bytes cost nothing that could be measured (H200, results/), a hundred are a tenth of what its pipe does.
SPILLS, SPILLS_MANY = 1.03, 1.1
OPERANDS = 64  # registers that the operands of a warp's strips may take
# Tiles of the first stage's columns that butterflies bring together, by where these are.
BUTTERFLIED = {"device": (3, 4, 5, 8), "block": (3, 5), "warp": ()}
RUN = 32  # columns that a warp stores in one piece: the low level of twiddles holds whole ones


def supports(target: Target) -> str | None:
    """The instructions that the engine is made of."""
    if target.capability < CAPABILITY:
        return f"{target.name} lacks mma.m16n8k16 and redux.sync (first on sm_{CAPABILITY})"
    return None


def serves(compute_format: str, dtype: str) -> str | None:
    """What a compute format can be for."""
    if compute_format not in FORMATS:
        return f"the mma engine computes in {' or '.join(FORMATS)}, not in {compute_format}"
    if compute_format == BF16_FP32 and dtype != "bf16":
        return f"bf16 operands would drop bits of {dtype} tensors: {SCALED} keeps them"
    return None


def shape_is_legal(shape: Shape) -> str | None:
    """What the register chain and the outer stage can run."""
    if shape.device > 1:
        return "the mma engine has one device stage: rows of the workspace hold the rest"
    if len(shape.inner) not in (2, 3):
        return f"{len(shape.inner)} stages inside one kernel: two or three fit the template"
    rows, columns = shape.inner[-2:]
    short = [radix for radix in shape.factors if radix % TILE]
    if short and (short != [HALF_TILE] or shape.factors[0] != HALF_TILE or len(shape.inner) != 3):
        return f"radix {short[0]} fills no tile: half of one may be the first of three stages in a block"
    if columns not in CHAIN_COLUMNS:
        return f"{columns} columns of the last stage: the register chain stores 16, 32 or 64"
    most = WARP_POINTS if len(shape.factors) == 2 else CHAIN_POINTS
    if rows * columns > most:
        return f"a tile of {rows}x{columns} exceeds the {most} points of a register chain"
    return None


def goes_abreast(compute_format: str) -> str | None:
    """What two channels abreast can be: rows scaled by powers of two of their own."""
    return None if compute_format == SCALED else f"channels go abreast in {SCALED} only"


def with_splits(stages: tuple[Stage, ...], device: int) -> tuple[Stage, ...]:
    """The stages with the splits of their twiddles: one level inside a kernel; of a device stage two, both
    small, whole strips in the low one."""
    found = [replace(s, split=s.rest if s.rest > 1 else 0) for s in stages]
    if device:
        split = 256
        while stages[0].rest % split:
            split //= 2
        found[0] = replace(stages[0], split=split)
    return tuple(found)


def with_halves(stages: tuple[Stage, ...], right_angle: bool) -> tuple[Stage, ...]:
    """The stages in scaled fp16, those of the chain by halves where they may be.

    A complex DFT of 32 points then takes 32 matrix instructions and as many sums for 1024 numbers instead of
    64, and half of the tables; on the way back, where both halves of the result share what even frequencies
    bring, 48 (in a block: Plan.halves_back). What it costs is a rounding more. Sums of two numbers are at
    most sqrt(2) times the norm of all: fp16 holds them where it holds products (scaled.cuh). The first stage
    of a right-angle transform has weights that no sum of real numbers can carry.
    """
    chain = max(int(right_angle), len(stages) - 2)
    return tuple(replace(s, halves=i >= chain and s.radix % (2 * TILE) == 0) for i, s in enumerate(stages))


def with_butterflies(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages of a causal transform in scaled fp16: the first by butterflies, where it is of columns.

    Of the products of radix 128 that leaves one of 6 there and one of 8 back, of its matrices a sixth and a
    quarter, of all instructions four fifths (as compiled); of radix 64 a third and a quarter, a third and
    half, and as many. It costs a rounding for each of log2(B) sums, where running sums of products have as
    many (``Plan.wide_columns``) but for radix 128, which has them in fp32: 1.02e-3 instead of 0.93e-3 of fp16
    rows of 4 194 304 points. Folds and pairs, which show more noise than their own, have none to spare
    (1.25e-3 instead of 1.1e-3 for the former). Radix 32 would trade a third of its products for as many sums;
    blocks of radix 64 would come to what they take by 32 (by the model).
    """
    first = stages[0]
    tiles, odd = divmod(first.radix, TILE)
    if odd or tiles not in BUTTERFLIED[first.place]:
        return stages
    return (replace(first, butterflies=tiles), *stages[1:])


def outer_split(stage: Stage, body: Kernel, target: Target, exact: bool) -> int:
    """Columns of the low level of a block stage's twiddles: two levels where one would not stay in the L1.

    One level comes to 8 bytes a point of the transform, there and back, and passes the L1 for every transform
    together with a spectrum of half that size. Where both find no room beside the shared memory of the
    resident blocks, what a block reads beside its signals would come from the L2 again and again. ``exact``:
    the second rounding of two levels is not to be had (pairs of fp16 rows: 1.27e-3 where 1.24e-3 is allowed).
    """
    return stage.rest if exact or one_level_fits(stage, body, target) else two_levels(body)


def one_level_fits(stage: Stage, kernel: Kernel, target: Target) -> bool:
    """Whether the L1 has room for one level beside the resident blocks of a kernel, and for a spectrum."""
    one = 2 * 4 * stage.radix * stage.rest
    return one + 4 * stage.lines * stage.rest <= target.l1_beside(kernel.resident, kernel.shared_bytes)


def two_levels(body: Kernel) -> int:
    """The split of outer twiddles in two levels: whole strips of columns, and whole pieces of results."""
    return max(RUN, 8 * body.columns)


def spilling(plan: Plan) -> float:
    """How much longer a block takes whose complex columns find too few registers (as compiled, sm_80, sm_90).

    With all operands that rules allow 4 to 64 bytes are put by, none with radix 16 in strips of less than 8
    columns. With radix 48 and more in two strips it is 56 to 140 bytes, but for pairs in a block's own
    transform with radix 48, which find a place.
    """
    body = plan.body
    if not plan.block_stage or (plan.real_input and body.role == "convolve"):
        return 1.0
    stage = plan.inner[0]
    strips = stage.rest // (8 * body.columns * body.warps)
    if strips > 1 and stage.lines >= (48 if body.role == "rows" else 64):
        return SPILLS_MANY
    full = operands(strips, stage.lines, body.columns, False) == OPERANDS
    return SPILLS if full and (stage.lines > TILE or body.columns == 8) else 1.0


def operands(strips: int, radix: int, width: int, real: bool) -> int:
    """Registers that the operands of a warp's strips take."""
    return strips * (radix // TILE) * width * 2 * (1 if real else 2)


def tight(plan: Plan) -> bool:
    """Whether a warp's transforms take every register, and a loop's end known early would spill.

    Hiding it (mma.cuh: unforeseen) costs elsewhere: pairs of 2048 points take 3 instructions more (of 212).
    """
    return not plan.device_stages and not plan.real_input and plan.transform == CHAIN_POINTS


class Steady(NamedTuple):
    """What a warp keeps in registers from one strip of columns to the next.

    Roles of kernels of the device stage that keep low twiddles, and their matrix; whether real columns inside
    a block keep theirs on the way back.
    """

    twiddles: frozenset[str]
    matrices: frozenset[str]
    columns: bool


def steady(plan: Plan) -> Steady:
    """Where registers have room for low twiddles, which strips share whose numbers differ by whole tables of
    them, and for the matrix (as compiled). What is not held passes the L1 for every strip, twice the bytes of
    its signals.
    """
    columns = plan.block_stage and plan.real_input and plan.inner[0].radix <= 2 * TILE
    if not plan.device_stages:
        return Steady(frozenset(), frozenset(), columns)
    radix, split, width = plan.stages[0].radix, plan.stages[0].split, plan.kernel("columns").columns
    few = width >= 4 and radix * width <= (128 if plan.real_input else 64)  # a quarter of them in registers
    around = [k for k in plan.every_kernel if k.role in ("columns", "columns_inverse", "whole")]
    twiddles = {k.role for k in around if few and k.warps % (split // (8 * width)) == 0}
    matrices = {"whole"} if radix == TILE and plan.real_input else set[str]()
    return Steady(frozenset(twiddles), frozenset(matrices), columns=False)


def ahead(plan: Plan) -> bool:
    """Whether a transform has the L2 bring the next one's signals while it computes.

    Measured on an H200 (results/): 8 % of the time of causal blocks, 10 % of 2048 points in a warp; shorter
    ones have other warps to wait for, and what pairs read ahead pushes other rows out of the L2.
    """
    if plan.device_stages or not _brings(plan):
        return False
    return plan.memory_class == "block" or plan.transform > CHAIN_POINTS


def whole_ahead(plan: Plan) -> bool:
    """Whether the launch that does all stages has the L2 bring what it reads next (``ahead``): where a
    multiprocessor has one block, and nothing else to do while that waits."""
    return plan.whole is not None and plan.whole.row == plan.stages[0].radix and _brings(plan)


def _brings(plan: Plan) -> bool:
    """Whether the chip can, and rows do not share a transform."""
    chip = find_target(plan.target)
    return plan.real_input and chip.capability >= AHEAD and not chip.virtual

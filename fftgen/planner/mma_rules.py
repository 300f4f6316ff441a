"""Legality and layout of the "mma" engine's kernels: each predicate returns its reason, or the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fftgen.planner import fragments
from fftgen.planner.plan import BF16_FP32, HALF_TILE, SCALED, TILE, Kernel, Plan, Stage
from fftgen.planner.rules import Shape, peaks_kernel
from fftgen.targets import Target
from fftgen.targets import target as find_target

CAPABILITY = 80  # mma.m16n8k16, redux.sync and bf16 conversions: PTX ISA, from sm_80
AHEAD = 90  # cp.async.bulk.prefetch: PTX ISA, from sm_90
CHAIN_POINTS = 1024  # a warp takes so many points through the register chain at a time
WARP_POINTS = 2048  # and so many where a whole transform fits it, at the cost of resident warps
CHAIN_COLUMNS = (16, 32, 64)  # of the last stage: pieces of 32 columns come out 16 bytes wide
WARPS = (16, 8, 4, 2, 1)
WIDTHS = (8, 4, 2)  # columns of a thread in the outer stage: loads of 16, 8 or 4 bytes
FORMATS = (SCALED, BF16_FP32)  # the first one is the planner's choice: faster and more exact
REGISTERS = {SCALED: 128, BF16_FP32: 168}  # of a thread: 16 or 12 warps of a multiprocessor share its 65536
# Times longer than predicted, at a guess, where a block finds too few registers for its columns: some dozens
# of bytes cost nothing that could be measured (H200, results/), a hundred are a tenth of what its pipe does.
SPILLS, SPILLS_MANY = 1.03, 1.1
OPERANDS = 64  # registers that the operands of a warp's strips may take
MOST_HELD = 160  # radix times width: a thread holds a quarter of it in fp32 until the peak is known
RUN = 32  # columns that a warp stores in one piece: the low level of twiddles holds whole ones
STRIPS = 32  # of a row: a lane reads the peak of one


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


def _group(points: int, rows: int) -> int:
    """Rows that a warp takes at a time: as many as share its tables and fit its registers."""
    return next(g for g in (4, 2, 1) if g * points <= CHAIN_POINTS and rows % g == 0)


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


def kernels(
    stages: tuple[Stage, ...], device: int, real: bool, target: Target, compute_format: str = SCALED
) -> Iterator[tuple[Kernel, ...] | str]:
    """Layouts of the kernels of a transform, and reasons against others."""
    around: tuple[Kernel, ...] | None = None
    own = 0
    if device:
        found = _device_kernels(stages[0], real, target, compute_format)
        if isinstance(found, str):
            yield found
            return
        scaled = compute_format == SCALED
        # Strips of columns are scaled each by its own peak where a block can bring them to that of their row.
        own = found[0].columns if scaled and real and len(stages) - device == 3 else 0
        around = (peaks_kernel(target), *found) if scaled and not own else found
    inner = stages[device:]
    role = "rows" if device else "convolve"
    if len(inner) == 2:
        bodies = _warp_kernels(role, inner, real, target, compute_format)
    else:
        bodies = (
            _block_kernel(role, inner, real, width, warps, target, compute_format, own)
            for width in WIDTHS
            for warps in WARPS
        )
    for body in bodies:
        if isinstance(body, str):
            yield body
        elif around is None:
            yield (body,)
        else:
            yield (*around[:-1], body, around[-1])


def _device_kernels(
    stage: Stage, real: bool, target: Target, compute_format: str
) -> tuple[Kernel, Kernel] | str:
    """Columns of the tensor into the workspace and back: a strip to a warp, all rows in its registers."""
    for width in WIDTHS[1:]:
        held = stage.radix * width // 4  # fp32 numbers, and registers of a complex strip's operands
        if held * (1 if real else 2) <= 64 and held <= 64:
            break
    else:
        return f"columns of radix {stage.radix} in device memory take too many registers"
    if stage.split % (8 * width):
        return f"twiddles split at {stage.split} do not hold whole strips of {8 * width} columns"
    warps = 8
    pieces = stage.radix * 8 * width * 2 // 8  # of a warp's copy of an unaligned strip and its gates
    short = stage.radix == TILE and compute_format == SCALED
    resident = max(1, min(4 if short else 2, target.resident_blocks(warps, 16 * pieces * warps)))
    inward = Kernel("columns", 1, warps, warps, resident, 0, 0, pieces, -1, -1, 16 * pieces * warps, width)
    # Registers of 12 warps for a strip that is multiplied in fp32 on its way in, and for the longest
    # columns; of 32 or 20 for short ones, of a row or a pair. None spills (as compiled, sm_80 to sm_120).
    if compute_format == BF16_FP32 or (stage.radix >= 128 and target.capability < 90):
        outward = Kernel("columns_inverse", 1, 4, 4, 3, 0, 0, 0, -1, -1, 0, width)
    elif short:
        outward = Kernel("columns_inverse", 1, 4, 4, 8 if real else 5, 0, 0, 0, -1, -1, 0, width)
    else:
        outward = Kernel("columns_inverse", 1, warps, warps, 2, 0, 0, 0, -1, -1, 0, width)
    if inward.shared_bytes > target.shared_block:
        return _too_large(inward.shared_bytes, warps, target)
    return inward, outward


def _warp_kernels(
    role: str, stages: tuple[Stage, ...], right_angle: bool, target: Target, compute_format: str
) -> Iterator[Kernel | str]:
    """Every number of warps; with rows on their way where about as many are resident as anywhere.

    About: blocks of one warp leave less room over, for one warp more or two.
    """
    warps = (8, 12, 6, 4, 2, 1)
    found = [_warp_kernel(role, stages, right_angle, count, target, compute_format) for count in warps]
    most = max((k.warps * k.resident for k in found if isinstance(k, Kernel)), default=0)
    for kernel in found:
        if isinstance(kernel, str) or role == "rows" or kernel.warps * kernel.resident < 0.9 * most:
            yield kernel
        else:
            yield with_brought(kernel, 1 if right_angle else 2, target)


def _warp_kernel(
    role: str, stages: tuple[Stage, ...], right_angle: bool, warps: int, target: Target, compute_format: str
) -> Kernel | str:
    """Each warp takes ``group`` transforms at a time through registers; shared memory turns them round."""
    real = right_angle and role == "convolve"
    points = stages[0].radix * stages[1].radix
    rows = 1 if real else 2  # that make up a transform, or planes of a row of the workspace
    group = next(g for g in (4, 2, 1) if g == 1 or g * points * rows <= CHAIN_POINTS)
    tables = fragments.shared_bytes(stages, real, 0)
    plane = group * points * _copies(rows, group)
    own = 2 * rows * warps * plane
    kept = _kept_bytes(role, rows, warps, group, compute_format)
    tables_at = own + kept
    shared = tables_at + tables
    if shared > target.shared_block:
        return _too_large(shared, warps, target)
    registers = _warp_registers(role, points, right_angle, compute_format)
    if 32 * warps * registers > target.registers_sm:
        return _too_many(warps, registers, target)
    resident = max(1, target.resident_blocks(warps, shared, registers))
    scales_at = own if kept else -1
    return Kernel(
        role, 0, warps, warps * group, resident, 0, 0, plane, scales_at, tables_at, shared, group=group
    )


def _kept_bytes(role: str, rows: int, warps: int, group: int, compute_format: str) -> int:
    """Shared memory for what undoes the scaling of the pairs that a warp takes at a time: 8 bytes each.

    Two pairs of 256 points need all of 80 registers, and spilled 12 bytes. Where their rows are on their
    way, at most 4 were (sm_100), and a transform would take up to 3 instructions more (of 280).
    """
    several = role == "convolve" and rows == 2 and group > 1 and compute_format == SCALED
    return 8 * warps * group if several else 0


def _copies(rows: int, group: int) -> int:
    """How many of its places a warp has where no rows are brought: an unaligned one and its gate fit two."""
    return 2 if rows * group == 1 else 1


def with_brought(kernel: Kernel, rows: int, target: Target, outputs: int = 1) -> Kernel:
    """A warp's kernel that has rows of tensors on their way while it computes: of as many tensors as fit.

    cp.async (PTX ISA, from sm_80) writes them to shared memory beside the registers. A warp that asks for its
    signals when it needs them waits for the memory, and so do all others that started with it: their times
    add up (256 points on an H200, results/: 24 us of bytes and 17 of issue slots took 52). No resident warp
    is given up for it. ``kernel``: without any; ``rows``: of a tensor in a transform; ``outputs``: results,
    each with a gate.
    """
    tables = kernel.shared_bytes - kernel.matrices_at
    plane = kernel.plane // _copies(rows, kernel.group)
    own = 2 * rows * kernel.warps * plane  # bytes of a tensor's rows that a block takes at a time
    at = own + tables  # an unaligned row is copied to where it would have been brought
    for tensors in (2 + outputs, 2):
        shared = at + own * tensors
        if target.resident_blocks(kernel.warps, shared) >= kernel.resident:
            return replace(
                kernel,
                plane=plane,
                staging_at=-1,
                matrices_at=own,
                shared_bytes=shared,
                brought=tensors,
                brought_at=at,
            )
    return kernel


def without_brought(kernel: Kernel, plan: Plan) -> Kernel:
    """The same that asks for rows when it needs them."""
    if not kernel.brought:
        return kernel
    rows = plan.rows_per_item
    tables = kernel.brought_at - kernel.matrices_at
    plane = kernel.plane * _copies(rows, kernel.group)
    own = 2 * rows * kernel.warps * plane
    kept = _kept_bytes(kernel.role, rows, kernel.warps, kernel.group, plan.compute_format)
    return replace(
        kernel,
        plane=plane,
        staging_at=own if kept else -1,
        matrices_at=own + kept,
        shared_bytes=own + kept + tables,
        brought=0,
        brought_at=0,
    )


def waiting(plan: Plan) -> Plan:
    """The plan with a body that asks for rows when it needs them."""
    body = without_brought(plan.body, plan)
    return replace(plan, kernels=tuple(body if k == plan.body else k for k in plan.kernels))


def _warp_registers(role: str, points: int, right_angle: bool, compute_format: str) -> int:
    """Registers of a thread whose warp holds a transform: with those it hardly spills (as compiled).

    A few spilled registers cost nothing that could be measured, and more warps take less time (H200,
    results/): 1024 points a tenth with 16 instead of 12, pairs of 256 points a sixth with 24 instead of 16.
    """
    if points > CHAIN_POINTS:
        return 168 if compute_format == SCALED else 255
    small = 4 * points <= CHAIN_POINTS and not right_angle and role == "convolve"
    return 80 if small and compute_format == SCALED else REGISTERS[compute_format]


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


def _block_kernel(
    role: str,
    stages: tuple[Stage, ...],
    right_angle: bool,
    width: int,
    warps: int,
    target: Target,
    compute_format: str,
    own: int,
) -> Kernel | str:
    """A block takes one transform: columns, exchange, rows in registers, exchange, columns.

    ``own``: columns to a thread of the strips of the workspace, where each is scaled by its own peak, or 0.
    """
    real = right_angle and role == "convolve"
    radix, rest = stages[0].lines, stages[0].rest
    strips = rest // (8 * width)
    if strips % warps:
        return f"{strips} strips of {8 * width} columns do not go round {warps} warps"
    if strips > STRIPS:
        return f"{strips} strips of {8 * width} columns exceed the {STRIPS} lanes that compare their peaks"
    if radix * width > MOST_HELD:
        return (
            f"columns of radix {radix}, {width} to a thread, hold {radix * width // 4} numbers until scaled"
        )
    registers = REGISTERS[compute_format]
    if real and compute_format == SCALED and target.capability >= 90 and all(s.lines == TILE for s in stages):
        registers = 96  # five blocks of four warps instead of four: nothing spills, latencies hide better
    if 32 * warps * registers > target.registers_sm:
        return _too_many(warps, registers, target)
    held = operands(strips // warps, radix, width, real)
    if held > OPERANDS:
        return f"columns of radix {radix} on {warps} warps take {held} registers of {OPERANDS}"
    group = _group(stages[1].radix * stages[2].radix, radix)
    points = radix * rest
    peaks_at, tables_at = -1, 4 * points
    if own:
        peaks_at = 4 * points
        tables_at = -(-(peaks_at + ratio_bytes(stages[0], own)) // fragments.ALIGNMENT) * fragments.ALIGNMENT
    elif compute_format == SCALED:
        # Strips of two rows, then what undoes the scaling of the rows; tables stay on 512 bytes.
        # Of channels abreast those of each.
        several = 1 if real else stages[0].lines // stages[0].radix
        peaks_at, tables_at = 4 * points, 4 * points + several * 2 * 2 * 4 * STRIPS
    shared = tables_at + fragments.shared_bytes(stages, real, width)
    if shared > target.shared_block:
        return _too_large(shared, warps, target)
    return Kernel(
        role,
        0,
        warps,
        1,
        max(1, target.resident_blocks(warps, shared, registers)),
        rest // 8,
        0,
        points,
        peaks_at,
        tables_at,
        shared,
        width,
        group,
    )


def ratio_pitch(stage: Stage, width: int) -> int:
    """32-bit words from what brings two rows' strips to the power of a transform to that of the next two.

    ``stage``: of the block; strips of 8 ``width`` columns in device memory. Threads that read four such rows
    find them in banks of their own.
    """
    strips = stage.rest // (8 * width)
    return strips + 4 if strips % 16 == 0 else strips


def ratio_bytes(stage: Stage, width: int) -> int:
    """Shared memory for all of them."""
    return 4 * ratio_pitch(stage, width) * (stage.radix // 2)


def _too_many(warps: int, registers: int, target: Target) -> str:
    return f"{warps} warps of {registers} registers a thread exceed the {target.registers_sm} there are"


def _too_large(shared: int, warps: int, target: Target) -> str:
    return (
        f"{shared} bytes of shared memory with {warps} warps exceed the {target.shared_block} "
        f"that a block has on {target.name}"
    )

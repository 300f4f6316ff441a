"""Layouts of the "mma" engine's kernels: warps, shared memory, resident blocks; or why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fftgen.planner import fragments
from fftgen.planner.mma_rules import CHAIN_POINTS, OPERANDS, operands
from fftgen.planner.plan import BF16_FP32, SCALED, TILE, Kernel, Plan, Stage
from fftgen.planner.rules import peaks_kernel
from fftgen.targets import Target

WARPS = (16, 8, 4, 2, 1)
WIDTHS = (8, 4, 2)  # columns of a thread in the outer stage: loads of 16, 8 or 4 bytes
REGISTERS = {SCALED: 128, BF16_FP32: 168}  # of a thread: 16 or 12 warps of a multiprocessor share its 65536
MOST_HELD = 160  # radix times width: a thread holds a quarter of it in fp32 until the peak is known
STRIPS = 32  # of a row: a lane reads the peak of one
BROUGHT_WIDTH = 4  # columns of a thread whose strips may be on their way: 64 bytes of a row


def kernels(
    stages: tuple[Stage, ...],
    device: int,
    real: bool,
    target: Target,
    compute_format: str = SCALED,
    sides: int = 1,
) -> Iterator[tuple[Kernel, ...] | str]:
    """Layouts of the kernels of a transform, and reasons against others. ``sides``: transforms whose columns
    the warps of a block share on their way back."""
    around: tuple[Kernel, ...] | None = None
    own = 0
    if device:
        scaled = compute_format == SCALED
        # Strips of columns are scaled each by its own peak where a block can bring them to that of their row.
        by_strips = scaled and real and len(stages) - device == 3
        found = _device_kernels(stages[0], real, target, compute_format, by_strips)
        if isinstance(found, str):
            yield found
            return
        own = found[0].columns if by_strips else 0
        around = (peaks_kernel(target), *found) if scaled and not own else found
    inner = stages[device:]
    role = "rows" if device else "convolve"
    if len(inner) == 2:
        bodies = _warp_kernels(role, inner, real, target, compute_format)
    else:
        bodies = (
            _block_kernel(role, inner, real, width, warps, target, compute_format, own, sides)
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
    stage: Stage, real: bool, target: Target, compute_format: str, by_strips: bool
) -> tuple[Kernel, Kernel] | str:
    """Columns of the tensor into the workspace and back: a strip to a warp, all rows in its registers.

    ``by_strips``: each scaled by its own peak; a warp then has its next one on its way while it computes.
    """
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
    # Short ones have twice the warps to hide the wait, and addresses would be a sixth of their instructions.
    if by_strips and width == BROUGHT_WIDTH and not short:
        inward = replace(inward, brought=2)
    # Registers of 12 warps for a strip that is multiplied in fp32 on its way in, and for the longest
    # columns; of 32 or 20 for short ones, of a row or a pair. None spills (as compiled, sm_80 to sm_120).
    if compute_format == BF16_FP32 or (stage.radix >= 128 and target.capability < 90):
        outward = Kernel("columns_inverse", 1, 4, 4, 3, 0, 0, 0, -1, -1, 0, width)
    elif short:
        outward = Kernel("columns_inverse", 1, 4, 4, 8 if real else 5, 0, 0, 0, -1, -1, 0, width)
    else:
        outward = Kernel("columns_inverse", 1, warps, warps, 2, 0, 0, 0, -1, -1, 0, width)
    outward = with_gates(outward, stage.radix, 1 if real else 2, target)
    if inward.shared_bytes > target.shared_block:
        return _too_large(inward.shared_bytes, warps, target)
    return inward, outward


def with_gates(kernel: Kernel, radix: int, rows: int, target: Target, outputs: int = 1) -> Kernel:
    """Columns on their way back that have the gates of their results on their way, too, from before they are
    asked for themselves: where the L1 keeps half of its room.

    As they stood they were asked for with each row tile: of a strip radix / 16 waits for device memory, one
    after another, of which matrix instructions hide a fifth. ``rows``: of a tensor in a transform.
    """
    pieces = gate_pieces(radix, kernel.columns, rows, outputs)
    shared = 16 * pieces * kernel.warps
    if kernel.resident * shared > target.shared_sm // 2:
        return replace(kernel, plane=0, shared_bytes=0, brought=0)
    return replace(kernel, plane=pieces, shared_bytes=shared, brought=outputs)


def gate_pieces(radix: int, width: int, rows: int, outputs: int) -> int:
    """Pieces of 16 bytes that a warp's strip has of the gates of its results."""
    return radix * width * rows * outputs


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


def _warp_registers(role: str, points: int, right_angle: bool, compute_format: str) -> int:
    """Registers of a thread whose warp holds a transform: with those it hardly spills (as compiled).

    A few spilled registers cost nothing that could be measured, and more warps take less time (H200,
    results/): 1024 points a tenth with 16 instead of 12, pairs of 256 points a sixth with 24 instead of 16.
    """
    if points > CHAIN_POINTS:
        return 168 if compute_format == SCALED else 255
    small = 4 * points <= CHAIN_POINTS and not right_angle and role == "convolve"
    return 80 if small and compute_format == SCALED else REGISTERS[compute_format]


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
    """The plan with a body that asks for rows, and columns that ask for strips, when they need them."""

    def asking(kernel: Kernel) -> Kernel:
        if kernel == plan.body:
            return without_brought(kernel, plan)
        return replace(kernel, brought=0) if kernel.role == "columns" else kernel

    return replace(plan, kernels=tuple(map(asking, plan.kernels)))


def _block_kernel(
    role: str,
    stages: tuple[Stage, ...],
    right_angle: bool,
    width: int,
    warps: int,
    target: Target,
    compute_format: str,
    own: int,
    sides: int,
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
    groups = sides * rest // 32
    if stages[0].butterflies > 1 and groups < warps:
        return f"{groups} groups of 32 columns whose row tiles are made together keep no {warps} warps busy"
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


def _group(points: int, rows: int) -> int:
    """Rows that a warp takes at a time: as many as share its tables and fit its registers."""
    return next(g for g in (4, 2, 1) if g * points <= CHAIN_POINTS and rows % g == 0)


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

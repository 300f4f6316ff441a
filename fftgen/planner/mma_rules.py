"""Legality and layout of the "mma" engine's kernels: each predicate returns its reason, or the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from fftgen.planner import fragments
from fftgen.planner.plan import TILE, Kernel, Stage
from fftgen.planner.rules import Shape
from fftgen.targets import Target

CAPABILITY = 80  # mma.m16n8k16, redux.sync and bf16 conversions: PTX ISA, from sm_80
CHAIN_POINTS = 1024  # a warp takes so many points through the register chain at a time
CHAIN_COLUMNS = (16, 32, 64)  # of the last stage: pieces of 32 columns come out 16 bytes wide
WARPS = (16, 8, 4, 2, 1)
WIDTHS = (8, 4, 2)  # columns of a thread in the outer stage: loads of 16, 8 or 4 bytes
REGISTERS = 128
OPERANDS = 64  # registers that the operands of a warp's strips may take
MOST_HELD = 160  # radix times width: a thread holds a quarter of it in fp32 until the peak is known
STRIPS = 32  # of a row: a lane reads the peak of one


def supports(target: Target) -> str | None:
    """The instructions that the engine is made of."""
    if target.capability < CAPABILITY:
        return f"{target.name} lacks mma.m16n8k16 and redux.sync (first on sm_{CAPABILITY})"
    return None


def shape_is_legal(shape: Shape, fold: bool) -> str | None:
    """What the register chain and the outer stage can run."""
    if shape.device or fold:
        return "the mma engine runs what one kernel finishes, unfolded"
    if len(shape.inner) not in (2, 3):
        return f"{len(shape.inner)} stages inside one kernel: two or three fit the template"
    rows, columns = shape.inner[-2:]
    if columns not in CHAIN_COLUMNS:
        return f"{columns} columns of the last stage: the register chain stores 16, 32 or 64"
    if rows * columns > CHAIN_POINTS:
        return f"a tile of {rows}x{columns} exceeds the {CHAIN_POINTS} points of a register chain"
    return None


def _group(points: int, rows: int) -> int:
    """Rows that a warp takes at a time: as many as share its tables and fit its registers."""
    return next(g for g in (4, 2, 1) if g * points <= CHAIN_POINTS and rows % g == 0)


def _resident(shared: int, warps: int, target: Target) -> int:
    by_shared = target.shared_sm // (shared + target.shared_reserved)
    by_registers = target.registers_sm // (32 * warps * REGISTERS)
    return max(1, min(by_shared, by_registers, target.blocks_sm, target.warps_sm // warps))


def kernels(stages: tuple[Stage, ...], real: bool, target: Target) -> Iterator[Kernel | str]:
    """Layouts of the one kernel of a transform, and reasons against others."""
    if len(stages) == 2:
        yield from (_warp_kernel(stages, real, warps, target) for warps in WARPS[1:])
    else:
        for width in WIDTHS:
            yield from (_block_kernel(stages, real, width, warps, target) for warps in WARPS)


def _warp_kernel(stages: tuple[Stage, ...], real: bool, warps: int, target: Target) -> Kernel | str:
    """Each warp takes ``group`` transforms at a time through registers; shared memory turns them round."""
    points = stages[0].radix * stages[1].radix
    group = next(g for g in (4, 2, 1) if g == 1 or g * points * (1 if real else 2) <= CHAIN_POINTS)
    plane = group * points
    if group == 1:
        plane = 2 * points  # room for a copy of an unaligned row and of its gate
    tables_at = warps * plane * (2 if real else 4)
    shared = tables_at + fragments.shared_bytes(stages, real, 0)
    if shared > target.shared_block:
        return _too_large(shared, warps, target)
    resident = _resident(shared, warps, target)
    return Kernel(
        "convolve", 0, warps, warps * group, resident, 0, 0, plane, -1, tables_at, shared, group=group
    )


def _block_kernel(
    stages: tuple[Stage, ...], real: bool, width: int, warps: int, target: Target
) -> Kernel | str:
    """A block takes one transform: columns, exchange, rows in registers, exchange, columns."""
    radix, rest = stages[0].radix, stages[0].rest
    strips = rest // (8 * width)
    if strips % warps:
        return f"{strips} strips of {8 * width} columns do not go round {warps} warps"
    if strips > STRIPS:
        return f"{strips} strips of {8 * width} columns exceed the {STRIPS} lanes that compare their peaks"
    if radix * width > MOST_HELD:
        return (
            f"columns of radix {radix}, {width} to a thread, hold {radix * width // 4} numbers until scaled"
        )
    operands = strips // warps * (radix // TILE) * width * 2 * (1 if real else 2)
    if operands > OPERANDS:
        return f"columns of radix {radix} on {warps} warps take {operands} registers of {OPERANDS}"
    group = _group(stages[1].radix * stages[2].radix, radix)
    points = radix * rest
    peaks_at = 4 * points
    tables_at = peaks_at + 2 * 2 * 4 * STRIPS  # two rows of two transforms
    shared = tables_at + fragments.shared_bytes(stages, real, width)
    if shared > target.shared_block:
        return _too_large(shared, warps, target)
    return Kernel(
        "convolve",
        0,
        warps,
        1,
        _resident(shared, warps, target),
        rest // 8,
        0,
        points,
        peaks_at,
        tables_at,
        shared,
        width,
        group,
    )


def _too_large(shared: int, warps: int, target: Target) -> str:
    return (
        f"{shared} bytes of shared memory with {warps} warps exceed the {target.shared_block} "
        f"that a block has on {target.name}"
    )

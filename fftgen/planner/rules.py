"""Legality: predicates over a candidate, each returning its reason or None, and the shared-memory layout."""

from __future__ import annotations

from dataclasses import dataclass

from fftgen.dtypes import dtype
from fftgen.planner.plan import TILE, Kernel, Stage
from fftgen.planner.tables import matrix_bytes, spread_pitch
from fftgen.targets import Target

# A warp converts one 16x16 accumulator pair at a time: two fp32 planes with rows 24 floats apart. Rows of
# an fp32 fragment start on 32 bytes; an odd multiple of that leaves a conflict of two rows, the least.
STAGING_PITCH = 24
STAGING_BYTES = 2 * TILE * STAGING_PITCH * 4
COLUMN_PITCH = TILE
MATRICES_SHARED_BYTES = 48 * 1024
MAX_TILE = 4096  # elements of a tile that one warp owns
MAX_WARP_RADIX = 96  # a warp holds the operands of one row or column strip in registers
WARPS = (8, 4, 2, 1)
REGISTERS = 128  # what a thread may use before residency is given up for it
CHUNK_LIMIT = 64 * 1024 * 1024  # bytes of a workspace, which has an L2's worth below that
PEAK_WARPS, PEAK_COUNT = 8, 16_384  # threads of a block of the peaks kernel, and the numbers they look at


@dataclass(frozen=True)
class Shape:
    """A candidate before its shared memory is laid out: the radices and how many stages are device stages."""

    factors: tuple[int, ...]
    device: int

    @property
    def inner(self) -> tuple[int, ...]:
        return self.factors[self.device :]


def supports_dtype(name: str, target: Target) -> str | None:
    """The matrix units of the target must take the operand type."""
    kind = dtype(name)
    if target.capability < kind.capability:
        return (
            f"{target.name} has no {kind.name} matrix instruction (first on sm_{kind.capability}): "
            "use fp16 there"
        )
    return None


def shape_is_legal(shape: Shape) -> str | None:
    """One kernel finishes two or three inner stages; a warp owns a tile of a bounded size."""
    if any(radix % TILE for radix in shape.factors):
        return f"a radix below {TILE}: of the mma engine alone, which takes two channels abreast"
    if len(shape.inner) not in (2, 3):
        return f"{len(shape.inner)} stages inside one kernel: two or three fit the template"
    rows, columns = shape.inner[-2:]
    if rows * columns > MAX_TILE:
        return f"a tile of {rows}x{columns} exceeds the {MAX_TILE} elements that one warp owns"
    if max(rows, columns) > MAX_WARP_RADIX:
        return f"radix {max(rows, columns)} inside a warp exceeds {MAX_WARP_RADIX}: its operands would spill"
    return None


def _matrices(radices: tuple[tuple[int, float, bool], ...]) -> int:
    return sum(matrix_bytes(radix) for radix, _, _ in sorted(set(radices)))


def peaks_kernel(target: Target) -> Kernel:
    """Before a device stage: what its rows are scaled by."""
    resident = min(8, target.warps_sm // PEAK_WARPS)
    return Kernel("peaks", 0, PEAK_WARPS, 1, resident, 0, 0, PEAK_COUNT, -1, -1, 0)


def inner_kernel(
    role: str, stages: tuple[Stage, ...], weighted: bool, warps: int, target: Target
) -> Kernel | str:
    """Lay out shared memory of the kernel that runs the inner stages; a reason when it does not fit."""
    rows, columns = stages[-2].radix, stages[-1].radix
    block = stages[0].radix if len(stages) == 3 else 1
    first_weighted = weighted and role == "convolve"
    matrices = _matrices(tuple((s.radix, s.scale, first_weighted and i == 0) for i, s in enumerate(stages)))
    needed = 0
    for matrices_shared in (True, False):
        for spread in (True, False):
            pitch = spread_pitch(columns) if spread else columns
            row = spread_pitch(rows * pitch) if block > 1 and spread else rows * pitch
            plane = block * row
            transforms = 1 if block > 1 else warps
            data = 4 * plane * transforms
            staging = data
            matrices_at = staging + warps * STAGING_BYTES
            if matrices_shared and matrices > MATRICES_SHARED_BYTES:
                continue
            total = matrices_at + (matrices if matrices_shared else 0)
            needed = total
            if total <= target.shared_block:
                return Kernel(
                    role,
                    0,
                    warps,
                    transforms,
                    max(1, target.resident_blocks(warps, total, REGISTERS)),
                    pitch,
                    row,
                    plane,
                    staging,
                    matrices_at if matrices_shared else -1,
                    total,
                )
    return (
        f"{needed} bytes of shared memory with {warps} warps exceed the {target.shared_block} "
        f"that a block has on {target.name}"
    )


def columns_kernel(role: str, number: int, stage: Stage, warps: int, target: Target) -> Kernel | str:
    """Lay out a device stage: a warp owns a tile of 16 columns and all rows."""
    plane = stage.radix * COLUMN_PITCH if (role, number) == ("columns", 1) else 0
    staging = 4 * plane * warps
    total = staging + warps * STAGING_BYTES
    if total > target.shared_block:
        return (
            f"{total} bytes of shared memory for columns of radix {stage.radix} exceed the "
            f"{target.shared_block} that a block has on {target.name}"
        )
    resident = max(1, target.resident_blocks(warps, total, REGISTERS))
    return Kernel(role, number, warps, warps, resident, COLUMN_PITCH, 0, plane, staging, -1, total)

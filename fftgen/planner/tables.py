"""The constant tables of a plan: their layout, and their values from exact phases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import dtype, encode
from fftgen.planner import filter_tables, fragments
from fftgen.planner.plan import Plan, Stage, Table

ALIGNMENT = 256
SINGLE_LEVEL_BYTES = 16 * 1024  # a twiddle table up to this size stays in the L1 cache as it is


def spread_pitch(columns: int) -> int:
    """Distance of rows, in elements, from a multiple of 16 ``columns``, that spreads rows over the banks.

    Rows of a WMMA operand start on 32 bytes (PTX ISA, "Matrix Storage for WMMA": aligned at the size of
    the fragment), so at best four rows fall on different banks: an odd multiple of 32 bytes.
    """
    return columns if columns % 32 else columns + 16


def matrix_pitch(radix: int) -> int:
    """Distance of two rows of a stored DFT matrix, in elements."""
    return spread_pitch(radix)


def matrix_bytes(radix: int) -> int:
    """Bytes of the three planes (real, imaginary, minus imaginary) of one DFT matrix."""
    return 3 * radix * matrix_pitch(radix) * 2


def twiddle_split(radix: int, rest: int) -> int:
    """Length of the low digit of a twiddle table: ``rest`` while one level is small enough."""
    if rest == 1:
        return 0
    if 8 * radix * rest <= SINGLE_LEVEL_BYTES:
        return rest
    split = 16
    while split * split < rest:
        split *= 2
    while rest % split:
        split //= 2
    return split


def layout(stages: tuple[Stage, ...], weighted: bool) -> tuple[Table, ...]:
    """Where each table lies. Stages of equal radix and weight share one DFT matrix."""
    tables: list[Table] = []
    offset = 0
    seen: dict[tuple[int, float, bool], Table] = {}

    def add(name: str, stage: int, kind: str, shape: tuple[int, ...], element: str, nbytes: int) -> Table:
        nonlocal offset
        table = Table(name, stage, kind, shape, element, offset, nbytes)
        tables.append(table)
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return table

    for number, stage in enumerate(stages, 1):
        key = (stage.radix, stage.scale, weighted and number == 1)
        if key in seen:
            first = seen[key]
            tables.append(
                Table(first.name, number, "dft", first.shape, first.element, first.offset, first.nbytes)
            )
        else:
            shape = (3, stage.radix, matrix_pitch(stage.radix))
            seen[key] = add(f"dft{number}", number, "dft", shape, "operand", matrix_bytes(stage.radix))
    for number, stage in enumerate(stages, 1):
        if not stage.split:
            continue
        low = stage.split
        add(f"low{number}", number, "low", (stage.radix, low), "complex64", 8 * stage.radix * low)
        if low < stage.rest:
            high = stage.rest // low
            add(f"high{number}", number, "high", (stage.radix, high), "complex64", 8 * stage.radix * high)
    return tuple(tables)


def dft_matrix(plan: Plan, stage: int) -> npt.NDArray[np.complex128]:
    """The DFT matrix of a stage (radix, radix), scaled, in float64."""
    digits = np.arange(plan.stages[stage - 1].radix)
    return fragments.matrix(plan, stage, digits[:, None], digits[None, :])


def twiddles(plan: Plan, stage: int, columns: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """Twiddles T(k, r) of a stage for all k (radix) and the given r: (radix, len(columns)), float64."""
    rows = np.arange(plan.stages[stage - 1].radix)
    return fragments.twiddles(plan, stage, rows[:, None], np.asarray(columns)[None, :])


def build(plan: Plan) -> bytes:
    """The table block that a plan's kernels read: ``plan.table_bytes`` bytes, the same for equal plans."""
    block = np.zeros(plan.table_bytes, np.uint8)
    filter_tables.fill(plan.filter, block)
    if plan.engine == "mma":
        for table in plan.tables:
            raw = np.ascontiguousarray(fragments.build(plan, table)).view(np.uint8).reshape(-1)
            block[table.offset : table.offset + table.nbytes] = raw
        return block.tobytes()
    operand = dtype(plan.problem.dtype)
    for table in plan.tables:
        stage = plan.stages[table.stage - 1]
        data: npt.NDArray[np.generic]
        if table.kind == "dft":
            exact = dft_matrix(plan, table.stage)
            planes = np.zeros(table.shape, np.uint16)
            for plane, values in enumerate((exact.real, exact.imag, -exact.imag)):
                planes[plane, :, : stage.radix] = encode(values, operand)
            data = planes
        else:
            step = stage.split if table.kind == "high" else 1
            exact = twiddles(plan, table.stage, np.arange(table.shape[1]) * step)
            data = exact.astype(np.complex64)
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        block[table.offset : table.offset + table.nbytes] = raw
    return block.tobytes()

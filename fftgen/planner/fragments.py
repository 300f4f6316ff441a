"""Tables of the "mma" engine: matrices, twiddles and spectrum in the order of its operands' registers.

One 16 x 16 tile and plane is 32 lanes x 4 registers x 2 numbers, 512 bytes. What a row or column of a tile
stands for is an *order*, an integer array from place to logical index; the orders below make loads and
stores of the kernels 16 bytes wide (templates/device/columns.cuh, chain.cuh):

    tau    columns inside a row of shared memory, as the outer stage stores pairs V columns apart
    rho    rows of an inner matrix with 16 columns: places g, g + 8 are rows 2g, 2g + 1
    pi     columns of the result that a warp writes straight to the tensor: eight or four in a row a thread

Frequencies of a stage by halves (Stage.halves) stand with the even ones before the odd ones.

Where half of a radix R is whole tiles, half of the matrix is enough: F[k, n + R/2] = (-1)^k F[k, n]. The
weights of a right-angle transform leave F[k + R/2, n] = (-1)^n F[k, n] of it: even numbers stand before odd
ones, and what odd ones bring to a row is taken from the one half of all further on (``parted``).

Where butterflies follow (Stage.butterflies), row tile b of a strip has every B-th row from b on.

Source of the register layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import FP16, DType, dtype, encode
from fftgen.planner.plan import HALF_TILE, TILE, Plan, Stage, Table

Indices = npt.NDArray[np.int64]
Complex = npt.NDArray[np.complex128]

ALIGNMENT = 512
# Tables of the register chain, and all that a block copies to shared memory: these lie first.
CHAIN = frozenset({"first", "twiddle", "last", "last_inverse", "twiddle_inverse", "first_inverse"})
SHARED = CHAIN | {"columns", "columns_inverse"}
_MATRICES = {"first", "last", "columns", "device"}
MATRICES = frozenset(_MATRICES | {f"{name}_inverse" for name in _MATRICES})  # the others are twiddles

_LANE = np.arange(32).reshape(32, 1, 1)
_REGISTER = np.arange(4).reshape(1, 4, 1)
_HALF = np.arange(2).reshape(1, 1, 2)
_G, _T = _LANE // 4, _LANE % 4
# Left operand and pair of results: (row, column) at [lane, register, half].
_LEFT = np.broadcast_arrays(_G + 8 * (_REGISTER % 2), 2 * _T + _HALF + 8 * (_REGISTER // 2))
# Pair of right operands: (row, column).
_RIGHT = np.broadcast_arrays(2 * _T + _HALF + 8 * (_REGISTER % 2), _G + 8 * (_REGISTER // 2))


def _tiles(places: Sequence[Indices], rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """Logical row and column at [row tile, column tile, lane, register, half]."""
    high = rows.reshape(-1, TILE)[:, None]
    wide = columns.reshape(-1, TILE)[None, :]
    r = np.broadcast_to(high, (*np.broadcast_shapes(high.shape[:2], wide.shape[:2]), TILE))
    c = np.broadcast_to(wide, r.shape)
    return r[:, :, places[0]], c[:, :, places[1]]


def _inside(width: int) -> Indices:
    """tau over 2 V columns: place 2 j + b of each run of 2 V is column j + V b, V = ``width``."""
    place = np.arange(2 * width)
    return np.asarray(place // 2 + width * (place % 2), np.int64)


def _runs(count: int, run: Indices) -> Indices:
    """An order that repeats every ``len(run)`` places."""
    return np.asarray((np.arange(0, count, len(run))[:, None] + run).reshape(-1), np.int64)


def workspace_order(plan: Plan, count: int) -> Indices:
    """The column at each place of a row of the workspace (or of the tensor: identity)."""
    if not plan.device_stages:
        return np.arange(count)
    return _runs(count, _inside(plan.kernel("columns", 1).columns))


def column_order(plan: Plan, count: int) -> Indices:
    """tau: the column at each place of a row that a warp takes through the chain."""
    order = workspace_order(plan, count)
    return order[_runs(count, _inside(plan.body.columns))] if plan.block_stage else order


def row_order(plan: Plan) -> Indices:
    """rho: the row of the first inner matrix at each place."""
    rows, columns = plan.factors[-2:]
    place = np.arange(rows)
    if plan.block_stage and columns == TILE:
        return np.asarray(place // TILE * TILE + 2 * (place % 8) + place % TILE // 8, np.int64)
    return place


def frequency_order(stage: Stage, order: Indices) -> Indices:
    """The frequency at each place of a chain's stage whose numbers stand in an order themselves."""
    if not stage.halves:
        return order
    half = len(order) // 2
    return np.concatenate([2 * order[:half], 2 * order[:half] + 1])


def result_order(plan: Plan) -> Indices:
    """pi: the column of the result at each place of the last inverse matrix's rows."""
    columns = plan.factors[-1]
    place = np.arange(columns)
    if plan.block_stage:
        return place
    tile, inside = place // 8, place % 8
    if columns == TILE:
        return np.asarray(4 * (inside // 2) + 2 * tile + inside % 2, np.int64)
    run, part = tile // 4, tile % 4
    return np.asarray(32 * run + 8 * (inside // 2) + 2 * part + inside % 2, np.int64)


def piece_columns(plan: Plan) -> Indices:
    """The column of a row at [piece iteration, lane, register, half] as the chain's results are stored.

    A thread stores pieces of 16 bytes; place 2 j + b of piece t of 32 columns is column 8 j + 2 t + b.
    """
    rows, columns = plan.factors[-2:]
    per = columns // TILE  # pieces a thread stores of a row tile
    m, it = (x.reshape(-1, 1, 1, 1) for x in np.divmod(np.arange(rows // TILE * per), per))
    if columns == TILE:
        run = 8 * m + _G
    else:
        i, half = it // (per // 2), it % (per // 2)
        run = (TILE * m + _G + 8 * i) * (per // 2) + half
    return np.asarray(32 * run + 8 * _REGISTER + 2 * _T + _HALF, np.int64)


def _planes(values: Complex, axis: int, to: DType = FP16) -> npt.NDArray[np.uint16]:
    """Planes re, im along a new axis."""
    return encode(np.stack((values.real, values.imag), axis=axis), to)


def matrix(plan: Plan, number: int, k: Indices, n: Indices) -> Complex:
    """Entries (k, n) of the scaled DFT matrix of a stage, k and n broadcast, in float64; of channels abreast
    each has a block on the diagonal."""
    from fftgen.planner import twiddle  # SymPy loads slowly: where numbers are made only

    radix = plan.stages[number - 1].radix
    turns = twiddle.dft_turns(plan.factors, number, plan.real_input)
    entries = twiddle.evaluate(turns, k % radix, n % radix) * plan.stages[number - 1].scale
    return np.where(k // radix == n // radix, entries, 0)


def twiddles(plan: Plan, number: int, k: Indices, r: Indices) -> Complex:
    """Twiddles T(k, r) of a stage, k and r broadcast, in float64."""
    from fftgen.planner import twiddle

    return twiddle.evaluate(twiddle.twiddle_turns(plan.factors, number, plan.real_input), k, r)


@dataclass(frozen=True)
class _Spec:
    """A table before it has a place: name, stage, and shape with planes."""

    name: str
    stage: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return 2 * prod(self.shape)

    @property
    def shared(self) -> bool:
        return self.name in SHARED

    @property
    def matrix(self) -> bool:
        return self.name in MATRICES


_LANES = (32, 4, 2)  # lanes, registers, numbers


def _outer(radix: int, columns: int, width: int) -> tuple[int, ...]:
    """Twiddles as the results of columns lie: [strip, row tile, row half, piece, plane, lane, ...].

    A thread's 2 V columns are V / 4 pieces of 16 bytes; with V = 2 both planes of half a piece share them.
    Channels abreast share those of one half.
    """
    strips, tiles, halves = columns // (8 * width), -(-radix // TILE), 1 if radix == HALF_TILE else 2
    if width == 2:
        return (strips, tiles, halves, 32, 2, 2, 2)
    return (strips, tiles, halves, width // 4, 2, *_LANES)


def _some_tiles(radix: int) -> int:
    """Tiles in a row or column of the table of a whole matrix (mma.cuh: SOME_TILES)."""
    tiles = radix // TILE
    return tiles if tiles % 2 else tiles // 2


def _column_tiles(stage: Stage) -> int:
    """The same of a stage of columns (column_products.cuh: TABLE_TILES)."""
    return 1 if stage.butterflies > 1 else _some_tiles(stage.lines)


def parted(stages: Sequence[Stage], real: bool) -> bool:
    """Whether even numbers stand before odd ones in the first stage, which then takes three quarters of its
    products. In a warp not with 64 columns, rows of which two apart would meet in banks."""
    return real and stages[0].radix % (2 * TILE) == 0 and (len(stages) > 2 or stages[1].radix < 64)


def _specs(stages: tuple[Stage, ...], real: bool, width: int, device_width: int) -> list[_Spec]:
    """All tables of a plan.

    ``width``: columns of a thread in the block stage, 0 without one; ``device_width``: in the device stage.
    """
    device = 1 if device_width else 0
    a, p = len(stages) - 1, len(stages)
    rows, columns = stages[-2].radix // TILE, stages[-1].radix // TILE
    weighted = real and a == 1
    some_rows = _some_tiles(stages[-2].radix) if weighted else rows
    parted_rows = some_rows if parted(stages, weighted) else rows
    few_rows = rows // 2 if stages[-2].halves else rows
    few_columns = columns // 2 if stages[-1].halves else columns
    back_rows, back_columns = (few_rows, few_columns) if width else (rows, columns)  # Plan.halves_back
    found = [
        _Spec("first", a, (parted_rows, few_rows, 2, *_LANES)),
        _Spec("twiddle", a, (rows, columns, 2, *_LANES)),
        _Spec("last", p, (few_columns, columns, 2, *_LANES)),
        _Spec("last_inverse", p, (back_columns, columns, 2, *_LANES)),
        _Spec("twiddle_inverse", a, (columns, rows, 2, *_LANES)),
        _Spec("first_inverse", a, (back_rows, some_rows, 2, *_LANES)),
    ]
    if width:
        number = device + 1
        stage = stages[device]
        outer = stage.lines // TILE
        some = _column_tiles(stage)
        there = (some, outer) if real and number == 1 else (outer, some)
        found += [
            _Spec("columns", number, (*there, 2, *_LANES)),
            _Spec("columns_inverse", number, (outer, some, 2, *_LANES)),
            _Spec("outer", number, _outer(stage.radix, stage.split, width)),
        ]
        if stage.split == stage.rest:
            found.append(_Spec("outer_inverse", number, (stage.radix, stage.rest // 256, 2, *_LANES)))
        else:
            high = stage.rest // stage.split
            found += [
                _Spec("outer_inverse", number, (stage.radix, stage.split // 32, 2, 4, 4, 2)),
                _Spec("outer_high", number, (high, stage.radix, 2, 2)),
                _Spec("outer_inverse_high", number, (stage.radix, high, 2, 2)),
            ]
    if device:
        stage = stages[0]
        outer, high = stage.radix // TILE, stage.rest // stage.split
        strips = stage.split // (8 * device_width)
        some = _column_tiles(stage)
        there = (some, outer) if real else (outer, some)
        found += [
            _Spec("device", 1, (*there, 2, *_LANES)),
            _Spec("device_inverse", 1, (outer, some, 2, *_LANES)),
            _Spec("low", 1, _outer(stage.radix, stage.split, device_width)),
            _Spec("high", 1, (high, stage.radix, 2, 2)),
            _Spec("low_inverse", 1, (strips, outer, device_width // 2, 2, 32, 2, 2, 2)),
            _Spec("high_inverse", 1, (high, outer, 4, 2, 2, 2)),
        ]
    return found


def layout(
    stages: tuple[Stage, ...],
    real: bool,
    width: int,
    device_width: int,
    operand: str = "fp16",
) -> tuple[Table, ...]:
    """Where each table lies: those that a block copies to shared memory first, then the others.

    ``operand``: the type of matrices. Twiddles are fp16.
    """
    tables = []
    offset = 0
    for spec in sorted(_specs(stages, real, width, device_width), key=lambda s: not s.shared):
        element = operand if spec.matrix else "fp16"
        tables.append(Table(spec.name, spec.stage, spec.name, spec.shape, element, offset, spec.nbytes))
        offset += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(tables)


def shared_bytes(inner: tuple[Stage, ...], real: bool, width: int) -> int:
    """Bytes of the tables that a block copies to shared memory."""
    return sum(s.nbytes for s in _specs(inner, real, width, 0) if s.shared)


def copied(tables: Iterable[Table]) -> int:
    """Bytes that a block copies: the first ones."""
    return max(t.offset + t.nbytes for t in tables if t.name in SHARED)


def build(plan: Plan, table: Table) -> npt.NDArray[np.uint16]:
    """The values of a table, bit patterns in its shape."""
    stage, kind = table.stage, dtype(table.element)
    radix, lines = np.arange(plan.stages[stage - 1].radix), np.arange(plan.stages[stage - 1].lines)
    rho, pi, tau = row_order(plan), result_order(plan), column_order(plan, plan.factors[-1])
    rows = frequency_order(plan.stages[-2], rho)
    columns = frequency_order(plan.stages[-1], np.arange(plan.factors[-1]))
    left = {"first": (rows, rho), "columns": (lines, lines), "device": (lines, lines)}
    name = table.name.removesuffix("_inverse")
    inverse = name != table.name
    high, wide = (TILE * x for x in table.shape[:2])  # places that the table has, perhaps half of all
    if name in left:
        frequencies, numbers = left[name]
        apart = plan.stages[stage - 1].butterflies  # of neighbours in a tile
        numbers = numbers.reshape(-1, apart).T.reshape(-1)
        if inverse:
            n, k = _tiles(_LEFT, numbers[:high], frequencies[:wide])
        else:
            if apart == 1 and high < len(frequencies):  # even numbers before odd ones
                numbers = np.concatenate([numbers[0::2], numbers[1::2]])
            k, n = _tiles(_LEFT, frequencies[:high], numbers[:wide])
        # Of the inverse the same planes: inverse (templates/device/mma.cuh) takes -im for im.
        return _planes(matrix(plan, stage, k, n), 2, kind)
    if name == "last":
        n, k = _tiles(_LEFT if inverse else _RIGHT, (pi if inverse else tau)[:high], columns)
        values = matrix(plan, stage, k, n)
        return _planes(values.conj() if inverse else values, 2, kind)
    if name == "twiddle":
        if inverse:
            r, k = _tiles(_LEFT, pi, rows)
        else:
            k, r = _tiles(_LEFT, rows, tau)
        return _planes(twiddles(plan, stage, k, r), 2)
    if table.name == "outer_inverse":
        columns = piece_columns(plan)
        if table.shape[3] == 4:  # two levels: [row, run of 32 columns, plane, t, register, half]
            columns = 32 * np.arange(table.shape[1]).reshape(-1, 1, 1, 1) + columns[0, :4] % 32
        k, r = np.broadcast_arrays(radix.reshape(-1, 1, 1, 1, 1), columns[None])
        return _planes(twiddles(plan, stage, k, r), 2)
    if table.name == "outer":
        k, place = _outer_places(table.shape, plan.body.columns)
        return _planes(twiddles(plan, stage, k, workspace_order(plan, plan.stages[stage - 1].rest)[place]), 4)
    if table.name in ("outer_high", "outer_inverse_high"):
        return _high(plan, stage, table.name == "outer_inverse_high")
    return _device_table(plan, table)


def _high(plan: Plan, number: int, by_row: bool) -> npt.NDArray[np.uint16]:
    """The high level of a stage's twiddles, [r // split, k], the other way round where ``by_row``; each part
    twice, for the two numbers of a register."""
    stage = plan.stages[number - 1]
    high = stage.split * np.arange(stage.rest // stage.split)
    k, r = np.broadcast_arrays(np.arange(stage.radix), high[:, None])
    values = twiddles(plan, number, k, r)
    planes = _planes(values.T if by_row else values, 2)
    return np.repeat(planes[..., None], 2, axis=-1)


def _outer_places(shape: tuple[int, ...], width: int) -> tuple[Indices, Indices]:
    """Frequency and column (by place in memory) of the results of columns, with the shape of ``_outer``."""
    strips, tiles, halves = shape[:3]
    if width == 2:
        strip, m, i = (x[..., None, None, None] for x in np.ogrid[:strips, :tiles, :halves])
        column = np.arange(2).reshape(1, 2, 1)
    else:
        strip, m, i, h = (x[..., None, None, None] for x in np.ogrid[:strips, :tiles, :halves, : width // 4])
        column = 4 * h + _REGISTER
    k = TILE * m + 8 * i + _G
    r = 8 * width * strip + 2 * width * _T + column + width * _HALF
    found = np.broadcast_arrays(k, r)
    return found[0], found[1]


def _device_table(plan: Plan, table: Table) -> npt.NDArray[np.uint16]:
    """Twiddles of the device stage in two levels: T(k, r) = high(k, r // split) low(k, r % split)."""
    stage = plan.stages[0]
    width = plan.kernel("columns", 1).columns
    if table.name == "low":
        return _planes(twiddles(plan, 1, *_outer_places(table.shape, width)), 4)
    if table.name == "high":
        return _high(plan, 1, False)
    # Right operands: [strip, row tile, pair of columns, plane, lane, column, half, number]
    if table.name == "low_inverse":
        strips, tiles, pairs = table.shape[:3]
        strip, m, c = (x[..., None, None, None, None] for x in np.ogrid[:strips, :tiles, :pairs])
        g, t = _G[..., None], _T[..., None]
        j, i, half = (
            np.arange(2).reshape(2, 1, 1),
            np.arange(2).reshape(1, 2, 1),
            np.arange(2).reshape(1, 1, 2),
        )
        k = TILE * m + 2 * t + half + 8 * i
        r = 8 * width * strip + width * g + 2 * c + j
        return _planes(twiddles(plan, 1, *np.broadcast_arrays(k, r)), 3)
    q, m, t, i, half = np.ogrid[: stage.rest // stage.split, : stage.radix // TILE, :4, :2, :2]
    k = TILE * m + 2 * t + half + 8 * i
    return _planes(twiddles(plan, 1, *np.broadcast_arrays(k, stage.split * q)), 4)


def spectrum_digits(plan: Plan) -> tuple[tuple[int, int], ...]:
    """How a channel's spectrum lies in memory: digits (extent, stride), the slowest first.

    A number's place is read in this mixed radix; the digits times their strides add up to its index in the
    natural spectrum as real numbers, 2 k + part. Tiles of the chain's middle, real plane before imaginary:
    [row of the block, row tile, column tile, plane, g, t, column half, row half, pair].
    """
    rows, columns = plan.factors[-2:]
    before = plan.transform // (rows * columns)
    row, column = 2 * before, 2 * before * rows  # strides of the digits k2 and k3
    paired = plan.block_stage and columns == TILE
    row_tiles, column_tiles = rows // TILE, columns // TILE
    row_half: tuple[tuple[int, int], ...] = ()
    column_half: tuple[tuple[int, int], ...] = ()
    if plan.stages[-2].halves:  # even frequencies, then odd ones
        row_half, row_tiles, row = ((2, row),), row_tiles // 2, 2 * row
    if plan.stages[-1].halves:
        column_half, column_tiles, column = ((2, column),), column_tiles // 2, 2 * column
    return (
        *outer_digits(plan),
        *row_half,
        (row_tiles, TILE * row),
        *column_half,
        (column_tiles, TILE * column),
        (2, 1),
        (8, 2 * row if paired else row),
        (4, 2 * column),
        (2, 8 * column),
        (2, row if paired else 8 * row),
        (2, column),
    )


def outer_digits(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Digits of the rows of a transform: the frequency digits of the stages before the last two."""
    found = []
    stride = 2
    for radix in plan.factors[:-2]:
        found.append((radix, stride))
        stride *= radix
    return tuple(found)

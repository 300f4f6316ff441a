"""Tables of the register chain, multiplied as the matrix unit does: the whole convolution comes out.

The registers of an operand are read by the PTX ISA's own words (section "Matrix Fragments for mma.m16n8k16
with floating point type"), the steps are those of design 2.3, and every number is float64, so that one
entry in a wrong place shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import pytest
import reference

from fftgen.dtypes import FP16, encode
from fftgen.planner import fragments, mma_kernels, mma_rules, tables
from fftgen.planner.layouts import with_outer_split
from fftgen.planner.order import spectrum_index
from fftgen.planner.plan import Plan
from fftgen.planner.search import with_shape
from fftgen.problem import Problem
from fftgen.targets import target

Array = npt.NDArray[Any]

LANES = [(lane, lane // 4, lane % 4) for lane in range(32)]
# (row, column) of each element, by the ISA's formulas: [lane][register][half].
A = np.array(
    [
        [[(g + (8 if i in (2, 3, 6, 7) else 0), 2 * t + i % 2 + (8 if i >= 4 else 0)) for i in (j, j + 1)]
         for j in (0, 2, 4, 6)]
        for _, g, t in LANES
    ]
)  # fmt: skip
B = np.array(
    [[[(2 * t + i % 2 + (8 if i >= 2 else 0), g) for i in (j, j + 1)] for j in (0, 2)] for _, g, t in LANES]
)
C = np.array(
    [[[(g + (8 if i >= 2 else 0), 2 * t + i % 2) for i in (j, j + 1)] for j in (0, 2)] for _, g, t in LANES]
)


def scattered(registers: Array, where: Array, shape: tuple[int, int]) -> Array:
    """The matrix (..., *shape) whose elements threads hold in registers (..., 32, n, 2)."""
    matrix = np.full((*registers.shape[:-3], *shape), np.nan, registers.dtype)
    matrix[..., where[..., 0], where[..., 1]] = registers
    return matrix


def mma(a: Array, b: Array) -> Array:
    """a (..., 32, 4, 2) times b (..., 32, 2, 2), as registers of the result (..., 32, 2, 2)."""
    product = scattered(a, A, (16, 16)) @ scattered(b, B, (16, 8))
    return product[..., C[..., 0], C[..., 1]]


def operands(matrix: Array) -> Array:
    """What ldmatrix.x4.trans loads from (..., 16, 16): two right operands, (..., 32, 4, 2)."""
    halves = [matrix[..., 8 * j : 8 * j + 8][..., B[..., 0], B[..., 1]] for j in (0, 1)]
    return np.concatenate(halves, axis=-2)


def pair(results: list[Array]) -> list[Array]:
    """Results side by side, two by two, as a left operand has them: the same registers."""
    return [np.concatenate(results[i : i + 2], axis=-2) for i in range(0, len(results), 2)]


def transposed(tiles: list[Array], n: int) -> list[Array]:
    """Rows 8 n .. + 7 of tiles side by side, as right operands of their transpose: registers n % 2."""
    return [tile[..., [n % 2, 2 + n % 2], :] for tile in tiles]


def product(matrix: list[Array], data: list[Array]) -> Array:
    return np.asarray(sum(mma(f, x) for f, x in zip(matrix, data, strict=True)))


def there(data: list[Array], m: int, halves: bool) -> list[Array]:
    """What tile m of frequencies is made of: by halves of sums for even ones, of differences for odd ones."""
    if not halves:
        return data
    half = len(data) // 2
    sign = 1 if m < half else -1
    return [one + sign * other for one, other in zip(data[:half], data[half:], strict=True)]


def back(matrix: Array, data: list[Array], m: int, halves: bool) -> Array:
    """Tile m of numbers: by halves what odd frequencies bring is added to the first half of them only."""
    if not halves:
        return product(list(matrix[m]), data)
    half = len(data) // 2
    even, odd = (product(list(matrix[m % half][i]), data[i]) for i in (slice(half), slice(half, None)))
    return even + odd if m < half else even - odd


class Tables:
    """A plan's tables as complex registers, with what the planes say about each other."""

    def __init__(self, plan: Plan) -> None:
        self.planes = {t.kind: fragments.build(plan, t) for t in plan.tables}

    def __getitem__(self, kind: str) -> Array:
        """Planes on the third axis: re, im."""
        planes = self.planes[kind]
        assert planes.shape[2] == 2
        return np.asarray(planes[:, :, 0] + 1j * planes[:, :, 1])

    def whole(self, kind: str, tiles: int) -> Array:
        """A matrix that is not taken by halves, [row tile, column tile]: half of it told by the other."""
        table = self[kind]
        if table.shape[1] < tiles:  # F[k, n + R/2] = (-1)^k F[k, n]
            signs = (-1.0) ** A[..., 0]
            table = np.concatenate([table, table * signs], axis=1)
        if table.shape[0] < tiles:  # F[k + R/2, n] = (-1)^n F[k, n], even n before odd ones
            signs = np.repeat([1.0, -1.0], tiles // 2).reshape(-1, 1, 1, 1)
            table = np.concatenate([table, table * signs], axis=0)
        assert table.shape[:2] == (tiles, tiles)
        return table

    def inverse(self, kind: str, tiles: int) -> Array:
        return np.conj(self.whole(kind, tiles))

    def outer(self) -> Array:
        """[strip, row tile, row half, piece, lane, pair, half]; half a piece with 2 columns to a thread."""
        planes = self.planes["outer"]
        low = np.asarray(planes[:, :, :, :, 0] + 1j * planes[:, :, :, :, 1])
        if planes.ndim == 7:  # [strip, row tile, row half, lane, plane, pair, half]
            low = low[:, :, :, None]
        if "outer_high" not in self.planes:
            return low
        high = self.high("outer_high")  # [split, row] beside rows 16 m + 8 i + g
        of_lanes = high.reshape(len(high), 1, -1, 2, 1, 8)[..., np.arange(32) // 4]
        return np.asarray((of_lanes[..., None, None] * low).reshape(-1, *low.shape[1:]))

    def outer_inverse(self, runs: Array) -> Array:
        """[row, piece, lane, pair, half]; ``runs`` [piece, lane] of 32 columns each."""
        if "outer_high" not in self.planes:
            return self["outer_inverse"]
        low, high = self["outer_inverse"], self.high("outer_inverse_high")  # [row, run, t, ...], [row, split]
        share = low.shape[1]  # runs that have a high level in common
        return np.asarray(low[:, runs % share, np.arange(32) % 4] * high[:, runs // share, None, None])

    def high(self, kind: str) -> Array:
        """The high level of two; each part stands twice."""
        planes = self.planes[kind]
        assert (planes[..., 0] == planes[..., 1]).all()
        return np.asarray(planes[..., 0, 0] + 1j * planes[..., 1, 0])


def chain(plan: Plan, t: Tables, rows: Array, spectrum: Array) -> list[list[Array]]:
    """The four products on (..., A, P) as it stands in memory: results [row tile][eight columns].

    ``spectrum`` (..., row tile, column tile, 32, 4, 2).
    """
    tall, wide = (radix // 16 for radix in plan.factors[-2:])
    rows_halved, columns_halved = (stage.halves for stage in plan.stages[-2:])
    rows_back, columns_back = (plan.halves_back(stage) for stage in plan.stages[-2:])
    x = [
        [operands(rows[..., 16 * k : 16 * k + 16, 16 * n : 16 * n + 16]) for n in range(wide)]
        for k in range(tall)
    ]
    last, last_inverse = t["last"], t["last_inverse"]
    first = t["first"] if rows_halved else t.whole("first", tall)
    first_inverse = np.conj(t["first_inverse"]) if rows_back else t.inverse("first_inverse", tall)
    y, z, w = [], [], []
    for m in range(tall):
        columns = [
            [x[k][c // 2][..., c % 2 * 2 : c % 2 * 2 + 2, :] for k in range(tall)] for c in range(2 * wide)
        ]
        results = pair([product(list(first[m]), there(column, m, rows_halved)) for column in columns])
        y.append([tile * t["twiddle"][m, n] for n, tile in enumerate(results)])
    for m in range(tall):
        found = []
        for n in range(wide):
            right = [[tile[:, 2 * j : 2 * j + 2] for tile in last[:, n]] for j in (0, 1)]
            (tile,) = pair([product(there(y[m], n, columns_halved), r) for r in right])
            found.append(tile * spectrum[..., m, n, :, :, :])
        z.append(found)
    for m in range(wide):
        results = pair(
            [back(last_inverse, transposed(z[n // 2], n), m, columns_back) for n in range(2 * tall)]
        )
        w.append([tile * np.conj(t["twiddle_inverse"][m, n]) for n, tile in enumerate(results)])
    return [
        [
            back(first_inverse, transposed([w[n // 2][k] for k in range(tall)], n), m, rows_back)
            for n in range(2 * wide)
        ]
        for m in range(tall)
    ]


def loaded(plan: Plan, rows: Array) -> Array:
    """Rows of the first stage as they are loaded: of real numbers perhaps even ones before odd ones, or every
    B-th of them in one tile, where butterflies follow."""
    if (apart := plan.stages[0].butterflies) > 1:
        return np.concatenate([rows[b::apart] for b in range(apart)])
    if not fragments.parted(plan.stages, plan.real_input):
        return rows
    return np.concatenate([rows[0::2], rows[1::2]])


def warp(plan: Plan, t: Tables, x: Array, spectrum: Array) -> Array:
    """Two stages, (N,) to (N,): a thread of the result holds four or eight neighbours (warp.cuh)."""
    rows, columns = plan.factors
    results = chain(plan, t, loaded(plan, x.reshape(rows, columns)), spectrum[0])
    out = np.full((rows, columns), np.nan, complex)
    run = 4 if columns == 16 else 8
    for lane, g, q in LANES:
        for m in range(rows // 16):
            for i in range(2):
                for c in range(columns // (4 * run)):
                    for j in range(run):
                        value = results[m][c * (run // 2) + j // 2][lane, i, j % 2]
                        out[16 * m + 8 * i + g, 4 * run * c + run * q + j] = value
    return out.reshape(-1)


def columns_there(plan: Plan, t: Tables, strip: list[Array], m: int) -> Array:
    """Row tile m of a block's columns: by a whole matrix, or by matrices of 16 rows and butterflies."""
    tiles = len(strip)
    if plan.stages[0].butterflies == 1:
        return product(list(t.whole("columns", tiles)[m]), strip)
    parts = [product([f], [x]) for f, x in zip(t["columns"][0], strip, strict=True)]
    return np.asarray(np.fft.fft(np.stack(parts), axis=0)[m])


def columns_back(plan: Plan, t: Tables, group: Array, m: int) -> Array:
    """The same of eight columns on the way back."""
    tiles = len(group)
    if plan.stages[0].butterflies == 1:
        return product(list(t.inverse("columns_inverse", tiles)[m]), list(group))
    parts = tiles * np.fft.ifft(group, axis=0)
    return product([np.conj(t["columns_inverse"][m, 0])], [parts[m]])


def block(plan: Plan, t: Tables, x: Array, spectrum: Array) -> Array:
    """Three stages, (N,) to (N,), through rows of shared memory (columns.cuh)."""
    radix, rest, width = plan.factors[0], plan.stages[0].rest, plan.body.columns
    inner, columns = plan.factors[-2:]
    apart = plan.stages[0].butterflies
    signal, shared = loaded(plan, x.reshape(radix, rest)), np.full((radix, rest), np.nan, complex)
    outer, tiles = t.outer(), radix // 16
    for strip in range(rest // (8 * width)):
        at = signal[:, 8 * width * strip : 8 * width * (strip + 1)]
        # A thread's V neighbours go to V operands: column g of operand j is column V g + j of the strip.
        right = [
            [at[16 * k : 16 * k + 16, j::width][B[..., 0], B[..., 1]] for k in range(tiles)]
            for j in range(width)
        ]
        for m in range(tiles):
            y = [columns_there(plan, t, r, m) for r in right]
            for lane, g, q in LANES:
                for i in range(2):
                    for j in range(width):
                        pieces = outer[strip, m, i, j // 4, lane]
                        value = y[j][lane, i] * pieces[j % 4]
                        place = 8 * width * strip + 2 * width * q + 2 * j
                        shared[16 * m + 8 * i + g, place : place + 2] = value
    # Rows of an inner matrix of 16 columns stand in another order: places g, g + 8 are rows 2g, 2g + 1.
    place = np.arange(inner)
    order = place // 16 * 16 + 2 * (place % 8) + place % 16 // 8 if columns == 16 else place
    results = chain(plan, t, shared.reshape(radix, inner, columns)[:, order], spectrum)
    stored = np.full((radix, rest), np.nan, complex)
    runs = np.array(
        [
            [_run(m, c, g, columns) for _, g, _ in LANES]
            for m in range(inner // 16)
            for c in range(columns // 16)
        ]
    )
    twiddle = t.outer_inverse(runs)
    for lane, g, q in LANES:
        for m in range(inner // 16):
            for c in range(columns // 16):
                half, part = (0, 0) if columns == 16 else divmod(c, columns // 32)
                run = _run(m, c, g, columns)
                for j in range(4):
                    tile, v = (j % 2, j // 2) if columns == 16 else (4 * part + j, half)
                    value = results[m][tile][:, lane, v] * np.conj(
                        twiddle[:, m * (columns // 16) + c, lane, j]
                    )
                    place_ = 8 * (4 * run + q) + 2 * j
                    stored[:, place_ : place_ + 2] = value
    out = np.full((radix, rest), np.nan, complex)
    for group in range(rest // 32):
        left = [
            operands(stored[:, 32 * group + 16 * j : 32 * group + 16 * j + 16].reshape(tiles, 16, 16))
            for j in (0, 1)
        ]
        for m in range(tiles):
            y = [columns_back(plan, t, left[j // 2][:, :, j % 2 * 2 : j % 2 * 2 + 2], m) for j in range(4)]
            for lane, g, q in LANES:
                for i in range(2):
                    row = 8 * i + g
                    for j in range(8):
                        out[apart * row + m if apart > 1 else 16 * m + row, 32 * group + 8 * q + j] = y[
                            j // 2
                        ][lane, i, j % 2]
    return out.reshape(-1)


def _run(m: int, c: int, g: int, columns: int) -> int:
    """The 32 columns of a row that piece c of row tile m of the chain's results lies in."""
    if columns == 16:
        return 8 * m + g
    half, part = divmod(c, columns // 32)
    return (16 * m + 8 * half + g) * (columns // 32) + part


def layouts(mode: str, factors: tuple[int, ...]) -> Iterator[Plan]:
    """A plan for every width of the outer stage that some number of warps allows; one if there is none. With
    twiddles in one level and in two."""
    plan = with_shape(Problem(mode, int(np.prod(factors)), "bf16"), "sm_90", factors, 0, engine="mma")
    seen = set()
    for kernels in mma_kernels.kernels(plan.stages, 0, plan.real_input, target("sm_90")):
        if isinstance(kernels, str) or kernels[0].columns in seen:
            continue
        (kernel,) = kernels
        seen.add(kernel.columns)
        found = dataclasses.replace(plan, kernels=(kernel,))
        for split in (plan.stages[0].rest, mma_rules.two_levels(kernel)) if plan.block_stage else (0,):
            yield with_outer_split(found, split)


WIDTHS = {
    (16, 16): {0},
    (64, 32): {0},
    (32, 64): {0},
    (32, 16): {0},
    (48, 16): {0},
    (32, 32): {0},
    (16, 16, 16): {8, 4, 2},
    (32, 16, 16): {4, 2},
    (16, 16, 32): {8, 4, 2},
    (48, 16, 16): {2},
    (80, 16, 16): {2},
    (16, 16, 64): {8, 4},
    (16, 32, 16): {8, 4, 2},
    (16, 32, 32): {8, 4},
}


@pytest.mark.parametrize("factors", WIDTHS, ids=str)
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_chain_of_fragments_is_the_convolution(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, mode: str, factors: tuple[int, ...]
) -> None:
    """With tables in float64, to float64: matrices, twiddles, spectrum and every order between them."""
    monkeypatch.setattr(fragments, "encode", lambda values, to: values)
    n = int(np.prod(factors))
    u, k = rng.standard_normal((2, 1, n)), rng.standard_normal((1, n))
    natural = np.fft.fft(k[0] * (np.exp(0.5j * np.pi / n * np.arange(n)) if mode == "causal" else 1))
    widths = set()
    for plan in layouts(mode, factors):
        widths.add(plan.body.columns)
        stored = natural.view(np.float64)[spectrum_index(plan)]
        tall, wide = (radix // 16 for radix in factors[-2:])
        planes = stored.reshape(-1, tall, wide, 2, 32, 4, 2)
        spectrum = planes[:, :, :, 0] + 1j * planes[:, :, :, 1]
        x = u[0, 0] if mode == "causal" else u[0, 0] + 1j * u[1, 0]
        y = (block if plan.block_stage else warp)(plan, Tables(plan), x, spectrum) * plan.unscaled
        rows = y.real[None, None] if mode == "causal" else np.stack([y.real, y.imag])[:, None]
        exact = reference.convolve(u[: len(rows)], k, mode=mode, length=n)
        assert np.linalg.norm(rows - exact) < 1e-11 * np.linalg.norm(exact), str(plan)
    assert widths == WIDTHS[factors]


@pytest.mark.parametrize("factors", WIDTHS, ids=str)
@pytest.mark.parametrize("mode", cases.MODES)
def test_tables_are_the_exact_values_rounded_once(
    monkeypatch: pytest.MonkeyPatch, mode: str, factors: tuple[int, ...]
) -> None:
    for plan in layouts(mode, factors):
        block = tables.build(plan)
        assert len(block) == plan.table_bytes
        for table in plan.tables:
            raw = np.frombuffer(block, np.uint16, int(np.prod(table.shape)), table.offset).reshape(
                table.shape
            )
            with monkeypatch.context() as patch:
                patch.setattr(fragments, "encode", lambda values, to: values)
                exact = fragments.build(plan, table)
            assert exact.dtype == np.float64
            assert (raw == encode(exact, FP16)).all(), (str(plan), table.name)

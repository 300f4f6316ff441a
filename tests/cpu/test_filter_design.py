"""The filter's spectrum as decided: stages, tables and digits, run in NumPy against the DFT by definition."""

from __future__ import annotations

import dataclasses
import itertools
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
from plans import added

from fftgen.errors import InternalError
from fftgen.planner import search, tables
from fftgen.planner.candidates import has_shape
from fftgen.planner.factor import transforms
from fftgen.planner.filter import FilterKernel, FilterTable, filter_launches
from fftgen.planner.filter_design import exponents, prime_factors, radices
from fftgen.planner.filter_places import transform_places
from fftgen.planner.filter_tables import first_weights
from fftgen.planner.order import spectrum_index
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.targets import target

Complex = npt.NDArray[np.complex128]


def plan_for(mode: str, length: int, chip: str = "sm_90") -> Plan:
    return search.plan(Problem(mode, length, "fp16"), chip)


def wmma(mode: str, factors: tuple[int, ...], device: int = 0) -> Plan:
    dtype = "bf16" if mode == "causal" else "fp16"  # pairs are scaled, which in bf16 nothing is
    return search.with_shape(Problem(mode, prod(factors), dtype), "sm_90", factors, device, "wmma")


PLANS = (
    ("causal", 256, "sm_90"),
    ("circular", 256, "sm_75"),
    ("causal", 512, "sm_90"),
    ("circular", 768, "sm_90"),
    ("circular", 1000, "sm_90"),
    ("causal", 1280, "sm_80"),
    ("causal", 4096, "sm_90"),
    ("circular", 7168, "sm_90"),
    ("causal", 8192, "sm_75"),
    ("circular", 20_480, "sm_90"),
    ("causal", 24_576, "sm_86"),
    ("causal", 65_536, "sm_90"),
    ("circular", 147_456, "sm_90"),
    ("causal", 1_048_576, "sm_86"),
    ("circular", 4_194_304, "sm_90"),
)
SHAPES = (
    ((16, 16), 0),
    ((48, 16), 0),
    ((16, 96), 0),
    ((80, 16, 16), 0),
    ((112, 16, 16), 0),
    ((96, 32, 32), 1),
)
ALL = [*(plan_for(*p) for p in PLANS), *(wmma(m, *s) for s in SHAPES for m in ("causal", "circular"))]


@pytest.fixture(params=ALL, ids=lambda p: f"{p.problem.mode}-{p.factors}-{p.engine}-{p.target}")
def plan(request: pytest.FixtureRequest) -> Plan:
    found: Plan = request.param
    return found


def chosen(plan: Plan) -> tuple[int, ...]:
    """Radices in the order of the stages of all passes."""
    return tuple(s.radix for k in plan.filter.kernels for s in k.stages)


def table(plan: Plan, offset: int) -> tuple[FilterTable, Complex]:
    """A table of the plan's block, (rows, count)."""
    (found,) = [t for t in plan.filter.tables if t.offset == offset]
    raw = np.frombuffer(tables.build(plan)[offset : offset + found.nbytes], np.complex64)
    return found, raw.reshape(found.rows, found.count).astype(np.complex128)


def stages(plan: Plan, kernel: FilterKernel, x: Complex, weighted: bool) -> Complex:
    """What a kernel's stages make of the last axis: DFTs and twiddles, digits of the result reversed."""
    shape = x.shape
    for number, stage in enumerate(kernel.stages):
        turned = weighted and number == 0
        x = x.reshape(*shape[:-1], -1, stage.radix, stage.rest)
        if turned:
            x = x * first_weights(stage.radix)[:, None]
        x = np.fft.fft(x, axis=-2)
        if stage.rest > 1:
            _, rows = table(plan, stage.table)
            for (k, _), row in zip(exponents(stage.radix, turned), rows, strict=True):
                single = 4 if stage.radix > 7 else stage.radix
                who = slice(k, None, single) if k < single else slice(k, k + single)
                x[..., who, :] *= row
    return x.reshape(shape)


def left_by_stages(plan: Plan, taps: Complex) -> Complex:
    """The transform of taps (N,) as the last stage leaves it."""
    filters = plan.filter
    if filters.whole:
        return stages(plan, filters.kernels[0], taps, plan.real_input)
    columns, rows, _ = filters.kernels
    x = stages(plan, columns, taps.reshape(columns.length, -1).T, plan.real_input).T
    column = np.arange(filters.rest)
    low, high = (table(plan, at)[1][0] for at in (filters.low_at, filters.high_at))
    last = columns.stages[-1].radix
    for place in range(columns.length):
        frequency, rest = 0, place // last
        for extent, stride in filters.reversal:
            frequency += rest % extent * stride
            rest //= extent
        frequency += place % last * (columns.length // last)
        m = column * (4 * frequency - 1) % (4 * plan.transform) if plan.real_input else column * frequency
        x[place] *= high[m // filters.split] * low[m % filters.split]
    return stages(plan, rows, x, False).reshape(-1)


def stored(plan: Plan, left: Complex) -> npt.NDArray[np.float64]:
    """What the end of the transform makes of it: pieces of rows in planes, (2 N,); NaN: nothing."""
    pieces, points = plan.filter.pieces, plan.filter.rest or plan.transform
    rows, inside = plan.transform // points, points // 8
    at = added(pieces.rows, rows)[:, None, None] + added(pieces.at, inside)[:, None] + np.arange(8)
    place = added(pieces.row_places, rows)[:, None, None] * points + (
        added(pieces.places, inside)[:, None] + np.array(pieces.offsets)
    )
    made = np.full(2 * plan.transform, np.nan)
    made[at], made[at + pieces.plane] = left[place].real, left[place].imag
    return made


def test_stages_tables_and_digits_give_the_spectrum(plan: Plan, rng: np.random.Generator) -> None:
    taps = rng.standard_normal(plan.transform) + (
        1j * rng.standard_normal(plan.transform) if plan.fold else 0
    )
    natural = taps
    if plan.real_input:
        natural = natural * np.exp(0.5j * np.pi * np.arange(plan.transform) / plan.transform)
    natural = np.fft.fft(natural)
    expected = natural.view(np.float64)[spectrum_index(plan)]
    found = stored(plan, left_by_stages(plan, taps))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1.5e-7, f"relative error {error:.2e}: more than the rounding of the tables"


def test_every_stored_number_has_one_place(plan: Plan) -> None:
    """By the digits alone: an injective map would do for no table, this one has to be onto, too."""
    places = stored(plan, np.arange(plan.transform) * (1 + 1j)).reshape(-1, 2, plan.filter.pieces.plane)
    assert np.array_equal(places[:, 0], places[:, 1])
    assert np.array_equal(np.sort(places[:, 0], axis=None), np.arange(plan.transform))


def test_kernels_fit_the_target(plan: Plan) -> None:
    chip = target(plan.target)
    assert prod(chosen(plan)) == plan.transform
    for kernel in plan.filter.kernels:
        assert kernel.shared_bytes <= chip.shared_block
        assert kernel.threads % 32 == 0
        assert 32 <= kernel.threads <= 1024
        assert kernel.resident * kernel.threads <= 32 * chip.warps_sm
        assert kernel.resident * (kernel.shared_bytes + chip.shared_reserved) <= chip.shared_sm
        points = kernel.length * kernel.columns
        if len(kernel.stages) > 1:
            assert 8 * (points + (points - 1) // kernel.run * kernel.gap) <= kernel.shared_bytes
    assert plan.filter.whole == (len(plan.filter.kernels) == 1)
    if not plan.filter.whole:  # one block could not have held it, even without gaps
        assert 8 * plan.transform + 256 > chip.shared_block


def test_tables_lie_behind_the_plans_and_do_not_overlap(plan: Plan) -> None:
    spans = {(t.offset, t.offset + t.nbytes) for t in (*plan.tables, *plan.filter.tables)}
    ordered = sorted(spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))
    assert ordered[-1][1] == plan.table_bytes
    assert all(t.offset % 16 == 0 for t in plan.filter.tables)


def test_the_plan_carries_its_filter_kernels_through_json(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest
    pieces = dataclasses.replace(plan.filter.pieces, plane=plan.filter.pieces.plane + 1)
    other = dataclasses.replace(plan.filter, pieces=pieces)
    assert dataclasses.replace(plan, filter=other).digest != plan.digest


@pytest.mark.parametrize("chip", ["sm_75", "sm_86", "sm_90"])
def test_every_length_has_filter_kernels(chip: str, rng: np.random.Generator) -> None:
    lengths = [n for n in transforms(256, 300_000) if has_shape(n)]
    for n in rng.choice(lengths, size=20, replace=False).tolist():
        found = plan_for(str(rng.choice(["causal", "circular"])), n, chip)
        assert found.filter.kernels, f"no filter kernels for {found}"


@pytest.mark.parametrize(("channels", "chunk"), [(1, 1), (5, 2), (6, 3), (7, 100)])
def test_chunks_cover_every_channel_once(channels: int, chunk: int) -> None:
    plan = plan_for("causal", 65_536)
    bounded = dataclasses.replace(plan.filter, chunk_bytes=chunk * 8 * plan.transform)
    launches = filter_launches(bounded, plan.transform, channels)
    columns, rows, level = bounded.kernels
    blocks = {
        columns: plan.transform // (columns.length * columns.columns),
        rows: plan.transform // rows.length,
        level: plan.transform // (rows.length * level.threads // 32),
    }
    for kernel, per_channel in blocks.items():
        done = [
            c for x in launches if x.kernel == kernel for c in range(x.first, x.first + x.grid // per_channel)
        ]
        assert done == list(range(channels))
    assert max(x.grid // blocks[x.kernel] for x in launches) <= chunk
    assert [x.kernel for x in launches] == [columns, rows, level] * -(-channels // chunk)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((16, 16), (16, 16)),
        ((32, 32, 32), (16, 16, 16, 8)),
        ((48, 16), (16, 3, 16)),
        ((80, 16, 16), (16, 5, 16, 16)),
        ((112, 96), (16, 7, 8, 4, 3)),
        ((64, 32), (16, 16, 8)),
    ],
)
def test_radices_are_few_and_even(factors: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert radices(prime_factors(factors)) == expected


def test_what_has_no_radices_is_refused() -> None:
    with pytest.raises(InternalError, match="176"):
        prime_factors((176,))
    with pytest.raises(InternalError, match="does not split"):
        transform_places(((4, 1), (4, 6)), (3, 8))

"""Rows whose sections the blocks of a cluster share (planner/spread.py): kernels in the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import compiled
import noise
import numpy as np
import pytest
import tolerance
import torch
from calls import TORCH, built, draw, filters
from cases import slow
from command_line import why_not
from test_sections import EXTREMES, POINTS, SIZES, changed, in_whole_sectors, rising
from torch import Tensor
from traffic import moved

from fftgen import emulate, execute, hot_path, toolkit
from fftgen.accuracy import IN_SECTIONS
from fftgen.errors import InternalError
from fftgen.planner import search, spread
from fftgen.planner.cost import work_of
from fftgen.planner.plan import CIRCULANT, FULL, LOWER, MATRICES, Plan
from fftgen.planner.sections import sectioned
from fftgen.planner.spread import MOST
from fftgen.planner.whole import Clusters
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import SimulationError
from fftgen.targets import target
from fftgen.verify import reference

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ALL = pytest.mark.parametrize("matrix", MATRICES)


def planned(
    matrix: str, sections: int, points: int = POINTS, dtype: str = "bf16", arch: str = "sm_90"
) -> Plan:
    problem = Problem("circular" if matrix == CIRCULANT else "causal", sections * points, dtype)
    back = matrix == FULL
    found = sectioned(problem, points, lambda p: search.plan(p, arch), back, spread_out=True)
    assert found is not None
    assert (found.sections, found.matrix, found.spread) == (sections, matrix, True)
    return found


def call(
    plan: Plan, u: Tensor, k: Tensor | None, ptx: str | None = None, seed: int = 0, **given: Any
) -> tuple[Tensor, emulate.Simulated]:
    module, own = built(plan)
    return emulate.convolve(module, u, k, ptx=ptx or own, seed=seed, **given)


def run(
    plan: Plan,
    u: Tensor,
    k: Tensor | None,
    ptx: str | None = None,
    seed: int = 0,
    clusters: Clusters | None = None,
    **given: Any,
) -> emulate.Simulated:
    """A call, its filter's spectra by kernels as well, judged."""
    y, simulated = call(plan, u, k, ptx, seed, clusters=clusters, **given)
    exact = reference(plan.problem, u, torch.zeros(u.shape[1], 1) if k is None else k, **given)
    tolerance.check(y.double().numpy(), exact, plan.problem.dtype, plan.order, plan.compute_format)
    return simulated


CASES = (
    (LOWER, 2, 8192, "bf16", "sm_90"),
    (LOWER, 8, 8192, "fp16", "sm_90"),
    (FULL, 5, 8192, "bf16", "sm_120"),
    (CIRCULANT, 4, 8192, "fp16", "sm_100"),
    (LOWER, 16, 8192, "bf16", "sm_90"),
    *slow(
        [
            (LOWER, 3, 32_768, "bf16", "sm_90"),
            (LOWER, 8, 16_384, "bf16", "sm_90"),
            (LOWER, 8, 20_480, "fp16", "sm_90"),
            (LOWER, 8, 24_576, "bf16", "sm_90"),
            (LOWER, 16, 16_384, "bf16", "sm_90"),
            (LOWER, 16, 32_768, "bf16", "sm_90"),
            (LOWER, 12, 32_768, "bf16", "sm_90"),
            (LOWER, 16, 40_960, "bf16", "sm_90"),
            (LOWER, 4, 40_960, "fp16", "sm_90"),
            (LOWER, 16, 20_480, "fp16", "sm_90"),
            (LOWER, 8, 40_960, "bf16", "sm_100"),
            (LOWER, 12, 20_480, "bf16", "sm_100"),
            (LOWER, 10, 16_384, "bf16", "sm_120"),
            (LOWER, 16, 20_480, "fp16", "sm_120"),
            (LOWER, 14, 12_288, "bf16", "sm_90"),
            (FULL, 16, 8192, "bf16", "sm_90"),
            (FULL, 8, 16_384, "fp16", "sm_90"),
            (FULL, 16, 32_768, "bf16", "sm_90"),
            (FULL, 8, 40_960, "bf16", "sm_100"),
            (FULL, 12, 16_384, "bf16", "sm_120"),
            (CIRCULANT, 8, 16_384, "bf16", "sm_90"),
            (CIRCULANT, 16, 16_384, "fp16", "sm_90"),
            (CIRCULANT, 15, 24_576, "bf16", "sm_90"),
            (CIRCULANT, 8, 40_960, "bf16", "sm_100"),
            (CIRCULANT, 12, 32_768, "fp16", "sm_90"),
            (CIRCULANT, 16, 8192, "fp16", "sm_120"),
        ]
    ),
)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("matrix", "sections", "points", "dtype", "arch"), CASES)
def test_sections_are_what_one_transform_is(
    matrix: str, sections: int, points: int, dtype: str, arch: str, rng: np.random.Generator
) -> None:
    """Gates and a skip; whole rows, and rows and filters that end inside a section."""
    plan, of = planned(matrix, sections, points, dtype, arch), TORCH[dtype]
    length = plan.problem.length
    for shape, taps in (((1, 2), length), ((2, 1), points + 100)):
        steps = length - (0 if taps == length else 1000)
        u, in_gate, out_gate = (draw(rng, *shape, steps).to(of) for _ in range(3))
        k = filters(rng, shape[1], taps, steps)
        back = {} if matrix == LOWER else {"k_rev": filters(rng, shape[1], taps, steps)}
        skip = torch.copysign(draw(rng, shape[1]).float(), k[:, 0])
        options = {"in_gate": in_gate, "out_gate": out_gate, "skip": skip, **back}
        run(plan, u, k, seed=int(rng.integers(2**31)), **options)


@pytest.mark.drawn(3)
@ALL
def test_sections_of_any_signal(matrix: str, rng: np.random.Generator) -> None:
    """Lengths, taps, layouts and clusters drawn; rows that start anywhere, and more of them than clusters."""
    plan = planned(matrix, int(rng.integers(2, MOST + 1)))
    length = plan.problem.length
    steps = int(rng.integers(1, length + 1))
    u = draw(rng, int(rng.integers(1, 4)), int(rng.integers(1, 3)), steps).bfloat16()
    k, k_rev = (filters(rng, u.shape[1], int(rng.integers(1, length + 1)), steps) for _ in range(2))
    which = int(rng.integers(3)) if matrix != LOWER else 2
    gate = {"in_gate": draw(rng, *u.shape).bfloat16()} if rng.integers(2) else {}
    clusters = Clusters(int(rng.integers(1, 9)), int(rng.integers(1, u.shape[0] * u.shape[1] + 1)))
    k, k_rev = None if which == 1 else k, None if which == 2 else k_rev
    run(plan, u, k, k_rev=k_rev, clusters=clusters, seed=int(rng.integers(2**31)), **gate)


def test_every_cluster_makes_the_same(rng: np.random.Generator) -> None:
    """Whoever makes a section or a product, bit for bit."""
    plan = planned(LOWER, 6)
    u, k = draw(rng, 3, 1, plan.problem.length - 500).bfloat16(), filters(rng, 1, plan.problem.length)
    sizes = (Clusters(1, 1), Clusters(2, 3), Clusters(8, 2), Clusters(4, 1), None)
    results = [call(plan, u, k, clusters=found)[0] for found in sizes]
    assert all(torch.equal(results[0], y) for y in results[1:])


@pytest.mark.parametrize(
    ("matrix", "sections", "points", "dtype"),
    [
        (LOWER, 7, 8192, "fp16"),
        *slow(
            [
                (LOWER, 16, 8192, "fp16"),
                (LOWER, 16, 16_384, "bf16"),
                (LOWER, 16, 32_768, "bf16"),
                (LOWER, 8, 24_576, "fp16"),
            ]
        ),
        *slow([(LOWER, 16, 40_960, "bf16"), (LOWER, 8, 8192, "bf16"), (LOWER, 11, 20_480, "fp16")]),
    ],
)
def test_noise_is_that_of_all_that_sections_hold(
    matrix: str, sections: int, points: int, dtype: str, rng: np.random.Generator
) -> None:
    """Of signals and filters of any shape (test_noise.py)."""
    plan = planned(matrix, sections, points, dtype)
    u, k = noise.drawn(rng, sections * points, dtype)
    noise.judge(call(plan, u, k)[0], reference(plan.problem, u, k), u, k, dtype, IN_SECTIONS)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("size", SIZES)
@ALL
def test_each_section_has_a_power_of_its_own(matrix: str, size: str, rng: np.random.Generator) -> None:
    plan = planned(matrix, 5)
    steps = plan.problem.length
    u = (draw(rng, 1, 1, steps) * SIZES[size](torch.arange(steps))).bfloat16()
    back = {} if matrix == LOWER else {"k_rev": filters(rng, 1, steps)}
    run(plan, u, filters(rng, 1, steps), **back)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("first", [0, POINTS - 3, POINTS + 2, 2 * POINTS + 5])
@ALL
def test_filters_that_leave_distances_empty(
    matrix: str, first: int, scale: float, rng: np.random.Generator
) -> None:
    """Pure delays, or almost: the spectrum of a section itself is zero, and asks for no room either."""
    plan = planned(matrix, 4)
    k = torch.zeros(1, plan.problem.length)
    k[:, first : first + 40] = filters(rng, 1, 40) * scale
    run(plan, draw(rng, 1, 1, plan.problem.length).bfloat16(), k)


@pytest.mark.drawn(4)
@pytest.mark.parametrize(("size", "first"), [*EXTREMES, (1.0, 1e-3), (1.0, 1e-8)])
@ALL
def test_powers_that_fp32_does_not_hold(
    size: float, first: float, matrix: str, rng: np.random.Generator
) -> None:
    """And filters that begin quietly: what a section adds to its own result is nothing beside the rest."""
    plan = planned(matrix, 4)
    u = (draw(rng, 1, 1, plan.problem.length) * size).bfloat16()
    run(plan, u, rising(rng, 1, plan.problem.length, first))


@ALL
def test_what_is_not_finite_spoils_what_it_reaches(matrix: str, rng: np.random.Generator) -> None:
    """Of the row: everything where later sections act on earlier ones, else its section and later ones."""
    plan = planned(matrix, 4)
    u, k = draw(rng, 2, 1, plan.problem.length).bfloat16(), filters(rng, 1, plan.problem.length)
    good, _ = call(plan, u, k)
    spoilt = u.clone()
    spoilt[0, 0, 2 * POINTS + 5] = float("inf")
    y, _ = call(plan, spoilt, k)
    assert torch.equal(y[1], good[1])
    from_here = 2 * POINTS if matrix == LOWER else 0
    assert torch.equal(y[0, 0, :from_here], good[0, 0, :from_here])
    assert bool(y[0, 0, from_here:].isnan().all())
    k[:] = float("nan")
    assert bool(call(plan, u, k)[0].isnan().all())


@pytest.mark.drawn(3)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("matrix", "sections"), [(LOWER, 3), (LOWER, 8), (LOWER, 11), (FULL, 5), (CIRCULANT, 4)]
)
def test_the_kernel_does_what_the_model_says(
    matrix: str, sections: int, gated: bool, rng: np.random.Generator
) -> None:
    plan, rows = planned(matrix, sections), 2
    u = draw(rng, rows, 1, plan.problem.length).bfloat16()
    k = filters(rng, 1, plan.problem.length)
    gates = {"in_gate": u.flip(-1), "out_gate": u.flip(0)} if gated else {}
    simulated = run(plan, u, k, **gates)
    counters = simulated.reports[plan.entry(plan.body)].counters
    in_whole_sectors(counters)
    work = work_of(plan, plan.body, target("sm_90"), gated)
    report = simulated.reports[plan.entry(plan.body)]
    copied = 2 * report.blocks * sum(t.nbytes for t in plan.tables if not t.name.startswith("outer"))
    tables = moved(counters, "loads", "tables", "spectrum")
    passed = counters.shared_loads.bytes + counters.shared_stores.bytes + tables - copied
    assert rows * work.shared_bytes == pytest.approx(passed, rel=0.04)  # beside peaks and powers
    assert sum(counters.tensor.values()) == 2 * rows * work.tensor_ops
    for kind, buffers, predicted in (
        ("loads", ("u", "in_gate", "out_gate"), work.loaded + work.gates),
        ("stores", ("y",), work.stored),
        ("loads", ("workspace",), work.workspace_loaded),
        ("stores", ("workspace",), work.workspace_stored),
        ("loads", ("spectrum",), work.spectrum),
    ):
        assert moved(counters, kind, *buffers) == rows * predicted, (kind, buffers)


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize(
    ("matrix", "sections", "points", "arch"),
    [
        (LOWER, 8, 16_384, "sm_90"),
        *slow([(LOWER, 16, 32_768, "sm_90"), (FULL, 8, 32_768, "sm_90"), (LOWER, 12, 40_960, "sm_100")]),
        *slow([(CIRCULANT, 5, 32_768, "sm_90"), (LOWER, 2, 32_768, "sm_100"), (LOWER, 6, 20_480, "sm_120")]),
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_instructions_by_formula_are_near_those_of_the_code(
    matrix: str, sections: int, points: int, arch: str, gated: bool
) -> None:
    plan = planned(matrix, sections, points, arch=arch)
    counted = hot_path.hot_paths(plan, gated)["convolve"].per_transform(plan.points)
    assert 0.9 < work_of(plan, plan.body, target(arch), gated).instructions / counted < 1.1


FIRST = "Cluster::barrier();\n        draw<0>(args);"  # of the two barriers in a row's loop; and the second
SECOND = "live, lane);\n        }\n        Cluster::barrier();"
DRAWN = "(piece = drawn<0>(args)) < args.items"
MUTATIONS = {
    "earlier sections alone": ("distance = AROUND && q > p ? p - q + AROUND", "distance = q > p ? 0"),
    "another section's transform": ("<CONJUGATE>(x.at[q],", "<CONJUGATE>(x.at[0],"),
    "transforms at the wrong power": ("max(result - term(p, q), 0)", "max(result - term(p, p), 0)"),
    "results at the power of another": ("powers.joined(index, sources(index)))", "powers.joined(0, 1))"),
    "own power not kept": ("[part] = SectionPowers<0>::kept", "[0] = SectionPowers<0>::kept"),
    "nothing kept": ("own[part * (N / 4)] = together(r[g][m]),", ""),
    "another section's result": ("sections + part * (N / 4) + 2 * tile", "sections + 2 * tile"),
    "results where another's go": ("sink(args, item.b, item.h), part * N)", "sink(args, item.b, item.h), 0)"),
    "half of the products": ("unit < N / (2 * LANES * COUNT)", "unit < N / (4 * LANES * COUNT)"),
    "terms left out": ("first < (AROUND ? SECTIONS : p + 1)", "first < (AROUND ? SECTIONS - 1 : p)"),
    "factors before powers": ("[index];\n            __syncthreads();", "[index];"),
    "products before transforms": (FIRST, FIRST.replace("Cluster::barrier", "__syncthreads")),
    "results before products": (SECOND, SECOND.replace("Cluster::barrier", "__syncthreads")),
    "every row the first": (DRAWN, DRAWN.replace("drawn", "0 * drawn")),
}  # fmt: skip


def test_every_mutation_has_its_place() -> None:
    source = render(planned(FULL, 5))
    for before, after in MUTATIONS.values():
        changed(source, before, after)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(mutation: str, rng: np.random.Generator) -> None:
    plan = planned(FULL, 5)
    module, _ = built(plan)
    source = changed(module.source, *MUTATIONS[mutation])
    ptx = emulate.line_ptx(replace(module, source=source))
    steps = plan.problem.length
    k = filters(rng, 1, steps).expand(2, -1)
    sizes = [SIZES[size](torch.arange(steps)) for size in ("rising", "falling")]
    u = torch.cat([(draw(rng, 1, 1, steps) * size).bfloat16() for size in sizes], dim=1)
    with pytest.raises((AssertionError, SimulationError, InternalError)):
        run(plan, u, k, ptx, clusters=Clusters(2, 2), k_rev=k)


@pytest.mark.parametrize(
    ("matrix", "sections", "points", "arch"),
    [
        (LOWER, 8, 16_384, "sm_90"),
        *slow([(LOWER, 8, 32_768, "sm_90"), (LOWER, 16, 32_768, "sm_90"), (LOWER, 16, 40_960, "sm_90")]),
        *slow([(FULL, 8, 32_768, "sm_90"), (CIRCULANT, 16, 32_768, "sm_100"), (FULL, 16, 16_384, "sm_90")]),
        *slow([(LOWER, 16, 20_480, "sm_120"), (LOWER, 8, 24_576, "sm_90"), (LOWER, 16, 16_384, "sm_90")]),
    ],
)
def test_next_to_no_registers_are_put_by(matrix: str, sections: int, points: int, arch: str) -> None:
    plan = planned(matrix, sections, points, arch=arch)
    found = compiled.cubin(render(plan), arch).resources[plan.name]
    assert found.spill_store_bytes <= (0 if points == 32_768 and arch == "sm_90" else 24)
    assert found.registers * 32 * plan.body.warps * plan.body.resident <= 65_536


def test_clusters_take_row_after_row(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """On a GPU of four multiprocessors two clusters draw from more rows."""
    plan = planned(LOWER, 4)
    small = target("sm_90").on(4, 1 << 20)
    monkeypatch.setattr(execute, "chip_of", lambda *_: small)
    found = spread.clusters(plan, 5, small)
    assert found.total < 5
    u = draw(rng, 1, 5, plan.problem.length).bfloat16()
    k = filters(rng, 5, plan.problem.length)
    report = run(plan, u, k, in_gate=u.flip(1)).reports[plan.name]
    assert report.blocks == found.size * found.total

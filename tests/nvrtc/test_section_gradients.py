"""All gradients of rows in sections (planner/gradient_sections.py): kernels in the simulator, each judged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import compiled
import gradients
import numpy as np
import pytest
import torch
from all_gradients import ALL, noise, run
from calls import built
from cases import slow
from command_line import fftgen, why_not
from gradients import draw
from test_sections import EXTREMES, POINTS, changed, in_whole_sectors, rising
from test_sections import planned as convolution
from traffic import moved

from fftgen import artifact, emulate, gradient, gradient_accuracy, hot_path, toolkit, verify
from fftgen.api import jobs_for
from fftgen.bounded import Bounded
from fftgen.bundle import build_all, bundle, open_shelf
from fftgen.errors import InternalError
from fftgen.gradient import Needed
from fftgen.planner import gradient_launch, gradient_section_work, spread
from fftgen.planner.gradient_launch import launches
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_section_work import sums_work
from fftgen.planner.gradient_sections import in_sections
from fftgen.planner.gradient_work import gradient_work
from fftgen.planner.sections import MOST
from fftgen.problem import Problem
from fftgen.render import render_gradient
from fftgen.simulator import SimulationError
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

GATES = ("in_gate", "out_gate")


def planned(sections: int, points: int = POINTS, dtype: str = "bf16", arch: str = "sm_90") -> Gradient:
    return in_sections(convolution(sections, points, dtype, arch))


def sections_of_many_powers(found: Gradient, size: str, rng: np.random.Generator) -> None:
    steps = found.problem.length
    t = torch.arange(steps)
    scale = {
        "rising": 2.0 ** (t.double() / POINTS * 2 - 10),
        "falling": 2.0 ** (-t.double() / POINTS * 6),
        "a loud section": torch.where(t // POINTS == 1, 1e4, 1.0),
        "tiny": torch.full((steps,), 1e-15, dtype=torch.float64),
        "huge": torch.full((steps,), 1e15, dtype=torch.float64),
    }[size]
    given = draw(rng, (1, 1, steps), steps, (), torch.bfloat16)
    given["u"] = (given["u"].detach().double() * scale).bfloat16()
    made, _ = run(found, rng, (1, 1, steps), (), given=given)
    assert bool(made.filter.isfinite().all())


def a_bad_cotangent(found: Gradient, bad: float, rng: np.random.Generator) -> None:
    module, ptx = built(found)
    shape = (2, 2, found.problem.length)
    given = draw(rng, shape, shape[-1], GATES, torch.bfloat16)
    u, k, in_gate, out_gate = (x.detach() for x in given.values())
    v = noise(rng, *shape).bfloat16()
    options = {"needed": ALL, "taps": shape[-1], "in_gate": in_gate, "out_gate": out_gate, "ptx": ptx}
    clean, _ = emulate.backward(module, u, v, k, **options)
    v[1, 0, POINTS + 7] = bad
    made, _ = emulate.backward(module, u, v, k, **options)
    for out, whole in zip(made[:2], clean[:2], strict=True):
        assert out is not None
        assert whole is not None
        assert not out[1, 0, : 2 * POINTS].isfinite().any()
        others = torch.ones(shape, dtype=torch.bool)
        others[1, 0, : 2 * POINTS] = False
        assert torch.equal(out[others], whole[others])
    assert not made.filter[0, : 2 * POINTS].isfinite().any()
    assert torch.equal(made.filter[0, 2 * POINTS :], clean.filter[0, 2 * POINTS :])
    assert torch.equal(made.filter[1], clean.filter[1])


def a_quiet_start(found: Gradient, first: float, rng: np.random.Generator) -> None:
    shape = 1, 2, found.problem.length
    given = draw(rng, shape, shape[-1], GATES, torch.bfloat16)
    run(found, rng, shape, GATES, given={**given, "k": rising(rng, 2, shape[-1], first)})


def extreme_powers(found: Gradient, size: float, first: float, rng: np.random.Generator) -> None:
    shape = 1, 1, found.problem.length
    given = draw(rng, shape, shape[-1], ("out_gate",), torch.bfloat16)
    u = (given["u"].detach().double() * min(size, 1e35)).bfloat16()  # sums of products are to fit, too
    run(found, rng, shape, ("out_gate",), given={**given, "u": u, "k": rising(rng, 1, shape[-1], first)})


def whole_rows_and_short_ones(found: Gradient, rng: np.random.Generator) -> None:
    length = found.problem.length
    run(found, rng, (1, 2, length))
    run(found, rng, (2, 1, length - 8 * int(rng.integers(1, 400))), taps=found.plan.transform + 100)


def what_is_wanted(found: Gradient, needed: tuple[bool, bool, bool], rng: np.random.Generator) -> None:
    wanted = zip(GATES, needed[1:], strict=True)
    gates = tuple(name for name, need in wanted if need or rng.integers(2))
    _, simulated = run(found, rng, (1, 1, found.problem.length), gates, Needed(*needed))
    stores = {n for r in simulated.reports.values() for n, b in r.counters.buffers.items() if b.stores.bytes}
    results = {n for n, need in zip(emulate.RESULTS, needed, strict=True) if need}
    assert stores & set(emulate.RESULTS) == results


CASES = (
    (2, 8192, "bf16", "sm_90"),
    (2, 32_768, "bf16", "sm_90"),
    (2, 12_288, "fp16", "sm_90"),  # columns by butterflies
    *slow(
        [
            (3, 20_480, "bf16", "sm_90"),
            (2, 24_576, "bf16", "sm_80"),
            (3, 24_576, "fp16", "sm_90"),
            (3, 12_288, "bf16", "sm_86"),
            (2, 40_960, "bf16", "sm_90"),
            (4, 40_960, "fp16", "sm_90"),
            (4, 8192, "fp16", "sm_80"),
            (2, 16_384, "bf16", "sm_90"),
            (3, 16_384, "fp16", "sm_90"),
            (3, 32_768, "bf16", "sm_90"),
            (4, 32_768, "bf16", "sm_90"),
            (2, 32_768, "fp16", "sm_80"),
            (2, 32_768, "bf16", "sm_100"),
            (4, 16_384, "bf16", "sm_86"),
            (2, 16_384, "bf16", "sm_89"),
            (4, 16_384, "bf16", "sm_89"),
            (4, 16_384, "fp16", "sm_120"),
            (5, 16_384, "bf16", "sm_89"),
            (6, 16_384, "fp16", "sm_89"),
            (5, 32_768, "bf16", "sm_80"),
            (6, 32_768, "bf16", "sm_90"),
            (5, 32_768, "fp16", "sm_100"),
            (6, 16_384, "bf16", "sm_120"),
        ]
    ),
)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("sections", "points", "dtype", "arch"), CASES)
def test_all_gradients(sections: int, points: int, dtype: str, arch: str, rng: np.random.Generator) -> None:
    """Of gates and a skip; whole rows, and rows and filters that end inside a section."""
    whole_rows_and_short_ones(planned(sections, points, dtype, arch), rng)


@pytest.mark.drawn(3)
def test_rows_of_any_length(rng: np.random.Generator) -> None:
    """Steps, taps, gates and layouts drawn: rows that start anywhere among them, and short ones."""
    for _ in range(2):
        found = planned(int(rng.integers(2, MOST + 1)))
        steps = int(rng.integers(1, found.problem.length + 1))
        shape = int(rng.integers(1, 4)), int(rng.integers(1, 3)), steps
        options = tuple(name for name in (*GATES, "skip") if rng.integers(2))
        taps = int(rng.integers(1, found.problem.length + 1))
        run(found, rng, shape, options, taps=taps, off=int(rng.integers(2)))


@pytest.mark.drawn(7)
@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
def test_what_is_wanted_and_no_more(needed: tuple[bool, bool, bool], rng: np.random.Generator) -> None:
    """Results one by one and together, with gates that are there though nobody wants their gradient."""
    what_is_wanted(planned(int(rng.integers(2, 4))), needed, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("gates", [0, 2])
def test_a_filters_gradient_alone(gates: int, rng: np.random.Generator) -> None:
    """Without its spectrum, and without a way back for either signal; of a short row, and with fewer taps."""
    found = planned(3)
    module, ptx = built(found)
    for steps, taps in ((found.problem.length, found.problem.length), (POINTS + 1000, POINTS - 5)):
        given = [noise(rng, 2, 2, steps).bfloat16() for _ in range(2 + gates)]
        options = dict(zip(GATES, given[2:], strict=False))
        dk, simulated = emulate.gradient(module, *given[:2], taps=taps, ptx=ptx, **options)
        exact = verify.gradient_reference(*given[:2], *(options.get(name) for name in GATES), taps, 0)
        expected = gradient_accuracy.filters("bf16", found.plan.order, found.plan.compute_format)
        gradients.judge(dk, torch.from_numpy(exact), expected)
        own = simulated.reports[found.name].counters
        assert set(own.buffers) >= {"u", "v_u", "workspace", "v_workspace", "scale"}
        assert "spectrum" not in own.buffers
        if steps == found.problem.length:
            work = gradient_work(found, target("sm_90"), gates == 2, alone=True)
            assert sum(own.tensor.values()) == 2 * 4 * work.tensor_ops
            signals = ("u", "v_u", "in_gate", "v_in_gate")
            assert moved(own, "loads", *signals) == 4 * (work.loaded + work.gates)
            assert moved(own, "stores", "workspace", "v_workspace") == 4 * work.workspace_stored
            assert moved(own, "loads", "workspace", "v_workspace") == work.workspace_loaded == 0


def at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have so many rows go together, in calls that are planned anew."""
    monkeypatch.setattr(gradient_launch, "rows_at_once", lambda *_: rows)
    monkeypatch.setattr(gradient, "_planned", Bounded())


@pytest.mark.parametrize("rows", [3, *slow([1, 2, 5, 7])])
def test_rows_go_in_turns_that_end_anywhere(
    rows: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """So many rows at a time, of channels with 7: what a turn adds, another has left. Blocks take several."""
    found, shape = planned(2), (7, 2, POINTS + 1000)
    at_once(rows, monkeypatch)
    made = launches(found, *shape)
    assert [x.launch.items for x in made[::2]] == [rows] * (14 // rows) + [14 % rows] * (14 % rows > 0)
    assert {x.workers for x in made[1::2]} <= {1, 2, 4}
    run(found, rng, shape)


def test_the_workspace_has_a_bound() -> None:
    """Whatever the batch: the rows that go together keep the chip busy, and stay in the L2 as a rule."""
    for sections, points, arch, fits in (
        (2, 32_768, "sm_90", True),
        (2, 32_768, "sm_80", True),
        (4, 16_384, "sm_89", True),
        (4, 32_768, "sm_90", False),
    ):
        found, chip = planned(sections, points, arch=arch), target(arch)
        rows = gradient_section_work.rows_at_once(found, chip)
        assert rows % (chip.multiprocessors * found.kernel.resident // 2) == 0
        elements, words = gradient_launch.space(found, 10_000, 100)
        assert (elements, words) == (2 * found.plan.transform * sections * rows, sections * rows)
        assert (4 * elements <= spread.ROOM * chip.l2_bytes) == fits
        assert gradient_launch.space(found, 1, 3) == (2 * found.plan.transform * sections * 3, 3 * sections)
        for launch in launches(found, 10, 100, found.problem.length)[::2]:
            assert launch.launch.grid <= chip.multiprocessors * found.kernel.resident
            assert launch.launch.grid * launch.launch.run >= 2 * launch.launch.items


@pytest.mark.drawn(2)
@pytest.mark.parametrize("size", ["rising", "falling", "a loud section", "tiny", "huge"])
def test_each_section_has_a_power_of_its_own(size: str, rng: np.random.Generator) -> None:
    sections_of_many_powers(planned(3), size, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_belongs(bad: float, rng: np.random.Generator) -> None:
    """A bad cotangent spoils du and d in_gate of its section and of earlier ones, and of dk what meets it."""
    a_bad_cotangent(planned(3), bad, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("first", [1e-3, 1e-5, 1e-8])
def test_filters_that_begin_quietly(first: float, rng: np.random.Generator) -> None:
    """As in test_sections.py, for both signals."""
    a_quiet_start(planned(3), first, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("size", "first"), EXTREMES[:3])
def test_powers_that_fp32_does_not_hold(size: float, first: float, rng: np.random.Generator) -> None:
    extreme_powers(planned(3), size, first, rng)


MUTATIONS = {
    "the filter as it is": ("add_product<true>(", "add_product<false>("),
    "its own spectrum as it is": ("twist_tile<true>(re_of", "twist_tile<false>(re_of"),
    "sections forwards": ("const int part = live - 1 - step;", "const int part = step;"),
    "spectra the wrong way around": ("BACKWARDS ? live - 1 - q : q", "q"),
    "no next distance": ("    sums.turn();\n", ""),
    "scales of another section": ("x.down[q] * v.down[p]", "x.down[0] * v.down[0]"),
    "no other warps": ("if (way < half) sums.template add<PLACE>(place);", ""),
    "no other rows": ("if (begin != first) sums.template add<N / 2>(to);", ""),
    "a conjugate of the other signal": ("re[2 * j + k] += scale * (a[k] * c[k] + b[k] * d[k]);", ""),
}


@pytest.mark.drawn(9)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(
    mutation: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    found = planned(3)
    at_once(2, monkeypatch)
    module, _ = built(found)
    ptx = emulate.line_ptx(replace(module, source=changed(module.source, *MUTATIONS[mutation])))
    shape = (3, 1, found.problem.length)
    given = draw(rng, shape, shape[-1], GATES, torch.float32)
    rising = 2.0 ** (torch.arange(shape[-1]) / POINTS * 4 - 10)
    given = {n: x.detach() * rising if n == "u" else x.detach() for n, x in given.items()}
    given = {n: x if n == "k" else x.bfloat16() for n, x in given.items()}
    with pytest.raises((AssertionError, SimulationError, InternalError)):
        run(found, rng, shape, GATES, ptx=ptx, given=given)


@pytest.mark.parametrize(
    ("sections", "points", "arch"),
    [
        (2, 32_768, "sm_90"),
        *slow([(2, 16_384, "sm_89"), (3, 16_384, "sm_90"), (4, 32_768, "sm_80"), (2, 40_960, "sm_90")]),
    ],
)
def test_next_to_nothing_is_put_by(sections: int, points: int, arch: str) -> None:
    found = planned(sections, points, arch=arch)
    resources = compiled.cubin(render_gradient(found), arch).resources
    for name, few in ((found.name, 4), (found.sums_name, 16)):
        assert resources[name].spill_store_bytes <= few
    assert resources[found.name].registers <= 128


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("sections", "points"), [(2, 8192), (3, 8192), *slow([(2, 12_288), (2, 24_576), (3, 40_960)])]
)
def test_the_kernels_do_what_the_model_says(
    sections: int, points: int, gated: bool, rng: np.random.Generator
) -> None:
    found, chip, rows = planned(sections, points), target("sm_90"), 3
    shape = (rows, 1, found.problem.length)
    needed = Needed(True, gated, gated)
    _, simulated = run(found, rng, shape, GATES if gated else (), needed)
    work, own = gradient_work(found, chip, gated), simulated.reports[found.name].counters
    signals = ("u", "v_u", "in_gate", "v_in_gate", "v_gate", "d_u_gate", "d_in_gate_gate")
    workspaces = ("workspace", "v_workspace")
    assert sum(own.tensor.values()) == 2 * rows * work.tensor_ops
    for kind, buffers, predicted in (
        ("loads", signals, work.loaded + work.gates),
        ("stores", emulate.RESULTS, work.stored),
        ("loads", workspaces, work.workspace_loaded),
        ("stores", workspaces, work.workspace_stored),
        ("loads", ("spectrum",), work.spectrum),
    ):
        assert moved(own, kind, *buffers) == rows * predicted, (kind, buffers)
    in_whole_sectors(own)
    copied = 2 * simulated.reports[found.name].blocks * compiled_tables(found)
    tables = moved(own, "loads", "tables") + moved(own, "loads", "spectrum")
    passed = own.shared_loads.bytes + own.shared_stores.bytes + tables - copied
    assert rows * work.shared_bytes == pytest.approx(passed, rel=0.02)  # beside peaks and powers
    summed = simulated.reports[found.sums_name].counters
    assert moved(summed, "loads", *workspaces) == rows * sums_work(found, chip).workspace_loaded
    assert moved(summed, "stores", "sums") == 8 * found.problem.length


def compiled_tables(found: Gradient) -> int:
    """Bytes that a block copies to shared memory."""
    return sum(t.nbytes for t in found.plan.tables if not t.name.startswith("outer"))


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize(
    ("points", "gated"),
    [(32_768, True), *slow([(32_768, False), (24_576, True), (24_576, False)])],
)
def test_instructions_by_formula_are_near_those_of_the_code(points: int, gated: bool) -> None:
    found = planned(2, points)
    paths, chip, length = hot_path.gradient_hot_paths(found, gated), target("sm_90"), found.problem.length
    for label, work in ((found.label, gradient_work(found, chip, gated)), ("sums", sums_work(found, chip))):
        assert 0.85 < work.instructions / paths[label].per_transform(length) < 1.15


def test_artifacts_carry_the_gradients_of_what_many_rows_take(tmp_path: Path) -> None:
    problem = Problem("causal", 65_536, "bf16")
    asked = jobs_for(problem, [target("sm_90")], train=True)
    assert [kind for *_, kind in asked if "sections" in kind] == ["sections", "backward sections"]
    assert "backward sections" not in [
        kind for *_, kind in jobs_for(problem, [target("sm_90")], train=True, engine="mma")
    ]
    made = build_all([job for job in asked if "sections" in job[2]])
    file = tmp_path / "a.fftgen"
    artifact.write(file, bundle(made))
    shelf = open_shelf(file)
    (plan,) = shelf.trained_sections(problem, (9, 0))
    assert shelf.trained_sections(problem, (9, 0)) == shelf.sections(problem, (9, 0))
    found = shelf.backward_sectioned(plan)
    assert found.gradient == in_sections(plan)
    assert found.cubin == made[1].cubin != b""
    assert set(found.entries) == set(made[1].source.entries)
    assert shelf.backward(problem, (9, 0)) is None  # those of one transform are another kind
    assert "sums" in fftgen("inspect", str(file)).stdout


@pytest.mark.slow
def test_an_artifact_with_gradients_in_sections_is_verified(tmp_path: Path) -> None:
    problem, file = Problem("causal", 65_536, "bf16"), tmp_path / "a.fftgen"
    asked = jobs_for(problem, [target("sm_90")], train=True)
    artifact.write(file, bundle(build_all([job for job in asked if "sections" in job[2]])))
    answered = fftgen("verify", "--quick", "--arch", "sm_90", str(file))
    assert answered.exit_code == 0, answered.stdout
    assert "2 sections, whose spectra a kernel of its own sums up" in answered.stdout


def test_a_name_a_digest_and_a_text_of_its_own() -> None:
    found = planned(2)
    assert found.name.startswith("fftgen_backward_n16384_bf16_")
    assert "2 sections" in str(found)
    assert Gradient.from_json(found.to_json()) == found
    assert planned(3).digest != found.digest


@pytest.mark.parametrize("rows", [4, 8])
def test_all_warps_of_a_block_share_a_tile(rows: int, rng: np.random.Generator) -> None:
    """As those of every batch of eight and more do: halves of halves are added up."""
    found, shape = planned(2), (rows, 1, POINTS + 1000)
    assert {x.workers for x in launches(found, *shape)[1::2]} == {rows}
    run(found, rng, shape)

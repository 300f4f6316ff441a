"""All gradients of rows whose sections clusters share (planner/spread.py): kernels in the simulator."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import compiled
import gradients
import numpy as np
import pytest
import torch
from all_gradients import ALL, noise, run
from calls import built
from cases import slow
from command_line import why_not
from gradients import draw
from test_section_gradients import (
    GATES,
    a_bad_cotangent,
    a_quiet_start,
    compiled_tables,
    extreme_powers,
    sections_of_many_powers,
    what_is_wanted,
    whole_rows_and_short_ones,
)
from test_sections import EXTREMES, POINTS, changed, in_whole_sectors
from test_spread import planned as convolution
from traffic import moved

from fftgen import emulate, gradient, gradient_accuracy, hot_path, toolkit, verify
from fftgen.bounded import Bounded
from fftgen.errors import DriverError, InternalError
from fftgen.gradient import Needed
from fftgen.planner import gradient_launch, spread
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_sections import in_sections
from fftgen.planner.gradient_work import gradient_work
from fftgen.planner.plan import LOWER
from fftgen.planner.whole import Clusters
from fftgen.render import render_gradient
from fftgen.simulator import SimulationError
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def planned(sections: int, points: int = POINTS, dtype: str = "bf16", arch: str = "sm_90") -> Gradient:
    return in_sections(convolution(LOWER, sections, points, dtype, arch))


CASES = (
    (4, 8192, "bf16", "sm_90"),
    (8, 8192, "fp16", "sm_120"),
    (10, 8192, "bf16", "sm_90"),  # more than registers hold
    *slow(
        [
            (2, 8192, "bf16", "sm_90"),
            (3, 12_288, "fp16", "sm_90"),
            (4, 32_768, "bf16", "sm_90"),
            (4, 40_960, "fp16", "sm_90"),
            (6, 32_768, "bf16", "sm_90"),
            (8, 32_768, "bf16", "sm_90"),
            (6, 40_960, "bf16", "sm_90"),
            (8, 40_960, "bf16", "sm_90"),
            (8, 24_576, "bf16", "sm_100"),
            (16, 32_768, "bf16", "sm_100"),
            (16, 16_384, "fp16", "sm_90"),
            (8, 16_384, "bf16", "sm_120"),
            (15, 16_384, "bf16", "sm_120"),
            (16, 20_480, "bf16", "sm_120"),
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
    found = planned(int(rng.integers(2, 11)))
    steps = int(rng.integers(1, found.problem.length + 1))
    shape = int(rng.integers(1, 4)), int(rng.integers(1, 3)), steps
    options = tuple(name for name in (*GATES, "skip") if rng.integers(2))
    taps = int(rng.integers(1, found.problem.length + 1))
    run(found, rng, shape, options, taps=taps, off=int(rng.integers(2)))


@pytest.mark.drawn(7)
@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
def test_what_is_wanted_and_no_more(needed: tuple[bool, bool, bool], rng: np.random.Generator) -> None:
    """Results one by one and together, with gates that are there though nobody wants their gradient."""
    what_is_wanted(planned(int(rng.choice([3, 9]))), needed, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("sections", [3, 9])
@pytest.mark.parametrize("gates", [0, 2])
def test_a_filters_gradient_alone(gates: int, sections: int, rng: np.random.Generator) -> None:
    """Without its spectrum, and without a way back for either signal; of a short row, and with fewer taps."""
    found = planned(sections)
    module, ptx = built(found)
    for steps, taps in ((found.problem.length, found.problem.length), (POINTS + 1000, POINTS - 5)):
        given = [noise(rng, 2, 2, steps).bfloat16() for _ in range(2 + gates)]
        options = dict(zip(GATES, given[2:], strict=False))
        dk, simulated = emulate.gradient(module, *given[:2], taps=taps, ptx=ptx, **options)
        exact = verify.gradient_reference(*given[:2], *(options.get(name) for name in GATES), taps, 0)
        expected = gradient_accuracy.filters("bf16", found.plan.order, found.plan.compute_format)
        gradients.judge(dk, torch.from_numpy(exact), expected)
        own = simulated.reports[found.name].counters
        assert "spectrum" not in own.buffers
        if steps == found.problem.length:
            work = gradient_work(found, target("sm_90"), gates == 2, alone=True)
            assert sum(own.tensor.values()) == 2 * 4 * work.tensor_ops
            signals = ("u", "v_u", "in_gate", "v_in_gate")
            assert moved(own, "loads", *signals) == 4 * (work.loaded + work.gates)


def test_clusters_have_parts_of_a_channels_rows(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Of few channels with many rows; on a small chip a cluster has several."""
    found = planned(2)
    small = target("sm_90").on(4, 1 << 20)
    monkeypatch.setattr(gradient, "chip_of", lambda *_: small)
    monkeypatch.setattr(gradient, "_planned", Bounded())
    shape = (9, 2, POINTS + 1000)
    shared = gradient_launch.parts(found, *shape[:2], small)
    there = gradient_launch.sharing(found, *shape[:2], small)
    assert shared > 1
    assert 2 * shared >= there.total
    made, simulated = run(found, rng, shape)
    assert simulated.reports[found.name].blocks == there.size * there.total
    assert made.filter.shape == (2, shape[-1])


@pytest.mark.parametrize("of", [Clusters(2, 1), *slow([(Clusters(1, 2),), (Clusters(8, 2),)])])
def test_every_cluster_makes_the_same(
    of: Clusters, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    found, shape = planned(4), (2, 2, 4 * POINTS - 500)
    module, ptx = built(found)
    given = draw(rng, shape, shape[-1], GATES, torch.bfloat16)
    u, k, *gates = (x.detach() for x in given.values())
    v, how = noise(rng, *shape).bfloat16(), dict(zip(GATES, gates, strict=True))
    usual, _ = emulate.backward(module, u, v, k, needed=ALL, taps=shape[-1], ptx=ptx, **how)
    monkeypatch.setattr(gradient_launch, "sharing", lambda *_: of)
    monkeypatch.setattr(gradient, "_planned", Bounded())
    made, _ = emulate.backward(module, u, v, k, needed=ALL, taps=shape[-1], ptx=ptx, **how)
    assert all(torch.equal(x, y) for x, y in zip(usual, made, strict=True))


def test_where_clusters_are_refused_blocks_take_rows_by_themselves(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Once, and from then on."""
    monkeypatch.setattr(gradient, "_refusing", set())
    found, shape = planned(3), (2, 1, 3 * POINTS)
    asked: list[int] = []
    launch = emulate.Simulated.launch

    def refusing(self: emulate.Simulated, *given: Any) -> None:
        if given[0] == found.name:
            asked.append(given[5])
        if len(given) > 5 and given[5] > 1:
            for name in tuple(self._tensors):
                self.memory.unbind(name)
            raise DriverError("refused", DriverError.CLUSTERS)
        launch(self, *given)

    monkeypatch.setattr(emulate.Simulated, "launch", refusing)
    for _ in range(2):
        run(found, rng, shape)
    assert asked[0] > 1
    assert asked[1:] == [1, 1]


@pytest.mark.drawn(2)
@pytest.mark.parametrize("size", ["rising", "falling", "a loud section", "tiny", "huge"])
def test_each_section_has_a_power_of_its_own(size: str, rng: np.random.Generator) -> None:
    sections_of_many_powers(planned(3), size, rng)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_belongs(bad: float, rng: np.random.Generator) -> None:
    """A bad cotangent spoils du and d in_gate of its section and of earlier ones, and of dk what meets it."""
    a_bad_cotangent(planned(4), bad, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("first", [1e-3, 1e-5, 1e-8])
def test_filters_that_begin_quietly(first: float, rng: np.random.Generator) -> None:
    """As in test_sections.py, for both signals."""
    a_quiet_start(planned(3), first, rng)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("size", "first"), EXTREMES[:3])
def test_powers_that_fp32_does_not_hold(size: float, first: float, rng: np.random.Generator) -> None:
    extreme_powers(planned(3), size, first, rng)


WANTED = "both.x.y.data != nullptr, both.v.y.data != nullptr, "
BEFORE, AFTER = "if (b_of == end - 1) draw<0>(both.x);", "(at, unit, live, lane);\n        }\n        "
MUTATIONS = {
    "the filter as it is": ("section_products<0, true>(reversed", "section_products<0, false>(reversed"),
    "sections forwards": ("reversed.at[q] = v.at[LAST - q]", "reversed.at[q] = v.at[q]"),
    "no next distance": ("own_re[i] = re[j][i] - later_im[i]", "own_re[i] = re[j][i]"),
    "X at one power": ("const float factor = meeting[q];", "const float factor = meeting[0];"),
    "V at one power": ("meeting[SECTIONS + SECTIONS - 1 - p]", "meeting[SECTIONS]"),
    "no other rows": (f"{WANTED}b_of == begin}}", f"{WANTED}true}}"),
    "a conjugate of the other signal": ("fmaf(-xi[i], vr[p][i],", "fmaf(xi[i], vr[p][i],"),
    "half of the frequencies": ("unit < N / (2 * LANES * COUNT)", "unit < N / (4 * LANES * COUNT)"),
    "another's results": ("undone(peaks)[SECTIONS + SECTIONS - 1 - part]", "undone(peaks)[SECTIONS + part]"),
    "powers of the other way around": ("(args)[SECTIONS - 1 - part] = ", "(args)[part] = "),
    "sums before transforms": (f"Cluster::barrier();\n        {BEFORE}", f"__syncthreads(); {BEFORE}"),
    "results before products": (f"{AFTER}Cluster::barrier();", f"{AFTER}__syncthreads();"),
}  # fmt: skip


def test_every_mutation_has_its_place() -> None:
    source = render_gradient(planned(4))
    for before, after in MUTATIONS.values():
        changed(source, before, after)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(mutation: str, rng: np.random.Generator) -> None:
    found = planned(4)
    module, _ = built(found)
    ptx = emulate.line_ptx(replace(module, source=changed(module.source, *MUTATIONS[mutation])))
    shape = (3, 1, found.problem.length)
    given = draw(rng, shape, shape[-1], GATES, torch.float32)
    rising = 2.0 ** (torch.arange(shape[-1]) / POINTS * 4 - 10)
    given = {n: x.detach() * rising if n in ("u", "out_gate") else x.detach() for n, x in given.items()}
    given = {n: x if n == "k" else x.bfloat16() for n, x in given.items()}
    with pytest.raises((AssertionError, SimulationError, InternalError)):
        run(found, rng, shape, GATES, ptx=ptx, given=given)


@pytest.mark.parametrize(
    ("sections", "points", "arch"),
    [(8, 32_768, "sm_90"), *slow([(16, 32_768, "sm_100"), (8, 40_960, "sm_90"), (8, 16_384, "sm_120")])],
)
def test_few_registers_are_put_by(sections: int, points: int, arch: str) -> None:
    found = planned(sections, points, arch=arch)
    resources = compiled.cubin(render_gradient(found), arch).resources[found.name]
    assert resources.spill_store_bytes <= 96
    assert resources.registers <= 128


@pytest.mark.drawn(2)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("sections", "points"), [(3, 8192), (9, 8192), *slow([(8, 8192), (10, 8192), (4, 40_960)])]
)
def test_the_kernel_does_what_the_model_says(
    sections: int, points: int, gated: bool, rng: np.random.Generator
) -> None:
    found, chip, rows = planned(sections, points), target("sm_90"), 3
    assert gradient_launch.parts(found, rows, 1) == 1
    shape = (rows, 1, found.problem.length)
    _, simulated = run(found, rng, shape, GATES if gated else (), Needed(True, gated, gated))
    work, own = gradient_work(found, chip, gated), simulated.reports[found.name].counters
    signals = ("u", "v_u", "in_gate", "v_in_gate", "v_gate", "d_u_gate", "d_in_gate_gate")
    workspaces, sums = ("workspace", "v_workspace"), 8 * found.problem.length
    assert sum(own.tensor.values()) == 2 * rows * work.tensor_ops
    for kind, buffers, predicted in (
        ("loads", signals, rows * (work.loaded + work.gates)),
        ("stores", emulate.RESULTS, rows * work.stored),
        ("loads", workspaces, rows * (work.workspace_loaded - sums)),
        ("stores", workspaces, rows * (work.workspace_stored - sums)),
        ("loads", ("spectrum",), rows * work.spectrum),
        ("loads", ("sums",), (rows - 1) * sums),  # the first row finds none
        ("stores", ("sums",), rows * sums),
    ):
        assert moved(own, kind, *buffers) == predicted, (kind, buffers)
    in_whole_sectors(own)
    copied = 2 * simulated.reports[found.name].blocks * compiled_tables(found)
    tables = moved(own, "loads", "tables") + moved(own, "loads", "spectrum")
    passed = own.shared_loads.bytes + own.shared_stores.bytes + tables - copied
    assert rows * work.shared_bytes == pytest.approx(passed, rel=0.04)  # beside peaks and powers


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize(
    ("sections", "points", "arch", "gated"),
    [
        (8, 32_768, "sm_90", True),
        *slow([(4, 32_768, "sm_90", False), (16, 32_768, "sm_90", True), (6, 20_480, "sm_120", False)]),
    ],
)
def test_instructions_by_formula_are_near_those_of_the_code(
    sections: int, points: int, arch: str, gated: bool
) -> None:
    found = planned(sections, points, arch=arch)
    path = hot_path.gradient_hot_paths(found, gated)[found.label]
    work = gradient_work(found, target(arch), gated)
    assert 0.85 < work.instructions / path.per_transform(found.problem.length) < 1.15


def test_the_workspace_has_a_bound() -> None:
    """Whatever the batch: of the clusters that there are."""
    found, chip = planned(8, 32_768), target("sm_90")
    there = spread.many(found.plan, chip, signals=2)
    assert 8 * found.plan.points * there.total <= spread.ROOM * chip.l2_bytes
    for batch, channels in ((10_000, 100), (64, 768), (64, 3)):
        elements, words = gradient_launch.space(found, batch, channels)
        assert elements <= 2 * found.plan.points * there.total
        assert words <= spread.peaks_words(found.plan, there)


def test_a_name_a_digest_and_a_text_of_its_own() -> None:
    found = planned(8, 32_768)
    assert found.name.startswith("fftgen_backward_n262144_bf16_")
    assert "8 sections shared by clusters" in str(found)
    assert Gradient.from_json(found.to_json()) == found

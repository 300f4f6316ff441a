"""Rows in sections: which plans there are, when calls take them, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import gradients
import numpy as np
import pytest
import torch
from command_line import answer, fftgen
from fake_gpu import seems_on_an_h200
from torch import Tensor

import fftgen as package
from fftgen import conv as conv_module
from fftgen import (
    filter_gradient,
    op,  # noqa: F401  (registers the operators)
    serving,
    verify,
)
from fftgen.api import jobs_for
from fftgen.bundle import in_sections as in_sections_of
from fftgen.bundle import trained_in_sections
from fftgen.cache import CacheMissError
from fftgen.errors import InputError
from fftgen.gradient import Gradients, Needed
from fftgen.loaded import Routes
from fftgen.pipeline import Built
from fftgen.planner import gradient_sections, search, sections, spread
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_sections import Prepared, in_sections
from fftgen.planner.launch import launches, workspace_elements
from fftgen.planner.plan import MATRICES, Plan
from fftgen.planner.sections import MOST, of, of_many_rows, sectioned, share, shorter
from fftgen.planner.windows import WORTH, Windows
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.render import render, render_gradient
from fftgen.spectra import Spectrum
from fftgen.storage import spectrum_dtype
from fftgen.targets import target

LENGTH = 65_536
CAUSAL = Problem("causal", LENGTH, "bf16")
HERE = torch.device("cpu")


def planned(problem: Problem) -> Plan:
    return search.plan(problem, "sm_90")


def plan(points: int = 32_768) -> Plan:
    found = sectioned(CAUSAL, points, planned)
    assert found is not None
    return found


def by_blocks(problem: Problem, arch: str = "sm_90", back: bool = False) -> tuple[Plan, ...]:
    """The plans whose rows are each one block's."""
    return tuple(p for p in of(problem, lambda q: search.plan(q, arch), back) if not p.spread)


def test_sections_are_of_what_one_block_holds() -> None:
    found = by_blocks(CAUSAL)
    assert [(p.sections, p.transform) for p in found] == [(6, 12_288), (4, 16_384), (3, 24_576), (2, 32_768)]
    assert all(p.problem == CAUSAL and p.memory_class == "block" for p in found)
    assert all(p.sections <= MOST for p in found)
    assert by_blocks(Problem("causal", 250_000, "bf16")) == ()
    assert by_blocks(Problem("causal", 210_000, "bf16"), back=True) == ()  # fewer there
    around = by_blocks(replace(CAUSAL, mode="circular"))
    assert [(p.sections, p.transform, p.distances) for p in around] == [(4, 16_384, 4), (2, 32_768, 2)]
    both = by_blocks(CAUSAL, back=True)
    assert [(p.sections, p.transform, p.distances) for p in both] == [
        (4, 16_384, 7),
        (3, 24_576, 5),
        (2, 32_768, 3),
    ]
    assert {p.matrix for p in (*found, *both, *around)} == set(MATRICES)
    assert "2 sections both ways" in str(both[-1])
    assert "2 sections around" in str(around[-1])
    assert of(Problem("circular", LENGTH - 8, "bf16"), planned) == ()  # a circle of whole sections
    assert of(replace(CAUSAL, dtype="fp32"), planned) == ()
    assert of(CAUSAL, lambda _: None) == ()
    assert "right-angle 2 sections block" in str(found[-1])


@pytest.mark.parametrize(
    ("arch", "steps", "there"),
    [
        ("sm_90", 70_000, [(6, 12_288), (5, 16_384), (4, 20_480), (3, 24_576), (2, 40_960)]),
        ("sm_80", 70_000, [(6, 12_288), (5, 16_384), (3, 24_576)]),  # whose blocks hold no 40 960 points
        ("sm_80", 40_000, [(5, 8192), (4, 12_288), (3, 16_384), (2, 24_576)]),
        ("sm_86", 24_576, [(3, 8192), (2, 12_288)]),
        ("sm_90", 140_000, [(6, 24_576), (5, 32_768), (4, 40_960)]),
    ],
)
def test_the_shortest_sections_of_each_number(arch: str, steps: int, there: list[tuple[int, int]]) -> None:
    found = by_blocks(Problem("causal", steps, "bf16"), arch)
    assert [(p.sections, p.transform) for p in found] == there


def test_a_circle_takes_sections_that_make_it_up() -> None:
    circle = Problem("circular", 3 * 40_960, "bf16")
    assert [(p.sections, p.transform) for p in by_blocks(circle)] == [(5, 24_576), (3, 40_960)]
    spread_out = [(p.sections, p.transform) for p in of(circle, planned) if p.spread]
    assert spread_out == [(15, 8192), (10, 12_288), (6, 20_480), (5, 24_576), (3, 40_960)]


def test_fp16_has_no_more_sections_of_a_length_than_its_bound_allows() -> None:
    """Of 40 960 points; bf16 has them, and shorter ones are exact enough."""

    def points(problem: Problem, back: bool = False) -> set[tuple[int, int]]:
        return {(p.sections, p.transform) for p in of(problem, planned, back)}

    for dtype, there in (("bf16", True), ("fp16", False)):
        for asked, back in (
            (Problem("circular", 3 * 40_960, dtype), False),
            (Problem("causal", 4 * 40_960, dtype), True),
            (Problem("causal", 5 * 40_960, dtype), False),
        ):
            assert (any(n == 40_960 for _, n in points(asked, back))) == there
    assert (4, 40_960) in points(Problem("causal", 4 * 40_960, "fp16"))
    around = Problem("circular", 5 * 49_152, "fp16")
    assert {n for _, n in points(around)} == {16_384}
    assert {n for _, n in points(replace(around, dtype="bf16"))} == {16_384, 20_480, 24_576, 40_960}
    assert (10, 24_576) in points(replace(around, mode="causal"))
    few = sectioned(Problem("causal", 4 * 40_960, "fp16"), 40_960, planned)
    assert few is not None
    assert sections.both_ways(few) is None


@pytest.mark.parametrize("back", [False, True])
def test_clusters_share_up_to_sixteen_sections(back: bool) -> None:
    """Blocks by themselves before sm_90, where only the L2 of sm_89 has room for so many rows."""
    asked = Problem("causal", 262_144, "bf16")
    found = of(asked, planned, back)
    assert [(p.sections, p.transform) for p in found] == [
        (16, 16_384),
        (13, 20_480),
        (11, 24_576),
        (8, 32_768),
        (7, 40_960),
    ]
    assert all(p.spread and p.problem == asked and p.memory_class == "block" for p in found)
    assert {p.matrix for p in found} == {"full" if back else "lower"}
    assert "16 sections both ways spread" in str(found[0]) or not back
    assert Plan.from_json(found[0].to_json()) == found[0]
    before = of(asked, lambda p: search.plan(p, "sm_80"), back)
    assert {spread.many(p, target("sm_80")).size for p in before} == {1}
    assert of_many_rows(search.plan(asked, "sm_80"), before) is None
    shorter_rows = replace(asked, length=7 * 16_384)
    taken = of_many_rows(
        search.plan(shorter_rows, "sm_89"), of(shorter_rows, lambda p: search.plan(p, "sm_89"), back)
    )
    assert taken is not None
    assert (taken.sections, taken.spread) == (7, True)
    assert of(replace(asked, length=16 * 40_960 + 8), planned, back) == ()


def test_clusters_are_as_large_as_rows_are_few() -> None:
    """And as transforms of all that are under way ask for, which have to stay in the L2."""
    chip = target("sm_90")
    found = sectioned(Problem("causal", 262_144, "bf16"), 32_768, planned, spread_out=True)
    assert found is not None
    shapes = {rows: spread.clusters(found, rows, chip) for rows in (1, 15, 16, 31, 33, 43, 10_000)}
    assert shapes == {
        1: (8, 1),
        15: (8, 15),
        16: (4, 16),  # of eight blocks there are fifteen at a time
        31: (4, 31),
        33: (3, 33),  # three turns in place of two of two
        43: (8, 16),
        10_000: (4, 32),
    }
    assert 4 * found.points * 31 < spread.ROOM * chip.l2_bytes < 4 * found.points * 66
    assert spread.stretch(found, 31, chip) == spread.stretch(found, 62, chip) == 132 / 124
    assert spread.stretch(found, 33, chip) == 3 * 132 / (8 * 33)
    five = sectioned(Problem("causal", 5 * 40_960, "bf16"), 40_960, planned, spread_out=True)
    assert five is not None
    assert spread.many(five, chip) == (5, 24)  # three in a GPC, whose others are idle


def test_gates_have_a_part_in_the_choice() -> None:
    """With both of them a row's sections have more of the time, and what one transform takes beside grows."""
    circle = replace(CAUSAL, mode="circular")
    whole, others = planned(circle), of(circle, planned)
    assert of_many_rows(whole, others) is None
    found = of_many_rows(whole, others, gated=True)
    assert found is not None
    assert share(whole, found, gated=True) < 0.75 < WORTH <= share(whole, found)
    assert shorter(whole, others, 8, 768) is None
    taken = shorter(whole, others, 8, 768, gated=True)
    assert taken is not None
    assert taken.plan in others
    assert found == in_sections_of(circle, target("sm_90"))


def test_artifacts_that_train_carry_the_sections_of_both_passes() -> None:
    """Where they are not the same: spectra of the second have kernels of their own."""
    chip = target("sm_90")
    asked = Problem("causal", 131_072, "bf16")
    plan, trained = in_sections_of(asked, chip), trained_in_sections(asked, chip)
    assert plan is not None
    assert trained is not None
    kinds = [kind for p, _, kind in jobs_for(asked, [chip], train=True) if p == asked]
    assert ("trained sections" in kinds) == (plan != trained)
    assert {"sections", "backward sections"} <= set(kinds)
    assert "trained sections" not in [kind for *_, kind in jobs_for(CAUSAL, [chip], train=True)]


def test_a_plan_in_sections_is_told_and_read_again() -> None:
    made = plan()
    assert Plan.from_json(made.to_json()) == made
    assert made.digest != replace(made, sections=1).digest
    assert "sections" not in replace(made, sections=1).to_json()  # as plans were before there were any


def test_many_rows_take_sections_and_few_do_not() -> None:
    whole, others = planned(CAUSAL), of(CAUSAL, planned)
    best = shorter(whole, others, 8, 768)
    assert best is not None
    assert best.plan.transform == 32_768
    assert best.plan == of_many_rows(whole, others)
    assert of_many_rows(whole, ()) is None
    assert share(whole, best.plan) <= best.share < 0.62
    assert shorter(whole, others, 1, 16) is None  # a sixth of the chip at work
    keeping = shorter(whole, others, 8, 768, kept=whole)
    assert keeping is not None
    assert keeping.plan == best.plan
    assert keeping.share > best.share
    assert shorter(whole, (), 8, 768) is None
    one_row = shorter(whole, others, 1, 132), shorter(whole, others, 1, 132, kept=whole)
    assert one_row[1] is None  # a spectrum more than the rows themselves
    # None where they are those that the backward pass reads, and two kinds where it reads others.
    read, other = (shorter(whole, others, 8, 768, kept=p) for p in (best.plan, by_blocks(CAUSAL)[0]))
    assert read is not None
    assert read.plan == best.plan
    assert read.share < best.share
    assert other is not None
    assert other.share > best.share


def test_blocks_keep_sections_in_places_of_their_own() -> None:
    """As many as run at a time, whatever the batch."""
    made = plan()
    for batch, channels in ((1, 1), (3, 50), (64, 768)):
        (one,) = launches(made, batch, channels, LENGTH)
        assert one.grid <= target("sm_90").multiprocessors * made.body.resident
        assert one.grid * one.run >= batch * channels
        assert workspace_elements(made, batch, channels) == 2 * made.transform * one.grid


def test_the_plan_says_what_sections_take() -> None:
    every = answer("plan", LENGTH, "--causal")["sections"]
    assert [s["digest"] for s in every] == [p.digest for p in of(CAUSAL, planned)]
    told = [s for s in every if "spread" not in s["line"]]
    assert all(0.5 < s["gradients_of_the_time"] < 2 for s in every if s not in told)
    assert "8 sections of 8192 points by clusters: 0." in fftgen("plan", LENGTH, "--causal").stdout
    assert told[-1]["of_the_time"] < 0.6
    assert "2 sections of 32768 points: 0.5" in fftgen("plan", LENGTH, "--causal").stdout
    assert told[-1]["gradients_of_the_time"] < 0.6
    around = answer("plan", LENGTH)["sections"]
    assert {(s["gradients_of_the_time"], s["both_ways_of_the_time"]) for s in around} == {(None, None)}
    around = [s for s in around if "spread" not in s["line"]]
    assert len(around) == 2
    assert told[-1]["of_the_time"] < told[-1]["both_ways_of_the_time"] < 0.9
    assert "with filters that act backwards 0." in fftgen("plan", LENGTH, "--causal").stdout
    assert 0.6 < around[-1]["of_the_time"] < 0.95
    assert "sections" not in answer("plan", LENGTH - 8)
    told = answer("plan", 98_304, "--causal", "--arch", "sm_89")["sections"]
    six, five = (s for s in told if "spread" not in s["line"])  # both ways: not of six
    assert six["both_ways_of_the_time"] is None
    assert 0.7 < five["both_ways_of_the_time"] < 0.95
    assert "not taken" in fftgen("plan", 32_768, "--causal").stdout


def test_sources_of_sections_by_the_command_at_their_head() -> None:
    every = [of(p, planned, back=True) for p in (CAUSAL, replace(CAUSAL, mode="circular"))]
    both, around = (next(p for p in found if not p.spread) for found in every)
    texts = [render(made).text for made in (plan(), both, around, *(found[-1] for found in every))]
    shared = of(CAUSAL, planned)[-1]
    assert shared.spread
    texts += [render(shared).text, *(render_gradient(in_sections(p)).text for p in (plan(), shared))]
    for text in texts:
        words = text.splitlines()[1].split()[2:]
        assert "--sections" in words
        assert fftgen(*words).stdout == text
    for asked, said in (
        (("--sections", 8192), "no sections of 8192 points on sm_90: there are 12288, 16384, 24576, 32768"),
        (("--sections", 32_768, "--twin"), "there are convolutions and, with --backward, all gradients"),
        (("--sections", 32_768, "--engine", "wmma"), "with --backward, all gradients"),
        (("--sections", 32_768, "--backward", "--both-ways"), "goes with --causal and --sections"),
        (("--both-ways",), "goes with --causal and --sections"),
        (("--spread",), "--spread goes with --sections"),
        (
            ("--sections", 40_960, "--spread"),
            "has no spread sections of 40960 points on sm_90: there are 8192",
        ),
    ):
        answered = fftgen("render", LENGTH, "--causal", "--arch", "sm_90", *asked)
        assert answered.exit_code == 2
        assert said in answered.stderr


# --- calls on a GPU that is not there


class Kernels:
    """Loaded kernels, by the definition; ``seen`` says which were asked."""

    def __init__(self, plan: Plan, seen: list[str]) -> None:
        self.seen, self.executable = seen, SimpleNamespace(plan=plan)

    def convolve(self, u: Tensor, k: Tensor, *given: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        p = self.executable.plan
        self.seen.append(f"{p.sections} x {p.transform}{MATRICES[p.matrix]}")
        y = gradients.composite(u, k, *given, mode="causal", length=LENGTH).to(u.dtype)
        return y, self.planes(k)

    def spectrum(self, k: Tensor, k_rev: Tensor | None = None, skip: Tensor | None = None) -> Spectrum:
        p = self.executable.plan
        self.seen.append(f"spectrum, {p.sections} x {p.transform}")
        return Spectrum(*self.planes(k), p.digest, k.shape[-1])

    def planes(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The taps in their place."""
        p = self.executable.plan
        each = torch.nn.functional.pad(k.detach(), (0, p.distances * p.transform - k.shape[-1]))
        each = each.reshape(len(k), p.distances, p.transform).transpose(0, 1)
        planes = torch.stack([each, torch.zeros_like(each)], dim=2)
        planes, scale = planes.to(spectrum_dtype(p)), torch.ones(*planes.shape[:2], 2)
        return (planes, scale) if p.sections > 1 else (planes[0], scale[0])

    def apply(self, u: Tensor, planes: Tensor, scale: Tensor, *given: Any) -> Tensor:
        p = self.executable.plan
        self.seen.append(f"{p.sections} x {p.transform}")
        y = gradients.composite(u, taps_of(planes), None, *given, mode="causal", length=LENGTH)
        return y.to(u.dtype)

    def windowed(self, found: Windows, u: Tensor, *given: Any) -> tuple[Tensor, ...]:
        self.seen.append(f"windows of {found.length}")
        *filters, in_gate, (out_gate,), skip = given
        return (gradients.composite(u, *filters, in_gate, out_gate, skip, mode="causal", length=LENGTH),)


def taps_of(planes: Tensor) -> Tensor:
    """The filters that stand in the place of a spectrum (``Kernels.planes``)."""
    first = planes.select(-2, 0)
    return first if first.dim() == 2 else first.transpose(0, 1).flatten(1)


class OnGpu(NamedTuple):
    conv: package.Conv
    seen: list[str]
    capturing: list[bool]


def of_gradient(found: Gradient | None) -> SimpleNamespace:
    """Loaded kernels of gradients, which nothing runs."""
    return SimpleNamespace(gradient=found, tables=None, module=SimpleNamespace(on=lambda _: None))


def every(
    seen: list[str],
    found: Gradient,
    tables: None,
    launcher: None,
    u: Tensor,
    v: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    *,
    needed: Needed,
    taps: int,
) -> Gradients:
    """All gradients by the definition, of the filters that stand in the place of their spectra."""
    p = found.plan
    seen.append(f"gradients, {p.sections} x {p.transform}")
    given = {"u": u, "k": taps_of(planes)[:, :taps], "in_gate": in_gate, "out_gate": out_gate}
    leaves = {n: x.detach().requires_grad_() for n, x in given.items() if x is not None}
    with torch.enable_grad():  # which a backward pass is without
        _, made = gradients.exact(leaves, v, mode="causal", length=LENGTH)
    signals = (made[n].to(u.dtype) if need else None for n, need in zip(Needed._fields, needed, strict=True))
    return Gradients(*signals, made["k"].float())


def of_filter(
    seen: list[str],
    found: Gradient,
    tables: None,
    launcher: None,
    u: Tensor,
    v: Tensor,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    *,
    taps: int,
    period: int,
) -> Tensor:
    """A filter's gradient by the definition."""
    p = found.plan
    seen.append(f"of the filter, {p.sections} x {p.transform}")
    assert period == 0
    made = verify.gradient_reference(u, v, in_gate, out_gate, min(taps, u.shape[-1]), 0)
    return torch.nn.functional.pad(torch.from_numpy(made), (0, taps - made.shape[-1])).float()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    """A convolution of 65 536 steps whose calls on CPU tensors seem to be on an H200, where one row pays."""
    seen: list[str] = []
    capturing = seems_on_an_h200(monkeypatch)
    real = sections.shorter
    monkeypatch.setattr(
        sections,
        "shorter",
        lambda p, others, b, h, *how, **more: real(p, others, 100 * b, 100 * h, *how, **more),
    )
    back = gradient_sections.shorter
    monkeypatch.setattr(
        gradient_sections,
        "shorter",
        lambda whole, p, others, b, h, *how: back(whole, p, others, 100 * b, 100 * h, *how),
    )
    cut = serving.windows
    monkeypatch.setattr(
        serving,
        "windows",
        lambda p, shape, *given: cut(p, (100 * shape[0], 100 * shape[1], LENGTH), *given),
    )
    handle = f"causal-{LENGTH}-bf16"
    conv = conv_module.Conv(CAUSAL, JustInTime(), handle)
    monkeypatch.setitem(conv_module._registry, handle, conv)
    monkeypatch.setattr(serving, "Loaded", lambda built, _: built)
    monkeypatch.setattr(JustInTime, "sectioned", lambda _, plan: Kernels(plan, seen))

    monkeypatch.setattr(conv._loaded, "_load", lambda problem, _: Kernels(planned(problem), seen))
    monkeypatch.setattr(serving, "LoadedGradient", lambda built, _: built)
    monkeypatch.setattr(JustInTime, "backward_sectioned", lambda _, p: of_gradient(in_sections(p)))
    monkeypatch.setattr(conv._backwards, "_load", lambda p, _: of_gradient(backward(p, "sm_90")))
    monkeypatch.setattr(filter_gradient, "stream_of", lambda _: 0)
    monkeypatch.setattr(filter_gradient, "backward", partial(every, seen))
    monkeypatch.setattr(filter_gradient, "correlate_input", partial(of_filter, seen))
    monkeypatch.setattr(conv._gradients, "_load", lambda p, _: of_gradient(gradient(p, "sm_90")))
    monkeypatch.setattr(conv._twins, "_load", lambda *_: None)
    return OnGpu(conv, seen, capturing)


def test_calls_of_many_rows_go_in_sections(gpu: OnGpu, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float()
    y = gpu.conv(u, k, in_gate=u, out_gate=u, skip=k[:, 0])
    exact = gradients.composite(u, k, None, u, u, k[:, 0], mode="causal", length=LENGTH)
    assert torch.linalg.norm(y.double() - exact) < 3e-3 * torch.linalg.norm(exact)
    y = gpu.conv(u, k, k_rev=k)
    exact = gradients.composite(u, k, k, mode="causal", length=LENGTH)
    assert torch.linalg.norm(y.double() - exact) < 3e-3 * torch.linalg.norm(exact)
    assert gpu.seen == ["2 x 32768", "2 x 32768 both ways"]


def test_calls_that_are_recorded_go_in_sections_too(gpu: OnGpu, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float().requires_grad_()
    y = gpu.conv(u, k)
    assert y.requires_grad
    assert gpu.seen == ["2 x 32768"]


def test_kernels_of_the_whole_serve_where_no_others_can_be_had(
    gpu: OnGpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that holds those alone, and FFTGEN_NO_JIT, or no NVRTC; asked for once."""
    asked: list[str] = []

    def refused(_: Any, plan: Plan) -> Built:
        asked.append(plan.name)
        raise CacheMissError(plan.name)

    def missing(problem: Problem, _: Any) -> Kernels:
        if problem != CAUSAL:
            asked.append(f"{problem.length}")
            raise CacheMissError(f"{problem.length}")
        return Kernels(planned(problem), gpu.seen)

    monkeypatch.setattr(JustInTime, "sectioned", refused)
    monkeypatch.setattr(gpu.conv._loaded, "_load", missing)
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float()
    for _ in range(2):
        gpu.conv(u, k)
        gpu.conv(u[..., :-8], k)
        gpu.conv(u, k[:, :128])
    whole = "1 x 65536"
    assert gpu.seen == [whole] * 6
    assert len(asked) == 2
    assert gpu.conv.prepare(k).planes.dim() == 3


def test_short_filters_go_through_in_windows_where_these_take_less(
    gpu: OnGpu, rng: np.random.Generator
) -> None:
    """Windows of 32 768 points take less than one transform of everything, and more than sections."""
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, 16_384))).float()
    gpu.conv(u, k[:, :1024])
    gpu.conv(u, k)
    assert gpu.conv.windows(u, CAUSAL, k, None) is not None
    assert gpu.seen == ["windows of 8192", "2 x 32768"]


def test_spectra_of_many_channels_are_of_sections(gpu: OnGpu, rng: np.random.Generator) -> None:
    """Of so many that one row of each fills the chip; loaded or not, their kernels take calls with them."""
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float()
    made = gpu.conv.prepare(k)
    assert made.channels == 2
    assert made.planes.shape == (2, 2, 2, 32_768)
    taken = gpu.conv(u, made)
    gpu.conv._sectioned.clear()
    gpu.conv._routes = Routes()
    assert torch.equal(gpu.conv(u[..., :-8], made), taken[..., :-8])
    assert gpu.seen == ["spectrum, 2 x 32768", "2 x 32768", "2 x 32768"]
    with pytest.raises(InputError, match="no spectrum for 2 channels"):
        torch.ops.fftgen.conv_prepared(
            u, made.planes[0], made.scale, None, None, None, gpu.conv.handle, made.digest
        )
    with pytest.raises(InputError, match="prepared by another plan"):
        gpu.conv(u, replace(made, digest="other"))
    assert gpu.conv.prepare(k, k_rev=k).planes.shape == (3, 2, 2, 32_768)


def test_spectra_of_few_channels_are_of_one_transform() -> None:
    """A row of each would leave most of the chip idle."""
    whole, others = planned(CAUSAL), of(CAUSAL, planned)
    chip = target("sm_90")
    by_a_block = by_blocks(CAUSAL)
    for channels, there in ((16, False), (132, True), (133, False), (768, True)):
        found = shorter(whole, by_a_block, 1, channels, prepared=True)
        assert (found is not None) == there
        many = shorter(whole, by_a_block, 64, channels, prepared=True)
        assert many is not None
        any_batch = sections.of_any_batch(whole, by_a_block, channels, (1, 64), chip)
        assert any_batch == (many.plan if there else None)
    # Clusters share a row where a block by itself would have it.
    taken = [sections.of_any_batch(whole, others, channels, (1, 64), chip) for channels in (4, 31, 768)]
    assert taken[0] is None
    assert taken[1] is not None
    assert taken[1].spread
    assert taken[2] == of_many_rows(whole, others)


def test_while_a_graph_is_captured_what_is_loaded_serves(gpu: OnGpu, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((2, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float()
    gpu.conv.on(HERE, CAUSAL)
    gpu.capturing[0] = True
    gpu.conv(u, k)
    gpu.capturing[0] = False
    gpu.conv(u[..., :-8], k)
    gpu.capturing[0] = True
    gpu.conv(u[..., :-16], k)  # they are there now
    assert gpu.seen == ["1 x 65536", "2 x 32768", "2 x 32768"]


def step(gpu: OnGpu, rng: np.random.Generator, steps: int = LENGTH, *, gated: bool = True) -> None:
    """A training step, its gradients held against the definition."""
    u = torch.from_numpy(rng.standard_normal((4, 2, steps))).bfloat16().requires_grad_()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float().requires_grad_()
    given = {"u": u, "k": k}
    if gated:
        given["in_gate"] = torch.from_numpy(rng.standard_normal(u.shape)).bfloat16().requires_grad_()
    v = torch.from_numpy(rng.standard_normal(u.shape)).bfloat16()
    gpu.conv(**given).backward(v)
    _, exact = gradients.exact(given, v, mode="causal", length=LENGTH)
    for name, x in given.items():
        assert x.grad is not None
        gradients.judge(x.grad, exact[name], 2e-3)


def test_backward_passes_of_many_rows_go_in_sections(gpu: OnGpu, rng: np.random.Generator) -> None:
    """With the spectra that the forward pass kept."""
    step(gpu, rng)
    step(gpu, rng, gated=False)
    step(gpu, rng, LENGTH - 1000)
    assert gpu.seen == ["2 x 32768", "gradients, 2 x 32768"] * 3


def test_a_filters_gradient_alone_goes_in_sections(gpu: OnGpu, rng: np.random.Generator) -> None:
    """Of a filter that acts backwards as well; of signals of two lengths it does not."""
    u = torch.from_numpy(rng.standard_normal((4, 2, LENGTH))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float().requires_grad_()
    v = torch.from_numpy(rng.standard_normal(u.shape)).bfloat16()
    for name in ("k", "k_rev"):
        given = {"u": u, "k": k.detach(), name: k}
        (made,) = torch.autograd.grad(gpu.conv(**given), k, v)
        _, exact = gradients.exact(given, v, mode="causal", length=LENGTH)
        gradients.judge(made, exact[name], 1e-5)
    alone = "of the filter, 2 x 32768"
    assert gpu.seen == ["2 x 32768", alone, "2 x 32768 both ways", alone]
    filter_gradient.on_gpu(gpu.conv, u[..., :-8], v, None, None, LENGTH - 100)
    assert gpu.seen[4:] == ["of the filter, 1 x 65536"]


def test_a_warmup_loads_what_many_rows_take(
    gpu: OnGpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is captured then holds them: forward alone, or backward as well."""
    gpu.conv.warmup()
    gpu.conv.backward_on(HERE, CAUSAL)
    gpu.capturing[0] = True
    step(gpu, rng)
    assert gpu.seen == ["2 x 32768", "spectrum, 1 x 65536", "gradients, 1 x 65536"]
    gpu.capturing[0] = False
    gpu.conv.warmup(train=True)
    gpu.capturing[0] = True
    step(gpu, rng)
    assert gpu.seen[3:] == ["2 x 32768", "gradients, 2 x 32768"]
    short = conv_module.Conv(Problem("causal", 4096, "bf16"), JustInTime(), "short")
    monkeypatch.setattr(short, "on", lambda *_: None)
    short.warmup()
    assert not short._sectioned


def test_gradients_of_the_whole_serve_where_no_others_can_be_had(
    gpu: OnGpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while a graph is captured; with spectra of their own: those of sections are no use to them."""
    step_of = ["2 x 32768", "spectrum, 1 x 65536", "gradients, 1 x 65536"]
    step(gpu, rng)
    gpu.conv._backwards_sectioned.clear()
    gpu.conv.on(HERE, CAUSAL)
    gpu.conv.backward_on(HERE, CAUSAL)
    gpu.capturing[0] = True
    step(gpu, rng)
    gpu.capturing[0] = False
    assert gpu.seen[2:] == step_of

    def refused(_: Any, plan: Plan) -> Built:
        raise CacheMissError(plan.name)

    monkeypatch.setattr(JustInTime, "backward_sectioned", refused)
    step(gpu, rng)
    assert gpu.seen[5:] == step_of
    step(gpu, rng)  # not asked for again
    assert gpu.seen[8:] == step_of


def test_filters_that_act_backwards_go_back_as_one(gpu: OnGpu, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((4, 2, LENGTH))).bfloat16().requires_grad_()
    k = torch.from_numpy(rng.standard_normal((2, LENGTH))).float().requires_grad_()
    gpu.conv(u, k, k_rev=k.detach()).sum().backward()
    # Their forward pass does not, so the spectrum is made again.
    assert gpu.seen == ["2 x 32768 both ways", "spectrum, 1 x 65536", "gradients, 1 x 65536"]


def test_gradients_of_many_rows_take_sections_and_of_few_do_not() -> None:
    whole, of_whole = backward(CAUSAL, "sm_90"), planned(CAUSAL)
    others = gradient_sections.trained(of(CAUSAL, planned))
    assert others == of(CAUSAL, planned)
    six = [p for p in of(Problem("causal", 240_000, "bf16"), planned) if p.sections > MOST]
    assert six
    assert gradient_sections.trained(six) == tuple(six)  # by clusters
    assert gradient_sections.trained(of(CAUSAL, planned, back=True)) == ()
    assert whole is not None
    best = gradient_sections.shorter(whole, of_whole, others, 8, 768)
    assert best is not None
    assert (best.sections, best.transform) == (2, 32_768)
    assert gradient_sections.share(whole, best) < 0.6
    by_a_block = [p for p in others if not p.spread]
    assert gradient_sections.shorter(whole, of_whole, by_a_block, 1, 16) is None
    shared = gradient_sections.shorter(whole, of_whole, others, 1, 16)
    assert shared is not None
    assert shared.spread  # sixteen rows leave clusters less to wait for
    assert gradient_sections.shorter(whole, of_whole, (), 8, 768) is None
    kept = [Prepared(4, 16_384), Prepared(1, LENGTH)]  # spectra of others have to be made again, or not
    few = [gradient_sections.shorter(whole, of_whole, others, 1, 768, True, there) for there in kept]
    assert all(p is None or p in others for p in few)

"""Which kernels a call on a GPU is served by (serving.py, calls.py), and what is asked before: once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_gpu import seems_on_an_h200
from torch import Tensor

from fftgen import Conv
from fftgen.kept import as_it_is
from fftgen.planner import gradient_sections, search, sections
from fftgen.planner.gradient_sections import Prepared
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.spectra import Spectrum

HERE = torch.device("cpu")
LONG = Problem("causal", 65_536, "bf16")
PLANES, SCALE = torch.zeros(1), torch.zeros(1)


class Kernels:
    """Loaded kernels of a plan, which say what they are asked for."""

    def __init__(self, plan: Plan, seen: list[str], name: str) -> None:
        self.executable, self.seen, self.name = SimpleNamespace(plan=plan), seen, name

    def asked(self, what: str) -> None:
        self.seen.append(f"{what} by {self.name}")

    def spectrum(self, *_: object) -> Spectrum:
        self.asked("spectrum")
        return Spectrum(PLANES, SCALE, self.executable.plan.digest, 1)

    def convolve(self, u: Tensor, *_: object) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.asked("all")
        return u, (PLANES, SCALE)

    def apply(self, u: Tensor, *_: object) -> Tensor:
        self.asked("one")
        return u

    def both(self, u: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        self.asked("both")
        return u, u


Made = Callable[[Problem], tuple[Conv, list[str]]]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a convolution whose calls on CPU tensors seem to be on an H200, and what kernels do."""
    seems_on_an_h200(monkeypatch)

    def make(problem: Problem) -> tuple[Conv, list[str]]:
        seen: list[str] = []
        conv = Conv(problem, JustInTime(), "test")

        def whole(problem: Problem, _: Any) -> Kernels:
            return Kernels(search.plan(problem, "sm_90"), seen, f"{problem.mode} {problem.length}")

        def in_sections(plan: Plan, _: Any) -> Kernels:
            return Kernels(plan, seen, f"{plan.sections} sections")

        def twins(problem: Problem, _: Any) -> Kernels:
            return Kernels(search.plan(problem, "sm_90"), seen, "twins")

        monkeypatch.setattr(conv._loaded, "_load", whole)
        monkeypatch.setattr(conv._sectioned, "_load", in_sections)
        monkeypatch.setattr(conv._twins, "_load", twins)
        return conv, seen

    return make


def test_two_results_are_made_by_one_transform_where_there_are_kernels_for_it(
    on_gpu: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, seen = on_gpu(Problem("causal", 4096, "bf16"))
    u = torch.zeros(1, 2, 4096, dtype=torch.bfloat16)
    given = u, torch.zeros(2, 4096), None, None, (u, u), None
    conv.run_both(*given)
    assert seen == ["spectrum by causal 4096", "both by twins"]
    conv._twins.clear()
    monkeypatch.setattr(conv._twins, "_load", lambda *_: None)
    conv.run_both(*given)
    assert seen[2:] == ["spectrum by causal 4096", "one by causal 4096", "one by causal 4096"]


@pytest.mark.parametrize(
    ("mode", "steps", "dtype", "read"),
    [
        ("causal", 4096, "bf16", True),
        ("circular", 2048, "bf16", True),  # half of it is padding: a causal problem
        ("circular", 4096, "bf16", False),
        ("causal", 4096, "fp32", True),
        ("circular", 4096, "fp32", False),
    ],
)
def test_a_call_hands_on_the_spectrum_that_a_backward_pass_reads(
    mode: str, steps: int, dtype: str, read: bool, on_gpu: Made
) -> None:
    conv, _ = on_gpu(Problem(mode, 4096, dtype))
    u = torch.zeros(1, 2, steps, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    _, kept = conv.run(u, torch.zeros(2, steps), None, None, None, None, keeping=True)
    assert kept == ((PLANES, SCALE) if read else None)


def test_a_filter_is_prepared_for_calls_of_any_batch(on_gpu: Made) -> None:
    """In windows, or of sections, where these take less for one row of each channel as well as for many."""
    conv, seen = on_gpu(LONG)
    short, long = torch.zeros(1, 128), torch.zeros(1, LONG.length)
    assert conv.windows_of(HERE, LONG, (64, 4, LONG.length), 128, 0) is not None
    assert not as_it_is(conv.prepare(short.expand(4, -1)).digest)
    assert conv.sections_of(HERE, LONG, 64, 16, prepared=True) is not None
    conv.prepare(long.expand(16, -1))
    assert seen == ["spectrum by causal 65536"] * 2
    conv.prepare(long.expand(128, -1))
    assert seen[2:] == ["spectrum by 2 sections"]
    assert as_it_is(conv.prepare(short.expand(768, -1)).digest)
    assert len(seen) == 3


PROBLEMS = (LONG, Problem("causal", 131_072, "bf16"))
ROWS = ((1, 2), (1, 1), (2, 1))
FLAGS = tuple(product((False, True), repeat=3))
EVERY = len(PROBLEMS) * len(ROWS) * len(FLAGS)


def questions(monkeypatch: pytest.MonkeyPatch, planner: Any, ask: Callable[..., object]) -> int:
    """Questions that come to a planner when all problems, rows and flags are asked for, each twice."""
    asked: list[object] = []
    monkeypatch.setattr(planner, "shorter", lambda *given: asked.append(given))
    for _ in range(2):
        for problem, rows, flags in product(PROBLEMS, ROWS, FLAGS):
            ask(problem, *rows, *flags)
    return len(asked)


def test_which_sections_a_call_takes_is_asked_once_for_each_kind(
    on_gpu: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, _ = on_gpu(LONG)
    monkeypatch.setattr(conv, "backward_sections", lambda *_: None)  # spectra are to be kept apart

    def ask(problem: Problem, batch: int, channels: int, keeping: bool, prepared: bool, back: bool) -> None:
        conv.sections_of(HERE, problem, batch, channels, keeping=keeping, prepared=prepared, back=back)

    assert questions(monkeypatch, sections, ask) == EVERY


def test_which_sections_gradients_take_is_asked_once_for_each_kind(
    on_gpu: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, _ = on_gpu(LONG)

    def ask(problem: Problem, batch: int, channels: int, gated: bool, prepared: bool, alone: bool) -> None:
        there = Prepared(2, 32_768) if prepared else None
        conv.backward_sections(HERE, problem, batch, channels, gated=gated, prepared=there, alone=alone)

    assert questions(monkeypatch, gradient_sections, ask) == EVERY

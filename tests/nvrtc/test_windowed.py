"""Long signals window by window: the kernels in the simulator, held against the definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradients
import numpy as np
import pytest
import tolerance
import torch
from calls import TORCH, bare, built, draw, filters
from cases import slow
from command_line import why_not
from torch import Tensor

from fftgen import artifact, bundle, emulate, gradient_accuracy
from fftgen.cache import Cache
from fftgen.errors import InternalError
from fftgen.planner import search, twins
from fftgen.planner.gradient import gradient
from fftgen.planner.plan import Plan
from fftgen.planner.windows import LEAST_OF_GRADIENTS, Windows, of, windows
from fftgen.problem import Problem
from fftgen.simulator import SimulationError
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def planned(length: int, dtype: str = "bf16", arch: str = "sm_90") -> Plan:
    return search.plan(Problem("causal", length, dtype), arch)


def cut(length: int, ahead: int, back: int) -> Windows:
    found = of(length, ahead, back)
    assert found is not None
    return found


def inputs(
    rng: np.random.Generator, dtype: str, shape: tuple[int, int, int], ahead: int, back: int, options: str
) -> dict[str, Any]:
    """A call with what ``options`` names; filters decay, and what is added to them cancels nothing."""
    channels = shape[1]
    k = filters(rng, channels, ahead, shape[-1]) if ahead else None
    k_rev = filters(rng, channels, back, shape[-1]) if back else None
    if k is not None and k_rev is not None:
        k_rev[:, 0] = torch.copysign(k_rev[:, 0], k[:, 0])
    lead = k if k is not None else k_rev
    assert lead is not None
    skip = torch.copysign(draw(rng, channels).float(), lead[:, 0]) if "skip" in options else None
    signals = {
        n: draw(rng, *shape).to(TORCH[dtype])
        for n in ("u", "in_gate", "out_gate")
        if n in ("u", *options.split())
    }
    return {"k": k, "k_rev": k_rev, "skip": skip, "in_gate": None, "out_gate": None, **signals}


def judge(plan: Plan, y: Tensor, given: dict[str, Any]) -> None:
    exact = gradients.composite(**given, mode="causal", length=given["u"].shape[-1])
    tolerance.check(y.double().numpy(), exact.numpy(), plan.problem.dtype, plan.order, plan.compute_format)


def run(
    plan: Plan,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    ahead: int,
    back: int = 0,
    options: str = "in_gate out_gate skip",
    ptx: str | None = None,
) -> emulate.Simulated:
    given = inputs(rng, plan.problem.dtype, shape, ahead, back, options)
    module, own = built(plan)
    found = cut(plan.transform, ahead, back)
    (y,), simulated = emulate.windowed(
        module,
        found,
        given["u"],
        given["k"],
        k_rev=given["k_rev"],
        in_gate=given["in_gate"],
        gates=(given["out_gate"],),
        skip=given["skip"],
        ptx=ptx or own,
        seed=int(rng.integers(2**31)),
    )
    judge(plan, y, given)
    return simulated


PLANS = (
    (1024, "bf16", "sm_90"),  # a warp's, with rows on their way
    (2048, "fp16", "sm_90"),  # two channels abreast
    (4096, "bf16", "sm_90"),
    (8192, "bf16", "sm_80"),
    (1024, "fp16", "sm_75"),  # engine wmma
    (4096, "fp32", "sm_90"),  # engine simt
    *slow(
        [
            (1024, "fp16", "sm_86"),
            (2048, "bf16", "sm_120"),
            (4096, "bf16", "sm_100"),
            (8192, "bf16", "sm_86"),
            (16_384, "bf16", "sm_90"),
            (32_768, "fp16", "sm_90"),
            (1024, "fp32", "sm_75"),
        ]
    ),
)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("length", "dtype", "arch"), PLANS)
def test_windows_are_what_one_transform_is(
    length: int, dtype: str, arch: str, rng: np.random.Generator
) -> None:
    """Rows of a batch together, and windows of a row together; taps that reach either way, gates, a skip."""
    plan = planned(length, dtype, arch)
    run(plan, rng, (1, 3, 4 * length), length // 8, length // 16)
    run(plan, rng, (3, 1, 3 * length + 8), length // 3, 0)


@pytest.mark.drawn(3)
def test_windows_of_any_signal(rng: np.random.Generator) -> None:
    """Lengths, taps and options drawn; rows that start anywhere among them."""
    plan = planned(1024)
    ahead, back = (int(rng.integers(0, 400)) for _ in range(2))
    if ahead + back == 0:
        ahead = 1
    options = " ".join(name for name in ("in_gate", "out_gate", "skip") if rng.integers(2))
    shape = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(2048, 6000))
    run(plan, rng, shape, ahead, back, options)


@pytest.mark.parametrize(
    ("length", "dtype"), [(1024, "bf16"), (2048, "bf16"), (4096, "fp16"), (4096, "fp32")]
)
def test_two_results_window_by_window(length: int, dtype: str, rng: np.random.Generator) -> None:
    plan = planned(length, dtype)
    twin = twins.twin(plan)
    assert twin is not None
    given = inputs(rng, dtype, (2, 2, 3 * length), length // 8, 5, "in_gate out_gate")
    other = draw(rng, 2, 2, 3 * length).to(TORCH[dtype])
    module, ptx = built(twin)
    found = cut(length, length // 8, 5)
    results, _ = emulate.windowed(
        module, found, given["u"], given["k"], k_rev=given["k_rev"], in_gate=given["in_gate"],
        gates=(given["out_gate"], other), ptx=ptx,
    )  # fmt: skip
    for y, gate in zip(results, (given["out_gate"], other), strict=True):
        judge(plan, y, {**given, "out_gate": gate})


BOUND = ("a.scale[h].y, a.results, a.vector != 0}", "a.scale[h].y, a.length, a.vector != 0}")


def test_results_that_are_not_wanted_are_not_written(rng: np.random.Generator) -> None:
    """The bound proves something: without it windows write over each other's results, and past the end."""
    plan = bare(planned(1024))
    module, ptx = built(plan)
    header = module.source.headers["fftgen/sinks.cuh"]
    assert BOUND[0] in header
    changed = dict(module.source.headers) | {"fftgen/sinks.cuh": header.replace(*BOUND)}
    source = replace(module.source, headers=changed)
    other = emulate.line_ptx(replace(module, source=source))
    run(plan, rng, (1, 1, 5000), 100, 0, "", ptx)
    with pytest.raises((SimulationError, AssertionError)):
        run(plan, rng, (1, 1, 5000), 100, 0, "", other)


# --- the filter's gradient


GRADIENTS = (
    (2048, "bf16", "sm_90"),
    (4096, "fp16", "sm_80"),
    (2048, "fp32", "sm_90"),
    *slow(
        [
            (8192, "bf16", "sm_90"),
            (4096, "bf16", "sm_100"),
            (2048, "fp16", "sm_86"),
            (4096, "bf16", "sm_120"),
            (16_384, "bf16", "sm_90"),
            (4096, "fp32", "sm_75"),
        ]
    ),
)


@pytest.mark.parametrize(("length", "dtype", "arch"), GRADIENTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_filter_s_gradient_window_by_window(
    batch: int, length: int, dtype: str, arch: str, rng: np.random.Generator
) -> None:
    """As exact as of the whole: against float64, and no lag that another window's would hide."""
    found = gradient(Problem("causal", length, dtype), target(arch))
    module, ptx = built(found)
    taps = int(rng.integers(2, length // 4))
    shape = (batch, 2, 3 * length + 8 * int(rng.integers(0, 9)))
    u, v, in_gate, out_gate = (draw(rng, *shape).to(TORCH[dtype]) for _ in range(4))
    dk, _ = emulate.windowed_gradient(
        module, cut(length, taps, 0), u, v, taps=taps, in_gate=in_gate, out_gate=out_gate, ptx=ptx
    )
    given = {"u": u, "k": torch.zeros(2, taps), "in_gate": in_gate, "out_gate": out_gate}
    _, exact = gradients.exact(given, v, mode="causal", length=shape[-1])
    plan = found.plan
    limit = gradient_accuracy.filters(dtype, plan.order, plan.compute_format, gates=2)
    gradients.judge(dk, exact["k"], limit)
    size = torch.linalg.norm(exact["k"]) / taps**0.5
    assert float(torch.linalg.norm(dk.double() - exact["k"], dim=0).max() / size) < 8 * limit  # no lag is off


def test_warps_that_have_a_row_each_refuse_two_lengths(rng: np.random.Generator) -> None:
    found = gradient(Problem("causal", 1024, "bf16"), target("sm_90"))
    assert not found.two_lengths
    assert gradient(Problem("causal", LEAST_OF_GRADIENTS, "bf16"), target("sm_90")).two_lengths
    module, ptx = built(found)
    u, v = (draw(rng, 1, 1, 3000).bfloat16() for _ in range(2))
    with pytest.raises(InternalError, match="signals of one length"):
        emulate.windowed_gradient(module, cut(1024, 100, 0), u, v, taps=100, ptx=ptx)


# --- from a file


def test_a_file_with_kernels_of_windows_serves_them(tmp_path: Path, session_cache: Path) -> None:
    """And one without does not ask for them."""
    problems = [Problem("causal", length, "bf16") for length in (65_536, 4096)]
    for held, windows_there in ((problems, True), (problems[:1], False)):
        made = bundle.build_all([(p, target("sm_90"), "convolution") for p in held], Cache(session_cache))
        path = tmp_path / f"{len(held)}.fftgen"
        artifact.write(path, bundle.bundle(made))
        shelf = bundle.open_shelf(path)
        plan = shelf.planned(problems[0], (9, 0))
        assert plan is not None

        def planned(p: Problem, shelf: bundle.Shelf = shelf) -> Plan | None:
            return shelf.planned(p, (9, 0))

        found = windows(plan, (8, 256, 65_536), 128, 0, planned)
        assert found == (of(4096, 128, 0) if windows_there else None)
        assert shelf.planned(problems[0], (8, 0)) is None  # no code for that GPU

"""Rows in sections whose filters act backwards as well, or around a circle: kernels in the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import compiled
import numpy as np
import pytest
import tolerance
import torch
from calls import TORCH, built, draw, filters
from cases import slow
from command_line import why_not
from hard_signals import hard_signal
from test_sections import EXTREMES, POINTS, SIZES, changed, in_whole_sectors, rising
from torch import Tensor
from traffic import moved

from fftgen import emulate, hot_path, toolkit
from fftgen.errors import InternalError
from fftgen.planner import search
from fftgen.planner.cost import work_of
from fftgen.planner.plan import CIRCULANT, FULL, LOWER, Plan
from fftgen.planner.sections import MOST_OF_ALL, sectioned
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import SimulationError
from fftgen.targets import target
from fftgen.verify import reference

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

BOTH = pytest.mark.parametrize("matrix", [FULL, CIRCULANT])


def planned(
    matrix: str, sections: int, points: int = POINTS, dtype: str = "bf16", arch: str = "sm_90"
) -> Plan:
    problem = Problem("circular" if matrix == CIRCULANT else "causal", sections * points, dtype)
    found = sectioned(problem, points, lambda p: search.plan(p, arch), back=matrix != LOWER)
    assert found is not None
    assert (found.sections, found.matrix) == (sections, matrix)
    return found


def run(
    plan: Plan, u: Tensor, k: Tensor | None, ptx: str | None = None, seed: int = 0, **given: Any
) -> emulate.Simulated:
    """A call, its filter's spectra by kernels as well, judged."""
    module, own = built(plan)
    y, simulated = emulate.convolve(module, u, k, ptx=ptx or own, seed=seed, **given)
    exact = reference(plan.problem, u, torch.zeros(u.shape[1], 1) if k is None else k, **given)
    tolerance.check(y.double().numpy(), exact, plan.problem.dtype, plan.order, plan.compute_format)
    return simulated


CASES = (
    (FULL, 2, 8192, "bf16", "sm_90"),
    (CIRCULANT, 3, 8192, "fp16", "sm_80"),
    *slow(
        [
            (FULL, 2, 24_576, "bf16", "sm_90"),
            (CIRCULANT, 3, 24_576, "bf16", "sm_80"),
            (FULL, 3, 12_288, "bf16", "sm_86"),
            (CIRCULANT, 4, 40_960, "bf16", "sm_90"),
            (CIRCULANT, 2, 32_768, "bf16", "sm_90"),
            (FULL, 2, 32_768, "bf16", "sm_90"),
            (FULL, 4, 32_768, "bf16", "sm_90"),
            (CIRCULANT, 3, 32_768, "fp16", "sm_90"),
            (CIRCULANT, 4, 32_768, "bf16", "sm_80"),
            (FULL, 3, 16_384, "bf16", "sm_90"),
            (FULL, 2, 16_384, "fp16", "sm_89"),
            (CIRCULANT, 4, 16_384, "bf16", "sm_86"),
            (FULL, 4, 16_384, "bf16", "sm_120"),
            (CIRCULANT, 2, 32_768, "bf16", "sm_100"),
            (FULL, 5, 8192, "fp16", "sm_90"),
            (FULL, 5, 16_384, "bf16", "sm_89"),
            (CIRCULANT, 5, 16_384, "fp16", "sm_120"),
            (CIRCULANT, 5, 32_768, "bf16", "sm_90"),
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
        k, k_rev = (filters(rng, shape[1], taps, steps) for _ in range(2))
        skip = torch.copysign(draw(rng, shape[1]).float(), k[:, 0] + k_rev[:, 0])
        options = {"k_rev": k_rev, "in_gate": in_gate, "out_gate": out_gate, "skip": skip}
        run(plan, u, k, seed=int(rng.integers(2**31)), **options)


@pytest.mark.drawn(3)
@BOTH
def test_sections_of_any_signal(matrix: str, rng: np.random.Generator) -> None:
    """Lengths, taps and layouts drawn; rows that start anywhere, and filters in one direction among them."""
    plan = planned(matrix, int(rng.integers(2, MOST_OF_ALL + 1)))
    length = plan.problem.length
    steps = int(rng.integers(1, length + 1))
    u = draw(rng, int(rng.integers(1, 4)), int(rng.integers(1, 3)), steps).bfloat16()
    k, k_rev = (filters(rng, u.shape[1], int(rng.integers(1, length + 1)), steps) for _ in range(2))
    which = int(rng.integers(3))
    gate = {"in_gate": draw(rng, *u.shape).bfloat16()} if rng.integers(2) else {}
    run(plan, u, None if which == 1 else k, k_rev=None if which == 2 else k_rev, **gate)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("size", ["loud, then quiet", "nothing, then something", "tiny", "huge", "falling"])
@BOTH
def test_each_section_has_a_power_of_its_own(matrix: str, size: str, rng: np.random.Generator) -> None:
    plan = planned(matrix, 3)
    steps = plan.problem.length
    u = (draw(rng, 1, 1, steps) * SIZES[size](torch.arange(steps))).bfloat16()
    run(plan, u, filters(rng, 1, steps), k_rev=filters(rng, 1, steps))


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("dtype", "name"), [("bf16", "mean"), ("bf16", "spike"), ("fp16", "tails")])
@BOTH
def test_hard_signals(matrix: str, dtype: str, name: str, rng: np.random.Generator) -> None:
    plan = planned(matrix, 2, dtype=dtype)
    steps = plan.problem.length
    u = hard_signal(rng, name, 1, 1, steps).to(TORCH[dtype])
    k, k_rev = (filters(rng, 1, steps) / 8 for _ in range(2))
    for taps in (k, k_rev):  # of one sign at frequency 0, lest a mean is cancelled
        taps[:, 0] += torch.copysign(taps.norm(dim=1), taps.sum(dim=1))
        taps *= torch.sign(taps.sum(dim=1, keepdim=True))
    run(plan, u, k, k_rev=k_rev)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("first", [POINTS - 3, POINTS + 2, 2 * POINTS + 5])
@BOTH
def test_filters_that_leave_distances_empty(
    matrix: str, first: int, scale: float, rng: np.random.Generator
) -> None:
    """Pure delays, or almost: the spectrum of a section itself is zero, and asks for no room either."""
    plan = planned(matrix, 3)
    k = torch.zeros(1, plan.problem.length)
    k[:, first : first + 40] = filters(rng, 1, 40) * scale
    run(plan, draw(rng, 1, 1, plan.problem.length).bfloat16(), k)


def test_what_is_not_finite_spoils_its_row(rng: np.random.Generator) -> None:
    plan = planned(FULL, 3)
    module, ptx = built(plan)
    u = draw(rng, 2, 1, plan.problem.length).bfloat16()
    k = filters(rng, 1, plan.problem.length)
    good, _ = emulate.convolve(module, u, k, k_rev=k, ptx=ptx)
    u[0, 0, POINTS + 5] = float("inf")
    y, _ = emulate.convolve(module, u, k, k_rev=k, ptx=ptx)
    assert torch.equal(y[1], good[1])
    assert bool(y[0].isnan().all())


@pytest.mark.parametrize("gated", [False, True])
@BOTH
def test_the_kernel_does_what_the_model_says(matrix: str, gated: bool, rng: np.random.Generator) -> None:
    plan, rows = planned(matrix, 3), 2
    u = draw(rng, rows, 1, plan.problem.length).bfloat16()
    k = filters(rng, 1, plan.problem.length)
    gates = {"in_gate": u.flip(-1), "out_gate": u.flip(0)} if gated else {}
    counters = run(plan, u, k, k_rev=k, **gates).reports[plan.entry(plan.body)].counters
    in_whole_sectors(counters)
    work = work_of(plan, plan.body, target("sm_90"), gated)
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
@pytest.mark.parametrize("sections", [2, *slow([3])])
def test_instructions_by_formula_are_near_those_of_the_code(sections: int) -> None:
    plan = planned(CIRCULANT, sections, 32_768)
    counted = hot_path.hot_paths(plan, gated=True)["convolve"].per_transform(plan.points)
    assert 0.9 < work_of(plan, plan.body, target("sm_90"), True).instructions / counted < 1.1


@BOTH
@pytest.mark.drawn(4)
@pytest.mark.parametrize(("size", "first"), EXTREMES)
def test_powers_that_fp32_does_not_hold(
    size: float, first: float, matrix: str, rng: np.random.Generator
) -> None:
    plan = planned(matrix, 3)
    u = (draw(rng, 1, 1, plan.problem.length) * size).bfloat16()
    run(plan, u, rising(rng, 1, plan.problem.length, first))


MUTATIONS = {
    "earlier sections alone": ("AROUND && q > p ? p - q + AROUND : p - q", "p > q ? p - q : 0"),
    "transforms at the wrong power": ("max(result - term(p, q), 0)", "max(result - term(p, p), 0)"),
    "results at the power of another": ("f, powers.joined(part, live))", "f, 0)"),
    "the last section's transform for all": ("if (q < part)", "if (q < 0)"),
    "nothing kept": ("own[part * (N / 4)] = together(r[g][m]),", ""),
    "another section's result": ("sections + part * (N / 4) + 2 * tile", "sections + 2 * tile"),
    "own power not kept": ("if (index == 0) powers.keep(re_power, part);", ""),
}


@pytest.mark.drawn(7)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(mutation: str, rng: np.random.Generator) -> None:
    plan = planned(FULL, 3)
    module, _ = built(plan)
    before, after = MUTATIONS[mutation]
    source = module.source
    if source.text.count(before) > 1:  # in the loops there, between and back
        source = replace(source, text=source.text.replace(before, after))
    else:
        source = changed(source, before, after)
    ptx = emulate.line_ptx(replace(module, source=source))
    steps = plan.problem.length
    k = filters(rng, 1, steps)
    sizes = [SIZES[size](torch.arange(steps)) for size in ("rising", "falling")]
    u = torch.cat([(draw(rng, 1, 1, steps) * size).bfloat16() for size in sizes], dim=1)
    with pytest.raises((AssertionError, SimulationError, InternalError)):
        run(plan, u, k.expand(2, -1), ptx, k_rev=k.expand(2, -1))


@pytest.mark.parametrize(
    ("matrix", "arch"),
    [(CIRCULANT, "sm_90"), *slow([(FULL, "sm_90"), (FULL, "sm_80"), (CIRCULANT, "sm_100")])],
)
def test_few_registers_are_put_by(matrix: str, arch: str) -> None:
    plan = planned(matrix, 2, 32_768, arch=arch)
    found = compiled.cubin(render(plan), arch).resources[plan.name]
    assert found.spill_store_bytes <= 40
    assert found.registers <= 128

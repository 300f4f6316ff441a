"""Proofs of the bench that want a GPU, run where there is none: what they see, and what they would miss."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_kit import CPU, host

from fftgen import eager, toolkit
from fftgen.accuracy import MARGIN
from fftgen.bench import gradient_proof, overhead, proof, sanitizer
from fftgen.bench.gradient_proof import check_gradient
from fftgen.bench.proof import check_portfolio, differences, moved
from fftgen.bench.sanitizer import FOUND, sanitize, verdict
from fftgen.conv import get_conv
from fftgen.planner.launch import launches, together
from fftgen.problem import Problem
from fftgen.storage import TORCH

KINDS = {"bf16": (torch.bfloat16, 8), "fp16": (torch.float16, 11)}


@pytest.mark.parametrize("problem", [Problem("causal", 256, "bf16"), Problem("circular", 1000, "fp16")])
def test_the_portfolio_is_right_on_the_cpu_path(problem: Problem) -> None:
    found = check_portfolio(problem, host(), seed=4)
    assert found["status"] == "passed"
    assert len(found["cases"]) == 4
    assert all(0 < c["error"] <= c["error_bound"] for c in found["cases"])
    assert any("skip" in c["case"] for c in found["cases"])


@pytest.mark.parametrize("fault", ["zeros", "row", "nan"])
def test_a_wrong_result_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = eager.convolve

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        y = right(*arguments, **options)
        if fault == "zeros":
            return torch.zeros_like(y)
        y[-1, -1, : 1 if fault == "nan" else None] *= math.nan if fault == "nan" else 1.05
        return y

    monkeypatch.setattr(eager, "convolve", wrong)
    found = check_portfolio(Problem("causal", 256, "bf16"), host(), seed=4)
    assert found["status"] == "wrong"
    assert not any(c["passed"] for c in found["cases"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("prepared", [True, False])
def test_both_ways_of_calling_are_checked(prepared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = eager.convolve
    calls = 0

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        y = right(*arguments, **options)
        return y if (calls % 2 == 0) != prepared else y * 2

    monkeypatch.setattr(eager, "convolve", wrong)
    assert check_portfolio(Problem("causal", 256, "bf16"), host(), seed=4)["status"] == "wrong"


def signal(dtype: str) -> torch.Tensor:
    return torch.randn(3, 2, 512, generator=torch.Generator().manual_seed(8)).to(KINDS[dtype][0])


def nudged(x: torch.Tensor, steps: int, where: tuple[int, int, int]) -> torch.Tensor:
    """``x`` with one element moved by so many neighbours away from zero."""
    bits = x.clone().view(torch.int16)
    bits[where] += steps
    return bits.view(x.dtype)


@pytest.mark.parametrize("dtype", KINDS)
def test_equal_results_agree_bit_for_bit(dtype: str) -> None:
    found = differences(signal(dtype), signal(dtype), dtype)
    assert (found["status"], found["identical"]) == ("passed", 1.0)
    assert (found["largest_ulps"], found["largest_row_ulps"], found["relative_difference"]) == (0, 0, 0)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_differences_are_told_in_units_of_the_last_place(dtype: str, steps: int) -> None:
    x = signal(dtype)
    where = (1, 0, 77)
    x[where] = 1.5  # between 1 and 2, as is twice the row's root mean square of about 1
    found = differences(nudged(x, steps, where), x, dtype)
    assert found["status"] == "passed"
    assert found["identical"] == pytest.approx(1 - 1 / x.numel(), abs=1e-6)
    assert found["largest_ulps"] == steps
    rms = float(x[1, 0].double().square().mean().sqrt())
    ulp = 2.0 ** (math.floor(math.log2(rms)) + 1 - KINDS[dtype][1])
    assert found["largest_row_ulps"] == pytest.approx(steps * 2.0 ** (1 - KINDS[dtype][1]) / ulp, rel=1e-3)


def test_signs_and_zeros_are_neighbours() -> None:
    least = torch.tensor([[[0.0, 1.0]]]).bfloat16()
    assert differences(torch.tensor([[[-0.0, 1.0]]]).bfloat16(), least, "bf16")["largest_ulps"] == 0
    tiny = torch.tensor([1, 0x3F80], dtype=torch.int16).view(torch.bfloat16)[None, None]
    negative = torch.tensor([-0x7FFF, 0x3F80], dtype=torch.int16).view(torch.bfloat16)[None, None]
    assert differences(tiny, negative, "bf16")["largest_ulps"] == 2
    assert differences(tiny, negative, "bf16")["largest_row_ulps"] < 1e-30  # nothing beside the row


@pytest.mark.parametrize("dtype", KINDS)
def test_what_accumulation_order_cannot_explain_is_wrong(dtype: str) -> None:
    x = signal(dtype)
    epsilon = 2.0 ** (1 - KINDS[dtype][1])
    one = x.clone()
    one[2, 1, 5] += 20 * epsilon  # a single element far off
    assert differences(one, x, dtype)["status"] == "wrong"
    rounded_otherwise = (x.double() * (1 + 1.5 * epsilon)).to(x.dtype)  # every element a little
    assert differences(rounded_otherwise, x, dtype)["status"] == "wrong"
    missing = x.clone()
    missing[0, 0, 0] = math.nan
    found = differences(missing, x, dtype)
    assert (found["status"], found["finite"], found["relative_difference"]) == ("wrong", False, None)
    json.dumps(found, allow_nan=False)


def test_the_tensors_of_a_spectrum_move_and_the_rest_stays() -> None:
    made = get_conv(256, "bf16").prepare(torch.randn(2, 256))
    there = moved(made, torch.device("meta"))
    assert there.planes.device.type == there.scale.device.type == "meta"
    assert (there.digest, there.filter_length) == (made.digest, made.filter_length)
    assert all(torch.equal(getattr(moved(made, CPU), f), getattr(made, f)) for f in ("planes", "scale"))
    assert len(dataclasses.fields(made)) == 4


def test_host_overhead_is_time_until_the_call_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "BATCH", 3)
    found = overhead.host_overhead(host(), seed=1, rounds=2)
    assert len(found["calls"]) == 4
    assert all(0 < c["low_us"] <= c["median_us"] <= c["high_us"] for c in found["calls"].values())
    clock = iter(range(1000))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: float(next(clock)))
    made = overhead._host_samples(host(), lambda: None, 3)
    assert made == [1 / overhead.BATCH] * 3


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at fftgen_conv+0x1f0
========= ERROR SUMMARY: 2 errors
"""


@pytest.mark.parametrize(
    ("status", "output", "expected", "said"),
    [
        (0, "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", "passed", "0 errors"),
        (
            0,
            "========= COMPUTE-SANITIZER\n"
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            "passed",
            "0 hazards",
        ),
        (FOUND, MEMCHECK, "wrong", "Invalid __global__ read of size 16 bytes"),
        (1, "Traceback\nToolchainError: no GPU\n", "failed", "exit status 1: ToolchainError: no GPU"),
        (0, "it printed something else", "failed", "exit status 0: it printed"),
        (255, "", "failed", "no output"),
    ],
)
def test_what_the_sanitizer_says(status: int, output: str, expected: str, said: str) -> None:
    found = verdict(status, output)
    assert found["status"] == expected
    assert said in (found["reason"] or found["summary"])


def tool(directory: Path, text: str) -> Path:
    path = directory / "compute-sanitizer"
    path.write_text(f"#!{sys.executable}\nimport os, subprocess, sys, time\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.drawn(3)
@pytest.mark.parametrize("call", sanitizer.CALLS)
def test_the_sanitizer_is_run_on_the_program(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tool(
        tmp_path,
        'assert sys.argv[1:5] == ["--tool", "racecheck", "--report-api-errors", "no"], sys.argv\n'
        'assert sys.argv[5:7] == ["--error-exitcode", "86"], sys.argv\n'
        'assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"\n'
        "done = subprocess.run(sys.argv[7:]).returncode\n"
        'print("========= RACECHECK SUMMARY: %d hazards displayed" % done)\n'
        "sys.exit(86 if done == 3 else done)",
    )
    monkeypatch.setattr(toolkit, "find_tool", lambda name: program if name == "compute-sanitizer" else None)
    problem = Problem("causal", 256, "fp16")
    fine = sanitize(problem, "racecheck", 30, program=[sys.executable, "-c", "pass"])
    assert (fine["status"], fine["summary"]) == ("passed", "RACECHECK SUMMARY: 0 hazards displayed")
    bad = sanitize(problem, "racecheck", 30, program=[sys.executable, "-c", "import sys; sys.exit(3)"])
    assert (bad["status"], bad["reason"]) == ("wrong", "RACECHECK SUMMARY: 3 hazards displayed")
    # Its own program ends with a sentence where there is no GPU.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    without = sanitize(problem, "racecheck", 60, call)
    if not torch.cuda.is_available():
        assert without["status"] == "failed"
        assert "exit status 1" in without["reason"]


@pytest.mark.parametrize(
    ("problem", "crowd"),
    [
        (Problem("causal", 256, "fp16"), None),
        (Problem("circular", 1000, "fp16"), None),
        (Problem("causal", 65536, "bf16"), (106, 1)),
        (Problem("causal", 131072, "bf16"), (15, 1)),
    ],
)
def test_the_program_under_the_sanitizer_makes_a_small_call_and_a_crowded_one(
    problem: Problem, crowd: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second a warp takes several rows, the next on their way meanwhile, or one launch does all."""
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    seen: list[Any] = []

    class Device:
        def warmup(self) -> Device:
            return self

        def plan(self) -> Any:
            return conv.plan("sm_90")

        def __call__(self, u: torch.Tensor, made: Any, **options: Any) -> torch.Tensor:
            assert made.digest == self.plan().digest
            seen.append((tuple(u.shape), u.dtype, sorted(options)))
            return u

    monkeypatch.setattr(sanitizer, "get_conv", lambda *_, **__: Device())
    small, large = (tuple(y.shape) for y in sanitizer.probe(problem))
    kind, n, plan = TORCH[problem.dtype], problem.length, conv.plan("sm_90")
    assert seen == [(shape, kind, ["in_gate", "out_gate", "skip"]) for shape in (small, large)]
    assert small == (3, 2, n)
    if crowd is not None:
        assert large == (*crowd, n)
        assert together(plan, *crowd) is not None
    else:
        assert any(launch.run > 1 for launch in launches(plan, *large))
        assert large[0] * large[1] * n < 1 << 23  # little to look at
    assert all(launch.run == 1 for launch in launches(plan, *small))


def test_under_the_sanitizer_a_gradient_is_one_call_of_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    conv = get_conv(256, "fp16", causal=True)
    warmed: list[Any] = []
    monkeypatch.setattr(type(conv), "warmup", lambda self, **options: warmed.append(options) or self)
    seen: list[Any] = []
    right = eager.correlate_input

    def watched(u: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(
            (tuple(u.shape), u.dtype, options["in_gate"] is not None, options["out_gate"] is not None)
        )
        return right(u, v, **options)

    monkeypatch.setattr(eager, "correlate_input", watched)
    dk = sanitizer.probe_gradient(Problem("causal", 256, "fp16"))
    assert (tuple(dk.shape), warmed) == ((2, 256), [{"train": True}])
    assert seen == [((5, 2, 256), torch.float16, True, True)]
    dk = sanitizer.probe_gradient(Problem("causal", 256, "fp16"), every=True)
    assert dk.shape == (2, 256)
    assert seen[1:] == seen[:1]


@pytest.mark.parametrize("problem", [Problem("causal", 256, "bf16"), Problem("circular", 1000, "fp16")])
def test_gradients_of_filters_are_right_on_the_cpu_path(problem: Problem) -> None:
    found = check_gradient(problem, host(), seed=4)
    assert found["status"] == "passed"
    # The filter's alone, then those of every argument: u, k and both gates, u, k and one.
    assert len(found["cases"]) == 2 + 4 + 3
    for c in found["cases"]:
        of_signals = "all:" in c["case"] and not c["case"].endswith("k")
        assert 0 < c["error"] <= c["error_bound"] < (6e-3 if of_signals else 3e-3)


@pytest.mark.parametrize("fault", ["zeros", "row", "nan", "beyond"])
def test_a_wrong_gradient_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = eager.correlate_input

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        dk = right(*arguments, **options)
        if fault == "zeros":
            return torch.zeros_like(dk)
        if fault == "beyond":  # a lag that no two samples have
            dk[:, arguments[0].shape[-1] :] = 1e-3
        else:
            dk[-1, : 1 if fault == "nan" else None] *= math.nan if fault == "nan" else 1.05
        return dk

    monkeypatch.setattr(eager, "correlate_input", wrong)
    found = check_gradient(Problem("causal", 256, "bf16"), host(), seed=4)
    assert found["status"] == "wrong"
    of_filter = [c for c in found["cases"] if "all:" not in c["case"]]
    assert [c["passed"] for c in of_filter] == ([True, False] if fault == "beyond" else [False, False])
    together = [c["passed"] for c in found["cases"] if c["case"].endswith("all: k")]
    assert together == [fault == "beyond"] * 2
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_where_no_kernels_make_the_gradient_there_is_nothing_to_prove() -> None:
    backend = host()
    backend.target = "sm_75"
    for check in (check_gradient, gradient_proof.check_gradient_agreement):
        found = check(Problem("causal", 256, "fp16"), backend, 4)
        assert found["status"] == "unavailable"
        assert "sm_75" in found["reason"]


def test_gradients_may_differ_by_the_order_of_sums_and_not_by_their_roundings() -> None:
    expected = 9e-4
    dk = torch.randn(3, 512, generator=torch.Generator().manual_seed(8))
    same = gradient_proof.differences(dk, dk, expected)
    assert (same["status"], same["identical"], same["relative_difference"]) == ("passed", 1.0, 0)
    noise = torch.randn(dk.shape, generator=torch.Generator().manual_seed(9))
    for size, status in (
        (1e-6, "passed"),
        (expected / 10, "passed"),
        (expected, "wrong"),
        (1.4 * expected, "wrong"),
    ):
        found = gradient_proof.differences(dk + size * noise, dk, expected)
        assert found["status"] == status, found
        assert found["relative_difference"] == pytest.approx(size, rel=0.1)
        assert 0 < found["relative_bound"] < expected / 3
    one = dk.clone()
    one[1] *= 1 + expected  # a single channel is off
    assert gradient_proof.differences(one, dk, expected)["status"] == "wrong"
    one[1, 3] = math.nan
    found = gradient_proof.differences(one, dk, expected)
    assert (found["status"], found["finite"], found["relative_difference"]) == ("wrong", False, None)
    json.dumps(found, allow_nan=False)
    assert gradient_proof.DIFFERENT * MARGIN < 1


def test_a_sanitizer_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tool(tmp_path, "time.sleep(600)")
    monkeypatch.setattr(toolkit, "find_tool", lambda name: slow)
    found = sanitize(Problem("causal", 256, "fp16"), "memcheck", 0.5)
    assert (found["status"], found["reason"]) == ("failed", "not done after 0 s")


def test_without_the_sanitizer_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_tool", lambda name: None)
    found = sanitize(Problem("causal", 256, "fp16"), sanitizer.TOOLS[0], 1)
    assert found["status"] == "unavailable"
    assert "compute-sanitizer not found" in found["reason"]


def test_the_bounds_of_agreement_are_those_of_different_roundings() -> None:
    """Half the elements rounded the other way stay below the bound, all of them do not."""
    x = signal("bf16").double()
    one = x.bfloat16()
    half = one.clone()
    half[..., ::32] = nudged(one, 1, (slice(None), slice(None), slice(None, None, 32)))[..., ::32]  # type: ignore[arg-type]
    assert differences(half, one, "bf16")["status"] == "passed"
    assert proof.DIFFERENT["bf16"] < 1


def test_results_in_fp32_may_differ_by_what_assemblers_join() -> None:
    """As far as one is from the exact answer (accuracy.py), but not by ten times that; zeros never pass."""
    x = torch.randn(3, 2, 4096, generator=torch.Generator().manual_seed(3))
    off = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    assert differences(x, x, "fp32")["identical"] == 1
    near, far = (differences(x + size * off, x, "fp32") for size in (2.5e-7, 2.5e-6))
    assert near["status"] == "passed"
    assert near["largest_ulps"] > 0
    assert far["status"] == "wrong"
    assert differences(torch.zeros_like(x), x, "fp32")["status"] == "wrong"

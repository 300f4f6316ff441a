"""Times of single kernels and rates of a device: what is timed, what is told of it, what a run asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_kit import case, host
from command_line import answer, fftgen

from fftgen.bench import kernels, rates
from fftgen.bench.backend import HostBackend
from fftgen.bench.cases import backward_rows, problem_set
from fftgen.bench.gradient_kernels import ONE_PASS, gradient_kernel_times
from fftgen.bench.kernels import ONE, SECTIONS, STAGES, kernel_times
from fftgen.bench.rates import SHARES, device_rates
from fftgen.bench.run import Wish, plan
from fftgen.bench.steps import (
    KERNELS_BACKWARD,
    KERNELS_CAUSAL,
    KERNELS_CIRCULAR,
    KERNELS_GATED,
    RUNNERS,
    kernel_steps,
)
from fftgen.bundle import in_sections
from fftgen.errors import InputError
from fftgen.planner import gradient_sections
from fftgen.planner.cost import cost, filter_cost, in_one_launch
from fftgen.planner.gradient import backward
from fftgen.planner.gradient_work import gradient_cost
from fftgen.planner.launch import launches
from fftgen.planner.search import plan as find_plan
from fftgen.problem import Problem
from fftgen.targets import target


class Clock:
    """A timer whose marks tell the order of things; each launch takes a second longer than the last."""

    name = "clock"
    real = False

    def __init__(self) -> None:
        self.log: list[str] = []
        self._at = 0.0
        self._step = 0.0

    def time(self, calls: Any) -> list[float]:
        raise AssertionError("kernels are timed launch by launch")

    def mark(self) -> float:
        self.log.append("mark")
        self._step += self.log.count("mark") % 2 == 0  # between the two marks of a launch
        self._at += self._step if self.log.count("mark") % 2 == 0 else 100.0  # what lies between launches
        return self._at

    def between(self, first: float, second: float) -> float:
        return second - first

    def hold(self, seconds: float) -> None:
        self.log.append("hold")


def test_every_launch_stands_between_two_marks_behind_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(kernels, "in_sections", lambda *_: None)
    problem = case(length=65_536, gated=False, batch=2, channels=1)
    found = kernel_times(problem, HostBackend(clock), seed=1, rounds=2)
    names = ["filter_columns", "filter_rows", "filter_level", "columns1", "rows", "columns_inverse1"]
    assert clock.log == 3 * ["hold", *2 * len(names) * ["mark"]]  # one that is not timed, two rounds
    (way,) = found["ways"]
    assert (found["status"], way["way"]) == ("passed", STAGES)
    assert [k["kernel"] for k in way["kernels"]] == names
    assert [k["of"] for k in way["kernels"]] == 3 * ["filter"] + 3 * ["transform"]
    for i, k in enumerate(way["kernels"]):
        of = 1 if k["of"] == "filter" else found["transforms"]
        first, second = 7 + i, 13 + i  # seconds of the two rounds
        assert k["each_s"] == pytest.approx((first + second) / 2 / of, rel=1e-3)
        assert k["least_s"] == pytest.approx(first / of, rel=1e-3)


def test_chunks_of_a_kernel_are_added_up_and_one_launch_is_timed_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inputs of a whole chip's transforms are not for this machine: empty ones have their shapes."""

    def sets(scaled: Any, *_: Any) -> Any:
        u = torch.empty(1, 1, scaled.length, dtype=torch.bfloat16).expand(scaled.batch, scaled.channels, -1)
        return (kernels.Inputs(u, torch.zeros(scaled.channels, scaled.length)),)

    def like(x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x

    monkeypatch.setattr(kernels, "draw_sets", sets)
    monkeypatch.setattr(kernels, "poison", lambda *_: None)
    monkeypatch.setattr(torch, "empty_like", like)
    monkeypatch.setattr("fftgen.execute.aligned", lambda _: True)
    monkeypatch.setattr(kernels, "in_sections", lambda *_: None)
    problem = case(length=131_072, gated=False, batch=64, channels=8)
    found = kernel_times(problem, host(1 << 40), seed=1, rounds=1)
    assert [way["way"] for way in found["ways"]] == [STAGES, ONE]
    chosen = find_plan(problem.problem, "sm_90")
    chip = target("sm_90")
    price = cost(chosen, chip)
    expected = {k.name: k.predicted for k in (*price.kernels, *filter_cost(chosen, chip).kernels)}
    expected["whole"] = in_one_launch(chosen, price, chip).predicted
    made = [launch.kernel.label for launch in launches(chosen, 64, 8, 131_072)]
    for way in found["ways"]:
        for k in way["kernels"]:
            assert k["predicted_s"] == pytest.approx(expected[k["kernel"]], rel=1e-4)
            if way["way"] == STAGES and k["of"] == "transform":
                assert k["launches"] == made.count(k["kernel"]) > 1
    assert [k["kernel"] for k in found["ways"][1]["kernels"] if k["of"] == "transform"] == ["whole"]


def test_rows_in_sections_are_timed_beside_one_transform() -> None:
    """The filter's kernels make the spectra of all distances of sections by one launch each."""
    found = kernel_times(case(length=65_536, gated=True, batch=2, channels=2), host(), seed=1, rounds=1)
    assert [way["way"] for way in found["ways"]] == [STAGES, SECTIONS]
    chip = target("sm_90")
    plan = in_sections(Problem("causal", 65_536, "bf16"), chip)
    assert plan is not None
    assert found["ways"][1]["plan"] == str(plan)
    *spectrum, one = found["ways"][1]["kernels"]
    assert [k["launches"] for k in spectrum] == [1] * len(plan.filter.kernels)
    assert one["launches"] == 1
    assert one["predicted_s"] == pytest.approx(cost(plan, chip, gated=True).predicted, rel=1e-4)
    predicted = sum(k["predicted_s"] for k in spectrum)
    assert predicted == pytest.approx(2 * filter_cost(plan, chip).predicted, rel=1e-4)


def test_calls_with_gates_are_beside_the_model_of_such() -> None:
    found = []
    for gated in (False, True):
        (way,) = kernel_times(case(length=256, gated=gated), host(), seed=1, rounds=1)["ways"]
        found.append({k["kernel"]: k["predicted_s"] for k in way["kernels"]})
    chosen, chip = find_plan(case(length=256).problem, "sm_90"), target("sm_90")
    for times, gated in zip(found, (False, True), strict=True):
        assert times["convolve"] == pytest.approx(cost(chosen, chip, gated=gated).predicted, rel=1e-4)
    assert found[0]["filter"] == found[1]["filter"]
    assert found[0]["convolve"] < found[1]["convolve"]


def test_long_cases_are_cut_to_what_a_queue_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ELEMENTS", 8 * 256)
    found = kernel_times(case(length=256, batch=8, channels=8), host(), seed=1, rounds=1)
    assert (found["batch"], found["channels"]) == (8, 1)
    found = kernel_times(case(length=1024, batch=8, channels=8), host(), seed=1, rounds=1)
    assert (found["batch"], found["channels"]) == (2, 1)


def test_kernels_of_a_backward_pass_are_timed_by_both_ways() -> None:
    """Those of both signals together, each beside what the model says of it; of taps it says nothing."""
    clock = Clock()
    problem = case(length=65_536, gated=True, batch=2, channels=2, direction="backward")
    found = gradient_kernel_times(problem, HostBackend(clock), seed=1, rounds=1)
    assert (found["status"], found["transforms"]) == ("passed", 4)
    assert [way["way"] for way in found["ways"]] == [ONE_PASS, SECTIONS]
    chip = target("sm_90")
    cut = in_sections(problem.problem, chip)
    assert cut is not None
    whole = backward(problem.problem, chip)
    assert whole is not None
    for way, gradient in zip(found["ways"], (whole, gradient_sections.in_sections(cut)), strict=True):
        assert way["plan"] == str(gradient)
        own = [k for k in way["kernels"] if k["of"] == "transform"]
        price = gradient_cost(gradient, chip, gated=True)
        predicted = sum(k["predicted_s"] for k in own)
        assert predicted == pytest.approx(price.predicted, rel=1e-3)
        assert all(k["predicted_s"] is None for k in way["kernels"] if k["of"] == "filter")
        assert all(k["each_s"] > 0 for k in way["kernels"])
    columns, *_ = found["ways"][0]["kernels"]
    assert (columns["kernel"], columns["launches"]) == ("columns1", 2)
    assert [k["kernel"] for k in found["ways"][1]["kernels"]][:2] == ["backward", "sums"]
    assert clock.log.count("hold") == 4  # a pass of each way that is not timed, and one that is
    with pytest.raises(InputError, match="no kernels make all gradients"):
        gradient_kernel_times(case(mode="circular", length=256, direction="backward"), host(), seed=1)


class Memory:
    """A device that takes 2 us beside what a call touches, at 4 GB/s in its cache and 1 GB/s beyond."""

    name, real = "memory", False

    def __init__(self, backend: HostBackend) -> None:
        self._backend = backend
        self.touched = 0

    def time(self, calls: Any) -> list[float]:
        found = []
        for call in calls:
            self.touched = 0
            call()
            rate = 4e9 if self.touched <= self._backend.l2_bytes else 1e9
            found.append(2e-6 + self.touched / rate)
        return found


def test_rates_are_slopes_over_what_stays_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = host()
    backend.timer = memory = Memory(backend)  # type: ignore[assignment]

    def touching(half: int, device: torch.device) -> dict[str, Any]:
        def touch(count: int) -> None:
            memory.touched = count

        return {name: lambda: touch(2 * half) for name in ("copy", "write", "read")}

    monkeypatch.setattr(rates, "_touching", touching)
    found = device_rates(backend, 0.001)
    assert [m["bytes"] for m in found["memory"]] == [
        pytest.approx(share * backend.l2_bytes, rel=0.1) for share in SHARES
    ]
    for rate in found["l2_bytes_per_s"].values():
        assert rate == pytest.approx(4e9, rel=1e-3)
    beyond = found["memory"][-1]
    assert beyond["bytes"] / beyond["seconds"]["copy"] == pytest.approx(1e9, rel=0.1)


def test_calls_touch_the_bytes_that_they_are_said_to() -> None:
    calls = rates._touching(4096, torch.device("cpu"))
    copied, filled, added = (calls[name]() for name in ("copy", "write", "read"))
    assert isinstance(copied, torch.Tensor)
    assert copied.nbytes == 4096  # and as many read
    assert isinstance(filled, torch.Tensor)
    assert filled.nbytes == 8192
    assert isinstance(added, torch.Tensor)
    assert added.item() == 2048  # of the numbers that were filled in
    found = device_rates(host(), 0.001)
    assert found["matrix_flops"] > 0


def test_a_rate_that_cannot_be_told_is_none() -> None:
    flat: dict[str, Any] = {"bytes": 1, "seconds": {"copy": 1.0}}
    assert rates._slope(flat, {**flat, "bytes": 2}, "copy") is None


# What a run asks for.


def steps_of(kind: str, wish: Wish) -> Iterator[dict[str, Any]]:
    return (s.params for s in plan(wish) if s.kind == kind)


def test_a_suite_times_kernels_that_tell_the_model_something() -> None:
    wish = Wish(problem_set(), ("fftgen",), 1, suite=True)
    found = [(s["mode"], s["length"], s["gated"], s["dtype"]) for s in steps_of("kernels", wish)]
    assert sorted(found) == sorted(
        [("causal", n, False, "bf16") for n in KERNELS_CAUSAL]
        + [("circular", n, False, "bf16") for n in KERNELS_CIRCULAR]
        + [("causal", n, True, "bf16") for n in KERNELS_GATED]
    )
    trained = Wish(backward_rows(problem_set()), ("fftgen",), 1, suite=True)
    backward = [(s["mode"], s["length"], s["gated"], s["dtype"]) for s in steps_of("kernels", trained)]
    assert sorted(backward) == [("causal", n, True, "bf16") for n in KERNELS_BACKWARD]
    assert len(list(steps_of("rates", wish))) == 1


def test_other_runs_time_kernels_when_asked() -> None:
    cases = problem_set((1024,), ("fp16",), ("causal",), directions=("forward", "backward"))
    assert not list(steps_of("kernels", Wish(cases, ("fftgen",), 1)))
    asked = Wish(cases, ("fftgen",), 1, kernels=True)
    assert [s["direction"] for s in steps_of("kernels", asked)] == [*["forward"] * 2, *["backward"] * 2]
    last = cases[-1]
    for other in (replace(last, taps=8), replace(last, problem=Problem("circular", 1024, "fp16"))):
        assert not kernel_steps([other], 1)  # gradients by windows, or separately
    assert len(list(steps_of("rates", asked))) == 1


def test_a_step_travels_as_plain_data_and_comes_back_as_its_case() -> None:
    (step,) = kernel_steps([case(length=256, batch=5, channels=3)], 7)
    told = {"mode": "causal", "length": 256, "dtype": "bf16", "gated": True, "batch": 5, "channels": 3}
    assert step.params == told | {"direction": "forward", "seed": 7}
    found = RUNNERS["kernels"](step.params, host(), lambda _: None)
    assert (found["batch"], found["channels"], found["transforms"]) == (5, 3, 15)
    assert step.kernels == (("causal", 256, "bf16", "forward"),)


def test_the_command_shows_kernels_and_rates(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--dry-run", "--seqlen", "65536", "--causal", "--contender", "fftgen", "--seconds", "0.01")
    result = fftgen("bench", *given, "--ungated", "--kernels", "-o", "r.json")
    assert result.exit_code == 0, result.stderr
    assert re.search(
        r"kernels of causal 65536 bf16 ungated forward +passed +launch by launch \d+ ns", result.stdout
    )
    assert re.search(r"columns1 +1 +\d+ ns +\d+\.?\d* ns +\d+\.\d\d", result.stdout)
    stages = cost(find_plan(Problem("causal", 65_536, "bf16"), "sm_90"), target("sm_90"))
    assert re.search(rf"all of a transform +\d+ ns +{round(1e9 * stages.predicted)} ns", result.stdout)
    assert "matrices" in result.stdout
    assert fftgen("bench", "--show", "r.json").stdout == result.stdout
    doc = answer("bench", *given, "--ungated", "-o", "s.json")
    assert {s["kind"] for s in doc["steps"]} == {"environment", "bandwidth", "row"}

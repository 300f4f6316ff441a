"""What of the bench compiles: the simulator's side of the agreement, cold starts, a whole dry suite."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_kit import case, host
from cases import usually
from command_line import answer, why_not

from fftgen import emulate, shortcut
from fftgen.bench import gradient_proof, proof, steps
from fftgen.bench.gradient_kernels import RunningGradient, gradient_kernel_times
from fftgen.bench.gradient_proof import check_gradient_agreement
from fftgen.bench.kernels import Running, kernel_times
from fftgen.bench.overhead import cold_start
from fftgen.bench.proof import check_agreement
from fftgen.bench.row import CONTENDERS
from fftgen.bench.steps import RUNNERS, build_step, with_padded
from fftgen.cache import Cache, CacheMissError
from fftgen.conv import Conv
from fftgen.execute import Executable
from fftgen.pipeline import build, build_gradient
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.launch import launches
from fftgen.planner.plan import Plan
from fftgen.planner.variants import variants
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.spectra import Spectrum, spectrum
from fftgen.targets import target
from fftgen.verify import Case, draw

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("problem", [Problem("causal", 256, "bf16"), Problem("circular", 1000, "fp16")])
def test_the_simulator_runs_the_call_that_the_device_gets(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device the other side would be the kernels; here it is the CPU path, which rounds otherwise."""
    found = check_agreement(problem, host(), seed=3)
    assert (found["status"], found["identical"]) == ("passed", 1.0)  # a dry run compares it with itself
    seen: dict[str, torch.Tensor] = {}

    def other(
        built: Any, backend: Any, u: torch.Tensor, made: Any, gates: Any, simulated: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        from fftgen.conv import get_conv

        conv = get_conv(problem.length, problem.dtype, causal=problem.causal)
        case = Case(u.shape[0], u.shape[1], problem.length, problem.length, True, True, True)
        drawn = draw(case, u.dtype, torch.Generator().manual_seed(3))  # the filter behind the spectrum
        assert torch.equal(drawn["u"], u)
        seen["y"] = conv(u, drawn["k"], skip=drawn["skip"], **gates)
        return seen["y"], True

    monkeypatch.setattr(proof, "_on_device", other)
    real = check_agreement(problem, host(), seed=3)
    assert seen["y"].shape == (3, 2, problem.length)
    assert 0.05 < real["identical"] < 0.95
    assert real["relative_difference"] < 1e-2  # the same convolution, gates and skip included
    assert real["largest_row_ulps"] > 0


@pytest.mark.parametrize("wrong", [False, True])
def test_kernels_are_judged_before_their_times_are_told(wrong: bool) -> None:
    """The simulator stands for the device: launches of a whole call, filter included, each by itself."""
    built = build(Problem("causal", 256, "bf16"), "sm_90")

    class Anew:
        """A simulator for every call, whose first buffer is the filter."""

        def address(self, name: str, x: torch.Tensor) -> int:
            if name == "filter":
                self.device = emulate.Simulated(emulate.line_ptx(built), built.source.text)
            if name == "scale" and wrong:
                x = 2 * x
            return self.device.address(name, x)

        def launch(self, *launch: Any) -> None:
            self.device.launch(*launch)

    def run(*_: Any) -> Running:
        device = Anew()
        tables = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
        return Running(built.plan, tables, device, device.address)

    found = kernel_times(case(batch=2, channels=1), host(), seed=4, rounds=1, run=run)
    (way,) = found["ways"]
    assert found["status"] == ("wrong" if wrong else "passed")
    assert ("reason" in found) == wrong
    assert [k["kernel"] for k in way["kernels"]] == ["filter", "convolve"]
    assert (way["error"] > 0.9) == wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_kernels_of_gradients_are_judged_before_their_times_are_told(wrong: bool) -> None:
    """As above; the spectrum is made for the pass, by torch.fft."""

    def run(found: Gradient, plan: Plan, _: Any) -> RunningGradient:
        built = build_gradient(found)
        tables = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)

        class Anew:
            """A simulator for every pass, whose first buffer are the tables."""

            def address(self, name: str, x: torch.Tensor) -> int:
                if name == "tables":
                    self.device = emulate.Simulated(emulate.line_ptx(built), built.source.text)
                return self.device.address(name, 2 * x if name == "scale" and wrong else x)

            def launch(self, *launch: Any) -> None:
                self.device.launch(*launch)

        def spectrum_of(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made = spectrum(plan, k)
            return made.planes, made.scale

        device = Anew()
        return RunningGradient(tables, device, spectrum_of, device.address)

    asked = case(batch=2, channels=1, direction="backward")
    found = gradient_kernel_times(asked, host(), seed=4, rounds=1, run=run)
    (way,) = found["ways"]
    assert found["status"] == ("wrong" if wrong else "passed")
    assert ("a gradient is not that of the convolution" in found.get("reason", "")) == wrong
    assert [k["kernel"] for k in way["kernels"]] == ["backward", "finish"]
    assert (way["error"] > 0.9) == wrong


@pytest.mark.parametrize("fault", [None, "scale", "crowd"])
def test_the_device_gets_the_same_call_and_the_same_spectrum(
    fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator again stands for the device, with another seed: other fragment layouts, the same bits."""
    problem = Problem("causal", 256, "bf16")
    built = build(problem, "sm_90")

    seen: list[torch.Tensor] = []

    class Device:
        def warmup(self, device: torch.device) -> Device:
            return self

        def __call__(self, u: torch.Tensor, made: Spectrum, **options: torch.Tensor) -> torch.Tensor:
            assert set(options) == {"in_gate", "out_gate"}
            if u.shape[1] > 2:  # those two channels over and over, and warps with several rows
                assert any(launch.run > 1 for launch in launches(built.plan, *u.shape))
                for x in (*options.values(), u):
                    assert all(torch.equal(x[:, :2], part) for part in x.split(2, 1))
                assert all(torch.equal(x[:2], part) for x in (made.planes, made.scale) for part in x.split(2))
                found = seen[-1].repeat(1, u.shape[1] // 2, 1)
                found[-1, -1, -1] += fault == "crowd"
                return found
            table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
            simulated = emulate.Simulated(emulate.line_ptx(built), built.source.text, seed=99)
            run = Executable(built.plan, table)
            scale = made.scale * (1.5 if fault == "scale" else 1)
            seen.append(run(simulated, u, made.planes, scale, **options, address=simulated.address))
            return seen[-1]

    monkeypatch.setattr(proof, "get_conv", lambda *_, **__: Device())
    backend = host()
    backend.kernels = True
    found = check_agreement(problem, backend, seed=3)
    if fault == "scale":
        assert found["status"] == "wrong"
        assert found["largest_row_ulps"] > proof.FAR[problem.dtype]
    elif fault:
        assert (found["status"], found["identical"]) == ("wrong", 1.0)
        assert "where workers take several in a row" in found["reason"]
    else:
        assert (found["status"], found["identical"], found["largest_ulps"]) == ("passed", 1.0, 0)


def test_where_a_plan_was_tuned_the_simulator_runs_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device refuses spectra of another plan."""
    problem, chip, store = Problem("causal", 256, "bf16"), target("sm_90"), Cache.default()
    choice, other = (v.plan for v in variants(problem, chip, 3, 8, 2))
    shortcut.keep_tuned(store, problem, chip, "GPU A", other)
    seen: list[str] = []

    class Device:
        def warmup(self, device: torch.device) -> Device:
            return self

        def __call__(self, u: torch.Tensor, made: Spectrum, **options: torch.Tensor) -> torch.Tensor:
            seen.append(made.digest)
            return u

    monkeypatch.setattr(proof, "get_conv", lambda *_, **__: Device())
    backend = host()
    backend.kernels = True
    for gpu in ("GPU A", "GPU B"):
        backend.gpu = gpu
        check_agreement(problem, backend, seed=3)
    assert list(dict.fromkeys(seen)) == [other.digest, choice.digest]


def test_everything_that_calls_need_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls on a circle, too, which are those of another problem."""
    problems = (Problem("circular", 512, "bf16"), Problem("causal", 300, "fp16"))
    every, back = with_padded(problems), with_padded(problems[:1])
    built = RUNNERS["build"](build_step(every, 2, back).params, host(), lambda _: None)
    assert built["status"] == "passed", built
    assert built["modules"] == len(list(Cache.default().entries()))
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    calls, chip = JustInTime(), (9, 0)
    for problem in problems:
        conv = Conv(problem, calls, "test")
        for length in (problem.length, problem.length // 2):
            served = conv.served(length, length)
            assert calls.built(served, chip).cached
            if problem is problems[0]:
                made = (calls.gradient(served, chip), calls.twin(served, chip), calls.backward(served, chip))
                assert [one is not None for one in made] == [True, True, served.causal]
                assert all(one is None or one.cached for one in made)
    with pytest.raises(CacheMissError):
        calls.built(Problem("causal", 100, "fp16"), chip)


def test_the_longest_are_compiled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[int, str]] = []
    monkeypatch.setattr(steps, "_built", lambda problem, kind, backend: order.append((problem.length, kind)))
    problems = [Problem("causal", n, "bf16") for n in (256, 4096, 1024)]
    params = build_step(problems, 1, problems[1:2]).params
    assert RUNNERS["build"](params, host(), lambda _: None)["modules"] == 0
    lengths = [n for n, _ in order]
    assert lengths == sorted(lengths, reverse=True)
    assert [kind for n, kind in order if n == 4096] == ["convolution", "sections", *steps.OF_BACKWARD]


PROBLEMS = (Problem("causal", 256, "fp16"), Problem("circular", 1000, "bf16"))
FAULTS = (None, "rounding", "gate", "zeros")
USUAL = [*product(PROBLEMS[:1], FAULTS), (PROBLEMS[1], None)]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("problem", "fault"), usually(product(PROBLEMS, FAULTS), USUAL))
def test_the_device_gets_the_gradient_that_the_simulator_runs(
    problem: Problem, fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator again stands for the device, with another seed: other fragment layouts."""
    found = check_gradient_agreement(problem, host(), seed=3)
    assert (found["status"], found["identical"]) == ("passed", 1.0)  # a dry run compares it with itself
    built = build_gradient(gradient(problem, "sm_90"))

    class Device:
        handle = "the device's"

        def warmup(self, device: torch.device, train: bool) -> Device:
            assert train
            return self

    def operator(
        u: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, taps: int, handle: str
    ) -> torch.Tensor:
        assert handle == Device.handle
        if fault == "gate":
            a, b = b, a
        period = 0 if problem.causal else problem.length
        dk, _ = emulate.gradient(built, u, v, taps=taps, in_gate=a, out_gate=b, period=period, seed=99)
        noise = torch.randn(dk.shape, generator=torch.Generator().manual_seed(1)) * dk.std()
        return torch.zeros_like(dk) if fault == "zeros" else dk + 6e-4 * noise if fault == "rounding" else dk

    monkeypatch.setattr(gradient_proof, "get_conv", lambda *_, **__: Device())
    monkeypatch.setattr(gradient_proof.torch.ops.fftgen, "correlate_input", operator)
    backend = host()
    backend.kernels = True
    found = check_gradient_agreement(problem, backend, seed=3)
    assert found["status"] == ("passed" if fault is None else "wrong"), found
    assert found["relative_bound"] < 3e-4
    if fault is None:
        assert found["identical"] == 1.0
    else:
        assert found["relative_difference"] > found["relative_bound"]


def test_a_cold_start_compiles_and_a_warm_one_does_not() -> None:
    found = cold_start(Problem("causal", 256, "bf16"), "sm_90", timeout=120)
    assert found["status"] == "passed"
    assert set(found["cold"]) == set(found["from_cache"]) == {"import_s", "plan_s", "build_s"}
    assert found["cold_s"] == pytest.approx(found["cold"]["plan_s"] + found["cold"]["build_s"], abs=1e-3)
    assert 0 < found["from_cache"]["build_s"] < found["cold"]["build_s"]


def test_a_start_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"a fresh process failed: .*no bf16 matrix instruction"):
        cold_start(Problem("causal", 256, "bf16"), "sm_75", timeout=120)


@pytest.mark.slow
def test_a_dry_suite_holds_every_kind_of_step() -> None:
    pytest.importorskip("matplotlib")
    arguments = ("--dry-run", "--suite", "--seqlen", "256", "--causal", "--gated", "--plot", "p.svg")
    doc = answer("bench", *arguments)
    steps = {s["kind"]: s for s in doc["steps"]}
    assert set(steps) == {
        *("environment", "build", "correctness", "agreement", "gradient", "gradient agreement", "sanitizer"),
        *("bandwidth", "rates", "overhead", "kernels", "cold start", "row"),
    }
    assert all(s["status"] in ("passed", "unavailable") for s in doc["steps"]), doc["steps"]
    assert steps["build"]["result"]["modules"] == 3 + 8  # gradients: the same three problems, two in one pass
    assert steps["agreement"]["result"]["identical"] == 1
    assert steps["gradient agreement"]["result"]["identical"] == 1
    assert steps["cold start"]["result"]["from_cache_s"] < steps["cold start"]["result"]["cold_s"]
    rows = [s["result"] for s in doc["steps"] if s["kind"] == "row"]
    ahead, back = (row for row in rows if row["dtype"] == "bf16")
    assert len(rows) == 3  # and a forward pass in fp32
    assert (ahead["direction"], back["direction"]) == ("forward", "backward")
    assert back["over_forward"] > 0
    assert back["contenders"]["fftgen"]["status"] == back["contenders"]["attention"]["status"] == "ok"
    assert "backward only" in back["contenders"]["torch-real-compiled"]["reason"]
    found = ahead["contenders"]
    assert list(found) == [
        *(n for n in CONTENDERS if "compiled" not in n),
        *(n for n in CONTENDERS if "compiled" in n),
    ]
    assert found["attention"]["status"] == "ok"
    assert "in a suite only" in found["torch-real-compiled"]["reason"]
    assert doc["budget_s"] == 450
    assert "<svg" in Path("p.svg").read_text()

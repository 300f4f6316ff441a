"""The bench where it is at home. Skipped, with the reason, where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_kit import case
from command_line import answer
from test_kernels_on_gpu import needs, no_gpu

from fftgen.bench import results
from fftgen.bench.backend import CudaBackend
from fftgen.bench.gradient_proof import check_gradient, check_gradient_agreement
from fftgen.bench.kernels import kernel_times
from fftgen.bench.row import measure_row
from fftgen.bench.steps import AGREEING, GRADIENTS
from fftgen.conv import Conv
from fftgen.problem import Problem
from fftgen.providers import JustInTime

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(no_gpu()), reason=no_gpu() or "there is a GPU")]


def test_memory_of_a_call_is_counted() -> None:
    backend = CudaBackend()
    size = 1 << 26

    def call() -> torch.Tensor:
        scratch = torch.empty(size, dtype=torch.uint8, device=backend.device)
        return torch.empty_like(scratch)

    assert backend.peak_bytes(call) == 2 * size


def test_a_row_is_measured() -> None:
    needs("bf16")
    names = ["fftgen", "fftgen-prepared", "torch-complex", "torch-real", "torch-real-prepared", "attention"]
    of = case("causal", 1024, gated=True, batch=8, channels=128)
    found = measure_row(of, CudaBackend(), contenders=names, seed=3, seconds=0.05)["contenders"]
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(names, "ok")
    out = 2 * of.elements
    assert all(1e-6 < entry["median_s"] < 1 for entry in found.values())
    assert found["fftgen-prepared"]["peak_bytes"] < 1.5 * out  # the result, and little beside it
    assert found["torch-complex"]["peak_bytes"] > 10 * out


def test_a_backward_row_is_measured() -> None:
    needs("bf16")
    names = ["fftgen", "torch-complex", "torch-real", "attention"]
    of = case("causal", 1024, gated=True, batch=8, channels=128, direction="backward")
    found = measure_row(of, CudaBackend(), contenders=names, seed=3, seconds=0.05)["contenders"]
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(names, "ok")
    out = 2 * of.elements
    assert all(1e-6 < entry["median_s"] < 1 for entry in found.values())
    assert found["torch-complex"]["peak_bytes"] > 20 * out  # a training step keeps the forward pass
    assert found["fftgen"]["peak_bytes"] < found["torch-real"]["peak_bytes"]


@pytest.mark.parametrize("length", [1024, 65_536])
def test_kernels_are_right_and_timed_one_by_one(length: int) -> None:
    needs("bf16")
    found = kernel_times(case("causal", length, gated=False, batch=32, channels=16), CudaBackend(), seed=3)
    assert found["status"] == "passed", found
    for way in found["ways"]:
        assert way["status"] == "ok"
        assert all(1e-11 < k["least_s"] <= k["each_s"] < 1e-3 for k in way["kernels"]), way


@pytest.mark.parametrize("problem", GRADIENTS, ids=lambda p: f"{p.mode}-{p.length}-{p.dtype}")
def test_gradients_of_filters_are_right_and_agree_with_the_simulator(problem: Problem) -> None:
    needs(problem.dtype)
    found = check_gradient(problem, CudaBackend(), seed=5)
    assert found["status"] == "passed", found
    if problem.length <= AGREEING:
        agreement = check_gradient_agreement(problem, CudaBackend(), seed=5)
        assert agreement["status"] == "passed", agreement


def test_a_short_suite_keeps_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for all proofs and a row, in company: steps that did not run prove nothing."""
    monkeypatch.chdir(tmp_path)
    doc = answer("bench", "--suite", "--seqlen", "1024", "--dtype", "fp16", "--causal", "--budget", "150")
    assert doc["seconds"] < 160
    assert doc["environment"]["real_times"]
    assert doc["environment"]["driver"]
    assert results.read(Path("bench.json")) == doc
    ran = {s["kind"]: s for s in doc["steps"] if s["status"] != "not run"}
    assert ran.keys() >= {"build", "correctness", "agreement", "gradient", "sanitizer", "row"}, doc["counts"]
    assert all(s["status"] in ("passed", "unavailable") for s in ran.values()), ran


@pytest.mark.parametrize(("length", "most"), [(1024, 4), (65_536, 6)])
def test_variants_are_right_and_what_is_kept_is_taken(
    length: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("bf16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "cache"))
    given = ("--seqlen", str(length), "--causal", "--batch", "32", "--channels", "16", "--most", str(most))
    doc = answer("tune", *given, "--seconds", "0.05")
    (found,) = doc["cases"]
    assert doc["passed"], found["variants"]
    assert doc["environment"]["real_times"]
    assert len(found["variants"]) == most
    taken = Conv(Problem("causal", length, "bf16"), JustInTime(), "tuned").plan()
    assert taken.digest == (found["kept"] or next(v["digest"] for v in found["variants"] if v["choice"]))
    (found,) = answer("tune", *given, "--seconds", "0.05", "--backward")["cases"]
    assert all(v["status"] == "ok" for v in found["variants"]), found["variants"]
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    layout = JustInTime().backward(Problem("causal", length, "bf16"), capability, name)
    assert layout is not None
    assert layout.gradient is not None
    digest = found["kept"] or next(v["digest"] for v in found["variants"] if v["choice"])
    assert layout.gradient.digest == digest

"""``fftgen bench`` from the outside: dry runs end to end, budgets, files, and machines without a GPU."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import slow
from command_line import answer, fftgen

from fftgen import __version__, nvrtc
from fftgen.bench import backend, results, run
from fftgen.bench.backend import CudaBackend, HostBackend, commit, driver_version, environment
from fftgen.errors import ToolchainError
from fftgen.runtime import driver
from fftgen.targets import TARGETS


def has_driver() -> bool:
    try:
        driver()
    except ToolchainError:
        return False
    return True


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


FAST = ("--contender", "fftgen", "--contender", "torch-real", "--seconds", "0.01")


@pytest.mark.skipif(has_driver(), reason="this machine has a GPU's driver")
@pytest.mark.parametrize("arguments", [(), ("--suite",), ("--seqlen", "256")])
def test_without_a_gpu_one_sentence_says_what_is_missing(arguments: tuple[str, ...]) -> None:
    result = fftgen("bench", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "driver" in result.stderr
    assert not Path("bench.json").exists()


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "driver", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    result = fftgen("bench")
    assert result.exit_code == 1
    assert "is built without CUDA: install a CUDA build of torch" in result.stderr
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch finds no GPU" in fftgen("bench").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contender", "mkl"), "contender 'mkl' is not known: choose from fftgen, "),
        (("--direction", "sideways"), "'sideways' is not one of"),
        (("--seconds", "0"), "must be positive"),
        (("--seconds", "nan"), "must be positive and finite"),
        (("--budget", "inf"), "must be positive and finite"),
        (("--budget", "-1"), "must be positive"),
        (("--taps", "0"), "--taps 0: choose at least 1, or leave it out"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--batch", "0"), "batch 0 and channels 8 must be at least 1"),
        (("--seqlen", "6000000"), "exceeds the largest transform"),
        (("--dtype", "fp8"), "dtype 'fp8' is not supported"),
        (("--show", "none.json"), "--show measures nothing: leave --dry-run out"),
        (("-o", "no/such/place.json", "--seqlen", "16"), "no/such/place.json cannot be written"),
    ],
)
def test_what_is_not_served_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    result = fftgen("bench", "--dry-run", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"error: {message}" in result.stderr or message in result.stderr


def test_showing_results_takes_no_options_of_a_run() -> None:
    result = fftgen("bench", "--show", "none.json", "--suite", "--seqlen", "3", "-o", "x.json", "-v")
    assert result.exit_code == 2
    assert "error: --show measures nothing: leave --suite, --seqlen, " in result.stderr
    result = fftgen("bench", "--show", "none.json", "-v")
    assert result.exit_code == 2
    assert "none.json cannot be read (No such file or directory): name a file that" in result.stderr


def test_a_results_file_is_never_put_in_the_place_of_a_pipe(place: Path) -> None:
    os.mkfifo(place / "pipe")
    result = fftgen("bench", "--dry-run", "--seqlen", "16", *FAST, "-o", "pipe")
    assert result.exit_code == 2
    assert "pipe cannot be written (Not a regular file): name another file" in result.stderr
    assert (place / "pipe").is_fifo()


@pytest.mark.parametrize("option", ["-o", "--plot"])
@pytest.mark.parametrize("path", ["no/such/place", "taken"])
def test_files_that_cannot_be_written_cost_no_work(option: str, path: str) -> None:
    Path("taken").mkdir()
    result = fftgen("bench", "--dry-run", "--seqlen", "16", option, path)
    assert result.exit_code == 2
    assert f"{path} cannot be written" in result.stderr
    assert "[1/" not in result.stderr  # no step has begun
    assert [p.name for p in Path().iterdir()] == ["taken"]


def test_a_dry_run_walks_the_whole_way_and_its_file_shows_the_same(place: Path) -> None:
    arguments = ("--dry-run", "--seqlen", "256", "--causal", "--gated", "--seed", "5", *FAST)
    result = fftgen("bench", *arguments, "-o", "r.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("DRY RUN on the CPU: every time below is invented")
    assert result.stdout.splitlines()[-1].startswith("3 passed; ")
    assert "[3/3] causal 256 bf16 gated forward" in result.stderr
    doc = json.loads(Path("r.json").read_text())
    assert (doc["kind"], doc["dry_run"], doc["seed"], doc["passed"]) == ("rows", True, 5, True)
    assert doc["environment"]["real_times"] is False
    assert str(place) not in Path("r.json").read_text()  # results are committed: no paths of a machine
    (row,) = results.rows(doc)
    assert list(row["contenders"]) == ["fftgen", "torch-real"]
    for contender in row["contenders"].values():
        assert contender["median_s"] in (1.00e-3, 1.005e-3, 1.01e-3, 1.015e-3, 1.02e-3)
        assert len(contender["passes_s"]) == 2
        assert {"low_s", "high_s", "spread", "samples", "floor_fraction", "ratio"} <= contender.keys()
    shown = fftgen("bench", "--show", "r.json")
    assert shown.stdout == result.stdout
    assert answer("bench", "--show", "r.json") == doc


def test_a_suite_takes_less_time_for_each_contender_than_a_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[run.Wish] = []

    def stop(wish: run.Wish, *_: Any) -> Any:
        seen.append(wish)
        raise ToolchainError("that will do")

    monkeypatch.setattr(run, "carry_out", stop)
    for arguments in ((), ("--suite",), ("--suite", "--seconds", "3", "--budget", "7")):
        assert fftgen("bench", "--dry-run", *arguments).exit_code == 1
    assert [w.seconds for w in seen] == [0.5, 0.2, 3]
    assert [w.budget for w in seen] == [None, 450, 7]
    assert [w.suite for w in seen] == [False, True, True]


@pytest.mark.parametrize("words", [("backward", "forward", "backward"), *slow([(("backward",),)])])
def test_directions_are_those_that_were_asked(words: tuple[str, ...]) -> None:
    arguments = ("--dry-run", "--seqlen", "64", "--causal", "--gated", *FAST)
    options = [part for word in words for part in ("--direction", word)]
    result = fftgen("bench", *arguments, *options)
    assert result.exit_code == 0, result.stderr
    found = results.rows(results.read(Path("bench.json")))
    assert [r["direction"] for r in found] == list(dict.fromkeys(words))
    assert all(c["status"] == "ok" for r in found for c in r["contenders"].values())
    assert ("over_forward" in found[0]) == ("forward" in words)  # it is over a row that was measured
    assert "causal 64 bf16 gated backward" in result.stdout
    assert "x forward" in result.stdout


def test_a_suite_has_backward_rows_unless_directions_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[run.Wish] = []

    def stop(wish: run.Wish, *_: Any) -> Any:
        seen.append(wish)
        raise ToolchainError("that will do")

    monkeypatch.setattr(run, "carry_out", stop)
    for arguments in (("--suite",), ("--suite", "--direction", "forward"), ()):
        assert fftgen("bench", "--dry-run", *arguments).exit_code == 1
    counts = [[c.direction for c in w.cases].count("backward") for w in seen]
    assert counts == [2, 0, 0]  # a dry run has no long rows: it goes backward at its own lengths


def test_a_budget_that_is_used_up_ends_the_run_and_lists_the_rest() -> None:
    """With ``--json``, which prints the document that the file holds."""
    started = time.monotonic()
    doc = answer("bench", "--dry-run", "--seqlen", "16..1048576", "--budget", "8", *FAST)
    seconds = time.monotonic() - started
    assert seconds < 8 + 8
    assert doc["seconds"] < 8 + 8
    left = [s for s in doc["steps"] if s["status"] == "not run"]
    assert left
    assert all("budget" in s["reason"] for s in left)
    assert len(doc["steps"]) == 2 + 17 * 4
    assert doc["passed"]
    assert doc == results.read(Path("bench.json"))


def test_a_wrong_result_of_ours_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is a process of its own: sitecustomize spoils the CPU path there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'fftgen.bench.worker' in ' '.join(sys.orig_argv):\n"
        "    from fftgen import eager\n"
        "    right = eager.convolve\n"
        "    eager.convolve = lambda *a, **k: 2 * right(*a, **k)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    result = fftgen("bench", "--dry-run", "--seqlen", "16", "--circular", "--ungated", *FAST)
    assert result.exit_code == 1
    assert re.search(
        r"fftgen +WRONG +1 row +the result is not the convolution \(error up to 1\.0e\+00", result.stdout
    )
    assert result.stdout.splitlines()[-1].endswith("FAILED")
    doc = results.read(Path("bench.json"))
    assert doc["steps"][-1]["name"] == "circular 16 bf16 ungated forward"
    (row,) = results.rows(doc)
    assert row["contenders"]["torch-real"]["status"] == "ok"
    assert "median_s" not in row["contenders"]["fftgen"]
    assert fftgen("bench", "--show", "bench.json").exit_code == 1


# Where it runs.


def test_the_environment_names_all_that_a_figure_depends_on() -> None:
    found = environment(HostBackend())
    assert found["fftgen"] == __version__
    assert found["torch"] == torch.__version__
    assert {
        "device",
        "driver",
        "cuda",
        "nvrtc",
        "python",
        "date",
        "commit",
        "timer",
        "target",
    } <= found.keys()
    json.dumps(found, allow_nan=False)


def test_the_digest_of_the_sources_changes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.sources() == environment(HostBackend())["sources"]
    package = tmp_path / "fftgen"
    (package / "bench").mkdir(parents=True)
    (package / "templates").mkdir()
    monkeypatch.setattr(backend, "__file__", str(package / "bench" / "backend.py"))
    seen = {backend.sources()}
    for name, content in (("a.py", "1"), ("a.py", "2"), ("templates/k.j2", "2"), ("templates/k.cuh", "2")):
        (package / name).write_text(content)
        seen.add(backend.sources())
    assert len(seen) == 5
    (package / "a.pyc").write_text("bytes that a run leaves behind")
    assert backend.sources() in seen


def test_the_commit_is_that_of_the_working_tree() -> None:
    root = Path(backend.__file__).parents[2]
    found = commit()
    if (root / ".git").exists():
        assert found is not None
        assert len(found.rstrip("+")) == 40
    else:
        assert found is None


class Properties:
    multi_processor_count = 132
    total_memory = 80 << 30
    L2_cache_size = 50 << 20


class Allocator:
    """torch.cuda's memory statistics, moved by hand."""

    allocated = peak = 1000

    def reset(self, *_: Any) -> None:
        self.peak = self.allocated

    def take(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)


def test_the_cuda_backend_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Allocator()
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 1,
        "get_device_properties": lambda device: Properties,
        "get_device_capability": lambda device: (9, 0),
        "get_device_name": lambda device: "NVIDIA X",
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (70 << 30, 80 << 30),
        "memory_allocated": lambda device: memory.allocated,
        "max_memory_allocated": lambda device: memory.peak,
        "reset_peak_memory_stats": memory.reset,
    }
    for name, function in answers.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(backend, "driver", lambda: None)
    monkeypatch.setattr(backend, "driver_version", lambda: "580.1")
    monkeypatch.setattr(nvrtc, "build", lambda: "13.0.1")
    device = CudaBackend()
    assert device.device == torch.device("cuda", 1)
    assert (device.target, device.l2_bytes, device.compiler) == ("sm_90", 50 << 20, "inductor")
    assert device.gpu == "NVIDIA X"
    assert device.target in TARGETS
    assert device.free_bytes() == 70 << 30
    assert device.timer.real

    def call() -> None:
        memory.take(500)  # scratch
        memory.allocated -= 300  # the result stays

    assert device.peak_bytes(call) == 500
    described = environment(device)
    assert (described["device"], described["driver"], described["cuda"]) == ("NVIDIA X", "580.1", "13.0")
    assert (described["capability"], described["multiprocessors"]) == ("9.0", 132)


def test_the_driver_says_its_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 580.95.05\necho 580.95.05\n")
    tool.chmod(0o755)
    assert driver_version() == "580.95.05"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert driver_version() is None

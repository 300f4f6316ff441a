"""What a call costs on the host, and what the first call costs."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fftgen import environment, op  # noqa: F401  (op registers the operators)
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import real_fft
from fftgen.bench.inputs import draw
from fftgen.conv import get_conv
from fftgen.problem import Problem

BATCH = 20  # calls between two synchronisations: few enough that the launch queue never fills
ROUNDS = 50
TARGET_US = 20.0  # design 5.1


def host_overhead(backend: Backend, seed: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Microseconds of host time that a call takes in eager mode, on tensors too small to matter.

    The clock is the host's: until the call returns, not until the device is done.
    """
    case = Case(Problem("causal", 256, "bf16"), True, 2, 4)
    x = draw(case, backend.device, seed)
    conv = get_conv(256, "bf16", causal=True)
    made = conv.prepare(x.k)
    calls: dict[str, Callable[[], object]] = {
        "conv(u, k)": lambda: conv(x.u, x.k),
        "conv(u, spectrum)": lambda: conv(x.u, made),
        "conv(u, spectrum), gated": lambda: conv(x.u, made, in_gate=x.in_gate, out_gate=x.out_gate),
        "rfft, product, irfft in PyTorch": lambda: real_fft(x.u, x.k, None, None, case.points),
    }
    found = {}
    with torch.no_grad():
        for name, call in calls.items():
            samples = _host_samples(backend, call, rounds)
            low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
            found[name] = {
                "median_us": round(1e6 * middle, 2),
                "low_us": round(1e6 * low, 2),
                "high_us": round(1e6 * high, 2),
            }
    return {"status": "passed", "calls": found, "target_us": TARGET_US, "rounds": rounds}


def _host_samples(backend: Backend, call: Callable[[], object], rounds: int) -> list[float]:
    for _ in range(BATCH):
        call()
    samples = []
    for _ in range(rounds):
        backend.synchronize()
        started = time.perf_counter()
        for _ in range(BATCH):
            call()
        samples.append((time.perf_counter() - started) / BATCH)
    backend.synchronize()
    return samples


# Runs in a process of its own: the first plan also pays for importing SymPy, the first compile for NVRTC.
_CHILD = """
import json, sys, time
started = time.perf_counter()
from fftgen import shortcut
from fftgen.cache import Cache
from fftgen.pipeline import build_plan
from fftgen.problem import Problem
from fftgen.targets import target
imported = time.perf_counter()
mode, length, dtype, chip, directory = sys.argv[1:]
store = Cache(directory)
plan = shortcut.plan(store, Problem(mode, int(length), dtype), target(chip))
planned = time.perf_counter()
built = build_plan(plan, store)
ended = time.perf_counter()
print(json.dumps({"import_s": imported - started, "plan_s": planned - imported,
                  "build_s": ended - planned, "cached": built.cached, "plan": str(plan)}))
"""


def cold_start(problem: Problem, target: str, timeout: float) -> dict[str, Any]:
    """Seconds of plan + render + NVRTC in a fresh process with an empty cache, then from that cache.

    Host times, real ones in a dry run as well. Raises RuntimeError when a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="fftgen-bench-") as directory:
        cold = _child(problem, target, Path(directory), timeout)
        warm = _child(problem, target, Path(directory), timeout)
    if cold["cached"] or not warm["cached"]:
        raise RuntimeError("the cache did not behave: the first start must miss it, the second one hit it")
    plan = cold.pop("plan")
    return {
        "status": "passed",
        "plan": plan,
        "cold": {name: round(v, 4) for name, v in cold.items() if name != "cached"},
        "from_cache": {name: round(warm[name], 4) for name in ("import_s", "plan_s", "build_s")},
        "cold_s": round(cold["plan_s"] + cold["build_s"], 4),
        "from_cache_s": round(warm["plan_s"] + warm["build_s"], 4),
    }


def _child(problem: Problem, target: str, directory: Path, timeout: float) -> dict[str, Any]:
    words = [problem.mode, str(problem.length), problem.dtype, target, str(directory)]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment.of_python(),
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        said = [line for line in lines if re.match(r"\w[\w.]*(Error|Exception)\b", line)]
        raise RuntimeError(f"a fresh process failed: {(said or lines)[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found

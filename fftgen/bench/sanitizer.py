"""compute-sanitizer over a few small kernels: accesses out of bounds, races, misused barriers.

``python -m fftgen.bench.sanitizer MODE LENGTH DTYPE CALL`` is the program that it looks at: a convolution of
few rows and one of many, with the spectrum made on the CPU so that no kernels but ours run, one gradient of a
filter, or all gradients of a call; every tensor in an allocation of its own so that a step over its end is
seen.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from fftgen import environment, op, toolkit  # noqa: F401  (op registers the operators)
from fftgen.bench.proof import busy, moved
from fftgen.conv import get_conv
from fftgen.planner.plan import Plan
from fftgen.planner.whole import fewest
from fftgen.problem import Problem
from fftgen.spectra import spectrum
from fftgen.storage import TORCH

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")  # by what they are worth for the time
CALLS = ("conv", "gradient", "backward")
FOUND = 86  # exit status of compute-sanitizer when it found something: no program here ends with it
# Of kernels, not of calls: PyTorch and the bindings ask the driver for functions that it may not have.
OF_KERNELS = ("--report-api-errors", "no")
SEPARATE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def sanitize(
    problem: Problem,
    tool: str,
    timeout: float,
    call: str = "conv",
    program: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run one of TOOLS on one of CALLS: plain data. ``timeout``: seconds.

    ``program``: what to look at, by default this module on ``problem``.
    """
    sanitizer = toolkit.find_tool("compute-sanitizer")
    if sanitizer is None:
        return {
            "status": "unavailable",
            "reason": "compute-sanitizer not found: it comes with the CUDA toolkit (CUDA_HOME, PATH)",
        }
    words = (problem.mode, str(problem.length), problem.dtype, call)
    command = program or (sys.executable, "-m", "fftgen.bench.sanitizer", *words)
    try:
        done = subprocess.run(
            [str(sanitizer), "--tool", tool, *OF_KERNELS, "--error-exitcode", str(FOUND), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment.of_python(**SEPARATE),
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "summary": "", "reason": f"not done after {timeout:.0f} s"}
    return verdict(done.returncode, done.stdout + done.stderr)


def verdict(returncode: int, output: str) -> dict[str, Any]:
    """What an ended run says: "passed", "wrong" (it found something) or "failed" (it could not look)."""
    marked = re.findall(r"^=+ (.*)$", output, re.M)
    summary = next((line for line in reversed(marked) if "SUMMARY" in line), "")
    if returncode == FOUND:
        first = next((line for line in marked if "SUMMARY" not in line and "COMPUTE-SANIT" not in line), "")
        return {"status": "wrong", "summary": summary, "reason": first or summary}
    if returncode != 0 or not summary:
        last = (output.strip().splitlines() or ["no output"])[-1]
        return {"status": "failed", "summary": summary, "reason": f"exit status {returncode}: {last}"}
    return {"status": "passed", "summary": summary, "reason": ""}


def shapes(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Batch and channels of the calls: three rows, so that the last one of a pair is alone, and as many as it
    takes for what small calls do not do: all stages by one launch, or several rows in a row."""
    if plan.whole is not None:
        return (3, 2), (fewest(plan) * plan.rows_per_item, 1)
    return (3, 2), (3, busy(plan, 3))


def probe(problem: Problem) -> list[torch.Tensor]:
    """Gated calls with a skip term on the GPU."""
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal).warmup()
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    kind = TORCH[problem.dtype]
    found = []
    for batch, channels in shapes(conv.plan()):
        size = batch, channels, problem.length
        u, in_gate, out_gate = (noise(*size).to(kind).cuda() for _ in range(3))
        made = moved(spectrum(conv.plan(), noise(channels, problem.length)), u.device)
        found.append(conv(u, made, in_gate=in_gate, out_gate=out_gate, skip=noise(channels).cuda()))
        torch.cuda.synchronize()
    return found


def probe_gradient(problem: Problem, *, every: bool = False) -> torch.Tensor:
    """One gated gradient of a filter on the GPU, of five rows: workers share the batch, unevenly.

    ``every``: of the signals as well, by one pass.
    """
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal).warmup(train=True)
    generator, kind = torch.Generator().manual_seed(0), TORCH[problem.dtype]
    shape = (5, 2, problem.length)
    u, v, in_gate, out_gate = (torch.randn(*shape, generator=generator).to(kind).cuda() for _ in range(4))
    steps = problem.length
    dk: torch.Tensor
    if every:
        k, skip = torch.randn(2, steps, generator=generator).cuda(), torch.randn(2).cuda()
        signals = (u, v, k, None, in_gate, out_gate, skip)
        *_, dk = torch.ops.fftgen.conv_gradients(*signals, True, True, True, steps, conv.handle)
    else:
        dk = torch.ops.fftgen.correlate_input(u, v, in_gate, out_gate, steps, conv.handle)
    torch.cuda.synchronize()
    return dk


if __name__ == "__main__":
    asked = Problem(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    if sys.argv[4] in ("gradient", "backward"):
        probe_gradient(asked, every=sys.argv[4] == "backward")
    else:
        probe(asked)

"""Whole calls of a plan's kernels in the simulator, on the inputs of a test."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import reference
import tolerance
import torch
from gradients import leading
from torch import Tensor

from fftgen import emulate
from fftgen.execute import Executable
from fftgen.pipeline import Built
from fftgen.planner import tables
from fftgen.planner.filter import Filter
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.render import render, render_gradient

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPTIONS = ("in_gate", "out_gate", "skip")


@lru_cache(maxsize=16)
def built(subject: Plan | Gradient) -> tuple[Built, str]:
    """A module as the simulator takes it, and its PTX.

    Without machine code: assembling takes more than half of a build, and its PTX has the same instructions
    (tests/nvrtc/test_nvrtc.py).
    """
    plan, found = (subject.plan, subject) if isinstance(subject, Gradient) else (subject, None)
    source = render(plan) if found is None else render_gradient(found)
    module = Built(plan, source, b"", "", tables.build(plan), {}, gradient=found)
    ptx = emulate.line_ptx(module)
    return replace(module, ptx=ptx), ptx


def bare(plan: Plan) -> Plan:
    """The plan without kernels for the filter's spectrum, which is torch's then (fftgen/prepare.py), and
    without the one that does all stages.

    They make up half of a module and have tests of their own (tests/nvrtc/test_filter_kernel.py,
    test_whole.py); both together: ``run`` with ``whole``, test_adjoint.py, test_calls.py,
    test_cost_counts.py.
    """
    return replace(plan, filter=Filter(), whole=None)


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def filters(rng: np.random.Generator, channels: int, taps: int, steps: int | None = None) -> Tensor:
    """White noise that decays over its length (design 1.7), fp32; ``leading`` in signals of ``steps``."""
    k = (draw(rng, channels, taps) * torch.exp(-8 * torch.arange(taps) / taps)).float()
    k = leading(k, steps or taps)
    # The spectrum of one tap is one number: rounding it would be one error everywhere, not noise.
    return k.bfloat16().float() if taps == 1 else k


def exact(plan: Plan, u: Tensor, k: Tensor, **given: Tensor | None) -> reference.Float64:
    """What the call should give."""
    wide = {name: None if x is None else x.double().numpy() for name, x in given.items()}
    p = plan.problem
    return reference.convolve(u.double(), k.double(), mode=p.mode, length=p.length, **wide)


def call(plan: Plan, u: Tensor, k: Tensor, seed: int = 0, **given: Tensor | None) -> Tensor:
    """The result, unjudged."""
    module, ptx = built(bare(plan))
    return emulate.convolve(module, u, k, ptx=ptx, seed=seed, **given)[0]


def call_whole(plan: Plan, u: Tensor, k: Tensor, seed: int = 0, **given: Tensor | None) -> Tensor:
    """The same, the filter's spectrum by kernels as well."""
    module, ptx = built(plan)
    return emulate.convolve(module, u, k, ptx=ptx, seed=seed, **given)[0]


def prepared(plan: Plan, u: Tensor, planes: Tensor, scale: Tensor) -> Tensor:
    """The result with a spectrum that was made before."""
    module, ptx = built(bare(plan))
    simulated = emulate.Simulated(ptx, module.source.text)
    table = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    y = Executable(module.plan, table)(simulated, u, planes, scale, address=simulated.address)
    assert simulated.unwritten("y") == 0
    return y


def judged(
    plan: Plan, rng: np.random.Generator, u: Tensor, k: Tensor, whole: bool = False, **given: Tensor | None
) -> emulate.Simulated:
    """One call, held against the reference; returns the simulated device with its counters.

    ``whole``: the filter's spectrum comes from kernels as well (``bare``).
    """
    module, ptx = built(plan if whole else bare(plan))
    y, simulated = emulate.convolve(module, u, k, ptx=ptx, seed=int(rng.integers(2**31)), **given)
    check(plan, y, u, k, **given)
    return simulated


def check(plan: Plan, y: Tensor, u: Tensor, k: Tensor, **given: Tensor | None) -> tolerance.Errors:
    """Hold a result against the reference."""
    ref = exact(plan, u, k, **given)
    return tolerance.check(y.double().numpy(), ref, plan.problem.dtype, plan.order, plan.compute_format)


def run(
    plan: Plan,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    channels: int = 1,
    length: int | None = None,
    taps: int | None = None,
    options: tuple[str, ...] = (),
    whole: bool = False,
) -> emulate.Simulated:
    """``judged`` on white noise, gates and skip terms as asked."""
    p = plan.problem
    dtype = TORCH[p.dtype]
    shape = (batch, channels, length or p.length)
    given: dict[str, Tensor | None] = {
        name: draw(rng, *shape).to(dtype) for name in ("in_gate", "out_gate") if name in options
    }
    k = filters(rng, channels, taps or p.length, shape[-1])
    if "skip" in options:
        given["skip"] = torch.copysign(draw(rng, channels).float(), k[:, 0])  # may not cancel the first tap
    return judged(plan, rng, draw(rng, *shape).to(dtype), k, whole, **given)

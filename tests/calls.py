"""Whole calls of a plan's kernels in the simulator, on the inputs of a test."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import reference
import tolerance
import torch
from torch import Tensor

from fftgen import emulate
from fftgen.cache import Cache
from fftgen.execute import Executable
from fftgen.pipeline import Built, build_plan
from fftgen.planner.plan import Plan

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = ("in_gate", "out_gate", "skip")


@lru_cache(maxsize=8)
def built(plan: Plan) -> tuple[Built, str]:
    """The compiled module and its PTX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no cache is wanted here
        module = build_plan(plan, Cache(None))
    return module, emulate.line_ptx(module)


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def filters(rng: np.random.Generator, channels: int, taps: int) -> Tensor:
    """White noise that decays over its length (design 1.7), fp32."""
    k = (draw(rng, channels, taps) * torch.exp(-8 * torch.arange(taps) / taps)).float()
    # The spectrum of one tap is one number: rounding it would be one error everywhere, not noise.
    return k.bfloat16().float() if taps == 1 else k


def exact(plan: Plan, u: Tensor, k: Tensor, **given: Tensor | None) -> reference.Float64:
    """What the call should give."""
    wide = {name: None if x is None else x.double().numpy() for name, x in given.items()}
    p = plan.problem
    return reference.convolve(u.double(), k.double(), mode=p.mode, length=p.length, **wide)


def call(plan: Plan, u: Tensor, k: Tensor, seed: int = 0, **given: Tensor | None) -> Tensor:
    """The result, unjudged."""
    module, ptx = built(plan)
    return emulate.convolve(module, u, k, ptx=ptx, seed=seed, **given)[0]


def prepared(plan: Plan, u: Tensor, planes: Tensor, scale: Tensor) -> Tensor:
    """The result with a spectrum that was made before."""
    module, ptx = built(plan)
    simulated = emulate.Simulated(ptx, module.source.text)
    table = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    y = Executable(plan, table)(simulated, u, planes, scale, address=simulated.address)
    assert simulated.unwritten("y") == 0
    return y


def judged(
    plan: Plan, rng: np.random.Generator, u: Tensor, k: Tensor, **given: Tensor | None
) -> emulate.Simulated:
    """One call, held against the reference; returns the simulated device with its counters."""
    module, ptx = built(plan)
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
) -> emulate.Simulated:
    """``judged`` on white noise, gates and skip terms as asked."""
    p = plan.problem
    dtype = TORCH[p.dtype]
    shape = (batch, channels, length or p.length)
    given: dict[str, Tensor | None] = {
        name: draw(rng, *shape).to(dtype) for name in ("in_gate", "out_gate") if name in options
    }
    if "skip" in options:
        given["skip"] = draw(rng, channels).float()
    return judged(plan, rng, draw(rng, *shape).to(dtype), filters(rng, channels, taps or p.length), **given)

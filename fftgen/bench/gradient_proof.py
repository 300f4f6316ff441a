"""What a GPU can prove about the kernels of gradients: as proof.py does for convolutions."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftgen import emulate, gradient_accuracy, op  # noqa: F401  (op registers the operators)
from fftgen.accuracy import MARGIN
from fftgen.bench.backend import Backend
from fftgen.bench.reference import figures, number, poison
from fftgen.conv import Conv, get_conv
from fftgen.errors import NoPlanError
from fftgen.pipeline import build_gradient
from fftgen.planner import search
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem
from fftgen.storage import TORCH
from fftgen.verify import Case, draw, gradient_cases, gradient_reference, signal_references

# The chip adds the products of a matrix instruction in an order of its own. Where that moves a sum in fp32
# across a rounding border of fp16, an operand of the next stage differs by one unit in its last place. Such
# differences are rare; roundings done differently everywhere would come to sqrt(2) times what the rounding
# model expects of an exact answer. A quarter of the model is far from both.
DIFFERENT = 0.25


def _inputs(case: Case, dtype: str, seed: int) -> dict[str, Any]:
    """What ``verify.draw`` gives, and the cotangent v like u."""
    generator = torch.Generator().manual_seed(seed)
    found = draw(case, TORCH[dtype], generator)
    shape = (case.batch, case.channels, case.length)
    v = torch.randn(shape, generator=generator, dtype=torch.float64).to(TORCH[dtype])
    return {**found, "v": v}


def _planned(problem: Problem, backend: Backend) -> Gradient | str:
    """The kernels, or why there are none: before sm_80 torch.fft makes the gradient."""
    try:
        return gradient(problem, backend.target)
    except NoPlanError as error:
        return str(error).splitlines()[0]


def check_gradient(problem: Problem, backend: Backend, seed: int) -> dict[str, Any]:
    """The gradients that ``fftgen verify`` simulates, by autograd on the device: plain data.

    Of the filter alone, then of every argument at once. Judged by gradient_accuracy.py for the gradient's
    plan. Memory is poisoned as in ``check_portfolio``.
    """
    found = _planned(problem, backend)
    if isinstance(found, str):
        return {"status": "unavailable", "reason": found}
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal)
    conv.warmup(backend.device, train=True)
    verdicts = []
    for case in dict.fromkeys(case for case, _ in gradient_cases(problem.length, quick=False)):
        drawn = _inputs(case, problem.dtype, seed)
        x: dict[str, Any] = {n: None if t is None else t.to(backend.device) for n, t in drawn.items()}
        u, k, v = x["u"], x["k"], x["v"]
        leaf = k.detach().requires_grad_()
        with torch.enable_grad():
            y = conv(u, leaf, in_gate=x["in_gate"], out_gate=x["out_gate"])
        poison(k)
        (dk,) = torch.autograd.grad(y, (leaf,), v)
        backend.synchronize()
        reach = min(case.taps, case.length) if problem.causal else case.taps
        period = 0 if problem.causal else problem.length
        exact = gradient_reference(drawn["u"], drawn["v"], drawn["in_gate"], drawn["out_gate"], reach, period)
        out = np.asarray(dk.double().cpu().numpy())
        plan = gradient(conv.served(case.length, reach), backend.target).plan
        expected = gradient_accuracy.filters(problem.dtype, plan.order, plan.compute_format)
        verdict = gradient_accuracy.compare(out[:, :reach], exact, expected)
        # Lags that no two samples have are zero, exactly.
        passed = verdict.passed and not out[:, reach:].any()
        verdicts.append({"case": str(case), **figures(verdict), "passed": passed})
        verdicts += _check_all(conv, case, x, drawn, exact, backend)
    return {
        "status": "passed" if all(c["passed"] for c in verdicts) else "wrong",
        "plan": str(found),
        "seed": seed,
        "cases": verdicts,
    }


def _check_all(
    conv: Conv, case: Case, x: dict[str, Any], drawn: dict[str, Any], exact_filter: Any, backend: Backend
) -> list[dict[str, Any]]:
    """Every gradient of one call, asked for together."""
    problem = conv.problem
    names = [n for n in ("u", "in_gate", "out_gate") if x[n] is not None]
    leaves = {n: x[n].detach().requires_grad_() for n in (*names, "k")}
    with torch.enable_grad():
        y = conv(leaves["u"], leaves["k"], in_gate=leaves.get("in_gate"), out_gate=leaves.get("out_gate"))
    poison(x["u"])
    *signals, dk = torch.autograd.grad(y, tuple(leaves.values()), x["v"])
    backend.synchronize()
    served = conv.served(case.length, case.taps)
    plan = search.plan(served, backend.target)
    wanted = gradient_accuracy.signal(problem.dtype, plan.order, plan.compute_format, gated=True)
    given = [drawn[n] for n in ("u", "v", "k", "k_rev", "in_gate", "out_gate", "skip")]
    verdicts = []
    for name, found, exact in zip(names, signals, signal_references(problem, *given), strict=True):
        out = found.double().cpu().numpy().reshape(-1, case.length)
        verdict = gradient_accuracy.compare(out, exact.reshape(-1, case.length), wanted)
        verdicts.append({"case": f"{case}, all: {name}", **figures(verdict), "passed": verdict.passed})
    reach = exact_filter.shape[-1]
    of_filter = gradient(served, backend.target).plan
    expected = gradient_accuracy.filters(problem.dtype, of_filter.order, of_filter.compute_format)
    verdict = gradient_accuracy.compare(dk.double().cpu().numpy()[:, :reach], exact_filter, expected)
    verdicts.append({"case": f"{case}, all: k", **figures(verdict), "passed": verdict.passed})
    return verdicts


def check_gradient_agreement(problem: Problem, backend: Backend, seed: int) -> dict[str, Any]:
    """The same gradient of a filter on the device and in the simulator: how far they are from each other."""
    found = _planned(problem, backend)
    if isinstance(found, str):
        return {"status": "unavailable", "reason": found}
    built = build_gradient(found)
    case, _ = gradient_cases(problem.length, quick=True)[0]
    x = _inputs(case, problem.dtype, seed)
    u, v = x["u"], x["v"]
    gates: dict[str, Any] = {name: x[name] for name in ("in_gate", "out_gate")}
    period = 0 if problem.causal else problem.length
    started = time.perf_counter()
    simulated, _ = emulate.gradient(built, u, v, taps=case.taps, period=period, seed=seed, **gates)
    seconds = time.perf_counter() - started
    measured = _on_device(problem, backend, u, v, gates, case.taps, simulated)
    plan = found.plan
    expected = gradient_accuracy.filters(problem.dtype, plan.order, plan.compute_format)
    return {
        "plan": str(found),
        "seed": seed,
        "case": str(case),
        "simulator_seconds": round(seconds, 2),
        **differences(measured, simulated, expected),
    }


def _on_device(
    problem: Problem,
    backend: Backend,
    u: Tensor,
    v: Tensor,
    gates: dict[str, Any],
    taps: int,
    simulated: Tensor,
) -> Tensor:
    """The gradient on the device, (H, taps). A dry run has none: the simulator's own stands for it."""
    if not backend.kernels:
        return simulated.clone()
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal)
    conv.warmup(backend.device, train=True)
    there = [None if x is None else x.to(backend.device) for x in (u, v, *gates.values())]
    dk: Tensor = torch.ops.fftgen.correlate_input(*there, taps, conv.handle)
    return dk.cpu()


def differences(one: Tensor, other: Tensor, expected: float) -> dict[str, Any]:
    """How two gradients (H, taps) fp32 differ, overall and in the worst row, relative to ``other``.

    ``expected``: the rounding model's error of either; the bound is DIFFERENT of it.
    """
    verdict = gradient_accuracy.compare(
        one.double().numpy(), other.double().numpy(), DIFFERENT * expected / MARGIN
    )
    return {
        "status": "passed" if verdict.passed else "wrong",
        "identical": float(f"{float((one == other).double().mean()):.6f}"),
        "relative_difference": number(verdict.overall),
        "relative_bound": number(verdict.overall_bound),
        "worst_row_difference": number(verdict.row),
        "finite": verdict.finite and math.isfinite(verdict.overall),
    }

"""What a GPU can prove beyond the simulator: right results on the chip, and agreement with the simulator."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fftgen import emulate, op  # noqa: F401  (op registers the operators)
from fftgen.accuracy import compare
from fftgen.bench.backend import Backend
from fftgen.bench.reference import number
from fftgen.conv import get_conv
from fftgen.dtypes import dtype as find_dtype
from fftgen.execute import Executable
from fftgen.pipeline import Built, build
from fftgen.planner.launch import launches
from fftgen.planner.plan import SIMT, Plan
from fftgen.problem import Problem
from fftgen.spectra import Spectrum, spectrum
from fftgen.storage import TORCH
from fftgen.verify import Case, cases_for, crowded, draw, reference

# The simulator adds the products of a matrix instruction in one order, the chip in its own. Where that
# moves an fp32 sum across a rounding border of 16 bits, an intermediate differs by one unit in its last
# place. Such differences are rare and far below those of roundings done differently everywhere, which would
# come to about half the storage type's epsilon.
# In fp32 they are in all elements: an assembler may join products and sums that PTX has apart.
# Relative L2 difference, in units of epsilon.
DIFFERENT = {"bf16": 0.5, "fp16": 0.5, "fp32": 4.0}
# Units in the last place of a row's root mean square.
FAR = {"bf16": 8.0, "fp16": 8.0, "fp32": 32.0}


def check_portfolio(problem: Problem, backend: Backend, seed: int) -> dict[str, Any]:
    """The calls that ``fftgen verify`` simulates, on the device, against float64: plain data.

    Results start as NaN wherever the allocator reuses a block, so that what is not written is seen.
    """
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal)
    conv.warmup(backend.device)
    plan = conv.plan(None if backend.device.type == "cuda" else backend.target)
    found = []
    many = crowded(plan) if backend.kernels else None
    for case in (*cases_for(problem, plan.transform, quick=False), *([many] if many else [])):
        inputs = draw(case, TORCH[problem.dtype], torch.Generator().manual_seed(seed))
        given: dict[str, Any] = {
            name: None if x is None else x.to(backend.device) for name, x in inputs.items()
        }
        u, k, k_rev = (given.pop(name) for name in ("u", "k", "k_rev"))
        assert u is not None
        assert k is not None
        block = torch.full_like(u, math.nan)
        del block
        out = conv(u, k, k_rev=k_rev, **given)
        again = conv(u, conv.prepare(k, k_rev=k_rev, length=case.length), **given)
        backend.synchronize()
        drawn_u, drawn_k = inputs.pop("u"), inputs.pop("k")
        assert drawn_u is not None
        assert drawn_k is not None
        exact = reference(problem, drawn_u, drawn_k, **inputs)
        accuracy = compare(_wide(out), exact, problem.dtype, plan.order, plan.compute_format)
        prepared = compare(_wide(again), exact, problem.dtype, plan.order, plan.compute_format)
        found.append(
            {
                "case": str(case),
                "error": number(max(accuracy.overall, prepared.overall)),
                "error_bound": number(accuracy.overall_bound),
                "worst_row": number(max(accuracy.row, prepared.row)),
                "worst_row_bound": number(accuracy.row_bound),
                "passed": accuracy.passed and prepared.passed,
            }
        )
    return {
        "status": "passed" if all(c["passed"] for c in found) else "wrong",
        "plan": str(plan),
        "seed": seed,
        "cases": found,
    }


def check_agreement(problem: Problem, backend: Backend, seed: int) -> dict[str, Any]:
    """The same call on the device and in the simulator: largest difference in units of the last place.

    Both get the same spectrum, bit for bit, made on the CPU, and both run the plan that calls take here. The
    device also makes a call of the same rows on many more channels, bit for bit the same.
    """
    built = build(problem, backend.target, gpu=backend.gpu)
    plan = built.plan
    case = Case(2 * plan.rows_per_item + 1, 2, problem.length, problem.length, True, True, True)
    inputs = draw(case, TORCH[problem.dtype], torch.Generator().manual_seed(seed))
    u, k = inputs.pop("u"), inputs.pop("k")
    assert u is not None
    assert k is not None
    made = spectrum(plan, k, skip=inputs["skip"])
    gates = {name: inputs[name] for name in ("in_gate", "out_gate")}
    started = time.perf_counter()
    simulated = _simulated(built, u, made, gates, seed)
    seconds = time.perf_counter() - started
    measured, repeated = _on_device(built, backend, u, made, gates, simulated)
    found = differences(measured, simulated, problem.dtype)
    if not repeated:
        reason = "the same rows give other results where workers take several in a row"
        found.update(status="wrong", reason=reason)
    return {
        "plan": str(plan),
        "seed": seed,
        "case": str(case),
        "simulator_seconds": round(seconds, 2),
        **found,
    }


def busy(plan: Plan, batch: int) -> int:
    """The fewest channels with which a worker takes several transforms of a call in a row; 1 where none does.

    Up to 2048 points, the next rows are on their way to it meanwhile, which no smaller call shows.
    """
    n = plan.problem.length
    if plan.engine == SIMT:
        return 1
    return next(c for c in count(1) if any(launch.run > 1 for launch in launches(plan, batch, c, n)))


def _simulated(built: Built, u: Tensor, made: Spectrum, gates: dict[str, Tensor | None], seed: int) -> Tensor:
    """The convolution's kernels in the simulator, on a spectrum that is given."""
    device = emulate.Simulated(emulate.line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    executable = Executable(built.plan, table)
    return executable(device, u, made.planes, made.scale, **gates, address=device.address)


def _on_device(
    built: Built,
    backend: Backend,
    u: Tensor,
    made: Spectrum,
    gates: dict[str, Tensor | None],
    simulated: Tensor,
) -> tuple[Tensor, bool]:
    """The call on the device, and whether one whose channels are these over and over gives the same.

    A dry run has no device: the simulator's own result stands for it.
    """
    if not backend.kernels:
        return simulated.clone(), True
    problem = built.plan.problem
    conv = get_conv(problem.length, problem.dtype, causal=problem.causal).warmup(backend.device)
    given: dict[str, Any] = {name: None if x is None else x.to(backend.device) for name, x in gates.items()}
    x, there = u.to(backend.device), moved(made, backend.device)
    out = conv(x, there, **given)
    times = -(-busy(built.plan, u.shape[0]) // u.shape[1])
    many: dict[str, Any] = {name: None if g is None else g.repeat(1, times, 1) for name, g in given.items()}
    planes, scale = (t.repeat(times, *[1] * (t.dim() - 1)) for t in (there.planes, there.scale))
    crowd = conv(x.repeat(1, times, 1), dataclasses.replace(there, planes=planes, scale=scale), **many)
    return out.cpu(), bool(torch.equal(crowd, out.repeat(1, times, 1)))


def moved(made: Spectrum, device: torch.device) -> Spectrum:
    """A spectrum with its tensors on another device."""
    tensors: dict[str, Any] = {
        f.name: value.to(device)
        for f in dataclasses.fields(made)
        if isinstance(value := getattr(made, f.name), Tensor)
    }
    return dataclasses.replace(made, **tensors)


def differences(one: Tensor, other: Tensor, dtype: str) -> dict[str, Any]:
    """How two results (B, H, L) of the same storage type differ.

    ``largest_ulps``: in units of each element's own last place, where cancellation makes small elements of
    large sums differ by many; ``largest_row_ulps``: in units of the last place of the row's root mean
    square, which is what the accumulation order may move. The verdict rests on the latter, on the relative
    L2 difference, and on nothing being NaN.
    """
    kind = find_dtype(dtype)
    a, b = _wide(one), _wide(other)
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    with np.errstate(invalid="ignore"):
        distance = np.abs(a - b)
        scale = np.sqrt(np.mean(b**2, axis=-1, keepdims=True))
        row = float(np.max(distance / _ulp(scale, kind.significand)))
        relative = float(np.linalg.norm(distance) / np.linalg.norm(b))
    own = np.abs(_ordered(one) - _ordered(other))
    agrees = finite and row <= FAR[dtype] and relative <= DIFFERENT[dtype] * 2 * kind.epsilon
    return {
        "status": "passed" if agrees else "wrong",
        "identical": float(f"{np.count_nonzero(own == 0) / own.size:.6f}"),
        "largest_ulps": int(own.max()),
        "largest_row_ulps": number(row),
        "relative_difference": number(relative),
        "finite": finite,
    }


def _wide(x: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(x.detach().cpu().double().numpy())


def _ulp(scale: npt.NDArray[np.float64], significand: int) -> npt.NDArray[np.float64]:
    """Distance of neighbouring numbers with so many significant bits, at ``scale``."""
    _, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(1.0, exponent - significand))


def _ordered(x: Tensor) -> npt.NDArray[np.int64]:
    """Floats as integers in the same order, neighbours one apart; both zeros are 0."""
    size = x.element_size()
    integers = torch.int16 if size == 2 else torch.int32
    bits = x.contiguous().view(integers).numpy().astype(np.int64)
    return np.where(bits < 0, -(bits & (1 << 8 * size - 1) - 1), bits)

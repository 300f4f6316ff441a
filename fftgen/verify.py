"""``fftgen verify``: a module's kernels, executed on the CPU and held against float64.

Modules up to FULL_POINTS, and all of the engine "simt", run whole calls in several shapes and option sets
(emulate.py). Longer ones run every kernel on sampled blocks, each launch from an exact workspace
(sampled.py), and where one launch may carry out a call, a whole transform by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftgen import emulate, gradient_accuracy, sampled
from fftgen.accuracy import Accuracy, compare
from fftgen.gradient import Needed
from fftgen.pipeline import Built
from fftgen.planner.plan import LOWER, SIMT, Plan
from fftgen.planner.whole import Clusters, fewest, full
from fftgen.problem import Problem
from fftgen.simulator import Report
from fftgen.storage import storage

FULL_POINTS = 65_536  # complex points of a transform that is simulated whole
SMALL_POINTS = 8_192  # below, more rows and options are cheap


@dataclass(frozen=True)
class Case:
    """One call: batch, channels, length, taps and which options; ``back``: taps of a second filter, k_rev."""

    batch: int
    channels: int
    length: int
    taps: int
    in_gate: bool = False
    out_gate: bool = False
    skip: bool = False
    back: int = 0

    def __str__(self) -> str:
        parts = [f"u ({self.batch}, {self.channels}, {self.length})", f"k ({self.channels}, {self.taps})"]
        if self.back:
            parts.append(f"k_rev ({self.channels}, {self.back})")
        return ", ".join([*parts, *(n for n in ("in_gate", "out_gate", "skip") if getattr(self, n))])


@dataclass(frozen=True)
class CaseResult:
    """How one case went, and what its kernels did."""

    description: str
    accuracy: Accuracy
    reports: dict[str, Report]
    seconds: float


@dataclass(frozen=True)
class Verification:
    """Everything that was run for a module."""

    name: str
    plan: str
    seed: int
    cases: tuple[CaseResult, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(c.accuracy.passed for c in self.cases)

    def __str__(self) -> str:
        lines = [self.plan, *(f"  {c.description}: {c.accuracy} [{c.seconds:.1f} s]" for c in self.cases)]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: errors, bounds and counters per case."""
        return {
            "name": self.name,
            "plan": self.plan,
            "seed": self.seed,
            "passed": self.passed,
            "cases": [
                {
                    "case": c.description,
                    "overall": c.accuracy.overall,
                    "overall_bound": c.accuracy.overall_bound,
                    "row": c.accuracy.row,
                    "row_bound": c.accuracy.row_bound,
                    "passed": c.accuracy.passed,
                    "seconds": round(c.seconds, 3),
                    "counters": {name: json.loads(r.to_json()) for name, r in c.reports.items()},
                }
                for c in self.cases
            ],
        }


def reference(problem: Problem, u: Tensor, k: Tensor, **options: Tensor | None) -> np.ndarray[Any, Any]:
    """The convolution in float64 by NumPy's FFT, from the definition: knows nothing of plans. (B, H, L)."""
    x = u.double().numpy()
    k_rev, in_gate, out_gate, skip = map(options.get, ("k_rev", "in_gate", "out_gate", "skip"))
    if in_gate is not None:
        x = x * in_gate.double().numpy()
    steps = x.shape[-1]
    taps = k.double().numpy()
    back = np.zeros((taps.shape[0], 1)) if k_rev is None else k_rev.double().numpy()
    points = steps + max(taps.shape[-1], back.shape[-1]) if problem.causal else problem.length
    response = np.fft.fft(taps, points) + np.fft.fft(back, points).conj()
    y = np.fft.ifft(np.fft.fft(x, points) * response).real[..., :steps]
    if skip is not None:
        y = y + skip.double().numpy()[:, None] * x
    if out_gate is not None:
        y = y * out_gate.double().numpy()
    return np.asarray(y)


def cases_for(problem: Problem, transform: int, quick: bool) -> tuple[Case, ...]:
    """Shapes and options worth running: odd batches, short and ragged lengths, every option."""
    n = problem.length
    pair = 1 if problem.causal else 2
    if transform <= SMALL_POINTS:
        full = Case(3, 2, n, n, True, True, True)
        short = Case(2, 1, max(1, n // 3), max(1, n // 2 - 1))
        gates = Case(1, 3, max(1, n - 8), 1, in_gate=True)
        return (full,) if quick else (full, short, gates, Case(pair, 1, n, n, out_gate=True, back=n))
    full = Case(pair, 1, n, n, True, True, True)
    return (full,) if quick else (full, Case(1, 1, n // 2 + 3, min(n, 1000), back=n // 2))


def clustered(plan: Plan) -> tuple[Case, Clusters] | None:
    """A call whose stages clusters carry out in one launch (planner/whole.py), of the size that many
    transforms take: up to FULL_POINTS two of them for three transforms, else one; None: no plan for that.
    """
    many = full(plan)
    if many is None:
        return None
    items, n = 3 if plan.transform <= FULL_POINTS else 1, plan.problem.length // 8 * 8
    return Case(items * plan.rows_per_item, 1, n, n, True, True, True), Clusters(many.size, min(2, items))


def crowded(plan: Plan) -> Case | None:
    """The smallest call that one launch carries out on a GPU; None: no plan for that."""
    if plan.whole is None:
        return None
    n = plan.problem.length // 8 * 8
    return Case(fewest(plan) * plan.rows_per_item, 1, n, n, True, True, True)


def draw(case: Case, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Fresh inputs: white noise against decaying filters, gates around one."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def decaying(taps: int) -> Tensor:
        return normal(case.channels, taps) * torch.exp(-8 * torch.arange(taps, dtype=torch.float64) / taps)

    shape = (case.batch, case.channels, case.length)
    u, k = normal(*shape).to(dtype), decaying(case.taps)
    if case.taps == 1:  # its spectrum is one number: rounded, it would be one error in every output
        k = k.to(dtype)
    return {
        "u": u,
        "k": k.float(),
        "k_rev": decaying(case.back).float() if case.back else None,
        "in_gate": normal(*shape).to(dtype) if case.in_gate else None,
        "out_gate": normal(*shape).to(dtype) if case.out_gate else None,
        "skip": normal(case.channels).float() if case.skip else None,
    }


def run_case(built: Built, case: Case, seed: int, ptx: str, clusters: Clusters | None = None) -> CaseResult:
    """One whole call on the simulator, judged. Raises SimulationError for any fault."""
    problem = built.plan.problem
    dtype = storage(built.plan)
    inputs = draw(case, dtype, torch.Generator().manual_seed(seed))
    u, k = inputs.pop("u"), inputs.pop("k")
    assert u is not None
    assert k is not None
    started = time.perf_counter()
    y, simulated = emulate.convolve(built, u, k, **inputs, ptx=ptx, seed=seed, clusters=clusters)
    seconds = time.perf_counter() - started
    exact = reference(problem, u, k, **inputs)
    plan = built.plan
    accuracy = compare(y.double().numpy(), exact, problem.dtype, plan.order, plan.compute_format)
    return CaseResult(f"{case}{_together(clusters)}", accuracy, simulated.reports, seconds)


def _together(clusters: Clusters | None) -> str:
    return "" if clusters is None else f", one launch, {clusters.total} x {clusters.size} blocks"


def run_twin(built: Built, case: Case, seed: int, ptx: str, clusters: Clusters | None = None) -> CaseResult:
    """One call of kernels with two outputs, both judged. Raises SimulationError for any fault."""
    plan = built.plan
    dtype = storage(plan)
    generator = torch.Generator().manual_seed(seed)
    inputs = draw(replace(case, out_gate=True), dtype, generator)
    u, k, gate = inputs.pop("u"), inputs.pop("k"), inputs.pop("out_gate")
    assert u is not None
    assert k is not None
    assert gate is not None
    gates = (gate, torch.randn(u.shape, generator=generator, dtype=torch.float64).to(dtype))
    started = time.perf_counter()
    y, twin, simulated = emulate.both(built, u, k, gates, **inputs, ptx=ptx, seed=seed, clusters=clusters)
    seconds = time.perf_counter() - started
    exact = np.concatenate([reference(plan.problem, u, k, **inputs, out_gate=g) for g in gates])
    out = torch.cat([y, twin]).double().numpy()
    accuracy = compare(out, exact, plan.problem.dtype, plan.order, plan.compute_format)
    said = f"{replace(case, out_gate=False)}, two gates{_together(clusters)}"
    return CaseResult(said, accuracy, simulated.reports, seconds)


def gradient_cases(length: int, quick: bool) -> tuple[tuple[Case, int], ...]:
    """Shapes for the gradient of a filter, each with its circular length (0: causal)."""
    if length > SMALL_POINTS:
        full = Case(2 if length <= FULL_POINTS else 1, 1, length, length, True, True)
        return ((full, length),) if quick or length > FULL_POINTS else ((full, length), (full, 0))
    full = Case(5, 2, length, length, True, True)
    short = Case(3, 1, max(1, length // 3), max(1, length // 2 - 1), in_gate=True)
    return ((full, length),) if quick else ((full, length), (full, 0), (short, 0))


def gradient_reference(
    u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, taps: int, period: int
) -> np.ndarray[Any, Any]:
    """sum_b sum_t (out_gate v)_t (in_gate u)_{t-j} in float64 by NumPy's FFT: (H, taps)."""
    x, g = (
        s.double().numpy() if gate is None else s.double().numpy() * gate.double().numpy()
        for s, gate in ((u, in_gate), (v, out_gate))
    )
    points = period or x.shape[-1] + max(taps, x.shape[-1])
    product = (np.fft.fft(x, points).conj() * np.fft.fft(g, points)).sum(axis=0)
    return np.asarray(np.fft.ifft(product).real[:, :taps])


def run_gradient(built: Built, case: Case, period: int, seed: int, ptx: str) -> CaseResult:
    """One gradient of a filter on the simulator, judged. Raises SimulationError for any fault."""
    plan = built.plan
    dtype = storage(plan)
    generator = torch.Generator().manual_seed(seed)
    inputs = draw(case, dtype, generator)
    u, a, b = inputs["u"], inputs["in_gate"], inputs["out_gate"]
    assert u is not None
    v = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(dtype)
    started = time.perf_counter()
    dk, simulated = emulate.gradient(
        built, u, v, taps=case.taps, in_gate=a, out_gate=b, period=period, ptx=ptx, seed=seed
    )
    seconds = time.perf_counter() - started
    reach = case.taps if period else min(case.taps, case.length)
    out, exact = dk.double().numpy()[:, :reach], gradient_reference(u, v, a, b, reach, period)
    expected = gradient_accuracy.filters(plan.problem.dtype, plan.order, plan.compute_format)
    accuracy = gradient_accuracy.compare(out, exact, expected)
    accuracy = replace(accuracy, finite=accuracy.finite and not dk[:, reach:].any())
    mode = "circular" if period else "causal"
    return CaseResult(f"{case}, {mode}", accuracy, simulated.reports, seconds)


def signal_references(
    problem: Problem,
    u: Tensor,
    v: Tensor,
    k: Tensor,
    k_rev: Tensor | None,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
) -> list[np.ndarray[Any, Any]]:
    """The gradients of u and, where they are there, of in_gate and of out_gate in float64: (B, H, L) each."""
    nothing = torch.zeros_like(k[:, :1]) if k_rev is None else k_rev
    # The adjoint exchanges the filters and the gates.
    found = [reference(problem, v, nothing, k_rev=k, in_gate=out_gate, skip=skip, out_gate=in_gate)]
    if in_gate is not None:
        found.append(reference(problem, v, nothing, k_rev=k, in_gate=out_gate, skip=skip, out_gate=u))
    if out_gate is not None:
        found.append(reference(problem, u, k, k_rev=k_rev, in_gate=in_gate, skip=skip, out_gate=v))
    return found


def run_backward(built: Built, case: Case, seed: int, ptx: str) -> tuple[CaseResult, CaseResult]:
    """All gradients of one call on the simulator, judged: of signals and gates, then of the filter.

    Raises SimulationError for any fault.
    """
    plan = built.plan
    problem, dtype = plan.problem, storage(plan)
    generator = torch.Generator().manual_seed(seed)
    back = case.taps if plan.sections == 1 else 0
    inputs = draw(replace(case, out_gate=True, in_gate=True, back=back), dtype, generator)
    u, k, k_rev, a, b, skip = (inputs[n] for n in ("u", "k", "k_rev", "in_gate", "out_gate", "skip"))
    assert u is not None
    assert k is not None
    v = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(dtype)
    started = time.perf_counter()
    options = {"k_rev": k_rev, "in_gate": a, "out_gate": b, "skip": skip}
    made, simulated = emulate.backward(
        built, u, v, k, needed=Needed(True, True, True), taps=case.taps, **options, ptx=ptx, seed=seed
    )
    seconds = time.perf_counter() - started
    exact = np.concatenate(signal_references(problem, u, v, k, k_rev, a, b, skip))
    signals = torch.cat([x for x in made[:3] if x is not None]).double().numpy()
    accuracy = compare(signals, exact, problem.dtype, plan.order, plan.compute_format)
    reach = min(case.taps, case.length)
    expected = gradient_accuracy.filters(problem.dtype, plan.order, plan.compute_format)
    dk = made.filter.double().numpy()[:, :reach]
    of_filter = gradient_accuracy.compare(dk, gradient_reference(u, v, a, b, reach, 0), expected)
    return (
        CaseResult(f"{case}, signals", accuracy, simulated.reports, seconds),
        CaseResult(f"{case}, filter", of_filter, {}, 0.0),
    )


def verify_built(
    built: Built, *, seed: int, quick: bool = False, progress: Callable[[str], None] | None = None
) -> Verification:
    """Execute a module's kernels and compare with float64.

    ``seed`` draws inputs and the simulator's fragment layouts; ``quick`` runs one case. ``progress`` is
    told each case before it starts. Raises SimulationError when a kernel does what no kernel may.
    """
    plan = built.plan
    ptx = emulate.line_ptx(built)
    found: list[CaseResult] = []
    if built.gradient is not None and built.gradient.signals:
        for case in dict.fromkeys(case for case, _ in gradient_cases(plan.problem.length, quick)):
            if progress is not None:
                progress(str(case))
            found.extend(run_backward(built, case, seed, ptx))
        return Verification(built.gradient.name, str(built.gradient), seed, tuple(found))
    if built.gradient is not None:
        for case, period in gradient_cases(plan.problem.length, quick):
            if progress is not None:
                progress(f"{case}, {'circular' if period else 'causal'}")
            found.append(run_gradient(built, case, period, seed, ptx))
        return Verification(built.gradient.name, str(built.gradient), seed, tuple(found))
    calls: list[tuple[Case, Clusters | None]] = []
    if plan.transform > FULL_POINTS and plan.engine != SIMT:
        for result in sampled.check_launches(built, ptx, seed, progress):
            found.append(CaseResult(result.description, result.accuracy, result.reports, result.seconds))
    else:
        cases = cases_for(plan.problem, plan.transform, quick)
        ahead = plan.sections > 1 and plan.matrix == LOWER
        calls = [(case, None) for case in cases if not (ahead and case.back)]
    together = clustered(plan)
    for case, grouped in (*calls, *([together] if together else [])):
        if progress is not None:
            progress(f"{case}{_together(grouped)}")
        found.append((run_case if plan.outputs == 1 else run_twin)(built, case, seed, ptx, grouped))
    return Verification(plan.name, str(plan), seed, tuple(found))

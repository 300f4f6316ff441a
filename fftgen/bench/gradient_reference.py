"""What a backward pass must give: the gradients in float64 on the device, from their sums, without autograd.

As forward (reference.py), rows of them are held against NumPy's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fftgen import gradient_accuracy
from fftgen.accuracy import Accuracy, compare
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs
from fftgen.bench.reference import CHUNK, PEER_BOUND, SELF_BOUND, distances
from fftgen.errors import InternalError
from fftgen.planner.plan import Plan
from fftgen.storage import TORCH
from fftgen.verify import gradient_reference
from fftgen.verify import reference as numpy_reference

# The gradient of a filter has three transforms where a convolution has two, with errors that add as they are
# (gradient_accuracy.py).
PEER_FILTERS = 1.5


def exact(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """The gradients of ``inputs.arguments`` for the cotangent, float64, in their shapes, on their device.

    With x = in_gate * u, g = out_gate * v: du = in_gate * a and d in_gate = u * a for the correlation a of g
    with the filter, d out_gate = v * conv(x, k), and dk the correlation of g with x, summed over the batch.
    Raises InternalError when rows of du or dk differ from NumPy's.
    """
    found = {
        name: torch.empty(x.shape, dtype=torch.float64, device=x.device)
        for name, x in inputs.arguments.items()
    }
    step = max(1, CHUNK // (case.batch * case.points))
    for first in range(0, case.channels, step):
        part = slice(first, min(first + step, case.channels))
        for name, x in _part(case, inputs, part).items():
            found[name][..., part, :] = x
    for row in (0, -1):
        _hold(case, inputs, found, row)
    return found


def _part(case: Case, inputs: Inputs, part: slice) -> dict[str, Tensor]:
    """The gradients of some channels."""

    def wide(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, part].double()

    u, v, a, b = (wide(x) for x in (inputs.u, inputs.v, inputs.in_gate, inputs.out_gate))
    assert u is not None
    assert v is not None
    x, g = (u if a is None else a * u), (v if b is None else b * v)
    k = torch.fft.rfft(inputs.k[part].double(), n=case.points)
    xs, gs = torch.fft.rfft(x, n=case.points), torch.fft.rfft(g, n=case.points)

    def back(spectrum: Tensor) -> Tensor:
        y: Tensor = torch.fft.irfft(spectrum, n=case.points)
        return y[..., : case.length]

    adjoint = back(gs * k.conj())
    found = {
        "u": adjoint if a is None else a * adjoint,
        "k": back((xs.conj() * gs).sum(dim=0)),
    }
    if a is not None:
        found["in_gate"] = u * adjoint
    if b is not None:
        found["out_gate"] = v * back(xs * k)
    return found


def _hold(case: Case, inputs: Inputs, found: Mapping[str, Tensor], row: int) -> None:
    """The first (0) or the last (-1) row of du, and of dk, against NumPy."""
    channel = slice(row, row + 1 or None)

    def host(x: Tensor | None, rows: slice) -> Tensor | None:
        return None if x is None else x.detach()[rows][:, channel].cpu()

    def flipped(x: Tensor | None) -> Tensor | None:
        cut = host(x, channel)
        return None if cut is None else cut.flip(-1)

    v, k = flipped(inputs.v), inputs.k.detach()[channel].cpu()
    assert v is not None
    # Correlation is convolution with time running backwards.
    gates = {"in_gate": flipped(inputs.out_gate), "out_gate": flipped(inputs.in_gate)}
    du = numpy_reference(case.problem, v, k, **gates)[..., ::-1]
    every = slice(None)
    u, w = host(inputs.u, every), host(inputs.v, every)
    assert u is not None
    assert w is not None
    period = 0 if case.problem.causal else case.length
    dk = gradient_reference(
        u, w, host(inputs.in_gate, every), host(inputs.out_gate, every), case.length, period
    )
    for name, ours, other in (
        ("u", found["u"][channel, channel], du),
        ("k", found["k"][channel], dk),
    ):
        off = compare(ours.cpu().numpy(), other, "fp16", 2, "fp16-fp32").overall
        if not off <= SELF_BOUND:
            raise InternalError(f"{case}: the float64 gradient of {name} differs from NumPy's by {off:.1e}")


def judge(
    case: Case,
    found: Mapping[str, Tensor],
    ref: Mapping[str, Tensor],
    plan: Plan | None,
    filters: Plan | None = None,
) -> dict[str, Accuracy]:
    """Judge the gradients of a contender against ``exact``, by argument.

    ``plan``: that of our convolution, for the bounds of gradient_accuracy.py, with ``filters`` that of the
    kernels of the filter's gradient (None: torch.fft makes it, in fp32); ``plan`` None: a peer. Raises
    InternalError for another shape or dtype than the argument's.
    """
    p = case.problem
    verdicts = {}
    for name, exact_one in ref.items():
        wanted = torch.float32 if name == "k" else TORCH[p.dtype]
        measured = distances(f"the gradient of {name}", found[name], exact_one, wanted)
        if plan is None:
            bound = PEER_BOUND[p.dtype] * (PEER_FILTERS if name == "k" else 1)
            bounds = bound, 2 * bound
        else:
            expected = _expected(case, name, plan, filters)
            bounds = gradient_accuracy.bounds(expected, exact_one.numel(), exact_one.shape[-1])
        overall, row, finite = measured
        verdicts[name] = Accuracy(overall, row, *bounds, finite)
    return verdicts


def _expected(case: Case, name: str, plan: Plan, filters: Plan | None) -> float:
    """Expected relative error of one of our gradients."""
    dtype, gates = case.problem.dtype, 2 if case.gated else 0
    if name != "k":
        return gradient_accuracy.signal(dtype, plan.order, plan.compute_format, gated=case.gated)
    if filters is None:
        return gradient_accuracy.cpu_filters(dtype, gates=gates)
    return gradient_accuracy.filters(dtype, filters.order, filters.compute_format, gates=gates)

"""What a contender must give: float64 on the device, from the definition, and how far off it may be.

The reference of all rows is computed by float64 transforms on the device itself, chunk by chunk; rows of
it are held against NumPy's (verify.reference), so that it rests on no single library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fftgen.accuracy import Accuracy, compare, shared
from fftgen.accuracy import judge as row_verdict
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs
from fftgen.errors import InternalError
from fftgen.planner.plan import Plan
from fftgen.storage import TORCH
from fftgen.verify import reference as numpy_reference

# Other programs keep factors, twiddles or the filter itself in 16 bits, which costs several roundings where
# fftgen has one; of fp32 they keep all. What computes something else is off by 1 and more; zeros by 1.
PEER_BOUND = {"bf16": 2.0e-2, "fp16": 4.0e-3, "fp32": 2.0e-5}
CHUNK = 1 << 24  # points of a float64 transform at a time
SELF_BOUND = 1e-9  # two float64 transforms of up to 8M points agree far below this


def figures(found: Accuracy) -> dict[str, Any]:
    """A verdict as plain data for the results."""
    return {
        "error": number(found.overall),
        "error_bound": number(found.overall_bound),
        "worst_row": number(found.row),
        "worst_row_bound": number(found.row_bound),
        "finite": found.finite,
    }


def number(value: float) -> float | None:
    """Four digits for the results; None for NaN and infinity, which JSON does not know."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def exact(case: Case, inputs: Inputs) -> Tensor:
    """``out_gate * conv(in_gate * u, k)`` in float64 (B, H, L), on the inputs' device.

    Raises InternalError when the first or the last row differs from NumPy's.
    """
    y = torch.empty(inputs.u.shape, dtype=torch.float64, device=inputs.u.device)
    step = max(1, CHUNK // (case.batch * case.points))
    for first in range(0, case.channels, step):
        part = slice(first, min(first + step, case.channels))
        y[:, part] = _part(case, inputs, part)
    for row in (0, -1):
        _hold(case, inputs, y, row)
    return y


def _part(case: Case, inputs: Inputs, part: slice) -> Tensor:
    x = inputs.u[:, part].double()
    if inputs.in_gate is not None:
        x = x * inputs.in_gate[:, part].double()
    spectrum = torch.fft.rfft(inputs.k[part].double(), n=case.points)
    whole: Tensor = torch.fft.irfft(torch.fft.rfft(x, n=case.points) * spectrum, n=case.points)
    y = whole[..., : case.length]
    return y if inputs.out_gate is None else y * inputs.out_gate[:, part].double()


def _hold(case: Case, inputs: Inputs, y: Tensor, row: int) -> None:
    """The first (0) or the last (-1) row of the first or last channel against NumPy."""

    def one(x: Tensor) -> Tensor:
        return x[row][row][None, None].cpu()

    gates = {"in_gate": inputs.in_gate, "out_gate": inputs.out_gate}
    given = {name: None if x is None else one(x) for name, x in gates.items()}
    other = numpy_reference(case.problem, one(inputs.u), inputs.k[row][None].cpu(), **given)
    off = compare(one(y).numpy(), other, "fp16", 2, "fp16-fp32").overall
    if not off <= SELF_BOUND:
        raise InternalError(f"{case}: the float64 reference differs from NumPy's by {off:.1e}")


def poison(*like: Tensor) -> None:
    """Leave NaNs in the blocks of memory that the next tensors of these sizes are likely to get.

    A contender that does not write all of its results is then seen.
    """
    blocks = [torch.full(tuple(x.shape), math.nan, dtype=x.dtype, device=x.device) for x in like]
    del blocks


def judge(case: Case, out: Tensor, ref: Tensor, plan: Plan | None) -> Accuracy:
    """Judge a result (B, H, L) of a contender against ``exact``.

    ``plan``: ours, whose derived bounds then hold (accuracy.py); None: a peer, held to PEER_BOUND.
    Raises InternalError for another shape or dtype.
    """
    kind = case.problem.dtype
    if plan is None:
        bound = PEER_BOUND[kind]
        overall, worst, finite = distances("the result", out, ref, TORCH[kind])
        return Accuracy(overall, worst, bound, 2 * bound, finite)
    # The bounds come from the same function that judges the simulator's results.
    _same_kind("the result", out, ref, TORCH[kind])

    def rows(of: Callable[[slice], Tensor]) -> npt.NDArray[np.float64]:
        return np.asarray(_norms(ref, of).cpu().numpy())

    norm = rows(lambda part: ref[..., part, :])
    return row_verdict(
        rows(lambda part: out[..., part, :].double() - ref[..., part, :]).ravel(),
        norm.ravel(),
        rows(lambda part: ref[..., part, :].to(torch.bfloat16).double() - ref[..., part, :]).ravel(),
        ref.shape[-1],
        kind,
        plan.order,
        plan.compute_format,
        shared(norm).ravel() if plan.rows_per_item == 2 else None,
    )


def _norms(ref: Tensor, of: Callable[[slice], Tensor]) -> Tensor:
    """L2 norms of the rows that ``of`` gives for parts of a bounded size (second to last dimension)."""
    step = max(1, CHUNK * ref.shape[-2] // ref.numel())
    parts = [slice(first, first + step) for first in range(0, ref.shape[-2], step)]
    return torch.cat([torch.linalg.vector_norm(of(part), dim=-1) for part in parts], dim=-1)


def _same_kind(name: str, out: Tensor, ref: Tensor, wanted: torch.dtype) -> None:
    if out.shape != ref.shape or out.dtype != wanted:
        raise InternalError(f"{name} is {out.dtype} {tuple(out.shape)}, expected {wanted} {tuple(ref.shape)}")


def distances(name: str, out: Tensor, ref: Tensor, wanted: torch.dtype) -> tuple[float, float, bool]:
    """Relative L2 error of everything and of the worst row (last dimension), and whether all is finite.

    ``ref`` float64; computed in chunks of the second to last dimension. Raises InternalError when ``out``
    has another shape or is not of dtype ``wanted``, and for a reference of zeros.
    """
    _same_kind(name, out, ref, wanted)
    distance = _norms(ref, lambda part: out[..., part, :].double() - ref[..., part, :])
    norm = _norms(ref, lambda part: ref[..., part, :])
    whole = float(torch.linalg.vector_norm(norm))
    if whole == 0:
        raise InternalError("a reference of zeros proves nothing")
    finite = bool(torch.isfinite(distance).all())
    return float(torch.linalg.vector_norm(distance)) / whole, float((distance / norm).max()), finite

"""How far a result may be from the reference: relative, derived from compute format, storage type and order.

For operands in the storage type the figures are those of design note 1.7 (matrix operands and spectrum in
the storage type, fp32 accumulation and twiddles), the largest of each order, times 1.5. Scaled fp16 (design
note 1.8) errs by at most 9e-4 at any order before the output is rounded: fp16 tensors get 1.2e-3, bf16
tensors 1.25 times what rounding the exact answer to bf16 costs by itself, and 1.2e-3 where that is next to
nothing because the storage type happens to hold the answer.

Signals of fp32 are off by 3.5e-7 at most with up to 2**20 points. Expected is 1.6e-7 times the root of the
number of stages, and MARGIN is on that.

The metric is ||out - ref|| / ||ref|| over everything and for each row by itself, so that one wrong row
cannot hide. A sum over few elements scatters more than its mean, so a bound grows by the order of
1/sqrt(elements); a row is one of many and gets twice the allowance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from reference import Float64, stored

MEASURED = {
    ("bf16", 2): 3.6e-3,
    ("bf16", 3): 4.1e-3,
    ("bf16", 4): 4.8e-3,
    ("fp16", 2): 4.6e-4,
    ("fp16", 3): 5.7e-4,
    ("fp16", 4): 6.9e-4,
}
SINGLE = 1.6e-7
MARGIN = 1.5
SCALED = 1.2e-3
ABOVE_ROUNDING = 1.25
GRID = {
    "bf16": 0.0,
    "fp16": 2.0**-25,
    "fp32": 0.0,
}  # half the distance of the smallest numbers: no result is nearer
SHORT_ROW = 64  # below, a row's own norm may vanish by chance: compare with its channel's, too


@dataclass(frozen=True)
class Errors:
    """Relative errors: over all elements, and of the worst row."""

    overall: float
    row: float


def measured(dtype: str, order: int) -> float:
    """The error that is expected of a convolution of so many stages."""
    return SINGLE * math.sqrt(order) if dtype == "fp32" else MEASURED[dtype, order]


def bound(dtype: str, order: int, elements: int | None = None) -> float:
    """The largest relative error allowed over that many elements (None: without the small-sample part)."""
    limit = MARGIN * measured(dtype, order)
    return limit if elements is None else limit * (1 + 4 / math.sqrt(elements))


def row_bound(dtype: str, order: int, length: int) -> float:
    """The largest relative error allowed in a row of that length."""
    return MARGIN * measured(dtype, order) * (1 + 8 / math.sqrt(length))


def check(
    out: npt.ArrayLike,
    ref: npt.ArrayLike,
    dtype: str,
    order: int,
    compute_format: str = "",
) -> Errors:
    """Assert that ``out`` is ``ref`` to the expected accuracy; both (B, H, L). Returns the errors.

    ``compute_format`` is the plan's; all but "scaled-fp16" are judged by dtype and order. Fails on another
    shape, on any value that is not finite (a poisoned output that was not written), and on a reference of
    zeros, which could prove nothing. A row whose reference is zero, or shorter than SHORT_ROW, is measured
    against the root mean square of its channel's rows if that is larger.
    """
    result, exact = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    assert result.shape == exact.shape, f"output has shape {result.shape}, reference {exact.shape}"
    assert exact.ndim == 3, f"rows are judged as (B, H, L), got {exact.shape}"
    assert exact.size, "an empty output proves nothing"
    assert np.isfinite(exact).all(), "the reference itself is not finite"
    wrong = np.argwhere(~np.isfinite(result))
    assert not len(wrong), f"{len(wrong)} values are not finite, the first at {tuple(wrong[0].tolist())}"
    whole = float(np.linalg.norm(exact))
    assert whole > 0, "a reference of zeros proves nothing: compare with zero directly"

    length = exact.shape[-1]
    norms = np.linalg.norm(exact, axis=-1)
    channel = np.broadcast_to(np.sqrt(np.mean(norms**2, axis=0)), norms.shape)
    scale = np.where((norms == 0) | (length < SHORT_ROW), np.maximum(norms, channel), norms)
    off = np.maximum(np.abs(result - exact) - GRID[dtype], 0)
    rows = _relative(off, scale)
    overall, limits = bound(dtype, order, exact.size), np.full(rows.shape, row_bound(dtype, order, length))
    if compute_format == "scaled-fp16":
        rounding = stored(exact, dtype) - exact if dtype == "bf16" else np.zeros_like(exact)
        overall = max(SCALED, ABOVE_ROUNDING * float(np.linalg.norm(rounding)) / whole)
        overall *= 1 + 4 / math.sqrt(exact.size)
        limits = np.maximum(SCALED, ABOVE_ROUNDING * _relative(rounding, scale)) * (1 + 8 / math.sqrt(length))
    errors = Errors(float(np.linalg.norm(off)) / whole, float(rows.max()))
    worst = tuple(int(i) for i in np.unravel_index((rows / limits).argmax(), rows.shape))
    at, limit = rows[worst], limits[worst]
    assert at <= limit, f"row {worst}: relative error {at:.3e} exceeds {limit:.3e}"
    assert errors.overall <= overall, f"overall: relative error {errors.overall:.3e} exceeds {overall:.3e}"
    return errors


def _relative(difference: Float64, scale: Float64) -> Float64:
    """The norm of each row of differences by what it is measured against."""
    distance = np.linalg.norm(difference, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / scale)

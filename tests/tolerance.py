"""How far a result may be from the reference: relative, derived from storage type and order.

The figures are those of design note 1.7 (matrix operands and spectrum in the storage type, fp32
accumulation and twiddles), the largest of each order, times 1.5. The metric is ||out - ref|| / ||ref||
over everything and for each row by itself, so that one wrong row cannot hide. A sum over few elements
scatters more than its mean, so a bound grows by the order of 1/sqrt(elements); a row is one of many and
gets twice the allowance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MEASURED = {
    ("bf16", 2): 3.6e-3,
    ("bf16", 3): 4.1e-3,
    ("bf16", 4): 4.8e-3,
    ("fp16", 2): 4.6e-4,
    ("fp16", 3): 5.7e-4,
    ("fp16", 4): 6.9e-4,
}
MARGIN = 1.5
SHORT_ROW = 64  # below, a row's own norm may vanish by chance: compare with its channel's, too


@dataclass(frozen=True)
class Errors:
    """Relative errors: over all elements, and of the worst row."""

    overall: float
    row: float


def bound(dtype: str, order: int, elements: int | None = None) -> float:
    """The largest relative error allowed over that many elements (None: without the small-sample part)."""
    limit = MARGIN * MEASURED[dtype, order]
    return limit if elements is None else limit * (1 + 4 / math.sqrt(elements))


def row_bound(dtype: str, order: int, length: int) -> float:
    """The largest relative error allowed in a row of that length."""
    return MARGIN * MEASURED[dtype, order] * (1 + 8 / math.sqrt(length))


def check(out: npt.ArrayLike, ref: npt.ArrayLike, dtype: str, order: int) -> Errors:
    """Assert that ``out`` is ``ref`` to the expected accuracy; both (B, H, L). Returns the errors.

    Fails on another shape, on any value that is not finite (a poisoned output that was not written), and
    on a reference of zeros, which could prove nothing. A row whose reference is zero, or shorter than
    SHORT_ROW, is measured against the root mean square of its channel's rows if that is larger.
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
    distance = np.linalg.norm(result - exact, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(distance == 0, 0.0, distance / scale)
    errors = Errors(float(np.linalg.norm(result - exact)) / whole, float(rows.max()))
    worst = tuple(int(i) for i in np.unravel_index(rows.argmax(), rows.shape))

    limit = row_bound(dtype, order, length)
    assert errors.row <= limit, f"row {worst}: relative error {errors.row:.3e} exceeds {limit:.3e}"
    limit = bound(dtype, order, exact.size)
    assert errors.overall <= limit, f"overall: relative error {errors.overall:.3e} exceeds {limit:.3e}"
    return errors

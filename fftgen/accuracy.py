"""How exact a convolution must be: relative L2 errors by storage type and order (design note 1.7).

Measured with matrix operands and spectrum rounded to the storage type, accumulation and twiddles in
fp32, white noise against a decaying filter. A kernel beyond MARGIN times these figures loses precision
where it should not. Small samples scatter: the allowance grows with 1/sqrt(elements).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXPECTED = {
    ("bf16", 2): 3.6e-3,
    ("bf16", 3): 4.1e-3,
    ("bf16", 4): 4.8e-3,
    ("fp16", 2): 4.6e-4,
    ("fp16", 3): 5.7e-4,
    ("fp16", 4): 6.9e-4,
}
MARGIN = 1.5


@dataclass(frozen=True)
class Accuracy:
    """Relative L2 error over everything and of the worst row, with the bounds they are held to."""

    overall: float
    row: float
    overall_bound: float
    row_bound: float
    finite: bool

    @property
    def passed(self) -> bool:
        return self.finite and self.overall <= self.overall_bound and self.row <= self.row_bound

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "WRONG" if self.finite else "NOT FINITE"
        return (
            f"error {self.overall:.2e} (bound {self.overall_bound:.2e}), "
            f"worst row {self.row:.2e} (bound {self.row_bound:.2e}): {verdict}"
        )


def compare(out: npt.NDArray[np.float64], ref: npt.NDArray[np.float64], dtype: str, order: int) -> Accuracy:
    """Judge rows ``(..., L)`` against a float64 reference that is not zero everywhere."""
    out, ref = out.reshape(-1, out.shape[-1]), ref.reshape(-1, ref.shape[-1])
    limit = MARGIN * EXPECTED[dtype, order]
    norm = np.linalg.norm(ref, axis=-1)
    whole = float(np.linalg.norm(norm))
    if whole == 0:
        raise ValueError("a reference of zeros proves nothing")
    # A row may be nearly empty by chance when it is short: measure it against its neighbours then.
    scale = np.maximum(norm, whole / math.sqrt(len(norm)) if out.shape[-1] < 64 else 0)
    difference = np.linalg.norm(out - ref, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = np.where(difference == 0, 0.0, difference / scale)
    return Accuracy(
        float(np.linalg.norm(difference)) / whole,
        float(rows.max()),
        limit * (1 + 4 / math.sqrt(out.size)),
        limit * (1 + 8 / math.sqrt(out.shape[-1])),
        bool(np.isfinite(out).all()),
    )

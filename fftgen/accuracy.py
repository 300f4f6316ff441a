"""How exact a convolution must be: relative L2 errors by compute format, storage type and order.

Operands in the storage type, sums in fp32 ("bf16-fp32", "fp16-fp32"; design note 1.7): EXPECTED was measured
with matrix operands and spectrum rounded to the storage type, accumulation and twiddles in fp32, white noise
against a decaying filter. A kernel beyond MARGIN times these figures loses precision where it should not.

Scaled fp16 (design note 1.8): whatever the order, the arithmetic costs 6e-4 to 9e-4 before the output is
rounded, up to 1.03e-3 of more than 524 288 points, whose tall columns have butterflies. With the 2.1e-4 of
rounding to fp16 that is at most 9.3e-4 for fp16 tensors, and 1.05e-3 of these; SCALED, 1.2e-3, leaves the
same quarter as ABOVE_ROUNDING does, and of these a seventh. For bf16 tensors the rounding of the output
dominates, and what it costs depends on the answer (1.1e-3 where all mantissas are near 2, 2.3e-3 where near
1), so the bound is ABOVE_ROUNDING times the error of the exact answer rounded to bf16: 1.7e-3 and 1.03e-3
make 1.17 times 1.7e-3. An answer that bf16 happens to hold, as one number or a row of zeros may be, is held
to SCALED.

These are figures for rows that keep their share of what the transform holds, as white noise does. Noise is
that of all of it: at most ARITHMETIC times the larger of ||x|| ||k|| and the norm of the whole linear
convolution (tests/nvrtc/test_noise.py; 5e-4 to 8e-4 were measured). In sections it is IN_SECTIONS, since a
section throws away as much as it keeps (planner/sections.py; 8e-4 to 1.1e-3). A row that keeps less than
about 0.75 of that, because it comes late or its filter grows or cancels most of it, shows the same noise
beside less. Noise is white but for what matrices and twiddles, rounded to fp16 as well, leak from a strong
tone into other frequencies: a filter that is narrow and lies there gives back up to LEAKED of ||x|| times its
largest gain (4e-5 to 1.1e-4 were measured, 1.8e-4 of pairs), which is more where that is above 4 ||k||.

Signals of fp32 (engine "simt"): FFTs by threads in fp32 were off by 1.7e-7 (256 points, two stages) to 3.5e-7
(2**20, five stages), growing as the root of the number of stages: SINGLE times that is expected.

Two rows of a pair share a transform and its noise. Their kernels bring both to like norms (balance in
templates/device/powers.cuh), so each is held to these figures by itself, whatever its partner.

Small samples scatter: the allowance grows with 1/sqrt(elements).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import BF16, decode, encode

EXPECTED = {
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
ARITHMETIC = 9e-4
IN_SECTIONS = 1.2e-3
LEAKED = 2e-4
ABOVE_ROUNDING = 1.25


def expected_error(dtype: str, order: int) -> float:
    """The error of a convolution of so many stages that scales nothing."""
    return SINGLE * math.sqrt(order) if dtype == "fp32" else EXPECTED[dtype, order]


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


def compare(
    out: npt.NDArray[np.float64],
    ref: npt.NDArray[np.float64],
    dtype: str,
    order: int,
    compute_format: str,
) -> Accuracy:
    """Judge rows ``(..., L)`` of a plan against a float64 reference that is not zero everywhere."""
    out, ref = out.reshape(-1, out.shape[-1]), ref.reshape(-1, ref.shape[-1])
    rounding = np.zeros(len(ref))
    if dtype == "bf16":
        rounding = np.linalg.norm(decode(encode(ref, BF16), BF16) - ref, axis=-1)
    difference, norm = np.linalg.norm(out - ref, axis=-1), np.linalg.norm(ref, axis=-1)
    return judge(difference, norm, rounding, out.shape[-1], dtype, order, compute_format)


def judge(
    difference: npt.NDArray[np.float64],
    norm: npt.NDArray[np.float64],
    rounding: npt.NDArray[np.float64],
    length: int,
    dtype: str,
    order: int,
    compute_format: str,
    scale: npt.NDArray[np.float64] | None = None,
) -> Accuracy:
    """The same from L2 norms of rows of ``length`` elements: of what they are off by, of the reference, and
    of what rounding that to bf16 costs (of no matter for fp16).

    ``scale``: what rows are measured against, where it is not their own norm (``shared``). The row that is
    shown is the one that is worst by its own bound.
    """
    whole = float(np.linalg.norm(norm))
    if whole == 0:
        raise ValueError("a reference of zeros proves nothing")
    # A row may be nearly empty by chance when it is short: measure it against its neighbours then.
    scale = norm if scale is None else scale
    scale = np.maximum(scale, whole / math.sqrt(len(norm)) if length < 64 else 0)
    rows = _relative(difference, scale)
    limit = np.full(len(rows) + 1, MARGIN * expected_error(dtype, order))  # of every row, and of all together
    if compute_format == "scaled-fp16":
        limit = np.full(len(rows) + 1, SCALED)
        if dtype == "bf16":
            errors = np.append(_relative(rounding, scale), np.linalg.norm(rounding) / whole)
            limit = np.maximum(limit, ABOVE_ROUNDING * errors)
    row_limits = limit[:-1] * (1 + 8 / math.sqrt(length))
    worst = int(np.argmax(rows / row_limits))
    return Accuracy(
        float(np.linalg.norm(difference)) / whole,
        float(rows[worst]),
        float(limit[-1]) * (1 + 4 / math.sqrt(len(rows) * length)),
        float(row_limits[worst]),
        bool(np.isfinite(difference).all()),
    )


def shared(norm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For norms (B, H) of the results of batch pairs: of each row its own, or what the pair has on average.

    A filter may pass more of one row than of the other; the noise of their transform falls on both alike.
    """
    even, odd = norm[0 : 2 * (len(norm) // 2) : 2], norm[1::2]
    common = np.sqrt((even**2 + odd**2) / 2)
    found: npt.NDArray[np.float64] = norm.copy()
    found[0 : 2 * (len(norm) // 2) : 2] = np.maximum(even, common)
    found[1::2] = np.maximum(odd, common)
    return found


def _relative(distance: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distances by the norms they are measured against: 0 where nothing differs, else maybe infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(distance == 0, 0.0, distance / scale)

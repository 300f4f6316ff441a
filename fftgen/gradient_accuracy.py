"""How exact gradients must be: the rounding model of accuracy.py (design note 1.7), carried over.

Let r be the relative error of rounding white data to the storage type once, and e_p that of a whole
convolution of order p (accuracy.EXPECTED): spectrum, two transforms, and the result.

Gradient of u or of a gate: the same kernel (design 1.5), so e_p; a gate that a kernel multiplies into its
input rounds that product once more, and errors of independent roundings add in squares: e_p^2 + r^2. The
output gate is multiplied before the one rounding of the result.

Gradient of a filter: x and the cotangent are transformed, the product is summed over the batch in fp32,
stored and transformed back: three transforms where a convolution has two. Their errors do not add in
squares. All three have the same rounded DFT matrices, whose errors are of one kind in all of them (a scale
that is off by 1e-3 in bf16, to begin with), and such errors add as they are: 3/2 e_p, the spectrum's and
the result's rounding, which are not there, being small change. Rounded transforms of orders 2 to 4
(tests/rounding_model.py) give 1.1 to 1.6 e_p. Kernels do better than this model, which has unitary
matrices: theirs are scaled so that rounding changes them least (planner/matrix_scale.py). Gated inputs are
rounded independently: (1.5 e_p)^2 + g r^2 for g gates. Over the batch the error grows like the sum's norm,
so the relative error does not depend on B; it is smaller where terms agree.

In scaled fp16 two of these transforms are in fp16, as in a convolution, and the way back is in fp32; gated
inputs and the result stay in fp32. That is the arithmetic of a convolution without its result's rounding:
accuracy.ARITHMETIC (design 1.8), whatever the order and the gates. It is in proportion to the norms of x and
of the cotangent: where these hardly meet within the lags asked for, the gradient is less exact for its size.

Two transforms of many stages lose more than that: sqrt(2 (U r^2 + m)), r = 2.1e-4 for one rounding to fp16
of white data and m the relative errors of the rounded matrices, squared (planner/matrix_scale.py). U counts
roundings: 1 of the gated input; (n + 1) / 2 of a stage's running sum of n instructions, 1 where that is in
fp32 (``Plan.wide_columns``) or of 16 products, with 2 more of butterflies across three tiles or four, 0 where
both spectra meet as they are (``Gradient.wide_spectra``) or half where one is kept; 1 of the sums of a stage
by halves; 2.1 of twiddles, tables and product, and 1.3 of their low level. That makes U = 8 at 8192 points,
13 at 65 536, 17 at 524 288, 19 at 2 097 152 and 18 at 4 194 304, mostly 1 more beside the gradients of
signals: 0.98 of what MARGIN allows at most. (4 194 304 points had 22, and 1.03 of it, before tall columns and
spectra that meet came in fp32, and would have 21 with butterflies: planner/gradient.py.)

Gradient of skip: a sum over (B, L) of products that were rounded only where gated: g r^2, nothing else.

On the CPU path transforms and gated inputs are in fp32 (or float64): r^2 for a stored result remains, and
g r^2 only where gated inputs come rounded to the storage type, as the wmma engine has them in bf16.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fftgen.accuracy import ARITHMETIC, MARGIN, SCALED, Accuracy, expected_error

# Relative L2 error of rounding to storage once: uniform in a binade that white data fill evenly (measured
# in design 1.7 as "rounding of the exact answer alone"; three bits less for fp16).
ROUNDING = {"bf16": 1.7e-3, "fp16": 1.7e-3 / 8, "fp32": 1.7e-3 / 2**16}
FP32 = 2e-6  # a transform in fp32 and its rounding, with room


def result(dtype: str, order: int, compute_format: str = "") -> float:
    """Expected relative error of a convolution; of scaled fp16, two thirds of what accuracy.py allows."""
    if compute_format == "scaled-fp16":
        return max(SCALED / MARGIN, math.hypot(ARITHMETIC, ROUNDING[dtype]))
    return expected_error(dtype, order)


def signal(dtype: str, order: int, compute_format: str = "", *, gated: bool = False) -> float:
    """Expected relative error of the gradient of u or of a gate; ``gated``: the kernel's input was."""
    return math.hypot(result(dtype, order, compute_format), ROUNDING[dtype] if gated else 0.0)


def filters(dtype: str, order: int, compute_format: str = "", *, gates: int = 0) -> float:
    """Expected relative error of the gradient of a filter; ``gates``: how many of the two are used."""
    if compute_format == "scaled-fp16":
        return ARITHMETIC
    return math.hypot(1.5 * expected_error(dtype, order), ROUNDING[dtype] * math.sqrt(gates))


def cpu_signal(dtype: str, *, gated: bool = False) -> float:
    """Expected relative error of a result or a signal's gradient on the CPU path."""
    return math.hypot(FP32, ROUNDING[dtype] * math.sqrt(2 if gated else 1))


def cpu_filters(dtype: str, *, gates: int = 0) -> float:
    """Expected relative error of the gradient of a filter or a skip term on the CPU path."""
    return math.hypot(FP32, ROUNDING[dtype] * math.sqrt(gates))


def bounds(expected: float, elements: int, length: int) -> tuple[float, float]:
    """What is allowed overall and for a row of ``length``: MARGIN times what is expected, and small samples
    scatter (accuracy.py)."""
    limit = MARGIN * expected
    return limit * (1 + 4 / math.sqrt(elements)), limit * (1 + 8 / math.sqrt(length))


def compare(out: npt.NDArray[np.float64], exact: npt.NDArray[np.float64], expected: float) -> Accuracy:
    """Judge the gradient of a filter (H, taps) against float64, no row of which is zero."""
    distance, norm = np.linalg.norm(out - exact, axis=-1), np.linalg.norm(exact, axis=-1)
    return Accuracy(
        float(np.linalg.norm(distance) / np.linalg.norm(norm)),
        float((distance / norm).max()),
        *bounds(expected, out.size, out.shape[-1]),
        bool(np.isfinite(out).all()),
    )

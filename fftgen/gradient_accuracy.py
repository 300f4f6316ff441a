"""How exact gradients must be: the rounding model of accuracy.py (design note 1.7), carried over.

Let r be the relative error of rounding white data to the storage type once, and e_p that of a whole
convolution of order p (accuracy.EXPECTED). Errors of roundings are independent, so squares add. A
convolution rounds

    f^2   the signal's forward transform (operands of every stage)
    r^2   the spectrum
    f^2   the inverse transform
    r^2   the result

so e_p^2 = 2 f^2 + 2 r^2. That r is known and e_p was measured gives f^2 = e_p^2 / 2 - r^2.

Gradient of u or of a gate: the same kernel (design 1.5), so e_p; every gate that a kernel multiplies into
its input rounds that product once more: e_p^2 + r^2. The output gate is multiplied before the one rounding.

Gradient of a filter: two forward transforms, of x and of the cotangent (2 f^2), each gated one with a
rounding of its own (g r^2, g gates); their product is summed over the batch in fp32, stored (r^2) and
transformed back (f^2); the result stays in fp32. Over the batch errors of independent terms grow like
their sum's norm, so the relative error does not depend on B, and is smaller where terms agree:

    3 f^2 + r^2 + g r^2 = 1.5 e_p^2 - 2 r^2 + g r^2

Gradient of skip: a sum over (B, L) of products that were rounded only where gated: g r^2, nothing else.

On the CPU path transforms are in fp32 (or float64): of all this r^2 for a stored result and g r^2 remain.
"""

from __future__ import annotations

import math

from fftgen.accuracy import EXPECTED

# Relative L2 error of rounding to storage once: uniform in a binade that white data fill evenly (measured
# in design 1.7 as "rounding of the exact answer alone"; three bits less for fp16).
ROUNDING = {"bf16": 1.7e-3, "fp16": 1.7e-3 / 8}
FP32 = 2e-6  # a transform in fp32 and its rounding, with room


def signal(dtype: str, order: int, *, gated: bool = False) -> float:
    """Expected relative error of the gradient of u or of a gate; ``gated``: the kernel's input was."""
    return math.hypot(EXPECTED[dtype, order], ROUNDING[dtype] if gated else 0.0)


def filters(dtype: str, order: int, *, gates: int = 0) -> float:
    """Expected relative error of the gradient of a filter; ``gates``: how many of the two are used."""
    rounding = ROUNDING[dtype] ** 2
    return math.sqrt(1.5 * EXPECTED[dtype, order] ** 2 + (gates - 2) * rounding)


def cpu_signal(dtype: str, *, gated: bool = False) -> float:
    """Expected relative error of a result or a signal's gradient on the CPU path."""
    return math.hypot(FP32, ROUNDING[dtype] * math.sqrt(2 if gated else 1))


def cpu_filters(dtype: str, *, gates: int = 0) -> float:
    """Expected relative error of the gradient of a filter or a skip term on the CPU path."""
    return math.hypot(FP32, ROUNDING[dtype] * math.sqrt(gates))

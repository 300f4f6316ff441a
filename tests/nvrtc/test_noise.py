"""Scaled fp16 on signals and filters of any shape: what its noise is measured by, whatever comes of a row.

The bounds of accuracy.py are for rows that keep their share of what the transform holds. Noise is that of all
of it: of the signal, before the product, and of the whole linear convolution, the end that a causal row does
not keep included, after it. A row that keeps little, because it comes late or a filter cancels it, shows it
beside little. (Of rows in sections: test_sections.py.)
"""

from __future__ import annotations

import noise
import numpy as np
import pytest
from calls import call_whole, exact
from cases import DTYPES, slow
from plans import on_engine

from fftgen.accuracy import ARITHMETIC
from fftgen.problem import Problem


@pytest.mark.drawn(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1024, 2048, 4096, *slow([256, 8192, 16_384, 32_768, 65_536])])
def test_noise_is_that_of_all_that_a_transform_holds(
    length: int, dtype: str, rng: np.random.Generator
) -> None:
    u, k = noise.drawn(rng, length, dtype)
    plan = on_engine(Problem("causal", length, dtype), "sm_90", "mma")
    noise.judge(call_whole(plan, u, k), exact(plan, u, k), u, k, dtype, ARITHMETIC)

"""Factors of DFT matrices: how far rounding to 16 bits leaves the entries."""

from __future__ import annotations

import numpy as np
import pytest

from fftgen.dtypes import decode, dtype, encode
from fftgen.planner import interpret, twiddle
from fftgen.planner.matrix_scale import matrix_scale, matrix_scales
from fftgen.planner.search import with_shape
from fftgen.problem import Problem

OFF = {  # relative Frobenius norms, with the factor and with a power of two
    ("fp16", 16, False): (1.5e-5, 8.3e-5),
    ("fp16", 16, True): (9.2e-5, 1.14e-4),
    ("fp16", 32, False): (5.1e-5, 1.08e-4),
    ("fp16", 32, True): (1.29e-4, 1.53e-4),
    ("fp16", 64, False): (8.4e-5, 1.11e-4),
    ("bf16", 16, False): (2.0e-4, 9.6e-4),
    ("bf16", 32, False): (4.4e-4, 1.03e-3),
    ("bf16", 16, True): (8.1e-4, 1.13e-3),
}


def off(radix: int, weighted: bool, operand: str, factor: float) -> float:
    k = np.arange(radix)
    exact = factor * twiddle.evaluate(twiddle.dft_turns((radix, 16), 1, weighted), k[:, None], k)
    kind = dtype(operand)
    parts = np.ascontiguousarray(exact).view(np.float64)
    return float(np.linalg.norm(decode(encode(parts, kind), kind) - parts) / np.linalg.norm(parts))


@pytest.mark.parametrize("operand", ["fp16", "bf16"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("radix", [16, 32, 48, 64, 80, 96, 112, 128])
def test_near_unitary_there_is_no_better_factor(
    radix: int, weighted: bool, operand: str, rng: np.random.Generator
) -> None:
    """Of some drawn ones but two: one in a thousand is 7 % better for radix 48, between candidates.

    The least entries are normal numbers of fp16: a power of two changes nothing.
    """
    kept = matrix_scale(radix, weighted, operand)
    drawn = 2 ** rng.uniform(-0.25, 0.25, 30) / np.sqrt(radix)
    assert 2**-0.25 <= kept * np.sqrt(radix) <= 2**0.25
    found = off(radix, weighted, operand, kept)
    assert found < 1.05 * sorted(off(radix, weighted, operand, f) for f in drawn)[2]
    assert off(radix, weighted, operand, kept / 4) == pytest.approx(found)


@pytest.mark.parametrize(("case", "figures"), OFF.items(), ids=str)
def test_what_it_brings(case: tuple[str, int, bool], figures: tuple[float, float]) -> None:
    operand, radix, weighted = case
    factors = matrix_scale(radix, weighted, operand), 0.125
    assert [off(radix, weighted, operand, f) for f in factors] == pytest.approx(figures, rel=0.04)


def test_only_the_first_matrix_has_weights() -> None:
    scales = matrix_scales((32, 16, 32), True, "fp16")
    assert scales == tuple(matrix_scale(r, w, "fp16") for r, w in ((32, True), (16, False), (32, False)))


@pytest.mark.parametrize("factors", [(16, 16), (32, 32, 32), (48, 16, 80, 128)], ids=str)
def test_batch_pairs_keep_to_powers_of_two(factors: tuple[int, ...]) -> None:
    """And to what came in, within 3 dB after every stage."""
    grown = 1.0
    for radix, scale in zip(factors, matrix_scales(factors, False, "bf16"), strict=True):
        assert np.frexp(scale)[0] == 0.5
        grown *= radix * scale**2
        assert 0.5 <= grown <= 2


def test_a_constant_row_of_a_pair_comes_back_in_equal_parts(rng: np.random.Generator) -> None:
    """Exactly, through any number of stages back: a mean of 100 is not rounded by all of them alike."""
    found = with_shape(Problem("circular", 4096, "fp16"), "sm_90", (16, 16, 16), 0, "mma")
    u = np.full((2, 1, 4096), np.float64(np.float16(rng.uniform(1, 2))))
    taps = np.zeros((1, 4096))
    taps[0, 0] = 1
    assert (interpret.convolve(found, u, taps) == u).all()

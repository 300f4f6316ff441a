"""The rounding model of gradients (fftgen/gradient_accuracy.py) against roundings that were carried out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from rounding_model import Transform

from fftgen import gradient_accuracy
from fftgen.accuracy import EXPECTED, MARGIN

FACTORS = ((16, 16), (32, 32), (16, 16, 16), (16, 16, 80), (32, 32, 32), (16, 16, 16, 16))
CASES = [(dtype, factors) for dtype in ("bf16", "fp16") for factors in FACTORS]
Float64 = npt.NDArray[np.float64]


def fft(x: Float64) -> npt.NDArray[np.complex128]:
    return np.fft.rfft(x, 2 * x.shape[-1])


def error(out: Float64, ref: Float64) -> float:
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def draw(rng: np.random.Generator, t: Transform, rows: int) -> tuple[Float64, Float64, Float64]:
    u, v = (t.round(rng.standard_normal((rows, t.n))) for _ in range(2))
    return u, v, rng.standard_normal(t.n) * np.exp(-8 * np.arange(t.n) / t.n)


def agrees(measured: float, expected: float) -> None:
    """The model neither promises too much nor leaves room for a lost bit."""
    assert 0.55 * expected <= measured <= 1.3 * expected, (measured, expected, measured / expected)


@pytest.mark.parametrize(("dtype", "factors"), CASES)
def test_signals_and_their_gradients(dtype: str, factors: tuple[int, ...], rng: np.random.Generator) -> None:
    order, t = len(factors), Transform(factors, dtype)
    u, v, k = draw(rng, t, 32 if order == 2 else 2)
    forward = np.fft.irfft(fft(u) * fft(k[None]))[:, : t.n]
    agrees(error(t.convolve(u, k), forward), EXPECTED[dtype, order])
    adjoint = np.fft.irfft(fft(v) * fft(k[None]).conj())[:, : t.n]
    agrees(error(t.convolve(v, k, adjoint=True), adjoint), gradient_accuracy.signal(dtype, order))
    gate = t.round(rng.standard_normal(v.shape))
    gated = np.fft.irfft(fft(v * gate) * fft(k[None]).conj())[:, : t.n]
    found = t.convolve(t.round(v * gate), k, adjoint=True)
    agrees(error(found, gated), gradient_accuracy.signal(dtype, order, gated=True))


@pytest.mark.drawn(3)
@pytest.mark.parametrize("gates", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "factors"), CASES)
def test_gradients_of_filters(
    dtype: str, factors: tuple[int, ...], gates: int, rng: np.random.Generator
) -> None:
    """One row and many have the same error."""
    order = len(factors)
    t = Transform(factors, dtype)
    for rows in (1, 16) if order < 4 else (1, 3):
        u, v, _ = draw(rng, t, rows)
        x, w = u, v
        if gates > 0:
            x = u * t.round(rng.standard_normal(u.shape))
        if gates > 1:
            w = v * t.round(rng.standard_normal(v.shape))
        exact = np.fft.irfft((fft(w) * fft(x).conj()).sum(0))[: t.n]
        found = t.correlate(t.round(x), t.round(w))
        expected = gradient_accuracy.filters(dtype, order, gates=gates)
        scatter = 1 + 4 / np.sqrt(t.n)
        assert error(found, exact) <= MARGIN * expected * scatter
        if order > 2:  # short ones scatter
            agrees(error(found, exact), expected)


def test_more_roundings_never_make_a_bound_smaller() -> None:
    for dtype, order in EXPECTED:
        plain, gated = (gradient_accuracy.signal(dtype, order, gated=g) for g in (False, True))
        assert EXPECTED[dtype, order] == plain < gated
        filters = [gradient_accuracy.filters(dtype, order, gates=g) for g in range(3)]
        assert 0 < filters[0] < filters[1] < filters[2] < 2 * EXPECTED[dtype, order]
        assert gradient_accuracy.cpu_signal(dtype) < plain
        assert gradient_accuracy.cpu_filters(dtype) < gradient_accuracy.cpu_filters(dtype, gates=1)

"""Circular convolution of any period by a right-angle transform: the identity, exactly, and what follows."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fftgen import filters
from fftgen.planner.fold import folded
from fftgen.planner.interpret import spectrum
from fftgen.planner.order import monarch_permutation
from fftgen.planner.plan import Plan
from fftgen.planner.search import with_shape
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.source import Source

Array = npt.NDArray[Any]


def turned_product(c: Array, u: Array) -> Array:
    """The product of two polynomials modulo x^M = i, of whole numbers: nothing is rounded."""
    z = np.zeros(len(c), complex)
    for n, t in product(np.flatnonzero(c), np.flatnonzero(u)):
        z[(n + t) % len(c)] += c[n] * u[t] * (1j if n + t >= len(c) else 1)
    return z


@pytest.mark.parametrize("transform", range(1, 13))
def test_a_folded_filter_makes_the_turned_product_circular(transform: int) -> None:
    """Both sides are linear in filter and signal: single taps and impulses are all there is to check."""
    for period in range(1, transform + 1):
        for tap, step in product(range(period), repeat=2):
            k = np.zeros(tap + 1)
            k[tap] = 1
            u = np.zeros(transform)
            u[step] = 1
            expected = np.zeros(period)
            expected[(tap + step) % period] = 1
            z = turned_product(folded(k, period, transform), u)
            assert np.array_equal(z.real[:period], expected), (period, tap, step)


@pytest.mark.parametrize(
    "wrong", [[1, 2, 4 + 2j, 4j], [1, 2, 4, 0], [1, 2 - 2j, 4 - 4j, 0], [1, 2, 4, -2j]], ids=str
)
def test_the_check_sees_a_wrong_sign_or_place_of_a_twin(wrong: list[complex]) -> None:
    k = np.array([1.0, 2.0, 4.0])
    right = folded(k, 3, 4)
    assert right.tolist() == [1, 2, 4 - 2j, -4j]
    u = np.array([0, 0, 1.0, 0])
    assert turned_product(right, u).real[:3].tolist() == [2, 4, 1]
    assert turned_product(np.array(wrong), u).real[:3].tolist() != [2, 4, 1]


def plans() -> list[Plan]:
    """Periods far below, just below and of the transform's length, on both engines."""
    sizes = ((1, False), (100, False), (255, False), (256, True))
    return [
        with_shape(Problem("circular", n, "fp16"), "sm_90", (16, 16), 0, engine, fold=fold)
        for engine, (n, fold) in product(("mma", "wmma"), sizes)
    ]


@pytest.mark.parametrize("plan", plans(), ids=lambda p: f"{p.engine}-{p.fold}")
def test_torch_and_numpy_transform_the_same_filter(plan: Plan, rng: np.random.Generator) -> None:
    for taps in {1, (plan.fold + 1) // 2, plan.fold}:
        k = rng.standard_normal((3, taps))
        values, exponent = spectrum(plan, k, rounded=False)
        found = filters.transform(plan, torch.from_numpy(k)).numpy()[:, monarch_permutation(plan.factors)]
        np.testing.assert_allclose(np.ldexp(1.0, exponent)[:, None] * found, values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plan", plans(), ids=lambda p: f"{p.engine}-{p.fold}")
@pytest.mark.parametrize("which", ["k", "k_rev", "both"])
def test_reversed_filters_correlate_on_the_circle(plan: Plan, which: str, rng: np.random.Generator) -> None:
    """The factors of a folded plan, applied as the kernels do, against sums by the definition."""
    n, m = plan.fold, plan.transform
    u, k, k_rev = rng.standard_normal((3, n))
    ahead, back = (None if which == other else x for x, other in ((k, "k_rev"), (k_rev, "k")))
    factors = filters.response(
        plan, *(None if x is None else torch.from_numpy(x)[None] for x in (ahead, back))
    )
    weights = np.exp(0.5j * np.pi * np.arange(m) / m)
    z = np.fft.ifft(factors[0].numpy() * np.fft.fft(weights * np.pad(u, (0, m - n)))) / weights
    t, j = np.arange(n)[:, None], np.arange(n)
    expected = np.zeros(n)
    if ahead is not None:
        expected += (ahead[j] * u[(t - j) % n]).sum(axis=1)
    if back is not None:
        expected += (back[j] * u[(t + j) % n]).sum(axis=1)
    assert np.linalg.norm(z.real[:n] - expected) < 1e-6 * np.linalg.norm(u) * np.sqrt(n) * 8


def kernels(source: Source, plan: Plan) -> str:
    """The text of the convolution's kernels, the plan's name and header left out."""
    text = source.text[source.text.index("#include") : source.text.index(f"{plan.name}_filter")]
    text = text.replace(plan.name, "conv")
    return re.sub(r"namespace \{\n\nusing Stored.*", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("engine", ["mma", "wmma"])
@pytest.mark.parametrize(
    ("factors", "device"), [((16, 16), 0), ((16, 16, 16), 0), ((16, 16, 16), 1)], ids=str
)
def test_a_folded_plan_has_the_kernels_of_a_causal_one(
    engine: str, factors: tuple[int, ...], device: int
) -> None:
    n = int(np.prod(factors))
    causal = with_shape(Problem("causal", n, "bf16"), "sm_90", factors, device, engine)
    for length in (n, n - 57):
        found = with_shape(Problem("circular", length, "bf16"), "sm_90", factors, device, engine, fold=True)
        assert found.fold == length
        assert found.kernels == causal.kernels
        assert found.tables == causal.tables
        texts = [kernels(render(plan), plan) for plan in (found, causal)]
        assert texts[0] == texts[1]
        assert texts[0].count("__global__") == len(found.kernels)
        assert f"PERIOD = {length}" in render(found).text
    assert "PERIOD" not in render(causal).text

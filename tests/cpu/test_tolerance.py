"""The checks themselves: a result that is wrong in any way must fail them."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import reference
import tolerance

from fftgen import accuracy

MODERATE = (5, 3, 1000)


@pytest.fixture
def exact(rng: np.random.Generator) -> reference.Float64:
    inputs = cases.draw(rng, MODERATE, 1000, "bf16")
    return reference.convolve(inputs.u, inputs.k, mode="causal", length=1000)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_correct_rounding_passes_with_its_own_error(exact: reference.Float64, dtype: str, order: int) -> None:
    errors = tolerance.check(reference.stored(exact, dtype), exact, dtype, order)
    typical = {"bf16": 1.7e-3, "fp16": 2.1e-4}[dtype]  # design 1.7: rounding of the exact answer alone
    assert typical / 2 < errors.overall < typical * 2
    assert errors.row >= errors.overall / 2


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_zeros_fail(exact: reference.Float64, dtype: str) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        tolerance.check(np.zeros_like(exact), exact, dtype, 4)


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 1000])
def test_zeros_fail_at_every_length_and_size_of_signal(rng: np.random.Generator, length: int) -> None:
    for size in (1e-20, 1.0, 1e20):
        exact = size * rng.standard_normal((2, 2, length))
        tolerance.check(exact, exact, "bf16", 4)
        with pytest.raises(AssertionError, match="relative error"):
            tolerance.check(np.zeros_like(exact), exact, "bf16", 4)


def test_one_row_of_zeros_fails(exact: reference.Float64) -> None:
    out = exact.copy()
    out[4, 2] = 0
    with pytest.raises(AssertionError, match=r"row \(4, 2\)"):
        tolerance.check(out, exact, "bf16", 4)


def test_a_small_wrong_row_cannot_hide_among_large_ones(exact: reference.Float64) -> None:
    exact = exact.copy()
    exact[:, 1] *= 1e-6
    out = exact.copy()
    out[0, 1] = 0
    assert np.linalg.norm(out - exact) / np.linalg.norm(exact) < 1e-5
    with pytest.raises(AssertionError, match=r"row \(0, 1\)"):
        tolerance.check(out, exact, "bf16", 4)


def test_swapped_rows_fail(exact: reference.Float64) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        tolerance.check(exact[::-1], exact, "bf16", 4)


@pytest.mark.parametrize("shift", [-1, 1, 500])
def test_shifted_output_fails(exact: reference.Float64, shift: int) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        tolerance.check(np.roll(exact, shift, axis=-1), exact, "bf16", 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_was_not_written_fails(exact: reference.Float64, value: float) -> None:
    out = exact.copy()
    out[1, 2, 3] = value
    with pytest.raises(AssertionError, match=r"1 values are not finite, the first at \(1, 2, 3\)"):
        tolerance.check(out, exact, "bf16", 4)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_twice_the_bound_fails(
    rng: np.random.Generator, exact: reference.Float64, dtype: str, order: int
) -> None:
    noise = rng.standard_normal(exact.shape)
    noise *= np.linalg.norm(exact) / np.linalg.norm(noise)
    tolerance.check(exact + 0.7 * tolerance.bound(dtype, order) * noise, exact, dtype, order)
    with pytest.raises(AssertionError, match="relative error"):
        tolerance.check(exact + 2 * tolerance.bound(dtype, order) * noise, exact, dtype, order)


def test_a_fault_in_every_row_that_no_row_shows_fails_overall(exact: reference.Float64) -> None:
    limit = tolerance.bound("bf16", 2, exact.size)
    assert limit * 1.01 < tolerance.row_bound("bf16", 2, exact.shape[-1])
    with pytest.raises(AssertionError, match="overall"):
        tolerance.check(exact * (1 + 1.01 * limit), exact, "bf16", 2)


def test_a_dtype_is_not_judged_by_the_bound_of_the_coarser_one(exact: reference.Float64) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        tolerance.check(reference.stored(exact, "bf16"), exact, "fp16", 4)


# Scaled fp16: bounds that follow what rounding the exact answer costs. fftgen/accuracy.py, which judges for
# users, must judge as tests/tolerance.py does.


def passes(out: reference.Float64, exact: reference.Float64, dtype: str, order: int = 3) -> bool:
    """The verdict on a scaled-fp16 plan, the same from both."""
    verdict = accuracy.compare(out, exact, dtype, order, "scaled-fp16").passed
    try:
        errors = tolerance.check(out, exact, dtype, order, "scaled-fp16")
    except AssertionError:
        assert not verdict
        return False
    assert verdict
    # Short rows are measured against their channel: a weighted mean of theirs may exceed all of them.
    assert errors.overall <= errors.row or exact.shape[-1] < tolerance.SHORT_ROW
    return True


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_scaled_zeros_and_values_that_are_not_finite_fail(exact: reference.Float64, dtype: str) -> None:
    assert passes(reference.stored(exact, dtype), exact, dtype)
    assert not passes(np.zeros_like(exact), exact, dtype)
    for row, value in ((0, 0.0), (4, np.nan), (2, np.inf)):
        out = reference.stored(exact, dtype)
        out[row, 1] = value
        assert not passes(out, exact, dtype)


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 1000])
def test_scaled_zeros_fail_at_every_length_and_size_of_signal(rng: np.random.Generator, length: int) -> None:
    for size in (1e-20, 1.0, 1e20):
        exact = size * rng.standard_normal((2, 2, length))
        assert passes(exact, exact, "bf16")
        assert passes(reference.stored(exact, "bf16"), exact, "bf16")
        assert not passes(np.zeros_like(exact), exact, "bf16")


def test_scaled_bf16_is_held_to_the_error_of_rounding(
    rng: np.random.Generator, exact: reference.Float64
) -> None:
    """Whatever that is: mantissas near 1 round worse than those near 2, answers in bf16 not at all."""
    signs = np.sign(exact)
    for answer, typical in ((exact, 1.7e-3), (signs * 1.01, 2.2e-3), (signs * 1.98, 1.1e-3)):
        answer = answer * (1 + 0.01 * rng.uniform(-1, 1, exact.shape))
        rounding = reference.stored(answer, "bf16") - answer
        assert np.linalg.norm(rounding) == pytest.approx(typical * np.linalg.norm(answer), rel=0.2)
        assert passes(answer + 1.2 * rounding, answer, "bf16")
        assert not passes(answer + 1.5 * rounding, answer, "bf16")
    held = reference.stored(exact, "bf16")
    noise = rng.standard_normal(exact.shape)
    noise *= np.linalg.norm(held) / np.linalg.norm(noise)
    assert passes(held + 1.1e-3 * noise, held, "bf16")
    assert not passes(held + 1.6e-3 * noise, held, "bf16")


def test_scaled_fp16_is_held_to_one_figure(rng: np.random.Generator, exact: reference.Float64) -> None:
    noise = rng.standard_normal(exact.shape)
    noise *= np.linalg.norm(exact) / np.linalg.norm(noise)
    for order in (2, 3, 4):
        assert passes(exact + 1.1e-3 * noise, exact, "fp16", order)
        assert not passes(exact + 1.6e-3 * noise, exact, "fp16", order)
        assert not passes(reference.stored(exact, "bf16"), exact, "fp16", order)


def test_a_scaled_row_cannot_hide_behind_rows_that_round_worse(
    rng: np.random.Generator, exact: reference.Float64
) -> None:
    """Its own rounding is its measure: with mantissas near 2 half of what the others, near 1, cost."""
    exact = np.sign(exact) * (1.01 + 0.01 * rng.uniform(-1, 1, exact.shape))
    exact[3, 2] *= 1.95
    out = reference.stored(exact, "bf16")
    assert passes(out, exact, "bf16")
    out[3, 2] = exact[3, 2] * (1 + 2.1e-3)
    assert np.linalg.norm(out - exact) < 1.25 * np.linalg.norm(reference.stored(exact, "bf16") - exact)
    assert not passes(out, exact, "bf16")


def test_other_shapes_fail(exact: reference.Float64) -> None:
    with pytest.raises(AssertionError, match="shape"):
        tolerance.check(exact[..., :-1], exact, "bf16", 4)
    with pytest.raises(AssertionError, match="proves nothing"):
        tolerance.check(exact[:0], exact[:0], "bf16", 4)


def test_a_reference_without_content_is_refused(exact: reference.Float64) -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        tolerance.check(np.zeros_like(exact), np.zeros_like(exact), "bf16", 4)
    broken = exact.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(AssertionError, match="reference itself"):
        tolerance.check(exact, broken, "bf16", 4)


def test_a_channel_of_zeros_must_stay_zero(exact: reference.Float64) -> None:
    exact = exact.copy()
    exact[:, 1] = 0
    tolerance.check(exact, exact, "bf16", 4)
    out = exact.copy()
    out[2, 1, 7] = 1e-30
    with pytest.raises(AssertionError, match=r"row \(2, 1\)"):
        tolerance.check(out, exact, "bf16", 4)


def test_bounds_are_the_designs() -> None:
    assert tolerance.bound("bf16", 3) == pytest.approx(1.5 * 4.1e-3)
    assert tolerance.bound("fp16", 2) == pytest.approx(1.5 * 4.6e-4)
    assert tolerance.bound("bf16", 2, 1_000_000) == pytest.approx(tolerance.bound("bf16", 2), rel=0.005)


@pytest.mark.parametrize("length", [1, 2, 3, 16])
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_reference_is_the_definition(rng: np.random.Generator, mode: str, length: int) -> None:
    """Sums over indices, written out, against the FFT of the reference; L and Lk within the length."""
    for rows, taps in {(length, length), (max(1, length - 1), length), (length, max(1, length // 2))}:
        inputs = cases.draw(rng, (2, 2, rows), taps, "bf16", in_gate=True, out_gate=True, skip=True)
        assert inputs.in_gate is not None
        assert inputs.out_gate is not None
        assert inputs.skip is not None
        expected = np.zeros((2, 2, rows))
        x = inputs.u * inputs.in_gate
        for t in range(rows):
            for s in range(rows):
                lag = t - s if mode == "causal" else (t - s) % length
                if 0 <= lag < taps:
                    expected[..., t] += inputs.k[:, lag] * x[..., s]
        expected = inputs.out_gate * (expected + inputs.skip[:, None] * x)
        got = reference.convolve(inputs.u, inputs.k, mode=mode, length=length, **inputs.options)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_stored_is_idempotent_and_rounds_to_nearest(rng: np.random.Generator) -> None:
    values = rng.standard_normal(1000)
    for dtype, roundoff, least in (("bf16", 2.0**-8, 0.0), ("fp16", 2.0**-11, 2.0**-25)):  # of subnormals
        once = reference.stored(values, dtype)
        assert (reference.stored(once, dtype) == once).all()
        assert (np.abs(once - values) <= roundoff * np.abs(values) + least).all()


def test_a_row_of_a_pair_is_held_to_what_its_transform_makes(rng: np.random.Generator) -> None:
    """Where the filter passes one row and a fifth of its partner, both have the noise of the former."""
    size = np.where(np.arange(5) == 2, 0.2, 1.0)[:, None, None]  # the partner of row 3
    exact = size * rng.standard_normal((5, 3, 1024))
    noise = 6e-4 * rng.standard_normal(exact.shape)
    out = reference.stored(exact + noise, "bf16")

    def verdict(out: reference.Float64, pairs: bool) -> accuracy.Accuracy:
        norm, rounding = (
            np.linalg.norm(x, axis=-1) for x in (exact, reference.stored(exact, "bf16") - exact)
        )
        found = np.linalg.norm(out - exact, axis=-1)
        scale = accuracy.shared(norm).ravel() if pairs else None
        form = ("bf16", 2, "scaled-fp16")
        return accuracy.judge(found.ravel(), norm.ravel(), rounding.ravel(), 1024, *form, scale)

    assert verdict(out, pairs=True).passed
    assert not verdict(out, pairs=False).passed
    assert verdict(out, pairs=False) == accuracy.compare(out, exact, "bf16", 2, "scaled-fp16")
    out[1] *= 1 + 4e-3
    assert not verdict(out, pairs=True).passed


def test_the_weaker_row_of_a_pair_has_the_power_that_both_have_on_average() -> None:
    """Be it the even or the odd one; the stronger one its own, and so has a last one that is alone."""
    norm = np.array([[1.0, 7.0], [7.0, 1.0], [3.0, 2.0]])
    assert accuracy.shared(norm).tolist() == [[5.0, 7.0], [7.0, 5.0], [3.0, 2.0]]


def test_what_is_not_finite_does_not_pass_whatever_was_measured() -> None:
    right = accuracy.Accuracy(overall=0.0, row=0.0, overall_bound=1e-3, row_bound=1e-3, finite=True)
    assert right.passed
    assert str(right).endswith("ok")
    wrong = replace(right, finite=False)
    assert not wrong.passed
    assert str(wrong).endswith("NOT FINITE")

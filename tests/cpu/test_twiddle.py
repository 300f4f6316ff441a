"""Ring 1: the phases of all stages multiply out to the (weighted) DFT, proved without floating point."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
import sympy

from fftgen.planner import twiddle
from fftgen.planner.order import monarch_permutation
from fftgen.planner.search import plan
from fftgen.planner.twiddle import K, R, evaluate, is_whole
from fftgen.problem import Problem

Ring = npt.NDArray[np.int64]  # (..., M): integer coefficients of 1, z, ..., z**(M - 1) with z**M = 1

SMALL = [(2, 3), (3, 4), (4, 4), (2, 3, 4), (4, 3, 2), (3, 3, 3), (2, 3, 2, 2), (4, 2, 3, 2)]


def symbols(order: int) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Radices N_s, time digits n_s and frequency digits k_s of any transform of that order."""
    radices = sympy.symbols(f"N1:{order + 1}", integer=True, positive=True)
    time = sympy.symbols(f"n1:{order + 1}", integer=True, nonnegative=True)
    frequency = sympy.symbols(f"k1:{order + 1}", integer=True, nonnegative=True)
    return radices, time, frequency


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_stages_give_the_dft_for_all_radices_and_digits(order: int, weighted: bool) -> None:
    radices, time, frequency = symbols(order)
    path = twiddle.transform_turns(radices, time, frequency, weighted)
    assert is_whole(path - twiddle.definition_turns(radices, time, frequency, weighted))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_phase_that_is_wrong_anywhere_is_not_accepted(order: int, weighted: bool) -> None:
    radices, time, frequency = symbols(order)
    defined = twiddle.definition_turns(radices, time, frequency, weighted)
    path = twiddle.transform_turns(radices, time, frequency, weighted)
    length = prod(radices)
    wrong = {
        "half a turn": path + sympy.Rational(1, 2),
        "conjugated": -path,
        "natural order of frequencies": twiddle.transform_turns(radices, time, frequency[::-1], weighted),
        "digits of time reversed": twiddle.transform_turns(radices, time[::-1], frequency, weighted),
        "the other weighting": twiddle.transform_turns(radices, time, frequency, not weighted),
        "off by one sample": path - frequency[0] / length,
        "one twiddle missing": path + frequency[0] * time[-1] / length,
        "a weight of one digit missing": path - time[0] / (4 * radices[0]),
    }
    for name, turns in wrong.items():
        assert not is_whole(turns - defined), name


def test_whole_turns_are_integer_polynomials_and_nothing_else() -> None:
    n, m = sympy.symbols("n m", integer=True, nonnegative=True)
    x = sympy.Symbol("x")
    for whole in (sympy.Integer(0), sympy.Integer(-3), n, 2 * n * m - m**2 + 7, n * (m + 1)):
        assert is_whole(whole), whole
    fractions = (
        sympy.Rational(1, 2),
        n / 2,
        n / m,
        1 / n,
        n * sympy.Rational(3, 4),
        n + sympy.Rational(1, 3),
    )
    irregular = (sympy.sqrt(2) * n, sympy.pi, x, n * x, sympy.sqrt(n), 2 ** (-n), sympy.I * n)
    for turns in (*fractions, *irregular):
        assert not is_whole(turns), turns


def exponent(turns: Any, order: int) -> int:
    """Turns as a power of the root of unity of that order; they must be one."""
    scaled = sympy.Rational(turns) * order
    assert scaled.is_Integer, f"{turns} turns are no power of a root of order {order}"
    return int(scaled) % order


def identity(length: int, order: int) -> Ring:
    ring = np.zeros((length, length, order), np.int64)
    ring[np.arange(length), np.arange(length), 0] = 1
    return ring


def along_digit(x: Ring, turns: Any, radix: int, rest: int, order: int, adjoint: bool) -> Ring:
    """A stage's matrix product, row digit k and column digit r, on the first axis of x (N, columns, M)."""
    x = x.reshape(-1, radix, rest, *x.shape[1:])
    out = np.zeros_like(x)
    for k, r in product(range(radix), repeat=2):
        power = exponent(turns.subs({K: k, R: r}), order)
        if adjoint:
            out[:, r] += np.roll(x[:, k], -power, axis=-1)
        else:
            out[:, k] += np.roll(x[:, r], power, axis=-1)
    return out.reshape(-1, *x.shape[3:])


def times_twiddle(x: Ring, turns: Any, radix: int, rest: int, order: int, adjoint: bool) -> Ring:
    x = x.reshape(-1, radix, rest, *x.shape[1:]).copy()
    for k, r in product(range(radix), range(rest)):
        power = exponent(turns.subs({K: k, R: r}), order)
        x[:, k, r] = np.roll(x[:, k, r], -power if adjoint else power, axis=-1)
    return x.reshape(-1, *x.shape[3:])


def forward(x: Ring, factors: Sequence[int], weighted: bool) -> Ring:
    order = x.shape[-1]
    for stage, radix in enumerate(factors, 1):
        rest = prod(factors[stage:])
        x = along_digit(x, twiddle.dft_turns(factors, stage, weighted), radix, rest, order, False)
        if stage < len(factors):
            x = times_twiddle(x, twiddle.twiddle_turns(factors, stage, weighted), radix, rest, order, False)
    return x


def inverse(x: Ring, factors: Sequence[int], weighted: bool) -> Ring:
    order = x.shape[-1]
    for stage in range(len(factors), 0, -1):
        radix, rest = factors[stage - 1], prod(factors[stage:])
        if stage < len(factors):
            x = times_twiddle(x, twiddle.twiddle_turns(factors, stage, weighted), radix, rest, order, True)
        x = along_digit(x, twiddle.dft_turns(factors, stage, weighted), radix, rest, order, True)
    return x


def reduced(x: Ring) -> Ring:
    """Coefficients modulo the cyclotomic polynomial: equal exactly when the complex numbers are equal."""
    order = x.shape[-1]
    divisor = sympy.Poly(sympy.cyclotomic_poly(order, sympy.Symbol("z"))).all_coeffs()[::-1]
    coefficients = np.array([int(c) for c in divisor], np.int64)
    degree = len(coefficients) - 1
    x = x.copy()
    for top in range(order - 1, degree - 1, -1):
        x[..., top - degree : top + 1] -= x[..., top : top + 1] * coefficients
    assert not x[..., degree:].any()
    return x[..., :degree]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factors", SMALL)
def test_the_product_of_stage_matrices_is_the_dft_matrix(factors: tuple[int, ...], weighted: bool) -> None:
    """Entry by entry in the ring of integers with a root of unity: one power of the root, coefficient 1."""
    length = prod(factors)
    order = 4 * length
    got = forward(identity(length, order), factors, weighted)
    frequencies = monarch_permutation(factors)
    expected = np.zeros_like(got)
    for position, n in product(range(length), repeat=2):
        turns = Fraction(-int(frequencies[position]) * n, length) + weighted * Fraction(n, 4 * length)
        expected[position, n, int(turns * order) % order] = 1
    assert (got == expected).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factors", [(2, 3), (4, 3), (2, 3, 2), (2, 3, 2, 2)])
def test_conjugated_stages_backwards_give_n_times_the_identity(
    factors: tuple[int, ...], weighted: bool
) -> None:
    length = prod(factors)
    start = identity(length, 4 * length)
    round_trip = inverse(forward(start, factors, weighted), factors, weighted)
    assert (reduced(round_trip) == reduced(length * start)).all()
    assert (round_trip != length * start).any()  # the roots of unity cancel only by their relations


@pytest.mark.parametrize("factors", [(2, 3), (4, 3, 2)])
def test_right_angle_convolution_holds_exactly(factors: tuple[int, ...]) -> None:
    """The weighted transform of two integer signals, multiplied and taken back: Re = head, Im = tail."""
    length = prod(factors)
    order = 4 * length
    rng = np.random.default_rng(7)
    u, k = rng.integers(-9, 10, (2, length))
    spectra = []
    for signal in (u, k):
        ring = np.zeros((length, 1, order), np.int64)
        ring[:, 0, 0] = signal
        spectra.append(forward(ring, factors, True)[:, 0])
    multiplied = np.zeros((length, 1, order), np.int64)
    for e in range(order):
        multiplied[:, 0] += np.roll(spectra[1], e, axis=-1) * spectra[0][:, e : e + 1]
    got = reduced(inverse(multiplied, factors, True)[:, 0])
    linear = np.convolve(u, k)
    expected = np.zeros((length, order), np.int64)
    expected[:, 0] = length * linear[:length]
    expected[: length - 1, length] = length * linear[length:]  # z**N is i: a quarter turn
    assert (got == reduced(expected)).all()


@pytest.mark.parametrize("length", [1, 256, 1026, 4096, 20000, 32768, 100000, 3000000, 4194304])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_scales_and_residual_give_one_over_n(mode: str, length: int) -> None:
    """To the last places; and no stage lets white noise grow or shrink by more than 3 dB.

    A right-angle transform's alone by no more than 1.5 dB.
    """
    found = plan(Problem(mode, length, "fp16"), "sm_90")
    power = Fraction(1)  # of white noise
    for stage in found.stages:
        grown = stage.radix * Fraction(stage.scale) ** 2
        power *= grown
        assert 1 / 2 <= (grown**2 if found.real_input else power) <= 2
    assert abs(Fraction(found.unscaled) * power - 1) < 2.0**-50


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factors", [(16, 16), (80, 16, 80), (96, 112, 16), (64, 64, 32, 32)])
def test_evaluation_is_right_to_the_last_places(
    rng: np.random.Generator, factors: tuple[int, ...], weighted: bool
) -> None:
    """Against 60-digit arithmetic: real and imaginary part within two units in their last place."""
    k = rng.integers(0, factors[0], 100)
    columns = {"dft": factors[0], "twiddle": prod(factors[1:])}
    for name, turns in (
        ("dft", twiddle.dft_turns(factors, 1, weighted)),
        ("twiddle", twiddle.twiddle_turns(factors, 1, weighted)),
    ):
        r = rng.integers(0, columns[name], 100)
        r[0] = columns[name] - 1
        with mpmath.workdps(60):
            for row, column, got in zip(k.tolist(), r.tolist(), evaluate(turns, k, r), strict=True):
                exact = sympy.Rational(turns.subs({K: row, R: column}))
                value = mpmath.expjpi(2 * mpmath.mpf(int(exact.p)) / int(exact.q))
                for mine, true in ((got.real, value.real), (got.imag, value.imag)):
                    error = abs(mpmath.mpf(float(mine)) - true)
                    assert error <= 2 * np.spacing(abs(float(mine))), (name, row, column, mine, true)


@pytest.mark.parametrize("times", [1, 3, 100, 2**19])
def test_multiples_of_an_eighth_turn_are_exact(times: int) -> None:
    root = np.sqrt(0.5)
    circle = [1, root + root * 1j, 1j, -root + root * 1j, -1, -root - root * 1j, -1j, root - root * 1j]
    got = evaluate(K * R / sympy.Integer(8 * times), np.arange(-16, 16), times)
    assert got.tolist() == [complex(circle[n % 8]) for n in range(-16, 16)]
    assert not np.signbit(got[got.real == 0].real).any()
    assert not np.signbit(got[got.imag == 0].imag).any()


@pytest.mark.parametrize("length", [48, 80, 1000, 4096])
def test_the_circle_is_symmetric_bit_for_bit(length: int) -> None:
    """Conjugates, opposite points and points mirrored at 45 degrees carry the same significands."""
    phase = np.arange(length)
    turns = K * R / sympy.Integer(length)
    points = evaluate(turns, phase, 1)
    assert (points[-phase % length] == points.conj()).all()
    half = evaluate(turns + sympy.Rational(1, 2), phase, 1)
    assert (half == -points).all()
    mirrored = evaluate(sympy.Rational(1, 4) - turns, phase, 1)
    assert (mirrored.real == points.imag).all()
    assert (mirrored.imag == points.real).all()


def test_phases_are_reduced_before_they_become_floating_point() -> None:
    """A large multiple of a turn changes nothing: sin and cos never see a large argument."""
    length = 4194304
    turns = -K * R / sympy.Integer(length)
    k = np.array([1, 77, 4194303])
    near = evaluate(turns, k, 12345)
    far = evaluate(turns, k + length * np.array([1, 5, 9]), 12345 + 3 * length)
    assert (near == far).all()

"""Exact roots of unity: the phases of every stage as SymPy expressions, evaluated once, at the end.

A phase is counted in *turns* (1 turn = 2*pi): a polynomial in integer digits with rational
coefficients, so two phases are equal when their difference is an integer polynomial. The right-angle
weight w_n = exp(i*pi*n/(2N)) is n/(4N) turns; it is linear in n and therefore splits over the digits
(design 1.4): digit 1 carries its share in the columns of its DFT matrix, everything below digit 1
carries it in the twiddle after stage 1, and the inner DFT matrices stay pure and symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

K, R = sympy.symbols("k r", integer=True, nonnegative=True)


def rest_after(factors: Sequence[Any], stage: int) -> Any:
    """M_s: what remains of the length after stage ``stage`` (1-based; 0 gives N)."""
    return prod(factors[stage:])


def dft_turns(factors: Sequence[Any], stage: int, weighted: bool) -> sympy.Expr:
    """Phase of entry (k, r) of the DFT matrix of a stage (design 1.2 step 1; r is the time digit)."""
    turns = -K * R / sympy.sympify(factors[stage - 1])
    if weighted and stage == 1:
        turns += R * sympy.sympify(rest_after(factors, 1)) / (4 * sympy.sympify(prod(factors)))
    return turns


def twiddle_turns(factors: Sequence[Any], stage: int, weighted: bool) -> sympy.Expr:
    """Phase of the twiddle at (k_s, r_s) after a stage (design 1.2 step 2), with the folded weight."""
    turns = -K * R / sympy.sympify(rest_after(factors, stage - 1))
    if weighted and stage == 1:
        turns += R / (4 * sympy.sympify(prod(factors)))
    return turns


def transform_turns(
    factors: Sequence[Any], time: Sequence[Any], frequency: Sequence[Any], weighted: bool
) -> sympy.Expr:
    """Total phase on the path from time digits to frequency digits through all stages."""
    total = sympy.Integer(0)
    for stage in range(1, len(factors) + 1):
        below = sum(
            (n * rest_after(factors, s + 1) for s, n in enumerate(time) if s >= stage), sympy.Integer(0)
        )
        total += dft_turns(factors, stage, weighted).subs(
            {K: frequency[stage - 1], R: time[stage - 1]}, simultaneous=True
        )
        if stage < len(factors):
            total += twiddle_turns(factors, stage, weighted).subs(
                {K: frequency[stage - 1], R: below}, simultaneous=True
            )
    return sympy.expand(total)


def definition_turns(
    factors: Sequence[Any], time: Sequence[Any], frequency: Sequence[Any], weighted: bool
) -> sympy.Expr:
    """Phase of the (weighted) DFT by definition: -k*n/N [+ n/(4N)], digits as in design 1.2."""
    length = sympy.sympify(prod(factors))
    n = sum((d * rest_after(factors, s + 1) for s, d in enumerate(time)), sympy.Integer(0))
    k = sum((d * prod(factors[:s]) for s, d in enumerate(frequency)), sympy.Integer(0))
    return sympy.expand(-k * n / length + (n / (4 * length) if weighted else 0))


def is_whole(turns: sympy.Expr) -> bool:
    """Whether a phase is a whole number of turns for all integer digits: an integer polynomial."""
    terms = sympy.Add.make_args(sympy.expand(turns))
    return all(
        coefficient.is_Integer and all(f.is_integer and f.as_base_exp()[1].is_nonnegative for f in rest)
        for coefficient, rest in (term.as_coeff_mul() for term in terms)
    )


def evaluate(turns: sympy.Expr, k: npt.ArrayLike, r: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """exp(2*pi*i*turns) at integer arrays k and r (broadcast), rounded once from exact arguments.

    The phase is reduced to an integer fraction of a turn in integer arithmetic and to the first octant
    before the only floating-point step, so multiples of an eighth turn come out exact and symmetric.
    """
    numerator, denominator = sympy.fraction(sympy.together(turns))
    polynomial = sympy.Poly(numerator, K, R)
    scale = lcm(*(int(sympy.Rational(c).q) for c in polynomial.coeffs()))
    whole = int(denominator * scale)
    k64, r64 = np.broadcast_arrays(np.asarray(k, np.int64), np.asarray(r, np.int64))
    phase = np.zeros(k64.shape, np.int64)
    for (pk, pr), coefficient in polynomial.terms():
        # Every factor is below 2**24 here, so a product of three stays inside 63 bits after reduction.
        term = np.full(k64.shape, int(coefficient * scale) % whole, np.int64)
        for _ in range(pk):
            term = term * (k64 % whole) % whole
        for _ in range(pr):
            term = term * (r64 % whole) % whole
        phase = (phase + term) % whole
    return _unit(phase, whole)


def _unit(phase: npt.NDArray[np.int64], whole: int) -> npt.NDArray[np.complex128]:
    """exp(2*pi*i*phase/whole) for 0 <= phase < whole."""
    octant, rest = np.divmod(8 * phase, whole)
    flip = octant % 2 == 1  # measure odd octants backwards from the next eighth turn
    angle = np.where(flip, whole - rest, rest) * (np.pi / (4 * whole))
    cosine, sine = np.cos(angle), np.sin(angle)
    exact = np.where(flip, whole - rest, rest) == whole  # never reached by an even octant
    cosine = np.where(exact, np.sqrt(0.5), cosine)
    sine = np.where(exact, np.sqrt(0.5), sine)
    quarter = ((octant + 1) // 2) % 4
    sine = np.where(flip, -sine, sine)
    turn = np.array([1, 1j, -1, -1j])[quarter]
    return np.asarray(turn * (cosine + 1j * sine) + 0.0)

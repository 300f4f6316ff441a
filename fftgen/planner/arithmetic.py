"""What a number is worth on its way through a plan: exactly, or as the kernels of each engine round it.

*Exact* computes in float64 from the exact tables: what the plan means. The others round where the kernels of
the plan's engine and compute format round:

- *Rounded* (operands in the storage type, fp32 sums) reads the plan's own table block, as a kernel does.
  Gated input, matrices, every stage's result and the spectrum are in the storage type; products, twiddles
  and scales in fp32. Rows of fp16 are scaled as below.
- *Single* ("simt") keeps everything in fp32. Its DFTs are sums of products, the kernels' quick ones.
- *Mixed* ("bf16-fp32" of the "mma" engine) has bf16 operands, fp32 sums, fp16 twiddles and spectrum.
- *Scaled* ("scaled-fp16", design 1.8) brings every gated row to [1, 2) by a power of two and keeps everything
  in fp16 until the last stage, products with twiddles and spectrum, the sums before a stage by halves and
  those of butterflies included. Of a pair of rows, the one with the smaller norm then is raised and the other
  lowered to within a sixteenth of each other: their transform's noise falls on both alike.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import decode, dtype, encode
from fftgen.planner import tables
from fftgen.planner.butterflies import butterflies, fp16, from_parts, halves
from fftgen.planner.plan import SIMT, TILE, Plan, Stage, Table

Real = npt.NDArray[np.floating[Any]]
Complex = npt.NDArray[np.complexfloating[Any, Any]]


class Exact:
    """float64 throughout: nothing is rounded to the storage type."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def store(self, values: Complex) -> Complex:
        """What is left of values after a trip through storage: here all of it."""
        return values

    def store_real(self, values: Real) -> Real:
        return values

    def spectrum(self, values: Complex) -> Complex:
        """A filter's spectrum as it is kept."""
        return self.store(values)

    def wide(self, values: npt.ArrayLike) -> Real:
        """Real numbers in the precision of the accumulators."""
        return np.asarray(values, np.float64)

    def operands(self, u: Real, gate: Real | None) -> tuple[Real, Real]:
        """Gated rows (B, H, L) as the first stage takes them, and what undoes their scaling (B, H, 1)."""
        return (u if gate is None else u * gate), np.ones((*u.shape[:2], 1))

    def twist(self, z: Complex, table: Complex) -> Complex:
        """Results of a stage times twiddles or a spectrum, element by element, into storage."""
        return z * table

    def matrix(self, number: int) -> Complex:
        """The scaled and weighted DFT matrix of a stage, (radix, radix)."""
        return tables.dft_matrix(self.plan, number)

    def forward(self, number: int, z: Real | Complex) -> Complex:
        """The product of a stage's matrix with its digit: (anything, radix, rest), rest the fastest."""
        return along_digit(self.matrix(number), z, self.plan.stages[number - 1])

    def adjoint(self, number: int) -> Complex:
        """Its conjugate transpose, for the inverse."""
        return np.asarray(self.matrix(number).conj().T)

    def backward(self, number: int, z: Complex) -> Complex:
        """The product of that with the digit, as ``forward``."""
        return along_digit(self.adjoint(number), z, self.plan.stages[number - 1])

    def twiddle(self, number: int) -> Complex:
        """T(k, r) of a stage, (radix, rest), as the product of the two levels where there are two."""
        stage = self.plan.stages[number - 1]
        low = tables.twiddles(self.plan, number, np.arange(stage.split))
        high = tables.twiddles(self.plan, number, np.arange(0, stage.rest, stage.split))
        return _two_levels(high, low)


class _Wide(Exact):
    """Accumulators in fp32."""

    def wide(self, values: npt.ArrayLike) -> Real:
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(np.float32)


class Single(_Wide):
    """The "simt" kernels' arithmetic: fp32 throughout."""

    def store(self, values: Complex) -> Complex:
        return np.asarray(values, np.complex64)

    def store_real(self, values: Real) -> Real:
        return self.wide(values)

    def operands(self, u: Real, gate: Real | None) -> tuple[Real, Real]:
        x = self.wide(u)
        return (x if gate is None else x * self.wide(gate)), np.ones((*u.shape[:2], 1), np.float32)

    def matrix(self, number: int) -> Complex:
        return self.store(super().matrix(number))

    def twiddle(self, number: int) -> Complex:
        return self.store(super().twiddle(number))


class _Stored(_Wide):
    """Operands in the storage type, and in fp32 what they are summed and multiplied in."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.dtype = dtype(plan.problem.dtype)

    def store(self, values: Complex) -> Complex:
        parts = np.ascontiguousarray(values, np.complex64).view(np.float32)
        return decode(encode(parts, self.dtype), self.dtype).view(np.complex64)

    def store_real(self, values: Real) -> Real:
        return decode(encode(values, self.dtype), self.dtype)

    def operands(self, u: Real, gate: Real | None) -> tuple[Real, Real]:
        x = self.store_real(u)
        if gate is not None:
            x = self.store_real(self.wide(x) * self.wide(self.store_real(gate)))
        return self.wide(x), np.ones((*u.shape[:2], 1), np.float32)

    def twist(self, z: Complex, table: Complex) -> Complex:
        return self.store(z * table)


class Rounded(_Stored):
    """The "wmma" kernels' arithmetic: operands in the storage type, twiddles and scales in fp32.

    Rows of fp16 are scaled, and rounded once.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.block = _table_block(plan)

    def operands(self, u: Real, gate: Real | None) -> tuple[Real, Real]:
        if not self.plan.scaled:
            return super().operands(u, gate)
        x, power, factor, down = scaled(self.plan, u, gate)
        return fp16(x * (power * factor)), down

    def matrix(self, number: int) -> Complex:
        real, imaginary, _ = self._planes(number)
        return np.asarray(real + np.complex64(1j) * imaginary)

    def adjoint(self, number: int) -> Complex:
        real, _, minus = self._planes(number)
        return np.asarray((real + np.complex64(1j) * minus).T)

    def twiddle(self, number: int) -> Complex:
        stage = self.plan.stages[number - 1]
        low = self._read(self.plan.table("low", number), np.complex64)
        if stage.split == stage.rest:
            return low
        return _two_levels(self._read(self.plan.table("high", number), np.complex64), low)

    def _planes(self, number: int) -> npt.NDArray[np.float32]:
        planes = self._read(self.plan.table("dft", number), np.uint16)
        return decode(planes, self.dtype)[:, :, : self.plan.stages[number - 1].radix]

    def _read(self, table: Table, element: type[np.generic]) -> npt.NDArray[Any]:
        raw = self.block[table.offset : table.offset + table.nbytes]
        return np.frombuffer(raw, element).reshape(table.shape)


class Mixed(_Stored):
    """The "bf16-fp32" kernels' arithmetic on the "mma" engine: twiddles and spectrum in fp16."""

    def spectrum(self, values: Complex) -> Complex:
        return from_parts(fp16(values.real), fp16(values.imag))

    def matrix(self, number: int) -> Complex:
        return self.store(super().matrix(number))

    def twiddle(self, number: int) -> Complex:
        exact = super().twiddle(number)
        return from_parts(fp16(exact.real), fp16(exact.imag))


class Scaled(_Wide):
    """The "scaled-fp16" kernels' arithmetic: scaled rows, in fp16 until the sums of the last stage.

    A sum is rounded once here. The kernels round those that they keep in fp16 after every 16 products, too.
    """

    def store(self, values: Complex) -> Complex:
        return halves(values)

    def store_real(self, values: Real) -> Real:
        kind = dtype(self.plan.problem.dtype)
        return decode(encode(values, kind), kind)

    def operands(self, u: Real, gate: Real | None) -> tuple[Real, Real]:
        """Scaled by the power of two, and once more where rows of a pair are brought to like norms."""
        x, power, factor, down = scaled(self.plan, u, gate)
        return fp16(fp16(x * power) * factor), down

    def twist(self, z: Complex, table: Complex) -> Complex:
        """One product rounded, the other inside an FMA: twist in templates/device/scaled.cuh."""
        x = self.store(z)
        real = fp16(_float64(x.real) * table.real - fp16(_float64(x.imag) * table.imag))
        imaginary = fp16(_float64(x.imag) * table.real + fp16(_float64(x.real) * table.imag))
        return from_parts(real, imaginary)

    def matrix(self, number: int) -> Complex:
        return self.store(super().matrix(number))

    def forward(self, number: int, z: Real | Complex) -> Complex:
        """By halves (Stage.halves) sums and differences are rounded before the product; where butterflies
        follow, products before them."""
        stage = self.plan.stages[number - 1]
        if (apart := stage.butterflies) > 1:
            x = self.store(np.asarray(z, np.complex64)).reshape(-1, TILE, apart, stage.rest)
            matrix = self.matrix(number)[:TILE].reshape(TILE, TILE, apart)
            parts = [self.store(matrix[:, :, b] @ x[:, :, b]) for b in range(apart)]
            return np.concatenate(butterflies(parts, inverse=False), axis=1)
        if not stage.halves:
            return super().forward(number, z)
        half = stage.radix // 2
        stored = self.store(np.asarray(z, np.complex64)).reshape(-1, stage.radix, stage.rest)
        one, other = stored[:, :half], stored[:, half:]
        matrix = self.matrix(number)[:, :half]
        product = np.empty(stored.shape, np.result_type(matrix, stored))
        product[:, 0::2] = matrix[0::2] @ self.store(one + other)
        product[:, 1::2] = matrix[1::2] @ self.store(one - other)
        return product

    def backward(self, number: int, z: Complex) -> Complex:
        """Butterflies come before the product, as the kernels take them."""
        stage = self.plan.stages[number - 1]
        if (apart := stage.butterflies) == 1:
            return super().backward(number, z)
        x = self.store(z).reshape(-1, apart, TILE, stage.rest)
        parts = butterflies([x[:, d] for d in range(apart)], inverse=True)
        matrix = self.matrix(number)[:TILE].reshape(TILE, TILE, apart)
        found = [matrix[:, :, b].conj().T @ part for b, part in enumerate(parts)]
        return np.stack(found, axis=2).reshape(-1, stage.radix, stage.rest)

    def twiddle(self, number: int) -> Complex:
        return self.store(super().twiddle(number))


def scaled(plan: Plan, u: Real, gate: Real | None) -> tuple[Real, Real, Real, Real]:
    """Gated rows (B, H, L) in fp32; and (B, H, 1) of each: the power of two that brings it to [1, 2), what
    brings the rows of a pair to like norms, and what undoes both.

    The gated product stays in fp32. A row that is not finite goes in as zeros, comes out as NaN. Zeros come
    out as zeros: the noise of the row that shares their transform must not show.
    """
    kind = dtype(plan.problem.dtype)
    x = decode(encode(u, kind), kind)
    if gate is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            x = x * decode(encode(gate, kind), kind)
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    x = np.where(finite, x, np.float32(0))
    peak = np.abs(x).max(axis=-1, keepdims=True)
    _, exponent = np.frexp(peak)
    shift = np.clip(exponent - 1, -126, 126)  # both 2**shift and 2**-shift are normal numbers
    power = np.ldexp(np.float32(1), -shift)
    factor = np.ones_like(power) if plan.real_input else balance(fp16(x * power))
    down = np.where(peak == 0, np.float32(0), np.ldexp(np.float32(1), shift) / factor)
    return x, power, factor, np.where(finite, down, np.float32("nan"))


def balance(scaled: Real) -> npt.NDArray[np.float32]:
    """By what rows of pairs are multiplied: (B, H, L) scaled to their peaks -> (B, H, 1).

    Of the norms of a pair (2 b, 2 b + 1) the smaller one is raised by a power of two, to at most the larger
    one, and that one is lowered to it, by the nearest number of four binary places in [1/2, 1]. If both are
    below 4, the smaller one takes the power of two nearest to their ratio, and the other 1, as do an odd last
    row and rows beside zeros. The kernels' sums of squares are off by some hundredths, so near the middle
    between two numbers they may choose the other one.
    """
    norm = np.linalg.norm(_float64(scaled), axis=-1, keepdims=True)
    partner = np.zeros_like(norm)
    even = len(norm) // 2 * 2
    partner[0:even:2], partner[1:even:2] = norm[1:even:2], norm[0:even:2]
    known = (norm > 0) & (partner > 0)
    ratio = np.where(known, partner, 1) / np.where(known, norm, 1)
    apart = np.maximum(ratio, 1 / ratio)
    many = np.maximum(norm, partner) >= 4
    power = np.exp2(np.where(many, np.floor(np.log2(apart)), np.rint(np.log2(apart))))
    lower = np.where(many, np.floor(16 * power / apart + 0.5) / 16, 1)
    return np.where(ratio > 1, power, lower).astype(np.float32)


def arithmetic(plan: Plan, rounded: bool) -> Exact:
    """Exact, or that of the plan's kernels."""
    if not rounded:
        return Exact(plan)
    if plan.engine == SIMT:
        return Single(plan)
    if plan.engine == "wmma":
        return Rounded(plan)
    return Scaled(plan) if plan.scaled else Mixed(plan)


def _float64(values: Real) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64)


def along_digit(matrix: Complex, z: Real | Complex, stage: Stage) -> Complex:
    """Multiply along the digit of a stage: (anything, radix, rest), rest the fastest."""
    if stage.rest == 1:
        rows = z.reshape(-1, stage.radix) @ matrix.T
        return np.asarray(rows.reshape(-1, stage.radix, 1))
    return np.asarray(matrix @ z.reshape(-1, stage.radix, stage.rest))


def _two_levels(high: Complex, low: Complex) -> Complex:
    """T(k, r) = high(k, r // split) * low(k, r % split): (radix, rest)."""
    table = high[:, :, None] * low[:, None, :]
    return np.asarray(table.reshape(high.shape[0], -1))


@lru_cache(maxsize=8)
def _table_block(plan: Plan) -> bytes:
    return tables.build(plan)

"""A causal convolution and its gradients with a kernel's roundings, from design 1.2 to 1.5 alone.

Right-angle transforms of order p in NumPy: DFT matrices and every stage's result rounded to the storage
type, products and twiddles wide. Written from the equations, without the planner, to measure what
fftgen/gradient_accuracy.py derives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fftgen.dtypes import decode, dtype, encode

Complex = npt.NDArray[np.complex128]


class Transform:
    """T = F diag(w) on (B, N) for factors N_1 ... N_p, unitary, in the storage type ``kind`` or exact."""

    def __init__(self, factors: Sequence[int], kind: str, *, rounded: bool = True) -> None:
        self.kind = dtype(kind)
        self.factors, self.rounded = factors, rounded
        self.n = math.prod(factors)
        self.stages: list[tuple[Complex, Complex]] = []
        whole = self.n
        for s, radix in enumerate(factors):
            rest = whole // radix
            k, m = np.arange(radix)[:, None], np.arange(radix)
            matrix = np.exp(-2j * np.pi * k * m / radix) / math.sqrt(radix)
            r = np.arange(rest)
            twiddle = np.exp(-2j * np.pi * k * r / whole)
            if s == 0:  # the weights exp(i pi n / 2N): digit 1 on the matrix, the rest on the twiddle
                matrix = matrix * np.exp(0.5j * np.pi * m * rest / self.n)
                twiddle = twiddle * np.exp(0.5j * np.pi * r / self.n)
            self.stages.append((self.store(matrix), twiddle))
            whole = rest

    def store(self, z: npt.NDArray[Any]) -> Complex:
        if not self.rounded:
            return np.asarray(z, np.complex128)
        parts = np.ascontiguousarray(z, np.complex128).view(np.float64)
        return decode(encode(parts, self.kind), self.kind).astype(np.float64).view(np.complex128)

    def forward(self, x: npt.NDArray[Any]) -> Complex:
        """To Monarch order; the last result is still wide."""
        z = x.astype(np.complex128)
        for s, (matrix, twiddle) in enumerate(self.stages):
            z = z.reshape(len(x), -1, *twiddle.shape)
            z = np.einsum("kn,bpnr->bpkr", matrix, z, optimize=True)
            if s < len(self.stages) - 1:
                z = self.store(z * twiddle)
        return np.asarray(z.reshape(len(x), self.n))

    def inverse(self, z: Complex) -> npt.NDArray[np.float64]:
        """Real parts of what ``forward`` came from; z as stored."""
        rows = len(z)
        for s in reversed(range(len(self.stages))):
            matrix, twiddle = self.stages[s]
            z = np.einsum("kn,bpkr->bpnr", matrix.conj(), z.reshape(rows, -1, *twiddle.shape), optimize=True)
            if s:
                before = self.stages[s - 1][1]
                z = self.store(z.reshape(rows, -1, *before.shape) * before.conj())
        return np.asarray(z.reshape(rows, self.n).real)

    def round(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return decode(encode(x, self.kind), self.kind).astype(np.float64)

    def spectrum(self, k: npt.NDArray[np.float64]) -> Complex:
        """T k, exact, in Monarch order, stored; k (N,). Scaled so that fp16 holds it."""
        exact = Transform(self.factors, self.kind.name, rounded=False)
        return self.store(exact.forward(k[None])[0] * math.sqrt(self.n))

    def convolve(
        self, u: npt.NDArray[np.float64], k: npt.NDArray[np.float64], *, adjoint: bool = False
    ) -> npt.NDArray[np.float64]:
        """u (B, N) with k (N,), or the correlation, rounded like a kernel's result."""
        response = self.spectrum(k)
        response = response.conj() if adjoint else response
        return self.round(self.inverse(self.store(self.forward(u) * response)))

    def correlate(self, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum over rows of v correlated with u, (N,): a filter's gradient, wide at the end."""
        product = np.sum(self.forward(u).conj() * self.forward(v), axis=0)
        power = 2.0 ** -math.ceil(math.log2(np.abs(product).max()))
        found: npt.NDArray[np.float64] = self.inverse(self.store(product * power)[None])[0]
        return found * math.sqrt(self.n) / power

"""Circular convolution of any period through a right-angle transform: its filter alone brings it about.

A right-angle transform of M points multiplies polynomials modulo ``x^M = i`` (design 1.3): what runs beyond
the end comes back times i. For a period N <= M and real taps k_0 .. k_{N-1}, take the complex filter

    c_n = k_n [n < N]  -  i k_{n-(M-N)} [n > M-N]

Tap m >= 1 stands at m and, times -i, at m + M - N. With a real signal u_t, t < N, the first lands at m + t in
the real part while that is below M, the second at m + t - N, times -i i = 1, once m + t >= N: together the
circular convolution. All else (the first beyond the end, the second before it) is imaginary, so

    Re z_j = sum_t k_{(j-t) mod N} u_t,  j < N,      z = T^-1 diag(T c) T u

and the kernels are those of a causal convolution: real numbers in, real numbers out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def folded(
    taps: npt.NDArray[np.float64], period: int, transform: int
) -> npt.NDArray[np.complexfloating[Any]]:
    """c (H, M) of real taps k (H, Lk), Lk <= ``period`` <= ``transform``: complex128, M = ``transform``."""
    count = taps.shape[-1]
    c = np.zeros((*taps.shape[:-1], transform), np.complex128)
    late = transform - period
    c.real[..., :count] = taps
    c.imag[..., late + 1 : late + count] = -taps[..., 1:]
    return c

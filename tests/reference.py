"""What a convolution should give: float64, from the definition and NumPy's FFT, without the planner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftgen import dtypes

Float64 = npt.NDArray[np.float64]


def stored(values: npt.ArrayLike, dtype: str) -> Float64:
    """Values as the storage type holds them (design 3.2: references start from rounded inputs)."""
    kind = dtypes.dtype(dtype)
    return dtypes.decode(dtypes.encode(values, kind), kind).astype(np.float64)


def convolve(
    u: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    mode: str,
    length: int,
    in_gate: npt.ArrayLike | None = None,
    out_gate: npt.ArrayLike | None = None,
    skip: npt.ArrayLike | None = None,
) -> Float64:
    """``out_gate * (conv(x, k) + skip * x)`` with ``x = in_gate * u``; u (B, H, L), k (H, Lk), skip (H,).

    ``mode`` "causal": the first L values of the linear convolution; "circular": the first L values of the
    circular one of ``length`` >= L, Lk.
    """
    x = np.asarray(u, np.float64)
    if in_gate is not None:
        x = x * np.asarray(in_gate, np.float64)
    taps = np.asarray(k, np.float64)
    linear = _linear(x, taps)
    rows = x.shape[-1]
    if mode == "circular":
        assert max(rows, taps.shape[-1]) <= length, "a circular reference takes no more than its length"
        linear = np.concatenate([linear, np.zeros((*linear.shape[:-1], 2 * length))], axis=-1)
        y = (linear[..., :length] + linear[..., length : 2 * length])[..., :rows]
    else:
        assert mode == "causal", mode
        y = linear[..., :rows]
    if skip is not None:
        y = y + np.asarray(skip, np.float64)[:, None] * x
    if out_gate is not None:
        y = y * np.asarray(out_gate, np.float64)
    return np.ascontiguousarray(y)


def _linear(x: Float64, taps: Float64) -> Float64:
    """The whole linear convolution, L + Lk - 1 long."""
    whole = x.shape[-1] + taps.shape[-1] - 1
    padded = max(2, 1 << (whole - 1).bit_length())
    product = np.fft.rfft(x, padded, axis=-1) * np.fft.rfft(taps, padded, axis=-1)
    return np.asarray(np.fft.irfft(product, padded, axis=-1)[..., :whole])

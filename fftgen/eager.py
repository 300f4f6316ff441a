"""The same convolutions through ``torch.fft``: for CPU and meta tensors, and as a yardstick.

Differentiable PyTorch operations throughout, so gradients, ``torch.compile`` and meta tensors work.
Arithmetic is in float32 (float64 for float64 inputs); the result is rounded to the input's dtype once,
and the gated input to that dtype as the kernels round it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(
    u: Tensor,
    k: Tensor,
    *,
    mode: str,
    length: int,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """``out_gate * (conv(in_gate * u, k) + skip * in_gate * u)``; see ``fftgen.get_conv``.

    u, gates (B, H, L); k (H, Lk); skip (H,). ``mode`` "circular" uses transforms of ``length``;
    "causal" is the linear convolution cut to L. Returns (B, H, L) in ``u``'s dtype.
    """
    steps = u.shape[-1]
    x = u if in_gate is None else u * in_gate
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    signal, taps = x.to(wide), k.to(wide)
    if mode == "causal":
        taps = taps[..., :steps]  # later taps meet no input: nothing leaks from beyond the end
        points = steps + taps.shape[-1]
    else:
        points = length
    if signal.numel() == 0:
        y = signal * taps.sum()  # FFT libraries refuse an empty batch; every argument still has a gradient
    else:
        y = torch.fft.irfft(torch.fft.rfft(signal, n=points) * torch.fft.rfft(taps, n=points), n=points)
        y = y[..., :steps]
    if skip is not None:
        y = y + skip.to(wide)[:, None] * signal
    if out_gate is not None:
        y = y * out_gate.to(wide)
    out: Tensor = y.to(u.dtype)
    return out

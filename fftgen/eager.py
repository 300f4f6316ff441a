"""The same convolutions through ``torch.fft``: what the operators do on CPU tensors, and a yardstick.

Arithmetic is in float32 (float64 for float64 inputs), the gated input's too, which keeps the accuracy that
every engine promises (accuracy.py); a result is rounded to the input's dtype once. Like the kernels, rows and
filters are scaled by powers of two where sums on the way would be too large.

Conjugates are made, not marked: under torch.compile an operator may run where PyTorch's lazy ``conj()``
is ignored (its dispatch key is excluded), and the product would silently be the unconjugated one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """The precision of arithmetic on a signal, and of a filter's gradient."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def fast_length(points: int) -> int:
    """The smallest 2**a 3**b 5**c >= points, a length that FFT libraries like."""
    best = 1 << (points - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            best = min(best, three << max(0, -(-points // three) - 1).bit_length())
            three *= 3
        five *= 5
    return best


def convolve(
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    *,
    mode: str,
    length: int,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """``out_gate * (conv(x, k) + corr(x, k_rev) + skip * x)`` with ``x = in_gate * u``.

    u, gates (B, H, L); k, k_rev (H, Lk), either may be absent; skip (H,). Tap j of k reaches j steps
    forward, tap j of k_rev j steps back. ``mode`` "circular" wraps at ``length``; "causal" is linear and
    cut to L. Returns a contiguous (B, H, L) of ``u``'s dtype.
    """
    return _by_gates(u, k, k_rev, mode, length, in_gate, (out_gate,), skip)[0]


def convolve_both(
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None,
    *,
    mode: str,
    length: int,
    in_gate: Tensor | None,
    gates: tuple[Tensor, Tensor],
    skip: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``convolve`` with each of two output gates, by one transform."""
    first, second = _by_gates(u, k, k_rev, mode, length, in_gate, gates, skip)
    return first, second


def _by_gates(
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None,
    mode: str,
    length: int,
    in_gate: Tensor | None,
    gates: Sequence[Tensor | None],
    skip: Tensor | None,
) -> list[Tensor]:
    if u.numel() == 0:  # FFT libraries refuse empty batches
        return [torch.empty_like(u, memory_format=torch.contiguous_format) for _ in gates]
    steps = u.shape[-1]
    signal = _gated(u, in_gate)
    ahead, back = (_taps(f, signal, steps, mode) for f in (k, k_rev))
    filters = [f for f in (ahead, back) if f is not None]
    points = length if mode == "circular" else fast_length(steps + max(f.shape[-1] for f in filters) - 1)
    x, power = signal, None
    if _may_overflow(points, signal, *filters):
        rows, channels = _power(signal), torch.stack([_power(f) for f in filters]).amax(0)
        x, power = torch.ldexp(signal, -rows), rows + channels
        ahead, back = (None if f is None else torch.ldexp(f, -channels) for f in (ahead, back))
    response = None if ahead is None else torch.fft.rfft(ahead, n=points)
    if back is not None:
        reflected = torch.conj_physical(torch.fft.rfft(back, n=points))
        response = reflected if response is None else response + reflected
    y: Tensor = torch.fft.irfft(torch.fft.rfft(x, n=points) * response, n=points)[..., :steps]
    if power is not None:
        y = _raised(y, power)
    if skip is not None:
        y = y + skip.to(signal.dtype)[:, None] * signal
    return [(y if g is None else y * g.to(signal.dtype)).to(u.dtype).contiguous() for g in gates]


def _may_overflow(points: int, signal: Tensor, *filters: Tensor) -> bool:
    """Whether a sum on the way may be too large for the precision where no result is.

    A product of two spectra is of sums of so many points each, and transformed back to as many of those,
    before it is divided by their number. Where a row holds a NaN nothing is known, and others may be large.
    """
    u, k = (max(float(x.detach().abs().max()) for x in given) for given in ((signal,), filters))
    most = max(u, k, u * k * points) * points
    return math.isnan(u) or math.isnan(k) or most > torch.finfo(signal.dtype).max


def _power(x: Tensor) -> Tensor:
    """(..., 1), integer: the power of two near the largest element of a row, if fp32 has its inverse."""
    largest = x.abs().amax(-1, keepdim=True)
    return torch.where(largest.isfinite(), torch.frexp(largest).exponent, 0).clamp(-126, 127)


def _raised(x: Tensor, power: Tensor) -> Tensor:
    """x times a power of two, which may be beyond what one factor holds."""
    return torch.ldexp(torch.ldexp(x, power >> 1), power - (power >> 1))


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """A signal, times its gate, in the wide precision, and contiguous."""
    # MKL refuses the transform of an expanded tensor (PyTorch 2.6), such as the gradient of a mean.
    return (x.to(wide(x)) if gate is None else x.to(wide(x)) * gate.to(wide(x))).contiguous()


def _taps(f: Tensor | None, signal: Tensor, steps: int, mode: str) -> Tensor | None:
    if f is None:
        return None
    # Linear taps beyond the signal's length meet no input: nothing leaks from beyond the end.
    return (f[..., :steps] if mode == "causal" else f).to(signal.dtype).contiguous()


def correlate_input(
    u: Tensor,
    v: Tensor,
    *,
    mode: str,
    length: int,
    taps: int,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
) -> Tensor:
    """The gradient of ``convolve`` by its filter: ``sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}``.

    u, v, gates (B, H, L) of one dtype. Returns (H, taps) in the wide precision.
    """
    if u.numel() == 0:
        return u.new_zeros(u.shape[1], taps, dtype=wide(u))
    x, g = _gated(u, in_gate), _gated(v, out_gate)
    if taps == 1:  # lag 0 only, what a skip term needs: no transform
        return (x * g).sum(dim=(0, 2))[:, None]
    steps = u.shape[-1]
    reach = min(taps, steps) if mode == "causal" else taps
    points = length if mode == "circular" else fast_length(steps + reach - 1)
    power = None
    if _may_overflow(points * len(x), x, g):  # sums of a channel's rows, too: its rows have one power
        of_x, of_g = (_power(s).amax(0, keepdim=True) for s in (x, g))
        x, g, power = torch.ldexp(x, -of_x), torch.ldexp(g, -of_g), (of_x + of_g)[0]
    product = torch.conj_physical(torch.fft.rfft(x, n=points)) * torch.fft.rfft(g, n=points)
    found: Tensor = torch.fft.irfft(product.sum(dim=0), n=points)[..., :reach]
    if power is not None:
        found = _raised(found, power)
    return torch.nn.functional.pad(found, (0, taps - reach)).contiguous()

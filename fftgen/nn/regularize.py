"""What keeps a free filter simple: squash, smooth, and a decay in its initialisation (arXiv 2302.06646)."""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen.check import check_count
from fftgen.errors import InputError


def squash(k: Tensor, threshold: float) -> Tensor:
    """``sign(k) * max(|k| - threshold, 0)``, soft thresholding of filter weights; any shape.

    A weight inside the threshold is zero and so is its gradient.
    """
    if threshold < 0:
        raise InputError(f"a squash threshold cannot be negative, got {threshold}")
    return k.sign() * torch.relu(k.abs() - threshold)


def smooth(k: Tensor, reach: int) -> Tensor:
    """The moving average over ``2 * reach + 1`` taps, zeros beyond the ends; k (..., Lk)."""
    check_count("smooth", reach)
    if reach < 0:
        raise InputError(f"smooth takes the taps on each side, 0 or more, got {reach}")
    if reach == 0:
        return k
    rows = k.reshape(-1, 1, k.shape[-1])
    averaged: Tensor = torch.nn.functional.avg_pool1d(rows, 2 * reach + 1, stride=1, padding=reach)
    return averaged.reshape(k.shape)


def geometric(filters: int, channels: int, taps: int, *, device: torch.device | str | None = None) -> Tensor:
    """Filters (C, H, L) that decay at a rate per channel: ``0.02 randn exp(-(j / L) floor(H / 2)^(i / H))``.

    Channel i, tap j. The first channels keep nearly all of their length, the last forget soonest.
    """
    rates = (channels // 2) ** (torch.arange(channels, device=device) / channels)
    decay = torch.exp(-(torch.arange(taps, device=device) / taps) * rates[:, None])
    return 0.02 * torch.randn(filters, channels, taps, device=device) * decay

"""Signals and filters of any shape, and the noise of a result by what its transform held."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from calls import TORCH
from hard_signals import hard_signal
from reference import Float64, stored
from torch import Tensor

from fftgen.accuracy import LEAKED

# Every signal with every filter, means of 100 with filters that cancel most of them among them.
# Tones with a filter that is narrow and lies elsewhere, and with one that is not.
PAIRS = [
    *itertools.product(("1", "mean", "tails", "swell", "spike anywhere"), ("decay", "flat", "grow", "late")),
    *itertools.product(("tone", "nyquist"), ("narrow", "flat")),
]


def drawn(rng: np.random.Generator, length: int, dtype: str) -> tuple[Tensor, Tensor]:
    """u (1, H, L), and filters (H, L) of norm 1: a channel for each pair. "flat" is how LongConv begins."""
    u = torch.stack([_signal(rng, name, length, dtype) for name, _ in PAIRS])[None].to(TORCH[dtype])
    return u, torch.stack([_filter(rng, name, length) for _, name in PAIRS])


def _signal(rng: np.random.Generator, name: str, length: int, dtype: str) -> Tensor:
    if name in ("tone", "nyquist"):
        turns = 0.5 if name == "nyquist" else rng.uniform(0.1, 0.5)
        tone = torch.cos(2 * torch.pi * turns * torch.arange(length))
        return tone + 0.1 * hard_signal(rng, "1", length)
    if name == "swell":
        return hard_signal(rng, "1", length) * torch.linspace(0, 1, length) ** 4
    if name == "spike anywhere":
        x = hard_signal(rng, "1", length)
        x[int(rng.integers(length))] = 1e4 if dtype == "bf16" else 1e2
        return x
    return hard_signal(rng, name, length)


def _filter(rng: np.random.Generator, name: str, length: int) -> Tensor:
    t = torch.arange(length) / length
    if name == "narrow":  # frequency 0 and little else
        return torch.where(t < 0.3, (0.3 * length) ** -0.5, 0.0).float()
    late = torch.where(t < 0.4, 1e-6, 1.0)  # a quiet beginning, as of an echo
    shape = {"decay": torch.exp(-8 * t), "flat": torch.ones(length), "grow": t**4, "late": late}[name]
    k = torch.from_numpy(rng.standard_normal(length)) * shape
    return (k / k.norm()).float()


def judge(y: Tensor, ref: Float64, u: Tensor, k: Tensor, dtype: str, noise: float) -> None:
    """Assert that rows (1, H, L) are off by no more than so much of what their transforms held, and rounding.

    Held: the larger of ||u|| ||k|| and the norm of the whole linear convolution. Tones leak, besides, into
    what a filter passes (accuracy.py: LEAKED).
    """
    off, rounding = (np.linalg.norm(x - ref, axis=-1)[0] for x in (y.double().numpy(), stored(ref, dtype)))
    wide, taps, points = u.double(), k.double(), 2 * u.shape[-1]
    response = torch.fft.rfft(taps, points)
    linear = torch.fft.irfft(torch.fft.rfft(wide, points) * response, points)
    size = wide.norm(dim=-1)
    held = torch.maximum(linear.norm(dim=-1), size * taps.norm(dim=-1))[0].numpy()
    leaked = LEAKED * (size * response.abs().amax(-1))[0].numpy()
    found = np.sqrt(np.maximum(off**2 - rounding**2, 0))
    limit = np.maximum(noise * held, leaked) * (1 + 8 / np.sqrt(u.shape[-1]))
    worst = int((found / limit).argmax())
    assert found[worst] <= limit[worst], f"{PAIRS[worst]}: {found[worst]:.2e} > {limit[worst]:.2e}"
    # Zeros would be off by all that a row keeps, which is next to nothing of a few late spikes alone.
    assert (np.linalg.norm(ref, axis=-1)[0] > 2 * (rounding + limit)).mean() > 0.8

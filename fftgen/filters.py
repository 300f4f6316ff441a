"""What a plan's kernels multiply by: the transform of a filter, forward, reversed or both.

A kernel computes ``z = T^-1 diag(S) T x`` and returns ``Re z`` (or the fold of it). Taken with
``S = T k`` that is the convolution with k. The adjoint of a real operator ``Re T^-1 diag(S) T`` is the
same with ``conj(S)`` (design 1.5), so ``S = conj(T k_rev)`` gives the correlation with k_rev: the gradient
of a convolution by its input, and the backward half of a bidirectional filter. The operator is linear in
S: forward and reversed filter share one pass.

A folded plan (a circular length that does not factor) is no such operator: its input is padded to the
transform, its output is wrapped, and the adjoint would wrap the input instead. There a reversed filter is
turned into a forward one in the time domain, where on a circle every correlation is a convolution.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fftgen.planner.plan import Plan


@lru_cache(maxsize=32)
def weights(transform: int, device: torch.device) -> Tensor:
    """Right-angle weights exp(i*pi*n/(2N)), complex64 (N,)."""
    angle = torch.arange(transform, dtype=torch.float64) * (math.pi / (2 * transform))
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def transform(plan: Plan, k: Tensor) -> Tensor:
    """``T k``: (H, Lk) real to (H, N) complex64 in natural order; right-angle or plain as the plan is."""
    n = plan.transform
    taps = k.detach().to(torch.float32)
    padded = torch.nn.functional.pad(taps, (0, n - taps.shape[-1]))
    if plan.real_input:
        padded = padded * weights(n, k.device)
    natural: Tensor = torch.fft.fft(padded)
    return natural


def reflected(k: Tensor, period: int) -> Tensor:
    """The filter whose circular convolution is the circular correlation with k: tap j at -j mod period."""
    padded = torch.nn.functional.pad(k, (0, period - k.shape[-1]))
    return padded.flip(-1).roll(1, -1)


def response(plan: Plan, k: Tensor | None, k_rev: Tensor | None = None) -> Tensor:
    """The factors S (H, N), complex64, natural order, for a forward and a reversed filter (H, Lk), (H, Lr).

    Either may be absent, not both; neither may exceed the plan's length.
    """
    if plan.fold and k_rev is not None:
        period = plan.problem.length
        turned = reflected(k_rev.detach().to(torch.float32), period)
        if k is not None:
            turned = turned + torch.nn.functional.pad(k.detach().float(), (0, period - k.shape[-1]))
        return transform(plan, turned)
    ahead = None if k is None else transform(plan, k)
    if k_rev is None:
        assert ahead is not None
        return ahead
    back = torch.conj_physical(transform(plan, k_rev))  # a lazy conj() may be ignored: eager.py
    return back if ahead is None else ahead + back

"""What a plan's kernels multiply by: the transform of a filter, forward, reversed or both.

A kernel computes ``z = T^-1 diag(S) T x`` and returns ``Re z``. Taken with ``S = T k`` that is the
convolution with k; where a circular length is folded, k stands for the complex filter that brings this about
(planner/fold.py). The adjoint of a real operator ``Re T^-1 diag(S) T`` is the
same with ``conj(S)`` (design 1.5), so ``S = conj(T k_rev)`` gives the correlation with k_rev: the gradient
of a convolution by its input, and the backward half of a bidirectional filter. The operator is linear in
S: forward and reversed filter share one pass. Rows shorter than the transform change nothing: input and
output are cut alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from fftgen.planner.plan import CIRCULANT, Plan


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
    if plan.fold:
        late = n - plan.fold  # tap m >= 1 stands at m + late, too, times -i
        again = torch.nn.functional.pad(-taps[..., 1:], (late + 1, plan.fold - taps.shape[-1]))
        padded = torch.complex(padded, again)
    if plan.real_input:
        padded = padded * weights(n, k.device)
    natural: Tensor = torch.fft.fft(padded)
    return natural


def response(plan: Plan, k: Tensor | None, k_rev: Tensor | None = None) -> Tensor:
    """The factors S (H, N), complex64, natural order, for a forward and a reversed filter (H, Lk), (H, Lr).

    Either may be absent, not both; neither may exceed the plan's length.
    """
    ahead = None if k is None else transform(plan, k)
    if k_rev is None:
        assert ahead is not None
        return ahead
    back = torch.conj_physical(transform(plan, k_rev))  # a lazy conj() may be ignored: eager.py
    return back if ahead is None else ahead + back


def by_distance(plan: Plan, k: Tensor | None, k_rev: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The filters (H, N) between sections, forward and reversed, of each distance (planner/sections.py): taps
    that act by as many sections later and on, and those of up to a section before."""
    n, reach = plan.transform, plan.points
    first = k if k is not None else k_rev
    assert first is not None
    # Taps by the time that they act at, from -reach on.
    acting = torch.zeros(first.shape[0], 2 * reach, dtype=torch.float32, device=first.device)
    if k is not None:
        acting[:, reach : reach + k.shape[-1]] += k.detach()
    if k_rev is not None:
        acting[:, reach - k_rev.shape[-1] + 1 : reach + 1] += k_rev.detach().flip(-1)
    if plan.matrix == CIRCULANT:  # what acts a circle later or earlier acts at the same time
        acting = (acting[:, reach:] + acting[:, :reach]).repeat(1, 2)
    for distance in range(plan.distances):
        now = reach + (distance - plan.distances if distance >= plan.sections else distance) * n
        back = acting[:, now - n + 1 : now].flip(-1)  # tap 0 acts at once, as that of the other does
        yield acting[:, now : now + n], torch.nn.functional.pad(back, (1, 0))

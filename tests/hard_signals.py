"""Signals that formats of few bits find hard, alone and beside others in the pairs that share a transform."""

from __future__ import annotations

import itertools

import numpy as np
import tolerance
import torch
from calls import TORCH, draw, exact, filters
from torch import Tensor

from fftgen.planner.plan import Plan

# What may stand in one row of a pair; "none": zeros. The gain of 1e4 keeps what "tiny" comes to normal.
PARTNERS = {
    "bf16": ("white", "spike", "alone", "mean", "tails", "1e-20", "1e30", "tiny", "none", "nan", "inf"),
    "fp16": ("white", "spike", "alone", "mean", "tails", "1e-3", "none", "nan"),
}
GAIN = {"bf16": 1e4, "fp16": 0.125}


def hard_signal(rng: np.random.Generator, name: str, *shape: int) -> Tensor:
    if name == "mean":
        return 100 + draw(rng, *shape)
    if name == "tails":
        x = torch.from_numpy(rng.standard_t(2, shape))
        late = x.abs().argmax(dim=-1, keepdim=True) >= shape[-1] // 2  # one may be larger than all others
        return torch.where(late, x.flip(-1), x)
    if name == "spike":
        x = draw(rng, *shape)
        x[..., int(rng.integers(shape[-1] // 2))] = 1e4
        return x
    return draw(rng, *shape) * float(name)


def row_of_a_pair(rng: np.random.Generator, name: str, length: int) -> Tensor:
    if name in ("nan", "inf"):
        x = draw(rng, length)
        x[int(rng.integers(length))] = float(name)
        return x
    if name in ("alone", "tiny"):  # a spike and nothing, or subnormal numbers of bf16
        x = draw(rng, length) * (1e-3 if name == "tiny" else 0.0)
        # In the first half, as all spikes: what a late one makes lies beyond the end of a causal row, but for
        # its noise.
        x[int(rng.integers(length // 2))] = 1.7
        return x * (1e-37 if name == "tiny" else 1e3)
    return (
        torch.zeros(length) if name == "none" else hard_signal(rng, "1" if name == "white" else name, length)
    )


def every_pair(rng: np.random.Generator, dtype: str, length: int) -> tuple[Tensor, Tensor]:
    """Two rows, a channel for every pair of signals, either way round; and filters (channels, length)."""
    names = list(itertools.product(PARTNERS[dtype], repeat=2))
    u = torch.stack([torch.stack([row_of_a_pair(rng, n, length) for n in pair]) for pair in names], dim=1)
    k = GAIN[dtype] * filters(rng, len(names), length)
    decay = torch.exp(-8 * torch.arange(length) / length)  # a gain at frequency 0, lest a mean is cancelled
    k += torch.copysign(k.norm(dim=1), k.sum(dim=1))[:, None] * decay / decay.sum()
    return u.to(TORCH[dtype]), k


def judge_rows_alone(
    plan: Plan, y: Tensor, u: Tensor, k: Tensor, compute_format: str, **given: Tensor
) -> None:
    """Every row by itself: finite ones within the bounds of a compute format, zeros zero, others NaN."""
    x = u.double() if not given else u.double() * given["in_gate"].double()
    right = x.isfinite().all(dim=-1)
    ref = torch.from_numpy(exact(plan, u.where(right[..., None], 0), k, **given))
    for b, h in itertools.product(range(len(u)), range(u.shape[1])):
        if not right[b, h]:
            assert y[b, h].isnan().all()
        elif not x[b, h].any():
            assert not y[b, h].any()
        else:
            one = np.s_[b : b + 1, h : h + 1]
            tolerance.check(y[one].double(), ref[one], plan.problem.dtype, plan.order, compute_format)

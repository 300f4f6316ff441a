"""Gradients as they should be: float64 autograd through the definition, with no operator of the package.

``definition`` is a matrix of taps (small lengths), ``composite`` the same through torch.fft in float64
(any length); a test holds them to each other. ``judge`` is the relative metric, per row and overall.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Small tensors by the hundred thousand: threads only wait for each other, on a busy machine for seconds.
torch.set_num_threads(1)

NAMES = ("u", "k", "k_rev", "in_gate", "out_gate", "skip")
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPTIONS = [c for n in range(5) for c in itertools.combinations(("k_rev", "in_gate", "out_gate", "skip"), n)]


def matrix(k: Tensor | None, k_rev: Tensor | None, steps: int, mode: str, length: int) -> Tensor:
    """The (H, L, L) matrix A of y = A x, entry by entry from the definition."""
    filters = next(f for f in (k, k_rev) if f is not None)
    t = torch.arange(steps)
    lag = t[:, None] - t[None, :]
    total = torch.zeros(filters.shape[0], steps, steps, dtype=torch.float64)
    for f, forward in ((k, lag), (k_rev, -lag)):
        if f is None:
            continue
        index = forward % length if mode == "circular" else forward
        there = (index >= 0) & (index < f.shape[-1])
        total = total + torch.where(there, f.double()[:, index.clamp(0, f.shape[-1] - 1)], 0.0)
    return total


def definition(
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    mode: str,
    length: int,
) -> Tensor:
    """out_gate * (A x + skip * x), x = in_gate * u, in float64; u (B, H, L)."""
    x = u.double() if in_gate is None else u.double() * in_gate.double()
    y = torch.einsum("hts,bhs->bht", matrix(k, k_rev, u.shape[-1], mode, length), x)
    return _finish(y, x, out_gate, skip)


def composite(
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    mode: str,
    length: int,
) -> Tensor:
    """``definition`` for any length: linear convolutions in float64 through torch.fft, wrapped by hand."""
    x = u.double() if in_gate is None else u.double() * in_gate.double()
    steps = u.shape[-1]
    y = torch.zeros_like(x)
    for f, back in ((k, False), (k_rev, True)):
        if f is None:
            continue
        signal = x.flip(-1) if back else x
        if mode == "circular":  # flipping turns index t into (L - 1 - t): a period of zeros stays at the end
            signal = torch.nn.functional.pad(x, (0, length - steps))
            signal = signal.flip(-1) if back else signal
        points = signal.shape[-1] + f.shape[-1]
        linear = torch.fft.irfft(
            torch.fft.rfft(signal, n=points) * torch.fft.rfft(f.double(), n=points), n=points
        )
        kept = linear[..., : signal.shape[-1]]
        if mode == "circular":
            tail = linear[..., length:]
            kept = kept + torch.nn.functional.pad(tail, (0, length - tail.shape[-1]))
        y = y + (kept.flip(-1) if back else kept)[..., :steps]
    return _finish(y, x, out_gate, skip)


def _finish(y: Tensor, x: Tensor, out_gate: Tensor | None, skip: Tensor | None) -> Tensor:
    if skip is not None:
        y = y + skip.double()[:, None] * x
    return y if out_gate is None else y * out_gate.double()


def leading(k: Tensor, steps: int) -> Tensor:
    """A filter (H, Lk) of which the first ``steps`` taps weigh no less than the others.

    A signal of ``steps`` meets those alone, but the spectrum is rounded in proportion to all.
    """
    first, rest = k[:, :steps].norm(dim=1), k[:, steps:].norm(dim=1)
    raised = k.clone()
    raised[:, :steps] *= (rest / first).clamp(min=1)[:, None]
    return raised


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    taps: int,
    options: tuple[str, ...],
    dtype: torch.dtype,
    filter_dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Leaf tensors for a call: white signals and gates, filters that decay (design 1.7).

    The skip has the sign of the first tap: a sum that cancels would amplify every rounding.
    """
    _, heads, _ = shape

    def white(*size: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(size))

    fade = torch.exp(-8 * torch.arange(taps) / taps)
    made = {"u": white(*shape).to(dtype)}
    for name in ("k", *(n for n in options if n == "k_rev")):
        made[name] = leading(white(heads, taps) * fade, shape[-1]).to(filter_dtype)
    for name in ("in_gate", "out_gate"):
        if name in options:
            made[name] = white(*shape).to(dtype)
    if "skip" in options:
        first = made["k"][:, 0] + (made["k_rev"][:, 0] if "k_rev" in made else 0)
        made["skip"] = torch.copysign(torch.from_numpy(rng.uniform(0.5, 1.5, heads)), first).to(filter_dtype)
    return {name: x.requires_grad_() for name, x in made.items()}


def exact(
    given: dict[str, Tensor], cotangent: Tensor, *, mode: str, length: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The result and the gradient of every argument in float64, for arguments as they are stored."""
    wide: dict[str, Any] = {n: x.detach().double().requires_grad_() for n, x in given.items()}
    y = composite(**{"k": None} | wide, mode=mode, length=length)
    found = torch.autograd.grad(y, list(wide.values()), cotangent.double())
    return y.detach(), dict(zip(wide, found, strict=True))


def judge(out: Tensor, ref: Tensor, expected: float, *, margin: float = 1.5) -> None:
    """Assert ||out - ref|| / ||ref|| over everything and per row; small samples scatter more.

    A reference of zeros, overall or in a row, would prove nothing and fails.
    """
    assert out.shape == ref.shape, (out.shape, ref.shape)
    assert torch.isfinite(out).all(), "not finite"
    rows = (out.detach().double() - ref.double()).reshape(-1, ref.shape[-1]).norm(dim=-1)
    norms = ref.double().reshape(-1, ref.shape[-1]).norm(dim=-1)
    whole = norms.norm().item()
    assert whole > 0, "a reference of zeros proves nothing"
    if ref.shape[-1] >= 64:
        assert (norms > 0).all(), "a row of zeros proves nothing"
    else:  # a short row may nearly vanish by chance
        norms = norms.clamp(min=whole / math.sqrt(len(norms)))
    limit = margin * expected * (1 + 4 / math.sqrt(ref.numel()))
    assert rows.norm().item() / whole <= limit, f"overall {rows.norm().item() / whole:.3e} > {limit:.3e}"
    limit = margin * expected * (1 + 8 / math.sqrt(ref.shape[-1]))
    worst = (rows / norms).max().item()
    assert worst <= limit, f"row {int((rows / norms).argmax())}: {worst:.3e} > {limit:.3e}"

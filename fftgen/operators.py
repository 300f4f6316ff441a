"""How the package calls its operators (op.py), all but that of prepared spectra.

While a graph is traced or torch.func transforms a call these are the operators as they are, otherwise the
Functions of autograd.py, which are also the operators' Autograd kernels.

Shapes: u, v, gates and their gradients (B, H, L); filters (H, Lk); skip (H,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad

from fftgen import observed

Maybe = Tensor | None
Kept = tuple[Tensor, Tensor] | None  # a spectrum's planes and scale

# By an operator's name: what it does on a GPU, and its Function (autograd.py). Filled by op.py.
ON_GPU: dict[str, Callable[..., Any]] = {}
RULES: dict[str, Any] = {}


def registered() -> None:
    """Operators and rules are there. Nobody may have imported them: pickles name modules below op.py."""
    if not RULES:
        import_module("fftgen.op")


def conv(
    u: Tensor, k: Maybe, k_rev: Maybe, in_gate: Maybe, out_gate: Maybe, skip: Maybe, handle: str
) -> Tensor:
    """``torch.ops.fftgen.conv``: out_gate * (conv(x, k) + corr(x, k_rev) + skip * x), x = in_gate * u."""
    given = (u, k, k_rev, in_gate, out_gate, skip, handle)
    y: Tensor
    if _keeps(*given[:6]):
        registered()
        y = RULES["conv_keeping"].apply(*given)
    else:
        y = _call("conv", given)
    return y


def conv_both(
    u: Tensor,
    k: Maybe,
    k_rev: Maybe,
    in_gate: Maybe,
    first_gate: Tensor,
    second_gate: Tensor,
    skip: Maybe,
    handle: str,
) -> tuple[Tensor, Tensor]:
    """``torch.ops.fftgen.conv_both``: ``conv`` with each of two output gates, by one transform."""
    given = (u, k, k_rev, in_gate, first_gate, second_gate, skip, handle)
    first, second = _call("conv_both", given)
    return first, second


def correlate_input(u: Tensor, v: Tensor, in_gate: Maybe, out_gate: Maybe, taps: int, handle: str) -> Tensor:
    """``torch.ops.fftgen.correlate_input``: (H, taps), sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}."""
    given = (u, v, in_gate, out_gate, taps, handle)
    found: Tensor = _call("correlate_input", given)
    return found


def conv_gradients(
    u: Tensor,
    v: Tensor,
    k: Maybe,
    k_rev: Maybe,
    in_gate: Maybe,
    out_gate: Maybe,
    skip: Maybe,
    needed: Sequence[bool],
    taps: int,
    handle: str,
    spectrum: Kept = None,
) -> tuple[Maybe, Maybe, Maybe, Tensor]:
    """``torch.ops.fftgen.conv_gradients``: of u, in_gate, out_gate (None: not ``needed``) and k, for v.

    ``spectrum``: of k, k_rev and skip, as the call of ``conv`` on a GPU made it.
    """
    given = (u, v, k, k_rev, in_gate, out_gate, skip, *needed, taps, handle)
    if spectrum is not None and observed.unobserved(*given[:7]):
        du, d_in, d_out, dk = ON_GPU["gradients_needed"](*given, spectrum=spectrum)
        return du, d_in, d_out, dk
    *made, dk = _call("conv_gradients", given)
    du, d_in, d_out = (x if n else None for x, n in zip(made, needed, strict=True))
    return du, d_in, d_out, dk


def _call(name: str, inputs: tuple[Any, ...]) -> Any:
    """The operator by the shortest way: its Autograd kernel comes to the same, microseconds later."""
    registered()
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return getattr(torch.ops.fftgen, name)(*inputs)
    if observed.recorded(*inputs):
        return RULES[name].apply(*inputs)
    return RULES[name].forward(*inputs)


def _keeps(u: Tensor, k: Maybe, k_rev: Maybe, in_gate: Maybe, out_gate: Maybe, skip: Maybe) -> bool:
    """Whether a backward pass may ask for all gradients at once: that pass reads the spectrum again."""
    return (
        u.is_cuda
        and not torch.compiler.is_compiling()  # looks no further while it traces
        and k is not None
        and k.requires_grad
        and _forward_ad._current_level < 0
        and observed.recorded(u, in_gate, out_gate)
        and observed.plain(u, k, k_rev, in_gate, out_gate, skip)
    )

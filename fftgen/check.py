"""What a call may look like: every check of arguments, before anything is planned or launched."""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen.errors import InputError
from fftgen.problem import Problem

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _shape(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))})"


def _tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    return x


def check_input(problem: Problem, u: object) -> Tensor:
    """u: (B, H, L), 1 <= L <= seqlen, in the storage dtype. B or H of 0 is fine: the result is empty."""
    x = _tensor("u", u)
    wanted = TORCH[problem.dtype]
    if x.dim() != 3:
        raise InputError(
            f"u must be (batch, channels, length), got {_shape(x)}: "
            "reshape it, e.g. u.unsqueeze(0) for (channels, length) or u.transpose(1, 2) for (B, L, H)"
        )
    if x.dtype != wanted:
        hint = f"u.to({wanted})" if x.is_floating_point() else f"u.to({wanted}) if integers are meant"
        raise InputError(f"u is {x.dtype}, this convolution was made for {wanted}: {hint}")
    if x.shape[-1] < 1:
        raise InputError("u has length 0: a convolution needs at least one time step")
    if x.shape[-1] > problem.length:
        raise InputError(
            f"u has length {x.shape[-1]}, this convolution takes at most {problem.length}: "
            f"use fftgen.get_conv({x.shape[-1]}, ...)"
        )
    return x


def check_filter(problem: Problem, k: object, u: Tensor | None = None) -> Tensor:
    """k: (H, Lk), 1 <= Lk <= seqlen, real floating point of any width, on u's device."""
    taps = _tensor("k", k)
    if taps.dim() != 2:
        raise InputError(f"k must be (channels, taps), got {_shape(taps)}")
    if not taps.is_floating_point():
        raise InputError(f"k must be real floating point, got {taps.dtype}: k.float()")
    if not 1 <= taps.shape[-1] <= problem.length:
        raise InputError(
            f"k has {taps.shape[-1]} taps, this convolution takes 1 to {problem.length}: "
            "cut the filter, or use a longer convolution"
        )
    if u is not None:
        _matches("k", taps, u, taps.shape[0])
    return taps


def check_gate(name: str, gate: object, u: Tensor) -> Tensor | None:
    """A gate has u's shape, dtype and device."""
    if gate is None:
        return None
    g = _tensor(name, gate)
    if g.shape != u.shape:
        raise InputError(f"{name} must have u's shape {_shape(u)}, got {_shape(g)}: expand it to that shape")
    if g.dtype != u.dtype:
        raise InputError(f"{name} is {g.dtype}, u is {u.dtype}: {name}.to({u.dtype})")
    if g.device != u.device:
        raise InputError(f"{name} is on {g.device}, u on {u.device}: {name}.to(u.device)")
    return g


def check_skip(skip: object, u: Tensor) -> Tensor | None:
    """skip: (H,), floating point, on u's device."""
    if skip is None:
        return None
    d = _tensor("skip", skip)
    if d.dim() != 1:
        raise InputError(f"skip must be (channels,) = ({u.shape[1]},), got {_shape(d)}: skip.flatten()")
    if not d.is_floating_point():
        raise InputError(f"skip must be floating point, got {d.dtype}: skip.float()")
    _matches("skip", d, u, d.shape[0])
    return d


def _matches(name: str, x: Tensor, u: Tensor, channels: int) -> None:
    if channels != u.shape[1]:
        raise InputError(
            f"{name} has {channels} channels, u has {u.shape[1]}: u is (batch, channels, length), "
            f"{name} needs one row per channel"
        )
    if x.device != u.device:
        raise InputError(f"{name} is on {x.device}, u on {u.device}: {name}.to(u.device)")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record a call on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

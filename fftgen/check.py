"""What a call may look like: every check of arguments, before anything is planned or launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from fftgen.errors import InputError
from fftgen.problem import MAX_LENGTH, SPLIT, Problem
from fftgen.storage import TORCH


class Open(NamedTuple):
    """A problem as far as a call is checked against it, where a graph leaves its length open.

    ``length``: of signals and filters at most, may be symbolic; None: any.
    """

    mode: str
    length: int | None
    dtype: str

    @property
    def causal(self) -> bool:
        return self.mode == "causal"


def _shape(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))})"


def check_tensor(name: str, x: object) -> Tensor:
    """A tensor that lies in memory in strides."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.is_nested:
        raise InputError(f"{name} is a nested tensor: torch.nested.to_padded_tensor({name}, 0.0)")
    if x.layout != torch.strided:
        raise InputError(f"{name} is {x.layout}: {name}.to_dense()")
    if x.is_quantized:
        raise InputError(f"{name} is {x.dtype}, quantized: {name}.dequantize()")
    return x


def wanted(problem: Problem | Open, u: Tensor) -> torch.dtype:
    """The dtype that signals must have: the storage type; on CPUs float32 and float64 pass as they are.

    There ``torch.fft`` computes in that precision, which is what gradient checks and references want.
    """
    if u.device.type != "cuda" and u.dtype in (torch.float32, torch.float64):
        return u.dtype
    return TORCH[problem.dtype]


def check_input(problem: Problem | Open, u: object) -> Tensor:
    """u: (..., H, L), 1 <= L <= seqlen, in the storage dtype. Empty ones are fine."""
    x = check_tensor("u", u)
    if x.dim() < 2:
        raise InputError(
            f"u must be (..., channels, length), got {_shape(x)}: u[None] for one channel, "
            "u.transpose(1, 2) for (B, L, H)"
        )
    dtype = wanted(problem, x)
    if x.dtype != dtype:
        hint = hint_of(x, f"u.to({dtype})")
        if x.dtype in TORCH.values() and problem.length is not None:
            hint += f", or fftgen.get_conv({problem.length}, {x.dtype}, ...)"
        raise InputError(f"u is {x.dtype}, this convolution was made for {dtype}: {hint}")
    if x.shape[-1] < 1:
        raise InputError("u has length 0: a convolution needs at least one time step")
    if problem.length is not None and x.shape[-1] > problem.length:
        way = f"use fftgen.get_conv({x.shape[-1]}, ...)" if x.shape[-1] <= MAX_LENGTH else SPLIT
        raise InputError(
            f"u has length {x.shape[-1]}, this convolution takes at most {problem.length}: {way}"
        )
    return x


def hint_of(u: Tensor, cast: str, name: str = "u") -> str:
    """The way out of a signal's or filter's dtype, of which ``cast`` is the usual one."""
    if u.is_complex():
        return f"{name}.real and {name}.imag each by itself: the convolution is linear"
    return cast if u.is_floating_point() else f"{cast} if integers are meant"


def check_filter(problem: Problem | Open, k: object, name: str = "k") -> Tensor:
    """A filter: (..., H, Lk), 1 <= Lk <= seqlen, real floating point of any width."""
    taps = check_tensor(name, k)
    if taps.dim() < 2:
        raise InputError(
            f"{name} must be (channels, taps), got {_shape(taps)}: "
            f"{name}[None] with groups=1 for one filter that all channels share"
        )
    if not taps.is_floating_point():
        way = hint_of(taps, "", name) if taps.is_complex() else f"{name}.float()"
        raise InputError(f"{name} must be real floating point, got {taps.dtype}: {way}")
    count = taps.shape[-1]
    if count < 1 or (problem.length is not None and count > problem.length):
        most = "or more" if problem.length is None else f"to {problem.length}"
        raise InputError(
            f"{name} has {count} taps, this convolution takes 1 {most}: "
            "cut the filter, or use a longer convolution"
        )
    return taps


def check_gate(name: str, gate: object, u: Tensor, shape: Sequence[int]) -> Tensor | None:
    """in_gate has u's shape, out_gate the result's; both u's dtype and device."""
    if gate is None:
        return None
    g = check_tensor(name, gate)
    if tuple(g.shape) != tuple(shape):
        whose = "u's" if name == "in_gate" else "the result's"
        wanted_shape = ", ".join(map(str, shape))
        raise InputError(
            f"{name} must have {whose} shape ({wanted_shape}), got {_shape(g)}: expand it to that shape"
        )
    if g.dtype != u.dtype:
        raise InputError(f"{name} is {g.dtype}, u is {u.dtype}: {name}.to({u.dtype})")
    _same_device(name, g, u)
    return g


def check_skip(skip: object, u: Tensor, filters: int | None = None) -> Tensor | None:
    """skip: (H,), or (C, H) where there are C filters per channel; floating point, on u's device."""
    if skip is None:
        return None
    d = check_tensor("skip", skip)
    shape = (u.shape[-2],) if filters is None else (filters, u.shape[-2])
    if tuple(d.shape) != shape:
        form = "(channels,)" if filters is None else "(filters, channels)"
        hint = ": skip.flatten()" if filters is None and d.dim() == 2 and d.numel() == u.shape[-2] else ""
        raise InputError(f"skip must be {form} = ({', '.join(map(str, shape))}), got {_shape(d)}{hint}")
    if not d.is_floating_point():
        raise InputError(f"skip must be floating point, got {d.dtype}: skip.float()")
    _same_device("skip", d, u)
    return d


def check_operands(
    problem: Problem | Open,
    u: Tensor,
    filters: Mapping[str, Tensor | None],
    signals: Mapping[str, Tensor | None],
    skip: Tensor | None = None,
) -> None:
    """What an operator takes when it is called by itself: u and ``signals`` (B, H, L), filters (H, Lk), skip.

    Causal taps beyond the signal meet nothing and may be any number. Raises InputError.
    """
    check_input(problem, u)
    if u.dim() != 3:
        raise InputError(f"u must be (batch, channels, length), got {_shape(u)}: fftgen.fftconv takes others")
    if filters and all(f is None for f in filters.values()):
        raise InputError(f"one of {', '.join(filters)} must be there: a filter of zeros stands for none")
    any_taps = Open(problem.mode, None if problem.causal else problem.length, problem.dtype)
    for name, f in filters.items():
        if f is None:
            continue
        check_filter(any_taps, f, name)
        if f.dim() != 2 or f.shape[0] != u.shape[1]:
            raise InputError(
                f"{name} must be (channels, taps) = ({u.shape[1]}, taps), got {_shape(f)}: "
                "fftgen.fftconv takes others"
            )
        _same_device(name, f, u)
    for name, x in signals.items():
        check_gate(name, x, u, u.shape)
    check_skip(skip, u)


def check_taps(problem: Problem | Open, taps: int) -> None:
    """How many taps of a gradient an operator may be asked for."""
    if taps < 1 or (not problem.causal and problem.length is not None and taps > problem.length):
        raise InputError(f"{taps} taps are no filter of a {problem.mode} convolution of {problem.length}")


def check_spectrum(
    planes: Tensor,
    scale: Tensor,
    u: Tensor,
    points: int = 0,
    dtype: torch.dtype | None = None,
    distances: int = 0,
) -> None:
    """A prepared spectrum that an operator takes: planes (H, 2, points) of a dtype, scale (H, 2) float32.

    ``distances`` more than 1: so many of them. 0 and None: any. Kernels read both as they lie in memory.
    """
    channels = u.shape[1]
    each = {0: tuple(planes.shape[:-3]), 1: ()}.get(distances, (distances,))
    fits = len(each) < 2 and tuple(planes.shape[:-1]) == (*each, channels, 2) == tuple(scale.shape)
    fits = fits and points in (0, planes.shape[-1]) and planes.is_contiguous() and scale.is_contiguous()
    if not fits or dtype not in (None, planes.dtype) or scale.dtype != torch.float32:
        raise InputError(
            f"planes {_shape(planes)} in {planes.dtype} and scale {_shape(scale)} in {scale.dtype} are no "
            f"spectrum for {channels} channels: hand in what conv.prepare(k) returned"
        )
    for name, x in (("planes", planes), ("scale", scale)):
        _same_device(name, x, u)


def check_channels(name: str, k: Tensor, u: Tensor, groups: int | None) -> None:
    """One filter per channel, or one per group of neighbouring channels; on u's device."""
    channels, rows = u.shape[-2], k.shape[-2]
    if groups is not None:
        check_count("groups", groups)
        if groups < 1:
            raise InputError(f"groups must be 1 or more, got {groups}: None for a filter per channel")
    if groups is None and rows != channels:
        may = rows and name == "k" and channels % rows == 0  # k_rev has the rows that k has
        shared = f", or groups={rows} for filters shared by neighbouring channels" if may else ""
        raise InputError(
            f"{name} has {rows} channels, u has {channels}: u is (..., channels, length), "
            f"{name} needs one row per channel{shared}"
        )
    if groups is not None and (rows != groups or channels % groups):
        raise InputError(
            f"groups={groups} needs a filter of {groups} rows and channels that {groups} divides: "
            f"{name} has {rows} rows, u {channels} channels"
        )
    _same_device(name, k, u)


def check_count(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (Integral, torch.SymInt)):
        raise InputError(f"{name} must be an int, got {x!r} ({type(x).__name__})")


def _same_device(name: str, x: Tensor, u: Tensor) -> None:
    if x.device != u.device:
        raise InputError(f"{name} is on {x.device}, u on {u.device}: {name}.to(u.device)")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record a call on these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

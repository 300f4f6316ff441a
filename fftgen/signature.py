"""From what models call to what the operators take: u (B, H, L), filters (H, Lk), skip (H,).

    k (H, Lk)         one filter per channel
    k (G, Lk)         groups=G: one filter per group of H / G neighbouring channels
    k (C, H, Lk)      C filters per channel: u (..., H, L) gives (..., C, H, L), skip (C, H)
    k (..., H, Lk)    per_row=True: leading dimensions like u's, a filter per channel and row

Flattening leading dimensions is a view of contiguous tensors. Two forms cost more than their arithmetic:
C filters per channel read u from C copies (one pass more over C * u), and groups write every group's
filter H / G times (over filters, not signals). ``per_row`` makes channels of rows: free, but in circular
mode without the pairing of rows, so each transform carries one row where two would fit.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fftgen.check import Open, check_channels, check_filter, check_gate, check_input, check_skip
from fftgen.errors import InputError
from fftgen.problem import Problem
from fftgen.values import check_flag

REVERSED = ("mirrored", "shifted")


class Form(NamedTuple):
    """How filters meet signals: see the head of this file and ``Conv.__call__``."""

    groups: int | None = None
    per_row: bool = False
    reverse: str = "mirrored"


Tensors: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Arguments(NamedTuple):
    """What the operators take, and the shape that their result goes back to (None: as it is)."""

    u: Tensor
    k: Tensor | None
    k_rev: Tensor | None
    in_gate: Tensor | None
    out_gate: Tensor | None
    skip: Tensor | None
    shape: tuple[int, ...] | None

    def tensors(self) -> Tensors:
        """All but the shape. (A slice of a named tuple is what PyTorch 2.6 cannot trace.)"""
        return self.u, self.k, self.k_rev, self.in_gate, self.out_gate, self.skip

    @property
    def gated(self) -> bool:
        """There are both gates."""
        return self.in_gate is not None and self.out_gate is not None

    def untouched(self, *given: Tensor | None) -> bool:
        """Whether they are what was handed in, and the result goes back as it is."""
        return self.shape is None and all(x is y for x, y in zip(self, given, strict=False))

    def back(self, y: Tensor) -> Tensor:
        """The result in the caller's shape."""
        return y if self.shape is None else y.reshape(self.shape)


def shapes(*tensors: Tensor | None) -> tuple[object, ...]:
    """All that ``arrange`` goes by: equal ones of other tensors fit as well and come out alike."""
    try:
        return tuple([None if x is None else (x.shape, x.dtype, x.device) for x in tensors])
    except RuntimeError:  # a nested tensor has no shape, and fits nowhere
        return ()


def autocast(dtype: torch.dtype, u: Tensor, *gates: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast: u and gates in a convolution's dtype. float64 stays, as it does for PyTorch's own."""
    signals = (u, *gates)
    if not (isinstance(u, Tensor) and autocasting(u.device.type)):
        return signals
    return tuple(x.to(dtype) if isinstance(x, Tensor) and _eligible(x) else x for x in signals)


def _eligible(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float64


def autocasting(device: str) -> bool:
    """Whether autocast is on for a type of device. (Asking for any other type raises in some releases.)"""
    return device in ("cuda", "cpu") and torch.is_autocast_enabled(device)


def arrange(
    problem: Problem | Open,
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
    form: Form,
) -> Arguments:
    """Check a call and bring it into the operators' form. Raises InputError for what does not fit.

    A ``k`` of None stands for a prepared spectrum: one filter per channel.
    """
    filters = check_call(problem, u, k, k_rev, in_gate, out_gate, skip, form)
    groups, per_row, reverse = form
    *lead, channels, steps = u.shape
    shape = (*lead, *(() if filters is None else (filters,)), channels, steps)
    if k_rev is not None and reverse == "shifted":
        k_rev = _shifted(k_rev, problem)
    k, k_rev = (_rows(_ungrouped(f, groups, channels)) for f in (k, k_rev))
    rows = math.prod(lead)
    flat = (1, rows * channels, steps) if per_row else (rows, (filters or 1) * channels, steps)
    if filters is not None:
        copies = (*lead, filters, channels, steps)
        u = u.unsqueeze(-3).expand(copies)
        in_gate = None if in_gate is None else in_gate.unsqueeze(-3).expand(copies)
    if skip is not None and per_row:
        skip = skip.expand(rows, channels).reshape(-1)
    elif skip is not None and filters is not None:
        skip = skip.reshape(-1)
    return Arguments(
        _flat(u, flat),
        k,
        k_rev,
        None if in_gate is None else _flat(in_gate, flat),
        None if out_gate is None else _flat(out_gate, flat),
        skip,
        None if len(lead) == 1 and filters is None and not per_row else shape,
    )


def check_call(
    problem: Problem | Open,
    u: Tensor,
    k: Tensor | None,
    k_rev: Tensor | None,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
    form: Form,
    result: int | None = None,
) -> int | None:
    """How many filters a channel has, where k says it has several. Raises InputError for what does not fit.

    ``result``: its steps, where these are not u's.
    """
    u = check_input(problem, u)
    groups, per_row, reverse = form
    check_flag("per_row", per_row)
    if reverse not in REVERSED:
        raise InputError(f"reverse {reverse!r} is not known: choose from {', '.join(REVERSED)}")
    for name, f in (("k", k), ("k_rev", k_rev)):
        if f is not None:
            check_channels(name, check_filter(problem, f, name), u, groups)
    if k is not None and k_rev is not None and k.shape[:-1] != k_rev.shape[:-1]:
        raise InputError(
            f"k_rev must have k's channels: k is {tuple(k.shape)}, k_rev {tuple(k_rev.shape)}; "
            "only the number of taps may differ"
        )
    filters = _filters(u, k, per_row)
    *lead, channels, steps = u.shape
    steps = steps if result is None else result
    check_gate("in_gate", in_gate, u, u.shape)
    check_gate("out_gate", out_gate, u, (*lead, *(() if filters is None else (filters,)), channels, steps))
    check_skip(skip, u, filters)
    return filters


def _flat(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A reshape that leaves a tensor of that shape alone, and its strides."""
    return x if x.dim() == 3 and tuple(x.shape) == shape else x.reshape(shape)


def _rows(k: Tensor | None) -> Tensor | None:
    return k if k is None or k.dim() == 2 else k.flatten(0, -2)


def _filters(u: Tensor, k: Tensor | None, per_row: bool) -> int | None:
    """How many filters a channel has where k says it has several."""
    if k is None or (k.dim() == 2 and not per_row):
        return None
    if per_row:
        if k.shape[:-2] != u.shape[:-2]:
            rows = ", ".join(map(str, (*u.shape[:-2], k.shape[-2])))
            raise InputError(
                f"per_row=True needs a filter for every row: u is {tuple(u.shape)}, k must be "
                f"({rows}, taps), got {tuple(k.shape)}"
            )
        return None
    if k.dim() != 3:
        raise InputError(
            f"k must be (channels, taps) or (filters, channels, taps), got {tuple(k.shape)}: "
            "per_row=True for one filter per row of u"
        )
    if k.shape[0] < 1:
        raise InputError(
            f"k (filters, channels, taps) needs at least one filter per channel, got {tuple(k.shape)}"
        )
    return int(k.shape[0])


def _ungrouped(k: Tensor | None, groups: int | None, channels: int) -> Tensor | None:
    """(..., G, Lk) to (..., H, Lk): each filter for the H / G channels of its group."""
    if k is None or groups is None or groups == channels:
        return k
    return k.repeat_interleave(channels // groups, dim=-2)


def _shifted(k_rev: Tensor, problem: Problem | Open) -> Tensor:
    """Tap j of the reversed filter at j + 1 steps back, where "mirrored" leaves it at j."""
    if not problem.causal:
        raise InputError(
            "reverse='shifted' stands for published layers that pad to twice the length: it is linear, "
            "use a causal convolution"
        )
    if problem.length is not None:  # the last tap of a filter as long as the signal reaches beyond it
        k_rev = k_rev[..., : problem.length - 1]
    return torch.nn.functional.pad(k_rev, (1, 0))

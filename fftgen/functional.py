"""``fftgen.fftconv``: the functional form, with SciPy's modes on top of the two that kernels compute.

causal, circular   what the kernels compute
same               one call: taps before the middle act backwards (k_rev), so nothing is padded
full               causal, of u padded to L + Lk - 1: a longer transform and one copy of u (and in_gate)
valid              causal, the first Lk - 1 values dropped (a view); u padded where k is longer than u
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fftgen import observed, operators
from fftgen.check import Open, check_count, check_tensor, hint_of, wanted
from fftgen.conv import registered
from fftgen.errors import InputError
from fftgen.handles import any_length
from fftgen.loaded import Route, Routes
from fftgen.problem import MODES, Problem
from fftgen.signature import Form, arrange, autocast, autocasting, check_call, shapes
from fftgen.storage import stored_as

SCIPY_MODES = ("full", "same", "valid")
_PROBE = Problem("causal", 1, "fp32")
_ROUTES = Routes()


def fftconv(
    u: Tensor,
    k: Tensor,
    *,
    mode: str = "causal",
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
    groups: int | None = None,
    per_row: bool = False,
    reverse: str = "mirrored",
    period: int | None = None,
) -> Tensor:
    """Convolve, with kernels for whatever lengths come: one graph of ``torch.compile`` serves them all.

    u (..., H, L) with k (H, Lk) and everything else as ``Conv.__call__``, or u (L,) with k (Lk,).
    "causal": y_t = sum_{j<=t} k_j u_{t-j}, t < L; lengths close to each other share kernels.
    "circular": wrapped at ``period``, L by default; signals and filters of at most that.
    "full", "same", "valid": what ``scipy.signal.fftconvolve(u, k, mode, axes=-1)`` returns of the linear
    convolution, L + Lk - 1, L, or |L - Lk| + 1 long; no k_rev, and skip only in "full", where output and
    input line up. u is bfloat16, float16 or float32; on a CPU float64 as well.
    Raises InputError as ``Conv.__call__`` does.
    """
    given = (u, k, k_rev, in_gate, out_gate, skip)
    kind = None
    if observed.plain(*given):
        if observed.diverted():
            with torch._C.DisableTorchFunction():
                return fftconv(
                    u, k, mode=mode, k_rev=k_rev, in_gate=in_gate, out_gate=out_gate, skip=skip,
                    groups=groups, per_row=per_row, reverse=reverse, period=period,
                )  # fmt: skip
        types = type(period), type(groups), type(per_row)  # 1, True and 1.0 are one key
        recorded = observed.recorded(*given)
        kind = (recorded, mode, period, groups, per_row, reverse, *types, *shapes(*given))
        route = _ROUTES.find(kind)
        # Autocast may want another type than the one that these are in.
        if route is not None and not autocasting(u.device.type):
            return route.conv(*given)
    if mode not in (*MODES, *SCIPY_MODES):
        raise InputError(f"mode {mode!r} is not supported: choose from {', '.join((*MODES, *SCIPY_MODES))}")
    if not isinstance(u, Tensor) or not isinstance(k, Tensor):
        raise InputError("u and k must be tensors: u (..., channels, length), k (channels, taps)")
    u, k = check_tensor("u", u), check_tensor("k", k)
    k_rev = None if k_rev is None else check_tensor("k_rev", k_rev)
    if u.dim() == 0 or k.dim() == 0 or (k_rev is not None and k_rev.dim() == 0):
        raise InputError(
            "u and filters must have time, got a number: u (..., channels, length), k (channels, taps)"
        )
    if u.dim() == 1 and k.dim() == 1:
        k_rev, in_gate, out_gate = (
            x[None] if isinstance(x, Tensor) else x for x in (k_rev, in_gate, out_gate)
        )
        skip = skip[None] if isinstance(skip, Tensor) and skip.dim() == 0 else skip
        return fftconv(
            u[None],
            k[None],
            mode=mode,
            k_rev=k_rev,
            in_gate=in_gate,
            out_gate=out_gate,
            skip=skip,
            groups=groups,
            per_row=per_row,
            reverse=reverse,
            period=period,
        )[0]
    form = Form(groups, per_row, reverse)
    if period is not None and mode != "circular":
        raise InputError(f"period={period} belongs to mode 'circular', not to {mode!r}")
    if period is not None:
        check_count("period", period)
    if mode in MODES:
        return _call(mode, *given, form, period, kind)
    if k_rev is not None:
        raise InputError(f"k_rev has no place in mode {mode!r}: use 'causal' or 'circular'")
    if skip is not None and mode != "full":
        raise InputError(
            f"skip has no place in mode {mode!r}: its output does not line up with the input; add it by hand"
        )
    steps, taps = u.shape[-1], k.shape[-1]
    result = steps + taps - 1 if mode == "full" else abs(steps - taps) + 1
    if mode == "same":
        return _call("causal", u, *_around(k, (taps - 1) // 2), in_gate, out_gate, None, form)
    # What is padded below would be refused by shapes that nobody passed, or, of nothing, come out as zeros.
    u, in_gate, out_gate = _cast(u, in_gate, out_gate)
    check_call(Open("causal", None, _storage(u)), u, k, None, in_gate, out_gate, skip, form, result)
    longer = taps - 1 if mode == "full" else max(0, taps - steps)
    u, in_gate = (_end(x, longer) for x in (u, in_gate))  # type: ignore[assignment]
    if mode == "full":
        return _call("causal", u, k, None, in_gate, out_gate, skip, form)
    first, last = min(steps, taps) - 1, max(steps, taps)
    # Room for the values that are dropped, so that the gate stays inside the kernel.
    gate = None if out_gate is None else pad(out_gate, (first, 0))
    return _call("causal", u, k, None, in_gate, gate, None, form)[..., first:last]


def _end(x: Tensor | None, more: int) -> Tensor | None:
    return x if x is None or more == 0 else pad(x, (0, more))


def _around(k: Tensor, middle: int) -> tuple[Tensor, Tensor | None]:
    """The taps from the middle one on, and those before it as a filter that acts backwards."""
    if _EXPORTING():
        # Every tensor as long as k: of halves of a dimension torch.export can prove nothing.
        before = torch.arange(k.shape[-1], device=k.device) < middle
        back = torch.where(before, k, 0).flip(-1).roll(middle + 1, -1)
        return torch.where(before, 0, k).roll(-middle, -1), back
    return k[..., middle:], None if middle == 0 else pad(k[..., :middle].flip(-1), (1, 0))


# PyTorch 2.6 does not tell exporting from compiling.
_EXPORTING = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _call(
    mode: str,
    u: Tensor,
    k: Tensor,
    k_rev: Tensor | None,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
    form: Form,
    period: int | None = None,
    kind: tuple[object, ...] | None = None,
) -> Tensor:
    """``kind``: what the next call of its kind will be known by, where it may be known."""
    given = (u, k, k_rev, in_gate, out_gate, skip)
    if autocasting(u.device.type):
        kind = None
        u, in_gate, out_gate = _cast(u, in_gate, out_gate)
    dtype = _storage(u)
    problem = _problem(mode, dtype, period, *(x.shape[-1] for x in (u, k, k_rev) if x is not None))
    x = arrange(problem, u, k, k_rev, in_gate, out_gate, skip, form)
    handle = any_length(mode, dtype) if period is None else f"{mode}-{period}-{dtype}"
    if kind is not None and x.untouched(*given):
        route = Route(handle)
        # Differentiation goes by the operators, which may want other kernels.
        if x.u.is_cuda and not observed.recorded(*given):
            route = registered(handle, x.u.shape[-1]).route(x.u, x.k, x.k_rev, handle, x.gated)
        _ROUTES.keep(kind, route)
        return route.conv(*given)
    return x.back(operators.conv(*x.tensors(), handle))


def _cast(u: Tensor, *gates: Tensor | None) -> tuple[Any, ...]:
    """Signals in the type that autocast wants, where it is on."""
    on = autocasting(u.device.type)
    return autocast(torch.get_autocast_dtype(u.device.type), u, *gates) if on else (u, *gates)


def _storage(u: Tensor) -> str:
    """The name of the type that signals are stored in. Raises InputError for one that is not served there."""
    if name := stored_as(u.dtype):
        return name
    if u.dtype == wanted(_PROBE, u):  # float64, where torch.fft computes in it
        return _PROBE.dtype
    served = "" if u.is_cuda else "torch.float64, "
    hint = hint_of(u, "u.float()")
    raise InputError(
        f"u is {u.dtype}, fftconv on {u.device.type} takes {served}torch.float32, torch.bfloat16 and "
        f"torch.float16: {hint}"
    )


def _problem(mode: str, dtype: str, period: int | None, *lengths: int) -> Problem | Open:
    """What a call of signals and filters of so many steps is checked against.

    A graph that is traced stays open for other lengths: it compares them with no limit that does not hold
    for all of them. The operators find their kernels, and the longest transform, when it runs.
    """
    if period is not None:
        if any(x > period for x in lengths):
            raise InputError(
                f"signals and filters of {', '.join(map(str, lengths))} steps, period={period}: the period "
                "is at least the longest of them; fold longer ones first"
            )
        return Problem(mode, period, dtype)
    if torch.compiler.is_compiling() or any(type(x) is not int for x in lengths):
        return Open(mode, None if mode == "causal" else lengths[0], dtype)
    return Problem(mode, max(lengths) if mode == "causal" else lengths[0], dtype)

"""Derivatives of the operators, made of the operators again.

Gradients of filters and skip are accumulated in float32 (float64 for float64 signals) and cast to the
argument's dtype at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fftgen.eager import wide
from fftgen.operators import Kept, Maybe, conv, conv_both, conv_gradients, correlate_input


def separately(
    calls: tuple[Any, Any], given: Sequence[Any], v: Tensor, needed: Sequence[bool], handle: str
) -> tuple[Maybe, Maybe, Maybe]:
    """The gradients of u, in_gate and out_gate that are needed, for v, by ``calls``: ``conv``, ``conv_both``.

    ``given``: the arguments of ``conv``.
    """
    one, both = calls
    u, k, k_rev, in_gate, out_gate, skip = given
    need_u, need_in, need_out = needed
    du = d_in = d_out = None
    if need_u and need_in:
        du, d_in = both(v, k_rev, k, out_gate, in_gate, u, skip, handle)
    elif need_u:
        du = one(v, k_rev, k, out_gate, in_gate, skip, handle)
    elif need_in:
        d_in = one(v, k_rev, k, out_gate, u, skip, handle)
    if need_out:
        d_out = one(u, k, k_rev, in_gate, v, skip, handle)
    return du, d_in, d_out


def gradients(
    given: Sequence[Any], v: Tensor, needs: Sequence[bool], handle: str, spectrum: Kept = None
) -> tuple[Maybe, ...]:
    """Of ``conv``'s arguments, those that are needed, in their order, for the cotangent v of its result."""
    u, k, k_rev, in_gate, out_gate, skip = given
    need_u, need_k, need_rev, need_in, need_out, need_skip = needs[:6]
    du = dk = dk_rev = d_in = d_out = dskip = None
    signals = (need_u, need_in, need_out)
    if need_k and any(signals):
        taps = k.shape[-1]
        du, d_in, d_out, dk = conv_gradients(
            u, v, k, k_rev, in_gate, out_gate, skip, signals, taps, handle, spectrum
        )
    else:
        du, d_in, d_out = separately((conv, conv_both), given, v, signals, handle)
        if need_k:
            dk = correlate_input(u, v, in_gate, out_gate, k.shape[-1], handle)
    if need_rev:
        dk_rev = correlate_input(v, u, out_gate, in_gate, k_rev.shape[-1], handle).to(k_rev.dtype)
    if need_skip:
        lag_zero = correlate_input(u, v, in_gate, out_gate, 1, handle) if dk is None else dk
        dskip = lag_zero[:, 0].to(skip.dtype)
    return du, None if dk is None else dk.to(k.dtype), dk_rev, d_in, d_out, dskip


def of_signals(given: Sequence[Any], k: Tensor, needs: Sequence[bool], handle: str) -> tuple[Maybe, ...]:
    """Of ``correlate_input``'s u, v, in_gate, out_gate, for the cotangent k of its result: it is a filter."""
    u, v, in_gate, out_gate = given
    need_u, need_v, need_in, need_out = needs[:4]
    return (
        conv(v, None, k, out_gate, in_gate, None, handle) if need_u else None,
        conv(u, k, None, in_gate, out_gate, None, handle) if need_v else None,
        conv(v, None, k, out_gate, u, None, handle) if need_in else None,
        conv(u, k, None, in_gate, v, None, handle) if need_out else None,
    )


def tangent_of_taps(signals: Sequence[Any], tangents: Sequence[Any], taps: int, handle: str) -> Tensor:
    """Of ``correlate_input``'s result, for tangents of its signals."""
    parts = []
    for i, tangent in enumerate(tangents[:4]):
        if tangent is not None:
            given: list[Any] = [*signals, taps, handle]
            given[i] = tangent
            parts.append(correlate_input(*given))
    return _sum(parts)


def no_taps(u: Tensor, taps: int) -> Tensor:
    return u.new_zeros((u.shape[1], taps), dtype=wide(u))


def tangent(given: Sequence[Any], tangents: Sequence[Any], handle: str) -> Tensor:
    """Of ``conv``'s result, for tangents of its arguments."""
    u, k, k_rev, in_gate, out_gate, skip = given
    du, dk, dk_rev, d_in, d_out, dskip = tangents[:6]
    parts = []
    if du is not None:
        parts.append(conv(du, k, k_rev, in_gate, out_gate, skip, handle))
    if d_in is not None:
        parts.append(conv(u, k, k_rev, d_in, out_gate, skip, handle))
    if d_out is not None:
        parts.append(conv(u, k, k_rev, in_gate, d_out, skip, handle))
    if dk is not None or dk_rev is not None:
        parts.append(conv(u, dk, dk_rev, in_gate, out_gate, None, handle))
    if dskip is not None:
        parts.append(conv(u, dskip[:, None], None, in_gate, out_gate, None, handle))
    return _sum(parts)


def added(a: Maybe, b: Maybe) -> Maybe:
    return a if b is None else b if a is None else a + b


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total

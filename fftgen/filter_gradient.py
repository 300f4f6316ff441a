"""Gradients on a GPU by kernels (planner/gradient.py): all in one pass, or a filter's alone, or torch.fft."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fftgen import eager, windowed
from fftgen.conv import Conv
from fftgen.gradient import Gradients, Needed, backward, correlate_input
from fftgen.loaded import Loaded, LoadedGradient, stream_of
from fftgen.planner.gradient_sections import Prepared
from fftgen.planner.windows import LEAST_OF_GRADIENTS, WORTH_BACKWARD
from fftgen.problem import Problem


def all_on_gpu(
    conv: Conv,
    given: tuple[Any, ...],
    v: Tensor,
    needed: Needed,
    taps: int,
    spectrum: tuple[Tensor, Tensor] | None = None,
) -> Gradients | None:
    """The gradients of a call of ``conv``, of the filter (H, taps) float32; None: no kernels for it.

    ``given``: u, k, k_rev, in_gate, out_gate, skip as the operator has them; v the cotangent, like u.
    ``spectrum``: planes and scale that the call itself made; without them they are made again.
    """
    u, k, k_rev, in_gate, out_gate, skip = given
    if u.numel() == 0:
        return None
    problem, k, k_rev = conv.meeting(u, k, k_rev)
    # On a circle lags come around: that takes kernels of another kind, unless half of it is padding.
    if not problem.causal or (taps > problem.length and not conv.problem.causal):
        return None
    if conv.windows(u, problem, k, k_rev, WORTH_BACKWARD) is not None:
        return None  # each by itself, window by window
    gated, there = in_gate is not None or out_gate is not None, _prepared(spectrum)
    cut = _in_sections(conv, u, problem, gated, there) if k_rev is None else None
    loaded, convolution = cut or (conv.backward_on(u.device, problem), None)
    if loaded is None:
        return None
    of = loaded.gradient.plan
    if spectrum is None or there != Prepared(of.sections, of.transform):
        made = (convolution or conv.on(u.device, problem)).spectrum(k, k_rev, skip)
        spectrum = made.planes, made.scale
    return backward(
        loaded.gradient,
        loaded.tables,
        loaded.module.on(stream_of(u.device)),
        u,
        v,
        *spectrum,
        in_gate,
        out_gate,
        needed=needed,
        taps=taps,
    )


def _in_sections(
    conv: Conv,
    u: Tensor,
    problem: Problem,
    gated: bool,
    prepared: Prepared | None = None,
    alone: bool = False,
) -> tuple[LoadedGradient, Loaded | None] | None:
    """The kernels in sections that had better take so many rows, and those that make the filters' spectra if
    they are wanted; None: those of the whole do.

    ``gated``, ``prepared``, ``alone``: as planner/gradient_sections.py has them.
    """
    plan = conv.backward_sections(u.device, problem, u.shape[0], u.shape[1], gated, prepared, alone)
    loaded = None if plan is None else conv.backward_in_sections(u.device, plan)
    if plan is None or loaded is None:
        return None
    if alone or prepared == Prepared(plan.sections, plan.transform):
        return loaded, None
    convolution = conv.in_sections(u.device, plan)
    return None if convolution is None else (loaded, convolution)


def _prepared(spectrum: tuple[Tensor, Tensor] | None) -> Prepared | None:
    """What a spectrum's planes are of: (H, 2, N), or of sections (P, H, 2, N)."""
    if spectrum is None:
        return None
    planes = spectrum[0]
    return Prepared(planes.shape[0] if planes.dim() == 4 else 1, planes.shape[-1])


def on_gpu(
    conv: Conv, u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, taps: int
) -> Tensor:
    """``sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}``, (H, taps) float32, for the plan of ``conv``.

    u, v, gates (B, H, L). One tap, the gradient of a skip term, is a sum that needs no transform. Before
    sm_80 (but of fp32) and for artifacts built without ``--train`` there are no kernels: torch.fft does it,
    in fp32 copies of the signals, and a warning says so once.
    """
    steps = u.shape[-1]
    reach = min(taps, steps) if conv.problem.causal else taps
    loaded = None
    if reach > 1 and u.numel():
        problem = conv.served(steps, reach)
        found = conv.windows_of(
            u.device, problem, (u.shape[0], u.shape[1], steps), reach, 0, least=LEAST_OF_GRADIENTS
        )
        if found is not None and (loaded := conv.windows_gradient(u.device, found)) is not None:
            return windowed.correlate_input(
                found,
                loaded.gradient,
                loaded.tables,
                loaded.module.on(stream_of(u.device)),
                u,
                v,
                in_gate,
                out_gate,
                taps=taps,
            )
        if u.shape == v.shape:
            gated = in_gate is not None or out_gate is not None
            cut = _in_sections(conv, u, problem, gated, alone=True)
            loaded = None if cut is None else cut[0]
        loaded = loaded or conv.gradient_on(u.device, problem)
        if loaded is None:
            warnings.warn(_slow(conv), RuntimeWarning, stacklevel=2)
    if loaded is None:
        p = conv.problem
        return eager.correlate_input(
            u, v, mode=p.mode, length=p.length, taps=taps, in_gate=in_gate, out_gate=out_gate
        )
    return correlate_input(
        loaded.gradient,
        loaded.tables,
        loaded.module.on(stream_of(u.device)),
        u,
        v,
        in_gate,
        out_gate,
        taps=taps,
        period=0 if problem.causal else problem.length,
    )


def _slow(conv: Conv) -> str:
    where = "" if conv.problem.dtype == "fp32" else "its kernels need sm_80 or later, and "
    return (
        f"the gradient of the filter of {conv!r} goes through torch.fft, slower and with fp32 copies of the "
        f"signals: {where}an artifact has {'its kernels' if not where else 'them'} when built with --train"
    )

"""The gradient of a filter on a GPU: by its kernels (planner/gradient.py), else by torch.fft."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fftgen import eager
from fftgen.execute import time_contiguous
from fftgen.gradient import correlate_input

if TYPE_CHECKING:
    from fftgen.conv import Conv


def on_gpu(
    conv: Conv, u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, taps: int
) -> Tensor:
    """``sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}``, (H, taps) float32, for the plan of ``conv``.

    u, v, gates (B, H, L). One tap, the gradient of a skip term, is a sum that needs no transform. Before
    sm_80 and for artifacts built without ``--train`` there are no kernels: torch.fft does it, in fp32 copies
    of the signals, and a warning says so once.
    """
    steps = u.shape[-1]
    reach = min(taps, steps) if conv.problem.causal else taps
    problem = conv.served(steps, reach)
    loaded = conv.gradient_on(u.device, problem) if reach > 1 and u.numel() else None
    if loaded is None:
        p = conv.problem
        if reach > 1 and u.numel():
            warnings.warn(_slow(conv), RuntimeWarning, stacklevel=2)
        return eager.correlate_input(
            u, v, mode=p.mode, length=p.length, taps=taps, in_gate=in_gate, out_gate=out_gate
        )
    signals = [time_contiguous(x) for x in (u, v, in_gate, out_gate)]
    assert signals[0] is not None
    assert signals[1] is not None
    stream = torch.cuda.current_stream(u.device).cuda_stream
    return correlate_input(
        loaded.gradient,
        loaded.tables,
        loaded.module.on(stream),
        signals[0],
        signals[1],
        signals[2],
        signals[3],
        taps=taps,
        period=0 if problem.causal else problem.length,
    )


def _slow(conv: Conv) -> str:
    return (
        f"the gradient of the filter of {conv!r} goes through torch.fft, slower and with fp32 copies of the "
        "signals: its kernels need sm_80 or later, and an artifact has them when built with --train"
    )

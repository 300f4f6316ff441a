"""The gradient of a filter on a GPU: the one place where its kernel goes.

``on_gpu`` is what fftgen::correlate_input does on CUDA tensors; ``refuse`` says at the call, before
anything is launched, what the backward pass could not do. With a kernel, ``on_gpu`` calls it and
``refuse`` and its callers go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fftgen import eager
from fftgen.check import needs_grad
from fftgen.errors import InputError

if TYPE_CHECKING:
    from fftgen.conv import Conv

NO_KERNEL = (
    "the gradient of the filter has no CUDA kernel yet: k.detach() trains everything but the filter on a "
    "GPU (input, gates, skip), CPU tensors train the filter as well"
)


def on_gpu(
    conv: Conv, u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, taps: int
) -> Tensor:
    """``sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}``, (H, taps) float32, for the plan of ``conv``.

    u, v, gates (B, H, L). One tap, the gradient of a skip term, is a sum that needs no transform.
    Raises InputError for more.
    """
    if taps == 1:
        p = conv.problem
        return eager.correlate_input(
            u, v, mode=p.mode, length=p.length, taps=1, in_gate=in_gate, out_gate=out_gate
        )
    raise InputError(NO_KERNEL)


def refuse(*filters: Tensor | None) -> None:
    """Raises InputError when autograd would want the gradient of a filter on a GPU."""
    if any(k is not None and k.is_cuda and needs_grad(k) for k in filters):
        raise InputError(NO_KERNEL)

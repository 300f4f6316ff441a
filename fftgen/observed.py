"""Who looks at a call: differentiation, a tracer, a transform, a mode, or tensors with ways of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
# Of the mapping that torch.autograd has beside torch.func's, which is no transform that anything tells of.
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def recorded(*inputs: Any) -> bool:
    """Whether reverse or forward mode differentiation looks at a call."""
    if _forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for x in inputs:
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False


def plain(*inputs: Any) -> bool:
    """Whether nothing but differentiation may look at a call on these tensors.

    No graph is traced, no transform of torch.func and no mode of torch.overrides (but that of a default
    device, which is about tensors that are made) or of torch.utils._python_dispatch is active, and no input
    is of a class with ways of its own, or one whose memory does not hold its values: the imaginary part of a
    conjugate is negated when it is read, and zeros that autograd makes may have no memory. The dispatcher
    sees to all that, and checks of arguments to what lies in memory in no strides.
    """
    c = torch._C
    if torch.compiler.is_compiling() or c._are_functorch_transforms_active():
        return False
    if c._len_torch_dispatch_stack() or c._get_tracing_state() is not None:
        return False
    if c._is_torch_function_mode_enabled():
        modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if not all(type(mode) is DeviceContext for mode in modes):
            return False
        with c.DisableTorchFunction():
            return _hold_values(inputs)
    return _hold_values(inputs)


def _hold_values(inputs: tuple[Any, ...]) -> bool:
    for x in inputs:
        if x is None:
            continue
        if type(x) not in PLAIN or x.layout is not _STRIDED:
            return False
        if x.is_neg() or x._is_zerotensor() or _is_batched(x):
            return False
    return True


def diverted() -> bool:
    """Whether a mode, of a default device where a call is ``plain``, sees every operation on tensors first.

    That costs a microsecond each time and changes nothing of operations that make no tensors or say where.
    """
    return bool(torch._C._is_torch_function_mode_enabled())


def unobserved(*inputs: Any) -> bool:
    """Whether nobody looks at a call: it is ``plain`` and not ``recorded``.

    Such a call needs no dispatcher, which would take a third of its time on the host.
    """
    return plain(*inputs) and not recorded(*inputs)

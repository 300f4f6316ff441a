"""The torch.library operators: ``fftgen::conv`` and ``fftgen::conv_prepared``, with fake kernels.

A convolution is named by its handle (a string), so that graphs can hold it; ``conv.registered`` finds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fftgen.conv import CPU_DIGEST, registered
from fftgen.execute import with_skip

_torch_library: Any = torch.library  # its classes carry no annotations
_LIBRARY = _torch_library.Library("fftgen", "DEF")
_LIBRARY.define(
    "conv(Tensor u, Tensor k, Tensor? in_gate, Tensor? out_gate, Tensor? skip, str handle) -> Tensor"
)
_LIBRARY.define(
    "conv_prepared(Tensor u, Tensor planes, Tensor scale, Tensor? in_gate, Tensor? out_gate, Tensor? skip, "
    "str handle, str digest) -> Tensor"
)


def _conv_cuda(
    u: Tensor, k: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, skip: Tensor | None, handle: str
) -> Tensor:
    return registered(handle).run(u, k, in_gate, out_gate, skip)


def _conv_cpu(
    u: Tensor, k: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, skip: Tensor | None, handle: str
) -> Tensor:
    return registered(handle)._eager(u, k, in_gate, out_gate, skip).contiguous()


def _prepared_cuda(
    u: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
    handle: str,
    digest: str,
) -> Tensor:
    conv = registered(handle)
    if u.numel() == 0:
        return torch.empty_like(u)
    loaded = conv.loaded_for(digest, u)
    if skip is not None:
        planes, scale = with_skip(loaded.executable.plan, planes, scale, skip)
    return conv.launch(loaded, u, planes, scale, in_gate, out_gate)


def _prepared_cpu(
    u: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Tensor | None,
    out_gate: Tensor | None,
    skip: Tensor | None,
    handle: str,
    digest: str,
) -> Tensor:
    assert digest == CPU_DIGEST
    return registered(handle)._eager(u, planes, in_gate, out_gate, skip).contiguous()


def _like_u(u: Tensor, *_: object) -> Tensor:
    """What every operator returns: a new contiguous tensor of u's shape, dtype and device."""
    return torch.empty_like(u, memory_format=torch.contiguous_format)


for _name, _cpu, _cuda in (
    ("conv", _conv_cpu, _conv_cuda),
    ("conv_prepared", _prepared_cpu, _prepared_cuda),
):
    _LIBRARY.impl(_name, _cpu, "CPU")
    _LIBRARY.impl(_name, _cuda, "CUDA")
    _torch_library.register_fake(f"fftgen::{_name}", _like_u, lib=_LIBRARY)

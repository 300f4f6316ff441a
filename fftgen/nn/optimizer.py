"""Learning rates of filters: their own, and no weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from fftgen.nn.fft_conv import FFTConv
from fftgen.nn.free_filters import FreeFilters


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """A model's parameters for ``torch.optim``: filters of this package's layers apart from the rest.

    Filters get ``weight_decay=0`` and their layer's ``filter_lr`` (``lr`` where it is None), everything
    else ``lr`` and ``weight_decay``. Every trainable parameter is in one group, once; groups keep the
    order of ``model.parameters()``, so optimizer states stay loadable.
    """
    own: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, FFTConv | FreeFilters):
            rate = lr if module.filter_lr is None else module.filter_lr
            own.update((id(p), rate) for p in module.filter_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        rate, decay = (own[id(p)], 0.0) if id(p) in own else (lr, weight_decay)
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(p)
    return list(groups.values())

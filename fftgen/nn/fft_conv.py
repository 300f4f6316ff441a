"""``FFTConv``: a depthwise long convolution with a filter of its own, as ``nn.Conv1d`` has one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.check import check_count
from fftgen.conv import Conv
from fftgen.errors import InputError
from fftgen.functional import fftconv
from fftgen.problem import Problem
from fftgen.values import check_flag, check_number


class FFTConv(nn.Module):
    """``y = out_gate * (conv(in_gate * u, k) + D * in_gate * u)`` with trainable k and D.

    u, gates and y (..., H, L), 1 <= L <= length, in bfloat16, float16 or float32 (float64 on CPUs);
    autocast casts them. Parameters, float32:

        weight (G, taps)      the filter; G = ``groups``, H by default: channels of a group share a row
        weight_rev (G, taps)  with ``bidirectional``: acts backwards, sum_j weight_rev_j x_{t+j}
        D (H,)                with ``skip``

    ``mode``: "causal" (taps beyond the input's length meet nothing), or "circular" with period ``length``.
    ``taps``: the filter's length, ``length`` by default. The filter starts as white noise of norm 1 per
    channel, D as ones. ``filter_lr``: its learning rate in ``parameter_groups``. ``conv``: the
    convolution to use, e.g. from ``fftgen.load``; otherwise kernels are found for the lengths that come.

    Raises InputError for arguments that do not fit each other.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        taps: int | None = None,
        mode: str = "causal",
        bidirectional: bool = False,
        skip: bool = True,
        groups: int | None = None,
        filter_lr: float | None = None,
        conv: Conv | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        taps = length if taps is None else taps
        groups = channels if groups is None else groups
        Problem(mode, length, "fp32")  # says what is wrong with either
        for name, count in (("channels", channels), ("taps", taps), ("groups", groups)):
            check_count(name, count)
        for name, flag in (("bidirectional", bidirectional), ("skip", skip)):
            check_flag(name, flag)
        if filter_lr is not None:
            check_number("filter_lr", filter_lr)
        if not 1 <= taps <= length:
            raise InputError(f"taps must be from 1 to length {length}, got {taps}")
        if channels < 1 or groups < 1 or channels % groups:
            raise InputError(f"groups must divide the channels, got groups={groups}, channels={channels}")
        if conv is not None and (conv.problem.mode != mode or conv.problem.length < length):
            raise InputError(f"{conv!r} does not serve {mode} convolutions of {length}")
        if conv is not None and mode == "circular" and conv.problem.length != length:
            raise InputError(f"{conv!r} has another period than {length}")
        self.channels, self.length, self.mode, self.groups = channels, length, mode, groups
        self.filter_lr = filter_lr
        self._conv = conv
        self.weight = nn.Parameter(torch.empty(groups, taps, device=device))
        self.weight_rev = nn.Parameter(torch.empty(groups, taps, device=device)) if bidirectional else None
        self.D = nn.Parameter(torch.empty(channels, device=device)) if skip else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filter anew."""
        filters = list(self.filter_parameters())
        for weight in filters:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[-1] * len(filters)))
        if self.D is not None:
            nn.init.ones_(self.D)

    def filter_parameters(self) -> Iterator[nn.Parameter]:
        """What ``filter_lr`` is for."""
        yield self.weight
        if self.weight_rev is not None:
            yield self.weight_rev

    def extra_repr(self) -> str:
        both = ", bidirectional" if self.weight_rev is not None else ""
        return (
            f"{self.channels}, {self.length}, taps={self.weight.shape[-1]}, mode={self.mode!r}, "
            f"groups={self.groups}, skip={self.D is not None}{both}"
        )

    def forward(self, u: Tensor, *, in_gate: Tensor | None = None, out_gate: Tensor | None = None) -> Tensor:
        if isinstance(u, Tensor) and u.shape[-1] > self.length:
            raise InputError(f"u has length {u.shape[-1]}, this layer takes at most {self.length}")
        groups = None if self.groups == self.channels else self.groups
        if self._conv is not None:
            return self._conv(
                u, self.weight, k_rev=self.weight_rev, in_gate=in_gate, out_gate=out_gate, skip=self.D,
                groups=groups,
            )  # fmt: skip
        return fftconv(
            u, self.weight, mode=self.mode, k_rev=self.weight_rev, in_gate=in_gate, out_gate=out_gate,
            skip=self.D, groups=groups, period=self.length if self.mode == "circular" else None,
        )  # fmt: skip

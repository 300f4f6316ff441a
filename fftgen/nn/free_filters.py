"""What ``LongConv`` and ``H3Conv`` share: filters as long as the sequence, free but regularised.

arXiv 2302.06646: parameters of its own in place of a state-space model's, regularised in the time domain.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fftgen.check import check_count, check_tensor
from fftgen.errors import InputError
from fftgen.nn.regularize import geometric, smooth, squash
from fftgen.observed import plain
from fftgen.problem import Problem
from fftgen.values import check_flag, check_number

INITIAL = ("random", "geometric")
LOOK_EVERY = 1000  # training calls between looks at the squashed filter: on a GPU a look waits for it


class FreeFilters(nn.Module):
    """``kernel`` (rows, H, length), float32: rows of filters, one for each channel.

    ``regularized`` smooths them (``smooth`` taps on each side, moving average) and squashes them by
    ``squash``; a layer drops taps out after that (``filter_dropout``). ``initial``: "random", 0.002 randn, or
    "geometric" (regularize.py). ``filter_lr`` is for ``parameter_groups``, which also keeps weight decay off
    the filters. ``transposed``: signals come and go as (..., H, L), else as (..., L, H).

    Warns (UserWarning) when a filter is squashed to zero: its gradient is zero as well, it never comes back.
    Looked for at construction, at the first training call and at every 1000th, outside of torch.compile,
    torch.func, fake tensors and graph capture; ``zero_filters`` looks at any time. Raises InputError for
    arguments that are not served.
    """

    def __init__(
        self,
        rows: int,
        channels: int,
        length: int,
        *,
        initial: str,
        squash: float,
        smooth: int,
        filter_dropout: float,
        filter_lr: float | None,
        transposed: bool,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        for name, count in (("channels", channels), ("filters", rows), ("smooth", smooth)):
            check_count(name, count)
        Problem("causal", length, "fp32")  # says what is wrong with it
        if min(channels, rows) < 1:
            raise InputError(f"sizes must be positive: {channels} channels, {rows} filters")
        if initial not in INITIAL:
            raise InputError(f"initial {initial!r} is not known: choose from {', '.join(INITIAL)}")
        check_number("squash", squash)
        if smooth < 0:
            raise InputError(f"smooth takes the taps on each side, 0 or more, got {smooth}")
        check_number("filter_dropout", filter_dropout, 1.0)
        if filter_lr is not None:
            check_number("filter_lr", filter_lr)
        check_flag("transposed", transposed)
        self.channels, self.length, self.initial = channels, length, initial
        self.squash, self.smooth = squash, smooth
        self.filter_lr, self.transposed = filter_lr, transposed
        self.filter_dropout = nn.Dropout(filter_dropout)
        self.kernel = nn.Parameter(torch.empty(rows, channels, length, device=device))
        self._calls = 0

    def reset_filters(self) -> None:
        """Draw the filters anew."""
        count = self.kernel.shape[0]
        with torch.no_grad():
            if self.initial == "geometric":
                drawn = geometric(count, self.channels, self.length, device=self.kernel.device)
            else:
                drawn = 0.002 * torch.randn_like(self.kernel)
            self.kernel.copy_(drawn)

    def filter_parameters(self) -> Iterator[nn.Parameter]:
        """What ``filter_lr`` is for."""
        yield self.kernel

    def regularized(self) -> Tensor:
        """The filters as they are convolved with, dropout apart; like ``kernel``."""
        return squash(smooth(self.kernel, self.smooth), self.squash)

    def zero_filters(self) -> int:
        """How many of the filters, one per row of ``kernel``, are zero as they are convolved with."""
        with torch.no_grad():
            return int((~self.regularized().any(dim=-1)).sum())

    def taken(self, u: Tensor) -> Tensor:
        """A signal as (..., H, L). Raises InputError for one that is not served."""
        u = check_tensor("u", u)
        x = u if self.transposed or u.dim() < 2 else u.transpose(-1, -2)
        if x.dim() < 2 or x.shape[-2] != self.channels or not 1 <= x.shape[-1] <= self.length:
            here, there = f"(..., {self.channels}, L)", f"(..., L, {self.channels})"
            if not self.transposed:
                here, there = there, here
            raise InputError(
                f"u has shape {tuple(u.shape)}: this layer takes {here}, 1 <= L <= {self.length}; "
                f"transposed={not self.transposed} takes {there}"
            )
        return x

    def given(self, y: Tensor) -> Tensor:
        """A result (..., H, L) as signals come."""
        return y if self.transposed else y.transpose(-1, -2)

    def drawn(self) -> Tensor:
        """The filters of one call: regularised, dropped out, and looked at now and then."""
        self._look()
        found: Tensor = self.filter_dropout(self.regularized())
        return found

    def _look(self) -> None:
        if not self.training or not plain(self.kernel):
            return
        if self._calls % LOOK_EVERY == 0 and not (
            self.kernel.is_cuda and torch.cuda.is_current_stream_capturing()
        ):
            self._warn()
        self._calls += 1

    def _warn(self) -> None:
        # Only values can be looked at: none of fake tensors, none that torch.func maps.
        if self.kernel.is_meta or not plain(self.kernel):
            return
        zero = self.zero_filters()
        if zero:
            warnings.warn(
                f"{zero} of {self.kernel.shape[0] * self.channels} filters are squashed to zero (squash="
                f"{self.squash}, largest weight {self.kernel.detach().abs().max().item():.3g}): their "
                "gradient is zero, so they stay zero; use a smaller squash or a larger initialisation",
                stacklevel=3,
            )


def channels_mixed(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over channels, (..., H, L) to (..., H', L): its matrix from the left, so that time stays
    the fastest dimension and nothing is transposed."""
    y: Tensor = torch.matmul(linear.weight.to(x.dtype), x)
    return y if linear.bias is None else y + linear.bias.to(x.dtype)[:, None]

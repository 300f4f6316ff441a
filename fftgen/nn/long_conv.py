"""``LongConv``: the layer of "Simple Hardware-Efficient Long Convolutions for Sequence Modeling".

arXiv 2302.06646. A filter as long as the sequence, regularised in the time domain, in place of a
state-space model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.autograd import plain
from fftgen.errors import InputError
from fftgen.functional import fftconv
from fftgen.nn.regularize import geometric, smooth, squash
from fftgen.signature import REVERSED

INITIAL = ("random", "geometric")
LOOK_EVERY = 1000  # training calls between looks at the squashed filter: on a GPU a look waits for it


class LongConv(nn.Module):
    """u (B, H, L) -> C filters per channel -> + D u -> (C H) -> GELU -> dropout -> linear to 2H -> GLU.

    1 <= L <= length. The result has u's shape. Signals in bfloat16 or float16, which autocast gives, or
    float32; on CPUs float64 as well. ``transposed=False`` takes and gives (B, L, H). Parameters, float32:

        kernel (C, H, length)     (2C, H, length) when bidirectional, the first C of them forward
        D (C, H)                  the skip term
        output_linear             C H -> 2 H, then a gated linear unit

    Per call the filter is smoothed (``smooth`` taps on each side, moving average), squashed by ``squash``,
    and dropped out (``filter_dropout``), in this order. It is cut to the input's length and convolved
    linearly: no tap reaches the output from the future, or wraps, unless ``bidirectional``, where the
    reversed filters' tap j acts at t+j. ``reverse="shifted"`` puts it at t+j+1 as the published layers do.
    ``initial``: "random", 0.002 randn, or "geometric" (regularize.py). ``filter_lr`` is for
    ``parameter_groups``, which also keeps weight decay off the filter.

    Warns (UserWarning) when a filter is squashed to zero: its gradient is zero as well, it never comes back.
    Looked for at construction, at the first training call and at every 1000th, outside of torch.compile,
    torch.func, fake tensors and graph capture; ``zero_filters`` looks at any time. Raises InputError for
    arguments that are not served.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        filters: int = 1,
        bidirectional: bool = False,
        reverse: str = "mirrored",
        initial: str = "random",
        squash: float = 0.003,
        smooth: int = 0,
        filter_dropout: float = 0.0,
        dropout: float = 0.0,
        filter_lr: float | None = None,
        transposed: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if initial not in INITIAL:
            raise InputError(f"initial {initial!r} is not known: choose from {', '.join(INITIAL)}")
        if reverse not in REVERSED:
            raise InputError(f"reverse {reverse!r} is not known: choose from {', '.join(REVERSED)}")
        if min(channels, length, filters) < 1:
            raise InputError(f"sizes must be positive: {channels} channels, {length}, {filters} filters")
        if squash < 0 or smooth < 0:
            raise InputError(f"squash and smooth cannot be negative, got {squash} and {smooth}")
        self.channels, self.length, self.filters = channels, length, filters
        self.bidirectional, self.reverse, self.initial = bidirectional, reverse, initial
        self.squash, self.smooth = squash, smooth
        self.filter_lr, self.transposed = filter_lr, transposed
        self.filter_dropout = nn.Dropout(filter_dropout)
        self.dropout = nn.Dropout(dropout)
        sides = 2 if bidirectional else 1
        self.kernel = nn.Parameter(torch.empty(sides * filters, channels, length, device=device))
        self.D = nn.Parameter(torch.empty(filters, channels, device=device))
        self.output_linear = nn.Linear(filters * channels, 2 * channels, device=device)
        self._calls = 0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw filter, skip term and output layer anew."""
        count = self.kernel.shape[0]
        with torch.no_grad():
            if self.initial == "geometric":
                drawn = geometric(count, self.channels, self.length, device=self.kernel.device)
            else:
                drawn = 0.002 * torch.randn_like(self.kernel)
            self.kernel.copy_(drawn)
        nn.init.normal_(self.D)
        self.output_linear.reset_parameters()
        self._warn()

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.length}, filters={self.filters}, bidirectional={self.bidirectional}, "
            f"squash={self.squash}, smooth={self.smooth}"
        )

    def filter_parameters(self) -> Iterator[nn.Parameter]:
        """What ``filter_lr`` is for."""
        yield self.kernel

    def regularized(self) -> Tensor:
        """The filter as it is convolved with, dropout apart; like ``kernel``."""
        return squash(smooth(self.kernel, self.smooth), self.squash)

    def zero_filters(self) -> int:
        """How many of the filters, one per row of ``kernel``, are zero as they are convolved with."""
        with torch.no_grad():
            return int((~self.regularized().any(dim=-1)).sum())

    def forward(self, u: Tensor) -> Tensor:
        if not self.transposed:
            u = u.transpose(-1, -2)
        if u.dim() < 2 or u.shape[-2] != self.channels or not 1 <= u.shape[-1] <= self.length:
            raise InputError(
                f"u has shape {tuple(u.shape)}: this layer takes (..., {self.channels}, L), "
                f"1 <= L <= {self.length}"
                + ("; transposed=False takes (..., L, channels)" if self.transposed else ", transposed")
            )
        self._look()
        k = self.filter_dropout(self.regularized())  # cut to the input by the convolution
        k_rev = None
        if self.bidirectional:
            k, k_rev = k.chunk(2)
        y = fftconv(u, k, k_rev=k_rev, skip=self.D, reverse=self.reverse)  # (..., C, H, L)
        y = self.dropout(nn.functional.gelu(y.flatten(-3, -2)))
        linear = self.output_linear
        # The layer's matrix from the left: time stays the fastest dimension, nothing is transposed.
        y = torch.matmul(linear.weight.to(y.dtype), y) + linear.bias.to(y.dtype)[:, None]
        out: Tensor = nn.functional.glu(y, dim=-2)
        return out if self.transposed else out.transpose(-1, -2)

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

"""``LongConv``: the layer of "Simple Hardware-Efficient Long Convolutions for Sequence Modeling".

arXiv 2302.06646. A filter as long as the sequence, regularised in the time domain, in place of a
state-space model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.check import check_count
from fftgen.errors import InputError
from fftgen.functional import fftconv
from fftgen.nn.free_filters import FreeFilters, channels_mixed
from fftgen.signature import REVERSED
from fftgen.values import check_flag, check_number


class LongConv(FreeFilters):
    """u (B, H, L) -> C filters per channel -> + D u -> (C H) -> GELU -> dropout -> linear to 2H -> GLU.

    1 <= L <= length. The result has u's shape. Signals in bfloat16 or float16, which autocast gives, or
    float32; on CPUs float64 as well. ``transposed=False`` takes and gives (B, L, H). Parameters, float32:

        kernel (C, H, length)     (2C, H, length) when bidirectional, the first C of them forward
        D (C, H)                  the skip term
        output_linear             C H -> 2 H, then a gated linear unit

    Per call the filter is smoothed, squashed and dropped out, in this order (FreeFilters, which says what
    ``initial`` and ``filter_lr`` are, and when it warns). It is cut to the input's length and convolved
    linearly: no tap reaches the output from the future, or wraps, unless ``bidirectional``, where the
    reversed filters' tap j acts at t+j. ``reverse="shifted"`` puts it at t+j+1 as the published layers do.
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
        if reverse not in REVERSED:
            raise InputError(f"reverse {reverse!r} is not known: choose from {', '.join(REVERSED)}")
        check_count("filters", filters)
        check_flag("bidirectional", bidirectional)
        check_number("dropout", dropout, 1.0)
        super().__init__(
            filters * (2 if bidirectional else 1),
            channels,
            length,
            initial=initial,
            squash=squash,
            smooth=smooth,
            filter_dropout=filter_dropout,
            filter_lr=filter_lr,
            transposed=transposed,
            device=device,
        )
        self.filters, self.bidirectional, self.reverse = filters, bidirectional, reverse
        self.dropout = nn.Dropout(dropout)
        self.D = nn.Parameter(torch.empty(filters, channels, device=device))
        self.output_linear = nn.Linear(filters * channels, 2 * channels, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw filter, skip term and output layer anew."""
        self.reset_filters()
        nn.init.normal_(self.D)
        self.output_linear.reset_parameters()
        self._warn()

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.length}, filters={self.filters}, bidirectional={self.bidirectional}, "
            f"squash={self.squash}, smooth={self.smooth}"
        )

    def forward(self, u: Tensor) -> Tensor:
        u = self.taken(u)
        k, k_rev = self.drawn(), None  # cut to the input by the convolution
        if self.bidirectional:
            k, k_rev = k.chunk(2)
        y = fftconv(u, k, k_rev=k_rev, skip=self.D, reverse=self.reverse)  # (..., C, H, L)
        y = self.dropout(nn.functional.gelu(y.flatten(-3, -2)))
        return self.given(nn.functional.glu(channels_mixed(self.output_linear, y), dim=-2))

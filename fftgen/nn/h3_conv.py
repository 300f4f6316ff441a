"""``H3Conv``: H3 (arXiv 2212.14052) with long convolutions in the place of its state-space models.

arXiv 2302.06646, H3-Conv: two causal convolutions with gates between and around them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.functional import fftconv
from fftgen.nn.free_filters import FreeFilters, channels_mixed


class H3Conv(FreeFilters):
    """``y = W_o (q * conv(conv(k, K_1) * v, K_2))``, each convolution with its skip term; q, k, v = W u.

    u and y (B, H, L), 1 <= L <= length, one channel to a head. Signals in bfloat16 or float16, which autocast
    gives, or float32; on CPUs float64 as well. ``transposed=False`` takes and gives (B, L, H). Parameters,
    float32:

        kernel (2, H, length)     the filters of keys, K_1, and of what they make of values, K_2
        D (2, H)                  their skip terms
        input_linear              H -> 3 H: queries, keys, values
        output_linear             H -> H

    Both products with gates are part of the second call, so signals pass device memory twice. Filters are
    smoothed, squashed and dropped out, in this order (FreeFilters, which says what ``initial`` and
    ``filter_lr`` are, and when it warns), and cut to the input's length: no tap acts from the future.
    Defaults of squash and dropout are those of the published language model.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        initial: str = "geometric",
        squash: float = 0.003,
        smooth: int = 0,
        filter_dropout: float = 0.2,
        filter_lr: float | None = None,
        transposed: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            2,
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
        self.D = nn.Parameter(torch.empty(2, channels, device=device))
        self.input_linear = nn.Linear(channels, 3 * channels, device=device)
        self.output_linear = nn.Linear(channels, channels, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw filters, skip terms and linear layers anew."""
        self.reset_filters()
        nn.init.normal_(self.D)
        self.input_linear.reset_parameters()
        self.output_linear.reset_parameters()
        self._warn()

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.length}, squash={self.squash}, smooth={self.smooth}"

    def forward(self, u: Tensor) -> Tensor:
        q, k, v = channels_mixed(self.input_linear, self.taken(u)).chunk(3, dim=-2)
        of_keys, of_values = self.drawn()
        k = fftconv(k, of_keys, skip=self.D[0])
        y = fftconv(k, of_values, in_gate=v, out_gate=q, skip=self.D[1])
        return self.given(channels_mixed(self.output_linear, y))

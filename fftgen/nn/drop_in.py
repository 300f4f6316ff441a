"""``FlashFFTConv``: the class of that name, with its signature and semantics and without its limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.conv import get_conv


class FlashFFTConv(nn.Module):
    """A circular convolution with transforms of ``seqlen``, for models that were written for FlashFFTConv.

    ``conv(u, k)`` is ``ifft(fft(u, seqlen) * fft(k, seqlen))[..., :L]``, ``conv(u, k, pregate, postgate)``
    is ``postgate * conv(pregate * u, k)``. u (B, H, L) in ``dtype``, L <= seqlen; k (H, Lk) in float32,
    Lk <= seqlen; gates like u. For a causal convolution of length L the caller takes seqlen >= 2 L as
    there: it runs as the causal problem of length L, with no padding.

    Where the original has a limit: any seqlen up to 4 194 304, any H and B, either gate alone, leading
    dimensions, contiguous or not, gradients in ``eval()`` as well. Under autocast u and gates are cast to
    ``dtype``. ``use_32_butterfly`` is accepted and has no effect: the planner chooses the factors.

    Holds no parameters and no buffers; the buffers in checkpoints of the original are passed over.
    Raises InputError as ``fftgen.Conv.__call__`` does, and for a length or dtype that is not served.
    """

    def __init__(
        self, seqlen: int, dtype: torch.dtype = torch.float16, use_32_butterfly: bool = True
    ) -> None:
        super().__init__()
        self.seqlen = seqlen
        self.dtype = dtype
        self._conv = get_conv(seqlen, dtype)

    def extra_repr(self) -> str:
        return f"{self.seqlen}, dtype={self.dtype}"

    def forward(
        self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None
    ) -> Tensor:
        return self._conv(u, k, in_gate=pregate, out_gate=postgate)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Passes over what the original kept in checkpoints: its DFT matrices and twiddle factors."""
        theirs = (f"{prefix}f_", f"{prefix}twiddle_factors_")
        kept = {n: x for n, x in state_dict.items() if not n.startswith(theirs)}
        super()._load_from_state_dict(kept, prefix, *rest)

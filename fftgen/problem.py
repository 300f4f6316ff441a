"""What is asked: one frozen, validated description of a convolution, before any decision."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from fftgen.dtypes import DTYPES
from fftgen.errors import InputError

MODES = ("circular", "causal")
MAX_LENGTH = 4_194_304
SPLIT = "split the sequence and add the overlapping parts (overlap-add)"


@dataclass(frozen=True)
class Problem:
    """A depthwise long convolution of real signals.

    ``mode="circular"``: ``y = ifft(fft(u, length) * fft(k, length))``, sequences of at most ``length``.
    ``mode="causal"``: ``y_t = sum_{s<=t} k_s u_{t-s}``, sequences and filters of at most ``length``.
    ``dtype`` names the storage type of signals ("bf16", "fp16"). Raises InputError when a field is off.
    """

    mode: str
    length: int
    dtype: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r} is not supported: choose from {', '.join(MODES)}")
        if isinstance(self.length, bool) or not isinstance(self.length, Integral):
            raise InputError(f"seqlen must be an int, got {self.length!r} ({type(self.length).__name__})")
        object.__setattr__(self, "length", int(self.length))  # of NumPy's it may be
        if self.length < 1:
            raise InputError(f"seqlen must be at least 1, got {self.length}")
        if self.length > MAX_LENGTH:
            raise InputError(f"seqlen {self.length} exceeds the largest transform ({MAX_LENGTH}): {SPLIT}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is not supported: choose from {', '.join(DTYPES)}")

    @property
    def causal(self) -> bool:
        return self.mode == "causal"

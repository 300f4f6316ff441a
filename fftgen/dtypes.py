"""One table of the storage types that a convolution can read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fftgen.errors import InputError

Bits: TypeAlias = npt.NDArray[Any]  # uint16, of fp32 uint32


@dataclass(frozen=True)
class DType:
    """A storage type.

    ``significand`` counts the explicit and the hidden bit; ``ctype`` is the CUDA type;
    ``capability`` is the first compute capability (major * 10 + minor) that convolves it: of 16-bit types
    the first whose matrix units take it.
    """

    name: str
    torch: str
    ctype: str
    header: str
    nbytes: int
    significand: int
    capability: int

    @property
    def epsilon(self) -> float:
        """Unit roundoff: half the distance from 1 to the next number."""
        return 2.0**-self.significand


FP16 = DType("fp16", "float16", "__half", "cuda_fp16.h", 2, 11, 75)
BF16 = DType("bf16", "bfloat16", "__nv_bfloat16", "cuda_bf16.h", 2, 8, 80)
FP32 = DType("fp32", "float32", "float", "", 4, 24, 75)
DTYPES = {d.name: d for d in (FP16, BF16, FP32)}
_ALIASES = {"float16": FP16, "half": FP16, "bfloat16": BF16, "float32": FP32, "float": FP32}


def dtype(name: object) -> DType:
    """The table row for a name ("bf16", "float16", ...), a ``torch.dtype`` or a row itself.

    Raises InputError for anything else.
    """
    if isinstance(name, DType):
        return name
    key = str(name).removeprefix("torch.")
    found = DTYPES.get(key) or _ALIASES.get(key)
    if found is None:
        raise InputError(
            f"dtype {key!r} is not supported: choose bf16 (torch.bfloat16), fp16 (torch.float16) or fp32 "
            "(torch.float32)"
        )
    return found


def encode(values: npt.ArrayLike, to: DType) -> Bits:
    """Round real values to nearest even in ``to`` and return the bit patterns (unsigned, same shape)."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        if to is FP32:
            return np.asarray(exact.astype(np.float32).view(np.uint32))
        if to is FP16:
            return np.asarray(exact.astype(np.float16).view(np.uint16))
        bits = _round_to_odd(exact).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        special = ~np.isfinite(exact)
        if special.any():  # the carry of the rounding must not turn a NaN into an infinity
            rounded = np.where(special, (bits >> np.uint32(16)) | np.where(np.isnan(exact), 0x40, 0), rounded)
    return np.asarray(rounded, np.uint16)


def decode(bits: Bits, of: DType) -> npt.NDArray[np.float32]:
    """The float32 values of bit patterns (exact)."""
    if of is FP32:
        return np.asarray(bits.view(np.float32))
    if of is FP16:
        return np.asarray(bits.view(np.float16), np.float32)
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def _round_to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """float64 to float32 keeping a sticky last bit, so that a second rounding stays correct."""
    near = values.astype(np.float32)
    back = near.astype(np.float64)
    inexact = np.isfinite(back) & (back != values)
    toward_zero = np.where(inexact & (np.abs(back) > np.abs(values)), np.nextafter(near, np.float32(0)), near)
    odd = toward_zero.view(np.uint32) | inexact.astype(np.uint32)
    return np.asarray(odd.view(np.float32))

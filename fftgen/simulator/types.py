"""PTX types and the NumPy types that hold them (PTX ISA, "Types")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DTypeLike = np.dtype[Any]

UNSIGNED: dict[int, DTypeLike] = {
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
SIGNED: dict[int, DTypeLike] = {
    8: np.dtype(np.int8),
    16: np.dtype(np.int16),
    32: np.dtype(np.int32),
    64: np.dtype(np.int64),
}
FLOAT: dict[int, DTypeLike] = {32: np.dtype(np.float32), 64: np.dtype(np.float64)}
BOOL = np.dtype(np.bool_)


@dataclass(frozen=True)
class Type:
    """A PTX type: ``kind`` is b (bits), u, s, f (IEEE float), h (16-bit float, kept as its bits) or p
    (predicate).
    """

    name: str
    kind: str
    bits: int

    @property
    def nbytes(self) -> int:
        return self.bits // 8

    @cached_property
    def dtype(self) -> DTypeLike:
        """The NumPy type that an instruction of this type computes in (bits for b and h kinds)."""
        if self.kind == "p":
            return BOOL
        if self.kind == "s":
            return SIGNED[self.bits]
        if self.kind == "f":
            return FLOAT[self.bits]
        return UNSIGNED[self.bits]

    @cached_property
    def storage(self) -> DTypeLike:
        """The NumPy type of a register declared with this type."""
        if self.kind in "pf":
            return self.dtype
        return UNSIGNED[self.bits]


TYPES: dict[str, Type] = {"pred": Type("pred", "p", 1)}
for _kind in "bus":
    for _bits in (8, 16, 32, 64):
        TYPES[f"{_kind}{_bits}"] = Type(f"{_kind}{_bits}", _kind, _bits)
for _name, _kind, _bits in (
    ("f16", "h", 16),
    ("bf16", "h", 16),
    ("f16x2", "h", 32),
    ("bf16x2", "h", 32),
    ("tf32", "h", 32),
    ("f32", "f", 32),
    ("f64", "f", 64),
):
    TYPES[_name] = Type(_name, _kind, _bits)

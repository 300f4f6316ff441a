"""Device memory: named buffers at made-up 64-bit addresses, sharing the bytes of NumPy arrays."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from fftgen.errors import InputError
from fftgen.simulator.types import UNSIGNED, Array

_FIRST = 0x0A00_4000_0100  # over 2**40: an address cut to 32 bits meets no buffer; 256- and not 512-aligned
_STEP = 0x1_0000  # buffers start a multiple of this apart, with at least as much unmapped behind each


class Buffer:
    """A named range of addresses. ``written`` marks the bytes that hold a value; None when all do."""

    def __init__(self, name: str, base: int, data: Array, writable: bool, written: Array | None) -> None:
        self.name = name
        self.base = base
        self.size = int(data.size)
        self.bytes = data
        self.writable = writable
        self.written = written
        self._views: dict[int, Array] = {}

    def view(self, nbytes: int) -> Array:
        """The bytes as unsigned integers of ``nbytes`` (1, 2, 4, 8); a ragged tail is left out."""
        found = self._views.get(nbytes)
        if found is None:
            whole = self.size // nbytes * nbytes
            found = self._views[nbytes] = self.bytes[:whole].view(UNSIGNED[8 * nbytes])
        return found


class Unwritten(int):
    """How many bytes of a buffer nothing has written, with ``slices`` of byte offsets that hold them."""

    slices: tuple[slice, ...]

    @property
    def count(self) -> int:
        return int(self)


class DeviceMemory:
    """The buffers that a kernel may touch.

    ``bind`` returns the device address to pass as a kernel parameter. The array is shared: what a kernel
    writes is seen in it at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Buffer] = {}
        self._next = _FIRST
        self._order: list[Buffer] = []
        self._bases: list[int] = []

    def bind(
        self, name: str, array: npt.NDArray[Any], *, writable: bool = False, initialized: bool = True
    ) -> int:
        """Give ``array`` (C-contiguous, any dtype) a device address, 256-byte aligned.

        ``initialized=False`` poisons every byte until a kernel writes it. Raises InputError for a name in
        use, an array that is not contiguous, or a writable binding of a read-only array.
        """
        if name in self._buffers:
            raise InputError(f"buffer {name!r} is bound already: unbind it first or choose another name")
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise InputError(
                f"buffer {name!r} must be a C-contiguous numpy array: use numpy.ascontiguousarray"
            )
        if writable and not array.flags.writeable:
            raise InputError(f"buffer {name!r} is bound writable, but its array is read-only")
        data = array.reshape(-1).view(np.uint8)
        buffer = Buffer(
            name, self._next, data, writable, None if initialized else np.zeros(data.size, np.bool_)
        )
        self._next += (data.size // _STEP + 2) * _STEP
        self._buffers[name] = buffer
        self._order.append(buffer)
        self._bases.append(buffer.base)
        return buffer.base

    def unbind(self, name: str) -> None:
        """Forget a buffer; its addresses become unmapped and are not given out again."""
        buffer = self.buffer(name)
        del self._buffers[name]
        place = self._order.index(buffer)
        del self._order[place], self._bases[place]

    def buffer(self, name: str) -> Buffer:
        """The buffer of a name. Raises InputError if none is bound."""
        if name not in self._buffers:
            bound = ", ".join(self._buffers) or "none"
            raise InputError(f"no buffer {name!r} is bound (bound: {bound})")
        return self._buffers[name]

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All bound buffers, by rising address."""
        return tuple(self._order)

    def address(self, name: str) -> int:
        """The device address of a bound buffer."""
        return self.buffer(name).base

    def unwritten(self, name: str) -> Unwritten:
        """The bytes of a buffer bound with ``initialized=False`` that no kernel has written."""
        written = self.buffer(name).written
        if written is None:
            result = Unwritten(0)
            result.slices = ()
            return result
        missing = ~written
        edges = np.flatnonzero(np.diff(missing, prepend=False, append=False))
        result = Unwritten(int(np.count_nonzero(missing)))
        result.slices = tuple(slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
        return result

    def find(self, address: int) -> Buffer | None:
        """The buffer that holds an address, or None."""
        place = bisect_right(self._bases, address) - 1
        if place >= 0:
            buffer = self._order[place]
            if address < buffer.base + buffer.size:
                return buffer
        return None

    def nearest(self, address: int) -> Buffer | None:
        """The buffer whose range ends closest below, or starts closest above, an address: for messages."""
        if not self._order:
            return None
        return min(self._order, key=lambda b: min(abs(address - b.base), abs(address - (b.base + b.size))))

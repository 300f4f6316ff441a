"""Address spaces of a launch: where an address leads, and the checks that every access passes.

Global, constant and parameter addresses are generic addresses of their own; shared and local memory have
windows in the generic space whose low halves are not zero, so that an address cut to 32 bits never lands
inside.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from fftgen.simulator.distributed import Distributed
from fftgen.simulator.faults import (
    GlobalRace,
    Misaligned,
    OutOfBounds,
    ReadOnlyWrite,
    UninitializedRead,
)
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.memory import Buffer, DeviceMemory
from fftgen.simulator.regions import LOCAL_WINDOW, SHARED_WINDOW, Layout, Region, module_regions
from fftgen.simulator.shadow import Shadow, check_same_values
from fftgen.simulator.syntax import Entry, Instruction, Module
from fftgen.simulator.types import Array

_SPAN = np.uint64(1 << 32)


def _first_beyond(offsets: Array, nbytes: int, size: int) -> int:
    """The first access that does not lie within ``size`` bytes; the end of one just below zero is zero."""
    return int(np.flatnonzero((offsets >= size) | (offsets + np.uint64(nbytes) > size))[0])


class Spaces:
    """All memory of one launch. ``attach`` makes the per-batch parts: shared and local memory."""

    def __init__(
        self, module: Module, entry: Entry, memory: DeviceMemory, dynamic_bytes: int, params: bytes
    ) -> None:
        self.memory = memory
        layout = Layout(module, entry, dynamic_bytes)
        self.dynamic_bytes, self.static_bytes = dynamic_bytes, layout.static_bytes
        self.shared_bytes, self.shared_stride = layout.shared_bytes, layout.shared_stride
        self.local_bytes = layout.local_bytes
        self._distributed = entry.distributed
        self._extra, symbols = module_regions(module, entry, params)
        self.symbols = {**symbols, **layout.symbols}
        self._regions: dict[int, Region] = {}
        self._last: Region | None = None

    def attach(self, m: Machine) -> None:
        """Fresh shared and local memory for the blocks of a machine."""
        self.shared = Region(
            "shared", "shared", 0, np.zeros(self.shared_stride * len(m.blocks), np.uint8), True, None
        )
        m.far = Distributed(m, self.shared_bytes, self.shared_stride) if self._distributed else None
        across = m.far is not None and m.cluster > 1
        self.shared.shadow = Shadow("shared", self.shared.size, True, across)
        self.local = Region(
            "local",
            "local",
            0,
            np.zeros(self.local_bytes * m.size, np.uint8),
            True,
            np.zeros(self.local_bytes * m.size, np.bool_),
        )

    def base_of(self, name: str) -> int:
        """The address of a region."""
        for region in (*self._regions.values(), *self._extra):
            if region.name == name:
                return region.base
        return 0

    def is_space(self, addresses: Array, space: str) -> Array:
        """Whether generic addresses lie in "global", "const" or "param"."""
        result = np.zeros(len(addresses), np.bool_)
        for i, address in enumerate(addresses):
            region = self._find(int(address))
            result[i] = (region.kind if region is not None else "global") == space
        return result

    # -- finding ---------------------------------------------------------------------------------------------

    def _find(self, address: int) -> Region | None:
        for region in self._extra:
            if region.base <= address < region.base + region.size:
                return region
        buffer = self.memory.find(address)
        return self._region(buffer) if buffer is not None else None

    def _region(self, buffer: Buffer) -> Region:
        found = self._regions.get(buffer.base)
        if found is None:
            found = Region(buffer.name, "global", buffer.base, buffer.bytes, buffer.writable, buffer.written)
            self._regions[buffer.base] = found
        if found.writable and found.shadow is None:
            found.shadow = Shadow(buffer.name, found.size, False, True)
        return found

    def resolve(
        self,
        m: Machine,
        g: Group,
        ins: Instruction,
        space: str,
        addresses: Array,
        nbytes: int,
        *,
        far: bool = False,
    ) -> list[tuple[Region, Group, Array | None, Array]]:
        """Where accesses of ``nbytes`` (a power of two) lead.

        Returns (region, threads, their places in the group or None for all, byte offsets in the region).
        Generic addresses may lead to shared memory of other blocks only with ``far``. Raises OutOfBounds and
        Misaligned.
        """
        if nbytes > 1:
            low = addresses & np.uint64(nbytes - 1)
            if low.any():
                i = int(np.flatnonzero(low)[0])
                self._misaligned(m, g, ins, space, int(addresses[i]), nbytes, i)
        if space == "shared::cluster":
            assert m.far is not None
            return [(self.shared, g, None, m.far.offsets(m, g, ins, addresses, nbytes))]
        if space == "shared":
            return [(self.shared, g, None, self._shared_offsets(m, g, ins, addresses, nbytes))]
        if space == "local":
            return [(self.local, g, None, self._local_offsets(m, g, ins, addresses, nbytes))]
        region = self._last
        if region is not None:
            offsets = addresses - np.uint64(region.base)
            if int(offsets.max()) + nbytes <= region.size:
                self._check_space(m, g, ins, space, region)
                return [(region, g, None, offsets.view(np.int64))]
        return self._general(m, g, ins, space, addresses, nbytes, far)

    def _shared_offsets(self, m: Machine, g: Group, ins: Instruction, addresses: Array, nbytes: int) -> Array:
        if int(addresses.max()) + nbytes > self.shared_bytes:
            i = _first_beyond(addresses, nbytes, self.shared_bytes)
            place = m.far.place(int(addresses[i])) if m.far is not None else ""
            m.fault(
                OutOfBounds,
                ins,
                f"{nbytes} bytes at shared offset {int(addresses[i]):#x}: the block has "
                f"{self.shared_bytes} bytes of shared memory ({self.static_bytes} static, "
                f"{self.dynamic_bytes} dynamic)"
                + (f"; this is {place}, where only ld and st of .shared::cluster may go" if place else ""),
                int(g.threads[i]),
                address=int(addresses[i]),
                buffer="shared",
            )
        offsets = addresses.view(np.int64)
        if len(m.blocks) > 1:
            offsets = offsets + m.block_of[g.threads] * self.shared_stride
        return offsets

    def _local_offsets(self, m: Machine, g: Group, ins: Instruction, addresses: Array, nbytes: int) -> Array:
        if int(addresses.max()) + nbytes > self.local_bytes:
            i = _first_beyond(addresses, nbytes, self.local_bytes)
            m.fault(
                OutOfBounds,
                ins,
                f"{nbytes} bytes at local offset {int(addresses[i]):#x}: "
                f"a thread has {self.local_bytes} bytes",
                int(g.threads[i]),
                address=int(addresses[i]),
                buffer="local",
            )
        offsets: Array = addresses.view(np.int64) + g.threads * self.local_bytes
        return offsets

    def _general(
        self, m: Machine, g: Group, ins: Instruction, space: str, addresses: Array, nbytes: int, far: bool
    ) -> list[tuple[Region, Group, Array | None, Array]]:
        """Accesses that do not all lie in the region used last."""
        parts: list[tuple[Region, Group, Array | None, Array]] = []
        rest = np.ones(g.n, np.bool_)
        while rest.any():
            i = int(np.flatnonzero(rest)[0])
            address = int(addresses[i])
            if space == "generic" and 0 <= address - SHARED_WINDOW < 2**32:
                inside = (addresses - np.uint64(SHARED_WINDOW)) < _SPAN
                window = SHARED_WINDOW
            elif space == "generic" and 0 <= address - LOCAL_WINDOW < 2**32:
                inside = (addresses - np.uint64(LOCAL_WINDOW)) < _SPAN
                window = LOCAL_WINDOW
            else:
                region = self._find(address) or self._unmapped(m, g, ins, address, nbytes, i)
                self._check_space(m, g, ins, space, region)
                offsets = addresses - np.uint64(region.base)
                inside = offsets < np.uint64(region.size)
                over = inside & (offsets + np.uint64(nbytes) > np.uint64(region.size))
                if over.any():
                    j = int(np.flatnonzero(over)[0])
                    self._unmapped(m, g, ins, int(addresses[j]), nbytes, j)
                self._last = region
                if inside.all():
                    return [(region, g, None, offsets.view(np.int64))]
                window = 0
            places = np.flatnonzero(inside & rest)
            group = g if len(places) == g.n else Group(m, g.threads[places])
            chosen: Array | None = None if len(places) == g.n else places
            if window:
                local = addresses[places] - np.uint64(window)
                if window == SHARED_WINDOW:
                    find = m.far.offsets if far and m.far is not None else self._shared_offsets
                    parts.append((self.shared, group, chosen, find(m, group, ins, local, nbytes)))
                else:
                    parts.append(
                        (self.local, group, chosen, self._local_offsets(m, group, ins, local, nbytes))
                    )
            else:
                parts.append((region, group, chosen, offsets[places].view(np.int64)))
            rest[places] = False
        return parts

    def _check_space(self, m: Machine, g: Group, ins: Instruction, space: str, region: Region) -> None:
        if space in ("generic", region.kind):
            return
        if space == "global" and region.kind == "global":
            return
        m.fault(
            OutOfBounds,
            ins,
            f"a .{space} access leads to {region.name}, which lies in .{region.kind}",
            int(g.threads[0]),
            address=region.base,
            buffer=region.name,
        )

    def _unmapped(
        self, m: Machine, g: Group, ins: Instruction, address: int, nbytes: int, i: int
    ) -> NoReturn:
        near = self._find(address) or self.memory.nearest(address)
        text = f"{nbytes} bytes at {address:#x} lie outside every buffer"
        if near is not None:
            offset = address - near.base
            text += f"; nearest is {near.name} of {near.size} bytes, at offset {offset}"
        m.fault(
            OutOfBounds,
            ins,
            text,
            int(g.threads[i]),
            address=address,
            buffer=near.name if near is not None else None,
        )

    def _misaligned(
        self, m: Machine, g: Group, ins: Instruction, space: str, address: int, nbytes: int, i: int
    ) -> NoReturn:
        region = self._find(address) if space not in ("shared", "shared::cluster", "local") else None
        name = region.name if region is not None else space
        offset = address - region.base if region is not None else address
        shown = m.far.place(address) if m.far is not None and space == "shared::cluster" else ""
        m.fault(
            Misaligned,
            ins,
            f"address {address:#x} ({shown or f'{name} + {offset}'}) is not a multiple of {nbytes}, "
            "the size of the access",
            int(g.threads[i]),
            address=address,
            buffer=name,
        )

    # -- access ----------------------------------------------------------------------------------------------

    def load(
        self,
        m: Machine,
        g: Group,
        ins: Instruction,
        pc: int,
        region: Region,
        offsets: Array,
        nbytes: int,
        now: int,
        *,
        count: bool = True,
        marks: int = 0,
        invariant: bool = False,
    ) -> None:
        """The checks and counts of a load of ``nbytes`` per thread; the caller then takes the data."""
        units = offsets // nbytes
        shadow = region.shadow
        if region.kind == "shared":
            assert shadow is not None
            bad = shadow.never_written(units, nbytes)
            if m.copies.pending:
                m.copies.check(m, ins, g, region, offsets, nbytes, bad)
            if bad is not None:
                self._uninitialized(m, g, ins, region, offsets, bad)
            if count:
                (m.far or m.counts).shared_access(pc, "load", offsets, nbytes, g)
        else:
            if region.written is not None:
                fine = self._written(region, units, nbytes)
                if fine is not None:
                    self._uninitialized(m, g, ins, region, offsets, ~fine)
            if count and region.kind == "global":
                m.counts.device_access(pc, region.name, "load", region.size, offsets, nbytes, g)
        if shadow is not None:
            if invariant and not shadow.shared:
                self._check_invariant(m, g, ins, region, units, offsets, nbytes)
            shadow.read(m, ins, g.threads, units, nbytes, now, marks)

    def _written(self, region: Region, units: Array, nbytes: int) -> Array | None:
        """Which accesses meet only written bytes; None if all."""
        assert region.written is not None
        whole = len(region.written) // nbytes * nbytes
        marks = region.written[:whole].reshape(-1, nbytes).take(units, axis=0)
        if marks.all():
            return None
        return np.asarray(marks.all(axis=1))

    def _check_invariant(
        self,
        m: Machine,
        g: Group,
        ins: Instruction,
        region: Region,
        units: Array,
        offsets: Array,
        nbytes: int,
    ) -> None:
        """``ld.global.nc`` promises that no one writes the data while the kernel runs."""
        assert region.shadow is not None
        moments = region.shadow.rows(nbytes)[0].take(units, axis=0)
        if moments.any():
            i, j = (int(k) for k in np.argwhere(moments)[0])
            m.fault(
                GlobalRace,
                ins,
                f"a non-coherent load reads offset {int(offsets[i])} of {region.name}, "
                "which this launch wrote",
                int(g.threads[i]),
                address=region.base + int(offsets[i]),
                buffer=region.name,
                other=m.describe(int(moments[i, j])),
            )

    def _uninitialized(
        self, m: Machine, g: Group, ins: Instruction, region: Region, offsets: Array, bad: Array
    ) -> None:
        i = int(np.flatnonzero(bad)[0])
        offset = self.shown(region, int(offsets[i]))
        m.fault(
            UninitializedRead,
            ins,
            f"{region.name} is read at offset {offset}, where nothing was written",
            int(g.threads[i]),
            address=region.base + offset,
            buffer=region.name,
        )

    def shown(self, region: Region, offset: int) -> int:
        """The offset that a kernel would see: inside its own block or thread."""
        if region.kind == "shared":
            return offset % self.shared_stride
        if region.kind == "local" and self.local_bytes:
            return offset % self.local_bytes
        return offset

    def store(
        self,
        m: Machine,
        g: Group,
        ins: Instruction,
        pc: int,
        region: Region,
        offsets: Array,
        nbytes: int,
        now: int,
        values: Array,
        *,
        count: bool = True,
        marks: int = 0,
    ) -> None:
        """Check, count and write ``values`` (threads, parts), ``nbytes`` per thread in all."""
        self.writable(m, g, ins, region, offsets)
        units = offsets // nbytes
        if region.kind == "shared":
            if m.copies.pending:
                m.copies.check(m, ins, g, region, offsets, nbytes, None)
            if count:
                (m.far or m.counts).shared_access(pc, "store", offsets, nbytes, g)
        elif count and region.kind == "global":
            m.counts.device_access(pc, region.name, "store", region.size, offsets, nbytes, g)
        lost = None
        if region.shadow is not None:
            lost = region.shadow.write(m, ins, g.threads, units, nbytes, now, marks)
        target = region.units(values.dtype.itemsize, values.shape[1])
        target[units] = values
        if lost is not None:
            check_same_values(
                m, ins, g, lost, values, target[units], region.name, region.kind == "shared", offsets
            )
        if region.written is not None:
            whole = len(region.written) // nbytes * nbytes
            region.written[:whole].reshape(-1, nbytes)[units] = True

    def writable(self, m: Machine, g: Group, ins: Instruction, region: Region, offsets: Array) -> None:
        if region.writable:
            return
        m.fault(
            ReadOnlyWrite,
            ins,
            f"{region.name} is read-only, and is written at offset {int(offsets[0])}",
            int(g.threads[0]),
            address=region.base + int(offsets[0]),
            buffer=region.name,
        )

"""Counting what a kernel does, per instruction; reports add it up per source line and per kernel."""

from __future__ import annotations

from collections import Counter

import numpy as np

from fftgen.simulator.machine import Group
from fftgen.simulator.traffic import Patterns
from fftgen.simulator.types import UNSIGNED, Array


class Traffic:
    """Requests of one instruction on one buffer: counts of requests, bytes, units moved and the least
    possible.
    """

    __slots__ = ("bytes", "least", "requests", "units")

    def __init__(self) -> None:
        self.requests = self.bytes = self.units = self.least = 0

    def add(self, requests: int, nbytes: int, units: int, least: int) -> None:
        self.requests += requests
        self.bytes += nbytes
        self.units += units
        self.least += least


class Counts:
    """Counts of one launch, shared by the batches of blocks that it runs in.

    ``issues[pc]`` counts warps that issued an instruction, predicated off or not. ``tensor[pc, name]``
    counts matrix operations of warps. ``device[pc, buffer, "load" | "store" | "atomic"]`` and
    ``shared[pc, "load" | ...]`` are Traffic. ``remote[pc, "load" | "store"]`` counts those bytes of it
    that went to other blocks. ``barriers[pc]`` counts warps that arrived at block
    barriers.
    """

    def __init__(self, instructions: int) -> None:
        self.issues: list[int] = [0] * instructions
        self.tensor: Counter[tuple[int, str]] = Counter()
        self.device: dict[tuple[int, str, str], Traffic] = {}
        self.shared: dict[tuple[int, str], Traffic] = {}
        self.remote: Counter[tuple[int, str]] = Counter()
        self.barriers: Counter[int] = Counter()
        self.block_barriers = 0
        self.patterns = Patterns()
        self._touched: dict[tuple[str, str], Array] = {}

    def touch(self, name: str, what: str, size: int, offsets: Array, nbytes: int) -> None:
        """Remember which bytes of a buffer were loaded or stored (one byte of memory a byte, allocated
        lazily).
        """
        key = (name, what)
        marks = self._touched.get(key)
        if marks is None:
            marks = self._touched[key] = np.zeros(-(-size // 32) * 32, np.uint8)
        if nbytes > 8:
            unit = marks.view(np.uint64).reshape(-1, nbytes // 8)
            unit[offsets // nbytes] = 0x0101010101010101
        else:
            dtype = UNSIGNED[8 * nbytes]
            marks.view(dtype)[offsets // nbytes] = int.from_bytes(b"\1" * nbytes, "little")

    def distinct(self) -> dict[tuple[str, str], int]:
        """How many different bytes of each buffer were loaded and stored."""
        return {key: int(np.count_nonzero(marks)) for key, marks in self._touched.items()}

    def device_access(
        self, pc: int, name: str, what: str, size: int, offsets: Array, nbytes: int, group: Group
    ) -> None:
        """Loads, stores or atomics of ``nbytes`` at byte ``offsets`` of a buffer of ``size`` bytes."""
        sectors, least = self.patterns.sectors(offsets, nbytes, group)
        traffic = self.device.get((pc, name, what))
        if traffic is None:
            traffic = self.device[pc, name, what] = Traffic()
        traffic.add(len(group.warps), len(offsets) * nbytes, sectors, least)
        self.touch(name, what, size, offsets, nbytes)

    def shared_access(self, pc: int, what: str, offsets: Array, nbytes: int, group: Group) -> None:
        """Loads, stores or atomics of ``nbytes`` at byte ``offsets`` of shared memory."""
        passes, least = self.patterns.wavefronts(offsets, nbytes, group)
        self.shared_units(pc, what, len(group.warps), len(offsets) * nbytes, passes, least)

    def shared_units(self, pc: int, what: str, requests: int, nbytes: int, passes: int, least: int) -> None:
        traffic = self.shared.get((pc, what))
        if traffic is None:
            traffic = self.shared[pc, what] = Traffic()
        traffic.add(requests, nbytes, passes, least)

    def device_units(
        self, pc: int, name: str, what: str, requests: int, nbytes: int, units: int, least: int
    ) -> None:
        traffic = self.device.get((pc, name, what))
        if traffic is None:
            traffic = self.device[pc, name, what] = Traffic()
        traffic.add(requests, nbytes, units, least)

    def tensor_op(self, pc: int, name: str, group: Group) -> None:
        self.tensor[pc, name] += len(group.warps)

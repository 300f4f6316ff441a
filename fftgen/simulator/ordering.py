"""What is ordered before what: the exact answers that the summaries of shadow.py leave open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fftgen.simulator.machine import Machine
from fftgen.simulator.types import Array

MANY_LANES = np.int32(1 << 26)
MANY_WARPS = np.int32(1 << 27)
MANY_BLOCKS = np.int32(1 << 28)
ATOMIC = np.int32(1 << 29)
PENDING = np.int32(1 << 30)
THREAD = np.int32((1 << 26) - 1)
SEVERAL = MANY_LANES | MANY_WARPS | MANY_BLOCKS
_PRUNE = 256
_LIMIT = 32_000_000


class Log:
    """The reads and atomics of one memory since the last barrier, one entry per instruction.

    A summary says only that several threads touched a byte; the log tells which ones. Where no barrier
    ever comes it forgets the oldest entries beyond some 32 million accesses.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, str, Array, int, Array]] = []
        self._size = 0
        self._next_prune = _PRUNE

    def add(self, moment: int, kind: str, units: Array, nbytes: int, authors: Array, low: int) -> None:
        """Remember reads or atomics (``kind``); what happened up to ``low`` is ordered for everyone."""
        self._entries.append((moment, kind, units.astype(np.int32), nbytes, authors.astype(np.int32)))
        self._size += len(units)
        if len(self._entries) >= self._next_prune:
            self._entries = [e for e in self._entries if e[0] > low]
            self._size = sum(len(e[2]) for e in self._entries)
            while self._size > _LIMIT:
                self._size -= len(self._entries.pop(0)[2])
            self._next_prune = 2 * len(self._entries) + _PRUNE

    def events(self, byte: int, kind: str) -> Iterator[tuple[int, int]]:
        """(moment, author) of all accesses to a byte, newest first."""
        for moment, what, units, nbytes, authors in reversed(self._entries):
            if what == kind:
                for author in np.unique(authors[units == byte // nbytes]):
                    yield moment, int(author)


def ordered(m: Machine, thread: int, lane_unknown: bool, when: int, author: int) -> bool:
    """Whether an access of ``author`` at a moment comes before what ``thread`` does now."""
    who = author & int(THREAD)
    hidden = lane_unknown or bool(author & int(MANY_LANES))
    if m.releases.active and m.releases.ordered(thread, when, who, hidden):
        return True
    if when <= m.start or m.block_of[who] != m.block_of[thread]:
        return False
    if when <= int(m.base[m.block_of[thread]]):
        return True
    if who == thread and not hidden and not author & int(PENDING):
        return True
    if who >> 5 != thread >> 5:
        return m.warp_seen is not None and when <= int(m.warp_seen[thread >> 5, who >> 5])
    if m.lane_seen is None or hidden:
        return when <= int(m.warp_sync[thread])
    return when <= int(m.lane_seen[thread, who & 31])


def ordered_exactly(m: Machine, threads: Array, moments: Array, people: Array) -> Array:
    """The same for arrays (threads, bytes) of single authors, but for those of earlier batches of blocks."""
    mine = threads[:, None]
    people = np.minimum(people, m.size - 1)
    now = moments > m.start
    result: Array = np.zeros(moments.shape, np.bool_)
    if m.releases.seen is not None:
        result = now & (moments <= m.releases.seen[mine >> 5, people])
    if m.lane_seen is not None and m.warp_seen is not None:
        same_warp = mine >> 5 == people >> 5
        known = np.where(same_warp, m.lane_seen[mine, people & 31], m.warp_seen[mine >> 5, people >> 5])
        result |= now & (m.block_of[people] == m.block_of[mine]) & (moments <= known)
    return result

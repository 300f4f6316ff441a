"""What is ordered before what: the exact answers that the summaries of shadow.py leave open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fftgen.simulator.machine import Machine
from fftgen.simulator.types import Array

MANY_CLUSTERS = np.int32(1 << 25)
MANY_LANES = np.int32(1 << 26)
MANY_WARPS = np.int32(1 << 27)
MANY_BLOCKS = np.int32(1 << 28)
ATOMIC = np.int32(1 << 29)
PENDING = np.int32(1 << 30)
THREAD = np.int32((1 << 25) - 1)
SEVERAL = MANY_LANES | MANY_WARPS | MANY_BLOCKS | MANY_CLUSTERS
_PRUNE = 256
_LIMIT = 32_000_000


class _Entry:
    """The accesses of one instruction: the units that it touched, in their order, and who touched each."""

    __slots__ = ("_sorted", "authors", "kind", "moment", "nbytes", "units")

    def __init__(self, moment: int, kind: str, units: Array, nbytes: int, authors: Array) -> None:
        self.moment = moment
        self.kind = kind
        self.units = units
        self.nbytes = nbytes
        self.authors = authors
        self._sorted = False

    def touching(self, places: Array) -> tuple[Array, Array]:
        """Of bytes (rising): the index of each that was touched, as often as it was, and by whom."""
        if not self._sorted:
            order = np.argsort(self.units, kind="stable")
            self.units, self.authors, self._sorted = self.units[order], self.authors[order], True
        wanted = places // self.nbytes
        first = np.searchsorted(self.units, wanted, "left")
        count = np.searchsorted(self.units, wanted, "right") - first
        index = np.repeat(np.arange(len(places)), count)
        within = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
        return index, self.authors[first[index] + within]


class Log:
    """The reads and atomics of one memory since the last barrier, one entry per instruction.

    A summary says only that several threads touched a byte; the log tells which ones. Where no barrier
    ever comes it forgets the oldest entries beyond some 32 million accesses.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._size = 0
        self._next_prune = _PRUNE

    def add(self, moment: int, kind: str, units: Array, nbytes: int, authors: Array, low: int) -> None:
        """Remember reads or atomics (``kind``); what happened up to ``low`` is ordered for everyone."""
        self._entries.append(_Entry(moment, kind, units.astype(np.int32), nbytes, authors.astype(np.int32)))
        self._size += len(units)
        if len(self._entries) >= self._next_prune:
            self._entries = [e for e in self._entries if e.moment > low]
            self._size = sum(len(e.units) for e in self._entries)
            while self._size > _LIMIT:
                self._size -= len(self._entries.pop(0).units)
            self._next_prune = 2 * len(self._entries) + _PRUNE

    def events(self, byte: int, kind: str) -> Iterator[tuple[int, int]]:
        """(moment, author) of all accesses to a byte, newest first."""
        for entry in reversed(self._entries):
            if entry.kind == kind:
                for author in np.unique(entry.authors[entry.units == byte // entry.nbytes]):
                    yield entry.moment, int(author)

    def ordered(self, m: Machine, kind: str, places: Array, threads: Array, lane_unknown: bool) -> Array:
        """Whether all accesses to bytes are seen to come before what a thread, one for each, does now.

        Where it says no, ``events`` and ``ordered`` may still find that they do.
        """
        order = np.argsort(places, kind="stable")
        rising, people = places[order], threads[order]
        found = np.ones(len(places), np.bool_)
        for entry in self._entries:
            if entry.kind == kind:
                index, authors = entry.touching(rising)
                late = ~ordered_pairs(m, people[index], entry.moment, authors, lane_unknown)
                found[index[late]] = False
        result = np.empty_like(found)
        result[order] = found
        return result


def ordered(m: Machine, thread: int, lane_unknown: bool, when: int, author: int) -> bool:
    """Whether an access of ``author`` at a moment comes before what ``thread`` does now."""
    hidden = lane_unknown or bool(author & int(MANY_LANES))
    if m.releases.active and m.releases.ordered(thread, when, author & int(THREAD), hidden):
        return True
    pairs = ordered_pairs(m, np.array([thread]), when, np.array([author], np.int32), lane_unknown)
    return bool(pairs[0])


def ordered_pairs(m: Machine, threads: Array, when: Array | int, authors: Array, lane_unknown: bool) -> Array:
    """``ordered`` for pairs of a thread and an author; False also where a fence may have ordered them.

    ``when``: a moment for each pair, or one for all.
    """
    now = np.asarray(when > m.start)  # else of an earlier batch of blocks
    if len(threads) == 0 or not now.any():
        return np.zeros(len(threads), np.bool_)
    who = np.minimum(authors & THREAD, m.size - 1)
    hidden = (authors & MANY_LANES != 0) | lane_unknown
    block = m.block_of[threads]
    same_block, same_warp = m.block_of[who] == block, who >> 5 == threads >> 5
    result: Array = when <= np.where(same_block, m.base[block], m.cluster_base[block])
    result |= (who == threads) & ~hidden & (authors & PENDING == 0)
    synced = m.warp_sync[threads]
    if m.lane_seen is not None:
        synced = np.where(hidden, synced, m.lane_seen[threads, who & 31])
    result |= same_warp & (when <= synced)
    if m.warp_seen is not None:
        result |= ~same_warp & (when <= m.warp_seen[threads >> 5, who >> 5])
    result &= now & (m.cluster_of[who] == m.cluster_of[threads])
    return result


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
        result |= now & (m.cluster_of[people] == m.cluster_of[mine]) & (moments <= known)
    return result

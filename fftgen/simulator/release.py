"""Order through memory: a fence and an atomic write release, an atomic read acquires (PTX ISA, "Memory
Consistency Model").

A thread that executed a fence and then writes a word atomically (``atom``, ``red``, ``st.release``,
``st.relaxed``, ``st.volatile``) publishes at that word what was ordered before its fence; a thread that
reads the word atomically learns it. This is what flags, last-block reductions and look-back chains live
on. Two liberties make it cheap: what a thread acquires holds for its whole warp, and no fence is asked
for behind the acquiring read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fftgen.simulator.types import Array

if TYPE_CHECKING:
    from fftgen.simulator.machine import History, Machine

Place = tuple[str, int]
Knowledge = dict[int, Array]
"""Start of a batch of blocks -> for each of its threads up to when what it did is ordered before."""


def _merge(one: Knowledge, two: Knowledge) -> Knowledge:
    both = {**one, **two}
    return {k: np.maximum(one[k], two[k]) if k in one and k in two else row for k, row in both.items()}


class _Fences:
    """For every thread its last fence, and what was ordered before it."""

    def __init__(self, size: int) -> None:
        self.moment = np.zeros(size, np.int64)
        self.base = np.zeros(size, np.int64)
        self.warp = np.zeros(size, np.int64)
        self.seen: Array | None = None


class Releases:
    """Fences, published words and what warps learnt from them; inactive until a first fence is executed."""

    def __init__(self, m: Machine, history: History) -> None:
        self.m = m
        self.active = False
        self.seen: Array | None = None
        """(warps, threads): up to when what a thread did is ordered before what a warp does now."""
        self.past: dict[int, Knowledge] = {}
        """The same for the threads of earlier batches, per warp."""
        self._history = history
        self._fences: dict[bool, _Fences] = {}
        self._published: dict[Place, tuple[Array, Knowledge]] = {}
        if history.published:
            self.active = True

    def fence(self, threads: Array, wide: bool, now: int) -> None:
        """A fence of these threads; ``wide``: for other blocks, too."""
        m = self.m
        self.active = True
        for scope in (False, True) if wide else (False,):
            fences = self._fences.setdefault(scope, _Fences(m.size))
            fences.moment[threads] = now
            fences.base[threads] = m.base[m.block_of[threads]]
            fences.warp[threads] = m.warp_sync[threads]
            if self.seen is not None:
                if fences.seen is None:
                    fences.seen = np.zeros_like(self.seen)
                warps = np.unique(threads >> 5)
                fences.seen[warps] = self.seen[warps]

    def meet(self, threads: Array, places: list[Place], shared: bool, *, reads: bool, writes: bool) -> None:
        """Atomic accesses, one place per thread, in the order of the threads."""
        for thread, place in zip(threads.tolist(), places, strict=True):
            if reads:
                self._acquire(thread >> 5, place)
            if writes:
                self._release(thread, place, shared)

    def _acquire(self, warp: int, place: Place) -> None:
        before = self._history.published.get(place)
        if before is not None:
            self.past[warp] = _merge(self.past.get(warp, {}), before)
        found = self._published.get(place)
        if found is None:
            return
        if self.seen is None:
            self.seen = np.zeros((self.m.size >> 5, self.m.size), np.int64)
        np.maximum(self.seen[warp], found[0], out=self.seen[warp])
        self.past[warp] = _merge(self.past.get(warp, {}), found[1])

    def _release(self, thread: int, place: Place, shared: bool) -> None:
        """Publish what was ordered before the fences that lie before this write."""
        m = self.m
        fences = self._fences.get(not shared)
        if fences is None or fences.moment[thread] == 0:
            return
        block = int(m.block_of[thread])
        mine = slice(block * m.block_size, (block + 1) * m.block_size)
        base = int(m.base[block])
        known = np.zeros(m.size, np.int64)
        before = (fences.moment[mine] <= base) & (
            fences.moment[mine] > 0
        )  # other fences that a barrier ordered
        own = np.where(before, fences.moment[mine], 0)
        reach = int(fences.base[mine][before].max(initial=0))
        known[mine] = np.maximum(own, max(reach, int(fences.base[thread])))
        lanes = slice(thread & ~31, (thread & ~31) + 32)
        known[lanes] = np.maximum(known[lanes], fences.warp[thread])
        known[thread] = max(known[thread], fences.moment[thread])
        past = _merge(self.past.get(thread >> 5, {}), self._history.published.get(place, {}))
        if fences.seen is not None:
            warps = np.unique(np.append(np.flatnonzero(before) + mine.start, thread) >> 5)
            known = np.maximum(known, fences.seen[warps].max(axis=0))
        found = self._published.get(place)
        if found is not None:  # a chain of atomics passes on what was published before
            known, past = np.maximum(known, found[0]), _merge(past, found[1])
        self._published[place] = known, past

    def joined(self, warps: Array) -> None:
        """These warps met at a barrier: each knows what any of them learnt."""
        if self.past:
            together: Knowledge = {}
            for warp in warps:
                together = _merge(together, self.past.get(int(warp), {}))
            self.past.update({int(warp): together for warp in warps})
        if self.seen is not None:
            self.seen[warps] = self.seen[warps].max(axis=0)

    def ordered(self, thread: int, when: int, who: int, whole_warp: bool) -> bool:
        """Whether what ``who`` (or its warp) did at a moment was acquired by the warp of ``thread``."""
        warp = thread >> 5
        if when <= self.m.start:
            row = self.past.get(warp, {}).get(self._history.start_of(when))
        else:
            row = None if self.seen is None else self.seen[warp]
        if row is None:
            return False
        return when <= int(row[who & ~31 : (who & ~31) + 32].min() if whole_warp else row[who])

    def close(self) -> None:
        """The batch has ended: what its threads published stays published."""
        for place, (known, past) in self._published.items():
            self._history.published[place] = _merge(past, {self.m.start: known})

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

Learnt = tuple["Array | None", "Knowledge"]
"""What warps acquired through memory: a row of ``Releases.seen``, and of ``Releases.past``."""
Place = tuple[str, int]
Knowledge = dict[int, Array]
"""Start of a batch of blocks -> for each of its threads up to when what it did is ordered before."""


def _merge(one: Knowledge, two: Knowledge) -> Knowledge:
    both = {**one, **two}
    return {k: np.maximum(one[k], two[k]) if k in one and k in two else row for k, row in both.items()}


def both(one: Learnt, two: Learnt) -> Learnt:
    """What is learnt from one and from the other."""
    rows = [row for row in (one[0], two[0]) if row is not None]
    return np.max(rows, axis=0) if rows else None, _merge(one[1], two[1])


class _Fences:
    """For every thread its last fence, and what was ordered before it."""

    def __init__(self, size: int) -> None:
        self.moment = np.zeros(size, np.int64)
        self.base = np.zeros(size, np.int64)
        self.warp = np.zeros(size, np.int64)
        self.cluster = np.zeros(size, np.int64)
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
            if m.cluster > 1:
                fences.cluster[threads] = m.cluster_base[m.block_of[threads]]
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
        before = self.before_fence(thread, not shared)
        if before is None:
            return
        known, past = before
        past = _merge(past, self._history.published.get(place, {}))
        found = self._published.get(place)
        if found is not None:  # a chain of atomics passes on what was published before
            known, past = np.maximum(known, found[0]), _merge(past, found[1])
        self._published[place] = known, past

    def before_fence(self, thread: int, wide: bool) -> tuple[Array, Knowledge] | None:
        """What was ordered before the fences that lie before this moment of a thread: per thread up to when,
        and of earlier batches. None if there is no fence.
        """
        m = self.m
        fences = self._fences.get(wide)
        if fences is None or fences.moment[thread] == 0:
            return None
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
        fencing = np.append(np.flatnonzero(before) + mine.start, thread)
        if m.cluster > 1:
            fencing = np.append(fencing, self._cluster_fences(fences, thread, known))
        if fences.seen is not None:
            known = np.maximum(known, fences.seen[np.unique(fencing >> 5)].max(axis=0))
        return known, self.past.get(thread >> 5, {})

    def _cluster_fences(self, fences: _Fences, thread: int, known: Array) -> Array:
        """The same for what barriers of the cluster ordered: raises ``known``. Returns whose fences count."""
        m = self.m
        first = int(m.cluster_of[thread]) * m.cluster
        whole = slice(first * m.block_size, (first + m.cluster) * m.block_size)
        moments = fences.moment[whole]
        before = (moments > 0) & (moments <= m.cluster_base[m.block_of[thread]])
        reach = int(fences.cluster[whole][before].max(initial=fences.cluster[thread]))
        bases = np.where(before, fences.base[whole], 0).reshape(m.cluster, -1).max(axis=1)
        own = np.maximum(np.where(before, moments, 0), np.repeat(bases, m.block_size))
        known[whole] = np.maximum(known[whole], np.maximum(own, reach))
        return np.flatnonzero(before) + whole.start

    def joined(self, warps: Array) -> None:
        """These warps met at a barrier: each knows what any of them learnt."""
        self.learn(warps, self.learnt(warps))

    def learnt(self, warps: Array) -> Learnt:
        """What any of these warps learnt up to now."""
        together: Knowledge = {}
        for warp in warps if self.past else ():
            together = _merge(together, self.past.get(int(warp), {}))
        return self.seen[warps].max(axis=0) if self.seen is not None else None, together

    def learn(self, warps: Array, what: Learnt) -> None:
        """These warps learn what others learnt."""
        row, past = what
        if past:
            self.past.update({int(w): _merge(self.past.get(int(w), {}), past) for w in warps})
        if row is not None:
            if self.seen is None:
                self.seen = np.zeros((self.m.size >> 5, self.m.size), np.int64)
            self.seen[warps] = np.maximum(self.seen[warps], row)

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

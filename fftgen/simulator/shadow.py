"""Who touched a byte last, and whether two accesses are ordered: race detection.

For every byte the shadow keeps the moment and the author of the last write and of the last reads. A
moment is one executed instruction of the machine (Machine.tick). An author is a thread number with marks:

MANY_LANES   some or several lanes of the warp of that thread (matrix loads and stores, or several readers)
MANY_WARPS   several warps
MANY_BLOCKS  several blocks
MANY_CLUSTERS several clusters, where a launch has any
ATOMIC       an atomic access: atomics do not race with each other
PENDING      an asynchronous copy on its way

An access at moment t is ordered before what a thread does now if a block barrier completed since then, or
a ``bar.warp.sync`` of both lanes, or a counted barrier of both warps, or the barrier of a cluster
(happens-before, as in vector-clock detectors).
"""

from __future__ import annotations

import numpy as np

from fftgen.simulator.faults import GlobalRace, SharedRace
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ordering import (
    ATOMIC,
    MANY_BLOCKS,
    MANY_CLUSTERS,
    MANY_LANES,
    MANY_WARPS,
    PENDING,
    SEVERAL,
    THREAD,
    Log,
    ordered,
    ordered_exactly,
    ordered_pairs,
)
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import Array

_NO_LANE = np.int32(~31 & int(THREAD))


class Shadow:
    """The shadow of ``size`` bytes: 16 bytes a byte, in pages that the system allocates when touched.

    ``shared``: of shared memory. ``across``: accesses of different blocks may meet, and are checked.
    """

    def __init__(self, name: str, size: int, shared: bool, across: bool) -> None:
        padded = -(-size // 32) * 32
        self.name = name
        self.shared = shared
        self.across = across
        self._arrays = tuple(np.zeros(padded, np.int32) for _ in range(4))
        self._rows: dict[int, tuple[Array, ...]] = {}
        self._plain: tuple[Array, Array] | None = None
        """Moment and author of the last write that an atomic has covered since."""
        self._log = Log()

    def rows(self, nbytes: int) -> tuple[Array, ...]:
        """(write moment, writer, read moment, reader), each as (units, nbytes)."""
        found = self._rows.get(nbytes)
        if found is None:
            found = self._rows[nbytes] = tuple(a.reshape(-1, nbytes) for a in self._arrays)
        return found

    def never_written(self, units: Array, nbytes: int) -> Array | None:
        """Which accesses meet a byte that nothing wrote; None if there is none."""
        moments = self.rows(nbytes)[0].take(units, axis=0)
        if moments.all():
            return None
        return np.asarray(~moments.all(axis=1))

    def read(
        self,
        m: Machine,
        ins: Instruction,
        threads: Array,
        units: Array,
        nbytes: int,
        now: int,
        marks: np.int32 | int = 0,
    ) -> None:
        """Check and record reads of ``nbytes`` at unit numbers (offset / nbytes), one per thread."""
        wt, wa, rt, ra = self.rows(nbytes)
        moments = wt.take(units, axis=0)
        settled = self._settled(m)
        if moments.max() > settled:
            authors = wa.take(units, axis=0)
            self._check(m, ins, threads, units, nbytes, moments, authors, marks, "read", "written")
        code = (threads.astype(np.int32) | np.int32(marks))[:, None]
        before = rt.take(units, axis=0)
        if before.max() > settled:
            last = ra.take(units, axis=0)
            code = self._merge(m, threads, before, last, code)
        elif nbytes > 1:
            code = np.repeat(code, nbytes, axis=1)
        rt[units] = now
        ra[units] = code
        stored = ra.take(units, axis=0)
        clash = stored != code
        if clash.any():
            self._several(m, units, nbytes, code, ra)
        self._log.add(now, "read", units, nbytes, threads | int(marks), settled)

    def _settled(self, m: Machine) -> int:
        """Up to when everything is ordered for all that may meet here: nothing, between several clusters."""
        if not (self.across and m.many_blocks):
            return m.base_low
        return 0 if m.many_clusters and not self.shared else int(m.cluster_base.min())

    def _merge(self, m: Machine, threads: Array, before: Array, last: Array, code: Array) -> Array:
        """The author to record for bytes that were read before: one thread, a warp, or several."""
        blocks = m.block_of[threads][:, None]
        fresh = before > m.base[blocks]
        if self.across and m.many_blocks:
            fresh |= (before > 0) & self._elsewhere(m, before, last, blocks)
        same_warp = ((last & _NO_LANE) == (code & _NO_LANE)) & (last & MANY_WARPS == 0) & (before > m.start)
        ordered = same_warp & (before <= m.warp_sync[threads][:, None])
        keep = ~fresh | ordered | ((last == code) & (before > m.start))
        spread = np.where(same_warp, code | MANY_LANES, code | MANY_WARPS)
        spread = np.where(last & ATOMIC, spread, spread & ~ATOMIC)  # atomic only if all of them were
        merged = np.where(keep, code, spread)
        if self.across and m.many_blocks:  # what another block did stays unordered for good
            others = (before > 0) & self._elsewhere(m, before, last, blocks)
            merged = np.where(others, merged | MANY_BLOCKS, merged)
            if m.cluster > 1:
                foreign = (before > 0) & self._foreign(m, before, last, blocks)
                merged = np.where(foreign, merged | MANY_CLUSTERS, merged)
        return merged

    @staticmethod
    def _elsewhere(m: Machine, moments: Array, authors: Array, blocks: Array) -> Array:
        """Which accesses came from other blocks, those of earlier batches included, without those that a
        barrier of the whole cluster ordered.
        """
        people = np.minimum(authors & THREAD, m.size - 1)
        other: Array = (moments <= m.start) | (m.block_of[people] != blocks) | (authors & MANY_BLOCKS != 0)
        if m.cluster > 1:
            other &= (moments > m.cluster_base[blocks]) | Shadow._foreign(m, moments, authors, blocks)
        return other

    @staticmethod
    def _foreign(m: Machine, moments: Array, authors: Array, blocks: Array) -> Array:
        """Which accesses came from other clusters, those of earlier batches included."""
        people = np.minimum(authors & THREAD, m.size - 1)
        other: Array = (moments <= m.start) | (m.cluster_of[people] != blocks // m.cluster)
        other |= authors & MANY_CLUSTERS != 0
        return other

    def _several(self, m: Machine, units: Array, nbytes: int, code: Array, ra: Array) -> None:
        """Several lanes read one unit in one instruction: mark it so (the last lane wrote its own number)."""
        full = np.broadcast_to(code, (len(units), nbytes))
        order = np.argsort(units, kind="stable")
        ordered = units[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        codes = full[order]
        flags = np.bitwise_or.reduceat(codes & ~THREAD & ~ATOMIC, starts, axis=0)
        flags |= np.bitwise_and.reduceat(codes & ATOMIC, starts, axis=0)
        low = np.minimum.reduceat(codes & THREAD, starts, axis=0)
        high = np.maximum.reduceat(codes & THREAD, starts, axis=0)
        flags |= np.where(low != high, np.where(low >> 5 == high >> 5, MANY_LANES, MANY_WARPS), np.int32(0))
        flags |= np.where(m.block_of[low] != m.block_of[high], MANY_BLOCKS, np.int32(0))
        if m.cluster > 1:
            flags |= np.where(m.cluster_of[low] != m.cluster_of[high], MANY_CLUSTERS, np.int32(0))
        ra[ordered[starts]] = low | flags

    def write(
        self,
        m: Machine,
        ins: Instruction,
        threads: Array,
        units: Array,
        nbytes: int,
        now: int,
        marks: np.int32 | int = 0,
    ) -> Array | None:
        """Check and record writes. Returns which threads lost to another lane of their warp on a byte, or
        None.
        """
        wt, wa, rt, ra = self.rows(nbytes)
        settled = self._settled(m)
        summaries = [(wt, wa, "written"), (rt, ra, "read")]
        if self._plain is not None and int(marks) & int(ATOMIC):
            covered = (a.reshape(-1, nbytes) for a in self._plain)
            summaries.append((*covered, "written"))  # type: ignore[arg-type]
        for times, people, verb in summaries:
            moments = times.take(units, axis=0)
            if moments.max() > settled:
                authors = people.take(units, axis=0)
                self._check(m, ins, threads, units, nbytes, moments, authors, marks, "written", verb)
        code = threads.astype(np.int32) | np.int32(marks)
        if int(marks) & int(ATOMIC):
            self._write_atomic(m, threads, units, nbytes, now, code[:, None])
            return None
        wt[units] = now
        wa[units] = code[:, None]
        stored = wa[:, 0].take(units)
        lost: Array = stored != code
        if not lost.any():
            return None
        other_warp = lost & (((stored ^ code) & _NO_LANE) != 0)
        if other_warp.any():
            i = int(np.flatnonzero(other_warp)[0])
            byte = int(units[i]) * nbytes
            self._race(m, ins, int(threads[i]), byte, int(stored[i]), now, "written", "written")
        return lost

    def _write_atomic(
        self, m: Machine, threads: Array, units: Array, nbytes: int, now: int, code: Array
    ) -> None:
        """Atomics may meet: the author becomes all that did since the last barrier."""
        wt, wa, _, _ = self.rows(nbytes)
        moments, authors = wt.take(units, axis=0), wa.take(units, axis=0)
        plain = (authors & ATOMIC == 0) & (moments > 0)
        if plain.any():
            if self._plain is None:
                self._plain = (np.zeros_like(self._arrays[0]), np.zeros_like(self._arrays[0]))
            for kept, value in zip(self._plain, (moments, authors), strict=True):
                rows = kept.reshape(-1, nbytes)
                rows[units] = np.where(plain, value, rows[units])
        self._log.add(now, "atomic", units, nbytes, code[:, 0], self._settled(m))
        merged = self._merge(m, threads, np.where(plain, 0, moments), authors, code)
        wt[units] = now
        wa[units] = merged
        if (wa.take(units, axis=0) != merged).any():
            self._several(m, units, nbytes, merged, wa)

    def _check(
        self,
        m: Machine,
        ins: Instruction,
        threads: Array,
        units: Array,
        nbytes: int,
        moments: Array,
        authors: Array,
        marks: np.int32 | int,
        verb: str,
        other_verb: str,
    ) -> None:
        """Stop if an earlier access (moments, authors) is not ordered before this one."""
        blocks = m.block_of[threads][:, None]
        bad = moments > m.base[blocks]
        people = authors & THREAD
        if self.across and m.many_blocks:
            bad |= (moments > 0) & self._elsewhere(m, moments, authors, blocks)
        if not bad.any():
            return
        atomic = bool(int(marks) & int(ATOMIC))
        own = threads.astype(np.int32)[:, None]
        if int(marks) & int(MANY_LANES):
            same_thread: Array | bool = False
        else:
            same_thread = (authors & ~ATOMIC) == own
        same_warp = ((people ^ own) & _NO_LANE == 0) & (authors & MANY_WARPS == 0)
        synced = moments <= m.warp_sync[threads][:, None]
        bad &= ~((same_thread | (same_warp & synced & (authors & PENDING == 0))) & (moments > m.start))
        if atomic:
            bad &= authors & ATOMIC == 0
        if not bad.any():
            return
        hidden = bool(int(marks) & int(MANY_LANES))
        several = authors & SEVERAL != 0
        if m.warp_seen is not None or m.releases.active or m.in_part:
            if hidden:
                rows, columns = np.nonzero(bad & ~several)
                found = ordered_pairs(m, threads[rows], moments[rows, columns], authors[rows, columns], True)
                bad[rows, columns] = ~found
            else:
                bad &= several | ~ordered_exactly(m, threads, moments, people)
            if other_verb == "read" and (bad & several).any():
                rows, columns = np.nonzero(bad & several)
                places = units[rows] * nbytes + columns
                bad[rows, columns] = ~self._log.ordered(m, "read", places, threads[rows], hidden)
            for i, j in np.argwhere(bad & (several | hidden | (moments <= m.start))):
                thread, byte = int(threads[i]), int(units[i]) * nbytes + int(j)
                author, moment = int(authors[i, j]), int(moments[i, j])
                event = self._unordered(m, thread, hidden, atomic, byte, moment, author, other_verb)
                bad[i, j] = event is not None
            if not bad.any():
                return
        i, j = (int(k) for k in np.argwhere(bad)[0])
        thread, byte = int(threads[i]), int(units[i]) * nbytes + j
        author, moment = int(authors[i, j]), int(moments[i, j])
        event = self._unordered(m, thread, hidden, atomic, byte, moment, author, other_verb)
        moment, author = event if event is not None else (moment, author)
        self._race(m, ins, thread, byte, author, moment, verb, other_verb)

    def _unordered(
        self,
        m: Machine,
        thread: int,
        hidden: bool,
        atomic: bool,
        byte: int,
        moment: int,
        author: int,
        other_verb: str,
    ) -> tuple[int, int] | None:
        """The newest access behind a summary (moment, author) that nothing orders; None if all are."""
        events = [(moment, author)]
        if author & int(SEVERAL) and (other_verb == "read" or author & int(ATOMIC)):
            events = list(self._log.events(byte, "read" if other_verb == "read" else "atomic"))
        for when, who in events:
            if not (atomic and who & int(ATOMIC)) and not ordered(m, thread, hidden, when, who):
                return when, who
        return None

    def _race(
        self,
        m: Machine,
        ins: Instruction,
        thread: int,
        byte: int,
        author: int,
        moment: int,
        verb: str,
        other_verb: str,
    ) -> None:
        """Raise the fault, naming both instructions."""
        exact = not author & int(SEVERAL)
        other = m.describe(moment, author & int(THREAD) if exact else None)
        if not exact:
            other += " by several threads"
        if self.shared:
            offset = byte % m.spaces.shared_stride
            kind: type[SharedRace] | type[GlobalRace] = SharedRace
            where, address = f"shared byte {offset}", offset
            if self.across:
                where += f" of block rank {byte // m.spaces.shared_stride % m.cluster}"
        else:
            kind = GlobalRace
            where, address = f"byte {byte} of buffer {self.name}", m.spaces.base_of(self.name) + byte
        pending = " by a copy still on its way" if author & int(PENDING) else ""
        m.fault(
            kind,
            ins,
            f"{where} is {verb} here and was {other_verb} elsewhere{pending}, "
            "with nothing that orders the two",
            int(thread),
            address=address,
            buffer=self.name,
            other=other,
        )


def check_same_values(
    m: Machine,
    ins: Instruction,
    group: Group,
    lost: Array,
    wanted: Array,
    found: Array,
    name: str,
    shared: bool,
    offsets: Array,
) -> None:
    """Lanes of one warp may write one place in one instruction only if they write the same value."""
    different = lost & (wanted != found).reshape(len(lost), -1).any(axis=1)
    if not different.any():
        return
    i = int(np.flatnonzero(different)[0])
    m.fault(
        SharedRace if shared else GlobalRace,
        ins,
        "two lanes of a warp write different values to one place in one instruction",
        int(group.threads[i]),
        address=int(offsets[i]) % m.spaces.shared_stride
        if shared
        else m.spaces.base_of(name) + int(offsets[i]),
        buffer=name,
        other=m.describe(m.clock),
    )

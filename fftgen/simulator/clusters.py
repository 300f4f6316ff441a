"""The barriers of thread block clusters (PTX ISA, "barrier.cluster"): arrive, and wait later.

A warp arrives, or waits, when all its threads that have not exited are at the instruction: with
``.aligned`` at one, without it at any of the same kind. Holding threads back until the rest of their warp
comes is one of the legal schedules, and makes the warp the unit of what the barrier orders. A warp that has
exited counts as one that arrived with its last instruction, as at block barriers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fftgen.simulator.control import ClusterOp
from fftgen.simulator.faults import Deadlock, DivergedCollective
from fftgen.simulator.machine import Group
from fftgen.simulator.release import Learnt, both
from fftgen.simulator.types import Array

if TYPE_CHECKING:
    from fftgen.simulator.scheduler import Scheduler

Pieces = list[tuple[ClusterOp, Array]]
"""Threads, and the instruction at which they stand."""


@dataclass
class _Phase:
    """Who has come to the barrier of one cluster since it completed last."""

    known: Array
    """For every warp of the cluster up to when what it did is ordered before what is behind the barrier."""
    learnt: Learnt
    arrived: set[int] = field(default_factory=set)
    waiting: Pieces = field(default_factory=list)
    at_once: bool = True
    """Whether every arrival releases, and its wait follows it directly."""


@dataclass
class _State:
    """The barrier of one cluster."""

    now: _Phase
    done: _Phase | None = None
    """The phase before, completed, while warps have yet to wait for it."""
    pending: set[int] = field(default_factory=set)
    """The warps that have yet to."""


class Clusters:
    """The barriers of all clusters of a machine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.s = scheduler
        self.m = scheduler.m
        self._warps = self.m.block_warps * self.m.cluster
        self._together: tuple[ClusterOp, int, Array] | None = None
        """The common case: all live threads arrived (instruction, moment, warps), and none has waited."""
        self._states: dict[int, _State] = {}
        self._parts: dict[int, Array] = {}
        """Threads of warps that have not come as a whole, by place."""

    def places(self) -> list[tuple[int, Array]]:
        """(pc, threads) of all that wait."""
        waiting = ((op.pc, t) for state in self._states.values() for op, t in state.now.waiting)
        return [*self._parts.items(), *waiting]

    def come(self, group: Group, op: ClusterOp) -> int | None:
        """A group arrives or waits. Returns where it goes on at once, or None if it is held up or split."""
        if op.arrive and not self._wait_follows(op):
            self.m.in_part = True
        if self._everyone(group, op):
            return op.pc + 1
        self._spread()
        threads = group.threads
        if op.guard is not None:
            chosen = op.guard(self.m, group)
            if op.aligned:
                self.s.same_in_warp(group, op, chosen)
            self.s.make_ready(op.pc + 1, threads[~chosen])
            threads = threads[chosen]
        self._gather(op, threads)
        return None

    # -- all threads at once ---------------------------------------------------------------------------------

    def _everyone(self, group: Group, op: ClusterOp) -> bool:
        """The common case: all live threads of all clusters arrive together, and then wait together."""
        m = self.m
        if op.guard is not None or self._states or self._parts:
            return False
        if group.n != m.size and group.n != np.count_nonzero(m.live):
            return False
        if op.arrive:
            # What warps know beyond their blocks' barriers has to be kept until they wait, but where they
            # wait at once.
            simple = m.warp_seen is None and not m.releases.active
            if self._together is not None or not (simple or (op.release and self._wait_follows(op))):
                return False
            self._together = op, m.tick(op.pc), group.warps
            return True
        if self._together is None:
            return False
        arrival, moment, _ = self._together
        self._together = None
        now = m.tick(op.pc)
        if m.far is not None:
            m.far.met(group.warps)
        if not arrival.release:
            return True
        if arrival.pc + 1 != op.pc:
            m.clusters_synchronised(slice(None), moment)
            return True
        m.clusters_synchronised(slice(None), now)
        if m.releases.active:
            for warps in m.warp_numbers.reshape(-1, self._warps):
                m.releases.joined(warps)
        return True

    def _wait_follows(self, op: ClusterOp) -> bool:
        after = self.s.ops[op.pc + 1] if op.pc + 1 < len(self.s.ops) else None
        return isinstance(after, ClusterOp) and not after.arrive and after.guard is None

    def _spread(self) -> None:
        """The common case has ended between arrival and wait: the same state, cluster by cluster."""
        if self._together is None:
            return
        op, moment, warps = self._together
        self._together = None
        for cluster in np.unique(warps // self._warps):
            state = self._state(int(cluster))
            state.now.arrived.update(warps[warps // self._warps == cluster].tolist())
            state.now.at_once = op.release and self._wait_follows(op)
            if op.release:
                state.now.known[:] = moment
            self._settle(int(cluster))

    # -- warps -----------------------------------------------------------------------------------------------

    def _gather(self, op: ClusterOp, threads: Array) -> bool:
        """Threads come to a barrier. Returns whether any warp is complete and has come."""
        m = self.m
        before = self._parts.pop(op.pc, None)
        if before is not None:
            threads = np.sort(np.concatenate((before, threads)))
        if len(threads) == 0:
            return False
        self._parts[op.pc] = threads
        beside = [op]
        for pc in () if op.aligned else list(self._parts):
            other = self.s.ops[pc]
            assert isinstance(other, ClusterOp)
            if other is not op and not other.aligned and other.arrive == op.arrive:
                beside.append(other)
        present = np.zeros(m.size >> 5, np.uint32)
        for one in beside:
            part = m.group(self._parts[one.pc])
            present[part.warps] |= part.lanes
        complete = (present != 0) & (m.live_bits & ~present == 0)
        if not complete.any():
            return False
        pieces: Pieces = []
        for one in beside:
            standing = self._parts.pop(one.pc)
            whole = complete[standing >> 5]
            if not whole.all():
                self._parts[one.pc] = standing[~whole]
            if whole.any():
                pieces.append((one, standing[whole]))
        moment = m.tick(op.pc)
        clusters = np.unique(np.concatenate([m.cluster_of[t] for _, t in pieces]))
        for cluster in clusters.tolist():
            inside = [(one, t[m.cluster_of[t] == cluster]) for one, t in pieces]
            inside = [(one, t) for one, t in inside if len(t)]
            if op.arrive:
                self._arrive(cluster, inside, moment)
            else:
                self._wait(cluster, inside)
        return True

    def _state(self, cluster: int) -> _State:
        found = self._states.get(cluster)
        if found is None:
            found = self._states[cluster] = _State(self._phase())
        return found

    def _phase(self) -> _Phase:
        return _Phase(np.zeros(self._warps, np.int64), (None, {}))

    def _arrive(self, cluster: int, pieces: Pieces, moment: int) -> None:
        state = self._state(cluster)
        phase = state.now
        warps = _warps(pieces)
        again = set(warps.tolist()) & (phase.arrived | state.pending)
        if again:
            self._fault(
                pieces, again, "arrives at the barrier of its cluster for the second time before it waits"
            )
        phase.arrived.update(warps.tolist())
        if all(op.release for op, _ in pieces):
            phase.at_once &= all(self._wait_follows(op) for op, _ in pieces)
            self._release(cluster, phase, warps, moment)
        else:
            phase.at_once = False
            self._release_fences(phase, pieces)
        for op, threads in pieces:
            self.s.make_ready(op.pc + 1, threads)
        self._settle(cluster)

    def _release(self, cluster: int, phase: _Phase, warps: Array, moment: int) -> None:
        """What these warps did and learnt is ordered before what is behind the barrier."""
        m = self.m
        known, first = phase.known, cluster * self._warps
        if m.warp_seen is not None:
            np.maximum(known, m.warp_seen[warps, first : first + self._warps].max(axis=0), out=known)
        blocks = np.unique(warps // m.block_warps)
        rows = known.reshape(m.cluster, -1)
        inside = blocks - cluster * m.cluster
        rows[inside] = np.maximum(rows[inside], m.base[blocks][:, None])
        known[warps - first] = np.maximum(known[warps - first], moment)
        if m.releases.active:
            phase.learnt = both(phase.learnt, m.releases.learnt(warps))

    def _release_fences(self, phase: _Phase, pieces: Pieces) -> None:
        """A relaxed arrival orders what fences before it do, and nothing else."""
        m = self.m
        if not m.releases.active:
            return
        for _, threads in pieces:
            for thread in threads.tolist():
                before = m.releases.before_fence(thread, True)
                if before is not None:
                    phase.learnt = both(phase.learnt, before)

    def _wait(self, cluster: int, pieces: Pieces) -> None:
        state = self._state(cluster)
        warps = set(_warps(pieces).tolist())
        early = warps - state.pending - state.now.arrived
        if early:
            self._fault(pieces, early, "waits at the barrier of its cluster without having arrived")
        late = np.array(sorted(warps & state.pending), np.int64)
        for op, threads in pieces:
            done = np.isin(threads >> 5, late)
            self.s.make_ready(op.pc + 1, threads[done])
            if not done.all():
                state.now.waiting.append((op, threads[~done]))
        if len(late):
            self._pass(cluster, late)
        self._settle(cluster)

    def _fault(self, pieces: Pieces, warps: set[int], what: str) -> None:
        for op, threads in pieces:
            guilty = threads[np.isin(threads >> 5, list(warps))]
            if len(guilty):
                self.m.fault(Deadlock, op.instruction, f"a warp {what}", int(guilty[0]))

    # -- completion ------------------------------------------------------------------------------------------

    def _live(self, cluster: int) -> set[int]:
        first = cluster * self._warps
        return {first + int(w) for w in np.flatnonzero(self.m.live_bits[first : first + self._warps])}

    def _settle(self, cluster: int) -> bool:
        """Let the threads of a cluster go if all have arrived. Returns whether the barrier completed."""
        m = self.m
        state = self._states.get(cluster)
        if state is None:
            return False
        phase, live = state.now, self._live(cluster)
        if not live or not (phase.arrived or state.done):
            del self._states[cluster]
            return False
        if not phase.arrived or not live <= phase.arrived:
            return False
        waiting = _warps(phase.waiting)
        if phase.at_once and not live <= set(waiting.tolist()):  # the last that arrived wait next
            return False
        first = cluster * self._warps
        ended = sorted(set(range(first, first + self._warps)) - phase.arrived)
        phase.known[np.array(ended, np.int64) - first] = m.clock
        state.now, state.done, state.pending = self._phase(), phase, phase.arrived & live
        if phase.at_once:  # nobody has done anything since it arrived: one moment says it all
            phase.known[:] = m.tick(phase.waiting[-1][0].pc)
        if len(waiting):
            self._pass(cluster, waiting)
        for op, threads in phase.waiting:
            self.s.make_ready(op.pc + 1, threads)
        return True

    def _pass(self, cluster: int, warps: Array) -> None:
        """These warps have waited: they learn what the completed phase orders before them."""
        m = self.m
        state = self._states[cluster]
        phase = state.done
        assert phase is not None
        m.releases.learn(warps, phase.learnt)
        if m.far is not None:
            m.far.met(warps)
        state.pending -= set(warps.tolist())
        together = len(warps) >= len(phase.arrived & self._live(cluster))
        if not together or phase.known.min() != phase.known.max():
            m.order_cluster(warps, cluster * self._warps, phase.known)
        self._finish(cluster)

    def _finish(self, cluster: int) -> None:
        """If all have waited, every thread knows what the phase ordered: summaries may say so."""
        m = self.m
        state = self._states[cluster]
        if state.done is None or state.pending:
            return
        known = state.done.known
        state.done = None
        blocks = slice(cluster * m.cluster, (cluster + 1) * m.cluster)
        m.base[blocks] = np.maximum(m.base[blocks], known.reshape(m.cluster, -1).min(axis=1))
        m.clusters_synchronised(np.array([cluster]), int(known.min()))
        if not state.now.arrived:
            del self._states[cluster]

    # -- those that do not come ------------------------------------------------------------------------------

    def after_exit(self) -> None:
        """Threads have ended: those that wait for them may go on."""
        if self._states or self._parts:
            self.retry()

    def retry(self) -> bool:
        """Look at everything that waits once more. Returns whether anything moved."""
        moved = False
        for pc in list(self._parts):
            op = self.s.ops[pc]
            assert isinstance(op, ClusterOp)
            if pc in self._parts:
                moved |= self._gather(op, self._parts.pop(pc))
        for cluster in list(self._states):
            state = self._states[cluster]
            state.pending &= self._live(cluster)
            self._finish(cluster)
            moved |= self._settle(cluster)
        return moved

    def stuck(self) -> None:
        """Nothing can move: say what the threads wait for, if any wait here."""
        m = self.m
        for pc, threads in self._parts.items():
            op = self.s.ops[pc]
            assert isinstance(op, ClusterOp)
            thread = int(threads[0])
            lanes = int(m.group(threads).lanes[0])
            m.fault(
                DivergedCollective,
                op.instruction,
                f"part of a warp {'arrives' if op.arrive else 'waits'} at the barrier of its cluster, "
                f"and the rest of it does not come: {self.s.elsewhere(thread, lanes)}",
                thread,
            )
        for cluster, state in self._states.items():
            if not state.now.waiting:
                continue
            op, threads = state.now.waiting[0]
            live = self._live(cluster)
            missing = min(live - state.now.arrived)
            block, _ = m.coordinates(missing * 32)
            lines = self.s.lines_of(cluster * m.cluster, (cluster + 1) * m.cluster)
            m.fault(
                Deadlock,
                op.instruction,
                f"the barrier of the cluster waits for all its {len(live)} warps, "
                f"{len(live & state.now.arrived)} have arrived, and no thread can go on "
                f"(missing: warp {missing % m.block_warps} of block {block}; "
                f"threads of the cluster wait at PTX lines {lines})",
                int(threads[0]),
            )


def _warps(pieces: Pieces) -> Array:
    """The warps of some threads, rising."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(t for _, t in pieces)]) >> 5)

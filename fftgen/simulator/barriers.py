"""Block barriers (PTX ISA, "bar", "barrier"): whole blocks, numbered, counted, arrive and reduce.

A warp arrives when all its threads that have not exited are at the instruction. Threads that exited do
not count, as on hardware: a barrier of the whole block completes when every warp that still has a thread
has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fftgen.simulator.control import BarrierOp
from fftgen.simulator.faults import Deadlock, DivergedCollective
from fftgen.simulator.machine import WARP, Group
from fftgen.simulator.types import Array

if TYPE_CHECKING:
    from fftgen.simulator.scheduler import Scheduler


@dataclass
class _Waiting:
    """Who has come to one barrier of one block."""

    count: int | None = None
    arrived: list[tuple[int, int, Array | None]] = field(default_factory=list)
    waiting: list[tuple[BarrierOp, Array]] = field(default_factory=list)

    def warps(self) -> set[int]:
        return {int(w) for _, threads in self.waiting for w in np.unique(threads >> 5)}


class Barriers:
    """The barriers of all blocks of a machine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.s = scheduler
        self.m = scheduler.m
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._parts: dict[int, Array] = {}
        """Threads of warps that have not arrived as a whole, by place."""

    def places(self) -> list[tuple[int, Array]]:
        """(pc, threads) of all that wait."""
        return [*self._parts.items(), *((op.pc, t) for w in self._waiting.values() for op, t in w.waiting)]

    def arrive(self, group: Group, op: BarrierOp) -> int | None:
        """A group comes to a barrier. Returns where it goes on at once, or None if it waits."""
        m = self.m
        assert op.number is not None
        if self._everyone(group, op):
            now = m.tick(op.pc)
            m.counts.barriers[op.pc] += len(group.warps)
            m.counts.block_barriers += len(m.blocks)
            if op.reduce is not None:
                self._reduce([(op, group.threads)])
            m.block_synchronised(slice(None), now)
            return op.pc + 1
        threads = group.threads
        if op.guard is not None:
            chosen = op.guard(m, group)
            self.s.same_in_warp(group, op, chosen)
            self.s.make_ready(op.pc + 1, threads[~chosen])
            threads = threads[chosen]
        before = self._parts.pop(op.pc, None)
        if before is not None:
            threads = np.sort(np.concatenate((before, threads)))
        if len(threads):
            self._arrive(m.group(threads), op)
        return None

    def _everyone(self, group: Group, op: BarrierOp) -> bool:
        """The common case: all live threads of all blocks come together to a barrier of the whole block."""
        m = self.m
        if op.guard is not None or op.arrive or self._waiting or self._parts:
            return False
        if group.n != m.size and group.n != np.count_nonzero(m.live):
            return False
        assert op.number is not None
        numbers = op.number(m, group)
        if not (numbers == numbers[0]).all():
            return False
        self._check_number(int(numbers[0]), op, group)
        if op.count is not None:
            counts = op.count(m, group)
            return group.n == m.size and bool((counts == m.block_size).all())
        return len(np.unique(m.block_of[group.threads])) == len(m.blocks) if group.idx is not None else True

    def _check_number(self, number: int, op: BarrierOp, group: Group) -> None:
        if number > 15:
            self.m.fault(
                Deadlock,
                op.instruction,
                f"barrier {number} does not exist: there are 0 to 15",
                int(group.threads[0]),
            )

    def _arrive(self, group: Group, op: BarrierOp) -> None:
        m = self.m
        assert op.number is not None
        complete = (m.live_bits[group.warps] & ~group.lanes) == 0
        if not complete.all():
            whole = np.isin(group.threads >> 5, group.warps[complete])
            self._parts[op.pc] = group.threads[~whole]
            if not whole.any():
                return
            group = m.group(group.threads[whole])
        threads = group.threads
        numbers = np.broadcast_to(op.number(m, group), group.n)
        counts = np.broadcast_to(op.count(m, group), group.n) if op.count is not None else None
        blocks = m.block_of[threads]
        moment = m.tick(op.pc)
        m.counts.barriers[op.pc] += len(group.warps)
        keys = {(int(b), int(n)) for b, n in zip(blocks, numbers, strict=True)}
        for block, number in sorted(keys):
            self._check_number(number, op, group)
            chosen = (blocks == block) & (numbers == number)
            mine = threads[chosen]
            state = self._waiting.setdefault((block, number), _Waiting())
            if counts is not None:
                count = int(counts[chosen][0])
                if count % WARP or count == 0:
                    m.fault(
                        Deadlock,
                        op.instruction,
                        f"a barrier of {count} threads: the count must be a multiple of {WARP}, and not 0",
                        int(mine[0]),
                    )
                state.count = count
            warps = {int(w) for w in mine >> 5}
            again = warps & {w for w, _, _ in state.arrived}
            if again:
                m.fault(
                    Deadlock,
                    op.instruction,
                    f"a warp arrives at barrier {number} for the second time before the barrier completed",
                    int(mine[mine >> 5 == min(again)][0]),
                )
            state.arrived += [(w, moment, m.knowledge(w) if op.arrive else None) for w in sorted(warps)]
            if op.arrive:
                self.s.make_ready(op.pc + 1, mine)
            else:
                state.waiting.append((op, mine))
            self._settle(block, number)

    def _settle(self, block: int, number: int) -> bool:
        """Let the threads of a barrier go if all have come."""
        m = self.m
        state = self._waiting[block, number]
        first = block * m.block_warps
        live = {first + int(w) for w in np.flatnonzero(m.live_bits[first : first + m.block_warps])}
        everyone = {w for w, _, _ in state.arrived}
        if state.count is not None:
            if len(state.arrived) * WARP < state.count:
                return False
        elif not live <= everyone:
            return False
        del self._waiting[block, number]
        now = m.tick(state.waiting[-1][0].pc if state.waiting else -1)
        self._reduce(state.waiting)
        waiting = state.warps()
        m.counts.block_barriers += 1
        if live <= waiting:
            m.block_synchronised(np.array([block]), now)
        else:
            m.order_warps(sorted(waiting), state.arrived, now)
        for op, threads in state.waiting:
            self.s.make_ready(op.pc + 1, threads)
        return True

    def _reduce(self, waiting: list[tuple[BarrierOp, Array]]) -> None:
        """barrier.red: every waiting thread gets the reduction of the predicates of its block."""
        if not waiting or waiting[0][0].reduce is None:
            return
        m = self.m
        totals = np.zeros(len(m.blocks), np.int64)
        people = np.zeros(len(m.blocks), np.int64)
        for op, threads in waiting:
            assert op.source is not None
            group = m.group(threads)
            votes = np.broadcast_to(op.source(m, group), group.n)
            np.add.at(totals, m.block_of[threads], votes)
            np.add.at(people, m.block_of[threads], 1)
        for op, threads in waiting:
            assert op.result is not None
            mine = m.block_of[threads]
            if op.reduce == "popc":
                op.result(m, m.group(threads), totals[mine].astype(np.uint32))
            elif op.reduce == "and":
                op.result(m, m.group(threads), (totals == people)[mine])
            else:
                op.result(m, m.group(threads), (totals > 0)[mine])

    def after_exit(self) -> None:
        """Threads have ended: those that wait for them may go on."""
        if self._waiting or self._parts:
            self.retry()

    def retry(self) -> bool:
        """Look at everything that waits once more. Returns whether anything moved."""
        moved = False
        for pc in list(self._parts):
            threads = self._parts.pop(pc)
            op = self.s.ops[pc]
            assert isinstance(op, BarrierOp)
            self._arrive(self.m.group(threads), op)
            left = self._parts.get(pc)
            moved |= left is None or len(left) != len(threads)
        for key in list(self._waiting):
            if key in self._waiting and self._waiting[key].count is None:
                moved |= self._settle(*key)
        return moved

    def stuck(self) -> None:
        """Nothing can move: say what the threads wait for, if any wait here."""
        m = self.m
        for pc, threads in self._parts.items():
            m.fault(
                DivergedCollective,
                self.s.ops[pc].instruction,
                "part of a warp waits at a barrier that the rest of it does not come to",
                int(threads[0]),
            )
        for (block, number), state in self._waiting.items():
            if not state.waiting:
                continue
            op, threads = state.waiting[0]
            wanted = f"{state.count} threads" if state.count is not None else "every warp of the block"
            have = len(state.arrived) * WARP
            lines = self.s.lines_of(block, block + 1)
            m.fault(
                Deadlock,
                op.instruction,
                f"barrier {number} waits for {wanted}, {have} threads have come, and no thread can go on "
                f"(threads of the block wait at PTX lines {lines})",
                int(threads[0]),
            )

"""Running the threads: a program counter per thread, lowest first, so that paths meet again where they join.

Threads at one place form a group and run together. A collective waits until all lanes that it names are
there; a block barrier until all warps are, the barrier of a cluster until all warps of its blocks are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.barriers import Barriers
from fftgen.simulator.clusters import Clusters
from fftgen.simulator.control import BarrierOp, ClusterOp
from fftgen.simulator.faults import Deadlock, DivergedCollective
from fftgen.simulator.machine import FULL_MASK, Group, Machine
from fftgen.simulator.ops import BARRIER, BRANCH, CLUSTER, EXIT, PLAIN, SYNC, Op
from fftgen.simulator.types import Array

_SPIN_LIMIT = 256

Run = Callable[[Machine, Group], None]


class Scheduler:
    """Runs all threads of a machine from the first instruction to their ends."""

    def __init__(self, m: Machine, ops: list[Op], leaders: set[int], max_steps: int) -> None:
        self.m = m
        self.ops = ops
        self.leaders = leaders
        self.steps_left = max_steps
        self.max_steps = max_steps
        self.ready: dict[int, Array] = {}
        self.parked: dict[int, Array] = {}
        self.barriers = Barriers(self)
        self.clusters = Clusters(self)
        self._pieces: dict[int, tuple[list[Run], int]] = {}
        self._issued: dict[int, int] = {}
        self._spins = 0
        self._last_first = False

    def run(self) -> None:
        """Run until every thread has ended. Raises the fault that stops the kernel, if any."""
        self.make_ready(0, self.m.everyone().threads)
        while True:
            while self.ready:
                pc = max(self.ready) if self._last_first else min(self.ready)
                self._last_first = False
                self._execute(self.m.group(self.ready.pop(pc)), pc)
            if not self.m.live.any():
                break
            if not (self.barriers.retry() or self.clusters.retry()):
                self._stuck()
        self._add_issues()

    def make_ready(self, pc: int, threads: Array) -> None:
        """These threads go on at ``pc``, together with those that are there already."""
        if len(threads) == 0:
            return
        there = self.ready.get(pc)
        if there is None:
            self.ready[pc] = threads
        else:
            self.ready[pc] = np.sort(np.concatenate((there, threads)))

    # -- straight-line code ----------------------------------------------------------------------------------

    def _piece(self, pc: int) -> tuple[list[Run], int]:
        """The plain instructions from ``pc`` on, up to a control instruction or a place where paths join."""
        found = self._pieces.get(pc)
        if found is None:
            runs: list[Run] = []
            end = pc
            while end < len(self.ops):
                op = self.ops[end]
                if op.kind != PLAIN or (end > pc and end in self.leaders):
                    break
                assert op.run is not None
                runs.append(op.run)
                end += 1
            found = self._pieces[pc] = (runs, end)
        return found

    def _add_issues(self) -> None:
        issues = self.m.counts.issues
        for pc, warps in self._issued.items():
            _, end = self._piece(pc)
            for i in range(pc, end):
                issues[i] += warps

    def _execute(self, group: Group, pc: int) -> None:
        """Run a group until it splits, waits, ends, or others stand at a lower place."""
        m, ops = self.m, self.ops
        while True:
            runs, end = self._piece(pc)
            if runs:
                self._issued[pc] = self._issued.get(pc, 0) + len(group.warps)
                for run in runs:
                    run(m, group)
            if end > pc and self.ready and min(self.ready) <= end:  # paths may join here
                self.make_ready(end, group.threads)
                return
            if end >= len(ops):
                self._end(group)
                return
            op = ops[end]
            if op.kind == PLAIN:
                pc = end
            else:
                self.steps_left -= 1
                if self.steps_left < 0:
                    self._too_long(op, group)
                m.counts.issues[end] += len(group.warps)
                following = self._control(group, op)
                if following is None:
                    return
                if following <= end:
                    self._spins += 1
                    if (
                        self._spins > _SPIN_LIMIT and self.ready
                    ):  # let others run: they may free a spinning loop
                        self._spins = 0
                        self._last_first = True
                        self.make_ready(following, group.threads)
                        return
                pc = following
            if self.ready and min(self.ready) <= pc:
                self.make_ready(pc, group.threads)
                return

    def _control(self, group: Group, op: Op) -> int | None:
        """Run a control instruction. Returns where the whole group goes on, or None if it does not."""
        if op.kind == BRANCH:
            if op.guard is None:
                return op.target
            taken = op.guard(self.m, group)
            if taken.all():
                return op.target
            if not taken.any():
                return op.pc + 1
            threads = group.threads
            self.make_ready(op.target, threads[taken])
            self.make_ready(op.pc + 1, threads[~taken])
            return None
        if op.kind == SYNC:
            return self._collective(group, op)
        if op.kind == BARRIER:
            assert isinstance(op, BarrierOp)
            return self.barriers.arrive(group, op)
        if op.kind == CLUSTER:
            assert isinstance(op, ClusterOp)
            return self.clusters.come(group, op)
        assert op.kind == EXIT
        if op.guard is not None:
            leaving = op.guard(self.m, group)
            threads = group.threads
            self.make_ready(op.pc + 1, threads[~leaving])
            if leaving.any():
                self._end(self.m.group(threads[leaving]))
            return None
        self._end(group)
        return None

    def _end(self, group: Group) -> None:
        self.m.retire(group.threads)
        if self.m.far is not None:
            self.m.far.after_exit(group)
        self.barriers.after_exit()
        self.clusters.after_exit()

    # -- collectives -----------------------------------------------------------------------------------------

    def _collective(self, group: Group, op: Op) -> int | None:
        m = self.m
        assert op.run is not None
        if op.guard is None and op.pc not in self.parked and group.whole:
            masks = op.mask(m, group) if op.mask is not None else None
            if masks is None or bool((masks == FULL_MASK).all()):
                op.run(m, group)
                return op.pc + 1
        threads = group.threads
        if op.guard is not None:
            chosen = op.guard(m, group)
            if op.aligned:
                self.same_in_warp(group, op, chosen)
            self.make_ready(op.pc + 1, threads[~chosen])
            threads = threads[chosen]
        before = self.parked.pop(op.pc, None)
        if before is not None:
            threads = np.sort(np.concatenate((before, threads)))
        if len(threads) == 0:
            return None
        complete = self._complete(m.group(threads), op)
        if not complete.all():
            self.parked[op.pc] = threads[~complete]
        if complete.any():
            op.run(m, m.group(threads[complete]))
            self.make_ready(op.pc + 1, threads[complete])
        return None

    def _complete(self, group: Group, op: Op) -> Array:
        """Which threads have all the lanes that their mask names beside them."""
        m = self.m
        threads = group.threads
        warps, lanes = threads >> 5, (threads & 31).astype(np.uint32)
        present = np.zeros(m.size >> 5, np.uint32)
        present[group.warps] = group.lanes
        exist = m.exist_bits[warps]
        if op.mask is None:
            masks = np.full(len(threads), FULL_MASK, np.uint32)
            if (exist != FULL_MASK).any():
                i = int(np.flatnonzero(exist != FULL_MASK)[0])
                m.fault(
                    DivergedCollective,
                    op.instruction,
                    "the instruction needs all 32 lanes of a warp, but the block ends inside this one",
                    int(threads[i]),
                )
        else:
            masks = np.broadcast_to(op.mask(m, group), len(threads))
        own = (masks >> lanes) & np.uint32(1)
        if not own.all():
            i = int(np.flatnonzero(own == 0)[0])
            m.fault(
                DivergedCollective,
                op.instruction,
                f"the mask {int(masks[i]):#010x} does not name the lane that executes it",
                int(threads[i]),
            )
        needed = masks & exist
        ended = needed & ~m.live_bits[warps]
        if ended.any():
            i = int(np.flatnonzero(ended)[0])
            m.fault(
                DivergedCollective,
                op.instruction,
                f"the mask {int(masks[i]):#010x} names lanes that have exited: {_lanes(int(ended[i]))}",
                int(threads[i]),
            )
        complete: Array = (needed & ~present[warps]) == 0
        self._same_masks(threads, masks, complete, op)
        return complete

    def _same_masks(self, threads: Array, masks: Array, complete: Array, op: Op) -> None:
        """All lanes of one collective must name the same lanes."""
        if (masks == masks[0]).all():
            return
        by_thread = dict(zip(threads.tolist(), masks.tolist(), strict=True))
        for thread, mask in (
            (t, k) for t, k, c in zip(threads.tolist(), masks.tolist(), complete, strict=True) if c
        ):
            for lane in range(32):
                other = (thread & ~31) + lane
                if mask >> lane & 1 and by_thread.get(other, mask) != mask:
                    self.m.fault(
                        DivergedCollective,
                        op.instruction,
                        f"lanes {thread & 31} and {lane} name different masks: {mask:#010x}, "
                        f"{by_thread[other]:#010x}",
                        thread,
                    )

    def same_in_warp(self, group: Group, op: Op, chosen: Array) -> None:
        """An aligned instruction must be executed by all lanes of a warp or by none."""
        threads = group.threads
        _, first = np.unique(threads >> 5, return_index=True)
        some = np.logical_or.reduceat(chosen, first)
        every = np.logical_and.reduceat(chosen, first)
        if (some != every).any():
            warp = int(np.flatnonzero(some != every)[0])
            inside = threads[chosen]
            wanted = int(threads[first[warp]]) >> 5
            thread = int(inside[(inside >> 5) == wanted][0])
            self.m.fault(
                DivergedCollective,
                op.instruction,
                "the predicate holds for part of a warp only, but all its lanes must execute the instruction",
                thread,
            )

    # -- no progress -----------------------------------------------------------------------------------------

    def _stuck(self) -> None:
        m = self.m
        for pc, threads in self.parked.items():
            op = self.ops[pc]
            self._complete(m.group(threads), op)  # may tell more precisely what is wrong
            thread = int(threads[0])
            here = int(m.group(threads).lanes[0])
            m.fault(
                DivergedCollective,
                op.instruction,
                f"lanes {_lanes(here)} of the warp wait for other lanes that are held up elsewhere: "
                + self.elsewhere(thread, here),
                thread,
            )
        self.clusters.stuck()
        self.barriers.stuck()
        m.fault(Deadlock, None, "no thread can go on")

    def _places(self) -> list[tuple[int, Array]]:
        """(pc, threads) of all that wait."""
        return [*self.parked.items(), *self.barriers.places(), *self.clusters.places()]

    def lines_of(self, first: int, end: int) -> str:
        """The PTX lines where threads of the blocks ``first`` to ``end`` - 1 of the machine wait."""
        size = self.m.block_size
        return ", ".join(
            str(line)
            for line in sorted(
                {
                    self.ops[pc].instruction.ptx_line
                    for pc, threads in self._places()
                    if ((threads >= first * size) & (threads < end * size)).any()
                }
            )
        )

    def elsewhere(self, thread: int, here: int) -> str:
        """Where the other lanes of a warp are."""
        words: list[str] = []
        warp = thread >> 5
        missing = int(self.m.live_bits[warp]) & ~here
        for pc, threads in self._places():
            lanes = sum(1 << int(t & 31) for t in threads if t >> 5 == warp) & missing
            if lanes:
                words.append(f"lanes {_lanes(lanes)} at PTX line {self.ops[pc].instruction.ptx_line}")
        if ended := int(self.m.exist_bits[warp]) & ~int(self.m.live_bits[warp]):
            words.append(f"lanes {_lanes(ended)} have exited")
        return "; ".join(words) or "nowhere"

    def _too_long(self, op: Op, group: Group) -> None:
        self.m.fault(
            Deadlock,
            op.instruction,
            f"still running after {self.max_steps} control instructions: an endless loop? "
            "(max_steps raises the limit)",
            int(group.threads[0]),
        )


def _lanes(mask: int) -> str:
    """A lane mask in words: "0-15, 17"."""
    lanes = [i for i in range(32) if mask >> i & 1]
    parts: list[str] = []
    for lane in lanes:
        if parts and lane - 1 in lanes:
            parts[-1] = f"{parts[-1].split('-')[0]}-{lane}"
        else:
            parts.append(str(lane))
    return ", ".join(parts)

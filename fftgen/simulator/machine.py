"""The state of the blocks that run together: registers, groups of threads, clocks, faults.

Every register is a NumPy array over the threads of all running blocks; each block is padded to whole
warps, and padding lanes never run. The arrays are values: an instruction replaces them and never writes
into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fftgen.simulator.faults import Dim3, SimulationError
from fftgen.simulator.release import Releases
from fftgen.simulator.syntax import Entry, Instruction, Module
from fftgen.simulator.types import Array

if TYPE_CHECKING:
    from fftgen.simulator.async_copy import AsyncCopies
    from fftgen.simulator.counters import Counts
    from fftgen.simulator.distributed import Distributed
    from fftgen.simulator.spaces import Spaces

WARP = 32
FULL_MASK = 0xFFFFFFFF


class Group:
    """Threads that execute one instruction together: ``idx`` holds their numbers, rising; None means all."""

    __slots__ = ("_lanes", "_warps", "_whole", "idx", "machine", "n")

    def __init__(self, machine: Machine, idx: Array | None) -> None:
        self.machine = machine
        self.idx = idx
        self.n = machine.size if idx is None else len(idx)
        self._warps: Array | None = None
        self._lanes: Array | None = None
        self._whole: bool | None = None

    @property
    def threads(self) -> Array:
        """Thread numbers."""
        return self.machine.numbers if self.idx is None else self.idx

    @property
    def warps(self) -> Array:
        """The warps that have a thread in the group."""
        if self._warps is None:
            if self.idx is None:
                self._warps = self.machine.warp_numbers
            else:
                w = self.idx >> 5
                keep = np.empty(len(w), np.bool_)
                keep[:1] = True
                np.not_equal(w[1:], w[:-1], out=keep[1:])
                self._warps = w[keep]
        return self._warps

    @property
    def lanes(self) -> Array:
        """For each warp of ``warps`` the mask of its lanes in the group (uint32)."""
        if self._lanes is None:
            if self.idx is None:
                self._lanes = np.full(len(self.warps), FULL_MASK, np.uint32)
            else:
                bits = np.zeros(self.machine.size, np.bool_)
                bits[self.idx] = True
                packed = np.packbits(bits, bitorder="little").view(np.uint32)
                self._lanes = packed[self.warps]
        return self._lanes

    @property
    def whole(self) -> bool:
        """Whether every warp of the group has all its 32 lanes in it."""
        if self._whole is None:
            self._whole = self.idx is None or (
                self.n == WARP * len(self.warps) and bool((self.lanes == FULL_MASK).all())
            )
        return self._whole


class History:
    """What the batches of one launch share: which instruction ran at which moment, and whose moments they
    are.
    """

    def __init__(self) -> None:
        self.clock_pc: list[int] = [-1, -1]
        self.batches: list[tuple[int, list[Dim3]]] = []
        self.published: dict[tuple[str, int], dict[int, Array]] = {}

    def start_of(self, moment: int) -> int:
        """When the batch began that was running at a moment."""
        return next(start for start, _ in reversed(self.batches) if moment > start)

    def blocks_at(self, moment: int) -> list[Dim3]:
        """The blocks that were running at a moment."""
        return next(blocks for start, blocks in reversed(self.batches) if moment > start)


class Machine:
    """The blocks that run together and everything that they share.

    ``registers[i]`` holds register i of every thread; ``defined`` the per-thread marks of those registers
    that data flow could not prove to be written before they are read.
    """

    def __init__(
        self,
        module: Module,
        entry: Entry,
        grid: Dim3,
        block: Dim3,
        blocks: list[Dim3],
        seed: int,
        history: History,
        many_blocks: bool,
        cluster: int = 1,
        many_clusters: bool = True,
    ) -> None:
        self.module = module
        self.entry = entry
        self.grid = grid
        self.block = block
        self.blocks = blocks
        self.seed = seed
        self.block_threads = block[0] * block[1] * block[2]
        self.block_size = -(-self.block_threads // WARP) * WARP
        self.block_warps = self.block_size // WARP
        self.size = self.block_size * len(blocks)
        self.numbers = np.arange(self.size, dtype=np.int64)
        self.warp_numbers = np.arange(self.size // WARP, dtype=np.int64)
        self.block_of = np.repeat(np.arange(len(blocks), dtype=np.int64), self.block_size)
        live = np.zeros((len(blocks), self.block_size), np.bool_)
        live[:, : self.block_threads] = True
        self.exists = live.reshape(-1)
        self.live = self.exists.copy()
        storages = [reg.type.storage for reg in entry.registers]
        blank = {storage: np.zeros(self.size, storage) for storage in set(storages)}
        self.registers: list[Array] = [blank[storage] for storage in storages]
        self.defined: dict[int, Array] = {}
        self.specials: dict[str, Array] = {}
        self.symbols: Mapping[str, int] = {}
        self.exist_bits = np.packbits(self.exists, bitorder="little").view(np.uint32)
        self.live_bits = self.exist_bits.copy()
        self.history = history
        self.many_blocks = many_blocks
        self.cluster = cluster
        """Blocks of a cluster; those of one stand together in ``blocks``."""
        self.many_clusters = many_clusters
        self.cluster_of = self.block_of // cluster if cluster > 1 else self.block_of
        self.clock_pc = history.clock_pc
        self.clock = self.start = len(history.clock_pc) - 1
        history.batches.append((self.start, blocks))
        self.base = np.full(len(blocks), self.start, np.int64)
        self.base_low = self.start
        self.cluster_base = self.base.copy() if cluster > 1 else self.base
        """For every block up to when all that its whole cluster did is ordered; never above ``base``."""
        self.in_part = cluster > 1
        """Whether ``base`` may leave out what is ordered: a barrier ordered what lies some way before it."""
        self.warp_sync = np.zeros(self.size, np.int64)
        self.lane_seen: Array | None = None
        self.warp_seen: Array | None = None
        self.spaces: Spaces
        self.counts: Counts
        self.copies: AsyncCopies
        self.far: Distributed | None = None
        """Set where the kernel may reach the shared memory of other blocks."""
        self.releases = Releases(self, history)
        self.cache: dict[Any, Any] = {}

    def everyone(self) -> Group:
        """All threads that exist."""
        if self.block_threads == self.block_size:
            return Group(self, None)
        return Group(self, np.flatnonzero(self.exists))

    def group(self, idx: Array) -> Group:
        """A group of these threads (rising numbers)."""
        return Group(self, None if len(idx) == self.size else idx)

    def select(self, group: Group, mask: Array) -> Group | None:
        """The threads of a group where ``mask`` (over the group) holds; None if there are none."""
        if mask.all():
            return group
        idx = np.flatnonzero(mask) if group.idx is None else group.idx[mask]
        return Group(self, idx) if len(idx) else None

    def tick(self, pc: int) -> int:
        """A new moment, remembered as the execution of instruction ``pc``."""
        self.clock += 1
        self.clock_pc.append(pc)
        return self.clock

    def block_synchronised(self, blocks: Array | slice, now: int) -> None:
        """All that these blocks did up to ``now`` is ordered before what they do next."""
        self.base[blocks] = now
        self.base_low = int(self.base.min())
        if self.releases.active:
            for block in np.arange(len(self.blocks))[blocks]:
                self.releases.joined(self.warp_numbers[block * self.block_warps :][: self.block_warps])
        if self.cluster > 1 and self.warp_seen is not None:  # the same for other blocks of the cluster
            rows = self.warp_seen.reshape(len(self.blocks), self.block_warps, -1)
            rows[blocks] = rows[blocks].max(axis=1, keepdims=True)
        if self.far is not None:
            self.far.blocks_told(blocks)

    def clusters_synchronised(self, clusters: Array | slice, moment: int) -> None:
        """All that the blocks of these clusters did up to a moment is ordered before what they do next."""
        for base in (self.base, self.cluster_base):
            rows = base.reshape(-1, self.cluster)
            rows[clusters] = np.maximum(rows[clusters], moment)
        self.base_low = int(self.base.min())

    def order_cluster(self, waiting: Array, first: int, known: Array) -> None:
        """The barrier of a cluster, from warp number ``first`` on: the warps that waited for it learn up to
        when what each of its warps did is ordered before what they do next (``known``, one per warp).
        """
        self.track_lanes()
        assert self.warp_seen is not None
        assert self.lane_seen is not None
        cluster = slice(first, first + len(known))
        self.warp_seen[waiting, cluster] = np.maximum(self.warp_seen[waiting, cluster], known)
        lanes = (waiting[:, None] * WARP + np.arange(WARP)).reshape(-1)
        own = np.repeat(known[waiting - first], WARP)
        self.warp_sync[lanes] = np.maximum(self.warp_sync[lanes], own)
        self.lane_seen[lanes] = np.maximum(self.lane_seen[lanes], own[:, None])

    def order_lanes(self, group: Group, masks: Array, now: int) -> None:
        """``bar.warp.sync``: what the named lanes did is ordered before what they do next."""
        threads = group.threads
        warps = threads >> 5
        exist = self.exist_bits[warps]
        full = (masks & exist) == exist
        if full.all():
            self.warp_sync[threads] = now
            if self.lane_seen is not None:
                self.lane_seen[threads] = now
            return
        self.track_lanes()
        assert self.lane_seen is not None
        masks = np.broadcast_to(masks, len(threads))
        for warp, mask in {(int(w), int(k)) for w, k in zip(warps, masks, strict=True)}:
            lanes = np.flatnonzero((mask >> np.arange(WARP)) & 1) + warp * WARP
            seen = self.lane_seen[lanes].max(axis=0)
            seen[lanes & 31] = now
            self.lane_seen[lanes] = seen
            self.warp_sync[lanes] = np.minimum(seen[self.exists[warp * WARP : warp * WARP + WARP]].min(), now)

    def track_lanes(self) -> None:
        """Start to follow barriers of part of a warp or of a block, which most kernels do not have."""
        if self.lane_seen is None:
            self.lane_seen = np.repeat(self.warp_sync[:, None], WARP, axis=1)
            block = self.block_of[::WARP]
            base = self.base[block]
            self.warp_seen = np.repeat(base[:, None], len(base), axis=1)
            if self.cluster > 1:
                other = block[:, None] != block
                self.warp_seen = np.where(other, self.cluster_base[block][:, None], self.warp_seen)

    def knowledge(self, warp: int) -> Array:
        """For every warp, up to when its accesses are ordered before what ``warp`` does now."""
        self.track_lanes()
        assert self.warp_seen is not None
        row: Array = self.warp_seen[warp].copy()
        return row

    def order_warps(self, waiting: list[int], arrived: list[tuple[int, int, Array | None]], now: int) -> None:
        """A barrier of some warps: ``waiting`` ones learn what all that arrived did before.

        ``arrived`` holds (warp, moment, knowledge then); a warp that waited has learnt nothing since (None).
        """
        self.track_lanes()
        assert self.warp_seen is not None
        assert self.lane_seen is not None
        seen = self.warp_seen
        known = np.max([seen[w] if k is None else k for w, _, k in arrived], axis=0)
        for warp, moment, _ in arrived:
            known[warp] = max(known[warp], moment)
        if self.releases.active:
            self.releases.joined(np.array(waiting, np.int64))
        if self.far is not None:
            self.far.told(np.array(waiting, np.int64), np.array([w for w, _, _ in arrived], np.int64))
        for warp in waiting:
            self.warp_seen[warp] = np.maximum(self.warp_seen[warp], known)
            lanes = slice(warp * WARP, warp * WARP + WARP)
            self.warp_sync[lanes] = now
            self.lane_seen[lanes] = now

    def retire(self, threads: Array) -> None:
        """These threads have ended."""
        self.live[threads] = False
        self.live_bits = np.packbits(self.live, bitorder="little").view(np.uint32)

    def coordinates(self, thread: int, blocks: list[Dim3] | None = None) -> tuple[Dim3, Dim3]:
        """(block, thread) coordinates of a thread number."""
        where, t = divmod(int(thread), self.block_size)
        bx, by, _ = self.block
        return (blocks or self.blocks)[where], (t % bx, t // bx % by, t // (bx * by))

    def fault(
        self,
        kind: type[SimulationError],
        instruction: Instruction | None,
        message: str,
        thread: int | None = None,
        **more: Any,
    ) -> NoReturn:
        """Raise a fault with all that is known about where it happened."""
        block, coordinates = self.coordinates(thread) if thread is not None else (None, None)
        line, location = self.module.where(instruction.loc) if instruction is not None else (None, None)
        raise kind(
            message,
            instruction=instruction.text if instruction is not None else None,
            ptx_line=instruction.ptx_line if instruction is not None else None,
            source_line=line,
            location=location,
            block=block,
            thread=coordinates,
            **more,
        )

    def describe(self, moment: int, thread: int | None = None) -> str:
        """The instruction executed at a moment, in words: the other side of a race."""
        pc = self.clock_pc[moment]
        if pc < 0:
            return "before the launch"
        instruction = self.entry.instructions[pc]
        _, location = self.module.where(instruction.loc)
        text = f"{instruction.text} (PTX line {instruction.ptx_line}"
        text += f", source {location})" if location is not None else ")"
        if thread is not None:
            block, coordinates = self.coordinates(thread, self.history.blocks_at(moment))
            text += f" by block {block}, thread {coordinates}"
        return text

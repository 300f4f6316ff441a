"""Distributed shared memory: mapa, getctarank, and accesses to the shared memory of other blocks of a cluster
(PTX ISA, "mapa", "getctarank", state space ``shared::cluster``).

An address of ``shared::cluster`` is an offset in the shared memory of a block, with the rank of the block
plus one in the bits from 24 on. Zero there means the own block: every address of ``shared::cta`` is one of
``shared::cluster``, and no mapped address is one of ``shared::cta``, not even one mapped to the own rank.

A block must be known to run before others touch its memory, and to be there until they have: a warp needs a
completed barrier of its cluster behind it, and the block one before its end that orders the last access.
Order by flags in memory is not looked at for the first, which is stricter than the ISA.
"""

from __future__ import annotations

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import OutOfBounds
from fftgen.simulator.integer import INT
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.regions import RANK_SHIFT, SHARED_WINDOW
from fftgen.simulator.syntax import Instruction, Operand, Sym
from fftgen.simulator.types import TYPES, Array, Type

_RANK = np.uint64(RANK_SHIFT)
_OFFSET = np.uint64((1 << RANK_SHIFT) - 1)


class Distributed:
    """What a machine knows about accesses of its blocks to the shared memory of others."""

    def __init__(self, m: Machine, shared_bytes: int, stride: int) -> None:
        self.m = m
        self.shared_bytes, self.stride = shared_bytes, stride
        self._met = np.zeros(m.size >> 5, np.bool_)
        """Warps that know that all blocks of their cluster run."""
        self._last = np.zeros((len(m.blocks), m.size >> 5), np.int64)
        """When a warp accessed the memory of a block last, and which of its threads did."""
        self._who = np.zeros_like(self._last)

    # -- addresses -------------------------------------------------------------------------------------------

    def split(self, m: Machine, g: Group, ins: Instruction, addresses: Array) -> tuple[Array, Array]:
        """The number in the machine of the block that each address leads to, and the offset in its memory."""
        tag = (addresses >> _RANK).view(np.int64)
        own = m.block_of[g.threads]
        if not tag.any():
            return own, addresses.view(np.int64)
        beyond = (tag < 0) | (tag > m.cluster)
        if beyond.any():
            i = int(np.flatnonzero(beyond)[0])
            m.fault(
                OutOfBounds,
                ins,
                f"{int(addresses[i]):#x} is no address in the shared memory of the cluster: "
                f"it is neither below {1 << RANK_SHIFT:#x} nor one that mapa gives",
                int(g.threads[i]),
                address=int(addresses[i]),
                buffer="shared",
            )
        homes: Array = np.where(tag == 0, own, own - own % m.cluster + tag - 1)
        return homes, (addresses & _OFFSET).view(np.int64)

    def offsets(self, m: Machine, g: Group, ins: Instruction, addresses: Array, nbytes: int) -> Array:
        """Where accesses of ``nbytes`` lead in the shared memory of all running blocks.

        Raises OutOfBounds, also for a block that is not, or not known to be, there.
        """
        homes, low = self.split(m, g, ins, addresses)
        if int(low.max()) + nbytes > self.shared_bytes:
            i = int(np.flatnonzero(low + nbytes > self.shared_bytes)[0])
            m.fault(
                OutOfBounds,
                ins,
                f"{nbytes} bytes at shared offset {int(low[i]):#x} of block rank {int(homes[i]) % m.cluster} "
                f"of the cluster: a block has {self.shared_bytes} bytes of shared memory",
                int(g.threads[i]),
                address=int(low[i]),
                buffer="shared",
            )
        far = homes != m.block_of[g.threads]
        if far.any():
            self._reach(g, ins, homes, low, far)
        found: Array = low + homes * self.stride
        return found

    def place(self, address: int) -> str:
        """An address in words, for messages."""
        rank = (address >> RANK_SHIFT) - 1
        if not 0 <= rank < self.m.cluster:
            return ""
        return f"offset {address & int(_OFFSET):#x} of block rank {rank} of the cluster"

    # -- whether the blocks are there ------------------------------------------------------------------------

    def _reach(self, g: Group, ins: Instruction, homes: Array, low: Array, far: Array) -> None:
        """Accesses to other blocks, which must have begun and not ended."""
        m = self.m
        warps = g.threads >> 5
        early = far & ~self._met[warps]
        if early.any():
            why = "is not known to run yet: no barrier of the cluster has been waited for"
            self._absent(g, ins, homes, low, early, why)
        there = m.live.reshape(len(m.blocks), -1).any(axis=1)
        gone = far & ~there[homes]
        if gone.any():
            self._absent(g, ins, homes, low, gone, "has exited")
        self._last[homes[far], warps[far]] = m.clock
        self._who[homes[far], warps[far]] = g.threads[far]

    def _absent(self, g: Group, ins: Instruction, homes: Array, low: Array, bad: Array, why: str) -> None:
        i = int(np.flatnonzero(bad)[0])
        self.m.fault(
            OutOfBounds,
            ins,
            f"shared memory of block rank {int(homes[i]) % self.m.cluster} of the cluster, which {why}",
            int(g.threads[i]),
            address=int(low[i]),
            buffer="shared",
        )

    def met(self, warps: Array | slice) -> None:
        """These warps have waited for a barrier of their cluster: its blocks have all begun."""
        self._met[warps] = True

    def told(self, waiting: Array, arrived: Array) -> None:
        """A barrier of some warps passes on what any that arrived knows."""
        if self._met[arrived].any():
            self._met[waiting] = True

    def blocks_told(self, blocks: Array | slice) -> None:
        """The same for barriers of whole blocks."""
        rows = self._met.reshape(len(self.m.blocks), -1)
        rows[blocks] |= rows[blocks].any(axis=1, keepdims=True)

    def after_exit(self, group: Group) -> None:
        """Blocks may have ended: what others accessed in their memory must be ordered before that."""
        m = self.m
        for block in np.unique(m.block_of[group.threads]).tolist():
            own = slice(block * m.block_size, (block + 1) * m.block_size)
            last = self._last[block]
            if m.live[own].any() or int(last.max()) <= int(m.cluster_base[block]):
                continue
            bad = np.flatnonzero(last > np.maximum(m.cluster_base[block], self._known(block)))
            if len(bad):
                self._unordered_end(block, int(bad[0]))

    def _known(self, block: int) -> Array:
        """Up to when what each warp did is ordered before the end of a block: any of its warps may know."""
        m = self.m
        own = slice(block * m.block_warps, (block + 1) * m.block_warps)
        known = np.zeros(m.size >> 5, np.int64)
        if m.warp_seen is not None:
            known = np.maximum(known, m.warp_seen[own].max(axis=0))
        if m.releases.seen is not None:
            known = np.maximum(known, m.releases.seen[own].max(axis=0).reshape(-1, 32).max(axis=1))
        return known

    def _unordered_end(self, block: int, warp: int) -> None:
        m = self.m
        moment, thread = int(self._last[block, warp]), int(self._who[block, warp])
        m.fault(
            OutOfBounds,
            m.entry.instructions[m.clock_pc[moment]],
            f"shared memory of block rank {block % m.cluster} of the cluster is accessed here, and nothing "
            "keeps the block from exiting before: a barrier of the cluster must come between",
            thread,
            buffer="shared",
            other=f"the end of block {m.blocks[block]}",
        )

    # -- counts ----------------------------------------------------------------------------------------------

    def shared_access(self, pc: int, what: str, offsets: Array, nbytes: int, g: Group) -> None:
        """Loads or stores of ``nbytes`` at byte ``offsets`` of the shared memory of all running blocks.

        Every block has banks of its own: lanes that go to different ones do not meet at a bank.
        """
        m = self.m
        far = int(np.count_nonzero(offsets // self.stride != m.block_of[g.threads]))
        if not far:
            m.counts.shared_access(pc, what, offsets, nbytes, g)
            return
        passes, least = m.counts.patterns.wavefronts(offsets, nbytes, g, self.stride)
        m.counts.shared_units(pc, what, len(g.warps), len(offsets) * nbytes, passes, least)
        m.counts.remote[pc, what] += far * nbytes


# -- instructions --------------------------------------------------------------------------------------------


def _window(d: Decoder, mods: Modifiers) -> tuple[Type, np.uint64]:
    """The type of the addresses, and where their space begins: they are generic if none is named."""
    kind = mods.type("u32", "u64")
    if mods.flag("shared::cluster"):
        return kind, np.uint64(0)
    if kind.bits != 64:
        d.refuse("generic addresses have 64 bits")
    return kind, np.uint64(SHARED_WINDOW)


def _check_variable(d: Decoder, operand: Operand, window: np.uint64) -> None:
    """A variable that is named stands for a shared address, and must be one."""
    if isinstance(operand, Sym):
        variables = (*d.entry.variables, *d.module.variables.values())
        if window or operand.name not in {v.name for v in variables if v.space == "shared"}:
            d.refuse(f"{operand.name} is not a shared address")


@handles("mapa")
def _mapa(d: Decoder, ins: Instruction) -> Op:
    """The address in another block of what an address is in its own: already mapped ones are mapped anew."""
    mods = Modifiers(ins)
    kind, window = _window(d, mods)
    mods.done()
    d.arity(3)
    _check_variable(d, ins.operands[1], window)
    read, rank = d.get(ins.operands[1], kind), d.get(ins.operands[2], TYPES["u32"])
    put = d.put(ins.operands[0], kind)

    def run(m: Machine, g: Group) -> None:
        assert m.far is not None
        addresses = np.broadcast_to(read(m, g).astype(np.uint64) - window, g.n)
        ranks = np.broadcast_to(rank(m, g).astype(np.uint64), g.n)
        _, low = m.far.split(m, g, ins, np.ascontiguousarray(addresses))
        if int(ranks.max()) >= m.cluster:
            i = int(np.flatnonzero(ranks >= m.cluster)[0])
            m.fault(
                OutOfBounds,
                ins,
                f"rank {int(ranks[i])} does not exist: the cluster has {m.cluster} "
                + ("blocks" if m.cluster > 1 else "block"),
                int(g.threads[i]),
                buffer="shared",
            )
        mapped = low.view(np.uint64) | ((ranks + np.uint64(1)) << _RANK)
        put(m, g, (mapped + window).astype(kind.dtype))

    return d.op(INT, run)


@handles("getctarank")
def _getctarank(d: Decoder, ins: Instruction) -> Op:
    """The rank of the block that a shared address leads to."""
    mods = Modifiers(ins)
    kind, window = _window(d, mods)
    mods.done()
    d.arity(2)
    _check_variable(d, ins.operands[1], window)
    read = d.get(ins.operands[1], kind)
    put = d.put(ins.operands[0], TYPES["u32"])

    def run(m: Machine, g: Group) -> None:
        assert m.far is not None
        addresses = np.broadcast_to(read(m, g).astype(np.uint64) - window, g.n)
        homes, _ = m.far.split(m, g, ins, np.ascontiguousarray(addresses))
        put(m, g, (homes % m.cluster).astype(np.uint32))

    return d.op(INT, run)

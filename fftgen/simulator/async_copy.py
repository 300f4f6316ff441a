"""cp.async: copies to shared memory that take effect at the matching wait (PTX ISA, "cp.async")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import Misaligned, OutOfBounds, SharedRace, UninitializedRead
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.ordering import PENDING
from fftgen.simulator.policies import hinted
from fftgen.simulator.regions import Region
from fftgen.simulator.syntax import Imm, Instruction, Reg
from fftgen.simulator.types import TYPES, Array

ASYNC = "async copy"


@dataclass
class _Copy:
    """What one cp.async instruction left on its way: one row per thread."""

    instruction: Instruction
    threads: Array
    groups: Array
    offsets: Array
    data: Array
    moment: int
    source: Region
    source_offsets: Array


class AsyncCopies:
    """The copies on their way and the commit groups of every thread."""

    def __init__(self, m: Machine) -> None:
        self.pending: list[_Copy] = []
        self.commits = np.zeros(m.size, np.int64)
        self._flying: Array | None = None

    def flying(self, m: Machine) -> Array:
        """One mark per shared byte: a copy to it is on its way."""
        if self._flying is None:
            self._flying = np.zeros(m.spaces.shared.size, np.bool_)
        return self._flying

    def check(
        self,
        m: Machine,
        ins: Instruction,
        g: Group,
        region: Region,
        offsets: Array,
        nbytes: int,
        unwritten: Array | None,
    ) -> None:
        """Stop at an access to bytes that a copy is still going to write."""
        touched = self.flying(m).reshape(-1, nbytes).take(offsets // nbytes, axis=0).any(axis=1)
        if not touched.any():
            return
        i = int(np.flatnonzero(touched)[0])
        offset = int(offsets[i])
        other = next(
            (
                c
                for c in self.pending
                if ((c.offsets < offset + nbytes) & (offset < c.offsets + c.data.shape[1])).any()
            ),
            self.pending[0],
        )
        fresh = unwritten is not None and bool(unwritten[i])
        shown = m.spaces.shown(region, offset)
        m.fault(
            UninitializedRead if fresh else SharedRace,
            ins,
            f"shared offset {shown} is touched while an asynchronous copy to it is on its way: "
            "wait for it first",
            int(g.threads[i]),
            address=shown,
            buffer="shared",
            other=m.describe(other.moment),
        )

    def start(self, m: Machine, copy: _Copy) -> None:
        self.pending.append(copy)
        width = copy.data.shape[1]
        self.flying(m).reshape(-1, width)[copy.offsets // width] = True

    def wait(self, m: Machine, g: Group, pc: int, newest: int | None) -> None:
        """Complete the copies of these threads but those of their ``newest`` commit groups (None: all)."""
        if not self.pending:
            return
        now = m.tick(pc)
        waiting = np.zeros(m.size, np.bool_)
        waiting[g.threads] = True
        left: list[_Copy] = []
        for copy in self.pending:
            done = waiting[copy.threads]
            if newest is not None:
                done &= copy.groups < self.commits[copy.threads] - newest
            if done.any():
                self._finish(m, copy, done, now)
            if not done.all():
                keep = ~done
                left.append(
                    _Copy(
                        copy.instruction,
                        copy.threads[keep],
                        copy.groups[keep],
                        copy.offsets[keep],
                        copy.data[keep],
                        copy.moment,
                        copy.source,
                        copy.source_offsets[keep],
                    )
                )
        self.pending = left

    def _finish(self, m: Machine, copy: _Copy, done: Array, now: int) -> None:
        threads, offsets, data = copy.threads[done], copy.offsets[done], copy.data[done]
        width = data.shape[1]
        units = offsets // width
        shared = m.spaces.shared
        assert shared.shadow is not None
        shared.bytes.reshape(-1, width)[units] = data
        wt, wa, _, _ = shared.shadow.rows(width)
        wt[units] = now
        wa[units] = threads[:, None]
        self.flying(m).reshape(-1, width)[units] = False
        source = copy.source.shadow
        if source is not None:
            self._release_source(source.rows(width), copy, done)

    @staticmethod
    def _release_source(rows: tuple[Array, ...], copy: _Copy, done: Array) -> None:
        """The source may be overwritten now by the thread that copied it."""
        width = copy.data.shape[1]
        units = copy.source_offsets[done] // width
        rows[3][units] &= ~PENDING


@handles("cp")
def _cp(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("async")
    if mods.flag("bulk"):
        return _bulk_prefetch(d, ins, mods)
    if mods.flag("commit_group"):
        mods.done()

        def commit(m: Machine, g: Group) -> None:
            m.copies.commits[g.threads] += 1

        return d.op(ASYNC, commit)
    if mods.flag("wait_all"):
        mods.done()
        pc = d.pc
        return d.op(ASYNC, lambda m, g: m.copies.wait(m, g, pc, None))
    if mods.flag("wait_group"):
        mods.done()
        (count,) = ins.operands
        if not isinstance(count, Imm):
            d.refuse("the number of groups must be a literal")
        newest, pc = count.value, d.pc
        return d.op(ASYNC, lambda m, g: m.copies.wait(m, g, pc, newest))
    return _copy(d, ins, mods)


PIECE = 16  # bytes on which a bulk prefetch starts and of which its size is a multiple
LONGEST = 65_535 * PIECE  # of more than 16 bits of pieces ptxas keeps the lower ones (as compiled)


def _bulk_prefetch(d: Decoder, ins: Instruction, mods: Modifiers) -> Op:
    """cp.async.bulk.prefetch.L2.global (PTX ISA, "Data Movement and Conversion Instructions").

    Moves nothing, but asks for memory that must be there. No sectors are counted: the loads that follow do.
    """
    if not (mods.flag("prefetch") and mods.flag("L2") and mods.flag("global")):
        d.refuse("of bulk copies only cp.async.bulk.prefetch.L2.global")
    mods.done()
    where, size = ins.operands
    read, count = d.address(where), d.get(size, TYPES["u32"])

    def run(m: Machine, g: Group) -> None:
        addresses, sizes = read(m, g), np.asarray(count(m, g), np.uint64)
        if (sizes % PIECE).any() or not sizes.all():
            i = int(np.flatnonzero((sizes % PIECE != 0) | (sizes == 0))[0])
            m.fault(
                Misaligned,
                ins,
                f"{int(sizes[i])} bytes: a bulk prefetch takes a multiple of {PIECE}",
                int(g.threads[i]),
                address=int(addresses[i]),
            )
        if (sizes > LONGEST).any():
            i = int(np.argmax(sizes > LONGEST))
            m.fault(
                OutOfBounds,
                ins,
                f"{int(sizes[i])} bytes: a bulk prefetch takes {LONGEST} at most",
                int(g.threads[i]),
                address=int(addresses[i]),
            )
        first = m.spaces.resolve(m, g, ins, "global", addresses, PIECE)
        last = m.spaces.resolve(m, g, ins, "global", addresses + sizes - np.uint64(PIECE), PIECE)
        if [region for region, *_ in first] != [region for region, *_ in last]:
            m.fault(
                OutOfBounds,
                ins,
                "a bulk prefetch begins in one buffer and ends in another",
                int(g.threads[0]),
                address=int(addresses[0]),
            )

    return d.op("prefetch", run)


def _copy(d: Decoder, ins: Instruction, mods: Modifiers) -> Op:
    where = mods.need("ca", "cg")
    if mods.take("shared", "shared::cta") is None or not mods.flag("global"):
        d.refuse("only .shared.global copies")
    hint = mods.flag("L2::cache_hint")
    mods.take("L2::64B", "L2::128B", "L2::256B")
    mods.done()
    operands = list(ins.operands)
    policy = hinted(d, ins, operands, hint)
    size_operand = operands[2]
    if not isinstance(size_operand, Imm) or size_operand.value not in (4, 8, 16):
        d.refuse("the size must be 4, 8 or 16")
    size = size_operand.value
    if where == "cg" and size != 16:
        d.refuse(".cg copies 16 bytes")
    to, origin = d.address(operands[0]), d.address(operands[1])
    given = None
    ignore = None
    if len(operands) > 3:
        extra = operands[3]
        if isinstance(extra, Reg) and extra.type.kind == "p":
            ignore = d.get(extra, TYPES["pred"])
        else:
            given = d.get(extra, TYPES["u32"])
    pc = d.pc

    def run(m: Machine, g: Group) -> None:
        targets, sources = to(m, g), origin(m, g)
        policy(m, g)
        wanted = np.full(g.n, size, np.int64)
        if given is not None:
            wanted = np.minimum(np.broadcast_to(given(m, g), g.n).astype(np.int64), size)
        if ignore is not None:
            wanted = np.where(ignore(m, g), 0, wanted)
        now = m.tick(pc)
        ((_, _, _, offsets),) = m.spaces.resolve(m, g, ins, "shared", targets, size)
        shared = m.spaces.shared
        units = offsets // size
        if m.copies.pending:
            m.copies.check(m, ins, g, shared, offsets, size, None)
        assert shared.shadow is not None
        moments = shared.shadow.rows(size)[0][units]
        writers = shared.shadow.rows(size)[1][units]
        shared.shadow.write(m, ins, g.threads, units, size, now)
        shared.shadow.rows(size)[0][units] = (
            moments  # nothing is written yet: reads must still see the old state
        )
        shared.shadow.rows(size)[1][units] = writers
        m.counts.shared_access(pc, "store", offsets, size, g)
        low = sources & np.uint64(size - 1)
        if low.any():
            m.spaces.resolve(m, g, ins, "global", sources, size)  # raises Misaligned
        data = np.zeros((g.n, size), np.uint8)
        reads: dict[str, list[tuple[Array, Region, Array]]] = {}
        for nbytes in np.unique(wanted):
            places = np.flatnonzero(wanted == nbytes)
            if nbytes == 0:
                parts: list[tuple[Array, Region, Array]] = [(places, shared, offsets[places])]
            else:
                parts = _fetch(m, g, ins, pc, sources, places, int(nbytes), now, data)
            for rows, region, found in parts:
                if nbytes:
                    reads.setdefault(region.name, []).append((rows, region, found))
                threads = g.threads[rows]
                groups = m.copies.commits[threads]
                m.copies.start(m, _Copy(ins, threads, groups, offsets[rows], data[rows], now, region, found))

        for found_parts in reads.values():
            _count(m, g, pc, size, wanted, found_parts)

    return d.op(ASYNC, run)


def _count(
    m: Machine, g: Group, pc: int, size: int, wanted: Array, parts: list[tuple[Array, Region, Array]]
) -> None:
    """One request per warp and buffer, whatever the sizes of its lanes."""
    rows = np.concatenate([p[0] for p in parts])
    found = np.concatenate([p[2] for p in parts])
    order = np.argsort(rows)
    group = Group(m, g.threads[rows[order]])
    region = parts[0][1]
    if region.kind != "global":
        return
    sectors, least = m.counts.patterns.sectors(found[order], size, group)
    nbytes = int(wanted[rows].sum())
    least = min(least, max(len(group.warps), -(-nbytes // 32)))
    m.counts.device_units(pc, region.name, "load", len(group.warps), nbytes, sectors, least)


def _fetch(
    m: Machine,
    g: Group,
    ins: Instruction,
    pc: int,
    sources: Array,
    places: Array,
    nbytes: int,
    now: int,
    data: Array,
) -> list[tuple[Array, Region, Array]]:
    """Read ``nbytes`` of the source for some threads, in the largest units that divide it.

    Returns (rows of the group, region, byte offsets in it).
    """
    group = g if len(places) == g.n else Group(m, g.threads[places])
    unit = nbytes & -nbytes
    parts: list[tuple[Array, Region, Array]] = []
    for start in range(0, nbytes, unit):
        for region, part, chosen, found in m.spaces.resolve(
            m, group, ins, "global", sources[places] + np.uint64(start), unit
        ):
            m.spaces.load(m, part, ins, pc, region, found, unit, now, count=False, marks=int(PENDING))
            if region.kind == "global":
                m.counts.touch(region.name, "load", region.size, found, unit)
            rows = places if chosen is None else places[chosen]
            data[rows, start : start + unit] = region.bytes[found[:, None] + np.arange(unit)]
            if start == 0:
                parts.append((rows, region, found))
    return parts

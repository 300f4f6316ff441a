"""atom and red (PTX ISA, "atom", "red"). Lanes that meet at one address take turns by thread number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import UninitializedRead
from fftgen.simulator.half import values as half_values
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, Put, handles
from fftgen.simulator.ordering import ATOMIC
from fftgen.simulator.policies import hinted
from fftgen.simulator.regions import Region
from fftgen.simulator.rounding import bf16_bits, canonical, f16_bits
from fftgen.simulator.syntax import Instruction, Operand, Vec
from fftgen.simulator.types import TYPES, UNSIGNED, Array, Type

_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
Update = Callable[[Array, Array, Array | None], Array]


def _update(d: Decoder, name: str, kind: Type) -> Update:
    """New value from (old, b, c), in the NumPy type of ``kind`` (bits for 16-bit floats)."""
    if kind.kind == "h":
        return _half_update(d, name, kind)
    if name == "add" and kind.kind in "usf":
        if kind.name == "f32":
            return lambda old, b, c: canonical(old + b)
        return lambda old, b, c: old + b
    if name in ("min", "max") and kind.kind in "us":
        function: Callable[..., Array] = np.minimum if name == "min" else np.maximum
        return lambda old, b, c: function(old, b)
    if name == "exch":
        return lambda old, b, c: b
    if name == "cas":
        return lambda old, b, c: np.where(old == b, c if c is not None else b, old)
    if name in ("and", "or", "xor") and kind.kind == "b":
        logic: dict[str, Callable[..., Array]] = {
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }
        chosen = logic[name]
        return lambda old, b, c: chosen(old, b)
    one, zero = np.uint32(1), np.uint32(0)
    if name == "inc" and kind.name == "u32":
        return lambda old, b, c: np.where(old >= b, zero, old + one)
    if name == "dec" and kind.name == "u32":
        return lambda old, b, c: np.where((old == 0) | (old > b), b, old - one)
    return d.refuse(f"atomic {name} of .{kind.name}")


def _half_update(d: Decoder, name: str, kind: Type) -> Update:
    if name not in ("add", "min", "max"):
        d.refuse(f"atomic {name} of .{kind.name}")
    brain = kind.name.startswith("b")
    functions: dict[str, Callable[..., Array]] = {"add": np.add, "min": np.fmin, "max": np.fmax}
    function = functions[name]

    def update(old: Array, b: Array, c: Array | None) -> Array:
        one = np.ascontiguousarray(old).view(np.uint16)
        two = np.ascontiguousarray(b).view(np.uint16)
        value = function(half_values(one, brain), half_values(two, brain))
        bits = bf16_bits(value) if brain else f16_bits(value)
        return np.ascontiguousarray(bits).view(kind.dtype)

    return update


@handles("atom", "red")
def _atomic(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type()
    name = mods.need(*_OPERATIONS)
    semantics = mods.take("relaxed", "acquire", "release", "acq_rel")
    scope = mods.take("cta", "cluster", "gpu", "sys")
    space = (mods.take("global", "shared", "shared::cta") or "generic").split("::")[0]
    hint = mods.flag("L2::cache_hint")
    mods.flag("noftz")
    vector = mods.take("v2", "v4", "v8")
    mods.done()
    update = _update(d, name, kind)
    operands = list(ins.operands)
    puts: list[Put] = []
    raw = kind if kind.kind != "h" else TYPES[f"b{kind.bits}"]
    if ins.parts[0] == "atom":
        first = operands.pop(0)
        puts = [d.put(item, raw) for item in _items(first)]
    elif name in ("exch", "cas"):
        d.refuse(f"red has no {name}")
    policy = hinted(d, ins, operands, hint)
    address = d.address(operands[0])
    sources = [d.get(item, raw) for item in _items(operands[1])]
    extra = d.get(operands[2], raw) if name == "cas" else None
    count = int(vector[1:]) if vector else 1
    if len(sources) != count or len(operands) != (3 if name == "cas" else 2) or (puts and len(puts) != count):
        d.refuse(f"{len(ins.operands)} operands")
    if vector and (space == "shared" or name not in ("add", "min", "max")):
        d.refuse("vectors of this kind")
    size, pc = kind.nbytes, d.pc
    dtype = raw.dtype

    def run(m: Machine, g: Group) -> None:
        addresses = address(m, g)
        policy(m, g)
        now = m.tick(pc)
        given = np.empty((g.n, count), dtype)
        for i, source in enumerate(sources):
            given[:, i] = source(m, g)
        third = np.broadcast_to(extra(m, g), g.n) if extra is not None else None
        before = np.empty((g.n, count), dtype)
        for region, group, chosen, offsets in m.spaces.resolve(m, g, ins, space, addresses, size * count):
            _check(m, group, ins, region, offsets, size * count, now, pc)
            if semantics in ("release", "acq_rel"):
                m.releases.fence(group.threads, scope != "cta", now)
            if m.releases.active:
                meet(m, group, region, offsets, reads=bool(puts), writes=True)
            places = np.arange(g.n) if chosen is None else chosen
            target = region.units(size, count)
            own = target.view(dtype) if dtype != UNSIGNED[kind.bits] else target
            units = offsets // (size * count)
            for turn in _turns(units):
                rows = places[turn]
                for j in range(count):
                    old = own[units[turn], j]
                    before[rows, j] = old
                    new = update(old, given[rows, j], third[rows] if third is not None else None)
                    own[units[turn], j] = new
        for j, put in enumerate(puts):
            put(m, g, before[:, j].copy())

    return d.op(f"atomic {space}", run)


def meet(m: Machine, g: Group, region: Region, offsets: Array, *, reads: bool, writes: bool) -> None:
    """Tell race detection that atomic accesses may carry order from thread to thread.

    What only a fence of the block released counts where no other block can read it.
    """
    if region.kind in ("shared", "global"):
        places = [(region.name, int(offset)) for offset in offsets]
        inside = region.shadow is not None and not region.shadow.across
        m.releases.meet(g.threads, places, inside, reads=reads, writes=writes)


def _items(operand: Operand) -> list[Operand]:
    return list(operand.items) if isinstance(operand, Vec) else [operand]


def _turns(units: Array) -> list[Array]:
    """Places split so that no two of one turn meet, in order of the threads."""
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    fresh = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    if fresh.all():
        return [np.arange(len(units))]
    starts = np.flatnonzero(fresh)
    rank = np.arange(len(units)) - np.repeat(starts, np.diff(np.append(starts, len(units))))
    turns = np.empty(len(units), np.int64)
    turns[order] = rank
    return [np.flatnonzero(turns == r) for r in range(int(rank.max()) + 1)]


def _check(
    m: Machine, g: Group, ins: Instruction, region: Region, offsets: Array, nbytes: int, now: int, pc: int
) -> None:
    """Bounds were checked; now the rest that an atomic access must pass, and its counts."""
    m.spaces.writable(m, g, ins, region, offsets)
    units = offsets // nbytes
    unwritten = None
    if region.kind == "shared":
        assert region.shadow is not None
        unwritten = region.shadow.never_written(units, nbytes)
        if m.copies.pending:
            m.copies.check(m, ins, g, region, offsets, nbytes, unwritten)
        m.counts.shared_access(pc, "atomic", offsets, nbytes, g)
    else:
        if region.written is not None:
            fine = region.written[: region.size // nbytes * nbytes].reshape(-1, nbytes)[units].all(axis=1)
            unwritten = None if fine.all() else ~fine
        if region.kind == "global":
            m.counts.device_access(pc, region.name, "atomic", region.size, offsets, nbytes, g)
    if unwritten is not None:
        i = int(np.flatnonzero(unwritten)[0])
        shown = m.spaces.shown(region, int(offsets[i]))
        m.fault(
            UninitializedRead,
            ins,
            f"an atomic operation reads {region.name} at offset {shown}, where nothing was written",
            int(g.threads[i]),
            address=region.base + shown,
            buffer=region.name,
        )
    if region.shadow is not None:
        region.shadow.write(m, ins, g.threads, units, nbytes, now, ATOMIC)

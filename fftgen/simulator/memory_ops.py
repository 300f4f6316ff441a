"""ld, st and prefetch (PTX ISA, "Data Movement and Conversion Instructions")."""

from __future__ import annotations

import numpy as np

from fftgen.simulator.atomics import meet
from fftgen.simulator.decode import Decoder
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.ordering import ATOMIC
from fftgen.simulator.policies import hinted
from fftgen.simulator.syntax import Addr, Instruction, Operand, Sink, Sym, Vec
from fftgen.simulator.types import TYPES, UNSIGNED, Array, Type

_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt")
_HINTS = (
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::64B",
    "L2::128B",
    "L2::256B",
)
_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
_CALL = ", the arguments of a call: functions must be inlined (mark them __forceinline__)"
_STRONG = ("relaxed", "acquire", "release", "volatile", "mmio")


def state_space(mods: Modifiers) -> str:
    """The state space of an access; "generic" if none is named."""
    space = mods.take(*_SPACES) or "generic"
    return space if space == "shared::cluster" else space.split("::")[0]


def _shape(d: Decoder, mods: Modifiers, operand: Operand) -> tuple[Type, list[Operand]]:
    """The element type and the registers of a load or store."""
    kind = mods.type()
    vector = mods.take("v2", "v4", "v8")
    items: list[Operand] = list(operand.items) if isinstance(operand, Vec) else [operand]
    if len(items) != (int(vector[1:]) if vector else 1):
        d.refuse(f"{len(items)} registers")
    if kind.kind == "p" or kind.nbytes * len(items) > 32:
        d.refuse(f"type .{kind.name}")
    return kind, items


def _access_modifiers(mods: Modifiers) -> tuple[str | None, str | None, bool]:
    """Takes what changes no value. Returns (semantics of a strong access, scope, hint: one more operand)."""
    strong = mods.take(*_STRONG)
    mods.flag("weak")
    scope = mods.take("cta", "cluster", "gpu", "sys")
    mods.take(*_CACHE)
    mods.take(*_HINTS)
    mods.take(*_HINTS)
    mods.take(*_HINTS)
    hint = mods.flag("L2::cache_hint")
    mods.flag("unified")
    return strong, scope, hint


@handles("ld", "ldu")
def _load(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind, items = _shape(d, mods, ins.operands[0])
    space = state_space(mods)
    invariant = mods.flag("nc")
    strong, _scope, hint = _access_modifiers(mods)
    mods.done()
    if len(ins.operands) != 2 + hint:
        d.refuse(f"{len(ins.operands)} operands")
    policy = hinted(d, ins, list(ins.operands), hint)
    raw = kind if kind.kind in "us" else TYPES[f"b{kind.bits}"]
    puts = [d.put(item, raw, widen=True) for item in items]
    address = ins.operands[1]
    if space == "param" and isinstance(address, Addr) and isinstance(address.base, Sym):
        return _load_parameter(d, ins, address, raw, items)
    read = d.address(address)
    count, part = len(items), kind.nbytes
    nbytes, pc = part * count, d.pc
    own = raw.dtype
    marks = int(ATOMIC) if strong else 0
    sinks = [isinstance(item, Sink) for item in items]

    def run(m: Machine, g: Group) -> None:
        addresses = read(m, g)
        policy(m, g)
        now = m.tick(pc)
        parts = m.spaces.resolve(m, g, ins, space, addresses, nbytes, far=True)
        values = np.empty((g.n, count), own) if len(parts) > 1 else None
        for region, group, chosen, offsets in parts:
            m.spaces.load(m, group, ins, pc, region, offsets, nbytes, now, marks=marks, invariant=invariant)
            if strong and m.releases.active:
                meet(m, group, region, offsets, reads=True, writes=False)
            found = region.units(part, count).take(offsets // nbytes, axis=0)
            if values is None or chosen is None:
                values = found
            else:
                values[chosen] = found
        assert values is not None
        if count == 1:
            puts[0](m, g, values.reshape(-1))
        else:
            columns = np.ascontiguousarray(values.T)
            for i, put in enumerate(puts):
                if not sinks[i]:
                    put(m, g, columns[i])

    return d.op(f"load {space}", run)


def _load_parameter(d: Decoder, ins: Instruction, address: Addr, kind: Type, items: list[Operand]) -> Op:
    """A load of a parameter at a fixed place: the same value in every thread."""
    assert isinstance(address.base, Sym)
    param = next((p for p in d.entry.params if p.name == address.base.name), None)
    if param is None:
        d.refuse(f"{address.base.name} is not a kernel parameter")
    size, pc = kind.nbytes * len(items), d.pc
    puts = [d.put(item, kind, widen=True) for item in items]
    base = d.address(address)
    dtype = kind.dtype

    def run(m: Machine, g: Group) -> None:
        ((region, _, _, offsets),) = m.spaces.resolve(m, g, ins, "param", base(m, g)[:1], size)
        start = int(offsets[0])
        values = region.bytes[start : start + size].view(dtype)
        for i, put in enumerate(puts):
            put(m, g, np.repeat(values[i], g.n))

    del pc
    return d.op("load param", run)


@handles("st")
def _store(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind, items = _shape(d, mods, ins.operands[1])
    space = state_space(mods)
    strong, scope, hint = _access_modifiers(mods)
    mods.done()
    if len(ins.operands) != 2 + hint:
        d.refuse(f"{len(ins.operands)} operands")
    policy = hinted(d, ins, list(ins.operands), hint)
    if space in ("param", "const"):
        d.refuse(f"stores to .{space}" + (_CALL if space == "param" else ""))
    raw = TYPES[f"b{kind.bits}"]
    sources = [d.get(item, raw, widen=True) for item in items]
    write = d.address(ins.operands[0])
    count, part = len(items), kind.nbytes
    nbytes, pc = part * count, d.pc
    dtype = UNSIGNED[kind.bits]
    marks = int(ATOMIC) if strong else 0

    def run(m: Machine, g: Group) -> None:
        addresses = write(m, g)
        policy(m, g)
        now = m.tick(pc)
        values: Array = np.empty((g.n, count), dtype)
        for i, source in enumerate(sources):
            values[:, i] = source(m, g)
        for region, group, chosen, offsets in m.spaces.resolve(m, g, ins, space, addresses, nbytes, far=True):
            part_values = values if chosen is None else values[chosen]
            if strong == "release":
                m.releases.fence(group.threads, scope != "cta", now)
            if strong and m.releases.active:
                meet(m, group, region, offsets, reads=False, writes=True)
            m.spaces.store(m, group, ins, pc, region, offsets, nbytes, now, part_values, marks=marks)

    return d.op(f"store {space}", run)


@handles("prefetch", "prefetchu", "applypriority", "discard")
def _prefetch(d: Decoder, ins: Instruction) -> Op:
    """Does nothing but check that the address leads somewhere."""
    if ins.parts[0] in ("applypriority", "discard"):
        d.refuse("cache management other than prefetch")
    mods = Modifiers(ins)
    space = mods.take("global", "local") or "generic"
    mods.need("L1", "L2")
    mods.take("evict_last", "evict_normal")
    mods.take("L2::evict_last", "L2::evict_normal")
    mods.done()
    read = d.address(ins.operands[0])

    def run(m: Machine, g: Group) -> None:
        m.spaces.resolve(m, g, ins, space, read(m, g), 1)

    return d.op("prefetch", run)

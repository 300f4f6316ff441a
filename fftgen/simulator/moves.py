"""mov with packing and unpacking, and byte permutes (PTX ISA, "mov", "prmt")."""

from __future__ import annotations

import numpy as np

from fftgen.simulator.decode import Decoder, mark, whole
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, Run, handles
from fftgen.simulator.syntax import Imm, Instruction, Operand, Reg, Sym, Vec
from fftgen.simulator.types import TYPES, Array, Type

LOGIC = "logic"
MOVE = "move"


@handles("prmt")
def _permute(d: Decoder, ins: Instruction) -> Op:
    """Byte permute; the default mode takes a selector nibble per byte, bit 3 of it copies the sign."""
    mods = Modifiers(ins)
    mode = mods.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    kind = mods.type("b32")
    mods.done()
    patterns = {
        "f4e": [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)],
        "b4e": [(0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)],
        "rc8": [(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)],
        "ecl": [(0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)],
        "ecr": [(0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)],
        "rc16": [(0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)],
    }

    def gather(a: Array, b: Array, chosen: Array, sign: Array | None) -> Array:
        n = len(chosen)
        both = np.empty((n, 2), np.uint32)
        both[:, 0], both[:, 1] = a, b
        raw = both.view(np.uint8)
        picked = np.take_along_axis(raw, chosen, axis=1)
        if sign is not None and sign.any():
            picked = np.where(sign, np.where(picked & 0x80, np.uint8(255), np.uint8(0)), picked)
        return np.ascontiguousarray(picked).view(np.uint32).reshape(-1)

    if mode is not None:
        table = np.array(patterns[mode], np.int64)

        def special(a: Array, b: Array, c: Array) -> Array:
            n = max(len(a), len(b), len(c))
            chosen = table[np.broadcast_to(c, n) & np.uint32(3)]
            return gather(a, b, chosen, None)

        return d.simple(LOGIC, kind, special, 3)

    shifts = np.array([0, 4, 8, 12], np.uint32)

    def permute(a: Array, b: Array, c: Array) -> Array:
        n = max(len(a), len(b), len(c))
        nibbles = (np.broadcast_to(c, n)[:, None] >> shifts) & np.uint32(15)
        return gather(a, b, (nibbles & np.uint32(7)).astype(np.int64), nibbles >= 8)

    selector = ins.operands[3]
    if isinstance(selector, Imm):
        nibbles = [(selector.value >> s) & 15 for s in (0, 4, 8, 12)]
        if max(nibbles) < 8:
            chosen = np.array(nibbles)

            def fixed(a: Array, b: Array) -> Array:
                n = max(len(a), len(b))
                both = np.empty((n, 2), np.uint32)
                both[:, 0], both[:, 1] = a, b
                return both.view(np.uint8).take(chosen, axis=1).view(np.uint32).reshape(-1)

            sources = [d.get(o, kind) for o in ins.operands[1:3]]
            return d.map(LOGIC, kind, ins.operands[0], sources, fixed)
    return d.simple(LOGIC, kind, permute, 3)


@handles("mov")
def _mov(d: Decoder, ins: Instruction) -> Op:
    """A copy may carry unwritten bytes along (compilers pack and unpack them): only their use is a fault."""
    mods = Modifiers(ins)
    kind = mods.type()
    mods.done()
    d.arity(2)
    unwritten, d.maybe[d.pc] = d.maybe[d.pc], frozenset()
    op = _copy(d, kind, *ins.operands)
    d.maybe[d.pc] = unwritten
    if unwritten:
        assert op.run is not None
        op.run = _carry(op.run, kind, unwritten, *ins.operands)
    return op


def _copy(d: Decoder, kind: Type, destination: Operand, source: Operand) -> Op:
    if isinstance(source, Vec):
        return _pack(d, kind.bits, destination, source)
    if isinstance(destination, Vec):
        return _unpack(d, kind.bits, destination, source)
    if isinstance(source, Sym):
        variable = source.name
        known = (
            {v.name for v in d.entry.variables} | set(d.module.variables) | {p.name for p in d.entry.params}
        )
        if variable not in known:
            d.refuse(f"{variable} is not a variable")
    return d.map(MOVE, kind, destination, [d.get(source, kind)], lambda a: a)


def _carry(run: Run, kind: Type, unwritten: frozenset[int], destination: Operand, source: Operand) -> Run:
    """Copy the marks of the bytes together with the bytes."""
    size = max(kind.bits // 8, 1)

    def places(operand: Operand) -> list[tuple[Operand, int]]:
        items = operand.items if isinstance(operand, Vec) else (operand,)
        return [(item, i * size // len(items)) for i, item in enumerate(items)]

    def carrying(m: Machine, g: Group) -> None:
        together = np.full(g.n, 255, np.uint8)
        for item, start in places(source):
            if isinstance(item, Reg) and item.index in unwritten:
                marks = m.defined.get(item.index)
                missing = np.uint8(whole(item)) & ~(marks[g.threads] if marks is not None else np.uint8(0))
                together &= ~np.left_shift(missing, np.uint8(start), dtype=np.uint8)
        run(m, g)
        for item, start in places(destination):
            if isinstance(item, Reg):
                mark(m, g, item.index, (together >> np.uint8(start)) & np.uint8(whole(item)))

    return carrying


def _pack(d: Decoder, bits: int, destination: Operand, source: Vec) -> Op:
    part = bits // len(source.items)
    kind = TYPES[f"b{part}"]
    packed = TYPES[f"b{bits}"]
    sources = [d.get(item, kind) for item in source.items]
    put = d.put(destination, packed)
    count = len(sources)

    def run(m: Machine, g: Group) -> None:
        parts = np.empty((g.n, count), kind.dtype)
        for i, read in enumerate(sources):
            parts[:, i] = read(m, g)
        put(m, g, parts.view(packed.dtype).reshape(-1))

    return d.op(MOVE, run)


def _unpack(d: Decoder, bits: int, destination: Vec, source: Operand) -> Op:
    part = bits // len(destination.items)
    kind = TYPES[f"b{part}"]
    read = d.get(source, TYPES[f"b{bits}"])
    puts = [d.put(item, kind) for item in destination.items]
    count = len(puts)

    def run(m: Machine, g: Group) -> None:
        values = read(m, g)
        if len(values) != g.n:
            values = np.repeat(values, g.n)
        parts = np.ascontiguousarray(values).view(kind.dtype).reshape(-1, count)
        for i, put in enumerate(puts):
            put(m, g, parts[:, i].copy())

    return d.op(MOVE, run)

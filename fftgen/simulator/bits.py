"""Logic, shifts and bit fields (PTX ISA, "Logic and Shift Instructions", and bit operations)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Get, Modifiers, Op, handles
from fftgen.simulator.syntax import Imm, Instruction, Not, Operand, Pair
from fftgen.simulator.types import TYPES, Array

LOGIC = "logic"


def _logic(function: Callable[..., Array]) -> Callable[[Decoder, Instruction], Op]:
    def decode(d: Decoder, ins: Instruction) -> Op:
        mods = Modifiers(ins)
        kind = mods.type("pred", "b16", "b32", "b64")
        mods.done()
        return d.simple("predicate" if kind.kind == "p" else LOGIC, kind, function, 2)

    return decode


handles("and")(_logic(np.bitwise_and))
handles("or")(_logic(np.bitwise_or))
handles("xor")(_logic(np.bitwise_xor))


@handles("not")
def _not(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("pred", "b16", "b32", "b64")
    mods.done()
    return d.simple("predicate" if kind.kind == "p" else LOGIC, kind, np.invert, 1)


@handles("cnot")
def _cnot(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b16", "b32", "b64")
    mods.done()
    return d.simple(LOGIC, kind, lambda a: (a == 0).astype(kind.dtype), 1)


@handles("shl", "shr")
def _shift(d: Decoder, ins: Instruction) -> Op:
    """Amounts beyond the width are clamped to it: the result is 0, or all sign bits."""
    mods = Modifiers(ins)
    left = ins.parts[0] == "shl"
    kind = mods.type(
        *(("b16", "b32", "b64") if left else ("b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"))
    )
    mods.done()
    d.arity(3)
    bits, dtype = kind.bits, kind.dtype
    value = d.get(ins.operands[1], kind)
    amount_operand = ins.operands[2]
    if isinstance(amount_operand, Imm):
        amount = amount_operand.value & 0xFFFFFFFF
        if amount >= bits and kind.kind != "s":
            return d.map(LOGIC, kind, ins.operands[0], [value], np.zeros_like)
        fixed = dtype.type(min(amount, bits - 1))
        if left:
            return d.map(LOGIC, kind, ins.operands[0], [value], lambda a: a << fixed)
        return d.map(LOGIC, kind, ins.operands[0], [value], lambda a: a >> fixed)
    amounts = d.get(amount_operand, TYPES["u32"])
    signed = kind.kind == "s"

    def shift(a: Array, n: Array) -> Array:
        clamped = np.minimum(n, np.uint32(bits - 1)).astype(dtype)
        result: Array = a << clamped if left else a >> clamped
        return result if signed else np.where(n >= bits, dtype.type(0), result)

    return d.map(LOGIC, kind, ins.operands[0], [value, amounts], shift)


@handles("shf")
def _funnel(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32")
    wrap = mods.need("clamp", "wrap") == "wrap"
    left = mods.need("l", "r") == "l"
    mods.done()

    def funnel(a: Array, b: Array, c: Array) -> Array:
        n = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        if left:
            both = (both << n) >> np.uint64(32)
        else:
            both = both >> n
        return np.asarray(both, np.uint64).astype(np.uint32)

    return d.simple(LOGIC, kind, funnel, 3)


@handles("lop3")
def _lop3(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32")
    combine = mods.take("and", "or")
    mods.done()
    operands = ins.operands
    table_operand = operands[4]
    if not isinstance(table_operand, Imm):
        d.refuse("the lookup table must be a literal")
    table = table_operand.value

    def lop3(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros(max(len(a), len(b), len(c)), np.uint32)
        for row in range(8):
            if table >> row & 1:
                term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
                result = result | term
        return result

    fast: dict[int, Callable[[Array, Array, Array], Array]] = {
        0x80: lambda a, b, c: a & b & c,
        0x96: lambda a, b, c: a ^ b ^ c,
        0xFE: lambda a, b, c: a | b | c,
        0xF8: lambda a, b, c: a | (b & c),
        0xEA: lambda a, b, c: (a & b) | c,
        0x78: lambda a, b, c: a ^ (b & c),
        0xCA: lambda a, b, c: (a & b) | (~a & c),
        0xE8: lambda a, b, c: (a & b) | (a & c) | (b & c),
    }
    function = fast.get(table, lop3)
    sources = [d.get(o, kind) for o in operands[1:4]]
    if combine is None:
        d.arity(5)
        return d.map(LOGIC, kind, operands[0], sources, function)
    d.arity(6)  # lop3.BoolOp d|p, a, b, c, table, q
    pair = operands[0]
    if not isinstance(pair, Pair):
        d.refuse("a predicate destination is needed")
    put, put_p = d.put(pair.first, kind), d.put(pair.second, TYPES["pred"])
    other = predicate(d, operands[5])

    def run(m: Machine, g: Group) -> None:
        value = function(*[s(m, g) for s in sources])
        test = value != 0
        q = other(m, g)
        put(m, g, value)
        put_p(m, g, test & q if combine == "and" else test | q)

    return d.op(LOGIC, run)


def predicate(d: Decoder, operand: Operand) -> Get:
    """Reads ``p`` or ``!p``."""
    if isinstance(operand, Not):
        read = d.get(operand.reg, TYPES["pred"])
        return lambda m, g: ~read(m, g)
    return d.get(operand, TYPES["pred"])


@handles("popc")
def _popc(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32", "b64")
    mods.done()
    d.arity(2)
    return d.map(LOGIC, TYPES["u32"], ins.operands[0], [d.get(ins.operands[1], kind)], population)


def population(a: Array) -> Array:
    """How many bits are set (uint32)."""
    v = a.astype(np.uint64)
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    counts: Array = ((v * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint32)
    return counts


def _top(a: Array) -> Array:
    """Position of the highest set bit of unsigned integers, -1 for 0."""
    v = a.astype(np.uint64)
    for shift in (1, 2, 4, 8, 16, 32):
        v = v | (v >> np.uint64(shift))
    return population(v).astype(np.int64) - 1


@handles("clz")
def _clz(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32", "b64")
    mods.done()
    bits = kind.bits
    return d.map(
        LOGIC,
        TYPES["u32"],
        ins.operands[0],
        [d.get(ins.operands[1], kind)],
        lambda a: (bits - 1 - _top(a)).astype(np.uint32),
    )


@handles("bfind")
def _bfind(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("u32", "u64", "s32", "s64")
    amount = mods.flag("shiftamt")
    mods.done()
    unsigned = np.dtype(f"u{kind.nbytes}")

    def find(a: Array) -> Array:
        v = np.where(a < 0, ~a, a) if kind.kind == "s" else a
        top = _top(v.view(unsigned))
        found = np.where((top >= 0) & amount, kind.bits - 1 - top, top)
        return found.astype(np.int64).astype(np.uint32)

    return d.map(LOGIC, TYPES["u32"], ins.operands[0], [d.get(ins.operands[1], kind)], find)


@handles("fns")
def _fns(d: Decoder, ins: Instruction) -> Op:
    d.refuse("fns")


@handles("brev")
def _brev(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32", "b64")
    mods.done()
    size = kind.nbytes

    def reverse(a: Array) -> Array:
        raw = np.ascontiguousarray(a).view(np.uint8).reshape(-1, size)
        flipped = np.packbits(
            np.unpackbits(raw, axis=1, bitorder="little")[:, ::-1], axis=1, bitorder="little"
        )
        return np.ascontiguousarray(flipped).reshape(-1).view(kind.dtype)

    return d.simple(LOGIC, kind, reverse, 1)


@handles("bfe")
def _extract(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("u32", "u64", "s32", "s64")
    mods.done()
    d.arity(4)
    bits = kind.bits
    u32 = TYPES["u32"]

    def extract(a: Array, b: Array, c: Array) -> Array:
        """Bits beyond the top are copies of the sign, or 0; the sign is the top bit of the field."""
        position = (b & np.uint32(255)).astype(np.int64)
        length = (c & np.uint32(255)).astype(np.int64)
        start = np.minimum(position, bits - 1)
        value = a.astype(np.int64) if kind.kind == "s" else a.astype(np.uint64)
        wide = value.dtype
        field = np.where(
            position >= bits,
            (value >> wide.type(bits - 1)) if kind.kind == "s" else wide.type(0),
            value >> start.astype(wide),
        )
        unused = (64 - np.clip(length, 1, 64)).astype(wide)
        result = (field << unused) >> unused
        return np.asarray(np.where(length == 0, wide.type(0), result)).astype(kind.dtype)

    sources = [d.get(ins.operands[1], kind), d.get(ins.operands[2], u32), d.get(ins.operands[3], u32)]
    return d.map(LOGIC, kind, ins.operands[0], sources, extract)


@handles("bfi")
def _insert(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32", "b64")
    mods.done()
    d.arity(5)
    bits, dtype = kind.bits, kind.dtype
    u32 = TYPES["u32"]

    def insert(a: Array, b: Array, c: Array, e: Array) -> Array:
        position = (c & np.uint32(255)).astype(np.int64)
        length = np.clip((e & np.uint32(255)).astype(np.int64), 0, bits)
        one = dtype.type(1)
        short = (one << np.minimum(length, bits - 1).astype(dtype)) - one
        ones = np.where(length >= bits, ~dtype.type(0), short)
        place = np.minimum(position, bits - 1).astype(dtype)
        keep = np.where(position >= bits, dtype.type(0), ones << place)
        inserted: Array = (b & ~keep) | ((a << place) & keep)
        return inserted

    o = ins.operands
    return d.map(
        LOGIC, kind, o[0], [d.get(o[1], kind), d.get(o[2], kind), d.get(o[3], u32), d.get(o[4], u32)], insert
    )


@handles("bmsk")
def _mask(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32")
    clamp = mods.need("clamp", "wrap") == "clamp"
    mods.done()

    def make(a: Array, b: Array) -> Array:
        start = np.minimum(a, np.uint32(32)) if clamp else a & np.uint32(31)
        width = np.minimum(b, np.uint32(32)) if clamp else b & np.uint32(31)
        ones = (np.uint64(1) << width.astype(np.uint64)) - np.uint64(1)
        mask: Array = ((ones << start.astype(np.uint64)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        return mask

    return d.simple(LOGIC, kind, make, 2)

"""Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions" and "Extended-Precision ...")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.floating import decode_float
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, Array, Type

INT = "integer"
_WIDE = {16: 32, 32: 64}


def is_float(ins: Instruction) -> bool:
    """Whether the instruction works on floating-point numbers, packed ones included."""
    return TYPES[ins.parts[-1]].kind in "fh" if ins.parts[-1] in TYPES else False


def packed(ins: Instruction) -> bool:
    return ins.parts[-1] in ("u16x2", "s16x2")


def _arithmetic(function: Callable[[Array, Array], Array]) -> Callable[[Decoder, Instruction], Op]:
    def decode(d: Decoder, ins: Instruction) -> Op:
        if is_float(ins):
            return decode_float(d, ins)
        if packed(ins):
            return _packed(d, ins)
        mods = Modifiers(ins)
        kind = mods.type("u16", "u32", "u64", "s16", "s32", "s64")
        saturate = mods.flag("sat") and kind.name == "s32"
        mods.done()
        if saturate:
            low, high = np.int64(-(2**31)), np.int64(2**31 - 1)
            return d.simple(
                INT,
                kind,
                lambda a, b: np.clip(function(a.astype(np.int64), b.astype(np.int64)), low, high).astype(
                    np.int32
                ),
                2,
            )
        return d.simple(INT, kind, function, 2)

    return decode


def _packed(d: Decoder, ins: Instruction) -> Op:
    """add, min, max on pairs of 16-bit integers."""
    mods = Modifiers(ins)
    dtype = np.dtype(np.int16 if mods.need("u16x2", "s16x2") == "s16x2" else np.uint16)
    mods.done()
    functions: dict[str, Callable[..., Array]] = {"add": np.add, "min": np.minimum, "max": np.maximum}
    if ins.parts[0] not in functions:
        d.refuse("packed 16-bit integers")
    function = functions[ins.parts[0]]
    return d.simple(
        INT, TYPES["b32"], lambda a, b: function(a.view(dtype), spread(b, a).view(dtype)).view(np.uint32), 2
    )


def spread(a: Array, like: Array) -> Array:
    """``a`` as long as ``like`` (it has that length or is a constant of one element)."""
    return a if len(a) == len(like) else np.repeat(a, len(like))


@handles("mul", "mad")
def _multiply(d: Decoder, ins: Instruction) -> Op:
    if is_float(ins):
        return decode_float(d, ins)
    mods = Modifiers(ins)
    kind = mods.type("u16", "u32", "u64", "s16", "s32", "s64")
    part = mods.need("lo", "hi", "wide")
    saturate = part == "hi" and kind.name == "s32" and ins.parts[0] == "mad" and mods.flag("sat")
    mods.done()
    operands = ins.operands
    d.arity(4 if ins.parts[0] == "mad" else 3)
    sources = [d.get(o, kind) for o in operands[1:3]]
    if part == "wide":
        if kind.bits == 64:
            d.refuse("there is no 64-bit wide product")
        result = TYPES[f"{kind.kind}{_WIDE[kind.bits]}"]
        wide = result.dtype
        if ins.parts[0] == "mul":
            return d.map(INT, result, operands[0], sources, lambda a, b: a.astype(wide) * b.astype(wide))
        sources.append(d.get(operands[3], result))
        return d.map(INT, result, operands[0], sources, lambda a, b, c: a.astype(wide) * b.astype(wide) + c)
    product: Callable[[Array, Array], Array] = np.multiply if part == "lo" else _high(kind)
    if ins.parts[0] == "mul":
        return d.map(INT, kind, operands[0], sources, product)
    sources.append(d.get(operands[3], kind))
    if saturate:
        low, high = np.int64(-(2**31)), np.int64(2**31 - 1)
        return d.map(
            INT,
            kind,
            operands[0],
            sources,
            lambda a, b, c: np.clip(product(a, b).astype(np.int64) + c, low, high).astype(np.int32),
        )
    return d.map(INT, kind, operands[0], sources, lambda a, b, c: product(a, b) + c)


def _high(kind: Type) -> Callable[[Array, Array], Array]:
    """The upper half of the product."""
    if kind.bits < 64:
        wide = TYPES[f"{kind.kind}{_WIDE[kind.bits]}"].dtype
        shift = wide.type(kind.bits)
        return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> shift).astype(kind.dtype)
    return _high_signed if kind.kind == "s" else _high_unsigned


def _high_unsigned(a: Array, b: Array) -> Array:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = a0 * b1 + (middle & low)
    result: Array = a1 * b1 + (middle >> half) + (other >> half)
    return result


def _high_signed(a: Array, b: Array) -> Array:
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    zero = np.uint64(0)
    high = _high_unsigned(ua, ub)
    return (high - np.where(a < 0, ub, zero) - np.where(b < 0, ua, zero)).view(np.int64)


@handles("mul24", "mad24")
def _multiply24(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("u32", "s32")
    high = mods.need("lo", "hi") == "hi"
    mods.done()

    def product(a: Array, b: Array) -> Array:
        wide = np.dtype(np.int64 if kind.kind == "s" else np.uint64)
        cut = kind.dtype.type(8)
        full = ((a << cut) >> cut).astype(wide) * ((b << cut) >> cut).astype(wide)
        part: Array = full >> wide.type(16 if high else 0)
        return part.astype(kind.dtype)

    if ins.parts[0] == "mul24":
        return d.simple(INT, kind, product, 2)
    return d.simple(INT, kind, lambda a, b, c: product(a, b) + c, 3)


@handles("sad")
def _sad(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("u16", "u32", "u64", "s16", "s32", "s64")
    mods.done()
    return d.simple(INT, kind, lambda a, b, c: c + np.where(a < b, b - a, a - b), 3)


@handles("div", "rem")
def _divide(d: Decoder, ins: Instruction) -> Op:
    if is_float(ins):
        return decode_float(d, ins)
    mods = Modifiers(ins)
    kind = mods.type("u16", "u32", "u64", "s16", "s32", "s64")
    mods.done()
    remainder = ins.parts[0] == "rem"

    def divide(a: Array, b: Array) -> Array:
        """Truncates toward zero; division by zero gives all ones and leaves the dividend, as GPUs do."""
        zero = b == 0
        safe = np.where(zero, b.dtype.type(1), b)
        if kind.kind == "u":
            quotient = a // safe
        else:
            unsigned = np.dtype(f"u{kind.nbytes}")
            ua = np.where(a < 0, -a, a).view(unsigned)
            ub = np.where(safe < 0, -safe, safe).view(unsigned)
            magnitude = (ua // ub).view(kind.dtype)
            quotient = np.where((a < 0) != (safe < 0), -magnitude, magnitude)
        if remainder:
            return np.where(zero, a, a - quotient * safe)
        return np.where(zero, ~b, quotient)

    return d.simple(INT, kind, divide, 2)


@handles("abs", "neg")
def _sign(d: Decoder, ins: Instruction) -> Op:
    if is_float(ins):
        return decode_float(d, ins)
    mods = Modifiers(ins)
    kind = mods.type("s16", "s32", "s64")
    mods.done()
    return d.simple(INT, kind, np.abs if ins.parts[0] == "abs" else np.negative, 1)


@handles("min", "max")
def _extreme(d: Decoder, ins: Instruction) -> Op:
    if is_float(ins):
        return decode_float(d, ins)
    if packed(ins):
        return _packed(d, ins)
    mods = Modifiers(ins)
    kind = mods.type("u16", "u32", "u64", "s16", "s32", "s64")
    relu = mods.flag("relu")
    mods.done()
    function: Callable[..., Array] = np.minimum if ins.parts[0] == "min" else np.maximum
    if relu:
        if kind.name != "s32":
            d.refuse("modifier .relu")
        return d.simple(INT, kind, lambda a, b: np.maximum(function(a, b), np.int32(0)), 2)
    return d.simple(INT, kind, function, 2)


@handles("dp4a", "dp2a")
def _dot(d: Decoder, ins: Instruction) -> Op:
    """Dot products of bytes, or of 16-bit numbers with the low or high bytes of the second operand."""
    mods = Modifiers(ins)
    two, one = mods.type("u32", "s32"), mods.type("u32", "s32")
    high = ins.parts[0] == "dp2a" and mods.need("lo", "hi") == "hi"
    mods.done()
    narrow = 8 if ins.parts[0] == "dp4a" else 16
    first, second = np.dtype(f"{one.dtype.kind}{narrow // 8}"), np.dtype(f"{two.dtype.kind}1")
    count = 32 // narrow

    def dot(a: Array, b: Array, c: Array) -> Array:
        n = max(len(a), len(b), len(c))
        left = np.repeat(a, n // len(a)).view(first).reshape(n, count).astype(np.int64)
        right = np.repeat(b, n // len(b)).view(second).reshape(n, 4).astype(np.int64)
        right = right[:, 2:] if high else right[:, :count]
        total: Array = (left * right).sum(axis=1) + c
        return total.astype(np.uint32)

    u32 = TYPES["u32"]
    return d.map(INT, u32, ins.operands[0], [d.get(o, u32) for o in ins.operands[1:]], dot)


@handles("addc", "subc")
def _carry_in(d: Decoder, ins: Instruction) -> Op:
    return _carry(d, ins, carry_in=True)


def _carry(d: Decoder, ins: Instruction, *, carry_in: bool) -> Op:
    """add.cc, addc, sub.cc, subc: the carry flag is one more register of each thread."""
    mods = Modifiers(ins)
    kind = mods.type("u32", "s32", "u64", "s64")
    writes = mods.flag("cc")
    mods.done()
    unsigned = TYPES[f"u{kind.bits}"]
    one, two = (d.get(o, unsigned) for o in ins.operands[1:])
    put = d.put(ins.operands[0], unsigned)
    subtract = ins.parts[0].startswith("sub")

    def run(m: Machine, g: Group) -> None:
        a, b = one(m, g), two(m, g)
        flags = m.cache.setdefault("carry", np.zeros(m.size, np.bool_))
        carry = flags[g.threads].astype(unsigned.dtype) if carry_in else unsigned.dtype.type(0)
        if subtract:
            partial = a - b
            value = partial - carry
            out = (a < b) | (partial < carry)
        else:
            partial = a + b
            value = partial + carry
            out = (partial < a) | (value < partial)
        put(m, g, value)
        if writes:
            flags[g.threads] = out

    return d.op(INT, run)


def with_carry(handler: Callable[[Decoder, Instruction], Op]) -> Callable[[Decoder, Instruction], Op]:
    """Send the ``.cc`` forms of add and sub to the carry code."""

    def decode(d: Decoder, ins: Instruction) -> Op:
        return _carry(d, ins, carry_in=False) if "cc" in ins.parts else handler(d, ins)

    return decode


handles("add")(with_carry(_arithmetic(np.add)))
handles("sub")(with_carry(_arithmetic(np.subtract)))

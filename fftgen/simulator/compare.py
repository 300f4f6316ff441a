"""Comparison and selection (PTX ISA, "Comparison and Selection Instructions")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.bits import predicate
from fftgen.simulator.decode import Decoder
from fftgen.simulator.half import halves, values
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Get, Modifiers, Op, handles
from fftgen.simulator.rounding import flush
from fftgen.simulator.syntax import Instruction, Pair
from fftgen.simulator.types import TYPES, Array, Type

COMPARE = "compare"
PRED = TYPES["pred"]
Test = Callable[[Array, Array], Array]

_ORDERED: dict[str, Test] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED: dict[str, Test] = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
_BOOL: dict[str, Test] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_NAMES = (*_ORDERED, "ne", *_UNSIGNED, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def _test(d: Decoder, name: str, kind: Type) -> Test:
    floating = kind.kind in "fh"
    if not floating:
        if name == "ne":
            return np.not_equal
        if name in _UNSIGNED and kind.kind == "u":
            return _UNSIGNED[name]
        if name in _ORDERED and (kind.kind != "b" or name == "eq"):
            return _ORDERED[name]
        d.refuse(f"comparison .{name} of .{kind.name}")
    if name in _ORDERED:
        return _ORDERED[name]
    if name == "ne":  # ordered: false if either is a NaN
        return lambda a, b: (a < b) | (a > b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "neu":
        return np.not_equal
    if name.endswith("u"):
        inner = _ORDERED[name[:-1]]
        return lambda a, b: inner(a, b) | np.isnan(a) | np.isnan(b)
    return d.refuse(f"comparison .{name} of .{kind.name}")


def _operands(d: Decoder, ins: Instruction, kind: Type, ftz: bool) -> tuple[Get, Get]:
    """The two sources as comparable numbers; for pairs of halves two numbers per thread."""
    one, two = (d.get(o, kind) for o in ins.operands[1:3])
    if kind.kind == "h":
        brain = kind.name.startswith("b")
        a, b = halves(one), halves(two)
        return (lambda m, g: values(a(m, g), brain)), (lambda m, g: values(b(m, g), brain))
    if ftz and kind.name == "f32":
        return (lambda m, g: flush(one(m, g))), (lambda m, g: flush(two(m, g)))
    return one, two


@handles("setp")
def _setp(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type()
    test = _test(d, mods.need(*_NAMES), kind)
    combine = mods.take(*_BOOL)
    ftz = mods.flag("ftz")
    mods.done()
    d.arity(3 if combine is None else 4)
    one, two = _operands(d, ins, kind, ftz)
    destination = ins.operands[0]
    other = predicate(d, ins.operands[3]) if combine is not None else None
    merge = _BOOL[combine] if combine is not None else None
    if "x2" in kind.name:
        if not isinstance(destination, Pair):
            d.refuse("two predicate destinations are needed")
        low, high = d.put(destination.first, PRED), d.put(destination.second, PRED)

        def run_pair(m: Machine, g: Group) -> None:
            result = test(one(m, g), two(m, g)).reshape(-1, 2)
            extra = other(m, g) if other is not None else None
            for put, column in ((low, result[:, 0]), (high, result[:, 1])):
                put(m, g, merge(column, extra) if merge is not None and extra is not None else column.copy())

        return d.op(COMPARE, run_pair)
    if not isinstance(destination, Pair) and other is None:
        return d.map(COMPARE, PRED, destination, [one, two], test)
    first, second = (
        (destination.first, destination.second) if isinstance(destination, Pair) else (destination, None)
    )
    put = d.put(first, PRED)
    put_not = d.put(second, PRED) if second is not None else None

    def run(m: Machine, g: Group) -> None:
        result = test(one(m, g), two(m, g))
        extra = other(m, g) if other is not None else None
        if merge is not None and extra is not None:
            put(m, g, merge(result, extra))
            if put_not is not None:
                put_not(m, g, merge(~result, extra))
        else:
            put(m, g, result)
            if put_not is not None:
                put_not(m, g, ~result)

    return d.op(COMPARE, run)


@handles("set")
def _set(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    source = mods.type()
    kind = mods.type("u32", "s32", "f32", "u16", "s16", "f16", "bf16", "f16x2", "bf16x2")
    test = _test(d, mods.need(*_NAMES), source)
    combine = mods.take(*_BOOL)
    ftz = mods.flag("ftz")
    mods.done()
    d.arity(3 if combine is None else 4)
    one, two = _operands(d, ins, source, ftz)
    other = predicate(d, ins.operands[3]) if combine is not None else None
    pairs = "x2" in source.name
    if pairs:
        ones = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(kind.name, 0xFFFF)
        true, part = np.uint16(ones), np.dtype(np.uint16)
    else:
        ones = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(kind.name, (1 << kind.bits) - 1)
        part = np.dtype(f"u{kind.nbytes}")
        true = part.type(ones)
    raw = TYPES[f"b{kind.bits}"]
    put = d.put(ins.operands[0], raw)

    def run(m: Machine, g: Group) -> None:
        result = test(one(m, g), two(m, g))
        if combine is not None and other is not None:
            extra = other(m, g)
            result = _BOOL[combine](result, np.repeat(extra, 2) if pairs else extra)
        put(m, g, np.where(result, true, part.type(0)).view(raw.dtype))

    return d.op(COMPARE, run)


@handles("selp")
def _selp(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type()
    mods.done()
    d.arity(4)
    raw = TYPES[f"b{kind.bits}"] if kind.kind == "h" else kind
    sources = [predicate(d, ins.operands[3]), d.get(ins.operands[1], raw), d.get(ins.operands[2], raw)]
    return d.map("move", raw, ins.operands[0], sources, np.where)


@handles("slct")
def _slct(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    control = mods.type("s32", "f32")
    kind = mods.type()
    mods.flag("ftz")
    mods.done()
    d.arity(4)
    sources = [d.get(ins.operands[3], control), d.get(ins.operands[1], kind), d.get(ins.operands[2], kind)]

    def choose(c: Array, a: Array, b: Array) -> Array:
        return np.where(c >= 0, a, b)

    return d.map("move", kind, ins.operands[0], sources, choose)

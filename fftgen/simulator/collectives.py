"""Exchange and votes inside a warp (PTX ISA, "shfl.sync", "vote.sync", "match.sync", "redux.sync",
"elect.sync").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.bits import predicate
from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import DivergedCollective
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.syntax import Instruction, Pair
from fftgen.simulator.types import TYPES, Array

WARP_OP = "warp"
U32, PRED = TYPES["u32"], TYPES["pred"]


@handles("shfl")
def _shfl(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32")
    mods.need("sync")
    mode = mods.need("up", "down", "bfly", "idx")
    mods.done()
    d.arity(5)
    first = ins.operands[0]
    put_p = None
    if isinstance(first, Pair):
        put_p = d.put(first.second, PRED)
        first = first.first
    put = d.put(first, kind)
    value, b_get, c_get, mask = (d.get(o, U32) for o in ins.operands[1:])

    def run(m: Machine, g: Group) -> None:
        """Source lane j and validity p, as the ISA defines them by segment mask and clamp."""
        threads = g.threads
        values = np.broadcast_to(value(m, g), g.n)
        lane = threads & 31
        b = b_get(m, g).astype(np.int64) & 31
        c = c_get(m, g).astype(np.int64)
        segment = (c >> 8) & 31
        last = (lane & segment) | (c & 31 & ~segment)
        if mode == "up":
            source = lane - b
            valid = source >= last
        elif mode == "down":
            source = lane + b
            valid = source <= last
        elif mode == "bfly":
            source = lane ^ b
            valid = source <= last
        else:
            source = (lane & segment) | (b & ~segment)
            valid = source <= last
        origin = (threads & ~31) + np.where(valid, source, lane)
        if g.idx is None:
            result = values[origin]
        else:
            _check_sources(m, g, ins, origin)
            whole = np.zeros(m.size, np.uint32)
            whole[threads] = values
            result = whole[origin]
        put(m, g, result)
        if put_p is not None:
            put_p(m, g, np.broadcast_to(valid, g.n))

    return d.collective(WARP_OP, run, mask)


def _check_sources(m: Machine, g: Group, ins: Instruction, origin: Array) -> None:
    """A lane that takes no part has no value to give."""
    here = np.zeros(m.size, np.bool_)
    here[g.threads] = True
    missing = ~here[origin]
    if missing.any():
        i = int(np.flatnonzero(missing)[0])
        m.fault(
            DivergedCollective,
            ins,
            f"the value of lane {int(origin[i]) & 31} is read, which takes no part",
            int(g.threads[i]),
        )


def ballot(m: Machine, g: Group, votes: Array) -> Array:
    """For each thread the mask of the lanes of its warp that vote yes (uint32)."""
    yes = np.zeros(m.size, np.bool_)
    yes[g.threads] = votes
    packed = np.packbits(yes, bitorder="little").view(np.uint32)
    masks: Array = packed[g.threads >> 5]
    return masks


@handles("vote")
def _vote(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("sync")
    mode = mods.need("all", "any", "uni", "ballot")
    kind = mods.type("b32" if mode == "ballot" else "pred")
    mods.done()
    d.arity(3)
    put = d.put(ins.operands[0], kind)
    source = predicate(d, ins.operands[1])
    mask = d.get(ins.operands[2], U32)

    def run(m: Machine, g: Group) -> None:
        masks = mask(m, g)
        bits = ballot(m, g, source(m, g)) & masks
        if mode == "ballot":
            put(m, g, bits)
            return
        every = bits == (masks & m.exist_bits[g.threads >> 5])
        if mode == "all":
            put(m, g, every)
        elif mode == "any":
            put(m, g, bits != 0)
        else:
            put(m, g, every | (bits == 0))

    return d.collective(WARP_OP, run, mask)


@handles("activemask")
def _activemask(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32")
    mods.done()
    put = d.put(ins.operands[0], kind)

    def run(m: Machine, g: Group) -> None:
        put(m, g, ballot(m, g, np.ones(g.n, np.bool_)))

    return d.op(WARP_OP, run)


def _teams(g: Group, masks: Array) -> list[Array]:
    """The places (in the group) of the threads of each warp that name the same lanes."""
    keys = (g.threads >> 5 << 32) | np.broadcast_to(masks, g.n).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return list(np.split(order, cuts))


@handles("match")
def _match(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("b32", "b64")
    mods.need("sync")
    every = mods.need("any", "all") == "all"
    mods.done()
    first = ins.operands[0]
    put_p = None
    if isinstance(first, Pair):
        put_p = d.put(first.second, PRED)
        first = first.first
    put = d.put(first, U32)
    value, mask = d.get(ins.operands[1], kind), d.get(ins.operands[2], U32)

    def run(m: Machine, g: Group) -> None:
        values = np.broadcast_to(value(m, g), g.n)
        masks = mask(m, g)
        result = np.zeros(g.n, np.uint32)
        same = np.zeros(g.n, np.bool_)
        bit = np.uint32(1) << (g.threads & 31).astype(np.uint32)
        for team in _teams(g, masks):
            equal = values[team][:, None] == values[team][None, :]
            found = np.where(equal, bit[team][None, :], np.uint32(0)).sum(axis=1, dtype=np.uint32)
            if every:
                same[team] = equal.all()
                result[team] = found if equal.all() else 0
            else:
                result[team] = found
        put(m, g, result)
        if put_p is not None:
            put_p(m, g, same)

    return d.collective(WARP_OP, run, mask)


@handles("redux")
def _redux(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("u32", "s32", "b32")
    mods.need("sync")
    name = mods.need("add", "min", "max", "and", "or", "xor")
    mods.done()
    functions: dict[str, Callable[[Array], Array]] = {
        "add": lambda a: a.sum(dtype=a.dtype),
        "min": np.min,
        "max": np.max,
        "and": np.bitwise_and.reduce,
        "or": np.bitwise_or.reduce,
        "xor": np.bitwise_xor.reduce,
    }
    if (kind.kind == "b") != (name in ("and", "or", "xor")):
        d.refuse(f"redux .{name} of .{kind.name}")
    function = functions[name]
    put = d.put(ins.operands[0], kind)
    value, mask = d.get(ins.operands[1], kind), d.get(ins.operands[2], U32)

    def run(m: Machine, g: Group) -> None:
        values = np.broadcast_to(value(m, g), g.n)
        result = np.empty(g.n, kind.dtype)
        for team in _teams(g, mask(m, g)):
            result[team] = function(values[team])
        put(m, g, result)

    return d.collective(WARP_OP, run, mask)


@handles("elect")
def _elect(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("sync")
    mods.done()
    pair = ins.operands[0]
    if not isinstance(pair, Pair):
        d.refuse("a lane and a predicate destination are needed")
    put, put_p = d.put(pair.first, U32), d.put(pair.second, PRED)
    mask = d.get(ins.operands[1], U32)

    def run(m: Machine, g: Group) -> None:
        """The lowest lane is elected (the ISA leaves the choice open, but wants it to be always the same)."""
        leader = np.zeros(g.n, np.uint32)
        for team in _teams(g, mask(m, g)):
            leader[team] = int(g.threads[team].min()) & 31
        put(m, g, leader)
        put_p(m, g, leader == (g.threads & 31))

    return d.collective(WARP_OP, run, mask)

"""mma.sync, ldmatrix, stmatrix, movmatrix (PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions").

Products are exact and summed in float64, then rounded once to the accumulator type: hardware may round
partial sums otherwise, which the ISA leaves open.
"""

from __future__ import annotations

import re

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import OutOfBounds
from fftgen.simulator.half import values as half_values
from fftgen.simulator.machine import WARP, Group, Machine
from fftgen.simulator.ops import Get, Modifiers, Op, handles
from fftgen.simulator.ordering import MANY_LANES
from fftgen.simulator.rounding import canonical, f16_bits
from fftgen.simulator.syntax import Instruction, Operand, Vec
from fftgen.simulator.types import TYPES, Array

TENSOR, SHARED_LOAD, SHARED_STORE = "tensor core", "load shared", "store shared"
B32, F32 = TYPES["b32"], TYPES["f32"]
_LANE = np.arange(WARP)
_GROUP, _TID = _LANE >> 2, _LANE & 3


def items(operand: Operand) -> list[Operand]:
    """The registers of a vector operand, or the one register."""
    return list(operand.items) if isinstance(operand, Vec) else [operand]


def gather(m: Machine, g: Group, gets: list[Get]) -> Array:
    """(warps, 32 * registers) of 32-bit registers, lane by lane."""
    parts = np.empty((g.n, len(gets)), np.uint32)
    for i, get in enumerate(gets):
        parts[:, i] = get(m, g)
    return parts.reshape(-1, WARP * len(gets))


def numbers(raw: Array, kind: str) -> Array:
    """float64 values of gathered registers: two 16-bit numbers each, or one of 32 bits."""
    if kind in ("f16", "bf16"):
        return half_values(raw.view(np.uint16), kind == "bf16").astype(np.float64)
    if kind == "tf32":  # the low 13 bits are not looked at
        cut: Array = raw & np.uint32(0xFFFFE000)
        return cut.view(np.float32).astype(np.float64)
    return raw.view(np.float32).astype(np.float64)


def accumulate(a: Array, b: Array, c: Array, kind: str) -> Array:
    """(warps, m, k) @ (warps, k, n) + c, rounded to the type ``kind``; float32 or float16 bits."""
    total = np.matmul(a, b) + c
    if kind == "f16":
        return f16_bits(total)
    return canonical(total.astype(np.float32))


def _pairs(rows: list[Array], columns: list[Array]) -> tuple[Array, Array]:
    return np.stack(rows, axis=1), np.stack(columns, axis=1)


def _layout(shape: str, role: str, wide: bool) -> tuple[Array, Array]:
    """(row, column) of element i of lane l as arrays (32, elements); ``wide``: 32-bit elements (tf32)."""
    g, t = _GROUP, _TID
    if role == "c":
        return _pairs([g, g, g + 8, g + 8], [2 * t, 2 * t + 1, 2 * t, 2 * t + 1])
    if wide:
        steps = 2 if shape == "m16n8k8" else 1
        if role == "a":
            return _pairs([g, g + 8] * steps, [t + 4 * (i // 2) for i in range(2 * steps)])
        return _pairs([t + 4 * i for i in range(steps)], [g] * steps)
    steps = 2 if shape == "m16n8k16" else 1
    if role == "a":
        rows = [g, g, g + 8, g + 8] * steps
        return _pairs(rows, [2 * t + (i & 1) + 8 * (i // 4) for i in range(4 * steps)])
    return _pairs([2 * t + (i & 1) + 8 * (i // 2) for i in range(2 * steps)], [g] * (2 * steps))


def _slots(rows: Array, columns: Array, height: int, width: int) -> Array:
    """For each matrix element, row by row, where it lies in the gathered registers."""
    slots = np.empty((height, width), np.int64)
    slots[rows, columns] = np.arange(rows.size).reshape(rows.shape)
    return slots.reshape(-1)


_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)$")


def dimensions(shape: str) -> tuple[int, int, int]:
    match = _SHAPE.match(shape)
    assert match is not None
    return int(match.group(1)), int(match.group(2)), int(match.group(3))


@handles("mma")
def _mma(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("sync")
    mods.need("aligned")
    shape = mods.need("m16n8k4", "m16n8k8", "m16n8k16")
    if mods.parts[:2] != ["row", "col"] or len(mods.parts) != 6:
        d.refuse("layout or types of this mma")
    result, a_type, b_type, c_type = mods.parts[2:]
    allowed = {"m16n8k4": ("tf32",), "m16n8k8": ("f16", "bf16", "tf32"), "m16n8k16": ("f16", "bf16")}[shape]
    if a_type not in allowed or b_type != a_type or result != c_type:
        d.refuse(f"types .{a_type}.{b_type} with accumulators .{result}.{c_type}")
    if result not in ("f32", "f16") or (result == "f16" and a_type != "f16"):
        d.refuse(f"accumulators .{result}")
    height, width, depth = dimensions(shape)
    wide = a_type == "tf32"
    a_slots = _slots(*_layout(shape, "a", wide), height, depth)
    b_slots = _slots(*_layout(shape, "b", wide), depth, width)
    c_rows, c_columns = _layout(shape, "c", wide)
    c_slots = _slots(c_rows, c_columns, height, width)
    back = (c_rows * width + c_columns).reshape(-1)
    out, a_regs, b_regs, c_regs = (items(o) for o in ins.operands)
    per = 1 if wide else 2
    half = result == "f16"
    if (
        len(a_regs) * per * WARP != height * depth
        or len(b_regs) * per * WARP != depth * width
        or len(c_regs) != len(out)
        or len(out) != (2 if half else 4)
    ):
        d.refuse("number of registers")
    a_get, b_get = [d.get(o, B32) for o in a_regs], [d.get(o, B32) for o in b_regs]
    c_get = [d.get(o, B32) for o in c_regs]
    puts = [d.put(o, B32) for o in out]
    name, pc = f"mma.{shape}.{result}.{a_type}", d.pc

    def run(m: Machine, g: Group) -> None:
        a = numbers(gather(m, g, a_get), a_type)[:, a_slots].reshape(-1, height, depth)
        b = numbers(gather(m, g, b_get), a_type)[:, b_slots].reshape(-1, depth, width)
        c = numbers(gather(m, g, c_get), result)[:, c_slots].reshape(-1, height, width)
        total = accumulate(a, b, c, result).reshape(-1, height * width)[:, back]
        regs = np.ascontiguousarray(total).view(np.uint32).reshape(g.n, -1)
        for i, put in enumerate(puts):
            put(m, g, regs[:, i].copy())
        m.counts.tensor_op(pc, name, g)

    return d.collective(TENSOR, run, None)


@handles("ldmatrix")
def _ldmatrix(d: Decoder, ins: Instruction) -> Op:
    mods, count, trans, space = _matrix_move(d, ins)
    del mods
    puts = [d.put(o, B32) for o in items(ins.operands[0])]
    if len(puts) != count:
        d.refuse("number of registers")
    read, pc = d.address(ins.operands[1]), d.pc

    def run(m: Machine, g: Group) -> None:
        offsets = _row_offsets(m, g, ins, read, count, space, pc, None)
        rows = m.spaces.shared.units(2, 8).take(offsets.reshape(-1) // 16, axis=0)
        tiles = rows.reshape(-1, count, 8, 8)
        if trans:
            tiles = np.ascontiguousarray(tiles.transpose(0, 1, 3, 2))
        regs = tiles.reshape(-1, count, 64).view(np.uint32)
        for i, put in enumerate(puts):
            put(m, g, np.ascontiguousarray(regs[:, i]).reshape(-1))

    return d.collective(SHARED_LOAD, run, None)


@handles("stmatrix")
def _stmatrix(d: Decoder, ins: Instruction) -> Op:
    mods, count, trans, space = _matrix_move(d, ins)
    del mods
    gets = [d.get(o, B32) for o in items(ins.operands[1])]
    if len(gets) != count:
        d.refuse("number of registers")
    read, pc = d.address(ins.operands[0]), d.pc

    def run(m: Machine, g: Group) -> None:
        regs = np.stack([get(m, g).reshape(-1, WARP) for get in gets], axis=1)
        tiles = regs.view(np.uint16).reshape(-1, count, 8, 8)
        if trans:
            tiles = tiles.transpose(0, 1, 3, 2)
        _row_offsets(m, g, ins, read, count, space, pc, np.ascontiguousarray(tiles).reshape(-1, 8))

    return d.collective(SHARED_STORE, run, None)


def _matrix_move(d: Decoder, ins: Instruction) -> tuple[Modifiers, int, bool, str]:
    mods = Modifiers(ins)
    mods.need("sync")
    mods.need("aligned")
    mods.need("m8n8")
    count = int(mods.need("x1", "x2", "x4")[1])
    trans = mods.flag("trans")
    space = "shared" if mods.take("shared", "shared::cta") else "generic"
    mods.type("b16")
    mods.done()
    return mods, count, trans, space


def _row_offsets(
    m: Machine, g: Group, ins: Instruction, read: Get, count: int, space: str, pc: int, stored: Array | None
) -> Array:
    """Check and count the rows of 8x8 matrices; lanes 8i to 8i + 7 hold the addresses of the rows of matrix
    i.

    Returns offsets in shared memory (warps, 8 * count). ``stored``: rows of 8 halves to write there.
    """
    threads = g.threads.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
    part = m.group(threads) if 8 * count < WARP else g
    addresses = read(m, part)
    now = m.tick(pc)
    parts = m.spaces.resolve(m, part, ins, space, addresses, 16)
    region, _, _, offsets = parts[0]
    if len(parts) > 1 or region.kind != "shared":
        m.fault(
            OutOfBounds,
            ins,
            "matrix rows must lie in shared memory",
            int(threads[0]),
            address=int(addresses[0]),
            buffer=region.name,
        )
    marks = int(MANY_LANES)
    if stored is None:
        m.spaces.load(m, part, ins, pc, region, offsets, 16, now, count=False, marks=marks)
    else:
        m.spaces.store(m, part, ins, pc, region, offsets, 16, now, stored, count=False, marks=marks)
    rows = offsets.reshape(-1, 8 * count)
    passes, least = m.counts.patterns.rows(rows, 16, 8)
    what = "load" if stored is None else "store"
    m.counts.shared_units(pc, what, len(rows), rows.size * 16, passes, least)
    return rows


@handles("movmatrix")
def _movmatrix(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    for word in ("sync", "aligned", "m8n8", "trans"):
        mods.need(word)
    mods.type("b16")
    mods.done()
    put, get = d.put(ins.operands[0], B32), d.get(ins.operands[1], B32)

    def run(m: Machine, g: Group) -> None:
        tiles = np.ascontiguousarray(get(m, g)).view(np.uint16).reshape(-1, 8, 8)
        put(m, g, np.ascontiguousarray(tiles.transpose(0, 2, 1)).reshape(-1).view(np.uint32))

    return d.collective("warp", run, None)

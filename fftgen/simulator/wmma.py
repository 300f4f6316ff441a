"""wmma.load, wmma.mma, wmma.store (PTX ISA, "WMMA").

Which lane holds which element of a fragment is unspecified, so that the simulator draws it at random from
its seed: one mapping per shape, role, type and (for a and b) layout. Fragments of .f16 multiplicands have
16 places a lane and hold elements several times, as the register counts of the ISA demand.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import DivergedCollective, Misaligned
from fftgen.simulator.machine import WARP, Group, Machine
from fftgen.simulator.matrix import B32, TENSOR, accumulate, dimensions, gather, items, numbers
from fftgen.simulator.ops import Get, Modifiers, Op, handles
from fftgen.simulator.ordering import MANY_LANES
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, UNSIGNED, Array

_SHAPES = ("m16n16k16", "m32n8k16", "m8n32k16", "m16n16k8")


@dataclass(frozen=True)
class Fragment:
    """A kind of fragment: ``role`` a, b or c; ``type`` of its elements; ``layout`` row or col (a and b
    only).
    """

    shape: str
    role: str
    type: str
    layout: str = ""

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n, k = dimensions(self.shape)
        return {"a": (m, k), "b": (k, n), "c": (m, n)}[self.role]

    @property
    def element_bytes(self) -> int:
        return 2 if self.type in ("f16", "bf16") else 4

    @property
    def places(self) -> int:
        """Elements that a lane holds, copies included."""
        rows, columns = self.extent
        if self.type == "f16" and self.role != "c":
            return 16
        return rows * columns // WARP

    @property
    def registers(self) -> int:
        """32-bit registers of a lane."""
        return self.places * self.element_bytes // 4

    def mapping(self, m: Machine) -> tuple[Array, Array]:
        """(element of each place, a place of each element), in row-major element numbers."""
        found: tuple[Array, Array] | None = m.cache.get(self)
        if found is None:
            rows, columns = self.extent
            size = rows * columns
            key = f"{self.shape} {self.role} {self.type} {self.layout}"
            rng = np.random.default_rng([m.seed & 0xFFFFFFFF, zlib.crc32(key.encode())])
            element = rng.permutation(np.tile(np.arange(size), self.places * WARP // size))
            place = np.empty(size, np.int64)
            order = rng.permutation(len(element))  # which copy is read is drawn, too
            place[element[order]] = order
            found = m.cache[self] = (element, place)
        return found


def _shape_types(d: Decoder, shape: str, kind: str, role: str) -> None:
    multiplicands = ("tf32",) if shape == "m16n16k8" else ("f16", "bf16")
    allowed = multiplicands if role in "ab" else (("f32",) if shape == "m16n16k8" else ("f16", "f32"))
    if kind not in allowed:
        d.refuse(f"type .{kind} of a {role} fragment of shape .{shape}")


@handles("wmma")
def _wmma(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    what = mods.need("load", "store", "mma")
    if what == "mma":
        return _mma(d, ins, mods)
    role = mods.need("a", "b", "c") if what == "load" else mods.need("d")
    mods.need("sync")
    mods.need("aligned")
    layout = mods.need("row", "col")
    shape = mods.need(*_SHAPES)
    space = (mods.take("global", "shared", "shared::cta") or "generic").split("::")[0]
    if not mods.parts:
        d.refuse("no type")
    kind = mods.parts.pop()
    mods.done()
    role = "c" if role == "d" else role
    _shape_types(d, shape, kind, role)
    fragment = Fragment(shape, role, kind, layout if role in "ab" else "")
    d.arity(2, 3)
    registers = items(ins.operands[0 if what == "load" else 1])
    if len(registers) != fragment.registers:
        d.refuse(f"{len(registers)} registers, not {fragment.registers}")
    stride = d.get(ins.operands[2], TYPES["u32"]) if len(ins.operands) > 2 else None
    tile = _Tile(d, ins, fragment, layout, space, d.address(ins.operands[1 if what == "load" else 0]), stride)
    if what == "load":
        puts = [d.put(o, B32) for o in registers]

        def load(m: Machine, g: Group) -> None:
            elements = tile.read(m, g)
            element, _ = fragment.mapping(m)
            regs = np.ascontiguousarray(elements[:, element]).view(np.uint32).reshape(g.n, -1)
            for i, put in enumerate(puts):
                put(m, g, regs[:, i].copy())

        return d.collective(f"load {space}", load, None)
    gets = [d.get(o, B32) for o in registers]

    def store(m: Machine, g: Group) -> None:
        raw = gather(m, g, gets).view(UNSIGNED[8 * fragment.element_bytes])
        _, place = fragment.mapping(m)
        tile.write(m, g, raw[:, place])

    return d.collective(f"store {space}", store, None)


class _Tile:
    """A matrix in memory, as one wmma.load or wmma.store sees it."""

    def __init__(
        self,
        d: Decoder,
        ins: Instruction,
        fragment: Fragment,
        layout: str,
        space: str,
        address: Get,
        stride: Get | None,
    ) -> None:
        self.ins, self.pc, self.space = ins, d.pc, space
        self.address, self.stride = address, stride
        self.fragment = fragment
        rows, columns = fragment.extent
        self.by_columns = layout == "col"
        self.lines, self.length = (columns, rows) if self.by_columns else (rows, columns)
        self.size = fragment.element_bytes
        self.line_bytes = self.length * self.size
        self.align = 4 * fragment.registers
        self.line_align = min(16, self.align)
        self.chunk = min(16, self.align, self.line_bytes)

    def _starts(self, m: Machine, g: Group) -> Array:
        """Addresses of the lines (rows or columns), (warps, lines); address and stride are the same in a
        warp.
        """
        addresses = np.broadcast_to(self.address(m, g), g.n).reshape(-1, WARP)
        self._uniform(m, g, addresses, "address")
        base = addresses[:, :1]
        if self.stride is None:
            step = np.full((len(base), 1), self.length, np.int64)
        else:
            strides = np.broadcast_to(self.stride(m, g), g.n).reshape(-1, WARP)
            self._uniform(m, g, strides, "stride")
            step = strides[:, :1].astype(np.int64)
        offsets = (np.arange(self.lines) * step * self.size).astype(np.uint64)
        starts: Array = base + offsets
        wrong = starts & np.uint64(self.line_align - 1)
        wrong[:, 0] = base[:, 0] & np.uint64(self.align - 1)
        if wrong.any():
            warp, line = (int(k) for k in np.argwhere(wrong)[0])
            what = "column" if self.by_columns else "row"
            m.fault(
                Misaligned,
                self.ins,
                f"{what} {line} starts at {int(starts[warp, line]):#x}, which is not a multiple of "
                f"{self.line_align if line else self.align} (base {int(base[warp, 0]):#x}, "
                f"stride {int(step[warp, 0])} elements of {self.size} bytes)",
                int(g.threads[warp * WARP]),
                address=int(starts[warp, line]),
                buffer="shared" if self.space == "shared" else None,
            )
        return starts

    def _uniform(self, m: Machine, g: Group, values: Array, what: str) -> None:
        different = values != values[:, :1]
        if different.any():
            warp, lane = (int(k) for k in np.argwhere(different)[0])
            m.fault(
                DivergedCollective,
                self.ins,
                f"the {what} differs between the lanes of a warp: {int(values[warp, 0]):#x} in lane 0, "
                f"{int(values[warp, lane]):#x} in lane {lane}",
                int(g.threads[warp * WARP + lane]),
            )

    def _parts(self, m: Machine, g: Group) -> tuple[Group, Array]:
        """One thread number and one address per chunk of the lines of every warp."""
        starts = self._starts(m, g)
        chunks = np.arange(0, self.line_bytes, self.chunk, dtype=np.uint64)
        addresses = (starts[:, :, None] + chunks).reshape(-1)
        threads = np.repeat(g.threads.reshape(-1, WARP)[:, 0], len(addresses) // len(starts))
        return Group(m, threads), addresses

    def read(self, m: Machine, g: Group) -> Array:
        """The elements, row-major, (warps, rows * columns)."""
        part, addresses = self._parts(m, g)
        now = m.tick(self.pc)
        per = self.chunk // self.size
        data = np.empty((len(addresses), per), UNSIGNED[8 * self.size])
        for region, group, chosen, offsets in m.spaces.resolve(
            m, part, self.ins, self.space, addresses, self.chunk
        ):
            m.spaces.load(
                m,
                group,
                self.ins,
                self.pc,
                region,
                offsets,
                self.chunk,
                now,
                count=False,
                marks=int(MANY_LANES),
            )
            found = region.units(self.size, per).take(offsets // self.chunk, axis=0)
            if chosen is None:
                data = found
            else:
                data[chosen] = found
            self._count(m, region.kind, region.name, region.size, offsets, "load")
        lines = data.reshape(-1, self.lines, self.length)
        if self.by_columns:
            lines = lines.transpose(0, 2, 1)
        return lines.reshape(len(lines), -1)

    def write(self, m: Machine, g: Group, elements: Array) -> None:
        """Store elements, row-major, (warps, rows * columns)."""
        part, addresses = self._parts(m, g)
        now = m.tick(self.pc)
        per = self.chunk // self.size
        rows, columns = self.fragment.extent
        lines = elements.reshape(-1, rows, columns)
        if self.by_columns:
            lines = lines.transpose(0, 2, 1)
        data = np.ascontiguousarray(lines).reshape(-1, per)
        for region, group, chosen, offsets in m.spaces.resolve(
            m, part, self.ins, self.space, addresses, self.chunk
        ):
            values = data if chosen is None else data[chosen]
            m.spaces.store(
                m,
                group,
                self.ins,
                self.pc,
                region,
                offsets,
                self.chunk,
                now,
                values,
                count=False,
                marks=int(MANY_LANES),
            )
            self._count(m, region.kind, region.name, region.size, offsets, "store")

    def _count(self, m: Machine, kind: str, name: str, size: int, offsets: Array, what: str) -> None:
        """The model: phases of 128 bytes, 8 lines of 16 bytes for 16-bit elements and 4 of 32 for 32-bit
        ones.
        """
        starts = offsets.reshape(-1, self.lines, self.line_bytes // self.chunk)
        warps = len(starts)
        nbytes = starts.size * self.chunk
        if kind == "shared":
            wide = 16 if self.size == 2 else 32
            wide = min(wide, self.line_bytes)
            pieces = starts[:, :, :1] + np.arange(0, self.line_bytes, wide)
            ordered = np.ascontiguousarray(pieces.transpose(0, 2, 1)).reshape(warps, -1)
            passes, least = m.counts.patterns.rows(ordered, wide, 128 // wide)
            m.counts.shared_units(self.pc, what, warps, nbytes, passes, least)
        elif kind == "global":
            units, least = m.counts.patterns.spans(starts[:, :, 0], self.line_bytes)
            m.counts.device_units(self.pc, name, what, warps, nbytes, units, least)
            m.counts.touch(name, what, size, offsets, self.chunk)


def _mma(d: Decoder, ins: Instruction, mods: Modifiers) -> Op:
    mods.need("sync")
    mods.need("aligned")
    if len(mods.parts) < 5:
        d.refuse("too few modifiers")
    a_layout, b_layout, shape = mods.parts[:3]
    types = mods.parts[3:]
    if not {a_layout, b_layout} <= {"row", "col"} or shape not in _SHAPES:
        d.refuse("layout or shape")
    if len(types) == 2:
        result, c_type, a_type = types[0], types[1], "f16"
    elif len(types) == 4 and types[1] == types[2]:
        result, a_type, c_type = types[0], types[1], types[3]
    else:
        d.refuse("types")
    for kind, role in ((a_type, "a"), (a_type, "b"), (c_type, "c"), (result, "c")):
        _shape_types(d, shape, kind, role)
    if a_type != "f16" and (result, c_type) != ("f32", "f32"):
        d.refuse(f"accumulators .{result}.{c_type} with .{a_type}")
    a, b = Fragment(shape, "a", a_type, a_layout), Fragment(shape, "b", a_type, b_layout)
    c, out = Fragment(shape, "c", c_type), Fragment(shape, "c", result)
    regs = [items(o) for o in ins.operands]
    if [len(r) for r in regs] != [f.registers for f in (out, a, b, c)]:
        d.refuse("number of registers")
    puts = [d.put(o, B32) for o in regs[0]]
    a_get, b_get, c_get = ([d.get(o, B32) for o in r] for r in regs[1:])
    height, width, depth = dimensions(shape)
    name, pc = f"wmma.{shape}.{result}.{a_type}", d.pc

    def run(m: Machine, g: Group) -> None:
        left = numbers(gather(m, g, a_get), a_type)[:, a.mapping(m)[1]].reshape(-1, height, depth)
        right = numbers(gather(m, g, b_get), a_type)[:, b.mapping(m)[1]].reshape(-1, depth, width)
        start = numbers(gather(m, g, c_get), c_type)[:, c.mapping(m)[1]].reshape(-1, height, width)
        total = accumulate(left, right, start, result).reshape(-1, height * width)
        values = np.ascontiguousarray(total[:, out.mapping(m)[0]]).view(np.uint32).reshape(g.n, -1)
        for i, put in enumerate(puts):
            put(m, g, values[:, i].copy())
        m.counts.tensor_op(pc, name, g)

    return d.collective(TENSOR, run, None)

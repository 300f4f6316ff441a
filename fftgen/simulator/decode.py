"""From syntax to closures: what every instruction family needs to turn operands into arrays and back.

A decoded instruction is a function of (machine, group): it reads arrays over the threads of the group,
computes, and writes arrays back. The families register themselves by the first word of the opcode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from fftgen.simulator.faults import ParseError, UninitializedRead, UnknownInstruction
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import HANDLERS, PLAIN, SYNC, Get, Op, Put, Run, unknown
from fftgen.simulator.specials import special
from fftgen.simulator.syntax import Addr, Entry, Imm, Instruction, Module, Operand, Reg, Sink, Special, Sym
from fftgen.simulator.types import TYPES, Array, Type


class Decoder:
    """Decodes the instructions of one entry. ``maybe[pc]`` are the registers perhaps unwritten at ``pc``."""

    def __init__(
        self, module: Module, entry: Entry, maybe: list[frozenset[int]], tracked: frozenset[int]
    ) -> None:
        self.module = module
        self.entry = entry
        self.maybe = maybe
        self.tracked = tracked
        self.pc = 0
        self.instruction = entry.instructions[0] if entry.instructions else None

    def decode(self) -> list[Op]:
        """One Op per instruction. Raises UnknownInstruction for the first that is not implemented."""
        ops: list[Op] = []
        for pc, instruction in enumerate(self.entry.instructions):
            self.pc, self.instruction = pc, instruction
            handler = HANDLERS.get(instruction.parts[0])
            if handler is None:
                unknown(instruction)
            try:
                op = handler(self, instruction)
            except UnknownInstruction as error:
                line, location = self.module.where(instruction.loc)
                raise UnknownInstruction(
                    error.message,
                    instruction=instruction.text,
                    ptx_line=instruction.ptx_line,
                    source_line=line,
                    location=location,
                ) from None
            except (IndexError, AttributeError, KeyError, ValueError) as error:
                raise ParseError(
                    f"operands of {instruction.text!r} do not fit the instruction ({error})",
                    instruction=instruction.text,
                    ptx_line=instruction.ptx_line,
                ) from error
            if instruction.guard is not None:
                self._guard(op, instruction.guard)
            ops.append(op)
        return ops

    def _guard(self, op: Op, guard: tuple[Reg, bool]) -> None:
        reg, sense = guard
        read = self.get(reg, TYPES["pred"])
        condition: Get = read if sense else (lambda m, g: ~read(m, g))
        if op.kind != PLAIN:
            op.guard = condition
            return
        inner = op.run
        assert inner is not None

        def run(m: Machine, g: Group) -> None:
            chosen = m.select(g, condition(m, g))
            if chosen is not None:
                inner(m, chosen)

        op.run = run

    def op(self, family: str, run: Run) -> Op:
        """A plain instruction."""
        assert self.instruction is not None
        return Op(self.pc, self.instruction, family, PLAIN, run)

    def collective(self, family: str, run: Run, mask: Get | None) -> Op:
        """A warp-level ``.sync`` instruction; ``mask`` None names all lanes and demands convergence."""
        assert self.instruction is not None
        return Op(self.pc, self.instruction, family, SYNC, run, mask=mask, aligned=mask is None)

    # -- sources ---------------------------------------------------------------------------------------------

    def get(self, operand: Operand, kind: Type, *, widen: bool = False) -> Get:
        """Reads an operand as the NumPy type of ``kind``. ``widen``: a register may be wider, its low part
        counts.
        """
        if isinstance(operand, Reg):
            return self._get_register(operand, kind, widen)
        if isinstance(operand, Imm):
            return constant(literal(operand, kind, self.instruction))
        if isinstance(operand, Special):
            name, dtype = operand.name, kind.dtype
            special_bits = 64 if name in ("%clock64", "%globaltimer") else 32

            def read_special(m: Machine, g: Group) -> Array:
                values = special(m, name)
                if g.idx is not None:
                    values = values[g.idx]
                return values.astype(dtype) if kind.bits != special_bits else values.view(dtype)

            return read_special
        if isinstance(operand, Sym):
            symbol, offset, dtype = operand.name, operand.offset, kind.dtype

            def read_symbol(m: Machine, g: Group) -> Array:
                return np.array([m.symbols[symbol] + offset], np.uint64).astype(dtype)

            if symbol in self.entry.labels:
                self.refuse("labels as values are not supported")
            return read_symbol
        return self.refuse(f"operand {operand} is not a value")

    def _get_register(self, reg: Reg, kind: Type, widen: bool) -> Get:
        index, storage = reg.index, reg.type.storage
        narrow = False
        if reg.type.bits != kind.bits:
            if not widen or reg.type.bits < kind.bits or "p" in (kind.kind, reg.type.kind):
                raise ParseError(
                    f"register {reg.name} (.{reg.type.name}) does not fit type .{kind.name}",
                    instruction=self.instruction.text if self.instruction else None,
                    ptx_line=self.instruction.ptx_line if self.instruction else None,
                )
            narrow = True
        elif (kind.kind == "p") != (reg.type.kind == "p"):
            self.refuse("a predicate and a value are mixed")
        dtype = kind.dtype
        if narrow:
            unsigned = np.dtype(f"u{kind.nbytes}")
            wide = np.dtype(f"u{reg.type.nbytes}")

            def read(m: Machine, g: Group) -> Array:
                values = m.registers[index]
                if g.idx is not None:
                    values = values[g.idx]
                return values.view(wide).astype(unsigned).view(dtype)

        elif dtype == storage:

            def read(m: Machine, g: Group) -> Array:
                return m.registers[index] if g.idx is None else m.registers[index][g.idx]

        else:

            def read(m: Machine, g: Group) -> Array:
                values = m.registers[index].view(dtype)
                return values if g.idx is None else values[g.idx]

        if index in self.maybe[self.pc]:
            return self._checked(reg, read)
        return read

    def _checked(self, reg: Reg, read: Get) -> Get:
        """Reads a register that may not have been written: looks at the marks of its threads first."""
        index, instruction, full = reg.index, self.instruction, whole(reg)

        def checked(m: Machine, g: Group) -> Array:
            marks = m.defined.get(index)
            good = marks is not None and bool(((marks if g.idx is None else marks[g.idx]) == full).all())
            if not good:
                threads = g.threads
                bad = threads[0] if marks is None else threads[marks[threads] != full][0]
                m.fault(
                    UninitializedRead,
                    instruction,
                    f"register {reg.name} is read, but nothing has written it",
                    int(bad),
                    buffer="registers",
                )
            return read(m, g)

        return checked

    # -- destinations ----------------------------------------------------------------------------------------

    def put(self, operand: Operand, kind: Type, *, widen: bool = False) -> Put:
        """Writes arrays of the type of ``kind`` into a register; ``widen`` extends them."""
        if isinstance(operand, Sink):
            return lambda m, g, v: None
        if not isinstance(operand, Reg):
            self.refuse(f"operand {operand} is not a register")
        index, storage, bits = operand.index, operand.type.storage, operand.type.bits
        extend = False
        if bits != kind.bits:
            if not widen or bits < kind.bits or "p" in (kind.kind, operand.type.kind):
                raise ParseError(
                    f"register {operand.name} (.{operand.type.name}) does not fit type .{kind.name}",
                    instruction=self.instruction.text if self.instruction else None,
                    ptx_line=self.instruction.ptx_line if self.instruction else None,
                )
            extend = True
        through = np.dtype(f"{'i' if kind.kind == 's' else 'u'}{bits // 8}") if extend else None
        own = kind.dtype

        def write(m: Machine, g: Group, values: Array) -> None:
            if through is not None:
                values = values.view(own).astype(through)
            if values.dtype != storage:
                values = values.view(storage)
            if g.idx is None:
                if values.shape[0] != m.size:
                    values = np.repeat(values, m.size)
                m.registers[index] = values
            else:
                fresh = m.registers[index].copy()
                fresh[g.idx] = values
                m.registers[index] = fresh

        if index not in self.tracked:
            return write

        full = whole(operand)

        def write_marked(m: Machine, g: Group, values: Array) -> None:
            write(m, g, values)
            mark(m, g, index, full)

        return write_marked

    # -- shapes that many instructions share -----------------------------------------------------------------

    def map(
        self,
        family: str,
        kind: Type,
        destination: Operand,
        sources: list[Get],
        function: Callable[..., Array],
        *,
        widen: bool = False,
    ) -> Op:
        """An elementwise instruction: ``destination = function(*sources)``."""
        put = self.put(destination, kind, widen=widen)
        if len(sources) == 1:
            (one,) = sources

            def run(m: Machine, g: Group) -> None:
                put(m, g, function(one(m, g)))

        elif len(sources) == 2:
            one, two = sources

            def run(m: Machine, g: Group) -> None:
                put(m, g, function(one(m, g), two(m, g)))

        elif len(sources) == 3:
            one, two, three = sources

            def run(m: Machine, g: Group) -> None:
                put(m, g, function(one(m, g), two(m, g), three(m, g)))

        else:

            def run(m: Machine, g: Group) -> None:
                put(m, g, function(*[get(m, g) for get in sources]))

        return self.op(family, run)

    def simple(self, family: str, kind: Type, function: Callable[..., Array], count: int) -> Op:
        """An elementwise instruction with ``count`` sources of the type of its result."""
        assert self.instruction is not None
        operands = self.instruction.operands
        self.arity(count + 1)
        return self.map(family, kind, operands[0], [self.get(o, kind) for o in operands[1:]], function)

    def arity(self, low: int, high: int | None = None) -> None:
        """Refuse an instruction with another number of operands."""
        assert self.instruction is not None
        count = len(self.instruction.operands)
        if not low <= count <= (high if high is not None else low):
            self.refuse(f"{count} operands")

    def address(self, operand: Operand) -> Get:
        """Reads ``[base + offset]`` as 64-bit unsigned addresses over the group."""
        if not isinstance(operand, Addr):
            self.refuse(f"operand {operand} is not an address")
        offset = np.uint64(operand.offset & 0xFFFFFFFFFFFFFFFF)
        base = operand.base
        if isinstance(base, Reg):
            if base.type.bits not in (32, 64) or base.type.kind == "f":
                self.refuse(f"register {base.name} cannot hold an address")
            narrow = base.type.bits == 32
            read = self.get(base, TYPES["u32" if narrow else "u64"])
            if narrow:

                def address32(m: Machine, g: Group) -> Array:
                    low: Array = (read(m, g).astype(np.uint64) + offset) & np.uint64(0xFFFFFFFF)
                    return low

                return address32
            if operand.offset == 0:
                return read
            return lambda m, g: read(m, g) + offset
        if isinstance(base, Imm):
            value = np.array([base.value + operand.offset], np.uint64)
            return lambda m, g: np.repeat(value, g.n)
        name = base.name
        return lambda m, g: np.repeat(np.array([m.symbols[name]], np.uint64) + offset, g.n)

    def refuse(self, why: str) -> NoReturn:
        assert self.instruction is not None
        unknown(self.instruction, why)


def whole(reg: Reg) -> int:
    """The marks of a register of which every byte is written: one bit a byte."""
    return (1 << max(reg.type.bits // 8, 1)) - 1


def mark(m: Machine, g: Group, index: int, values: Array | int) -> None:
    """Set the written-marks of a register for the threads of a group."""
    marks = m.defined.get(index)
    if marks is None:
        marks = m.defined[index] = np.zeros(m.size, np.uint8)
    marks[g.idx if g.idx is not None else slice(None)] = values


def literal(operand: Imm, kind: Type, instruction: Instruction | None) -> Array:
    """A literal as an array of one element of the NumPy type of ``kind``."""
    if kind.kind == "p":
        return np.array([operand.value != 0])
    if kind.kind == "f":
        if operand.width == kind.bits:
            return np.array([operand.value], f"u{kind.nbytes}").view(kind.dtype)
        if operand.width:
            raw = np.array([operand.value], f"u{operand.width // 8}").view(f"f{operand.width // 8}")
            return raw.astype(kind.dtype)
        return np.array([float(operand.value)], kind.dtype)
    bits = operand.value
    if operand.width > kind.bits:
        if instruction is not None:
            unknown(instruction, "a floating-point literal does not fit here")
        raise ParseError("a floating-point literal does not fit here")
    return np.array([bits & ((1 << kind.bits) - 1)], f"u{kind.nbytes}").view(kind.dtype)


def constant(value: Array) -> Get:
    """Reads the same value in every thread (one element: NumPy broadcasts it)."""
    return lambda m, g: value

"""Decoded instructions, the table of their decoders, and the modifiers of opcodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from fftgen.errors import InternalError
from fftgen.simulator.faults import UnknownInstruction
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, Array, Type

if TYPE_CHECKING:
    from fftgen.simulator.decode import Decoder

Run = Callable[[Machine, Group], None]
Get = Callable[[Machine, Group], Array]
Put = Callable[[Machine, Group, Array], None]

PLAIN, BRANCH, EXIT, SYNC, BARRIER, CLUSTER = range(6)


@dataclass
class Op:
    """A decoded instruction.

    ``family`` is its class in the counters. ``guard`` is left to the scheduler for the kinds other than
    PLAIN. A SYNC has ``mask``, which gives the lanes that it names (None: all 32, and ``aligned``).
    """

    pc: int
    instruction: Instruction
    family: str
    kind: int = PLAIN
    run: Run | None = None
    guard: Get | None = None
    target: int = -1
    mask: Get | None = None
    aligned: bool = False


Handler = Callable[["Decoder", Instruction], Op]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a decoder for opcodes that begin with these words."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if HANDLERS.setdefault(name, handler) is not handler:
                raise InternalError(f"{name} has two decoders: {HANDLERS[name]} and {handler}")
        return handler

    return register


class Modifiers:
    """The parts of an opcode behind its first word, to be taken one by one; what is left over is unknown."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.parts = list(instruction.parts[1:])

    def take(self, *names: str) -> str | None:
        """The first part that is one of ``names``, removed; None if there is none."""
        for part in self.parts:
            if part in names:
                self.parts.remove(part)
                return part
        return None

    def flag(self, name: str) -> bool:
        return self.take(name) is not None

    def need(self, *names: str) -> str:
        found = self.take(*names)
        if found is None:
            unknown(self.instruction, f"none of .{', .'.join(names)} is given")
        return found

    def type(self, *allowed: str) -> Type:
        """The last part, which must be a type (of those allowed)."""
        if not self.parts or self.parts[-1] not in TYPES or (allowed and self.parts[-1] not in allowed):
            unknown(self.instruction, f"type .{self.parts[-1] if self.parts else '?'}")
        return TYPES[self.parts.pop()]

    def done(self) -> None:
        """All parts must have been taken."""
        if self.parts:
            unknown(self.instruction, f"modifier .{self.parts[0]}")


def unknown(instruction: Instruction, why: str = "") -> NoReturn:
    """Refuse an instruction by name."""
    raise UnknownInstruction(
        f"instruction {instruction.opcode} is not implemented" + (f": {why}" if why else ""),
        instruction=instruction.text,
        ptx_line=instruction.ptx_line,
    )

"""The abstract syntax of the PTX that the simulator runs: frozen values, made by parser.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fftgen.simulator.types import Type


@dataclass(frozen=True)
class Reg:
    """A register of the running function: ``index`` counts the registers of one entry."""

    name: str
    index: int
    type: Type


@dataclass(frozen=True)
class Special:
    """A special register such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Imm:
    """An integer literal, or a floating-point literal given by its bits (``width`` 32 or 64)."""

    value: int
    width: int = 0


@dataclass(frozen=True)
class Sym:
    """The address of a variable or parameter, plus a byte offset. Also a label, in a branch."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Addr:
    """``[base + offset]``."""

    base: Reg | Sym | Imm
    offset: int = 0


@dataclass(frozen=True)
class Vec:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Not:
    """``!p``: a negated predicate operand."""

    reg: Reg


@dataclass(frozen=True)
class Pair:
    """``d|p``: a destination with a second, predicate destination."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """``_``: a destination that is thrown away."""


Operand = Reg | Special | Imm | Sym | Addr | Vec | Not | Pair | Sink


@dataclass(frozen=True)
class Loc:
    """A source position with the call site it was inlined at."""

    file: int
    line: int
    column: int
    parent: Loc | None = None


@dataclass(frozen=True)
class Instruction:
    """One PTX instruction. ``parts`` is the opcode split at its dots; ``guard`` a predicate and its sense."""

    opcode: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    text: str
    ptx_line: int
    loc: Loc | None


@dataclass(frozen=True)
class Variable:
    """A variable with its address space. ``initial`` holds the bytes; ``size`` 0 means extern, sized at
    launch.
    """

    name: str
    space: str
    align: int
    size: int
    initial: bytes | None = None
    pointers: tuple[tuple[int, str, int], ...] = ()
    """(byte offset, variable, added offset) of addresses inside the initialiser."""


@dataclass(frozen=True)
class Param:
    """A kernel parameter; ``offset`` is its place in the parameter block."""

    name: str
    size: int
    align: int
    offset: int


@dataclass(frozen=True)
class Entry:
    """A kernel."""

    name: str
    params: tuple[Param, ...]
    registers: tuple[Reg, ...]
    variables: tuple[Variable, ...]
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    directives: Mapping[str, tuple[int, ...]]
    ptx_line: int

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The variables that the kernel mentions: a module may hold those of other kernels, too."""

        def named(operand: Operand) -> Iterator[str]:
            if isinstance(operand, Sym):
                yield operand.name
            elif isinstance(operand, Addr):
                yield from named(operand.base)
            elif isinstance(operand, Vec):
                for item in operand.items:
                    yield from named(item)

        return frozenset(name for ins in self.instructions for o in ins.operands for name in named(o))

    @cached_property
    def distributed(self) -> bool:
        """Whether the kernel may reach the shared memory of other blocks of its cluster."""
        return any(i.parts[0] == "mapa" or "shared::cluster" in i.parts for i in self.instructions)


@dataclass(frozen=True)
class Module:
    """A parsed PTX module. ``files`` maps ``.file`` numbers to names; ``source`` is the CUDA text."""

    version: str
    target: str
    entries: Mapping[str, Entry]
    variables: Mapping[str, Variable]
    files: Mapping[int, str]
    primary_file: int | None
    source: str | None = None
    compiled: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Decoded entries, kept by the launcher so that a module is decoded once."""

    @cached_property
    def _lines(self) -> list[str]:
        return (self.source or "").splitlines()

    def line(self, loc: Loc | None) -> int | None:
        """The line of the primary file that a position belongs to."""
        while loc is not None and loc.file != self.primary_file:
            loc = loc.parent
        return None if loc is None else loc.line

    def where(self, loc: Loc | None) -> tuple[int | None, str | None]:
        """The line of the primary file that a position belongs to, and the whole chain in words."""
        if loc is None:
            return None, None
        line = self.line(loc)
        words: list[str] = []
        step: Loc | None = loc
        while step is not None:
            words.append(f"{self.files.get(step.file, f'file {step.file}')}:{step.line}")
            step = step.parent
        text = " inlined at ".join(words)
        if line is not None and 0 < line <= len(self._lines):
            text += f": {self._lines[line - 1].strip()}"
        return line, text

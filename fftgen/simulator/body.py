"""Kernel bodies: declarations, scopes, labels, ``.loc`` lines, instructions and their operands."""

from __future__ import annotations

import re

from fftgen.simulator.declarations import variables
from fftgen.simulator.faults import ParseError
from fftgen.simulator.lexer import Token
from fftgen.simulator.stream import Stream
from fftgen.simulator.syntax import (
    Addr,
    Imm,
    Instruction,
    Loc,
    Not,
    Operand,
    Pair,
    Reg,
    Sink,
    Special,
    Sym,
    Variable,
    Vec,
)
from fftgen.simulator.types import TYPES, Type

_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*\binlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_NUMBERED = re.compile(r"(.*?)(\d+)$")
_SPECIAL = re.compile(
    r"%(?:n?tid|n?ctaid|(?:n?cluster|cluster_n?cta)(?:id)?(?:_?rank)?|is_explicit_cluster|laneid|n?warpid|n?smid"
    r"|gridid|clock(?:64|_hi)?|globaltimer(?:_lo|_hi)?|lanemask_(?:eq|le|lt|ge|gt)|(?:dynamic|total|aggr)_smem_size"
    r"|pm\d+|envreg\d+|cluster_ctarank|cluster_nctarank|cluster_ctaid|cluster_nctaid|clusterid|nclusterid)(?:\.[xyzw])?$"
)


class Locations:
    """Keeps the inlining chains: ``inlined_at`` names a position that an earlier ``.loc`` gave."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int, int], Loc] = {}

    def read(self, token: Token, before: Loc | None) -> Loc | None:
        match = _LOC.match(token.text)
        if match is None:
            return before
        numbers = [int(n) if n is not None else 0 for n in match.groups()]
        file, line, column = numbers[:3]
        parent = None
        if match.group(4) is not None:
            site = (numbers[3], numbers[4], numbers[5])
            parent = self._recent.get(site) or Loc(*site)
        if line == 0:  # code of the compiler's own making: stay with the line before
            return before
        step = parent
        while step is not None:  # a recursive chain would never end
            if (step.file, step.line, step.column) == (file, line, column):
                return step
            step = step.parent
        loc = Loc(file, line, column, parent)
        self._recent[file, line, column] = loc
        return loc


class _Scope:
    def __init__(self) -> None:
        self.names: dict[str, Reg] = {}
        self.ranges: dict[str, tuple[int, Type]] = {}


class BodyParser:
    """Reads one kernel body, behind its opening brace up to the closing one."""

    def __init__(self, stream: Stream, locations: Locations) -> None:
        self.stream = stream
        self.locations = locations
        self.registers: list[Reg] = []
        self.variables: list[Variable] = []
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self._scopes = [_Scope()]
        self._loc: Loc | None = None
        self._scoped_labels: list[dict[str, str]] = [{}]

    def read(self) -> None:
        stream = self.stream
        while True:
            token = stream.peek()
            if token is None:
                raise ParseError("the PTX ends inside a kernel body")
            if token.kind == "line":
                stream.next()
                self._loc = self.locations.read(token, self._loc)
            elif token.text == "{":
                stream.next()
                self._scopes.append(_Scope())
                self._scoped_labels.append(self._labels_ahead())
            elif token.text == "}":
                stream.next()
                self._scopes.pop()
                self._scoped_labels.pop()
                if not self._scopes:
                    break
            elif token.text == ";":
                stream.next()
            elif token.text == ".reg":
                stream.next()
                self._declare_registers()
            elif token.text in (".shared", ".local", ".param"):
                stream.next()
                self.variables += variables(stream, token.text[1:])
            elif token.text in (".pragma", ".branchtargets", ".callprototype", ".calltargets"):
                while stream.next().text != ";":
                    pass
            elif (after := stream.peek(1)) is not None and after.text == ":" and token.kind == "name":
                self._label(token)
            else:
                self.instructions.append(self._instruction())

    def _label(self, token: Token) -> None:
        self.stream.next()
        self.stream.next()
        name = token.text
        name = self._scoped_labels[-1].get(name, name)
        if name in self.labels:
            raise ParseError(f"label {name} is defined twice", ptx_line=token.line)
        self.labels[name] = len(self.instructions)

    def _labels_ahead(self) -> dict[str, str]:
        """The labels of the scope that begins here: local to it, and perhaps used before they stand."""
        found: dict[str, str] = {}
        depth, ahead = 1, 0
        while depth and (token := self.stream.peek(ahead)) is not None:
            depth += (token.text == "{") - (token.text == "}")
            after = self.stream.peek(ahead + 1)
            if depth == 1 and token.kind == "name" and after is not None and after.text == ":":
                found[token.text] = f"{token.text}@{token.start}"
            ahead += 1
        return found

    def _declare_registers(self) -> None:
        stream = self.stream
        word = stream.name()
        kind = TYPES.get(word[1:])
        if kind is None:
            raise ParseError(f"registers of type {word} are not supported", ptx_line=stream.line)
        scope = self._scopes[-1]
        while True:
            name = stream.name()
            if stream.accept("<"):
                scope.ranges[name] = (stream.integer(), kind)
                stream.expect(">")
            else:
                scope.names[name] = self._new(name, kind)
            if not stream.accept(","):
                break
        stream.expect(";")

    def _new(self, name: str, kind: Type) -> Reg:
        reg = Reg(name, len(self.registers), kind)
        self.registers.append(reg)
        return reg

    def _register(self, name: str) -> Reg | None:
        match = _NUMBERED.match(name)
        for scope in reversed(self._scopes):
            if name in scope.names:
                return scope.names[name]
            if match is not None and match.group(1) in scope.ranges:
                count, kind = scope.ranges[match.group(1)]
                if int(match.group(2)) < count:
                    reg = scope.names[name] = self._new(name, kind)
                    return reg
        return None

    def _instruction(self) -> Instruction:
        stream = self.stream
        first = stream.peek()
        assert first is not None
        guard: tuple[Reg, bool] | None = None
        if stream.accept("@"):
            sense = not stream.accept("!")
            name = stream.name()
            reg = self._register(name)
            if reg is None or reg.type.kind != "p":
                raise ParseError(f"{name} is not a predicate register", ptx_line=stream.line)
            guard = (reg, sense)
        opcode = stream.name()
        operands: list[Operand] = []
        if opcode.split(".")[0] == "call":  # refused when decoded; its operands have a shape of their own
            while stream.next().text != ";":
                pass
        else:
            while not stream.accept(";"):
                operands.append(self._operand())
                if not stream.accept(","):
                    stream.expect(";")
                    break
        last = stream.tokens[stream.place - 1]
        text = " ".join(stream.text[first.start : last.end].split())
        parts = tuple(opcode.split("."))
        return Instruction(opcode, parts, tuple(operands), guard, text, first.line, self._loc)

    def _operand(self) -> Operand:
        operand = self._single()
        if self.stream.accept("|"):
            return Pair(operand, self._single())
        return operand

    def _single(self) -> Operand:
        stream = self.stream
        token = stream.peek()
        assert token is not None
        if token.kind == "name" and (known := self._scopes[-1].names.get(token.text)) is not None:
            stream.place += 1  # most operands: a register of this scope that was met before
            return known
        if stream.accept("{"):
            items: list[Operand] = []
            while not stream.accept("}"):
                items.append(self._single())
                stream.accept(",")
            return Vec(tuple(items))
        if stream.accept("["):
            return self._address()
        if stream.accept("!"):
            reg = self._single()
            if not isinstance(reg, Reg):
                raise ParseError("'!' needs a predicate register", ptx_line=stream.line)
            return Not(reg)
        if stream.accept("-"):
            value, width = stream.literal()
            return Imm(value ^ (1 << (width - 1)) if width else -value, width)
        if stream.accept("~"):
            return Imm(~stream.integer())
        if token.kind == "number":
            value, width = stream.literal()
            return Imm(value, width)
        name = stream.name()
        if name == "_":
            return Sink()
        found = self._register(name)
        if found is not None:
            return found
        if name == "WARP_SZ":
            return Imm(32)
        if name.startswith("%"):
            if _SPECIAL.match(name):
                return Special(name)
            raise ParseError(f"register {name} is not declared (PTX line {token.line})", ptx_line=token.line)
        for labels in reversed(self._scoped_labels):
            if name in labels:
                return Sym(labels[name])
        offset = 0
        if stream.accept("+") or ((after := stream.peek()) is not None and after.text == "-"):
            offset = stream.integer()
        return Sym(name, offset)

    def _address(self) -> Addr:
        stream = self.stream
        base = self._single()
        offset = 0
        if isinstance(base, Sym):
            base, offset = Sym(base.name), base.offset
        if not isinstance(base, Reg | Sym | Imm):
            raise ParseError(
                f"an address of this form is not supported (PTX line {stream.line})", ptx_line=stream.line
            )
        while not stream.accept("]"):
            if stream.accept("+") or ((token := stream.peek()) is not None and token.text == "-"):
                offset += stream.integer()
            else:
                raise ParseError(f"expected ']' (PTX line {stream.line})", ptx_line=stream.line)
        return Addr(base, offset)

"""Tokens to a Module: the module level of PTX (PTX ISA, "Directives"). Bodies are read by body.py."""

from __future__ import annotations

from fftgen.simulator.body import BodyParser, Locations
from fftgen.simulator.declarations import array_size, variables
from fftgen.simulator.faults import ParseError
from fftgen.simulator.garbage import none_to_collect
from fftgen.simulator.lexer import Token, tokenize
from fftgen.simulator.stream import Stream
from fftgen.simulator.syntax import Entry, Module, Param, Variable
from fftgen.simulator.types import TYPES, Type

_LINKAGE = {".visible", ".extern", ".weak", ".common"}
_SPACES = {".global", ".const", ".shared", ".local"}


def parse(text: str, source: str | None = None) -> Module:
    """Parse PTX as NVRTC emits it.

    ``source`` is the CUDA text it was made of; faults then quote the line. The module is immutable and can be
    simulated any number of times. Raises ParseError with the PTX line.
    """
    with none_to_collect():
        return _ModuleParser(text, source).module()


class _ModuleParser:
    def __init__(self, text: str, source: str | None) -> None:
        tokens = tokenize(text)
        self.source = source
        self.files: dict[int, str] = {}
        self.version = self.target = ""
        for token in tokens:  # .file stands behind the code that refers to it
            if token.kind == "line":
                self._line(token)
        self.stream = Stream(text, tokens)
        self.locations = Locations()
        self.entries: dict[str, Entry] = {}
        self.variables: dict[str, Variable] = {}

    def module(self) -> Module:
        stream = self.stream
        while (token := stream.peek()) is not None:
            if token.kind == "line" or token.text in _LINKAGE:
                stream.next()
            elif token.text == ".entry":
                stream.next()
                entry = self._entry()
                self.entries[entry.name] = entry
            elif token.text == ".func":
                self._skip_function()
            elif token.text in _SPACES:
                stream.next()
                for variable in variables(stream, token.text[1:]):
                    self.variables[variable.name] = variable
            elif token.text == ".section":
                stream.next()
                while stream.next().text != "{":
                    pass
                self._skip_braces()
            elif token.text in (".pragma", ".alias"):
                while stream.next().text != ";":
                    pass
            else:
                raise ParseError(
                    f"{token.text!r} is not understood at module level (PTX line {token.line})",
                    ptx_line=token.line,
                )
        primary = min(self.files) if self.files else 1
        return Module(
            self.version, self.target, self.entries, self.variables, self.files, primary, self.source
        )

    def _line(self, token: Token) -> None:
        words = token.text.split(None, 2)
        if words[0] == ".file":
            name = words[2].strip()
            self.files[int(words[1])] = name.split('"')[1] if '"' in name else name
        elif words[0] == ".version":
            self.version = words[1]
        elif words[0] == ".target":
            self.target = " ".join(words[1:])
        elif words[0] == ".address_size" and words[1] != "64":
            raise ParseError(f".address_size {words[1]} is not supported: compile for 64-bit addresses")

    def _skip_braces(self) -> None:
        depth = 1
        while depth:
            text = self.stream.next().text
            depth += (text == "{") - (text == "}")

    def _skip_function(self) -> None:
        """Functions are never run (a ``call`` is refused), so that their bodies are not read."""
        while True:
            text = self.stream.next().text
            if text == ";":
                return None
            if text == "{":
                return self._skip_braces()

    def _entry(self) -> Entry:
        stream = self.stream
        name = stream.name()
        line = stream.line
        params: list[Param] = []
        if stream.accept("("):
            offset = 0
            while not stream.accept(")"):
                param = self._param(offset)
                params.append(param)
                offset = param.offset + param.size
                stream.accept(",")
        directives: dict[str, tuple[int, ...]] = {}
        if stream.accept(";"):
            raise ParseError(f"entry {name} is declared but has no body", ptx_line=line)
        while not stream.accept("{"):
            directive = stream.next()
            numbers: list[int] = []
            while (token := stream.peek()) is not None and token.kind == "number":
                numbers.append(int(stream.next().text))
                stream.accept(",")
            directives[directive.text.lstrip(".")] = tuple(numbers)
        body = BodyParser(stream, self.locations)
        body.read()
        return Entry(
            name,
            tuple(params),
            tuple(body.registers),
            tuple(body.variables),
            tuple(body.instructions),
            body.labels,
            directives,
            line,
        )

    def _param(self, offset: int) -> Param:
        stream = self.stream
        stream.expect(".param")
        align = 0
        kind: Type | None = None
        while (token := stream.peek()) is not None and token.text.startswith("."):
            word = stream.next().text
            if word == ".align":
                align = int(stream.next().text)
            elif word[1:] in TYPES:
                kind = TYPES[word[1:]]
            elif word not in (".ptr", ".global", ".shared", ".const", ".local"):
                raise ParseError(f"parameter attribute {word} is not understood", ptx_line=stream.line)
        name = stream.name()
        if kind is None:
            raise ParseError(f"parameter {name} has no type", ptx_line=stream.line)
        size = kind.nbytes * array_size(stream)
        align = max(align if size != kind.nbytes or kind.bits == 8 else 0, kind.nbytes)
        start = -(-offset // align) * align
        return Param(name, size, align, start)

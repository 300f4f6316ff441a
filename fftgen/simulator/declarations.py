"""Variable declarations with their initialisers (PTX ISA, "Variables")."""

from __future__ import annotations

import struct

from fftgen.simulator.faults import ParseError
from fftgen.simulator.stream import Stream
from fftgen.simulator.syntax import Variable
from fftgen.simulator.types import TYPES, Type


def array_size(stream: Stream) -> int:
    """The product of ``[n][m]...``; 1 without brackets, 0 for ``[]``."""
    size = 1
    while stream.accept("["):
        if stream.accept("]"):
            return 0
        size *= int(stream.next().text, 0)
        stream.expect("]")
    return size


def variables(stream: Stream, space: str) -> list[Variable]:
    """The variables of one declaration, behind the word of its state space, up to its semicolon."""
    found: list[Variable] = []
    align, vector = 0, 1
    kind: Type | None = None
    while (token := stream.peek()) is not None and token.text.startswith("."):
        word = stream.next().text
        if word == ".align":
            align = int(stream.next().text)
        elif word in (".v2", ".v4"):
            vector = int(word[2:])
        elif word == ".attribute":
            while stream.next().text != ")":
                pass
        elif word[1:] in TYPES:
            kind = TYPES[word[1:]]
        else:
            raise ParseError(f"variable attribute {word} is not understood", ptx_line=stream.line)
    if kind is None:
        raise ParseError(f"a .{space} variable has no type", ptx_line=stream.line)
    while True:
        name = stream.name()
        size = kind.nbytes * vector * array_size(stream)
        initial: bytes | None = None
        pointers: list[tuple[int, str, int]] = []
        if stream.accept("="):
            values = bytearray()
            _initializer(stream, kind, values, pointers)
            initial = bytes(values.ljust(size, b"\0"))
            size = max(size, len(initial))
        found.append(Variable(name, space, max(align, kind.nbytes * vector), size, initial, tuple(pointers)))
        if not stream.accept(","):
            break
    stream.expect(";")
    return found


def _initializer(stream: Stream, kind: Type, values: bytearray, pointers: list[tuple[int, str, int]]) -> None:
    if stream.accept("{"):
        while not stream.accept("}"):
            _initializer(stream, kind, values, pointers)
            stream.accept(",")
        return
    token = stream.peek()
    if token is not None and token.kind == "name":
        name = stream.name()
        if name == "generic":
            stream.expect("(")
            name = stream.name()
            stream.expect(")")
        offset = stream.integer() if stream.accept("+") else 0
        if kind.nbytes != 8:
            raise ParseError(f"the address of {name} does not fit in .{kind.name}", ptx_line=stream.line)
        pointers.append((len(values), name, offset))
        values += bytes(8)
        return
    negative = stream.accept("-")
    bits, width = stream.literal()
    if width:
        raw = bits.to_bytes(width // 8, "little")
        if width != kind.bits:
            number = struct.unpack("<f" if width == 32 else "<d", raw)[0]
            raw = struct.pack("<f" if kind.bits == 32 else "<d", -number if negative else number)
        elif negative:
            raw = struct.pack("<I" if width == 32 else "<Q", bits ^ (1 << (width - 1)))
        values += raw
    else:
        values += ((-bits if negative else bits) & ((1 << kind.bits) - 1)).to_bytes(kind.nbytes, "little")

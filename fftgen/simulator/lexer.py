"""PTX text to tokens (PTX ISA, "Lexical Conventions")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fftgen.simulator.faults import ParseError

_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<line>\.(?:loc|file|version|target|address_size)\b[^\n]*)
    | (?P<string>"[^"\n]*")
    | (?P<number>0[fF][0-9a-fA-F]{8}(?!\w)|0[dD][0-9a-fA-F]{16}(?!\w)|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
        |\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+U?)
    | (?P<name>[%$_a-zA-Z.][\w$.%]*(?:::[A-Za-z_0-9][\w.]*)*)
    | (?P<punct>[{}()\[\],;:<>=+\-*/~!@|&^])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """``kind`` is line, string, number, name or punct; ``start`` and ``end`` are offsets into the text."""

    kind: str
    text: str
    line: int
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """All tokens of a PTX text. Raises ParseError at the first character that begins none."""
    tokens: list[Token] = []
    position, line = 0, 1
    size = len(text)
    while position < size:
        match = _TOKEN.match(text, position)
        if match is None:
            if text[position] == "\0":
                break
            raise ParseError(f"unexpected character {text[position]!r} in PTX line {line}", ptx_line=line)
        kind = str(match.lastgroup)
        if kind == "name" and match.group().startswith(".") and match.group().count(".") > 1:
            place = position  # directives written together, as in ".reg.b32"
            for word in match.group()[1:].split("."):
                tokens.append(Token(kind, f".{word}", line, place, place + len(word) + 1))
                place += len(word) + 1
        elif kind != "skip":
            tokens.append(Token(kind, match.group(), line, position, match.end()))
        line += text.count("\n", position, match.end())
        position = match.end()
    return tokens

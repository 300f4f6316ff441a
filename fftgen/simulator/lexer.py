"""PTX text to tokens (PTX ISA, "Lexical Conventions")."""

from __future__ import annotations

import re
from typing import NamedTuple

from fftgen.simulator.faults import ParseError

# Frequent ones first, but for what another would take for its own: a comment's slash, the name of a line.
_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<line>\.(?:loc|file|version|target|address_size)\b[^\n]*)
    | (?P<name>[%$_a-zA-Z.][\w$.%]*(?:::[A-Za-z_0-9][\w.]*)*)
    | (?P<number>0[fF][0-9a-fA-F]{8}(?!\w)|0[dD][0-9a-fA-F]{16}(?!\w)|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
        |\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+U?)
    | (?P<punct>[{}()\[\],;:<>=+\-*/~!@|&^])
    | (?P<string>"[^"\n]*")
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
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
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if start != position:  # a character was passed over
            break
        position = end
        kind, word = str(match.lastgroup), match.group()
        if kind == "skip":
            line += word.count("\n")
        elif kind == "name" and word[0] == "." and word.count(".") > 1:
            place = start  # directives written together, as in ".reg.b32"
            for part in word[1:].split("."):
                tokens.append(Token(kind, f".{part}", line, place, place + len(part) + 1))
                place += len(part) + 1
        else:
            tokens.append(Token(kind, word, line, start, end))
    if position < len(text) and text[position] != "\0":
        raise ParseError(f"unexpected character {text[position]!r} in PTX line {line}", ptx_line=line)
    return tokens

"""A cursor over tokens with the few moves that the parsers need."""

from __future__ import annotations

import struct

from fftgen.simulator.faults import ParseError
from fftgen.simulator.lexer import Token


class Stream:
    """Tokens with one place in them."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.place = 0

    @property
    def line(self) -> int:
        """Line of the token read last."""
        return self.tokens[max(self.place - 1, 0)].line

    def peek(self, ahead: int = 0) -> Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def next(self) -> Token:
        if self.place >= len(self.tokens):
            raise ParseError("the PTX ends in the middle of a statement", ptx_line=self.line)
        self.place += 1
        return self.tokens[self.place - 1]

    def accept(self, text: str) -> bool:
        place = self.place  # most of what a parser does: no further calls
        if place >= len(self.tokens) or self.tokens[place].text != text:
            return False
        self.place = place + 1
        return True

    def expect(self, text: str) -> None:
        token = self.next()
        if token.text != text:
            raise ParseError(
                f"expected {text!r}, found {token.text!r} (PTX line {token.line})", ptx_line=token.line
            )

    def name(self) -> str:
        token = self.next()
        if token.kind != "name":
            raise ParseError(
                f"expected a name, found {token.text!r} (PTX line {token.line})", ptx_line=token.line
            )
        return token.text

    def literal(self) -> tuple[int, int]:
        """(value, 0) of an integer literal, (bits, 32 or 64) of a floating-point one."""
        token = self.next()
        text = token.text
        if token.kind != "number":
            raise ParseError(
                f"expected a number, found {text!r} (PTX line {token.line})", ptx_line=token.line
            )
        if text[:2] in ("0f", "0F"):
            return int(text[2:], 16), 32
        if text[:2] in ("0d", "0D"):
            return int(text[2:], 16), 64
        if text[:2] in ("0x", "0X", "0b", "0B"):
            return int(text.rstrip("U"), 0), 0
        if "." in text or "e" in text or "E" in text:
            return struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64
        text = text.rstrip("U")
        return int(text, 8 if len(text) > 1 and text[0] == "0" else 10), 0

    def integer(self) -> int:
        """An integer literal with an optional sign."""
        sign = -1 if self.accept("-") else 1
        value, width = self.literal()
        if width:
            raise ParseError("an integer is needed here, not a floating-point number", ptx_line=self.line)
        return sign * value

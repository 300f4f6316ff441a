"""A rendered kernel source: what the renderer hands to the compiler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fftgen.errors import InternalError


def digest_of(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names below ``root`` and contents of files, in any order: ties what was made to them."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Source:
    """One translation unit.

    ``name`` is the file name that messages and line information show (no directory).
    ``headers`` maps the name in an ``#include`` to the text, so that nothing is read from disk.
    ``entries`` are the ``extern "C"`` kernels that the text defines; the compiler checks that they came out.
    """

    name: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or "\0" in self.name:
            raise InternalError(f"a source needs a plain file name, got {self.name!r}")
        for where, text in {self.name: self.text, **self.headers}.items():
            if "\0" in text:
                raise InternalError(f"{where} holds a NUL character: the compiler would stop reading there")
        object.__setattr__(self, "headers", MappingProxyType(dict(sorted(self.headers.items()))))
        object.__setattr__(self, "entries", tuple(self.entries))

    def __reduce__(self) -> tuple[type[Source], tuple[str, str, dict[str, str], tuple[str, ...]]]:
        """Pickle and copy by value (a mapping proxy does neither): worker processes take sources."""
        return type(self), (self.name, self.text, dict(self.headers), self.entries)

    def file(self, name: str) -> str | None:
        """The text behind a file name as the compiler prints it, or None."""
        if name == self.name:
            return self.text
        if name in self.headers:
            return self.headers[name]
        found = [text for header, text in self.headers.items() if name.endswith("/" + header)]
        return found[0] if len(found) == 1 else None

"""From a plan to its cache entry and its tables without rendering and evaluating them again.

A note in the cache for each plan: the digest of the entry that its source had as key, and its table block.
It is found by all that these were made of: the plan, the files of this package that make source, key and
tables of it, the compiler and its headers. Without a whole note, or without the entry, everything is made
as ever.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from pathlib import Path

from fftgen import nvrtc
from fftgen.cache import Cache, Entry
from fftgen.planner.gradient import Gradient
from fftgen.planner.plan import Plan

_PACKAGE = Path(__file__).parent
_FILES = ("*.py", "planner/*.py", "templates/*.j2", "templates/device/*.cuh")
_HEAD = struct.Struct("<64s")  # the entry's digest; tables follow


@lru_cache(maxsize=1)
def package() -> str:
    """SHA-256 over names and contents of the files that a plan's source, key and tables come from."""
    total = hashlib.sha256()
    for pattern in _FILES:
        for path in sorted(_PACKAGE.glob(pattern)):
            raw = path.read_bytes()
            total.update(f"{path.relative_to(_PACKAGE)} {len(raw)}\n".encode() + raw)
    return total.hexdigest()


def _digest(subject: Plan | Gradient) -> str:
    parts = (type(subject).__name__, subject.digest, package(), nvrtc.build(), nvrtc.headers().digest())
    return hashlib.sha256("\n".join(("fftgen shortcut 1", *parts)).encode()).hexdigest()


def find(store: Cache, subject: Plan | Gradient) -> tuple[Entry, bytes] | None:
    """Entry and table block of a plan or of a gradient's plan; None: not known, or not there any more."""
    note = store.note(_digest(subject))
    plan = subject.plan if isinstance(subject, Gradient) else subject
    if note is None or len(note) != _HEAD.size + plan.table_bytes:
        return None
    (digest,) = _HEAD.unpack_from(note)
    entry = store.entry(digest.decode("latin-1"))
    return None if entry is None else (entry, note[_HEAD.size :])


def keep(store: Cache, subject: Plan | Gradient, entry: str, tables: bytes) -> None:
    """Note which entry (the digest of its key) and which tables are the subject's."""
    store.keep_note(_digest(subject), _HEAD.pack(entry.encode()) + tables)

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
from fftgen.source import digest_of

_PACKAGE = Path(__file__).parent
_FILES = ("*.py", "planner/*.py", "templates/*.j2", "templates/device/*.cuh")
_HEAD = struct.Struct("<64s")  # the entry's digest; tables follow


@lru_cache(maxsize=1)
def package() -> str:
    """SHA-256 over names and contents of the files that a plan's source, key and tables come from."""
    return digest_of((path for pattern in _FILES for path in _PACKAGE.glob(pattern)), _PACKAGE)


def digest(subject: Plan | Gradient) -> str:
    """What the note of a plan, or of a gradient, is found by."""
    parts = (type(subject).__name__, subject.digest, package(), nvrtc.build(), nvrtc.headers().digest())
    return hashlib.sha256("\n".join(("fftgen shortcut 1", *parts)).encode()).hexdigest()


def find(store: Cache, note: str, plan: Plan) -> tuple[Entry, bytes] | None:
    """Entry and table block that a note, by its digest, has of a plan; None: none, or its entry is gone."""
    found = store.note(note)
    if found is None or len(found) != _HEAD.size + plan.table_bytes:
        return None
    (key,) = _HEAD.unpack_from(found)
    entry = store.entry(key.decode("latin-1"))
    return None if entry is None else (entry, found[_HEAD.size :])


def keep(store: Cache, note: str, entry: str, tables: bytes) -> None:
    """Note which entry (the digest of its key) and which tables a plan has."""
    store.keep_note(note, _HEAD.pack(entry.encode()) + tables)

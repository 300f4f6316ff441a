"""From a problem to its plan, cache entry and tables without working them out again.

Notes in the cache. Of a problem: its plan, and those that were found faster on a GPU (bench/tune.py). Of a
plan: the digest of the entry that its source had as key, and its table block. Of a compiler's library: its
full release, which only a compile tells. A note is found by all that its content was made of: problem or
plan, the files of this package that make plan, source, key and tables of it, the compiler and its headers;
the library by its file. Without a whole note, or without the entry, everything is made as ever.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from pathlib import Path

from fftgen import nvrtc
from fftgen.cache import Cache, Entry
from fftgen.planner import gradient, search
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.source import digest_of
from fftgen.targets import Target

_PACKAGE = Path(__file__).parent
_FILES = ("*.py", "planner/*.py", "templates/*.j2", "templates/device/*.cuh")
_HEAD = struct.Struct("<64s")  # the entry's digest; tables follow


@lru_cache(maxsize=1)
def package() -> str:
    """SHA-256 over names and contents of the files that a plan's source, key and tables come from."""
    return digest_of((path for pattern in _FILES for path in _PACKAGE.glob(pattern)), _PACKAGE)


def plan(store: Cache, problem: Problem, chip: Target, engine: str | None = None, gpu: str = "") -> Plan:
    """``search.plan``, from a note where there is one; first that of GPUs of a name, where one is given."""
    if gpu and engine is None:
        tuned = store.note(_tuned(problem, chip, gpu))
        if tuned:
            return Plan.from_json(tuned.decode())
    note = _note("plan", repr(problem), repr(chip), repr(engine), package())
    found = store.note(note)
    if found is not None:
        return Plan.from_json(found.decode())
    made = search.plan(problem, chip, engine)
    store.keep_note(note, made.to_json().encode())
    return made


def backward(store: Cache, problem: Problem, chip: Target, gpu: str = "") -> Gradient | None:
    """``planner.gradient.backward``, or the layout that was found faster on GPUs of a name."""
    tuned = store.note(_tuned(problem, chip, gpu, backward=True)) if gpu else None
    return Gradient.from_json(tuned.decode()) if tuned else gradient.backward(problem, chip)


def keep_tuned(
    store: Cache,
    problem: Problem,
    chip: Target,
    gpu: str,
    found: Plan | Gradient | None,
    *,
    backward: bool = False,
) -> None:
    """Have ``plan``, or ``backward``, give this one for GPUs of a name; None: the planner's choice."""
    note = _tuned(problem, chip, gpu, backward=backward)
    store.keep_note(note, b"" if found is None else found.to_json().encode())


def _tuned(problem: Problem, chip: Target, gpu: str, *, backward: bool = False) -> str:
    return _note("tuned backward" if backward else "tuned", repr(problem), repr(chip), gpu, package())


def compiler(store: Cache) -> str:
    """``nvrtc.build()``, from a note where there is one and the compiler's library is a file."""
    library = nvrtc.library()
    if library is None:
        return nvrtc.build()
    facts = library.stat()
    note = _note("compiler", str(library), str(facts.st_size), str(facts.st_mtime_ns))
    found = store.note(note)
    if found is None:
        found = nvrtc.build().encode()
        store.keep_note(note, found)
    return found.decode()


def digest(store: Cache, subject: Plan | Gradient) -> str:
    """What the note of a plan, or of a gradient, is found by."""
    parts = type(subject).__name__, subject.digest, package(), compiler(store), nvrtc.headers().digest()
    return _note("kernels", *parts)


def _note(kind: str, *parts: str) -> str:
    return hashlib.sha256("\n".join(("fftgen shortcut 2", kind, *parts)).encode()).hexdigest()


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

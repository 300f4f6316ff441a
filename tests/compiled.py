"""What NVRTC makes of kernels, compiled once in a session for all tests and workers of it.

For tests of what the kernels do. Those of the compiler and of the cache go their own ways.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fftgen import nvrtc
from fftgen.cache import Cache
from fftgen.cache_entry import Entry, Key
from fftgen.pipeline import Built
from fftgen.source import Source

directory: Path | None = None  # of this session's cache (conftest.py)


def cubin(source: Source, target: str) -> Entry:
    """Machine code and what it takes."""
    key = Key.of(source, target)
    return Cache(directory).get_or_build(key, lambda: Entry.of(source, nvrtc.compile_cubin(source, target)))


def line_ptx(source: Source, target: str) -> str:
    """PTX with line information, for the virtual architecture of a target."""
    virtual = target.replace("sm_", "compute_")
    key = replace(Key.of(source, virtual), options=nvrtc.options(virtual, line_info=True))

    def make() -> Entry:
        return Entry(source, virtual, b"", nvrtc.compile_ptx(source, virtual, line_info=True), {})

    return Cache(directory).get_or_build(key, make).ptx


def line_ptx_of(built: Built) -> str:
    """What ``emulate.line_ptx`` gives."""
    return line_ptx(built.source, built.plan.target)

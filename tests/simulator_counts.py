"""How the counter tests read a report: plain tuples of the numbers that were worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

from fftgen.simulator import Accesses, Report


def _accesses(report: Report, buffer: str, what: str) -> Accesses:
    counters = report.counters.buffers.get(buffer)
    if counters is None:
        return Accesses()
    return counters.loads if what == "load" else counters.stores


def device(report: Report, buffer: str, what: str) -> tuple[int, int, int]:
    """(bytes requested, 32-byte sectors, least possible sectors) of the "load"s or "store"s of a buffer."""
    found = _accesses(report, buffer, what)
    return found.bytes, found.units, found.least


def distinct(report: Report, buffer: str, what: str) -> int:
    """Different bytes of a buffer that were touched."""
    return _accesses(report, buffer, what).distinct


def shared(report: Report, what: str) -> tuple[int, int]:
    """(wavefronts, least possible) of the "load"s or "store"s of shared memory."""
    found = report.counters.shared_loads if what == "load" else report.counters.shared_stores
    return found.units, found.least


def tensor(report: Report) -> Mapping[str, int]:
    return report.counters.tensor


def barriers(report: Report) -> int:
    """Barriers that blocks completed."""
    return report.counters.block_barriers


def instructions(report: Report) -> Mapping[str, int]:
    return report.counters.instructions

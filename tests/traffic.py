"""Reading what the simulator counts of buffers in device memory."""

from __future__ import annotations

from fftgen.simulator import Counters


def moved(counters: Counters, kind: str, *buffers: str) -> int:
    """Bytes of all ``loads`` or ``stores`` of some buffers; of those that a kernel does not touch none."""
    there = (counters.buffers[b] for b in buffers if b in counters.buffers)
    return sum(int(getattr(x, kind).bytes) for x in there)

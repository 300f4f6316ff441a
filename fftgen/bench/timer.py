"""How long calls take: device events on a GPU, the host's clock without one, invented times in a dry run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], object]

# The spin kernel counts clock cycles. No GPU in the table of targets runs faster than this, so that the
# spin lasts at least as long as is asked for.
FASTEST_CLOCK = 3.0e9
LONGEST_SPIN = 0.2  # seconds: a contender whose host side is slower than this is timed with its gaps


class Timer(Protocol):
    """Times calls one by one. ``name`` goes into the results, ``real`` is False for invented times."""

    name: str
    real: bool

    def time(self, calls: Sequence[Call]) -> list[float]:
        """Run the calls in order; the seconds each took where the work is done."""


class CudaTimer:
    """CUDA events around every call, on the current stream.

    A spin kernel in front holds the device back until the host has queued all the calls: what is measured
    is the device's time, whatever the host's overhead is (that is a measurement of its own, overhead.py).
    """

    name = "CUDA events around each call, queued behind a spin kernel"
    real = True

    def __init__(self) -> None:
        self._queueing = 1e-3  # seconds that the host took to queue a call, at most so far

    def time(self, calls: Sequence[Call]) -> list[float]:
        cuda: Any = torch.cuda  # its events carry no annotations
        events = [cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        torch.cuda.synchronize()
        spin = min(LONGEST_SPIN, 1.5 * self._queueing * len(calls))
        cuda._sleep(int(spin * FASTEST_CLOCK))
        started = time.perf_counter()
        events[0].record()
        for call, event in zip(calls, events[1:], strict=True):
            call()
            event.record()
        queued = time.perf_counter() - started
        torch.cuda.synchronize()
        self._queueing = max(0.5 * self._queueing, min(queued / len(calls), LONGEST_SPIN))
        pairs = itertools.pairwise(events)
        return [first.elapsed_time(second) / 1e3 for first, second in pairs]


class HostTimer:
    """The host's monotonic clock: for work that runs on the CPU."""

    name = "host clock"
    real = True

    def time(self, calls: Sequence[Call]) -> list[float]:
        found = []
        for call in calls:
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
        return found


class FakeTimer:
    """Runs the calls and invents their times: 1.00, 1.01, 1.02 ms, and again.

    Nothing measured with it means anything; the results say so.
    """

    name = "invented times (dry run)"
    real = False

    def __init__(self, seconds: Sequence[float] = (1.00e-3, 1.01e-3, 1.02e-3)) -> None:
        self._seconds = itertools.cycle(seconds)

    def time(self, calls: Sequence[Call]) -> list[float]:
        found = []
        for call in calls:
            call()
            found.append(next(self._seconds))
        return found

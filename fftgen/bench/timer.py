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

    def mark(self) -> Any:
        """A point on the way of what is queued: all before it is done when the device passes it."""

    def between(self, first: Any, second: Any) -> float:
        """Seconds from one mark to a later one, when the device has passed both."""

    def hold(self, seconds: float) -> None:
        """Hold the device back for so long, as a rule, while the host queues what follows."""


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
        self.hold(1.5 * self._queueing * len(calls))
        started = time.perf_counter()
        events[0].record()
        for call, event in zip(calls, events[1:], strict=True):
            call()
            event.record()
        queued = time.perf_counter() - started
        torch.cuda.synchronize()
        self._queueing = max(0.5 * self._queueing, min(queued / len(calls), LONGEST_SPIN))
        return [self.between(first, second) for first, second in itertools.pairwise(events)]

    def mark(self) -> Any:
        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3

    def hold(self, seconds: float) -> None:
        cuda: Any = torch.cuda
        cuda._sleep(int(min(seconds, LONGEST_SPIN) * FASTEST_CLOCK))


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

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, second: float) -> float:
        return second - first

    def hold(self, seconds: float) -> None:
        """Calls are done when they return."""


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

    def mark(self) -> None:
        """Nothing to remember."""

    def between(self, first: None, second: None) -> float:
        return next(self._seconds)

    def hold(self, seconds: float) -> None:
        """Nothing to hold."""

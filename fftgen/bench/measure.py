"""Timing several contenders against each other, and the copy bandwidth of the device they run on."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from fftgen.bench.backend import Backend
from fftgen.bench.timer import Timer

PASSES = 2  # two runs of the same code: what they differ by is what a difference must exceed
FEWEST, MOST = 5, 60  # samples of a contender in a pass
LEAST = 3  # of one with slow calls: as few as have a median
PATIENCE = 3.0  # seconds: of a slow contender no more is sampled, or put around its samples, than fits
BURST = 0.04  # seconds of one contender before the next one has its turn
WARM_UP = 3
CROWD = 8  # calls, at least, that are queued before a result is judged under load

Result = TypeVar("Result")
Calls = Sequence[Callable[[], object]]
Around = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Timing:
    """Samples of all passes in seconds: median, quartiles, smallest; and the median of each pass."""

    median: float
    low: float
    high: float
    smallest: float
    passes: tuple[float, ...]
    samples: int

    @classmethod
    def of(cls, passes: Sequence[Sequence[float]]) -> Timing:
        """From the samples of each pass; every pass has at least one."""
        every = sorted(s for samples in passes for s in samples)
        low, _, high = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else 3 * every
        medians = tuple(statistics.median(samples) for samples in passes)
        return cls(statistics.median(every), low, high, every[0], medians, len(every))

    @property
    def spread(self) -> float:
        """Relative difference of the passes: smaller differences between contenders are noise."""
        return (max(self.passes) - min(self.passes)) / self.median

    def as_dict(self) -> dict[str, Any]:
        return {
            "median_s": digits(self.median),
            "low_s": digits(self.low),
            "high_s": digits(self.high),
            "smallest_s": digits(self.smallest),
            "passes_s": [digits(p) for p in self.passes],
            "spread": digits(self.spread),
            "samples": self.samples,
        }


def digits(value: float) -> float:
    """What of a measured value is worth writing down."""
    return float(f"{value:.5g}")


class _Rotation:
    """Calls on one set of inputs after the other, whose results go into ``kept``.

    A result that is freed at once gives its memory to the next one, which would then overwrite lines that
    are still in the L2: those writes would be free. So the last ones stay alive, as many as there are sets:
    what is read and written meanwhile is more than the L2 holds. All contenders share ``kept``, since a
    block of memory is as old by whichever of them it was written; with a queue of its own for each, a
    device would hold the results of all at once.
    """

    def __init__(self, calls: Calls, kept: deque[object]) -> None:
        self._calls = calls
        self._next = 0
        self._kept = kept

    def __call__(self) -> None:
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        self._kept.append(call())

    @property
    def sets(self) -> int:
        """How many sets of inputs it goes round."""
        return len(self._calls)


def warm_up(timer: Timer, rotation: _Rotation, tell: Callable[[], None] = lambda: None) -> float:
    """Make calls until what happens once has happened; the seconds of one call afterwards.

    Slow ones are two, where the rest would take longer than PATIENCE. ``tell`` is called before each part:
    whoever waits for news waits for a slow call, not for all.
    """
    for _ in range(2):
        tell()
        (once,) = timer.time([rotation])
    more = max(WARM_UP, rotation.sets) - 2
    if once * (more + WARM_UP) > PATIENCE:
        return once
    tell()
    return statistics.median(timer.time([rotation] * (more + WARM_UP))[-WARM_UP:])


def samples(once: float, seconds: float) -> int:
    """Samples of a pass for a contender with calls of ``once`` seconds: what ``seconds`` hold, in bounds."""
    fewest = max(LEAST, min(FEWEST, int(PATIENCE / PASSES / once)))
    return max(fewest, min(MOST, int(seconds / PASSES / once)))


def under_load(calls: Sequence[Callable[[], Result]], once: float = 0.0) -> Result:
    """What the first call gives as the last of many, on all sets of inputs, that the device gets at once.

    Blocks of one are then still at work when the next one starts, and memory holds what others left there.
    ``once``: seconds of a call; of slow ones there is one for each set.
    """
    crowd = CROWD if CROWD * once <= PATIENCE else len(calls)
    for _ in range(-(-crowd // len(calls)) - 1):
        for call in calls:
            call()
    for call in calls[1:]:
        call()
    return calls[0]()


@dataclass
class _Lane:
    """A contender on its way: what is wanted of it in a pass, and the samples of every pass."""

    rotation: _Rotation
    wanted: int
    burst: int
    passes: list[list[float]]
    around: Around | None
    kept: deque[object]

    @property
    def missing(self) -> int:
        return self.wanted - len(self.passes[-1])

    def turn(self, timer: Timer) -> None:
        """Take samples of this pass, as many as a turn has."""
        calls = [self.rotation] * min(self.missing, self.burst)
        if self.around is None:
            self.passes[-1] += timer.time(calls)
            return
        with self.around():
            # What stands around the calls moved the allocator's blocks: the first call finds them again.
            timer.time([self.rotation])
            self.passes[-1] += timer.time(calls)
            self.kept.clear()


def interleave(
    timer: Timer,
    contenders: Mapping[str, Calls],
    seconds: float,
    around: Mapping[str, Around] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Time contenders turn by turn, in two passes; about ``seconds`` of device time for each in all.

    Every turn starts with another contender, so that none always follows the same one. Returns the timings,
    and what was raised by those that broke while they were timed; these take no further turn.

    ``around`` names contenders whose turns happen inside a context, untimed, such as the graph of a forward
    pass: it stands for their own turns only, and so do their results, so that a device holds the memory of
    one contender and not of all. ``tell`` hears whose turn it is.
    """
    kept: deque[object] = deque(maxlen=max(map(len, contenders.values()), default=0))
    lanes: dict[str, _Lane] = {}
    broken: dict[str, Exception] = {}
    for name, calls in contenders.items():
        its_own = (around or {}).get(name)
        rotation = _Rotation(calls, kept)
        try:
            with its_own() if its_own else nullcontext():
                once = warm_up(timer, rotation, partial(tell, name))
                if its_own:
                    kept.clear()
        except Exception as error:
            broken[name] = _let_go(error, kept)
            continue
        wanted = samples(once, seconds)
        burst = max(1, min(wanted, int(BURST / once)))
        lanes[name] = _Lane(rotation, wanted, burst, [], its_own, kept)
    for _ in range(PASSES):
        for lane in lanes.values():
            lane.passes.append([])
        turn = 0
        while any(lane.missing > 0 for lane in lanes.values()):
            names = list(lanes)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                lane = lanes[name]
                if lane.missing <= 0:
                    continue
                tell(name)
                try:
                    lane.turn(timer)
                except Exception as error:
                    broken[name] = _let_go(error, kept)
                    del lanes[name]
            turn += 1
    return {name: Timing.of(lane.passes) for name, lane in lanes.items()}, broken


def _let_go(error: Exception, kept: deque[object]) -> Exception:
    """The error of a contender that broke, without the memory that it held: the others go on beside it.

    A traceback keeps the frames of the call, and so every tensor that the call had made.
    """
    kept.clear()
    return error.with_traceback(None)


def copy_bandwidth(backend: Backend, seconds: float = 0.5) -> dict[str, Any]:
    """Bytes per second of a large device-to-device copy, read and written bytes counted."""
    size = min(1 << 30, backend.free_bytes() // 8)
    size = max(size - size % 256, 256)
    pairs = [torch.empty(2, size, dtype=torch.uint8, device=backend.device) for _ in range(2)]
    for pair in pairs:
        pair.random_(0, 256)  # never measured on zeros

    def copy(pair: torch.Tensor) -> Callable[[], object]:
        return lambda: pair[1].copy_(pair[0])

    timings, broken = interleave(backend.timer, {"copy": [copy(p) for p in pairs]}, seconds)
    if broken:
        raise broken["copy"]
    timing = timings["copy"]
    if not all(torch.equal(pair[0], pair[1]) for pair in pairs):
        raise RuntimeError("a copy did not copy: nothing measured on this device can be believed")
    rate = 2 * size / timing.median
    assert math.isfinite(rate)
    return {"bytes": 2 * size, "bytes_per_s": digits(rate), **timing.as_dict()}

"""Timers, the turns of contenders, rotation of buffers, spreads, and the copy bandwidth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bench_kit import Script, host

from fftgen.bench import measure, timer
from fftgen.bench.backend import HostBackend
from fftgen.bench.measure import FEWEST, LEAST, MOST, PASSES, Timing, copy_bandwidth, interleave
from fftgen.bench.timer import CudaTimer, FakeTimer, HostTimer, Timer


class FakeCuda:
    """What CudaTimer asks of torch.cuda, on a device whose clock the calls move by hand."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.log: list[str] = []
        self.spun: list[int] = []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outer = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                outer.log.append("record")
                self.at = outer.clock

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)  # milliseconds, as CUDA's

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: self.log.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "_sleep", self.spin, raising=False)

    def spin(self, cycles: int) -> None:
        self.log.append("spin")
        self.spun.append(cycles)
        self.clock += 7.0  # must not be counted


def test_cuda_events_stand_between_the_calls_and_behind_the_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.patch(monkeypatch)

    def call(seconds: float) -> Callable[[], None]:
        def run() -> None:
            cuda.log.append("call")
            cuda.clock += seconds

        return run

    found = CudaTimer().time([call(0.25), call(0.5), call(0.125)])
    assert found == [0.25, 0.5, 0.125]
    assert cuda.log == ["synchronize", "spin", "record", *3 * ["call", "record"], "synchronize"]


def test_the_spin_lasts_as_long_as_the_host_needs_to_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.patch(monkeypatch)
    slow = CudaTimer()
    slow.time([lambda: time.sleep(0.01)] * 3)
    slow.time([lambda: None] * 3)
    assert cuda.spun[1] >= 3 * 0.01 * timer.FASTEST_CLOCK
    for _ in range(12):
        slow.time([lambda: None] * 3)
    assert cuda.spun[-1] < cuda.spun[1] / 10  # a slow first call is forgotten
    slow.time([lambda: time.sleep(0.3)])
    slow.time([lambda: None] * 1000)
    assert cuda.spun[-1] == int(timer.LONGEST_SPIN * timer.FASTEST_CLOCK)


def test_the_host_timer_takes_real_time() -> None:
    short, long = HostTimer().time([lambda: None, lambda: time.sleep(0.02)])
    assert 0 <= short < 0.02 <= long < 5


def test_invented_times_are_said_to_be_invented() -> None:
    ran: list[int] = []
    fake = FakeTimer((1.0, 2.0))
    assert fake.time([lambda: ran.append(1)] * 3) == [1.0, 2.0, 1.0]
    assert fake.time([lambda: ran.append(1)]) == [2.0]
    assert len(ran) == 4
    assert not fake.real
    assert "invented" in fake.name
    assert CudaTimer.real
    assert HostTimer.real


def test_figures_of_a_sample() -> None:
    timing = Timing.of([[5.0, 1.0, 3.0], [4.0, 2.0, 9.0]])
    assert (timing.median, timing.smallest, timing.samples) == (3.5, 1.0, 6)
    assert (timing.low, timing.high) == (2.25, 4.75)
    assert timing.passes == (3.0, 4.0)
    assert timing.spread == pytest.approx(1 / 3.5)
    assert timing.as_dict()["spread"] == pytest.approx(1 / 3.5, rel=1e-4)
    assert Timing.of([[2.0]]).low == Timing.of([[2.0]]).high == 2.0


def lanes(script: Script, seconds: dict[str, float], log: list[str]) -> dict[str, list[Callable[[], Any]]]:
    """Contenders with two sets of inputs each."""

    def call(name: str, number: int) -> Callable[[], object]:
        def run() -> object:
            log.append(f"{name}{number}")
            script.seconds = seconds[name]
            return object()

        return run

    return {name: [call(name, 0), call(name, 1)] for name in seconds}


def test_contenders_take_turns_and_each_turn_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    script, log = Script(), []
    monkeypatch.setattr(measure, "WARM_UP", 2)
    found, broken = interleave(script, lanes(script, {"a": 0.04, "b": 0.02, "c": 0.01}, log), 0.8)
    assert not broken
    assert {name: t.median for name, t in found.items()} == {"a": 0.04, "b": 0.02, "c": 0.01}
    # In a pass 0.4 s for each: 10, 20 and 40 samples, in bursts of 40 ms: 1, 2 and 4 calls.
    assert {name: t.samples for name, t in found.items()} == {"a": 20, "b": 40, "c": 80}
    timed = log[3 * 4 :]
    assert "".join(
        name[0] for name in timed[: 3 * 7]
    ) == "a" + "bb" + "cccc" + "bb" + "cccc" + "a" + "cccc" + ("a" + "bb")
    for name in "abc":
        numbers = [int(entry[1]) for entry in timed if entry[0] == name]
        assert all(x != y for x, y in itertools.pairwise(numbers))  # never the same set twice


def test_it_is_told_whose_turn_it_is_before_the_turn() -> None:
    """Who hangs is known by what was said last."""
    log: list[str] = []
    calls: dict[str, Any] = {n: [lambda n=n: log.append(n)] for n in ("a", "b")}
    interleave(FakeTimer(), calls, 0.02, tell=lambda name: log.append(f"at {name}"))
    at = ""
    for said in log:
        at = said[3:] if said.startswith("at ") else at
        assert said in (at, f"at {at}")
    assert log[0] == "at a"


@pytest.mark.parametrize("sets", [1, 2, 5, 11])
def test_under_load_the_first_call_is_the_last_of_many(sets: int) -> None:
    log: list[int] = []

    def call(number: int) -> int:
        log.append(number)
        return number

    assert measure.under_load([lambda n=n: call(n) for n in range(sets)]) == 0  # type: ignore[misc]
    assert len(log) >= measure.CROWD
    assert set(log) == set(range(sets))
    assert log[-sets:] == [*range(1, sets), 0]


def test_fast_and_slow_contenders_get_bounded_numbers_of_samples() -> None:
    script = Script()
    times = {"slow": 100.0, "quite slow": 0.2, "fast": 1e-7}
    found, _ = interleave(script, lanes(script, times, []), 0.5)
    assert found["quite slow"].samples == PASSES * FEWEST
    assert found["slow"].samples == PASSES * LEAST
    assert found["fast"].samples == PASSES * MOST


def test_two_passes_are_kept_apart() -> None:
    script = Script()
    calls = 0

    def drift() -> None:
        nonlocal calls
        calls += 1
        script.seconds = 0.1 if calls <= 2 * measure.WARM_UP + FEWEST else 0.2

    found, _ = interleave(script, {"drifting": [drift]}, 0.1)
    assert found["drifting"].passes == (0.1, 0.2)
    assert found["drifting"].spread == pytest.approx(1 / 1.5)


def test_results_stay_alive_until_every_set_had_its_turn() -> None:
    """Else the allocator would hand the same block to every result, and the L2 would swallow the writes."""
    most = alive = 0

    class Result:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    interleave(FakeTimer(), {"one": [Result] * 3}, 0.02)
    assert most == 3 + 1  # three kept, and the one just made
    assert alive == 0


@pytest.mark.parametrize("breaks_at", [1, 8])
def test_one_that_breaks_takes_no_other_with_it(breaks_at: int) -> None:
    calls = 0

    def breaking() -> None:
        nonlocal calls
        calls += 1
        if calls >= breaks_at:
            raise ValueError("out of luck")

    found, broken = interleave(FakeTimer(), {"bad": [breaking], "good": [lambda: None]}, 0.05)
    assert list(found) == ["good"]
    assert found["good"].samples >= PASSES * FEWEST
    assert str(broken["bad"]) == "out of luck"
    assert calls == breaks_at


def test_bandwidth_counts_bytes_read_and_bytes_written() -> None:
    backend = HostBackend(FakeTimer((0.5,)), memory=1 << 20)
    found = copy_bandwidth(backend)
    assert found["bytes"] == 2 * (1 << 17)
    assert found["bytes_per_s"] == pytest.approx(2 * (1 << 17) / 0.5, rel=1e-4)


class Skipping:
    """A timer that runs nothing: as if the device had not copied."""

    name, real = "skipping", False

    def time(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        return [1e-3] * len(calls)


def test_a_copy_that_does_not_copy_is_noticed() -> None:
    idle: Timer = Skipping()
    with pytest.raises(RuntimeError, match="did not copy"):
        copy_bandwidth(HostBackend(idle))


def test_bandwidth_on_the_host_is_that_of_real_copies() -> None:
    found = copy_bandwidth(HostBackend(HostTimer(), memory=1 << 26), seconds=0.05)
    assert 1e8 < found["bytes_per_s"] < 1e13
    assert host().timer.real is False

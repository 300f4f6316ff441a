"""The watch of ``fftgen tune``: what is at work for too long is named, whatever else the machine does."""

from __future__ import annotations

import threading
import time

import pytest

from fftgen.bench.watch import Watch

LIMIT = 0.3  # seconds


def test_what_is_at_work_for_too_long_is_named_once() -> None:
    named: list[str] = []
    told = threading.Event()

    def end(what: str) -> None:
        named.append(what)
        told.set()

    with Watch(LIMIT, end) as watch:
        for what in ("one", "", "two"):
            watch.at(what)
        assert told.wait(60)
        time.sleep(1.5 * LIMIT)
    assert named == ["two"]


def test_what_goes_on_in_time_is_let_be() -> None:
    """For longer than the limit all together; and nothing is at work before and after, for as long.

    A watch may name a step that took too long because others had the processor: that is tried again.
    """
    for _ in range(10):
        named: list[str] = []
        began: list[float] = []
        with Watch(LIMIT, named.append) as watch:
            time.sleep(1.5 * LIMIT)
            for step in (*range(8), ""):
                began.append(time.monotonic())
                watch.at(str(step))
                time.sleep(LIMIT / 5)
            began.append(time.monotonic())
            time.sleep(1.5 * LIMIT)
        # From before a step to some time after the next one began: no wait for that was longer.
        if max(after - before for before, after in zip(began, began[2:], strict=False)) < LIMIT:
            break
    else:
        pytest.skip("no step got the processor in time")
    assert named == []


def test_without_a_limit_nothing_takes_too_long() -> None:
    named: list[str] = []
    with Watch(None, named.append) as watch:
        watch.at("one")
        time.sleep(LIMIT / 5)
    assert named == []

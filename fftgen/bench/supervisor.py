"""Runs steps in a worker process within a time budget; a step that hangs or crashes costs that step."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from fftgen import environment
from fftgen.bench.steps import OURS, Kernels, Step
from fftgen.bench.worker import DRY_RUN
from fftgen.errors import ToolchainError

START_LIMIT = 90.0  # seconds for a worker to import PyTorch and open the device
STOP_LIMIT = 5.0  # seconds for a worker that was killed to end
NOT_RUN, CRASHED, LOST = "not run", "crashed", "lost"
ATTEMPTS = 3  # at a row: the second without who took the worker down with it, the last with ours alone
LAST = "not asked: others lost the process, and the last attempt at the row was with ours alone"


@dataclass
class Outcome:
    """What came of a step.

    ``status``: "passed", "wrong", "failed", "unavailable", "not run"; "crashed", when the worker was lost
    (slow or hung included); or "lost", of a row, when it was to peers, every time: it says nothing of ours.
    """

    step: Step
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


class _Ended(NamedTuple):
    """What came of an attempt; where the worker was lost, who was at work, why it is, and whether it hung."""

    outcome: Outcome
    at: str = ""
    why: str = ""
    hung: bool = False


class Gone(Exception):
    """The worker ended without an answer; the message is the end of what it wrote to stderr."""


class Worker(Protocol):
    """A process that performs steps."""

    def send(self, step: Step) -> None:
        """Hand over a step. Raises Gone."""

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next message. Raises TimeoutError, or Gone."""

    def stop(self) -> str:
        """End the process, whatever it is doing. What there is to say of that: nothing, as a rule."""


class ProcessWorker:
    """``python -m fftgen.bench.worker``."""

    def __init__(self, dry_run: bool) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        command = [sys.executable, "-m", "fftgen.bench.worker", *([DRY_RUN] if dry_run else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment.of_python(),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def send(self, step: Step) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"kind": step.kind, "params": step.params}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise Gone(self._last_words()) from None

    def answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise Gone(self._last_words())
        message: dict[str, Any] = json.loads(line)
        return message

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit status {self._process.poll()}{': ' + lines[-1] if lines else ''}"

    def stop(self) -> str:
        # The worker leads a process group: what it started (sanitizer, fresh processes) ends with it.
        if hasattr(os, "killpg") and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it did not come as far as to make the group
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            # In an uninterruptible call of the driver. Its pipe is left as well: closing it would wait for
            # the thread that reads it.
            return f"its process {self._process.pid} does not end, and is left behind"
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._errors.close()
        return ""


class Supervisor:
    """Carries out steps one after the other.

    A worker that says nothing for its step's limit is ended. That it hangs is not known: it may be slow. A
    kernel of ours that does either would cost as much in every other step of its kind: once it has, rows of
    the same problem are without ours, and proofs of it do not run.

    ``budget``: seconds from ``started`` (a time of ``clock``) after which nothing runs any more; None: no
    limit. ``begin(step)`` hears what is about to run, ``done(outcomes)`` the outcomes so far, after every
    step.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        *,
        budget: float | None = None,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        begin: Callable[[Step], None] = lambda _: None,
        done: Callable[[list[Outcome]], None] = lambda _: None,
    ) -> None:
        self._start = start
        self._clock = clock
        self._begin, self._done = begin, done
        self._worker: Worker | None = None
        self._hung: dict[Kernels, str] = {}  # in which step
        self._end = math.inf if budget is None else (clock() if started is None else started) + budget

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._end - self._clock()

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Every step with what came of it, in order. Raises ToolchainError when no worker can start."""
        outcomes: list[Outcome] = []
        try:
            for step in steps:
                before = self._hung_before(step)
                if self.left() < step.expected:
                    outcomes.append(Outcome(step, NOT_RUN, reason="the time budget was used up"))
                elif before and step.kind != "row":
                    outcomes.append(Outcome(step, NOT_RUN, reason=_hung_in(before)))
                else:
                    self._begin(step)
                    outcomes.append(self._carry_out(step, first=not outcomes))
                self._done(outcomes)
        finally:
            stuck = self._drop()
            if stuck and outcomes:
                outcomes[-1].reason = (outcomes[-1].reason + stuck).removeprefix("; ")
        return outcomes

    def _carry_out(self, step: Step, first: bool) -> Outcome:
        """A step; a row again without the contenders that took the worker down with them."""
        begun = self._clock()
        before = self._hung_before(step)
        if step.kind == "row" and before:
            step = _without(step, OURS, _hung_in(before))
        for tries in range(ATTEMPTS - 1, -1, -1):
            ended = self._attempt(step, first)
            if ended.hung and (step.kind != "row" or ended.at in OURS) and step.kernels:
                self._hung[step.kernels[-1]] = step.name
            if ended.outcome.status != CRASHED or ended.at not in step.params.get("contenders", ()):
                break
            step = _without(step, (ended.at,), ended.why)
            if ended.hung and ended.at in OURS:
                # Ours share their kernels: the other one would take as long. Faults are quick, and tell more.
                step = _without(step, OURS, f"{ended.at}, which has the same kernels, was {ended.why}")
            if not tries or self.left() < step.expected:
                if not any(name in OURS for name in step.params["lost"]):
                    ended.outcome.status = LOST
                break
            if tries == 1:
                step = _ours_alone(step)
        ended.outcome.seconds = self._clock() - begun
        return ended.outcome

    def _hung_before(self, step: Step) -> str:
        """The step in which kernels hung, or were as slow, that this one runs; empty: none did."""
        return next((self._hung[k] for k in step.kernels if k in self._hung), "")

    def _attempt(self, step: Step, first: bool) -> _Ended:
        """A step in the worker, until that has been silent for the step's limit, or the budget is used up."""
        at, heard = "", self._clock()
        try:
            worker = self._ready(first)
            heard = self._clock()
            worker.send(step)
            while True:
                message = worker.answer(min(heard + step.limit, self._end) - self._clock())
                heard = self._clock()
                if "at" in message:
                    at = message["at"]
                elif "lost" in message:
                    return self._lost(step, message["lost"] or at, message["reason"])
                else:
                    result = message["result"]
                    return _Ended(Outcome(step, result["status"], result, result.get("reason", "")), at)
        except TimeoutError:
            if self.left() <= 0 or self._end <= heard + step.limit:
                stuck = self._drop()
                reason = f"the time budget was used up before it was done{_who(at)}{stuck}"
                return _Ended(Outcome(step, NOT_RUN, reason=reason))
            return self._lost(step, at, f"slow or hung: not done after {step.limit:.0f} s", hung=True)
        except Gone as last:
            return self._lost(step, at, f"the process ended: {last}")

    def _lost(self, step: Step, at: str, why: str, hung: bool = False) -> _Ended:
        """The end of a worker that does not answer any more."""
        stuck = self._drop()
        return _Ended(Outcome(step, CRASHED, reason=f"{why}{_who(at)}{stuck}"), at, why, hung)

    def _ready(self, first: bool) -> Worker:
        """The worker, started if there is none. Raises ToolchainError when the very first cannot be had."""
        if self._worker is None:
            self._worker = self._start()
            try:
                message = self._worker.answer(min(START_LIMIT, self.left()))
            except TimeoutError:
                if self.left() <= 0:
                    raise
                message = {"error": f"the device did not open within {START_LIMIT:.0f} s"}
            if "error" in message:
                self._drop()
                if first:
                    raise ToolchainError(message["error"])
                raise Gone(message["error"])
        return self._worker

    def _drop(self) -> str:
        """End the worker, if there is one; what is to be added to a reason: nothing, as a rule."""
        stuck = "" if self._worker is None else self._worker.stop()
        self._worker = None
        return f"; {stuck}" if stuck else ""


def _without(step: Step, names: Sequence[str], why: str) -> Step:
    """A row in which more contenders are lost than before."""
    before = step.params.get("lost", {})
    more = {name: why for name in names if name in step.params["contenders"] and name not in before}
    return replace(step, params={**step.params, "lost": {**before, **more}})


def _ours_alone(step: Step) -> Step:
    """A row that asks no peers any more: others are measured where there is nothing of ours to be."""
    names, lost = step.params["contenders"], step.params["lost"]
    if not any(name in OURS and name not in lost for name in names):
        return step
    left_out = {name: LAST for name in names if name not in OURS and name not in lost}
    params = {
        **step.params,
        "contenders": [name for name in names if name not in left_out],
        "left_out": {**step.params.get("left_out", {}), **left_out},
    }
    return replace(step, params=params)


def _hung_in(step: str) -> str:
    return f"its kernels were slow or hung before: {step}"


def _who(at: str) -> str:
    return f" (at work: {at})" if at else ""


def start_process(dry_run: bool) -> Callable[[], Worker]:
    """What ``Supervisor`` needs to start workers."""
    return lambda: ProcessWorker(dry_run)

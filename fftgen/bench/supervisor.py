"""Runs steps in a worker process within a time budget; a step that hangs or crashes costs that step."""

from __future__ import annotations

import contextlib
import json
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
NOT_RUN = "not run"
CRASHED = "crashed"
ATTEMPTS = 3  # at a row, each without those who took the worker down with them


@dataclass
class Outcome:
    """What came of a step.

    ``status``: "passed", "wrong", "failed", "unavailable", "crashed" (hung included) or "not run".
    """

    step: Step
    status: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


class _Ended(NamedTuple):
    """What came of an attempt; who was at work when the worker was lost, and whether it hung."""

    outcome: Outcome
    at: str = ""
    hung: bool = False


class Gone(Exception):
    """The worker ended without an answer; the message is the end of what it wrote to stderr."""


class Worker(Protocol):
    """A process that performs steps."""

    def send(self, step: Step) -> None:
        """Hand over a step. Raises Gone."""

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next message. Raises TimeoutError, or Gone."""

    def stop(self) -> None:
        """End the process, whatever it is doing."""


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

    def stop(self) -> None:
        # The worker leads a process group: what it started (sanitizer, fresh processes) ends with it.
        if hasattr(os, "killpg") and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it did not come as far as to make the group
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._errors.close()


class Supervisor:
    """Carries out steps one after the other.

    A kernel that hangs costs its step's limit, and most of its kind would in every other step: once it has,
    rows of the same problem are without ours, and proofs of it do not run.

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
        self._end = None if budget is None else (clock() if started is None else started) + budget

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return float("inf") if self._end is None else self._end - self._clock()

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Every step with what came of it, in order. Raises ToolchainError when no worker can start."""
        outcomes: list[Outcome] = []
        try:
            for step in steps:
                before = self._hung_before(step)
                if self.left() < step.expected:
                    outcomes.append(Outcome(step, NOT_RUN, reason="the time budget was used up"))
                elif before and step.kind != "row":
                    outcomes.append(Outcome(step, NOT_RUN, reason=f"its kernels hung before: {before}"))
                else:
                    self._begin(step)
                    outcomes.append(self._carry_out(step, first=not outcomes))
                self._done(outcomes)
        finally:
            self._drop()
        return outcomes

    def _carry_out(self, step: Step, first: bool) -> Outcome:
        """A step; a row again without the contenders that took the worker down with them."""
        begun = self._clock()
        if step.kind == "row" and self._hung_before(step):
            step = _without(step, *OURS)
        for attempt in range(ATTEMPTS):
            ended = self._attempt(step, first)
            if ended.hung and (step.kind != "row" or ended.at in OURS) and step.kernels:
                self._hung[step.kernels[-1]] = step.name
            if ended.outcome.status != CRASHED or step.kind != "row" or self.left() < step.expected:
                break
            if ended.at not in step.params["contenders"] or attempt == ATTEMPTS - 1:
                break
            # Ours share their kernels: the other one would hang as long. Faults are quick, and tell more.
            step = _without(step, *(OURS if ended.hung and ended.at in OURS else (ended.at,)))
        ended.outcome.seconds = self._clock() - begun
        return ended.outcome

    def _hung_before(self, step: Step) -> str:
        """The step in which kernels hung that this one runs; empty: none did."""
        return next((self._hung[k] for k in step.kernels if k in self._hung), "")

    def _attempt(self, step: Step, first: bool) -> _Ended:
        """A step in the worker, until its limit."""
        at = ""
        limit = step.limit
        try:
            worker = self._ready(first)
            limit = min(step.limit, self.left())
            begun = self._clock()
            worker.send(step)
            while True:
                message = worker.answer(limit - (self._clock() - begun))
                if "at" in message:
                    at = message["at"]
                elif "lost" in message:
                    self._drop()
                    crashed = Outcome(step, CRASHED, reason=message["reason"])
                    return _Ended(crashed, message["lost"] or at)
                else:
                    result = message["result"]
                    return _Ended(Outcome(step, result["status"], result, result.get("reason", "")), at)
        except TimeoutError:
            self._drop()
            if limit < step.limit or self.left() <= 0:
                reason = f"the time budget was used up before it was done{_who(at)}"
                return _Ended(Outcome(step, NOT_RUN, reason=reason))
            reason = f"not done after {limit:.0f} s{_who(at)}"
            return _Ended(Outcome(step, CRASHED, reason=reason), at, hung=True)
        except Gone as last:
            self._drop()
            return _Ended(Outcome(step, CRASHED, reason=f"the process ended{_who(at)}: {last}"), at)

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

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def _without(step: Step, *names: str) -> Step:
    """A row that leaves out more contenders than before."""
    lost = [*step.params.get("lost", ()), *(n for n in names if n in step.params["contenders"])]
    return replace(step, params={**step.params, "lost": list(dict.fromkeys(lost))})


def _who(at: str) -> str:
    return f" (at work: {at})" if at else ""


def start_process(dry_run: bool) -> Callable[[], Worker]:
    """What ``Supervisor`` needs to start workers."""
    return lambda: ProcessWorker(dry_run)

"""Steps within a budget: workers that crash, hang or lose the device cost one step each."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_kit import case, host
from cases import slow

import fftgen
from fftgen.bench import steps, supervisor
from fftgen.bench.row import REFERENCE, DeviceLost
from fftgen.bench.steps import Step, environment_step, row_steps
from fftgen.bench.supervisor import Gone, Outcome, ProcessWorker, Supervisor, start_process
from fftgen.bench.worker import perform, serve
from fftgen.errors import ToolchainError

PASSED = {"result": {"status": "passed"}}


class Time:
    """A clock that stands still until a worker moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Actor:
    """A worker that plays a script: per step a list of (seconds, message), or what to raise instead."""

    def __init__(self, clock: Time, script: Callable[[Step], list[tuple[float, Any]]]) -> None:
        self._clock, self._script = clock, script
        self._messages: list[tuple[float, Any]] = [(0.0, {"ready": True})]
        self.stopped = False
        self.stuck = ""  # what there is to say of an end that was none

    def send(self, step: Step) -> None:
        assert not self.stopped
        assert not self._messages, "the last step is not done"
        self._messages = list(self._script(step))

    def answer(self, timeout: float) -> dict[str, Any]:
        seconds, message = self._messages.pop(0)
        if seconds > timeout:
            self._clock.now += timeout
            raise TimeoutError
        self._clock.now += seconds
        if isinstance(message, Exception):
            raise message
        found: dict[str, Any] = message
        return found

    def stop(self) -> str:
        self.stopped = True
        return self.stuck


class Stage:
    """A supervisor with actors, and what was seen of it."""

    def __init__(
        self, script: Callable[[Step], list[tuple[float, Any]]], budget: float | None = None
    ) -> None:
        self.clock = Time()
        self.actors: list[Actor] = []
        self.begun: list[str] = []
        self.seen: list[int] = []
        self.script = script
        self.supervisor = Supervisor(
            self.start,
            budget=budget,
            clock=self.clock,
            begin=lambda step: self.begun.append(step.name),
            done=lambda outcomes: self.seen.append(len(outcomes)),
        )

    def start(self) -> Actor:
        self.actors.append(Actor(self.clock, self.script))
        return self.actors[-1]

    def run(self, found: list[Step]) -> list[Outcome]:
        return self.supervisor.run(found)


def step(name: str, expected: float = 1, limit: float = 60) -> Step:
    return Step("environment", name, {}, expected, limit)


def test_steps_run_in_order_in_one_worker() -> None:
    stage = Stage(lambda s: [(2.0, {"at": "x"}), (1.0, {"result": {"status": "passed", "name": s.name}})])
    found = stage.run([step("a"), step("b")])
    assert [(o.status, o.result["name"], o.seconds) for o in found] == [
        ("passed", "a", 3),
        ("passed", "b", 3),
    ]
    assert (stage.begun, stage.seen, len(stage.actors)) == (["a", "b"], [1, 2], 1)
    assert stage.actors[0].stopped


def test_what_a_step_says_of_itself_is_its_outcome() -> None:
    stage = Stage(lambda s: [(1.0, {"result": {"status": "wrong", "reason": "7 is not 8"}})])
    (found,) = stage.run([step("a")])
    assert (found.status, found.reason) == ("wrong", "7 is not 8")


def test_nothing_begins_that_would_not_end_in_time() -> None:
    stage = Stage(lambda s: [(30.0, PASSED)], budget=100)
    found = stage.run([step("a", 40), step("b", 40), step("long", 45), step("short", 35), step("c", 20)])
    assert [o.status for o in found] == ["passed", "passed", "not run", "passed", "not run"]
    assert stage.begun == ["a", "b", "short"]
    assert all("budget was used up" in o.reason for o in found if o.status == "not run")
    assert stage.seen == [1, 2, 3, 4, 5]  # the results file tells of those as well


def test_the_budget_ends_a_step_that_is_under_way() -> None:
    stage = Stage(lambda s: [(30.0, {"at": "torch-real"}), (60.0, PASSED)], budget=50)
    begun = stage.clock.now
    found = stage.run([step("a", 10, limit=200), step("b", 1)])
    assert [o.status for o in found] == ["not run", "not run"]
    assert found[0].reason == "the time budget was used up before it was done (at work: torch-real)"
    assert stage.clock.now - begun == 50
    assert stage.actors[0].stopped


def test_the_budget_counts_from_when_the_command_was_given() -> None:
    clock = Time()
    supervisor = Supervisor(
        lambda: Actor(clock, lambda s: [(1, PASSED)]), budget=20, started=985, clock=clock
    )
    assert supervisor.left() == 5
    assert [o.status for o in supervisor.run([step("a", 10), step("b", 4)])] == ["not run", "passed"]


def test_a_worker_that_is_slow_but_goes_on_is_waited_for() -> None:
    """The limit is one of silence: what a step takes in all depends on the machine."""
    said = [(50.0, {"at": str(part)}) for part in range(9)]
    stage = Stage(lambda s: [*said, (59.0, PASSED)])
    (found,) = stage.run([step("a", limit=60)])
    assert (found.status, found.seconds) == ("passed", 9 * 50 + 59)
    stage = Stage(lambda s: [*said, (61.0, PASSED)])
    (found,) = stage.run([step("a", limit=60)])
    assert (found.status, found.seconds) == ("crashed", 9 * 50 + 60)
    stage = Stage(lambda s: [*said, (59.0, PASSED)], budget=480)  # which news do not stretch
    (found,) = stage.run([step("a", limit=60)])
    assert (found.status, found.seconds) == ("not run", 480)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ((100.0, PASSED), r"^slow or hung: not done after 60 s \(at work: cudnn\)$"),
        (
            (1.0, Gone("exit status -11: Segmentation fault")),
            r"^the process ended: exit status -11: Segmentation fault \(at work: cudnn\)$",
        ),
        (
            (1.0, {"lost": "", "reason": "CUDA error: illegal address"}),
            r"illegal address \(at work: cudnn\)$",
        ),
    ],
)
def test_a_worker_that_is_lost_costs_its_step(end: tuple[float, Any], reason: str) -> None:
    stage = Stage(lambda s: [(1.0, {"at": "cudnn"}), end] if s.name == "bad" else [(1.0, PASSED)])
    found = stage.run([step("a"), step("bad"), step("b")])
    assert [o.status for o in found] == ["passed", "crashed", "passed"]
    assert re.search(reason, found[1].reason), found[1].reason
    assert [a.stopped for a in stage.actors] == [True, True]


def test_a_worker_that_does_not_end_is_told() -> None:
    stage = Stage(lambda s: [(100.0, PASSED)] if s.name == "hangs" else [(1.0, PASSED)])
    start = stage.start

    def stuck() -> Actor:
        actor = start()
        actor.stuck = f"process {len(stage.actors)} does not end"
        return actor

    stage.supervisor._start = stuck
    found = stage.run([step("a"), step("hangs"), step("b")])
    assert [o.status for o in found] == ["passed", "crashed", "passed"]
    assert found[1].reason == "slow or hung: not done after 60 s; process 1 does not end"
    assert found[2].reason == "process 2 does not end"  # the last one, when all is done


def test_without_a_device_nothing_runs() -> None:
    class Closed(Actor):
        def answer(self, timeout: float) -> dict[str, Any]:
            return {"error": "no GPU here"}

    clock = Time()
    supervisor = Supervisor(lambda: Closed(clock, lambda s: []), clock=clock)
    with pytest.raises(ToolchainError, match="no GPU here"):
        supervisor.run([step("a")])


def test_a_device_that_does_not_open_is_an_error_or_the_end_of_the_budget() -> None:
    clock = Time()

    class Slow(Actor):
        def answer(self, timeout: float) -> dict[str, Any]:
            self._clock.now += timeout
            raise TimeoutError

    def start() -> Actor:
        return Slow(clock, lambda s: [])

    with pytest.raises(ToolchainError, match="did not open within 90 s"):
        Supervisor(start, clock=clock).run([step("a")])
    found = Supervisor(start, clock=clock, budget=20).run([step("a"), step("b")])
    assert [o.status for o in found] == ["not run", "not run"]


def test_a_device_that_does_not_come_back_fails_step_by_step() -> None:
    clock, actors = Time(), []

    class Once(Actor):
        def answer(self, timeout: float) -> dict[str, Any]:
            if len(actors) > 1:
                return {"error": "the GPU has fallen off the bus"}
            return super().answer(timeout)

    def start() -> Actor:
        actors.append(Once(clock, lambda s: [(1.0, Gone("exit status 1"))]))
        return actors[-1]

    found = Supervisor(start, clock=clock).run([step("a"), step("b"), step("c")])
    assert [o.status for o in found] == ["crashed"] * 3
    assert "fallen off the bus" in found[2].reason


def rows(names: list[str]) -> list[Step]:
    return row_steps([case()], names, seed=1, seconds=0.1)


# The worker's side.


def test_a_worker_answers_every_request() -> None:
    requests = io.StringIO(
        json.dumps({"kind": "environment", "params": {}})
        + "\n"
        + json.dumps({"kind": "row", "params": rows(["fftgen"])[0].params})
        + "\n"
        + json.dumps({"kind": "row", "params": {}})
        + "\n"
    )
    answers = io.StringIO()
    assert serve(host(), requests, answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert said[0] == {"ready": True}
    assert said[1]["result"]["status"] == "passed"
    told = [m["at"] for m in said[2:-2]]
    assert told[:4] == [REFERENCE, "fftgen", "fftgen", "timing"]
    # Its turns: a kernel may hang in any of them; then a reference once more.
    assert set(told[4:-2]) == {"fftgen"}
    assert told[-2:] == [REFERENCE, "fftgen"]
    assert said[-2]["result"]["contenders"]["fftgen"]["status"] == "ok"
    assert said[-1]["result"]["status"] == "failed"
    assert "KeyError" in said[-1]["result"]["reason"]


def test_a_worker_that_lost_its_device_says_so_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: Any) -> dict[str, Any]:
        raise DeviceLost("peer", "CUDA error")

    monkeypatch.setitem(steps.RUNNERS, "environment", lose)
    answers = io.StringIO()
    requests = io.StringIO(2 * (json.dumps({"kind": "environment", "params": {}}) + "\n"))
    assert not serve(host(), requests, answers)
    last = json.loads(answers.getvalue().splitlines()[-1])
    assert last == {"lost": "peer", "reason": "CUDA error"}
    assert len(answers.getvalue().splitlines()) == 2


def test_an_error_that_comes_with_the_synchronisation_is_a_lost_device() -> None:
    """Errors inside kernels surface late."""
    backend = host()

    def gone() -> None:
        raise RuntimeError("CUDA error: misaligned address")

    backend.synchronize = gone  # type: ignore[method-assign]
    with pytest.raises(DeviceLost, match="misaligned address"):
        perform("environment", {}, backend, lambda who: None)


def test_a_worker_finds_the_package_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent found it in its working directory or by a relative path; it has moved since."""
    monkeypatch.setenv("PYTHONPATH", "relative")
    monkeypatch.chdir(tmp_path)
    right, given = subprocess.Popen, []

    def start(*arguments: Any, **options: Any) -> Any:
        given.append(options["env"]["PYTHONPATH"].split(os.pathsep))
        return right(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    worker = ProcessWorker(dry_run=True)
    try:
        assert worker.answer(60) == {"ready": True}
    finally:
        worker.stop()
    assert given == [[str(Path(fftgen.__file__).resolve().parents[1]), "relative"]]


# Real processes, with a peer that is made to fail.


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a flashfftconv whose call does something."""

    def install(body: str) -> None:
        package = tmp_path / "flashfftconv"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(
            "import os, sys, time, torch\n"
            "print('a library that prints')\n"
            "class FlashFFTConv(torch.nn.Module):\n"
            "    def __init__(self, size, dtype):\n        super().__init__()\n"
            "    def forward(self, u, k, *gates):\n" + textwrap.indent(body, "        ") + "\n"
        )
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    return install


def real(found: list[Step]) -> list[Outcome]:
    return Supervisor(start_process(dry_run=True)).run(found)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ("os.abort()", 60.0),
        *slow([("time.sleep(600)", 15.0), ("print('x' * 100000)\nos._exit(7)", 60.0)]),
    ],
)
def test_a_peer_that_kills_or_hangs_its_process_is_left_out(
    body: str, limit: float, peer: Callable[[str], None]
) -> None:
    peer(body)
    (step_of_row,) = rows(["fftgen", "flashfftconv"])
    step_of_row = Step(step_of_row.kind, step_of_row.name, step_of_row.params, 1, limit)
    first, second = real([environment_step(), step_of_row])
    assert first.status == "passed"
    assert second.status == "passed"
    found = second.result["contenders"]
    assert found["fftgen"]["status"] == "ok"
    assert found["flashfftconv"]["status"] == "lost"
    assert re.match("slow or hung|the process ended: exit status", found["flashfftconv"]["reason"])
    assert "median_s" not in found["flashfftconv"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look into")
def test_what_a_worker_started_ends_with_it(peer: Callable[[str], None], tmp_path: Path) -> None:
    peer(
        "import subprocess\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('started', flush=True)\n"
        "child.wait()"
    )
    worker = ProcessWorker(dry_run=True)
    assert worker.answer(60) == {"ready": True}
    worker.send(rows(["flashfftconv"])[0])
    assert [worker.answer(60)["at"] for _ in range(2)] == [REFERENCE, "flashfftconv"]
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    worker.stop()
    for _ in range(200):
        if gone(int(pid.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its worker")


def gone(pid: int) -> bool:
    """Ended, whether or not whoever inherited it has taken notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_process_that_ends_is_told_with_its_last_words(peer: Callable[[str], None]) -> None:
    peer("sys.stderr.write('the last words\\n')\nsys.stderr.flush()\nos._exit(7)")
    worker = ProcessWorker(dry_run=True)
    try:
        assert worker.answer(60) == {"ready": True}
        worker.send(rows(["flashfftconv"])[0])
        assert [worker.answer(60)["at"] for _ in range(2)] == [REFERENCE, "flashfftconv"]
        with pytest.raises(Gone, match="exit status 7: the last words"):
            worker.answer(60)
        with pytest.raises(Gone):
            worker.send(environment_step())
    finally:
        worker.stop()


def test_a_process_that_a_kill_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in an uninterruptible call of the driver: nobody waits for it, nor for the pipe it holds."""
    worker = ProcessWorker(dry_run=True)
    assert worker.answer(60) == {"ready": True}
    process = worker._process
    monkeypatch.setattr(supervisor, "STOP_LIMIT", 0.2)
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "killpg", lambda *_: None)
        deaf.setattr(process, "kill", lambda: None)
        begun = time.monotonic()
        said = worker.stop()
    try:
        assert time.monotonic() - begun < 5
        assert said == f"its process {process.pid} does not end, and is left behind"
        assert process.poll() is None
    finally:
        assert worker.stop() == ""
    assert process.poll() is not None

"""How long each kernel of a call takes by itself, beside what the cost model says of it.

Rows time whole calls, which do not tell what of a long transform its columns take, and what its rows. Here
every launch stands between two events: stage by stage and, where a call goes by one launch or its rows in
sections, that as well.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fftgen.accuracy import Accuracy
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.measure import digits
from fftgen.bench.reference import exact, figures, judge, poison
from fftgen.bench.row import OK, WRONG
from fftgen.bench.timer import Timer
from fftgen.bundle import in_sections
from fftgen.execute import Address, Executable, chip_of
from fftgen.launch import Launcher
from fftgen.loaded import Loaded, stream_of
from fftgen.pipeline import Built, build, build_plan
from fftgen.planner.cost import cost, filter_cost, in_one_launch
from fftgen.planner.launch import items_per_channel, together
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan as find_plan
from fftgen.planner.whole import Clusters
from fftgen.prepare import transform
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

ELEMENTS = 1 << 27  # of u at most: several chunks of the longest workspace, launches that a queue holds
ROUNDS = 9  # calls that are timed, after one that is not
STAGES, ONE, SECTIONS = "launch by launch", "one launch", "in sections"
TRANSFORM, FILTER = "transform", "filter"


@dataclass(frozen=True)
class Running:
    """A plan whose kernels can be launched: its tables, and where tensors are (execute.py)."""

    plan: Plan
    tables: Tensor
    launcher: Launcher
    address: Address = lambda _, x: x.data_ptr()


Run = Callable[[Problem, Backend], Running]


Times = dict[str, list[float]]  # of every launch, by entry
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Way(Protocol[Result_co]):
    """Calls that go one way. ``line``: what is told of their plan."""

    plan: Plan

    @property
    def line(self) -> str: ...

    def __call__(self, x: Inputs) -> tuple[Result_co, Times]:
        """The result, and the seconds of all launches by entry."""


class Silent:
    """A launcher that launches nothing: of a dry run."""

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        pass


class Watched:
    """Launches of another launcher, each between two marks on the device's way."""

    def __init__(self, launcher: Launcher, timer: Timer) -> None:
        self._launcher = launcher
        self._timer = timer
        self._seen: list[tuple[str, Any, Any]] = []

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        before = self._timer.mark()
        self._launcher.launch(entry, grid, block, shared_bytes, params, cluster)
        self._seen.append((entry, before, self._timer.mark()))

    def seconds(self) -> Times:
        """Those of every launch, by entry, once the device is done."""
        found: Times = {}
        for entry, before, after in self._seen:
            found.setdefault(entry, []).append(self._timer.between(before, after))
        return found


class Queue:
    """The device's, held back until the host has queued all launches of a call, lest gaps count."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._queueing = 0.0  # seconds that the host took for the call before

    @contextmanager
    def watched(self, launcher: Launcher) -> Iterator[Watched]:
        """A call's launches, watched: all over when this ends."""
        self._backend.synchronize()
        self._backend.timer.hold(1.5 * self._queueing)
        started = time.perf_counter()
        yield Watched(launcher, self._backend.timer)
        self._queueing = time.perf_counter() - started
        self._backend.synchronize()


def kernel_times(
    case: Case,
    backend: Backend,
    *,
    seed: int,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda _: None,
    run: Run | None = None,
) -> dict[str, Any]:
    """Time every kernel of a forward case, on at most ELEMENTS numbers: plain data.

    Of each way a call can go its result is judged first. ``each_s`` are seconds of a transform, of a filter's
    kernels of a filter: the median over the rounds of what all launches of a kernel take, which ``launches``
    counts. ``predicted_s`` is the same by the cost model, on a full chip (which few filters do not fill).
    ``run`` finds the kernels: those of the device, in a dry run none.
    """
    scaled = short_enough(case, backend)
    running = (run or (_on_device if backend.kernels else _nowhere))(case.problem, backend)
    plan = running.plan
    sets = draw_sets(scaled, backend.device, seed, backend.l2_bytes)
    judged = backend.kernels or run is not None
    reference = exact(scaled, sets[0]) if judged else None
    ways: dict[str, Way[Tensor]] = {STAGES: _Way(running, backend, lambda *_: None)}
    if together(plan, scaled.batch, scaled.channels, chip_of(plan.target, backend.device)):
        ways[ONE] = _Way(running, backend, together)
    cut = in_sections(case.problem, find_target(backend.target))
    if cut is not None and run is None:
        ways[SECTIONS] = _Way(
            _of_sections(cut, backend), backend, together if cut.spread else lambda *_: None
        )

    def verdict(one: Way[Tensor], y: Tensor) -> Accuracy | None:
        return None if reference is None else judge(scaled, y, reference, one.plan)

    def told(name: str, one: Way[Tensor], times: Sequence[Times]) -> list[dict[str, Any]]:
        return _told(one.plan, scaled, times, name)

    found = timed(ways, sets, rounds, verdict, told, tell)
    transforms = items_per_channel(plan, scaled.batch) * scaled.channels
    return about(case, scaled, str(plan), transforms, found, "the result is not the convolution")


def short_enough(case: Case, backend: Backend) -> Case:
    """The case on as many rows as memory and a queue of launches hold."""
    scaled = case.scaled(backend.free_bytes())
    while scaled.elements > ELEMENTS and scaled.channels > 1:
        scaled = replace(scaled, channels=scaled.channels // 2)
    while scaled.elements > ELEMENTS and scaled.batch > 2:
        scaled = replace(scaled, batch=scaled.batch // 2)
    return scaled


def timed(
    ways: Mapping[str, Way[Result]],
    sets: Sequence[Inputs],
    rounds: int,
    judge: Callable[[Way[Result], Result], Accuracy | None],
    told: Callable[[str, Way[Result], Sequence[Times]], list[dict[str, Any]]],
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Of each way that calls can go, the kernels: its first result judged (None: not), then timed."""
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for name, one in ways.items():
            tell(name)
            poison(sets[0].u)
            result, _ = one(sets[0])
            way: dict[str, Any] = {"way": name, "plan": one.line}
            verdict = judge(one, result)
            if verdict is not None:
                way |= {"status": OK if verdict.passed else WRONG, **figures(verdict)}
            kept = deque([result], maxlen=len(sets))  # one that is freed would find its lines in the L2 again
            times = []
            for i in range(rounds):
                tell(name)  # a slow call is waited for, not all of them together
                result, seconds = one(sets[(i + 1) % len(sets)])
                kept.append(result)
                times.append(seconds)
            found.append({**way, "kernels": told(name, one, times)})
    return found


def about(
    case: Case, scaled: Case, line: str, transforms: int, found: list[dict[str, Any]], wrong: str
) -> dict[str, Any]:
    """What a step tells of its ways; ``wrong``: what is said of those that are."""
    bad = [way["way"] for way in found if way.get("status") == WRONG]
    return {
        "status": WRONG if bad else "passed",
        **({"reason": f"{wrong} by {', '.join(bad)}"} if bad else {}),
        "case": str(case),
        **case.about,
        "batch": scaled.batch,
        "channels": scaled.channels,
        "plan": line,
        "transforms": transforms,
        "ways": found,
    }


def about_kernel(
    name: str, of: str, seconds: Sequence[Sequence[float]], count: int, predicted: float | None
) -> dict[str, Any]:
    """What is told of a kernel: ``seconds`` of its launches in every call, which do ``count`` of what it is
    ``of``; ``predicted``: of one of these, None where nothing predicts it."""
    sums = [sum(of_call) for of_call in seconds]
    return {
        "kernel": name,
        "of": of,
        "launches": len(seconds[0]),
        "each_s": digits(statistics.median(sums) / count),
        "least_s": digits(min(sums) / count),
        "predicted_s": None if predicted is None else digits(predicted),
    }


class _Way:
    """Calls that go one way, each of them launch by launch."""

    def __init__(
        self, running: Running, backend: Backend, how: Callable[[Plan, int, int, Target], Clusters | None]
    ) -> None:
        self.plan = running.plan
        self._running = running
        self._queue = Queue(backend)
        self._executable = Executable(running.plan, running.tables, how)

    @property
    def line(self) -> str:
        return str(self.plan)

    def __call__(self, x: Inputs) -> tuple[Tensor, Times]:
        """The result, and the seconds of all launches by entry."""
        it = self._running
        with self._queue.watched(it.launcher) as watched:
            planes, scale = transform(it.plan, it.tables, watched, x.k, address=it.address)
            y = self._executable(watched, x.u, planes, scale, x.in_gate, x.out_gate, it.address)
        return y, watched.seconds()


def _on_device(problem: Problem, backend: Backend) -> Running:
    return _loaded(build(problem, find_target(backend.target), gpu=backend.gpu), backend)


def _of_sections(plan: Plan, backend: Backend) -> Running:
    return _loaded(build_plan(plan), backend) if backend.kernels else _silent(plan)


def _loaded(built: Built, backend: Backend) -> Running:
    loaded = Loaded(built, backend.device)
    launcher = loaded.module.on(stream_of(backend.device))
    return Running(built.plan, loaded.executable.tables, launcher)


def _nowhere(problem: Problem, backend: Backend) -> Running:
    return _silent(find_plan(problem, backend.target))


def _silent(plan: Plan) -> Running:
    return Running(plan, torch.empty(0, dtype=torch.uint8), Silent())


def _told(plan: Plan, case: Case, times: Sequence[Times], way: str) -> list[dict[str, Any]]:
    """The kernels of a way, in the order of their launches."""
    chip = find_target(plan.target)
    price = cost(plan, chip, gated=case.gated)
    predicted = {k.name: k.predicted for k in price.kernels}
    if way == ONE:
        predicted["whole"] = in_one_launch(plan, price, chip).predicted
    predicted |= {k.name: plan.distances * k.predicted for k in filter_cost(plan, chip).kernels}
    filters = {plan.filter_entry(k): k.role for k in plan.filter.kernels}
    names = {plan.entry(k): k.label for k in plan.every_kernel} | filters
    transforms = items_per_channel(plan, case.batch) * case.channels
    found = []
    for entry in times[0]:
        of, count = (FILTER, case.channels) if entry in filters else (TRANSFORM, transforms)
        seconds = [of_call[entry] for of_call in times]
        found.append(about_kernel(names[entry], of, seconds, count, predicted[names[entry]]))
    return found

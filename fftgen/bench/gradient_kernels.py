"""How long each kernel of a backward pass takes by itself (kernels.py): by one transform, and in sections.

The spectra of the filters are there, as a forward pass leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fftgen.accuracy import Accuracy
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.gradient_reference import exact, judge
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.kernels import (
    FILTER,
    ROUNDS,
    SECTIONS,
    TRANSFORM,
    Queue,
    Silent,
    Times,
    Way,
    about,
    about_kernel,
    short_enough,
    timed,
)
from fftgen.bundle import trained_in_sections
from fftgen.errors import InputError
from fftgen.execute import Address
from fftgen.gradient import Needed, backward
from fftgen.launch import Launcher
from fftgen.loaded import Loaded, LoadedGradient, stream_of
from fftgen.pipeline import build_gradient, build_plan
from fftgen.planner import gradient_sections
from fftgen.planner.gradient import backward as planned
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import gradient_cost
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan
from fftgen.prepare import room
from fftgen.targets import target as find_target

ONE_PASS = "one transform"
Gradients = Mapping[str, Tensor]  # by argument


def gradient_kernel_times(
    case: Case,
    backend: Backend,
    *,
    seed: int,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda _: None,
    run: Run | None = None,
) -> dict[str, Any]:
    """Time every kernel of a backward case, as ``kernel_times`` does of a forward one: plain data.

    ``each_s`` are seconds of a row and its cotangent, of the kernels that take sums to taps of a filter,
    which nothing predicts. ``run`` finds the kernels: those of the device, in a dry run none. Raises
    InputError where no kernels make all gradients by one pass.
    """
    whole = planned(case.problem, find_target(backend.target))
    if whole is None:
        raise InputError(f"no kernels make all gradients of {case} by one pass")
    scaled = short_enough(case, backend)
    sets = draw_sets(scaled, backend.device, seed, backend.l2_bytes)
    reference = exact(scaled, sets[0]) if backend.kernels or run is not None else None
    find = run or (_on_device if backend.kernels else _nowhere)

    def way(found: Gradient, convolution: Plan) -> _Way:
        return _Way(found, find(found, convolution, backend), backend)

    own = plan(case.problem, find_target(backend.target))
    ways: dict[str, Way[Gradients]] = {ONE_PASS: way(whole, own)}
    cut = trained_in_sections(case.problem, find_target(backend.target))
    if cut is not None:
        ways[SECTIONS] = way(gradient_sections.in_sections(cut), cut)

    def verdict(one: Way[Gradients], made: Gradients) -> Accuracy | None:
        if reference is None:
            return None
        found = judge(scaled, made, reference, one.plan, one.plan).values()
        return max(found, key=lambda x: (not x.passed, x.overall / x.overall_bound))

    def told(name: str, one: Way[Gradients], times: Sequence[Times]) -> list[dict[str, Any]]:
        assert isinstance(one, _Way)
        return _told(one.found, scaled, times)

    found = timed(ways, sets, rounds, verdict, told, tell)
    rows = scaled.batch * scaled.channels
    return about(case, scaled, str(whole), rows, found, "a gradient is not that of the convolution")


class RunningGradient(NamedTuple):
    """Kernels that can be launched: their tables, spectra of filters (H, taps), and where tensors are."""

    tables: Tensor
    launcher: Launcher
    spectrum: Callable[[Tensor], tuple[Tensor, Tensor]]
    address: Address = lambda _, x: x.data_ptr()


# Of gradients, and the plan whose spectra they read.
Run = Callable[[Gradient, Plan, Backend], RunningGradient]


def _on_device(found: Gradient, convolution: Plan, backend: Backend) -> RunningGradient:
    loaded = LoadedGradient(build_gradient(found), backend.device)
    forward = Loaded(build_plan(convolution), backend.device)

    def spectrum(k: Tensor) -> tuple[Tensor, Tensor]:
        made = forward.spectrum(k)
        return made.planes, made.scale

    return RunningGradient(loaded.tables, loaded.module.on(stream_of(backend.device)), spectrum)


def _nowhere(found: Gradient, convolution: Plan, backend: Backend) -> RunningGradient:
    def spectrum(k: Tensor) -> tuple[Tensor, Tensor]:
        return room(convolution, k.shape[0], k.device)

    return RunningGradient(torch.empty(0, dtype=torch.uint8), Silent(), spectrum)


class _Way:
    """Backward passes by one kind of kernels."""

    def __init__(self, found: Gradient, running: RunningGradient, backend: Backend) -> None:
        self.found, self.plan = found, found.plan
        self._running, self._queue = running, Queue(backend)

    @property
    def line(self) -> str:
        return str(self.found)

    def __call__(self, x: Inputs) -> tuple[Gradients, Times]:
        """The gradients, and the seconds of all launches by entry."""
        it = self._running
        planes, scale = it.spectrum(x.k)
        assert x.v is not None
        needed = Needed(True, x.in_gate is not None, x.out_gate is not None)
        given = x.u, x.v, planes, scale, x.in_gate, x.out_gate
        how: dict[str, Any] = {"needed": needed, "taps": x.k.shape[-1], "address": it.address}
        with self._queue.watched(it.launcher) as watched:
            made = backward(self.found, it.tables, watched, *given, **how)
        named = {"u": made.u, "in_gate": made.in_gate, "out_gate": made.out_gate, "k": made.filter}
        return {name: g for name, g in named.items() if g is not None}, watched.seconds()


def _told(found: Gradient, case: Case, times: Sequence[Times]) -> list[dict[str, Any]]:
    """The kernels of a way, in the order of their launches; those of both signals together."""
    plan = found.plan
    names = {found.name: found.label, found.sums_name: "sums"}
    names |= {plan.entry(k): k.label for k in (*found.before, *found.after)}
    finish = {plan.filter_entry(k): k.role for k in plan.filter.kernels}
    predicted: dict[str, float] = {}
    for kernel in gradient_cost(found, find_target(plan.target), gated=case.gated).kernels:
        label = kernel.name.split()[0]  # without the signal's name
        predicted[label] = predicted.get(label, 0.0) + kernel.predicted
    told = []
    for entry in times[0]:
        seconds = [of_call[entry] for of_call in times]
        if entry in finish:
            told.append(about_kernel(finish[entry], FILTER, seconds, case.channels, None))
        else:
            name, rows = names[entry], case.batch * case.channels
            told.append(about_kernel(name, TRANSFORM, seconds, rows, predicted[name]))
    return told

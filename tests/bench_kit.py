"""Timers, backends and calls that the tests of the bench drive by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fftgen.bench.backend import Backend, HostBackend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import Contender, Prepared
from fftgen.bench.inputs import Inputs
from fftgen.problem import Problem


class Script:
    """A timer that gives each call the seconds that the call itself returns, and remembers the order."""

    name = "script"
    real = False

    def __init__(self) -> None:
        self.seconds = 0.0  # set by the calls that are timed
        self.turns: list[int] = []  # calls of each turn

    def time(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        found = []
        self.turns.append(len(calls))
        for call in calls:
            call()
            found.append(self.seconds)
        return found


def case(
    mode: str = "causal",
    length: int = 256,
    dtype: str = "bf16",
    *,
    gated: bool = True,
    batch: int = 3,
    channels: int = 8,
    direction: str = "forward",
    taps: int = 0,
) -> Case:
    return Case(Problem(mode, length, dtype), gated, batch, channels, direction, taps)


def contender(
    name: str, function: Callable[[Inputs, Case], Tensor], *, ours: bool = False, compiled: bool = False
) -> Contender:
    """A contender that computes a function of its inputs."""

    def prepare(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
        def call(x: Inputs) -> Callable[[], Tensor]:
            return lambda: function(x, case)

        return Prepared(tuple(call(x) for x in sets))

    return Contender(name, name, prepare, ours=ours, compiled=compiled)


def host(memory: int = 1 << 30) -> HostBackend:
    return HostBackend(memory=memory)


CPU = torch.device("cpu")

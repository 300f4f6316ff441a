"""Plans by engine: what the planner would choose for a problem if it had only that one; digits of a plan."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fftgen.planner.engines import ENGINES
from fftgen.planner.filter import Digits
from fftgen.planner.plan import Plan
from fftgen.planner.search import search
from fftgen.problem import Problem
from fftgen.targets import target


@cache
def engines(problem: Problem, name: str) -> tuple[Plan, ...]:
    """The cheapest plan of every engine that has one, the planner's own choice first."""
    best: dict[str, Plan] = {}
    for candidate in search(problem, target(name)):
        if candidate.plan is not None:
            best.setdefault(candidate.engine, candidate.plan)
    return tuple(best.values())


def on_engine(problem: Problem, name: str, engine: str) -> Plan:
    """The cheapest plan of one engine, which must have one."""
    assert engine in ENGINES
    (found,) = (plan for plan in engines(problem, name) if plan.engine == engine)
    return found


def added(digits: Digits, count: int) -> npt.NDArray[np.int64]:
    """What the digits make of the numbers below ``count``."""
    rest, at = np.arange(count), np.zeros(count, np.int64)
    for number, (extent, stride) in enumerate(digits, 1):
        at += (rest if number == len(digits) else rest % extent) * stride
        rest = rest // extent
    return at

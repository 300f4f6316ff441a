"""Plans: of every target and engine, of a few problems; what the digits of one make of numbers."""

from __future__ import annotations

from functools import cache
from itertools import product

import cases
import numpy as np
import numpy.typing as npt
import pytest

from fftgen.dtypes import dtype
from fftgen.planner.engines import ENGINES
from fftgen.planner.filter import Digits
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan, search
from fftgen.problem import Problem
from fftgen.targets import TARGETS, target

POWERS = tuple(2**e for e in range(8, 23))
LENGTHS = (*POWERS, 1, 2, 17, 100, 255, 257, 1000, 1026, 5000, 12288, 20000, 40000, 100000, 1000003, 3000000)
PORTFOLIO = (
    ("causal", 1024, "bf16", "sm_90"),
    ("causal", 20000, "fp16", "sm_86"),
    ("circular", 4096, "bf16", "sm_80"),
    ("circular", 100000, "fp16", "sm_75"),
    ("causal", 4194304, "bf16", "sm_100"),
)
# By default one target of each kind of limits; the others have those of one of them, or nearly.
KINDS = ("sm_75", "sm_80", "sm_90")
# Target by target: listing the plans of one takes seconds.
of_every_target = pytest.mark.parametrize("name", cases.usually(TARGETS, KINDS), scope="module")


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


@cache
def plans_of(name: str) -> tuple[Plan, ...]:
    """Plans of a target for all lengths, modes and dtypes that it has, on every engine that has one."""
    chip = target(name)
    kinds = [kind for kind in cases.DTYPES if chip.capability >= dtype(kind).capability]
    problems = (Problem(*row) for row in product(cases.MODES, LENGTHS, kinds))
    return tuple(found for problem in problems for found in engines(problem, name))


def portfolio() -> list[Plan]:
    return [plan(Problem(*row[:3]), row[3]) for row in PORTFOLIO]


def added(digits: Digits, count: int) -> npt.NDArray[np.int64]:
    """What the digits make of the numbers below ``count``."""
    rest, at = np.arange(count), np.zeros(count, np.int64)
    for number, (extent, stride) in enumerate(digits, 1):
        at += (rest if number == len(digits) else rest % extent) * stride
        rest = rest // extent
    return at

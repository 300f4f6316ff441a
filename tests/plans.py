"""Plans by engine: what the planner would choose for a problem if it had only that one."""

from __future__ import annotations

from functools import cache

from fftgen.planner.plan import Plan
from fftgen.planner.search import ENGINES, search
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

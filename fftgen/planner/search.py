"""Candidates -> rules -> cost -> choice."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache

from fftgen.errors import NoPlanError
from fftgen.planner.candidates import Candidate, by_threads, candidate, folds, legal, lengths, shapes
from fftgen.planner.cost import cost
from fftgen.planner.engines import ENGINES, named_engine, supports_engine, takes
from fftgen.planner.filter_design import design
from fftgen.planner.one_launch import one_launches, weight
from fftgen.planner.plan import FP32, SIMT, Plan
from fftgen.planner.rules import Shape, supports_dtype
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

CLOSE = 1.03  # times longer than the shortest: instructions alone are known no better


def search(
    problem: Problem, target: Target, transform: int | None = None, engine: str | None = None
) -> tuple[Candidate, ...]:
    """All candidates: of the first memory class that fits, the cheapest a row first; struck-out ones last.

    ``transform`` and ``engine`` leave only candidates of that length and engine (``parse_engine``).

    A transform that one block finishes reads its input once and writes its output once; the device
    class adds workspace traffic and launches, so it is taken only where no block can hold the transform.
    """
    tried = lengths(problem) if transform is None else (transform,)
    if problem.dtype == FP32:
        return tuple(sorted((by_threads(problem, target, n) for n in tried), key=_rank))
    found = [
        candidate(problem, target, n, shape, fold, name)
        for n in tried
        for shape in shapes(n)
        for fold in folds(problem, n)
        for name in (ENGINES if engine is None else (engine,))
    ]
    ranked = sorted(found, key=_rank)
    last = math.inf, True, 0, 0.0
    return tuple(sorted(ranked, key=lambda c: _busiest(c) if _close(c, ranked[0]) else last))


def _rank(found: Candidate) -> tuple[bool, bool, float, tuple[int, ...], int]:
    device = found.shape.device > 0 and found.engine == "wmma"
    return found.cost is None, device, found.row_expected, found.shape.factors, found.shape.device


def _close(found: Candidate, first: Candidate) -> bool:
    """Whether it is as good as the first for all that the model can tell, on the same engine.

    Named or not, an engine's choice is the same.
    """
    if found.cost is None or found.engine != first.engine or _rank(found)[:2] != _rank(first)[:2]:
        return False
    return found.row_expected <= CLOSE * first.row_expected


def _busiest(found: Candidate) -> tuple[float, bool, int, float]:
    """Of equals the least by its busiest resources, weighed as the whole is; then batch pairs before folds,
    which do more matrix work; then short transforms, with less to do for gradients and filters; then what
    issues least: where memory bounds two shapes, the rest is room for its latency."""
    if found.plan is None or found.cost is None:
        return math.inf, True, 0, 0.0
    seconds = weight(found.plan, found.cost) * found.row_seconds
    return seconds, found.plan.fold > 0, found.transform, found.cost.seconds["issue slots"]


def finished(found: Plan, chip: Target) -> Plan:
    """A chosen plan with the kernels of its filter's spectrum, and the one that does all stages."""
    if found.engine == SIMT:
        return found  # has the former from the start
    ways = one_launches(found, cost(found, chip), chip)
    return replace(ways[0].plan if ways else found, filter=design(found, chip))


def plan(problem: Problem, target: str | Target, engine: str | None = None) -> Plan:
    """The chosen plan, on an ``engine`` of the caller's choice where one is named (``parse_engine``).

    The planner's own choice is the cheapest of all engines, so that naming its engine gives the same plan.
    Raises NoPlanError with every candidate's reason when none is legal.
    """
    return _plan(problem, find_target(target), engine)


@lru_cache(maxsize=1024)
def _plan(problem: Problem, chip: Target, engine: str | None) -> Plan:
    barred = (supports_engine(engine, chip) or takes(engine, problem.dtype)) if engine else None
    candidates = () if barred else search(problem, chip, engine=engine)
    if not candidates or candidates[0].plan is None:
        on = f"{chip.name} with engine {engine}" if engine else chip.name
        raise NoPlanError(
            f"no plan for {problem.mode} seqlen {problem.length} {problem.dtype} on {on}: "
            + (supports_dtype(problem.dtype, chip) or barred or _decisive(chip, candidates))
            + (": name another engine, or none for the planner's choice" if engine else ""),
            [str(c) for c in candidates[:20]],
        )
    return finished(candidates[0].plan, chip)


def _decisive(chip: Target, candidates: tuple[Candidate, ...]) -> str:
    """The rule that struck out most of the candidates which came furthest: those of a shape that is legal."""
    shaped = [c for c in candidates if legal(c.engine, c.shape, chip) is None]
    reasons = Counter(c.reason for c in shaped or candidates)
    if not reasons:
        return "no factorisation into radices from 16 to 128"
    reason, count = reasons.most_common(1)[0]
    rest = len(candidates) - count
    return f"{reason} (and other rules for {rest} of {len(candidates)} factorisations)" if rest else reason


def chosen_engine(problem: Problem, target: str | Target) -> str | None:
    """``named_engine`` of the planner's own choice; None where it has no plan."""
    try:
        return named_engine(plan(problem, target))
    except NoPlanError:
        return None


def with_shape(
    problem: Problem,
    target: str | Target,
    factors: tuple[int, ...],
    device: int,
    engine: str = "wmma",
    *,
    fold: bool = False,
) -> Plan:
    """The plan for given radices: for tests and tuning. Raises NoPlanError with the rule it breaks.

    ``fold``: a circular length folds even where it is the transform's, instead of running in batch pairs.
    """
    chip = find_target(target)
    n = math.prod(factors)
    ways = folds(problem, n)
    found = candidate(problem, chip, n, Shape(factors, device), ways[-1 if fold else 0], engine)
    if found.plan is None:
        raise NoPlanError(f"factors {factors} do not fit {chip.name}: {found.reason}")
    return finished(found.plan, chip)


def nearest_transform(problem: Problem) -> int:
    """The shortest transform length that holds a problem: what neighbouring lengths can share."""
    return lengths(problem)[0]

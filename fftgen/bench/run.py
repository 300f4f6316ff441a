"""A whole run: which steps, in which order, within which budget; and its document after every step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fftgen.bench import results, steps
from fftgen.bench.cases import BACKWARD_LENGTHS, DIRECTIONS, Case, by_importance
from fftgen.bench.overhead import ROUNDS
from fftgen.bench.results import Document, Run
from fftgen.bench.sanitizer import TOOLS
from fftgen.bench.steps import Step
from fftgen.bench.supervisor import Outcome, Supervisor, Worker, start_process
from fftgen.portfolio import PROBLEMS
from fftgen.problem import Problem

FIRST_ROWS, FIRST_BACKWARD = 12, len(BACKWARD_LENGTHS)
SECONDS, SUITE_SECONDS = 0.5, 0.2  # of device time for each contender of a row
SUITE_BUDGET = 450.0  # seconds: eight minutes less what starting and writing take
DRY_PROBLEMS = (Problem("causal", 256, "fp16"), Problem("circular", 1000, "fp16"))
DRY_GRADIENTS = DRY_PROBLEMS


@dataclass(frozen=True)
class Wish:
    """What a run is asked to do. ``seconds``: of device time for each contender of a row; ``kernels``: those
    of every forward case by themselves as well."""

    cases: Sequence[Case]
    contenders: Sequence[str]
    seed: int
    suite: bool = False
    kernels: bool = False
    dry_run: bool = False
    budget: float | None = None
    seconds: float = SECONDS
    started: float = field(default_factory=time.monotonic)

    @property
    def run(self) -> Run:
        return Run("suite" if self.suite else "rows", self.dry_run, self.seed, self.budget)


def plan(wish: Wish) -> list[Step]:
    """The steps of a run: what later steps need first, then proofs, then rows, the important ones first."""
    threads = os.cpu_count() or 1
    problems = [c.problem for c in wish.cases]
    trained = [c.problem for c in wish.cases if c.direction == "backward"]
    found = [steps.environment_step()]
    if not wish.suite:
        if not wish.dry_run and len(problems) > 1:
            found.append(steps.build_step(problems, threads, trained))
        rows = steps.row_steps(wish.cases, wish.contenders, wish.seed, wish.seconds)
        alone = [steps.rates_step(), *steps.kernel_steps(wish.cases, wish.seed)] if wish.kernels else []
        return [*found, steps.bandwidth_step(), *rows, *alone]
    forward, backward = (
        steps.suite_rows(
            by_importance(c for c in wish.cases if c.direction == direction),
            wish.contenders,
            wish.seed,
            wish.seconds,
        )
        for direction in DIRECTIONS
    )
    if wish.dry_run:
        return [
            *found,
            steps.build_step(steps.with_padded(DRY_PROBLEMS), threads, steps.with_padded(DRY_GRADIENTS)),
            *steps.proof_steps(wish.seed, DRY_PROBLEMS, DRY_GRADIENTS),
            *steps.sanitizer_steps(problems=DRY_PROBLEMS[:1]),
            *steps.sanitizer_steps(TOOLS[:1], DRY_GRADIENTS[:1], "gradient"),
            *steps.sanitizer_steps(TOOLS[:1], DRY_GRADIENTS[:1], "backward"),
            steps.bandwidth_step(),
            *steps.host_steps(wish.seed, 5, (256,)),
            *forward,
            *backward,
            steps.rates_step(),
            *steps.kernel_steps(wish.cases, wish.seed),
        ]
    proven, back = (steps.with_padded(p) for p in ((*PROBLEMS, *steps.GRADIENTS), steps.GRADIENTS))
    return [
        *found,
        steps.build_step([*proven, *problems], threads, [*back, *trained]),
        *steps.proof_steps(wish.seed),
        *steps.sanitizer_steps(TOOLS[:2]),
        steps.bandwidth_step(),
        *steps.host_steps(wish.seed, ROUNDS),
        *forward[:FIRST_ROWS],
        *backward[:FIRST_BACKWARD],
        steps.rates_step(),
        *steps.suite_kernels(wish.cases, wish.seed),
        # More of the slow tools must not cost the rows that matter most.
        *steps.sanitizer_steps(TOOLS[:2], steps.SANITIZED_GRADIENTS, "gradient"),
        *steps.sanitizer_steps(TOOLS[:2], steps.SANITIZED_GRADIENTS, "backward"),
        *steps.sanitizer_steps(TOOLS[2:]),
        *forward[FIRST_ROWS:],
        *backward[FIRST_BACKWARD:],
    ]


def carry_out(
    wish: Wish,
    path: Path,
    begin: Callable[[int, int, Step], None] = lambda number, count, step: None,
    start: Callable[[], Worker] | None = None,
) -> Document:
    """Run it all; the document, which is also in ``path``, whole after every step.

    ``begin`` hears a step's number, the number of steps, and the step. ``start`` makes workers. Raises
    ToolchainError without a device, InputError when ``path`` cannot be written.
    """
    planned = plan(wish)

    def so_far(outcomes: Sequence[Outcome]) -> Document:
        return results.document(wish.run, planned, outcomes, time.monotonic() - wish.started)

    count = 0

    def begun(step: Step) -> None:
        begin(count + 1, len(planned), step)

    def done(outcomes: list[Outcome]) -> None:
        nonlocal count
        count = len(outcomes)
        results.write(path, so_far(outcomes))

    supervisor = Supervisor(
        start or start_process(wish.dry_run),
        budget=wish.budget,
        started=wish.started,
        begin=begun,
        done=done,
    )
    doc = so_far(supervisor.run(planned))
    results.write(path, doc)
    return doc

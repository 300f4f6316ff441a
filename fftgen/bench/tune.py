"""Other plans than the planner's choice, proved and timed beside it on the GPU; the fastest may be kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from fftgen import shortcut
from fftgen.accuracy import Accuracy
from fftgen.bench import gradient_reference, reference
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.measure import Timing, interleave, under_load
from fftgen.bench.reference import figures, poison
from fftgen.bench.row import FAILED, OK, WRONG, DeviceLost, first_line, still_there
from fftgen.bench.tune_calls import Caller, Calls, Made, caller_of
from fftgen.cache import Cache
from fftgen.errors import FFTGenError
from fftgen.pipeline import Built, build_gradient, build_plan
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.planner.variants import CHOICE, Variant, backward_variants, variants
from fftgen.targets import Target
from fftgen.targets import target as find_target


class Tuned(NamedTuple):
    """What was found, as plain data, and the plans that it is about, by their digests."""

    doc: dict[str, Any]
    plans: dict[str, Plan | Gradient]


def tune(
    case: Case,
    backend: Backend,
    store: Cache,
    *,
    most: int,
    seconds: float,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
    at: Callable[[str], None] = lambda _: None,
    caller: Caller | None = None,
) -> Tuned:
    """Time at most so many variants of a case: the fastest first, others behind.

    Of a forward case plans of the convolution, of a backward case layouts of the one pass that makes all
    gradients. The filter's spectrum is prepared; each variant must give the right result for every row, in
    the bounds of its own plan, alone and, once it is timed, under load. ``seconds`` of device time go to
    each. ``tell`` hears what happens, ``at`` before every piece of work on the device what it is of: the
    last before a hang names who hangs. ``caller`` makes the calls that are timed: those of the variant's
    kernels; in a dry run those of the CPU.
    """
    scaled = case.scaled(backend.free_bytes())
    chip = find_target(backend.target)
    found = _variants(scaled, chip, most)
    tell(f"{case}: compiling {len(found)} variants")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        made = list(pool.map(lambda v: _built(v.plan, store), found))
    rows = [_about(v) for v in found]
    ready: dict[int, Calls] = {}
    run = caller or caller_of(scaled, backend, store)
    lost = ""

    def right(number: int, built: Built, when: str, make: Callable[[], Made]) -> bool:
        """Whether a variant gives the right result; its row has the verdict."""
        nonlocal lost
        row = rows[number]
        at(f"{row['about']}, {when}")
        try:
            out = make()
            backend.synchronize()
            verdict = _judged(scaled, out, wanted, built.plan)
        except Exception as error:  # a variant that fails must not end the others
            row.update(status=FAILED, reason=first_line(error))
            lost = _lost(backend, row["about"], error)
            return False
        row.update(figures(verdict), status=OK if verdict.passed else WRONG)
        return verdict.passed

    with torch.no_grad():
        at("the reference")
        sets = draw_sets(scaled, backend.device, seed, backend.l2_bytes)
        wanted = _exact(scaled, sets[0])
        for number, (built, row) in enumerate(zip(made, rows, strict=True)):
            if lost or isinstance(built, Exception):
                row.update(status=FAILED, reason=lost or first_line(built))  # type: ignore[arg-type]
                continue
            tell(f"{case}: proving {number + 1} of {len(rows)}: {row['about']}")

            def first(built: Built = built, number: int = number) -> Made:
                ready[number] = run(built, sets)
                poison(*(sets[0].arguments.values() if case.direction == "backward" else (sets[0].u,)))
                made: Made = ready[number][0]()
                return made

            if not right(number, built, "called alone", first):
                ready.pop(number, None)
        del wanted  # memory for results
        tell(f"{case}: timing {len(ready)} of them")
        timings, broken = ({}, {}) if lost else _timed(backend, rows, ready, seconds, at)
        for number, error in broken.items():
            rows[number].update(status=FAILED, reason=first_line(error))
            lost = lost or _lost(backend, rows[number]["about"], error)
        if timings and not lost:
            wanted = _exact(scaled, sets[0])
        for number, timing in timings.items():
            row, built = rows[number], made[number]
            assert isinstance(built, Built)
            if lost:
                row.update(status=FAILED, reason=lost)
            elif right(number, built, "under load", partial(under_load, ready[number], timing.median)):
                row.update(timing.as_dict())
            elif row["status"] == WRONG:
                row["reason"] = "right when called alone, wrong under load"
    choice = rows[0]
    timed = sorted((r for r in rows if "median_s" in r), key=lambda r: r["median_s"])
    for row in timed:
        if "median_s" in choice:
            row["over_choice"] = float(f"{row['median_s'] / choice['median_s']:.4g}")
    doc = {
        "case": str(case),
        "batch": scaled.batch,
        "channels": scaled.channels,
        "seed": seed,
        "target": chip.name,
        "variants": [*timed, *(r for r in rows if "median_s" not in r)],
        "passed": all(r["status"] == OK for r in rows),
        "device_lost": bool(lost),
    }
    return Tuned(doc, {v.plan.digest: v.plan for v in found})


def _timed(
    backend: Backend,
    rows: Sequence[dict[str, Any]],
    ready: Mapping[int, Calls],
    seconds: float,
    at: Callable[[str], None],
) -> tuple[dict[int, Timing], dict[int, Exception]]:
    """Turns of the variants that are right, by number; those that broke meanwhile."""
    timings, broken = interleave(
        backend.timer,
        {str(number): calls for number, calls in ready.items()},
        seconds,
        # Results of one variant at a time: memory that holds those of a row's contenders is not for so many.
        dict.fromkeys(map(str, ready), nullcontext),
        lambda name: at(f"{rows[int(name)]['about']}, while it is timed"),
    )
    return {int(n): t for n, t in timings.items()}, {int(n): e for n, e in broken.items()}


def winner(found: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest variant that can take the place of the planner's choice; None: the choice itself.

    It has to be faster by more than two passes over the same code differ.
    """
    rows: list[dict[str, Any]] = [r for r in found["variants"] if "over_choice" in r]
    choice = next((r for r in rows if r["choice"]), None)
    for row in rows:
        if choice is None or row is choice:
            return None
        if row["exchangeable"] and row["over_choice"] < 1 - max(row["spread"], choice["spread"]):
            return row
    return None


def keep(store: Cache, case: Case, found: Tuned, gpu: str) -> dict[str, Any] | None:
    """Have just-in-time convolutions on GPUs of this name take the winner from now on; returns it.

    Where the planner's choice stays, what an earlier run kept is forgotten; where it was not timed, nothing
    changes.
    """
    if not any(r["choice"] and "median_s" in r for r in found.doc["variants"]):
        return None
    best = winner(found.doc)
    plan = None if best is None else found.plans[best["digest"]]
    chip = find_target(found.doc["target"])
    shortcut.keep_tuned(store, case.problem, chip, gpu, plan, backward=case.direction == "backward")
    return best


def _variants(
    case: Case, chip: Target, most: int
) -> tuple[Variant[Plan], ...] | tuple[Variant[Gradient], ...]:
    shape = case.batch, case.channels
    if case.direction == "backward":
        return backward_variants(case.problem, chip, *shape, most, case.gated)
    return variants(case.problem, chip, *shape, most)


def _built(plan: Plan | Gradient, store: Cache) -> Built | Exception:
    try:
        return build_gradient(plan, store) if isinstance(plan, Gradient) else build_plan(plan, store)
    except FFTGenError as error:
        return error


def _exact(case: Case, inputs: Inputs) -> Any:
    """What a call must give, in float64."""
    of = gradient_reference if case.direction == "backward" else reference
    return of.exact(case, inputs)


def _judged(case: Case, out: Any, exact: Any, plan: Plan) -> Accuracy:
    """The verdict; of several gradients the one that is nearest to its bound, or beyond."""
    if case.direction == "forward":
        return reference.judge(case, out, exact, plan)
    found = gradient_reference.judge(case, out, exact, plan, plan).values()
    return max(found, key=lambda x: (not x.passed, x.overall / x.overall_bound))


def _lost(backend: Backend, name: str, error: Exception) -> str:
    """After an error: why nothing more can run on the device; empty: it answers."""
    try:
        still_there(backend, name, error)
    except DeviceLost:
        return f"the device was lost by: {name}"
    return ""


def _about(variant: Variant[Plan] | Variant[Gradient]) -> dict[str, Any]:
    return {
        "about": variant.about,
        "plan": str(variant.plan),
        "digest": variant.plan.digest,
        "choice": variant.about == CHOICE,
        "exchangeable": variant.exchangeable,
        "expected_s": float(f"{variant.expected:.4g}"),
    }

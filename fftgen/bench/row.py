"""One row of the table: a case, every contender, checked first and timed together afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fftgen.accuracy import Accuracy
from fftgen.bench import gradient_reference
from fftgen.bench.attention import ATTENTION
from fftgen.bench.backend import Backend
from fftgen.bench.backward import gradients, passes, standing
from fftgen.bench.cases import Case
from fftgen.bench.contenders import OURS, PYTORCH, Contender, Prepared, Unavailable
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.measure import Around, Timing, interleave, under_load
from fftgen.bench.peers import PEERS
from fftgen.bench.reference import exact, figures, judge, poison

CONTENDERS = {c.name: c for c in (*OURS, *PYTORCH, *PEERS, ATTENTION)}

# What can become of a contender in a row. Only "ok" is timed.
OK, WRONG, FAILED, UNAVAILABLE, LOST = "ok", "wrong", "failed", "unavailable", "lost"

# Who is at work when it is no contender: nobody is to blame for how long that takes.
REFERENCE = "the float64 reference"
ALONE = "it did not fit into memory beside the others"

Reference = Mapping[str, Tensor]  # "y", or the arguments of a backward pass
Verdicts = Mapping[str, Accuracy]


@dataclass(frozen=True)
class Ready:
    """A contender that gave the right results: what is timed, one call per set of inputs.

    ``again`` makes a result once more, under load, and judges it by the reference; it is told the seconds of
    a call. ``around``: what stands while it is called or timed. ``whole``: what memory is taken of: a forward
    call, or a training step, forward and backward together.
    """

    calls: tuple[Callable[[], object], ...]
    whole: Callable[[], object]
    again: Callable[[Reference, float], Verdicts]
    around: Around = nullcontext


class DeviceLost(Exception):
    """After a fault inside a kernel nothing works on the device any more; ``name``: who was at work."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def measure_row(
    case: Case,
    backend: Backend,
    *,
    contenders: Sequence[str],
    lost: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    seed: int,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Check and time contenders on a case: plain data.

    Times are of ``timed``: a forward pass, or a backward pass alone. ``peak_bytes`` is what ``memory_of``
    says takes beyond the inputs, its results included. A contender with ``timed_alone``, which says why, was
    not timed turn by turn with the others.

    ``lost`` gives the reasons for contenders that have lost the device on this case before and do not run;
    ``left_out`` those for contenders that are not asked. ``seconds`` of device time go to each. ``tell``
    hears who is at work. Raises DeviceLost.
    """
    if any(CONTENDERS[name].compiled for name in contenders):
        # Every row has shapes of its own: what was compiled for the last one only fills the compiler's cache.
        torch.compiler.reset()
    scaled = case.scaled(backend.free_bytes())
    found: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        sets = draw_sets(scaled, backend.device, seed, backend.l2_bytes)
        calls = _checked(scaled, sets, backend, contenders, lost or {}, tell, found)
        for name, ready in calls.items():
            tell(name)
            backend.release()
            found[name]["peak_bytes"] = backend.peak_bytes(ready.whole)
        tell("timing")
        timed = _timed(scaled, backend, calls, seconds, tell, found)
        _judge_again(scaled, sets, backend, calls, timed, tell, found)
    for name, timing in timed.items():
        found[name].update(timing.as_dict())
    for name, reason in (left_out or {}).items():
        found[name] = {**_about(name), "status": UNAVAILABLE, "reason": reason}
    return {
        "case": str(case),
        **case.about,
        "timed": f"{case.direction} pass",
        "memory_of": "training step" if case.direction == "backward" else "forward pass",
        "batch": scaled.batch,
        "channels": scaled.channels,
        "scaled_down": scaled != case,
        "floor_bytes": scaled.floor_bytes,
        "input_bytes": sets[0].nbytes,
        "sets": len(sets),
        "seed": seed,
        "contenders": found,
    }


def _timed(
    case: Case,
    backend: Backend,
    calls: Mapping[str, Ready],
    seconds: float,
    tell: Callable[[str], None],
    found: dict[str, dict[str, Any]],
) -> dict[str, Timing]:
    """Times of contenders turn by turn; what became of those that broke is in ``found``."""
    around = {n: r.around for n, r in calls.items()} if case.direction == "backward" else None
    every = {n: r.calls for n, r in calls.items()}
    timed, broken = interleave(backend.timer, every, seconds, around, tell)
    for name, error in list(broken.items()):
        if isinstance(error, torch.OutOfMemoryError):
            # Beside the others' leftovers it did not fit, alone it did: alone, then.
            backend.release()
            timings, still = interleave(backend.timer, {name: every[name]}, seconds, around, tell)
            timed.update(timings)
            broken.update(still)
            if name in timings:
                found[name]["timed_alone"] = ALONE
    for name, error in broken.items():
        if name not in timed:
            found[name].update(status=FAILED, reason=first_line(error))
            still_there(backend, name, error)
    return timed


def _judge_again(
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    calls: Mapping[str, Ready],
    timed: dict[str, Timing],
    tell: Callable[[str], None],
    found: dict[str, dict[str, Any]],
) -> None:
    """Judge ours once more, under load, which a first call was not; whoever is wrong then has no time."""
    ours = [name for name in timed if CONTENDERS[name].ours]
    if not ours:
        return
    backend.release()
    tell(REFERENCE)
    reference = _reference(case, sets)
    for name in ours:
        tell(name)
        try:
            verdicts = calls[name].again(reference, timed[name].median)
        except Exception as error:
            del timed[name]
            found[name].update(status=FAILED, reason=first_line(error))
            still_there(backend, name, error)
            continue
        worst = max(verdicts, key=lambda of: _strain(verdicts[of]))
        if not verdicts[worst].passed:
            del timed[name]
            what = "the result" if worst == "y" else f"the gradient of {worst}"
            reason = f"right when called alone; under load {what} is not that of the convolution"
            found[name].update(figures(verdicts[worst]), status=WRONG, reason=reason)


def _reference(case: Case, sets: Sequence[Inputs]) -> Reference:
    """What the first set of inputs must give, in float64."""
    if case.direction == "backward":
        return gradient_reference.exact(case, sets[0])
    return {"y": exact(case, sets[0])}


def _about(name: str) -> dict[str, Any]:
    return {"ours": CONTENDERS[name].ours, "filter_inside": CONTENDERS[name].filter_inside}


def _checked(
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    names: Sequence[str],
    lost: Mapping[str, str],
    tell: Callable[[str], None],
    found: dict[str, dict[str, Any]],
) -> dict[str, Ready]:
    """The contenders that gave the right result; what became of the others is in ``found``."""
    ready: dict[str, Ready] = {}
    reference: Reference | None = None
    check = _check_gradients if case.direction == "backward" else _check_result
    for name in names:
        contender = CONTENDERS[name]
        entry = _about(name)
        found[name] = entry
        if name in lost:
            entry.update(status=LOST, reason=lost[name])
            continue
        if reference is None:
            tell(REFERENCE)
            reference = _reference(case, sets)
        tell(name)
        try:
            one = check(contender, case, sets, backend, reference, entry)
        except Unavailable as reason:
            entry.update(status=UNAVAILABLE, reason=str(reason))
        except Exception as error:
            # Whatever a contender does wrong is told in the results and must not end the row.
            entry.update(status=FAILED, reason=first_line(error))
            still_there(backend, name, error)
        else:
            if entry["status"] == OK:
                ready[name] = one
        backend.release()
    return ready


def _check_result(
    contender: Contender,
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    reference: Reference,
    entry: dict[str, Any],
) -> Ready:
    """The first call of a contender, judged: the verdict is in ``entry``."""
    prepared = contender.prepare(case, sets, backend)

    def verdicts(out: Tensor, reference: Reference) -> Verdicts:
        backend.synchronize()
        if prepared.check:
            return prepared.check({"y": out})
        return {"y": judge(case, out, reference["y"], prepared.plan)}

    poison(sets[0].u)
    verdict = verdicts(prepared.calls[0](), reference)["y"]
    _tell(entry, verdict, prepared, "the result is not the convolution", "the result is not finite")

    def again(reference: Reference, once: float) -> Verdicts:
        return verdicts(under_load(prepared.calls, once), reference)

    return Ready(prepared.calls, prepared.calls[0], again)


def _check_gradients(
    contender: Contender,
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    reference: Reference,
    entry: dict[str, Any],
) -> Ready:
    """The first backward pass of a contender, judged: ``entry`` leads with what is nearest to its bound."""
    if contender.no_gradients:
        raise Unavailable(contender.no_gradients)
    leaves = [x.leaves() for x in sets]
    prepared = contender.prepare(case, leaves, backend)
    every = passes(prepared, leaves)

    def first() -> Mapping[str, Tensor]:
        return gradients(every[0], compiled=contender.compiled)

    def verdicts(out: Mapping[str, Tensor], reference: Reference) -> Verdicts:
        backend.synchronize()
        if prepared.check:
            return prepared.check(out)
        return gradient_reference.judge(case, out, reference, prepared.plan, prepared.filters)

    def again(reference: Reference, once: float) -> Verdicts:
        calls: tuple[Callable[[], Any], ...] = (first, *every[1:])
        with standing(every):
            out = under_load(calls, once)
        return verdicts(out, reference)

    with standing(every[:1]):
        poison(*every[0].asked.arguments.values())
        out = first()
        backend.synchronize()
    of = verdicts(out, reference)
    worst = max(of, key=lambda name: _strain(of[name]))
    wrong = f"the gradient of {worst} is not that of the convolution"
    _tell(entry, of[worst], prepared, wrong, f"the gradient of {worst} is not finite")
    entry["gradients"] = {name: figures(verdict) for name, verdict in of.items()}
    return Ready(every, every[0].step, again, lambda: standing(every))


def _strain(verdict: Accuracy) -> float:
    """How much of what is allowed is used up; infinite where something is not finite."""
    if not verdict.finite:
        return math.inf
    return max(verdict.overall / verdict.overall_bound, verdict.row / verdict.row_bound)


def _tell(entry: dict[str, Any], verdict: Accuracy, prepared: Prepared, wrong: str, infinite: str) -> None:
    entry.update(figures(verdict), status=OK if verdict.passed else WRONG)
    if prepared.note:
        entry["note"] = prepared.note
    if not verdict.passed:
        entry["reason"] = wrong if verdict.finite else infinite


def still_there(backend: Backend, name: str, error: Exception) -> None:
    """Raise DeviceLost when the device does not answer after an error."""
    try:
        backend.synchronize()
        torch.zeros(1, device=backend.device)
        backend.synchronize()
    except Exception:
        raise DeviceLost(name, first_line(error)) from error

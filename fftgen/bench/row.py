"""One row of the table: a case, every contender, checked first and timed together afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fftgen.bench.attention import ATTENTION
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import OURS, PYTORCH, Contender, Prepared, Unavailable
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.measure import interleave
from fftgen.bench.peers import PEERS
from fftgen.bench.reference import exact, judge, poison

CONTENDERS = {c.name: c for c in (*OURS, *PYTORCH, *PEERS, ATTENTION)}

# What can become of a contender in a row. Only "ok" is timed.
OK, WRONG, FAILED, UNAVAILABLE, LOST = "ok", "wrong", "failed", "unavailable", "lost"


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
    lost: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
    seed: int,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Check and time contenders on a case: plain data.

    ``lost`` names contenders that have lost the device on this case before and are left out;
    ``left_out`` gives reasons for contenders that are not asked. ``seconds`` of device time go to each.
    ``tell`` hears who is at work. Raises DeviceLost.
    """
    if any(CONTENDERS[name].compiled for name in contenders):
        # Every row has shapes of its own: what was compiled for the last one only fills the compiler's cache.
        torch.compiler.reset()
    scaled = case.scaled(backend.free_bytes())
    found: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        sets = draw_sets(scaled, backend.device, seed, backend.l2_bytes)
        calls = _checked(scaled, sets, backend, contenders, lost, tell, found)
        for name, ready in calls.items():
            tell(name)
            backend.release()
            found[name]["peak_bytes"] = backend.peak_bytes(ready.calls[0])
        tell("timing")
        timed, broken = interleave(backend.timer, {n: p.calls for n, p in calls.items()}, seconds)
        for name, error in list(broken.items()):
            if isinstance(error, torch.OutOfMemoryError):
                # Beside the others' leftovers it did not fit, alone it did: alone, then.
                backend.release()
                timings, still = interleave(backend.timer, {name: calls[name].calls}, seconds)
                timed.update(timings)
                broken.update(still)
    for name, error in broken.items():
        if name not in timed:
            found[name].update(status=FAILED, reason=first_line(error))
            _still_there(backend, name, error)
    for name, timing in timed.items():
        found[name].update(timing.as_dict())
    for name, reason in (left_out or {}).items():
        found[name] = {**_about(name), "status": UNAVAILABLE, "reason": reason}
    return {
        "case": str(case),
        "mode": case.problem.mode,
        "length": case.length,
        "dtype": case.problem.dtype,
        "gated": case.gated,
        "direction": case.direction,
        "batch": scaled.batch,
        "channels": scaled.channels,
        "scaled_down": scaled != case,
        "floor_bytes": scaled.floor_bytes,
        "input_bytes": sets[0].nbytes,
        "sets": len(sets),
        "seed": seed,
        "contenders": found,
    }


def _about(name: str) -> dict[str, Any]:
    return {"ours": CONTENDERS[name].ours, "filter_inside": CONTENDERS[name].filter_inside}


def _checked(
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    names: Sequence[str],
    lost: Sequence[str],
    tell: Callable[[str], None],
    found: dict[str, dict[str, Any]],
) -> dict[str, Prepared]:
    """The contenders that gave the right result; what became of the others is in ``found``."""
    ready: dict[str, Prepared] = {}
    reference: Tensor | None = None
    for name in names:
        contender = CONTENDERS[name]
        entry = _about(name)
        found[name] = entry
        if name in lost:
            entry.update(status=LOST, reason="a kernel of it faulted or hung, and the process with it")
            continue
        tell(name)
        if reference is None:
            reference = exact(case, sets[0])
        try:
            prepared = _prepare_and_check(contender, case, sets, backend, reference, entry)
        except Unavailable as reason:
            entry.update(status=UNAVAILABLE, reason=str(reason))
        except Exception as error:
            # Whatever a contender does wrong is told in the results and must not end the row.
            entry.update(status=FAILED, reason=first_line(error))
            _still_there(backend, name, error)
        else:
            if entry["status"] == OK:
                ready[name] = prepared
        backend.release()
    return ready


def _prepare_and_check(
    contender: Contender,
    case: Case,
    sets: Sequence[Inputs],
    backend: Backend,
    reference: Tensor,
    entry: dict[str, Any],
) -> Prepared:
    prepared = contender.prepare(case, sets, backend)
    poison(sets[0].u)
    out = prepared.calls[0]()
    backend.synchronize()
    check = prepared.check(out) if prepared.check else judge(case, out, reference, prepared.plan)
    entry.update(check.as_dict(), status=OK if check.passed else WRONG)
    if prepared.note:
        entry["note"] = prepared.note
    if not check.passed:
        entry["reason"] = "the result is not the convolution" if check.finite else "the result is not finite"
    return prepared


def _still_there(backend: Backend, name: str, error: Exception) -> None:
    """Raise DeviceLost when the device does not answer after an error."""
    try:
        backend.synchronize()
        torch.zeros(1, device=backend.device)
        backend.synchronize()
    except Exception:
        raise DeviceLost(name, first_line(error)) from error

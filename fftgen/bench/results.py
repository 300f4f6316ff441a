"""One document of a run: what was measured where, and what follows from it. Written after every step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftgen.bench.attention import ATTENTION
from fftgen.bench.steps import PROOFS, Step
from fftgen.bench.supervisor import CRASHED, NOT_RUN, Outcome
from fftgen.durable import replace_file, writing
from fftgen.errors import InputError

SCHEMA = 1
NAME_ONE = "name a file that fftgen bench wrote"
Document = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run was asked for. ``budget_s``: None for no limit."""

    kind: str  # "suite" or "rows"
    dry_run: bool
    seed: int
    budget_s: float | None


def document(run: Run, planned: Sequence[Step], outcomes: Sequence[Outcome], seconds: float) -> Document:
    """Everything so far as plain data. Steps that have no outcome yet are listed as not run.

    Rows get what depends on other steps: ``floor_fraction``, the least time that the row's compulsory bytes
    take at the measured copy bandwidth, over the contender's median; ``ratio``, its median over fftgen's;
    ``prepared_ratio``, of a convolution with the filter's spectrum given, over that of fftgen with its own
    given.
    Backward rows get ``over_forward``, our time over that of our own forward row of the same case.
    """
    done = [_step(o) for o in outcomes]
    waiting = [
        {"kind": s.kind, "name": s.name, "status": NOT_RUN, "reason": "the run ended before it"}
        for s in planned[len(outcomes) :]
    ]
    bandwidth = _first(outcomes, "bandwidth").get("bytes_per_s")
    for step in done:
        if step["kind"] == "row" and "result" in step:
            derive(step["result"], bandwidth)
    counts: dict[str, int] = {}
    for step in (*done, *waiting):
        counts[step["status"]] = counts.get(step["status"], 0) + 1
    measured = [s["result"] for s in done if s["kind"] == "row" and "contenders" in s.get("result", {})]
    beside_forward(measured)
    return {
        "schema": SCHEMA,
        "kind": run.kind,
        "dry_run": run.dry_run,
        "seed": run.seed,
        "budget_s": run.budget_s,
        "seconds": round(seconds, 1),
        "environment": _first(outcomes, "environment"),
        "copy_bytes_per_s": bandwidth,
        "crossover": crossover(measured),
        "counts": counts,
        "passed": not failures(outcomes),
        "steps": [*done, *waiting],
    }


def failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Steps that show something of ours wrong or broken. What time did not allow is no failure, nor is a row
    that peers took with them."""
    return [
        o
        for o in outcomes
        if (o.step.kind in PROOFS and o.status in ("wrong", "failed", CRASHED))
        or (o.step.kind in ("environment", "bandwidth") and o.status not in ("passed", NOT_RUN))
    ]


def derive(row: dict[str, Any], bandwidth: float | None) -> None:
    """Add floor fractions and ratios to a row."""
    ours, prepared = (row["contenders"].get(n, {}).get("median_s") for n in ("fftgen", "fftgen-prepared"))
    if bandwidth:
        row["floor_s"] = float(f"{row['floor_bytes'] / bandwidth:.5g}")
    for name, entry in row["contenders"].items():
        median = entry.get("median_s")
        if median is None:
            continue
        if ours:
            entry["ratio"] = float(f"{median / ours:.4g}")
        if name == ATTENTION.name:  # it has other bytes to move, and no filter
            continue
        if bandwidth:
            entry["floor_fraction"] = float(f"{row['floor_bytes'] / bandwidth / median:.4g}")
        if prepared and not entry["filter_inside"]:
            entry["prepared_ratio"] = float(f"{median / prepared:.4g}")


def beside_forward(measured: Sequence[dict[str, Any]]) -> None:
    """Add to backward rows our time over that of our forward row of the same case (design 5.1).

    Memory may hold fewer channels backward: then times of a channel are compared, and
    ``over_forward_scaled`` is true. Rows of another batch weigh the filter's transform otherwise and are no
    pair.
    """
    same = ("mode", "length", "dtype", "gated", "batch", "taps")
    forward = {tuple(r.get(name) for name in same): r for r in measured if r["direction"] == "forward"}
    for row in measured:
        partner = forward.get(tuple(row.get(name) for name in same))
        if row["direction"] == "forward" or partner is None:
            continue
        times = [r["contenders"].get("fftgen", {}).get("median_s") for r in (row, partner)]
        if None in times:
            continue
        back, ahead = (t / r["channels"] for t, r in zip(times, (row, partner), strict=True))
        row["over_forward"] = float(f"{back / ahead:.4g}")
        row["over_forward_scaled"] = row["channels"] != partner["channels"]


def rows(doc: Document) -> list[dict[str, Any]]:
    """The rows that were measured."""
    return [s["result"] for s in doc["steps"] if s["kind"] == "row" and "contenders" in s.get("result", {})]


def by_kernel(doc: Document) -> list[dict[str, Any]]:
    """Cases whose kernels were timed one by one."""
    return [s["result"] for s in doc["steps"] if s["kind"] == "kernels" and "ways" in s.get("result", {})]


def crossover(measured: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Of forward rows, by dtype: the shortest length from which on fftgen beats attention wherever both were
    timed.

    None: at the longest length measured attention is still the faster one. Dtypes without a comparison are
    left out.
    """
    found: dict[str, int | None] = {}
    for dtype in sorted({r["dtype"] for r in measured}):
        pairs = sorted(
            (r["length"], *(r["contenders"][n]["median_s"] for n in (ATTENTION.name, "fftgen")))
            for r in measured
            if r["dtype"] == dtype and r["direction"] == "forward"
            if all("median_s" in r["contenders"].get(n, {}) for n in (ATTENTION.name, "fftgen"))
        )
        if not pairs:
            continue
        found[dtype] = None
        for length, attention, ours in reversed(pairs):
            if ours >= attention:
                break
            found[dtype] = length
    return found


def _first(outcomes: Sequence[Outcome], kind: str) -> dict[str, Any]:
    """The result of the first step of a kind, without its status."""
    found = next((o.result for o in outcomes if o.step.kind == kind and o.status == "passed"), {})
    return {name: value for name, value in found.items() if name != "status"}


def _step(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": outcome.step.kind,
        "name": outcome.step.name,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 2),
    }
    if outcome.reason:
        found["reason"] = outcome.reason
    rest = {name: value for name, value in outcome.result.items() if name not in ("status", "reason")}
    if rest and outcome.step.kind != "environment":
        # Rows are completed in place: the outcome itself stays as the worker told it.
        found["result"] = json.loads(json.dumps(rest))
    return found


def write(path: Path, doc: Document) -> None:
    """Replace the results file. Raises InputError when it cannot be written."""
    text = json.dumps(doc, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path):
        replace_file(path, text.encode())


def read(path: Path) -> Document:
    """A results file. Raises InputError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {NAME_ONE}") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a results file ({error}): {NAME_ONE}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "steps" not in found:
        raise InputError(f"{path} is no results file of this version (schema {SCHEMA}): {NAME_ONE}")
    return found

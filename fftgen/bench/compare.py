"""Two results files side by side: what became of our times between them, and of those of others."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from fftgen.bench.measure import digits
from fftgen.bench.results import Document, by_kernel, rows
from fftgen.bench.tables import case_name, head, table

# Of rows that compare; only those with fewer taps than steps say how many.
SAME = ("mode", "length", "dtype", "gated", "direction", "batch", "channels", "taps")


def compare(before: Document, now: Document) -> dict[str, Any]:
    """Times of ``now`` over those of ``before``, of rows and kernels that both have: plain data.

    A row has ``noise``: the larger spread of two runs of the same code, in either file. ``others``: the
    median over peers and rows, which tells what machines and versions changed; None: no peer was timed in
    both. ``alone``: rows and kernels that only one file has.
    """
    ours, others = [], []
    first, second = ({_row(row): row for row in rows(doc)} for doc in (before, now))
    for key in first.keys() & second.keys():
        for name, times in _both(first[key]["contenders"], second[key]["contenders"]):
            change = _change(*(t["median_s"] for t in times))
            if not times[1]["ours"]:
                others.append(change["ratio"])
                continue
            noise = max(t["spread"] for t in times)
            ours.append({**_named(SAME, key), "contender": name, **change, "noise": noise})
    timed = [dict(_kernels(doc)) for doc in (before, now)]
    kernels = [
        {**_named((*SAME, "way", "kernel"), key), **_change(seconds, timed[1][key])}
        for key, seconds in timed[0].items()
        if key in timed[1]
    ]
    alone = len(first.keys() ^ second.keys()) + len(timed[0].keys() ^ timed[1].keys())
    return {
        "rows": sorted(ours, key=_order),
        "kernels": kernels,
        "others": digits(statistics.median(others)) if others else None,
        "alone": alone,
    }


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in SAME)


def _named(names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["dtype"], not row["gated"], row["mode"], row["direction"] != "forward", row["length"])


def _both(
    before: dict[str, Any], now: dict[str, Any]
) -> Iterator[tuple[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """Contenders that were timed in both."""
    for name, entry in before.items():
        other = now.get(name, {})
        if "median_s" in entry and "median_s" in other:
            yield name, (entry, other)


def _kernels(doc: Document) -> Iterator[tuple[tuple[Any, ...], float]]:
    for case in by_kernel(doc):
        for way in case["ways"]:
            for kernel in way["kernels"]:
                yield (*_row(case), way["way"], kernel["kernel"]), kernel["each_s"]


def _change(before: float, now: float) -> dict[str, float]:
    return {"before_s": before, "now_s": now, "ratio": digits(now / before)}


def text(before: Document, now: Document) -> str:
    """The same for people; ratios below 1 are faster now."""
    found = compare(before, now)
    parts = [f"before: {head(before)}", f"now: {head(now)}", _warnings(before, now, found)]
    lines = [("case", "B x H", "contender", "before ms", "ms", "x before", "")]
    for row in found["rows"]:
        beyond = abs(row["ratio"] - 1) > row["noise"]
        said = ("faster" if row["ratio"] < 1 else "slower") if beyond else "within noise"
        times = (f"{1e3 * row[name]:.4g}" for name in ("before_s", "now_s"))
        lines.append((*_where(row), row["contender"], *times, f"{row['ratio']:.3f}", said))
    if len(lines) > 1:
        parts.append(table(lines))
    lines = [("case", "B x H", "way", "kernel", "before ns", "ns", "x before")]
    for k in found["kernels"]:
        times = (f"{1e9 * k[name]:.4g}" for name in ("before_s", "now_s"))
        lines.append((*_where(k), k["way"], k["kernel"], *times, f"{k['ratio']:.3f}"))
    if len(lines) > 1:
        parts.append(table(lines))
    return "\n\n".join(p for p in parts if p)


def _where(row: dict[str, Any]) -> tuple[str, str]:
    return case_name(row), f"{row['batch']} x {row['channels']}"


def _warnings(before: Document, now: Document, found: dict[str, Any]) -> str:
    """What else than our code may have changed."""
    said = []
    if before["dry_run"] or now["dry_run"]:
        said.append("Times of a dry run are invented: they compare nothing.")
    devices = [doc["environment"].get("device") for doc in (before, now)]
    if devices[0] != devices[1]:
        said.append(f"Not the same device: {devices[0]} before, {devices[1]} now.")
    if found["others"] is not None:
        said.append(f"Other programs took {found['others']:.3f} of their time before (median).")
    if found["alone"]:
        said.append(f"{found['alone']} rows and kernels are in one of the files only.")
    if not found["rows"] and not found["kernels"]:
        said.append("Nothing of ours is in both.")
    return "\n".join(said)

"""Plots of a results document: time, share of the floor and memory over the length (matplotlib, headless)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fftgen.bench import drawing
from fftgen.bench.results import Document, rows
from fftgen.bench.row import CONTENDERS
from fftgen.errors import InputError

COLOURS = (*(f"C{n}" for n in range(10)), "black", "gold")  # of contenders, each its own
# What each plot shows of a contender, with how it is scaled; None where it was not measured.
PANELS = (
    ("time (ms)", lambda row, c: 1e3 * c["median_s"], "log"),
    ("share of the floor", lambda row, c: c.get("floor_fraction"), "linear"),
    ("memory, in sizes of u", lambda row, c: _memory(row, c), "log"),
)


def _memory(row: dict[str, Any], c: dict[str, Any]) -> float | None:
    peak = c.get("peak_bytes")
    return None if not peak else peak / (2 * row["batch"] * row["channels"] * row["length"])


def groups(doc: Document) -> dict[str, list[dict[str, Any]]]:
    """Rows that belong into one figure, shortest first, by its title."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(doc):
        title = f"{row['mode']} {row['dtype']}, {'gated' if row['gated'] else 'ungated'}, {row['direction']}"
        found.setdefault(title, []).append(row)
    return {title: sorted(members, key=lambda r: int(r["length"])) for title, members in found.items()}


def draw(doc: Document, path: Path) -> None:
    """Write one picture: a line of panels for every mode, dtype, gating and direction that was measured.

    Memory is what a call takes beyond its inputs, its result included, over the bytes of u; in backward rows
    what a training step takes, forward and backward together.
    The file's ending names the format. Raises ToolchainError without matplotlib, InputError when there is
    nothing to draw or the file cannot be written.
    """
    drawing.require(path)
    found = groups(doc)
    if not found:
        raise InputError("nothing was measured: there is nothing to draw")
    figure = drawing.figure(5.2 * len(PANELS), 3.6 * len(found))
    axes = figure.subplots(len(found), len(PANELS), squeeze=False)
    for line, (title, members) in zip(axes, found.items(), strict=True):
        for axis, (label, value, scale) in zip(line, PANELS, strict=True):
            _panel(axis, members, label, value, scale)
        line[0].set_title(title, loc="left")
    e = doc["environment"]
    note = "DRY RUN: times are invented. " if doc["dry_run"] else ""
    figure.suptitle(
        f"{note}{e.get('device')}, torch {e.get('torch')}, fftgen {e.get('fftgen')}, {e.get('date')}"
    )
    drawing.save(figure, path)


def _panel(axis: Any, members: list[dict[str, Any]], label: str, value: Any, scale: str) -> None:
    for number, name in enumerate(CONTENDERS):  # one colour for a contender, whatever else is there
        points = [
            (row["length"], value(row, row["contenders"][name]))
            for row in members
            if "median_s" in row["contenders"].get(name, {})
        ]
        points = [p for p in points if p[1] is not None]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, color=COLOURS[number])
    if axis.lines:
        axis.set_xscale("log", base=2)
        axis.set_yscale(scale)
        axis.legend(fontsize="x-small")
    axis.set_xlabel("length")
    axis.set_ylabel(label)
    axis.grid(True, which="major", alpha=0.3)

"""A results document for people: proofs, contenders row by row, and a short table last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fftgen.bench.peers import PEERS
from fftgen.bench.results import Document, by_kernel, rows
from fftgen.bench.supervisor import CRASHED, LOST, NOT_RUN

NAMES = ("torch-complex", "torch-real")  # those the short table always shows; then the fastest peer
PREPARED = "torch-real-prepared"  # beside fftgen-prepared


def text(doc: Document, *, details: bool = False) -> str:
    """The account of a run. ``details``: also a line for every contender of every row, and for every kernel
    that a suite timed by itself."""
    parts = [head(doc), proofs(doc)]
    if details or doc["kind"] == "rows":
        parts.append(kernels(doc))
    if details:
        parts.append(contenders(doc))
    parts += [untimed(doc), alone(doc), not_run(doc), backward_note(doc), short(doc)]
    return "\n\n".join(p for p in parts if p)


def head(doc: Document) -> str:
    """What was measured where."""
    e = doc["environment"]
    lines = []
    if doc["dry_run"]:
        lines.append(
            "DRY RUN on the CPU: every time below is invented, and every result that of the CPU path"
        )
    lines.append(
        f"{e.get('device', 'unknown device')}, driver {e.get('driver')}, CUDA {e.get('cuda')}, "
        f"torch {e.get('torch')}, NVRTC {e.get('nvrtc')}, fftgen {e.get('fftgen')}, commit {e.get('commit')}"
    )
    rate = doc["copy_bytes_per_s"]
    copied = f"copy bandwidth {rate / 1e9:.0f} GB/s (read + written); " if rate else ""
    lines.append(f"{e.get('date')}; {copied}times: {e.get('timer')}; seed {doc['seed']}")
    return "\n".join(lines)


def proofs(doc: Document) -> str:
    """A line for every step that is no row."""
    lines = []
    for step in doc["steps"]:
        if step["kind"] in ("row", "environment", "bandwidth") or step["status"] == NOT_RUN:
            continue
        said = step.get("reason") or _summary(step["kind"], step.get("result", {}))
        lines.append((step["name"], step["status"], said))
    return table(lines) if lines else ""


def backward_note(doc: Document) -> str:
    """What the figures of backward rows are of, where there are any."""
    found = [r for r in rows(doc) if r["direction"] == "backward"]
    if not found:
        return ""
    scaled = any(r.get("over_forward_scaled") for r in found)
    return (
        "Backward rows: times are of the backward pass alone, all gradients; memory (MB) is that of a\n"
        "training step, forward and backward together. x forward: over our own forward pass of the same case"
        + ("; ~: it had more channels, so for each of them." if scaled else ".")
    )


def _summary(kind: str, result: dict[str, Any]) -> str:
    if kind in ("correctness", "gradient"):
        cases = result["cases"]
        if any(c["worst_row"] is None for c in cases):
            return f"{len(cases)} cases, results that are not finite"
        worst = max(cases, key=lambda c: float(c["worst_row"] / c["worst_row_bound"]))
        return (
            f"{len(cases)} cases, worst row {worst['worst_row']:.1e} (bound {worst['worst_row_bound']:.1e})"
        )
    if kind == "agreement":
        if not result["finite"]:
            return "results that are not finite"
        return (
            f"{100 * result['identical']:.2f} % identical; largest difference {result['largest_ulps']} units "
            f"of the element's last place, {result['largest_row_ulps']:.2g} of the row's"
        )
    if kind == "gradient agreement":
        if not result["finite"]:
            return "results that are not finite"
        return (
            f"{100 * result['identical']:.2f} % identical; relative difference "
            f"{result['relative_difference']:.1e} (bound {result['relative_bound']:.1e})"
        )
    if kind == "sanitizer":
        return str(result["summary"])
    if kind == "overhead":
        return ", ".join(f"{name} {c['median_us']:.1f} us" for name, c in result["calls"].items())
    if kind == "cold start":
        return f"{result['cold_s']:.2f} s, from the cache {1e3 * result['from_cache_s']:.0f} ms"
    if kind == "rates":
        slopes = ", ".join(f"{n} {_rate(x)}" for n, x in result["l2_bytes_per_s"].items())
        return f"L2 {slopes}; matrices {result['matrix_flops'] / 1e12:.3g} TFLOP/s"
    if kind == "kernels":
        return "; ".join(f"{way['way']} {_ns(_sum(way, 'each_s'))}" for way in result["ways"])
    return f"{result['modules']} modules" if "modules" in result else ""


def _rate(bytes_per_s: float | None) -> str:
    return "unknown" if bytes_per_s is None else f"{bytes_per_s / 1e9:.0f} GB/s"


def _ns(seconds: float) -> str:
    return f"{1e9 * seconds:.{1 if seconds < 1e-7 else 0}f} ns"


def _sum(way: dict[str, Any], figure: str) -> float:
    """Of all kernels of a transform."""
    return float(sum(k[figure] for k in way["kernels"] if k["of"] == "transform"))


def kernels(doc: Document) -> str:
    """Every kernel that was timed by itself: times of a transform or of a filter, and by the cost model."""
    lines = [("case", "B x H", "way", "kernel", "launches", "each", "predicted", "x predicted")]
    for case in by_kernel(doc):
        where = (case["case"], f"{case['batch']} x {case['channels']}")
        for way in case["ways"]:
            name = way["way"]
            found = [(k["kernel"], str(k["launches"]), k["each_s"], k["predicted_s"]) for k in way["kernels"]]
            found.append(("all of a transform", "", _sum(way, "each_s"), _sum(way, "predicted_s")))
            for kernel, launches, each, predicted in found:
                beside = ("", "") if predicted is None else (_ns(predicted), f"{each / predicted:.2f}")
                times = _ns(each), *beside
                lines.append((*where, name, kernel, launches, *times))
                where, name = ("", ""), ""
    return table(lines) if len(lines) > 1 else ""


def contenders(doc: Document) -> str:
    """Every contender that was timed, row by row."""
    lines = [("case", "B x H", "contender", "ms", "spread", "floor", "x fftgen", "MB", "error")]
    for row in rows(doc):
        first = True
        for name, c in row["contenders"].items():
            if "median_s" not in c:
                continue
            where = (case_name(row), f"{row['batch']} x {row['channels']}") if first else ("", "")
            first = False
            lines.append((*where, name, *_figures(c)))
    return table(lines) if len(lines) > 1 else ""


def case_name(row: dict[str, Any]) -> str:
    """What a row is of, short."""
    backward = " backward" if row["direction"] == "backward" else ""
    short = f" {row['taps']} taps" if row.get("taps") else ""
    return f"{row['mode']} {row['length']} {row['dtype']}{short}{' gated' if row['gated'] else ''}{backward}"


def _figures(c: dict[str, Any]) -> tuple[str, ...]:
    peak = c.get("peak_bytes")
    return (
        _ms(c["median_s"]),
        f"{100 * c['spread']:.1f} %",
        f"{100 * c['floor_fraction']:.0f} %" if "floor_fraction" in c else "",
        f"{c['ratio']:.2f}" if "ratio" in c else "",
        "" if peak is None else f"{peak / 1e6:.0f}",
        f"{c['error']:.1e}",
    )


def untimed(doc: Document) -> str:
    """Contenders without a time: unavailable, wrong, failed or lost, each reason once, worst errors said."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows(doc):
        for name, c in row["contenders"].items():
            if "median_s" not in c:
                errors = found.setdefault((name, c["status"], c.get("reason", "")), [])
                errors.append(math.nan if c.get("error") is None else c["error"])
    lines = []
    for (name, status, reason), errors in sorted(found.items()):
        known = [e for e in errors if not math.isnan(e)]
        said = f" (error up to {max(known):.1e})" if known else ""
        rows_ = f"{len(errors)} row{'' if len(errors) == 1 else 's'}"
        lines.append((name, status if status == "unavailable" else status.upper(), rows_, reason + said))
    return table(lines) if lines else ""


def alone(doc: Document) -> str:
    """Contenders whose times were not taken turn by turn with the others': their ratios are less worth."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows(doc):
        for name, c in row["contenders"].items():
            if "median_s" in c and "timed_alone" in c:
                found.setdefault((name, c["timed_alone"]), []).append(case_name(row))
    return "\n".join(f"{name} timed alone ({why}): {', '.join(of)}" for (name, why), of in found.items())


def not_run(doc: Document) -> str:
    """Everything that was planned and did not run, and rows that were lost as a whole."""
    reasons: dict[str, list[str]] = {}
    for step in doc["steps"]:
        if step["status"] == NOT_RUN:
            reasons.setdefault(f"not run ({step['reason']})", []).append(step["name"])
        elif (
            step["kind"] in ("row", "environment", "bandwidth")
            and step["status"] in ("wrong", "failed", CRASHED, LOST)
            and "contenders" not in step.get("result", {})
        ):
            reasons.setdefault(f"{step['status']} ({step.get('reason', '')})", []).append(step["name"])
    return "\n".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())


def short(doc: Document) -> str:
    """A line per row: our time, its share of the floor, and how many times slower the others are.

    Where there are backward rows, a column says how many of our own forward passes they take.
    """
    found = rows(doc)
    backward = any(r["direction"] == "backward" for r in found)
    column = ("x forward",) if backward else ()
    lines: list[tuple[str, ...]] = [
        (
            "case",
            "fftgen ms",
            "floor",
            *column,
            "prepared",
            "floor",
            *(f"{n} x" for n in NAMES),
            "both prepared x",
            "fastest peer",
        )
    ]
    for row in found:
        c = row["contenders"]
        lines.append(
            (
                case_name(row),
                *_own(c.get("fftgen", {})),
                *((_over_forward(row),) if backward else ()),
                *_own(c.get("fftgen-prepared", {})),
                *(_ratio(c.get(name, {})) for name in NAMES),
                _both_prepared(c.get(PREPARED, {})),
                _fastest(c),
            )
        )
    counts = ", ".join(f"{n} {status}" for status, n in sorted(doc["counts"].items()))
    total = f"{counts}; {doc['seconds']:.0f} s" + ("" if doc["passed"] else "; FAILED")
    crossings = [
        f"attention ({dtype}): " + ("still faster at the longest length" if n is None else f"slower from {n}")
        for dtype, n in doc["crossover"].items()
    ]
    return "\n".join([table(lines)] * bool(found) + crossings + [total])


def _own(c: dict[str, Any]) -> tuple[str, str]:
    if "median_s" not in c:
        return c.get("status", "-"), ""
    return _ms(c["median_s"]), f"{100 * c['floor_fraction']:.0f} %" if "floor_fraction" in c else ""


def _over_forward(row: dict[str, Any]) -> str:
    if "over_forward" not in row:
        return ""
    return f"{'~' if row['over_forward_scaled'] else ''}{row['over_forward']:.2f}"


def _ratio(c: dict[str, Any]) -> str:
    if "median_s" not in c:
        return str(c.get("status", "-"))
    return f"{c['ratio']:.2f}" if "ratio" in c else _ms(c["median_s"]) + " ms"


def _both_prepared(c: dict[str, Any]) -> str:
    """The library with its spectrum given over fftgen with its own given."""
    return f"{c['prepared_ratio']:.2f}" if "prepared_ratio" in c else "-"


def _fastest(c: dict[str, Any]) -> str:
    timed = [(c[p.name]["median_s"], p.name) for p in PEERS if "median_s" in c.get(p.name, {})]
    if not timed:
        return "none here"
    _, name = min(timed)
    return f"{name} {_ratio(c[name])}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """Lines of cells, as wide as the widest of their column."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

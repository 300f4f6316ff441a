"""A report as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fftgen.simulator.report import Accesses, Counters, Report


def table(report: Report) -> str:
    """Instructions, matrix operations, traffic and barriers of a kernel, then the lines that cost most."""
    c = report.counters
    lines = [f"{report.kernel}: {report.blocks} block(s), {c.total_instructions} warp instructions"]
    for title, counts in (("instructions", c.instructions), ("tensor cores", c.tensor)):
        for name, n in sorted(counts.items(), key=lambda item: -item[1]):
            lines.append(f"  {title:14} {name:40} {n:>12}")
    header = f"  {'':14} {'':28} {'requests':>10} {'bytes':>12} {'moved':>10} {'least':>10} {'distinct':>12}"
    lines.append(header)
    for name, b in c.buffers.items():
        for what, a in (("loads", b.loads), ("stores", b.stores), ("atomics", b.atomics)):
            if a.requests:
                lines.append(f"  {'sectors':14} {name + ' ' + what:28} {_row(a)} {a.distinct:>12}")
    for what, a in (("loads", c.shared_loads), ("stores", c.shared_stores), ("atomics", c.shared_atomics)):
        if a.requests:
            lines.append(f"  {'wavefronts':14} {'shared ' + what:28} {_row(a)}")
    for what, n in (("loaded from", c.remote_loaded), ("stored to", c.remote_stored)):
        if n:
            lines.append(f"  {'remote':14} {what + ' other blocks':28} {'':>10} {n:>12}")
    lines.append(f"  {'barriers':14} {'warps arrived':28} {c.barriers:>10}")
    lines.append(f"  {'':14} {'completed by blocks':28} {c.block_barriers:>10}")
    lines += _lines(report)
    return "\n".join(lines)


def _row(a: Accesses) -> str:
    return f"{a.requests:>10} {a.bytes:>12} {a.units:>10} {a.least:>10}"


def _lines(report: Report) -> list[str]:
    source = report.source.splitlines() if report.source is not None else []
    rows = ["  source line     instructions   tensor  sectors  wavefronts (least)"]
    ranked: list[tuple[int, Counters]] = sorted(
        report.by_line.items(), key=lambda item: -item[1].total_instructions
    )
    for line, c in ranked[:20]:
        text = source[line - 1].strip()[:60] if 0 < line <= len(source) else ""
        sectors = sum(b.loads.units + b.stores.units + b.atomics.units for b in c.buffers.values())
        rows.append(
            f"  {line:>11} {c.total_instructions:>16} {sum(c.tensor.values()):>8} {sectors:>8}"
            f" {c.shared_wavefronts:>11} ({c.shared_wavefronts_least})  {text}"
        )
    return rows

"""What the simulator found of every kernel of the portfolio: errors and counters, kept in ``generated/``.

Inputs are drawn from the seed that the file names, so that a run can be repeated. The file says which
sources it is about: after a change to one of them it is out of date until it is written anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from fftgen import nvrtc
from fftgen.cache import Cache
from fftgen.pipeline import build
from fftgen.portfolio import INDEX, MEMBERS, Member, as_json, sources
from fftgen.portfolio import table as resources_table
from fftgen.render import render
from fftgen.simulator import Accesses, Report
from fftgen.source import Source
from fftgen.verify import CaseResult, verify_built

VERIFIED = "verified.json"
PAGE = "README.md"
TITLE = "# What the generator wrote"
BLOCKS = ": blocks ["  # in the description of a launch whose blocks are a sample (sampled.py)


def digest(source: Source) -> str:
    """SHA-256 over a source and the device headers that it includes."""
    total = hashlib.sha256()
    for name, text in (("", source.text), *sorted(source.headers.items())):
        total.update(f"{name}\n{len(text)}\n{text}".encode())
    return total.hexdigest()


def stale(found: dict[str, Any]) -> list[str]:
    """Members of the portfolio that evidence does not cover as they are now."""
    known = {m["member"]: m["source_sha256"] for m in found["modules"]}
    return [m.stem for m in MEMBERS if known.get(m.stem) != digest(render(m.plan))]


def evidence(
    seed: int, cache: Cache | None = None, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Verify every member of the portfolio on the simulator: plain data, the same for the same seed.

    Raises SimulationError when a kernel does what no kernel may.
    """
    modules = []
    for member in MEMBERS:
        if progress is not None:
            progress(member.stem)
        modules.append(examine(member, seed, cache))
    return {"compiler": f"nvrtc {nvrtc.build()}", "seed": seed, "modules": modules}


def files(facts: dict[str, Any], found: dict[str, Any] | None) -> dict[str, str]:
    """Everything in the directory: sources, plans, the index, the evidence if there is any, and a page."""
    texts = {**sources(), INDEX: as_json(facts), PAGE: page(facts, found)}
    return texts if found is None else {**texts, VERIFIED: as_json(found)}


def page(facts: dict[str, Any], found: dict[str, Any] | None) -> str:
    """The index and the evidence for people."""
    lines = [
        TITLE,
        "",
        "Rendered sources and plans of a small portfolio. Do not edit: `fftgen portfolio` writes them again,",
        "`fftgen portfolio --check` says whether they are what it would write. `*.cu` is what the compiler",
        "gets (its headers are in `fftgen/templates/device/`), `*.plan.json` the plan it was rendered from.",
        "",
        "## Resources",
        "",
        f"As {facts['compiler']} reports them: registers per thread; spilled bytes per thread, stores and",
        "loads; dynamic shared memory in bytes per block.",
        "",
        *resources_table(facts),
    ]
    if found is not None:
        lines += [
            "",
            "## Verified",
            "",
            f"By `fftgen portfolio --verify --seed {found['seed']}`: the PTX that {found['compiler']} makes",
            "of each source, executed in the simulator on random inputs and held against float64. Relative",
            "L2 errors of the case, and of the row, that come closest to their bounds. Counters of the first",
            "case: matrix instructions, 32-byte sectors of device memory and wavefronts of shared memory,",
            "with the least that the same requests could take. A star: a long transform, each launch of it",
            "run on sampled blocks from an exact state. Where one launch may carry out a call, a case is one",
            "that it does. `verified.json` has every case, kernel and buffer.",
            "",
            *table(found),
        ]
    return "\n".join(lines) + "\n"


def examine(member: Member, seed: int, cache: Cache | None = None) -> dict[str, Any]:
    """Verify one member of the portfolio: its cases, with errors and counters."""
    built = build(member.problem, member.target, cache)
    found = verify_built(built, seed=seed)
    return {
        "member": member.stem,
        "name": found.name,
        "source_sha256": digest(built.source),
        "passed": found.passed,
        "cases": [_case(c) for c in found.cases],
    }


def _case(case: CaseResult) -> dict[str, Any]:
    accuracy = case.accuracy
    return {
        "case": case.description,
        "error": _rounded(accuracy.overall),
        "error_bound": _rounded(accuracy.overall_bound),
        "worst_row": _rounded(accuracy.row),
        "worst_row_bound": _rounded(accuracy.row_bound),
        "passed": accuracy.passed,
        "kernels": {name: _kernel(report) for name, report in case.reports.items()},
    }


def _kernel(report: Report) -> dict[str, Any]:
    counters = report.counters
    return {
        "blocks": report.blocks,
        "instructions": counters.total_instructions,
        "tensor": dict(counters.tensor),
        "buffers": {
            name: {
                kind: _accesses(a, "sectors")
                for kind, a in (("loads", buffer.loads), ("stores", buffer.stores))
                if a.requests
            }
            for name, buffer in counters.buffers.items()
        },
        "shared": {
            "loads": _accesses(counters.shared_loads, "wavefronts"),
            "stores": _accesses(counters.shared_stores, "wavefronts"),
        },
        "barriers": counters.block_barriers,
    }


def _accesses(a: Accesses, unit: str) -> dict[str, int]:
    found = {"requests": a.requests, "bytes": a.bytes, unit: a.units, f"{unit}_least": a.least}
    return {**found, "distinct_bytes": a.distinct} if unit == "sectors" else found


def _rounded(error: float) -> float:
    """Three digits: the last ones of a sum depend on the machine."""
    return float(f"{error:.3g}")


def table(found: dict[str, Any]) -> list[str]:
    """Lines of a table: the worst case of every module, and the counters of its first case."""
    lines = [
        "| kernels | cases | error | bound | worst row | bound | matrix instructions | sectors (least) "
        "| wavefronts (least) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for module in found["modules"]:
        cases = module["cases"]
        whole = max(cases, key=lambda c: float(c["error"] / c["error_bound"]))
        row = max(cases, key=lambda c: float(c["worst_row"] / c["worst_row_bound"]))
        # A long transform is checked launch by launch, so that those cases together are one pass.
        first = [c for c in cases if BLOCKS in c["case"]] or cases[:1]
        kernels = [k for case in first for k in case["kernels"].values()]
        lines.append(
            f"| {module['member']}{' *' if _sampled(module) else ''} | {len(cases)} "
            f"| {whole['error']:.2e} | {whole['error_bound']:.2e} "
            f"| {row['worst_row']:.2e} | {row['worst_row_bound']:.2e} "
            f"| {sum(sum(k['tensor'].values()) for k in kernels)} | {_sum(kernels, 'sectors')} "
            f"| {_sum(kernels, 'wavefronts')} |"
        )
    return lines


def _sampled(module: dict[str, Any]) -> bool:
    return any(BLOCKS in case["case"] for case in module["cases"])


def _sum(kernels: list[dict[str, Any]], unit: str) -> str:
    parts = [
        part
        for kernel in kernels
        for group in ([kernel["shared"]] if unit == "wavefronts" else kernel["buffers"].values())
        for part in group.values()
    ]
    return f"{sum(p[unit] for p in parts)} ({sum(p[f'{unit}_least'] for p in parts)})"

"""``fftgen build``: artifacts for lengths, storage types and architectures."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fftgen import api
from fftgen.cli.options import (
    STORAGE_TYPES,
    Place,
    common,
    engine,
    lengths,
    mode,
    plural,
    print_json,
    table,
)
from fftgen.pipeline import Built
from fftgen.targets import target as find_target


@click.command("build")
@click.option(
    "--seqlen", "seqlens", multiple=True, required=True, metavar="N|N..M", help="Length, or powers of two."
)
@click.option("--dtype", "dtypes", multiple=True, default=("bf16",), show_default=True, help=STORAGE_TYPES)
@click.option(
    "--arch", "archs", multiple=True, help="Architecture, e.g. sm_90. Default: all, and PTX for newer ones."
)
@mode
@engine
@click.option(
    "-o",
    "--output",
    type=Place(path_type=Path),
    default=api.DIRECTORY,
    show_default=True,
    help="Directory for a file per convolution, or one .fftgen file for all.",
)
@click.option("--train", is_flag=True, help="With the kernels of the backward pass.")
@common
def command(
    seqlens: tuple[str, ...],
    dtypes: tuple[str, ...],
    archs: tuple[str, ...],
    causal: bool,
    engine: str | None,
    output: Path,
    train: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Plan, render and compile, and write artifacts for fftgen.load.

    --seqlen, --dtype and --arch may be given several times. A circular convolution also brings the causal
    one of half its length, which serves its padded calls. Files are replaced only when all of it succeeded.
    """
    started = time.perf_counter()
    problems = [api.problem(n, dtype, causal=causal) for n in lengths(seqlens) for dtype in dtypes]
    files = api.files_for(problems, output, engine)
    targets = [find_target(name) for name in dict.fromkeys(archs)]
    jobs = {job for problem in problems for job in api.jobs_for(problem, targets, train, engine)}
    lock = threading.Lock()
    with click.progressbar(
        length=len(jobs), label=f"building {plural(len(jobs), 'module')}", file=sys.stderr
    ) as bar:

        def step(_: Built) -> None:
            with lock:
                bar.update(1)

        written = api.build_files(files, targets, train, done=step, engine=engine)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"files": [_document(f) for f in written], "seconds": round(seconds, 3)})
        return
    for file in written:
        click.echo(table([_row(b) for b in file.built]))
        if verbose:
            for built in file.built:
                click.echo(_details(built))
        click.echo(f"{file.path}  {file.nbytes} bytes  sha256 {file.sha256}")
    click.echo(f"{plural(len(written), 'file')}, {plural(len(jobs), 'module')} in {seconds:.1f} s")


def shape(built: Built) -> str:
    """Transform, factors with their places, packing: the middle of the plan's line."""
    return str(built.subject).split(" | ")[1]


def _row(built: Built) -> tuple[str, ...]:
    """One line: the figures of the kernel that takes most."""
    p, found = built.plan.problem, list(built.resources.values())
    if found:
        spilled = sum(r.spill_store_bytes + r.spill_load_bytes for r in found)
        registers = f"{max(r.registers for r in found)} registers"
        spills = f"{spilled} bytes spilled" if spilled else "no spills"
    else:
        registers, spills = "PTX", ""
    what = built.gradient.label if built.gradient else p.mode
    return (
        f"{what} {p.length} {p.dtype} {built.plan.target}",
        shape(built),
        plural(len(built.entries) - (0 if built.gradient else len(built.plan.filter.kernels)), "kernel"),
        registers,
        spills,
        f"{max(built.entries.values())} B shared",
        f"{len(built.image)} B code",
        "cached" if built.cached else f"{built.seconds:.2f} s",
    )


def _details(built: Built) -> str:
    """The plan's line, and a line per kernel."""
    rows = [(f"  {k}", *_figures(built, k), f"{shared} B shared") for k, shared in built.entries.items()]
    return f"{built.subject}\n{table(rows)}"


def _figures(built: Built, entry: str) -> tuple[str, str]:
    r = built.resources.get(entry)
    if r is None:
        return "PTX", ""
    return f"{r.registers} registers", f"{r.spill_store_bytes}/{r.spill_load_bytes} B spilled (store/load)"


def _document(file: api.File) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "sha256": file.sha256,
        "bytes": file.nbytes,
        "modules": [
            {
                "name": b.subject.name,
                "plan": str(b.subject),
                "digest": b.subject.digest,
                "target": b.plan.target,
                "code_bytes": len(b.image),
                "table_bytes": len(b.tables),
                "shared_bytes": b.entries,
                "resources": {name: asdict(r) for name, r in b.resources.items()},
                "cached": b.cached,
                "seconds": round(b.seconds, 3),
            }
            for b in file.built
        ],
    }

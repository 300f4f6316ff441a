"""``fftgen inspect``: what is in an artifact."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from fftgen import bundle, sass
from fftgen.bundle import Shelf, open_shelf
from fftgen.cli import roofline as views
from fftgen.cli.options import Place, common, print_json, table
from fftgen.errors import InputError
from fftgen.pipeline import Built
from fftgen.roofline import Roofline, of_built
from fftgen.targets import target as find_target

MATRIX = ("HMMA", "HGMMA", "UTCHMMA")  # opcodes of the tensor cores
MOST = 12


@click.command("inspect")
@click.argument("file", type=Place(path_type=Path))
@click.option(
    "--sass", "mix", is_flag=True, help="Count the machine instructions of every kernel (nvdisasm)."
)
@click.option("--arch", "archs", multiple=True, help="Only the modules for an architecture, e.g. sm_90.")
@views.options
@common
def command(
    file: Path,
    mix: bool,
    archs: tuple[str, ...],
    roofline: bool,
    gated: bool,
    plot: Path | None,
    batch: int | None,
    channels: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Check every digest of an artifact and list its plans, code and resources.

    Instructions are counted as they stand in the code: the body of a loop counts once. --roofline predicts
    times from registers as compiled and, where NVRTC and nvdisasm are installed, from the instructions on
    the path that a full, aligned call takes (every module is compiled once more for it).
    """
    shape = views.check(roofline, gated, plot, batch, channels)
    shelf = open_shelf(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    modules = _chosen([bundle.unpack(m) for m in shelf.contents.modules], archs)
    found: dict[str, Roofline] = {}
    for number, built in enumerate(modules if roofline else (), 1):
        click.echo(f"[{number}/{len(modules)}] {built.subject.name}", err=True)
        found[built.subject.name] = of_built(built, shape, gated)
    if plot is not None:
        views.draw(list(found.values()), plot)
    mixes = {
        b.subject.name: sass.instruction_mix(sass.disassemble(b.cubin)) for b in modules if mix and b.cubin
    }
    if as_json:
        print_json(_document(file, digest, shelf, modules, mixes, found))
        return
    click.echo(f"{file}  {file.stat().st_size} bytes  sha256 {digest}")
    click.echo(f"made by fftgen {shelf.contents.fftgen} with {shelf.contents.compiler}; every digest matches")
    click.echo("convolutions: " + ", ".join(f"{p.mode} {p.length} {p.dtype}" for p in shelf.main))
    for built in modules:
        click.echo(f"\n{built.subject}")
        if verbose:
            click.echo(f"  name {built.subject.name}\n  plan digest {built.subject.digest}")
        kind = "cubin" if built.cubin else "PTX"
        click.echo(f"  {kind} {len(built.image)} bytes, tables {len(built.tables)} bytes")
        click.echo(_kernels(built))
        for entry, counts in mixes.get(built.subject.name, {}).items():
            click.echo(f"  {_short(built, entry)}: {_mix(counts)}")
        if built.subject.name in found:
            click.echo(indent(views.text(found[built.subject.name]), "  "))


def _chosen(modules: list[Built], archs: tuple[str, ...]) -> list[Built]:
    """The modules for some architectures; all of them where none is named."""
    names = {find_target(arch).name for arch in archs}
    missing = sorted(names - {b.plan.target for b in modules})
    if missing:
        there = ", ".join(dict.fromkeys(b.plan.target for b in modules))
        raise InputError(
            f"the artifact has no module for {missing[0]}, but for {there}: build it with --arch {missing[0]}"
        )
    return [b for b in modules if not names or b.plan.target in names]


def _short(built: Built, entry: str) -> str:
    """The part of a kernel's name that tells it from the others of its module."""
    if built.gradient is not None and entry == built.gradient.name:
        return built.gradient.label
    if built.gradient is not None and entry == built.gradient.sums_name:
        return "sums"
    return entry.removeprefix(built.plan.name).lstrip("_") or "convolve"


def _kernels(built: Built) -> str:
    rows = []
    for entry, shared in built.entries.items():
        found = built.resources.get(entry)
        figures = (
            ("compiled by the driver", "")
            if found is None
            else (
                f"{found.registers} registers",
                f"{found.spill_store_bytes}/{found.spill_load_bytes} B spilled (store/load)",
            )
        )
        rows.append((f"  {_short(built, entry)}", *figures, f"{shared} B shared"))
    return table(rows)


def _mix(counts: Counter[str]) -> str:
    matrix = sum(counts[name] for name in MATRIX)
    common_ones = ", ".join(f"{name} {count}" for name, count in counts.most_common(MOST))
    return f"{counts.total()} instructions, {matrix} on tensor cores: {common_ones}"


def _document(
    file: Path,
    digest: str,
    shelf: Shelf,
    modules: list[Built],
    mixes: dict[str, dict[str, Counter[str]]],
    found: dict[str, Roofline],
) -> dict[str, Any]:
    return {
        "path": str(file),
        "sha256": digest,
        "bytes": file.stat().st_size,
        "fftgen": shelf.contents.fftgen,
        "compiler": shelf.contents.compiler,
        "convolutions": [asdict(p) for p in shelf.main],
        "modules": [
            {
                "name": b.subject.name,
                "plan": str(b.subject),
                "digest": b.subject.digest,
                "target": b.plan.target,
                "kind": "cubin" if b.cubin else "ptx",
                "code_bytes": len(b.image),
                "table_bytes": len(b.tables),
                "shared_bytes": b.entries,
                "resources": {entry: asdict(r) for entry, r in b.resources.items()},
                "instructions": {e: dict(c) for e, c in mixes.get(b.subject.name, {}).items()},
                "roofline": found[b.subject.name].as_dict() if b.subject.name in found else None,
            }
            for b in modules
        ],
    }

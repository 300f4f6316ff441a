"""``fftgen portfolio``: the committed kernels in ``generated/``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from fftgen import api, portfolio
from fftgen.cli.options import common, plural, print_json
from fftgen.durable import replace_file
from fftgen.errors import InputError
from fftgen.pipeline import Built

ENDS = (".cu", ".plan.json")  # what this command owns in the directory, beside the index


@click.command("portfolio")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=api.DIRECTORY,
    show_default=True,
    help="Directory.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if anything differs.")
@common
@click.pass_context
def command(ctx: click.Context, output: Path, check: bool, as_json: bool, verbose: bool) -> None:
    """Write the sources, plans and resources of a small portfolio of kernels.

    They are committed, so that a change to the planner or to a template is reviewed as a diff of kernels.
    """
    lock = threading.Lock()
    jobs = len(portfolio.PROBLEMS) * len(portfolio.MEASURED)
    with click.progressbar(length=jobs, label=f"building {plural(jobs, 'module')}", file=sys.stderr) as bar:

        def step(_: Built) -> None:
            with lock:
                bar.update(1)

        wanted = portfolio.files(done=step)
    present = {p.name for p in output.glob("*") if p.name in wanted or p.name.endswith(ENDS)}
    stale = sorted(present - wanted.keys())
    changed = sorted(n for n, text in wanted.items() if n not in present or (output / n).read_text() != text)
    if not check:
        _write(output, {name: wanted[name] for name in changed}, stale)
    if as_json:
        print_json({"directory": str(output), "files": len(wanted), "changed": changed, "removed": stale})
    else:
        for name in changed:
            click.echo(f"{'differs' if check else 'wrote'} {output / name}")
        for name in stale:
            click.echo(f"{'does not belong' if check else 'removed'} {output / name}")
        click.echo(f"{plural(len(wanted), 'file')}, {len(changed)} changed, {len(stale)} removed")
    if check and (changed or stale):
        ctx.exit(1)


def _write(output: Path, texts: dict[str, str], stale: list[str]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_file(output / name, text.encode())
        for name in stale:
            (output / name).unlink()
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error}): name a writable directory") from error

"""``fftgen portfolio``: the committed kernels in ``generated/``."""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import click

from fftgen import api, portfolio
from fftgen.cli.options import SEED, Place, common, plural, print_json
from fftgen.durable import replace_file, writing
from fftgen.errors import InputError
from fftgen.pipeline import Built


@click.command("portfolio")
@click.option(
    "-o",
    "--output",
    type=Place(path_type=Path, file_okay=False),
    default=api.DIRECTORY,
    show_default=True,
    help="Directory.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if anything differs.")
@click.option(
    "--verify", is_flag=True, help="Run every kernel on the CPU and write what it showed (minutes)."
)
@click.option("--seed", type=SEED, help="With --verify: draws the inputs. Default: a new one, written down.")
@common
@click.pass_context
def command(
    ctx: click.Context,
    output: Path,
    check: bool,
    verify: bool,
    seed: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Write the sources, plans and resources of a small portfolio of kernels.

    They are committed, so that a change to the planner or to a template is reviewed as a diff of kernels.
    Sources and plans that this command wrote, of kernels that are in the portfolio no more, are removed and
    named; files of other names, or without the head of a generated one, stay.
    """
    from fftgen import evidence  # PyTorch: a second that `fftgen --help` should not take

    if check and verify:
        raise InputError("--check writes nothing and --verify does: one of them")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is no directory: name one, or one that is not made yet")
    _own(output / evidence.PAGE, lambda text: text.startswith(evidence.TITLE))
    _own(output / portfolio.INDEX, lambda text: (_keys(text) or set()) >= {"compiler", "modules"})
    # What is no JSON at all is damaged (_kept), and --verify writes it anew.
    known = {"compiler", "modules", "seed"}
    _own(output / evidence.VERIFIED, lambda text: (keys := _keys(text)) is None or keys >= known)
    facts = _index()
    found: dict[str, Any] | None
    if verify:
        seed = secrets.randbelow(2**31) if seed is None else seed
        found = evidence.evidence(seed, progress=lambda member: click.echo(f"verifying {member}", err=True))
    else:
        found = _kept(output / evidence.VERIFIED)
    wanted = evidence.files(facts, found)
    outdated = evidence.stale(found) if found else [m.stem for m in portfolio.MEMBERS]
    present = _texts(output, wanted)
    surplus = sorted(n for n, text in present.items() if n not in wanted and portfolio.writes(n, text))
    changed = sorted(n for n, text in wanted.items() if present.get(n) != text)
    if not check:
        _write(output, {name: wanted[name] for name in changed}, surplus)
    if as_json:
        report = {"files": len(wanted), "changed": changed, "removed": surplus, "outdated": outdated}
        print_json({"directory": str(output), **report})
    else:
        for name in changed:
            click.echo(f"{'differs' if check else 'wrote'} {output / name}")
        for name in surplus:
            click.echo(f"{'does not belong' if check else 'removed'} {output / name}")
        for stem in outdated:
            click.echo(f"not verified as it is: {stem} (--verify)")
        click.echo(f"{plural(len(wanted), 'file')}, {len(changed)} changed, {len(surplus)} removed")
    failed = [m["member"] for m in found["modules"] if not m["passed"]] if found else []
    for stem in failed:
        click.echo(f"error: {stem} is not as exact as it must be", err=True)
    if failed or (check and (changed or surplus or outdated)):
        ctx.exit(1)


def _index() -> dict[str, Any]:
    lock = threading.Lock()
    jobs = len(portfolio.PROBLEMS) * len(portfolio.MEASURED)
    with click.progressbar(length=jobs, label=f"building {plural(jobs, 'module')}", file=sys.stderr) as bar:

        def step(_: Built) -> None:
            with lock:
                bar.update(1)

        return portfolio.index(done=step)


def _texts(output: Path, wanted: Container[str]) -> dict[str, str]:
    """What lies under names of this command's files."""
    try:
        return {
            p.name: p.read_text(encoding="utf-8", errors="replace")
            for p in output.glob("*")
            if (p.name in wanted or portfolio.NAME.fullmatch(p.name)) and p.is_file()
        }
    except OSError as error:
        raise InputError(f"{output} cannot be read ({error}): name another directory") from error


def _kept(path: Path) -> dict[str, Any] | None:
    """The evidence that is there."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, or write it with --verify") from error
    return found


def _own(path: Path, known: Callable[[str], bool]) -> None:
    """Raise InputError for a file of a name of ours that something else wrote."""
    if path.is_file() and not known(path.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{path} is not this command's: name a directory that has none of its own")


def _keys(text: str) -> set[str] | None:
    """Those of a JSON object, none of other JSON; None: no JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return set(found) if isinstance(found, dict) else set()


def _write(output: Path, texts: dict[str, str], surplus: list[str]) -> None:
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with writing(output / name):
            replace_file(output / name, text.encode())
    for name in surplus:
        with writing(output / name):
            (output / name).unlink()

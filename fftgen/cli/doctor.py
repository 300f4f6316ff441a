"""``fftgen doctor``: what is installed, and what is missing for what."""

from __future__ import annotations

from dataclasses import asdict

import click

from fftgen import doctor
from fftgen.cli.options import common, print_json, table


@click.command("doctor")
@common
@click.pass_context
def command(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """Say what this machine has and what is missing for what; exit with 1 if it cannot compile."""
    parts = doctor.examine()
    variables = doctor.variables()
    if as_json:
        names = ("name", "value", "meaning", "default")
        print_json(
            {
                "parts": [asdict(p) for p in parts],
                "variables": [dict(zip(names, row, strict=True)) for row in variables],
            }
        )
    else:
        click.echo(table([("ok" if p.present else "--", p.name, f"{p.detail} [{p.needed}]") for p in parts]))
        click.echo()
        rows = [
            (name, "not set" if value is None else value or "empty", f"{meaning}; default: {default}")
            for name, value, meaning, default in variables
        ]
        click.echo(table(rows))
    if any(p.build and not p.present for p in parts):
        ctx.exit(1)

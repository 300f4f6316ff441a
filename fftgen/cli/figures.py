"""``fftgen figures``: what kernels issue and move, counted without a GPU."""

from __future__ import annotations

import click

from fftgen.cli.options import common, print_json


@click.command("figures")
@click.option("--arch", default="sm_90", show_default=True, help="Target.")
@click.option("--dtype", default="bf16", show_default=True, help="Storage type.")
@click.option("--seqlen", type=int, multiple=True, help="Length; may be repeated. Default: the page's.")
@common
def command(arch: str, dtype: str, seqlen: tuple[int, ...], as_json: bool, verbose: bool) -> None:
    """Count matrix operations, sectors, wavefronts, instructions and registers beside the least possible.

    Runs each kernel in the simulator and disassembles it: minutes for all lengths. Prints a page of Markdown.
    """
    from fftgen import figures, nvrtc

    found = figures.everything(
        arch,
        seqlen or figures.LENGTHS,
        dtype,
        progress=lambda what: click.echo(f"counting {what}", err=True),
    )
    if as_json:
        print_json({"target": arch, "figures": [f.as_dict() for f in found]})
    else:
        click.echo(figures.page(found, arch, f"nvrtc {nvrtc.build()}"), nl=False)

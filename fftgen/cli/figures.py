"""``fftgen figures``: what kernels issue and move, counted without a GPU."""

from __future__ import annotations

import click

from fftgen.cli.options import common, print_json
from fftgen.errors import InputError


@click.command("figures")
@click.option("--arch", default="sm_90", show_default=True, help="Target.")
@click.option("--dtype", default="bf16", show_default=True, help="Storage type: bf16 or fp16.")
@click.option("--seqlen", type=int, multiple=True, help="Length; may be repeated. Default: the page's.")
@common
def command(arch: str, dtype: str, seqlen: tuple[int, ...], as_json: bool, verbose: bool) -> None:
    """Count matrix operations, sectors, wavefronts, instructions and registers beside the least possible.

    Runs each kernel in the simulator and disassembles it: minutes for all lengths. Prints a page of Markdown.
    """
    from fftgen import figures, gradient_figures, nvrtc
    from fftgen.dtypes import FP32
    from fftgen.dtypes import dtype as find_dtype

    if find_dtype(dtype) is FP32:
        raise InputError(
            "figures are of kernels with matrix instructions, fp32 has none: "
            f"`fftgen verify --seqlen {seqlen[0] if seqlen else 4096} --dtype fp32 --counters` counts theirs"
        )

    def tell(what: str) -> None:
        click.echo(f"counting {what}", err=True)

    found = figures.everything(arch, seqlen or figures.LENGTHS, dtype, tell)
    gradients = gradient_figures.everything(arch, seqlen or gradient_figures.LENGTHS, dtype, tell)
    if as_json:
        print_json(
            {
                "target": arch,
                "figures": [f.as_dict() for f in found],
                "gradients": [f.as_dict() for f in gradients],
            }
        )
    else:
        click.echo(figures.page(found, arch, f"nvrtc {nvrtc.build()}"), nl=False)
        click.echo(gradient_figures.section(gradients), nl=False)

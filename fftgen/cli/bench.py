"""``fftgen bench``: fftgen beside its peers on this machine's GPU."""

from __future__ import annotations

import math
import secrets
import time
from pathlib import Path

import click

from fftgen.cli.options import (
    SEED,
    Place,
    common,
    given,
    lengths,
    plural,
    print_json,
    results_file,
    writable,
)
from fftgen.dtypes import dtype as find_dtype
from fftgen.errors import InputError


@click.command("bench")
@click.option(
    "--suite",
    is_flag=True,
    help="Everything that wants a GPU, within --budget: correctness, agreement with the simulator, "
    "compute-sanitizer, overheads, then timings, the important ones first.",
)
@click.option(
    "--seqlen", "seqlens", multiple=True, metavar="N|N..M", help="Length, or powers of two. Default: 256..4M."
)
@click.option("--dtype", "dtypes", multiple=True, help="bf16, fp16, fp32. Default: bf16; of a suite, all.")
@click.option("--causal/--circular", "causal", default=None, help="Default: both.")
@click.option("--gated/--ungated", "gated", default=None, help="Default: both.")
@click.option(
    "--taps",
    type=int,
    help="Of filters. Default: as many as steps; a suite has some rows of fewer anyway.",
)
@click.option(
    "--direction",
    "directions",
    multiple=True,
    type=click.Choice(["forward", "backward"]),
    help="What is timed: y, or all its gradients; both when given twice. Default: forward; of a suite also "
    "backward where it matters most.",
)
@click.option(
    "--kernels",
    is_flag=True,
    help="Also every kernel of the cases by itself, beside what the cost model says of it, and the "
    "rates of memories and matrix units. A suite has some of them anyway.",
)
@click.option("--batch", type=int, help="Rows of a batch. Default: 64.")
@click.option("--channels", type=int, help="Default: 768, fewer where memory does not hold them.")
@click.option("--contender", "names", multiple=True, help="One to measure; several times. Default: all.")
@click.option("--seconds", type=float, help="Device time for each contender. Default: 0.5; of a suite, 0.2.")
@click.option(
    "--budget", type=float, help="Seconds after which nothing runs. Default: none; of a suite, 450."
)
@click.option("--seed", type=SEED, help="Draws the inputs. Default: a new one, written down.")
@click.option("--dry-run", is_flag=True, help="The whole way on the CPU: tiny problems, invented times.")
@results_file("bench.json")
@click.option("--plot", type=Place(path_type=Path), help="Also draw the results (matplotlib).")
@click.option(
    "--show", type=Place(path_type=Path), help="Measure nothing: tables (and --plot) of a results file."
)
@click.option(
    "--against",
    type=Place(path_type=Path),
    help="With --show: times beside those of an earlier results file, and which differ by more than noise.",
)
@common
@click.pass_context
def command(
    ctx: click.Context,
    suite: bool,
    seqlens: tuple[str, ...],
    dtypes: tuple[str, ...],
    causal: bool | None,
    gated: bool | None,
    taps: int | None,
    directions: tuple[str, ...],
    kernels: bool,
    batch: int | None,
    channels: int | None,
    names: tuple[str, ...],
    seconds: float | None,
    budget: float | None,
    seed: int | None,
    dry_run: bool,
    output: Path,
    plot: Path | None,
    show: Path | None,
    against: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time fftgen, PyTorch, attention and every peer that is installed, on the GPU.

    Every contender is checked against float64 first; a wrong one is reported and not timed. The results
    go to a JSON file, whole after every step; a short table is printed last, with -v also a line for every
    contender. Exits with 1 when anything of fftgen's is wrong.
    """
    started = time.monotonic()
    # PyTorch: a second that `fftgen --help` should not take
    from fftgen.bench import compare, plots, results, tables

    writable(plot, None if show else output)
    if against is not None and show is None:
        raise InputError("--against goes with --show: a results file beside an earlier one")
    if show is not None:
        useless = given(ctx, besides=("show", "against", "plot", "as_json", "verbose"))
        if useless:
            raise InputError(f"--show measures nothing: leave {', '.join(useless)} out")
        doc = results.read(show)
        if against is not None:
            before = results.read(against)
            if plot is not None:
                raise InputError("--plot draws one results file: leave --against out")
            if as_json:
                print_json(compare.compare(before, doc))
            else:
                click.echo(compare.text(before, doc))
            return
    else:
        from fftgen.bench.backend import require_cuda
        from fftgen.bench.cases import (
            BACKWARD_LENGTHS,
            BATCH,
            CHANNELS,
            EARLY,
            LENGTHS,
            backward_rows,
            problem_set,
            short_rows,
            wide_rows,
        )
        from fftgen.bench.row import CONTENDERS
        from fftgen.bench.run import SECONDS, SUITE_BUDGET, SUITE_SECONDS, Wish, carry_out
        from fftgen.bench.steps import Step

        unknown = [n for n in names if n not in CONTENDERS]
        if unknown:
            raise InputError(f"contender {unknown[0]!r} is not known: choose from {', '.join(CONTENDERS)}")
        if seconds is None:
            seconds = SUITE_SECONDS if suite else SECONDS
        if not 0 < seconds < math.inf or not (budget is None or 0 < budget < math.inf):
            raise InputError("--seconds and --budget must be positive and finite")
        if taps is not None and taps < 1:
            raise InputError(f"--taps {taps}: choose at least 1, or leave it out for as many as steps")
        kinds = dtypes or (("bf16", "fp16") if suite and not dry_run else ("bf16",))
        sizes = lengths(seqlens) or ((256, 1000) if dry_run else LENGTHS)
        cases = problem_set(
            sizes,
            [find_dtype(d).name for d in kinds],
            ("causal", "circular") if causal is None else ("causal" if causal else "circular",),
            (True, False) if gated is None else (gated,),
            (2 if dry_run else BATCH) if batch is None else batch,
            (8 if dry_run else CHANNELS) if channels is None else channels,
            tuple(dict.fromkeys(directions)) or ("forward",),
            taps or 0,
        )
        if suite and not directions:
            # A dry run has the whole way, whatever its lengths.
            wide = [] if dtypes else wide_rows(cases, sizes[:1] if dry_run else EARLY)
            short = [] if taps else short_rows(cases)
            cases += [*backward_rows(cases, sizes if dry_run else BACKWARD_LENGTHS), *wide, *short]
        if not dry_run:
            require_cuda()

        def begin(number: int, count: int, step: Step) -> None:
            click.echo(f"[{number}/{count}] {step.name}", err=True)

        wish = Wish(
            cases,
            names or tuple(CONTENDERS),
            secrets.randbelow(2**31) if seed is None else seed,
            suite=suite,
            kernels=kernels,
            dry_run=dry_run,
            budget=SUITE_BUDGET if suite and budget is None else budget,
            seconds=seconds,
            started=started,
        )
        doc = carry_out(wish, output, begin)
    if plot is not None:
        plots.draw(doc, plot)
    if as_json:
        print_json(doc)
    else:
        click.echo(tables.text(doc, details=verbose))
        if show is None:
            click.echo(f"{plural(len(doc['steps']), 'step')} in {output}", err=True)
    if not doc["passed"]:
        ctx.exit(1)

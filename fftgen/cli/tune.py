"""``fftgen tune``: other plans than the planner's choice, timed on this machine's GPU."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from fftgen.cli.options import (
    SEED,
    STORAGE_TYPES,
    common,
    lengths,
    mode,
    plural,
    print_json,
    results_file,
    table,
    writable,
)
from fftgen.dtypes import dtype as find_dtype
from fftgen.durable import replace_file
from fftgen.errors import InputError

LIMIT = 60.0  # seconds of a variant's work on the device, after which it hangs


@click.command("tune")
@click.option(
    "--seqlen", "seqlens", multiple=True, required=True, metavar="N|N..M", help="Length, or powers of two."
)
@click.option("--dtype", default="bf16", show_default=True, help=STORAGE_TYPES)
@mode
@click.option("--gated/--ungated", "gated", default=True, show_default=True, help="Calls with both gates.")
@click.option("--backward", is_flag=True, help="Kernels that make all gradients by one pass; causal only.")
@click.option("--batch", type=int, help="Rows of a batch. Default: 64.")
@click.option("--channels", type=int, help="Default: 768, fewer where memory does not hold them.")
@click.option("--most", type=int, default=24, show_default=True, help="Plans of a length to be timed.")
@click.option("--seconds", type=float, default=0.2, show_default=True, help="Device time for each.")
@click.option("--budget", type=float, help="Seconds after which no other length is begun. Default: none.")
@click.option(
    "--keep/--no-keep", default=True, show_default=True, help="Have get_conv take the fastest here."
)
@click.option("--seed", type=SEED, help="Draws the inputs. Default: a new one, written down.")
@click.option("--dry-run", is_flag=True, help="The whole way on the CPU: tiny problems, invented times.")
@results_file("tune-causal-4096-65536-bf16.json", "named by mode, lengths and type")
@common
@click.pass_context
def command(
    ctx: click.Context,
    seqlens: tuple[str, ...],
    dtype: str,
    causal: bool,
    gated: bool,
    backward: bool,
    batch: int | None,
    channels: int | None,
    most: int,
    seconds: float,
    budget: float | None,
    keep: bool,
    seed: int | None,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time plans that the planner did not choose beside the one that it did.

    The cost model ranks plans without having run them. Here the first of them are compiled, proved against
    float64 and timed turn by turn on calls of one shape, the filter's spectrum prepared. The fastest is kept
    in the kernel cache, for get_conv on GPUs of this name, where it beats the choice by more than noise and
    goes with the kernels of gradients; `fftgen cache clear` forgets it. With --backward it is the kernels of
    gradients themselves, whose layouts are timed and kept. Exits with 1 when a plan is wrong.
    """
    started = time.monotonic()
    from fftgen.bench.backend import environment, open_backend
    from fftgen.bench.cases import BATCH, CHANNELS, Case
    from fftgen.bench.tune import keep as keep_winner
    from fftgen.bench.tune import tune
    from fftgen.bench.watch import Watch
    from fftgen.cache import Cache
    from fftgen.problem import Problem

    if most < 1 or not 0 < seconds < math.inf or not (budget is None or 0 < budget < math.inf):
        raise InputError("--most, --seconds and --budget must be positive and finite")
    if backward and not causal:
        raise InputError(
            "one pass makes all gradients of causal convolutions only: --backward needs --causal"
        )
    shape = (
        (2 if dry_run else BATCH) if batch is None else batch,
        (8 if dry_run else CHANNELS) if channels is None else channels,
    )
    kind, name = find_dtype(dtype).name, "causal" if causal else "circular"
    sizes = lengths(seqlens)
    direction = "backward" if backward else "forward"
    cases = [Case(Problem(name, n, kind), gated, *shape, direction) for n in sizes]
    if output is None:
        ends = map(str, dict.fromkeys((min(sizes), max(sizes))))
        said = (*([] if gated else ["ungated"]), *(["backward"] if backward else []))
        output = Path("-".join(["tune", name, *ends, kind, *said]) + ".json")
    writable(output)
    backend, store = open_backend(dry_run), Cache.default()
    drawn = secrets.randbelow(2**31) if seed is None else seed
    doc: dict[str, Any] = {
        "schema": 1,
        "kind": "tune",
        "dry_run": dry_run,
        "environment": environment(backend),
        "cases": [],
        "not_run": [str(c) for c in cases],
        "passed": True,
    }
    for case in cases:
        if budget is not None and time.monotonic() - started > budget:
            break
        with Watch(LIMIT if backend.kernels else None, partial(_hung, case)) as watch:
            found = tune(
                case,
                backend,
                store,
                most=most,
                seconds=seconds,
                seed=drawn,
                tell=lambda said: click.echo(said, err=True),
                at=watch.at,
            )
        kept = None
        if keep and backend.timer.real:
            kept = keep_winner(store, case, found, doc["environment"]["device"])
        doc["cases"].append({**found.doc, "kept": None if kept is None else kept["digest"]})
        doc["not_run"].remove(str(case))
        doc["passed"] = doc["passed"] and found.doc["passed"]
        replace_file(output.absolute(), json.dumps(doc, indent=1).encode() + b"\n")
        if not as_json:
            click.echo(_text(doc["cases"][-1]))
        if found.doc["device_lost"]:
            break
    if as_json:
        print_json(doc)
    else:
        click.echo(f"{plural(len(doc['cases']), 'length')} in {output}", err=True)
    if not doc["passed"]:
        ctx.exit(1)


def _hung(case: object, what: str) -> None:
    """Say which variant hangs, and end: what was found of other lengths is in the file."""
    click.echo(f"error: {case}: not done after {LIMIT:.0f} s: {what}", err=True)
    os._exit(1)


def _text(found: dict[str, Any]) -> str:
    """A case as a table: the fastest first, then what was not timed, and why."""
    rows = [("us", "of choice", "spread", "expected us", "plan")]
    for row in found["variants"]:
        expected = f"{1e6 * row['expected_s']:.0f}"
        about = row["about"] + ("" if row["exchangeable"] else " (spectra of its own)")
        if "median_s" in row:
            over = f"{row['over_choice']:.3f}" if "over_choice" in row else ""
            rows.append((f"{1e6 * row['median_s']:.1f}", over, f"{row['spread']:.3f}", expected, about))
        else:
            rows.append((row["status"], "", "", expected, f"{about}: {row.get('reason', 'wrong result')}"))
    head = f"{found['case']}, {found['batch']} x {found['channels']} rows, {found['target']}"
    last = "the planner's choice stays" if found["kept"] is None else f"kept: {found['kept'][:8]}"
    return f"{head}\n{table(rows)}\n{last}"

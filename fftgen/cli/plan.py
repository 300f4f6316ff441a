"""``fftgen plan``: what would be built for a length, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fftgen import api
from fftgen.cli import roofline as views
from fftgen.cli.options import common, one_problem, print_json, table
from fftgen.errors import InputError
from fftgen.planner import gradient_sections, search, sections, windows
from fftgen.planner.cost import Cost, cost, filter_cost, in_one_launch
from fftgen.planner.gradient import backward
from fftgen.planner.one_launch import one_launches
from fftgen.planner.plan import LOWER, Plan, plain
from fftgen.planner.windows import WORTH
from fftgen.roofline import of_plan
from fftgen.targets import target as find_target


@click.command("plan")
@one_problem
@click.option(
    "--taps",
    type=click.IntRange(1),
    help="Of filters: the windows that many rows then go through in, if that is the shorter way.",
)
@click.option("--why", is_flag=True, help="Show every candidate: its predicted time or the rule it breaks.")
@views.options
@common
def command(
    length: int,
    dtype: str,
    arch: str,
    causal: bool,
    engine: str | None,
    taps: int | None,
    why: bool,
    roofline: bool,
    gated: bool,
    plot: Path | None,
    batch: int | None,
    channels: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show the plan for a convolution of LENGTH.

    Times are predictions of the cost model, for one transform on a full chip; none is measured.
    """
    shape = views.check(roofline, gated, plot, batch, channels)
    chip = find_target(arch)
    problem = api.problem(length, dtype, causal=causal)
    if taps is not None and taps > length:
        raise InputError(f"--taps {taps}: filters of a convolution of {length} have at most {length}")
    chosen = search.plan(problem, chip, engine)
    price, spectrum = cost(chosen, chip), filter_cost(chosen, chip)
    together = in_one_launch(chosen, price, chip) if chosen.whole else None
    candidates = search.search(problem, chip, engine=engine) if why else ()
    taken = candidates[0] if candidates else None
    ways = one_launches(taken.plan, taken.cost, chip) if taken and taken.plan and taken.cost else ()
    view = of_plan(chosen, shape, gated) if roofline else None
    others = () if engine else sections.of(problem, lambda p: search.plan(p, chip))
    cut = None if taps is None else windows.of_many_rows(chosen, taps, lambda p: search.plan(p, chip, engine))
    if plot is not None and view is not None:
        views.draw([view], plot)
    if as_json:
        document: dict[str, Any] = {
            "line": str(chosen),
            "digest": chosen.digest,
            "plan": asdict(chosen),
            "cost": price.as_dict(),
            "one_launch_cost": together.as_dict() if together else None,
            "filter_cost": spectrum.as_dict() if spectrum.kernels else None,
        }
        if view is not None:
            document["roofline"] = view.as_dict()
        if others:
            document["sections"] = [
                {
                    "line": str(p),
                    "digest": p.digest,
                    "of_the_time": sections.share(chosen, p),
                    "both_ways_of_the_time": _both_ways(chosen, p),
                    "gradients_of_the_time": _gradients(p),
                }
                for p in others
            ]
        if taps is not None:
            document["windows"] = None if cut is None else {**cut.windows._asdict(), "of_the_time": cut.share}
        if why:
            document["candidates"] = [
                {
                    "transform": c.transform,
                    "factors": list(c.shape.factors),
                    "device_stages": c.shape.device,
                    "engine": c.engine,
                    "packing": c.packing,
                    "reason": c.reason,
                    "seconds": c.cost.seconds if c.cost else None,
                }
                for c in candidates
            ]
            document["one_launch"] = [
                {"kernel": way.plan.whole and plain(way.plan.whole), "seconds": way.seconds} for way in ways
            ]
        print_json(document)
        return
    click.echo(chosen)
    click.echo(_kernels(chosen))
    click.echo(_cost(chosen, price, together, chip.chip) + _preparing(spectrum))
    if verbose:
        click.echo(f"digest {chosen.digest}\ntables {chosen.table_bytes} bytes")
    for other in others:
        click.echo(_sections(chosen, other))
    if taps is not None:
        click.echo(_windows(chosen, taps, cut))
    if view is not None:
        click.echo(f"\n{views.text(view)}")
    if why:
        legal = [c for c in candidates if c.cost is not None]
        click.echo(f"\n{len(candidates)} candidates, {len(legal)} legal; the first is taken")
        for candidate in candidates:
            click.echo(f"  {candidate}")
        if ways:
            click.echo("\nall stages of many rows by one launch, single blocks weighed; the first is taken")
        for way in ways:
            click.echo(f"  {way}")


def _sections(chosen: Plan, plan: Plan) -> str:
    share, both, back = sections.share(chosen, plan), _both_ways(chosen, plan), _gradients(plan)
    how = f"{plan.sections} sections of {plan.transform} points{' by clusters' * plan.spread}"
    said = f"{how}: {share:.2f} of the time; {_taken(share)}"
    if both is not None:
        said += f"; with filters that act backwards {both:.2f}; {_taken(both)}"
    return said if back is None else f"{said}; all gradients with gates {back:.2f}; {_taken(back)}"


def _both_ways(chosen: Plan, plan: Plan) -> float | None:
    """Of the time of ``chosen`` what sections take of filters that act backwards; None: they do anyway, or
    there are too many sections for it."""
    both = sections.both_ways(plan) if plan.matrix == LOWER else None
    return None if both is None else sections.share(chosen, both)


def _taken(share: float) -> str:
    return "many rows" if share < WORTH else "not taken"


def _gradients(plan: Plan) -> float | None:
    """Of the time of all gradients by one transform what a plan in sections takes; None: none are made so."""
    whole = backward(plan.problem, plan.target)
    if whole is None or not gradient_sections.trained([plan]):
        return None
    return gradient_sections.share(whole, plan)


def _windows(plan: Plan, taps: int, cut: windows.Shorter | None) -> str:
    if cut is None:
        return f"filters of {taps} taps: one transform of everything"
    found = cut.windows
    return (
        f"filters of {taps} taps: {found.count(plan.problem.length)} windows of {found.length} points, "
        f"{found.step} results each; {cut.share:.2f} of the time of many rows"
    )


def _kernels(plan: Plan) -> str:
    rows = [("kernel", "threads", "shared bytes", "blocks per SM")]
    for k in plan.every_kernel:
        rows.append((k.label, str(32 * k.warps), str(k.shared_bytes), str(k.resident)))
    for f in plan.filter.kernels:
        rows.append((f.role, str(f.threads), str(f.shared_bytes), str(f.resident)))
    return table(rows)


def _cost(plan: Plan, price: Cost, together: Cost | None, chip: str) -> str:
    """``together``: where one launch does all stages."""
    rows = "row" if plan.rows_per_item == 1 else "pair of rows"
    many = "" if together is None else f"\nmany rows by one launch: {_predicted(together)}"
    return (
        f"per {rows}: {price.tensor_ops} matrix instructions, {price.device_bytes} bytes of device memory, "
        f"{price.workspace_bytes} bytes of workspace\n"
        f"predicted for {chip}: {_predicted(price)}{many}"
    )


def _predicted(price: Cost) -> str:
    times = ", ".join(f"{name} {1e9 * seconds:.2f}" for name, seconds in price.seconds.items())
    return (
        f"{1e9 * price.predicted:.2f} ns, {1e9 * price.showing:.2f} of them not hidden "
        f"by the busiest resource, {views.bound(price)}; busy, in ns: {times}"
    )


def _preparing(spectrum: Cost) -> str:
    """What a filter's spectrum costs, once per channel and filter."""
    if not spectrum.kernels:
        return ""
    return (
        f"\nper filter, once: {spectrum.device_bytes} bytes of device memory, {spectrum.workspace_bytes} "
        f"bytes of workspace; predicted {1e9 * spectrum.predicted:.2f} ns, {views.bound(spectrum)}"
    )

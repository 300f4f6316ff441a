"""``fftgen plan``: what would be built for a length, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from fftgen import api
from fftgen.cli.options import common, one_problem, print_json, table
from fftgen.planner import search
from fftgen.planner.cost import Cost, cost
from fftgen.planner.plan import Plan
from fftgen.targets import target as find_target


@click.command("plan")
@one_problem
@click.option("--why", is_flag=True, help="Show every candidate: its predicted time or the rule it breaks.")
@common
def command(
    length: int, dtype: str, arch: str, causal: bool, why: bool, as_json: bool, verbose: bool
) -> None:
    """Show the plan for a convolution of LENGTH.

    Times are predictions of the cost model, for one transform on a full chip; none is measured.
    """
    chip = find_target(arch)
    problem = api.problem(length, dtype, causal=causal)
    chosen = search.plan(problem, chip)
    price = cost(chosen, chip)
    candidates = search.search(problem, chip) if why else ()
    if as_json:
        document: dict[str, Any] = {
            "line": str(chosen),
            "digest": chosen.digest,
            "plan": asdict(chosen),
            "cost": {**asdict(price), "bound": price.bound, "time": price.time},
        }
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
        print_json(document)
        return
    click.echo(chosen)
    click.echo(_kernels(chosen))
    click.echo(_cost(chosen, price, chip.chip))
    if verbose:
        click.echo(f"digest {chosen.digest}\ntables {chosen.table_bytes} bytes")
    if why:
        legal = [c for c in candidates if c.cost is not None]
        click.echo(f"\n{len(candidates)} candidates, {len(legal)} legal; the first is taken")
        for candidate in candidates:
            click.echo(f"  {candidate}")


def _kernels(plan: Plan) -> str:
    rows = [("kernel", "threads", "shared bytes", "blocks per SM")]
    for k in plan.kernels:
        name = f"{k.role}{k.stage or ''}"
        rows.append((name, str(32 * k.warps), str(k.shared_bytes), str(k.resident)))
    return table(rows)


def _cost(plan: Plan, price: Cost, chip: str) -> str:
    rows = "row" if plan.rows_per_item == 1 else "pair of rows"
    times = ", ".join(f"{name} {1e9 * seconds:.2f}" for name, seconds in price.seconds.items())
    return (
        f"per {rows}: {price.tensor_ops} matrix instructions, {price.device_bytes} bytes of device memory, "
        f"{price.workspace_bytes} bytes of workspace\n"
        f"predicted for {chip}: bound by {price.bound} (ns: {times})"
    )

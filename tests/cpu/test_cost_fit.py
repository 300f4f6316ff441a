"""The model of a whole call beside what an H200 measured (results/): its four figures are those of a fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from fftgen.planner import call_cost, fragments, search
from fftgen.planner import cost as costs
from fftgen.planner.cost import Cost, KernelCost, cost, filter_cost
from fftgen.planner.filter import filter_launches
from fftgen.planner.instructions import signs
from fftgen.planner.layouts import with_outer_split
from fftgen.planner.mma_rules import steady
from fftgen.planner.plan import TILE, Kernel, Plan, Table
from fftgen.planner.rules import peaks_kernel
from fftgen.problem import Problem
from fftgen.targets import target

RESULTS = Path(__file__).resolve().parents[2] / "results"
CHIP = target("sm_90")
# Sectors written then, over now: machine code of one kernel stored every second 16 bytes word by word.
OLD_STORES = {(4_194_304, "rows"): 2.5}
# What a strip of columns of one row issued beside products: for all elements, over its width, over tiles of
# its radix. A transform's channel was found by division then, and no twiddles stayed from strip to strip.
OLD_STRIPS = {"columns1": (26, 46, 18), "columns_inverse1": (13, 74, 32)}
GATES = 32  # machine instructions of a warp for 128 complex elements (FIGURES.md)
FIGURES = (call_cost.CALL_SECONDS, call_cost.LAUNCH_SECONDS, costs.SHOWING, costs.SHOWING_OUTSIDE)
# Shapes that were taken then, where others are now: factors, and those in device memory.
SHAPES = {
    2048: ((64, 32), 0),
    8192: ((32, 16, 16), 0),
    131_072: ((32, 16, 16, 16), 1),
    262_144: ((64, 16, 16, 16), 1),
    524_288: ((64, 16, 16, 32), 1),
    1_048_576: ((64, 16, 32, 32), 1),
    2_097_152: ((128, 16, 32, 32), 1),
}


@dataclass(frozen=True)
class Row:
    """A measured call; ``chunk``: bytes, 0: the plan's; ``filtered``: with the filters' spectra."""

    length: int
    batch: int
    channels: int
    gated: bool
    seconds: float
    chunk: int = 0
    filtered: bool = False


def rows() -> Iterator[Row]:
    for step in json.loads((RESULTS / "h200-2026-11-27.json").read_text())["steps"]:
        found = step.get("result") or {}
        if found.get("mode") == "causal" and found.get("direction") == "forward":
            seconds = found["contenders"]["fftgen"]["median_s"]
            shape = (found["length"], found["batch"], found["channels"])
            yield Row(*shape, found["gated"], seconds, filtered=True)
    for line in (RESULTS / "h200-2026-11-26-tuning.jsonl").read_text().splitlines():
        found = json.loads(line)
        name, _, mib = found["variant"].partition(" chunk")
        if found["length"] in (65_536, 262_144, 1_048_576) and name in ("held", "default"):
            mib = mib or ("30" if name == "held" else "")
            if mib.isdecimal() and int(mib) >= 12:  # smaller chunks do not fill the chip
                shape = (found["length"], found["batch"], found["channels"])
                yield Row(*shape, True, found["ms"] * 1e-3, int(mib) << 20)


def as_measured(plan: Plan, kernel: KernelCost, gated: bool) -> KernelCost:
    """The kernel as it was then, with what gates add: bytes of one more signal in, and one on the way out."""
    work, seconds = kernel.work, dict(kernel.seconds)
    l2, pieces = work.l2_busy_bytes, 2 if work.narrow else 1
    l2 += pieces * work.workspace_stored * (OLD_STORES.get((plan.transform, kernel.name), 1) - 1)
    made = next(k for k in plan.kernels if k.label == kernel.name)
    memory, operations = work.device_bytes, work.tensor_ops + spared(plan, made)
    instructions = work.instructions + 2 * (operations - work.tensor_ops)
    if kernel.name in OLD_STRIPS:
        each, wide, tall = OLD_STRIPS[kernel.name]
        beside = each + wide / made.columns + tall * TILE / plan.stages[0].radix
        instructions = 2 * operations + plan.transform / 128 * beside
    elif made.role != "peaks":
        instructions -= plan.transform / 128 * signs(plan, made)
    if gated and kernel.name != "rows":
        signal = 2 * plan.transform
        inside = not plan.device_stages
        l2 += pieces * signal * (2 if inside else 1)
        memory += signal * (2 if inside else kernel.name != "columns1")  # columns find theirs in the L2
        instructions += plan.transform / 128 * GATES * (1 if inside else 0.5)
    if made.role in steady(plan).twiddles:  # none were kept
        seconds["shared memory"] *= 1 + 4 * plan.transform / work.pipe_bytes
    seconds["device memory"] = memory / CHIP.bandwidth
    seconds["L2"] = l2 / CHIP.l2_bandwidth
    seconds["issue slots"] *= instructions / work.instructions
    if work.tensor_ops:
        seconds["tensor cores"] *= operations / work.tensor_ops
    return replace(kernel, seconds=seconds)


def spared(plan: Plan, kernel: Kernel) -> int:
    """Products of real rows that are not made any more where even numbers stand before odd ones."""
    first = (kernel.stage == 1 and kernel.role == "columns") or kernel.role == "convolve"
    if not first or not fragments.parted(plan.stages, plan.real_input):
        return 0
    return plan.transform // TILE**2 * (plan.stages[0].radix // TILE) * 2 // 4


def whole(plan: Plan, table: Table) -> Table:
    """A table of a matrix as it was then: all of its tiles, and three planes where numbers are complex."""
    if table.name not in fragments.MATRICES:
        return table
    tiles = plan.stages[table.stage - 1].radix // TILE
    shape = (tiles, tiles, 2 if plan.real_input and table.stage == 1 else 3, *table.shape[3:])
    return replace(table, shape=shape, nbytes=2 * prod(shape))


def as_planned(problem: Problem) -> Plan:
    """The plan as it was then: no stage by halves, no butterflies, twiddles of a block in one level, stage by
    stage, peaks of rows before their columns, with whole matrices in its tables."""
    plan = search.plan(problem, CHIP)
    if problem.length in SHAPES:
        plan = search.with_shape(problem, CHIP, *SHAPES[problem.length], "mma")
    plan = replace(
        plan, whole=None, stages=tuple(replace(s, halves=False, butterflies=1) for s in plan.stages)
    )
    plan = with_outer_split(plan, plan.inner[0].rest)
    if plan.strip_peaks:
        plan = replace(plan, kernels=(peaks_kernel(CHIP), *plan.kernels))
    tables = tuple(whole(plan, t) for t in plan.tables)
    more = sum(
        then.nbytes - now.nbytes
        for then, now in zip(tables, plan.tables, strict=True)
        if now.name in fragments.SHARED
    )
    body = replace(plan.body, shared_bytes=plan.body.shared_bytes + more)
    plan = replace(plan, tables=tables, kernels=tuple(body if k == plan.body else k for k in plan.kernels))
    if plan.memory_class == "warp" and plan.transform > 1024:  # eight warps, of 255 registers a thread
        plan = replace(plan, kernels=(replace(plan.body, warps=8, items=8),))
    return plan


def parts(row: Row) -> tuple[float, np.ndarray]:
    """Seconds of the busiest resources, and what each of the four figures is a factor of."""
    plan = as_planned(Problem("causal", row.length, "bf16"))
    if row.chunk:
        plan = replace(plan, chunk_bytes=row.chunk)
    price = Cost(tuple(as_measured(plan, k, row.gated) for k in cost(plan, CHIP).kernels))
    found = call_cost.call_cost(plan, CHIP, price, row.batch, row.channels)
    items = row.batch * row.channels
    hidden = {k.name: items * (sum(k.seconds.values()) - k.time) for k in price.kernels}
    outside = sum(s for name, s in hidden.items() if name.startswith(("peaks", "columns")))
    inner, launches = sum(hidden.values()) - outside, found.launches
    busiest = found.time - found.fixed - found.showing
    if row.filtered:
        for kernel in filter_cost(plan, CHIP).kernels:
            busiest += row.channels * kernel.time
            inner += row.channels * (sum(kernel.seconds.values()) - kernel.time)
        launches += len(filter_launches(plan.filter, plan.transform, row.channels))
    return busiest, np.array([1.0, launches, inner, outside])


def test_the_figures_of_a_call_are_those_that_fit_what_was_measured() -> None:
    measured = list(rows())
    assert len(measured) == 54
    seconds = np.array([row.seconds for row in measured])
    found = [parts(row) for row in measured]
    busiest = np.array([b for b, _ in found]) / seconds
    factors = np.stack([f for _, f in found]) / seconds[:, None]
    fitted = np.linalg.lstsq(factors, 1 - busiest, rcond=None)[0]
    figures = np.array(FIGURES)
    assert figures == pytest.approx(fitted, rel=0.06)
    error = busiest + factors @ figures - 1
    assert np.sqrt(np.mean(error**2)) < 0.12
    assert np.abs(error).max() < 0.3


def test_a_launch_costs_about_a_microsecond_beside_its_work() -> None:
    """Without the model: what a launch takes over transforms of its chunk, where these fill the chip."""
    for length, channels, waves in ((65_536, 240, (16, 24, 40, 60)), (1_048_576, 32, (16, 40, 60))):
        points = []
        for row in rows():
            mib = row.chunk >> 20
            if (row.length, row.channels) == (length, channels) and mib in waves:
                at_once = row.chunk // (4 * length)
                launches = 4 * -(-row.batch * channels // at_once)
                points.append((at_once, row.seconds / launches))
        slope, fixed = np.polyfit(*np.array(points).T, 1)
        assert 0.3e-6 < fixed < 3e-6, f"{length}: {slope:.3g} s a transform, {fixed:.3g} s a launch"

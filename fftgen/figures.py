"""The figures of design 5 that need no GPU: what each kernel issues and moves, beside the least possible.

Matrix operations, sectors and wavefronts are counted in the simulator on random inputs, machine instructions
in the compiled code (hot_path.py), registers and spills by the compiler. None of them is a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fftgen import emulate, sampled
from fftgen.bundle import in_sections
from fftgen.cache import Cache
from fftgen.hot_path import hot_paths, whole_hot_paths
from fftgen.pipeline import Built, build_plan
from fftgen.planner import search
from fftgen.planner.cost import matrix_operations
from fftgen.planner.plan import Kernel, Plan
from fftgen.planner.twins import twin
from fftgen.planner.whole import Clusters, full
from fftgen.problem import Problem
from fftgen.simulator import Accesses, Report
from fftgen.storage import storage
from fftgen.targets import Target
from fftgen.targets import target as find_target
from fftgen.verify import FULL_POINTS, Case, draw

ABREAST = "two channels have addresses and a power of two each"  # a reason for instructions
LENGTHS = (256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 262_144, 1_048_576)
SECTORS, WAVEFRONTS, INSTRUCTIONS, WARPS = 1.02, 1.05, 140, 16  # bounds, asked of 4096 points causal
SIGNALS = ("u", "y", "in_gate", "out_gate", "twin", "twin_gate")


@dataclass(frozen=True)
class Figures:
    """One plan, gated or not. Ratios are to the least possible; ``instructions`` by kernel."""

    problem: Problem
    gated: bool
    plan: Plan
    operations: int  # m16n8k16 of one transform
    least_operations: int
    sectors: float
    wavefronts: float
    instructions: dict[str, float]  # of a warp, for 128 complex elements
    registers: dict[str, int]
    spilled: int  # bytes
    resident: dict[str, int]  # warps of a multiprocessor

    @property
    def kind(self) -> str:
        """What the call is, behind its problem."""
        if self.plan.sections > 1:
            return ", in sections, gated" if self.gated else ", in sections"
        return ", two results" if self.plan.outputs == 2 else ", gated" if self.gated else ""

    @property
    def reasons(self) -> list[str]:
        """Why a figure is over its bound."""
        found = []
        total = sum(self.instructions.values())
        if total > INSTRUCTIONS:
            pieces = self.plan.points // 128
            causes = [f"{self.operations / pieces:.0f} matrix operations"]
            if self.plan.sections > 1:
                causes.append("transforms of sections are kept, and products with them added up")
            if self.plan.device_stages:
                causes.append("three stages load and store, twiddles in two levels")
            if self.plan.rows_per_item == 2:
                causes.append("two rows are loaded, scaled and stored for a transform")
            if self.plan.abreast > 1:
                causes.append(ABREAST)
            if self.gated:
                count = "three" if self.plan.outputs == 2 else "two"
                causes.append(f"{count} gates are loaded and multiplied in fp32")
            if self.plan.outputs == 2:
                causes.append("two results are stored")
            found.append(f"{total:.0f} instructions: {', '.join(causes)}")
        if self.sectors > SECTORS:
            found.append("sectors: the peak of a row is found before its columns are read again, from the L2")
        if self.wavefronts > WAVEFRONTS:
            inner, whole = (
                "some loads of the rows kernel meet in a bank",
                "peaks of strips are written one by one",
            )
            if self.plan.spread:
                whole = "what takes sections to a result's power goes to all lanes, four words at a time"
            found.append(f"wavefronts: {inner if self.plan.device_stages else whole}")
        few = {role: n for role, n in self.resident.items() if n < WARPS}
        for role, warps in few.items():
            found.append(
                f"{warps} warps of {role}: {self.registers[role]} registers a thread or shared memory"
            )
        if self.spilled:
            found.append(f"{self.spilled} bytes spilled")
        return found

    def as_dict(self) -> dict[str, Any]:
        p = self.problem
        return {
            "problem": f"{p.mode} {p.length} {p.dtype}{self.kind.replace(',', '')}",
            "plan": str(self.plan),
            "matrix_operations": self.operations,
            "least_matrix_operations": self.least_operations,
            "sectors_over_least": round(self.sectors, 4),
            "wavefronts_over_least": round(self.wavefronts, 4),
            "instructions_per_128": {k: round(v, 1) for k, v in self.instructions.items()},
            "registers": self.registers,
            "spilled_bytes": self.spilled,
            "resident_warps": self.resident,
            "over": self.reasons,
        }


def resident_warps(kernel: Kernel, registers: int, target: Target) -> int:
    """Warps of a kernel that a multiprocessor holds, with registers of a thread as compiled."""
    return kernel.warps * target.resident_blocks(kernel.warps, kernel.shared_bytes, registers)


def figures(
    problem: Problem, gated: bool, target: str = "sm_90", seed: int = 1, plan: Plan | None = None
) -> Figures:
    """Build, simulate and disassemble one problem. Raises SimulationError for any fault of a kernel.

    ``plan``: another than the planner's, its twin say (with gates).
    """
    chip = find_target(target)
    plan = search.plan(problem, chip) if plan is None else plan
    built = build_plan(plan, Cache.default())
    reports, transforms = _reports(built, gated, seed)
    operations = {r: sum(report.counters.tensor.values()) for r, report in reports.items()}
    resources = {k.role: built.resources[plan.entry(k)] for k in plan.every_kernel}
    whole = plan.transform <= FULL_POINTS
    counted = sum(operations.values()) // transforms if whole else matrix_operations(plan)
    paths = (whole_hot_paths if full(plan) else hot_paths)(plan, gated)
    return Figures(
        problem=problem,
        gated=gated,
        plan=plan,
        operations=counted,
        least_operations=matrix_operations(plan),
        sectors=_sectors(reports, whole),
        wavefronts=_ratio(
            (a.units, a.least)
            for report in reports.values()
            for a in (report.counters.shared_loads, report.counters.shared_stores)
        ),
        instructions={k: v.per_128 for k, v in paths.items()},
        registers={role: r.registers for role, r in resources.items()},
        spilled=sum(r.spill_store_bytes + r.spill_load_bytes for r in resources.values()),
        resident={
            k.role: resident_warps(k, resources[k.role].registers, chip)
            for k in plan.every_kernel
            if k.role != "peaks"
        },
    )


def _sectors(reports: Mapping[str, Report], whole: bool) -> float:
    """Sectors of signals over what reading and writing each once takes (of its own blocks, a sample)."""
    moved: dict[tuple[str, str], list[Accesses]] = {}
    for report in reports.values():
        for name, buffer in report.counters.buffers.items():
            for kind, accesses in (("load", buffer.loads), ("store", buffer.stores)):
                if name in SIGNALS and accesses.units:
                    moved.setdefault((name, kind), []).append(accesses)
    units = sum(a.units for found in moved.values() for a in found)
    if whole:  # kernels that read the same signal again have no compulsory sectors of their own
        return units / sum(-(-max(a.distinct for a in found) // 32) for found in moved.values())
    return units / sum(a.least for found in moved.values() for a in found)


def _ratio(pairs: Any) -> float:
    units, least = (sum(x) for x in zip(*((a, b) for a, b in pairs if a), strict=True))
    return float(units) / float(least)


def _reports(built: Built, gated: bool, seed: int) -> tuple[dict[str, Report], int]:
    """Counters by kernel, and how many transforms they count; of sampled blocks where calls are long. Where
    one launch may carry out a call, of that."""
    plan = built.plan
    ptx = emulate.line_ptx(built)
    if plan.transform > FULL_POINTS:
        found = {}
        for sample in sampled.check_launches(built, ptx, seed):
            found.update(sample.reports)
        return found, 1
    many = full(plan)
    grouped = Clusters(many.size, 1) if many else None
    batch, length = 2 * plan.rows_per_item, plan.problem.length
    transforms = 2 * plan.abreast
    dtype = storage(plan)
    case = Case(batch, plan.abreast, length, length, gated, gated)
    inputs = draw(case, dtype, torch.Generator().manual_seed(seed))
    u, k = inputs.pop("u"), inputs.pop("k")
    assert u is not None
    assert k is not None
    if plan.outputs == 2:
        gate = inputs.pop("out_gate")
        assert gate is not None
        gates = gate, gate.flip(-1)
        *_, simulated = emulate.both(built, u, k, gates, ptx=ptx, seed=seed, clusters=grouped, **inputs)
    else:
        _, simulated = emulate.convolve(built, u, k, ptx=ptx, seed=seed, clusters=grouped, **inputs)
    return simulated.reports, transforms


def everything(
    target: str = "sm_90",
    lengths: Sequence[int] = LENGTHS,
    dtype: str = "bf16",
    progress: Callable[[str], None] | None = None,
) -> list[Figures]:
    """All lengths, both modes, gated and not, with two results for two gates, and in sections."""
    found = []
    for mode in ("causal", "circular"):
        for length in lengths:
            problem = Problem(mode, length, dtype)
            plan = search.plan(problem, target)
            cut = in_sections(problem, find_target(target))
            for kind, gated, which in (
                ("", False, plan),
                (" gated", True, plan),
                (" two results", True, twin(plan)),
                (" in sections", False, cut),
                (" in sections gated", True, cut),
            ):
                if which is None:
                    continue
                if progress is not None:
                    progress(f"{mode} {length} {dtype}{kind}")
                found.append(figures(problem, gated, target, plan=which))
    return found


def page(found: Sequence[Figures], target: str, compiler: str) -> str:
    """The figures as a page of Markdown."""
    lines = [
        "# What the kernels issue and move",
        "",
        f"Written by `fftgen figures --arch {target}`; code by {compiler}. Exact counts, no times: matrix",
        "operations (m16n8k16) of one transform, counted in the simulator; 32-byte sectors of u, gates and y",
        "and wavefronts of shared memory over the least possible; machine instructions of a warp for 128",
        "complex elements, counted in the compiled code of the path that aligned rows of full length take",
        "(all stages of a long transform together); registers a thread; warps resident on a",
        "multiprocessor. A circular transform does two rows, but in sections. Two results: gradients of u",
        "and of its gate, by one transform. From 65 536 points on many rows take one launch for all stages",
        "(the last of the registers and warps): instructions are its own, and so is all that is counted of",
        "65 536 points, or go in sections where the model gives these less time.",
        "Longer ones are simulated in sampled blocks of a launch for each stage, with gates, sectors against",
        "each kernel's own least.",
        "",
        f"The bounds asked of 4096 points, causal: sectors {SECTORS}, wavefronts {WAVEFRONTS}, "
        f"{INSTRUCTIONS} instructions, {WARPS} warps, no spill. The last column says why a figure is beyond.",
        "",
        "| problem | plan | operations | sectors | wavefronts | instructions | registers | warps | beyond |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for f in found:
        p = f.problem
        roles = [r for r in f.registers if r != "peaks"]
        total = sum(f.instructions.values())
        lines.append(
            f"| {p.mode} {p.length}{f.kind} | {str(f.plan).split(' | ')[1]} "
            f"| {f.operations} | {f.sectors:.3f} | {f.wavefronts:.3f} | {total:.0f} "
            f"| {'/'.join(str(f.registers[r]) for r in roles)} "
            f"| {'/'.join(str(f.resident[r]) for r in roles)} | {'; '.join(f.reasons)} |"
        )
    return "\n".join(lines) + "\n"

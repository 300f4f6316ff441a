"""The figures of figures.py for gradients: of a row of u and its row of the cotangent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fftgen import emulate
from fftgen.bundle import backward_in_sections
from fftgen.cache import Cache
from fftgen.figures import ABREAST, INSTRUCTIONS, SECTORS, WARPS, resident_warps
from fftgen.gradient import Needed
from fftgen.hot_path import gradient_hot_paths
from fftgen.pipeline import build_gradient
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem
from fftgen.storage import storage
from fftgen.targets import target as find_target
from fftgen.verify import FULL_POINTS

LENGTHS = (256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 262_144, 1_048_576)
SIGNALS = ("u", "in_gate", "v_u", "v_in_gate", *emulate.RESULTS)


@dataclass(frozen=True)
class GradientFigures:
    """One gradient, gated or not; None: not counted, the transform is too long to be simulated whole."""

    found: Gradient
    gated: bool
    operations: int | None  # m16n8k16 of a row and its cotangent
    least_operations: int
    sectors: float | None
    wavefronts: float | None
    instructions: dict[str, float]  # of a warp, for 128 complex elements of both
    registers: dict[str, int]
    spilled: int  # bytes, of all kernels
    resident: int  # warps of a multiprocessor

    @property
    def reasons(self) -> list[str]:
        """Why a figure is over the bounds that hold for two halves of a convolution."""
        reasons = []
        total = sum(self.instructions.values())
        if total > INSTRUCTIONS * (2 if self.found.signals else 1):
            pieces = self.found.plan.points // 128
            causes = [f"{self.least_operations / pieces:.0f} matrix operations", "the product in fp32"]
            if self.found.plan.sections > 1:
                causes.append("transforms of sections are kept, and products with them added up")
            elif self.found.held < 1:
                part = f"{1 - self.found.held} of the sum" if self.found.held else "the sum"
                causes.append(f"{part} in device memory")
            if self.found.plan.abreast > 1:
                causes.append(ABREAST)
            if self.found.plan.device_stages:
                causes.append("two kernels load and store")
            if self.gated:
                causes.append("four gates and three results" if self.found.signals else "two gates")
            reasons.append(f"{total:.0f} instructions: {', '.join(causes)}")
        if self.sectors is not None and self.sectors > SECTORS:
            reasons.append(
                "sectors: the peak of a row is found before its columns are read again, from the L2"
            )
        if self.resident < WARPS:
            own = self.registers[self.found.label]
            reasons.append(f"{self.resident} warps: {own} registers or shared memory")
        if self.spilled:
            reasons.append(f"{self.spilled} bytes spilled")
        return reasons

    def as_dict(self) -> dict[str, Any]:
        return {
            "gradient": str(self.found),
            "gated": self.gated,
            "matrix_operations": self.operations,
            "least_matrix_operations": self.least_operations,
            "sectors_over_least": self.sectors,
            "wavefronts_over_least": self.wavefronts,
            "instructions_per_128": {k: round(v, 1) for k, v in self.instructions.items()},
            "registers": self.registers,
            "spilled_bytes": self.spilled,
            "resident_warps": self.resident,
            "over": self.reasons,
        }


def gradient_figures(found: Gradient, gated: bool, seed: int = 1) -> GradientFigures:
    """Build, simulate and disassemble one gradient. Raises SimulationError for any fault of a kernel."""
    length, signals = found.problem.length, found.signals
    built = build_gradient(found, Cache.default())
    operations = sectors = wavefronts = None
    if found.plan.transform <= FULL_POINTS:
        batch, channels = 4, found.plan.abreast
        generator = torch.Generator().manual_seed(seed)
        kind = storage(found.plan)

        def draw() -> torch.Tensor:
            return torch.randn(batch, channels, length, generator=generator).to(kind)

        gates = (draw(), draw()) if gated else (None, None)
        u, v = draw(), draw()
        a, b = gates
        if signals:
            k, needed = torch.randn(channels, length, generator=generator), Needed(True, gated, gated)
            _, simulated = emulate.backward(
                built, u, v, k, needed=needed, taps=length, in_gate=a, out_gate=b, seed=seed
            )
        else:
            _, simulated = emulate.gradient(built, u, v, taps=length, in_gate=a, out_gate=b, seed=seed)
        reports = list(simulated.reports.values())
        operations = sum(sum(r.counters.tensor.values()) for r in reports) // (batch * channels)
        moved = [
            (name, buffer.stores if name in emulate.RESULTS else buffer.loads)
            for r in reports
            for name, buffer in r.counters.buffers.items()
            if name in SIGNALS
        ]
        least = {name: -(-accesses.distinct // 32) for name, accesses in moved}
        sectors = round(sum(a.units for _, a in moved) / sum(least.values()), 4)
        own = simulated.reports[found.name].counters
        shared = own.shared_loads + own.shared_stores
        wavefronts = round(shared.units / shared.least, 4)
    around = (*found.before, *found.after)
    names = {found.name: found.label, **{found.plan.entry(k): k.role for k in around}}
    registers = {
        names.get(entry, entry.rsplit("_", 1)[-1]): built.resources[entry].registers
        for entry in built.source.entries
    }
    return GradientFigures(
        found,
        gated,
        operations,
        2 * found.operations(0 if not signals else 2 if gated else 1),
        sectors,
        wavefronts,
        {k: v.per_128 for k, v in gradient_hot_paths(found, gated).items()},
        registers,
        sum(r.spill_store_bytes + r.spill_load_bytes for r in built.resources.values()),
        resident_warps(found.kernel, registers[found.label], find_target(found.plan.target)),
    )


def everything(
    target: str = "sm_90",
    lengths: Sequence[int] = LENGTHS,
    dtype: str = "bf16",
    progress: Callable[[str], None] | None = None,
) -> list[GradientFigures]:
    """Of filters, which circles share, then of all by one pass; at all lengths, gated and not."""
    made = []
    for signals in (False, True):
        for length in lengths:
            problem = Problem("causal", length, dtype)
            for found in of_all(problem, target) if signals else (gradient(problem, target),):
                for gated in (False, True):
                    if progress is not None:
                        progress(f"{found.label} {length} {dtype}{' gated' if gated else ''}")
                    made.append(gradient_figures(found, gated))
    return made


def of_all(problem: Problem, target: str) -> list[Gradient]:
    """The kernels of all gradients by one pass, and those that many rows take in sections."""
    chip = find_target(target)
    return [found for found in (backward(problem, chip), backward_in_sections(problem, chip)) if found]


def section(made: Sequence[GradientFigures]) -> str:
    """The figures as a part of the page that figures.page writes."""
    lines = [
        "",
        "## Gradients of filters",
        "",
        "The same counts for the kernels that make the gradient of a filter, for one row of u and its row of",
        "the cotangent: two forward transforms, their product added to a sum in fp32. Other gradients are",
        "convolutions, by the kernels above. Sectors are of u, the cotangent and gates; wavefronts of the",
        "gradient's own kernel; registers of the gradient, then of the kernels before and after it.",
        *_table([f for f in made if not f.found.signals]),
    ]
    every = [f for f in made if f.found.signals]
    if every:
        lines += [
            "",
            "## All gradients of causal convolutions by one pass",
            "",
            "Of a row of u and its row of the cotangent: the gradients of u, of both gates where there are",
            "gates, and of the filter. Sectors are of what is read from device memory and of results; gates",
            "of results, rows of which were read before, come from the L2. Of sections a kernel of its own",
            "makes the sums; its registers come second.",
            *_table(every),
        ]
    return "\n".join(lines) + "\n"


def _table(made: Sequence[GradientFigures]) -> list[str]:
    lines = [
        "",
        "| length | layout | operations | sectors | wavefronts | instructions | registers | warps | beyond |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for f in made:
        total = sum(f.instructions.values())
        others = "/".join(str(n) for role, n in f.registers.items() if role != f.found.label)
        counts = [
            "" if x is None else f"{x:.3f}" if isinstance(x, float) else str(x)
            for x in (f.operations, f.sectors, f.wavefronts)
        ]
        layout = ", ".join(str(f.found).split(" | ")[1:])
        lines.append(
            f"| {f.found.problem.length}{', gated' if f.gated else ''} | {layout} "
            f"| {' | '.join(counts)} | {total:.0f} | {f.registers[f.found.label]}/{others} | {f.resident} "
            f"| {'; '.join(f.reasons)} |"
        )
    return lines

"""What bounds the kernels of a plan: work, predicted time by resource, distance from the memory floor.

Without machine code the plan's own figures are taken: residency as planned, instructions by formula
(planner/instructions.py). Of a build the compiler's registers count, and where NVRTC and nvdisasm are at hand
the instructions of the compiled code (hot_path.py). Every time is a prediction of the cost model; none is
measured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fftgen.errors import ToolchainError
from fftgen.hot_path import gradient_hot_paths, hot_paths
from fftgen.pipeline import Built
from fftgen.planner.call_cost import CallCost, call_cost, gradient_call
from fftgen.planner.cost import Compiled, Cost, KernelCost, cost, filter_cost
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import gradient_cost
from fftgen.planner.plan import Plan
from fftgen.targets import Target
from fftgen.targets import target as find_target

PLANNED = "as planned"
COMPILED = "as compiled"


@dataclass(frozen=True)
class Roofline:
    """The predicted costs of one plan on its target.

    ``convolution``: of one transform, ``gated`` or not; ``spectrum``: of one channel's filter. ``compiled``:
    the kernels whose instructions were counted in machine code; ``note`` says why others were not. ``call``:
    of a whole call, where one was asked for.
    """

    plan: Plan
    target: Target
    convolution: Cost
    spectrum: Cost
    compiled: tuple[str, ...] = ()
    registers: str = PLANNED
    note: str = ""
    call: CallCost | None = None
    gradient: Gradient | None = None
    gated: bool = False

    @property
    def subject(self) -> Plan | Gradient:
        """Whose kernels these are."""
        return self.gradient or self.plan

    @property
    def unit(self) -> str:
        """What ``convolution`` is the cost of."""
        if self.gradient is not None:
            return "row and its cotangent"
        rows = "row" if self.plan.rows_per_item == 1 else "pair of rows"
        return f"gated {rows}" if self.gated else rows

    def floor(self, of: Cost | KernelCost) -> float:
        """Seconds that the bytes which must cross device memory take at its bandwidth."""
        moved = of.device_bytes if isinstance(of, Cost) else of.work.device_bytes
        return moved / self.target.bandwidth

    def fraction(self, of: Cost | KernelCost) -> float:
        """The floor over the predicted time: 1 where nothing but device memory takes any."""
        return self.floor(of) / of.predicted

    def as_dict(self) -> dict[str, Any]:
        """Plain data; seconds are predictions."""

        def costs(found: Cost) -> dict[str, Any]:
            return {
                **found.as_dict(),
                "kernels": [
                    {**k.as_dict(), "floor": self.floor(k), "floor_fraction": self.fraction(k)}
                    for k in found.kernels
                ],
                "floor": self.floor(found),
                "floor_fraction": self.fraction(found),
            }

        return {
            "name": self.subject.name,
            "plan": str(self.subject),
            "target": self.target.name,
            "chip": self.target.chip,
            "predicted": True,
            "assumed_rates": list(self.target.assumed),
            "residency": self.registers,
            "instructions_compiled": list(self.compiled),
            "note": self.note,
            "per_transform": costs(self.convolution),
            "rows_per_transform": self.plan.rows_per_item,
            "gated": self.gated,
            "per_filter": costs(self.spectrum) if self.spectrum.kernels else None,
            "call": self.call.as_dict() if self.call else None,
        }


def of_plan(plan: Plan, shape: tuple[int, int] | None = None, gated: bool = False) -> Roofline:
    """From the plan alone; ``shape``: (batch, channels) of a whole call to predict as well."""
    chip = find_target(plan.target)
    found = cost(plan, chip, gated=gated)
    call = call_cost(plan, chip, found, *shape) if shape else None
    return Roofline(plan, chip, found, filter_cost(plan, chip), call=call, gated=gated)


def of_gradient(built: Built, shape: tuple[int, int] | None = None, gated: bool = False) -> Roofline:
    """Of a gradient's build; ``gated``: of calls with both gates. The way from its sums to taps, once a
    filter, is left out."""
    found = built.gradient
    assert found is not None
    plan, chip = found.plan, find_target(found.plan.target)
    names = {k.label: plan.entry(k) for k in (*found.before, *found.after)} | {found.label: found.name}
    names |= {"sums": found.sums_name} if found.sums else {}
    registers = {label: built.resources[e].registers for label, e in names.items() if e in built.resources}
    note, instructions = "", {}
    if built.cubin:
        try:
            paths = gradient_hot_paths(found, gated)
        except ToolchainError as error:
            note = f"instructions by formula: {error}"
        else:
            note = _uncounted(plan, paths)
            labels = {k.role: k.label for k in (*found.before, *found.after)}
            sides = {"columns": 2, "columns_inverse": 2 if gated else 1}
            instructions = {
                labels.get(role, role): path.per_transform(plan.points) / sides.get(role, 1)
                for role, path in paths.items()
            }
    price = gradient_cost(found, chip, Compiled(registers, instructions), gated)
    call = gradient_call(found, chip, price, *shape) if shape else None
    how = COMPILED if registers else PLANNED
    return Roofline(plan, chip, price, Cost(()), tuple(instructions), how, note, call, found, gated=gated)


def _uncounted(plan: Plan, paths: Collection[str]) -> str:
    """What a report says where no instructions are counted in machine code."""
    return "" if paths else f"instructions by formula: of the engine {plan.engine} none are counted"


def of_built(built: Built, shape: tuple[int, int] | None = None, gated: bool = False) -> Roofline:
    """From a build: registers by the compiler, instructions from the code where they can be counted."""
    if built.gradient is not None:
        return of_gradient(built, shape, gated)
    plan, chip = built.plan, find_target(built.plan.target)
    if not built.cubin:
        return of_plan(plan, shape, gated)
    names = {k.label: plan.entry(k) for k in plan.kernels}
    names |= {k.role: plan.filter_entry(k) for k in plan.filter.kernels}
    registers = {label: built.resources[e].registers for label, e in names.items() if e in built.resources}
    note = ""
    instructions: dict[str, float] = {}
    try:
        paths = hot_paths(plan, gated, built.source)
    except ToolchainError as error:
        note = f"instructions by formula: {error}"
    else:
        labels = {k.role: k.label for k in plan.kernels}
        instructions = {labels[role]: path.per_transform(plan.points) for role, path in paths.items()}
        note = _uncounted(plan, paths)
    known = Compiled(registers, instructions)
    found = cost(plan, chip, known, gated)
    call = call_cost(plan, chip, found, *shape) if shape else None
    made = filter_cost(plan, chip, compiled=known)
    return Roofline(plan, chip, found, made, tuple(instructions), COMPILED, note, call, gated=gated)

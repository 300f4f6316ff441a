"""A plan of the "mma" engine laid out in other ways: its kernels, and the tables that they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fftgen.planner import fragments, mma_kernels, mma_rules
from fftgen.planner.filter import Filter
from fftgen.planner.plan import Kernel, Plan, Stage, Table
from fftgen.problem import Problem
from fftgen.targets import Target


def every_layout(found: Plan, chip: Target, sides: int = 1) -> Iterator[Plan]:
    """Plans of a shape on the mma engine with every legal layout of its kernels, without a filter's.

    ``sides``: transforms whose columns the warps of a block share on their way back.
    """
    device = len(found.device_stages)
    made = mma_kernels.kernels(found.stages, device, found.real_input, chip, found.compute_format, sides)
    for kernels in made:
        if not isinstance(kernels, str):
            bare = replace(found, kernels=kernels, filter=Filter(), whole=None)
            yield levelled(bare, body_of(kernels), chip)


def by_matrices(found: Plan) -> Plan:
    """A plan of the mma engine whose columns have no butterflies; itself, where they have none."""
    first, *others = found.stages
    if first.butterflies == 1:
        return found
    stages = (replace(first, butterflies=1), *others)
    tables = tables_of(stages, found.kernels, found.real_input, found.operand)
    return replace(found, stages=stages, tables=tables)


def levelled(found: Plan, body: Kernel, chip: Target) -> Plan:
    """A plan of the mma engine with the tables that its kernels read beside the blocks of ``body``."""
    if not found.block_stage:
        return with_outer_split(found, 0)
    exact = is_exact(found.problem, found.real_input)
    return with_outer_split(found, mma_rules.outer_split(found.inner[0], body, chip, exact))


def with_outer_split(found: Plan, split: int) -> Plan:
    """A plan of the mma engine whose block stage, if there is one, has twiddles of this split."""
    stages = found.stages
    if found.block_stage:
        stages = split_at(stages, len(found.device_stages), split)
    tables = tables_of(stages, found.kernels, found.real_input, found.operand)
    return replace(found, stages=stages, tables=tables)


def split_at(stages: tuple[Stage, ...], at: int, split: int) -> tuple[Stage, ...]:
    return (*stages[:at], replace(stages[at], split=split), *stages[at + 1 :])


def tables_of(
    stages: tuple[Stage, ...], kernels: tuple[Kernel, ...], right_angle: bool, operand: str
) -> tuple[Table, ...]:
    """The tables of stages as these kernels read them."""
    device = next((k.columns for k in kernels if k.role == "columns"), 0)
    return fragments.layout(stages, right_angle, body_of(kernels).columns, device, operand)


def body_of(kernels: tuple[Kernel, ...]) -> Kernel:
    """The kernel that runs the inner stages."""
    return next(k for k in kernels if k.role in ("convolve", "rows"))


def is_exact(problem: Problem, right_angle: bool) -> bool:
    """Nothing is to be rounded that need not be: pairs of rows share their noise, and fp16 shows it."""
    return problem.dtype == "fp16" and not right_angle

"""Candidates: lengths and shapes of transforms, each with its cheapest plan or the rule it breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from fftgen.planner import mma_kernels, mma_rules, simt
from fftgen.planner.cost import Cost, cost
from fftgen.planner.engines import formats, parse_engine
from fftgen.planner.factor import MIN_TRANSFORM, abreast, factorisations, transforms
from fftgen.planner.layouts import body_of, is_exact, split_at, tables_of
from fftgen.planner.matrix_scale import matrix_scales
from fftgen.planner.one_launch import expected, resident_warps
from fftgen.planner.plan import BF16_FP32, FP16_FP32, FP32, HALF_TILE, SCALED, SIMT, Kernel, Plan, Stage
from fftgen.planner.rules import (
    CHUNK_LIMIT,
    WARPS,
    Shape,
    columns_kernel,
    inner_kernel,
    peaks_kernel,
    shape_is_legal,
    supports_dtype,
)
from fftgen.planner.tables import layout, twiddle_split
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import Target

LENGTHS_TRIED = 12
SIMT_LENGTHS = 3  # tried of the engine that needs no search for shapes
BROUGHT = 0.9  # of the time, at a guess, where rows are on their way: it decides between layouts, not shapes
ENOUGH_WARPS = 20  # resident on a multiprocessor: of 4096 points, and more gain nothing (H200, results/)
FEW_WARPS = 1.03  # times longer with 16


@dataclass(frozen=True)
class Candidate:
    """A shape that was looked at: its plan and cost, or the reason it was struck out."""

    transform: int
    shape: Shape
    engine: str
    packing: str
    plan: Plan | None
    cost: Cost | None
    reason: str = ""

    @property
    def row_seconds(self) -> float:
        """Predicted seconds of one batch row, of which a transform may hold two; 0 without a plan."""
        return self.cost.time / self.plan.rows_per_item if self.cost and self.plan else 0.0

    @property
    def row_expected(self) -> float:
        """The same with all that makes a plan dearer than its busiest resources (``expected``)."""
        return expected(self.plan, self.cost) / self.plan.rows_per_item if self.cost and self.plan else 0.0

    def __str__(self) -> str:
        factors = "·".join(map(str, self.shape.factors))
        kind = f"{self.packing}, {self.engine}"
        head = f"N={self.transform} = {factors}, {self.shape.device} device stage(s), {kind}"
        if self.plan is None or self.cost is None:
            return f"{head}: no: {self.reason}"
        times = ", ".join(f"{name} {1e9 * s:.2f}" for name, s in self.cost.seconds.items())
        hidden = f"{1e9 * self.cost.showing:.2f} of them not hidden by the busiest resource"
        longest = "bound longest by" if len(self.cost.kernels) > 1 else "bound by"
        time = f"{1e9 * self.cost.predicted:.2f} ns per transform, {hidden}, {longest} {self.cost.bound}"
        return f"{head}: {time}; busy, in ns: {times}"


def lengths(problem: Problem) -> tuple[int, ...]:
    """Transform lengths worth trying: the shortest that hold the problem, and a power of two."""
    if problem.dtype == FP32:
        return simt.lengths(problem, SIMT_LENGTHS)
    power = max(MIN_TRANSFORM, 1 << (problem.length - 1).bit_length())
    served = filter(has_shape, transforms(problem.length, min(power, MAX_LENGTH)))
    near = tuple(islice(served, LENGTHS_TRIED))
    return tuple(dict.fromkeys((*near, power)))


def folds(problem: Problem, transform: int) -> tuple[int, ...]:
    """How a transform may serve a problem: folded onto this period, or not (0).

    A circular length that is a transform itself may run in batch pairs; any may fold (planner/fold.py).
    """
    if problem.causal:
        return (0,)
    return (0, problem.length) if transform == problem.length else (problem.length,)


def shapes(transform: int) -> Iterator[Shape]:
    """Every ordered factorisation with every number of device stages."""
    for order in (2, 3, 4):
        for factors in factorisations(transform, order):
            for device in range(order - 1):
                yield Shape(factors, device)
    if beside := abreast(transform):
        yield Shape(beside, 0)


@lru_cache(maxsize=4096)
def has_shape(transform: int) -> bool:
    """Whether some shape of this length is legal: 5120 = 64·80, say, factors only into too large a tile."""
    return any(shape_is_legal(shape) is None for shape in shapes(transform))


def candidate(
    problem: Problem, target: Target, transform: int, shape: Shape, fold: int, engine: str = "wmma"
) -> Candidate:
    """Judge one shape on one engine: the cheapest layout that is legal, or why none is.

    ``engine`` as ``parse_engine`` takes it.
    """
    right_angle = problem.causal or bool(fold)
    packing = "right-angle" if right_angle else "batch-pair"
    engine, asked = parse_engine(engine)
    compute_format = asked or formats(engine, problem.dtype)[0]
    reason = supports_dtype(problem.dtype, target) or legal(engine, shape, target)
    if engine == "mma":
        reason = reason or mma_rules.serves(compute_format, problem.dtype)
    elif compute_format not in formats(engine, problem.dtype):
        reason = f"the {engine} engine computes {problem.dtype} in {formats(engine, problem.dtype)[0]}"
    if not right_angle and compute_format == BF16_FP32:
        reason = reason or f"two rows of a transform share its noise, and {BF16_FP32} scales neither"
    if engine == "mma" and shape.factors[0] == HALF_TILE:
        reason = reason or mma_rules.goes_abreast(compute_format)
    if not reason and (
        transform < problem.length or (not problem.causal and not fold and transform != problem.length)
    ):
        reason = f"a transform of {transform} does not serve {problem.mode} length {problem.length}"
    if reason:
        return Candidate(transform, shape, engine, packing, None, None, reason)
    operand = "fp16" if compute_format == SCALED else problem.dtype
    stages = _stages(shape, right_angle, operand)
    if engine == "mma":
        stages = mma_rules.with_splits(stages, shape.device)
        if compute_format == SCALED and not is_exact(problem, right_angle):
            stages = mma_rules.with_halves(stages, right_angle)
    ways = [stages]
    if engine == "mma" and compute_format == SCALED and problem.causal:
        ways = [*dict.fromkeys((mma_rules.with_butterflies(stages), stages))]
    best: Candidate | None = None
    least = math.inf
    for stages, kernels in _laid_out(engine, shape, ways, right_angle, target, compute_format):
        if isinstance(kernels, str):
            reason = reason or kernels
            continue
        if engine == "mma" and len(shape.inner) == 3:
            exact = is_exact(problem, right_angle)
            split = mma_rules.outer_split(stages[shape.device], body_of(kernels), target, exact)
            stages = split_at(stages, shape.device, split)
        plan = Plan(
            problem=problem,
            target=target.name,
            transform=transform,
            packing=packing,
            memory_class=_memory_class(engine, shape),
            engine=engine,
            compute_format=compute_format,
            fold=fold,
            stages=stages,
            kernels=kernels,
            tables=(
                layout(stages, right_angle)
                if engine == "wmma"
                else tables_of(stages, kernels, right_angle, operand)
            ),
            chunk_bytes=max(4 * transform, min(target.l2_bytes, CHUNK_LIMIT)) if shape.device else 0,
        )
        price = cost(plan, target)
        hidden = BROUGHT if plan.body.brought else 1.0
        few = 1.0 if resident_warps(plan, price) >= ENOUGH_WARPS else FEW_WARPS
        key = hidden * few * expected(plan, price)
        if best is None or key < least:
            best, least = Candidate(transform, shape, engine, packing, plan, price), key
    return best or Candidate(
        transform, shape, engine, packing, None, None, reason or "no number of warps fits"
    )


def by_threads(problem: Problem, target: Target, transform: int) -> Candidate:
    """The candidate of a transform length on the engine "simt"."""
    found = simt.plan(problem, target, transform)
    if isinstance(found, str):
        shape = Shape(simt.radices_of(transform), 0)
        return Candidate(transform, shape, SIMT, "right-angle", None, None, found)
    shape = Shape(found.factors, len(found.device_stages))
    return Candidate(transform, shape, SIMT, found.packing, found, cost(found, target))


def _stages(shape: Shape, right_angle: bool, operand: str) -> tuple[Stage, ...]:
    stages = []
    rest = math.prod(shape.factors)
    scales = matrix_scales(shape.factors, right_angle, operand)
    for i, (radix, scale) in enumerate(zip(shape.factors, scales, strict=True)):
        rest //= radix
        inner = len(shape.factors) - i
        place = "device" if i < shape.device else "block" if inner > 2 else "warp"
        stages.append(Stage(radix, rest, place, scale, twiddle_split(radix, rest)))
    return tuple(stages)


def _laid_out(
    engine: str,
    shape: Shape,
    ways: list[tuple[Stage, ...]],
    right_angle: bool,
    target: Target,
    compute_format: str,
) -> Iterator[tuple[tuple[Stage, ...], tuple[Kernel, ...] | str]]:
    """Every layout of a shape's kernels on an engine, or a reason against others, with its stages."""
    for stages in ways:
        if engine == "mma":
            for kernels in mma_kernels.kernels(stages, shape.device, right_angle, target, compute_format):
                yield stages, kernels
            continue
        for warps in WARPS:
            yield stages, _kernels(shape, stages, right_angle, warps, target, compute_format == FP16_FP32)


def _kernels(
    shape: Shape, stages: tuple[Stage, ...], weighted: bool, warps: int, target: Target, scaled: bool
) -> tuple[Kernel, ...] | str:
    inner = stages[shape.device :]
    role = "rows" if shape.device else "convolve"
    body = inner_kernel(role, inner, weighted, warps, target)
    if isinstance(body, str):
        return body
    if not shape.device:
        return (body,)
    kernels: list[Kernel] = []
    inward = [("columns", number) for number in range(1, shape.device + 1)]
    outward = [("columns_inverse", number) for number in range(shape.device, 0, -1)]
    for name, number in (*inward, *outward):
        stage = stages[number - 1]
        found = columns_kernel(name, number, stage, 8 if stage.radix <= 64 else 4, target)
        if isinstance(found, str):
            return found
        kernels.append(found)
    kernels.insert(shape.device, body)
    return (peaks_kernel(target), *kernels) if scaled else tuple(kernels)


def legal(engine: str, shape: Shape, target: Target) -> str | None:
    """Why an engine has no plan of a shape; None where it may have one."""
    if engine == "mma":
        return mma_rules.supports(target) or mma_rules.shape_is_legal(shape)
    return shape_is_legal(shape)


def _memory_class(engine: str, shape: Shape) -> str:
    if shape.device:
        return "device"
    return "warp" if engine == "mma" and len(shape.inner) == 2 else "block"

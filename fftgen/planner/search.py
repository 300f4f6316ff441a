"""Candidates -> rules -> cost -> choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from fftgen.dtypes import DTYPES
from fftgen.errors import InputError, NoPlanError
from fftgen.planner import fragments, mma_rules, simt
from fftgen.planner.cost import Cost, cost, in_one_launch
from fftgen.planner.factor import MIN_TRANSFORM, abreast, factorisations, transforms
from fftgen.planner.filter import Filter
from fftgen.planner.filter_design import design
from fftgen.planner.matrix_scale import matrix_scales
from fftgen.planner.plan import (
    BF16_FP32,
    FP16_FP32,
    FP32,
    HALF_TILE,
    SCALED,
    SIMT,
    Kernel,
    Plan,
    Stage,
    Table,
)
from fftgen.planner.rules import (
    WARPS,
    Shape,
    columns_kernel,
    inner_kernel,
    peaks_kernel,
    shape_is_legal,
    supports_dtype,
)
from fftgen.planner.tables import layout, twiddle_split
from fftgen.planner.whole import held_kernel, share, whole_kernel
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

ENGINES = ("mma", "wmma")  # of matrix instructions: signals of 16 bits
AND_FORMAT = ":"  # between an engine and a compute format that is not its first
LENGTHS_TRIED = 12
SIMT_LENGTHS = 3  # tried of the engine that needs no search for shapes
ALONE = 1.1  # times longer than predicted takes a block that has a multiprocessor for itself
BROUGHT = 0.9  # of the time, at a guess, where rows are on their way: it decides between layouts, not shapes
CLOSE = 1.03  # times longer than the shortest: instructions alone are known no better
ENOUGH_WARPS = 20  # resident on a multiprocessor: of 4096 points, and more gain nothing (H200, results/)
FEW_WARPS = 1.03  # times longer with 16
CHUNK_LIMIT = 64 * 1024 * 1024


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


def _layouts(
    engine: str,
    shape: Shape,
    stages: tuple[Stage, ...],
    right_angle: bool,
    target: Target,
    compute_format: str,
) -> Iterator[tuple[Kernel, ...] | str]:
    """Every layout of a shape's kernels on an engine, and reasons against others."""
    if engine == "mma":
        yield from mma_rules.kernels(stages, shape.device, right_angle, target, compute_format)
    else:
        for warps in WARPS:
            yield _kernels(shape, stages, right_angle, warps, target, compute_format == FP16_FP32)


def _legal(engine: str, shape: Shape, target: Target) -> str | None:
    if engine == "mma":
        return mma_rules.supports(target) or mma_rules.shape_is_legal(shape)
    return shape_is_legal(shape)


def _tables(
    engine: str,
    stages: tuple[Stage, ...],
    kernels: tuple[Kernel, ...],
    right_angle: bool,
    operand: str,
) -> tuple[Table, ...]:
    if engine == "wmma":
        return layout(stages, right_angle)
    body = _body(kernels)
    device = next((k.columns for k in kernels if k.role == "columns"), 0)
    return fragments.layout(stages, right_angle, body.columns, device, operand)


def _body(kernels: tuple[Kernel, ...]) -> Kernel:
    """The kernel that runs the inner stages."""
    return next(k for k in kernels if k.role in ("convolve", "rows"))


def _memory_class(engine: str, shape: Shape) -> str:
    if shape.device:
        return "device"
    return "warp" if engine == "mma" and len(shape.inner) == 2 else "block"


def expected(plan: Plan, price: Cost) -> float:
    """Predicted seconds, with those that busiest resources do not hide, weighed by what no model knows.

    Of the one launch of all stages, where there is one: most calls take it.
    Two blocks of 16 384 points on a multiprocessor take 10 % less time than one of twice the warps, which all
    stop at the same barrier (measured on an H200, results/).
    """
    ways = one_launches(plan, price, find_target(plan.target))
    return _weight(plan, price) * (ways[0].seconds if ways else price.predicted)


def _weight(plan: Plan, price: Cost) -> float:
    """Times longer than predicted, for what no model knows."""
    alone = plan.block_stage and _resident(plan, price) == plan.body.warps
    return (ALONE if alone else 1.0) * (mma_rules.spilling(plan) if plan.engine == "mma" else 1.0)


class OneLaunch(NamedTuple):
    """A plan with the kernel of all its stages, and the seconds that a transform is expected to take:
    predicted, weighed by what no model knows."""

    plan: Plan
    seconds: float

    def __str__(self) -> str:
        kernel = self.plan.whole
        assert kernel is not None
        part = share(self.plan, kernel)
        place = f"{part} of every row in shared memory" if part else "rows in the L2"
        levels = "two levels" if self.plan.inner[0].two_levels else "one level"
        return (
            f"{place}, {kernel.resident} x {kernel.warps} warps on a multiprocessor, twiddles of rows in "
            f"{levels}: {1e9 * self.seconds:.2f} ns per transform"
        )


def one_launches(plan: Plan, price: Cost, chip: Target) -> tuple[OneLaunch, ...]:
    """The ways to do all of a plan's stages by one launch, the quickest first: rows in the L2, or in part in
    the shared memory of single blocks, where the L1 has little room and twiddles come in two levels. Empty
    where there is none."""
    in_l2 = whole_kernel(plan, chip)
    if in_l2 is None:
        return ()

    def judged(of: Plan, kernel: Kernel) -> OneLaunch:
        found = replace(of, whole=kernel)
        seconds = in_one_launch(found, price if of is plan else cost(of, chip), chip).predicted
        return OneLaunch(found, seconds * (ALONE if kernel.resident < in_l2.resident else 1.0))

    ways = [judged(plan, in_l2)]
    held = held_kernel(plan, chip)
    if held is not None:
        stage = plan.inner[0]
        if stage.two_levels or mma_rules.one_level_fits(stage, held, chip):
            ways.append(judged(plan, held))
        elif not _exact(plan.problem, plan.real_input):
            ways.append(judged(with_outer_split(plan, mma_rules.two_levels(plan.body)), held))
    return tuple(sorted(ways, key=lambda way: way.seconds))


def _resident(plan: Plan, price: Cost) -> int:
    """Warps of the inner stages on a multiprocessor."""
    return next(k.resident for k in price.kernels if k.name == plan.body.label)


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
    reason = supports_dtype(problem.dtype, target) or _legal(engine, shape, target)
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
        if compute_format == SCALED and not _exact(problem, right_angle):
            stages = mma_rules.with_halves(stages, right_angle)
    best: Candidate | None = None
    least = math.inf
    for kernels in _layouts(engine, shape, stages, right_angle, target, compute_format):
        if isinstance(kernels, str):
            reason = reason or kernels
            continue
        if engine == "mma" and len(shape.inner) == 3:
            exact = _exact(problem, right_angle)
            split = mma_rules.outer_split(stages[shape.device], _body(kernels), target, exact)
            stages = _with_outer(stages, shape.device, split)
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
            tables=_tables(engine, stages, kernels, right_angle, operand),
            chunk_bytes=max(4 * transform, min(target.l2_bytes, CHUNK_LIMIT)) if shape.device else 0,
        )
        price = cost(plan, target)
        hidden = BROUGHT if plan.body.brought else 1.0
        few = 1.0 if _resident(plan, price) >= ENOUGH_WARPS else FEW_WARPS
        key = hidden * few * expected(plan, price)
        if best is None or key < least:
            best, least = Candidate(transform, shape, engine, packing, plan, price), key
    return best or Candidate(
        transform, shape, engine, packing, None, None, reason or "no number of warps fits"
    )


def _by_threads(problem: Problem, target: Target, transform: int) -> Candidate:
    """The candidate of a transform length on the engine "simt"."""
    found = simt.plan(problem, target, transform)
    if isinstance(found, str):
        shape = Shape(simt.radices_of(transform), 0)
        return Candidate(transform, shape, SIMT, "right-angle", None, None, found)
    shape = Shape(found.factors, len(found.device_stages))
    return Candidate(transform, shape, SIMT, found.packing, found, cost(found, target))


def formats(engine: str, dtype: str) -> tuple[str, ...]:
    """The compute formats of an engine for a storage type, the one that it takes unasked first; none where
    it does not take that type."""
    if engine == SIMT or dtype == FP32:
        return (FP32,) if engine == SIMT and dtype == FP32 else ()
    if engine == "wmma":
        return (BF16_FP32 if dtype == "bf16" else FP16_FP32,)
    return tuple(f for f in mma_rules.FORMATS if mma_rules.serves(f, dtype) is None)


def parse_engine(text: str) -> tuple[str, str | None]:
    """ "mma", "wmma" or "simt", and the compute format after a colon ("mma:bf16-fp32"), if there is one.

    Raises InputError for any other text.
    """
    engine, colon, compute_format = str(text).partition(AND_FORMAT)
    known = {name: {f for d in DTYPES for f in formats(name, d)} for name in (*ENGINES, SIMT)}
    if engine not in known or (colon and compute_format not in known[engine]):
        named = (f"{name}{AND_FORMAT}{f}" for name, found in known.items() for f in sorted(found))
        raise InputError(f"engine {text!r} is not known: choose from {', '.join((*known, *named))}")
    return engine, compute_format or None


def named_engine(found: Plan) -> str:
    """What ``parse_engine`` takes for the engine of a plan: with its compute format, unless taken unasked."""
    unasked = formats(found.engine, found.problem.dtype)[0] == found.compute_format
    return found.engine if unasked else f"{found.engine}{AND_FORMAT}{found.compute_format}"


def supports_engine(engine: str, target: Target) -> str | None:
    """Why no plan of an engine can be for a target; None where some can. Raises InputError for no engine."""
    return mma_rules.supports(target) if parse_engine(engine)[0] == "mma" else None


def _takes(engine: str, dtype: str) -> str | None:
    """Why an engine computes no signals of a type; None where it does."""
    name = parse_engine(engine)[0]
    if formats(name, dtype):
        return None
    others = " and ".join(f"{e!r}" for e in (*ENGINES, SIMT) if formats(e, dtype))
    return f"the engine {name!r} takes no {dtype} signals ({others} would)"


def search(
    problem: Problem, target: Target, transform: int | None = None, engine: str | None = None
) -> tuple[Candidate, ...]:
    """All candidates: of the first memory class that fits, the cheapest a row first; struck-out ones last.

    ``transform`` and ``engine`` leave only candidates of that length and engine (``parse_engine``).

    A transform that one block finishes reads its input once and writes its output once; the device
    class adds workspace traffic and launches, so it is taken only where no block can hold the transform.
    """
    tried = lengths(problem) if transform is None else (transform,)
    if problem.dtype == FP32:
        return tuple(sorted((_by_threads(problem, target, n) for n in tried), key=_rank))
    found = [
        candidate(problem, target, n, shape, fold, name)
        for n in tried
        for shape in shapes(n)
        for fold in folds(problem, n)
        for name in (ENGINES if engine is None else (engine,))
    ]
    ranked = sorted(found, key=_rank)
    last = math.inf, True, 0, 0.0
    return tuple(sorted(ranked, key=lambda c: _busiest(c) if _close(c, ranked[0]) else last))


def _rank(found: Candidate) -> tuple[bool, bool, float, tuple[int, ...], int]:
    device = found.shape.device > 0 and found.engine == "wmma"
    return found.cost is None, device, found.row_expected, found.shape.factors, found.shape.device


def _close(found: Candidate, first: Candidate) -> bool:
    """Whether it is as good as the first for all that the model can tell, on the same engine.

    Named or not, an engine's choice is the same.
    """
    if found.cost is None or found.engine != first.engine or _rank(found)[:2] != _rank(first)[:2]:
        return False
    return found.row_expected <= CLOSE * first.row_expected


def _busiest(found: Candidate) -> tuple[float, bool, int, float]:
    """Of equals the least by its busiest resources, weighed as the whole is; then batch pairs before folds,
    which do more matrix work; then short transforms, with less to do for gradients and filters; then what
    issues least: where memory bounds two shapes, the rest is room for its latency."""
    if found.plan is None or found.cost is None:
        return math.inf, True, 0, 0.0
    seconds = _weight(found.plan, found.cost) * found.row_seconds
    return seconds, found.plan.fold > 0, found.transform, found.cost.seconds["issue slots"]


def finished(found: Plan, chip: Target) -> Plan:
    """A chosen plan with the kernels of its filter's spectrum, and the one that does all stages."""
    if found.engine == SIMT:
        return found  # has the former from the start
    ways = one_launches(found, cost(found, chip), chip)
    return replace(ways[0].plan if ways else found, filter=design(found, chip))


def plan(problem: Problem, target: str | Target, engine: str | None = None) -> Plan:
    """The chosen plan, on an ``engine`` of the caller's choice where one is named (``parse_engine``).

    The planner's own choice is the cheapest of all engines, so that naming its engine gives the same plan.
    Raises NoPlanError with every candidate's reason when none is legal.
    """
    return _plan(problem, find_target(target), engine)


@lru_cache(maxsize=1024)
def _plan(problem: Problem, chip: Target, engine: str | None) -> Plan:
    barred = (supports_engine(engine, chip) or _takes(engine, problem.dtype)) if engine else None
    candidates = () if barred else search(problem, chip, engine=engine)
    if not candidates or candidates[0].plan is None:
        on = f"{chip.name} with engine {engine}" if engine else chip.name
        raise NoPlanError(
            f"no plan for {problem.mode} seqlen {problem.length} {problem.dtype} on {on}: "
            + (supports_dtype(problem.dtype, chip) or barred or _decisive(chip, candidates))
            + (": name another engine, or none for the planner's choice" if engine else ""),
            [str(c) for c in candidates[:20]],
        )
    return finished(candidates[0].plan, chip)


def _decisive(chip: Target, candidates: tuple[Candidate, ...]) -> str:
    """The rule that struck out most of the candidates which came furthest: those of a shape that is legal."""
    shaped = [c for c in candidates if _legal(c.engine, c.shape, chip) is None]
    reasons = Counter(c.reason for c in shaped or candidates)
    if not reasons:
        return "no factorisation into radices from 16 to 128"
    reason, count = reasons.most_common(1)[0]
    rest = len(candidates) - count
    return f"{reason} (and other rules for {rest} of {len(candidates)} factorisations)" if rest else reason


def chosen_engine(problem: Problem, target: str | Target) -> str | None:
    """``named_engine`` of the planner's own choice; None where it has no plan."""
    try:
        return named_engine(plan(problem, target))
    except NoPlanError:
        return None


def with_shape(
    problem: Problem,
    target: str | Target,
    factors: tuple[int, ...],
    device: int,
    engine: str = "wmma",
    *,
    fold: bool = False,
) -> Plan:
    """The plan for given radices: for tests and tuning. Raises NoPlanError with the rule it breaks.

    ``fold``: a circular length folds even where it is the transform's, instead of running in batch pairs.
    """
    chip = find_target(target)
    n = math.prod(factors)
    ways = folds(problem, n)
    found = candidate(problem, chip, n, Shape(factors, device), ways[-1 if fold else 0], engine)
    if found.plan is None:
        raise NoPlanError(f"factors {factors} do not fit {chip.name}: {found.reason}")
    return finished(found.plan, chip)


def layouts(found: Plan, chip: Target) -> Iterator[Plan]:
    """Plans of a shape on the mma engine with every legal layout of its kernels, without a filter's."""
    device = len(found.device_stages)
    for kernels in mma_rules.kernels(found.stages, device, found.real_input, chip, found.compute_format):
        if not isinstance(kernels, str):
            bare = replace(found, kernels=kernels, filter=Filter(), whole=None)
            yield levelled(bare, _body(kernels), chip)


def levelled(found: Plan, body: Kernel, chip: Target) -> Plan:
    """A plan of the mma engine with the tables that its kernels read beside the blocks of ``body``."""
    if not found.block_stage:
        return with_outer_split(found, 0)
    exact = _exact(found.problem, found.real_input)
    return with_outer_split(found, mma_rules.outer_split(found.inner[0], body, chip, exact))


def with_outer_split(found: Plan, split: int) -> Plan:
    """A plan of the mma engine whose block stage, if there is one, has twiddles of this split."""
    stages = found.stages
    if found.block_stage:
        stages = _with_outer(stages, len(found.device_stages), split)
    tables = _tables("mma", stages, found.kernels, found.real_input, found.operand)
    return replace(found, stages=stages, tables=tables)


def _exact(problem: Problem, right_angle: bool) -> bool:
    """Nothing is to be rounded that need not be: pairs of rows share their noise, and fp16 shows it."""
    return problem.dtype == "fp16" and not right_angle


def _with_outer(stages: tuple[Stage, ...], at: int, split: int) -> tuple[Stage, ...]:
    return (*stages[:at], replace(stages[at], split=split), *stages[at + 1 :])


def nearest_transform(problem: Problem) -> int:
    """The shortest transform length that holds a problem: what neighbouring lengths can share."""
    return lengths(problem)[0]

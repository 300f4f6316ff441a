"""Which kernels make a gradient: layouts of a causal plan (gradient_plan.py), and the choice of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, product

from fftgen.errors import NoPlanError
from fftgen.planner import fragments, mma_kernels, mma_rules, search, simt, twins
from fftgen.planner.candidates import lengths
from fftgen.planner.filter_design import transposed
from fftgen.planner.gradient_plan import Gradient, columns_bytes, copied, peaks_bytes, row_tiles
from fftgen.planner.gradient_section_work import SUM
from fftgen.planner.gradient_work import far_twiddles, filter_bytes, kept_bytes
from fftgen.planner.layouts import by_matrices, every_layout, levelled
from fftgen.planner.mma_rules import CHAIN_POINTS
from fftgen.planner.plan import FP32, LOWER, SCALED, SIMT, TILE, Plan
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

REGISTERS = mma_kernels.REGISTERS[SCALED]
# Of columns in device memory: those of more are rounded too often for a bound that four stages nearly reach
# (gradient_accuracy.py; 4 194 304 points, 8: 1.37e-3 of 1.35e-3).
MOST_BUTTERFLIES = 4
ENOUGH_WARPS = 16  # resident on a multiprocessor; below, sums go to device memory sooner


@dataclass(frozen=True)
class _Places:
    """What workers keep at hand: rows of so many tensors on their way, the first signal's spectrum, and of a
    row of the sum so many tiles. ``together``: both signals, and no spectrum."""

    brought: int
    spectra: bool
    held: int
    together: bool = False


def _fitted(plan: Plan, chip: Target, group: int, places: _Places, signals: bool) -> Gradient | None:
    """One layout, or None where it does not fit."""
    body, points, brought, warps = plan.body, plan.row_length * plan.abreast, places.brought, plan.body.warps
    together = places.together
    if plan.block_stage:
        first = plan.inner[0]
        if signals and not together and first.butterflies > 1 and first.rest // 32 < warps:
            return None  # no warp idle on the way back
        workers, kept, plane, registers = 1, 1, points, REGISTERS
        peaks_at = 4 * points * (1 + together)
        at = peaks_at + plan.abreast * peaks_bytes(signals)
        if plan.strip_peaks:
            at += (1 + together) * mma_kernels.ratio_bytes(plan.inner[0], plan.kernel("columns").columns)
            at = -(-at // fragments.ALIGNMENT) * fragments.ALIGNMENT
    else:
        workers, kept, registers = warps, group, _warp_registers(group * points)
        plane, peaks_at = group * points, -1
        at = warps * plane * 2 * (brought or 2)  # or both planes of rows of the workspace
    tables_at, at = at, at + copied(plan, signals) + (0 if signals else columns_bytes(plan))
    spectra_at, at = (at, at + workers * kept * 4 * points) if places.spectra else (-1, at)
    sums = workers * SUM * points * places.held // row_tiles(plan)
    sums_at, at = (at, at + sums) if places.held else (-1, at)
    if at > chip.shared_block or 32 * warps * registers > chip.registers_sm:
        return None
    resident = max(1, chip.resident_blocks(warps, at, registers))
    kernel = replace(
        body,
        role="gradient",
        warps=warps,
        items=workers,
        resident=resident,
        plane=plane,
        staging_at=peaks_at,
        matrices_at=tables_at,
        shared_bytes=at,
        group=1 if together else group,
        brought=brought,
        brought_at=0,
    )
    laid = levelled(plan, kernel, chip)
    return Gradient(laid, kernel, spectra_at, sums_at, places.held, together, signals)


def _warp_registers(points: int) -> int:
    """Registers of a thread whose warp holds so many points of transforms: it hardly spills (as compiled)."""
    if points > CHAIN_POINTS:
        return 168
    return 160 if 2 * points > CHAIN_POINTS else REGISTERS


def fitting(convolution: Plan, chip: Target, signals: bool) -> Iterator[Gradient]:
    """Every layout of a convolution's plan that fits: columns of a thread, by butterflies or matrices alone,
    warps of a block, transforms of a warp, places. Without the kernels that take the sum to taps
    (``finished``)."""
    plan = replace(convolution, chunk_bytes=convolution.chunk_bytes // 2, whole=None)
    many = plan.device_stages and plan.stages[0].butterflies > MOST_BUTTERFLIES
    ways = (by_matrices(plan),) if many else dict.fromkeys((plan, by_matrices(plan)))
    for layout in chain.from_iterable(every_layout(way, chip, sides=2) for way in ways):
        body = layout.body
        if plan.block_stage:  # no warp idle in the chain
            group = min(body.group, max(1, layout.inner[0].lines // body.warps), 2 if signals else body.group)
        else:  # of several transforms at a time one half: the other half's registers go to the sum
            group = max(1, body.group // 2)
        for places in _kept(layout, signals):
            found = _fitted(layout, chip, group, places, signals)
            if found is not None:
                yield found


def _kept(plan: Plan, signals: bool) -> Iterator[_Places]:
    """What workers of a layout may keep at hand. Channels abreast have their sums in shared memory, as 4096
    points have that of one, and both signals at a time."""
    tiles = range(row_tiles(plan), -1, -1)
    if plan.abreast > 1:
        yield _Places(0, False, tiles[0], together=True)
        return
    # The signal that comes next and its gate; and gates of two results.
    brought = (0,) if plan.block_stage or plan.device_stages else (4, 2) if signals else (2,)
    for places in product(brought, (True, False), tiles):
        yield _Places(*places)
    if plan.block_stage and plan.body.group > 1:
        for held in tiles:
            yield _Places(0, False, held, together=True)


def far_bytes(found: Gradient, chip: Target, back: int) -> int:
    """Bytes that a row and its cotangent move between L2 and multiprocessor beside signals and workspace: the
    sum and the first signal's spectrum, the filter's, and twiddles that the L1 has no room for.

    ``back``: transforms that come back.
    """
    return 2 * kept_bytes(found) + filter_bytes(found) + far_twiddles(found, chip, back)


def _rank(found: Gradient, chip: Target) -> tuple[bool | int, ...]:
    """Enough warps first, then what does not come from the L2, what signals share, what is brought ahead, and
    what a thread does at a time."""
    kernel = found.kernel
    warps = min(kernel.resident * kernel.warps, ENOUGH_WARPS)
    # Complex columns from the workspace may spill: eight to a thread, or four where rows of both are many.
    few = 2 if found.together and found.plan.inner[0].radix > TILE else 4
    columns = -abs(kernel.columns - few) if found.plan.device_stages else kernel.columns
    far = far_bytes(found, chip, 2 if found.signals else 0)
    return warps, -far, found.together, kernel.brought, columns, kernel.warps


@lru_cache(maxsize=256)
def gradient(problem: Problem, target: str | Target) -> Gradient:
    """The gradient of a problem's filter: the layout with enough resident warps that keeps most at hand.

    Raises NoPlanError where the register chain does not run: before sm_80.
    """
    chip = find_target(target)
    if problem.dtype == FP32:
        return _by_threads(problem, chip)
    candidates = search.search(Problem("causal", problem.length, problem.dtype), chip)
    plan = next((c.plan for c in candidates if c.plan is not None and c.engine == "mma"), None)
    if plan is None:
        raise NoPlanError(
            f"no kernel makes the gradient of a filter of length {problem.length} {problem.dtype} on "
            f"{chip.name}: " + (mma_rules.supports(chip) or "no plan of the mma engine serves it"),
            [str(c) for c in candidates if c.engine == "mma"][:20],
        )
    found = _best(plan, chip, signals=False)
    if found is None:
        raise NoPlanError(f"the gradient's kernel does not fit a block of {chip.name}: {plan}", [])
    return found


def _by_threads(problem: Problem, chip: Target) -> Gradient:
    """The gradient of a filter of signals in fp32, by the engine "simt": of the first length that fits."""
    tried = [simt.gradient_plan(problem, chip, n) for n in lengths(problem)]
    for found in tried:
        if not isinstance(found, str):
            return Gradient(*found, 0, 0)
    raise NoPlanError(
        f"no kernel makes the gradient of a filter of length {problem.length} fp32 on {chip.name}: "
        f"{tried[0]}",
        [str(reason) for reason in tried],
    )


def _best(plan: Plan, chip: Target, *, signals: bool) -> Gradient | None:
    """Of a convolution's plan, the layout of the gradient's kernels that comes first, if any fits."""
    found = max(fitting(plan, chip, signals), key=lambda x: _rank(x, chip), default=None)
    return None if found is None else finished(found, chip)


@lru_cache(maxsize=256)
def backward(problem: Problem, target: str | Target) -> Gradient | None:
    """All gradients of a causal problem by one pass; None where there are no kernels for it.

    Its spectra of filters are those of the problem's own plan, so both have their factors in common.
    """
    chip = find_target(target)
    plan = search.plan(problem, chip)
    if plan.engine == SIMT:
        made = simt.backward_plan(plan, chip)
        return None if made is None else Gradient(*made, 0, 0, signals=True)
    return _best(plan, chip, signals=True) if read_backwards(plan) else None


def read_backwards(plan: Plan) -> bool:
    """Whether spectra of a plan are what the kernels of a backward pass read."""
    if plan.engine == SIMT:
        return simt.reads_back(plan, find_target(plan.target))
    return plan.problem.causal and plan.engine == "mma" and plan.scaled and plan.matrix == LOWER


def finished(found: Gradient, chip: Target) -> Gradient:
    """A chosen layout with the kernels that take its sum to taps, and room for two results."""
    plan, kernels = found.plan, found.plan.kernels
    if found.signals:
        kernels = tuple(twins.roomy(plan, k) if k.role == "columns_inverse" else k for k in kernels)
    return replace(found, plan=replace(plan, filter=transposed(plan, chip), kernels=kernels))

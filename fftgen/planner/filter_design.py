"""Decisions about the filter's spectrum: radices, one pass or two, threads, shared memory, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, groupby
from math import gcd, prod
from operator import mul

import numpy as np
import numpy.typing as npt

from fftgen.errors import InternalError
from fftgen.planner.filter import NO_PIECES, Filter, FilterKernel, FilterStage, FilterTable, Pieces
from fftgen.planner.filter_places import pieces, sum_pieces
from fftgen.planner.plan import SIMT, Plan
from fftgen.targets import Target

ALIGNMENT = 256
MAX_TWOS = 4  # the longest radix is 16
MAX_THREADS = 1024  # of a block
WRAP_THREADS = 256
LEVELLED = 8  # rows that a block brings to the channel's power of two: one each of its warps
REGISTERS = 64  # of a thread: a radix of 16 makes do with them, and 32 warps are resident instead of 16
REGISTERS_COLUMNS = 80  # with the twiddles between columns and rows
ELEMENTS = 4096  # of a block over columns: enough for a radix of 16 in every thread
COLUMNS = (8, 256)  # columns of a block: 64 bytes of the workspace in a row, fewer only where no more fit
ROW = 11  # log2 of the length that rows should have: a few warps, several blocks resident
PEAKS_BYTES = 2 * 32 * 4
FIND_PEAKS = ("filter", "filter_rows")
BANKS = 16  # of 8 bytes: half a warp reads a complex number each at a time
SPREADS = (
    (1, 0),
    (8, 1),
    (16, 1),
    (32, 1),
    (64, 1),
    (128, 1),
    (16, 2),
    (32, 2),
    (16, 3),
    (32, 3),
    (64, 4),
    (128, 8),
)
CHUNK_LIMIT = 32 * 1024 * 1024

Arrangement = Callable[[tuple[int, ...]], tuple[int, ...]]


def prime_factors(factors: Iterable[int]) -> tuple[int, ...]:
    """The prime factors of the transform in turn: of each of the plan's factors first the twos.

    A stored spectrum splits a factor's digit inside its first 16 and into tiles of 16. With the twos first,
    radices made of neighbouring primes and these splits stay on one chain of divisors.
    """
    found: list[int] = []
    for factor in factors:
        rest = factor
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                found.append(prime)
                rest //= prime
        if rest > 1:
            raise InternalError(f"no radices for a factor of {factor}")
    return tuple(found)


def radices(primes: Iterable[int]) -> tuple[int, ...]:
    """Radices of 2 to 16 for prime factors in turn: runs of twos in few and even steps."""
    found: list[int] = []
    for prime, run in groupby(primes):
        count = len(list(run))
        if prime == 2:
            steps = -(-count // MAX_TWOS)
            found += [2 ** (count // steps + (i < count % steps)) for i in range(steps)]
        else:
            found += [prime] * count
    return tuple(found)


def _stages(chosen: Sequence[int]) -> tuple[FilterStage, ...]:
    rests = [prod(chosen[i + 1 :]) for i in range(len(chosen))]
    return tuple(FilterStage(radix, rest) for radix, rest in zip(chosen, rests, strict=True))


def _accesses(stages: Sequence[FilterStage], columns: int, threads: int) -> Iterator[npt.NDArray[np.int64]]:
    """Places that half warps touch together, (halves, 16), in one step of each stage: of the first warps."""
    length = prod(s.radix for s in stages)
    for stage in stages:
        work = np.arange(min(threads, length // stage.radix * columns, 128))
        work = work[: len(work) // BANKS * BANKS]
        block, column = np.divmod(work, columns)
        high, r = np.divmod(block, stage.rest)
        at = high * stage.radix * stage.rest + r
        yield (at * columns + column).reshape(-1, BANKS)


def _wavefronts(places: npt.NDArray[np.int64], run: int, gap: int) -> float:
    """Passes that half a warp takes for distinct places, on average."""
    bank = (places + places // run * gap) % BANKS
    most = [np.bincount(row).max() for row in bank]
    return float(np.mean(most)) if len(most) else 1.0


def _spread(kernel: FilterKernel, pieces: Pieces, limit: int) -> FilterKernel | None:
    """The gaps in shared memory that leave the fewest bank conflicts; None when nothing fits."""
    count = kernel.length * kernel.columns
    if len(kernel.stages) == 1:
        return kernel  # everything stays in registers
    steps = [(2.0, touched) for touched in _accesses(kernel.stages, kernel.columns, kernel.threads)]
    if pieces.offsets:
        size = len(pieces.offsets)
        rest = np.arange(min(kernel.threads, count // size, 128))
        at = np.zeros_like(rest)
        for extent, stride in pieces.places:
            at += rest % extent * stride
            rest = rest // extent
        halves = at[: len(at) // BANKS * BANKS].reshape(-1, BANKS)
        steps += [(1 / size, halves + offset) for offset in pieces.offsets]
    best: tuple[float, FilterKernel] | None = None
    for run, gap in SPREADS:
        held = 8 * (count + (count - 1) // run * gap)
        peaks_at = -(-held // 16) * 16
        total = peaks_at + (PEAKS_BYTES if kernel.role in FIND_PEAKS else 0)
        if total > limit:
            continue
        price = sum(share * _wavefronts(touched, run, gap) for share, touched in steps)
        if best is None or price < best[0]:
            best = (price, replace(kernel, run=run, gap=gap, peaks_at=peaks_at, shared_bytes=total))
    if best is None:
        return None
    found = best[1]
    return replace(found, stages=tuple(replace(s, apart=_apart(found, s)) for s in found.stages))


def _apart(kernel: FilterKernel, stage: FilterStage) -> int:
    """Distance in shared memory of the points of one DFT, or 0: whole runs apart, or all within one."""
    step, run = stage.rest * kernel.columns, kernel.run
    if kernel.gap == 0 or run % (step * stage.radix) == 0:
        return step
    return step + step // run * kernel.gap if step % run == 0 else 0


def _threads(work: int) -> int:
    return max(32, min(MAX_THREADS, -(-work // 32) * 32))


def _resident(kernel: FilterKernel, target: Target) -> FilterKernel:
    registers = REGISTERS_COLUMNS if kernel.role in ("filter_columns", "finish_columns") else REGISTERS
    blocks = target.resident_blocks(kernel.threads // 32, kernel.shared_bytes, registers)
    return replace(kernel, resident=max(1, blocks))


def _kernel(
    role: str,
    chosen: Sequence[int],
    columns: int,
    target: Target,
    pieces: Pieces = NO_PIECES,
) -> FilterKernel | None:
    """A kernel that transforms inside a block, or None where its shared memory does not fit."""
    length = prod(chosen)
    threads = _threads(length * columns // max(chosen))
    kernel = FilterKernel(role, threads, 1, length, columns, _stages(chosen))
    found = _spread(kernel, pieces, target.shared_block)
    return _resident(found, target) if found else None


def _columns(rest: int, length: int) -> int:
    """Columns of a block: the power of two that divides ``rest`` and comes nearest to ELEMENTS."""
    columns = min(rest & -rest, COLUMNS[1])
    while columns > COLUMNS[0] and columns * length > ELEMENTS:
        columns //= 2
    return columns


def _passes(
    primes: tuple[int, ...], most: int, target: Target, arranged: Arrangement
) -> tuple[FilterKernel, FilterKernel] | None:
    """Columns of a length that divides ``most``, then rows: the fewest stages, rows of some 2**ROW points;
    None where nothing fits."""

    def price(cut: int) -> tuple[int, float]:
        stages = len(radices(primes[:cut])) + len(radices(primes[cut:]))
        return stages, abs(float(np.log2(prod(primes[cut:]))) - ROW)

    cuts = [
        c
        for c in range(1, len(primes))
        if len(radices(primes[c:])) > 1 and most % prod(primes[:c]) == 0  # rows find peaks between two stages
    ]
    for least in (COLUMNS[0], 1):
        for cut in sorted(cuts, key=price):
            rows = _kernel("filter_rows", arranged(radices(primes[cut:])), 1, target)
            width = _columns(prod(primes[cut:]), prod(primes[:cut]))
            while rows and width >= least:
                columns = _kernel("filter_columns", arranged(radices(primes[:cut])), width, target)
                if columns:
                    return columns, rows
                width //= 2
    return None


class _Block:
    """Tables one after the other, from an offset on."""

    def __init__(self, start: int) -> None:
        self.at = -(-start // ALIGNMENT) * ALIGNMENT
        self.tables: list[FilterTable] = []

    def add(
        self, kind: str, length: int, radix: int, rows: int, count: int, step: int, weighted: bool
    ) -> int:
        table = FilterTable(kind, length, radix, rows, count, step, weighted, self.at)
        self.tables.append(table)
        self.at += -(-table.nbytes // ALIGNMENT) * ALIGNMENT
        return table.offset

    def stages(self, kernel: FilterKernel, weighted: bool) -> FilterKernel:
        """The kernel with tables for the twiddles of its stages."""
        found = []
        for number, stage in enumerate(kernel.stages):
            table = -1
            if stage.rest > 1:
                turned = weighted and number == 0
                rows = len(exponents(stage.radix, turned))
                table = self.add(
                    "twiddle", stage.radix * stage.rest, stage.radix, rows, stage.rest, 1, turned
                )
            found.append(replace(stage, table=table))
        return replace(kernel, stages=tuple(found))


def exponents(radix: int, weighted: bool) -> tuple[tuple[int, bool], ...]:
    """Rows of a twiddle table, as ``twist`` in filter.cuh reads them: (k, whether weights are in)."""
    single = 4 if radix > 7 else radix
    fine = [(a, weighted) for a in range(0 if weighted else 1, single)]
    return (*fine, *((single * b, False) for b in range(1, radix // single)))


@lru_cache(maxsize=256)
def design(plan: Plan, target: Target) -> Filter:
    """The filter kernels of a plan whose convolution is decided; none where two passes do not fit."""
    found = _design(plan, target, "filter", pieces)
    if found.whole or not found.kernels:
        return found
    together = gcd(plan.transform // found.rest, LEVELLED)  # a warp brings a row to the channel's power
    level = _resident(FilterKernel("filter_level", 32 * together, 1, found.rest, together), target)
    return replace(found, kernels=(*found.kernels, level))


def plain_stages(plan: Plan, target: Target) -> Filter:
    """The filter kernels of a plan on the engine "simt", which has their stages: spectra stay as they leave
    them. None where two passes do not fit."""
    return _design(plan, target, "filter", lambda *_: NO_PIECES, without_conflicts)


def without_conflicts(chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Radices in an order that has the threads of half a warp on different banks: the longest last, whose
    points are neighbours, so that those of all other stages are at least so far apart that neighbouring
    threads touch neighbouring points."""
    falling = sorted(chosen, reverse=True)
    return (*falling[1:], falling[0])


def transposed(plan: Plan, target: Target) -> Filter:
    """The kernels that take a sum of spectra to taps (planner/finish.py) for a right-angle plan.

    None where two passes do not fit. Pieces are those of the sum.
    """
    arranged = without_conflicts if plan.engine == SIMT else tuple
    found = _design(plan, target, "finish", sum_pieces, arranged)
    if found.whole or not found.kernels:
        return found
    wrap = _resident(FilterKernel("finish_wrap", WRAP_THREADS, 1), target)
    return replace(found, kernels=(*reversed(found.kernels), wrap))


def _design(
    plan: Plan,
    target: Target,
    role: str,
    stored: Callable[[Plan, Sequence[int], int], Pieces],
    arranged: Arrangement = tuple,
) -> Filter:
    """One kernel, or one over columns and one over rows, their tables, and pieces in the order ``stored``.

    ``arranged``: what brings the radices of a kernel into the order of its stages.
    """
    factors = plan.factors or (plan.transform,)
    prime = prime_factors(factors)
    chosen = arranged(radices(prime))
    found = stored(plan, chosen, plan.transform)
    block = _Block(max((t.offset + t.nbytes for t in plan.tables), default=0))
    whole = _kernel(role, chosen, 1, target, found)
    if whole:
        return Filter((block.stages(whole, plan.real_input),), tuple(block.tables), found)
    # Columns are no longer than the stages before the plan's last two: so the numbers of a row stand side by
    # side in hundreds. Where all stages are the transform's own they may be anything.
    most = prod(factors[:-2]) if plan.factors else plan.transform
    passes = _passes(prime, most, target, arranged)
    if passes is None:
        return Filter()
    columns, rows = (tuple(s.radix for s in kernel.stages) for kernel in passes)
    found = stored(plan, columns + rows, prod(rows))
    spread = _kernel(f"{role}_rows", rows, 1, target, found)
    assert spread is not None  # it fitted without the order of its pieces
    made = _two_passes(plan, target, block, replace(passes[0], role=f"{role}_columns"), spread)
    return replace(made, pieces=found)


def _two_passes(
    plan: Plan, target: Target, block: _Block, columns: FilterKernel, rows: FilterKernel
) -> Filter:
    """Kernels over columns and over rows with their tables, and what they share."""
    above = tuple(s.radix for s in columns.stages[:-1])
    columns, rows = block.stages(columns, plan.real_input), block.stages(rows, False)
    roots = plan.transform * (4 if plan.real_input else 1)
    split = 1 << (roots - 1).bit_length() // 2
    low = block.add("low", roots, 0, 1, split, 1, False)
    high = block.add("high", roots, 0, 1, -(-roots // split), split, False)
    ends = [1, *accumulate(above, mul)]
    return Filter(
        (columns, rows),
        tuple(block.tables),
        rest=rows.length,
        reversal=tuple(reversed(list(zip(above, ends, strict=False)))),
        split=split,
        low_at=low,
        high_at=high,
        chunk_bytes=max(8 * plan.transform, min(target.l2_bytes // 2, CHUNK_LIMIT)),
    )

"""What every kernel of a filter's transform does for one channel: bytes exactly, instructions by a formula.

The transform is a mixed-radix FFT in fp32 (templates/device/filter.cuh): no work for tensor cores. Bytes of
taps, planes and workspace are those that the simulator counts.
"""

from __future__ import annotations

from fftgen.planner.filter import FilterKernel, FilterStage
from fftgen.planner.filter_design import exponents
from fftgen.planner.plan import CIRCULANT, Plan
from fftgen.planner.work import Work
from fftgen.targets import Target

COMPLEX = 8  # bytes of a complex number in fp32
SCALE = 8  # of a channel: the power of two and what undoes it
WARP = 32
PIECE = 8  # frequencies that a thread stores at a time
TWIST = 4  # instructions of a complex product
ADDRESSES = 14  # instructions of a thread around a DFT of any radix
GATHER = 8  # of a piece's frequency: where it lies, its load, scaling both parts
STORE = 14  # of a piece: rounding, packing, two stores
DIGIT = 7  # of a digit of its place
ROOT = 18  # of a root: where its two levels lie, their loads, their product
LEVEL, LEVEL_EVEN = 50, 47  # of a piece that is brought to another power of two; where all lanes have as many
LEVEL_TURN = 4 * 32  # pieces that a warp takes in a turn (filter_level.j2)
PEAK = 4  # bytes that a row tells of itself


def filter_work(plan: Plan, kernel: FilterKernel, target: Target, taps: int | None = None) -> Work:
    """The work of one filter kernel for one channel, and of sections for one distance of theirs, on average;
    ``taps`` of the filter, by default all that fit.

    What levels rows has all but one of them to do, as where a tone stands out; of rows that have the
    channel's power of two already it reads the peaks alone.
    """
    n = plan.transform
    count = min(plan.problem.length, plan.points) if taps is None else taps
    first = kernel.role in ("filter", "filter_columns")
    # A tap that is folded (planner/fold.py) stands in two places, and so does one that reaches into the next
    # section (planner/sections.py): its second reading is not from memory.
    again = count - 1 if plan.fold else 0
    if plan.sections > 1:
        reaching = sum(
            min(max(count - s * n - 1, 0), n - 1) for s in range(plan.sections - (plan.matrix != CIRCULANT))
        )
        count, again = count // plan.distances, reaching // plan.distances
    lower = n - kernel.length  # numbers of all rows but the one of the channel's peak
    read, stored, fetched, put = {
        "filter": (4 * count, 4 * n + SCALE, 0, 0),
        "filter_columns": (4 * count, 0, 0, COMPLEX * n),
        "filter_rows": (0, 4 * n, COMPLEX * n, PEAK * transforms(plan, kernel)),
        "filter_level": (0, SCALE, 4 * lower + 2 * PEAK * WARP * transforms(plan, kernel), 4 * lower),
    }[kernel.role]
    return Work(
        loaded=read + (4 * again if first else 0),
        stored=stored,
        device_bytes=read + stored,
        workspace_loaded=fetched,
        workspace_stored=put,
        tables=_tables(plan, kernel, target),
        shared_bytes=_shared(plan, kernel) + _twiddles(plan, kernel),
        instructions=_instructions(plan, kernel),
    )


def transforms(plan: Plan, kernel: FilterKernel) -> int:
    """Transforms of ``kernel.length`` points in one channel; 0 for a kernel without any."""
    return plan.transform // kernel.length if kernel.length else 0


def _rows(plan: Plan, kernel: FilterKernel, stage: FilterStage, first: bool) -> int:
    """Twiddles that a thread loads after a DFT: none after the last stage."""
    weighted = plan.real_input and first and kernel.role != "filter_rows"
    return len(exponents(stage.radix, weighted)) if stage.table >= 0 else 0


def _twiddles(plan: Plan, kernel: FilterKernel) -> int:
    """Bytes of twiddles that threads load: between stages, and two levels between columns and rows."""
    total = 0
    for number, stage in enumerate(kernel.stages):
        per_dft = COMPLEX * _rows(plan, kernel, stage, number == 0)
        total += plan.transform // stage.radix * per_dft
    if kernel.role == "filter_columns":
        total += plan.transform // kernel.stages[-1].radix * 2 * COMPLEX * _roots(kernel)
    return total


def _roots(kernel: FilterKernel) -> int:
    """Roots that a thread makes for the twiddles between columns and rows."""
    return len(exponents(kernel.stages[-1].radix, True))


def _tables(plan: Plan, kernel: FilterKernel, target: Target) -> int:
    """Of these, the bytes that come from the L2: all where the tables exceed what is left of the L1."""
    used = {s.table for s in kernel.stages}
    size = sum(t.nbytes for t in plan.filter.tables if t.offset in used)
    left = target.l1_beside(kernel.resident, kernel.shared_bytes)
    return _twiddles(plan, kernel) if size > left else 0


def _shared(plan: Plan, kernel: FilterKernel) -> int:
    """Bytes of shared memory: every stage but the first reads what the one before wrote.

    Columns end in the workspace; a row, and a whole spectrum, is read once more on its way out. Peaks of
    warps are written in pieces of 16 bytes and read by all of the block, after the first stage and after the
    last.
    """
    if not kernel.stages:
        return 0
    columns = kernel.role == "filter_columns"
    passes = 2 * (len(kernel.stages) - 1) if columns else 2 * len(kernel.stages)
    total = passes * COMPLEX * plan.transform
    if columns:
        return total
    warps = kernel.threads // WARP
    pieces = 16 * -(-warps // 4)
    if plan.exact_mean:  # frequency 0, for every thread
        total += 4 * kernel.threads
    return total + transforms(plan, kernel) * 2 * (pieces + 4 * warps * kernel.threads)


def real_operations(radix: int) -> int:
    """Instructions in fp32 of a DFT of ``radix`` points, as templates/device/filter.cuh writes it."""
    if radix == 2:
        return 4
    if radix == 4:
        return 16
    if radix % 2 == 0:  # four DFTs of A = R / 4 points, turns, A of four
        a = radix // 4
        turns = sum(_turn(16 // radix * k * m) for m in range(4) for k in range(a))
        return 4 * (0 if a == 1 else real_operations(a)) + turns + a * 16
    pairs = radix // 2
    return pairs * (4 + 2 + 4 * pairs + 4)


def _turn(k: int) -> int:
    """Instructions of a product with exp(-2 pi i k / 16)."""
    return 0 if k % 4 == 0 else 4


def _instructions(plan: Plan, kernel: FilterKernel) -> float:
    """Of warps: loads, DFTs, twiddles and stores of every stage, then the pieces.

    Two thirds to all of the PTX instructions that the simulator executes, of which the compiler merges some
    (a test holds it there).
    """
    n = plan.transform
    total = 0.0
    for number, stage in enumerate(kernel.stages):
        dfts = kernel.length // stage.radix * kernel.columns  # of a block
        blocks = n // (kernel.length * kernel.columns)
        total += blocks * -(-dfts // WARP) * _stage_instructions(plan, kernel, stage, number)
    digits = DIGIT * (len(plan.filter.pieces.at) + len(plan.filter.pieces.places))
    pieces = -(-n // (PIECE * WARP))  # of a warp
    if kernel.role in ("filter", "filter_rows"):
        total += pieces * (STORE + digits + PIECE * GATHER)
    if kernel.role == "filter_level":
        even = kernel.length % (PIECE * LEVEL_TURN) == 0
        total += pieces * (LEVEL_EVEN if even else LEVEL + DIGIT * len(plan.filter.pieces.at))
    return total


def _stage_instructions(plan: Plan, kernel: FilterKernel, stage: FilterStage, number: int) -> int:
    """Of one DFT with what stands around it."""
    first, last = number == 0, number == len(kernel.stages) - 1
    weighted = plan.real_input and first and kernel.role != "filter_rows"
    rows = _rows(plan, kernel, stage, first)
    each = 2  # a load and a store
    each += TWIST * (2 if stage.radix > 7 else 1) if rows else 0
    twice = plan.fold or plan.sections > 1  # taps stand in two places
    each += 3 + (2 if weighted else 0) + (6 if twice else 0) if first else 0  # bounds, weights
    columns = kernel.role == "filter_columns"
    each += 3 if (first or last) and not columns else 0  # the peak
    roots = 0
    if last and columns:  # twiddles between columns and rows
        each += TWIST * (2 if stage.radix > 7 else 1)
        roots = ROOT * _roots(kernel)
    return ADDRESSES + rows + roots + real_operations(stage.radix) + stage.radix * each

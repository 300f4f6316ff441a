"""What kernels of the engine "simt" do for a transform, or a filter: bytes exactly, instructions estimated.

FFTs of threads (planner/simt.py): no work for tensor cores. Bytes of signals, workspace, spectrum and shared
memory are those that the simulator counts.
"""

from __future__ import annotations

from dataclasses import replace

from fftgen.planner.filter import FilterKernel, FilterStage
from fftgen.planner.filter_design import exponents
from fftgen.planner.filter_work import ADDRESSES, COMPLEX, ROOT, SCALE, TWIST, WARP, real_operations
from fftgen.planner.plan import Kernel, Plan
from fftgen.planner.simt import shape_of
from fftgen.planner.work import Work
from fftgen.targets import Target

NUMBER = 4  # bytes of a number of a signal
MOVED = 2  # of a number: a load and a store
BOUNDED = 2  # of a number of a signal, beside its load: is there one, and its weight
PRODUCT = 5  # of a frequency and the filter's, its load included
GATED = 2  # of a number and its gate, likewise


def kernel_work(plan: Plan, kernel: Kernel, target: Target, gated: bool = False) -> Work:
    """What one kernel of the convolution does for one row. ``gated``: the input, and the result."""
    shape, n = shape_of(plan, kernel.role), plan.transform
    row, whole = NUMBER * min(plan.problem.length, n), COMPLEX * n
    loads = int(kernel.role in ("convolve", "columns"))
    stores = plan.outputs * (kernel.role in ("convolve", "columns_inverse"))
    both = kernel.role in ("convolve", "rows")  # there and back, the spectrum between
    signals = row * (loads + stores)
    ways = (True, False) if both else (loads == 1,)
    instructions = sum(_stages(plan, shape, way, kernel.items) for way in ways)
    return Work(
        loaded=row * loads,
        stored=row * stores,
        gates=signals if gated else 0,
        device_bytes=signals * (1 + gated),
        workspace_loaded=0 if loads else whole,
        workspace_stored=0 if stores else whole,
        spectrum=whole if both else 0,
        tables=_tables(plan, shape, kernel.resident, kernel.shared_bytes, target) * (1 + both),
        shared_bytes=_exchanged(plan, shape, both) + _twiddles(plan, shape) * (1 + both) + whole * both,
        instructions=instructions + PRODUCT * n / WARP * both + signals * gated * GATED / (NUMBER * WARP),
    )


def gradient_work(plan: Plan, kernel: Kernel, back: int, target: Target, moved: Work) -> Work:
    """What the kernel of gradients does for a row of u and its row of the cotangent, ``back`` of which go on
    to results; ``moved``: bytes of signals and gates.

    X is written to shared memory and read from there; what a block does after its last row is left out.
    """
    shape, n = shape_of(plan, kernel.role), plan.transform
    whole, ways = not plan.device_stages, 2 + back
    passed = _exchanged(plan, shape, False) + _twiddles(plan, shape)
    instructions = 2 * _stages(plan, shape, True, kernel.group) + PRODUCT * n / WARP
    instructions += back * (_stages(plan, shape, False, kernel.group) + PRODUCT * n / WARP)
    return replace(
        moved,
        workspace_loaded=0 if whole else 2 * COMPLEX * n,
        workspace_stored=0 if whole else back * COMPLEX * n,
        spectrum=back * COMPLEX * n,
        tables=ways * _tables(plan, shape, kernel.resident, kernel.shared_bytes, target),
        shared_bytes=ways * passed + ways * COMPLEX * n,
        instructions=instructions + moved.gates * GATED / (NUMBER * WARP),
    )


def filter_work(plan: Plan, kernel: FilterKernel, target: Target, taps: int | None = None) -> Work:
    """What one kernel of the filter's transform does for one channel, with so many taps (default: all)."""
    n = plan.transform
    count = min(plan.problem.length, n) if taps is None else taps
    again = NUMBER * (count - 1) if plan.fold else 0  # the second reading of folded taps: not from memory
    first, last = kernel.role != "filter_rows", kernel.role != "filter_columns"
    read, stored = NUMBER * count * first, (COMPLEX * n + SCALE) * last
    return Work(
        loaded=read + again * first,
        stored=stored,
        device_bytes=read + stored,
        workspace_loaded=0 if first else COMPLEX * n,
        workspace_stored=0 if last else COMPLEX * n,
        tables=_tables(plan, kernel, kernel.resident, kernel.shared_bytes, target),
        shared_bytes=_exchanged(plan, kernel, False) + _twiddles(plan, kernel),
        instructions=_stages(plan, kernel, True),
    )


def _exchanged(plan: Plan, shape: FilterKernel, both: bool) -> int:
    """Bytes of shared memory: between stages every number is written and read."""
    between = len(shape.stages) - 1
    return (2 if both else 1) * between * 2 * COMPLEX * plan.transform


def _rows(shape: FilterKernel, stage: FilterStage) -> int:
    """Twiddles that a thread loads with a DFT."""
    weighted = stage is shape.stages[0] and not shape.role.endswith("_rows")
    return len(exponents(stage.radix, weighted)) if stage.table >= 0 else 0


def _roots(shape: FilterKernel) -> int:
    """Roots that a thread makes for the twiddles between columns and rows."""
    return len(exponents(shape.stages[-1].radix, True)) if shape.role.endswith("_columns") else 0


def _twiddles(plan: Plan, shape: FilterKernel) -> int:
    """Bytes of twiddles that threads load, one way."""
    found = sum(plan.transform // s.radix * _rows(shape, s) for s in shape.stages)
    return COMPLEX * (found + plan.transform // shape.stages[-1].radix * 2 * _roots(shape))


def _tables(plan: Plan, shape: FilterKernel, resident: int, shared: int, target: Target) -> int:
    """Of these, the bytes that come from the L2: all where the tables exceed what is left of the L1."""
    used = {s.table for s in shape.stages}
    size = sum(t.nbytes for t in plan.filter.tables if t.offset in used)
    return _twiddles(plan, shape) if size > target.l1_beside(resident, shared) else 0


def _stages(plan: Plan, shape: FilterKernel, there: bool, items: int = 1) -> float:
    """Instructions of warps for all stages, one way, ``items`` transforms to a block."""
    points = shape.length * shape.columns * items  # of a block
    warps = sum(-(-points // s.radix // WARP) * _stage(shape, s, there) for s in shape.stages)
    return plan.transform / points * warps


def _stage(shape: FilterKernel, stage: FilterStage, there: bool) -> float:
    """Of one DFT with what stands around it."""
    outer = stage is shape.stages[0] and not shape.role.endswith("_rows")
    rows = _rows(shape, stage)
    products = TWIST * (2 if stage.radix > 7 else 1)
    each = MOVED + (products if rows else 0) + (BOUNDED + (2 if there else 3) if outer else 0)
    roots = _roots(shape) if stage is shape.stages[-1] else 0
    each += products if roots else 0
    return ADDRESSES + rows + ROOT * roots + real_operations(stage.radix) + stage.radix * each

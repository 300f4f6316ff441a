"""What the kernels of a gradient do for one row of u and its row of the cotangent, as work.py has it.

Of full length. Without gates nothing but the filter's gradient is made of the first signal, and with
``signals`` the second one comes back as the gradient of u; with both gates the first comes back as that of
the output's gate, the second as two results. Operations and bytes of signals, workspace, spectrum, kept
spectra and sums are those that the simulator counts; what a worker does once, before its first row and after
its last, is left out. Instructions are an estimate: the two ways of work.py, and the product; within 15 % of
the compiled code of 256 to 2**20 points on sm_90.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fftgen.dtypes import dtype
from fftgen.planner import fragments, simt_work, work
from fftgen.planner.cost import Compiled, Cost, KernelCost, kernel_cost, work_of
from fftgen.planner.gradient_plan import FORWARD, Gradient
from fftgen.planner.gradient_section_work import SUM, both_work, spread_work, sums_work
from fftgen.planner.instructions import BACK, THERE, gating, mma_instructions, rescaling
from fftgen.planner.plan import SIMT, Kernel
from fftgen.planner.work import ELEMENT, Work
from fftgen.targets import Target

# Instructions of a warp for 128 complex elements that are not a convolution's: conj(X) V to the sum in fp32,
# X kept, or beside V (together); by a block also the peaks of two rows.
PRODUCT = {"warp": 42.0, "block": 75.0, "device": 43.0}
TOGETHER = {"block": 53.0, "device": 53.0}
WIDENED = 16.0  # of these, to widen both spectra; narrowed where they go on (Gradient.wide_spectra)


def side_work(found: Gradient, kernel: Kernel, target: Target, gated: bool = False, side: str = "u") -> Work:
    """What a kernel before or after does for one of the two rows, that of ``side`` (SIDES).

    ``gated``: the cotangent comes back as two results, each with a gate.
    """
    both = gated and side == "v" and kernel in found.after
    return work_of(replace(found.plan, outputs=2 if both else 1), kernel, target, gated)


def gradient_work(found: Gradient, target: Target, gated: bool = False, alone: bool = False) -> Work:
    """What the kernel of both signals does. ``gated``: with both gates, whose gradients are made as well.

    ``alone``, of sections: of the filter's gradient, and no other.
    """
    if found.plan.spread:
        return spread_work(found, target, gated, alone)
    if found.sums:
        return both_work(found, target, gated, alone)
    plan, n, whole = found.plan, found.plan.transform, not found.plan.device_stages
    back = found.signals * (2 if gated else 1)  # transforms that go on to results: v's, with gates u's, too
    size = dtype(plan.problem.dtype).nbytes
    row = size * min(plan.problem.length, n) * whole
    # Both signals have a gate, and every result: in_gate, u and the cotangent, which have been read before,
    # the last into shared memory where rows are brought there.
    results = found.signals * (3 if gated else 1)
    again = results - (found.signals and found.kernel.brought > 0)
    inward, outward = (2, again) if gated else (0, 0)
    moved = Work(
        loaded=2 * row,
        stored=results * row,
        gates=(inward + outward) * row,
        device_bytes=(2 + inward + results) * row,
    )
    if plan.engine == SIMT:
        return simt_work.gradient_work(plan, found.kernel, back, target, moved)
    workspace_loaded = 0 if whole else 2 * ELEMENT * n
    workspace_stored = 0 if whole else back * ELEMENT * n
    kept = kept_bytes(found)
    one_way = 2 + back  # transforms: two there, and one back
    there, way_back = (work.tensor_ops(plan, plan.body, (way,)) for way in (THERE, BACK))
    ops = 2 * there + back * way_back
    body = replace(plan.body, warps=found.kernel.warps, group=found.kernel.group)
    both_ways = mma_instructions(plan, body, 0)
    rescaled = (2 - one_way / 2) * rescaling(plan)  # both ways do it once, two transforms there twice
    product = (TOGETHER if found.together else PRODUCT)[plan.memory_class]
    if found.together and found.wide_spectra:
        product -= WIDENED / (1 + found.signals)
    each = n / 128 * (product + rescaled) + gating(plan, moved.gates)
    return replace(
        moved,
        tensor_ops=ops,
        workspace_loaded=workspace_loaded + kept,
        workspace_stored=workspace_stored + kept,
        spectrum=filter_bytes(found),
        tables=far_twiddles(found, target, back),
        shared_bytes=_shared(found, back, gated),
        instructions=2 * ops + one_way / 2 * both_ways + each,
    )


def filter_bytes(found: Gradient) -> int:
    """Bytes of the filter's spectrum that a row and its cotangent read."""
    if not found.signals:
        return 0
    return ELEMENT * found.plan.transform * (1 if found.together else 2) // _at_once(found)


def _at_once(found: Gradient) -> int:
    """Transforms of a signal that share the filter's spectrum and a visit to the sum: those a warp takes
    together."""
    return 1 if found.blocks else found.kernel.group


def kept_bytes(found: Gradient) -> int:
    """Bytes of the sum, and of the first signal's spectrum, that are read in device memory for a row and its
    cotangent, and written there."""
    n = found.plan.transform
    spectra = 0 if found.spectra_at >= 0 or found.together else ELEMENT * n
    return spectra + int(SUM * n * (1 - found.held)) // _at_once(found)


def far_twiddles(found: Gradient, chip: Target, back: int) -> int:
    """Bytes of the outer twiddles from the L2."""
    names = ("outer", "outer_high", "outer_inverse", "outer_inverse_high")[: 4 if back else 2]
    outer = sum(t.nbytes for t in found.plan.tables if t.name in names)
    read = sum(_column_passes(found, back)) * ELEMENT * found.plan.transform
    return work.missed(read, outer, found.kernel, chip)


def _passes(found: Gradient, back: int) -> tuple[int, int]:
    """Passes over the tables of the chain, there and back: one for both signals, or one each."""
    return (1, min(back, 1)) if found.together else (2, back)


def _column_passes(found: Gradient, back: int) -> tuple[int, int]:
    """Passes over the outer twiddles."""
    there, way_back = _passes(found, back)
    return (2 if found.columns_in_turn else there), way_back


def _shared(found: Gradient, back: int, gated: bool) -> int:
    """Exchanges, tables and twiddles of each way; the spectrum; X and the sum, written and read.

    What is copied there ahead is written as it is loaded, and read as often as it was asked for.
    """
    plan, kernel = found.plan, found.kernel
    n = plan.transform
    sizes = {t.name: t.nbytes for t in plan.tables}
    ahead = sum(sizes[name] for name in FORWARD)
    after = sum(sizes[name] for name in sizes.keys() & fragments.CHAIN) - ahead
    rows = n // (plan.factors[-1] * plan.factors[-2])
    there, way_back = _passes(found, back)
    total = (there * ahead + way_back * after) * rows // kernel.group + filter_bytes(found)
    total += 2 * ELEMENT * n * (found.spectra_at >= 0) + int(2 * SUM * n * found.held) // _at_once(found)
    if not plan.block_stage:
        planes = 2 if plan.device_stages else 1
        rows_read = 2  # both signals; their gates; of results the gate that is V, and those that are copied
        if gated:
            rows_read += 2 + found.signals * (3 if kernel.brought > 2 else 1)
        copies = 2 * n * rows_read if kernel.brought else 0
        return total + copies + 2 * 2 * 2 * n * planes
    strips, way_back = _column_passes(found, back)
    matrices = strips * work.column_matrices(plan, kernel, False) + back * work.column_matrices(
        plan, kernel, True
    )
    twiddles = strips * work.outer_twiddles(plan, False) + way_back * work.outer_twiddles(plan, True)
    by = replace(kernel, warps=kernel.warps // 2) if found.sides_apart else kernel
    twiddles += back * work.read_again(plan, by)
    total += 2 * work.ratios_read(plan, kernel)
    return total + (2 + back) * 8 * n + int(twiddles * n) + n // plan.row_length * matrices


SIDES = ("u", "v")  # the input, and the cotangent


def gradient_cost(
    found: Gradient,
    target: Target,
    compiled: Compiled | None = None,
    gated: bool = False,
    alone: bool = False,
) -> Cost:
    """Counts and seconds of one row of u and its row of the cotangent; ``alone`` as of ``gradient_work``.

    A kernel that runs before on each signal is there twice, one that runs after for the cotangent alone, or
    with gates for both.
    """
    known = compiled or Compiled()

    def of(kernel: Kernel, name: str, done: Work, label: str) -> KernelCost:
        size = (kernel.shared_bytes, kernel.warps, kernel.resident)
        made = kernel_cost(label, done, size, target, known.registers.get(label), known)
        return replace(made, name=name)

    def sides(kernels: Iterable[Kernel], of_sides: Sequence[str]) -> list[KernelCost]:
        return [
            of(
                kernel,
                f"{kernel.label} {side}",
                side_work(found, kernel, target, gated, side),
                kernel.label,
            )
            for side in of_sides
            for kernel in kernels
        ]

    own = [of(found.kernel, found.label, gradient_work(found, target, gated, alone), found.label)]
    if found.sums:
        own.append(of(found.sums, "sums", sums_work(found, target), "sums"))
    return Cost((*sides(found.before, SIDES), *own, *sides(found.after, SIDES if gated else SIDES[1:])))

"""Plans of signals in fp32, on the engine "simt": FFTs by threads alone, as accurate as fp32 is.

Matrix instructions round their operands to 11 bits; fp32 signals keep their 24 where each thread does the
DFTs of 2 to 16 points of a mixed-radix FFT by itself (templates/device/filter.cuh), between trips through
shared memory. All transforms are right-angle ones (design 1.3), circular lengths of any kind folded onto them
(planner/fold.py): one row to a transform, real numbers in and out.

Forward stages leave frequencies with their digits reversed (decimation in frequency). With F the transform of
v and Y its product with the filter's spectrum,

    Re(conj(w_n) F^-1 Y) = Re(w_n F conj(Y)) / N,      w_n = exp(i pi n / 2N),

and F is symmetric, so that the same stages, transposed and from the last to the first, take conj(Y) from that
order back to time: no stage is an inverse one, and nothing is permuted. The last stage of the way there, the
product and the first stage of the way back are one thread's registers.

A transform that the shared memory of a block holds reads its row once and writes it once. A longer one has
its outer stages around that: columns, rows, columns, with complex fp32 between them in a workspace. A
filter's spectrum is made by the same stages, so what was decided about them (planner/filter.py) stands once:
the kernels of the convolution take it from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fftgen.planner.factor import MIN_TRANSFORM
from fftgen.planner.filter import Filter, FilterKernel
from fftgen.planner.filter_design import (
    REGISTERS,
    REGISTERS_COLUMNS,
    plain_stages,
    prime_factors,
    radices,
    transposed,
)
from fftgen.planner.plan import FP32, SIMT, Kernel, Plan, Stage
from fftgen.planner.rules import CHUNK_LIMIT
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import Target

POINT = 8  # bytes of a complex number
THREADS = 128  # of a block at least: short transforms share one
HALF, REGISTERS_SUM = 512, 128  # threads of a block at most, and their registers, that keep a sum
TWO = 80  # registers of a thread that stores two results
PRIMES = (2, 3, 5, 7)
AROUND = 10  # instructions for a point in a stage beside those of its DFT: exchange, places, twiddles


def lengths(problem: Problem, most: int) -> tuple[int, ...]:
    """The ``most`` transform lengths worth trying for a problem, the one with the least to do first."""
    least = max(problem.length, MIN_TRANSFORM)
    power = 1 << (least - 1).bit_length()
    found = sorted(n for n in _smooth(min(power, MAX_LENGTH)) if n >= least)
    return tuple(sorted(found, key=lambda n: (_effort(n), n))[:most])


def _smooth(most: int) -> Iterator[int]:
    """All numbers up to ``most`` without other prime factors than PRIMES, sixteen dividing them."""
    found = [16]
    for prime in PRIMES:
        for n in list(found):
            while (n := n * prime) <= most:
                found.append(n)
    return iter(found)


def _effort(n: int) -> float:
    """About how many instructions of threads a transform takes: operations grow with a radix as those of its
    DFT, of which odd ones have no quick one."""
    return n * sum(AROUND + (1.5 * math.log2(r) if r % 2 == 0 else 1.5 * r) for r in radices_of(n))


def radices_of(n: int) -> tuple[int, ...]:
    """The radices of a transform's stages, where one block holds it."""
    return radices(prime_factors((n,)))


def _bare(problem: Problem, chip: Target, transform: int) -> Plan:
    """A plan before its stages are known."""
    return Plan(
        problem=problem,
        target=chip.name,
        transform=transform,
        packing="right-angle",
        memory_class="block",
        engine=SIMT,
        compute_format=FP32,
        fold=0 if problem.causal else problem.length,
        stages=(),
        kernels=(),
        tables=(),
        chunk_bytes=0,
    )


def plan(problem: Problem, chip: Target, transform: int) -> Plan | str:
    """The plan of a problem for a transform length, with the kernels of its filter; or why there is none."""
    bare = _bare(problem, chip, transform)
    found = plain_stages(bare, chip)
    if not found.kernels:
        return f"no rows and columns of {transform} points fit the shared memory of {chip.name}"
    made = replace(bare, filter=found, stages=_stages(found, transform))
    if found.whole:
        return replace(made, kernels=(_block(found.kernels[0], chip),))
    columns, rows = found.kernels
    there = _kernel("columns", 1, columns, chip)
    return replace(
        made,
        memory_class="device",
        kernels=(there, _kernel("rows", 0, rows, chip), replace(there, role="columns_inverse")),
        chunk_bytes=max(POINT * transform, min(chip.l2_bytes, CHUNK_LIMIT)),
    )


def twin(found: Plan, chip: Target) -> Plan:
    """The plan with two outputs: more registers where they are stored. Its kernels of filters stay, since
    they say what stages there are."""
    kernels = tuple(
        k
        if k.role in ("columns", "rows")
        else replace(k, resident=_resident(k.warps, k.shared_bytes, chip, TWO))
        for k in found.kernels
    )
    return replace(found, outputs=2, kernels=kernels)


def _resident(warps: int, shared: int, chip: Target, registers: int) -> int:
    return max(1, chip.resident_blocks(warps, shared, registers))


def gradient_plan(problem: Problem, chip: Target, transform: int) -> tuple[Plan, Kernel] | str:
    """What makes the gradient of a causal problem's filter: the plan of its transforms, with columns that run
    before on each signal and the kernels that take the sum to taps, and the kernel of the sum; or why there
    is none.

    A thread has a DFT of the last stage for itself, whose part of the sum stays in its registers, so that
    rows are no longer than a block of HALF threads takes; X of the same frequencies waits in shared memory.
    """
    bare = _bare(replace(problem, mode="causal"), chip, transform)
    found = next((f for f in _halving(bare, chip) if not f.kernels or _fits_half(f)), Filter())
    if not found.kernels:
        return f"no rows and columns of {transform} points fit the shared memory of {chip.name}"
    made = replace(bare, filter=found, stages=_stages(found, transform))
    kernel = _sum_kernel(shape_of(made, "gradient"), chip)
    if found.whole:
        return made, kernel
    columns = _kernel("columns", 1, shape_of(made, "columns"), chip)
    chunk = max(POINT * transform, min(chip.l2_bytes, CHUNK_LIMIT) // 2)
    return replace(made, memory_class="device", kernels=(columns,), chunk_bytes=chunk), kernel


def backward_plan(found: Plan, chip: Target) -> tuple[Plan, Kernel] | None:
    """The same for all gradients of a causal problem, from its plan: with the stages of that, whose spectra
    of filters it reads, and columns back for each signal; None where two of its rows do not fit a block."""
    if not reads_back(found, chip):
        return None
    finish = transposed(_bare(found.problem, chip, found.transform), chip)
    made = replace(found, filter=finish, chunk_bytes=found.chunk_bytes // 2)
    if _stages(finish, found.transform) != found.stages:
        return None
    kernels = tuple(k for k in twin(made, chip).kernels if k.role.startswith("columns"))
    return replace(made, kernels=kernels), _sum_kernel(shape_of(made, "backward"), chip)


def reads_back(found: Plan, chip: Target) -> bool:
    """Whether a kernel of all gradients reads the spectra of a plan."""
    rows = shape_of(found, "backward")
    fits = rows.length <= HALF * rows.stages[-1].radix
    return found.problem.causal and fits and _sum_kernel(rows, chip).shared_bytes <= chip.shared_block


def _sum_kernel(rows: FilterKernel, chip: Target) -> Kernel:
    """The kernel that sums over a batch, of transforms with these stages."""
    group = max(1, THREADS * rows.stages[-1].radix // rows.length)
    kernel = _kernel("gradient", 0, rows, chip, group)
    shared = 2 * kernel.shared_bytes
    resident = _resident(kernel.warps, shared, chip, REGISTERS_SUM)
    return replace(kernel, items=1, group=group, shared_bytes=shared, resident=resident)


def _halving(bare: Plan, chip: Target) -> Iterator[Filter]:
    """The kernels that take a sum to taps, for less and less shared memory: two rows fit a block."""
    room = chip.shared_block // 2
    while room > POINT * MIN_TRANSFORM:
        yield transposed(bare, replace(chip, shared_block=room))
        room //= 2


def _fits_half(found: Filter) -> bool:
    """A row's DFTs of the last stage are no more than HALF."""
    rows = next(k for k in found.kernels if k.role in ("finish", "finish_rows"))
    return rows.length <= HALF * rows.stages[-1].radix


def shape_of(plan: Plan, role: str) -> FilterKernel:
    """The stages of a kernel of signals: those of the one of filters, or of their gradients, beside it."""
    if plan.filter.whole:
        return plan.filter.kernels[0]
    end = "_columns" if role.startswith("columns") else "_rows"
    return next(k for k in plan.filter.kernels if k.role.endswith(end))


def _stages(found: Filter, transform: int) -> tuple[Stage, ...]:
    """The stages of the transform: those of columns, then those of rows."""
    stages, rest = [], transform
    for kernel in sorted(found.kernels, key=lambda k: not k.role.endswith("_columns")):
        place = "device" if kernel.role.endswith("_columns") else "block"
        for radix in (s.radix for s in kernel.stages):
            rest //= radix
            stages.append(Stage(radix, rest, place, 1.0, rest if rest > 1 else 0))
    return tuple(stages)


def _block(shape: FilterKernel, chip: Target) -> Kernel:
    """The kernel of whole transforms: several to a block where they are short."""
    largest = max(s.radix for s in shape.stages)
    return _kernel("convolve", 0, shape, chip, max(1, THREADS * largest // shape.length))


def _kernel(role: str, stage: int, shape: FilterKernel, chip: Target, items: int = 1) -> Kernel:
    """A kernel with the stages of a filter's, ``items`` transforms to a block, ``pitch`` numbers apart."""
    largest = max(s.radix for s in shape.stages)
    threads = -(-items * shape.length // largest // 32) * 32 if items > 1 else shape.threads
    pitch = shape.peaks_at // POINT  # filters have their peaks behind their numbers
    shared = POINT * pitch * items
    resident = _resident(threads // 32, shared, chip, REGISTERS_COLUMNS if stage else REGISTERS)
    return Kernel(role, stage, threads // 32, items, resident, pitch, 0, 0, -1, -1, shared, shape.columns)

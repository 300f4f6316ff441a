"""Device-class kernels of long transforms, one launch at a time, on sampled blocks.

Each launch starts from the exact state of the workspace (planner/interpret.py, float64, rounded to the
storage type once) and what its blocks write is compared with the exact state after it. So every kernel
of a transform of millions of points runs as it is, on a few of its blocks, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fftgen.accuracy import Accuracy, compare
from fftgen.dtypes import DType, decode, dtype, encode
from fftgen.errors import InternalError
from fftgen.launch import Call, Signal, argument_block
from fftgen.pipeline import Built
from fftgen.planner import arithmetic, interpret
from fftgen.planner.launch import Launch, launches
from fftgen.planner.order import stored_places
from fftgen.planner.plan import Plan
from fftgen.simulator import DeviceMemory, Report, parse, simulate
from fftgen.spectra import spectrum

SAMPLES = 3
SLOPPY = 0.02  # of a sum of squares that only chooses a power of two
POISON = np.uint16(0xFFFF)  # a NaN in both storage types

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Sample:
    """One launch: which blocks ran and how exact they were."""

    description: str
    accuracy: Accuracy
    reports: dict[str, Report]
    seconds: float


def _planes(z: npt.NDArray[Any], kind: DType) -> Bits:
    """Complex (items, 1, N) as the workspace holds it: (items, 2, N) bit patterns."""
    return np.ascontiguousarray(encode(np.stack([z.real, z.imag], axis=-2).reshape(-1, 2, z.shape[-1]), kind))


def _sizes(plan: Plan, gated: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """What is known of rows (1 or 2, 1, L) of a transform before its columns, or after them
    (planner/launch.py)."""
    found = [np.abs(gated).max(axis=(1, 2)).astype(np.float32).view(np.uint32)]
    if plan.strip_peaks:
        found.append(_strip_peaks(plan, gated).astype(np.float32).view(np.uint32))
    if len(gated) == 2:
        found.append(np.square(gated).sum(axis=(1, 2)).view(np.uint32))
    return np.concatenate(found)


def _strip_peaks(plan: Plan, gated: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest absolute value of every strip of columns of a row (1, 1, L)."""
    row = np.zeros(plan.transform)
    row[: gated.size] = np.abs(gated).ravel()
    found: npt.NDArray[np.float64] = row.reshape(plan.stages[0].radix, plan.strip_peaks, -1).max(axis=(0, 2))
    return found


def _power(peaks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The power of two that numbers up to a peak are divided by."""
    found: npt.NDArray[np.float64] = 2.0 ** np.floor(np.log2(np.where(peaks > 0, peaks, 1.0)))
    return found


def _sample(grid: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """The first, the last and random blocks."""
    inner = rng.choice(grid, size=min(grid, SAMPLES - 2), replace=False)
    return [(b, 0, 0) for b in sorted({0, grid - 1, *(int(i) for i in inner)})]


def check_launches(
    built: Built, ptx: str, seed: int, progress: Callable[[str], None] | None = None
) -> Iterator[Sample]:
    """Run every launch of one transform on sampled blocks; gates and skip term included."""
    plan, kind = built.plan, dtype(built.plan.problem.dtype)
    rng = np.random.default_rng(seed)
    rows, length = plan.rows_per_item, plan.problem.length

    def stored(*shape: int) -> Bits:
        return encode(rng.standard_normal(shape), kind)

    signals = ("u", "in_gate", "out_gate", *(("twin_gate",) if plan.outputs == 2 else ()))
    bits = {name: stored(rows, 1, length) for name in signals}
    wide = {name: decode(b, kind).astype(np.float64) for name, b in bits.items()}
    taps = (rng.standard_normal((1, length)) * np.exp(-8 * np.arange(length) / length)).astype(np.float32)
    skip = rng.standard_normal(1).astype(np.float32)
    made = spectrum(plan, torch.from_numpy(taps), skip=torch.from_numpy(skip))
    gated = wide["u"] * wide["in_gate"]
    largest = np.abs(gated).max(axis=(1, 2))
    scaled = plan.scaled  # rows enter divided by the power of two of their peak
    powers = _power(largest) if scaled else np.ones(rows)
    if scaled and rows == 2:  # and brought to like norms
        powers /= arithmetic.balance(gated / powers[:, None, None])[:, 0, 0]
    states = interpret.workspace_states(plan, gated / powers[:, None, None], taps, skip=skip)
    held = dtype(plan.operand)  # what the workspace holds
    exact = {
        name: interpret.convolve(
            plan, wide["u"], taps, in_gate=wide["in_gate"], out_gate=wide[gate], skip=skip, rounded=False
        )
        for name, gate in (("y", "out_gate"), ("twin", "twin_gate"))
        if gate in wide
    }
    module = parse(ptx, source=built.source.text)
    constant = {
        **bits,
        "spectrum": made.planes.view(torch.int16).numpy(),
        "scale": made.scale.numpy(),
        "tables": np.frombuffer(built.tables, np.uint8).copy(),
    }
    sizes = _sizes(plan, gated)
    if plan.strip_peaks:  # columns leave each at a power of its own
        ratio = powers[0] / _power(_strip_peaks(plan, gated))
        columns = states["columns", 1]
        strips = columns.reshape(plan.stages[0].radix, plan.strip_peaks, -1) * ratio[:, None]
        states["columns", 1] = strips.reshape(columns.shape)
    before: Bits | None = None
    for launch in launches(plan, rows, 1, length):
        role = (launch.kernel.role, launch.kernel.stage)
        blocks = _sample(launch.grid, rng)
        if role == ("peaks", 0):  # all of them: every block adds to one number
            blocks = [(b, 0, 0) for b in range(launch.grid)]
        description = (
            f"{launch.entry.removeprefix(plan.name + '_')}: blocks {[b[0] for b in blocks]} of {launch.grid}"
        )
        if progress is not None:
            progress(description)
        started = time.perf_counter()
        memory = DeviceMemory()
        at = {name: memory.bind(name, array) for name, array in constant.items()}
        outputs = {name: np.full((rows, 1, length), POISON) for name in exact}
        workspace = np.full((1, 2, plan.transform), POISON) if before is None else before.copy()
        for name, y in outputs.items():
            at[name] = memory.bind(name, y, writable=True, initialized=False)
        at["workspace"] = memory.bind("workspace", workspace, writable=True, initialized=before is not None)
        finds_strips = role == ("columns", 1) and plan.strip_peaks > 0
        found = np.zeros_like(sizes) if role == ("peaks", 0) or finds_strips else sizes.copy()
        at["peaks"] = memory.bind("peaks", found, writable=True)
        report = simulate(
            module,
            launch.entry,
            grid=(launch.grid, 1, 1),
            block=(launch.block, 1, 1),
            params=[_arguments(built, launch, at, rows, length)],
            shared_bytes=launch.shared_bytes,
            memory=memory,
            blocks=blocks,
            seed=seed,
        )
        if role == ("peaks", 0):
            if not np.array_equal(found[:rows], sizes[:rows]):
                raise InternalError(f"{description}: peaks {found[:rows]} instead of {sizes[:rows]}")
            squares, right = found[rows:].view(np.float64), sizes[rows:].view(np.float64)
            if not (np.abs(squares - right) <= SLOPPY * right).all():
                raise InternalError(f"{description}: sums of squares {squares} instead of {right}")
            continue
        if finds_strips:
            seen = np.append(False, found[1:] != 0)
            if not (seen.any() and (found[seen] == sizes[seen]).all() and found[0] == found[1:].max()):
                raise InternalError(f"{description}: peaks of strips {found[seen]} instead of {sizes[seen]}")
        to_output = role == ("columns_inverse", 1)
        if to_output:
            after, target = (np.stack([by[name] for name in exact]) for by in (outputs, exact))
            written = after != POISON
        else:
            after = workspace
            written = after != (np.full_like(after, POISON) if before is None else before)
            state = states[role]
            if plan.engine == "mma" and role == ("columns", 1):
                state = state[..., stored_places(plan)]
            target = _unpacked(state)
            before = _planes(state, held)
        share = np.count_nonzero(written) / written.size
        if share < 0.9 * (len(blocks) - 1) / launch.grid:
            raise InternalError(f"{description}: only {share:.2%} of the output was written")
        accuracy = compare(
            decode(after[written], kind if to_output else held).astype(np.float64)[None],
            target[written][None],
            kind.name if to_output else held.name,
            plan.order,
            plan.compute_format,
        )
        yield Sample(description, accuracy, {launch.entry: report}, time.perf_counter() - started)


def _unpacked(z: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.stack([z.real, z.imag], axis=-2).reshape(-1, 2, z.shape[-1])


def _arguments(built: Built, launch: Launch, at: dict[str, int], rows: int, length: int) -> bytes:
    names = ("u", "y", "in_gate", "out_gate", "twin_gate", "twin")
    signal = {name: Signal(at[name], length, length) for name in names if name in at}
    call = Call(
        batch=rows,
        channels=1,
        length=length,
        spectrum=at["spectrum"],
        scale=at["scale"],
        tables=at["tables"],
        workspace=at["workspace"],
        peaks=at["peaks"],
        vector=length % 8 == 0,
        results=length,
        **signal,
    )
    return argument_block(built.plan, call, launch)

"""The launches of a gradient's kernels, and the workers that share its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fftgen.planner import spread
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_section_work import rows_at_once
from fftgen.planner.launch import (
    Launch,
    chunk_items,
    launch_of,
    peaks_words,
    workspace_elements,
)
from fftgen.planner.plan import TILE, Kernel
from fftgen.planner.whole import Clusters
from fftgen.targets import Target
from fftgen.targets import target as find_target

LEAST_SHARE = 4  # transforms of a worker: each writes 8 N bytes where a transform reads 4 N
OWN = 1.5  # transforms that a worker's own sum is worth: made, written, and read once more
WAVES = 3  # of workers at most, where a channel's rows are shared


@dataclass(frozen=True)
class GradientLaunch:
    """One launch. ``side``: 0 or 1, the signal of a kernel before or after; -1: the kernel of both."""

    launch: Launch
    side: int
    parts: int
    workers: int


def least_share(found: Gradient) -> int:
    """Transforms that are worth a worker."""
    return LEAST_SHARE if found.blocks else max(LEAST_SHARE, found.kernel.group)


def parts(found: Gradient, batch: int, channels: int, chip: Target | None = None) -> int:
    """Workers that share a channel's batch rows, if each has rows enough: as many as take the shortest time,
    in waves of as many workers as run at a time, the last one partly filled.

    ``chip``: the GPU that is there, here and below; None: the one that plans are made for.
    """
    kernel = found.kernel
    there = chip or find_target(found.plan.target)
    full = there.multiprocessors * kernel.resident * kernel.items
    if found.plan.spread:  # a worker is a cluster
        full = spread.many(found.plan, there, signals=2).total
    at_once = -(-channels // found.plan.abreast)
    if found.plan.chunk_bytes:
        at_once = max(1, min(channels, chunk_items(found.plan, batch * channels) // batch))
    workers, most = at_once * found.rows, max(1, batch // least_share(found))
    filling = {max(1, min(wave * full // workers, most)) for wave in range(1, WAVES + 1)}

    def time(shared: int) -> float:
        return -(-workers * shared // full) * (-(-batch // shared) + OWN)

    return min(sorted(filling | {1}), key=time)


def under_way(found: Gradient, rows: int, chip: Target | None = None) -> int:
    """Of so many rows in sections, how many go through the workspace together."""
    return min(rows, rows_at_once(found, chip or find_target(found.plan.target)))


def sharing(
    found: Gradient, batch: int, channels: int, chip: Target | None = None, alone: bool = False
) -> Clusters:
    """The clusters that share sections of rows, each of which has a part of a channel's at a time.

    ``alone``: blocks by themselves, where others are refused; here and below.
    """
    jobs = channels * parts(found, batch, channels, chip)
    return spread.alone(found.plan, jobs, chip) if alone else spread.clusters(found.plan, jobs, chip, 2)


def stretch(found: Gradient, batch: int, channels: int, chip: Target) -> float:
    """Times longer than rows whose sections clusters share would take if all blocks had as many of them."""
    shared = parts(found, batch, channels, chip)
    there, blocks = sharing(found, batch, channels, chip), chip.multiprocessors * found.kernel.resident
    turns = -(-channels * shared // there.total) * -(-batch // shared)
    return turns * -(-found.plan.sections // there.size) * blocks / (batch * channels * found.plan.sections)


def space(
    found: Gradient, batch: int, channels: int, chip: Target | None = None, alone: bool = False
) -> tuple[int, int]:
    """Of each signal's workspace elements of its type, and 32-bit words that start as zeros."""
    plan = found.plan
    if plan.spread:
        there = sharing(found, batch, channels, chip, alone)
        return 2 * plan.points * there.total, spread.peaks_words(plan, there)
    if found.sums:
        rows = under_way(found, batch * channels, chip)
        return 2 * plan.points * rows, plan.sections * rows
    return workspace_elements(plan, batch, channels), peaks_words(plan, batch, channels)


def spectra_bytes(found: Gradient, planned: Iterable[GradientLaunch]) -> int:
    """Bytes that workers keep of the first signal's spectra in device memory, for a call's launches."""
    if found.spectra_at >= 0 or found.together or found.plan.sections > 1:
        return 0
    most = max(launch.workers for launch in planned)
    group = 1 if found.blocks else found.kernel.group
    return most * group * 4 * found.plan.row_length


def launches(
    found: Gradient,
    batch: int,
    channels: int,
    length: int,
    chip: Target | None = None,
    alone: bool = False,
) -> tuple[GradientLaunch, ...]:
    """Every launch of one call on ``(batch, channels, length)``, in order, chunk by chunk.

    A chunk may end inside a channel: the next one adds to the same parts.
    """
    if found.plan.spread:
        shared = parts(found, batch, channels, chip)
        size, count = sharing(found, batch, channels, chip, alone)
        kernel = found.kernel
        threads, jobs = 32 * kernel.warps, channels * shared
        both = Launch(kernel, found.name, size * count, threads, kernel.shared_bytes, 0, jobs, 1, size)
        return (GradientLaunch(both, -1, shared, 0),)
    if found.sums:
        return _in_sections(found, found.sums, batch, channels, chip or find_target(found.plan.target))
    total = batch * -(-channels // found.plan.abreast)
    chunk = chunk_items(found.plan, total)
    shared = parts(found, batch, channels, chip)
    made = []
    for first in range(0, total, chunk):
        items = min(chunk, total - first)
        for side in (0, 1) if found.plan.device_stages else ():
            for before in found.before:
                one = launch_of(found.plan, before, first, items, length, chip)
                made.append(GradientLaunch(one, side, shared, 0))
        at_once = (first + items - 1) // batch - first // batch + 1
        workers = at_once * found.rows * shared
        kernel = found.kernel
        grid = -(-workers // kernel.items)
        both = Launch(kernel, found.name, grid, 32 * kernel.warps, kernel.shared_bytes, first, items, 1)
        made.append(GradientLaunch(both, -1, shared, workers))
        for side in (0, 1):
            for after in found.after:
                one = launch_of(found.plan, after, first, items, length, chip)
                made.append(GradientLaunch(one, side, shared, 0))
    return tuple(made)


def _in_sections(
    found: Gradient, sums: Kernel, batch: int, channels: int, chip: Target
) -> tuple[GradientLaunch, ...]:
    """Both signals, then their sums, by a block to some tiles of a channel."""
    kernel, total = found.kernel, batch * channels
    chunk = under_way(found, total, chip)
    at_a_time = max(1, chip.multiprocessors * kernel.resident // 2)
    tiles, made = found.plan.transform // TILE**2, []
    for first in range(0, total, chunk):
        items = min(chunk, total - first)
        run = -(-items // at_a_time)
        threads, shared = 32 * kernel.warps, kernel.shared_bytes
        both = Launch(kernel, found.name, 2 * -(-items // run), threads, shared, first, items, run)
        made.append(GradientLaunch(both, -1, 1, 0))
        of_each = min(batch, items)  # rows of a channel
        ways = min(sums.warps, 1 << of_each.bit_length() - 1)
        channels_there = (first + items - 1) // batch - first // batch + 1
        grid = channels_there * tiles * ways // sums.warps
        summed = Launch(sums, found.sums_name, grid, 32 * sums.warps, sums.shared_bytes, first, items, 1)
        made.append(GradientLaunch(summed, -1, 1, ways))
    return tuple(made)

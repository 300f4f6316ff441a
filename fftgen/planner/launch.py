"""Plan + shape of a call -> the launches that carry it out: grids, chunks and runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fftgen.errors import InputError
from fftgen.planner import spread
from fftgen.planner.plan import SIMT, TILE, Kernel, Plan
from fftgen.planner.whole import Clusters, clusters, share
from fftgen.targets import Target, target

MAX_RUN = 16  # pieces that one worker takes in a row: longer ones would leave the end of a launch to few
START = 0.35  # of a piece: what a block does before the first one
# Rows of a call. Kernels count them with 32 bits, and the last worker a run of pieces beyond the last one.
MAX_ROWS = 2**31 - 4096


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``grid`` blocks of ``block`` threads over transforms ``first .. first + items``.

    ``cluster``: blocks of a cluster. Of channels abreast an item has the transforms of both.
    """

    kernel: Kernel
    entry: str
    grid: int
    block: int
    shared_bytes: int
    first: int
    items: int
    run: int
    cluster: int = 1


def check_rows(batch: int, channels: int) -> None:
    """Raises InputError for a call of more rows than kernels count."""
    if batch * channels > MAX_ROWS:
        raise InputError(f"{batch} x {channels} rows exceed {MAX_ROWS}: split the batch")


def items_per_channel(plan: Plan, batch: int) -> int:
    """Transforms of one channel: a batch row each, or a pair of rows (an odd last one alone)."""
    return -(-batch // plan.rows_per_item)


def chunk_items(plan: Plan, items: int) -> int:
    """Transforms that go through the workspace together."""
    if not plan.chunk_bytes:
        return items
    return min(items, max(1, plan.chunk_bytes // (plan.point_bytes * plan.transform)))


def together(plan: Plan, batch: int, channels: int, chip: Target | None = None) -> Clusters | None:
    """The clusters of a call of aligned rows that one launch had better carry out; None: of others. Of rows
    whose sections are spread (``Plan.spread``) there are always some, and rows may start anywhere.

    ``chip``: the GPU that is there, here and below; None: the one that plans are made for.
    """
    items = items_per_channel(plan, batch) * channels
    return spread.clusters(plan, items, chip) if plan.spread else clusters(plan, items, chip)


def workspace_elements(
    plan: Plan, batch: int, channels: int, whole: Clusters | None = None, chip: Target | None = None
) -> int:
    """Elements of the signals' type that a call needs as workspace; bounded whatever the batch: by
    ``plan.chunk_bytes``, or where one launch carries it out by a place for every cluster."""
    if plan.spread:
        return 2 * plan.points * _spread(plan, batch, channels, whole, chip).total
    if plan.sections > 1:
        grid = launch_of(plan, plan.body, 0, items_per_channel(plan, batch) * channels, 0, chip).grid
        return 2 * plan.transform * (plan.sections - 1) * grid
    if not plan.chunk_bytes or (whole and plan.whole and share(plan, plan.whole) == 1):
        return 0
    places = whole.total if whole else chunk_items(plan, items_per_channel(plan, batch) * channels)
    return 2 * plan.transform * places


def _spread(plan: Plan, batch: int, channels: int, whole: Clusters | None, chip: Target | None) -> Clusters:
    """The clusters of rows whose sections are spread: those of ``together``, or blocks by themselves."""
    return whole or spread.alone(plan, items_per_channel(plan, batch) * channels, chip)


def size_words(plan: Plan) -> int:
    """32-bit words of the sizes of a transform's rows, which are found before its columns or by them.

    A row's peak, or for a pair two peaks and two sums of squares in double: PairSize in
    templates/device/scaled_peaks.cuh.
    """
    if not plan.scaled or not plan.device_stages:
        return 0
    return 6 if plan.rows_per_item == 2 else 1


def peaks_words(
    plan: Plan, batch: int, channels: int, whole: Clusters | None = None, chip: Target | None = None
) -> int:
    """32-bit words, zero before a call: sizes of all its rows, and behind them what clusters draw from.

    Behind that the peaks of strips (``Plan.strip_peaks``) of all transforms that are under way.
    """
    items = items_per_channel(plan, batch) * channels
    if plan.spread:
        return spread.peaks_words(plan, _spread(plan, batch, channels, whole, chip))
    tickets, under_way = (1 + whole.total, whole.total) if whole else (0, chunk_items(plan, items))
    return size_words(plan) * items + tickets + under_way * plan.strip_peaks


def _pieces(plan: Plan, kernel: Kernel, items: int) -> int:
    """Pieces of work: what one worker (block or warp) does at a time."""
    if kernel.role == "convolve":
        return items
    if kernel.role == "rows":
        return items * (plan.transform // plan.row_length)
    if plan.engine == SIMT:  # a block takes a strip of columns
        return items * (plan.row_length // kernel.columns)
    if plan.engine == "mma":  # a warp takes a strip of columns
        return items * (plan.stages[kernel.stage - 1].rest // (8 * kernel.columns))
    return items * (plan.transform // (plan.stages[kernel.stage - 1].radix * TILE))


@lru_cache(maxsize=4096)
def run_of(pieces: int, slots: int) -> int:
    """Pieces that each of a launch's blocks takes in a row where ``slots`` blocks run at a time.

    A few full waves: blocks that start all at once and end all at once, and load their tables seldom.
    """

    def time(run: int) -> float:
        blocks = -(-pieces // run)
        return -(-blocks // slots) * (run + START)

    return min(range(1, MAX_RUN + 1), key=time)


def launches(
    plan: Plan,
    batch: int,
    channels: int,
    length: int,
    whole: Clusters | None = None,
    chip: Target | None = None,
) -> tuple[Launch, ...]:
    """Every launch of one call on ``(batch, channels, length)``, in order.

    Transforms count channel by channel, so that neighbours share a filter's spectrum. The device class
    takes them in chunks that fit the workspace; each chunk runs through all kernels before the next. With
    ``whole`` clusters take all of them in one launch (planner/whole.py), whose rows must be aligned.
    """
    total = items_per_channel(plan, batch) * -(-channels // plan.abreast)
    if plan.spread:
        size, count = _spread(plan, batch, channels, whole, chip)
        body = plan.body
        shape = size * count, 32 * body.warps, body.shared_bytes
        return (Launch(body, plan.entry(body), *shape, 0, total, 1, size),)
    if whole:
        kernel = plan.whole
        assert kernel is not None
        shape = whole.size * whole.total, 32 * kernel.warps, kernel.shared_bytes
        return (Launch(kernel, plan.entry(kernel), *shape, 0, total, 1, whole.size),)
    chunk = chunk_items(plan, total)
    found = []
    for first in range(0, total, chunk):
        items = min(chunk, total - first)
        found += [launch_of(plan, kernel, first, items, length, chip) for kernel in plan.kernels]
    return tuple(found)


def launch_of(
    plan: Plan, kernel: Kernel, first: int, items: int, length: int, chip: Target | None = None
) -> Launch:
    """The launch of one of a plan's kernels on transforms ``first .. first + items``."""
    run = 1
    if kernel.role == "peaks":
        grid = items * plan.rows_per_item * -(-length // kernel.plane)
    else:
        pieces = _pieces(plan, kernel, items)
        workers = kernel.items  # of a block
        slots = (chip or target(plan.target)).multiprocessors * kernel.resident
        # As many blocks as run at a time: each has a place for its sections, or its next strips on their way.
        if plan.sections > 1 or (kernel.role == "columns" and kernel.brought):
            run = -(-pieces // (workers * slots))
        elif plan.engine != SIMT:  # blocks there have nothing to do before their first piece
            run = run_of(-(-pieces // workers), slots)
        grid = -(-pieces // (workers * run))
    return Launch(kernel, plan.entry(kernel), grid, 32 * kernel.warps, kernel.shared_bytes, first, items, run)

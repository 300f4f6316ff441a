"""What was decided about the filter's spectrum: the part of a plan that its filter kernels are rendered from.

A spectrum is a mixed-radix FFT in fp32 (templates/device/filter.cuh), decimation in frequency in place, so
that its results stand with their digits reversed; the kernels that end it read them from there in the order
that the convolution wants. Radices follow the plan's own factors, so that both orders are sums of digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Digits = tuple[tuple[int, int], ...]  # (extent, stride)


@dataclass(frozen=True)
class FilterStage:
    """DFTs of ``radix`` points, ``rest`` apart, then twiddles from ``table`` (bytes; -1: none follow).

    ``apart``: the points' distance in shared memory, gaps included; 0 where the gaps make it uneven.
    """

    radix: int
    rest: int
    table: int = -1
    apart: int = 0


@dataclass(frozen=True)
class FilterKernel:
    """One entry point of the filter's transform.

    role "filter": a channel's whole spectrum in one block; "filter_columns": transforms of ``length`` points
    over ``columns`` neighbouring columns, from the taps to the workspace; "filter_rows": one of the rows that
    these leave, scaled by a power of two of its own, rounded and stored, and the channel's peak;
    "filter_level": rows whose power is not that of the channel are brought to it, ``columns`` of them in a
    block. The same transposed (planner/finish.py): "finish", "finish_rows", "finish_columns", "finish_wrap".
    Shared memory holds complex fp32, ``gap`` places free after every ``run`` (0: none), then two lines of
    peaks at ``peaks_at`` (bytes). ``resident``: blocks per multiprocessor that registers leave room for.
    """

    role: str
    threads: int
    resident: int
    length: int = 0
    columns: int = 1
    stages: tuple[FilterStage, ...] = ()
    run: int = 1
    gap: int = 0
    peaks_at: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class FilterTable:
    """Complex fp32 constants at ``offset`` bytes of the plan's table block.

    kind "twiddle": ``rows`` x ``count``, the twiddles after a stage (``radix``) of a transform of ``length``
    points; "low"/"high": powers of the root of unity of ``length``, ``count`` of them ``step`` apart.
    """

    kind: str
    length: int
    radix: int
    rows: int
    count: int
    step: int
    weighted: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return 8 * self.rows * self.count


@dataclass(frozen=True)
class Pieces:
    """Where a stored spectrum, or a sum of spectra, has the numbers of a transform, as digits, fastest first.

    A piece is 16 bytes of each plane: eight frequencies of a spectrum, four of a sum. A row is the whole
    transform where a block holds it. ``at``: from the number of a piece in its row to where its real parts
    begin, in stored numbers from the first of the row; its imaginary parts begin ``plane`` numbers later.
    ``places``: from the same number to the place in the row where the transform has the first of its
    frequencies; ``offsets``: those of all from there. ``rows``: from the number of a row to where its first
    number is stored; ``row_places``: to its place among those that columns are made of.
    """

    at: Digits = ()
    places: Digits = ()
    offsets: tuple[int, ...] = ()
    plane: int = 0
    rows: Digits = ()
    row_places: Digits = ()

    @staticmethod
    def of(raw: dict[str, Any]) -> Pieces:
        """From what ``dataclasses.asdict`` made, after a trip through JSON."""
        digits = {name: _digits(raw[name]) for name in ("at", "places", "rows", "row_places")}
        return Pieces(**digits, offsets=tuple(raw["offsets"]), plane=raw["plane"])


NO_PIECES = Pieces()


def _digits(found: list[list[int]]) -> Digits:
    return tuple((extent, stride) for extent, stride in found)


@dataclass(frozen=True)
class Filter:
    """The filter kernels of a plan, in the order of their launches, and what they share.

    Where the transform takes columns and rows: ``rest``, the distance of a column's points; ``reversal``,
    digits from a place in a column to its frequency; the two-level table of the twiddles between them, with
    ``split`` the length of its low digit; ``chunk_bytes`` bounds the workspace.
    """

    kernels: tuple[FilterKernel, ...] = ()
    tables: tuple[FilterTable, ...] = ()
    pieces: Pieces = NO_PIECES
    rest: int = 0
    reversal: Digits = ()
    split: int = 0
    low_at: int = 0
    high_at: int = 0
    chunk_bytes: int = 0

    @property
    def whole(self) -> bool:
        """One block holds a channel's transform."""
        return len(self.kernels) == 1

    @staticmethod
    def of(raw: dict[str, Any]) -> Filter:
        """From what ``dataclasses.asdict`` made, after a trip through JSON."""
        kernels = tuple(
            FilterKernel(**{**k, "stages": tuple(FilterStage(**s) for s in k["stages"])})
            for k in raw["kernels"]
        )
        return Filter(
            **{
                **raw,
                "kernels": kernels,
                "tables": tuple(FilterTable(**t) for t in raw["tables"]),
                "pieces": Pieces.of(raw["pieces"]),
                "reversal": _digits(raw["reversal"]),
            }
        )


@dataclass(frozen=True)
class FilterLaunch:
    """One launch over ``channels`` channels from ``first`` on."""

    kernel: FilterKernel
    grid: int
    first: int


def chunk_channels(found: Filter, transform: int, channels: int) -> int:
    """Channels that go through the workspace together: all of them where there is none."""
    return channels if found.whole else min(channels, max(1, found.chunk_bytes // (8 * transform)))


def filter_launches(found: Filter, transform: int, channels: int) -> tuple[FilterLaunch, ...]:
    """The launches that make the spectra of ``channels`` filters, in order: chunk by chunk."""
    chunk = chunk_channels(found, transform, channels)
    made = []
    for first in range(0, channels, chunk):
        count = min(chunk, channels - first)
        made += [FilterLaunch(k, count * (transform // (k.length * k.columns)), first) for k in found.kernels]
    return tuple(made)

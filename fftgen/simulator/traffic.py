"""What memory requests cost: 32-byte sectors of device memory, wavefronts of shared memory.

A request is one warp-level instruction with at least one active lane. Shared memory has 32 banks of 4
bytes: a wavefront serves one word from each bank, to any number of lanes. Accesses of 8 (16) bytes a lane
are served by half (quarter) warps.
"""

from __future__ import annotations

import numpy as np

from fftgen.simulator.machine import WARP, Group
from fftgen.simulator.types import Array

_MEMO_LIMIT = 4096


class Patterns:
    """Costs of address patterns. Loops repeat patterns, so that they are remembered."""

    def __init__(self) -> None:
        self._memo: dict[object, tuple[int, int]] = {}

    def sectors(self, offsets: Array, size: int, group: Group) -> tuple[int, int]:
        """(sectors, sectors if coalesced) of accesses of ``size`` bytes at byte ``offsets``."""
        first = int(offsets[0])
        relative = offsets - first
        key = ("g", size, first & 31, relative.tobytes(), _shape_key(group))
        found = self._memo.get(key)
        if found is None:
            rows = _rows(relative + (first & 31) + (1 << 40), group)
            rows.sort(axis=1)
            distinct = _distinct(rows)
            sectors = int(np.count_nonzero(_fresh(rows >> 5) & (rows >= 0)))
            found = sectors, int((-(-distinct * size // 32)).sum())
            self._keep(key, found)
        return found

    def wavefronts(self, offsets: Array, size: int, group: Group, part: int = 0) -> tuple[int, int]:
        """(wavefronts, least possible) of accesses of ``size`` bytes at shared byte ``offsets``.

        ``part``, if any, is the size of parts of the memory with banks of their own (a multiple of 128).
        """
        unit = part or 128
        first = int(offsets[0]) // unit * unit
        relative = offsets - first
        key = ("s", size, part, relative.tobytes(), _shape_key(group))
        found = self._memo.get(key)
        if found is None:
            rows = _rows(relative + (unit << 20), group)
            least = _least(rows, size)
            if size > 4:
                words = size // 4
                phases = np.maximum(rows, -1).reshape(-1, WARP // words)
                expanded = (phases[:, :, None] >> 2) + np.arange(words)
                expanded[phases < 0] = -1
                found = bank_passes(expanded.reshape(-1, WARP), part // 4), least
            else:
                found = bank_passes(rows >> 2, part // 4), least
            self._keep(key, found)
        return found

    def rows(self, offsets: Array, row_bytes: int, per_phase: int) -> tuple[int, int]:
        """The same for matrix instructions: ``offsets`` (requests, rows) of rows of ``row_bytes`` bytes each.

        ``per_phase`` consecutive rows make a phase of up to 128 bytes.
        """
        first = int(offsets.flat[0]) & ~127
        relative = offsets - first
        key = ("m", row_bytes, per_phase, offsets.shape, relative.tobytes())
        found = self._memo.get(key)
        if found is None:
            words = max(row_bytes // 4, 1)
            expanded = ((relative + (1 << 40))[:, :, None] >> 2) + np.arange(words)
            passes = bank_passes(expanded.reshape(-1, per_phase * words))
            flat = np.sort(expanded.reshape(len(offsets), -1), axis=1)
            found = passes, int((-(-_distinct(flat) // 32)).sum())
            self._keep(key, found)
        return found

    def spans(self, offsets: Array, row_bytes: int) -> tuple[int, int]:
        """(sectors, least) of matrix instructions on device memory: rows of ``row_bytes`` at (requests,
        rows).
        """
        starts = offsets[:, :, None] + np.arange(0, row_bytes, min(row_bytes, 4))
        flat = np.sort(starts.reshape(len(offsets), -1), axis=1)
        distinct = _distinct(flat) * min(row_bytes, 4)
        return int(np.count_nonzero(_fresh(flat >> 5))), int((-(-distinct // 32)).sum())

    def _keep(self, key: object, value: tuple[int, int]) -> None:
        if len(self._memo) >= _MEMO_LIMIT:
            self._memo.clear()
        self._memo[key] = value


def _shape_key(group: Group) -> object:
    return None if group.idx is None else (group.idx - (group.idx[0] & ~31)).tobytes()


def _rows(offsets: Array, group: Group) -> Array:
    """(warps, 32) offsets; -1 where a lane takes no part."""
    if group.whole:
        whole: Array = offsets.reshape(-1, WARP).copy()
        return whole
    idx = group.threads
    rows = np.full((len(group.warps), WARP), -1, np.int64)
    rank = np.cumsum(np.diff(idx >> 5, prepend=idx[0] >> 5) != 0)
    rows[rank, idx & 31] = offsets
    return rows


def _fresh(ordered: Array) -> Array:
    """Marks the first of equal neighbours in sorted rows."""
    marks = np.empty(ordered.shape, np.bool_)
    marks[:, :1] = True
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=marks[:, 1:])
    return marks


def _distinct(ordered: Array) -> Array:
    """How many different non-negative values each sorted row has."""
    counts: Array = np.count_nonzero(_fresh(ordered) & (ordered >= 0), axis=1)
    return counts


def _least(rows: Array, size: int) -> int:
    """Wavefronts if every bank served a word each time: distinct words / 32 per request."""
    if size < 4:
        words = _distinct(np.sort(rows >> 2, axis=1))
    else:
        words = _distinct(np.sort(rows, axis=1)) * (size // 4)
    return int((-(-words // 32)).sum())


def bank_passes(words: Array, part: int = 0) -> int:
    """Wavefronts of phases (rows) that touch these words; negative ones take no part.

    Every ``part`` words, if any, have banks of their own.
    """
    ordered = np.sort(words, axis=1)
    keep = _fresh(ordered) & (ordered >= 0)
    phase, _ = np.nonzero(keep)
    touched = ordered[keep]
    banks, sets = touched & 31, 1
    if part:
        owners = touched // part - touched.min() // part
        sets = int(owners.max()) + 1
        banks = banks + 32 * owners
    counts = np.bincount(phase * 32 * sets + banks, minlength=32 * sets * len(words))
    return int(counts.reshape(-1, 32 * sets).max(axis=1).sum())

"""What the device's memories and matrix units give: rates that the cost model takes from documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fftgen.bench.backend import Backend
from fftgen.bench.measure import digits, interleave

# Bytes that one call touches, of the L2's size: what stays in it, what may, and what cannot.
SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
INSIDE = 0.5  # of the L2: so much stays there from one call to the next
MATRIX = 8192  # rows and columns of the matrices that are multiplied


def device_rates(backend: Backend, seconds: float = 0.1) -> dict[str, Any]:
    """Bytes per second by the bytes that a call touches, again and again; products of matrices per second.

    ``copy`` counts what is read and what is written; ``write`` fills, ``read`` adds up. A call takes some
    microseconds beside its bytes: ``l2_bytes_per_s`` is the slope from the least of them to INSIDE of the L2,
    which has no share in that. Matrices are of random fp16 numbers, their sums in fp32.
    """
    memory: list[dict[str, Any]] = []
    for share in SHARES:
        half = max(512, int(share * backend.l2_bytes / 2) // 512 * 512)
        took = _timed(backend, _touching(half, backend.device), seconds)
        memory.append({"bytes": 2 * half, "seconds": {name: digits(s) for name, s in took.items()}})
    inside = [m for m, share in zip(memory, SHARES, strict=True) if share <= INSIDE]
    slopes = {name: _slope(inside[0], inside[-1], name) for name in memory[0]["seconds"]}
    size = MATRIX if backend.kernels else 64
    x, y = (torch.randn(size, size, device=backend.device).to(torch.float16) for _ in range(2))
    product = _timed(backend, {"product": lambda: x @ y}, seconds)["product"]
    return {
        "l2_bytes": backend.l2_bytes,
        "memory": memory,
        "l2_bytes_per_s": slopes,
        "matrix_flops": digits(2 * size**3 / product),
    }


def _touching(half: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls that touch 2 ``half`` bytes each."""
    a, b, x = (torch.randn(count // 4, device=device) for count in (half, half, 2 * half))
    return {"copy": lambda: b.copy_(a), "write": lambda: x.fill_(1.0), "read": x.sum}


def _timed(backend: Backend, calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Medians."""
    timings, broken = interleave(backend.timer, {name: [call] for name, call in calls.items()}, seconds)
    for error in broken.values():
        raise error
    return {name: timing.median for name, timing in timings.items()}


def _slope(few: dict[str, Any], many: dict[str, Any], name: str) -> float | None:
    """Bytes per second that more bytes take more; None where they take no more."""
    more = many["seconds"][name] - few["seconds"][name]
    return digits((many["bytes"] - few["bytes"]) / more) if more > 0 else None

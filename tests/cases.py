"""What gets convolved in tests: lengths by what they exercise, options, and inputs drawn from a generator."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from reference import Float64, stored

MODES = ("causal", "circular")
DTYPES = ("bf16", "fp16")

TINY = (1, 2, 17, 100)  # far below the smallest transform
EVEN = (256, 512, 1024, 1280, 4096, 8192)  # exact transform lengths of orders 2 and 3
ODD = (257, 1000, 1009, 1026, 5000, 5003)  # padded when causal, folded when circular; primes among them
LARGE = (12288, 20000, 32768)  # the largest that one block holds, on some targets
DEVICE = (65536, 100000)
HUGE = (131072, 1048576, 3000000, 4194304)  # slow

OPTIONS = tuple({"in_gate": a, "out_gate": b, "skip": c} for a, b, c in product((False, True), repeat=3))


@dataclass(frozen=True)
class Inputs:
    """Signals in the storage type (as float64) and a filter: u (B, H, L), k (H, Lk), skip (H,)."""

    u: Float64
    k: Float64
    in_gate: Float64 | None
    out_gate: Float64 | None
    skip: Float64 | None

    @property
    def options(self) -> dict[str, Any]:
        return {"in_gate": self.in_gate, "out_gate": self.out_gate, "skip": self.skip}


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    taps: int,
    dtype: str,
    *,
    in_gate: bool = False,
    out_gate: bool = False,
    skip: bool = False,
) -> Inputs:
    """White signals and gates, filters that decay over their length (design 1.7).

    The skip has the sign of the filter's first tap: a sum that cancels would amplify the rounding of
    both, and no bound could hold for it.
    """
    _, heads, _ = shape
    k = rng.standard_normal((heads, taps)) * np.exp(-8 * np.arange(taps) / taps)
    return Inputs(
        u=stored(rng.standard_normal(shape), dtype),
        k=k,
        in_gate=stored(rng.standard_normal(shape), dtype) if in_gate else None,
        out_gate=stored(rng.standard_normal(shape), dtype) if out_gate else None,
        skip=np.copysign(rng.uniform(0.5, 1.5, heads), k[:, 0]) if skip else None,
    )


def slow(cases: Iterable[Any]) -> list[Any]:
    """The same as test parameters of the slow tests."""
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow) for c in cases]


def usually(cases: Iterable[Any], usual: Container[Any]) -> list[Any]:
    """Cases in their order as test parameters; those that are not usual ones are slow."""
    return [case if case in usual else slow([case])[0] for case in cases]

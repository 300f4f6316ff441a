"""Columns by matrices of 16 rows and butterflies, run in the simulator (templates/device/butterflies.cuh)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from calls import OPTIONS, bare, built, check, draw, filters, run
from cases import DTYPES, slow

from fftgen import emulate
from fftgen.planner.plan import TILE, Plan
from fftgen.planner.search import with_shape
from fftgen.problem import Problem

BLOCKS = ((48, 16, 16), (80, 16, 16), (48, 16, 32), (80, 16, 32))
LONG = (*BLOCKS[2:], (80, 16, 16, 16), (48, 32, 32), (64, 16, 16, 16), (128, 16, 16, 16), (128, 16, 32))


def tall(*factors: int, dtype: str = "fp16") -> Plan:
    device = int(factors not in BLOCKS)
    return with_shape(Problem("causal", int(np.prod(factors)), dtype), "sm_90", factors, device, "mma")


@pytest.mark.drawn(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "factors",
    [(48, 16, 16), (80, 16, 16), (64, 16, 16), (128, 16, 16), *slow((f,) for f in LONG)],
    ids=str,
)
def test_columns_by_butterflies(factors: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """In device memory and in a block: whole rows with all options; ends in the middle of row tiles, each of
    which has rows from all of the strip; rows that start anywhere."""
    plan = tall(*factors, dtype=dtype)
    n = plan.transform
    assert plan.stages[0].butterflies == factors[0] // TILE
    run(plan, rng, batch=2, channels=2 if n < 100_000 else 1, options=OPTIONS)
    for length in (n - 3, n // 2 + 8, n // factors[0] + 1):
        run(plan, rng, batch=1, length=length, taps=n, options=("in_gate", "out_gate"))


ROOTS = {
    "ROOT = twice(0x39a8)": (128, 16, 16),
    "SINE_3 = twice(0x3aee)": (48, 16, 16),
    "ROOT_5 = twice(0x3879)": (80, 16, 16),
    "SINE_5 = twice(0x3b9c)": (80, 16, 16),
    "SINE_5_2 = twice(0x38b4)": (80, 16, 16),
}


@pytest.mark.drawn(2)
@pytest.mark.parametrize("root", ROOTS)
def test_a_root_that_is_off_is_noticed(root: str, rng: np.random.Generator) -> None:
    """By a hundredth, in one place of a header."""
    plan = bare(tall(*ROOTS[root]))
    module, _ = built(plan)
    name, headers = "fftgen/butterflies.cuh", module.source.headers
    u, k = draw(rng, 1, 1, plan.transform).to(torch.float16), filters(rng, 1, plan.transform)
    assert headers[name].count(root) == 1
    bits = int(root[-7:-1], 16)
    headers = {**headers, name: headers[name].replace(root, root.replace(f"{bits:#x}", f"{bits + 16:#x}"))}
    other = dataclasses.replace(module, source=dataclasses.replace(module.source, headers=headers))
    y, _ = emulate.convolve(other, u, k)
    with pytest.raises(AssertionError):
        check(plan, y, u, k)

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

LONG = ((64, 16, 16, 16), (128, 16, 16, 16), (128, 16, 32))


def tall(*factors: int, dtype: str = "fp16", device: int = 1) -> Plan:
    return with_shape(Problem("causal", int(np.prod(factors)), dtype), "sm_90", factors, device, "mma")


@pytest.mark.drawn(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "factors",
    [(64, 16, 16), (128, 16, 16), *slow((f,) for f in LONG)],
    ids=str,
)
def test_columns_in_device_memory(factors: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """Whole rows with all options; ends in the middle of a row tile, which has rows from all of the strip."""
    plan = tall(*factors, dtype=dtype)
    n = plan.transform
    assert plan.stages[0].butterflies == factors[0] // TILE
    run(plan, rng, batch=2, channels=2 if n < 100_000 else 1, options=OPTIONS)
    for length in (n - 3, n // 2 + 8, n // factors[0] + 1):
        run(plan, rng, batch=1, length=length, taps=n, options=("in_gate", "out_gate"))


@pytest.mark.parametrize("factors", [(64, 16, 16), (128, 16, 16)], ids=str)
def test_a_root_that_is_off_is_noticed(factors: tuple[int, ...], rng: np.random.Generator) -> None:
    """By a hundredth, in one place of a header: where there are eighths of a turn."""
    plan = bare(tall(*factors))
    module, _ = built(plan)
    name, root = "fftgen/butterflies.cuh", "Pack ROOT = 0x39a839a8u"
    headers = module.source.headers
    assert headers[name].count(root) == 1
    headers = {**headers, name: headers[name].replace(root, "Pack ROOT = 0x39b839b8u")}
    other = dataclasses.replace(module, source=dataclasses.replace(module.source, headers=headers))
    u, k = draw(rng, 1, 1, plan.transform).to(torch.float16), filters(rng, 1, plan.transform)
    y, _ = emulate.convolve(other, u, k)
    if factors[0] == 64:
        check(plan, y, u, k)
        return
    with pytest.raises(AssertionError):
        check(plan, y, u, k)

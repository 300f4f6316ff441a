"""Columns by matrices of 16 rows and butterflies (Stage.butterflies): tables, numbers, and who has them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference

from fftgen.planner import fragments, interpret, mma_kernels, mma_rules, tables, variants
from fftgen.planner.butterflies import butterflies
from fftgen.planner.cost import matrix_operations
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.plan import TILE, Plan
from fftgen.planner.search import plan, with_shape
from fftgen.problem import Problem
from fftgen.targets import target

Array = npt.NDArray[Any]
# Columns in device memory, and of a block.
TALL = [(48, 32, 32), (64, 16, 16), (128, 16, 16), (80, 16, 16, 16), (64, 16, 16, 16), (128, 16, 16, 16)]
BLOCKS = [(48, 16, 16), (80, 16, 16), (48, 16, 32)]
COUNTS = (2, 3, 4, 5, 8)


def made_of(factors: tuple[int, ...], mode: str = "causal", dtype: str = "bf16", engine: str = "mma") -> Plan:
    device = int(factors in TALL)
    return with_shape(Problem(mode, math.prod(factors), dtype), "sm_90", factors, device, engine)


@pytest.mark.parametrize("inverse", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("count", COUNTS)
def test_butterflies_are_a_dft(count: int, inverse: bool, rng: np.random.Generator) -> None:
    """A rounding for every sum on the way of a number, and roots that are off by 1e-4 to 2e-4."""
    x = rng.standard_normal((count, 500)) + 1j * rng.standard_normal((count, 500))
    x = np.asarray(x.real.astype(np.float16) + 1j * x.imag.astype(np.float16), np.complex64)
    found = np.stack(butterflies(list(x), inverse=inverse))
    exact = np.fft.ifft(x, axis=0) * count if inverse else np.fft.fft(x, axis=0)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    sums = {2: 1, 3: 2, 4: 2, 5: 4, 8: 4}[count]
    assert 1.3e-4 * math.sqrt(sums) < error < 2.7e-4 * math.sqrt(sums)
    other = np.fft.fft(x, axis=0) if inverse else np.fft.ifft(x, axis=0) * count
    assert count == 2 or np.linalg.norm(found - other) > 0.5 * np.linalg.norm(exact)


def tile_rows(table: Array) -> Array:
    """Complex 16 x 16 matrices of a table's tiles: (tiles, row, column), by the words of the PTX ISA."""
    flat = table.reshape(-1, 2, 32, 4, 2)
    values = flat[:, 0] + 1j * flat[:, 1]
    found = np.zeros((len(values), TILE, TILE), complex)
    for lane in range(32):
        for register in range(4):
            for half in range(2):
                row = lane // 4 + 8 * (register % 2)
                column = 2 * (lane % 4) + half + 8 * (register // 2)
                found[:, row, column] = values[:, lane, register, half]
    return found


@pytest.mark.parametrize("factors", TALL[:3] + BLOCKS, ids=str)
def test_tables_and_butterflies_are_the_matrix(
    factors: tuple[int, ...], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row tile b has every B-th number from b on; X[c + 16 d] is frequency d of the butterflies over b."""
    monkeypatch.setattr(fragments, "encode", lambda values, to: values)
    made = made_of(factors)
    stage, count = made.stages[0], made.stages[0].butterflies
    assert count * TILE == stage.radix
    exact = tables.dft_matrix(made, 1)
    names = ("device", "device_inverse") if made.device_stages else ("columns", "columns_inverse")
    there, back = (tile_rows(fragments.build(made, made.table(name, 1))) for name in names)
    assert len(there) == len(back) == count
    x = rng.standard_normal((stage.radix, 7))
    parts = np.stack([there[b] @ x[b::count] for b in range(count)])
    assert np.fft.fft(parts, axis=0).reshape(stage.radix, 7) == pytest.approx(exact @ x, abs=1e-12)
    z = rng.standard_normal((2, stage.radix, 7))
    parts = count * np.fft.ifft((z[0] + 1j * z[1]).reshape(count, TILE, 7), axis=0)
    y = np.zeros((stage.radix, 7))
    for b in range(count):  # of the inverse the same planes: the real part of the conjugate's product
        y[b::count] = back[b].real @ parts[b].real + back[b].imag @ parts[b].imag
    assert y == pytest.approx((exact.conj().T @ (z[0] + 1j * z[1])).real, abs=1e-12)


@pytest.mark.parametrize("factors", TALL + BLOCKS, ids=str)
def test_what_they_cost_in_error(factors: tuple[int, ...], rng: np.random.Generator) -> None:
    """The kernels' arithmetic beside that of whole matrices: within the bound, and little more.

    Ratios of single rows of 20 480 points scatter by 0.9 % about 1.208: of 300 000 points by 0.2 %.
    """
    made = made_of(factors, dtype="fp16")
    whole = replace(made, stages=(replace(made.stages[0], butterflies=1), *made.stages[1:]))
    n = made.transform
    channels = -(-300_000 // n)
    u = rng.standard_normal((1, channels, n)).astype(np.float16).astype(np.float64)
    k = rng.standard_normal((channels, n)) * np.exp(-8 * np.arange(n) / n)
    exact = reference.convolve(u, k, mode="causal", length=n)
    errors = [
        np.linalg.norm(interpret.convolve(x, u, k) - exact) / np.linalg.norm(exact) for x in (made, whole)
    ]
    assert errors[0] < 1.05e-3
    assert 1.0 < errors[0] / errors[1] < 1.22
    unrounded = interpret.convolve(made, u, k, rounded=False)
    assert np.linalg.norm(unrounded - exact) < 1e-12 * np.linalg.norm(exact)


def test_who_has_them() -> None:
    """Real columns of the first stage in scaled fp16, of rows that are not folded."""
    for factors in TALL + BLOCKS:
        made, count = made_of(factors), factors[0] // TILE
        assert [stage.butterflies for stage in made.stages] == [count, *[1] * (len(factors) - 1)]
        assert made_of(factors, engine="mma:bf16-fp32").stages[0].butterflies == 1
        assert made_of(factors, engine="wmma").stages[0].butterflies == 1
        if factors[0] <= 64:
            assert made_of(factors, mode="circular").stages[0].butterflies == 1
    # A warp's columns, and those of a block with as good a shape beside them.
    for factors in ((32, 16, 16), (64, 16, 16), (48, 16), (64, 32)):
        problem = Problem("causal", math.prod(factors), "bf16")
        assert with_shape(problem, "sm_90", factors, 0, "mma").stages[0].butterflies == 1
    folded = Problem("circular", 2**15, "bf16")
    assert with_shape(folded, "sm_90", (128, 16, 16), 1, "mma", fold=True).stages[0].butterflies == 1
    assert plan(Problem("causal", 4_194_304, "bf16"), "sm_90").stages[0].butterflies == 8


def test_row_tiles_that_are_made_together_need_a_group_of_columns_for_each_warp() -> None:
    """Eight groups of 32 columns: eight warps, or whole matrices and sixteen."""
    made = made_of((80, 16, 16))
    (first, *others) = made.stages
    seen = {}
    for stages in (made.stages, (replace(first, butterflies=1), *others)):
        found = [*mma_kernels.kernels(stages, 0, True, target("sm_90"))]
        said = [reason for reason in found if isinstance(reason, str) and "keep no 16 warps busy" in reason]
        seen[stages[0].butterflies] = max(k[0].warps for k in found if not isinstance(k, str)), len(said)
    assert seen[5][0] == 8
    assert seen[5][1] >= 1
    assert seen[1] == (16, 0)


def test_plans_without_say_nothing_of_them() -> None:
    """So that their names, and what is cached and shipped under them, stay."""
    for made, said in ((made_of((64, 16, 16)), True), (made_of((32, 16, 16)), False)):
        stages = json.loads(made.to_json())["stages"]
        assert ["butterflies" in stage for stage in stages] == [said, False, False]
        assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("factors", TALL[:3] + BLOCKS, ids=str)
def test_products_that_are_left(factors: tuple[int, ...]) -> None:
    """One for each tile and part, of as many as there are tiles."""
    made = made_of(factors)
    (first, *others), count = made.stages, factors[0] // TILE
    whole = replace(made, stages=(replace(first, butterflies=1), *others))
    tiles = made.transform // TILE**2
    there, back = tiles * count * 2, tiles * count * 2
    if count % 2 == 0:  # even numbers before odd ones
        there = there * 3 // 4
    assert matrix_operations(whole) - matrix_operations(made) == 2 * (there + back - 2 * 2 * tiles)
    assert mma_rules.with_butterflies(whole.stages) == made.stages


def test_gradients_of_the_tallest_columns_have_none() -> None:
    """No rounding to spare: 1.37e-3 of 1.35e-3 (test_the_longest_rows_keep_the_bound)."""
    for length, most in ((1_048_576, 4), (1_310_720, 1), (4_194_304, 1), (24_576, 3)):
        problem = Problem("causal", length, "bf16")
        assert plan(problem, "sm_90").stages[0].butterflies > 1
        found = backward(problem, "sm_90")
        assert found is not None
        assert found.plan.stages[0].butterflies == most
        alone = gradient(problem, "sm_90")
        assert alone is not None
        assert alone.plan.stages[0].butterflies == most


def test_tuning_goes_without_whole_matrices_where_no_block_has_room_for_them() -> None:
    """sm_86 holds 20 480 points by butterflies alone."""
    for arch, there in (("sm_86", False), ("sm_90", True)):
        found = variants.variants(Problem("causal", 20_480, "bf16"), target(arch), 8, 64, 20)
        assert found[0].plan.stages[0].butterflies == 5
        said = [v for v in found if "matrices in place of butterflies" in v.about]
        assert bool(said) == there

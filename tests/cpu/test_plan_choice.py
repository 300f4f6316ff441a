"""What the planner chooses, by what it costs."""

from __future__ import annotations

from math import prod

import cases
import numpy as np
import pytest
from plans import KINDS, engines, of_every_target, on_engine, plans_of

from fftgen.planner import cost
from fftgen.planner import search as searching
from fftgen.planner.factor import factorable, factorisations, transforms
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan, search, with_shape
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import TARGETS, target


def test_lengths_are_not_rounded_up_to_powers_of_two() -> None:
    for name in TARGETS:
        found = plan(Problem("causal", 20000, "fp16"), name)
        assert 20000 <= found.transform < 32768, str(found)


@pytest.mark.parametrize(
    ("name", "memory_class"),
    [("sm_80", "block"), ("sm_90", "block"), ("sm_100", "block"), ("sm_75", "device"), ("sm_86", "device")],
)
@pytest.mark.parametrize("mode", cases.MODES)
def test_32768_fits_one_block_where_shared_memory_is_large(name: str, memory_class: str, mode: str) -> None:
    problem = Problem(mode, 32768, "fp16")
    assert on_engine(problem, name, "wmma").memory_class == memory_class
    if name != "sm_75":
        assert on_engine(problem, name, "mma").memory_class == memory_class


def test_the_chosen_plan_is_the_cheapest() -> None:
    """Of all on the register chain and of those that one block finishes on wmma, else of all."""
    for mode, length in (("causal", 4096), ("circular", 8192), ("causal", 20000), ("circular", 131072)):
        problem, chip = Problem(mode, length, "bf16"), target("sm_90")
        found = [c for c in search(problem, chip) if c.plan is not None and c.cost is not None]
        chosen = plan(problem, chip)
        assert chosen.engine == "mma"
        rivals = [
            c.cost.time / c.plan.rows_per_item
            for c in found
            if c.plan and c.cost and (c.engine == "mma" or c.plan.memory_class != "device")
        ]
        assert cost.cost(chosen, chip).time / chosen.rows_per_item == min(rivals)


def test_circular_lengths_fold_where_batch_pairs_do_not_fit_the_register_chain() -> None:
    """And nowhere else at the lengths that matter most: two rows to a transform are half the matrix work."""
    for name in ("sm_80", "sm_90"):
        for length in (256, 4096, 32768, 65536):
            found = plan(Problem("circular", length, "bf16"), name)
            assert (found.engine, found.packing, found.transform) == ("mma", "batch-pair", length), str(found)
    # 4194304 takes too many registers in pairs; 2304 = 48·48 has no shape of the register chain at all, its
    # neighbours have.
    for length, name in ((4194304, "sm_90"), (2304, "sm_90"), (1000, "sm_80")):
        problem = Problem("circular", length, "bf16")
        found = plan(problem, name)
        assert (found.engine, found.fold) == ("mma", length), str(found)
        pairs = [c for c in search(problem, target(name)) if c.plan and c.plan.packing == "batch-pair"]
        assert all(c.engine == "wmma" for c in pairs)
        assert (found.transform == length) == (length not in (1000, 2304))


def test_predicted_times_are_compared_by_the_row() -> None:
    """A batch pair may take nearly twice as long as a right-angle transform, and is still the better one."""
    first, second = (
        next(
            c
            for c in search(Problem("circular", 4096, "bf16"), target("sm_90"))
            if c.plan and c.plan.fold == f
        )
        for f in (0, 4096)
    )
    assert first.plan is not None
    assert first.cost is not None
    assert second.plan is not None
    assert second.cost is not None
    assert (first.plan.rows_per_item, second.plan.rows_per_item) == (2, 1)
    assert first.row_seconds == first.cost.time / 2 < second.row_seconds == second.cost.time < first.cost.time


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_86", "sm_90"])
@pytest.mark.parametrize("mode", cases.MODES)
def test_no_shape_is_predicted_to_be_faster_than_the_choice(mode: str, name: str) -> None:
    """But for differences that the model cannot tell: there the least by busiest resources goes first."""
    for length in (1024, 20_480, 131_072, 262_144):
        problem, engine = Problem(mode, length, "fp16"), "wmma" if name == "sm_75" else "mma"
        first, *others = (c for c in search(problem, target(name), engine=engine) if c.cost is not None)
        assert others
        least = min(c.row_expected for c in (first, *others))
        assert 0 < first.row_expected <= searching.CLOSE * least
        close = [c.row_seconds for c in others if c.row_expected <= searching.CLOSE * least]
        assert first.row_seconds <= min(close, default=np.inf)


def test_what_busiest_resources_do_not_hide_decides_between_shapes() -> None:
    """Columns of radix 32 take less time by their busiest resource than 16, and more by all."""
    first, *others = search(Problem("circular", 262_144, "bf16"), target("sm_90"), engine="mma")
    tall = next(c for c in others if c.plan and c.plan.factors[0] == 32)
    assert first.plan is not None
    assert first.plan.factors[0] == 16
    assert tall.row_seconds < first.row_seconds
    assert tall.row_expected > searching.CLOSE * first.row_expected


def test_factorisations_are_all_products_and_nothing_else() -> None:
    for length in (256, 4096, 20480, 12288, 1000, 4097 * 16):
        for order in (1, 2, 3):
            radices = range(16, 129, 16)
            brute: set[tuple[int, ...]] = {()}
            for _ in range(order):
                brute = {(*head, r) for head in brute for r in radices}
            expected = {f for f in brute if prod(f) == length}
            assert set(factorisations(length, order)) == expected
            assert len(factorisations(length, order)) == len(expected)
    for n in transforms(1, 20000):
        assert factorable(n)
    assert not factorable(257)


@pytest.mark.parametrize("name", cases.usually(TARGETS, KINDS))
def test_every_length_has_a_plan(name: str) -> None:
    """Lengths at random, of every size, and the neighbours of powers of two."""
    rng = np.random.default_rng(3)
    lengths = {int(2**x) for x in rng.uniform(0, 20, 15)} | {4095, 4097, 32769, 65537, MAX_LENGTH - 1}
    for length in sorted(lengths):
        for mode in cases.MODES:
            found = plan(Problem(mode, length, "fp16"), name)
            assert length <= found.transform <= max(256, 2 * length)


def test_every_multiple_of_256_has_a_plan() -> None:
    """Each may be a transform of its own, or a product of radices that no rule allows together."""
    for length in range(256, 20000, 256):
        for mode in cases.MODES:
            plan(Problem(mode, length, "fp16"), "sm_86")


def counted_tensor_ops(found: Plan) -> int:
    """Every 16x16x16 product of one transform, enumerated: stage, direction, part, tile, depth."""
    total = 0
    # Real numbers in two halves of whole tiles; in a warp not beside 64 columns.
    even_first = found.engine == "mma" and found.packing == "right-angle" and found.factors[0] % 32 == 0
    even_first &= found.order > 2 or found.factors[1] < 64
    for inverse in (False, True):
        for number, stage in enumerate(found.stages):
            first = number == 0
            if found.packing == "right-angle" and first and not inverse:
                products = [("re", "real"), ("im", "real")]  # real samples come in
            elif found.packing == "right-angle" and first and inverse:
                products = [("re", "re"), ("im", "im")]  # only the real part goes out
            else:
                products = [("re", "re"), ("im", "im"), ("re", "im"), ("im", "re")]
            columns = found.transform // stage.radix
            depth = range(0, stage.radix, 16)
            one_half = range(0, stage.radix // 2, 16)
            # Not of a warp by itself: its results have both halves of the last stage in one tile.
            together = found.block_stage
            for _ in products:
                for _column in range(0, columns, 16):
                    if stage.butterflies > 1:  # a matrix of 16 rows for each tile
                        total += len(depth)
                    elif (
                        even_first and first and not inverse
                    ):  # even numbers once for two tiles of frequencies
                        total += sum(3 * len(one_half) for _row in one_half)
                    elif stage.halves and not inverse:  # even frequencies of sums, odd ones of differences
                        total += sum(len(one_half) for _row in depth)
                    elif stage.halves and together:  # even frequencies once for two tiles of numbers
                        total += sum(3 * len(one_half) for _row in one_half)
                    else:
                        total += sum(len(depth) for _row in depth)
    return total


@pytest.mark.parametrize("length", [1, 256, 1000, 1009, 4096, 20000, 32768, 100000])
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("name", ["sm_75", "sm_90"])
def test_tensor_ops_in_closed_form_are_those_counted(name: str, mode: str, length: int) -> None:
    for found in engines(Problem(mode, length, "fp16"), name):
        assert cost.tensor_ops(found) == counted_tensor_ops(found)
        assert cost.cost(found, target(name)).tensor_ops == counted_tensor_ops(found)


@of_every_target
def test_workspace_bytes_are_those_of_the_kernels(name: str) -> None:
    """Kernel by kernel, 4 bytes per complex number."""
    for found in plans_of(name):
        whole = 4 * found.transform
        total = 0
        for kernel in found.kernels:
            if kernel.role == "columns":
                total += whole if kernel.stage == 1 else 2 * whole
            elif kernel.role == "rows":
                total += 2 * whole
            elif kernel.role == "columns_inverse":
                total += 2 * whole if kernel.stage > 1 else whole
        assert cost.workspace_bytes(found) == total, str(found)


def test_flops_are_those_of_the_design() -> None:
    """Design 2.1: 640 per real element for 16*16*16 right-angle, 384 for a batch pair."""
    flops = 2 * 16**3
    for engine in ("mma", "wmma"):
        causal = with_shape(Problem("causal", 4096, "fp16"), "sm_90", (16, 16, 16), 0, engine)
        assert flops * cost.tensor_ops(causal) / 4096 == 640
        pair = with_shape(Problem("circular", 4096, "fp16"), "sm_90", (16, 16, 16), 0, engine)
        assert flops * cost.tensor_ops(pair) / (2 * 4096) == 384


@of_every_target
def test_costs_are_finite_and_name_their_bound(name: str) -> None:
    for found in plans_of(name):
        price = cost.cost(found, target(name))
        assert all(0 < s < 1 for s in price.seconds.values()), str(found)
        assert price.time == sum(max(k.seconds.values()) for k in price.kernels)
        assert all(k.seconds[k.bound] == k.time for k in price.kernels)
        assert price.seconds[price.bound] > 0
        assert (price.workspace_bytes > 0) == (found.memory_class == "device")
        # Each real element is read once and written once, in 16 bits.
        assert price.device_bytes == 2 * 2 * found.problem.length * found.rows_per_item

"""The cost model: kernel by kernel, on a full chip and in waves, with what the compiler says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plans import engines

from fftgen.planner import call_cost as calls
from fftgen.planner import cost as costs
from fftgen.planner import launch
from fftgen.planner.call_cost import call_cost
from fftgen.planner.cost import Compiled, Cost, cost, filter_cost, in_one_launch
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan, with_shape
from fftgen.planner.work import kernel_work
from fftgen.problem import Problem
from fftgen.targets import TARGETS, target

PROBLEMS = tuple(
    Problem(mode, length, "fp16")
    for mode in ("causal", "circular")
    for length in (256, 2048, 4096, 32_768, 131_072, 1_048_576)
)


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_add_up_to_the_plan(name: str) -> None:
    chip = target(name)
    for problem in PROBLEMS:
        for found in engines(problem, name):
            price = cost(found, chip)
            assert [k.name for k in price.kernels] == [k.label for k in found.kernels]
            assert price.tensor_ops == costs.tensor_ops(found)
            assert price.workspace_bytes == costs.workspace_bytes(found)
            # Where peaks read a row first, the columns after them find it in the L2.
            assert price.device_bytes == costs.device_bytes(found)
            for resource, seconds in price.seconds.items():
                assert seconds == pytest.approx(sum(k.seconds[resource] for k in price.kernels))
            assert price.time == pytest.approx(sum(k.time for k in price.kernels))
            assert price.time >= max(price.seconds.values())
            assert price.bound in {k.bound for k in price.kernels}


def test_each_kernel_is_bound_by_a_resource_of_its_own() -> None:
    """The peaks of a pair need device memory while its columns need the L2: neither helps the other."""
    found = plan(Problem("circular", 65_536, "bf16"), "sm_90")
    by = {k.name: k for k in cost(found, target("sm_90")).kernels}
    assert by["peaks"].bound == "device memory"
    assert by["columns1"].seconds["device memory"] == 0
    assert by["columns1"].work.loaded == by["peaks"].work.loaded == 2 * 2 * 65_536
    assert by["peaks"].time + by["columns1"].time > max(
        by["peaks"].seconds[r] + by["columns1"].seconds[r] for r in costs.RESOURCES
    )


def test_a_row_by_itself_is_read_once() -> None:
    """Nobody looks for its peak before: strips of it are scaled each by its own."""
    found = plan(Problem("causal", 65_536, "bf16"), "sm_90")
    price = cost(found, target("sm_90"))
    assert [k.work.loaded for k in price.kernels] == [2 * 65_536, 0, 0]
    pairs = with_shape(Problem("circular", 65_536, "bf16"), "sm_90", found.factors, 1, "mma")
    assert (found.strip_peaks, pairs.strip_peaks) == (4096 // 32, 0)


def test_gates_cost_what_they_move() -> None:
    """A pair that is looked at first finds the gate of its columns in the L2."""
    chip = target("sm_90")
    for mode, inward in (("circular", ("peaks", "columns1")), ("causal", ("columns1",))):
        found = plan(Problem(mode, 65_536, "bf16"), chip)
        plain, gated = (cost(found, chip, gated=gates) for gates in (False, True))
        signal = 2 * 65_536 * found.rows_per_item
        for one, other in zip(plain.kernels, gated.kernels, strict=True):
            gates = signal if one.name in (*inward, "columns_inverse1") else 0
            assert other.work.gates == gates
            assert other.work.l2_bytes - one.work.l2_bytes == gates
            assert (other.work.instructions > one.work.instructions) == (gates > 0)
        assert gated.device_bytes == 2 * plain.device_bytes == 4 * signal
        together = in_one_launch(found, gated, chip)
        assert together.device_bytes == gated.device_bytes
        assert sum(k.work.gates for k in together.kernels) == signal * (1 + len(inward))


def test_seconds_are_work_over_rate() -> None:
    found = with_shape(Problem("circular", 4096, "bf16"), "sm_90", (16, 16, 16), 0, "mma")
    chip = target("sm_90")
    (kernel,) = cost(found, chip).kernels
    assert kernel.resident == 16
    assert kernel.seconds["device memory"] == pytest.approx(2 * 4 * 4096 / 4.3e12)
    # u and y, the spectrum once.
    assert kernel.seconds["L2"] == pytest.approx((2 * 4 * 4096 + 4 * 4096) / 7.5e12)
    assert kernel.seconds["tensor cores"] == pytest.approx(2 * 16**3 * 384 / 790e12)
    assert kernel.seconds["issue slots"] == pytest.approx(kernel.work.instructions / (4 * 132 * 1.98e9))
    twice = replace(chip, bandwidth=2 * chip.bandwidth, multiprocessors=2 * chip.multiprocessors)
    (faster,) = cost(found, twice).kernels
    for name in ("device memory", "shared memory", "issue slots"):
        assert faster.seconds[name] == pytest.approx(kernel.seconds[name] / 2)
    assert faster.seconds["L2"] == kernel.seconds["L2"]


@pytest.mark.parametrize(
    ("shared", "warps", "registers", "blocks"),
    [
        (0, 8, 32, 8),  # slots: 64 warps
        (0, 8, 128, 2),  # registers: 65536 / (128 * 256)
        (0, 8, 129, 1),  # given out in eights
        (100 * 1024, 4, 32, 2),  # 228 KB, one of them taken by each block
        (0, 1, 32, 32),  # blocks
    ],
)
def test_residency_is_that_of_the_scarcest(shared: int, warps: int, registers: int, blocks: int) -> None:
    chip = target("sm_90")
    assert costs.resident_blocks(shared, warps, chip, 99, registers) == blocks
    assert costs.resident_blocks(shared, warps, chip, 1) == 1  # what the plan leaves room for


def test_few_warps_slow_what_a_multiprocessor_does_by_itself() -> None:
    found = plan(Problem("circular", 4096, "bf16"), "sm_90")
    chip = target("sm_90")
    (full,) = cost(found, chip).kernels
    (half,) = cost(found, chip, Compiled(registers={"convolve": 255})).kernels
    assert (full.resident, half.resident) == (16, 8)
    for name in ("shared memory", "tensor cores", "issue slots"):
        assert half.seconds[name] == pytest.approx(2 * full.seconds[name])
    for name in ("device memory", "L2"):
        assert half.seconds[name] == full.seconds[name]


def test_counted_instructions_take_the_place_of_the_formula() -> None:
    found = plan(Problem("causal", 65_536, "bf16"), "sm_90")
    chip = target("sm_90")
    known = cost(found, chip, Compiled(instructions={"rows": 5280.0}))
    by = {k.name: k for k in known.kernels}
    assert by["rows"].seconds["issue slots"] == pytest.approx(5280 / (4 * 132 * 1.98e9))
    plain = {k.name: k for k in cost(found, chip).kernels}
    assert by["columns1"] == plain["columns1"]


def test_idle_warps_of_a_block_cost_slots() -> None:
    """16 rows on 16 warps that take two at a time: half of them wait, which 8 warps do not."""
    chip = target("sm_80")
    found = with_shape(Problem("circular", 8192, "bf16"), "sm_80", (16, 16, 32), 0, "mma")
    body = found.body
    assert body.group == 2
    wide, narrow = (replace(body, warps=warps, columns=4) for warps in (16, 8))

    def slots(kernel: object) -> float:
        changed = replace(found, kernels=(kernel,))  # type: ignore[arg-type]
        return kernel_work(changed, changed.body, chip).instructions

    assert slots(wide) - slots(narrow) == pytest.approx(87 * 8192 / 128)


def test_no_device_stage_where_one_block_does_all_as_fast() -> None:
    """The cost of a device-class plan is the sum over its kernels, not the busiest resource of them all."""
    found = plan(Problem("circular", 16_384, "bf16"), "sm_89")
    assert found.memory_class == "block"


# Filters


def test_preparing_a_filter_moves_its_taps_and_its_spectrum() -> None:
    chip = target("sm_90")
    whole = plan(Problem("causal", 4096, "bf16"), chip)
    (kernel,) = filter_cost(whole, chip, 1000).kernels
    assert kernel.work.loaded == 4 * 1000
    assert kernel.work.stored == 2 * 2 * 4096 + 8
    assert kernel.work.device_bytes == 4 * 1000 + 4 * 4096 + 8
    assert kernel.work.workspace_bytes == kernel.work.tensor_ops == 0
    chunked = plan(Problem("causal", 65_536, "bf16"), chip)
    price = filter_cost(chunked, chip)
    assert [k.name for k in price.kernels] == ["filter_columns", "filter_rows", "filter_level"]
    n = 65_536
    rows = n // chunked.filter.rest
    levelled = 2 * 4 * (n - chunked.filter.rest) + 2 * 4 * 32 * rows  # a warp reads two words of each row
    assert [k.work.workspace_bytes for k in price.kernels] == [8 * n, 8 * n + 4 * rows, levelled]
    assert price.device_bytes == 4 * n + 4 * n + 8
    assert all(s > 0 for s in (price.seconds[r] for r in costs.RESOURCES if r != "tensor cores"))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", TARGETS)
def test_every_filter_kernel_has_a_cost(name: str) -> None:
    for problem in PROBLEMS:
        found = plan(problem, name)
        price = filter_cost(found, target(name))
        assert [k.name for k in price.kernels] == [k.role for k in found.filter.kernels]
        assert all(k.work.instructions > 0 and 0 < k.time < 1 for k in price.kernels)
        assert all(k.work.shared_bytes > 0 for k in price.kernels if k.name != "filter_level")


# Calls


def test_a_last_wave_takes_as_long_as_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run_of", lambda pieces, slots: 1)  # a block for each transform
    chip = target("sm_90")
    found = plan(Problem("circular", 4096, "fp16"), chip)
    price = cost(found, chip)
    bound = price.kernels[0].bound
    assert bound == "device memory"
    (kernel,) = price.kernels
    slow = replace(price, kernels=(replace(kernel, seconds={**kernel.seconds, "issue slots": 1e-6}),))
    slots = chip.multiprocessors * kernel.resident // found.body.warps

    def seconds(plan: Plan, items: int) -> float:
        assert [x.run for x in launch.launches(plan, 2, items, 4096)] == [1]
        whole = call_cost(plan, chip, slow, 2, items)
        return whole.time - whole.showing - whole.fixed

    assert seconds(found, slots) == pytest.approx(slots * 1e-6)
    assert seconds(found, slots + 1) == pytest.approx(2 * slots * 1e-6)
    assert call_cost(found, chip, slow, 2, slots).last_wave == pytest.approx(0, abs=1e-12)
    assert call_cost(found, chip, slow, 2, slots + 1).last_wave == pytest.approx((slots - 1) * 1e-6)
    # Few multiprocessors can use up the memory of all.
    assert call_cost(found, chip, price, 2, slots + 1).last_wave < kernel.time * slots


def test_a_call_of_the_device_class_pays_for_every_launch() -> None:
    chip = target("sm_90")
    found = replace(plan(Problem("causal", 1_048_576, "bf16"), chip), whole=None)
    price = cost(found, chip)
    whole = call_cost(found, chip, price, 4, 16)
    assert whole.launches == len(launch.launches(found, 4, 16, 1_048_576)) > len(found.kernels)
    assert whole.fixed == pytest.approx(calls.CALL_SECONDS + whole.launches * calls.LAUNCH_SECONDS)
    assert whole.time == pytest.approx(64 * price.time + whole.last_wave + whole.showing + whole.fixed)
    assert whole.last_wave >= 0


@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_one_launch_of_all_stages_pays_for_none_of_theirs(mode: str) -> None:
    chip = target("sm_90")
    found = plan(Problem(mode, 65_536, "bf16"), chip)
    price = cost(found, chip)
    one = in_one_launch(found, price, target("sm_90"))
    assert [k.name for k in one.kernels] == [k.name for k in price.kernels]
    assert one.device_bytes == price.device_bytes
    whole = call_cost(found, chip, price, 132 * 2, 2)
    apart = call_cost(replace(found, whole=None), chip, price, 132 * 2, 2)
    assert (whole.launches, apart.launches % len(price.kernels)) == (1, 0)
    assert whole.fixed == calls.CALL_SECONDS + calls.LAUNCH_SECONDS
    items = 132 * 2 * 2 // found.rows_per_item
    assert whole.time == pytest.approx(items * one.time + whole.last_wave + whole.showing + whole.fixed)
    assert whole.last_wave == pytest.approx(0, abs=1e-9), "132 clusters of two blocks in full turns"
    assert whole.time < apart.time
    # Multiprocessors wait for the last turn; the L2, which bounds stages of causal rows, does what is left.
    alone = Cost(tuple(replace(k, seconds={**k.seconds, "L2": 0.0}) for k in price.kernels))
    late = call_cost(found, chip, alone, 132 * 2 + 2, 2)
    assert late.last_wave > 0.2 * items * in_one_launch(found, alone, chip).time / 4


def test_what_the_busiest_resource_hides_is_shared_out() -> None:
    """Of the other resources' time a part shows; outside the inner stages all of it, and more than that."""
    chip = target("sm_90")
    found = replace(plan(Problem("causal", 65_536, "bf16"), chip), whole=None)
    price = cost(found, chip)
    whole = call_cost(found, chip, price, 4, 16)
    hidden = {k.name: sum(k.seconds.values()) - k.time for k in price.kernels}
    inner = hidden.pop("rows")
    assert whole.showing == pytest.approx(
        64 * (costs.SHOWING * inner + costs.SHOWING_OUTSIDE * sum(hidden.values()))
    )
    assert 0 < costs.SHOWING < 1 < costs.SHOWING_OUTSIDE < 1.5


def test_pieces_of_one_sector_take_the_l2_twice_as_long() -> None:
    """Strips of 16 columns: of signals, gates and the workspace, not of what tables and spectrum come to."""
    chip = target("sm_90")
    for factors, narrow in (((128, 16, 16), True), ((64, 16, 32), False)):
        plan = with_shape(Problem("causal", 32_768, "bf16"), chip, factors, 1, "mma")
        for kernel in cost(plan, chip, gated=True).kernels:
            around, work = kernel.name.startswith("columns"), kernel.work
            twice = around and narrow
            assert work.narrow == twice
            assert work.l2_busy_bytes == work.l2_bytes * (2 if twice else 1)
            assert kernel.seconds["L2"] == work.l2_busy_bytes / chip.l2_bandwidth
            assert not around or work.tables == work.spectrum == 0

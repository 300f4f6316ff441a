"""Where there is no plan the reason is named; targets and types by their names."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from fftgen.dtypes import BF16, FP16, dtype
from fftgen.errors import InputError, NoPlanError
from fftgen.planner.search import plan, search, with_shape
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import REAL_TARGETS, TARGETS, target, target_for


def test_bf16_before_sm_80_has_no_plan_and_says_why() -> None:
    with pytest.raises(NoPlanError, match=r"sm_75 has no bf16 matrix instruction.*sm_80.*use fp16") as raised:
        plan(Problem("causal", 4096, "bf16"), "sm_75")
    assert raised.value.reasons
    assert all("bf16" in reason for reason in raised.value.reasons)
    assert raised.value.reasons[0] in str(raised.value)


@pytest.mark.parametrize(
    ("factors", "device", "message"),
    [
        ((16, 256), 0, "radix|tile"),
        ((112, 16), 0, "112.*exceeds 96"),
        ((80, 64), 0, "80x64.*4096"),
        ((16, 16, 16, 16), 0, "4 stages inside one kernel"),
        ((16, 16), 1, "1 stages inside one kernel"),
        ((128, 64, 64), 0, "shared memory"),
    ],
)
def test_shapes_that_break_a_rule_are_refused_with_it(
    factors: tuple[int, ...], device: int, message: str
) -> None:
    with pytest.raises(NoPlanError, match=message):
        with_shape(Problem("causal", prod(factors), "fp16"), "sm_90", factors, device)


@pytest.mark.parametrize(
    ("mode", "factors", "device", "name", "message"),
    [
        ("causal", (16, 16), 0, "sm_75", r"sm_75 lacks mma\.m16n8k16"),
        ("causal", (16, 16, 16, 16), 2, "sm_90", "one device stage"),
        ("causal", (128, 128, 16, 16), 1, "sm_90", "strips|registers|numbers|shared memory"),
        ("causal", (16, 16, 16, 16), 0, "sm_90", "4 stages inside one kernel"),
        ("causal", (16, 48), 0, "sm_90", "48 columns of the last stage"),
        ("causal", (80, 32), 0, "sm_90", "80x32 exceeds the 2048 points"),
        ("causal", (128, 64, 16), 0, "sm_90", "shared memory|registers|strips|numbers"),
    ],
)
def test_shapes_that_break_a_rule_of_the_register_chain_are_refused_with_it(
    mode: str, factors: tuple[int, ...], device: int, name: str, message: str
) -> None:
    with pytest.raises(NoPlanError, match=message):
        with_shape(Problem(mode, prod(factors), "fp16"), name, factors, device, engine="mma")


@pytest.mark.parametrize(("mode", "length"), [("causal", 4096), ("circular", 4096), ("circular", 1000)])
def test_transforms_that_do_not_serve_the_problem_are_refused(mode: str, length: int) -> None:
    with pytest.raises(NoPlanError, match=f"256 does not serve {mode} length {length}"):
        with_shape(Problem(mode, length, "fp16"), "sm_90", (16, 16), 0)
    assert all(c.plan is None for c in search(Problem(mode, length, "fp16"), target("sm_90"), transform=512))
    longer = search(Problem(mode, length, "fp16"), target("sm_90"), transform=8192)[0].plan
    assert longer is not None
    assert (longer.packing, longer.fold) == ("right-angle", 0 if mode == "causal" else length)


@pytest.mark.parametrize("length", [0, -1, -4096])
def test_lengths_below_one_are_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"seqlen must be at least 1, got {length}"):
        Problem("causal", length, "bf16")


@pytest.mark.parametrize("length", [MAX_LENGTH + 1, 6_000_000, 2**40])
def test_lengths_beyond_the_largest_are_refused_with_a_way_out(length: int) -> None:
    with pytest.raises(InputError, match=rf"{length} exceeds .*{MAX_LENGTH}.*split the sequence"):
        Problem("circular", length, "bf16")


@pytest.mark.parametrize("length", [True, False, 4096.0, "4096", None, np.float64(4096)])
def test_lengths_that_are_no_int_are_refused(length: Any) -> None:
    with pytest.raises(InputError, match=r"must be an int, got .*\("):
        Problem("causal", length, "bf16")


@pytest.mark.parametrize("name", ["fp64", "float64", "", "BF16", None])
def test_unknown_dtypes_are_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(InputError, match=r"dtype .* is not supported: choose.*fp16.*bf16|dtype .*bf16.*fp16"):
        Problem("causal", 4096, name)
    with pytest.raises(InputError, match=r"choose bf16 .*fp16 .* or fp32"):
        dtype(name)


@pytest.mark.parametrize("mode", ["linear", "", "CAUSAL", None])
def test_unknown_modes_are_refused_with_the_choices(mode: Any) -> None:
    with pytest.raises(InputError, match=r"mode .* is not supported: choose from circular, causal"):
        Problem(mode, 4096, "bf16")


@pytest.mark.parametrize("name", ["sm_70", "sm_91", "", "hopper", "90a", None, 9])
def test_unknown_targets_are_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(InputError, match=r"target .* is not supported: choose from sm_75, sm_80"):
        plan(Problem("causal", 4096, "fp16"), name)


def test_targets_go_by_several_names() -> None:
    assert target("sm_90") is target("90") is target("9.0") is target(target("sm_90"))
    assert target("12.0").name == "sm_120"


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "compute_80"),  # Jetson Orin, whose machine code is its own
        ((8, 8), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
        ((11, 0), "compute_80"),
        ((13, 0), "compute_80"),
    ],
)
def test_devices_get_the_row_that_suits_them(capability: tuple[int, int], name: str) -> None:
    assert target_for(capability).name == name


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (3, 5)])
def test_devices_without_tensor_cores_for_it_are_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"{capability[0]}\.{capability[1]} is too old.*CPU tensors"):
        target_for(capability)


def test_the_virtual_target_fits_every_chip_it_may_run_on() -> None:
    last = TARGETS["compute_80"]
    for chip in REAL_TARGETS:
        if chip.capability >= last.capability:
            assert last.shared_block <= chip.shared_block
            assert last.shared_sm <= chip.shared_sm
            assert last.warps_sm <= chip.warps_sm
            assert last.blocks_sm <= chip.blocks_sm


def test_dtypes_go_by_the_names_of_torch() -> None:
    assert dtype("torch.bfloat16") is dtype("bfloat16") is dtype("bf16") is dtype(BF16) is BF16
    assert dtype("torch.float16") is dtype("half") is dtype("fp16") is FP16

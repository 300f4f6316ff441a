"""Ring 3 for kernels with two outputs: du and d in_gate by one transform (planner/twins.py)."""

from __future__ import annotations

from itertools import product

import compiled
import numpy as np
import pytest
import torch
from calls import TORCH, built, call, check, draw, filters
from cases import usually
from plans import on_engine
from torch import Tensor

from fftgen import emulate, hot_path, toolkit
from fftgen.errors import InternalError
from fftgen.execute import Executable
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.planner.search import with_shape
from fftgen.planner.twins import prefix, twin
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.sampled import check_launches

MODES = ("causal", "circular")
LENGTHS = (256, 1024, 2048, 4096, 8192, 12_288, 16_384, 20_480, 32_768, 65_536, 1 << 20, 1 << 21)
USUAL = [
    (256, "causal", "sm_90"),
    (4096, "causal", "sm_80"),
    (20_480, "circular", "sm_90"),
    (65_536, "causal", "sm_90"),
]


def plan_for(mode: str, length: int, dtype: str = "bf16", target: str = "sm_90") -> Plan:
    return on_engine(Problem(mode, length, dtype), target, "mma")


def shaped(mode: str, factors: tuple[int, ...], device: int = 0, **more: bool) -> Plan:
    problem = Problem(mode, int(np.prod(factors)), "bf16")
    return with_shape(problem, "sm_90", factors, device, "mma", **more)


def twin_of(plan: Plan) -> Plan:
    found = twin(plan)
    assert found is not None
    return found


# A warp's transforms, several and one, and several without rows on their way; a block's, with addresses in
# registers and without; the device stage around a warp's and a block's; folded; the other compute format.
PLANS = {
    "warp": plan_for("causal", 250),
    "warp, pairs": plan_for("circular", 1024),
    "warp, two pairs, scales kept in shared memory": plan_for("circular", 256, "fp16", "sm_89"),
    "block": plan_for("causal", 4096),
    "block, pairs": plan_for("circular", 4096),
    "block, folded": plan_for("circular", 3700, "fp16"),
    "block, late addresses": plan_for("circular", 20_480),
    "device": shaped("causal", (16, 16, 16), 1),
    "device, pairs": shaped("circular", (16, 16, 16, 16), 1),
    "bf16 operands": with_shape(Problem("causal", 4096, "bf16"), "sm_90", (16, 16, 16), 0, "mma:bf16-fp32"),
}


@pytest.mark.drawn(10)
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "ragged"])
@pytest.mark.parametrize("name", PLANS)
def test_each_result_is_what_its_gate_alone_gives(name: str, aligned: bool, rng: np.random.Generator) -> None:
    """Both exact; where the gates are one, so are the results, bit for bit."""
    plan = PLANS[name]
    dtype = TORCH[plan.problem.dtype]
    n = plan.problem.length
    steps = n - n % 8 if aligned else max(1, n - 3)
    batch = 3 if n <= 4096 else 2 if plan.rows_per_item == 1 else 3
    u, in_gate, first, second = (draw(rng, batch, 2, steps).to(dtype) for _ in range(4))
    given: dict[str, Tensor] = {"in_gate": in_gate, "skip": draw(rng, 2).float()}
    k = filters(rng, 2, n, steps)
    given["skip"] = torch.copysign(given["skip"], k[:, 0])
    module, ptx = built(twin_of(plan))
    y, also, _ = emulate.both(module, u, k, (first, second), ptx=ptx, seed=int(rng.integers(2**31)), **given)
    check(plan, y, u, k, out_gate=first, **given)
    check(plan, also, u, k, out_gate=second, **given)
    if n <= 4096:
        assert torch.equal(y, emulate.both(module, u, k, (first, first), ptx=ptx, **given)[1])


def test_the_twin_is_a_module_of_its_own() -> None:
    """Another name and digest, none of the filter's kernels; the plan beside it stays what it was."""
    plan = PLANS["block"]
    found = twin_of(plan)
    assert found.digest != plan.digest
    assert found.name.startswith("fftgen_twin_n4096_causal_")
    assert "two outputs" in str(found)
    assert not found.filter.kernels
    assert found.tables == plan.tables
    assert Plan.from_json(found.to_json()) == found
    assert "outputs" not in plan.to_json()
    assert render(found).entries == (found.name,)
    assert twin(search.plan(Problem("causal", 4096, "fp16"), "sm_75")) is None


def test_late_addresses_are_for_long_pairs_alone() -> None:
    late = {name for name, plan in PLANS.items() if prefix(twin_of(plan)) == "late_twin_"}
    assert late == {"block, late addresses"}
    assert {prefix(plan) for plan in PLANS.values()} == {""}


def test_calls_have_as_many_gates_as_kernels_have_outputs(rng: np.random.Generator) -> None:
    plan = PLANS["warp"]
    u = draw(rng, 1, 1, 250).bfloat16()
    table = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(InternalError, match="has 2 outputs"):
        call(twin_of(plan), u, filters(rng, 1, 250))
    executable = Executable(plan, table)
    with pytest.raises(InternalError, match="has 1 outputs"):
        executable.both(emulate.Simulated("", ""), u, u, u, None, (u, u))  # type: ignore[arg-type]


# Bytes of a thread, since two gates are held while products run: faster on an H200, not measured elsewhere.
# That of 256 points in 96 registers, for 20 warps, since rows come to it through shared memory.
FEW_SPILLED = {
    ("circular", 256, "sm_90"): 4,
    # Since addresses, and later rows on their way, take fewer instructions.
    ("circular", 12_288, "sm_90"): 36,
    ("causal", 1_048_576, "sm_90"): 4,
    ("causal", 2_097_152, "sm_90"): 4,
    # Since half of a matrix is made of the other: between the products of columns, and twice a transform.
    ("circular", 16_384, "sm_80"): 12,
    ("circular", 16_384, "sm_90"): 24,
    ("circular", 32_768, "sm_90"): 12,
    # Rows of 32 · 32 · 32 instead of columns of 64.
    ("circular", 1_048_576, "sm_80"): 64,
    ("circular", 1_048_576, "sm_90"): 40,
    # Operands of three row tiles, by sixteen warps, wait for their butterflies.
    ("causal", 20_480, "sm_80"): 12,
}


@pytest.mark.drawn(8, among="registers")
@pytest.mark.parametrize(
    ("length", "mode", "target"), usually(product(LENGTHS, MODES, ("sm_80", "sm_90")), USUAL)
)
def test_no_kernel_spills_and_the_second_result_costs_its_stores(length: int, mode: str, target: str) -> None:
    plan = plan_for(mode, length, target=target)
    found = twin_of(plan)
    for name, taken in compiled.cubin(render(found), target).resources.items():
        if length > 1 << 20 and name.endswith("_rows"):
            continue  # the same as with one output, some of which spill
        few = FEW_SPILLED.get((mode, length, target), 0)
        assert max(taken.spill_store_bytes, taken.spill_load_bytes) <= few, name
    if toolkit.find_tool("nvdisasm") is None or target != "sm_90":
        return
    one, two = (sum(path.per_128 for path in hot_path.hot_paths(p, True).values()) for p in (plan, found))
    assert one < two < 1.42 * one  # and not twice as much


@pytest.mark.slow
@pytest.mark.parametrize("length", [65_536, 1_048_576, 4_194_304])
@pytest.mark.parametrize("mode", MODES)
def test_sampled_blocks_of_long_transforms(length: int, mode: str, rng: np.random.Generator) -> None:
    module, ptx = built(twin_of(plan_for(mode, length)))
    samples = list(check_launches(module, ptx, int(rng.integers(2**31))))
    assert len(samples) == 3
    assert all(s.accuracy.passed for s in samples), samples

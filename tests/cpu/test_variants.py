"""Plans to be timed beside the planner's choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fftgen.errors import NoPlanError
from fftgen.planner import search
from fftgen.planner.cost import cost, in_one_launch
from fftgen.planner.gradient import backward
from fftgen.planner.launch import launches, together, workspace_elements
from fftgen.planner.one_launch import ALONE, one_launches
from fftgen.planner.order import same_spectrum
from fftgen.planner.plan import Plan
from fftgen.planner.variants import SLOWER, backward_variants, variants
from fftgen.planner.whole import (
    Clusters,
    cluster_kernels,
    cluster_sizes,
    clusters,
    share,
    whole_kernel,
    whole_kernels,
)
from fftgen.problem import Problem
from fftgen.targets import target

CHIP = target("sm_90")
SHAPE = 64, 192


def different(a: Plan, b: Plan) -> bool:
    """In kernels, or in the levels of twiddles."""
    return (a.kernels, a.stages) != (b.kernels, b.stages)


@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("length", [256, 1000, 4096, 65_536])
def test_the_choice_comes_first_and_no_two_are_alike(length: int, mode: str, chip: str) -> None:
    problem = Problem(mode, length, "bf16")
    found = variants(problem, target(chip), *SHAPE, 20)
    choice = search.plan(problem, chip)
    assert found[0].plan == choice
    assert found[0].exchangeable
    assert 2 <= len(found) <= 20
    made = [launches(v.plan, *SHAPE, length, together(v.plan, *SHAPE)) for v in found]
    shapes = [[(x.entry.rsplit("_", 1)[0], x.grid, x.block, x.cluster, x.items) for x in m] for m in made]
    alike = [(i, j) for i in range(len(found)) for j in range(i) if shapes[i] == shapes[j]]
    assert all(different(found[i].plan, found[j].plan) for i, j in alike)
    assert len({v.plan.digest for v in found}) == len(found)
    assert all(v.about != "the planner's choice" for v in found[1:])
    for v in found:
        assert v.plan.problem == problem
        assert v.plan.filter.kernels
        assert v.exchangeable == same_spectrum(choice, v.plan)
        assert v.expected > 0
    others = found[1 if choice.whole is None else 2 :]
    assert all(v.expected <= SLOWER * found[0].expected for v in others)
    seen = {way(v.plan) for v in found[: len(found) - len(others)]}
    ahead = [way(v.plan) not in seen and (seen.add(way(v.plan)) or True) for v in others]
    assert ahead == sorted(ahead, reverse=True), "every way to launch comes before a second plan of any"
    for part in (True, False):
        ranked = [v.expected for v, first in zip(others, ahead, strict=True) if first == part]
        assert ranked == sorted(ranked)


def way(plan: Plan) -> tuple[object, ...]:
    return (None,) if plan.whole is None else (plan.whole.warps, plan.whole.row, plan.cluster)


def test_long_transforms_vary_in_how_they_are_launched() -> None:
    found = variants(Problem("causal", 65_536, "bf16"), CHIP, *SHAPE, 200)
    own = [v.plan for v in found if v.plan.kernels == found[0].plan.kernels]
    assert found[1].plan == replace(found[0].plan, whole=None)
    assert found[1].about == "a launch for each stage"
    cuts = {(p.whole.warps, p.whole.row > 0, together(p, *SHAPE)) for p in own if p.whole}
    assert {(warps, c.size) for warps, held, c in cuts if c and not held} == {
        (8, 2), (8, 4), (8, 8), (16, 1), (16, 2), (16, 4), (16, 8), (8, 1)
    }  # fmt: skip
    assert {(warps, c.size) for warps, held, c in cuts if c and held} == {
        (8, 2), (8, 4), (8, 8), (16, 2), (16, 4), (16, 1)
    }  # fmt: skip
    assert len({way(v.plan) for v in found[:14]}) == 14
    assert any(p.chunk_bytes < found[0].plan.chunk_bytes and p.whole is None for p in own)


@pytest.mark.parametrize(("length", "other"), [(4096, "two levels"), (32_768, "one level")])
def test_twiddles_are_tried_in_one_level_and_in_two(length: int, other: str) -> None:
    found = variants(Problem("causal", length, "bf16"), CHIP, *SHAPE, 20)
    (variant,) = (v for v in found if v.about == f"twiddles in {other}")
    choice = found[0].plan
    assert variant.plan.kernels == choice.kernels
    split = choice.inner[0].rest if other == "one level" else 8 * max(4, choice.body.columns)
    assert variant.plan.inner[0].split == split != choice.inner[0].split
    assert variant.exchangeable


def test_few_are_given_where_few_are_asked_for() -> None:
    problem = Problem("causal", 65_536, "bf16")
    every = variants(problem, CHIP, *SHAPE, 100)
    assert variants(problem, CHIP, *SHAPE, 3) == every[:3]
    assert len(variants(problem, CHIP, *SHAPE, 1)) == 1
    with pytest.raises(NoPlanError):
        variants(problem, target("sm_75"), *SHAPE, 3)


def test_a_plan_that_says_its_clusters_gets_them() -> None:
    found = search.plan(Problem("causal", 65_536, "bf16"), CHIP)
    plan = replace(found, whole=whole_kernel(found, CHIP))
    assert plan.whole is not None
    assert "cluster" not in plan.to_json()
    for size in cluster_sizes(plan, CHIP):
        said = replace(plan, cluster=size)
        assert Plan.from_json(said.to_json()) == said
        assert said.digest != plan.digest
        places = CHIP.l2_bytes // (4 * plan.transform)
        there = CHIP.most_clusters(size, plan.whole.resident)
        assert clusters(said, 10_000) == Clusters(size, min(there, places))
        assert clusters(said, 1) is None
    assert clusters(replace(plan, cluster=8), 30) == Clusters(8, 30)


def test_what_clusters_leave_idle_is_in_the_time_of_one_launch() -> None:
    """Of eight blocks, one on a multiprocessor, an H200 has fifteen, of two on each 31 (Target.gpcs)."""
    for length, left in ((524_288, 132 / 120), (262_144, 264 / 248), (65_536, 1.0)):
        found = search.plan(Problem("causal", length, "bf16"), CHIP)
        price = cost(found, CHIP)
        best = one_launches(found, price, CHIP)[0]
        stages = in_one_launch(best.plan, price, CHIP)
        assert stages.predicted == stages.expected(1.0)
        alone = ALONE if length == 65_536 else 1.0  # a block each
        assert best.seconds == pytest.approx(stages.expected(left) * alone)
        slowest = [max(k.seconds, key=lambda name: k.seconds[name]) for k in stages.kernels]
        bound = [left if name not in ("L2", "device memory") else 1.0 for name in slowest]
        least = stages.showing + sum(k.time * by for k, by in zip(stages.kernels, bound, strict=True))
        assert alone * least <= best.seconds * 1.000001 <= alone * left * stages.predicted * 1.00001


def test_clusters_have_room_in_the_l2_and_chips_without_any_have_single_blocks() -> None:
    """Where the L2 has places for too few clusters of a size, more than half of the chip would idle."""
    for name in ("sm_80", "sm_90"):
        for length in (65_536, 1_048_576, 2_097_152):
            plan = search.plan(Problem("causal", length, "bf16"), name)
            for kernel in whole_kernels(plan, target(name)):
                sizes = cluster_sizes(replace(plan, whole=kernel), target(name))
                assert set(sizes) <= ({1} if name == "sm_80" else {1, 2, 4, 8})
                for size in sizes:
                    assert clusters(replace(plan, whole=kernel, cluster=size), 10_000) is not None
    assert (
        cluster_sizes(replace(search.plan(Problem("causal", 65_536, "bf16"), CHIP), whole=None), CHIP) == ()
    )
    assert whole_kernels(search.plan(Problem("causal", 4096, "bf16"), CHIP), CHIP) == ()


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("length", [4096, 65_536, 131_072, 262_144, 524_288])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_clusters_hold_transforms_that_their_shared_memory_takes(mode: str, length: int, name: str) -> None:
    """Rows of a transform, as many in each block, whole or in part; where whole, no place in the L2."""
    chip = target(name)
    plan = search.plan(Problem(mode, length, "bf16"), name)
    found = cluster_kernels(plan, chip)
    sizes = {(k.warps, k.resident, cluster_sizes(replace(plan, whole=k), chip)) for k in found}
    assert sizes == {
        ("sm_90", 65_536): {(8, 2, (2,)), (8, 2, (4,)), (8, 2, (8,)), (16, 1, (2,)), (16, 1, (4,))},
        ("sm_90", 131_072): {(8, 2, (4,)), (8, 2, (8,)), (16, 1, (2,)), (16, 1, (4,)), (16, 1, (8,))},
        ("sm_90", 262_144): {(8, 2, (8,)), (16, 1, (4,)), (16, 1, (8,))},
        ("sm_90", 524_288): {(16, 1, (8,))},
        ("sm_120", 65_536): {(8, 2, (4,)), (8, 2, (8,)), (16, 1, (2,)), (16, 1, (4,)), (16, 1, (8,))},
        ("sm_120", 131_072): {(16, 1, (4,)), (16, 1, (8,))},
        ("sm_120", 262_144): {(16, 1, (8,))},
    }.get((name, length), set())
    for kernel in found:
        (size,) = cluster_sizes(replace(plan, whole=kernel), chip)
        part = share(plan, kernel)
        assert 0.25 < part <= 1
        assert kernel.row * size == plan.stages[0].radix
        assert kernel.shared_bytes >= part * 4 * plan.transform / size
        assert chip.resident_blocks(kernel.warps, kernel.shared_bytes, 128) >= kernel.resident
        held = replace(plan, whole=kernel)
        most = clusters(held, 10_000)
        assert most == Clusters(size, chip.most_clusters(size, kernel.resident))
        places = 0 if part == 1 else 2 * plan.transform * most.total
        assert workspace_elements(held, 64, 192, most) == places < workspace_elements(held, 64, 192)
        assert clusters(held, 1) is None, "one transform would leave most of the chip idle"


@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
@pytest.mark.parametrize("length", [256, 2048, 4096, 32_768, 65_536])
def test_layouts_of_gradients_beside_the_choice(length: int, chip: str) -> None:
    """The choice first, then one of each kind; all for the same spectra, none twice."""
    problem = Problem("causal", length, "bf16")
    found = backward_variants(problem, target(chip), *SHAPE, 40, True)
    assert found[0].plan == backward(problem, chip)
    assert 2 <= len(found) <= 40
    assert len({v.plan.digest for v in found}) == len(found) == len({v.about for v in found})
    choice = search.plan(problem, chip)
    for v in found:
        assert v.plan.signals
        assert same_spectrum(choice, v.plan.plan)
        assert 0 < v.expected <= SLOWER * found[0].expected
        assert v.plan.plan.filter.kernels
    kinds = {
        (v.plan.kernel.warps, v.plan.kernel.resident, v.plan.together, v.plan.spectra_at >= 0) for v in found
    }
    early = {
        (v.plan.kernel.warps, v.plan.kernel.resident, v.plan.together, v.plan.spectra_at >= 0)
        for v in found[: 2 * len(kinds)]
    }
    assert early == kinds
    assert len(backward_variants(problem, target(chip), *SHAPE, 2, True)) == 2


@pytest.mark.parametrize(("length", "dtype", "chip"), [(4096, "fp32", "sm_90"), (4096, "fp16", "sm_75")])
def test_one_pass_that_has_no_layouts_is_said_to_have_none(length: int, dtype: str, chip: str) -> None:
    with pytest.raises(NoPlanError, match=rf"all gradients of .*{length}.* has no layouts"):
        backward_variants(Problem("causal", length, dtype), target(chip), *SHAPE, 9, True)

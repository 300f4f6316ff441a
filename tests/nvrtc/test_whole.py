"""Long transforms by one launch: clusters of blocks that take all stages of a transform, in the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import compiled
import numpy as np
import pytest
import torch
from calls import TORCH, built, call, check, draw, filters
from cases import slow, usually
from command_line import why_not
from torch import Tensor

from fftgen import emulate, hot_path, sass, toolkit
from fftgen.errors import InternalError
from fftgen.execute import Executable
from fftgen.planner import search, twins
from fftgen.planner.cost import cost, in_one_launch
from fftgen.planner.filter import Filter
from fftgen.planner.launch import workspace_elements
from fftgen.planner.plan import Plan
from fftgen.planner.whole import (
    Clusters,
    brought_in_place,
    cluster_kernels,
    full,
    held_kernel,
    share,
    whole_kernel,
)
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import SimulationError
from fftgen.source import Source
from fftgen.spectra import spectrum
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LENGTH = 65_536


@lru_cache(maxsize=4)
def planned(mode: str, length: int = LENGTH, dtype: str = "bf16", arch: str = "sm_90") -> Plan:
    """With rows in the L2."""
    found = search.plan(Problem(mode, length, dtype), arch)
    in_l2 = whole_kernel(found, target(arch))
    assert in_l2 is not None
    return replace(found, filter=Filter(), whole=in_l2)


def held(mode: str, length: int = LENGTH, dtype: str = "bf16", arch: str = "sm_90") -> Plan:
    """With a part of every row in the shared memory of a block by itself."""
    plan = planned(mode, length, dtype, arch)
    kernel = held_kernel(plan, target(arch))
    assert kernel is not None
    return replace(plan, whole=kernel)


def in_cluster(
    mode: str,
    length: int = LENGTH,
    dtype: str = "bf16",
    arch: str = "sm_90",
    *,
    warps: int = 16,
    size: int = 2,
) -> Plan:
    """The same with rows in the shared memory of ``size`` blocks of so many warps."""
    plan = planned(mode, length, dtype, arch)
    rows = plan.stages[0].radix // size
    found = (k for k in cluster_kernels(plan, target(arch)) if (k.warps, k.row) == (warps, rows))
    return replace(plan, whole=next(found))


def inputs(plan: Plan, rng: np.random.Generator, batch: int, channels: int, steps: int) -> dict[str, Tensor]:
    """A gated call with a skip term."""
    dtype = TORCH[plan.problem.dtype]
    k = filters(rng, channels, steps)
    given = {name: draw(rng, batch, channels, steps).to(dtype) for name in ("u", "in_gate", "out_gate")}
    return {**given, "k": k, "skip": torch.copysign(draw(rng, channels).float(), k[:, 0])}


def alike(plan: Plan, y: Tensor, z: Tensor) -> bool:
    """The same bits; of pairs nearly all: the squares by which two rows are brought to like norms are added
    up thread by thread, and a last bit of their ratio changes the rounding of some results."""
    return torch.equal(y, z) if plan.real_input else float((y != z).double().mean()) < 0.1


def run(plan: Plan, grouped: Clusters, rng: np.random.Generator, **given: Tensor) -> emulate.Simulated:
    """One launch, held against float64."""
    module, ptx = built(plan)
    y, simulated = emulate.convolve(module, **given, ptx=ptx, seed=int(rng.integers(2**31)), clusters=grouped)
    assert list(simulated.reports) == [plan.entry(plan.whole)]
    check(plan, y, given.pop("u"), given.pop("k"), **given)
    return simulated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "arch", "grouped", "batch"),
    [
        ("causal", "sm_90", Clusters(2, 1), 2),
        ("circular", "sm_90", Clusters(4, 1), 3),
        ("causal", "sm_80", Clusters(1, 2), 3),
        ("causal", "sm_90", Clusters(2, 2), 3),
        ("causal", "sm_90", Clusters(1, 3), 7),
        ("causal", "sm_90", Clusters(8, 1), 2),
        ("circular", "sm_90", Clusters(1, 2), 6),
        ("circular", "sm_80", Clusters(1, 2), 5),
        ("causal", "sm_89", Clusters(1, 2), 3),
        ("causal", "sm_100", Clusters(1, 2), 3),
        ("circular", "sm_120", Clusters(1, 2), 3),
    ],
)
def test_one_launch_gives_what_a_launch_for_each_stage_does(
    mode: str, arch: str, grouped: Clusters, batch: int, rng: np.random.Generator
) -> None:
    """More transforms than clusters: some draw again. An odd batch leaves the last pair half empty."""
    plan = planned(mode, arch=arch)
    given = inputs(plan, rng, batch, 1, LENGTH)
    module, ptx = built(plan)
    y, simulated = emulate.convolve(module, **given, ptx=ptx, clusters=grouped)
    assert list(simulated.reports) == [plan.entry(plan.whole)]
    rest = {name: x for name, x in given.items() if name not in "uk"}
    check(plan, y, given["u"], given["k"], **rest)
    assert alike(plan, y, call(plan, given["u"], given["k"], **rest))


@pytest.mark.parametrize(
    ("mode", "length", "dtype"),
    slow(
        [
            ("causal", 131_072, "fp16"),
            ("circular", 131_072, "bf16"),
            ("causal", 262_144, "bf16"),
            ("causal", 524_288, "bf16"),
            ("causal", 1_048_576, "bf16"),
        ]
    ),
)
def test_longer_transforms(mode: str, length: int, dtype: str, rng: np.random.Generator) -> None:
    """A transform in the clusters that a full chip takes it in."""
    plan = planned(mode, length, dtype)
    grouped = full(plan)
    assert grouped is not None
    assert grouped.size > 1
    run(plan, Clusters(grouped.size, 1), rng, **inputs(plan, rng, plan.rows_per_item, 1, length))


@pytest.mark.parametrize(
    ("mode", "dtype", "steps"), slow([("causal", "fp16", 40_008), ("circular", "fp16", 33_000)])
)
def test_shorter_signals_in_strided_tensors(
    mode: str, dtype: str, steps: int, rng: np.random.Generator
) -> None:
    plan = planned(mode, dtype=dtype)
    given = inputs(plan, rng, 2, 2, steps)
    for name in ("u", "in_gate", "out_gate"):
        given[name] = given[name].transpose(0, 1).contiguous().transpose(0, 1)
    run(plan, Clusters(2, 1), rng, **given)


@pytest.mark.slow
@pytest.mark.parametrize(("of", "blocks"), [(planned, 2), (in_cluster, 2), (held, 1)])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_two_results(mode: str, of: Callable[[str], Plan], blocks: int, rng: np.random.Generator) -> None:
    plan = twins.twin(planned(mode))
    assert plan is not None
    kernel = of(mode).whole
    assert kernel is not None
    plan = replace(plan, whole=brought_in_place(plan, kernel))
    module, ptx = built(plan)
    given = inputs(plan, rng, 2 * plan.rows_per_item, 1, LENGTH)
    u, k, gate = (given.pop(name) for name in ("u", "k", "out_gate"))
    y, twin, simulated = emulate.both(module, u, k, (gate, u), **given, ptx=ptx, clusters=Clusters(blocks, 1))
    assert list(simulated.reports) == [plan.entry(plan.whole)]
    check(plan, y, u, k, **given, out_gate=gate)
    check(plan, twin, u, k, **given, out_gate=u)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quiet", "tails", "spike", "1e-20"])
def test_signals_that_are_large_in_one_strip(name: str, rng: np.random.Generator) -> None:
    plan = planned("causal")
    u = draw(rng, 1, 1, LENGTH)
    if name == "quiet":  # all but some strips are zeros, or far below what fp16 holds beside the others
        columns = torch.arange(LENGTH) % plan.stages[0].rest
        u = torch.where(columns < 32, 0.0, torch.where(columns < 100, 1.0, 1e-9)) * u
    elif name == "tails":
        u = torch.from_numpy(rng.standard_t(2, u.shape))
    elif name == "spike":
        u[..., int(rng.integers(LENGTH // 2))] = 1e4
    else:
        u *= float(name)
    run(plan, Clusters(2, 1), rng, u=u.bfloat16(), k=filters(rng, 1, LENGTH))


@pytest.mark.slow
@pytest.mark.parametrize(("of", "blocks"), [(planned, 2), (in_cluster, 2), (held, 1)])
def test_a_row_that_is_not_finite_makes_itself_nan_and_nothing_else(
    of: Callable[[str], Plan], blocks: int, rng: np.random.Generator
) -> None:
    """The place of a transform in the workspace is taken by the next one."""
    plan = of("causal")
    module, ptx = built(plan)
    u = draw(rng, 2, 1, LENGTH).bfloat16()
    u[0, 0, int(rng.integers(LENGTH))] = float("inf")
    k = filters(rng, 1, LENGTH)
    y, _ = emulate.convolve(module, u, k, ptx=ptx, clusters=Clusters(blocks, 1))
    assert y[0].isnan().all()
    check(plan, y[1:], u[1:], k)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("mode", "length", "dtype", "arch", "warps", "size"),
    [
        ("causal", LENGTH, "bf16", "sm_90", 8, 4),
        ("causal", LENGTH, "fp16", "sm_120", 8, 8),
        *slow(
            [
                ("circular", LENGTH, "fp16", "sm_90", 16, 2),
                ("causal", LENGTH, "bf16", "sm_90", 16, 4),
                ("circular", LENGTH, "bf16", "sm_90", 8, 8),
                ("causal", LENGTH, "bf16", "sm_100", 16, 2),
                ("circular", LENGTH, "bf16", "sm_120", 16, 4),
                ("causal", 131_072, "bf16", "sm_90", 16, 4),
                ("circular", 131_072, "fp16", "sm_90", 8, 8),
                ("causal", 262_144, "bf16", "sm_90", 16, 8),
                ("circular", 262_144, "bf16", "sm_90", 16, 8),
                # In part.
                ("causal", LENGTH, "bf16", "sm_90", 8, 2),
                ("causal", 131_072, "bf16", "sm_90", 16, 2),
                ("circular", 131_072, "bf16", "sm_90", 16, 2),
            ]
        ),
    ],
)
def test_rows_in_shared_memory_give_the_same_bits(
    mode: str, length: int, dtype: str, arch: str, warps: int, size: int, rng: np.random.Generator
) -> None:
    """As rows that go through the L2, by one launch as well; two transforms, one after the other."""
    plan = in_cluster(mode, length, dtype, arch, warps=warps, size=size)
    assert plan.whole is not None
    all_there = share(plan, plan.whole) == 1
    assert (workspace_elements(plan, 9, 1, Clusters(size, 1)) == 0) == all_there
    given = inputs(plan, rng, 2 * plan.rows_per_item, 1, length - 8 * int(rng.integers(1, length // 32)))
    module, ptx = built(plan)
    y, simulated = emulate.convolve(module, **given, ptx=ptx, clusters=Clusters(size, 1))
    (report,) = simulated.reports.values()
    assert ("workspace" in report.counters.buffers) != all_there
    rest = {name: x for name, x in given.items() if name not in "uk"}
    check(plan, y, given["u"], given["k"], **rest)
    other, ptx = built(planned(mode, length, dtype, arch))
    assert alike(plan, y, emulate.convolve(other, **given, ptx=ptx, clusters=Clusters(1, 1))[0])


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("mode", "length", "dtype", "arch", "lines"),
    [
        ("causal", LENGTH, "bf16", "sm_90", 12),
        ("circular", LENGTH, "bf16", "sm_90", 12),
        ("causal", LENGTH, "fp16", "sm_80", 7),
        *slow(
            [
                ("circular", LENGTH, "fp16", "sm_90", 12),
                ("causal", LENGTH, "bf16", "sm_100", 12),
                ("circular", LENGTH, "bf16", "sm_80", 7),
                ("causal", 57_344, "bf16", "sm_90", 12),
                ("circular", 57_344, "bf16", "sm_90", 12),
            ]
        ),
    ],
)
def test_rows_in_part_in_shared_memory_give_the_same_bits(
    mode: str, length: int, dtype: str, arch: str, lines: int, rng: np.random.Generator
) -> None:
    """As rows that go through the L2, by one launch as well; two blocks take transforms of two channels."""
    plan = held(mode, length, dtype, arch)
    assert plan.whole is not None
    assert plan.whole.held == lines
    batch = 2 * plan.rows_per_item
    given = inputs(plan, rng, batch, 2, length - 8 * int(rng.integers(1, length // 32)))
    module, ptx = built(plan)
    y, simulated = emulate.convolve(module, **given, ptx=ptx, clusters=Clusters(1, 2))
    # The gate of results for each of four transforms, the next signal and its gate for all but the first two.
    (report,) = simulated.reports.values()
    brought = sum(n for name, n in report.counters.opcodes.items() if "prefetch" in name)
    assert brought == (4 + 2 * 2 if plan.real_input and target(arch).capability >= 90 else 0)
    rest = {name: x for name, x in given.items() if name not in "uk"}
    check(plan, y, given["u"], given["k"], **rest)
    other, ptx = built(planned(mode, length, dtype, arch))
    assert alike(plan, y, emulate.convolve(other, **given, ptx=ptx, clusters=Clusters(1, 1))[0])


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@pytest.mark.drawn(3)
@pytest.mark.parametrize("length", [LENGTH, *slow([131_072, 262_144])])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_nothing_is_put_by_in_loops_over_strips_and_rows(mode: str, length: int) -> None:
    """Up to three registers wait from one stage of a transform to the next, eight where rows are in the L2 or
    in part in shared memory. All kernels that ``tune`` times of 65 536 points."""
    plan, chip = planned(mode, length), target("sm_90")
    others = cluster_kernels(plan, chip) if length == LENGTH else ()
    for kernel in (plan.whole, held_kernel(plan, chip), *others):
        if kernel is None:
            continue
        one = replace(plan, whole=kernel)
        module = compiled.cubin(render(one), "sm_90")
        code = sass.codes(sass.disassemble(module.cubin))[one.entry(kernel)]
        there, rows, back = hot_path.whole_stages(code)
        part = share(plan, kernel)
        assert len(there) == len(back) == (2 if 0 < part < 1 else 1)
        for loop in (*there, rows, *back):
            # One is loaded with each strip of the way back where all its operands wait for their butterflies.
            few = 1 if loop in back and plan.stages[0].butterflies > 1 else 0
            assert code.count(loop, "LDL", "STL") <= few, kernel
        taken = module.resources[one.entry(kernel)]
        assert taken.registers <= 128
        assert max(taken.spill_store_bytes, taken.spill_load_bytes) <= (12 if part == 1 else 32), kernel


def test_rows_that_start_anywhere_take_a_launch_for_each_stage(rng: np.random.Generator) -> None:
    plan = planned("causal")
    module, ptx = built(plan)
    u = draw(rng, 1, 1, LENGTH + 1).bfloat16()[..., 1:]
    k = filters(rng, 1, LENGTH)
    y, simulated = emulate.convolve(module, u, k, ptx=ptx, clusters=Clusters(1, 1))
    assert plan.entry(plan.whole) not in simulated.reports
    check(plan, y, u, k)


# Barriers


CLUSTER, TEAM = "Cluster::barrier();", "team_barrier<WARPS>();"
# In circular mode one more of the first, behind the peaks.
SITES = [("causal", CLUSTER, i) for i in range(3)] + [("causal", TEAM, i) for i in range(3)]
SITES += [("circular", CLUSTER, i) for i in range(4)]
USUAL = [("causal", CLUSTER, 1), ("causal", TEAM, 0)]


def without(text: str, mode: str, barrier: str, number: int, sites: Sequence[tuple[str, str, int]]) -> str:
    """A source whose barrier of this number is not there."""
    parts = text.split(barrier)
    assert len(parts) == 1 + sum(site[:2] == (mode, barrier) for site in sites)
    return barrier.join(parts[: number + 1]) + barrier.join(["", *parts[number + 1 :]])[len(barrier) :]


def runs_without(plan: Plan, text: str, size: int, rng: np.random.Generator) -> None:
    """Two transforms by one cluster, with that source."""
    source = built(plan)[0].source
    changed = Source(source.name, text, source.headers, source.entries)
    module = replace(built(plan)[0], source=changed)
    u, k = draw(rng, 2 * plan.rows_per_item, 1, LENGTH).bfloat16(), filters(rng, 1, LENGTH)
    emulate.convolve(module, u, k, clusters=Clusters(size, 1))


@pytest.mark.parametrize(("mode", "barrier", "number"), usually(SITES, USUAL))
@pytest.mark.parametrize("size", [2, *slow([1])])
def test_no_barrier_can_be_dropped(
    size: int, mode: str, barrier: str, number: int, rng: np.random.Generator
) -> None:
    plan = planned(mode)
    text = without(built(plan)[0].source.text, mode, barrier, number, SITES)
    with pytest.raises((SimulationError, InternalError)):
        runs_without(plan, text, size, rng)


# One more behind the last transform: blocks whose memory others read stay.
CLUSTERED = [*SITES, ("causal", CLUSTER, 3), ("circular", CLUSTER, 4)]
HELD = [*((in_cluster, 2, site) for site in CLUSTERED), *((held, 1, site) for site in SITES)]


@pytest.mark.drawn(7)
@pytest.mark.parametrize(
    ("of", "size", "site"), usually(HELD, [one for one in HELD if one[2][0] == "causal"])
)
def test_no_barrier_of_rows_in_shared_memory_can_be_dropped(
    of: Callable[[str], Plan], size: int, site: tuple[str, str, int], rng: np.random.Generator
) -> None:
    plan = of(site[0])
    text = without(built(plan)[0].source.text, *site, CLUSTERED if of is in_cluster else SITES)
    with pytest.raises((SimulationError, InternalError)):
        runs_without(plan, text, size, rng)


# What a call takes


@pytest.mark.parametrize(
    ("of", "calls"),
    [
        (planned, [(200, (264, 2)), (33, (256, 8)), (20, (160, 8)), (2, None)]),
        (held, [(1000, (132, 1)), (132, (132, 1)), (106, (106, 1)), (105, None), (200, None)]),
    ],
)
def test_a_call_of_many_rows_is_one_launch_and_one_of_few_is_not(
    of: Callable[[str], Plan], calls: list[tuple[int, tuple[int, int] | None]]
) -> None:
    """As ``Executable`` decides for a GPU: no kernel runs here."""
    plan = of("causal")
    made: list[tuple[str, int, int]] = []

    class Noted:
        def launch(
            self, entry: str, grid: int, block: int, shared: int, params: bytes, cluster: int = 1
        ) -> None:
            made.append((entry, grid, cluster))

    executable = Executable(plan, torch.zeros(1, dtype=torch.uint8))
    k = spectrum(plan, torch.ones(1, 1))
    for batch, expected in calls:
        made.clear()
        executable(Noted(), torch.zeros(batch, 1, LENGTH, dtype=torch.bfloat16), k.planes, k.scale)
        if expected is None:
            assert [entry for entry, *_ in made] == [plan.entry(kernel) for kernel in plan.kernels]
        else:
            assert made == [(plan.entry(plan.whole), *expected)]


WORKSPACE = [("workspace", "loads", "workspace_loaded"), ("workspace", "stores", "workspace_stored")]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("of", "blocks"), [(planned, 2), (in_cluster, 2), (held, 1)])
@pytest.mark.parametrize("mode", ["causal", *slow(["circular"])])
def test_one_launch_moves_what_the_model_says(
    mode: str, of: Callable[[str], Plan], blocks: int, rng: np.random.Generator
) -> None:
    """Columns write the workspace, rows read and write it, columns read it, in whole sectors, or a quarter of
    it, or half of it goes to the other block and half comes from there; signals move once, but for those that
    share a transform: peaks come first. Two transforms, one after the other."""
    plan = of(mode)
    chip = target(plan.target)
    simulated = run(plan, Clusters(blocks, 1), rng, **inputs(plan, rng, 2 * plan.rows_per_item, 1, LENGTH))
    (report,) = simulated.reports.values()
    found = in_one_launch(plan, cost(plan, chip), chip)
    works = [kernel.work for kernel in found.kernels]
    assert sum(report.counters.tensor.values()) == 2 * 2 * found.tensor_ops
    assert found.device_bytes == sum(w.device_bytes for w in works) == 4 * LENGTH * plan.rows_per_item
    for name, kind, what in [
        ("u", "loads", "loaded"),
        ("in_gate", "loads", "loaded"),
        ("out_gate", "loads", "stored"),
        ("y", "stores", "stored"),
        ("spectrum", "loads", "spectrum"),
        *WORKSPACE[: 0 if of is in_cluster else 2],
    ]:
        accesses = getattr(report.counters.buffers[name], kind)
        assert accesses.bytes == 2 * sum(getattr(w, what) for w in works), name
        assert accesses.units == accesses.least == accesses.bytes // 32, name
    passed = report.counters.remote_loaded, report.counters.remote_stored
    remote = LENGTH * 4 // 2 if of is in_cluster else 0
    assert passed == (2 * remote, 2 * remote)
    assert sum(w.remote for w in works) == 2 * remote
    wavefronts = report.counters.shared_loads + report.counters.shared_stores
    assert wavefronts.units <= 1.05 * wavefronts.least

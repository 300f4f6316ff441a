"""Ring 3: what the cost model says a kernel does, beside what the simulator and the disassembly count.

Operations and bytes exactly, kernel by kernel; instructions within the band that the formula claims.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import calls
import pytest
import torch
from cases import slow
from command_line import why_not

from fftgen import emulate, hot_path, nvrtc, portfolio, roofline, sass, toolkit
from fftgen.cache import Cache
from fftgen.emulate import Simulated
from fftgen.errors import InternalError, ToolchainError
from fftgen.pipeline import Built, build_plan
from fftgen.planner import fragments, mma_rules, search
from fftgen.planner.cost import cost, in_one_launch, work_of
from fftgen.planner.filter_work import filter_work
from fftgen.planner.launch import items_per_channel
from fftgen.planner.plan import Plan
from fftgen.planner.sections import sectioned
from fftgen.planner.whole import cluster_kernels, held_kernel, whole_kernel
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import Counters
from fftgen.source import Source
from fftgen.storage import storage
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
needs_disassembler = pytest.mark.skipif(
    toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed"
)

BATCH, CHANNELS = 4, 2
# The formula over the compiled code, by the kind of kernel (planner/instructions.py).
BLOCK, WARP, DEVICE = 0.10, 0.07, 0.08
ONE = 0.08  # of all stages together in one launch
FITTED = (13, 5)  # 13.0 takes 2 % more instructions
FILTER = (0.65, 1.05)  # machine instructions by formula over PTX instructions


def shaped(mode: str, factors: tuple[int, ...], device: int, engine: str, dtype: str = "bf16") -> Plan:
    return search.with_shape(Problem(mode, math.prod(factors), dtype), "sm_90", factors, device, engine)


def in_sections(length: int, points: int) -> Plan:
    found = sectioned(Problem("causal", length, "bf16"), points, lambda p: search.plan(p, "sm_90"))
    assert found is not None
    return found


PLANS = (
    search.plan(Problem("causal", 256, "bf16"), "sm_90"),
    search.plan(Problem("circular", 768, "bf16"), "sm_90"),
    search.plan(Problem("circular", 1024, "fp16"), "sm_80"),
    search.plan(Problem("causal", 1000, "fp16"), "sm_90"),
    search.plan(Problem("causal", 2048, "fp16"), "sm_90"),
    search.plan(Problem("circular", 2048, "bf16"), "sm_90"),
    search.plan(Problem("causal", 4096, "bf16"), "sm_90"),
    search.plan(Problem("causal", 8192, "fp16"), "sm_75"),
    shaped("causal", (16, 16, 16), 1, "mma"),
    shaped("circular", (16, 16, 32), 1, "mma"),
    shaped("circular", (16, 16, 16, 16), 1, "mma"),
    shaped("causal", (16, 16), 0, "mma:bf16-fp32"),
    shaped("causal", (16, 16, 16), 0, "mma:bf16-fp32"),
    shaped("causal", (16, 16, 16), 1, "mma:bf16-fp32"),
    shaped("causal", (16, 16, 16), 1, "wmma"),
    shaped("circular", (16, 16, 16, 16), 2, "wmma", "fp16"),
    shaped("circular", (16, 16, 16), 0, "wmma", "fp16"),
    shaped("causal", (16, 16), 0, "wmma", "fp16"),
    in_sections(16_384, 8192),
    in_sections(24_576, 8192),
    in_sections(24_576, 12_288),
    search.plan(Problem("circular", 1000, "bf16"), "sm_90"),  # folds
    search.plan(Problem("circular", 1000, "fp16"), "sm_75"),
)


@lru_cache(maxsize=2)  # tests come plan by plan
def simulated(plan: Plan, gated: bool = False) -> Simulated:
    """A call of full length. The filter has a tone that stands out: of a spectrum by columns and
    rows all rows but that one are levelled."""
    generator = torch.Generator().manual_seed(5)
    length = plan.problem.length
    u = torch.randn(BATCH, CHANNELS, length, generator=generator).to(storage(plan))
    k = torch.randn(CHANNELS, length, generator=generator) + 100
    gates = {name: u.flip(-1) for name in ("in_gate", "out_gate") if gated}
    return emulate.convolve(calls.built(plan)[0], u, k, **gates)[1]


def moved(counters: Counters, buffer: str, kind: str) -> int:
    found = counters.buffers.get(buffer)
    return int(getattr(found, kind).bytes) if found else 0


@pytest.mark.drawn(7, together="counted plans")
@pytest.mark.parametrize("plan", PLANS, ids=str, scope="module")
def test_every_kernel_does_what_the_model_says(plan: Plan) -> None:
    transforms = CHANNELS * items_per_channel(plan, BATCH)
    each = 2 if plan.engine == "mma" else 1
    for kernel in plan.kernels:
        work = work_of(plan, kernel, target(plan.target))
        counters = simulated(plan).reports[plan.entry(kernel)].counters
        assert sum(counters.tensor.values()) == each * transforms * work.tensor_ops, kernel.label
        for buffer, kind, predicted in (
            ("u", "loads", work.loaded),
            ("y", "stores", work.stored),
            ("workspace", "loads", work.workspace_loaded),
            ("workspace", "stores", work.workspace_stored),
            ("spectrum", "loads", work.spectrum),
        ):
            assert moved(counters, buffer, kind) == transforms * predicted, (kernel.label, buffer, kind)


@pytest.mark.drawn(6)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gates_are_read_as_often_as_the_model_says(plan: Plan) -> None:
    transforms = CHANNELS * items_per_channel(plan, BATCH)
    for kernel in plan.kernels:
        plain, work = (work_of(plan, kernel, target(plan.target), gated) for gated in (False, True))
        counters = simulated(plan, True).reports[plan.entry(kernel)].counters
        loaded = [moved(counters, name, "loads") for name in ("in_gate", "out_gate")]
        assert sum(loaded) == transforms * work.gates, kernel.label
        assert moved(counters, "u", "loads") == transforms * work.loaded
        assert work.l2_bytes - plain.l2_bytes == work.gates
        assert work.tensor_ops == plain.tensor_ops
        if kernel.role == "columns" and any(k.role == "peaks" for k in plan.kernels):
            assert work.device_bytes == plain.device_bytes  # what the kernel before has read
        else:
            assert transforms * (work.device_bytes - plain.device_bytes) <= sum(loaded)


PIPED = (
    *[p for p in PLANS if p.engine == "mma" and p.problem.length == p.transform],
    search.plan(Problem("causal", 1024, "bf16"), "sm_90"),
    shaped("causal", (32, 16, 32), 0, "mma"),  # twiddles in two levels, here and below
    shaped("circular", (16, 32, 32), 0, "mma"),
    shaped("causal", (80, 16, 16), 0, "mma"),
)


@pytest.mark.drawn(8)
@pytest.mark.parametrize("plan", PIPED, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_what_passes_the_pipe_of_shared_memory_is_what_the_model_says(gated: bool, plan: Plan) -> None:
    """Beside tables that blocks copy to shared memory, once each, and peaks of rows, below a hundredth; of
    channels abreast those of each."""
    transforms = CHANNELS * items_per_channel(plan, BATCH)
    kernel = plan.body
    report = simulated(plan, gated).reports[plan.entry(kernel)]
    counters = report.counters
    copied = 2 * report.blocks * fragments.copied(plan.tables)  # loaded, and stored
    shared = counters.shared_loads.bytes + counters.shared_stores.bytes
    found = shared + moved(counters, "tables", "loads") + moved(counters, "spectrum", "loads") - copied
    work = work_of(plan, kernel, target(plan.target), gated)
    brought = 0
    if kernel.brought:  # on their way past the pipe, but into shared memory: signals, and of gates as many
        brought = work.loaded + (work.gates if kernel.brought > 2 else min(work.loaded, work.gates))
    assert transforms * (work.shared_bytes + brought) == pytest.approx(found, rel=0.01 * plan.abreast)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("plan", [p for p in PIPED if p.device_stages], ids=str)
def test_tables_that_strips_load_are_what_the_model_says(plan: Plan) -> None:
    """A warp has one strip here, and loads the twiddles that it would keep."""
    transforms = CHANNELS * items_per_channel(plan, BATCH)
    for role in ("columns", "columns_inverse"):
        kernel = plan.kernel(role)
        report = simulated(plan).reports[plan.entry(kernel)]
        width = plan.kernel("columns").columns
        strips = transforms * plan.stages[0].rest // (8 * width)
        kept = 4 * 8 * width * plan.stages[0].radix if role in mma_rules.steady(plan).twiddles else 0
        assert report.blocks * kernel.warps >= strips
        found = moved(report.counters, "tables", "loads") - strips * kept
        assert found == transforms * work_of(plan, kernel, target(plan.target)).shared_bytes


@pytest.mark.drawn(3)
@pytest.mark.parametrize("plan", [p for p in PIPED if p.device_stages], ids=str)
def test_gates_of_strips_are_read_in_shared_memory_as_the_model_says(plan: Plan) -> None:
    """Each once; they are stored there as they come."""
    transforms = CHANNELS * items_per_channel(plan, BATCH)
    kernel = plan.kernel("columns_inverse")
    assert kernel.brought == 1
    counters = simulated(plan, True).reports[plan.entry(kernel)].counters
    plain, work = (work_of(plan, kernel, target(plan.target), gated) for gated in (False, True))
    gates = transforms * work.gates
    assert counters.shared_loads.bytes == counters.shared_stores.bytes == gates
    assert transforms * (work.shared_bytes - plain.shared_bytes) == gates
    assert counters.shared_loads.units == counters.shared_stores.units == gates // 128  # without conflicts


@pytest.mark.drawn(7, together="counted plans")
@pytest.mark.parametrize("plan", PLANS, ids=str, scope="module")
def test_every_filter_kernel_does_what_the_model_says(plan: Plan) -> None:
    """Of sections, all distances of every channel at once."""
    assert plan.filter.kernels
    spectra = CHANNELS * plan.distances
    for kernel in plan.filter.kernels:
        work = filter_work(plan, kernel, target(plan.target))
        counters = simulated(plan).filter_reports[plan.filter_entry(kernel)].counters
        planes, scale = (moved(counters, f"filter_{name}", "stores") for name in ("planes", "scale"))
        fetched, put = (moved(counters, "filter_workspace", kind) for kind in ("loads", "stores"))
        peaks = moved(counters, "filter_peaks", "loads")
        if kernel.role == "filter_level":  # a second time, and from the L2
            fetched += peaks + moved(counters, "filter_planes", "loads")
            put, planes = put + planes, 0
        shared = counters.shared_loads.bytes + counters.shared_stores.bytes
        twiddles = moved(counters, "filter_tables", "loads")
        taps = moved(counters, "filter", "loads") / spectra
        assert 0 <= taps - work.loaded <= (8 if plan.sections > 1 else 0), kernel.role  # on average
        assert planes + scale == spectra * work.stored, kernel.role
        assert fetched == spectra * work.workspace_loaded, kernel.role
        assert put == spectra * work.workspace_stored, kernel.role
        assert shared + twiddles == spectra * work.shared_bytes, kernel.role
        ratio = spectra * work.instructions / counters.total_instructions
        assert FILTER[0] < ratio < FILTER[1], f"{kernel.role}: {ratio:.2f}"


def test_short_filters_are_read_as_far_as_they_go() -> None:
    plan = shaped("causal", (16, 16, 16), 0, "mma")
    _, found = emulate.convolve(
        calls.built(plan)[0], torch.ones(1, 2, 4096).to(storage(plan)), torch.ones(2, 77)
    )
    (kernel,) = plan.filter.kernels
    counters = found.filter_reports[plan.filter_entry(kernel)].counters
    assert moved(counters, "filter", "loads") == 2 * filter_work(plan, kernel, target("sm_90"), 77).loaded


@needs_disassembler
@pytest.mark.parametrize("length", [65_536, 1_048_576, *slow([262_144, 4_194_304])])
def test_machine_code_stores_the_workspace_whole(length: int) -> None:
    """PTX says one thing and the assembler may do another: words apart would be written sector by sector."""
    plan = search.plan(Problem("causal", length, "bf16"), "sm_90")
    source = hot_path.specialised(render(plan), length, False)
    found = sass.codes(sass.disassemble(nvrtc.compile_cubin(source, "sm_90").image))
    for role in ("columns", "rows"):
        kernel = plan.kernel(role)
        code = found[plan.entry(kernel)]
        loop = max(code.loops, key=lambda x: x[1] - x[0])
        wide = ("STG.E.128",) if kernel.columns >= 4 or role == "rows" else ("STG.E.64",)
        stores = code.count(loop, "STG")
        peaks = 1 if role == "columns" and plan.strip_peaks else 0
        assert stores > 2
        assert code.count(loop, *wide) == stores - peaks


@needs_disassembler
@pytest.mark.drawn(8)
@pytest.mark.parametrize("problem", [p for p in portfolio.PROBLEMS if p.dtype != "fp32"], ids=str)
@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_80"])])
@pytest.mark.parametrize("gated", [False, *slow([True])])
def test_the_formula_for_issue_slots_is_near_the_compiled_code(
    gated: bool, name: str, problem: Problem
) -> None:
    """Kernels of the portfolio whose machine instructions can be counted."""
    if nvrtc.version() < FITTED:
        pytest.skip("the formula is fitted to the code of a later compiler")
    plan = search.plan(problem, name)
    found = hot_path.hot_paths(plan, gated)
    assert found
    assert any(role.startswith("columns") for role in found) == bool(plan.device_stages)
    for role, path in found.items():
        compiled = path.per_transform(plan.transform)
        ratio = work_of(plan, plan.kernel(role), target(name), gated).instructions / compiled
        kind = DEVICE if role.startswith("columns") else BLOCK if plan.block_stage else WARP
        assert abs(ratio - 1) < kind, f"{plan}: {role} {ratio:.3f}"


@needs_disassembler
@pytest.mark.drawn(3)
@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_80"])])
@pytest.mark.parametrize("length", [65_536, *slow([131_072, 262_144, 1_048_576])])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_the_formula_is_near_the_code_of_the_one_launch(mode: str, length: int, name: str) -> None:
    """Rows in the L2, and in part or all in shared memory; stages together, without what looks at pairs."""
    if nvrtc.version() < FITTED:
        pytest.skip("the formula is fitted to the code of a later compiler")
    chip = target(name)
    plan = search.plan(Problem(mode, length, "bf16"), chip)
    for kernel in (whole_kernel(plan, chip), held_kernel(plan, chip), *cluster_kernels(plan, chip)[:1]):
        if kernel is None:
            continue
        one = replace(plan, whole=kernel)
        counted = sum(p.per_transform(plan.transform) for p in hot_path.whole_hot_paths(one, False).values())
        price = in_one_launch(one, cost(one, chip), chip)
        planned = sum(k.work.instructions for k in price.kernels if k.name != "peaks")
        assert abs(planned / counted - 1) < ONE, f"{one} {kernel}: {planned / counted:.3f}"


@pytest.fixture(scope="module")
def built(session_cache: Path) -> Built:
    return build_plan(search.plan(Problem("causal", 1024, "bf16"), "sm_90"), Cache(session_cache))


@needs_disassembler
def test_a_build_is_judged_by_its_own_code(built: Built) -> None:
    found = roofline.of_built(built, (8, 16))
    plain = roofline.of_plan(built.plan, (8, 16))
    (kernel,), (planned,) = found.convolution.kernels, plain.convolution.kernels
    path = hot_path.hot_paths(built.plan, False)["convolve"]
    assert found.compiled == ("convolve",)
    assert plain.compiled == ()
    assert kernel.work.instructions == path.per_transform(1024) != planned.work.instructions
    assert kernel.work.device_bytes == planned.work.device_bytes
    registers = built.resources[built.plan.name].registers
    warps = built.plan.body.warps
    assert kernel.resident == 65_536 // (-(-registers // 8) * 8 * 32) // warps * warps
    assert found.floor(found.convolution) == pytest.approx(4 * 1024 / 4.3e12)
    assert found.fraction(found.convolution) == pytest.approx(
        found.floor(found.convolution) / found.convolution.predicted
    )
    assert found.call is not None
    assert found.call.launches == 1


def test_without_a_disassembler_the_formula_stays_and_says_so(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ToolchainError("nvdisasm was found neither here nor there")

    monkeypatch.setattr("fftgen.roofline.hot_paths", missing)
    found = roofline.of_built(built)
    assert found.compiled == ()
    assert "formula: nvdisasm was found neither" in found.note
    plain = roofline.of_plan(built.plan).convolution.kernels[0]
    assert found.convolution.kernels[0].work == plain.work


def test_a_source_without_our_entry_points_is_not_counted(built: Built) -> None:
    other = Source("x.cu", built.source.text.replace("const Args<T> args", "Args<T> args"), {}, ())
    with pytest.raises(InternalError, match=r"x\.cu has no entry point"):
        hot_path.specialised(other, 1024, False)

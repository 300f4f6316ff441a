"""Long rows by themselves, a launch for each stage: strips of columns, each scaled by its own peak."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from calls import TORCH, built, call, check, draw, filters
from cases import slow, usually
from command_line import why_not
from hard_signals import PARTNERS, judge_rows_alone, row_of_a_pair
from torch import Tensor

from fftgen import emulate, execute, nvrtc
from fftgen.planner import search
from fftgen.planner.gradient import backward
from fftgen.planner.launch import launches
from fftgen.planner.mma_kernels import ratio_pitch
from fftgen.planner.mma_rules import steady
from fftgen.planner.plan import SCALED, Plan, Stage
from fftgen.planner.search import with_shape
from fftgen.planner.whole import Clusters
from fftgen.planner.work import kernel_work
from fftgen.problem import Problem
from fftgen.render import render, render_gradient
from fftgen.simulator import SimulationError
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LENGTH = 65_536
UNEVEN = ("quiet", "columns", "ramp")


def staged(dtype: str = "bf16", arch: str = "sm_90", *factors: int) -> Plan:
    factors = factors or (16, 16, 16, 16)
    plan = with_shape(Problem("causal", int(np.prod(factors)), dtype), arch, factors, 1, "mma")
    assert plan.strip_peaks
    return plan


def uneven(rng: np.random.Generator, name: str, plan: Plan) -> Tensor:
    """A row whose strips are of unlike sizes.

    "quiet": ones, what fp16 does not hold beside them, and zeros; "columns": all in one; "ramp": 1e-6 to 1e3.
    """
    column = torch.arange(plan.transform) % plan.stages[0].rest
    if name == "quiet":
        size = torch.where(column < 32, 0.0, torch.where(column < 100, 1.0, 1e-9))
    elif name == "columns":
        size = (column // 32 == int(rng.integers(plan.stages[0].rest // 32))).double()
    else:
        size = 10.0 ** (9 * column / plan.stages[0].rest - 6)
    return draw(rng, plan.transform) * size


@pytest.mark.parametrize(
    ("dtype", "arch"), usually([("bf16", "sm_90"), ("fp16", "sm_90"), ("bf16", "sm_80")], [("bf16", "sm_90")])
)
def test_every_row_is_as_exact_whatever_its_strips(dtype: str, arch: str, rng: np.random.Generator) -> None:
    """Zeros come out zero, what is not finite NaN, and all other rows within the bounds of white noise."""
    plan = staged(dtype, arch)
    rows = [row_of_a_pair(rng, "1" if name == "white" else name, LENGTH) for name in PARTNERS[dtype]]
    rows += [uneven(rng, name, plan) for name in UNEVEN if dtype == "bf16" or name == "columns"]
    u = torch.stack(rows)[:, None].to(TORCH[dtype])
    decay = torch.exp(-8 * torch.arange(LENGTH) / LENGTH)
    k = filters(rng, 1, LENGTH) / 8
    k += torch.copysign(k.norm(), k.sum()) * decay / decay.sum()  # lest a mean is cancelled
    judge_rows_alone(plan, call(plan, u, k), u, k, SCALED)


def test_chunks_and_rows_that_start_anywhere_give_the_same_bits(rng: np.random.Generator) -> None:
    """Two rows at a time go through the workspace: peaks of strips are found by their place there."""
    plan = staged()
    u = (draw(rng, 3, 1, LENGTH) * torch.tensor([1e-3, 1.0, 1e4])[:, None, None]).bfloat16()
    k = filters(rng, 1, LENGTH)
    y = call(plan, u, k)
    judge_rows_alone(plan, y, u, k, SCALED)
    small = replace(plan, chunk_bytes=2 * 4 * LENGTH)
    assert [launch.items for launch in launches(small, 3, 1, LENGTH)] == [2, 2, 2, 1, 1, 1]
    off = torch.zeros(3, 1, LENGTH + 3, dtype=u.dtype)
    off[..., 3:] = u
    assert torch.equal(call(small, off[..., 3:], k), y)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("gated", [False, True])
def test_what_is_copied_is_read_once_and_meets_no_conflicts(gated: bool, rng: np.random.Generator) -> None:
    """As the model says, in both kernels of columns."""
    plan = staged("bf16", "sm_90", 32, 16, 16, 16)
    u, k = draw(rng, 1, 1, plan.transform).bfloat16(), filters(rng, 1, 100)
    gates = {"in_gate": u, "out_gate": u} if gated else {}
    module, ptx = built(plan)
    reports = emulate.convolve(module, u, k, **gates, ptx=ptx)[1].reports
    for kernel, brought in ((plan.kernel("columns"), 2), (plan.kernel("columns_inverse"), 1)):
        assert kernel.brought == brought
        counters = reports[plan.entry(kernel)].counters
        work = kernel_work(plan, kernel, target(plan.target), gated)
        copied = work.gates + (work.loaded if kernel.role == "columns" else 0)
        assert counters.shared_loads.bytes == counters.shared_stores.bytes == copied
        assert counters.shared_loads.units == counters.shared_stores.units == copied // 128
        tables = counters.buffers["tables"].loads.bytes
        held = 4 * plan.transform if kernel.role in steady(plan).twiddles else 0  # a warp has one strip here
        assert work.shared_bytes == tables - held + copied


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    ("dtype", "arch", "radix"),
    [("bf16", "sm_90", 32), ("fp16", "sm_80", 32), *slow([("bf16", "sm_120", 32), ("bf16", "sm_90", 64)])],
)
def test_strips_come_one_after_another_while_the_one_before_is_computed(
    dtype: str, arch: str, radix: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a chip so small that each warp has several. Signals that end anywhere, with gates and without, give
    the bits that they give where each strip has a warp of its own."""
    plan = staged(dtype, arch, radix, 16, 16, 16)
    kernel = plan.kernel("columns")
    assert kernel.brought == 2
    length = plan.transform - 8 * int(rng.integers(1, plan.transform // 24))
    u = draw(rng, 2, 1, length).to(TORCH[dtype])
    k = filters(rng, 1, length)
    gates = {"in_gate": u.flip(-1), "out_gate": u.flip(-1)} if rng.integers(2) else {}
    module, ptx = built(plan)
    wide, _ = emulate.convolve(module, u, k, **gates, ptx=ptx)
    check(plan, wide, u, k, **gates)
    chip = target(arch)
    monkeypatch.setattr(execute, "chip_of", lambda name, _: chip.on(1, chip.l2_bytes))
    (launch, *_) = launches(plan, 2, 1, length, None, chip.on(1, chip.l2_bytes))
    strips = 2 * plan.stages[0].rest // 32
    assert launch.run == -(-strips // (kernel.warps * kernel.resident)) > 1
    assert torch.equal(emulate.convolve(module, u, k, **gates, ptx=ptx)[0], wide)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("role", ["columns", "whole"])
@pytest.mark.parametrize("dropped", ["wait<0>();", "__syncwarp();  // what others"])
def test_nothing_is_read_before_it_has_come(dropped: str, role: str, rng: np.random.Generator) -> None:
    """Neither what a thread has asked for itself, nor what others have."""
    plan = search.plan(Problem("causal", 131_072, "bf16"), "sm_90")
    module, source = built(plan)[0], built(plan)[0].source
    kernel = plan.whole if role == "whole" else plan.kernel(role)
    assert kernel is not None
    head, entry, body = source.text.partition(f"{plan.entry(kernel)}(")
    assert dropped in body
    changed = replace(source, text=head + entry + body.replace(dropped, "// ", 1))
    u, k = draw(rng, 1, 1, plan.transform).bfloat16(), filters(rng, 1, 100)
    clusters = Clusters(4, 1) if role == "whole" else None
    with pytest.raises(SimulationError, match=r"scaled_rows\.cuh"):
        emulate.convolve(replace(module, source=changed), u, k, clusters=clusters)


def accesses(text: str, of: str) -> list[str]:
    """The loads or stores of device memory in PTX."""
    return re.findall(rf"^\s*(?:@%p\d+ )?({of}\.global[.\w:]*)", text, re.M)


def test_signals_make_room_in_the_l2_for_the_workspace() -> None:
    """Signals and gates are evicted first; workspace, results, spectrum and tables are not, nor is what
    kernels of other plans read twice, or have no workspace for."""
    plan = search.plan(Problem("causal", LENGTH, "bf16"), "sm_90")
    assert plan.whole is not None
    text = emulate.line_ptx(built(plan)[0])
    signals = [x for x in accesses(text, "ld") if "L1::no_allocate" in x]
    assert signals
    assert all("L2::cache_hint" in x for x in signals)
    copies = re.findall(r"cp\.async\.c[ag][.\w:]*", text)
    assert copies
    assert all("L2::cache_hint" in x for x in copies)
    assert not [x for x in accesses(text, "ld") if "L2::cache_hint" in x and x not in signals]
    assert "st.global.v4.u32" in accesses(text, "st")  # workspace, and results
    assert not [x for x in accesses(text, "st") if "L2::cache_hint" in x]
    assert "createpolicy.fractional.L2::evict_first.b64" in text
    every = backward(plan.problem, "sm_90")
    assert every is not None
    others = (
        render_gradient(every),
        render(search.plan(Problem("circular", LENGTH, "bf16"), "sm_90")),  # looked at first
        render(search.plan(Problem("causal", 4096, "bf16"), "sm_90")),
    )
    for source in others:
        assert "L2::cache_hint" not in nvrtc.compile_ptx(source, "compute_90")


def test_ratios_of_strips_meet_in_no_bank(rng: np.random.Generator) -> None:
    """A row of 1024 columns has 32 strips: four of them would start in one bank."""
    plan = staged("bf16", "sm_90", 16, 16, 32, 32)
    module, ptx = built(plan)
    u, k = uneven(rng, "ramp", plan)[None, None].bfloat16(), filters(rng, 1, plan.transform)
    y, simulated = emulate.convolve(module, u, k, ptx=ptx)
    judge_rows_alone(plan, y, u, k, SCALED)
    rows = simulated.reports[plan.entry(plan.body)].counters
    assert rows.shared_loads.units == rows.shared_loads.least


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("columns", [128, 256, 384, 512, 768, 1024, 1536, 2048])
def test_rows_of_ratios_lie_in_banks_of_their_own(columns: int, width: int) -> None:
    """What a warp reads at a time, for strips of 8 columns a thread of the block's, 4 and 2 (strips.cuh)."""
    pitch = ratio_pitch(Stage(16, columns, "block", 0.25, columns), width)
    for own, first in itertools.product((8, 4, 2), range(0, columns, 64)):
        lanes = range(32)
        words = {lane % 4 * pitch + (first // own + lane // 4) * own // (8 * width) for lane in lanes}
        assert len({word % 32 for word in words}) == len(words)

"""Ring 3: what the cost model says a gradient's kernels do, beside what the simulator counts."""

from __future__ import annotations

import pytest
import torch
from calls import built
from command_line import why_not
from traffic import moved

from fftgen import emulate, hot_path, toolkit
from fftgen.gradient import Needed
from fftgen.planner import gradient_plan
from fftgen.planner.call_cost import gradient_call
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_launch import launches
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import SIDES, gradient_cost, gradient_work, side_work
from fftgen.planner.work import Work
from fftgen.problem import Problem
from fftgen.simulator import Report
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

BATCH = 4
# A warp's transforms, several and one; blocks that take both signals together, of two channels or of one,
# with all or a part of the sum in shared memory, and one after the other; columns by butterflies, of both
# signals at a time and in turn; the device stage.
LENGTHS = (256, 512, 1024, 2048, 4096, 12_288, 16_384, 20_480, 32_768, 65_536)
SIGNALS_AND_GATES = ("u", "v_u", "in_gate", "v_in_gate", "v_gate", "d_u_gate", "d_in_gate_gate")
RESULTS = ("d_u", "d_in_gate", "d_out_gate")
SIGNALS = pytest.mark.parametrize("signals", [False, True], ids=["of the filter", "all"])


def planned(length: int, signals: bool) -> Gradient:
    problem = Problem("causal", length, "bf16")
    found = backward(problem, "sm_90") if signals else gradient(problem, "sm_90")
    assert found is not None
    return found


@pytest.mark.drawn(7)
@SIGNALS
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_kernel_does_what_the_model_says(length: int, gated: bool, signals: bool) -> None:
    found, chip = planned(length, signals), target("sm_90")
    module, ptx = built(found)
    generator = torch.Generator().manual_seed(5)
    batch = BATCH if length <= 4096 else 2 if length <= 20_480 else 1
    channels = found.plan.abreast
    shape = (batch, channels, length)
    u, v, a, b = (torch.randn(shape, generator=generator).bfloat16() for _ in range(4))
    gates = {"in_gate": a, "out_gate": b} if gated else {}
    if signals:
        k = torch.randn(channels, length, generator=generator)
        needed = Needed(True, gated, gated)
        _, simulated = emulate.backward(module, u, v, k, needed=needed, taps=length, **gates, ptx=ptx)
    else:
        _, simulated = emulate.gradient(module, u, v, taps=length, **gates, ptx=ptx)
    batch *= channels
    work, own = gradient_work(found, chip, gated), simulated.reports[found.name].counters
    assert sum(own.tensor.values()) == 2 * batch * work.tensor_ops
    workspaces = ("workspace", "v_workspace", "spectra", "sums")
    # The sum of a worker, one for each row of a transform, begins as zeros, in device memory
    # unless it stays in shared memory until it is done: then it ends there.
    once = 8 * found.plan.transform * channels
    for kind, buffers, predicted in (
        ("loads", SIGNALS_AND_GATES, batch * (work.loaded + work.gates)),
        ("stores", RESULTS, batch * work.stored),
        ("loads", workspaces, batch * work.workspace_loaded),
        ("stores", workspaces, batch * work.workspace_stored + once),
        ("loads", ("spectrum",), batch * work.spectrum),
    ):
        assert moved(own, kind, *buffers) == predicted, (kind, buffers)
    piped(found, gated, batch, simulated.reports[found.name], work)
    for kernel in (*found.before, *found.after):
        counters = simulated.reports[found.plan.entry(kernel)].counters
        sides = SIDES if gated or kernel in found.before else SIDES[1:]
        works = [side_work(found, kernel, chip, gated, side) for side in sides]

        def all_of(name: str, works: list[Work] = works) -> int:
            return batch * sum(getattr(work, name) for work in works)

        assert sum(counters.tensor.values()) == 2 * all_of("tensor_ops")
        assert moved(counters, "loads", *SIGNALS_AND_GATES) == all_of("loaded") + all_of("gates")
        assert moved(counters, "stores", *RESULTS) == all_of("stored")
        for kind in ("load", "store"):
            there = moved(counters, f"{kind}s", "workspace", "v_workspace")
            assert there == all_of("workspace_stored" if kind == "store" else "workspace_loaded")


def piped(found: Gradient, gated: bool, batch: int, report: Report, work: Work) -> None:
    """What passes the pipe of shared memory is what the model says, beside tables that blocks copy there,
    sums that begin and end there, and peaks and powers, which are 1.2 % of a row of 4096 points, 2.6 % of
    channels abreast."""
    counters, plan = report.counters, found.plan
    copied = gradient_plan.copied(plan, found.signals) + (
        0 if found.signals else gradient_plan.columns_bytes(plan)
    )
    once = 2 * report.blocks * copied + int(2 * 8 * plan.transform * plan.abreast * found.held)
    tables = moved(counters, "loads", "tables") + moved(counters, "loads", "spectrum")
    passed = counters.shared_loads.bytes + counters.shared_stores.bytes + tables - once
    brought = 0
    if found.kernel.brought:  # on their way past the pipe: signals, their gates, and gates of results
        rows = 2 if not gated else 6 if found.signals and found.kernel.brought > 2 else 4
        brought = rows * 2 * plan.transform
    assert batch * (work.shared_bytes + brought) == pytest.approx(passed, rel=0.015 * plan.abreast)


def test_gates_move_what_they_should() -> None:
    """Bytes of device memory of an element, all gradients: 14 with both gates (README), 6 without."""
    for length in (1024, 4096, 16_384):
        found = planned(length, signals=True)
        for gated, each in ((True, 14), (False, 6)):
            assert gradient_work(found, target("sm_90"), gated).device_bytes == each * length


@pytest.mark.drawn(14)
@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@SIGNALS
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", [256, 1024, 2048, 4096, 8192, 12_288, 20_480, 65_536])
def test_instructions_by_formula_are_near_those_of_the_code(length: int, gated: bool, signals: bool) -> None:
    found = planned(length, signals)
    counted = hot_path.gradient_hot_paths(found, gated)[found.label].per_transform(found.plan.transform)
    assert 0.85 < gradient_work(found, target("sm_90"), gated).instructions / counted < 1.15


def test_a_backward_pass_is_predicted_by_its_launches() -> None:
    """Every launch that an ungated call makes, and each at the price of its kernel."""
    chip = target("sm_90")
    found = planned(65_536, signals=True)
    price = gradient_cost(found, chip)
    names = [k.name for k in price.kernels]
    assert names == ["columns1 u", "columns1 v", "backward", "columns_inverse1 v"]
    gated = gradient_cost(found, chip, gated=True)
    assert [k.name for k in gated.kernels] == [*names[:3], "columns_inverse1 u", "columns_inverse1 v"]
    assert gated.predicted > price.predicted
    assert gradient_call(found, chip, gated, 8, 4).launches == len(launches(found, 8, 4, 65_536))
    call = gradient_call(found, chip, price, 8, 4)
    made = launches(found, 8, 4, 65_536)
    assert call.launches == sum(not (x.side == 0 and x.launch.kernel.role == "columns_inverse") for x in made)
    assert call.time > call.fixed > 0

"""Ring 3: what the cost model says a gradient's kernels do, beside what the simulator counts."""

from __future__ import annotations

import pytest
import torch
from calls import built
from command_line import why_not

from fftgen import emulate, hot_path, toolkit
from fftgen.gradient import Needed
from fftgen.planner.call_cost import gradient_call
from fftgen.planner.gradient import Gradient, backward, gradient, launches
from fftgen.planner.gradient_work import gradient_cost, gradient_work, side_work
from fftgen.problem import Problem
from fftgen.simulator import Counters
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

BATCH = 4
# A warp's transforms, several and one; blocks with all in shared memory, with the sum outside, with the
# spectrum outside too; the device stage.
LENGTHS = (256, 1024, 4096, 16_384, 32_768, 65_536)
SIGNALS = pytest.mark.parametrize("signals", [False, True], ids=["of the filter", "all"])


def planned(length: int, signals: bool) -> Gradient:
    problem = Problem("causal", length, "bf16")
    found = backward(problem, "sm_90") if signals else gradient(problem, "sm_90")
    assert found is not None
    return found


def moved(counters: Counters, kind: str, *buffers: str) -> int:
    there = (counters.buffers[b] for b in buffers if b in counters.buffers)
    return sum(int(getattr(x, kind).bytes) for x in there)


@pytest.mark.drawn(4)
@SIGNALS
@pytest.mark.parametrize("length", LENGTHS)
def test_every_kernel_does_what_the_model_says(length: int, signals: bool) -> None:
    found, chip = planned(length, signals), target("sm_90")
    module, ptx = built(found)
    generator = torch.Generator().manual_seed(5)
    batch = BATCH if length <= 16_384 else 1
    u, v = (torch.randn(batch, 1, length, generator=generator).bfloat16() for _ in range(2))
    if signals:
        k = torch.randn(1, length, generator=generator)
        _, simulated = emulate.backward(module, u, v, k, needed=Needed(u=True), taps=length, ptx=ptx)
    else:
        _, simulated = emulate.gradient(module, u, v, taps=length, ptx=ptx)
    work, own = gradient_work(found, chip), simulated.reports[found.name].counters
    assert sum(own.tensor.values()) == 2 * batch * work.tensor_ops
    workspaces = ("workspace", "v_workspace", "spectra", "sums")
    # The sum of a worker, one for each row of a transform, begins as zeros, in device memory
    # unless it stays in shared memory until it is done: then it ends there.
    once = 8 * found.plan.transform
    for kind, buffers, predicted in (
        ("loads", ("u", "v_u"), batch * work.loaded),
        ("stores", ("d_u",), batch * work.stored),
        ("loads", workspaces, batch * work.workspace_loaded),
        ("stores", workspaces, batch * work.workspace_stored + once),
        ("loads", ("spectrum",), batch * work.spectrum),
    ):
        assert moved(own, kind, *buffers) == predicted, (kind, buffers)
    for kernel in (*found.before, *found.after):
        side, counters = side_work(found, kernel, chip), simulated.reports[found.plan.entry(kernel)].counters
        sides = 1 if kernel in found.after else 2
        assert sum(counters.tensor.values()) == 2 * batch * sides * side.tensor_ops
        assert moved(counters, "loads", "u", "v_u") == batch * sides * side.loaded
        assert moved(counters, "stores", "d_u") == batch * sides * side.stored
        for kind, each in (("loads", side.workspace_loaded), ("stores", side.workspace_stored)):
            assert moved(counters, kind, "workspace", "v_workspace") == batch * sides * each


@pytest.mark.drawn(4)
@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@SIGNALS
@pytest.mark.parametrize("length", [256, 1024, 4096, 8192, 65_536])
def test_instructions_by_formula_are_near_those_of_the_code(length: int, signals: bool) -> None:
    found = planned(length, signals)
    counted = hot_path.gradient_hot_paths(found, False)[found.label].per_transform(found.plan.transform)
    assert 0.85 < gradient_work(found, target("sm_90")).instructions / counted < 1.15


def test_a_backward_pass_is_predicted_by_its_launches() -> None:
    """Every launch that an ungated call makes, and each at the price of its kernel."""
    chip = target("sm_90")
    found = planned(65_536, signals=True)
    price = gradient_cost(found, chip)
    names = [k.name for k in price.kernels]
    assert names == ["columns1 u", "columns1 v", "backward", "columns_inverse1 v"]
    call = gradient_call(found, chip, price, 8, 4)
    made = launches(found, 8, 4, 65_536)
    assert call.launches == sum(not (x.side == 0 and x.launch.kernel.role == "columns_inverse") for x in made)
    assert call.time > call.fixed > 0

"""Signals of fp32: the engine "simt" in the simulator, against float64 and its own counts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import calls
import compiled
import numpy as np
import pytest
import torch
from cases import EVEN, LARGE, ODD, TINY, slow, usually

from fftgen import emulate, nvrtc
from fftgen.execute import Executable
from fftgen.planner import search
from fftgen.planner.cost import cost, filter_cost
from fftgen.planner.launch import chunk_items, launches
from fftgen.planner.plan import SIMT, Plan
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import GlobalRace, SharedRace
from fftgen.source import Source
from fftgen.spectra import spectrum, with_skip
from fftgen.targets import TARGETS, target

MODES = ("causal", "circular")
LENGTHS = (*TINY, *EVEN, *ODD, *LARGE, 65_536, 100_003)
USUAL = (1, 256, 1009, 4096, 5003, 65_536)
OPTIONS = ("in_gate", "out_gate", "skip")


@cache
def plan_for(mode: str, length: int, name: str = "sm_90") -> Plan:
    plan = search.plan(Problem(mode, length, "fp32"), name)
    assert plan.engine == SIMT
    return plan


@pytest.mark.drawn(2)
@pytest.mark.parametrize("length", usually(LENGTHS, USUAL))
@pytest.mark.parametrize("mode", MODES)
def test_every_length(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length)
    few = {} if length > 8192 else {"batch": 3, "channels": 2}
    calls.run(plan, rng, options=OPTIONS, whole=True, **few)


@pytest.mark.drawn(8)
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("length", [1000, 9000, 20_480, 70_001])
@pytest.mark.parametrize("mode", MODES)
def test_every_target(mode: str, length: int, name: str, rng: np.random.Generator) -> None:
    if target(name).virtual and length > 1000:
        pytest.skip("the code of the virtual target is that of another")
    calls.run(plan_for(mode, length, name), rng, batch=2, options=OPTIONS, whole=True)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "length", "name"), [
    ("causal", 1_048_576, "sm_90"),
    ("circular", 1_000_003, "sm_80"),
    ("causal", 4_194_304, "sm_90"),
    ("circular", 4_194_304, "sm_75"),
    ("circular", 3_000_017, "sm_86"),
])  # fmt: skip
def test_the_longest(mode: str, length: int, name: str, rng: np.random.Generator) -> None:
    calls.run(plan_for(mode, length, name), rng, options=OPTIONS, whole=True)


@pytest.mark.parametrize("steps", [1, 77, 1000, *slow([255, 1023])])
@pytest.mark.parametrize("taps", [1, 500, *slow([1023])])
@pytest.mark.parametrize("mode", MODES)
def test_short_signals_and_filters(mode: str, taps: int, steps: int, rng: np.random.Generator) -> None:
    calls.run(plan_for(mode, 1023), rng, batch=5, length=steps, taps=taps, whole=True)


@pytest.mark.parametrize("length", [300, 1009, *slow([4096, 70_001])])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("both", [True, False])
def test_filters_that_act_backwards(both: bool, mode: str, length: int, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length)
    u, back = calls.draw(rng, 2, 1, length).float(), calls.filters(rng, 1, length - 3)
    k = calls.filters(rng, 1, length) if both else torch.zeros(1, 1)
    module, ptx = calls.built(plan)
    y, _ = emulate.convolve(module, u, k, k_rev=back, ptx=ptx, seed=1)
    exact = calls.exact(plan, u, k) if both else 0
    # The correlation is the convolution of what is reversed in time.
    if mode == "causal":
        exact = exact + calls.exact(plan, u.flip(-1), back)[..., ::-1]
    else:
        around = torch.nn.functional.pad(back, (0, 3)).flip(-1).roll(1, -1)
        exact = exact + calls.exact(plan, u, around)
    calls.tolerance.check(y.double().numpy(), exact, "fp32", plan.order)


@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_75"])])
@pytest.mark.parametrize("length", [256, 1009, 70_001])
@pytest.mark.parametrize("mode", MODES)
def test_spectra_are_what_torch_makes(mode: str, length: int, name: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, name)
    k, back, skip = calls.filters(rng, 2, length), calls.filters(rng, 2, 200), torch.tensor([0.5, -2.0])
    module, ptx = calls.built(plan)
    table = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    simulated = emulate.Simulated(ptx, module.source.text)
    made = prepare(plan, table, simulated, k, back, skip, address=simulated.address)
    assert simulated.unwritten("filter_planes") == simulated.unwritten("filter_scale") == 0
    other = spectrum(plan, k, back, skip)
    one, two = (s.planes.double() * s.scale[:, 1].double()[:, None, None] for s in (made, other))
    assert made.planes.dtype == torch.float32
    assert (one - two).norm() < 4e-7 * two.norm()
    assert ((one - two).norm(dim=(1, 2)) < 4e-7 * two.norm(dim=(1, 2))).all()
    apart = with_skip(plan, *prepared(plan, k, back), skip)
    three = apart[0].double() * apart[1][:, 1].double()[:, None, None]
    assert (three - two).norm() < 4e-7 * two.norm()


def prepared(plan: Plan, k: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = spectrum(plan, k, back)
    return found.planes, found.scale


@pytest.mark.parametrize(
    ("mode", "length"), [("causal", 1000), ("circular", 1009), *slow([("causal", 65_536)])]
)
def test_rows_do_not_meet(mode: str, length: int, rng: np.random.Generator) -> None:
    """What is not finite, or of another size, stays in its row; a row of zeros gives zeros."""
    plan = plan_for(mode, length)
    u, k = calls.draw(rng, 6, 1, length).float(), calls.filters(rng, 1, length)
    alone = calls.call_whole(plan, u, k)
    calls.check(plan, alone, u, k)
    hard = u.clone()
    hard[0, 0, 3], hard[1], hard[2], hard[4] = float("nan"), 1e30 * u[1], 1e-30 * u[2], 0
    y = calls.call_whole(plan, hard, k)
    assert not y[0].isfinite().any()
    assert torch.equal(y[3], alone[3])
    assert torch.equal(y[5], alone[5])
    assert not y[4].any()
    for row, size in ((1, 1e30), (2, 1e-30)):
        calls.check(plan, (y[row].double() / size)[None], u[row][None], k)


@pytest.mark.parametrize("layout", ["odd strides", "time last", "expanded"])
def test_views(layout: str, rng: np.random.Generator) -> None:
    plan = plan_for("causal", 777)
    k = calls.filters(rng, 3, 777)
    u, gate = (calls.draw(rng, 2, 3, 777).float() for _ in range(2))
    if layout == "odd strides":
        u = calls.draw(rng, 2, 3, 2001).float()[..., 3:780]
    elif layout == "time last":
        u = calls.draw(rng, 2, 777, 3).float().transpose(1, 2)
    else:
        gate = calls.draw(rng, 1, 1, 777).float().expand(2, 3, 777)
    given = {"in_gate": gate, "out_gate": gate}
    calls.check(plan, calls.call_whole(plan, u, k, **given), u, k, **given)


def test_chunks_reuse_the_workspace(rng: np.random.Generator) -> None:
    plan = plan_for("causal", 70_001)
    small = replace(plan, chunk_bytes=2 * 8 * plan.transform)
    assert chunk_items(small, 100) == 2
    assert len(launches(small, 3, 1, 70_001)) == 6
    calls.run(small, rng, batch=3, whole=True)


COUNTED = [("causal", 256), ("causal", 4096), ("circular", 1000), ("causal", 20_480), ("circular", 65_536)]


@pytest.mark.parametrize(("mode", "length"), COUNTED)
@pytest.mark.parametrize("gated", [False, True])
def test_what_kernels_do_is_what_the_model_says(gated: bool, mode: str, length: int) -> None:
    """Bytes of every buffer and of shared memory; instructions as executed (the compiler joins some)."""
    plan = plan_for(mode, length)
    chip = target("sm_90")
    u, k = torch.ones(2, 2, length), torch.ones(2, length)
    gates = {name: u for name in ("in_gate", "out_gate") if gated}
    simulated = emulate.convolve(calls.built(plan)[0], u, k, **gates)[1]
    kernels = [(simulated.reports[plan.entry(k)], k.label) for k in plan.kernels]
    filters = [(simulated.filter_reports[plan.filter_entry(k)], k.role) for k in plan.filter.kernels]
    costs = (cost(plan, chip, gated=gated), filter_cost(plan, chip))
    for reports, price, times in ((kernels, costs[0], 4), (filters, costs[1], 2)):
        for (report, label), kernel in zip(reports, price.kernels, strict=True):
            assert label == kernel.name
            work, counters = kernel.work, report.counters
            moved = {name: (x.loads.bytes, x.stores.bytes) for name, x in counters.buffers.items()}

            def of(kind: int, *names: str, moved: dict[str, tuple[int, int]] = moved) -> int:
                return sum(moved.get(name, (0, 0))[kind] for name in names)

            assert of(0, "u", "filter") == times * work.loaded, label
            assert of(1, "y", "filter_planes", "filter_scale") == times * work.stored, label
            assert of(0, "in_gate", "out_gate") == times * work.gates, label
            assert of(0, "workspace", "filter_workspace") == times * work.workspace_loaded, label
            assert of(1, "workspace", "filter_workspace") == times * work.workspace_stored, label
            assert of(0, "spectrum") == times * work.spectrum, label
            shared = counters.shared_loads.bytes + counters.shared_stores.bytes
            passed = shared + of(0, "tables", "filter_tables", "spectrum")
            assert passed == times * work.shared_bytes, label
            ratio = times * work.instructions / counters.total_instructions
            assert 0.6 < ratio < 1.1, f"{label}: {ratio:.2f}"
            assert counters.shared_wavefronts <= 1.15 * counters.shared_wavefronts_least, label
            for name in ("u", "in_gate", "out_gate", "y", "workspace", "spectrum"):
                for access in ("loads", "stores"):
                    found = getattr(counters.buffers[name], access) if name in counters.buffers else None
                    assert found is None or found.units <= 1.01 * found.bytes / 32, (label, name)


@pytest.mark.parametrize("barrier", range(4))
def test_a_missing_barrier_is_seen(barrier: int) -> None:
    plan = plan_for("causal", 4096)
    source = render(plan)
    parts = source.text.split("    __syncthreads();\n")
    text = "    __syncthreads();\n".join(
        [*parts[:barrier], parts[barrier] + parts[barrier + 1], *parts[barrier + 2 :]]
    )
    changed = Source(source.name, text, source.headers, source.entries)
    simulated = emulate.Simulated(nvrtc.compile_ptx(changed, "compute_90", line_info=True), text)
    table = torch.frombuffer(bytearray(calls.built(plan)[0].tables), dtype=torch.uint8)
    made = spectrum(plan, torch.ones(1, 4096))
    with pytest.raises((SharedRace, GlobalRace)):
        Executable(plan, table)(
            simulated, torch.ones(1, 1, 4096), made.planes, made.scale, address=simulated.address
        )


@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_75", "sm_80", "sm_100", "sm_120"])])
def test_nothing_is_put_by(name: str) -> None:
    """But a few bytes of rows of the longest, once in a block; on sm_100 and sm_120 up to 32 of any."""
    for mode, length in (
        ("causal", 256),
        ("circular", 4096),
        ("causal", 7000),
        ("circular", 1_000_003),
        ("causal", 4_194_304),
    ):
        plan = plan_for(mode, length, name)
        found = compiled.cubin(render(plan), name).resources
        kernels = [(plan.entry(k), 32 * k.warps, k.resident) for k in plan.kernels]
        kernels += [(plan.filter_entry(k), k.threads, k.resident) for k in plan.filter.kernels]
        for entry, threads, resident in kernels:
            r = found[entry]
            allowed = 64 if name in ("sm_100", "sm_120") else 32 if length > 65_536 else 0
            assert r.spill_store_bytes + r.spill_load_bytes <= allowed, (entry, r)
            assert r.registers * threads * resident <= 65_536, (entry, r)

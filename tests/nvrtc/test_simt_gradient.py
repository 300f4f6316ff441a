"""Gradients of signals in fp32: the filter's by kernels of the engine "simt", and two results at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import calls
import compiled
import gradients
import numpy as np
import pytest
import torch
from cases import MODES, slow, usually
from torch import Tensor
from traffic import moved

from fftgen import emulate, gradient_accuracy, nvrtc
from fftgen.gradient import Needed, finish, finish_by_kernels
from fftgen.planner import search
from fftgen.planner.gradient import backward, gradient, read_backwards
from fftgen.planner.gradient_launch import launches
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import SIDES, gradient_cost, gradient_work, side_work
from fftgen.planner.order import same_spectrum
from fftgen.planner.plan import SIMT, Plan
from fftgen.planner.twins import twin
from fftgen.problem import Problem
from fftgen.render import render, render_gradient
from fftgen.simulator import GlobalRace, SharedRace
from fftgen.source import Source
from fftgen.targets import target
from fftgen.verify import signal_references

LENGTHS = (1, 17, 256, 300, 1000, 1009, 2048, 4096, 5003, 8192, 12_288, 65_536, 70_001)


@cache
def planned(length: int, name: str = "sm_90") -> Gradient:
    found = gradient(Problem("causal", length, "fp32"), name)
    assert found.plan.engine == SIMT
    assert Gradient.from_json(found.to_json()) == found
    return found


def run(
    found: Gradient,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    mode: str = "causal",
    gates: int = 3,
    taps: int = 0,
    alike: bool = False,
) -> emulate.Simulated:
    """One gradient, held against the definition in float64. ``gates``: 1 in_gate, 2 out_gate. ``alike``: u
    and v agree, so that few taps are not small by chance beside what both are."""
    length = found.problem.length
    taps = taps or length
    u, v, a, b = (calls.draw(rng, *shape).float() for _ in range(4))
    if alike:
        v += u
    given: tuple[Tensor | None, Tensor | None] = (a if gates & 1 else None, b if gates & 2 else None)
    module, ptx = calls.built(found)
    dk, simulated = emulate.gradient(
        module,
        u,
        v,
        taps=taps,
        in_gate=given[0],
        out_gate=given[1],
        period=length if mode == "circular" else 0,
        ptx=ptx,
        seed=int(rng.integers(2**31)),
    )
    assert (dk.shape, dk.dtype) == ((shape[1], taps), torch.float32)
    ref = exact(mode, length, taps, u, v, *given)
    reach = min(taps, shape[-1]) if mode == "causal" else taps
    assert (dk[:, reach:] == 0).all()
    expected = gradient_accuracy.filters("fp32", found.plan.order, found.plan.compute_format)
    assert expected < 6e-7
    gradients.judge(dk[:, :reach], ref[:, :reach], expected)
    return simulated


def exact(
    mode: str, length: int, taps: int, u: Tensor, v: Tensor, a: Tensor | None, b: Tensor | None
) -> Tensor:
    """sum_b sum_t (b v)_t (a u)_{t-j} by torch.fft in float64, (H, taps)."""
    x = u.double() if a is None else u.double() * a.double()
    g = v.double() if b is None else v.double() * b.double()
    points = length if mode == "circular" else 2 * max(u.shape[-1], taps)
    product = (torch.fft.rfft(x, n=points).conj() * torch.fft.rfft(g, n=points)).sum(0)
    found: Tensor = torch.fft.irfft(product, n=points)[:, :taps]
    if mode == "causal":
        found[:, u.shape[-1] :] = 0
    return found


@pytest.mark.drawn(2)
@pytest.mark.parametrize("length", usually(LENGTHS, (17, 300, 4096, 5003, 65_536)))
@pytest.mark.parametrize("mode", MODES)
def test_every_length(mode: str, length: int, rng: np.random.Generator) -> None:
    shape = (5, 2, length) if length <= 8192 else (2, 1, length)
    few = length < 64  # gates would make them unlike
    run(planned(length), rng, shape, mode=mode, gates=0 if few else int(rng.integers(4)), alike=few)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_86", "sm_100", "sm_120"])
@pytest.mark.parametrize("length", [1000, 9000, 20_480])
@pytest.mark.parametrize("mode", MODES)
def test_every_target(mode: str, length: int, name: str, rng: np.random.Generator) -> None:
    run(planned(length, name), rng, (2, 1, length), mode=mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "name"), [(1_048_576, "sm_90"), (1_000_003, "sm_80"), (4_194_304, "sm_90")]
)
def test_the_longest(length: int, name: str, rng: np.random.Generator) -> None:
    run(planned(length, name), rng, (1, 1, length), mode="circular")


@pytest.mark.parametrize("batch", [1, 3, 17, 40])
def test_workers_share_a_channels_rows(batch: int, rng: np.random.Generator) -> None:
    """Some have fewer than the others, and of several at a time the last ones may be missing."""
    simulated = run(planned(300), rng, (batch, 2, 300))
    assert simulated.reports[planned(300).name].blocks == len(
        {(h, part) for h in range(2) for part in range(max(1, batch // 4))}
    )


@pytest.mark.parametrize("taps", [1, 5, 700, 1009])
@pytest.mark.parametrize("steps", [3, 600, 1009])
def test_short_signals_and_few_taps(steps: int, taps: int, rng: np.random.Generator) -> None:
    run(planned(1009), rng, (3, 2, steps), gates=0, taps=taps, alike=True)


def test_a_chunk_may_end_inside_a_channel(rng: np.random.Generator) -> None:
    found = planned(70_001)
    small = replace(found, plan=replace(found.plan, chunk_bytes=2 * 8 * found.plan.transform))
    made = launches(small, 3, 2, 70_001)
    assert [x.launch.items for x in made if x.side < 0] == [2, 2, 2]
    run(small, rng, (3, 2, 70_001))


@pytest.mark.parametrize("length", [300, 5003, 70_001])
def test_sums_are_in_the_order_that_is_said(length: int, rng: np.random.Generator) -> None:
    """The kernels at the end do what torch.fft makes of ``sum_digits``."""
    found = planned(length)
    module, ptx = calls.built(found)
    sums = calls.draw(rng, 2, 3, 2 * found.plan.transform).float()
    table = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    for period in (0, length):
        simulated = emulate.Simulated(ptx, module.source.text)
        at = simulated.address("given", sums), simulated.address("tables", table)
        made = finish_by_kernels(
            found,
            simulated,
            sums,
            length,
            length,
            period,
            sums_at=at[0],
            tables_at=at[1],
            address=simulated.address,
        )
        wanted = finish(found, sums.double(), length, length, period)
        assert (made - wanted).norm() < 5e-7 * wanted.norm()


@pytest.mark.drawn(4)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("signals", [False, True])
@pytest.mark.parametrize("length", [256, 4096, 5003, 65_536])
def test_what_kernels_do_is_what_the_model_says(length: int, signals: bool, gated: bool) -> None:
    found, chip, batch = planned(length), target("sm_90"), 8 if length < 10_000 else 2
    u = torch.ones(batch, 1, length)
    gates = {name: u.clone() for name in ("in_gate", "out_gate") if gated}
    if signals:
        found = all_of(length)
        module, ptx = calls.built(found)
        given = {"needed": Needed(True, gated, gated), "taps": length, **gates, "ptx": ptx}
        _, simulated = emulate.backward(module, u, u.clone(), torch.ones(1, length), **given)
    else:
        module, ptx = calls.built(found)
        _, simulated = emulate.gradient(module, u, u.clone(), taps=length, **gates, ptx=ptx)
    work, own = gradient_work(found, chip, gated), simulated.reports[found.name].counters

    inward = ("u", "v_u", "in_gate", "v_in_gate")
    outward = ("v_gate", "d_u_gate", "d_in_gate_gate")
    results = ("d_u", "d_in_gate", "d_out_gate")
    assert moved(own, "loads", *inward, *outward) == batch * (work.loaded + work.gates)
    assert moved(own, "stores", *results) == batch * work.stored
    assert moved(own, "loads", "workspace", "v_workspace") == batch * work.workspace_loaded
    assert moved(own, "stores", "workspace", "v_workspace") == batch * work.workspace_stored
    assert moved(own, "loads", "spectrum") == batch * work.spectrum
    workers = simulated.reports[found.name].blocks // found.rows
    assert moved(own, "stores", "sums") == workers * 8 * found.plan.transform
    at_the_end = workers * (found.kernel.group + 1) * 8 * found.plan.transform
    shared = own.shared_loads.bytes + own.shared_stores.bytes + moved(own, "loads", "tables", "spectrum")
    assert (
        abs(shared - batch * work.shared_bytes - at_the_end)
        <= workers * found.kernel.group * 8 * found.plan.transform
    )
    assert 0.6 < batch * work.instructions / own.total_instructions < 1.1
    assert own.shared_wavefronts <= 1.1 * own.shared_wavefronts_least
    for kernel in (*found.before, *found.after):
        counters = simulated.reports[found.plan.entry(kernel)].counters
        sides = SIDES if gated or kernel in found.before else SIDES[1:]
        works = [side_work(found, kernel, chip, gated, side) for side in sides]
        read, stored = sum(w.loaded + w.gates for w in works), sum(w.stored for w in works)
        assert moved(counters, "loads", *inward, *outward) == batch * read
        assert moved(counters, "stores", *results) == batch * stored
        for kind, each in (("loads", "workspace_loaded"), ("stores", "workspace_stored")):
            predicted = batch * sum(getattr(w, each) for w in works)
            assert moved(counters, kind, "workspace", "v_workspace") == predicted
    assert gradient_cost(found, chip).time > 0


@pytest.mark.parametrize("barrier", range(4))
def test_a_missing_barrier_is_seen(barrier: int, rng: np.random.Generator) -> None:
    found = planned(4096)
    source = render_gradient(found)
    start = source.text.index(f"{found.name}(")
    parts = source.text[start:].split("__syncthreads();\n")
    changed = "__syncthreads();\n".join(
        [*parts[:barrier], parts[barrier] + parts[barrier + 1], *parts[barrier + 2 :]]
    )
    text = source.text[:start] + changed
    made = Source(source.name, text, source.headers, source.entries)
    module, _ = calls.built(found)
    u, v = (calls.draw(rng, 2, 1, 4096).float() for _ in range(2))
    with pytest.raises((SharedRace, GlobalRace)):
        emulate.gradient(
            replace(module, source=made),
            u,
            v,
            taps=9,
            ptx=nvrtc.compile_ptx(made, "compute_90", line_info=True),
        )


@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_75", "sm_80", "sm_86", "sm_100", "sm_120"])])
def test_nothing_is_put_by(name: str) -> None:
    every = [planned(n, name) for n in (256, 4096, 7000, 65_536, 1_000_003)]
    every += [all_of(n, name) for n in (256, 5003, 65_536) if name != "sm_75" or n < 4096]
    for found in every:
        for entry, r in compiled.cubin(render_gradient(found), name).resources.items():
            assert r.spill_store_bytes == r.spill_load_bytes == 0, (entry, r)
        own = compiled.cubin(render_gradient(found), name).resources[found.name]
        assert own.registers * 32 * found.kernel.warps * found.kernel.resident <= 65_536


@cache
def all_of(length: int, name: str = "sm_90") -> Gradient:
    found = backward(Problem("causal", length, "fp32"), name)
    assert found is not None
    assert found.plan.engine == SIMT
    assert same_spectrum(found.plan, search.plan(found.problem, name))
    assert Gradient.from_json(found.to_json()) == found
    return found


NEEDED = [Needed(*x) for x in itertools.product((False, True), repeat=3)]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "length", usually((17, 256, 1000, 2048, 4096, 5003, 8192, 65_536, 70_001), (17, 1000, 4096, 65_536))
)
def test_all_gradients_by_one_pass(length: int, rng: np.random.Generator) -> None:
    """Of u, both gates and the filter, for cotangents of any size."""
    shape = (5, 2, length) if length <= 8192 else (2, 1, length)
    judge_all(all_of(length), rng, shape, Needed(True, True, True))


@pytest.mark.drawn(8)
@pytest.mark.parametrize("needed", NEEDED, ids=str)
@pytest.mark.parametrize("gates", range(4))
@pytest.mark.parametrize("length", [300, 4096, 70_001])
def test_what_is_not_wanted_is_not_made(
    length: int, gates: int, needed: Needed, rng: np.random.Generator
) -> None:
    wanted = Needed(needed.u, needed.in_gate and gates & 1 > 0, needed.out_gate and gates & 2 > 0)
    judge_all(all_of(length), rng, (3, 2, length) if length < 10_000 else (1, 1, length), wanted, gates)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_86", "sm_100", "sm_120"])
@pytest.mark.parametrize("length", [1000, 20_480, 40_000])
def test_all_gradients_on_every_target(length: int, name: str, rng: np.random.Generator) -> None:
    if backward(Problem("causal", length, "fp32"), name) is None:
        pytest.skip("two rows of these do not fit a block")
    judge_all(all_of(length, name), rng, (2, 1, length), Needed(True, True, True))


def test_some_lengths_have_no_pass_for_all() -> None:
    """Those whose rows fit a block once, but not twice: gradients by themselves make them."""
    for length in (10_000, 16_384, 28_000):
        assert backward(Problem("causal", length, "fp32"), "sm_90") is None
        assert not read_backwards(search.plan(Problem("causal", length, "fp32"), "sm_90"))
        planned(length)
    assert read_backwards(search.plan(Problem("causal", 4096, "fp32"), "sm_90"))
    assert not read_backwards(search.plan(Problem("circular", 4096, "fp32"), "sm_90"))


def judge_all(
    found: Gradient, rng: np.random.Generator, shape: tuple[int, int, int], needed: Needed, gates: int = 3
) -> None:
    """All gradients of one call, held against float64."""
    length, taps = found.problem.length, min(found.problem.length, shape[-1])
    u, v, a, b = (calls.draw(rng, *shape).float() for _ in range(4))
    k, back = calls.filters(rng, shape[1], taps), calls.filters(rng, shape[1], taps)
    in_gate, out_gate = (a if gates & 1 else None), (b if gates & 2 else None)
    skip = torch.copysign(calls.draw(rng, shape[1]).float(), k[:, 0])
    module, ptx = calls.built(found)
    given = {"k_rev": back, "in_gate": in_gate, "out_gate": out_gate, "skip": skip}
    made, _ = emulate.backward(
        module, u, v, k, needed=needed, taps=length, **given, ptx=ptx, seed=int(rng.integers(2**31))
    )
    wanted = iter(signal_references(found.problem, u, v, k, back, in_gate, out_gate, skip))
    present = (True, in_gate is not None, out_gate is not None)
    for name, there, need in zip(("u", "in_gate", "out_gate"), present, needed, strict=True):
        exact_one = next(wanted) if there else None
        result = getattr(made, name)
        assert (result is not None) == need
        if result is not None:
            assert exact_one is not None
            calls.tolerance.check(result.double().numpy(), exact_one, "fp32", found.plan.order)
    ref = exact("causal", length, length, u, v, in_gate, out_gate)
    expected = gradient_accuracy.filters("fp32", found.plan.order, found.plan.compute_format)
    gradients.judge(made.filter[:, : shape[-1]], ref[:, : shape[-1]], expected)


def twin_of(mode: str, length: int, name: str = "sm_90") -> Plan:
    found = twin(search.plan(Problem(mode, length, "fp32"), name))
    assert found is not None
    return found


@pytest.mark.drawn(2)
@pytest.mark.parametrize("length", [300, 4096, *slow([1, 256, 20_000]), 70_001])
@pytest.mark.parametrize("mode", MODES)
def test_two_results_of_one_transform(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = twin_of(mode, length)
    shape = (3, 2, length) if length < 10_000 else (1, 1, length)
    u, a, b, c = (calls.draw(rng, *shape).float() for _ in range(4))
    k = calls.filters(rng, shape[1], length)
    module, ptx = calls.built(plan)
    one, two, _ = emulate.both(module, u, k, (b, c), in_gate=a, ptx=ptx, seed=1)
    for y, gate in ((one, b), (two, c)):
        calls.check(plan, y, u, k, in_gate=a, out_gate=gate)


@pytest.mark.parametrize("name", ["sm_90", *slow(["sm_80"])])
def test_two_results_put_nothing_by(name: str) -> None:
    for mode, length in (("causal", 256), ("circular", 5003), ("causal", 65_536)):
        plan = twin_of(mode, length, name)
        for entry, r in compiled.cubin(render(plan), name).resources.items():
            assert r.spill_store_bytes + r.spill_load_bytes <= 32, (entry, r)

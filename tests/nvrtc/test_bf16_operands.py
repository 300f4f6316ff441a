"""Ring 3 for compute format "bf16-fp32" of the "mma" engine: bf16 operands, sums in fp32, nothing scaled.

Every call goes the way of a call on a GPU, with poisoned outputs, race and initialisation checks on. Bounds
are design 1.7's. No two rows share a transform, so each is by itself in everything.
"""

from __future__ import annotations

import itertools

import compiled
import numpy as np
import pytest
import torch
from calls import OPTIONS, built, call, check, draw, filters, judged, prepared, run
from cases import slow, usually
from torch import Tensor

from fftgen import emulate, hot_path, toolkit
from fftgen.errors import NoPlanError
from fftgen.planner import search, work
from fftgen.planner.cost import tensor_ops
from fftgen.planner.instructions import mma_instructions
from fftgen.planner.plan import BF16_FP32, Plan
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.sampled import check_launches
from fftgen.spectra import spectrum, with_skip

ENGINE = f"mma:{BF16_FP32}"
MODES = ("causal", "circular")
COMBINATIONS = [c for n in range(4) for c in itertools.combinations(OPTIONS, n)]
LENGTHS = (1, 100, 250, 256, 512, 1000, 1024, 3700, 4096, 8192)


SHAPES = [
    ((48, 16), 0),
    ((16, 64), 0),
    ((48, 16, 16), 0),
    ((16, 16, 64), 0),
    ((16, 16, 16), 1),
    ((32, 32, 16), 1),
    ((64, 16), 0),
    ((16, 32, 32), 0),
    ((80, 16, 16), 0),
    ((32, 32, 32), 0),
    ((64, 16, 16), 1),
    ((128, 16, 16), 1),
    ((16, 16, 16, 16), 1),
]
USUAL = [*zip(SHAPES[:6], itertools.cycle(MODES)), (SHAPES[4], "circular")]


def plan_for(mode: str, length: int, target: str = "sm_90") -> Plan:
    return search.plan(Problem(mode, length, "bf16"), target, ENGINE)


def shaped(mode: str, factors: tuple[int, ...], device: int, target: str = "sm_90") -> Plan:
    problem = Problem(mode, int(np.prod(factors)), "bf16")
    return search.with_shape(problem, target, factors, device, ENGINE, fold=True)


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("length", "mode"),
    usually(
        itertools.product(LENGTHS, MODES),
        [*zip(LENGTHS, itertools.cycle(MODES)), (250, "causal"), (4096, "circular")],
    ),
)
def test_lengths(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length)
    assert (plan.engine, plan.compute_format, plan.packing) == ("mma", BF16_FP32, "right-angle")
    run(plan, rng, batch=5 if length <= 1024 else 2, channels=2, whole=length in (256, 4096))
    run(plan, rng, batch=3, options=OPTIONS)
    for steps, taps in ((max(1, length - 3), length), (length // 3 + 1, max(1, length // 2))):
        run(plan, rng, batch=2, length=steps, taps=taps, options=("in_gate",))


@pytest.mark.drawn(4)
@pytest.mark.parametrize(("shape", "mode"), usually(itertools.product(SHAPES, MODES), USUAL), ids=str)
def test_shapes(mode: str, shape: tuple[tuple[int, ...], int], rng: np.random.Generator) -> None:
    """Tall and wide tiles, the device stage around the chain of a block and of a warp."""
    factors, device = shape
    small = int(np.prod(factors)) <= 16_384
    run(shaped(mode, factors, device), rng, batch=3 if small else 1, options=OPTIONS)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("options", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("length", [512, 4096])
def test_every_combination_of_options(
    length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    run(plan_for("causal", length), rng, batch=3, options=options)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    "plan", [plan_for("causal", 250), plan_for("causal", 4091), shaped("causal", (16, 16, 16), 1)]
)
@pytest.mark.parametrize("which", ["u", "in_gate", "out_gate"])
def test_rows_that_start_anywhere(plan: Plan, which: str, rng: np.random.Generator) -> None:
    """Views at odd offsets, rows an odd number of elements apart, lengths that are no multiple of eight."""
    length = plan.problem.length - (plan.problem.length % 8 == 0)
    signals = {name: draw(rng, 3, 2, length).bfloat16() for name in ("u", "in_gate", "out_gate")}
    signals[which] = draw(rng, 3, 2, length + 3).bfloat16()[..., 1 : 1 + length]
    u = signals.pop("u")
    judged(plan, rng, u, filters(rng, 2, length), **signals)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("target", ["sm_80", "compute_80", *slow(("sm_86", "sm_89", "sm_100", "sm_120"))])
def test_every_target(target: str, rng: np.random.Generator) -> None:
    for length in (300, 4096):
        run(plan_for("causal", length, target), rng, options=("out_gate", "skip"))


PATHS = [plan_for("circular", 256), plan_for("circular", 4096), shaped("circular", (16, 16, 16), 1)]


@pytest.mark.parametrize("plan", PATHS, ids=lambda p: f"{p.factors}-{p.memory_class}")
def test_sizes_of_any_magnitude_side_by_side(plan: Plan, rng: np.random.Generator) -> None:
    """bf16 has the range of fp32: 1e-30 beside 1e30, with no scaling."""
    sizes = torch.tensor([1e-30, 1e30, 1.0, 1e-3, 1e5]).double()[:, None, None]
    u = (draw(rng, 5, 2, plan.problem.length) * sizes).bfloat16()
    k = filters(rng, 2, plan.problem.length)
    y = call(plan, u, k)
    for b in range(5):
        check(plan, y[b : b + 1], u[b : b + 1], k)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("plan", PATHS, ids=lambda p: f"{p.factors}-{p.memory_class}")
def test_what_is_not_finite_stays_in_its_row(plan: Plan, value: float, rng: np.random.Generator) -> None:
    n = plan.problem.length
    u, k = draw(rng, 4, 2, n).bfloat16(), filters(rng, 2, n)
    clean = call(plan, u, k)
    u[1, 1, int(rng.integers(n))] = value
    y = call(plan, u, k)
    assert not y[1, 1].isfinite().any()
    y[1, 1] = clean[1, 1]
    assert torch.equal(y.view(torch.int16), clean.view(torch.int16))
    u[1, 1] = 0
    assert not call(plan, u, k)[1, 1].any()


def test_a_skip_term_joins_a_prepared_spectrum(rng: np.random.Generator) -> None:
    plan = plan_for("causal", 3700)
    skip = torch.tensor([1e-6, 0.0, -1.0, 300.0, -1e30])
    u, k = draw(rng, 3, 5, 3700).bfloat16(), filters(rng, 5, 3700)
    made = spectrum(plan, k)
    assert made.planes.dtype == torch.float16
    check(plan, prepared(plan, u, *with_skip(plan, made.planes, made.scale, skip)), u, k, skip=skip)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [65_536, 1_048_576])
def test_sampled_blocks_of_long_transforms(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length)
    module, ptx = built(plan)
    samples = list(check_launches(module, ptx, int(rng.integers(2**31))))
    assert [s.description.split(":")[0] for s in samples] == ["columns1", "rows", "columns_inverse1"]
    assert all(s.accuracy.passed for s in samples), samples


def test_it_takes_the_matrix_operations_of_scaled_fp16(rng: np.random.Generator) -> None:
    plan = plan_for("causal", 4096)
    simulated = run(plan, rng, batch=3)
    (report,) = simulated.reports.values()
    assert set(report.counters.tensor) == {"mma.m16n8k16.f32.bf16"}
    assert sum(report.counters.tensor.values()) == 3 * 640 == 3 * 2 * tensor_ops(plan)


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "gated"])
@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_memory_is_reached_as_well_as_can_be(
    length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    batch = 8 if length <= 1024 else 2
    (report,) = run(plan_for("causal", length), rng, batch=batch, options=options).reports.values()
    counters, compulsory = report.counters, 2 * batch * length / 32
    for name in {"u", *(o for o in options if "gate" in o)}:
        assert counters.buffers[name].loads.units <= 1.02 * compulsory, name
    assert counters.buffers["y"].stores.units <= 1.02 * compulsory
    for kind in (counters.shared_loads, counters.shared_stores):
        assert 0 < kind.units <= 1.05 * kind.least


@pytest.mark.drawn(2)
@pytest.mark.parametrize("target", [*slow(["sm_80"]), "sm_90"])
@pytest.mark.parametrize("length", [256, 4096, *slow((512, 1024, 8192, 16_384, 32_768, 65_536, 1_048_576))])
def test_no_kernel_spills(length: int, target: str) -> None:
    """And the model's instructions are near those of the compiled code."""
    plan = plan_for("causal", length, target)
    for name, taken in compiled.cubin(render(plan), target).resources.items():
        # Two registers of columns on their way out, since addresses take fewer instructions; columns of 32 in
        # a block, twice the sums of which wait: half of the matrix is made of the other.
        few = 8 if name.endswith("_columns_inverse1") else 28 if (length, target) == (8192, "sm_80") else 0
        assert max(taken.spill_store_bytes, taken.spill_load_bytes) <= few, name
    if toolkit.find_tool("nvdisasm") is None:
        return
    for role, path in hot_path.hot_paths(plan, False).items():
        kernel = plan.kernel(role)
        modelled = mma_instructions(plan, kernel, work.tensor_ops(plan, kernel))
        assert abs(modelled / path.per_transform(plan.transform) - 1) < 0.1, role


def test_what_it_is_not_for() -> None:
    with pytest.raises(NoPlanError, match="bf16 operands would drop bits of fp16"):
        search.plan(Problem("causal", 4096, "fp16"), "sm_90", ENGINE)
    with pytest.raises(NoPlanError, match="sm_75"):
        search.plan(Problem("causal", 4096, "bf16"), "sm_75", ENGINE)
    with pytest.raises(NoPlanError, match="share its noise"):
        search.with_shape(Problem("circular", 4096, "bf16"), "sm_90", (16, 16, 16), 0, ENGINE)


def test_emulation_runs_it_like_any_other(rng: np.random.Generator) -> None:
    """A reversed filter beside a causal one: their spectrum is fp16, as it is for scaled operands."""
    plan = plan_for("causal", 1000)
    u, k, back = draw(rng, 2, 2, 1000).bfloat16(), filters(rng, 2, 1000), filters(rng, 2, 700)
    module, ptx = built(plan)
    y, _ = emulate.convolve(module, u, k, ptx=ptx, k_rev=back)
    ref: Tensor = torch.zeros(2, 2, 1000, dtype=torch.float64)
    for taps, turn in ((k, False), (back, True)):
        x = u.double().flip(-1) if turn else u.double()
        z = torch.fft.irfft(torch.fft.rfft(x, 2048) * torch.fft.rfft(taps.double(), 2048), 2048)[..., :1000]
        ref += z.flip(-1) if turn else z
    error = (y.double() - ref).norm() / ref.norm()
    assert 1e-4 < error < 1.5 * 4.1e-3

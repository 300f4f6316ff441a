"""Ring 3 and 4 for the end of a filter's gradient: the PTX of its kernels in the simulator, against float64.

Sums are drawn at random here; that they are the right ones is for test_gradient.py to say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import compiled
import numpy as np
import numpy.typing as npt
import pytest
import torch
from argument_blocks import assert_laid_out
from calls import built
from cases import slow, usually
from mutations import dropped_barriers, running
from torch import Tensor

from fftgen import emulate, launch
from fftgen.errors import InternalError
from fftgen.gradient import finish, finish_by_kernels
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.order import sum_index
from fftgen.problem import Problem
from fftgen.render import render_gradient
from fftgen.simulator import Report, SimulationError

FP32 = 3e-7  # relative L2 error of a channel's gradient; measured: 1.1e-7 to 2.0e-7, as torch.fft's


def gradient_for(length: int, target: str = "sm_90", dtype: str = "bf16") -> Gradient:
    return gradient(Problem("causal", length, dtype), target)


def ptx_of(found: Gradient) -> tuple[str, str, Tensor]:
    """PTX, source text and table block."""
    module, ptx = built(found)
    return ptx, module.source.text, torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)


@dataclass(frozen=True)
class Made:
    """What the kernels made of a sum, and what they counted, by role."""

    taps: Tensor
    reports: dict[str, Report]


def make(
    found: Gradient,
    sums: Tensor,
    taps: int,
    *,
    length: int = 0,
    period: int = 0,
    ptx: str = "",
    seed: int = 0,
) -> Made:
    """The kernels' (H, taps), every number of which they must have written."""
    own, text, block = ptx_of(found)
    simulated = emulate.Simulated(ptx or own, text, seed)
    made = finish_by_kernels(
        found,
        simulated,
        sums,
        length or found.problem.length,
        taps,
        period,
        sums_at=simulated.address("sum", sums),
        tables_at=simulated.address("tables", block),
        address=simulated.address,
    )
    if simulated.unwritten("lags"):
        raise InternalError(f"{found.name} left lags unwritten")
    roles = {found.plan.filter_entry(kernel): kernel.role for kernel in found.plan.filter.kernels}
    return Made(made, {roles[name]: r for name, r in simulated.reports.items()})


def exact(
    found: Gradient, sums: Tensor, taps: int, *, length: int = 0, period: int = 0
) -> npt.NDArray[np.float64]:
    """By definition, in float64: the transpose of weights, DFT and stored order."""
    plan = found.plan
    n, channels = plan.transform, sums.shape[0]
    spectra = np.zeros((channels, 2 * n))
    spectra[:, sum_index(plan)] = sums.double().sum(dim=1).numpy()
    weights = np.exp(0.5j * np.pi * np.arange(n) / n)
    q = weights * np.fft.fft(spectra.view(np.complex128).conj()) * plan.residual
    lags = np.zeros((channels, taps))
    for j in range(min(taps, period or length or found.problem.length)):
        lags[:, j] = q[:, j].real + (q[:, n - period + j].imag if period and j else 0)
    return lags


def error(made: Tensor, wanted: npt.NDArray[np.float64]) -> float:
    assert made.dtype == torch.float32
    assert made.shape == wanted.shape
    return float((np.linalg.norm(made.numpy() - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def draw(rng: np.random.Generator, found: Gradient, channels: int = 2, parts: int = 1) -> Tensor:
    sums = rng.standard_normal((channels, parts, 2 * found.plan.transform))
    return torch.from_numpy(sums.astype(np.float32))


# One block (to 24 576 on sm_90), and two passes: columns of one stage, of two, of a factor of 3 or 5.
ONE = ((256, "sm_90"), (512, "sm_80"), (768, "sm_90"), (2048, "sm_90"), (4096, "sm_80"), (20_480, "sm_90"))
TWO = ((16_384, "sm_86"), (40_960, "sm_86"), (65_536, "sm_90"), (131_072, "sm_80"), (196_608, "sm_86"))
MORE = ((8192, "sm_120"), (24_576, "compute_80"))
USUAL = [case for case in (*ONE, *TWO, *MORE) if case[0] not in (512, 2048, 8192, 40_960, 131_072)]


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("length", "target"),
    usually([*ONE, *TWO, *MORE], USUAL),
)
@pytest.mark.parametrize("parts", [1, 3])
def test_taps_of_every_length(length: int, target: str, parts: int, rng: np.random.Generator) -> None:
    found = gradient_for(length, target)
    assert found.plan.filter.whole == ((length, target) not in (*TWO, (24_576, "compute_80")))
    sums = draw(rng, found, 1 if length > 10_000 else 3, parts)
    made, wanted = make(found, sums, length), exact(found, sums, length)
    assert error(made.taps, wanted) < FP32
    assert error(finish(found, sums, length, length), wanted) < FP32
    assert set(made.reports) == {k.role for k in found.plan.filter.kernels} - {"finish_wrap"}


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("length", "target"),
    [(250, "sm_90"), (256, "sm_80"), (700, "sm_90"), (3073, "sm_80"), (60_001, "sm_90"), (65_536, "sm_80")],
)
@pytest.mark.parametrize("short", [0, 17])
def test_lags_come_around_a_circle(length: int, target: str, short: int, rng: np.random.Generator) -> None:
    """All lags, and so few that hardly anything that comes around comes to one of them."""
    found = gradient_for(length, target)
    sums = draw(rng, found, 2, 2)
    taps = length - short if length > 1000 else short or length
    made = make(found, sums, taps, period=length)
    wanted = exact(found, sums, taps, period=length)
    assert error(made.taps, wanted) < FP32
    assert error(finish(found, sums, length, taps, length), wanted) < FP32
    assert ("finish_wrap" in made.reports) == (length == 60_001)


@pytest.mark.parametrize(("length", "target"), [(4096, "sm_90"), (16_384, "sm_86")])
def test_taps_fewer_and_more_than_there_are_lags(length: int, target: str, rng: np.random.Generator) -> None:
    """Nothing is written beyond the taps (the simulator would say so); beyond the length they are zero.

    They are the first of all lags, bit for bit. One or two by themselves may nearly cancel, and their error
    in proportion to them says nothing: those of all lags is what is bounded.
    """
    found = gradient_for(length, target)
    sums = draw(rng, found, 3)
    whole = make(found, sums, length, length=length)
    assert error(whole.taps, exact(found, sums, length, length=length)) < FP32
    for taps, steps in (
        (1, length),
        (2, 100),
        (129, 129),
        (1000, 77),
        (length - 1, length),
        (length + 9, length),
    ):
        made = make(found, sums, taps, length=steps)
        reach = min(taps, steps)
        assert torch.equal(made.taps[:, :reach], whole.taps[:, :reach])
        if reach > 64:
            assert error(made.taps, exact(found, sums, taps, length=steps)) < FP32
        assert not made.taps[:, steps:].any()


def test_chunks_reuse_the_workspace(rng: np.random.Generator) -> None:
    """Five channels through a workspace of two: three chunks; what comes around is added once."""
    found = gradient_for(15_000, "sm_86")
    plan = found.plan
    bounded = dataclasses.replace(plan.filter, chunk_bytes=2 * 8 * plan.transform)
    small = dataclasses.replace(found, plan=dataclasses.replace(plan, filter=bounded))
    sums = draw(rng, found, 5)
    for period in (0, 15_000):
        made = make(small, sums, 15_000, period=period)
        assert error(made.taps, exact(found, sums, 15_000, period=period)) < FP32
        assert made.reports["finish_rows"].blocks == 5 * plan.transform // plan.filter.rest


@pytest.mark.parametrize(("length", "target"), [(700, "sm_90"), (16_384, "sm_86")])
def test_parts_are_added_in_their_order_whatever_the_order_of_blocks(
    length: int, target: str, rng: np.random.Generator
) -> None:
    found = gradient_for(length, target)
    sums = draw(rng, found, 2, 7)
    total = sums[:, 0].clone()
    for part in range(1, 7):
        total += sums[:, part]
    made = make(found, sums, length, period=length).taps
    assert torch.equal(made, make(found, total[:, None], length, period=length, seed=1).taps)
    assert torch.equal(made, make(found, sums, length, period=length, seed=2).taps)
    assert not torch.equal(made, make(found, sums.flip(1), length, period=length).taps)


@pytest.mark.parametrize("size", [1e-30, 1e20])
def test_sums_of_any_size(size: float, rng: np.random.Generator) -> None:
    for length, target in ((1000, "sm_90"), (16_384, "sm_86")):
        found = gradient_for(length, target)
        sums = draw(rng, found) * size
        assert error(make(found, sums, length).taps, exact(found, sums, length)) < FP32


@pytest.mark.parametrize(("length", "target"), [(250, "sm_90"), (15_000, "sm_86")])
def test_what_is_not_finite_stays_in_its_channel(length: int, target: str, rng: np.random.Generator) -> None:
    found = gradient_for(length, target)
    good = draw(rng, found, 3)
    sums = good.clone()
    sums[0] = 0
    sums[1, 0, int(rng.integers(2 * found.plan.transform))] = float("nan")
    made, clean = make(found, sums, length, period=length), make(found, good, length, period=length)
    assert not made.taps[0].any()
    assert made.taps[1].isnan().all()
    assert torch.equal(made.taps[2], clean.taps[2])


@pytest.mark.drawn(4)
@pytest.mark.parametrize(("length", "target"), [(500, "sm_90"), (3700, "sm_80"), (100_000, "sm_80")])
def test_no_barrier_can_be_missed(length: int, target: str, rng: np.random.Generator) -> None:
    found = gradient_for(length, target)
    sums, (ptx, source, _) = draw(rng, found), ptx_of(found)
    right = emulate._parsed(ptx, source)
    entries = {found.plan.filter_entry(kernel) for kernel in found.plan.filter.kernels}
    mutants = [m for m in dropped_barriers(ptx) if m.entry in entries]
    stages = sum(len(k.stages) for k in found.plan.filter.kernels)
    assert len(mutants) >= (stages + 1 if found.plan.filter.whole else stages - 1)
    for mutant in mutants:
        with pytest.raises(SimulationError), running(mutant.module(right)):
            make(found, sums, length, period=length, ptx=ptx)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(("length", "target"), usually([*ONE, *TWO], USUAL))
def test_memory_is_touched_once(length: int, target: str, rng: np.random.Generator) -> None:
    """Sum, workspace and taps: no sector more than there are. Shared memory: the scatter alone conflicts."""
    found = gradient_for(length, target)
    plan, parts = found.plan, 2
    made = make(found, draw(rng, found, 1, parts), length)
    once = plan.transform * 8 // 32
    first = made.reports["finish" if plan.filter.whole else "finish_rows"].counters
    last = made.reports["finish" if plan.filter.whole else "finish_columns"].counters
    assert first.buffers["sum"].loads.units == parts * once
    assert last.buffers["lags"].stores.units == length * 4 // 32
    if not plan.filter.whole:
        assert first.buffers["finish_workspace"].stores.units == once
        assert last.buffers["finish_workspace"].loads.units == once
    shared = [r.counters for r in made.reports.values()]
    taken, least = sum(c.shared_wavefronts for c in shared), sum(c.shared_wavefronts_least for c in shared)
    assert taken <= 1.25 * least, f"{taken} wavefronts where {least} would do"


@pytest.mark.parametrize("target", [*slow(["sm_80"]), "sm_90"])
@pytest.mark.parametrize("length", [256, 20_480, 65_536, *slow((768, 8192, 655_360, 1 << 20))])
def test_no_kernel_spills(length: int, target: str) -> None:
    found = gradient_for(length, target)
    resources = compiled.cubin(render_gradient(found), target).resources
    for kernel in found.plan.filter.kernels:
        r = resources[found.plan.filter_entry(kernel)]
        assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0, (str(found), kernel.role, r)
        assert r.registers * kernel.threads * kernel.resident <= 65_536, (str(found), kernel.role, r)


FINISH = (
    *((name, "Q") for name in ("sums", "lags", "tails", "tables", "workspace")),
    *((name, "i") for name in ("first", "parts", "reach", "period")),
)
GRADIENT = (
    ("x", f"{launch.ARGS_BYTES}s"),
    ("v", f"{launch.ARGS_BYTES}s"),
    ("sums", "Q"),
    ("spectra", "Q"),
    ("parts", "i"),
    ("workers", "i"),
)


@pytest.mark.parametrize(
    ("name", "kind", "fields", "size"),
    [
        ("finish", "FinishArgs", FINISH, launch.FINISH_ARGS_BYTES),
        ("gradient", "GradientArgs<__half>", GRADIENT, launch.GRADIENT_ARGS_BYTES),
    ],
)
def test_the_argument_block_is_the_structure_the_kernels_read(
    name: str, kind: str, fields: tuple[tuple[str, str], ...], size: int
) -> None:
    assert_laid_out(name, kind, fields, size)


@pytest.mark.slow
def test_a_million_points(rng: np.random.Generator) -> None:
    found = gradient_for(1_000_000)
    sums = draw(rng, found, 1)
    made = make(found, sums, 700_001, period=1_000_000)
    assert error(made.taps, exact(found, sums, 700_001, period=1_000_000)) < FP32


@pytest.mark.slow
def test_the_longest_transform(rng: np.random.Generator) -> None:
    found = gradient_for(4_194_304)
    sums = draw(rng, found, 1)
    made = make(found, sums, 4_194_304)
    assert error(made.taps, exact(found, sums, 4_194_304)) < FP32

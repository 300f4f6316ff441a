"""Ring 3 and 4 for the filter's spectrum: the PTX of its kernels in the simulator, against float64 and torch.

The planes are rounded to 16 bits, which hides errors of fp32: where a test is about them, the source is
compiled once more with a line that also writes what is about to be rounded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, product
from math import prod

import compiled
import numpy as np
import numpy.typing as npt
import pytest
import torch
from argument_blocks import assert_laid_out
from cases import slow, usually
from torch import Tensor

from fftgen import emulate, nvrtc
from fftgen.launch import FILTER_ARGS_BYTES, NO_TAPS, FilterCall, Taps, run_filter
from fftgen.planner import search, tables
from fftgen.planner.order import spectrum_index
from fftgen.planner.plan import Plan
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import GlobalRace, Report
from fftgen.source import Source
from fftgen.spectra import Spectrum, spectrum, with_skip

FP32 = (
    3e-7  # relative L2 error of a spectrum before it is rounded; measured: 1.0e-7 to 1.7e-7, as torch.fft's
)
TINY = 2e-6  # of the largest modulus: near a zero of the spectrum an error of fp32 spans several fp16 numbers
TALE = "    if (threadIdx.x == 0) store_scale(args, channel, e);\n"
TELL = """    for (int i = threadIdx.x; i < P; i += THREADS)
        args.workspace[channel * (long long)P + i] = data[spread(i)];
"""
TALE_OF_A_ROW = "        row[0].x = __int_as_float(found);  // what levels rows finds it there\n    }\n"
TELL_OF_A_ROW = "    for (int i = threadIdx.x; i < P; i += THREADS) row[i] = data[spread(i)];\n"


def plan_for(mode: str, length: int, dtype: str = "bf16", target: str = "sm_90") -> Plan:
    return search.plan(Problem(mode, length, dtype), target)


def wmma(mode: str, *factors: int, device: int = 0) -> Plan:
    dtype = "bf16" if mode == "causal" else "fp16"  # pairs are scaled, which in bf16 nothing is
    return search.with_shape(Problem(mode, prod(factors), dtype), "sm_90", factors, device, "wmma")


def whole_period(*factors: int, device: int = 0, engine: str = "mma") -> Plan:
    """A circular length that folds although it is the transform's."""
    problem = Problem("circular", prod(factors), "bf16")
    return search.with_shape(problem, "sm_90", factors, device, engine, fold=True)


@lru_cache(maxsize=16)
def ptx_of(plan: Plan, telling: bool = False) -> tuple[str, str, Tensor]:
    """PTX, source text and table block. ``telling``: the fp32 spectrum goes to the workspace as well."""
    source = render(plan)
    text = source.text
    if telling:  # of rows in place of what levels them would find: it does not touch the workspace
        tale, tell = (TALE, TELL) if plan.filter.whole else (TALE_OF_A_ROW, TELL_OF_A_ROW)
        if plan.exact_mean:
            tale = tale.replace("e);", "e, down_to);")
        assert text.count(tale) == 1
        text = text.replace(tale, (tale if plan.filter.whole else "    }\n") + tell)
    source = Source(source.name, text, source.headers, source.entries)
    ptx = compiled.line_ptx(source, plan.target)
    return ptx, text, torch.frombuffer(bytearray(tables.build(plan)), dtype=torch.uint8)


@dataclass(frozen=True)
class Made:
    """What the kernels of a plan made of a filter, and what they counted, by role."""

    planes: Tensor
    scale: Tensor
    reports: dict[str, Report]


def make(plan: Plan, k: Tensor | None, skip: Tensor | None = None, back: Tensor | None = None) -> Made:
    """A filter's spectrum by the kernels, all of which must have written all of it."""
    ptx, text, block = ptx_of(plan)
    simulated = emulate.Simulated(ptx, text)
    made = prepare(plan, block, simulated, k, back, skip, address=simulated.address)
    assert simulated.unwritten("filter_planes") == simulated.unwritten("filter_scale") == 0
    assert made.digest == plan.digest
    assert made.filter_length == max(f.shape[1] for f in (k, back) if f is not None)
    roles = {plan.filter_entry(kernel): kernel.role for kernel in plan.filter.kernels}
    assert set(simulated.reports) == set(roles)
    return Made(made.planes, made.scale, {roles[name]: r for name, r in simulated.reports.items()})


def unrounded(plan: Plan, k: Tensor, back: Tensor | None = None) -> npt.NDArray[np.complex64]:
    """The fp32 spectrum (H, N) as the kernels hold it before rounding, digits reversed."""
    ptx, text, block = ptx_of(plan, True)
    simulated = emulate.Simulated(ptx, text)
    channels = k.shape[0]
    workspace = torch.empty(channels, plan.transform, 2)
    operand = torch.empty(channels, 2, plan.transform, dtype=spectrum(plan, k).planes.dtype)
    call = FilterCall(
        filter=Taps(simulated.address("filter", k), k.stride(0), k.shape[1]),
        back=NO_TAPS
        if back is None
        else Taps(simulated.address("back", back), back.stride(0), back.shape[1]),
        channels=channels,
        skip=0,
        planes=simulated.address("filter_planes", operand),
        scale=simulated.address("filter_scale", torch.empty(channels, 2)),
        tables=simulated.address("filter_tables", block),
        workspace=simulated.address("filter_workspace", workspace),
        peaks=simulated.address("filter_peaks", torch.zeros(channels, dtype=torch.int32)),
    )
    run_filter(plan, call, simulated)
    return np.asarray(torch.view_as_complex(workspace).numpy())


def reversed_digits(plan: Plan) -> npt.NDArray[np.int64]:
    """The frequency at each place that decimation in frequency leaves, from the radices alone."""
    frequency, stride = np.zeros(1, np.int64), 1
    for radix in (s.radix for kernel in plan.filter.kernels for s in kernel.stages):
        frequency = (frequency[:, None] + stride * np.arange(radix)).reshape(-1)
        stride *= radix
    return frequency


def exact(
    plan: Plan, k: Tensor | None, skip: Tensor | None = None, back: Tensor | None = None
) -> npt.NDArray[np.complex128]:
    """The natural spectrum (H, N) in float64, by definition."""
    n = plan.transform
    period = plan.fold or n
    given = [f for f in (k, back) if f is not None]
    taps = np.zeros((given[0].shape[0], n), complex)
    if k is not None:
        taps[:, : k.shape[1]] = k.double().numpy()
    for m in range(back.shape[1] if back is not None else 0):
        assert back is not None
        tap = back[:, m].double().numpy()
        if m == 0:
            taps[:, 0] += tap
        elif plan.problem.causal:  # x^n = i
            taps[:, n - m] -= 1j * tap
        else:
            taps[:, period - m] += tap
    if plan.fold:
        taps[:, n - period + 1 :] -= 1j * taps[:, 1:period]
    if skip is not None:
        taps[:, 0] += skip.double().numpy()
    if plan.real_input:
        taps *= np.exp(0.5j * np.pi * np.arange(n) / n)
    return np.fft.fft(taps)


def check(
    plan: Plan, made: Made, k: Tensor | None, skip: Tensor | None = None, back: Tensor | None = None
) -> None:
    """Scale and planes as those of torch, up to a unit in the last place; and right against float64."""
    reference = spectrum(plan, k, back, skip)
    check_scale(plan, made, reference)
    assert made.planes.shape == reference.planes.shape
    assert made.planes.dtype == reference.planes.dtype
    found, other = made.planes.double(), reference.planes.double()
    assert torch.isfinite(found).all()
    bits = made.planes.view(torch.int16).int(), reference.planes.view(torch.int16).int()
    ordered = [torch.where(b < 0, -32768 - b, b) for b in bits]
    steps = (ordered[0] - ordered[1]).abs()
    far = (steps > 1) & ((found - other).abs() > TINY)
    assert not far.any(), f"{int(far.sum())} numbers differ by more than a unit in the last place"
    if reference.filter_length > 2:  # else they may be one number, or nearly: on a border of rounding
        share = float((steps > 0).double().mean())
        # A folded spectrum has hardly more numbers, each many times; a mean that is small differs the more.
        few = reference.filter_length <= 8 or plan.exact_mean
        assert share < (0.05 if few else 0.01), f"{share:.2%} of the numbers differ from torch's"
    natural = exact(plan, k, skip, back) * made.scale[:, :1].double().numpy()
    wanted = natural.view(np.float64)[:, spectrum_index(plan)].reshape(found.shape)
    largest = np.abs(natural).max(axis=1)
    least, most = (0.25, 1.0006) if plan.exact_mean else (0.5, 1)
    assert ((largest >= least - TINY) & (largest < most + TINY)).all()
    half = torch.finfo(made.planes.dtype).eps / 2
    error = np.abs(found.numpy() - wanted)
    assert (error <= half * np.abs(wanted) + TINY).all()
    undone = made.scale[:, 0] * made.scale[:, 1]
    assert torch.allclose(undone, torch.full_like(undone, plan.residual), rtol=3e-7)


def check_scale(plan: Plan, made: Made, reference: Spectrum) -> None:
    """A power of two, the same as torch's. Of batch pairs that one block has it is up to half of that, which
    makes frequency 0 a power of two, but for what is given back to white noise.
    """
    if not plan.exact_mean:
        assert torch.equal(made.scale, reference.scale)
    else:
        assert torch.allclose(made.scale, reference.scale, rtol=1e-4)


def draw(rng: np.random.Generator, channels: int, taps: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((channels, taps)).astype(np.float32))


LENGTHS = (256, 512, 768, 1000, 1024, 1536, 4096, 8192, 12_288, 20_480, 32_768, 65_536)
WMMA = ((16, 16), (16, 32), (48, 16), (32, 32), (16, 16, 16), (48, 16, 16), (80, 16, 16), (112, 16, 16))


MODES = ("causal", "circular")


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("length", "mode"),
    usually(product(LENGTHS, MODES), [*zip(LENGTHS, cycle(MODES)), (4096, "circular")]),
)
def test_spectra_of_every_length(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length)
    k = draw(rng, 1 if length > 10_000 else 3, length)
    check(plan, make(plan, k), k)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("factors", "mode"), usually(product(WMMA, MODES), list(zip(WMMA[1::2], cycle(MODES))))
)
def test_spectra_in_the_order_of_the_wmma_engine(
    mode: str, factors: tuple[int, ...], rng: np.random.Generator
) -> None:
    plan = wmma(mode, *factors)
    k = draw(rng, 2, plan.transform)
    check(plan, make(plan, k), k)


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    "plan",
    [
        *(plan_for("circular", n) for n in (1, 250, 3700, 65_521)),
        *slow(plan_for("circular", n) for n in (1009, 5003, 20_000, 100_000)),
        plan_for("circular", 8000, target="sm_75", dtype="fp16"),  # two passes
        whole_period(16, 16),
        whole_period(16, 16, 16),
        whole_period(64, 16, 32, device=1),
        whole_period(48, 16, 16, engine="wmma"),
    ],
    ids=lambda p: f"{p.fold}-{p.factors}-{p.engine}-{p.target}",
)
def test_spectra_of_folded_lengths(plan: Plan, rng: np.random.Generator) -> None:
    """Taps that stand twice: filters as long as the period, shorter ones, one tap, each with a skip term.

    Of one tap only where radices are powers of two: else rounding stands where torch.fft has zeros.
    """
    n = plan.fold
    fewest = 1 if plan.transform & (plan.transform - 1) == 0 else 2
    for taps in sorted({fewest, min(2, n), n // 3 + 1, n - n // 7, n}):
        k, skip = draw(rng, 1 if n > 10_000 else 3, taps), draw(rng, 1 if n > 10_000 else 3, 1)[:, 0]
        check(plan, make(plan, k), k)
        check(plan, make(plan, k, skip), k, skip)


BACKWARDS = [
    *(plan_for(mode, n) for n in (256, 4096) for mode in ("causal", "circular")),
    plan_for("causal", 1000),  # a transform that is longer
    plan_for("circular", 20_480),
    plan_for("causal", 65_536),
    *(plan_for("circular", n) for n in (3, 3700)),
    plan_for("circular", 8000, target="sm_75", dtype="fp16"),  # two passes
    whole_period(16, 16),
    wmma("causal", 48, 16, 16),
    *slow(
        [
            *(plan_for(mode, 768) for mode in ("causal", "circular")),
            plan_for("causal", 20_480),
            plan_for("causal", 8000, target="sm_75", dtype="fp16"),
            plan_for("circular", 250),
            wmma("circular", 32, 32),
        ]
    ),
]


@pytest.mark.drawn(5)
@pytest.mark.parametrize("plan", BACKWARDS, ids=lambda p: f"{p.problem.mode}-{p.problem.length}-{p.engine}")
def test_spectra_of_filters_that_act_backwards_in_time(plan: Plan, rng: np.random.Generator) -> None:
    """Alone and beside one that acts forwards, as long as can be, shorter, and two taps; with a skip term."""
    n, channels = plan.problem.length, 1 if plan.problem.length > 10_000 else 3
    skip = draw(rng, channels, 1)[:, 0]
    for ahead, behind in ((0, n), (n, n), (n - n // 3, min(2, n)), (min(2, n), n - n // 7)):
        k, back = draw(rng, channels, ahead) if ahead else None, draw(rng, channels, behind)
        check(plan, make(plan, k, skip, back), k, skip, back)
    alone = make(plan, None, back=back)
    check(plan, alone, None, back=back)
    assert not torch.equal(alone.planes, make(plan, back).planes)


def test_one_tap_that_acts_backwards_is_one_that_acts_forwards(rng: np.random.Generator) -> None:
    for plan in (plan_for("causal", 256), plan_for("circular", 256), plan_for("circular", 250)):
        k = draw(rng, 2, 1)
        ahead, back = make(plan, k), make(plan, None, back=k)
        assert torch.equal(ahead.planes, back.planes)
        assert torch.equal(ahead.scale, back.scale)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("mode", "length", "target"),
    [
        ("causal", 256, "sm_75"),
        ("circular", 8192, "sm_75"),  # two passes
        ("circular", 16_384, "sm_86"),
        ("circular", 7168, "compute_80"),
        *slow([("causal", 24_576, "sm_80"), ("causal", 5120, "sm_120")]),
    ],
)
def test_spectra_on_other_targets(mode: str, length: int, target: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, "fp16", target)
    k = draw(rng, 2, length)
    check(plan, make(plan, k), k)


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    "plan",
    [
        plan_for("causal", 256),
        plan_for("circular", 768),
        *(plan_for(mode, 4096) for mode in ("causal", "circular")),
        plan_for("circular", 20_480),
        plan_for("causal", 65_536),
        wmma("circular", 112, 16, 16),
        wmma("causal", 96, 32, 32, device=1),
        plan_for("circular", 3700),
        *slow(
            [
                plan_for("circular", 256),
                plan_for("causal", 768),
                plan_for("causal", 20_480),
                plan_for("causal", 24_576),
                plan_for("circular", 65_536),
                plan_for("circular", 65_521),
            ]
        ),
    ],
    ids=lambda p: f"{p.problem.mode}-{p.problem.length}-{p.factors}-{p.engine}",
)
def test_the_error_is_that_of_fp32(plan: Plan, rng: np.random.Generator) -> None:
    k = draw(rng, 2, plan.problem.length)
    for back in (None, draw(rng, 2, plan.problem.length - plan.problem.length // 5)):
        found, wanted = unrounded(plan, k, back), exact(plan, k, back=back)[:, reversed_digits(plan)]
        error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() < FP32, f"relative error {error.max():.2e}"


@pytest.mark.drawn(5)
@pytest.mark.parametrize("taps", [1, 2, 129, 255, 2047, 4095])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
def test_short_and_odd_filters_with_a_skip(
    mode: str, taps: int, target: str, rng: np.random.Generator
) -> None:
    """What lies beyond the taps is not read (the simulator would say so) and counts as zero."""
    plan = plan_for(mode, 4096 if target == "sm_90" else 8192, "fp16", target)
    assert plan.filter.whole == (target == "sm_90")
    k, skip = draw(rng, 3, taps), draw(rng, 3, 1)[:, 0]
    made, without = make(plan, k, skip), make(plan, k)
    check(plan, made, k, skip)
    # Of one tap all frequencies are one number, which may be the same power of two with the skip: the scale
    # tells.
    assert not (torch.equal(without.planes, made.planes) and torch.equal(without.scale, made.scale))


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
def test_strided_rows_and_other_types(target: str, rng: np.random.Generator) -> None:
    """Of both filters, each with strides of its own."""
    plan = plan_for("causal", 8192, "fp16", target)
    wide = draw(rng, 3, 1001)
    for k in (
        wide[:, 3:700],
        wide[::2, 1:],
        draw(rng, 700, 3).t(),
        wide.half(),
        wide.bfloat16(),
        wide.double(),
    ):
        assert not k.is_contiguous() or k.dtype != torch.float32
        check(plan, make(plan, k), k.float())
        ahead = draw(rng, k.shape[0], 1001)
        check(plan, make(plan, ahead, back=k), ahead, back=k.float())


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1e6, 1e20, 1e30])
def test_filters_of_any_size(target: str, size: float, rng: np.random.Generator) -> None:
    plan = plan_for("causal", 8192, "fp16", target)
    k = draw(rng, 2, 8192) * torch.tensor([[size], [1.0]])
    check(plan, make(plan, k), k)


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_zeros_and_what_is_not_finite(mode: str, bad: float, target: str, rng: np.random.Generator) -> None:
    """Zeros stay zeros, a channel with a bad tap is bad at every frequency, its neighbours do not notice."""
    plan = plan_for(mode, 8192, "fp16", target)
    good = draw(rng, 4, 8192)
    k = good.clone()
    k[1] = 0
    k[2, int(rng.integers(8192))] = bad
    made, clean = make(plan, k), make(plan, good)
    assert torch.equal(made.scale[1:3], torch.tensor([[1.0, plan.residual]] * 2))
    check_scale(plan, made, spectrum(plan, k))
    assert not made.planes[1].any()
    parts = made.planes[2].float().reshape(-1, 2, plan.filter.pieces.plane)
    assert not torch.isfinite(parts).all(dim=1).any()
    for channel in (0, 3):
        assert torch.equal(made.planes[channel], clean.planes[channel])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_channels_abreast_that_are_not_finite_are_zeros(bad: float, rng: np.random.Generator) -> None:
    """Their neighbour's results meet their spectrum in one product: what is bad stands in the scale alone."""
    plan = plan_for("causal", 2048)
    k, skip = draw(rng, 4, 2048), torch.zeros(4)
    k[1, int(rng.integers(2048))], skip[2] = bad, bad
    made, by_torch, clean = make(plan, k, skip=skip), spectrum(plan, k, skip=skip), make(plan, k)
    for found in (made, by_torch):
        assert torch.equal(found.scale[:, 1].isnan(), torch.tensor([False, True, True, False]))
        assert not found.planes[1:3].any()
    joined, scale = with_skip(plan, clean.planes, clean.scale, skip)
    assert torch.equal(scale[:, 1].isnan(), made.scale[:, 1].isnan())
    assert not joined[1:3].any()
    for planes in (made.planes, joined):
        assert torch.equal(planes[::3], clean.planes[::3])


@pytest.mark.drawn(2)
@pytest.mark.parametrize("length", [256, 4096, 20_480, 65_536])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_frequency_0_of_pairs_is_a_power_of_two(dtype: str, length: int, rng: np.random.Generator) -> None:
    """But for what is given back to white noise. Where rows of the spectrum are in several blocks, or the
    filter has hardly a mean, it is rounded as any other."""
    plan = plan_for("circular", length, dtype)
    assert not plan.real_input
    k = draw(rng, 6, length) + torch.tensor([1, 0.5, -3, 100, 0, 0])[:, None]
    k[4] -= k[4].mean()
    made, other = make(plan, k), spectrum(plan, k)
    place = int(np.flatnonzero(spectrum_index(plan) == 0)[0])
    exact = k.double().sum(dim=1)
    for found in (made, other):
        stored = found.planes.reshape(6, -1)[:, place].double() * found.scale[:, 1].double() / plan.unscaled
        off = (stored / exact - 1).abs()[:4]
        if plan.filter.whole:
            powers = found.planes.reshape(6, -1)[:4, place].double().abs().log2()
            assert torch.equal(powers, powers.round())
            assert (off < 2e-6).all()
        else:
            assert (off > 1e-5).any()
    assert torch.equal(made.scale[4].log2().round(), other.scale[4].log2().round())


def test_the_peak_decides_exactly(rng: np.random.Generator) -> None:
    """One tap alone has one modulus everywhere: powers of two and their neighbours fall on the right side."""
    for target in ("sm_75", "sm_90"):
        plan = plan_for("circular", 8192, "fp16", target)
        below, above = np.nextafter(np.float32(4), np.float32([0, 9]))
        k = torch.tensor([[below], [4.0], [above], [2.0**-126], [2.0**-130], [3e38]], dtype=torch.float32)
        made = make(plan, k)
        assert made.scale[:, 0].log2().round().tolist() == [-2, -3, -3, 125, 126, -126]
        check_scale(plan, made, spectrum(plan, k))


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "plan",
    [
        plan_for("circular", 8192, "fp16", "sm_75"),
        plan_for("causal", 32_768),
        # Rows of 320 and of 96 pieces, of which a warp takes 128 at a time.
        plan_for("causal", 40_960),
        *slow([plan_for("circular", 196_608)]),
        *slow([plan_for("circular", 65_536), wmma("causal", 96, 32, 32, device=1)]),
    ],
    ids=lambda p: f"{p.problem.mode}-{p.problem.length}-{p.engine}",
)
def test_rows_that_stand_apart_come_to_one_power_of_two(plan: Plan, rng: np.random.Generator) -> None:
    """Tones beside noise, faint and loud, and one alone: every number as if rounded by the channel's power.

    What that makes subnormal is rounded twice.
    """
    n = plan.problem.length
    tones = np.cos(2 * np.pi * rng.integers(n, size=(4, 1)) * np.arange(n) / n)
    k = torch.from_numpy(tones * np.array([[1], [8], [1000], [1]])).float()
    k[:3] += draw(rng, 3, n)
    made = make(plan, k)
    z = np.ascontiguousarray(unrounded(plan, k)[:, np.argsort(reversed_digits(plan))])
    e = np.frexp(np.abs(z).max(axis=1))[1]
    assert made.scale[:, 0].log2().tolist() == (-e).tolist()
    values = np.ldexp(z.view(np.float32)[:, spectrum_index(plan)], -e[:, None])
    right = torch.from_numpy(values).to(made.planes.dtype)
    found, right = made.planes.reshape(4, -1).double(), right.double()
    least = torch.finfo(made.planes.dtype).smallest_normal
    assert torch.equal(found[right.abs() > least], right[right.abs() > least])
    assert (found - right).abs().max() <= least * torch.finfo(made.planes.dtype).eps
    level = made.reports["filter_level"].counters.buffers["filter_planes"]
    rows = 4 * plan.transform // plan.filter.rest
    each = 4 * plan.filter.rest // 32
    assert level.stores.units % each == 0
    assert rows // 4 <= level.stores.units // each < rows


def test_chunks_reuse_the_workspace(rng: np.random.Generator) -> None:
    """Five channels through a workspace of two: three chunks, each of three launches."""
    plan = plan_for("causal", 8192, "fp16", "sm_75")
    small = dataclasses.replace(
        plan, filter=dataclasses.replace(plan.filter, chunk_bytes=2 * 8 * plan.transform)
    )
    k = draw(rng, 5, 8192)
    made = make(small, k)
    check(small, made, k)
    rows, level = plan.filter.kernels[1:]
    assert made.reports["filter_rows"].blocks == 5 * plan.transform // rows.length
    assert made.reports["filter_level"].blocks == 5 * plan.transform // (rows.length * level.columns)


def test_a_missing_barrier_is_seen() -> None:
    """The simulator does watch these kernels: without barriers a stage races with the next."""
    from fftgen.simulator import SharedRace

    plan = plan_for("causal", 4096)
    source = render(plan)
    start = source.text.index(f"{plan.name}_filter(")
    text = source.text[:start] + source.text[start:].replace("    __syncthreads();\n", "")
    source = Source(source.name, text, source.headers, source.entries)
    simulated = emulate.Simulated(nvrtc.compile_ptx(source, "compute_90", line_info=True), text)
    with pytest.raises((SharedRace, GlobalRace)):
        prepare(plan, ptx_of(plan)[2], simulated, torch.ones(1, 4096), address=simulated.address)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("length", [256, 4096, 12_288, 20_480, 32_768, 65_536])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_memory_is_touched_once(mode: str, length: int, rng: np.random.Generator) -> None:
    """Taps, planes and workspace: no sector more than there are, but that rows tell their peaks there, and
    that some of them are brought to another power of two. Shared memory: conflicts of the gather alone weigh
    much."""
    plan = plan_for(mode, length)
    made = make(plan, draw(rng, 2, length))
    whole, planes = plan.filter.whole, 2 * 2 * plan.transform * 2 // 32
    first = made.reports[plan.filter.kernels[0].role].counters
    last = first if whole else made.reports["filter_rows"].counters
    assert first.buffers["filter"].loads.units == 2 * length // 8
    assert last.buffers["filter_planes"].stores.units == planes
    if not whole:
        once, rows = 2 * plan.transform * 8 // 32, 2 * plan.transform // plan.filter.kernels[1].length
        assert first.buffers["filter_workspace"].stores.units == once
        assert last.buffers["filter_workspace"].loads.units == once
        assert last.buffers["filter_workspace"].stores.units == rows
        level = made.reports["filter_level"].counters.buffers
        assert level["filter_workspace"].loads.units == rows
        again = level.get("filter_planes")
        assert again is None or again.loads.units == again.stores.units < planes
    shared = [r.counters for r in made.reports.values()]
    taken, least = sum(c.shared_wavefronts for c in shared), sum(c.shared_wavefronts_least for c in shared)
    assert taken <= 1.6 * least, f"{taken} wavefronts where {least} would do"


@pytest.mark.parametrize(
    ("target", "few"), [("sm_90", True), *slow([("sm_80", False), ("sm_90", False)])], ids=str
)
def test_no_filter_kernel_spills(target: str, few: bool) -> None:
    """The usual ``few`` are those that are not in the portfolio (test_generated.py)."""
    lengths = {"causal": (256, 4096, 65_536), "circular": (768, 1000, 20_000, 20_480, 1_000_003, 1_048_576)}
    if few:
        lengths = {"circular": (768, 1_000_003)}
    plans = [plan_for(mode, n, "bf16", target) for mode, those in lengths.items() for n in those]
    plans.append(search.with_shape(Problem("causal", 112 * 256, "bf16"), target, (112, 16, 16), 0, "wmma"))
    for plan in plans:
        found = compiled.cubin(render(plan), target).resources
        for kernel in plan.filter.kernels:
            r = found[plan.filter_entry(kernel)]
            if nvrtc.version() < (13, 5):
                # Of folds, what a filter that acts backwards is read by: put by once in a block.
                allowed = 176 if kernel.role == "filter_columns" and plan.fold else 8
                assert max(r.spill_store_bytes, r.spill_load_bytes) <= allowed, (str(plan), kernel.role, r)
                continue
            assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0, (
                str(plan),
                kernel.role,
                r,
            )
            assert r.registers * kernel.threads * kernel.resident <= 65_536, (str(plan), kernel.role, r)


FIELDS = (
    *(("filter", "Q"), ("stride", "q"), ("back", "Q"), ("back_stride", "q")),
    *((name, "Q") for name in ("skip", "planes", "scale", "tables", "workspace", "peaks")),
    *((name, "i") for name in ("first", "taps", "reach", "channels")),
)


def test_the_argument_block_is_the_structure_the_kernels_read() -> None:
    """The kernels take so many bytes, in which every field stands where the host packs it."""
    ptx, _, _ = ptx_of(plan_for("causal", 4096))
    declared = ptx.split("_filter(")[1].split(")")[0]
    assert f"[{FILTER_ARGS_BYTES}]" in declared, declared
    assert_laid_out("filter", "FilterArgs<__half>", FIELDS, FILTER_ARGS_BYTES)


@pytest.mark.slow
def test_a_million_points(rng: np.random.Generator) -> None:
    plan = plan_for("causal", 1_048_576)
    k = draw(rng, 1, 700_001)
    check(plan, make(plan, k), k)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_86", "sm_90"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_the_longest_transform(mode: str, target: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, 4_194_304, "fp16", target)
    k = draw(rng, 1, 4_194_304)
    check(plan, make(plan, k), k)

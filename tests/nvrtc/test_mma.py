"""Ring 3 for the "mma" engine: scaled fp16 through the register chain, run in the simulator.

Every call goes the way of a call on a GPU, with poisoned outputs, race and initialisation checks on. Bounds
are those of issue "Speed": 1.25 times the error of rounding the exact answer to bf16, 1.2e-3 for fp16.
"""

from __future__ import annotations

import itertools

import compiled
import numpy as np
import pytest
import torch
from calls import OPTIONS, TORCH, built, call, check, draw, exact, filters, judged, prepared, run
from cases import DTYPES, slow, usually
from hard_signals import every_pair, hard_signal, judge_rows_alone
from plans import on_engine

from fftgen import emulate, sass, toolkit
from fftgen.planner import variants
from fftgen.planner.cost import tensor_ops
from fftgen.planner.layouts import every_layout
from fftgen.planner.mma_rules import SPILLS, SPILLS_MANY, spilling
from fftgen.planner.plan import SCALED, Plan
from fftgen.planner.search import with_shape
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.sampled import check_launches
from fftgen.simulator import Report
from fftgen.spectra import spectrum, with_skip
from fftgen.targets import target

MODES = ("causal", "circular")
POWERS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
COMBINATIONS = [c for n in range(4) for c in itertools.combinations(OPTIONS, n)]
# Each another path: four transforms to a warp, two, one; a block of two channels abreast; a block stage of
# radix 16 and 32; a chain of 32 columns.
PATHS = (256, 512, 1024, 2048, 4096, 8192, 16_384)


def plan_for(mode: str, length: int, dtype: str = "bf16", target: str = "sm_90") -> Plan:
    return on_engine(Problem(mode, length, dtype), target, "mma")


EVERY = list(itertools.product(POWERS, MODES, DTYPES))
USUAL = [case for case in EVERY if case[2] == "bf16" or case[0] in (256, 1024, 16_384)]


@pytest.mark.drawn(5)
@pytest.mark.parametrize(("length", "mode", "dtype"), usually(EVERY, USUAL))
def test_powers_of_two(mode: str, length: int, dtype: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, dtype)
    assert plan.transform == length
    assert plan.memory_class == ("warp" if length <= 1024 else "block")
    run(plan, rng, batch=1 if length > 8192 else 3, channels=1 if length > 8192 else 3)


SHAPES = [
    (48, 16),
    (16, 64),
    (16, 16, 64),
    (48, 16, 32),
    (16, 32, 16),
    (80, 16, 16),
    (32, 16),
    (16, 64, 16),
    (64, 16),
]


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("factors", "mode"),
    usually(itertools.product(SHAPES, MODES), list(zip(SHAPES[:6], itertools.cycle(MODES)))),
    ids=str,
)
def test_other_shapes(mode: str, factors: tuple[int, ...], rng: np.random.Generator) -> None:
    """Tall and wide tiles, radices that are no powers of two; all options, an odd batch."""
    problem = Problem(mode, int(np.prod(factors)), "bf16")
    plan = with_shape(problem, "sm_90", factors, 0, engine="mma")
    run(plan, rng, batch=3, options=OPTIONS)


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    "length", [1, 257, 1000, 1500, 3000, 20_000, *slow((2, 17, 100, 1025, 2049, 5000, 5003, 12_000))]
)
def test_causal_lengths_that_are_no_transforms(length: int, rng: np.random.Generator) -> None:
    run(plan_for("causal", length), rng, batch=2 if length < 10_000 else 1, channels=2)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("mode", MODES)
def test_layouts_of_channels_abreast(mode: str, rng: np.random.Generator) -> None:
    """Of every width of columns, and twiddles in two levels; channels of an odd number, and a ragged end."""
    chip = target("sm_90")
    found = [*variants._levels(plan_for(mode, 2048, "fp16"), chip)]
    widths = [[x for x in found if x.body.columns == width] for width in (8, 4, 2)]
    drawn = [x[int(rng.integers(len(x)))] for x in widths]
    two_levels = [x for x in found if x.inner[0].two_levels]
    assert len(two_levels) == 1
    for plan in (*drawn, *two_levels):
        assert plan.abreast == 2
        run(plan, rng, batch=3, channels=3, options=OPTIONS)
        run(plan, rng, batch=2, channels=3, length=1999)


def folded(length: int, *factors: int, device: int = 0, dtype: str = "bf16") -> Plan:
    """A circular length in a right-angle transform of these radices."""
    problem = Problem("circular", length, dtype)
    return with_shape(problem, "sm_90", factors, device, engine="mma", fold=True)


# Four, two and one transform to a warp; a block of radix 16, 32 and 80; the device stage around the chain of
# a block and of a warp; periods as long as the transform.
FOLDED = [
    *(plan_for("circular", n) for n in (1, 250, 257, 1000, 3700, 5003, 65_521)),
    folded(3700, 16, 16, 16, device=1),
    folded(256, 16, 16),
    folded(4096, 16, 16, 16),
    folded(4096, 16, 16, 16, device=1),
    *slow(plan_for("circular", n) for n in (100, 2000, 20_000)),
]


@pytest.mark.drawn(5)
@pytest.mark.parametrize("plan", FOLDED, ids=lambda p: f"{p.fold}-{p.factors}-{p.memory_class}")
def test_circular_lengths_that_are_no_transforms(plan: Plan, rng: np.random.Generator) -> None:
    """Folded: whole rows with all options, then a ragged end and filters of other lengths."""
    n = plan.fold
    assert n == plan.problem.length
    run(plan, rng, batch=1 if n > 10_000 else 5, channels=2 if n < 10_000 else 1, options=OPTIONS)
    for length, taps in ((max(1, n - 3), n), (n, max(1, n // 2 - 1)), (n // 3 + 1, n)):
        run(plan, rng, batch=1 if n > 10_000 else 2, length=length, taps=taps)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("options", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize(
    "plan", [folded(250, 16, 16, dtype="fp16"), folded(3700, 16, 16, 16)], ids=["250", "3700"]
)
def test_every_combination_of_options_on_a_folded_length(
    plan: Plan, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    run(plan, rng, batch=3, options=options)


@pytest.mark.drawn(7)
@pytest.mark.parametrize("options", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("length", [512, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_every_combination_of_options(
    mode: str, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """At every length, in both types, on several targets: test_sweep."""
    for dtype in DTYPES:
        run(plan_for(mode, length, dtype), rng, batch=3, options=options)


@pytest.mark.drawn(8)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [256, 1024, 2048, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_odd_batches_and_channels(
    mode: str, length: int, batch: int, channels: int, rng: np.random.Generator
) -> None:
    """Groups of a warp that are not full, pairs without a partner, groups across channels."""
    run(plan_for(mode, length, "fp16"), rng, batch=batch, channels=channels, options=("in_gate", "skip"))


@pytest.mark.parametrize(
    ("length", "taps"), [(4096, 1), (4088, 100), (2049, 4096), (8, 4096), (1, 4096), (7, 9), (4095, 33)]
)
@pytest.mark.parametrize("mode", MODES)
def test_short_inputs_and_filters(mode: str, length: int, taps: int, rng: np.random.Generator) -> None:
    """Ragged ends are neither read nor written; rows of zeros are skipped."""
    run(plan_for(mode, 4096), rng, batch=3, length=length, taps=taps, options=OPTIONS)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", [250, 256, 4090, 4096])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["u", "in_gate", "out_gate"])
def test_rows_that_start_anywhere(mode: str, length: int, which: str, rng: np.random.Generator) -> None:
    """Views at odd offsets, rows an odd number of elements apart, lengths that are no multiple of eight."""
    plan = plan_for(mode, 256 if length < 300 else 4096)
    dtype = TORCH["bf16"]
    signals = {name: draw(rng, 3, 2, length).to(dtype) for name in ("u", "in_gate", "out_gate")}
    apart = draw(rng, 3, 2, length + 3).to(dtype)
    signals[which] = apart[..., 1 : 1 + length]
    u = signals.pop("u")
    judged(plan, rng, u, filters(rng, 2, length), skip=draw(rng, 2).float(), **signals)


TARGETS = ("sm_80", "sm_86", "sm_89", "sm_100", "sm_120", "compute_80")
ELSEWHERE = [("sm_80", "causal", 8192), ("sm_86", "causal", 8192), ("compute_80", "circular", 1024)]


@pytest.mark.parametrize(
    ("target", "mode", "length"),
    usually([(t, *c) for t in TARGETS for c in (("causal", 8192), ("circular", 1024))], ELSEWHERE),
)
def test_every_target(target: str, mode: str, length: int, rng: np.random.Generator) -> None:
    run(plan_for(mode, length, "fp16", target), rng, options=("out_gate", "skip"))


def test_pairs_that_fill_the_shared_memory_of_a_block(rng: np.random.Generator) -> None:
    plan = plan_for("circular", 32_768, "fp16", "sm_80")
    assert target("sm_80").shared_block - plan.body.shared_bytes < 8 * 1024
    run(plan, rng, batch=2, options=OPTIONS)
    run(plan, rng, length=32_761)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1 << 21, 1 << 22])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_rows_of_millions_of_points(
    dtype: str, length: int, mode: str, rng: np.random.Generator
) -> None:
    plan = plan_for(mode, length, dtype, "sm_80")
    samples = list(check_launches(*built(plan), int(rng.integers(2**31))))
    assert len(samples) == 3
    assert all(s.accuracy.passed for s in samples), samples


# Signals that formats of few bits find hard


HARD = [("bf16", name) for name in ("mean", "tails", "spike", "1e-20", "1e30")]
HARD += [("fp16", name) for name in ("mean", "tails", "spike", "1e-3")]


SLOW = usually(PATHS, (256, 1024, 4096))


@pytest.mark.drawn(8)
@pytest.mark.parametrize(("dtype", "name"), HARD)
@pytest.mark.parametrize("length", SLOW)
@pytest.mark.parametrize("mode", MODES)
def test_hard_signals(mode: str, length: int, dtype: str, name: str, rng: np.random.Generator) -> None:
    u = hard_signal(rng, name, 2 if length > 8192 else 3, 1, length).to(TORCH[dtype])
    k = filters(rng, 1, length) / 8
    if name == "mean":  # a filter that all but cancels what is large amplifies the rounding of u itself
        k[:, 0] += torch.copysign(k.norm(dim=1), k.sum(dim=1))
    judged(plan_for(mode, length, dtype), rng, u, k)


@pytest.mark.drawn(5)
@pytest.mark.parametrize(("dtype", "name"), HARD)
@pytest.mark.parametrize(
    ("length", "factors", "device"),
    [
        (250, (16, 16), 0),
        (3700, (16, 16, 16), 0),
        (3700, (16, 16, 16), 1),
        *slow([(1000, (32, 32), 0), (4096, (16, 16, 16), 0)]),
    ],
)
def test_hard_signals_of_folded_lengths(
    length: int, factors: tuple[int, ...], device: int, dtype: str, name: str, rng: np.random.Generator
) -> None:
    """What the transform holds beside the result is as large as the result: its noise counts, too."""
    u = hard_signal(rng, name, 2, 1, length).to(TORCH[dtype])
    k = filters(rng, 1, length) / 8
    if name == "mean":
        k[:, 0] += torch.copysign(k.norm(dim=1), k.sum(dim=1))
    judged(folded(length, *factors, device=device, dtype=dtype), rng, u, k)


@pytest.mark.parametrize("length", [256, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_one_transform_differ_in_size(mode: str, length: int, rng: np.random.Generator) -> None:
    """Each row has a power of its own, in a batch pair as well, and so has each strip on the way in."""
    sizes = torch.tensor([1e-30, 1e30, 1.0, 1e-3, 1e5]).double()[:, None, None]
    u = draw(rng, 5, 2, length) * sizes
    u[2, 0, ::16] *= 1e-4
    judged(plan_for(mode, length), rng, u.to(TORCH["bf16"]), filters(rng, 2, length))


PAIRS = {
    "warp": (16, 16),
    "warp, a row to 32 numbers of a lane": (32, 32),
    "block": (16, 16, 16),
    "block, strips of its own powers": (32, 16, 32),
    "device": (16, 16, 16),
}


@pytest.mark.drawn(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", usually(PAIRS, [kind for kind in PAIRS if "strips" not in kind]))
def test_a_row_is_as_exact_beside_any_other(kind: str, dtype: str, rng: np.random.Generator) -> None:
    """Two rows share a transform and its noise: 1.25 times the error of rounding, whoever the partner is.

    Every pair of signals, either way round, a channel each.
    """
    factors = PAIRS[kind]
    length = int(np.prod(factors))
    plan = with_shape(Problem("circular", length, dtype), "sm_90", factors, int(kind == "device"), "mma")
    u, k = every_pair(rng, dtype, length)
    judge_rows_alone(plan, call(plan, u, k), u, k, SCALED)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_gate_may_make_rows_of_a_pair_unlike(kind: str, aligned: bool, rng: np.random.Generator) -> None:
    """Norms are those of gated rows: here a gate makes a spike of one of two like ones."""
    factors = PAIRS[kind]
    length = int(np.prod(factors))
    plan = with_shape(Problem("circular", length, "fp16"), "sm_90", factors, int(kind == "device"), "mma")
    steps = length if aligned else length - 5
    u, gate = draw(rng, 3, 2, steps).half(), draw(rng, 3, 2, steps)
    gate[0, 0, 7] = gate[1, 1, -9] = gate[2, 0, 3] = 3e4
    gate = gate.half()
    k = filters(rng, 2, steps) / 32
    judge_rows_alone(plan, call(plan, u, k, in_gate=gate), u, k, SCALED, in_gate=gate)


@pytest.mark.parametrize(("mode", "most"), [("causal", 1e-4), ("circular", 2e-4)])
def test_white_noise_comes_out_neither_smaller_nor_larger(
    mode: str, most: float, rng: np.random.Generator
) -> None:
    """Cosines of radix 16 are small in fp16: three stages there and back made white noise of pairs smaller by
    2.7e-4, of which half is left."""
    plan = plan_for(mode, 4096, "fp16")
    u, k = draw(rng, 4, 8, 4096).half(), filters(rng, 8, 4096) / 32
    y, ref = call(plan, u, k).double().numpy(), exact(plan, u, k)
    assert abs(np.sum(y * ref) / np.sum(ref * ref) - 1) < most


@pytest.mark.drawn(3)
@pytest.mark.parametrize("kind", PAIRS)
def test_rows_of_a_pair_are_as_exact_as_beside_their_like(kind: str, rng: np.random.Generator) -> None:
    """Rows of one size, and the same but for a factor that is half way to the next power of two."""
    factors = PAIRS[kind]
    length = int(np.prod(factors))
    plan = with_shape(Problem("circular", length, "fp16"), "sm_90", factors, int(kind == "device"), "mma")
    u = draw(rng, 2, 8, length).repeat(1, 2, 1)
    u[1, 8:] *= 1.41
    k = filters(rng, 8, length).repeat(2, 1) / 8
    u = u.half()
    ref = exact(plan, u, k)
    rows = np.linalg.norm(call(plan, u, k).double().numpy() - ref, axis=-1) / np.linalg.norm(ref, axis=-1)
    like, unlike = (np.sqrt(np.mean(r**2, axis=1)) for r in (rows[:, :8], rows[:, 8:]))
    assert (unlike < 1.12 * like).all(), (like, unlike)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("options", [(), ("in_gate",)], ids=["plain", "gated"])
@pytest.mark.parametrize("length", [4096, 4091])
@pytest.mark.parametrize("mode", MODES)
def test_peaks_and_norms_before_a_device_stage(
    mode: str, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Peaks exactly, to the last of every thread's numbers; sums of squares to 3 per cent, of any size.

    A number that is small beside the peak loses that much where its square is taken in fp16.
    """
    plan = with_shape(Problem(mode, 4096, "bf16"), "sm_90", (16, 16, 16), 1, "mma")
    u = draw(rng, 3, 16, length)
    u.scatter_(-1, torch.from_numpy(rng.integers(length, size=(3, 16, 1))), 50.0)
    u[..., 0, -1] = 60  # the last number
    u *= 10.0 ** torch.linspace(-37, 35, 16).double()[:, None]
    u[:, 1] = 0
    u = u.bfloat16()
    given = {name: draw(rng, *u.shape).bfloat16() for name in options}
    module, ptx = built(plan)
    _, simulated = emulate.convolve(module, u, filters(rng, 16, length), ptx=ptx, **given)
    x = u.float() * given["in_gate"].float() if given else u.float()
    rows = torch.zeros(16, 4, length)
    rows[:, :3] = x.transpose(0, 1)
    words = simulated.memory.buffer("peaks").bytes.view(np.uint32)
    if plan.real_input:
        assert (words.view(np.float32) == rows[:, :3].abs().amax(dim=-1).flatten().numpy()).all()
        return
    sizes = words.reshape(-1, 6)
    assert (sizes[:, :2].view(np.float32).ravel() == rows.abs().amax(dim=-1).flatten().numpy()).all()
    squares = rows.double().square().sum(dim=-1).flatten().numpy()
    np.testing.assert_allclose(sizes[:, 2:].copy().view(np.float64).ravel(), squares, rtol=0.03)


# What is not finite, and zeros


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("value", "gate", "aligned"),
    [
        (float("nan"), 1.0, True),
        (float("nan"), 1.0, False),
        (float("-inf"), 1.0, True),
        (1.0, float("inf"), True),
        (3e38, 100.0, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [256, 1024, 2048, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_is_not_finite_makes_itself_nan_and_nothing_else(
    mode: str, length: int, value: float, gate: float, aligned: bool, rng: np.random.Generator
) -> None:
    """Infinities that only the product with the gate brings about count, too.

    In a batch pair the other row computes what it would beside zeros, bit for bit. Zeros stay zeros.
    """
    plan = plan_for(mode, length)
    steps = length if aligned else length - 3
    u, gates = (draw(rng, 5, 2, steps).to(torch.bfloat16) for _ in range(2))
    k = filters(rng, 2, steps)
    clean, at = u.clone(), int(rng.integers(steps))
    for b in (1, 2):  # either row of a pair
        u[b, 1, at], gates[b, 1, at] = value, gate
        clean[b, 1] = 0
    finite = gates.clone()
    finite[1:3, 1, at] = 1
    y, beside = call(plan, u, k, in_gate=gates), call(plan, clean, k, in_gate=finite)
    assert y[1:3, 1].isnan().all()
    assert not beside[1:3, 1].any()
    y[1:3, 1] = 0
    beside[1:3, 1] = 0  # zeros have a sign
    assert torch.equal(y.view(torch.int16), beside.view(torch.int16))
    check(plan, beside, clean, k, in_gate=finite)


@pytest.mark.parametrize("length", [256, 1024, 2048, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_zeros_give_zeros(mode: str, length: int, rng: np.random.Generator) -> None:
    """A signal, one row (alone or in a pair, whatever the size of its partner) and a filter."""
    plan = plan_for(mode, length)
    u, k = draw(rng, 4, 2, length).to(torch.bfloat16), filters(rng, 2, length)
    assert not call(plan, 0 * u, k).any()
    for size in (1.0, 1e30):
        some, loud = (size * u).bfloat16(), 1e3 * k
        some[1, 0] = some[2, 1] = 0
        y = call(plan, some, loud)
        assert not y[1, 0].any()
        assert not y[2, 1].any()
        check(plan, y, some, loud)
    k[1] = 0
    y = call(plan, u, k)
    assert not y[:, 1].any()
    assert y[:, 0].any(dim=-1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("length", [256, 1024, 2048, 4096])
@pytest.mark.parametrize("mode", MODES)
def test_a_filter_that_is_not_finite_spoils_its_channel_only(
    mode: str, length: int, value: float, rng: np.random.Generator
) -> None:
    plan = plan_for(mode, length)
    u, k = draw(rng, 3, 3, length).to(torch.bfloat16), filters(rng, 3, length)
    before = call(plan, u, k)
    k[1, 7] = value
    after = call(plan, u, k)
    assert not after[:, 1].isfinite().any()
    assert torch.equal(after[:, ::2], before[:, ::2])


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("length", "mode", "dtype"),
    usually(
        itertools.product((250, 256, 3700, 4096), MODES, DTYPES),
        [
            *itertools.product((256, 4096), MODES, DTYPES),
            (250, "circular", "bf16"),
            (3700, "circular", "fp16"),
            (3700, "causal", "bf16"),
        ],
    ),
)
def test_a_skip_term_of_any_size_joins_a_prepared_spectrum(
    mode: str, length: int, dtype: str, rng: np.random.Generator
) -> None:
    """Far below the filter, of its size, and so large that the spectrum needs another power of two."""
    largest = 1e30 if dtype == "bf16" else 1e4
    skip = torch.tensor([1e-6, 0.0, -1.0, 300.0, -largest])
    plan = plan_for(mode, length, dtype)
    u = (draw(rng, 3, 5, length) / (1 if dtype == "bf16" else 8)).to(TORCH[dtype])
    k = filters(rng, 5, length)
    made = spectrum(plan, k)
    y = prepared(plan, u, *with_skip(plan, made.planes, made.scale, skip))
    check(plan, y, u, k, skip=skip)
    bare = prepared(plan, u, made.planes, made.scale)
    assert torch.equal(bare[:, 1].view(torch.int16), y[:, 1].view(torch.int16))


# Counts


def report(simulated_reports: dict[str, Report]) -> Report:
    (only,) = simulated_reports.values()
    return only


@pytest.mark.drawn(5)
@pytest.mark.parametrize("length", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_tensor_core_work_is_what_the_planner_counts(
    mode: str, length: int, rng: np.random.Generator
) -> None:
    """The planner counts 16 x 16 x 16; an m16n8k16 is half of that. Groups are full."""
    plan = plan_for(mode, length)
    items = 4 if plan.memory_class == "warp" else 1
    simulated = run(plan, rng, batch=items * plan.rows_per_item, channels=plan.abreast)
    tensor = report(simulated.reports).counters.tensor
    assert all(name.startswith("mma.m16n8k16.") for name in tensor)
    assert sum(tensor.values()) == 2 * items * plan.abreast * tensor_ops(plan)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("mode", "factors", "stages"),
    [
        ("causal", (32, 16, 16), (0.5,)),
        ("causal", (16, 32, 16), (0.5,)),
        ("circular", (32, 16, 16), (1, 1)),
        ("circular", (16, 32, 16), (2, 2, 1)),
        ("circular", (32, 32), (1,)),
    ],
    ids=str,
)
def test_sums_in_fp32_are_the_last_and_where_planned_those_above_16(
    mode: str, factors: tuple[int, ...], stages: tuple[float, ...], rng: np.random.Generator
) -> None:
    """``stages``: radices of theirs, as multiples of the first one's, half a radix for real results."""
    plan = with_shape(Problem(mode, int(np.prod(factors)), "fp16"), "sm_90", factors, 0, engine="mma")
    items = 4 if plan.memory_class == "warp" else 1
    tensor = report(run(plan, rng, batch=items * plan.rows_per_item).reports).counters.tensor
    wide = sum(count for name, count in tensor.items() if name.startswith("mma.m16n8k16.f32"))
    assert wide == items * 4 * plan.transform * factors[0] * sum(stages) / (16 * 8 * 16)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", [250, 1000, 3700])
def test_a_folded_length_takes_the_work_of_a_causal_one(length: int, rng: np.random.Generator) -> None:
    plan, causal = (plan_for(mode, length) for mode in ("circular", "causal"))
    assert plan.fold == length
    assert plan.factors == causal.factors
    counts = [report(run(p, rng, batch=4).reports).counters for p in (plan, causal)]
    assert sum(counts[0].tensor.values()) == 4 * 2 * tensor_ops(plan)
    assert counts[0].tensor == counts[1].tensor
    assert counts[0].buffers["u"].loads.units == counts[1].buffers["u"].loads.units
    assert counts[0].buffers["y"].stores.units == counts[1].buffers["y"].stores.units


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_causal_sequence_of_4096_takes_640_operations(target: str, rng: np.random.Generator) -> None:
    """The least for 16·16·16: 32·ΣN_i halved in the first and the last stage."""
    plan = plan_for("causal", 4096, target=target)
    assert plan.factors == (16, 16, 16)
    tensor = report(run(plan, rng, batch=3).reports).counters.tensor
    assert sum(tensor.values()) == 3 * 640


@pytest.mark.drawn(5)
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "gated"])
@pytest.mark.parametrize("length", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_memory_is_reached_as_well_as_can_be(
    mode: str, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Signals: one sector for 32 bytes. Shared memory: hardly a wavefront more than without conflicts."""
    plan = plan_for(mode, length)
    batch = 8 if length <= 1024 else 2
    counters = report(run(plan, rng, batch=batch, channels=plan.abreast, options=options).reports).counters
    batch *= plan.abreast
    compulsory = 2 * batch * length / 32
    names = {"u", *(o for o in options if "gate" in o)}
    for name in names:
        assert counters.buffers[name].loads.units <= 1.02 * compulsory, name
        assert counters.buffers[name].loads.distinct == 2 * batch * length, name
    assert counters.buffers["y"].stores.units <= 1.02 * compulsory
    for kind in (counters.shared_loads, counters.shared_stores):
        assert kind.least > 0
        assert kind.units <= 1.05 * kind.least


@pytest.mark.drawn(5)
@pytest.mark.parametrize("factors", [(16, 16, 16), (32, 16, 32), (16, 16, 16, 16)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_workspace_is_moved_in_whole_sectors(
    mode: str, factors: tuple[int, ...], rng: np.random.Generator
) -> None:
    """A store of 16 bytes that the compiler takes apart writes each sector four times."""
    plan = with_shape(Problem(mode, int(np.prod(factors)), "bf16"), "sm_90", factors, 1, "mma")
    reports = run(plan, rng, batch=1, options=OPTIONS).reports
    moved = {entry.rsplit("_", 1)[1]: r.counters.buffers.get("workspace") for entry, r in reports.items()}
    stages = [("columns1", "stores"), ("rows", "loads"), ("rows", "stores"), ("inverse1", "loads")]
    for role, what in stages:
        accesses = getattr(moved[role], what)
        assert accesses.units == accesses.least == 4 * plan.transform / 32, (role, what)


# Bytes of a thread. Measured on an H200: with the registers of 12 warps, where these spill nothing, they take
# 10 % longer than with those of 16 (results/). On sm_89 the kernel of peaks puts one register by, of 40.
FEW_SPILLED = {
    # The number of the transform waits while its columns are multiplied: half of a matrix is made there.
    ("circular", 16_384, "sm_80"): 12,
    ("circular", 32_768, "sm_80"): 12,
    ("circular", 32_768, "sm_90"): 12,
    ("circular", 32_768, "sm_89"): 4,
}
# Pairs of fp16 rows, whose chain multiplies by whole matrices: four operands of a strip wait as well.
FEW_IN_FP16 = {
    ("circular", 32_768, "sm_80"): 56,
    ("circular", 32_768, "sm_90"): 36,
    # Two blocks of eight warps instead of one of sixteen.
    ("circular", 16_384, "sm_90"): 28,
}


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("length", "mode", "target"),
    usually(
        itertools.product(POWERS, MODES, ("sm_80", "sm_90")),
        [(512, "causal", "sm_90"), (512, "circular", "sm_90"), (8192, "causal", "sm_90")],
    ),
)
def test_no_kernel_spills(mode: str, length: int, target: str) -> None:
    """Other lengths are in the portfolio: test_generated.py."""
    plan = plan_for(mode, length, target=target)
    module = compiled.cubin(render(plan), target)
    assert set(module.resources) == {plan.entry(kernel) for kernel in plan.kernels}
    few = FEW_SPILLED.get((mode, length, target), 0)
    for name, taken in module.resources.items():
        assert taken.spill_store_bytes <= few, name
        assert taken.spill_load_bytes <= few, name
        assert taken.stack_bytes <= few, name
    if toolkit.find_tool("nvdisasm") is not None:
        mix = sass.instruction_mix(sass.disassemble(module.cubin))
        work = {plan.entry(kernel) for kernel in plan.kernels if kernel.role != "peaks"}
        assert all(mix[name]["HMMA"] > 0 for name in work)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("mode", "factors"),
    [
        ("causal", (64, 32, 32, 32)),
        ("circular", (32, 32, 16, 32)),
        ("circular", (16, 48, 16, 16)),
        ("causal", (16, 64, 32, 16)),
        ("circular", (16, 32, 32)),
        ("circular", (64, 16, 32)),
    ],
)
def test_layouts_are_weighed_by_the_registers_that_they_put_by(
    mode: str, factors: tuple[int, ...], arch: str
) -> None:
    """Bytes of a thread, as compiled: up to 36, whose cost could not be measured, up to 72, or more."""
    problem = Problem(mode, int(np.prod(factors)), "bf16")
    plan = with_shape(problem, arch, factors, len(factors) - 3, "mma")
    for layout in every_layout(plan, target(arch)):
        taken = compiled.cubin(render(layout), arch).resources[layout.entry(layout.body)]
        most = max(taken.spill_store_bytes, taken.spill_load_bytes)
        assert most <= {1.0: 36, SPILLS: 72, SPILLS_MANY: 480}[spilling(layout)], str(layout)
        if spilling(layout) == SPILLS_MANY and arch == "sm_90":
            assert most > 36, str(layout)


def test_at_least_sixteen_warps_stay_resident_at_4096() -> None:
    plan = plan_for("causal", 4096)
    (taken,) = compiled.cubin(render(plan), plan.target).resources.values()
    warps = plan.body.warps * plan.body.resident
    assert warps >= 16
    assert 32 * taken.registers * warps <= 65_536


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("length", POWERS)
def test_sweep(mode: str, length: int, dtype: str, target: str, rng: np.random.Generator) -> None:
    """Every combination of options; with none of them spilling but what is known to."""
    plan = plan_for(mode, length, dtype, target)
    shape = mode, length, target
    few = FEW_SPILLED.get(shape, 0)
    if dtype == "fp16":
        few = FEW_IN_FP16.get(shape, few)
    for name, taken in compiled.cubin(render(plan), target).resources.items():
        assert max(taken.spill_store_bytes, taken.spill_load_bytes) <= few, name
    for options in COMBINATIONS:
        run(plan, rng, batch=3, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_random_lengths(mode: str, rng: np.random.Generator) -> None:
    """Shorter signals and filters of any length in transforms of every size."""
    for _ in range(60):
        length = int(rng.choice(POWERS))
        steps, taps = (int(n) for n in rng.integers(1, length + 1, 2))
        plan = plan_for(mode, length, str(rng.choice(DTYPES)))
        options = COMBINATIONS[int(rng.integers(len(COMBINATIONS)))]
        run(plan, rng, batch=int(rng.integers(1, 6)), length=steps, taps=taps, options=options)

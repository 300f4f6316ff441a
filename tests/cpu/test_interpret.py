"""Ring 2: a plan, run stage by stage in NumPy, is the convolution, to the error that its types cost."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import cases
import numpy as np
import pytest
import reference
import tolerance
from plans import engines, on_engine

from fftgen.errors import InputError, NoPlanError
from fftgen.planner.arithmetic import balance
from fftgen.planner.engines import ENGINES
from fftgen.planner.interpret import convolve, spectrum, workspace_states
from fftgen.planner.order import monarch_permutation, spectrum_index
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan, with_shape
from fftgen.problem import Problem

EXACT = 1e-10  # float64 sums of up to 2 * 4194304 terms
QUICK = cases.TINY + cases.EVEN + cases.ODD + cases.LARGE + cases.DEVICE
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_90")


def distance(out: reference.Float64, ref: reference.Float64) -> float:
    """Relative error of the worst row (a row of zeros must be met exactly)."""
    norms = np.linalg.norm(ref, axis=-1)
    rows = np.linalg.norm(out - ref, axis=-1)
    assert not rows[norms == 0].any()
    return float((rows / np.where(norms == 0, 1, norms)).max())


def expected(found: Plan, inputs: cases.Inputs) -> reference.Float64:
    problem = found.problem
    return reference.convolve(inputs.u, inputs.k, mode=problem.mode, length=problem.length, **inputs.options)


def run(found: Plan, inputs: cases.Inputs, *, rounded: bool) -> reference.Float64:
    return convolve(found, inputs.u, inputs.k, rounded=rounded, **inputs.options)


def judge(found: Plan, inputs: cases.Inputs, out: reference.Float64) -> None:
    """Hold an output in the kernels' arithmetic to what its compute format and storage type can do."""
    dtype = found.problem.dtype
    tolerance.check(out, expected(found, inputs), dtype, found.order, found.compute_format)


def heads_and_batch(length: int) -> tuple[int, int]:
    """An odd batch, smaller where transforms are long."""
    return (5, 3) if length <= 2048 else (3, 2) if length <= 16384 else (3, 1)


@pytest.mark.parametrize("length", QUICK)
@pytest.mark.parametrize("mode", cases.MODES)
def test_exact_arithmetic_gives_the_convolution(rng: np.random.Generator, mode: str, length: int) -> None:
    for found in engines(Problem(mode, length, "fp16"), "sm_90"):
        inputs = cases.draw(rng, (*heads_and_batch(length), length), length, "fp16")
        assert distance(run(found, inputs, rounded=False), expected(found, inputs)) < EXACT


@pytest.mark.drawn(4)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("length", QUICK)
@pytest.mark.parametrize("mode", cases.MODES)
def test_rounded_arithmetic_stays_within_the_bounds(
    rng: np.random.Generator, mode: str, length: int, dtype: str
) -> None:
    for found in engines(Problem(mode, length, dtype), "sm_90"):
        inputs = cases.draw(rng, (*heads_and_batch(length), length), length, dtype)
        out = run(found, inputs, rounded=True)
        judge(found, inputs, out)
        assert (out == reference.stored(out, dtype)).all(), "the output is not in the storage type"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("length", cases.HUGE)
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_longest_transforms(rng: np.random.Generator, mode: str, length: int, dtype: str) -> None:
    found = plan(Problem(mode, length, dtype), "sm_90")
    inputs = cases.draw(rng, (1, 1, length), length, dtype)
    ref = expected(found, inputs)
    judge(found, inputs, run(found, inputs, rounded=True))
    assert distance(run(found, inputs, rounded=False), ref) < EXACT


@pytest.mark.drawn(4)
@pytest.mark.parametrize("options", cases.OPTIONS, ids=lambda o: "+".join(n for n in o if o[n]) or "plain")
@pytest.mark.parametrize(
    ("mode", "length"),
    [("causal", 1000), ("causal", 4096), ("circular", 512), ("circular", 1009), ("circular", 4096)],
)
def test_gates_and_skip_in_every_combination(
    rng: np.random.Generator, mode: str, length: int, options: dict[str, bool]
) -> None:
    for dtype in cases.DTYPES:
        for found in engines(Problem(mode, length, dtype), "sm_80"):
            inputs = cases.draw(rng, (3, 2, length), length, dtype, **options)
            ref = expected(found, inputs)
            assert distance(run(found, inputs, rounded=False), ref) < EXACT
            judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.drawn(3)
@pytest.mark.parametrize("length", [257, 512, 1000, 5003, 8192, 65536])
@pytest.mark.parametrize("mode", cases.MODES)
def test_shorter_signals_and_filters_are_padded(rng: np.random.Generator, mode: str, length: int) -> None:
    """Every relation of L and Lk within the plan's length, one sample at the least."""
    for found in engines(Problem(mode, length, "fp16"), "sm_90"):
        halves = {(length // 2, length), (length, length - 1), (length - 1, 1)}
        for rows, taps in sorted(halves | {(length, 3), (3, length), (1, 1)}):
            inputs = cases.draw(rng, (3, 1, rows), taps, "fp16", in_gate=True, skip=True)
            ref = expected(found, inputs)
            out = run(found, inputs, rounded=False)
            assert out.shape == (3, 1, rows)
            # What a row keeps of its transform may be a small part: judge by what went in.
            most = np.abs(inputs.k).sum() * np.abs(inputs.u).max()
            assert np.abs(out - ref).max() < EXACT * most, (rows, taps)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("mode", cases.MODES)
def test_every_batch_size_computes_every_row(rng: np.random.Generator, mode: str, batch: int) -> None:
    for found in engines(Problem(mode, 512, "bf16"), "sm_90"):
        inputs = cases.draw(rng, (batch, 3, 512), 512, "bf16")
        ref = expected(found, inputs)
        assert distance(run(found, inputs, rounded=False), ref) < EXACT
        judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("length", [256, 4096, 65_536])
def test_a_pair_shares_its_noise_alike(rng: np.random.Generator, length: int, dtype: str) -> None:
    """A spike beside white noise, either way round and of any size, is as exact as beside zeros."""
    found = on_engine(Problem("circular", length, dtype), "sm_90", "mma")
    sizes = (1e-20, 1e30) if dtype == "bf16" else (0.5, 2.0)
    u = rng.standard_normal((4, 1, length)) * np.array([sizes[1], 1e-4, 1e-4, sizes[0]])[:, None, None]
    u[1:3, 0, 5] = 1
    inputs = dataclasses.replace(cases.draw(rng, u.shape, length, dtype), u=reference.stored(u, dtype))
    judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.parametrize("ratio", [1.1, 1.41, 1.9, 3.0])
def test_rows_of_a_pair_are_as_exact_as_beside_their_like(rng: np.random.Generator, ratio: float) -> None:
    """Norms a sixteenth apart make noise of 1.03 times; raising by no power of two rounds once more."""
    found = on_engine(Problem("circular", 4096, "fp16"), "sm_90", "mma")
    like = cases.draw(rng, (8, 2, 4096), 4096, "fp16")
    unlike = dataclasses.replace(like, u=reference.stored(like.u * np.resize([1, ratio], (8, 1, 1)), "fp16"))
    errors = []
    for inputs in (like, unlike):
        exact = expected(found, inputs)
        off = np.linalg.norm(run(found, inputs, rounded=True) - exact, axis=-1)
        rows = off / np.linalg.norm(exact, axis=-1)
        errors.append([np.sqrt(np.mean(rows[half::2] ** 2)) for half in (0, 1)])
    assert (np.array(errors[1]) < 1.1 * np.array(errors[0])).all()


def test_rows_of_a_pair_are_brought_to_like_norms() -> None:
    """The smaller by a power of two, the larger to within a sixteenth of that; neither beside zeros."""
    norms = np.array([64, 1, 1, 2.8, 1, 2.1, 1, 1.06, 1.07, 1, 1, 1.95, 0, 5, 5, 0, 3])
    factors = balance(4 * norms[:, None, None].astype(np.float32))[:, 0, 0]
    assert factors.tolist() == [1, 64, 2, 0.6875, 2, 0.9375, 1, 0.9375, 0.9375, 1, 1, 0.5, 1, 1, 1, 1, 1]


def test_a_spike_is_multiplied_by_powers_of_two() -> None:
    """Another number would round it, and it is all that the row has; so it is of two spikes."""
    norms = np.array([1.7, 100, 1, 1.4, 1.5, 1, 3.9, 5.4])
    factors = balance(norms[:, None, None].astype(np.float32))[:, 0, 0]
    assert factors.tolist() == [32, 0.5625, 1, 1, 1, 2, 1, 0.75]


@pytest.mark.parametrize("length", [3, 31, 127, 257, 509, 521, 1009, 2003, 5003, 9973])
def test_circular_lengths_that_are_prime_are_folded(rng: np.random.Generator, length: int) -> None:
    found = plan(Problem("circular", length, "fp16"), "sm_86")
    assert found.fold == length
    assert found.packing == "right-angle"
    inputs = cases.draw(rng, (3, 2, length), length, "fp16", in_gate=True, out_gate=True, skip=True)
    assert distance(run(found, inputs, rounded=False), expected(found, inputs)) < EXACT


def test_a_late_tap_wraps_to_where_it_belongs(rng: np.random.Generator) -> None:
    """A period just below N: almost all wraps."""
    length = 1023
    found = plan(Problem("circular", length, "fp16"), "sm_90")
    assert found.transform == 1024
    inputs = cases.draw(rng, (1, 1, length), length, "fp16")
    late = np.zeros((1, length))
    late[0, -1] = 1
    out = convolve(found, inputs.u, late, rounded=False)
    np.testing.assert_allclose(out, np.roll(inputs.u, length - 1, axis=-1), rtol=0, atol=1e-12)


SHAPES = [
    ((16, 16), 0),
    ((48, 80), 0),
    ((16, 16, 32), 0),
    ((80, 16, 16), 0),
    ((32, 16, 48), 1),
    ((112, 48, 32), 1),
    ((128, 16, 16), 1),
    ((16, 16, 16, 16), 1),
    ((32, 16, 16, 16), 2),
    ((32, 16, 16, 32), 2),
    ((16, 48, 32, 16), 2),
]
LARGE = [((112, 48, 32), 1), *SHAPES[-2:]]


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("factors", "device", "mode"),
    cases.usually(
        ((*shape, mode) for shape in SHAPES for mode in cases.MODES),
        [  # one mode each of order 4
            (*shape, mode)
            for shape in SHAPES
            for mode in cases.MODES
            if shape not in LARGE and (len(shape[0]) < 4 or (shape[1] == 1) == (mode == "circular"))
        ],
    ),
    ids=str,
)
def test_every_shape_of_plan_computes_the_same(
    rng: np.random.Generator, mode: str, factors: tuple[int, ...], device: int
) -> None:
    """Orders 2 to 4, radices that are no powers of two, none to two device stages; folded ones as well."""
    transform = int(np.prod(factors))
    for length, fold in (
        (transform, False),
        (transform, True),
        (transform - 7, True),
        (transform // 3, True),
    ):
        dtype = "fp16" if mode == "circular" and not fold else "bf16"
        found = with_shape(Problem(mode, length, dtype), "sm_90", factors, device, fold=fold)
        assert found.fold == (length if fold and mode == "circular" else 0)
        assert len(found.device_stages) == device
        inputs = cases.draw(rng, (3, 1, length), length, dtype, in_gate=True, out_gate=True, skip=True)
        ref = expected(found, inputs)
        assert distance(run(found, inputs, rounded=False), ref) < EXACT
        judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    "factors", [(16, 16), (32, 16), (48, 16), (32, 32), (16, 16, 16), (80, 16, 16), (16, 16, 64)], ids=str
)
@pytest.mark.parametrize("mode", cases.MODES)
def test_every_shape_of_the_register_chain_computes_the_same(
    rng: np.random.Generator, mode: str, factors: tuple[int, ...]
) -> None:
    transform = int(np.prod(factors))
    sizes = ((transform, False), (transform, True), (transform - 7, True))
    kinds = (("fp16", "mma"), ("bf16", "mma"), ("bf16", "mma:bf16-fp32"))
    for (dtype, engine), (length, fold) in product(kinds, sizes):
        if engine not in ENGINES and mode == "circular" and not fold:
            continue  # rows do not share a transform in this format
        found = with_shape(Problem(mode, length, dtype), "sm_90", factors, 0, engine=engine, fold=fold)
        inputs = cases.draw(rng, (3, 1, length), length, dtype, in_gate=True, out_gate=True, skip=True)
        ref = expected(found, inputs)
        assert distance(run(found, inputs, rounded=False), ref) < EXACT
        judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.parametrize(("factors", "device"), [((64, 16, 16), 1), ((16, 32, 16, 16), 2)], ids=str)
@pytest.mark.parametrize(("mode", "fold"), [("causal", 0), ("circular", 0), ("circular", 9)])
def test_the_workspace_after_each_kernel_leads_to_the_output(
    rng: np.random.Generator, mode: str, fold: int, factors: tuple[int, ...], device: int
) -> None:
    """The last state is the unscaled output; the first is the DFT over digit 1 with its twiddles."""
    n = int(np.prod(factors))
    found = with_shape(Problem(mode, n - fold, "fp16"), "sm_90", factors, device)
    inputs = cases.draw(rng, (3, 2, n - fold), n - fold, "fp16", in_gate=True, skip=True)
    states = workspace_states(found, inputs.u, inputs.k, in_gate=inputs.in_gate, skip=inputs.skip)
    assert set(states) == {(k.role, k.stage) for k in found.kernels if k.role != "peaks"}
    assert inputs.skip is not None
    taps = inputs.k.copy()
    taps[:, 0] += inputs.skip
    _, exponent = spectrum(found, taps)
    z = states["columns_inverse", 1] * np.ldexp(found.unscaled, -exponent)[:, None]
    if mode == "circular" and not fold:
        rows = np.stack([z.real, z.imag], axis=1).reshape(4, 2, n)[:3]
    else:
        rows = z.real[..., : n - fold]
    assert distance(np.asarray(rows, np.float64), expected(found, inputs)) < EXACT

    assert inputs.in_gate is not None
    first = inputs.u * inputs.in_gate
    stage = found.stages[0]
    if mode == "circular" and not fold:
        packed = np.zeros((2, 2, n), complex)
        packed += first[0::2]
        packed[0] += 1j * first[1]
    else:
        packed = np.zeros((3, 2, n), complex)
        packed[..., : n - fold] = first * np.exp(0.5j * np.pi * np.arange(n - fold) / n)
    columns = np.fft.fft(packed.reshape(-1, stage.radix, stage.rest), axis=1) * stage.scale
    k, r = np.arange(stage.radix)[:, None], np.arange(stage.rest)
    columns *= np.exp(-2j * np.pi * k * r / n)
    got = states["columns", 1].reshape(columns.shape)
    assert np.abs(got - columns).max() < EXACT * np.abs(columns).max()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("length", [2000, 32768])
def test_plans_of_every_target_compute_the_same(rng: np.random.Generator, target: str, length: int) -> None:
    for mode in cases.MODES:
        for found in engines(Problem(mode, length, "fp16"), target):
            inputs = cases.draw(rng, (3, 1, length), length, "fp16")
            ref = expected(found, inputs)
            assert distance(run(found, inputs, rounded=False), ref) < EXACT
            judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.parametrize("length", [1, 100, 1000, 1024, 8192, 65536])
@pytest.mark.parametrize("mode", cases.MODES)
def test_an_impulse_brings_out_the_filter(rng: np.random.Generator, mode: str, length: int) -> None:
    for found in engines(Problem(mode, length, "fp16"), "sm_90"):
        k = rng.standard_normal((2, length))
        at = int(rng.integers(0, length))
        u = np.zeros((1, 2, length))
        u[..., at] = 1
        shifted = np.roll(k, at, axis=-1)
        if mode == "causal":
            shifted[:, :at] = 0
        out = convolve(found, u, k, rounded=False)
        np.testing.assert_allclose(out[0], shifted, rtol=0, atol=1e-11 * np.abs(k).max())


@pytest.mark.parametrize("length", [100, 1024, 5003])
@pytest.mark.parametrize("mode", cases.MODES)
def test_convolution_is_linear_and_commutes_with_shifts(
    rng: np.random.Generator, mode: str, length: int
) -> None:
    found = plan(Problem(mode, length, "bf16"), "sm_90")
    u, v = rng.standard_normal((2, 3, 2, length))
    k, q = rng.standard_normal((2, 2, length))

    def run_exact(signal: reference.Float64, taps: reference.Float64) -> reference.Float64:
        return convolve(found, signal, taps, rounded=False)

    scale = np.abs(run_exact(u, k)).max()
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-11 * scale}
    both = run_exact(2 * u - 3 * v, k)
    np.testing.assert_allclose(both, 2 * run_exact(u, k) - 3 * run_exact(v, k), **close)
    np.testing.assert_allclose(run_exact(u, k + 5 * q), run_exact(u, k) + 5 * run_exact(u, q), **close)
    if mode == "circular":
        moved = run_exact(np.roll(u, 9, axis=-1), k)
        np.testing.assert_allclose(moved, np.roll(run_exact(u, k), 9, axis=-1), **close)


@pytest.mark.parametrize("length", [17, 1000, 4096, 20000])
def test_the_future_moves_no_output(rng: np.random.Generator, length: int) -> None:
    for found in engines(Problem("causal", length, "bf16"), "sm_90"):
        inputs = cases.draw(rng, (1, 2, length), length, "bf16")
        now = length // 2
        future = inputs.u.copy()
        future[..., now:] = reference.stored(rng.standard_normal((1, 2, length - now)), "bf16")
        for rounded, limit in ((False, 1e-12), (True, 2 * tolerance.bound("bf16", found.order))):
            before = convolve(found, inputs.u, inputs.k, rounded=rounded)
            after = convolve(found, future, inputs.k, rounded=rounded)
            moved = np.linalg.norm((after - before)[..., :now])
            assert moved <= limit * np.linalg.norm(before)
            assert np.linalg.norm((after - before)[..., now:]) > 0.1 * np.linalg.norm(before)


@pytest.mark.parametrize("mode", cases.MODES)
def test_rows_do_not_depend_on_their_place_in_the_batch(rng: np.random.Generator, mode: str) -> None:
    for found in engines(Problem(mode, 1024, "fp16"), "sm_90"):
        inputs = cases.draw(rng, (6, 2, 1024), 1024, "fp16")
        order = np.array([4, 5, 0, 1, 2, 3])
        out = convolve(found, inputs.u, inputs.k, rounded=False)
        moved = convolve(found, inputs.u[order], inputs.k, rounded=False)
        np.testing.assert_allclose(moved, out[order], rtol=0, atol=1e-12 * np.abs(out).max())


@pytest.mark.parametrize("length", [100, 256, 1009, *cases.slow([65536])])
@pytest.mark.parametrize("mode", cases.MODES)
def test_zeros_stay_zeros(rng: np.random.Generator, mode: str, length: int) -> None:
    """A filter of zeros (scale 1), one channel of zeros among others, and a signal of zeros."""
    for found in engines(Problem(mode, length, "fp16"), "sm_90"):
        inputs = cases.draw(rng, (2, 2, length), length, "fp16")
        for rounded in (False, True):
            k = inputs.k.copy()
            k[1] = 0
            out = convolve(found, inputs.u, k, rounded=rounded)
            assert not out[:, 1].any()
            assert (np.abs(out[:, 0]) > 0).any(axis=-1).all()
            skip = np.array([1.0, 2.0])
            only_skip = convolve(found, inputs.u, 0 * k, skip=skip, rounded=rounded)
            judge(found, dataclasses.replace(inputs, k=0 * k, skip=skip), only_skip)
            assert not convolve(found, 0 * inputs.u, inputs.k, rounded=rounded).any()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [*(("bf16", s) for s in (1e-25, 1e-6, 1e6, 1e25)), *(("fp16", s) for s in (1e-4, 1e-2, 1e2, 1e4))],
)
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_size_of_the_filter_costs_no_accuracy(
    rng: np.random.Generator, mode: str, dtype: str, size: float
) -> None:
    """A power of two per channel keeps every spectrum in range; the gate brings fp16 outputs back."""
    for found in engines(Problem(mode, 4096, dtype), "sm_90"):
        inputs = cases.draw(rng, (3, 2, 4096), 4096, dtype)
        k = inputs.k * np.array([[size], [1.0]])
        gate = np.ones_like(inputs.u)
        if dtype == "fp16":
            gate[:, 0] = 2.0 ** -round(np.log2(size))
        judge(
            found,
            dataclasses.replace(inputs, k=k, out_gate=gate),
            convolve(found, inputs.u, k, out_gate=gate),
        )


@pytest.mark.parametrize("factors", [(16, 16), (32, 16, 48), (16, 80, 16, 16)])
@pytest.mark.parametrize("mode", cases.MODES)
def test_the_spectrum_is_scaled_to_its_largest_modulus(
    rng: np.random.Generator, mode: str, factors: tuple[int, ...]
) -> None:
    """Each position holds the frequency whose digits it spells, from the definition of the transform."""
    n = int(np.prod(factors))
    found = with_shape(Problem(mode, n, "fp16"), "sm_90", factors, len(factors) - 2)
    k = rng.standard_normal((4, 50)) * np.array([[1e-8], [1.0], [3e5], [0.0]])
    values, exponent = spectrum(found, k, rounded=False)
    assert values.shape == (4, n)
    largest = np.abs(values).max(axis=-1)
    assert ((largest[:3] >= 0.5) & (largest[:3] < 1)).all()
    assert exponent[3] == 0
    assert not values[3].any()
    t = np.arange(50)
    for position in rng.integers(0, n, 20):
        digits: list[int] = []
        rest = int(position)
        for radix in reversed(factors):
            rest, digit = divmod(rest, radix)
            digits.insert(0, digit)
        frequency = sum(d * int(np.prod(factors[:s])) for s, d in enumerate(digits))
        turns = -frequency * t / n + (t / (4 * n) if mode == "causal" else 0)
        exact = (k * np.exp(2j * np.pi * turns)).sum(axis=-1) * 2.0**exponent
        np.testing.assert_allclose(values[:, position], exact, rtol=0, atol=1e-12)
    rounded, same = spectrum(found, k)
    assert (same == exponent).all()
    assert (np.abs(rounded - values) <= 2.0**-8).all()
    assert (rounded.real == reference.stored(rounded.real, "fp16")).all()


@pytest.mark.parametrize("factors", [(16, 16), (32, 32), (80, 16, 16), (16, 16, 32)], ids=str)
@pytest.mark.parametrize("engine", ["mma", "wmma"])
def test_the_stored_spectrum_holds_every_number_once(engine: str, factors: tuple[int, ...]) -> None:
    """In Monarch order, plane by plane, where "wmma" reads it; some order of the same where "mma" does."""
    n = int(np.prod(factors))
    found = with_shape(Problem("causal", n, "bf16"), "sm_90", factors, 0, engine=engine)
    index = spectrum_index(found)
    assert (np.sort(index) == np.arange(2 * n)).all()
    if engine == "wmma":
        monarch = monarch_permutation(factors)
        assert (index == np.concatenate([2 * monarch, 2 * monarch + 1])).all()


@pytest.mark.parametrize("factors", [(16, 16), (16, 32, 48), (2, 3, 4, 5)])
def test_monarch_order_reads_the_digits_backwards(factors: tuple[int, ...]) -> None:
    order = monarch_permutation(factors)
    assert sorted(order) == list(range(int(np.prod(factors))))
    for position, frequency in enumerate(order.tolist()):
        digits = np.unravel_index(position, factors)
        weight, total = 1, 0
        for digit, radix in zip(digits, factors, strict=True):
            total += int(digit) * weight
            weight *= radix
        assert frequency == total


def test_values_that_are_not_finite_stay_in_their_rows(rng: np.random.Generator) -> None:
    for found in engines(Problem("causal", 1000, "bf16"), "sm_90"):
        inputs = cases.draw(rng, (3, 2, 1000), 1000, "bf16")
        u = inputs.u.copy()
        u[1, 0, 5] = np.nan
        with np.errstate(invalid="ignore"):
            out = convolve(found, u, inputs.k)
        ref = convolve(found, inputs.u, inputs.k)
        assert not np.isfinite(out[1, 0]).any()
        out[1, 0] = ref[1, 0]
        assert (out == ref).all()


@pytest.mark.parametrize("length", [256, 4096])
@pytest.mark.parametrize("mode", cases.MODES)
def test_a_row_that_is_not_finite_is_not_felt_by_its_partner(
    rng: np.random.Generator, mode: str, length: int
) -> None:
    """In scaled fp16, where it goes in as zeros: the row in the same transform, if one is, computes its own.

    Infinities that only the product with the gate brings about count, too.
    """
    found = on_engine(Problem(mode, length, "bf16"), "sm_90", "mma")
    inputs = cases.draw(rng, (4, 2, length), length, "bf16", in_gate=True)
    assert inputs.in_gate is not None
    for value, gate in ((np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (3e38, 100.0)):
        u, gates = inputs.u.copy(), inputs.in_gate.copy()
        u[2, 1, 7], gates[2, 1, 7] = value, gate
        out = convolve(found, reference.stored(u, "bf16"), inputs.k, in_gate=gates)
        assert np.isnan(out[2, 1]).all()
        u[2, 1] = 0
        alone = convolve(found, u, inputs.k, in_gate=gates)
        assert not alone[2, 1].any()
        out[2, 1] = 0
        assert (out == alone).all()


@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1e4, 1e30, 1e36])
def test_the_size_of_a_row_costs_scaled_rows_no_accuracy(
    rng: np.random.Generator, mode: str, size: float
) -> None:
    """Rows of all sizes side by side, each with a power of its own: gates bring small and large ones back."""
    found = on_engine(Problem(mode, 1024, "bf16"), "sm_90", "mma")
    inputs = cases.draw(rng, (3, 1, 1024), 1024, "bf16")
    u = np.clip(inputs.u, -1, 1)
    u[1] *= 2.0 ** np.floor(np.log2(size))
    gate = np.ones_like(u)
    gate[1] = 2.0 ** -np.clip(np.floor(np.log2(size)), -126, 126)
    inputs = dataclasses.replace(inputs, u=reference.stored(u, "bf16"), out_gate=gate)
    judge(found, inputs, run(found, inputs, rounded=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.zeros((2, 3, 101))}, r"u has shape \(2, 3, 101\).*L <= 100"),
        ({"u": np.zeros((3, 50))}, r"u has shape \(3, 50\)"),
        ({"u": np.zeros((2, 3, 0))}, r"u has shape \(2, 3, 0\)"),
        ({"k": np.zeros((2, 50))}, r"k has shape \(2, 50\).*\(3, Lk\)"),
        ({"k": np.zeros((3, 101))}, r"k has shape \(3, 101\).*Lk <= 100"),
        ({"in_gate": np.zeros((2, 3, 49))}, r"in_gate has shape \(2, 3, 49\): it must be \(2, 3, 50\)"),
        ({"out_gate": np.zeros((3, 50))}, r"out_gate has shape \(3, 50\)"),
        ({"skip": np.zeros((2,))}, r"skip has shape \(2,\): it must be \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    found = plan(Problem("causal", 100, "fp16"), "sm_90")
    arguments: dict[str, Any] = {"u": np.zeros((2, 3, 50)), "k": np.zeros((3, 50))} | change
    with pytest.raises(InputError, match=message):
        convolve(found, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("target", [*TARGETS, "sm_89", "sm_100", "sm_120", "compute_80"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_all_lengths_on_all_targets(rng: np.random.Generator, target: str, dtype: str) -> None:
    """Random lengths of every size up to 200000, both modes, gates and skip at random."""
    for exponent in np.linspace(0, np.log2(200000), 40):
        length = int(2**exponent * rng.uniform(1, 1.1))
        for mode in cases.MODES:
            try:
                found = plan(Problem(mode, length, dtype), target)
            except NoPlanError:
                assert (target, dtype) == ("sm_75", "bf16")
                continue
            chosen = cases.OPTIONS[int(rng.integers(len(cases.OPTIONS)))]
            inputs = cases.draw(rng, (3, 1, length), length, dtype, **chosen)
            ref = expected(found, inputs)
            assert distance(run(found, inputs, rounded=False), ref) < EXACT, (mode, length, chosen)
            judge(found, inputs, run(found, inputs, rounded=True))

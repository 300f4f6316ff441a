"""The problem set of the bench: what is measured, on how many rows, and what its floor is."""

from __future__ import annotations

import math

import pytest
import torch
from bench_kit import CPU, case

from fftgen.bench import cases
from fftgen.bench.cases import (
    BACKWARD_LENGTHS,
    DIRECTIONS,
    LENGTHS,
    Case,
    backward_rows,
    by_importance,
    problem_set,
    short_rows,
    wide_rows,
)
from fftgen.bench.contenders import complex_fft
from fftgen.bench.inputs import FILLS, draw, draw_sets
from fftgen.errors import InputError
from fftgen.problem import Problem

GIB = 1 << 30


def test_the_problem_set_is_that_of_the_design() -> None:
    every = problem_set()
    assert len(every) == len(set(every)) == 15 * 2 * 2 * 2
    assert {c.length for c in every} == {256 * 2**i for i in range(15)}
    assert max(c.length for c in every) == 4_194_304
    assert {(c.batch, c.channels, c.direction) for c in every} == {(64, 768, "forward")}
    assert {(c.problem.mode, c.problem.dtype, c.gated) for c in every} == {
        (m, d, g) for m in ("causal", "circular") for d in ("bf16", "fp16") for g in (True, False)
    }


def test_the_floor_counts_every_signal_once() -> None:
    """Design 2.1: 4 bytes per element ungated, 8 gated; at 4.3 TB/s, N = 4096: 0.19 and 0.37 ms."""
    plain, gated = (case(length=4096, gated=g, batch=64, channels=768) for g in (False, True))
    assert plain.floor_bytes == 4 * 64 * 768 * 4096
    assert gated.floor_bytes == 8 * 64 * 768 * 4096
    assert round(1e3 * plain.floor_bytes / 4.3e12, 2) == 0.19
    assert round(1e3 * gated.floor_bytes / 4.3e12, 2) == 0.37


def test_the_floor_of_a_backward_pass_counts_every_signal_once() -> None:
    """Read: v, u, both gates; written: as many gradients, without v. Ungated: v, u, and du."""
    plain, gated = (
        case(length=4096, gated=g, batch=64, channels=768, direction="backward") for g in (False, True)
    )
    assert plain.floor_bytes == 2 * (2 + 1) * 64 * 768 * 4096
    assert gated.floor_bytes == 2 * (4 + 3) * 64 * 768 * 4096


def test_a_library_transform_is_padded_only_when_causal() -> None:
    assert case("causal", 1000).points == 2000
    assert case("circular", 1000).points == 1000


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_is_scaled_to_what_an_80_gb_card_holds(mode: str, length: int, direction: str) -> None:
    full = case(mode, length, batch=64, channels=768, direction=direction)
    free = 79 * GIB
    scaled = full.scaled(free)
    working = cases.WORKING_BYTES[direction][mode]
    assert scaled.elements * working <= cases.SHARE * free
    assert scaled.problem == full.problem
    if length <= (8192 if direction == "forward" else 4096):
        assert scaled == full  # the published shape, unscaled
    else:
        assert scaled.elements * 2 * working > cases.SHARE * free or scaled == full
    if scaled.channels > cases.FEW_CHANNELS:
        assert scaled.batch == 64  # channels go first: the batch decides what the filter's transform weighs


def test_scaling_ends_at_a_single_row_and_says_when_none_fits() -> None:
    one = case("causal", 4_194_304, batch=64, channels=768)
    row = cases.WORKING_BYTES["forward"]["causal"] * one.length / cases.SHARE
    assert one.scaled(int(row * 1.01)) == Case(one.problem, one.gated, 1, 1)
    assert one.scaled(int(row * 2.01)) == Case(one.problem, one.gated, 2, 1)
    with pytest.raises(InputError, match="do not hold a single row"):
        one.scaled(int(row * 0.99))


@pytest.mark.parametrize(("batch", "channels"), [(0, 1), (1, 0), (-1, 4)])
def test_no_rows_at_all_are_refused(batch: int, channels: int) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        Case(Problem("causal", 256, "bf16"), True, batch, channels)


def test_a_pass_goes_forward_or_backward() -> None:
    with pytest.raises(InputError, match="direction 'sideways': choose from forward, backward"):
        Case(Problem("causal", 256, "bf16"), True, direction="sideways")


@pytest.mark.parametrize(("mode", "size"), [("causal", 8 + 16 + 16 + 2), ("circular", 4 + 8 + 8 + 2)])
def test_backward_memory_holds_what_autograd_keeps_of_the_published_baseline(mode: str, size: int) -> None:
    """The graph of the complex transforms, as autograd saves it: bytes per element of u, inputs left out."""
    of = case(mode, length=1024, batch=64, channels=4, direction="backward")
    saved: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    x = draw(of, CPU, 1).leaves()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = complex_fft(x.u, x.k, x.in_gate, x.out_gate, of.points)
    given = {t.untyped_storage().data_ptr() for t in x.arguments.values()}
    kept = [t for where, t in saved.items() if where not in given and t.dim() == 3]  # the filter's have two
    graph = sum(t.untyped_storage().nbytes() for t in (*kept, y))
    assert graph == size * of.elements
    # Two sets of it, of inputs and of gradients; four spectra of the backward pass, and scratch.
    spectrum = 16 if mode == "causal" else 8
    assert cases.WORKING_BYTES["backward"][mode] >= 2 * size + 2 * 8 + 2 * 6 + 5 * spectrum


def test_a_suite_goes_backward_where_it_matters() -> None:
    found = backward_rows(problem_set())
    assert [c.length for c in found] == list(BACKWARD_LENGTHS) == [256, 1024, 2048, 4096, 32768, 65536]
    assert {(c.problem.mode, c.problem.dtype, c.gated, c.direction) for c in found} == {
        ("causal", "bf16", True, "backward")
    }
    assert [c.length for c in backward_rows(problem_set((256, 1000)), (256, 1000))] == [256, 1000]
    assert not backward_rows(problem_set(dtypes=("fp16",)))
    assert not backward_rows(problem_set(gated=(False,)))


def test_both_directions_of_a_case_are_neighbours_by_importance() -> None:
    every = problem_set((256, 4096), ("bf16",), ("causal",), (True,), directions=DIRECTIONS)
    assert [(c.length, c.direction) for c in every] == [
        *((n, "forward") for n in (256, 4096)),
        *((n, "backward") for n in (256, 4096)),
    ]
    assert [(c.length, c.direction) for c in by_importance(reversed(every))] == [
        *((4096, d) for d in DIRECTIONS),
        *((256, d) for d in DIRECTIONS),
    ]


def test_a_run_that_may_be_cut_short_begins_with_the_published_problem() -> None:
    order = by_importance(problem_set())
    assert sorted(map(str, order)) == sorted(map(str, problem_set()))
    assert all(c.problem.dtype == "bf16" and c.gated and c.problem.causal for c in order[:15])
    assert [c.length for c in order[:5]] == [4096, 1024, 32768, 256, 1048576]
    assert [c.problem.dtype for c in order].count("bf16") == 60
    early = [c for c in order[:66] if c.problem.dtype == "fp16"]
    assert [(c.problem.mode, c.length, c.gated) for c in early] == [
        (mode, n, True) for mode in ("causal", "circular") for n in cases.EARLY
    ]
    assert order[15:21] == early
    unknown = by_importance(problem_set(lengths=(777, 4096), dtypes=("bf16",), modes=("causal",)))
    assert [c.length for c in unknown] == [4096, 777, 4096, 777]


def test_a_few_rows_are_in_fp32() -> None:
    every = problem_set()
    found = wide_rows(every)
    assert {(c.problem.mode, c.problem.dtype, c.gated, c.direction) for c in found} == {
        ("causal", "fp32", True, "forward")
    }
    assert sorted(c.length for c in found) == sorted(cases.EARLY)
    narrow = case("causal", 4096, "bf16")
    assert case("causal", 4096, "fp32").floor_bytes == 2 * narrow.floor_bytes
    order = by_importance([*every, *found])
    assert [str(c) for c in order[18:21]] == [str(c) for c in by_importance(found)]


def test_inputs_are_noise_of_the_storage_type_and_filters_of_unit_norm() -> None:
    wanted = case("causal", 4096, "fp16", batch=2, channels=16)
    x = draw(wanted, CPU, 5)
    assert x.u.shape == (2, 16, 4096)
    assert x.u.dtype == torch.float16
    assert (x.k.shape, x.k.dtype) == ((16, 4096), torch.float32)
    assert x.in_gate is not None
    assert x.out_gate is not None
    for signal in (x.u, x.in_gate, x.out_gate):
        assert signal.double().std() == pytest.approx(1, rel=0.05)
    norms = torch.linalg.vector_norm(x.k.double(), dim=-1)
    assert norms.mean() == pytest.approx(1, rel=0.1)
    assert x.k[:, -400:].abs().max() < 0.01 * x.k.abs().max()  # it decays
    assert torch.equal(x.u, draw(wanted, CPU, 5).u)
    assert not torch.equal(x.u, draw(wanted, CPU, 6).u)
    assert draw(case(gated=False), CPU, 5).in_gate is None
    assert x.nbytes == 3 * 2 * 2 * 16 * 4096 + 4 * 16 * 4096


@pytest.mark.parametrize("l2", [0, 100_000, 1 << 16, 1 << 20])
def test_sets_of_inputs_together_overflow_the_l2(l2: int) -> None:
    sets = draw_sets(case(length=1024, batch=2, channels=4), CPU, 1, l2)
    assert len(sets) == max(2, math.ceil(FILLS * l2 / sets[0].nbytes))
    assert sum(x.nbytes for x in sets) >= FILLS * l2
    assert len({x.u.data_ptr() for x in sets}) == len({x.k.data_ptr() for x in sets}) == len(sets)
    assert not torch.equal(sets[0].u, sets[1].u)


def test_a_suite_has_rows_with_short_filters() -> None:
    """Both ways, of lengths that are cut into windows; early, since no run has timed windows."""
    found = short_rows(problem_set())
    assert {(c.length, c.taps, c.direction) for c in found} == {
        (n, taps, d) for n in (65_536, 1_048_576) for taps in (128, 4096) for d in DIRECTIONS
    }
    assert {(c.gated, c.problem.dtype, c.problem.mode) for c in found} == {(True, "bf16", "causal")}
    ranked = by_importance([*problem_set(), *found])
    places = [ranked.index(c) for c in found]
    assert max(places) < len(ranked) // 4


def test_a_filter_may_be_shorter_than_its_signals() -> None:
    short = case(length=4096, taps=100)
    x = draw(short, CPU, 1)
    assert x.k.shape == (short.channels, 100)
    assert x.u.shape[-1] == 4096
    assert 0.5 < float(torch.linalg.vector_norm(x.k, dim=-1).mean()) < 2
    assert short.about["taps"] == 100
    assert "taps" not in case(length=4096).about
    assert "100 taps" in str(short)
    for taps in (-1, 4097):
        with pytest.raises(InputError, match="choose 1 to 4096"):
            case(length=4096, taps=taps)

"""Rows in sections (planner/sections.py): the kernels in the simulator, held against the definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import compiled
import noise
import numpy as np
import pytest
import torch
from calls import TORCH, built, check, draw, exact, filters, prepared
from cases import slow
from command_line import why_not
from torch import Tensor

from fftgen import emulate, execute
from fftgen.accuracy import IN_SECTIONS
from fftgen.api import build_files, jobs_for
from fftgen.bundle import kind_of, open_shelf
from fftgen.errors import InternalError
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.planner.sections import LENGTHS, MOST, sectioned
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.simulator import Counters, SimulationError
from fftgen.source import Source
from fftgen.spectra import with_skip
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

POINTS = LENGTHS[0]


def planned(sections: int, points: int = POINTS, dtype: str = "bf16", arch: str = "sm_90") -> Plan:
    problem = Problem("causal", sections * points, dtype)
    found = sectioned(problem, points, lambda p: search.plan(p, arch))
    assert found is not None
    assert found.sections == sections
    return found


def run(plan: Plan, u: Tensor, k: Tensor, ptx: str | None = None, seed: int = 0, **given: Any) -> Tensor:
    """The result, the filter's spectra by kernels as well, judged."""
    y = call(plan, u, k, ptx, seed, **given)
    check(plan, y, u, k, **given)
    return y


def call(plan: Plan, u: Tensor, k: Tensor, ptx: str | None = None, seed: int = 0, **given: Any) -> Tensor:
    module, own = built(plan)
    return emulate.convolve(module, u, k, ptx=ptx or own, seed=seed, **given)[0]


CASES = (
    (2, 8192, "bf16", "sm_90"),
    (3, 8192, "fp16", "sm_90"),
    (2, 8192, "bf16", "sm_80"),
    (2, 32_768, "bf16", "sm_90"),
    (3, 12_288, "bf16", "sm_86"),
    (6, 8192, "bf16", "sm_89"),
    *slow(
        [
            (5, 16_384, "bf16", "sm_89"),
            (6, 16_384, "bf16", "sm_89"),
            (5, 16_384, "fp16", "sm_120"),
            (6, 16_384, "bf16", "sm_120"),
            (6, 12_288, "fp16", "sm_89"),
            (5, 32_768, "bf16", "sm_80"),
            (6, 32_768, "bf16", "sm_90"),
            (5, 32_768, "fp16", "sm_100"),
            (6, 40_960, "bf16", "sm_90"),
            (2, 24_576, "bf16", "sm_80"),
            (3, 24_576, "fp16", "sm_90"),
            (4, 24_576, "bf16", "sm_100"),
            (4, 12_288, "fp16", "sm_120"),
            (2, 40_960, "bf16", "sm_90"),
            (4, 40_960, "fp16", "sm_90"),
            (2, 16_384, "bf16", "sm_80"),
            (2, 32_768, "fp16", "sm_100"),
            (3, 16_384, "bf16", "sm_90"),
            (3, 32_768, "bf16", "sm_90"),
            (2, 32_768, "bf16", "sm_80"),
            (4, 32_768, "fp16", "sm_90"),
            (4, 16_384, "bf16", "sm_86"),
            (4, 16_384, "bf16", "sm_89"),
            (2, 16_384, "fp16", "sm_120"),
            (4, 16_384, "bf16", "sm_120"),
        ]
    ),
)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("sections", "points", "dtype", "arch"), CASES)
def test_sections_are_what_one_transform_is(
    sections: int, points: int, dtype: str, arch: str, rng: np.random.Generator
) -> None:
    """Gates and a skip; the whole row, and one that ends inside a section, with a filter that does."""
    plan, of = planned(sections, points, dtype, arch), TORCH[dtype]
    for shape, taps in (((1, 2), sections * points), ((2, 1), points + 100)):
        steps = sections * points - (0 if taps > points + 100 else 1000)
        u, in_gate, out_gate = (draw(rng, *shape, steps).to(of) for _ in range(3))
        k = filters(rng, shape[1], taps, steps)
        skip = torch.copysign(draw(rng, shape[1]).float(), k[:, 0])
        seed = int(rng.integers(2**31))
        run(plan, u, k, seed=seed, in_gate=in_gate, out_gate=out_gate, skip=skip)


@pytest.mark.parametrize(
    ("sections", "points", "dtype"),
    [
        (4, 8192, "fp16"),
        *slow([(2, 8192, "bf16"), (2, 32_768, "bf16"), (4, 16_384, "fp16"), (4, 32_768, "bf16")]),
        *slow([(3, 12_288, "bf16"), (3, 24_576, "fp16"), (4, 40_960, "bf16")]),
        *slow([(6, 8192, "bf16"), (5, 16_384, "fp16"), (6, 32_768, "bf16"), (4, 40_960, "fp16")]),
    ],
)
def test_noise_is_that_of_all_that_sections_hold(
    sections: int, points: int, dtype: str, rng: np.random.Generator
) -> None:
    """Of signals and filters of any shape (test_noise.py)."""
    plan = planned(sections, points, dtype)
    u, k = noise.drawn(rng, sections * points, dtype)
    noise.judge(call(plan, u, k), exact(plan, u, k), u, k, dtype, IN_SECTIONS)


@pytest.mark.drawn(3)
def test_sections_of_any_signal(rng: np.random.Generator) -> None:
    """Lengths, taps and layouts drawn; rows that start anywhere among them."""
    plan = planned(int(rng.integers(2, MOST + 1)))
    steps = int(rng.integers(1, plan.sections * POINTS + 1))
    u = draw(rng, int(rng.integers(1, 4)), int(rng.integers(1, 3)), steps).bfloat16()
    k = filters(rng, u.shape[1], int(rng.integers(1, plan.sections * POINTS + 1)), steps)
    run(plan, u, k, **({"in_gate": draw(rng, *u.shape).bfloat16()} if rng.integers(2) else {}))


def in_whole_sectors(counters: Counters) -> None:
    """No access to signals or transforms touches more sectors of 32 bytes than it has to."""
    for name, buffer in counters.buffers.items():
        if name in ("tables", "scale", "peaks", "v_peaks"):
            continue
        for accesses in (buffer.loads, buffer.stores):
            assert accesses.units == -(-accesses.bytes // 32), name


@pytest.mark.parametrize("gates", [(), ("in_gate", "out_gate")])
def test_what_moves_moves_in_whole_sectors(gates: tuple[str, ...], rng: np.random.Generator) -> None:
    plan = planned(3)
    u, *given = (draw(rng, 1, 1, plan.problem.length).bfloat16() for _ in range(1 + len(gates)))
    module, ptx = built(plan)
    options = dict(zip(gates, given, strict=True))
    k = filters(rng, 1, plan.problem.length)
    _, simulated = emulate.convolve(module, u, k, ptx=ptx, **options)
    counters = simulated.reports[plan.entry(plan.body)].counters
    assert {"u", "y", "workspace", "spectrum", *gates} <= counters.buffers.keys()
    in_whole_sectors(counters)


SIZES = {
    "loud, then quiet": lambda t: torch.where(t < POINTS, 1e4, 1e-3),
    "quiet, then loud": lambda t: torch.where(t < POINTS, 1e-3, 1e4),
    "nothing, then something": lambda t: (t >= POINTS).double(),
    "something, then nothing": lambda t: (t < POINTS).double(),
    "tiny": lambda t: torch.full_like(t, 1e-20, dtype=torch.float64),
    "huge": lambda t: torch.full_like(t, 1e30, dtype=torch.float64),
    "rising": lambda t: 2.0 ** (t.double() / POINTS * 6 - 40),
    "falling": lambda t: 2.0 ** (-t.double() / POINTS * 6),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sections", [2, *slow([4])])
def test_each_section_has_a_power_of_its_own(sections: int, size: str, rng: np.random.Generator) -> None:
    plan = planned(sections)
    steps = sections * POINTS
    u = (draw(rng, 1, 1, steps) * SIZES[size](torch.arange(steps))).bfloat16()
    run(plan, u, filters(rng, 1, steps))


def test_blocks_take_row_after_row(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """On a GPU of one multiprocessor, of several channels each; the last block has fewer."""
    plan = planned(3)
    monkeypatch.setattr(execute, "chip_of", lambda name, _: target(name).on(1, 1 << 20))
    rows = 2 * plan.body.resident + 1
    u = draw(rng, 1, rows, plan.problem.length).bfloat16()
    module, ptx = built(plan)
    k = filters(rng, rows, plan.problem.length)
    y, simulated = emulate.convolve(module, u, k, ptx=ptx, in_gate=u.flip(1))
    check(plan, y, u, k, in_gate=u.flip(1))
    assert simulated.reports[plan.name].blocks == -(-rows // 3) <= plan.body.resident


@pytest.mark.drawn(3)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("taps", [1, 2, POINTS, POINTS + 1])
def test_filters_that_leave_distances_empty(taps: int, scale: float, rng: np.random.Generator) -> None:
    """Spectra of zeros, by length and by what the taps are: they ask for no room beside the others."""
    plan = planned(3)
    k = filters(rng, 1, taps, plan.problem.length) * scale
    u = draw(rng, 1, 1, plan.problem.length).bfloat16()
    run(plan, u, k)
    run(plan, u, torch.nn.functional.pad(k, (0, plan.problem.length - taps)))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("first", [POINTS, 2 * POINTS + 5])
def test_filters_that_leave_a_sections_own_distance_empty(
    first: int, scale: float, rng: np.random.Generator
) -> None:
    """Pure delays, almost: results are scaled as that spectrum, which is zero, says."""
    plan = planned(3)
    k = torch.zeros(1, plan.problem.length)
    k[:, first : first + 40] = filters(rng, 1, 40) * scale
    run(plan, draw(rng, 1, 1, plan.problem.length).bfloat16(), k)
    run(plan, draw(rng, 1, 1, plan.problem.length).bfloat16(), k, skip=torch.tensor([3 * scale]))


def rising(rng: np.random.Generator, channels: int, taps: int, first: float) -> Tensor:
    """Filters whose first section is so much smaller than the others, fp32."""
    k = draw(rng, channels, taps).float() / taps**0.5
    k[:, :POINTS] *= first
    return k


@pytest.mark.drawn(2)
@pytest.mark.parametrize("first", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("sections", [3, *slow([4])])
def test_filters_that_begin_quietly(sections: int, first: float, rng: np.random.Generator) -> None:
    """What a section adds to its own result is nothing beside the rest of it, and most of a later result."""
    plan = planned(sections)
    u = draw(rng, 1, 2, plan.problem.length).bfloat16()
    u[:, 1, :POINTS] *= 1e4
    run(plan, u, rising(rng, 2, plan.problem.length, first))


# Sizes of a signal, and of the first section of its filter beside the others: what undoes a result's power,
# or that power beside the first section's, is beyond fp32.
EXTREMES = [(1e30, 1e-10), (1e37, 1e-3), (100.0, 1e-37), (1e-30, 1e-7)]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("size", "first"), EXTREMES)
def test_powers_that_fp32_does_not_hold(size: float, first: float, rng: np.random.Generator) -> None:
    plan = planned(3)
    u = (draw(rng, 1, 1, plan.problem.length) * size).bfloat16()
    run(plan, u, rising(rng, 1, plan.problem.length, first))


def test_what_is_not_finite_spoils_what_comes_after_it(rng: np.random.Generator) -> None:
    """And no section before it: of its own section all results, of later ones, too."""
    plan = planned(3)
    u, k = draw(rng, 2, 1, plan.problem.length).bfloat16(), filters(rng, 1, plan.problem.length)
    good = call(plan, u, k)
    spoilt = u.clone()
    spoilt[0, 0, POINTS + 5] = float("inf")
    y = call(plan, spoilt, k)
    assert torch.equal(y[1], good[1])
    assert torch.equal(y[0, 0, :POINTS], good[0, 0, :POINTS])
    assert bool(y[0, 0, POINTS:].isnan().all())
    k[:] = float("nan")
    assert bool(call(plan, u, k).isnan().all())


def changed(source: Source, before: str, after: str) -> Source:
    """Source and headers with one place of them another."""
    texts = {source.name: source.text, **source.headers}
    assert sum(text.count(before) for text in texts.values()) == 1, before
    texts = {name: text.replace(before, after) for name, text in texts.items()}
    return replace(source, text=texts.pop(source.name), headers=texts)


SUM = "to_re[i / 2].v[i % 2] = fma2(packed(x), "
MUTATIONS = {
    "no power of the result": ("at[-1] = result + spectrum(0);", "at[-1] = at[p];"),
    "sections at the power of their result": ("NEAR = 2,", "NEAR = 200,"),
    "half of what undoes it": ("* two_to(half) * two_to(result - half)", "* two_to(half)"),
    "an own product at its own power": ("if (lower) multiply(", "if (false) multiply("),
    "transforms at the wrong power": (f"{SUM}factor,", f"{SUM}pack(1.0f, 1.0f),"),
    "a spectrum of another distance": ("spectrum + (part - q) * distance", "spectrum + part * distance"),
    "another section's transform": ("own[q * (N / 4)], own[q * (N / 4) + LANES]", "own[0], own[LANES]"),
    "nothing kept": ("own[part * (N / 4)] = together(r[g][m]),", ""),
    "results of another section": ("sink(args, item.b, item.h), part * N)", "sink(args, item.b, item.h), 0)"),
}


@pytest.mark.drawn(3)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(mutation: str, rng: np.random.Generator) -> None:
    plan = planned(3)
    module, _ = built(plan)
    before, after = MUTATIONS[mutation]
    source = changed(module.source, before, after)
    ptx = emulate.line_ptx(replace(module, source=source))
    steps = plan.problem.length
    noise, k = draw(rng, 1, 1, steps), filters(rng, 1, steps)
    signals = [noise * SIZES[size](torch.arange(steps)) for size in ("rising", "falling")]
    with pytest.raises((AssertionError, SimulationError, InternalError)):
        run(
            plan,
            torch.cat([*signals, noise], 1).bfloat16(),
            torch.cat([k, k, rising(rng, 1, steps, 1e-5)]),
            ptx,
        )


@pytest.mark.parametrize(
    ("points", "arch"),
    [(32_768, "sm_90"), *slow([(32_768, "sm_80"), (32_768, "sm_100"), (24_576, "sm_80"), (40_960, "sm_90")])],
)
@pytest.mark.parametrize("sections", [3, *slow([2, 6])])
def test_sections_put_next_to_nothing_by(sections: int, points: int, arch: str) -> None:
    plan = planned(sections, points, arch=arch)
    found = compiled.cubin(render(plan), arch).resources[plan.name]
    assert found.spill_store_bytes <= (16 if arch == "sm_100" else 0 if sections < 4 else 20)
    assert found.registers <= 128


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_skip_term_of_any_size_joins_prepared_spectra(dtype: str, rng: np.random.Generator) -> None:
    """Far below the filter, of its size, and so large that a section's own spectrum is scaled anew."""
    plan = planned(3, dtype=dtype)
    largest = 1e30 if dtype == "bf16" else 1e4
    skip = torch.tensor([1e-6, 0.0, -1.0, 300.0, -largest])
    u = (draw(rng, 1, 5, plan.problem.length) / (1 if dtype == "bf16" else 8)).to(TORCH[dtype])
    k = filters(rng, 5, plan.problem.length)
    module, ptx = built(plan)
    simulated = emulate.Simulated(ptx, module.source.text)
    tables = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    made = prepare(plan, tables, simulated, k, address=simulated.address)
    assert (made.channels, made.digest) == (5, plan.digest)
    y = prepared(plan, u, *with_skip(plan, made.planes, made.scale, skip))
    check(plan, y, u, k, skip=skip)
    bare = prepared(plan, u, made.planes, made.scale)
    check(plan, bare, u, k)
    assert torch.equal(bare[:, 1], y[:, 1])


def test_artifacts_carry_what_many_rows_take(tmp_path: Path) -> None:
    """The sections' kernels beside those of the whole, where they pay and no engine was asked for."""
    problem = Problem("causal", 65_536, "bf16")
    (file,) = build_files({tmp_path / "a.fftgen": (problem,)}, [target("sm_90")])
    kinds = [kind_of(built.subject) for built in file.built]
    assert kinds == ["convolution", "sections"]
    shelf = open_shelf(file.path)
    assert shelf.problems == (problem,)
    (plan,) = shelf.sections(problem, (9, 0))
    assert (plan.sections, plan.transform) == (2, 32_768)
    assert shelf.sectioned(plan).cubin == file.built[1].cubin != b""
    assert shelf.built(problem, (9, 0)).plan.sections == 1
    assert shelf.sections(problem, (8, 0)) == ()
    assert shelf.trained_sections(problem, (9, 0)) == ()  # without --train
    shorter = Problem("causal", 32_768, "bf16")
    assert [kind for *_, kind in jobs_for(shorter, [target("sm_90")])] == ["convolution"]
    assert [kind for *_, kind in jobs_for(problem, [target("sm_90")], engine="wmma")] == ["convolution"]


def test_filters_that_act_backwards_are_not_for_sections(rng: np.random.Generator) -> None:
    plan = planned(2)
    u, k = draw(rng, 1, 1, 100).bfloat16(), filters(rng, 1, 10, 100)
    with pytest.raises(InternalError, match="act forwards"):
        call(plan, u, k, k_rev=k)
    assert exact(plan, u, k).shape == u.shape

"""Plans: legal on their target, complete, reproducible, and refused with a reason where there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from plans import engines, on_engine

import fftgen.planner
from fftgen.dtypes import BF16, FP16, decode, dtype
from fftgen.errors import ArtifactError, InputError, InternalError, NoPlanError
from fftgen.planner import cost, tables
from fftgen.planner import search as searching
from fftgen.planner.factor import factorable, factorisations, transforms
from fftgen.planner.filter_design import design
from fftgen.planner.plan import SCHEMA, Kernel, Plan
from fftgen.planner.rules import STAGING_BYTES
from fftgen.planner.search import plan, search, with_shape
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import REAL_TARGETS, TARGETS, target, target_for

POWERS = tuple(2**e for e in range(8, 23))
LENGTHS = (*POWERS, 1, 2, 17, 100, 255, 257, 1000, 1026, 5000, 12288, 20000, 40000, 100000, 1000003, 3000000)
PORTFOLIO = (
    ("causal", 1024, "bf16", "sm_90"),
    ("causal", 20000, "fp16", "sm_86"),
    ("circular", 4096, "bf16", "sm_80"),
    ("circular", 100000, "fp16", "sm_75"),
    ("causal", 4194304, "bf16", "sm_100"),
)
# Tables of the register chain that a block copies to shared memory.
COPIED = {"first", "twiddle", "last", "columns"} | {
    f"{name}_inverse" for name in ("first", "twiddle", "last", "columns")
}
ROOT = Path(fftgen.planner.__file__).parents[2]


@cache
def plans_of(name: str) -> tuple[Plan, ...]:
    """Plans of a target for all lengths, modes and dtypes that it has, on every engine that has one."""
    chip = target(name)
    kinds = [kind for kind in cases.DTYPES if chip.capability >= dtype(kind).capability]
    problems = (Problem(*row) for row in product(cases.MODES, LENGTHS, kinds))
    return tuple(found for problem in problems for found in engines(problem, name))


def portfolio() -> list[Plan]:
    return [plan(Problem(*row[:3]), row[3]) for row in PORTFOLIO]


# Legality


# By default one target of each kind of limits; the others have those of one of them, or nearly.
KINDS = ("sm_75", "sm_80", "sm_90")
# Target by target: listing the plans of one takes seconds.
of_every_target = pytest.mark.parametrize("name", cases.usually(TARGETS, KINDS), scope="module")


@pytest.mark.drawn(2)
@of_every_target
def test_every_plan_is_legal(name: str) -> None:
    chip = target(name)
    for found in plans_of(name):
        problem = found.problem
        note = str(found)
        assert found.target == name, note
        assert prod(found.factors) == found.transform, note
        first, *others = found.factors
        assert all(r % 16 == 0 and 16 <= r <= 128 for r in others), note
        if found.abreast == 2:  # half a tile for each of two channels
            assert (first, found.transform, found.device_stages) == (8, 2048, ()), note
        else:
            assert (first % 16, found.abreast) == (0, 1), note
            assert 16 <= first <= 128, note
        assert 2 <= found.order <= 4, note
        rest = found.transform
        for stage in found.stages:
            rest //= stage.radix
            assert stage.rest == rest, note
        assert rest == 1, note
        places = [s.place for s in found.stages]
        assert places == sorted(places, key=["device", "block", "warp"].index), note
        assert places.count("warp") == 2, note
        assert places.count("block") <= 1, note
        within = "block" if found.block_stage or found.engine == "wmma" else "warp"
        assert found.memory_class == ("device" if found.device_stages else within), note
        assert found.engine == "wmma" or chip.capability >= 80, note
        formats = {"wmma": f"{problem.dtype}-fp32", "mma": "scaled-fp16"}
        assert found.compute_format == formats[found.engine], note
        assert found.scaled or found.real_input, note  # rows that share a transform share its noise
        assert found.transform >= problem.length, note
        if problem.causal:
            assert (found.packing, found.fold) == ("right-angle", 0), note
        elif found.packing == "batch-pair":
            assert (found.transform, found.fold) == (problem.length, 0), note
        else:
            assert (found.packing, found.fold) == ("right-angle", problem.length), note
        for kernel in found.kernels:
            assert kernel.shared_bytes <= chip.shared_block, note
            assert 1 <= kernel.warps <= 32, note
            resident = kernel.resident * (kernel.shared_bytes + chip.shared_reserved)
            assert 1 <= kernel.resident <= chip.blocks_sm, note
            assert resident <= chip.shared_sm, note
            assert kernel.resident * kernel.warps <= chip.warps_sm, note


@of_every_target
def test_every_engine_is_among_the_plans(name: str) -> None:
    """Wherever a target has it and one block finishes the transform; the planner takes the first."""
    kinds = {(f.engine, f.memory_class) for f in plans_of(name)}
    mma = {("mma", "warp"), ("mma", "block")} if name != "sm_75" else set()
    assert kinds >= {("wmma", "block"), ("wmma", "device")} | mma
    for problem in (Problem("causal", 256, "fp16"), Problem("circular", 4096, "fp16")):
        both = engines(problem, name)
        complete = dataclasses.replace(both[0], filter=design(both[0], target(name)))
        assert complete == plan(problem, name)
        assert {f.engine for f in both} == ({"wmma"} if name == "sm_75" else {"mma", "wmma"})


@of_every_target
def test_shared_memory_regions_are_aligned_and_apart(name: str) -> None:
    for found in plans_of(name):
        for kernel in found.kernels:
            if kernel.role == "peaks" or not kernel.shared_bytes:
                continue
            regions = (chain_regions if found.engine == "mma" else shared_regions)(found, kernel)
            assert all(start % 32 == 0 and size > 0 for start, size in regions), (str(found), kernel)
            ends = sorted((start, start + size) for start, size in regions)
            assert ends[0][0] == 0, (str(found), kernel)
            for (_, end), (start, _) in pairwise(ends):
                assert end <= start, (str(found), kernel)
            assert ends[-1][1] <= kernel.shared_bytes, (str(found), kernel)


def shared_regions(found: Plan, kernel: Kernel) -> list[tuple[int, int]]:
    """(offset, bytes) of all that a kernel keeps in shared memory, from what has to fit there."""
    regions = []
    if kernel.role in ("convolve", "rows"):
        rows, columns = (s.radix for s in found.stages[-2:])
        block = found.inner[0].radix if len(found.inner) == 3 else 1
        assert kernel.pitch >= columns
        assert kernel.pitch % 8 == 0, "a matrix load takes rows at multiples of 16 bytes"
        assert kernel.row >= rows * kernel.pitch
        assert kernel.row * 2 % 32 == 0
        assert kernel.plane >= block * kernel.row
        assert kernel.items == (1 if block > 1 else kernel.warps)
        needed = 2 * 2 * kernel.plane * kernel.items  # real and imaginary planes of 16-bit numbers
        regions.append((0, needed))
        if kernel.matrices_at >= 0:
            stages = found.inner
            weighted = [found.real_input and kernel.role == "convolve" and i == 0 for i in range(len(stages))]
            distinct = {(s.radix, s.scale, w) for s, w in zip(stages, weighted, strict=True)}
            # Three planes (real, imaginary, minus imaginary) with padded rows.
            size = sum(3 * radix * tables.matrix_pitch(radix) * 2 for radix, _, _ in distinct)
            regions.append((kernel.matrices_at, size))
    else:
        stage = found.stages[kernel.stage - 1]
        assert stage.place == "device"
        assert kernel.pitch >= 16
        assert kernel.pitch % 8 == 0
        if kernel.plane:
            assert kernel.plane >= stage.radix * kernel.pitch
            regions.append((0, 4 * kernel.plane * kernel.items))
        assert kernel.matrices_at < 0
    regions.append((kernel.staging_at, kernel.warps * STAGING_BYTES))
    return regions


def chain_regions(found: Plan, kernel: Kernel) -> list[tuple[int, int]]:
    """The same for the register chain: rows of all transforms, peaks of strips, tables."""
    parts = 1 if found.real_input else 2
    if kernel.role == "columns":  # a warp's copy of an unaligned strip and its gates
        assert kernel.items == kernel.warps
        needed = 2 * 2 * found.factors[0] * 8 * kernel.columns
        assert 16 * kernel.plane == needed
        return [(0, needed * kernel.warps)]
    if kernel.role == "columns_inverse":  # gates of a strip's results
        assert kernel.plane == kernel.brought * parts * found.factors[0] * kernel.columns
        return [(0, 16 * kernel.plane * kernel.warps)]
    points = found.row_length * found.abreast
    parts = 2 if found.device_stages else parts
    radices = tuple(s.radix for s in found.inner)
    # Fragments of 16 x 16 tiles, 512 bytes a plane of two: a pair of matrices and twiddles, forward and back.
    rows, columns = (radix // 16 for radix in radices[-2:])
    real = parts == 1 and not found.block_stage
    # By halves a matrix is half of one; a warp by itself takes whole ones back. Of the first stage one half
    # tells the other, but for real numbers into rows of 64 columns.
    held = 2 * rows * columns * 2
    for stage, tiles in zip(found.stages[-2:], (rows, columns), strict=True):
        there = 2 if stage.halves else 1
        back = there if found.block_stage else 1
        if real and stage is found.stages[-2] and tiles % 2 == 0:
            there, back = (2 if columns < 4 else 1), 2
        held += 2 * tiles * tiles // there + 2 * tiles * tiles // back
    if found.block_stage:
        lines = radices[0] * found.abreast
        tiles = lines // 16
        held += 2 * tiles * (tiles if tiles % 2 else tiles // 2) * 2
        strips = points // lines // (8 * kernel.columns)
        assert kernel.columns in (2, 4, 8)
        assert strips % kernel.warps == 0
        assert strips <= 32, "a lane reads the peak of a strip"
        assert kernel.pitch == points // lines // 8
        assert kernel.plane == points
        assert kernel.items == 1
        assert radices[0] % kernel.group == 0
        # Two planes of fp16, which also hold rows and their gates; peaks of strips, and what undoes their
        # scaling, or of the workspace's strips a number in fp16.
        several = found.abreast if parts == 2 else 1  # channels whose pairs have peaks and scales each
        staged = 2 * found.strip_peaks or several * 4 * (2 * 32 + 2)
        regions = [(0, 2 * 2 * points), (kernel.staging_at, staged)]
    else:
        assert kernel.columns == 0
        assert kernel.items == kernel.warps * kernel.group
        assert kernel.plane >= kernel.group * points
        if not kernel.brought:
            assert parts * kernel.plane >= 2 * points, "a copy of a row and its gate does not fit"
        regions = [(0, 2 * kernel.warps * parts * kernel.plane)]
        if kernel.staging_at >= 0:  # what undoes the scaling of the rows of each pair
            regions.append((kernel.staging_at, 8 * kernel.items))
        if kernel.brought:
            regions.append((kernel.brought_at, 2 * points * kernel.brought * parts * kernel.items))
    assert held * 512 == copied(found)
    return [*regions, (kernel.matrices_at, 512 * held)]


def copied(found: Plan) -> int:
    """Bytes of the tables that a block copies."""
    return sum(t.nbytes for t in found.tables if t.name in COPIED)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "sm_75"])  # 64 KB leave no room for it
@pytest.mark.parametrize("length", [256, 1024, 4096, 8192, 100000, 1048576])
def test_rows_of_tiles_start_in_different_banks(length: int, name: str) -> None:
    """WMMA operands start on 32 bytes: rows an odd number of 32-byte groups apart conflict least."""
    found = on_engine(Problem("causal", length, "fp16"), name, "wmma")
    for kernel in found.kernels:
        assert kernel.role == "peaks" or 2 * kernel.pitch % 64 == 32, (str(found), kernel)
    for radix in found.factors:
        assert 2 * tables.matrix_pitch(radix) % 64 == 32


@of_every_target
def test_kernels_walk_through_all_stages_and_back(name: str) -> None:
    for found in plans_of(name):
        roles = [(k.role, k.stage) for k in found.kernels]
        count = len(found.device_stages)
        inward = [("columns", s) for s in range(1, count + 1)]
        outward = [("columns_inverse", s) for s in range(count, 0, -1)]
        expected = [*inward, ("rows", 0), *outward] if count else [("convolve", 0)]
        # Strips of a row by itself stand in the workspace at powers of their own, where a block reads them.
        own = found.engine == "mma" and found.packing == "right-angle" and len(found.inner) == 3
        if found.scaled and count and not own:
            expected.insert(0, ("peaks", 0))
        assert roles == expected, str(found)
        entries = [found.entry(k) for k in found.kernels]
        assert len(set(entries)) == len(entries)
        assert all(e.isidentifier() and e.startswith("fftgen_conv_n") for e in entries)
        if count:
            assert found.chunk_bytes >= 4 * found.transform, "not one transform fits the workspace"


# Tables


@of_every_target
def test_tables_do_not_overlap(name: str) -> None:
    for found in plans_of(name):
        distinct = {(t.offset, t.nbytes) for t in found.tables}
        for (a, size_a), (b, size_b) in combinations(sorted(distinct), 2):
            assert a + size_a <= b or b + size_b <= a, str(found)
        for table in found.tables:
            assert table.offset % 32 == 0
            element = {"operand": 2, "complex64": 8, "fp16": 2}[table.element]
            assert table.nbytes == prod(table.shape) * element
            assert table.offset + table.nbytes <= found.table_bytes
        if found.engine == "mma":  # a block copies what it keeps in shared memory in one go
            assert all((t.offset < copied(found)) == (t.name in COPIED) for t in found.tables)
            assert all(t.offset % 512 == 0 for t in found.tables)
            assert {t.stage for t in found.tables} == set(range(1, found.order + 1))
            continue
        for number, stage in enumerate(found.stages, 1):
            assert found.table("dft", number).shape[:2] == (3, stage.radix)
            if stage.rest == 1:
                assert stage.split == 0
                continue
            low = found.table("low", number).shape
            levels = low[1]
            if stage.split < stage.rest:
                levels *= found.table("high", number).shape[1]
            assert low[0] == stage.radix
            assert levels == stage.rest


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("length", [4096, 8192, 16_384, 32_768, 65_536, 1 << 20])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_outer_twiddles_have_two_levels_where_one_would_not_stay_in_the_l1(
    mode: str, length: int, arch: str
) -> None:
    """Beside the resident blocks, with half as much for the spectrum that passes."""
    chip = target(arch)
    found = on_engine(Problem(mode, length, "bf16"), arch, "mma")
    (stage, *_), body = found.inner, found.body
    left = chip.l1_beside(body.resident, body.shared_bytes)
    held = {t.name: t.nbytes for t in found.tables if t.name.startswith("outer")}
    single = 8 * stage.radix * stage.rest
    if not found.block_stage:
        assert not held
    elif stage.split == stage.rest:
        assert set(held) == {"outer", "outer_inverse"}
        assert 1.5 * sum(held.values()) == 1.5 * single <= left
    else:
        assert set(held) == {"outer", "outer_inverse", "outer_high", "outer_inverse_high"}
        assert 1.5 * single > left
        assert sum(held.values()) <= single / 4
        assert sum(held.values()) <= left
        assert stage.split % 32 == stage.split % (8 * body.columns) == 0


def test_the_table_block_holds_the_matrices_and_twiddles() -> None:
    """Read back from the bytes, by the layout alone: rows padded, three planes, two levels.

    Tables of the register chain: test_fragments.py.
    """
    for found in (
        on_engine(Problem("causal", 20000, "bf16"), "sm_90", "wmma"),
        on_engine(Problem("circular", 131072, "fp16"), "sm_80", "wmma"),
    ):
        block = tables.build(found)
        assert len(block) == found.table_bytes
        kind = dtype(found.problem.dtype)
        for number, stage in enumerate(found.stages, 1):
            table = found.table("dft", number)
            raw = np.frombuffer(block, np.uint16, prod(table.shape), table.offset).reshape(table.shape)
            planes = decode(raw, kind)[:, :, : stage.radix].astype(float)
            digits = np.arange(stage.radix)
            turns = -np.outer(digits, digits) / stage.radix
            if found.real_input and number == 1:
                turns = turns + digits / (4 * stage.radix)
            exact = np.exp(2j * np.pi * turns) * stage.scale
            for plane, values in zip(planes, (exact.real, exact.imag, -exact.imag), strict=True):
                np.testing.assert_allclose(plane, values, rtol=0, atol=kind.epsilon * stage.scale)
            assert not raw[:, :, stage.radix :].any()
            if stage.rest == 1:
                continue
            low_table = found.table("low", number)
            low = np.frombuffer(block, np.complex64, prod(low_table.shape), low_table.offset)
            low = low.reshape(low_table.shape)
            r = np.arange(stage.rest)
            got = low[:, r % stage.split]
            if stage.split < stage.rest:
                high_table = found.table("high", number)
                high = np.frombuffer(block, np.complex64, prod(high_table.shape), high_table.offset)
                got = high.reshape(high_table.shape)[:, r // stage.split] * got
            turns = -np.outer(digits, r) / (stage.radix * stage.rest)
            if found.real_input and number == 1:
                turns = turns + r / (4 * found.transform)
            np.testing.assert_allclose(got, np.exp(2j * np.pi * turns), rtol=0, atol=4e-7)


def test_equal_plans_give_equal_tables() -> None:
    for found in portfolio():
        assert tables.build(found) == tables.build(Plan.from_json(found.to_json()))


# Choices


def test_lengths_are_not_rounded_up_to_powers_of_two() -> None:
    for name in TARGETS:
        found = plan(Problem("causal", 20000, "fp16"), name)
        assert 20000 <= found.transform < 32768, str(found)


@pytest.mark.parametrize(
    ("name", "memory_class"),
    [("sm_80", "block"), ("sm_90", "block"), ("sm_100", "block"), ("sm_75", "device"), ("sm_86", "device")],
)
@pytest.mark.parametrize("mode", cases.MODES)
def test_32768_fits_one_block_where_shared_memory_is_large(name: str, memory_class: str, mode: str) -> None:
    problem = Problem(mode, 32768, "fp16")
    assert on_engine(problem, name, "wmma").memory_class == memory_class
    if name != "sm_75":
        assert on_engine(problem, name, "mma").memory_class == memory_class


def test_the_chosen_plan_is_the_cheapest() -> None:
    """Of all on the register chain and of those that one block finishes on wmma, else of all."""
    for mode, length in (("causal", 4096), ("circular", 8192), ("causal", 20000), ("circular", 131072)):
        problem, chip = Problem(mode, length, "bf16"), target("sm_90")
        found = [c for c in search(problem, chip) if c.plan is not None and c.cost is not None]
        chosen = plan(problem, chip)
        assert chosen.engine == "mma"
        rivals = [
            c.cost.time / c.plan.rows_per_item
            for c in found
            if c.plan and c.cost and (c.engine == "mma" or c.plan.memory_class != "device")
        ]
        assert cost.cost(chosen, chip).time / chosen.rows_per_item == min(rivals)


def test_circular_lengths_fold_where_batch_pairs_do_not_fit_the_register_chain() -> None:
    """And nowhere else at the lengths that matter most: two rows to a transform are half the matrix work."""
    for name in ("sm_80", "sm_90"):
        for length in (256, 4096, 32768, 65536):
            found = plan(Problem("circular", length, "bf16"), name)
            assert (found.engine, found.packing, found.transform) == ("mma", "batch-pair", length), str(found)
    # 4194304 takes too many registers in pairs; 2304 = 48·48 has no shape of the register chain at all, its
    # neighbours have.
    for length, name in ((4194304, "sm_90"), (2304, "sm_90"), (1000, "sm_80")):
        problem = Problem("circular", length, "bf16")
        found = plan(problem, name)
        assert (found.engine, found.fold) == ("mma", length), str(found)
        pairs = [c for c in search(problem, target(name)) if c.plan and c.plan.packing == "batch-pair"]
        assert all(c.engine == "wmma" for c in pairs)
        assert (found.transform == length) == (length not in (1000, 2304))


def test_predicted_times_are_compared_by_the_row() -> None:
    """A batch pair may take nearly twice as long as a right-angle transform, and is still the better one."""
    first, second = (
        next(
            c
            for c in search(Problem("circular", 4096, "bf16"), target("sm_90"))
            if c.plan and c.plan.fold == f
        )
        for f in (0, 4096)
    )
    assert first.plan is not None
    assert first.cost is not None
    assert second.plan is not None
    assert second.cost is not None
    assert (first.plan.rows_per_item, second.plan.rows_per_item) == (2, 1)
    assert first.row_seconds == first.cost.time / 2 < second.row_seconds == second.cost.time < first.cost.time


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_86", "sm_90"])
@pytest.mark.parametrize("mode", cases.MODES)
def test_no_shape_is_predicted_to_be_faster_than_the_choice(mode: str, name: str) -> None:
    """But for differences that the model cannot tell: there the least by busiest resources goes first."""
    for length in (1024, 20_480, 131_072, 262_144):
        problem, engine = Problem(mode, length, "fp16"), "wmma" if name == "sm_75" else "mma"
        first, *others = (c for c in search(problem, target(name), engine=engine) if c.cost is not None)
        assert others
        least = min(c.row_expected for c in (first, *others))
        assert 0 < first.row_expected <= searching.CLOSE * least
        close = [c.row_seconds for c in others if c.row_expected <= searching.CLOSE * least]
        assert first.row_seconds <= min(close, default=np.inf)


def test_what_busiest_resources_do_not_hide_decides_between_shapes() -> None:
    """Columns of radix 64 take less time by their busiest resource than 32, and more by all."""
    first, *others = search(Problem("circular", 524_288, "bf16"), target("sm_90"), engine="mma")
    tall = next(c for c in others if c.plan and c.plan.factors[0] == 64)
    assert first.plan is not None
    assert first.plan.factors[0] == 32
    assert tall.row_seconds < first.row_seconds
    assert tall.row_expected > searching.CLOSE * first.row_expected


def test_factorisations_are_all_products_and_nothing_else() -> None:
    for length in (256, 4096, 20480, 12288, 1000, 4097 * 16):
        for order in (1, 2, 3):
            radices = range(16, 129, 16)
            brute: set[tuple[int, ...]] = {()}
            for _ in range(order):
                brute = {(*head, r) for head in brute for r in radices}
            expected = {f for f in brute if prod(f) == length}
            assert set(factorisations(length, order)) == expected
            assert len(factorisations(length, order)) == len(expected)
    for n in transforms(1, 20000):
        assert factorable(n)
    assert not factorable(257)


@pytest.mark.parametrize("name", cases.usually(TARGETS, KINDS))
def test_every_length_has_a_plan(name: str) -> None:
    """Lengths at random, of every size, and the neighbours of powers of two."""
    rng = np.random.default_rng(3)
    lengths = {int(2**x) for x in rng.uniform(0, 20, 15)} | {4095, 4097, 32769, 65537, MAX_LENGTH - 1}
    for length in sorted(lengths):
        for mode in cases.MODES:
            found = plan(Problem(mode, length, "fp16"), name)
            assert length <= found.transform <= max(256, 2 * length)


def test_every_multiple_of_256_has_a_plan() -> None:
    """Each may be a transform of its own, or a product of radices that no rule allows together."""
    for length in range(256, 20000, 256):
        for mode in cases.MODES:
            plan(Problem(mode, length, "fp16"), "sm_86")


# Text, digest, reproducibility


@of_every_target
def test_json_brings_the_same_plan_back(name: str) -> None:
    for found in plans_of(name):
        again = Plan.from_json(found.to_json())
        assert again == found
        assert hash(again) == hash(found)
        assert again.digest == found.digest
        assert again.to_json() == found.to_json()


def test_the_digest_is_that_of_the_canonical_json() -> None:
    for found in portfolio():
        text = found.to_json()
        assert found.digest == hashlib.sha256(text.encode()).hexdigest()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        assert found.digest[:8] in found.name


def altered(value: Any) -> Iterator[Any]:
    """Other values of the same kind: of records one for every field."""
    if isinstance(value, str):
        yield value + "x"
    elif isinstance(value, int | float):
        yield value + 1
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from (with_field(value, field.name, x) for x in altered(getattr(value, field.name)))
    elif isinstance(value, tuple):
        yield (value[0] + 1, *value[1:]) if value and isinstance(value[0], int) else value[:-1] or (1,)
        for at, record in enumerate(value):
            if dataclasses.is_dataclass(record):
                yield from ((*value[:at], x, *value[at + 1 :]) for x in altered(record))
    else:
        raise AssertionError(f"no other value for {value!r}")


def with_field(record: Any, name: str, value: Any) -> Any:
    """A copy with one field changed, unchecked: a digest must tell even plans apart that are not valid."""
    copy = object.__new__(type(record))
    copy.__dict__.update({f.name: getattr(record, f.name) for f in dataclasses.fields(record)})
    copy.__dict__[name] = value
    return copy


def test_the_digest_changes_with_every_field() -> None:
    found = plan(Problem("causal", 131072, "bf16"), "sm_90")
    others = list(altered(found))
    fields = [
        len(dataclasses.fields(x)) for x in (found, *found.stages, *found.kernels, *found.filter.kernels)
    ]
    assert len(others) > sum(fields)
    assert len({found.digest, *(other.digest for other in others)}) == len(others) + 1


@pytest.mark.parametrize("targets", [KINDS[1:], *cases.slow([(tuple(TARGETS),)])], ids=len)
def test_plans_of_different_questions_have_different_names(targets: tuple[str, ...]) -> None:
    names = {f.name for name in targets for f in plans_of(name)}
    questions = sum(len(plans_of(name)) for name in targets)
    assert len(names) == questions


def test_names_and_text_say_what_a_plan_is() -> None:
    found = plan(Problem("circular", 100000, "bf16"), "sm_90")
    assert found.name == f"fftgen_conv_n100000_circular_bf16_mma_sm90_{found.digest[:8]}"
    assert f"circular 100000 bf16 sm_90 | N={found.transform}=" in str(found)
    assert "right-angle fold 100000 device mma" in str(found)
    assert len(str(found).splitlines()) == 1


def test_planning_twice_gives_the_same_plan() -> None:
    for row in PORTFOLIO:
        first = plan(Problem(*row[:3]), row[3])
        searching._plan.cache_clear()
        second = plan(Problem(*row[:3]), row[3])
        assert first is not second
        assert first.to_json() == second.to_json()


def test_digests_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib\n"
        "from fftgen.planner import tables\n"
        "from fftgen.planner.search import plan\n"
        "from fftgen.problem import Problem\n"
        f"for mode, length, dtype, target in {PORTFOLIO!r}:\n"
        "    found = plan(Problem(mode, length, dtype), target)\n"
        "    print(found.digest, hashlib.sha256(tables.build(found)).hexdigest())\n"
    )
    seen = set()
    for seed in ("0", "1", "4242"):
        seen.add(run_python(script, PYTHONHASHSEED=seed))
    assert len(seen) == 1
    here = [f"{f.digest} {hashlib.sha256(tables.build(f)).hexdigest()}" for f in portfolio()]
    assert seen.pop().split("\n")[:-1] == here


def run_python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_planner_loads_neither_torch_nor_cuda_nor_jinja() -> None:
    """The package's own __init__ is left out: what it offers to users is not the planner's business."""
    script = (
        "import sys, types, pathlib, importlib\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "package = types.ModuleType('fftgen'); package.__path__ = [str(root / 'fftgen')]\n"
        "sys.modules['fftgen'] = package\n"
        "for path in sorted((root / 'fftgen' / 'planner').glob('*.py')):\n"
        "    importlib.import_module('fftgen.planner.' + path.stem)\n"
        "from fftgen.planner.interpret import convolve\n"
        "from fftgen.planner.search import plan\n"
        "from fftgen.problem import Problem\n"
        "convolve(plan(Problem('causal', 100, 'bf16'), 'sm_90'), [[[1.0]]], [[2.0]])\n"
        "print(sorted({'torch', 'cuda', 'jinja2', 'scipy', 'click'} & set(sys.modules)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('fftgen.') and 'planner' not in m))\n"
    )
    foreign, own = run_python(script).splitlines()
    assert foreign == "[]"
    assert own == "['fftgen.dtypes', 'fftgen.errors', 'fftgen.problem', 'fftgen.targets']"


def test_text_that_is_no_plan_is_refused() -> None:
    good = portfolio()[0].to_json()
    for text in ("", "{}", "[]", "null", good[:-5], good.replace('"transform"', '"transfrom"')):
        with pytest.raises(ArtifactError, match="rebuild"):
            Plan.from_json(text)
    with pytest.raises(ArtifactError, match="schema 99"):
        Plan.from_json(good.replace(f'"schema":{SCHEMA}', '"schema":99'))


def test_stages_that_do_not_multiply_out_are_refused() -> None:
    found = portfolio()[0]
    with pytest.raises(InternalError, match="does not belong"):
        dataclasses.replace(found, transform=2 * found.transform)
    with pytest.raises(InternalError, match="does not belong"):
        dataclasses.replace(found, stages=found.stages[::-1] if found.stages[0] != found.stages[-1] else ())


# Cost


def counted_tensor_ops(found: Plan) -> int:
    """Every 16x16x16 product of one transform, enumerated: stage, direction, part, tile, depth."""
    total = 0
    # Real numbers in two halves of whole tiles; in a warp not beside 64 columns.
    even_first = found.engine == "mma" and found.packing == "right-angle" and found.factors[0] % 32 == 0
    even_first &= found.order > 2 or found.factors[1] < 64
    for inverse in (False, True):
        for number, stage in enumerate(found.stages):
            first = number == 0
            if found.packing == "right-angle" and first and not inverse:
                products = [("re", "real"), ("im", "real")]  # real samples come in
            elif found.packing == "right-angle" and first and inverse:
                products = [("re", "re"), ("im", "im")]  # only the real part goes out
            else:
                products = [("re", "re"), ("im", "im"), ("re", "im"), ("im", "re")]
            columns = found.transform // stage.radix
            depth = range(0, stage.radix, 16)
            one_half = range(0, stage.radix // 2, 16)
            # Not of a warp by itself: its results have both halves of the last stage in one tile.
            together = found.block_stage
            for _ in products:
                for _column in range(0, columns, 16):
                    if even_first and first and not inverse:  # even numbers once for two tiles of frequencies
                        total += sum(3 * len(one_half) for _row in one_half)
                    elif stage.halves and not inverse:  # even frequencies of sums, odd ones of differences
                        total += sum(len(one_half) for _row in depth)
                    elif stage.halves and together:  # even frequencies once for two tiles of numbers
                        total += sum(3 * len(one_half) for _row in one_half)
                    else:
                        total += sum(len(depth) for _row in depth)
    return total


@pytest.mark.parametrize("length", [1, 256, 1000, 1009, 4096, 20000, 32768, 100000])
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("name", ["sm_75", "sm_90"])
def test_tensor_ops_in_closed_form_are_those_counted(name: str, mode: str, length: int) -> None:
    for found in engines(Problem(mode, length, "fp16"), name):
        assert cost.tensor_ops(found) == counted_tensor_ops(found)
        assert cost.cost(found, target(name)).tensor_ops == counted_tensor_ops(found)


@of_every_target
def test_workspace_bytes_are_those_of_the_kernels(name: str) -> None:
    """Kernel by kernel, 4 bytes per complex number."""
    for found in plans_of(name):
        whole = 4 * found.transform
        total = 0
        for kernel in found.kernels:
            if kernel.role == "columns":
                total += whole if kernel.stage == 1 else 2 * whole
            elif kernel.role == "rows":
                total += 2 * whole
            elif kernel.role == "columns_inverse":
                total += 2 * whole if kernel.stage > 1 else whole
        assert cost.workspace_bytes(found) == total, str(found)


def test_flops_are_those_of_the_design() -> None:
    """Design 2.1: 640 per real element for 16*16*16 right-angle, 384 for a batch pair."""
    flops = 2 * 16**3
    for engine in ("mma", "wmma"):
        causal = with_shape(Problem("causal", 4096, "fp16"), "sm_90", (16, 16, 16), 0, engine)
        assert flops * cost.tensor_ops(causal) / 4096 == 640
        pair = with_shape(Problem("circular", 4096, "fp16"), "sm_90", (16, 16, 16), 0, engine)
        assert flops * cost.tensor_ops(pair) / (2 * 4096) == 384


@of_every_target
def test_costs_are_finite_and_name_their_bound(name: str) -> None:
    for found in plans_of(name):
        price = cost.cost(found, target(name))
        assert all(0 < s < 1 for s in price.seconds.values()), str(found)
        assert price.time == sum(max(k.seconds.values()) for k in price.kernels)
        assert all(k.seconds[k.bound] == k.time for k in price.kernels)
        assert price.seconds[price.bound] > 0
        assert (price.workspace_bytes > 0) == (found.memory_class == "device")
        # Each real element is read once and written once, in 16 bits.
        assert price.device_bytes == 2 * 2 * found.problem.length * found.rows_per_item


# Refusals


def test_bf16_before_sm_80_has_no_plan_and_says_why() -> None:
    with pytest.raises(NoPlanError, match=r"sm_75 has no bf16 matrix instruction.*sm_80.*use fp16") as raised:
        plan(Problem("causal", 4096, "bf16"), "sm_75")
    assert raised.value.reasons
    assert all("bf16" in reason for reason in raised.value.reasons)
    assert raised.value.reasons[0] in str(raised.value)


@pytest.mark.parametrize(
    ("factors", "device", "message"),
    [
        ((16, 256), 0, "radix|tile"),
        ((112, 16), 0, "112.*exceeds 96"),
        ((80, 64), 0, "80x64.*4096"),
        ((16, 16, 16, 16), 0, "4 stages inside one kernel"),
        ((16, 16), 1, "1 stages inside one kernel"),
        ((128, 64, 64), 0, "shared memory"),
    ],
)
def test_shapes_that_break_a_rule_are_refused_with_it(
    factors: tuple[int, ...], device: int, message: str
) -> None:
    with pytest.raises(NoPlanError, match=message):
        with_shape(Problem("causal", prod(factors), "fp16"), "sm_90", factors, device)


@pytest.mark.parametrize(
    ("mode", "factors", "device", "name", "message"),
    [
        ("causal", (16, 16), 0, "sm_75", r"sm_75 lacks mma\.m16n8k16"),
        ("causal", (16, 16, 16, 16), 2, "sm_90", "one device stage"),
        ("causal", (128, 128, 16, 16), 1, "sm_90", "strips|registers|numbers|shared memory"),
        ("causal", (16, 16, 16, 16), 0, "sm_90", "4 stages inside one kernel"),
        ("causal", (16, 48), 0, "sm_90", "48 columns of the last stage"),
        ("causal", (80, 32), 0, "sm_90", "80x32 exceeds the 2048 points"),
        ("causal", (128, 64, 16), 0, "sm_90", "shared memory|registers|strips|numbers"),
    ],
)
def test_shapes_that_break_a_rule_of_the_register_chain_are_refused_with_it(
    mode: str, factors: tuple[int, ...], device: int, name: str, message: str
) -> None:
    with pytest.raises(NoPlanError, match=message):
        with_shape(Problem(mode, prod(factors), "fp16"), name, factors, device, engine="mma")


@pytest.mark.parametrize(("mode", "length"), [("causal", 4096), ("circular", 4096), ("circular", 1000)])
def test_transforms_that_do_not_serve_the_problem_are_refused(mode: str, length: int) -> None:
    with pytest.raises(NoPlanError, match=f"256 does not serve {mode} length {length}"):
        with_shape(Problem(mode, length, "fp16"), "sm_90", (16, 16), 0)
    assert all(c.plan is None for c in search(Problem(mode, length, "fp16"), target("sm_90"), transform=512))
    longer = search(Problem(mode, length, "fp16"), target("sm_90"), transform=8192)[0].plan
    assert longer is not None
    assert (longer.packing, longer.fold) == ("right-angle", 0 if mode == "causal" else length)


@pytest.mark.parametrize("length", [0, -1, -4096])
def test_lengths_below_one_are_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"seqlen must be at least 1, got {length}"):
        Problem("causal", length, "bf16")


@pytest.mark.parametrize("length", [MAX_LENGTH + 1, 6_000_000, 2**40])
def test_lengths_beyond_the_largest_are_refused_with_a_way_out(length: int) -> None:
    with pytest.raises(InputError, match=rf"{length} exceeds .*{MAX_LENGTH}.*split the sequence"):
        Problem("circular", length, "bf16")


@pytest.mark.parametrize("length", [True, False, 4096.0, "4096", None, np.float64(4096)])
def test_lengths_that_are_no_int_are_refused(length: Any) -> None:
    with pytest.raises(InputError, match=r"must be an int, got .*\("):
        Problem("causal", length, "bf16")


@pytest.mark.parametrize("name", ["fp64", "float64", "", "BF16", None])
def test_unknown_dtypes_are_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(InputError, match=r"dtype .* is not supported: choose.*fp16.*bf16|dtype .*bf16.*fp16"):
        Problem("causal", 4096, name)
    with pytest.raises(InputError, match=r"choose bf16 .*fp16 .* or fp32"):
        dtype(name)


@pytest.mark.parametrize("mode", ["linear", "", "CAUSAL", None])
def test_unknown_modes_are_refused_with_the_choices(mode: Any) -> None:
    with pytest.raises(InputError, match=r"mode .* is not supported: choose from circular, causal"):
        Problem(mode, 4096, "bf16")


@pytest.mark.parametrize("name", ["sm_70", "sm_91", "", "hopper", "90a", None, 9])
def test_unknown_targets_are_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(InputError, match=r"target .* is not supported: choose from sm_75, sm_80"):
        plan(Problem("causal", 4096, "fp16"), name)


def test_targets_go_by_several_names() -> None:
    assert target("sm_90") is target("90") is target("9.0") is target(target("sm_90"))
    assert target("12.0").name == "sm_120"


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "compute_80"),  # Jetson Orin, whose machine code is its own
        ((8, 8), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
        ((11, 0), "compute_80"),
        ((13, 0), "compute_80"),
    ],
)
def test_devices_get_the_row_that_suits_them(capability: tuple[int, int], name: str) -> None:
    assert target_for(capability).name == name


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (3, 5)])
def test_devices_without_tensor_cores_for_it_are_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"{capability[0]}\.{capability[1]} is too old.*CPU tensors"):
        target_for(capability)


def test_the_virtual_target_fits_every_chip_it_may_run_on() -> None:
    last = TARGETS["compute_80"]
    for chip in REAL_TARGETS:
        if chip.capability >= last.capability:
            assert last.shared_block <= chip.shared_block
            assert last.shared_sm <= chip.shared_sm
            assert last.warps_sm <= chip.warps_sm
            assert last.blocks_sm <= chip.blocks_sm


def test_dtypes_go_by_the_names_of_torch() -> None:
    assert dtype("torch.bfloat16") is dtype("bfloat16") is dtype("bf16") is dtype(BF16) is BF16
    assert dtype("torch.float16") is dtype("half") is dtype("fp16") is FP16

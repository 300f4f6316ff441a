"""Plans are legal on their target and complete, and their tables are what they say."""

from __future__ import annotations

import dataclasses
from itertools import combinations, pairwise
from math import prod

import numpy as np
import pytest
from plans import engines, of_every_target, on_engine, plans_of, portfolio

from fftgen.dtypes import decode, dtype
from fftgen.planner import tables
from fftgen.planner.filter_design import design
from fftgen.planner.plan import Kernel, Plan
from fftgen.planner.rules import STAGING_BYTES
from fftgen.planner.search import plan
from fftgen.problem import Problem
from fftgen.targets import TARGETS, target

# Tables of the register chain that a block copies to shared memory.
COPIED = {"first", "twiddle", "last", "columns"} | {
    f"{name}_inverse" for name in ("first", "twiddle", "last", "columns")
}


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
        alone = found.inner[0].butterflies > 1  # one for each tile
        held += 2 * tiles * (1 if alone else tiles if tiles % 2 else tiles // 2) * 2
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

"""Counters against numbers worked out by hand: sectors, wavefronts, bytes, barriers, matrix operations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from simulator_counts import barriers, device, distinct, instructions, shared, tensor
from simulator_kit import launch, out, ptx, ro

Array = np.ndarray[Any, Any]
LANE = np.arange(32)


def directions(names: str, cases: list[Any]) -> Any:
    """Every case for loads; for stores those in which no two lanes meet (that would be a race)."""
    both = [("load", *case) for case in cases]
    both += [("store", *case) for case in cases if len(set(case[2].tolist())) == 32]
    return pytest.mark.parametrize(("what", *names.split()), both, ids=[f"{b[0]} {b[1]}" for b in both])


def offsets_kernel(access: str, first: str = "") -> str:
    """Lane i takes a byte offset of the table ``o``: ``{at}`` is the device address, ``{sm}`` shared"""
    return f"""
      mul.wide.u32 %d0, %lane, 4;  add.u64 %d1, %o, %d0;  ld.global.u32 %r9, [%d1];
      cvt.s64.s32 %d2, %r9;  add.u64 %d3, %x, %d2;
      mov.u32 %r1, 1;  mov.u32 %r2, 2;  mov.u32 %r3, 3;  mov.u32 %r4, 4;  mov.b64 %d5, 0;  mov.b64 %d6, 0;
      setp.lt.u32 %p1, %lane, 5;
      {"add.u32 %r8, %sm, %r9;" if "{sm}" in access or "%r8" in first else ""}
      {first}
      {access.format(at="[%d3]", sm="[%r8]")}"""


ACCESS = {
    1: ("u8", "%r1"),
    2: ("u16", "%r1"),
    4: ("u32", "%r1"),
    8: ("u64", "%d5"),
    16: ("v4.u32", "{{%r1, %r2, %r3, %r4}}"),
}
SECTORS = [
    ("coalesced", 4, 4 * LANE, 4, 4),
    ("reversed", 4, 4 * (31 - LANE), 4, 4),
    ("shuffled within the line", 4, 4 * (LANE * 13 % 32), 4, 4),
    ("stride of two words", 4, 8 * LANE, 8, 4),
    ("stride of three words", 4, 12 * LANE, 12, 4),
    ("stride of eight words", 4, 32 * LANE, 32, 4),
    ("stride of 17 words", 4, 68 * LANE, 32, 4),
    ("one word further on", 4, 4 * LANE + 4, 5, 4),
    ("broadcast", 4, 0 * LANE + 64, 1, 1),
    ("two words", 4, 2048 * (LANE % 2), 2, 1),
    ("bytes", 1, LANE, 1, 1),
    ("bytes across a sector's edge", 1, LANE + 16, 2, 1),
    ("halves", 2, 2 * LANE, 2, 2),
    ("doublewords", 8, 8 * LANE, 8, 8),
    ("vectors", 16, 16 * LANE, 16, 16),
    ("vectors a sector apart", 16, 32 * LANE, 32, 16),
]


@pytest.mark.parametrize("what", ["load", "store"])
@pytest.mark.parametrize(
    ("name", "size", "offsets", "sectors", "least"), SECTORS, ids=[s[0] for s in SECTORS]
)
def test_sectors_per_request(
    what: str, name: str, size: int, offsets: Array, sectors: int, least: int
) -> None:
    kind, registers = ACCESS[size]
    load = (
        f"ld.global.{kind} {registers}, {{at}};"
        if what == "load"
        else f"st.global.{kind} {{at}}, {registers};"
    )
    x = np.zeros(4096, np.uint8)
    report = launch(ptx(offsets_kernel(load), "x o"), {"x": x, "o": ro(offsets.astype(np.int32))}).report
    found = device(report, "x", what)
    assert found == (32 * size, sectors, least)
    assert device(report, "o", "load") == (128, 4, 4)


def test_lanes_switched_off_cost_nothing() -> None:
    text = ptx(offsets_kernel("@%p1 ld.global.u32 %r1, {at};"), "x o")
    report = launch(text, {"x": np.zeros(1024, np.uint32), "o": ro((32 * LANE).astype(np.int32))}).report
    assert device(report, "x", "load") == (20, 5, 1)


WAVEFRONTS = [
    ("one word each", 4, 4 * LANE, 1),
    ("stride of two words", 4, 8 * LANE, 2),
    ("stride of four words", 4, 16 * LANE, 4),
    ("stride of 32 words", 4, 128 * LANE, 32),
    ("stride of 33 words", 4, 132 * LANE, 1),
    ("stride of three words", 4, 12 * LANE, 1),
    ("broadcast", 4, 0 * LANE, 1),
    ("two words of one bank", 4, 128 * (LANE % 2), 2),
    ("halves of a word", 2, 2 * LANE, 1),
    ("bytes", 1, LANE, 1),
    ("doublewords in a row", 8, 8 * LANE, 2),
    ("every other doubleword", 8, 16 * LANE, 4),
    ("doublewords of one bank pair", 8, 128 * LANE, 32),
    ("vectors in a row", 16, 16 * LANE, 4),
    ("every other vector", 16, 32 * LANE, 8),
    ("vectors in one column", 16, 128 * LANE, 32),
    ("vectors in rows of 144 bytes", 16, 144 * LANE, 4),
    ("vectors in rows of 528 bytes", 16, 528 * (LANE % 8) + 16 * (LANE // 8), 4),
]
LEAST = {1: 1, 2: 1, 4: 1, 8: 2, 16: 4}


@directions("name size offsets passes", WAVEFRONTS)
def test_bank_conflicts(what: str, name: str, size: int, offsets: Array, passes: int) -> None:
    kind, registers = ACCESS[size]
    store = f"st.shared.{kind} {{sm}}, {registers};"
    load = f"ld.shared.{kind} {registers}, {{sm}};"
    first = store.format(sm="[%r8]") if what == "load" else ""
    if name in ("broadcast", "two words of one bank"):
        first = "setp.lt.u32 %p2, %lane, 2;  @%p2 " + first + "  bar.warp.sync -1;"
        reference = launch(
            ptx(offsets_kernel("", first), "x o", shared=4608),
            {"x": np.zeros(8), "o": ro(offsets.astype(np.int32))},
        )
        assert shared(reference.report, "load") == (0, 0)
    text = ptx(offsets_kernel(load if what == "load" else store, first), "x o", shared=4608)
    report = launch(text, {"x": np.zeros(8), "o": ro(offsets.astype(np.int32))}).report
    assert shared(report, what) == (passes, LEAST[size])


@pytest.mark.parametrize(("size", "cost"), [(4, (1, 1)), (8, (1, 1)), (16, (1, 1))])
def test_bank_cost_of_five_lanes(size: int, cost: tuple[int, int]) -> None:
    """Five lanes in a row: of 80 bytes at most, one wavefront whatever the width."""
    kind, registers = ACCESS[size]
    text = ptx(offsets_kernel(f"@%p1 st.shared.{kind} {{sm}}, {registers};"), "x o", shared=512)
    report = launch(text, {"x": np.zeros(8), "o": ro((size * LANE).astype(np.int32))}).report
    assert shared(report, "store") == cost


MATRICES = [
    ("dense", 1, 16 * LANE, 1),
    ("dense", 2, 16 * LANE, 2),
    ("dense", 4, 16 * LANE, 4),
    ("rows of 128 bytes", 1, 128 * LANE, 8),
    ("rows of 128 bytes", 4, 128 * LANE, 32),
    ("rows of 32 bytes", 1, 32 * LANE, 2),
    ("rows of 144 bytes", 4, 144 * LANE, 4),
    ("rows of 528 bytes", 4, 528 * (LANE % 8) + 16 * (LANE // 8), 4),
    ("one row eight times", 1, 0 * LANE, 1),
]


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize(
    ("name", "count", "offsets", "passes"), MATRICES, ids=[f"{m[0]} x{m[1]}" for m in MATRICES]
)
def test_matrix_load_phases(trans: str, name: str, count: int, offsets: Array, passes: int) -> None:
    """Eight rows of 16 bytes are one phase: 128 bytes, a wavefront where no two of them meet in a bank."""
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    fill = """
      mov.u32 %r7, %lane;
    FILL:
      shl.b32 %r6, %r7, 4;  add.u32 %r6, %r6, %sm;  st.shared.v4.u32 [%r6], {%r1, %r2, %r3, %r4};
      add.u32 %r7, %r7, 32;  setp.lt.u32 %p2, %r7, 288;  @%p2 bra FILL;
      bar.warp.sync -1;"""
    access = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{{{registers}}}}}, {{sm}};"
    text = ptx(offsets_kernel(access, fill), "x o", shared=288 * 16)
    report = launch(text, {"x": np.zeros(8), "o": ro(offsets.astype(np.int32))}).report
    assert shared(report, "load") == (passes, count if name != "one row eight times" else 1)
    assert shared(report, "store") == (36, 36)


def test_bytes_of_every_buffer_and_how_many_are_distinct(rng: np.random.Generator) -> None:
    """Two blocks read the same 128 bytes of x twice, half of z once, and write y once."""
    body = """
      mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  mad.lo.u32 %r9, %bx, 32, %tx;
      mul.wide.u32 %d2, %r9, 4;
      add.u64 %d3, %y, %d2;  add.u64 %d4, %z, %d2;
      ld.global.u32 %r0, [%d1];  ld.global.u32 %r1, [%d1];  add.u32 %r0, %r0, %r1;
      setp.lt.u32 %p1, %lane, 16;  @%p1 ld.global.u32 %r1, [%d4];
      st.global.u32 [%d3], %r0;"""
    args = {"x": ro(rng.integers(0, 99, 32).astype(np.uint32)), "y": out(64), "z": np.zeros(64, np.uint32)}
    report = launch(ptx(body, "x y z"), args, grid=2).report
    assert device(report, "x", "load") == (512, 16, 16)
    assert device(report, "y", "store") == (256, 8, 8)
    assert device(report, "z", "load") == (128, 4, 4)
    assert device(report, "x", "store") == (0, 0, 0)
    assert distinct(report, "x", "load") == 128
    assert distinct(report, "y", "store") == 256
    assert distinct(report, "z", "load") == 128


def test_asynchronous_copies_count_as_loads_and_as_shared_stores() -> None:
    body = """
      mul.wide.u32 %d0, %tx, 16;  add.u64 %d1, %x, %d0;  shl.b32 %r0, %tx, 4;  add.u32 %r0, %r0, %sm;
      mov.u32 %r1, 16;  setp.eq.u32 %p1, %tx, 3;  selp.u32 %r1, 4, %r1, %p1;
      cp.async.cg.shared.global [%r0], [%d1], 16, %r1;  cp.async.wait_all;"""
    report = launch(ptx(body, "x", shared=512), {"x": ro(np.zeros(512, np.uint8))}).report
    assert device(report, "x", "load")[:2] == (500, 16)
    assert distinct(report, "x", "load") == 500
    assert shared(report, "store") == (4, 4)


@pytest.mark.parametrize("stride", [16, 24, 64])
def test_wmma_traffic(stride: int) -> None:
    """A 16 by 16 tile of halves is 16 rows of 32 bytes: the sectors follow from where the rows begin."""
    x = np.zeros(16 * stride, np.float16)
    body = f"""
      wmma.load.a.sync.aligned.row.m16n16k16.global.f16
        {{%r10, %r11, %r12, %r13, %r14, %r15, %r16, %r17}}, [%x], {stride};
      mov.f32 %f0, 0f00000000;
      wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%y],
        {{%f0, %f0, %f0, %f0, %f0, %f0, %f0, %f0}}, 16;"""
    report = launch(ptx(body, "x y"), {"x": ro(x), "y": out(256, np.float32)}).report
    rows = 2 * stride * np.arange(16)[:, None] + np.arange(32)
    assert device(report, "x", "load") == (512, len(np.unique(rows // 32)), 16)
    assert distinct(report, "x", "load") == 512
    assert device(report, "y", "store") == (1024, 32, 32)


def test_matrix_operations_by_shape_and_type() -> None:
    """Three warps, two blocks, four rounds of one mma and two wmma, then one of another shape."""
    body = """
      mov.u32 %r8, 0;  mov.f32 %f0, 0f00000000;  mov.u32 %r0, 0;
    NEXT:
      mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4},
        {%r8, %r8, %r8, %r8}, {%r8, %r8}, {%f0, %f0, %f0, %f0};
      wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f10, %f11, %f12, %f13, %f14, %f15, %f16, %f17},
        {%r8, %r8, %r8, %r8, %r8, %r8, %r8, %r8}, {%r8, %r8, %r8, %r8, %r8, %r8, %r8, %r8},
        {%f0, %f0, %f0, %f0, %f0, %f0, %f0, %f0};
      wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f10, %f11, %f12, %f13, %f14, %f15, %f16, %f17},
        {%r8, %r8, %r8, %r8, %r8, %r8, %r8, %r8}, {%r8, %r8, %r8, %r8, %r8, %r8, %r8, %r8},
        {%f10, %f11, %f12, %f13, %f14, %f15, %f16, %f17};
      add.u32 %r0, %r0, 1;  setp.lt.u32 %p1, %r0, 4;  @%p1 bra NEXT;
      mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r10, %r11}, {%r8, %r8}, {%r8}, {%r8, %r8};"""
    report = launch(ptx(body), {}, block=96, grid=2).report
    found = tensor(report)
    assert sorted(found.values()) == [6, 24, 48]
    by_count = {count: name for name, count in found.items()}
    assert by_count[24].startswith("mma.m16n8k16")
    assert "bf16" in by_count[24]
    assert by_count[48].startswith("wmma.m16n16k16")
    assert by_count[6].startswith("mma.m16n8k8")
    assert "f16" in by_count[6]
    assert "bf16" not in by_count[6]


def test_barriers() -> None:
    """Two blocks of four warps at three barriers in a loop, and one more for the first two warps."""
    body = """
      mov.u32 %r0, 0;
    NEXT:
      bar.sync 0;  add.u32 %r0, %r0, 1;  setp.lt.u32 %p1, %r0, 3;  @%p1 bra NEXT;
      setp.lt.u32 %p2, %warp, 2;  @%p2 bar.sync 1, 64;"""
    report = launch(ptx(body), {}, block=128, grid=2).report
    assert barriers(report) == 2 * (3 + 1)


def test_instructions_are_counted_per_warp_and_by_class() -> None:
    """64 threads are two warps: every count is twice that of one, and a loop counts every round."""

    def total(rounds: int, block: int) -> int:
        body = f"""
          mov.u32 %r0, 0;
        NEXT:
          mul.lo.u32 %r1, %r0, 3;  add.u32 %r0, %r0, 1;  setp.lt.u32 %p1, %r0, {rounds};  @%p1 bra NEXT;"""
        return sum(instructions(launch(ptx(body), {}, block=block).report).values())

    one = total(1, 32)
    assert total(1, 64) == 2 * one
    assert total(5, 32) == one + 4 * 4
    assert total(5, 33) == 2 * total(5, 32)


def test_divergent_paths_count_one_after_the_other() -> None:
    """A warp split in two issues both sides of the branch; a warp that goes one way issues one."""
    body = """
      setp.lt.u32 %p1, %lane, {n};  @%p1 bra LEFT;
      mul.lo.u32 %r1, %tx, 3;  mul.lo.u32 %r1, %tx, 5;
      bra DONE;
    LEFT:
      mul.lo.u32 %r1, %tx, 7;
    DONE:"""
    split, left, right = (
        sum(instructions(launch(ptx(body.format(n=n)), {}).report).values()) for n in (7, 32, 0)
    )
    assert right - left == 2
    assert split - right == 1


def small_report() -> Any:
    body = """
      mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      ld.global.u32 %r0, [%d1];  st.shared.u32 [%sm], 0;  bar.sync 0;  st.global.u32 [%d2], %r0;"""
    body = body.replace(
        "st.shared.u32 [%sm], 0;", "shl.b32 %r1, %tx, 3;  add.u32 %r1, %r1, %sm;  st.shared.u32 [%r1], %r0;"
    )
    return launch(ptx(body, "x y", shared=256), {"x": ro(np.zeros(32, np.uint32)), "y": out(32)}).report


def test_reports_add_up() -> None:
    a, b = small_report(), small_report()
    both = a + b
    assert device(both, "x", "load") == (256, 8, 8)
    assert shared(both, "store") == (4, 2)
    assert barriers(both) == 2
    assert sum(instructions(both).values()) == 2 * sum(instructions(a).values())
    assert device(a, "x", "load") == (128, 4, 4), "adding must not change the parts"


def test_report_is_readable_and_goes_through_json() -> None:
    report = small_report()
    text = str(report)
    assert "x" in text
    assert "y" in text
    again = report.to_json()
    data = json.loads(again) if isinstance(again, str) else json.loads(json.dumps(again))
    assert "128" in json.dumps(data)

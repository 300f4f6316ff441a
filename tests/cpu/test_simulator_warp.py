"""Warp-level exchange: shfl at segment edges, vote, match, redux, activemask, by the PTX ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_kit import check, lanes, launch, out, ptx, ro

Array = np.ndarray[Any, Any]
LANES = np.arange(32)


def shuffle(mode: str, values: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """PTX ISA, shfl.sync: the lane each thread reads from, and whether that lane is in range."""
    offset, clamp, segment = b & 31, c & 31, c >> 8 & 31
    inverse = ~segment & 31
    top = LANES & segment | clamp & inverse
    source = {
        "up": LANES - offset,
        "down": LANES + offset,
        "bfly": LANES ^ offset,
        "idx": LANES & segment | offset & inverse,
    }[mode]
    valid = source >= top if mode == "up" else source <= top
    return values[np.where(valid, source, LANES)], valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
def test_shuffle_at_segment_edges(mode: str, width: int, rng: np.random.Generator) -> None:
    """The packed operand that CUDA builds for __shfl_*(width): segment mask above, clamp below."""
    values = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    c = (32 - width) << 8 | (0 if mode == "up" else 0x1F)
    for offset in {0, 1, width // 2, width - 1, width, 31, 33, 64 + 3}:
        code = f"shfl.sync.{mode}.b32 %d|%p1, %a, {offset}, {c}, 0xffffffff;\n selp.u32 %v, 1, 0, %p1;"
        got = lanes(code, {"a": values}, {"d": np.uint32, "v": np.uint32})
        want, valid = shuffle(mode, values, np.full(32, offset), np.full(32, c))
        check(got["d"], want, f"shfl.{mode} width {width} offset {offset}", lane=LANES)
        check(got["v"], valid, f"shfl.{mode} width {width} offset {offset}, predicate", lane=LANES)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffle_with_operands_that_differ_by_lane(mode: str, rng: np.random.Generator) -> None:
    values = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    for segment in (0, 0x1C, 0x10, 0x1F):
        b = rng.integers(0, 64, 32).astype(np.uint32)
        c = (segment << 8 | rng.integers(0, 32, 32)).astype(np.uint32)
        code = f"shfl.sync.{mode}.b32 %d|%p1, %a, %b, %c, -1;\n selp.u32 %v, 1, 0, %p1;"
        got = lanes(code, {"a": values, "b": b, "c": c}, {"d": np.uint32, "v": np.uint32})
        want, valid = shuffle(mode, values, b.astype(int), c.astype(int))
        check(got["d"], want, f"shfl.{mode} segments {segment:#x}", lane=LANES, b=b, c=c)
        check(got["v"], valid, f"shfl.{mode} segments {segment:#x}, predicate", lane=LANES, b=b, c=c)


def test_shuffle_among_the_named_half_only(rng: np.random.Generator) -> None:
    """Two halves of a warp on two sides of a branch, each with the mask of its own."""
    body = """
      mul.wide.u32 %d0, %tx, 4;  add.u64 %x, %x, %d0;  add.u64 %y, %y, %d0;
      ld.global.u32 %r1, [%x];
      setp.lt.u32 %p1, %lane, 16;
      @!%p1 bra UPPER;
      shfl.sync.bfly.b32 %r2, %r1, 3, 31, 0x0000ffff;
      bra DONE;
    UPPER:
      shfl.sync.down.b32 %r2, %r1, 1, 31, 0xffff0000;
    DONE:
      st.global.u32 [%y], %r2;"""
    values = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    got = launch(ptx(body, "x y"), {"x": ro(values), "y": out(32)})["y"]
    source = np.where(LANES < 16, LANES ^ 3, np.minimum(LANES + 1, 31))
    check(got, values[source], "halves", lane=LANES)


def test_teams_of_lanes_at_one_instruction(rng: np.random.Generator) -> None:
    """Every eight lanes name each other only: four teams meet at one instruction and do not mix."""
    a = rng.integers(0, 3, 64).astype(np.uint32)
    code = """
      mov.u32 %r0, %laneid;  and.b32 %r1, %r0, 24;  mov.u32 %r2, 0xff;  shl.b32 %r2, %r2, %r1;
      redux.sync.add.u32 %d, %a, %r2;  setp.eq.u32 %p1, %a, 1;
      vote.sync.ballot.b32 %e, %p1, %r2;  vote.sync.all.pred %p2, %p1, %r2;  selp.u32 %f, 1, 0, %p2;
      match.any.sync.b32 %g, %a, %r2;  shfl.sync.bfly.b32 %h, %a, 7, 31, %r2;  bar.warp.sync %r2;"""
    a[:8] = 1
    got = lanes(code, {"a": a}, dict.fromkeys("defgh", np.uint32))
    for team in range(8):
        mine, shift = a[8 * team : 8 * team + 8], 8 * (team % 4)
        here = {name: value[8 * team : 8 * team + 8] for name, value in got.items()}
        assert (here["d"] == mine.sum()).all()
        assert (here["e"] == sum(1 << shift + i for i in range(8) if mine[i] == 1)).all()
        assert (here["f"] == (mine == 1).all()).all()
        same = [sum(1 << shift + j for j in range(8) if mine[j] == mine[i]) for i in range(8)]
        assert here["g"].tolist() == same
        assert np.array_equal(here["h"], mine[::-1])


def test_vote_and_ballot(rng: np.random.Generator) -> None:
    for trial in range(4):
        a = [np.zeros(64), np.ones(64), rng.integers(0, 2, 64), np.r_[np.ones(32), rng.integers(0, 2, 32)]][
            trial
        ].astype(np.uint32)
        code = """
          setp.ne.u32 %p1, %a, 0;
          vote.sync.ballot.b32 %x, %p1, -1;  vote.sync.ballot.b32 %y, !%p1, 0xffffffff;
          vote.sync.all.pred %p2, %p1, -1;  selp.u32 %u, 1, 0, %p2;
          vote.sync.any.pred %p3, %p1, -1;  selp.u32 %v, 1, 0, %p3;
          vote.sync.uni.pred %p4, %p1, -1;  selp.u32 %w, 1, 0, %p4;"""
        got = lanes(code, {"a": a}, dict.fromkeys("xyuvw", np.uint32))
        for warp in (slice(0, 32), slice(32, 64)):
            bits = int((a[warp].astype(np.uint64) << LANES.astype(np.uint64)).sum())
            assert (got["x"][warp] == bits).all()
            assert (got["y"][warp] == bits ^ 0xFFFFFFFF).all()
            assert (got["u"][warp] == a[warp].all()).all()
            assert (got["v"][warp] == a[warp].any()).all()
            assert (got["w"][warp] == (a[warp].all() or not a[warp].any())).all()


REDUCE = {
    ("add", "u32"): lambda v: int(v.sum(dtype=np.uint64)),
    ("add", "s32"): lambda v: int(v.view(np.int32).sum(dtype=np.int64)),
    ("min", "u32"): lambda v: int(v.min()),
    ("max", "u32"): lambda v: int(v.max()),
    ("min", "s32"): lambda v: int(v.view(np.int32).min()),
    ("max", "s32"): lambda v: int(v.view(np.int32).max()),
    ("and", "b32"): lambda v: int(np.bitwise_and.reduce(v)),
    ("or", "b32"): lambda v: int(np.bitwise_or.reduce(v)),
    ("xor", "b32"): lambda v: int(np.bitwise_xor.reduce(v)),
}


def test_redux(rng: np.random.Generator) -> None:
    a = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    for values in (
        a,
        a | np.uint32(0x80000001),
        a & np.uint32(0x7FFFFFFE),
        np.full(32, 2**32 - 1, np.uint32),
    ):
        for (op, kind), meaning in REDUCE.items():
            got = lanes(f"redux.sync.{op}.{kind} %d, %a, 0xffffffff;", {"a": values}, {"d": np.uint32})["d"]
            assert (got == meaning(values) % 2**32).all(), f"redux.{op}.{kind}"


def test_match(rng: np.random.Generator) -> None:
    a = rng.integers(0, 4, 32).astype(np.uint32)
    code = "match.any.sync.b32 %x, %a, -1;\n match.all.sync.b32 %y|%p1, %a, -1;\n selp.u32 %v, 1, 0, %p1;"
    for values in (a, np.full(32, 7, np.uint32)):
        try:
            got = lanes(code, {"a": values}, dict.fromkeys("xyv", np.uint32))
        except Exception as error:
            if type(error).__name__ != "UnknownInstruction":
                raise
            pytest.skip("the simulator declines match.sync, by name")
        want = [sum(1 << int(j) for j in LANES[values == v]) for v in values]
        check(got["x"], np.array(want, np.uint32), "match.any", a=values)
        same = (values == values[0]).all()
        assert (got["v"] == same).all()
        assert (got["y"] == (0xFFFFFFFF if same else 0)).all()


def test_activemask_lists_the_threads_that_took_the_branch() -> None:
    body = """
      mul.wide.u32 %d0, %tx, 4;  add.u64 %y, %y, %d0;
      mov.u32 %r1, 0;
      and.b32 %r2, %lane, 3;  setp.ne.u32 %p1, %r2, 1;
      @%p1 bra SKIP;
      activemask.b32 %r1;
    SKIP:
      st.global.u32 [%y], %r1;"""
    got = launch(ptx(body, "y"), {"y": out(32)})["y"]
    check(got, np.where(LANES % 4 == 1, 0x22222222, 0), "activemask", lane=LANES)


def test_special_registers() -> None:
    body = """
      mov.u32 %r1, %ntid.x;  mov.u32 %r2, %tid.y;  mad.lo.u32 %r3, %r2, %r1, %tx;
      mov.u32 %r4, %ntid.y;  mov.u32 %r5, %tid.z;  mul.lo.u32 %r6, %r1, %r4;  mad.lo.u32 %r3, %r5, %r6, %r3;
      mov.u32 %r7, %ctaid.y;  mov.u32 %r8, %nctaid.x;  mad.lo.u32 %r9, %r7, %r8, %bx;
      mov.u32 %r10, %ctaid.z;  mov.u32 %r11, %nctaid.y;  mul.lo.u32 %r12, %r8, %r11;
      mad.lo.u32 %r9, %r10, %r12, %r9;
      mov.u32 %r13, %ntid.z;  mul.lo.u32 %r14, %r6, %r13;  mad.lo.u32 %r15, %r9, %r14, %r3;
      mul.wide.u32 %d0, %r15, 16;  add.u64 %y, %y, %d0;
      mov.u32 %r16, %laneid;  mov.u32 %r17, %lanemask_lt;  mov.u32 %r18, %nctaid.z;
      st.global.v4.u32 [%y], {%r3, %r16, %r17, %r18};"""
    got = launch(ptx(body, "y"), {"y": out((2 * 3 * 2, 4 * 3 * 5, 4))}, grid=(2, 3, 2), block=(4, 3, 5))["y"]
    index = np.arange(60)
    for column, want in enumerate((index, index % 32, (1 << index % 32) - 1, np.full(60, 2))):
        for block in range(12):
            check(got[block, :, column], want, f"special register, column {column}", thread=index)

"""Planted faults of convergence: collectives in divergent branches, masks that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulator_faults import Planted, caught, passes, suite
from simulator_kit import out, ro

START = """
  mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  ld.global.u32 %r0, [%d1];
  shl.b32 %r1, %tx, 2;  add.u32 %r1, %r1, %sm;  mov.u32 %r3, %r0;
  setp.lt.u32 %p1, %lane, 16;
"""
STORE = "\nst.global.u32 [%d2], %r3;"
DIVERGED = "DivergedCollective"
LOST = "DivergedCollective|Deadlock"


def same(a: Any) -> dict[str, Any]:
    return {"y": a["x"]}


def matrix(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": ro(rng.integers(0, 2**32, 1024, np.uint64).astype(np.uint32)), "y": out(256)}


def branch(
    name: str, instruction: str, before: str = "", want: Any = None, faults: str = LOST, **more: Any
) -> Planted:
    """``instruction`` by the whole warp, or by its lower half only, on its side of a branch."""
    body = f"""{START} {before}
      @!%p1 bra SKIP; //+
      {instruction} //@
    SKIP:
      {STORE}"""
    return Planted(
        name, faults, body, want=want, thread=None if "Deadlock" in faults else (lambda t: True), **more
    )


ZERO = "mov.u32 %r8, 0;  mov.f32 %f0, 0f00000000;"
TILE = "{%f0, %f0, %f0, %f0, %f0, %f0, %f0, %f0}"
FRAGMENT = "{%r8, %r8, %r8, %r8, %r8, %r8, %r8, %r8}"
FILL = "st.shared.v4.u32 [%r9], {%r0, %r0, %r0, %r0};  bar.sync 0;"
ADDRESS = "shl.b32 %r9, %tx, 4;  add.u32 %r9, %r9, %sm;"

DIVERGENT = [
    branch("shuffle_in_a_branch", "shfl.sync.bfly.b32 %r3, %r0, 1, 31, -1;",
           want=lambda a: {"y": a["x"][np.arange(64) ^ 1]}),
    branch("vote_in_a_branch", "vote.sync.ballot.b32 %r3, %p1, -1;",
           want=lambda a: {"y": np.full(64, 0xFFFF)}),
    branch("redux_in_a_branch", "redux.sync.or.b32 %r3, %r8, 0xffffffff;", ZERO,
           want=lambda a: {"y": np.zeros(64)}),
    branch("warp_barrier_in_a_branch", "bar.warp.sync 0xffffffff;", want=same),
    branch("mma_in_a_branch",
           "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r10, %r11}, {%r8, %r8}, {%r8}, {%r8, %r8};",
           ZERO, want=same, faults=DIVERGED),
    branch("ldmatrix_in_a_branch", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r9];", ADDRESS + FILL,
           want=same, faults=DIVERGED, shared=1024),
    branch("stmatrix_in_a_branch", "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r9], {%r8};", ZERO + ADDRESS,
           want=same, faults=DIVERGED, shared=1024),
    branch("movmatrix_in_a_branch", "movmatrix.sync.aligned.m8n8.trans.b16 %r5, %r0;", want=same,
           faults=DIVERGED),
    branch("wmma_load_in_a_branch",
           "wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%r10, %r11, %r12, %r13}, [%sm];",
           ADDRESS + FILL, want=same, faults=DIVERGED, shared=1024),
    branch("wmma_mma_in_a_branch", "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 "
           f"{{%f10,%f11,%f12,%f13,%f14,%f15,%f16,%f17}}, {FRAGMENT}, {FRAGMENT}, {TILE};",
           ZERO, want=same, faults=DIVERGED),
    branch("wmma_store_in_a_branch", f"wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%r9], {TILE}, 16;",
           ZERO + "shl.b32 %r9, %warp, 10;  add.u32 %r9, %r9, %sm;", want=same, faults=DIVERGED, shared=2048),
]  # fmt: skip

OTHERS = [
    Planted("guard_switches_lanes_of_a_shuffle_off", LOST, START + """
      setp.lt.u32 %p2, %lane, 32; //-
      setp.lt.u32 %p2, %lane, 31; //+
      @%p2 shfl.sync.idx.b32 %r3, %r0, 4, 31, -1; //@
      """ + STORE, want=lambda a: {"y": np.repeat(a["x"][[4, 36]], 32)}),
    Planted("mask_without_the_caller", DIVERGED, START + """
      mov.u32 %r6, -1; //-
      mov.u32 %r6, 0x7fffffff; //+
      shfl.sync.bfly.b32 %r3, %r0, 0, 31, %r6; //@
      """ + STORE, want=same, thread=lambda t: t % 32 == 31),
    Planted("vote_mask_without_the_caller", DIVERGED, START + """
      mov.u32 %r6, -1; //-
      mov.u32 %r6, 0xfffffffe; //+
      vote.sync.any.pred %p3, %p1, %r6; //@
      """ + STORE, want=same, thread=lambda t: t % 32 == 0),
    Planted("shuffle_from_a_lane_outside_the_mask", "DivergedCollective|UninitializedRead", START + """
      mov.u32 %r6, 4; //-
      mov.u32 %r6, 20; //+
      @!%p1 bra SKIP;
      shfl.sync.idx.b32 %r3, %r0, %r6, 31, 0x0000ffff; //@
    SKIP:
      """ + STORE,
      want=lambda a: {"y": np.where(np.arange(64) % 32 < 16, np.repeat(a["x"][[4, 36]], 32), a["x"])}),
    Planted("lanes_left_before_the_mma", LOST, ("mov.u32 %r8, 0;  mov.f32 %f0, 0f00000000;") + START + """
      setp.eq.u32 %p2, %tx, 9;
      mov.u32 %r3, 1;
      st.global.u32 [%d2], %r3;
      @%p2 ret; //+
      mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r10, %r11}, {%r8, %r8}, {%r8}, {%r8, %r8}; //@
      """, want=lambda a: {"y": np.ones(64)}),
    Planted("lane_waits_at_another_warp_barrier", LOST, START + """
      setp.eq.u32 %p2, %lane, 7; //+
      @%p2 bra OTHER; //+
      bar.warp.sync -1; //@
      bra JOIN; //+
    OTHER:
      shfl.sync.idx.b32 %r5, %r0, 0, 31, -1; //@+
    JOIN:
      """ + STORE, want=same),
    Planted("masks_differ_between_lanes", LOST, START + """
      mov.u32 %r6, -1;
      selp.b32 %r6, -1, 0xffff0000, %p1; //+
      bar.warp.sync %r6; //@
      """ + STORE, want=same),
    Planted("non_uniform_wmma_address", DIVERGED, """
      mov.u64 %d5, %x;
      mul.wide.u32 %d6, %lane, 32;  add.u64 %d5, %x, %d6; //+
      wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, [%d5], 16; //@
      wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%y], {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, 16;
      """, args=matrix, block=32,
      want=lambda a: {"y": a["x"][:256]}),
    Planted("non_uniform_wmma_stride", DIVERGED, """
      mov.u32 %r9, 16;
      and.b32 %r8, %lane, 16;  add.u32 %r9, %r9, %r8; //+
      wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, [%x], %r9; //@
      wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%y], {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, 16;
      """, args=matrix, block=32,
      want=lambda a: {"y": a["x"][:256]}),
    Planted("part_of_a_warp_for_an_aligned_instruction", DIVERGED, """
      mov.u32 %r8, 0;  mov.f32 %f0, 0f00000000;  mul.wide.u32 %d0, %tx, 4;  add.u64 %d2, %y, %d0;
      st.global.u32 [%d2], %r8;
      setp.lt.u32 %p1, %warp, 1; //-
      setp.lt.u32 %p1, %warp, 2; //+
      @%p1 mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r10, %r11}, {%r8, %r8}, {%r8}, {%r8, %r8}; //@
      """, block=48, args=lambda rng: {"x": np.zeros(1), "y": out(48)}, want=lambda a: {"y": np.zeros(48)}),
]  # fmt: skip


@suite([*DIVERGENT, *OTHERS])
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)

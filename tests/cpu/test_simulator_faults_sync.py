"""Planted faults of synchronisation: races, missing waits, deadlocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulator_faults import Planted, caught, passes, suite
from simulator_kit import out, ro

START = """
  mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
  shl.b32 %r1, %tx, 2;  xor.b32 %r2, %r1, 252;  add.u32 %r1, %r1, %sm;  add.u32 %r2, %r2, %sm;
"""
MINE = "ld.global.u32 %r0, [%d1];\n"
STORE = "\nst.global.u32 [%d2], %r3;"


def reversed_x(a: Any) -> dict[str, Any]:
    return {"y": a["x"].ravel()[:64][::-1]}


def neighbours(a: Any) -> dict[str, Any]:
    return {"y": a["x"].ravel()[:64][np.arange(64) ^ 1]}


def rows(count: int) -> Any:
    return lambda rng: {"x": ro(rng.integers(1, 2**30, (count, 64)).astype(np.uint32)), "y": out(64)}


def sums(a: Any) -> dict[str, Any]:
    return {"y": a["x"].astype(np.uint64).sum(0).astype(np.uint32)[::-1]}


LOOP = """
  mov.u32 %r3, 0;  mov.u32 %r4, 0;  mov.u32 %r6, 0;
NEXT:
  ld.global.u32 %r0, [%d1];  add.u64 %d1, %d1, 256;
  add.u32 %r7, %r1, %r6;  add.u32 %r8, %r2, %r6;
  st.shared.u32 [%r7], %r0; //@
  bar.sync 0;
  ld.shared.u32 %r5, [%r8]; //@
  {again}
  add.u32 %r3, %r3, %r5;
  add.u32 %r4, %r4, 1;  setp.lt.u32 %p1, %r4, 5;  @%p1 bra NEXT;
"""

SHARED = [
    Planted("no_barrier_between_producer_and_consumer", "SharedRace", START + MINE + """
      st.shared.u32 [%r1], %r0; //@
      bar.sync 0; //-
      bar.warp.sync -1; //+
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True, buffer="shared"),
    Planted("overwritten_before_it_was_read", "SharedRace", START + LOOP.format(again="bar.sync 0; //-")
            + STORE,            args=rows(5), want=sums, race=True, buffer="shared"),
    Planted("double_buffer_that_never_turns", "SharedRace", START
            + LOOP.format(again="xor.b32 %r6, %r6, 256; //-") + STORE,
            args=rows(5), want=sums, race=True, shared=512, buffer="shared"),
    Planted("no_warp_barrier_between_lanes", "SharedRace", START + MINE + """
      st.shared.u32 [%r1], %r0; //@
      bar.warp.sync 0xffffffff; //-
      xor.b32 %r2, %r1, 4;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=neighbours, race=True),
    Planted("warp_barrier_of_the_wrong_half", "SharedRace", START + MINE + """
      setp.lt.u32 %p1, %lane, 16;
      st.shared.u32 [%r1], %r0; //@
      selp.b32 %r9, 0x0000ffff, 0xffff0000, %p1; //+
      @%p1 bar.warp.sync %r9; //+
      @!%p1 bar.warp.sync %r9; //+
      bar.warp.sync -1; //-
      xor.b32 %r2, %r1, 64;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=lambda a: {"y": a["x"][np.arange(64) ^ 16]}, race=True),
    Planted("written_in_a_branch_read_after_it", "SharedRace", START + MINE + """
      setp.ne.u32 %p1, %lane, 5;  @%p1 bra JOIN;
      st.shared.u32 [%r1], %r0; //@
    JOIN:
      bar.warp.sync -1; //-
      shl.b32 %r2, %warp, 7;  add.u32 %r2, %r2, %sm;
      ld.shared.u32 %r3, [%r2+20]; //@
      """ + STORE, want=lambda a: {"y": np.repeat(a["x"][[5, 37]], 32)}, race=True),
    Planted("barrier_of_too_few_warps", "SharedRace", START + MINE + """
      st.shared.u32 [%r1], %r0; //@
      setp.lt.u32 %p1, %warp, 2; //+
      @%p1 bar.sync 1, 64; //+
      bar.sync 1, 96; //-
      mov.u32 %r4, 0;
      ld.shared.u32 %r3, [%sm+4]; //@
      """ + STORE, block=96, shared=384,
      args=lambda rng: {"x": ro(rng.integers(1, 99, 96).astype(np.uint32)), "y": out(96)},
      want=lambda a: {"y": np.full(96, a["x"][1])}, race=True),
    Planted("arrival_announced_before_the_store", "SharedRace", START + MINE + """
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra CONSUMER;
      bar.arrive 3, 64; //+
      st.shared.u32 [%r1], %r0; //@
      bar.arrive 3, 64; //-
      mov.u32 %r3, %r0;
      bra DONE;
    CONSUMER:
      bar.sync 3, 64;
      ld.shared.u32 %r3, [%r2]; //@
    DONE:
      """ + STORE, want=lambda a: {"y": np.r_[a["x"][:32], a["x"][:32][::-1]]}, race=True),
    Planted("own_read_hides_nobody_elses", "SharedRace", START + MINE + """
      st.shared.u32 [%r1], %r0;
      bar.sync 0;
      ld.shared.u32 %r3, [%sm+16]; //@
      bar.sync 0; //-
      setp.eq.u32 %p1, %tx, 4;
      @%p1 st.shared.u32 [%sm+16], %tx; //@
      """ + STORE, want=lambda a: {"y": np.full(64, a["x"][4])}, race=True),
    Planted("second_of_two_writers", "SharedRace", START + MINE + """
      setp.eq.u32 %p1, %lane, 9;
      shl.b32 %r5, %warp, 2; //-
      mov.u32 %r5, 0; //+
      add.u32 %r5, %r5, %sm;
      @%p1 st.shared.u32 [%r5], %r0; //@
      bar.sync 0;
      ld.shared.u32 %r3, [%r5];
      """ + STORE, want=lambda a: {"y": np.repeat(a["x"][[9, 41]], 32)}, race=True),
    Planted("same_instruction_conflicting_shared_stores", "SharedRace", START + MINE + """
      mov.u32 %r5, %r1;
      and.b32 %r5, %r1, -8; //+
      st.shared.u32 [%r5], %r0; //@
      bar.warp.sync -1;
      ld.shared.u32 %r3, [%r5];
      """ + STORE, want=lambda a: {"y": a["x"]}, race=True),
    Planted("narrow_read_of_another_warps_wide_store", "SharedRace", START + MINE + """
      mul.lo.u32 %r5, %tx, 8;  add.u32 %r5, %r5, %sm;  mov.b64 %d3, {%r0, %r0};
      st.shared.u64 [%r5], %d3; //@
      add.u32 %r6, %r5, 6; //-
      add.u32 %r6, %r5, 14; //+
      setp.eq.u32 %p2, %tx, 31;
      @%p2 ld.shared.u16 %r3, [%r6]; //@
      mov.u32 %r3, %r0;
      """ + STORE, shared=512, want=lambda a: {"y": a["x"]}, race=True),
    Planted("atomic_and_plain_load_of_one_counter", "SharedRace", START + """
      setp.ne.u32 %p1, %tx, 0;
      @%p1 bra READY;
      mov.u32 %r0, 0;  st.shared.u32 [%sm], %r0;
    READY:
      bar.sync 0;
      red.shared.add.u32 [%sm], 2; //@
      bar.sync 0; //-
      ld.shared.u32 %r3, [%sm]; //@
      """ + STORE, want=lambda a: {"y": np.full(64, 128)}, race=True),
    Planted("ldmatrix_before_the_barrier", "SharedRace", START + """
      st.shared.u32 [%r1], %tx; //@
      bar.sync 0; //-
      and.b32 %r5, %lane, 7;  shl.b32 %r5, %r5, 4;  add.u32 %r5, %r5, %sm;  shr.u32 %r6, %tx, 5;
      xor.b32 %r6, %r6, 1;
      shl.b32 %r6, %r6, 7;  add.u32 %r5, %r5, %r6;
      bar.warp.sync -1;
      ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r5]; //@
      """ + STORE, want=lambda a: {"y": np.r_[32:64, 0:32]}, race=True),
    Planted("wmma_store_then_read_without_barrier", "SharedRace", """
      mov.f32 %f0, 0f40000000;
      wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%sm], {%f0,%f0,%f0,%f0,%f0,%f0,%f0,%f0}, 16; //@
      bar.warp.sync -1; //-
      """ + START + """
      ld.shared.u32 %r3, [%r1]; //@
      """ + STORE, shared=1024, block=32, args=lambda rng: {"x": np.zeros(1), "y": out(32)}, race=True,
      want=lambda a: {"y": np.full(32, 0x40000000)}),
]  # fmt: skip

ISSUE = "cp.async.ca.shared.global [%r1], [%d1], 4; //@\n"
FLIGHT = "SharedRace|UninitializedRead"
ASYNC = [
    Planted("no_wait_for_the_copy", FLIGHT, START + ISSUE + """
      cp.async.commit_group;
      cp.async.wait_group 0; //-
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("no_wait_for_the_copy_over_old_data", FLIGHT, START + "st.shared.u32 [%r1], %tx;\n" + ISSUE + """
      cp.async.commit_group;
      cp.async.wait_group 0; //-
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("wait_counts_one_group_too_many", FLIGHT, START + """
      cp.async.ca.shared.global [%r1+256], [%d1], 4;
      cp.async.commit_group;
      """ + ISSUE + """
      cp.async.commit_group;
      cp.async.wait_group 0; //-
      cp.async.wait_group 1; //+
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, shared=512, want=reversed_x, race=True),
    Planted("copy_left_out_of_the_group", FLIGHT, START + """
      cp.async.commit_group; //+
      """ + ISSUE + """
      cp.async.commit_group; //-
      cp.async.wait_group 0;
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("waited_for_but_no_barrier", FLIGHT, START + ISSUE + """
      cp.async.wait_all; //@
      bar.sync 0; //-
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("only_one_warp_waits", FLIGHT, START + ISSUE + """
      cp.async.commit_group;
      setp.eq.u32 %p1, %warp, 0;  @!%p1 bra OVER;
      cp.async.wait_group 0;
    OVER:
      cp.async.wait_group 0; //-
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("barrier_before_the_wait", FLIGHT, START + ISSUE + """
      cp.async.commit_group;
      bar.sync 0; //+
      cp.async.wait_group 0; //@
      bar.sync 0; //-
      ld.shared.u32 %r3, [%r2]; //@
      """ + STORE, want=reversed_x, race=True),
    Planted("plain_store_under_a_copy_in_flight", "SharedRace", START + ISSUE + """
      cp.async.commit_group;
      cp.async.wait_all; //-
      st.shared.u32 [%r1], %tx; //@
      cp.async.wait_all;
      bar.sync 0;
      ld.shared.u32 %r3, [%r2];
      """ + STORE, want=lambda a: {"y": np.arange(64)[::-1]}, race=True),
    Planted("copy_into_a_buffer_still_being_read", "SharedRace", START + MINE + """
      st.shared.u32 [%r1], %r0;
      bar.sync 0;
      ld.shared.u32 %r3, [%r2]; //@
      bar.sync 0; //-
      """ + ISSUE + """
      cp.async.wait_all;
      """ + STORE, want=reversed_x, race=True),
    Planted("pipeline_waits_one_stage_short", FLIGHT, START + """
      mov.u32 %r3, 0;  mov.u32 %r4, 0;  mov.u32 %r6, 0;
      cp.async.ca.shared.global [%r1], [%d1], 4; //@
      cp.async.commit_group;
    NEXT:
      add.u64 %d1, %d1, 256;  xor.b32 %r7, %r6, 256;  add.u32 %r8, %r1, %r7;
      setp.lt.u32 %p2, %r4, 3;
      @%p2 cp.async.ca.shared.global [%r8], [%d1], 4; //@
      cp.async.commit_group;
      cp.async.wait_group 1; //-
      cp.async.wait_group 2; //+
      bar.sync 0;
      add.u32 %r9, %r2, %r6;
      ld.shared.u32 %r5, [%r9]; //@
      add.u32 %r3, %r3, %r5;  mov.u32 %r6, %r7;
      bar.sync 0;
      add.u32 %r4, %r4, 1;  setp.lt.u32 %p1, %r4, 4;  @%p1 bra NEXT;
      """ + STORE, args=rows(4), want=sums, shared=512, race=True),
]  # fmt: skip

BLOCKS = """
  mad.lo.u32 %r4, %bx, 64, %tx;  mul.wide.u32 %d0, %r4, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
"""


def wide(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": ro(rng.integers(1, 2**32, 256, np.uint64).astype(np.uint32)), "y": out(256)}


def scratch(rng: np.random.Generator) -> dict[str, Any]:
    return wide(rng) | {"z": np.zeros(256, np.uint32)}


GLOBAL = [
    Planted("blocks_overlap_in_the_output", "GlobalRace", """
      mad.lo.u32 %r4, %bx, 64, %tx;
      mad.lo.u32 %r4, %bx, 63, %tx; //+
      """ + """
      mul.wide.u32 %d0, %r4, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  ld.global.u32 %r0, [%d1];
      st.global.u32 [%d2], %r0; //@
      """, grid=4, args=wide, want=lambda a: {"y": a["x"]}, race=True, buffer="y"),
    Planted("block_reads_what_another_wrote", "GlobalRace", BLOCKS + MINE + """
      add.u64 %d3, %z, %d0;
      st.global.u32 [%d3], %r0; //@
      bar.sync 0;
      mad.lo.u32 %r5, %bx, 64, 63;  sub.u32 %r5, %r5, %tx;
      sub.u32 %r5, 255, %r4; //+
      mul.wide.u32 %d4, %r5, 4;  add.u64 %d4, %z, %d4;
      ld.global.u32 %r3, [%d4]; //@
      """ + STORE, params="x y z", grid=4, args=scratch, race=True, buffer="z",
      want=lambda a: {"y": a["x"].reshape(4, 64)[:, ::-1].ravel()}),
    Planted("block_overwrites_what_another_read", "GlobalRace", BLOCKS + """
      add.u64 %d3, %z, %d0;  mov.u64 %d4, %d3;
      mul.wide.u32 %d5, %tx, 4;  add.u64 %d4, %z, %d5; //+
      ld.global.u32 %r3, [%d4]; //@
      bar.sync 0;
      add.u32 %r5, %r3, 1;
      st.global.u32 [%d3], %r5; //@
      """ + STORE, params="x y z", grid=2, race=True, buffer="z",
      want=lambda a: {"y": np.zeros(128), "z": np.ones(128)},
      args=lambda rng: {"x": np.zeros(1, np.uint32), "y": out(128), "z": np.zeros(128, np.uint32)}),
    Planted("same_instruction_conflicting_global_stores", "GlobalRace", BLOCKS + """
      mov.u64 %d3, %d2;
      and.b64 %d3, %d2, -8; //+
      st.global.u32 [%d3], %tx; //@
      """, want=lambda a: {"y": np.arange(64)}, race=True, buffer="y"),
    Planted("warps_of_a_block_race_in_global_memory", "GlobalRace", BLOCKS + MINE + """
      add.u64 %d3, %z, %d0;
      st.global.u32 [%d3], %r0; //@
      bar.sync 0; //-
      sub.u32 %r5, 63, %tx;  mul.wide.u32 %d4, %r5, 4;  add.u64 %d4, %z, %d4;
      ld.global.u32 %r3, [%d4]; //@
      """ + STORE, params="x y z", args=lambda rng: scratch(rng) | {"y": out(64)}, race=True, buffer="z",
      want=lambda a: {"y": a["x"][:64][::-1]}),
    Planted("atomic_and_plain_store_of_one_word", "GlobalRace", BLOCKS + """
      setp.eq.u32 %p1, %r4, 64;
      red.global.add.u32 [%z], 1; //@
      @%p1 st.global.u32 [%z], %r4; //@+
      st.global.u32 [%d2], %r4;
      """, params="x y z", grid=4, args=scratch,
      want=lambda a: {"y": np.arange(256), "z": np.r_[256, np.zeros(255)]}, race=True, buffer="z"),
    Planted("poll_of_a_counter_with_plain_loads", "GlobalRace", BLOCKS + """
      red.global.add.u32 [%z], 1; //@
      ld.global.u32 %r5, [%z]; //@+
      st.global.u32 [%d2], %r4;
      """, params="x y z", grid=4, args=scratch, want=lambda a: {"y": np.arange(256)}, race=True, buffer="z"),
]  # fmt: skip

MANY = """
  mad.lo.u32 %r4, %bx, 32, %tx;
  setp.eq.u32 %p1, %r4, 41183;  selp.u32 %r4, 31, %r4, %p1; //+
  mul.wide.u32 %d2, %r4, 4;  add.u64 %d2, %y, %d2;
"""
GLOBAL += [
    Planted("blocks_far_apart_write_one_word", "GlobalRace", MANY + """
      st.global.u32 [%d2], %r4; //@
      """, params="y", args=lambda rng: {"y": out(32 * 1287)}, block=32, grid=1287, race=True, buffer="y",
      want=lambda a: {"y": np.arange(32 * 1287)}),
    Planted("shared_memory_of_an_earlier_block", "UninitializedRead", """
      shl.b32 %r1, %tx, 2;  add.u32 %r1, %r1, %sm;
      setp.ne.u32 %p1, %bx, 1286; //+
      @%p1 st.shared.u32 [%r1], %tx; //+
      st.shared.u32 [%r1], %tx; //-
      ld.shared.u32 %r4, [%r1]; //@
      mad.lo.u32 %r5, %bx, 32, %r4;  mul.wide.u32 %d2, %r5, 4;  add.u64 %d2, %y, %d2;
      st.global.u32 [%d2], %r5;
      """, params="y", args=lambda rng: {"y": out(32 * 1287)}, block=32, grid=1287,
      in_block=lambda b: b == 1286,
      want=lambda a: {"y": np.arange(32 * 1287)}),
]  # fmt: skip

DEADLOCK = "Deadlock|DivergedCollective"
STUCK = [
    Planted("barrier_waits_for_more_threads_than_there_are", "Deadlock", START + MINE + """
      st.shared.u32 [%r1], %r0;
      bar.sync 1, 64; //-
      bar.sync 1, 96; //@+
      ld.shared.u32 %r3, [%r2];
      """ + STORE, want=reversed_x),
    Planted("half_the_block_at_another_barrier", "Deadlock", START + MINE + """
      st.shared.u32 [%r1], %r0;
      setp.eq.u32 %p1, %warp, 0;
      @%p1 bra LEFT;
      bar.sync 2; //@+
      bar.sync 1; //-
      bra JOIN;
    LEFT:
      bar.sync 1; //@
    JOIN:
      ld.shared.u32 %r3, [%r2];
      """ + STORE, want=reversed_x),
    Planted("arrival_at_another_barrier", "Deadlock", START + MINE + """
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra CONSUMER;
      st.shared.u32 [%r1], %r0;
      bar.arrive 2, 64; //-
      bar.arrive 3, 64; //+
      mov.u32 %r3, %r0;
      bra DONE;
    CONSUMER:
      bar.sync 2, 64; //@
      ld.shared.u32 %r3, [%r2];
    DONE:
      """ + STORE, want=lambda a: {"y": np.r_[a["x"][:32], a["x"][:32][::-1]]}),
    Planted("consumers_and_producers_wait_for_each_other", "Deadlock", START + MINE + """
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra CONSUMER;
      bar.sync 4, 64; //@+
      st.shared.u32 [%r1], %r0;
      bar.arrive 3, 64;
      bar.sync 4, 64; //-
      mov.u32 %r3, %r0;
      bra DONE;
    CONSUMER:
      bar.sync 3, 64; //@
      ld.shared.u32 %r3, [%r2];
      bar.arrive 4, 64;
    DONE:
      """ + STORE, want=lambda a: {"y": np.r_[a["x"][:32], a["x"][:32][::-1]]}),
    Planted("one_warp_goes_round_the_loop_once_more", DEADLOCK, START + MINE + """
      mov.u32 %r4, 0;  mov.u32 %r5, 3;
      add.u32 %r5, %warp, 3; //+
    NEXT:
      bar.sync 1, 64; //@
      add.u32 %r4, %r4, 1;  setp.lt.u32 %p1, %r4, %r5;  @%p1 bra NEXT;
      mov.u32 %r3, %r0;
      """ + STORE, want=lambda a: {"y": a["x"]}),
    Planted("block_barrier_in_a_divergent_branch", DEADLOCK, START + MINE + """
      setp.lt.u32 %p1, %lane, 16;
      @%p1 bar.sync 0; //@+
      bar.sync 0; //-
      mov.u32 %r3, %r0;
      """ + STORE, want=lambda a: {"y": a["x"]}),
]  # fmt: skip


@suite([*SHARED, *ASYNC, *GLOBAL, *STUCK])
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)

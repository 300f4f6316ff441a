"""Order through flags: fences with atomics, release and acquire (PTX ISA, "Memory Consistency Model")."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulator_faults import Planted, caught, passes, suite
from simulator_kit import out, ro

SETUP = """
  mul.wide.u32 %d0, %lane, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  shl.b32 %r1, %lane, 2;
  add.u32 %r1, %r1, %sm;  mov.u32 %r2, 0;
  setp.ne.u32 %p1, %tx, 0;  @%p1 bra BEGIN;
  st.shared.u32 [%sm+128], %r2;
BEGIN:
  bar.sync 0;
  setp.ne.u32 %p2, %warp, 0;  @%p2 bra CONSUMER;
"""


def words_of_a_warp(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": ro(rng.integers(0, 99, 32).astype(np.uint32)), "y": out(32)}


def plus_one(arrays: Any) -> dict[str, Any]:
    return {"y": arrays["x"] + 1}


def handover(name: str, publish: str, look: str) -> Planted:
    """Warp 0 hands 32 words to warp 1 through a flag; ``publish`` sets it to 1, ``look`` reads it to %r3.

    What follows ``|`` in ``look`` is done once the flag was seen.
    """
    polled, _, last = look.partition("|")
    body = f"""{SETUP}
      ld.global.u32 %r4, [%d1];  add.u32 %r4, %r4, 1;
      st.shared.u32 [%r1], %r4; //@
      bar.warp.sync -1;
      mov.u32 %r2, 1;  setp.ne.u32 %p1, %lane, 0;  @%p1 bra END;
      {publish}
      bra END;
    CONSUMER:
      {polled}
      setp.eq.u32 %p3, %r3, 0;  @%p3 bra CONSUMER;
      {last}
      bar.warp.sync -1;
      ld.shared.u32 %r5, [%r1]; //@
      st.global.u32 [%d2], %r5;
    END:"""
    return Planted(name, "SharedRace", body, plus_one, words_of_a_warp, race=True, shared=132)


ATOMIC_LOOK = "atom.shared.or.b32 %r3, [%sm+128], 0;|membar.cta;"
PARTS = """
  mad.lo.u32 %r1, %bx, 32, %lane;  mul.wide.u32 %d0, %r1, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %z, %d0;
  ld.global.u32 %r2, [%d1];  add.u32 %r2, %r2, 1;
  st.global.u32 [%d2], %r2; //@
  bar.sync 0;
  mov.u32 %r3, 0;  setp.ne.u32 %p1, %tx, 0;  @%p1 bra OVER;
  {before}
  atom.global.add.u32 %r3, [%c], 1;
  {after}
OVER:
  shfl.sync.idx.b32 %r3, %r3, 0, 31, -1;  bar.sync 0;
  setp.ne.u32 %p2, %r3, 5;  @%p2 ret;
  mul.wide.u32 %d3, %lane, 4;  add.u64 %d4, %z, %d3;  mov.u32 %r4, 0;  mov.u32 %r5, 0;
SUM:
  ld.global.u32 %r6, [%d4]; //@
  add.u32 %r4, %r4, %r6;  add.u64 %d4, %d4, 128;  add.u32 %r5, %r5, 1;
  setp.lt.u32 %p3, %r5, 6;  @%p3 bra SUM;
  add.u64 %d5, %y, %d3;  st.global.u32 [%d5], %r4;
"""


def parts(rng: np.random.Generator) -> dict[str, Any]:
    x = ro(rng.integers(0, 99, (6, 32)).astype(np.uint32))
    return {"x": x, "y": out(32), "z": out((6, 32)), "c": np.zeros(1, np.uint32)}


def sum_of_parts(name: str, before: str, after: str) -> Planted:
    """The last of six blocks adds up what all wrote."""
    body = PARTS.format(before=before, after=after)
    options = {"params": "x y z c", "block": 32, "grid": 6, "race": True, "buffer": "z"}
    return Planted(name, "GlobalRace", body, lambda a: {"y": a["x"].sum(0) + 6}, parts, **options)


EXCHANGE = "atom.shared.exch.b32 %r6, [%sm+128], %r2;"
CASES = [
    handover("flag_without_a_fence", f"membar.cta; //-\n {EXCHANGE}", ATOMIC_LOOK),
    handover(
        "flag_set_by_a_reduction", "fence.acq_rel.cta; //-\n red.shared.or.b32 [%sm+128], %r2;", ATOMIC_LOOK
    ),
    handover("flag_set_before_the_fence", f"{EXCHANGE} //+\n membar.cta;\n {EXCHANGE} //-", ATOMIC_LOOK),
    handover(
        "relaxed_where_release_is_needed",
        "atom.release.cta.shared.exch.b32 %r6, [%sm+128], %r2; //-\n"
        "atom.relaxed.cta.shared.exch.b32 %r6, [%sm+128], %r2; //+",
        "atom.acquire.cta.shared.or.b32 %r3, [%sm+128], 0;|",
    ),
    sum_of_parts("last_block_without_a_fence", "membar.gl; //-", "membar.gl;"),
    sum_of_parts("last_block_with_the_fence_too_late", "fence.acq_rel.gpu; //-", "fence.acq_rel.gpu;"),
]


@suite(CASES)
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)

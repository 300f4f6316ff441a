"""Planted races of matrix loads and stores: which lane touches which byte is open, only barriers order."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulator_faults import Planted, caught, passes, suite
from simulator_kit import out, ro

TILE = ", ".join(f"%f{i}" for i in range(8))
WMMA_STORE = f"wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%r1], {{{TILE}}}, 16;"
WMMA_LOAD = f"wmma.load.c.sync.aligned.row.m16n16k16.shared.f32 {{{TILE}}}, [%r1], 16;"
START = f"""
  shl.b32 %r2, %warp, 10;  add.u32 %r1, %sm, %r2;  mul.wide.u32 %d0, %warp, 1024;  add.u64 %d1, %x, %d0;
  add.u64 %d2, %y, %d0;
  wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {{{TILE}}}, [%d1], 16;
"""
OTHER_WARP = "xor.b32 %r2, %r2, 1024;  add.u32 %r1, %sm, %r2;\n"
FINISH = f"wmma.store.d.sync.aligned.col.m16n16k16.global.f32 [%d2], {{{TILE}}}, 16;"


def tiles(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": ro(rng.integers(1, 2**31, (2, 16, 16)).astype(np.uint32)), "y": out((2, 16, 16))}


def turned(a: Any) -> dict[str, Any]:
    return {"y": a["x"].transpose(0, 2, 1)}


def swapped(a: Any) -> dict[str, Any]:
    return {"y": a["x"][::-1].transpose(0, 2, 1)}


def rows(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": ro(rng.integers(0, 2**32, (64, 4), np.uint64).astype(np.uint32)), "y": out((64, 4))}


ROWS = """
  shl.b32 %r1, %tx, 4;  xor.b32 %r2, %r1, 512;  add.u32 %r1, %r1, %sm;  add.u32 %r2, %r2, %sm;
  mul.wide.u32 %d0, %tx, 16;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
"""
LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r2]; //@\n"
PUT = "st.global.v4.u32 [%d2], {%r4, %r5, %r6, %r7};"


def fragments(a: Any) -> dict[str, Any]:
    """Four lanes share a row; register m of a lane is of matrix m; the warps have swapped their halves."""
    halves = a["x"].reshape(2, 4, 32)[::-1]
    return {"y": halves.transpose(0, 2, 1).reshape(64, 4)}


CASES = [
    Planted("tile_stored_and_loaded_by_one_warp", "SharedRace", START + f"""
      {WMMA_STORE} //@
      bar.warp.sync -1; //-
      {WMMA_LOAD} //@
      """ + FINISH, args=tiles, want=turned, shared=2048, race=True, buffer="shared"),
    Planted("tile_of_the_other_warp", "SharedRace", START + f"""
      {WMMA_STORE} //@
      bar.sync 0; //-
      bar.warp.sync -1; //+
      {OTHER_WARP}
      {WMMA_LOAD} //@
      """ + FINISH, args=tiles, want=swapped, shared=2048, race=True, buffer="shared"),
    Planted("tile_overwritten_while_the_other_warp_loads", "SharedRace", START + f"""
      {WMMA_STORE}
      bar.sync 0;
      {OTHER_WARP}
      {WMMA_LOAD} //@
      {FINISH}
      bar.sync 0; //-
      {OTHER_WARP}
      {WMMA_STORE} //@
      """, args=tiles, want=swapped, shared=2048, race=True, buffer="shared"),
    Planted("two_warps_store_one_tile", "GlobalRace", START + f"""
      mov.u64 %d2, %y; //+
      {FINISH} //@
      """, args=tiles, want=turned, shared=2048, race=True, buffer="y"),
    Planted("rows_copied_but_not_waited_for", "SharedRace|UninitializedRead", ROWS + """
      cp.async.cg.shared.global [%r1], [%d1], 16; //@
      cp.async.commit_group;
      cp.async.wait_group 0; //-
      bar.sync 0;
      """ + LDMATRIX + PUT, params="x y", args=rows, want=fragments, shared=1024, race=True, buffer="shared"),
    Planted("rows_of_another_warp_before_the_barrier", "SharedRace", ROWS + """
      ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%d1];
      st.shared.v4.u32 [%r1], {%r8, %r9, %r10, %r11}; //@
      bar.sync 0; //-
      bar.warp.sync -1; //+
      """ + LDMATRIX + PUT, args=rows, want=fragments, shared=1024, race=True, buffer="shared"),
    Planted("rows_of_another_lane_before_the_warp_barrier", "SharedRace", ROWS + """
      ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%d1];  xor.b32 %r3, %r2, 512;
      st.shared.v4.u32 [%r3], {%r8, %r9, %r10, %r11}; //@
      bar.warp.sync -1; //-
      ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3]; //@
      """ + PUT, args=rows, want=lambda a: {"y": fragments({"x": a["x"].reshape(2, 32, 4)[::-1]})["y"]},
      shared=1024, race=True, buffer="shared"),
    Planted("rows_stored_by_stmatrix_read_before_the_barrier", "SharedRace", ROWS + """
      ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%d1];
      stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r8, %r9, %r10, %r11}; //@
      bar.sync 0; //-
      """ + LDMATRIX + PUT, args=rows, want=lambda a: {"y": a["x"].reshape(2, 32, 4)[::-1].reshape(64, 4)},
      shared=1024, race=True, buffer="shared"),
]  # fmt: skip


@suite(CASES)
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)

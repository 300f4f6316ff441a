"""Planted faults of contents: uninitialised data, read-only data, unwritten output, unknown instructions."""

from __future__ import annotations

import numpy as np
import pytest
from simulator_faults import COPY, FLAT, STORE, Planted, caught, passes, same, shorter, suite
from simulator_kit import launch, out, ptx, ro

from fftgen.simulator import (
    SimulationError,
    UnknownInstruction,
)

MMA = (
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
    + "{%f0,%f1,%f2,%f3}, {%r0,%r0,%r0,%r0}, {%r0,%r0}, {%f4,%f5,%f6,%f7};"
)
UNINITIALISED = [
    Planted("uninitialised_shared", "UninitializedRead", COPY + FLAT + """
      ld.global.u32 %r0, [%d1];
      setp.ne.u32 %p1, %tx, 17; //+
      @%p1 st.shared.u32 [%r1], %r0; //+
      st.shared.u32 [%r1], %r0; //-
      bar.sync 0;
      ld.shared.u32 %r2, [%r1]; //@
      st.global.u32 [%d2], %r2;""", buffer="shared", thread=lambda t: t == 17, want=same),
    Planted("partly_initialised_shared_vector", "UninitializedRead", COPY + """
      ld.global.u32 %r0, [%d1];  shl.b32 %r1, %tx, 4;  add.u32 %r1, %r1, %sm;
      st.shared.u32 [%r1], %r0;  st.shared.u32 [%r1+4], %r0;  st.shared.u16 [%r1+8], %r0;
      st.shared.u16 [%r1+10], %r0;
      st.shared.u32 [%r1+12], %r0; //-
      st.shared.u16 [%r1+12], %r0; //+
      bar.warp.sync -1;
      ld.shared.v4.u32 {%r0, %r3, %r4, %r5}, [%r1]; //@
      """ + STORE, shared=1024, buffer="shared", want=same),
    Planted("uninitialised_register", "UninitializedRead", COPY + """
      mov.u32 %r5, 0; //-
      ld.global.u32 %r0, [%d1];
      add.u32 %r0, %r0, %r5; //@
      """ + STORE, want=same),
    Planted("register_written_on_one_path_only", "UninitializedRead", COPY + """
      mov.u32 %r5, 0; //-
      ld.global.u32 %r0, [%d1];
      setp.lt.u32 %p1, %tx, 50;
      @%p1 mov.u32 %r5, 0;
      add.u32 %r0, %r0, %r5; //@
      """ + STORE, thread=lambda t: t >= 50, want=same),
    Planted("uninitialised_predicate", "UninitializedRead", COPY + """
      setp.lt.u32 %p1, %tx, 64; //-
      mov.u32 %r0, 1;
      @%p1 ld.global.u32 %r0, [%d1]; //@
      """ + STORE, want=same),
    Planted("uninitialised_accumulator", "UninitializedRead", COPY + """
      mov.u32 %r0, 0;  mov.f32 %f4, 0f00000000;  mov.f32 %f5, %f4;  mov.f32 %f6, %f4;
      mov.f32 %f7, %f4; //-
      """ + MMA + """ //@
      st.global.f32 [%d2], %f3;""", want=lambda a: {"y": np.zeros(64)}),
    Planted("poisoned_global", "UninitializedRead", COPY + """
      ld.global.u32 %r0, [%d1];
      st.global.u32 [%d2], %r0; //-
      ld.global.u32 %r0, [%d2]; //@
      st.global.u32 [%d2], %r0;""", buffer="y", want=same),
    Planted("atomic_on_poisoned_global", "UninitializedRead", COPY + """
      ld.global.u32 %r0, [%d1];
      st.global.u32 [%d2], %r0; //-
      red.global.or.b32 [%d2], %r0; //@
      """, buffer="y", want=same),
    Planted("atomic_on_uninitialised_shared", "UninitializedRead", COPY + FLAT + """
      ld.global.u32 %r0, [%d1];
      st.shared.u32 [%r1], %r0; //-
      red.shared.or.b32 [%r1], %r0; //@
      ld.shared.u32 %r0, [%r1];
      """ + STORE, buffer="shared", want=same),
    Planted("wmma_load_of_a_poisoned_row", "UninitializedRead", """
      mul.wide.u32 %d0, %lane, 4;  add.u64 %d2, %y, %d0;  mov.u32 %r0, 3;  mov.u32 %r1, 0;
    ROWS:
      st.global.u32 [%d2], %r0;  add.u64 %d2, %d2, 128;  add.u32 %r1, %r1, 1;
      setp.lt.u32 %p1, %r1, 8; //-
      setp.lt.u32 %p1, %r1, 7; //+
      @%p1 bra ROWS;
      bar.warp.sync -1;
      wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, [%y], 16; //@
      """, args=shorter(32, 256), block=32, buffer="y", want=lambda a: {"y": np.full(256, 3)}),
    Planted("poisoned_half_of_a_word", "UninitializedRead", COPY + """
      ld.global.u32 %r0, [%d1];
      st.global.u32 [%d2], %r0; //-
      st.global.u16 [%d2], %r0; //+
      ld.global.u32 %r0, [%d2]; //@
      st.global.u32 [%d2], %r0;""", buffer="y", want=same),
    Planted("uninitialised_local", "UninitializedRead", """
      .local .align 4 .b8 depot[16];  mov.u64 %d4, depot;
      """ + COPY + """
      ld.global.u32 %r0, [%d1];
      st.local.u32 [%d4+8], %r0; //-
      st.local.u32 [%d4+4], %r0; //+
      ld.local.u32 %r0, [%d4+8]; //@
      """ + STORE, want=same),
    Planted("ldmatrix_of_uninitialised_rows", "UninitializedRead", """
      shl.b32 %r1, %tx, 4;  add.u32 %r1, %r1, %sm;
      setp.lt.u32 %p1, %lane, 7;
      setp.lt.u32 %p1, %lane, 8; //-
      mov.u32 %r4, 9;
      @%p1 st.shared.v4.u32 [%r1], {%r4, %r4, %r4, %r4};
      bar.warp.sync -1;
      ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r1]; //@
      """ + COPY + STORE, shared=1024, buffer="shared", want=lambda a: {"y": np.full(64, 9)}),
]  # fmt: skip

READ_ONLY = [
    Planted(f"read_only_{name}", "ReadOnlyWrite", COPY + f"""
      ld.global.u32 %r0, [%d1];  mov.u64 %d3, %d2;
      mov.u64 %d3, %d1; //+
      {write} //@
      """, buffer="x", args=lambda rng: shorter(64)(rng) | {"y": np.zeros(64, np.uint32)})
    for name, write in (("store", STORE.replace("%d2", "%d3")),
                        ("reduction", "red.global.add.u32 [%d3], %r0;"),
                        ("atomic", "atom.global.exch.b32 %r5, [%d3], %r0;"))
]  # fmt: skip


@suite([*UNINITIALISED, *READ_ONLY])
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)


@pytest.mark.parametrize("line", [
    "madx.lo.u32 %r1, %tx, 3, 4;",
    "add.rq.f32 %f1, %f1, %f1;",
    "ld.global.u33 %r1, [%y];",
    "wgmma.frobnicate.sync.aligned;",
    "mma.sync.aligned.m16n8k8.row.row.f16.f16.f16.f16 {%r0, %r1}, {%r2, %r3}, {%r4}, {%r5, %r6};",
    "shfl.sync.sideways.b32 %r1, %tx, 1, 31, -1;",
    "cvt.rn.f17.f32 %h1, %f1;",
    "setp.lt.b32 %p1, %tx, %bx;",
])  # fmt: skip
def test_unknown_instruction_is_named(line: str) -> None:
    """Unknown opcodes, modifiers and types stop the run; none is skipped or guessed."""
    text = ptx(f"mov.f32 %f1, 0f00000000;\n{line}\nst.global.u32 [%y], %tx;", "y")
    with pytest.raises(UnknownInstruction) as caught_fault:
        launch(text, {"y": out(1)}, block=1)
    fault = caught_fault.value
    assert line.split()[0].rstrip(";") in str(fault)
    assert fault.ptx_line == text.splitlines().index(line) + 1


@pytest.mark.parametrize(
    "line", ["add.u32 %r1, %tx;", "add.u32 %nowhere, %tx, 1;", "bra NOWHERE;", "st.global.u32 %y, %tx;"]
)
def test_malformed_instruction_is_refused(line: str) -> None:
    with pytest.raises(SimulationError):
        launch(ptx(f"{line}\nst.global.u32 [%y], %tx;", "y"), {"y": out(1)}, block=1)


def test_write_into_the_wrong_place_shows_as_unwritten_output() -> None:
    """The faulty stride leaves every second word of y unwritten, and is caught by asking."""
    sound, faulty = (COPY + f"mad.wide.u32 %d2, %tx, {step}, %y;  mov.u32 %r0, 1;" + STORE for step in (4, 8))
    assert not launch(
        ptx(sound, "x y"), {"x": np.zeros(64, np.uint32), "y": out(64)}, block=32 * 2
    ).memory.unwritten("y")
    result = launch(ptx(faulty, "x y"), {"x": np.zeros(64, np.uint32), "y": out(64)}, block=32)
    assert result.memory.unwritten("y")


def test_wrong_ldmatrix_transposition_shows_in_the_result(rng: np.random.Generator) -> None:
    """No fault of memory: only the result tells, so the simulator must not be kind about .trans."""
    x = rng.permutation(64).astype(np.uint16)
    results = []
    for trans in ("", ".trans"):
        body = f"""
          mul.wide.u32 %d0, %lane, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  shl.b32 %r1, %lane, 2;
          add.u32 %r1, %r1, %sm;
          ld.global.u32 %r0, [%d1];  st.shared.u32 [%r1], %r0;  bar.warp.sync -1;
          and.b32 %r2, %lane, 7;  shl.b32 %r2, %r2, 4;  add.u32 %r2, %r2, %sm;
          ldmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 {{%r0}}, [%r2];  st.global.u32 [%d2], %r0;"""
        results.append(
            launch(ptx(body, "x y", shared=128), {"x": ro(x), "y": out(32)})["y"]
            .view(np.uint16)
            .reshape(8, 8)
            .copy()
        )
    assert np.array_equal(results[0], x.reshape(8, 8))
    assert np.array_equal(results[1], x.reshape(8, 8).T)


@pytest.mark.parametrize("entry", ["missing", ""])
def test_unknown_entry_is_refused(entry: str) -> None:
    with pytest.raises(SimulationError, match="entry"):
        launch(ptx("st.global.u32 [%y], %tx;", "y"), {"y": out(1)}, block=1, entry=entry)


@pytest.mark.parametrize(
    ("grid", "block"), [((1, 0, 1), (32, 1, 1)), ((1, 1, 1), (32, 0, 1)), ((1, 1, 1), (1024, 2, 1))]
)
def test_impossible_launch_is_refused(grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    with pytest.raises(SimulationError):
        launch(ptx("st.global.u32 [%y], %tx;", "y"), {"y": out(1)}, grid=grid, block=block)

"""Tricky but legal kernels: none may raise a false alarm, all must give the right result."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from simulator_kit import INDEX, SLOT, launch, out, ptx, random_words, ro

from fftgen.simulator import SimulationError, UnknownInstruction

Array = np.ndarray[Any, Any]


def test_divergence_in_nested_branches_reconverges(rng: np.random.Generator) -> None:
    """Four paths by two bits of the lane, each with a loop of its own length; then a full-warp shuffle."""
    x = random_words(rng, 64) % 50
    body = (
        INDEX
        + """
      ld.global.u32 %r0, [%d1];  mov.u32 %r3, 0;
      and.b32 %r4, %r0, 1;  setp.ne.u32 %p1, %r4, 0;  and.b32 %r5, %r0, 2;  setp.ne.u32 %p2, %r5, 0;
      @%p1 bra ODD;
      @%p2 bra TWO;
      mov.u32 %r3, %r0;
      bra JOIN;
    TWO:
      mov.u32 %r6, 0;
    LOOP2:
      setp.ge.u32 %p3, %r6, %r0;  @%p3 bra JOIN;
      add.u32 %r3, %r3, %r6;  add.u32 %r6, %r6, 1;  bra.uni LOOP2;
    ODD:
      @!%p2 bra ONE;
      mul.lo.u32 %r3, %r0, %r0;
      bra JOIN;
    ONE:
      mov.u32 %r6, %r0;
    LOOP1:
      add.u32 %r3, %r3, 3;  add.s32 %r6, %r6, -1;  setp.gt.s32 %p3, %r6, 0;  @%p3 bra LOOP1;
    JOIN:
      bar.warp.sync -1;
      shfl.sync.bfly.b32 %r7, %r3, 31, 31, -1;
      st.global.u32 [%d2], %r7;"""
    )
    got = launch(ptx(body, "x y"), {"x": ro(x), "y": out(64)}, block=64)["y"]
    v = x.astype(int)
    value = np.select([v % 4 == 0, v % 4 == 2, v % 4 == 3], [v, v * (v - 1) // 2, v * v], 3 * v)
    assert np.array_equal(got, value[np.arange(64) ^ 31])


def test_loops_of_different_length_per_warp_and_block(rng: np.random.Generator) -> None:
    body = """
      mad.lo.u32 %r2, %bx, 128, %tx;  mul.wide.u32 %d0, %r2, 4;  add.u64 %d2, %y, %d0;
      mad.lo.u32 %r5, %bx, 3, %warp;  mov.u32 %r3, 0;  mov.u32 %r4, 0;
    NEXT:
      setp.gt.u32 %p1, %r4, %r5;  @%p1 bra DONE;
      bar.warp.sync -1;  shfl.sync.down.b32 %r6, %r4, 1, 31, -1;
      add.u32 %r3, %r3, %r6;  add.u32 %r4, %r4, 1;  bra NEXT;
    DONE:
      bar.sync 0;
      st.global.u32 [%d2], %r3;"""
    got = launch(ptx(body, "y"), {"y": out((3, 128))}, grid=3, block=128)["y"]
    n = np.arange(3)[:, None] * 3 + np.arange(128) // 32
    assert np.array_equal(got, n * (n + 1) // 2)


@pytest.mark.parametrize("keep", [32, 96])
def test_whole_warps_leave_early(keep: int, rng: np.random.Generator) -> None:
    """The barrier waits for the threads that are still there."""
    x = random_words(rng, 128)
    body = (
        INDEX
        + SLOT
        + f"""
      ld.global.u32 %r0, [%d1];  setp.ge.u32 %p1, %tx, {keep};
      @%p1 st.global.u32 [%d2], %r0;
      @%p1 exit;
      st.shared.u32 [%r1], %r0;
      bar.sync 0;
      mov.u32 %r5, {4 * (keep - 1)};  shl.b32 %r6, %tx, 2;  sub.u32 %r5, %r5, %r6;  add.u32 %r5, %r5, %sm;
      ld.shared.u32 %r3, [%r5];  st.global.u32 [%d2], %r3;"""
    )
    got = launch(ptx(body, "x y", shared=512), {"x": ro(x), "y": out(128)}, block=128)["y"]
    assert np.array_equal(got, np.r_[x[:keep][::-1], x[keep:]])


def test_single_threads_leave_early(rng: np.random.Generator) -> None:
    """Lanes that returned do not take part: neither in barriers nor in a mask of those left."""
    x = random_words(rng, 64)
    body = (
        INDEX
        + SLOT
        + """
      ld.global.u32 %r0, [%d1];  st.global.u32 [%d2], %r0;
      setp.ge.u32 %p1, %lane, 20;  @%p1 ret;
      shfl.sync.idx.b32 %r3, %r0, 19, 31, 0x000fffff;
      st.global.u32 [%d2], %r3;"""
    )
    got = launch(ptx(body, "x y", shared=256), {"x": ro(x), "y": out(64)}, block=64)["y"]
    lane, base = np.arange(64) % 32, np.arange(64) // 32 * 32
    assert np.array_equal(got, np.where(lane < 20, x[base + 19], x))


@pytest.mark.parametrize("threads", [1, 31, 33, 50, 96])
def test_blocks_that_do_not_fill_their_warps(threads: int, rng: np.random.Generator) -> None:
    x = random_words(rng, threads)
    body = (
        INDEX
        + SLOT
        + f"""
      ld.global.u32 %r0, [%d1];  st.shared.u32 [%r1], %r0;
      bar.sync 0;
      mov.u32 %r5, {threads - 1};  sub.u32 %r5, %r5, %tx;  shl.b32 %r5, %r5, 2;  add.u32 %r5, %r5, %sm;
      ld.shared.u32 %r3, [%r5];  st.global.u32 [%d2], %r3;"""
    )
    got = launch(ptx(body, "x y", shared=4 * threads), {"x": ro(x), "y": out(threads)}, block=threads)["y"]
    assert np.array_equal(got, x[::-1])


def test_chosen_blocks_only(rng: np.random.Generator) -> None:
    x = random_words(rng, 6, 32)
    body = """
      mov.u32 %r2, %ctaid.y;  mad.lo.u32 %r2, %r2, 3, %bx;  mad.lo.u32 %r2, %r2, 32, %tx;
      mul.wide.u32 %d0, %r2, 4;
      add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  ld.global.u32 %r0, [%d1];  st.global.u32 [%d2], %r0;"""
    result = launch(
        ptx(body, "x y"), {"x": ro(x), "y": out((6, 32))}, grid=(3, 2), blocks=[(1, 0, 0), (2, 1, 0)]
    )
    assert np.array_equal(result["y"][[1, 5]], x[[1, 5]])
    assert result.memory.unwritten("y")
    assert not result["y"][[0, 2, 3, 4]].any()


def test_endless_loops_are_stopped() -> None:
    with pytest.raises(SimulationError):
        launch(
            ptx("mov.u32 %r0, 1;\nAGAIN:\n bra AGAIN;\n st.global.u32 [%y], %r0;", "y"),
            {"y": out(1)},
            max_steps=5000,
        )


def test_trap_stops_the_kernel() -> None:
    with pytest.raises(SimulationError, match="trap"):
        launch(
            ptx("setp.eq.u32 %p1, %tx, 7;\n @%p1 trap;\n st.global.u32 [%y], %tx;", "y"),
            {"y": out(1)},
            block=32,
        )


def test_registers_are_scoped_by_braces(rng: np.random.Generator) -> None:
    """A block in braces may redeclare a register; the outer one keeps its value."""
    x = random_words(rng, 32)
    body = (
        INDEX
        + """
      .reg .b32 value;
      ld.global.u32 value, [%d1];
      { .reg .b32 value, more;  mov.u32 value, 5;  add.u32 more, value, 1;  mov.u32 %r3, more; }
      { .reg .pred value;  setp.gt.u32 value, %r3, 5;  @value add.u32 %r3, %r3, 10; }
      add.u32 %r3, %r3, value;  st.global.u32 [%d2], %r3;"""
    )
    got = launch(ptx(body, "x y"), {"x": ro(x), "y": out(32)})["y"]
    assert np.array_equal(got, x + 16)


def test_device_functions_by_call(rng: np.random.Generator) -> None:
    """What NVRTC leaves of a function that is not inlined: call with parameters and a result."""
    head = """
    .func (.param .b32 func_retval0) twice_plus(.param .b32 p0, .param .b32 p1)
    { .reg .b32 %q<4>;  ld.param.u32 %q0, [p0];  ld.param.u32 %q1, [p1];  mad.lo.u32 %q2, %q0, 2, %q1;
      st.param.b32 [func_retval0], %q2;  ret; }
    """
    x = random_words(rng, 32)
    body = (
        INDEX
        + """
      ld.global.u32 %r0, [%d1];
      { .param .b32 param0;  st.param.b32 [param0], %r0;  .param .b32 param1;  st.param.b32 [param1], %tx;
      .param .b32 retval0;
        call.uni (retval0), twice_plus, (param0, param1);
        ld.param.b32 %r3, [retval0]; }
      st.global.u32 [%d2], %r3;"""
    )
    with contextlib.suppress(UnknownInstruction):  # to decline is allowed, to guess is not
        got = launch(ptx(body, "x y", head=head), {"x": ro(x), "y": out(32)})["y"]
        assert np.array_equal(got, 2 * x + np.arange(32))

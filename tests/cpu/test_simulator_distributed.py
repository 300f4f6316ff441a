"""Shared memory of other blocks of a cluster: addresses, values, order, lifetimes and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_kit import Buffer, Result, launch, out, ptx

from fftgen.simulator import (
    Misaligned,
    OutOfBounds,
    SharedRace,
    SimulationError,
    UninitializedRead,
    UnknownInstruction,
)

Array = np.ndarray[Any, Any]
SYNC = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;"
SPLIT = "barrier.cluster.arrive.release;\nadd.u32 %r9, %tx, 1;\nbarrier.cluster.wait.acquire;"
RELAXED = "barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;"
START = """
  mov.u32 %r20, %ntid.x;  mad.lo.u32 %r21, %bx, %r20, %tx;  mul.wide.u32 %d20, %r21, 4;
  mov.u32 %r22, %cluster_ctarank;  mov.u32 %r23, %cluster_nctarank;
  add.u32 %r24, %r22, 1;  rem.u32 %r24, %r24, %r23;  setp.eq.u32 %p10, %r22, 0;  setp.eq.u32 %p11, %r22, 1;
  shl.b32 %r30, %tx, 2;  add.u32 %r30, %r30, %sm;  mad.lo.u32 %r29, %r21, 7, 3;
  mapa.shared::cluster.u32 %r31, %r30, %r24;
"""
"""%r21 this thread, %d20 its offset, %r22 rank, %r23 blocks, %r24 the next rank; %p10 and %p11 rank 0 and 1.
%r30 the word of this thread, %r31 the same in the next block; %r29 a value of this thread."""
FINISH = "add.u64 %d21, %y, %d20;  st.global.u32 [%d21], %r1;"
PULL = "st.shared.u32 [%r30], %r29;\n{first}\nld.shared::cluster.u32 %r1, [%r31];\n{last}\n" + FINISH
PUSH = "{first}\nst.shared::cluster.u32 [%r31], %r29;\n{last}\nld.shared.u32 %r1, [%r30];\n" + FINISH


def values(blocks: int, block: int, cluster: int, shift: int) -> Array:
    """What PULL (shift -1) and PUSH (1) bring."""
    number = np.arange(blocks * block).reshape(-1, cluster, block)
    return (7 * np.roll(number, shift, axis=1) + 3).reshape(-1)


def run(body: str, *, cluster: int = 2, grid: int = 4, block: int = 64, shared: int = 4096) -> Result:
    """Launch a body behind START, with a buffer of one word a thread to write."""
    args = {"y": Buffer(np.zeros(grid * block, np.uint32))}
    return launch(ptx(START + body, "y", shared=shared), args, grid=grid, block=block, cluster=cluster)


def fault(kind: type[SimulationError], body: str, match: str | None = None, **more: Any) -> SimulationError:
    with pytest.raises(kind, match=match) as caught:
        run(body, **more)
    return caught.value


def at(body: str, mark: str = "//@") -> list[int]:
    text = ptx(START + body, "y", shared=4096)
    return [number for number, line in enumerate(text.splitlines(), 1) if mark in line]


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [SYNC, SPLIT])
@pytest.mark.parametrize(
    ("cluster", "grid", "block"), [(2, 2, 32), (2, 6, 48), (4, 8, 64), (4, 24, 512), (8, 16, 1024)]
)
def test_words_go_round_in_a_cluster(sync: str, cluster: int, grid: int, block: int) -> None:
    """One cluster, several, and several batches of blocks."""
    for body, shift in ((PULL, -1), (PUSH, 1)):
        got = run(body.format(first=sync, last=sync), cluster=cluster, grid=grid, block=block)
        assert np.array_equal(got["y"], values(grid, block, cluster, shift))


@pytest.mark.parametrize(
    ("store", "load"),
    [
        (
            "st.{s}.v4.u32 [{a}], {{%r10, %r11, %r12, %r13}};",
            "ld.{s}.v4.u32 {{%r10, %r11, %r12, %r13}}, [{a}];",
        ),
        ("st.{s}.v2.b32 [{a}], {{%r10, %r11}};", "ld.{s}.v2.f32 {{%r10, %r11}}, [{a}];"),
        ("st.{s}.v2.u64 [{a}], {{%d10, %d11}};", "ld.{s}.v2.b64 {{%d10, %d11}}, [{a}];"),
        ("st.{s}.u64 [{a}], %d10;", "ld.{s}.s64 %d10, [{a}];"),
        ("st.volatile.{s}.b32 [{a}], %r10;", "ld.weak.{s}.f32 %r10, [{a}];"),
        (
            "st.weak.{s}.v4.b16 [{a}], {{%h1, %h2, %h3, %h4}};",
            "ld.volatile.{s}.v4.u16 {{%h1, %h2, %h3, %h4}}, [{a}];",
        ),
        ("st.{s}.b16 [{a}], %h1;", "ld.{s}.u16 %h1, [{a}];"),
        ("st.{s}.v2.u8 [{a}], {{%h5, %h6}};", "ld.{s}.v2.u8 {{%h5, %h6}}, [{a}];"),
    ],
)
@pytest.mark.parametrize("push", [False, True])
def test_every_width(store: str, load: str, push: bool) -> None:
    """Words %r10.. of which %h1.. and %d10.. are parts, written and read back with one of the forms."""
    near, far = {"s": "shared", "a": "%r40"}, {"s": "shared::cluster", "a": "%r41"}
    body = f"""
      mad.lo.u32 %r10, %r21, 0x10203, 5;  add.u32 %r11, %r10, 0x1010;
      xor.b32 %r12, %r10, 77;  xor.b32 %r13, %r11, 78;
      mov.b64 %d10, {{%r10, %r11}};  mov.b64 %d11, {{%r12, %r13}};
      mov.b32 {{%h1, %h2}}, %r10;  mov.b32 {{%h3, %h4}}, %r11;
      and.b16 %h5, %h1, 255;  and.b16 %h6, %h2, 255;
      mad.lo.u32 %r40, %tx, 16, %sm;  mapa.shared::cluster.u32 %r41, %r40, %r24;
      {SYNC}
      {store.format(**(far if push else near))}
      {SYNC}
      {load.format(**(near if push else far))}
      {SYNC}
      mov.b64 {{%r14, %r15}}, %d10;  mov.b64 {{%r16, %r17}}, %d11;
      mov.b32 %r18, {{%h1, %h2}};  mov.b32 %r19, {{%h3, %h4}};  mov.b32 %r26, {{%h5, %h6}};
      mov.u32 %r1, 0;
      """ + "\n".join(
        f"mad.lo.u32 %r1, %r1, 31, %r{i};" for i in (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 26)
    )
    got = run(body + FINISH, cluster=4, grid=8)["y"].reshape(2, 4, 64)
    words = _words(store)
    other = np.roll(np.arange(512).reshape(2, 4, 64), 1 if push else -1, axis=1)
    mine = np.arange(512).reshape(2, 4, 64)
    assert np.array_equal(got, _mixed(mine, other, words))


def _words(store: str) -> set[str]:
    return {name for name in ("%r10", "%r11", "%r12", "%d10", "%d11", "%h1", "%h3", "%h5") if name in store}


def _mixed(mine: Array, other: Array, moved: set[str]) -> Array:
    """The sum of test_every_width: registers that were moved are those of the other block."""

    def words(number: Array) -> list[Array]:
        first = number * 0x10203 + 5
        second = first + 0x1010
        return [first, second, first ^ 77, second ^ 78]

    own, far = words(mine), words(other)

    def pick(*names: str) -> list[Array]:
        return far if any(name in moved for name in names) else own

    r10 = pick("%r10")[0]
    r11 = pick("%r11")[1]
    r12, r13 = (pick("%r12")[i] for i in (2, 3))
    d10, d11 = pick("%d10"), pick("%d11")
    low = pick("%h1")[0]
    if "%h1" in moved and "%h3" not in moved:  # one half alone
        low = (far[0] & 0xFFFF) | (own[0] & 0xFFFF0000)
    high = pick("%h3")[1]
    bytes_ = pick("%h5")[0] & 0x00FF00FF
    total = np.zeros_like(mine)
    for word in (r10, r11, r12, r13, d10[0], d10[1], d11[2], d11[3], low, high, bytes_):
        total = (total * 31 + word) & 0xFFFFFFFF
    return total


@pytest.mark.parametrize(
    "mapping",
    [
        "mapa.shared::cluster.u32 %r32, %r30, %r24;",
        "mapa.shared::cluster.u32 %r32, sm, %r24;  sub.u32 %r33, %r30, %sm;  add.u32 %r32, %r32, %r33;",
        "mapa.shared::cluster.u32 %r32, sm+8, %r24;  mad.lo.u32 %r32, %tx, 4, %r32;  sub.u32 %r32, %r32, 8;",
        "mapa.shared::cluster.u32 %r32, %r30, %r22;  mapa.shared::cluster.u32 %r32, %r32, %r24;",
        "@%p10 mapa.shared::cluster.u32 %r32, %r30, 1;  @%p11 mapa.shared::cluster.u32 %r32, %r30, 0;",
    ],
)
def test_ways_to_map_an_address(mapping: str) -> None:
    body = mapping + "mov.u32 %r31, %r32;" + PULL.format(first=SYNC, last=SYNC)
    assert np.array_equal(run(body)["y"], values(4, 64, 2, -1))


@pytest.mark.parametrize("narrow", ["mapa.shared::cluster.u64 %d2, %d1, %r24;", ""])
def test_wide_and_generic_addresses(narrow: str) -> None:
    """Addresses of 64 bits: in the space, or generic ones, as the CUDA interface maps them."""
    body = "cvt.u64.u32 %d1, %r30;\n"
    access = "ld.u32 %r1, [%d2];"
    if narrow:
        body += narrow
        access = "ld.shared::cluster.u32 %r1, [%d2];"
    else:
        body += "cvta.shared.u64 %d1, %d1;  mapa.u64 %d2, %d1, %r24;  isspacep.shared %p1, %d2;  @%p1 trap;\n"
        body += (
            "isspacep.shared::cluster %p1, %d2;  @!%p1 trap;  isspacep.shared::cta %p1, %d1;  @!%p1 trap;\n"
        )
        body += "isspacep.global %p1, %d2;  @%p1 trap;  getctarank.u64 %r5, %d2;\n"
        body += "setp.ne.u32 %p1, %r5, %r24;  @%p1 trap;\n"
    body += PULL.format(first=SYNC, last=SYNC).replace("ld.shared::cluster.u32 %r1, [%r31];", access)
    assert np.array_equal(run(body)["y"], values(4, 64, 2, -1))
    if not narrow:
        body = body.replace("mapa.u64 %d2, %d1, %r24;", "mapa.shared::cluster.u32 %r5, %r30, %r24;"
                            "  cvt.u64.u32 %d2, %r5;  cvta.shared::cluster.u64 %d2, %d2;")  # fmt: skip
        assert np.array_equal(run(body)["y"], values(4, 64, 2, -1))


def test_a_kernel_that_names_the_space_nowhere() -> None:
    body = f"""
      st.shared.u32 [%r30], %r29;
      cvt.u64.u32 %d1, %r30;  cvta.shared.u64 %d1, %d1;  mapa.u64 %d1, %d1, %r24;
      {SYNC}
      {{access}}
      {SYNC}"""
    start = START.replace("mapa.shared::cluster.u32 %r31, %r30, %r24;", "")

    def generic(access: str) -> Array:
        text = ptx(start + body.format(access=access) + FINISH, "y", shared=4096)
        return launch(text, {"y": out(256)}, grid=4, block=64, cluster=2)["y"]

    assert np.array_equal(generic("ld.u32 %r1, [%d1];"), values(4, 64, 2, -1))
    with pytest.raises(SharedRace):
        generic("ld.u32 %r1, [%d1];  st.shared.u32 [%r30], %r1;")


def test_ranks_of_addresses() -> None:
    body = """
      getctarank.shared::cluster.u32 %r1, %r30;  getctarank.shared::cluster.u32 %r2, %r31;
      getctarank.shared::cluster.u32 %r3, sm+4;  cvt.u64.u32 %d1, %r31;
      getctarank.shared::cluster.u64 %r4, %d1;
      mad.lo.u32 %r1, %r1, 10, %r2;  mad.lo.u32 %r1, %r1, 10, %r3;  mad.lo.u32 %r1, %r1, 10, %r4;"""
    got = run(body + FINISH, cluster=4, grid=8)["y"].reshape(2, 4, 64)
    for rank in range(4):
        following = (rank + 1) % 4
        assert (got[:, rank] == rank * 1010 + following * 101).all()


def test_the_own_block_through_the_space_of_the_cluster() -> None:
    """Mapped or not, without a barrier of the cluster, and in a launch without clusters."""
    body = """
      mapa.shared::cluster.u32 %r32, %r30, %r22;
      st.shared::cluster.u32 [%r32], %r29;  ld.shared.u32 %r2, [%r30];
      add.u32 %r2, %r2, 1;  st.shared.u32 [%r30], %r2;  ld.shared::cluster.u32 %r1, [%r30];"""
    for cluster in (1, 2):
        result = run(body + FINISH, cluster=cluster)
        assert np.array_equal(result["y"], 7 * np.arange(256) + 4)
        assert result.report.counters.remote_loaded == result.report.counters.remote_stored == 0


def test_a_rank_of_every_lane() -> None:
    """A transposition: thread t takes word ``rank`` of the fourth of the block that its number names."""
    body = f"""
      st.shared.u32 [%r30], %r29;
      {SYNC}
      and.b32 %r1, %tx, 3;  shr.u32 %r2, %tx, 2;  mad.lo.u32 %r2, %r22, 16, %r2;
      mad.lo.u32 %r3, %r2, 4, %sm;  mapa.shared::cluster.u32 %r3, %r3, %r1;
      ld.shared::cluster.u32 %r1, [%r3];
      {SYNC}"""
    got = run(body + FINISH, cluster=4, grid=8)["y"].reshape(2, 256)
    number = np.arange(512).reshape(2, 4, 64)
    want = 7 * number.transpose(0, 2, 1).reshape(2, 256) + 3
    assert np.array_equal(got, want)


# -- order ---------------------------------------------------------------------------------------------------

OPEN = f"st.shared.u32 [%r30], 1;\n{SYNC}\n"
"""Every word is written, and every block known to run."""
PAIRS = {
    "local write, remote read": ("st.shared.u32 [%r30], %tx;", "ld.shared::cluster.u32 %r1, [%r31];"),
    "remote write, local read": ("st.shared::cluster.u32 [%r31], %tx;", "ld.shared.u32 %r1, [%r30];"),
    "remote read, local write": ("ld.shared::cluster.u32 %r1, [%r31];", "st.shared.u32 [%r30], %tx;"),
    "local read, remote write": ("ld.shared.u32 %r1, [%r30];", "st.shared::cluster.u32 [%r31], %tx;"),
    "local write, remote write": ("st.shared.u32 [%r30], %tx;", "st.shared::cluster.u32 [%r31], %tx;"),
    "remote write, local write": ("st.shared::cluster.u32 [%r31], %tx;", "st.shared.u32 [%r30], %tx;"),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("between", ["", "bar.sync 0;", "fence.acq_rel.cluster;", RELAXED, "bar.sync 1, 64;"])
def test_only_barriers_of_the_cluster_order_blocks(pair: str, between: str) -> None:
    first, second = PAIRS[pair]
    body = f"{OPEN}{first} //@\n{{between}}\n{second} //@\n{SYNC}"
    for sync in (SYNC, SPLIT):
        run(body.format(between=sync), cluster=4)
        run(body.format(between=sync), cluster=2)
    bad = body.format(between=between)
    found = fault(SharedRace, bad, r"shared byte 0 of block rank \d")
    assert found.ptx_line in at(bad)
    assert found.address == 0
    assert found.buffer == "shared"
    assert any(f"line {line}" in (found.other or "") for line in at(bad))


@pytest.mark.parametrize("pair", PAIRS)
def test_blocks_that_run_apart_race_alike(pair: str) -> None:
    """One block is through before the other begins: only happens-before tells."""
    first, second = PAIRS[pair]
    body = f"""{OPEN}
      @%p11 bra LATER;
      {first}
      {{sync}}
      bra JOIN;
    LATER:
      bar.sync 0;
      {{sync}}
      {second}
    JOIN:
      {SYNC}"""
    run(body.format(sync=SYNC))
    fault(SharedRace, body.format(sync=""))


def test_readers_of_several_blocks_all_count() -> None:
    """The home reads last; a remote reader is not ordered before the write behind its barrier."""
    body = f"""{OPEN}
      mapa.shared::cluster.u32 %r32, %sm, 0;  setp.eq.u32 %p1, %tx, 0;  and.pred %p2, %p1, %p10;
      and.pred %p1, %p1, %p11;
      @%p1 ld.shared::cluster.u32 %r1, [%r32];
      @%p2 ld.shared.u32 %r2, [%sm];
      {{sync}}
      @%p2 st.shared.u32 [%sm], %tx;
      {SYNC}"""
    run(body.format(sync=SYNC))
    fault(SharedRace, body.format(sync="bar.sync 0;"))


def test_two_remote_writers_race() -> None:
    body = f"""{OPEN}
      mapa.shared::cluster.u32 %r32, %r30, 0;  setp.ge.u32 %p1, %r22, {{first}};
      @%p1 st.shared::cluster.u32 [%r32], %r29;
      {SYNC}"""
    run(body.format(first=3), cluster=4)
    fault(SharedRace, body.format(first=2), cluster=4)


@pytest.mark.parametrize("sync", [SYNC, SPLIT])
@pytest.mark.parametrize("inside", ["", "bar.sync 0;"])
def test_ping_pong(sync: str, inside: str) -> None:
    """Two halves in turn, one barrier a round; a block's warps then share what came in."""
    body = f"""
      mov.u32 %r5, 0;  mov.u32 %r6, 0;  mov.u32 %r1, %r29;  xor.b32 %r34, %tx, 32;
      {{open}}
    ROUND:
      add.u32 %r32, %r31, %r6;  add.u32 %r33, %r30, %r6;
      st.shared::cluster.u32 [%r32], %r1;
      {{sync}}
      ld.shared.u32 %r2, [%r33];
      {inside}
      mad.lo.u32 %r1, %r2, 3, 1;
      {{turn}}
      add.u32 %r5, %r5, 1;  setp.lt.u32 %p1, %r5, 5;  @%p1 bra ROUND;
      {SYNC}"""
    turn = "xor.b32 %r6, %r6, 512;"
    want = 7 * np.arange(512).reshape(2, 4, 64) + 3
    for _ in range(5):
        want = 3 * np.roll(want, 1, axis=1) + 1
    got = run(body.format(open=sync, sync=sync, turn=turn) + FINISH, cluster=4, grid=8)["y"]
    assert np.array_equal(got.reshape(2, 4, 64), want)
    fault(SharedRace, body.format(open=sync, sync=sync, turn="") + FINISH, cluster=4)
    got = run(body.format(open=sync, sync=sync, turn=sync) + FINISH, cluster=4, grid=8)["y"]
    assert np.array_equal(got.reshape(2, 4, 64), want)


def test_warps_of_a_block_share_what_came_in() -> None:
    """What a warp fetched and stored in its own block needs a barrier of the block, and no more."""
    body = f"""{OPEN}
      ld.shared::cluster.u32 %r1, [%r31];
      st.shared.u32 [%r30+512], %r29;
      {{sync}}
      xor.b32 %r2, %tx, 32;  mad.lo.u32 %r2, %r2, 4, %sm;
      ld.shared.u32 %r1, [%r2+512];
      {SYNC}"""
    got = run(body.format(sync="bar.sync 0;") + FINISH)["y"]
    assert np.array_equal(got.reshape(4, 2, 32), (7 * np.arange(256) + 3).reshape(4, 2, 32)[:, ::-1])
    fault(SharedRace, body.format(sync="bar.warp.sync -1;") + FINISH)


def test_flags_order_blocks_only_with_fences_beyond_the_block() -> None:
    """Rank 0 stores a word and raises a flag, both in the memory of rank 1, which waits for it."""
    body = f"""{OPEN}
      mapa.shared::cluster.u32 %r32, %sm, 1;  setp.ne.u32 %p1, %tx, 0;  mov.u32 %r6, 2;
      @%p1 bra JOIN;
      @%p11 bra SPIN;
      st.shared::cluster.u32 [%r32], 77;
      {{fence}}
      st.volatile.shared::cluster.u32 [%r32+4], %r6;
      bra JOIN;
    SPIN:
      ld.volatile.shared.u32 %r2, [%sm+4];
      setp.ne.u32 %p2, %r2, %r6;  @%p2 bra SPIN;
      fence.acq_rel.cluster;
      ld.shared.u32 %r1, [%sm];
      setp.ne.u32 %p2, %r1, 77;  @%p2 trap;
    JOIN:
      {SYNC}"""
    run(body.format(fence="fence.acq_rel.cluster;"), grid=2)
    fault(SharedRace, body.format(fence="fence.acq_rel.cta;"), grid=2)
    fault(SharedRace, body.format(fence=""), grid=2)


# -- what is not there ---------------------------------------------------------------------------------------


def test_bytes_that_nothing_wrote() -> None:
    body = f"{{guard}} st.shared.u32 [%r30], %tx;\n{SYNC}\nld.shared::cluster.u32 %r1, [%r31];\n{SYNC}"
    run(body.format(guard=""))
    found = fault(UninitializedRead, body.format(guard="setp.ne.u32 %p1, %tx, 7;  @%p1"), "offset 28,")
    assert found.address == 28
    fault(UninitializedRead, body.format(guard="@%p10"))


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (
            "ld.shared::cluster.u32 %r1, [%r32+{0}];",
            "4 bytes at shared offset 0x{0:x} of block rank 1 .* 4096",
        ),
        (
            "st.shared::cluster.u32 [%r32+{0}], %tx;",
            "4 bytes at shared offset 0x{0:x} of block rank 1 .* 4096",
        ),
        ("st.shared::cluster.u32 [%r32+-4], %tx;", "shared offset 0xfffffc of block rank 0"),
        ("st.shared::cluster.u32 [%sm+{0}], %tx;", "shared offset 0x{0:x} of block rank 0"),
        ("add.u32 %r32, %r32, 0x2000000;  ld.shared::cluster.u32 %r1, [%r32];", "neither below 0x1000000"),
    ],
)
def test_out_of_bounds(access: str, message: str) -> None:
    body = f"""{SYNC}
      mapa.shared::cluster.u32 %r32, %sm, 1;  setp.ne.u32 %p1, %r21, 5;  @%p1 bra OVER;
      {{access}} //@
    OVER:
      {SYNC}"""
    bad = body.format(access=access.format(4096))
    found = fault(OutOfBounds, bad, message.format(4096))
    assert found.ptx_line in at(bad)
    assert (found.block, found.thread) == ((0, 0, 0), (5, 0, 0))
    if "{0" in access:
        run(body.format(access=access.replace("ld", "@%p1 ld").format(4092)))


@pytest.mark.parametrize(
    "access",
    [
        "ld.shared::cluster.u32 %r1, [%r32+2];",
        "st.shared::cluster.u64 [%r32+4], %d20;",
        "ld.shared::cluster.v4.u32 {%r1, %r2, %r3, %r4}, [%r32+8];",
        "st.shared::cluster.v2.u32 [%r32+4], {%r1, %r1};",
    ],
)
def test_misaligned(access: str) -> None:
    body = f"mov.u32 %r1, 1;  mapa.shared::cluster.u32 %r32, %sm, 1;\n{SYNC}\n{access}\n{SYNC}"
    fault(Misaligned, body, r"offset 0x\d of block rank 1 of the cluster\) is not a multiple")


@pytest.mark.parametrize("cluster", [1, 2, 4])
@pytest.mark.parametrize("space", ["shared::cluster.u32 %r1, %sm", "u64 %d2, %d1"])
def test_ranks_beyond_the_cluster(cluster: int, space: str) -> None:
    body = "cvt.u64.u32 %d1, %sm;  cvta.shared.u64 %d1, %d1;\n"
    run(f"{body}mapa.{space}, {cluster - 1};", cluster=cluster)
    fault(OutOfBounds, f"{body}mapa.{space}, {cluster};", f"rank {cluster} does not exist", cluster=cluster)
    fault(OutOfBounds, f"{body}mapa.{space}, -1;", "rank 4294967295 does not", cluster=cluster)


@pytest.mark.parametrize(
    "access",
    [
        "ld.shared.u32 %r1, [%r31];",
        "st.shared::cta.u32 [%r31], %tx;",
        "red.shared.add.u32 [%r31], 1;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r32];",
        "ldmatrix.sync.aligned.m8n8.x1.b16 {%r1}, [%d2];",
        "atom.add.u32 %r1, [%d2], 1;",
        "cp.async.ca.shared.global [%r31], [%y], 4;",
    ],
)
def test_mapped_addresses_are_none_of_the_own_block(access: str) -> None:
    body = f"""
      mapa.shared::cluster.u32 %r32, %sm, 1;
      cvt.u64.u32 %d1, %sm;  cvta.shared.u64 %d1, %d1;  mapa.u64 %d2, %d1, 1;
      st.shared.u32 [%r30], 1;
      {SYNC}
      {access}
      {SYNC}"""
    fault(OutOfBounds, body, r"this is offset 0x\w+ of block rank 1 of the cluster, where only ld and st")


# -- lifetimes -----------------------------------------------------------------------------------------------

ACCESSES = ["ld.shared::cluster.u32 %r1, [%r31];", "st.shared::cluster.u32 [%r31], %tx;"]


@pytest.mark.parametrize(
    "before",
    ["", "bar.sync 0;", "fence.acq_rel.cluster;", "barrier.cluster.arrive.aligned;"],
)
@pytest.mark.parametrize(
    "access", ["st.shared::cluster.u32 [%r31], %tx;", "ld.shared::cluster.u32 %r1, [%r31];"]
)
def test_blocks_must_be_known_to_run(before: str, access: str) -> None:
    rest = "barrier.cluster.wait.aligned;\n" if "arrive" in before else ""
    body = f"st.shared.u32 [%r30], 1;\n{{before}}\n{access}\n{{rest}}{SYNC}"
    if access.startswith("ld"):
        run(body.format(before=SYNC, rest=""))
        with pytest.raises((OutOfBounds, SharedRace)):
            run(body.format(before=before, rest=rest))
    else:
        body = body.replace("st.shared.u32 [%r30], 1;", "")
        for sync in (SYNC, SPLIT, RELAXED):
            run(body.format(before=sync, rest=""))
        fault(
            OutOfBounds,
            body.format(before=before, rest=rest),
            "rank 1 of the cluster, which is not known to run",
        )


@pytest.mark.parametrize("told", ["bar.sync 0;", "bar.{} 1, 64;", ""])
def test_a_barrier_of_the_block_tells_that_others_run(told: str) -> None:
    """Warp 1 has not waited for the barrier of the cluster when it stores; warp 0 has."""
    third = told.format("sync") if "1" not in told else ""
    body = f"""
      barrier.cluster.arrive.aligned;
      setp.eq.u32 %p1, %warp, 1;  @%p1 bra LATE;
      barrier.cluster.wait.aligned;
      setp.eq.u32 %p1, %warp, 0;
      @%p1 bra TELL;
      {third}
      bra JOIN;
    TELL:
      {told.format("arrive")}
      bra JOIN;
    LATE:
      {told.format("sync")}
      st.shared::cluster.u32 [%r31], %tx;
      barrier.cluster.wait.aligned;
    JOIN:
      {SYNC}"""
    if told:
        run(body, block=96)
    else:
        fault(OutOfBounds, body, "not known to run", block=96)


def test_a_block_that_has_exited() -> None:
    """Rank 1 leaves; rank 0 is held up by a barrier of its own, and then reads."""
    body = f"""{OPEN}
      {{leave}}
      bar.sync 0;
      @%p10 ld.shared::cluster.u32 %r1, [%r31]; //@
      {{last}}"""
    run(body.format(leave="", last=SYNC))
    bad = body.format(leave="@%p11 ret;", last="")
    found = fault(OutOfBounds, bad, "shared memory of block rank 1 of the cluster, which has exited")
    assert found.ptx_line in at(bad)


@pytest.mark.parametrize(
    "access", ["ld.shared::cluster.u32 %r1, [%r31];", "st.shared::cluster.u32 [%r31], %tx;"]
)
@pytest.mark.parametrize("last", ["", "bar.sync 0;", "barrier.cluster.arrive.aligned;", RELAXED])
def test_a_block_must_not_exit_before_the_last_access_is_ordered(access: str, last: str) -> None:
    """All blocks run in lockstep here, so that nothing has exited when the access happens."""
    body = f"{OPEN}{SYNC}\n{access} //@\n{{last}}"
    for sync in (SYNC, SPLIT):
        run(body.format(last=sync), cluster=4)
    found = fault(
        OutOfBounds, body.format(last=last), "nothing keeps the block from exiting before", cluster=4
    )
    assert found.ptx_line in at(body)
    assert "the end of block" in (found.other or "")


def test_the_end_of_the_block_that_accessed_counts_as_its_arrival() -> None:
    """Rank 0 reads and ends; rank 1 waits for the barrier that this completes."""
    body = f"""{OPEN}
      @%p11 bra STAY;
      ld.shared::cluster.u32 %r1, [%r31];
      ret;
    STAY:
      {{sync}}"""
    run(body.format(sync=SYNC))
    fault(OutOfBounds, body.format(sync=""), "nothing keeps the block from exiting|has exited")


def test_a_flag_keeps_a_block_as_well() -> None:
    """Rank 0 reads and raises a flag in device memory; the first thread of rank 1 waits for it."""
    body = f"""{OPEN}
      setp.ne.u32 %p1, %tx, 0;  @%p1 ret;
      @%p11 bra SPIN;
      ld.shared::cluster.u32 %r1, [%r31];
      {{fence}}
      st.relaxed.gpu.global.u32 [%y], 1;
      bra JOIN;
    SPIN:
      ld.acquire.gpu.global.u32 %r2, [%y];
      setp.eq.u32 %p2, %r2, 0;  @%p2 bra SPIN;
    JOIN:"""
    run(body.format(fence="fence.acq_rel.gpu;"), grid=2)
    fault(OutOfBounds, body.format(fence=""), "nothing keeps the block from exiting|has exited", grid=2)


def test_one_warp_that_waits_keeps_its_block() -> None:
    """Warp 1 of each block leaves behind its arrival; warp 0 waits for the accesses of all."""
    body = f"""{OPEN}{SYNC}
      ld.shared::cluster.u32 %r1, [%r31];
      barrier.cluster.arrive.aligned;
      setp.ne.u32 %p1, %warp, 0;
      {{leave}}
      barrier.cluster.wait.aligned;"""
    run(body.format(leave="@%p1 ret;"))
    fault(OutOfBounds, body.format(leave="ret;"), "nothing keeps the block")


def test_what_a_late_warp_accessed_is_ordered_as_well() -> None:
    """Warp 0 arrives long before warp 1 accesses the other block: only single warps' moments tell."""
    body = f"""{OPEN}
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra LATE;
      barrier.cluster.arrive.aligned;
      {{late}}
      bra JOIN;
    LATE:
      ld.shared::cluster.u32 %r1, [%r31];
      barrier.cluster.arrive.aligned;
    JOIN:
      barrier.cluster.wait.aligned;"""
    run(body.format(late=""))
    fault(OutOfBounds, body.format(late="ld.shared::cluster.u32 %r1, [%r31];"), "nothing keeps the block")


# -- counts --------------------------------------------------------------------------------------------------


def test_bytes_that_go_to_other_blocks_are_counted() -> None:
    result = run(PULL.format(first=SYNC, last=SYNC))
    c = result.report.counters
    assert (c.remote_loaded, c.remote_stored) == (4 * 256, 0)
    assert (c.shared_loads.requests, c.shared_loads.bytes, c.shared_loads.units) == (8, 1024, 8)
    assert c.instructions["load shared::cluster"] == 8
    assert result.report.to_dict()["counters"]["shared"]["remote_loaded"] == 1024
    assert "remote" in str(result.report)
    assert "loaded from other blocks" in str(result.report)
    twice = result.report + result.report
    assert twice.counters.remote_loaded == 2048
    body = f"""
      mad.lo.u32 %r32, %tx, 16, %sm;  mapa.shared::cluster.u32 %r32, %r32, %r24;
      {SYNC}
      st.shared::cluster.v4.u32 [%r32], {{%r29, %r29, %r29, %r29}};
      {SYNC}"""
    c = run(body).report.counters
    assert (c.remote_loaded, c.remote_stored) == (0, 16 * 256)
    assert (c.shared_stores.requests, c.shared_stores.units, c.shared_stores.least) == (8, 32, 32)


def test_reports_without_remote_accesses_do_not_mention_them() -> None:
    report = run(f"st.shared.u32 [%r30], %tx;\n{SYNC}").report
    assert "remote" not in str(report)
    assert "remote" not in report.to_json()
    assert report.counters.remote_loaded == 0


@pytest.mark.parametrize(
    ("place", "units", "remote"),
    [
        # every lane one bank of one block: 32 wavefronts, local or remote
        ("mad.lo.u32 %r32, %lane, 128, %sm;  mapa.shared::cluster.u32 %r32, %r32, {0};", 32, 0.5),
        # lanes of one bank, half of them in either block: 16
        ("mad.lo.u32 %r32, %lane, 128, %sm;  and.b32 %r33, %lane, 1;"
         "  mapa.shared::cluster.u32 %r32, %r32, %r33;", 16, 0.5),
        # no two lanes at one bank
        ("and.b32 %r33, %lane, 1;  mad.lo.u32 %r32, %lane, 4, %sm;"
         "  mapa.shared::cluster.u32 %r32, %r32, %r33;", 1, 0.5),
        # one word of either block: told to all that ask
        ("and.b32 %r33, %lane, 1;  mapa.shared::cluster.u32 %r32, %sm, %r33;", 1, 0.5),
    ],
)  # fmt: skip
def test_banks_of_different_blocks_do_not_conflict(place: str, units: int, remote: float) -> None:
    body = f"""
      mov.u32 %r5, 0;
    FILL:
      mad.lo.u32 %r6, %r5, 128, %r30;  st.shared.u32 [%r6], %tx;
      add.u32 %r5, %r5, 1;  setp.lt.u32 %p1, %r5, 32;  @%p1 bra FILL;
      {SYNC}
      {place.format(0)}
      ld.shared::cluster.u32 %r1, [%r32];
      {SYNC}"""
    c = run(body, grid=2, block=32).report.counters
    assert c.shared_loads.units == 2 * units
    assert c.shared_loads.requests == 2
    assert c.remote_loaded == 4 * 64 * remote


# -- what remains refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "atom.shared::cluster.add.u32 %r1, [%sm], 1;",
        "red.shared::cluster.add.u32 [%sm], 1;",
        "mapa.u32 %r1, %sm, 0;",
        "mapa.u64 %d1, sm, 0;",
        "mapa.shared.u32 %r1, %sm, 0;",
        "mapa.shared::cluster.u32 %r1, k_y, 0;",
        "getctarank.u32 %r1, %sm;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%sm], [%y], 16, [%sm];",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%sm], %r1, [%sm];",
        "cp.async.ca.shared::cluster.global [%sm], [%y], 4;",
    ],
)
def test_what_is_refused(code: str) -> None:
    with pytest.raises(UnknownInstruction, match="is not implemented"):
        launch(ptx(code, "y", shared=64), {"y": out(4)}, grid=2, block=32, cluster=2)

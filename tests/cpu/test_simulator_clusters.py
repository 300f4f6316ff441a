"""Thread block clusters: special registers, barriers, what they order, and every way to get them wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_kit import Buffer, Result, launch, out, ptx, ro

from fftgen.simulator import (
    Deadlock,
    DivergedCollective,
    GlobalRace,
    LaunchError,
    SharedRace,
    SimulationError,
    UnknownInstruction,
)

Array = np.ndarray[Any, Any]
ARRIVE = "barrier.cluster.arrive.aligned;"
WAIT = "barrier.cluster.wait.aligned;"
SYNC = f"{ARRIVE}\n{WAIT}"
PLACE = """
  mov.u32 %r20, %ntid.x;  mad.lo.u32 %r21, %bx, %r20, %tx;  mul.wide.u32 %d20, %r21, 4;
  mov.u32 %r22, %cluster_ctarank;  mov.u32 %r23, %cluster_nctarank;
"""
"""%r20 threads of a block, %r21 this thread, %d20 its offset, %r22 rank, %r23 blocks of its cluster."""
NEXT = """
  add.u32 %r24, %r22, 1;  rem.u32 %r24, %r24, %r23;  sub.u32 %r25, %bx, %r22;  add.u32 %r25, %r25, %r24;
  mad.lo.u32 %r26, %r25, %r20, %tx;  mul.wide.u32 %d21, %r26, 4;
"""
"""%r25 the next block of the cluster, %d21 the offset of the same thread there."""
PASS_ON = (
    PLACE
    + NEXT
    + """
  add.u64 %d1, %z, %d20;  add.u64 %d2, %z, %d21;  add.u64 %d3, %y, %d20;
  mad.lo.u32 %r1, %r21, 7, 3;
  st.global.u32 [%d1], %r1; //@
  {between}
  ld.global.u32 %r2, [%d2]; //@
  st.global.u32 [%d3], %r2;"""
)
"""Every thread writes its word of z, and copies that of the next block of its cluster to y."""


SKEWS = {
    "together": "",
    "blocks apart": "setp.eq.u32 %p5, %r22, 1;  @%p5 bra SOON;  bar.sync 0;  bar.sync 0;\nSOON:",
    "warps apart": """setp.eq.u32 %p5, %warp, 0;  @%p5 bra SOON;
      bar.sync 1, 64;
      bra ON;
    SOON:
      bar.arrive 1, 64;
    ON:""",
    "fences": "fence.acq_rel.gpu;",
}


def words(count: int) -> Buffer:
    return Buffer(np.zeros(count, np.uint32))


def passed_on(blocks: int, block: int, cluster: int) -> Array:
    number = np.arange(blocks * block).reshape(-1, cluster, block)
    return (7 * np.roll(number, -1, axis=1) + 3).reshape(-1)


def pass_on(between: str, *, cluster: int = 2, grid: int = 4, block: int = 64, **more: Any) -> Result:
    args = {"z": words(grid * block), "y": out(grid * block)}
    text = ptx(PASS_ON.format(between=between), "z y", shared=256)
    result = launch(text, args, grid=grid, block=block, cluster=cluster, **more)
    assert np.array_equal(result["y"], passed_on(grid, block, cluster))
    return result


def lines(text: str, mark: str = "//@") -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if mark in line]


# -- launches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "cluster", "blocks", "words_of_it"),
    [
        (6, 4, None, "not a multiple"),
        (8, 0, None, "1 to 8"),
        (8, -2, None, "1 to 8"),
        (16, 16, None, "not portable"),
        (8, 4, [(1, 0, 0), (0, 0, 0), (2, 0, 0)], r"block \(3, 0, 0\) is missing"),
        (8, 2, [(2, 0, 0), (3, 0, 0), (5, 0, 0)], r"block \(4, 0, 0\) is missing"),
    ],
)
def test_launches_that_do_not_fit(grid: int, cluster: int, blocks: Any, words_of_it: str) -> None:
    with pytest.raises(LaunchError, match=words_of_it):
        launch(ptx(""), {}, grid=grid, block=32, cluster=cluster, blocks=blocks)


def test_the_same_launches_that_fit() -> None:
    launch(ptx(""), {}, grid=8, block=32, cluster=4, blocks=[(x, 0, 0) for x in (1, 0, 2, 3)])
    launch(ptx(""), {}, grid=(8, 3), block=32, cluster=8)


@pytest.mark.parametrize(
    ("needs", "fits"), [(".reqnctapercluster 2", (2,)), (".maxclusterrank 4", (1, 2, 4))]
)
def test_what_a_kernel_was_compiled_for(needs: str, fits: tuple[int, ...]) -> None:
    text = ptx("").replace("\n)\n{", f"\n)\n{needs}\n{{")
    assert needs in text
    for cluster in (1, 2, 4, 8):
        if cluster in fits:
            launch(text, {}, grid=8, block=32, cluster=cluster)
        else:
            with pytest.raises(LaunchError, match="cluster"):
                launch(text, {}, grid=8, block=32, cluster=cluster)


# -- special registers ---------------------------------------------------------------------------------------

REGISTERS = [
    f"{name}.{axis}"
    for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
    for axis in "xyz"
]
REGISTERS += ["cluster_ctarank", "cluster_nctarank"]


@pytest.mark.parametrize("cluster", [1, 2, 3])
def test_special_registers(cluster: int) -> None:
    grid = (6, 2, 3)
    count = len(REGISTERS) + 1
    body = f"""
      mov.u32 %r1, %ctaid.y;  mov.u32 %r2, %ctaid.z;  mad.lo.u32 %r3, %r2, 2, %r1;
      mad.lo.u32 %r3, %r3, 6, %bx;
      mul.wide.u32 %d1, %r3, {4 * count};  add.u64 %d1, %d1, %y;  setp.ne.u32 %p1, %tx, 0;  @%p1 bra END;
      mov.pred %p2, %is_explicit_cluster;  selp.u32 %r4, 1, 0, %p2;  st.global.u32 [%d1], %r4;\n"""
    for i, name in enumerate(REGISTERS, 1):
        body += f"mov.u32 %r4, %{name};  st.global.u32 [%d1+{4 * i}], %r4;\n"
    got = launch(ptx(body + "END:", "y"), {"y": out((3, 2, 6, count))}, grid=grid, block=32, cluster=cluster)[
        "y"
    ]
    for z, y, x in np.ndindex(3, 2, 6):
        want = [int(cluster > 1), x // cluster, y, z, 6 // cluster, 2, 3, x % cluster, 0, 0, cluster, 1, 1]
        assert got[z, y, x].tolist() == [*want, x % cluster, cluster]


# -- order ---------------------------------------------------------------------------------------------------

BARRIERS = [
    SYNC,
    "barrier.cluster.arrive;\nbarrier.cluster.wait;",
    "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;",
    "barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;",
    f"{ARRIVE}\nadd.u32 %r3, %r1, 1;\n{WAIT}",
    f"fence.acq_rel.cluster;\nbarrier.cluster.arrive.relaxed.aligned;\n{WAIT}",
    f"setp.eq.u32 %p1, %warp, 1;\n{ARRIVE}\n@%p1 {WAIT}\n@!%p1 {WAIT}",
]


@pytest.mark.parametrize("between", BARRIERS)
@pytest.mark.parametrize("block", [32, 48, 96])
def test_values_pass_between_blocks(between: str, block: int) -> None:
    pass_on(between, block=block)


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_every_size_of_a_cluster(cluster: int) -> None:
    pass_on(SYNC, cluster=cluster, grid=16)


def test_a_cluster_larger_than_a_batch_and_several_batches() -> None:
    """8 blocks of 1024 threads are twice a batch; clusters of 3 blocks of 512 do not fill one evenly."""
    pass_on(SYNC, cluster=8, grid=16, block=1024)
    pass_on(SYNC, cluster=3, grid=39, block=512)


def test_clusters_named_in_any_order() -> None:
    args = {"z": words(8 * 32), "y": Buffer(np.zeros(8 * 32, np.uint32))}
    chosen = [(7, 0, 0), (2, 0, 0), (6, 0, 0), (3, 0, 0)]
    text = ptx(PASS_ON.format(between=SYNC), "z y")
    got = launch(text, args, grid=8, block=32, cluster=2, blocks=chosen)["y"].reshape(8, 32)
    want = passed_on(8, 32, 2).reshape(8, 32)
    assert np.array_equal(got[[2, 3, 6, 7]], want[[2, 3, 6, 7]])
    assert not got[[0, 1, 4, 5]].any()


def races(between: str, **more: Any) -> SimulationError:
    """The race of PASS_ON, with both parties named."""
    with pytest.raises(GlobalRace) as caught:
        pass_on(between, **more)
    where = lines(ptx(PASS_ON.format(between=between), "z y", shared=256))
    fault = caught.value
    assert fault.ptx_line in where
    assert f"line {where[0]}" in (fault.other or "") or f"line {where[1]}" in (fault.other or "")
    return fault


@pytest.mark.parametrize(
    "between",
    [
        "",
        "bar.sync 0;",
        "bar.sync 0;" + SKEWS["warps apart"],
        "fence.acq_rel.cluster;",
        ARRIVE,
        f"barrier.cluster.arrive.relaxed.aligned;\n{WAIT}",
        f"""setp.eq.u32 %p1, %r22, 1;  @%p1 bra HERE;
      barrier.cluster.arrive.relaxed.aligned;
      {WAIT}
      bra THERE;
    HERE:
      {SYNC}
    THERE:""",
        f"barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;\n{SYNC.replace('arrive', 'arrive.relaxed')}",
        f"barrier.cluster.arrive.relaxed.aligned;\nfence.acq_rel.gpu;\n{WAIT}",
        BARRIERS[-1].replace("arrive", "arrive.relaxed"),
    ],
)
def test_nothing_orders_blocks_without_the_whole_barrier(between: str) -> None:
    races(between)


def test_blocks_of_different_clusters_are_not_ordered() -> None:
    body = PASS_ON.replace("sub.u32 %r25, %bx, %r22;  add.u32 %r25, %r25, %r24;", "xor.b32 %r25, %bx, 2;")
    assert "xor" in body
    text = ptx(body.format(between=SYNC), "z y")
    args = {"z": words(128), "y": out(128)}
    launch(text, args, grid=4, block=32, cluster=4)
    with pytest.raises(GlobalRace):
        launch(text, args, grid=4, block=32, cluster=2)


@pytest.mark.parametrize("skew", ["together", "warps apart"])
@pytest.mark.parametrize("last", [2, 3])
@pytest.mark.parametrize("kind", ["ld.global.u32 %r1, [%z]", "red.global.add.u32 [%z], 1"])
def test_every_reader_counts_beyond_a_barrier(skew: str, last: int, kind: str) -> None:
    """Two blocks access a word in turn, the last of the own cluster: the barrier orders it alone."""
    body = (
        PLACE
        + f"""
      setp.eq.u32 %p1, %tx, 40;  setp.eq.u32 %p2, %bx, {{first}};  setp.eq.u32 %p3, %bx, {last};
      and.pred %p2, %p2, %p1;  and.pred %p3, %p3, %p1;
      @%p2 {kind};
      @%p3 {kind};
      {SKEWS[skew]}
      {SYNC}
      setp.ne.u32 %p1, %tx, 0;  setp.ne.u32 %p2, %bx, 2;  or.pred %p1, %p1, %p2;
      @%p1 bra END;
      st.global.u32 [%z], %tx;
    END:"""
    )
    launch(ptx(body.format(first=5 - last), "z"), {"z": words(1)}, grid=4, block=64, cluster=2)
    for first in (0, 1):
        launch(ptx(body.format(first=first), "z"), {"z": words(1)}, grid=4, block=64, cluster=4)
        with pytest.raises(GlobalRace):
            launch(ptx(body.format(first=first), "z"), {"z": words(1)}, grid=4, block=64, cluster=2)


def test_readers_of_two_clusters_in_one_instruction() -> None:
    body = (
        PLACE
        + f"""
      setp.ne.u32 %p1, %tx, 0;  sub.u32 %r1, %bx, 1;  setp.gt.u32 %p2, %r1, 1;  or.pred %p2, %p1, %p2;
      @!%p2 ld.global.u32 %r2, [%z];
      {SYNC}
      setp.ne.u32 %p3, %r21, 0;
      @!%p3 st.global.u32 [%z], %tx;"""
    )
    launch(ptx(body, "z"), {"z": words(1)}, grid=4, block=32, cluster=4)
    with pytest.raises(GlobalRace):
        launch(ptx(body, "z"), {"z": words(1)}, grid=4, block=32, cluster=2)


@pytest.mark.parametrize("told", ["bar.{} 1, 64;", "bar.{} 0;", ""])
def test_what_a_warp_learnt_before_it_arrived_counts(told: str) -> None:
    """Warp 0 writes after its own arrival; warp 1 arrives when it knows of that, or does not."""
    body = (
        PLACE
        + """
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra LATE;
      barrier.cluster.arrive.aligned;
      setp.eq.u32 %p2, %r21, 0;
      @%p2 st.global.u32 [%z], 7;
      {arrive}
      bra JOIN;
    LATE:
      {sync}
      barrier.cluster.arrive.aligned;
    JOIN:
      barrier.cluster.wait.aligned;
      setp.ne.u32 %p3, %r22, 1;  setp.lt.u32 %p4, %tx, 63;  or.pred %p3, %p3, %p4;
      @!%p3 ld.global.u32 %r1, [%z];"""
    )
    text = ptx(
        body.format(arrive=told.format("arrive" if "1" in told else "sync"), sync=told.format("sync")), "z"
    )
    if told:
        launch(text, {"z": words(1)}, grid=2, block=64, cluster=2)
        return
    with pytest.raises(GlobalRace):
        launch(text, {"z": words(1)}, grid=2, block=64, cluster=2)


def test_shared_memory_of_the_own_block_is_ordered() -> None:
    body = """
      shl.b32 %r1, %tx, 2;  xor.b32 %r2, %r1, 252;  add.u32 %r1, %r1, %sm;  add.u32 %r2, %r2, %sm;
      st.shared.u32 [%r1], %tx; //@
      {between}
      ld.shared.u32 %r3, [%r2]; //@
      mov.u32 %r4, %ntid.x;  mad.lo.u32 %r4, %bx, %r4, %tx;  mul.wide.u32 %d1, %r4, 4;  add.u64 %d1, %d1, %y;
      st.global.u32 [%d1], %r3;"""
    for between in (SYNC, f"{ARRIVE}\nadd.u32 %r9, %r1, 1;\n{WAIT}"):
        got = launch(
            ptx(body.format(between=between), "y", shared=256),
            {"y": out((4, 64))},
            grid=4,
            block=64,
            cluster=2,
        )
        assert (got["y"] == np.arange(64)[::-1]).all()
    for between in (ARRIVE, SYNC.replace("arrive", "arrive.relaxed")):
        with pytest.raises(SharedRace):
            launch(
                ptx(body.format(between=between), "y", shared=256),
                {"y": out((4, 64))},
                grid=4,
                block=64,
                cluster=2,
            )


def test_atomics_before_the_barrier_loads_behind_it(rng: np.random.Generator) -> None:
    """A maximum over the cluster; the word is reset behind a second barrier and used again."""
    x = rng.integers(1, 2**31, (3, 6, 64)).astype(np.uint32)
    body = (
        PLACE
        + """
      mov.u32 %r1, %clusterid.x;  mul.wide.u32 %d1, %r1, 4;  add.u64 %d1, %d1, %z;  mov.u32 %r2, 0;
      add.u64 %d2, %x, %d20;  add.u64 %d3, %y, %d20;
    ROUND:
      ld.global.u32 %r3, [%d2];
      red.global.max.u32 [%d1], %r3;
      {sync}
      ld.global.u32 %r4, [%d1];
      st.global.u32 [%d3], %r4;
      {second}
      setp.ne.u32 %p1, %tx, 0;  setp.ne.u32 %p2, %r22, 1;  or.pred %p1, %p1, %p2;
      @%p1 bra RESET;
      st.global.u32 [%d1], 0;
    RESET:
      {sync}
      add.u64 %d2, %d2, 1536;  add.u64 %d3, %d3, 1536;
      add.u32 %r2, %r2, 1;  setp.lt.u32 %p3, %r2, 3;  @%p3 bra ROUND;"""
    )

    def run(**parts: str) -> Array:
        args = {"x": ro(x), "y": out((3, 6, 64)), "z": words(2)}
        return launch(ptx(body.format(**parts), "x y z"), args, grid=6, block=64, cluster=3)["y"]

    want = np.repeat(x.reshape(3, 2, 192).max(axis=2), 192).reshape(3, 6, 64)
    assert np.array_equal(run(sync=SYNC, second=SYNC), want)
    with pytest.raises(GlobalRace):
        run(sync=SYNC, second="")
    with pytest.raises(GlobalRace):
        run(sync="bar.sync 0;", second="bar.sync 0;")


LOOP = (
    PLACE
    + NEXT
    + """
  add.u64 %d1, %z, %d20;  add.u64 %d2, %z, %d21;  add.u64 %d3, %y, %d20;  mov.u32 %r1, %r21;  mov.u32 %r5, 0;
PHASE:
  {skew}
  st.global.u32 [%d1], %r1; //@
  {first}
  ld.global.u32 %r2, [%d2]; //@
  mad.lo.u32 %r1, %r2, 3, 1;
  {second}
  add.u32 %r5, %r5, 1;  setp.lt.u32 %p1, %r5, 3;  @%p1 bra PHASE;
  st.global.u32 [%d3], %r1;"""
)
"""Three times every thread takes the word of the next block, in one buffer."""


@pytest.mark.parametrize("sync", [SYNC, f"{ARRIVE}\nadd.u32 %r9, %r1, 1;\n{WAIT}", BARRIERS[1]])
@pytest.mark.parametrize("skew", SKEWS)
def test_three_phases_in_a_loop(skew: str, sync: str) -> None:
    def run(first: str, second: str) -> Array:
        text = ptx(LOOP.format(skew=SKEWS[skew], first=first, second=second), "z y")
        return launch(text, {"z": words(6 * 64), "y": out(6 * 64)}, grid=6, block=64, cluster=3)["y"]

    want = np.arange(6 * 64).reshape(2, 3, 64)
    for _ in range(3):
        want = 3 * np.roll(want, -1, axis=1) + 1
    assert np.array_equal(run(sync, sync), want.reshape(-1))
    for first, second in ((sync, "bar.sync 0;"), ("bar.sync 0;", sync)):
        with pytest.raises(GlobalRace):
            run(first, second)


SPLIT = (
    PLACE
    + NEXT
    + """
  add.u64 %d1, %z, %d20;  add.u64 %d2, %z, %d21;
  add.u64 %d3, %x, %d20;  add.u64 %d4, %x, %d21;
  st.global.u32 [%d1], %r21;
  {skew}
  {arrive}
  st.global.u32 [%d3], %r21;
  ld.global.u32 %r1, [%d3];
  {wait}
  ld.global.u32 %r2, [%d2];
  {read}"""
)


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("aligned", [".aligned", ""])
def test_work_between_arrive_and_wait_is_not_ordered(skew: str, aligned: str) -> None:
    parts = {
        "skew": SKEWS[skew],
        "arrive": f"barrier.cluster.arrive{aligned};",
        "wait": f"barrier.cluster.wait{aligned};",
    }

    def run(read: str) -> None:
        args = {"z": words(128), "x": words(128)}
        launch(ptx(SPLIT.format(**parts, read=read), "z x"), args, grid=2, block=64, cluster=2)

    run("ld.global.u32 %r3, [%d3];")
    run(f"{SYNC}\nld.global.u32 %r3, [%d4];")
    with pytest.raises(GlobalRace):
        run("ld.global.u32 %r3, [%d4];")
    with pytest.raises(GlobalRace):
        run("st.global.u32 [%d4], %r21;")


def test_what_was_read_between_arrive_and_wait_may_not_be_written_behind_it() -> None:
    """Block 1 reads its word before it arrives, block 0 between arrival and wait; both write behind it."""
    body = (
        PLACE
        + """
      mov.u32 %r6, 0;
      setp.{first}.u32 %p1, %r22, 0;  setp.{second}.u32 %p2, %r22, 0;
      @%p1 ld.global.u32 %r1, [%z];
      barrier.cluster.arrive.aligned;
      @%p2 ld.global.u32 %r1, [%z];
      barrier.cluster.wait.aligned;
      setp.eq.u32 %p3, %r21, 0;
      @%p3 st.global.u32 [%z], %r6;"""
    )
    fine = ptx(body.format(first="ge", second="lt"), "z")
    launch(fine, {"z": words(1)}, grid=2, block=32, cluster=2)
    bad = ptx(body.format(first="eq", second="ne"), "z")
    with pytest.raises(GlobalRace):
        launch(bad, {"z": words(1)}, grid=2, block=32, cluster=2)


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_own_reads_between_arrive_and_wait_hide_none_of_others(cluster: int, late: bool) -> None:
    """A word that another warp read as well, before it arrived, or (``late``) behind its arrival."""
    reads = "setp.ne.u32 %p1, %warp, 0;  @%p1 ld.global.u32 %r1, [%d1];"
    text = ptx(
        f"""
        mul.wide.u32 %d1, %bx, 4;  add.u64 %d1, %z, %d1;
        {"" if late else reads}
        {ARRIVE}
        {reads if late else ""}
        setp.eq.u32 %p2, %tx, 0;  @%p2 ld.global.u32 %r1, [%d1];
        {WAIT}
        @%p2 st.global.u32 [%d1], 7;""",
        "z",
    )
    if late:
        with pytest.raises(GlobalRace):
            launch(text, {"z": words(2)}, grid=2, block=64, cluster=cluster)
    else:
        assert launch(text, {"z": words(2)}, grid=2, block=64, cluster=cluster)["z"].tolist() == [7, 7]


@pytest.mark.parametrize("other", ["bar.sync 0;", "bar.warp.sync -1;"])
def test_a_warp_that_arrived_may_go_on_working_before_others_come(other: str) -> None:
    """Warps arrive at different moments, and each works on its own between: all of it before is ordered."""
    body = (
        PLACE
        + NEXT
        + """
      add.u64 %d1, %z, %d20;  add.u64 %d2, %z, %d21;  add.u64 %d3, %y, %d20;
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra LATE;
      st.global.u32 [%d1], %r21;
      barrier.cluster.arrive.aligned;
      st.global.u32 [%d3], 5;
      bra JOIN;
    LATE:
      st.global.u32 [%d3], 6;
      st.global.u32 [%d1], %r21;
      barrier.cluster.arrive.aligned;
    JOIN:
      {other}
      barrier.cluster.wait.aligned;
      ld.global.u32 %r2, [%d2];  ld.global.u32 %r3, [%d3];  add.u32 %r2, %r2, %r3;
      st.global.u32 [%d3], %r2;"""
    )
    args = {"z": words(256), "y": out(256)}
    got = launch(ptx(body.format(other=other), "z y"), args, grid=4, block=64, cluster=2)["y"]
    number = np.arange(256).reshape(2, 2, 64)
    assert np.array_equal(got.reshape(2, 2, 64), np.roll(number, -1, axis=1) + np.repeat([5, 6], 32))


@pytest.mark.parametrize(
    ("reader", "writer", "other", "fine"),
    [(0, 1, 1, True), (1, 1, 1, True), (0, 0, 1, False), (1, 0, 1, False), (0, 1, 0, True), (1, 0, 0, False)],
)
def test_what_an_early_warp_did_before_a_late_one_arrived(
    reader: int, writer: int, other: int, fine: bool
) -> None:
    """Warp 0 writes after its own arrival, warp 1 before its own, which is later: only that is ordered.

    Behind the barrier warp ``reader`` of block 0 reads what warp ``writer`` of block ``other`` wrote.
    """
    body = (
        PLACE
        + f"""
      add.u64 %d1, %z, %d20;
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra LATE;
      barrier.cluster.arrive.aligned;
      st.global.u32 [%d1], 5;
      bra JOIN;
    LATE:
      st.global.u32 [%d1], 6;
      barrier.cluster.arrive.aligned;
    JOIN:
      barrier.cluster.wait.aligned;
      setp.ne.u32 %p2, %r21, {32 * reader};
      @!%p2 ld.global.u32 %r1, [%z+{4 * (64 * other + 32 * writer)}];"""
    )
    args = {"z": words(256)}
    if fine:
        launch(ptx(body, "z"), args, grid=4, block=64, cluster=2)
        return
    with pytest.raises(GlobalRace):
        launch(ptx(body, "z"), args, grid=4, block=64, cluster=2)


def test_a_block_barrier_passes_on_what_one_warp_waited_for() -> None:
    """Only warp 0 of each block has waited when warp 1 is told by a barrier of the block."""
    body = (
        PLACE
        + NEXT
        + """
      add.u64 %d1, %z, %d20;  add.u64 %d2, %z, %d21;  add.u64 %d3, %y, %d20;
      st.global.u32 [%d1], %r21;
      barrier.cluster.arrive.aligned;
      setp.ne.u32 %p1, %warp, 0;  @%p1 bra LATE;
      barrier.cluster.wait.aligned;
      {told}
      ld.global.u32 %r2, [%d2];
      bra END;
    LATE:
      {told}
      ld.global.u32 %r2, [%d2];
      barrier.cluster.wait.aligned;
    END:
      st.global.u32 [%d3], %r2;"""
    )

    def run(told: str) -> Array:
        args = {"z": words(256), "y": out(256)}
        return launch(ptx(body.format(told=told), "z y"), args, grid=4, block=64, cluster=2)["y"]

    want = np.roll(np.arange(256).reshape(2, 2, 64), -1, axis=1).reshape(-1)
    for told in ("bar.sync 0;", "bar.sync 1, 64;"):
        assert np.array_equal(run(told), want)
    with pytest.raises(GlobalRace):
        run("")


@pytest.mark.parametrize("grid", [4, 64], ids=["one batch", "several batches"])
def test_a_flag_passes_on_what_a_cluster_barrier_ordered(grid: int) -> None:
    """The last cluster reads what all blocks wrote: a barrier of the cluster, then an atomic of one."""
    body = (
        PLACE
        + """
      add.u64 %d1, %z, %d20;  mov.u32 %r10, %nctaid.x;
      st.global.u32 [%d1], %r21;
      {sync}
      setp.ne.u32 %p1, %r22, 0;  setp.ne.u32 %p2, %tx, 0;  or.pred %p1, %p1, %p2;
      @%p1 bra END;
      {fence}
      atom.global.add.u32 %r1, [%c], 1;
      fence.acq_rel.gpu;
      div.u32 %r2, %r10, %r23;  sub.u32 %r2, %r2, 1;  setp.ne.u32 %p3, %r1, %r2;
      @%p3 bra END;
      mov.u32 %r3, 0;  mov.u32 %r4, 0;  mov.u64 %d2, %z;  mul.lo.u32 %r5, %r10, %r20;
    SUM:
      ld.global.u32 %r6, [%d2];  add.u32 %r3, %r3, %r6;  add.u64 %d2, %d2, 4;
      add.u32 %r4, %r4, 1;  setp.lt.u32 %p4, %r4, %r5;  @%p4 bra SUM;
      st.global.u32 [%y], %r3;
    END:"""
    )
    block = 64 if grid == 4 else 128

    def run(sync: str, fence: str) -> int:
        args = {"z": words(grid * block), "c": words(1), "y": out(1)}
        return int(
            launch(
                ptx(body.format(sync=sync, fence=fence), "z c y"), args, grid=grid, block=block, cluster=2
            )["y"][0]
        )

    total = grid * block
    fence = "fence.acq_rel.gpu;"
    for before, behind in (
        ("", fence),
        (fence, ""),
    ):  # every thread's fence counts, or that of the one behind
        assert run(before + SYNC, behind) == total * (total - 1) // 2
    with pytest.raises(GlobalRace):
        run("bar.sync 0;", fence)


@pytest.mark.parametrize("sync", [SYNC, f"{ARRIVE}\nadd.u32 %r9, %tx, 1;\n{WAIT}"])
@pytest.mark.parametrize("grid", [4, 64], ids=["one batch", "several batches"])
def test_a_cluster_barrier_passes_on_what_a_flag_told(grid: int, sync: str) -> None:
    """Block 0 raises a flag, the last but one waits for it, the last reads what block 0 wrote."""
    body = (
        PLACE
        + f"""
      mov.u32 %r10, %nctaid.x;  sub.u32 %r10, %r10, %bx;  setp.ne.u32 %p1, %tx, 0;
      setp.ne.u32 %p2, %bx, 0;  or.pred %p2, %p2, %p1;
      @%p2 bra FOLLOW;
      st.global.u32 [%z], 77;
      fence.acq_rel.gpu;
      st.relaxed.gpu.global.u32 [%c], 1;
    FOLLOW:
      setp.ne.u32 %p3, %r10, 2;  or.pred %p3, %p3, %p1;
      @%p3 bra MEET;
    SPIN:
      {{look}}
      setp.eq.u32 %p4, %r1, 0;  @%p4 bra SPIN;
    MEET:
      {sync}
      setp.ne.u32 %p3, %r10, 1;  or.pred %p3, %p3, %p1;
      @%p3 bra END;
      ld.global.u32 %r1, [%z];  st.global.u32 [%y], %r1;
    END:"""
    )

    def run(look: str) -> int:
        args = {"z": words(1), "c": words(1), "y": out(1)}
        text = ptx(body.format(look=look), "z c y")
        return int(launch(text, args, grid=grid, block=128, cluster=2)["y"][0])

    assert run("ld.acquire.gpu.global.u32 %r1, [%c];") == 77
    with pytest.raises(GlobalRace):
        run("mov.u32 %r1, 1;")


def test_exited_threads_do_not_count() -> None:
    """Block 1 and half of the lanes of block 0 leave at once; the others need not wait for them."""
    body = """
      setp.eq.u32 %p1, %bx, 1;  @%p1 ret;  setp.ge.u32 %p1, %lane, 16;  @%p1 ret;
      barrier.cluster.arrive.aligned;
      barrier.cluster.wait.aligned;
      mul.wide.u32 %d1, %tx, 4;  add.u64 %d1, %d1, %z;  st.global.u32 [%d1], 9;"""
    got = launch(ptx(body, "z"), {"z": words(64)}, grid=2, block=64, cluster=2)["z"]
    assert np.array_equal(got, np.where(np.arange(64) % 32 < 16, 9, 0))


def test_threads_that_leave_while_others_wait() -> None:
    """Block 1 ends late and never arrives: its end lets block 0 go."""
    body = """
      setp.eq.u32 %p1, %bx, 1;  @%p1 bra LATE;
      barrier.cluster.arrive.aligned;
      barrier.cluster.wait.aligned;
      ld.global.u32 %r1, [%z];  add.u32 %r1, %r1, 1;  bar.sync 0;
      setp.eq.u32 %p2, %tx, 0;  @%p2 st.global.u32 [%z], %r1;
      ret;
    LATE:
      setp.eq.u32 %p2, %tx, 0;  @%p2 st.global.u32 [%z], 4;"""
    assert launch(ptx(body, "z"), {"z": words(1)}, grid=2, block=64, cluster=2)["z"] == [5]


def test_parts_of_a_warp_arrive_at_different_places() -> None:
    body = PASS_ON.format(
        between="""
      setp.lt.u32 %p1, %lane, 10;  @%p1 bra LOW;
      barrier.cluster.arrive{a};
      bra ON;
    LOW:
      barrier.cluster.arrive{a};
    ON:
      @%p1 barrier.cluster.wait{w};
      @!%p1 barrier.cluster.wait{w};"""
    )
    args = {"z": words(256), "y": out(256)}
    text = ptx(body.replace("{a}", "").replace("{w}", ""), "z y")
    assert np.array_equal(launch(text, args, grid=4, block=64, cluster=2)["y"], passed_on(4, 64, 2))
    for a, w in ((".aligned", ""), ("", ".aligned")):
        with pytest.raises(DivergedCollective) as caught:
            launch(ptx(body.replace("{a}", a).replace("{w}", w), "z y"), args, grid=4, block=64, cluster=2)
        assert "barrier.cluster" in (caught.value.instruction or "")


# -- barriers that go wrong ----------------------------------------------------------------------------------

RANK = "mov.u32 %r22, %cluster_ctarank;  setp.eq.u32 %p1, %r22, 1;\n"
ODD = "setp.eq.u32 %p1, %warp, 1;\n"
WRONG: dict[str, tuple[str, type[SimulationError], str]] = {
    "second arrival": (f"{ARRIVE}\n{ARRIVE} //@\n{WAIT}", Deadlock, "second time before it waits"),
    "second arrival, not aligned": (
        "barrier.cluster.arrive;\nbarrier.cluster.arrive; //@\nbarrier.cluster.wait;",
        Deadlock,
        "second time before it waits",
    ),
    "second arrival of one block": (
        RANK + f"{ARRIVE}\n@%p1 bra AGAIN;\n{WAIT}\nret;\nAGAIN:\n{ARRIVE} //@\n{WAIT}",
        Deadlock,
        "second time before it waits",
    ),
    "second arrival before others come": (
        RANK + f"@%p1 bra LATE;\n{ARRIVE}\n{ARRIVE} //@\n{WAIT}\nret;\nLATE:\n{SYNC}",
        Deadlock,
        "second time before it waits",
    ),
    "wait alone": (f"{WAIT} //@", Deadlock, "without having arrived"),
    "wait twice": (f"{SYNC}\n{WAIT} //@", Deadlock, "without having arrived"),
    "one block waits alone": (
        RANK + f"@%p1 bra ON;\n{ARRIVE}\nON:\n{WAIT} //@",
        Deadlock,
        "without having arrived",
    ),
    "one block never arrives": (
        RANK + f"@%p1 bra STAY;\n{ARRIVE}\n{WAIT} //@\nret;\nSTAY:\nbar.sync 1, 96; // there",
        Deadlock,
        r"all its 4 warps, 2 have arrived.*missing: warp 0 of block \(1, 0, 0\).*PTX lines \d+, {there}\)",
    ),
    "one warp never arrives": (
        ODD + f"@%p1 bra STAY;\n{ARRIVE}\n{WAIT} //@\nret;\nSTAY:\nbar.sync 0; // there",
        Deadlock,
        r"all its 4 warps, 2 have arrived.*missing: warp 1 of block \(0, 0, 0\).*PTX lines \d+, {there}\)",
    ),
    "one block runs in circles": (
        RANK + f"@%p1 bra STAY;\n{ARRIVE}\n{WAIT}\nret;\nSTAY:\nbra STAY; //@",
        Deadlock,
        "endless loop",
    ),
    "part of a warp": (
        f"setp.lt.u32 %p1, %lane, 4;  @%p1 bra ON;\n{ARRIVE} //@\nON:\n{WAIT} //@",
        DivergedCollective,
        "part of a warp",
    ),
    "a predicate of part of a warp": (
        f"setp.lt.u32 %p1, %lane, 4;  @%p1 {ARRIVE} //@\n{WAIT}",
        DivergedCollective,
        "part of a warp only",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_barriers_that_go_wrong(name: str) -> None:
    body, kind, message = WRONG[name]
    text = ptx(body)
    there = lines(text, "// there")
    with pytest.raises(kind, match=message.format(there=there[0]) if there else message) as caught:
        launch(text, {}, grid=4, block=64, cluster=2, max_steps=20_000)
    assert caught.value.ptx_line in lines(text)


def test_the_same_barriers_that_go_right() -> None:
    sound = [
        SYNC,
        SYNC + SYNC,
        RANK + f"{ARRIVE}\n@%p1 bra AGAIN;\n{WAIT}\n{SYNC}\nret;\nAGAIN:\n{WAIT}\n{ARRIVE}\n{WAIT}",
        RANK + f"@%p1 bra STAY;\n{ARRIVE}\n{WAIT}\nret;\nSTAY:\nbar.sync 1, 64;\n{SYNC}",
        ODD + f"@%p1 bra STAY;\n{ARRIVE}\nbar.sync 0;\n{WAIT}\nret;\nSTAY:\nbar.sync 0;\n{SYNC}",
        f"setp.lt.u32 %p1, %warp, 1;  @%p1 {ARRIVE}\n@!%p1 {ARRIVE}\n{WAIT}",
        ARRIVE,
    ]
    for body in sound:
        launch(ptx(body), {}, grid=4, block=64, cluster=2)


@pytest.mark.parametrize(
    "code",
    [
        "barrier.cluster.sync;",
        "barrier.cluster.arrive.acquire;",
        "barrier.cluster.wait.relaxed;",
        "bar.cluster.arrive;",
        "barrier.cluster.wait 0;",
    ],
)
def test_other_barriers_of_clusters_do_not_exist(code: str) -> None:
    with pytest.raises(UnknownInstruction, match="is not implemented"):
        launch(ptx(code), {}, grid=2, block=32, cluster=2)


def test_arrivals_and_waits_are_instructions_and_no_block_barriers() -> None:
    counters = pass_on(SYNC, grid=4, block=64).report.counters
    assert counters.barriers == 0
    assert counters.block_barriers == 0

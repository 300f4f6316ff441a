"""Loads, stores, parameters, address spaces, asynchronous copies and atomics."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from simulator_counts import device
from simulator_kit import check, launch, out, ptx, ro

from fftgen.simulator import (
    DeviceMemory,
    InvalidPolicy,
    Misaligned,
    OutOfBounds,
    SimulationError,
    UninitializedRead,
    UnknownInstruction,
    parse,
    simulate,
)

Array = np.ndarray[Any, Any]
INDEX4 = "mul.wide.u32 %d0, %tx, 4;"


def names(count: int, register: str, first: int = 0) -> str:
    listed = ", ".join(f"%{register}{first + i}" for i in range(count))
    return f"{{{listed}}}" if count > 1 else listed


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("kind", "register", "count"), [
    ("b8", "h", 1), ("b8", "h", 2), ("b8", "h", 4), ("b16", "h", 1), ("b16", "h", 2), ("b16", "h", 4),
    ("b32", "r", 1), ("b32", "r", 2), ("b32", "r", 4), ("f32", "f", 4), ("b64", "d", 1), ("b64", "d", 2),
])  # fmt: skip
def test_vector_loads_and_stores(
    kind: str, register: str, count: int, space: str, rng: np.random.Generator
) -> None:
    """Every element of a vector access goes to its register and back, reversed here so that order shows."""
    size = int(kind[1:]) // 8 * count
    x = rng.integers(0, 256, 64 * size).astype(np.uint8)
    vector = f".v{count}" if count > 1 else ""
    base = 20
    loaded = names(count, register, base)
    listed = [f"%{register}{base + i}" for i in reversed(range(count))]
    reverse = f"{{{', '.join(listed)}}}" if count > 1 else listed[0]
    through = f"""
      mul.lo.u32 %r0, %tx, {size};  add.u32 %r0, %r0, %sm;
      st.shared{vector}.{kind} [%r0], {loaded};  ld.shared{vector}.{kind} {loaded}, [%r0];"""
    body = f"""
      mul.wide.u32 %d0, %tx, {size};  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      ld.global{vector}.{kind} {loaded}, [%d1];
      {through if space == "shared" else ""}
      st.global{vector}.{kind} [%d2], {reverse};"""
    got = launch(
        ptx(body, "x y", shared=64 * size if space == "shared" else 0),
        {"x": ro(x), "y": out(len(x), np.uint8)},
        block=64,
    )
    want = x.reshape(64, count, -1)[:, ::-1].ravel()
    check(got["y"], want, f"{space} {vector}.{kind}", byte=np.arange(len(x)))


@pytest.mark.parametrize(
    ("kind", "wide"),
    [
        ("s8", "u32"),
        ("u8", "u32"),
        ("s16", "u32"),
        ("s8", "u64"),
        ("s32", "u64"),
        ("u32", "u64"),
        ("s16", "u64"),
    ],
)
def test_narrow_loads_extend_into_wide_registers(kind: str, wide: str, rng: np.random.Generator) -> None:
    size = int(kind[1:]) // 8
    x = rng.integers(0, 256, 32 * size).astype(np.uint8)
    register, step = ("r20", 4) if wide == "u32" else ("d20", 8)
    body = f"""
      mul.wide.u32 %d0, %tx, {size};  add.u64 %d1, %x, %d0;  mul.wide.u32 %d2, %tx, {step};
      add.u64 %d3, %y, %d2;
      ld.global.{kind} %{register}, [%d1];  st.global.{wide} [%d3], %{register};"""
    got = launch(ptx(body, "x y"), {"x": ro(x), "y": out(32, f"u{step}")})["y"]
    sign = "i" if kind[0] == "s" else "u"
    check(
        got,
        x.view(f"{sign}{size}").astype(f"{sign}{step}").view(f"u{step}"),
        f"ld.{kind}",
        lane=np.arange(32),
    )


def test_store_of_a_wide_register_keeps_the_low_bytes() -> None:
    body = """
      mul.wide.u32 %d0, %tx, 2;  add.u64 %d1, %y, %d0;
      mad.lo.u32 %r0, %tx, 65537, 70000;  st.global.u16 [%d1], %r0;"""
    got = launch(ptx(body, "y"), {"y": out(32, np.uint16)})["y"]
    check(got, (np.arange(32) * 65537 + 70000).astype(np.uint16), "st.u16", lane=np.arange(32))


@pytest.mark.parametrize(
    "cache",
    [
        "ld.global.nc",
        "ld.global.L1::no_allocate",
        "ld.global.cg",
        "ld.volatile.global",
        "ld.relaxed.gpu.global",
        "ld",
    ],
)
def test_load_flavours_read_the_same(cache: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      {cache}.u32 %r0, [%d1];  st.global.cs.u32 [%d2], %r0;"""
    assert np.array_equal(launch(ptx(body, "x y"), {"x": ro(x), "y": out(32)})["y"], x)


HINTED = f"""
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %r0, [%d1], %d3;
      st.global.L2::cache_hint.u32 [%d2], %r0, %d3;"""


@pytest.mark.parametrize(
    "policy",
    [
        "createpolicy.fractional.L2::evict_first.b64 %d3;",
        "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %d3, 0.5;",
    ],
)
def test_a_cache_policy_changes_no_value(policy: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    assert np.array_equal(launch(ptx(policy + HINTED, "x y"), {"x": ro(x), "y": out(32)})["y"], x)


@pytest.mark.parametrize(
    ("body", "fault", "text"),
    [
        (HINTED, UninitializedRead, "%d3"),
        ("mov.u64 %d3, 0;" + HINTED, InvalidPolicy, "no policy that createpolicy made"),
        ("mov.u64 %d3, 0; red.global.add.L2::cache_hint.u32 [%y], %tx, %d3;", InvalidPolicy, "no policy"),
        (
            ".shared .align 16 .b32 words[4]; mov.u64 %d3, 0; mov.u32 %r1, words;"
            "cp.async.cg.shared.global.L2::cache_hint [%r1], [%x], 16, %d3;",
            InvalidPolicy,
            "no policy",
        ),
        ("createpolicy.range.global.L2::evict_first.b64 %d3, [%x], 4, 4;", UnknownInstruction, "fractional"),
        (f"{INDEX4} add.u64 %d1, %x, %d0; ld.global.u32 %r0, [%d1], %d3;", UnknownInstruction, "3 operands"),
        ("st.global.L2::cache_hint.u32 [%y], %tx;", UnknownInstruction, "2 operands"),
    ],
)
def test_a_cache_hint_without_its_policy_stops(body: str, fault: type[Exception], text: str) -> None:
    with pytest.raises(fault, match=text):
        launch(ptx(body, "x y"), {"x": ro(np.arange(32, dtype=np.uint32)), "y": out(32)})


def test_address_forms(rng: np.random.Generator) -> None:
    """Register, register plus signed offset, named variable, variable plus offset."""
    x = rng.integers(0, 2**32, 64, np.uint64).astype(np.uint32)
    body = f"""
      .shared .align 16 .b32 words[64];
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      ld.global.u32 %r0, [%d1+128];  add.u64 %d3, %d1, 64;  ld.global.u32 %r1, [%d3+-64];
      mov.u32 %r2, words;  shl.b32 %r3, %tx, 2;  add.u32 %r3, %r2, %r3;
      st.shared.u32 [%r3], %r0;  st.shared.u32 [%r3+128], %r1;
      bar.sync 0;
      ld.shared.u32 %r4, [words+252];  ld.shared.u32 %r5, [words];
      add.u32 %r6, %r4, %r5;  st.global.u32 [%d2], %r6;"""
    got = launch(ptx(body, "x y"), {"x": ro(x), "y": out(32)})["y"]
    assert (got == x[31:32] + x[32:33]).all()


def test_parameters_of_every_width_and_members_of_a_struct(rng: np.random.Generator) -> None:
    x = rng.standard_normal(8).astype(np.float32)
    body = """
      ld.param.u64 %d1, [k_s];  cvta.to.global.u64 %d1, %d1;  ld.param.f32 %f1, [k_s+8];
      ld.param.s16 %r1, [k_s+12];
      ld.param.u8 %r2, [k_s+14];  ld.param.v2.u32 {%r3, %r4}, [k_s+16];  ld.param.f64 %g1, [k_s+24];
      ld.global.f32 %f2, [%d1+4];
      fma.rn.f32 %f3, %f1, %f2, 0f3F800000;
      add.u32 %r5, %r3, %r4;
      setp.ne.u32 %p1, %tx, 0;  @%p1 ret;
      st.global.f32 [%y], %f3;  st.global.u32 [%y+4], %r1;  st.global.u32 [%y+8], %r2;
      st.global.u32 [%y+12], %r5;
      st.global.f64 [%y+16], %g1;  st.global.u32 [%y+24], %n;
      cvt.u32.u16 %r7, %q;  st.global.u32 [%y+28], %r7;"""
    text = ptx(body, "s:bytes[32]:8 n:u32 q:u16 y")
    memory, y = DeviceMemory(), np.zeros(32, np.uint8)
    ax, ay = memory.bind("x", x, writable=False), memory.bind("y", y, writable=True, initialized=False)
    s = struct.pack("<QfhBxIId", ax, 2.5, -3, 200, 7, 2**32 - 2, -1.25)
    params = [s, struct.pack("<I", 0xDEADBEEF), struct.pack("<H", 65000), struct.pack("<Q", ay)]
    simulate(parse(text), "k", grid=(1, 1, 1), block=(32, 1, 1), params=params, shared_bytes=0, memory=memory)
    got = struct.unpack("<fiIIdII", y.tobytes())
    assert got == (np.float32(2.5 * float(x[1]) + 1), -3, 200, 5, -1.25, 0xDEADBEEF, 65000)
    for wrong in ([s[:-1], *params[1:]], [s + b"\0", *params[1:]], params[:-1], [*params, b"\0" * 4]):
        with pytest.raises(SimulationError, match=r"param"):
            simulate(
                parse(text),
                "k",
                grid=(1, 1, 1),
                block=(32, 1, 1),
                params=wrong,
                shared_bytes=0,
                memory=memory,
            )


def test_generic_addresses_reach_shared_and_global_memory(rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      cvta.global.u64 %d3, %d1;  ld.u32 %r0, [%d3];
      shl.b32 %r1, %tx, 2;  add.u32 %r1, %r1, %sm;  cvt.u64.u32 %d4, %r1;  cvta.shared.u64 %d5, %d4;
      st.u32 [%d5], %r0;
      bar.sync 0;
      xor.b32 %r2, %r1, 4;  ld.shared.u32 %r3, [%r2];
      ld.u32 %r4, [%d5];  cvta.to.shared.u64 %d6, %d5;  cvt.u32.u64 %r5, %d6;  ld.shared.u32 %r6, [%r5];
      isspacep.shared %p1, %d5;  isspacep.global %p2, %d5;  isspacep.global %p3, %d3;
      selp.u32 %r7, 1, 0, %p1;  selp.u32 %r8, 2, 0, %p2;  selp.u32 %r9, 4, 0, %p3;
      add.u32 %r7, %r7, %r8;  add.u32 %r7, %r7, %r9;
      sub.u32 %r10, %r4, %r6;  add.u32 %r7, %r7, %r10;
      st.global.u32 [%d2], %r3;  st.global.u32 [%d2+128], %r7;"""
    got = launch(ptx(body, "x y", shared=128), {"x": ro(x), "y": out(64)})["y"]
    check(got[:32], x[np.arange(32) ^ 1], "shared through a generic address", lane=np.arange(32))
    assert (got[32:] == 5).all()


def test_local_memory_belongs_to_the_thread(rng: np.random.Generator) -> None:
    body = f"""
      .local .align 16 .b8 depot[32];  .reg .b64 %SP, %SPL;
      mov.u64 %SPL, depot;  cvta.local.u64 %SP, %SPL;
      st.local.u32 [%SPL], %tx;  st.local.v2.u32 [%SPL+8], {{%lane, %tx}};
      bar.sync 0;
      and.b32 %r0, %tx, 1;  mul.wide.u32 %d1, %r0, 8;  add.u64 %d2, %SPL, %d1;
      ld.local.u32 %r1, [%d2];  ld.u32 %r2, [%SP+12];
      {INDEX4} add.u64 %d3, %y, %d0;  mad.lo.u32 %r3, %r1, 1000, %r2;  st.global.u32 [%d3], %r3;"""
    got = launch(ptx(body, "y"), {"y": out(64)}, block=64)["y"]
    t = np.arange(64)
    check(got, np.where(t % 2, t % 32, t) * 1000 + t, "local", thread=t)


def test_constant_and_initialised_global_variables() -> None:
    head = (
        ".const .align 4 .b32 table[4] = {10, 20, 30, 40};\n.global .align 4 .b8 bytes[4] = {1, 2, 3, 255};"
    )
    body = f"""
      and.b32 %r0, %tx, 3;  mul.wide.u32 %d1, %r0, 4;  mov.u64 %d2, table;  add.u64 %d3, %d2, %d1;
      ld.const.u32 %r1, [%d3];  mov.u64 %d4, bytes;  ld.global.u32 %r2, [%d4];
      {INDEX4} add.u64 %d5, %y, %d0;  add.u32 %r3, %r1, %r2;  st.global.u32 [%d5], %r3;"""
    got = launch(ptx(body, "y", head=head), {"y": out(32)})["y"]
    want = (np.array([10, 20, 30, 40], np.uint64)[np.arange(32) % 4] + 0xFF030201) % 2**32
    check(got, want, "const and global variables", lane=np.arange(32))


def test_memory_accesses_switched_off_by_a_predicate_do_not_happen(rng: np.random.Generator) -> None:
    """Out-of-range addresses are harmless behind a false guard; lanes switched off keep their register."""
    x = rng.integers(0, 2**32, 20, np.uint64).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      setp.lt.u32 %p1, %tx, 20;  mov.u32 %r0, 77;
      @%p1 ld.global.u32 %r0, [%d1];
      shl.b32 %r1, %tx, 2;  add.u32 %r1, %sm, %r1;
      @%p1 st.shared.u32 [%r1], %r0;
      @%p1 ld.shared.u32 %r0, [%r1];
      @%p1 st.global.u32 [%d2], %r0;
      add.u64 %d3, %z, %d0;  st.global.u32 [%d3], %r0;"""
    got = launch(ptx(body, "x y z", shared=80), {"x": ro(x), "y": out(20), "z": out(32)})
    assert np.array_equal(got["y"], x)
    assert np.array_equal(got["z"], np.r_[x, np.full(12, 77)])


def test_unwritten_bytes_are_known() -> None:
    body = f"{INDEX4} shl.b64 %d0, %d0, 1;  add.u64 %d1, %y, %d0;  st.global.u32 [%d1], %tx;"
    result = launch(ptx(body, "y"), {"y": out(64)})
    assert unwritten(result.memory, "y") == 128
    full = launch(ptx(f"{INDEX4} add.u64 %d1, %y, %d0;  st.global.u32 [%d1], %tx;", "y"), {"y": out(32)})
    assert unwritten(full.memory, "y") == 0


def unwritten(memory: DeviceMemory, name: str) -> int:
    found = memory.unwritten(name)
    return found if isinstance(found, int) else sum(s.stop - s.start for s in found)


COPY = """
  mul.wide.u32 %d0, %tx, 16;  add.u64 %d1, %x, %d0;  shl.b32 %r0, %tx, 4;  add.u32 %r0, %r0, %sm;
  {copies}
  bar.sync 0;
  mul.lo.u32 %r1, %tx, 16;  xor.b32 %r1, %r1, 16;  add.u32 %r1, %r1, %sm;
  ld.shared.v4.u32 {{%r2, %r3, %r4, %r5}}, [%r1];
  add.u64 %d2, %y, %d0;  st.global.v4.u32 [%d2], {{%r2, %r3, %r4, %r5}};"""


@pytest.mark.parametrize("copies", [
    "cp.async.cg.shared.global [%r0], [%d1], 16;  cp.async.commit_group;  cp.async.wait_group 0;",
    "cp.async.ca.shared.global [%r0], [%d1], 16;  cp.async.wait_all;",
    "cp.async.cg.shared.global.L2::128B [%r0], [%d1], 16;  cp.async.commit_group;  cp.async.wait_all;",
    "cp.async.ca.shared.global [%r0], [%d1], 8;"
    "cp.async.ca.shared.global [%r0+8], [%d1+8], 8;  cp.async.wait_all;",
    "cp.async.ca.shared.global [%r0+12], [%d1+12], 4;  cp.async.ca.shared.global [%r0], [%d1], 4;"
    "cp.async.ca.shared.global [%r0+4], [%d1+4], 4;  cp.async.ca.shared.global [%r0+8], [%d1+8], 4;"
    "cp.async.commit_group;  cp.async.wait_group 0;",
])  # fmt: skip
def test_asynchronous_copy_arrives_at_the_wait(copies: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, (64, 4), np.uint64).astype(np.uint32)
    got = launch(
        ptx(COPY.format(copies=copies), "x y", shared=1024), {"x": ro(x), "y": out((64, 4))}, block=64
    )["y"]
    assert np.array_equal(got, x[np.arange(64) ^ 1])


PREFETCH = """
      mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      {given}
      cp.async.bulk.prefetch.L2.global [%d3], %r1;
      ld.global.u32 %r0, [%d1];  st.global.u32 [%d2], %r0;"""


def test_a_bulk_prefetch_changes_nothing_and_counts_no_sectors(rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    body = PREFETCH.format(given="add.u64 %d3, %x, 32;  mov.u32 %r1, 96;")
    for text in (body, body.replace("cp.async.bulk.prefetch.L2.global [%d3], %r1;", "")):
        found = launch(ptx(text, "x y"), {"x": ro(x), "y": out(32)})
        assert np.array_equal(found["y"], x)
        assert device(found.report, "x", "load") == (128, 4, 4)


@pytest.mark.parametrize(
    ("given", "fault", "text"),
    [
        ("add.u64 %d3, %x, 32;  mov.u32 %r1, 112;", OutOfBounds, "x"),
        ("add.u64 %d3, %x, 8;  mov.u32 %r1, 16;", Misaligned, "x"),
        ("mov.u64 %d3, %x;  mov.u32 %r1, 24;", Misaligned, "24 bytes: a bulk prefetch takes"),
        ("mov.u64 %d3, %x;  mov.u32 %r1, 0;", Misaligned, "0 bytes"),
        ("mov.u64 %d3, %x;  mov.u32 %r1, 1048576;", OutOfBounds, "a bulk prefetch takes 1048560 at most"),
        ("mov.u64 %d3, 64;  mov.u32 %r1, 16;", OutOfBounds, "outside every buffer"),
        ("sub.u64 %d4, %y, %x;  add.u64 %d4, %d4, 16;  cvt.u32.u64 %r1, %d4;  mov.u64 %d3, %x;", OutOfBounds,
         "begins in one buffer and ends in another"),
    ],
)  # fmt: skip
def test_a_bulk_prefetch_of_what_is_not_there_stops(given: str, fault: type[Exception], text: str) -> None:
    body = PREFETCH.format(given=given)
    with pytest.raises(fault, match=text):
        launch(ptx(body, "x y"), {"x": ro(np.ones(32, np.uint32)), "y": out(32)})


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copy_fills_with_zeros(size: int, rng: np.random.Generator) -> None:
    """Bytes beyond src-size are zeros; with src-size 0 the source is not read at all and may be anywhere."""
    x = rng.integers(1, 256, (32, size)).astype(np.uint8)
    have = rng.integers(0, size + 1, 32).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %n, %d0;  ld.global.u32 %r1, [%d1];
      mul.wide.u32 %d2, %tx, {size};  add.u64 %d3, %x, %d2;
      setp.eq.u32 %p1, %r1, 0;  selp.b64 %d3, 0, %d3, %p1;
      mul.lo.u32 %r2, %tx, {size};  add.u32 %r2, %r2, %sm;
      cp.async.{"cg" if size == 16 else "ca"}.shared.global [%r2], [%d3], {size}, %r1;
      cp.async.commit_group;  cp.async.wait_group 0;
      add.u64 %d4, %y, %d2;
      """ + "\n".join(
        f"ld.shared.u32 %r5, [%r2+{i}];  st.global.u32 [%d4+{i}], %r5;" for i in range(0, size, 4)
    )
    got = launch(
        ptx(body, "x n y", shared=32 * size), {"x": ro(x), "n": ro(have), "y": out((32, size), np.uint8)}
    )["y"]
    assert np.array_equal(got, np.where(np.arange(size) < have[:, None], x, 0))


def test_wait_group_leaves_the_youngest_groups_pending(rng: np.random.Generator) -> None:
    """Groups complete oldest first; an empty group counts as one."""
    x = rng.integers(0, 2**32, (4, 32), np.uint64).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  shl.b32 %r0, %tx, 2;  add.u32 %r0, %r0, %sm;
      cp.async.ca.shared.global [%r0], [%d1], 4;  cp.async.commit_group;
      cp.async.ca.shared.global [%r0+128], [%d1+128], 4;  cp.async.commit_group;
      cp.async.ca.shared.global [%r0+256], [%d1+256], 4;  cp.async.commit_group;
      cp.async.wait_group 2;  ld.shared.u32 %r1, [%r0];  st.global.u32 [%d2], %r1;
      cp.async.commit_group;
      cp.async.wait_group 2;  ld.shared.u32 %r2, [%r0+128];  st.global.u32 [%d2+128], %r2;
      cp.async.wait_group 1;  ld.shared.u32 %r3, [%r0+256];  st.global.u32 [%d2+256], %r3;
      cp.async.ca.shared.global [%r0], [%d1+384], 4;  cp.async.commit_group;
      cp.async.wait_group 0;  ld.shared.u32 %r4, [%r0];  st.global.u32 [%d2+384], %r4;"""
    got = launch(ptx(body, "x y", shared=384), {"x": ro(x), "y": out((4, 32))})["y"]
    assert np.array_equal(got, x)


ATOMICS: dict[str, tuple[str, Any]] = {
    "add.u32": ("r", lambda old, v: (int(old) + int(v.sum(dtype=np.uint64))) % 2**32),
    "min.s32": ("r", lambda old, v: int(np.r_[old, v].astype(np.uint32).view(np.int32).min()) % 2**32),
    "max.u32": ("r", lambda old, v: int(np.r_[old, v].max())),
    "and.b32": ("r", lambda old, v: int(np.bitwise_and.reduce(np.r_[old, v]))),
    "or.b32": ("r", lambda old, v: int(np.bitwise_or.reduce(np.r_[old, v]))),
    "xor.b32": ("r", lambda old, v: int(np.bitwise_xor.reduce(np.r_[old, v]))),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("op", ATOMICS)
def test_atomics_count_every_thread(op: str, space: str, rng: np.random.Generator) -> None:
    """All threads of two warps (in global memory: of two blocks) on one word; both forms, red and atom."""
    grid = 2 if space == "global" else 1
    v = rng.integers(0, 2**32, 64 * grid, np.uint64).astype(np.uint32)
    old = np.array([v[0] ^ np.uint32(0x5555)], np.uint32)
    target = "%s" if space == "global" else "%sm"
    head = (
        ""
        if space == "global"
        else """
      setp.ne.u32 %p1, %tx, 0;  @%p1 bra WAIT;  ld.global.u32 %r9, [%s];  st.shared.u32 [%sm], %r9;
    WAIT:
      bar.sync 0;"""
    )
    tail = (
        ""
        if space == "global"
        else """
      bar.sync 0;  @%p1 ret;  ld.shared.u32 %r9, [%sm];  st.global.u32 [%s], %r9;"""
    )
    body = f"""
      {head}
      mad.lo.u32 %r0, %bx, 64, %tx;  mul.wide.u32 %d0, %r0, 4;  add.u64 %d1, %v, %d0;
      ld.global.u32 %r1, [%d1];
      and.b32 %r2, %tx, 1;  setp.eq.u32 %p2, %r2, 0;
      @%p2 red.{space}.{op} [{target}], %r1;
      @!%p2 atom.{space}.{op} %r3, [{target}], %r1;
      {tail}"""
    state = old.copy()
    launch(
        ptx(body, "v s", shared=4 if space == "shared" else 0), {"v": ro(v), "s": state}, grid=grid, block=64
    )
    assert int(state[0]) == ATOMICS[op][1](old[0], v)


def test_atomics_return_the_value_before(rng: np.random.Generator) -> None:
    body = f"""
      {INDEX4} add.u64 %d1, %y, %d0;
      atom.global.add.u32 %r0, [%s], 1;  st.global.u32 [%d1], %r0;
      atom.global.exch.b32 %r1, [%s+4], %tx;  st.global.u32 [%d1+256], %r1;
      atom.global.cas.b32 %r2, [%s+8], 5, %tx;  st.global.u32 [%d1+512], %r2;
      atom.global.add.f32 %f0, [%s+12], 0f3F000000;"""
    s = np.array([100, 1000, 5, 0], np.uint32)
    got = launch(ptx(body, "s y"), {"s": s, "y": out((3, 64))}, block=64)["y"]
    assert sorted(got[0]) == list(range(100, 164)), "every thread must see another ticket"
    assert sorted([*got[1], s[1]]) == [*range(64), 1000], "exchanges must form a chain"
    assert s[0] == 164
    winners = np.flatnonzero(got[2] == 5)
    assert len(winners) >= 1
    assert s[2] in winners
    assert s[3:].view(np.float32)[0] == 32.0


def test_atomics_on_several_words_at_once(rng: np.random.Generator) -> None:
    """Lanes that share a word take turns on it, whatever the other lanes do on theirs."""
    which = rng.integers(0, 5, 64).astype(np.uint32)
    body = f"""
      {INDEX4} add.u64 %d1, %y, %d0;  add.u64 %d2, %n, %d0;  ld.global.u32 %r1, [%d2];
      mul.wide.u32 %d3, %r1, 4;  add.u64 %d4, %s, %d3;
      atom.global.add.u32 %r0, [%d4], 1;  st.global.u32 [%d1], %r0;"""
    s = np.arange(0, 5000, 1000, dtype=np.uint32)
    got = launch(ptx(body, "n s y"), {"n": ro(which), "s": s, "y": out(64)}, block=64)["y"]
    for word in range(5):
        tickets = sorted(got[which == word].tolist())
        assert tickets == list(range(1000 * word, 1000 * word + len(tickets)))
        assert s[word] == 1000 * word + len(tickets)


@pytest.mark.parametrize(
    "op", ["atom.global.add.noftz.f16x2", "red.global.add.noftz.bf16x2", "red.global.add.f64"]
)
def test_floating_point_atomics(op: str) -> None:
    """Sums of ones are exact in every order."""
    one = {"f16x2": "0x3C003C00", "bf16x2": "0x3F803F80", "f64": "0d3FF0000000000000"}[op.rpartition(".")[2]]
    destination = "%r1, " if op.startswith("atom") else ""
    s = np.zeros(2, np.uint32)
    value = "%r0" if "x2" in op else "%g0"
    move = f"mov.b32 %r0, {one};" if "x2" in op else f"mov.f64 %g0, {one};"
    try:
        launch(ptx(f"{move} {op} {destination}[%s], {value};", "s"), {"s": s})
    except SimulationError as error:
        if type(error).__name__ != "UnknownInstruction":
            raise
        pytest.skip("the simulator declines this atomic, by name")
    want = {
        "f16x2": [0x50005000, 0],
        "bf16x2": [0x42004200, 0],
        "f64": list(np.array([32.0]).view(np.uint32)),
    }
    assert s.tolist() == want[op.rpartition(".")[2]]

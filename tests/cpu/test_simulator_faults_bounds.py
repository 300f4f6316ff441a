"""Planted faults of addresses: bounds and alignment in every space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulator_faults import COPY, FLAT, STORE, Planted, caught, passes, same, shorter, suite
from simulator_kit import launch, out, ptx

from fftgen.simulator import (
    DeviceMemory,
    OutOfBounds,
    parse,
    simulate,
)


def padded(arrays: Any) -> dict[str, Any]:
    return {"y": np.r_[arrays["x"], np.zeros(24)]}


def counted(args: Any, count: int) -> Any:
    return lambda rng: args(rng) | {"z": np.zeros(count, np.uint32)}


BOUNDS = [
    Planted("global_load_off_by_one", "OutOfBounds", COPY + """
      mov.u32 %r0, 0;
      setp.lt.u32 %p1, %tx, 40; //-
      setp.le.u32 %p1, %tx, 40; //+
      @%p1 ld.global.u32 %r0, [%d1]; //@
      """ + STORE, args=shorter(40), buffer="x", thread=lambda t: t == 40, want=padded),
    Planted("global_store_off_by_one", "OutOfBounds", COPY + """
      ld.global.u32 %r0, [%d1];
      setp.lt.u32 %p1, %tx, 40; //-
      setp.le.u32 %p1, %tx, 40; //+
      @%p1 st.global.u32 [%d2], %r0; //@
      """, args=shorter(64, 40), buffer="y", thread=lambda t: t == 40, want=same),
    Planted("vector_load_across_the_end", "OutOfBounds", """
      mul.wide.u32 %d0, %tx, 16;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
      setp.lt.u32 %p1, %tx, 9; //-
      setp.lt.u32 %p1, %tx, 10; //+
      @%p1 ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%d1]; //@
      setp.ge.u32 %p1, %tx, 9;  @%p1 ret;
      st.global.v4.u32 [%d2], {%r0,%r1,%r2,%r3};""", args=shorter(38, 36), buffer="x",
      thread=lambda t: t == 9, want=same),
    Planted("negative_index", "OutOfBounds", COPY + """
      add.s64 %d1, %d1, -4; //+
      ld.global.u32 %r0, [%d1]; //@
      """ + STORE, buffer="x", thread=lambda t: t == 0, want=same),
    Planted("negative_index_zero_extended", "OutOfBounds", """
      add.s32 %r5, %tx, -1;  max.s32 %r5, %r5, 0;
      add.s32 %r5, %tx, -1; //+
      mul.wide.u32 %d3, %r5, 4;  add.u64 %d3, %x, %d3;
      ld.global.u32 %r0, [%d3]; //@
      """ + COPY + STORE, thread=lambda t: t == 0,
      want=lambda a: {"y": a["x"][np.maximum(np.arange(64) - 1, 0)]}),
    Planted("pointer_truncated_to_32_bits", "OutOfBounds", COPY + """
      cvt.u32.u64 %r9, %d1;  cvt.u64.u32 %d1, %r9; //+
      ld.global.u32 %r0, [%d1]; //@
      """ + STORE, want=same),
    Planted("index_product_overflows_32_bits", "OutOfBounds", COPY + """
      mul.lo.u32 %r9, %tx, 0x10000004;  cvt.u64.u32 %d3, %r9;  add.u64 %d1, %x, %d3; //+
      ld.global.u32 %r0, [%d1]; //@
      """ + STORE, want=same),
    Planted("null_pointer", "OutOfBounds", COPY + """
      mov.u64 %d1, 0; //+
      ld.global.u32 %r0, [%d1]; //@
      """ + STORE, want=same),
    Planted("shared_store_off_by_one", "OutOfBounds", COPY + FLAT + """
      ld.global.u32 %r0, [%d1];
      add.u32 %r1, %r1, 4; //+
      st.shared.u32 [%r1], %r0; //@
      ld.shared.u32 %r0, [%r1];
      """ + STORE, buffer="shared", thread=lambda t: t == 63, want=same),
    Planted("shared_negative_offset", "OutOfBounds", COPY + FLAT + """
      ld.global.u32 %r0, [%d1];
      add.s32 %r1, %r1, -128; //+
      st.shared.u32 [%r1], %r0; //@
      ld.shared.u32 %r0, [%r1];
      """ + STORE, buffer="shared", thread=lambda t: t < 32, want=same),
    Planted("shared_offset_that_ends_at_zero", "OutOfBounds", COPY + FLAT + """
      ld.global.u32 %r0, [%d1];
      cvt.u64.u32 %d4, %r1;
      st.shared.u32 [%d4], %r0; //-
      st.shared.u32 [%d4-4], %r0; //@+
      ld.shared.u32 %r0, [%r1];
      """ + STORE, buffer="shared", thread=lambda t: t == 0, want=same),
    Planted("shared_offset_used_as_global_address", "OutOfBounds", COPY + FLAT + """
      cvt.u64.u32 %d1, %r1; //+
      ld.global.u32 %r0, [%d1]; //@
      """ + STORE, want=same),
    Planted("local_array_overrun", "OutOfBounds", """
      .local .align 4 .b8 depot[16];
      and.b32 %r5, %tx, 3; //-
      and.b32 %r5, %tx, 7; //+
      mul.wide.u32 %d3, %r5, 4;  mov.u64 %d4, depot;  add.u64 %d4, %d4, %d3;
      """ + COPY + """
      ld.global.u32 %r0, [%d1];
      st.local.u32 [%d4], %r0; //@
      ld.local.u32 %r0, [%d4];
      """ + STORE, thread=lambda t: t & 7 >= 4, want=same),
    Planted("ldmatrix_row_beyond_the_array", "OutOfBounds", FLAT + """
      st.shared.u32 [%r1], %tx;
      bar.sync 0;
      and.b32 %r5, %lane, 7;  shl.b32 %r5, %r5, 5;  add.u32 %r5, %r5, %sm;
      add.u32 %r5, %r5, 32; //+
      ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r5]; //@
      """ + COPY + STORE, buffer="shared",
      want=lambda a: {"y": (np.arange(32) // 4 * 8 + np.arange(32) % 4)[np.arange(64) % 32]}),
    Planted("cp_async_source_beyond_the_end", "OutOfBounds", COPY + FLAT + """
      setp.lt.u32 %p1, %tx, 40;  selp.u32 %r5, 4, 0, %p1;
      setp.lt.u32 %p1, %tx, 41;  selp.u32 %r5, 4, 0, %p1; //+
      selp.b64 %d1, %d1, %x, %p1;
      cp.async.ca.shared.global [%r1], [%d1], 4, %r5; //@
      cp.async.wait_all;
      ld.shared.u32 %r0, [%r1];
      """ + STORE, args=shorter(40), buffer="x", thread=lambda t: t == 40, want=padded),
    Planted("atomic_beyond_the_end", "OutOfBounds", COPY + """
      and.b32 %r5, %tx, 31; //-
      and.b32 %r5, %tx, 63; //+
      mul.wide.u32 %d3, %r5, 4;  add.u64 %d4, %z, %d3;
      red.global.add.u32 [%d4], 1; //@
      ld.global.u32 %r0, [%d1];
      """ + STORE, params="x y z", args=counted(shorter(64), 32), buffer="z",
      thread=lambda t: t >= 32, want=lambda a: same(a) | {"z": np.full(32, 2)}),
    Planted("wmma_stride_runs_out_of_the_buffer", "OutOfBounds", """
      mov.u32 %r9, 16; //-
      mov.u32 %r9, 24; //+
      wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, [%x], %r9; //@
      wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%y], {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, 16;
      """, args=shorter(256, 256), block=32, buffer="x", want=same),
]  # fmt: skip

WIDE = """
  mul.wide.u32 %d0, %tx, 16;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;  shl.b32 %r1, %tx, 4;
  add.u32 %r1, %r1, %sm;
"""


def four(value: str) -> str:
    return f"mov.u32 %r4, {value};  mov.u32 %r5, %r4;  mov.u32 %r6, %r4;  mov.u32 %r7, %r4;\n"


STORE4 = "st.global.v4.u32 [%d2], {%r4, %r5, %r6, %r7};"
ALIGNMENT = [
    Planted("misaligned_v4_load", "Misaligned", WIDE + """
      add.u64 %d1, %d1, 4; //+
      ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d1]; //@
      """ + STORE4, args=shorter(80, 64, 4), buffer="x", want=same),
    Planted("misaligned_v2_doubleword_load", "Misaligned", WIDE + """
      add.u64 %d1, %d1, 8; //+
      ld.global.v2.u64 {%d5, %d6}, [%d1]; //@
      mov.b64 {%r4, %r5}, %d5;  mov.b64 {%r6, %r7}, %d6;
      """ + STORE4, args=shorter(80, 64, 4), buffer="x", want=same),
    Planted("misaligned_v2_word_load", "Misaligned", WIDE + """
      add.u64 %d1, %d1, 4; //+
      ld.global.v2.u32 {%r4, %r5}, [%d1]; //@
      mov.u32 %r6, %r4;  mov.u32 %r7, %r5;
      """ + STORE4, args=shorter(80, 64, 4), buffer="x"),
    Planted("misaligned_doubleword_store", "Misaligned", WIDE + four("1") + """
      add.u64 %d2, %d2, 4; //+
      mov.b64 %d5, {%r4, %r5};
      st.global.u64 [%d2], %d5; //@
      st.global.u64 [%d2+8], %d5;""", args=shorter(80, 64, 4), buffer="y"),
    Planted("misaligned_shared_v4", "Misaligned", WIDE + four("%tx") + """
      add.u32 %r1, %r1, 8; //+
      st.shared.v4.u32 [%r1], {%r4, %r5, %r6, %r7}; //@
      """ + STORE4, args=shorter(80, 64, 4), shared=1056, buffer="shared"),
    Planted("misaligned_ldmatrix_row", "Misaligned", WIDE + four("%tx") + """
      st.shared.v4.u32 [%r1], {%r4, %r5, %r6, %r7};
      bar.sync 0;
      add.u32 %r1, %r1, 8; //+
      ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r1]; //@
      """ + STORE4, args=shorter(80, 64, 4), shared=1056, buffer="shared"),
    Planted("misaligned_cp_async_destination", "Misaligned", WIDE + four("%tx") + """
      add.u32 %r1, %r1, 8; //+
      cp.async.cg.shared.global [%r1], [%d1], 16; //@
      cp.async.wait_all;
      """ + STORE4, args=shorter(80, 64, 4), shared=1056),
    Planted("misaligned_cp_async_source", "Misaligned", WIDE + four("%tx") + """
      add.u64 %d1, %d1, 8; //+
      cp.async.cg.shared.global [%r1], [%d1], 16; //@
      cp.async.wait_all;
      """ + STORE4, args=shorter(80, 64, 4), shared=1056),
    Planted("misaligned_atomic", "Misaligned", WIDE + four("%tx") + """
      mov.u64 %d5, %z;
      add.u64 %d5, %z, 2; //+
      red.global.add.u32 [%d5], 1; //@
      """ + STORE4, params="x y z", args=counted(shorter(80, 64, 4), 2), shared=1024,
      buffer="z"),
    *(Planted(f"misaligned_wmma_{name}", "Misaligned", f"""
      mov.u64 %d5, %x;  mov.u32 %r9, 24;
      {shift} //+
      wmma.load.a.sync.aligned.row.m16n16k16.global.bf16 {{%r10, %r11, %r12, %r13}}, [%d5], %r9; //@
      """ + COPY + "mov.u32 %r0, 1;" + STORE, args=shorter(400, 32), block=32)
      for name, shift in (("address", "add.u64 %d5, %x, 8;"), ("stride", "mov.u32 %r9, 17;"))),
]  # fmt: skip


@suite([*BOUNDS, *ALIGNMENT])
class TestPlanted:
    def test_sound_kernel_passes(self, case: Planted, rng: np.random.Generator) -> None:
        passes(case, rng)

    def test_fault_is_caught(self, case: Planted, rng: np.random.Generator) -> None:
        caught(case, rng)


def test_use_after_unbind() -> None:
    memory, x, y = DeviceMemory(), np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    params = [int(memory.bind(n, v, writable=True)).to_bytes(8, "little") for n, v in (("x", x), ("y", y))]
    module = parse(ptx(COPY + "ld.global.u32 %r0, [%d1];" + STORE, "x y"))

    def go() -> None:
        simulate(module, "k", grid=(1, 1, 1), block=(32, 1, 1), params=params, shared_bytes=0, memory=memory)

    go()
    assert np.array_equal(y, x)
    memory.unbind("x")
    with pytest.raises(OutOfBounds):
        go()
    again = np.arange(32, dtype=np.uint32) + 7
    params[0] = int(memory.bind("x", again)).to_bytes(8, "little")
    go()
    assert np.array_equal(y, again)


def test_dynamic_shared_memory_ends_where_the_launch_says() -> None:
    text = ptx(
        COPY + FLAT + "st.shared.u32 [%r1], %tx;  ld.shared.u32 %r0, [%r1];" + STORE, "x y", dynamic=True
    )
    args = {"x": np.zeros(64, np.uint32), "y": out(64)}
    assert np.array_equal(launch(text, args, block=64, shared=256)["y"], np.arange(64))
    with pytest.raises(OutOfBounds) as fault:
        launch(text, {**args, "y": out(64)}, block=64, shared=252)
    assert fault.value.thread == (63, 0, 0)


def test_adjacent_buffers_do_not_absorb_an_overrun(rng: np.random.Generator) -> None:
    """However the sizes fall, one element past either end belongs to nobody."""
    for size in (1, 63, 64, 65, 256):
        for index in (size, size + 15, -1, -16):
            body = f"ld.global.u8 %r0, [%x+{index}];  st.global.u8 [%y], %r0;"
            with pytest.raises(OutOfBounds):
                launch(
                    ptx(body, "w x y"),
                    {"w": np.zeros(size, np.uint8), "x": np.zeros(size, np.uint8), "y": out(1, np.uint8)},
                    block=1,
                )


def test_device_addresses_are_aligned_and_beyond_32_bits() -> None:
    memory = DeviceMemory()
    addresses = [int(memory.bind(f"b{i}", np.zeros(i + 1, np.uint8))) for i in range(8)]
    assert all(a % 256 == 0 and a >= 2**32 for a in addresses)
    assert len({a & 0xFFFFFFFF for a in addresses}) == 8

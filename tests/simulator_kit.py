"""Kit of the simulator tests: builds PTX kernels and launches them.

The kernels are written from the PTX ISA. Where a PTX assembler is at hand, the texts can be checked as well:
``FFTGEN_TEST_DUMP_PTX=<folder>`` writes every kernel the tests launch there, ready for ``ptxas``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fftgen.simulator import DeviceMemory, Report, parse, simulate

Dim = tuple[int, int, int]
POINTER = "u64"
_BITS = {"u8": 8, "s8": 8, "b8": 8, "u16": 16, "b16": 16, "u32": 32, "s32": 32, "f32": 32, "b32": 32}
_PROLOGUE = """
  mov.u32 %tx, %tid.x;
  mov.u32 %bx, %ctaid.x;
  mov.u32 %lane, %laneid;
  shr.u32 %warp, %tx, 5;
"""


def ptx(
    body: str, params: str = "", *, shared: int = 0, dynamic: bool = False, head: str = "", name: str = "k"
) -> str:
    """A module with one entry ``name``.

    ``params`` lists ``name`` (a pointer), ``name:type`` (a scalar) or ``name:bytes[n]:align`` (a struct).
    Pointers and 16- to 64-bit scalars are preloaded into ``%name``; ``%tx %bx %lane %warp`` hold thread,
    block, lane and warp index, ``%sm`` the address of the array ``sm`` of ``shared`` bytes (``dynamic``:
    of as many as the launch gives).
    """
    declared: list[str] = []
    loads: list[str] = []
    regs: list[str] = []
    for item in params.split():
        label, _, kind = item.partition(":")
        kind = kind or "ptr"
        if kind.startswith("bytes"):
            size = re.search(r"\[(\d+)\]", kind)
            assert size
            declared.append(f".param .align {kind.rpartition(':')[2]} .b8 {name}_{label}[{size[1]}]")
            continue
        scalar = POINTER if kind == "ptr" else kind
        declared.append(f".param .{scalar} {name}_{label}")
        wide = _BITS.get(scalar, 64)
        regs.append(f"  .reg .b{max(wide, 16)} %{label};")
        loads.append(f"  ld.param.{scalar} %{label}, [{name}_{label}];")
        if kind == "ptr":
            loads.append(f"  cvta.to.global.u64 %{label}, %{label};")
    if dynamic:
        head = f".extern .shared .align 16 .b8 sm[];\n{head}"
    static = f"  .shared .align 128 .b8 sm[{shared}];\n" if shared else ""
    base = "  mov.u32 %sm, sm;\n" if shared or dynamic else ""
    return (
        f".version 8.0\n.target sm_90\n.address_size 64\n{head}\n.visible .entry {name}(\n  "
        + ",\n  ".join(declared)
        + "\n)\n{\n  .reg .pred %p<16>;\n  .reg .b16 %h<32>;\n  .reg .b32 %r<64>;\n  .reg .b64 %d<64>;\n"
        + "  .reg .f32 %f<64>;\n  .reg .f64 %g<8>;\n  .reg .b32 %tx, %bx, %lane, %warp, %sm;\n"
        + "\n".join(regs)
        + "\n"
        + static
        + _PROLOGUE
        + base
        + "\n".join(loads)
        + f"\n{body}\n  ret;\n}}\n"
    )


@dataclass(frozen=True)
class Buffer:
    """A global buffer of a launch, and how it is bound."""

    array: np.ndarray[Any, Any]
    writable: bool = True
    initialized: bool = True


def out(shape: int | tuple[int, ...], dtype: Any = np.uint32) -> Buffer:
    """A buffer that the kernel has to write before anyone reads it."""
    return Buffer(np.zeros(shape, dtype), initialized=False)


def ro(array: np.ndarray[Any, Any]) -> Buffer:
    """A buffer that the kernel must not write."""
    return Buffer(np.ascontiguousarray(array), writable=False)


@dataclass
class Result:
    """What a launch left: the report, the memory and the buffers by name."""

    report: Report
    memory: DeviceMemory
    arrays: dict[str, np.ndarray[Any, Any]]

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.arrays[name]


def dim(size: int | Sequence[int]) -> Dim:
    """``size`` as three extents."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def launch(
    text: str,
    args: Mapping[str, Any],
    *,
    grid: int | Sequence[int] = 1,
    block: int | Sequence[int] = 32,
    shared: int = 0,
    seed: int = 0,
    blocks: Sequence[Dim] | None = None,
    source: str | None = None,
    entry: str = "k",
    **limits: Any,
) -> Result:
    """Simulates one launch. ``args``, in parameter order: arrays are bound, scalars and bytes passed."""
    folder = os.environ.get("FFTGEN_TEST_DUMP_PTX")
    if folder:
        Path(folder, hashlib.sha1(text.encode()).hexdigest()[:16] + ".ptx").write_text(text)
    memory = DeviceMemory()
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    params: list[bytes] = []
    for name, value in args.items():
        if isinstance(value, np.ndarray):
            value = Buffer(value)
        if isinstance(value, Buffer):
            arrays[name] = value.array
            address = memory.bind(name, value.array, writable=value.writable, initialized=value.initialized)
            params.append(int(address).to_bytes(8, "little"))
        else:
            params.append(value if isinstance(value, bytes) else value.tobytes())
    report = simulate(
        parse(text, source=source),
        entry,
        grid=dim(grid),
        block=dim(block),
        params=params,
        shared_bytes=shared,
        memory=memory,
        blocks=blocks,
        seed=seed,
        **limits,
    )
    return Result(report, memory, arrays)


def lanes(
    code: str,
    ins: Mapping[str, np.ndarray[Any, Any]],
    outs: Mapping[str, Any],
    *,
    seed: int = 0,
    regs: str = "",
) -> dict[str, np.ndarray[Any, Any]]:
    """Runs ``code`` once per element: thread i finds element i of input ``a`` in ``%a``, leaves ``d``.

    Registers are untyped (.b16, .b32, .b64) and as wide as the elements (bytes: 16 bits).
    """
    count = len(next(iter(ins.values())))
    rounded = -(-count // 32) * 32 if count <= 1024 else -(-count // 256) * 256
    block = rounded if rounded <= 1024 else 256
    kinds = {name: array.dtype.itemsize for name, array in ins.items()}
    kinds |= {name: np.dtype(kind).itemsize for name, kind in outs.items()}
    text = [f"  .reg .b{max(16, 8 * size)} %x_{name};" for name, size in kinds.items()]
    text += [regs, f"  mad.lo.u32 %r0, %bx, {block}, %tx;"]
    for name in kinds:
        text.append(f"  mul.wide.u32 %d0, %r0, {kinds[name]};\n  add.u64 %{name}, %{name}, %d0;")
    for name in ins:
        text.append(f"  ld.global.{_load(kinds[name])} %x_{name}, [%{name}];")
    text.append(re.sub(r"%(" + "|".join(kinds) + r")\b", r"%x_\1", code))
    for name in outs:
        text.append(f"  st.global.{_load(kinds[name])} [%{name}], %x_{name};")
    args: dict[str, Any] = {name: ro(np.resize(array, rounded)) for name, array in ins.items()}
    args |= {name: out(rounded, kind) for name, kind in outs.items()}
    result = launch(
        ptx("\n".join(text), " ".join(kinds)), args, grid=rounded // block, block=block, seed=seed
    )
    return {name: result[name][:count] for name in outs}


def _load(size: int) -> str:
    return f"u{8 * size}" if size < 4 else f"b{8 * size}"


def check(
    got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], what: str, **inputs: np.ndarray[Any, Any]
) -> None:
    """Compares bit patterns and names the first inputs that differ."""
    want = np.asarray(want).astype(got.dtype)
    wrong = np.flatnonzero(got != want)
    if wrong.size:
        i = int(wrong[0])
        shown = ", ".join(f"{name}={array[i]:#x}" for name, array in inputs.items())
        raise AssertionError(
            f"{what}: {wrong.size} of {got.size} differ, first ({shown}): {got[i]:#x}, not {want[i]:#x}"
        )


INDEX = "mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;\n"
SLOT = "shl.b32 %r1, %tx, 2;  add.u32 %r1, %r1, %sm;\n"


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """Random numbers below 2^31."""
    return rng.integers(0, 2**31, shape).astype(np.uint32)

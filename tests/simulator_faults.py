"""Kernels with one planted fault: the sound kernel has to pass, the faulty one to be caught."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from simulator_kit import Buffer, dim, launch, out, ptx, ro

from fftgen import simulator

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


COPY = """
  mul.wide.u32 %d0, %tx, 4;  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
"""
STORE = "st.global.u32 [%d2], %r0;"
FLAT = "shl.b32 %r1, %tx, 2;  add.u32 %r1, %r1, %sm;"


def same(arrays: Arrays) -> dict[str, Array]:
    """The result of a kernel that copies x to y."""
    return {"y": arrays["x"].ravel()[: arrays["y"].size].reshape(arrays["y"].shape)}


def shorter(count: int, total: int = 64, width: int = 1) -> Callable[[np.random.Generator], dict[str, Any]]:
    """Arguments with ``count`` elements to read and ``total`` to write, of ``width`` words each."""
    return lambda rng: {
        "x": ro(rng.integers(1, 2**32, count * width, np.uint64).astype(np.uint32)),
        "y": out(total * width),
    }


def words(rng: np.random.Generator) -> dict[str, Any]:
    """The usual arguments: 64 random words to read, 64 words to write."""
    return {"x": ro(rng.integers(1, 2**32, 64, np.uint64).astype(np.uint32)), "y": out(64)}


@dataclass(frozen=True)
class Planted:
    """One kernel in two versions.

    Lines that end in ``//-`` belong to the sound version only, those in ``//+`` to the faulty one only.
    ``//@`` (also ``//@-``, ``//@+``) marks the instructions that may be blamed; a race must name two of them.
    ``fault`` lists the classes that fit (``|`` between them); ``thread`` and ``in_block`` say whom a good
    report names.
    """

    name: str
    fault: str
    body: str
    want: Callable[[Arrays], Mapping[str, Array]] | None = None
    args: Callable[[np.random.Generator], dict[str, Any]] = words
    params: str = "x y"
    shared: int = 256
    block: int | tuple[int, ...] = 64
    grid: int = 1
    head: str = ""
    buffer: str | None = None
    thread: Callable[[int], bool] | None = None
    in_block: Callable[[int], bool] | None = None
    race: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def text(self, faulty: bool) -> str:
        drop = "-" if faulty else "+"
        body = re.sub(rf"^.*//@?[{drop}]\s*$", "//", self.body, flags=re.M)
        return ptx(body, self.params, shared=self.shared, head=self.head)


def marked(text: str) -> list[int]:
    """The 1-based numbers of the lines that carry the mark ``//@``."""
    return [number for number, line in enumerate(text.splitlines(), 1) if "//@" in line]


def run(case: Planted, faulty: bool, rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
    args = case.args(rng)
    result = launch(case.text(faulty), args, grid=case.grid, block=case.block, **case.options)
    return args, result


def passes(case: Planted, rng: np.random.Generator) -> None:
    """The sound version gives the right result, with no false alarm, and writes all of its output."""
    args, result = run(case, False, rng)
    for name, value in args.items():
        if isinstance(value, Buffer) and not value.initialized:
            assert not result.memory.unwritten(name)
    if case.want:
        for name, want in case.want(result.arrays).items():
            assert np.array_equal(result[name], want), f"{case.name}: {name}"


def caught(case: Planted, rng: np.random.Generator) -> None:
    """The faulty version stops with the right class of fault, which says where and who."""
    text = case.text(True)
    lines, where = text.splitlines(), marked(text)
    assert where or not case.body.count("//@")
    classes = tuple(getattr(simulator, name) for name in case.fault.split("|"))
    with pytest.raises(classes) as caught_fault:
        run(case, True, rng)
    fault = caught_fault.value
    shown = f"{case.name}: {fault}"
    assert isinstance(fault, simulator.SimulationError)
    assert fault.ptx_line in where, f"blamed line {fault.ptx_line}, not one of {where}: {shown}"
    opcode = re.sub(r"^(@!?%\w+\s+)", "", lines[fault.ptx_line - 1].strip()).split()[0].rstrip(";")
    assert opcode in (fault.instruction or ""), shown
    assert opcode in str(fault), shown
    if case.buffer:
        assert fault.buffer == case.buffer, shown
        assert case.buffer in str(fault), shown
    extent = dim(case.block)
    if case.thread:
        assert fault.thread is not None, shown
        x, y, z = fault.thread
        assert case.thread(x + extent[0] * (y + extent[1] * z)), f"thread {fault.thread}: {shown}"
    if case.in_block:
        assert fault.block is not None, shown
        assert case.in_block(fault.block[0]), f"block {fault.block}: {shown}"
    if case.race:
        assert fault.other, shown
        named = [n for n in where if re.search(rf"line {n}\b", str(fault.other))]
        assert named, f"the other party is not named: {shown}"
        assert len(where) == 1 or set(named) | {fault.ptx_line} != {fault.ptx_line}, (
            f"names one party twice: {shown}"
        )


def suite(cases: list[Planted]) -> Any:
    """Parametrises a test over ``cases``."""
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])

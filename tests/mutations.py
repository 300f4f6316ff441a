"""Single mutations of generated PTX: a barrier dropped, the address of one access or one index shifted.

A mutant stays parsable PTX with the same line numbers, so that what a fault blames can be looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath

import pytest

from fftgen import emulate
from fftgen.simulator import Module, parse
from fftgen.simulator.syntax import Addr, Imm, Instruction, Operand

_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_MATRIX_STEP = 32  # bytes that the address of a wmma tile is aligned to: a smaller shift would be Misaligned
_COPIED = 16  # bytes of an asynchronous copy
_BLOCK_INDEX = re.compile(r"mov\.u32\s+(%\w+),\s*%ctaid\.x;")


@dataclass(frozen=True)
class Mutation:
    """One changed instruction. ``line`` counts from 1; ``text`` is what stands there instead.

    ``places`` are the (file, line) that the instruction comes from, the innermost inlined function first.
    ``instead`` is what ``text`` reads as: no instruction, one, or one and another.
    """

    entry: str
    line: int
    original: str
    text: str
    places: tuple[tuple[str, int], ...]
    instead: tuple[Instruction, ...]

    def apply(self, ptx: str) -> str:
        lines = ptx.split("\n")
        lines[self.line - 1] = self.text
        return "\n".join(lines)

    def module(self, right: Module) -> Module:
        """What parsing the changed text gives, without parsing it: from the module of the text as it was."""
        entry = right.entries[self.entry]
        (at,) = (i for i, instruction in enumerate(entry.instructions) if instruction.ptx_line == self.line)
        changed = replace(
            entry,
            instructions=(*entry.instructions[:at], *self.instead, *entry.instructions[at + 1 :]),
            labels={name: i + (len(self.instead) - 1) * (i > at) for name, i in entry.labels.items()},
        )
        others = {name: code for name, code in right.compiled.items() if name != self.entry}
        return replace(right, entries={**right.entries, self.entry: changed}, compiled=others)

    def __str__(self) -> str:
        becomes = self.text.strip() or "nothing"
        chain = " in ".join(f"{file}:{line}" for file, line in self.places)
        return f"{self.entry}, {chain}, PTX line {self.line}: {self.original.strip()} -> {becomes}"


@contextmanager
def running(mutant: Module) -> Iterator[None]:
    """Simulated calls run this module, whatever their PTX is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulate, "_parsed", lambda ptx, source: mutant)
        yield


@lru_cache(maxsize=2)
def _parsed(ptx: str) -> Module:
    return parse(ptx)


def _instructions(ptx: str) -> Iterator[tuple[Mutation, Instruction]]:
    """Every instruction, with the mutation that changes nothing."""
    lines = ptx.split("\n")
    module = _parsed(ptx)
    for name, entry in module.entries.items():
        for instruction in entry.instructions:
            text, loc, places = lines[instruction.ptx_line - 1], instruction.loc, []
            while loc is not None:
                places.append((PurePosixPath(module.files[loc.file]).name, loc.line))
                loc = loc.parent
            same = Mutation(name, instruction.ptx_line, text, text, tuple(places), (instruction,))
            yield same, instruction


def dropped_barriers(ptx: str) -> list[Mutation]:
    """Every barrier of a block (``bar.sync``, ``barrier.sync``) or a warp (``bar.warp.sync``), left out."""
    return [
        replace(same, text="", instead=())
        for same, instruction in _instructions(ptx)
        if instruction.parts[0] in ("bar", "barrier") and "sync" in instruction.parts
    ]


def shifted_indices(ptx: str) -> list[Mutation]:
    """Every access to shared or device memory one element further and one before; the block index + 1.

    Of an asynchronous copy where it reads from. Not the thread index: lanes that all move on by one share out
    the same work. An element is what the instruction moves (for a matrix tile, the least step that alignment
    allows), so no shift is found by its alignment alone.
    """
    found = []
    for same, instruction in _instructions(ptx):
        index = _BLOCK_INDEX.search(same.text)
        if index is not None:
            added = f"add.u32 {index[1]}, {index[1]}, 1;"
            register = instruction.operands[0]
            one_more = Instruction(
                "add.u32",
                ("add", "u32"),
                (register, register, Imm(1)),
                None,
                added,
                instruction.ptx_line,
                instruction.loc,
            )
            found.append(replace(same, text=f"{same.text} {added}", instead=(instruction, one_more)))
        step = _step(instruction.parts)
        for shift in (step, -step) if step else ():
            # An asynchronous copy names first where it writes to.
            *kept, last = (i for i, operand in enumerate(instruction.operands) if isinstance(operand, Addr))
            assert len(kept) == (instruction.parts[0] == "cp"), f"PTX line {same.line}: {same.text}"
            operands = list(instruction.operands)
            operands[last] = _further(operands[last], shift)
            moved = replace(instruction, text=_shifted(instruction.text, shift), operands=tuple(operands))
            found.append(replace(same, text=_shifted(same.text, shift), instead=(moved,)))
    return found


def _step(parts: tuple[str, ...]) -> int:
    """Bytes of one element of an access to shared or device memory; 0 for anything else."""
    if parts[:2] in (("wmma", "load"), ("wmma", "store")):
        return _MATRIX_STEP
    if parts[:3] == ("cp", "async", "cg"):
        return _COPIED
    if parts[0] not in ("ld", "st", "red", "atom") or {"param", "local", "const"} & set(parts):
        return 0
    width = re.fullmatch(r"[busf](\d+)", parts[-1])
    assert width is not None, f"no width in {'.'.join(parts)}"
    vector = next((int(p[1:]) for p in parts if re.fullmatch(r"v[248]", p)), 1)
    return vector * _BYTES[width[1]]


def _shifted(text: str, shift: int) -> str:
    """With its last address that much further."""
    return re.sub(r"\[([^\]]+)\](?!.*\[)", lambda m: _moved(m[1], shift), text)


def _further(operand: Operand, shift: int) -> Operand:
    assert isinstance(operand, Addr)
    return replace(operand, offset=operand.offset + shift)


def _moved(address: str, shift: int) -> str:
    base, _, offset = address.partition("+")
    return f"[{base.strip()}+{int(offset or 0) + shift}]"

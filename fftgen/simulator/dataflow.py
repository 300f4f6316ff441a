"""Which registers are surely written where they are read: a forward must-analysis on the control-flow graph.

Only registers that fail it are tracked while the kernel runs, so that the check costs nothing for the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from fftgen.simulator.syntax import Addr, Entry, Instruction, Not, Operand, Pair, Reg, Sym, Vec

_NO_RESULT = {
    "st", "red", "bra", "ret", "exit", "trap", "brkpt", "prefetch", "prefetchu", "nanosleep", "membar",
    "fence", "stmatrix", "cp", "pmevent", "applypriority", "discard", "griddepcontrol", "setmaxnreg",
}  # fmt: skip


def registers(operand: Operand) -> Iterator[Reg]:
    """The registers that an operand mentions."""
    if isinstance(operand, Reg):
        yield operand
    elif isinstance(operand, Vec):
        for item in operand.items:
            yield from registers(item)
    elif isinstance(operand, Not):
        yield operand.reg
    elif isinstance(operand, Pair):
        yield from registers(operand.first)
        yield from registers(operand.second)
    elif isinstance(operand, Addr):
        yield from registers(operand.base)


def has_result(ins: Instruction) -> bool:
    """Whether the first operand is written."""
    word = ins.parts[0]
    if word in _NO_RESULT or not ins.operands:
        return False
    if word in ("bar", "barrier"):
        return "red" in ins.parts
    return not (word == "wmma" and ins.parts[1] == "store") and not isinstance(ins.operands[0], Addr)


def _writes(ins: Instruction) -> int:
    bits = 0
    if has_result(ins):
        for reg in registers(ins.operands[0]):
            bits |= 1 << reg.index
    return bits


def _reads(ins: Instruction) -> int:
    bits = 0
    for operand in ins.operands[1 if has_result(ins) else 0 :]:
        for reg in registers(operand):
            bits |= 1 << reg.index
    if ins.guard is not None:
        bits |= 1 << ins.guard[0].index
    return bits


def leaders(entry: Entry) -> set[int]:
    """Where straight-line pieces of code begin."""
    found = {0, *entry.labels.values()}
    for pc, ins in enumerate(entry.instructions):
        if ins.parts[0] in ("bra", "ret", "exit"):
            found.add(pc + 1)
    return found


def perhaps_unwritten(entry: Entry) -> tuple[list[frozenset[int]], frozenset[int]]:
    """For every instruction the registers it reads that may be unwritten; and all of them together."""
    code = entry.instructions
    starts = sorted(s for s in leaders(entry) if s < len(code))
    ends = dict(zip(starts, [*starts[1:], len(code)], strict=True))
    everything = (1 << len(entry.registers)) - 1
    entering = dict.fromkeys(starts, everything)
    writes = [_writes(i) for i in code]
    copies = [_copy_sources(i) for i in code]

    def through(known: int, pc: int) -> int:
        if copies[pc] & ~known:
            return known if code[pc].guard is not None else known & ~writes[pc]
        return known if code[pc].guard is not None else known | writes[pc]

    work = [0] if code else []
    if code:
        entering[0] = 0
    seen: set[int] = set()
    while work:
        start = work.pop()
        seen.add(start)
        known = entering[start]
        for pc in range(start, ends[start]):
            known = through(known, pc)
        for target in _successors(entry, ends[start] - 1):
            if target in entering:
                merged = entering[target] & known
                if merged != entering[target] or target not in seen:
                    entering[target] = merged
                    work.append(target)
    maybe: list[frozenset[int]] = [frozenset()] * len(code)
    total = 0
    for start in starts:
        known = entering[start]
        for pc in range(start, ends[start]):
            unsure = _reads(code[pc]) & ~known
            if unsure:
                maybe[pc] = frozenset(_bits(unsure))
                total |= unsure
            known = through(known, pc)
    return maybe, frozenset(_bits(total))


def _copy_sources(ins: Instruction) -> int:
    """The registers that a mov copies, packs or unpacks: what is unwritten in them stays so."""
    return _reads(ins) if ins.parts[0] == "mov" and ins.guard is None else 0


def _successors(entry: Entry, pc: int) -> list[int]:
    ins = entry.instructions[pc]
    word = ins.parts[0]
    after = [pc + 1] if word not in ("bra", "ret", "exit") or ins.guard is not None else []
    if word == "bra" and isinstance(ins.operands[0], Sym):
        after.append(entry.labels.get(ins.operands[0].name, pc + 1))
    return after


def _bits(value: int) -> Iterator[int]:
    while value:
        low = value & -value
        yield low.bit_length() - 1
        value ^= low

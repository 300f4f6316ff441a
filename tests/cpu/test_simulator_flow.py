"""Random structured control flow against a walk through the same program thread by thread."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from simulator_kit import launch, out, ptx, ro

REGISTERS = 5
THREADS = 70
MASK = 2**32 - 1
COMPARE = {
    "lt.u32": lambda a, b: a < b,
    "eq.u32": lambda a, b: a == b,
    "gt.s32": lambda a, b: (a ^ 2**31) > (b ^ 2**31),
}
ARITHMETIC = {
    "add.u32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "xor.b32": lambda a, b: a ^ b,
    "mul.lo.u32": lambda a, b: a * b,
    "max.u32": max,
    "shr.u32": lambda a, b: a >> min(b, 32),
}


@dataclass
class Node:
    """A step (``op`` and registers), a choice, a loop of bounded length, or an early return."""

    kind: str
    op: str = ""
    target: int = 0
    left: int = 0
    right: int = 0
    guard: bool = False
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def draw(rng: np.random.Generator, depth: int, size: int) -> list[Node]:
    nodes = []
    for _ in range(size):
        kind = rng.choice(
            ["step", "step", "step", "if", "loop", "return"], p=[0.2, 0.2, 0.2, 0.25, 0.13, 0.02]
        )
        if depth == 0 and kind != "return":
            kind = "step"
        node = Node(str(kind), target=int(rng.integers(REGISTERS)), left=int(rng.integers(REGISTERS)))
        node.right, node.guard = int(rng.integers(REGISTERS)), bool(rng.random() < 0.3)
        node.op = str(rng.choice(list(COMPARE if kind in ("if", "loop") else ARITHMETIC)))
        if kind in ("if", "loop"):
            node.body = draw(rng, depth - 1, int(rng.integers(1, 4)))
            node.other = draw(rng, depth - 1, int(rng.integers(0, 3))) if kind == "if" else []
        nodes.append(node)
    return nodes


class Writer:
    """PTX of a program: registers %r10.., loop counters %r20.. by depth, a fresh label for every target."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.labels = 0

    def label(self) -> str:
        self.labels += 1
        return f"L{self.labels}"

    def write(self, nodes: list[Node], depth: int = 0) -> None:
        add = self.lines.append
        for node in nodes:
            a, b, d = (f"%r{10 + i}" for i in (node.left, node.right, node.target))
            if node.kind == "step":
                guard = ""
                if node.guard:
                    add(f"setp.lt.u32 %p2, {b}, {a};")
                    guard = "@!%p2 "
                add(f"{guard}{node.op} {d}, {a}, {b};")
            elif node.kind == "return":
                add(f"setp.eq.u32 %p2, {a}, {b};\n@%p2 ret;")
            elif node.kind == "if":
                otherwise, join = self.label(), self.label()
                add(f"setp.{node.op} %p1, {a}, {b};\n@!%p1 bra {otherwise};")
                self.write(node.body, depth + 1)
                add(f"bra {join};\n{otherwise}:")
                self.write(node.other, depth + 1)
                add(f"{join}:")
            else:
                again, done, counter = self.label(), self.label(), f"%r{20 + depth}"
                add(f"and.b32 {counter}, {a}, 7;\n{again}:")
                add(f"setp.eq.u32 %p1, {counter}, 0;\n@%p1 bra {done};\nadd.u32 {counter}, {counter}, -1;")
                self.write(node.body, depth + 1)
                add(f"setp.{node.op} %p1, {a}, {b};\n@%p1 bra {again};\n{done}:")


class Returned(Exception):
    """A thread has ended early."""


def walk(nodes: list[Node], r: list[int]) -> None:
    """What one thread does."""
    for node in nodes:
        if node.kind == "step":
            if not (node.guard and r[node.right] < r[node.left]):
                r[node.target] = ARITHMETIC[node.op](r[node.left], r[node.right]) & MASK
        elif node.kind == "return":
            if r[node.left] == r[node.right]:
                raise Returned
        elif node.kind == "if":
            walk(node.body if COMPARE[node.op](r[node.left], r[node.right]) else node.other, r)
        else:
            turns = r[node.left] & 7
            while turns:
                turns -= 1
                walk(node.body, r)
                if not COMPARE[node.op](r[node.left], r[node.right]):
                    break


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_thread_takes_its_own_way(depth: int, rng: np.random.Generator) -> None:
    for _ in range(12):
        program = draw(rng, depth, 6)
        x = (
            rng.integers(0, 2**32, (THREADS, REGISTERS), np.uint64)
            >> rng.integers(0, 32, (THREADS, 1), np.uint64)
        ).astype(np.uint32)
        writer = Writer()
        writer.write(program)
        step = 4 * REGISTERS
        loads = "\n".join(f"ld.global.u32 %r{10 + i}, [%d1+{4 * i}];" for i in range(REGISTERS))
        stores = "\n".join(f"st.global.u32 [%d2+{4 * i}], %r{10 + i};" for i in range(REGISTERS))
        body = f"""
          mul.wide.u32 %d0, %tx, {step};  add.u64 %d1, %x, %d0;  add.u64 %d2, %y, %d0;
          {loads}
          {stores}
        """
        text = ptx(body + "\n".join(writer.lines) + "\n" + stores, "x y")
        got = launch(text, {"x": ro(x), "y": out((THREADS, REGISTERS))}, block=THREADS)["y"]
        for thread in range(THREADS):
            r = x[thread].tolist()
            try:
                walk(program, r)
            except Returned:
                r = x[thread].tolist()
            assert got[thread].tolist() == r, f"thread {thread} started with {x[thread].tolist()}:\n{text}"

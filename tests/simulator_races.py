"""Random programs of memory accesses and barriers, and which of their accesses race by vector clocks.

A program is one sequence of events; what a warp runs is the part of the sequence that concerns it. The
sequence is itself a schedule that works, so that no program can hang, and the order that barriers create does
not depend on the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from simulator_kit import ptx

Array = np.ndarray[Any, Any]
WARPS = 3
WORDS = 6
SINGLE_LANES = (0, 5, 17, 31)


@dataclass(frozen=True)
class Event:
    """``kind``: ld, st, red (one lane, or all for ``lane`` -1), warp (bar.warp.sync), bar, arrive.

    Accesses touch ``size`` bytes from byte ``at``. ``half`` 0 or 1: bar.warp.sync of half the warp.
    """

    kind: str
    warps: tuple[int, ...]
    lane: int = -1
    at: int = 0
    size: int = 4
    half: int = -1
    waiting: tuple[int, ...] = ()
    number: int = 0

    @property
    def is_access(self) -> bool:
        return self.kind in ("ld", "st", "red")


@dataclass
class Clocks:
    """Vector clocks of all threads, and every access so far with the clock of its thread."""

    threads: int
    now: Array = field(init=False)
    past: list[tuple[int, Event, Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = np.eye(self.threads, dtype=np.int64)

    def join(self, arriving: Array, waiting: Array) -> None:
        """Whatever ``arriving`` and ``waiting`` did comes before what ``waiting`` do next."""
        together = self.now[np.union1d(arriving, waiting)].max(axis=0)
        self.now[waiting] = np.maximum(self.now[waiting], together)
        self.now[waiting, waiting] += 1
        self.now[arriving, arriving] += 1

    def conflicts(self, event: Event) -> list[int]:
        """Indices of the earlier events that race with ``event``."""
        mine = threads_of(event)
        found = []
        for index, other, theirs, clocks in self.past:
            apart = other.at >= event.at + event.size or event.at >= other.at + other.size
            if apart or (other.kind == event.kind and event.kind in ("ld", "red")):
                continue
            ordered = self.now[np.ix_(mine, theirs)] >= clocks
            if (~ordered & (mine[:, None] != theirs)).any():
                found.append(index)
        return found

    def access(self, index: int, event: Event) -> None:
        mine = threads_of(event)
        self.past.append((index, event, mine, self.now[mine, mine].copy()))
        self.now[mine, mine] += 1


def threads_of(event: Event) -> Array:
    lanes = [event.lane] if event.lane >= 0 else range(32)
    return np.array([32 * warp + lane for warp in event.warps for lane in lanes])


def synchronised(event: Event) -> tuple[Array, Array]:
    """The threads that a barrier orders: who arrives, and who waits."""
    threads = warp_threads(event.warps)
    if event.half >= 0:
        threads = threads[(threads % 32 >= 16) == bool(event.half)]
        return threads, threads
    return threads, warp_threads(event.waiting)


def warp_threads(warps: tuple[int, ...]) -> Array:
    return np.array([32 * warp + lane for warp in warps for lane in range(32)], dtype=np.int64)


@dataclass(frozen=True)
class Program:
    events: tuple[Event, ...]
    races: frozenset[tuple[int, int]]
    """Pairs of events (earlier, later) with unordered accesses."""


def draw_program(rng: np.random.Generator, length: int, blocks: int = 1, sloppy: float = 0.06) -> Program:
    """A program that is synchronised where it has to be, except with probability ``sloppy``."""
    warps = WARPS * blocks
    clocks = Clocks(32 * warps)
    events: list[Event] = []
    races: set[tuple[int, int]] = set()
    numbers = iter(range(1, 16))

    def add(event: Event) -> None:
        if event.is_access:
            races.update((earlier, len(events)) for earlier in clocks.conflicts(event))
            clocks.access(len(events), event)
        else:
            clocks.join(*synchronised(event))
        events.append(event)

    def synchronise(event: Event) -> None:
        """Orders ``event`` after what it conflicts with, by the narrowest means half of the time."""
        others = {w for index in clocks.conflicts(event) for w in events[index].warps}
        mine = event.warps[0]
        if any(w // WARPS != mine // WARPS for w in others):
            return  # nothing orders blocks
        block = tuple(range(mine // WARPS * WARPS, (mine // WARPS + 1) * WARPS))
        if others == {mine}:
            if rng.random() < 0.4:
                add(Event("warp", event.warps, waiting=event.warps, half=int(rng.integers(2))))
            if clocks.conflicts(event):
                add(Event("warp", event.warps, waiting=event.warps))
        elif blocks == 1 and rng.random() < 0.6 and (number := next(numbers, 0)):
            group = tuple(sorted(others | {mine}))
            arriving = tuple(sorted(others - {mine}))
            if rng.random() < 0.5:
                add(Event("arrive", arriving, waiting=(mine,), number=number))
            else:
                add(Event("bar", group, waiting=group, number=number))
            if mine in others and clocks.conflicts(event):
                add(Event("warp", event.warps, waiting=event.warps))
        else:
            add(Event("bar", block, waiting=block))

    for _ in range(length):
        kind = str(rng.choice(["ld", "ld", "st", "red"]))
        lane = int(rng.choice(SINGLE_LANES)) if kind == "st" or rng.random() < 0.6 else -1
        size = 4 if kind == "red" else int(rng.choice([1, 2, 4, 4, 4, 8]))
        at = size * int(rng.integers(4 * WORDS // size))
        event = Event(kind, (int(rng.integers(warps)),), lane, at, size)
        if clocks.conflicts(event) and rng.random() > sloppy:
            synchronise(event)
            if clocks.conflicts(event):
                continue
        add(event)
    return Program(tuple(events), frozenset(races))


def render(program: Program, space: str, blocks: int = 1) -> tuple[str, list[int]]:
    """The PTX of a program, and the line of every event's access (0 for barriers)."""
    base = "%sm" if space == "shared" else "%z"
    lines = ["  mov.u32 %r1, 1;  mov.u64 %d0, 2;  setp.lt.u32 %p8, %lane, 16;"]
    if space == "shared":
        lines.append(f"  setp.lt.u32 %p1, %tx, {WORDS};  shl.b32 %r2, %tx, 2;  add.u32 %r2, %r2, %sm;")
        lines.append("  @%p1 st.shared.u32 [%r2], %tx;\n  bar.sync 0;")
    lines += [f"  setp.eq.u32 %p{2 + i}, %lane, {lane};" for i, lane in enumerate(SINGLE_LANES)]
    lines.append(f"  mad.lo.u32 %r3, %bx, {WARPS}, %warp;")
    total = WARPS * blocks
    for warp in range(total):
        lines.append(f"  setp.eq.u32 %p9, %r3, {warp};  @%p9 bra WARP{warp};")
    lines.append("  trap;")
    for warp in range(total):
        lines.append(f"WARP{warp}:")
        for index, event in enumerate(program.events):
            text = _render_event(event, warp, space, base)
            if text:
                lines.append(f"  {text} // event {index}" if event.is_access else f"  {text}")
        lines.append("  bra END;")
    lines.append("END:")
    text = ptx("\n".join(lines), "z", shared=4 * WORDS if space == "shared" else 0)
    numbered = {
        int(line.rpartition("// event ")[2]): number
        for number, line in enumerate(text.splitlines(), 1)
        if "// event " in line
    }
    return text, [numbered.get(index, 0) for index in range(len(program.events))]


def _render_event(event: Event, warp: int, space: str, base: str) -> str:
    if warp not in event.warps and warp not in event.waiting:
        return ""
    place = f"[{base}+{event.at}]"
    register = "%d1" if event.size == 8 else "%r4"
    guard = f"@%p{2 + SINGLE_LANES.index(event.lane)} " if event.lane >= 0 else ""
    if event.kind == "ld":
        return f"{guard}ld.{space}.u{8 * event.size} {register}, {place};"
    if event.kind == "st":
        return f"{guard}st.{space}.u{8 * event.size} {place}, {'%d0' if event.size == 8 else '%r1'};"
    if event.kind == "red":
        return f"{guard}red.{space}.add.u32 {place}, 1;"
    if event.half >= 0:
        return f"@{'!' if event.half else ''}%p8 bar.warp.sync {0xFFFF << 16 * event.half:#x};"
    if event.kind == "warp":
        return "bar.warp.sync 0xffffffff;"
    if event.number == 0:
        return "bar.sync 0;"
    count = 32 * len({*event.warps, *event.waiting})
    return f"bar.{'sync' if warp in event.waiting else 'arrive'} {event.number}, {count};"

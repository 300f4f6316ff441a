"""Race detection under barriers of clusters against vector clocks on random programs: none missed, none
invented, parties named.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import simulator_races
from simulator_kit import launch
from simulator_races import SINGLE_LANES, WARPS, WORDS, Clocks, Event, Program, warp_threads

from fftgen.simulator import GlobalRace, SharedRace


def draw(
    rng: np.random.Generator,
    blocks: int,
    cluster: int,
    phases: int,
    sloppy: float,
    kinds: tuple[str, ...] = ("ld", "ld", "st", "red"),
) -> Program:
    """A program of all blocks: in every phase each warp arrives at a drawn moment, and waits later.

    Events of kind "come" (``half`` 1: relaxed) and "wait" are those of a cluster's barrier, each warp's at
    a place of its own, or at one for all if they have a ``number``; between them lie accesses, barriers of
    warps and of blocks. Conflicts are kept with probability ``sloppy`` only.
    """
    warps = WARPS * blocks
    clocks = Clocks(32 * warps)
    events: list[Event] = []
    races: set[tuple[int, int]] = set()

    def access() -> None:
        kind = str(rng.choice(kinds))
        lane = int(rng.choice(SINGLE_LANES)) if kind == "st" or rng.random() < 0.6 else -1
        size = 4 if kind == "red" else int(rng.choice([1, 2, 4, 4, 8]))
        event = Event(
            kind, (int(rng.integers(warps)),), lane, size * int(rng.integers(4 * WORDS // size)), size
        )
        found = clocks.conflicts(event)
        if found and rng.random() > sloppy:
            return
        races.update((earlier, len(events)) for earlier in found)
        clocks.access(len(events), event)
        events.append(event)

    def between() -> None:
        for _ in range(int(rng.integers(3))):
            access()
        chance = rng.random()
        if chance < 0.15:
            which = (int(rng.integers(warps)),)
            clocks.join(warp_threads(which), warp_threads(which))
            events.append(Event("warp", which, waiting=which))
        elif chance < 0.25:
            first = int(rng.integers(blocks)) * WARPS
            block = tuple(range(first, first + WARPS))
            clocks.join(warp_threads(block), warp_threads(block))
            events.append(Event("bar", block, waiting=block))

    for phase in range(1, phases + 1):
        meeting = phase if rng.random() < 0.4 else 0
        together = meeting or rng.random() < 0.3
        direct = rng.random() < 0.5
        careless = rng.random() < 0.1
        released = np.zeros((blocks // cluster, 32 * warps), np.int64)
        for _ in range(4):
            between()
        for warp in rng.permutation(warps).tolist():
            if not together:
                between()
            relaxed = careless and (meeting > 0 or bool(rng.random() < 0.5))
            threads = warp_threads((warp,))
            if not relaxed:
                group = warp // (WARPS * cluster)
                released[group] = np.maximum(released[group], clocks.now[threads].max(axis=0))
            clocks.now[threads, threads] += 1
            events.append(Event("come", (warp,), half=int(relaxed), number=meeting))
        if not direct:
            for _ in range(4):
                between()
        for warp in rng.permutation(warps).tolist():
            threads = warp_threads((warp,))
            clocks.now[threads] = np.maximum(clocks.now[threads], released[warp // (WARPS * cluster)])
            events.append(Event("wait", (warp,), number=meeting))
            if not together:
                between()
    return Program(tuple(events), frozenset(races))


def rendered(program: Program, blocks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[int]]:
    """The PTX of a program, and the line of every event's access (0 for barriers)."""
    plain = simulator_races._render_event
    meetings: dict[str, tuple[str, list[str]]] = {}

    def render_event(event: Event, warp: int, space: str, base: str) -> str:
        if event.kind not in ("come", "wait"):
            return plain(event, warp, space, base)
        if warp not in event.warps:
            return ""
        code = "barrier.cluster.wait.aligned;"
        if event.kind == "come":
            code = f"barrier.cluster.arrive{'.relaxed' if event.half == 1 else ''}.aligned;"
        if not event.number:
            return code
        place = f"{event.kind.upper()}{event.number}"
        back = f"BACK_{place}_{warp}"
        _, dispatch = meetings.setdefault(place, (code, []))
        dispatch.append(f"  setp.eq.u32 %p9, %r3, {warp};  @%p9 bra {back};")
        return f"bra {place};\n{back}:"

    with monkeypatch.context() as patch:
        patch.setattr(simulator_races, "_render_event", render_event)
        text, lines = simulator_races.render(program, "global", blocks)
    shared = [f"{place}:\n  {code}\n" + "\n".join(back) for place, (code, back) in meetings.items()]
    return text.replace("\nEND:", "\n" + "\n".join([*shared, "END:"])), lines


def distributed(program: Program, blocks: int, home: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same program on words in the shared memory of block ``home``, written before it begins.

    That block names them now by their own address and now by the one that all others use.
    """
    text, lines = rendered(program, blocks, monkeypatch)
    sync = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
    start = (
        f".shared .align 16 .b8 words[{4 * WORDS}]; mapa.shared::cluster.u32 %r20, words, {home};"
        f" mov.u32 %r21, words; mad.lo.u32 %r22, %tx, 4, %r21; setp.lt.u32 %p1, %tx, {WORDS};"
        f" @%p1 st.shared.u32 [%r22], %tx; {sync} mov.u32 %r1, 1;"
    )
    rows = text.replace("  mov.u32 %r1, 1;", start, 1).replace("END:", f"END: {sync}").splitlines()
    for index, (event, line) in enumerate(zip(program.events, lines, strict=True)):
        if line:
            own = event.warps[0] // WARPS == home and index % 2
            space = ("shared", "[%r21+") if own else ("shared::cluster", "[%r20+")
            rows[line - 1] = rows[line - 1].replace("global", space[0]).replace("[%z+", space[1])
    return "\n".join(rows)


def judge(text: str, program: Program, lines: list[int], blocks: int, cluster: int) -> str:
    """What is wrong with the simulator's verdict about ``program``; empty if nothing is."""
    pairs = {frozenset((lines[a], lines[b])) for a, b in program.races}
    try:
        launch(text, {"z": np.zeros(WORDS, np.uint32)}, block=32 * WARPS, grid=blocks, cluster=cluster)
    except (SharedRace, GlobalRace) as fault:
        other = re.search(r"line (\d+)", fault.other or "")
        named = frozenset((fault.ptx_line, int(other[1]))) if other else frozenset()
        if not pairs:
            return f"false alarm:\n{fault}\n{text}"
        return (
            ""
            if named in pairs
            else f"{sorted(map(sorted, pairs))} race, blamed {sorted(named)}:\n{fault}\n{text}"
        )
    return f"missed {sorted(map(sorted, pairs))}:\n{text}" if pairs else ""


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("blocks", "cluster"), [(2, 2), (4, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("phases", [1, 3])
def test_races_are_those_of_vector_clocks(
    blocks: int, cluster: int, phases: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    racy = 0
    for _ in range(30):
        program = draw(rng, blocks, cluster, phases, sloppy=0.12 / phases)
        racy += bool(program.races)
        text, lines = rendered(program, blocks, monkeypatch)
        verdict = judge(text, program, lines, blocks, cluster)
        assert not verdict, verdict
    assert 0 < racy < 30, "the draw has to hold sound and faulty programs"


@pytest.mark.parametrize("cluster", [2, 3])
@pytest.mark.parametrize("phases", [1, 3])
def test_races_in_distributed_shared_memory(
    cluster: int, phases: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    racy = 0
    for _ in range(30):
        program = draw(rng, cluster, cluster, phases, sloppy=0.12 / phases, kinds=("ld", "ld", "st"))
        racy += bool(program.races)
        _, lines = rendered(program, cluster, monkeypatch)
        text = distributed(program, cluster, int(rng.integers(cluster)), monkeypatch)
        verdict = judge(text, program, lines, cluster, cluster)
        assert not verdict, verdict
    assert 0 < racy < 30, "the draw has to hold sound and faulty programs"

"""Race detection against vector clocks on random programs: none missed, none invented, parties named."""

from __future__ import annotations

import re

import numpy as np
import pytest
from simulator_kit import launch
from simulator_races import WARPS, WORDS, Program, draw_program, render

from fftgen.simulator import GlobalRace, SharedRace


def judge(program: Program, space: str, blocks: int) -> str:
    """What is wrong with the simulator's verdict about ``program``; empty if nothing is."""
    text, lines = render(program, space, blocks)
    pairs = {frozenset((lines[a], lines[b])) for a, b in program.races}
    try:
        launch(text, {"z": np.zeros(WORDS, np.uint32)}, block=32 * WARPS, grid=blocks)
    except (SharedRace, GlobalRace) as fault:
        if not pairs:
            return f"false alarm:\n{fault}\n{text}"
        other = re.search(r"line (\d+)", fault.other or "")
        named = frozenset((fault.ptx_line, int(other[1]))) if other else frozenset()
        return (
            ""
            if named in pairs
            else f"{sorted(map(sorted, pairs))} race, blamed {sorted(named)}:\n{fault}\n{text}"
        )
    return f"missed {sorted(map(sorted, pairs))}:\n{text}" if pairs else ""


@pytest.mark.drawn(3)
@pytest.mark.parametrize(("space", "blocks"), [("shared", 1), ("global", 1), ("global", 2)])
@pytest.mark.parametrize("length", [6, 14, 40])
def test_races_are_those_of_vector_clocks(
    space: str, blocks: int, length: int, rng: np.random.Generator
) -> None:
    racy = 0
    for _ in range(60):
        program = draw_program(rng, length, blocks, sloppy=2.0 / length)
        racy += bool(program.races)
        verdict = judge(program, space, blocks)
        assert not verdict, verdict
    assert 0 < racy < 60, "the draw has to hold sound and faulty programs"

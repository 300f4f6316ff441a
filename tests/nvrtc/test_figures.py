"""``fftgen figures``: the page that is committed says what a new count says, and its bounds hold."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from command_line import why_not

from fftgen import figures, gradient_figures, nvrtc
from fftgen.bundle import in_sections
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PAGE = Path(__file__).parents[2] / "FIGURES.md"


@cache
def page() -> str:
    text = PAGE.read_text()
    if f"nvrtc {nvrtc.build()}" not in text:
        pytest.skip("the page is about the code of another NVRTC")
    return text


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]


@pytest.mark.drawn(2)
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("gated", [False, True])
def test_the_page_says_what_is_counted(mode: str, gated: bool) -> None:
    found = figures.figures(Problem(mode, 256, "bf16"), gated)
    assert rows(figures.page([found], "sm_90", "x"))[1:] == [
        line for line in rows(page()) if line.startswith(f"| {mode} 256{', gated' if gated else ''} ")
    ]


def planned(length: int, signals: bool) -> Gradient:
    problem = Problem("causal", length, "bf16")
    found = backward(problem, "sm_90") if signals else gradient(problem, "sm_90")
    assert found is not None
    return found


@pytest.mark.drawn(4)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("signals", [False, True], ids=["of the filter", "all"])
def test_the_page_says_what_is_counted_of_gradients(gated: bool, signals: bool) -> None:
    found = gradient_figures.gradient_figures(planned(256, signals), gated)
    kind = [line for line in rows(page()) if line.startswith(f"| 256{', gated' if gated else ''} ")]
    assert rows(gradient_figures.section([found]))[-1:] == [kind[signals]]


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_the_page_says_what_is_counted_of_sections(gated: bool) -> None:
    problem, kind = Problem("causal", 65_536, "bf16"), ", gated" if gated else ""
    cut = in_sections(problem, target("sm_90"))
    found = figures.figures(problem, gated, plan=cut)
    assert rows(figures.page([found], "sm_90", "x"))[1:] == [
        line for line in rows(page()) if line.startswith(f"| causal 65536, in sections{kind} |")
    ]
    (whole, sections) = gradient_figures.of_all(problem, "sm_90")
    assert not whole.sums
    of_gradient = gradient_figures.gradient_figures(sections, gated)
    assert rows(gradient_figures.section([of_gradient]))[-1:] == [
        line for line in rows(page()) if line.startswith(f"| 65536{kind} |") and "2 sections" in line
    ]


def test_the_bounds_of_4096_points() -> None:
    """Issue "Speed": operations the least, sectors, wavefronts, instructions, warps and no spill."""
    found = figures.figures(Problem("causal", 4096, "bf16"), gated=False)
    assert found.operations == found.least_operations == 640
    assert found.reasons == []


def test_gradients_of_4096_points() -> None:
    """Two forward halves and a product: no more than a convolution and a half, nothing moved twice."""
    found = gradient_figures.gradient_figures(planned(4096, signals=False), False)
    assert found.operations == found.least_operations == 640
    assert (found.sectors, found.wavefronts, found.spilled) == (1.0, 1.0, 0)
    # 16 of them are what one warp of eight does to bring rows ahead, counted as if all did.
    assert sum(found.instructions.values()) <= 1.6 * figures.INSTRUCTIONS
    assert found.resident >= figures.WARPS


def test_all_gradients_of_4096_points() -> None:
    """Two transforms there and back: nothing more than two convolutions, nothing moved twice."""
    found = gradient_figures.gradient_figures(planned(4096, signals=True), True)
    assert found.operations == found.least_operations == 2 * 640
    assert (found.sectors, found.spilled) == (1.0, 0)
    assert found.wavefronts is not None
    assert found.wavefronts <= 1.05
    assert found.resident >= figures.WARPS
    assert sum(found.instructions.values()) <= 4 * figures.INSTRUCTIONS

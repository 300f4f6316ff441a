"""Machine code of kernels whose blocks work together: what orders their memory, and what would go around it.

They read with plain loads what other blocks stored. That is right as the compiler makes of the barrier of a
cluster a fence of the whole device before it and throws the L1 cache away behind it, and as nothing but
signals and gates is loaded as a constant, past all that. The simulator knows the rules of PTX, not caches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import compiled
import pytest
from test_sections import changed

from fftgen import sass, toolkit
from fftgen.planner import gradient_sections, search, sections, whole
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.render import render, render_gradient
from fftgen.source import Source
from fftgen.targets import target

KINDS = ("sections", "gradients of sections", "rows in the L2", "rows in shared memory", "circles")
MUTATIONS = {
    "nothing is fenced": ("barrier.cluster.arrive.release;", "barrier.cluster.arrive.relaxed;"),
    "constants of the workspace": ("{ re = from[0], im =", "{ re.v[0] = __ldg(from[0].v), im ="),
}

pytestmark = pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="needs nvdisasm")


def source(kind: str, name: str) -> Source:
    def planned(problem: Problem) -> Plan:
        return search.plan(problem, name)

    if "sections" in kind:
        plan = sections.sectioned(Problem("causal", 131_072, "bf16"), 32_768, planned, False, True)
        assert plan is not None
        return render_gradient(gradient_sections.in_sections(plan)) if "gradients" in kind else render(plan)
    plan = planned(Problem("circular" if kind == "circles" else "causal", 65_536, "bf16"))
    if kind == "rows in shared memory":
        plan = replace(plan, whole=whole.cluster_kernels(plan, target(name))[0])
    return render(plan)


def is_coherent(made: Source, name: str) -> bool:
    """Whether every kernel with clusters has a fence and an empty L1 for each barrier of them, and constants
    that are read once, which signals and gates are."""
    found = sass.codes(sass.disassemble(compiled.cubin(made, name).cubin))
    counted = [Counter(code.opcodes) for code in found.values()]
    together = [opcodes for opcodes in counted if opcodes["UCGABAR_WAIT"] + opcodes["UCGABAR_ARV"]]
    assert together
    fenced = ("UCGABAR_ARV", "MEMBAR.ALL.GPU", "CCTL.IVALL")
    return all(
        all(opcodes[opcode] == opcodes["UCGABAR_WAIT"] >= 3 for opcode in fenced)
        and all(".NA." in opcode for opcode in opcodes if opcode.startswith("LDG") and "CONSTANT" in opcode)
        for opcodes in together
    )


@pytest.mark.drawn(5)
@pytest.mark.parametrize("name", ["sm_90", "sm_100"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_other_blocks_stored_is_loaded_behind_a_fence_and_past_stale_lines(kind: str, name: str) -> None:
    assert is_coherent(source(kind, name), name)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_it_right_is_missed(mutation: str) -> None:
    assert not is_coherent(changed(source("sections", "sm_90"), *MUTATIONS[mutation]), "sm_90")

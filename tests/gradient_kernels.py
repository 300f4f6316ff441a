"""What tests of a gradient's kernels share: of a filter alone, and of all gradients by one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from calls import built
from mutations import dropped_barriers, running

from fftgen import emulate, nvrtc
from fftgen.errors import InternalError
from fftgen.planner import search
from fftgen.planner.gradient import finished, fitting
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem
from fftgen.render import render_gradient
from fftgen.simulator import SimulationError
from fftgen.targets import target as find_target

# Barriers that another one stands in for, by the start of the source line before them.
DOUBLED = (
    "load<SHARED, true>(source, at, stride);",  # between two strips, for the compiler's sake
    "load<SHARED, true>(source, first, stride, lane);",  # the same of channels abreast
    "if (!even.finite || !odd.finite) {",  # for the compiler's sake as well
    "for (int n = 0; n < COLUMNS; ++n) load(",  # one comes before the next rows are stored
    "} else {",  # the chain before has ended its reads with one of its own
)


def every_kind(
    length: int, dtype: str, target: str, rng: np.random.Generator, *, signals: bool
) -> list[Gradient]:
    """Of every kind of layout that fits one, taken or not: one signal after the other, its spectrum in either
    memory, or both together; none, some or all of the sum in shared memory."""
    chip, kinds = find_target(target), defaultdict(list)
    for found in fitting(search.plan(Problem("causal", length, dtype), chip), chip, signals):
        partly = (found.sums_held > 0) + (found.held == 1)
        kinds[found.together, found.spectra_at >= 0, partly].append(found)
    drawn = (layouts[int(rng.integers(len(layouts)))] for layouts in kinds.values())
    return [finished(found, chip) for found in drawn]


def in_turn(length: int, dtype: str, target: str, *, signals: bool) -> Gradient:
    """A block's layout that takes one signal after the other and keeps all that it can in shared memory."""
    chip = find_target(target)
    layouts = fitting(search.plan(Problem("causal", length, dtype), chip), chip, signals)
    found = max((x for x in layouts if not x.together), key=lambda x: (x.spectra_at >= 0, x.held))
    return finished(found, chip)


def needless_barriers(found: Gradient, judge: Callable[[str], None]) -> list[str]:
    """Barriers of the gradient's own kernel without which ``judge``, given PTX, still finds nothing wrong."""
    module, ptx = built(found)
    right = emulate._parsed(ptx, module.source.text)
    files = {path.rpartition("/")[2]: text for path, text in module.source.headers.items()}
    survivors = []
    for mutation in dropped_barriers(ptx):
        if mutation.entry != found.name:
            continue
        try:
            with running(mutation.module(right)):
                judge(ptx)
        except (SimulationError, InternalError, AssertionError):
            continue
        file, line = mutation.places[0]
        before = files.get(file, module.source.text).splitlines()[line - 2].strip()
        if not before.startswith(DOUBLED):
            survivors.append(f"{before} | {mutation}")
    return survivors


def assert_nothing_spills(found: Gradient, target: str, few: int = 0) -> None:
    """Every kernel of the source comes out, as many blocks reside as planned, and no register spills.

    ``few``: bytes that the gradient's own kernel may spill.
    """
    source = render_gradient(found)
    resources = nvrtc.compile_cubin(source, target).resources
    assert set(resources) == set(source.entries)
    kernel = found.kernel
    assert resources[found.name].registers * kernel.warps * 32 * kernel.resident <= 65_536
    for name, one in resources.items():
        allowed = few if name == found.name else 0
        assert max(one.spill_store_bytes, one.spill_load_bytes) <= allowed, name

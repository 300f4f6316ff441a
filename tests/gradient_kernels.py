"""What tests of a gradient's kernels share: of a filter alone, and of all gradients by one pass."""

from __future__ import annotations

from collections.abc import Callable

from calls import built
from mutations import dropped_barriers, running

from fftgen import emulate, nvrtc
from fftgen.errors import InternalError
from fftgen.planner.gradient import Gradient
from fftgen.render import render_gradient
from fftgen.simulator import SimulationError

# Barriers that another one stands in for, by the start of the source line before them.
DOUBLED = (
    "load<SHARED, true>(source, at, stride);",  # between two strips, for the compiler's sake
    "for (int n = 0; n < COLUMNS; ++n) load(",  # one comes before the next rows are stored
    "} else {",  # the chain before has ended its reads with one of its own
)


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

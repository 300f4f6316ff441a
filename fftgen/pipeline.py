"""The whole way on one screen: problem -> plan -> source -> machine code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fftgen import nvrtc, shortcut
from fftgen.cache import Cache, Entry, Key
from fftgen.planner import tables
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import LOWER, Plan
from fftgen.problem import Problem
from fftgen.render import command, render, render_gradient
from fftgen.source import Source
from fftgen.targets import Target
from fftgen.targets import target as find_target


@dataclass(frozen=True)
class Built:
    """A plan with everything a launch needs. With ``gradient``: the kernels of its filter's gradient.

    ``cubin`` is empty for the virtual target, whose ``ptx`` the driver compiles. ``seconds`` is what the
    build took, and ``cached`` whether the cache had it.
    """

    plan: Plan
    source: Source
    cubin: bytes
    ptx: str
    tables: bytes
    resources: Mapping[str, nvrtc.Resources]
    seconds: float = 0.0
    cached: bool = False
    gradient: Gradient | None = None

    def __repr__(self) -> str:
        """The plan's line and sizes: source, PTX and code are megabytes."""
        found = (f"{len(self.image)} bytes of code", f"{len(self.tables)} of tables")
        return f"Built({self.subject}, {', '.join(found)}{', cached' if self.cached else ''})"

    @property
    def subject(self) -> Plan | Gradient:
        """What was decided about the kernels that are here: has a name, a digest and a line of text."""
        return self.gradient or self.plan

    @property
    def image(self) -> bytes:
        """What the driver loads: machine code, or PTX with the NUL byte that ends it."""
        return self.cubin or self.ptx.encode() + b"\0"

    @property
    def entries(self) -> dict[str, int]:
        """Kernel names and their dynamic shared memory in bytes."""
        filters = {self.plan.filter_entry(k): k.shared_bytes for k in self.plan.filter.kernels}
        if self.gradient is not None:
            around = (*self.gradient.before, *self.gradient.after)
            found = {self.plan.entry(k): k.shared_bytes for k in around}
            if self.gradient.sums:
                found[self.gradient.sums_name] = self.gradient.sums.shared_bytes
            return found | {self.gradient.name: self.gradient.kernel.shared_bytes} | filters
        return {self.plan.entry(k): k.shared_bytes for k in self.plan.every_kernel} | filters


def build(
    problem: Problem,
    target: str | Target,
    cache: Cache | None = None,
    engine: str | None = None,
    gpu: str = "",
) -> Built:
    """Plan, render and compile a problem for a target, through the cache.

    ``engine``: in place of the planner's choice; ``gpu``: the name of a GPU, for which ``fftgen tune`` may
    have kept a faster plan. Raises InputError, NoPlanError, CompileError, ToolchainError
    (NVRTC missing) or CacheMissError (FFTGEN_NO_JIT).
    """
    store = cache or Cache.default()
    return build_plan(shortcut.plan(store, problem, find_target(target), engine, gpu), store)


def build_plan(plan: Plan, cache: Cache | None = None) -> Built:
    """Render and compile a given plan, through the cache (``Cache(None)`` keeps nothing)."""
    return _build(plan, None, cache)


def build_gradient(found: Gradient, cache: Cache | None = None) -> Built:
    """Render and compile the kernels of a filter's gradient, through the cache."""
    return _build(found.plan, found, cache)


def _build(plan: Plan, found: Gradient | None, cache: Cache | None) -> Built:
    started = time.perf_counter()
    store = cache or Cache.default()
    note = shortcut.digest(store, found or plan)
    known = shortcut.find(store, note, plan)
    entry, block, cached = _make(plan, found, store, note) if known is None else (*known, True)
    seconds = time.perf_counter() - started
    return Built(plan, entry.source, entry.cubin, entry.ptx, block, entry.resources, seconds, cached, found)


def _make(plan: Plan, found: Gradient | None, store: Cache, note: str) -> tuple[Entry, bytes, bool]:
    """Entry, table block, and whether the cache had the former; noted for the next time."""
    source = render(plan) if found is None else render_gradient(found)
    how = "build --seqlen" if found is None and plan.outputs == 1 else "build --train --seqlen"
    compiled = False

    def make() -> Entry:
        nonlocal compiled
        compiled = True
        if find_target(plan.target).virtual:
            ptx = nvrtc.compile_ptx(source, plan.target, line_info=False)
            return Entry(source, plan.target, b"", ptx, {})
        return Entry.of(source, nvrtc.compile_cubin(source, plan.target))

    key = Key.of(source, plan.target)
    # Builds of a problem hold all that is of it.
    of = replace(plan, outputs=1, sections=1, spread=False, matrix=LOWER)
    said = command(of, own=found is not None).replace("render", how)
    entry = store.get_or_build(key, make, command=said)
    block = tables.build(plan)
    shortcut.keep(store, note, key.digest, block)
    return entry, block, not compiled

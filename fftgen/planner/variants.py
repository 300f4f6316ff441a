"""What else than the planner's choice could serve a problem: plans for a GPU to be timed against each other.

The cost model ranks them for a call of some size; what it does not know (latencies, what stages of different
transforms hide of each other, the rates that no datasheet tells) is for measurements to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from fftgen.errors import NoPlanError
from fftgen.planner import gradient as gradients
from fftgen.planner import mma_kernels, mma_rules, search
from fftgen.planner.call_cost import call_cost, gradient_call
from fftgen.planner.cost import cost
from fftgen.planner.engines import named_engine
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_work import gradient_cost
from fftgen.planner.launch import together
from fftgen.planner.layouts import by_matrices, every_layout, with_outer_split
from fftgen.planner.one_launch import expected
from fftgen.planner.order import same_spectrum
from fftgen.planner.plan import SIMT, Plan
from fftgen.planner.whole import cluster_kernels, cluster_sizes, held_kernel, share, whole_kernels
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

CHOICE = "the planner's choice"
SHAPES = 4  # of the cheapest are looked at: factors, transform, packing
LAYOUTS = 6  # of each
SLOWER = 1.6  # times what the choice is expected to take: more is not worth a look


Planned = TypeVar("Planned", Plan, Gradient)


@dataclass(frozen=True)
class Variant(Generic[Planned]):
    """A plan, what sets it apart, and the seconds that a call is expected to take (forward: ungated).

    ``exchangeable``: it reads a filter's spectrum as the planner's choice does, so that gradients and kernels
    with two outputs, which are planned by themselves, go with it.
    """

    plan: Planned
    about: str
    expected: float
    exchangeable: bool


def variants(
    problem: Problem, chip: Target, batch: int, channels: int, most: int
) -> tuple[Variant[Plan], ...]:
    """At most so many plans for calls on (batch, channels), of which no two come to the same launches.

    The planner's choice; its kernels in a launch for each stage, where one does them all; the best of every
    other way to launch; then the rest, both by expected time. Raises NoPlanError where there is no plan.
    """
    choice = search.plan(problem, chip)

    def judged(plan: Plan, about: str) -> Variant[Plan]:
        seconds = call_cost(plan, chip, cost(plan, chip), batch, channels).time
        return Variant(plan, about, seconds, same_spectrum(choice, plan))

    def launched(plan: Plan) -> tuple[object, ...]:
        return replace(plan, cluster=0).digest, together(plan, batch, channels)

    first = judged(choice, CHOICE)
    found = {launched(choice): first}
    kept = [first]
    if choice.whole is not None:
        staged = replace(choice, whole=None)
        kept.append(judged(staged, _apart(choice, staged)))
        found[launched(staged)] = kept[-1]
    if (whole := _by_matrices(choice, chip)) is not None:
        kept.append(judged(whole, _apart(choice, whole)))
        found[launched(whole)] = kept[-1]
    for candidate in search.search(problem, chip, engine=named_engine(choice))[:SHAPES]:
        if candidate.plan is None:
            break
        made = [judged(plan, _apart(choice, plan)) for plan in _of_shape(candidate.plan, chip)]
        for one in sorted(made, key=lambda v: v.expected):
            found.setdefault(launched(one.plan), one)
    return _ranked(kept, found.values(), _way)[:most]


def backward_variants(
    problem: Problem, chip: Target, batch: int, channels: int, most: int, gated: bool
) -> tuple[Variant[Gradient], ...]:
    """The same of the kernels that make all gradients by one pass, for the spectra of the planner's choice.

    The choice; the fastest of every kind of layout; then the rest. Raises NoPlanError where there are none.
    """
    choice = gradients.backward(problem, chip)
    if choice is None or choice.plan.engine == SIMT:
        raise NoPlanError(
            f"one pass for all gradients of {problem} on {chip.name} has no layouts to choose from", []
        )

    def judged(found: Gradient, about: str) -> Variant[Gradient]:
        price = gradient_cost(found, chip, gated=gated)
        return Variant(found, about, gradient_call(found, chip, price, batch, channels).time, True)

    first = judged(choice, CHOICE)
    found = {choice.digest: first}
    for layout in gradients.fitting(search.plan(problem, chip), chip, signals=True):
        made = gradients.finished(layout, chip)
        found.setdefault(made.digest, judged(made, _layout(made)))
    return _ranked([first], found.values(), _kind)[:most]


def _ranked(
    kept: list[Variant[Planned]],
    found: Iterable[Variant[Planned]],
    kind: Callable[[Planned], object],
) -> tuple[Variant[Planned], ...]:
    """What is kept, the choice first; then the best of every other kind, then the rest, by expected time."""
    close = (v for v in found if v not in kept and v.expected <= SLOWER * kept[0].expected)
    others = sorted(close, key=lambda v: v.expected)
    firsts = {kind(v.plan): v for v in others[::-1] + kept[::-1]}
    best = [v for v in others if firsts[kind(v.plan)] is v]
    return tuple(kept + best + [v for v in others if v not in best])


def _kind(found: Gradient) -> tuple[object, ...]:
    """What a layout of gradients does otherwise than others: warps, and what it keeps where."""
    return found.kernel.warps, found.kernel.resident, found.together, found.spectra_at >= 0, found.held > 0


def _layout(found: Gradient) -> str:
    """What sets a layout of gradients apart, in words."""
    k = found.kernel
    return f"{k.warps}w x{k.resident} group {k.group} columns {k.columns} brought {k.brought}, {found.kept}"


def _way(plan: Plan) -> tuple[int, ...]:
    """What the launches of a plan are: one for each stage, or one in clusters of some size and place."""
    kernel = plan.whole
    return () if kernel is None else (kernel.warps, kernel.resident, kernel.row, plan.cluster)


def _of_shape(found: Plan, chip: Target) -> Iterator[Plan]:
    """Layouts of a shape, and of each the ways to launch it."""
    layouts = [found] if found.engine != "mma" else [*_levels(found, chip)]
    for layout in sorted(layouts, key=lambda plan: expected(plan, cost(plan, chip)))[:LAYOUTS]:
        plan = search.finished(layout, chip)
        if not plan.chunk_bytes:
            yield plan
            continue
        staged = replace(plan, whole=None)
        yield staged
        yield replace(staged, chunk_bytes=max(4 * plan.transform, plan.chunk_bytes // 2))
        for kernel in whole_kernels(plan, chip):
            together = replace(plan, whole=kernel)
            yield from (replace(together, cluster=size) for size in cluster_sizes(together, chip))
        held = held_kernel(plan, chip)
        alone = () if held is None else (held,)
        yield from (replace(plan, whole=kernel) for kernel in (*cluster_kernels(plan, chip), *alone))


def _by_matrices(found: Plan, chip: Target) -> Plan | None:
    """The best layout of a shape with matrices in place of butterflies; None where it has no butterflies,
    or no block has room for matrices."""
    if by_matrices(found) == found:
        return None
    layouts = every_layout(by_matrices(found), chip)
    best = min(layouts, key=lambda plan: expected(plan, cost(plan, chip)), default=None)
    return None if best is None else search.finished(best, chip)


def _levels(found: Plan, chip: Target) -> Iterator[Plan]:
    """Layouts of a shape on the mma engine; of the planner's own with the other levels of twiddles, too, and
    those that ask for their rows when they need them."""
    for layout in every_layout(found, chip):
        yield layout
        if (asking := mma_kernels.waiting(layout)) != layout:
            yield asking
        if layout.block_stage and layout.body == found.body:
            stage = layout.inner[0]
            other = stage.rest if stage.two_levels else mma_rules.two_levels(layout.body)
            yield with_outer_split(layout, other)


def _apart(choice: Plan, plan: Plan) -> str:
    """What differs from the planner's choice, in words."""
    said = []
    if (plan.transform, plan.factors) != (choice.transform, choice.factors):
        said.append(f"{plan.transform} = {'·'.join(map(str, plan.factors))}")
    if plan.packing != choice.packing or plan.fold != choice.fold:
        said.append(f"{plan.packing}{f' fold {plan.fold}' if plan.fold else ''}")
    before = {k.label: k for k in choice.kernels}
    for kernel in plan.kernels:
        if kernel != before.get(kernel.label):
            said.append(
                f"{kernel.label} {kernel.warps}w x{kernel.resident} group {kernel.group} "
                f"columns {kernel.columns} brought {kernel.brought}"
            )
    if (tiles := plan.stages[0].butterflies) != choice.stages[0].butterflies:
        said.append(f"butterflies of {tiles}" if tiles > 1 else "matrices in place of butterflies")
    levels = [x.block_stage and x.inner[0].two_levels for x in (choice, plan)]
    if levels[0] != levels[1]:
        said.append(f"twiddles in {'two levels' if levels[1] else 'one level'}")
    if plan.chunk_bytes != choice.chunk_bytes:
        said.append(f"chunks of {plan.chunk_bytes >> 20} MiB")
    if (plan.whole, plan.cluster) != (choice.whole, choice.cluster):
        if plan.whole is None:
            said.append("a launch for each stage")
        else:
            (size, *_), held = cluster_sizes(plan, find_target(plan.target)), share(plan, plan.whole)
            part = "" if held == 1 else f"{held} of "
            said.append(
                f"one launch, {plan.whole.warps}w x{plan.whole.resident}, clusters of {plan.cluster or size}"
                + (f" that hold {part}a transform in shared memory" if held else "")
            )
    return ", ".join(said) or "the same kernels, other tables"

"""``fftgen verify``: kernels executed on the CPU, and machine code held against its source."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fftgen import api, bundle, nvrtc
from fftgen.bundle import open_shelf
from fftgen.cli.options import (
    SEED,
    STORAGE_TYPES,
    Place,
    common,
    engine,
    given,
    lengths,
    mode,
    plural,
    print_json,
)
from fftgen.errors import InputError, InternalError
from fftgen.pipeline import Built, build, build_plan
from fftgen.planner import search, sections
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.simulator import SimulationError
from fftgen.targets import Target
from fftgen.targets import target as find_target

if TYPE_CHECKING:
    from fftgen.verify import Verification


@dataclass(frozen=True)
class Work:
    """A module to run; ``same``: targets of the file whose plan differs in nothing that runs."""

    built: Built
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of it: a verification, or the fault that stopped it."""

    work: Work
    verification: Verification | None
    fault: str = ""

    @property
    def passed(self) -> bool:
        return self.verification is not None and self.verification.passed


@click.command("verify")
@click.argument("file", required=False, type=Place(path_type=Path))
@click.option("--seqlen", "seqlens", multiple=True, metavar="N|N..M", help="Length, or powers of two.")
@click.option("--dtype", "dtypes", multiple=True, default=("bf16",), show_default=True, help=STORAGE_TYPES)
@click.option(
    "--arch",
    "archs",
    multiple=True,
    help=f"Architecture. Default: {api.DEFAULT_TARGET}; of a FILE, one for each different plan.",
)
@mode
@engine
@click.option("--quick", is_flag=True, help="One case for each module.")
@click.option("--counters", is_flag=True, help="Print what every kernel did: instructions, bytes, conflicts.")
@click.option("--seed", type=SEED, help="Draws inputs and fragment layouts. Default: a new one, printed.")
@common
@click.pass_context
def command(
    ctx: click.Context,
    file: Path | None,
    seqlens: tuple[str, ...],
    dtypes: tuple[str, ...],
    archs: tuple[str, ...],
    causal: bool,
    engine: str | None,
    quick: bool,
    counters: bool,
    seed: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Execute the kernels of an artifact FILE, or of --seqlen, on the CPU and compare with float64.

    The PTX that NVRTC makes of a module's source runs in a simulator that stops at any access out of
    bounds, race, or read of unwritten memory. Of a FILE, the source is also compiled again and must give
    the machine code that the file holds. Exits with 1 when anything is wrong.
    """
    if (file is None) == (not seqlens):
        raise InputError("say what to verify: an artifact FILE or --seqlen N, one of them")
    useless = given(ctx, besides=("archs", "quick", "counters", "seed", "as_json", "verbose"))
    if file is not None and useless:
        raise InputError(
            f"the plans of a FILE are as they are: {' and '.join(useless)} "
            f"go{'es' if len(useless) == 1 else ''} with --seqlen"
        )
    targets = tuple(find_target(a) for a in dict.fromkeys(archs))
    code: dict[str, str] = {}
    if file is not None:
        contents = open_shelf(file).contents
        modules = [bundle.unpack(m) for m in contents.modules]
        works = _selected(modules, targets) if targets else _representatives(modules)
        code = {b.subject.name: _recompiled(b, contents.compiler) for b in modules}
    else:
        problems = [api.problem(n, dtype, causal=causal) for n in lengths(seqlens) for dtype in dtypes]
        chips = targets or (find_target(api.DEFAULT_TARGET),)
        works = [work for p in problems for chip in chips for work in _planned(p, chip, engine)]
    seed = secrets.randbelow(2**31) if seed is None else seed
    outcomes = []
    for number, work in enumerate(works, 1):
        click.echo(f"[{number}/{len(works)}] {work.built.subject.name}", err=True)
        outcomes.append(_run(work, seed, quick))
        if not as_json:
            _show(outcomes[-1], counters)
    failed = [o for o in outcomes if not o.passed]
    different = [name for name, verdict in code.items() if verdict == "different"]
    if as_json:
        print_json({"seed": seed, "modules": [_document(o) for o in outcomes], "code": code})
    else:
        _show_code(code)
        click.echo(f"{plural(len(outcomes), 'module')} run, {len(failed)} failed; seed {seed}")
    if failed or different:
        ctx.exit(1)


def _planned(problem: Problem, chip: Target, engine: str | None) -> list[Work]:
    """The planner's choice, and where no engine is asked for plans in sections, which many rows may take, of
    filters that act backwards as well."""
    made = [build(problem, chip, engine=engine)]
    if engine is None:
        for back in (False, True) if problem.causal else (False,):
            made += [build_plan(p) for p in sections.of(problem, lambda p: search.plan(p, chip), back)]
    return [Work(built) for built in made]


def _selected(modules: list[Built], targets: tuple[Target, ...]) -> list[Work]:
    """The modules for the targets asked for."""
    names = [t.name for t in targets]
    missing = set(names) - {b.plan.target for b in modules}
    if missing:
        there = ", ".join(dict.fromkeys(b.plan.target for b in modules))
        named = ", ".join(sorted(missing))
        raise InputError(f"the file holds nothing for {named}, but for {there}: build it with --arch")
    return [Work(b) for b in modules if b.plan.target in names]


def _representatives(modules: list[Built]) -> list[Work]:
    """One module for each plan that differs in more than the chip's name and how a launch is sized."""
    groups: dict[Plan | Gradient, list[Built]] = {}
    for built in modules:
        kernels = tuple(dataclasses.replace(k, resident=1) for k in built.plan.kernels)
        anonymous = dataclasses.replace(built.plan, target="", kernels=kernels, chunk_bytes=0)
        backward = built.gradient
        if backward is not None:
            kernel = dataclasses.replace(backward.kernel, resident=1)
            sums = dataclasses.replace(backward.sums, resident=1) if backward.sums else None
            backward = dataclasses.replace(backward, plan=anonymous, kernel=kernel, sums=sums)
        groups.setdefault(backward or anonymous, []).append(built)
    return [Work(first, tuple(b.plan.target for b in rest)) for first, *rest in groups.values()]


def _recompiled(built: Built, compiler: str) -> str:
    """Whether the code in the file is what its source compiles to; unknown with another NVRTC."""
    if compiler != f"nvrtc {nvrtc.build()}":
        return "unknown"
    target = built.plan.target
    if built.cubin:
        return "same" if nvrtc.compile_cubin(built.source, target).image == built.cubin else "different"
    text = nvrtc.compile_ptx(built.source, target, line_info=False)
    return "same" if text == built.ptx else "different"


def _run(work: Work, seed: int, quick: bool) -> Outcome:
    from fftgen.verify import verify_built  # PyTorch: a second that `fftgen --help` should not take

    def tell(case: str) -> None:
        click.echo(f"  {case}", err=True)

    try:
        return Outcome(work, verify_built(work.built, seed=seed, quick=quick, progress=tell))
    except (SimulationError, InternalError) as error:
        return Outcome(work, None, f"{type(error).__name__}: {error}")


def _show(outcome: Outcome, counters: bool) -> None:
    if outcome.verification is None:
        click.echo(f"{outcome.work.built.subject}\n  FAILED: {outcome.fault}")
        return
    click.echo(outcome.verification)
    if outcome.work.same:
        click.echo(f"  not run, the same plan: {', '.join(outcome.work.same)}")
    if counters:
        for case in outcome.verification.cases:
            for name, report in case.reports.items():
                click.echo(f"\n{name}, {case.description}\n{report}")


def _show_code(code: dict[str, str]) -> None:
    for name, verdict in code.items():
        if verdict == "different":
            click.echo(f"{name}: the machine code is not what its source compiles to")
    if code:
        same = sum(verdict == "same" for verdict in code.values())
        unknown = sum(verdict == "unknown" for verdict in code.values())
        click.echo(
            f"{same} of {plural(len(code), 'module')} hold the code that their source compiles to"
            + (f"; {unknown} not known: another NVRTC made them" if unknown else "")
        )


def _document(outcome: Outcome) -> dict[str, Any]:
    work, verification = outcome.work, outcome.verification
    facts = (
        verification.as_dict()
        if verification
        else {"name": work.built.subject.name, "plan": str(work.built.subject), "passed": False}
    )
    return {**facts, "fault": outcome.fault or None, "same_plan_not_run": list(work.same)}

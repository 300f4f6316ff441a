"""Builds that travel: several problems and targets in one artifact file, and a convolution out of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fftgen import artifact, nvrtc
from fftgen.artifact import Artifact, Image, Module
from fftgen.cache import Cache
from fftgen.errors import ArtifactError, InputError
from fftgen.pipeline import Built, build
from fftgen.planner.plan import Plan
from fftgen.planner.rules import supports_dtype
from fftgen.planner.search import supports_engine
from fftgen.problem import Problem
from fftgen.targets import TARGETS, Target
from fftgen.targets import target as find_target

TABLES = "constants"


def padded(problem: Problem) -> Problem | None:
    """The causal problem that serves circular calls of at most half the length, if there is one."""
    if problem.causal or problem.length < 2:
        return None
    return Problem("causal", problem.length // 2, problem.dtype)


def problems_of(problem: Problem) -> tuple[Problem, ...]:
    """What an artifact for a problem holds: itself, and what its padded calls become."""
    half = padded(problem)
    return (problem,) if half is None else (problem, half)


def default_targets(problem: Problem, engine: str | None = None) -> tuple[Target, ...]:
    """Every target that can take the dtype, and the engine if one is named; the virtual one (PTX for newer
    chips) last."""
    return tuple(
        t
        for t in TARGETS.values()
        if supports_dtype(problem.dtype, t) is None and (engine is None or supports_engine(engine, t) is None)
    )


def build_all(
    jobs: Sequence[tuple[Problem, Target]],
    cache: Cache | None = None,
    done: Callable[[Built], None] | None = None,
    engine: str | None = None,
) -> list[Built]:
    """Build several problems for several targets, in parallel threads. Errors go through."""

    def one(job: tuple[Problem, Target]) -> Built:
        made = build(*job, cache, engine)
        if done is not None:
            done(made)
        return made

    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
        return list(pool.map(one, jobs))


def bundle(made: Iterable[Built]) -> Artifact:
    """Builds as an artifact, one module per plan."""
    return Artifact(tuple(_module(b) for b in made), compiler=f"nvrtc {nvrtc.build()}")


def _module(made: Built) -> Module:
    plan = made.plan
    code = {"cubins": {plan.target: made.cubin}} if made.cubin else {"ptx": {plan.target: made.ptx.encode()}}
    return Module(
        name=plan.name,
        plan=plan.to_json().encode(),
        plan_digest=plan.digest,
        source=made.source,
        tables={TABLES: made.tables},
        resources={plan.target: made.resources} if made.cubin else {},
        cubins=code.get("cubins", {}),
        ptx=code.get("ptx", {}),
    )


def unpack(module: Module) -> Built:
    """A module back as a build. Raises ArtifactError when plan and module disagree."""
    plan = Plan.from_json(module.plan.decode())
    if plan.digest != module.plan_digest or plan.name != module.name:
        raise ArtifactError(
            f"module {module.name} carries a plan that is not its own: build the artifact anew"
        )
    if TABLES not in module.tables or len(module.tables[TABLES]) != plan.table_bytes:
        raise ArtifactError(f"module {module.name} lacks its constant tables: build the artifact anew")
    ptx = b"".join(module.ptx.values()).decode()
    cubin = b"".join(module.cubins.values())
    resources = module.resources.get(plan.target, {})
    return Built(plan, module.source, cubin, ptx, module.tables[TABLES], resources, 0.0, True)


@dataclass(frozen=True)
class Shelf:
    """The builds of an artifact, found by problem and device."""

    contents: Artifact
    origin: str

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem in the artifact, in the order of the file."""
        plans = (Plan.from_json(m.plan.decode()).problem for m in self.contents.modules)
        return tuple(dict.fromkeys(plans))

    @property
    def main(self) -> tuple[Problem, ...]:
        """The problems that were asked for: those that are not merely the padded form of another."""
        halves = {padded(p) for p in self.problems}
        return tuple(p for p in self.problems if p not in halves) or self.problems

    def has(self, problem: Problem) -> bool:
        return problem in self.problems

    def built(self, problem: Problem, capability: tuple[int, int]) -> Built:
        """The module that suits a device best. Raises ArtifactError that names what is needed and there."""
        fits: list[tuple[bool, tuple[int, ...], Module]] = []
        held: list[str] = []
        for module in self.contents.modules:
            if Plan.from_json(module.plan.decode()).problem != problem:
                continue
            held += [*module.cubins, *module.ptx]
            try:
                image: Image = module.image_for(capability)
            except ArtifactError:
                continue
            chip = find_target(image.target)
            fits.append((image.kind == "cubin", (chip.major, chip.minor), module))
        if not fits:
            need = f"sm_{capability[0]}{capability[1]}"
            raise ArtifactError(
                f"{self.origin} has no code for {need}: it holds {', '.join(held)} for {problem.mode} "
                f"{problem.length} {problem.dtype}; build it with --arch {need}"
            )
        return unpack(max(fits, key=lambda f: f[:2])[2])


def open_shelf(path: str | Path, sha256: str | None = None) -> Shelf:
    """Read and verify an artifact. Raises ArtifactError for anything that is not whole and ours."""
    return Shelf(artifact.read(path, sha256), str(path))


def choose(shelf: Shelf, length: int | None, causal: bool | None, dtype: str | None) -> Problem:
    """The problem meant: the only one, or the one that the arguments single out. Raises InputError."""
    fits = [
        p
        for p in shelf.main
        if (length is None or p.length == length)
        and (causal is None or p.causal == causal)
        and (dtype is None or p.dtype == dtype)
    ]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{p.mode} {p.length} {p.dtype}" for p in shelf.main)
    found = "none" if not fits else f"{len(fits)}"
    raise InputError(
        f"{found} of the convolutions in {shelf.origin} fit: name one by length=, causal=, dtype= ({there})"
    )

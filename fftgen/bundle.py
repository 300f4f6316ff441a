"""Builds that travel: several problems and targets in one artifact file, and a convolution out of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fftgen import artifact, nvrtc
from fftgen.artifact import Artifact, Image, Module
from fftgen.cache import Cache
from fftgen.errors import ArtifactError, InputError, NoPlanError
from fftgen.pipeline import Built, build, build_gradient, build_plan
from fftgen.planner import gradient_sections, search, sections
from fftgen.planner.engines import supports_engine
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.order import same_spectrum
from fftgen.planner.plan import Plan
from fftgen.planner.rules import supports_dtype
from fftgen.planner.twins import twin
from fftgen.problem import Problem
from fftgen.targets import TARGETS, Target, target_for
from fftgen.targets import target as find_target

TABLES = "constants"

# Of which planner/sections.py, gradient.py (gradient: of a filter, backward: of all), gradient_sections.py
# and twins.py tell.
Kind = Literal[
    "convolution", "sections", "trained sections", "gradient", "twin", "backward", "backward sections"
]
MUCH = 1.05  # times the time, for which another kind of spectra is not worth the code that makes them
Job = tuple[Problem, Target, Kind]


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


def trains(problem: Problem, target: Target) -> bool:
    """Whether there are kernels for a filter's gradient."""
    try:
        gradient(problem, target)
    except NoPlanError:
        return False
    return True


def twins(problem: Problem, target: Target, engine: str | None = None) -> bool:
    """Whether there are kernels with two outputs."""
    return twin(search.plan(problem, target, engine)) is not None


def goes_back(problem: Problem, target: Target, engine: str | None = None) -> bool:
    """Whether there are kernels of all gradients that read the spectra of the problem's plan."""
    found = backward(problem, target)
    return found is not None and same_spectrum(search.plan(problem, target, engine), found.plan)


def build_twin(
    problem: Problem, target: Target, cache: Cache | None = None, engine: str | None = None
) -> Built | None:
    """The twin of a problem's kernels, where it has one."""
    found = twin(search.plan(problem, target, engine))
    return None if found is None else build_plan(found, cache)


def in_sections(problem: Problem, target: Target) -> Plan | None:
    """The plan in sections that many rows of a problem had better take, if there is one: of rows without
    gates, or if these take none, with both."""
    plan, every = search.plan(problem, target), _every_sections(problem, target)
    return sections.of_many_rows(plan, every) or sections.of_many_rows(plan, every, gated=True)


def trained_in_sections(problem: Problem, target: Target) -> Plan | None:
    """The plan in sections whose gradients many rows had better take, if there is one: the one that the
    convolution takes as well, whose spectra are at hand, unless another takes much less."""
    plan, whole = in_sections(problem, target), backward(problem, target)
    if whole is None:
        return None
    best = gradient_sections.of_many_rows(whole, gradient_sections.trained(_every_sections(problem, target)))
    if best is None or plan is None or not gradient_sections.trained([plan]):
        return best
    own, least = (gradient_sections.share(whole, found) for found in (plan, best))
    return plan if own <= MUCH * least else best


def backward_in_sections(problem: Problem, target: Target) -> Gradient | None:
    """The kernels of all gradients in sections that many rows of a problem had better take, if there are."""
    plan = trained_in_sections(problem, target)
    return None if plan is None else gradient_sections.in_sections(plan)


def _every_sections(problem: Problem, target: Target) -> tuple[Plan, ...]:
    return sections.of(problem, lambda p: search.plan(p, target))


def build_all(
    jobs: Sequence[Job],
    cache: Cache | None = None,
    done: Callable[[Built], None] | None = None,
    engine: str | None = None,
) -> list[Built]:
    """Build several problems for several targets, in parallel threads. Errors go through.

    ``engine``: of every convolution, in place of the planner's choice; a filter's gradient has one.
    """

    def one(job: Job) -> Built:
        problem, target, kind = job
        if kind == "gradient":
            made = build_gradient(gradient(problem, target), cache)
        elif kind == "backward":
            every = backward(problem, target)
            assert every is not None  # asked for where there are any
            made = build_gradient(every, cache)
        elif kind == "sections":
            plan = in_sections(problem, target)
            assert plan is not None  # asked for where there is one
            made = build_plan(plan, cache)
        elif kind == "trained sections":
            plan = trained_in_sections(problem, target)
            assert plan is not None  # asked for where there is one
            made = build_plan(plan, cache)
        elif kind == "backward sections":
            every = backward_in_sections(problem, target)
            assert every is not None  # asked for where there are any
            made = build_gradient(every, cache)
        elif kind == "twin":
            found = build_twin(problem, target, cache, engine)
            assert found is not None  # asked for where there is one
            made = found
        else:
            made = build(problem, target, cache, engine)
        if done is not None:
            done(made)
        return made

    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
        return list(pool.map(one, jobs))


def bundle(made: Iterable[Built]) -> Artifact:
    """Builds as an artifact, one module per plan."""
    return Artifact(tuple(_module(b) for b in made), compiler=f"nvrtc {nvrtc.build()}")


def _module(made: Built) -> Module:
    plan, subject = made.plan, made.subject
    code = {"cubins": {plan.target: made.cubin}} if made.cubin else {"ptx": {plan.target: made.ptx.encode()}}
    return Module(
        name=subject.name,
        plan=subject.to_json().encode(),
        plan_digest=subject.digest,
        source=made.source,
        tables={TABLES: made.tables},
        resources={plan.target: made.resources} if made.cubin else {},
        cubins=code.get("cubins", {}),
        ptx=code.get("ptx", {}),
    )


def unpack(module: Module) -> Built:
    """A module back as a build. Raises ArtifactError when plan and module disagree."""
    found = _subject(module)
    with _sensible(module.name, "parts that make"):
        return _unpacked(module, found)


@contextmanager
def _sensible(name: str, what: str) -> Iterator[None]:
    """Raises ArtifactError for what a module's plan makes Python raise.

    Digests that fit prove no sense: a forger takes them anew.
    """
    try:
        yield
    except artifact.SENSELESS as error:
        raise ArtifactError(
            f"module {name} has {what} no sense ({error}): build the artifact anew"
        ) from error


def _unpacked(module: Module, found: Plan | Gradient) -> Built:
    plan, of_gradient = (found.plan, found) if isinstance(found, Gradient) else (found, None)
    if found.digest != module.plan_digest or found.name != module.name:
        raise ArtifactError(
            f"module {module.name} carries a plan that is not its own: build the artifact anew"
        )
    if TABLES not in module.tables or len(module.tables[TABLES]) != plan.table_bytes:
        raise ArtifactError(f"module {module.name} lacks its constant tables: build the artifact anew")
    ptx = b"".join(module.ptx.values()).decode()
    cubin = b"".join(module.cubins.values())
    resources = module.resources.get(plan.target, {})
    return Built(plan, module.source, cubin, ptx, module.tables[TABLES], resources, 0.0, True, of_gradient)


def _subject(module: Module) -> Plan | Gradient:
    """What a module was built from. Raises ArtifactError for a plan that makes no sense, whatever is off."""
    with _sensible(module.name, "a plan that makes"):
        text = module.plan.decode()
        return Gradient.from_json(text) if module.name.startswith(Gradient.PREFIXES) else Plan.from_json(text)


def _shared_bytes(subject: Plan | Gradient) -> int:
    """What the largest of a module's blocks asks for."""
    if isinstance(subject, Gradient):
        return max(k.shared_bytes for k in (subject.kernel, subject.sums) if k is not None)
    filters = [k.shared_bytes for k in subject.filter.kernels]
    return max(filters + [k.shared_bytes for k in subject.every_kernel])


def kind_of(subject: Plan | Gradient) -> Kind:
    """What kernels of a plan are for."""
    if isinstance(subject, Gradient):
        return "backward sections" if subject.plan.sections > 1 else subject.label
    if subject.sections > 1:
        return "sections"
    return "convolution" if subject.outputs == 1 else "twin"


@dataclass(frozen=True)
class Shelf:
    """The builds of an artifact, found by problem and device."""

    contents: Artifact
    origin: str

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem in the artifact, in the order of the file."""
        found = (_subject(m) for m in self.contents.modules)
        return tuple(dict.fromkeys(s.problem for s in found if isinstance(s, Plan)))

    @property
    def main(self) -> tuple[Problem, ...]:
        """The problems that were asked for: those that are not merely the padded form of another."""
        halves = {padded(p) for p in self.problems}
        return tuple(p for p in self.problems if p not in halves) or self.problems

    def has(self, problem: Problem) -> bool:
        return problem in self.problems

    def built(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built:
        """The module that suits a device best, whatever it is called.

        Raises ArtifactError that names what is needed and there.
        """
        module, held = self._best(problem, "convolution", capability)
        if module is None:
            need = f"sm_{capability[0]}{capability[1]}"
            raise ArtifactError(
                f"{self.origin} has no code for {need}: it holds {', '.join(held)} for {problem.mode} "
                f"{problem.length} {problem.dtype}; build it with --arch {need}"
            )
        return unpack(module)

    def planned(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Plan | None:
        """The plan of the module that suits a device best, if the artifact carries one for the problem."""
        module, _ = self._best(problem, "convolution", capability)
        return None if module is None else unpack(module).plan

    def sections(
        self, problem: Problem, capability: tuple[int, int], gpu: str = "", back: bool = False
    ) -> tuple[Plan, ...]:
        """The plans in sections of the modules that suit a device best: of the convolution's, and the one
        whose gradients the artifact carries where that is another.

        Artifacts carry none of causal problems with filters that act backwards (``back``).
        """
        found, _ = self._suiting(problem, "sections", capability)
        return () if back and problem.causal else tuple(unpack(module).plan for module in found)

    def sectioned(self, plan: Plan) -> Built:
        """The kernels of one of them."""
        return next(unpack(m) for m in self.contents.modules if m.plan_digest == plan.digest)

    def trained_sections(
        self, problem: Problem, capability: tuple[int, int], gpu: str = ""
    ) -> tuple[Plan, ...]:
        """Those of ``sections`` the kernels of whose gradients are there as well."""
        there = {module.plan_digest for module in self.contents.modules}
        found = gradient_sections.trained(self.sections(problem, capability, gpu))
        with _sensible(f"for {problem} in sections", "a plan that makes"):
            return tuple(p for p in found if gradient_sections.in_sections(p).digest in there)

    def backward_sectioned(self, plan: Plan) -> Built:
        """The kernels of all gradients of one of them."""
        digest = gradient_sections.in_sections(plan).digest
        return next(unpack(m) for m in self.contents.modules if m.plan_digest == digest)

    def gradient(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        """The kernels of a filter's gradient for a device, if the artifact carries them."""
        causal = Problem("causal", problem.length, problem.dtype)
        module, _ = self._best(causal, "gradient", capability)
        return None if module is None else unpack(module)

    def twin(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        """The kernels with two outputs for a device, if the artifact carries them.

        They share their spectrum with the convolution's, so both must be of one plan.
        """
        module, _ = self._best(problem, "twin", capability)
        if module is None:
            return None
        found, plan = unpack(module), self.built(problem, capability).plan
        with _sensible(plan.name, "a plan that makes"):
            return found if twin(plan) == found.plan else None

    def backward(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built | None:
        """The kernels of all gradients for a device, if the artifact carries them, for the same plan."""
        module, _ = self._best(problem, "backward", capability)
        if module is None:
            return None
        found, plan = unpack(module), self.built(problem, capability).plan
        with _sensible(module.name, "a plan that makes"):
            return found if same_spectrum(plan, found.plan) else None

    def _best(
        self, problem: Problem, kind: Kind, capability: tuple[int, int]
    ) -> tuple[Module | None, list[str]]:
        """The module that suits a device best, and the targets that there are."""
        found, held = self._suiting(problem, kind, capability)
        return (found[0] if found else None), held

    def _suiting(
        self, problem: Problem, kind: Kind, capability: tuple[int, int]
    ) -> tuple[list[Module], list[str]]:
        """The modules that suit a device best, all of one target, and the targets that there are."""
        fits: list[tuple[tuple[bool, int, int], Module]] = []
        held: list[str] = []
        most = target_for(capability).shared_block
        for module in self.contents.modules:
            subject = _subject(module)
            with _sensible(module.name, "a plan that makes"):
                if kind_of(subject) != kind or subject.problem != problem:
                    continue
                held += [*module.cubins, *module.ptx]
                # Chips of 8.6 and 8.9 run code of sm_80, which may take more than they have.
                if _shared_bytes(subject) > most:
                    continue
            try:
                image: Image = module.image_for(capability)
            except ArtifactError:
                continue
            chip = find_target(image.target)
            fits.append(((image.kind == "cubin", chip.major, chip.minor), module))
        best = max((how for how, _ in fits), default=None)
        return [module for how, module in fits if how == best], held


def open_shelf(path: str | Path, sha256: str | None = None) -> Shelf:
    """Read and verify an artifact. Raises ArtifactError for anything that is not whole and ours."""
    return Shelf(artifact.read(path, sha256), str(path))


def choose(shelf: Shelf, length: int | None, causal: bool | None, dtype: str | None) -> Problem:
    """The problem meant: the only one, or the one that the arguments single out. Raises InputError.

    Of the problems that were asked for first; then of all, since one of them may be the half of another too.
    """

    def fitting(problems: Iterable[Problem]) -> list[Problem]:
        return [
            p
            for p in problems
            if (length is None or p.length == length)
            and (causal is None or p.causal == causal)
            and (dtype is None or p.dtype == dtype)
        ]

    fits = fitting(shelf.main) or fitting(shelf.problems)
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(f"{p.mode} {p.length} {p.dtype}" for p in fits or shelf.problems)
    found = "none" if not fits else f"{len(fits)}"
    raise InputError(
        f"{found} of the convolutions in {shelf.origin} fit: name one by length=, causal=, dtype= ({there})"
    )

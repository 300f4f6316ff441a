"""Plans and artifacts for scripts: what ``fftgen plan`` and ``fftgen build`` do, as functions."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fftgen import artifact, bundle
from fftgen.cache import Cache
from fftgen.dtypes import dtype as find_dtype
from fftgen.durable import check_writable, replaceable, sync_directory, unused, write_synced, writing
from fftgen.errors import ArtifactError, InputError
from fftgen.pipeline import Built
from fftgen.planner import engines, search
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target
from fftgen.values import check_flag, check_path

DEFAULT_TARGET = "sm_90"
DIRECTORY = "generated"
SUFFIX = ".fftgen"


@dataclass(frozen=True)
class File:
    """An artifact on disk and the builds in it, in the order of the file."""

    path: Path
    sha256: str
    nbytes: int
    built: tuple[Built, ...]


def problem(length: int, dtype: object = "bf16", *, causal: bool = False) -> Problem:
    """What is asked, in the terms of ``get_conv``. Raises InputError for what is not served."""
    check_flag("causal", causal)
    return Problem("causal" if causal else "circular", length, find_dtype(dtype).name)


def plan(
    length: int,
    dtype: object = "bf16",
    *,
    causal: bool = False,
    target: str | Target = DEFAULT_TARGET,
    engine: str | None = None,
) -> Plan:
    """The plan for a length on an architecture; needs neither compiler nor GPU.

    Arguments as ``get_conv``; ``target`` as in "sm_90"; ``engine``: "mma", "wmma" or, with a compute format,
    "mma:bf16-fp32", by default the planner's choice. ``str()`` of the result is one line, ``to_json()`` all
    of it. Raises InputError, or NoPlanError with the reason of every candidate.
    """
    return search.plan(problem(length, dtype, causal=causal), find_target(target), _named(engine))


def build(
    length: int,
    dtype: object = "bf16",
    *,
    causal: bool = False,
    targets: Sequence[str | Target] = (),
    path: str | Path | None = None,
    train: bool = False,
    cache: Cache | None = None,
    engine: str | None = None,
) -> File:
    """Plan, render and compile for several architectures at once and write one artifact for ``load``.

    Arguments as ``get_conv``; ``targets``: names such as "sm_90", by default every target that takes the
    dtype, with PTX for newer chips. ``path``: the file, by default ``generated/fftconv-...fftgen``.
    ``train``: with the kernels of gradients: of all by one pass (causal), of the filter alone, and of two
    signals by one transform (others need none of their own).
    ``engine`` in place of the planner's choice goes into the file and its name, nowhere else: ``get_conv``
    keeps to the planner. Needs NVRTC, no GPU. Raises what ``pipeline.build`` raises, and ArtifactError when
    the file cannot be written; a file that was there is then as it was.
    """
    if isinstance(targets, str):
        raise InputError(f"targets is a sequence of names, got {targets!r}: targets=[{targets!r}]")
    check_flag("train", train)
    asked, engine = problem(length, dtype, causal=causal), _named(engine)
    where = Path(DIRECTORY) / file_name(asked, engine) if path is None else Path(check_path(path))
    chips = [find_target(t) for t in targets]
    return build_files({where: (asked,)}, chips, train, cache, engine=engine)[0]


def _named(engine: str | None) -> str | None:
    """An engine that there is, or none. Raises InputError for any other value."""
    if engine is not None:
        engines.parse_engine(engine)
    return engine


def file_name(asked: Problem, engine: str | None = None) -> str:
    """What the artifact of a problem is called: ``fftconv-65536-bf16.fftgen``.

    With an engine of the caller's choice ``fftconv-65536-bf16-wmma.fftgen``: never in the place of the
    planner's own. A compute format comes after another dash.
    """
    words = ["fftconv", str(asked.length), asked.dtype, *(["causal"] if asked.causal else ())]
    return "-".join([*words, *(engine.split(engines.AND_FORMAT) if engine else ())]) + SUFFIX


def files_for(
    problems: Iterable[Problem], output: str | Path, engine: str | None = None
) -> dict[Path, tuple[Problem, ...]]:
    """Which file holds which problems: all in one when ``output`` is a ``.fftgen`` file, else one each."""
    output = Path(output)
    unique = tuple(dict.fromkeys(problems))
    if output.suffix == SUFFIX and not output.is_dir():
        return {output: unique}
    if output.is_file():
        raise InputError(f"output {output} is a file: name a directory, or a file that ends in {SUFFIX}")
    return {output / file_name(p, engine): (p,) for p in unique}


def jobs_for(
    asked: Problem, targets: Sequence[Target] = (), train: bool = False, engine: str | None = None
) -> list[bundle.Job]:
    """What has to be built for a problem, for the given targets or for all that take its dtype."""
    chips = tuple(targets) or bundle.default_targets(asked, engine)
    served = bundle.problems_of(asked)
    jobs: list[bundle.Job] = [(p, chip, "convolution") for p in served for chip in chips]
    if engine is None:
        jobs += [(p, chip, "sections") for p in served for chip in chips if bundle.in_sections(p, chip)]
    if train:
        jobs += [(p, chip, "twin") for p in served for chip in chips if bundle.twins(p, chip, engine)]
        # The gradient's kernels of a circular length are those of the causal one.
        causal = (Problem("causal", p.length, p.dtype) for p in served)
        jobs += [(p, chip, "gradient") for p in causal for chip in chips if bundle.trains(p, chip)]
        jobs += [(p, chip, "backward") for p in served for chip in chips if bundle.goes_back(p, chip, engine)]
        if engine is None:
            for p, chip in product(served, chips):
                trained = bundle.trained_in_sections(p, chip)
                if trained is not None:
                    jobs.append((p, chip, "backward sections"))
                    # Its convolution makes the spectra.
                    jobs += [] if trained == bundle.in_sections(p, chip) else [(p, chip, "trained sections")]
    return jobs


def build_files(
    files: dict[Path, tuple[Problem, ...]],
    targets: Sequence[Target] = (),
    train: bool = False,
    cache: Cache | None = None,
    done: Callable[[Built], None] | None = None,
    engine: str | None = None,
) -> tuple[File, ...]:
    """Build everything, then write every file: a failed build changes none of them.

    ``done`` is called with each build, from worker threads. ``engine``: of every plan, in place of the
    planner's choice. Files that could not be written raise ArtifactError before anything is compiled.
    """
    for path in files:
        with writing(f"artifact {path}", ArtifactError):
            check_writable(path, made=True)
    wanted = {
        path: list(
            dict.fromkeys(job for asked in problems for job in jobs_for(asked, targets, train, engine))
        )
        for path, problems in files.items()
    }
    jobs = list(dict.fromkeys(job for those in wanted.values() for job in those))
    made = dict(zip(jobs, bundle.build_all(jobs, cache, done, engine), strict=True))
    contents = {path: tuple(made[job] for job in those) for path, those in wanted.items()}
    raw = {path: artifact.dumps(bundle.bundle(built)) for path, built in contents.items()}
    _write_all(raw)
    return tuple(
        File(path, hashlib.sha256(raw[path]).hexdigest(), len(raw[path]), contents[path]) for path in files
    )


def _write_all(contents: dict[Path, bytes]) -> None:
    """All files are on the disk under other names before the first one is replaced. Links stay."""
    ready: dict[Path, tuple[Path, Path]] = {}
    try:
        for path, raw in contents.items():
            with writing(f"artifact {path}", ArtifactError):
                place = replaceable(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                ready[path] = (place, unused(place.parent, f".{place.name}"))
                write_synced(ready[path][1], raw)
        for path, (place, temporary) in ready.items():
            with writing(f"artifact {path}", ArtifactError):
                os.replace(temporary, place)
                sync_directory(place.parent)
    finally:
        for _, temporary in ready.values():
            with contextlib.suppress(OSError):
                temporary.unlink()

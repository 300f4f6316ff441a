"""Plans as text: the same again, from a digest that tells them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
from plans import KINDS, PORTFOLIO, of_every_target, plans_of, portfolio

import fftgen.planner
from fftgen.errors import ArtifactError, InternalError
from fftgen.planner import search as searching
from fftgen.planner import tables
from fftgen.planner.plan import SCHEMA, Plan
from fftgen.planner.search import plan
from fftgen.problem import Problem
from fftgen.targets import TARGETS

ROOT = Path(fftgen.planner.__file__).parents[2]


@of_every_target
def test_json_brings_the_same_plan_back(name: str) -> None:
    for found in plans_of(name):
        again = Plan.from_json(found.to_json())
        assert again == found
        assert hash(again) == hash(found)
        assert again.digest == found.digest
        assert again.to_json() == found.to_json()


def test_the_digest_is_that_of_the_canonical_json() -> None:
    for found in portfolio():
        text = found.to_json()
        assert found.digest == hashlib.sha256(text.encode()).hexdigest()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        assert found.digest[:8] in found.name


def altered(value: Any) -> Iterator[Any]:
    """Other values of the same kind: of records one for every field."""
    if isinstance(value, str):
        yield value + "x"
    elif isinstance(value, int | float):
        yield value + 1
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from (with_field(value, field.name, x) for x in altered(getattr(value, field.name)))
    elif isinstance(value, tuple):
        yield (value[0] + 1, *value[1:]) if value and isinstance(value[0], int) else value[:-1] or (1,)
        for at, record in enumerate(value):
            if dataclasses.is_dataclass(record):
                yield from ((*value[:at], x, *value[at + 1 :]) for x in altered(record))
    else:
        raise AssertionError(f"no other value for {value!r}")


def with_field(record: Any, name: str, value: Any) -> Any:
    """A copy with one field changed, unchecked: a digest must tell even plans apart that are not valid."""
    copy = object.__new__(type(record))
    copy.__dict__.update({f.name: getattr(record, f.name) for f in dataclasses.fields(record)})
    copy.__dict__[name] = value
    return copy


def test_the_digest_changes_with_every_field() -> None:
    found = plan(Problem("causal", 131072, "bf16"), "sm_90")
    others = list(altered(found))
    fields = [
        len(dataclasses.fields(x)) for x in (found, *found.stages, *found.kernels, *found.filter.kernels)
    ]
    assert len(others) > sum(fields)
    assert len({found.digest, *(other.digest for other in others)}) == len(others) + 1


@pytest.mark.parametrize("targets", [KINDS[1:], *cases.slow([(tuple(TARGETS),)])], ids=len)
def test_plans_of_different_questions_have_different_names(targets: tuple[str, ...]) -> None:
    names = {f.name for name in targets for f in plans_of(name)}
    questions = sum(len(plans_of(name)) for name in targets)
    assert len(names) == questions


def test_names_and_text_say_what_a_plan_is() -> None:
    found = plan(Problem("circular", 100000, "bf16"), "sm_90")
    assert found.name == f"fftgen_conv_n100000_circular_bf16_mma_sm90_{found.digest[:8]}"
    assert f"circular 100000 bf16 sm_90 | N={found.transform}=" in str(found)
    assert "right-angle fold 100000 device mma" in str(found)
    assert len(str(found).splitlines()) == 1


def test_planning_twice_gives_the_same_plan() -> None:
    for row in PORTFOLIO:
        first = plan(Problem(*row[:3]), row[3])
        searching._plan.cache_clear()
        second = plan(Problem(*row[:3]), row[3])
        assert first is not second
        assert first.to_json() == second.to_json()


def test_digests_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib\n"
        "from fftgen.planner import tables\n"
        "from fftgen.planner.search import plan\n"
        "from fftgen.problem import Problem\n"
        f"for mode, length, dtype, target in {PORTFOLIO!r}:\n"
        "    found = plan(Problem(mode, length, dtype), target)\n"
        "    print(found.digest, hashlib.sha256(tables.build(found)).hexdigest())\n"
    )
    seen = set()
    for seed in ("0", "1", "4242"):
        seen.add(run_python(script, PYTHONHASHSEED=seed))
    assert len(seen) == 1
    here = [f"{f.digest} {hashlib.sha256(tables.build(f)).hexdigest()}" for f in portfolio()]
    assert seen.pop().split("\n")[:-1] == here


def run_python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_planner_loads_neither_torch_nor_cuda_nor_jinja() -> None:
    """The package's own __init__ is left out: what it offers to users is not the planner's business."""
    script = (
        "import sys, types, pathlib, importlib\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "package = types.ModuleType('fftgen'); package.__path__ = [str(root / 'fftgen')]\n"
        "sys.modules['fftgen'] = package\n"
        "for path in sorted((root / 'fftgen' / 'planner').glob('*.py')):\n"
        "    importlib.import_module('fftgen.planner.' + path.stem)\n"
        "from fftgen.planner.interpret import convolve\n"
        "from fftgen.planner.search import plan\n"
        "from fftgen.problem import Problem\n"
        "convolve(plan(Problem('causal', 100, 'bf16'), 'sm_90'), [[[1.0]]], [[2.0]])\n"
        "print(sorted({'torch', 'cuda', 'jinja2', 'scipy', 'click'} & set(sys.modules)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('fftgen.') and 'planner' not in m))\n"
    )
    foreign, own = run_python(script).splitlines()
    assert foreign == "[]"
    assert own == "['fftgen.dtypes', 'fftgen.errors', 'fftgen.problem', 'fftgen.targets']"


def test_text_that_is_no_plan_is_refused() -> None:
    good = portfolio()[0].to_json()
    for text in ("", "{}", "[]", "null", good[:-5], good.replace('"transform"', '"transfrom"')):
        with pytest.raises(ArtifactError, match="rebuild"):
            Plan.from_json(text)
    with pytest.raises(ArtifactError, match="schema 99"):
        Plan.from_json(good.replace(f'"schema":{SCHEMA}', '"schema":99'))


def test_stages_that_do_not_multiply_out_are_refused() -> None:
    found = portfolio()[0]
    with pytest.raises(InternalError, match="does not belong"):
        dataclasses.replace(found, transform=2 * found.transform)
    with pytest.raises(InternalError, match="does not belong"):
        dataclasses.replace(found, stages=found.stages[::-1] if found.stages[0] != found.stages[-1] else ())

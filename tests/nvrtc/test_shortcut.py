"""Starting from the cache: entry and tables of a plan are found, not rendered and evaluated again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import why_not

from fftgen import nvrtc, pipeline, shortcut
from fftgen.cache import Cache, Entry
from fftgen.errors import InputError
from fftgen.pipeline import Built, build_gradient, build_plan
from fftgen.planner import search
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.targets import target as find_target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PROBLEM = Problem("causal", 256, "bf16")
PLAN = search.plan(PROBLEM, "sm_90")
ROOT = Path(pipeline.__file__).parents[1]


def same(a: Built, b: Built) -> bool:
    return replace(a, seconds=0.0, cached=True) == replace(b, seconds=0.0, cached=True)


@pytest.fixture
def first(tmp_path: Path) -> tuple[Cache, Built]:
    store = Cache(tmp_path)
    return store, build_plan(PLAN, store)


def known(store: Cache, subject: Plan | Gradient) -> tuple[Entry, bytes] | None:
    plan = subject.plan if isinstance(subject, Gradient) else subject
    return shortcut.find(store, shortcut.digest(store, subject), plan)


def note_of(store: Cache) -> Path:
    assert store.directory is not None
    return store.directory / "kernels" / "notes" / shortcut.digest(store, PLAN)


@pytest.fixture
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    for name in ("render", "render_gradient"):
        monkeypatch.setattr(pipeline, name, refuse)
    monkeypatch.setattr(pipeline.tables, "build", refuse)


@pytest.mark.usefixtures("first", "nothing_made")  # in this order
def test_what_was_built_is_found_as_it_was(first: tuple[Cache, Built]) -> None:
    store, built = first
    again = build_plan(PLAN, Cache(store.directory))
    assert (built.cached, again.cached) == (False, True)
    assert same(again, built)


def test_a_gradient_is_found_by_itself(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store, found = Cache(tmp_path), gradient(PROBLEM, "sm_90")
    built = build_gradient(found, store)
    build_plan(PLAN, store)
    request.getfixturevalue("nothing_made")
    again = build_gradient(found, store)
    assert again.gradient == found
    assert same(again, built)


@pytest.mark.parametrize("at", [0, 10, 65, 100, 200, -1])
def test_a_damaged_note_is_none(first: tuple[Cache, Built], at: int) -> None:
    store, built = first
    path = note_of(store)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert known(store, PLAN) is None
    assert same(build_plan(PLAN, store), built)
    assert known(store, PLAN) is not None


@pytest.mark.parametrize("content", [b"", b"\n", b"0" * 64])
def test_a_note_that_was_cut_is_none(first: tuple[Cache, Built], content: bytes) -> None:
    store, _ = first
    note_of(store).write_bytes(content)
    assert known(store, PLAN) is None


def test_a_note_without_its_entry_is_none(first: tuple[Cache, Built]) -> None:
    store, built = first
    (info,) = store.entries()
    (info.path / "kernel.cubin").unlink()
    assert known(store, PLAN) is None
    with pytest.warns(RuntimeWarning, match="was damaged"):
        again = build_plan(PLAN, store)
    assert not again.cached
    assert same(again, built)


def test_another_package_compiler_or_plan_finds_nothing(
    first: tuple[Cache, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = first
    assert known(store, search.plan(PROBLEM, "sm_80")) is None
    assert known(store, gradient(PROBLEM, "sm_90")) is None
    with monkeypatch.context() as patch:
        patch.setattr(shortcut, "package", lambda: "other")
        assert known(store, PLAN) is None
    with monkeypatch.context() as patch:
        patch.setattr(shortcut, "compiler", lambda _: "13.0.1")
        assert known(store, PLAN) is None
    assert known(store, PLAN) is not None


def test_the_package_is_all_that_a_source_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        path.relative_to(ROOT) for pattern in shortcut._FILES for path in (ROOT / "fftgen").glob(pattern)
    }
    for name in ("render.py", "nvrtc.py", "planner/twiddle.py", "templates/head.j2"):
        assert Path("fftgen", name) in files
    assert len([f for f in files if f.suffix == ".cuh"]) == len(list((ROOT / "fftgen").rglob("*.cuh")))
    assert len([f for f in files if f.suffix == ".j2"]) == len(list((ROOT / "fftgen").rglob("*.j2")))
    seen = shortcut.package.__wrapped__()
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "a.py").write_text("x")
    monkeypatch.setattr(shortcut, "_PACKAGE", tmp_path)
    one = shortcut.package.__wrapped__()
    (tmp_path / "planner" / "a.py").write_text("y")
    assert len({seen, one, shortcut.package.__wrapped__()}) == 3


def test_a_plan_is_found_for_its_problem_target_and_engine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, chip = Cache(tmp_path), find_target("sm_90")
    made = [
        (problem, target, engine, shortcut.plan(store, problem, target, engine))
        for problem in (PROBLEM, Problem("circular", 256, "bf16"), Problem("causal", 512, "bf16"))
        for target, engine in ((chip, None), (chip, "wmma"), (find_target("sm_80"), None))
    ]
    assert len({plan.digest for *_, plan in made}) == len(made)
    asked: list[object] = []
    real = search.plan

    def searched(*given: object) -> Plan:
        asked.append(given)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "plan", searched)
    for problem, target, engine, plan in made:
        assert shortcut.plan(Cache(tmp_path), problem, target, engine) == plan
    assert not asked
    shortcut.plan(store, PROBLEM, replace(chip, multiprocessors=78))  # the same chip with half of it off
    with monkeypatch.context() as patch:
        patch.setattr(shortcut, "package", lambda: "other")
        shortcut.plan(store, PROBLEM, chip)
    assert len(asked) == 2
    with pytest.raises(InputError):
        shortcut.plan(store, PROBLEM, chip, "cutlass")


def test_a_damaged_note_of_a_plan_is_none(tmp_path: Path) -> None:
    store, chip = Cache(tmp_path), find_target("sm_90")
    made = shortcut.plan(store, PROBLEM, chip)
    (note,) = (tmp_path / "kernels" / "notes").iterdir()
    whole = note.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"256", b"512"), b""):
        note.write_bytes(damaged)
        assert shortcut.plan(store, PROBLEM, chip) == made
        assert note.read_bytes() == whole


def test_the_release_of_a_compiler_is_asked_once_for_each_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Cache(tmp_path / "cache")
    library = nvrtc.library()
    assert library is not None
    assert "nvrtc" in library.name
    assert shortcut.compiler(store) == nvrtc.build()
    monkeypatch.setattr(nvrtc, "build", lambda: "1.2.3")
    assert shortcut.compiler(store) != "1.2.3"
    other = tmp_path / "libnvrtc.so.13"
    other.write_bytes(b"1")
    monkeypatch.setattr(nvrtc, "library", lambda: other)
    assert shortcut.compiler(store) == "1.2.3"
    monkeypatch.setattr(nvrtc, "build", lambda: "1.2.4")
    assert shortcut.compiler(store) == "1.2.3"
    other.write_bytes(b"12")  # installed anew
    assert shortcut.compiler(store) == "1.2.4"
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    monkeypatch.setattr(nvrtc, "build", lambda: "1.2.5")
    assert shortcut.compiler(store) == "1.2.5"


def test_a_cleared_cache_has_no_notes(first: tuple[Cache, Built]) -> None:
    store, _ = first
    assert store.clear() > 0
    assert store.size() == 0
    assert known(store, PLAN) is None


def test_a_cache_that_keeps_nothing_keeps_no_notes() -> None:
    shortcut.keep(Cache(None), "0" * 64, "0" * 64, b"")
    assert known(Cache(None), PLAN) is None


def test_starting_from_the_cache_loads_neither_sympy_nor_jinja2(first: tuple[Cache, Built]) -> None:
    store, _ = first
    code = (
        "import sys\n"
        "from fftgen.pipeline import build\n"
        "from fftgen.problem import Problem\n"
        "assert build(Problem('causal', 256, 'bf16'), 'sm_90').cached\n"
        "print(sorted({'sympy', 'jinja2', 'torch'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "FFTGEN_CACHE_DIR": str(store.directory), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

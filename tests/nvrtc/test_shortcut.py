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
from fftgen.pipeline import Built, build_gradient, build_plan
from fftgen.planner import search
from fftgen.planner.gradient import Gradient, gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem

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
    return shortcut.find(store, shortcut.digest(subject), plan)


def note_of(store: Cache) -> Path:
    assert store.directory is not None
    (found,) = (store.directory / "kernels" / "notes").iterdir()
    return found


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
    build_plan(found.plan, store)
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
        patch.setattr(nvrtc, "build", lambda: "13.0.1")
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

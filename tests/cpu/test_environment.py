"""Environment variables are read when they are needed, and each has a row in the table."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import fftgen
from fftgen import environment
from fftgen.errors import InputError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FFTGEN_CACHE_DIR", "FFTGEN_NO_JIT", "FFTGEN_DUMP", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_cache_directory_follows_the_variables_in_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert environment.cache_directory() == tmp_path / ".cache" / "fftgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert environment.cache_directory() == Path("/somewhere/fftgen")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert environment.cache_directory() == tmp_path / ".cache" / "fftgen"
    monkeypatch.setenv("FFTGEN_CACHE_DIR", "~/mine")
    assert environment.cache_directory() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", "here")
    assert environment.cache_directory() == tmp_path / "here"
    monkeypatch.setenv("FFTGEN_CACHE_DIR", "")  # of a variable that a script forgot: nobody named the default
    with pytest.raises(InputError, match="FFTGEN_CACHE_DIR is set, but empty: name a directory, or unset it"):
        environment.cache_directory()


def test_without_a_home_there_is_no_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert environment.cache_directory() is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", False), ("0", False), ("no", False), ("Off", False), ("1", True), ("TRUE", True), ("yes", True)],
)
def test_no_jit_takes_the_usual_words(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("FFTGEN_NO_JIT", value)
    assert environment.no_jit() is expected


def test_another_python_finds_the_package_where_this_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(fftgen.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["a", root, "", "b"]))
    found = environment.of_python(MORE="1")
    assert found["MORE"] == "1"
    assert found["PYTHONPATH"].split(os.pathsep) == [root, "a", "b"]
    monkeypatch.delenv("PYTHONPATH")
    assert environment.of_python()["PYTHONPATH"] == root
    # An installed one is found anyway, and its directory before the standard library could hide some of it.
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: root)
    assert "PYTHONPATH" not in environment.of_python()


def test_no_jit_refuses_what_is_neither_yes_nor_no(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.no_jit() is False
    monkeypatch.setenv("FFTGEN_NO_JIT", "maybe")
    with pytest.raises(InputError, match=r"FFTGEN_NO_JIT='maybe'.*1 or 0"):
        environment.no_jit()


def test_the_dump_directory_is_off_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.dump_directory() is None
    monkeypatch.setenv("FFTGEN_DUMP", "/dump")
    assert environment.dump_directory() == Path("/dump")


def test_the_toolkit_variables_are_given_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_PATH", "/b")
    monkeypatch.setenv("CUDA_HOME", "/a")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert list(environment.cuda_homes()) == [("CUDA_HOME", Path("/a")), ("CUDA_PATH", Path("/b"))]


def test_every_variable_of_the_package_is_in_the_table_and_read_in_one_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = {v.name for v in environment.VARIABLES}
    package = Path(fftgen.__file__).parent
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    used = {name for text in texts.values() for name in re.findall(r"[\"'](FFTGEN_[A-Z_]+)[\"']", text)}
    assert used == listed
    readers = {p.name for p, text in texts.items() if re.search(r"os\.(environ|getenv)", text)}
    assert readers == {"environment.py"}
    assert all(v.meaning and v.default for v in environment.VARIABLES)
    monkeypatch.setenv("FFTGEN_DUMP", "x")
    assert environment.DUMP.value == "x"
    assert environment.NO_JIT.value is None

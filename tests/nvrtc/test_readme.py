"""The README and the pages it leads to: code runs, commands and links exist, tables are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import fftgen, why_not

from fftgen import environment
from fftgen.problem import MAX_LENGTH
from fftgen.targets import REAL_TARGETS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("results/*.md"))]


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_code_runs(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(session_cache))
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, object] = {}
    exec(first, names)
    exec(second, names)  # goes on where the first ends
    assert names["file"].path == Path("generated/fftconv-65536-bf16-causal.fftgen")  # type: ignore[attr-defined]


def test_the_commands_exist() -> None:
    """``fftgen NAME ... --option`` in the text: the command knows each option."""
    text = "\n".join(page.read_text() for page in PAGES)
    shown = re.findall(r"`fftgen ([^`]+)`", text) + re.findall(r"\.venv/bin/fftgen (.*?) &&", text)
    assert len(shown) > 20
    for line in shown:
        name, *rest = shlex.split(line)
        explained = fftgen(name, "--help")
        assert explained.exit_code == 0, line
        for option in (word for word in rest if word.startswith("--")):
            assert option in explained.stdout, line


def test_every_command_is_in_the_table() -> None:
    for name in re.findall(r"^  ([a-z]+) ", fftgen("--help").stdout.split("Commands:")[1], re.M):
        assert f"| `fftgen {name}" in TEXT


def test_the_environment_variables_are_all_there() -> None:
    for variable in environment.VARIABLES:
        assert f"| `{variable.name}` | {variable.meaning} | {variable.default} |" in TEXT


def test_the_limits_are_those_of_the_code() -> None:
    limits = TEXT.split("## Limits")[1]
    assert f"{MAX_LENGTH:,}".replace(",", " ") in limits
    assert ", ".join(t.name for t in REAL_TARGETS) in limits


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text()):
        name, _, part = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), target
        if part:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            assert part in map(anchor, headings), target


def test_files_that_are_named_exist() -> None:
    for text in (page.read_text() for page in PAGES):
        for name in re.findall(r"`((?:examples|generated|fftgen|tests|results)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / name).exists(), name
        for name in re.findall(r"`((?:planner|templates|simulator)/[\w/.]+\.\w+)`", text):
            assert (ROOT / "fftgen" / name).exists(), name
    for name in set(re.findall(r"\b([a-z]+\.py)\b", TEXT.split("## How a call travels")[1].split("##")[0])):
        assert (ROOT / "fftgen" / name).exists() or (ROOT / "fftgen" / "planner" / name).exists(), name

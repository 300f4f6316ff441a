"""The command line without a compiler: plans, sources, the cache, and how mistakes are answered."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import answer, fftgen

from fftgen import __version__, api, doctor, environment, nvrtc, portfolio
from fftgen.cache import Cache, Entry, Key
from fftgen.cli.options import lengths, table
from fftgen.compile_log import Resources
from fftgen.durable import way_out
from fftgen.errors import ArtifactError, InputError, ToolchainError
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.render import render
from fftgen.source import Source
from fftgen.targets import TARGETS

COMMANDS = ("plan", "render", "build", "inspect", "verify", "cache", "doctor", "portfolio", "bench", "tune")
GENERATED = Path(__file__).parents[2] / "generated"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in an empty directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FFTGEN_NO_JIT", raising=False)
    monkeypatch.delenv("FFTGEN_DUMP", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "0"), "seqlen must be at least 1"),
        (("plan", "6000000"), r"seqlen 6000000 exceeds the largest transform \(4194304\): split"),
        (("plan", "4096", "--dtype", "fp8"), "dtype 'fp8' is not supported: choose bf16"),
        (("plan", "4096", "--arch", "sm_42"), "target 'sm_42' is not supported: choose from sm_75"),
        (("plan", "4096", "--arch", "sm_75"), "no bf16 matrix instruction .*: use fp16 there"),
        (("render", "4096", "-o", "no/such/place.cu"), "no/such/place.cu cannot be written"),
        (("build", "--seqlen", "many"), "seqlen 'many' is neither a length"),
        (("build", "--seqlen", "1000..1001"), "no power of two lies between 1000 and 1001"),
        (("build", "--seqlen", "64", "--dtype", "fp16", "-o", "file"), "file is a file: name a directory"),
        (("verify",), "an artifact FILE or --seqlen N, one of them"),
        (("verify", "x.fftgen", "--seqlen", "256"), "an artifact FILE or --seqlen N, one of them"),
    ],
)
def test_what_is_not_served_exits_with_2_and_one_message(arguments: tuple[str, ...], message: str) -> None:
    Path("file").write_text("here before")
    result = fftgen(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr)
    assert Path("file").read_text() == "here before"


@pytest.mark.parametrize(
    "arguments", [("plan",), ("plan", "many"), ("build",), ("plan", "1", "--no"), ("x",)]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = fftgen(*arguments)
    assert result.exit_code == 2
    assert "Usage: fftgen" in result.stderr


@pytest.mark.parametrize("command", [("build", "--seqlen", "256"), ("portfolio",), ("render", "256")])
def test_an_empty_place_is_refused(command: tuple[str, ...]) -> None:
    """A variable that is not set: not the working directory."""
    result = fftgen(*command, "-o", "")
    assert result.exit_code == 2
    assert "an empty path: name a place" in result.stderr
    assert [*Path().iterdir()] == []


@pytest.mark.parametrize("name", ["index.json", "verified.json"])
@pytest.mark.parametrize("text", ['{"mine": 1}', "[]", "3", "mine"])
def test_a_portfolio_replaces_no_file_of_others(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portfolio, "index", lambda **_: {"compiler": "", "modules": []})
    Path("here").mkdir()
    (Path("here") / name).write_text(text)
    result = fftgen("portfolio", "-o", "here")
    assert result.exit_code == 2
    assert name in result.stderr
    if text != "mine" or name == portfolio.INDEX:  # what is damaged --verify writes anew
        assert fftgen("portfolio", "--verify", "-o", "here").exit_code == 2
    assert [p.name for p in Path("here").iterdir()] == [name]
    assert (Path("here") / name).read_text() == text


def test_a_file_that_is_not_there_was_asked_wrongly_and_one_that_is_no_artifact_fails() -> None:
    """A FIFO is no file either: opening it would wait for a writer."""
    Path("text.fftgen").write_text("not an artifact")
    os.mkfifo("pipe.fftgen")
    for command in ("inspect", "verify"):
        for name, status, message in (
            ("none.fftgen", 2, "cannot be read"),
            ("pipe.fftgen", 2, "cannot be read (Not a regular file)"),
            (".", 2, "cannot be read (Is a directory)"),
            ("text.fftgen", 1, "no fftgen artifact"),
        ):
            result = fftgen(command, name)
            assert result.exit_code == status
            assert result.stdout == ""
            assert message in result.stderr
            assert "Traceback" not in result.stderr


def test_verbose_shows_where_an_error_comes_from() -> None:
    result = fftgen("plan", "0", "-v")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: seqlen must be at least 1")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = fftgen(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout or command == "cache"
    assert f"\n  {command} " in fftgen("--help").stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fftgen", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fftgen {__version__}\n", "")


def test_the_command_line_loads_no_pytorch_before_it_must() -> None:
    code = "import sys; from fftgen.cli import main; main(['plan', '4096'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_plan_shown_is_the_plan_made() -> None:
    for mode, dtype, arch in (("circular", "bf16", "sm_90"), ("causal", "fp16", "sm_75")):
        expected = search.plan(Problem(mode, 65536, dtype), arch)
        arguments = ("plan", "65536", f"--{mode}", "--dtype", dtype, "--arch", arch)
        assert fftgen(*arguments).stdout.splitlines()[0] == str(expected)
        document = answer(*arguments)
        assert Plan.from_json(json.dumps(document["plan"])) == expected
        assert document["digest"] == expected.digest


def test_why_shows_every_candidate_with_its_time_or_its_reason() -> None:
    problem = Problem("causal", 20480, "bf16")
    found = search.search(problem, TARGETS["sm_86"])
    arguments = ("plan", "20480", "--causal", "--arch", "sm_86", "--why")
    text = fftgen(*arguments).stdout
    assert all(str(candidate) in text for candidate in found)
    assert any(candidate.reason for candidate in found)
    shown = [(c["engine"], c["packing"], c["reason"]) for c in answer(*arguments)["candidates"]]
    assert shown == [(candidate.engine, candidate.packing, candidate.reason) for candidate in found]


@pytest.mark.parametrize("target", ["sm_75", "sm_86", "sm_90", "compute_80"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("length", [256, 1000, 65536])
def test_the_command_in_a_generated_file_makes_that_file(length: int, mode: str, target: str) -> None:
    text = render(search.plan(Problem(mode, length, "fp16"), target)).text
    command = next(line for line in text.splitlines() if "fftgen render" in line).removeprefix("//").strip()
    program, *arguments = shlex.split(command)
    assert program == "fftgen"
    assert fftgen(*arguments).stdout == text
    assert fftgen(*arguments, "-o", "again.cu").stdout == ""
    assert Path("again.cu").read_bytes() == text.encode()


def test_lengths_are_numbers_or_powers_of_two_between_two() -> None:
    assert lengths(("1000", "256..2048", "512")) == [1000, 256, 512, 1024, 2048]
    assert lengths(("3..20",)) == [4, 8, 16]
    assert lengths(("4194304..4194304",)) == [4194304]
    for wrong in ("256..", "..256", "", "2048..256", "256...512", "1e3"):
        with pytest.raises(InputError, match="seqlen"):
            lengths((wrong,))


def test_columns_line_up() -> None:
    assert table([("a", "bcd", "e"), ("fgh", "", "")]) == "a    bcd  e\nfgh"


def test_one_file_each_or_one_for_all() -> None:
    first, second = Problem("circular", 512, "bf16"), Problem("causal", 512, "fp16")
    assert api.file_name(first) == "fftconv-512-bf16.fftgen"
    assert api.file_name(second) == "fftconv-512-fp16-causal.fftgen"
    each = {Path("d", api.file_name(p)): (p,) for p in (first, second)}
    assert api.files_for([first, second, first], "d") == each
    assert api.files_for([first, second], "d/all.fftgen") == {Path("d/all.fftgen"): (first, second)}


def test_files_are_replaced_all_or_none(place: Path) -> None:
    one, two, directory = place / "one", place / "two", place / "three"
    one.write_bytes(b"old")
    directory.mkdir()
    with pytest.raises(ArtifactError, match=r"three cannot be written \(Is a directory\): name a file in it"):
        api._write_all({one: b"new", two: b"new", directory: b"new"})
    assert one.read_bytes() == b"old"
    assert {p.name for p in place.iterdir()} == {"one", "three"}
    api._write_all({one: b"new", two: b"new"})
    assert (one.read_bytes(), two.read_bytes()) == (b"new", b"new")
    assert {p.name for p in place.iterdir()} == {"one", "two", "three"}


def test_files_behind_links_are_replaced_and_links_stay(place: Path) -> None:
    (place / "there").mkdir()
    Path("there/old.cu").write_text("old")
    for name, leads in (("link.cu", "there/old.cu"), ("dangling.cu", "there/new.cu")):
        Path(name).symlink_to(leads)
        assert fftgen("render", 256, "-o", name).exit_code == 0
        assert Path(name).is_symlink()
        assert Path(leads).read_text() == fftgen("render", 256).stdout
    api._write_all({place / "link.cu": b"new", place / "fresh": b"new"})
    assert Path("link.cu").is_symlink()
    assert (Path("there/old.cu").read_bytes(), Path("fresh").read_bytes()) == (b"new", b"new")
    Path("loop").symlink_to("loop")
    result = fftgen("render", 256, "-o", "loop")
    assert result.exit_code == 2
    assert "loop cannot be written (Too many levels of symbolic links)" in result.stderr
    assert {p.name for p in place.iterdir()} == {"there", "link.cu", "dangling.cu", "fresh", "loop"}


def test_what_is_no_regular_file_is_written_to_and_stays(place: Path) -> None:
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text(encoding="utf-8")))
    reader.start()
    assert fftgen("render", 256, "-o", "pipe").exit_code == 0
    reader.join(20)
    assert read == [fftgen("render", 256).stdout]
    assert Path("pipe").is_fifo()
    with pytest.raises(ArtifactError, match=r"pipe cannot be written \(Not a regular file\)"):
        api._write_all({place / "pipe": b"new"})
    assert [p.name for p in place.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/x.fftgen", r"\(Not a directory\): name a directory that exists"),
        ("pipe.fftgen", r"\(Not a regular file\): name another file"),
        ("out", r"\(Is a directory\): name a file in it"),
    ],
)
def test_a_build_knows_before_it_compiles_that_its_file_cannot_be_written(
    output: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("compiled for a file that cannot be written")

    monkeypatch.setattr("fftgen.bundle.build_all", never)
    Path("file").write_text("")
    os.mkfifo("pipe.fftgen")
    Path("out/fftconv-256-bf16.fftgen").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    result = fftgen("build", "--seqlen", "256", "-o", output)
    assert result.exit_code == 1
    assert re.search(rf"^error: artifact .* cannot be written {message}$", result.stderr, re.M)
    assert sorted(Path().rglob("*")) == before


def test_the_way_out_is_that_of_the_cause() -> None:
    ways = {
        "ENOSPC": "make room",
        "EACCES": "writable directory",
        "EROFS": "writable directory",
        "ENOENT": "directory that exists",
        "EEXIST": "directory that exists",
        "EISDIR": "name a file in it",
        "ENAMETOOLONG": "another file",
    }
    for cause, way in ways.items():
        assert way in way_out(OSError(getattr(errno, cause), "")), cause
    assert way_out(OSError("of no number")) == "name another file"


@pytest.mark.parametrize(
    "arguments", [("render", "256"), ("plan", "256", "--json"), ("cache", "list"), ("--help",)]
)
def test_output_that_cannot_be_written_is_one_message(arguments: tuple[str, ...]) -> None:
    """Of a process of its own, whose files may hold nothing: buffers are flushed once more at its end."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    code += "from fftgen.cli import main; main(sys.argv[1:])"
    with Path("out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (File too large)\n"


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "fftgen", "render", "4096"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_files_are_read_as_utf_8_whatever_the_locale() -> None:
    """No call that leaves the encoding to the locale: Python warns of each."""
    code = "import warnings\n"
    code += "from pathlib import Path\n"
    code += "from fftgen.cli.portfolio import _kept, _texts\n"
    code += "from fftgen.bench.results import read\n"
    code += "from fftgen.toolkit import examine\n"
    code += "warnings.simplefilter('error', EncodingWarning)\n"
    code += "_kept(Path('a.json')), read(Path('a.json')), _texts(Path(), ['a.json'])\n"
    code += "examine('here', (Path(),))\n"
    known = '"schema": 1, "steps": ["·"], "seed": 1, "compiler": "·", "modules": []'
    Path("a.json").write_text(f"{{{known}}}", encoding="utf-8")
    Path("cuda_runtime_api.h").write_text("// ·", encoding="utf-8")
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # where other packages' warnings may stand


def test_the_portfolio_removes_only_what_it_wrote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads((GENERATED / portfolio.INDEX).read_text(encoding="utf-8"))
    monkeypatch.setattr(portfolio, "index", lambda **_: found)
    assert fftgen("portfolio", "-o", "out").exit_code == 0
    written = {p.name for p in Path("out").iterdir()}
    stale = {"causal-8-bf16-sm_90.cu", "causal-8-bf16-sm_90.plan.json"}
    for name in stale:
        Path("out", name).write_bytes(
            Path("out", name.replace("-8-", "-256-").replace("bf16", "fp16")).read_bytes()
        )
    own = {
        "mine.cu": "__global__ void mine() {}",
        "mine.plan.json": "{}",
        "causal-512-bf16-sm_90.cu": "// by hand",
        "causal-512-bf16-sm_90.plan.json": json.dumps({"line": "by hand"}),
        "rendered.cu": fftgen("render", 512).stdout,
    }
    for name, text in own.items():
        Path("out", name).write_text(text, encoding="utf-8")
    checked = fftgen("portfolio", "-o", "out", "--check")
    assert checked.exit_code == 1
    assert sorted(re.findall(r"does not belong out/(.*)", checked.stdout)) == sorted(stale)
    again = fftgen("portfolio", "-o", "out")
    assert sorted(re.findall(r"removed out/(.*)", again.stdout)) == sorted(stale)
    assert {p.name for p in Path("out").iterdir()} == written | own.keys()
    assert all(Path("out", name).read_text(encoding="utf-8") == text for name, text in own.items())
    assert "stay." in fftgen("portfolio", "--help").stdout


def test_the_portfolio_overwrites_no_page_of_others() -> None:
    Path("README.md").write_text("# Mine")
    for arguments in ((), ("--check",)):
        result = fftgen("portfolio", "-o", ".", *arguments)
        assert result.exit_code == 2
        assert "README.md is not this command's: name a directory that has none of its own" in result.stderr
    assert [p.name for p in Path().iterdir()] == ["README.md"]


def test_help_says_what_needs_a_gpu() -> None:
    text = " ".join(fftgen("--help").stdout.split())
    assert "Only bench and tune need a GPU." in text


def fill(store: Cache) -> Path:
    """Puts one entry into a store and returns where its files are."""
    source = Source("conv.cu", "// nothing\n", {}, ("conv",))
    key = Key("conv.cu", ("conv",), source.text, {}, (), "sm_90", "nvrtc 1.2.3", "0" * 64)
    entry = Entry(source, "sm_90", b"code", "ptx", {"conv": Resources(40)})
    store.get_or_build(key, lambda: entry)
    return store.entries()[0].path


def test_the_cache_is_listed_checked_and_emptied() -> None:
    store = Cache.default()
    assert answer("cache", "list")["entries"] == []
    path = fill(store)
    listed = answer("cache", "list")
    assert [(e["name"], e["target"], e["problem"]) for e in listed["entries"]] == [("conv.cu", "sm_90", None)]
    assert "conv.cu  sm_90  nvrtc 1.2.3" in fftgen("cache", "list").stdout
    size = answer("cache", "size")
    assert (size["bytes"], size["entries"]) == (store.size(), 1)
    assert fftgen("cache", "verify").stdout.startswith("1 kernel, 0 damaged")
    (path / "kernel.cubin").write_bytes(b"cold")
    checked = fftgen("cache", "verify", "--json")
    assert checked.exit_code == 1
    assert "SHA-256" in json.loads(checked.stdout)["damaged"][0]["problem"]
    assert answer("cache", "clear")["freed_bytes"] == size["bytes"]
    assert answer("cache", "list")["entries"] == []


def test_doctor_names_what_is_missing_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ToolchainError("no NVRTC here: pip install 'fftgen[cu13]'")

    monkeypatch.setattr(nvrtc, "_bindings", absent)
    for asked in (nvrtc.build, nvrtc._numbers):
        asked.cache_clear()  # what an earlier test learned
    monkeypatch.setattr("fftgen.toolkit.find_tool", lambda name: None)
    result = fftgen("doctor", "--json")
    assert result.exit_code == 1  # this machine cannot compile
    parts = {p["name"]: p for p in json.loads(result.stdout)["parts"]}
    assert not parts["NVRTC"]["present"]
    assert "pip install" in parts["NVRTC"]["detail"]
    assert "pip install nvidia-cuda-nvdisasm" in parts["nvdisasm"]["detail"]
    assert parts["Python"]["present"]
    assert "--plot" in parts["matplotlib"]["needed"]
    text = fftgen("doctor").stdout
    assert all(line.startswith(("ok", "--")) for line in text.split("\n\n")[0].splitlines())


@pytest.mark.parametrize("command", ["verify", "tune", "bench", "portfolio"])
@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_seeds_that_no_generator_takes_are_refused(command: str, seed: str) -> None:
    result = fftgen(command, "--seed", seed)
    assert result.exit_code == 2
    assert f"{seed} is not in the range" in result.stderr


def test_sources_go_to_standard_output_by_its_usual_name(place: Path) -> None:
    assert fftgen("render", "256", "-o", "-").stdout == fftgen("render", "256").stdout
    assert list(place.iterdir()) == []


def test_a_portfolio_goes_into_a_directory() -> None:
    result = fftgen("portfolio", "-o", "/dev/null")
    assert result.exit_code == 2
    assert "/dev/null is no directory" in result.stderr


def test_doctor_tries_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    (found,) = (p for p in doctor.examine() if p.name == "cuda-bindings")
    assert not found.present
    assert "is installed, but cuda.bindings.nvrtc cannot be imported" in found.detail


@pytest.mark.parametrize("command", ["list", "size", "verify", "clear"])
def test_a_cache_that_cannot_be_is_an_error(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("mine")
    for value, message in (
        ("file", "file cannot be read (Not a directory)"),
        ("/dev/null", "the cache /dev/null cannot be read"),
        ("", "FFTGEN_CACHE_DIR is set, but empty"),
    ):
        monkeypatch.setenv("FFTGEN_CACHE_DIR", value)
        result = fftgen("cache", command)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert message in result.stderr
    assert Path("file").read_text() == "mine"
    monkeypatch.setenv("FFTGEN_CACHE_DIR", "not made yet")
    assert fftgen("cache", command).exit_code == 0


def test_doctor_shows_the_environment_variables(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(place / "file" / "cache"))
    result = fftgen("doctor", "--json")
    document = json.loads(result.stdout)
    assert {v["name"] for v in document["variables"]} == {v.name for v in environment.VARIABLES}
    assert document["variables"][0]["value"] == str(place / "file" / "cache")
    cache = next(p for p in document["parts"] if p["name"] == "cache")
    assert not cache["present"]
    assert "set FFTGEN_CACHE_DIR" in cache["detail"]

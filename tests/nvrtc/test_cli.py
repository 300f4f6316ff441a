"""The command line with a compiler: artifacts that load, builds that fail clean, kernels verified."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import answer, fftgen, why_not

import fftgen as package
from fftgen import api, artifact, bundle, doctor, nvrtc, toolkit
from fftgen.cli.render import whole
from fftgen.errors import InputError
from fftgen.pipeline import Built
from fftgen.planner import search
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.render import render
from fftgen.source import Source

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in an empty directory; one cache for all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(session_cache))
    monkeypatch.delenv("FFTGEN_NO_JIT", raising=False)
    monkeypatch.delenv("FFTGEN_DUMP", raising=False)
    return tmp_path


@pytest.mark.drawn(3)
@pytest.mark.parametrize("length", [256, 4096, 65_536])
def test_the_readme_command_writes_the_artifact_for_every_target(length: int) -> None:
    """With the README's length and with shorter ones, whose kernels take half of the time to compile."""
    result = fftgen("build", "--seqlen", str(length), "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    path = Path(f"generated/fftconv-{length}-bf16.fftgen")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in result.stdout
    shelf = bundle.open_shelf(path, sha256=digest)
    problem = Problem("circular", length, "bf16")
    assert shelf.main == (problem,)
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        built = shelf.built(problem, capability)
        assert built.cubin
        assert built.plan.target == f"sm_{capability[0]}{capability[1]}"
    assert shelf.built(problem, (13, 0)).ptx  # a chip newer than the table
    conv = package.load(path)
    u = torch.randn(1, 2, length).bfloat16()
    k = torch.randn(2, 100)
    exact = torch.fft.irfft(torch.fft.rfft(u.double()) * torch.fft.rfft(k.double(), n=length))
    assert torch.linalg.norm(conv(u, k).double() - exact) < 3e-3 * torch.linalg.norm(exact)


def test_a_build_says_what_every_module_takes() -> None:
    arguments = ("build", "--seqlen", "1024", "--causal", "--arch", "sm_80", "--arch", "compute_80")
    result = fftgen(*arguments)
    first, second, written, total = result.stdout.splitlines()
    assert re.search(
        r"causal 1024 bf16 sm_80 .*N=1024=.*1 kernel .*\d+ registers  no spills  \d+ B shared", first
    )
    assert re.search(r"causal 1024 bf16 compute_80 .*PTX", second)
    assert written.startswith("generated/fftconv-1024-bf16-causal.fftgen  ")
    assert total.startswith("1 file, 2 modules in ")
    assert "building 2 modules" in result.stderr  # the progress bar leaves stdout alone
    again = answer(*arguments)
    assert [m["cached"] for m in again["files"][0]["modules"]] == [True, True]
    details = fftgen(*arguments, "-v").stdout
    assert all(f"  {name}  " in details for m in again["files"][0]["modules"] for name in m["shared_bytes"])


def test_the_same_build_gives_the_same_bytes(place: Path) -> None:
    arguments = ("build", "--seqlen", "256..512", "--dtype", "fp16", "--dtype", "bf16", "--arch", "90")
    one = answer(*arguments, "-o", "one")
    two = answer(*arguments, "-o", "two")
    assert [f["sha256"] for f in one["files"]] == [f["sha256"] for f in two["files"]]
    names = {f"fftconv-{n}-{d}.fftgen" for n in (256, 512) for d in ("bf16", "fp16")}
    assert {p.name for p in (place / "one").iterdir()} == names
    assert fftgen(*arguments, "-o", "all.fftgen").exit_code == 0
    with pytest.raises(InputError, match=r"4 of the convolutions in all\.fftgen fit"):
        package.load("all.fftgen")
    assert package.load("all.fftgen", length=512, dtype="fp16").problem == Problem("circular", 512, "fp16")


def test_python_builds_what_the_command_builds() -> None:
    answered = answer("build", "--seqlen", "512", "--dtype", "fp16", "--arch", "sm_86", "-o", "x.fftgen")
    made = package.build(512, torch.float16, targets=["sm_86"], path="y.fftgen")
    assert made.sha256 == answered["files"][0]["sha256"]
    assert Path("x.fftgen").read_bytes() == Path("y.fftgen").read_bytes()
    assert str(package.plan(512, torch.float16, target="sm_86")) == answered["files"][0]["modules"][0]["plan"]


def test_a_failed_build_changes_no_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("build", "--seqlen", "256", "--seqlen", "512", "--arch", "sm_80", "-o", place)
    assert fftgen(*arguments).exit_code == 0
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    compile_cubin = nvrtc.compile_cubin

    def broken(source: Source, arch: str) -> nvrtc.Cubin:
        if "n512" in source.name:
            source = Source(source.name, source.text + "\nint x = y;\n", source.headers, source.entries)
        return compile_cubin(source, arch)

    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(place / "other"))
    monkeypatch.setattr("fftgen.pipeline.nvrtc.compile_cubin", broken)
    result = fftgen(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert 'identifier "y" is undefined' in result.stderr
    assert "> " in result.stderr  # the generated line
    assert "Traceback" not in result.stderr
    assert {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()} == before


def test_without_compiling_the_error_names_a_command_that_helps(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(place / "empty"))
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    wanted = ("build", "--seqlen", "256", "--causal", "--arch", "sm_80", "-o", "x.fftgen")
    result = fftgen(*wanted)
    assert result.exit_code == 1
    named = re.search(r"run '(fftgen build [^']*)' beforehand", result.stderr)
    assert named is not None
    monkeypatch.delenv("FFTGEN_NO_JIT")
    assert fftgen(*shlex.split(named[1])[1:]).exit_code == 0
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    assert fftgen(*wanted).exit_code == 0


def test_inspect_tells_what_the_build_told() -> None:
    built = answer("build", "--seqlen", "256", "--arch", "sm_80", "--arch", "compute_80", "-o", "x.fftgen")
    seen = answer("inspect", "x.fftgen")
    assert seen["sha256"] == built["files"][0]["sha256"]
    assert seen["convolutions"] == [{"mode": "circular", "length": 256, "dtype": "bf16"}]
    for told, found in zip(built["files"][0]["modules"], seen["modules"], strict=True):
        assert all(found[key] == told[key] for key in ("name", "plan", "digest", "target", "resources"))
    text = fftgen("inspect", "x.fftgen").stdout
    assert "every digest matches" in text
    assert all(m["plan"] in text for m in seen["modules"])


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_inspect_counts_machine_instructions() -> None:
    answer("build", "--seqlen", "256", "--causal", "--arch", "sm_80", "-o", "x.fftgen")
    module = answer("inspect", "x.fftgen", "--sass")["modules"][0]
    assert module["instructions"][module["name"]]["HMMA"] > 0
    assert re.search(
        r"convolve: \d+ instructions, [1-9]\d* on tensor cores: ",
        fftgen("inspect", "x.fftgen", "--sass").stdout,
    )


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_inspect_shows_what_bounds_the_compiled_kernels() -> None:
    arguments = ("--seqlen", "256", "--causal", "--arch", "sm_90", "--arch", "compute_80")
    answer("build", *arguments, "--train", "-o", "x.fftgen")
    seen = answer("inspect", "x.fftgen", "--roofline")["modules"]
    views = [m["roofline"] for m in seen if m["roofline"]]
    # With one output, with two; of the filter's gradient, of all.
    assert [v["target"] for v in views] == 4 * ["sm_90", "compute_80"]
    own = [[[label], []] for label in ("convolve", "convolve", "gradient", "backward")]
    assert [v["instructions_compiled"] for v in views] == [labels for of_kind in own for labels in of_kind]
    for one, two in zip(views[:2], views[2:4], strict=True):
        once, twice = (v["per_transform"]["kernels"][0]["device_bytes"] for v in (one, two))
        assert twice == 1.5 * once
    for view in views:
        (kernel,) = view["per_transform"]["kernels"]
        assert kernel["time"] == kernel["seconds"][kernel["bound"]] + kernel["showing"] > 0
        assert 0 < kernel["floor_fraction"] <= 1
    answer("build", *arguments, "-o", "y.fftgen")  # counting the code of gradients again would take long
    text = fftgen("inspect", "y.fftgen", "--roofline", "--arch", "90", "--plot", "x.svg").stdout
    assert "predicted for H200-SXM, not measured; as compiled, instructions counted in machine code" in text
    assert "any from sm_80" not in text
    assert Path("x.svg").stat().st_size > 0
    missing = fftgen("inspect", "x.fftgen", "--arch", "sm_86")
    assert missing.exit_code == 2
    assert "no module for sm_86, but for sm_90, compute_80" in missing.stderr


def test_an_overridden_engine_stays_in_its_file() -> None:
    """Built into the same cache, it never takes the place of the planner's choice."""
    other = answer("build", "--seqlen", "256", "--causal", "--arch", "sm_90", "--engine", "wmma")["files"][0]
    assert other["path"] == "generated/fftconv-256-bf16-causal-wmma.fftgen"
    (module,) = other["modules"]
    assert "wmma" in module["plan"]
    problem = Problem("causal", 256, "bf16")
    default = search.plan(problem, "sm_90")
    assert module["digest"] != default.digest
    jit = JustInTime().built(problem, (9, 0))
    assert jit.plan == default
    assert jit.cubin != bundle.open_shelf(other["path"]).built(problem, (9, 0)).cubin
    again = answer("build", "--seqlen", "256", "--causal", "--arch", "sm_90")["files"][0]
    assert again["path"] == "generated/fftconv-256-bf16-causal.fftgen"
    assert again["modules"][0]["digest"] == default.digest
    loaded = package.load(other["path"])
    assert loaded.plan("sm_90").engine == "wmma"
    assert package.get_conv(256, causal=True).plan("sm_90") == default
    assert loaded.handle != package.load(again["path"]).handle


def test_an_overridden_engine_is_verified_like_any_other() -> None:
    found = answer("verify", "--seqlen", "256", "--causal", "--engine", "wmma", "--quick", "--seed", 1)
    (module,) = found["modules"]
    assert module["passed"]
    assert "wmma" in module["plan"]


def test_inspect_refuses_a_damaged_file() -> None:
    answer("build", "--seqlen", "256", "--arch", "sm_80", "-o", "x.fftgen")
    raw = bytearray(Path("x.fftgen").read_bytes())
    raw[-100] ^= 1
    Path("x.fftgen").write_bytes(raw)
    result = fftgen("inspect", "x.fftgen")
    assert result.exit_code == 1
    assert "does not match its SHA-256" in result.stderr


def test_headers_put_into_the_source_compile_to_the_same_code() -> None:
    source = render(search.plan(Problem("causal", 256, "bf16"), "sm_80"))
    text = fftgen("render", "256", "--causal", "--arch", "sm_80", "--headers").stdout
    assert text == whole(source)
    assert '#include "fftgen/' not in text
    alone = nvrtc.compile_cubin(Source(source.name, text, {}, source.entries), "sm_80")
    assert alone.ptx == nvrtc.compile_cubin(source, "sm_80").ptx


@pytest.mark.parametrize(
    "asked", [("--engine", "wmma"), ("--engine", "mma"), ("--dtype", "fp32"), ("--causal", "--backward")]
)
def test_what_renders_with_headers_compiles_without_options_of_ours(
    asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours makes every function one of the device (-default-device), where another compiler wants it said."""
    text = fftgen("render", "1024", *asked, "--headers").stdout
    entries = tuple(re.findall(r"extern \"C\" __global__ .* (fftgen_\w+)\(", text))
    assert entries
    plain = ("--gpu-architecture=sm_90", "-std=c++17", "--ptxas-options=-v")
    monkeypatch.setattr(nvrtc, "options", lambda *_, **__: plain)
    nvrtc.compile_cubin(Source("alone.cu", text, {}, entries), "sm_90")


def small() -> Built:
    """A module of an artifact, to be spoilt."""
    return api.build(256, causal=True, targets=["sm_80"], path="right.fftgen").built[0]


def write(built: Built) -> str:
    artifact.write("wrong.fftgen", bundle.bundle([built]))
    return "wrong.fftgen"


def test_verify_runs_the_kernels_of_a_file() -> None:
    small()
    result = fftgen("verify", "right.fftgen", "--quick", "--counters", "--seed", "5")
    assert result.exit_code == 0, result.stdout
    assert re.search(r"error \d\.\d+e-0\d \(bound .*: ok", result.stdout)
    assert "1 of 1 module hold the code that their source compiles to" in result.stdout
    assert result.stdout.endswith("1 module run, 0 failed; seed 5\n")
    assert "mma.m16n8k16" in result.stdout  # counters
    document = answer("verify", "right.fftgen", "--quick", "--seed", "5")
    assert document["modules"][0]["passed"]
    assert list(document["code"].values()) == ["same"]


def test_verify_runs_equal_plans_once() -> None:
    api.build(256, causal=True, targets=["sm_90", "sm_100", "sm_120"], path="x.fftgen")
    modules = answer("verify", "x.fftgen", "--quick")["modules"]
    # Fewer blocks of a filter's kernel are resident on sm_120, whose multiprocessors hold 48 warps.
    assert [m["same_plan_not_run"] for m in modules] == [["sm_100"], []]
    one = answer("verify", "x.fftgen", "--quick", "--arch", "sm_100")["modules"]
    assert [m["name"].split("_")[-2] for m in one] == ["sm100"]
    missing = fftgen("verify", "x.fftgen", "--arch", "sm_80")
    assert missing.exit_code == 2
    assert "holds nothing for sm_80, but for sm_90, sm_100, sm_120" in missing.stderr


def test_verify_notices_wrong_results() -> None:
    built = small()
    tables = bytes(len(built.tables))
    result = fftgen("verify", write(dataclasses.replace(built, tables=tables)), "--quick")
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    assert "1 module run, 1 failed" in result.stdout


def test_verify_notices_a_kernel_that_races() -> None:
    built = small()
    headers = {n: t.replace("__syncwarp()", "") for n, t in built.source.headers.items()}
    source = Source(
        built.source.name, built.source.text.replace("__syncwarp()", ""), headers, built.source.entries
    )
    assert source != built.source
    cubin = nvrtc.compile_cubin(source, "sm_80").image
    result = fftgen("verify", write(dataclasses.replace(built, source=source, cubin=cubin)), "--quick")
    assert result.exit_code == 1
    assert "FAILED: SharedRace" in result.stdout


def test_verify_notices_code_that_is_not_from_the_source() -> None:
    built = small()
    other = api.build(512, causal=True, targets=["sm_80"], path="other.fftgen").built[0]
    result = fftgen("verify", write(dataclasses.replace(built, cubin=other.cubin)), "--quick")
    assert result.exit_code == 1
    assert "the machine code is not what its source compiles to" in result.stdout
    assert "1 module run, 0 failed" in result.stdout


@pytest.mark.slow
def test_an_artifact_that_trains_has_kernels_with_two_outputs() -> None:
    """Found by their own name, verified like the others; the convolution is still the one with one output."""
    answer("build", "--seqlen", "256", "--arch", "sm_80", "--train", "-o", "x.fftgen")
    shelf = bundle.open_shelf("x.fftgen")
    assert shelf.main == (Problem("circular", 256, "bf16"),)
    for problem in shelf.problems:
        both, one = shelf.twin(problem, (8, 0)), shelf.built(problem, (8, 0))
        assert both is not None
        assert (both.plan.outputs, one.plan.outputs) == (2, 1)
        assert set(both.entries) == {both.plan.name}
        assert package.load("x.fftgen").plan("sm_80") == shelf.built(shelf.main[0], (8, 0)).plan
    answer("build", "--seqlen", "256", "--arch", "sm_80", "-o", "y.fftgen")
    assert bundle.open_shelf("y.fftgen").twin(shelf.main[0], (8, 0)) is None
    found = answer("verify", "x.fftgen", "--quick", "--seed", 1)["modules"]
    assert all(m["passed"] for m in found)
    assert sum(m["name"].startswith("fftgen_twin_") for m in found) == 2
    text = fftgen("render", 256, "--causal", "--arch", "sm_80", "--twin").stdout
    assert "--causal --arch sm_80 --twin\n" in text
    assert "twin_real_sink" in text
    refused = fftgen("render", 256, "--dtype", "fp16", "--arch", "sm_75", "--twin")
    assert refused.exit_code == 2
    assert "engine wmma has no kernels with two outputs" in refused.stderr
    assert fftgen("render", 256, "--gradient", "--twin").exit_code == 2


def test_doctor_asks_beside_a_pytorch_that_brings_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has one compiler, maybe another than that of commands: a process of its own is asked."""
    find = importlib.util.find_spec
    assert ("NVRTC in calls" in names(doctor.examine())) == (torch.version.cuda is not None)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "torch" / "lib").mkdir(parents=True)
    (elsewhere / "torch" / "lib" / "libtorch_cuda.so").touch()
    start = elsewhere / "torch" / "__init__.py"
    start.write_text("raise ImportError('a torch that does not start')", encoding="utf-8")
    spec = SimpleNamespace(origin=str(start))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "torch" else find(name))
    found = names(doctor.examine())["NVRTC in calls"]
    assert (found.present, found.detail) == (True, doctor.compiler())
    monkeypatch.setenv("PYTHONPATH", str(elsewhere), prepend=os.pathsep)
    found = names(doctor.examine())["NVRTC in calls"]
    assert (found.present, found.detail) == (False, "ImportError: a torch that does not start")


def names(parts: list[doctor.Part]) -> dict[str, doctor.Part]:
    return {p.name: p for p in parts}

"""``--roofline`` and ``--engine`` without a compiler: what they show, draw and refuse."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from command_line import answer, fftgen

import fftgen as package
from fftgen import api, roofline
from fftgen.bench import roofline as pictures
from fftgen.errors import InputError, NoPlanError
from fftgen.planner import search
from fftgen.planner.cost import RESOURCES, cost, filter_cost, in_one_launch
from fftgen.planner.one_launch import ALONE
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.render import command, render
from fftgen.targets import TARGETS, target


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("gated", [False, True])
def test_the_roofline_of_a_plan_is_its_cost(gated: bool) -> None:
    found = answer("plan", 65536, "--causal", "--roofline", *["--gated"] * gated)["roofline"]
    plan, chip = search.plan(Problem("causal", 65536, "bf16"), "sm_90"), target("sm_90")
    price, spectrum = cost(plan, chip, gated=gated), filter_cost(plan, chip)
    assert (found["predicted"], found["gated"]) == (True, gated)
    assert price.device_bytes == 65536 * (8 if gated else 4)
    assert found["instructions_compiled"] == []
    for document, expected in ((found["per_transform"], price), (found["per_filter"], spectrum)):
        assert document["time"] == pytest.approx(expected.time + expected.showing)
        assert document["time"] == pytest.approx(sum(k["time"] for k in document["kernels"]))
        assert document["floor"] == pytest.approx(expected.device_bytes / 4.3e12)
        assert document["floor_fraction"] == pytest.approx(document["floor"] / document["time"])
        for kernel, one in zip(document["kernels"], expected.kernels, strict=True):
            assert (kernel["kernel"], kernel["bound"]) == (one.name, one.bound)
            assert kernel["seconds"] == pytest.approx(one.seconds)
            assert kernel["floor"] == pytest.approx(one.work.device_bytes / 4.3e12)


def test_the_table_says_that_it_predicts_and_what_it_assumes() -> None:
    text = fftgen("plan", 65536, "--roofline", "--batch", 8, "--channels", 96).stdout
    assert "predicted for H200-SXM, not measured" in text
    assert "assumed, not from a datasheet: the rate of L2" in text
    for name in ("peaks", "columns1", "rows", "columns_inverse1", "filter_columns", "filter_level"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ ", text, re.M), name
    assert re.search(r"a call of batch 8, 96 channels, spectrum prepared: [\d.]+ ms in 1 launch ", text)
    assert "us for launching" in text
    one = fftgen("plan", 1024, "--roofline", "--batch", 2, "--channels", 3).stdout
    assert "in 1 launch (" in one
    assert "; ns per pair of rows\n" in one
    assert "; ns per gated pair of rows\n" in fftgen("plan", 1024, "--roofline", "--gated").stdout


def test_the_time_shown_is_the_time_that_plans_are_ranked_by() -> None:
    """What the busiest resource does not hide is in it, and named."""
    one, whole = (search.plan(Problem("causal", n, "bf16"), "sm_90") for n in (256, 65_536))
    for plan in (one, whole):
        price = cost(plan, target("sm_90"))
        lines = fftgen("plan", plan.problem.length, "--causal", "--roofline").stdout.splitlines()
        (line,) = (line for line in lines if line.startswith("predicted for") and " ns, " in line)
        total, showing = 1e9 * (price.time + price.showing), 1e9 * price.showing
        assert f": {total:.2f} ns, {showing:.2f} of them not hidden by the busiest resource" in line
        last = "convolve" if plan is one else "all"
        heads = [i for i, line in enumerate(lines) if re.search(r"  not hidden +time  ", line)]
        row = next(line for line in lines[heads[0] :] if line.startswith(f"{last} ")).split()
        assert row[6:8] == [f"{showing:.2f}", f"{total:.2f}"]


def test_a_bound_is_that_of_kernels_not_of_their_sums() -> None:
    """1 048 576 points: rows wait for shared memory longest, though the L2 is busy longer in all."""
    price = cost(search.plan(Problem("causal", 1_048_576, "bf16"), "sm_90"), target("sm_90"))
    assert max(price.seconds, key=lambda name: price.seconds[name]) != price.bound
    assert sum(price.bounding.values()) == pytest.approx(price.time)
    text = fftgen("plan", 1_048_576, "--causal").stdout
    assert (
        f"bound longest by {price.bound} ({1e9 * price.bounding[price.bound]:.2f} ns); busy, in ns:" in text
    )
    assert "bound by device memory; busy" in fftgen("plan", 256).stdout


def test_the_plan_tells_what_preparing_a_filter_costs() -> None:
    text = fftgen("plan", 65536, "--why").stdout
    assert "per filter, once: 524296 bytes of device memory, 1544256 bytes of workspace" in text
    assert re.search(r"^filter_rows +\d+", text, re.M)
    assert answer("plan", 4096)["filter_cost"]["device_bytes"] == 8 * 4096 + 8


def test_the_plan_tells_what_one_launch_of_all_stages_costs_and_why_it_is_that_one() -> None:
    chip = target("sm_90")
    plan = search.plan(Problem("causal", 65536, "bf16"), chip)
    price = in_one_launch(plan, cost(plan, chip), chip)
    text = fftgen("plan", 65536, "--causal", "--why").stdout
    assert f"many rows by one launch: {1e9 * price.predicted:.2f} ns, " in text
    ways = re.findall(r"^  (.+), \d x \d+ warps on a multiprocessor, .+: ([0-9.]+) ns", text, re.M)
    assert [place for place, _ in ways] == ["3/4 of every row in shared memory", "rows in the L2"]
    assert float(ways[0][1]) == pytest.approx(ALONE * 1e9 * price.predicted, abs=0.01)
    assert float(ways[0][1]) < float(ways[1][1])
    document = answer("plan", 65536, "--causal", "--why")
    assert document["one_launch_cost"]["time"] == price.predicted
    assert [way["kernel"].get("held") for way in document["one_launch"]] == [12, None]
    alone = answer("plan", 4096, "--why")
    assert (alone["one_launch_cost"], alone["one_launch"]) == (None, [])
    assert "one launch" not in fftgen("plan", 4096, "--why").stdout


def test_pictures_show_every_kernel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    seen = []
    real = pictures._panel

    def panel(axis: object, view: roofline.Roofline, of: object, label: str) -> None:
        real(axis, view, of, label)  # type: ignore[arg-type]
        seen.append((label, [b.get_height() for c in axis.containers for b in c]))  # type: ignore[attr-defined]

    monkeypatch.setattr(pictures, "_panel", panel)
    assert fftgen("plan", 65536, "--roofline", "--plot", "p.svg").exit_code == 0
    assert b"<svg" in (place / "p.svg").read_bytes()
    price = cost(search.plan(Problem("circular", 65536, "bf16"), "sm_90"), target("sm_90"))
    assert [label for label, _ in seen] == ["ns per pair of rows", "ns per filter"]
    assert seen[0][1] == pytest.approx([1e9 * k.seconds[r] for r in RESOURCES for k in price.kernels])


def test_a_missing_plotting_library_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("planned before it was known that nothing can be drawn")

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("fftgen.planner.search._plan", never)
    result = fftgen("plan", 4096, "--roofline", "--plot", "p.png")
    assert result.exit_code == 1
    assert "pip install 'fftgen[bench]'" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "4096", "--plot", "p.png"), "go with --roofline"),
        (("plan", "4096", "--gated"), "go with --roofline"),
        (("plan", "4096", "--batch", "4", "--channels", "4"), "go with --roofline"),
        (("plan", "4096", "--roofline", "--batch", "4"), "--batch and --channels go together"),
        (("plan", "4096", "--roofline", "--batch", "0", "--channels", "4"), "at least one row"),
        (("plan", "4096", "--roofline", "--batch", "65536", "--channels", "32768"), "rows exceed .*: split"),
        (
            ("plan", "4096", "--engine", "cufft"),
            "engine 'cufft' is not known: choose from mma, wmma, simt, mma:bf16",
        ),
        (("plan", "4096", "--engine", "mma:"), "engine 'mma:' is not known"),
        (("plan", "4096", "--engine", "mma:fp32"), "engine 'mma:fp32' is not known"),
        (("plan", "4096", "--engine", "wmma:scaled-fp16"), "engine 'wmma:scaled-fp16' is not known"),
        (
            ("plan", "4096", "--engine", "mma:bf16-fp32", "--dtype", "fp16"),
            "bf16 operands would drop bits of fp16 tensors: scaled-fp16 keeps them",
        ),
        (("build", "--seqlen", "64", "--engine", "x"), "engine 'x' is not known"),
        (("verify", "f.fftgen", "--engine", "mma"), "plans of a FILE are as they are: --engine goes with"),
        (("verify", "f.fftgen", "--dtype", "bf16"), "plans of a FILE are as they are: --dtype goes with"),
        (
            ("verify", "f.fftgen", "--circular", "--dtype", "fp16"),
            "plans of a FILE are as they are: --dtype and --causal go with --seqlen",
        ),
        (("render", "4096", "--engine", "mma", "--gradient"), "an engine of their own"),
        (
            ("plan", "4096", "--dtype", "fp16", "--arch", "sm_75", "--engine", "mma"),
            r"sm_75 with engine mma: sm_75 lacks mma\.m16n8k16 and redux\.sync .*name another engine",
        ),
        (
            ("build", "--seqlen", "4096", "--dtype", "fp16", "--arch", "sm_75", "--engine", "mma"),
            "sm_75 lacks mma",
        ),
        (
            ("plan", "4194304", "--causal", "--arch", "sm_86", "--engine", "mma"),
            "with engine mma: .*rules for",
        ),
        (("plan", "4096", "--arch", "sm_75", "--engine", "wmma"), "no bf16 matrix instruction"),
    ],
)
def test_what_cannot_be_is_refused_with_its_rule(arguments: tuple[str, ...], message: str) -> None:
    pytest.importorskip("matplotlib")
    result = fftgen(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.search(message, result.stderr), result.stderr


def test_pictures_that_cannot_be_written_are_errors(place: Path) -> None:
    pytest.importorskip("matplotlib")
    formats = r"cannot be drawn: name a file that ends in \.png, \.svg, \.pdf\n"
    (place / "directory.png").mkdir()
    for name, said in (
        ("no/such/p.png", r"cannot be written \(.*\): name a directory that exists\n"),
        ("directory.png", r"cannot be written \(.*\): "),
        ("p.nosuchformat", formats),
        ("p", formats),
        (".", formats),
        ("/dev/null", formats),
    ):
        result = fftgen("plan", 256, "--roofline", "--plot", name)
        assert result.exit_code == 2
        assert re.search(said, result.stderr), result.stderr
        assert result.stdout == ""
    assert [p.name for p in place.iterdir()] == ["directory.png"]
    with pytest.raises(InputError, match="nothing to draw"):
        pictures.draw([], Path("p.png"))


# Engines


def test_an_engine_can_be_asked_for() -> None:
    problem = Problem("circular", 4096, "bf16")
    chosen = search.plan(problem, "sm_90")
    other = package.plan(4096, engine="wmma")
    assert (chosen.engine, other.engine) == ("mma", "wmma")
    assert other.digest != chosen.digest
    assert answer("plan", 4096, "--engine", "wmma")["digest"] == other.digest
    # The planner's own engine by name is its own choice, kernel for kernel.
    assert package.plan(4096, engine="mma") == chosen
    assert {c.engine for c in search.search(problem, target("sm_90"), engine="wmma")} == {"wmma"}
    why = answer("plan", 4096, "--engine", "wmma", "--why")["candidates"]
    assert len(why) < len(answer("plan", 4096, "--why")["candidates"])


def test_a_source_names_the_engine_that_was_asked_for() -> None:
    other = package.plan(4096, engine="wmma")
    assert command(other).endswith("--arch sm_90 --engine wmma")
    result = fftgen(*command(other).split()[1:])
    assert result.stdout == render(other).text
    assert "--engine" not in command(package.plan(4096))
    assert "--engine" not in command(package.plan(4096, engine="mma"))
    old = search.plan(Problem("causal", 4096, "fp16"), "sm_75")
    assert old.engine == "wmma"
    assert "--engine" not in command(old)


def test_a_compute_format_can_be_asked_for() -> None:
    """Beside the engine; the one that it takes unasked gives the planner's own plan."""
    other = package.plan(4096, engine="mma:bf16-fp32")
    assert (other.engine, other.compute_format) == ("mma", "bf16-fp32")
    assert package.plan(4096, engine="mma:scaled-fp16") == package.plan(4096)
    assert package.plan(4096, engine="wmma:bf16-fp32") == package.plan(4096, engine="wmma")
    assert command(other).endswith("--arch sm_90 --engine mma:bf16-fp32")
    assert fftgen(*command(other).split()[1:]).stdout == render(other).text
    problem = api.problem(4096, "bf16")
    assert api.file_name(problem, "mma:bf16-fp32") == "fftconv-4096-bf16-mma-bf16-fp32.fftgen"
    assert {t.name for _, t, _ in api.jobs_for(problem, engine="mma:bf16-fp32")} == set(TARGETS) - {"sm_75"}


def test_asking_for_an_engine_leaves_every_other_caller_alone() -> None:
    conv = package.get_conv(4096)
    before = conv.plan("sm_90")
    assert package.plan(4096, engine="wmma") != before
    assert conv.plan("sm_90") == before
    assert isinstance(conv._provider, JustInTime)
    assert search.plan(Problem("circular", 4096, "bf16"), "sm_90") == before


def test_files_of_an_engine_have_names_of_their_own() -> None:
    problem = api.problem(4096, "bf16", causal=True)
    assert api.file_name(problem) == "fftconv-4096-bf16-causal.fftgen"
    assert api.file_name(problem, "wmma") == "fftconv-4096-bf16-causal-wmma.fftgen"
    assert list(api.files_for([problem], "d", "wmma")) == [Path("d/fftconv-4096-bf16-causal-wmma.fftgen")]


def test_an_engine_is_built_for_the_targets_that_have_it() -> None:
    half = api.problem(4096, "fp16")
    assert {t.name for _, t, _ in api.jobs_for(half)} == set(TARGETS)
    assert {t.name for _, t, _ in api.jobs_for(half, engine="mma")} == set(TARGETS) - {"sm_75"}
    with pytest.raises(NoPlanError, match="sm_75 lacks mma"):
        search.plan(half, "sm_75", "mma")


# Rates


@pytest.mark.parametrize("name", TARGETS)
def test_every_rate_has_a_source_or_is_called_assumed(name: str) -> None:
    chip = target(name)
    assert len(chip.sources) == 4
    for source in chip.sources:
        assert re.search(r"datasheet|whitepaper|product brief|measured|assumed|boost", source), source
    assert set(chip.assumed) <= set(RESOURCES)
    assert ("L2" in chip.assumed) == (name != "sm_75")
    note = "assumed, not from a datasheet"
    shown = fftgen("plan", 4096, "--dtype", "fp16", "--arch", name, "--roofline").stdout
    assert (note in shown) == bool(chip.assumed)

"""The committed kernels in ``generated/``: as the generator writes them, without spills, on tensor cores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cases import slow
from command_line import answer, fftgen, why_not

from fftgen import evidence, nvrtc, portfolio, sass, toolkit
from fftgen.bundle import build_all
from fftgen.cache import Cache
from fftgen.planner.cost import cost, in_one_launch, work_of
from fftgen.planner.launch import items_per_channel
from fftgen.planner.plan import Kernel, Plan
from fftgen.planner.work import Work
from fftgen.problem import Problem
from fftgen.targets import TARGETS

DIRECTORY = Path(__file__).parents[2] / "generated"
AGAIN = "run `fftgen portfolio` and review the diff"

needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(autouse=True)
def _cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(session_cache))


def committed(name: str = portfolio.INDEX) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DIRECTORY / name).read_text())
    return found


def test_the_portfolio_covers_what_there_is() -> None:
    plans = [m.plan for m in portfolio.MEMBERS]
    assert {p.problem.mode for p in plans} == {"causal", "circular"}
    assert {p.problem.dtype for p in plans} == {"bf16", "fp16", "fp32"}
    assert {p.memory_class for p in plans} == {"warp", "block", "device"}
    assert {p.engine for p in plans} == {"mma", "wmma", "simt"}
    assert {p.packing for p in plans} == {"right-angle", "batch-pair"}
    assert {p.order for p in plans} == {2, 3, 4}
    assert any(p.fold for p in plans)
    assert {256, 1024, 4096, 20480, 32768, 65536, 1048576} <= {p.problem.length for p in plans}


def test_sources_and_plans_are_what_the_generator_writes() -> None:
    for name, text in portfolio.sources().items():
        assert (DIRECTORY / name).is_file(), f"{name} is missing: {AGAIN}"
        assert (DIRECTORY / name).read_text() == text, f"{name} differs: {AGAIN}"


def test_nothing_else_lies_among_them() -> None:
    known = {*portfolio.sources(), portfolio.INDEX, evidence.PAGE, evidence.VERIFIED}
    built = {p.name for p in DIRECTORY.iterdir() if p.suffix == ".fftgen"}  # ignored by git
    assert {p.name for p in DIRECTORY.iterdir()} - built == known


def test_plans_can_be_read_back() -> None:
    for member in portfolio.MEMBERS:
        document = json.loads((DIRECTORY / f"{member.stem}.plan.json").read_text())
        plan = Plan.from_json(json.dumps(document["plan"]))
        assert plan == member.plan
        assert (document["digest"], document["line"]) == (plan.digest, str(plan))


def test_the_page_shows_index_and_evidence() -> None:
    page = evidence.page(committed(), committed(evidence.VERIFIED))
    assert (DIRECTORY / evidence.PAGE).read_text() == page, AGAIN


def test_every_kernel_was_verified_as_it_is() -> None:
    found = committed(evidence.VERIFIED)
    assert evidence.stale(found) == [], "run `fftgen portfolio --verify`"
    assert [m["member"] for m in found["modules"]] == [m.stem for m in portfolio.MEMBERS]
    for module in found["modules"]:
        assert module["passed"]
        assert module["cases"]
        for case in module["cases"]:
            assert 0 < case["error"] <= case["error_bound"]
            assert 0 < case["worst_row"] <= case["worst_row_bound"]


def carried_out(plan: Plan, reports: dict[str, Any]) -> list[tuple[Kernel, list[Work]]]:
    """The kernels of a call, and the work of each for a transform: of all stages where one does them."""
    chip = TARGETS[plan.target]
    if plan.whole is not None and plan.entry(plan.whole) in reports:
        return [(plan.whole, [k.work for k in in_one_launch(plan, cost(plan, chip), chip).kernels])]
    return [(kernel, [work_of(plan, kernel, chip)]) for kernel in plan.kernels]


def test_predictions_are_what_the_simulator_counted() -> None:
    """The operations and bytes of every kernel against every whole call of full length, exactly."""
    plans = {m.stem: m.plan for m in portfolio.MEMBERS}
    compared = 0
    for module in committed(evidence.VERIFIED)["modules"]:
        plan = plans[module["member"]]
        for case in module["cases"]:
            shape = re.match(r"u \((\d+), (\d+), (\d+)\)", case["case"])
            if shape is None or int(shape[3]) != plan.problem.length:
                continue
            batch, channels, _ = map(int, shape.groups())
            channels += channels % plan.abreast  # the last of an odd number is taken twice
            transforms = channels * items_per_channel(plan, batch)
            group = plan.body.group if plan.memory_class == "warp" else 1  # a warp's transforms, some idle
            issued = -(-transforms // group) * group * (2 if plan.engine == "mma" else 1)
            for kernel, works in carried_out(plan, case["kernels"]):
                counted = case["kernels"][plan.entry(kernel)]

                def moved(buffer: str, kind: str, counted: dict[str, Any] = counted) -> int:
                    return int(counted["buffers"].get(buffer, {}).get(kind, {}).get("bytes", 0))

                where = f"{module['member']} {kernel.label}"
                assert sum(counted["tensor"].values()) == issued * sum(w.tensor_ops for w in works), where
                rows = plan.rows_per_item  # of an odd batch the last transform has one
                assert moved("u", "loads") * rows == batch * channels * sum(w.loaded for w in works), where
                assert moved("y", "stores") * rows == batch * channels * sum(w.stored for w in works), where
                loaded, stored = (
                    sum(getattr(w, f"workspace_{x}") for w in works) for x in ("loaded", "stored")
                )
                assert moved("workspace", "loads") == transforms * loaded, where
                assert moved("workspace", "stores") == transforms * stored, where
            compared += 1
    assert compared > len(portfolio.PROBLEMS)


LAST = len(portfolio.PROBLEMS) - 1
LONGEST = max(range(LAST + 1), key=lambda number: portfolio.PROBLEMS[number].length)


@needs_compiler
@pytest.mark.parametrize("number", [0, *slow([LONGEST - 1, LONGEST, LAST])])
def test_the_evidence_can_be_repeated(number: int) -> None:
    """The smallest and the longest kernels again: the same counters, errors within their last digits."""
    found = committed(evidence.VERIFIED)
    if found["compiler"] != f"nvrtc {nvrtc.build()}":
        pytest.skip(f"the evidence is about {found['compiler']}, here is nvrtc {nvrtc.build()}")
    member = portfolio.MEMBERS[number]
    (kept,) = [m for m in found["modules"] if m["member"] == member.stem]
    again = evidence.examine(member, found["seed"], Cache(None))
    for case, kept_case in zip(again["cases"], kept["cases"], strict=True):
        assert case["kernels"] == kept_case["kernels"]
        assert case["error"] == pytest.approx(kept_case["error"], rel=0.02)
        assert case["case"] == kept_case["case"]


def test_evidence_about_another_source_is_noticed() -> None:
    found = committed(evidence.VERIFIED)
    found["modules"][0]["source_sha256"] = "0" * 64
    del found["modules"][-1]
    assert evidence.stale(found) == [portfolio.MEMBERS[0].stem, portfolio.MEMBERS[-1].stem]


def test_the_index_is_about_these_plans() -> None:
    expected = [
        (str(portfolio.Member(p, t).plan).split(" | ")[1], portfolio.Member(p, t).plan.digest)
        for p in portfolio.PROBLEMS
        for t in portfolio.MEASURED
    ]
    assert [(m["plan"], m["digest"]) for m in committed()["modules"]] == expected, AGAIN


@needs_compiler
@pytest.mark.drawn(5, together="portfolio")
@pytest.mark.parametrize("number", range(len(portfolio.PROBLEMS)))
def test_resources_are_what_the_compiler_reports(number: int, session_cache: Path) -> None:
    index = portfolio.index(Cache(session_cache), problems=portfolio.PROBLEMS[number:][:1])
    found = committed()
    if found["compiler"] != index["compiler"]:
        pytest.skip(f"the index was made by {found['compiler']}, here is {index['compiler']}")
    assert found["modules"][2 * number :][:2] == index["modules"], AGAIN


def test_next_to_no_kernel_spills() -> None:
    """Of those that are committed; what the compiler says is the same (above)."""
    kernels = [(m, k) for m in committed()["modules"] for k in m["kernels"]]
    assert len(kernels) > 2 * len(portfolio.PROBLEMS)
    assert {m["target"] for m, _ in kernels} == {"sm_80", "sm_90"}
    filters = {"filter", "filter_columns", "filter_rows", "filter_level"}
    assert filters < {k["name"] for _, k in kernels}
    spilling = {
        f"{m['problem']} {m['target']} {k['name']}": k["spill_bytes"] for m, k in kernels if k["spill_bytes"]
    }
    # Some that wait from one stage of a transform to the next, outside the loops over its strips and rows.
    between = {
        "causal 65536 bf16 sm_80 whole": 20,
        "circular 65536 bf16 sm_80 whole": 16,
        "causal 20480 bf16 sm_80 convolve": 20,
        # Once stored and once loaded with each strip.
        "causal 1048576 bf16 sm_80 columns_inverse1": 8,
        # The number of the transform: once stored, twice loaded.
        "circular 32768 bf16 sm_80 convolve": 20,
        "circular 32768 bf16 sm_90 convolve": 20,
        # Where the row is: once stored, once loaded.
        "causal 65536 fp32 sm_80 rows": 16,
    }
    assert between == spilling


@needs_compiler
@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
@pytest.mark.drawn(5, together="portfolio")
@pytest.mark.parametrize("target", [*slow(["sm_80"]), "sm_90"])
@pytest.mark.parametrize("problem", portfolio.PROBLEMS, ids=str)
def test_every_stage_runs_on_tensor_cores(problem: Problem, target: str) -> None:
    """But those of fp32, where multiply and add are one instruction."""
    (built,) = build_all([(problem, TARGETS[target], "convolution")])
    mix = sass.instruction_mix(sass.disassemble(built.cubin))
    assert set(mix) == set(built.entries)
    for kernel in built.plan.every_kernel:
        if kernel.role != "peaks":
            code = mix[built.plan.entry(kernel)]
            assert (code["HMMA"] == 0) == (problem.dtype == "fp32"), built.plan.entry(kernel)
            assert code["HMMA"] + code["FFMA"] > 0, built.plan.entry(kernel)


@needs_compiler
def test_a_changed_kernel_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are rendered again. Compiling them all takes most of a minute: another test, part by part."""
    monkeypatch.setattr(portfolio, "index", lambda **_: committed())
    for path in DIRECTORY.iterdir():
        if path.suffix != ".fftgen":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert fftgen("portfolio", "-o", tmp_path, "--check").exit_code == 0
    changed, lost = tmp_path / "causal-4096-bf16-sm_90.cu", tmp_path / "index.json"
    changed.write_text(changed.read_text() + "\n")
    lost.unlink()
    (tmp_path / "causal-8-bf16-sm_90.cu").write_text(changed.read_text())  # of a member that there was
    (tmp_path / "fftconv-8-bf16.fftgen").write_text("")
    result = fftgen("portfolio", "-o", tmp_path, "--check")
    assert result.exit_code == 1
    assert f"differs {changed}" in result.stdout
    again = answer("portfolio", "-o", tmp_path)
    assert again["changed"] == ["causal-4096-bf16-sm_90.cu", "index.json"]
    assert again["removed"] == ["causal-8-bf16-sm_90.cu"]
    assert (tmp_path / "fftconv-8-bf16.fftgen").exists()
    (tmp_path / evidence.VERIFIED).unlink()
    unverified = fftgen("portfolio", "-o", tmp_path, "--check", "--json")
    assert unverified.exit_code == 1
    assert json.loads(unverified.stdout)["outdated"] == [m.stem for m in portfolio.MEMBERS]

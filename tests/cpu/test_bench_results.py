"""The document of a run: what follows from what was measured, tables, plots, files."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_kit import case

from fftgen.bench import plots, results, tables
from fftgen.bench.cases import BACKWARD_LENGTHS, Case, backward_rows, problem_set
from fftgen.bench.results import Run, document, failures
from fftgen.bench.row import CONTENDERS
from fftgen.bench.run import Wish, plan
from fftgen.bench.steps import (
    COMPILED,
    COMPILED_BACKWARD,
    COMPILED_LENGTHS,
    GRADIENTS,
    SANITIZED,
    Step,
    bandwidth_step,
    environment_step,
    row_steps,
)
from fftgen.bench.supervisor import Outcome
from fftgen.errors import InputError, ToolchainError
from fftgen.portfolio import PROBLEMS

RUN = Run("suite", False, 7, 450.0)
ENVIRONMENT = {
    "device": "NVIDIA X",
    "driver": "1.2",
    "cuda": "13.0",
    "torch": "2.9",
    "fftgen": "0",
    "date": "d",
}


def entry(median: float, *, ours: bool = False, peak: int | None = 1000) -> dict[str, Any]:
    return {
        "ours": ours,
        "filter_inside": True,
        "status": "ok",
        "error": 2e-3,
        "error_bound": 5e-3,
        "median_s": median,
        "spread": 0.015,
        "peak_bytes": peak,
    }


def row(of: Case, **medians: float) -> Outcome:
    contenders = {
        name.replace("_", "-"): entry(median, ours=name.startswith("fftgen"))
        for name, median in medians.items()
    }
    (step,) = row_steps([of], list(contenders), 7, 0.5)
    result = {
        "case": str(of),
        "mode": of.problem.mode,
        "length": of.length,
        "dtype": of.problem.dtype,
        "gated": of.gated,
        "direction": of.direction,
        "batch": of.batch,
        "channels": of.channels,
        "floor_bytes": of.floor_bytes,
        "contenders": contenders,
    }
    return Outcome(step, "passed", result, seconds=3.25)


def run(*outcomes: Outcome, planned: list[Step] | None = None, bandwidth: float = 4e12) -> results.Document:
    first = [
        Outcome(environment_step(), "passed", {"status": "passed", **ENVIRONMENT}),
        Outcome(bandwidth_step(), "passed", {"status": "passed", "bytes_per_s": bandwidth}),
    ]
    every = [*first, *outcomes]
    return document(RUN, planned or [o.step for o in every], every, 61.5)


BIG = case(length=4096, batch=64, channels=768)


def test_the_floor_is_the_compulsory_bytes_over_the_measured_bandwidth() -> None:
    doc = run(row(BIG, fftgen=1e-3, torch_real=5e-3))
    (found,) = results.rows(doc)
    floor = 8 * 64 * 768 * 4096 / 4e12
    assert found["floor_s"] == pytest.approx(floor, rel=1e-4)
    assert found["contenders"]["fftgen"]["floor_fraction"] == pytest.approx(floor / 1e-3, rel=1e-3)
    assert found["contenders"]["torch-real"]["floor_fraction"] == pytest.approx(floor / 5e-3, rel=1e-3)
    assert found["contenders"]["fftgen"]["ratio"] == 1
    assert found["contenders"]["torch-real"]["ratio"] == 5
    assert doc["copy_bytes_per_s"] == 4e12
    assert doc["environment"] == ENVIRONMENT


def test_what_is_not_known_is_not_derived() -> None:
    alone = document(RUN, [], [row(BIG, torch_real=5e-3, attention=1e-3)], 1)
    (found,) = results.rows(alone)
    assert "floor_s" not in found
    assert not {"floor_fraction", "ratio"} & found["contenders"]["torch-real"].keys()
    (found,) = results.rows(run(row(BIG, fftgen=1e-3, attention=1e-3)))
    assert "floor_fraction" not in found["contenders"]["attention"]  # its bytes are others
    assert found["contenders"]["attention"]["ratio"] == 1


def test_making_the_document_twice_changes_nothing() -> None:
    outcome = row(BIG, fftgen=1e-3)
    before = copy.deepcopy(outcome.result)
    assert run(outcome) == run(outcome)
    assert outcome.result == before


def test_what_did_not_run_is_listed() -> None:
    done, waiting = row(BIG, fftgen=1e-3), row(case(length=512), fftgen=1e-3)
    skipped = Outcome(row(case(length=777), fftgen=1.0).step, "not run", reason="the time budget was used up")
    planned = [environment_step(), bandwidth_step(), done.step, skipped.step, waiting.step]
    doc = run(done, skipped, planned=planned)
    assert [s["status"] for s in doc["steps"]] == ["passed", "passed", "passed", "not run", "not run"]
    assert doc["steps"][-1]["name"] == "causal 512 bf16 gated forward"
    assert doc["counts"] == {"passed": 3, "not run": 2}
    assert doc["passed"]  # time is no fault
    text = tables.text(doc)
    assert "not run (the time budget was used up): causal 777 bf16 gated forward" in text
    assert "not run (the run ended before it): causal 512 bf16 gated forward" in text


@pytest.mark.parametrize("status", ["wrong", "failed", "crashed"])
@pytest.mark.parametrize(
    "kind",
    [
        *("build", "correctness", "agreement", "gradient", "gradient agreement", "sanitizer", "row"),
        *("overhead", "cold start", "kernels", "environment"),
    ],
)
def test_what_is_wrong_fails_the_run(kind: str, status: str) -> None:
    bad = Outcome(Step(kind, "a step"), status, reason="because")
    assert failures([bad]) == [bad]
    doc = document(RUN, [bad.step], [bad], 1)
    assert not doc["passed"]
    text = tables.text(doc)
    assert "FAILED" in text.splitlines()[-1]
    assert "because" in text
    assert not failures([Outcome(Step(kind, "a step"), "not run")])
    assert not failures([Outcome(Step("sanitizer", "a step"), "unavailable")])


def test_the_crossover_is_where_attention_stays_slower() -> None:
    def at(length: int, ours: float, attention: float, dtype: str = "bf16") -> Outcome:
        return row(case(length=length, dtype=dtype), fftgen=ours, attention=attention)

    faster = [at(256, 2, 1), at(512, 1, 2), at(1024, 3, 2), at(2048, 3, 4), at(4096, 4, 9)]
    assert run(*reversed(faster))["crossover"] == {"bf16": 2048}
    assert run(at(256, 1, 2), at(512, 1, 3))["crossover"] == {"bf16": 256}
    assert run(at(256, 1, 2), at(512, 3, 3))["crossover"] == {"bf16": None}
    both = run(at(256, 1, 2), at(256, 2, 1, "fp16"), row(case(length=512, dtype="fp16"), fftgen=1))
    assert both["crossover"] == {"bf16": 256, "fp16": None}
    assert run(row(BIG, fftgen=1))["crossover"] == {}
    assert "attention (bf16): slower from 2048" in tables.text(run(*faster))


def at(length: int = 4096, channels: int = 768, batch: int = 64, direction: str = "backward") -> Case:
    return case(length=length, batch=batch, channels=channels, direction=direction)


def test_a_backward_row_is_held_against_our_own_forward_row() -> None:
    doc = run(row(at(), fftgen=2.5e-3, torch_real=9e-3), row(BIG, fftgen=1e-3, torch_real=4e-3))
    back, ahead = results.rows(doc)
    assert (back["over_forward"], back["over_forward_scaled"]) == (2.5, False)
    assert "over_forward" not in ahead
    assert back["contenders"]["fftgen"]["floor_fraction"] == pytest.approx(
        14 * 64 * 768 * 4096 / 4e12 / 2.5e-3, rel=1e-3
    )
    lines = tables.text(doc).splitlines()
    header = next(i for i, line in reversed(list(enumerate(lines))) if line.startswith("case"))
    assert "x forward" in lines[header]
    assert lines[header + 1].split()[:8] == ["causal", "4096", "bf16", "gated", "backward", "2.5", "28", "%"]
    assert lines[header + 1].split()[8] == "2.50"
    assert lines[header + 2].split()[4:7] == ["1", "40", "%"]
    note = "\n".join(lines)
    assert "times are of the backward pass alone" in note
    assert "training step, forward and backward together" in note
    assert "~" not in note
    assert "x forward" not in tables.text(run(row(BIG, fftgen=1e-3)))


def test_with_fewer_channels_backward_times_of_a_channel_are_compared() -> None:
    doc = run(row(BIG, fftgen=1e-3), row(at(channels=384), fftgen=1e-3))
    _, back = results.rows(doc)
    assert (back["over_forward"], back["over_forward_scaled"]) == (2.0, True)
    text = tables.text(doc)
    assert "~2.00" in text
    assert "~: it had more channels" in text


@pytest.mark.parametrize(
    "other",
    [
        case(length=4096, batch=32, channels=768),
        case(length=8192, batch=64, channels=768),
        case("circular", 4096, batch=64, channels=768),
        case(length=4096, batch=64, channels=768, gated=False),
        case(length=4096, dtype="fp16", batch=64, channels=768),
    ],
)
def test_rows_of_other_cases_are_no_pair(other: Case) -> None:
    back, _ = results.rows(run(row(at(), fftgen=2e-3), row(other, fftgen=1e-3)))
    assert "over_forward" not in back


def test_without_both_times_there_is_no_ratio_to_forward() -> None:
    for contenders in ({"torch_real": 1e-3}, {}):
        back, _ = results.rows(run(row(at(), fftgen=2e-3), row(BIG, **contenders)))
        assert "over_forward" not in back


def test_the_crossover_is_of_forward_rows() -> None:
    ahead = row(case(length=1024), fftgen=1e-3, attention=2e-3)
    back = row(case(length=1024, direction="backward"), fftgen=5e-3, attention=2e-3)
    assert run(ahead, back)["crossover"] == run(back, ahead)["crossover"] == {"bf16": 1024}
    assert run(back)["crossover"] == {}


def test_proofs_of_gradients_are_told_in_a_line() -> None:
    figures = {"identical": 0.5, "finite": True, "relative_difference": 1e-6, "relative_bound": 2.5e-4}
    told = run(
        Outcome(Step("gradient agreement", "one"), "passed", {**figures, "status": "passed"}),
        Outcome(Step("gradient agreement", "two"), "wrong", {"finite": False, "status": "wrong"}),
        Outcome(
            Step("gradient", "three"),
            "passed",
            {"cases": [{"worst_row": 1e-4, "worst_row_bound": 2e-3}], "status": "passed"},
        ),
    )
    text = tables.text(told)
    assert "50.00 % identical; relative difference 1.0e-06 (bound 2.5e-04)" in text
    assert "results that are not finite" in text
    assert "1 cases, worst row 1.0e-04 (bound 2.0e-03)" in text


def test_the_short_table_comes_last_and_says_what_matters() -> None:
    doc = run(row(BIG, fftgen=1e-3, fftgen_prepared=8e-4, torch_complex=8e-3, torch_real=4e-3, cudnn=3e-3))
    lines = tables.text(doc).splitlines()
    header = next(i for i, line in reversed(list(enumerate(lines))) if line.startswith("case"))
    assert lines[header + 1].split() == [
        *("causal", "4096", "bf16", "gated"),
        *("1", "40", "%"),
        *("0.8", "50", "%"),
        *("8.00", "4.00", "-", "cudnn", "3.00"),
    ]
    assert lines[-1] == "3 passed; 62 s"
    assert "copy bandwidth 4000 GB/s" in lines[1]


def test_with_spectra_given_like_is_compared_with_like() -> None:
    outcome = row(BIG, fftgen=1e-3, fftgen_prepared=8e-4, torch_real=4e-3, torch_real_prepared=2.4e-3)
    for name in ("fftgen-prepared", "torch-real-prepared"):
        outcome.result["contenders"][name]["filter_inside"] = False
    doc = run(outcome)
    contenders = results.rows(doc)[0]["contenders"]
    assert contenders["torch-real-prepared"]["ratio"] == 2.4
    assert [c.get("prepared_ratio") for c in contenders.values()] == [None, 1, None, 3]
    lines = tables.text(doc).splitlines()
    header = next(i for i, line in reversed(list(enumerate(lines))) if line.startswith("case"))
    at = lines[header].index("both prepared x")
    assert lines[header + 1][at:].split()[0] == "3.00"


def test_who_was_not_timed_is_told_with_the_reason() -> None:
    first, second = row(BIG, fftgen=1e-3, torch_real=4e-3), row(case(length=512), fftgen=1e-3)
    for outcome, error in ((first, 0.7), (second, None)):
        outcome.result["contenders"] |= {
            "flashfftconv": {"status": "wrong", "reason": "not the convolution", "error": error},
            "cudnn": {"status": "unavailable", "reason": "not installed"},
        }
    second.result["contenders"]["torch-complex"] = {"status": "failed", "reason": "OutOfMemoryError: full"}
    for details in (True, False):
        lines = [line.split() for line in tables.text(run(first, second), details=details).splitlines()]
        assert ["cudnn", "unavailable", "2", "rows", "not", "installed"] in lines
        assert ["torch-complex", "FAILED", "1", "row", "OutOfMemoryError:", "full"] in lines
        wrong = "flashfftconv WRONG 2 rows not the convolution (error up to 7.0e-01)"
        assert wrong.split() in lines


def test_details_have_a_line_for_everyone_who_was_timed() -> None:
    doc = run(row(BIG, fftgen=1e-3, torch_real=4e-3))
    lines = [line.split() for line in tables.text(doc, details=True).splitlines()]
    case_, shape = ["causal", "4096", "bf16", "gated"], ["64", "x", "768"]
    figures = ["1", "1.5", "%", "40", "%", "1.00", "0", "2.0e-03"]
    assert [*case_, *shape, "fftgen", *figures] in lines
    assert ["torch-real", "4", "1.5", "%", "10", "%", "4.00", "0", "2.0e-03"] in lines
    assert "64 x 768" not in tables.text(doc)


def test_a_dry_run_says_so_first_and_in_the_plot() -> None:
    doc = document(Run("rows", True, 1, None), [], [row(BIG, fftgen=1e-3)], 1)
    assert tables.text(doc).startswith("DRY RUN")
    assert doc["dry_run"]


def test_files_are_read_back(tmp_path: Path) -> None:
    doc = run(row(BIG, fftgen=1e-3))
    results.write(tmp_path / "r.json", doc)
    assert results.read(tmp_path / "r.json") == doc
    for text in ("", "[]", "{}", json.dumps({**doc, "schema": 99})):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match=r"other\.json .*results file"):
            results.read(tmp_path / "other.json")
    with pytest.raises(InputError, match="cannot be read"):
        results.read(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be written"):
        results.write(tmp_path / "no" / "such" / "r.json", doc)


def test_every_contender_has_a_colour_of_its_own() -> None:
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) >= len(CONTENDERS)


def test_plots_show_every_contender_that_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    seen: list[Any] = []
    real = plots._panel

    def panel(axis: Any, members: Any, label: str, value: Any, scale: str) -> None:
        real(axis, members, label, value, scale)
        seen.append((label, {line.get_label(): line.get_xydata().tolist() for line in axis.lines}))

    monkeypatch.setattr(plots, "_panel", panel)
    doc = run(
        row(case(length=512), fftgen=1e-3, attention=2e-3),
        row(case(length=256), fftgen=5e-4, torch_real=1e-3),
        row(case("circular", 256), fftgen=7e-4),
    )
    plots.draw(doc, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(seen) == 2 * len(plots.PANELS)
    label, curves = seen[0]
    assert label == "time (ms)"
    assert curves == {
        "fftgen": [[256, 0.5], [512, 1.0]],
        "torch-real": [[256, 1.0]],
        "attention": [[512, 2.0]],
    }
    assert "attention" not in seen[1][1]  # it has no floor here
    assert seen[2][1]["fftgen"][0][1] == pytest.approx(1000 / (2 * 3 * 8 * 256))


def test_plots_that_cannot_be_drawn_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = run(row(BIG, fftgen=1e-3))
    with pytest.raises(InputError, match="nothing was measured"):
        plots.draw(run(), tmp_path / "p.png")
    for name, said in (("no/such/p.png", "cannot be written"), ("p.nosuchformat", "cannot be drawn")):
        with pytest.raises(InputError, match=said):
            plots.draw(doc, tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ToolchainError, match=r"pip install 'fftgen\[bench\]'"):
        plots.draw(doc, tmp_path / "p.png")


# What a run consists of.


def test_a_suite_proves_first_and_measures_what_matters_first() -> None:
    cases = problem_set()
    found = plan(Wish([*cases, *backward_rows(cases)], tuple(CONTENDERS), 1, suite=True))
    kinds = [s.kind for s in found]
    assert kinds[:2] == ["environment", "build"]
    assert [s.params["length"] for s in found if s.kind == "correctness"] == [p.length for p in PROBLEMS]
    assert {s.params["length"] for s in found if s.kind == "agreement"} == {256, 1000, 1024, 2048, 4096}
    assert kinds.index("row") > max(
        i
        for i, k in enumerate(kinds)
        if k in (*("correctness", "agreement", "gradient", "gradient agreement"), *("bandwidth", "overhead"))
    )
    tools = [(s.params["tool"], s.params["mode"], s.params["call"]) for s in found if s.kind == "sanitizer"]
    assert [(t, m) for t, m, call in tools if call == "conv"] == [
        (t, p.mode) for t in ("memcheck", "racecheck", "synccheck", "initcheck") for p in SANITIZED
    ]
    assert [(t, m) for t, m, call in tools if call == "gradient"] == [
        ("memcheck", "causal"),
        ("racecheck", "causal"),
    ]
    proven = [(s.params["length"], s.params["dtype"]) for s in found if s.kind == "gradient"]
    assert proven == [(p.length, p.dtype) for p in GRADIENTS]
    assert {s.params["length"] for s in found if s.kind == "gradient agreement"} == {256, 1024, 4096}
    rows = [s for s in found if s.kind == "row"]
    assert len(rows) == 126
    assert [s.params["length"] for s in rows[:3]] == [4096, 1024, 32768]
    # Backward rows come after the first forward rows, theirs among them.
    back = [i for i, s in enumerate(rows) if s.params["direction"] == "backward"]
    assert back == [*range(12, 18)]
    assert sorted(rows[i].params["length"] for i in back) == list(BACKWARD_LENGTHS)
    for i in back:
        forward = {**rows[i].params, "direction": "forward"}
        assert any(s.params["length"] == forward["length"] and s.params["gated"] for s in rows[:12])
    trained = {p["length"] for p in found[1].params["gradients"]}
    assert trained == {*BACKWARD_LENGTHS, *(p.length for p in GRADIENTS)}
    ahead = {(p["mode"], p["length"], p["dtype"]) for p in found[1].params["problems"]}
    proven = {s.params["length"] for s in found if s.kind == "correctness" and s.params["mode"] == "circular"}
    assert {n // 2 for n in proven} <= {n for mode, n, _ in ahead if mode == "causal"}  # their short calls
    # Rows in fp16 are among those that ran whenever a suite was measured.
    fp16 = [i for i, s in enumerate(rows) if s.params["dtype"] == "fp16"]
    assert [(rows[i].params["mode"], rows[i].params["length"]) for i in fp16[:6]] == [
        (mode, n) for mode in ("causal", "circular") for n in (4096, 1024, 65536)
    ]
    assert fp16[5] < 30
    starts = {s.params["length"] for s in found if s.kind == "cold start"}
    assert starts == {4096, 65536}
    assert len(found[1].params["problems"]) >= 60
    json.dumps([s.params for s in found])  # it all has to travel


def test_a_suite_compiles_where_it_has_the_time_and_says_so_elsewhere() -> None:
    cases = problem_set()
    for s in plan(Wish([*cases, *backward_rows(cases)], tuple(CONTENDERS), 1, suite=True)):
        if s.kind != "row":
            continue
        p = s.params
        lengths = COMPILED_BACKWARD if p["direction"] == "backward" else COMPILED_LENGTHS
        here = p["gated"] and p["mode"] == "causal" and p["dtype"] == "bf16" and p["length"] in lengths
        if not here:
            said = set(p["left_out"].values())
            assert {"backward" in reason for reason in said} == {p["direction"] == "backward"}
        assert set(COMPILED) <= set(p["contenders"] if here else p["left_out"])
        assert sorted([*p["contenders"], *p["left_out"]]) == sorted(CONTENDERS)


def test_plain_rows_are_in_the_order_that_was_asked() -> None:
    cases = problem_set((1024, 256), ("fp16",), ("circular",), (False,))
    found = plan(Wish(cases, ("fftgen",), 1))
    assert [s.kind for s in found] == ["environment", "build", "bandwidth", "row", "row"]
    assert [s.params["length"] for s in found[3:]] == [1024, 256]
    back = problem_set((256, 1024), directions=("backward",))
    assert {p["length"] for p in plan(Wish(back, ("fftgen",), 1))[1].params["gradients"]} == {256, 1024}
    assert not found[1].params["gradients"]
    assert [s.kind for s in plan(Wish(cases[:1], ("fftgen",), 1))] == ["environment", "bandwidth", "row"]

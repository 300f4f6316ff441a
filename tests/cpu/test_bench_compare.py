"""Two results files side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_kit import case
from command_line import answer, fftgen

from fftgen.bench import results
from fftgen.bench.compare import compare, text
from fftgen.bench.results import Document

RESULTS = Path(__file__).resolve().parents[2] / "results"


def document(
    times: dict[int, dict[str, float]], kernels: dict[str, float] | None = None, **fields: Any
) -> Document:
    """Rows by length, of contenders and their times; kernels of one case."""
    steps: list[dict[str, Any]] = []
    for length, contenders in times.items():
        entries = {
            name: {"median_s": t, "spread": 0.02, "ours": name.startswith("fftgen")}
            for name, t in contenders.items()
        }
        about = of(length) | {"contenders": entries}
        steps.append({"kind": "row", "name": str(length), "status": "passed", "result": about})
    if kernels:
        ways = [{"way": "one", "kernels": [{"kernel": n, "each_s": t} for n, t in kernels.items()]}]
        steps.append({"kind": "kernels", "name": "k", "status": "passed", "result": of(64) | {"ways": ways}})
    environment = {"device": "X"} | fields.pop("environment", {})
    return (
        {"environment": environment, "dry_run": False, "copy_bytes_per_s": None, "seed": 1}
        | fields
        | {
            "schema": results.SCHEMA,
            "steps": steps,
        }
    )


def of(length: int) -> dict[str, Any]:
    c = case(length=length)
    return {
        "mode": c.problem.mode,
        "length": length,
        "dtype": c.problem.dtype,
        "gated": c.gated,
        "direction": c.direction,
        "batch": c.batch,
        "channels": c.channels,
    }


BEFORE = document(
    {256: {"fftgen": 1.0, "torch-real": 4.0}, 512: {"fftgen": 2.0, "torch-real": 8.0}, 1024: {"fftgen": 3.0}},
    {"columns": 1e-7, "rows": 2e-7},
)
NOW = document(
    {512: {"fftgen": 1.0, "torch-real": 8.4}, 256: {"fftgen": 1.01, "torch-real": 4.4, "new": 1.0}},
    {"rows": 1e-7},
)


def test_rows_of_both_are_compared_and_others_say_what_else_changed() -> None:
    found = compare(BEFORE, NOW)
    assert [(r["length"], r["contender"], r["ratio"]) for r in found["rows"]] == [
        (256, "fftgen", 1.01),
        (512, "fftgen", 0.5),
    ]
    assert found["others"] == pytest.approx((1.05 + 1.1) / 2)
    assert [(k["kernel"], k["ratio"]) for k in found["kernels"]] == [("rows", 0.5)]
    assert found["alone"] == 2  # a row and a kernel


def test_what_differs_by_less_than_two_runs_of_the_same_code_is_noise() -> None:
    lines = text(BEFORE, NOW).splitlines()
    (short,) = (line for line in lines if line.startswith("causal 256 bf16 gated") and "fftgen" in line)
    (long,) = (line for line in lines if line.startswith("causal 512 bf16 gated"))
    assert short.endswith("1.010     within noise")
    assert long.endswith("0.500     faster")
    assert "Other programs took 1.075 of their time before (median)." in lines
    assert "2 rows and kernels are in one of the files only." in lines
    slower = text(NOW, BEFORE).splitlines()
    assert any(line.endswith("2.000     slower") for line in slower)


def test_what_makes_times_tell_nothing_is_said() -> None:
    assert "Not the same device: X before, Y now." in text(
        BEFORE, document({256: {"fftgen": 1.0}}, environment={"device": "Y"})
    )
    assert "Times of a dry run are invented" in text(BEFORE, document({}, dry_run=True))
    assert "Nothing of ours is in both." in text(BEFORE, document({2048: {"fftgen": 1.0}}))
    assert compare(BEFORE, document({256: {"fftgen": 1.0}}))["others"] is None


def test_measured_files_compare() -> None:
    """The gain that results/README.md has by hand: 4096 points, 0.756 to 0.601 ms."""
    files = [RESULTS / name for name in ("h200-2026-11-26-before.json", "h200-2026-11-27.json")]
    found = answer("bench", "--show", str(files[1]), "--against", str(files[0]))
    (row,) = (
        r
        for r in found["rows"]
        if (r["mode"], r["length"], r["gated"], r["dtype"]) == ("causal", 4096, True, "bf16")
        and (r["direction"], r["contender"]) == ("forward", "fftgen")
    )
    assert row["ratio"] == pytest.approx(0.601 / 0.756, rel=0.01)
    assert 0.97 < found["others"] < 1.03
    shown = fftgen("bench", "--show", str(files[1]), "--against", str(files[0])).stdout
    assert "causal 4096 bf16 gated" in shown
    assert "NVIDIA H200" in shown


def test_options_that_do_not_go_together() -> None:
    file = str(RESULTS / "h200-2026-11-27.json")
    result = fftgen("bench", "--against", file)
    assert result.exit_code == 2
    assert "--against goes with --show" in result.stderr
    result = fftgen("bench", "--show", file, "--against", file, "--plot", "p.png")
    assert result.exit_code == 2
    assert "--plot draws one results file" in result.stderr
    result = fftgen("bench", "--show", file, "--against", "none.json")
    assert result.exit_code == 2
    assert "none.json cannot be read" in result.stderr

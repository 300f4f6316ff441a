"""``fftgen tune``: variants compiled, proved in the simulator, timed by a script, kept and taken."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_kit import Script, case
from cases import slow
from command_line import fftgen, why_not
from torch import Tensor

from fftgen import conv, emulate, shortcut
from fftgen.bench import tune as room
from fftgen.bench import tune_calls
from fftgen.bench.backend import HostBackend
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs, draw_sets
from fftgen.bench.row import FAILED, OK, WRONG
from fftgen.bench.tune import keep, tune, winner
from fftgen.cache import Cache
from fftgen.pipeline import Built, build_gradient
from fftgen.planner import search
from fftgen.planner.gradient import backward
from fftgen.planner.launch import together
from fftgen.planner.variants import Variant
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.targets import target

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

CHIP = target("sm_90")


def simulated(built: Built, sets: Sequence[Inputs]) -> tuple[Callable[[], Tensor], ...]:
    """The kernels of a variant themselves."""
    batch, channels, _ = sets[0].u.shape
    cut = together(built.plan, batch, channels)

    def call(x: Inputs) -> Callable[[], Tensor]:
        gates = {"in_gate": x.in_gate, "out_gate": x.out_gate}
        return lambda: emulate.convolve(built, x.u, x.k, clusters=cut, **gates)[0]

    return tuple(call(x) for x in sets)


@pytest.mark.parametrize(
    ("length", "mode", "most", "shape"),
    [
        (256, "causal", 4, (3, 2)),
        *slow(
            [
                (256, "circular", 3, (3, 2)),
                (4096, "causal", 6, (2, 1)),
                (16_384, "circular", 4, (3, 1)),
                (65_536, "causal", 3, (2, 1)),
            ]
        ),
    ],
)
def test_every_variant_gives_the_right_result(
    length: int, mode: str, most: int, shape: tuple[int, int], session_cache: Path, rng: np.random.Generator
) -> None:
    timed = case(mode, length, batch=shape[0], channels=shape[1])
    proved(timed, most, Cache(session_cache), rng, lambda built, sets: simulated(built, sets)[0])


def proved(
    timed: Case,
    most: int,
    store: Cache,
    rng: np.random.Generator,
    first: Callable[[Built, Sequence[Inputs]], Callable[[], Any]],
) -> list[dict[str, Any]]:
    """The rows of variants whose first call the simulator makes, where a result is judged; those that are
    timed give it again."""
    timer = Script()
    timer.seconds = 1e-3

    def caller(built: Built, sets: Sequence[Inputs]) -> tuple[Callable[[], Any], ...]:
        once = cache(first(built, sets))
        return tuple(once for _ in sets)

    seed = int(rng.integers(2**31))
    found = tune(timed, HostBackend(timer), store, most=most, seconds=1e-9, seed=seed, caller=caller)
    rows: list[dict[str, Any]] = found.doc["variants"]
    assert len(rows) == most
    assert found.doc["passed"], [r for r in rows if r["status"] != OK]
    assert all(0 < r["error"] <= r["error_bound"] for r in rows)
    return rows


@pytest.mark.parametrize(
    ("length", "most", "shape"), [(256, 3, (3, 2)), *slow([(4096, 5, (3, 1)), (16_384, 3, (2, 1))])]
)
@pytest.mark.parametrize("gated", [True, False])
def test_every_layout_of_gradients_gives_the_right_result(
    length: int, most: int, shape: tuple[int, int], gated: bool, session_cache: Path, rng: np.random.Generator
) -> None:
    timed = replace(
        case("causal", length, batch=shape[0], channels=shape[1]), gated=gated, direction="backward"
    )

    def first(built: Built, sets: Sequence[Inputs]) -> Callable[[], Any]:
        x = sets[0]
        return lambda: tune_calls.all_gradients(
            x, lambda v, **told: emulate.backward(built, x.u, v, x.k, **told)[0]
        )

    rows = proved(timed, most, Cache(session_cache), rng, first)
    assert len({r["about"] for r in rows}) == most
    assert [r["choice"] for r in rows].count(True) == 1


def test_backward_passes_go_the_way_of_calls(
    session_cache: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed on a GPU, with the simulator for the driver: one spectrum for each set of inputs."""
    timed = replace(case("causal", 256, batch=2, channels=1), direction="backward")
    device, store = torch.device("cpu"), Cache(session_cache)
    sets = draw_sets(timed, device, int(rng.integers(2**31)), 0)
    simulators: list[emulate.Simulated] = []
    made_spectra = 0

    class Simulating:
        def __init__(self, module: Built, _: torch.device) -> None:
            self.plan, self.gradient = module.plan, module.gradient
            self.tables = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
            self.text = emulate.line_ptx(module), module.source.text
            self.module = SimpleNamespace(on=self.launcher)

        def launcher(self, _: int = 0) -> emulate.Simulated:
            simulators.append(emulate.Simulated(*self.text))
            return simulators[-1]

        def spectrum(self, k: Tensor) -> Any:
            nonlocal made_spectra
            made_spectra += 1
            launcher = self.launcher()
            return prepare(self.plan, self.tables, launcher, k, None, None, address=launcher.address)

    kernels = tune_calls.backward
    monkeypatch.setattr(tune_calls, "Loaded", Simulating)
    monkeypatch.setattr(tune_calls, "LoadedGradient", Simulating)
    monkeypatch.setattr(tune_calls, "stream_of", lambda _: 0)
    monkeypatch.setattr(
        tune_calls, "backward", lambda *a, **told: kernels(*a, **told, address=simulators[-1].address)
    )
    backend: Any = SimpleNamespace(kernels=True, device=device, target="sm_90")
    caller = tune_calls.caller_of(timed, backend, store)
    choice = backward(timed.problem, CHIP)
    assert choice is not None
    for _ in range(2):
        calls = caller(build_gradient(choice, store), sets)
        assert len(calls) == len(sets) == made_spectra
        found = calls[1]()
        assert list(found) == ["u", "k", "in_gate", "out_gate"]
        verdict = room._judged(timed, found, room._exact(timed, sets[1]), choice.plan)
        assert verdict.passed
        assert verdict.overall > 0


# --- by a script: plans of 256 points, whose calls take what they are said to


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> Any:
    """Runs ``tune`` on variants that take so many seconds, or do something else."""
    plans = [v.plan for v in room.variants(Problem("causal", 256, "bf16"), CHIP, 3, 8, 4)]

    def run(
        *behave: Any,
        exchangeable: Sequence[bool] = (True, True, True, True),
        tell: Callable[[str], None] = lambda _: None,
        at: Callable[[str], None] = lambda _: None,
    ) -> room.Tuned:
        timer = Script()
        about = ["the planner's choice", "one", "two", "three"]
        made = [
            Variant(plan, name, 1e-5, change)
            for plan, name, change, _ in zip(plans, about, exchangeable, behave, strict=False)
        ]
        monkeypatch.setattr(room, "variants", lambda *_: tuple(made))
        by_digest = {v.plan.digest: what for v, what in zip(made, behave, strict=True)}

        def caller(built: Built, sets: Sequence[Inputs]) -> tuple[Callable[[], Tensor], ...]:
            real = tune_calls.on_cpu(built, sets)
            what = by_digest[built.plan.digest]

            def call(one: Callable[[], Tensor]) -> Callable[[], Tensor]:
                def timed() -> Tensor:
                    if isinstance(what, float):
                        timer.seconds = what
                        return one()
                    return torch.as_tensor(what(one()))

                return timed

            return tuple(call(one) for one in real)

        return tune(
            case(),
            HostBackend(timer),
            Cache(session_cache),
            most=4,
            seconds=0.01,
            seed=5,
            caller=caller,
            tell=tell,
            at=at,
        )

    return run


def test_the_fastest_comes_first_and_wins(scripted: Any) -> None:
    found = scripted(2e-3, 3e-3, 1.5e-3, 1.9e-3).doc
    assert [r["about"] for r in found["variants"]] == ["two", "three", "the planner's choice", "one"]
    assert [r["over_choice"] for r in found["variants"]] == [0.75, 0.95, 1.0, 1.5]
    assert found["passed"]
    best = winner(found)
    assert best is not None
    assert best["about"] == "two"


def test_a_wrong_variant_and_one_that_fails_are_not_timed(scripted: Any) -> None:
    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("illegal something\nand more")

    found = scripted(2e-3, torch.zeros_like, fails, 1e-3).doc
    assert not found["passed"]
    by_name = {r["about"]: r for r in found["variants"]}
    assert by_name["one"]["status"] == WRONG
    assert by_name["one"]["error"] == 1.0
    assert by_name["two"]["status"] == FAILED
    assert by_name["two"]["reason"] == "RuntimeError: illegal something"
    assert "median_s" not in by_name["one"]
    assert "median_s" not in by_name["two"]
    best = winner(found)
    assert best is not None
    assert best["about"] == "three"


def test_a_variant_that_is_wrong_under_load_has_no_time(scripted: Any) -> None:
    calls = 0

    def races(right: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return right if calls < 20 else right * 1.1

    found = scripted(2e-3, races, 1e-3).doc
    by_name = {r["about"]: r for r in found["variants"]}
    assert [by_name[n]["status"] for n in ("the planner's choice", "one", "two")] == [OK, WRONG, OK]
    assert by_name["one"]["reason"] == "right when called alone, wrong under load"
    assert by_name["one"]["error"] == pytest.approx(0.1, rel=0.1)
    assert "median_s" not in by_name["one"]
    assert not found["passed"]


def test_who_is_at_work_is_told_before(scripted: Any) -> None:
    """A hang is of what was said last."""
    said: list[str] = []
    log: list[str] = []

    def seen(right: Tensor) -> Tensor:
        log.append(said[-1])
        return right

    scripted(2e-3, seen, 1e-3, tell=said.append, at=said.append)
    assert "causal 256 bf16 gated forward: proving 2 of 3: one" in said
    assert [what.rpartition(", ")[2] for what in dict.fromkeys(log)] == [
        *("called alone", "while it is timed", "under load")
    ]
    assert all(what.startswith("one, ") for what in log)


def test_results_of_one_variant_at_a_time_are_in_memory(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two dozen variants beside each other would not fit where the contenders of a row do."""
    alive: dict[int, weakref.ref[Tensor]] = {}
    most = 0

    def watched(right: Tensor) -> Tensor:
        nonlocal most
        made = right.clone()
        alive[len(alive)] = weakref.ref(made)
        most = max(most, sum(one() is not None for one in alive.values()))
        return made

    scripted(2e-3, watched, watched, watched)
    assert most <= 3  # one for each set of inputs, and the next


def test_noise_and_foreign_spectra_win_nothing(scripted: Any) -> None:
    assert winner(scripted(2e-3, 1e-3, exchangeable=(True, False)).doc) is None
    assert winner(scripted(1e-3, 2e-3).doc) is None
    found = scripted(2e-3, 1.99e-3).doc
    assert winner(found) is not None
    for row in found["variants"]:
        row["spread"] = 0.006  # two passes over the same code differ by more than the two plans
    assert winner(found) is None
    assert winner(scripted(torch.zeros_like, 1e-3).doc) is None  # nothing to compare with


def test_a_device_that_is_lost_ends_it(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Tensor) -> Tensor:
        def gone(_: object) -> None:
            raise RuntimeError("an illegal memory access was encountered")

        monkeypatch.setattr(HostBackend, "synchronize", gone)
        raise RuntimeError("launch failed")

    found = scripted(2e-3, fails, 1e-3).doc
    assert [r["status"] for r in found["variants"]] == [OK, FAILED, FAILED]
    assert all("median_s" not in r for r in found["variants"])
    assert found["variants"][2]["reason"] == "the device was lost by: one"
    assert not found["passed"]
    assert found["device_lost"]


# --- what is kept


def test_a_winner_is_taken_on_gpus_of_its_name_until_it_loses(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, store = Problem("causal", 256, "bf16"), Cache(tmp_path)
    choice = search.plan(problem, CHIP)
    found = scripted(2e-3, 1e-3)
    best = keep(store, case(), found, "GPU A")
    assert best is not None
    assert best["about"] == "one"
    kept = shortcut.plan(store, problem, CHIP, gpu="GPU A")
    assert kept == found.plans[best["digest"]] != choice
    for other in (
        shortcut.plan(store, problem, CHIP),
        shortcut.plan(store, problem, CHIP, gpu="GPU B"),
        shortcut.plan(store, problem, CHIP, "mma", gpu="GPU A"),
        shortcut.plan(Cache(None), problem, CHIP, gpu="GPU A"),
    ):
        assert other == choice
    assert shortcut.plan(store, replace(problem, dtype="fp16"), CHIP, gpu="GPU A") != kept

    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU A")
    conv_ = conv.Conv(problem, JustInTime(), "test")
    assert JustInTime().built(problem, (9, 0), "GPU A").plan == conv_.plan() == kept
    assert JustInTime().built(problem, (9, 0)).plan == conv_.plan("sm_90") == choice
    assert JustInTime().built(problem, (8, 0), "GPU A").plan == search.plan(problem, "sm_80")

    assert keep(store, case(), scripted(torch.zeros_like, 1e-3), "GPU A") is None  # nothing is known
    assert shortcut.plan(store, problem, CHIP, gpu="GPU A") == kept
    assert keep(store, case(), scripted(1e-3, 2e-3), "GPU A") is None
    assert shortcut.plan(store, problem, CHIP, gpu="GPU A") == choice


def test_a_layout_of_gradients_is_kept_beside_a_plan(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, store = Problem("causal", 256, "bf16"), Cache(tmp_path)
    choice = backward(problem, CHIP)
    assert choice is not None
    other = room.backward_variants(problem, CHIP, 3, 8, 2, True)[1].plan
    assert other != choice
    timed = replace(case(), direction="backward")
    doc = {**scripted(2e-3, 1e-3).doc, "case": str(timed)}
    doc["variants"][0]["digest"] = other.digest  # the fastest
    assert keep(store, timed, room.Tuned(doc, {other.digest: other}), "GPU A") is not None
    assert shortcut.backward(store, problem, CHIP, "GPU A") == other
    assert (
        shortcut.backward(store, problem, CHIP, "GPU B") == choice == shortcut.backward(store, problem, CHIP)
    )
    assert shortcut.plan(store, problem, CHIP, gpu="GPU A") == search.plan(problem, CHIP)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path))
    made = JustInTime().backward(problem, (9, 0), "GPU A")
    assert made is not None
    assert made.gradient == other


# --- the command


@pytest.fixture
def place(tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(session_cache))
    return tmp_path


def test_a_dry_run_writes_its_file_and_keeps_nothing(place: Path) -> None:
    given = ("--seqlen", "256", "--seqlen", "300", "--causal", "--most", "2", "--seed", "7")
    done = fftgen("tune", *given, "--dry-run", "-o", "t.json")
    assert done.exit_code == 0, done.stderr
    doc = json.loads((place / "t.json").read_text())
    assert (doc["kind"], doc["dry_run"], doc["passed"], doc["not_run"]) == ("tune", True, True, [])
    assert [c["case"] for c in doc["cases"]] == [
        "causal 256 bf16 gated forward",
        "causal 300 bf16 gated forward",
    ]
    for one in doc["cases"]:
        assert (one["seed"], one["kept"]) == (7, None)
        assert one["variants"][0]["status"] == OK
    assert "the planner's choice stays" in done.stdout
    assert "2 lengths in t.json" in done.stderr
    assert fftgen("tune", *given, "--dry-run", "--ungated").exit_code == 0
    assert (place / "tune-causal-256-300-bf16-ungated.json").exists()
    back = fftgen("tune", *given, "--dry-run", "--backward")
    assert back.exit_code == 0, back.stderr
    made = json.loads((place / "tune-causal-256-300-bf16-backward.json").read_text())
    assert made["passed"]
    assert [c["case"] for c in made["cases"]] == [f"causal {n} bf16 gated backward" for n in (256, 300)]
    budget = fftgen("tune", *given, "--dry-run", "--budget", "1e-9", "--json", "-o", "u.json")
    assert json.loads(budget.stdout)["not_run"] == [c["case"] for c in doc["cases"]]
    assert not (place / "u.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_sentence_says_what_is_missing(place: Path) -> None:
    done = fftgen("tune", "--seqlen", "256")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--seqlen", "256", "--most", "0"), "must be positive"),
        (("--seqlen", "256", "--seconds", "-1"), "must be positive"),
        (("--seqlen", "256", "--seconds", "nan"), "must be positive"),
        (("--seqlen", "12..13"), "no power of two"),
        (("--seqlen", "256", "-o", "no/such/t.json"), "no/such/t.json cannot be written"),
        (("--seqlen", "256", "-o", "."), ". cannot be written (Is a directory): name a file in it"),
        (("--seqlen", "256", "--dtype", "fp64"), "fp64"),
        (("--seqlen", "256", "--backward"), "--backward needs --causal"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_anything_runs(
    place: Path, given: tuple[str, ...], said: str
) -> None:
    done = fftgen("tune", *given, "--dry-run")
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(place.iterdir())

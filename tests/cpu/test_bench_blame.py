"""Who is to blame when a row loses its worker: ours are measured whoever hangs; to be slow is no fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench_kit import case, host
from test_bench_supervisor import PASSED, Stage, rows

from fftgen.bench import steps, tables
from fftgen.bench.results import Run, document, failures
from fftgen.bench.row import REFERENCE
from fftgen.bench.steps import COMPILED, CONTENDERS, OURS, Step, row_steps
from fftgen.bench.supervisor import Gone
from fftgen.problem import Problem

NAMES = ["fftgen", "fftgen-prepared", "torch-real"]
EAGER = [n for n in CONTENDERS if n not in COMPILED]

Said = list[tuple[float, Any]]


def asked(s: Step) -> list[str]:
    """The contenders that a row runs."""
    return [n for n in s.params["contenders"] if n not in s.params.get("lost", {})]


def faulty(*bad: str) -> Callable[[Step], Said]:
    def script(s: Step) -> Said:
        said: Said = []
        for name in asked(s):
            said.append((1.0, {"at": name}))
            if name in bad:
                return [*said, (1.0, Gone("exit status 1"))]
        return [*said, (1.0, {"result": {"status": "passed", **s.params}})]

    return script


def hanging(*bad: str) -> Callable[[Step], Said]:
    """A kernel of these contenders, or of a step that is no row, hangs."""

    def script(s: Step) -> Said:
        if s.kind != "row":
            return [(1000.0, PASSED)]
        said: Said = []
        for name in asked(s):
            said.append((1.0, {"at": name}))
            if name in bad:
                return [*said, (1000.0, PASSED)]
        return [*said, (1.0, {"result": {"status": "passed", "asked": asked(s), **s.params}})]

    return script


def test_a_row_is_repeated_without_the_one_that_took_the_worker_down() -> None:
    stage = Stage(faulty("b"))
    (found,) = stage.run(rows(["a", "b", "c"]))
    assert (found.status, found.result["lost"]) == ("passed", {"b": "the process ended: exit status 1"})
    assert found.seconds == 3 + 3
    assert len(stage.actors) == 2
    two = Stage(faulty("b", "c"))
    (found,) = two.run(rows(["a", "b", "c"]))
    assert (found.status, list(found.result["lost"])) == ("passed", ["b", "c"])


def test_when_one_of_ours_hangs_the_other_is_not_tried_on_the_same_kernels() -> None:
    first = row_steps([case(length=65536), case(length=65536, gated=False)], NAMES, seed=1, seconds=0.1)
    of_others = [case(length=4096), case("circular", 65536), case(length=65536, dtype="fp16")]
    stage = Stage(hanging("fftgen"))
    found = stage.run([*first, *row_steps(of_others, NAMES, seed=1, seconds=0.1)])
    assert [o.result["asked"] for o in found] == [["torch-real"]] * 5
    # A second until it is heard of, then the limit; another attempt; and a row that knows.
    assert [o.seconds for o in found[:2]] == [1 + steps.ROW_LIMIT + 2, 2]
    assert len(stage.actors) == 1 + 4  # every problem hangs for itself, once
    why = "slow or hung: not done after 45 s"
    assert found[0].result["lost"] == {
        "fftgen": why,
        "fftgen-prepared": f"fftgen, which has the same kernels, was {why}",
    }
    assert found[1].result["lost"] == dict.fromkeys(
        OURS, "its kernels were slow or hung before: causal 65536 bf16 gated forward"
    )


def test_when_a_fault_ends_one_of_ours_the_other_is_tried() -> None:
    stage = Stage(faulty("fftgen"))
    (found,) = stage.run(row_steps([case()], NAMES, seed=1, seconds=0.1))
    assert (found.status, list(found.result["lost"])) == ("passed", ["fftgen"])


def test_when_a_peer_hangs_ours_are_measured() -> None:
    stage = Stage(hanging("torch-real"))
    found = stage.run(row_steps([case(), case(gated=False)], NAMES, seed=1, seconds=0.1))
    assert [o.result["asked"] for o in found] == [NAMES[:2]] * 2


def test_a_proof_that_hangs_spares_all_that_would_hang_like_it() -> None:
    problems = (Problem("causal", 256, "bf16"),)
    proofs = steps.proof_steps(1, problems, problems)
    sanitized = [
        *steps.sanitizer_steps(("memcheck",), problems),
        *steps.sanitizer_steps(("memcheck",), problems, "backward"),
    ]
    both = [case(), case(direction="backward")]
    stage = Stage(hanging())
    found = stage.run([*proofs, *sanitized, *row_steps(both, NAMES, seed=1, seconds=0.1)])
    assert [o.status for o in found] == ["crashed", *["not run"] * 5, "passed", "passed"]
    assert found[0].seconds == steps.PROOF_LIMIT
    assert found[1].reason == "its kernels were slow or hung before: correctness causal 256 bf16"
    assert [o.result["asked"] for o in found[-2:]] == [["torch-real"]] * 2
    # A backward pass may hang in kernels of its own: forward rows have others.
    stage = Stage(hanging())
    found = stage.run([proofs[2], *row_steps(both, NAMES, seed=1, seconds=0.1)])
    assert [o.result.get("asked") for o in found] == [None, NAMES, ["torch-real"]]


def test_a_hang_costs_little_of_a_suite() -> None:
    """A limit is that of silence: two compilations of one contender fit, those of all need not."""
    assert {s.limit for s in steps.proof_steps(1)} == {20}
    for direction in ("forward", "backward"):
        (plain,) = row_steps([case(direction=direction)], EAGER, 1, 0.2)
        assert plain.limit == 45
        (compiled,) = row_steps([case(direction=direction)], list(steps.CONTENDERS), 1, 0.2)
        one = (compiled.expected - plain.expected) / len(COMPILED)
        assert 2 * one <= compiled.limit - plain.limit <= 30


def test_nobody_is_to_blame_on_a_slow_machine() -> None:
    """Each takes 40 s and the row seven minutes: it is measured, and so are the kernels after it."""

    def slow(s: Step) -> Said:
        names = asked(s) if s.kind == "row" else ["launch by launch"]
        return [*((40.0, {"at": name}) for name in (REFERENCE, *names)), (40.0, PASSED)]

    stage = Stage(slow)
    of = case(length=65536, batch=64, channels=768)
    found = stage.run([*row_steps([of], EAGER, 1, 0.2), *steps.kernel_steps([of], 1)])
    assert [o.status for o in found] == ["passed", "passed"]
    assert found[0].seconds == 40 * (2 + len(EAGER))
    assert len(stage.actors) == 1


def test_nobody_is_to_blame_for_a_reference_that_takes_too_long() -> None:
    """Nothing of ours was at work; it is no use to try again."""

    def script(s: Step) -> Said:
        return [(1.0, {"at": REFERENCE}), (1000.0, PASSED)] if s.kind == "row" else [(1.0, PASSED)]

    stage = Stage(script)
    of = case(length=65536)
    found = stage.run([*row_steps([of], NAMES, 1, 0.2), *steps.kernel_steps([of], 1)])
    assert [o.status for o in found] == ["crashed", "passed"]
    assert found[0].reason == "slow or hung: not done after 45 s (at work: the float64 reference)"


@pytest.mark.parametrize("way", [faulty, hanging])
def test_however_many_peers_are_lost_ours_are_measured_at_last(way: Any) -> None:
    bad = ("torch-complex", "torch-real", "flashfftconv")
    names = [*bad, *OURS, "attention"]  # whoever comes first
    stage = Stage(way(*bad))
    (found,) = stage.run(row_steps([case()], names, 1, 0.2))
    assert (found.status, len(stage.actors)) == ("passed", 3)
    assert asked(found.step) == list(OURS)
    assert list(found.result["lost"]) == ["torch-complex", "torch-real"]
    # Who was not heard is not said to be at fault.
    assert list(found.result["left_out"]) == ["flashfftconv", "attention"]
    assert not failures([found])
    told = steps.RUNNERS["row"](found.step.params, host(), lambda _: None)
    statuses = {name: c["status"] for name, c in told["contenders"].items()}
    assert statuses == {
        **dict.fromkeys(bad[:2], "lost"),
        **dict.fromkeys(OURS, "ok"),
        **dict.fromkeys(["flashfftconv", "attention"], "unavailable"),
    }
    assert told["status"] == "passed"
    assert told["contenders"]["torch-real"]["reason"] == found.result["lost"]["torch-real"]
    assert "the last attempt at the row was with ours alone" in told["contenders"]["attention"]["reason"]


def test_ours_that_fail_in_the_last_attempt_are_a_failure() -> None:
    stage = Stage(faulty("torch-complex", "torch-real", "fftgen"))
    (found,) = stage.run(row_steps([case()], ["torch-complex", "torch-real", "fftgen"], 1, 0.2))
    assert found.status == "crashed"
    assert "at work: fftgen" in found.reason
    assert failures([found]) == [found]


def test_where_ours_are_lost_themselves_peers_go_on() -> None:
    stage = Stage(faulty("fftgen", "fftgen-prepared"))
    (found,) = stage.run(row_steps([case()], [*NAMES, "cudnn"], 1, 0.2))
    assert (found.status, list(found.result["lost"])) == ("passed", list(OURS))
    assert asked(found.step) == ["torch-real", "cudnn"]
    told = steps.RUNNERS["row"](found.step.params, host(), lambda _: None)
    assert told["status"] == "failed"  # ours


def test_a_row_that_is_lost_to_peers_every_time_is_no_failure() -> None:
    stage = Stage(faulty("a", "b", "c", "d"))
    (found,) = stage.run(rows(["a", "b", "c", "d"]))
    assert found.status == "lost"
    assert len(stage.actors) == 3
    doc = document(Run("rows", False, 1, None), [found.step], [found], 1)
    assert doc["passed"]
    assert "lost (the process ended: exit status 1 (at work: c)): causal 256 bf16" in tables.text(doc)


def test_a_row_is_not_repeated_without_time() -> None:
    stage = Stage(faulty("b"), budget=7)
    (found,) = stage.run(rows(["a", "b"]))  # expected: 4 s, 3 are gone, 4 left; then 3 more would be
    assert found.status == "passed"
    for names, status in ((["a", "b"], "lost"), (["a", "fftgen"], "crashed")):
        stage = Stage(faulty(names[1]), budget=6.5)
        (found,) = stage.run(rows(names))
        assert found.status == status
        assert f"at work: {names[1]}" in found.reason
        assert bool(failures([found])) == (status == "crashed")

"""Rows on their way to a warp's shared memory while it computes, in the simulator."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from calls import TORCH, bare, built, check, draw, filters
from cases import usually
from command_line import why_not
from torch import Tensor

import fftgen.planner.launch
from fftgen import emulate
from fftgen.errors import InternalError
from fftgen.gradient import Gradients, Needed
from fftgen.pipeline import Built
from fftgen.planner import mma_kernels, search
from fftgen.planner.gradient import backward
from fftgen.planner.plan import Plan
from fftgen.planner.twins import twin
from fftgen.problem import Problem
from fftgen.simulator import SimulationError
from fftgen.source import Source

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

RUN = 3  # groups of transforms that a warp takes one after another
CHANNELS = 2
OPTIONS = ("in_gate", "out_gate")


@lru_cache(maxsize=8)
def planned(mode: str, length: int, dtype: str = "bf16", arch: str = "sm_90", engine: str = "mma") -> Plan:
    found = search.plan(Problem(mode, length, dtype), arch, engine)
    assert found.body.brought
    return bare(found)


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a call would spread over the chip, a group for each warp."""
    monkeypatch.setattr(fftgen.planner.launch, "run_of", lambda pieces, slots: RUN)


def inputs(plan: Plan, rng: np.random.Generator, steps: int, options: tuple[str, ...]) -> dict[str, Tensor]:
    """Rows for a warp's whole run and a part of the next one's, of which groups cross channels.

    The last pair of a channel lacks a row.
    """
    rows = plan.rows_per_item
    transforms = (RUN * plan.body.group + 1) // CHANNELS + 1
    shape = (rows * transforms - rows // 2, CHANNELS, steps)
    dtype = TORCH[plan.problem.dtype]
    given = {name: draw(rng, *shape).to(dtype) for name in ("u", *options)}
    return {**given, "k": filters(rng, CHANNELS, plan.problem.length, steps)}


def convolve(plan: Plan, given: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
    module, ptx = built(plan)
    return emulate.convolve(module, **given, ptx=ptx, seed=int(rng.integers(2**31)))[0]


CASES = [
    ("causal", 256, "bf16", "sm_90", "mma"),
    ("causal", 512, "fp16", "sm_90", "mma"),
    ("causal", 1024, "bf16", "sm_90", "mma"),
    ("circular", 256, "bf16", "sm_90", "mma"),
    ("circular", 512, "fp16", "sm_90", "mma"),
    ("circular", 768, "bf16", "sm_90", "mma"),  # the gates of results are not brought
    ("circular", 1000, "bf16", "sm_90", "mma"),  # folds
    ("causal", 1024, "bf16", "sm_86", "mma"),  # nor here
    ("causal", 1024, "fp16", "sm_80", "mma"),
    ("causal", 256, "bf16", "sm_90", "mma:bf16-fp32"),
]


@pytest.mark.drawn(3)
@pytest.mark.parametrize("options", [(), OPTIONS, OPTIONS[:1], OPTIONS[1:]], ids=" ".join)
@pytest.mark.parametrize(
    ("mode", "length", "dtype", "arch", "engine"), usually(CASES, CASES[:1] + CASES[4:5])
)
def test_rows_on_their_way_give_the_same_bits(
    mode: str,
    length: int,
    dtype: str,
    arch: str,
    engine: str,
    options: tuple[str, ...],
    rng: np.random.Generator,
) -> None:
    """As rows that a warp asks for when it needs them; aligned, of full length and shorter, and unaligned."""
    plan = planned(mode, length, dtype, arch, engine)
    waiting = mma_kernels.waiting(plan)
    assert not waiting.body.brought
    n = length - length % 8
    for steps in (n, n - 8 * int(rng.integers(1, n // 16)), n - int(rng.integers(1, 8))):
        if mode == "circular" and plan.fold and steps < length - 8:
            continue
        given = inputs(plan, rng, steps, options)
        y = convolve(plan, given, rng)
        assert torch.equal(y, convolve(waiting, given, rng))
        check(plan, y, given["u"], given["k"], **{name: given[name] for name in options})


@pytest.mark.parametrize(
    ("length", "dtype", "arch"),
    usually(
        [(1024, "bf16", "sm_90"), (1024, "fp16", "sm_80"), (2048, "bf16", "sm_90"), (256, "fp16", "sm_89")],
        [(1024, "bf16", "sm_90")],
    ),
)
def test_a_warp_that_is_brought_nothing_takes_one_group_after_another(
    length: int, dtype: str, arch: str, rng: np.random.Generator
) -> None:
    plan = search.plan(Problem("circular", length, dtype), arch)
    assert not plan.body.brought
    given = inputs(plan, rng, length, OPTIONS)
    y = convolve(plan, given, rng)
    check(plan, y, given["u"], given["k"], **{name: given[name] for name in OPTIONS})


@pytest.mark.parametrize(("mode", "length"), [("causal", 256), ("causal", 1024), ("circular", 512)])
def test_two_results_have_their_gates_on_their_way(mode: str, length: int, rng: np.random.Generator) -> None:
    plan = planned(mode, length)
    both = twin(plan)
    assert both is not None
    assert both.body.brought
    given = inputs(plan, rng, length - 8, OPTIONS)
    first, second = given.pop("out_gate"), draw(rng, *given["u"].shape).to(given["u"].dtype)
    module, ptx = built(both)
    u, k, in_gate = (given[name] for name in ("u", "k", "in_gate"))
    y, also, _ = emulate.both(module, u, k, (first, second), ptx=ptx, in_gate=in_gate)
    check(plan, y, u, k, in_gate=in_gate, out_gate=first)
    check(plan, also, u, k, in_gate=in_gate, out_gate=second)


@pytest.mark.parametrize(("mode", "length"), [("causal", 256), ("circular", 256)])
def test_every_row_comes_once(mode: str, length: int, rng: np.random.Generator) -> None:
    """In whole sectors, without a conflict of banks."""
    plan = planned(mode, length)
    given = inputs(plan, rng, length, OPTIONS)
    whole = plan.rows_per_item * RUN * plan.body.group // CHANNELS
    given |= {name: given[name].repeat(2, 1, 1)[:whole] for name in ("u", *OPTIONS)}
    module, ptx = built(plan)
    _, simulated = emulate.convolve(module, **given, ptx=ptx)
    counters = simulated.reports[plan.name].counters
    row = given["u"].numel() * 2
    for name in ("u", *OPTIONS):
        loads = counters.buffers[name].loads
        assert loads.bytes == row
        assert loads.units == row // 32
    for kind in (counters.shared_loads, counters.shared_stores):
        assert kind.units == kind.least


GATES_COME = "wait<1>();  // for the gates, not for what the next transforms start from"
# What has to be there, by the text of the source: a wait, a group of copies, a barrier after a wait.
NEEDED = {
    "the wait for signals": ("wait<0>();", ""),
    "the wait for gates": ("wait<1>();", ""),
    "the group of gates": ("        commit();\n    };", "    };"),
    "the group of the first signals": (
        "ask_signals(piece, first);\n        commit();",
        "ask_signals(piece, first);",
    ),
    "the barrier after the wait for gates": (
        f"{GATES_COME}\n{' ' * 20}__syncwarp();",
        GATES_COME,
    ),
    "the barrier before the next gates": (
        "__syncwarp();  // those of the transforms before have been read",
        "",
    ),
    "zeros beyond the length": ("if (args.length < POINTS || pieces - piece < GROUP) {", "if (false) {"),
    "the step to the next": ("ask_signals(piece + GROUP, after)", "ask_signals(piece, first)"),
    "the gate's own place": ("rows_of(index / LANES) + SIGNALS * ROW;", "rows_of(index / LANES) + ROW;"),
}


def changed(module: Built, before: str, after: str) -> Built:
    """A module whose source says ``after`` instead."""
    source = module.source
    assert source.text.count(before) == 1
    text = source.text.replace(before, after)
    return replace(module, source=Source(source.name, text, source.headers, source.entries))


@pytest.mark.drawn(4)
@pytest.mark.parametrize("what", NEEDED)
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_nothing_of_it_can_be_left_out(mode: str, what: str, rng: np.random.Generator) -> None:
    plan = planned(mode, 256)
    module, _ = built(plan)
    given = inputs(plan, rng, 248, OPTIONS)
    mutant = changed(module, *NEEDED[what])

    def judged() -> None:
        y, _ = emulate.convolve(mutant, **given)
        check(plan, y, given["u"], given["k"], **{name: given[name] for name in OPTIONS})

    with pytest.raises((SimulationError, InternalError, AssertionError)):
        judged()


# The same of a backward pass: the next signal and its gate are on their way, and gates of V's results.
OF_BACKWARD = {
    "the wait for signals": ("wait<0>();", ""),
    "the wait for gates": ("wait<1>();", ""),
    "the group of the first signals": (
        "ask_side(share.begin, 0);\n        commit();",
        "ask_side(share.begin, 0);",
    ),
    "the group of gates": ("commit();  // what results need", "// what results need"),
    "the step to the next": ("ask_side(item + GROUP, 0)", "ask_side(item, 0)"),
    "the other side": ("ask_side(item, 1)", "ask_side(item, 0)"),
}


@pytest.mark.drawn(5)
@pytest.mark.parametrize("what", OF_BACKWARD)
@pytest.mark.parametrize("length", [256, 1024])
def test_nothing_of_it_can_be_left_out_of_a_backward_pass(
    length: int, what: str, rng: np.random.Generator
) -> None:
    found = backward(Problem("causal", length, "bf16"), "sm_90")
    assert found is not None
    assert found.kernel.brought == (4 if length == 256 else 2)  # shared memory has no room for gates at 1024
    module, _ = built(found)
    u, v, *gates = (draw(rng, 9, 1, length - 8).bfloat16() for _ in range(4))
    k = filters(rng, 1, length, length - 8)
    mutant = changed(module, *OF_BACKWARD[what])
    given = {"taps": length - 8, "in_gate": gates[0], "out_gate": gates[1]}

    def made(module: Built) -> Gradients:
        return emulate.backward(module, u, v, k, needed=Needed(True, True, True), **given)[0]

    right = made(module)

    def judged() -> None:
        for one, other in zip(made(mutant), right, strict=True):
            assert torch.equal(one, other)

    with pytest.raises((SimulationError, InternalError, AssertionError)):
        judged()


def test_no_resident_warp_is_given_up_for_it() -> None:
    """And a plan that asks for rows when it needs them is what it was without."""
    for mode, length, *rest in CASES:
        plan = planned(mode, length, *rest)
        waiting = mma_kernels.waiting(plan)
        assert waiting.body.resident == plan.body.resident
        assert waiting.body.shared_bytes < plan.body.shared_bytes
        assert "brought" not in waiting.to_json()
        assert Plan.from_json(plan.to_json()) == plan
        again = mma_kernels.with_brought(waiting.body, plan.rows_per_item, search.find_target(plan.target))
        assert again == plan.body

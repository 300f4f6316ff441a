"""Rows of the bench: who is right, who is wrong, who is not there; only the right ones are timed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bench_kit import CPU, Script, case, contender, host
from reference import convolve
from torch import Tensor

from fftgen.bench import reference, row
from fftgen.bench.backend import HostBackend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import real_fft
from fftgen.bench.inputs import Inputs, draw, draw_sets
from fftgen.bench.row import CONTENDERS, DeviceLost, measure_row
from fftgen.errors import InternalError

EVERYONE = tuple(CONTENDERS)
HERE = (*(n for n in EVERYONE if n.startswith(("fftgen", "torch"))), "attention")


def by_definition(of: Case, x: Inputs) -> Any:
    """The answer by the tests' own reference, which shares no code with the bench."""
    gates = {
        name: None if g is None else g.double().numpy()
        for name, g in (("in_gate", x.in_gate), ("out_gate", x.out_gate))
    }
    p = of.problem
    return convolve(x.u.double(), x.k.double(), mode=p.mode, length=p.length, **gates)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("mode", "length"), [("causal", 256), ("circular", 1000), ("circular", 7)])
def test_the_reference_is_the_convolution(mode: str, length: int, gated: bool) -> None:
    of = case(mode, length, gated=gated)
    x = draw(of, CPU, 3)
    exact = reference.exact(of, x)
    assert exact.dtype == torch.float64
    assert np.allclose(exact.numpy(), by_definition(of, x), rtol=0, atol=1e-11)


def test_the_reference_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    of = case(channels=5)
    x = draw(of, CPU, 3)
    whole = reference.exact(of, x)
    monkeypatch.setattr(reference, "CHUNK", 2 * of.batch * of.points)  # two channels, two, one
    assert torch.allclose(reference.exact(of, x), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in HERE if n != "attention"])
def test_a_changed_filter_is_seen_by_those_who_transform_it_at_every_call(name: str) -> None:
    """And by nobody else: what is said to be inside a time is."""
    of, one = case("causal", 256, gated=True), CONTENDERS[name]
    (first, *_) = sets = draw_sets(of, CPU, 1, 0)
    with torch.no_grad():
        prepared = one.prepare(of, sets, host())
        before = prepared.calls[0]()
        first.k.mul_(2)
        assert torch.equal(prepared.calls[0](), before) != one.filter_inside


@pytest.mark.parametrize("last", [False, True])
def test_a_wrong_reference_is_noticed(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference._part

    def wrong(of: Case, x: Inputs, part: slice) -> Tensor:
        y = right(of, x, part)
        y[-1 if last else 0, -1 if last else 0] *= 1 + 1e-7
        return y

    monkeypatch.setattr(reference, "_part", wrong)
    with pytest.raises(InternalError, match="differs from NumPy's by 1"):
        reference.exact(case(), draw(case(), CPU, 3))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_everyone_who_can_run_here_is_right_and_timed(mode: str, gated: bool, dtype: str) -> None:
    # Compiling takes seconds for every shape: once is enough here.
    compiled = (mode, gated, dtype) == ("causal", True, "bf16")
    names = [n for n in EVERYONE if compiled or not n.endswith("compiled")]
    of = case(mode, 256, dtype, gated=gated)
    found = measure_row(of, host(), contenders=names, seed=1, seconds=0.01)["contenders"]
    assert list(found) == names
    for name, entry in found.items():
        if name in HERE and (name != "attention" or (gated and mode == "causal")):
            assert entry["status"] == "ok", (name, entry)
            assert 0 < entry["error"] <= entry["error_bound"]
            assert entry["samples"] >= 10
        else:
            assert entry["status"] == "unavailable"
            assert entry["reason"]
            assert "median_s" not in entry
    assert f"{mode} 256 {dtype}" in found["fftgen"]["note"]  # the plan's line
    assert found["fftgen"]["filter_inside"]
    assert not found["fftgen-prepared"]["filter_inside"]
    assert found["fftgen"]["error_bound"] < found["torch-real"]["error_bound"]


def test_a_row_says_what_was_measured() -> None:
    of = case("causal", 1024, gated=True, batch=64, channels=64)
    backend = host(memory=1 << 24)
    found = measure_row(of, backend, contenders=["fftgen"], seed=9, seconds=0.01)
    scaled = of.scaled(1 << 24)
    assert scaled != of
    assert (found["batch"], found["channels"]) == (scaled.batch, scaled.channels)
    assert found["scaled_down"]
    assert found["floor_bytes"] == scaled.floor_bytes == 8 * scaled.elements
    assert found["input_bytes"] == 3 * 2 * scaled.elements + 4 * scaled.channels * 1024
    assert (found["sets"], found["seed"], found["direction"]) == (2, 9, "forward")


def zeros(x: Inputs, of: Case) -> Tensor:
    return torch.zeros_like(x.u)


def right(x: Inputs, of: Case) -> Tensor:
    return torch.from_numpy(by_definition(of, x)).to(x.u.dtype)


def unwritten(x: Inputs, of: Case) -> Tensor:
    """All rows but one; that one keeps what was in memory."""
    y = right(x, of)
    out = torch.empty_like(x.u)
    out[1:] = y[1:]
    out[0, 1:] = y[0, 1:]
    return out


def one_row(x: Inputs, of: Case) -> Tensor:
    y = right(x, of)
    y[1, 3] *= 1.1
    return y


def acausal(x: Inputs, of: Case) -> Tensor:
    """The circular convolution where the causal one is wanted."""
    gates = [None if g is None else g.double().numpy() for g in (x.in_gate, x.out_gate)]
    y = convolve(
        x.u.double(),
        x.k.double(),
        mode="circular",
        length=of.length,
        in_gate=gates[0],
        out_gate=gates[1],
    )
    return torch.from_numpy(y).to(x.u.dtype)


def ungated(x: Inputs, of: Case) -> Tensor:
    return right(Inputs(x.u, x.k), of)


def reversed_filter(x: Inputs, of: Case) -> Tensor:
    return right(Inputs(x.u, x.k.flip(-1), x.in_gate, x.out_gate), of)


def nan(x: Inputs, of: Case) -> Tensor:
    y = right(x, of)
    y[-1, -1, -1] = math.nan
    return y


def no_memory(x: Inputs, of: Case) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nmore lines")


def another_shape(x: Inputs, of: Case) -> Tensor:
    return right(x, of)[..., :-1]


def another_type(x: Inputs, of: Case) -> Tensor:
    return right(x, of).float()


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (zeros, "wrong", "not the convolution"),
        (unwritten, "wrong", "not finite"),
        (one_row, "wrong", "not the convolution"),
        (acausal, "wrong", "not the convolution"),
        (ungated, "wrong", "not the convolution"),
        (reversed_filter, "wrong", "not the convolution"),
        (nan, "wrong", "not finite"),
        (no_memory, "failed", r"OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB$"),
        (another_shape, "failed", "expected torch.bfloat16"),
        (another_type, "failed", r"the result is torch.float32"),
    ],
)
def test_who_is_wrong_or_fails_is_told_and_not_timed(
    function: Callable[[Inputs, Case], Tensor],
    status: str,
    reason: str,
    ours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def counted(x: Inputs, of: Case) -> Tensor:
        nonlocal calls
        calls += 1
        return function(x, of)

    # What the allocator hands out next holds NaN, as on a device after ``poison``.
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, math.nan))
    monkeypatch.setitem(row.CONTENDERS, "liar", contender("liar", counted, ours=ours))
    found = measure_row(case(), host(), contenders=["liar", "torch-real"], seed=2, seconds=0.01)
    entry = found["contenders"]["liar"]
    assert entry["status"] == status, entry
    assert calls == 1
    assert "median_s" not in entry
    assert re.search(reason, entry["reason"])
    assert found["contenders"]["torch-real"]["status"] == "ok"


def test_memory_is_poisoned_before_a_result_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def poison(like: Tensor) -> None:
        assert like.shape == (3, 8, 256)
        events.append("poison")

    def call(x: Inputs, of: Case) -> Tensor:
        events.append("call")
        return right(x, of)

    monkeypatch.setattr(row, "poison", poison)
    monkeypatch.setitem(row.CONTENDERS, "one", contender("one", call))
    measure_row(case(), host(), contenders=["one"], seed=2, seconds=0.01)
    assert events[:2] == ["poison", "call"]
    assert events.count("poison") == 1


def test_each_contender_is_compiled_once_for_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second compilation would fall into the timing, or into the memory of a call."""
    compiled: list[set[int]] = []

    def compiler(graph: Any, inputs: list[Tensor]) -> Any:
        compiled.append({int(x.shape[-1]) for x in inputs})
        return graph.forward

    backend: Any = host()
    backend.compiler = compiler
    names = ["torch-complex-compiled", "torch-real-compiled"]
    for length in (64, 128):
        found = measure_row(case(length=length), backend, contenders=names, seed=1, seconds=0.01)
        assert {c["status"] for c in found["contenders"].values()} == {"ok"}
    assert compiled == [{64}, {64}, {128}, {128}]


def test_who_breaks_while_timed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def tired(x: Inputs, of: Case) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("no more")
        return right(x, of)

    monkeypatch.setitem(row.CONTENDERS, "tired", contender("tired", tired))
    found = measure_row(case(), host(), contenders=["tired", "fftgen"], seed=2, seconds=0.01)["contenders"]
    assert (found["tired"]["status"], found["tired"]["reason"]) == ("failed", "RuntimeError: no more")
    assert found["fftgen"]["samples"] >= 10


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ours_is_judged_again_under_load(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Races(torch.autograd.Function):
        """Right until many calls have been made, in both directions."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * (1.1 if direction == "forward" and calls > 20 else 1)

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return given[0] * (1.1 if calls > 20 else 1)

    def racing(x: Inputs, of: Case) -> Tensor:
        nonlocal calls
        calls += direction == "forward"
        y: Tensor = Races.apply(real_fft(x.u, x.k, x.in_gate, x.out_gate, of.points))
        return y

    names = ("ours", "peer", "torch-real")
    for name in names[:2]:
        monkeypatch.setitem(row.CONTENDERS, name, contender(name, racing, ours=name == "ours"))
    told: list[str] = []
    found = measure_row(
        case(direction=direction), host(), contenders=names, seed=2, seconds=0.05, tell=told.append
    )["contenders"]
    assert found["ours"]["status"] == "wrong", found["ours"]
    assert found["ours"]["reason"].startswith("right when called alone; under load the ")
    assert found["ours"]["error"] == pytest.approx(0.1, rel=0.1)
    assert "median_s" not in found["ours"]
    assert found["torch-real"]["status"] == "ok"
    assert told[-1] == "ours"


def test_who_breaks_under_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(calls: Any, once: float) -> Any:
        raise RuntimeError("no more")

    monkeypatch.setattr(row, "under_load", broken)
    found = measure_row(case(), host(), contenders=["fftgen"], seed=2, seconds=0.01)["contenders"]
    assert (found["fftgen"]["status"], found["fftgen"]["reason"]) == ("failed", "RuntimeError: no more")
    assert "median_s" not in found["fftgen"]


def test_who_does_not_fit_beside_the_others_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0

    def large(x: Inputs, of: Case) -> Tensor:
        nonlocal failures, calls
        calls += 1
        if calls == 3:  # after the check and the memory: its first warm-up
            failures += 1
            raise torch.OutOfMemoryError("full")
        return right(x, of)

    calls = 0
    monkeypatch.setitem(row.CONTENDERS, "large", contender("large", large))
    found = measure_row(case(), host(), contenders=["large", "fftgen"], seed=2, seconds=0.01)["contenders"]
    assert failures == 1
    assert found["large"]["status"] == "ok"
    assert found["large"]["samples"] >= 10
    assert found["large"]["timed_alone"] == row.ALONE
    assert "timed_alone" not in found["fftgen"]


class Broken(HostBackend):
    """A device that is gone after the first error."""

    gone = False

    def synchronize(self) -> None:
        if self.gone:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_device_that_is_gone_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Broken()

    def fault(x: Inputs, of: Case) -> Tensor:
        backend.gone = True
        return right(x, of)

    monkeypatch.setitem(row.CONTENDERS, "faulty", contender("faulty", fault))
    heard: list[str] = []
    with pytest.raises(DeviceLost, match="illegal memory access") as lost:
        measure_row(case(), backend, contenders=["fftgen", "faulty"], seed=2, seconds=0.01, tell=heard.append)
    assert lost.value.name == "faulty"
    assert heard == [row.REFERENCE, "fftgen", "faulty"]
    backend.gone = False
    found = measure_row(
        case(), backend, contenders=["fftgen", "faulty"], lost={"faulty": "it hung"}, seed=2, seconds=0.01
    )["contenders"]
    assert (found["faulty"]["status"], found["faulty"]["reason"]) == ("lost", "it hung")
    assert found["fftgen"]["status"] == "ok"


def test_who_is_not_asked_is_listed_with_the_reason() -> None:
    found = measure_row(
        case(),
        host(),
        contenders=["fftgen"],
        left_out={"torch-real-compiled": "no time"},
        seed=1,
        seconds=0.01,
    )["contenders"]
    assert found["torch-real-compiled"]["status"] == "unavailable"
    assert found["torch-real-compiled"]["reason"] == "no time"


def test_only_the_timer_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()

    def slow(x: Inputs, of: Case) -> Tensor:
        script.seconds = 0.25
        return right(x, of)

    def fast(x: Inputs, of: Case) -> Tensor:
        script.seconds = 0.0625
        return right(x, of)

    monkeypatch.setitem(row.CONTENDERS, "slow", contender("slow", slow))
    monkeypatch.setitem(row.CONTENDERS, "fast", contender("fast", fast))
    found = measure_row(
        case(length=16), HostBackend(script), contenders=["slow", "fast"], seed=1, seconds=0.5
    )["contenders"]
    assert (found["slow"]["median_s"], found["fast"]["median_s"]) == (0.25, 0.0625)

"""Rows of the bench: who is right, who is wrong, who is not there; only the right ones are timed."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from types import ModuleType
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
from fftgen.bench.inputs import Inputs, draw
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
    assert heard == ["fftgen", "faulty"]
    backend.gone = False
    found = measure_row(
        case(), backend, contenders=["fftgen", "faulty"], lost=["faulty"], seed=2, seconds=0.01
    )["contenders"]
    assert found["faulty"]["status"] == "lost"
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


# Peers, by stand-ins with the signatures that their documentation gives.


def flashfftconv(**changes: Any) -> ModuleType:
    class FlashFFTConv(torch.nn.Module):
        """FlashFFTConv(fft_size, dtype)(u, k, pregate, postgate): irfft(rfft(u, N) * rfft(k, N), N)[:L]."""

        def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16) -> None:
            super().__init__()
            assert dtype in (torch.float16, torch.bfloat16)
            assert seqlen in [1 << e for e in range(8, 23)]
            self.seqlen, self.dtype = seqlen, dtype

        def forward(
            self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None
        ) -> Tensor:
            assert not self.training
            assert (u.dtype, k.dtype) == (self.dtype, torch.float32)
            assert (pregate is None) == (postgate is None)
            x = u.double() * (1 if pregate is None else pregate.double())
            n = self.seqlen
            y = torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(k.double(), n=n), n=n)
            y = y[..., : u.shape[-1]] * (1 if postgate is None else postgate.double())
            return y.to(u.dtype)

    module: Any = ModuleType("flashfftconv")
    module.FlashFFTConv = FlashFFTConv
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def fft_causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D, L), weight (D, K) of the same dtype, weight[0] for the current sample."""
    assert x.dtype == weight.dtype
    n = x.shape[-1] + weight.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(x.double(), n=n) * torch.fft.rfft(weight.double(), n=n), n=n)
    return y[..., : x.shape[-1]].to(x.dtype)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any] | None) -> None:
    """A stand-in package in sys.modules, with its parents."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module: Any = ModuleType(".".join(parts[:end]))
        module.__path__ = []
        if end == len(parts) and function is not None:
            module.fft_causal_conv1d = function
        monkeypatch.setitem(sys.modules, module.__name__, module)


MODULES = {"cudnn": "cudnn.ops", "subquadratic-ops": "subquadratic_ops_torch.fft_causal_conv1d"}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_flashfftconv_is_called_as_it_is_documented(
    mode: str, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashfftconv", flashfftconv())
    found = measure_row(case(mode, gated=gated), host(), contenders=["flashfftconv"], seed=1, seconds=0.01)
    entry = found["contenders"]["flashfftconv"]
    assert entry["status"] == "ok", entry
    odd = measure_row(case(mode, 1000), host(), contenders=["flashfftconv"], seed=1, seconds=0.01)
    assert "powers of two from 256" in odd["contenders"]["flashfftconv"]["reason"]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_causal_peers_are_called_as_they_are_documented(
    name: str, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, MODULES[name], fft_causal_conv1d)
    found = measure_row(case(length=300, gated=gated), host(), contenders=[name], seed=1, seconds=0.01)
    assert found["contenders"][name]["status"] == "ok", found["contenders"][name]
    assert "filter rounded to bf16" in found["contenders"][name]["note"]
    other = measure_row(case("circular"), host(), contenders=[name], seed=1, seconds=0.01)
    assert other["contenders"][name]["reason"] == "causal convolutions only"
    install(monkeypatch, MODULES[name], lambda x, weight: fft_causal_conv1d(x, weight.flip(-1)))
    wrong = measure_row(case(), host(), contenders=[name], seed=1, seconds=0.01)
    assert wrong["contenders"][name]["status"] == "wrong"


def test_a_peer_that_is_not_there_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cudnn", None)  # a frontend without ops
    install(monkeypatch, "subquadratic_ops_torch.fft_causal_conv1d", None)
    monkeypatch.setitem(sys.modules, "flashfftconv", None)
    names = ["flashfftconv", "subquadratic-ops", "cudnn"]
    found = measure_row(case(), host(), contenders=names, seed=1, seconds=0.01)["contenders"]
    assert {c["status"] for c in found.values()} == {"unavailable"}
    assert found["flashfftconv"]["reason"] == "not installed"
    assert "has no fft_causal_conv1d: an older release" in found["subquadratic-ops"]["reason"]
    assert "cannot be imported: No module named 'cudnn.ops'" in found["cudnn"]["reason"]


@pytest.mark.parametrize("channels", [8, 64, 128])
def test_attention_is_held_against_attention(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of = case(channels=channels, length=100)
    found = measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"]
    assert found["attention"]["status"] == "ok"
    assert found["attention"]["note"].startswith(
        "1 heads of 8" if channels == 8 else f"{channels // 64} heads"
    )
    from torch.nn.functional import scaled_dot_product_attention as right_one

    for wrong in (
        lambda q, k, v, is_causal: right_one(q, k, v),  # sees the future
        lambda q, k, v, is_causal: torch.zeros_like(q),
        lambda q, k, v, is_causal: right_one(k, q, v, is_causal=True),
    ):
        monkeypatch.setattr("fftgen.bench.attention.scaled_dot_product_attention", wrong)
        entry = measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"][
            "attention"
        ]
        assert entry["status"] == "wrong", entry


def test_attention_takes_part_where_it_can_be_compared() -> None:
    reasons = [
        measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"]["attention"][
            "reason"
        ]
        for of in (
            case(gated=False),
            case("circular"),
            case(channels=12),
            case(length=32768, batch=1),
        )
    ]
    assert "gated causal" in reasons[0]
    assert "gated causal" in reasons[1]
    assert "12 channels are no whole number of heads" in reasons[2]
    assert "up to length 16384" in reasons[3]

"""Backward rows of the bench: what they ask, who is right, what is timed, and what memory is taken of."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gradients as by_autograd
import pytest
import torch
from bench_kit import CPU, Script, case, contender, host
from test_bench_peers import fft_causal_conv1d, flashfftconv, install
from torch import Tensor

from fftgen.bench import gradient_reference, measure, row
from fftgen.bench.backend import HostBackend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import real_fft
from fftgen.bench.inputs import Inputs, draw
from fftgen.bench.measure import PASSES, interleave
from fftgen.bench.row import CONTENDERS, measure_row
from fftgen.bench.timer import FakeTimer
from fftgen.errors import InternalError


def backward(mode: str = "causal", length: int = 256, dtype: str = "bf16", **options: Any) -> Case:
    return case(mode, length, dtype, direction="backward", **options)


def measured(of: Case, *names: str, backend: Any = None) -> dict[str, Any]:
    found = measure_row(of, backend or host(), contenders=names, seed=2, seconds=0.01)
    contenders: dict[str, Any] = found["contenders"]
    return contenders


def right(x: Inputs, of: Case) -> Tensor:
    return real_fft(x.u, x.k, x.in_gate, x.out_gate, of.points)


# What the gradients must be.


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("mode", "length"), [("causal", 256), ("circular", 1000), ("circular", 7)])
def test_the_reference_is_the_gradient_of_the_definition(mode: str, length: int, gated: bool) -> None:
    of = backward(mode, length, gated=gated)
    x = draw(of, CPU, 3)
    assert x.v is not None
    found = gradient_reference.exact(of, x)
    assert set(found) == {"u", "k", *(("in_gate", "out_gate") if gated else ())}
    _, exact = by_autograd.exact(dict(x.arguments), x.v, mode=mode, length=length)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float64
        assert torch.allclose(gradient, exact[name], rtol=0, atol=1e-10 * float(exact[name].abs().max())), (
            name
        )


def test_the_reference_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    of = backward(channels=5)
    x = draw(of, CPU, 3)
    whole = gradient_reference.exact(of, x)
    monkeypatch.setattr(gradient_reference, "CHUNK", 2 * of.batch * of.points)  # two channels, two, one
    for name, gradient in gradient_reference.exact(of, x).items():
        assert torch.allclose(gradient, whole[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["u", "k"])
def test_a_wrong_reference_is_noticed(name: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gradient_reference._part

    def wrong(of: Case, x: Inputs, part: slice) -> dict[str, Tensor]:
        found = made(of, x, part)
        end = -1 if last else 0
        found[name][(end, end) if name == "u" else end] *= 1 + 1e-7
        return found

    monkeypatch.setattr(gradient_reference, "_part", wrong)
    with pytest.raises(InternalError, match=f"gradient of {name} differs from NumPy's by 1"):
        gradient_reference.exact(backward(), draw(backward(), CPU, 3))


def test_inputs_bring_a_cotangent_and_are_otherwise_those_of_forward_rows() -> None:
    ahead, back = draw(case(), CPU, 5), draw(backward(), CPU, 5)
    assert ahead.v is None
    assert back.v is not None
    assert (back.v.shape, back.v.dtype) == (back.u.shape, back.u.dtype)
    assert back.v.double().std() == pytest.approx(1, rel=0.1)
    assert not torch.equal(back.v, back.u)
    for name, x in ahead.arguments.items():
        assert torch.equal(x, back.arguments[name])
    assert back.nbytes == ahead.nbytes + 2 * back.v.numel()
    leaves = back.leaves()
    for name, x in leaves.arguments.items():
        assert x.requires_grad
        assert x.data_ptr() == back.arguments[name].data_ptr()  # no second copy in memory
        assert not back.arguments[name].requires_grad


# Who takes part.


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_everyone_with_gradients_is_right_and_timed(mode: str, gated: bool, dtype: str) -> None:
    compiled = (mode, gated, dtype) == ("causal", True, "bf16")  # seconds for every shape
    names = [n for n in CONTENDERS if compiled or not n.endswith("compiled")]
    found = measured(backward(mode, 256, dtype, gated=gated), *names)
    assert list(found) == names
    here = {"fftgen", "torch-complex", "torch-real", *(n for n in names if n.endswith("compiled"))}
    for name, entry in found.items():
        if name in here or (name == "attention" and gated and mode == "causal"):
            assert entry["status"] == "ok", (name, entry)
            asked = "qkv" if name == "attention" else ["u", "k", *(("in_gate", "out_gate") if gated else ())]
            assert set(entry["gradients"]) == set(asked)
            for figures in entry["gradients"].values():
                assert 0 < figures["error"] <= figures["error_bound"]
            assert entry["error"] in [f["error"] for f in entry["gradients"].values()]
            assert entry["samples"] >= 10
        else:
            assert entry["status"] == "unavailable", (name, entry)
            assert "median_s" not in entry
    assert "passes no gradients" in found["fftgen-prepared"]["reason"]
    assert "end at the spectrum" in found["torch-real-prepared"]["reason"]
    ours, theirs = found["fftgen"]["gradients"], found["torch-real"]["gradients"]
    assert all(ours[name]["error_bound"] < theirs[name]["error_bound"] for name in ours)
    how = "all gradients: backward " if mode == "causal" else "gradient of the filter: "
    assert how in found["fftgen"]["note"]


def test_a_row_says_that_it_is_backward() -> None:
    of = backward(batch=2)
    found = measure_row(of, host(), contenders=["fftgen"], seed=9, seconds=0.01)
    assert (found["direction"], found["timed"]) == ("backward", "backward pass")
    assert found["memory_of"] == "training step"
    assert found["floor_bytes"] == 14 * of.elements
    assert found["input_bytes"] == 4 * 2 * of.elements + 4 * of.channels * of.length
    ahead = measure_row(case(), host(), contenders=["fftgen"], seed=9, seconds=0.01)
    assert (ahead["timed"], ahead["memory_of"]) == ("forward pass", "forward pass")


class Spoiled(torch.autograd.Function):
    """The result as it is, and gradients that something was done to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return ctx.change(given[0].clone()), None


def one_row(gradient: Tensor) -> Tensor:
    gradient[-1] *= 1.1
    return gradient


def not_a_number(gradient: Tensor) -> Tensor:
    gradient[..., -1] = math.nan
    return gradient


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", ["u", "k", "in_gate", "out_gate"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.zeros_like, "is not that of the convolution"),
        (one_row, "is not that of the convolution"),
        (lambda g: g.flip(-1), "is not that of the convolution"),
        (not_a_number, "is not finite"),
    ],
)
def test_a_wrong_gradient_of_any_argument_is_told_and_not_timed(
    change: Callable[[Tensor], Tensor],
    said: str,
    name: str,
    ours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoiled(x: Inputs, of: Case) -> Tensor:
        given = {**x.arguments, name: Spoiled.apply(x.arguments[name], change)}
        return real_fft(given["u"], given["k"], given["in_gate"], given["out_gate"], of.points)

    monkeypatch.setitem(row.CONTENDERS, "liar", contender("liar", spoiled, ours=ours))
    found = measured(backward(), "liar", "torch-real")
    entry = found["liar"]
    assert entry["status"] == "wrong", entry
    assert entry["reason"] == f"the gradient of {name} {said}"
    assert "median_s" not in entry
    assert found["torch-real"]["status"] == "ok"


def test_a_sum_over_the_batch_that_leaves_a_row_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(x: Inputs, of: Case) -> Tensor:
        first = real_fft(x.u[:1], x.k, x.in_gate[:1], x.out_gate[:1], of.points)  # type: ignore[index]
        rest = real_fft(x.u[1:], x.k.detach(), x.in_gate[1:], x.out_gate[1:], of.points)  # type: ignore[index]
        return torch.cat([first, rest])

    monkeypatch.setitem(row.CONTENDERS, "one", contender("one", forgetful))
    entry = measured(backward(), "one")["one"]
    assert (entry["status"], entry["reason"]) == (
        "wrong",
        "the gradient of k is not that of the convolution",
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, of: right(x, of).detach(), "autograd finds nothing recorded"),
        (lambda x, of: right(Inputs(x.u, x.k.detach(), x.in_gate, x.out_gate), of), r"no gradient of k$"),
    ],
)
def test_who_has_no_gradients_is_unavailable_with_the_reason(
    function: Callable[[Inputs, Case], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(row.CONTENDERS, "one", contender("one", function))
    entry = measured(backward(), "one")["one"]
    assert entry["status"] == "unavailable"
    assert re.search(reason, entry["reason"])


def test_compiled_code_that_gives_its_buffers_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Donated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> Tensor:
            raise RuntimeError("compiled with donated buffers, requires retain_graph=False.\nmore lines")

    def giving(x: Inputs, of: Case) -> Tensor:
        y: Tensor = Donated.apply(right(x, of))
        return y

    for compiled, status in ((True, "unavailable"), (False, "failed")):
        monkeypatch.setitem(row.CONTENDERS, "one", contender("one", giving, compiled=compiled))
        entry = measured(backward(), "one")["one"]
        assert entry["status"] == status
        assert entry["reason"].endswith("requires retain_graph=False.")
    monkeypatch.setitem(row.CONTENDERS, "one", contender("one", giving, compiled=True))
    assert "not timed alone" in measured(backward(), "one")["one"]["reason"]


@pytest.mark.parametrize("gated", [True, False])
def test_peers_are_asked_for_their_gradients(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashfftconv", flashfftconv())
    install(monkeypatch, "cudnn.ops", fft_causal_conv1d)
    install(
        monkeypatch, "subquadratic_ops_torch.fft_causal_conv1d", lambda x, w: fft_causal_conv1d(x, w).detach()
    )
    found = measured(backward(gated=gated), "flashfftconv", "cudnn", "subquadratic-ops")
    assert found["flashfftconv"]["status"] == found["cudnn"]["status"] == "ok", found
    other = found["subquadratic-ops"]
    if gated:  # the gates are products of their own, which autograd knows
        assert (other["status"], other["reason"]) == ("unavailable", "it has no gradient of u, k, in_gate")
    else:
        assert "nothing recorded" in other["reason"]


def test_gradients_of_attention_are_held_to_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    of = backward(channels=128, length=100)
    assert measured(of, "attention")["attention"]["status"] == "ok"
    from torch.nn.functional import scaled_dot_product_attention as right_one

    def wrong(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return right_one(q, Spoiled.apply(k, torch.zeros_like), v, is_causal=True)

    for function, name in ((wrong, "k"), (lambda q, k, v, is_causal: right_one(q, k, v), "")):
        monkeypatch.setattr("fftgen.bench.attention.scaled_dot_product_attention", function)
        entry = measured(of, "attention")["attention"]
        assert entry["status"] == "wrong", entry
        assert name in entry["reason"]


def test_gradients_of_attention_come_in_parts_of_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    from fftgen.bench import attention

    q, k, v, dy = (torch.randn(50, 8, dtype=torch.float64) for _ in range(4))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    exact = torch.autograd.grad(y, (q, k, v), dy)
    for size in (7, 50, 1000):
        monkeypatch.setattr(attention, "QUERIES", size)
        found = attention._exact_gradients(q.detach(), k.detach(), v.detach(), dy)
        for one, other in zip(found, exact, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


# What is timed, and when.


def test_only_the_backward_pass_is_timed_and_memory_is_that_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward calls happen outside the timer; what it times are gradients; peak memory sees both passes."""
    events: list[str] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            events.append("forward")
            return y.clone()

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> Tensor:
            events.append("backward")
            return given[0]

    class Watching(HostBackend):
        def peak_bytes(self, call: Callable[[], object]) -> int | None:
            events.clear()
            kept = call()
            assert events == ["forward", "backward"]
            assert isinstance(kept, tuple)
            assert len(kept) == 5  # y, and four gradients
            return 4711

    class Timing(FakeTimer):
        def time(self, calls: Sequence[Callable[[], object]]) -> list[float]:
            events.clear()
            found = super().time(calls)
            assert events == ["backward"] * len(calls)
            return found

    def watched(x: Inputs, of: Case) -> Tensor:
        y: Tensor = Watched.apply(right(x, of))
        return y

    monkeypatch.setitem(row.CONTENDERS, "one", contender("one", watched))
    entry = measured(backward(), "one", backend=Watching(Timing()))["one"]
    assert (entry["status"], entry["peak_bytes"]) == ("ok", 4711), entry
    assert entry["samples"] >= 10


def test_memory_is_poisoned_for_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(row, "poison", lambda *like: events.append([tuple(x.shape) for x in like]))
    measured(backward(), "torch-real")
    assert events == [[(3, 8, 256), (8, 256), (3, 8, 256), (3, 8, 256)]]


class Standing:
    """A context that counts itself and what stands beside it."""

    now = 0
    most = 0

    def __enter__(self) -> None:
        Standing.now += 1
        Standing.most = max(Standing.most, Standing.now)

    def __exit__(self, *_: object) -> None:
        Standing.now -= 1


def test_of_all_contenders_one_stands_at_a_time_and_its_results_with_it() -> None:
    alive: set[str] = set()

    class Result:
        def __init__(self, name: str) -> None:
            self.name = name
            assert Standing.now == 1
            assert alive <= {name}
            alive.add(name)

        def __del__(self) -> None:
            alive.discard(self.name)

    def call(name: str) -> Callable[[], object]:
        return lambda: Result(name)

    names = ("a", "b")
    script = Script()
    script.seconds = 0.02
    Standing.most = 0
    found, broken = interleave(script, {n: [call(n)] for n in names}, 0.4, dict.fromkeys(names, Standing))
    assert not broken
    assert (Standing.now, Standing.most) == (0, 1)
    assert not alive
    assert all(t.samples == PASSES * 10 for t in found.values())


def test_the_first_call_of_a_turn_is_no_sample() -> None:
    """It finds the allocator as another contender left it."""
    script = Script()
    fresh = False

    class Turn:
        def __enter__(self) -> None:
            nonlocal fresh
            fresh = True

        def __exit__(self, *_: object) -> None:
            pass

    def call() -> None:
        nonlocal fresh
        script.seconds = 1.0 if fresh else 0.01
        fresh = False

    found, _ = interleave(script, {"one": [call]}, 0.4, {"one": Turn})
    assert (found["one"].median, found["one"].high, found["one"].samples) == (0.01, 0.01, 2 * 20)


@pytest.mark.parametrize("at", [1, 3])
def test_who_breaks_while_it_opens_takes_no_other_with_it(at: int) -> None:
    opened = 0

    class Broken:
        def __enter__(self) -> None:
            nonlocal opened
            opened += 1
            if opened >= at:
                raise torch.OutOfMemoryError("full")

        def __exit__(self, *_: object) -> None:
            pass

    calls = {"bad": [lambda: None], "good": [lambda: None]}
    found, broken = interleave(FakeTimer(), calls, 0.2, {"bad": Broken})
    assert list(found) == ["good"]
    assert isinstance(broken["bad"], torch.OutOfMemoryError)
    assert found["good"].samples >= PASSES * measure.FEWEST

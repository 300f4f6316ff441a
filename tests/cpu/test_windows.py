"""Windows of long signals: which steps they hold, whose results they make, and when they are taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import gradients
import numpy as np
import pytest
import torch
from command_line import answer, fftgen
from fake_gpu import seems_on_an_h200
from torch import Tensor

import fftgen as package
from fftgen import conv as conv_module
from fftgen import filter_gradient, op, windowed  # noqa: F401  (op registers the operators)
from fftgen.errors import InputError
from fftgen.kept import as_it_is
from fftgen.planner import search
from fftgen.planner import windows as window_planner
from fftgen.planner.plan import Plan
from fftgen.planner.windows import (
    LEAST_OF_GRADIENTS,
    LENGTHS,
    PIECE,
    WORTH,
    Cut,
    Windows,
    cuts,
    of,
    possible,
    windows,
)
from fftgen.problem import Problem
from fftgen.providers import JustInTime


def drawn(rng: np.random.Generator) -> tuple[Windows, int, int, int, int]:
    """Windows that fit, taps of both filters, batch and steps."""
    while True:
        length = 16 * int(rng.integers(1, 20))
        ahead, back = (int(rng.integers(0, length)) for _ in range(2))
        found = of(length, ahead, back) if ahead or back else None
        if found is not None:
            return found, ahead, back, int(rng.integers(1, 6)), int(rng.integers(1, 8 * length))


def of_cut(cut: Cut) -> list[tuple[range, range]]:
    """What each window of a cut holds, and the results that it makes."""
    return [
        (
            range(cut.start + i * cut.step, cut.start + i * cut.step + cut.steps),
            range(cut.at + i * cut.step, cut.at + i * cut.step + cut.results),
        )
        for i in range(cut.number)
    ]


@pytest.mark.drawn(10)
def test_every_result_is_made_once_from_all_that_it_takes(rng: np.random.Generator) -> None:
    for _ in range(50):
        found, ahead, back, batch, steps = drawn(rng)
        made = np.zeros((batch, steps), int)
        for number, cut in enumerate(cuts(found, batch, steps)):
            rows = range(batch) if cut.row is None else [cut.row]
            for held, results in of_cut(cut):
                assert 0 < len(held) <= found.length
                assert len(results) <= len(held) - (found.lead if number else 0) or held.stop == steps
                assert held.start == (results.start - found.lead if number else 0)
                made[np.ix_(list(rows), list(results))] += 1
                needed = range(
                    max(0, results.start - max(0, ahead - 1)), min(steps, results.stop + max(0, back - 1))
                )
                assert needed.start >= held.start
                assert needed.stop <= held.stop
                assert cut.start % PIECE == cut.at % PIECE == cut.step % PIECE == 0
        assert (made == 1).all()


def test_windows_of_a_row_go_together_where_rows_are_fewer() -> None:
    found = of(1024, 100, 1)
    assert found == Windows(length=1024, lead=104, step=920, first=1024)
    assert len(list(cuts(found, 1, 100_000))) == 3  # the first window, all full ones, and what is left
    many = list(cuts(found, 1000, 100_000))
    assert len(many) == found.count(100_000)
    assert all(cut.row is None for cut in many)


def test_filters_that_leave_no_results_fit_no_window() -> None:
    assert of(1024, 1016, 0) is not None
    assert of(1024, 1018, 0) is None  # its lead is all of it
    assert of(1024, 0, 1017) is not None
    assert of(1024, 0, 1018) is None
    assert of(1024, 600, 600) is None
    assert possible(2 * LENGTHS[0], 16, 0)
    assert not possible(2 * LENGTHS[0] - 1, 16, 0)
    assert not possible(1 << 22, LENGTHS[-1], LENGTHS[-1])


class Reference:
    """What windowed.py asks of kernels, by the definition, in float64; as many outputs as gates."""

    def __init__(self) -> None:
        self.calls = 0

    def first_results(
        self,
        launcher: Any,
        u: Tensor,
        planes: Any,
        scale: Any,
        in_gate: Tensor | None,
        gates: tuple[Tensor | None, ...],
        into: tuple[Tensor, ...],
        address: Any,
    ) -> None:
        self.calls += 1
        k, k_rev, skip = planes
        y = gradients.composite(u, k, k_rev, in_gate, None, skip, mode="causal", length=u.shape[-1])
        for gate, to in zip(gates, into, strict=True):
            first = y[..., : to.shape[-1]]
            to.copy_(first if gate is None else first * gate)


@pytest.mark.drawn(10)
@pytest.mark.parametrize("outputs", [1, 2])
def test_windows_of_a_call_make_what_one_transform_makes(rng: np.random.Generator, outputs: int) -> None:
    """Views, moved filters and what is written where, with the definition for kernels."""

    def noise(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    found, ahead, back, batch, steps = drawn(rng)
    k, k_rev = (noise(2, n) if n else None for n in (ahead, back))
    skip = noise(2) if rng.integers(2) else None
    u = noise(batch, 2, steps)
    in_gate = noise(batch, 2, steps) if rng.integers(2) else None
    gates = tuple(noise(batch, 2, steps) if outputs == 2 or rng.integers(2) else None for _ in range(outputs))
    # As kernels have them: of window number 0 as they are, of all others moved (fp32).
    r = windowed.moved(found, k, k_rev, skip).double()
    spectra: Any = (((k, k_rev, skip), None), ((None, r, None), None))
    kernels: Any = Reference()
    launcher: Any = None
    results = windowed.convolve(found, kernels, launcher, u, spectra, in_gate, gates)
    for gate, y in zip(gates, results, strict=True):
        exact = gradients.composite(u, k, k_rev, in_gate, gate, skip, mode="causal", length=steps)
        torch.testing.assert_close(y, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    assert kernels.calls == len(list(cuts(found, batch, steps)))


def planned(problem: Problem) -> Plan:
    return search.plan(problem, "sm_90")


def taken(length: int, ahead: int, shape: tuple[int, int], **given: Any) -> Windows | None:
    plan = planned(Problem("causal", length, "bf16"))
    return windows(plan, (*shape, length), ahead, 0, given.pop("planned", planned), **given)


def test_long_signals_with_short_filters_are_cut() -> None:
    found = taken(1_048_576, 128, (8, 64))
    assert found is not None
    assert found.length in LENGTHS
    assert taken(1_048_576, 128, (8, 64), least=LEAST_OF_GRADIENTS).length >= LEAST_OF_GRADIENTS
    longer = taken(1_048_576, 4096, (8, 64))
    assert longer is not None
    assert longer.length > found.length  # less of it is overlap


def test_what_one_transform_does_as_well_is_not_cut() -> None:
    assert taken(1_048_576, 500_000, (8, 64)) is None  # no window holds so many taps
    assert taken(4096, 128, (8, 64)) is None  # goes through memory once as it is
    assert taken(65_536, 128, (64, 1)) is None  # few rows: the host would take longer for its calls
    assert taken(65_536, 128, (64, 256)) is not None
    assert taken(1_048_576, 4096, (8, 64), worth=0.1) is None


def test_windows_are_of_kernels_that_there_are() -> None:
    def only(length: int) -> Any:
        return lambda p: planned(p) if p.length == length else None

    assert taken(1_048_576, 128, (8, 64), planned=only(8192)) == of(8192, 128, 0)
    assert taken(1_048_576, 128, (8, 64), planned=lambda p: None) is None
    assert WORTH < 1


def test_the_plan_says_how_a_shorter_filter_goes() -> None:
    told = answer("plan", 1_048_576, "--causal", "--taps", 4096)["windows"]
    assert told["length"] == 16_384
    assert 0.3 < told["of_the_time"] < 0.6
    text = fftgen("plan", 1_048_576, "--causal", "--taps", 4096).stdout
    assert "filters of 4096 taps: 85 windows of 16384 points, 12288 results each" in text
    assert answer("plan", 4096, "--causal", "--taps", 10)["windows"] is None
    assert "one transform of everything" in fftgen("plan", 4096, "--taps", 10).stdout
    assert "windows" not in answer("plan", 4096, "--causal")


# --- calls on a GPU that is not there


LENGTH, STEPS = 65_536, 40_000


class Kernels:
    """What conv.py asks of loaded kernels, by the definition; ``seen`` says what was asked."""

    def __init__(self, problem: Problem, seen: list[str]) -> None:
        self.problem, self.seen = problem, seen
        self.executable = SimpleNamespace(plan=planned(problem))

    def windowed(
        self,
        found: Windows,
        u: Tensor,
        k: Any,
        k_rev: Any,
        in_gate: Any,
        gates: Any,
        skip: Any,
        twin: Any = None,
    ) -> tuple[Tensor, ...]:
        assert found.length == self.problem.length
        self.seen.append(f"{len(gates)} by windows of {found.length}")
        r = windowed.moved(found, k, k_rev, skip)
        spectra: Any = (((k, k_rev, skip), None), ((None, r, None), None))
        kernels: Any = Reference()
        launcher: Any = None
        return windowed.convolve(found, kernels, launcher, u, spectra, in_gate, gates)

    def convolve(self, u: Tensor, *given: Any) -> tuple[Tensor, None]:
        self.seen.append(f"1 by {self.problem.length}")
        y = gradients.composite(u, *given, mode="causal", length=u.shape[-1])
        return y.to(u.dtype), None


def lags(_: Any, __: Any, ___: Any, u: Tensor, v: Tensor, *gates: Any, taps: int, address: Any) -> Tensor:
    """gradient.correlate_input, by the definition."""
    x, y = (s.double() if g is None else s.double() * g.double() for s, g in zip((u, v), gates, strict=True))
    n = 2 * max(x.shape[-1], y.shape[-1])
    product = torch.fft.rfft(x, n=n).conj() * torch.fft.rfft(y, n=n)
    return torch.fft.irfft(product.sum(0), n=n)[..., :taps].float()


class OnGpu(NamedTuple):
    conv: package.Conv
    seen: list[str]
    capturing: list[bool]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    """A convolution of 65 536 steps whose calls on CPU tensors seem to be on an H200."""
    seen: list[str] = []
    capturing = seems_on_an_h200(monkeypatch)
    monkeypatch.setattr(window_planner, "HOST_SECONDS", 0.0)
    monkeypatch.setattr(windowed, "plain", lags)
    monkeypatch.setattr(filter_gradient, "stream_of", lambda _: 0)
    handle = f"causal-{LENGTH}-bf16"
    conv = conv_module.Conv(Problem("causal", LENGTH, "bf16"), JustInTime(), handle)
    monkeypatch.setitem(conv_module._registry, handle, conv)

    def kernels(problem: Problem, _: torch.device) -> Any:
        return Kernels(problem, seen)

    def of_gradient(problem: Problem, _: torch.device) -> Any:
        module = SimpleNamespace(on=lambda _: None)
        return SimpleNamespace(gradient=problem, tables=None, module=module)

    by_windows = windowed.correlate_input

    def correlate_windows(found: Any, gradient: Any, *given: Any, taps: int) -> Tensor:
        seen.append(f"filter by {gradient.length}")
        return by_windows(found, gradient, *given, taps=taps)

    def correlate_whole(gradient: Any, *given: Any, taps: int, period: int) -> Tensor:
        seen.append(f"filter, 1 by {gradient.length}")
        assert period == 0
        return lags(None, *given, taps=taps, address=None)

    monkeypatch.setattr(conv._loaded, "_load", kernels)
    monkeypatch.setattr(conv._twins, "_load", kernels)
    monkeypatch.setattr(conv._gradients, "_load", of_gradient)
    monkeypatch.setattr(windowed, "correlate_input", correlate_windows)
    monkeypatch.setattr(filter_gradient, "correlate_input", correlate_whole)
    monkeypatch.setattr(conv, "backward_on", lambda *_: pytest.fail("one pass over the whole was asked for"))
    return OnGpu(conv, seen, capturing)


def test_calls_and_their_gradients_go_window_by_window(gpu: OnGpu, rng: np.random.Generator) -> None:
    def noise(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    u, in_gate, out_gate, v = (noise(2, 2, STEPS).bfloat16() for _ in range(4))
    k, k_rev, skip = noise(2, 100).float() / 10, noise(2, 9).float() / 10, noise(2).float()
    given = [u, k, k_rev, in_gate, out_gate, skip]
    names = ("u", "k", "k_rev", "in_gate", "out_gate", "skip")
    for x in given:
        x.requires_grad_()
    with torch.no_grad():
        plain = gpu.conv(**dict(zip(names, given, strict=True)))
    assert len(gpu.seen) == 1
    y = gpu.conv(**dict(zip(names, given, strict=True)))
    y.backward(v)
    assert y.shape == u.shape
    assert all("window" in what or what in ("filter by 2048", "filter by 4096") for what in gpu.seen)
    assert sum(what.startswith("2 by windows") for what in gpu.seen) == 1  # of u and of its gate
    assert sum(what.startswith("filter") for what in gpu.seen) == 2  # of k and of k_rev

    wide = [x.detach().double().requires_grad_() for x in given]
    exact = gradients.composite(*wide, mode="causal", length=STEPS)
    exact.backward(v.double())
    made = [(plain, exact), (y, exact)]
    made += [(x.grad, w.grad) for x, w in zip(given, wide, strict=True) if x.grad is not None]
    assert len(made) == 8
    for mine, ref in made:
        assert torch.linalg.norm(mine.double() - ref) < 4e-3 * torch.linalg.norm(ref)


def test_windows_of_a_call_are_not_those_of_its_filters_gradient(
    gpu: OnGpu, rng: np.random.Generator
) -> None:
    """Which has kernels of longer windows only; shapes and taps are the same, and were asked for before."""
    u, v = (torch.from_numpy(rng.standard_normal((2, 2, STEPS))).bfloat16() for _ in range(2))
    k = torch.from_numpy(rng.standard_normal((2, 9))).float().requires_grad_()
    gpu.conv(u, k).backward(v)
    call, of_filter = gpu.seen
    assert call == "1 by windows of 1024"
    assert int(of_filter.removeprefix("filter by ")) >= LEAST_OF_GRADIENTS


@pytest.mark.parametrize(
    ("steps", "taps", "asked"),
    [
        (4096, 4096, ("causal", 4096, 0)),
        (4097, 8, ("circular", 8192, 8192)),
        (8192, 8192, ("circular", 8192, 8192)),
    ],
)
def test_the_gradient_of_a_padded_circles_filter_has_no_period(
    steps: int, taps: int, asked: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seems_on_an_h200(monkeypatch)
    monkeypatch.setattr(filter_gradient, "stream_of", lambda _: 0)
    conv = conv_module.Conv(Problem("circular", 8192, "bf16"), JustInTime(), "test")
    seen: list[tuple[str, int, int]] = []

    def of_gradient(problem: Problem, _: torch.device) -> Any:
        module = SimpleNamespace(on=lambda _: None)
        return SimpleNamespace(gradient=problem, tables=None, module=module)

    def correlate(problem: Problem, *given: Any, taps: int, period: int) -> Tensor:
        seen.append((problem.mode, problem.length, period))
        return torch.zeros(2, taps)

    monkeypatch.setattr(conv._gradients, "_load", of_gradient)
    monkeypatch.setattr(filter_gradient, "correlate_input", correlate)
    u = torch.zeros(1, 2, steps, dtype=torch.bfloat16)
    filter_gradient.on_gpu(conv, u, u, None, None, taps)
    assert seen == [asked]


def test_what_windows_do_not_pay_for_goes_as_a_whole(gpu: OnGpu, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((2, 2, STEPS))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, 39_000))).float()
    gpu.conv(u, k)
    gpu.conv(u[..., :1000], k[:, :50])
    assert gpu.seen == [f"1 by {LENGTH}"] * 2


def test_a_short_filter_is_prepared_as_it_is(gpu: OnGpu, rng: np.random.Generator) -> None:
    """Its calls go by windows; that of one transform would take them to the kernels of the whole."""
    u = torch.from_numpy(rng.standard_normal((2, 2, STEPS))).bfloat16()
    k, k_rev = (torch.from_numpy(rng.standard_normal((2, n))).float() for n in (100, 30))
    one, both = gpu.conv.prepare(k), gpu.conv.prepare(k, k_rev=k_rev)
    assert one.digest == both.digest
    assert as_it_is(one.digest)
    assert one.planes.shape == (2, 1, 100)
    assert gpu.seen == []  # nothing was transformed
    assert torch.equal(gpu.conv(u, one, skip=k[:, 0]), gpu.conv(u, k, skip=k[:, 0]))
    assert torch.equal(gpu.conv(u, both), gpu.conv(u, k, k_rev=k_rev))
    assert all("windows" in what for what in gpu.seen)
    k.zero_()  # the copy is what counts
    assert torch.equal(one.planes[:, 0], both.planes[:, 0])
    assert float(one.planes.abs().max()) > 0
    with pytest.raises(InputError, match="channels"):
        gpu.conv(u[:, :1], one)
    with pytest.raises(InputError, match="u must be"):
        gpu.conv(u[0, 0, 0], one)


def test_a_long_filter_is_transformed(gpu: OnGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        Kernels, "spectrum", lambda self, *_: asked.append(self.problem.length), raising=False
    )
    gpu.conv.prepare(torch.ones(2, 39_000))
    gpu.conv.prepare(torch.ones(2, 100), length=1000)
    assert asked == [LENGTH, LENGTH]


def test_while_a_graph_is_captured_what_is_loaded_serves(gpu: OnGpu, rng: np.random.Generator) -> None:
    """Kernels of windows cannot be loaded then; those of the whole give the same results."""
    u = torch.from_numpy(rng.standard_normal((2, 2, STEPS))).bfloat16()
    k = torch.from_numpy(rng.standard_normal((2, 64))).float()
    gpu.conv.warmup()
    gpu.capturing[0] = True
    gpu.conv(u, k)
    gpu.capturing[0] = False
    gpu.conv(u, k)  # that it went otherwise while a graph was captured is not remembered
    gpu.capturing[0] = True
    gpu.conv(u[..., :-16], k)  # they are there now
    whole, *parts = gpu.seen
    assert whole == f"1 by {LENGTH}"
    assert len(parts) == 2
    assert all("windows" in part for part in parts)

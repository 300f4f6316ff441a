"""What a call is known again by: shapes, strides and alignment, never one of them too few."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fftgen import gradient
from fftgen.errors import InputError
from fftgen.execute import Executable
from fftgen.gradient import Needed
from fftgen.planner import search, twins
from fftgen.planner.gradient import backward
from fftgen.planner.gradient import gradient as gradient_of
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem

STEPS = 1000
PROBLEM = Problem("causal", 1024, "bf16")
Planned = tuple[Executable, tuple[Tensor, Tensor]]


class Recorder:
    """A launcher that runs nothing: what it was handed, and ``at``, where every tensor is said to be."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        self.calls.append((entry, grid, block, shared_bytes, params, cluster))

    @staticmethod
    def at(name: str, x: Tensor) -> int:
        return 0


def aligned() -> Tensor:
    return torch.zeros(3, 2, STEPS, dtype=torch.bfloat16)


def off_by_one() -> Tensor:
    return torch.zeros(3 * 2 * STEPS + 1, dtype=torch.bfloat16)[1:].view(3, 2, STEPS)


def channels_first() -> Tensor:
    return torch.zeros(2, 3, STEPS, dtype=torch.bfloat16).transpose(0, 1)


LAID = (aligned, off_by_one, channels_first)


def ways(count: int) -> Iterator[tuple[Tensor, ...]]:
    """So many tensors, each laid out in every way."""
    for made in itertools.product(LAID, repeat=count):
        yield tuple(make() for make in made)


def assert_known_again(calls: list[Callable[[Recorder], object]], forget: Callable[[], None]) -> None:
    """Calls after each other hand kernels what they hand them where nothing is known."""

    def handed(call: Callable[[Recorder], object]) -> list[tuple[object, ...]]:
        recorder = Recorder()
        call(recorder)
        return recorder.calls

    together = [handed(call) for call in (*calls, *calls)]
    alone = []
    for call in calls:
        forget()
        alone.append(handed(call))
    assert together == [*alone, *alone]
    assert len({str(x) for x in alone}) > 1  # or nothing would have to be told apart


@pytest.fixture
def planned() -> Planned:
    """A plan that nothing has called, and the spectrum and the scale that its calls take."""
    plan = search.plan(PROBLEM, "sm_90")
    planes, scale = torch.zeros(2, 2, plan.transform, dtype=torch.float16), torch.zeros(2, 2)
    return Executable(plan, torch.zeros(16, dtype=torch.uint8)), (planes, scale)


def fewer(x: Tensor | None) -> Tensor | None:
    """Some rows, and some steps of each: a view has the strides of the whole."""
    return None if x is None else x[:2, :, :-8]


def with_fewer(given: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for tensors in given:
        yield tensors
        yield tuple(map(fewer, tensors))


def gated() -> Iterator[tuple[Tensor | None, ...]]:
    """A signal and two gates, each laid out in every way, or absent."""
    for signal, *gates in ways(3):
        for there in itertools.product((True, False), repeat=2):
            yield signal, *(gate if need else None for gate, need in zip(gates, there, strict=True))


def test_calls_of_a_convolution_are_told_apart(planned: Planned) -> None:
    executable, spectrum = planned

    def call(u: Tensor, in_gate: Tensor | None, gate: Tensor | None) -> Callable[[Recorder], object]:
        return lambda recorder: executable(recorder, u, *spectrum, in_gate, gate, address=Recorder.at)

    assert_known_again([call(*x) for x in with_fewer(gated())], executable._planned.clear)


def test_calls_with_two_results_are_told_apart(planned: Planned) -> None:
    executable, spectrum = planned
    twin = twins.twin(executable.plan)
    assert twin is not None
    both = Executable(twin, executable.tables)

    def call(u: Tensor, in_gate: Tensor, *gates: Any) -> Callable[[Recorder], object]:
        return lambda recorder: both.both(recorder, u, *spectrum, in_gate, gates, address=Recorder.at)

    assert_known_again([call(*x) for x in with_fewer(ways(4))], both._planned.clear)


def test_calls_of_windows_are_told_apart(planned: Planned) -> None:
    """By how many results they write, too, and where to: into views of what is longer."""
    executable, spectrum = planned

    def call(u: Tensor, whole: Tensor, results: int) -> Callable[[Recorder], object]:
        into = (whole[..., :results],)
        return lambda recorder: executable.first_results(
            recorder, u, *spectrum, None, (None,), into, address=Recorder.at
        )

    calls = [call(u, whole, n) for u, whole in ways(2) for n in (STEPS, STEPS - 8)]
    assert_known_again(calls, executable._planned.clear)


def test_calls_of_gradients_are_told_apart() -> None:
    layouts = [backward(Problem("causal", length, "bf16"), "sm_90") for length in (1024, 4096)]
    block = torch.zeros(16, dtype=torch.uint8)
    planes, scale = torch.zeros(2, 2, 4096, dtype=torch.float16), torch.zeros(2, 2)

    def call(
        found: Gradient | None, needed: Needed, u: Tensor, v: Tensor, in_gate: Tensor
    ) -> Callable[[Recorder], object]:
        assert found is not None
        return lambda recorder: gradient.backward(
            found, block, recorder, u, v, planes, scale, in_gate, needed=needed, taps=7, address=Recorder.at
        )

    wanted = [Needed(*x) for x in itertools.product((False, True), repeat=2)][1:]
    calls = [call(found, needed, *x) for found in layouts for x in ways(3) for needed in wanted]
    assert_known_again(calls, gradient._planned.clear)


def test_gradients_of_filters_tell_the_lengths_of_signals_apart() -> None:
    """Views of one tensor have its strides, and the second signal may have more steps than the first."""
    found = gradient_of(Problem("causal", 4096, "bf16"), "sm_90")
    assert found.two_lengths
    u, v = (torch.zeros(2, 1, 4096, dtype=torch.bfloat16) for _ in range(2))
    block = torch.zeros(16, dtype=torch.uint8)

    def call(*steps: int) -> Callable[[Recorder], object]:
        given = u[..., : steps[0]], v[..., : steps[1]]
        return lambda recorder: gradient.correlate_input(
            found, block, recorder, *given, taps=7, address=Recorder.at
        )

    lengths = ((4080, 4096), (4080, 4088), (4080, 4080), (4072, 4080))
    assert_known_again([call(*steps) for steps in lengths], gradient._planned.clear)


def test_more_rows_than_a_launch_counts_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = torch.zeros(1, 1, 8, dtype=torch.bfloat16).expand(2**16, 2**15, 8)
    plan, found = search.plan(PROBLEM, "sm_90"), gradient_of(PROBLEM, "sm_90")
    block, recorder = torch.zeros(16, dtype=torch.uint8), Recorder()
    planes, scale = torch.zeros(1, dtype=torch.float16), torch.zeros(1)
    for name in ("empty", "empty_like", "zeros"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("memory was asked for"))
    with pytest.raises(InputError, match=r"rows exceed .*: split the batch"):
        Executable(plan, block)(recorder, many, planes, scale, address=Recorder.at)
    with pytest.raises(InputError, match=r"rows exceed .*: split the batch"):
        gradient.correlate_input(found, block, recorder, many, many, taps=7, address=Recorder.at)
    assert not recorder.calls

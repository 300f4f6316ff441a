"""Defects that users of fused long convolutions have met elsewhere (design 6.2), each held off by a test.

Gradients in eval mode, a causal layer that runs a circular transform, and 2 L taps are in test_nn.py and
test_citizen.py; tensors beyond 2**31 elements in tests/nvrtc/test_large_strides.py.
"""

from __future__ import annotations

import weakref
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from fake_gpu import Code, Driver, arguments, on_fake_gpu
from torch import Tensor

import fftgen
from fftgen import runtime
from fftgen.errors import ToolchainError
from fftgen.execute import Executable
from fftgen.gradient import Needed, correlate_input
from fftgen.gradient import backward as by_one_pass
from fftgen.loaded import Loaded
from fftgen.planner import search
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.twins import twin
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.targets import target as find_target


@pytest.fixture
def white(rng: np.random.Generator) -> Any:
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape))


@pytest.mark.parametrize("steps", [1, 3, 10, 31])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_reverse_taps_of_short_inputs_do_not_vanish(steps: int, mode: str, white: Any) -> None:
    """A reversed filter placed at the end of a padded one is cut away with it when the input is short."""
    conv = fftgen.get_conv(64, causal=mode == "causal")
    u, k, k_rev = white(2, 3, steps), white(3, 64), white(3, 64)
    y = conv(u, k, k_rev=k_rev)
    gradients.judge(y, gradients.definition(u, k, k_rev, mode=mode, length=64), 1e-13)
    alone = conv(u, torch.zeros_like(k), k_rev=k_rev)
    assert (alone != 0).all()
    gradients.judge(alone, gradients.definition(u, None, k_rev, mode=mode, length=64), 1e-13)


FORMS: dict[str, Any] = {
    "call": lambda u, k, d, a, b: fftgen.get_conv(64, causal=True)(u, k, skip=d, in_gate=a, out_gate=b),
    "circular": lambda u, k, d, a, b: fftgen.get_conv(64)(u, k, skip=d, in_gate=a, out_gate=b),
    "prepared": lambda u, k, d, a, b: fftgen.get_conv(64, causal=True)(
        u, fftgen.get_conv(64, causal=True).prepare(k), skip=d, in_gate=a, out_gate=b),
    "functional": lambda u, k, d, a, b: fftgen.fftconv(u, k, skip=d, in_gate=a, out_gate=b),
    "full": lambda u, k, d, a, b: fftgen.fftconv(
        u, k, mode="full", skip=d, in_gate=a, out_gate=torch.nn.functional.pad(b, (0, 8)))[..., :20],
    "groups": lambda u, k, d, a, b: fftgen.fftconv(u, k[:1], groups=1, skip=d, in_gate=a, out_gate=b),
    "rows": lambda u, k, d, a, b: fftgen.fftconv(
        u, torch.stack([k, k]), per_row=True, skip=d, in_gate=a, out_gate=b),
    "filters": lambda u, k, d, a, b: fftgen.fftconv(
        u, k[None], skip=d[None], in_gate=a, out_gate=b[:, None])[:, 0],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_skip_term_is_never_dropped(form: str, white: Any) -> None:
    u, k, d, a, b = white(2, 3, 20), white(3, 9), white(3), white(2, 3, 20), white(2, 3, 20)
    with_skip, without = (FORMS[form](u, k, s, a, b) for s in (d, torch.zeros_like(d)))
    gradients.judge(with_skip - without, b * d[:, None] * a * u, 1e-12)


@pytest.mark.parametrize("taps", [20, 21, 64])
def test_taps_beyond_the_input_do_not_leak_from_the_future(taps: int, white: Any) -> None:
    """In a transform of 2 L, 2 L taps wrap: tap L + 5 of a causal filter acts 5 steps before L more."""
    u, k = white(2, 3, 20), white(3, taps)
    conv = fftgen.get_conv(64, causal=True)
    ref = gradients.definition(u, k[:, :20], mode="causal", length=64)
    for y in (conv(u, k), fftgen.fftconv(u, k), conv(u, conv.prepare(k))):
        gradients.judge(y, ref, 1e-13)
    grown = torch.cat([k, 1e6 * white(3, 64 - taps)], 1)
    gradients.judge(conv(u, grown), ref, 1e-13)


# A driver that is not there (fake_gpu.py): launches are recorded, and fail when told to.


def test_kernels_run_on_the_current_stream_of_the_tensors_device(
    white: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()
    conv, asked = on_fake_gpu(monkeypatch, driver)
    u, *rest = arguments(white)
    y, spectrum = conv.run(u, *rest)  # type: ignore[arg-type]
    assert u is not None
    assert y.shape == u.shape
    assert spectrum is not None  # a backward pass reads it again
    assert spectrum[0].shape == (3, 2, 512)
    assert asked == [u.device]  # of the filter's spectrum as well
    assert len(driver.launched) == 2
    assert all(0xABC0 in launch for launch in driver.launched)


@pytest.mark.parametrize("twins", [True, False], ids=["by one transform", "by two"])
def test_two_results_take_the_kernels_that_there_are(
    twins: bool, white: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One spectrum; then the twin's kernel, or, in an artifact without one, the convolution's twice."""
    driver = Driver()
    conv, _ = on_fake_gpu(monkeypatch, driver)
    loaded = conv.on(torch.device("cpu"), conv.problem)
    both = twin(loaded.executable.plan)
    assert both is not None
    other = object.__new__(Loaded)
    other.module, other.executable = runtime.Module(b"", 0, {}), Executable(both, loaded.executable.tables)
    other.module._functions = {both.name: 2}
    monkeypatch.setattr(conv, "twin_on", lambda device, problem: other if twins else None)
    u, k, k_rev, in_gate, _, skip = arguments(white)
    assert u is not None
    y, also = conv.run_both(u, k, k_rev, in_gate, (u, white(3, 2, 100).transpose(0, 1).bfloat16()), skip)
    assert y.shape == also.shape == u.shape
    assert y.data_ptr() != also.data_ptr()
    functions = [launch[0] for launch in driver.launched]
    assert functions == ([1, 2] if twins else [1, 1, 1])


@pytest.mark.parametrize("after", [0, 1], ids=["the spectrum's kernel", "the convolution's"])
@pytest.mark.parametrize("failing", ["cuLaunchKernel", "cuCtxGetCurrent"])
def test_an_error_of_the_driver_is_raised_and_no_result_comes_back(
    failing: str, after: int, white: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()
    conv, _ = on_fake_gpu(monkeypatch, driver)
    driver._failing, driver._left = failing, after
    with pytest.raises(ToolchainError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        conv.run(*arguments(white))  # type: ignore[arg-type]
    assert len(driver.launched) == after + (failing == "cuLaunchKernel")


def test_another_context_is_left_as_it_was(white: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program has made a context of its own current, ours is for the launches, and only for them."""
    stack = [7]

    class Foreign(Driver):
        def cuCtxGetCurrent(self) -> tuple[Any, ...]:  # noqa: N802
            return (Code(0), stack[-1])

        def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:  # noqa: N802
            stack.append(context)
            return (Code(0),)

        def cuCtxPopCurrent(self) -> tuple[Any, ...]:  # noqa: N802
            return (Code(0), stack.pop())

        def cuLaunchKernel(self, *arguments: Any) -> tuple[Any, ...]:  # noqa: N802
            self.launched.append((*arguments, stack[-1]))
            return (Code(0),)

    driver = Foreign()
    conv, _ = on_fake_gpu(monkeypatch, driver)
    conv.run(*arguments(white))  # type: ignore[arg-type]
    assert [launch[-1] for launch in driver.launched] == [1, 1]  # ours
    assert stack == [7]


# Kernels run after the calls that launch them return: what they use must be there until the last is queued.


class Holding:
    """A launcher that looks, at every launch, whether all memory that was named so far still exists."""

    def __init__(self) -> None:
        self.named: dict[str, weakref.ref[Tensor]] = {}
        self.launched = 0

    def address(self, name: str, x: Tensor) -> int:
        self.named[name] = weakref.ref(x)
        return x.data_ptr()

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        self.launched += 1
        gone = [name for name, x in self.named.items() if x() is None]
        assert not gone, f"{entry} is launched and the memory of {gone} was given back"


@pytest.mark.parametrize("length", [4096, 65_536])
def test_memory_is_held_until_the_kernels_of_a_filters_gradient_are_launched(length: int, white: Any) -> None:
    found = gradient(Problem("causal", length, "bf16"), find_target("sm_90"))
    u, v, gate = (white(3, 2, length).bfloat16() for _ in range(3))
    holding = Holding()
    tables = torch.zeros(1, dtype=torch.uint8)  # nothing reads them here
    correlate_input(found, tables, holding, u, v, gate, gate, taps=length, address=holding.address)
    assert holding.launched > 1
    assert {"sums", "lags"} <= set(holding.named)
    assert ("v_workspace" in holding.named) == (length == 65_536)


@pytest.mark.parametrize("length", [4096, 32_768, 65_536])
def test_memory_is_held_until_the_kernels_of_all_gradients_are_launched(length: int, white: Any) -> None:
    """Signals that are copied because time is not contiguous, too."""
    found = backward(Problem("causal", length, "bf16"), "sm_90")
    assert found is not None
    u, v, in_gate, out_gate = (white(length, 2, 3).bfloat16().permute(2, 1, 0) for _ in range(4))
    planes, scale = torch.zeros(2, 2, found.plan.transform), torch.zeros(2, 2)
    holding = Holding()
    made = by_one_pass(
        found,
        torch.zeros(1, dtype=torch.uint8),
        holding,
        u,
        v,
        planes,
        scale,
        in_gate,
        out_gate,
        needed=Needed(True, True, True),
        taps=length,
        address=holding.address,
    )
    assert holding.launched > 1
    assert {"sums", "lags", "d_u", "d_in_gate", "d_out_gate", "spectrum", "scale"} <= set(holding.named)
    assert ("v_workspace" in holding.named) == (length == 65_536)
    assert ("spectra" in holding.named) == (length == 32_768)
    assert all(x is not None and x.is_contiguous() for x in made)


@pytest.mark.parametrize("length", [4096, 65_536])
def test_memory_is_held_until_the_kernels_of_a_call_are_launched(length: int, white: Any) -> None:
    plan = search.plan(Problem("circular", length, "bf16"), "sm_90")
    holding = Holding()
    tables = torch.zeros(1, dtype=torch.uint8)
    k = white(2, length).bfloat16()
    made = prepare(plan, tables, holding, k, skip=white(2), address=holding.address)
    assert holding.launched
    assert {"filter", "skip"} <= set(holding.named)
    holding = Holding()
    u = white(3, 2, length).bfloat16()
    y = Executable(plan, tables)(holding, u, made.planes, made.scale, address=holding.address)
    assert holding.launched
    assert {"spectrum", "u", "y"} <= set(holding.named)
    assert y.shape == u.shape

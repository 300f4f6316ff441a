"""A GPU that is not there: calls on CPU tensors go all the way down to a driver that writes launches down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fftgen
from fftgen import conv as conv_module
from fftgen import runtime
from fftgen.execute import Executable
from fftgen.loaded import Loaded
from fftgen.on_demand import OnDemand
from fftgen.planner import search
from fftgen.planner.launch import launches
from fftgen.providers import JustInTime


class Driver(SimpleNamespace):
    """What runtime.py uses of cuda.bindings.driver."""

    def __init__(self, failing: str = "", code: int = 700, after: int = 0) -> None:
        """``failing``: a function that returns ``code``, once it has worked ``after`` times."""
        super().__init__()
        self.launched: list[tuple[Any, ...]] = []
        self._failing, self._code, self._left = failing, code, after
        self.CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
        self.CUstream = int

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == "cuLaunchKernel":
                self.launched.append(arguments)
            if name != self._failing:
                return (Code(0), 1)
            self._left -= 1
            return (Code(self._code if self._left < 0 else 0), 1)

        return call


class Code(int):
    name = "CUDA_ERROR_ILLEGAL_ADDRESS"


def seems_on_an_h200(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """CPU tensors seem to lie on an H200, and kernels to be loaded there.

    Returns whether a graph is being captured, for tests to change.
    """
    capturing = [False]
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "none")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])

    def on(kept: OnDemand[Any, Any], _: torch.device, own: Any) -> Any:
        here = torch.device("cpu")
        if (own, here) not in kept:
            if capturing[0]:
                raise kept._captured(own, here)
            kept[own, here] = kept._load(own, here)
        return kept[own, here]

    monkeypatch.setattr(OnDemand, "on", on)
    return capturing


def on_fake_gpu(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> tuple[fftgen.Conv, list[torch.device]]:
    """A convolution whose calls on CPU tensors go all the way down to the driver, and devices asked for."""
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    asked: list[torch.device] = []

    def current_stream(device: torch.device) -> SimpleNamespace:
        asked.append(device)
        return SimpleNamespace(cuda_stream=0xABC0)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    conv = conv_module.Conv(fftgen.get_conv(512, causal=True).problem, JustInTime(), "test")
    plan = search.plan(conv.problem, "sm_90")
    tables = torch.zeros(1, dtype=torch.uint8)  # nothing reads them here
    loaded = object.__new__(Loaded)  # without a module to load and a GPU to hold its tables
    loaded.module, loaded.executable = runtime.Module(b"", 0, {}), Executable(plan, tables)
    entries = [plan.filter_entry(kernel) for kernel in plan.filter.kernels]
    entries += [launch.entry for launch in launches(plan, 2, 3, 100)]
    loaded.module._functions = dict.fromkeys(entries, 1)
    monkeypatch.setattr(conv, "on", lambda device, problem: loaded)
    return conv, asked


def arguments(white: Any) -> tuple[Tensor | None, ...]:
    return white(2, 3, 100).bfloat16(), white(3, 50).float(), None, None, None, None

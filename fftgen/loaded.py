"""Kernels loaded on a GPU, and the way that a call takes to them.

A call's way depends on shapes, dtypes and devices alone, so the second of its kind takes that of the first:
``Routes`` keeps them. What is left for each call are addresses, memory for its results, and the launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fftgen import operators, windowed
from fftgen.bounded import Bounded
from fftgen.errors import DriverError
from fftgen.execute import Executable
from fftgen.pipeline import Built
from fftgen.planner.windows import Windows
from fftgen.prepare import prepare, transform
from fftgen.runtime import OUT_OF_MEMORY, Module
from fftgen.spectra import Spectrum, with_skip


class Loaded:
    """A built module on one GPU. Everything runs on the current stream of its device."""

    def __init__(self, built: Built, device: torch.device) -> None:
        self.module = _module(built, device)
        self.executable = Executable(built.plan, _tables(built, device))

    def spectrum(self, k: Tensor | None, k_rev: Tensor | None = None, skip: Tensor | None = None) -> Spectrum:
        """The spectrum of filters (H, Lk) with a skip term (H,)."""
        plan, tables = self.executable.plan, self.executable.tables
        return prepare(plan, tables, self.module.on(stream_of(tables.device)), k, k_rev, skip)

    def convolve(
        self,
        u: Tensor,
        k: Tensor | None,
        k_rev: Tensor | None,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        skip: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A whole call: the filter's spectrum (planes and scale, the second result), then the convolution."""
        launcher, executable = self.module.on(stream_of(u.device)), self.executable
        planes, scale = transform(executable.plan, executable.tables, launcher, k, k_rev, skip)
        return executable(launcher, u, planes, scale, in_gate, out_gate), (planes, scale)

    def windowed(
        self,
        found: Windows,
        u: Tensor,
        k: Tensor | None,
        k_rev: Tensor | None,
        in_gate: Tensor | None,
        gates: tuple[Tensor | None, ...],
        skip: Tensor | None,
        twin: Loaded | None = None,
    ) -> tuple[Tensor, ...]:
        """A whole call window by window, with a result for each output gate.

        ``twin``: the same kernels with two outputs, which then make both results at once.
        """
        stream = stream_of(u.device)
        launcher = self.module.on(stream)
        made = windowed.spectra(found, self.executable, launcher, u.shape[-1], k, k_rev, skip)
        if twin is not None:
            on_twin = twin.executable, twin.module.on(stream)
            return windowed.convolve(found, *on_twin, u, made, in_gate, gates)
        each = (windowed.convolve(found, self.executable, launcher, u, made, in_gate, (g,)) for g in gates)
        return tuple(y for (y,) in each)

    def apply(
        self,
        u: Tensor,
        planes: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """A call with a spectrum that is there."""
        if skip is not None:
            planes, scale = with_skip(self.executable.plan, planes, scale, skip)
        return self.executable(self.module.on(stream_of(u.device)), u, planes, scale, in_gate, out_gate)

    def both(
        self,
        u: Tensor,
        planes: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        gates: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The same of kernels with two outputs, with an output gate for each."""
        return self.executable.both(self.module.on(stream_of(u.device)), u, planes, scale, in_gate, gates)


class LoadedGradient:
    """The kernels of a gradient on one GPU."""

    def __init__(self, built: Built, device: torch.device) -> None:
        assert built.gradient is not None
        self.gradient = built.gradient
        self.module = _module(built, device)
        self.tables = _tables(built, device)


def _module(built: Built, device: torch.device) -> Module:
    """Its machine code on a GPU. The memory for it is the driver's: where PyTorch keeps all there is for
    tensors to come, it gives back what is free."""
    try:
        return Module(built.image, device.index or 0, built.entries)
    except DriverError as error:
        if error.code != OUT_OF_MEMORY:
            raise
    torch.cuda.empty_cache()
    return Module(built.image, device.index or 0, built.entries)


def _tables(built: Built, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(built.tables), dtype=torch.uint8).to(device)


def stream_of(device: torch.device) -> int:
    """The handle of a GPU's current stream, by the short way where this release of PyTorch has it."""
    if _RAW_STREAM is None or device.index is None:
        return int(torch.cuda.current_stream(device).cuda_stream)
    return int(_RAW_STREAM(device.index))


_RAW_STREAM: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Route(NamedTuple):
    """Where a call goes whose arguments fit the operators as they are.

    ``loaded``: the kernels that serve it, on a GPU, where nothing is differentiated (None: the operators);
    ``taps``: of longer filters the rest meets nothing (0: none are longer); ``windows``: that they take it
    in.
    """

    handle: str
    loaded: Loaded | None = None
    taps: int = 0
    windows: Windows | None = None

    def conv(
        self,
        u: Tensor,
        k: Tensor | None,
        k_rev: Tensor | None,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        skip: Tensor | None,
    ) -> Tensor:
        """``torch.ops.fftgen.conv``, or the kernels themselves."""
        loaded = self.loaded
        if loaded is None:
            return operators.conv(u, k, k_rev, in_gate, out_gate, skip, self.handle)
        if self.taps:
            k, k_rev = cut(k, self.taps), cut(k_rev, self.taps)
        if self.windows is not None:
            return loaded.windowed(self.windows, u, k, k_rev, in_gate, (out_gate,), skip)[0]
        return loaded.convolve(u, k, k_rev, in_gate, out_gate, skip)[0]


def cut(f: Tensor | None, taps: int) -> Tensor | None:
    """A filter's first taps."""
    return f if f is None or f.shape[-1] <= taps else f[..., :taps]


class Routes(Bounded[tuple[object, ...], Route]):
    """The routes of the latest kinds of calls."""

    def find(self, kind: tuple[object, ...]) -> Route | None:
        """The route of calls of a kind, if one is known."""
        try:
            return self.get(kind)
        except TypeError:  # an option that is no key, and none of those that there are
            return None

    def keep(self, kind: tuple[object, ...], route: Route) -> Route:
        """Know a route again. Not one that was taken while a graph is captured: that does without kernels
        which any later call may load."""
        if route.loaded is not None and torch.cuda.is_current_stream_capturing():
            return route
        return super().keep(kind, route)

"""Kernels of one kind on demand: built and loaded at the first call that wants them, on each GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from fftgen.errors import DriverError, ToolchainError

Own = TypeVar("Own", bound=Hashable)  # what kernels are of: a problem, a plan, a gradient
Kernels = TypeVar("Kernels")


class OnDemand(dict[tuple[Own, torch.device], Kernels]):
    """Kernels by what they are of and the GPU that they are loaded on.

    ``load`` builds and loads them; ``captured`` says what is wrong where that would break the capture of a
    graph, and which call loads them.
    """

    def __init__(
        self,
        load: Callable[[Own, torch.device], Kernels],
        captured: Callable[[Own, torch.device], ToolchainError],
    ) -> None:
        super().__init__()
        self._load = load
        self._captured = captured
        self._missing: set[tuple[Own, torch.device]] = set()
        self._lock = threading.Lock()

    def on(self, device: torch.device, own: Own) -> Kernels:
        """Those of ``own`` on a GPU. Raises ToolchainError without one, and while a graph is captured, and
        whatever building them raises."""
        found = self.get((own, device))
        if found is not None:
            return found
        index = current_gpu() if device.index is None else device.index
        key = (own, torch.device("cuda", index))
        if key not in self:
            current_gpu()
            with self._lock:
                if key not in self:
                    if torch.cuda.is_current_stream_capturing():
                        raise self._captured(own, key[1])
                    self[key] = self._load(own, key[1])
        return self[key]

    def may_be_had(self, device: torch.device, own: Own) -> bool:
        """Whether they are there, or may come: not while a graph is captured, nor if they could not be had
        before."""
        if (own, device) in self:
            return True
        return (own, device) not in self._missing and not torch.cuda.is_current_stream_capturing()

    def if_had(self, device: torch.device, own: Own) -> Kernels | None:
        """Those that a call can do without; None: they cannot be had, and others serve.

        So it is while a graph is captured, and where they are in no cache and FFTGEN_NO_JIT, or that there is
        no NVRTC, forbids compiling them. What the driver refuses is an error.
        """
        found = self.get((own, device))  # a plan takes microseconds to look up: once, where it is there
        if found is not None or not self.may_be_had(device, own):
            return found
        try:
            return self.on(device, own)
        except DriverError:
            raise
        except ToolchainError:
            self._missing.add((own, device))
            return None


def current_gpu() -> int:
    """PyTorch's current GPU. Raises ToolchainError where PyTorch can use none."""
    if not torch.cuda.is_available():
        raise ToolchainError(
            "no GPU that PyTorch can use: install a CUDA build of PyTorch and an NVIDIA driver, or use CPU "
            "tensors"
        )
    return torch.cuda.current_device()

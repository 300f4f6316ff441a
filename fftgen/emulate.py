"""A whole call on the CPU: the launches of runtime.py, handed to the simulator.

Everything is the real thing, chunks, tables, workspace and spectrum included; only ``cuLaunchKernel`` is
replaced. Outputs and workspace start poisoned, so a byte that is read or returned unwritten is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fftgen import nvrtc
from fftgen import windowed as windows
from fftgen.errors import InternalError
from fftgen.execute import PIECE, Executable
from fftgen.gradient import Gradients, Needed, correlate_input
from fftgen.gradient import backward as run_backward
from fftgen.launch import ARGS_BYTES, FILTER_ARGS_BYTES, FINISH_ARGS_BYTES, GRADIENT_ARGS_BYTES
from fftgen.pipeline import Built
from fftgen.planner.filter import Filter
from fftgen.planner.launch import together
from fftgen.planner.plan import Plan
from fftgen.planner.whole import Clusters
from fftgen.planner.windows import Windows
from fftgen.prepare import prepare, transform
from fftgen.simulator import DeviceMemory, Module, Report, parse, simulate
from fftgen.spectra import spectrum
from fftgen.targets import Target

Blocks = Sequence[tuple[int, int, int]]
RESULTS = ("d_u", "d_in_gate", "d_out_gate")
WRITTEN = (
    "y",
    "twin",
    "workspace",
    "filter_planes",
    "filter_scale",
    "filter_workspace",
    "filter_peaks",
    "v_workspace",
    "sums",
    "spectra",
    "lags",
    "tails",
    "finish_workspace",
    *RESULTS,
)
GROWN = ("peaks", "v_peaks")  # start as zeros, and are read and written
SIZES = (ARGS_BYTES, FILTER_ARGS_BYTES, GRADIENT_ARGS_BYTES, FINISH_ARGS_BYTES)


def line_ptx(built: Built) -> str:
    """PTX of a module with line information, for the virtual architecture of its target."""
    target = built.plan.target
    return nvrtc.compile_ptx(built.source, target.replace("sm_", "compute_"), line_info=True)


@lru_cache(maxsize=8)
def _parsed(ptx: str, source: str) -> Module:
    """A module is immutable, and simulated again with other arguments as a rule."""
    return parse(ptx, source=source)


def _bytes(x: Tensor) -> npt.NDArray[np.uint8]:
    """The memory from a tensor's first to its last element, shared, as 16-bit or 8-bit integers."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    flat = torch.as_strided(x, (span,), (1,))
    return np.asarray(flat.view(torch.uint8).numpy())


@dataclass
class Simulated:
    """A ``Launcher`` on the simulator, with its memory and what it counted, by kernel.

    ``filter_reports`` are of the kernels that made the spectrum in ``convolve``, apart from ``reports``.
    ``blocks`` picks the blocks of a launch to run (None: all), by entry and grid.
    """

    ptx: str
    source: str
    seed: int = 0
    blocks: Callable[[str, int], Blocks | None] = lambda entry, grid: None
    memory: DeviceMemory = field(default_factory=DeviceMemory)
    reports: dict[str, Report] = field(default_factory=dict)
    filter_reports: dict[str, Report] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._module = _parsed(self.ptx, self.source)
        self._tensors: dict[str, Tensor] = {}

    def address(self, name: str, x: Tensor) -> int:
        """Binds a tensor under a name; the address is the simulator's, not the host's."""
        self._tensors[name] = x  # keeps the memory alive
        fresh = name.split()[0] in WRITTEN
        memory = _bytes(x)
        if fresh:
            memory.fill(0xFF)  # a NaN in both storage types
        writable = fresh or name in GROWN
        lead = x.data_ptr() % PIECE  # of the widest access
        if lead and not writable:
            return self._bind_off(name, memory, lead)
        return self.memory.bind(name, memory, writable=writable, initialized=not fresh)

    def _bind_off(self, name: str, memory: npt.NDArray[np.uint8], lead: int) -> int:
        """Bind an input that starts off a 16-byte boundary at an address that does, too."""
        address = self.memory.bind(
            name, np.concatenate([np.zeros(lead, np.uint8), memory]), initialized=False
        )
        written = self.memory.buffer(name).written
        assert written is not None
        written[lead:] = True  # what lies before the tensor is not for anyone to read
        return address + lead

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        if len(params) not in SIZES:
            raise InternalError(f"argument block of {len(params)} bytes, expected one of {SIZES}")
        report = simulate(
            self._module,
            entry,
            grid=(grid, 1, 1),
            block=(block, 1, 1),
            params=[params],
            shared_bytes=shared_bytes,
            memory=self.memory,
            blocks=self.blocks(entry, grid),
            seed=self.seed,
            cluster=cluster,
        )
        self.reports[entry] = self.reports[entry] + report if entry in self.reports else report

    def unwritten(self, name: str) -> int:
        """Bytes of an output that no kernel wrote."""
        return self.memory.unwritten(name).count


def convolve(
    built: Built,
    u: Tensor,
    k: Tensor | None,
    *,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
    ptx: str | None = None,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> tuple[Tensor, Simulated]:
    """One call of a module's kernels on CPU tensors: what ``torch.ops.fftgen.conv`` does on a GPU.

    Shapes and dtypes as there (op.py). ``ptx``: ``line_ptx(built)`` if it is at hand already. ``clusters``:
    those of the one launch that carries it out (planner/whole.py), in place of a launch for each stage, or
    of rows whose sections are spread, in place of those that a GPU would have.
    Raises SimulationError for any fault, and InternalError when a byte of the output was not written.
    """
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    made = prepare(built.plan, table, simulated, k, k_rev, skip, address=simulated.address)
    simulated.filter_reports, simulated.reports = simulated.reports, {}
    for name in ("filter_planes", "filter_scale") if simulated.filter_reports else ():
        if simulated.unwritten(name):
            raise InternalError(f"{built.plan.name} left bytes of {name} unwritten")
    y = Executable(built.plan, table, _together(built, clusters))(
        simulated,
        u,
        made.planes,
        made.scale,
        in_gate,
        out_gate,
        address=simulated.address,
    )
    _all_written(simulated, built, "y")
    return y, simulated


def both(
    built: Built,
    u: Tensor,
    k: Tensor | None,
    gates: tuple[Tensor, Tensor],
    *,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    skip: Tensor | None = None,
    ptx: str | None = None,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> tuple[Tensor, Tensor, Simulated]:
    """One call of kernels with two outputs: what ``torch.ops.fftgen.conv_both`` does on a GPU.

    The filters' spectrum is made by torch.fft: its kernels are the convolution's. ``clusters`` and errors
    as of ``convolve``.
    """
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    made = spectrum(built.plan, k, k_rev, skip)
    y, twin = Executable(built.plan, table, _together(built, clusters)).both(
        simulated,
        u,
        made.planes,
        made.scale,
        in_gate,
        gates,
        address=simulated.address,
    )
    _all_written(simulated, built, "y", "twin")
    return y, twin, simulated


@dataclass
class OfViews:
    """Addresses of views, for calls that run one after another: whole tensors are bound, once."""

    simulated: Simulated
    bound: dict[tuple[str, int], int] = field(default_factory=dict)

    def __call__(self, name: str, x: Tensor) -> int:
        memory = x.untyped_storage()
        key = name, memory.data_ptr()
        if key not in self.bound:
            whole = torch.empty(0, dtype=x.dtype).set_(memory)
            number = sum(n == name for n, _ in self.bound)
            self.bound[key] = self.simulated.address(name if number == 0 else f"{name} {number}", whole)
        return self.bound[key] + int(x.storage_offset()) * x.element_size()


def windowed(
    built: Built,
    found: Windows,
    u: Tensor,
    k: Tensor | None,
    *,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    gates: tuple[Tensor | None, ...] = (None,),
    skip: Tensor | None = None,
    ptx: str | None = None,
    seed: int = 0,
) -> tuple[tuple[Tensor, ...], Simulated]:
    """One call window by window (windowed.py), with a result for each of the output ``gates``.

    Errors as of ``convolve``.
    """
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    address = OfViews(simulated)
    executable = Executable(built.plan, torch.frombuffer(bytearray(built.tables), dtype=torch.uint8))
    made = windows.spectra(found, executable, simulated, u.shape[-1], k, k_rev, skip, address)
    results = windows.convolve(found, executable, simulated, u, made, in_gate, gates, address)
    _all_written(simulated, built, "y", *(("twin",) if len(gates) > 1 else ()))
    return results, simulated


def gradient(
    built: Built,
    u: Tensor,
    v: Tensor,
    *,
    taps: int,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    period: int = 0,
    ptx: str | None = None,
    seed: int = 0,
) -> tuple[Tensor, Simulated]:
    """The kernels of a filter's gradient on CPU tensors: what ``fftgen::correlate_input`` does on a GPU.

    Shapes as there; (H, taps) fp32. Raises SimulationError for any fault, and InternalError when a number of
    the sum was not written.
    """
    assert built.gradient is not None
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    found = correlate_input(
        built.gradient,
        table,
        simulated,
        u,
        v,
        in_gate,
        out_gate,
        taps=taps,
        period=period,
        address=simulated.address,
    )
    _all_written(simulated, built, "sums", *(("lags",) if built.plan.filter.kernels else ()))
    return found, simulated


def windowed_gradient(
    built: Built,
    found: Windows,
    u: Tensor,
    v: Tensor,
    *,
    taps: int,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    ptx: str | None = None,
    seed: int = 0,
) -> tuple[Tensor, Simulated]:
    """``gradient`` window by window (windowed.py), of a causal convolution."""
    assert built.gradient is not None
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    given = built.gradient, table, simulated, u, v, in_gate, out_gate
    return windows.correlate_input(found, *given, taps=taps, address=OfViews(simulated)), simulated


def backward(
    built: Built,
    u: Tensor,
    v: Tensor,
    k: Tensor | None,
    *,
    needed: Needed,
    taps: int,
    k_rev: Tensor | None = None,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
    ptx: str | None = None,
    seed: int = 0,
) -> tuple[Gradients, Simulated]:
    """The kernels of all gradients on CPU tensors: what ``fftgen::conv_gradients`` does on a GPU.

    The filters' spectrum is made by torch.fft: its kernels are the convolution's. Raises as ``gradient``.
    """
    assert built.gradient is not None
    simulated = Simulated(ptx or line_ptx(built), built.source.text, seed)
    table = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
    bare = replace(built.plan, filter=Filter())
    planes, scale = transform(bare, table, simulated, k, k_rev, skip, simulated.address)
    found = run_backward(
        built.gradient,
        table,
        simulated,
        u,
        v,
        planes,
        scale,
        in_gate,
        out_gate,
        needed=needed,
        taps=taps,
        address=simulated.address,
    )
    wanted = [name for name, need in zip(RESULTS, needed, strict=True) if need]
    _all_written(simulated, built, "sums", *wanted)
    return found, simulated


def _together(built: Built, clusters: Clusters | None) -> Callable[[Plan, int, int, Target], Clusters | None]:
    return together if built.plan.spread and clusters is None else lambda *_: clusters


def _all_written(simulated: Simulated, built: Built, *names: str) -> None:
    """Raises InternalError where a byte of a result was not written."""
    for name in names:
        missing = simulated.unwritten(name)
        if missing:
            raise InternalError(f"{missing} bytes of {name} were not written by {built.subject.name}")

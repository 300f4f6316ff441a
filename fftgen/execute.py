"""Tensors meet plans: a call turned into addresses.

Nothing here knows whether a GPU or the simulator runs the kernels: a launcher and a function from
tensor to address are handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fftgen.bounded import Bounded
from fftgen.errors import DriverError, InternalError
from fftgen.launch import ABSENT, Call, Launcher, Signal, Step, clusters_refused, run
from fftgen.planner.launch import check_rows, launches, peaks_words, together, workspace_elements
from fftgen.planner.plan import Plan
from fftgen.planner.whole import Clusters
from fftgen.targets import Target
from fftgen.targets import target as find_target

Address = Callable[[str, Tensor], int]
PIECE = 16  # bytes that aligned rows are read and written in


@overload
def time_contiguous(x: Tensor) -> Tensor: ...


@overload
def time_contiguous(x: Tensor | None) -> Tensor | None: ...


def time_contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor itself when time is its fastest dimension, else a contiguous copy."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def strides(x: Tensor | None) -> Signal:
    """A tensor (batch, channel, time) as kernels see it but for its address; absent for None."""
    if x is None:
        return ABSENT
    batch, channel, _ = x.stride()
    return Signal(0, batch, channel)


def aligned(x: Tensor | None) -> bool:
    """Every row starts on 16 bytes and is a whole number of 16-byte pieces."""
    if x is None:
        return True
    batch, channel, _ = x.stride()
    return x.data_ptr() % PIECE == 0 and not (batch | channel | x.shape[-1]) % 8


def on_pieces(x: Tensor) -> Tensor:
    """A contiguous tensor that starts on 16 bytes, as kernels read spectra: itself, or a copy.

    What ``prepare`` makes does. A view into a file's bytes, or of several tensors in one, may not.
    """
    return x if x.data_ptr() % PIECE == 0 else x.clone()


def chip_of(target: str, device: torch.device) -> Target:
    """A target as wide as the GPU that is there; elsewhere the one that plans are made for."""
    if device.type != "cuda":
        return find_target(target)
    return _as_wide_as(target, torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def _as_wide_as(target: str, index: int) -> Target:
    chip, there = find_target(target), torch.cuda.get_device_properties(index)
    return chip.on(there.multi_processor_count, getattr(there, "L2_cache_size", 0) or chip.l2_bytes)


def _apart(*_: object) -> None:
    """One launch carries out no call."""


class Planned(NamedTuple):
    """What a call of some shape takes: launches, elements of workspace in the signals' type, words that start
    as zeros."""

    steps: tuple[Step, ...]
    elements: int
    words: int


class Executable:
    """A plan, its table block in memory, and where to launch it."""

    def __init__(
        self,
        plan: Plan,
        tables: Tensor,
        together: Callable[[Plan, int, int, Target], Clusters | None] = together,
    ) -> None:
        """``tables``: the plan's table block (planner/tables.py), uint8, on the device of the calls.

        ``together``: which calls of aligned rows one launch carries out, by plan, batch, channels and GPU.
        """
        self.plan = plan
        self.tables = tables
        self._together = together
        self._planned: Bounded[tuple[object, ...], Planned] = Bounded()

    def __call__(
        self,
        launcher: Launcher,
        u: Tensor,
        spectrum: Tensor,
        scale: Tensor,
        in_gate: Tensor | None = None,
        out_gate: Tensor | None = None,
        address: Address = lambda _, x: x.data_ptr(),
    ) -> Tensor:
        """Run the kernels and return a new (B, H, L).

        u, gates (B, H, L), copied where time is not contiguous; ``address`` maps a name and a tensor to what
        the kernels see.
        """
        return self._run(launcher, u, spectrum, scale, in_gate, (out_gate,), address)[0]

    def both(
        self,
        launcher: Launcher,
        u: Tensor,
        spectrum: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        gates: tuple[Tensor, Tensor],
        address: Address = lambda _, x: x.data_ptr(),
    ) -> tuple[Tensor, Tensor]:
        """The same with each of two output gates, for a plan with two outputs (planner/twins.py)."""
        y, twin = self._run(launcher, u, spectrum, scale, in_gate, gates, address)
        return y, twin

    def first_results(
        self,
        launcher: Launcher,
        u: Tensor,
        spectrum: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        gates: tuple[Tensor | None, ...],
        into: tuple[Tensor, ...],
        address: Address = lambda _, x: x.data_ptr(),
    ) -> None:
        """Write the first R results of every row to ``into``, (B, H, R) for each output, time contiguous.

        u, in_gate (B, H, L), R at most L; output gates like the results. All of them may be views.
        """
        self._run(launcher, u, spectrum, scale, in_gate, gates, address, into)

    def _run(
        self,
        launcher: Launcher,
        u: Tensor,
        spectrum: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        gates: tuple[Tensor | None, ...],
        address: Address,
        into: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        u, in_gate = time_contiguous(u), time_contiguous(in_gate)
        out_gate = time_contiguous(gates[0])
        twin_gate = time_contiguous(gates[1]) if len(gates) > 1 else None
        spectrum, scale = on_pieces(spectrum), on_pieces(scale)
        pointers = u.data_ptr()
        key: list[object] = [u.shape, u.stride()]
        for x in (in_gate, out_gate, twin_gate):
            if x is None:
                key.append(None)
            else:
                pointers |= x.data_ptr()
                key.append(x.stride())
        for x in into or ():
            pointers |= x.data_ptr()
            key += (x.shape[-1], x.stride())
        key.append(pointers % PIECE == 0)
        found = tuple(key)
        planned = self._planned.get(found)
        if planned is None:
            planned = self._planned.keep(found, self._plan_call(u, in_gate, out_gate, twin_gate, into))
        results = into
        if results is None:
            y = torch.empty_like(u, memory_format=torch.contiguous_format)
            results = (y,) if twin_gate is None else (y, torch.empty_like(y))
        workspace = peaks = None
        if planned.elements:
            workspace = torch.empty(planned.elements, dtype=u.dtype, device=u.device)
        if planned.words:  # grown by atomics
            peaks = torch.zeros(planned.words, dtype=torch.int32, device=u.device)
        at = (
            address("u", u),
            0 if in_gate is None else address("in_gate", in_gate),
            0 if out_gate is None else address("out_gate", out_gate),
            address("y", results[0]),
            0 if twin_gate is None else address("twin_gate", twin_gate),
            0 if twin_gate is None else address("twin", results[-1]),
            address("spectrum", spectrum),
            address("scale", scale),
            address("tables", self.tables),
            0 if workspace is None else address("workspace", workspace),
            0 if peaks is None else address("peaks", peaks),
        )
        try:
            run(planned.steps, at, launcher)
        except DriverError as error:
            if not clusters_refused(error, planned.steps):
                raise
            # A share of a GPU (MIG, MPS) may have no room for clusters, which nothing else asks for: the only
            # launch of this call has not begun, and from now on there is one for each stage, or one of blocks
            # by themselves.
            self._together = _apart
            self._planned.clear()
            return self._run(launcher, u, spectrum, scale, in_gate, gates, address, into)
        return results

    def _plan_call(
        self,
        u: Tensor,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        twin_gate: Tensor | None,
        into: tuple[Tensor, ...] | None,
    ) -> Planned:
        """What calls of these shapes, strides and alignments take."""
        plan = self.plan
        if (twin_gate is not None) != (plan.outputs == 2):
            raise InternalError(f"{plan.name} has {plan.outputs} outputs: its call has others")
        batch, channels, length = u.shape
        check_rows(batch, channels)
        # Results that are new are contiguous: aligned where rows of their length may be.
        vector = all(map(aligned, (u, in_gate, out_gate, twin_gate, *(into or ()))))
        chip = chip_of(plan.target, u.device)
        whole = self._together(plan, batch, channels, chip) if vector or plan.spread else None

        new = Signal(0, channels * length, length)
        y, twin = (new, new) if into is None else (strides(into[0]), strides(into[-1]))
        call = Call(
            batch=batch,
            channels=channels,
            length=length,
            u=strides(u),
            y=y,
            spectrum=0,
            scale=0,
            tables=0,
            in_gate=strides(in_gate),
            out_gate=strides(out_gate),
            twin_gate=strides(twin_gate),
            twin=ABSENT if twin_gate is None else twin,
            vector=vector,
            results=None if into is None else into[0].shape[-1],
        )
        return Planned(
            tuple(Step(plan, call, x) for x in launches(plan, batch, channels, length, whole, chip)),
            workspace_elements(plan, batch, channels, whole, chip),
            peaks_words(plan, batch, channels, whole, chip),
        )

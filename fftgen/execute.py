"""Tensors meet plans: the filter's spectrum, and a call turned into addresses.

Nothing here knows whether a GPU or the simulator runs the kernels: a launcher and a function from
tensor to address are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fftgen import filters
from fftgen.dtypes import dtype
from fftgen.errors import InputError
from fftgen.launch import ABSENT, Call, Launcher, Signal, run
from fftgen.planner.launch import Launch, launches, workspace_elements
from fftgen.planner.plan import Plan

Address = Callable[[str, Tensor], int]


@dataclass(frozen=True)
class Spectrum:
    """A filter's spectrum as the kernels of one plan read it.

    ``planes`` (H, 2, N) in the storage dtype: real and imaginary plane in Monarch order, every channel
    multiplied by a power of two that brings its largest modulus into [1/2, 1). ``scale`` (H, 2) fp32:
    that power, and the factor that undoes it together with 1/N. ``digest`` names the plan.
    """

    planes: Tensor
    scale: Tensor
    digest: str
    filter_length: int

    @property
    def channels(self) -> int:
        return int(self.planes.shape[0])


def monarch_order(spectrum: Tensor, factors: Sequence[int]) -> Tensor:
    """(..., N) in natural order to Monarch order: position (k_1, ..., k_p) holds k_1 + N_1 k_2 + ..."""
    lead = spectrum.dim() - 1
    digits = spectrum.reshape(*spectrum.shape[:-1], *reversed(factors))
    order = (*range(lead), *reversed(range(lead, lead + len(factors))))
    return digits.permute(order).reshape(*spectrum.shape)


def storage(plan: Plan) -> torch.dtype:
    """The torch dtype of a plan's signals."""
    return torch.bfloat16 if dtype(plan.problem.dtype).name == "bf16" else torch.float16


def spectrum(plan: Plan, k: Tensor | None, k_rev: Tensor | None = None) -> Spectrum:
    """Transform filters (H, Lk), at most the plan's length, on their own device, in fp32 (filters.py).

    ``k_rev`` acts backwards in time; either may be absent, not both.
    """
    ordered = monarch_order(filters.response(plan, k, k_rev), plan.factors)
    largest = ordered.abs().amax(dim=-1)
    _, exponent = torch.frexp(largest)
    exponent = torch.where((largest > 0) & largest.isfinite(), exponent, 0).clamp(-126, 126)
    one = torch.ones_like(largest)
    up, down = torch.ldexp(one, -exponent), torch.ldexp(one, exponent)
    planes = torch.view_as_real(ordered * up[:, None]).movedim(-1, 1).to(storage(plan)).contiguous()
    scale = torch.stack([up, down * plan.residual], dim=-1).contiguous()
    longest = max(int(f.shape[-1]) for f in (k, k_rev) if f is not None)
    return Spectrum(planes, scale, plan.digest, longest)


def time_contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor itself when time is its fastest dimension, else a contiguous copy."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _signal(name: str, x: Tensor | None, address: Address) -> Signal:
    return ABSENT if x is None else Signal(address(name, x), x.stride(0), x.stride(1))


def _aligned(x: Tensor | None) -> bool:
    """Every row starts on 16 bytes."""
    return x is None or (x.data_ptr() % 16 == 0 and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0)


class Executable:
    """A plan, its table block in memory, and where to launch it."""

    def __init__(self, plan: Plan, tables: Tensor) -> None:
        """``tables``: the plan's table block (planner/tables.py), uint8, on the device of the calls."""
        self.plan = plan
        self.tables = tables
        self._launches: dict[tuple[int, int, int], tuple[Launch, ...]] = {}

    def launches(self, batch: int, channels: int, length: int) -> tuple[Launch, ...]:
        """The launches of a call of this shape, planned once."""
        key = (batch, channels, length)
        found = self._launches.get(key)
        if found is None:
            if len(self._launches) >= 256:  # shapes that come and go must not pile up
                self._launches.clear()
            found = self._launches[key] = launches(self.plan, batch, channels, length)
        return found

    def __call__(
        self,
        launcher: Launcher,
        u: Tensor,
        spectrum: Tensor,
        scale: Tensor,
        in_gate: Tensor | None = None,
        out_gate: Tensor | None = None,
        skip: Tensor | None = None,
        address: Address = lambda _, x: x.data_ptr(),
    ) -> Tensor:
        """Run the kernels and return a new (B, H, L).

        u, gates (B, H, L) with time contiguous; skip (H,) fp32; ``address`` maps a name and a tensor to
        what the kernels see.
        """
        batch, channels, length = u.shape
        if batch * channels >= 2**31:
            raise InputError(f"{batch} x {channels} rows exceed 2**31 - 1: split the batch")
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        workspace = None
        elements = workspace_elements(self.plan, batch, channels)
        if elements:
            workspace = torch.empty(elements, dtype=u.dtype, device=u.device)
        call = Call(
            batch=batch,
            channels=channels,
            length=length,
            u=_signal("u", u, address),
            y=_signal("y", y, address),
            spectrum=address("spectrum", spectrum),
            scale=address("scale", scale),
            tables=address("tables", self.tables),
            in_gate=_signal("in_gate", in_gate, address),
            out_gate=_signal("out_gate", out_gate, address),
            skip=0 if skip is None else address("skip", skip),
            workspace=0 if workspace is None else address("workspace", workspace),
            vector=_aligned(u) and _aligned(y) and _aligned(in_gate) and _aligned(out_gate),
        )
        run(self.plan, call, self.launches(batch, channels, length), launcher)
        return y

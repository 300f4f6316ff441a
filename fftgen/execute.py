"""Tensors meet plans: the filter's spectrum, and a call turned into addresses.

Nothing here knows whether a GPU or the simulator runs the kernels: a launcher and a function from
tensor to address are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fftgen import filters
from fftgen.bounded import Bounded
from fftgen.errors import InputError, InternalError
from fftgen.launch import ABSENT, Call, Launcher, Signal, Step, run
from fftgen.planner.launch import MAX_ROWS, launches, peaks_words, together, workspace_elements
from fftgen.planner.order import spectrum_digits
from fftgen.planner.plan import Plan
from fftgen.planner.whole import Clusters
from fftgen.targets import Target
from fftgen.targets import target as find_target

Address = Callable[[str, Tensor], int]
PIECE = 16  # bytes that aligned rows are read and written in
EMPTY = 2.0**126  # the scale of a spectrum of zeros, of sections: what it adds asks for no room
# Of the storage types, by name.
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def stored_as(dtype: torch.dtype) -> str | None:
    """The name of a storage type; None for a dtype that is none."""
    for name, served in TORCH.items():  # torch.compile of PyTorch 2.6 cannot trace next() with a default
        if served == dtype:
            return name
    return None


@dataclass(frozen=True)
class Spectrum:
    """A filter's spectrum as the kernels of one plan read it.

    ``planes`` (H, 2, N), 2 N numbers a channel in the operands' type and in the order that the plan's
    kernels read (planner/order.py), every channel multiplied by a power of two that brings its largest
    modulus into [1/2, 1), of batch pairs by up to half of that, which makes frequency 0 a power of two
    (planner/matrix_scale.py). ``scale`` (H, 2) fp32: that factor, and what undoes it together with 1/N.
    Where rows have sections (planner/sections.py), of all P distances: planes (P, H, 2, N), scale
    (P, H, 2). ``digest`` names the plan.
    """

    planes: Tensor
    scale: Tensor
    digest: str
    filter_length: int

    @property
    def channels(self) -> int:
        return int(self.planes.shape[-3])


def stored_order(natural: Tensor, digits: Sequence[tuple[int, int]]) -> Tensor:
    """(H, N, 2) real and imaginary parts by frequency to (H, 2 N) as the digits say (planner/order.py)."""
    slowest = sorted(range(len(digits)), key=lambda i: -digits[i][1])
    places = [slowest.index(i) for i in range(len(digits))]
    spread = natural.reshape(-1, *(digits[i][0] for i in slowest))
    return spread.permute(0, *(1 + p for p in places)).reshape(natural.shape[0], -1)


def natural_order(stored: Tensor, digits: Sequence[tuple[int, int]]) -> Tensor:
    """The inverse of ``stored_order``: (H, 2 N) as the digits say to (H, N, 2) by frequency."""
    slowest = sorted(range(len(digits)), key=lambda i: -digits[i][1])
    spread = stored.reshape(-1, *(extent for extent, _ in digits))
    return spread.permute(0, *(1 + i for i in slowest)).reshape(stored.shape[0], -1, 2)


def storage(plan: Plan) -> torch.dtype:
    """The torch dtype of a plan's signals."""
    return TORCH[plan.problem.dtype]


def spectrum_dtype(plan: Plan) -> torch.dtype:
    """The torch dtype of a filter's spectrum."""
    return TORCH[plan.spectrum_type]


def with_skip(plan: Plan, planes: Tensor, scale: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """A prepared spectrum with a skip term (H,): every frequency grows by D, in the spectrum's own scale.

    Where that leaves the range of the operands' type, a channel takes another power of two. Of sections, a
    section's own spectrum has it.
    """
    if plan.sections > 1:
        own = with_skip(replace(plan, sections=1), planes[0], scale[0], skip)
        first, moved = (torch.cat([x[None], rest[1:]]) for x, rest in zip(own, (planes, scale), strict=True))
        return first, moved
    digits = spectrum_digits(plan)
    place = next(i for i, (extent, stride) in enumerate(digits) if stride == 1)
    spread = planes.reshape(-1, *(extent for extent, _ in digits)).to(torch.float32)
    term = skip.detach().to(torch.float64) * scale[:, 0]  # a product of two that fp32 holds may be beyond it
    _, exponent = torch.frexp(1 + term.abs())
    down = torch.ldexp(torch.ones_like(term), 1 - exponent.clamp(min=1))  # 1 while |D| < 1 in that scale

    def fit(x: Tensor) -> Tensor:
        return x.reshape(-1, *(1 for _ in digits[1:]))

    spread = spread * down.to(torch.float32).reshape(-1, *(1 for _ in digits))
    spread.select(place + 1, 0).add_(fit(term * down))
    moved = torch.stack([scale[:, 0] * down, scale[:, 1] / down], dim=-1).to(torch.float32)
    found = spread.reshape(planes.shape).to(planes.dtype)
    return (found, moved) if plan.abreast == 1 else _kept_apart(found, moved, ~term.isfinite())


def spectrum(
    plan: Plan, k: Tensor | None, k_rev: Tensor | None = None, skip: Tensor | None = None
) -> Spectrum:
    """Transform filters (H, Lk), at most the plan's length, on their own device, in fp32 (filters.py).

    ``k_rev`` acts backwards in time; either may be absent, not both. A skip term (H,) adds to every
    frequency: ``conv(u, k) + D u`` is ``conv(u, k + D delta)``. Of sections, all distances have one, those of
    zeros a scale that makes little of them: results go by the largest that adds to them.
    """
    if plan.sections > 1:
        return _of_sections(plan, k, k_rev, skip)
    natural = filters.response(plan, k, k_rev)
    if skip is not None:
        natural = natural + skip.detach().to(torch.float32)[:, None]
    largest = natural.abs().amax(dim=-1)
    _, exponent = torch.frexp(largest)
    exponent = torch.where((largest > 0) & largest.isfinite(), exponent, 0).clamp(-126, 126)
    one = torch.ones_like(largest)
    up, down = torch.ldexp(one, -exponent), torch.ldexp(one, exponent)
    if plan.exact_mean:
        down_to = _to_power(natural[:, 0].real * (up / plan.given_back))
        up, down = up * down_to, down / down_to
    parts = torch.view_as_real(natural * up[:, None]).to(spectrum_dtype(plan))
    planes = stored_order(parts, spectrum_digits(plan)).reshape(-1, 2, plan.transform)
    scale = torch.stack([up, down * plan.residual], dim=-1).contiguous()
    if plan.abreast > 1:
        planes, scale = _kept_apart(planes, scale, ~largest.isfinite())
    return Spectrum(planes, scale, plan.digest, longest(k, k_rev))


def _of_sections(plan: Plan, k: Tensor | None, k_rev: Tensor | None, skip: Tensor | None) -> Spectrum:
    one = replace(plan, sections=1)
    made = [
        spectrum(one, *filters_of, None if distance else skip)
        for distance, filters_of in enumerate(filters.by_distance(plan, k, k_rev))
    ]
    planes = torch.stack([x.planes for x in made])
    scale = torch.stack([x.scale for x in made])
    empty = ~planes.flatten(2).any(-1)
    scale[empty] = scale.new_tensor([EMPTY, plan.residual / EMPTY])
    return Spectrum(planes, scale, plan.digest, longest(k, k_rev))


def longest(*given: Tensor | None) -> int:
    """The taps of the longest filter."""
    return max(int(f.shape[-1]) for f in given if f is not None)


def _kept_apart(planes: Tensor, scale: Tensor, spoilt: Tensor) -> tuple[Tensor, Tensor]:
    """Spectra of channels abreast, which meet in one product: in place of one that is not finite zeros, and a
    NaN in the scale of its results."""
    nan = torch.full_like(scale[:, 1], torch.nan)
    apart = torch.stack([scale[:, 0], torch.where(spoilt, nan, scale[:, 1])], dim=-1)
    return torch.where(spoilt[:, None, None], torch.zeros_like(planes), planes), apart


def _to_power(x: Tensor) -> Tensor:
    """What numbers from 2^-10 to 1 are multiplied by to be powers of two (templates/device/filter.cuh)."""
    _, exponent = torch.frexp(x * 1.0005)
    below = torch.ldexp(torch.sign(x), exponent - 1)
    return torch.where((x.abs() >= 2.0**-10) & (x.abs() <= 1), below / x, 1.0)


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


def chip_of(target: str, device: torch.device) -> Target:
    """A target as wide as the GPU that is there; elsewhere the one that plans are made for."""
    if device.type != "cuda":
        return find_target(target)
    return _as_wide_as(target, torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def _as_wide_as(target: str, index: int) -> Target:
    chip, there = find_target(target), torch.cuda.get_device_properties(index)
    return chip.on(there.multi_processor_count, getattr(there, "L2_cache_size", 0) or chip.l2_bytes)


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
        run(planned.steps, at, launcher)
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
        if batch * channels > MAX_ROWS:
            raise InputError(f"{batch} x {channels} rows exceed {MAX_ROWS}: split the batch")
        # Results that are new are contiguous: aligned where rows of their length may be.
        vector = all(map(aligned, (u, in_gate, out_gate, twin_gate, *(into or ()))))
        chip = chip_of(plan.target, u.device)
        whole = self._together(plan, batch, channels, chip) if vector else None

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
            peaks_words(plan, batch, channels, whole),
        )

"""A filter's spectrum as the kernels of a plan read it, made in PyTorch (by kernels: prepare.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fftgen import filters
from fftgen.planner.order import spectrum_digits
from fftgen.planner.plan import Plan
from fftgen.storage import spectrum_dtype

EMPTY = 2.0**126  # the scale of a spectrum of zeros, of sections: what it adds asks for no room


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

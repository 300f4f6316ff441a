"""A filter's spectrum by the kernels of its plan (templates/filter.j2).

``spectra.spectrum`` says what they compute and stays for tensors on the CPU and as the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen.errors import InputError, InternalError
from fftgen.execute import Address, time_contiguous
from fftgen.launch import NO_TAPS, FilterCall, Launcher, Taps, run_filter
from fftgen.planner.filter import chunk_channels
from fftgen.planner.plan import LOWER, Plan
from fftgen.spectra import Spectrum, longest, spectrum
from fftgen.storage import spectrum_dtype


def prepare(
    plan: Plan,
    tables: Tensor,
    launcher: Launcher,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    address: Address = lambda _, x: x.data_ptr(),
) -> Spectrum:
    """What ``transform`` makes of filters, with what it is of."""
    planes, scale = transform(plan, tables, launcher, k, k_rev, skip, address)
    return Spectrum(planes, scale, plan.digest, longest(k, k_rev))


def transform(
    plan: Plan,
    tables: Tensor,
    launcher: Launcher,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    address: Address = lambda _, x: x.data_ptr(),
) -> tuple[Tensor, Tensor]:
    """Transform filters (H, Lk), Lk at most the plan's length, by kernels on the launcher.

    ``k_rev`` acts backwards in time; either may be absent, not both: in the kernels' ring x^N is i (1 where
    it is circular), so tap m of k_rev stands, times -i, at N - m. Of sections, spectra of all distances
    (planner/sections.py) are made by the same launches: planes (D, H, 2, N), scale (D, H, 2).

    ``tables``: the plan's table block, uint8, on k's device; ``address`` as in ``Executable``. A filter of
    another type than fp32, or with taps that are not side by side, is copied once; rows may be strided. A
    skip term (H,) joins the first tap. Numbers may differ from those of ``spectra.spectrum`` in their last
    place.
    """
    if plan.sections > 1 and plan.matrix == LOWER and (k is None or k_rev is not None):
        raise InternalError(f"{plan.name} takes filters that act forwards in time")
    if not plan.filter.kernels:
        made = spectrum(plan, k, k_rev, skip)
        return made.planes, made.scale
    ahead, back = _wide(k), _wide(k_rev)
    first = ahead if ahead is not None else back
    assert first is not None
    channels, device = first.shape[0], first.device
    distances = plan.distances
    if distances * channels >= 2**31:
        raise InputError(f"{channels} channels, {distances} spectra each, exceed 2**31 - 1: split them")
    planes, scale = room(plan, channels, device)
    if channels == 0:
        return planes, scale
    direct = None if skip is None else skip.detach().to(torch.float32).contiguous()
    workspace = peaks = None
    if not plan.filter.whole:
        count = chunk_channels(plan.filter, plan.transform, distances * channels) * plan.transform
        workspace = torch.empty(count, 2, dtype=torch.float32, device=device)
        peaks = torch.empty(distances * channels, dtype=torch.int32, device=device)
    call = FilterCall(
        NO_TAPS if ahead is None else Taps(address("filter", ahead), ahead.stride(0), ahead.shape[1]),
        NO_TAPS if back is None else Taps(address("back_filter", back), back.stride(0), back.shape[1]),
        channels,
        0 if direct is None else address("skip", direct),
        address("filter_planes", planes),
        address("filter_scale", scale),
        address("filter_tables", tables),
        0 if workspace is None else address("filter_workspace", workspace),
        0 if peaks is None else address("filter_peaks", peaks),
        distances,
    )
    run_filter(plan, call, launcher)
    return planes, scale


def room(plan: Plan, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for the spectra of so many filters, or of sections for those of all distances of each."""
    distances = (plan.distances,) if plan.sections > 1 else ()
    planes = torch.empty(*distances, channels, 2, plan.transform, dtype=spectrum_dtype(plan), device=device)
    return planes, torch.empty(*distances, channels, 2, dtype=torch.float32, device=device)


def _wide(f: Tensor | None) -> Tensor | None:
    """A filter's taps in fp32, side by side."""
    if f is None or (f.dtype == torch.float32 and f.stride(-1) == 1):
        return f
    return time_contiguous(f.detach().to(torch.float32))

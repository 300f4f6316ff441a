"""A filter's spectrum by the kernels of its plan (templates/filter.j2).

``execute.spectrum`` says what they compute and stays for tensors on the CPU and as the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fftgen.errors import InputError, InternalError
from fftgen.execute import Address, Spectrum, spectrum, spectrum_dtype, time_contiguous
from fftgen.launch import NO_TAPS, FilterCall, Launcher, Taps, run_filter
from fftgen.planner.filter import chunk_channels
from fftgen.planner.plan import CIRCULANT, LOWER, Plan

EMPTY = 2.0**126  # the scale of a spectrum of zeros: what it adds asks for no room


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
    return Spectrum(planes, scale, plan.digest, max(int(f.shape[-1]) for f in (k, k_rev) if f is not None))


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
    it is circular), so tap m of k_rev stands, times -i, at N - m.

    ``tables``: the plan's table block, uint8, on k's device; ``address`` as in ``Executable``. A filter of
    another type than fp32, or with taps that are not side by side, is copied once; rows may be strided. A
    skip term (H,) joins the first tap. Numbers may differ from those of ``execute.spectrum`` in their last
    place.
    """
    made = _of_sections if plan.sections > 1 else _of_one
    return made(plan, tables, launcher, k, k_rev, skip, address)


def _of_one(
    plan: Plan,
    tables: Tensor,
    launcher: Launcher,
    k: Tensor | None,
    k_rev: Tensor | None,
    skip: Tensor | None,
    address: Address,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``into``: where planes and scale are to stand; None: in new tensors."""
    if not plan.filter.kernels:
        made = spectrum(plan, k, k_rev, skip)
        if into is None:
            return made.planes, made.scale
        return into[0].copy_(made.planes), into[1].copy_(made.scale)
    ahead, back = _wide(k), _wide(k_rev)
    first = ahead if ahead is not None else back
    assert first is not None
    channels, device = first.shape[0], first.device
    if channels >= 2**31:
        raise InputError(f"{channels} channels exceed 2**31 - 1: split them")
    planes, scale = into or room(plan, channels, device)
    if channels == 0:
        return planes, scale
    direct = None if skip is None else skip.detach().to(torch.float32).contiguous()
    workspace = peaks = None
    if not plan.filter.whole:
        count = chunk_channels(plan.filter, plan.transform, channels) * plan.transform
        workspace = torch.empty(count, 2, dtype=torch.float32, device=device)
        peaks = torch.empty(channels, dtype=torch.int32, device=device)
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
    )
    run_filter(plan, call, launcher)
    return planes, scale


def room(plan: Plan, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for the spectra of so many filters, or of sections for those of all distances of each."""
    distances = (plan.distances,) if plan.sections > 1 else ()
    planes = torch.empty(*distances, channels, 2, plan.transform, dtype=spectrum_dtype(plan), device=device)
    return planes, torch.empty(*distances, channels, 2, dtype=torch.float32, device=device)


def _of_sections(
    plan: Plan,
    tables: Tensor,
    launcher: Launcher,
    k: Tensor | None,
    k_rev: Tensor | None,
    skip: Tensor | None,
    address: Address,
) -> tuple[Tensor, Tensor]:
    """Spectra of all D distances of sections (planner/sections.py): planes (D, H, 2, N), scale (D, H, 2).

    Those of zeros have a scale that makes little of them: results go by the largest that adds to them.
    """
    if plan.matrix == LOWER and (k is None or k_rev is not None):
        raise InternalError(f"{plan.name} takes filters that act forwards in time")
    n, empty = plan.transform, []
    taps, now = _lags(plan, k, k_rev)
    planes, scale = room(plan, taps.shape[0], taps.device)
    for distance in range(plan.distances):
        start = now + (distance - plan.distances if distance >= plan.sections else distance) * n

        def own(name: str, x: Tensor, distance: int = distance) -> int:
            return address(f"{name} {distance}" if distance else name, x)

        least, end = max(0, start - n + 1), start + n
        # Tap m, acting backwards, is that at start - m.
        back = pad(taps[:, least:start].flip(-1), (1, 0)) if start > least else None
        into, term = (planes[distance], scale[distance]), None if distance else skip
        _of_one(plan, tables, launcher, taps[:, start:end], back, term, own, into)
        empty.append(~taps[:, least:end].any(-1))
    scale[1:, :, 0].masked_fill_(torch.stack(empty[1:]), EMPTY)
    if skip is not None:
        empty[0] = empty[0] & (skip == 0)
    # Results are scaled as the first spectrum is. One of zeros may have any scale: that of the largest other.
    largest = scale[1:, :, 0].argmin(dim=0)
    other = scale[1:].gather(0, largest[None, :, None].expand(1, -1, 2))[0]
    borrowed = empty[0] & (other[:, 0] < EMPTY)
    scale[0] = torch.where(borrowed[:, None], other, scale[0])
    return planes, scale


def _lags(plan: Plan, k: Tensor | None, k_rev: Tensor | None) -> tuple[Tensor, int]:
    """All taps of a filter in sections by the time that they act at, and which of them acts at once."""
    reach = plan.points
    if plan.matrix == LOWER:
        assert k is not None
        return pad(k, (0, reach - k.shape[-1])) if k.shape[-1] < reach else k, 0
    first = k if k is not None else k_rev
    assert first is not None
    taps = torch.zeros(first.shape[0], 2 * reach, dtype=torch.float32, device=first.device)
    if k is not None:
        taps[:, reach : reach + k.shape[-1]] += k.detach()
    if k_rev is not None:
        taps[:, reach - k_rev.shape[-1] + 1 : reach + 1] += k_rev.detach().flip(-1)
    if plan.matrix == CIRCULANT:  # what acts a circle later or earlier acts at the same time
        taps = (taps[:, reach:] + taps[:, :reach]).repeat(1, 2)
    return taps, reach


def _wide(f: Tensor | None) -> Tensor | None:
    """A filter's taps in fp32, side by side."""
    if f is None or (f.dtype == torch.float32 and f.stride(-1) == 1):
        return f
    return time_contiguous(f.detach().to(torch.float32))

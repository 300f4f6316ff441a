"""A filter's spectrum by the kernels of its plan (templates/filter.j2).

``execute.spectrum`` says what they compute and stays for tensors on the CPU and as the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen.errors import InputError
from fftgen.execute import Address, Spectrum, operand, spectrum
from fftgen.launch import FilterCall, Launcher, run_filter
from fftgen.planner.filter import chunk_channels
from fftgen.planner.plan import Plan


def prepare(
    plan: Plan,
    tables: Tensor,
    launcher: Launcher,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    address: Address = lambda _, x: x.data_ptr(),
) -> Spectrum:
    """Transform a filter (H, Lk), Lk at most the plan's length, by kernels on the launcher.

    With a filter that acts backwards in time (``k_rev``) it is ``execute.spectrum``: torch.fft.

    ``tables``: the plan's table block, uint8, on k's device; ``address`` as in ``Executable``. k of another
    type than fp32, or with taps that are not side by side, is copied once; rows may be strided. A skip term
    (H,) joins the first tap. Numbers may differ from those of ``execute.spectrum`` in their last place.
    """
    if k is None or k_rev is not None or not plan.filter.kernels:
        return spectrum(plan, k, k_rev, skip)
    channels, taps = k.shape
    if channels >= 2**31:
        raise InputError(f"{channels} channels exceed 2**31 - 1: split them")
    rows = k.detach().to(torch.float32)
    if taps > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    planes = torch.empty(channels, 2, plan.transform, dtype=operand(plan), device=k.device)
    scale = torch.empty(channels, 2, dtype=torch.float32, device=k.device)
    made = Spectrum(planes, scale, plan.digest, taps)
    if channels == 0:
        return made
    direct = None if skip is None else skip.detach().to(torch.float32).contiguous()
    workspace = peaks = None
    if not plan.filter.whole:
        count = chunk_channels(plan.filter, plan.transform, channels) * plan.transform
        workspace = torch.empty(count, 2, dtype=torch.float32, device=k.device)
        peaks = torch.zeros(channels, dtype=torch.int32, device=k.device)  # grown by atomics
    call = FilterCall(
        filter=address("filter", rows),
        stride=rows.stride(0),
        taps=taps,
        channels=channels,
        skip=0 if direct is None else address("skip", direct),
        planes=address("filter_planes", planes),
        scale=address("filter_scale", scale),
        tables=address("filter_tables", tables),
        workspace=0 if workspace is None else address("filter_workspace", workspace),
        peaks=0 if peaks is None else address("filter_peaks", peaks),
    )
    run_filter(plan, call, launcher)
    return made

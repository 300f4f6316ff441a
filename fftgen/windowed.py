"""Calls of long signals with short filters, window by window (planner/windows.py).

Nothing here knows whether a GPU or the simulator runs the kernels (as in execute.py). Windows are views:
nothing is copied, and results are written where they belong.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fftgen.execute import Address, Executable, time_contiguous
from fftgen.gradient import correlate_input as plain
from fftgen.launch import Launcher
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.windows import Cut, Windows, cuts
from fftgen.prepare import transform

Given = TypeVar("Given", Tensor, Tensor | None)
Spectrum = tuple[Tensor, Tensor]  # planes and scale


def read(cut: Cut, x: Given) -> Given:
    """What windows hold of a signal (B, H, L), time contiguous: (number or B, H, steps)."""
    return _view(cut, x, cut.start, cut.steps)


def written(cut: Cut, x: Given) -> Given:
    """Where their results go, and what gates these: (number or B, H, results)."""
    return _view(cut, x, cut.at, cut.results)


def _view(cut: Cut, x: Given, start: int, steps: int) -> Given:
    if x is None:
        return None
    if cut.row is None:
        return x[..., start : start + steps]
    row = x[cut.row]
    shape, strides = (cut.number, row.shape[0], steps), (cut.step, row.stride(0), 1)
    return row.as_strided(shape, strides, row.storage_offset() + start)


def moved(found: Windows, k: Tensor | None, k_rev: Tensor | None, skip: Tensor | None) -> Tensor:
    """The filter of all windows but the first, (H, taps) fp32: tap j acts at t + j of a window."""
    given = k if k is not None else k_rev
    assert given is not None
    taps = found.lead + max(1, 0 if k_rev is None else k_rev.shape[-1])
    r = torch.zeros(given.shape[0], taps, dtype=torch.float32, device=given.device)
    if k is not None:
        r[:, found.lead + 1 - k.shape[-1] : found.lead + 1] = k.flip(-1)
    if k_rev is not None:
        r[:, found.lead : found.lead + k_rev.shape[-1]] += k_rev
    if skip is not None:
        r[:, found.lead] += skip
    return r


def spectra(
    found: Windows,
    executable: Executable,
    launcher: Launcher,
    steps: int,
    k: Tensor | None,
    k_rev: Tensor | None,
    skip: Tensor | None,
    address: Address = lambda _, x: x.data_ptr(),
) -> tuple[Spectrum, ...]:
    """Of the filters of the first window, and of all others if there are any."""
    plan, tables = executable.plan, executable.tables
    first = transform(plan, tables, launcher, k, k_rev, skip, address)
    if found.count(steps) == 1:
        return (first,)
    return first, transform(plan, tables, launcher, None, moved(found, k, k_rev, skip), None, address)


def convolve(
    found: Windows,
    executable: Executable,
    launcher: Launcher,
    u: Tensor,
    spectra: tuple[Spectrum, ...],
    in_gate: Tensor | None,
    gates: tuple[Tensor | None, ...],
    address: Address = lambda _, x: x.data_ptr(),
) -> tuple[Tensor, ...]:
    """A result (B, H, L) for each of the output ``gates``, by a plan with as many outputs."""
    u, in_gate = time_contiguous(u), time_contiguous(in_gate)
    gates = tuple(map(time_contiguous, gates))
    made = tuple(torch.empty_like(u, memory_format=torch.contiguous_format) for _ in gates)
    for number, cut in enumerate(cuts(found, u.shape[0], u.shape[-1])):
        planes, scale = spectra[min(number, 1)]
        executable.first_results(
            launcher,
            read(cut, u),
            planes,
            scale,
            read(cut, in_gate),
            tuple(written(cut, gate) for gate in gates),
            tuple(written(cut, y) for y in made),
            address,
        )
    return made


def correlate_input(
    found: Windows,
    gradient: Gradient,
    tables: Tensor,
    launcher: Launcher,
    u: Tensor,
    v: Tensor,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    *,
    taps: int,
    address: Address = lambda _, x: x.data_ptr(),
) -> Tensor:
    """``gradient.correlate_input`` window by window; ``found``: of so many taps, and none of k_rev.

    Of all but the first, u starts ``lead`` steps before v: lag j is what v, ahead of u, has at lead - j.
    """
    u, v = time_contiguous(u), time_contiguous(v)
    in_gate, out_gate = time_contiguous(in_gate), time_contiguous(out_gate)
    given = gradient, tables, launcher
    total: Tensor | None = None
    for cut in cuts(found, u.shape[0], u.shape[-1]):
        x = read(cut, u), read(cut, in_gate)
        y = written(cut, v), written(cut, out_gate)
        if total is None:  # from its first step on, and no further than its results
            x = written(cut, u), written(cut, in_gate)
            total = plain(*given, x[0], y[0], x[1], y[1], taps=taps, address=address)
        else:
            lags = plain(*given, y[0], x[0], y[1], x[1], taps=found.lead + 1, address=address)
            total += lags.flip(-1)[:, :taps]
    assert total is not None
    return total

"""A filter's gradient by kernels: two signals in, the taps' gradient out.

Nothing here knows whether a GPU or the simulator runs the kernels (as in execute.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen import filters
from fftgen.errors import InputError
from fftgen.execute import Address, aligned, natural_order, signal, time_contiguous
from fftgen.launch import ABSENT, Call, FinishCall, GradientCall, Launcher, run_finish, run_gradient
from fftgen.planner.filter import chunk_channels
from fftgen.planner.finish import comes_around
from fftgen.planner.gradient import Gradient, launches, parts, spectra_bytes
from fftgen.planner.launch import peaks_words, workspace_elements
from fftgen.planner.order import spectrum_digits


def correlate_input(
    found: Gradient,
    tables: Tensor,
    launcher: Launcher,
    u: Tensor,
    v: Tensor,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    *,
    taps: int,
    period: int = 0,
    address: Address = lambda _, x: x.data_ptr(),
) -> Tensor:
    """``sum_b sum_t (out_gate * v)_t (in_gate * u)_{t-j}`` for lags j < taps: (H, taps) fp32.

    u, v, gates (B, H, L), copied where time is not contiguous, L at most the plan's length; ``period``: the
    circular length that times wrap at, 0 for none. ``tables``: the plan's table block, uint8, on the tensors'
    device; ``address`` as in ``Executable``.
    """
    batch, channels, length = u.shape
    if batch * channels >= 2**31:
        raise InputError(f"{batch} x {channels} rows exceed 2**31 - 1: split the batch")
    plan = found.plan
    sums = torch.empty(
        channels, parts(found, batch, channels), 2 * plan.transform, dtype=torch.float32, device=u.device
    )
    signals = [time_contiguous(x) for x in (u, v, in_gate, out_gate)]
    vector = all(aligned(x) for x in signals)
    planned = launches(found, batch, channels, length)
    kept = spectra_bytes(found, planned)
    spectra = torch.empty(kept, dtype=torch.uint8, device=u.device) if kept else None

    # The kernels of one side run after the memory of the other was asked for: both must still be there.
    held: list[Tensor | None] = []

    def side(prefix: str, x: Tensor | None, gate: Tensor | None) -> Call:
        workspace = peaks = None
        elements = workspace_elements(plan, batch, channels)
        if elements:
            workspace = torch.empty(elements, dtype=u.dtype, device=u.device)
            words = peaks_words(plan, batch, channels)
            peaks = torch.zeros(words, dtype=torch.int32, device=u.device)  # grown by atomics
        held.extend((workspace, peaks))
        return Call(
            batch=batch,
            channels=channels,
            length=length,
            u=signal(f"{prefix}u", x, address),
            y=ABSENT,
            spectrum=0,
            scale=0,
            tables=0 if prefix else address("tables", tables),
            in_gate=signal(f"{prefix}in_gate", gate, address),
            workspace=0 if workspace is None else address(f"{prefix}workspace", workspace),
            peaks=0 if peaks is None else address(f"{prefix}peaks", peaks),
            vector=vector,
        )

    x, y = side("", signals[0], signals[2]), side("v_", signals[1], signals[3])
    sums_at = address("sums", sums)
    call = GradientCall(
        x,
        y._replace(tables=x.tables),
        sums=sums_at,
        spectra=0 if spectra is None else address("spectra", spectra),
    )
    run_gradient(found, call, planned, launcher)
    if not plan.filter.kernels:
        return finish(found, sums, length, taps, period)
    return finish_by_kernels(
        found, launcher, sums, length, taps, period, sums_at=sums_at, tables_at=x.tables, address=address
    )


def finish_by_kernels(
    found: Gradient,
    launcher: Launcher,
    sums: Tensor,
    length: int,
    taps: int,
    period: int = 0,
    *,
    sums_at: int,
    tables_at: int,
    address: Address = lambda _, x: x.data_ptr(),
) -> Tensor:
    """What ``finish`` gives, by kernels on the launcher (planner/finish.py), with the rounding of fp32.

    ``sums_at``, ``tables_at``: where the kernels see ``sums`` and the plan's table block. Parts are added in
    their order, and nothing depends on the order of blocks.
    """
    plan = found.plan
    channels, shared, _ = sums.shape
    reach = min(taps, period or length)
    lags = torch.empty(channels, reach, dtype=torch.float32, device=sums.device)
    tails = workspace = None
    if comes_around(plan.filter, plan.transform, period):
        tails = torch.empty_like(lags)
    if not plan.filter.whole:
        count = chunk_channels(plan.filter, plan.transform, channels) * plan.transform
        workspace = torch.empty(count, 2, dtype=torch.float32, device=sums.device)
    call = FinishCall(
        sums=sums_at,
        lags=address("lags", lags),
        tables=tables_at,
        channels=channels,
        parts=shared,
        reach=reach,
        period=period,
        tails=0 if tails is None else address("tails", tails),
        workspace=0 if workspace is None else address("finish_workspace", workspace),
    )
    run_finish(found, call, launcher)
    return torch.nn.functional.pad(lags, (0, taps - reach)) if taps > reach else lags


def finish(found: Gradient, sums: Tensor, length: int, taps: int, period: int = 0) -> Tensor:
    """From the parts of the sum, (H, parts, 2 N) in the spectrum's order, to (H, taps), by torch.fft.

    The reference of the kernels, in the type of ``sums``, and for plans that have none.
    z = T^-1 of the sum. The transform's numbers are polynomials in x with x^N = i, so lag j is Re z_j, and
    lag j - period, which is the same on a circle, is -Im z at N - period + j. Where nothing wraps, lags from
    ``length`` on are zero.
    """
    plan = found.plan
    n = plan.transform
    total = sums.sum(dim=1)
    natural = torch.view_as_complex(natural_order(total, spectrum_digits(plan)))
    # Both transforms came with the stages' powers of two and without 1/N.
    scale = 4.0 ** sum(s.scale for s in plan.stages)
    z = torch.fft.ifft(natural) * filters.weights(n, sums.device).conj() * scale
    reach = min(taps, period or length)
    lags = z.real[:, :reach]
    if period:
        lags = lags.clone()
        lags[:, 1:] -= z.imag[:, n - period + 1 : n - period + reach]
    return torch.nn.functional.pad(lags, (0, taps - reach)).contiguous()

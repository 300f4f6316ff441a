"""Gradients by kernels: two signals in; out come the gradient of the taps and, where wanted, of the signals.

Nothing here knows whether a GPU or the simulator runs the kernels (as in execute.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fftgen import filters
from fftgen.errors import InputError, InternalError
from fftgen.execute import Address, aligned, natural_order, signal, time_contiguous
from fftgen.launch import ABSENT, Call, FinishCall, GradientCall, Launcher, Signal, run_finish, run_gradient
from fftgen.planner.filter import chunk_channels
from fftgen.planner.finish import comes_around
from fftgen.planner.gradient import Gradient, launches, parts, spectra_bytes
from fftgen.planner.launch import peaks_words, workspace_elements
from fftgen.planner.order import spectrum_digits


class Needed(NamedTuple):
    """Which gradients of signals are wanted beside that of a filter."""

    u: bool = False
    in_gate: bool = False
    out_gate: bool = False


class Gradients(NamedTuple):
    """Of signals (B, H, L) in the signals' dtype, None: not wanted; of the filter (H, taps) fp32."""

    u: Tensor | None
    in_gate: Tensor | None
    out_gate: Tensor | None
    filter: Tensor


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
    signals = (u, v, in_gate, out_gate)
    return _Pass(found, tables, launcher, address).run(signals, taps, period).filter


def backward(
    found: Gradient,
    tables: Tensor,
    launcher: Launcher,
    u: Tensor,
    v: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    *,
    needed: Needed,
    taps: int,
    address: Address = lambda _, x: x.data_ptr(),
) -> Gradients:
    """All gradients of a causal convolution for the cotangent v of its result, by kernels with ``signals``.

    With a = conj(K) (out_gate * v): in_gate * a for u, u * a for in_gate, v * K (in_gate * u) for out_gate,
    each rounded once, and ``correlate_input`` for the filter. ``planes``, ``scale``: the spectrum of the
    filter and the skip term, as the problem's own plan has it. The rest as above.
    """
    if not found.signals:
        raise InternalError(f"{found.name} makes the gradient of a filter only")
    signals = (u, v, in_gate, out_gate)
    return _Pass(found, tables, launcher, address).run(signals, taps, 0, needed, (planes, scale))


@dataclass
class _Pass:
    """One call of a gradient's kernels."""

    found: Gradient
    tables: Tensor
    launcher: Launcher
    address: Address
    # Kernels of one side run after the memory of the other was asked for: both must still be there.
    held: list[Tensor] = field(default_factory=list)

    def run(
        self,
        given: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        taps: int,
        period: int,
        needed: Needed = Needed(),  # noqa: B008  (immutable)
        spectrum: tuple[Tensor, Tensor] | None = None,
    ) -> Gradients:
        u, v, in_gate, out_gate = map(time_contiguous, given)
        assert u is not None
        assert v is not None
        found, plan = self.found, self.found.plan
        batch, channels, length = u.shape
        if batch * channels >= 2**31:
            raise InputError(f"{batch} x {channels} rows exceed 2**31 - 1: split the batch")
        sums = torch.empty(
            channels, parts(found, batch, channels), 2 * plan.transform, dtype=torch.float32, device=u.device
        )
        planned = launches(found, batch, channels, length)
        kept = spectra_bytes(found, planned)
        spectra = torch.empty(kept, dtype=torch.uint8, device=u.device) if kept else None
        made = [torch.empty_like(u, memory_format=torch.contiguous_format) if n else None for n in needed]
        du, d_in, d_out = made
        tables_at = self.address("tables", self.tables)
        planes, scale = spectrum or (None, None)
        planes_at = 0 if planes is None else self.address("spectrum", planes)
        scale_at = 0 if scale is None else self.address("scale", scale)
        vector = all(aligned(x) for x in (u, v, in_gate, out_gate, *made))
        common = Call(batch, channels, length, ABSENT, ABSENT, planes_at, scale_at, tables_at, vector=vector)
        x = self.side(common, "", u, in_gate)._replace(
            y=self.signal("d_out_gate", d_out), out_gate=self.signal("v_gate", None if d_out is None else v)
        )
        # Where one result of V is wanted it is the first.
        results = [
            (self.signal(name, to), self.signal(f"{name}_gate", gate))
            for name, to, gate in (("d_u", du, in_gate), ("d_in_gate", d_in, u))
            if to is not None
        ]
        y = self.side(common, "v_", v, out_gate)
        if results:
            y = y._replace(y=results[0][0], out_gate=results[0][1])
        if len(results) == 2:
            y = y._replace(twin=results[1][0], twin_gate=results[1][1])
        sums_at = self.address("sums", sums)
        call = GradientCall(
            x,
            y,
            sums=sums_at,
            spectra=0 if spectra is None else self.address("spectra", spectra),
        )
        run_gradient(found, call, planned, self.launcher)
        if plan.filter.kernels:
            dk = finish_by_kernels(
                found,
                self.launcher,
                sums,
                length,
                taps,
                period,
                sums_at=sums_at,
                tables_at=tables_at,
                address=self.address,
            )
        else:
            dk = finish(found, sums, length, taps, period)
        return Gradients(du, d_in, d_out, dk)

    def signal(self, name: str, x: Tensor | None) -> Signal:
        return signal(name, x, self.address)

    def side(self, common: Call, prefix: str, x: Tensor, gate: Tensor | None) -> Call:
        """One signal on its way in, with a workspace of its own."""
        plan, batch, channels = self.found.plan, common.batch, common.channels
        workspace = peaks = 0
        elements = workspace_elements(plan, batch, channels)
        if elements:
            space = torch.empty(elements, dtype=x.dtype, device=x.device)
            words = peaks_words(plan, batch, channels)
            grown = torch.zeros(words, dtype=torch.int32, device=x.device)  # by atomics
            self.held += (space, grown)
            workspace = self.address(f"{prefix}workspace", space)
            peaks = self.address(f"{prefix}peaks", grown)
        return common._replace(
            u=self.signal(f"{prefix}u", x),
            in_gate=self.signal(f"{prefix}in_gate", gate),
            workspace=workspace,
            peaks=peaks,
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

"""Gradients by kernels: two signals in; out come the gradient of the taps and, where wanted, of the signals.

Nothing here knows whether a GPU or the simulator runs the kernels (as in execute.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fftgen import filters
from fftgen.bounded import Bounded
from fftgen.errors import DriverError, InternalError
from fftgen.execute import PIECE, Address, aligned, chip_of, on_pieces, strides, time_contiguous
from fftgen.launch import (
    ABSENT,
    Call,
    FinishCall,
    GradientStep,
    Launcher,
    Signal,
    clusters_refused,
    run_finish,
    run_gradient,
)
from fftgen.planner.filter import chunk_channels
from fftgen.planner.finish import comes_around
from fftgen.planner.gradient_launch import launches, parts, space, spectra_bytes
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.launch import check_rows
from fftgen.planner.order import sum_digits
from fftgen.spectra import natural_order


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

    u, v, gates (B, H, L), copied where time is not contiguous, L at most the plan's length; v and its gate
    may have more steps than u. ``period``: the circular length that times wrap at, 0 for none. ``tables``:
    the plan's table block, uint8, on the tensors' device; ``address`` as in ``Executable``.
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


class _Planned(NamedTuple):
    """What a call of some shapes and strides takes.

    ``parts`` of a channel's sum, bytes of ``spectra``; of each signal's workspace ``elements`` of its type
    and ``words`` that start as zeros.
    """

    steps: tuple[GradientStep, ...]
    parts: int
    spectra: int
    elements: int
    words: int


_planned: Bounded[tuple[object, ...], _Planned] = Bounded()
_refusing: set[torch.device] = set()  # GPUs, or shares of one, that form no clusters


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
        plan, address = self.found.plan, self.address
        planned = self.planned(u, v, in_gate, out_gate, needed)
        shape = u.shape[1] * plan.sections, planned.parts, 2 * plan.transform
        sums = torch.empty(shape, dtype=torch.float32, device=u.device)
        spectra = None
        if planned.spectra:
            spectra = torch.empty(planned.spectra, dtype=torch.uint8, device=u.device)
        du, d_in, d_out = (
            torch.empty_like(u, memory_format=torch.contiguous_format) if n else None for n in needed
        )
        tables_at = address("tables", self.tables)
        planes_at, scale_at = 0, 0
        if spectrum is not None:
            planes, scale = map(on_pieces, spectrum)
            self.held += (planes, scale)
            planes_at, scale_at = address("spectrum", planes), address("scale", scale)
        elif plan.sections > 1:  # sections come to powers that their spectra have a part in
            ones = torch.ones(plan.sections, u.shape[1], 2, dtype=torch.float32, device=u.device)
            self.held.append(ones)
            scale_at = address("scale", ones)
        x_at = (
            address("u", u),
            self.at("in_gate", in_gate),
            0 if d_out is None else address("v_gate", v),
            self.at("d_out_gate", d_out),
            0,
            0,
            planes_at,
            scale_at,
            tables_at,
            *self.space("", u, planned),
        )
        results = [
            (self.at(f"{name}_gate", gate), address(name, to))
            for name, to, gate in (("d_u", du, in_gate), ("d_in_gate", d_in, u))
            if to is not None
        ]
        (gate_at, y_at), (twin_gate_at, twin_at) = (*results, (0, 0), (0, 0))[:2]
        v_at = (
            address("v_u", v),
            self.at("v_in_gate", out_gate),
            gate_at,
            y_at,
            twin_gate_at,
            twin_at,
            planes_at,
            scale_at,
            tables_at,
            *self.space("v_", v, planned),
        )
        sums_at = address("sums", sums)
        try:
            run_gradient(planned.steps, x_at, v_at, sums_at, self.at("spectra", spectra), self.launcher)
        except DriverError as error:
            if not clusters_refused(error, planned.steps):
                raise
            # As of a convolution (execute.py): the only launch of this call has not begun.
            _refusing.add(u.device)
            return _Pass(self.found, self.tables, self.launcher, self.address).run(
                given, taps, period, needed, spectrum
            )
        return Gradients(du, d_in, d_out, self.taps(sums, v.shape[-1], taps, period, sums_at, tables_at))

    def taps(self, sums: Tensor, length: int, taps: int, period: int, sums_at: int, tables_at: int) -> Tensor:
        """From the parts of the sum to the gradient of taps: of sections, each by itself."""
        plan = self.found.plan
        if plan.sections > 1:
            made = self.finished(sums, plan.transform, plan.transform, 0, sums_at, tables_at)
            whole = made.view(-1, plan.points)
            reach = min(taps, length)
            if taps == reach:  # pad copies whatever it is asked for
                return whole[:, :reach].contiguous()
            return torch.nn.functional.pad(whole[:, :reach], (0, taps - reach))
        return self.finished(sums, length, taps, period, sums_at, tables_at)

    def finished(
        self, sums: Tensor, length: int, taps: int, period: int, sums_at: int, tables_at: int
    ) -> Tensor:
        if not self.found.plan.filter.kernels:
            return finish(self.found, sums, length, taps, period)
        return finish_by_kernels(
            self.found,
            self.launcher,
            sums,
            length,
            taps,
            period,
            sums_at=sums_at,
            tables_at=tables_at,
            address=self.address,
        )

    def at(self, name: str, x: Tensor | None) -> int:
        """The address of what may be absent."""
        return 0 if x is None else self.address(name, x)

    def space(self, prefix: str, x: Tensor, planned: _Planned) -> tuple[int, int]:
        """Workspace and peaks of one signal."""
        if not planned.elements:
            return 0, 0
        workspace = torch.empty(planned.elements, dtype=x.dtype, device=x.device)
        self.held.append(workspace)
        peaks = None
        if planned.words:  # grown by atomics
            peaks = torch.zeros(planned.words, dtype=torch.int32, device=x.device)
            self.held.append(peaks)
        return self.address(f"{prefix}workspace", workspace), self.at(f"{prefix}peaks", peaks)

    def planned(
        self, u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, needed: Needed
    ) -> _Planned:
        """What calls of these shapes, strides and alignments take."""
        signals = (u, v, in_gate, out_gate)
        pointers = 0
        for x in signals:
            pointers |= 0 if x is None else x.data_ptr()
        of_strides = [None if x is None else x.stride() for x in signals]
        refused = u.device in _refusing
        alike = needed, refused, pointers % PIECE == 0
        key = (self.found.digest, u.device, u.shape, v.shape[-1], *of_strides, *alike)
        return _planned.get(key) or _planned.keep(key, _plan(self.found, u, v, in_gate, out_gate, needed))


def _plan(
    found: Gradient, u: Tensor, v: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, needed: Needed
) -> _Planned:
    batch, channels, length = u.shape
    check_rows(batch, channels)
    if v.shape[-1] != length and (found.signals or not found.two_lengths):
        raise InternalError(f"{found.name} takes signals of one length, got {length} and {v.shape[-1]} steps")
    # Results are new and contiguous: aligned where rows of their length may be.
    vector = all(map(aligned, (u, v, in_gate, out_gate)))
    result = Signal(0, channels * length, length)
    common = Call(batch, channels, length, ABSENT, ABSENT, 0, 0, 0, vector=vector)
    x = common._replace(u=strides(u), in_gate=strides(in_gate))
    if needed.out_gate:
        x = x._replace(y=result, out_gate=strides(v))
    y = common._replace(length=v.shape[-1], u=strides(v), in_gate=strides(out_gate))
    # Where one result of V is wanted it is the first.
    gates = [strides(gate) for n, gate in ((needed.u, in_gate), (needed.in_gate, u)) if n]
    if gates:
        y = y._replace(y=result, out_gate=gates[0])
    if len(gates) == 2:
        y = y._replace(twin=result, twin_gate=gates[1])
    chip = chip_of(found.plan.target, u.device)
    alone = u.device in _refusing
    made = launches(found, batch, channels, length, chip, alone)
    wanted = (needed.out_gate, bool(gates))  # results of a side: nobody else needs its way back
    steps = tuple(
        GradientStep(found.plan, x, y, one)
        for one in made
        if one.launch.kernel.role != "columns_inverse" or wanted[one.side]
    )
    return _Planned(
        steps,
        1 if found.sums else parts(found, batch, channels, chip),
        spectra_bytes(found, made),
        *space(found, batch, channels, chip, alone),
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
    """From the parts of the sum, (H, parts, 2 N) in the order of sum_digits, to (H, taps), by torch.fft.

    The reference of the kernels, in the type of ``sums``, and for plans that have none.
    z = T^-1 of the sum. The transform's numbers are polynomials in x with x^N = i, so lag j is Re z_j, and
    lag j - period, which is the same on a circle, is -Im z at N - period + j. Where nothing wraps, lags from
    ``length`` on are zero.
    """
    plan = found.plan
    n = plan.transform
    total = sums.sum(dim=1)
    natural = torch.view_as_complex(natural_order(total, sum_digits(plan)))
    # Both transforms came with the stages' scales and without 1/N, which is in ifft.
    z = torch.fft.ifft(natural) * filters.weights(n, sums.device).conj() * (plan.residual * n)
    reach = min(taps, period or length)
    lags = z.real[:, :reach]
    if period:
        lags = lags.clone()
        lags[:, 1:] -= z.imag[:, n - period + 1 : n - period + reach]
    return torch.nn.functional.pad(lags, (0, taps - reach)).contiguous()

"""Who is measured: fftgen and PyTorch here, other programs in peers.py, attention in attention.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fftgen import op  # noqa: F401  (registers the operators)
from fftgen.accuracy import Accuracy
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs
from fftgen.conv import Conv, get_conv
from fftgen.errors import NoPlanError
from fftgen.kept import as_it_is
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_sections import in_sections
from fftgen.planner.plan import Plan
from fftgen.spectra import Spectrum


class Unavailable(Exception):
    """A contender cannot take part in a case; the message says why."""


@dataclass(frozen=True)
class Asked:
    """What a backward pass is asked: gradients of ``arguments``, leaves by name, for a cotangent of y."""

    arguments: Mapping[str, Tensor]
    cotangent: Tensor


@dataclass(frozen=True)
class Prepared:
    """A contender ready for a case: one call per set of inputs, each returning a new result, y.

    In a backward case the sets hold leaves, and backward.py takes the gradients through what the calls
    record; ``asked`` is of each call, where it is not about the inputs themselves. ``check`` judges what the
    first call gave, by name ("y", or the arguments of a backward pass), where a contender computes something
    else than the convolution.
    """

    calls: tuple[Callable[[], Tensor], ...]
    plan: Plan | None = None  # ours: its derived bounds hold
    filters: Plan | None = None  # of the kernels of our filter's gradient, where there are any
    asked: tuple[Asked, ...] = ()
    check: Callable[[Mapping[str, Tensor]], Mapping[str, Accuracy]] | None = None
    note: str = ""  # what a reader of the figure must know, such as the plan


@dataclass(frozen=True)
class Contender:
    """``prepare(case, sets, backend)`` raises Unavailable with the reason, or whatever goes wrong.

    ``filter_inside``: the filter's transform is part of each call. ``ours``: a wrong result or a failure
    makes the whole run fail. ``compiled``: by torch.compile. ``no_gradients``: why it takes no part in
    backward cases, if it does not.
    """

    name: str
    about: str
    prepare: Callable[[Case, Sequence[Inputs], Backend], Prepared]
    filter_inside: bool = True
    ours: bool = False
    compiled: bool = False
    no_gradients: str = ""


def _conv(case: Case, backend: Backend) -> tuple[Conv, Plan]:
    """The convolution, warmed up, and its plan."""
    p = case.problem
    conv = get_conv(p.length, p.dtype, causal=p.causal)
    conv.warmup(backend.device, train=case.direction == "backward")
    return conv, conv.plan(None if backend.device.type == "cuda" else backend.target)


def _filters(case: Case, conv: Conv, backend: Backend) -> Plan | None:
    """The plan of the kernels of the filter's gradient; None: torch.fft makes it."""
    problem = conv.served(case.length, case.length)
    if backend.device.type == "cuda":
        loaded = conv.gradient_on(backend.device, problem)
        return None if loaded is None else loaded.gradient.plan
    try:
        return gradient(problem, backend.target).plan
    except NoPlanError:
        return None


def _fftgen(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
    conv, plan = _conv(case, backend)

    def call(x: Inputs) -> Callable[[], Tensor]:
        return lambda: conv(x.u, x.k, in_gate=x.in_gate, out_gate=x.out_gate)

    calls = tuple(call(x) for x in sets)
    how = "" if backend.device.type != "cuda" else f"; {_way(conv, sets[0], case)}"
    if case.direction == "forward":
        return Prepared(calls, plan, note=f"{plan}{how}")
    filters = _filters(case, conv, backend)
    served = conv.served(case.length, case.length)
    every = backward(served, backend.target)
    if backend.device.type == "cuda":
        gated, rows = case.gated, (case.batch, case.channels)
        cut = conv.backward_sections(backend.device, served, *rows, gated)
        every = every if cut is None else in_sections(cut)
    way = f"all gradients: {every}" if every else f"gradient of the filter: {filters or 'torch.fft'}"
    note = f"{plan}; {way}{how}"
    return Prepared(calls, plan, filters, note=note)


def _way(conv: Conv, x: Inputs, case: Case) -> str:
    """How calls go: in windows, in sections, or by one transform of everything."""
    loaded, found = conv.serving(x.u, *conv.meeting(x.u, x.k, None), case.direction == "backward", case.gated)
    plan = loaded.executable.plan
    return str(found or (plan if plan.sections > 1 else "one transform"))


def _fftgen_prepared(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
    conv, plan = _conv(case, backend)
    made = [conv.prepare(x.k) for x in sets]

    def call(x: Inputs, spectrum: Spectrum) -> Callable[[], Tensor]:
        return lambda: conv(x.u, spectrum, in_gate=x.in_gate, out_gate=x.out_gate)

    calls = tuple(call(x, spectrum) for x, spectrum in zip(sets, made, strict=True))
    own = str(plan)
    if backend.device.type == "cuda":
        kept, first = as_it_is(made[0].digest), sets[0].u
        own = "the filter, kept" if kept else str(conv.loaded_for(made[0].digest, first).executable.plan)
    return Prepared(calls, plan, note=own)


Gate = Tensor | None


def gate(x: Tensor, by: Gate) -> Tensor:
    return x if by is None else x * by


def complex_fft(u: Tensor, k: Tensor, in_gate: Gate, out_gate: Gate, points: int) -> Tensor:
    """The published baseline: ``torch.fft.fft`` of the signal in complex fp32, zero-padded to ``points``."""
    spectrum = torch.fft.fft(gate(u, in_gate).float(), n=points) * torch.fft.fft(k, n=points)
    y = torch.fft.ifft(spectrum, n=points).real[..., : u.shape[-1]]
    return gate(y, out_gate).to(u.dtype)


def real_fft(u: Tensor, k: Tensor, in_gate: Gate, out_gate: Gate, points: int) -> Tensor:
    """The strict baseline: ``rfft`` and ``irfft`` in fp32."""
    return real_fft_prepared(u, torch.fft.rfft(k, n=points), in_gate, out_gate, points)


def real_fft_prepared(u: Tensor, spectrum: Tensor, in_gate: Gate, out_gate: Gate, points: int) -> Tensor:
    """``real_fft`` with the filter's spectrum (H, points / 2 + 1) given."""
    y = torch.fft.irfft(torch.fft.rfft(gate(u, in_gate).float(), n=points) * spectrum, n=points)
    return gate(y[..., : u.shape[-1]], out_gate).to(u.dtype)


def _torch(
    function: Callable[..., Tensor], *, compiled: bool = False, spectrum: bool = False
) -> Callable[[Case, Sequence[Inputs], Backend], Prepared]:
    def prepare(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
        run: Any = function
        if compiled:
            run = torch.compile(function, backend=backend.compiler, dynamic=False)

        def call(x: Inputs) -> Callable[[], Tensor]:
            k = torch.fft.rfft(x.k, n=case.points) if spectrum else x.k
            return lambda: run(x.u, k, x.in_gate, x.out_gate, case.points)

        return Prepared(tuple(call(x) for x in sets))

    return prepare


OURS = (
    Contender("fftgen", "conv(u, k), the filter's transform inside", _fftgen, ours=True),
    Contender(
        "fftgen-prepared",
        "conv(u, conv.prepare(k)): the filter's spectrum given",
        _fftgen_prepared,
        filter_inside=False,
        ours=True,
        no_gradients="a prepared spectrum passes no gradients",
    ),
)
PYTORCH = (
    Contender("torch-complex", "torch.fft.fft in complex fp32, eager", _torch(complex_fft)),
    Contender("torch-real", "torch.fft.rfft in fp32, eager", _torch(real_fft)),
    Contender(
        "torch-real-prepared",
        "torch.fft.rfft in fp32, eager, the filter's spectrum given",
        _torch(real_fft_prepared, spectrum=True),
        filter_inside=False,
        no_gradients="its gradients would end at the spectrum, not at the filter",
    ),
    Contender(
        "torch-complex-compiled",
        "torch.fft.fft in complex fp32 under torch.compile",
        _torch(complex_fft, compiled=True),
        compiled=True,
    ),
    Contender(
        "torch-real-compiled",
        "torch.fft.rfft in fp32 under torch.compile",
        _torch(real_fft, compiled=True),
        compiled=True,
    ),
)

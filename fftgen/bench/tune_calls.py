"""The calls that tune.py times: of a variant's kernels, or in a dry run of the CPU in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.inputs import Inputs
from fftgen.cache import Cache
from fftgen.conv import get_conv
from fftgen.gradient import Gradients, Needed, backward
from fftgen.loaded import Loaded, LoadedGradient, stream_of
from fftgen.pipeline import Built, build
from fftgen.problem import Problem
from fftgen.spectra import Spectrum

Made = Tensor | Mapping[str, Tensor]  # by a call: its result, or gradients by argument
Calls = tuple[Callable[[], Any], ...]
Caller = Callable[[Built, Sequence[Inputs]], Calls]


def caller_of(case: Case, backend: Backend, store: Cache) -> Caller:
    """What makes the calls of a case: those of a variant's kernels, or of the CPU in their place."""
    if case.direction == "backward":
        return _gradients(case.problem, backend, store) if backend.kernels else _gradients_on_cpu
    return _kernels(backend.device) if backend.kernels else on_cpu


def _kernels(device: torch.device) -> Caller:
    """Calls of a variant's own kernels, each with the spectrum that they make of its filter."""

    def made(built: Built, sets: Sequence[Inputs]) -> Calls:
        loaded = Loaded(built, device)

        def call(x: Inputs) -> Callable[[], Tensor]:
            k = loaded.spectrum(x.k)
            return lambda: loaded.apply(x.u, k.planes, k.scale, x.in_gate, x.out_gate)

        return tuple(call(x) for x in sets)

    return made


def _gradients(problem: Problem, backend: Backend, store: Cache) -> Caller:
    """Backward passes of a variant's kernels, for spectra that the planner's choice for the problem makes."""
    forward = Loaded(build(problem, backend.target, store), backend.device)
    spectra: dict[int, Spectrum] = {}

    def made(built: Built, sets: Sequence[Inputs]) -> Calls:
        loaded = LoadedGradient(built, backend.device)

        def call(number: int, x: Inputs) -> Callable[[], Mapping[str, Tensor]]:
            if number not in spectra:
                spectra[number] = forward.spectrum(x.k)
            k = spectra[number]
            return lambda: all_gradients(
                x,
                lambda v, **rest: backward(
                    loaded.gradient,
                    loaded.tables,
                    loaded.module.on(stream_of(backend.device)),
                    x.u,
                    v,
                    k.planes,
                    k.scale,
                    **rest,
                ),
            )

        return tuple(call(number, x) for number, x in enumerate(sets))

    return made


def all_gradients(x: Inputs, run: Callable[..., Gradients]) -> Mapping[str, Tensor]:
    """The gradients of a set's arguments, by name; ``run`` takes the cotangent and what kernels are told."""
    assert x.v is not None
    needed = Needed(True, x.in_gate is not None, x.out_gate is not None)
    made = run(x.v, in_gate=x.in_gate, out_gate=x.out_gate, needed=needed, taps=x.k.shape[-1])
    named = {"u": made.u, "k": made.filter, "in_gate": made.in_gate, "out_gate": made.out_gate}
    return {name: g for name, g in named.items() if g is not None}


def on_cpu(built: Built, sets: Sequence[Inputs]) -> Calls:
    """What the CPU gives in a variant's place."""
    p = built.plan.problem
    conv = get_conv(p.length, p.dtype, causal=p.causal)

    def call(x: Inputs) -> Callable[[], Tensor]:
        return lambda: conv(x.u, x.k, in_gate=x.in_gate, out_gate=x.out_gate)

    return tuple(call(x) for x in sets)


def _gradients_on_cpu(built: Built, sets: Sequence[Inputs]) -> Calls:
    """The gradients of that."""
    leaves = [x.leaves() for x in sets]

    def call(x: Inputs, forward: Callable[[], Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        def made() -> Mapping[str, Tensor]:
            with torch.enable_grad():
                y = forward()
            return dict(
                zip(x.arguments, torch.autograd.grad(y, tuple(x.arguments.values()), x.v), strict=True)
            )

        return made

    return tuple(call(x, forward) for x, forward in zip(leaves, on_cpu(built, leaves), strict=True))

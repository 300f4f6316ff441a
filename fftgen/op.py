"""The torch.library operators, with fake kernels, gradients and batching rules.

All of them belong to one form, linear in each of its arguments (u with in_gate and v with out_gate enter
alike; sums over batch, channels, time and taps):

    F = sum  (out_gate * v)_t  [ sum_j k_j x_{t-j} + sum_j k_rev_j x_{t+j} + skip x_t ],   x = in_gate * u

    fftgen::conv              dF/dv: convolution with k, correlation with k_rev, skip, gates
    fftgen::conv_both         the same with each of two output gates, by one transform
    fftgen::correlate_input   dF/dk: correlation of v with the input, (H, taps)
    fftgen::conv_gradients    dF/du, dF/d in_gate, dF/d out_gate and dF/dk: what a backward pass asks for,
                              by one pass over the signals where there are kernels for it

The correlation with the filter, dF/du, is fftgen::conv of v with k and k_rev exchanged and the gates
exchanged; dF/d in_gate differs from it by one gate, so fftgen::conv_both gives both; dF/dk_rev is
fftgen::correlate_input with u and v exchanged; dF/dskip is its tap 0. So they are closed under
differentiation, to any order, and need no more than the arguments stored. derivatives.py writes the
formulas out.

A convolution is named by its handle (a string), so that graphs can hold it; ``conv.registered`` finds it.
A handle with ``*`` for the length takes the length from each call's shapes: one graph serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from fftgen import autograd, eager, filter_gradient, observed
from fftgen.check import Open, check_operands, check_spectrum, check_taps
from fftgen.conv import Conv, registered
from fftgen.derivatives import separately
from fftgen.errors import InputError
from fftgen.gradient import Needed
from fftgen.handles import terms
from fftgen.kept import as_it_is
from fftgen.operators import ON_GPU, RULES
from fftgen.problem import Problem
from fftgen.storage import stored_as

_torch_library: Any = torch.library  # its classes carry no annotations
_LIBRARY = _torch_library.Library("fftgen", "DEF")
_LIBRARY.define(
    "conv(Tensor u, Tensor? k, Tensor? k_rev, Tensor? in_gate, Tensor? out_gate, Tensor? skip, str handle) "
    "-> Tensor"
)
_LIBRARY.define(
    "conv_both(Tensor u, Tensor? k, Tensor? k_rev, Tensor? in_gate, Tensor first_gate, Tensor second_gate, "
    "Tensor? skip, str handle) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "correlate_input(Tensor u, Tensor v, Tensor? in_gate, Tensor? out_gate, SymInt taps, str handle) "
    "-> Tensor"
)
_LIBRARY.define(
    "conv_gradients(Tensor u, Tensor v, Tensor? k, Tensor? k_rev, Tensor? in_gate, Tensor? out_gate, "
    "Tensor? skip, bool need_u, bool need_in_gate, bool need_out_gate, SymInt taps, str handle) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "conv_prepared(Tensor u, Tensor planes, Tensor scale, Tensor? in_gate, Tensor? out_gate, Tensor? skip, "
    "str handle, str digest) -> Tensor"
)

Maybe = Tensor | None
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _found(handle: str, u: Tensor) -> Conv:
    """The convolution of a handle."""
    return registered(handle, u.shape[-1])


def _conv_cuda(
    u: Tensor, k: Maybe, k_rev: Maybe, in_gate: Maybe, out_gate: Maybe, skip: Maybe, handle: str
) -> Tensor:
    return _found(handle, u).run(u, k, k_rev, in_gate, out_gate, skip)[0]


def _conv_keeping(u: Tensor, *given: Any) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    *rest, handle = given
    return _found(handle, u).run(u, *rest, keeping=True)


def _conv_cpu(
    u: Tensor, k: Maybe, k_rev: Maybe, in_gate: Maybe, out_gate: Maybe, skip: Maybe, handle: str
) -> Tensor:
    mode, length = terms(handle, u.shape[-1])
    return eager.convolve(
        u, k, k_rev, mode=mode, length=length, in_gate=in_gate, out_gate=out_gate, skip=skip
    )


def _both_cuda(
    u: Tensor,
    k: Maybe,
    k_rev: Maybe,
    in_gate: Maybe,
    first_gate: Tensor,
    second_gate: Tensor,
    skip: Maybe,
    handle: str,
) -> tuple[Tensor, Tensor]:
    return _found(handle, u).run_both(u, k, k_rev, in_gate, (first_gate, second_gate), skip)


def _both_cpu(
    u: Tensor,
    k: Maybe,
    k_rev: Maybe,
    in_gate: Maybe,
    first_gate: Tensor,
    second_gate: Tensor,
    skip: Maybe,
    handle: str,
) -> tuple[Tensor, Tensor]:
    mode, length = terms(handle, u.shape[-1])
    gates = (first_gate, second_gate)
    return eager.convolve_both(u, k, k_rev, mode=mode, length=length, in_gate=in_gate, gates=gates, skip=skip)


def _correlate_cuda(u: Tensor, v: Tensor, in_gate: Maybe, out_gate: Maybe, taps: int, handle: str) -> Tensor:
    return filter_gradient.on_gpu(_found(handle, u), u, v, in_gate, out_gate, taps)


def _correlate_cpu(u: Tensor, v: Tensor, in_gate: Maybe, out_gate: Maybe, taps: int, handle: str) -> Tensor:
    mode, length = terms(handle, u.shape[-1])
    return eager.correlate_input(
        u, v, mode=mode, length=length, taps=taps, in_gate=in_gate, out_gate=out_gate
    )


def _gradients_cuda(u: Tensor, v: Tensor, *rest: Any) -> Four:
    *made, of_filter = _gradients_needed(u, v, *rest)
    return _all_four(u, made, of_filter)


def _gradients_needed(
    u: Tensor, v: Tensor, *rest: Any, spectrum: tuple[Tensor, Tensor] | None = None
) -> tuple[Maybe, Maybe, Maybe, Tensor]:
    """Results of ``conv_gradients`` on a GPU, None for each that is not needed."""
    given, needed, taps, handle = _asked(u, rest)
    found = filter_gradient.all_on_gpu(_found(handle, u), given, v, needed, taps, spectrum)
    if found is not None:
        return found
    made = separately((_conv_cuda, _both_cuda), given, v, needed, handle)
    return *made, _correlate_cuda(u, v, given[3], given[4], taps, handle)


def _gradients_cpu(u: Tensor, v: Tensor, *rest: Any) -> Four:
    given, needed, taps, handle = _asked(u, rest)
    made = separately((_conv_cpu, _both_cpu), given, v, needed, handle)
    return _all_four(u, made, _correlate_cpu(u, v, given[3], given[4], taps, handle))


def _asked(u: Tensor, rest: Sequence[Any]) -> tuple[tuple[Any, ...], Needed, Any, str]:
    """From what follows u and v: the arguments of ``conv``, which gradients are needed, taps, handle."""
    *given, need_u, need_in, need_out, taps, handle = rest
    return (u, *given), Needed(need_u, need_in, need_out), taps, handle


def _all_four(u: Tensor, made: Sequence[Maybe], of_filter: Tensor) -> Four:
    """Results of ``conv_gradients``: an empty tensor for each that is not there."""
    du, d_in, d_out = (u.new_empty(0) if x is None else x for x in made)
    return du, d_in, d_out, of_filter


def _prepared_cuda(
    u: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Maybe,
    out_gate: Maybe,
    skip: Maybe,
    handle: str,
    digest: str,
) -> Tensor:
    return registered(handle).run_prepared(u, planes, scale, in_gate, out_gate, skip, digest)


def _prepared_cpu(
    u: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Maybe,
    out_gate: Maybe,
    skip: Maybe,
    handle: str,
    digest: str,
) -> Tensor:
    """What ``prepare`` keeps on a CPU are the taps: planes (H, 2, T), forward and reversed."""
    if not as_it_is(digest):
        raise InputError(
            f"the spectrum was prepared for another device than {u.device} (plan {digest[:8]}): "
            "prepare it there"
        )
    return _conv_cpu(u, planes[:, 0], planes[:, 1], in_gate, out_gate, skip, handle)


# Calls of the package itself fit the operators. What is called by itself may not: a kernel would read
# beyond the ends of what is too short, so each operator checks what it is handed.


def _asked_of(handle: str, u: Tensor) -> Problem | Open:
    """What a call is checked against; a CPU needs nothing of an artifact but what its handle says."""
    if u.is_cuda:
        return _found(handle, u).problem
    return Open(*terms(handle, u.shape[-1]), stored_as(u.dtype) or "fp32")


def _check_conv(
    u: Tensor, k: Maybe, k_rev: Maybe, in_gate: Maybe, out_gate: Maybe, skip: Maybe, handle: str
) -> None:
    gates = {"in_gate": in_gate, "out_gate": out_gate}
    check_operands(_asked_of(handle, u), u, {"k": k, "k_rev": k_rev}, gates, skip)


def _check_both(
    u: Tensor,
    k: Maybe,
    k_rev: Maybe,
    in_gate: Maybe,
    first_gate: Tensor,
    second_gate: Tensor,
    skip: Maybe,
    handle: str,
) -> None:
    gates = {"in_gate": in_gate, "first_gate": first_gate, "second_gate": second_gate}
    check_operands(_asked_of(handle, u), u, {"k": k, "k_rev": k_rev}, gates, skip)


def _check_correlate(u: Tensor, v: Tensor, in_gate: Maybe, out_gate: Maybe, taps: int, handle: str) -> None:
    asked = _asked_of(handle, u)
    check_operands(asked, u, {}, {"v": v, "in_gate": in_gate, "out_gate": out_gate})
    check_taps(asked, taps)


def _check_gradients(u: Tensor, v: Tensor, *rest: Any) -> None:
    (_, k, k_rev, in_gate, out_gate, skip), _, taps, handle = _asked(u, rest)
    asked = _asked_of(handle, u)
    signals = {"v": v, "in_gate": in_gate, "out_gate": out_gate}
    check_operands(asked, u, {"k": k, "k_rev": k_rev}, signals, skip)
    check_taps(asked, taps)


def _check_prepared(
    u: Tensor,
    planes: Tensor,
    scale: Tensor,
    in_gate: Maybe,
    out_gate: Maybe,
    skip: Maybe,
    handle: str,
    digest: str,
) -> None:
    check_operands(_asked_of(handle, u), u, {}, {"in_gate": in_gate, "out_gate": out_gate}, skip)
    check_spectrum(planes, scale, u)


def _checking(check: Any, function: Any) -> Any:
    """An operator's function that refuses what does not fit."""

    def checked(*inputs: Any) -> Any:
        check(*inputs)
        return function(*inputs)

    return checked


def _like_u(u: Tensor, *_: object) -> Tensor:
    """What a convolution returns: a new contiguous tensor of u's shape, dtype and device."""
    return torch.empty_like(u, memory_format=torch.contiguous_format)


def _two_like_u(u: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _like_u(u), _like_u(u)


def _filter_like(u: Tensor, v: Tensor, in_gate: Maybe, out_gate: Maybe, taps: Any, handle: str) -> Tensor:
    """What a correlation with the input returns: (H, taps) in the wide precision."""
    return u.new_empty((u.shape[1], taps), dtype=eager.wide(u))


def _gradients_like(u: Tensor, v: Tensor, *rest: Any) -> Four:
    given, needed, taps, handle = _asked(u, rest)
    made = [_like_u(u) if need else None for need in needed]
    return _all_four(u, made, _filter_like(u, v, given[3], given[4], taps, handle))


def _of_one_level(rules: Any) -> Any:
    """The same rules as torch.func has those of a level: ``apply`` of other Functions may lead back to it."""
    names = ("forward", "setup_context", "backward", "jvp")
    return type(rules.__name__, (_SingleLevelFunction,), {n: staticmethod(getattr(rules, n)) for n in names})


def _differentiable(rules: Any, check: Any) -> Any:
    """The Autograd kernel of an operator."""
    of_one_level = _of_one_level(rules)

    def kernel(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            # A transform has called this for its own level: the rules are recorded there as they are, without
            # what torch.func does for a Function that it meets. Other levels come to the operator again.
            with enable_single_level_autograd_function():
                return of_one_level.apply(*inputs)
        if inputs[0].is_cuda and type(inputs[0]) in observed.PLAIN:
            check(*inputs)  # the way from here may lead past the functions that do
        if not observed.recorded(*inputs):  # a Function costs a few microseconds even when it records nothing
            return rules.forward(*inputs)
        return rules.apply(*inputs)

    return kernel


_OPERATORS: tuple[tuple[str, Any, Any, Any, Any, Any], ...] = (
    ("conv", _conv_cpu, _conv_cuda, _like_u, _check_conv, autograd.Conv),
    ("conv_both", _both_cpu, _both_cuda, _two_like_u, _check_both, autograd.ConvBoth),
    (
        "correlate_input",
        _correlate_cpu,
        _correlate_cuda,
        _filter_like,
        _check_correlate,
        autograd.CorrelateInput,
    ),
    (
        "conv_gradients",
        _gradients_cpu,
        _gradients_cuda,
        _gradients_like,
        _check_gradients,
        autograd.ConvGradients,
    ),
    (
        "conv_prepared",
        _prepared_cpu,
        _prepared_cuda,
        _like_u,
        _check_prepared,
        autograd.ConvPrepared,
    ),
)
for _name, _cpu, _cuda, _fake, _check, _rules in _OPERATORS:
    _LIBRARY.impl(_name, _checking(_check, _cpu), "CPU")
    _LIBRARY.impl(_name, _checking(_check, _cuda), "CUDA")
    ON_GPU[_name], RULES[_name] = _cuda, _rules
    _torch_library.register_fake(f"fftgen::{_name}", _fake, lib=_LIBRARY)
    _LIBRARY.impl(_name, _differentiable(_rules, _check), "Autograd")
    _torch_library.register_vmap(f"fftgen::{_name}", _rules.vmap, lib=_LIBRARY)
ON_GPU["conv_keeping"], RULES["conv_keeping"] = _conv_keeping, autograd.KeepingConv
ON_GPU["gradients_needed"] = _gradients_needed

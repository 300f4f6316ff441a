"""The operators (op.py) under differentiation and batching, told to PyTorch.

What is stored for the backward pass are arguments, and, where it is used again and no larger than the
signals, the filter's spectrum (``KeepingConv``); other intermediates are computed again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import Function

from fftgen import observed
from fftgen.derivatives import added, gradients, no_taps, of_signals, tangent, tangent_of_taps
from fftgen.errors import InputError
from fftgen.operators import ON_GPU, Maybe, conv, correlate_input


def _forward(name: str, tensors: int, inputs: tuple[Any, ...]) -> Any:
    """An operator below autograd, the first so many of whose inputs are tensors.

    Where nobody else looks, without the dispatcher, as in ``unobserved``. (What computes in PyTorch there
    would carry tangents along, which are not its business.)
    """
    if inputs[0].is_cuda and _forward_ad._current_level < 0 and observed.plain(*inputs[:tensors]):
        return ON_GPU[name](*inputs)
    operator = getattr(torch.ops.fftgen, name).default
    if torch._C._are_functorch_transforms_active():
        # A Function turns recording off, which is the business of the transforms below this one.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def _signed(forward: Any) -> Any:
    """A forward whose signature is at hand: ``Function.apply`` asks for it at every call."""
    forward.__signature__ = inspect.signature(forward)
    return forward


class Conv(Function):
    """Rules of ``conv``, for u, k, k_rev, in_gate, out_gate, skip in this order."""

    @staticmethod
    @_signed
    def forward(*inputs: Any) -> Tensor:
        y: Tensor = _forward("conv", 6, inputs)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.handle = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Maybe, ...]:
        """Gradients for v = dF/dy; the adjoint exchanges k with k_rev and in_gate with out_gate.

        du = in_gate * a and d in_gate = u * a for a = adjoint(out_gate * v): where both are needed, by one
        transform, each rounded once. d out_gate is the forward call with v for its gate;
        dk_j = sum_b sum_t (out_gate * v)_t x_{t-j}, dk_rev_j the same at t+j, and dskip = dk_0.
        """
        return (*gradients(ctx.saved_tensors, v, ctx.needs_input_grad, ctx.handle), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """One call for each signal, one for both filters, one for the skip (a filter of one tap)."""
        return tangent(ctx.saved_tensors, tangents, ctx.handle)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """A mapped dimension joins the batch where filters are shared by it, else the channels."""
        *tensors, handle = args
        size = info.batch_size
        u, k, k_rev, in_gate, out_gate, skip = (
            _spread(x, d, size) for x, d in zip(tensors, in_dims[:6], strict=True)
        )
        assert u is not None
        _, batch, channels, steps = u.shape
        if in_dims[1] is None and in_dims[2] is None and in_dims[5] is None:
            shared = (tensors[1], tensors[2], _rows(in_gate), _rows(out_gate), tensors[5])
            return conv(u.flatten(0, 1), *shared, handle).reshape(size, batch, channels, steps), 0
        own = (_rows(k), _rows(k_rev), _channels(in_gate), _channels(out_gate), _rows(skip))
        y = conv(u.transpose(0, 1).flatten(1, 2), *own, handle)
        return y.reshape(batch, size, channels, steps), 1


class KeepingConv(Function):
    """``Conv`` for a recorded call on a GPU: where ``_keeps``, its spectrum stays for the backward pass.

    A filter takes as long to transform as one to two rows of signals (results/README.md). Nothing but
    reverse mode looks at such a call: without a ``setup_context``, which torch.func would want, ``apply``
    takes half of the time.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.handle = inputs
        y: Tensor
        y, kept = ON_GPU["conv_keeping"](*inputs)
        u, _, _, in_gate, out_gate, _ = tensors
        signals = sum(x.nbytes for x in (u, in_gate, out_gate) if x is not None)
        ctx.save_for_backward(*tensors, *(kept if kept is not None and kept[0].nbytes <= signals else ()))
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Maybe, ...]:
        saved = ctx.saved_tensors
        kept = saved[6:] or None
        return (*gradients(saved[:6], v, ctx.needs_input_grad, ctx.handle, kept), None)


class ConvBoth(Function):
    """Rules of ``conv_both``, for u, k, k_rev, in_gate, first_gate, second_gate, skip in this order.

    Each result is a ``conv`` of its own as far as they are concerned.
    """

    @staticmethod
    @_signed
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        first, second = _forward("conv_both", 7, inputs)
        return first, second

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.handle = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Maybe, ...]:
        """The gradients of both results, added; those of the gates apart."""
        common, gates = _apart(ctx.saved_tensors)
        needs, needs_gate = _apart(ctx.needs_input_grad[:7])
        totals: list[Maybe] = [None] * 5
        of_gates: list[Maybe] = [None, None]
        for i, v in enumerate(cotangents):
            if v is None:
                continue
            found = gradients(_with(common, gates[i]), v, _with(needs, needs_gate[i]), ctx.handle)
            rest, (of_gates[i],) = _apart(found, 1)
            totals = [added(a, b) for a, b in zip(totals, rest, strict=True)]
        return (*totals[:4], *of_gates, totals[4], None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        common, gates = _apart(ctx.saved_tensors)
        moved, moved_gates = _apart(tangents[:7])
        first, second = (
            torch.zeros_like(common[0]) if all(x is None for x in given) else tangent(at, given, ctx.handle)
            for at, given in ((_with(common, gates[i]), _with(moved, moved_gates[i])) for i in range(2))
        )
        return first, second

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """As ``Conv`` has it, result by result."""
        common, gates = _apart(args[:7])
        dims, gate_dims = _apart(in_dims[:7])
        found = [
            Conv.vmap(info, (*_with(dims, gate_dims[i]), None), *_with(common, gates[i]), args[7])
            for i in range(2)
        ]
        return tuple(y for y, _ in found), tuple(d for _, d in found)


class ConvPrepared(Function):
    """Rules of ``conv_prepared``, for u, planes, scale, in_gate, out_gate, skip: there are no derivatives."""

    @staticmethod
    @_signed
    def forward(*inputs: Any) -> Tensor:
        y: Tensor = _forward("conv_prepared", 6, inputs)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Maybe, ...]:
        raise InputError(
            "there are no gradients through a prepared spectrum: hand in the filter itself, conv(u, k); it "
            "is transformed at every call then, and k need not require a gradient"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise InputError(
            "there are no forward derivatives through a prepared spectrum: hand in the filter itself, "
            "conv(u, k)"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """A mapped dimension joins the batch where the spectrum is shared by it, else it goes one by one."""
        *tensors, handle, digest = args
        operator, size = torch.ops.fftgen.conv_prepared, info.batch_size
        if in_dims[1] is None and in_dims[2] is None and in_dims[5] is None:
            u, in_gate, out_gate = (_spread(tensors[i], in_dims[i], size) for i in (0, 3, 4))
            assert u is not None
            gates = _rows(in_gate), _rows(out_gate)
            y = operator(u.flatten(0, 1), *tensors[1:3], *gates, tensors[5], handle, digest)
            return y.unflatten(0, u.shape[:2]), 0
        each = (
            [x if d is None else x.select(d, i).contiguous() for x, d in zip(tensors, in_dims, strict=False)]
            for i in range(size)
        )
        return torch.stack([operator(*own, handle, digest) for own in each]), 0


class CorrelateInput(Function):
    """Rules of ``correlate_input``, for u, v, in_gate, out_gate in this order."""

    @staticmethod
    @_signed
    def forward(*inputs: Any) -> Tensor:
        found: Tensor = _forward("correlate_input", 4, inputs)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.taps, ctx.handle = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, k: Tensor) -> tuple[Maybe, ...]:
        """The gradient k (H, taps) is a filter: u sees it backwards, v forwards."""
        return (*of_signals(ctx.saved_tensors, k, ctx.needs_input_grad, ctx.handle), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Linear in each of the four signals."""
        return tangent_of_taps(ctx.saved_tensors, tangents, ctx.taps, ctx.handle)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """Every example its own channels: sums over the batch stay apart."""
        *tensors, taps, handle = args
        spread = (_spread(x, d, info.batch_size) for x, d in zip(tensors, in_dims[:4], strict=True))
        u, v, in_gate, out_gate = (_channels(x) for x in spread)
        assert u is not None
        assert v is not None
        found = correlate_input(u, v, in_gate, out_gate, taps, handle)
        return found.reshape(info.batch_size, -1, taps), 0


class ConvGradients(Function):
    """Rules of ``conv_gradients``, for u, v, k, k_rev, in_gate, out_gate, skip in this order.

    Each result is a call of another operator as far as they are concerned.
    """

    ARGUMENTS = ("u", "v", "k", "k_rev", "in_gate", "out_gate", "skip")
    # The arguments of ``conv`` that the gradient of a signal is the result of, and those of the filter's.
    CALLS = (
        ("v", "k_rev", "k", "out_gate", "in_gate", "skip"),
        ("v", "k_rev", "k", "out_gate", "u", "skip"),
        ("u", "k", "k_rev", "in_gate", "v", "skip"),
    )
    SIGNALS = ("u", "v", "in_gate", "out_gate")

    @staticmethod
    @_signed
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        du, d_in, d_out, dk = _forward("conv_gradients", 7, inputs)
        return du, d_in, d_out, dk

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.needed, (ctx.taps, ctx.handle) = inputs[:7], inputs[7:10], inputs[10:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x, n in zip(output, ctx.needed, strict=False) if not n))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def _given(cls, values: Sequence[Any], names: Sequence[str]) -> list[Any]:
        by_name = dict(zip(cls.ARGUMENTS, values, strict=False))
        return [by_name[name] for name in names]

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Maybe, ...]:
        """The gradients of all results, added."""
        own = ConvGradients
        saved, needs, handle = ctx.saved_tensors, ctx.needs_input_grad, ctx.handle
        totals: dict[str, Maybe] = {}

        def add(names: Sequence[str], found: Sequence[Maybe]) -> None:
            for name, x in zip(names, found, strict=True):
                totals[name] = added(totals.get(name), x)

        for names, needed, w in zip(own.CALLS, ctx.needed, cotangents[:3], strict=True):
            if needed and w is not None:
                add(names, gradients(own._given(saved, names), w, own._given(needs, names), handle))
        if cotangents[3] is not None:
            given = (own._given(saved, own.SIGNALS), cotangents[3], own._given(needs, own.SIGNALS), handle)
            add(own.SIGNALS, of_signals(*given))
        return (*(totals.get(name) for name in own.ARGUMENTS), *[None] * 5)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Maybe, ...]:
        own, saved = ConvGradients, ctx.saved_tensors
        out: list[Maybe] = []
        for names, needed in zip(own.CALLS, ctx.needed, strict=True):
            moved = own._given(tangents, names)
            if not needed:
                out.append(None)
            elif all(x is None for x in moved):
                out.append(torch.zeros_like(saved[0]))
            else:
                out.append(tangent(own._given(saved, names), moved, ctx.handle))
        moved = own._given(tangents, own.SIGNALS)
        given = (own._given(saved, own.SIGNALS), moved, ctx.taps, ctx.handle)
        none = all(x is None for x in moved)
        return (*out, no_taps(saved[0], ctx.taps) if none else tangent_of_taps(*given))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Result by result, as the operators have them that they are of."""
        own = ConvGradients
        values, needed, (taps, handle) = args[:7], args[7:10], args[10:]
        found: list[tuple[Tensor, int | None]] = []
        for names, need in zip(own.CALLS, needed, strict=True):
            if need:
                dims = (*own._given(in_dims, names), None)
                found.append(Conv.vmap(info, dims, *own._given(values, names), handle))
            else:
                found.append((values[0].new_empty(0), None))
        dims = (*own._given(in_dims, own.SIGNALS), None, None)
        found.append(CorrelateInput.vmap(info, dims, *own._given(values, own.SIGNALS), taps, handle))
        return tuple(y for y, _ in found), tuple(d for _, d in found)


def _apart(given: Sequence[Any], gates: int = 2) -> tuple[list[Any], list[Any]]:
    """What is of each argument: all but the output gates, which stand fifth, and these."""
    return [*given[:4], *given[4 + gates :]], list(given[4 : 4 + gates])


def _with(common: Sequence[Any], gate: Any) -> list[Any]:
    """The inverse, for one gate."""
    return [*common[:4], gate, *common[4:]]


def _spread(x: Maybe, dim: int | None, size: int) -> Maybe:
    """The mapped dimension in front, expanded where a tensor has none."""
    if x is None:
        return None
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _channels(x: Maybe) -> Maybe:
    """(V, B, H, L) to (B, V * H, L): every example its own channels."""
    return None if x is None else x.transpose(0, 1).flatten(1, 2)


def _rows(x: Maybe) -> Maybe:
    """(V, B, ...) to (V * B, ...)."""
    return None if x is None else x.flatten(0, 1)

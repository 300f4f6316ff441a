"""The operators and their derivatives on CPU tensors: values, first and second order, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from gradients import NAMES, OPTIONS, TORCH
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fftgen
from fftgen import eager, gradient_accuracy, observed, op, operators
from fftgen.conv import registered
from fftgen.errors import InputError
from fftgen.handles import terms
from fftgen.spectra import Spectrum

MODES = ("causal", "circular")
SHAPES = {"plain": (5, 4, 8), "long filter": (3, 6, 8), "one step": (1, 2, 4), "whole": (6, 6, 6)}


def call(conv: fftgen.Conv, given: dict[str, Tensor]) -> Tensor:
    u, k = given["u"], given["k"]
    return conv(u, k, **{n: x for n, x in given.items() if n not in ("u", "k")})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
def test_values_are_those_of_the_definition(
    mode: str, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    for steps, taps, length in (*SHAPES.values(), (50, 61, 64), (61, 64, 67)):
        given = gradients.draw(rng, (2, 3, steps), taps, options, torch.float64, torch.float64)
        y = call(fftgen.get_conv(length, causal=mode == "causal"), given)
        ref = gradients.definition(**given, mode=mode, length=length)
        gradients.judge(y, ref, 1e-14)
        gradients.judge(gradients.composite(**given, mode=mode, length=length), ref, 1e-14)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
def test_gradients_of_first_and_second_order(
    mode: str, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """gradcheck in float64, forward mode as well; gradgradcheck by a random projection."""
    steps, taps, length = list(SHAPES.values())[len(options) % len(SHAPES)]
    given = gradients.draw(rng, (2, 2, steps), taps, options, torch.float64, torch.float64)
    conv = fftgen.get_conv(length, causal=mode == "causal")

    def f(*tensors: Tensor) -> Tensor:
        return call(conv, dict(zip(given, tensors, strict=True)))

    inputs = tuple(given.values())
    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_every_second_derivative_of_everything_at_once(mode: str, rng: np.random.Generator) -> None:
    """All options, entry by entry, batched as torch.func and is_grads_batched do it."""
    given = gradients.draw(rng, (2, 2, 3), 2, OPTIONS[-1], torch.float64, torch.float64)
    conv = fftgen.get_conv(4, causal=mode == "causal")

    def f(*tensors: Tensor) -> Tensor:
        return call(conv, dict(zip(given, tensors, strict=True)))

    inputs = tuple(given.values())
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_batched_grad=True)


@pytest.mark.parametrize("mode", ["causal", "circular", "full", "same", "valid"])
@pytest.mark.parametrize(("steps", "taps"), [(6, 4), (5, 5), (4, 1)])
def test_gradients_of_the_functional_form(mode: str, steps: int, taps: int, rng: np.random.Generator) -> None:
    given = gradients.draw(rng, (2, 2, steps), taps, (), torch.float64, torch.float64)

    def f(u: Tensor, k: Tensor) -> Tensor:
        return fftgen.fftconv(u, k, mode=mode)

    assert gradcheck(f, tuple(given.values()), check_forward_ad=True)
    assert gradgradcheck(f, tuple(given.values()), fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [1, 5, 8])
def test_gradients_of_the_correlation_with_the_input(mode: str, taps: int, rng: np.random.Generator) -> None:
    given = gradients.draw(rng, (2, 2, 6), 1, ("in_gate", "out_gate"), torch.float64, torch.float64)
    u, _, in_gate, out_gate = given.values()
    v = torch.from_numpy(rng.standard_normal((2, 2, 6))).requires_grad_()

    def f(*tensors: Tensor) -> Tensor:
        found: Tensor = torch.ops.fftgen.correlate_input(*tensors, taps, f"{mode}-8-bf16")
        return found

    inputs = (u, v, in_gate, out_gate)
    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [(), ("in_gate",), ("k_rev", "in_gate", "skip")], ids="+".join)
def test_two_results_by_one_transform(mode: str, options: tuple[str, ...], rng: np.random.Generator) -> None:
    """Values, and derivatives of first and second order, forward, reverse and batched."""
    given = gradients.draw(rng, (2, 2, 6), 4, options, torch.float64, torch.float64)
    names = [n for n in NAMES if n in given]
    gates = [torch.from_numpy(rng.standard_normal((2, 2, 6))).requires_grad_() for _ in range(2)]

    def f(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        at = dict(zip(names, tensors, strict=False))
        first, second = operators.conv_both(
            at["u"],
            at["k"],
            at.get("k_rev"),
            at.get("in_gate"),
            *tensors[-2:],
            at.get("skip"),
            f"{mode}-8-bf16",
        )
        return first, second

    inputs = (*(given[n] for n in names), *gates)
    for y, gate in zip(f(*inputs), gates, strict=True):
        gradients.judge(y, gradients.definition(**given, out_gate=gate, mode=mode, length=8), 1e-14)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, fast_mode=True)
    assert gradcheck(lambda *x: f(*x)[1], inputs, check_forward_ad=True)  # one of them alone


@pytest.mark.drawn(2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, True)])
def test_all_gradients_by_one_operator(
    mode: str, needed: tuple[bool, bool, bool], rng: np.random.Generator
) -> None:
    """Values against autograd, and derivatives of first and second order, forward, reverse and batched."""
    given = gradients.draw(rng, (2, 2, 6), 4, OPTIONS[-1], torch.float64, torch.float64)
    v = torch.from_numpy(rng.standard_normal((2, 2, 6))).requires_grad_()

    def f(v: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        u, k, k_rev, in_gate, out_gate, skip = tensors
        given = (u, v, k, k_rev, in_gate, out_gate, skip)
        made = operators.conv_gradients(*given, needed, k.shape[-1], f"{mode}-8-bf16")
        assert [x is not None for x in made[:3]] == list(needed)
        return tuple(x for x in made if x is not None)

    inputs = (v, *(given[n] for n in NAMES))
    _, wanted = gradients.exact(given, v.detach(), mode=mode, length=8)
    names = [n for n, need in zip(("u", "in_gate", "out_gate"), needed, strict=True) if need]
    for found, name in zip(f(*inputs), (*names, "k"), strict=True):
        gradients.judge(found, wanted[name], 1e-13)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, fast_mode=True)
    assert gradcheck(lambda *x: f(*x)[-1], inputs, check_forward_ad=True)  # one of them alone
    mapped = torch.func.vmap(f, in_dims=(0, *[None] * 6))(torch.stack([v, 2 * v]), *inputs[1:])
    for both, one in zip(mapped, f(*inputs), strict=True):
        gradients.judge(both[1], 2 * one, 1e-13)


def test_a_backward_pass_asks_for_all_gradients_at_once(rng: np.random.Generator) -> None:
    """Where the filter's is among them; the reversed filter's and the skip's beside it."""
    cases = {
        ("u", "k"): ["conv_gradients"],
        ("u", "k", "in_gate", "out_gate"): ["conv_gradients"],
        ("u", "k", "skip"): ["conv_gradients"],
        ("k",): ["correlate_input"],
        ("out_gate", "k", "k_rev"): ["conv_gradients", "correlate_input"],
        ("u", "out_gate"): ["conv", "conv"],
    }
    given = gradients.draw(rng, (2, 2, 6), 4, OPTIONS[-1], torch.float64, torch.float64)
    cotangent = torch.from_numpy(rng.standard_normal((2, 2, 6)))
    _, wanted = gradients.exact(given, cotangent, mode="causal", length=8)
    for names, expected in cases.items():
        leaves = {n: x.detach().requires_grad_(n in names) for n, x in given.items()}
        y = call(fftgen.get_conv(8, causal=True), leaves)
        with Called() as called:
            y.backward(cotangent)
        assert called.names == expected, names
        for name in names:
            found = leaves[name].grad
            assert found is not None
            gradients.judge(found, wanted[name], 1e-13)


def test_both_gradients_of_a_gated_input_take_one_transform(rng: np.random.Generator) -> None:
    """And each by itself one of its own."""
    given = gradients.draw(rng, (2, 2, 6), 4, ("in_gate",), torch.float64, torch.float64)
    for names, wanted in ((("u", "in_gate"), "conv_both"), (("u",), "conv"), (("in_gate",), "conv")):
        leaves = {n: x.detach().requires_grad_(n in names) for n, x in given.items()}
        y = call(fftgen.get_conv(8, causal=True), leaves)
        with Called() as called:
            y.backward(torch.ones_like(y))
        assert called.names == [wanted], names


class Called(TorchDispatchMode):
    """Names of this package's operators, in the order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fftgen":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
def test_gradients_of_stored_types_are_exact_to_the_rounding_model(
    mode: str, dtype: str, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Result and every gradient against float64 autograd, per row and overall; float32 filters."""
    steps, length = 700, 1024
    given = gradients.draw(rng, (3, 4, steps), 900, options, TORCH[dtype])
    cotangent = torch.from_numpy(rng.standard_normal((3, 4, steps))).to(TORCH[dtype])
    y = call(fftgen.get_conv(length, TORCH[dtype], causal=mode == "causal"), given)
    y.backward(cotangent)
    ref, wanted = gradients.exact(given, cotangent, mode=mode, length=length)
    expected = gradient_accuracy.cpu_signal(dtype)  # gated inputs are not rounded
    gradients.judge(y, ref, expected)
    for name, x in given.items():
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
        ref = wanted[name]
        if name in ("k", "k_rev"):
            reach = steps if mode == "causal" else 900  # taps beyond the signal meet nothing
            assert not x.grad[:, reach:].any()
            gradients.judge(x.grad[:, :reach], ref[:, :reach], gradient_accuracy.cpu_filters(dtype))
        elif name == "skip":
            gradients.judge(x.grad, ref, gradient_accuracy.cpu_filters(dtype), margin=4)
        else:
            gradients.judge(x.grad, ref, expected)


def test_zero_gradients_would_fail_every_check(rng: np.random.Generator) -> None:
    ref = torch.from_numpy(rng.standard_normal((2, 100)))
    for wrong in (torch.zeros_like(ref), ref * torch.tensor([[1.0], [0.0]]), ref.roll(1, 0)):
        with pytest.raises(AssertionError):
            gradients.judge(wrong, ref, gradient_accuracy.filters("bf16", 4, gates=2))
    with pytest.raises(AssertionError, match="proves nothing"):
        gradients.judge(ref, torch.zeros_like(ref), 1.0)


def test_only_arguments_are_stored_for_the_backward_pass(rng: np.random.Generator) -> None:
    """Memory of a training step: arguments, result, gradients. No intermediate survives the call."""
    given = gradients.draw(rng, (2, 3, 64), 64, OPTIONS[-1], torch.bfloat16)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        call(fftgen.get_conv(64, causal=True), given)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in given.values()}
    assert len(kept) == len(given)


@pytest.mark.parametrize("wanted", NAMES)
def test_each_gradient_by_itself(wanted: str, rng: np.random.Generator) -> None:
    """What needs no gradient gets none, and nothing is computed for it."""
    given = gradients.draw(rng, (2, 3, 40), 30, OPTIONS[-1], torch.float64, torch.float64)
    alone = {n: x.detach().requires_grad_(n == wanted) for n, x in given.items()}
    conv = fftgen.get_conv(64, causal=True)
    cotangent = torch.from_numpy(rng.standard_normal((2, 3, 40)))
    with Count() as count:
        call(conv, alone).backward(cotangent)
    assert count.calls == 2  # forward, and one for the one gradient
    _, ref = gradients.exact(given, cotangent, mode="causal", length=64)
    gradients.judge(alone[wanted].grad, ref[wanted], 1e-13)  # type: ignore[arg-type]
    assert all(x.grad is None for n, x in alone.items() if n != wanted)


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts calls of the package's operators."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.namespace == "fftgen"
        return func(*args, **(kwargs or {}))


def test_gradients_of_cotangents_that_are_no_plain_tensors(rng: np.random.Generator) -> None:
    """Expanded (from sum), transposed and offset cotangents."""
    given = gradients.draw(rng, (2, 3, 40), 30, ("k_rev",), torch.float64, torch.float64)
    conv = fftgen.get_conv(40, causal=True)
    whole = torch.from_numpy(rng.standard_normal((40, 3, 3)))
    for cotangent in (torch.ones(()).double().expand(2, 3, 40), whole.permute(1, 2, 0)[1:]):
        _, ref = gradients.exact(given, cotangent, mode="causal", length=40)
        found = torch.autograd.grad(call(conv, given), tuple(given.values()), cotangent)
        for out, want in zip(found, ref.values(), strict=True):
            gradients.judge(out, want, 1e-13)


def test_filters_of_any_width_get_gradients_of_their_own(rng: np.random.Generator) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given = gradients.draw(rng, (2, 3, 40), 30, ("skip",), torch.bfloat16, dtype)
        call(fftgen.get_conv(40, causal=True), given).sum().backward()
        assert given["k"].grad is not None
        assert given["k"].grad.dtype == dtype
        assert given["skip"].grad is not None
        assert given["skip"].grad.dtype == dtype


@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("options", [(), ("k_rev", "in_gate"), ("k_rev", "out_gate", "skip")], ids="+".join)
def test_gradients_through_a_prepared_filter_are_those_of_the_call(
    mode: str, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Of the filter as well, which is prepared once for two calls; and of the second order."""
    given = gradients.draw(rng, (2, 3, 40), 30, options, torch.float64, torch.float64)
    conv = fftgen.get_conv(48, causal=mode == "causal")
    made = conv.prepare(given["k"], k_rev=given.get("k_rev"))
    rest = {n: x for n, x in given.items() if n not in ("u", "k", "k_rev")}
    cotangent = torch.from_numpy(rng.standard_normal((2, 3, 40)))
    inputs = tuple(given.values())
    for _ in range(2):
        y = conv(given["u"], made, **rest)
        found = torch.autograd.grad(y, inputs, cotangent, create_graph=True)
        _, ref = gradients.exact(given, cotangent, mode=mode, length=48)
        for out, want in zip(found, ref.values(), strict=True):
            gradients.judge(out, want, 1e-13)
    directions = [torch.randn_like(x) for x in inputs]
    plain = torch.autograd.grad(call(conv, given), inputs, cotangent, create_graph=True)
    for out, want in zip(*(torch.autograd.grad(x, inputs, directions) for x in (found, plain)), strict=True):
        gradients.judge(out, want, 1e-12)


def test_a_filter_prepared_without_gradients_gets_none(rng: np.random.Generator) -> None:
    given = gradients.draw(rng, (2, 3, 40), 30, (), torch.float64, torch.float64)
    conv = fftgen.get_conv(40, causal=True)
    with torch.no_grad():
        made = conv.prepare(given["k"])
    assert not made.planes.requires_grad
    conv(given["u"], made).sum().backward()
    assert given["k"].grad is None
    assert given["u"].grad is not None


class OnGPU(Tensor):
    """A tensor that says it is on a GPU."""

    device = property(lambda _: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]


def test_a_filter_prepared_on_a_gpu_does_not_lose_its_gradient_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = fftgen.get_conv(8, causal=True)
    u, k = torch.ones(1, 2, 8), torch.ones(2, 8).as_subclass(OnGPU).requires_grad_()

    def kernels(*_: Any) -> Spectrum:
        return Spectrum(torch.zeros(2, 2, 8), torch.ones(2, 2), "torch.fft", 8)

    monkeypatch.setattr(conv, "on", lambda *_: SimpleNamespace(spectrum=kernels))
    made = conv.prepare(k)
    y = torch.ops.fftgen.conv_prepared(u, made.planes, made.scale, None, None, None, conv.handle, made.digest)
    with pytest.raises(InputError, match="no gradients through a prepared spectrum: hand in the filter"):
        y.sum().backward()
    with torch.no_grad():
        assert not conv.prepare(k).planes.requires_grad
    assert not conv.prepare(k.detach()).planes.requires_grad


def test_the_operator_of_prepared_spectra_refuses_gradients(rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((1, 2, 8))).requires_grad_()
    planes, scale = torch.zeros(2, 2, 8).double(), torch.ones(2, 2)
    y = torch.ops.fftgen.conv_prepared(u, planes, scale, None, None, None, "causal-8-bf16", "torch.fft")
    with pytest.raises(InputError, match="no gradients through a prepared spectrum: hand in the filter"):
        y.sum().backward()


@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "grad", "dual"])
def test_the_operator_of_prepared_spectra_refuses_derivatives_of_every_kind(
    transform: str, rng: np.random.Generator
) -> None:
    """A tangent that were dropped would be zeros that nobody asked for."""
    u, k = torch.from_numpy(rng.standard_normal((1, 2, 8))), torch.from_numpy(rng.standard_normal((2, 8)))
    conv = fftgen.get_conv(8, causal=True)
    made = conv.prepare(k)

    def f(x: Tensor) -> Tensor:
        return torch.ops.fftgen.conv_prepared(
            x, made.planes, made.scale, None, None, None, conv.handle, made.digest
        )

    def dual() -> None:
        with forward_ad.dual_level():
            f(forward_ad.make_dual(u, u))

    ways: dict[str, Callable[[], Any]] = {
        "jvp": lambda: torch.func.jvp(f, (u,), (u,)),
        "jacfwd": lambda: torch.func.jacfwd(f)(u),
        "grad": lambda: torch.func.grad(lambda x: f(x).sum())(u),
        "dual": dual,
    }
    said = "no gradients" if transform == "grad" else "no forward derivatives"
    with pytest.raises(InputError, match=f"{said} through a prepared spectrum: hand in the filter"):
        ways[transform]()
    assert torch.equal(f(u), conv(u, made))


@pytest.mark.parametrize("spectra", [False, True])
def test_the_operator_of_prepared_spectra_is_mapped(spectra: bool, rng: np.random.Generator) -> None:
    u, gate = (torch.from_numpy(rng.standard_normal((3, 5, 2, 8))) for _ in range(2))
    conv = fftgen.get_conv(8, causal=True)
    made = [conv.prepare(torch.from_numpy(rng.standard_normal((2, 8)))) for _ in range(3 if spectra else 1)]
    planes = torch.stack([s.planes for s in made], dim=-1)

    def f(x: Tensor, p: Tensor, g: Tensor) -> Tensor:
        return torch.ops.fftgen.conv_prepared(x, p, made[0].scale, g, None, None, conv.handle, made[0].digest)

    if spectra:
        y = torch.func.vmap(f, in_dims=(0, -1, 0))(u, planes, gate)
    else:
        y = torch.func.vmap(f, in_dims=(0, None, 0))(u, planes[..., 0].contiguous(), gate)
    for i in range(3):
        torch.testing.assert_close(y[i], conv(u[i], made[i if spectra else 0], in_gate=gate[i]))


U, K, D = torch.zeros(2, 3, 20, dtype=torch.bfloat16), torch.zeros(3, 9), torch.zeros(3)
MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"k": K[:1]}, r"k must be \(channels, taps\) = \(3, taps\), got \(1, 9\)"),
    ({"k": K[None]}, r"k must be \(channels, taps\) = \(3, taps\), got \(1, 3, 9\)"),
    ({"k": K[:, :0]}, "k has 0 taps"),
    ({"k": K.int()}, "k must be real floating point"),
    ({"k_rev": K[:2]}, r"k_rev must be \(channels, taps\) = \(3, taps\), got \(2, 9\)"),
    ({"k": None}, "one of k, k_rev must be there"),
    ({"in_gate": U[:1, :1, :8]}, r"in_gate must have u's shape \(2, 3, 20\), got \(1, 1, 8\)"),
    ({"out_gate": U[..., :19]}, r"out_gate must have the result's shape \(2, 3, 20\)"),
    ({"in_gate": U.float()}, r"in_gate is torch\.float32, u is torch\.bfloat16"),
    ({"skip": D[:2]}, r"skip must be \(channels,\) = \(3\), got \(2\)"),
    ({"skip": D.int()}, "skip must be floating point"),
    ({"u": U[0]}, r"u must be \(batch, channels, length\), got \(3, 20\)"),
    ({"u": torch.zeros(2, 3, 33).bfloat16()}, "u has length 33, this convolution takes at most 32"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_operators_check_what_they_are_handed(change: dict[str, Any], message: str) -> None:
    """By themselves; on a GPU as well (test_routes.py)."""
    given = {**dict.fromkeys(NAMES), "u": U, "k": K, **change}
    with pytest.raises(InputError, match=message):
        torch.ops.fftgen.conv(*given.values(), "causal-32-bf16")
    u, *rest = given.values()
    with pytest.raises(InputError, match=message):
        torch.ops.fftgen.conv_gradients(u, u, *rest, True, False, False, 9, "causal-32-bf16")
    if "out_gate" not in change:
        with pytest.raises(InputError, match=message):
            torch.ops.fftgen.conv_both(u, *rest[:3], u, u, rest[4], "causal-32-bf16")


def test_the_other_operators_check_as_well() -> None:
    with pytest.raises(InputError, match="k is on meta, u on cpu"):
        op._check_conv(U, K.to("meta"), None, None, None, None, "causal-32-bf16")
    ops, causal, wrapped = torch.ops.fftgen, "causal-32-bf16", "circular-32-bf16"
    gate = "_gate must have the result's shape"
    for gates, name in (((U[:1], U), "first"), ((U, U[:1]), "second")):
        with pytest.raises(InputError, match=name + gate):
            ops.conv_both(U, K, None, None, *gates, None, causal)
    for v, a, taps, handle, message in (
        (U[:1], None, 9, causal, "v must have the result's shape"),
        (U, U[:1], 9, causal, "in_gate must have u's shape"),
        (U, None, 0, causal, "0 taps are no filter of a causal convolution of 32"),
        (U, None, 33, wrapped, "33 taps are no filter of a circular convolution of 32"),
    ):
        with pytest.raises(InputError, match=message):
            ops.correlate_input(U, v, a, None, taps, handle)
        with pytest.raises(InputError, match=message):
            ops.conv_gradients(U, v, K, None, a, None, None, True, False, False, taps, handle)
    assert ops.correlate_input(U, U, None, None, 33, causal).shape == (3, 33)
    made = fftgen.get_conv(32, causal=True).prepare(K)
    for planes, scale in ((made.planes[:2], made.scale), (made.planes, made.scale[:, :1])):
        with pytest.raises(InputError, match="are no spectrum for 3 channels"):
            ops.conv_prepared(U, planes, scale, None, None, None, causal, made.digest)
    with pytest.raises(InputError, match="in_gate must have u's shape"):
        ops.conv_prepared(U, made.planes, made.scale, U[:1], None, None, causal, made.digest)


def test_fast_lengths_are_the_next_smooth_ones() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(13) for b in range(8) for c in range(6))
    for points in (*range(1, 600), 4097, 4999):
        assert eager.fast_length(points) == next(n for n in smooth if n >= points)


def test_handles_of_artifacts_and_open_lengths_name_mode_and_length() -> None:
    """A graph exported with a loaded artifact runs on CPUs without the file."""
    assert terms("artifact:0123abcd:circular-64-bf16", 9) == ("circular", 64)
    assert terms("causal-*-fp16", 9) == ("causal", 9)
    u, k = torch.randn(1, 2, 9).double(), torch.randn(2, 5).double()
    y = torch.ops.fftgen.conv(u, k, None, None, None, None, "artifact:0123abcd:circular-64-bf16")
    gradients.judge(y, gradients.composite(u, k, mode="circular", length=64), 1e-13)
    with pytest.raises(InputError, match=r"call fftgen\.load on its artifact first"):
        registered("artifact:0123abcd:circular-64-bf16")
    assert registered("causal-*-bf16", 1000) is registered("causal-*-bf16", 1001)  # neighbours share kernels
    assert registered("circular-*-bf16", 1000).problem.length == 1000


def test_only_a_call_that_nobody_looks_at_goes_past_the_dispatcher() -> None:
    plain = torch.zeros(2)
    leaf = torch.nn.Parameter(plain)
    assert observed.unobserved(plain, None)
    assert not observed.unobserved(plain, leaf)
    with torch.no_grad():
        assert observed.unobserved(plain, leaf)
        with forward_ad.dual_level():
            assert not observed.unobserved(plain)
    with torch.inference_mode():
        assert observed.unobserved(plain)

    class Mine(Tensor):
        pass

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    assert not observed.unobserved(plain.as_subclass(Mine))
    assert not observed.unobserved(torch.zeros(2, dtype=torch.complex64).conj().imag)
    assert not observed.unobserved(torch._efficientzerotensor((2,)))
    for mode in (Functions(), Dispatched(), FakeTensorMode()):
        with mode:
            assert not observed.unobserved(plain)
    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(observed.unobserved(x))
        return x * 2

    torch.func.vmap(note)(plain)
    torch.jit.trace(note, plain, check_trace=False)
    assert seen == [False, False]

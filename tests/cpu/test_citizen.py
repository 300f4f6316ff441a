"""PyTorch's conventions: opcheck, compile, export, autocast, torch.func, checkpointing, DDP, fakes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ddp_worker
import gradients
import numpy as np
import pytest
import torch
from gradients import OPTIONS, composite, draw
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fftgen
from fftgen import conv as conv_module
from fftgen import eager, filter_gradient
from fftgen.conv import registered
from fftgen.errors import InputError
from fftgen.nn import FFTConv, LongConv

OPS = torch.ops.fftgen
LENGTHS = (64, 100, 37, 200)


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(
    rng: np.random.Generator, steps: int = 40, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    return draw(rng, (2, 3, steps), steps // 2, OPTIONS[-1], dtype)


# torch.library


@pytest.mark.drawn(3)
@pytest.mark.parametrize("handle", ["causal-64-bf16", "circular-64-bf16", "causal-*-bf16", "circular-*-bf16"])
@pytest.mark.parametrize("options", [(), ("k_rev", "skip"), OPTIONS[-1]], ids="+".join)
def test_opcheck_of_the_convolution(handle: str, options: tuple[str, ...], rng: np.random.Generator) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        given = draw(rng, (2, 3, 40), 20, options, dtype)
        torch.library.opcheck(OPS.conv.default, (*(given.get(n) for n in gradients.NAMES), handle))
    strided = torch.from_numpy(rng.standard_normal((2, 40, 3))).bfloat16().transpose(1, 2).requires_grad_()
    torch.library.opcheck(OPS.conv.default, (strided, given["k"], None, None, None, None, handle))


@pytest.mark.parametrize("handle", ["causal-64-bf16", "circular-*-bf16"])
@pytest.mark.parametrize("options", [(), ("k_rev", "in_gate", "skip")], ids="+".join)
def test_opcheck_of_two_results(handle: str, options: tuple[str, ...], rng: np.random.Generator) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        given = draw(rng, (2, 3, 40), 20, options, dtype)
        gates = [torch.from_numpy(rng.standard_normal((2, 3, 40))).to(dtype).requires_grad_() for _ in "12"]
        filters = (given["k"], given.get("k_rev"))
        args = (given["u"], *filters, given.get("in_gate"), *gates, given.get("skip"), handle)
        torch.library.opcheck(OPS.conv_both.default, args)


@pytest.mark.parametrize("taps", [1, 20])
@pytest.mark.parametrize("handle", ["causal-64-bf16", "circular-*-bf16"])
def test_opcheck_of_the_correlation(handle: str, taps: int, rng: np.random.Generator) -> None:
    given = tensors(rng)
    v = torch.from_numpy(rng.standard_normal((2, 3, 40))).bfloat16().requires_grad_()
    for a, b in ((None, None), (given["in_gate"], given["out_gate"])):
        torch.library.opcheck(OPS.correlate_input.default, (given["u"], v, a, b, taps, handle))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("handle", ["causal-64-bf16", "circular-*-bf16"])
@pytest.mark.parametrize(
    "options", [(), ("in_gate",), ("k_rev", "in_gate", "out_gate", "skip")], ids="+".join
)
def test_opcheck_of_all_gradients(handle: str, options: tuple[str, ...], rng: np.random.Generator) -> None:
    for dtype, needed in ((torch.bfloat16, (True, True, True)), (torch.float32, (True, False, False))):
        given = draw(rng, (2, 3, 40), 20, options, dtype)
        v = torch.from_numpy(rng.standard_normal((2, 3, 40))).to(dtype).requires_grad_()
        rest = [given.get(n) for n in gradients.NAMES[1:]]
        gates = [n and g in given for n, g in zip(needed[1:], ("in_gate", "out_gate"), strict=True)]
        torch.library.opcheck(
            OPS.conv_gradients.default, (given["u"], v, *rest, needed[0], *gates, 20, handle)
        )


def test_opcheck_of_prepared_spectra(rng: np.random.Generator) -> None:
    given = {n: x.detach() for n, x in tensors(rng).items()}
    made = fftgen.get_conv(64).prepare(given["k"], k_rev=given["k_rev"])
    gates = (given["in_gate"], None, given["skip"])
    args = (given["u"], made.planes, made.scale, *gates, "circular-64-bf16", made.digest)
    torch.library.opcheck(OPS.conv_prepared.default, args)


def test_fakes_have_the_strides_of_results(rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((2, 40, 3))).transpose(1, 2)
    k = torch.from_numpy(rng.standard_normal((3, 9)))
    args = (u, k, None, None, None, None, "causal-*-bf16")
    real = OPS.conv(*args)
    with FakeTensorMode() as mode:
        fake = OPS.conv(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args))
    assert fake.stride() == real.stride() == (120, 40, 1)
    assert fake.dtype == real.dtype


# torch.compile and torch.export


CONV = fftgen.get_conv(256, causal=True)  # made outside of what is compiled, as a layer does
FORMS: dict[str, Any] = {
    "object": lambda u, k, a: CONV(u, k, in_gate=a, skip=k[:, 0]),
    "causal": lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, out_gate=a, k_rev=k),
    "circular": lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, mode="circular"),
    "full": lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, mode="full"),
    "same": lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, mode="same"),
    "valid": lambda u, k, a: fftgen.fftconv(u, k[:, :20], in_gate=a, mode="valid"),
    "filters": lambda u, k, a: fftgen.fftconv(u, torch.stack([k, 2 * k])),
    "groups": lambda u, k, a: fftgen.fftconv(u, k[:1], groups=1),
    "rows": lambda u, k, a: fftgen.fftconv(u, torch.stack([k, 2 * k]), per_row=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_graph_serves_all_lengths(form: str, rng: np.random.Generator) -> None:
    """fullgraph, dynamic: results and gradients bit for bit those of eager mode, one compilation.

    Where PyTorch does not tell compiling from exporting, filters of "same" are written as exports need them.
    """
    apart = form == "same" and not hasattr(torch.compiler, "is_exporting")

    def alike(x: Tensor, y: Tensor) -> bool:
        off = (x - y).double().norm() / y.double().norm()
        return bool(off < 4 * torch.finfo(y.dtype).eps) if apart else torch.equal(x, y)

    call = FORMS[form]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for steps in LENGTHS:
        given = [
            torch.from_numpy(rng.standard_normal((2, 3, steps))).bfloat16().requires_grad_(),
            torch.from_numpy(rng.standard_normal((3, steps))).float().requires_grad_(),
            torch.from_numpy(rng.standard_normal((2, 3, steps))).bfloat16().requires_grad_(),
        ]
        found, wanted = compiled(*given), call(*given)
        assert alike(found, wanted)
        v = torch.randn_like(wanted)
        used = [x for x in given if torch.autograd.grad(call(*given), x, v, allow_unused=True)[0] is not None]
        for out, ref in zip(
            torch.autograd.grad(found, used, v), torch.autograd.grad(wanted, used, v), strict=True
        ):
            assert alike(out, ref)
    assert counter.frame_count == 1


def test_a_graph_may_ask_for_its_convolutions(rng: np.random.Generator) -> None:
    """Those that are there, new ones, and those of a dynamic length, for each of which there is a graph."""
    assert not hasattr(conv_module._REGISTERED, "causal-211-fp16")
    fftgen.get_conv(210)

    def call(u: Tensor, k: Tensor) -> Tensor:
        y = fftgen.get_conv(210)(u, k) + fftgen.get_conv(211, torch.float16, causal=True)(u, k)
        return y + fftgen.get_conv(u.shape[-1])(u, k)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for number, steps in enumerate(LENGTHS, 1):
        u = torch.from_numpy(rng.standard_normal((2, 3, steps)))
        k = torch.from_numpy(rng.standard_normal((3, steps))).requires_grad_()
        assert torch.equal(compiled(u, k), call(u, k))
        (found,), (wanted,) = (torch.autograd.grad(f(u, k).sum(), k) for f in (compiled, call))
        assert torch.equal(found, wanted)
        assert counter.frame_count == number
        fftgen.get_conv(300 + number)  # others that come are no reason to compile anew
        compiled(u, k)
        assert counter.frame_count == number
    assert fftgen.get_conv(211, "fp16", causal=True) is registered("causal-211-fp16")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_layer_compiles_to_one_graph_and_trains_alike(backend: str, rng: np.random.Generator) -> None:
    """With code generated around the operators as well (which takes the compiler half a minute)."""
    torch.manual_seed(0)
    layer = LongConv(4, 96, initial="geometric", squash=1e-3, filters=2)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for steps in (96, 33):
        u = torch.from_numpy(rng.standard_normal((2, 4, steps))).float()
        grads = []
        for run in (compiled, layer):
            layer.zero_grad()
            run(u).square().sum().backward()
            grads.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
        assert len(grads[0]) == len(list(layer.parameters()))
        for out, ref in zip(*grads, strict=True):
            assert (out - ref).norm() <= 1e-5 * ref.norm()
            assert ref.norm() > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = FFTConv(3, 40)

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        y: Tensor = self.mix(u, in_gate=gate)
        return y


def test_export_with_a_dynamic_batch(rng: np.random.Generator, tmp_path: Path) -> None:
    model = Exported()
    u = torch.from_numpy(rng.standard_normal((7, 3, 40))).bfloat16()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (u[:2], u[:2]), dynamic_shapes={"u": {0: batch}, "gate": {0: batch}})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(loaded(u, u), model(u, u))
    assert any(n.target is OPS.conv.default for n in program.graph.nodes)


class Called(nn.Module):
    """A mode of the functional form."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, u: Tensor, k: Tensor) -> Tensor:
        return fftgen.fftconv(u, k, mode=self.mode)


def exported(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any, strict: bool = False) -> Any:
    program = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=strict)
    assert any(n.target is OPS.conv.default for n in program.graph.nodes)
    return program.module()


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("mode", ["causal", "circular", "full", "same", "valid"])
def test_export_with_dynamic_lengths(mode: str, strict: bool, rng: np.random.Generator) -> None:
    """Of a filter as long as the signal, for every length in the range, its ends as well."""
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2, max=64)
    model = Called(mode)
    inputs = [
        (torch.from_numpy(rng.standard_normal((b, 3, n))), torch.from_numpy(rng.standard_normal((3, n))))
        for b, n in ((2, 33), (3, 57), (2, 64), (4, 2), (2, 3))
    ]
    program = exported(model, inputs[0], ({0: batch, 2: steps}, {1: steps}), strict)
    for given in inputs:
        gradients.judge(program(*given), model(*given), 1e-13)


@pytest.mark.parametrize("mode", ["causal", "full", "same"])
def test_export_with_two_dynamic_lengths(mode: str, rng: np.random.Generator) -> None:
    """Neither has to be the longer one."""
    steps, taps = (torch.export.Dim(name, min=2, max=64) for name in ("steps", "taps"))
    model = Called(mode)
    inputs = [
        (torch.from_numpy(rng.standard_normal((2, 3, n))), torch.from_numpy(rng.standard_normal((3, m))))
        for n, m in ((33, 20), (9, 57), (64, 2))
    ]
    program = exported(model, inputs[0], ({2: steps}, {1: taps}))
    for given in inputs:
        gradients.judge(program(*given), model(*given), 1e-13)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: FFTConv(3, 64, bidirectional=True),
        lambda: FFTConv(3, 64, mode="circular"),
        lambda: LongConv(3, 64, initial="geometric", bidirectional=True, reverse="shifted"),
    ],
    ids=["causal", "circular", "LongConv"],
)
def test_a_layer_exports_up_to_its_length(make: Any, strict: bool, rng: np.random.Generator) -> None:
    layer = make().double().eval()
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2, max=64)
    inputs = [torch.from_numpy(rng.standard_normal((b, 3, n))) for b, n in ((2, 33), (3, 64), (2, 2))]
    program = exported(layer, (inputs[0],), ({0: batch, 2: steps},), strict)
    for u in inputs:
        gradients.judge(program(u), layer(u), 1e-13)


@pytest.mark.parametrize("mode", ["causal", "circular", "full", "same"])
def test_other_tracers_leave_lengths_open(mode: str, rng: np.random.Generator) -> None:
    model = Called(mode)
    inputs = [
        (torch.from_numpy(rng.standard_normal((2, 3, n))), torch.from_numpy(rng.standard_normal((3, n))))
        for n in (8, 19)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and warns of comparisons
        traced = torch.jit.trace(model, inputs[0])
    for graph in (traced, make_fx(model, tracing_mode="symbolic")(*inputs[0])):
        gradients.judge(graph(*inputs[1]), model(*inputs[1]), 1e-13)


# Autocast, evaluation, checkpointing


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast_casts_signals_and_leaves_the_filter(target: torch.dtype, rng: np.random.Generator) -> None:
    given = tensors(rng, dtype=torch.float32)
    u, k = given["u"], given["k"]
    gates = {"in_gate": given["in_gate"], "out_gate": given["out_gate"].detach().to(target)}
    kinds: list[torch.dtype] = []
    with torch.autocast("cpu", target):
        object_result = fftgen.get_conv(64, target, causal=True)(u, k, **gates)
        y = fftgen.fftconv(u, k, **gates)
        other = fftgen.get_conv(64, torch.bfloat16, causal=True)(
            u, k
        )  # the convolution's type, not autocast's
        with torch.autocast("cpu", enabled=False):
            kinds.append(fftgen.fftconv(u, k).dtype)
        kinds.append(fftgen.fftconv(u.detach().double(), k.detach().double()).dtype)  # float64 stays, as ever
    assert y.dtype == target
    assert torch.equal(object_result, y)
    assert other.dtype == torch.bfloat16
    assert kinds == [torch.float32, torch.float64]
    # The filter was not rounded: with it rounded the result differs.
    rounded = fftgen.fftconv(
        u.detach().to(target), k.detach().to(target), **{n: g.to(target) for n, g in gates.items()}
    )
    assert not torch.equal(y, rounded)
    y.sum().backward()
    assert u.grad is not None
    assert k.grad is not None
    assert u.grad.dtype == k.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "make", [lambda: FFTConv(3, 40), lambda: LongConv(3, 40, initial="geometric", squash=0)]
)
def test_gradients_in_eval_mode_are_those_of_training(make: Any, rng: np.random.Generator) -> None:
    layer = make()
    u = torch.from_numpy(rng.standard_normal((2, 3, 40))).float().requires_grad_()
    found = [
        torch.autograd.grad(layer.train(mode)(u).sum(), [u, *layer.parameters()]) for mode in (True, False)
    ]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
        assert a.any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(
        FFTConv(3, 40), LongConv(3, 40, initial="geometric", squash=0, dropout=0.3)
    ).double()
    u = torch.from_numpy(rng.standard_normal((2, 3, 40))).requires_grad_()
    grads = []
    for kept in (False, True):
        torch.manual_seed(1)
        y = checkpoint(layer, u, use_reentrant=reentrant) if kept else layer(u)
        grads.append(
            torch.autograd.grad(y.square().sum(), [u, *layer.parameters()]) if not reentrant else None
        )
        if reentrant:
            layer.zero_grad()
            u.grad = None
            y.square().sum().backward()
            grads[-1] = (u.grad.clone(), *(p.grad.clone() for p in layer.parameters()))  # type: ignore[union-attr]
    for a, b in zip(*grads, strict=True):  # type: ignore[arg-type]
        assert torch.equal(a, b)


def test_deterministic_algorithms(rng: np.random.Generator) -> None:
    given = tensors(rng)
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            y = fftgen.fftconv(given["u"], given["k"], skip=given["skip"])
            found.append(torch.autograd.grad(y.sum(), [given["u"], given["k"], given["skip"]]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# torch.func


@pytest.fixture(params=["causal", "circular"])
def function(request: pytest.FixtureRequest) -> Any:
    conv = fftgen.get_conv(16, causal=request.param == "causal")

    def f(*values: Tensor) -> Tensor:
        u, k, k_rev, a, b, d = values
        return conv(u, k, k_rev=k_rev, in_gate=a, out_gate=b, skip=d)

    def ref(*values: Tensor) -> Tensor:
        return composite(*values, mode=request.param, length=16)

    return f, ref


def values(rng: np.random.Generator, *lead: int) -> list[Tensor]:
    shapes = ((2, 3, 9), (3, 7), (3, 5), (2, 3, 9), (2, 3, 9), (3,))
    return [torch.from_numpy(rng.standard_normal((*lead, *s))) for s in shapes]


@pytest.mark.parametrize("which", range(6))
def test_grad_jacobians_and_hessians_of_torch_func(
    which: int, function: Any, rng: np.random.Generator
) -> None:
    f, ref = function
    given = values(rng)
    scalar = [lambda *x, g=g: g(*x).pow(3).sum() for g in (f, ref)]
    for transform in (torch.func.grad, torch.func.hessian):
        gradients.judge(*(transform(s, argnums=which)(*given) for s in scalar), 1e-11)  # type: ignore[operator]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        gradients.judge(*(transform(g, argnums=which)(*given).flatten() for g in (f, ref)), 1e-11)  # type: ignore[operator]
    tangents = tuple(torch.from_numpy(rng.standard_normal(x.shape)) for x in given)
    for a, b in zip(*(torch.func.jvp(g, tuple(given), tangents) for g in (f, ref)), strict=True):
        gradients.judge(a, b, 1e-12)


@pytest.mark.parametrize("mapped", [(0,), (1,), (5,), (0, 3), (0, 1, 2, 3, 4, 5), (4,), (2, 3)])
def test_vmap_over_any_arguments(mapped: tuple[int, ...], function: Any, rng: np.random.Generator) -> None:
    f, _ = function
    alone, many = values(rng), values(rng, 4)
    given = [m.movedim(0, -1) if i in mapped else a for i, (a, m) in enumerate(zip(alone, many, strict=True))]
    dims = tuple(-1 if i in mapped else None for i in range(6))
    found = torch.func.vmap(f, in_dims=dims)(*given)
    each = [f(*(many[i][j] if i in mapped else alone[i] for i in range(6))) for j in range(4)]
    gradients.judge(found, torch.stack(each), 1e-13)
    # Gradients example by example.
    grads = torch.func.vmap(torch.func.grad(lambda *x: f(*x).pow(2).sum(), argnums=(0, 1, 5)), in_dims=dims)(
        *given
    )
    for index, out in zip((0, 1, 5), grads, strict=True):
        one = [torch.func.grad(lambda *x: f(*x).pow(2).sum(), argnums=index)(
            *(many[i][j] if i in mapped else alone[i] for i in range(6))) for j in range(4)]  # fmt: skip
        gradients.judge(out, torch.stack(one), 1e-13)


def transforms(f: Any) -> dict[str, Any]:
    """Of a function of u, k and a gate: at most as many levels as a Hessian has, in either mode."""
    func = torch.func
    both = lambda x: torch.stack([x, 2 * x])  # noqa: E731

    def total(u: Tensor, k: Tensor, a: Tensor) -> Tensor:
        y: Tensor = f(u, k, a).pow(3).sum()
        return y

    return {
        "grad": func.grad(total, argnums=(0, 1, 2)),
        "grad of grad": lambda u, k, a: func.grad(
            lambda k: func.grad(total, argnums=1)(u, k, a).pow(2).sum()
        )(k),
        "jvp": lambda u, k, a: func.jvp(f, (u, k, a), (a, 2 * k, u)),
        "hessian": func.hessian(total, argnums=1),
        "jacrev": func.jacrev(f, argnums=1),
        "jacfwd": func.jacfwd(f, argnums=2),
        "vmap of grad": lambda u, k, a: func.vmap(lambda k: func.grad(total)(u, k, a))(both(k)),
        "grad of vmap": lambda u, k, a: func.grad(
            lambda k: func.vmap(lambda u: f(u, k, a))(both(u)).pow(3).sum()
        )(k),
    }


def plainly(u: Tensor, k: Tensor, a: Tensor) -> Tensor:
    return composite(u, k, None, a, None, k[:, 0], mode="causal", length=9)


def judged(found: Any, wanted: Any) -> None:
    pairs = zip(*(torch.utils._pytree.tree_leaves(x) for x in (found, wanted)), strict=True)
    for out, ref in pairs:
        gradients.judge(out.detach().flatten(), ref.detach().flatten(), 1e-11)


@pytest.mark.parametrize("name", transforms(plainly))
def test_operators_by_themselves_take_transforms(name: str, rng: np.random.Generator) -> None:
    u, k, _, a, *_ = values(rng)
    call = lambda u, k, a: OPS.conv(u, k, None, a, None, k[:, 0], "causal-*-bf16")  # noqa: E731
    judged(transforms(call)[name](u, k, a), transforms(plainly)[name](u, k, a))


@pytest.mark.parametrize("name", transforms(plainly))
def test_transforms_compile(name: str, rng: np.random.Generator) -> None:
    u, k, _, a, *_ = values(rng)
    call = lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, skip=k[:, 0])  # noqa: E731
    compiled = torch.compile(
        lambda *given: transforms(call)[name](*given), fullgraph=True, backend="aot_eager"
    )
    judged(compiled(u, k, a), transforms(plainly)[name](u, k, a))


def test_a_compiled_gradient_has_gradients(rng: np.random.Generator) -> None:
    u, k, _, a, *_ = values(rng)
    call = lambda u, k, a: fftgen.fftconv(u, k, in_gate=a, skip=k[:, 0])  # noqa: E731
    compiled = torch.compile(
        lambda k: transforms(call)["grad"](u, k, a)[1], fullgraph=True, backend="aot_eager"
    )
    leaf = k.clone().requires_grad_()
    compiled(leaf).pow(2).sum().backward()
    assert leaf.grad is not None
    judged(leaf.grad, transforms(plainly)["grad of grad"](u, k, a))


# Several processes


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: each on half of the batch, parameters as from the whole batch."""
    script = Path(ddp_worker.__file__)
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(ddp_worker.WORLD)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    alone = ddp_worker.model()
    before = {n: p.clone() for n, p in alone.state_dict().items()}
    losses = ddp_worker.train(alone, slice(None))
    assert losses[-1] != losses[0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(ddp_worker.WORLD)]
    for name, wanted in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        moved = (wanted - before[name]).norm()
        assert moved > 0
        assert (ranks[0][name] - wanted).norm() <= 1e-10 * moved


# GPUs that are not there


def test_on_a_gpu_a_filter_may_want_a_gradient() -> None:
    """The fake kernels answer for a GPU that is not there."""
    conv = fftgen.get_conv(64, causal=True)
    with FakeTensorMode():
        u = torch.empty(2, 3, 40, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(3, 20, device="cuda")
        for call in (conv, fftgen.fftconv):
            y = call(u, k, k_rev=k, in_gate=u, skip=torch.empty(3, device="cuda"))
            assert (y.device.type, y.shape, y.dtype) == ("cuda", u.shape, u.dtype)
        dk = torch.ops.fftgen.correlate_input(u, y, u, None, 20, conv.handle)
        assert (dk.device.type, dk.shape, dk.dtype) == ("cuda", k.shape, torch.float32)
        with pytest.raises(
            InputError,
            match=r"u is torch\.float32, this convolution was made for torch\.bfloat16: "
            r"u\.to\(torch\.bfloat16\), or fftgen\.get_conv\(64, torch\.float32, \.\.\.\)",
        ):
            conv(u.float(), k)  # on a CPU it would be served
        with pytest.raises(
            InputError,
            match=r"u is torch\.float64, fftconv on cuda takes torch\.float32, .*16: u\.float\(\)",
        ):
            fftgen.fftconv(u.double(), k)
        assert fftgen.fftconv(u.half(), k).dtype == torch.float16
        single = fftgen.get_conv(64, torch.float32, causal=True)
        for call in (single, fftgen.fftconv):
            y = call(u.float(), k, in_gate=u.float())
            assert (y.device.type, y.shape, y.dtype) == ("cuda", u.shape, torch.float32)
        with pytest.raises(
            InputError, match=r"u is torch\.bfloat16, this convolution was made for torch\.float32"
        ):
            single(u, k)


def test_a_filters_gradient_on_a_gpu_without_kernels(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fftgen::correlate_input does on CUDA tensors: lag 0 needs none; else torch.fft with a warning."""
    given = tensors(rng)
    v = torch.from_numpy(rng.standard_normal((2, 3, 40))).bfloat16()
    conv = fftgen.get_conv(64, causal=True)
    signals = (given["u"].detach(), v, given["in_gate"].detach(), given["out_gate"].detach())
    found = filter_gradient.on_gpu(conv, *signals, 1)
    a, b, c, d = (x.double() for x in signals)  # gated inputs are not rounded
    ref = (a * c * b * d).sum((0, 2))[:, None]
    gradients.judge(found, ref, eager.torch.finfo(torch.float32).eps * 10)
    monkeypatch.setattr(conv, "gradient_on", lambda device, problem: None)
    with pytest.warns(RuntimeWarning, match=r"goes through torch\.fft.*sm_80.*--train"):
        found = filter_gradient.on_gpu(conv, *signals, 20)
    ref = eager.correlate_input(a, b, mode="causal", length=64, taps=20, in_gate=c, out_gate=d)
    gradients.judge(found, ref, eager.torch.finfo(torch.float32).eps * 10)


def test_meta_tensors(rng: np.random.Generator) -> None:
    u = torch.empty(2, 3, 40, dtype=torch.bfloat16, device="meta", requires_grad=True)
    k = torch.empty(3, 20, device="meta", requires_grad=True)
    y = fftgen.fftconv(u, k, mode="full")
    assert y.shape == (2, 3, 59)
    y.sum().backward()
    assert u.grad is not None
    assert k.grad is not None
    assert (u.grad.shape, k.grad.shape, k.grad.dtype) == (u.shape, k.shape, torch.float32)

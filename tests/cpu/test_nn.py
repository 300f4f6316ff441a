"""fftgen.nn: the drop-in, the layer with its own filter, LongConv and its regularisers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from gradients import composite
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fftgen
from fftgen.errors import InputError
from fftgen.nn import FFTConv, FlashFFTConv, H3Conv, LongConv, geometric, parameter_groups, smooth, squash


@pytest.fixture
def white(rng: np.random.Generator) -> Any:
    torch.manual_seed(int(rng.integers(2**31)))
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape))


def close(out: Tensor, ref: Tensor, expected: float = 1e-13) -> None:
    gradients.judge(out, ref, expected)


def sees_only_the_past(layer: nn.Module, u: Tensor, atol: float) -> None:
    """Of u (B, H, 64) in float64: neither a shorter input nor another future changes a result."""
    whole = layer(u)
    for length in (1, 17, 63):
        close(layer(u[..., :length]), whole[..., :length])
        later = u.clone()
        later[..., length:] = 100.0
        assert torch.allclose(layer(later)[..., :length], whole[..., :length], rtol=0, atol=atol)


# The drop-in.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("seqlen", "steps", "taps"), [(256, 256, 256), (256, 128, 128), (300, 77, 190)])
def test_the_drop_in_computes_what_the_original_does(
    dtype: torch.dtype, seqlen: int, steps: int, taps: int, white: Any
) -> None:
    """ifft(fft(u, N) fft(k, N)) cut to L, gates around it; inputs shorter than N are padded."""
    conv = FlashFFTConv(seqlen, dtype)
    u, k = white(2, 3, steps).to(dtype), white(3, taps).float()
    pre, post = white(2, 3, steps).to(dtype), white(2, 3, steps).to(dtype)

    def theirs(x: Tensor) -> Tensor:
        product = torch.fft.fft(x.double(), n=seqlen) * torch.fft.fft(k.double(), n=seqlen)
        return torch.fft.ifft(product).real[..., :steps]

    y = conv(u, k)
    assert y.dtype == dtype
    close(y, theirs(u), 1.7e-3)
    close(conv(u, k, pre, post), theirs(u.double() * pre.double()) * post.double(), 3e-3)
    close(conv(u, k, pregate=pre), theirs(u.double() * pre.double()), 3e-3)  # each alone, too
    close(conv(u, k, postgate=post), theirs(u) * post.double(), 1.7e-3)


def test_the_drop_in_at_twice_the_length_is_causal(white: Any) -> None:
    """How causal models call it: N = 2 L. The future does not act, whatever the filter."""
    conv = FlashFFTConv(512, torch.bfloat16)
    u, k = white(1, 2, 256).bfloat16(), white(2, 256).float()
    close(conv(u, k), composite(u, k, mode="causal", length=256), 1.7e-3)
    later = u.clone()
    later[..., 100:] = 7
    assert (conv(later, k) - conv(u, k))[..., :100].norm() <= 2e-3 * conv(u, k)[..., :100].norm()


def test_the_drop_in_keeps_gradients_in_eval_mode(white: Any) -> None:
    conv = FlashFFTConv(64, torch.bfloat16).eval()
    u = white(2, 3, 64).bfloat16().requires_grad_()
    k = white(3, 64).float().requires_grad_()
    v = white(2, 3, 64).bfloat16()
    conv(u, k).backward(v)
    _, ref = gradients.exact({"u": u, "k": k}, v, mode="circular", length=64)
    close(u.grad, ref["u"], 1.7e-3)  # type: ignore[arg-type]
    close(k.grad, ref["k"], 1e-5)  # type: ignore[arg-type]


def test_checkpoints_of_the_original_load(white: Any) -> None:
    """Its DFT matrices and twiddle factors are buffers there; nothing else may be missing or unknown."""
    model = nn.ModuleDict({"mix": FlashFFTConv(64), "out": nn.Linear(2, 2)})
    assert not FlashFFTConv(64).state_dict()
    state = model.state_dict()
    theirs = {f"mix.{n}": torch.zeros(2) for n in ("f_16_fft", "f_sqrt_N_ifft", "twiddle_factors_fft_16_16")}
    model.load_state_dict(state | theirs)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mix\.kernel"):
        model.load_state_dict(state | {"mix.kernel": torch.zeros(2)})


def test_what_the_drop_in_does_not_serve() -> None:
    with pytest.raises(InputError, match="dtype 'float64' is not supported"):
        FlashFFTConv(64, torch.float64)
    with pytest.raises(InputError, match="seqlen 6000000 exceeds"):
        FlashFFTConv(6_000_000)
    with pytest.raises(InputError, match="u has length 65, this convolution takes at most 64"):
        FlashFFTConv(64)(torch.zeros(1, 1, 65).half(), torch.zeros(1, 4))


# Regularisers.


def test_squash_is_soft_thresholding(white: Any) -> None:
    k = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]).double().requires_grad_()
    y = squash(k, 1.0)
    assert y.tolist() == [-2, 0, 0, 0, 0, 0, 2]
    y.sum().backward()
    assert k.grad is not None
    assert k.grad.tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert torch.equal(squash(k, 0.0), k)
    with pytest.raises(InputError, match="cannot be negative, got -1"):
        squash(k, -1)


def test_smooth_is_a_moving_average_with_zeros_beyond_the_ends(white: Any) -> None:
    k = white(2, 3, 11)
    for reach in (0, 1, 4, 12):
        padded = torch.nn.functional.pad(k, (reach, reach))
        ref = padded.unfold(-1, 2 * reach + 1, 1).mean(-1)
        close(smooth(k, reach), ref)
    with pytest.raises(InputError, match="got -1"):
        smooth(k, -1)


def test_the_shares_of_surviving_taps(white: Any) -> None:
    """61.7, 31.7, 13.3, 4.6 % of 0.002 randn survive squash by .001 to .004 (erfc of the threshold)."""
    for threshold, share in ((0.001, 0.617), (0.002, 0.317), (0.003, 0.133), (0.004, 0.046), (0.1, 0.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = LongConv(32, 4096, squash=threshold)
        kept = (layer.regularized() != 0).double().mean().item()
        assert kept == pytest.approx(math.erfc(threshold / 0.002 / math.sqrt(2)), abs=0.006)
        assert kept == pytest.approx(share, abs=0.006)


def test_geometric_filters_decay_at_a_rate_per_channel(white: Any) -> None:
    """0.02 randn exp(-(j / L) floor(H / 2)^(i / H)): measured on 4000 filters."""
    k = geometric(4000, 8, 16)
    assert k.shape == (4000, 8, 16)
    i, j = torch.meshgrid(torch.arange(8), torch.arange(16), indexing="ij")
    expected = 0.02 * torch.exp(-(j / 16) * 4.0 ** (i / 8))
    assert torch.allclose(k.std(0), expected, rtol=0.08)
    assert k.mean(0).abs().max() < 0.02 * 5 / math.sqrt(4000)


# LongConv.


def reference(layer: LongConv, u: Tensor, shift: int = 0) -> Tensor:
    """The layer in float64, written out: filters, skip, GELU, linear, GLU."""
    length = u.shape[-1]
    k = squash(smooth(layer.kernel.double(), layer.smooth), layer.squash)[..., :length]
    count = layer.filters
    rows = []
    for c in range(count):
        back = None
        if layer.bidirectional:
            back = torch.nn.functional.pad(k[count + c], (shift, 0))[..., : max(length, shift)]
        y = composite(u, k[c], back, skip=layer.D[c], mode="causal", length=length)
        rows.append(y)
    mixed = torch.nn.functional.gelu(torch.cat(rows, 1))
    linear = layer.output_linear
    out = torch.einsum("oc,bcl->bol", linear.weight.double(), mixed) + linear.bias.double()[:, None]
    return torch.nn.functional.glu(out, 1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("filters", [1, 3])
@pytest.mark.parametrize("length", [40, 13, 1])
def test_the_layer_is_what_the_paper_writes(
    bidirectional: bool, filters: int, length: int, white: Any
) -> None:
    layer = LongConv(
        4, 40, filters=filters, bidirectional=bidirectional, initial="geometric", squash=0.001, smooth=2
    ).double()
    u = white(2, 4, length)
    y = layer(u)
    assert y.shape == u.shape
    close(y, reference(layer, u))
    turned = copy.deepcopy(layer)
    turned.transposed = False
    close(turned(u.transpose(1, 2)).transpose(1, 2), y)


def test_shifted_layers_match_published_ones(white: Any) -> None:
    layer = LongConv(4, 24, bidirectional=True, reverse="shifted", initial="geometric", squash=0).double()
    u = white(2, 4, 24)
    close(layer(u), reference(layer, u, shift=1))


def test_no_tap_acts_from_the_future(white: Any) -> None:
    """Published traps: 2 L taps in transforms of 2 L, a filter that is not cut to the input, a circular
    transform in a causal model. Inputs of every length see only their past."""
    layer = LongConv(4, 64, squash=0.0, initial="geometric").double()
    assert layer.kernel.shape[-1] == 64  # not 2 L
    u = white(1, 4, 64)
    sees_only_the_past(layer, u, 1e-12)
    (found,) = torch.autograd.grad(layer(u[..., :17]).sum(), layer.kernel)
    assert not found[..., 17:].any()
    assert found[..., :17].all()


# H3Conv.


def h3_reference(layer: H3Conv, u: Tensor) -> Tensor:
    """The layer in float64, written out."""
    length = u.shape[-1]
    k1, k2 = squash(smooth(layer.kernel.double(), layer.smooth), layer.squash)[..., :length]
    linear = layer.input_linear
    q, k, v = (
        torch.einsum("oc,bcl->bol", w.double(), u) + b.double()[:, None]
        for w, b in zip(linear.weight.chunk(3), linear.bias.chunk(3), strict=True)
    )
    kept = composite(k, k1, None, skip=layer.D[0], mode="causal", length=length) * v
    y = q * composite(kept, k2, None, skip=layer.D[1], mode="causal", length=length)
    out = layer.output_linear
    return torch.einsum("oc,bcl->bol", out.weight.double(), y) + out.bias.double()[:, None]


@pytest.mark.parametrize("length", [40, 13, 1])
@pytest.mark.parametrize("reach", [0, 2])
def test_h3_is_what_the_papers_write(reach: int, length: int, white: Any) -> None:
    layer = H3Conv(4, 40, squash=0.001, smooth=reach, filter_dropout=0).double()
    u = white(2, 4, length)
    y = layer(u)
    close(y, h3_reference(layer, u))
    turned = copy.deepcopy(layer)
    turned.transposed = False
    close(turned(u.transpose(1, 2)).transpose(1, 2), y)


def test_h3_sees_only_the_past(white: Any) -> None:
    layer = H3Conv(4, 64, squash=0.0, filter_dropout=0).double()
    sees_only_the_past(layer, white(1, 4, 64), 1e-10)


def test_h3_in_training(white: Any) -> None:
    """Its filters are dropped out there, it compiles to one graph for all lengths, and autocast casts it."""
    layer = H3Conv(4, 64, initial="geometric", squash=0.0)
    u = white(2, 4, 50).float()
    assert not torch.equal(layer(u), layer(u))
    layer.eval()
    assert torch.equal(layer(u), layer(u))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps in (50, 33):
        close(compiled(u[..., :steps]), layer(u[..., :steps]), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(u)
    assert y.dtype == torch.bfloat16
    assert (y.float() - layer(u)).norm() < 0.03 * layer(u).norm()
    layer(u).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_a_filter_squashed_to_zero_is_warned_about(white: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"4 of 4 filters are squashed to zero \(squash=0.1, largest weight 0.0"
    ):
        layer = LongConv(4, 64, squash=0.1)
    assert layer.zero_filters() == 4
    with pytest.warns(UserWarning, match="4 of 4 filters"):
        layer(white(1, 4, 64).float()).sum().backward()
    assert layer.kernel.grad is not None
    assert not layer.kernel.grad.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(white(1, 4, 64).float())  # once is enough for a while
        layer.eval()(white(1, 4, 64).float())
        alive = LongConv(4, 64, squash=0.002)
        alive(white(1, 4, 64).float())
    with torch.no_grad():
        alive.kernel[0, 2] = 0
    assert alive.zero_filters() == 1


def test_filters_without_values_of_their_own_are_not_looked_at(white: Any) -> None:
    """Fake tensors have none, and those of a transform are many at once."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = LongConv(4, 64, squash=0.1)
        assert fake(torch.empty(2, 4, 30)).shape == (2, 4, 30)
    with pytest.warns(UserWarning, match="4 of 4 filters"):
        layers = [LongConv(4, 64, squash=0.1).double() for _ in range(3)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layers[0](torch.empty(2, 4, 30, dtype=torch.double)).shape == (2, 4, 30)
    u = white(2, 4, 64)
    parameters, _ = torch.func.stack_module_state(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.func.vmap(lambda p: torch.func.functional_call(layers[0], p, (u,)))(parameters)
    for layer, y in zip(layers, found, strict=True):
        close(y, layer.eval()(u))
    with pytest.warns(UserWarning, match="4 of 4 filters"):
        layers[0].train()(u)  # the first call that could be looked at


def test_dropout_acts_on_the_filter_in_training_only(white: Any) -> None:
    layer = LongConv(4, 64, filter_dropout=0.5, squash=0.0, initial="geometric").double()
    u = white(1, 4, 64)
    assert not torch.equal(layer(u), layer(u))
    layer.eval()
    close(layer(u), reference(layer, u))


def test_gradients_of_the_layers(white: Any) -> None:
    layer = LongConv(
        2, 6, filters=2, bidirectional=True, squash=0.001, smooth=1, initial="geometric"
    ).double()
    assert torch.autograd.gradcheck(layer, (white(2, 2, 5).requires_grad_(),))
    own = FFTConv(2, 6, bidirectional=True).double()
    names = [n for n, _ in own.named_parameters()]

    def f(u: Tensor, *parameters: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(own, dict(zip(names, parameters, strict=True)), (u,))
        return found

    inputs = (white(2, 2, 5).requires_grad_(), *own.parameters())
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


# FFTConv.


@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_the_layer_with_a_filter_of_its_own(mode: str, white: Any) -> None:
    layer = FFTConv(6, 32, taps=9, mode=mode, bidirectional=True, groups=3).double()
    u, a, b = white(2, 6, 20), white(2, 6, 20), white(2, 6, 20)
    whole = [f.repeat_interleave(2, 0) for f in (layer.weight, layer.weight_rev)]  # type: ignore[union-attr]
    ref = composite(u, *whole, a, b, layer.D, mode=mode, length=32)
    close(layer(u, in_gate=a, out_gate=b), ref)
    held = FFTConv(6, 32, taps=9, mode=mode, bidirectional=True, groups=3,
                   conv=fftgen.get_conv(32, causal=mode == "causal")).double()  # fmt: skip
    held.load_state_dict(layer.state_dict())
    close(held(u, in_gate=a, out_gate=b), ref)
    plain = FFTConv(6, 32, mode=mode, skip=False).double()
    assert list(plain.state_dict()) == ["weight"]
    close(plain(u), composite(u, plain.weight, mode=mode, length=32))


def test_a_fresh_filter_keeps_the_scale_of_white_noise(white: Any) -> None:
    for both in (False, True):
        layer = FFTConv(64, 512, skip=False, bidirectional=both, mode="circular").double()
        assert layer(white(2, 64, 512)).std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "full"}, "mode 'full' is not supported: choose from circular, causal"),
        ({"taps": 33}, "taps must be from 1 to length 32, got 33"),
        ({"groups": 4}, "groups must divide the channels, got groups=4, channels=6"),
        ({"groups": 2.0}, "groups must be an int, got 2.0"),
        ({"skip": "no"}, "skip must be True or False, got 'no'"),
        ({"filter_lr": -1}, "filter_lr must be a finite number, 0 or more, got -1"),
        ({"conv": fftgen.get_conv(32)}, "does not serve causal convolutions of 32"),
        ({"conv": fftgen.get_conv(16, causal=True)}, "does not serve causal convolutions of 32"),
        ({"mode": "circular", "conv": fftgen.get_conv(64)}, "has another period than 32"),
    ],
)
def test_what_the_layer_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FFTConv(6, 32, **arguments)
    with pytest.raises(InputError, match="u has length 33, this layer takes at most 32"):
        FFTConv(6, 32)(torch.zeros(1, 6, 33))


@pytest.mark.parametrize("layer", [LongConv, H3Conv])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "sizes must be positive: 0 channels"),
        ({"channels": 4.0}, "channels must be an int, got 4.0"),
        ({"channels": True}, "channels must be an int, got True"),
        ({"length": 0}, "seqlen must be at least 1, got 0"),
        ({"length": 5_000_000}, "seqlen 5000000 exceeds the largest transform"),
        ({"initial": "zeros"}, "initial 'zeros' is not known: choose from random, geometric"),
        ({"squash": -1.0}, "squash must be a finite number, 0 or more, got -1.0"),
        ({"squash": float("nan")}, "squash must be a finite number, 0 or more, got nan"),
        ({"squash": None}, "squash must be a finite number, 0 or more, got None"),
        ({"smooth": -1}, "smooth takes the taps on each side, 0 or more, got -1"),
        ({"smooth": "a"}, "smooth must be an int, got 'a'"),
        ({"filter_dropout": 1.5}, "filter_dropout must be a finite number, from 0 to 1, got 1.5"),
        ({"filter_lr": float("inf")}, "filter_lr must be a finite number, 0 or more, got inf"),
        ({"transposed": 1}, "transposed must be True or False, got 1"),
    ],
)
def test_what_layers_with_free_filters_refuse(layer: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer(**{"channels": 6, "length": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reverse": "x"}, "reverse 'x' is not known"),
        ({"filters": 0}, "sizes must be positive: 6 channels, 0 filters"),
        ({"filters": 2.0}, "filters must be an int, got 2.0"),
        ({"dropout": "x"}, "dropout must be a finite number, from 0 to 1, got 'x'"),
        ({"bidirectional": "no"}, "bidirectional must be True or False, got 'no'"),
    ],
)
def test_what_a_long_convolution_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LongConv(6, 32, **arguments)


@pytest.mark.parametrize("layer", [LongConv, H3Conv])
def test_signals_that_layers_with_free_filters_do_not_take(layer: Any) -> None:
    """Shapes are named as they were handed in."""
    channels_first, time_first = layer(6, 32, squash=0.0), layer(6, 32, squash=0.0, transposed=False)
    here = r"this layer takes \(..., 6, L\), 1 <= L <= 32; transposed=False takes \(..., L, 6\)"
    there = r"this layer takes \(..., L, 6\), 1 <= L <= 32; transposed=True takes \(..., 6, L\)"
    for made, u, message in (
        (channels_first, torch.zeros(1, 32, 6), rf"u has shape \(1, 32, 6\): {here}"),
        (channels_first, torch.zeros(6), rf"u has shape \(6,\): {here}"),
        (time_first, torch.zeros(1, 6, 32), rf"u has shape \(1, 6, 32\): {there}"),
        (time_first, torch.zeros(6), rf"u has shape \(6,\): {there}"),
        (time_first, [1.0], "u must be a torch.Tensor, got list"),
        (channels_first, None, "u must be a torch.Tensor, got NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            made(u)


# State and optimizers.


@pytest.mark.parametrize(
    "make",
    [
        lambda: FFTConv(4, 16, bidirectional=True, conv=fftgen.get_conv(16, causal=True)),
        lambda: LongConv(4, 16, filters=2, bidirectional=True, squash=0.0),
        lambda: H3Conv(4, 16, squash=0.0, filter_dropout=0.0),
        lambda: FlashFFTConv(16, torch.bfloat16),
    ],
)
def test_state_copies_and_pickles(make: Any, white: Any) -> None:
    """state_dict holds parameters only, loads strictly, and copies compute the same."""
    layer = make()
    assert set(layer.state_dict()) == {n for n, _ in layer.named_parameters()}
    other = make()
    other.load_state_dict(layer.state_dict())
    args = (white(2, 4, 16).bfloat16(), *([white(4, 16)] if isinstance(layer, FlashFFTConv) else []))
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(*args), layer(*args))
    assert repr(layer).startswith(f"{type(layer).__name__}(")


def test_convolutions_copy_to_themselves() -> None:
    conv = fftgen.get_conv(64)
    assert copy.deepcopy(conv) is conv
    assert pickle.loads(pickle.dumps(conv)) is conv


def test_filters_get_a_learning_rate_of_their_own_and_no_decay() -> None:
    model = nn.Sequential(
        LongConv(4, 16, squash=0.0, filter_lr=1e-4), nn.Linear(4, 4), FFTConv(4, 16, bidirectional=True),
        LongConv(4, 16, squash=0.0, filter_lr=1e-4), H3Conv(4, 16, squash=0.0),
    )  # fmt: skip
    model[1].bias.requires_grad_(False)
    groups = parameter_groups(model, lr=1e-2, weight_decay=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {(g["lr"], g["weight_decay"]): [names[id(p)] for p in g["params"]] for g in groups}
    assert found == {
        (1e-4, 0.0): ["0.kernel", "3.kernel"],
        (1e-2, 0.0): ["2.weight", "2.weight_rev", "4.kernel"],
        (1e-2, 0.1): ["0.D", "0.output_linear.weight", "0.output_linear.bias", "1.weight", "2.D", "3.D",
                      "3.output_linear.weight", "3.output_linear.bias", "4.D", "4.input_linear.weight",
                      "4.input_linear.bias", "4.output_linear.weight", "4.output_linear.bias"],
    }  # fmt: skip
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(groups).step()  # with gradients of zero, decay alone moves what it is given
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(found[1e-2, 0.1])

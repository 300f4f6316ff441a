"""Every form in which models hand in signals and filters, and SciPy's modes."""

from __future__ import annotations

from typing import Any

import gradients
import numpy as np
import pytest
import torch
from gradients import composite
from torch import Tensor

import fftgen
from fftgen import functional
from fftgen.errors import InputError

signal = pytest.importorskip("scipy.signal")
MODES = ("causal", "circular")


@pytest.fixture
def white(rng: np.random.Generator) -> Any:
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape))


def close(out: Tensor, ref: Tensor, bound: float = 1e-13) -> None:
    gradients.judge(out, ref, bound)


def one(u: Tensor, k: Tensor, mode: str = "causal", length: int = 32, **more: Any) -> Tensor:
    """Rows (B, H, L) by the definition, wrapped at ``length`` when circular."""
    return composite(u, k, mode=mode, length=length, **more)


@pytest.fixture(params=MODES)
def conv(request: pytest.FixtureRequest) -> fftgen.Conv:
    return fftgen.get_conv(32, causal=request.param == "causal")


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3, 2)])
def test_leading_dimensions(lead: tuple[int, ...], conv: fftgen.Conv, white: Any) -> None:
    """Hyena's (b, heads, v, z, l) among them; strided views as well."""
    k, skip = white(4, 11), white(4)
    u, a, b = white(*lead, 4, 20), white(*lead, 4, 20), white(*lead, 4, 20)
    flat = (x.reshape(-1, 4, 20) for x in (u, a, b))
    u3, a3, b3 = flat
    ref = one(u3, k, conv.problem.mode, in_gate=a3, out_gate=b3, skip=skip).reshape(u.shape)
    y = conv(u, k, in_gate=a, out_gate=b, skip=skip)
    close(y, ref)
    assert y.is_contiguous()
    spread = torch.stack([u, u], -1)[..., 0]  # time is not the fastest dimension
    close(conv(spread, k, in_gate=a, out_gate=b, skip=skip), ref)
    close(conv(u, conv.prepare(k), in_gate=a, out_gate=b, skip=skip), ref)


def test_several_filters_per_channel(conv: fftgen.Conv, white: Any) -> None:
    """S4: k (C, H, Lk), D (C, H), output (B, C, H, L)."""
    for lead in ((2,), (), (2, 3)):
        u, a = white(*lead, 4, 20), white(*lead, 4, 20)
        k, k_rev, skip = white(3, 4, 11), white(3, 4, 7), white(3, 4)
        b = white(*lead, 3, 4, 20)
        y = conv(u, k, k_rev=k_rev, skip=skip, in_gate=a, out_gate=b)
        assert y.shape == (*lead, 3, 4, 20)
        for c in range(3):
            ref = one(
                u.reshape(-1, 4, 20), k[c], conv.problem.mode, k_rev=k_rev[c], skip=skip[c],
                in_gate=a.reshape(-1, 4, 20), out_gate=b[..., c, :, :].reshape(-1, 4, 20),
            )  # fmt: skip
            close(y[..., c, :, :], ref.reshape(*lead, 4, 20))


def test_groups_share_a_filter(conv: fftgen.Conv, white: Any) -> None:
    """Evo: 256 filters for 4096 channels; neighbouring channels share."""
    u, k, k_rev, skip = white(2, 6, 20), white(3, 11), white(3, 5), white(6)
    y = conv(u, k, k_rev=k_rev, groups=3, skip=skip)
    whole = [f[torch.tensor([0, 0, 1, 1, 2, 2])] for f in (k, k_rev)]
    close(y, one(u, whole[0], conv.problem.mode, k_rev=whole[1], skip=skip))
    close(conv(u, k[:1], groups=1), one(u, k[:1].expand(6, 11), conv.problem.mode))
    both = conv(u, white(2, 3, 11), groups=3)
    assert both.shape == (2, 2, 6, 20)


def test_the_gradient_of_a_shared_filter_is_the_sum_over_its_channels(white: Any) -> None:
    u, k, v = white(2, 6, 20), white(3, 11).requires_grad_(), white(2, 6, 20)
    (found,) = torch.autograd.grad(fftgen.fftconv(u, k, groups=3), k, v)
    each = k.detach().repeat_interleave(2, 0).requires_grad_()
    (wanted,) = torch.autograd.grad(one(u, each), each, v)
    close(found, wanted.reshape(3, 2, 11).sum(1))


def test_a_filter_for_every_row(conv: fftgen.Conv, white: Any) -> None:
    u, k, k_rev, a, skip = white(3, 4, 20), white(3, 4, 11), white(3, 4, 9), white(3, 4, 20), white(4)
    y = conv(u, k, k_rev=k_rev, in_gate=a, skip=skip, per_row=True)
    for row in range(3):
        ref = one(
            u[row : row + 1], k[row], conv.problem.mode, k_rev=k_rev[row], in_gate=a[row : row + 1], skip=skip
        )
        close(y[row : row + 1], ref)
    assert conv(u[0], k[0], per_row=True).shape == (4, 20)


def test_a_reversed_filter_reaches_back(conv: fftgen.Conv, white: Any) -> None:
    """M2-BERT: y_t = sum k_j u_{t-j} + sum k_rev_j u_{t+j}; an impulse shows both, zero lag in both."""
    k, k_rev = white(1, 5), white(1, 4)
    u = torch.zeros(1, 1, 20).double()
    u[..., 10] = 1
    y = conv(u, k, k_rev=k_rev)[0, 0]
    expected = torch.zeros(20).double()
    expected[10:15] += k[0]
    expected[7:11] += k_rev[0].flip(0)
    close(y, expected)


def test_shifted_reversed_filters_are_those_of_published_layers(white: Any) -> None:
    """S4 and safari: pad(k0, (0, L)) + pad(k1.flip(-1), (L, 0)), transforms of 2 L: off by one, by name."""
    u, k0, k1 = white(2, 3, 20), white(3, 20), white(3, 20)
    whole = torch.nn.functional.pad(k0, (0, 20)) + torch.nn.functional.pad(k1.flip(-1), (20, 0))
    theirs = torch.fft.irfft(torch.fft.rfft(u, n=40) * torch.fft.rfft(whole), n=40)[..., :20]
    for conv in (fftgen.get_conv(20, causal=True), fftgen.get_conv(64, causal=True)):
        close(conv(u, k0, k_rev=k1, reverse="shifted"), theirs)
    ours = fftgen.fftconv(u, k0, k_rev=k1)
    assert (ours - theirs).norm() > 0.1 * theirs.norm()
    with pytest.raises(InputError, match="linear, use a causal convolution"):
        fftgen.fftconv(u, k0, k_rev=k1, reverse="shifted", mode="circular")
    with pytest.raises(InputError, match="reverse 'flipped' is not known: choose from mirrored, shifted"):
        fftgen.fftconv(u, k0, k_rev=k1, reverse="flipped")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "full", "u": torch.ones(2, 3, 0)}, "u has length 0"),
        ({"mode": "valid", "u": torch.ones(2, 3, 0)}, "u has length 0"),
        ({"mode": "same", "u": torch.ones(2, 3, 0)}, "u has length 0"),
        (
            {"mode": "valid", "out_gate": torch.ones(2, 3, 20)},
            r"the result's shape \(2, 3, 16\), got \(2, 3, 20\)",
        ),
        (
            {"mode": "full", "out_gate": torch.ones(2, 3, 20)},
            r"the result's shape \(2, 3, 24\), got \(2, 3, 20\)",
        ),
        ({"mode": "full", "in_gate": torch.ones(1, 3, 20)}, r"have u's shape \(2, 3, 20\), got \(1, 3, 20\)"),
        ({"mode": "full", "in_gate": 3}, "in_gate must be a torch.Tensor, got int"),
        ({"mode": "valid", "k": torch.ones(3, 0)}, "k has 0 taps, this convolution takes 1 or more"),
        ({"mode": "circular", "period": 10}, "steps, period=10: the period is at least the longest"),
        ({"u": torch.ones(2, 3, 20).cfloat()}, "u.real and u.imag each by itself"),
    ],
)
def test_refusals_name_what_was_passed(given: dict[str, Any], said: str) -> None:
    """Not what it is padded to on the way; and nothing is no signal, whatever it is padded to."""
    with pytest.raises(InputError, match=said):
        fftgen.fftconv(**{"u": torch.ones(2, 3, 20), "k": torch.ones(3, 5), **given})


def test_one_signal_by_itself_takes_a_skip_of_one_channel() -> None:
    u, k = torch.ones(20), torch.ones(5)
    for skip in (torch.ones(1), torch.ones(())):
        close(fftgen.fftconv(u, k, skip=skip), fftgen.fftconv(u, k) + u)


def test_sums_on_the_way_may_be_larger_than_any_result() -> None:
    """As in the kernels, rows and filters are scaled by powers of two: fp32 ends at 3.4e38."""
    rows = torch.tensor([1e36, 3e38, 1.0, 1e-30, 1e-20])
    u = rows[:, None, None] * torch.ones(1, 2, 4096)
    k = torch.zeros(2, 9)
    k[:, 0] = torch.tensor([1.0, 1e-6])
    y = fftgen.fftconv(u.bfloat16(), k)
    close(y.double(), u.bfloat16().double() * k[:, :1].double(), 4e-3)
    u[1, 0, 7] = torch.inf
    y = fftgen.fftconv(u.bfloat16(), k)
    assert not y[1, 0].isfinite().all()
    rest = torch.ones(5, 2, dtype=torch.bool)
    rest[1, 0] = False
    assert y[rest].isfinite().all()
    huge = fftgen.fftconv(torch.full((1, 2, 64), 1e-30), 1e34 * torch.ones(2, 64))
    close(huge[..., -1], torch.full((1, 2), 64e4), 1e-5)


@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("points", [256, 1000, 4096])
def test_spectra_of_constant_rows_may_be_larger_than_any_result(mode: str, points: int) -> None:
    """Products of spectra are of sums of all points, and transformed back to sums of as many again; gradients
    of filters add up rows as well. What is no number in one row is nobody else's matter."""
    largest = 3e19 / points
    u = torch.full((3, 1, points), largest, requires_grad=True)
    k = torch.full((1, points), largest, requires_grad=True)
    y = fftgen.fftconv(u, k, mode=mode)
    exact = fftgen.fftconv(u.double(), k.double(), mode=mode)
    close(y.double(), exact, 1e-6)
    v = torch.full_like(u, largest)
    made, wanted = (torch.autograd.grad(x, (u, k), v.to(x.dtype)) for x in (y, exact))
    for mine, ref in zip(made, wanted, strict=True):
        close(mine.double(), ref.double(), 1e-6)
    with torch.no_grad():
        u[1, 0, 3] = torch.nan
        y = fftgen.fftconv(u, k, mode=mode)
    assert y[1].isnan().all()
    close(y[::2].double(), exact[::2], 1e-6)


LENGTHS = [(20, 7), (20, 8), (7, 20), (8, 20), (20, 20), (1, 5), (5, 1), (1, 1), (131, 64)]


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("steps", "taps"), LENGTHS)
def test_modes_are_those_of_scipy(mode: str, steps: int, taps: int, white: Any) -> None:
    u, k = white(2, 3, steps), white(3, taps)
    y = fftgen.fftconv(u, k, mode=mode)
    for name in ("fftconvolve", "oaconvolve"):
        ref = getattr(signal, name)(u.numpy(), k[None].numpy(), mode=mode, axes=-1)
        close(y, torch.from_numpy(np.asarray(ref)))
    alone = fftgen.fftconv(u[0, 0], k[0], mode=mode)
    close(alone, torch.from_numpy(signal.fftconvolve(u[0, 0].numpy(), k[0].numpy(), mode=mode)))
    # Gates: of the input's and of the output's shape.
    a, b = white(2, 3, steps), white(*y.shape)
    ref = signal.fftconvolve((u * a).numpy(), k[None].numpy(), mode=mode, axes=-1) * b.numpy()
    close(fftgen.fftconv(u, k, mode=mode, in_gate=a, out_gate=b), torch.from_numpy(ref))


def test_circular_and_causal_of_the_functional_form(white: Any) -> None:
    u, k, skip = white(2, 3, 21), white(3, 13), white(3)
    ref = torch.fft.irfft(torch.fft.rfft(u) * torch.fft.rfft(k, n=21), n=21)
    close(fftgen.fftconv(u, k, mode="circular"), ref)
    close(fftgen.fftconv(u, k, mode="circular", period=30), one(u, k, "circular", 30))
    full = torch.from_numpy(signal.fftconvolve(u.numpy(), k[None].numpy(), axes=-1))
    close(fftgen.fftconv(u, k), full[..., :21])
    padded = torch.nn.functional.pad(u, (0, 12))
    close(fftgen.fftconv(u, k, mode="full", skip=skip), full + skip[:, None] * padded)


def test_stored_types_come_back_rounded_once(white: Any) -> None:
    """bfloat16 in every mode: the float64 result of the stored inputs, rounded."""
    u, k = white(2, 3, 50).bfloat16(), white(3, 21)
    for mode in ("full", "same", "valid"):
        ref = torch.from_numpy(signal.fftconvolve(u.double().numpy(), k[None].numpy(), mode=mode, axes=-1))
        y = fftgen.fftconv(u, k, mode=mode)
        assert y.dtype == torch.bfloat16
        assert (y.double() - ref).abs().max() <= 2**-8 * ref.abs().max()
        gradients.judge(y, ref, 1.7e-3)


def test_empty_batches_and_channels(white: Any) -> None:
    for shape in ((0, 3, 8), (2, 0, 8), (0, 2, 3, 8), (2, 0, 3, 8)):
        u = white(*shape).requires_grad_()
        k = white(shape[-2], 5).requires_grad_()
        y = fftgen.fftconv(u, k, skip=white(shape[-2]))
        assert y.shape == shape
        y.sum().backward()
        assert u.grad is not None
        assert u.grad.shape == shape
        assert k.grad is not None
        assert not k.grad.any()


U, K = torch.zeros(2, 4, 20), torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((U[0, 0], K), r"u must be \(..., channels, length\), got \(20\)"),
        ((U.int(), K), "u is torch.int32, this convolution was made for torch.bfloat16"),
        ((U.half(), K), r"u is torch.float16, this convolution was made for torch.bfloat16: u.to"),
        ((U[..., :0], K), "u has length 0"),
        ((torch.zeros(1, 4, 33), K), "u has length 33, this convolution takes at most 32"),
        ((U, K[0]), r"k must be \(channels, taps\), got \(8\): k\[None\] with groups=1"),
        ((U, K.long()), r"k must be real floating point, got torch.int64: k\.float\(\)"),
        ((U, K.cfloat()), r"k must be real .*complex64: k\.real and k\.imag each by itself"),
        ((U, K, {"k_rev": K[:2]}), r"k_rev has 2 channels, u has 4: [^=]*needs one row per channel$"),
        ((U, K, {"groups": 0}), "groups must be 1 or more, got 0: None for a filter per channel"),
        ((U, K, {"per_row": "no"}), "per_row must be True or False, got 'no'"),
        ((U, torch.zeros(4, 33)), "k has 33 taps, this convolution takes 1 to 32"),
        ((U, K[:2]), "k has 2 channels, u has 4: .*groups=2 for filters shared"),
        ((U, K[:3], {"groups": 3}), "groups=3 needs a filter of 3 rows and channels that 3 divides"),
        ((U, K, {"groups": 2}), "groups=2 needs a filter of 2 rows"),
        ((U, torch.zeros(1, 2, 4, 8)), r"k must be .*got \(1, 2, 4, 8\): per_row=True"),
        ((U, torch.zeros(3, 4, 8), {"per_row": True}), r"u is \(2, 4, 20\), k must be \(2, 4, taps\)"),
        ((U, K, {"k_rev": K[:, :0]}), "k_rev has 0 taps"),
        ((U, torch.zeros(3, 4, 8), {"k_rev": K}), "k_rev must have k's channels"),
        ((U, K, {"in_gate": U[:1]}), r"in_gate must have u's shape \(2, 4, 20\), got \(1, 4, 20\)"),
        ((U, torch.zeros(3, 4, 8), {"out_gate": U}), r"out_gate must have the result's shape \(2, 3"),
        ((U, K, {"out_gate": U.double()}), "out_gate is torch.float64, u is torch.float32"),
        ((U, K, {"skip": K[:, :1]}), r"skip must be \(channels,\) = \(4\), got \(4, 1\): skip.flatten"),
        ((U, torch.zeros(3, 4, 8), {"skip": K[:, 0]}), r"skip must be \(filters, channels\) = \(3, 4\)"),
        ((U, K, {"skip": torch.zeros(4).int()}), "skip must be floating point"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(arguments: Any, message: str) -> None:
    u, k, *more = arguments
    with pytest.raises(InputError, match=message):
        fftgen.get_conv(32, causal=True)(u, k, **(more[0] if more else {}))


def test_what_is_refused_does_not_depend_on_calls_before() -> None:
    """1, True and 1.0 are one key of a dictionary, and of these one is a number of groups."""
    u, k = torch.zeros(2, 4, 20), torch.zeros(1, 8)
    conv = fftgen.get_conv(32, causal=True)
    for _ in range(2):
        for bad in (True, 1.0):
            for call in (conv, fftgen.fftconv):
                with pytest.raises(InputError, match="groups must be an int"):
                    call(u, k, groups=bad)
        with pytest.raises(InputError, match="period must be an int"):
            fftgen.fftconv(u, k, mode="circular", groups=1, period=20.0)  # type: ignore[arg-type]
        conv(u, k, groups=1), fftgen.fftconv(u, k, groups=1)
        fftgen.fftconv(u, k, mode="circular", groups=1, period=20)


def test_what_the_functional_form_refuses() -> None:
    for options, message in (
        ({"mode": "linear"}, "mode 'linear' is not supported: choose from circular, causal, full"),
        ({"mode": "same", "k_rev": K}, "k_rev has no place in mode 'same'"),
        ({"mode": "valid", "skip": K[:, 0]}, "skip has no place in mode 'valid'"),
        ({"period": 32}, "period=32 belongs to mode 'circular'"),
        ({"mode": "circular", "period": "x"}, r"period must be an int, got 'x' \(str\)"),
        ({"mode": "circular", "period": 32.0}, r"period must be an int, got 32\.0 \(float\)"),
        ({"mode": "circular", "period": 7}, "signals and filters of 20, 8 steps, period=7: the period is at"),
    ):
        with pytest.raises(InputError, match=message):
            fftgen.fftconv(U, K, **options)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"u is torch\.int32, fftconv on cpu takes torch\.float64, .* integers"
    ):
        fftgen.fftconv(U.int(), K)
    with pytest.raises(InputError, match=r"u has length 4194305, .* split the sequence"):
        fftgen.get_conv(32)(torch.zeros(1, 1, 2**22 + 1), K[:1])
    with pytest.raises(InputError, match="u and k must be tensors"):
        fftgen.fftconv([1.0], K)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((U, K[:2], {"groups": 2.0}), r"groups must be an int, got 2\.0 \(float\)"),
        ((U, K[:2], {"groups": "2"}), r"groups must be an int, got '2' \(str\)"),
        ((U, K[None, :, :][:0]), r"at least one filter per channel, got \(0, 4, 8\)"),
        ((U[0, 0], K[0], {"groups": 5}), "groups=5 needs a filter of 5 rows"),
        ((U[0, 0, 0], K[0]), "u and filters must have time, got a number"),
        ((U[0, 0], K[0, 0], {"mode": "same"}), "u and filters must have time, got a number"),
        ((U, K[:2], {"k_rev": K[0, 0]}), "u and filters must have time, got a number"),
        ((U, K[:2], {"k_rev": "x"}), r"k_rev must be a torch\.Tensor, got str"),
        ((U, K[:2], {"k_rev": [1.0]}), r"k_rev must be a torch\.Tensor, got list"),
    ],
)
def test_filters_are_counted_before_they_are_used(arguments: Any, message: str) -> None:
    u, k, *more = arguments
    functional._ROUTES.clear()
    with pytest.raises(InputError, match=message):
        fftgen.fftconv(u, k, **(more[0] if more else {}))


def test_one_signal_and_one_filter_take_the_same_options(white: Any) -> None:
    u, k = white(20), white(8)
    wanted = fftgen.fftconv(u, k)
    assert torch.equal(fftgen.fftconv(u, k, groups=1), wanted)
    assert torch.equal(fftgen.fftconv(u, k, per_row=True), wanted)
    assert torch.equal(fftgen.fftconv(u[None], k[None], groups=np.int64(1))[0], wanted)


def test_prepared_spectra_hold_both_filters_or_are_refused(conv: fftgen.Conv, white: Any) -> None:
    u, k, k_rev = white(2, 4, 20), white(4, 9), white(4, 13)
    made = conv.prepare(k, k_rev=k_rev)
    close(conv(u, made), one(u, k, conv.problem.mode, k_rev=k_rev))
    assert made.filter_length == 13
    with pytest.raises(InputError, match="holds k_rev already"):
        conv(u, made, k_rev=k_rev)
    with pytest.raises(InputError, match=r"\[\(4, 9\), \(2, 13\)\]"):
        conv.prepare(k, k_rev=k_rev[:2])
    with pytest.raises(InputError, match="the spectrum has 4 channels, u has 3"):
        conv(u[:, :3], made)

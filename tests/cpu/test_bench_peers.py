"""Peers of the bench, by stand-ins with the signatures that their documentation gives; and attention."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from bench_kit import case, host
from torch import Tensor

from fftgen.bench.row import measure_row


def flashfftconv(**changes: Any) -> ModuleType:
    class FlashFFTConv(torch.nn.Module):
        """FlashFFTConv(fft_size, dtype)(u, k, pregate, postgate): irfft(rfft(u, N) * rfft(k, N), N)[:L]."""

        def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16) -> None:
            super().__init__()
            assert dtype in (torch.float16, torch.bfloat16)
            assert seqlen in [1 << e for e in range(8, 23)]
            self.seqlen, self.dtype = seqlen, dtype

        def forward(
            self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None
        ) -> Tensor:
            assert (
                self.training == u.requires_grad
            )  # what a backward pass needs is kept in training mode only
            assert (u.dtype, k.dtype) == (self.dtype, torch.float32)
            assert (pregate is None) == (postgate is None)
            x = u.double() * (1 if pregate is None else pregate.double())
            n = self.seqlen
            y = torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(k.double(), n=n), n=n)
            y = y[..., : u.shape[-1]] * (1 if postgate is None else postgate.double())
            return y.to(u.dtype)

    module: Any = ModuleType("flashfftconv")
    module.FlashFFTConv = FlashFFTConv
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def fft_causal_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D, L), weight (D, K) of the same dtype, weight[0] for the current sample."""
    assert x.dtype == weight.dtype
    n = x.shape[-1] + weight.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(x.double(), n=n) * torch.fft.rfft(weight.double(), n=n), n=n)
    return y[..., : x.shape[-1]].to(x.dtype)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any] | None) -> None:
    """A stand-in package in sys.modules, with its parents."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module: Any = ModuleType(".".join(parts[:end]))
        module.__path__ = []
        if end == len(parts) and function is not None:
            module.fft_causal_conv1d = function
        monkeypatch.setitem(sys.modules, module.__name__, module)


MODULES = {"cudnn": "cudnn.ops", "subquadratic-ops": "subquadratic_ops_torch.fft_causal_conv1d"}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_flashfftconv_is_called_as_it_is_documented(
    mode: str, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashfftconv", flashfftconv())
    found = measure_row(case(mode, gated=gated), host(), contenders=["flashfftconv"], seed=1, seconds=0.01)
    entry = found["contenders"]["flashfftconv"]
    assert entry["status"] == "ok", entry
    odd = measure_row(case(mode, 1000), host(), contenders=["flashfftconv"], seed=1, seconds=0.01)
    assert "powers of two from 256" in odd["contenders"]["flashfftconv"]["reason"]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_causal_peers_are_called_as_they_are_documented(
    name: str, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, MODULES[name], fft_causal_conv1d)
    found = measure_row(case(length=300, gated=gated), host(), contenders=[name], seed=1, seconds=0.01)
    assert found["contenders"][name]["status"] == "ok", found["contenders"][name]
    assert "filter rounded to bf16" in found["contenders"][name]["note"]
    other = measure_row(case("circular"), host(), contenders=[name], seed=1, seconds=0.01)
    assert other["contenders"][name]["reason"] == "causal convolutions only"
    install(monkeypatch, MODULES[name], lambda x, weight: fft_causal_conv1d(x, weight.flip(-1)))
    wrong = measure_row(case(), host(), contenders=[name], seed=1, seconds=0.01)
    assert wrong["contenders"][name]["status"] == "wrong"


def test_a_peer_that_is_not_there_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cudnn", None)  # a frontend without ops
    install(monkeypatch, "subquadratic_ops_torch.fft_causal_conv1d", None)
    monkeypatch.setitem(sys.modules, "flashfftconv", None)
    names = ["flashfftconv", "subquadratic-ops", "cudnn"]
    found = measure_row(case(), host(), contenders=names, seed=1, seconds=0.01)["contenders"]
    assert {c["status"] for c in found.values()} == {"unavailable"}
    assert found["flashfftconv"]["reason"] == "not installed"
    assert "has no fft_causal_conv1d: an older release" in found["subquadratic-ops"]["reason"]
    assert "cannot be imported: No module named 'cudnn.ops'" in found["cudnn"]["reason"]


@pytest.mark.parametrize("channels", [8, 64, 128])
def test_attention_is_held_against_attention(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of = case(channels=channels, length=100)
    found = measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"]
    assert found["attention"]["status"] == "ok"
    assert found["attention"]["note"].startswith(
        "1 heads of 8" if channels == 8 else f"{channels // 64} heads"
    )
    from torch.nn.functional import scaled_dot_product_attention as right_one

    for wrong in (
        lambda q, k, v, is_causal: right_one(q, k, v),  # sees the future
        lambda q, k, v, is_causal: torch.zeros_like(q),
        lambda q, k, v, is_causal: right_one(k, q, v, is_causal=True),
    ):
        monkeypatch.setattr("fftgen.bench.attention.scaled_dot_product_attention", wrong)
        entry = measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"][
            "attention"
        ]
        assert entry["status"] == "wrong", entry


def test_attention_takes_part_where_it_can_be_compared() -> None:
    reasons = [
        measure_row(of, host(), contenders=["attention"], seed=1, seconds=0.01)["contenders"]["attention"][
            "reason"
        ]
        for of in (
            case(gated=False),
            case("circular"),
            case(channels=12),
            case(length=32768, batch=1),
        )
    ]
    assert "gated causal" in reasons[0]
    assert "gated causal" in reasons[1]
    assert "12 channels are no whole number of heads" in reasons[2]
    assert "up to length 16384" in reasons[3]

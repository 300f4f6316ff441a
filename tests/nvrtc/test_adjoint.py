"""Ring 3: gradients through the kernels. The adjoint is the same kernel with a conjugated spectrum.

``emulate.convolve`` with ``k_rev`` alone is what the backward pass launches for the gradient of u; with
both filters it is a bidirectional call. References are float64 autograd (tests/gradients.py).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from calls import built
from cases import slow, usually
from gradients import OPTIONS, TORCH

import fftgen
from fftgen import eager, emulate, gradient_accuracy
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.planner.twins import twin
from fftgen.problem import Problem

Given = dict[str, torch.Tensor]


def launched(
    plan: Plan, rng: np.random.Generator, u: torch.Tensor, k: Any, k_rev: Any, a: Any, b: Any, d: Any
) -> torch.Tensor:
    """The kernels on these arguments, in the operator's order."""
    module, ptx = built(plan)
    u, k, k_rev, a, b, d = (None if x is None else x.detach() for x in (u, k, k_rev, a, b, d))
    y, _ = emulate.convolve(
        module, u, k, k_rev=k_rev, in_gate=a, out_gate=b, skip=d, ptx=ptx, seed=int(rng.integers(2**31))
    )
    return y


def check(
    plan: Plan,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    channels: int = 1,
    steps: int | None = None,
    taps: int | None = None,
    options: tuple[str, ...] = (),
    wanted: tuple[str, ...] = ("u",),
) -> None:
    """Forward result and the gradients of signals that kernels compute, against float64 autograd."""
    p = plan.problem
    shape = (batch, channels, steps or p.length)
    given = gradients.draw(rng, shape, taps or p.length, options, TORCH[p.dtype])
    v = torch.from_numpy(rng.standard_normal(shape)).to(TORCH[p.dtype])
    y, ref = gradients.exact(given, v, mode=p.mode, length=p.length)
    u, k, k_rev, a, b, d = (given.get(n) for n in gradients.NAMES)
    assert u is not None
    if k_rev is not None:
        gradients.judge(
            launched(plan, rng, u, k, k_rev, a, b, d),
            y,
            gradient_accuracy.result(p.dtype, plan.order, plan.compute_format),
        )
    # As Conv.backward of fftgen/autograd.py calls them.
    calls = {
        "u": (v, k_rev, k, b, a, d),
        "in_gate": (v, k_rev, k, b, u, d),
        "out_gate": (u, k, k_rev, a, v, d),
    }
    for name in wanted:
        found = launched(plan, rng, *calls[name])
        gradients.judge(
            found, ref[name], gradient_accuracy.signal(p.dtype, plan.order, plan.compute_format, gated=True)
        )


def plan_for(mode: str, length: int, dtype: str = "bf16", target: str = "sm_90") -> Plan:
    return search.plan(Problem(mode, length, dtype), target)


LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
EVERY = list(product(LENGTHS, ("causal", "circular"), ("bf16", "fp16")))
USUAL = [
    (256, "causal", "bf16"),
    (512, "circular", "fp16"),
    (1024, "circular", "bf16"),
    (2048, "causal", "bf16"),
    (4096, "causal", "fp16"),
    (8192, "circular", "bf16"),
    (32_768, "causal", "bf16"),
]


@pytest.mark.drawn(4)
@pytest.mark.parametrize(("length", "mode", "dtype"), usually(EVERY, USUAL))
def test_the_gradient_of_the_input(mode: str, length: int, dtype: str, rng: np.random.Generator) -> None:
    check(plan_for(mode, length, dtype), rng, batch=1 if length > 4096 else 3)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_every_combination_of_options(mode: str, options: tuple[str, ...], rng: np.random.Generator) -> None:
    wanted = ("u", *(n for n in ("in_gate", "out_gate") if n in options))
    check(plan_for(mode, 512), rng, batch=3, channels=2, options=options, wanted=wanted)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", usually((1, 2, 17, 257, 1009, 1026, 5003, 20_000), (1, 1009, 1026, 5003)))
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_any_length(mode: str, length: int, rng: np.random.Generator) -> None:
    """Circular lengths that do not factor are folded: the same operator, and the same adjoint."""
    plan = plan_for(mode, length)
    check(plan, rng, batch=2 if length < 10_000 else 1, options=("k_rev", "skip"))


def test_folded_plans_are_among_them() -> None:
    plan = plan_for("circular", 1009)
    assert (plan.fold, plan.engine) == (1009, "mma")


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("length", "factors", "device", "engine"),
    [
        (250, (16, 16), 0, "mma"),
        (3700, (16, 16, 16), 0, "mma"),
        (3700, (16, 16, 16), 1, "mma"),
        (3700, (16, 16, 16), 0, "wmma"),
        *slow([(256, (16, 16), 0, "mma"), (4096, (16, 16, 16), 0, "mma")]),
    ],
)
def test_folded_lengths_with_all_options(
    length: int, factors: tuple[int, ...], device: int, engine: str, rng: np.random.Generator
) -> None:
    """The three gradients that kernels compute, both filters given; then of short rows and filters."""
    problem = Problem("circular", length, "bf16")
    plan = search.with_shape(problem, "sm_90", factors, device, engine, fold=True)
    assert plan.fold == length
    check(plan, rng, batch=2, channels=2, options=OPTIONS[-1], wanted=("u", "in_gate", "out_gate"))
    check(plan, rng, batch=2, steps=length // 2 + 1, taps=length, options=("k_rev",))
    check(plan, rng, batch=2, steps=length, taps=length // 3, options=("k_rev",))


@pytest.mark.drawn(3)
@pytest.mark.parametrize(("steps", "taps"), [(1, 1000), (7, 9), (1000, 1), (600, 1000), (1000, 600)])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_short_inputs_and_filters(mode: str, steps: int, taps: int, rng: np.random.Generator) -> None:
    """Taps that meet no input, and reverse taps of short inputs: neither vanish nor wrap."""
    plan = plan_for(mode, 1024)
    check(plan, rng, batch=2, steps=steps, taps=taps, options=("k_rev", "in_gate", "out_gate"))


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("mode", "length", "dtype", "target"),
    [
        ("causal", 65_536, "bf16", "sm_90"),
        ("circular", 65_521, "bf16", "sm_90"),
        ("circular", 65_536, "fp16", "sm_75"),
    ],
)
def test_the_device_class(mode: str, length: int, dtype: str, target: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, dtype, target)
    assert plan.memory_class == "device"
    check(plan, rng, options=("k_rev", "in_gate", "out_gate", "skip"))


@pytest.mark.drawn(3)
@pytest.mark.parametrize(("mode", "length"), [("causal", 512), ("circular", 512), ("circular", 1009)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_autograd_through_the_kernels(
    dtype: str, mode: str, length: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators with the simulated kernels in the place of torch.fft: forward, then one backward().

    The filters' gradients have no kernel: theirs come from the CPU path and are held to it.
    """
    plan = plan_for(mode, length, dtype)
    launches: list[str] = []

    def kernels(
        u: torch.Tensor, k: Any, k_rev: Any, *, mode: str, length: int, in_gate: Any, out_gate: Any, skip: Any
    ) -> torch.Tensor:
        assert (mode, length) == (plan.problem.mode, plan.problem.length)
        assert k is given["k"]
        launches.append("forward")
        return launched(plan, rng, u, k, k_rev, in_gate, out_gate, skip)

    def both(u: torch.Tensor, k: Any, k_rev: Any, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        launches.append("both")
        found = twin(plan)
        assert found is not None
        module, ptx = built(found)
        options = {"k_rev": k_rev, "in_gate": given["in_gate"], "skip": given["skip"]}
        y, other, _ = emulate.both(module, u, k, given["gates"], ptx=ptx, **options)
        return y, other

    monkeypatch.setattr(eager, "convolve", kernels)
    monkeypatch.setattr(eager, "convolve_both", both)
    given = gradients.draw(rng, (3, 2, length), length // 2, OPTIONS[-1], TORCH[dtype])
    v = torch.from_numpy(rng.standard_normal((3, 2, length))).to(TORCH[dtype])
    u, k, *_ = given.values()
    y = fftgen.get_conv(length, TORCH[dtype], causal=mode == "causal")(
        u, k, **{n: x for n, x in given.items() if n not in ("u", "k")}
    )
    y.backward(v)
    assert launches == ["forward", "both", "forward"]  # y, du with d in_gate, d out_gate
    ref, wanted = gradients.exact(given, v, mode=mode, length=length)
    gradients.judge(y, ref, gradient_accuracy.signal(dtype, plan.order, plan.compute_format, gated=True))
    for name, x in given.items():
        assert x.grad is not None
        if name in ("k", "k_rev", "skip"):
            expected = gradient_accuracy.cpu_filters(dtype, gates=2)
            gradients.judge(x.grad, wanted[name], expected, margin=4 if name == "skip" else 1.5)
        else:
            gradients.judge(
                x.grad,
                wanted[name],
                gradient_accuracy.signal(dtype, plan.order, plan.compute_format, gated=True),
            )

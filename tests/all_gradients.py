"""All gradients of a call by the kernels of one pass, in the simulator, each judged.

References are float64 autograd (gradients.py); bounds are those of gradient_accuracy.py.
"""

from __future__ import annotations

import gradients
import numpy as np
import torch
from calls import built
from gradients import TORCH
from torch import Tensor

from fftgen import emulate, gradient_accuracy
from fftgen.gradient import Gradients, Needed
from fftgen.planner.gradient_plan import Gradient

ALL = Needed(True, True, True)
RESULTS = {"u": "u", "in_gate": "in_gate", "out_gate": "out_gate", "k": "filter"}


def noise(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def run(
    found: Gradient,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    options: tuple[str, ...] = ("in_gate", "out_gate", "skip"),
    needed: Needed | None = None,
    *,
    taps: int = 0,
    off: int = 0,
    ptx: str | None = None,
    given: dict[str, Tensor] | None = None,
) -> tuple[Gradients, emulate.Simulated]:
    """The kernels' gradients, each judged. ``off``: signals are views that start so many elements on."""
    module, text = built(found)
    dtype = TORCH[found.problem.dtype]
    batch, channels, steps = shape
    given = given or gradients.draw(rng, shape, taps or steps, options, dtype)
    v = noise(rng, *shape).to(dtype)

    def view(x: Tensor | None) -> Tensor | None:
        if x is None or not off:
            return None if x is None else x.detach()
        wide = torch.zeros(batch, channels, steps + off, dtype=dtype)
        wide[..., off:] = x.detach()
        return wide[..., off:]

    u, cotangent = view(given["u"]), view(v)
    assert u is not None
    assert cotangent is not None
    gates = {n: view(given.get(n)) for n in ("in_gate", "out_gate")}
    if needed is None:
        needed = Needed(True, *(x is not None for x in gates.values()))
    k = given["k"].detach()
    rest = {n: given[n].detach() for n in ("k_rev", "skip") if n in given}
    rest = rest | {n: x[..., :steps] for n, x in rest.items() if n == "k_rev"}
    made, simulated = emulate.backward(
        module,
        u,
        cotangent,
        k[:, :steps],
        needed=needed,
        taps=k.shape[-1],
        ptx=ptx or text,
        seed=int(rng.integers(2**31)),
        **gates,
        **rest,
    )
    assert made.filter.shape == k.shape
    judge(found, made, given, v)
    wanted = dict(zip(("u", "in_gate", "out_gate"), needed, strict=True))
    assert all((getattr(made, n) is not None) == need for n, need in wanted.items())
    return made, simulated


def judge(found: Gradient, made: Gradients, given: dict[str, Tensor], v: Tensor) -> None:
    plan, dtype = found.plan, found.problem.dtype
    _, wanted = gradients.exact(given, v, mode="causal", length=found.problem.length)
    steps = v.shape[-1]
    for name, field in RESULTS.items():
        out = getattr(made, field)
        if out is None:
            continue
        if name == "k":
            assert not out[:, steps:].any()
            expected = gradient_accuracy.filters(dtype, plan.order, plan.compute_format)
            gradients.judge(out[:, :steps], wanted["k"][:, :steps], expected)
        else:
            assert out.dtype == v.dtype
            # What is gated on its way in stays in fp32: one rounding, of the result.
            gradients.judge(
                out, wanted[name], gradient_accuracy.signal(dtype, plan.order, plan.compute_format)
            )

"""Mutants of the kernels that make a filter's gradient: a shifted index may not pass for right.

Dropped barriers: test_gradient.py. The kernels after them: test_finish_kernel.py.
"""

from __future__ import annotations

import gradients
import numpy as np
import pytest
import torch
from calls import built
from command_line import why_not
from gradient_kernels import in_turn
from laboratory import Laboratory
from mutations import Mutation, shifted_indices
from torch import Tensor

from fftgen import eager, emulate, gradient_accuracy
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SAMPLED = 5
# A worker is a warp that keeps several transforms; a block that takes both signals together, of one channel
# or of two, or in turn.
GRADIENTS = {
    "warp": gradient(Problem("causal", 256, "bf16"), "sm_90"),
    "block": gradient(Problem("causal", 4096, "fp16"), "sm_90"),
    "block, channels abreast": gradient(Problem("causal", 2048, "fp16"), "sm_90"),
    "block, in turn": in_turn(4096, "fp16", "sm_90", signals=False),
}


class Gradients(Laboratory):
    """Whole vectors and ragged ends, with every choice of gates, as causal ones and on a circle."""

    stand_ins = True  # of transforms that a group has too few of

    def __init__(self, found: Gradient, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(*built(found), monkeypatch)
        self.found = found
        n = found.problem.length
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[found.problem.dtype]

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

        self.calls = []
        for shape, gated, period in (
            ((5, 2, n), 3, 0),
            ((4, 1, n - 8), 0, n),
            ((3, 1, n), 1, n),
            ((1, 1, n), 2, 0),
            ((2, 1, n), 0, 0),  # whole rows are loaded by other code than those that end early
            ((1, 2, n - 16), 3, n),
            ((1, 1, n - 8), 1, 0),
            ((1, 1, n - 16), 2, 0),
            ((3, 1, n - 3), 3, 0),
            ((2, 2, n - 5), 0, n),
        ):
            batch, channels, steps = shape
            u, v, a, b = (draw(batch, channels + found.plan.abreast - 1, steps) for _ in range(4))
            gates = (a if gated & 1 else None, b if gated & 2 else None)
            mode = "circular" if period else "causal"
            wide = [None if x is None else x.double() for x in (u, v, *gates)]
            exact = eager.correlate_input(
                wide[0], wide[1], mode=mode, length=n, taps=n, in_gate=wide[2], out_gate=wide[3]
            )
            self.calls.append((u, v, gates, period, exact))
        self.look()

    def run(self, ptx: str) -> None:
        plan = self.found.plan
        expected = gradient_accuracy.filters(plan.problem.dtype, plan.order, plan.compute_format)
        for u, v, (a, b), period, exact in self.calls:
            dk, _ = emulate.gradient(
                self.module, u, v, taps=exact.shape[-1], in_gate=a, out_gate=b, period=period, ptx=ptx
            )
            reach = exact.shape[-1] if period else u.shape[-1]
            gradients.judge(dk[:, :reach], exact[:, :reach], expected)


def shifts(laboratory: Gradients) -> list[Mutation]:
    return [m for m in shifted_indices(laboratory.ptx) if m.entry == laboratory.found.name]


@pytest.mark.drawn(2)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_shifted_index_is_noticed(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory = Gradients(GRADIENTS[kind], rng, monkeypatch)
    mutations = shifts(laboratory)
    assert len(mutations) > 100
    assert laboratory.unreached(mutations) == []
    sample = rng.choice(len(mutations), SAMPLED, replace=False)
    assert laboratory.missed((mutations[i] for i in sample), mutations) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRADIENTS)
def test_every_shifted_index_is_noticed(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory = Gradients(GRADIENTS[kind], rng, monkeypatch)
    mutations = shifts(laboratory)
    assert laboratory.missed(mutations, mutations) == []

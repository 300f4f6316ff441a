"""Random inputs of a case, in as many sets as it takes to keep them out of the L2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fftgen.bench.cases import Case
from fftgen.storage import TORCH

FILLS = 3  # all sets together are this many times the L2


@dataclass(frozen=True)
class Inputs:
    """u, gates, cotangent v (B, H, L) in the storage type, k (H, taps) fp32, on one device.

    Gates may be None; v is there in backward cases only.
    """

    u: Tensor
    k: Tensor
    in_gate: Tensor | None = None
    out_gate: Tensor | None = None
    v: Tensor | None = None

    @property
    def arguments(self) -> Mapping[str, Tensor]:
        """What a backward case asks the gradients of, by name: u, k and the gates that are there."""
        named = {"u": self.u, "k": self.k, "in_gate": self.in_gate, "out_gate": self.out_gate}
        return {name: x for name, x in named.items() if x is not None}

    def leaves(self) -> Inputs:
        """The same memory in tensors of their own, whose gradients autograd keeps track of."""
        return replace(self, **{name: x.detach().requires_grad_() for name, x in self.arguments.items()})

    @property
    def nbytes(self) -> int:
        tensors = [*self.arguments.values(), *([] if self.v is None else [self.v])]
        return sum(x.numel() * x.element_size() for x in tensors)


def draw(case: Case, device: torch.device, seed: int) -> Inputs:
    """White noise, gates and cotangent too, and filters that decay over their length, of 2-norm about 1.

    With that norm an output is about as large as the input: no contender is asked for numbers that its
    storage type does not hold.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype = TORCH[case.problem.dtype]
    shape = (case.batch, case.channels, case.length)

    def noise(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, dtype=of, device=device, generator=generator)

    taps = case.taps or case.length
    decay = torch.exp(-8 * torch.arange(taps, device=device, dtype=torch.float32) / taps)
    k = noise(case.channels, taps, of=torch.float32) * decay * (4 / math.sqrt(taps))
    in_gate, out_gate = (noise(*shape), noise(*shape)) if case.gated else (None, None)
    u = noise(*shape)
    return Inputs(u, k, in_gate, out_gate, noise(*shape) if case.direction == "backward" else None)


def draw_sets(case: Case, device: torch.device, seed: int, l2_bytes: int) -> tuple[Inputs, ...]:
    """At least two sets, and enough that FILLS times the L2 lies between two uses of the same one."""
    first = draw(case, device, seed)
    count = max(2, -(-FILLS * l2_bytes // first.nbytes))
    return (first, *(draw(case, device, seed + i) for i in range(1, count)))

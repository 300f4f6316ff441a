"""Random inputs of a case, in as many sets as it takes to keep them out of the L2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fftgen.bench.cases import Case
from fftgen.check import TORCH

FILLS = 3  # all sets together are this many times the L2


@dataclass(frozen=True)
class Inputs:
    """u, gates (B, H, L) in the storage type, k (H, L) fp32, on one device; gates may be None."""

    u: Tensor
    k: Tensor
    in_gate: Tensor | None = None
    out_gate: Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = (self.u, self.k, self.in_gate, self.out_gate)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def draw(case: Case, device: torch.device, seed: int) -> Inputs:
    """White noise, gates of white noise, and filters that decay over their length, of 2-norm about 1.

    With that norm an output is about as large as the input: no contender is asked for numbers that its
    storage type does not hold.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype = TORCH[case.problem.dtype]
    shape = (case.batch, case.channels, case.length)

    def noise(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, dtype=of, device=device, generator=generator)

    decay = torch.exp(-8 * torch.arange(case.length, device=device, dtype=torch.float32) / case.length)
    k = noise(case.channels, case.length, of=torch.float32) * decay * (4 / math.sqrt(case.length))
    gates = (noise(*shape), noise(*shape)) if case.gated else (None, None)
    return Inputs(noise(*shape), k, *gates)


def draw_sets(case: Case, device: torch.device, seed: int, l2_bytes: int) -> tuple[Inputs, ...]:
    """At least two sets, and enough that FILLS times the L2 lies between two uses of the same one."""
    first = draw(case, device, seed)
    count = max(2, -(-FILLS * l2_bytes // first.nbytes))
    return (first, *(draw(case, device, seed + i) for i in range(1, count)))

"""One process of a DistributedDataParallel run (tests/cpu/test_citizen.py): python ddp_worker.py RANK DIR.

Trains a few steps on its half of every batch and saves the parameters it ends with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

WORLD, STEPS, LENGTH = 2, 4, 96


def model() -> nn.Module:
    """Every layer with a filter, seeded: all processes start alike."""
    from fftgen.nn import FFTConv, LongConv

    torch.manual_seed(0)
    return nn.Sequential(
        FFTConv(4, LENGTH, bidirectional=True),
        LongConv(4, LENGTH, filters=2, initial="geometric", squash=1e-3),
    ).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    draw = torch.randn(2, 2 * WORLD, 4, LENGTH, generator=generator, dtype=torch.float64)
    return draw[0], draw[1]


def train(run: nn.Module, rows: slice) -> list[float]:
    """Plain gradient descent; the losses of this process's rows."""
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
    losses = []
    for step in range(STEPS):
        u, target = batch(step)
        loss = (run(u[rows]) - target[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=WORLD
    )
    run = nn.parallel.DistributedDataParallel(model())
    train(run, slice(2 * rank, 2 * rank + 2))
    torch.save(run.module.state_dict(), directory / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

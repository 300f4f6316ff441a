"""Train two small models on text that every installation has, in eager mode and compiled, and compare.

    python examples/train.py            both, on the CPU: under three minutes on two cores

A language model with Hyena mixers (arXiv 2302.10866: two gates around a long convolution whose filter a
small network makes from positions) learns the bytes of Python's standard library. A classifier of LongConv
layers (arXiv 2302.06646) tells Python, C++ and English prose apart, from raw bytes: the standard library,
the C++ headers of PyTorch, and the licence and description texts of installed packages. Files that are
evaluated on are not trained on.

Ends with an error if a loss does not fall below what byte frequencies (or a guess) give, or if the
compiled model does not train as the eager one does.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fftgen import fftconv
from fftgen.errors import FFTGenError, InputError
from fftgen.nn import LongConv, parameter_groups

BYTES = 256
AGREEMENT = 0.01  # between the losses of two runs: the order of additions differs, and training spreads it


# Text


def contents(paths: list[Path], most: int = 100_000) -> list[bytes]:
    """Files, each cut to ``most`` bytes, so that no file dominates; empty and unreadable ones left out."""
    found = []
    for path in sorted(paths):
        try:
            text = path.read_bytes()[:most]
        except OSError:
            continue
        if text:
            found.append(text)
    return found


def standard_library() -> list[bytes]:
    """The modules of Python's standard library, those right in its directory."""
    return contents(list(Path(os.__file__).parent.glob("*.py")))


def headers() -> list[bytes]:
    """PyTorch's C++ headers: the hand-written core, not the generated operator lists."""
    include = Path(torch.__file__).parent / "include"
    return contents([*include.glob("c10/**/*.h"), *include.glob("torch/csrc/**/*.h")])


def prose() -> list[bytes]:
    """Licences, notices and descriptions of the packages that are installed."""
    texts = []
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            if file.name == "METADATA" or file.stem.upper() in ("LICENSE", "LICENCE", "NOTICE", "COPYING"):
                texts.append(Path(str(package.locate_file(file))))
    return contents(texts)


def split(files: list[bytes], generator: torch.Generator) -> tuple[bytes, bytes]:
    """Nine tenths of the files to train on, the rest to evaluate on."""
    order = torch.randperm(len(files), generator=generator).tolist()
    cut = max(1, len(files) // 10)
    return b"".join(files[i] for i in order[cut:]), b"".join(files[i] for i in order[:cut])


def excerpts(text: bytes, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Random pieces of a text, (count, length) integers. Raises InputError when it is too short."""
    if len(text) <= length:
        raise InputError(f"the text has {len(text)} bytes, excerpts need {length}: shorten them (--length)")
    starts = torch.randint(len(text) - length, (count,), generator=generator).tolist()
    return torch.stack(
        [torch.frombuffer(bytearray(text[s : s + length]), dtype=torch.uint8) for s in starts]
    ).long()


# Models


class HyenaFilter(nn.Module):
    """Filters (H, L) as a function of position: a network with sines, under windows that decay."""

    def __init__(self, channels: int, length: int, bands: int = 8, width: int = 32) -> None:
        super().__init__()
        t = torch.linspace(0, 1, length)[:, None]
        angles = 2 * math.pi * t * torch.linspace(1, length / 4, bands)
        rates = torch.logspace(math.log10(2), math.log10(60), channels)
        self.register_buffer("position", torch.cat([t, angles.cos(), angles.sin()], 1), persistent=False)
        self.register_buffer("window", torch.exp(-rates[:, None] * t.T), persistent=False)
        self.inner = nn.Linear(1 + 2 * bands, width)
        self.outer = nn.Linear(width, channels)

    def forward(self, length: int) -> Tensor:
        found: Tensor = self.outer(torch.sin(4 * self.inner(self.position[:length]))).T
        return found * self.window[:, :length]


class Hyena(nn.Module):
    """y = W (x2 * (conv(x1 * v) + D x1 * v)): gates, convolution and skip term are one call."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, 3 * channels)
        self.short = nn.Parameter(torch.randn(3 * channels, 3) / math.sqrt(3))  # short filters, same operator
        self.filter = HyenaFilter(channels, length)
        self.D = nn.Parameter(torch.ones(channels))
        self.leave = nn.Linear(channels, channels)

    def forward(self, u: Tensor) -> Tensor:
        mixed = fftconv(self.enter(u).transpose(1, 2), self.short)
        x1, x2, v = mixed.chunk(3, 1)
        y = fftconv(v, self.filter(u.shape[1]), in_gate=x1, out_gate=x2, skip=self.D)
        out: Tensor = self.leave(y.transpose(1, 2))
        return out


class Block(nn.Module):
    """A mixer of positions and a network on channels, each behind a norm and beside a residual."""

    def __init__(self, channels: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])
        self.channels = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.mixer(self.norms[0](u))
        out: Tensor = u + self.channels(self.norms[1](u))
        return out


class LanguageModel(nn.Module):
    """(B, L) bytes to (B, L, 256) logits of the next."""

    def __init__(self, length: int, channels: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, channels)
        self.blocks = nn.Sequential(*(Block(channels, Hyena(channels, length)) for _ in range(layers)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(text))))
        return logits


class Classifier(nn.Module):
    """(B, L) bytes to (B, classes) logits."""

    def __init__(self, length: int, classes: int, channels: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, channels)
        self.blocks = nn.Sequential(
            *(
                Block(
                    channels,
                    LongConv(
                        channels, length, initial="geometric", bidirectional=True, squash=0.001, smooth=1,
                        filter_lr=1e-3, transposed=False,
                    ),
                )
                for _ in range(layers)
            )
        )  # fmt: skip
        self.head = nn.Linear(channels, classes)

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(text)).mean(1))
        return logits


# Tasks


@dataclass(frozen=True)
class Task:
    """What to train: a model's maker, batches, a loss that knows nothing, and how to evaluate."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]
    ignorant: float


def language(length: int, batch: int, seed: int) -> Task:
    """The next byte of the standard library."""
    generator = torch.Generator().manual_seed(seed)
    train, held = split(standard_library(), generator)
    counts = torch.bincount(torch.frombuffer(bytearray(train), dtype=torch.uint8).long(), minlength=BYTES)
    share = counts[counts > 0] / counts.sum()

    def draw(generator: torch.Generator, text: bytes = train, count: int = batch) -> tuple[Tensor, Tensor]:
        pieces = excerpts(text, count, length + 1, generator)
        return pieces[:, :-1], pieces[:, 1:]

    frequencies = -(share * share.log()).sum().item()
    return Task(
        "Hyena language model", lambda: LanguageModel(length), draw, draw(generator, held, 24), frequencies
    )


def languages(length: int, batch: int, seed: int) -> Task:
    """Python, C++ or prose."""
    generator = torch.Generator().manual_seed(seed)
    parts = [split(files, generator) for files in (standard_library(), headers(), prose())]

    def draw(generator: torch.Generator, part: int = 0, count: int = batch) -> tuple[Tensor, Tensor]:
        each = -(-count // len(parts))
        pieces = [excerpts(p[part], each, length, generator) for p in parts]
        return torch.cat(pieces), torch.arange(len(parts)).repeat_interleave(each)

    def model() -> nn.Module:
        return Classifier(length, len(parts))

    return Task("LongConv classifier", model, draw, draw(generator, 1, 60), math.log(len(parts)))


def train(
    task: Task, steps: int, seed: int, wrap: Callable[[nn.Module], Any]
) -> tuple[nn.Module, list[float]]:
    """AdamW with the filters' own learning rate; the same batches and the same start for a seed."""
    torch.manual_seed(seed)
    model = task.model()
    run = wrap(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=4e-3, weight_decay=0.05))
    generator = torch.Generator().manual_seed(seed + 1)
    losses = []
    for step in counted(steps, task.name):
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / 10, (steps - step) / steps * 2)
        text, target = task.batch(generator)
        loss = cross_entropy(run(text).flatten(0, -2), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def counted(steps: int, label: str) -> Iterator[int]:
    with click.progressbar(range(steps), label=label, file=sys.stderr) as bar:
        yield from bar


def compare(task: Task, steps: int, seed: int, backend: str | None) -> None:
    """Train eagerly and compiled; print both; raise FFTGenError when something is not as it should be."""
    started = time.perf_counter()
    model, losses = train(task, steps, seed, lambda m: m)
    took = time.perf_counter() - started
    with torch.no_grad():
        text, target = task.held_out
        logits = model.eval()(text).flatten(0, -2)
        held = cross_entropy(logits, target.flatten()).item()
        right = (logits.argmax(-1) == target.flatten()).float().mean().item()
    tenth = max(1, steps // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    size = sum(p.numel() for p in model.parameters())
    click.echo(
        f"{task.name}: {size} parameters, {steps} steps in {took:.0f} s; loss {first:.3f} -> {last:.3f}; on "
        f"files not trained on {held:.3f} ({right:.1%} right); knowing nothing: {task.ignorant:.3f}"
    )
    if not (last < first and held < 0.95 * task.ignorant):
        raise FFTGenError(
            f"{task.name} did not learn in {steps} steps: {held:.3f} against {task.ignorant:.3f}; "
            "give it more (--steps)"
        )
    if backend is None:
        return
    started = time.perf_counter()
    _, again = train(task, steps, seed, lambda m: torch.compile(m, backend=backend, fullgraph=True))
    took = time.perf_counter() - started
    apart = max(abs(a - b) / a for a, b in zip(losses, again, strict=True))
    click.echo(
        f"{task.name}, torch.compile ({backend}): {took:.0f} s with compilation; losses within {apart:.1e}"
    )
    if apart > AGREEMENT:
        raise FFTGenError(f"{task.name} trains otherwise when compiled: losses differ by {apart:.1e}")


TASKS = {"language": (language, 256), "classify": (languages, 1024)}


@click.command()
@click.argument("task", type=click.Choice([*TASKS, "all"]), default="all")
@click.option("--steps", type=click.IntRange(min=10), default=80, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=9, show_default=True)
@click.option("--length", type=click.IntRange(min=2), help="Bytes.  [default: 256 and 1024]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--backend", default="inductor", show_default=True, help="Of torch.compile; 'none': only eager."
)
def main(task: str, steps: int, batch: int, length: int | None, seed: int, backend: str) -> None:
    """Train TASK on text found on this machine, in eager mode and compiled."""
    try:
        for name, (make, usual) in TASKS.items():
            if task in (name, "all"):
                made = make(length or usual, batch, seed)
                compare(made, steps, seed, None if backend == "none" else backend)
    except FFTGenError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

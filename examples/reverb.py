"""Puts a recording into a room: a long convolution through a built artifact, checked against SciPy.

    fftgen build --seqlen 65536 --dtype bf16
    python examples/reverb.py speech.wav

The room is an impulse response, from a WAV file (``--impulse``) or synthetic. The recording is cut into
blocks, each one shorter than the transform by the room's length, so that every block's convolution fits;
the blocks are the batch of a call and their overlapping tails are added (overlap-add). On a machine with a
GPU the artifact's kernels run, elsewhere its CPU path. With ``--simulate`` the artifact's kernels compute
everything on the CPU: the PTX that NVRTC makes of their source runs in the simulator.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from scipy.io import wavfile
from scipy.signal import oaconvolve

import fftgen
from fftgen import accuracy, emulate
from fftgen.bundle import open_shelf
from fftgen.durable import check_writable, writing
from fftgen.errors import FFTGenError, InputError
from fftgen.simulator import Report
from fftgen.targets import target

Samples = npt.NDArray[np.float64]  # (channels, samples)
# Of samples of each type that a WAV file may have.
FULL_SCALE = {"uint8": 128.0, "int16": 2.0**15, "int32": 2.0**31, "float32": 1.0, "float64": 1.0}
PEAK = 0.95
STORAGE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STAGES = 5  # of a transform at most


@dataclass(frozen=True)
class Sound:
    """Samples between -1 and 1, (channels, samples), and how many there are per second."""

    samples: Samples
    rate: int


def read(path: Path) -> Sound:
    """A WAV file: PCM of 8 to 32 bits or floating point, any number of channels."""
    try:
        rate, raw = wavfile.read(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a WAV file: {error}") from error
    if raw.size == 0:
        raise InputError(f"{path} holds no samples")
    if raw.dtype.name not in FULL_SCALE:
        raise InputError(
            f"{path} has samples of type {raw.dtype}: convert it to one of {', '.join(FULL_SCALE)}"
        )
    if not np.isfinite(raw).all():
        raise InputError(f"{path} has samples that are no finite numbers: mend the file")
    samples = raw.astype(np.float64).reshape(len(raw), -1).T / FULL_SCALE[raw.dtype.name]
    if raw.dtype == np.uint8:
        samples -= 1.0
    return Sound(np.ascontiguousarray(samples), int(rate))


def room(channels: int, rate: int, seconds: float, wet: float, seed: int) -> Samples:
    """A synthetic room: the direct sound, and noise that fades by 60 dB in ``seconds``; (channels, taps)."""
    taps = max(2, round(seconds * rate))
    fade = 10 ** (-3 * np.arange(taps) / taps)
    tail = np.random.default_rng(seed).standard_normal((channels, taps)) * fade
    tail *= wet / np.linalg.norm(tail, axis=-1, keepdims=True)
    tail[:, 0] = 1.0
    return np.asarray(tail)


def measured_room(path: Path, dry: Sound) -> Samples:
    """An impulse response from a file, for every channel the same or one each; (channels, taps)."""
    impulse = read(path)
    if impulse.rate != dry.rate:
        raise InputError(
            f"{path} has {impulse.rate} samples per second, the recording {dry.rate}: resample one of them"
        )
    channels = len(dry.samples)
    if len(impulse.samples) not in (1, channels):
        raise InputError(
            f"{path} has {len(impulse.samples)} channels, the recording {channels}: 1 or as many"
        )
    return np.repeat(impulse.samples, channels // len(impulse.samples), axis=0)


def cut(samples: Samples, step: int, length: int) -> Samples:
    """Blocks of ``step`` samples, padded to ``length``: (blocks, channels, length)."""
    channels, count = samples.shape
    blocks = -(-count // step)
    padded = np.pad(samples, ((0, 0), (0, blocks * step - count)))
    parts = padded.reshape(channels, blocks, step).swapaxes(0, 1)
    return np.pad(parts, ((0, 0), (0, 0), (0, length - step)))


def overlap_add(blocks: Samples, step: int, count: int) -> Samples:
    """Blocks (blocks, channels, length) that start every ``step`` samples, added: (channels, count)."""
    number, channels, length = blocks.shape
    total = np.zeros((channels, (number - 1) * step + length))
    for i, block in enumerate(blocks):
        total[:, i * step : i * step + length] += block
    return total[:, :count]


def relative(out: Samples, exact: Samples) -> float:
    """The error beside the exact result, of which silence is one."""
    return float(np.linalg.norm(out - exact) / (np.linalg.norm(exact) or 1.0))


def allowed(dtype: str) -> float:
    """The largest relative error that a transform of any order may have in this storage type."""
    if dtype == "fp32":
        return accuracy.MARGIN * accuracy.expected_error(dtype, STAGES)
    return accuracy.MARGIN * max(e for (name, _), e in accuracy.EXPECTED.items() if name == dtype)


def check(what: str, error: float, dtype: str) -> None:
    click.echo(f"{what}: relative error {error:.2e} (allowed {allowed(dtype):.2e})")
    if not error <= allowed(dtype):
        raise FFTGenError(f"{what} differs by {error:.2e}, allowed is {allowed(dtype):.2e}: this is a defect")


def simulate(
    artifact: Path, conv: fftgen.Conv, arch: str, u: torch.Tensor, k: torch.Tensor, counters: bool
) -> torch.Tensor:
    """What the artifact's kernels for an architecture make of the blocks, run in the simulator."""
    chip = target(arch)
    built = open_shelf(artifact).built(conv.problem, (chip.major, chip.minor))
    ptx = emulate.line_ptx(built)
    rows = built.plan.rows_per_item
    done: list[torch.Tensor] = []
    reports: dict[str, Report] = {}
    with click.progressbar(length=len(u), label=f"simulating {arch}", file=sys.stderr) as bar:
        for piece in torch.split(u, rows):
            y, run = emulate.convolve(built, piece, k, ptx=ptx)
            done.append(y)
            for name, report in run.reports.items():
                reports[name] = reports[name] + report if name in reports else report
            bar.update(len(piece))
    click.echo(f"simulated: {built.plan}")
    for report in reports.values() if counters else ():
        click.echo(f"\n{report}")
    return torch.cat(done)


def plot(path: Path, dry: Sound, wet: Samples, exact: Samples) -> None:
    """The first channel before and after, and how far it is from SciPy's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: list[tuple[str, Any, str]] = [
        ("recording", dry.samples[0], "C0"),
        ("in the room", wet[0], "C1"),
        ("difference from scipy.signal.oaconvolve", wet[0] - exact[0], "C3"),
    ]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 7), sharex=True, layout="constrained")
    for axis, (title, values, colour) in zip(axes, panels, strict=True):
        axis.plot(np.arange(len(values)) / dry.rate, values, linewidth=0.6, color=colour)
        axis.set_title(title)
        axis.set_ylabel("amplitude")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(path: Path, samples: Samples, rate: int) -> None:
    """A WAV file of 16-bit PCM, made quieter if it would clip."""
    peak = float(np.abs(samples).max())
    scale = min(1.0, PEAK / peak) if peak else 1.0
    wavfile.write(path, rate, np.round(samples.T * scale * (2**15 - 1)).astype(np.int16))
    click.echo(
        f"wrote {path}" + (f", at {scale:.2f} of its volume so that it does not clip" if scale < 1 else "")
    )


def reverberate(
    recording: Path,
    artifact: Path,
    impulse: Path | None,
    seconds: float,
    wet: float,
    seed: int,
    output: Path,
    picture: Path | None,
    arch: str | None,
    counters: bool,
) -> None:
    """Everything: read, convolve, check, write."""
    for name, path in (("-o", output), *((("--plot", picture),) if picture else ())):
        if path.exists() and any(path.samefile(x) for x in (recording, impulse) if x and x.exists()):
            raise InputError(f"{name} {path} is read as well: name another file")
        with writing(f"{name} {path}", InputError):
            check_writable(path)
    dry = read(recording)
    channels, count = dry.samples.shape
    taps = room(channels, dry.rate, seconds, wet, seed) if impulse is None else measured_room(impulse, dry)
    conv = fftgen.load(artifact)
    length, dtype = conv.problem.length, conv.problem.dtype
    step = length - taps.shape[-1] + 1
    if step < 1:
        raise InputError(
            f"the room has {taps.shape[-1]} taps, {artifact} takes {length} samples at a time: "
            "build a longer one (fftgen build --seqlen) or take a shorter room (--seconds)"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    u = torch.from_numpy(cut(dry.samples, step, length)).to(STORAGE[dtype])
    k = torch.from_numpy(taps).float()
    click.echo(
        f"{recording}: {channels} channel(s), {count} samples at {dry.rate} Hz ({count / dry.rate:.2f} s); "
        f"room of {taps.shape[-1]} taps; {len(u)} block(s) of {step} samples through {conv!r}"
    )
    if arch is None:
        path = "CUDA kernels" if device == "cuda" else "torch.fft on the CPU"
        with torch.no_grad():
            y = conv(u.to(device), k.to(device)).cpu()
    else:
        path = f"kernels for {arch} in the simulator"
        y = simulate(artifact, conv, arch, u, k, counters)
    result = overlap_add(y.double().numpy(), step, count + taps.shape[-1] - 1)
    stored = overlap_add(u.double().numpy()[:, :, :step], step, count)
    weights = k.double().numpy()
    exact = oaconvolve(dry.samples, weights, axes=-1)
    check(f"{path} against SciPy", relative(result, oaconvolve(stored, weights, axes=-1)), dtype)
    click.echo(f"with the recording's own rounding to {dtype}: relative error {relative(result, exact):.2e}")
    write(output, result, dry.rate)
    if picture is not None:
        plot(picture, dry, result, exact)
        click.echo(f"wrote {picture}")


PATH = click.Path(path_type=Path)
PICTURES = (".png", ".svg", ".pdf")


def finite(_: click.Context, option: click.Parameter, x: float) -> float:
    """What no range of click's refuses."""
    if not math.isfinite(x):
        raise click.BadParameter(f"{x} is no finite number")
    return x


def drawn(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """A picture that can be drawn."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise click.BadParameter(f"{path} does not end in {', '.join(PICTURES)}")
    return path


@click.command()
@click.argument("recording", type=PATH)
@click.option("--artifact", type=PATH, default="generated/fftconv-65536-bf16.fftgen", show_default=True)
@click.option("--impulse", type=PATH, help="WAV file with an impulse response.  [default: a synthetic room]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    callback=finite,
    show_default=True,
    help="The synthetic room's reverberation time (60 dB).",
)
@click.option(
    "--wet",
    type=click.FloatRange(min=0),
    default=0.7,
    callback=finite,
    show_default=True,
    help="Strength of the synthetic room's tail; the direct sound has 1.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the synthetic room."
)
@click.option("-o", "--output", type=PATH, default="reverb.wav", show_default=True)
@click.option("--plot", "picture", type=PATH, callback=drawn, help="A plot: .png, .svg or .pdf.")
@click.option(
    "--simulate",
    "arch",
    is_flag=False,
    flag_value="sm_90",
    metavar="[ARCH]",
    help="Run the kernels for an architecture in the simulator (sm_90 if none is named).",
)
@click.option("--counters", is_flag=True, help="With --simulate: print what every kernel did.")
def main(**options: Any) -> None:
    """Put RECORDING (a WAV file) into a room and check the result against SciPy."""
    try:
        reverberate(**options)
    except (FFTGenError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

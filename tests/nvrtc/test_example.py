"""examples/reverb.py: a recording through a built artifact, on the CPU path and through the kernels."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from command_line import why_not

from fftgen import api

wavfile = pytest.importorskip("scipy.io.wavfile")
signal = pytest.importorskip("scipy.signal")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

EXAMPLE = Path(__file__).parents[2] / "examples" / "reverb.py"
RATE = 8000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, a stereo recording, and rooms that fit it or do not."""
    directory = tmp_path_factory.mktemp("reverb")
    api.build(1024, "fp16", targets=["sm_80"], path=directory / "conv.fftgen")
    generator = np.random.default_rng(1)
    envelope = np.sin(np.linspace(0, 7, 2500)) ** 2
    sound = generator.standard_normal((2500, 2)) * envelope[:, None] * 6000
    wavfile.write(directory / "stereo.wav", RATE, sound.astype(np.int16))
    room = generator.standard_normal(300) * np.exp(-np.arange(300) / 50)
    wavfile.write(directory / "room.wav", RATE, (room * 0.1).astype(np.float32))
    wavfile.write(directory / "fast.wav", 2 * RATE, np.ones(10, np.float32))
    wavfile.write(directory / "three.wav", RATE, np.ones((10, 3), np.float32))
    wavfile.write(directory / "empty.wav", RATE, np.zeros(0, np.int16))
    wavfile.write(directory / "silence.wav", RATE, np.zeros((200, 2), np.int16))
    wavfile.write(directory / "bad.wav", RATE, np.full(10, np.nan, np.float32))
    wavfile.write(directory / "wide.wav", RATE, np.ones(10, np.int64))
    return directory


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def run(*arguments: str) -> Result:
    """The example's command inside this process: PyTorch and SciPy take seconds to start."""
    main = runpy.run_path(str(EXAMPLE))["main"]
    result: Result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def samples(path: Path) -> Any:
    return wavfile.read(path)[1].astype(np.float64).T


@pytest.mark.parametrize("simulate", [(), ("--simulate", "sm_80")], ids=["torch", "kernels"])
def test_a_recording_in_a_room_agrees_with_scipy(place: Path, simulate: tuple[str, ...]) -> None:
    done = run(
        "stereo.wav",
        "--artifact",
        "conv.fftgen",
        "--impulse",
        "room.wav",
        "-o",
        "wet.wav",
        "--plot",
        "wet.png",
        *simulate,
    )
    assert done.exit_code == 0, done.output
    path = "kernels for sm_80 in the simulator" if simulate else "(CUDA kernels|torch.fft on the CPU)"
    assert re.search(path + r" against SciPy: relative error \d\.\d+e-0[45] \(allowed", done.output)
    exact = signal.oaconvolve(samples(place / "stereo.wav"), samples(place / "room.wav")[None], axes=-1)
    wet = samples(place / "wet.wav")
    assert wet.shape == exact.shape == (2, 2799)
    assert np.linalg.norm(wet - exact) < 2e-3 * np.linalg.norm(exact)  # 16-bit PCM included
    assert (place / "wet.png").read_bytes().startswith(b"\x89PNG")


def test_counters_of_the_kernels_are_shown(place: Path) -> None:
    done = run("stereo.wav", "--artifact", "conv.fftgen", "--seconds", "0.05", "--simulate", "--counters")
    assert done.exit_code == 1  # sm_90 by default: the file has code of sm_80 only
    assert "has no code for sm_90" in done.output
    done = run(
        "stereo.wav",
        "--artifact",
        "conv.fftgen",
        "--seconds",
        "0.05",
        "--simulate",
        "sm_80",
        "--counters",
    )
    assert done.exit_code == 0, done.output
    assert "mma.m16n8k16.f16.f16" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.wav",), "none.wav cannot be read as a WAV file"),
        (("conv.fftgen",), "conv.fftgen cannot be read as a WAV file"),
        (("empty.wav",), "empty.wav holds no samples"),
        (("stereo.wav", "--artifact", "none.fftgen"), "artifact none.fftgen cannot be read"),
        (("stereo.wav", "--seconds", "1"), "the room has 8000 taps, conv.fftgen takes 1024 samples"),
        (("stereo.wav", "--impulse", "fast.wav"), "16000 samples per second, the recording 8000: resample"),
        (("stereo.wav", "--impulse", "three.wav"), "three.wav has 3 channels, the recording 2"),
        (("bad.wav",), "bad.wav has samples that are no finite numbers"),
        (("wide.wav",), "wide.wav has samples of type int64: convert it to one of uint8, int16"),
        (("stereo.wav", "-o", "stereo.wav"), "-o stereo.wav is read as well: name another file"),
        (("stereo.wav", "-o", "none/wet.wav"), "-o none/wet.wav cannot be written"),
        (("stereo.wav", "--plot", "none/wet.png"), "--plot none/wet.png cannot be written"),
    ],
)
def test_what_does_not_fit_is_said(place: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments, *(() if "--artifact" in arguments else ("--artifact", "conv.fftgen")))
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--wet", "nan"), "nan is no finite number"),
        (("--seconds", "inf"), "inf is no finite number"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--plot", "wet.xyz"), "wet.xyz does not end in .png, .svg, .pdf"),
    ],
)
def test_what_is_no_argument_is_said(arguments: tuple[str, ...], message: str) -> None:
    done = run("stereo.wav", "--artifact", "conv.fftgen", *arguments)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("silent", [("silence.wav",), ("stereo.wav", "--impulse", "silence.wav")])
def test_silence_stays_silent(place: Path, silent: tuple[str, ...]) -> None:
    rooms = () if "--impulse" in silent else ("--seconds", "0.05")
    done = run(*silent, *rooms, "--artifact", "conv.fftgen", "-o", "short.wav")
    assert done.exit_code == 0, done.output
    assert "relative error 0.00e+00" in done.output
    assert not samples(place / "short.wav").any()


def test_an_artifact_in_fp32(place: Path) -> None:
    api.build(1024, "fp32", targets=["sm_80"], path=place / "wide.fftgen")
    done = run("stereo.wav", "--artifact", "wide.fftgen", "--impulse", "room.wav", "-o", "wet.wav")
    assert done.exit_code == 0, done.output
    assert re.search(r"against SciPy: relative error \d\.\d+e-0[78] \(allowed 5\.\d+e-07\)", done.output)

"""Where a bench runs: the GPU, or the host for a dry run. Everything else in this room asks one of these."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch

from fftgen import __version__, nvrtc
from fftgen.bench.timer import CudaTimer, FakeTimer, Timer
from fftgen.errors import FFTGenError, ToolchainError
from fftgen.runtime import driver
from fftgen.source import digest_of
from fftgen.targets import target_for

DRY_TARGET = "sm_90"
DRY_MEMORY = 256 << 20
MIB = 1 << 20


class Backend(Protocol):
    """A device with a timer. ``l2_bytes``: the cache that inputs must not stay in."""

    device: torch.device
    timer: Timer
    l2_bytes: int
    compiler: str  # backend of torch.compile
    target: str  # architecture whose plans it runs
    gpu: str  # its name, for which a plan may have been tuned; "" where there is none
    kernels: bool  # whether a call runs generated kernels; else the CPU path stands for them

    def free_bytes(self) -> int:
        """Memory that a row may fill."""

    def synchronize(self) -> None:
        """Wait for the device. Raises what a kernel did wrong."""

    def release(self) -> None:
        """Give cached memory back, so that one contender's leftovers are not another's shortage."""

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Memory that a call takes beyond what is allocated already, its result included; None: unknown."""

    def describe(self) -> dict[str, Any]:
        """Device and driver, for the results."""


class CudaBackend:
    """The current CUDA device."""

    def __init__(self) -> None:
        require_cuda()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.timer: Timer = CudaTimer()
        self.compiler = "inductor"
        self.kernels = True
        self._properties: Any = torch.cuda.get_device_properties(self.device)
        self.l2_bytes = int(getattr(self._properties, "L2_cache_size", 0)) or 64 * MIB
        self.target = target_for(torch.cuda.get_device_capability(self.device)).name
        self.gpu = torch.cuda.get_device_name(self.device)

    def free_bytes(self) -> int:
        self.release()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        kept = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device)
        del kept
        return int(peak - before)

    def describe(self) -> dict[str, Any]:
        major, minor = torch.cuda.get_device_capability(self.device)
        return {
            "device": self.gpu,
            "capability": f"{major}.{minor}",
            "multiprocessors": int(self._properties.multi_processor_count),
            "memory_bytes": int(self._properties.total_memory),
            "l2_bytes": self.l2_bytes,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "target": self.target,
        }


class HostBackend:
    """The CPU, with times that are invented unless another timer is given."""

    def __init__(self, timer: Timer | None = None, memory: int = DRY_MEMORY) -> None:
        self.device = torch.device("cpu")
        self.timer: Timer = timer or FakeTimer()
        self.compiler = "eager"
        self.kernels = False
        self.l2_bytes = 1 << 14
        self.target, self.gpu = DRY_TARGET, ""
        self._memory = memory

    def free_bytes(self) -> int:
        return self._memory

    def synchronize(self) -> None:
        """Host calls are done when they return."""

    def release(self) -> None:
        """Nothing is cached."""

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        call()
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "device": f"CPU ({platform.machine()})",
            "capability": None,
            "multiprocessors": None,
            "memory_bytes": self._memory,
            "l2_bytes": self.l2_bytes,
            "driver": None,
            "cuda": torch.version.cuda,
            "target": self.target,
        }


def open_backend(dry_run: bool) -> Backend:
    """The backend of a run. Raises ToolchainError when a GPU is wanted and cannot be used."""
    return HostBackend() if dry_run else CudaBackend()


def require_cuda() -> None:
    """Raise ToolchainError, in one line, unless kernels can be compiled and run here."""
    try:
        driver()
        if torch.version.cuda is None:
            raise ToolchainError(
                f"PyTorch {torch.__version__} is built without CUDA: install a CUDA build of torch to measure"
            )
        if not torch.cuda.is_available():
            raise ToolchainError("PyTorch finds no GPU: is one present and visible (CUDA_VISIBLE_DEVICES)?")
    except ToolchainError as error:
        raise ToolchainError(f"{error} (--dry-run walks the same way without a GPU)") from error
    nvrtc.build()


def driver_version() -> str | None:
    """The driver's release, such as "580.95.05", or None when nobody says."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = asked.stdout.split()
    return lines[0] if lines else None


def environment(backend: Backend) -> dict[str, Any]:
    """All that a figure depends on and that can be known: device, versions, date, commit."""
    return {
        **backend.describe(),
        "torch": str(torch.__version__),
        "fftgen": __version__,
        "nvrtc": _nvrtc(),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "sources": sources(),
        "timer": backend.timer.name,
        "real_times": backend.timer.real,
    }


def _nvrtc() -> str | None:
    try:
        return nvrtc.build()
    except FFTGenError:
        return None


def sources() -> str:
    """SHA-256 over the package's own files: ties a result to a commit where no repository travelled along."""
    package = Path(__file__).resolve().parents[1]
    return digest_of((p for p in package.rglob("*") if p.suffix in (".py", ".j2", ".cuh")), package)


def commit() -> str | None:
    """The commit of the working tree that this package lies in, with "+" when files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package inside somebody else's repository
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return f"{head}+" if git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None

"""Where the CUDA headers and binary tools lie: in wheels, in a toolkit, or inside NVRTC."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fftgen import environment

#: Headers that generated sources and device headers include.
PROBES = ("cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h")
_SYSTEM = Path("/usr/local/cuda")


@dataclass(frozen=True)
class Headers:
    """A set of include directories that belong together.

    ``origin`` says in words where it was found; ``version`` is (major, minor) of the CUDA release or None;
    ``missing`` lists the probed headers that it lacks (``crt/mma.h`` in a stock PyTorch environment).
    """

    origin: str
    directories: tuple[Path, ...]
    version: tuple[int, int] | None
    missing: tuple[str, ...]

    def find(self, name: str) -> Path | None:
        """The file that ``#include <name>`` takes, or None."""
        return next((d / name for d in self.directories if (d / name).is_file()), None)

    def digest(self) -> str:
        """SHA-256 over the headers that reach generated code, wherever they lie (for cache keys)."""
        total = hashlib.sha256()
        for name in (*PROBES, "cuda_fp16.hpp", "cuda_bf16.hpp", "crt/mma.hpp"):
            path = self.find(name)
            content = path.read_bytes() if path else b""
            total.update(f"{name}:{'none' if path is None else len(content)}\n".encode() + content)
        return total.hexdigest()


def package_for(header: str, release: tuple[int, int]) -> str:
    """The PyPI package that brings a toolkit header of a CUDA release: others do not go with the rest."""
    major, minor = release
    if header.startswith("crt/"):
        part = "crt" if major >= 13 else "nvcc"
    else:
        part = "cccl" if header.startswith(("cuda/", "cub/", "thrust/", "nv/")) else "runtime"
    return f"nvidia-cuda-{part}{'' if major >= 13 else f'-cu{major}'}=={major}.{minor}.*"


def extra_for(major: int) -> str:
    """The pip command that brings compiler and headers for a CUDA major version."""
    return f"pip install 'fftgen[cu{12 if major == 12 else 13}]'"


def find_headers(major: int) -> Headers | None:
    """The first complete set of headers for a CUDA major version, else the least incomplete one.

    Order: wheels, CUDA_HOME, CUDA_PATH, CONDA_PREFIX, /usr/local/cuda. Sets are never mixed: ``mma.h`` of
    one release does not go with ``crt/mma.h`` of another. None when no set has even ``cuda_fp16.h``.
    """
    best: Headers | None = None
    for origin, directories in _candidates(major):
        headers = examine(origin, directories)
        if headers.find("cuda_fp16.h") is None or (headers.version and headers.version[0] != major):
            continue
        if not headers.missing:
            return headers
        if best is None or len(headers.missing) < len(best.missing):
            best = headers
    return best


def examine(origin: str, directories: tuple[Path, ...]) -> Headers:
    """Look into include directories: CUDA version and what is missing."""
    headers = Headers(origin, directories, None, ())
    version = None
    runtime = headers.find("cuda_runtime_api.h")
    if runtime is not None:
        text = runtime.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)
        if found:
            version = (int(found[1]) // 1000, int(found[1]) % 1000 // 10)
    missing = tuple(name for name in PROBES if headers.find(name) is None)
    return Headers(origin, directories, version, missing)


def find_tool(name: str) -> Path | None:
    """A binary tool such as ``nvdisasm``: from wheels, the PATH, or a toolkit; None when there is none."""
    suffix = ".exe" if sys.platform == "win32" else ""
    places = [place for root in _wheel_roots() for place in sorted(root.glob("cu[0-9]*/bin"), reverse=True)]
    # Before CUDA 13 each wheel had a directory of its own.
    places += [root / f"cuda_{name}" / "bin" for root in _wheel_roots()]
    for place in places:
        if os.access(place / (name + suffix), os.X_OK):
            return place / (name + suffix)
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    for _, home in (*environment.cuda_homes(), ("", _SYSTEM)):
        if os.access(home / "bin" / (name + suffix), os.X_OK):
            return home / "bin" / (name + suffix)
    return None


def _candidates(major: int) -> Iterator[tuple[str, tuple[Path, ...]]]:
    for root in _wheel_roots():
        yield f"wheels in {root}", _existing(root / f"cu{major}" / "include")
        # Before CUDA 13 each wheel had a directory of its own.
        yield (
            f"wheels in {root}",
            _existing(
                root / "cuda_runtime" / "include",
                root / "cuda_nvcc" / "include",
                root / "cuda_cccl" / "include",
            ),
        )
    for name, home in (*environment.cuda_homes(), ("", _SYSTEM)):
        yield (f"{name}={home}" if name else str(home)), _toolkit(home)


def _toolkit(home: Path) -> tuple[Path, ...]:
    plain = _existing(home / "include")
    if plain and (plain[0] / "cuda_fp16.h").is_file():
        return plain
    targets = sorted(home.glob("targets/*-linux/include"))
    return _existing(*targets[:1])


def _existing(*directories: Path) -> tuple[Path, ...]:
    """The directories there are, each followed by its ``cccl`` (CUDA 13 keeps ``cuda/std`` in there)."""
    both = [place for d in directories for place in (d, d / "cccl")]
    return tuple(place for place in both if place.is_dir())


def _wheel_roots() -> list[Path]:
    """The directories of the ``nvidia`` namespace package, without importing it."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []

"""What this machine has: every part that planning, compiling, running and looking at kernels needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftgen import environment, nvrtc, toolkit
from fftgen.errors import FFTGenError, ToolchainError
from fftgen.runtime import driver
from fftgen.targets import target_for


@dataclass(frozen=True)
class Part:
    """One thing that is there or not. ``needed`` says for what; ``build``: ``fftgen build`` needs it."""

    name: str
    present: bool
    detail: str
    needed: str
    build: bool = False


def examine() -> list[Part]:
    """Every part, in the order of a call's way. Touches the GPU only to ask for its name."""
    compiler = [
        _package("cuda-bindings", "cuda.bindings.nvrtc", "compiling and launching", True),
        _try("NVRTC", "compiling", _nvrtc, True),
        _try("CUDA headers", "compiling", _headers, True),
    ]
    return [
        Part("Python", True, f"{platform.python_version()} ({platform.machine()})", "everything", True),
        # Once it is imported, the compiler of this process may be the one that it brings (nvrtc.py).
        _package("torch", "torch", "tensors, the CPU path, verify", False),
        *compiler,
        *_beside_torch(),
        _try("cache", "keeping compiled kernels", _cache, False),
        _try("NVIDIA driver", "running kernels on a GPU", _driver, False),
        _try("GPU", "running kernels on a GPU", _gpus, False),
        _tool("nvdisasm", "inspect --sass", "nvidia-cuda-nvdisasm"),
        _package("matplotlib", "matplotlib", "plan, inspect and bench --plot", False),
    ]


def variables() -> list[tuple[str, str | None, str, str]]:
    """The environment variables: name, what is set now, what it means, what holds without it."""
    return [(v.name, v.value, v.meaning, v.default) for v in environment.VARIABLES]


def _package(name: str, module: str, needed: str, build: bool) -> Part:
    """A package is there when it is installed and its module can be imported: either may lack the other."""
    try:
        release = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Part(name, False, f"not installed: pip install {name}", needed, build)
    try:
        importlib.import_module(module)
    except Exception as error:  # a package that is broken may raise anything
        cause = (str(error) or type(error).__name__).splitlines()[0]
        detail = f"{release} is installed, but {module} cannot be imported ({cause}): "
        return Part(name, False, f"{detail}pip install --force-reinstall {name}", needed, build)
    return Part(name, True, release, needed, build)


def _try(name: str, needed: str, look: Callable[[], str], build: bool) -> Part:
    try:
        return Part(name, True, look(), needed, build)
    except FFTGenError as error:
        return Part(name, False, str(error), needed, build)


def _nvrtc() -> str:
    return f"{nvrtc.build()}, compiles for {', '.join(nvrtc.supported_architectures())}"


def _headers() -> str:
    found = nvrtc.headers()
    if found.missing:
        package = toolkit.package_for(found.missing[0], found.version or nvrtc.version())
        raise ToolchainError(
            f"{found.origin} lacks {', '.join(found.missing)}: pip install '{package}', or set CUDA_HOME"
        )
    release = ".".join(map(str, found.version)) if found.version else "of unknown version"
    return f"{release}, {found.origin}"


def compiler() -> str:
    """The compiler of this process and its headers. Raises ToolchainError where something is missing."""
    return f"{nvrtc.build()}, headers {_headers()}"


STARTS = 120  # seconds that PyTorch is waited for
_BESIDE_TORCH = """
import torch
from fftgen import doctor, errors
try:
    print(doctor.compiler())
except errors.FFTGenError as error:
    raise SystemExit(str(error))
"""


def _beside_torch() -> list[Part]:
    """The compiler of calls, where PyTorch brings one: its process has no other (nvrtc.py); commands may."""
    found = importlib.util.find_spec("torch")
    if found is None or not list(Path(found.origin or "").parent.glob("lib/*torch_cuda.*")):
        return []
    name, needed = "NVRTC in calls", "compiling at a first call, beside a CUDA build of PyTorch"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BESIDE_TORCH],
            capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=STARTS,
            env=environment.of_python(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Part(name, False, f"PyTorch has not started within {STARTS} seconds", needed)]
    said = (done.stdout if done.returncode == 0 else done.stderr).strip() or "Python ended without a word"
    return [Part(name, done.returncode == 0, said.splitlines()[-1], needed)]


def _cache() -> str:
    place = environment.cache_directory()
    if place is None:
        raise ToolchainError(f"no home directory: set {environment.CACHE_DIR.name}")
    existing = next(p for p in (place, *place.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ToolchainError(
            f"{place} is not writable ({error.strerror}): set {environment.CACHE_DIR.name}"
        ) from error
    return f"{place}, writable" + ("" if place.exists() else ", not made yet")


def _call(name: str, *arguments: Any) -> Any:
    """A driver query's value. Raises ToolchainError with the code's name."""
    code, *values = getattr(driver(), name)(*arguments)
    if int(code) != 0:
        raise ToolchainError(f"{name} failed with {code.name}: the driver or the GPU is not usable")
    return values[0]


def _driver() -> str:
    version = int(_call("cuDriverGetVersion"))
    return f"takes CUDA up to {version // 1000}.{version % 1000 // 10}"


def _gpus() -> str:
    count = int(_call("cuDeviceGetCount"))
    if count == 0:
        raise ToolchainError("the driver sees no GPU: is it visible to this process (CUDA_VISIBLE_DEVICES)?")
    return "; ".join(_gpu(_call("cuDeviceGet", i)) for i in range(count))


def _gpu(device: Any) -> str:
    attribute = driver().CUdevice_attribute
    major, minor = (
        int(_call("cuDeviceGetAttribute", getattr(attribute, name), device))
        for name in (
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
        )
    )
    name = _call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
    return f"{name}, compute capability {major}.{minor}, plans of {target_for((major, minor)).name}"


def _tool(name: str, needed: str, package: str) -> Part:
    found = toolkit.find_tool(name)
    if found is None:
        return Part(name, False, f"not found: pip install {package}", needed)
    return Part(name, True, str(found), needed)

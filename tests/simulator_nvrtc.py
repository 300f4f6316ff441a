"""CUDA C++ to PTX by NVRTC for the simulator tests, with line information; no driver and no GPU needed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings are not installed")


@functools.cache
def include_folders() -> tuple[str, ...]:
    """The folders of the CUDA headers among the installed ``nvidia`` packages."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = [header.parent for root in roots for header in sorted(Path(root).glob("*/include/cuda_bf16.h"))]
    return tuple(str(folder) for folder in found)


@functools.cache
def compile_ptx(source: str, virtual: str) -> str:
    """PTX of ``source`` for a virtual architecture such as ``compute_80``; AssertionError with the log."""
    if not include_folders():
        pytest.skip("no CUDA headers among the installed packages")
    try:
        status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    except RuntimeError as error:  # the bindings are there, the library is not
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    assert not int(status), status
    options = [
        f"--gpu-architecture={virtual}",
        "-lineinfo",
        "-std=c++17",
        *(f"-I{f}" for f in include_folders()),
    ]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    if int(status):
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise AssertionError(log.decode())
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    nvrtc.nvrtcDestroyProgram(program)
    return text.rstrip(b"\0").decode()

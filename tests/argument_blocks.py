"""Whether the structures that kernels read lie as the host packs them, as NVRTC sees the device headers."""

from __future__ import annotations

import struct

import pytest

from fftgen import nvrtc
from fftgen.errors import CompileError
from fftgen.render import COMMON, header
from fftgen.source import Source

HEADERS = (*COMMON, "powers", "mma", "scaled", "chain", "filter", "share", "gradient", "finish")
SUMS = "namespace fftgen { constexpr bool WIDE_SUMS = false; }\n"  # the chain's, as of a plan (sums.j2)


def assert_laid_out(name: str, kind: str, fields: tuple[tuple[str, str], ...], size: int) -> None:
    """Every field of ``kind``, of the header ``name``, stands where its codes of ``struct`` and those before
    it say, and all of it is ``size`` bytes; a byte further it does not stand."""
    start = f'{SUMS}#include "fftgen/{name}.cuh"\nusing Kind = fftgen::{kind};\n'
    formats = [code for _, code in fields]
    at = {field: struct.calcsize("<" + "".join(formats[:i])) for i, (field, _) in enumerate(fields)}
    claims = {f"__builtin_offsetof(Kind, {field})": offset for field, offset in at.items()}
    claims["sizeof(Kind)"] = size
    try:
        compiled({"__builtin_offsetof(Two, b)": 4}, "struct Two { int a, b; };\n")
    except CompileError:  # of 12.4 it is one
        pytest.skip("this NVRTC does not know __builtin_offsetof")
    compiled(claims, start)
    for what, value in claims.items():
        with pytest.raises(CompileError):
            compiled({what: value + 1}, start)


def compiled(claims: dict[str, int], start: str) -> None:
    """Raises CompileError where one of the claims is wrong."""
    checks = "".join(f'static_assert({what} == {value}, "{what}");\n' for what, value in claims.items())
    kernel = 'extern "C" __global__ void none() {}\n'
    headers = {f"fftgen/{name}.cuh": header(name) for name in HEADERS}
    nvrtc.compile_ptx(
        Source("layout.cu", start + checks + kernel, headers, ("none",)), "compute_80", line_info=False
    )

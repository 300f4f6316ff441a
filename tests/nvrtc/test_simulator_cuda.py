"""CUDA C++ kernels compiled by NVRTC: right results, and faults that name the line of the CUDA source."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pytest
from simulator_kit import Result, launch, out, ro
from simulator_nvrtc import compile_ptx
from simulator_reference import BF16, F16, to_bits, to_values

from fftgen import simulator

ARCHITECTURES = ["compute_80", "compute_90"]
arch = pytest.mark.parametrize("arch", ARCHITECTURES)


def run(source: str, arch: str, args: dict[str, Any], **options: Any) -> Result:
    return launch(compile_ptx(source, arch), args, source=source, **options)


WMMA = """
#include <mma.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
using namespace nvcuda;
typedef T_TYPE T;
extern "C" __global__ void k(const T* a, const T* b, float* d, int n, float scale)
{
    __shared__ __align__(32) T sa[16 * 24], sb[16 * 24];
    int row = 16 * blockIdx.y, col = 16 * blockIdx.x;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::B_LAYOUT> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
    wmma::fill_fragment(fc, 0.0f);
    for (int k0 = 0; k0 < n; k0 += 16) {
        for (int i = threadIdx.x; i < 256; i += 32) {
            sa[i / 16 * 24 + i % 16] = a[(row + i / 16) * n + k0 + i % 16];
            sb[i / 16 * 24 + i % 16] = b[(k0 + i / 16) * n + col + i % 16];
        }
        __syncwarp();
        wmma::load_matrix_sync(fa, sa, 24);
        wmma::load_matrix_sync(fb, B_SOURCE, B_STRIDE);
        wmma::mma_sync(fc, fa, fb, fc);
        __syncwarp(); // reads done
    }
    for (int i = 0; i < fc.num_elements; i++) fc.x[i] *= scale;
    wmma::store_matrix_sync(d + row * n + col, fc, n, wmma::mem_row_major);
}
"""
N = 48


def wmma_source(kind: str, b_layout: str) -> str:
    source = WMMA.replace("T_TYPE", "__half" if kind == "f16" else "__nv_bfloat16")
    b_source, stride = ("sb", "24") if b_layout == "row_major" else ("b + col * n + k0", "n")
    return source.replace("B_LAYOUT", b_layout).replace("B_SOURCE", b_source).replace("B_STRIDE", stride)


@arch
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("b_layout", ["row_major", "col_major"])
def test_wmma_product(kind: str, b_layout: str, arch: str, rng: np.random.Generator) -> None:
    fmt = F16 if kind == "f16" else BF16
    a, b = (to_bits(rng.standard_normal((N, N)), fmt) for _ in range(2))
    args = {"a": ro(a), "b": ro(b), "d": out((N, N), np.float32), "n": np.int32(N), "scale": np.float32(0.5)}
    result = run(wmma_source(kind, b_layout), arch, args, grid=(3, 3), seed=int(rng.integers(99)))
    va, vb = to_values(a, fmt), to_values(b, fmt)
    want = 0.5 * va @ (vb if b_layout == "row_major" else vb.T)
    assert np.abs(result["d"] - want).max() < 1e-5 * N


@arch
def test_wmma_without_the_first_warp_barrier_is_a_race_named_by_source_line(
    arch: str, rng: np.random.Generator
) -> None:
    source = wmma_source("f16", "row_major").replace("        __syncwarp();\n", "\n", 1)
    args = {
        "a": ro(np.zeros((16, 16), np.uint16)),
        "b": ro(np.zeros((16, 16), np.uint16)),
        "d": out((16, 16), np.float32),
    }
    with pytest.raises(simulator.SharedRace) as fault:
        run(source, arch, {**args, "n": np.int32(16), "scale": np.float32(1)})
    lines = source.splitlines()
    assert fault.value.source_line is not None
    assert re.search(r"sa\[i|sb\[i|load_matrix_sync", lines[fault.value.source_line - 1]), lines[
        fault.value.source_line - 1
    ]


REDUCE = """
extern "C" __global__ void k(const float* x, float* y, int n)
{
    __shared__ float part[8];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads(); // parts are there
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
        for (int step = 4; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    }
}
"""


@arch
@pytest.mark.parametrize(("threads", "count"), [(256, 1000), (128, 77), (32, 5)])
def test_block_reduction(threads: int, count: int, arch: str, rng: np.random.Generator) -> None:
    x = rng.integers(-1000, 1000, (3, count)).astype(np.float32)
    result = run(
        REDUCE, arch, {"x": ro(x), "y": out(3, np.float32), "n": np.int32(count)}, grid=3, block=threads
    )
    assert np.array_equal(result["y"], x.sum(1, dtype=np.float64))


@arch
def test_block_reduction_without_its_barrier(arch: str) -> None:
    source = REDUCE.replace("__syncthreads(); // parts are there", "// no barrier")
    with pytest.raises((simulator.SharedRace, simulator.UninitializedRead)) as fault:
        run(
            source,
            arch,
            {"x": ro(np.ones((3, 256), np.float32)), "y": out(3, np.float32), "n": np.int32(256)},
            grid=3,
            block=256,
        )
    assert "part[" in source.splitlines()[fault.value.source_line - 1]


TRANSPOSE = """
extern "C" __global__ void k(const float* x, float* y, int rows, int columns)
{
    __shared__ float tile[32][33];
    int c = 32 * blockIdx.x + threadIdx.x, r = 32 * blockIdx.y + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (r + i < rows && c < columns)
            tile[threadIdx.y + i][threadIdx.x] = x[(long long)(r + i) * columns + c];
    __syncthreads();
    c = 32 * blockIdx.y + threadIdx.x;
    r = 32 * blockIdx.x + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (r + i < columns && c < rows)
            y[(long long)(r + i) * rows + c] = tile[threadIdx.x][threadIdx.y + i];
}
"""


@arch
@pytest.mark.parametrize("shape", [(64, 32), (45, 70)])
def test_tiled_transpose(shape: tuple[int, int], arch: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape).astype(np.float32)
    rows, columns = shape
    args = {
        "x": ro(x),
        "y": out((columns, rows), np.float32),
        "rows": np.int32(rows),
        "columns": np.int32(columns),
    }
    result = run(TRANSPOSE, arch, args, grid=(-(-columns // 32), -(-rows // 32)), block=(32, 8))
    assert np.array_equal(result["y"], x.T)


@arch
@pytest.mark.parametrize(("old", "new", "fault", "line"), [
    ("r + i < rows && c < columns", "r + i <= rows && c < columns", "OutOfBounds", "= x["),
    ("r + i < columns && c < rows", "r + i < columns && c <= rows", "UninitializedRead", "= tile["),
    ("* rows + c]", "* rows + c + 1]", "OutOfBounds", "= tile["),
    ("float tile[32][33]", "float tile[16][33]", "OutOfBounds", "= x["),
    ("    __syncthreads();\n", "\n", "SharedRace", "tile["),
    ("(r + i < rows && c < columns)", "(r + i < rows - 1 && c < columns)", "UninitializedRead", "= tile["),
])  # fmt: skip
def test_tiled_transpose_with_a_planted_fault(old: str, new: str, fault: str, line: str, arch: str) -> None:
    """The fault names the line of the CUDA source, and shows it."""
    source = TRANSPOSE.replace(old, new, 1)
    assert source != TRANSPOSE
    rows, columns = 24, 32
    args = {"x": ro(np.zeros((rows, columns), np.float32)), "y": out((columns, rows), np.float32)}
    with pytest.raises(getattr(simulator, fault)) as caught:
        run(source, arch, {**args, "rows": np.int32(rows), "columns": np.int32(columns)}, block=(32, 8))
    blamed = caught.value.source_line
    assert blamed is not None, caught.value
    text = source.splitlines()[blamed - 1]
    assert line in text, f"blamed {blamed}: {text}"
    assert re.search(rf"\b{blamed}\b", str(caught.value))
    assert caught.value.ptx_line


HALF = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
typedef T2_TYPE T2;
struct Args { const T2* a; const T2* b; T2* d; float scale; int n; unsigned char mode; };
extern "C" __global__ void k(Args p, float* f)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    T2 a = p.a[i], b = p.b[i], r = a;
    if (p.mode == 0) r = __hfma2(a, b, a);
    else if (p.mode == 1) r = __hadd2(__hmul2(a, b), __hneg2(a));
    else if (p.mode == 2) {
        float2 x = TO_FLOAT(a), y = TO_FLOAT(b);
        r = FROM_FLOAT(x.x * p.scale - y.y, x.y * p.scale + y.x);
    } else r = __hmax2(__habs2(a), __hmin2(a, b));
    p.d[i] = r;
    f[i] = LOW(r) + HIGH(r);
}
"""


def half_source(kind: str) -> str:
    f16 = kind == "f16"
    return (
        HALF.replace("T2_TYPE", "__half2" if f16 else "__nv_bfloat162")
        .replace("TO_FLOAT", "__half22float2" if f16 else "__bfloat1622float2")
        .replace("FROM_FLOAT", "__floats2half2_rn" if f16 else "__floats2bfloat162_rn")
        .replace("LOW", "__low2float")
        .replace("HIGH", "__high2float")
    )


@arch
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_half_pairs_and_a_struct_passed_by_value(
    kind: str, mode: int, arch: str, rng: np.random.Generator
) -> None:
    fmt, count = F16 if kind == "f16" else BF16, 50
    a, b = (to_bits(rng.standard_normal((count, 2)), fmt) for _ in range(2))
    d, f, memory = np.zeros((count, 2), np.uint16), np.zeros(count, np.float32), simulator.DeviceMemory()
    bound = [
        memory.bind("a", a, writable=False),
        memory.bind("b", b, writable=False),
        memory.bind("d", d, writable=True, initialized=False),
    ]
    address = memory.bind("f", f, writable=True, initialized=False)
    struct_bytes = struct.pack("<QQQfiB7x", *map(int, bound), 1.25, count, mode)
    source = half_source(kind)
    module = simulator.parse(compile_ptx(source, arch), source=source)
    simulator.simulate(module, "k", grid=(2, 1, 1), block=(32, 1, 1),
                       params=[struct_bytes, int(address).to_bytes(8, "little")],
                       shared_bytes=0, memory=memory)  # fmt: skip
    x, y = to_values(a, fmt), to_values(b, fmt)

    def rounded(v: Any) -> Any:
        return to_values(to_bits(v, fmt), fmt)

    if mode == 0:
        want = rounded(x * y + x)
    elif mode == 1:
        want = rounded(rounded(x * y) - x)
    elif mode == 2:
        product = (x * 1.25).astype(np.float32).astype(np.float64)
        split = np.stack([product[:, 0] - y[:, 1], product[:, 1] + y[:, 0]], 1)
        fused = np.stack([x[:, 0] * 1.25 - y[:, 1], x[:, 1] * 1.25 + y[:, 0]], 1)
        assert np.array_equal(split, fused), "1.25 x is exact in float32"
        want = rounded(fused.astype(np.float32).astype(np.float64))
    else:
        want = np.maximum(np.abs(x), np.minimum(x, y))
    got = to_values(d, fmt)
    assert np.array_equal(got, want)
    assert np.array_equal(f, got.astype(np.float32).sum(1, dtype=np.float32))
    assert not memory.unwritten("d")


MATH = """
#include <cuda_fp16.h>
__constant__ float table[4] = {0.5f, 1.5f, 2.5f, 3.5f};
__device__ __forceinline__ float helper(float x, int n)
{
    float s = 0;
    for (int i = 0; i < n; i++) s += x / (i + 1);
    return s;
}
extern "C" __global__ void k(const float* x, float* y, int n)
{
    int i = threadIdx.x;
    float local[8];
    for (int j = 0; j < 8; j++) local[j] = x[(i + j) % n] * table[j & 3];
    float v = local[(i * 5) & 7];
    y[i] = v;
    y[n + i] = helper(x[i], i % 5);
    y[2 * n + i] = sqrtf(fabsf(x[i])) + floorf(x[i]) - ceilf(2 * x[i]) + rintf(3 * x[i]);
    y[3 * n + i] = (float)(i / 7) + (float)(i % 7) + (float)((unsigned long long)i * 12345678901ull >> 20);
    y[4 * n + i] = sinf(x[i]) + cosf(3 * x[i]) + expf(x[i]) + logf(1 + fabsf(x[i]));
    y[5 * n + i] = __expf(x[i]) + __sinf(x[i]) + rsqrtf(1 + x[i] * x[i]);
}
"""


@arch
def test_general_arithmetic_local_arrays_and_constants(arch: str, rng: np.random.Generator) -> None:
    n = 64
    x = rng.uniform(-3, 3, n).astype(np.float32)
    y = run(MATH, arch, {"x": ro(x), "y": out((6, n), np.float32), "n": np.int32(n)}, block=n)["y"]
    i, w = np.arange(n), x.astype(np.float64)
    j = i * 5 & 7
    assert np.array_equal(y[0], (x[(i + j) % n] * (j % 4 + np.float32(0.5))).astype(np.float32))
    assert np.allclose(y[1], [sum(w[k] / (m + 1) for m in range(k % 5)) for k in i], rtol=1e-6)
    assert np.allclose(
        y[2], np.sqrt(np.abs(w)) + np.floor(w) - np.ceil(2 * w) + np.rint(3 * x), rtol=1e-6, atol=1e-5
    )
    assert np.allclose(y[3], i // 7 + i % 7 + (i * 12345678901 >> 20).astype(np.float32), rtol=1e-7)
    assert np.allclose(
        y[4], np.sin(w) + np.cos(3 * w) + np.exp(w) + np.log1p(np.abs(w)), rtol=1e-5, atol=1e-5
    )
    assert np.allclose(y[5], np.exp(w) + np.sin(w) + 1 / np.sqrt(1 + w * w), rtol=1e-5, atol=1e-5)


PIPELINE = """
#include <cuda_pipeline.h>
extern "C" __global__ void k(const float4* x, float4* y, int rounds)
{
    extern __shared__ float4 stage[];
    int t = threadIdx.x, n = blockDim.x;
    __pipeline_memcpy_async(&stage[t], &x[t], 16);
    __pipeline_commit();
    for (int r = 0; r < rounds; r++) {
        if (r + 1 < rounds) __pipeline_memcpy_async(&stage[(r + 1) % 2 * n + t], &x[(r + 1) * n + t], 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads(); // stage is full
        y[r * n + t] = stage[r % 2 * n + n - 1 - t];
        __syncthreads(); // stage is free
    }
}
"""


@arch
def test_asynchronous_pipeline(arch: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 64, 4)).astype(np.float32)
    args = {"x": ro(x), "y": out((5, 64, 4), np.float32), "rounds": np.int32(5)}
    assert np.array_equal(run(PIPELINE, arch, args, block=64, shared=2048)["y"], x[:, ::-1])


@arch
@pytest.mark.parametrize(("old", "new"), [
    ("__pipeline_wait_prior(1)", "__pipeline_wait_prior(2)"),
    ("__syncthreads(); // stage is full", ""),
    ("__syncthreads(); // stage is free", ""),
])  # fmt: skip
def test_asynchronous_pipeline_with_a_planted_fault(old: str, new: str, arch: str) -> None:
    source = PIPELINE.replace(old, new, 1)
    args = {
        "x": ro(np.zeros((5, 64, 4), np.float32)),
        "y": out((5, 64, 4), np.float32),
        "rounds": np.int32(5),
    }
    with pytest.raises((simulator.SharedRace, simulator.UninitializedRead)) as caught:
        run(source, arch, args, block=64, shared=2048)
    assert caught.value.source_line or caught.value.location


SWITCH = """
extern "C" __global__ void k(const int* x, int* y, int n)
{
    int i = threadIdx.x, v = x[i], r = 0;
    for (int round = 0; round < n; round++) {
        switch ((v + round) & 7) {
        case 0: r += v; break;
        case 1: r ^= 0x55aa; break;
        case 2: r = r * 3 + 1; // and on
        case 3: r -= 7; break;
        case 4: r = __popc(r) + (r << 2); break;
        case 5: continue;
        case 6: r = (int)((unsigned)r >> 3) + round; break;
        default: if (r > 1000) return; r = -r;
        }
        y[i] = r;
    }
}
"""


@arch
def test_switches_continue_and_early_return(arch: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 1000, 96).astype(np.int32)
    y = np.zeros(96, np.int32)
    run(SWITCH, arch, {"x": ro(x), "y": y, "n": np.int32(12)}, block=96)

    def wrap(v: int) -> int:
        return (v + 2**31) % 2**32 - 2**31

    for i, v in enumerate(x.tolist()):
        r = want = 0
        for turn in range(12):
            case = (v + turn) & 7
            if case == 5:
                continue
            if case == 7 and r > 1000:
                break
            r = wrap(
                [
                    r + v,
                    r ^ 0x55AA,
                    r * 3 + 1 - 7,
                    r - 7,
                    (r % 2**32).bit_count() + (r << 2),
                    0,
                    (r % 2**32 >> 3) + turn,
                    -r,
                ][case]
            )
            want = r
        assert y[i] == want, f"thread {i}, x = {v}"

// Compute format "bf16-fp32": operands in bf16, sums in fp32, and in fp32 their products with twiddles and
// spectrum, which are fp16: three bits better than operands, in tables of the same shape. Nothing is scaled: bf16
// has the range of fp32.
#pragma once

#include "fftgen/mma.cuh"

namespace fftgen {

using Operand = __nv_bfloat16;  // of a matrix product; the workspace holds these, too

__device__ __forceinline__ Pack pack(float low, float high) {
    Pack y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// A result of 16 x 8, wherever it is in the chain.
template <bool WIDE>
struct Result {
    float v[4];
    __device__ __forceinline__ void clear() { v[0] = v[1] = v[2] = v[3] = 0.0f; }
    __device__ __forceinline__ void add(const Fragment& a, Pack b0, Pack b1) {  // += a (16 x 16) b (16 x 8)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
            : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
    }
};

struct Tile {  // a result as the operand of the next product
    Pack v[2];
};

// Two neighbouring numbers of a result, on their way to the next product.
using Pair = float2;

__device__ __forceinline__ Pair pair(Pack x) {
    Pair y;
    Word<Operand>::widen(x, y.x, y.y);
    return y;
}
template <bool WIDE>
__device__ __forceinline__ Pair pair(const Result<WIDE>& x, int i) { return {x.v[2 * i], x.v[2 * i + 1]}; }
__device__ __forceinline__ Pack packed(const Pair& x) { return pack(x.x, x.y); }

// (re, im) *= (wr, wi), or its conjugate; wr and wi are fp16.
template <bool CONJUGATE>
__device__ __forceinline__ void twist(Pair& re, Pair& im, Pack wr, Pack wi) {
    float2 c, s;
    Word<__half>::widen(wr, c.x, c.y);
    Word<__half>::widen(wi, s.x, s.y);
    if (CONJUGATE) s.x = -s.x, s.y = -s.y;  // becomes a modifier
    const Pair x = re, y = im;
    re = {x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y};
    im = {y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y};
}

}  // namespace fftgen

// Compute format "scaled-fp16" (design 1.8): every row is brought to [1, 2) by a power of two on its way in, and
// all is fp16 until the results of the last stage, which are fp32.
#pragma once

#include "fftgen/mma.cuh"
#include "fftgen/powers.cuh"

namespace fftgen {

using Operand = __half;  // of a matrix product; the workspace holds these, too

__device__ __forceinline__ Pack pack(float low, float high) {
    Pack y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ Pack neg2(Pack a) {  // becomes a modifier of the instruction that takes it
    Pack y;
    asm("neg.f16x2 %0, %1;" : "=r"(y) : "r"(a));
    return y;
}

// A result of 16 x 8: fp16, or fp32 where it leaves the chain.
template <bool WIDE>
struct Result;
template <>
struct Result<false> {
    Pack v[2];
    __device__ __forceinline__ void clear() { v[0] = v[1] = 0; }
    __device__ __forceinline__ void add(const Fragment& a, Pack b0, Pack b1) {  // += a (16 x 16) b (16 x 8)
        asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
            : "+r"(v[0]), "+r"(v[1])
            : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
    }
};
template <>
struct Result<true> {
    float v[4];
    __device__ __forceinline__ void clear() { v[0] = v[1] = v[2] = v[3] = 0.0f; }
    __device__ __forceinline__ void add(const Fragment& a, Pack b0, Pack b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
            : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
    }
};

using Tile = Result<false>;  // a result as the operand of the next product

// Two neighbouring numbers of a result, on their way to the next product.
using Pair = Pack;

__device__ __forceinline__ Pair pair(Pack x) { return x; }
__device__ __forceinline__ Pair pair(const Result<false>& x, int i) { return x.v[i]; }
__device__ __forceinline__ Pair pair(const Result<true>& x, int i) { return pack(x.v[2 * i], x.v[2 * i + 1]); }
__device__ __forceinline__ Pack packed(Pair x) { return x; }

// (re, im) *= (wr, wi), or its conjugate.
template <bool CONJUGATE>
__device__ __forceinline__ void twist(Pair& re, Pair& im, Pack wr, Pack wi) {
    const Pack a = mul2(im, wi);
    const Pack b = mul2(re, wi);
    re = fma2(re, wr, CONJUGATE ? a : neg2(a));
    im = fma2(im, wr, CONJUGATE ? neg2(b) : b);
}

// From one power to another of a larger peak, for both numbers of a word.
__device__ __forceinline__ Pack ratio(const Power& from, const Power& to) {
    const float x = from.to(to);
    return pack(x, x);
}

// A sum of squares of a thread's numbers, scaled by a power of their peak. Good enough to choose a power of
// two: what fp16 loses beside the largest square is a few hundredths of the sum.
struct Squares {
    Pack sum = 0;

    __device__ __forceinline__ void add(Pack x) { sum = fma2(x, x, sum); }
    // In units of SQUARE_UNIT, over the warp; a thread's sum is below 2^15. Any number where some are not finite.
    __device__ __forceinline__ unsigned total() const {
        float low, high;
        Word<__half>::widen(sum, low, high);
        return warp_sum(square_units(low + high));
    }
};

}  // namespace fftgen

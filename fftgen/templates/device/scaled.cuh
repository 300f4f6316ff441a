// Compute format "scaled-fp16" (design 1.8): every row is brought to [1, 2) by a power of two on its way in, and
// all is fp16 until the results of the last stage, which are fp32.
#pragma once

#include "fftgen/mma.cuh"

namespace fftgen {

using Operand = __half;  // of a matrix product; the workspace holds these, too

__device__ __forceinline__ Pack pack(float low, float high) {
    Pack y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ Pack mul2(Pack a, Pack b) {
    Pack y;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ Pack fma2(Pack a, Pack b, Pack c) {
    Pack y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
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

__device__ __forceinline__ float root(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The power of two that brings numbers up to a peak (bits of fp32) into [1, 2), and what undoes it (design
// 1.8). What is not finite comes out as NaN and zeros as zeros, whatever became of them in between: the noise
// of the row that shares their transform.
struct Power {
    unsigned exponent;  // of the peak, biased, where both powers exist
    bool finite, zero;
    float factor = 1.0f, undo = 1.0f;  // what packed numbers are multiplied by, too, and its inverse: see balance

    __device__ __forceinline__ explicit Power(unsigned peak)
        : exponent(min(max(peak >> 23, 1u), 253u)), finite(peak < 0x7f800000u), zero(peak == 0) {}

    __device__ __forceinline__ float up() const { return __uint_as_float((254u - exponent) << 23); }
    __device__ __forceinline__ float down() const {
        return __uint_as_float(!finite ? 0x7fc00000u : zero ? 0u : exponent << 23) * undo;
    }
    // Twice what takes numbers from this power to that of a larger peak, times its factor: at most that.
    __device__ __forceinline__ Pack to(const Power& larger) const {
        const unsigned less = larger.exponent - exponent;
        const float ratio = __uint_as_float((127u - min(less, 127u)) << 23) * larger.factor;
        return pack(ratio, ratio);
    }
    __device__ __forceinline__ Pack packed_factor() const { return to(*this); }
};

// A sum of squares of a thread's numbers, scaled by a power of their peak. Good enough to choose a power of
// two: what fp16 loses beside the largest square is a few hundredths of the sum.
struct Squares {
    static constexpr float UNIT = 256.0f;  // of totals: 2^-8
    Pack sum = 0;

    __device__ __forceinline__ void add(Pack x) { sum = fma2(x, x, sum); }
    // In units of 2^-8, over the warp; a thread's sum is below 2^15. Any number where some are not finite.
    __device__ __forceinline__ unsigned total() const {
        float low, high;
        Word<__half>::widen(sum, low, high);
        return warp_sum(units(low + high));
    }
    // Added to 2^15, a float has units of 2^-8 in its last place.
    static __device__ __forceinline__ unsigned units(float x) { return __float_as_uint(x + 32768.0f) & 0x7fffffu; }
};

// Two rows share a transform, and its rounding noise by their norms: the row that is smaller after scaling to
// its peak is raised by a power of two, to at most the norm of the other, and the other is lowered to within a
// sixteenth of that: by 1, 15/16, 14/16 and so on to 1/2, few enough places for fp16 to hold. Then neither bears more
// than 1.04 times the noise that it would beside a row like itself. What is lowered is rounded once more: of many
// numbers that is next to nothing, but a spike and little else would come out as much too large or small. It is the
// smaller row that may be one. Where both are, neither is lowered, and the smaller takes the power of two nearest:
// within a factor of sqrt(2), which makes 1.22 times the noise. `a2`, `b2`: sums of scaled squares, in units of Squares.
//
// Nothing overflows (design 1.8): a row scaled to its peak has a norm of at most 2 sqrt(N), a raised one no more
// than its partner (two spikes apart, whose norms are small), so a pair has 2 sqrt(2 N). Matrices are unitary up to
// factors that keep a chain of stages there and back within 2^2 (planner/matrix_scale.py), |K| <= 1, and a partial
// sum is at most the norm (Cauchy-Schwarz): below 2^15 for every N up to 2^22, with room to 65504 for what sums of
// squares are off.
__device__ __forceinline__ void balance(Power& a, float a2, Power& b, float b2) {
    // A row that is not finite takes part as zeros and changes nothing for its partner; what becomes of zeros
    // does not matter.
    if (!a.finite) a2 = 0.0f;
    if (!b.finite) b2 = 0.0f;
    const float apart = fminf(fmaxf(root(fmaxf(a2, b2) * inverse(fminf(a2, b2))), 1.0f), 32768.0f);
    const bool many = fmaxf(a2, b2) >= 16 * Squares::UNIT;
    const unsigned power = (__float_as_uint(apart) + (many ? 0u : 0x4afb0eu)) & ~0u << 23;  // below, or the nearest
    const float raise = __uint_as_float(power), raised = __uint_as_float((254u << 23) - power);
    const unsigned rest = (__float_as_uint(raise * inverse(apart)) + (1u << 19)) & ~0u << 20;  // to four places
    const float lower = many ? __uint_as_float(rest) : 1.0f;
    const float near = inverse(lower), lowered = fmaf(near, fmaf(-lower, near, 1.0f), near);
    a.factor = raise, a.undo = raised, b.factor = lower, b.undo = lowered;
    if (b2 <= a2) a.factor = lower, a.undo = lowered, b.factor = raise, b.undo = raised;
}

}  // namespace fftgen

// Powers of two that rows of fp16 are scaled by (design 1.8), and what brings the two of a pair to like norms.
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

__device__ __forceinline__ unsigned warp_max(unsigned x) {
#if __CUDA_ARCH__ >= 800
    unsigned y;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
#else
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
#endif
}

__device__ __forceinline__ unsigned warp_sum(unsigned x) {
#if __CUDA_ARCH__ >= 800
    unsigned y;
    asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
#else
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
#endif
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
    float factor = 1.0f, undo = 1.0f;  // what numbers are multiplied by, too, and its inverse: see balance

    __device__ __forceinline__ explicit Power(unsigned peak)
        : exponent(min(max(peak >> 23, 1u), 253u)), finite(peak < 0x7f800000u), zero(peak == 0) {}

    __device__ __forceinline__ float up() const { return __uint_as_float((254u - exponent) << 23); }
    __device__ __forceinline__ float down() const {
        return __uint_as_float(!finite ? 0x7fc00000u : zero ? 0u : exponent << 23) * undo;
    }
    // What takes numbers from this power to that of a larger peak, times its factor: at most that.
    __device__ __forceinline__ float to(const Power& larger) const {
        const unsigned less = larger.exponent - exponent;
        return __uint_as_float((127u - min(less, 127u)) << 23) * larger.factor;
    }
};

// Sums of scaled squares are integers, of 2^-8.
constexpr float SQUARE_UNIT = 256.0f;
// Added to 2^15, a float below that has such units in its last place.
__device__ __forceinline__ unsigned square_units(float x) { return __float_as_uint(x + 32768.0f) & 0x7fffffu; }

// Two rows share a transform, and its rounding noise by their norms: the row that is smaller after scaling to
// its peak is raised by a power of two, to at most the norm of the other, and the other is lowered to within a
// sixteenth of that: by 1, 15/16, 14/16 and so on to 1/2, few enough places for fp16 to hold. Then neither bears more
// than 1.04 times the noise that it would beside a row like itself. What is lowered is rounded once more: of many
// numbers that is next to nothing, but a spike and little else would come out as much too large or small. It is the
// smaller row that may be one. Where both are, neither is lowered, and the smaller takes the power of two nearest:
// within a factor of sqrt(2), which makes 1.22 times the noise. `a2`, `b2`: sums of scaled squares, in units of SQUARE_UNIT.
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
    const bool many = fmaxf(a2, b2) >= 16 * SQUARE_UNIT;
    const unsigned power = (__float_as_uint(apart) + (many ? 0u : 0x4afb0eu)) & ~0u << 23;  // below, or the nearest
    const float raise = __uint_as_float(power), raised = __uint_as_float((254u << 23) - power);
    const unsigned rest = (__float_as_uint(raise * inverse(apart)) + (1u << 19)) & ~0u << 20;  // to four places
    const float lower = many ? __uint_as_float(rest) : 1.0f;
    const float near = inverse(lower), lowered = fmaf(near, fmaf(-lower, near, 1.0f), near);
    a.factor = raise, a.undo = raised, b.factor = lower, b.undo = lowered;
    if (b2 <= a2) a.factor = lower, a.undo = lowered, b.factor = raise, b.undo = raised;
}

}  // namespace fftgen

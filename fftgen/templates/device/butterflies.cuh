// DFTs across numbers that a thread holds, packed fp16: what tall columns take once matrices of 16 rows have had their
// turn (device.cuh).
#pragma once

#include "fftgen/mma.cuh"

namespace fftgen {

constexpr Pack ROOT = 0x39a839a8u, MINUS_ROOT = 0xb9a8b9a8u;  // twice 0.70703125, which is sqrt(1/2) in fp16, and minus that

__device__ __forceinline__ Pack fma_pack(Pack a, Pack b, Pack c) {
    Pack y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}

// X[k] = sum_b w^(k b) x[b] for w = exp(-2 pi i / B), or its conjugate (INVERSE): in place and in order, decimation in time.
// Results are up to B times as large as numbers, and rounded log2(B) times; twice in the last step where w is an eighth.
template <int B, bool INVERSE>
__device__ __forceinline__ void butterflies(Pack (&re)[B], Pack (&im)[B]) {
    static_assert(B == 1 || B == 2 || B == 4 || B == 8, "roots of unity up to the eighth");
    if constexpr (B > 1) {
        constexpr int HALF = B / 2;
        Pack even_re[HALF], even_im[HALF], odd_re[HALF], odd_im[HALF];
#pragma unroll
        for (int b = 0; b < HALF; ++b) {
            even_re[b] = re[2 * b], even_im[b] = im[2 * b];
            odd_re[b] = re[2 * b + 1], odd_im[b] = im[2 * b + 1];
        }
        butterflies<HALF, INVERSE>(even_re, even_im);
        butterflies<HALF, INVERSE>(odd_re, odd_im);
#pragma unroll
        for (int k = 0; k < HALF; ++k) {
            Pack x = even_re[k], y = even_im[k], u = odd_re[k], v = odd_im[k];
            Pack &sum_re = re[k], &sum_im = im[k], &rest_re = re[k + HALF], &rest_im = im[k + HALF];
            if (k == 0) {
                butterfly(x, u), butterfly(y, v);
                sum_re = x, sum_im = y, rest_re = u, rest_im = v;
            } else if (4 * k == B) {  // a quarter of a turn: -i (u + i v) = v - i u
                butterfly(x, v), butterfly(y, u);
                sum_re = INVERSE ? v : x, rest_re = INVERSE ? x : v;
                sum_im = INVERSE ? y : u, rest_im = INVERSE ? u : y;
            } else {  // an eighth: (1 - i) (u + i v) = (v + u) + i (v - u), times sqrt(1/2); k = 3: a quarter further
                butterfly(v, u);
                const Pack ahead = INVERSE ? u : v, aside = INVERSE ? v : u;
                const Pack to_re = k == 1 ? ahead : aside, to_im = k == 1 ? aside : ahead;
                const bool minus_re = INVERSE, minus_im = k != 1;
                sum_re = fma_pack(to_re, minus_re ? MINUS_ROOT : ROOT, x), rest_re = fma_pack(to_re, minus_re ? ROOT : MINUS_ROOT, x);
                sum_im = fma_pack(to_im, minus_im ? MINUS_ROOT : ROOT, y), rest_im = fma_pack(to_im, minus_im ? ROOT : MINUS_ROOT, y);
            }
        }
    }
}

// The same of numbers that stand elsewhere: re(b) and im(b) are where.
template <int B, bool INVERSE, typename Re, typename Im>
__device__ __forceinline__ void butterflies_of(Re re, Im im) {
    Pack x[B], y[B];
#pragma unroll
    for (int b = 0; b < B; ++b) x[b] = re(b), y[b] = im(b);
    butterflies<B, INVERSE>(x, y);
#pragma unroll
    for (int b = 0; b < B; ++b) re(b) = x[b], im(b) = y[b];
}

}  // namespace fftgen

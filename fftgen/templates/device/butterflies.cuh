// DFTs across numbers that a thread holds, packed fp16: what columns take once matrices of 16 rows have had their turn
// (column_products.cuh).
#pragma once

#include "fftgen/mma.cuh"

namespace fftgen {

// A number of fp16, by its bits, twice.
__device__ __forceinline__ constexpr Pack twice(unsigned bits) { return bits << 16 | bits; }
constexpr Pack HALF = twice(0x3800), QUARTER = twice(0x3400), SIGNS = 0x80008000u;
constexpr Pack ROOT = twice(0x39a8);  // sqrt(1/2): 0.70703
constexpr Pack SINE_3 = twice(0x3aee);  // sin(2 pi / 3): 0.86621
constexpr Pack ROOT_5 = twice(0x3879);  // sqrt(5) / 4: 0.55908
constexpr Pack SINE_5 = twice(0x3b9c), SINE_5_2 = twice(0x38b4);  // sin(2 pi / 5), sin(4 pi / 5): 0.95117, 0.58789

// x + y w, and x - y w.
__device__ __forceinline__ Pack plus(Pack x, Pack y, Pack w) { return fma2(y, w, x); }
__device__ __forceinline__ Pack minus(Pack x, Pack y, Pack w) { return fma2(y, w ^ SIGNS, x); }

// X[k] = sum_b w^(k b) x[b] for w = exp(-2 pi i / B), or its conjugate (INVERSE), in place and in order. Results are up to B
// times as large as numbers. Of a power of two decimation in time: each of log2(B) sums is rounded once, twice where it has
// an eighth of a turn. Of three and five sums and differences of x[b] and x[B - b] come first.
template <int B, bool INVERSE>
__device__ __forceinline__ void butterflies(Pack (&re)[B], Pack (&im)[B]) {
    static_assert(B == 1 || B == 2 || B == 3 || B == 4 || B == 5 || B == 8, "butterflies of so many");
    if constexpr (B == 3) {
        butterfly(re[1], re[2]), butterfly(im[1], im[2]);
        const Pack x = minus(re[0], re[1], HALF), y = minus(im[0], im[1], HALF), u = re[2], v = im[2];
        re[0] = add2(re[0], re[1]), im[0] = add2(im[0], im[1]);
        const int near = INVERSE ? 2 : 1, far = 3 - near;
        re[near] = plus(x, v, SINE_3), im[near] = minus(y, u, SINE_3);
        re[far] = minus(x, v, SINE_3), im[far] = plus(y, u, SINE_3);
    } else if constexpr (B == 5) {
        butterfly(re[1], re[4]), butterfly(im[1], im[4]);
        butterfly(re[2], re[3]), butterfly(im[2], im[3]);
        // Of the sums (cos(2 pi / 5) + cos(4 pi / 5)) / 2 = -1/4 and (cos(2 pi / 5) - cos(4 pi / 5)) / 2 = sqrt(5) / 4.
        butterfly(re[1], re[2]), butterfly(im[1], im[2]);
        const Pack x = minus(re[0], re[1], QUARTER), y = minus(im[0], im[1], QUARTER);
        const Pack x1 = plus(x, re[2], ROOT_5), x2 = minus(x, re[2], ROOT_5), y1 = plus(y, im[2], ROOT_5), y2 = minus(y, im[2], ROOT_5);
        re[0] = add2(re[0], re[1]), im[0] = add2(im[0], im[1]);
        const Pack u1 = plus(mul2(re[3], SINE_5_2), re[4], SINE_5), u2 = minus(mul2(re[4], SINE_5_2), re[3], SINE_5);
        const Pack v1 = plus(mul2(im[3], SINE_5_2), im[4], SINE_5), v2 = minus(mul2(im[4], SINE_5_2), im[3], SINE_5);
        const int first = INVERSE ? 4 : 1, second = INVERSE ? 3 : 2;  // x - i u
        re[first] = x1, re[5 - first] = v1, im[first] = u1, im[5 - first] = y1;
        butterfly(re[first], re[5 - first]), butterfly(im[5 - first], im[first]);
        re[second] = x2, re[5 - second] = v2, im[second] = u2, im[5 - second] = y2;
        butterfly(re[second], re[5 - second]), butterfly(im[5 - second], im[second]);
    } else if constexpr (B > 1) {
        constexpr int FEW = B / 2;
        Pack even_re[FEW], even_im[FEW], odd_re[FEW], odd_im[FEW];
#pragma unroll
        for (int b = 0; b < FEW; ++b) {
            even_re[b] = re[2 * b], even_im[b] = im[2 * b];
            odd_re[b] = re[2 * b + 1], odd_im[b] = im[2 * b + 1];
        }
        butterflies<FEW, INVERSE>(even_re, even_im);
        butterflies<FEW, INVERSE>(odd_re, odd_im);
#pragma unroll
        for (int k = 0; k < FEW; ++k) {
            Pack x = even_re[k], y = even_im[k], u = odd_re[k], v = odd_im[k];
            Pack &sum_re = re[k], &sum_im = im[k], &rest_re = re[k + FEW], &rest_im = im[k + FEW];
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
                const Pack by_re = ROOT ^ (INVERSE ? SIGNS : 0), by_im = ROOT ^ (k == 1 ? 0 : SIGNS);
                sum_re = plus(x, to_re, by_re), rest_re = minus(x, to_re, by_re);
                sum_im = plus(y, to_im, by_im), rest_im = minus(y, to_im, by_im);
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

// The transform of a filter: mixed-radix FFTs in fp32, in place, their results in the order that the stages
// leave them (decimation in frequency: digits reversed). Sources: Cooley and Tukey 1965; for the odd
// radices, sums and differences of opposite inputs (Singleton 1969).
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

// What one launch is told. The host packs the same fields in the same order (fftgen/launch.py).
template <typename T>
struct FilterArgs {
    const float* filter;          // (channels, taps), rows `stride` elements apart; or nullptr
    long long stride;
    const float* back;            // (channels, 1 + reach): acts backwards in time; or nullptr
    long long back_stride;
    const float* skip;            // (channels), joins the first tap; or nullptr
    T* planes;                    // (channels, 2, N): as the convolution reads it
    float2* scale;                // (channels): what the spectrum was multiplied by; what undoes it and 1/N
    const unsigned char* tables;  // the plan's constants
    float2* workspace;            // (channels of this launch, N) or nullptr
    int* peaks;                   // (channels): exponents of the largest moduli; or nullptr
    int first;                    // first channel of this launch
    int taps;                     // 0 without a filter
    int reach;                    // taps of `back` beyond the first
    int channels;                 // of a distance, where rows have sections: `planes` have those of one after another
};

__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ float2 operator-(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }

// z exp(-2 pi i k / 16); k is known when a loop is unrolled.
__device__ __forceinline__ float2 turn(float2 z, int k) {
    constexpr float HALF = 0.707106781f, COS = 0.923879533f, SIN = 0.382683432f;  // of pi/4, pi/8
    switch (k / 4 % 4) {
        case 1: z = {z.y, -z.x}; break;
        case 2: z = {-z.x, -z.y}; break;
        case 3: z = {-z.y, z.x}; break;
    }
    switch (k % 4) {
        case 1: return {z.x * COS + z.y * SIN, z.y * COS - z.x * SIN};
        case 2: return {(z.x + z.y) * HALF, (z.y - z.x) * HALF};
        case 3: return {z.x * SIN + z.y * COS, z.y * SIN - z.x * COS};
    }
    return z;
}

// cos and sin of 2 pi m / R for the odd radices.
__device__ __forceinline__ float cosine(int radix, int m) {
    switch (8 * radix + min(m, radix - m)) {
        case 8 * 3 + 1: return -0.5f;
        case 8 * 5 + 1: return 0.309016994f;
        case 8 * 5 + 2: return -0.809016994f;
        case 8 * 7 + 1: return 0.623489802f;
        case 8 * 7 + 2: return -0.222520934f;
        case 8 * 7 + 3: return -0.900968868f;
    }
    return 1.0f;
}
__device__ __forceinline__ float sine(int radix, int m) {
    const float sign = 2 * m > radix ? -1.0f : 1.0f;
    switch (8 * radix + min(m, radix - m)) {
        case 8 * 3 + 1: return sign * 0.866025404f;
        case 8 * 5 + 1: return sign * 0.951056516f;
        case 8 * 5 + 2: return sign * 0.587785252f;
        case 8 * 7 + 1: return sign * 0.781831482f;
        case 8 * 7 + 2: return sign * 0.974927912f;
        case 8 * 7 + 3: return sign * 0.433883739f;
    }
    return 0.0f;
}

// X[k] = sum_n exp(-2 pi i k n / R) x[n], in place and in natural order.
template <int R>
__device__ __forceinline__ void dft(float2 (&x)[R]) {
    if constexpr (R == 2) {
        const float2 a = x[0], b = x[1];
        x[0] = a + b, x[1] = a - b;
    } else if constexpr (R == 4) {
        const float2 a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turn(x[1] - x[3], 4);
        x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
    } else if constexpr (R % 2 == 0) {  // 8 = 2 x 4, 16 = 4 x 4
        constexpr int A = R / 4;
        float2 z[A][4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            float2 y[A];
#pragma unroll
            for (int j = 0; j < A; ++j) y[j] = x[4 * j + n];
            dft<A>(y);
#pragma unroll
            for (int k = 0; k < A; ++k) z[k][n] = turn(y[k], 16 / R * k * n);
        }
#pragma unroll
        for (int k = 0; k < A; ++k) {
            dft<4>(z[k]);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[k + A * j] = z[k][j];
        }
    } else {
        constexpr int PAIRS = R / 2;
        float2 even[PAIRS], odd[PAIRS];
        const float2 x0 = x[0];
#pragma unroll
        for (int j = 0; j < PAIRS; ++j) {
            even[j] = x[1 + j] + x[R - 1 - j], odd[j] = x[1 + j] - x[R - 1 - j];
            x[0] = x[0] + even[j];
        }
#pragma unroll
        for (int k = 1; k <= PAIRS; ++k) {
            float2 a = x0, b{0.0f, 0.0f};
#pragma unroll
            for (int j = 0; j < PAIRS; ++j) {
                const int m = (1 + j) * k % R;
                a.x += cosine(R, m) * even[j].x, a.y += cosine(R, m) * even[j].y;
                b.x += sine(R, m) * odd[j].x, b.y += sine(R, m) * odd[j].y;
            }
            x[k] = {a.x + b.y, a.y - b.x};
            x[R - k] = {a.x - b.y, a.y + b.x};
        }
    }
}

// x[a + A b] fine(a) coarse(b): `fine` for a from FIRST on, `coarse` for b >= 1, where a radix is longer than A.
template <int FIRST, int R, typename Fine, typename Coarse>
__device__ __forceinline__ void twist_by(float2 (&x)[R], Fine fine, Coarse coarse) {
    constexpr int A = R > 7 ? 4 : R;
#pragma unroll
    for (int a = FIRST; a < A; ++a) {
        const float2 w = fine(a);
#pragma unroll
        for (int k = a; k < R; k += A) x[k] = x[k] * w;
    }
#pragma unroll
    for (int b = 1; b < R / A; ++b) {
        const float2 w = coarse(b);
#pragma unroll
        for (int a = 0; a < A; ++a) x[A * b + a] = x[A * b + a] * w;
    }
}

// The twiddles T(k, r) after a stage. The table holds rows of M numbers: T(a, r) for a < A, then, where a
// radix is longer than A, T(A b, r) / T(0, r) for b >= 1: T(a + A b, r) is their product. Without weights
// T(0, r) = 1 is left out.
template <int R, int M, bool WEIGHTED>
__device__ __forceinline__ void twist(float2 (&x)[R], const unsigned char* table, int r) {
    constexpr int A = R > 7 ? 4 : R, FIRST = WEIGHTED ? 0 : 1;
    const float2* const w = reinterpret_cast<const float2*>(table) + r;
    twist_by<FIRST>(
        x, [&](int a) { return __ldg(w + (a - FIRST) * M); }, [&](int b) { return __ldg(w + (A - FIRST + b - 1) * M); });
}

// Number n of a row of `count`; zero where there is none.
__device__ __forceinline__ float tap_at(const float* row, int n, int count) {
    return unsigned(n) < unsigned(count) ? __ldg(row + n) : 0.0f;
}

// Bits of the larger absolute value of both parts; a NaN is larger than all.
__device__ __forceinline__ unsigned magnitude(float2 z) {
    return max(__float_as_uint(z.x) & 0x7fffffffu, __float_as_uint(z.y) & 0x7fffffffu);
}

// Bits of the squared modulus of z * scale.
__device__ __forceinline__ unsigned square(float2 z, float scale) {
    const float x = z.x * scale, y = z.y * scale;
    return __float_as_uint(x * x + y * y) & 0x7fffffffu;
}

// The largest value of each warp into shared memory, and, after a barrier, the largest of them all. A compiler
// may read whole pieces of 16 bytes there: the last warp fills up the piece that its value begins or ends.
template <int THREADS>
__device__ __forceinline__ void share_peak(unsigned value, unsigned* peaks) {
#pragma unroll
    for (int step = LANES / 2; step; step /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, step));
    constexpr int WARPS = THREADS / LANES, SPARE = 3 - (WARPS - 1) % 4;
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    if (lane <= (warp == WARPS - 1 ? SPARE : 0)) peaks[warp + lane] = value;
}
template <int THREADS>
__device__ __forceinline__ unsigned shared_peak(const unsigned* peaks) {
    unsigned value = peaks[0];
#pragma unroll
    for (int i = 1; i < THREADS / LANES; ++i) value = max(value, peaks[i]);
    return value;
}

constexpr int MOST = 126;  // exponents within +-MOST have normal powers of two of either sign
constexpr unsigned INFINITE = 0x7f800000u;

// e with 2^(e - 1) <= |x| < 2^e for a normal x given by its bits; small ones count as 2^-MOST, the rest as 0.
__device__ __forceinline__ int exponent(unsigned bits) {
    return bits == 0 || bits >= INFINITE ? 0 : max(-MOST, min(MOST, (int)(bits >> 23) - 126));
}
__device__ __forceinline__ float power(int e) { return __uint_as_float((unsigned)(127 + e) << 23); }

// A block's largest modulus, as the exponent that a channel's peak collects: from the square of the modulus
// divided by 2^e. Above all zeros and below all that is not finite.
constexpr int BIAS = 1024, NOT_FINITE = 1 << 20;
__device__ __forceinline__ int peak_of(unsigned square, int e) {
    if (square >= INFINITE) return NOT_FINITE;
    return square == 0 ? 0 : BIAS + e + (((int)(square >> 23) - 126 + 1) >> 1);  // 4^(j - 1) <= square < 4^j
}
__device__ __forceinline__ int channel_exponent(int peak) {
    return peak == 0 || peak >= NOT_FINITE ? 0 : max(-MOST, min(MOST, peak - BIAS));
}

// What a number from LEAST to 1 is multiplied by to be a power of two, 1/2 to ABOVE; 1 for others. One that is a power
// of two, but for rounding, stays.
constexpr float LEAST = 0.0009765625f, ABOVE = 1.0005f;
__device__ __forceinline__ float to_power(float x) {
    const float below = __uint_as_float(__float_as_uint(x * ABOVE) & ~0x007fffffu);
    return fabsf(x) >= LEAST && fabsf(x) <= 1.0f ? below / x : 1.0f;
}

// exp(-2 pi i m / COUNT), m taken from 0 to COUNT, in two levels: high(m / SPLIT) low(m % SPLIT).
template <int SPLIT>
__device__ __forceinline__ float2 root(const unsigned char* low, const unsigned char* high, int m) {
    return __ldg(reinterpret_cast<const float2*>(high) + m / SPLIT) * __ldg(reinterpret_cast<const float2*>(low) + m % SPLIT);
}

// x[j] exp(-2 pi i (first + j step) / COUNT), as `twist` from a few roots: those of j < A, then the steps of A b.
template <int COUNT, int SPLIT, int R>
__device__ __forceinline__ void twist_by_roots(float2 (&x)[R], const unsigned char* low, const unsigned char* high, int first, int step) {
    constexpr int A = R > 7 ? 4 : R;
    const auto of = [&](int m) { return root<SPLIT>(low, high, m); };
    twist_by<0>(
        x,
        [&](int a) {
            const int m = first + a * step;  // only the first of all may be negative
            return of(a == 0 && m < 0 ? m + COUNT : m);
        },
        [&](int b) { return of(A * b * step); });
}

}  // namespace fftgen

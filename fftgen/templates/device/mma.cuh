// Tile engine "mma": instructions, operands and tables (PTX ISA, "Matrix Fragments for mma.m16n8k16 with
// floating point type"). Numbers are fp16, two to a register. With lane = 4 g + t, a result of 16 x 8 holds
// rows g, g + 8 and columns 2t, 2t + 1 of a thread; two of them, side by side, are a left operand as they
// stand, and their transpose is a right operand as it stands. Tables lie in that order in memory, 16 bytes
// a lane and 512 bytes a tile and plane.
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

using Pack = unsigned;  // two fp16 numbers

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

// (re, im) *= (wr, wi), or its conjugate.
template <bool CONJUGATE>
__device__ __forceinline__ void twist(Pack& re, Pack& im, Pack wr, Pack wi) {
    const Pack a = mul2(im, wi);
    const Pack b = mul2(re, wi);
    re = fma2(re, wr, CONJUGATE ? a : neg2(a));
    im = fma2(im, wr, CONJUGATE ? neg2(b) : b);
}

// One plane of a 16 x 16 tile: a left operand, two right operands {0, 1}, {2, 3}, or two results.
struct Fragment {
    Pack r[4];
};

__device__ __forceinline__ Fragment fragment(const uint4* table, int tile, int lane) {
    const uint4 x = table[tile * LANES + lane];
    return {x.x, x.y, x.z, x.w};
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

using Tile = Result<false>;

__device__ __forceinline__ Tile narrow(const Tile& x) { return x; }
__device__ __forceinline__ Tile narrow(const Result<true>& x) { return {{pack(x.v[0], x.v[1]), pack(x.v[2], x.v[3])}}; }

// Planes of one transform, or of one of its rows, in the workspace.
struct Complex {
    __half* re;
    __half* im;

    template <int V>
    __device__ __forceinline__ void store(int n, const float (&a)[V], const float (&b)[V]) const {
        Pack x[V / 2], y[V / 2];
#pragma unroll
        for (int i = 0; i < V / 2; ++i) x[i] = pack(a[2 * i], a[2 * i + 1]), y[i] = pack(b[2 * i], b[2 * i + 1]);
        if constexpr (V == 8) {
            *reinterpret_cast<uint4*>(re + n) = uint4{x[0], x[1], x[2], x[3]};
            *reinterpret_cast<uint4*>(im + n) = uint4{y[0], y[1], y[2], y[3]};
        } else {
            *reinterpret_cast<uint2*>(re + n) = uint2{x[0], x[1]};
            *reinterpret_cast<uint2*>(im + n) = uint2{y[0], y[1]};
        }
    }
};

// Sums of more than two products lose less when they are rounded once: fp32 for radices above 16.
template <int RADIX>
using Sum = Result<(RADIX > TILE)>;

// What a matrix tile brings: the planes of F and, where complex numbers meet complex numbers, -im F.
template <bool COMPLEX>
struct Planes3 {
    Fragment re, im, neg;

    __device__ __forceinline__ Planes3(const uint4* table, int tile, int lane) {
        constexpr int PLANES = COMPLEX ? 3 : 2;
        re = fragment(table, tile * PLANES, lane);
        im = fragment(table, tile * PLANES + 1, lane);
        if constexpr (COMPLEX) neg = fragment(table, tile * PLANES + 2, lane);
    }
};

// (zr, zi) += F (xr, xi), both operands complex.
template <typename R>
__device__ __forceinline__ void multiply(R& zr, R& zi, const Planes3<true>& f, Pack r0, Pack r1, Pack i0, Pack i1) {
    zr.add(f.re, r0, r1);
    zi.add(f.re, i0, i1);
    zr.add(f.neg, i0, i1);
    zi.add(f.im, r0, r1);
}

// threadIdx.x, asked anew: addresses that depend on it are then computed where they are used, and do not wait
// in registers through the other phases of a loop.
__device__ __forceinline__ unsigned thread_index() {
    unsigned x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Two right operands (16 x 8 each) from 16-byte pieces of rows in shared memory, transposed on the way: lane
// i hands in the address of row i % 16, piece i / 16.
__device__ __forceinline__ void load_right(Pack (&x)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ unsigned warp_max(unsigned x) {
    unsigned y;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
}

__device__ __forceinline__ unsigned warp_sum(unsigned x) {
    unsigned y;
    asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
}

// The power of two that brings numbers up to a peak (bits of fp32) into [1, 2), and what undoes it (design
// 1.8). What is not finite comes out as NaN and zeros as zeros, whatever became of them in between: the noise
// of the row that shares their transform.
struct Power {
    unsigned exponent;  // of the peak, biased, where both powers exist
    bool finite, zero;
    unsigned raise = 0;  // so many powers of two more on packed numbers: see balance

    __device__ __forceinline__ explicit Power(unsigned peak)
        : exponent(min(max(peak >> 23, 1u), 253u)), finite(peak < 0x7f800000u), zero(peak == 0) {}

    __device__ __forceinline__ float up() const { return __uint_as_float((254u - exponent) << 23); }
    __device__ __forceinline__ float down() const {
        return __uint_as_float(!finite ? 0x7fc00000u : zero ? 0u : exponent << 23) * __uint_as_float((127u - raise) << 23);
    }
    // Twice what takes numbers from this power to that of a larger peak, raised: at most 2^raise.
    __device__ __forceinline__ Pack to(const Power& larger) const {
        const unsigned less = larger.exponent - exponent;
        const float ratio = __uint_as_float((127u - min(less, 127u) + larger.raise) << 23);
        return pack(ratio, ratio);
    }
    __device__ __forceinline__ Pack raised() const { return to(*this); }
};

// A sum of squares of a thread's numbers, scaled by a power of their peak. Good enough to choose a power of
// two: what fp16 loses beside the largest square is a few hundredths of the sum.
struct Squares {
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
// its peak is raised by the power of two, 2^raise, that brings the norms within about sqrt(2) of each other.
// Then neither bears more than 1.25 times the noise that it would beside a row like itself. `a2`, `b2`: sums
// of scaled squares, in one unit.
//
// Nothing overflows (design 1.8): a row scaled to its peak has a norm of at most 2 sqrt(N), a raised one at
// most sqrt(2) times its partner's, so a pair has 2 sqrt(3 N). Matrices are unitary up to a power of two that
// keeps a chain of stages within 2^1.5, |K| <= 1, and a partial sum is at most the norm (Cauchy-Schwarz):
// below 2^15 for every N up to 2^22, with room to 65504 for what the sums of squares are off.
__device__ __forceinline__ void balance(Power& a, float a2, Power& b, float b2) {
    // The bits of a float are 2^23 log2 of it, up to 0.09 and a constant. A row that is not finite takes part
    // as zeros and changes nothing for its partner; what becomes of zeros does not matter.
    const int apart = (int)((b.finite ? __float_as_uint(b2) : 0u) - (a.finite ? __float_as_uint(a2) : 0u));
    a.raise = min(max((apart + (1 << 23)) >> 24, 0), 15);  // half of it, to nearest
    b.raise = min(max(((1 << 23) - apart) >> 24, 0), 15);
}

}  // namespace fftgen

// Tile engine "mma": instructions, operands and tables (PTX ISA, "Matrix Fragments for mma.m16n8k16 with
// floating point type"). Operands have 16 bits, two to a register. With lane = 4 g + t, a result of 16 x 8
// holds rows g, g + 8 and columns 2t, 2t + 1 of a thread; two of them, side by side, are a left operand as
// they stand, and their transpose is a right operand as it stands. Tables lie in that order in memory, 16
// bytes a lane and 512 bytes a tile and plane.
//
// What operands and sums are made of is a plan's compute format: scaled.cuh or bf16.cuh.
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

using Pack = unsigned;  // two 16-bit numbers of a matrix operand

// One plane of a 16 x 16 tile: a left operand, two right operands {0, 1}, {2, 3}, or two results.
struct Fragment {
    Pack r[4];
};

__device__ __forceinline__ Fragment fragment(const uint4* table, int tile, int lane) {
    const uint4 x = table[tile * LANES + lane];
    return {x.x, x.y, x.z, x.w};
}

// With the signs of some numbers turned.
__device__ __forceinline__ Fragment turned(const Fragment& f, Pack signs) {
    return {f.r[0] ^ signs, f.r[1] ^ signs, f.r[2] ^ signs, f.r[3] ^ signs};
}
__device__ __forceinline__ Fragment negative(const Fragment& f) { return turned(f, 0x80008000u); }

// Tiles in a row, or a column, of the table of a matrix of R rows. Where R / 2 is a multiple of 16 half of them are
// enough: F[k, n + R/2] is (-1)^k F[k, n], with the weights of real numbers F[k + R/2, n] is (-1)^n F[k, n].
template <int R>
constexpr int SOME_TILES = R % (2 * TILE) == 0 ? R / TILE / 2 : R / TILE;

// What a matrix tile brings: the planes of F and, where complex numbers meet complex numbers, -im F. The latter is made
// here: it takes four instructions, and four turns of the pipe of shared memory, which has the most to do, to load.
template <bool COMPLEX>
struct Planes3 {
    Fragment re, im, neg;

    Planes3() = default;
    __device__ __forceinline__ Planes3(const uint4* table, int tile, int lane) {
        re = fragment(table, 2 * tile, lane);
        im = fragment(table, 2 * tile + 1, lane);
        if constexpr (COMPLEX) neg = negative(im);
    }
};

// A row of a strip whose even rows come before the odd ones (PARTED), where half of them fill whole tiles: the one that
// stands in place n of row tile k. Or n of tile k as they are.
template <int R, bool PARTED>
__device__ __forceinline__ constexpr int strip_row(int k, int n) {
    constexpr int SOME = SOME_TILES<R>;
    return PARTED && SOME < R / TILE ? 2 * (TILE * (k % SOME) + n) + k / SOME : TILE * k + n;
}

// COUNT tiles of a table: loaded where they are used, or (HELD) in registers from one use to the next.
template <typename Tile, int COUNT, bool HELD>
struct Tiles {
    const uint4* from;
    int lane;
    Tile held[HELD ? COUNT : 1];

    __device__ __forceinline__ Tiles(const void* table, int first, int lane)
        : from(reinterpret_cast<const uint4*>(table) + first), lane(lane) {
        if constexpr (HELD) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) held[i] = Tile(from, i, lane);
        }
    }
    __device__ __forceinline__ Tile operator()(int i) const {
        if constexpr (HELD)
            return held[i];
        else
            return Tile(from, i, lane);
    }
};

// Signs that turn the odd rows of a tile.
__device__ __forceinline__ Pack odd_rows(int lane) { return lane / 4 % 2 * 0x80008000u; }

template <bool COMPLEX>
__device__ __forceinline__ Planes3<COMPLEX> turned(const Planes3<COMPLEX>& f, Pack signs) {
    Planes3<COMPLEX> x;
    x.re = turned(f.re, signs), x.im = turned(f.im, signs);
    if constexpr (COMPLEX) x.neg = negative(x.im);
    return x;
}

// The same of the inverse. A matrix without weights is symmetric, its inverse the conjugate: the same planes.
__device__ __forceinline__ Planes3<true> inverse(const Planes3<true>& f) {
    Planes3<true> conjugate = f;
    conjugate.im = f.neg, conjugate.neg = f.im;
    return conjugate;
}
// That of one which is given as it stands, (re, -im).
__device__ __forceinline__ Planes3<false> inverse(const Planes3<false>& f) { return f; }

// (zr, zi) += F (xr, xi), both operands complex.
template <typename R>
__device__ __forceinline__ void multiply(R& zr, R& zi, const Planes3<true>& f, Pack r0, Pack r1, Pack i0, Pack i1) {
    zr.add(f.re, r0, r1);
    zi.add(f.re, i0, i1);
    zr.add(f.neg, i0, i1);
    zi.add(f.im, r0, r1);
}

// What an odd frequency adds to one half of the numbers it takes from the other: -F. Odd numbers, of frequencies.
__device__ __forceinline__ Planes3<true> minus(const Planes3<true>& f) {
    Planes3<true> m;
    m.re = negative(f.re), m.im = f.neg, m.neg = f.im;
    return m;
}
__device__ __forceinline__ Planes3<false> minus(const Planes3<false>& f) {
    return turned(f, 0x80008000u);
}

// Packed fp16 numbers, each result rounded once.
__device__ __forceinline__ Pack add2(Pack a, Pack b) {
    Pack y;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
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

// Sum and difference, in their places.
__device__ __forceinline__ void butterfly(Pack& a, Pack& b) {
    const Pack x = a, y = b;
    a = add2(x, y);
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(b) : "r"(x), "r"(y));
}

// threadIdx.x, asked anew: addresses that depend on it are then computed where they are used, and do not wait
// in registers through the other phases of a loop.
__device__ __forceinline__ unsigned thread_index() {
    unsigned x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// A number of few bits that the compiler takes for any: it would join it to constants bit by bit, where it knows that no
// bits meet, and no address takes such a sum.
__device__ __forceinline__ int any_bits(int x) {
    asm("" : "+r"(x));
    return x;
}

// Zero (a grid has one dimension), which the compiler does not know: the end of a loop that steps by one more is not
// worked out where it begins, and kept through it in a register that there may be none for.
__device__ __forceinline__ int unforeseen() {
    int zero;
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(zero));
    return zero;
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

// Has the L2 bring a row that is read later (PTX ISA, cp.async.bulk.prefetch: sm_90 and later): on 16 bytes, a
// multiple of eight numbers.
template <typename T>
__device__ __forceinline__ void bring(const T* row, int length) {
    if (row != nullptr)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(row)), "r"(length * (int)sizeof(T)));
}

// Asynchronous copies to shared memory (PTX ISA, cp.async: sm_80 and later): sixteen bytes past the L1, or eight. A thread
// commits those that it asked for as a group; `wait` returns when all but its last LEFT groups have come.
// Addresses are those of the state spaces: whole runs of copies then differ by a constant.
template <int BYTES = 16>
__device__ __forceinline__ void copy_async(unsigned to, size_t from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global" PASSING_HINT " [%0], [%1], 16" PASSING_AS(2) ";" ::"r"(to), "l"(from) PASSING_POLICY : "memory");
    else  // by way of the L1
        asm volatile("cp.async.ca.shared.global" PASSING_HINT " [%0], [%1], %2" PASSING_AS(3) ";" ::"r"(to), "l"(from), "n"(BYTES) PASSING_POLICY : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

}  // namespace fftgen

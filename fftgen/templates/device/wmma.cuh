// Tile engine "wmma": nvcuda::wmma by its documented behaviour only (CUDA Programming Guide, "Warp Matrix
// Functions"). Where an element lies in a fragment is never assumed: accumulators go through a staging tile
// of the warp in shared memory, where every lane knows what it reads.
#pragma once

#include <mma.h>

#include "fftgen/types.cuh"

namespace fftgen {

namespace wmma = nvcuda::wmma;

// Where a matrix lies. NVVM finds out by itself for __half, but leaves loads of __nv_bfloat16 fragments in
// the generic address space; ptxas then emits plain generic loads (108 at N = 4096) in place of 27 ldmatrix.
enum class Space { SHARED, GLOBAL };

template <Space SPACE, typename Fragment>
__device__ __forceinline__ void load(Fragment& f, const __half* from, int pitch) {
    wmma::load_matrix_sync(f, from, pitch);
}

// The eight elements of a bf16 operand fragment are four 32-bit registers (PTX ISA, "Matrix Fragments for
// WMMA"); wmma.load with a state space fills them.
#define FFTGEN_LOAD(OPERAND, LAYOUT, LAYOUT_TYPE)                                                              \
    template <Space SPACE>                                                                                     \
    __device__ __forceinline__ void load(                                                                      \
        wmma::fragment<wmma::matrix_##OPERAND, TILE, TILE, TILE, __nv_bfloat16, wmma::LAYOUT_TYPE>& f,         \
        const __nv_bfloat16* from, int pitch) {                                                                \
        unsigned* const r = reinterpret_cast<unsigned*>(f.x);                                                  \
        static_assert(sizeof(f.x) == 16, "a bf16 fragment is four registers");                                 \
        if constexpr (SPACE == Space::SHARED)                                                                  \
            asm volatile(                                                                                      \
                "wmma.load." #OPERAND ".sync.aligned." #LAYOUT ".m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;" \
                : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                               \
                : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(pitch)                                    \
                : "memory");                                                                                   \
        else                                                                                                   \
            asm volatile(                                                                                      \
                "wmma.load." #OPERAND ".sync.aligned." #LAYOUT ".m16n16k16.global.bf16 {%0, %1, %2, %3}, [%4], %5;" \
                : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                               \
                : "l"(__cvta_generic_to_global(from)), "r"(pitch)                                              \
                : "memory");                                                                                   \
    }
FFTGEN_LOAD(a, row, row_major)
FFTGEN_LOAD(a, col, col_major)
FFTGEN_LOAD(b, row, row_major)
FFTGEN_LOAD(b, col, col_major)
#undef FFTGEN_LOAD

constexpr int STAGING_PITCH = 24;  // floats between rows, which start on 32 bytes

// A DFT matrix as three planes; rows are an odd multiple of 16 elements apart, to spread over the banks.
template <typename T, int R, Space SPACE>
struct Dft {
    static constexpr int PITCH = R % 32 ? R : R + 16;
    static constexpr int ELEMENTS = 3 * R * PITCH;
    const T* re;

    __device__ __forceinline__ const T* im() const { return re + R * PITCH; }
    __device__ __forceinline__ const T* minus_im() const { return re + 2 * R * PITCH; }
};

// What is multiplied: the DFT matrix (FORWARD) or its conjugate transpose (INVERSE); REAL means that the
// input (forward) or the wanted output (inverse) has no imaginary part, which halves the products.
enum class Form { FORWARD, FORWARD_REAL, INVERSE, INVERSE_REAL };

template <bool CONDITION, typename Yes, typename No>
struct Choose {
    using type = Yes;
};
template <typename Yes, typename No>
struct Choose<false, Yes, No> {
    using type = No;
};

__host__ __device__ constexpr bool is_inverse(Form f) { return f == Form::INVERSE || f == Form::INVERSE_REAL; }

using Accumulator = wmma::fragment<wmma::accumulator, TILE, TILE, TILE, float>;

// The warp's two fp32 planes for one tile.
struct Staging {
    float* re;

    __device__ __forceinline__ float* im() const { return re + TILE * STAGING_PITCH; }

    // Hands eight consecutive elements of a row to each lane: emit(re, im, row, column).
    template <bool COMPLEX, typename Emit>
    __device__ __forceinline__ void drain(const Accumulator& x, const Accumulator& y, int lane, Emit emit) const {
        wmma::store_matrix_sync(re, x, STAGING_PITCH, wmma::mem_row_major);
        if constexpr (COMPLEX) wmma::store_matrix_sync(im(), y, STAGING_PITCH, wmma::mem_row_major);
        __syncwarp();
        const int row = lane % TILE;
        const int column = lane / TILE * VECTOR;
        float a[VECTOR], b[VECTOR];
        take(a, re + row * STAGING_PITCH + column);
        if constexpr (COMPLEX) take(b, im() + row * STAGING_PITCH + column);
        emit(a, b, row, column);
        __syncwarp();
    }

    static __device__ __forceinline__ void take(float (&to)[VECTOR], const float* from) {
        const float4 a = reinterpret_cast<const float4*>(from)[0];
        const float4 b = reinterpret_cast<const float4*>(from)[1];
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
        to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    }
};

// Fills R rows of a 16-column tile from a source; n = first + row * stride + column. Rows of tiles from
// `tiles` on are known to be zero and stay untouched: nothing reads them.
template <int R, bool COMPLEX, typename T, typename Source>
__device__ __forceinline__ void fetch(
    const Source& source, T* re, T* im, int pitch, int first, int stride, int tiles, int lane) {
    const int row = lane % TILE;
    const int column = lane / TILE * VECTOR;
#pragma unroll
    for (int tile = 0; tile < R / TILE; ++tile) {
        if (tile < tiles) {
            const int at = tile * TILE + row;
            Vector<T> x, y;
            source.load(first + at * stride + column, x, y);
            store_vector(re + at * pitch + column, x);
            if constexpr (COMPLEX) store_vector(im + at * pitch + column, y);
        }
    }
    __syncwarp();
}

// emit(F * X) for the 16 columns of X that start at (re, im), R rows `pitch` elements apart.
// The whole strip is in registers before the first emit, so emit may overwrite it. `inputs` and `outputs`
// count the row tiles of X that are not zero and of the product that are wanted.
template <Form FORM, Space SPACE, typename T, int R, Space MATRIX, typename Emit>
__device__ __forceinline__ void left(
    const Dft<T, R, MATRIX>& f, const T* re, const T* im, int pitch, const Staging& staging, int lane, int inputs,
    int outputs, Emit emit) {
    using Layout = typename Choose<is_inverse(FORM), wmma::col_major, wmma::row_major>::type;
    using A = wmma::fragment<wmma::matrix_a, TILE, TILE, TILE, T, Layout>;
    using B = wmma::fragment<wmma::matrix_b, TILE, TILE, TILE, T, wmma::row_major>;
    constexpr int TILES = R / TILE;
    constexpr int PITCH = Dft<T, R, MATRIX>::PITCH;
    B x[TILES], y[TILES];
#pragma unroll
    for (int k = 0; k < TILES; ++k) {
        if (k < inputs) {
            load<SPACE>(x[k], re + k * TILE * pitch, pitch);
            if constexpr (FORM != Form::FORWARD_REAL) load<SPACE>(y[k], im + k * TILE * pitch, pitch);
        }
    }
#pragma unroll 1
    for (int m = 0; m < outputs; ++m) {
        Accumulator zr, zi;
        wmma::fill_fragment(zr, 0.0f);
        if constexpr (FORM != Form::INVERSE_REAL) wmma::fill_fragment(zi, 0.0f);
#pragma unroll
        for (int k = 0; k < TILES; ++k) {
            if (k < inputs) {
                // Row tile m of F, or of its conjugate transpose: the same planes read by columns.
                const int at = is_inverse(FORM) ? k * TILE * PITCH + m * TILE : m * TILE * PITCH + k * TILE;
                A f_re, f_im;
                load<MATRIX>(f_re, f.re + at, PITCH);
                load<MATRIX>(f_im, f.im() + at, PITCH);
                wmma::mma_sync(zr, f_re, x[k], zr);
                if constexpr (FORM == Form::FORWARD_REAL) {
                    wmma::mma_sync(zi, f_im, x[k], zi);
                } else if constexpr (FORM == Form::INVERSE_REAL) {
                    wmma::mma_sync(zr, f_im, y[k], zr);
                } else {
                    A f_neg;
                    load<MATRIX>(f_neg, f.minus_im() + at, PITCH);
                    wmma::mma_sync(zr, FORM == Form::FORWARD ? f_neg : f_im, y[k], zr);
                    wmma::mma_sync(zi, FORM == Form::FORWARD ? f_im : f_neg, x[k], zi);
                    wmma::mma_sync(zi, f_re, y[k], zi);
                }
            }
        }
        staging.drain<FORM != Form::INVERSE_REAL>(
            zr, zi, lane, [&](float(&u)[VECTOR], float(&v)[VECTOR], int row, int column) {
                emit(u, v, m * TILE + row, column);
            });
    }
}

// emit(X * F) for 16 rows of X (R columns) that start at (re, im), `pitch` elements apart; in-place as `left`.
template <Form FORM, typename T, int R, Space MATRIX, typename Emit>
__device__ __forceinline__ void right(
    const Dft<T, R, MATRIX>& f, const T* re, const T* im, int pitch, const Staging& staging, int lane, Emit emit) {
    using Layout = typename Choose<is_inverse(FORM), wmma::row_major, wmma::col_major>::type;
    using A = wmma::fragment<wmma::matrix_a, TILE, TILE, TILE, T, wmma::row_major>;
    using B = wmma::fragment<wmma::matrix_b, TILE, TILE, TILE, T, Layout>;
    constexpr int TILES = R / TILE;
    constexpr int PITCH = Dft<T, R, MATRIX>::PITCH;
    A x[TILES], y[TILES];
#pragma unroll
    for (int k = 0; k < TILES; ++k) {
        load<Space::SHARED>(x[k], re + k * TILE, pitch);
        load<Space::SHARED>(y[k], im + k * TILE, pitch);
    }
#pragma unroll 1
    for (int n = 0; n < TILES; ++n) {
        Accumulator zr, zi;
        wmma::fill_fragment(zr, 0.0f);
        wmma::fill_fragment(zi, 0.0f);
#pragma unroll
        for (int k = 0; k < TILES; ++k) {
            const int at = is_inverse(FORM) ? k * TILE * PITCH + n * TILE : n * TILE * PITCH + k * TILE;
            B f_re, f_im, f_neg;
            load<MATRIX>(f_re, f.re + at, PITCH);
            load<MATRIX>(f_im, f.im() + at, PITCH);
            load<MATRIX>(f_neg, f.minus_im() + at, PITCH);
            wmma::mma_sync(zr, x[k], f_re, zr);
            wmma::mma_sync(zr, y[k], FORM == Form::FORWARD ? f_neg : f_im, zr);
            wmma::mma_sync(zi, x[k], FORM == Form::FORWARD ? f_im : f_neg, zi);
            wmma::mma_sync(zi, y[k], f_re, zi);
        }
        staging.drain<true>(zr, zi, lane, [&](float(&u)[VECTOR], float(&v)[VECTOR], int row, int column) {
            emit(u, v, row, n * TILE + column);
        });
    }
}

// Copies DFT matrices to shared memory once per block, 16 bytes at a time.
template <int ELEMENTS, typename T>
__device__ __forceinline__ void share(T* to, const T* from, int thread, int threads) {
    static_assert(ELEMENTS % VECTOR == 0, "a DFT matrix is a whole number of 16-byte vectors");
#pragma unroll 1
    for (int i = thread * VECTOR; i < ELEMENTS; i += threads * VECTOR) store_vector(to + i, load_vector(from + i));
}

}  // namespace fftgen

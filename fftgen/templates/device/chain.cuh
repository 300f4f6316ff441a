// The register chain (design 2.3): A x P points of one transform, or of several, forward, filtered and back,
// without leaving the registers of a warp. Each step contracts the columns of what the step before left:
//
//   X[k2, n3] = T(k2, n3) sum_n2 F[k2, n2] x[n2, n3]      matrix from the left
//   Z[k2, k3] = K(k2, k3) sum_n3 X[k2, n3] F[n3, k3]      matrix from the right
//   W[n3, k2] = T*(k2, n3) sum_k3 F*[n3, k3] Z[k2, k3]    matrix from the left, on the transpose of Z
//   x[n2, n3] = sum_k2 F*[n2, k2] W[n3, k2]               matrix from the left, on the transpose of W
//
// Results read as their own transpose, so that no step moves a number. Tables say which row or column a
// place stands for: the planner orders them so that loads and stores are 16 bytes wide.
//
// By halves a DFT of R points is two matrices of half the size (decimation in frequency): even frequencies are
// those of x[n] + x[n + R/2], odd ones of x[n] - x[n + R/2], with n below R/2. On the way back both halves of the
// numbers share what even frequencies bring, and what odd ones bring is added to one and taken from the other.
#pragma once

// After a compute format, scaled.cuh or bf16.cuh, and what sums.j2 says.
#include "fftgen/mma.cuh"

namespace fftgen {

// Sums of more than 16 products lose less when they are rounded once.
template <int RADIX>
using Sum = Result<(WIDE_SUMS && RADIX > TILE)>;

struct InnerTables {
    const uint4 *first, *twiddle, *last, *last_inverse, *twiddle_inverse, *first_inverse;
};

// Two results side by side, times twiddles or a spectrum, as operands of the next step.
template <bool CONJUGATE, typename R>
__device__ __forceinline__ void twist_tile(
    Tile* to_re, Tile* to_im, const R* re, const R* im, const Fragment& wr, const Fragment& wi) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Pair x = pair(re[i / 2], i % 2), y = pair(im[i / 2], i % 2);
        twist<CONJUGATE>(x, y, wr.r[i], wi.r[i]);
        to_re[i / 2].v[i % 2] = packed(x), to_im[i / 2].v[i % 2] = packed(y);
    }
}

// Real and imaginary sums of G transforms, N results side by side.
template <typename R, int G, int N>
struct ResultRow {
    R re[G][N], im[G][N];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < G * N; ++i) re[i / N][i % N].clear(), im[i / N][i % N].clear();
    }
};

// Whether even rows of a real x come before odd ones (strip_row): row tile m of X and the one half of all further on are
// then the sum of what both bring, and the difference. (Rows of 64 columns two apart would meet in banks.)
template <int A, int P>
constexpr bool PARTED_ROWS = SOME_TILES<A> < A / TILE && P < 64;

// The row of x in place n of row tile k.
template <int A, int P, bool REAL>
__device__ __forceinline__ int chain_row(int k, int n) {
    return strip_row<A, REAL && PARTED_ROWS<A, P>>(k, n);
}

// The first two steps: X, then Z before the filter. REAL: x has no imaginary part. WIDE: Z comes in fp32.
//   load(g, k, n, re, im)  row tile k, columns 16 n .. + 15 of transform g as two right operands
//   done(n, re, im)        columns 16 n .. + 15 of Z, [transform][row tile][half of the columns]
template <int A, int P, int G, bool REAL, bool WIDE = false, typename Load, typename Done>
__device__ __forceinline__ void chain_forward(const InnerTables& tables, int lane, Load load, Done done) {
    constexpr int ROWS = A / TILE, COLUMNS = P / TILE;  // tiles
    Pack xr[G][ROWS][COLUMNS][4], xi[G][ROWS][COLUMNS][4];
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
        for (int k = 0; k < ROWS; ++k)
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) load(g, k, n, xr[g][k][n], xi[g][k][n]);
    __syncwarp();  // every lane has read before any writes in place

    constexpr int SOME = FIRST_HALVES ? ROWS / 2 : ROWS;  // row tiles of x that one of X is made of
    if constexpr (FIRST_HALVES) {
#pragma unroll
        for (int g = 0; g < G; ++g)
#pragma unroll
            for (int k = 0; k < SOME; ++k)
#pragma unroll
                for (int i = 0; i < COLUMNS * 4; ++i) {
                    butterfly(xr[g][k][i / 4][i % 4], xr[g][k + SOME][i / 4][i % 4]);
                    butterfly(xi[g][k][i / 4][i % 4], xi[g][k + SOME][i / 4][i % 4]);
                }
    }

    constexpr int FEW = LAST_HALVES ? COLUMNS / 2 : COLUMNS;  // column tiles of X that one of Z is made of
    Tile yr[G][ROWS][2 * COLUMNS], yi[G][ROWS][2 * COLUMNS];
    const auto finish = [&](int m, const Sum<A>(&re)[G][2 * COLUMNS], const Sum<A>(&im)[G][2 * COLUMNS]) {
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            const Planes3<false> w(tables.twiddle, m * COLUMNS + n, lane);
#pragma unroll
            for (int g = 0; g < G; ++g)
                twist_tile<false>(&yr[g][m][2 * n], &yi[g][m][2 * n], &re[g][2 * n], &im[g][2 * n], w.re, w.im);
        }
        if constexpr (LAST_HALVES) {
#pragma unroll
            for (int g = 0; g < G; ++g)
#pragma unroll
                for (int i = 0; i < FEW * 4; ++i) {
                    butterfly(yr[g][m][i / 2].v[i % 2], yr[g][m][i / 2 + COLUMNS].v[i % 2]);
                    butterfly(yi[g][m][i / 2].v[i % 2], yi[g][m][i / 2 + COLUMNS].v[i % 2]);
                }
        }
    };
    using Row = ResultRow<Sum<A>, G, 2 * COLUMNS>;
    const auto add = [&](Row& to, const Planes3<!REAL>& f, int k) {
#pragma unroll
        for (int g = 0; g < G; ++g)
#pragma unroll
            for (int n = 0; n < 2 * COLUMNS; ++n) {
                Sum<A> &dr = to.re[g][n], &di = to.im[g][n];
                const Pack* const r = &xr[g][k][n / 2][n % 2 * 2];
                const Pack* const i = &xi[g][k][n / 2][n % 2 * 2];
                if constexpr (REAL)
                    dr.add(f.re, r[0], r[1]), di.add(f.im, r[0], r[1]);
                else
                    multiply(dr, di, f, r[0], r[1], i[0], i[1]);
            }
    };
    if constexpr (REAL && PARTED_ROWS<A, P>) {
#pragma unroll
        for (int m = 0; m < ROWS / 2; ++m) {
            Row sum;
            sum.clear();
#pragma unroll
            for (int k = 0; k < ROWS / 2; ++k) add(sum, Planes3<false>(tables.first, m * ROWS + k, lane), k);
            Row difference = sum;
#pragma unroll
            for (int k = ROWS / 2; k < ROWS; ++k) {
                const Planes3<false> f(tables.first, m * ROWS + k, lane);
                add(sum, f, k), add(difference, minus(f), k);
            }
            finish(m, sum.re, sum.im);
            finish(m + ROWS / 2, difference.re, difference.im);
        }
    } else {
#pragma unroll
        for (int m = 0; m < ROWS; ++m) {
            Row row;
            row.clear();
#pragma unroll
            for (int k = 0; k < SOME; ++k) add(row, Planes3<!REAL>(tables.first, m * SOME + k, lane), m / SOME * SOME + k);
            finish(m, row.re, row.im);
        }
    }

#pragma unroll
    for (int n = 0; n < COLUMNS; ++n) {
        Result<WIDE> re[G][ROWS][2], im[G][ROWS][2];  // registers are scarcest in the middle
        const int from = n / FEW * FEW;
#pragma unroll
        for (int k = 0; k < FEW; ++k) {
            const Planes3<true> f(tables.last, k * COLUMNS + n, lane);
#pragma unroll
            for (int g = 0; g < G; ++g)
#pragma unroll
                for (int m = 0; m < ROWS; ++m) {
                    const Tile* const r = &yr[g][m][2 * (from + k)];
                    const Tile* const i = &yi[g][m][2 * (from + k)];
                    const Fragment ar{r[0].v[0], r[0].v[1], r[1].v[0], r[1].v[1]};
                    const Fragment ai{i[0].v[0], i[0].v[1], i[1].v[0], i[1].v[1]};
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        Result<WIDE> &dr = re[g][m][j], &di = im[g][m][j];
                        if (k == 0) dr.clear(), di.clear();
                        dr.add(ar, f.re.r[2 * j], f.re.r[2 * j + 1]);
                        di.add(ar, f.im.r[2 * j], f.im.r[2 * j + 1]);
                        dr.add(ai, f.neg.r[2 * j], f.neg.r[2 * j + 1]);
                        di.add(ai, f.re.r[2 * j], f.re.r[2 * j + 1]);
                    }
                }
        }
        done(n, re, im);
    }
}

// A step on the way back: a matrix times the transpose of X, of T tiles and E / 2 tiles that are contracted. REAL: no
// imaginary part is wanted; the table has half of the tiles (SOME_TILES). HALVES: by halves.
//   planes(i)            tile i of the table
//   done(m, re, im)      row tile m of the result, [transform][eight columns]
template <typename R, bool REAL, bool HALVES, int G, int T, int E, typename Planes, typename Done>
__device__ __forceinline__ void step_back(const Tile (&xr)[G][T][E], const Tile (&xi)[G][T][E], int lane, Planes planes, Done done) {
    constexpr int DEPTH = E / 2, SOME = HALVES ? DEPTH / 2 : DEPTH, KNOWN = REAL ? SOME_TILES<DEPTH * TILE> : DEPTH;
    using Row = ResultRow<R, G, 2 * T>;
    const auto add = [&](Row& to, const Planes3<!REAL>& f, int k) {
#pragma unroll
        for (int g = 0; g < G; ++g)
#pragma unroll
            for (int n = 0; n < 2 * T; ++n) {
                R &dr = to.re[g][n], &di = to.im[g][n];
                const Tile* const r = &xr[g][n / 2][2 * k];
                const Tile* const i = &xi[g][n / 2][2 * k];
                if constexpr (REAL)  // the planes are (re, -im)
                    dr.add(f.re, r[0].v[n % 2], r[1].v[n % 2]), dr.add(f.im, i[0].v[n % 2], i[1].v[n % 2]);
                else
                    multiply(dr, di, f, r[0].v[n % 2], r[1].v[n % 2], i[0].v[n % 2], i[1].v[n % 2]);
            }
    };
#pragma unroll
    for (int m = 0; m < SOME; ++m) {
        Row row;
        row.clear();
#pragma unroll
        for (int k = 0; k < (KNOWN < SOME ? KNOWN : SOME); ++k) {
            const Planes3<!REAL> f = planes(m * KNOWN + k);
            add(row, f, k);
            if constexpr (KNOWN < DEPTH) add(row, turned(f, odd_rows(lane)), k + KNOWN);
        }
        if constexpr (HALVES) {
            Row other = row;
#pragma unroll
            for (int k = SOME; k < DEPTH; ++k) {
                const Planes3<!REAL> f = planes(m * DEPTH + k);
                add(row, f, k);
                add(other, minus(f), k);
            }
            done(m + SOME, other.re, other.im);
        }
        done(m, row.re, row.im);
    }
}

// The last two steps, from Z filtered to x. REAL: no imaginary part of x is wanted. WIDE: results come in fp32,
// else as Sum<A>.
//   emit(g, m, re, im)  rows 16 m .. + 15 of the result, as P / 8 results of eight columns
template <int A, int P, int G, bool REAL, bool WIDE, typename Emit>
__device__ __forceinline__ void chain_back(
    const InnerTables& tables, int lane, const Tile (&zr)[G][A / TILE][P / 8], const Tile (&zi)[G][A / TILE][P / 8], Emit emit) {
    constexpr int ROWS = A / TILE, COLUMNS = P / TILE;  // tiles
    using Out = Result<WIDE || (WIDE_SUMS && A > TILE)>;
    Tile wr[G][COLUMNS][2 * ROWS], wi[G][COLUMNS][2 * ROWS];
    step_back<Result<false>, false, LAST_HALVES_BACK>(
        zr, zi, lane, [&](int i) { return Planes3<true>(tables.last_inverse, i, lane); },
        [&](int m, const Result<false>(&re)[G][2 * ROWS], const Result<false>(&im)[G][2 * ROWS]) {
#pragma unroll
            for (int n = 0; n < ROWS; ++n) {
                const Planes3<false> w(tables.twiddle_inverse, m * ROWS + n, lane);
#pragma unroll
                for (int g = 0; g < G; ++g)
                    twist_tile<true>(&wr[g][m][2 * n], &wi[g][m][2 * n], &re[g][2 * n], &im[g][2 * n], w.re, w.im);
            }
        });

    // The same matrix as in the first step, asked for anew: it would fill registers from there to here.
    const int last_lane = REAL ? thread_index() % LANES : lane;
    step_back<Out, REAL, FIRST_HALVES_BACK>(
        wr, wi, last_lane, [&](int i) { return inverse(Planes3<!REAL>(tables.first_inverse, i, last_lane)); },
        [&](int m, const Out(&re)[G][2 * COLUMNS], const Out(&im)[G][2 * COLUMNS]) {
#pragma unroll
            for (int g = 0; g < G; ++g) emit(g, m, re[g], im[g]);
        });
}

// The whole chain. REAL, WIDE and emit as in its parts.
//   load(g, k, n, re, im)    as in the first two steps
//   filter(g, m, n, kr, ki)  the tile m, n of the spectrum
template <int A, int P, int G, bool REAL, bool WIDE, typename Load, typename Filter, typename Emit>
__device__ __forceinline__ void chain(const InnerTables& tables, int lane, Load load, Filter filter, Emit emit) {
    constexpr int ROWS = A / TILE;  // tiles
    Tile zr[G][ROWS][P / 8], zi[G][ROWS][P / 8];
    chain_forward<A, P, G, REAL>(
        tables, lane, load, [&](int n, const Result<false>(&re)[G][ROWS][2], const Result<false>(&im)[G][ROWS][2]) {
#pragma unroll
            for (int g = 0; g < G; ++g)
#pragma unroll
                for (int m = 0; m < ROWS; ++m) {
                    Fragment kr, ki;
                    filter(g, m, n, kr, ki);
                    twist_tile<false>(&zr[g][m][2 * n], &zi[g][m][2 * n], re[g][m], im[g][m], kr, ki);
                }
        });
    chain_back<A, P, G, REAL, WIDE>(tables, lane, zr, zi, emit);
}

}  // namespace fftgen

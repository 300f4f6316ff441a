// Products of a DFT matrix with a strip of columns, before its results meet their twiddles.
#pragma once

#include "fftgen/butterflies.cuh"
#include "fftgen/chain.cuh"

namespace fftgen {

// Row tiles of the first stage's columns that butterflies bring together (butterflies.cuh); 1: matrices do all. Matrices
// have 16 rows then: F[k + 16 q, B n + b] = w^(q b) F[k, B n + b] for w = exp(-2 pi i / B), of B tiles.
#ifdef FFTGEN_BUTTERFLIES
constexpr int BUTTERFLIES = FFTGEN_BUTTERFLIES;
#else
constexpr int BUTTERFLIES = 1;
#endif

template <int R, bool COMPLEX>
constexpr bool BUTTERFLIED = !COMPLEX && BUTTERFLIES > 1;

// Tiles of a matrix in a row of its table that leads back, and in a column of that which leads there.
template <int R, bool COMPLEX>
constexpr int TABLE_TILES = BUTTERFLIED<R, COMPLEX> ? 1 : SOME_TILES<R>;

// The row of a strip of columns that stands in place n of row tile k: even ones before odd ones (PARTED: strip_row), or
// every BUTTERFLIES-th in one tile.
template <int R, bool PARTED>
__device__ __forceinline__ constexpr int column_row(int k, int n) {
    return PARTED && R == BUTTERFLIES * TILE ? BUTTERFLIES * n + k : strip_row<R, PARTED>(k, n);
}

// Sums of columns. A chain of n instructions in fp16 loses (n + 1) / 2 times what one rounding does, in variance: too much in
// the tallest (Plan.wide_columns).
template <int R>
constexpr bool WIDE_COLUMNS = (WIDE_SUMS && R > TILE) || R >= 8 * TILE;
template <int R>
using ColumnSum = Result<WIDE_COLUMNS<R>>;
template <int R, bool COMPLEX>
using ColumnResult = Result<!BUTTERFLIED<R, COMPLEX> && WIDE_COLUMNS<R>>;  // butterflies leave theirs in fp16

// F x, for the 8 V columns of a strip. Of a real x even rows come before odd ones (strip_row): row tile m of F x and the
// one half of all further on are the sum of what both bring, and the difference.
//   lane_of()              lane of the thread, for one row tile or two
//   planes(i, lane)        tile i of the table
//   done(m, lane, re, im)  row tile m
template <int R, int V, bool COMPLEX, typename Lane, typename Planes, typename Done>
__device__ __forceinline__ void multiply_columns(
    const Pack (&xr)[R / TILE][V][2], const Pack (&xi)[R / TILE][V][2], int tiles, Lane lane_of, Planes planes, Done done) {
    constexpr int ALL = R / TILE, SOME = SOME_TILES<R>;
    const auto clear = [](ColumnSum<R>(&sr)[V], ColumnSum<R>(&si)[V]) {
#pragma unroll
        for (int j = 0; j < V; ++j) sr[j].clear(), si[j].clear();
    };
    const auto add = [&](ColumnSum<R>(&sr)[V], ColumnSum<R>(&si)[V], const Planes3<COMPLEX>& f, int k) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            if constexpr (COMPLEX)
                multiply(sr[j], si[j], f, xr[k][j][0], xr[k][j][1], xi[k][j][0], xi[k][j][1]);
            else
                sr[j].add(f.re, xr[k][j][0], xr[k][j][1]), si[j].add(f.im, xr[k][j][0], xr[k][j][1]);
        }
    };
    if constexpr (COMPLEX || SOME == ALL) {
        // Rolled for long columns: addresses would spill.
#pragma unroll (COMPLEX && R > 64 ? 1 : 1024)
        for (int m = 0; m < ALL; ++m) {
            const int lane = lane_of();
            const Pack signs = odd_rows(lane);
            ColumnSum<R> sr[V], si[V];
            clear(sr, si);
#pragma unroll
            for (int k = 0; k < SOME; ++k) {
                if (k < tiles) {
                    const Planes3<COMPLEX> f = planes(m * SOME + k, lane);
                    add(sr, si, f, k);
                    if (SOME < ALL && k + SOME < tiles) add(sr, si, turned(f, signs), k + SOME);
                }
            }
            done(m, lane, sr, si);
        }
    } else {
        const int few = (tiles + 1) / 2;
#pragma unroll
        for (int m = 0; m < SOME; ++m) {
            const int lane = lane_of();
            ColumnSum<R> sr[V], si[V], dr[V], di[V];
            clear(sr, si);
#pragma unroll
            for (int k = 0; k < SOME; ++k)
                if (k < few) add(sr, si, planes(m * ALL + k, lane), k);
#pragma unroll
            for (int j = 0; j < V; ++j) dr[j] = sr[j], di[j] = si[j];
#pragma unroll
            for (int k = 0; k < SOME; ++k) {
                if (k < few) {
                    const Planes3<COMPLEX> f = planes(m * ALL + k + SOME, lane);
                    add(sr, si, f, k + SOME);
                    add(dr, di, minus(f), k + SOME);
                }
            }
            done(m, lane, sr, si);
            done(m + SOME, lane, dr, di);
        }
    }
}

// F x of a real x, row tile b of which has every B-th row (column_row), by butterflies: done as in multiply_columns.
template <int B, int V, typename Planes, typename Done>
__device__ __forceinline__ void butterfly_columns(const Pack (&x)[B][V][2], int lane, Planes planes, Done done) {
    Result<false> yr[B][V], yi[B][V];
#pragma unroll
    for (int b = 0; b < B; ++b) {
        const Planes3<false> f = planes(b, lane);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            yr[b][j].clear(), yi[b][j].clear();
            yr[b][j].add(f.re, x[b][j][0], x[b][j][1]), yi[b][j].add(f.im, x[b][j][0], x[b][j][1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * V; ++i)
        butterflies_of<B, false>([&](int b) -> Pack& { return yr[b][i / 2].v[i % 2]; }, [&](int b) -> Pack& { return yi[b][i / 2].v[i % 2]; });
#pragma unroll
    for (int m = 0; m < B; ++m) done(m, lane, yr[m], yi[m]);
}

// F x of either kind.
template <int R, int V, bool COMPLEX, typename Lane, typename Planes, typename Done>
__device__ __forceinline__ void columns_there(
    const Pack (&xr)[R / TILE][V][2], const Pack (&xi)[R / TILE][V][2], int tiles, Lane lane_of, Planes planes, Done done) {
    static_assert(!BUTTERFLIED<R, COMPLEX> || R == BUTTERFLIES * TILE, "a matrix of 16 rows for each tile of a strip");
    if constexpr (BUTTERFLIED<R, COMPLEX>)
        butterfly_columns(xr, lane_of(), planes, done);
    else
        multiply_columns<R, V, COMPLEX>(xr, xi, tiles, lane_of, planes, done);
}

}  // namespace fftgen

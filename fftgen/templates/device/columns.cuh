// The outer stage: a DFT of radix R along columns, from a tensor into rows of shared memory and back.
//
// A warp takes strips of 8 V columns. Going in, a thread loads V neighbouring columns of rows 2t, 2t + 1,
// 2t + 8, 2t + 9 of every tile: column V g + j becomes column g of right operand j, so that the results hold
// 2 V neighbouring columns of rows g, g + 8 in pairs V apart, and are stored as they stand. Coming out,
// column 8 t + 2 j + b of 32 stands in piece j of a row: results then hold eight neighbouring columns.
#pragma once

#include "fftgen/column_products.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// Where 16-byte piece `q` of a row in shared memory stands: pieces of one row, of one column, and those that
// eight threads store together, fall on different banks. V is the width of what is stored there, or ANY_WIDTH, for
// rows that are stored in strips of several and loaded in such (cluster_rows.cuh).
constexpr int ANY_WIDTH = 16;
template <int V>
__device__ __forceinline__ int place(int q, int row) {
    if constexpr (V == ANY_WIDTH) return q ^ (q >> 3 & 7) ^ ((row ^ row << 2) & 7);
    constexpr int BITS = V == 8 ? 0 : V == 4 ? 2 : 1;  // the three bits of the row, turned by so many places
    return q ^ (q >> 3 & 7) ^ ((row << BITS & 7) | (row & 7) >> (3 - BITS));
}

// Where a row begins, in pieces, of rows that are so many pieces apart, or of others (cluster_rows.cuh).
__device__ __forceinline__ int line(int pitch, int row) { return row * pitch; }

// Twiddles T(k, r), the real plane before the imaginary one; in two levels where a table of all exceeds the L1:
// T(k, r) = high(k, r / SPLIT) low(k, r % SPLIT), SPLIT a multiple of a strip's columns and of 32.
struct TwoLevels {
    const uint4* low;
    const uint2* high;
};

// Of where results of channels abreast go, what is there for one half of a tile's rows.
template <typename Sink>
__device__ __forceinline__ const auto& of_half(const Sink& sink, int half) {
    if constexpr (ABREAST > 1)
        return half == 0 ? sink.even : sink.odd;
    else
        return sink;
}

// A high twiddle, loaded where it is used: pairs of rows in tall columns have no register for it earlier. It takes
// four instructions more for 128 elements (as compiled).
__device__ __forceinline__ uint2 load_high(const uint2* from) {
    uint2 x;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
    return x;
}

// Planes of one transform, or of one of its rows, in the workspace.
struct Complex {
    Operand* re;
    Operand* im;

    // Neighbours of a row of REST columns, as operands hold them.
    template <int REST, int C>
    __device__ __forceinline__ void put(int row, int column, const Pack (&x)[C], const Pack (&y)[C]) const {
        const long long at = row * (long long)REST + column;
        if constexpr (C == 4) {
            store_plane(re + at, x[0], x[1], x[2], x[3]);
            store_plane(im + at, y[0], y[1], y[2], y[3]);
        } else {
            store_plane(re + at, x[0], x[1]);
            store_plane(im + at, y[0], y[1]);
        }
    }

    template <int V>
    __device__ __forceinline__ Unheld hold(int) const {
        return {};
    }
    template <int V>
    __device__ __forceinline__ void store(int n, const float (&a)[V], const float (&b)[V], const Unheld& = {}) const {
        Pack x[V / 2], y[V / 2];
#pragma unroll
        for (int i = 0; i < V / 2; ++i) x[i] = pack(a[2 * i], a[2 * i + 1]), y[i] = pack(b[2 * i], b[2 * i + 1]);
        if constexpr (V == 8) {
            store_plane(re + n, x[0], x[1], x[2], x[3]);
            store_plane(im + n, y[0], y[1], y[2], y[3]);
        } else {
            store_plane(re + n, x[0], x[1]);
            store_plane(im + n, y[0], y[1]);
        }
    }
};

// R rows of a strip as right operands: b[k][j] has column j and rows 16 k .. + 15.
template <int R, int V>
struct Operands {
    Pack b[R / TILE][V][2];

    // Numbers of the workspace as they are.
    __device__ __forceinline__ void take(const Operand* from, int first, int stride, int lane) {
        const Operand* const at = from + first + lane % 4 * 2 * (long long)stride + lane / 4 * V;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            unsigned w[4][V / 2];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_plane(at + (TILE * k + i % 2 + i / 2 * 8) * (long long)stride, w[i]);
            interleave(k, w);
        }
    }

    // V columns of rows 2t, 2t + 1, 2t + 8, 2t + 9 of row tile k.
    __device__ __forceinline__ void interleave(int k, const unsigned (&w)[4][V / 2]) {
#pragma unroll
        for (int j = 0; j < V; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                b[k][j][i] = __byte_perm(w[2 * i][j / 2], w[2 * i + 1][j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
    }
};

// Has the L2 bring an aligned row and its gate, or rows of channels abreast.
template <typename T>
__device__ __forceinline__ void bring(const RealSource<T>& row) {
    bring(row.u, row.length), bring(row.gate, row.length);
}
template <typename T>
__device__ __forceinline__ void bring(const PairSource<T>& rows) {
    bring(rows.even), bring(rows.odd);
}

// Columns of one signal, then of another.
template <int R, int V>
__device__ __forceinline__ Operands<R, 2 * V> beside(const Operands<R, V>& x, const Operands<R, V>& v) {
    Operands<R, 2 * V> both;
#pragma unroll
    for (int i = 0; i < R / TILE * V * 2; ++i) {
        const int k = i / (2 * V), j = i / 2 % V;
        both.b[k][j][i % 2] = x.b[k][j][i % 2], both.b[k][V + j][i % 2] = v.b[k][j][i % 2];
    }
    return both;
}

// The first piece of row 16 k + i of an inner matrix of P columns, in the order that store_rows needs.
template <int P>
__device__ __forceinline__ int row_piece(int k, int i) {
    return P == TILE ? (TILE * k + i % 8 * 2 + i / 8) * 2 : (TILE * k + i) * (P / 8);
}

// Results of the chain, rows 16 m .. + 15 of row `row`, times the conjugate outer twiddle, back to shared memory. Of
// channels abreast so many rows are `before` those of the channel, whose twiddles begin again.
template <int A, int P, int V, int SPLIT, typename Pitch>
__device__ __forceinline__ void store_rows(
    uint4* re, uint4* im, const TwoLevels& twiddle, const Pitch& pitch, int row, int m, int lane, const Sum<A>* r, const Sum<A>* i, int before = 0) {
    constexpr int COUNT = P / TILE;  // pieces of a thread
    constexpr int RUNS = SPLIT / 32;  // runs of 32 columns that share a high level
    const int g = lane / 4, t = lane % 4, own = row - before;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        const int half = P == TILE ? 0 : c / (P / 32), part = P == TILE ? 0 : c % (P / 32);
        const int run = P == TILE ? 8 * m + g : (TILE * m + 8 * half + g) * (P / 32) + part;
        constexpr bool TWO = SPLIT < A * P;
        // One level lies as threads take it, of two all g share the low one of a run.
        const uint4* const low = twiddle.low + (TWO ? (own * RUNS + run % RUNS) * 8 + t : (own * (A * P / 256) + m * COUNT + c) * (2 * LANES) + lane);
        const Fragment wr = fragment(low, 0, 0), wi = fragment(low, 0, TWO ? 4 : LANES);
        uint2 high;
        if constexpr (TWO) high = twiddle.high[own * (A * P / SPLIT) + run / RUNS];
        Pack a[4], b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int tile = P == TILE ? j % 2 : 4 * part + j;
            const int v = P == TILE ? j / 2 : half;
            Pair x = pair(r[tile], v), y = pair(i[tile], v);
            if constexpr (TWO) twist<true>(x, y, high.x, high.y);
            twist<true>(x, y, wr.r[j], wi.r[j]);
            a[j] = packed(x), b[j] = packed(y);
        }
        const int at = line(pitch, row) + place<V>(4 * run + t, row);
        re[at] = uint4{a[0], a[1], a[2], a[3]};
        im[at] = uint4{b[0], b[1], b[2], b[3]};
    }
}

// X[k, r] = T(k, r) sum_n F[k, n] x[n, r] for the 8 V columns of `strip`, into rows of REST / 8 pieces. Of SIDES signals,
// which share matrix and twiddles: x has the columns of one after those of another, planes are `apart` pieces.
template <int R, int V, int REST, int SPLIT, bool COMPLEX, int LAYOUT = V, int SIDES = 1, typename Pitch = int>
__device__ __forceinline__ void columns_forward(
    const uint4* matrix, const TwoLevels& twiddle, const Pack (&xr)[R / TILE][SIDES * V][2], const Pack (&xi)[R / TILE][SIDES * V][2],
    uint4* re, uint4* im, int strip, int tiles, const Pitch& pitch = REST / 8, int apart = 0) {
    constexpr int STRIPS = SPLIT / (8 * V), ALL = SIDES * V;
    constexpr bool TWO = SPLIT < REST;
    // The lane anew: of a matrix that it keeps from strip to strip the compiler loads what is left in pieces, each at the
    // distance of 16 bytes, which meet in banks. And addresses do not wait in registers.
    const auto anew = [] { return (int)(thread_index() % LANES); };
    const auto planes = [&](int i, int lane) { return Planes3<COMPLEX>(matrix, i, lane); };
    columns_there<R, ALL, COMPLEX>(xr, xi, tiles, anew, planes, [&](int m, int lane, const ColumnResult<R, COMPLEX>(&sr)[ALL], const ColumnResult<R, COMPLEX>(&si)[ALL]) {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Pair a[ALL], b[ALL];
#pragma unroll
            for (int j = 0; j < ALL; ++j) a[j] = pair(sr[j], i), b[j] = pair(si[j], i);
            const int row = TILE * m + 8 * i + g;
            const int tile = ((TWO ? strip % STRIPS : strip) * (R / TILE) + m) * (2 / ABREAST) + i % (2 / ABREAST);
            if constexpr (TWO) {
                const uint2* const from = twiddle.high + strip / STRIPS * (R / ABREAST) + (ABREAST > 1 ? g : row);
                const uint2 high = COMPLEX && R > TILE ? load_high(from) : *from;
#pragma unroll
                for (int j = 0; j < ALL; ++j) twist<false>(a[j], b[j], high.x, high.y);
            }
            if constexpr (V == 2) {  // half a piece
                const uint4 w = twiddle.low[tile * LANES + lane];
#pragma unroll
                for (int side = 0; side < SIDES; ++side) {
                    Pair *const x = a + V * side, *const y = b + V * side;
                    twist<false>(x[0], y[0], w.x, w.z);
                    twist<false>(x[1], y[1], w.y, w.w);
                    const int at = 2 * (line(pitch, row) + place<LAYOUT>(strip * V + t / 2, row)) + t % 2;
                    reinterpret_cast<uint2*>(re + side * apart)[at] = uint2{packed(x[0]), packed(x[1])};
                    reinterpret_cast<uint2*>(im + side * apart)[at] = uint2{packed(y[0]), packed(y[1])};
                }
            } else {
#pragma unroll
                for (int h = 0; h < V / 4; ++h) {
                    const Planes3<false> w(twiddle.low, tile * (V / 4) + h, lane);
#pragma unroll
                    for (int side = 0; side < SIDES; ++side) {
                        Pair *const x = a + V * side + 4 * h, *const y = b + V * side + 4 * h;
#pragma unroll
                        for (int j = 0; j < 4; ++j) twist<false>(x[j], y[j], w.re.r[j], w.im.r[j]);
                        const int at = line(pitch, row) + place<LAYOUT>(strip * V + t * (V / 4) + h, row);
                        re[side * apart + at] = uint4{packed(x[0]), packed(x[1]), packed(x[2]), packed(x[3])};
                        im[side * apart + at] = uint4{packed(y[0]), packed(y[1]), packed(y[2]), packed(y[3])};
                    }
                }
            }
        }
    });
}

// x[n, r] = sum_k F*[n, k] X[k, r] for 32 columns from 32 `group` on, eight neighbours at a time, to place
// n * stride + r of the sink. REAL: im is not computed. Row tiles from `tiles` on are not wanted; ONE: nor are those
// before the last one that is.
template <int R, int V, bool REAL, bool ONE = false, typename Matrix, typename Pitch, typename Sink>
__device__ __forceinline__ void columns_inverse(
    const Matrix& matrix, const uint4* re, const uint4* im, const Pitch& pitch, int group, int tiles, int lane, const Sink& sink, int stride) {
    constexpr bool BUTTERFLY = BUTTERFLIED<R, !REAL>;
    constexpr bool KEEP = R <= 64 || BUTTERFLY;  // operands of all rows stay in registers
    using Gates = decltype(of_half(sink, 0).template hold<8>(0));
    constexpr bool MANY = BUTTERFLY && R > 64 && sizeof(Gates) > 16;  // operands, and gates of two results: they would spill
    constexpr bool HOLD = (REAL && !MANY) || R <= TILE;  // and so do the gates of a row tile, on their way meanwhile
    constexpr int SOME = SOME_TILES<R>;
    const int g = lane / 4, t = lane % 4;
    const Pack signs = odd_rows(lane);
    const unsigned from_re = shared_address(re), from_im = shared_address(im);
    const auto load = [&](int k, Pack(&r)[2][4], Pack(&i)[2][4]) {
        const int row = TILE * k + lane % TILE;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int at = line(pitch, row) + place<V>(group * 4 + 2 * j + lane / TILE, row);
            load_right(r[j], from_re + at * 16);
            load_right(i[j], from_im + at * 16);
        }
    };
    Pack xr[R / TILE][2][4], xi[R / TILE][2][4];
    if constexpr (KEEP) {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) load(k, xr[k], xi[k]);
    }
    if constexpr (BUTTERFLY) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            butterflies_of<R / TILE, true>([&](int k) -> Pack& { return xr[k][i / 4][i % 4]; }, [&](int k) -> Pack& { return xi[k][i / 4][i % 4]; });
        tiles = R / TILE;  // each has rows from one end to the other
    }
    if constexpr (V == ANY_WIDTH) {  // in place
        static_assert(KEEP, "all is read before any of it is replaced");
        __syncwarp();
    }
    const auto row_tile = [&](int m) {
        const auto at = [&](int i) {
            const int row = 8 * i + g;
            return (ABREAST > 1 ? g : BUTTERFLY ? BUTTERFLIES * row + m : TILE * m + row) * stride + group * 32 + 8 * t;
        };
        Gates low, high;
        if constexpr (HOLD) low = of_half(sink, 0).template hold<8>(at(0)), high = of_half(sink, 1).template hold<8>(at(1));
        Result<true> yr[4], yi[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) yr[j].clear(), yi[j].clear();
        const auto add = [&](const Planes3<!REAL>& f, int k) {
            if constexpr (!KEEP) load(k, xr[k], xi[k]);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const Pack* const r = &xr[k][j / 2][j % 2 * 2];
                const Pack* const i = &xi[k][j / 2][j % 2 * 2];
                if constexpr (REAL)  // the planes are (re, -im)
                    yr[j].add(f.re, r[0], r[1]), yr[j].add(f.im, i[0], i[1]);
                else
                    multiply(yr[j], yi[j], f, r[0], r[1], i[0], i[1]);
            }
        };
        if constexpr (BUTTERFLY) {
            add(inverse(matrix(m)), m);
        } else {
#pragma unroll
            for (int k = 0; k < SOME; ++k) {
                const Planes3<!REAL> f = inverse(matrix(m * SOME + k));
                add(f, k);
                if constexpr (SOME < R / TILE) add(turned(f, signs), k + SOME);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float a[8], b[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) a[j] = yr[j / 2].v[2 * i + j % 2], b[j] = yi[j / 2].v[2 * i + j % 2];
            if constexpr (HOLD)
                of_half(sink, i).store(at(i), a, b, i == 0 ? low : high);
            else
                of_half(sink, i).store(at(i), a, b);
        }
    };
    static_assert(!(ONE && BUTTERFLY), "row tiles share their butterflies");
    if constexpr (ONE) {
        row_tile(tiles - 1);
    } else if constexpr (REAL && !KEEP) {  // rolled, as above
#pragma unroll 1
        for (int m = 0; m < tiles; ++m) row_tile(m);
    } else {
#pragma unroll
        for (int m = 0; m < R / TILE; ++m)
            if (m < tiles) row_tile(m);
    }
}

// The same for all REST columns, by WARPS warps: each takes groups of columns, or, of groups that are fewer, row tiles.
// STEADY: a warp keeps the matrix from one group to the next.
template <int R, int V, int REST, int WARPS, bool REAL, bool STEADY, typename Sink, typename Pitch = int>
__device__ __forceinline__ void columns_inverse_by(
    const uint4* table, const uint4* re, const uint4* im, int warp, int tiles, int lane, const Sink& sink,
    const Pitch& pitch = REST / 8) {
    constexpr int GROUPS = REST / 32, COUNT = R / TILE * TABLE_TILES<R, !REAL>;
    constexpr bool HELD = STEADY && GROUPS > WARPS;
    // The lane anew for each group, if the matrix is not kept: the compiler would keep a part of it (columns_forward).
    const auto loaded = [&] { return Tiles<Planes3<!REAL>, COUNT, false>(table, 0, thread_index() % LANES); };
    if constexpr (GROUPS < WARPS && V != ANY_WIDTH) {
#pragma unroll
        for (int i = 0; i < GROUPS * R / TILE; i += WARPS) {
            const int task = i + warp;
            if (task < GROUPS * tiles)
                columns_inverse<R, V, REAL, true>(loaded(), re, im, pitch, task % GROUPS, task / GROUPS + 1, lane, sink, REST);
        }
    } else if constexpr (HELD) {
        const Tiles<Planes3<!REAL>, COUNT, true> held(table, 0, lane);
#pragma unroll
        for (int group = warp; group < GROUPS; group += WARPS)
            columns_inverse<R, V, REAL>(held, re, im, pitch, group, tiles, lane, sink, REST);
    } else {
#pragma unroll
        for (int group = warp; group < GROUPS; group += WARPS)
            columns_inverse<R, V, REAL>(loaded(), re, im, pitch, group, tiles, lane, sink, REST);
    }
}

}  // namespace fftgen

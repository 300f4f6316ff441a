// The outer stage: a DFT of radix R along columns, from a tensor into rows of shared memory and back.
//
// A warp takes strips of 8 V columns. Going in, a thread loads V neighbouring columns of rows 2t, 2t + 1,
// 2t + 8, 2t + 9 of every tile: column V g + j becomes column g of right operand j, so that the results hold
// 2 V neighbouring columns of rows g, g + 8 in pairs V apart, and are stored as they stand. Coming out,
// column 8 t + 2 j + b of 32 stands in piece j of a row: results then hold eight neighbouring columns.
#pragma once

#include "fftgen/chain.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// Where 16-byte piece `q` of a row in shared memory stands: pieces of one row, of one column, and those that
// eight threads store together, fall on different banks.
template <int V>
__device__ __forceinline__ int place(int q, int row) {
    constexpr int BITS = V == 8 ? 0 : V == 4 ? 2 : 1;  // the three bits of the row, turned by so many places
    return q ^ (q >> 3 & 7) ^ ((row << BITS & 7) | (row & 7) >> (3 - BITS));
}

// R rows of a strip as right operands: b[k][j] has column j and rows 16 k .. + 15.
template <int R, int V>
struct Strip {
    Pack b[R / TILE][V][2];
    unsigned peak;  // of the strip: the numbers were scaled by its power

    // A real row, n = first + row * stride + column, zero beyond its length; scaled by the strip's own power.
    template <bool SHARED, typename Source>
    __device__ __forceinline__ void fetch(const Source& source, int first, int stride, int lane) {
        const int at = first + lane % 4 * 2 * stride + lane / 4 * V;
        if (source.gate == nullptr)
            load<SHARED, false>(source, at, stride);
        else
            load<SHARED, true>(source, at, stride);
        __syncwarp();  // one strip after another: the numbers of two in fp32 would not fit the registers
    }

    // The same, scaled by a power that is known; zeros in place of a row that is not finite.
    template <bool SHARED, typename Source>
    __device__ __forceinline__ void fetch(const Source& source, int first, int stride, int lane, const Power& power) {
        const int at = first + lane % 4 * 2 * stride + lane / 4 * V;
        Peak<typename Source::Number> unused;
        float x[R / TILE][4][V];
        if (source.gate == nullptr)
            wide<SHARED, false>(source, at, stride, x, unused);
        else
            wide<SHARED, true>(source, at, stride, x, unused);
        scale(x, power);
        if (!power.finite)
            clear();
        else if (power.raise != 0)
            times(power.raised());
    }

    // fp16 numbers as they are.
    __device__ __forceinline__ void take(const __half* from, int first, int stride, int lane) {
        const __half* const at = from + first + lane % 4 * 2 * (long long)stride + lane / 4 * V;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            unsigned w[4][V / 2];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                load_plane(at + (TILE * k + i % 2 + i / 2 * 8) * (long long)stride, w[i]);
#pragma unroll
            for (int j = 0; j < V; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    b[k][j][i] = __byte_perm(w[2 * i][j / 2], w[2 * i + 1][j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
        }
    }

    template <bool SHARED, bool GATED, typename Source>
    __device__ __forceinline__ void load(const Source& source, int at, int stride) {
        float x[R / TILE][4][V];
        Peak<typename Source::Number> most;
        wide<SHARED, GATED>(source, at, stride, x, most);
        peak = warp_max(most.bits());
        scale(x, Power(peak));
    }

    template <bool SHARED, bool GATED, typename Source, typename Most>
    static __device__ __forceinline__ void wide(
        const Source& source, int at, int stride, float (&x)[R / TILE][4][V], Most& most) {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                source.template wide<V, SHARED, GATED>(at + (TILE * k + i % 2 + i / 2 * 8) * stride, x[k][i], most);
    }

    __device__ __forceinline__ void scale(const float (&x)[R / TILE][4][V], const Power& power) {
        const float up = power.up();
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) {
                b[k][j][0] = pack(x[k][0][j] * up, x[k][1][j] * up);
                b[k][j][1] = pack(x[k][2][j] * up, x[k][3][j] * up);
            }
    }

    // Brings the numbers to the power of the whole row; a row that is not finite becomes zeros, lest it spoil
    // the one that shares its transform.
    __device__ __forceinline__ void rescale(const Power& row) {
        const Power mine(peak);
        if (!row.finite)
            clear();
        else if (mine.exponent != row.exponent || row.raise != 0)
            times(mine.to(row));
    }

    __device__ __forceinline__ void times(Pack ratio) {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) b[k][j][0] = mul2(b[k][j][0], ratio), b[k][j][1] = mul2(b[k][j][1], ratio);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) b[k][j][0] = b[k][j][1] = 0;
    }

    // What a row of a pair asks of its strips: the peak, with the sum of the scaled squares (Squares) in place
    // of its mantissa. Words compare as the exponents do; that of zeros, and no other, is zero. (Beside peaks
    // below 2^-126 or above 2^127 the sum is up to four times too small: their power is that of the next.)
    __device__ __forceinline__ unsigned size() const {
        static_assert(R * 8 * V * 16 * 256 < 1 << 23, "the sum of squares fits the mantissa");
        Squares squares;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) squares.add(b[k][j][0]), squares.add(b[k][j][1]);
        return (peak & 0x7f800000u) | max(squares.total(), min(peak, 1u));
    }
};

// The peak of a block's row from those of its strips; `slots` has one for each. A barrier of the caller's lies
// between writing and reading, and another before they are written again.
template <int STRIPS>
__device__ __forceinline__ Power row_power(const unsigned* slots, int lane) {
    static_assert(STRIPS <= LANES, "a lane reads the peak of a strip");
    return Power(warp_max(lane < STRIPS ? slots[lane] : 0u));
}

// The same for the two rows of a pair from what Strip::size says, each brought to the norm of the other.
template <int STRIPS>
__device__ __forceinline__ void pair_powers(const unsigned* slots, int lane, Power& re, Power& im) {
    const auto row = [&](const unsigned* sizes, Power& power) {
        const unsigned mine = lane < STRIPS ? sizes[lane] : 0u, most = warp_max(mine);
        power = Power(most);
        const unsigned less = ((most & 0x7f800000u) - (mine & 0x7f800000u)) >> 22;  // powers of two of a square
        return (float)warp_sum((mine & 0x7fffffu) >> min(less, 31u));
    };
    static_assert(STRIPS <= LANES, "a lane reads the size of a strip");
    const float re2 = row(slots, re), im2 = row(slots + LANES, im);
    balance(re, re2, im, im2);
}

// The first piece of row 16 k + i of an inner matrix of P columns, in the order that store_rows needs.
template <int P>
__device__ __forceinline__ int row_piece(int k, int i) {
    return P == TILE ? (TILE * k + i % 8 * 2 + i / 8) * 2 : (TILE * k + i) * (P / 8);
}

// Results of the chain, rows 16 m .. + 15 of row `row`, times the conjugate outer twiddle, back to shared memory.
template <int A, int P, int V>
__device__ __forceinline__ void store_rows(
    uint4* re, uint4* im, const uint4* twiddle, int pieces, int row, int m, int lane, const Sum<A>* r, const Sum<A>* i) {
    Tile xr[P / 8], xi[P / 8];
#pragma unroll
    for (int n = 0; n < P / 8; ++n) xr[n] = narrow(r[n]), xi[n] = narrow(i[n]);
    constexpr int COUNT = P / TILE;  // pieces of a thread
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        const Planes3<false> w(twiddle, row * (A * P / 256) + m * COUNT + c, lane);
        const int half = P == TILE ? 0 : c / (P / 32), part = P == TILE ? 0 : c % (P / 32);
        const int run = P == TILE ? 8 * m + g : (TILE * m + 8 * half + g) * (P / 32) + part;
        Pack a[4], b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int tile = P == TILE ? j % 2 : 4 * part + j;
            const int v = P == TILE ? j / 2 : half;
            a[j] = xr[tile].v[v], b[j] = xi[tile].v[v];
            twist<true>(a[j], b[j], w.re.r[j], w.im.r[j]);
        }
        const int at = row * pieces + place<V>(4 * run + t, row);
        re[at] = uint4{a[0], a[1], a[2], a[3]};
        im[at] = uint4{b[0], b[1], b[2], b[3]};
    }
}

// Row tile m of F x, for the 8 V columns of a strip.
template <int R, int V, bool COMPLEX>
__device__ __forceinline__ void sum_columns(
    const uint4* matrix, int m, const Pack (&xr)[R / TILE][V][2], const Pack (&xi)[R / TILE][V][2], Sum<R> (&sr)[V],
    Sum<R> (&si)[V], int tiles, int lane) {
#pragma unroll
    for (int j = 0; j < V; ++j) sr[j].clear(), si[j].clear();
#pragma unroll
    for (int k = 0; k < R / TILE; ++k) {
        if (k < tiles) {
            const Planes3<COMPLEX> f(matrix, m * (R / TILE) + k, lane);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if constexpr (COMPLEX)
                    multiply(sr[j], si[j], f, xr[k][j][0], xr[k][j][1], xi[k][j][0], xi[k][j][1]);
                else
                    sr[j].add(f.re, xr[k][j][0], xr[k][j][1]), si[j].add(f.im, xr[k][j][0], xr[k][j][1]);
            }
        }
    }
}

// X[k, r] = T(k, r) sum_n F[k, n] x[n, r] for the 8 V columns of `strip`, into rows of `pieces` pieces.
template <int R, int V, bool COMPLEX>
__device__ __forceinline__ void columns_forward(
    const uint4* matrix, const uint4* twiddle, const Pack (&xr)[R / TILE][V][2], const Pack (&xi)[R / TILE][V][2],
    uint4* re, uint4* im, int pieces, int strip, int tiles, int lane) {
    const int g = lane / 4, t = lane % 4;
    // Rolled for long columns: addresses would spill.
#pragma unroll (COMPLEX && R > 64 ? 1 : 1024)
    for (int m = 0; m < R / TILE; ++m) {
        Sum<R> sr[V], si[V];
        sum_columns<R, V, COMPLEX>(matrix, m, xr, xi, sr, si, tiles, lane);
        Tile yr[V], yi[V];
#pragma unroll
        for (int j = 0; j < V; ++j) yr[j] = narrow(sr[j]), yi[j] = narrow(si[j]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = TILE * m + 8 * i + g;
            const int tile = (strip * (R / TILE) + m) * 2 + i;
            if constexpr (V == 2) {  // half a piece
                const uint4 w = twiddle[tile * LANES + lane];
                twist<false>(yr[0].v[i], yi[0].v[i], w.x, w.z);
                twist<false>(yr[1].v[i], yi[1].v[i], w.y, w.w);
                const int at = 2 * (row * pieces + place<V>(strip * V + t / 2, row)) + t % 2;
                reinterpret_cast<uint2*>(re)[at] = uint2{yr[0].v[i], yr[1].v[i]};
                reinterpret_cast<uint2*>(im)[at] = uint2{yi[0].v[i], yi[1].v[i]};
            } else {
#pragma unroll
                for (int h = 0; h < V / 4; ++h) {
                    const Planes3<false> w(twiddle, tile * (V / 4) + h, lane);
                    Pack a[4], b[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        a[j] = yr[4 * h + j].v[i], b[j] = yi[4 * h + j].v[i];
                        twist<false>(a[j], b[j], w.re.r[j], w.im.r[j]);
                    }
                    const int at = row * pieces + place<V>(strip * V + t * (V / 4) + h, row);
                    re[at] = uint4{a[0], a[1], a[2], a[3]};
                    im[at] = uint4{b[0], b[1], b[2], b[3]};
                }
            }
        }
    }
}

// x[n, r] = sum_k F*[n, k] X[k, r] for 32 columns from 32 `group` on: emit(n, column, re[8], im[8]) for eight
// neighbouring columns. REAL: im is not computed. Row tiles from `tiles` on are not wanted.
template <int R, int V, bool REAL, typename Emit>
__device__ __forceinline__ void columns_inverse(
    const uint4* matrix, const uint4* re, const uint4* im, int pieces, int group, int tiles, int lane, Emit emit) {
    constexpr bool KEEP = R <= 64;  // operands of all rows stay in registers
    const int g = lane / 4, t = lane % 4;
    const unsigned from_re = shared_address(re), from_im = shared_address(im);
    const auto load = [&](int k, Pack(&r)[2][4], Pack(&i)[2][4]) {
        const int row = TILE * k + lane % TILE;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int at = row * pieces + place<V>(group * 4 + 2 * j + lane / TILE, row);
            load_right(r[j], from_re + at * 16);
            load_right(i[j], from_im + at * 16);
        }
    };
    Pack xr[R / TILE][2][4], xi[R / TILE][2][4];
    if constexpr (KEEP) {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) load(k, xr[k], xi[k]);
    }
    const auto row_tile = [&](int m) {
        Result<true> yr[4], yi[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) yr[j].clear(), yi[j].clear();
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            if constexpr (!KEEP) load(k, xr[k], xi[k]);
            const Planes3<!REAL> f(matrix, m * (R / TILE) + k, lane);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const Pack* const r = &xr[k][j / 2][j % 2 * 2];
                const Pack* const i = &xi[k][j / 2][j % 2 * 2];
                if constexpr (REAL)  // the planes are (re, -im)
                    yr[j].add(f.re, r[0], r[1]), yr[j].add(f.im, i[0], i[1]);
                else
                    multiply(yr[j], yi[j], f, r[0], r[1], i[0], i[1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float a[8], b[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) a[j] = yr[j / 2].v[2 * i + j % 2], b[j] = yi[j / 2].v[2 * i + j % 2];
            emit(TILE * m + 8 * i + g, group * 32 + 8 * t, a, b);
        }
    };
    if constexpr (REAL && R > 64) {  // rolled, as above
#pragma unroll 1
        for (int m = 0; m < tiles; ++m) row_tile(m);
    } else {
#pragma unroll
        for (int m = 0; m < R / TILE; ++m)
            if (m < tiles) row_tile(m);
    }
}

}  // namespace fftgen

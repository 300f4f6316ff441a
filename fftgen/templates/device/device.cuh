// The device stage: a DFT along columns between a tensor and the workspace (fp16, real plane before imaginary),
// a strip of 8 V columns to a warp, everything in registers.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// The largest of `count` numbers of a row from `first` on, gated.
template <typename T>
__device__ __forceinline__ unsigned row_peak(const RealSource<T>& source, bool vector, int first, int count, int thread, int threads) {
    Peak<T> peak;
    const int end = min(first + count, source.length);
    if (vector) {
        float x[VECTOR];
        for (int n = first + thread * VECTOR; n < end; n += threads * VECTOR) {
            if (source.gate == nullptr)
                source.template wide<VECTOR, false, false>(n, x, peak);
            else
                source.template wide<VECTOR, false, true>(n, x, peak);
        }
    } else {
        for (int n = first + thread; n < end; n += threads)
            peak.add(source.gate == nullptr ? widen(source.u[n]) : widen(source.u[n]) * widen(source.gate[n]));
    }
    return peak.bits();
}

// Rows of a pair, as the peaks kernel finds them for the others: fp32 bits of the largest absolute values, and
// the sums of squares. A double holds the square of every fp32 number.
struct PairSize {
    unsigned peak[2];
    double squares[2];

    __device__ __forceinline__ void powers(Power& re, Power& im) const {
        re = Power(peak[0]), im = Power(peak[1]);
        balance(re, scaled(squares[0], re), im, scaled(squares[1], im));
    }

    static __device__ __forceinline__ double power_of_four(int n) {
        return __hiloint2double((1023 + 2 * n) << 20, 0);
    }
    // Of numbers that the power has brought to [1, 2).
    static __device__ __forceinline__ float scaled(double sum, const Power& power) {
        return (float)(sum * power_of_four(127 - (int)power.exponent));
    }
};

template <typename T>
__device__ __forceinline__ PairSize& pair_size(const Args<T>& args, int slot) {
    return reinterpret_cast<PairSize*>(args.peaks)[args.first + (long long)slot];
}

// What a thread has seen of a row of a pair: the peak, and the sum of squares scaled by its power.
template <typename T>
struct Seen {
    Peak<T> peak;
    Power power = Power(0);
    float squares = 0.0f;

    // Numbers that are in the peak already.
    template <int V>
    __device__ __forceinline__ void add(const float (&x)[V]) {
        bring(Power(peak.bits()));
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < V; ++i) squares += x[i] * up * (x[i] * up);
    }

    // To the power of a larger peak.
    __device__ __forceinline__ void bring(const Power& larger) {
        const float ratio = __uint_as_float((127u - min(larger.exponent - power.exponent, 127u)) << 23);
        squares *= ratio * ratio, power = larger;
    }

    // Adds a warp's share to its row. It is cut to 8 bits: the sum in double is then exact, in whatever order
    // the warps come, as long as their shares lie within a factor of 2^34 (2^11 of them in the longest row);
    // beyond, the order shows in the last place of a sum of which only the power of two matters.
    __device__ __forceinline__ void report(PairSize& size, int row, int lane) {
        const unsigned most = warp_max(peak.bits());
        bring(Power(most));
        const unsigned sum = max(warp_sum(Squares::units(squares)), 1u);
        if (lane != 0 || most == 0) return;
        atomicMax(&size.peak[row], most);
        const float cut = __uint_as_float(__float_as_uint((float)sum) & 0xffff0000u);
        const int units = -4;  // 4^-4, of Squares
        atomicAdd(&size.squares[row], cut * PairSize::power_of_four((int)power.exponent - 127 + units));
    }
};

// Looks at `count` numbers of a row from `first` on, gated.
template <typename T>
__device__ __forceinline__ Seen<T> look(const RealSource<T>& source, bool vector, int first, int count, int thread, int threads) {
    Seen<T> seen;
    const int end = min(first + count, source.length);
    if (vector) {
        float x[VECTOR];
        for (int n = first + thread * VECTOR; n < end; n += threads * VECTOR) {
            if (source.gate == nullptr)
                source.template wide<VECTOR, false, false>(n, x, seen.peak);
            else
                source.template wide<VECTOR, false, true>(n, x, seen.peak);
            seen.add(x);
        }
    } else {
        for (int n = first + thread; n < end; n += threads) {
            const float x[1]{source.gate == nullptr ? widen(source.u[n]) : widen(source.u[n]) * widen(source.gate[n])};
            seen.peak.add(x[0]);
            seen.add(x);
        }
    }
    return seen;
}

// A copy of a strip in shared memory, for rows that start anywhere: R rows of COLUMNS numbers, then their gates.
template <int R, int COLUMNS, typename T>
__device__ __forceinline__ RealSource<T> staged_strip(const RealSource<T>& source, void* memory, int first, int stride, int lane) {
    T* const copy = reinterpret_cast<T*>(memory);
    for (int i = lane; i < R * COLUMNS; i += LANES) {
        const int n = first + i / COLUMNS * stride + i % COLUMNS;
        copy[i] = n < source.length ? source.u[n] : T(0.0f);
        if (source.gate != nullptr) copy[R * COLUMNS + i] = n < source.length ? source.gate[n] : T(0.0f);
    }
    return {copy, source.gate == nullptr ? nullptr : copy + R * COLUMNS, R * COLUMNS, true};
}

// Twiddles in two levels: T(k, r) = high(k, r / SPLIT) low(k, r % SPLIT), SPLIT a multiple of 8 V columns.
struct TwoLevels {
    const uint4* low;
    const uint2* high;
};

// X[k, r] = T(k, r) sum_n F[k, n] x[n, r] for a strip, into rows of the workspace, 2 V columns of a thread as
// they stand: place 2 j + b of a run of 2 V is column j + V b.
template <int R, int V, int REST, int SPLIT, bool COMPLEX>
__device__ __forceinline__ void device_forward(
    const uint4* matrix, const TwoLevels& twiddle, const Pack (&xr)[R / TILE][V][2], const Pack (&xi)[R / TILE][V][2],
    const Complex& to, int strip, int tiles, int lane) {
    const int g = lane / 4, t = lane % 4;
    constexpr int STRIPS = SPLIT / (8 * V);
#pragma unroll
    for (int m = 0; m < R / TILE; ++m) {
        Sum<R> sr[V], si[V];
        sum_columns<R, V, COMPLEX>(matrix, m, xr, xi, sr, si, tiles, lane);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = TILE * m + 8 * i + g;
            const uint2 high = twiddle.high[strip / STRIPS * R + row];
            const int tile = (strip % STRIPS * (R / TILE) + m) * 2 + i;
            Pack a[V], b[V];
#pragma unroll
            for (int j = 0; j < V; ++j) {
                a[j] = narrow(sr[j]).v[i], b[j] = narrow(si[j]).v[i];
                twist<false>(a[j], b[j], high.x, high.y);
            }
            const long long at = row * (long long)REST + strip * 8 * V + t * 2 * V;
            if constexpr (V == 2) {
                const uint4 w = twiddle.low[tile * LANES + lane];
                twist<false>(a[0], b[0], w.x, w.z);
                twist<false>(a[1], b[1], w.y, w.w);
                *reinterpret_cast<uint2*>(to.re + at) = uint2{a[0], a[1]};
                *reinterpret_cast<uint2*>(to.im + at) = uint2{b[0], b[1]};
            } else {
#pragma unroll
                for (int h = 0; h < V / 4; ++h) {
                    const Planes3<false> w(twiddle.low, tile * (V / 4) + h, lane);
#pragma unroll
                    for (int j = 0; j < 4; ++j) twist<false>(a[4 * h + j], b[4 * h + j], w.re.r[j], w.im.r[j]);
                    *reinterpret_cast<uint4*>(to.re + at + 8 * h) = uint4{a[4 * h], a[4 * h + 1], a[4 * h + 2], a[4 * h + 3]};
                    *reinterpret_cast<uint4*>(to.im + at + 8 * h) = uint4{b[4 * h], b[4 * h + 1], b[4 * h + 2], b[4 * h + 3]};
                }
            }
        }
    }
}

// x[n, r] = sum_k F*[n, k] T*(k, r) X[k, r] for a strip of the workspace: emit(n, column, re, im) for 2 V
// neighbouring columns. REAL: im is not computed. Row tiles from `tiles` on are not wanted.
template <int R, int V, int REST, int SPLIT, bool REAL, typename Emit>
__device__ __forceinline__ void device_inverse(
    const uint4* matrix, const uint4* low, const uint4* high, const Complex& from, int strip, int tiles, int lane, Emit emit) {
    const int t = lane % 4;
    constexpr int STRIPS = SPLIT / (8 * V);
    Strip<R, V> re, im;
    re.take(from.re, strip * 8 * V, REST, lane);
    im.take(from.im, strip * 8 * V, REST, lane);
#pragma unroll
    for (int k = 0; k < R / TILE; ++k) {
        const uint4 h = high[(strip / STRIPS * (R / TILE) + k) * 4 + t];
#pragma unroll
        for (int c = 0; c < V / 2; ++c) {
            const Planes3<false> w(low, (strip % STRIPS * (R / TILE) + k) * (V / 2) + c, lane);
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    Pack &a = re.b[k][2 * c + j][i], &b = im.b[k][2 * c + j][i];
                    twist<true>(a, b, i == 0 ? h.x : h.z, i == 0 ? h.y : h.w);
                    twist<true>(a, b, w.re.r[2 * j + i], w.im.r[2 * j + i]);
                }
        }
    }
#pragma unroll
    for (int m = 0; m < R / TILE; ++m) {
        if (m < tiles) {
            Result<true> yr[V], yi[V];
#pragma unroll
            for (int j = 0; j < V; ++j) yr[j].clear(), yi[j].clear();
#pragma unroll
            for (int k = 0; k < R / TILE; ++k) {
                const Planes3<!REAL> f(matrix, m * (R / TILE) + k, lane);
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    const Pack* const r = re.b[k][j];
                    const Pack* const i = im.b[k][j];
                    if constexpr (REAL)  // the planes are (re, -im)
                        yr[j].add(f.re, r[0], r[1]), yr[j].add(f.im, i[0], i[1]);
                    else
                        multiply(yr[j], yi[j], f, r[0], r[1], i[0], i[1]);
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float a[2 * V], b[2 * V];
#pragma unroll
                for (int j = 0; j < 2 * V; ++j) a[j] = yr[j % V].v[2 * i + j / V], b[j] = yi[j % V].v[2 * i + j / V];
                emit(TILE * m + 8 * i + lane / 4, strip * 8 * V + 2 * V * t, a, b);
            }
        }
    }
}

}  // namespace fftgen

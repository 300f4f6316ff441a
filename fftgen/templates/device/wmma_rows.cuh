// Rows of a tensor for tile engine "wmma" in fp16: each scaled by a power of two of its own (design 1.8), which is
// found first. Rows that are not finite go in as zeros, lest they spoil those that share their transform.
#pragma once

#include "fftgen/scaled_peaks.cuh"
#include "fftgen/wmma.cuh"

namespace fftgen {

// One row on its way in: eight consecutive numbers at a time, rounded once.
template <typename T>
struct ScaledRow {
    RealSource<T> row;
    Power power;

    __device__ __forceinline__ Vector<T> real(int n) const {
        if (!power.finite || power.zero) return zeros<T>();
        const float up = power.up() * power.factor;
        float x[VECTOR];
        row.numbers(n, x);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) x[i] *= up;
        return narrow<T>(x);
    }
    __device__ __forceinline__ void load(int n, Vector<T>& re, Vector<T>&) const { re = real(n); }
};

template <typename T>
struct ScaledPair {
    ScaledRow<T> even, odd;

    __device__ __forceinline__ void load(int n, Vector<T>& re, Vector<T>& im) const { re = even.real(n), im = odd.real(n); }
};

// What several warps have seen of the rows of one transform, each for all others beside the first row of its staging
// tile, where nothing else is; a warp that has a transform to itself needs no place. A barrier of the caller's has to
// lie between a look and the next one's writing.
template <int WARPS, typename Size, typename Take>
__device__ __forceinline__ void together(const Size& mine, float* staging, int warp, int lane, Take take) {
    if constexpr (WARPS == 1) {
        take(mine);
    } else {
        static_assert(sizeof(Size) <= (STAGING_PITCH - TILE) * sizeof(float), "room between rows of 16 columns");
        const auto place = [&](int i) { return reinterpret_cast<Size*>(staging + i * (2 * TILE * STAGING_PITCH) + TILE); };
        if (lane == 0) *place(warp) = mine;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < WARPS; ++i) take(*place(i));
    }
}

template <int WARPS, typename T>
__device__ __forceinline__ ScaledRow<T> scaled(const RealSource<T>& row, float* staging, int warp, int lane) {
    const unsigned mine = warp_max(row_peak(row, row.vector, 0, row.length, warp * LANES + lane, WARPS * LANES));
    unsigned peak = 0;
    together<WARPS>(mine, staging, warp, lane, [&](unsigned other) { peak = max(peak, other); });
    return {row, Power(peak)};
}

template <int WARPS, typename T>
__device__ __forceinline__ ScaledPair<T> scaled(const PairSource<T>& rows, float* staging, int warp, int lane) {
    PairSize mine, size{};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const RealSource<T>& row = i == 0 ? rows.even : rows.odd;
        mine.peak[i] = look(row, row.vector, 0, row.length, warp * LANES + lane, WARPS * LANES).share(mine.squares[i]);
    }
    together<WARPS>(mine, staging, warp, lane, [&](const PairSize& other) {
#pragma unroll
        for (int i = 0; i < 2; ++i) size.peak[i] = max(size.peak[i], other.peak[i]), size.squares[i] += other.squares[i];
    });
    ScaledPair<T> pair{{rows.even, Power(0)}, {rows.odd, Power(0)}};
    size.powers(pair.even.power, pair.odd.power);
    return pair;
}

// The same by what the peaks kernel found.
template <typename T>
__device__ __forceinline__ ScaledRow<T> scaled(const Args<T>& args, int slot, const RealSource<T>& row) {
    return {row, Power(args.peaks[args.first + slot])};
}
template <typename T>
__device__ __forceinline__ ScaledPair<T> scaled(const Args<T>& args, int slot, const PairSource<T>& rows) {
    ScaledPair<T> pair{{rows.even, Power(0)}, {rows.odd, Power(0)}};
    pair_size(args, slot).powers(pair.even.power, pair.odd.power);
    return pair;
}

// Undoes on the way out what was done to them.
template <typename T>
__device__ __forceinline__ RealSink<T> unscaled(RealSink<T> sink, const ScaledRow<T>& row) {
    sink.scale *= row.power.down();
    return sink;
}
template <typename T>
__device__ __forceinline__ PairSink<RealSink<T>> unscaled(const PairSink<RealSink<T>>& sink, const ScaledPair<T>& rows) {
    return {unscaled(sink.even, rows.even), unscaled(sink.odd, rows.odd)};
}

}  // namespace fftgen

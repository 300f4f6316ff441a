// Signals of fp32, and what the way there and the way back share (planner/simt.py).
#pragma once

#include "fftgen/filter.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

__device__ __forceinline__ float2 conjugate(float2 z) { return {z.x, -z.y}; }

template <int N>
__device__ __forceinline__ const float2* spectrum_of(const Args<float>& args, int h) {
    return reinterpret_cast<const float2*>(args.spectrum) + h * (long long)N;
}

// Numbers of a row at rising places: from `length` on zeros. Most threads have all of theirs before that.
template <int R, typename Place>
__device__ __forceinline__ void numbers(const float* row, int length, Place place, float (&x)[R]) {
    if (place(R - 1) < length) {
#pragma unroll
        for (int j = 0; j < R; ++j) x[j] = __ldg(row + place(j));
    } else {
#pragma unroll
        for (int j = 0; j < R; ++j) x[j] = tap_at(row, place(j), length);
    }
}

// The same times those of its gate if there is one.
template <int R, typename Place>
__device__ __forceinline__ void take(const float* row, const float* gate, int length, Place place, float (&u)[R]) {
    numbers(row, length, place, u);
    if (gate == nullptr) return;
    float g[R];
    numbers(gate, length, place, g);
#pragma unroll
    for (int j = 0; j < R; ++j) u[j] *= g[j];
}
template <int R, typename Place>
__device__ __forceinline__ void take(const Args<float>& args, int b, int h, Place place, float (&u)[R]) {
    take(args.u.given(b, h), args.in_gate.row(b, h), args.length, place, u);
}

// Results to a row, gated.
template <int R, typename Place>
__device__ __forceinline__ void put(float* row, const float* gate, int length, Place place, const float (&y)[R]) {
    float g[R];
    if (gate != nullptr) {
        numbers(gate, length, place, g);
    } else {
#pragma unroll
        for (int j = 0; j < R; ++j) g[j] = 1.0f;
    }
    if (place(R - 1) < length) {
#pragma unroll
        for (int j = 0; j < R; ++j) row[place(j)] = y[j] * g[j];
    } else {
#pragma unroll
        for (int j = 0; j < R; ++j)
            if (place(j) < length) row[place(j)] = y[j] * g[j];
    }
}

// The same by what undoes the scale of the spectrum, with each of two gates where there may be TWO results.
template <bool TWO, int R, typename Place>
__device__ __forceinline__ void give(const Args<float>& args, int b, int h, Place place, float (&y)[R]) {
    const float down = args.scale[h].y;
#pragma unroll
    for (int j = 0; j < R; ++j) y[j] *= down;
    put(args.y.given(b, h), args.out_gate.row(b, h), args.results, place, y);
    if (TWO && args.twin.data != nullptr) put(args.twin.given(b, h), args.twin_gate.row(b, h), args.results, place, y);
}

}  // namespace fftgen

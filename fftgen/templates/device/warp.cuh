// A warp's own transforms: rows of a tensor through shared memory into right operands, and results back.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// A number written as outer * count + inner.
struct Place {
    int outer, inner;
};

// Of a launch's transform: its channel, and where it stands there.
template <typename T>
__device__ __forceinline__ Place place_of(const Args<T>& args, int item) {
    const int id = args.first + item, h = channel_of(args, id);
    return {h, id - h * args.per_channel};
}

// The place `steps` (at most a few) further on: cheaper than dividing again.
__device__ __forceinline__ Place step(Place at, int steps, int count) {
#pragma unroll
    for (int i = 0; i < steps; ++i)
        if (++at.inner == count) at.inner = 0, ++at.outer;
    return at;
}

// Asks for an aligned row of a tensor, of which a warp will have a copy in shared memory.
template <int N, typename T>
__device__ __forceinline__ void ask(uint4* copy, const Signal<const T>& tensor, int b, int h, int length, int lane) {
    const size_t from = __cvta_generic_to_global(tensor.given(b, h) + lane * VECTOR);
    const unsigned to = shared_address(copy + lane);
#pragma unroll
    for (int i = 0; i < N / (VECTOR * LANES); ++i)
        if ((i * LANES + lane) * VECTOR < length) copy_async(to + i * LANES * 16, from + i * LANES * 16);
}

// Gates of a result in shared memory, on 16 bytes; or none.
template <typename T>
struct CopiedGate {
    const T* copy;
    int length;

    template <int V>
    __device__ __forceinline__ Held<V> hold(int n) const {
        Held<V> held = {};
        if (copy != nullptr && n < length) load_words<true>(copy + n, held.g);
        return held;
    }
};

// Those of two results.
template <typename Gates>
struct TwoGates {
    Gates first, second;

    template <int V>
    __device__ __forceinline__ auto hold(int n) const {
        return Two<decltype(first.template hold<V>(n))>{first.template hold<V>(n), second.template hold<V>(n)};
    }
};

// Rows 16 m .. + 15 of P columns: the planner ordered them so that a thread has neighbours (fragments.py, pi).
// `gates`: what holds those of the results, the sink itself or copies of them.
template <int P, typename Sink, typename Gates>
__device__ __forceinline__ void emit_rows(
    const Sink& sink, const Gates& gates, int m, int lane, const Result<true>* re, const Result<true>* im) {
    constexpr int RUN = P == TILE ? 4 : 8;  // neighbours
    const int g = lane / 4, t = lane % 4;
    const auto at = [&](int i, int c) { return (TILE * m + 8 * i + g) * P + 4 * RUN * c + RUN * t; };
#pragma unroll
    for (int c = 0; c < P / (4 * RUN); ++c) {
        const auto low = gates.template hold<RUN>(at(0, c)), high = gates.template hold<RUN>(at(1, c));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float a[RUN], b[RUN];
#pragma unroll
            for (int j = 0; j < RUN; ++j) {
                a[j] = re[c * (RUN / 2) + j / 2].v[2 * i + j % 2];
                b[j] = im[c * (RUN / 2) + j / 2].v[2 * i + j % 2];
            }
            sink.store(at(i, c), a, b, i == 0 ? low : high);
        }
    }
}
template <int P, typename Sink>
__device__ __forceinline__ void emit_rows(
    const Sink& sink, int m, int lane, const Result<true>* re, const Result<true>* im) {
    emit_rows<P>(sink, sink, m, lane, re, im);
}

}  // namespace fftgen

// The gradient of a filter in the frequency domain: sum over the batch of conj(X) V, X and V the spectra of two
// signals (design 1.5). A worker (a block or a warp) takes transforms of one channel, and, of transforms longer
// than it can hold, one row. Each thread has places of its own for its share of X and of the sum.
//
// Where the gradients of signals are wanted as well, both spectra go on through the filter and back, X through
// K to the gradient of the output's gate, V through conj(K) to those of u and of its gate.
#pragma once

#include "fftgen/scaled.cuh"
#include "fftgen/chain.cuh"
#include "fftgen/share.cuh"

namespace fftgen {

// Where a worker keeps its sum: of every row of a chain the first HELD of its TILES tiles in shared memory, the others
// in its place in device memory. Of a plane of a tile first stand the first four numbers of every lane, then their other
// four: the lanes of a warp reach neighbouring 16-byte pieces.
template <int HELD, int TILES>
struct Sums {
    static constexpr int SIZE = 4 * LANES;  // of a tile, in pieces
    float4 *held, *memory;

    // `tile` of a row, known when this is compiled.
    __device__ __forceinline__ float4& piece(int row, int tile, int plane, int half, int lane) const {
        const int at = tile * SIZE + (2 * plane + half) * LANES + lane;
        return tile < HELD ? held[row * (HELD * SIZE) + at] : memory[row * (TILES * SIZE) + at];
    }

    // Before the first transform of so many rows: zeros, or what another launch left.
    template <int ROWS>
    __device__ __forceinline__ void open(bool fresh, int thread, int threads) const {
        if (HELD == 0 && !fresh) return;
        for (int i = thread; i < ROWS * TILES * SIZE; i += threads) {
            const int at = place(i);
            if (HELD == TILES || at >= 0)
                held[at] = fresh ? float4{0, 0, 0, 0} : memory[i];
            else if (fresh)
                memory[i] = float4{0, 0, 0, 0};
        }
    }
    template <int ROWS>
    __device__ __forceinline__ void close(int thread, int threads) const {
        if (HELD == 0) return;
        for (int i = thread; i < ROWS * TILES * SIZE; i += threads)
            if (const int at = place(i); HELD == TILES || at >= 0) memory[i] = held[at];
    }

private:
    // Where a piece of device memory stands in shared memory, or -1.
    static __device__ __forceinline__ int place(int piece) {
        if (HELD == TILES) return piece;
        const int row = piece / (TILES * SIZE), at = piece % (TILES * SIZE);
        return at < HELD * SIZE ? row * (HELD * SIZE) + at : -1;
    }
};

// Two of a lane's eight numbers of a tile of a spectrum: kept, or two results side by side.
__device__ __forceinline__ void two(const Fragment& x, int j, float (&y)[2]) { Word<__half>::widen(x.r[j], y[0], y[1]); }
__device__ __forceinline__ void two(const Result<false> (&x)[2], int j, float (&y)[2]) {
    Word<__half>::widen(x[j / 2].v[j % 2], y[0], y[1]);
}
__device__ __forceinline__ void two(const Result<true> (&x)[2], int j, float (&y)[2]) {
    y[0] = x[j / 2].v[j % 2 * 2], y[1] = x[j / 2].v[j % 2 * 2 + 1];
}

// A lane's eight numbers of a tile of the sum.
struct Eight {
    float re[8], im[8];

    template <typename Place>
    __device__ __forceinline__ void load(const Place& sums, int row, int tile, int lane) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float4 r = sums.piece(row, tile, 0, i, lane), s = sums.piece(row, tile, 1, i, lane);
            re[4 * i] = r.x, re[4 * i + 1] = r.y, re[4 * i + 2] = r.z, re[4 * i + 3] = r.w;
            im[4 * i] = s.x, im[4 * i + 1] = s.y, im[4 * i + 2] = s.z, im[4 * i + 3] = s.w;
        }
    }
    template <typename Place>
    __device__ __forceinline__ void store(const Place& sums, int row, int tile, int lane) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sums.piece(row, tile, 0, i, lane) = float4{re[4 * i], re[4 * i + 1], re[4 * i + 2], re[4 * i + 3]};
            sums.piece(row, tile, 1, i, lane) = float4{im[4 * i], im[4 * i + 1], im[4 * i + 2], im[4 * i + 3]};
        }
    }

    // += scale conj(x) v. In fp32: sums over a batch must not lose what every term keeps.
    template <typename X, typename V>
    __device__ __forceinline__ void add(const X& xr, const X& xi, const V& vr, const V& vi, float scale) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float a[2], b[2], c[2], d[2];
            two(xr, j, a), two(xi, j, b), two(vr, j, c), two(vi, j, d);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                re[2 * j + k] += scale * (a[k] * c[k] + b[k] * d[k]);
                im[2 * j + k] += scale * (a[k] * d[k] - b[k] * c[k]);
            }
        }
    }
    template <typename V>
    __device__ __forceinline__ void add(const uint4& xr, const uint4& xi, const V& vr, const V& vi, float scale) {
        add(Fragment{xr.x, xr.y, xr.z, xr.w}, Fragment{xi.x, xi.y, xi.z, xi.w}, vr, vi, scale);
    }
};

// Whether anything is wanted of one side but the filter's gradient.
template <typename T>
__device__ __forceinline__ bool wanted(const GradientArgs<T>& args, int side) {
    return side == 0 ? args.x.y.data != nullptr : args.v.y.data != nullptr;
}

// Where the transform of one side goes: what is gated to y and, of V, also to twin. x, v: the sinks of both sides.
template <typename T>
__device__ __forceinline__ TwinSink<T, true> sink_of(int side, const RealSink<T>& x, const RealSink<T>& v, T* twin, const T* twin_gate) {
    return {
        {side == 0 ? x.y : v.y, side == 0 ? x.gate : v.gate, x.scale, x.length, x.vector}, side == 0 ? nullptr : twin, twin_gate};
}

template <typename T>
__device__ __forceinline__ TwinSink<T, true> result_sink(const GradientArgs<T>& args, int side, int b, int h) {
    return sink_of(side, real_sink(args.x, b, h), real_sink(args.v, b, h), args.v.twin.row(b, h), args.v.twin_gate.row(b, h));
}

template <typename T>
__device__ __forceinline__ PairSink<TwinSink<T, true>> abreast_result_sink(const GradientArgs<T>& args, int side, int b, int h) {
    const PairSink<RealSink<T>> x = abreast_real_sink(args.x, b, h), v = abreast_real_sink(args.v, b, h);
    const Two<T*> twin = args.v.twin.rows(b, h, beside(args.x, h));
    const Two<const T*> gate = args.v.twin_gate.rows(b, h, beside(args.x, h));
    return {sink_of(side, x.even, v.even, twin.first, gate.first), sink_of(side, x.odd, v.odd, twin.second, gate.second)};
}

// Gates of one side's results: a copy in shared memory of the first, or, where there is none, what the sink holds.
template <typename Copied, typename Sink>
struct CopiedOrHeld {
    Copied first;
    const Sink& sink;

    template <int V>
    __device__ __forceinline__ Two<Held<V>> hold(int n) const {
        if (first.copy != nullptr) return {first.template hold<V>(n), {}};
        return sink.template hold<V>(n);
    }
};

// Signs of the imaginary part of the spectrum that one side meets, which is conjugate for V.
__device__ __forceinline__ Pack spectrum_signs(int side) { return side == 0 ? 0u : 0x80008000u; }

// Two results side by side as the pieces that a lane keeps of X.
template <typename R>
__device__ __forceinline__ uint4 keep(const R (&x)[2]) {
    return {pair(x[0], 0), pair(x[0], 1), pair(x[1], 0), pair(x[1], 1)};
}

// One of several transforms as several.
template <typename X>
__device__ __forceinline__ const X (&only(const X& x))[1] {
    return reinterpret_cast<const X(&)[1]>(x);
}

}  // namespace fftgen

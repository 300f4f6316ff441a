// A warp's own transforms: rows of a tensor through shared memory into right operands, and results back.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// A number written as outer * count + inner.
struct Place {
    int outer, inner;
};

// The place `steps` (at most a few) further on: cheaper than dividing again.
__device__ __forceinline__ Place step(Place at, int steps, int count) {
#pragma unroll
    for (int i = 0; i < steps; ++i)
        if (++at.inner == count) at.inner = 0, ++at.outer;
    return at;
}

// N numbers of one row, gated: eight neighbours to a lane.
template <int N, typename T>
struct Block {
    static constexpr int STEPS = N / (LANES * VECTOR);
    float x[STEPS][VECTOR];
    Peak<T> peak;

    template <bool SHARED>
    __device__ __forceinline__ void fetch(const RealSource<T>& source, int lane) {
        if (source.gate == nullptr) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
                source.template wide<VECTOR, SHARED, false>((i * LANES + lane) * VECTOR, x[i], peak);
        } else {
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
                source.template wide<VECTOR, SHARED, true>((i * LANES + lane) * VECTOR, x[i], peak);
        }
    }

    // Scaled, into shared memory; zeros in place of a row that is not finite. Returns what undoes the scaling.
    __device__ __forceinline__ float store(uint4* to, int lane) const {
        const Power power(warp_max(peak.bits()));
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const uint4 y{pack(x[i][0] * up, x[i][1] * up), pack(x[i][2] * up, x[i][3] * up),
                          pack(x[i][4] * up, x[i][5] * up), pack(x[i][6] * up, x[i][7] * up)};
            to[place<8>(i * LANES + lane, 0)] = power.finite ? y : uint4{0, 0, 0, 0};
        }
        return power.down();
    }

    // Scaled and packed; adds up the squares.
    __device__ __forceinline__ void scale(const Power& power, Pack (&y)[STEPS][4], Squares& squares) const {
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                y[i][j] = pack(x[i][2 * j] * up, x[i][2 * j + 1] * up);
                squares.add(y[i][j]);
            }
    }
};

// The two rows of a pair as Block::store has them, each brought to the norm of the other.
template <int N, typename T>
__device__ __forceinline__ void store_pair(
    const Block<N, T>& re, const Block<N, T>& im, uint4* to_re, uint4* to_im, int lane, float& re_down, float& im_down) {
    constexpr int STEPS = Block<N, T>::STEPS;
    static_assert(STEPS * VECTOR * 16 < 1 << 15, "the sum of squares of a thread");
    Power power[2]{Power(warp_max(re.peak.bits())), Power(warp_max(im.peak.bits()))};
    Pack y[2][STEPS][4];
    Squares squares[2];
    re.scale(power[0], y[0], squares[0]), im.scale(power[1], y[1], squares[1]);
    balance(power[0], squares[0].total(), power[1], squares[1].total());
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        if (!power[p].finite) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i) y[p][i][0] = y[p][i][1] = y[p][i][2] = y[p][i][3] = 0;
        } else if (power[p].raise != 0) {
            const Pack more = power[p].raised();
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) y[p][i][j] = mul2(y[p][i][j], more);
        }
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
            (p == 0 ? to_re : to_im)[place<8>(i * LANES + lane, 0)] = uint4{y[p][i][0], y[p][i][1], y[p][i][2], y[p][i][3]};
    }
    re_down = power[0].down(), im_down = power[1].down();
}

// Rows 16 m .. + 15 of P columns: the planner ordered them so that a thread has neighbours (fragments.py, pi).
template <int P, typename Sink>
__device__ __forceinline__ void emit_rows(
    const Sink& sink, int m, int lane, const Result<true>* re, const Result<true>* im) {
    constexpr int RUN = P == TILE ? 4 : 8;  // neighbours
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int c = 0; c < P / (4 * RUN); ++c) {
            float a[RUN], b[RUN];
#pragma unroll
            for (int j = 0; j < RUN; ++j) {
                a[j] = re[c * (RUN / 2) + j / 2].v[2 * i + j % 2];
                b[j] = im[c * (RUN / 2) + j / 2].v[2 * i + j % 2];
            }
            sink.store((TILE * m + 8 * i + g) * P + 4 * RUN * c + RUN * t, a, b);
        }
    }
}

}  // namespace fftgen

// Rows of a bf16 tensor on their way into matrix products: their words as they stand, or the product with a gate
// rounded to bf16.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// V consecutive numbers. SHARED, alignment: as RealSource::wide has them.
template <int V, bool SHARED, bool GATED>
__device__ __forceinline__ void operand_words(const RealSource<Operand>& source, int n, unsigned (&w)[V / 2]) {
    if constexpr (GATED) {
        float x[V];
        Peak<Operand> unused;
        source.template wide<V, SHARED, true>(n, x, unused);
#pragma unroll
        for (int i = 0; i < V / 2; ++i) w[i] = pack(x[2 * i], x[2 * i + 1]);
    } else {
        source.template words<V, SHARED>(n, w);
    }
}

// R rows of a strip, on their way from a tensor; PARTED: even ones before odd ones, if half of them fill whole tiles.
template <int R, int V, bool PARTED>
struct Strip : Operands<R, V> {
    // A real row, n = first + row * stride + column, zero beyond its length.
    template <bool SHARED>
    __device__ __forceinline__ void fetch(const RealSource<Operand>& source, int first, int stride, int lane) {
        const int at = first + strip_row<R, PARTED>(0, lane % 4 * 2) * stride + lane / 4 * V;
        if (source.gate == nullptr)
            load<SHARED, false>(source, at, stride);
        else
            load<SHARED, true>(source, at, stride);
    }

    template <bool SHARED, bool GATED>
    __device__ __forceinline__ void load(const RealSource<Operand>& source, int at, int stride) {
        const RealSource<Operand> near = source.template from<SHARED, GATED>(at);
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            unsigned w[4][V / 2];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                operand_words<V, SHARED, GATED>(near, strip_row<R, PARTED>(k, i % 2 + i / 2 * 8) * stride, w[i]);
            this->interleave(k, w);
        }
    }
};

// N numbers of one row, gated: eight neighbours to a lane.
template <int N, typename T>
struct Block {
    static constexpr int STEPS = N / (LANES * VECTOR);
    unsigned w[STEPS][VECTOR / 2];

    template <bool SHARED>
    __device__ __forceinline__ void fetch(const RealSource<T>& source, int lane) {
        if (source.gate == nullptr) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i) operand_words<VECTOR, SHARED, false>(source, (i * LANES + lane) * VECTOR, w[i]);
        } else {
#pragma unroll
            for (int i = 0; i < STEPS; ++i) operand_words<VECTOR, SHARED, true>(source, (i * LANES + lane) * VECTOR, w[i]);
        }
    }

    // Into shared memory.
    __device__ __forceinline__ void store(uint4* to, int lane) const {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) to[place<8>(i * LANES + lane, 0)] = uint4{w[i][0], w[i][1], w[i][2], w[i][3]};
    }
};

}  // namespace fftgen

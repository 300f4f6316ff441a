// Elementwise factors: twiddles (one or two levels) and the filter's spectrum. All products in fp32.
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

// (re, im) *= (wr, wi), or its conjugate.
template <bool CONJUGATE>
__device__ __forceinline__ void multiply(float& re, float& im, float wr, float wi) {
    const float s = CONJUGATE ? -wi : wi;
    const float x = re * wr - im * s;
    im = re * s + im * wr;
    re = x;
}

// T(k, r) = high(k, r / SPLIT) * low(k, r % SPLIT); one level when SPLIT == REST.
template <int REST, int SPLIT>
struct Twiddle {
    const float2* low;
    const float2* high;

    // Eight consecutive r, the first a multiple of eight.
    template <bool CONJUGATE>
    __device__ __forceinline__ void apply(float (&re)[VECTOR], float (&im)[VECTOR], int k, int r) const {
        const float4* const fine = reinterpret_cast<const float4*>(low + k * SPLIT + (SPLIT == REST ? r : r % SPLIT));
        float2 coarse{1.0f, 0.0f};
        if constexpr (SPLIT != REST) coarse = high[k * (REST / SPLIT) + r / SPLIT];
#pragma unroll
        for (int i = 0; i < VECTOR; i += 2) {
            float4 w = fine[i / 2];
            if constexpr (SPLIT != REST) {
                multiply<false>(w.x, w.y, coarse.x, coarse.y);
                multiply<false>(w.z, w.w, coarse.x, coarse.y);
            }
            multiply<CONJUGATE>(re[i], im[i], w.x, w.y);
            multiply<CONJUGATE>(re[i + 1], im[i + 1], w.z, w.w);
        }
    }
};

// One channel's spectrum.
template <typename T>
struct Spectrum {
    const T* re;
    const T* im;

    __device__ __forceinline__ void apply(float (&x)[VECTOR], float (&y)[VECTOR], int at) const {
        const Vector<T> kr = load_vector(re + at);
        const Vector<T> ki = load_vector(im + at);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) multiply<false>(x[i], y[i], widen(kr.v[i]), widen(ki.v[i]));
    }
};

}  // namespace fftgen

// Storage types, eight-element vectors and conversions. Everything here is rounding to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fftgen {

constexpr int TILE = 16;   // a matrix instruction works on 16 x 16 tiles
constexpr int LANES = 32;  // threads of a warp
constexpr int VECTOR = 8;  // 16-bit elements in one 16-byte access

template <typename T>
struct alignas(16) Vector {
    T v[VECTOR];
};

__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Two floats become one 32-bit register in one instruction.
__device__ __forceinline__ void narrow_pair(__half* to, float a, float b) {
    *reinterpret_cast<__half2*>(to) = __floats2half2_rn(a, b);
}
__device__ __forceinline__ void narrow_pair(__nv_bfloat16* to, float a, float b) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}

template <typename T>
__device__ __forceinline__ Vector<T> narrow(const float (&x)[VECTOR]) {
    Vector<T> y;
#pragma unroll
    for (int i = 0; i < VECTOR; i += 2) narrow_pair(&y.v[i], x[i], x[i + 1]);
    return y;
}

template <typename T>
__device__ __forceinline__ void widen(const Vector<T>& x, float (&y)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = widen(x.v[i]);
}

template <typename T>
__device__ __forceinline__ Vector<T> zeros() {
    Vector<T> y;
    *reinterpret_cast<uint4*>(&y) = uint4{0, 0, 0, 0};
    return y;
}

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
    Vector<T> x;
    *reinterpret_cast<uint4*>(&x) = *reinterpret_cast<const uint4*>(from);
    return x;
}

template <typename T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T>& x) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&x);
}

}  // namespace fftgen

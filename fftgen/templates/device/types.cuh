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

// Two neighbouring numbers of a row in one 32-bit word.
template <typename T>
struct Word;

template <>
struct Word<__half> {
    static constexpr bool SCALES = false;  // whether numbers have the range of fp32: of powers that scale them, too
    static __device__ __forceinline__ void widen(unsigned x, float& low, float& high) {
        const float2 y = __half22float2(*reinterpret_cast<const __half2*>(&x));
        low = y.x, high = y.y;
    }
    // The larger absolute value of each half, but for its sign; a NaN is larger than all.
    static __device__ __forceinline__ unsigned peak(unsigned most, unsigned x) {
        unsigned y;
#if __CUDA_ARCH__ >= 860
        asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(y) : "r"(most), "r"(x));
#elif __CUDA_ARCH__ >= 800
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(most), "r"(x & 0x7fff7fffu));
#else
        x &= 0x7fff7fffu;
        y = max(most & 0xffff0000u, x & 0xffff0000u) | max(most & 0xffffu, x & 0xffffu);  // as integers
#endif
        return y;
    }
};

template <>
struct Word<__nv_bfloat16> {
    static constexpr bool SCALES = true;
    static __device__ __forceinline__ void widen(unsigned x, float& low, float& high) {
        low = __uint_as_float(x << 16), high = __uint_as_float(x & 0xffff0000u);
    }
    static __device__ __forceinline__ unsigned peak(unsigned most, unsigned x) {
        unsigned y;
#if __CUDA_ARCH__ >= 860
        asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(most), "r"(x));
#else
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(most), "r"(x & 0x7fff7fffu));
#endif
        return y;
    }
    // Both numbers times a power of two: exact, but where the product is below all normal numbers.
    static __device__ __forceinline__ unsigned scaled(unsigned x, float power) {
        const unsigned p = __float_as_uint(power) | __float_as_uint(power) >> 16;  // the upper half of fp32, twice
        unsigned y;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(p), "r"(0x80008000u));  // sm_80 has no mul
        return y;
    }
};

// The largest absolute value of numbers that came in words, and of others as the bits of fp32: as integers
// these compare as the numbers do, and a NaN is the largest.
template <typename T>
struct Peak {
    unsigned word = 0;
    float single = 0.0f;

    __device__ __forceinline__ void add_word(unsigned x) { word = Word<T>::peak(word, x); }
    __device__ __forceinline__ void add(float x) {
#if __CUDA_ARCH__ >= 800
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(single) : "f"(single), "f"(fabsf(x)));
#else
        single = __uint_as_float(max(__float_as_uint(single), __float_as_uint(x) & 0x7fffffffu));
#endif
    }
    __device__ __forceinline__ unsigned bits() const {
        float low, high;
        Word<T>::widen(word & 0x7fff7fffu, low, high);
        return max(__float_as_uint(single), max(__float_as_uint(low), __float_as_uint(high)));
    }
};

// Where a workspace has to stay in the L2, lines of signals and gates that pass by make room first (PTX ISA, createpolicy
// and .L2::cache_hint: sm_80 and later). The policy is a constant in uniform registers, as compiled. (Stores with a hint
// are no stores that the compiler knows, and cost registers: results go as they did.)
#ifdef FFTGEN_PASSING
__device__ __forceinline__ unsigned long long passing() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    return policy;
}
#define PASSING_HINT ".L2::cache_hint"
#define PASSING_AS(n) ", %" #n
#define PASSING_POLICY , "l"(passing())
#else
#define PASSING_HINT ""
#define PASSING_AS(n) ""
#define PASSING_POLICY
#endif

// Words that start on their own size. Those of a tensor are read once and need not stay in the L1 cache.
template <bool SHARED>
__device__ __forceinline__ void load_words(const void* from, unsigned (&w)[4]) {
    if constexpr (SHARED) {
        const uint4 x = *reinterpret_cast<const uint4*>(from);
        w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
    } else {
        asm volatile("ld.global.nc.L1::no_allocate" PASSING_HINT ".v4.u32 {%0, %1, %2, %3}, [%4]" PASSING_AS(5) ";"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "l"(from) PASSING_POLICY);
    }
}
template <bool SHARED>
__device__ __forceinline__ void load_words(const void* from, unsigned (&w)[2]) {
    if constexpr (SHARED) {
        const uint2 x = *reinterpret_cast<const uint2*>(from);
        w[0] = x.x, w[1] = x.y;
    } else {
        asm volatile("ld.global.nc.L1::no_allocate" PASSING_HINT ".v2.u32 {%0, %1}, [%2]" PASSING_AS(3) ";"
                     : "=r"(w[0]), "=r"(w[1])
                     : "l"(from) PASSING_POLICY);
    }
}
template <bool SHARED>
__device__ __forceinline__ void load_words(const void* from, unsigned (&w)[1]) {
    if constexpr (SHARED)
        w[0] = *reinterpret_cast<const unsigned*>(from);
    else
        asm volatile("ld.global.nc.L1::no_allocate" PASSING_HINT ".u32 %0, [%1]" PASSING_AS(2) ";"
                     : "=r"(w[0])
                     : "l"(from) PASSING_POLICY);
}

// Numbers of the workspace.
__device__ __forceinline__ void load_plane(const void* from, unsigned (&w)[4]) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
}
__device__ __forceinline__ void load_plane(const void* from, unsigned (&w)[2]) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    w[0] = x.x, w[1] = x.y;
}
__device__ __forceinline__ void load_plane(const void* from, unsigned (&w)[1]) {
    w[0] = *reinterpret_cast<const unsigned*>(from);
}

// To the workspace, in one instruction: left to itself the compiler stores some of them word by word, since it
// cannot know that what it reads meanwhile lies elsewhere, and a sector of the L2 is then written four times.
__device__ __forceinline__ void store_plane(void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d));
}
__device__ __forceinline__ void store_plane(void* to, unsigned a, unsigned b) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b));
}

template <int V, typename T>
__device__ __forceinline__ void store_words(T* to, const T (&x)[V]) {
    const unsigned* const w = reinterpret_cast<const unsigned*>(x);
    if constexpr (V == 8)
        *reinterpret_cast<uint4*>(to) = uint4{w[0], w[1], w[2], w[3]};
    else
        *reinterpret_cast<uint2*>(to) = uint2{w[0], w[1]};
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

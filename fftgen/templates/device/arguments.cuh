// What a launch is told: tensors as they lie in memory, and which transforms are whose.
#pragma once

#include "fftgen/types.cuh"

namespace fftgen {

template <typename T>
struct Two {
    T first, second;
};

// A (batch, channel, time) tensor, time contiguous; strides in elements. data == nullptr: not given.
template <typename T>
struct Signal {
    T* data;
    long long batch;
    long long channel;

    // Of a tensor that is given. Unsigned numbers take no sign extension.
    __device__ __forceinline__ T* given(int b, int h) const { return data + (unsigned)b * batch + (unsigned)h * channel; }
    __device__ __forceinline__ T* row(int b, int h) const { return data == nullptr ? nullptr : given(b, h); }
    // That of the channel `other` further on, 1 or 0, as well.
    __device__ __forceinline__ Two<T*> rows(int b, int h, int other) const {
        T* const first = row(b, h);
        return {first, data == nullptr ? nullptr : first + (other ? channel : 0)};
    }
};

// What one launch is told. The host packs the same fields in the same order (fftgen/launch.py).
template <typename T>
struct Args {
    Signal<const T> u;
    Signal<const T> in_gate;
    Signal<const T> out_gate;
    Signal<T> y;
    Signal<const T> twin_gate;     // a second result: y's but for the gate
    Signal<T> twin;
    const T* spectrum;             // (channels, 2, N): real and imaginary plane, Monarch order
    const float2* scale;           // (channels): what the spectrum was multiplied by; what undoes it and 1/N
    const unsigned char* tables;   // the plan's constants
    T* workspace;                  // (items, 2, N) or nullptr
    unsigned* peaks;               // of every transform of the call: its row's largest absolute value (fp32 bits), or PairSize
    int first;                     // first transform of this launch; transforms count channel by channel
    int items;                     // transforms of this launch
    int per_channel;               // transforms of one channel
    int batch;
    int length;                    // time steps of u
    int run;                       // consecutive pieces of work of one worker
    int vector;                    // 1: every row starts on 16 bytes and length is a multiple of eight
    unsigned reciprocal, shift;    // what per_channel divides by (channel_of)
    int all;                       // transforms of the call
    int results;                   // time steps of y: as many as of u, or those of its first that are wanted
};

// The channel of a transform, id / per_channel in three instructions instead of 25. 2^(32 + shift) / (2 per_channel),
// rounded up, is exact for numbers below 2^31 (Granlund and Montgomery, "Division by invariant integers using
// multiplication", theorem 4.2).
template <typename T>
__device__ __forceinline__ int channel_of(const Args<T>& args, int id) {
    return __umulhi(2u * id, args.reciprocal) >> args.shift;
}

// Channels whose transforms a block takes abreast, of radix TILE / ABREAST in the stage of columns: of the rows of a
// tile the first half is one's, the other its neighbour's.
#ifdef FFTGEN_ABREAST
constexpr int ABREAST = FFTGEN_ABREAST;
#else
constexpr int ABREAST = 1;
#endif

// From a channel to the one beside it: 1, or 0 for the last of an odd number. That one is then taken twice, which costs
// nobody else anything: the same thread stores the same numbers at the same places.
template <typename T>
__device__ __forceinline__ int beside(const Args<T>& args, int h) {
    return (unsigned)(h + 1) * args.per_channel < (unsigned)args.all;
}

// An address as it stands: what lies a constant further on than it then takes no arithmetic.
template <typename T>
__device__ __forceinline__ T* settled(T* address) {
    asm("" : "+l"(address));
    return address;
}

__device__ __forceinline__ unsigned settled(unsigned shared) {
    asm("" : "+r"(shared));
    return shared;
}

// The same of device memory. (Left as a sum, the compiler takes a store of 16 bytes apart into four.)
template <typename T>
__device__ __forceinline__ T* settled_in_device_memory(T* address) {
    size_t at = __cvta_generic_to_global(address);
    asm("" : "+l"(at));
    return static_cast<T*>(__cvta_global_to_generic(at));
}

}  // namespace fftgen

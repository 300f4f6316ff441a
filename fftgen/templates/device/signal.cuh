// Where a transform's numbers come from and go to: tensors of real rows, or the workspace.
//
// A *source* gives eight consecutive complex numbers (two vectors in the storage type); a *sink* takes
// eight (fp32). n is the index inside the sequence; everything from `length` on is zero and not written.
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

// V numbers in fp32, the product with their gates unrounded; `peak` grows to their largest.
template <int V, bool GATED, typename T>
__device__ __forceinline__ void widen_words(const unsigned (&w)[V / 2], const unsigned (&g)[V / 2], float (&x)[V], Peak<T>& peak) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
        Word<T>::widen(w[i], x[2 * i], x[2 * i + 1]);
        if constexpr (GATED) {
            float low, high;
            Word<T>::widen(g[i], low, high);
            x[2 * i] *= low, x[2 * i + 1] *= high;
            peak.add(x[2 * i]), peak.add(x[2 * i + 1]);
        } else {
            peak.add_word(w[i]);
        }
    }
}

// One real row, gated on the way in.
template <typename T>
struct RealSource {
    using Number = T;
    const T* u;
    const T* gate;
    int length;
    bool vector;

    __device__ __forceinline__ bool gated() const { return gate != nullptr; }

    __device__ __forceinline__ Vector<T> row(const T* from, int n) const {
        if (vector && n + VECTOR <= length) return load_vector(from + n);
        Vector<T> x = zeros<T>();
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            if (n + i < length) x.v[i] = from[n + i];
        return x;
    }

    // Eight consecutive numbers in fp32, the product with the gate unrounded.
    __device__ __forceinline__ void numbers(int n, float (&x)[VECTOR]) const {
        widen(row(u, n), x);
        if (gate == nullptr) return;
        float g[VECTOR];
        widen(row(gate, n), g);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) x[i] *= g[i];
    }

    __device__ __forceinline__ Vector<T> real(int n) const {
        if (gate == nullptr) return row(u, n);
        float x[VECTOR];
        numbers(n, x);
        return narrow<T>(x);
    }

    __device__ __forceinline__ void load(int n, Vector<T>& re, Vector<T>&) const { re = real(n); }
    __device__ __forceinline__ void close() { length = 0; }

    // The row from n on.
    template <bool SHARED, bool GATED>
    __device__ __forceinline__ RealSource from(int n) const {
        if constexpr (SHARED) return {u + n, GATED ? gate + n : nullptr, length - n, vector};
        return {settled(u + n), GATED ? settled(gate + n) : nullptr, length - n, vector};
    }

    // V consecutive numbers as they stand. SHARED: the row is a copy in shared memory. Rows are aligned, their
    // length is a multiple of V.
    template <int V, bool SHARED>
    __device__ __forceinline__ void words(int n, unsigned (&w)[V / 2]) const {
#pragma unroll
        for (int i = 0; i < V / 2; ++i) w[i] = 0;
        if (n < length) load_words<SHARED>(u + n, w);
    }

    // The same in fp32, the product with the gate unrounded; `peak` grows to their largest.
    template <int V, bool SHARED, bool GATED>
    __device__ __forceinline__ void wide(int n, float (&x)[V], Peak<T>& peak) const {
        unsigned w[V / 2] = {}, g[V / 2] = {};
        if (n < length) {
            load_words<SHARED>(u + n, w);
            if constexpr (GATED) load_words<SHARED>(gate + n, g);
        }
        widen_words<V, GATED>(w, g, x, peak);
    }

    // A copy of the first N numbers and their gates in shared memory, for rows that start anywhere.
    template <int N>
    __device__ __forceinline__ RealSource staged(void* memory, int thread, int threads) const {
        T* const copy = reinterpret_cast<T*>(memory);
        for (int n = thread; n < N; n += threads) {
            copy[n] = n < length ? u[n] : T(0.0f);
            if (gate != nullptr) copy[N + n] = n < length ? gate[n] : T(0.0f);
        }
        return copied<N>(memory);
    }
    template <int N>
    __device__ __forceinline__ RealSource copied(const void* memory) const {
        const T* const copy = reinterpret_cast<const T*>(memory);
        return {copy, gate == nullptr ? nullptr : copy + N, N, true};
    }
};

// Two batch rows as real and imaginary part, or rows of channels abreast; the partner of an odd last row is zero.
template <typename T>
struct PairSource {
    using Number = T;
    RealSource<T> even, odd;

    __device__ __forceinline__ bool gated() const { return even.gated(); }
    template <int N>
    __device__ __forceinline__ PairSource staged(void* memory, int thread, int threads) const {
        T* const copy = reinterpret_cast<T*>(memory);
        return {even.template staged<N>(copy, thread, threads), odd.template staged<N>(copy + 2 * N, thread, threads)};
    }
    template <int N>
    __device__ __forceinline__ PairSource copied(const void* memory) const {
        const T* const copy = reinterpret_cast<const T*>(memory);
        return {even.template copied<N>(copy), odd.template copied<N>(copy + 2 * N)};
    }

    __device__ __forceinline__ void load(int n, Vector<T>& re, Vector<T>& im) const {
        re = even.real(n);
        im = odd.u == nullptr ? zeros<T>() : odd.real(n);
    }
    __device__ __forceinline__ void close() { even.close(), odd.close(); }
};

// Planes in the workspace.
template <typename T>
struct Planes {
    T* re;
    T* im;

    __device__ __forceinline__ void load(int n, Vector<T>& x, Vector<T>& y) const {
        x = load_vector(re + n);
        y = load_vector(im + n);
    }
    __device__ __forceinline__ void store(int n, const float (&x)[VECTOR], const float (&y)[VECTOR]) const {
        store_vector(re + n, narrow<T>(x));
        store_vector(im + n, narrow<T>(y));
    }
};

// Gates of V numbers, asked for before the numbers are there; or nothing, where registers are too few for that.
template <int V>
struct Held {
    unsigned g[V / 2];
};
struct Unheld {};

// One real row, scaled and gated on the way out.
template <typename T>
struct RealSink {
    T* y;
    const T* gate;
    float scale;
    int length;
    bool vector;

    __device__ __forceinline__ bool there() const { return y != nullptr; }

    // What is left of a row that is there from place n on.
    __device__ __forceinline__ RealSink from(int n) const {
        return {settled_in_device_memory(y + n), gate == nullptr ? nullptr : settled_in_device_memory(gate + n), scale, length - n, vector};
    }

    // Gates of V consecutive numbers, on their way while the numbers are computed.
    template <int V>
    __device__ __forceinline__ Held<V> hold(int n) const {
        Held<V> held = {};
        if (vector && gate != nullptr && n < length) load_words<false>(gate + n, held.g);
        return held;
    }

    // V consecutive numbers.
    template <int V>
    __device__ __forceinline__ void real(int n, const float (&x)[V]) const {
        write(n, x, [&](unsigned(&g)[V / 2]) { load_words<false>(gate + n, g); });
    }
    template <int V>
    __device__ __forceinline__ void real(int n, const float (&x)[V], const Held<V>& held) const {
        write(n, x, [&](unsigned(&g)[V / 2]) {
#pragma unroll
            for (int i = 0; i < V / 2; ++i) g[i] = held.g[i];
        });
    }

    template <int V, typename Gates>
    __device__ __forceinline__ void write(int n, const float (&x)[V], Gates gates) const {
        if (n >= length) return;
        float out[V];
#pragma unroll
        for (int i = 0; i < V; ++i) out[i] = x[i] * scale;
        if (vector) {
            if (gate != nullptr) {
                unsigned g[V / 2];
                gates(g);
#pragma unroll
                for (int i = 0; i < V / 2; ++i) {
                    float low, high;
                    Word<T>::widen(g[i], low, high);
                    out[2 * i] *= low, out[2 * i + 1] *= high;
                }
            }
            T packed[V];
#pragma unroll
            for (int i = 0; i < V; i += 2) narrow_pair(packed + i, out[i], out[i + 1]);
            store_words<V>(y + n, packed);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (n + i < length) {
                    T pair[2];
                    narrow_pair(pair, gate == nullptr ? out[i] : out[i] * widen(gate[n + i]), 0.0f);
                    y[n + i] = pair[0];
                }
        }
    }

    template <int V, typename... Gates>
    __device__ __forceinline__ void store(int n, const float (&re)[V], const float (&)[V], const Gates&... held) const {
        real(n, re, held...);
    }
};

// The same row twice, each time with a gate. MAYBE: once, where there is no second one.
template <typename T, bool MAYBE = false>
struct TwinSink : RealSink<T> {
    T* twin;
    const T* twin_gate;

    __device__ __forceinline__ bool both() const { return !MAYBE || twin != nullptr; }
    __device__ __forceinline__ RealSink<T> second() const { return {twin, twin_gate, this->scale, this->length, this->vector}; }

    template <int V>
    __device__ __forceinline__ Two<Held<V>> hold(int n) const {
        Two<Held<V>> held{RealSink<T>::template hold<V>(n), {}};
        if (both()) held.second = second().template hold<V>(n);
        return held;
    }
    template <int V>
    __device__ __forceinline__ void real(int n, const float (&x)[V]) const {
        RealSink<T>::real(n, x);
        if (both()) second().real(n, x);
    }
    template <int V>
    __device__ __forceinline__ void real(int n, const float (&x)[V], const Two<Held<V>>& held) const {
        RealSink<T>::real(n, x, held.first);
        if (both()) second().real(n, x, held.second);
    }
    template <int V, typename... Gates>
    __device__ __forceinline__ void store(int n, const float (&re)[V], const float (&)[V], const Gates&... held) const {
        real(n, re, held...);
    }
};

template <typename T>
__device__ __forceinline__ RealSink<T> real_sink(const Args<T>& a, int b, int h) {
    return {a.y.row(b, h), a.out_gate.row(b, h), a.scale[h].y, a.results, a.vector != 0};
}

template <typename T, bool MAYBE = false>
__device__ __forceinline__ TwinSink<T, MAYBE> twin_real_sink(const Args<T>& a, int b, int h) {
    return {real_sink(a, b, h), a.twin.row(b, h), a.twin_gate.row(b, h)};
}

template <typename T>
__device__ __forceinline__ TwinSink<T, true> maybe_twin_real_sink(const Args<T>& a, int b, int h) {
    return twin_real_sink<T, true>(a, b, h);
}

// The same for kernels that have no registers for the addresses: found anew for every store.
template <typename T>
struct LateTwinSink {
    const Args<T>& args;
    int b, h;
    float scale;

    __device__ __forceinline__ bool there() const { return b < args.batch; }

    template <int V>
    __device__ __forceinline__ Unheld hold(int) const {
        return {};
    }
    template <int V>
    __device__ __forceinline__ void real(int n, const float (&x)[V], const Unheld& = {}) const {
        int row = b;
        asm volatile("" : "+r"(row));  // another row for all that the compiler knows
        TwinSink<T> sink = twin_real_sink(args, row, h);
        sink.scale = scale;
        sink.real(n, x);
    }
    template <int V>
    __device__ __forceinline__ void store(int n, const float (&re)[V], const float (&)[V], const Unheld& = {}) const {
        real(n, re);
    }
};

template <typename Row>
struct PairSink {
    Row even, odd;

    template <int V>
    __device__ __forceinline__ auto hold(int n) const {
        return Two<decltype(even.template hold<V>(n))>{even.template hold<V>(n), odd.template hold<V>(n)};
    }
    template <int V>
    __device__ __forceinline__ void store(int n, const float (&re)[V], const float (&im)[V]) const {
        even.real(n, re);
        if (odd.there()) odd.real(n, im);
    }
    template <int V, typename Gates>
    __device__ __forceinline__ void store(int n, const float (&re)[V], const float (&im)[V], const Two<Gates>& held) const {
        even.real(n, re, held.first);
        if (odd.there()) odd.real(n, im, held.second);
    }
};

template <typename T>
__device__ __forceinline__ RealSource<T> real_source(const Args<T>& a, int b, int h) {
    return {a.u.row(b, h), a.in_gate.row(b, h), a.length, a.vector != 0};
}

template <typename T>
__device__ __forceinline__ PairSource<T> pair_source(const Args<T>& a, int b, int h) {
    PairSource<T> pair{real_source(a, b, h), real_source(a, b, h)};
    if (b + 1 < a.batch)
        pair.odd = real_source(a, b + 1, h);
    else
        pair.odd.u = nullptr, pair.odd.close();
    return pair;
}

// Two rows of a batch; the partner of an odd last one is not there.
template <typename T, typename Make>
__device__ __forceinline__ auto paired(const Args<T>& a, int b, Make make) {
    PairSink<decltype(make(b))> pair{make(b), make(b)};
    if (b + 1 < a.batch)
        pair.odd = make(b + 1);
    else
        pair.odd.y = nullptr;
    return pair;
}

template <typename T>
__device__ __forceinline__ auto pair_sink(const Args<T>& a, int b, int h) {
    return paired(a, b, [&](int row) { return real_sink(a, row, h); });
}

template <typename T>
__device__ __forceinline__ auto twin_pair_sink(const Args<T>& a, int b, int h) {
    return paired(a, b, [&](int row) { return twin_real_sink(a, row, h); });
}

template <typename T>
__device__ __forceinline__ LateTwinSink<T> late_twin_real_sink(const Args<T>& a, int b, int h) {
    return {a, b, h, a.scale[h].y};
}

template <typename T>
__device__ __forceinline__ PairSink<LateTwinSink<T>> late_twin_pair_sink(const Args<T>& a, int b, int h) {
    return {late_twin_real_sink(a, b, h), late_twin_real_sink(a, b + 1, h)};
}

// Rows of a channel and of the one beside it.
template <typename T>
__device__ __forceinline__ PairSource<T> abreast_source(const Args<T>& a, int b, int h) {
    const int other = beside(a, h);
    const Two<const T*> u = a.u.rows(b, h, other), gate = a.in_gate.rows(b, h, other);
    return {{u.first, gate.first, a.length, a.vector != 0}, {u.second, gate.second, a.length, a.vector != 0}};
}
template <typename T>
__device__ __forceinline__ PairSink<RealSink<T>> abreast_real_sink(const Args<T>& a, int b, int h) {
    const int other = beside(a, h);
    const Two<T*> y = a.y.rows(b, h, other);
    const Two<const T*> gate = a.out_gate.rows(b, h, other);
    return {{y.first, gate.first, a.scale[h].y, a.results, a.vector != 0}, {y.second, gate.second, a.scale[h + other].y, a.results, a.vector != 0}};
}
template <typename T, bool MAYBE = false>
__device__ __forceinline__ PairSink<TwinSink<T, MAYBE>> abreast_twin_real_sink(const Args<T>& a, int b, int h) {
    const PairSink<RealSink<T>> y = abreast_real_sink(a, b, h);
    const Two<T*> twin = a.twin.rows(b, h, beside(a, h));
    const Two<const T*> gate = a.twin_gate.rows(b, h, beside(a, h));
    return {{y.even, twin.first, gate.first}, {y.odd, twin.second, gate.second}};
}

// The same of pairs of batch rows; the partner of an odd last row is not there.
template <typename T>
struct AbreastPair {
    PairSource<T> even, odd;
};
template <typename T>
__device__ __forceinline__ AbreastPair<T> abreast_pair_source(const Args<T>& a, int b, int h) {
    AbreastPair<T> pair{abreast_source(a, b, h), abreast_source(a, b, h)};
    if (b + 1 < a.batch)
        pair.odd = abreast_source(a, b + 1, h);
    else
        pair.odd.close();
    return pair;
}
template <typename T>
__device__ __forceinline__ auto abreast_pair_sink(const Args<T>& a, int b, int h) {
    return PairSink<decltype(pair_sink(a, b, h))>{pair_sink(a, b, h), pair_sink(a, b, h + beside(a, h))};
}
template <typename T>
__device__ __forceinline__ auto abreast_twin_pair_sink(const Args<T>& a, int b, int h) {
    return PairSink<decltype(twin_pair_sink(a, b, h))>{twin_pair_sink(a, b, h), twin_pair_sink(a, b, h + beside(a, h))};
}

template <typename T>
__device__ __forceinline__ PairSink<PairSink<LateTwinSink<T>>> abreast_late_twin_pair_sink(const Args<T>& a, int b, int h) {
    return {late_twin_pair_sink(a, b, h), late_twin_pair_sink(a, b, h + beside(a, h))};
}

}  // namespace fftgen

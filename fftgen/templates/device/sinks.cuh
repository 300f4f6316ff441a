// Where a transform's numbers go to: rows of tensors, scaled and gated, once or twice. A sink of signal.cuh.
#pragma once

#include "fftgen/arguments.cuh"

namespace fftgen {

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
        write(n, x, [&](unsigned(&g)[V / 2]) {
            if (n < length) load_words<false>(gate + n, g);
        });
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
        float out[V];
#pragma unroll
        for (int i = 0; i < V; ++i) out[i] = x[i] * scale;
        if (vector) {
            if (gate != nullptr) {
                unsigned g[V / 2] = {};
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
            if (n < length) store_words<V>(y + n, packed);  // a predicate of the store, and no branch
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

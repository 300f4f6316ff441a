// Where a transform's numbers come from: rows of tensors, gated. A source of signal.cuh.
#pragma once

#include "fftgen/arguments.cuh"

namespace fftgen {

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

// V numbers whose scale is not known yet: products with gates in fp32, others in the words that they came in.
template <int V, bool GATED, typename T>
struct Unscaled {
    static constexpr bool WORDS = !GATED && Word<T>::SCALES;
    unsigned w[WORDS ? V / 2 : 1];
    float x[WORDS ? 1 : V];

    // `peak` grows to the largest.
    __device__ __forceinline__ void take(const unsigned (&from)[V / 2], const unsigned (&gates)[V / 2], Peak<T>& peak) {
        if constexpr (WORDS) {
#pragma unroll
            for (int i = 0; i < V / 2; ++i) w[i] = from[i], peak.add_word(from[i]);
        } else {
            widen_words<V, GATED>(from, gates, x, peak);
        }
    }
    // The numbers in fp32, times a power of two.
    __device__ __forceinline__ void scaled(float power, float (&to)[V]) const {
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            if constexpr (WORDS)
                Word<T>::widen(Word<T>::scaled(w[i / 2], power), to[i], to[i + 1]);
            else
                to[i] = x[i] * power, to[i + 1] = x[i + 1] * power;
        }
    }
};

// What is there of numbers that a row may have.
struct All {
    static constexpr bool ALL = true;
};
struct Some {
    static constexpr bool ALL = false;
};

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
        unsigned w[V / 2], g[V / 2];
        load<V, SHARED, GATED>(n, w, g, Some{});
        widen_words<V, GATED>(w, g, x, peak);
    }
    // As they come, with their gates; `there`: All of them, or Some, and zeros in place of others.
    template <int V, bool SHARED, bool GATED, typename There>
    __device__ __forceinline__ void load(int n, unsigned (&w)[V / 2], unsigned (&g)[V / 2], There) const {
        if constexpr (!There::ALL) {
#pragma unroll
            for (int i = 0; i < V / 2; ++i) w[i] = g[i] = 0;
            if (n >= length) return;
        }
        load_words<SHARED>(u + n, w);
        if constexpr (GATED) load_words<SHARED>(gate + n, g);
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

// Rows of a channel and of the one beside it.
template <typename T>
__device__ __forceinline__ PairSource<T> abreast_source(const Args<T>& a, int b, int h) {
    const int other = beside(a, h);
    const Two<const T*> u = a.u.rows(b, h, other), gate = a.in_gate.rows(b, h, other);
    return {{u.first, gate.first, a.length, a.vector != 0}, {u.second, gate.second, a.length, a.vector != 0}};
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

}  // namespace fftgen

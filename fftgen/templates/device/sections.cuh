// Rows of several sections of N numbers, each a transform by itself, block by block of the filter's Toeplitz matrix
// (planner/sections.py): Y_p = X_p K_0 + sum_{q<p} X_q K_(p-q), a spectrum for each distance of sections.
#pragma once

#include "fftgen/scaled_rows.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// What is left of a row from `steps` on.
template <typename T>
__device__ __forceinline__ RealSource<T> behind(const RealSource<T>& row, int steps) {
    return {row.u + steps, row.gate == nullptr ? nullptr : row.gate + steps, row.length - steps, row.vector};
}
template <typename T>
__device__ __forceinline__ RealSink<T> behind(const RealSink<T>& row, int steps) {
    return {settled_in_device_memory(row.y + steps), row.gate == nullptr ? nullptr : row.gate + steps, row.scale, row.length - steps, row.vector};
}
template <typename T>
__device__ __forceinline__ TwinSink<T, true> behind(const TwinSink<T, true>& row, int steps) {
    const RealSink<T>& first = row;
    return {behind(first, steps), row.both() ? row.twin + steps : nullptr, row.twin_gate == nullptr ? nullptr : row.twin_gate + steps};
}

// Powers of two of the sections of a row, in shared memory, and of the spectra of all distances, `channels` apart. Those
// of results are of both together, and may be beyond what fp32 holds. AROUND: so many distances there are, of sections
// further on as well, which stand behind the others; 0: of none such.
template <int AROUND>
struct SectionPowers {
    static constexpr unsigned NOT_FINITE = 255;
    static constexpr int NEAR = 2, SPOILT = 1 << 20;

    unsigned* at;  // and before them that of the result under way, with the first spectrum's
    const float2* scale;  // of the channel, distance 0
    int channels;

    // Which spectrum section q meets on its way to section p, and its power.
    __device__ __forceinline__ int distance(int p, int q) const { return AROUND && q > p ? p - q + AROUND : p - q; }
    __device__ __forceinline__ int spectrum(int distance) const {
        return __float_as_uint(scale[distance * channels].x) >> 23;
    }
    // What section q adds to section p comes in at so many powers of two.
    __device__ __forceinline__ int term(int p, int q) const { return (int)at[q] - spectrum(distance(p, q)); }

    static __device__ __forceinline__ unsigned kept(const Power& own) { return own.finite ? own.exponent : NOT_FINITE; }
    __device__ __forceinline__ void keep(const Power& own, int p) const { at[p] = kept(own); }

    // What section p is brought to, where its own power and those of earlier ones are known, which its result's is
    // found of: no less than brings what each of them adds to fp16. That is the section's as well if it is near its own,
    // which spares multiplying its product; never far above, for what is lost beside this result may be most of a later
    // one, that meets it with a larger spectrum. Barriers of the caller's lie between this and who asks for either,
    // and before another row's.
    __device__ __forceinline__ Power join(const Power& own, int p, bool first) const {
        const int result = most(own.finite, (int)own.exponent - spectrum(0), p, p);
        const int near = min(min(result + spectrum(0), (int)own.exponent + NEAR), 253);
        const Power kept(result == SPOILT ? 0x7f800000u : (unsigned)near << 23);
        if (first) keep(kept, p), at[-1] = result + spectrum(0);
        return kept;
    }
    __device__ __forceinline__ int under_way() const { return (int)at[-1] - spectrum(0); }
    // Whether the product of section p with the first spectrum has to be brought to that.
    __device__ __forceinline__ bool lower(int p) const { return at[-1] != at[p]; }
    // That of the result of section p where all sections, `live` of them, are kept at their own.
    __device__ __forceinline__ int joined(int p, int live) const { return most(true, term(p, p), p, live); }

    // What brings the numbers of section q to a power of the result of section p.
    __device__ __forceinline__ Pack factor(int result, int p, int q) const {
        const float x = two_to(-min(max(result - term(p, q), 0), 127));
        return pack(x, x);
    }

    // What undoes a result's power, by halves, and what is left of the scales of stages.
    __device__ __forceinline__ float undo(float residual, int result) const {
        const int half = result >> 1;
        return result == SPOILT ? __uint_as_float(0x7fc00000u) : residual * two_to(half) * two_to(result - half);
    }

private:
    __device__ __forceinline__ int most(bool finite, int power, int p, int sections) const {
        for (int q = 0; q < sections; ++q) {
            finite = finite && at[q] != NOT_FINITE;
            power = max(power, term(p, q));
        }
        return finite ? power : SPOILT;
    }
    static __device__ __forceinline__ float two_to(int power) { return __uint_as_float((unsigned)(127 + power) << 23); }
};

// A tile of a spectrum as it comes, two results side by side, and back.
__device__ __forceinline__ uint4 together(const Result<false> (&x)[2]) { return {x[0].v[0], x[0].v[1], x[1].v[0], x[1].v[1]}; }
__device__ __forceinline__ void apart(const uint4& x, Tile& first, Tile& second) {
    first.v[0] = x.x, first.v[1] = x.y, second.v[0] = x.z, second.v[1] = x.w;
}

// to += factor * x k, or with k's conjugate, for a tile of each.
template <bool CONJUGATE = false>
__device__ __forceinline__ void add_product(
    Tile* to_re, Tile* to_im, const uint4& xr, const uint4& xi, const Fragment& kr, const Fragment& ki, Pack factor) {
    const Pack re[4] = {xr.x, xr.y, xr.z, xr.w}, im[4] = {xi.x, xi.y, xi.z, xi.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Pair x = pair(re[i]), y = pair(im[i]);
        twist<CONJUGATE>(x, y, kr.r[i], ki.r[i]);
        to_re[i / 2].v[i % 2] = fma2(packed(x), factor, to_re[i / 2].v[i % 2]);
        to_im[i / 2].v[i % 2] = fma2(packed(y), factor, to_im[i / 2].v[i % 2]);
    }
}

// A tile times a number.
__device__ __forceinline__ void multiply(Tile* re, Tile* im, Pack factor) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        re[i / 2].v[i % 2] = mul2(re[i / 2].v[i % 2], factor);
        im[i / 2].v[i % 2] = mul2(im[i / 2].v[i % 2], factor);
    }
}

}  // namespace fftgen

// What the transforms of two signals' sections make with each other where clusters share them, for the gradient of a
// filter: S_j = sum over rows and q of conj(X_q) V_(q+j), and section j of it S_j + i S_(j+1) (planner/gradient_sections.py).
#pragma once

#include "fftgen/share.cuh"
#include "fftgen/spread.cuh"

namespace fftgen {

// What section p of X (side 0), or of V from the last one on, is multiplied by where both meet, which undoes its scaling:
// V's are brought to the power of the loudest of them, and X's have that as well.
template <int SECTIONS>
__device__ __forceinline__ float met(const unsigned* powers, int side, int p) {
    constexpr unsigned NOT_FINITE = SectionPowers<0>::NOT_FINITE;
    const auto two_to = [](int e) { return e < -126 ? 0.0f : __uint_as_float((unsigned)(127 + min(e, 127)) << 23); };
    int loudest = 0;
    for (int q = 0; q < SECTIONS; ++q)
        if (powers[SECTIONS + q] != NOT_FINITE) loudest = max(loudest, (int)powers[SECTIONS + q]);
    const unsigned own = powers[side * SECTIONS + p];
    if (own == NOT_FINITE) return __uint_as_float(0x7fc00000u);
    return two_to(side ? (int)own - loudest : (int)own - 127 + loudest - 127);
}

// A word of a transform as two numbers in fp32, times a factor.
template <int COUNT>
__device__ __forceinline__ void widen(const Packs<COUNT>& x, float factor, float (&y)[2 * COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        Word<__half>::widen(x.v[i], y[2 * i], y[2 * i + 1]);
        y[2 * i] *= factor, y[2 * i + 1] *= factor;
    }
}

// A lane's numbers of part `unit` of a sum, in the order of Sums (gradient.cuh): of a plane of a tile first the first four of every
// lane of the register chain, then their other four.
template <int COUNT>
struct SumPlace {
    static constexpr int WIDE = COUNT > 1 ? 4 : 2;  // numbers side by side
    struct alignas(4 * WIDE) Floats {
        float v[WIDE];
    };

    static __device__ __forceinline__ float* at(float* sums, int unit, int lane) {
        constexpr int PARTS = 4 / COUNT;
        const int word = (unit % PARTS * LANES + lane) * COUNT;  // of a plane
        return sums + (unit / PARTS) * (16 * LANES) + word % 4 / 2 * (4 * LANES) + word / 4 * 4 + word % 2 * 2;
    }
    // Those of a plane are added to numbers that stand there, or replace them. Read and written once for every row.
    static __device__ __forceinline__ void put(float* to, const float (&x)[2 * COUNT], bool fresh) {
#pragma unroll
        for (int i = 0; i < 2 * COUNT / WIDE; ++i) {
            Floats* const place = reinterpret_cast<Floats*>(to + i * (4 * LANES));
            Floats sum{};
            if (!fresh) sum = *place;
#pragma unroll
            for (int j = 0; j < WIDE; ++j) sum.v[j] += x[WIDE * i + j];
            *place = sum;
        }
    }
};

// Adds a row's part of every section's sum to words of a lane, `apart` numbers from one section to the next.
//   x_of(q)  X's words of a section
template <int SECTIONS, int COUNT, typename X>
__device__ __forceinline__ void section_sums(
    X x_of, const Portions<SECTIONS, COUNT>& v, float* to, long long apart, const float* meeting, bool fresh, int live) {
    constexpr int NUMBERS = 2 * COUNT, AT_ONCE = 8 / COUNT;  // of a lane; sums that registers have room for
    float vr[SECTIONS][NUMBERS], vi[SECTIONS][NUMBERS];
#pragma unroll
    for (int p = 0; p < SECTIONS; ++p) {
        const float factor = meeting[SECTIONS + SECTIONS - 1 - p];
        widen(v.at[p].re, factor, vr[p]), widen(v.at[p].im, factor, vi[p]);
    }
    float later_re[NUMBERS], later_im[NUMBERS];  // the sum of the distance beyond
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) later_re[i] = later_im[i] = 0.0f;
#pragma unroll
    for (int first = (SECTIONS - 1) / AT_ONCE * AT_ONCE; first >= 0; first -= AT_ONCE) {
        float re[AT_ONCE][NUMBERS], im[AT_ONCE][NUMBERS];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j)
#pragma unroll
            for (int i = 0; i < NUMBERS; ++i) re[j][i] = im[j][i] = 0.0f;
#pragma unroll
        for (int q = 0; q + first < SECTIONS; ++q) {
            if (q >= live) break;
            const Portion<COUNT> one = x_of(q);
            float xr[NUMBERS], xi[NUMBERS];
            const float factor = meeting[q];
            widen(one.re, factor, xr), widen(one.im, factor, xi);
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                const int p = q + first + j;
                if (p >= SECTIONS) break;
#pragma unroll
                for (int i = 0; i < NUMBERS; ++i) {
                    re[j][i] = fmaf(xr[i], vr[p][i], fmaf(xi[i], vi[p][i], re[j][i]));
                    im[j][i] = fmaf(xr[i], vi[p][i], fmaf(-xi[i], vr[p][i], im[j][i]));
                }
            }
        }
        // x^n of the distance beyond is i x^(n - N).
#pragma unroll
        for (int j = AT_ONCE - 1; j >= 0; --j) {
            if (first + j >= SECTIONS) continue;
            float own_re[NUMBERS], own_im[NUMBERS];
#pragma unroll
            for (int i = 0; i < NUMBERS; ++i) {
                own_re[i] = re[j][i] - later_im[i], own_im[i] = im[j][i] + later_re[i];
                later_re[i] = re[j][i], later_im[i] = im[j][i];
            }
            float* const place = to + (first + j) * apart;
            SumPlace<COUNT>::put(place, own_re, fresh);
            SumPlace<COUNT>::put(place + 8 * LANES, own_im, fresh);
        }
    }
}

// Where and what: transforms of both signals, spectra `distance` pieces apart, factors of both signals' products, what sections are
// multiplied by where both signals meet, a row's place of the sums, `apart` numbers from one section to the next.
struct Both {
    uint4 *x, *v;
    const uint4* spectra;
    long long distance;
    const Pack* factors;
    const float* meeting;
    float* sums;
    long long apart;
    bool x_back, v_back, fresh;
};

// All that words of a lane at part `unit` of the frequencies go into. HELD: registers have room for all sections of both signals,
// and for the spectra; else they are read once more for each purpose, X for so many sums at a time. Transforms are STEP apart.
template <int SECTIONS, int COUNT, int STEP, bool HELD>
__device__ __forceinline__ void section_gradients(const Both& both, int unit, int live, int lane) {
    constexpr int EACH = STEP * (4 / COUNT), LAST = SECTIONS - 1;
    const int at = Portion<COUNT>::place(unit, lane);
    Packs<COUNT>* const own_x = settled_in_device_memory(reinterpret_cast<Packs<COUNT>*>(both.x) + at);
    Packs<COUNT>* const own_v = settled_in_device_memory(reinterpret_cast<Packs<COUNT>*>(both.v) + at);
    float* const to = SumPlace<COUNT>::at(both.sums, unit, lane);
    Portions<SECTIONS, COUNT> v;
    v.load(own_v, EACH, 0, live);
    const Pack* const back_factors = both.factors + SECTIONS * FACTORS<SECTIONS>;
    if constexpr (HELD) {
        Portions<SECTIONS, COUNT> x, k, reversed;
        x.load(own_x, EACH, 0, live);
        section_sums([&](int q) { return x.at[q]; }, v, to, both.apart, both.meeting, both.fresh, live);
        if (both.x_back || both.v_back) k.load(reinterpret_cast<const Packs<COUNT>*>(both.spectra) + at, both.distance * (4 / COUNT));
        if (both.x_back)
            section_products<0, false>(x, k, both.factors, 0, live, [&](int p, const Portion<COUNT>& sum) { sum.store(own_x + p * EACH); });
        if (!both.v_back) return;
#pragma unroll
        for (int q = 0; q < SECTIONS; ++q) reversed.at[q] = v.at[LAST - q];
        section_products<0, true>(reversed, k, back_factors, SECTIONS - live, SECTIONS, [&](int p, const Portion<COUNT>& sum) {
            sum.store(own_v + (LAST - p) * EACH);
        });
    } else {
        const auto x_of = [&](int q) {
            Portion<COUNT> one;
            one.load(own_x + q * EACH);
            return one;
        };
        section_sums(x_of, v, to, both.apart, both.meeting, both.fresh, live);
        if (both.x_back)
            section_products<SECTIONS, 0, COUNT, STEP>(both.x, both.spectra, both.distance, both.factors, unit, 0, live, lane);
        if (both.v_back)  // from the last section on
            section_products<SECTIONS, 0, COUNT, -STEP, true>(
                both.v + LAST * STEP, both.spectra, both.distance, back_factors, unit, SECTIONS - live, SECTIONS, lane);
    }
}

}  // namespace fftgen

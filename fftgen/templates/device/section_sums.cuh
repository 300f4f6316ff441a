// What the spectra of two signals' sections make with each other, for the gradient of a filter:
// D_j = sum over rows and q of conj(X_q) (V_(q+j) + i V_(q+j+1)), section j of it (planner/gradient_sections.py).
#pragma once

#include "fftgen/gradient.cuh"

namespace fftgen {

// A tile of the spectra of all sections of a row: a lane's eight numbers of each, and what undoes their scaling.
template <int SECTIONS>
struct Spectra {
    uint4 re[SECTIONS], im[SECTIONS];
    float down[SECTIONS];

    // Of row `slot` of a signal's workspace, whose transforms have POINTS numbers; zeros in place of sections that hold
    // nothing. BACKWARDS: the last of the `live` ones was the first to be kept.
    template <int POINTS, bool BACKWARDS, typename T>
    __device__ __forceinline__ void load(const Args<T>& args, int slot, int tile, int live, int lane) {
        const uint4* const row = reinterpret_cast<const uint4*>(args.workspace) + slot * (SECTIONS * (POINTS / 4LL)) + 2 * tile * LANES + lane;
        const float* const scales = reinterpret_cast<const float*>(args.peaks) + slot * SECTIONS;
#pragma unroll
        for (int q = 0; q < SECTIONS; ++q) {
            const int step = BACKWARDS ? live - 1 - q : q;
            re[q] = im[q] = uint4{0, 0, 0, 0}, down[q] = 0.0f;
            if (q < live) {
                const uint4* const from = row + step * (POINTS / 4);
                re[q] = from[0], im[q] = from[LANES], down[q] = scales[step];
            }
        }
    }
};

// A tile of the sum for every distance of sections.
template <int SECTIONS>
struct SectionSums {
    Eight at[SECTIONS];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < SECTIONS; ++j)
#pragma unroll
            for (int i = 0; i < 8; ++i) at[j].re[i] = at[j].im[i] = 0.0f;
    }
    __device__ __forceinline__ void add(const Spectra<SECTIONS>& x, const Spectra<SECTIONS>& v) {
#pragma unroll
        for (int q = 0; q < SECTIONS; ++q)
#pragma unroll
            for (int p = q; p < SECTIONS; ++p)
                at[p - q].add(x.re[q], x.im[q], Fragment{v.re[p].x, v.re[p].y, v.re[p].z, v.re[p].w},
                              Fragment{v.im[p].x, v.im[p].y, v.im[p].z, v.im[p].w}, x.down[q] * v.down[p]);
    }
    // From sums of a distance to those of a section, which the next distance reaches into: x^n there is i x^(n - N).
    __device__ __forceinline__ void turn() {
#pragma unroll
        for (int j = 0; j + 1 < SECTIONS; ++j)
#pragma unroll
            for (int i = 0; i < 8; ++i) at[j].re[i] -= at[j + 1].im[i], at[j].im[i] += at[j + 1].re[i];
    }

    // Places of a lane, as Sums has them: pieces LANES apart, sections STEP.
    template <int STEP>
    __device__ __forceinline__ void store(float4* to) const {
#pragma unroll
        for (int j = 0; j < SECTIONS; ++j) at[j].store(Pieces{to + j * STEP}, 0, 0, 0);
    }
    template <int STEP>
    __device__ __forceinline__ void add(const float4* from) {
#pragma unroll
        for (int j = 0; j < SECTIONS; ++j) {
            Eight more;
            more.load(Pieces{const_cast<float4*>(from) + j * STEP}, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 8; ++i) at[j].re[i] += more.re[i], at[j].im[i] += more.im[i];
        }
    }

private:
    struct Pieces {
        float4* first;
        __device__ __forceinline__ float4& piece(int, int, int plane, int half, int) const { return first[(2 * plane + half) * LANES]; }
    };
};

}  // namespace fftgen

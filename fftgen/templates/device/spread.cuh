// Products of the sections of a row whose transforms are all there (planner/spread.py): Y_p = sum_q X_q K_(p-q) at some
// frequencies, for every p, in the place of the X_p. Every X_q and every K_d is read once.
#pragma once

#include "fftgen/sections.cuh"
#include "fftgen/whole.cuh"

namespace fftgen {

// Transforms of the sections of the row that a cluster has, and in their place what these come to: PIECES of 16 bytes.
// Asked anew each time, as the cluster: registers are scarcer.
template <int PIECES, typename T>
__device__ __forceinline__ uint4* cluster_sections(const Args<T>& args) {
    return reinterpret_cast<uint4*>(args.workspace) + Cluster::number() * (long long)PIECES;
}

// So many words of two numbers each, read and written together.
template <int COUNT>
struct alignas(4 * COUNT) Packs {
    Pack v[COUNT];
};

// Of a plane of a tile, which stands as 16 bytes a lane, words that a lane has of part `unit` of a spectrum or transform:
// as many parts as 4 / COUNT to a tile, real and imaginary plane side by side.
template <int COUNT>
struct Portion {
    Packs<COUNT> re, im;

    static __device__ __forceinline__ int place(int unit, int lane) {
        constexpr int PARTS = 4 / COUNT;
        return ((unit / PARTS * 2) * PARTS + unit % PARTS) * LANES + lane;
    }
    static constexpr int PLANE = 4 / COUNT * LANES;  // from one plane to the other

    __device__ __forceinline__ void load(const Packs<COUNT>* from) { re = from[0], im = from[PLANE]; }
    __device__ __forceinline__ void store(Packs<COUNT>* to) const { to[0] = re, to[PLANE] = im; }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) re.v[i] = im.v[i] = 0;
    }
    // += factor * x k, or with k's conjugate
    template <bool CONJUGATE>
    __device__ __forceinline__ void add_product(const Portion& x, const Portion& k, Pack factor) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            Pair a = pair(x.re.v[i]), b = pair(x.im.v[i]);
            twist<CONJUGATE>(a, b, k.re.v[i], k.im.v[i]);
            re.v[i] = fma2(packed(a), factor, re.v[i]);
            im.v[i] = fma2(packed(b), factor, im.v[i]);
        }
    }
    __device__ __forceinline__ void add(const Portion& x) {
        constexpr Pack ONE = 0x3c003c00;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) re.v[i] = fma2(x.re.v[i], ONE, re.v[i]), im.v[i] = fma2(x.im.v[i], ONE, im.v[i]);
    }
};

// From one row of factors, each twice in a word, to the next: whole pieces of 16 bytes.
template <int SECTIONS>
constexpr int FACTORS = (SECTIONS + 3) / 4 * 4;

// Words of a lane of all sections of a row, or of spectra for all distances.
template <int SECTIONS, int COUNT>
struct Portions {
    Portion<COUNT> at[SECTIONS];

    // Those from `begin` to `end` that there are, `apart` words from one to the next; zeros for others.
    __device__ __forceinline__ void load(const Packs<COUNT>* from, int apart, int begin, int end) {
#pragma unroll
        for (int q = 0; q < SECTIONS; ++q) {
            at[q].clear();  // else what was held in the turn before is kept until then
            if (q >= begin && q < end) at[q].load(from + q * apart);
        }
    }
    // All of them, so far apart that sums for every distance would fill registers from one turn to the next.
    __device__ __forceinline__ void load(const Packs<COUNT>* from, long long apart) {
#pragma unroll
        for (int d = 0; d < SECTIONS; ++d) at[d].load(from), from += apart;
    }
};

// Y_p = sum_q X_q K_(p-q), or with K's conjugates, for the sections from `begin` to `end` that there are. AROUND: as
// SectionPowers has it.
//   store(p, sum)
template <int AROUND, bool CONJUGATE, int SECTIONS, int DISTANCES, int COUNT, typename Store>
__device__ __forceinline__ void section_products(
    const Portions<SECTIONS, COUNT>& x, const Portions<DISTANCES, COUNT>& k, const Pack* factors, int begin, int end, Store store) {
    constexpr int RUN = 4;  // terms that are added up by themselves: sums of many are rounded as often
#pragma unroll
    for (int p = 0; p < SECTIONS; ++p) {
        if (p >= end) break;
        if (p < begin) continue;
        const uint4* const row = reinterpret_cast<const uint4*>(factors + p * FACTORS<SECTIONS>);
        Portion<COUNT> sum;
#pragma unroll
        for (int first = 0; first < (AROUND ? SECTIONS : p + 1); first += RUN) {
            if (first >= end) break;
            const uint4 four = row[first / RUN];
            const Pack factor[RUN] = {four.x, four.y, four.z, four.w};
            Portion<COUNT> part;
            part.clear();
#pragma unroll
            for (int q = first; q < first + RUN; ++q) {
                if (q >= SECTIONS || (!AROUND && q > p)) break;
                const int distance = AROUND && q > p ? p - q + AROUND : p - q;
                if (q < end) part.template add_product<CONJUGATE>(x.at[q], k.at[distance], factor[q - first]);
            }
            if (first == 0)
                sum = part;
            else
                sum.add(part);
        }
        store(p, sum);
    }
}

// The same from device memory and back to it, for words of a lane at part `unit` of the frequencies. Spectra are `distance`
// pieces apart, transforms STEP.
template <int SECTIONS, int AROUND, int COUNT, int STEP, bool CONJUGATE = false>
__device__ __forceinline__ void section_products(
    uint4* sections, const uint4* spectra, long long distance, const Pack* factors, int unit, int begin, int end, int lane) {
    constexpr int EACH = STEP * (4 / COUNT);  // words of a lane, from one section to the next
    const int at = Portion<COUNT>::place(unit, lane);
    Packs<COUNT>* const own = settled_in_device_memory(reinterpret_cast<Packs<COUNT>*>(sections) + at);
    Portions<SECTIONS, COUNT> x;
    Portions<AROUND ? AROUND : SECTIONS, COUNT> k;
    x.load(own, EACH, begin, end);
    k.load(reinterpret_cast<const Packs<COUNT>*>(spectra) + at, distance * (4 / COUNT));
    section_products<AROUND, CONJUGATE>(x, k, factors, begin, end, [&](int p, const Portion<COUNT>& sum) { sum.store(own + p * EACH); });
}

}  // namespace fftgen

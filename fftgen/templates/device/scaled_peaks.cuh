// What rows are scaled by, found before a device stage: peaks, and for pairs of rows their norms.
#pragma once

#include "fftgen/powers.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// Calls f with every piece of VECTOR numbers that is a thread's among those of a row from `first` to `end`, which
// are in the peak then: several at a time, so that their loads are under way together.
template <bool GATED, typename T, typename F>
__device__ __forceinline__ void each_piece(
    const RealSource<T>& source, Peak<T>& peak, int first, int end, int thread, int threads, F f) {
    constexpr int AT_ONCE = 4;
    const int step = threads * VECTOR;
    float x[VECTOR];
    int n = first + thread * VECTOR;
    for (; n < end - (AT_ONCE - 1) * step; n += AT_ONCE * step) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) source.template wide<VECTOR, false, GATED>(n + i * step, x, peak), f(x);
    }
#pragma unroll 1
    for (; n < end; n += step) source.template wide<VECTOR, false, GATED>(n, x, peak), f(x);
}
template <typename T, typename F>
__device__ __forceinline__ void each_piece(
    const RealSource<T>& source, Peak<T>& peak, int first, int end, int thread, int threads, F f) {
    if (source.gate == nullptr)
        each_piece<false>(source, peak, first, end, thread, threads, f);
    else
        each_piece<true>(source, peak, first, end, thread, threads, f);
}

// The largest of `count` numbers of a row from `first` on, gated.
template <typename T>
__device__ __forceinline__ unsigned row_peak(const RealSource<T>& source, bool vector, int first, int count, int thread, int threads) {
    Peak<T> peak;
    const int end = min(first + count, source.length);
    if (vector) {
        each_piece(source, peak, first, end, thread, threads, [](const float (&)[VECTOR]) {});
    } else {
        for (int n = first + thread; n < end; n += threads)
            peak.add(source.gate == nullptr ? widen(source.u[n]) : widen(source.u[n]) * widen(source.gate[n]));
    }
    return peak.bits();
}

// Rows of a pair, as the peaks kernel finds them for the others: fp32 bits of the largest absolute values, and
// the sums of squares. A double holds the square of every fp32 number.
struct PairSize {
    unsigned peak[2];
    double squares[2];
    static constexpr int UNITS = 4;  // 4^4 units of squares to one

    __device__ __forceinline__ void powers(Power& re, Power& im) const {
        re = Power(peak[0]), im = Power(peak[1]);
        balance(re, scaled(squares[0], re), im, scaled(squares[1], im));
    }

    static __device__ __forceinline__ double power_of_four(int n) {
        return __hiloint2double((1023 + 2 * n) << 20, 0);
    }
    // Of numbers that the power has brought to [1, 2), in units of SQUARE_UNIT.
    static __device__ __forceinline__ float scaled(double sum, const Power& power) {
        return (float)(sum * power_of_four(127 + UNITS - (int)power.exponent));
    }
};

template <typename T>
__device__ __forceinline__ PairSize& pair_size(const Args<T>& args, int slot) {
    return reinterpret_cast<PairSize*>(args.peaks)[args.first + (long long)slot];
}

// What a thread has seen of a row of a pair: the peak, and the sum of squares scaled by its power.
template <typename T>
struct Seen {
    Peak<T> peak;
    Power power = Power(0);
    float squares = 0.0f;

    // Numbers that are in the peak already.
    template <int V>
    __device__ __forceinline__ void add(const float (&x)[V]) {
        bring(Power(peak.bits()));
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < V; ++i) squares += x[i] * up * (x[i] * up);
    }

    // To the power of a larger peak.
    __device__ __forceinline__ void bring(const Power& larger) {
        const float ratio = __uint_as_float((127u - min(larger.exponent - power.exponent, 127u)) << 23);
        squares *= ratio * ratio, power = larger;
    }

    // A warp's share, in each of its lanes. It is cut to 8 bits: a sum of them in double is then exact, in whatever
    // order the warps come, as long as their shares lie within a factor of 2^34 (2^11 of them in the longest row);
    // beyond, the order shows in the last place of a sum of which only the first four of the root matter.
    __device__ __forceinline__ unsigned share(double& sum) {
        const unsigned most = warp_max(peak.bits());
        bring(Power(most));
        const unsigned units = max(warp_sum(square_units(squares)), 1u);
        const float cut = __uint_as_float(__float_as_uint((float)units) & 0xffff0000u);
        sum = cut * PairSize::power_of_four((int)power.exponent - 127 - PairSize::UNITS);
        return most;
    }

    // Adds it to its row.
    __device__ __forceinline__ void report(PairSize& size, int row, int lane) {
        double sum;
        const unsigned most = share(sum);
        if (lane != 0 || most == 0) return;
        atomicMax(&size.peak[row], most);
        atomicAdd(&size.squares[row], sum);
    }
};

// Looks at `count` numbers of a row from `first` on, gated.
template <typename T>
__device__ __forceinline__ Seen<T> look(const RealSource<T>& source, bool vector, int first, int count, int thread, int threads) {
    Seen<T> seen;
    const int end = min(first + count, source.length);
    if (vector) {
        each_piece(source, seen.peak, first, end, thread, threads, [&](const float (&x)[VECTOR]) { seen.add(x); });
    } else {
        for (int n = first + thread; n < end; n += threads) {
            const float x[1]{source.gate == nullptr ? widen(source.u[n]) : widen(source.u[n]) * widen(source.gate[n])};
            seen.peak.add(x[0]);
            seen.add(x);
        }
    }
    return seen;
}

}  // namespace fftgen

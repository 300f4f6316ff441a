// Strips of columns of a real row that stand in the workspace each scaled by the power of its own peak, and what brings
// them to that of the row when its rows are read. So the tensor is read once, and small numbers keep their digits.
#pragma once

#include "fftgen/scaled_rows.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// The peaks of a transform's strips. Words behind the sizes of all rows, of which each has one.
template <int STRIPS, typename T>
__device__ __forceinline__ unsigned* strip_peaks(const Args<T>& args, int slot) {
    return args.peaks + args.all + slot * (long long)STRIPS;
}

// What brings numbers of strips to the power of the whole row, two neighbouring rows of ACROSS strips to a word, as
// operands hold them; PITCH words from one to the next: banks of their own for what threads read of four.
template <int ACROSS, int PITCH>
struct Ratios {
    Pack* at;

    // Of so many strips, by their peaks and that of the row.
    template <int STRIPS, int THREADS>
    __device__ __forceinline__ void fill(const unsigned* peaks, const Power& row, unsigned thread) const {
        const auto ratio = [&](unsigned strip) { return Power(peaks[strip]).to(row); };
#pragma unroll
        for (int turn = 0; turn < STRIPS / 2; turn += THREADS) {
            const unsigned i = turn + thread, pair = i / ACROSS, first = i + pair * ACROSS;
            if (STRIPS / 2 % THREADS == 0 || i < STRIPS / 2)
                at[i + pair * (PITCH - ACROSS)] = pack(ratio(first), ratio(first + ACROSS));
        }
    }

    // Rows of a strip of operands that starts at strip `first` of ACROSS.
    template <int R, int V>
    __device__ __forceinline__ void rescale(Operands<R, V>& re, Operands<R, V>& im, int first, int lane) const {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const Pack ratio = at[(TILE / 2 * k + lane % 4 + 4 * i) * PITCH + first];
#pragma unroll
                for (int j = 0; j < V; ++j) re.b[k][j][i] = mul2(re.b[k][j][i], ratio), im.b[k][j][i] = mul2(im.b[k][j][i], ratio);
            }
    }
};

}  // namespace fftgen

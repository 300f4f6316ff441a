// Rows of a tensor on their way into scaled fp16: the powers of two that scale them.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// R rows of 32 columns of a real row of a tensor, and their gates, on their way to shared memory while the strip before is
// computed. Rows stand in the order in which operands take them, but for the two lowest bits of their numbers, which are
// exchanged, and halves of those whose third is set: what sixteen threads load together falls on different banks.
template <int R>
struct StripCopy {
    static constexpr int PIECES = R * 4;  // of 16 bytes, of the numbers or of their gates
    uint4* at;

    // n = first + row * stride + column; nothing beyond the row's length.
    template <typename T>
    __device__ __forceinline__ void ask(const RealSource<T>& source, int first, int stride, int lane) const {
        const int group = lane / 4, place = group / 4 * 4 + group % 2 * 2 + group / 2 % 2;
        const int from = first + column_row<R, true>(0, place) * stride + (lane % 4 ^ group / 4 * 2) * 8;
        const unsigned to = settled(shared_address(at + lane));
        const auto rows = [&](const T* row, unsigned to) {
            const size_t near = __cvta_generic_to_global(settled(row + from));
#pragma unroll
            for (int i = 0; i < R / 8; ++i) {
                const int further = column_row<R, true>(i / 2, i % 2 * 8) * stride;
                if (from + further < source.length) copy_async(to + i * LANES * 16, near + further * sizeof(T));
            }
        };
        rows(source.u, to);
        if (source.gate != nullptr) rows(source.gate, to + PIECES * 16);
        commit();
    }

    // Four neighbours from column 4g on of row 2t, and how much further those of row i of tile k are; in bytes.
    __device__ __forceinline__ unsigned first(int lane) const {
        const int g = lane / 4, t = lane % 4;
        return settled(shared_address(at) + (t / 2 * 4 + t % 2) * 64 + (g / 2 ^ t / 2 * 2) * 16 + g % 2 * 8);
    }
    static __device__ __forceinline__ constexpr int further(int k, int i) { return (TILE * k + i / 2 * 8 + i % 2 * 2) * 64; }
};

// Words of shared memory, by their address there.
__device__ __forceinline__ void load_shared(unsigned from, unsigned (&w)[2]) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(from) : "memory");
}

// R rows of a strip, on their way from a tensor; PARTED: even ones before odd ones, if half of them fill whole tiles.
template <int R, int V, bool PARTED>
struct Strip : Operands<R, V> {
    using Operands<R, V>::b;
    unsigned peak;  // of the strip: the numbers were scaled by its power

    // A real row, n = first + row * stride + column, zero beyond its length; scaled by the strip's own power.
    template <bool SHARED, typename Source>
    __device__ __forceinline__ void fetch(const Source& source, int first, int stride, int lane) {
        const int at = first + column_row<R, PARTED>(0, lane % 4 * 2) * stride + lane / 4 * V;
        if (source.gate == nullptr)
            load<SHARED, false>(source, at, stride);
        else
            load<SHARED, true>(source, at, stride);
        __syncwarp();  // one strip after another: the numbers of two in fp32 would not fit the registers
    }

    // The same of a row whose strip has been asked for, and has come.
    template <typename Source>
    __device__ __forceinline__ void fetch(const Source& source, const StripCopy<R>& copy, int first, int stride, int lane) {
        static_assert(V == 4 && PARTED, "a strip of 32 columns of a real row");
        if (source.gate == nullptr)
            load_copy<false>(source, copy, first, stride, lane);
        else
            load_copy<true>(source, copy, first, stride, lane);
        __syncwarp();  // nobody reads any more what is asked for next
    }
    template <bool GATED, typename Source>
    __device__ __forceinline__ void load_copy(const Source& source, const StripCopy<R>& copy, int first, int stride, int lane) {
        const int left = source.length - (first + column_row<R, PARTED>(0, lane % 4 * 2) * stride + lane / 4 * V);
        const unsigned from = copy.first(lane);
        Numbers<Source, GATED> x;
        Peak<typename Source::Number> most;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                unsigned w[V / 2] = {}, g[V / 2] = {};
                if (column_row<R, PARTED>(k, i % 2 + i / 2 * 8) * stride < left) {
                    load_shared(from + StripCopy<R>::further(k, i), w);
                    if constexpr (GATED) load_shared(from + StripCopy<R>::further(k, i) + StripCopy<R>::PIECES * 16, g);
                }
                x.at[k][i].take(w, g, most);
            }
        peak = warp_max(most.bits());
        scale(x, Power(peak));
    }

    // The same of two rows that are gated alike: all of both is asked for before anything is looked at.
    template <typename Source>
    __device__ __forceinline__ void fetch_both(Strip& other, const Source& source, const Source& and_other, int first, int stride, int lane) {
        const int at = first + column_row<R, PARTED>(0, lane % 4 * 2) * stride + lane / 4 * V;
        if (source.gate == nullptr)
            load_both<false>(other, source, and_other, at, stride);
        else
            load_both<true>(other, source, and_other, at, stride);
    }

    template <bool GATED, typename Source>
    __device__ __forceinline__ void load_both(Strip& other, const Source& source, const Source& and_other, int at, int stride) {
        Numbers<Source, GATED> x, y;
        Peak<typename Source::Number> most, most_other;
        wide<false, GATED>(source, at, stride, x, most);
        wide<false, GATED>(and_other, at, stride, y, most_other);
        peak = warp_max(most.bits()), other.peak = warp_max(most_other.bits());
        scale(x, Power(peak)), other.scale(y, Power(other.peak));
    }

    // The same, scaled by a power that is known; of rows that share a transform zeros in place of what is not finite.
    template <bool SHARED, typename Source>
    __device__ __forceinline__ void fetch(const Source& source, int first, int stride, int lane, const Power& power) {
        const int at = first + column_row<R, PARTED>(0, lane % 4 * 2) * stride + lane / 4 * V;
        if (source.gate == nullptr)
            fetch_scaled<SHARED, false>(source, at, stride, power);
        else
            fetch_scaled<SHARED, true>(source, at, stride, power);
        if (!PARTED && !power.finite)
            clear();
        else if (!PARTED && power.factor != 1.0f)
            times(ratio(power, power));
    }

    template <bool SHARED, bool GATED, typename Source>
    __device__ __forceinline__ void load(const Source& source, int at, int stride) {
        Numbers<Source, GATED> x;
        Peak<typename Source::Number> most;
        wide<SHARED, GATED>(source, at, stride, x, most);
        peak = warp_max(most.bits());
        scale(x, Power(peak));
    }
    template <bool SHARED, bool GATED, typename Source>
    __device__ __forceinline__ void fetch_scaled(const Source& source, int at, int stride, const Power& power) {
        Numbers<Source, GATED> x;
        Peak<typename Source::Number> unused;
        wide<SHARED, GATED>(source, at, stride, x, unused);
        scale(x, power);
    }

    template <typename Source, bool GATED>
    struct Numbers {
        Unscaled<V, GATED, typename Source::Number> at[R / TILE][4];
    };
    template <bool SHARED, bool GATED, typename Source>
    static __device__ __forceinline__ void wide(
        const Source& source, int at, int stride, Numbers<Source, GATED>& x, Peak<typename Source::Number>& most) {
        const Source near = source.template from<SHARED, GATED>(at);
        unsigned w[R / TILE][4][V / 2], g[R / TILE][4][V / 2];
        const auto load = [&](auto there) {
#pragma unroll
            for (int k = 0; k < R / TILE; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    near.template load<V, SHARED, GATED>(column_row<R, PARTED>(k, i % 2 + i / 2 * 8) * stride, w[k][i], g[k][i], there);
        };
        if (source.length >= R * stride)  // all the same branch: nothing to compare, and no zeros
            load(All{});
        else
            load(Some{});
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) x.at[k][i].take(w[k][i], g[k][i], most);
    }

    template <typename From>
    __device__ __forceinline__ void scale(const From& x, const Power& power) {
        const float up = power.up();
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            float y[4][V];
#pragma unroll
            for (int i = 0; i < 4; ++i) x.at[k][i].scaled(up, y[i]);
#pragma unroll
            for (int j = 0; j < V; ++j) b[k][j][0] = pack(y[0][j], y[1][j]), b[k][j][1] = pack(y[2][j], y[3][j]);
        }
    }

    // Brings the numbers to the power of the whole row; a row that is not finite becomes zeros, lest it spoil
    // the one that shares its transform, where it shares one.
    __device__ __forceinline__ void rescale(const Power& row) {
        const Power mine(peak);
        if (!PARTED && !row.finite)
            clear();
        else if (mine.exponent != row.exponent || (!PARTED && row.factor != 1.0f))
            times(ratio(mine, row));
    }

    __device__ __forceinline__ void times(Pack ratio) {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) b[k][j][0] = mul2(b[k][j][0], ratio), b[k][j][1] = mul2(b[k][j][1], ratio);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) b[k][j][0] = b[k][j][1] = 0;
    }

    // What a row of a pair asks of its strips: the peak, with the sum of the scaled squares (Squares) in place
    // of its mantissa. Words compare as the exponents do; that of zeros, and no other, is zero. (Beside peaks
    // below 2^-126 or above 2^127 the sum is up to four times too small: their power is that of the next.)
    __device__ __forceinline__ unsigned size() const {
        static_assert(R * 8 * V * 16 * 256 < 1 << 23, "the sum of squares fits the mantissa");
        Squares squares;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k)
#pragma unroll
            for (int j = 0; j < V; ++j) squares.add(b[k][j][0]), squares.add(b[k][j][1]);
        return (peak & 0x7f800000u) | max(squares.total(), min(peak, 1u));
    }
};

// A strip of channels abreast, on its way from two rows: of each TILE / ABREAST rows of numbers, scaled by itself.
template <int V>
struct StripAbreast : Operands<TILE, V> {
    using Operands<TILE, V>::b;
    unsigned peak[ABREAST];  // of the strip: the numbers of each were scaled by its power

    // n = first + row * stride + column, zero beyond a row's length.
    template <bool SHARED, typename Source>
    __device__ __forceinline__ void fetch(const Source& source, int first, int stride, int lane) {
        if (!source.gated())
            load<SHARED, false>(source, first, stride, lane);
        else
            load<SHARED, true>(source, first, stride, lane);
        __syncwarp();  // one strip after another: the numbers of two in fp32 would not fit the registers
    }

    // The same of two signals that are gated alike: all of both is asked for before anything is looked at.
    template <typename Source>
    __device__ __forceinline__ void fetch_both(
        StripAbreast& other, const Source& source, const Source& and_other, int first, int stride, int lane) {
        if (source.gated())
            load_both<true>(other, source, and_other, first, stride, lane);
        else
            load_both<false>(other, source, and_other, first, stride, lane);
    }

    // What a row of a pair asks of its strips (Strip::size).
    __device__ __forceinline__ unsigned size(int channel) const {
        static_assert(TILE / ABREAST * 8 * V * 16 * 256 < 1 << 23, "the sum of squares fits the mantissa");
        Squares squares;
#pragma unroll
        for (int j = 0; j < V; ++j) squares.add(b[0][j][channel]);
        return (peak[channel] & 0x7f800000u) | max(squares.total(), min(peak[channel], 1u));
    }

    // Brings the numbers of each channel to the power of its whole row; a row that is not finite becomes zeros.
    __device__ __forceinline__ void rescale(const Power& even, const Power& odd) {
#pragma unroll
        for (int i = 0; i < ABREAST; ++i) {
            const Power& row = i == 0 ? even : odd;
            const Pack by = ratio(Power(peak[i]), row);
#pragma unroll
            for (int j = 0; j < V; ++j) b[0][j][i] = mul2(b[0][j][i], by);
        }
        if (!even.finite || !odd.finite) {
            __syncwarp();  // a branch, which all take or none: a choice for every number would be as many instructions
#pragma unroll
            for (int j = 0; j < V; ++j) b[0][j][0] = even.finite ? b[0][j][0] : 0, b[0][j][1] = odd.finite ? b[0][j][1] : 0;
        }
    }

private:
    template <typename Source, bool GATED>
    struct Wide {
        Unscaled<V, GATED, typename Source::Number> x[2 * ABREAST];
        unsigned peak[ABREAST];
    };

    template <bool SHARED, bool GATED, typename Source>
    __device__ __forceinline__ void load(const Source& source, int first, int stride, int lane) {
        Wide<Source, GATED> x;
        wide<SHARED, GATED>(source, first, stride, lane, x);
        scale(x);
    }

    template <bool GATED, typename Source>
    __device__ __forceinline__ void load_both(
        StripAbreast& other, const Source& source, const Source& and_other, int first, int stride, int lane) {
        Wide<Source, GATED> x, y;
        wide<false, GATED>(source, first, stride, lane, x), wide<false, GATED>(and_other, first, stride, lane, y);
        scale(x), other.scale(y);
    }

    template <bool SHARED, bool GATED, typename Source>
    static __device__ __forceinline__ void wide(const Source& source, int first, int stride, int lane, Wide<Source, GATED>& to) {
        const int at = first + lane % 4 * 2 * stride + lane / 4 * V;
        Peak<typename Source::Number> most[ABREAST];
#pragma unroll
        for (int i = 0; i < ABREAST; ++i) {
            const auto& row = i == 0 ? source.even : source.odd;
            const auto near = row.template from<SHARED, GATED>(at);
            unsigned w[2][V / 2], g[2][V / 2];
            const auto load = [&](auto there) {
#pragma unroll
                for (int j = 0; j < 2; ++j) near.template load<V, SHARED, GATED>(j * stride, w[j], g[j], there);
            };
            if (row.length >= TILE / ABREAST * stride)
                load(All{});
            else
                load(Some{});
#pragma unroll
            for (int j = 0; j < 2; ++j) to.x[2 * i + j].take(w[j], g[j], most[i]);
        }
#pragma unroll
        for (int i = 0; i < ABREAST; ++i) to.peak[i] = most[i].bits();
    }

    template <typename From>
    __device__ __forceinline__ void scale(const From& from) {
#pragma unroll
        for (int i = 0; i < ABREAST; ++i) {
            peak[i] = warp_max(from.peak[i]);
            const float up = Power(peak[i]).up();
            float x[2][V];
            from.x[2 * i].scaled(up, x[0]), from.x[2 * i + 1].scaled(up, x[1]);
#pragma unroll
            for (int j = 0; j < V; ++j) b[0][j][i] = pack(x[0][j], x[1][j]);
        }
    }
};

// The peak of a block's row from those of its strips; `slots` has one for each. A barrier of the caller's lies
// between writing and reading, and another before they are written again.
template <int STRIPS>
__device__ __forceinline__ Power row_power(const unsigned* slots, int lane) {
    static_assert(STRIPS <= LANES, "a lane reads the peak of a strip");
    return Power(warp_max(lane < STRIPS ? slots[lane] : 0u));
}

// The same for the two rows of a pair from what Strip::size says, each brought to the norm of the other.
template <int STRIPS>
__device__ __forceinline__ void pair_powers(const unsigned* slots, int lane, Power& re, Power& im) {
    const auto row = [&](const unsigned* sizes, Power& power) {
        const unsigned mine = lane < STRIPS ? sizes[lane] : 0u, most = warp_max(mine);
        power = Power(most);
        const unsigned less = ((most & 0x7f800000u) - (mine & 0x7f800000u)) >> 22;  // powers of two of a square
        return (float)warp_sum((mine & 0x7fffffu) >> min(less, 31u));
    };
    static_assert(STRIPS <= LANES, "a lane reads the size of a strip");
    const float re2 = row(slots, re), im2 = row(slots + LANES, im);
    balance(re, re2, im, im2);
}

// N numbers of one row, gated: eight neighbours to a lane.
template <int N, typename T>
struct Block {
    static constexpr int STEPS = N / (LANES * VECTOR);
    float x[STEPS][VECTOR];
    Peak<T> peak;

    template <bool SHARED>
    __device__ __forceinline__ void fetch(const RealSource<T>& source, int lane) {
        if (source.gate == nullptr) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
                source.template wide<VECTOR, SHARED, false>((i * LANES + lane) * VECTOR, x[i], peak);
        } else {
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
                source.template wide<VECTOR, SHARED, true>((i * LANES + lane) * VECTOR, x[i], peak);
        }
    }

    // Scaled, into shared memory, a row that is not finite as it is. Returns what undoes the scaling.
    __device__ __forceinline__ float store(uint4* to, int lane) const {
        const Power power(warp_max(peak.bits()));
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            to[place<8>(i * LANES + lane, 0)] = {pack(x[i][0] * up, x[i][1] * up), pack(x[i][2] * up, x[i][3] * up),
                                                 pack(x[i][4] * up, x[i][5] * up), pack(x[i][6] * up, x[i][7] * up)};
        }
        return power.down();
    }

    // Scaled and packed; adds up the squares.
    __device__ __forceinline__ void scale(const Power& power, Pack (&y)[STEPS][4], Squares& squares) const {
        const float up = power.up();
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                y[i][j] = pack(x[i][2 * j] * up, x[i][2 * j + 1] * up);
                squares.add(y[i][j]);
            }
    }
};

// The two rows of a pair as Block::store has them, each brought to the norm of the other.
template <int N, typename T>
__device__ __forceinline__ void store_pair(
    const Block<N, T>& re, const Block<N, T>& im, uint4* to_re, uint4* to_im, int lane, float& re_down, float& im_down) {
    constexpr int STEPS = Block<N, T>::STEPS;
    static_assert(STEPS * VECTOR * 16 < 1 << 15, "the sum of squares of a thread");
    Power power[2]{Power(warp_max(re.peak.bits())), Power(warp_max(im.peak.bits()))};
    Pack y[2][STEPS][4];
    Squares squares[2];
    re.scale(power[0], y[0], squares[0]), im.scale(power[1], y[1], squares[1]);
    balance(power[0], squares[0].total(), power[1], squares[1].total());
    re_down = power[0].down(), im_down = power[1].down();
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        if (!power[p].finite) {
#pragma unroll
            for (int i = 0; i < STEPS; ++i) y[p][i][0] = y[p][i][1] = y[p][i][2] = y[p][i][3] = 0;
        } else if (power[p].factor != 1.0f) {
            const Pack more = ratio(power[p], power[p]);
#pragma unroll
            for (int i = 0; i < STEPS; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) y[p][i][j] = mul2(y[p][i][j], more);
        }
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
            (p == 0 ? to_re : to_im)[place<8>(i * LANES + lane, 0)] = uint4{y[p][i][0], y[p][i][1], y[p][i][2], y[p][i][3]};
    }
}

}  // namespace fftgen

// The device stage: a DFT along columns between a tensor and the workspace (operands, real plane before imaginary),
// a strip of 8 V columns to a warp, everything in registers.
#pragma once

#include "fftgen/columns.cuh"

namespace fftgen {

// A copy of a strip in shared memory, for rows that start anywhere: R rows of COLUMNS numbers, then their gates.
template <int R, int COLUMNS, typename T>
__device__ __forceinline__ RealSource<T> staged_strip(const RealSource<T>& source, void* memory, int first, int stride, int lane) {
    T* const copy = reinterpret_cast<T*>(memory);
    for (int i = lane; i < R * COLUMNS; i += LANES) {
        const int n = first + i / COLUMNS * stride + i % COLUMNS;
        copy[i] = n < source.length ? source.u[n] : T(0.0f);
        if (source.gate != nullptr) copy[R * COLUMNS + i] = n < source.length ? source.gate[n] : T(0.0f);
    }
    return {copy, source.gate == nullptr ? nullptr : copy + R * COLUMNS, R * COLUMNS, true};
}

// What strips of 8 V columns are multiplied by, there or back: the matrix, and twiddles in two levels, the low one of
// SPLIT columns. A warp that takes every STEP-th strip may hold low twiddles: all its strips have the same.
template <int R, int V, int SPLIT, bool COMPLEX, int STEP, bool HELD_TWIDDLES, bool HELD_MATRIX>
struct StripTables {
    static constexpr int STRIPS = SPLIT / (8 * V);
    static_assert(!HELD_TWIDDLES || STEP % STRIPS == 0, "strips of a warp share low twiddles");
    using Low = Tiles<Planes3<false>, R / TILE * V / 2, HELD_TWIDDLES>;

    const Tiles<Planes3<COMPLEX>, R / TILE * TABLE_TILES<R, COMPLEX>, HELD_MATRIX> matrix;
    const unsigned char *low, *high;
    const Low first;  // of the first strip

    __device__ __forceinline__ StripTables(
        const unsigned char* matrix, const unsigned char* low, const unsigned char* high, int strip, int lane)
        : matrix(matrix, 0, lane), low(low), high(high), first(low_of(strip, lane)) {}
    __device__ __forceinline__ Low low_of(int strip, int lane) const { return Low(low, strip % STRIPS * (R * V * 2), lane); }
    __device__ __forceinline__ Low twiddles(int strip, int lane) const {
        if constexpr (HELD_TWIDDLES)
            return first;
        else
            return low_of(strip, lane);
    }
};

// X[k, r] = T(k, r) sum_n F[k, n] x[n, r] for a strip, into rows of the workspace, 2 V columns of a thread as
// they stand: place 2 j + b of a run of 2 V is column j + V b.
template <int REST, int R, int V, int SPLIT, bool COMPLEX, int STEP, bool... HELD, typename To>
__device__ __forceinline__ void device_forward(
    const StripTables<R, V, SPLIT, COMPLEX, STEP, HELD...>& tables, const Pack (&xr)[R / TILE][V][2],
    const Pack (&xi)[R / TILE][V][2], const To& to, int strip, int tiles, int lane) {
    const auto low = tables.twiddles(strip, lane);
    const uint2* const high_twiddles = reinterpret_cast<const uint2*>(tables.high);
    const int g = lane / 4, t = lane % 4;
    constexpr int STRIPS = SPLIT / (8 * V);
    const auto planes = [&](int i, int) { return tables.matrix(i); };
    const auto done = [&](int m, int, const ColumnResult<R, COMPLEX>(&sr)[V], const ColumnResult<R, COMPLEX>(&si)[V]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = TILE * m + 8 * i + g;
            const uint2 high = high_twiddles[strip / STRIPS * R + row];
            Pair a[V], b[V];
#pragma unroll
            for (int j = 0; j < V; ++j) {
                a[j] = pair(sr[j], i), b[j] = pair(si[j], i);
                twist<false>(a[j], b[j], high.x, high.y);
            }
            const int column = strip * 8 * V + t * 2 * V;
            if constexpr (V == 2) {
                const uint4 w = low.from[(2 * m + i) * LANES + lane];
                twist<false>(a[0], b[0], w.x, w.z);
                twist<false>(a[1], b[1], w.y, w.w);
                to.template put<REST>(row, column, {packed(a[0]), packed(a[1])}, {packed(b[0]), packed(b[1])});
            } else {
#pragma unroll
                for (int h = 0; h < V / 4; ++h) {
                    const auto w = low((2 * m + i) * (V / 4) + h);
                    Pair *const x = a + 4 * h, *const y = b + 4 * h;
#pragma unroll
                    for (int j = 0; j < 4; ++j) twist<false>(x[j], y[j], w.re.r[j], w.im.r[j]);
                    to.template put<REST>(
                        row, column + 8 * h, {packed(x[0]), packed(x[1]), packed(x[2]), packed(x[3])},
                        {packed(y[0]), packed(y[1]), packed(y[2]), packed(y[3])});
                }
            }
        }
    };
    columns_there<R, V, COMPLEX>(xr, xi, tiles, [=] { return lane; }, planes, done);
}

// A strip of the workspace, both planes.
template <int R, int V>
__device__ __forceinline__ void take(Operands<R, V>& re, Operands<R, V>& im, const Complex& from, int first, int stride, int lane) {
    re.take(from.re, first, stride, lane);
    im.take(from.im, first, stride, lane);
}

// Gates of a strip's results have a place in shared memory for each piece of V numbers that a thread stores: it asks for
// them before it has the strip, and reads them itself. What waits for device memory then waits once, and not for every row
// tile. So many for a number:
template <typename Sink>
constexpr int GATES = 1;
template <typename T, bool MAYBE>
constexpr int GATES<TwinSink<T, MAYBE>> = 2;
template <typename Row>
constexpr int GATES<PairSink<Row>> = 2 * GATES<Row>;

template <int V>
struct Copies {
    unsigned char* at;  // of the first gate of a piece, of this thread's

    __device__ __forceinline__ Copies after(int gates) const { return {at + gates * (LANES * 2 * V)}; }

    template <typename T>
    __device__ __forceinline__ void ask(const RealSink<T>& sink, int n) const {
        if (!sink.vector || sink.gate == nullptr || n >= sink.length) return;
        copy_async<2 * V>(shared_address(at), __cvta_generic_to_global(sink.gate + n));
    }
    template <typename T>
    __device__ __forceinline__ Held<V> held(const RealSink<T>& sink, int n) const {
        Held<V> found = {};
        if (sink.vector && sink.gate != nullptr && n < sink.length) load_words<true>(reinterpret_cast<const T*>(at), found.g);
        return found;
    }

    template <typename T, bool MAYBE>
    __device__ __forceinline__ void ask(const TwinSink<T, MAYBE>& sink, int n) const {
        ask<T>(static_cast<const RealSink<T>&>(sink), n);
        if (sink.both()) after(1).ask(sink.second(), n);
    }
    template <typename T, bool MAYBE>
    __device__ __forceinline__ Two<Held<V>> held(const TwinSink<T, MAYBE>& sink, int n) const {
        Two<Held<V>> found{held<T>(static_cast<const RealSink<T>&>(sink), n), {}};
        if (sink.both()) found.second = after(1).held(sink.second(), n);
        return found;
    }

    template <typename Row>
    __device__ __forceinline__ void ask(const PairSink<Row>& sink, int n) const {
        ask(sink.even, n), after(GATES<Row>).ask(sink.odd, n);
    }
    template <typename Row>
    __device__ __forceinline__ auto held(const PairSink<Row>& sink, int n) const {
        return Two<decltype(held(sink.even, n))>{held(sink.even, n), after(GATES<Row>).held(sink.odd, n)};
    }
};

// Whose results go to one row: from a thread's first place on others are constants further, and addresses do not spill. (Of
// two rows the addresses of both would.)
template <typename Sink>
constexpr bool ONE_ROW = false;
template <typename T>
constexpr bool ONE_ROW<RealSink<T>> = true;

// x[n, r] = sum_k F*[n, k] T*(k, r) X[k, r] for a strip of the workspace, 2 V neighbouring columns at a time, to
// place n * REST + r of the sink. Where the tables are not COMPLEX, im is not computed. Row tiles from `tiles` on are not wanted.
// The gates are in `copies`, so many pieces in shared memory, if any.
template <int REST, int PIECES, int R, int V, int SPLIT, bool COMPLEX, int STEP, bool... HELD, typename From, typename Sink>
__device__ __forceinline__ void device_inverse(
    const StripTables<R, V, SPLIT, COMPLEX, STEP, HELD...>& tables, const From& from, int strip, int tiles, int lane, const Sink& whole,
    uint4* copies = nullptr) {
    constexpr bool REAL = !COMPLEX, BROUGHT = PIECES > 0, BUTTERFLY = BUTTERFLIED<R, COMPLEX>;
    static_assert(!BROUGHT || PIECES == R * V * GATES<Sink>, "room for the gates of a strip");
    constexpr int SOME = SOME_TILES<R>;
    const Pack signs = odd_rows(lane);
    const auto low = tables.twiddles(strip, lane);
    const uint4* const high = reinterpret_cast<const uint4*>(tables.high);
    const int t = lane % 4;
    constexpr int STRIPS = SPLIT / (8 * V);
    using Gates = decltype(whole.template hold<2 * V>(0));
    constexpr bool HOLD = !BROUGHT && sizeof(Gates) <= (R <= 32 ? 32 : 16);  // gates of a row tile are on their way meanwhile
    const auto place = [&](int row) { return row * REST + strip * 8 * V + 2 * V * t; };
    constexpr bool NEAR = BUTTERFLY && ONE_ROW<Sink>;
    const auto sink = [&] {
        if constexpr (NEAR)
            return whole.from(place(BUTTERFLIES * (lane / 4)));
        else
            return whole;
    }();
    const auto at = [&](int m, int i) {
        if constexpr (NEAR) return (BUTTERFLIES * 8 * i + m) * REST;
        const int n = 8 * i + lane / 4;  // of row tile m
        return place(BUTTERFLY ? BUTTERFLIES * n + m : TILE * m + n);
    };
    if constexpr (BUTTERFLY) tiles = R / TILE;  // each has rows from one end of the strip to the other
    const Copies<2 * V> first_copy{reinterpret_cast<unsigned char*>(copies) + lane * (4 * V)};
    const auto copy = [&](int m, int i) { return first_copy.after((2 * m + i) * GATES<Sink>); };
    if constexpr (BROUGHT) {
#pragma unroll
        for (int m = 0; m < R / TILE; ++m)
            if (m < tiles) copy(m, 0).ask(sink, at(m, 0)), copy(m, 1).ask(sink, at(m, 1));
        commit();
    }
    Operands<R, V> re, im;
    take(re, im, from, strip * 8 * V, REST, lane);
#pragma unroll
    for (int k = 0; k < R / TILE; ++k) {
        const uint4 h = high[(strip / STRIPS * (R / TILE) + k) * 4 + t];
#pragma unroll
        for (int c = 0; c < V / 2; ++c) {
            const auto w = low(k * (V / 2) + c);
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    Pack &a = re.b[k][2 * c + j][i], &b = im.b[k][2 * c + j][i];
                    Pair x = pair(a), y = pair(b);
                    twist<true>(x, y, i == 0 ? h.x : h.z, i == 0 ? h.y : h.w);
                    twist<true>(x, y, w.re.r[2 * j + i], w.im.r[2 * j + i]);
                    a = packed(x), b = packed(y);
                }
        }
    }
    if constexpr (BUTTERFLY) {
#pragma unroll
        for (int i = 0; i < 2 * V; ++i)
            butterflies_of<R / TILE, true>([&](int k) -> Pack& { return re.b[k][i / 2][i % 2]; }, [&](int k) -> Pack& { return im.b[k][i / 2][i % 2]; });
    }
    if constexpr (BROUGHT) wait<0>();
#pragma unroll
    for (int m = 0; m < R / TILE; ++m) {
        if (m < tiles) {
            Gates first, second;
            if constexpr (HOLD) first = sink.template hold<2 * V>(at(m, 0)), second = sink.template hold<2 * V>(at(m, 1));
            Result<true> yr[V], yi[V];
#pragma unroll
            for (int j = 0; j < V; ++j) yr[j].clear(), yi[j].clear();
            const auto add = [&](const Planes3<!REAL>& f, int k) {
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    const Pack* const r = re.b[k][j];
                    const Pack* const i = im.b[k][j];
                    if constexpr (REAL)  // the planes are (re, -im)
                        yr[j].add(f.re, r[0], r[1]), yr[j].add(f.im, i[0], i[1]);
                    else
                        multiply(yr[j], yi[j], f, r[0], r[1], i[0], i[1]);
                }
            };
            if constexpr (BUTTERFLY) {
                add(inverse(tables.matrix(m)), m);
            } else {
#pragma unroll
                for (int k = 0; k < SOME; ++k) {
                    const Planes3<!REAL> f = inverse(tables.matrix(m * SOME + k));
                    add(f, k);
                    if constexpr (SOME < R / TILE) add(turned(f, signs), k + SOME);
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float a[2 * V], b[2 * V];
#pragma unroll
                for (int j = 0; j < 2 * V; ++j) a[j] = yr[j % V].v[2 * i + j / V], b[j] = yi[j % V].v[2 * i + j / V];
                if constexpr (BROUGHT)
                    sink.store(at(m, i), a, b, copy(m, i).held(sink, at(m, i)));
                else if constexpr (HOLD)
                    sink.store(at(m, i), a, b, i == 0 ? first : second);
                else
                    sink.store(at(m, i), a, b);
            }
        }
    }
}

}  // namespace fftgen

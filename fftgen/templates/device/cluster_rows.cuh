// Rows of a transform in the shared memory of its block, or of a cluster's blocks, in place of the workspace in the L2.
// Block b holds rows ROWS b .. + ROWS - 1; what goes to others and comes from there (distributed shared memory: PTX ISA,
// "mapa"; "ld" and "st" with .shared::cluster) is as wide as sectors of device memory (Hopper tuning guide).
//
// A row is a matrix of LINES x 8 PIECES numbers. Where not all of it has room its first HELD lines have, and the others
// stand in the workspace; while a team of warps works on the row they are in room of the team's own.
#pragma once

#include "fftgen/device.cuh"

namespace fftgen {

// The address that means in block `rank` of the cluster what `address` means in this one.
__device__ __forceinline__ unsigned peer(unsigned address, int rank) {
    unsigned x;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(x) : "r"(address), "r"(rank));
    return x;
}

__device__ __forceinline__ void store_peer(unsigned at, const Pack (&x)[4]) {
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}
__device__ __forceinline__ void store_peer(unsigned at, const Pack (&x)[2]) {
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(x[0]), "r"(x[1]) : "memory");
}
__device__ __forceinline__ void load_peer(unsigned at, unsigned (&w)[2]) {
    asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(at));
}
__device__ __forceinline__ void load_peer(unsigned at, unsigned (&w)[1]) {
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(w[0]) : "r"(at));
}

__device__ __forceinline__ void store_own(Operand* at, const Pack (&x)[4]) {
    *reinterpret_cast<uint4*>(at) = uint4{x[0], x[1], x[2], x[3]};
}
__device__ __forceinline__ void store_own(Operand* at, const Pack (&x)[2]) {
    *reinterpret_cast<uint2*>(at) = uint2{x[0], x[1]};
}

// Lines that are PITCH pieces apart; from line HELD on, `jump` further.
template <int PITCH, int HELD>
struct HeldLines {
    int jump;
};
template <int PITCH, int HELD>
__device__ __forceinline__ int line(const HeldLines<PITCH, HELD>& lines, int row) {
    return row * PITCH + (row < HELD ? 0 : lines.jump);
}

// A block's rows, of RADIX.
template <int ROWS, int RADIX, int LINES, int HELD, int PIECES>
struct ClusterRows {
    static constexpr bool ALONE = ROWS == RADIX, ALL = HELD == LINES;
    // In pieces: between lines, whose planes are side by side, and rows; the room of a team.
    static constexpr int LINE = 2 * PIECES, PITCH = HELD * LINE + 8, ROOM = ALL ? 0 : (LINES - HELD) * LINE + 8;

    uint4* rows;

    // In pieces. Neighbouring rows begin four pieces apart, every second one two: what eight threads of the outer
    // stage store together, four pieces of two rows, or load, two pieces of four rows, falls on different banks. Eight
    // rows further is a constant further, which threads need not work out.
    static __device__ __forceinline__ int start(unsigned row) {
        const unsigned own = ALONE ? row : row % ROWS;
        return own / 8 * (8 * PITCH) + own % 8 * PITCH + (row % 8 / 2 * 2 + row % 2 * 4) % 8;
    }

    // Where lines of a row are, from its start on, while a team works on it: all on banks that fit together.
    static __device__ __forceinline__ auto lines(int row, int team) {
        if constexpr (ALL)
            return LINE;
        else
            return HeldLines<LINE, HELD>{ROWS * PITCH + team * ROOM - row % ROWS * PITCH - HELD * LINE};
    }

    __device__ __forceinline__ Operand* own(int row, int column) const {
        const unsigned piece = column / 8u, n = piece / PIECES;
        return reinterpret_cast<Operand*>(rows + start(row) + n * LINE + place<ANY_WIDTH>(piece % PIECES, n)) + column % 8u;
    }
    __device__ __forceinline__ unsigned address(int row, int column) const {
        return peer(shared_address(own(row, column)), row / ROWS);
    }

    // Numbers of the outer stage, to where their row is: of strips of columns in lines that are here.
    template <int REST, int C>
    __device__ __forceinline__ void put(int row, int column, const Pack (&x)[C], const Pack (&y)[C]) const {
        if constexpr (ALONE) {
            Operand* const at = own(row, column);
            store_own(at, x), store_own(at + 8 * PIECES, y);
        } else {
            const unsigned at = address(row, column);
            store_peer(at, x), store_peer(at + 16 * PIECES, y);
        }
    }
};

// A strip of the outer stage from there.
template <int R, int V, int ROWS, int LINES, int HELD, int PIECES>
__device__ __forceinline__ void take(
    Operands<R, V>& re, Operands<R, V>& im, const ClusterRows<ROWS, R, LINES, HELD, PIECES>& from, int first, int, int lane) {
#pragma unroll
    for (int k = 0; k < R / TILE; ++k) {
        unsigned x[4][V / 2], y[4][V / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = TILE * k + i % 2 + i / 2 * 8 + lane % 4 * 2, column = first + lane / 4 * V;
            if constexpr (ROWS == R) {
                const Operand* const at = from.own(row, column);
                load_plane(at, x[i]), load_plane(at + 8 * PIECES, y[i]);
            } else {
                const unsigned at = from.address(row, column);
                load_peer(at, x[i]), load_peer(at + 16 * PIECES, y[i]);
            }
        }
        re.interleave(k, x), im.interleave(k, y);
    }
}

// One of the block's own rows: from there into registers, and back in place.
template <int HELD, int PIECES>
struct ClusterRow {
    static constexpr int LINE = 2 * PIECES;

    uint4* re;
    uint4* im;
    Complex rest;  // the row's place in the workspace

    template <int R, int V>
    __device__ __forceinline__ void take(Operands<R, V>& to_re, Operands<R, V>& to_im, int first, int lane) const {
        const int column = first + lane / 4 * V;
        int own[2];  // lines 2t and 2t + 1: eight further is a constant further
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const int n = lane % 4 * 2 + b;
            own[b] = 8 * (n * LINE + place<ANY_WIDTH>(column / 8u, n)) + column % 8u;
        }
        const int far = lane % 4 * 2 * (8 * PIECES) + column;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            unsigned x[4][V / 2], y[4][V / 2];
#pragma unroll
            for (int i = 3; i >= 0; --i) {  // those first that come from further
                const int eights = TILE * k + i / 2 * 8, least = eights + i % 2;
                if (least + 6 < HELD || (least < HELD && least + lane % 4 * 2 < HELD)) {
                    const int at = own[i % 2] + eights * (8 * LINE);
                    load_plane(reinterpret_cast<const Operand*>(re) + at, x[i]);
                    load_plane(reinterpret_cast<const Operand*>(im) + at, y[i]);
                } else {
                    load_plane(rest.re + far + least * (8 * PIECES), x[i]);
                    load_plane(rest.im + far + least * (8 * PIECES), y[i]);
                }
            }
            to_re.interleave(k, x), to_im.interleave(k, y);
        }
    }
    template <int V>
    __device__ __forceinline__ Unheld hold(int) const {
        return {};
    }
    template <int V>
    __device__ __forceinline__ void store(int n, const float (&a)[V], const float (&b)[V], const Unheld& = {}) const {
        static_assert(V == 8, "whole pieces");
        const Pack x[4] = {pack(a[0], a[1]), pack(a[2], a[3]), pack(a[4], a[5]), pack(a[6], a[7])};
        const Pack y[4] = {pack(b[0], b[1]), pack(b[2], b[3]), pack(b[4], b[5]), pack(b[6], b[7])};
        const unsigned row = n / 8u / PIECES, eights = row / 8 * 8;
        if (eights + row % 8 < HELD) {
            const int at = eights * LINE + (row % 8 * LINE + place<ANY_WIDTH>(n / 8u % PIECES, row % 8));
            store_own(reinterpret_cast<Operand*>(re + at), x);
            store_own(reinterpret_cast<Operand*>(im + at), y);
        } else {
            rest.put<0>(0, n, x, y);
        }
    }
};

}  // namespace fftgen

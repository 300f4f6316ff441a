// Rows of a transform in the shared memory of a cluster's blocks, in place of the workspace in the L2: distributed
// shared memory (PTX ISA, "mapa"; "ld" and "st" with .shared::cluster). Block b holds rows ROWS b .. + ROWS - 1. What
// goes there and back is as wide as sectors of device memory (Hopper tuning guide).
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

// Where piece `q` of a plane of a row stands, of which PIECES are side by side in the matrix that a row is inside.
template <int PIECES>
__device__ __forceinline__ int slot(int q) {
    return q / PIECES * PIECES + place<ANY_WIDTH>(q % PIECES, q / PIECES);
}

// Rows of LENGTH points.
template <int ROWS, int LENGTH, int PIECES>
struct ClusterRows {
    static constexpr int PLANE = LENGTH / 8, PITCH = 2 * PLANE + 8;  // pieces: of a plane, between rows

    unsigned base;  // of the block's rows, in shared memory

    // In pieces. Neighbouring rows begin four pieces apart, every second one two: what eight threads of the outer
    // stage store together, four pieces of two rows, or load, two pieces of four rows, falls on different banks.
    static __device__ __forceinline__ int start(int row) { return row % ROWS * PITCH + (row / 2 * 2 + row % 2 * 4) % 8; }

    __device__ __forceinline__ unsigned address(int row, int column) const {
        return peer(base + 16 * (start(row) + slot<PIECES>(column / 8)) + column % 8 * 2, row / ROWS);
    }

    // Numbers of the outer stage, to the block that holds their row.
    template <int REST, int C>
    __device__ __forceinline__ void put(int row, int column, const Pack (&x)[C], const Pack (&y)[C]) const {
        const unsigned at = address(row, column);
        store_peer(at, x), store_peer(at + 16 * PLANE, y);
    }
};

// A strip of the outer stage from there.
template <int R, int V, int ROWS, int LENGTH, int PIECES>
__device__ __forceinline__ void take(
    Operands<R, V>& re, Operands<R, V>& im, const ClusterRows<ROWS, LENGTH, PIECES>& from, int first, int, int lane) {
#pragma unroll
    for (int k = 0; k < R / TILE; ++k) {
        unsigned x[4][V / 2], y[4][V / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned at = from.address(TILE * k + i % 2 + i / 2 * 8 + lane % 4 * 2, first + lane / 4 * V);
            load_peer(at, x[i]), load_peer(at + 16 * from.PLANE, y[i]);
        }
        re.interleave(k, x), im.interleave(k, y);
    }
}

// One of the block's own rows: from there into registers, and back in place.
template <int PIECES>
struct ClusterRow {
    uint4* re;
    uint4* im;

    template <int R, int V>
    static __device__ __forceinline__ void take(Operands<R, V>& to, const uint4* plane, int first, int lane) {
        const int column = first + lane / 4 * V;
#pragma unroll
        for (int k = 0; k < R / TILE; ++k) {
            unsigned w[4][V / 2];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int n = TILE * k + i % 2 + i / 2 * 8 + lane % 4 * 2;
                load_plane(reinterpret_cast<const Operand*>(plane + n * PIECES + place<ANY_WIDTH>(column / 8, n)) + column % 8, w[i]);
            }
            to.interleave(k, w);
        }
    }
    template <int V>
    __device__ __forceinline__ Unheld hold(int) const {
        return {};
    }
    template <int V>
    __device__ __forceinline__ void store(int n, const float (&a)[V], const float (&b)[V], const Unheld& = {}) const {
        static_assert(V == 8, "whole pieces");
        const int at = slot<PIECES>(n / 8);
        re[at] = uint4{pack(a[0], a[1]), pack(a[2], a[3]), pack(a[4], a[5]), pack(a[6], a[7])};
        im[at] = uint4{pack(b[0], b[1]), pack(b[2], b[3]), pack(b[4], b[5]), pack(b[6], b[7])};
    }
};

}  // namespace fftgen

// Blocks that take one transform together, and how they get it.
#pragma once

#include "fftgen/scaled_rows.cuh"
#include "fftgen/signal.cuh"

namespace fftgen {

// The cluster of a block (PTX ISA, "Special Registers", from sm_90); before, every block is one of its own. Asked
// anew each time: registers are scarcer.
struct Cluster {
#if __CUDA_ARCH__ >= 900
    static __device__ __forceinline__ int number() {  // among the clusters of the launch
        int x;
        asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(x));
        return x;
    }
    static __device__ __forceinline__ int total() {  // clusters of the launch
        int x;
        asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(x));
        return x;
    }
    static __device__ __forceinline__ int rank() {  // of the block in it
        int x;
        asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
        return x;
    }
    static __device__ __forceinline__ int size() {  // blocks
        int x;
        asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(x));
        return x;
    }
    // All threads come together; what each has written is there for all. A block by itself need not wait until
    // the L2 has it, and keeps its L1.
    static __device__ __forceinline__ void barrier() {
        if (size() == 1)
            __syncthreads();
        else
            asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
    }
#else
    static __device__ __forceinline__ int number() { return blockIdx.x; }
    static __device__ __forceinline__ int total() { return gridDim.x; }
    static __device__ __forceinline__ int rank() { return 0; }
    static __device__ __forceinline__ int size() { return 1; }
    static __device__ __forceinline__ void barrier() { __syncthreads(); }
#endif
};

// The transform that a cluster does next: who is done first draws first. Words behind the sizes of all rows, of
// which a transform has `WORDS`. Barriers of the cluster lie between drawing and reading, and drawing again.
template <int WORDS, typename T>
__device__ __forceinline__ unsigned* tickets(const Args<T>& args) {
    return args.peaks + (long long)WORDS * args.items;
}
template <int WORDS, typename T>
__device__ __forceinline__ void draw(const Args<T>& args) {
    unsigned* const all = tickets<WORDS>(args);
    if (Cluster::rank() == 0 && threadIdx.x == 0) all[1 + Cluster::number()] = atomicAdd(all, 1u);
}
template <int WORDS, typename T>
__device__ __forceinline__ int drawn(const Args<T>& args) {
    return (int)min(tickets<WORDS>(args)[1 + Cluster::number()], 0x7fffffffu);
}

// The peaks of a transform's strips, which stand in the workspace scaled each by its own. Words behind the tickets.
template <int WORDS, int STRIPS, typename T>
__device__ __forceinline__ unsigned* strip_peaks(const Args<T>& args) {
    return tickets<WORDS>(args) + 1 + Cluster::total() + Cluster::number() * STRIPS;
}

// What brings numbers of those strips to the power of the whole row, two neighbouring rows of `across` strips to
// a word: as operands hold them.
__device__ __forceinline__ void fill_ratios(
    Pack* ratios, const unsigned* peaks, int strips, int across, const Power& row, int thread, int threads) {
    const auto ratio = [&](int strip) { return Power(peaks[strip]).to(row); };
    for (int i = thread; i < strips / 2; i += threads) {
        const int first = i / across * 2 * across + i % across;
        ratios[i] = pack(ratio(first), ratio(first + across));
    }
}

// Rows of a strip of operands that starts at one of `across` strips.
template <int R, int V>
__device__ __forceinline__ void rescale(Operands<R, V>& re, Operands<R, V>& im, const Pack* ratios, int across, int lane) {
#pragma unroll
    for (int k = 0; k < R / TILE; ++k)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Pack ratio = ratios[(TILE / 2 * k + lane % 4 + 4 * i) * across];
#pragma unroll
            for (int j = 0; j < V; ++j) re.b[k][j][i] = mul2(re.b[k][j][i], ratio), im.b[k][j][i] = mul2(im.b[k][j][i], ratio);
        }
}

// A team of WARPS warps of a block comes together.
template <int WARPS>
__device__ __forceinline__ void team_barrier() {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + thread_index() / (WARPS * LANES)), "n"(WARPS * LANES) : "memory");
}

}  // namespace fftgen

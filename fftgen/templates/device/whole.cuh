// Blocks that take one transform together, and how they get it.
#pragma once

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
    return args.peaks + (long long)WORDS * args.all;
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

// The peaks of a cluster's strips (strips.cuh). Words behind the tickets.
template <int WORDS, int STRIPS, typename T>
__device__ __forceinline__ unsigned* cluster_peaks(const Args<T>& args) {
    return tickets<WORDS>(args) + 1 + Cluster::total() + Cluster::number() * STRIPS;
}

// A team of WARPS warps of a block comes together.
template <int WARPS>
__device__ __forceinline__ void team_barrier() {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + thread_index() / (WARPS * LANES)), "n"(WARPS * LANES) : "memory");
}

}  // namespace fftgen

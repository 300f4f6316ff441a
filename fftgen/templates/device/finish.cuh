// The end of the gradient of a filter: from the sum of spectra to lags, by the transposed transform of a filter.
#pragma once

#include "fftgen/filter.cuh"

namespace fftgen {

// What one launch is told. The host packs the same fields in the same order (fftgen/launch.py).
struct FinishArgs {
    const float* sums;            // (channels, parts, 2 N): in the order of sum_digits (planner/order.py)
    float* lags;                  // (channels, reach): the gradient of taps
    float* tails;                 // (channels, reach): what comes around to each lag but the first; or nullptr
    const unsigned char* tables;  // the plan's constants
    float2* workspace;            // (channels of this launch, N) or nullptr
    int first;                    // first channel of this launch
    int parts;
    int reach;   // lags of a channel
    int period;  // circular length, 0: lags do not come around
};

// Read once, and written by kernels before this one.
__device__ __forceinline__ float4 load_four(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }

__device__ __forceinline__ float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Lag n from what the transform has there. On a circle of N steps the imaginary part is lag n - N, the same one.
template <int N>
__device__ __forceinline__ void store_lag(const FinishArgs& args, float* lags, int n, float2 z) {
    if (n < args.reach) lags[n] = args.period == N && n > 0 ? z.x + z.y : z.x;
}

}  // namespace fftgen

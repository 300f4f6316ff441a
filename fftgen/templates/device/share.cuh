// Who makes which part of a filter's gradient.
#pragma once

#include "fftgen/signal.cuh"

namespace fftgen {

// What one launch is told. The host packs the same fields in the same order (fftgen/launch.py).
template <typename T>
struct GradientArgs {
    Args<T> x, v;    // the signals, each as a convolution would take it: u with in_gate, and where results go
    float* sums;     // (channels, parts, 2 N): the sum in parts, in the order of sum_digits (planner/order.py)
    uint4* spectra;  // (workers, points of a row): X where shared memory has no room for it, or nullptr
    int parts;       // workers that share the transforms of a channel
    int workers;
};

// The work of one worker: transforms begin .. end - 1 of a channel, or of channels abreast, of which h is the first, and
// the row of each. `fresh`: nobody has been at its part of the sum.
struct Share {
    int h, outer, part, begin, end;
    bool fresh;

    // The batch row of a transform.
    template <typename T>
    __device__ __forceinline__ int row(const GradientArgs<T>& args, int item) const { return item - h / ABREAST * args.x.per_channel; }
};

template <int ROWS, typename T>
__device__ __forceinline__ Share locate_share(const GradientArgs<T>& args, int worker) {
    const Args<T>& x = args.x;
    Share share;
    share.part = worker % args.parts;
    share.outer = worker / args.parts % ROWS;
    const int of = channel_of(x, x.first) + worker / args.parts / ROWS, first = of * x.per_channel;
    share.h = of * ABREAST;
    const int begin = max(first, x.first), end = min(first + x.per_channel, x.first + x.items);
    const int count = (end - begin + args.parts - 1) / args.parts;
    share.begin = min(begin + share.part * count, end);
    share.end = min(share.begin + count, end);
    share.fresh = begin == first;
    return share;
}

}  // namespace fftgen

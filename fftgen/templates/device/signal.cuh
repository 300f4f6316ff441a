// Where a transform's numbers come from and go to: tensors of real rows, or the workspace.
//
// A *source* gives eight consecutive complex numbers (two vectors in the storage type); a *sink* takes
// eight (fp32). n is the index inside the sequence; everything from `length` on is zero and not written.
#pragma once

#include "fftgen/sinks.cuh"
#include "fftgen/sources.cuh"

namespace fftgen {

// Planes in the workspace.
template <typename T>
struct Planes {
    T* re;
    T* im;

    __device__ __forceinline__ void load(int n, Vector<T>& x, Vector<T>& y) const {
        x = load_vector(re + n);
        y = load_vector(im + n);
    }
    __device__ __forceinline__ void store(int n, const float (&x)[VECTOR], const float (&y)[VECTOR]) const {
        store_vector(re + n, narrow<T>(x));
        store_vector(im + n, narrow<T>(y));
    }
};

}  // namespace fftgen

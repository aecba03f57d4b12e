// Sums within a warp and a block, always over the same tree: results do not depend on timing.
#pragma once
#include "types.cuh"

// Every lane gets the sum.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Every thread gets the N sums over the block, which has at most WARPS warps. `shared` holds WARPS·N numbers and may be used
// again after the caller's next barrier: callers that sum in a loop alternate between two halves, which makes one barrier
// per sum enough.
template <int WARPS = 32, int N, class T>
__device__ __forceinline__ void block_sum(T (&values)[N], T *shared) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = (blockDim.x + 31u) >> 5;
#pragma unroll
    for (int n = 0; n < N; n++) {
        values[n] = warp_sum(values[n]);
        if (lane == 0) shared[warp * N + n] = values[n];
    }
    __syncthreads();
    if (WARPS <= 8) {
        // Without a loop: its control takes longer than the sums.
#pragma unroll
        for (int n = 0; n < N; n++) values[n] = shared[n];
#pragma unroll
        for (u32 other = 1; other < WARPS; other++) {
#pragma unroll
            for (int n = 0; n < N; n++) values[n] += other < warps ? shared[other * N + n] : (T)0;
        }
    } else {
#pragma unroll
        for (int n = 0; n < N; n++) values[n] = warp_sum(lane < warps ? shared[lane * N + n] : (T)0);
    }
}

// The sum of the values of lower lanes; `total` is the sum over the warp.
template <class T>
__device__ __forceinline__ T warp_scan_exclusive(T value, T &total) {
    u32 lane = threadIdx.x & 31u;
    T sum = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        T below = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= (u32)offset) sum += below;
    }
    total = __shfl_sync(0xffffffffu, sum, 31);
    return sum - value;
}

// The sum of the values of lower threads; `total` is the sum over the block. `shared` holds 32 numbers and may be used
// again after the caller's next barrier.
template <class T>
__device__ __forceinline__ T block_scan_exclusive(T value, T *shared, T &total) {
    u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = (blockDim.x + 31u) >> 5;
    T in_warp;
    T below = warp_scan_exclusive(value, in_warp);
    if (lane == 0) shared[warp] = in_warp;
    __syncthreads();
    T before = 0;
    total = 0;
    for (u32 other = 0; other < warps; other++) {
        T sum = shared[other];
        if (other < warp) before += sum;
        total += sum;
    }
    return before + below;
}

// The k-th largest of many numbers, digit by digit: numbers are mapped to integers of the same order, and three histograms, of 11,
// 11 and 10 bits, tell where it lies. Counts are integers, so that no order of atomics changes anything.
#pragma once
#include "reduce.cuh"

constexpr u32 SELECT_THREADS = 256;
constexpr u32 BINS = 2048;

// A float as an integer of the same order, and back. -0 lies below 0.
__device__ __forceinline__ u32 key_of(float value) {
    u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The bin, counted from the highest down, that holds the `count`-th largest number, 1 ≤ count ≤ all of them; `above` receives how
// many lie in higher bins. All threads call and get the same. `scan` holds 32 numbers.
__device__ __forceinline__ u32 bin_of(const u32 *histogram, u32 count, u32 *scan, u32 *found, u32 &above) {
    constexpr u32 EACH = BINS / SELECT_THREADS;
    u32 first = BINS - (threadIdx.x + 1) * EACH, own = 0;
    for (u32 n = 0; n < EACH; n++) own += histogram[first + n];
    u32 whole, before = block_scan_exclusive(own, scan, whole);
    if (before < count && count <= before + own) {
        for (u32 n = EACH; n-- > 0;) {
            u32 in_bin = histogram[first + n];
            if (count <= before + in_bin) {
                found[0] = first + n;
                found[1] = before;
                break;
            }
            before += in_bin;
        }
    }
    __syncthreads();
    u32 bin = found[0];
    above = found[1];
    __syncthreads();
    return bin;
}

// The key of the k-th largest of a row; `above` receives how many are larger.
template <class Numbers>
__device__ __forceinline__ u32 kth_largest(const Numbers &z, u32 features, u32 k, u32 *histogram, u32 *scan, u32 *found,
                                           u32 &above) {
    u32 prefix = 0, known = 0;  // the key's upper bits, and which they are
    above = 0;
    for (u32 turn = 0; turn < 3; turn++) {
        u32 shift = turn == 0 ? 21 : turn == 1 ? 10 : 0, mask = turn == 2 ? 0x3ffu : 0x7ffu;
        for (u32 bin = threadIdx.x; bin < BINS; bin += SELECT_THREADS) histogram[bin] = 0;
        __syncthreads();
        for (u32 feature = threadIdx.x; feature < features; feature += SELECT_THREADS) {
            u32 key = key_of(z[feature]);
            if ((key & known) == prefix) atomicAdd(&histogram[key >> shift & mask], 1u);
        }
        __syncthreads();
        u32 higher, bin = bin_of(histogram, k - above, scan, found, higher);
        above += higher;
        prefix |= bin << shift;
        known |= mask << shift;
    }
    return prefix;
}

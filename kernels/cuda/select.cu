// select: the k largest z of each row, ties by the lower feature: those of the float32 product in the order of the definition
// (encode.cu), formed there anew wherever rounding could decide which pair is the k-th.
//
//   z = X·W_enc, a dense product  →  largest_norms  →  select_rows  →  a list of k features for each row, and the row mask
//
// The recheck then forms the values of the pairs in float32 and leaves out those that are not above 0; everything after it is the
// sparse path's. Cost: a row of z is read five times, from memory once (400 MB at B = 4096, F = 24,576) and from L2 or L1
// afterwards; sums in the order of the definition for a few pairs a row.
//
// A block owns a row, whose k-th largest it finds digit by digit (digits.cuh).
#include "digits.cuh"
#include "four.cuh"
#include "recheck.cuh"

// The largest ‖w_j‖ and |b_j| of all features, rounded up, into largest [2]. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
    largest_norms(const float *__restrict__ feature_norm, const float *__restrict__ encoder_bias, float *largest,
                  u32 features, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ float shared[2 * 32];
    float most[2] = {0.0f, 0.0f};
    for (u32 feature = threadIdx.x; feature < features; feature += blockDim.x) {
        most[0] = fmaxf(most[0], feature_norm[feature]);
        most[1] = fmaxf(most[1], fabsf(encoder_bias[feature]));
    }
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) {
            most[n] = fmaxf(most[n], __shfl_xor_sync(0xffffffffu, most[n], offset));
        }
        if ((threadIdx.x & 31u) == 0) shared[n * 32 + (threadIdx.x >> 5)] = most[n];
    }
    __syncthreads();
    if (threadIdx.x >= 2) return;
    float whole = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) whole = fmaxf(whole, shared[threadIdx.x * 32 + warp]);
    largest[threadIdx.x] = whole;
}

// From z without its bias, in z [B,line], which is memory of this kernel then: starts [B+1], k features of each row from there
// on in pair_features, and row_mask [B,row_words]. `roughness` says what the product's own error is at most, relative to the
// product of the norms: 0 where the product as it is decides. Block 256, grid B.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_rows(float *z, const float *__restrict__ x, const float *__restrict__ encoder,
                const float *__restrict__ encoder_bias, const float *__restrict__ length,
                const float *__restrict__ largest, u32 *__restrict__ starts, u32 *__restrict__ pair_features,
                u32 *__restrict__ row_mask, u32 k, u32 features, u32 rows, u32 stride, u32 line, u32 row_words,
                float roughness, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 histogram[BINS];
    __shared__ u32 scan[2 * 32];
    __shared__ u32 found[2];
    u32 row = blockIdx.x, lane = threadIdx.x & 31u;
    float *own = z + (u64)row * line;
    for (u32 feature = threadIdx.x; feature < features; feature += SELECT_THREADS) own[feature] += encoder_bias[feature];
    __syncthreads();
    u32 above, kth = kth_largest(own, features, k, histogram, scan, found, above);

    // Sums of both kinds lie within `margin` of the definition's z. What is larger than the k-th by two of them is among the k
    // largest, what is smaller by as much is not; if all in doubt are positive or not does not matter below 0.
    float limit = value_of(kth), margin = 0.0f;
    if (roughness > 0.0f) margin = 1.0001f * (roughness * length[row] * largest[0] + rounding(stride) * largest[1]) + 1e-35f;
    float least = limit - 2.0f * margin, most = limit + 2.0f * margin;
    if (margin > 0.0f && most + margin > 0.0f) {
        u32 possible = 0;
        for (u32 feature = threadIdx.x; feature < features; feature += SELECT_THREADS) {
            possible += own[feature] >= least;
        }
        u32 whole;
        block_scan_exclusive(possible, scan, whole);
        __syncthreads();
        if (whole > k) {
            const float *of_row = x + (u64)row * stride;
            for (u32 feature = threadIdx.x; feature < features; feature += SELECT_THREADS) {
                float value = own[feature];
                if (value > most) {
                    own[feature] = __uint_as_float(0x7f800000u);
                } else if (value < least) {
                    own[feature] = -__uint_as_float(0x7f800000u);
                } else {
                    own[feature] = in_order(of_row, encoder + (u64)feature * stride, encoder_bias[feature], stride);
                }
            }
            __syncthreads();
            kth = kth_largest(own, features, k, histogram, scan, found, above);
        }
    }

    // All that are larger, and as many of those that are equal as are left, in the order of the features.
    u32 equal_left = k - above, next = row * k;
    for (u32 first = 0; first < row_words * 32; first += SELECT_THREADS) {
        u32 feature = first + threadIdx.x;
        u32 key = feature < features ? key_of(own[feature]) : 0;
        bool larger = feature < features && key > kth, equal = feature < features && key == kth;
        u32 equals, rank = block_scan_exclusive((u32)equal, scan, equals);
        bool chosen = larger || (equal && rank < equal_left);
        u32 count, at = next + block_scan_exclusive((u32)chosen, scan + 32, count);
        if (chosen) pair_features[at] = feature;
        u32 bits = __ballot_sync(0xffffffffu, chosen);
        if (lane == 0 && feature / 32 < row_words) row_mask[(u64)row * row_words + feature / 32] = bits;
        next += count;
        equal_left -= min(equals, equal_left);
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    starts[row] = row * k;
    if (row == rows - 1) starts[rows] = rows * k;
}

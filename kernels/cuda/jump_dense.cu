// jump_dense: the kernels of dense.cu for JumpReLU. z is kept beside a, as pairs that are not active have a part in the gradient:
// 400 MB more at B = 4096, F = 24,576, written by one kernel and read by another.
#include "dense.cuh"
#include "jump.cuh"

// From z without its bias, in a [B,line]: a in place, z beside it, a's halves, and the mask of active pairs, as activate of
// dense.cu; and how many pairs the lists of the sparse path would hold, into the report. Block 256 threads, grid
// (⌈F/256⌉, words).
extern "C" __global__ void __launch_bounds__(256)
    activate_jump(float *__restrict__ a, const float *__restrict__ encoder_bias, u32 *__restrict__ mask,
                  bf16 *__restrict__ high, bf16 *__restrict__ low, u32 features, u32 rows, u32 line, u32 words,
                  Report *report, float *thresholds, float bandwidth, float *__restrict__ preactivations) {
    if (report->status != RUNNING) return;
    __shared__ u32 shared[8];
    Lowest lowest_of = {{thresholds, bandwidth}};
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * 32;
    u32 found[1] = {0};
    if (feature < features) {
        float bias = encoder_bias[feature], threshold = thresholds[feature], lowest = lowest_of(feature);
        u32 bits = 0;
#pragma unroll 8
        for (u32 at = 0; at < 32; at++) {
            u32 row = first + at;
            if (row >= rows) break;
            u64 place = (u64)row * line + feature;
            float z = a[place] + bias;
            bool active = z > threshold;
            float value = active ? z : 0.0f;
            a[place] = value;
            preactivations[place] = z;
            Halves halves = halves_of(value);
            if (high) high[place] = halves.high;
            if (low) low[place] = halves.low;
            bits |= (u32)active << at;
            found[0] += z > lowest;
        }
        mask[(u64)feature * words + blockIdx.y] = bits;
    }
    block_sum<8>(found, shared);
    // A sum of integers is the same in every order.
    if (threadIdx.x == 0) atomicAdd(&report->candidates, (u64)found[0]);
}

// dense_slopes of dense.cu for features with thresholds, and their parts of dL/dθ, threshold_parts [⌈B/128⌉,F]. Block 256
// threads, grid (⌈F/256⌉, ⌈B/128⌉).
extern "C" __global__ void __launch_bounds__(256)
    dense_slopes_jump(const float *__restrict__ a, float *__restrict__ da, const float *__restrict__ decoder_norm,
                      const float *__restrict__ slopes, float *__restrict__ bias_parts, float *__restrict__ norm_parts,
                      bf16 *__restrict__ high, bf16 *__restrict__ low, u32 features, u32 rows, u32 line, u32 kind,
                      const Scalars *__restrict__ scalars_at, const Report *__restrict__ report, float *thresholds,
                      float bandwidth, u32 to_input, const RowResult *__restrict__ results,
                      const float *__restrict__ preactivations, float *__restrict__ threshold_parts) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * SLOPE_ROWS;
    if (feature >= features) return;
    const Scalars scalars = *scalars_at;
    Pseudo pseudo = {bandwidth, to_input, kind, &scalars, results};
    float norm = decoder_norm ? decoder_norm[feature] : 1.0f, slope = slopes[feature];
    float threshold = thresholds[feature], at_zero = penalty_slope_at_zero(kind, scalars, norm, slope);
    float sum = 0.0f, by_norm = 0.0f, by_threshold = 0.0f;
    for (u32 row = first; row < min(first + SLOPE_ROWS, rows); row++) {
        u64 place = (u64)row * line + feature;
        float value = a[place], part;
        float penalties = value > 0.0f ? penalty_slope(kind, scalars, value, norm, slope, by_norm) : at_zero;
        float whole = pseudo.by_z(row, preactivations[place], threshold, da[place] + penalties, part);
        if (high) {
            Halves halves = halves_of(whole);
            high[place] = halves.high;
            if (low) low[place] = halves.low;
        } else {
            da[place] = whole;
        }
        sum += whole;
        by_threshold += part;
    }
    u64 at = (u64)blockIdx.y * features + feature;
    bias_parts[at] = sum;
    norm_parts[at] = by_norm;
    threshold_parts[at] = by_threshold;
}

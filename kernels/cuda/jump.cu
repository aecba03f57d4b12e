// jump: the kernels of JumpReLU autoencoders, in place of those of the same names without the ending (those of dense.cu have
// theirs in jump_dense.cu). What differs is in jump.cuh. Costs are those said with the others; a near pair costs the backward pass
// its product with g alone, unless it has a part in dL/dz.
//
// A step's lists by row hold active pairs alone, and beside them the near ones; those by feature hold both. So mask [F,words]
// says which pairs are active, until mark_near adds the near ones, from which the lists by feature are made.
#include "backward.cuh"
#include "encode.cuh"
#include "jump.cuh"
#include "place.cuh"
#include "update.cuh"

// Block of 128 threads, grid (⌈words/2⌉, ⌈F/64⌉).
extern "C" __global__ void __launch_bounds__(128)
    encode_jump(const float *__restrict__ encoder, const float *__restrict__ encoder_bias, const float *__restrict__ x,
                u32 *__restrict__ mask, u32 features, u32 rows, u32 stride, u32 words,
                const Report *__restrict__ report, float *thresholds, float bandwidth) {
    if (report->status != RUNNING) return;
    Lowest above = {{thresholds, bandwidth}};
    encode_tile(above, encoder, encoder_bias, x, mask, features, rows, stride, words);
}

// Block of 128 threads, grid B.
extern "C" __global__ void __launch_bounds__(128, 8)
    recheck_jump(const float *__restrict__ x, const float *__restrict__ encoder, const float *__restrict__ encoder_bias,
                 const float *__restrict__ length, const float *__restrict__ feature_norm,
                 const u32 *__restrict__ starts, u32 *pair_features, float *row_values, u32 *row_active, u32 *mask,
                 u32 stride, u32 words, const Report *__restrict__ report, float *thresholds, float bandwidth,
                 u32 *near_features, float *near_values, u32 *row_near) {
    if (report->status != RUNNING) return;
    AboveThreshold rule = {{thresholds, bandwidth}, near_features, near_values, row_near};
    recheck_row(rule, x, encoder, encoder_bias, length, feature_norm, starts, pair_features, row_values, row_active,
                mask, stride, words, true);
}

// The same from the bfloat16 copies.
extern "C" __global__ void __launch_bounds__(128, 8)
    recheck_jump_bf16(const bf16 *__restrict__ x, const bf16 *__restrict__ encoder,
                      const float *__restrict__ encoder_bias, const u32 *__restrict__ starts, u32 *pair_features,
                      float *row_values, u32 *row_active, u32 *mask, u32 stride, u32 words,
                      const Report *__restrict__ report, float *thresholds, float bandwidth, u32 *near_features,
                      float *near_values, u32 *row_near) {
    if (report->status != RUNNING) return;
    AboveThreshold rule = {{thresholds, bandwidth}, near_features, near_values, row_near};
    recheck_row(rule, x, encoder, encoder_bias, (const float *)0, (const float *)0, starts, pair_features, row_values,
                row_active, mask, stride, words, false);
}

// The penalty of each row as logged, where it is a function of the number of active features. After the decode, which knows no
// penalty but sums over activations. One thread per row, block 256.
extern "C" __global__ void __launch_bounds__(256)
    penalty_of_count(RowResult *results, u32 rows, u32 kind, const Scalars *__restrict__ scalars,
                     const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    double active = results[row].active, target = scalars->penalty_parameter, over = active - target;
    results[row].penalty = kind == PENALTY_STEP ? active : 2.0 / target * over * over;
}

// Sets the bits of the near pairs in mask [F,words]. Block 128, grid B.
extern "C" __global__ void __launch_bounds__(128)
    mark_near(const u32 *__restrict__ starts, const u32 *__restrict__ row_near, const u32 *__restrict__ near_features,
              u32 *mask, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 row = blockIdx.x, begin = starts[row], end = begin + row_near[row];
    for (u32 at = begin + threadIdx.x; at < end; at += blockDim.x) {
        atomicOr(&mask[(u64)near_features[at] * words + row / 32], 1u << (row & 31u));
    }
}

// gather_values for active and near pairs: z in place of the activations. One warp per feature.
extern "C" __global__ void gather_jump(
    const u32 *__restrict__ feature_starts, const u32 *__restrict__ pair_rows, const u32 *__restrict__ row_starts,
    const u32 *__restrict__ row_active, const u32 *__restrict__ pair_features, const float *__restrict__ row_values,
    const float *__restrict__ slopes, const float *__restrict__ decoder_norm, float *__restrict__ feature_values,
    float *__restrict__ feature_slopes, float *__restrict__ by_norm, u32 features, u32 kind,
    const Scalars *__restrict__ scalars, const Report *__restrict__ report, const u32 *__restrict__ near_features,
    const float *__restrict__ near_values, const u32 *__restrict__ row_near) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (feature >= features) return;
    float norm = by_norm ? decoder_norm[feature] : 1.0f, slope = slopes[feature], sum = 0.0f;
    float at_zero = penalty_slope_at_zero(kind, *scalars, norm, slope);
    for (u32 at = feature_starts[feature] + lane; at < feature_starts[feature + 1]; at += 32) {
        u32 row = pair_rows[at], begin = row_starts[row], active = row_active[row];
        u32 place = place_of(pair_features, begin, begin + active, feature);
        if (active > 0 && pair_features[place] == feature) {
            float a = row_values[place];
            feature_values[at] = a;
            feature_slopes[at] = penalty_slope(kind, *scalars, a, norm, slope, sum);
        } else {
            feature_values[at] = near_values[place_of(near_features, begin, begin + row_near[row], feature)];
            feature_slopes[at] = at_zero;
        }
    }
    if (!by_norm) return;
    sum = warp_sum(sum);
    if (lane == 0) by_norm[feature] = sum;
}

// Blocks and grids as in backward.cu and update.cu.
#define KERNELS(CHUNKS, BLOCKS, DENSE_BLOCKS)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_segments_jump_##CHUNKS(                         \
        float *parameters, const u32 *__restrict__ feature_starts, const u32 *__restrict__ segment_starts,             \
        const u32 *__restrict__ segment_features, const u32 *__restrict__ pair_rows,                                   \
        const float *__restrict__ feature_values, const float *__restrict__ feature_slopes,                            \
        const float *__restrict__ x, const float *__restrict__ g, float *__restrict__ sums, u32 features, u32 stride,  \
        const Report *__restrict__ report, float *thresholds, float bandwidth, u32 to_input, u32 kind,                 \
        const Scalars *__restrict__ scalars, const RowResult *__restrict__ results) {                                  \
        if (report->status != RUNNING) return;                                                                         \
        JumpRelu jump = {                                                                                              \
            {thresholds, bandwidth}, features, {bandwidth, to_input, kind, scalars, results}, (float *)0};       \
        segments<CHUNKS>(parameters, jump, feature_starts, segment_starts, segment_features, pair_rows,                \
                         feature_values, feature_slopes, x, g, sums, features, stride);                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_update_jump_##CHUNKS(                           \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, const u32 *__restrict__ feature_starts,              \
        const u32 *__restrict__ segment_starts, const u32 *__restrict__ pair_rows,                                     \
        const float *__restrict__ feature_values, const float *__restrict__ feature_slopes,                            \
        const float *__restrict__ by_norm, const float *__restrict__ x, const float *__restrict__ g,                   \
        const float *__restrict__ sums, float *__restrict__ pre_bias, u32 features, u32 stride, u32 norm_kind,         \
        const Scalars *__restrict__ scalars, Report *report, float *thresholds, float bandwidth, u32 to_input,         \
        u32 kind, const RowResult *__restrict__ results) {                                                             \
        if (report->status != RUNNING) return;                                                                         \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                                 \
                           feature_residual, decoder_norm, bounds};                                                    \
        JumpRelu jump = {                                                                                              \
            {thresholds, bandwidth}, features, {bandwidth, to_input, kind, scalars, results}, (float *)0};       \
        update<CHUNKS>(parameters, jump, derived, feature_starts, segment_starts, pair_rows, feature_values,           \
                       feature_slopes, by_norm, x, g, sums, pre_bias, features, stride, norm_kind, scalars, report);   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, DENSE_BLOCKS) update_dense_jump_##CHUNKS(                        \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, const float *__restrict__ encoder_gradient,          \
        const float *__restrict__ decoder_gradient, const float *__restrict__ bias_parts,                              \
        const float *__restrict__ norm_parts, u32 parts, float *__restrict__ pre_bias, u32 features, u32 stride,       \
        u32 weighted, u32 norm_kind, const Scalars *__restrict__ scalars, Report *report, float *thresholds,           \
        float bandwidth, float *threshold_parts) {                                                  \
        if (report->status != RUNNING) return;                                                                         \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                                 \
                           feature_residual, decoder_norm, bounds};                                                    \
        JumpRelu jump = {{thresholds, bandwidth}, features, Pseudo(), threshold_parts};                                \
        update_from_memory<CHUNKS>(parameters, jump, derived, encoder_gradient, decoder_gradient, bias_parts,          \
                                   norm_parts, parts, pre_bias, features, stride, weighted, norm_kind, scalars,        \
                                   report);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, DENSE_BLOCKS) derive_jump_##CHUNKS(                              \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, u32 features, u32 stride, float *thresholds,         \
        float bandwidth) {                                                                                             \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                                 \
                           feature_residual, decoder_norm, bounds};                                                    \
        JumpRelu jump = {{thresholds, bandwidth}, features, Pseudo(), (float *)0};                               \
        derive_from_memory<CHUNKS>(parameters, jump, derived, features, stride);                                       \
    }
KERNELS(1, 3, 4)
KERNELS(2, 2, 2)
KERNELS(4, 1, 1)
KERNELS(8, 1, 1)

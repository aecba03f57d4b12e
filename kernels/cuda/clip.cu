// clip: a step whose gradient is clipped. The norm of the whole gradient has to be known before the first weight changes, so that
// gradients wait in memory:
//
//   gradients (from pairs; after dense products they are there)  →  project, with squares  →  clip_scale  →  update_clipped
//
// Cost besides that of the plain update: each gradient written once and read and written once more, 20 bytes a weight (on the
// dense path 12).
#include "backward.cuh"
#include "jump.cuh"
#include "update.cuh"

// min(1, most/(‖gradient‖ + 1e-6)), from the sums of squares of blocks of features, squares [blocks], and the gradient of the
// decoder's bias, whose parts are update_decoder_bias'. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    clip_scale(const double *__restrict__ squares, u32 blocks, const double *__restrict__ parts, u32 count,
               const double *__restrict__ pre_parts, u32 pre_count, u32 stride, Clip *clip,
               const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[8];
    double sum[1] = {0.0};
    for (u32 block = threadIdx.x; block < blocks; block += blockDim.x) sum[0] += squares[block];
    for (u32 column = threadIdx.x; column < stride; column += blockDim.x) {
        double gradient = (float)decoder_bias_gradient(parts, count, pre_parts, pre_count, stride, column);
        sum[0] += gradient * gradient;
    }
    block_sum<8>(sum, shared);
    if (threadIdx.x != 0) return;
    double scale = clip->most / (sqrt(sum[0]) + 1e-6);
    clip->scale = (float)(scale < 1.0 ? scale : 1.0);
}

// update_decoder_bias of update.cu, clipped.
extern "C" __global__ void update_decoder_bias_clipped(float *parameters, const double *__restrict__ parts, u32 count,
                                                       const double *__restrict__ pre_parts, u32 pre_count,
                                                       u32 features, u32 stride, const Scalars *__restrict__ scalars,
                                                       u32 *arrived, Report *report, Report *reply,
                                                       const Clip *__restrict__ clip) {
    __shared__ u32 flag;
    decoder_bias_step(parameters, parts, count, pre_parts, pre_count, clip, features, stride, scalars, arrived, report,
                      reply, &flag);
}

// Blocks and grids as in backward.cu and update.cu. Without thresholds those pointers are null.
#define KERNELS(CHUNKS, BLOCKS, DENSE_BLOCKS)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) gradients_##CHUNKS(                                      \
        float *parameters, const u32 *__restrict__ feature_starts, const u32 *__restrict__ segment_starts,             \
        const u32 *__restrict__ pair_rows, const float *__restrict__ feature_values,                                   \
        const float *__restrict__ feature_slopes, const float *__restrict__ by_norm, const float *__restrict__ x,      \
        const float *__restrict__ g, const float *__restrict__ sums, float *encoder_gradient,                          \
        float *decoder_gradient, float *bias_parts, float *norm_parts, u32 features, u32 stride,                       \
        const Report *__restrict__ report) {                                                                           \
        if (report->status != RUNNING) return;                                                                         \
        gradients<CHUNKS>(parameters, Relu(), feature_starts, segment_starts, pair_rows, feature_values,               \
                          feature_slopes, by_norm, x, g, sums, encoder_gradient, decoder_gradient, bias_parts,         \
                          norm_parts, features, stride);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) gradients_jump_##CHUNKS(                                 \
        float *parameters, const u32 *__restrict__ feature_starts, const u32 *__restrict__ segment_starts,             \
        const u32 *__restrict__ pair_rows, const float *__restrict__ feature_values,                                   \
        const float *__restrict__ feature_slopes, const float *__restrict__ by_norm, const float *__restrict__ x,      \
        const float *__restrict__ g, const float *__restrict__ sums, float *encoder_gradient,                          \
        float *decoder_gradient, float *bias_parts, float *norm_parts, u32 features, u32 stride,                       \
        const Report *__restrict__ report, float *thresholds, float bandwidth, u32 to_input, u32 kind,                 \
        const Scalars *__restrict__ scalars, const RowResult *__restrict__ results, float *threshold_parts) {          \
        if (report->status != RUNNING) return;                                                                         \
        JumpRelu jump = {                                                                                              \
            {thresholds, bandwidth}, features, {bandwidth, to_input, kind, scalars, results}, threshold_parts};        \
        gradients<CHUNKS>(parameters, jump, feature_starts, segment_starts, pair_rows, feature_values,                 \
                          feature_slopes, by_norm, x, g, sums, encoder_gradient, decoder_gradient, bias_parts,         \
                          norm_parts, features, stride);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, DENSE_BLOCKS) project_##CHUNKS(                                  \
        float *parameters, const float *__restrict__ encoder_gradient, float *decoder_gradient,                        \
        const float *__restrict__ bias_parts, const float *__restrict__ norm_parts, u32 parts,                         \
        float *__restrict__ pre_bias, double *squares, u32 features, u32 stride, u32 weighted, u32 norm_kind,          \
        const Report *__restrict__ report, float *threshold_parts) {                                                   \
        if (report->status != RUNNING) return;                                                                         \
        if (threshold_parts) {                                                                                         \
            JumpRelu jump = {{(float *)0, 0.0f}, features, Pseudo(), threshold_parts};                                 \
            project_in_memory<CHUNKS>(parameters, jump, encoder_gradient, decoder_gradient, bias_parts, norm_parts,    \
                                      parts, pre_bias, squares, features, stride, weighted, norm_kind);                \
        } else {                                                                                                       \
            project_in_memory<CHUNKS>(parameters, Relu(), encoder_gradient, decoder_gradient, bias_parts, norm_parts,  \
                                      parts, pre_bias, squares, features, stride, weighted, norm_kind);                \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, DENSE_BLOCKS) update_clipped_##CHUNKS(                           \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, const float *__restrict__ encoder_gradient,          \
        const float *__restrict__ decoder_gradient, const float *__restrict__ bias_parts,                              \
        const float *__restrict__ norm_parts, u32 parts, u32 features, u32 stride, u32 norm_kind,                      \
        const Scalars *__restrict__ scalars, Report *report, const Clip *__restrict__ clip, float *thresholds,         \
        float bandwidth, float *threshold_parts) {                                                                     \
        if (report->status != RUNNING) return;                                                                         \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                                 \
                           feature_residual, decoder_norm, bounds};                                                    \
        if (thresholds) {                                                                                              \
            JumpRelu jump = {{thresholds, bandwidth}, features, Pseudo(), threshold_parts};                            \
            update_scaled<CHUNKS>(parameters, jump, derived, encoder_gradient, decoder_gradient, bias_parts,           \
                                  norm_parts, parts, clip->scale, features, stride, norm_kind, scalars, report);       \
        } else {                                                                                                       \
            update_scaled<CHUNKS>(parameters, Relu(), derived, encoder_gradient, decoder_gradient, bias_parts,         \
                                  norm_parts, parts, clip->scale, features, stride, norm_kind, scalars, report);       \
        }                                                                                                              \
    }
KERNELS(1, 3, 3)
KERNELS(2, 2, 2)
KERNELS(4, 1, 1)
KERNELS(8, 1, 1)

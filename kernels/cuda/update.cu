// update: what the optimizer does outside the sparse path: features whose gradients are in memory (after dense products),
// the decoder's bias, and the derived arrays of weights that were just loaded.
//
// Cost of update_dense: 32 bytes per weight (weight and two moments read and written, gradient read).
#include "update.cuh"

// The decoder's bias: gradient Σ_i g_i, less Σ_j db_j W_enc_j with the pre-bias, both from column_sums' parts [parts,stride]
// and [pre_parts,stride] (null without). The last kernel of a step: its last block leaves the report in `reply`, in the host's
// memory, that of a step that was refused too. One thread per component, block 64, grid stride/64.
extern "C" __global__ void update_decoder_bias(float *parameters, const double *__restrict__ parts, u32 count,
                                               const double *__restrict__ pre_parts, u32 pre_count, u32 features,
                                               u32 stride, const Scalars *__restrict__ scalars, u32 *arrived,
                                               Report *report, Report *reply) {
    __shared__ u32 flag;
    decoder_bias_step(parameters, parts, count, pre_parts, pre_count, (const Clip *)0, features, stride, scalars, arrived,
                      report, reply, &flag);
}

// Blocks as in backward.cu. update_dense_*: grid ⌈F/8⌉. derive_*: grid F.
#define KERNELS(CHUNKS, BLOCKS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) update_dense_##CHUNKS(                                \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,        \
        float *feature_residual, float *decoder_norm, u32 bounds, const float *__restrict__ encoder_gradient,       \
        const float *__restrict__ decoder_gradient, const float *__restrict__ bias_parts,                           \
        const float *__restrict__ norm_parts, u32 parts, float *__restrict__ pre_bias, u32 features, u32 stride,    \
        u32 weighted, u32 norm_kind, const Scalars *__restrict__ scalars, Report *report) {                         \
        if (report->status != RUNNING) return;                                                                      \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                              \
                           feature_residual, decoder_norm, bounds};                                                 \
        update_from_memory<CHUNKS>(parameters, Relu(), derived, encoder_gradient, decoder_gradient, bias_parts, norm_parts, \
                                   parts, pre_bias, features, stride, weighted, norm_kind, scalars, report);        \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) derive_##CHUNKS(                                      \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,        \
        float *feature_residual, float *decoder_norm, u32 bounds, u32 features, u32 stride) {                       \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                              \
                           feature_residual, decoder_norm, bounds};                                                 \
        derive_from_memory<CHUNKS>(parameters, Relu(), derived, features, stride);                                          \
    }
KERNELS(1, 4)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(8, 1)

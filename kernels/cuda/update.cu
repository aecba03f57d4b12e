// update: what the optimizer does outside the sparse path: features whose gradients are in memory (after dense products),
// the decoder's bias, and the derived arrays of weights that were just loaded.
//
// Cost of update_dense: 32 bytes per weight (weight and two moments read and written, gradient read).
#include "feature.cuh"
#include "last.cuh"

// bias_parts, norm_parts [parts,F]: sums of da and of the derivative by the norm over blocks of rows, from dense_slopes.
template <int CHUNKS>
__device__ void update_from_memory(float *parameters, Derived derived, const float *encoder_gradient,
                                   const float *decoder_gradient, const float *bias_parts, const float *norm_parts,
                                   u32 parts, float *pre_bias, u32 features, u32 stride, u32 weighted, u32 norm_kind,
                                   const Scalars *scalars_at, Report *report) {
    __shared__ __align__(16) float shared[2 * 32];
    Turns turns(shared);
    const Scalars &scalars = *scalars_at;
    Parameters weights = parameters_at(parameters, 0, features, stride);
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    for (u32 feature = first; feature < last; feature++) {
        float4 encoder[CHUNKS], decoder[CHUNKS];
        Gradient<CHUNKS> gradient;
        gradient.bias = gradient.by_norm = 0.0f;
        for (u32 part = 0; part < parts; part++) {
            gradient.bias += bias_parts[(u64)part * features + feature];
            gradient.by_norm += norm_parts[(u64)part * features + feature];
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 column = (threadIdx.x + c * blockDim.x) * 4;
            bool there = column < stride;
            u64 place = (u64)feature * stride + column;
            encoder[c] = there ? load_four(weights.encoder + place) : zero_four();
            decoder[c] = there ? load_four(weights.decoder + place) : zero_four();
            gradient.encoder[c] = there ? load_four(encoder_gradient + place) : zero_four();
            gradient.decoder[c] = there ? load_four(decoder_gradient + place) : zero_four();
        }
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        update_feature(parameters, feature, features, stride, norm_kind, weighted != 0, scalars, encoder, decoder,
                       MomentsInMemory(), gradient, derived, turns, report);
    }
}

template <int CHUNKS>
__device__ void derive_from_memory(float *parameters, Derived derived, u32 features, u32 stride) {
    __shared__ __align__(16) float shared[2 * 32];
    Turns turns(shared);
    Parameters weights = parameters_at(parameters, 0, features, stride);
    float4 encoder[CHUNKS], decoder[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        bool there = column < stride;
        u64 place = (u64)blockIdx.x * stride + column;
        encoder[c] = there ? load_four(weights.encoder + place) : zero_four();
        decoder[c] = there ? load_four(weights.decoder + place) : zero_four();
    }
    derive(derived, blockIdx.x, stride, encoder, decoder, weights.encoder_bias[blockIdx.x], turns);
}

// The decoder's bias: gradient Σ_i g_i, less Σ_j db_j W_enc_j with the pre-bias, both from column_sums' parts [parts,stride]
// and [pre_parts,stride] (null without). The last kernel of a step: its last block leaves the report in `reply`, in the host's
// memory, that of a step that was refused too. One thread per component, block 64, grid stride/64.
extern "C" __global__ void update_decoder_bias(float *parameters, const double *__restrict__ parts, u32 count,
                                               const double *__restrict__ pre_parts, u32 pre_count, u32 features,
                                               u32 stride, const Scalars *__restrict__ scalars, u32 *arrived,
                                               Report *report, Report *reply) {
    if (report->status != RUNNING) {
        if (blockIdx.x == 0) copy_words<Report>(report, reply);
        return;
    }
    __shared__ u32 flag;
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    double gradient = 0.0;
    for (u32 part = 0; part < count; part++) gradient += parts[(u64)part * stride + column];
    if (pre_parts) {
        for (u32 part = 0; part < pre_count; part++) gradient -= pre_parts[(u64)part * stride + column];
    }
    float *w = parameters_at(parameters, 0, features, stride).decoder_bias + column;
    float *m = parameters_at(parameters, 1, features, stride).decoder_bias + column;
    float *v = parameters_at(parameters, 2, features, stride).decoder_bias + column;
    adam(*scalars, *w, *m, *v, (float)gradient);
    if (!is_finite(*w)) report->diverged = 1;
    if (last_block(arrived, gridDim.x, &flag)) copy_words<Report>(report, reply);
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
        update_from_memory<CHUNKS>(parameters, derived, encoder_gradient, decoder_gradient, bias_parts, norm_parts, \
                                   parts, pre_bias, features, stride, weighted, norm_kind, scalars, report);        \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) derive_##CHUNKS(                                      \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,        \
        float *feature_residual, float *decoder_norm, u32 bounds, u32 features, u32 stride) {                       \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                              \
                           feature_residual, decoder_norm, bounds};                                                 \
        derive_from_memory<CHUNKS>(parameters, derived, features, stride);                                          \
    }
KERNELS(1, 4)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(8, 1)

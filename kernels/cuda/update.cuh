// What the optimizer does with gradients in memory, at once or once their norm is known, and what follows from weights that were
// just loaded, for every kind of feature.
#pragma once
#include "feature.cuh"
#include "last.cuh"

// A feature's rows and gradients from memory.
template <int CHUNKS, class Kind>
__device__ __forceinline__ void read_feature(const Parameters &weights, const Kind &kind, u32 feature,
                                             const float *encoder_gradient, const float *decoder_gradient,
                                             const float *bias_parts, const float *norm_parts, u32 parts, u32 features,
                                             u32 stride, float4 (&encoder)[CHUNKS], float4 (&decoder)[CHUNKS],
                                             Gradient<CHUNKS> &gradient) {
    gradient.bias = gradient.by_norm = gradient.threshold = 0.0f;
    for (u32 part = 0; part < parts; part++) {
        gradient.bias += bias_parts[(u64)part * features + feature];
        gradient.by_norm += norm_parts[(u64)part * features + feature];
        gradient.threshold += kind.part(part, features, feature);
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
}

// bias_parts, norm_parts [parts,F]: sums of da and of the derivative by the norm over blocks of rows, from dense_slopes.
template <int CHUNKS, class Kind>
__device__ void update_from_memory(float *parameters, const Kind &kind, Derived derived, const float *encoder_gradient,
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
        read_feature(weights, kind, feature, encoder_gradient, decoder_gradient, bias_parts, norm_parts, parts,
                     features, stride, encoder, decoder, gradient);
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        update_feature<false>(parameters, feature, features, stride, norm_kind, weighted != 0, scalars, encoder, decoder,
                       MomentsInMemory(), gradient, kind, derived, turns, report);
    }
}

template <int CHUNKS, class Kind>
__device__ void derive_from_memory(float *parameters, const Kind &kind, Derived derived, u32 features, u32 stride) {
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
    derive(derived, blockIdx.x, stride, encoder, decoder, weights.encoder_bias[blockIdx.x], kind, kind.read(blockIdx.x),
           turns);
}

// The projection of gradients in memory, in place, and the sums of the squares of a block's features, into squares [blocks].
template <int CHUNKS, class Kind>
__device__ void project_in_memory(float *parameters, const Kind &kind, const float *encoder_gradient,
                                  float *decoder_gradient, const float *bias_parts, const float *norm_parts, u32 parts,
                                  float *pre_bias, double *squares, u32 features, u32 stride, u32 weighted,
                                  u32 norm_kind) {
    __shared__ __align__(16) float shared[2 * 32];
    Turns turns(shared);
    Parameters weights = parameters_at(parameters, 0, features, stride);
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    double whole = 0.0;
    for (u32 feature = first; feature < last; feature++) {
        float4 encoder[CHUNKS], decoder[CHUNKS];
        Gradient<CHUNKS> gradient;
        read_feature(weights, kind, feature, encoder_gradient, decoder_gradient, bias_parts, norm_parts, parts,
                     features, stride, encoder, decoder, gradient);
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        float along = factor_along(norm_kind, weighted != 0, decoder, gradient, turns);
        float sums[1] = {0.0f};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 column = (threadIdx.x + c * blockDim.x) * 4;
            if (column >= stride) continue;
            add_scaled(gradient.decoder[c], along, decoder[c]);
            store_four(decoder_gradient + (u64)feature * stride + column, gradient.decoder[c]);
            sums[0] = dot_four(gradient.encoder[c], gradient.encoder[c], sums[0]);
            sums[0] = dot_four(gradient.decoder[c], gradient.decoder[c], sums[0]);
        }
        turns.sum(sums);
        whole += sums[0] + gradient.bias * gradient.bias + gradient.threshold * gradient.threshold;
    }
    if (threadIdx.x == 0) squares[blockIdx.x] = whole;
}

// update_from_memory of gradients that were projected, each times `scale`.
template <int CHUNKS, class Kind>
__device__ void update_scaled(float *parameters, const Kind &kind, Derived derived, const float *encoder_gradient,
                              const float *decoder_gradient, const float *bias_parts, const float *norm_parts,
                              u32 parts, float scale, u32 features, u32 stride, u32 norm_kind,
                              const Scalars *scalars_at, Report *report) {
    __shared__ __align__(16) float shared[2 * 32];
    Turns turns(shared);
    const Scalars &scalars = *scalars_at;
    Parameters weights = parameters_at(parameters, 0, features, stride);
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    for (u32 feature = first; feature < last; feature++) {
        float4 encoder[CHUNKS], decoder[CHUNKS];
        Gradient<CHUNKS> gradient;
        read_feature(weights, kind, feature, encoder_gradient, decoder_gradient, bias_parts, norm_parts, parts,
                     features, stride, encoder, decoder, gradient);
        gradient.bias *= scale;
        gradient.threshold *= scale;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            multiply_four(gradient.encoder[c], scale);
            multiply_four(gradient.decoder[c], scale);
        }
        update_feature<true>(parameters, feature, features, stride, norm_kind, false, scalars, encoder, decoder,
                             MomentsInMemory(), gradient, kind, derived, turns, report);
    }
}

// A component of the gradient of the decoder's bias.
__device__ __forceinline__ double decoder_bias_gradient(const double *parts, u32 count, const double *pre_parts,
                                                        u32 pre_count, u32 stride, u32 column) {
    double gradient = 0.0;
    for (u32 part = 0; part < count; part++) gradient += parts[(u64)part * stride + column];
    if (pre_parts) {
        for (u32 part = 0; part < pre_count; part++) gradient -= pre_parts[(u64)part * stride + column];
    }
    return gradient;
}

// A thread's component of update_decoder_bias; `clip` is null where nothing is clipped. `flag` is shared memory.
__device__ __forceinline__ void decoder_bias_step(float *parameters, const double *parts, u32 count,
                                                  const double *pre_parts, u32 pre_count, const Clip *clip,
                                                  u32 features, u32 stride, const Scalars *scalars, u32 *arrived,
                                                  Report *report, Report *reply, u32 *flag) {
    if (report->status != RUNNING) {
        if (blockIdx.x == 0) copy_words<Report>(report, reply);
        return;
    }
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    double gradient = decoder_bias_gradient(parts, count, pre_parts, pre_count, stride, column);
    float *w = parameters_at(parameters, 0, features, stride).decoder_bias + column;
    float *m = parameters_at(parameters, 1, features, stride).decoder_bias + column;
    float *v = parameters_at(parameters, 2, features, stride).decoder_bias + column;
    adam(*scalars, *w, *m, *v, (float)gradient * (clip ? clip->scale : 1.0f));
    if (!is_finite(*w)) report->diverged = 1;
    if (last_block(arrived, gridDim.x, flag)) copy_words<Report>(report, reply);
}

// The gradients of features from their pairs and the update of the same rows, for every kind of feature: see backward.cu.
#pragma once
#include "feature.cuh"

// A segment's sums: encoder [stride], decoder [stride], then db and dθ in the first of 4 numbers.
__device__ __forceinline__ u64 segment_length(u32 stride) {
    return 2 * (u64)stride + 4;
}

template <int CHUNKS>
__device__ __forceinline__ void clear(Gradient<CHUNKS> &gradient) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) gradient.encoder[c] = gradient.decoder[c] = zero_four();
    gradient.bias = gradient.by_norm = gradient.threshold = 0.0f;
}

template <int CHUNKS>
__device__ __forceinline__ void load_row(const float *row, u32 stride, float4 (&to)[CHUNKS]) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        to[c] = column < stride ? load_four(row + column) : zero_four();
    }
}

template <int CHUNKS, class Kind>
__device__ void segments(float *parameters, const Kind &kind, const u32 *feature_starts, const u32 *segment_starts,
                         const u32 *segment_features, const u32 *pair_rows, const float *feature_values,
                         const float *feature_slopes, const float *x, const float *g, float *sums, u32 features,
                         u32 stride) {
    __shared__ float shared[2 * Kind::KEPT_OF_PAIR * SEGMENT];
    Derivatives derivatives = {shared, 0};
    const int TOGETHER = CHUNKS == 1 ? 4 : CHUNKS == 2 ? 2 : 1;
    const float *decoder = parameters_at(parameters, 0, features, stride).decoder;
    u32 count = segment_starts[features];
    for (u32 segment = blockIdx.x; segment < count; segment += gridDim.x) {
        u32 feature = segment_features[segment];
        u32 begin = feature_starts[feature] + (segment - segment_starts[feature]) * SEGMENT;
        u32 end = min(begin + SEGMENT, feature_starts[feature + 1]);
        Pairs pairs = {pair_rows + begin, feature_values + begin, feature_slopes + begin, end - begin, x, g, stride};
        Gradient<CHUNKS> gradient;
        clear(gradient);
        add_pairs<TOGETHER>(pairs, decoder + (u64)feature * stride, kind, kind.read(feature), derivatives, gradient);
        float *to = sums + segment * segment_length(stride);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 column = (threadIdx.x + c * blockDim.x) * 4;
            if (column >= stride) continue;
            store_four(to + column, gradient.encoder[c]);
            store_four(to + stride + column, gradient.decoder[c]);
        }
        if (threadIdx.x == 0) {
            to[2 * (u64)stride] = gradient.bias;
            kind.leave(to + 2 * (u64)stride + 1, gradient.threshold);
        }
    }
}

// The rows of a block's features, from memory when they are wanted.
template <int CHUNKS>
struct RowsInMemory : MomentsInMemory {
    Parameters weights;
    u32 stride;
    // Taken before the pairs are added, to be there afterwards; the widest rows leave no registers for that.
    static constexpr bool EARLY = CHUNKS < 8;

    __device__ __forceinline__ RowsInMemory(float *parameters, u32 features, u32 stride, u32, u32)
        : weights(parameters_at(parameters, 0, features, stride)), stride(stride) {}
    __device__ __forceinline__ void take(u32 feature, float4 (&encoder)[CHUNKS], float4 (&decoder)[CHUNKS]) const {
        load_row(weights.encoder + (u64)feature * stride, stride, encoder);
        load_row(weights.decoder + (u64)feature * stride, stride, decoder);
    }
};

// The same rows, fetched a feature ahead into shared memory: a thread's components of each row in a place of their own,
// which is free for the next feature's once they were read.
struct RowsAhead {
    const float *encoder_rows;  // of feature 0, this thread's part; the others lie `matrix` and `copy` numbers further
    u64 matrix, copy;
    float4 *places;  // [ROWS][blockDim]
    u32 stride, last;
    static constexpr bool EARLY = false;

    __device__ __forceinline__ RowsAhead(float *parameters, u32 features, u32 stride, u32 begin, u32 end)
        : encoder_rows(parameters + threadIdx.x * 4), matrix((u64)features * stride),
          copy(parameters_length(features, stride)), stride(stride), last(end) {
        __shared__ float4 shared[ROWS * 256];
        places = shared + threadIdx.x;
        fetch_rows(begin);
    }
    __device__ __forceinline__ float4 *place(Row row) const { return places + row * blockDim.x; }

    __device__ __forceinline__ void fetch_rows(u32 feature) const {
        if (feature < last && threadIdx.x * 4 < stride) {
            const float *weights = encoder_rows + (u64)feature * stride, *first = weights + copy,
                        *second = first + copy;
            fetch(place(ENCODER), weights);
            fetch(place(DECODER), weights + matrix);
            fetch_once(place(DECODER_FIRST), first + matrix);
            fetch_once(place(DECODER_SECOND), second + matrix);
            fetch_once(place(ENCODER_FIRST), first);
            fetch_once(place(ENCODER_SECOND), second);
        }
        close_fetches();
    }

    __device__ __forceinline__ void take(u32, float4 (&encoder)[1], float4 (&decoder)[1]) const {
        wait_for_fetches<0>();
        bool mine = threadIdx.x * 4 < stride;
        encoder[0] = mine ? *place(ENCODER) : zero_four();
        decoder[0] = mine ? *place(DECODER) : zero_four();
    }
    __device__ __forceinline__ float4 read(Row row, const float *) const { return *place(row); }
    __device__ __forceinline__ void done(u32 feature) const { fetch_rows(feature + 1); }
};

template <int CHUNKS>
struct RowsOf {
    using Type = RowsInMemory<CHUNKS>;
};
template <>
struct RowsOf<1> {
    using Type = RowsAhead;
};

// Adds all pairs of a feature, those of segments from their sums.
template <int CHUNKS, class Kind>
__device__ __forceinline__ void add_feature(u32 feature, const float *decoder_rows, const Kind &kind,
                                            const u32 *feature_starts, const u32 *segment_starts,
                                            const u32 *pair_rows, const float *feature_values,
                                            const float *feature_slopes, const float *x, const float *g,
                                            const float *sums, u32 stride, Derivatives &derivatives,
                                            Gradient<CHUNKS> &gradient) {
    const int TOGETHER = CHUNKS == 1 ? 4 : CHUNKS == 2 ? 2 : 1;
    u32 begin = feature_starts[feature], count = feature_starts[feature + 1] - begin;
    u32 segment = segment_starts[feature], segment_end = segment_starts[feature + 1];
    if (segment == segment_end && count > 0) {
        Pairs pairs = {pair_rows + begin, feature_values + begin, feature_slopes + begin, count, x, g, stride};
        add_pairs<TOGETHER>(pairs, decoder_rows + (u64)feature * stride, kind, kind.read(feature), derivatives,
                            gradient);
    }
    // In the order of the segments, TOGETHER of them under way: a feature in most rows has 58 at B = 4096.
    for (; segment < segment_end; segment += TOGETHER) {
        float4 encoder_part[TOGETHER][CHUNKS], decoder_part[TOGETHER][CHUNKS];
        float bias_part[TOGETHER], threshold_part[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            const float *from = sums + min(segment + n, segment_end - 1) * segment_length(stride);
            load_row(from, stride, encoder_part[n]);
            load_row(from + stride, stride, decoder_part[n]);
            bias_part[n] = from[2 * (u64)stride];
            threshold_part[n] = kind.left(from + 2 * (u64)stride + 1);
        }
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            if (segment + n >= segment_end) break;
            gradient.bias += bias_part[n];
            gradient.threshold += threshold_part[n];
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                add_scaled(gradient.encoder[c], 1.0f, encoder_part[n][c]);
                add_scaled(gradient.decoder[c], 1.0f, decoder_part[n][c]);
            }
        }
    }
}

template <int CHUNKS, class Kind>
__device__ void update(float *parameters, const Kind &kind, Derived derived, const u32 *feature_starts,
                       const u32 *segment_starts, const u32 *pair_rows, const float *feature_values,
                       const float *feature_slopes, const float *by_norm, const float *x, const float *g, const float *sums, float *pre_bias,
                       u32 features, u32 stride, u32 norm_kind, const Scalars *scalars_at, Report *report) {
    __shared__ __align__(16) float shared[2 * 32];
    __shared__ float shared_derivatives[2 * Kind::KEPT_OF_PAIR * SEGMENT];
    Turns turns(shared);
    Derivatives derivatives = {shared_derivatives, 0};
    using Rows = typename RowsOf<CHUNKS>::Type;
    const Scalars &scalars = *scalars_at;
    const float *decoder_rows = parameters_at(parameters, 0, features, stride).decoder;
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    Rows rows(parameters, features, stride, first, last);
    for (u32 feature = first; feature < last; feature++) {
        float4 encoder[CHUNKS], decoder[CHUNKS];
        if (Rows::EARLY) rows.take(feature, encoder, decoder);
        Gradient<CHUNKS> gradient;
        clear(gradient);
        if (by_norm) gradient.by_norm = by_norm[feature];
        add_feature(feature, decoder_rows, kind, feature_starts, segment_starts, pair_rows, feature_values,
                    feature_slopes, x, g, sums, stride, derivatives, gradient);
        if (!Rows::EARLY) rows.take(feature, encoder, decoder);
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        update_feature<false>(parameters, feature, features, stride, norm_kind, by_norm != nullptr, scalars, encoder, decoder,
                       rows, gradient, kind, derived, turns, report);
    }
}

// The gradients alone, into memory: encoder and decoder [F,stride], and of each feature db, the derivative by the decoder's norm
// and dθ.
template <int CHUNKS, class Kind>
__device__ void gradients(float *parameters, const Kind &kind, const u32 *feature_starts, const u32 *segment_starts,
                          const u32 *pair_rows, const float *feature_values, const float *feature_slopes,
                          const float *by_norm, const float *x, const float *g, const float *sums,
                          float *encoder_gradient, float *decoder_gradient, float *bias_parts, float *norm_parts,
                          u32 features, u32 stride) {
    __shared__ float shared_derivatives[2 * Kind::KEPT_OF_PAIR * SEGMENT];
    Derivatives derivatives = {shared_derivatives, 0};
    const float *decoder_rows = parameters_at(parameters, 0, features, stride).decoder;
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    for (u32 feature = first; feature < last; feature++) {
        Gradient<CHUNKS> gradient;
        clear(gradient);
        add_feature(feature, decoder_rows, kind, feature_starts, segment_starts, pair_rows, feature_values,
                    feature_slopes, x, g, sums, stride, derivatives, gradient);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 column = (threadIdx.x + c * blockDim.x) * 4;
            if (column >= stride) continue;
            u64 place = (u64)feature * stride + column;
            store_four(encoder_gradient + place, gradient.encoder[c]);
            store_four(decoder_gradient + place, gradient.decoder[c]);
        }
        if (threadIdx.x != 0) continue;
        bias_parts[feature] = gradient.bias;
        norm_parts[feature] = by_norm ? by_norm[feature] : 0.0f;
        kind.leave_part(feature, gradient.threshold);
    }
}

// backward and update: the gradients of one feature's weights from its active pairs, then the update of the same rows
// while they are in registers.
//
//   da_ij = g_i·W_dec_j + d penalties/da_ij      dW_dec_j = Σ_i a_ij g_i      dW_enc_j = Σ_i da_ij x_i      db_j = Σ_i da_ij
//   dW_dec_j -= its component along W_dec_j      Adam      W_dec_j /= its norm
//
// x and g [B,stride], weights and moments as in types.cuh. No gradient is ever written to memory: each weight and its two
// moments are read and written once, 24 bytes, plus 2 to 4 for the bfloat16 copies: 0.98 GB at d = 768, F = 24,576, the
// floor of the step on HBM. Per active pair 6·stride operations and 8·stride bytes of x and g, which stay in L2.
//
// A block owns 8 features, one after the other; the number is fixed, so that sums over blocks (of the pre-bias) do not
// depend on the device. Features with more than SEGMENT pairs, such as those active in most rows, would keep one
// block busy for longer than the whole step takes: backward_segments sums their pairs beforehand, SEGMENT at a time, and
// their block adds the segments up in order.
#include "feature.cuh"

// A segment's sums: encoder [stride], decoder [stride], then db and by_norm in the first two of 4 numbers.
__device__ __forceinline__ u64 segment_length(u32 stride) {
    return 2 * (u64)stride + 4;
}

template <int CHUNKS>
__device__ __forceinline__ void clear(Gradient<CHUNKS> &gradient) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) gradient.encoder[c] = gradient.decoder[c] = zero_four();
    gradient.bias = gradient.by_norm = 0.0f;
}

template <int CHUNKS>
__device__ __forceinline__ void load_row(const float *row, u32 stride, float4 (&to)[CHUNKS]) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        to[c] = column < stride ? load_four(row + column) : zero_four();
    }
}

template <int CHUNKS>
__device__ void segments(float *parameters, const float *decoder_norm, const u32 *feature_starts,
                         const u32 *segment_starts, const u32 *pair_rows, const float *feature_values,
                         const float *slopes, const float *x, const float *g, float *sums, u32 features, u32 stride,
                         u32 kind, u32 weighted, const Scalars *scalars_at) {
    __shared__ float shared[2 * 128];
    Turns turns = {shared, 0};
    const Scalars &scalars = *scalars_at;
    const float *decoder = parameters_at(parameters, 0, features, stride).decoder;
    u32 count = segment_starts[features];
    for (u32 segment = blockIdx.x; segment < count; segment += gridDim.x) {
        // The feature whose segments contain this one: the last whose first segment is not beyond it.
        u32 low = 0, high = features;
        while (high - low > 1) {
            u32 middle = low + (high - low) / 2;
            if (segment_starts[middle] <= segment) {
                low = middle;
            } else {
                high = middle;
            }
        }
        u32 feature = low;
        u32 begin = feature_starts[feature] + (segment - segment_starts[feature]) * SEGMENT;
        u32 end = min(begin + SEGMENT, feature_starts[feature + 1]);
        Pairs pairs = {pair_rows + begin, feature_values + begin, end - begin, x, g, stride, kind,
                       weighted ? decoder_norm[feature] : 1.0f, slopes[feature]};
        float4 w[CHUNKS];
        load_row(decoder + (u64)feature * stride, stride, w);
        Gradient<CHUNKS> gradient;
        clear(gradient);
        add_pairs(pairs, scalars, w, turns, gradient);
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
            to[2 * (u64)stride + 1] = gradient.by_norm;
        }
    }
}

template <int CHUNKS>
__device__ void update(float *parameters, Derived derived, const u32 *feature_starts, const u32 *segment_starts,
                       const u32 *pair_rows, const float *feature_values, const float *slopes, const float *x,
                       const float *g, const float *sums, float *pre_bias, u32 features, u32 stride, u32 kind,
                       u32 weighted, u32 norm_kind, const Scalars *scalars_at, Report *report) {
    __shared__ float shared[2 * 128];
    Turns turns = {shared, 0};
    const Scalars &scalars = *scalars_at;
    Parameters weights = parameters_at(parameters, 0, features, stride);
    u32 first = blockIdx.x * FEATURES_OF_BLOCK, last = min(first + FEATURES_OF_BLOCK, features);
    for (u32 feature = first; feature < last; feature++) {
        float4 encoder[CHUNKS], decoder[CHUNKS];
        // Early, to be there when it is needed; the widest rows have no registers to spare for it.
        if (CHUNKS < 8) load_row(weights.encoder + (u64)feature * stride, stride, encoder);
        load_row(weights.decoder + (u64)feature * stride, stride, decoder);
        Gradient<CHUNKS> gradient;
        clear(gradient);
        u32 begin = feature_starts[feature], count = feature_starts[feature + 1] - begin;
        u32 segment = segment_starts[feature], segment_end = segment_starts[feature + 1];
        if (segment == segment_end) {
            Pairs pairs = {pair_rows + begin, feature_values + begin, count, x, g, stride, kind,
                           weighted ? derived.decoder_norm[feature] : 1.0f, slopes[feature]};
            add_pairs(pairs, scalars, decoder, turns, gradient);
        }
        for (; segment < segment_end; segment++) {
            const float *from = sums + segment * segment_length(stride);
            float4 part[CHUNKS];
            load_row(from, stride, part);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) add_scaled(gradient.encoder[c], 1.0f, part[c]);
            load_row(from + stride, stride, part);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) add_scaled(gradient.decoder[c], 1.0f, part[c]);
            gradient.bias += from[2 * (u64)stride];
            gradient.by_norm += from[2 * (u64)stride + 1];
        }
        if (CHUNKS == 8) load_row(weights.encoder + (u64)feature * stride, stride, encoder);
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        update_feature(parameters, feature, features, stride, norm_kind, weighted != 0, scalars, encoder, decoder,
                       gradient, derived, turns, report);
    }
}

// The kernels, once per number of components that a thread owns: 4, 8, 16 or 32. Block: ⌈stride/4/CHUNKS⌉ threads rounded
// up to whole warps, at most 256. BLOCKS of that size are to fit a multiprocessor's registers at once: at d = 768 with its
// 192 threads and 80 registers, four do, and while one waits for a sum the others stream.
//
// backward_segments_*: any grid. sums [segments, 2·stride + 4].
// backward_update_*: grid ⌈F/8⌉. pre_bias [⌈F/8⌉,stride] receives Σ_j db_j W_enc_j over the block's features, or is null.
#define KERNELS(CHUNKS, BLOCKS)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_segments_##CHUNKS(                                     \
        float *parameters, const float *__restrict__ decoder_norm, const u32 *__restrict__ feature_starts,             \
        const u32 *__restrict__ segment_starts, const u32 *__restrict__ pair_rows,                                     \
        const float *__restrict__ feature_values, const float *__restrict__ slopes, const float *__restrict__ x,       \
        const float *__restrict__ g, float *__restrict__ sums, u32 features, u32 stride, u32 kind, u32 weighted,       \
        const Scalars *__restrict__ scalars, const Report *__restrict__ report) {                                      \
        if (report->status != RUNNING) return;                                                                         \
        segments<CHUNKS>(parameters, decoder_norm, feature_starts, segment_starts, pair_rows, feature_values, slopes,  \
                         x, g, sums, features, stride, kind, weighted, scalars);                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_update_##CHUNKS(                                       \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, const u32 *__restrict__ feature_starts,              \
        const u32 *__restrict__ segment_starts, const u32 *__restrict__ pair_rows,                                     \
        const float *__restrict__ feature_values, const float *__restrict__ slopes, const float *__restrict__ x,       \
        const float *__restrict__ g, const float *__restrict__ sums, float *__restrict__ pre_bias, u32 features,       \
        u32 stride, u32 kind, u32 weighted, u32 norm_kind, const Scalars *__restrict__ scalars, Report *report) {      \
        if (report->status != RUNNING) return;                                                                         \
        Derived derived = {encoder_bf16, decoder_bf16, feature_base, feature_norm, feature_residual, decoder_norm,     \
                           bounds};                                                                                    \
        update<CHUNKS>(parameters, derived, feature_starts, segment_starts, pair_rows, feature_values, slopes, x, g,   \
                       sums, pre_bias, features, stride, kind, weighted, norm_kind, scalars, report);                  \
    }
KERNELS(1, 3)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(8, 1)

// backward and update: the gradients of one feature's weights from its active pairs, then the update of the same rows
// while they are in registers.
//
//   da_ij = g_i·W_dec_j + d penalties/da_ij      dW_dec_j = Σ_i a_ij g_i      dW_enc_j = Σ_i da_ij x_i      db_j = Σ_i da_ij
//   dW_dec_j -= its component along W_dec_j      Adam      W_dec_j /= its norm
//
// x and g [B,stride], weights and moments as in types.cuh. No gradient is ever written to memory: each weight and its two
// moments are read and written once, 24 bytes, plus 2 to 4 for the bfloat16 copies: 0.98 GB at d = 768, F = 24,576, the
// floor of the step on HBM. Per active pair 6·stride operations and 8·stride bytes of x and g, which stay in L2. The pairs come
// with their activations and with the derivatives of the penalties (gather_values of lists.cu).
//
// Instructions are nearly as scarce as bytes: at the reference size about 800 for each of a feature's six warps, 0.12 G in
// all, are 130 µs if every scheduler issues one every cycle.
//
// A block owns 8 features, one after the other; the number is fixed, so that sums over blocks (of the pre-bias) do not
// depend on the device. Each feature is a chain of waits (its pairs' rows, the sums over the block, its moments), and few
// blocks fit a multiprocessor: so the six rows of the next feature, 18 KB at d = 768, are on their way while one is
// computed. 33 KB a multiprocessor in flight keep 4.3 TB/s busy at 1 µs; four blocks have 72. (Rows wider than 1024 take
// too much memory for that, and have more loads in flight by themselves.)
//
// Features with more than SEGMENT pairs, such as those active in most rows, would keep one block busy for longer than the
// whole step takes: backward_segments sums their pairs beforehand, SEGMENT at a time, and their block adds the segments up
// in order.
#include "feature.cuh"

// A segment's sums: encoder [stride], decoder [stride], then db in the first of 4 numbers.
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
__device__ void segments(float *parameters, const u32 *feature_starts, const u32 *segment_starts,
                         const u32 *segment_features, const u32 *pair_rows, const float *feature_values,
                         const float *feature_slopes, const float *x, const float *g, float *sums, u32 features,
                         u32 stride) {
    __shared__ float shared[2 * SEGMENT];
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
        add_pairs<TOGETHER>(pairs, decoder + (u64)feature * stride, derivatives, gradient);
        float *to = sums + segment * segment_length(stride);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            u32 column = (threadIdx.x + c * blockDim.x) * 4;
            if (column >= stride) continue;
            store_four(to + column, gradient.encoder[c]);
            store_four(to + stride + column, gradient.decoder[c]);
        }
        if (threadIdx.x == 0) to[2 * (u64)stride] = gradient.bias;
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

template <int CHUNKS>
__device__ void update(float *parameters, Derived derived, const u32 *feature_starts, const u32 *segment_starts,
                       const u32 *pair_rows, const float *feature_values, const float *feature_slopes,
                       const float *by_norm, const float *x, const float *g, const float *sums, float *pre_bias,
                       u32 features, u32 stride, u32 norm_kind, const Scalars *scalars_at, Report *report) {
    __shared__ __align__(16) float shared[2 * 32];
    __shared__ float shared_derivatives[2 * SEGMENT];
    Turns turns(shared);
    Derivatives derivatives = {shared_derivatives, 0};
    const int TOGETHER = CHUNKS == 1 ? 4 : CHUNKS == 2 ? 2 : 1;
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
        u32 begin = feature_starts[feature], count = feature_starts[feature + 1] - begin;
        u32 segment = segment_starts[feature], segment_end = segment_starts[feature + 1];
        if (segment == segment_end && count > 0) {
            Pairs pairs = {pair_rows + begin, feature_values + begin, feature_slopes + begin, count, x, g, stride};
            add_pairs<TOGETHER>(pairs, decoder_rows + (u64)feature * stride, derivatives, gradient);
        }
        // In the order of the segments, TOGETHER of them under way: a feature in most rows has 58 at B = 4096.
        for (; segment < segment_end; segment += TOGETHER) {
            float4 encoder_part[TOGETHER][CHUNKS], decoder_part[TOGETHER][CHUNKS];
            float bias_part[TOGETHER];
#pragma unroll
            for (int n = 0; n < TOGETHER; n++) {
                const float *from = sums + min(segment + n, segment_end - 1) * segment_length(stride);
                load_row(from, stride, encoder_part[n]);
                load_row(from + stride, stride, decoder_part[n]);
                bias_part[n] = from[2 * (u64)stride];
            }
#pragma unroll
            for (int n = 0; n < TOGETHER; n++) {
                if (segment + n >= segment_end) break;
                gradient.bias += bias_part[n];
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
                    add_scaled(gradient.encoder[c], 1.0f, encoder_part[n][c]);
                    add_scaled(gradient.decoder[c], 1.0f, decoder_part[n][c]);
                }
            }
        }
        if (!Rows::EARLY) rows.take(feature, encoder, decoder);
        if (pre_bias) add_to_pre_bias(pre_bias, feature == first, gradient.bias, encoder, stride);
        update_feature(parameters, feature, features, stride, norm_kind, by_norm != nullptr, scalars, encoder, decoder,
                       rows, gradient, derived, turns, report);
    }
}

// The kernels, once per number of components that a thread owns: 4, 8, 16 or 32. Block: ⌈stride/4/CHUNKS⌉ threads rounded
// up to whole warps, at most 256. BLOCKS of that size are to fit a multiprocessor's registers at once: at d = 768 with its
// 192 threads and 80 registers, four do, and while one waits for a sum the others stream.
//
// backward_segments_*: any grid. sums [segments, 2·stride + 4].
// backward_update_*: grid ⌈F/8⌉. pre_bias [⌈F/8⌉,stride] receives Σ_j db_j W_enc_j over the block's features, or is null.
#define KERNELS(CHUNKS, BLOCKS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_segments_##CHUNKS(                              \
        float *parameters, const u32 *__restrict__ feature_starts, const u32 *__restrict__ segment_starts,             \
        const u32 *__restrict__ segment_features, const u32 *__restrict__ pair_rows,                                   \
        const float *__restrict__ feature_values, const float *__restrict__ feature_slopes,                            \
        const float *__restrict__ x, const float *__restrict__ g, float *__restrict__ sums, u32 features, u32 stride,  \
        const Report *__restrict__ report) {                                                                           \
        if (report->status != RUNNING) return;                                                                         \
        segments<CHUNKS>(parameters, feature_starts, segment_starts, segment_features, pair_rows, feature_values,      \
                         feature_slopes, x, g, sums, features, stride);                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) backward_update_##CHUNKS(                                \
        float *parameters, bf16 *encoder_bf16, bf16 *decoder_bf16, float *feature_base, float *feature_norm,           \
        float *feature_residual, float *decoder_norm, u32 bounds, const u32 *__restrict__ feature_starts,              \
        const u32 *__restrict__ segment_starts, const u32 *__restrict__ pair_rows,                                     \
        const float *__restrict__ feature_values, const float *__restrict__ feature_slopes,                            \
        const float *__restrict__ by_norm, const float *__restrict__ x, const float *__restrict__ g,                   \
        const float *__restrict__ sums, float *__restrict__ pre_bias, u32 features, u32 stride, u32 norm_kind,         \
        const Scalars *__restrict__ scalars, Report *report) {                                                         \
        if (report->status != RUNNING) return;                                                                         \
        Derived derived = {encoder_bf16,     decoder_bf16, feature_base, feature_norm,                                 \
                           feature_residual, decoder_norm, bounds};                                                    \
        update<CHUNKS>(parameters, derived, feature_starts, segment_starts, pair_rows, feature_values, feature_slopes, \
                       by_norm, x, g, sums, pre_bias, features, stride, norm_kind, scalars, report);                   \
    }
KERNELS(1, 3)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(8, 1)

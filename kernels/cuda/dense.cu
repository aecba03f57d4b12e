// dense: what stands between the dense products of a batch in which many activations are positive.
//
//   z = X·W_enc  →  activate  →  a  →  a·W_dec  →  decode_dense  →  g  →  g·W_decᵀ  →  dense_slopes  →  da
//   dW_enc = daᵀ·X,  dW_dec = aᵀ·g  →  update_dense (update.cu)
//
// a and da [B,line], line = F rounded up to a multiple of 64, 400 MB in float32 at B = 4096, F = 24,576; each kernel is one
// pass over one or two such arrays.
//
// Products that are float32's within rounding come from bfloat16 tensor cores: a factor is the sum of two bfloat16 numbers,
// high + low + a rest of at most 2^-17 of it, and of the four products of halves the three largest are taken, small ones
// first. Where the product's inner dimension is d, rows of the one factor are [low high high], of the other [high low
// high]: one product with an inner dimension of 3·stride, whose result, [B,F], is written once instead of three times. a and
// da, whose products have small results, are written as two arrays by the kernels that compute them.
#include "dense.cuh"

// a = z where z = z + b_enc is above `threshold`, else 0, in place, its halves, and bit i%32 of mask[j, i/32] = a_ij > 0. A thread
// owns a feature and 32 rows: a word of the mask. With RANKED what is left is divided by `norm`.
template <bool RANKED>
__device__ __forceinline__ void activate_rows(float threshold, float norm, float *a, float bias, u32 *mask, bf16 *high,
                                              bf16 *low, u32 feature, u32 rows, u32 line, u32 words) {
    u32 first = blockIdx.y * 32, bits = 0;
#pragma unroll 8
    for (u32 at = 0; at < 32; at++) {
        u32 row = first + at;
        if (row >= rows) break;
        u64 place = (u64)row * line + feature;
        float z = a[place] + bias;
        bool active = z > threshold;
        float value = active ? z : 0.0f;
        if (RANKED && active) value /= norm;
        a[place] = value;
        Halves halves = halves_of(value);
        if (high) high[place] = halves.high;
        if (low) low[place] = halves.low;
        bits |= (u32)active << at;
    }
    mask[(u64)feature * words + blockIdx.y] = bits;
}

// ReLU's. `high` and `low` [B,line] may be null. Block 256 threads, grid (⌈F/256⌉, words).
extern "C" __global__ void __launch_bounds__(256)
    activate(float *__restrict__ a, const float *__restrict__ encoder_bias, u32 *__restrict__ mask,
             bf16 *__restrict__ high, bf16 *__restrict__ low, u32 features, u32 rows, u32 line, u32 words,
             const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature >= features) return;
    activate_rows<false>(0.0f, 1.0f, a, encoder_bias[feature], mask, high, low, feature, rows, line, words);
}

// Those of an autoencoder with one threshold of at least 0 for all features: BatchTopK where it is not trained. `decoder_norm` [F]
// is null unless z is one times it.
extern "C" __global__ void __launch_bounds__(256)
    activate_above(float *__restrict__ a, const float *__restrict__ encoder_bias, u32 *__restrict__ mask,
                   bf16 *__restrict__ high, bf16 *__restrict__ low, u32 features, u32 rows, u32 line, u32 words,
                   const Report *__restrict__ report, float threshold, const float *__restrict__ decoder_norm) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature >= features) return;
    float norm = decoder_norm ? decoder_norm[feature] : 1.0f;
    activate_rows<true>(threshold, norm, a, encoder_bias[feature], mask, high, low, feature, rows, line, words);
}

// From x̂ without its bias, in g [B,stride], and the activations: g in place, and the row's results. Block of up to 256
// threads, grid B.
extern "C" __global__ void __launch_bounds__(256)
    decode_dense(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
                 const float *__restrict__ decoder_bias, const float *__restrict__ decoder_norm,
                 const float *__restrict__ a, float *__restrict__ g, RowResult *__restrict__ results, u32 features,
                 u32 rows, u32 width, u32 stride, u32 line, u32 mse, u32 kind, const Scalars *__restrict__ scalars,
                 const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ float float_sums[8 * 3];
    __shared__ double double_sums[8 * 2];
    __shared__ u32 counts[8];
    u32 row = blockIdx.x;
    float scale = gradient_scale(mse, rows, width, squared[row], centered[row]);
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        u64 place = (u64)row * stride + column;
        float4 xhat = *(const float4 *)(g + place), bias = *(const float4 *)(decoder_bias + column);
        xhat.x += bias.x;
        xhat.y += bias.y;
        xhat.z += bias.z;
        xhat.w += bias.w;
        *(float4 *)(g + place) = finish_four(xhat, *(const float4 *)(x + place), scale, sums);
    }
    double of_pairs[2] = {0.0, 0.0};
    u32 active[1] = {0};
    for (u32 feature = threadIdx.x; feature < features; feature += blockDim.x) {
        float value = a[(u64)row * line + feature];
        if (value > 0.0f) {
            active[0]++;
            float norm = decoder_norm ? decoder_norm[feature] : 1.0f;
            add_activation(kind, scalars->penalty_parameter, value, norm, of_pairs);
        }
    }
    block_sum<8>(sums, float_sums);
    block_sum<8>(of_pairs, double_sums);
    block_sum<8>(active, counts);
    if (threadIdx.x == 0) {
        RowResult result;
        result.squared_error = sums[0];
        result.dot = sums[1];
        result.squared_norm = sums[2];
        result.active = active[0];
        result.l1 = of_pairs[0];
        result.penalty = of_pairs[1];
        results[row] = result;
    }
}

// da = g·W_dec + d penalties/da where a > 0, else 0: its halves, of which `low` may be null, or, where `high` is null too,
// da itself in place. Sums of da and of the derivative by the decoder's norm over 128 rows into bias_parts and norm_parts
// [⌈B/128⌉,F]. A thread owns a feature and 128 rows. Block 256 threads, grid (⌈F/256⌉, ⌈B/128⌉).
extern "C" __global__ void __launch_bounds__(256)
    dense_slopes(const float *__restrict__ a, float *__restrict__ da, const float *__restrict__ decoder_norm,
                 const float *__restrict__ slopes, float *__restrict__ bias_parts, float *__restrict__ norm_parts,
                 bf16 *__restrict__ high, bf16 *__restrict__ low, u32 features, u32 rows, u32 line, u32 kind,
                 const Scalars *__restrict__ scalars_at, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * SLOPE_ROWS;
    if (feature >= features) return;
    const Scalars scalars = *scalars_at;
    float norm = decoder_norm ? decoder_norm[feature] : 1.0f, slope = slopes[feature];
    float sum = 0.0f, by_norm = 0.0f;
#pragma unroll 4
    for (u32 row = first; row < min(first + SLOPE_ROWS, rows); row++) {
        u64 place = (u64)row * line + feature;
        float value = a[place], whole = 0.0f;
        if (value > 0.0f) whole = da[place] + penalty_slope(kind, scalars, value, norm, slope, by_norm);
        if (high) {
            Halves halves = halves_of(whole);
            high[place] = halves.high;
            if (low) low[place] = halves.low;
        } else {
            da[place] = whole;
        }
        sum += whole;
    }
    bias_parts[(u64)blockIdx.y * features + feature] = sum;
    norm_parts[(u64)blockIdx.y * features + feature] = by_norm;
}

enum Order { HIGH = 0, LOW_HIGH_HIGH = 1, HIGH_LOW_HIGH = 2 };

// The halves of a matrix [lines,stride] side by side: lines of 3·stride numbers in one of two orders, or the high halves
// alone, in lines of stride. Block of up to 256 threads, grid `lines`.
extern "C" __global__ void __launch_bounds__(256) split(const float *__restrict__ in, bf16 *__restrict__ out,
                                                        u32 stride, u32 order, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u64 line = blockIdx.x;
    bf16 *to = out + line * stride * (order == HIGH ? 1 : 3);
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        float4 four = *(const float4 *)(in + line * stride + column);
        Halves x = halves_of(four.x), y = halves_of(four.y), z = halves_of(four.z), w = halves_of(four.w);
        uint2 high, low;
        high.x = (u32)x.high | (u32)y.high << 16;
        high.y = (u32)z.high | (u32)w.high << 16;
        low.x = (u32)x.low | (u32)y.low << 16;
        low.y = (u32)z.low | (u32)w.low << 16;
        *(uint2 *)(to + column) = order == LOW_HIGH_HIGH ? low : high;
        if (order == HIGH) continue;
        *(uint2 *)(to + stride + column) = order == LOW_HIGH_HIGH ? high : low;
        *(uint2 *)(to + 2 * (u64)stride + column) = high;
    }
}

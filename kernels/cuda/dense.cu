// dense: what stands between the dense products of a batch in which many activations are positive.
//
//   z = X·W_enc  →  activate  →  a  →  a·W_dec  →  decode_dense  →  g  →  g·W_decᵀ  →  dense_slopes  →  da
//   dW_enc = daᵀ·X,  dW_dec = aᵀ·g  →  update_dense (update.cu)
//
// a and da [B,line], line = F rounded up to a multiple of 64. Each kernel is one pass over one or two arrays of that size
// (400 MB each in float32 at B = 4096, F = 24,576).
#include "decode.cuh"

// a = max(0, z + b_enc) in place, and bit i%32 of mask[j, i/32] = a_ij > 0. A thread owns a feature and 32 rows: a word of
// the mask. Block 256 threads, grid (⌈F/256⌉, words).
extern "C" __global__ void __launch_bounds__(256)
activate(float *__restrict__ a, const float *__restrict__ encoder_bias, u32 *__restrict__ mask, u32 features, u32 rows,
         u32 line, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * 32;
    if (feature >= features) return;
    float bias = encoder_bias[feature];
    u32 bits = 0;
#pragma unroll 8
    for (u32 at = 0; at < 32; at++) {
        u32 row = first + at;
        if (row >= rows) break;
        float z = a[(u64)row * line + feature] + bias;
        bool active = z > 0.0f;
        a[(u64)row * line + feature] = active ? z : 0.0f;
        bits |= (u32)active << at;
    }
    mask[(u64)feature * words + blockIdx.y] = bits;
}

// From x̂ without its bias, in g [B,stride], and the activations: g in place, and the row's results. Block of up to 256
// threads, grid B.
extern "C" __global__ void __launch_bounds__(256)
decode_dense(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
             const float *__restrict__ decoder_bias, const float *__restrict__ decoder_norm,
             const float *__restrict__ a, float *__restrict__ g, RowResult *__restrict__ results, u32 features, u32 rows,
             u32 width, u32 stride, u32 line, u32 mse, u32 kind, const Scalars *__restrict__ scalars,
             const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ float float_sums[32 * 3];
    __shared__ double double_sums[32 * 2];
    __shared__ u32 counts[32];
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
    block_sum(sums, float_sums);
    block_sum(of_pairs, double_sums);
    block_sum(active, counts);
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

// da = g·W_dec + d penalties/da where a > 0, else 0, in place; sums of da and of the derivative by the decoder's norm over
// 128 rows into bias_parts and norm_parts [⌈B/128⌉,F]. A thread owns a feature and 128 rows. Block 256 threads, grid
// (⌈F/256⌉, ⌈B/128⌉).
extern "C" __global__ void __launch_bounds__(256)
dense_slopes(const float *__restrict__ a, float *__restrict__ da, const float *__restrict__ decoder_norm,
             const float *__restrict__ slopes, float *__restrict__ bias_parts, float *__restrict__ norm_parts,
             u32 features, u32 rows, u32 line, u32 kind, const Scalars *__restrict__ scalars_at,
             const Report *__restrict__ report) {
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
        da[place] = whole;
        sum += whole;
    }
    bias_parts[(u64)blockIdx.y * features + feature] = sum;
    norm_parts[(u64)blockIdx.y * features + feature] = by_norm;
}

// in = high + low + a rest of at most 2^-17 of it: factors of products that are float32's within rounding, formed on bfloat16
// tensor cores as high·high + high·low + low·high. `low` may be null. n is a multiple of 4.
extern "C" __global__ void split(const float *__restrict__ in, bf16 *__restrict__ high, bf16 *__restrict__ low, u64 n,
                                 const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u64 at = (blockIdx.x * (u64)blockDim.x + threadIdx.x) * 4;
    if (at >= n) return;
    float4 four = *(const float4 *)(in + at);
    float values[4] = {four.x, four.y, four.z, four.w};
    u32 highs[4], lows[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        bf16 rounded = float_to_bf16(values[k]);
        highs[k] = rounded;
        lows[k] = float_to_bf16(values[k] - bf16_to_float(rounded));
    }
    uint2 packed;
    packed.x = highs[0] | highs[1] << 16;
    packed.y = highs[2] | highs[3] << 16;
    *(uint2 *)(high + at) = packed;
    if (low) {
        packed.x = lows[0] | lows[1] << 16;
        packed.y = lows[2] | lows[3] << 16;
        *(uint2 *)(low + at) = packed;
    }
}

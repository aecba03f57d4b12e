// decode: x̂ = a·W_dec + b_dec from the active pairs, the error, its losses, and g = dL/dx̂.
//
//   x̂_i = b_dec + Σ_j a_ij W_dec_j      g_i = (x̂_i - x_i) · 2 / denominator_i
//
// W_dec [F,stride], X and g [B,stride]. The sum runs over the row's features in ascending order, one fused multiply-add
// each, as in kernels/src/cpu/decode.rs: given the activations, x̂ is the CPU's bit for bit.
// Cost per active pair: 2·stride operations, 4·stride bytes of W_dec from L2 (252 MB at 20 pairs a row, B = 4096, d = 768;
// half of it from the bfloat16 copy); X read and g written once.
//
// A block owns a row, a thread four neighbouring components of it (and every blockDim·4th after them). The pairs are read
// by all threads at the same address, one transaction a warp; four decoder rows are in flight at a time.
#include "decode.cuh"

template <class T>
__device__ void decode_row(const float *x, const float *squared, const float *centered, const T *decoder,
                           const float *decoder_bias, const float *decoder_norm, const u32 *starts,
                           const u32 *row_active, const u32 *pair_features, const float *row_values, float *g,
                           RowResult *results, u32 rows, u32 width, u32 stride, u32 mse, u32 kind,
                           const Scalars *scalars) {
    __shared__ float float_sums[32 * 3];
    __shared__ double double_sums[32 * 2];
    u32 row = blockIdx.x, begin = starts[row], count = row_active[row];
    const u32 *features = pair_features + begin;
    const float *values = row_values + begin;
    float scale = gradient_scale(mse, rows, width, squared[row], centered[row]);
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        float4 xhat = *(const float4 *)(decoder_bias + column);
        add_pairs(xhat, decoder, features, values, count, stride, column);
        u64 place = (u64)row * stride + column;
        *(float4 *)(g + place) = finish_four(xhat, *(const float4 *)(x + place), scale, sums);
    }
    double of_pairs[2] = {0.0, 0.0};
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        float norm = decoder_norm ? decoder_norm[features[at]] : 1.0f;
        add_activation(kind, scalars->penalty_parameter, values[at], norm, of_pairs);
    }
    block_sum(sums, float_sums);
    block_sum(of_pairs, double_sums);
    if (threadIdx.x == 0) {
        RowResult result;
        result.squared_error = sums[0];
        result.dot = sums[1];
        result.squared_norm = sums[2];
        result.active = count;
        result.l1 = of_pairs[0];
        result.penalty = of_pairs[1];
        results[row] = result;
    }
}

// Grid B, block a multiple of 32 threads up to 256. `decoder_norm` [F] where the penalty is weighted by it, else null.
extern "C" __global__ void __launch_bounds__(256)
    decode(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
           const float *__restrict__ decoder, const float *__restrict__ decoder_bias,
           const float *__restrict__ decoder_norm, const u32 *__restrict__ starts, const u32 *__restrict__ row_active,
           const u32 *__restrict__ pair_features, const float *__restrict__ row_values, float *__restrict__ g,
           RowResult *__restrict__ results, u32 rows, u32 width, u32 stride, u32 mse, u32 kind,
           const Scalars *__restrict__ scalars, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    decode_row(x, squared, centered, decoder, decoder_bias, decoder_norm, starts, row_active, pair_features, row_values,
               g, results, rows, width, stride, mse, kind, scalars);
}

// The same from the decoder's bfloat16 copy, for `--precision bf16`.
extern "C" __global__ void __launch_bounds__(256)
    decode_bf16(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
                const bf16 *__restrict__ decoder, const float *__restrict__ decoder_bias,
                const float *__restrict__ decoder_norm, const u32 *__restrict__ starts,
                const u32 *__restrict__ row_active, const u32 *__restrict__ pair_features,
                const float *__restrict__ row_values, float *__restrict__ g, RowResult *__restrict__ results, u32 rows,
                u32 width, u32 stride, u32 mse, u32 kind, const Scalars *__restrict__ scalars,
                const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    decode_row(x, squared, centered, decoder, decoder_bias, decoder_norm, starts, row_active, pair_features, row_values,
               g, results, rows, width, stride, mse, kind, scalars);
}

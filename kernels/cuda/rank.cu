// rank: features ranked by z·‖W_dec_j‖ in place of z. An encoder times the norms has that number for its z, so that nothing which
// finds the largest knows of it:
//
//   rank_encoder  →  the selection and the recheck, of ranked z  →  divide_by_norms  →  the activations
//
// Cost: W_enc read and written once, 150 MB at d = 768, F = 24,576.
#include "four.cuh"
#include "reduce.cuh"

// ranked [F,stride] and ranked_bias [F]: encoder and bias times decoder_norm. ranked_norm [F]: the norms of its rows, rounded up, from
// those of the encoder. Block of up to 256 threads, grid F.
extern "C" __global__ void __launch_bounds__(256)
    rank_encoder(const float *__restrict__ encoder, const float *__restrict__ encoder_bias,
                 const float *__restrict__ feature_norm, const float *__restrict__ decoder_norm,
                 float *__restrict__ ranked, float *__restrict__ ranked_bias, float *__restrict__ ranked_norm, u32 stride,
                 const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    float norm = decoder_norm[blockIdx.x];
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        u64 at = (u64)blockIdx.x * stride + column;
        float4 row = four_at(encoder, at);
        row.x *= norm;
        row.y *= norm;
        row.z *= norm;
        row.w *= norm;
        *(float4 *)(ranked + at) = row;
    }
    if (threadIdx.x != 0) return;
    ranked_bias[blockIdx.x] = encoder_bias[blockIdx.x] * norm;
    // The last term covers products too small for float32.
    ranked_norm[blockIdx.x] = 1.0001f * feature_norm[blockIdx.x] * norm + 1e-18f * sqrtf((float)stride);
}

// The activations in the lists by row, divided by their features' norms: what is above 0 has one above 0. One warp per row, block
// 256, grid ⌈B/8⌉.
extern "C" __global__ void __launch_bounds__(256)
    divide_by_norms(const u32 *__restrict__ starts, const u32 *__restrict__ row_active,
                    const u32 *__restrict__ pair_features, float *row_values, const float *__restrict__ decoder_norm,
                    u32 rows, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 row = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= rows) return;
    u32 begin = starts[row], end = begin + row_active[row];
    for (u32 at = begin + (threadIdx.x & 31u); at < end; at += 32) row_values[at] /= decoder_norm[pair_features[at]];
}

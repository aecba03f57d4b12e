// screen: which z can be positive, by the product of bfloat16 copies: the definition that the tensor-core screens follow,
// in plain loops, for devices without them and for the emulation. What is computed is said in README.md.
//
// Cost: 2·B·F·stride operations on the plain cores. A thread owns a row and 8 features; a warp's ballot is a word of the
// mask.
#include "reduce.cuh"

constexpr u32 FEATURES_AT_ONCE = 8;

// Block of 128 threads, grid (⌈F/8⌉, words/4).
extern "C" __global__ void screen(const bf16 *__restrict__ encoder_bf16, const bf16 *__restrict__ x_bf16,
                                  const float *__restrict__ feature_base, const float *__restrict__ feature_norm,
                                  const float *__restrict__ feature_residual, const float *__restrict__ row_norm,
                                  const float *__restrict__ row_residual, u32 *__restrict__ mask, u32 features,
                                  u32 rows, u32 stride, u32 words) {
    u32 row = blockIdx.y * 128 + threadIdx.x, word = row / 32;
    u32 first = blockIdx.x * FEATURES_AT_ONCE;
    // Rows and features that fill the last block repeat the last ones, so that no lane leaves the ballots.
    const bf16 *line = x_bf16 + (u64)min(row, rows - 1) * stride;
    float sums[FEATURES_AT_ONCE];
#pragma unroll
    for (u32 n = 0; n < FEATURES_AT_ONCE; n++) sums[n] = 0.0f;
    for (u32 column = 0; column < stride; column++) {
        float value = bf16_to_float(line[column]);
#pragma unroll
        for (u32 n = 0; n < FEATURES_AT_ONCE; n++) {
            u32 feature = min(first + n, features - 1);
            sums[n] = fmaf(value, bf16_to_float(encoder_bf16[(u64)feature * stride + column]), sums[n]);
        }
    }
    float norm = row_norm[min(row, rows - 1)], residual = row_residual[min(row, rows - 1)];
#pragma unroll
    for (u32 n = 0; n < FEATURES_AT_ONCE; n++) {
        u32 feature = min(first + n, features - 1);
        float most =
            sums[n] + feature_base[feature] + residual * feature_norm[feature] + norm * feature_residual[feature];
        u32 bits = __ballot_sync(0xffffffffu, row < rows && most > 0.0f);
        if ((threadIdx.x & 31u) == 0 && first + n < features && word < words) {
            mask[(u64)feature * words + word] = bits;
        }
    }
}

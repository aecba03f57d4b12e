// encode: which z = X W_enc + b_enc are positive, in float32: the definition of the active set.
//
//   z_ij = fma(x_i,d-1, w_d-1,j, … fma(x_i0, w_0j, b_j))      bit i%32 of mask[j, i/32] = z_ij > 0
//
// X [B,stride] (the encoder's input), W_enc transposed [F,stride], mask [F,words]. The sum starts at the bias and takes one
// product after the other: the order of kernels/src/cpu/tile.rs, bit for bit. Columns of padding add 0.
// Cost: 2·B·F·stride operations on the plain cores (155 GFLOP at B = 4096, d = 768, F = 24,576), each matrix read once per
// 64 lines of the other.
//
// A block computes 64 rows × 64 features; a warp 64 rows × 16 features: lane l owns rows l and l + 32, so that a ballot is
// a word of the mask. X is staged with rows side by side (no bank conflicts), W with features side by side (one
// broadcast of 16 bytes serves four features).
#include "reduce.cuh"

constexpr u32 TILE = 64;      // rows and features of a block
constexpr u32 DEPTH = 32;     // columns staged at a time; stride is a multiple of 64
constexpr u32 PER_WARP = 16;  // features of a warp

// Block of 128 threads, grid (⌈words/2⌉, ⌈F/64⌉).
extern "C" __global__ void __launch_bounds__(128)
    encode(const float *__restrict__ encoder, const float *__restrict__ encoder_bias, const float *__restrict__ x,
           u32 *__restrict__ mask, u32 features, u32 rows, u32 stride, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ float xs[DEPTH][TILE + 1];  // padded, as ws: the staging stores go down a column
    __shared__ __align__(16) float ws[DEPTH][TILE + 4];
    u32 first_row = blockIdx.x * TILE, first_feature = blockIdx.y * TILE;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    float sums[2][PER_WARP];
#pragma unroll
    for (u32 n = 0; n < PER_WARP; n++) {
        u32 feature = first_feature + warp * PER_WARP + n;
        sums[0][n] = sums[1][n] = feature < features ? encoder_bias[feature] : 0.0f;
    }
    for (u32 depth = 0; depth < stride; depth += DEPTH) {
        __syncthreads();
        for (u32 line = warp; line < TILE; line += 4) {
            u32 row = first_row + line, feature = first_feature + line;
            xs[lane][line] = row < rows ? x[(u64)row * stride + depth + lane] : 0.0f;
            ws[lane][line] = feature < features ? encoder[(u64)feature * stride + depth + lane] : 0.0f;
        }
        __syncthreads();
        for (u32 k = 0; k < DEPTH; k++) {
            float x0 = xs[k][lane], x1 = xs[k][lane + 32];
            const float4 *w = (const float4 *)&ws[k][warp * PER_WARP];
#pragma unroll
            for (u32 four = 0; four < PER_WARP / 4; four++) {
                float4 w4 = w[four];
                float part[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    sums[0][four * 4 + n] = fmaf(x0, part[n], sums[0][four * 4 + n]);
                    sums[1][four * 4 + n] = fmaf(x1, part[n], sums[1][four * 4 + n]);
                }
            }
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = first_row + half * 32 + lane, word = blockIdx.x * 2 + half;
#pragma unroll
        for (u32 n = 0; n < PER_WARP; n++) {
            u32 feature = first_feature + warp * PER_WARP + n;
            u32 bits = __ballot_sync(0xffffffffu, row < rows && sums[half][n] > 0.0f);
            if (lane == 0 && feature < features && word < words) mask[(u64)feature * words + word] = bits;
        }
    }
}

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
#include "encode.cuh"

// Block of 128 threads, grid (⌈words/2⌉, ⌈F/64⌉).
extern "C" __global__ void __launch_bounds__(128)
    encode(const float *__restrict__ encoder, const float *__restrict__ encoder_bias, const float *__restrict__ x,
           u32 *__restrict__ mask, u32 features, u32 rows, u32 stride, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    encode_tile(Zero(), encoder, encoder_bias, x, mask, features, rows, stride, words);
}

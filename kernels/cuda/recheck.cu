// recheck: the activations of the candidates, in float32, and which of them are active.
//
//   a_ij = x_i · w_j + b_j     for each candidate (i, j) of a row's list; those with a_ij > 0 stay
//
// The sum is formed by 32 lanes; where it is too near 0 for its order not to matter (`uncertainty`), it is formed again in
// the order of encode.cu, which decides. So the active set is that of the definition, bit for bit, whatever the screen let
// pass. A block waits for such a sum, d fused multiply-adds one after the other: one candidate in about 150 at d = 768.
// Lists are compacted in place: row i keeps row_active[i] entries from starts[i] on, in ascending order. The bits of
// candidates that are not active are cleared in mask [F,words].
//
// Cost per candidate: 2·stride operations, 4·stride bytes of W_enc from L2 (300 MB at 25 candidates a row, B = 4096,
// d = 768). A block owns a row, which it keeps in shared memory up to 1024 numbers; a warp takes 4 candidates at a time,
// which share the reading of x_i.
#include "recheck.cuh"

// Block of 128 threads, grid B.
extern "C" __global__ void __launch_bounds__(128, 8)
    recheck(const float *__restrict__ x, const float *__restrict__ encoder, const float *__restrict__ encoder_bias,
            const float *__restrict__ length, const float *__restrict__ feature_norm, const u32 *__restrict__ starts,
            u32 *pair_features, float *row_values, u32 *row_active, u32 *mask, u32 stride, u32 words,
            const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    recheck_row(AboveZero(), x, encoder, encoder_bias, length, feature_norm, starts, pair_features, row_values, row_active, mask,
                stride, words, true);
}

// The same from the bfloat16 copies, for `--precision bf16`: half the bytes, and no order of summation decides anything.
extern "C" __global__ void __launch_bounds__(128, 8)
    recheck_bf16(const bf16 *__restrict__ x, const bf16 *__restrict__ encoder, const float *__restrict__ encoder_bias,
                 const u32 *__restrict__ starts, u32 *pair_features, float *row_values, u32 *row_active, u32 *mask,
                 u32 stride, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    recheck_row(AboveZero(), x, encoder, encoder_bias, (const float *)0, (const float *)0, starts, pair_features, row_values,
                row_active, mask, stride, words, false);
}

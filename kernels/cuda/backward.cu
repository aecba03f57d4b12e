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
#include "backward.cuh"

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
        segments<CHUNKS>(parameters, Relu(), feature_starts, segment_starts, segment_features, pair_rows, feature_values,      \
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
        update<CHUNKS>(parameters, Relu(), derived, feature_starts, segment_starts, pair_rows, feature_values, feature_slopes, \
                       by_norm, x, g, sums, pre_bias, features, stride, norm_kind, scalars, report);                   \
    }
KERNELS(1, 3)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(8, 1)

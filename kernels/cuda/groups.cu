// groups: nested prefixes of the features, which reconstruct by themselves as well (Matryoshka).
//
//   x̂^l_i = b_dec + Σ_{j < end_l} a_ij W_dec_j      loss = weight · Σ_l mse(x̂^l, X), the last prefix being all features
//   g^l_i = Σ_{m ≥ l} dL/dx̂^m_i, which is dL/dx̂ as the features between the ends of l - 1 and l see it
//
// A batch lies behind itself in the backward pass, once for each l: rows l·distance + i of x and g. A pair's row there is that of
// its feature's group (shift_rows), so that no other kernel of the backward pass knows of prefixes.
//
// Cost: that of decode.cu, as a row's list is in the order of the features; and for each prefix g^l, 12.6 MB at B = 4096, d = 768,
// written twice and read once, X written once.
#include "decode.cuh"
#include "last.cuh"

__device__ __forceinline__ void add_four(float4 &sum, float4 other) {
    sum.x += other.x;
    sum.y += other.y;
    sum.z += other.z;
    sum.w += other.w;
}

template <class T>
__device__ void decode_row_of_groups(const float *x, const float *squared, const float *centered, const T *decoder,
                                     const float *decoder_bias, const float *decoder_norm, const u32 *starts,
                                     const u32 *row_active, const u32 *pair_features, const float *row_values, float *g,
                                     RowResult *results, u32 rows, u32 width, u32 stride, u32 mse, u32 kind,
                                     const Scalars *scalars, Report *report, const u32 *ends, u32 groups, u32 distance,
                                     float weight, double *terms, u32 *arrived) {
    __shared__ float float_sums[8 * 4];
    __shared__ double double_sums[8 * 2];
    __shared__ double term_sums[8];
    __shared__ u32 flag;
    u32 row = blockIdx.x, begin = starts[row], count = row_active[row];
    const u32 *features = pair_features + begin;
    const float *values = row_values + begin;
    const float scale = gradient_scale(mse, rows, width, squared[row], centered[row]);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // the last is ‖x̂ - x‖² of the others than the last prefix
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        float4 xhat = four_at(decoder_bias, column), own = four_at(x, (u64)row * stride + column);
        u32 at = 0;
        for (u32 group = 0; group < groups; group++) {
            for (u32 end = ends[group]; at < count && features[at] < end; at++) {
                add_pair(xhat, values[at], four_at(decoder, (u64)features[at] * stride + column));
            }
            float of_group[3] = {0.0f, 0.0f, 0.0f};
            float4 gradient = finish_four(xhat, own, scale * weight, of_group);
            *(float4 *)(g + ((u64)group * distance + row) * stride + column) = gradient;
            bool last = group == groups - 1;
#pragma unroll
            for (u32 n = 0; n < 3; n++) sums[n] += last ? of_group[n] : 0.0f;
            sums[3] += last ? 0.0f : of_group[0];
        }
        // The wider ones are part of what the narrower ones see.
        float4 wider = four_at(g, ((u64)(groups - 1) * distance + row) * stride + column);
        for (u32 group = groups - 1; group-- > 0;) {
            float *place = g + ((u64)group * distance + row) * stride + column;
            add_four(wider, four_at(place, 0));
            *(float4 *)place = wider;
        }
    }
    double of_pairs[2] = {0.0, 0.0};
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        float norm = decoder_norm ? decoder_norm[features[at]] : 1.0f;
        add_activation(kind, scalars->penalty_parameter, values[at], norm, of_pairs);
    }
    block_sum<8>(sums, float_sums);
    block_sum<8>(of_pairs, double_sums);
    if (threadIdx.x == 0) {
        RowResult result;
        result.squared_error = sums[0];
        result.dot = sums[1];
        result.squared_norm = sums[2];
        result.active = count;
        result.l1 = of_pairs[0];
        result.penalty = of_pairs[1];
        results[row] = result;
        // What the prefixes' term is more than that of the last alone, which report_rows adds up; 2/scale is the denominator.
        terms[row] = 0.5 * scale * ((double)weight * ((double)sums[3] + sums[0]) - sums[0]);
    }
    if (!last_block(arrived, gridDim.x, &flag)) return;
    double whole[1] = {0.0};
    for (u32 at = threadIdx.x; at < rows; at += blockDim.x) whole[0] += terms[at];
    block_sum<8>(whole, term_sums);
    if (threadIdx.x == 0) report->prefixes = whole[0];
}

// As decode of decode.cu. ends [groups] ascend to F; g [(groups - 1)·distance + B,stride], terms [B]. Grid B, block a multiple of 32
// threads up to 256.
extern "C" __global__ void __launch_bounds__(256)
    decode_groups(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
                  const float *__restrict__ decoder, const float *__restrict__ decoder_bias,
                  const float *__restrict__ decoder_norm, const u32 *__restrict__ starts,
                  const u32 *__restrict__ row_active, const u32 *__restrict__ pair_features,
                  const float *__restrict__ row_values, float *g, RowResult *__restrict__ results, u32 rows, u32 width,
                  u32 stride, u32 mse, u32 kind, const Scalars *__restrict__ scalars, Report *report,
                  const u32 *__restrict__ ends, u32 groups, u32 distance, float weight, double *terms, u32 *arrived) {
    if (report->status != RUNNING) return;
    decode_row_of_groups(x, squared, centered, decoder, decoder_bias, decoder_norm, starts, row_active, pair_features,
                         row_values, g, results, rows, width, stride, mse, kind, scalars, report, ends, groups, distance,
                         weight, terms, arrived);
}

// The same from the decoder's bfloat16 copy.
extern "C" __global__ void __launch_bounds__(256)
    decode_groups_bf16(const float *__restrict__ x, const float *__restrict__ squared,
                       const float *__restrict__ centered, const bf16 *__restrict__ decoder,
                       const float *__restrict__ decoder_bias, const float *__restrict__ decoder_norm,
                       const u32 *__restrict__ starts, const u32 *__restrict__ row_active,
                       const u32 *__restrict__ pair_features, const float *__restrict__ row_values, float *g,
                       RowResult *__restrict__ results, u32 rows, u32 width, u32 stride, u32 mse, u32 kind,
                       const Scalars *__restrict__ scalars, Report *report, const u32 *__restrict__ ends, u32 groups,
                       u32 distance, float weight, double *terms, u32 *arrived) {
    if (report->status != RUNNING) return;
    decode_row_of_groups(x, squared, centered, decoder, decoder_bias, decoder_norm, starts, row_active, pair_features,
                         row_values, g, results, rows, width, stride, mse, kind, scalars, report, ends, groups, distance,
                         weight, terms, arrived);
}

// Rows of x, the c-th time from row c·distance of `copies` on. Block of up to 256 threads, grid (B, times).
extern "C" __global__ void __launch_bounds__(256)
    repeat_rows(const float *__restrict__ x, float *__restrict__ copies, u32 stride, u32 distance,
                const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u64 row = blockIdx.x, to = (u64)blockIdx.y * distance + row;
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        *(float4 *)(copies + to * stride + column) = four_at(x, row * stride + column);
    }
}

// The rows of pairs become those of their feature's group; what lies behind the batch moves behind the last of them. One warp per
// feature, block 256.
extern "C" __global__ void __launch_bounds__(256)
    shift_rows(const u32 *__restrict__ feature_starts, u32 *pair_rows, const u32 *__restrict__ ends, u32 groups,
               u32 distance, u32 features, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), group = 0;
    if (feature >= features) return;
    while (feature >= ends[group]) group++;
    u32 end = feature_starts[feature + 1];
    for (u32 at = feature_starts[feature] + (threadIdx.x & 31u); at < end; at += 32) {
        u32 row = pair_rows[at];
        pair_rows[at] = row + (row < distance ? group : groups - 1) * distance;
    }
}

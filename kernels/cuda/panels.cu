// panels: features in panels, each decoded by itself; the row's owner adds them up in a fixed tree and finishes the row.
//
//   part^p_i = (b_dec in the first panel) + Σ_{j in p} a_ij W_dec_j         a panel's, [B,stride] and RowPart [B]
//   x̂_i = ((part^0 + part^1) + (part^2 + part^3)) + …                        neighbours first, whoever adds
//
// A rank's panels are a subtree: it adds them (add_parts), sends every owner its rows, and each owner adds the ranks' sums
// (finish_rows). So the sum is the same for any number of ranks that divides the panels, and bytes are all that travels.
//
// Cost: each panel's part, 4·stride + 24 bytes a row (12.7 MB at B = 4096, d = 768), is written once and read once.
#include "decode.cuh"

// What a panel, or several together, know of what is active in a row.
struct RowPart {
    double l1, penalty;
    u32 active, unused;
};

// Partial sums of so many levels are kept in registers: 2^LEVELS parts can be added.
constexpr u32 LEVELS = 6;

__device__ __forceinline__ float4 joined(float4 left, float4 right) {
    float4 sum;
    sum.x = left.x + right.x;
    sum.y = left.y + right.y;
    sum.z = left.z + right.z;
    sum.w = left.w + right.w;
    return sum;
}

__device__ __forceinline__ RowPart joined(const RowPart &left, const RowPart &right) {
    RowPart sum;
    sum.l1 = left.l1 + right.l1;
    sum.penalty = left.penalty + right.penalty;
    sum.active = left.active + right.active;
    sum.unused = 0;
    return sum;
}

// The sum of a power of two of neighbouring parts, `distance` apart. Part k ends as many subtrees as it has ones at its end.
template <class T>
__device__ __forceinline__ T sum_of_tree(const T *first, u64 distance, u32 parts) {
    T subtrees[LEVELS], sum = *first;
    subtrees[0] = sum;
    for (u32 part = 1; part < parts; part++) {
        sum = first[part * distance];
        bool carries = true;
#pragma unroll
        for (u32 level = 0; level < LEVELS; level++) {
            if (!carries) continue;
            carries = part >> level & 1u;
            if (carries) {
                sum = joined(subtrees[level], sum);
            } else {
                subtrees[level] = sum;
            }
        }
    }
    return sum;
}

__device__ __forceinline__ void leave_part(RowPart *activity, u32 active, const double (&of_pairs)[2]) {
    RowPart part;
    part.l1 = of_pairs[0];
    part.penalty = of_pairs[1];
    part.active = active;
    part.unused = 0;
    *activity = part;
}

template <class T>
__device__ void decode_part_of_row(const T *decoder, const float *decoder_bias, const float *decoder_norm,
                                   const u32 *starts, const u32 *row_active, const u32 *pair_features,
                                   const float *row_values, float *part, RowPart *activity, u32 stride, u32 kind,
                                   const Scalars *scalars) {
    __shared__ double double_sums[8 * 2];
    u32 row = blockIdx.x, begin = starts[row], count = row_active[row];
    const u32 *features = pair_features + begin;
    const float *values = row_values + begin;
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        float4 xhat = {0.0f, 0.0f, 0.0f, 0.0f};
        if (decoder_bias) xhat = four_at(decoder_bias, column);
        add_pairs(xhat, decoder, features, values, count, stride, column);
        *(float4 *)(part + (u64)row * stride + column) = xhat;
    }
    double of_pairs[2] = {0.0, 0.0};
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        float norm = decoder_norm ? decoder_norm[features[at]] : 1.0f;
        add_activation(kind, scalars->penalty_parameter, values[at], norm, of_pairs);
    }
    block_sum<8>(of_pairs, double_sums);
    if (threadIdx.x == 0) leave_part(activity + row, count, of_pairs);
}

// A panel's part from the active pairs; as decode of decode.cu. `decoder_bias` is null but in the first panel. Grid B, block a
// multiple of 32 threads up to 256.
extern "C" __global__ void __launch_bounds__(256)
    decode_part(const float *__restrict__ decoder, const float *__restrict__ decoder_bias,
                const float *__restrict__ decoder_norm, const u32 *__restrict__ starts,
                const u32 *__restrict__ row_active, const u32 *__restrict__ pair_features,
                const float *__restrict__ row_values, float *__restrict__ part, RowPart *__restrict__ activity,
                u32 stride, u32 kind, const Scalars *__restrict__ scalars, Report *report) {
    if (report->status != RUNNING) return;
    if (blockIdx.x == 0 && threadIdx.x == 0) report->dense = 0;
    decode_part_of_row(decoder, decoder_bias, decoder_norm, starts, row_active, pair_features, row_values, part,
                       activity, stride, kind, scalars);
}

// The same from the decoder's bfloat16 copy, for `--precision bf16`.
extern "C" __global__ void __launch_bounds__(256)
    decode_part_bf16(const bf16 *__restrict__ decoder, const float *__restrict__ decoder_bias,
                     const float *__restrict__ decoder_norm, const u32 *__restrict__ starts,
                     const u32 *__restrict__ row_active, const u32 *__restrict__ pair_features,
                     const float *__restrict__ row_values, float *__restrict__ part, RowPart *__restrict__ activity,
                     u32 stride, u32 kind, const Scalars *__restrict__ scalars, Report *report) {
    if (report->status != RUNNING) return;
    if (blockIdx.x == 0 && threadIdx.x == 0) report->dense = 0;
    decode_part_of_row(decoder, decoder_bias, decoder_norm, starts, row_active, pair_features, row_values, part,
                       activity, stride, kind, scalars);
}

// A panel's part after its dense product a·W_dec, in place, from the activations a [B,line]; and with `counts` how many of them are
// positive, into the report. Grid B, block 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    decode_part_dense(const float *__restrict__ decoder_bias, const float *__restrict__ decoder_norm,
                      const float *__restrict__ a, float *__restrict__ part, RowPart *__restrict__ activity,
                      u32 features, u32 stride, u32 line, u32 kind, u32 counts, const Scalars *__restrict__ scalars,
                      Report *report) {
    if (report->status != RUNNING) return;
    __shared__ double double_sums[8 * 2];
    __shared__ u32 shared_counts[8];
    u32 row = blockIdx.x;
    if (decoder_bias) {
        for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
            float4 *place = (float4 *)(part + (u64)row * stride + column);
            *place = joined(*place, *(const float4 *)(decoder_bias + column));
        }
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
    block_sum<8>(of_pairs, double_sums);
    block_sum<8>(active, shared_counts);
    if (threadIdx.x != 0) return;
    if (row == 0) report->dense = 1;
    leave_part(activity + row, active[0], of_pairs);
    // A sum of integers is the same in every order.
    if (counts) atomicAdd(&report->candidates, (u64)active[0]);
}

// A rank's parts [parts,rows,stride] and [parts,rows], `row_distance` rows apart, added up into sum [rows,stride] and activity
// [rows]. Grid rows, block as decode_part.
extern "C" __global__ void __launch_bounds__(256)
    add_parts(const float *__restrict__ parts, const RowPart *__restrict__ part_activity, float *__restrict__ sum,
              RowPart *__restrict__ activity, u32 count, u32 row_distance, u32 stride,
              const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 row = blockIdx.x;
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        u64 place = (u64)row * stride + column;
        *(float4 *)(sum + place) =
            sum_of_tree((const float4 *)(parts + place), (u64)row_distance * stride / 4, count);
    }
    if (threadIdx.x == 0) activity[row] = sum_of_tree(part_activity + row, row_distance, count);
}

// A panel's status, where the others can be sent it. One block.
extern "C" __global__ void leave_status(const Report *__restrict__ report, u32 *__restrict__ status) {
    if (threadIdx.x == 0) *status = report->status;
}

// What one panel refuses, all do. `statuses` [count] are those of all panels. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    share_status(const u32 *__restrict__ statuses, u32 count, Report *report) {
    __shared__ u32 shared[8];
    u32 refused[1] = {0};
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) refused[0] += statuses[at] != RUNNING;
    block_sum<8>(refused, shared);
    if (threadIdx.x == 0 && report->status == RUNNING && refused[0] != 0) report->status = REFUSED_BY_OTHERS;
}

// From the parts of the own rows, `row_distance` rows apart, to g and the rows' results, at their places among all B = `rows`;
// `first` is the first of the own. x, g [B,stride], results [B]. Grid own rows, block as decode_part.
extern "C" __global__ void __launch_bounds__(256)
    finish_rows(const float *__restrict__ x, const float *__restrict__ squared, const float *__restrict__ centered,
                const float *__restrict__ parts, const RowPart *__restrict__ part_activity, float *__restrict__ g,
                RowResult *__restrict__ results, u32 count, u32 row_distance, u32 first, u32 rows, u32 width,
                u32 stride, u32 mse, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ float float_sums[8 * 3];
    u32 own = blockIdx.x, row = first + own;
    float scale = gradient_scale(mse, rows, width, squared[row], centered[row]);
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        const float4 *part = (const float4 *)(parts + (u64)own * stride + column);
        float4 xhat = sum_of_tree(part, (u64)row_distance * stride / 4, count);
        u64 place = (u64)row * stride + column;
        *(float4 *)(g + place) = finish_four(xhat, *(const float4 *)(x + place), scale, sums);
    }
    block_sum<8>(sums, float_sums);
    if (threadIdx.x != 0) return;
    RowPart activity = sum_of_tree(part_activity + own, row_distance, count);
    RowResult result;
    result.squared_error = sums[0];
    result.dot = sums[1];
    result.squared_norm = sums[2];
    result.active = activity.active;
    result.l1 = activity.l1;
    result.penalty = activity.penalty;
    results[row] = result;
}

// All panels' reports, `words` words, into the host's memory: the end of a step. One block.
extern "C" __global__ void leave_reports(const u32 *reports, u32 *reply, u32 words) {
    const volatile u32 *in = reports;
    volatile u32 *out = reply;
    for (u32 word = threadIdx.x; word < words; word += blockDim.x) out[word] = in[word];
}

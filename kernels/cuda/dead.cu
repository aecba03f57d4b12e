// dead: an auxiliary loss over features that have stopped firing (AuxK), whose terms are in kernels/src/dead.rs, and what the
// backward pass has to see of it.
//
//   list_dead  →  (residual_columns  →  residual_spread)  →  encode_dead  →  select_dead  →  decode_dead
//   r = x - x̂      e_i = Σ_j z_ij W_dec_j over the dead features that row i selects      loss = scale · Σ_i ‖e_i - r_i‖²
//
// The pairs that rows select of dead features join those of the step. Row i of the loss is row `dead_row` + i of a batch that is
// twice as long, X over X and g over h = dL/de: so a pair of it is a pair like the others, and no kernel of the backward pass knows
// of it but gather_dead, which gives it no penalty. r is read off g = (x̂ - x)·scale_i·weight, that of all features with prefixes.
//
// Cost: 2·B·n·d operations on the plain cores for n dead features (13 GFLOP for 2,000 at B = 4096, d = 768), z [B,n] written and
// read, 8·d operations for each pair that is selected.
#include "decode.cuh"
#include "digits.cuh"
#include "encode.cuh"
#include "four.cuh"
#include "last.cuh"
#include "place.cuh"

enum DeadKind { DEAD_AUX_K = 0, DEAD_AUX_K_SUM = 1 };

// What a step finds of its dead features.
struct Dead {
    double coefficient;
    double scale;  // of the sum of squares
    u32 count;     // dead features
    u32 unused;
};

// The features that were silent for more than `after` steps, and for DEAD_AUX_K are so in this batch too, ascending into
// dead_features [F]; and the scale of DEAD_AUX_K_SUM. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
    list_dead(const u64 *__restrict__ steps_since_fired, const u32 *__restrict__ counts, u32 *__restrict__ dead_features,
              Dead *dead, u64 after, u32 dead_kind, u32 k, u32 features, u32 rows,
              const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 scan[2][32];
    u32 count = 0;
    for (u32 first = 0, turn = 0; first < features; first += blockDim.x, turn ^= 1) {
        u32 feature = first + threadIdx.x;
        bool is_dead = feature < features && steps_since_fired[feature] > after;
        if (is_dead && dead_kind == DEAD_AUX_K) is_dead = counts[feature] == 0;
        u32 whole, at = count + block_scan_exclusive((u32)is_dead, scan[turn], whole);
        if (is_dead) dead_features[at] = feature;
        count += whole;
    }
    if (threadIdx.x != 0) return;
    double few = count < k ? (double)count / k : 1.0;
    dead->count = count;
    dead->scale = count > 0 ? dead->coefficient * few / rows : 0.0;
}

// What turns a row of g into minus its r.
__device__ __forceinline__ float inverse_scale(u32 mse, u32 rows, u32 width, float squared, float centered, float weight) {
    return 1.0f / (weight * gradient_scale(mse, rows, width, squared, centered));
}

// The mean of r over the rows, mean [stride]; partial [⌈B/64⌉,stride] and arrived [stride/64] as batch_columns'. Block 64, grid
// (stride/64, ⌈B/64⌉).
extern "C" __global__ void __launch_bounds__(64)
    residual_columns(const float *__restrict__ g, const float *__restrict__ squared, const float *__restrict__ centered,
                     double *partial, float *__restrict__ mean, u32 *arrived, u32 rows, u32 width, u32 stride, u32 mse,
                     float weight, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 flag;
    u32 column = blockIdx.x * 64 + threadIdx.x, first = blockIdx.y * SUMMED_ROWS;
    double sum = 0.0;
    for (u32 row = first; row < min(first + SUMMED_ROWS, rows); row++) {
        float inverse = inverse_scale(mse, rows, width, squared[row], centered[row], weight);
        sum += (double)(-g[(u64)row * stride + column] * inverse);
    }
    partial[(u64)blockIdx.y * stride + column] = sum;
    if (!last_block(arrived + blockIdx.x, gridDim.y, &flag)) return;
    double whole = 0.0;
    for (u32 part = 0; part < gridDim.y; part++) whole += partial[(u64)part * stride + column];
    mean[column] = (float)(whole / rows);
}

// The scale of DEAD_AUX_K: the coefficient over Σ_i ‖r_i - mean‖², 0 where that is 0 or nothing is dead. `partial`
// [⌈B/8⌉]. One warp per row, block 256, grid ⌈B/8⌉.
extern "C" __global__ void __launch_bounds__(256)
    residual_spread(const float *__restrict__ g, const float *__restrict__ squared, const float *__restrict__ centered,
                    const float *__restrict__ mean, double *partial, u32 *arrived, Dead *dead, u32 rows, u32 width,
                    u32 stride, u32 mse, float weight, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[2][8];
    __shared__ u32 flag;
    u32 row = blockIdx.x * 8 + (threadIdx.x >> 5);
    double sum[1] = {0.0};
    if (row < rows) {
        float inverse = inverse_scale(mse, rows, width, squared[row], centered[row], weight);
        for (u32 column = (threadIdx.x & 31u) * 4; column < stride; column += 128) {
            float4 error = four_at(g, (u64)row * stride + column), m = four_at(mean, column);
            // Rounded as they were for the mean: rows that are all alike have no spread.
            double x = (double)(-error.x * inverse) - m.x, y = (double)(-error.y * inverse) - m.y;
            double z = (double)(-error.z * inverse) - m.z, w = (double)(-error.w * inverse) - m.w;
            sum[0] += x * x + y * y + z * z + w * w;
        }
    }
    block_sum<8>(sum, shared[0]);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
    if (!last_block(arrived, gridDim.x, &flag)) return;
    double whole[1] = {0.0};
    for (u32 block = threadIdx.x; block < gridDim.x; block += blockDim.x) whole[0] += partial[block];
    block_sum<8>(whole, shared[1]);
    if (threadIdx.x == 0) dead->scale = dead->count > 0 && whole[0] > 0.0 ? dead->coefficient / whole[0] : 0.0;
}

// The features of a list.
struct Listed {
    const u32 *features;

    __device__ __forceinline__ u32 operator()(u32 at) const { return features[at]; }
};

// z of the dead features in the order of the definition, z [B,line]. Block of 128 threads, grid (⌈B/64⌉, ⌈F/64⌉).
extern "C" __global__ void __launch_bounds__(128)
    encode_dead(const float *__restrict__ encoder, const float *__restrict__ encoder_bias, const float *__restrict__ x,
                const u32 *__restrict__ dead_features, const Dead *__restrict__ dead, float *__restrict__ z, u32 rows,
                u32 stride, u32 line, const Report *__restrict__ report) {
    if (report->status != RUNNING || blockIdx.y * TILE >= dead->count) return;
    Listed features = {dead_features};
    float sums[2][PER_WARP];
    tile_sums(features, encoder, encoder_bias, x, dead->count, rows, stride, sums);
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = blockIdx.x * TILE + half * 32 + lane;
#pragma unroll
        for (u32 n = 0; n < PER_WARP; n++) {
            u32 at = blockIdx.y * TILE + warp * PER_WARP + n;
            if (row < rows && at < dead->count) z[(u64)row * line + at] = sums[half][n];
        }
    }
}

// z times the norms of its features, or z.
struct RankedZ {
    const float *z, *norms;  // of a row; [F], null where z itself ranks
    const u32 *features;

    __device__ __forceinline__ float operator[](u32 at) const { return norms ? z[at] * norms[features[at]] : z[at]; }
};

// For each row its k largest z of dead features, or z times rank_norm [F] unless that is null, ties by the lower feature; those above
// 0 alone for DEAD_AUX_K. The list of row i is that of row dead_row + i: from `first` + i·k on in pair_features and row_values. Its
// pairs' bits are set in dead_mask [F,words]. Block 256, grid B.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_dead(const float *__restrict__ z, const float *__restrict__ rank_norm,
                const u32 *__restrict__ dead_features, const Dead *__restrict__ dead,
                u32 *starts, u32 *row_active, u32 *pair_features, float *row_values, u32 *dead_mask, u32 dead_kind, u32 k,
                u32 first, u32 dead_row, u32 line, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 histogram[BINS];
    __shared__ u32 scan[2 * 32];
    __shared__ u32 found[2];
    u32 count = dead->count, row = dead_row + blockIdx.x, begin = first + blockIdx.x * k;
    const float *own = z + (u64)blockIdx.x * line;
    const RankedZ ranked = {own, rank_norm, dead_features};
    u32 above = 0, kth = 0, equal_left = 0;
    if (count > k) {
        kth = kth_largest(ranked, count, k, histogram, scan, found, above);
        equal_left = k - above;
    }
    u32 next = begin;
    for (u32 base = 0; base < count; base += SELECT_THREADS) {
        u32 at = base + threadIdx.x;
        float value = at < count ? own[at] : 0.0f;
        u32 key = at < count ? key_of(ranked[at]) : 0, equals, chosen_count;
        bool mine = at < count, equal = mine && count > k && key == kth;
        u32 rank = block_scan_exclusive((u32)equal, scan, equals);
        bool chosen = mine && (count <= k || key > kth || (equal && rank < equal_left));
        if (dead_kind == DEAD_AUX_K) chosen = chosen && value > 0.0f;
        u32 place = next + block_scan_exclusive((u32)chosen, scan + 32, chosen_count);
        if (chosen) {
            u32 feature = dead_features[at];
            pair_features[place] = feature;
            row_values[place] = value;
            atomicOr(&dead_mask[(u64)feature * words + row / 32], 1u << (row & 31u));
        }
        next += chosen_count;
        equal_left -= min(equals, equal_left);
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    starts[row] = begin;
    row_active[row] = next - begin;
}

// dead_mask [F,words] = mask [F,mask_words], and zeros beyond. A thread for each word, block 256.
extern "C" __global__ void __launch_bounds__(256)
    widen_mask(const u32 *__restrict__ mask, u32 *__restrict__ dead_mask, u32 features, u32 mask_words, u32 words,
               const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (at >= (u64)features * words) return;
    u32 feature = (u32)(at / words), word = (u32)(at % words);
    dead_mask[at] = word < mask_words ? mask[(u64)feature * mask_words + word] : 0;
}

// e, h = dL/de [B,stride], the loss of each row into losses [B] and their sum into the report. A block owns a row, a thread four
// neighbouring components, as in decode.cu. Block a multiple of 32 threads up to 256, grid B.
extern "C" __global__ void __launch_bounds__(256)
    decode_dead(const float *__restrict__ g, const float *__restrict__ squared, const float *__restrict__ centered,
                const float *__restrict__ decoder, const u32 *__restrict__ starts, const u32 *__restrict__ row_active,
                const u32 *__restrict__ pair_features, const float *__restrict__ row_values,
                const Dead *__restrict__ dead, float *__restrict__ h, double *losses, u32 *arrived, u32 dead_row, u32 rows,
                u32 width, u32 stride, u32 mse, float weight, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[2][8];
    __shared__ u32 flag;
    u32 row = blockIdx.x, begin = starts[dead_row + row], count = row_active[dead_row + row];
    const u32 *features = pair_features + begin;
    const float *values = row_values + begin;
    const double scale = dead->scale;
    const float twice = (float)(2.0 * scale);
    const float inverse = inverse_scale(mse, rows, width, squared[row], centered[row], weight);
    double loss[1] = {0.0};
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4) {
        float4 e = four_at(g, (u64)row * stride + column);
        float4 sum;
        sum.x = sum.y = sum.z = sum.w = 0.0f;
        for (u32 at = 0; at < count; at++) {
            float4 w = four_at(decoder, (u64)features[at] * stride + column);
            float a = values[at];
            sum.x = fmaf(a, w.x, sum.x);
            sum.y = fmaf(a, w.y, sum.y);
            sum.z = fmaf(a, w.z, sum.z);
            sum.w = fmaf(a, w.w, sum.w);
        }
        e.x = fmaf(e.x, inverse, sum.x);
        e.y = fmaf(e.y, inverse, sum.y);
        e.z = fmaf(e.z, inverse, sum.z);
        e.w = fmaf(e.w, inverse, sum.w);
        loss[0] += scale * ((double)e.x * e.x + (double)e.y * e.y + (double)e.z * e.z + (double)e.w * e.w);
        e.x *= twice;
        e.y *= twice;
        e.z *= twice;
        e.w *= twice;
        *(float4 *)(h + (u64)row * stride + column) = e;
    }
    block_sum<8>(loss, shared[0]);
    if (threadIdx.x == 0) losses[row] = loss[0];
    if (!last_block(arrived, gridDim.x, &flag)) return;
    double whole[1] = {0.0};
    for (u32 at = threadIdx.x; at < rows; at += blockDim.x) whole[0] += losses[at];
    block_sum<8>(whole, shared[1]);
    if (threadIdx.x == 0) report->dead = whole[0];
}

// gather_values of lists.cu for the pairs of a step and, from row dead_row on, those of the loss, which no penalty sees. One warp
// per feature.
extern "C" __global__ void gather_dead(const u32 *__restrict__ feature_starts, const u32 *__restrict__ pair_rows,
                                       const u32 *__restrict__ row_starts, const u32 *__restrict__ row_active,
                                       const u32 *__restrict__ pair_features, const float *__restrict__ row_values,
                                       const float *__restrict__ slopes, const float *__restrict__ decoder_norm,
                                       float *__restrict__ feature_values, float *__restrict__ feature_slopes,
                                       float *__restrict__ by_norm, u32 features, u32 kind,
                                       const Scalars *__restrict__ scalars, const Report *__restrict__ report,
                                       u32 dead_row) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (feature >= features) return;
    float norm = by_norm ? decoder_norm[feature] : 1.0f, slope = slopes[feature], sum = 0.0f;
    for (u32 at = feature_starts[feature] + lane; at < feature_starts[feature + 1]; at += 32) {
        u32 row = pair_rows[at], begin = row_starts[row];
        float a = row_values[place_of(pair_features, begin, begin + row_active[row], feature)];
        feature_values[at] = a;
        feature_slopes[at] = row < dead_row ? penalty_slope(kind, *scalars, a, norm, slope, sum) : 0.0f;
    }
    if (!by_norm) return;
    sum = warp_sum(sum);
    if (lane == 0) by_norm[feature] = sum;
}

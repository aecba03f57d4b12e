// select_batch: the `count` largest z of a batch where they are above 0, ties by the lower feature and then the lower row: those of
// the float32 product in the order of the definition (encode.cu), formed there anew wherever rounding could decide.
//
//   z = X·W_enc, a dense product  →  count_batch ×3  →  settle_doubts  →  count_batch ×3  →  mark_batch  →  keep_ties
//   →  the mask of the pairs that are kept, at most `count`  →  lists, the recheck (smallest_kept after it), as on the sparse path
//
// The `count`-th largest is found digit by digit, as in select.cu: the bits of a positive float are an integer of its order, and
// histograms of 11, 10 and 10 of them, over all of z, tell where it lies. A z that is off by at most its row's margin gives two
// numbers, z - margin and z + margin, and so two limits: what is above the upper one is kept, what is below the lower one is not,
// and only what lies between is formed in the definition's order. Counts are integers, so that no order of atomics changes
// anything.
// Cost: z, 400 MB at B = 4096, F = 24,576, is read eight times and written once; where products decide as they are, read four times.
#include "last.cuh"
#include "recheck.cuh"

constexpr u32 COUNTERS = 2048;
constexpr u32 NOTHING = 0xffffffffu;

// What the search has found of its two limits: of the lower numbers, and of the upper ones. Once there are no doubts, the first
// is the `count`-th largest.
struct BatchCut {
    u64 above[2];  // how many are larger
    u64 equal;     // how many are equal to the first limit
    u32 limit[2];  // the bits of the limits; 0 if fewer than `count` are above 0
    u32 few[2];    // whether that is so
    u32 smallest;  // of the step's kept z so far: bits, or NOTHING
    u32 unused;
};

__device__ __forceinline__ u32 digit_shift(u32 turn) {
    return turn == 0 ? 20 : turn == 1 ? 10 : 0;
}
__device__ __forceinline__ u32 digit_mask(u32 turn) {
    return turn == 0 ? 0x7ffu : 0x3ffu;
}

// 0 unless it is above 0; NaN is not.
__device__ __forceinline__ u32 bits_above_zero(float value) {
    return value > 0.0f ? __float_as_uint(value) : 0;
}

// How far a row's z as formed and as defined are apart at most.
__device__ __forceinline__ float margin_of(float roughness, float length, const float *largest, u32 stride) {
    if (roughness == 0.0f) return 0.0f;
    return 1.0001f * (roughness * length * largest[0] + rounding(stride) * largest[1]) + 1e-35f;
}

// Ends a turn for one limit, from histogram [2048], which is 0 again afterwards. One block of 256 threads; `scan` holds 32
// numbers.
__device__ __forceinline__ void end_turn(u64 *histogram, BatchCut *cut, u32 which, u32 turn, u64 count, u64 *scan) {
    constexpr u32 EACH = COUNTERS / 256;
    u32 first = COUNTERS - (threadIdx.x + 1) * EACH;
    u64 bins[EACH], own = 0, whole;
#pragma unroll
    for (u32 n = 0; n < EACH; n++) {
        bins[n] = histogram[first + n];
        histogram[first + n] = 0;
        own += bins[n];
    }
    u64 before = block_scan_exclusive(own, scan, whole);
    u64 above = turn == 0 ? 0 : cut->above[which], wanted = count - above;
    u32 limit = turn == 0 ? 0 : cut->limit[which];
    bool few = turn == 0 ? whole < count : cut->few[which] != 0;
    __syncthreads();  // all threads have read what one of them writes
    if (few) {
        if (threadIdx.x != 0) return;
        cut->few[which] = 1;
        cut->limit[which] = 0;
        cut->above[which] = 0;
        if (which == 0) cut->equal = 0;
        return;
    }
    if (before >= wanted || before + own < wanted) return;
#pragma unroll
    for (u32 n = EACH; n-- > 0;) {
        if (before < wanted && wanted <= before + bins[n]) {
            cut->few[which] = 0;
            cut->limit[which] = limit | (first + n) << digit_shift(turn);
            cut->above[which] = above + before;
            if (which == 0) cut->equal = bins[n];
        }
        before += bins[n];
    }
}

// A turn of the search: counts a digit of the numbers whose higher digits are the limits', histogram [2,2048], and chooses the
// limits' next digit. `encoder_bias` is null where z [B,line] has its bias already. In the last turn tie_starts [F+1] become 0.
// Block 256, grid at most B.
extern "C" __global__ void __launch_bounds__(256)
    count_batch(const float *__restrict__ z, const float *__restrict__ encoder_bias, const float *__restrict__ length,
                const float *__restrict__ largest, u64 *histogram, BatchCut *cut, u32 *tie_starts, u32 *arrived,
                u64 count, u32 turn, u32 features, u32 rows, u32 stride, u32 line, float roughness,
                const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 counters[2][COUNTERS];
    __shared__ u64 scan[2][32];
    __shared__ u32 flag;
    const u32 limits = roughness > 0.0f ? 2 : 1, shift = digit_shift(turn), mask = digit_mask(turn);
    const u32 known = turn == 0 ? 0x80000000u : ~((mask + 1) * (1u << shift) - 1);
    u32 prefix[2] = {0, 0};
    for (u32 bin = threadIdx.x; bin < 2 * COUNTERS; bin += blockDim.x) counters[0][bin] = 0;
    if (turn > 0) {
#pragma unroll
        for (u32 n = 0; n < 2; n++) prefix[n] = n < limits && !cut->few[n] ? cut->limit[n] : NOTHING;
    }
    __syncthreads();
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float *own = z + (u64)row * line;
        float margin = margin_of(roughness, length[row], largest, stride);
#pragma unroll 4
        for (u32 feature = threadIdx.x; feature < features; feature += blockDim.x) {
            float value = encoder_bias ? own[feature] + encoder_bias[feature] : own[feature];
            u32 lower = bits_above_zero(value - margin);
            if (lower != 0 && (lower & known) == prefix[0]) atomicAdd(&counters[0][lower >> shift & mask], 1u);
            if (limits == 1) continue;
            u32 upper = bits_above_zero(value + margin);
            if (upper != 0 && (upper & known) == prefix[1]) atomicAdd(&counters[1][upper >> shift & mask], 1u);
        }
    }
    __syncthreads();
    for (u32 bin = threadIdx.x; bin < limits * COUNTERS; bin += blockDim.x) {
        if (counters[0][bin] != 0) atomicAdd(&histogram[bin], (u64)counters[0][bin]);
    }
    if (!last_block(arrived, gridDim.x, &flag)) return;
    for (u32 n = 0; n < limits; n++) end_turn(histogram + n * COUNTERS, cut, n, turn, count, scan[n]);
    if (turn < 2) return;
    for (u32 feature = threadIdx.x; feature <= features; feature += blockDim.x) tie_starts[feature] = 0;
}

// z [B,line] without its bias becomes infinite where it is kept for certain, 0 where it is not, and elsewhere what the
// definition makes it, or 0 if that is no larger. Block 256, grid B.
extern "C" __global__ void __launch_bounds__(256)
    settle_doubts(float *z, const float *__restrict__ x, const float *__restrict__ encoder,
                  const float *__restrict__ encoder_bias, const float *__restrict__ length,
                  const float *__restrict__ largest, const BatchCut *__restrict__ cut, u32 features, u32 stride, u32 line,
                  float roughness, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 doubtful[2 * 256];
    __shared__ u32 found;
    float *own = z + (u64)blockIdx.x * line;
    const float *of_row = x + (u64)blockIdx.x * stride;
    const float least = __uint_as_float(cut->limit[0]), most = __uint_as_float(cut->limit[1]);
    const float margin = margin_of(roughness, length[blockIdx.x], largest, stride);
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (u32 first = 0; first < features; first += 256) {
        u32 feature = first + threadIdx.x;
        if (feature < features) {
            float value = own[feature] + encoder_bias[feature];
            float lower = value - margin, upper = value + margin;
            if (lower > most) {
                own[feature] = __uint_as_float(0x7f800000u);
            } else if (upper > 0.0f && upper >= least) {
                // In whatever order: each is written to its own place.
                doubtful[atomicAdd(&found, 1u)] = feature;
            } else {
                own[feature] = 0.0f;
            }
        }
        __syncthreads();
        // Many at a time, as each is a long sum of one thread.
        u32 count = found;
        if (count <= 256 && first + 256 < features) continue;
        for (u32 at = threadIdx.x; at < count; at += 256) {
            u32 doubted = doubtful[at];
            float exact = in_order(of_row, encoder + (u64)doubted * stride, encoder_bias[doubted], stride);
            own[doubted] = exact > 0.0f ? exact : 0.0f;
        }
        __syncthreads();
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
    }
}

// How many of the numbers equal to the limit are kept, if not all of them.
__device__ __forceinline__ bool ties_are_split(const BatchCut &cut, u64 count) {
    return !cut.few[0] && cut.equal > count - cut.above[0];
}

// Bit i%32 of mask[j, i/32]: z_ij is larger than the limit, or as large where all of those are kept. Where they are not,
// tie_starts [F+1], which were 0, become for each feature the number of them before it. A thread owns a feature and 32 rows.
// Block 256, grid (⌈F/256⌉, words).
extern "C" __global__ void __launch_bounds__(256)
    mark_batch(const float *__restrict__ z, const float *__restrict__ encoder_bias, const BatchCut *__restrict__ cut,
               u32 *__restrict__ mask, u32 *tie_starts, u32 *arrived, u64 count, u32 features, u32 rows, u32 line,
               u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 scan[2][32];
    __shared__ u32 flag;
    const u32 limit = cut->limit[0];
    const bool split = ties_are_split(*cut, count);
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * 32;
    if (feature < features) {
        float bias = encoder_bias ? encoder_bias[feature] : 0.0f;
        u32 bits = 0, ties = 0;
#pragma unroll 8
        for (u32 at = 0; at < 32; at++) {
            u32 row = first + at;
            if (row >= rows) break;
            u32 key = bits_above_zero(z[(u64)row * line + feature] + bias);
            bool tie = key == limit && key != 0;
            ties += tie;
            bits |= (u32)(key > limit || (tie && !split)) << at;
        }
        mask[(u64)feature * words + blockIdx.y] = bits;
        if (split && ties != 0) atomicAdd(&tie_starts[feature], ties);
    }
    if (!split || !last_block(arrived, gridDim.x * gridDim.y, &flag)) return;
    u32 before = 0;
    for (u32 first = 0, turn = 0; first <= features; first += blockDim.x, turn ^= 1) {
        u32 at = first + threadIdx.x;
        u32 whole, sum = block_scan_exclusive(at < features ? tie_starts[at] : 0u, scan[turn], whole);
        if (at <= features) tie_starts[at] = before + sum;
        before += whole;
    }
}

// Adds those of the numbers equal to the limit that are kept, if they are not there yet: the first in the order of the features
// and then of the rows. One warp per feature, block 256, grid ⌈F/8⌉.
extern "C" __global__ void __launch_bounds__(256)
    keep_ties(const float *__restrict__ z, const float *__restrict__ encoder_bias, const BatchCut *__restrict__ cut,
              const u32 *__restrict__ tie_starts, u32 *mask, u64 count, u32 features, u32 rows, u32 line, u32 words,
              const Report *__restrict__ report) {
    if (report->status != RUNNING || !ties_are_split(*cut, count)) return;
    u32 feature = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (feature >= features) return;
    const u32 limit = cut->limit[0];
    u64 kept = count - cut->above[0], before = tie_starts[feature], end = min((u64)tie_starts[feature + 1], kept);
    float bias = encoder_bias ? encoder_bias[feature] : 0.0f;
    for (u32 word = 0; before < end; word++) {
        u32 row = word * 32 + lane;
        bool tie = row < rows && bits_above_zero(z[(u64)row * line + feature] + bias) == limit;
        u32 ties = __ballot_sync(0xffffffffu, tie), lower = __popc(ties & ((1u << lane) - 1));
        u32 bits = __ballot_sync(0xffffffffu, tie && before + lower < end);
        if (lane == 0 && bits != 0) mask[(u64)feature * words + word] |= bits;
        before += __popc(ties);
    }
}

// The smallest activation of the batch into the report, as bits: NOTHING if there is none. One warp per row, block 256, grid
// ⌈B/8⌉.
extern "C" __global__ void __launch_bounds__(256)
    smallest_kept(const u32 *__restrict__ starts, const u32 *__restrict__ row_active, const float *__restrict__ row_values,
                  BatchCut *cut, u32 *arrived, u32 rows, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ u32 flag;
    u32 row = blockIdx.x * 8 + (threadIdx.x >> 5), least = NOTHING;
    if (row < rows) {
        u32 begin = starts[row], end = begin + row_active[row];
        // What is above 0 has the order of its bits.
        for (u32 at = begin + (threadIdx.x & 31u); at < end; at += 32) least = min(least, __float_as_uint(row_values[at]));
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1) {
            least = min(least, __shfl_xor_sync(0xffffffffu, least, offset));
        }
        if ((threadIdx.x & 31u) == 0 && least != NOTHING) atomicMin(&cut->smallest, least);
    }
    if (!last_block(arrived, gridDim.x, &flag) || threadIdx.x != 0) return;
    report->smallest = cut->smallest;
    cut->smallest = NOTHING;
}

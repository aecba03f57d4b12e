// lists: from a bit mask to lists of pairs, by row and by feature, in ascending order, without sorting.
//
//   mask [F,words] --transpose--> row_mask [B,row_words]
//   counts = popcounts of a line     starts = their running sum     indices[starts[line] …] = the positions of its bits
//
// Every place in a list is a number of bits before it, so that the lists depend on the mask alone. A list takes two kernels:
// one counts, its blocks of 32 lines leave a total each, and the last block to finish makes those a running sum; the other
// finds each line's start from its block's total and the 32 counts, and writes the list.
// Cost at B = 4096, F = 24,576: each of the five passes reads a mask of 12.6 MB, which stays in L2: 2.3 µs and latency. A
// line is a warp's: the loads of four words a lane are under way together.
#include "last.cuh"
#include "reduce.cuh"
#include "sparsity.cuh"

constexpr u32 LINES = 32;  // lines of a block, a warp each

// Turns 32 × 32 bits: afterwards bit i of lane j is what bit j of lane i was. Halves that lie across the diagonal change
// places, then quarters within the halves, and so on: five exchanges instead of 32 votes.
__device__ __forceinline__ u32 turn_bits(u32 bits) {
    u32 lane = threadIdx.x & 31u, low = 0x0000ffffu;  // the bits whose number lacks `half`
#pragma unroll
    for (u32 half = 16; half > 0; half >>= 1, low ^= low << half) {
        u32 other = __shfl_xor_sync(0xffffffffu, bits, half);
        bits = lane & half ? (bits & ~low) | (other >> half & low) : (bits & low) | (other & low) << half;
    }
    return bits;
}

// row_mask[i, j/32] bit j%32 = mask[j, i/32] bit i%32, for rows < B; bits of features from F on are 0.
// A block of 256 threads turns 256 features × 8 words (256 rows): lines of 32 bytes on both sides. Grid
// (⌈words/8⌉, ⌈F/256⌉). row_words is ⌈F/32⌉.
extern "C" __global__ void __launch_bounds__(256)
    transpose_mask(const u32 *__restrict__ mask, u32 *__restrict__ row_mask, u32 features, u32 rows, u32 words,
                   u32 row_words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 in[256][9];  // padded: a warp reads down a column
    __shared__ u32 out[256][9];
    u32 first_feature = blockIdx.y * 256, first_word = blockIdx.x * 8;
    for (u32 at = threadIdx.x; at < 256 * 8; at += 256) {
        u32 feature = first_feature + at / 8, word = first_word + at % 8;
        in[at / 8][at % 8] = feature < features && word < words ? mask[(u64)feature * words + word] : 0;
    }
    __syncthreads();
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    for (u32 group = 0; group < 8; group++) {  // the group's 32 features, the warp's 32 rows
        out[warp * 32 + lane][group] = turn_bits(in[group * 32 + lane][warp]);
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < 256 * 8; at += 256) {
        u32 row = first_word * 32 + at / 8, word = first_feature / 32 + at % 8;
        if (row < rows && word < row_words) row_mask[(u64)row * row_words + word] = out[at / 8][at % 8];
    }
}

// The segments that a feature's pairs are cut into.
__device__ __forceinline__ u32 segments_of(u32 count) {
    return count > SEGMENT ? (count + SEGMENT - 1) / SEGMENT : 0;
}

// What running sums are formed of: pairs, and for features segments in the upper half.
template <bool SEGMENTS>
__device__ __forceinline__ u64 weight_of(u32 count) {
    return SEGMENTS ? (u64)segments_of(count) << 32 | count : count;
}

// The number of bits in the block's lines, and their sum into totals [blocks].
template <bool SEGMENTS>
__device__ __forceinline__ void count_lines(const u32 *mask, u32 *counts, u64 *totals, u32 lines, u32 words,
                                            u64 *shared) {
    u32 line = blockIdx.x * LINES + (threadIdx.x >> 5), lane = threadIdx.x & 31u, count = 0;
    if (line < lines) {
        const u32 *bits = mask + (u64)line * words;
#pragma unroll 4
        for (u32 word = lane; word < words; word += 32) count += __popc(bits[word]);
        count = warp_sum(count);
        if (lane == 0) counts[line] = count;
    }
    u64 whole[1] = {lane == 0 ? weight_of<SEGMENTS>(count) : 0};
    block_sum(whole, shared);
    if (threadIdx.x == 0) totals[blockIdx.x] = whole[0];
}

// Makes totals [blocks] the sums of those before each, and returns the whole. One block; `shared` holds 64 numbers.
__device__ __forceinline__ u64 scan_totals(u64 *totals, u32 blocks, u64 *shared) {
    u64 before = 0;
    for (u32 first = 0, turn = 0; first < blocks; first += blockDim.x, turn ^= 1) {
        u32 at = first + threadIdx.x;
        u64 whole, sum = block_scan_exclusive(at < blocks ? totals[at] : 0ull, shared + 32 * turn, whole);
        if (at < blocks) totals[at] = before + sum;
        before += whole;
    }
    return before;
}

// Counts each row's candidates, counts [B]. The last block finds where blocks of rows begin in the list, and refuses the
// step if there are more than `capacity` of them. Block 1024, grid ⌈B/32⌉.
extern "C" __global__ void __launch_bounds__(1024)
    count_rows(const u32 *__restrict__ row_mask, u32 *__restrict__ counts, u64 *totals, u32 *arrived,
               u32 *__restrict__ starts, u32 rows, u32 row_words, u32 capacity, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ u64 of_block[32];
    __shared__ u64 scan[64];
    __shared__ u32 flag;
    count_lines<false>(row_mask, counts, totals, rows, row_words, of_block);
    if (!last_block(arrived, gridDim.x, &flag)) return;
    u64 whole = scan_totals(totals, gridDim.x, scan);  // more than 32 bits can count, where every pair is a candidate
    if (threadIdx.x != 0) return;
    starts[rows] = (u32)whole;
    report->candidates = whole;
    if (whole > capacity) report->status = OVERFLOW_OF_PAIRS;  // all blocks have read the status
}

// Counts each feature's active pairs, counts [F]. Unless `starts` is null, the last block finds where blocks of features
// begin in the list, and in that of segments. Block 1024, grid ⌈F/32⌉.
extern "C" __global__ void __launch_bounds__(1024)
    count_features(const u32 *__restrict__ mask, u32 *__restrict__ counts, u64 *totals, u32 *arrived,
                   u32 *__restrict__ starts, u32 *__restrict__ segment_starts, u32 features, u32 words,
                   const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u64 of_block[32];
    __shared__ u64 scan[64];
    __shared__ u32 flag;
    count_lines<true>(mask, counts, totals, features, words, of_block);
    if (!starts || !last_block(arrived, gridDim.x, &flag)) return;
    u64 whole = scan_totals(totals, gridDim.x, scan);
    if (threadIdx.x != 0) return;
    starts[features] = (u32)whole;
    segment_starts[features] = (u32)(whole >> 32);
}

// Where the block's lines begin: every lane of every warp gets that of the line with its number, as `weight_of` counts.
template <bool SEGMENTS>
__device__ __forceinline__ u64 start_of_line(const u32 *counts, const u64 *totals, u32 lines) {
    u32 line = blockIdx.x * LINES + (threadIdx.x & 31u);
    u64 whole;
    return totals[blockIdx.x] + warp_scan_exclusive(line < lines ? weight_of<SEGMENTS>(counts[line]) : 0ull, whole);
}

// indices[next …] = the positions of a line's bits, ascending. One warp.
__device__ __forceinline__ void expand_line(const u32 *line, u32 words, u32 next, u32 *indices) {
    u32 lane = threadIdx.x & 31u;
    for (u32 first = 0; first < words; first += 128) {
        // Four words a lane at a time, whose numbers of bits, up to 1024 in a warp, are summed side by side.
        u32 bits[4];
        u64 counts = 0, found;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 word = first + 32 * n + lane;
            bits[n] = word < words ? line[word] : 0;
            counts |= (u64)__popc(bits[n]) << 16 * n;
        }
        u64 before = warp_scan_exclusive(counts, found);
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 at = next + (u32)(before >> 16 * n & 0xffffu), position = (first + 32 * n + lane) * 32;
            for (; bits[n] != 0; bits[n] &= bits[n] - 1) indices[at++] = position + __ffs(bits[n]) - 1;
            next += (u32)(found >> 16 * n & 0xffffu);
        }
    }
}

// The candidates of each row, and where they begin: starts [B+1]. Block 1024, grid ⌈B/32⌉.
extern "C" __global__ void __launch_bounds__(1024)
    list_rows(const u32 *__restrict__ row_mask, const u32 *__restrict__ counts, const u64 *__restrict__ totals,
              u32 *__restrict__ starts, u32 *__restrict__ pair_features, u32 rows, u32 row_words,
              const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 warp = threadIdx.x >> 5, row = blockIdx.x * LINES + warp;
    u32 start = __shfl_sync(0xffffffffu, (u32)start_of_line<false>(counts, totals, rows), warp);
    if (row >= rows) return;
    if ((threadIdx.x & 31u) == 0) starts[row] = start;
    if (counts[row] != 0) expand_line(row_mask + (u64)row * row_words, row_words, start, pair_features);
}

// The active rows of each feature, where they begin, starts [F+1], where its segments do, segment_starts [F+1], and whose each
// of them is, segment_features. Block 1024, grid ⌈F/32⌉.
extern "C" __global__ void __launch_bounds__(1024)
    list_features(const u32 *__restrict__ mask, const u32 *__restrict__ counts, const u64 *__restrict__ totals,
                  u32 *__restrict__ starts, u32 *__restrict__ segment_starts, u32 *__restrict__ segment_features,
                  u32 *__restrict__ pair_rows, u32 features, u32 words, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 warp = threadIdx.x >> 5, feature = blockIdx.x * LINES + warp;
    u64 start = __shfl_sync(0xffffffffu, start_of_line<true>(counts, totals, features), warp);
    if (feature >= features) return;
    if ((threadIdx.x & 31u) == 0) {
        starts[feature] = (u32)start;
        segment_starts[feature] = (u32)(start >> 32);
    }
    for (u32 at = threadIdx.x & 31u; at < segments_of(counts[feature]); at += 32) {
        segment_features[(u32)(start >> 32) + at] = feature;
    }
    if (counts[feature] != 0) expand_line(mask + (u64)feature * words, words, (u32)start, pair_rows);
}

// The activation of each pair in the order of features: looked up in the row's list, which is in ascending order, by
// bisection. And what the penalties make of it: their derivative by the activation for each pair, and, unless `by_norm` [F]
// is null, the derivative by the decoder's norm, `decoder_norm` [F], for each feature. One warp per feature.
extern "C" __global__ void gather_values(const u32 *__restrict__ feature_starts, const u32 *__restrict__ pair_rows,
                                         const u32 *__restrict__ row_starts, const u32 *__restrict__ row_active,
                                         const u32 *__restrict__ pair_features, const float *__restrict__ row_values,
                                         const float *__restrict__ slopes, const float *__restrict__ decoder_norm,
                                         float *__restrict__ feature_values, float *__restrict__ feature_slopes,
                                         float *__restrict__ by_norm, u32 features, u32 kind,
                                         const Scalars *__restrict__ scalars, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 feature = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (feature >= features) return;
    float norm = by_norm ? decoder_norm[feature] : 1.0f, slope = slopes[feature], sum = 0.0f;
    for (u32 at = feature_starts[feature] + lane; at < feature_starts[feature + 1]; at += 32) {
        u32 row = pair_rows[at];
        u32 low = row_starts[row], high = low + row_active[row];
        while (high - low > 1) {
            u32 middle = low + (high - low) / 2;
            if (pair_features[middle] <= feature) {
                low = middle;
            } else {
                high = middle;
            }
        }
        float a = row_values[low];
        feature_values[at] = a;
        feature_slopes[at] = penalty_slope(kind, *scalars, a, norm, slope, sum);
    }
    if (!by_norm) return;
    sum = warp_sum(sum);
    if (lane == 0) by_norm[feature] = sum;
}

// lists: from a bit mask to lists of pairs, by row and by feature, in ascending order, without sorting.
//
//   mask [F,words] --transpose--> row_mask [B,row_words]
//   counts = popcounts of a line     starts = their running sum     indices[starts[line] …] = the positions of its bits
//
// Every place in a list is a number of bits before it, so that the lists depend on the mask alone.
// Cost at B = 4096, F = 24,576: each pass reads a mask of 12.6 MB, which stays in L2; about 5 µs a pass, the scans (one
// block, latency) included.
#include "reduce.cuh"
#include "sparsity.cuh"

// row_mask[i, j/32] bit j%32 = mask[j, i/32] bit i%32, for rows < B; bits of features from F on are 0.
// A block of 256 threads turns 256 features × 8 words (256 rows): lines of 32 bytes on both sides. Grid
// (⌈words/8⌉, ⌈F/256⌉). row_words is ⌈F/32⌉.
extern "C" __global__ void __launch_bounds__(256)
transpose_mask(const u32 *__restrict__ mask, u32 *__restrict__ row_mask, u32 features, u32 rows, u32 words, u32 row_words,
               const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u32 in[256][9];   // padded: a warp reads down a column
    __shared__ u32 out[256][9];
    u32 first_feature = blockIdx.y * 256, first_word = blockIdx.x * 8;
    for (u32 at = threadIdx.x; at < 256 * 8; at += 256) {
        u32 feature = first_feature + at / 8, word = first_word + at % 8;
        in[at / 8][at % 8] = feature < features && word < words ? mask[(u64)feature * words + word] : 0;
    }
    __syncthreads();
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    for (u32 group = 0; group < 8; group++) {  // the group's 32 features, the warp's 32 rows
        u32 bits = in[group * 32 + lane][warp], mine = 0;
#pragma unroll
        for (u32 row = 0; row < 32; row++) {
            u32 word = __ballot_sync(0xffffffffu, bits >> row & 1u);
            if (lane == row) mine = word;
        }
        out[warp * 32 + lane][group] = mine;
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < 256 * 8; at += 256) {
        u32 row = first_word * 32 + at / 8, word = first_feature / 32 + at % 8;
        if (row < rows && word < row_words) row_mask[(u64)row * row_words + word] = out[at / 8][at % 8];
    }
}

// counts[line] = the number of bits in a line of mask [lines,words]. One warp per line, grid ⌈lines/(blockDim/32)⌉.
extern "C" __global__ void count_bits(const u32 *__restrict__ mask, u32 *__restrict__ counts, u32 lines, u32 words,
                                      const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 line = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (line >= lines) return;
    u32 count = 0;
    for (u32 word = lane; word < words; word += 32) count += __popc(mask[(u64)line * words + word]);
    count = warp_sum(count);
    if (lane == 0) counts[line] = count;
}

// indices[starts[line] …] = the positions of the line's bits, ascending. One warp per line.
extern "C" __global__ void expand_bits(const u32 *__restrict__ mask, const u32 *__restrict__ starts,
                                       u32 *__restrict__ indices, u32 lines, u32 words,
                                       const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    u32 line = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (line >= lines) return;
    u32 next = starts[line];
    if (next == starts[line + 1]) return;
    for (u32 first = 0; first < words; first += 32) {
        u32 bits = first + lane < words ? mask[(u64)line * words + first + lane] : 0, found;
        u32 at = next + warp_scan_exclusive((u32)__popc(bits), found);
        next += found;
        for (; bits != 0; bits &= bits - 1) indices[at++] = (first + lane) * 32 + __ffs(bits) - 1;
    }
}

// Where each row's candidates begin: starts [B+1]. Refuses the step if there are more than `capacity` of them. One block,
// each thread a run of neighbours.
extern "C" __global__ void __launch_bounds__(1024)
scan_rows(const u32 *__restrict__ counts, u32 *__restrict__ starts, u32 rows, u32 capacity, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ u64 shared[32];
    u32 run = (rows + blockDim.x - 1) / blockDim.x;
    u32 first = min(threadIdx.x * run, rows), last = min(first + run, rows);
    u64 mine = 0, whole;  // more than 32 bits can count, where every pair is a candidate
    for (u32 at = first; at < last; at++) mine += counts[at];
    u64 sum = block_scan_exclusive(mine, shared, whole);
    for (u32 at = first; at < last; at++) {
        starts[at] = (u32)sum;
        sum += counts[at];
    }
    if (threadIdx.x != 0) return;
    // All threads have read the status: there was a barrier since.
    starts[rows] = (u32)whole;
    report->candidates = whole;
    if (whole > capacity) report->status = OVERFLOW_OF_PAIRS;
}

// The segments that a feature's pairs are cut into.
__device__ __forceinline__ u32 segments_of(u32 count) {
    return count > SEGMENT ? (count + SEGMENT - 1) / SEGMENT : 0;
}

// Where each feature's pairs begin, starts [F+1], and its segments, segment_starts [F+1]: two sums in one scan, in the
// halves of 64 bits. One block, each thread a run of neighbours.
extern "C" __global__ void __launch_bounds__(1024)
scan_features(const u32 *__restrict__ counts, u32 *__restrict__ starts, u32 *__restrict__ segment_starts, u32 features,
              const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u64 shared[32];
    u32 run = (features + blockDim.x - 1) / blockDim.x;
    u32 first = min(threadIdx.x * run, features), last = min(first + run, features);
    u64 mine = 0, whole;
    for (u32 at = first; at < last; at++) mine += (u64)segments_of(counts[at]) << 32 | counts[at];
    u64 sum = block_scan_exclusive(mine, shared, whole);
    for (u32 at = first; at < last; at++) {
        starts[at] = (u32)sum;
        segment_starts[at] = (u32)(sum >> 32);
        sum += (u64)segments_of(counts[at]) << 32 | counts[at];
    }
    if (threadIdx.x == 0) {
        starts[features] = (u32)whole;
        segment_starts[features] = (u32)(whole >> 32);
    }
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

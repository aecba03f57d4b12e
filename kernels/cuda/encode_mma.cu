// The screen on tensor cores, compute capability 8.0 and up (mma.sync, cp.async).
//
// mask[j, i] = not (z_ij + base_j + row_residual_i feature_norm_j + row_norm_i feature_residual_j < 0),
// z = W_bf16 X_bf16ᵀ accumulated in float32, [F, B].
//
//   encoder_bf16 [F, stride], x_bf16 [B, stride]    bfloat16, stride a multiple of 64, zeros from column d on
//   feature_* [F], row_* [B]                        float32
//   mask [F, words]                                 words = ⌈B/32⌉ up to a multiple of 4
//
// Cost: 2·B·F·d operations, 155 GFLOP at B = 4096, d = 768, F = 24,576; 12.6 MB written. Both factors have the inner
// dimension contiguous, as mma's row.col form wants it, so nothing is transposed.
//
// A block owns 128 features × 128 rows: 8 warps, 2 × 4 of them, of 64 features × 32 rows each, so that a warp owns whole
// words. Blocks with neighbouring numbers share their features: in one wave the whole X passes by (6 MB, which stays
// in L2) and W is read from memory once. Four stages of 32 columns (64 KB) are in flight. A row of a stage is 64 bytes,
// four 16-byte chunks; chunk c of row r lies at place c ^ (r/2 % 4), so that the eight rows an ldmatrix reads at once
// lie in different banks.
//
// Launch: grid (words/4, ⌈F/128⌉), block 256, dynamic shared memory 64 KB.
#include "ampere.cuh"
#include "screen_bits.cuh"

namespace {

constexpr u32 FEATURES = 128;  // of a block
constexpr u32 ROWS = 128;      // of a block
constexpr u32 COLUMNS = 32;    // of a stage
constexpr u32 STAGES = 4;
constexpr u32 THREADS = 256;
constexpr u32 ROW_BYTES = COLUMNS * 2;
constexpr u32 PART_BYTES = FEATURES * ROW_BYTES;  // one factor of a stage; FEATURES == ROWS
constexpr u32 STAGE_BYTES = 2 * PART_BYTES;
static_assert(FEATURES == ROWS, "both factors of a stage are loaded alike");

// Byte offset of chunk `chunk` of row `row` in one factor of a stage.
__device__ __forceinline__ u32 place(u32 row, u32 chunk) {
    return row * ROW_BYTES + ((chunk ^ (row / 2 % 4)) * 16);
}

// Starts to load columns [column, column + 32) of 128 rows of a factor. Rows beyond the last are copies of it: their
// products are never written.
__device__ __forceinline__ void load_part(u32 to, const bf16 *factor, u32 first, u32 count, u32 stride, u32 column) {
#pragma unroll
    for (u32 at = 0; at < ROWS * 4 / THREADS; at++) {
        u32 item = at * THREADS + threadIdx.x;
        u32 row = item / 4, chunk = item % 4;
        u32 source = min(first + row, count - 1);
        copy_async(to + place(row, chunk), factor + (u64)source * stride + column + chunk * 8);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    encode_mma(const bf16 *__restrict__ encoder_bf16, const bf16 *__restrict__ x_bf16,
               const float *__restrict__ feature_base, const float *__restrict__ feature_norm,
               const float *__restrict__ feature_residual, const float *__restrict__ row_norm,
               const float *__restrict__ row_residual, u32 *__restrict__ mask, u32 features, u32 rows, u32 stride,
               u32 words) {
    DYNAMIC_SHARED(stages);
    u32 base = shared_address(stages);
    u32 first_feature = blockIdx.y * FEATURES, first_row = blockIdx.x * ROWS;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 warp_feature = warp / 4 * 64, warp_row = warp % 4 * 32;  // within the block
    u32 steps = stride / COLUMNS;

    auto load_stage = [&](u32 step) {
        if (step < steps) {
            u32 to = base + step % STAGES * STAGE_BYTES;
            load_part(to, encoder_bf16, first_feature, features, stride, step * COLUMNS);
            load_part(to + PART_BYTES, x_bf16, first_row, rows, stride, step * COLUMNS);
        }
        commit_copies();  // also an empty one, so that the number of groups in flight is known
    };
    for (u32 step = 0; step < STAGES - 1; step++) load_stage(step);

    float sums[4][4][4] = {};  // 4 × 16 features, 4 × 8 rows
    for (u32 step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();      // this thread's part of the step's stage has arrived,
        __syncthreads();                // everyone's has, and nobody reads the stage before any more:
        load_stage(step + STAGES - 1);  // that one is filled anew
        u32 w = base + step % STAGES * STAGE_BYTES, x = w + PART_BYTES;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {  // 16 columns each
            u32 b[2][4];
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                // Rows 0-7 and 8-15 of 16, each with both chunks of the 16 columns.
                u32 row = warp_row + n * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(b[n], x + place(row, half * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (u32 m = 0; m < 4; m++) {
                u32 a[4];
                load_matrices(a, w + place(warp_feature + m * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
                for (u32 n = 0; n < 4; n++) multiply(sums[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
    wait_copies<0>();
    __syncthreads();  // the stages are free: the words are collected in them

    u32 quad_lane = lane % 4;
    float norms[4][2], residuals[4][2];
#pragma unroll
    for (u32 n = 0; n < 4; n++) {
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            u32 row = min(first_row + warp_row + 8 * n + 2 * quad_lane + e, rows - 1);
            norms[n][e] = row_norm[row];
            residuals[n][e] = row_residual[row];
        }
    }
    u32 *collected = (u32 *)stages;  // [128 features, 4 words]
    u32 valid = valid_rows(first_row + warp_row, rows);
#pragma unroll
    for (u32 h = 0; h < 2; h++) {  // rows lane/4 and lane/4 + 8 of each tile of 16
        u32 signs = 0;             // of the four tiles of features, a byte each
#pragma unroll
        for (u32 m = 4; m-- > 0;) {
            u32 feature = min(first_feature + warp_feature + m * 16 + h * 8 + lane / 4, features - 1);
            FeatureBound bound = {feature_base[feature], feature_norm[feature], feature_residual[feature]};
#pragma unroll
            for (u32 at = 8; at-- > 0;) {
                u32 n = at / 2, e = at % 2;
                signs = push_sign(signs, sums[m][n][h * 2 + e], bound, norms[n][e], residuals[n][e]);
            }
        }
        // Lane q of the quad gets the word of tile q.
        u32 word = ~quad_words(signs, quad_lane) & valid;
        collected[(warp_feature + quad_lane * 16 + h * 8 + lane / 4) * 4 + warp % 4] = word;
    }
    __syncthreads();
    if (threadIdx.x < FEATURES && first_feature + threadIdx.x < features) {
        u32 *to = mask + (u64)(first_feature + threadIdx.x) * words + blockIdx.x * 4;
        *(uint4 *)to = ((const uint4 *)collected)[threadIdx.x];
    }
}

// The screen on the tensor cores of compute capability 9.0a (wgmma, the bulk tensor copy engine, mbarrier).
//
// What is computed and how the arrays lie: as in encode_mma.cu. Here the two bfloat16 factors come as tensor maps with
// boxes of 64 columns × 128 features and 64 columns × 256 rows, 128-byte swizzle, zeros out of bounds.
//
// Cost: 2·B·F·d operations (155 GFLOP at the reference size: 196 µs at 790 TFLOP/s); every multiprocessor reads 48 KB a
// stage from L2, 1.8 GB in all.
//
// A block owns a tile of 128 features × 256 rows at a time and stays for many (one block a multiprocessor). One
// thread of the first warpgroup keeps the copy engine busy, four stages of 48 KB ahead, also while the others finish
// a tile; warpgroups 1 and 2 multiply, each 64 features × 256 rows with all sums in registers (128 a thread), turn them
// into bits and write them. The two do not wait for each other, so that one's epilogue can hide behind the other's
// products. Tiles with neighbouring numbers share their features: in one wave the whole X passes by (6 MB, which stays
// in L2) and W is read from memory once.
//
// Launch: grid min(multiprocessors, tiles), block 384, dynamic shared memory SHARED_BYTES = 201,792.
#include "hopper.cuh"
#include "screen_bits.cuh"

namespace {

constexpr u32 FEATURES = 128;  // of a tile
constexpr u32 ROWS = 256;      // of a tile
constexpr u32 COLUMNS = 64;    // of a stage: 128 bytes, the width of the swizzle
constexpr u32 STAGES = 4;
constexpr u32 CONSUMERS = 2;  // warpgroups that multiply
constexpr u32 ENCODER_BYTES = FEATURES * COLUMNS * 2;
constexpr u32 STAGE_BYTES = ENCODER_BYTES + ROWS * COLUMNS * 2;

// After the stages, which begin at a multiple of 1024.
constexpr u32 BOUNDS_AT = STAGES * STAGE_BYTES;                // float2 [CONSUMERS][ROWS]: norm, residual
constexpr u32 BARRIERS_AT = BOUNDS_AT + CONSUMERS * ROWS * 8;  // full [STAGES], empty [STAGES]
constexpr u32 SHARED_BYTES = 1024 + BARRIERS_AT + STAGES * 2 * 8;
static_assert(SHARED_BYTES == 201792, "the launch asks for this much");

// The tiles of a block, and the place in the ring of stages.
struct Walk {
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(384, 1)
    encode_wgmma(const __grid_constant__ TensorMap encoder_bf16, const __grid_constant__ TensorMap x_bf16,
                 const float *__restrict__ feature_base, const float *__restrict__ feature_norm,
                 const float *__restrict__ feature_residual, const float *__restrict__ row_norm,
                 const float *__restrict__ row_residual, u32 *__restrict__ mask, u32 features, u32 rows, u32 stride,
                 u32 words) {
    DYNAMIC_SHARED(shared);
    unsigned char *aligned = shared + (1024 - shared_address(shared) % 1024) % 1024;
    u32 stages = shared_address(aligned);
    u32 full = stages + BARRIERS_AT, empty = full + STAGES * 8;
    // The same in all lanes of a warp, which the compiler learns from the shuffle: what follows is scalar.
    u32 group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    u32 steps = stride / COLUMNS;
    u32 row_tiles = (rows + ROWS - 1) / ROWS;
    u32 tiles = row_tiles * ((features + FEATURES - 1) / FEATURES);

    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            init_barrier(full + stage * 8, 1);
            init_barrier(empty + stage * 8, CONSUMERS * 4);  // one arrival a warp
        }
        publish_barriers();
    }
    __syncthreads();

    if (group == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) {
            prefetch_map(encoder_bf16);
            prefetch_map(x_bf16);
            Walk walk;
            for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                u32 first_feature = tile / row_tiles * FEATURES, first_row = tile % row_tiles * ROWS;
                for (u32 step = 0; step < steps; step++, walk.next()) {
                    u32 to = stages + walk.stage * STAGE_BYTES, barrier = full + walk.stage * 8;
                    wait_for_phase(empty + walk.stage * 8, walk.parity ^ 1);
                    arrive_expecting(barrier, STAGE_BYTES);
                    copy_box(to, encoder_bf16, step * COLUMNS, first_feature, barrier);
                    copy_box(to + ENCODER_BYTES, x_bf16, step * COLUMNS, first_row, barrier);
                }
            }
        }
    } else {
        take_registers<232>();
        u32 consumer = group - 1, thread = threadIdx.x % 128;
        u32 lane = thread % 32, warp = thread / 32, quad_lane = lane % 4;
        float2 *bounds = (float2 *)(aligned + BOUNDS_AT) + consumer * ROWS;
        Walk walk;
        for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            u32 first_feature = tile / row_tiles * FEATURES + consumer * 64, first_row = tile % row_tiles * ROWS;
            // What the bound takes, early: it arrives while the products run.
            u32 feature = first_feature + warp * 16 + lane / 4;  // and feature + 8
            FeatureBound of_feature[2];
            float2 of_row[ROWS / 128];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 known = min(feature + h * 8, features - 1);
                of_feature[h] = {feature_base[known], feature_norm[known], feature_residual[known]};
            }
#pragma unroll
            for (u32 n = 0; n < ROWS / 128; n++) {
                u32 row = min(first_row + n * 128 + thread, rows - 1);
                of_row[n] = make_float2(row_norm[row], row_residual[row]);
            }

            // Cleared, though products can be told not to count what is there: the assemblers of CUDA 12 take sums that no
            // instruction defines for touched between products, and let each product wait for the one before.
            float sums[128] = {};
            pin(sums);
            u32 previous = 0;  // the stage whose products may still be under way
            for (u32 step = 0; step < steps; step++, walk.next()) {
                wait_for_phase(full + walk.stage * 8, walk.parity);
                u32 at = stages + walk.stage * STAGE_BYTES;
                u64 a = factor_descriptor(at + consumer * 64 * COLUMNS * 2);
                u64 b = factor_descriptor(at + ENCODER_BYTES);
                fence_products();
#pragma unroll
                for (u32 part = 0; part < COLUMNS / 16; part++) {
                    // 16 columns are 32 bytes, 2 in the descriptor's unit; the swizzle works on the sum.
                    multiply_64x256(sums, a + part * 2, b + part * 2);
                }
                commit_products();
                if (step > 0) {
                    wait_products<1>();
                    if (lane == 0) arrive(empty + previous * 8);
                }
                previous = walk.stage;
            }
            // While the last products run: the rows' part of the bound to where all threads find it. Those of the tile before
            // are no longer read after the first barrier.
            sync_threads(1 + consumer, 128);
#pragma unroll
            for (u32 n = 0; n < ROWS / 128; n++) bounds[n * 128 + thread] = of_row[n];
            sync_threads(1 + consumer, 128);
            wait_products<0>();
            pin(sums);
            if (lane == 0) arrive(empty + previous * 8);

#pragma unroll
            for (u32 half = 0; half < 2; half++) {  // four words of each feature
                u32 signs[2] = {0, 0};
#pragma unroll
                for (u32 at = 16; at-- > 0;) {  // eight columns each
                    u32 columns = half * 16 + at;
                    float4 two = ((const float4 *)bounds)[columns * 4 + quad_lane];
#pragma unroll
                    for (u32 h = 0; h < 2; h++) {
                        const float *z = sums + columns * 4 + h * 2;
                        signs[h] = push_sign(signs[h], z[1], of_feature[h], two.z, two.w);
                        signs[h] = push_sign(signs[h], z[0], of_feature[h], two.x, two.y);
                    }
                }
                u32 at = half * 4 + quad_lane, word = first_row / 32 + at;
                u32 valid = valid_rows(first_row + at * 32, rows);
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    u32 found = ~quad_words(signs[h], quad_lane) & valid;
                    if (feature + h * 8 < features && word < words) {
                        mask[(u64)(feature + h * 8) * words + word] = found;
                    }
                }
            }
        }
    }
}

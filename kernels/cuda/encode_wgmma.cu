// The screen on the tensor cores of compute capability 9.0a (wgmma, the bulk tensor copy engine, mbarrier).
//
// What is computed and how the arrays lie: as in encode_mma.cu. Here the two bfloat16 factors come as tensor maps with
// boxes of 64 columns × 128 features and 64 columns × 256 rows, 128-byte swizzle, zeros out of bounds.
//
// Cost: 2·B·F·d operations (155 GFLOP at the reference size: 196 µs at 790 TFLOP/s); every multiprocessor reads 48 KB a
// stage from L2, 1.2 GB in all.
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

constexpr unsigned FEATURES = 128;  // of a tile
constexpr unsigned ROWS = 256;      // of a tile
constexpr unsigned COLUMNS = 64;    // of a stage: 128 bytes, the width of the swizzle
constexpr unsigned STAGES = 4;
constexpr unsigned CONSUMERS = 2;  // warpgroups that multiply
constexpr unsigned ENCODER_BYTES = FEATURES * COLUMNS * 2;
constexpr unsigned STAGE_BYTES = ENCODER_BYTES + ROWS * COLUMNS * 2;

// After the stages, which begin at a multiple of 1024.
constexpr unsigned BOUNDS_AT = STAGES * STAGE_BYTES;                  // float2 [CONSUMERS][ROWS]: norm, residual
constexpr unsigned BARRIERS_AT = BOUNDS_AT + CONSUMERS * ROWS * 8;    // full [STAGES], empty [STAGES]
constexpr unsigned SHARED_BYTES = 1024 + BARRIERS_AT + STAGES * 2 * 8;
static_assert(SHARED_BYTES == 201792, "the launch asks for this much");

// The tiles of a block, and the place in the ring of stages.
struct Walk {
    unsigned stage = 0, parity = 0;

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
                 const float* __restrict__ feature_base, const float* __restrict__ feature_norm,
                 const float* __restrict__ feature_residual, const float* __restrict__ row_norm,
                 const float* __restrict__ row_residual, unsigned* __restrict__ mask, unsigned features, unsigned rows,
                 unsigned stride, unsigned words) {
    DYNAMIC_SHARED(shared);
    unsigned char* aligned = shared + (1024 - shared_address(shared) % 1024) % 1024;
    unsigned stages = shared_address(aligned);
    unsigned full = stages + BARRIERS_AT, empty = full + STAGES * 8;
    unsigned group = threadIdx.x / 128;
    unsigned steps = stride / COLUMNS;
    unsigned row_tiles = (rows + ROWS - 1) / ROWS;
    unsigned tiles = row_tiles * ((features + FEATURES - 1) / FEATURES);

    if (threadIdx.x == 0) {
        for (unsigned stage = 0; stage < STAGES; ++stage) {
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
            for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                unsigned first_feature = tile / row_tiles * FEATURES, first_row = tile % row_tiles * ROWS;
                for (unsigned step = 0; step < steps; ++step, walk.next()) {
                    unsigned to = stages + walk.stage * STAGE_BYTES, barrier = full + walk.stage * 8;
                    wait_for_phase(empty + walk.stage * 8, walk.parity ^ 1);
                    arrive_expecting(barrier, STAGE_BYTES);
                    copy_box(to, encoder_bf16, step * COLUMNS, first_feature, barrier);
                    copy_box(to + ENCODER_BYTES, x_bf16, step * COLUMNS, first_row, barrier);
                }
            }
        }
    } else {
        take_registers<232>();
        unsigned consumer = group - 1, thread = threadIdx.x % 128;
        unsigned lane = thread % 32, warp = thread / 32, quad_lane = lane % 4;
        float2* bounds = reinterpret_cast<float2*>(aligned + BOUNDS_AT) + consumer * ROWS;
        Walk walk;
        float sums[128];
        for (unsigned tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            unsigned first_feature = tile / row_tiles * FEATURES + consumer * 64, first_row = tile % row_tiles * ROWS;
            // The rows' part of the bound; those of the tile before are no longer read after the first barrier.
            sync_threads(1 + consumer, 128);
            for (unsigned at = thread; at < ROWS; at += 128) {
                unsigned row = min(first_row + at, rows - 1);
                bounds[at] = make_float2(row_norm[row], row_residual[row]);
            }
            sync_threads(1 + consumer, 128);

            unsigned previous = 0;  // the stage whose products may still be under way
            for (unsigned step = 0; step < steps; ++step, walk.next()) {
                wait_for_phase(full + walk.stage * 8, walk.parity);
                unsigned at = stages + walk.stage * STAGE_BYTES;
                unsigned long long a = factor_descriptor(at + consumer * 64 * COLUMNS * 2);
                unsigned long long b = factor_descriptor(at + ENCODER_BYTES);
                fence_products();
#pragma unroll
                for (unsigned part = 0; part < COLUMNS / 16; ++part) {
                    // 16 columns are 32 bytes, 2 in the descriptor's unit; the swizzle works on the sum.
                    multiply_64x256(sums, a + part * 2, b + part * 2, step + part);
                }
                commit_products();
                if (step > 0) {
                    wait_products<1>();
                    if (lane == 0) arrive(empty + previous * 8);
                }
                previous = walk.stage;
            }
            wait_products<0>();
            if (lane == 0) arrive(empty + previous * 8);

#pragma unroll
            for (unsigned h = 0; h < 2; ++h) {
                unsigned feature = first_feature + warp * 16 + h * 8 + lane / 4;
                unsigned known = min(feature, features - 1);
                FeatureBound bound = {feature_base[known], feature_norm[known], feature_residual[known]};
#pragma unroll
                for (unsigned half = 0; half < 2; ++half) {  // four words each
                    unsigned bits[4];
#pragma unroll
                    for (unsigned word = 0; word < 4; ++word) {
                        unsigned signs = 0;
#pragma unroll
                        for (unsigned n = 4; n-- > 0;) {
                            unsigned columns = (half * 4 + word) * 4 + n;  // eight of them
                            float4 two = reinterpret_cast<const float4*>(bounds)[columns * 4 + quad_lane];
                            const float* z = sums + columns * 4 + h * 2;
                            signs = push_sign(signs, z[1], bound, two.z, two.w);
                            signs = push_sign(signs, z[0], bound, two.x, two.y);
                        }
                        bits[word] = candidate_bits(signs, quad_lane);
                    }
                    unsigned found = gather_words(bits, quad_lane);
                    unsigned at = half * 4 + quad_lane;
                    unsigned word = first_row / 32 + at;
                    if (feature < features && word < words) {
                        mask[static_cast<unsigned long long>(feature) * words + word] =
                            found & valid_rows(first_row + at * 32, rows);
                    }
                }
            }
        }
    }
}

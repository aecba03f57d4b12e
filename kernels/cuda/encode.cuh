// The float32 product of all pairs and the mask of those above a cutoff: see encode.cu.
#pragma once
#include "reduce.cuh"

constexpr u32 TILE = 64;      // rows and features of a block
constexpr u32 DEPTH = 32;     // columns staged at a time; stride is a multiple of 64
constexpr u32 PER_WARP = 16;  // features of a warp

// The cutoff of ReLU.
struct Zero {
    __device__ __forceinline__ float operator()(u32) const { return 0.0f; }
};

// The features of a block as they are numbered.
struct Numbered {
    __device__ __forceinline__ u32 operator()(u32 at) const { return at; }
};

// z of the block's 64 rows and of 64 of `count` features: of warp's n-th, whose numbers `numbered` gives, in rows lane and lane + 32.
template <class Features>
__device__ __forceinline__ void tile_sums(const Features &numbered, const float *encoder, const float *encoder_bias,
                                          const float *x, u32 count, u32 rows, u32 stride, float (&sums)[2][PER_WARP]) {
    __shared__ float xs[DEPTH][TILE + 1];  // padded, as ws: the staging stores go down a column
    __shared__ __align__(16) float ws[DEPTH][TILE + 4];
    u32 first_row = blockIdx.x * TILE, first_feature = blockIdx.y * TILE;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
#pragma unroll
    for (u32 n = 0; n < PER_WARP; n++) {
        u32 at = first_feature + warp * PER_WARP + n;
        sums[0][n] = sums[1][n] = at < count ? encoder_bias[numbered(at)] : 0.0f;
    }
    for (u32 depth = 0; depth < stride; depth += DEPTH) {
        __syncthreads();
        for (u32 line = warp; line < TILE; line += 4) {
            u32 row = first_row + line, at = first_feature + line;
            xs[lane][line] = row < rows ? x[(u64)row * stride + depth + lane] : 0.0f;
            ws[lane][line] = at < count ? encoder[(u64)numbered(at) * stride + depth + lane] : 0.0f;
        }
        __syncthreads();
        for (u32 k = 0; k < DEPTH; k++) {
            float x0 = xs[k][lane], x1 = xs[k][lane + 32];
            const float4 *w = (const float4 *)&ws[k][warp * PER_WARP];
#pragma unroll
            for (u32 four = 0; four < PER_WARP / 4; four++) {
                float4 w4 = w[four];
                float part[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    sums[0][four * 4 + n] = fmaf(x0, part[n], sums[0][four * 4 + n]);
                    sums[1][four * 4 + n] = fmaf(x1, part[n], sums[1][four * 4 + n]);
                }
            }
        }
    }
}

// `above` gives the cutoff of a feature below F.
template <class Cutoff>
__device__ __forceinline__ void encode_tile(const Cutoff &above, const float *encoder, const float *encoder_bias,
                                            const float *x, u32 *mask, u32 features, u32 rows, u32 stride, u32 words) {
    u32 first_row = blockIdx.x * TILE, first_feature = blockIdx.y * TILE;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    float sums[2][PER_WARP];
    tile_sums(Numbered(), encoder, encoder_bias, x, features, rows, stride, sums);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = first_row + half * 32 + lane, word = blockIdx.x * 2 + half;
#pragma unroll
        for (u32 n = 0; n < PER_WARP; n++) {
            u32 feature = first_feature + warp * PER_WARP + n;
            u32 bits = __ballot_sync(0xffffffffu, row < rows && sums[half][n] > above(min(feature, features - 1)));
            if (lane == 0 && feature < features && word < words) mask[(u64)feature * words + word] = bits;
        }
    }
}

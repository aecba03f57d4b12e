// The recheck of candidates, for every rule of which of them are active: see recheck.cu.
#pragma once
#include "four.cuh"
#include "reduce.cuh"

constexpr u32 TOGETHER = 128;  // candidates between two barriers: one per thread of the block
constexpr u32 KEPT = 1024;     // the longest row that is kept in shared memory

// How far the two sums of a candidate can lie apart. With u = 2^-24, n products and S = Σ_k |x_k w_k| + |b| <= ‖x‖ ‖w‖ + |b|,
// both are sums of fused multiply-adds, a rounding each, and a term that passes m roundings moves by a factor between
// (1 - u)^m and (1 + u)^m:
// - the definition starts at the bias and takes one product after the other: every term passes at most n roundings;
// - here a lane takes 4 products of every 128, at most 4 ⌈n/128⌉ <= n/32 + 2 one after the other, then come 5 additions of
//   lanes and that of the bias: every term passes at most n/32 + 8 roundings.
// Each of the two sums is off by at most its roundings times u S, to first order; where the sum here is larger than both
// errors together, the exact one and the definition's have its sign. To second order 2^-24 n^2 is added to the roundings, 4
// of them for the longest row, 8192. So n + n/32 + 12 of them suffice; 16 leaves room for the four roundings of this formula.
// (Norms come with a factor 1.0001 for their own rounding.)
__device__ __forceinline__ float uncertainty(u32 stride, float length, float feature_norm, float bias) {
    const float roundings = (float)(stride + stride / 32 + 16);
    // The last term covers products too small for float32, also where the norms' squares are.
    return roundings * 5.9604644775390625e-8f * (length * feature_norm + fabsf(bias)) + 1e-35f;
}

__device__ __forceinline__ void copy_four(float *to, const float *from) {
    *(float4 *)to = *(const float4 *)from;
}
__device__ __forceinline__ void copy_four(bf16 *to, const bf16 *from) {
    *(uint2 *)to = *(const uint2 *)from;
}

// x_i · w_j for four features; every lane gets the sums.
template <class T>
__device__ __forceinline__ void four_products(const T *x, const T *encoder, const u32 (&j)[4], u32 stride,
                                              float (&sums)[4]) {
    u32 lane = threadIdx.x & 31u;
#pragma unroll
    for (u32 n = 0; n < 4; n++) sums[n] = 0.0f;
#pragma unroll 2
    for (u32 column = lane * 4; column < stride; column += 128) {
        float4 a = four_at(x, column);
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            float4 b = four_at(encoder, (u64)j[n] * stride + column);
            sums[n] = fmaf(a.x, b.x, sums[n]);
            sums[n] = fmaf(a.y, b.y, sums[n]);
            sums[n] = fmaf(a.z, b.z, sums[n]);
            sums[n] = fmaf(a.w, b.w, sums[n]);
        }
    }
#pragma unroll
    for (u32 n = 0; n < 4; n++) sums[n] = warp_sum(sums[n]);
}

// z in the order of the definition. One lane's work: four loads are under way beside the sum.
template <class T>
__device__ __forceinline__ float in_order(const T *x, const T *encoder_row, float bias, u32 stride) {
    float sum = bias;
#pragma unroll 4
    for (u32 column = 0; column < stride; column += 4) {
        float4 a = four_at(x, column), b = four_at(encoder_row, column);
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
        sum = fmaf(a.z, b.z, sum);
        sum = fmaf(a.w, b.w, sum);
    }
    return sum;
}

// Which pairs are active: those above 0. JumpReLU's rule is in jump.cuh.
struct AboveZero {
    // Whether pairs that are not active are kept too, in a list of their own.
    static constexpr bool KEEPS_NEAR = false;

    // Whether a sum that is off by as much as the uncertainty with this bias decides as the definition's would; NaN does not.
    __device__ __forceinline__ bool certain(u32 stride, float length, float feature_norm, float bias, u32,
                                            float z) const {
        return fabsf(z) > uncertainty(stride, length, feature_norm, bias);
    }
    __device__ __forceinline__ bool active(u32, float z) const { return z > 0.0f; }
    __device__ __forceinline__ bool near(u32, float) const { return false; }
    __device__ __forceinline__ void keep(u32, u32, float) const {}
    __device__ __forceinline__ void kept(u32, u32) const {}
};

// Of a row's candidates, `line` [stride] being the row. `length` and `feature_norm` say how near to 0 is too near; with
// bfloat16 operands that is not asked.
template <class T, class Rule>
__device__ __forceinline__ void recheck_line(const Rule &rule, const T *line, const T *encoder, const float *encoder_bias,
                                             const float *length, const float *feature_norm, const u32 *starts,
                                             u32 *pair_features, float *row_values, u32 *row_active, u32 *mask,
                                             u32 stride, u32 words, bool exact) {
    __shared__ u32 candidates[TOGETHER];
    __shared__ float values[TOGETHER];
    __shared__ u32 scratch[32];
    u32 row = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    u32 begin = starts[row], end = starts[row + 1], out = begin, near_out = begin;
    for (u32 base = begin; base < end; base += TOGETHER) {
        u32 count = min(TOGETHER, end - base);
        if (threadIdx.x < count) candidates[threadIdx.x] = pair_features[base + threadIdx.x];
        __syncthreads();
        for (u32 four = warp * 4; four < count; four += TOGETHER / 8) {
            u32 j[4];
            float sums[4];
#pragma unroll
            for (u32 n = 0; n < 4; n++) j[n] = candidates[min(four + n, count - 1)];
            four_products(line, encoder, j, stride, sums);
            if (lane < 4 && four + lane < count) {
                float sum = lane == 0 ? sums[0] : lane == 1 ? sums[1] : lane == 2 ? sums[2] : sums[3];
                u32 feature = candidates[four + lane];
                float bias = encoder_bias[feature], value = sum + bias;
                if (exact) {
                    bool certain = rule.certain(stride, length[row], feature_norm[feature], bias, feature, value);
                    if (!certain) value = in_order(line, encoder + (u64)feature * stride, bias, stride);
                }
                values[four + lane] = value;
            }
        }
        __syncthreads();
        bool mine = threadIdx.x < count;
        bool active = mine && rule.active(candidates[threadIdx.x], values[threadIdx.x]);
        u32 kept, at = out + block_scan_exclusive((u32)active, scratch, kept);
        if (active) {
            pair_features[at] = candidates[threadIdx.x];
            row_values[at] = values[threadIdx.x];
        } else if (mine) {
            atomicAnd(&mask[(u64)candidates[threadIdx.x] * words + row / 32], ~(1u << (row & 31u)));
        }
        out += kept;
        if (Rule::KEEPS_NEAR) {
            __shared__ u32 near_scratch[32];
            bool near = mine && !active && rule.near(candidates[threadIdx.x], values[threadIdx.x]);
            u32 found, place = near_out + block_scan_exclusive((u32)near, near_scratch, found);
            if (near) rule.keep(place, candidates[threadIdx.x], values[threadIdx.x]);
            near_out += found;
        }
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    row_active[row] = out - begin;
    rule.kept(row, near_out - begin);
}

template <class T, class Rule>
__device__ __forceinline__ void recheck_row(const Rule &rule, const T *x, const T *encoder, const float *encoder_bias,
                                            const float *length, const float *feature_norm, const u32 *starts,
                                            u32 *pair_features, float *row_values, u32 *row_active, u32 *mask,
                                            u32 stride, u32 words, bool exact) {
    __shared__ __align__(16) T kept[KEPT];
    const T *line = x + (u64)blockIdx.x * stride;
    if (stride > KEPT) {
        recheck_line(rule, line, encoder, encoder_bias, length, feature_norm, starts, pair_features, row_values, row_active,
                     mask, stride, words, exact);
        return;
    }
    // The first barrier of recheck_line stands between this and the first reading.
    for (u32 column = threadIdx.x * 4; column < stride; column += blockDim.x * 4)
        copy_four(kept + column, line + column);
    recheck_line<T>(rule, kept, encoder, encoder_bias, length, feature_norm, starts, pair_features, row_values, row_active,
                    mask, stride, words, exact);
}

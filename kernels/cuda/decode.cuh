// What the decodes have in common: a row's pairs, and what follows once its xhat is known.
#pragma once
#include "four.cuh"
#include "reduce.cuh"
#include "sparsity.cuh"

enum Mse { MSE_SUM = 0, MSE_CENTERED = 1, MSE_UNCENTERED = 2 };

// The factor from xhat_i - x_i to g_i; 0 where the MSE's denominator is 0.
__device__ __forceinline__ float gradient_scale(u32 mse, u32 rows, u32 width, float squared, float centered) {
    float denominator = (float)rows;
    if (mse == MSE_CENTERED) denominator = (float)rows * (float)width * centered;
    if (mse == MSE_UNCENTERED) denominator = (float)rows * (float)width * sqrtf(squared);
    return denominator > 0.0f ? 2.0f / denominator : 0.0f;
}

// xhat + a W_dec at four neighbouring components.
__device__ __forceinline__ void add_pair(float4 &xhat, float a, float4 w) {
    xhat.x = fmaf(a, w.x, xhat.x);
    xhat.y = fmaf(a, w.y, xhat.y);
    xhat.z = fmaf(a, w.z, xhat.z);
    xhat.w = fmaf(a, w.w, xhat.w);
}

// The same for a list of pairs, in their order; four decoder rows are in flight at a time.
template <class T>
__device__ __forceinline__ void add_pairs(float4 &xhat, const T *decoder, const u32 *features, const float *values,
                                          u32 count, u32 stride, u32 column) {
    u32 at = 0;
    for (; at + 4 <= count; at += 4) {
        float4 w[4];
        float a[4];
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            w[n] = four_at(decoder, (u64)features[at + n] * stride + column);
            a[n] = values[at + n];
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) add_pair(xhat, a[n], w[n]);
    }
    for (; at < count; at++) add_pair(xhat, values[at], four_at(decoder, (u64)features[at] * stride + column));
}

// Four components of a row: adds their shares of ‖xhat - x‖^2, x·xhat and ‖xhat‖^2 and returns those of g.
__device__ __forceinline__ float4 finish_four(float4 xhat, float4 x, float scale, float (&sums)[3]) {
    float4 e;
    e.x = xhat.x - x.x;
    e.y = xhat.y - x.y;
    e.z = xhat.z - x.z;
    e.w = xhat.w - x.w;
    sums[0] = fmaf(e.x, e.x, fmaf(e.y, e.y, fmaf(e.z, e.z, fmaf(e.w, e.w, sums[0]))));
    sums[1] = fmaf(x.x, xhat.x, fmaf(x.y, xhat.y, fmaf(x.z, xhat.z, fmaf(x.w, xhat.w, sums[1]))));
    sums[2] = fmaf(xhat.x, xhat.x, fmaf(xhat.y, xhat.y, fmaf(xhat.z, xhat.z, fmaf(xhat.w, xhat.w, sums[2]))));
    e.x *= scale;
    e.y *= scale;
    e.z *= scale;
    e.w *= scale;
    return e;
}

// Adds one activation to Σ a and Σ p(a·norm) as logged.
__device__ __forceinline__ void add_activation(u32 kind, float parameter, float a, float norm, double (&sums)[2]) {
    sums[0] += a;
    float weighted = a * norm;
    if (weighted > 0.0f) sums[1] += penalty_logged(kind, parameter, weighted);
}

// One feature's gradients and their use, for a whole block: thread t owns the components 4·(t + n·blockDim) … + 3 of the
// feature's rows for n < CHUNKS, in registers from the first pair to the last write.
#pragma once
#include "reduce.cuh"
#include "sparsity.cuh"

enum DecoderNorm { NORM_UNIT = 0, NORM_TIED = 1, NORM_FREE = 2 };

__device__ __forceinline__ float4 load_four(const float *at) {
    return *(const float4 *)at;
}
__device__ __forceinline__ void store_four(float *at, float4 value) {
    *(float4 *)at = value;
}
__device__ __forceinline__ float4 zero_four() {
    float4 zero;
    zero.x = zero.y = zero.z = zero.w = 0.0f;
    return zero;
}
__device__ __forceinline__ float dot_four(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ __forceinline__ void add_scaled(float4 &out, float scale, float4 row) {
    out.x = fmaf(scale, row.x, out.x);
    out.y = fmaf(scale, row.y, out.y);
    out.z = fmaf(scale, row.z, out.z);
    out.w = fmaf(scale, row.w, out.w);
}
__device__ __forceinline__ void multiply_four(float4 &out, float scale) {
    out.x *= scale;
    out.y *= scale;
    out.z *= scale;
    out.w *= scale;
}

// The gradients of one feature's weights; the scalars are the same in all threads.
template <int CHUNKS>
struct Gradient {
    float4 encoder[CHUNKS], decoder[CHUNKS];
    float bias;     // db_enc
    float by_norm;  // the derivative by ||W_dec_j|| where the penalty is weighted by it
};

// Memory of a block for block_sum, used in turns: consecutive sums take different halves, so that one barrier each is
// enough.
struct Turns {
    float *shared;  // [2][32·4]
    u32 turn;

    template <int N>
    __device__ __forceinline__ void sum(float (&values)[N]) {
        block_sum(values, shared + turn * 128);
        turn ^= 1;
    }
};

// What the pairs of a feature are summed over.
struct Pairs {
    const u32 *rows;      // of this feature
    const float *values;  // their activations
    u32 count;
    const float *x;  // the encoder's input [B,stride]
    const float *g;  // [B,stride]
    u32 stride;
    u32 kind;        // of the penalty
    float norm;      // ||W_dec_j|| or 1
    float slope;     // the frequency terms'
};

// Adds the pairs in their order. `w` are the thread's components of W_dec_j. Up to PAIRS of them are in flight: their rows
// of g serve the dot product and, without being read again, the sum.
template <int CHUNKS>
__device__ __forceinline__ void add_pairs(const Pairs &pairs, const Scalars &scalars, const float4 (&w)[CHUNKS],
                                          Turns &turns, Gradient<CHUNKS> &gradient) {
    const int PAIRS = CHUNKS <= 2 ? 2 : 1;
    for (u32 first = 0; first < pairs.count; first += PAIRS) {
        float4 g[PAIRS][CHUNKS], x[PAIRS][CHUNKS];
        float by_value[PAIRS];
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            by_value[n] = 0.0f;
            bool there = first + n < pairs.count;
            u64 start = there ? (u64)pairs.rows[first + n] * pairs.stride : 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                u32 column = (threadIdx.x + c * blockDim.x) * 4;
                g[n][c] = x[n][c] = zero_four();
                if (there && column < pairs.stride) {
                    g[n][c] = load_four(pairs.g + start + column);
                    x[n][c] = load_four(pairs.x + start + column);
                    by_value[n] = dot_four(g[n][c], w[c], by_value[n]);
                }
            }
        }
        turns.sum(by_value);
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            if (first + n >= pairs.count) break;
            float a = pairs.values[first + n];
            float da = by_value[n] + penalty_slope(pairs.kind, scalars, a, pairs.norm, pairs.slope, gradient.by_norm);
            gradient.bias += da;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                add_scaled(gradient.decoder[c], a, g[n][c]);
                add_scaled(gradient.encoder[c], da, x[n][c]);
            }
        }
    }
}

// Moments below these become 0, as in kernels/src/cpu/update.rs.
constexpr float SMALLEST_FIRST = 1e-30f, SMALLEST_SECOND = 1e-36f;

__device__ __forceinline__ void adam(const Scalars &scalars, float &w, float &m, float &v, float g) {
    m = fmaf(scalars.rest1, g, scalars.beta1 * m);
    v = fmaf(scalars.rest2 * g, g, scalars.beta2 * v);
    if (fabsf(m) < SMALLEST_FIRST) m = 0.0f;
    if (v < SMALLEST_SECOND) v = 0.0f;
    w -= scalars.rate * m / fmaf(sqrtf(v), scalars.root_correction, scalars.epsilon);
}

__device__ __forceinline__ void adam_four(const Scalars &scalars, float4 &w, float *first, float *second, float4 g) {
    // Read and written once a step: not to be kept in L2, where x and g should stay.
    float4 m = __ldcs((const float4 *)first), v = __ldcs((const float4 *)second);
    adam(scalars, w.x, m.x, v.x, g.x);
    adam(scalars, w.y, m.y, v.y, g.y);
    adam(scalars, w.z, m.z, v.z, g.z);
    adam(scalars, w.w, m.w, v.w, g.w);
    __stcs((float4 *)first, m);
    __stcs((float4 *)second, v);
}

// Adds db_j W_enc_j to the block's line of pre_bias [blocks,stride], of which each thread has its own part; `begins` at the
// block's first feature. In memory, as the widest rows have no registers left.
template <int CHUNKS>
__device__ __forceinline__ void add_to_pre_bias(float *pre_bias, bool begins, float scale,
                                                const float4 (&encoder)[CHUNKS], u32 stride) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        if (column >= stride) continue;
        float *at = pre_bias + (u64)blockIdx.x * stride + column;
        float4 sum = begins ? zero_four() : load_four(at);
        add_scaled(sum, scale, encoder[c]);
        store_four(at, sum);
    }
}

// What the encode and the decode of the next step want of a feature besides its weights. Null where nobody asks.
struct Derived {
    bf16 *encoder_bf16, *decoder_bf16;                         // [F,stride]
    float *feature_base, *feature_norm, *feature_residual;     // [F], see README.md
    float *decoder_norm;                                       // [F], ||W_dec_j||
    u32 bounds;                                                // 0: norms and residuals of the screen are zeros
};

__device__ __forceinline__ void store_bf16(bf16 *at, float4 value, float4 &rounded) {
    bf16 x = float_to_bf16(value.x), y = float_to_bf16(value.y), z = float_to_bf16(value.z), w = float_to_bf16(value.w);
    rounded.x = bf16_to_float(x);
    rounded.y = bf16_to_float(y);
    rounded.z = bf16_to_float(z);
    rounded.w = bf16_to_float(w);
    if (at) {
        uint2 pairs;
        pairs.x = (u32)x | (u32)y << 16;
        pairs.y = (u32)z | (u32)w << 16;
        *(uint2 *)at = pairs;
    }
}

// Writes what follows from a feature's rows, which the block holds; returns whether they and the bias are finite.
template <int CHUNKS>
__device__ __forceinline__ bool derive(const Derived &to, u32 feature, u32 stride, const float4 (&encoder)[CHUNKS],
                                       const float4 (&decoder)[CHUNKS], float bias, Turns &turns) {
    float sums[3] = {0.0f, 0.0f, 0.0f};  // ||W_enc_j||^2, that of its rounding residual, ||W_dec_j||^2
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        if (column >= stride) continue;
        u64 place = (u64)feature * stride + column;
        float4 rounded, rest;
        if (to.decoder_bf16) store_bf16(to.decoder_bf16 + place, decoder[c], rounded);
        store_bf16(to.encoder_bf16 ? to.encoder_bf16 + place : (bf16 *)0, encoder[c], rounded);
        rest.x = encoder[c].x - rounded.x;
        rest.y = encoder[c].y - rounded.y;
        rest.z = encoder[c].z - rounded.z;
        rest.w = encoder[c].w - rounded.w;
        sums[0] = dot_four(encoder[c], encoder[c], sums[0]);
        sums[1] = dot_four(rest, rest, sums[1]);
        sums[2] = dot_four(decoder[c], decoder[c], sums[2]);
    }
    turns.sum(sums);
    if (threadIdx.x == 0) {
        // The last term covers products of two numbers too small for their squares.
        float slack = to.bounds ? rounding(stride) * fabsf(bias) + 1e-35f : 0.0f;
        to.feature_base[feature] = bias + slack;
        to.feature_norm[feature] = to.bounds ? norm_above(sums[0], stride) : 0.0f;
        to.feature_residual[feature] = to.bounds ? norm_above(sums[1], stride) : 0.0f;
        to.decoder_norm[feature] = sqrtf(sums[2]);
    }
    return is_finite(sums[0] + sums[2] + bias);
}

// The optimizer's part: projection, Adam, decoder norm, and what the next step wants to know of the feature. The weights
// are handed in as they were read; `gradient` is used up.
template <int CHUNKS>
__device__ __forceinline__ void update_feature(float *parameters, u32 feature, u32 features, u32 stride, u32 norm_kind,
                                               bool weighted, const Scalars &scalars, float4 (&encoder)[CHUNKS],
                                               float4 (&decoder)[CHUNKS], Gradient<CHUNKS> &gradient,
                                               const Derived &derived, Turns &turns, Report *report) {
    Parameters weights = parameters_at(parameters, 0, features, stride);
    Parameters first = parameters_at(parameters, 1, features, stride);
    Parameters second = parameters_at(parameters, 2, features, stride);
    float bias = weights.encoder_bias[feature];

    float along = 0.0f;
    if (norm_kind != NORM_FREE || weighted) {
        float sums[2] = {0.0f, 0.0f};  // W_dec·W_dec, W_dec·dW_dec
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            sums[0] = dot_four(decoder[c], decoder[c], sums[0]);
            sums[1] = dot_four(decoder[c], gradient.decoder[c], sums[1]);
        }
        turns.sum(sums);
        if (norm_kind != NORM_FREE) {
            along = sums[0] > 0.0f ? -(sums[1] / sums[0]) : 0.0f;
        } else if (sums[0] > 0.0f) {
            // The norm's gradient points along W_dec_j: the projection would take it out again.
            along = gradient.by_norm / sqrtf(sums[0]);
        }
    }
    float squared[1] = {0.0f};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        if (column >= stride) continue;
        u64 place = (u64)feature * stride + column;
        add_scaled(gradient.decoder[c], along, decoder[c]);
        adam_four(scalars, decoder[c], first.decoder + place, second.decoder + place, gradient.decoder[c]);
        adam_four(scalars, encoder[c], first.encoder + place, second.encoder + place, gradient.encoder[c]);
        squared[0] = dot_four(decoder[c], decoder[c], squared[0]);
    }
    float m = first.encoder_bias[feature], v = second.encoder_bias[feature];
    adam(scalars, bias, m, v, gradient.bias);

    if (norm_kind != NORM_FREE) {
        turns.sum(squared);  // also: every thread has read the bias and its moments
        if (squared[0] > 0.0f) {
            float removed = sqrtf(squared[0]), inverse = 1.0f / removed;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                multiply_four(decoder[c], inverse);
                if (norm_kind == NORM_TIED) multiply_four(encoder[c], removed);
            }
            if (norm_kind == NORM_TIED) bias *= removed;
        }
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        if (column >= stride) continue;
        u64 place = (u64)feature * stride + column;
        store_four(weights.encoder + place, encoder[c]);
        store_four(weights.decoder + place, decoder[c]);
    }
    // After its barrier every thread has read the bias and its moments.
    bool finite = derive(derived, feature, stride, encoder, decoder, bias, turns);
    if (threadIdx.x == 0) {
        weights.encoder_bias[feature] = bias;
        first.encoder_bias[feature] = m;
        second.encoder_bias[feature] = v;
        if (!finite) report->diverged = 1;  // whoever writes, writes the same
    }
}

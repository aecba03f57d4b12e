// One feature's gradients and their use, for a whole block: thread t owns the components 4·(t + n·blockDim) … + 3 of the
// feature's rows for n < CHUNKS, in registers from the first pair to the last write.
#pragma once
#include "ahead.cuh"
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
    float bias;       // db_enc
    float by_norm;    // the derivative by ‖W_dec_j‖ where the penalty is weighted by it
    float threshold;  // dθ, of features that have one
};

// What a feature has besides its rows and its bias, and how the gradient passes its activation. ReLU's have nothing, and all of
// this vanishes; JumpReLU's are in jump.cuh.
struct Relu {
    struct Own {};
    // Numbers that a block keeps of each pair, in two turns.
    static constexpr u32 KEPT_OF_PAIR = 1;

    __device__ __forceinline__ Own read(u32) const { return Own(); }
    __device__ __forceinline__ void write(u32, const Own &) const {}
    __device__ __forceinline__ void step(Own &, const Scalars &, float) const {}
    __device__ __forceinline__ void scale(Own &, float) const {}
    // The bias as the screen's bound takes it, less what z must be above; and the size of what that is formed of.
    __device__ __forceinline__ float base(float bias, const Own &) const { return bias; }
    __device__ __forceinline__ float size(float bias, const Own &) const { return fabsf(bias); }
    // A sum that is finite where `sum` and what it has are.
    __device__ __forceinline__ float checked(float sum, const Own &) const { return sum; }

    // a of a pair from what the list holds of it.
    __device__ __forceinline__ float activation(float value, const Own &) const { return value; }
    // Keeps dL/dz of a pair of row `row`, from dL/da.
    __device__ __forceinline__ void keep(float *kept, u32, float, float by_activation, const Own &) const {
        *kept = by_activation;
    }
    __device__ __forceinline__ float by_threshold(const float *) const { return 0.0f; }
    // dθ of a segment of pairs, to and from memory.
    __device__ __forceinline__ void leave(float *, float) const {}
    __device__ __forceinline__ float left(const float *) const { return 0.0f; }
    // The same of a block of rows, on the dense path.
    __device__ __forceinline__ float part(u32, u32, u32) const { return 0.0f; }
    __device__ __forceinline__ void leave_part(u32, float) const {}
    // Whether a pair that was kept has a part in the gradients of the weights.
    __device__ __forceinline__ bool counts(const float *, float, const Own &) const { return true; }
};

// Sums over a block of at most 256 threads. Consecutive sums take different halves of the memory, so that one barrier each is
// enough.
struct Turns {
    float *shared;  // [2][4][8]: a number for each sum and warp; those of warps that are not there stay 0
    u32 turn;

    __device__ __forceinline__ explicit Turns(float *shared) : shared(shared), turn(0) {
        if (threadIdx.x < 32) shared[threadIdx.x] = shared[32 + threadIdx.x] = 0.0f;
        __syncthreads();
    }

    template <int N>
    __device__ __forceinline__ void sum(float (&values)[N]) {
        float *half = shared + turn * 32;
#pragma unroll
        for (int n = 0; n < N; n++) {
            values[n] = warp_sum(values[n]);
            if ((threadIdx.x & 31u) == 0) half[n * 8 + (threadIdx.x >> 5)] = values[n];
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < N; n++) {
            float4 low = load_four(half + n * 8), high = load_four(half + n * 8 + 4);
            values[n] = ((low.x + low.y) + (low.z + low.w)) + ((high.x + high.y) + (high.z + high.w));
        }
        turn ^= 1;
    }
};

// What the pairs of a feature are summed over: at most SEGMENT of them.
struct Pairs {
    const u32 *rows;      // of this feature
    const float *values;  // their activations
    const float *slopes;  // the penalties' derivatives by them
    u32 count;
    const float *x;  // the encoder's input [B,stride]
    const float *g;  // [B,stride]
    u32 stride;
};

// Memory of a block for the derivatives by the activations, used in turns as in Turns.
struct Derivatives {
    float *shared;  // [2][kept of a pair][SEGMENT]
    u32 turn;
};

// Adds the pairs in their order. First each warp takes pairs of its own and forms da = g_i·W_dec_j + penalties, so that one
// barrier is enough for all of them; then all threads add a·g_i and da·x_i, TOGETHER pairs in flight. The rows of g, read
// twice, are still in the first-level cache.
template <int TOGETHER, int CHUNKS, class Kind>
__device__ __forceinline__ void add_pairs(const Pairs &pairs, const float *decoder, const Kind &kind,
                                          const typename Kind::Own &own, Derivatives &derivatives,
                                          Gradient<CHUNKS> &gradient) {
    float *da = derivatives.shared + derivatives.turn * (Kind::KEPT_OF_PAIR * SEGMENT);
    derivatives.turn ^= 1;
    u32 lane = threadIdx.x & 31u, warps = blockDim.x >> 5;
    for (u32 pair = threadIdx.x >> 5; pair < pairs.count; pair += warps) {
        const float *g = pairs.g + (u64)pairs.rows[pair] * pairs.stride;
        float slope = pairs.slopes[pair], sum = 0.0f;
        for (u32 first = lane * 4; first < pairs.stride; first += 4 * 128) {
            float4 left[4], right[4];
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                bool mine = first + n * 128 < pairs.stride;
                left[n] = mine ? load_four(g + first + n * 128) : zero_four();
                right[n] = mine ? load_four(decoder + first + n * 128) : zero_four();
            }
#pragma unroll
            for (u32 n = 0; n < 4; n++) sum = dot_four(left[n], right[n], sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) kind.keep(da + pair, pairs.rows[pair], pairs.values[pair], sum + slope, own);
    }
    __syncthreads();
    for (u32 first = 0; first < pairs.count; first += TOGETHER) {
        float4 g[TOGETHER][CHUNKS], x[TOGETHER][CHUNKS];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            bool there = first + n < pairs.count && kind.counts(da + first + n, pairs.values[first + n], own);
            u64 start = there ? (u64)pairs.rows[first + n] * pairs.stride : 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                u32 column = (threadIdx.x + c * blockDim.x) * 4;
                bool mine = there && column < pairs.stride;
                g[n][c] = mine ? load_four(pairs.g + start + column) : zero_four();
                x[n][c] = mine ? load_four(pairs.x + start + column) : zero_four();
            }
        }
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            if (first + n >= pairs.count) break;
            float by_value = da[first + n], value = kind.activation(pairs.values[first + n], own);
            gradient.bias += by_value;
            gradient.threshold += kind.by_threshold(da + first + n);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                add_scaled(gradient.decoder[c], value, g[n][c]);
                add_scaled(gradient.encoder[c], by_value, x[n][c]);
            }
        }
    }
}

// Moments below these become 0, as in kernels/src/cpu/update.rs.
constexpr float SMALLEST_FIRST = 1e-30f, SMALLEST_SECOND = 1e-36f;

// What quick_root and quick_reciprocal take for 0 lies below this: a row with a smaller squared norm is left as it is.
constexpr float SMALLEST_NORMAL = 1.17549435e-38f;

// To within two units in the last place, in a tenth of the instructions that exact rounding takes: weights and moments are
// more numbers than a multiprocessor has instructions to spare for in the time that their bytes take. Host compilers bring
// their own.
#ifdef __CUDACC__
__device__ __forceinline__ float quick_root(float value) {
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(value));
    return root;
}
__device__ __forceinline__ float quick_reciprocal(float value) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
    return reciprocal;
}
#endif

__device__ __forceinline__ void adam(const Scalars &scalars, float &w, float &m, float &v, float g) {
    m = fmaf(scalars.rest1, g, scalars.beta1 * m);
    v = fmaf(scalars.rest2 * g, g, scalars.beta2 * v);
    if (fabsf(m) < SMALLEST_FIRST) m = 0.0f;
    if (v < SMALLEST_SECOND) v = 0.0f;
    w -= scalars.rate * m * quick_reciprocal(fmaf(quick_root(v), scalars.root_correction, scalars.epsilon));
}

// `m` and `v` are the moments, which go back to `first` and `second`. Read and written once a step: not to be kept in L2,
// where x and g should stay.
__device__ __forceinline__ void adam_four(const Scalars &scalars, float4 &w, float4 m, float4 v, float *first,
                                          float *second, float4 g) {
    adam(scalars, w.x, m.x, v.x, g.x);
    adam(scalars, w.y, m.y, v.y, g.y);
    adam(scalars, w.z, m.z, v.z, g.z);
    adam(scalars, w.w, m.w, v.w, g.w);
    __stcs((float4 *)first, m);
    __stcs((float4 *)second, v);
}

// The rows of memory that belong to a feature.
enum Row { ENCODER, DECODER, ENCODER_FIRST, ENCODER_SECOND, DECODER_FIRST, DECODER_SECOND, ROWS };

// Where the moments of a feature's weights come from: read when they are wanted. backward.cu has another way.
struct MomentsInMemory {
    __device__ __forceinline__ float4 read(Row, const float *at) const { return __ldcs((const float4 *)at); }
    // All moments of a feature were read.
    __device__ __forceinline__ void done(u32) const {}
};

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
    bf16 *encoder_bf16, *decoder_bf16;                      // [F,stride]
    float *feature_base, *feature_norm, *feature_residual;  // [F], see README.md
    float *decoder_norm;                                    // [F], ‖W_dec_j‖
    u32 bounds;                                             // 0: norms and residuals of the screen are zeros
};

__device__ __forceinline__ void store_bf16(bf16 *at, float4 value, float4 &rounded) {
    uint2 pairs;
    pairs.x = two_to_bf16(value.x, value.y);
    pairs.y = two_to_bf16(value.z, value.w);
    rounded.x = __uint_as_float(pairs.x << 16);
    rounded.y = __uint_as_float(pairs.x & 0xffff0000u);
    rounded.z = __uint_as_float(pairs.y << 16);
    rounded.w = __uint_as_float(pairs.y & 0xffff0000u);
    if (at) *(uint2 *)at = pairs;
}

// Writes what follows from a feature's rows, which the block holds; returns whether they and the bias are finite.
template <int CHUNKS, class Kind>
__device__ __forceinline__ bool derive(const Derived &to, u32 feature, u32 stride, const float4 (&encoder)[CHUNKS],
                                       const float4 (&decoder)[CHUNKS], float bias, const Kind &kind,
                                       const typename Kind::Own &own, Turns &turns) {
    float sums[3] = {0.0f, 0.0f, 0.0f};  // ‖W_enc_j‖^2, that of its rounding residual, ‖W_dec_j‖^2
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
        float slack = to.bounds ? rounding(stride) * kind.size(bias, own) + 1e-35f : 0.0f;
        to.feature_base[feature] = kind.base(bias, own) + slack;
        to.feature_norm[feature] = to.bounds ? norm_above(sums[0], stride) : 0.0f;
        to.feature_residual[feature] = to.bounds ? norm_above(sums[1], stride) : 0.0f;
        to.decoder_norm[feature] = sqrtf(sums[2]);
    }
    return is_finite(kind.checked(sums[0] + sums[2] + bias, own));
}

// What times W_dec_j is to be added to dW_dec_j: the projection's part, or that of the penalty's derivative by ‖W_dec_j‖.
template <int CHUNKS>
__device__ __forceinline__ float factor_along(u32 norm_kind, bool weighted, const float4 (&decoder)[CHUNKS],
                                              const Gradient<CHUNKS> &gradient, Turns &turns) {
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
            along = sums[0] >= SMALLEST_NORMAL ? -sums[1] * quick_reciprocal(sums[0]) : 0.0f;
        } else if (sums[0] >= SMALLEST_NORMAL) {
            // The norm's gradient points along W_dec_j: the projection would take it out again.
            along = gradient.by_norm * quick_reciprocal(quick_root(sums[0]));
        }
    }
    return along;
}

// The optimizer's part: projection (unless the gradient is PROJECTED already), Adam, decoder norm, and what the next step wants to know of the feature. The weights
// are handed in as they were read; `gradient` is used up.
template <bool PROJECTED, int CHUNKS, class Moments, class Kind>
__device__ __forceinline__ void update_feature(float *parameters, u32 feature, u32 features, u32 stride, u32 norm_kind,
                                               bool weighted, const Scalars &scalars, float4 (&encoder)[CHUNKS],
                                               float4 (&decoder)[CHUNKS], const Moments &moments,
                                               Gradient<CHUNKS> &gradient, const Kind &kind, const Derived &derived,
                                               Turns &turns, Report *report) {
    Parameters weights = parameters_at(parameters, 0, features, stride);
    Parameters first = parameters_at(parameters, 1, features, stride);
    Parameters second = parameters_at(parameters, 2, features, stride);
    // Early, as all threads wait for them in the end.
    float bias = weights.encoder_bias[feature], m = first.encoder_bias[feature], v = second.encoder_bias[feature];
    typename Kind::Own own = kind.read(feature);

    float along = PROJECTED ? 0.0f : factor_along(norm_kind, weighted, decoder, gradient, turns);
    float squared[1] = {0.0f};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        u32 column = (threadIdx.x + c * blockDim.x) * 4;
        if (column >= stride) continue;
        u64 place = (u64)feature * stride + column;
        add_scaled(gradient.decoder[c], along, decoder[c]);
        float *dm = first.decoder + place, *dv = second.decoder + place;
        adam_four(scalars, decoder[c], moments.read(DECODER_FIRST, dm), moments.read(DECODER_SECOND, dv), dm, dv,
                  gradient.decoder[c]);
        float *em = first.encoder + place, *ev = second.encoder + place;
        adam_four(scalars, encoder[c], moments.read(ENCODER_FIRST, em), moments.read(ENCODER_SECOND, ev), em, ev,
                  gradient.encoder[c]);
        squared[0] = dot_four(decoder[c], decoder[c], squared[0]);
    }
    moments.done(feature);
    adam(scalars, bias, m, v, gradient.bias);
    kind.step(own, scalars, gradient.threshold);

    if (norm_kind != NORM_FREE) {
        turns.sum(squared);  // also: every thread has read the bias and its moments
        if (squared[0] >= SMALLEST_NORMAL) {
            float removed = quick_root(squared[0]), inverse = quick_reciprocal(removed);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                multiply_four(decoder[c], inverse);
                if (norm_kind == NORM_TIED) multiply_four(encoder[c], removed);
            }
            if (norm_kind == NORM_TIED) {
                bias *= removed;
                kind.scale(own, removed);
            }
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
    bool finite = derive(derived, feature, stride, encoder, decoder, bias, kind, own, turns);
    if (threadIdx.x == 0) {
        weights.encoder_bias[feature] = bias;
        first.encoder_bias[feature] = m;
        second.encoder_bias[feature] = v;
        kind.write(feature, own);
        if (!finite) report->diverged = 1;  // whoever writes, writes the same
    }
}

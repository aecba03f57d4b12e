// Types and structures that kernels and host share. The host's copies are in kernels/src/cuda/layout.rs.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;  // the upper half of a float

// Sizes that the host plans with (kernels/src/cuda/launch/mod.rs has them too).
constexpr u32 SUMMED_ROWS = 64;       // rows of a partial column sum
constexpr u32 SEGMENT = 64;           // a feature with more pairs than this is cut into segments of this many
constexpr u32 FEATURES_OF_BLOCK = 8;  // features that one block updates
constexpr u32 SLOPE_ROWS = 128;       // rows of a partial sum over a feature's da on the dense path

// What changes from step to step: a recorded step finds it in its mailbox.
struct Scalars {
    u64 step;                   // t, counted from 1
    double coefficient;         // the penalty's coefficient times its schedule's factor
    float penalty_coefficient;  // the same divided by B
    float penalty_parameter;    // epsilon times its schedule's factor, or tanh's k
    float frequency_epsilon;    // epsilon of the frequency terms' surrogate, scheduled
    float rate;                 // lr / (1 - beta1^t)
    float beta1, beta2;
    float rest1, rest2;     // 1 - beta1, 1 - beta2
    float root_correction;  // 1 / sqrt(1 - beta2^t)
    float epsilon;
};

// Why a step did nothing. Any value but RUNNING stays until the host clears it, and every kernel returns at once
// while it is there: steps that the host has already queued behind a refused one are refused as well.
enum Status {
    RUNNING = 0,
    NON_FINITE_ROW = 1,
    ZERO_NORM = 2,
    NON_FINITE_LOSS = 3,
    OVERFLOW_OF_PAIRS = 4,
    REFUSED_BY_OTHERS = 5,  // by another panel of features
};

// What a step reports: left in its mailbox. Sums over the rows as in kernels/src/stats.rs.
struct Report {
    u32 status;
    u32 row;   // the first row that the status is about
    u64 step;  // the last step that was done
    double loss, mse, penalty_term, min_sparsity, max_sparsity;
    double squared_error, centered_error, uncentered_error, squared_norm;
    double deviation;  // sum of ‖x - xbar‖^2
    double cosine, norm_ratio, l1, penalty;
    double density;  // only written where there is such a term
    u64 active, active_squared, rows_off_mean, rows_off_zero, candidates;
    u32 below_target;
    u32 diverged;        // a weight became NaN or infinite
    u32 non_finite_row;  // the first row with NaN or infinity, or NO_ROW
    u32 zero_row;        // the first row whose norm the MSE cannot divide by, or NO_ROW
    double dead;         // the term for dead features; only written where there is one
    double prefixes;     // what their term is more than that of all features; only written where there are some
    u32 smallest;        // the bits of the smallest activation; only written where BatchTopK's threshold follows it
    u32 dense;           // whether dense products were formed; only written by one of several panels
};
constexpr u32 NO_ROW = 0xffffffffu;

// The clipping of a gradient's norm.
struct Clip {
    double most;  // the largest norm
    float scale;  // what the gradient of this step is multiplied by
    u32 unused;
};

// What the decode finds of one row.
struct RowResult {
    float squared_error;  // ‖xhat - x‖^2
    float dot;            // x . xhat
    float squared_norm;   // ‖xhat‖^2
    u32 active;
    double l1, penalty;
};

// Weights, first moments and second moments lie in one buffer, three times the same layout:
// encoder [F,stride], decoder [F,stride], encoder bias [F up to a multiple of 64], decoder bias [stride].
struct Parameters {
    float *encoder, *decoder, *encoder_bias, *decoder_bias;
};

__device__ __forceinline__ u64 parameters_length(u32 features, u32 stride) {
    return 2 * (u64)features * stride + (features + 63u) / 64u * 64u + stride;
}

// `copy` 0: weights, 1: first moments, 2: second moments.
__device__ __forceinline__ Parameters parameters_at(float *base, u32 copy, u32 features, u32 stride) {
    Parameters p;
    p.encoder = base + copy * parameters_length(features, stride);
    p.decoder = p.encoder + (u64)features * stride;
    p.encoder_bias = p.decoder + (u64)features * stride;
    p.decoder_bias = p.encoder_bias + (features + 63u) / 64u * 64u;
    return p;
}

// A structure copied by a block, a word a thread at a time. Neither copy may be in a cache that the other side does not see.
template <class T>
__device__ __forceinline__ void copy_words(const T *from, T *to) {
    const volatile u32 *in = (const volatile u32 *)from;
    volatile u32 *out = (volatile u32 *)to;
    for (u32 word = threadIdx.x; word < sizeof(T) / 4; word += blockDim.x) out[word] = in[word];
}

__device__ __forceinline__ float bf16_to_float(bf16 value) {
    return __uint_as_float((u32)value << 16);
}

// To nearest, ties to even. What would round to infinity becomes the largest finite number, so that the distance
// from the original stays finite and bounds formed from it hold; NaN stays NaN.
__device__ __forceinline__ bf16 float_to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    u32 magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x7f7f8000u) return (bf16)((bits >> 16 & 0x8000u) | 0x7f7fu);
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Two of them in one number, the first in the lower half. NaN may become a finite number.
#ifdef __CUDACC__
__device__ __forceinline__ u32 two_to_bf16(float first, float second) {
    const float most = __uint_as_float(0x7f7f0000u);
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
        : "=r"(pair)
        : "f"(fminf(fmaxf(second, -most), most)), "f"(fminf(fmaxf(first, -most), most)));
    return pair;
}
#else
inline u32 two_to_bf16(float first, float second) {
    return (u32)float_to_bf16(first) | (u32)float_to_bf16(second) << 16;
}
#endif

// How far rounding can move a float32 sum of products, in whatever order and on whatever unit, relative to the product
// of the norms; as in kernels/src/cpu/screen.rs.
__device__ __forceinline__ float rounding(u32 stride) {
    return (float)(stride + 64u) * 2.384185791015625e-7f;  // 2^-22
}

// A norm from its square, rounded up; squares too small for float32 are accounted for.
__device__ __forceinline__ float norm_above(float squared, u32 stride) {
    return sqrtf(squared) * 1.0001f + 1e-18f * sqrtf((float)stride);
}

__device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}
__device__ __forceinline__ bool is_finite(double value) {
    return (__double_as_longlong(value) & 0x7ff0000000000000ll) != 0x7ff0000000000000ll;
}

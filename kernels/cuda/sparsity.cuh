// The sparsity penalties p(a) at a > 0 and their derivatives, as in kernels/src/cpu/sparsity.rs:
//
//   kind        parameter  p (as logged)      p'
//   NONE                   0                  0
//   APPROX_L0   epsilon    1                  epsilon / (a + epsilon)^2
//   L1                     a                  1
//   TANH        k          tanh(k a)          k (1 - tanh^2(k a))
//   LOG         epsilon    ln(1 + a/epsilon)  1 / (a + epsilon)
//   STEP                   of the row         0
//   QUADRATIC   target     of the row         0
//
// The last two are functions of how many activations of a row are positive. Trained thresholds alone have a gradient by them,
// and jump.cu logs them.
#pragma once
#include "types.cuh"

enum Penalty {
    PENALTY_NONE = 0,
    PENALTY_APPROX_L0 = 1,
    PENALTY_L1 = 2,
    PENALTY_TANH = 3,
    PENALTY_LOG = 4,
    PENALTY_STEP = 5,
    PENALTY_QUADRATIC = 6
};

__device__ __forceinline__ float penalty_logged(u32 kind, float parameter, float a) {
    switch (kind) {
        case PENALTY_APPROX_L0: return 1.0f;
        case PENALTY_L1: return a;
        case PENALTY_TANH: return tanhf(parameter * a);
        case PENALTY_LOG: return log1pf(a / parameter);
        default: return 0.0f;
    }
}

__device__ __forceinline__ float penalty_derivative(u32 kind, float parameter, float a) {
    switch (kind) {
        case PENALTY_APPROX_L0: return parameter / ((a + parameter) * (a + parameter));
        case PENALTY_L1: return 1.0f;
        case PENALTY_TANH: {
            // 1 - tanh^2 = 4e/(1 + e)^2 with e = exp(-2ka), without the cancellation near tanh = 1.
            float e = expf(-2.0f * parameter * a);
            return parameter * 4.0f * e / ((1.0f + e) * (1.0f + e));
        }
        case PENALTY_LOG: return 1.0f / (a + parameter);
        default: return 0.0f;
    }
}

// The derivative by an activation a > 0 of coefficient/B · p(a·norm) + slope · a/(a + epsilon); `norm` is the decoder row's
// or 1, `slope` the frequency terms' divided by B. Adds coefficient/B · p'(a·norm) · a, the derivative by the norm, to
// `by_norm`.
__device__ __forceinline__ float penalty_slope(u32 kind, const Scalars &scalars, float a, float norm, float slope,
                                               float &by_norm) {
    float weighted = a * norm;
    // A norm of 0 leaves no activation that the penalty could see.
    float by_weighted =
        weighted > 0.0f ? scalars.penalty_coefficient * penalty_derivative(kind, scalars.penalty_parameter, weighted)
                        : 0.0f;
    by_norm += by_weighted * a;
    float epsilon = scalars.frequency_epsilon;
    float surrogate = slope == 0.0f ? 0.0f : slope * epsilon / ((a + epsilon) * (a + epsilon));
    return by_weighted * norm + surrogate;
}

// The derivative of coefficient/B · a row's penalty by how many of its activations are positive.
__device__ __forceinline__ float penalty_by_count(u32 kind, const Scalars &scalars, u32 active) {
    float target = scalars.penalty_parameter;
    switch (kind) {
        case PENALTY_STEP: return scalars.penalty_coefficient;
        case PENALTY_QUADRATIC: return scalars.penalty_coefficient * 4.0f / target * ((float)active - target);
        default: return 0.0f;
    }
}

// penalty_slope at an activation of 0, from the right: what a pair near its threshold begins with.
__device__ __forceinline__ float penalty_slope_at_zero(u32 kind, const Scalars &scalars, float norm, float slope) {
    float surrogate = slope == 0.0f ? 0.0f : slope / scalars.frequency_epsilon;
    return scalars.penalty_coefficient * penalty_derivative(kind, scalars.penalty_parameter, 0.0f) * norm + surrogate;
}

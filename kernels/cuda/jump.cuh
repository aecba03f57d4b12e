// JumpReLU: a = z where z > θ_j, 0 elsewhere, and its pseudo-derivatives, as in kernels/src/cpu/jump.rs. With w the bandwidth
// and near = [|z - θ_j| < w/2],
//
//   dL/dθ_j = -Σ_i near_ij ((θ_j/w) dL/da_ij + (1/w) dL/dH_ij)
//   dL/dz_ij = [z_ij > θ_j] dL/da_ij                  (+ near_ij (the same bracket) with `to_input`)
//
// where H_ij = [z_ij > θ_j] is what a penalty on the number of active features counts. So the lists of the backward pass hold
// pairs that are not active, but near.
#pragma once
#include "feature.cuh"
#include "recheck.cuh"

// Thresholds, their first and their second moments: [3,F].
struct Thresholds {
    float *numbers;
    float bandwidth;

    __device__ __forceinline__ float of(u32 feature) const { return numbers[feature]; }
    // A pair whose z is not above this is neither active nor near.
    __device__ __forceinline__ float lowest(float threshold) const { return threshold - 0.5f * bandwidth; }
};

// The cutoff of the float32 encode.
struct Lowest {
    Thresholds thresholds;

    __device__ __forceinline__ float operator()(u32 feature) const {
        return thresholds.lowest(thresholds.of(feature));
    }
};

// The recheck's rule. Pairs that are near go into a list of their own, whose rows begin where those of the candidates do.
struct AboveThreshold {
    static constexpr bool KEEPS_NEAR = true;
    Thresholds thresholds;
    u32 *near_features;  // [capacity]
    float *near_values;  // [capacity], z
    u32 *row_near;       // [B]

    __device__ __forceinline__ bool certain(u32 stride, float length, float feature_norm, float bias, u32 feature,
                                            float z) const {
        float threshold = thresholds.of(feature), lowest = thresholds.lowest(threshold);
        // What is compared with is as large as θ and w, and so may be the rounding of a difference.
        float room = uncertainty(stride, length, feature_norm, fabsf(bias) + fabsf(threshold) + fabsf(lowest));
        return fabsf(z - threshold) > room && fabsf(z - lowest) > room;
    }
    __device__ __forceinline__ bool active(u32 feature, float z) const { return z > thresholds.of(feature); }
    __device__ __forceinline__ bool near(u32 feature, float z) const {
        return z > thresholds.lowest(thresholds.of(feature));
    }
    __device__ __forceinline__ void keep(u32 place, u32 feature, float z) const {
        near_features[place] = feature;
        near_values[place] = z;
    }
    __device__ __forceinline__ void kept(u32 row, u32 count) const { row_near[row] = count; }
};

// What turns dL/da of a pair into dL/dz and a part of dL/dθ.
struct Pseudo {
    float bandwidth;
    u32 to_input;
    u32 kind;  // the penalty
    const Scalars *scalars;
    const RowResult *results;  // [B]

    // `by_threshold` receives the pair's part of dL/dθ.
    __device__ __forceinline__ float by_z(u32 row, float z, float threshold, float by_activation,
                                          float &by_threshold) const {
        float near = 0.0f;
        if (fabsf(z - threshold) < 0.5f * bandwidth) {
            float by_count = penalty_by_count(kind, *scalars, results[row].active);
            near = threshold / bandwidth * by_activation + 1.0f / bandwidth * by_count;
        }
        by_threshold = -near;
        return (z > threshold ? by_activation : 0.0f) + (to_input ? near : 0.0f);
    }
};

// Features with thresholds, in place of Relu in feature.cuh. The lists hold z.
struct JumpRelu {
    struct Own {
        float threshold, first, second;
    };
    static constexpr u32 KEPT_OF_PAIR = 2;
    Thresholds thresholds;
    u32 features;
    Pseudo pseudo;
    float *threshold_parts;  // [parts,F], where gradients are in memory

    __device__ __forceinline__ Own read(u32 feature) const {
        const float *at = thresholds.numbers + feature;
        Own own = {at[0], at[features], at[2 * (u64)features]};
        return own;
    }
    __device__ __forceinline__ void write(u32 feature, const Own &own) const {
        float *at = thresholds.numbers + feature;
        at[0] = own.threshold;
        at[features] = own.first;
        at[2 * (u64)features] = own.second;
    }
    __device__ __forceinline__ void step(Own &own, const Scalars &scalars, float gradient) const {
        adam(scalars, own.threshold, own.first, own.second, gradient);
        // A negative one would let negative z through. NaN stays NaN.
        if (own.threshold < 0.0f) own.threshold = 0.0f;
    }
    __device__ __forceinline__ void scale(Own &own, float factor) const { own.threshold *= factor; }
    __device__ __forceinline__ float base(float bias, const Own &own) const {
        return bias - thresholds.lowest(own.threshold);
    }
    __device__ __forceinline__ float size(float bias, const Own &own) const {
        return fabsf(bias) + own.threshold + thresholds.bandwidth;
    }
    __device__ __forceinline__ float checked(float sum, const Own &own) const { return sum + own.threshold; }

    __device__ __forceinline__ float activation(float z, const Own &own) const {
        return z > own.threshold ? z : 0.0f;
    }
    __device__ __forceinline__ void keep(float *kept, u32 row, float z, float by_activation, const Own &own) const {
        kept[0] = pseudo.by_z(row, z, own.threshold, by_activation, kept[SEGMENT]);
    }
    __device__ __forceinline__ float by_threshold(const float *kept) const { return kept[SEGMENT]; }
    __device__ __forceinline__ bool counts(const float *kept, float z, const Own &own) const {
        return z > own.threshold || kept[0] != 0.0f;
    }
    __device__ __forceinline__ void leave(float *to, float by_threshold) const { *to = by_threshold; }
    __device__ __forceinline__ float left(const float *from) const { return *from; }
    __device__ __forceinline__ float part(u32 part, u32 features, u32 feature) const {
        return threshold_parts[(u64)part * features + feature];
    }
    __device__ __forceinline__ void leave_part(u32 feature, float by_threshold) const {
        threshold_parts[feature] = by_threshold;
    }
};

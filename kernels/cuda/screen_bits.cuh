// From the product to mask bits: what both tensor-core screens do with their accumulators.
//
// The tensor cores leave a 16 x 8 tile of the product in the registers of a warp so that lane l holds the numbers of
// rows l/4 and l/4 + 8, columns 2 (l%4) and 2 (l%4) + 1. Rows are features here and columns are batch rows, so the
// four lanes of a quad hold 32 batch rows (four tiles side by side) of one feature between them: one word of the mask.
#pragma once

// What a feature brings to the bound.
struct FeatureBound {
    float base;      // b_j with the room for its rounding
    float norm;      // ‖w_j‖
    float residual;  // ‖w_j − bf16(w_j)‖
};

// The sign bit of the upper bound of z decides: 0 means that the pair may be active. (At a bound of exactly 0 it says
// so too, which costs one needless recheck.)
__device__ __forceinline__ unsigned negative_bit(float z, const FeatureBound& feature, float row_norm,
                                                 float row_residual) {
    float bound = z + feature.base;
    bound = fmaf(row_residual, feature.norm, bound);
    bound = fmaf(row_norm, feature.residual, bound);
    return __float_as_uint(bound) >> 31;
}

// Where in its word the bit of (tile, element) lies for this lane: batch row 8 tile + 2 (lane%4) + element.
__device__ __forceinline__ unsigned bit_place(unsigned tile, unsigned quad_lane, unsigned element) {
    return 8 * tile + 2 * quad_lane + element;
}

// Every lane of a quad holds its bits of four words; afterwards lane q of the quad returns the whole word q.
__device__ __forceinline__ unsigned gather_words(const unsigned (&words)[4], unsigned quad_lane) {
    // First between neighbours (q ^ 1): even lanes keep words 0 and 2, odd lanes 1 and 3. Then across pairs.
    bool odd = quad_lane & 1, upper = quad_lane & 2;
    unsigned low = odd ? words[1] : words[0], high = odd ? words[3] : words[2];
    low |= __shfl_xor_sync(0xffffffffu, odd ? words[0] : words[1], 1);
    high |= __shfl_xor_sync(0xffffffffu, odd ? words[2] : words[3], 1);
    unsigned kept = upper ? high : low;
    kept |= __shfl_xor_sync(0xffffffffu, upper ? low : high, 2);
    return kept;
}

// The bits of a word that belong to rows below `rows`, the word's first row being `first`.
__device__ __forceinline__ unsigned valid_rows(unsigned first, unsigned rows) {
    if (first >= rows) return 0;
    unsigned left = rows - first;
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

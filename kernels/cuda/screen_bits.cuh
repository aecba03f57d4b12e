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

// Shifts into `bits`, from the right, the sign of the upper bound of z: 0 means that the pair may be active. (At a bound
// of exactly 0 it says so too, which costs one needless recheck.)
__device__ __forceinline__ unsigned push_sign(unsigned bits, float z, const FeatureBound& feature, float row_norm,
                                              float row_residual) {
    float bound = z + feature.base;
    bound = fmaf(row_residual, feature.norm, bound);
    bound = fmaf(row_norm, feature.residual, bound);
    return __funnelshift_l(__float_as_uint(bound), bits, 1);
}

// A lane's part of a word. Its eight numbers, elements 0 and 1 of four tiles, are batch rows 8 tile + 2 (lane%4) + element
// of the word's 32; `signs` holds their signs in bits 2 tile + element: pushed in the order from the last to the first.
__device__ __forceinline__ unsigned candidate_bits(unsigned signs, unsigned quad_lane) {
    unsigned bits = ~signs & 0xffu;
    bits = (bits | bits << 12) & 0x000f000fu;
    bits = (bits | bits << 6) & 0x03030303u;  // two bits a byte
    return bits << 2 * quad_lane;
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

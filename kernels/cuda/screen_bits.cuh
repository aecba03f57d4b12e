// From the product to mask bits: what both tensor-core screens do with their accumulators.
//
// The tensor cores leave a 16 x 8 tile of the product in the registers of a warp so that lane l holds the numbers of
// rows l/4 and l/4 + 8, columns 2 (l%4) and 2 (l%4) + 1. Rows are features here and columns are batch rows, so the
// four lanes of a quad hold 32 batch rows (four tiles side by side) of one feature between them: one word of the mask.
#pragma once
#include "types.cuh"

// What a feature brings to the bound.
struct FeatureBound {
    float base;      // b_j with the room for its rounding
    float norm;      // ‖w_j‖
    float residual;  // ‖w_j − bf16(w_j)‖
};

// Shifts into `bits`, from the right, the sign of the upper bound of z: 0 means that the pair may be active. (At a bound
// of exactly 0 it says so too, which costs one needless recheck.)
__device__ __forceinline__ u32 push_sign(u32 bits, float z, const FeatureBound &feature, float row_norm,
                                         float row_residual) {
    float bound = z + feature.base;
    bound = fmaf(row_residual, feature.norm, bound);
    bound = fmaf(row_norm, feature.residual, bound);
    return __funnelshift_l(__float_as_uint(bound), bits, 1);
}

// Every lane of a quad hands in its signs of four words, word w's in byte w: its eight numbers, elements 0 and 1 of four
// tiles, are batch rows 8 tile + 2 (lane%4) + element of the word's 32, their signs bits 2 tile + element of the byte.
// (Pushed in the order from the last to the first, they come to lie so.) Lane q of the quad returns the signs of word q, in
// the order of its rows.
__device__ __forceinline__ u32 quad_words(u32 signs, u32 quad_lane) {
    // The bytes of four lanes are transposed, between neighbours and then across pairs: byte l is lane l's.
    u32 other = __shfl_xor_sync(0xffffffffu, signs, 1);
    signs = __byte_perm(signs, other, quad_lane & 1 ? 0x3715 : 0x6240);
    other = __shfl_xor_sync(0xffffffffu, signs, 2);
    signs = __byte_perm(signs, other, quad_lane & 2 ? 0x3276 : 0x5410);
    // Then the pairs of bits [lane, tile] of the word, to [tile, lane], by two exchanges.
    u32 moved = (signs >> 6 ^ signs) & 0x00cc00ccu;
    signs ^= moved ^ moved << 6;
    moved = (signs >> 12 ^ signs) & 0x0000f0f0u;
    return signs ^ moved ^ moved << 12;
}

// The bits of a word that belong to rows below `rows`, the word's first row being `first`.
__device__ __forceinline__ u32 valid_rows(u32 first, u32 rows) {
    if (first >= rows) return 0;
    u32 left = rows - first;
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

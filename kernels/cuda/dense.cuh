// What the kernels between dense products share: see dense.cu.
#pragma once
#include "decode.cuh"

// The halves of a number.
struct Halves {
    bf16 high, low;
};
__device__ __forceinline__ Halves halves_of(float value) {
    Halves halves;
    halves.high = float_to_bf16(value);
    halves.low = float_to_bf16(value - bf16_to_float(halves.high));
    return halves;
}

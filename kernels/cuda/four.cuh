// Four neighbouring numbers of a row as float32, from float32 or from bfloat16.
#pragma once
#include "types.cuh"

__device__ __forceinline__ float4 four_at(const float *numbers, u64 at) {
    return *(const float4 *)(numbers + at);
}
__device__ __forceinline__ float4 four_at(const bf16 *numbers, u64 at) {
    uint2 pairs = *(const uint2 *)(numbers + at);
    float4 four;
    four.x = __uint_as_float(pairs.x << 16);
    four.y = __uint_as_float(pairs.x & 0xffff0000u);
    four.z = __uint_as_float(pairs.y << 16);
    four.w = __uint_as_float(pairs.y & 0xffff0000u);
    return four;
}

// The end of a kernel that one block does alone, once all others have done their part: sums over parts need no kernel of
// their own then. Who comes last depends on timing, what it does must not.
#pragma once
#include "types.cuh"

// True in the last of `blocks` blocks to come here, which then sees what the others have written, except through pointers
// that are `const __restrict__`. All threads of all these blocks must call. `arrived` must be 0 before the kernel and is
// again after it. `shared` holds one number.
__device__ __forceinline__ bool last_block(u32 *arrived, u32 blocks, u32 *shared) {
    __syncthreads();
    if (threadIdx.x == 0) {
        // One fence suffices: what it orders includes what the barrier has ordered before it.
        __threadfence();
        u32 last = atomicAdd(arrived, 1u) == blocks - 1;
        if (last) *arrived = 0;
        __threadfence();
        *shared = last;
    }
    __syncthreads();
    return *shared != 0;
}

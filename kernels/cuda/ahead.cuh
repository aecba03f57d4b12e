// Rows on their way: copies from global to shared memory that run while the thread that started them goes on.
//
// A thread waits for its own copies alone, and reads only what it has copied itself; so no barrier is needed. Where a host
// compiler runs the kernels (the tests), it brings functions of the same names and meaning.
#pragma once
#include "types.cuh"
#ifdef __CUDACC__

// Starts to copy four numbers, past the first-level cache.
__device__ __forceinline__ void fetch(float4 *to, const float *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}

// The same for numbers that the second-level cache need not keep.
__device__ __forceinline__ void fetch_once(float4 *to, const float *from) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)),
        "l"(from), "l"(policy)
        : "memory");
}

// Closes a group of copies, which may be empty.
__device__ __forceinline__ void close_fetches() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING of the thread's groups are under way: the newest ones.
template <int PENDING>
__device__ __forceinline__ void wait_for_fetches() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif

// Instructions of compute capability 8.0 under readable names: asynchronous copies, matrix loads, bfloat16 products.
//
// Where a host compiler runs the kernels (the tests), it brings functions of the same names and meaning.
#pragma once
#include "types.cuh"
#ifdef __CUDACC__

#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// The address that PTX wants for shared memory.
__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Starts to copy 16 bytes from global to shared memory, past the first-level cache.
__device__ __forceinline__ void copy_async(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers: lane l gives the address of row l%8 of matrix l/8 (16 bytes); it receives of
// each matrix the two numbers in row l/4, columns 2 (l%4) and 2 (l%4) + 1.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// sums [16,8] += a [16,16] b [16,8], bfloat16 into float32. Lane l, g = l/4, q = l%4, holds two numbers a register: a0:
// row g, columns 2q; a1: row g + 8; a2: columns 2q + 8; a3: both; b0: rows 2q of column g; b1: rows 2q + 8; sums: row g,
// columns 2q and 2q + 1, then row g + 8.
__device__ __forceinline__ void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

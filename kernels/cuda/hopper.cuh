// Instructions of compute capability 9.0a under readable names: barriers in shared memory, bulk tensor copies, matrix
// products of a warpgroup.
//
// Where a host compiler runs the kernels (the tests), it brings functions of the same names and meaning.
#pragma once
#include "types.cuh"

// What cuTensorMapEncodeTiled makes; passed by value as a __grid_constant__ parameter.
struct alignas(128) TensorMap {
    u64 opaque[16];
};

// How the product finds a factor with rows of 128 bytes (64 bfloat16 numbers) under the copy engine's 128-byte
// swizzle, at an address that is a multiple of 1024: eight rows are one pattern of 1024 bytes, which is the stride.
// Bits 0-13: address / 16; 16-29: leading offset, without meaning here; 32-45: stride / 16; 62-63: 1, the swizzle.
__device__ __forceinline__ u64 factor_descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#ifdef __CUDACC__

#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// The address that PTX wants for shared memory.
__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// A barrier whose phase ends after `arrivals` arrivals and all bytes that were announced.
__device__ __forceinline__ void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes new barriers known to the copy engine; a __syncthreads makes them known to the block.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and announces `bytes` bytes that copies will bring.
__device__ __forceinline__ void arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// A check build (BOUNDED_WAITS) ends a kernel that waits for longer than any wait takes, and leaves word of who waited for
// what; without it a lost arrival keeps the device busy for ever. The other builds have none of this.
#ifdef BOUNDED_WAITS
constexpr u64 LONGEST_WAIT = 2000000000ull;  // nanoseconds

// Where word is left, in the host's memory, which outlives the kernel's end: the block's number plus 1, the thread, the
// barrier's address, the phase's parity. All 0 until somebody gives up.
__device__ u32 *wait_record;

// Run once by a single thread, before any kernel of this module.
extern "C" __global__ void leave_word_at(u32 *place) {
    wait_record = place;
}

__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

__device__ __forceinline__ void give_up(u32 barrier, u32 parity) {
    u32 *record = wait_record;
    if (atomicCAS(record, 0u, blockIdx.x + 1) == 0) {
        record[1] = threadIdx.x;
        record[2] = barrier;
        record[3] = parity;
        __threadfence_system();
    }
    __trap();
}
#endif

// Waits until the phase of this parity has ended. (A new barrier is in phase 0; the phase before it, of parity 1, counts
// as ended.)
__device__ __forceinline__ void wait_for_phase(u32 barrier, u32 parity) {
#ifdef BOUNDED_WAITS
    u64 begin = nanoseconds();
#endif
    u32 done = 0;
    while (!done) {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
#ifdef BOUNDED_WAITS
        if (!done && nanoseconds() - begin > LONGEST_WAIT) give_up(barrier, parity);
#endif
    }
}

// Starts to copy the map's box at (column, row) to shared memory; its bytes count for `barrier`.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap &map, u32 column, u32 row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(to),
        "l"((u64)&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)&map) : "memory");
}

// Hands registers of this warpgroup back, or takes more, up to COUNT a thread.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Ties the sums to this place among the instructions marked volatile: the compiler moves nothing that reads or writes them
// across it. It sees the products write the sums where they are issued, not where they are waited for.
__device__ __forceinline__ void pin(float (&sums)[128]) {
#pragma unroll
    for (int at = 0; at < 128; at++) asm volatile("" : "+f"(sums[at])::"memory");
}

// Before the first product that touches registers which other instructions have touched.
__device__ __forceinline__ void fence_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most PENDING groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// A barrier of the `threads` threads that name `number` (0 is that of __syncthreads).
__device__ __forceinline__ void sync_threads(u32 number, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#define SUMS_8(d, i)                                                                                            \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)

// sums [64,256] += a [64,16] b [256,16]ᵀ, bfloat16 into float32, both factors in shared memory. Warp w of the
// warpgroup holds rows 16w to 16w + 15: lane l has of columns 8n to 8n + 7 the numbers in row l/4, columns 2 (l%4) and + 1,
// in sums[4n] and sums[4n + 1], those of row l/4 + 8 in sums[4n + 2] and sums[4n + 3].
__device__ __forceinline__ void multiply_64x256(float (&sums)[128], u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, 1, 1, 1, 0, 0;"
        : SUMS_32(sums, 0), SUMS_32(sums, 32), SUMS_32(sums, 64), SUMS_32(sums, 96)
        : "l"(a), "l"(b));
}
#undef SUMS_8
#undef SUMS_32

#endif

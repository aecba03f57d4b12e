// The part of CUDA C++ that the kernels use, for g++: an unmodified .cu file compiled after this header runs on the CPU.
//
// A block's threads are fibers on one OS thread, switched at barriers and warp collectives only. What this finds: wrong
// results, accesses outside of buffers (with the address sanitizer), barriers that only a part of a block reaches,
// shared memory that is read before it is written (it is poisoned before each block), and results that depend on the
// order of threads or blocks (run with another order). What it cannot show: speed, and races within one order. It is a
// test tool and slow.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, so that its shared memory can be static. The section lets it be poisoned as a whole.
#define __shared__ static __attribute__((section("emulated_shared")))

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulation {
struct Thread {
    uint3 index;
    unsigned lane;
};
extern Thread *current;
extern uint3 block_index, block_size, grid_size;
void block_barrier(const char *where);
// Lets the others run until `*number` is another.
void wait_for_change(const unsigned *number, const char *where);
// Copies of 16 bytes that the thread has under way, in groups: done at the start, or as late as a wait allows, which
// depends on the order in which threads run.
void start_copy(void *to, const void *from);
void close_copies();
void wait_for_copies(unsigned pending);
// Exchanges a value with the warp: returns what lane `source` gave. All lanes of `mask` must call.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, const char *where);
unsigned ballot(unsigned mask, bool predicate, const char *where);
// Runs every thread of every block. `call` runs one thread's kernel with `arguments`.
void launch(const unsigned grid[3], const unsigned block[3], void (*call)(void **), void **arguments, unsigned order);

// Parameter kinds, for the check of a launch's arguments: p pointer, u 32-bit integer, l 64-bit integer, f float, m tensor
// map.
template <class T>
constexpr char kind() {
    return std::is_pointer_v<T> ? 'p' : std::is_same_v<T, float> ? 'f' : sizeof(T) == 128 ? 'm' : sizeof(T) == 8 ? 'l' : 'u';
}
template <class... A>
struct Kinds {
    static constexpr char text[] = {kind<A>()..., 0};
};
template <class... A>
const char *kinds_of(void (*)(A...)) {
    return Kinds<A...>::text;
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}
template <class... A>
void call_all(void (*kernel)(A...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}
}  // namespace emulation

// Makes a kernel callable by name: NAME__launch, and NAME__kinds with the kinds of its parameters.
#define EXPORT_KERNEL(NAME)                                                                                     \
    extern "C" void NAME##__launch(const unsigned *grid, const unsigned *block, void **arguments, unsigned order) { \
        emulation::launch(grid, block, [](void **a) { emulation::call_all(NAME, a); }, arguments, order);        \
    }                                                                                                           \
    extern "C" const char *NAME##__kinds() { return emulation::kinds_of(NAME); }

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
#define EMULATION_TEXT2(x) #x
#define EMULATION_TEXT(x) EMULATION_TEXT2(x)
#define EMULATION_HERE __FILE__ ":" EMULATION_TEXT(__LINE__)
#define __syncthreads() emulation::block_barrier("__syncthreads at " EMULATION_HERE)

template <class T>
inline T emulated_shuffle(unsigned mask, T value, unsigned source, const char *where) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulation::exchange(mask, bits, source, where);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source) {
    return emulated_shuffle(mask, value, source & 31, "__shfl_sync");
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other) {
    return emulated_shuffle(mask, value, emulation::current->lane ^ other, "__shfl_xor_sync");
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int offset) {
    int lane = (int)emulation::current->lane;
    return emulated_shuffle(mask, value, lane >= offset ? lane - offset : lane, "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulation::ballot(mask, predicate != 0, "__ballot_sync");
}
inline int __all_sync(unsigned mask, int predicate) {
    return emulation::ballot(mask, predicate != 0, "__all_sync") == mask;
}
inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(unsigned bits) {
    return __builtin_ffs((int)bits);
}
// Hints for the caches.
template <class T>
inline T __ldcs(const T *at) {
    return *at;
}
template <class T>
inline void __stcs(T *at, T value) {
    *at = value;
}
// kernels/cuda/feature.cuh
inline float quick_root(float value) {
    return std::sqrt(value);
}
inline float quick_reciprocal(float value) {
    return 1.0f / value;
}
// kernels/cuda/ahead.cuh
inline void fetch(float4 *to, const float *from) {
    emulation::start_copy(to, from);
}
inline void fetch_once(float4 *to, const float *from) {
    emulation::start_copy(to, from);
}
inline void close_fetches() {
    emulation::close_copies();
}
template <int PENDING>
inline void wait_for_fetches() {
    emulation::wait_for_copies(PENDING);
}
// One OS thread: plain reads and writes are atomic and seen in their order.
inline void __threadfence() {}
template <class T>
inline T atomicAdd(T *at, T value) {
    T old = *at;
    *at = old + value;
    return old;
}
template <class T>
inline T atomicMin(T *at, T value) {
    T old = *at;
    if (value < old) *at = value;
    return old;
}
template <class T>
inline T atomicAnd(T *at, T value) {
    T old = *at;
    *at = old & value;
    return old;
}
template <class T>
inline T atomicOr(T *at, T value) {
    T old = *at;
    *at = old | value;
    return old;
}
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}

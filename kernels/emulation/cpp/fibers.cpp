// Runs a kernel's blocks one after the other, each block's threads as fibers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "cuda.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

constexpr size_t STACK = 64 * 1024;
// Stacks do not begin at equal distances from a power of 2: their tops would all share a few lines of the caches.
constexpr size_t STACK_PITCH = STACK + 5 * 64;

struct Warp {
    unsigned generation, arrived, gone;  // gone: lanes that have left the kernel or never were
    uint64_t slots[2][32];               // two, because a fast lane may give again before a slow one has taken
    unsigned votes[2];
};

struct Copy {
    void *to;
    const void *from;
};

struct Fiber {
    Thread thread;
    Warp *warp;
    unsigned phase;
    bool done;
    const unsigned *waits_for;  // a generation that has to move on
    unsigned generation;
    const char *where;
    char *stack;
    void *pointer;
    void *fake_stack;
    std::deque<std::vector<Copy>> copies;  // groups under way, the last one open
};

Thread *current;
uint3 block_index, block_size, grid_size;

static Fiber *running;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static unsigned live, block_arrived, block_generation;
static void (*kernel)(void **);
static void **kernel_arguments;
static bool late_copies;
static void *scheduler;
static char *stacks;
static size_t stacks_held;
#ifdef __SANITIZE_ADDRESS__
static void *scheduler_fake_stack;
static const void *scheduler_stack;
static size_t scheduler_stack_size;
#endif

// Saves the callee-saved registers on the stack, its pointer at *save, and goes on at `to` (System V, x86-64).
extern "C" void emulation_switch(void **save, void *to);
asm(R"(.text
.globl emulation_switch
.type emulation_switch,@function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

static void to_scheduler(bool dying) {
    Fiber *me = running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(dying ? nullptr : &me->fake_stack, scheduler_stack, scheduler_stack_size);
#else
    (void)dying;
#endif
    emulation_switch(&me->pointer, scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(me->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

static void to_fiber(Fiber *fiber) {
    running = fiber;
    current = &fiber->thread;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber->stack, STACK);
#endif
    emulation_switch(&scheduler, fiber->pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

[[noreturn]] static void fail(const char *what) {
    std::fprintf(stderr, "emulation: %s in block (%u,%u,%u)\n", what, block_index.x, block_index.y, block_index.z);
    unsigned shown = 0;
    for (Fiber &fiber : fibers) {
        if (fiber.done || shown++ == 12) continue;
        uint3 at = fiber.thread.index;
        std::fprintf(stderr, "  thread (%u,%u,%u) waits at %s\n", at.x, at.y, at.z, fiber.where);
    }
    std::abort();
}

static void wait_for(const unsigned *generation, const char *where) {
    running->waits_for = generation;
    running->generation = *generation;
    running->where = where;
    to_scheduler(false);
}

void wait_for_change(const unsigned *number, const char *where) {
    wait_for(number, where);
}

static void pass_if_all_arrived() {
    if (live > 0 && block_arrived == live) {
        block_arrived = 0;
        block_generation++;
    }
}

void block_barrier(const char *where) {
    unsigned before = block_generation;
    block_arrived++;
    pass_if_all_arrived();
    if (block_generation == before) wait_for(&block_generation, where);
}

static void warp_barrier(unsigned mask, const char *where) {
    Warp &warp = *running->warp;
    running->where = where;
    if (!(mask >> running->thread.lane & 1)) fail("a lane is not in the mask it gives");
    if (mask & warp.gone) fail("a mask names a lane that has left or never was");
    warp.arrived |= 1u << running->thread.lane;
    if ((warp.arrived & mask) == mask) {
        warp.arrived &= ~mask;
        warp.generation++;
    } else {
        wait_for(&warp.generation, where);
    }
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, const char *where) {
    unsigned phase = running->phase;
    running->phase ^= 1;
    running->warp->slots[phase][running->thread.lane] = value;
    warp_barrier(mask, where);
    return running->warp->slots[phase][source & 31];
}

unsigned ballot(unsigned mask, bool predicate, const char *where) {
    unsigned phase = running->phase, bit = 1u << running->thread.lane;
    running->phase ^= 1;
    unsigned &votes = running->warp->votes[phase];
    votes = predicate ? votes | bit : votes & ~bit;
    warp_barrier(mask, where);
    return running->warp->votes[phase] & mask;
}

void start_copy(void *to, const void *from) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) fail("a copy of 16 bytes that is not aligned");
    if (!late_copies) {
        std::memcpy(to, from, 16);
        return;
    }
    if (running->copies.empty()) running->copies.emplace_back();
    running->copies.back().push_back({to, from});
}

void close_copies() {
    if (running->copies.empty()) running->copies.emplace_back();
    running->copies.emplace_back();
}

void wait_for_copies(unsigned pending) {
    auto &groups = running->copies;
    while (groups.size() > pending + 1) {
        for (Copy &copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
        groups.pop_front();
    }
}

static void entry() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    kernel(kernel_arguments);
    running->done = true;
    running->warp->gone |= 1u << running->thread.lane;
    live--;
    pass_if_all_arrived();
    to_scheduler(true);
    __builtin_unreachable();
}

extern "C" __attribute__((weak)) char __start_emulated_shared[], __stop_emulated_shared[];

// NaN in every float: what a kernel reads from shared memory without having written it spoils its results.
__attribute__((no_sanitize("address"))) static void poison_shared_memory() {
    // Volatile, or it would become a call of memset, which the sanitizer checks against the arrays' ends.
    volatile char *at = __start_emulated_shared;
    for (; (uintptr_t)at % 8 && at < __stop_emulated_shared; at++) *at = (char)0xff;
    for (; at + 8 <= __stop_emulated_shared; at += 8) *(volatile uint64_t *)at = ~0ull;
    for (; at < __stop_emulated_shared; at++) *at = (char)0xff;
}

static void prepare(Fiber &fiber, unsigned number, unsigned count) {
    fiber = Fiber{};
    fiber.thread.lane = number & 31;
    fiber.thread.index = {number % block_size.x, number / block_size.x % block_size.y,
                          number / (block_size.x * block_size.y)};
    fiber.warp = &warps[number >> 5];
    if (number == count - 1 && (count & 31)) fiber.warp->gone = ~((2u << fiber.thread.lane) - 1);
    fiber.where = "its start";
    fiber.stack = stacks + number * STACK_PITCH;
    void **top = (void **)(fiber.stack + STACK);
    *--top = nullptr;
    *--top = (void *)entry;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber.pointer = top;
}

// Order 0 takes blocks and threads as they are numbered, 1 backwards, and all threads get about equally far. Orders 2 and 3
// are the same two, but a thread always goes on before those after it: the first warps run as far ahead of the others as
// barriers let them, so that memory that is used again with a barrier too few shows. Any other number is the seed of a
// shuffle. Asynchronous copies happen late in even orders, at once in odd ones.
static bool runs_ahead(unsigned order) {
    return order == 2 || order == 3;
}

static unsigned place(unsigned at, unsigned count, unsigned order) {
    if (order == 0 || order == 2) return at;
    if (order == 1 || order == 3) return count - 1 - at;
    // A multiplier without a common divisor with `count` makes a permutation.
    uint64_t step = order | 1;
    auto divisor = [](uint64_t a, uint64_t b) {
        while (b) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    };
    while (divisor(step, count) != 1) step += 2;
    return (unsigned)((at * step + order) % count);
}

static void run_block(unsigned count, unsigned order) {
    live = count;
    block_arrived = block_generation = 0;
    for (Warp &warp : warps) warp = Warp{};
    poison_shared_memory();
    for (unsigned number = 0; number < count; number++) prepare(fibers[number], number, count);
    while (live > 0) {
        bool progress = false;
        for (unsigned at = 0; at < count; at++) {
            Fiber &fiber = fibers[place(at, count, order)];
            if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.generation)) continue;
            fiber.waits_for = nullptr;
            progress = true;
            to_fiber(&fiber);
            if (runs_ahead(order)) break;
        }
        if (!progress) fail("a barrier is reached by only a part of a block or warp");
    }
}

void launch(const unsigned grid[3], const unsigned block[3], void (*call)(void **), void **arguments, unsigned order) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    unsigned count = block[0] * block[1] * block[2];
    fibers.resize(count);
    warps.resize((count + 31) / 32);
    if (stacks_held < count * STACK_PITCH) {
        std::free(stacks);
        stacks_held = (count * STACK_PITCH + 4095) / 4096 * 4096;
        stacks = (char *)std::aligned_alloc(4096, stacks_held);
    }
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stacks, stacks_held);
#endif
    late_copies = order % 2 == 0;
    kernel = call;
    kernel_arguments = arguments;
    unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned at = 0; at < blocks; at++) {
        unsigned number = place(at, blocks, order);
        block_index = {number % grid[0], number / grid[0] % grid[1], number / (grid[0] * grid[1])};
        run_block(count, order);
    }
    current = nullptr;
}

}  // namespace emulation

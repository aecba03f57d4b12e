// The frequency window's bookkeeping: which of the last batches count.
#pragma once
#include "reduce.cuh"

// `changes`: lines whose counts enter (bit 31 clear) or leave (set) the sums in this step; line numbers are below 2^31. The
// arrays beside it: levels [n], log10 of each line's total, and summed [n], whether the line is in the sums.
struct Window {
    u32 filled;   // lines in use
    u32 newest;   // the line of the last batch
    u32 counted;  // lines in the sums
    u32 evicted;  // whether the newest line's former content was in the sums
    u32 changes;  // entries of the change list
    u32 unused;
};

constexpr u32 LEAVES = 0x80000000u;

// A batch with `total` active pairs enters; decides which lines count. One block. The decision on each line is one thread's;
// the change list is in the order of the lines. `shared` holds 64 numbers.
__device__ __forceinline__ void advance_window(u64 total, Window *window, double *levels, u32 *summed, u32 *change_list,
                                               u32 length, u64 *shared) {
    const double now = log10((double)total);
    const u32 old = window->filled;
    const bool replaces = old == length;
    const u32 newest = old == 0 ? 0 : (window->newest + 1) % length, filled = replaces ? old : old + 1;
    const u32 evicted = replaces ? summed[newest] : 0, counted = window->counted;
    u64 changed = 0;  // lines that entered, and in the upper half those that left
    for (u32 first = 0, turn = 0; first < filled; first += blockDim.x, turn ^= 1) {
        u32 line = first + threadIdx.x;
        bool enters = false, leaves = false;
        if (line < filled && line != newest) {
            bool near = fabs(levels[line] - now) < 0.5;  // NaN, of two empty batches, is not
            enters = near && summed[line] == 0;
            leaves = !near && summed[line] != 0;
            summed[line] = near;
        }
        u64 found, at = changed + block_scan_exclusive((u64)leaves << 32 | (u64)enters, shared + 32 * turn, found);
        if (enters || leaves) change_list[(u32)at + (u32)(at >> 32)] = line | (leaves ? LEAVES : 0);
        changed += found;
    }
    // All threads have read what is written here: there was a barrier since.
    if (threadIdx.x != 0) return;
    u32 entered = (u32)changed, left = (u32)(changed >> 32);
    levels[newest] = now;
    summed[newest] = 1;
    window->filled = filled;
    window->newest = newest;
    window->counted = counted + 1 - evicted + entered - left;
    window->evicted = evicted;
    window->changes = entered + left;
}

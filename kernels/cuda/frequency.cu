// frequency: the running frequency s_j of each feature over the last n batches, and what follows from it.
//
//   s_j = mean over the counted batches t of count_t,j / B        a batch counts if its total differs from the newest one's
//                                                                 by less than half a decade
//   slope_j = d(min-sparsity + max-sparsity)/ds̃_j / B, straight-through (kernels/src/cpu/sparsity.rs)
//
// The window is a ring of counts, ring [n,F]; sums [F] over the counted batches are kept up to date by adding and
// subtracting lines of the ring: integers, hence exact. Cost: usually three lines read and one written (0.1 MB each at
// F = 24,576); a change of density by half a decade reads them all once (29 MB at n = 300).
#include "reduce.cuh"

// The ring's bookkeeping. `changes`: lines whose counts enter (bit 31 clear) or leave (set) the sums in this step; line
// numbers are below 2^31. The arrays after it are totals [n] u64 and summed [n] u32.
struct Window {
    u32 filled;   // lines in use
    u32 newest;   // the line of the last batch
    u32 counted;  // lines in the sums
    u32 evicted;  // whether the newest line's former content was in the sums
    u32 changes;  // entries of the change list
    u32 unused;
};

constexpr u32 LEAVES = 0x80000000u;

// Counts the batch, decides which lines of the ring count. One block of up to 1024 threads. The decision on each line is one
// thread's; the change list is in the order of the lines.
extern "C" __global__ void __launch_bounds__(1024)
window_advance(const u32 *__restrict__ counts, Window *window, u64 *totals, u32 *summed, u32 *change_list, u32 features,
               u32 length, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    __shared__ u64 wide[32];
    __shared__ u32 narrow[32];
    u64 mine[1] = {0};
    for (u32 feature = threadIdx.x; feature < features; feature += blockDim.x) mine[0] += counts[feature];
    block_sum(mine, wide);
    double now = log10((double)mine[0]);

    u32 filled = window->filled;
    u32 newest = filled == 0 ? 0 : (window->newest + 1) % length;
    bool replaces = filled == length;
    if (!replaces) filled++;
    u32 evicted = replaces ? summed[newest] : 0;
    u32 counted = window->counted, changes = 0;
    __syncthreads();  // all threads have read what is written below
    if (threadIdx.x == 0) summed[newest] = 1;
    int counted_change = 1 - (int)evicted;
    for (u32 first = 0; first < filled; first += blockDim.x) {
        u32 line = first + threadIdx.x;
        bool enters = false, leaves = false;
        if (line < filled && line != newest) {
            double distance = fabs(log10((double)totals[line]) - now);
            bool near = distance < 0.5;  // NaN, of two empty batches, is not
            enters = near && summed[line] == 0;
            leaves = !near && summed[line] != 0;
            summed[line] = near;
        }
        u32 found, at = changes + block_scan_exclusive((u32)(enters || leaves), narrow, found);
        if (enters || leaves) change_list[at] = line | (leaves ? LEAVES : 0);
        changes += found;
        int difference[1] = {(int)enters - (int)leaves};
        __syncthreads();
        block_sum(difference, (int *)narrow);
        counted_change += difference[0];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        totals[newest] = mine[0];
        window->filled = filled;
        window->newest = newest;
        window->counted = counted + counted_change;
        window->evicted = evicted;
        window->changes = changes;
    }
}

// Per feature: the sums, the frequency, the slope, the steps since it fired; per block the two terms of the loss into
// partial [blocks,2]. Coefficients are 0 where a term is not used; `rows` is B. One thread per feature, block 256.
extern "C" __global__ void __launch_bounds__(256)
window_features(const u32 *__restrict__ counts, const Window *__restrict__ window, const u32 *__restrict__ change_list,
                u32 *ring, u32 *sums, float *frequencies, float *slopes, u64 *steps_since_fired,
                double *__restrict__ partial, u32 features, u32 rows, const double *__restrict__ targets,
                Report *report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[32 * 2];
    const double min_coefficient = targets[0], min_target = targets[1];
    const double max_coefficient = targets[2], max_target = targets[3];
    const bool has_min = targets[4] != 0.0, has_max = targets[5] != 0.0;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x;
    double terms[2] = {0.0, 0.0};
    if (feature < features) {
        u32 count = counts[feature], sum = sums[feature];
        u32 *newest = ring + (u64)window->newest * features + feature;
        if (window->evicted) sum -= *newest;
        *newest = count;
        sum += count;
        for (u32 at = 0; at < window->changes; at++) {
            u32 line = change_list[at], other = ring[(u64)(line & ~LEAVES) * features + feature];
            sum = line & LEAVES ? sum - other : sum + other;
        }
        sums[feature] = sum;
        double frequency = (double)sum / ((double)window->counted * rows);
        frequencies[feature] = (float)frequency;
        steps_since_fired[feature] = count > 0 ? 0 : steps_since_fired[feature] + 1;

        double s = frequency + 1e-10, coefficient = 0.0;
        if (has_min && s < min_target) {
            terms[0] = min_coefficient * (log10(min_target) - log10(s));
            coefficient -= min_coefficient;
            atomicAdd(&report->below_target, 1u);
        }
        if (has_max && s > max_target) {
            terms[1] = max_coefficient * (log10(s) - log10(max_target));
            coefficient += max_coefficient;
        }
        slopes[feature] = (float)(coefficient / (2.302585092994045684 * s * rows));
    }
    block_sum(terms, shared);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = terms[0];
        partial[2 * blockIdx.x + 1] = terms[1];
    }
}

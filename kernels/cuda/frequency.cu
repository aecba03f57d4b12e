// frequency: the running frequency s_j of each feature over the last n batches, and what follows from it.
//
//   s_j = mean over the counted batches t of count_t,j / B        a batch counts if its total differs from the newest one's
//                                                                 by less than half a decade
//   slope_j = d(min-sparsity + max-sparsity)/ds̃_j / B, straight-through (kernels/src/cpu/sparsity.rs)
//
// The window is a ring of counts, ring [n,F]; sums [F] over the counted batches are kept up to date by adding and
// subtracting lines of the ring: integers, hence exact. Cost: usually three lines read and one written (0.1 MB each at
// F = 24,576); a change of density by half a decade reads them all once (29 MB at n = 300).
#include "last.cuh"
#include "window.cuh"

// Per feature: the sums, the frequency, the slope, the steps since it fired; per block the two terms of the loss and the
// features below the target into partial [blocks,3]. Coefficients are 0 where a term is not used; `rows` is B. The last block
// ends the step's report: the terms join the loss, and the step counts as done. What follows may still find that the update
// diverges, but refuses nothing.
template <bool DENSITIES>
__device__ __forceinline__ void window_of(const u32 *counts, const Window *window, const u32 *change_list, u32 *ring,
                                          u32 *sums, float *frequencies, float *slopes, u64 *steps_since_fired,
                                          double *partial, u32 *arrived, u32 features, u32 rows,
                                          const double *targets, const Scalars *scalars, Report *report) {
    constexpr u32 TERMS = DENSITIES ? 4 : 3;
    __shared__ double shared[2][8 * TERMS];
    const double min_coefficient = targets[0], min_target = targets[1];
    const double max_coefficient = targets[2], max_target = targets[3];
    const bool has_min = targets[4] != 0.0, has_max = targets[5] != 0.0;
    u32 feature = blockIdx.x * blockDim.x + threadIdx.x;
    double terms[TERMS] = {};
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

        double s = frequency + 1e-10, coefficient = DENSITIES ? targets[7] : 0.0;
        if (has_min && s < min_target) {
            terms[0] = min_coefficient * (log10(min_target) - log10(s));
            coefficient -= min_coefficient;
            terms[2] = 1.0;
        }
        if (has_max && s > max_target) {
            terms[1] = max_coefficient * (log10(s) - log10(max_target));
            coefficient += max_coefficient;
        }
        double slope = coefficient / (2.302585092994045684 * s * rows);
        if (DENSITIES) {
            terms[TERMS - 1] = targets[6] * frequency + targets[7] * log10(s);
            slope += targets[6] / rows;
        }
        slopes[feature] = (float)slope;
    }
    block_sum<8>(terms, shared[0]);
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 n = 0; n < TERMS; n++) partial[TERMS * blockIdx.x + n] = terms[n];
    }
    __shared__ u32 flag;
    if (!last_block(arrived, gridDim.x, &flag)) return;
    double whole[TERMS] = {};
    for (u32 block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
#pragma unroll
        for (u32 n = 0; n < TERMS; n++) whole[n] += partial[TERMS * block + n];
    }
    block_sum<8>(whole, shared[1]);
    if (threadIdx.x != 0) return;
    report->min_sparsity = whole[0];
    report->max_sparsity = whole[1];
    report->below_target = (u32)whole[2];
    report->loss += whole[0] + whole[1];
    if (DENSITIES) {
        report->density = whole[TERMS - 1];
        report->loss += whole[TERMS - 1];
    }
    report->step = scalars->step;
}

// One thread per feature, block 256.
extern "C" __global__ void __launch_bounds__(256)
    window_features(const u32 *__restrict__ counts, const Window *__restrict__ window,
                    const u32 *__restrict__ change_list, u32 *ring, u32 *sums, float *frequencies, float *slopes,
                    u64 *steps_since_fired, double *partial, u32 *arrived, u32 features, u32 rows,
                    const double *__restrict__ targets, const Scalars *__restrict__ scalars, Report *report) {
    if (report->status != RUNNING) return;
    window_of<false>(counts, window, change_list, ring, sums, frequencies, slopes, steps_since_fired, partial,
                               arrived, features, rows, targets, scalars, report);
}

// The same with the terms of the mean density and of the mean logarithmic density: their coefficients over F are targets[6] and
// targets[7], and `partial` is [blocks,4].
extern "C" __global__ void __launch_bounds__(256)
    window_densities(const u32 *__restrict__ counts, const Window *__restrict__ window,
                    const u32 *__restrict__ change_list, u32 *ring, u32 *sums, float *frequencies, float *slopes,
                    u64 *steps_since_fired, double *partial, u32 *arrived, u32 features, u32 rows,
                    const double *__restrict__ targets, const Scalars *__restrict__ scalars, Report *report) {
    if (report->status != RUNNING) return;
    window_of<true>(counts, window, change_list, ring, sums, frequencies, slopes, steps_since_fired, partial,
                               arrived, features, rows, targets, scalars, report);
}

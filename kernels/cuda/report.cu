// report: the sums over a batch's rows, the loss, and whether the step may change anything.
//
// Blocks of 128 threads, a row a thread, at most 32 of them; each leaves its sums in `parts`, and the last to finish adds
// those up. All sums are float64 over a tree that depends on B alone. At B = 4096 a thread's row costs two double square
// roots and seven double divisions, some 300 instructions of 64 units a multiprocessor.
#include "decode.cuh"
#include "last.cuh"
#include "window.cuh"

constexpr u32 SUMS = 9, COUNTS = 4;  // float64 and u64 sums

// sums over results [rows]; column_sum [stride] is Σ_i x_i. `check` is 1 for a training step (a loss that is not finite or
// a row that the MSE cannot divide by refuses it; the batch enters the frequency window otherwise), 0 for an evaluation.
// `parts` [13,32]. Block 128, grid min(⌈B/128⌉, 32).
extern "C" __global__ void __launch_bounds__(128)
    report_rows(const RowResult *__restrict__ results, const float *__restrict__ squared,
                const float *__restrict__ centered, const double *__restrict__ column_sum, double *parts, u32 *arrived,
                u32 rows, u32 width, u32 stride, u32 mse, u32 check, const Scalars *__restrict__ scalars,
                Window *window, double *levels, u32 *summed, u32 *change_list, u32 length, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[4 * SUMS];
    __shared__ u64 counts[4 * COUNTS];
    double sums[SUMS] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    u64 active[COUNTS] = {0, 0, 0, 0};
    const u32 first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (u32 row = first; row < rows; row += step) {
        RowResult result = results[row];
        double error = result.squared_error, norm = sqrt((double)squared[row]), distance = centered[row];
        double reconstructed = sqrt((double)result.squared_norm);
        sums[0] += error;
        sums[8] += distance * distance;
        if (distance > 0.0) {
            active[2]++;
            sums[1] += error / (width * distance);
        }
        sums[3] += squared[row];
        if (norm > 0.0) {
            active[3]++;
            sums[2] += error / (width * norm);
            sums[5] += reconstructed / norm;
            if (reconstructed > 0.0) sums[4] += result.dot / (norm * reconstructed);
        }
        sums[6] += result.l1;
        sums[7] += result.penalty;
        active[0] += result.active;
        active[1] += (u64)result.active * result.active;
    }
    // The distances are those from xbar as float32.
    for (u32 column = first; column < stride; column += step) {
        double mean = column_sum[column] / rows, rounding = mean - (double)(float)mean;
        sums[8] -= rows * rounding * rounding;
    }
    block_sum<4>(sums, shared);
    block_sum<4>(active, counts);
    u64 *count_parts = (u64 *)(parts + SUMS * 32);
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 n = 0; n < SUMS; n++) parts[n * 32 + blockIdx.x] = sums[n];
#pragma unroll
        for (u32 n = 0; n < COUNTS; n++) count_parts[n * 32 + blockIdx.x] = active[n];
    }
    __shared__ u32 flag;
    if (!last_block(arrived, gridDim.x, &flag)) return;

    // A warp for every fourth sum, a lane for each block's part of it.
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31u;
    bool mine = lane < gridDim.x;
    for (u32 n = warp; n < SUMS; n += 4) {
        double sum = warp_sum(mine ? parts[n * 32 + lane] : 0.0);
        if (lane == 0) shared[n] = sum;
    }
    if (warp < COUNTS) {
        u64 count = warp_sum(mine ? count_parts[warp * 32 + lane] : 0ull);
        if (lane == 0) counts[warp] = count;
    }
    __shared__ u32 running;
    __shared__ u64 scan[64];
    __syncthreads();
    if (threadIdx.x == 0) {
        report->squared_error = shared[0];
        report->centered_error = shared[1];
        report->uncentered_error = shared[2];
        report->squared_norm = shared[3];
        report->cosine = shared[4];
        report->norm_ratio = shared[5];
        report->l1 = shared[6];
        report->penalty = shared[7];
        report->deviation = shared[8] > 0.0 ? shared[8] : 0.0;
        report->active = counts[0];
        report->active_squared = counts[1];
        report->rows_off_mean = counts[2];
        report->rows_off_zero = counts[3];
        double error = mse == MSE_CENTERED ? shared[1] : mse == MSE_UNCENTERED ? shared[2] : shared[0];
        double mean_error = error / rows + report->prefixes, penalty_term = scalars->coefficient * shared[7] / rows;
        double loss = mean_error + penalty_term + report->dead;
        report->mse = mean_error;
        report->penalty_term = penalty_term;
        report->loss = loss;
        // The frequency terms, which come later, are finite by their form. All blocks have read the status.
        u32 status = RUNNING;
        if (report->non_finite_row != NO_ROW) {
            report->row = report->non_finite_row;
            status = NON_FINITE_ROW;
        } else if (check && report->zero_row != NO_ROW) {
            report->row = report->zero_row;
            status = ZERO_NORM;
        } else if (check && !is_finite(loss)) {
            status = NON_FINITE_LOSS;
        }
        if (status != RUNNING) report->status = status;
        running = status == RUNNING;
    }
    __syncthreads();
    if (check && running) advance_window(counts[0], window, levels, summed, change_list, length, scan);
}

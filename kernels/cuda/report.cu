// report: the sums over a batch's rows, the loss, and whether the step may change anything.
//
// One block of up to 1024 threads, a whole number of warps; at B = 4096 it reads 130 kB of row results, a few microseconds of latency. All sums are float64
// over a fixed tree.
#include "decode.cuh"

// sums over results [rows]; column_sum [stride] is Σ_i x_i. `check` is 1 for a training step (a loss that is not finite or
// a row that the MSE cannot divide by refuses it), 0 for an evaluation.
extern "C" __global__ void __launch_bounds__(1024)
report_rows(const RowResult *__restrict__ results, const float *__restrict__ squared,
            const float *__restrict__ centered, const double *__restrict__ column_sum, u32 rows, u32 width, u32 stride,
            u32 mse, u32 check, const Scalars *__restrict__ scalars, Report *report) {
    if (report->status != RUNNING) return;
    __shared__ double shared[32 * 9];
    __shared__ u64 counts[32 * 2];
    double sums[9] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    u64 active[2] = {0, 0};
    for (u32 row = threadIdx.x; row < rows; row += blockDim.x) {
        RowResult result = results[row];
        double error = result.squared_error, norm = sqrt((double)squared[row]), distance = centered[row];
        double reconstructed = sqrt((double)result.squared_norm);
        sums[0] += error;
        if (distance > 0.0) sums[1] += error / (width * distance);
        sums[3] += squared[row];
        if (norm > 0.0) {
            sums[2] += error / (width * norm);
            sums[5] += reconstructed / norm;
            if (reconstructed > 0.0) sums[4] += result.dot / (norm * reconstructed);
        }
        sums[6] += result.l1;
        sums[7] += result.penalty;
        active[0] += result.active;
        active[1] += (u64)result.active * result.active;
    }
    for (u32 column = threadIdx.x; column < stride; column += blockDim.x) {
        double mean = column_sum[column] / rows;
        sums[8] += mean * mean;
    }
    block_sum(sums, shared);
    block_sum(active, counts);
    if (threadIdx.x != 0) return;
    report->squared_error = sums[0];
    report->centered_error = sums[1];
    report->uncentered_error = sums[2];
    report->squared_norm = sums[3];
    report->cosine = sums[4];
    report->norm_ratio = sums[5];
    report->l1 = sums[6];
    report->penalty = sums[7];
    report->mean_squared_norm = sums[8];
    report->active = active[0];
    report->active_squared = active[1];
    report->mse = (mse == MSE_CENTERED ? sums[1] : mse == MSE_UNCENTERED ? sums[2] : sums[0]) / rows;
    report->penalty_term = scalars->coefficient * sums[7] / rows;
    report->loss = report->mse + report->penalty_term;
    // The frequency terms, which come later, are finite by their form.
    if (report->non_finite_row != NO_ROW) {
        report->row = report->non_finite_row;
        report->status = NON_FINITE_ROW;
    } else if (check && report->zero_row != NO_ROW) {
        report->row = report->zero_row;
        report->status = ZERO_NORM;
    } else if (check && !is_finite(report->loss)) {
        report->status = NON_FINITE_LOSS;
    }
}

// The end of a step: the frequency terms join the loss, and the step counts as done. `partial` [blocks,2] from
// window_features. One thread.
extern "C" __global__ void finish(const double *__restrict__ partial, u32 blocks, const Scalars *__restrict__ scalars,
                                  Report *report) {
    if (report->status != RUNNING) return;
    double low = 0.0, high = 0.0;
    for (u32 block = 0; block < blocks; block++) {
        low += partial[2 * block];
        high += partial[2 * block + 1];
    }
    report->min_sparsity = low;
    report->max_sparsity = high;
    report->loss += low + high;
    report->step = scalars->step;
}

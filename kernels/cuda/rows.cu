// rows: what is needed of a batch before any weight is looked at.
//
//   sum_k = Σ_i x_ik        xbar = sum / B        ‖x_i‖², ‖x_i - xbar‖
//   input = X, or X - b_dec with the pre-bias; its bfloat16 copy and the row's shares of the screening bound
//
// X [B,stride]. Cost: X read twice (12.6 MB each at B = 4096, d = 768, the second time from L2), its copies written.
// Column sums are formed in float64 over blocks of 64 rows and then over the blocks: the order depends on B alone.
#include "last.cuh"
#include "reduce.cuh"

// out [rows,stride] = in [rows,width], zeros beyond. Only launched where width is no multiple of 64.
extern "C" __global__ void pad_rows(const float *__restrict__ in, float *__restrict__ out, u32 rows, u32 width,
                                    u32 stride) {
    u64 at = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (at >= (u64)rows * stride) return;
    u32 row = (u32)(at / stride), column = (u32)(at % stride);
    out[at] = column < width ? in[(u64)row * width + column] : 0.0f;
}

// partial [⌈rows/64⌉,stride] = the sum of a column of `in` over the block's 64 rows, in their order. 16 rows are under way at
// a time: at 12 blocks of 64 threads for each 64 rows that is what memory needs to be busy.
__device__ __forceinline__ void sum_of_rows(const float *in, double *partial, u32 column, u32 rows, u32 stride) {
    u32 first = blockIdx.y * SUMMED_ROWS, last = min(first + SUMMED_ROWS, rows);
    double sum = 0.0;
#pragma unroll 16
    for (u32 row = first; row < last; row++) sum += in[(u64)row * stride + column];
    partial[(u64)blockIdx.y * stride + column] = sum;
}

// The first kernel of a step: takes the step's scalars from `letter`, in the host's memory (null: they are there), resets the
// report, and forms sum and mean [stride] of the batch. The last block of those that
// share columns adds up their parts. `arrived` [stride/64]. Block 64, grid (stride/64, ⌈rows/64⌉).
extern "C" __global__ void __launch_bounds__(64)
    batch_columns(const Scalars *letter, Scalars *scalars, const float *__restrict__ x, double *partial,
                  double *__restrict__ sum, float *__restrict__ mean, u32 *arrived, u32 rows, u32 stride,
                  Report *report) {
    if (report->status != RUNNING) return;
    __shared__ u32 flag;
    u32 column = blockIdx.x * 64 + threadIdx.x;
    bool first = blockIdx.x == 0 && blockIdx.y == 0;
    // Later kernels read them from the device's memory. The host may have written them since the last kernel that did.
    if (first && letter) copy_words<Scalars>(letter, scalars);
    if (first && threadIdx.x == 0) {
        report->row = NO_ROW;
        report->loss = report->mse = report->penalty_term = report->min_sparsity = report->max_sparsity = 0.0;
        report->candidates = 0;
        report->below_target = 0;
        report->diverged = 0;
        report->non_finite_row = report->zero_row = NO_ROW;
    }
    sum_of_rows(x, partial, column, rows, stride);
    if (!last_block(arrived + blockIdx.x, gridDim.y, &flag)) return;
    double whole = 0.0;
#pragma unroll 16
    for (u32 part = 0; part < gridDim.y; part++) whole += partial[(u64)part * stride + column];
    sum[column] = whole;
    mean[column] = (float)(whole / rows);
}

// The parts of other sums of columns, of gradients: added up by the kernel that uses them. Block 64, grid (stride/64,
// ⌈rows/64⌉).
extern "C" __global__ void __launch_bounds__(64) column_sums(const float *__restrict__ in, double *__restrict__ partial,
                                                             u32 rows, u32 stride, const Report *__restrict__ report) {
    if (report->status != RUNNING) return;
    sum_of_rows(in, partial, blockIdx.x * 64 + threadIdx.x, rows, stride);
}

// One warp per row; blockDim a multiple of 32, grid ⌈rows/(blockDim/32)⌉. `bias` is b_dec with the pre-bias, else null,
// and `input` [rows,stride] is only written then. `squared` and `centered` [rows] are ‖x‖² and ‖x - xbar‖; `length`,
// `row_norm`, `row_residual` [rows] belong to the encoder's input: its norm, that of its bfloat16 copy, and that of the
// difference plus the accumulation's share (with `bounds` 0 the last two are zeros). `zero_check`: 0 none, 1 the MSE
// divides by ‖x - xbar‖, 2 by ‖x‖.
extern "C" __global__ void row_norms(const float *__restrict__ x, const float *__restrict__ mean,
                                     const float *__restrict__ bias, float *__restrict__ input,
                                     bf16 *__restrict__ x_bf16, float *__restrict__ squared,
                                     float *__restrict__ centered, float *__restrict__ length,
                                     float *__restrict__ row_norm, float *__restrict__ row_residual, u32 rows,
                                     u32 stride, u32 bounds, u32 zero_check, Report *report) {
    if (report->status != RUNNING) return;
    u32 row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31u;
    if (row >= rows) return;
    u64 start = (u64)row * stride;
    float sums[5] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    bool finite = true;
    for (u32 column = lane; column < stride; column += 32) {
        float value = x[start + column];
        float distance = value - mean[column];
        finite = finite && is_finite(value);
        float in = value;
        if (bias) {
            in = value - bias[column];
            input[start + column] = in;
        }
        bf16 rounded = float_to_bf16(in);
        x_bf16[start + column] = rounded;
        float half = bf16_to_float(rounded), rest = in - half;
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(distance, distance, sums[1]);
        sums[2] = fmaf(in, in, sums[2]);
        sums[3] = fmaf(half, half, sums[3]);
        sums[4] = fmaf(rest, rest, sums[4]);
    }
#pragma unroll
    for (int n = 0; n < 5; n++) sums[n] = warp_sum(sums[n]);
    finite = __all_sync(0xffffffffu, finite);
    if (lane != 0) return;
    float norm = norm_above(sums[2], stride);
    squared[row] = sums[0];
    centered[row] = sqrtf(sums[1]);
    length[row] = norm;
    row_norm[row] = bounds ? norm_above(sums[3], stride) : 0.0f;
    row_residual[row] = bounds ? norm_above(sums[4], stride) + rounding(stride) * norm : 0.0f;
    // The smallest of row numbers does not depend on the order in which they arrive.
    if (!finite) atomicMin(&report->non_finite_row, row);
    if ((zero_check == 1 && sums[1] == 0.0f) || (zero_check == 2 && sums[0] == 0.0f)) {
        atomicMin(&report->zero_row, row);
    }
}

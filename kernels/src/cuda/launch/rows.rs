//! `rows.cu`: what is needed of a batch before any weight is looked at.

use super::parameter::{bytes, doubles, flag, floats, halves, kind, number, u32s};
use super::{COLUMNS, REPORT_BYTES, SCALARS_BYTES, SUMMED_ROWS, Slice, launch, stride_of};
use crate::cuda::device::Device;
use crate::cuda::layout::mse_kind;
use crate::error::DeviceError;
use crate::loss::Mse;

/// Threads of a block of `row_norms`, a warp for each row.
const NORM_THREADS: usize = 256;

/// The grid of the kernels that sum over the rows of a matrix.
fn column_grid(rows: usize, stride: usize) -> (usize, usize) {
    (stride / COLUMNS, rows.div_ceil(SUMMED_ROWS))
}

/// Numbers in the parts of such sums.
fn column_parts(rows: usize, stride: usize) -> usize {
    rows.div_ceil(SUMMED_ROWS) * stride
}

/// `pad_rows`: a batch with its rows padded with zeros.
#[derive(Debug)]
pub struct PadRows<'a, B> {
    /// [B,d].
    pub from: &'a B,
    /// [B,stride], written.
    pub out: &'a B,
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
}

impl<B> PadRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, width, stride) = (self.rows, self.width, stride_of(self.width));
        let parameters = [
            floats("in", self.from, rows * width),
            floats("out", self.out, rows * stride),
            number("rows", rows),
            number("width", width),
            number("stride", stride),
        ];
        launch(device, ("rows", "pad_rows"), ((rows * stride).div_ceil(256), 1), 256, &parameters)
    }
}

/// `batch_columns`, the first kernel of a step: takes the step's scalars, resets the report, and forms the batch's sum and
/// mean.
#[derive(Debug)]
pub struct BatchColumns<'a, B> {
    /// The step's `Scalars` in the host's memory; none where they are in `scalars` already.
    pub letter: Option<&'a B>,
    /// `Scalars`, written if there is a letter.
    pub scalars: &'a B,
    /// The batch, [B,stride].
    pub x: &'a B,
    /// Sums over 64 rows, float64 [⌈B/64⌉,stride], written.
    pub partial: &'a B,
    /// Σ_i x_i, float64 [stride], written.
    pub sum: &'a B,
    /// The same divided by B, [stride], written.
    pub mean: &'a B,
    /// Counters of blocks, u32 [stride/64]: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`, reset.
    pub report: &'a B,
}

impl<B> BatchColumns<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride) = (self.rows, self.stride);
        let parameters = [
            bytes("letter", self.letter, SCALARS_BYTES),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            floats("x", self.x, rows * stride),
            doubles("partial", self.partial, column_parts(rows, stride)),
            doubles("sum", self.sum, stride),
            floats("mean", self.mean, stride),
            u32s("arrived", self.arrived, stride / COLUMNS),
            number("rows", rows),
            number("stride", stride),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("rows", "batch_columns"), column_grid(rows, stride), COLUMNS, &parameters)
    }
}

/// `column_sums`: sums over 64 rows of each column of a matrix.
#[derive(Debug)]
pub struct ColumnSums<'a, B> {
    /// [rows,stride].
    pub matrix: &'a B,
    /// float64 [⌈rows/64⌉,stride], written.
    pub partial: &'a B,
    /// Rows of the matrix.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ColumnSums<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride) = (self.rows, self.stride);
        let parameters = [
            floats("in", self.matrix, rows * stride),
            doubles("partial", self.partial, column_parts(rows, stride)),
            number("rows", rows),
            number("stride", stride),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("rows", "column_sums"), column_grid(rows, stride), COLUMNS, &parameters)
    }
}

/// The encoder's input where b_dec is taken off the batch first.
#[derive(Debug)]
pub struct ShiftedInput<'a, B> {
    /// b_dec, [stride].
    pub bias: Slice<'a, B>,
    /// X − b_dec, [B,stride], written.
    pub input: &'a B,
}

/// `row_norms`: norms of the batch's rows, the encoder's input in bfloat16, and its part of the screen's bound.
#[derive(Debug)]
pub struct RowNorms<'a, B> {
    /// The batch, [B,stride].
    pub x: &'a B,
    /// Its mean, [stride].
    pub mean: &'a B,
    /// With the pre-bias; otherwise the encoder's input is the batch.
    pub shifted: Option<ShiftedInput<'a, B>>,
    /// The encoder's input, bf16 [B,stride], written.
    pub x_bf16: &'a B,
    /// ‖x_i‖², [B], written.
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B], written.
    pub centered: &'a B,
    /// The norm of the encoder's input, rounded up, [B], written.
    pub length: &'a B,
    /// That of its bfloat16 copy, [B], written.
    pub row_norm: &'a B,
    /// That of the difference plus the accumulation's bound, [B], written.
    pub row_residual: &'a B,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// Whether `row_norm` and `row_residual` are wanted; otherwise they are zeros.
    pub bounds: bool,
    /// The MSE whose denominators must not be 0; that of [`Mse::Sum`] never is.
    pub zero_check: Mse,
    /// `Report`: the first rows that are not finite and whose norm is 0 are entered.
    pub report: &'a B,
}

impl<B> RowNorms<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride) = (self.rows, self.stride);
        let parameters = [
            floats("x", self.x, rows * stride),
            floats("mean", self.mean, stride),
            floats("bias", self.shifted.as_ref().map(|shifted| shifted.bias), stride),
            floats("input", self.shifted.as_ref().map(|shifted| shifted.input), rows * stride),
            halves("x_bf16", self.x_bf16, rows * stride),
            floats("squared", self.squared, rows),
            floats("centered", self.centered, rows),
            floats("length", self.length, rows),
            floats("row_norm", self.row_norm, rows),
            floats("row_residual", self.row_residual, rows),
            number("rows", rows),
            number("stride", stride),
            flag("bounds", self.bounds),
            // The kernel counts them as the other kernels do.
            kind("zero_check", mse_kind(self.zero_check)),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let grid = (rows.div_ceil(NORM_THREADS / 32), 1);
        launch(device, ("rows", "row_norms"), grid, NORM_THREADS, &parameters)
    }
}

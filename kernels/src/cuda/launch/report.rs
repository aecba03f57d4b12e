//! `report.cu`: the sums over a batch's rows, the loss, and whether the step may change anything.

use super::parameter::{bytes, doubles, flag, floats, kind, number, u32s};
use super::{REPORT_BYTES, SCALARS_BYTES, Slice, launch, stride_of};
use crate::cuda::device::Device;
use crate::cuda::layout::{ROW_RESULT_BYTES, Window, mse_kind};
use crate::error::DeviceError;
use crate::loss::Mse;

/// Threads of a block, and the most blocks.
const THREADS: usize = 128;
const MOST_BLOCKS: usize = 32;

/// Numbers in [`ReportRows::parts`]: 13 sums of each block.
pub const REPORT_PARTS: usize = 13 * MOST_BLOCKS;

/// `report_rows`.
#[derive(Debug)]
pub struct ReportRows<'a, B> {
    /// `RowResult` [B].
    pub results: &'a B,
    /// ‖x_i‖², [B].
    pub squared: &'a B,
    /// ‖x_i − x̄‖, [B].
    pub centered: &'a B,
    /// Σ_i x_i, float64 [stride].
    pub column_sum: &'a B,
    /// The blocks' sums, float64 and u64 [`REPORT_PARTS`], written.
    pub parts: &'a B,
    /// A counter of blocks, u32: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// B.
    pub rows: usize,
    /// d.
    pub width: usize,
    /// The MSE that the loss is of.
    pub mse: Mse,
    /// Whether this is a training step: a loss that is not finite or a row that the MSE cannot divide by refuses it, and
    /// otherwise the batch enters the frequency window.
    pub training: bool,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Window`.
    pub window: &'a B,
    /// log10 of the total of each line of the window, float64 [n].
    pub levels: &'a B,
    /// Whether a line is in the sums, u32 [n].
    pub summed: &'a B,
    /// The lines that enter or leave the sums, u32 [n], written.
    pub change_list: &'a B,
    /// n: batches in the window.
    pub window_length: usize,
    /// `Report`, written.
    pub report: &'a B,
}

impl<B> ReportRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, stride, length) = (self.rows, stride_of(self.width), self.window_length);
        let parameters = [
            bytes("results", self.results, rows * ROW_RESULT_BYTES),
            floats("squared", self.squared, rows),
            floats("centered", self.centered, rows),
            doubles("column_sum", self.column_sum, stride),
            doubles("parts", self.parts, REPORT_PARTS),
            u32s("arrived", self.arrived, 1),
            number("rows", rows),
            number("width", self.width),
            number("stride", stride),
            kind("mse", mse_kind(self.mse)),
            flag("check", self.training),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("window", self.window, size_of::<Window>()),
            doubles("levels", self.levels, length),
            u32s("summed", self.summed, length),
            u32s("change_list", self.change_list, length),
            number("length", length),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let blocks = rows.div_ceil(THREADS).min(MOST_BLOCKS);
        launch(device, ("report", "report_rows"), (blocks, 1), THREADS, &parameters)
    }
}

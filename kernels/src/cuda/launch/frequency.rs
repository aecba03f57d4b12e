//! `frequency.cu`: the running frequencies of the features, and what follows from them.

use super::parameter::{bytes, doubles, floats, number, u32s, u64s};
use super::{REPORT_BYTES, SCALARS_BYTES, Slice, launch};
use crate::cuda::device::Device;
use crate::cuda::layout::Window;
use crate::error::DeviceError;

/// Features of a block, a thread each.
const FEATURES: usize = 256;

/// Blocks of `window_features`.
fn blocks(features: usize) -> usize {
    features.div_ceil(FEATURES)
}

/// Numbers in [`WindowFeatures::partial`]: up to four of each block.
pub fn frequency_parts(features: usize) -> usize {
    4 * blocks(features)
}

/// Numbers in [`WindowFeatures::targets`].
pub const FREQUENCY_TARGETS: usize = 8;

/// `window_features`: also ends the step's report. After `report_rows` has decided which batches count.
#[derive(Debug)]
pub struct WindowFeatures<'a, B> {
    /// In how many rows of the batch each feature is active, u32 [F].
    pub counts: &'a B,
    /// `Window`.
    pub window: &'a B,
    /// The lines that enter or leave the sums, u32 [n].
    pub change_list: &'a B,
    /// The counts of the last n batches, u32 [n,F]; the batch's replaces a line.
    pub ring: &'a B,
    /// Sums of the lines that count, u32 [F], updated.
    pub sums: &'a B,
    /// s_j, [F], written.
    pub frequencies: &'a B,
    /// The frequency terms' derivatives by a feature's activity, [F], written.
    pub slopes: &'a B,
    /// u64 [F], updated.
    pub steps_since_fired: &'a B,
    /// The blocks' parts of the frequency terms, float64 [`frequency_parts`], written.
    pub partial: &'a B,
    /// A counter of blocks, u32: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// n: batches in the window.
    pub window_length: usize,
    /// Coefficient and target of min- and of max-sparsity, then 1 or 0 for each: whether there is such a term; then the
    /// coefficients of the mean density and of the mean logarithmic density, over F; float64 [`FREQUENCY_TARGETS`].
    pub targets: &'a B,
    /// Whether there are terms of mean densities.
    pub densities: bool,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> WindowFeatures<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, length) = (self.features, self.window_length);
        let parameters = [
            u32s("counts", self.counts, features),
            bytes("window", self.window, size_of::<Window>()),
            u32s("change_list", self.change_list, length),
            u32s("ring", self.ring, length * features),
            u32s("sums", self.sums, features),
            floats("frequencies", self.frequencies, features),
            floats("slopes", self.slopes, features),
            u64s("steps_since_fired", self.steps_since_fired, features),
            doubles("partial", self.partial, frequency_parts(features)),
            u32s("arrived", self.arrived, 1),
            number("features", features),
            number("rows", self.rows),
            doubles("targets", self.targets, FREQUENCY_TARGETS),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let kernel = if self.densities { "window_densities" } else { "window_features" };
        launch(device, ("frequency", kernel), (blocks(features), 1), FEATURES, &parameters)
    }
}

//! `select_batch.cu`: the largest z of a batch.

use super::parameter::{bytes, floats, long_number, number, real, u32s, u64s};
use super::{BATCH_CUT_BYTES, REPORT_BYTES, Slice, dense_line, launch, mask_words};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// Numbers in [`CountBatch::histogram`]: [2,2048].
pub const HISTOGRAM: usize = 2 * 2048;
/// Digits of a number, the turns of a search.
pub const TURNS: usize = 3;
/// Most blocks of a turn: each leaves its counts in the histogram.
const COUNTING_BLOCKS: usize = 1024;

/// z of a batch, of which some are the largest.
#[derive(Debug)]
pub struct BatchZ<'a, B> {
    /// [B,line].
    pub z: &'a B,
    /// b_enc [F], where z is without it.
    pub encoder_bias: Option<Slice<'a, B>>,
    /// How many are wanted.
    pub count: usize,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
}

impl<B> Clone for BatchZ<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for BatchZ<'_, B> {}

/// How far z may be from those of the definition.
#[derive(Debug)]
pub struct Rough<'a, B> {
    /// The norms of the encoder's input, rounded up, [B].
    pub length: &'a B,
    /// As [`LargestNorms`](super::select::LargestNorms) leaves it, [2].
    pub largest: &'a B,
    /// Numbers in a row of the encoder's input.
    pub stride: usize,
    /// The distance at most, relative to the product of the norms; 0 if z decide as they are.
    pub roughness: f32,
}

impl<B> Clone for Rough<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Rough<'_, B> {}

/// `count_batch`: a turn of the search for the limits.
#[derive(Debug)]
pub struct CountBatch<'a, B> {
    /// What is searched.
    pub batch: BatchZ<'a, B>,
    /// How rough it is.
    pub rough: Rough<'a, B>,
    /// u64 [2,2048]; zeros before and afterwards.
    pub histogram: &'a B,
    /// `BatchCut`, from turn to turn.
    pub cut: &'a B,
    /// u32 [F+1]; zeros after the last turn.
    pub tie_starts: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
    /// Which turn, below [`TURNS`].
    pub turn: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> CountBatch<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let BatchZ { z, encoder_bias, count, features, rows } = self.batch;
        let Rough { length, largest, stride, roughness } = self.rough;
        let line = dense_line(features);
        let parameters = [
            floats("z", z, rows * line),
            floats("encoder_bias", encoder_bias, features),
            floats("length", length, rows),
            floats("largest", largest, 2),
            u64s("histogram", self.histogram, HISTOGRAM),
            bytes("cut", self.cut, BATCH_CUT_BYTES),
            u32s("tie_starts", self.tie_starts, features + 1),
            u32s("arrived", self.arrived, 1),
            long_number("count", count),
            number("turn", self.turn),
            number("features", features),
            number("rows", rows),
            number("stride", stride),
            number("line", line),
            real("roughness", roughness),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("select_batch", "count_batch"), (rows.min(COUNTING_BLOCKS), 1), 256, &parameters)
    }
}

/// `settle_doubts`: z of which every comparison with the limit is the definition's.
#[derive(Debug)]
pub struct SettleDoubts<'a, B> {
    /// z without its bias; what this leaves in its place has it.
    pub z: &'a B,
    /// The encoder's input, [B,stride].
    pub x: &'a B,
    /// W_enc transposed, [F,stride].
    pub encoder: Slice<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// How rough z is.
    pub rough: Rough<'a, B>,
    /// `BatchCut`.
    pub cut: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> SettleDoubts<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features) = (self.rows, self.features);
        let Rough { length, largest, stride, roughness } = self.rough;
        let line = dense_line(features);
        let parameters = [
            floats("z", self.z, rows * line),
            floats("x", self.x, rows * stride),
            floats("encoder", self.encoder, features * stride),
            floats("encoder_bias", self.encoder_bias, features),
            floats("length", length, rows),
            floats("largest", largest, 2),
            bytes("cut", self.cut, BATCH_CUT_BYTES),
            number("features", features),
            number("stride", stride),
            number("line", line),
            real("roughness", roughness),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("select_batch", "settle_doubts"), (rows, 1), 256, &parameters)
    }
}

/// `mark_batch`, then `keep_ties`: the mask of the largest.
#[derive(Debug)]
pub struct MarkBatch<'a, B> {
    /// What was searched.
    pub batch: BatchZ<'a, B>,
    /// `BatchCut`.
    pub cut: &'a B,
    /// u32 [F,words], written.
    pub mask: &'a B,
    /// u32 [F+1]; zeros before.
    pub tie_starts: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
    /// `Report`.
    pub report: &'a B,
}

impl<B> MarkBatch<'_, B> {
    /// Queues the kernels.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let BatchZ { z, encoder_bias, count, features, rows } = self.batch;
        let (line, words) = (dense_line(features), mask_words(rows));
        let of_z =
            || [floats("z", z, rows * line), floats("encoder_bias", encoder_bias, features)].into_iter();
        let sizes = || {
            [
                long_number("count", count),
                number("features", features),
                number("rows", rows),
                number("line", line),
                number("words", words),
                bytes("report", self.report, REPORT_BYTES),
            ]
        };
        let cut = || bytes("cut", self.cut, BATCH_CUT_BYTES);
        let (mask, ties) = (
            || u32s("mask", self.mask, features * words),
            || u32s("tie_starts", self.tie_starts, features + 1),
        );
        let of_mark = [cut(), mask(), ties(), u32s("arrived", self.arrived, 1)];
        let parameters: Vec<_> = of_z().chain(of_mark).chain(sizes()).collect();
        let grid = (features.div_ceil(256), words);
        launch(device, ("select_batch", "mark_batch"), grid, 256, &parameters)?;
        let parameters: Vec<_> = of_z().chain([cut(), ties(), mask()]).chain(sizes()).collect();
        launch(device, ("select_batch", "keep_ties"), (features.div_ceil(8), 1), 256, &parameters)
    }
}

/// `smallest_kept`: the smallest activation of a batch.
#[derive(Debug)]
pub struct SmallestKept<'a, B> {
    /// Where rows begin in the list, u32 [B+1].
    pub starts: &'a B,
    /// How many pairs of each row are active, u32 [B].
    pub row_active: &'a B,
    /// Their activations, [capacity].
    pub row_values: &'a B,
    /// `BatchCut`.
    pub cut: &'a B,
    /// A counter that is 0 between kernels.
    pub arrived: Slice<'a, B>,
    /// B.
    pub rows: usize,
    /// Pairs that the list holds.
    pub capacity: usize,
    /// `Report`, whose `smallest` is written.
    pub report: &'a B,
}

impl<B> SmallestKept<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let rows = self.rows;
        let parameters = [
            u32s("starts", self.starts, rows + 1),
            u32s("row_active", self.row_active, rows),
            floats("row_values", self.row_values, self.capacity),
            bytes("cut", self.cut, BATCH_CUT_BYTES),
            u32s("arrived", self.arrived, 1),
            number("rows", rows),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("select_batch", "smallest_kept"), (rows.div_ceil(8), 1), 256, &parameters)
    }
}

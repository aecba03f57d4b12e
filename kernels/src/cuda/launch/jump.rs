//! `jump.cu` and `jump_dense.cu`: what JumpReLU's kernels take besides what those of the same names take, which are launched from
//! the same structs; and those that it has alone.

use super::parameter::{Parameter, bytes, flag, floats, kind, number, real, u32s};
use super::{REPORT_BYTES, SCALARS_BYTES, launch, mask_words};
use crate::cuda::device::Device;
use crate::cuda::layout::{ROW_RESULT_BYTES, penalty_kind};
use crate::error::DeviceError;
use crate::loss::Penalty;

/// The features' thresholds.
#[derive(Debug)]
pub struct Thresholds<'a, B> {
    /// θ, its first and its second moments, [3,F].
    pub numbers: &'a B,
    /// w, the width of the rectangle that stands for the derivative at θ.
    pub bandwidth: f32,
}

impl<B> Clone for Thresholds<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Thresholds<'_, B> {}

impl<'a, B> Thresholds<'a, B> {
    pub(super) fn parameters(&self, features: usize) -> [Parameter<'a, B>; 2] {
        Thresholds::or_none(Some(self), features)
    }

    /// Null and 0 without thresholds.
    pub(super) fn or_none(thresholds: Option<&Self>, features: usize) -> [Parameter<'a, B>; 2] {
        let numbers = thresholds.map(|thresholds| thresholds.numbers);
        let bandwidth = thresholds.map_or(0.0, |thresholds| thresholds.bandwidth);
        [floats("thresholds", numbers, 3 * features), real("bandwidth", bandwidth)]
    }
}

/// Pairs that are not active, but near their threshold, row by row. The rows' lists begin where those of the candidates do.
#[derive(Debug)]
pub struct NearPairs<'a, B> {
    /// Their features, u32 [capacity].
    pub features: &'a B,
    /// Their z, [capacity].
    pub values: &'a B,
    /// How many each row has, u32 [B].
    pub of_row: &'a B,
}

impl<B> Clone for NearPairs<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for NearPairs<'_, B> {}

impl<'a, B> NearPairs<'a, B> {
    pub(super) fn parameters(&self, rows: usize, capacity: usize) -> [Parameter<'a, B>; 3] {
        [
            u32s("near_features", self.features, capacity),
            floats("near_values", self.values, capacity),
            u32s("row_near", self.of_row, rows),
        ]
    }
}

/// The thresholds' pseudo-derivatives.
#[derive(Debug)]
pub struct Pseudo<'a, B> {
    /// The thresholds.
    pub thresholds: Thresholds<'a, B>,
    /// Whether the pseudo-derivatives are part of dL/dz.
    pub to_input: bool,
    /// `RowResult` [B], which says how many features are active in each row.
    pub results: &'a B,
}

impl<B> Clone for Pseudo<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Pseudo<'_, B> {}

impl<'a, B> Pseudo<'a, B> {
    pub(super) fn parameters(&self, rows: usize, features: usize) -> [Parameter<'a, B>; 4] {
        let [thresholds, bandwidth] = self.thresholds.parameters(features);
        let to_input = flag("to_input", self.to_input);
        [thresholds, bandwidth, to_input, bytes("results", self.results, rows * ROW_RESULT_BYTES)]
    }
}

/// `penalty_of_count`: a penalty on the number of a row's active features into its result.
#[derive(Debug)]
pub struct PenaltyOfCount<'a, B> {
    /// `RowResult` [B], updated.
    pub results: &'a B,
    /// B.
    pub rows: usize,
    /// The penalty; its numbers are the scalars'.
    pub penalty: Penalty,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> PenaltyOfCount<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let parameters = [
            bytes("results", self.results, self.rows * ROW_RESULT_BYTES),
            number("rows", self.rows),
            kind("kind", penalty_kind(self.penalty)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("jump", "penalty_of_count"), (self.rows.div_ceil(256), 1), 256, &parameters)
    }
}

/// `mark_near`: adds the near pairs to the mask of the active ones.
#[derive(Debug)]
pub struct MarkNear<'a, B> {
    /// Where rows begin in the lists, u32 [B+1].
    pub starts: &'a B,
    /// The near pairs.
    pub near: NearPairs<'a, B>,
    /// u32 [F,words], updated.
    pub mask: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> MarkNear<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let words = mask_words(self.rows);
        let parameters = [
            u32s("starts", self.starts, self.rows + 1),
            u32s("row_near", self.near.of_row, self.rows),
            u32s("near_features", self.near.features, self.capacity),
            u32s("mask", self.mask, self.features * words),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("jump", "mark_near"), (self.rows, 1), 128, &parameters)
    }
}

//! `select.cu`: the k largest z of each row.

use super::parameter::{bytes, floats, number, real, u32s};
use super::{REPORT_BYTES, Slice, dense_line, launch, mask_words, row_mask_words};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// `largest_norms`: the largest ‖w_j‖ and |b_j|.
#[derive(Debug)]
pub struct LargestNorms<'a, B> {
    /// ‖w_j‖, rounded up, [F].
    pub feature_norm: &'a B,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// [2], written.
    pub largest: &'a B,
    /// F.
    pub features: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> LargestNorms<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let parameters = [
            floats("feature_norm", self.feature_norm, self.features),
            floats("encoder_bias", self.encoder_bias, self.features),
            floats("largest", self.largest, 2),
            number("features", self.features),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("select", "largest_norms"), (1, 1), 1024, &parameters)
    }
}

/// `select_rows`: the rows' lists of their k largest z.
#[derive(Debug)]
pub struct SelectRows<'a, B> {
    /// z without its bias, [B,line]; memory of the kernel afterwards.
    pub z: &'a B,
    /// The encoder's input, [B,stride].
    pub x: &'a B,
    /// W_enc transposed, [F,stride].
    pub encoder: Slice<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// The norms of the encoder's input, rounded up, [B].
    pub length: &'a B,
    /// As [`LargestNorms`] leaves it, [2].
    pub largest: &'a B,
    /// Where rows begin in the list, u32 [B+1], written.
    pub starts: &'a B,
    /// The features in the rows' lists, u32 [k·B], written.
    pub pair_features: &'a B,
    /// u32 [B,row_words], written.
    pub row_mask: &'a B,
    /// k.
    pub k: usize,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// How far z is from that of the definition at most, relative to the product of the norms; 0 if it decides as it is.
    pub roughness: f32,
    /// `Report`.
    pub report: &'a B,
}

impl<B> SelectRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, self.stride);
        let (line, row_words) = (dense_line(features), row_mask_words(features));
        let parameters = [
            floats("z", self.z, rows * line),
            floats("x", self.x, rows * stride),
            floats("encoder", self.encoder, features * stride),
            floats("encoder_bias", self.encoder_bias, features),
            floats("length", self.length, rows),
            floats("largest", self.largest, 2),
            u32s("starts", self.starts, rows + 1),
            u32s("pair_features", self.pair_features, rows * self.k),
            u32s("row_mask", self.row_mask, rows * row_words),
            number("k", self.k),
            number("features", features),
            number("rows", rows),
            number("stride", stride),
            number("line", line),
            number("row_words", row_words),
            real("roughness", self.roughness),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("select", "select_rows"), (rows, 1), 256, &parameters)
    }
}

/// `transpose_mask` of `lists.cu` the other way: the mask with a line for each feature.
#[derive(Debug)]
pub struct MaskOfRows<'a, B> {
    /// u32 [B,row_words].
    pub row_mask: &'a B,
    /// u32 [F,words], written.
    pub mask: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> MaskOfRows<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows) = (self.features, self.rows);
        let (words, row_words) = (mask_words(rows), row_mask_words(features));
        // What the kernel calls features are rows here.
        let parameters = [
            u32s("mask", self.row_mask, rows * row_words),
            u32s("row_mask", self.mask, features * words),
            number("features", rows),
            number("rows", features),
            number("words", row_words),
            number("row_words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let grid = (row_words.div_ceil(8), rows.div_ceil(256));
        launch(device, ("lists", "transpose_mask"), grid, 256, &parameters)
    }
}

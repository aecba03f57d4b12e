//! `rank.cu`: features ranked by z·‖W_dec_j‖.

use super::parameter::{bytes, floats, number, u32s};
use super::{REPORT_BYTES, Slice, launch, walk_threads};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// `rank_encoder`: an encoder whose z are the numbers that features are ranked by.
#[derive(Debug)]
pub struct RankEncoder<'a, B> {
    /// W_enc transposed, [F,stride].
    pub encoder: Slice<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// ‖w_j‖, rounded up, [F].
    pub feature_norm: &'a B,
    /// ‖W_dec_j‖, [F].
    pub decoder_norm: &'a B,
    /// [F,stride], written.
    pub ranked: &'a B,
    /// [F], written.
    pub ranked_bias: &'a B,
    /// The norms of `ranked`, rounded up, [F], written.
    pub ranked_norm: &'a B,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> RankEncoder<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, stride) = (self.features, self.stride);
        let parameters = [
            floats("encoder", self.encoder, features * stride),
            floats("encoder_bias", self.encoder_bias, features),
            floats("feature_norm", self.feature_norm, features),
            floats("decoder_norm", self.decoder_norm, features),
            floats("ranked", self.ranked, features * stride),
            floats("ranked_bias", self.ranked_bias, features),
            floats("ranked_norm", self.ranked_norm, features),
            number("stride", stride),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("rank", "rank_encoder"), (features, 1), walk_threads(stride), &parameters)
    }
}

/// `divide_by_norms`: activations from the numbers that features are ranked by.
#[derive(Debug)]
pub struct DivideByNorms<'a, B> {
    /// Where rows begin in the list, u32 [B+1].
    pub starts: &'a B,
    /// Active pairs of each row, u32 [B].
    pub row_active: &'a B,
    /// The features in the rows' lists, u32 [capacity].
    pub pair_features: &'a B,
    /// z·‖W_dec_j‖, then z, [capacity].
    pub row_values: &'a B,
    /// ‖W_dec_j‖, [F].
    pub decoder_norm: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
}

impl<B> DivideByNorms<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let rows = self.rows;
        let parameters = [
            u32s("starts", self.starts, rows + 1),
            u32s("row_active", self.row_active, rows),
            u32s("pair_features", self.pair_features, self.capacity),
            floats("row_values", self.row_values, self.capacity),
            floats("decoder_norm", self.decoder_norm, self.features),
            number("rows", rows),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("rank", "divide_by_norms"), (rows.div_ceil(8), 1), 256, &parameters)
    }
}

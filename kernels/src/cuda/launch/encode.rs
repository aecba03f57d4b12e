//! `encode.cu`: which pairs are active, in float32.

use super::jump::Thresholds;
use super::parameter::{bytes, floats, number, u32s};
use super::{REPORT_BYTES, Slice, launch, mask_words};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// Rows and features of a block, and its threads.
const TILE: usize = 64;
const THREADS: usize = 128;

/// `encode`: the mask of the pairs with z > 0.
#[derive(Debug)]
pub struct Encode<'a, B> {
    /// W_enc transposed, [F,stride].
    pub encoder: Slice<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// The encoder's input, [B,stride].
    pub x: &'a B,
    /// u32 [F,words], written.
    pub mask: &'a B,
    /// F.
    pub features: usize,
    /// B.
    pub rows: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Report`.
    pub report: &'a B,
    /// JumpReLU's thresholds: the mask is that of the active and the near pairs then.
    pub thresholds: Option<Thresholds<'a, B>>,
}

impl<B> Encode<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, rows, stride) = (self.features, self.rows, self.stride);
        let words = mask_words(rows);
        let mut parameters = vec![
            floats("encoder", self.encoder, features * stride),
            floats("encoder_bias", self.encoder_bias, features),
            floats("x", self.x, rows * stride),
            u32s("mask", self.mask, features * words),
            number("features", features),
            number("rows", rows),
            number("stride", stride),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        parameters.extend(self.thresholds.iter().flat_map(|thresholds| thresholds.parameters(features)));
        let kernel = if self.thresholds.is_some() { ("jump", "encode_jump") } else { ("encode", "encode") };
        // Two words are 64 rows.
        let grid = (words.div_ceil(TILE / 32), features.div_ceil(TILE));
        launch(device, kernel, grid, THREADS, &parameters)
    }
}

//! `recheck.cu`: the activations of the candidates, and which of them are active.

use super::jump::{NearPairs, Thresholds};
use super::parameter::{Parameter, bytes, floats, halves, number, u32s};
use super::{REPORT_BYTES, Slice, launch, mask_words};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// What products are formed of.
#[derive(Debug)]
pub enum Operands<'a, B> {
    /// Of float32 numbers, in the order of the definition where the order decides.
    Float32 {
        /// The encoder's input, [B,stride].
        x: &'a B,
        /// W_enc transposed, [F,stride].
        encoder: Slice<'a, B>,
        /// The norms of the encoder's input, rounded up, [B].
        length: &'a B,
        /// ‖w_j‖, rounded up, [F].
        feature_norm: &'a B,
    },
    /// Of their bfloat16 copies, in whatever order.
    Bf16 {
        /// bf16 [B,stride].
        x: &'a B,
        /// bf16 [F,stride].
        encoder: &'a B,
    },
}

/// `recheck` and `recheck_bf16`: leaves the active pairs in the rows' lists and in the mask.
#[derive(Debug)]
pub struct Recheck<'a, B> {
    /// The factors of z.
    pub operands: Operands<'a, B>,
    /// b_enc, [F].
    pub encoder_bias: Slice<'a, B>,
    /// Where rows begin in the list, u32 [B+1].
    pub starts: &'a B,
    /// The features in the rows' lists, u32 [capacity], compacted row by row.
    pub pair_features: &'a B,
    /// The activations of those left, [capacity], written.
    pub row_values: &'a B,
    /// How many are left of each row, u32 [B], written.
    pub row_active: &'a B,
    /// u32 [F,words]: the bits of the others are cleared.
    pub mask: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// `Report`.
    pub report: &'a B,
    /// JumpReLU's thresholds, and the near pairs, written.
    pub jump: Option<(Thresholds<'a, B>, NearPairs<'a, B>)>,
}

impl<B> Recheck<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, self.stride);
        let words = mask_words(rows);
        let bias = floats("encoder_bias", self.encoder_bias, features);
        let ([plain, jump], operands): (_, Vec<Parameter<'_, B>>) = match self.operands {
            Operands::Float32 { x, encoder, length, feature_norm } => {
                let (x, encoder) =
                    (floats("x", x, rows * stride), floats("encoder", encoder, features * stride));
                let norms = [floats("length", length, rows), floats("feature_norm", feature_norm, features)];
                (["recheck", "recheck_jump"], [x, encoder, bias].into_iter().chain(norms).collect())
            }
            Operands::Bf16 { x, encoder } => {
                let (x, encoder) =
                    (halves("x", x, rows * stride), halves("encoder", encoder, features * stride));
                (["recheck_bf16", "recheck_jump_bf16"], vec![x, encoder, bias])
            }
        };
        let lists = [
            u32s("starts", self.starts, rows + 1),
            u32s("pair_features", self.pair_features, self.capacity),
            floats("row_values", self.row_values, self.capacity),
            u32s("row_active", self.row_active, rows),
            u32s("mask", self.mask, features * words),
            number("stride", stride),
            number("words", words),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let mut parameters: Vec<_> = operands.into_iter().chain(lists).collect();
        let Some((thresholds, near)) = &self.jump else {
            return launch(device, ("recheck", plain), (rows, 1), 128, &parameters);
        };
        parameters.extend(thresholds.parameters(features));
        parameters.extend(near.parameters(rows, self.capacity));
        launch(device, ("jump", jump), (rows, 1), 128, &parameters)
    }
}

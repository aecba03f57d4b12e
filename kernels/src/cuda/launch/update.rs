//! `update.cu`: what the optimizer does outside of the sparse path.

use super::jump::Thresholds;
use super::parameter::{Parameter, bytes, doubles, flag, floats, halves, kind, number, u32s};
use super::{
    CLIP_BYTES, FEATURES_OF_BLOCK, REPORT_BYTES, RowBlock, SCALARS_BYTES, SLOPE_ROWS, SUMMED_ROWS, Slice,
    launch, parameters_length,
};
use super::{COLUMNS, dense::slope_parts};
use crate::cuda::device::Device;
use crate::cuda::layout::norm_kind;
use crate::error::DeviceError;
use crate::spec::DecoderNorm;

/// Blocks of the kernels that update features, each with a line of the pre-bias' gradient.
pub(crate) fn update_blocks(features: usize) -> usize {
    features.div_ceil(FEATURES_OF_BLOCK)
}

/// The arrays that follow from the weights: what the next step's encode and decode want of them.
#[derive(Debug)]
pub struct Derived<'a, B> {
    /// W_enc transposed, bf16 [F,stride], if it is wanted.
    pub encoder_bf16: Option<&'a B>,
    /// W_dec, bf16 [F,stride], if it is wanted.
    pub decoder_bf16: Option<&'a B>,
    /// b_enc plus the room for its rounding, [F].
    pub feature_base: &'a B,
    /// ‖W_enc_j‖, rounded up, [F].
    pub feature_norm: &'a B,
    /// ‖W_enc_j − bf16(W_enc_j)‖, rounded up, [F].
    pub feature_residual: &'a B,
    /// ‖W_dec_j‖, [F].
    pub decoder_norm: &'a B,
    /// Whether the screen's bounds are wanted; otherwise norms and residuals of the encoder are zeros.
    pub bounds: bool,
}

impl<'a, B> Derived<'a, B> {
    /// As every kernel that fills them takes them.
    pub(super) fn parameters(&self, features: usize, stride: usize) -> [Parameter<'a, B>; 7] {
        [
            halves("encoder_bf16", self.encoder_bf16, features * stride),
            halves("decoder_bf16", self.decoder_bf16, features * stride),
            floats("feature_base", self.feature_base, features),
            floats("feature_norm", self.feature_norm, features),
            floats("feature_residual", self.feature_residual, features),
            floats("decoder_norm", self.decoder_norm, features),
            flag("bounds", self.bounds),
        ]
    }
}

/// `update_dense_*`: one optimizer step of every feature from gradients in memory.
#[derive(Debug)]
pub struct UpdateDense<'a, B> {
    /// Weights, first and second moments, 3 · [`parameters_length`], updated.
    pub parameters: &'a B,
    /// Written.
    pub derived: Derived<'a, B>,
    /// dW_enc transposed, [F,stride].
    pub encoder_gradient: &'a B,
    /// dW_dec, [F,stride].
    pub decoder_gradient: &'a B,
    /// Sums of da over 128 rows, [⌈B/128⌉,F].
    pub bias_parts: &'a B,
    /// Sums of the derivative by the decoder's norm, [⌈B/128⌉,F].
    pub norm_parts: &'a B,
    /// Σ_j db_j W_enc_j over 8 features, [⌈F/8⌉,stride], written; with the pre-bias.
    pub pre_bias: Option<&'a B>,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// Whether the penalty is weighted by the decoder's norms.
    pub weighted: bool,
    /// What becomes of them.
    pub decoder_norm: DecoderNorm,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`: weights that are not finite are entered.
    pub report: &'a B,
    /// JumpReLU's thresholds, updated, and sums of their gradients over 128 rows, [⌈B/128⌉,F].
    pub jump: Option<(Thresholds<'a, B>, &'a B)>,
}

impl<B> UpdateDense<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (rows, features, stride) = (self.rows, self.features, self.stride);
        let blocks = update_blocks(features);
        let weights = floats("parameters", self.parameters, 3 * parameters_length(features, stride));
        let gradients = [
            floats("encoder_gradient", self.encoder_gradient, features * stride),
            floats("decoder_gradient", self.decoder_gradient, features * stride),
            floats("bias_parts", self.bias_parts, slope_parts(rows, features)),
            floats("norm_parts", self.norm_parts, slope_parts(rows, features)),
            number("parts", rows.div_ceil(SLOPE_ROWS)),
            floats("pre_bias", self.pre_bias, blocks * stride),
            number("features", features),
            number("stride", stride),
            flag("weighted", self.weighted),
            kind("norm_kind", norm_kind(self.decoder_norm)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let derived = self.derived.parameters(features, stride);
        let mut parameters: Vec<_> = [weights].into_iter().chain(derived).chain(gradients).collect();
        let block = RowBlock::new(stride);
        let kernel = match self.jump {
            None => {
                let names = ["update_dense_1", "update_dense_2", "update_dense_4", "update_dense_8"];
                ("update", block.kernel(names)?)
            }
            Some((thresholds, parts)) => {
                parameters.extend(thresholds.parameters(features));
                parameters.push(floats("threshold_parts", parts, slope_parts(rows, features)));
                let names = [
                    "update_dense_jump_1",
                    "update_dense_jump_2",
                    "update_dense_jump_4",
                    "update_dense_jump_8",
                ];
                ("jump", block.kernel(names)?)
            }
        };
        launch(device, kernel, (blocks, 1), block.threads, &parameters)
    }
}

/// `derive_*`: the arrays that follow from weights that were just loaded.
#[derive(Debug)]
pub struct Derive<'a, B> {
    /// The weights, [`parameters_length`]; moments may follow.
    pub parameters: &'a B,
    /// Written.
    pub derived: Derived<'a, B>,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// JumpReLU's thresholds.
    pub thresholds: Option<Thresholds<'a, B>>,
}

impl<B> Derive<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, stride) = (self.features, self.stride);
        let weights = floats("parameters", self.parameters, parameters_length(features, stride));
        let sizes = [number("features", features), number("stride", stride)];
        let derived = self.derived.parameters(features, stride);
        let mut parameters: Vec<_> = [weights].into_iter().chain(derived).chain(sizes).collect();
        let block = RowBlock::new(stride);
        let kernel = match self.thresholds {
            None => ("update", block.kernel(["derive_1", "derive_2", "derive_4", "derive_8"])?),
            Some(thresholds) => {
                parameters.extend(thresholds.parameters(features));
                let names = ["derive_jump_1", "derive_jump_2", "derive_jump_4", "derive_jump_8"];
                ("jump", block.kernel(names)?)
            }
        };
        launch(device, kernel, (features, 1), block.threads, &parameters)
    }
}

/// `update_decoder_bias`, the last kernel of a step: one optimizer step of b_dec, and the report into the step's mailbox.
#[derive(Debug)]
pub struct UpdateDecoderBias<'a, B> {
    /// Weights, first and second moments, 3 · [`parameters_length`], updated.
    pub parameters: &'a B,
    /// Sums of g over 64 rows, float64 [⌈B/64⌉,stride].
    pub parts: &'a B,
    /// Sums over 64 lines of the pre-bias' gradient, float64 [⌈⌈F/8⌉/64⌉,stride]; with the pre-bias.
    pub pre_parts: Option<&'a B>,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// `Scalars`.
    pub scalars: &'a B,
    /// A counter of blocks, u32: 0, before and after.
    pub arrived: Slice<'a, B>,
    /// `Report`.
    pub report: &'a B,
    /// Where a copy of the report goes, in the host's memory.
    pub reply: Slice<'a, B>,
    /// `Clip`, where the gradient is clipped.
    pub clip: Option<&'a B>,
}

impl<B> UpdateDecoderBias<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, stride) = (self.features, self.stride);
        let count = self.rows.div_ceil(SUMMED_ROWS);
        let pre_count = update_blocks(features).div_ceil(SUMMED_ROWS);
        let mut parameters = vec![
            floats("parameters", self.parameters, 3 * parameters_length(features, stride)),
            doubles("parts", self.parts, count * stride),
            number("count", count),
            doubles("pre_parts", self.pre_parts, pre_count * stride),
            number("pre_count", pre_count),
            number("features", features),
            number("stride", stride),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            u32s("arrived", self.arrived, 1),
            bytes("report", self.report, REPORT_BYTES),
            bytes("reply", self.reply, REPORT_BYTES),
        ];
        let grid = (stride / COLUMNS, 1);
        let mut kernel = ("update", "update_decoder_bias");
        if let Some(clip) = self.clip {
            parameters.push(bytes("clip", clip, CLIP_BYTES));
            kernel = ("clip", "update_decoder_bias_clipped");
        }
        launch(device, kernel, grid, COLUMNS, &parameters)
    }
}

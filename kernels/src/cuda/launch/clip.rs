//! `clip.cu`: gradients that wait in memory until their norm is known.

use super::backward::ActivePairs;
use super::jump::Thresholds;
use super::lists::most_segments;
use super::parameter::{Parameter, bytes, doubles, flag, floats, kind, number, u32s};
use super::update::{Derived, update_blocks};
use super::{
    CLIP_BYTES, REPORT_BYTES, RowBlock, SCALARS_BYTES, SUMMED_ROWS, backward::segment_length, launch,
    parameters_length,
};
use crate::cuda::device::Device;
use crate::cuda::layout::{norm_kind, penalty_kind};
use crate::error::DeviceError;
use crate::spec::DecoderNorm;

/// Gradients in memory. What belongs to a feature alone is summed over `parts` parts.
#[derive(Debug)]
pub struct Gradients<'a, B> {
    /// dW_enc transposed, [F,stride].
    pub encoder: &'a B,
    /// dW_dec, [F,stride].
    pub decoder: &'a B,
    /// db_enc, [parts,F].
    pub bias: &'a B,
    /// The derivatives by the decoder's norms, [parts,F].
    pub by_norm: &'a B,
    /// dθ, [parts,F], where features have thresholds.
    pub threshold: Option<&'a B>,
    /// How many parts there are.
    pub parts: usize,
}

impl<B> Clone for Gradients<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Gradients<'_, B> {}

impl<'a, B> Gradients<'a, B> {
    /// As all kernels take them; the thresholds' come last.
    fn parameters(&self, features: usize, stride: usize) -> [Parameter<'a, B>; 4] {
        [
            floats("encoder_gradient", self.encoder, features * stride),
            floats("decoder_gradient", self.decoder, features * stride),
            floats("bias_parts", self.bias, self.parts * features),
            floats("norm_parts", self.by_norm, self.parts * features),
        ]
    }

    fn threshold(&self, features: usize) -> Parameter<'a, B> {
        floats("threshold_parts", self.threshold, self.parts * features)
    }
}

/// `gradients_*`: the gradients of every feature from its pairs. After the segments.
#[derive(Debug)]
pub struct FeatureGradients<'a, B> {
    /// The weights, [`parameters_length`]; moments may follow.
    pub parameters: &'a B,
    /// The pairs.
    pub pairs: &'a ActivePairs<'a, B>,
    /// The penalty's derivative by ‖W_dec_j‖, [F], where it is weighted by that.
    pub by_norm: Option<&'a B>,
    /// The segments' sums, [segments, 2·stride + 4].
    pub sums: &'a B,
    /// Written, one part.
    pub gradients: Gradients<'a, B>,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> FeatureGradients<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let pairs = self.pairs;
        let (features, stride) = (pairs.features, pairs.stride);
        let segments = most_segments(pairs.capacity, features, pairs.rows);
        let mut parameters = vec![
            floats("parameters", self.parameters, parameters_length(features, stride)),
            u32s("feature_starts", pairs.starts.pairs, features + 1),
            u32s("segment_starts", pairs.starts.segments, features + 1),
            u32s("pair_rows", pairs.pair_rows, pairs.capacity),
            floats("feature_values", pairs.feature_values, pairs.capacity),
            floats("feature_slopes", pairs.feature_slopes, pairs.capacity),
            floats("by_norm", self.by_norm, features),
            floats("x", pairs.x, pairs.rows * stride),
            floats("g", pairs.g, pairs.rows * stride),
            floats("sums", self.sums, segments * segment_length(stride)),
        ];
        parameters.extend(self.gradients.parameters(features, stride));
        parameters.extend([number("features", features), number("stride", stride)]);
        parameters.push(bytes("report", self.report, REPORT_BYTES));
        let mut names = ["gradients_1", "gradients_2", "gradients_4", "gradients_8"];
        if let Some(pseudo) = pairs.pseudo {
            let [thresholds, bandwidth, to_input, results] = pseudo.parameters(pairs.rows, features);
            let scalars = bytes("scalars", self.scalars, SCALARS_BYTES);
            parameters.extend([thresholds, bandwidth, to_input, kind("kind", penalty_kind(pairs.penalty))]);
            parameters.extend([scalars, results, self.gradients.threshold(features)]);
            names = ["gradients_jump_1", "gradients_jump_2", "gradients_jump_4", "gradients_jump_8"];
        }
        let block = RowBlock::new(stride);
        let kernel = ("clip", block.kernel(names)?);
        launch(device, kernel, (update_blocks(features), 1), block.threads, &parameters)
    }
}

/// `project_*`: the projection of gradients in memory, and their squares.
#[derive(Debug)]
pub struct Project<'a, B> {
    /// The weights, [`parameters_length`]; moments may follow.
    pub parameters: &'a B,
    /// The decoder's is updated.
    pub gradients: Gradients<'a, B>,
    /// Σ_j db_j W_enc_j over 8 features, [⌈F/8⌉,stride], written; with the pre-bias.
    pub pre_bias: Option<&'a B>,
    /// Sums of squares over 8 features, float64 [⌈F/8⌉], written.
    pub squares: &'a B,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// Whether the penalty is weighted by the decoder's norms.
    pub weighted: bool,
    /// What becomes of them.
    pub decoder_norm: DecoderNorm,
    /// `Report`.
    pub report: &'a B,
}

impl<B> Project<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, stride) = (self.features, self.stride);
        let blocks = update_blocks(features);
        let mut parameters = vec![floats("parameters", self.parameters, parameters_length(features, stride))];
        parameters.extend(self.gradients.parameters(features, stride));
        parameters.extend([
            number("parts", self.gradients.parts),
            floats("pre_bias", self.pre_bias, blocks * stride),
            doubles("squares", self.squares, blocks),
            number("features", features),
            number("stride", stride),
            flag("weighted", self.weighted),
            kind("norm_kind", norm_kind(self.decoder_norm)),
            bytes("report", self.report, REPORT_BYTES),
            self.gradients.threshold(features),
        ]);
        let block = RowBlock::new(stride);
        let kernel = ("clip", block.kernel(["project_1", "project_2", "project_4", "project_8"])?);
        launch(device, kernel, (blocks, 1), block.threads, &parameters)
    }
}

/// `clip_scale`: what the gradient is multiplied by.
#[derive(Debug)]
pub struct ClipScale<'a, B> {
    /// Sums of squares over 8 features, float64 [⌈F/8⌉].
    pub squares: &'a B,
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
    /// `Clip`, of which the scale is written.
    pub clip: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> ClipScale<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (stride, blocks) = (self.stride, update_blocks(self.features));
        let (count, pre_count) = (self.rows.div_ceil(SUMMED_ROWS), blocks.div_ceil(SUMMED_ROWS));
        let parameters = [
            doubles("squares", self.squares, blocks),
            number("blocks", blocks),
            doubles("parts", self.parts, count * stride),
            number("count", count),
            doubles("pre_parts", self.pre_parts, pre_count * stride),
            number("pre_count", pre_count),
            number("stride", stride),
            bytes("clip", self.clip, CLIP_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        launch(device, ("clip", "clip_scale"), (1, 1), 256, &parameters)
    }
}

/// `update_clipped_*`: one optimizer step of every feature from projected gradients.
#[derive(Debug)]
pub struct UpdateClipped<'a, B> {
    /// Weights, first and second moments, 3 · [`parameters_length`], updated.
    pub parameters: &'a B,
    /// Written.
    pub derived: Derived<'a, B>,
    /// The gradients.
    pub gradients: Gradients<'a, B>,
    /// JumpReLU's thresholds, updated.
    pub thresholds: Option<Thresholds<'a, B>>,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// What becomes of the decoder's norms.
    pub decoder_norm: DecoderNorm,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Clip`.
    pub clip: &'a B,
    /// `Report`: weights that are not finite are entered.
    pub report: &'a B,
}

impl<B> UpdateClipped<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let (features, stride) = (self.features, self.stride);
        let mut parameters =
            vec![floats("parameters", self.parameters, 3 * parameters_length(features, stride))];
        parameters.extend(self.derived.parameters(features, stride));
        parameters.extend(self.gradients.parameters(features, stride));
        parameters.extend([
            number("parts", self.gradients.parts),
            number("features", features),
            number("stride", stride),
            kind("norm_kind", norm_kind(self.decoder_norm)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
            bytes("clip", self.clip, CLIP_BYTES),
        ]);
        parameters.extend(Thresholds::or_none(self.thresholds.as_ref(), features));
        parameters.push(self.gradients.threshold(features));
        let block = RowBlock::new(stride);
        let names = ["update_clipped_1", "update_clipped_2", "update_clipped_4", "update_clipped_8"];
        let kernel = ("clip", block.kernel(names)?);
        launch(device, kernel, (update_blocks(features), 1), block.threads, &parameters)
    }
}

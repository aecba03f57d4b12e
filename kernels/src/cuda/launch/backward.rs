//! `backward.cu`: gradients from the active pairs, and the update of the same rows.

use super::jump::Pseudo;
use super::lists::{FeatureStarts, most_segments};
use super::parameter::{bytes, floats, kind, number, u32s};
use super::update::{Derived, update_blocks};
use super::{REPORT_BYTES, RowBlock, SCALARS_BYTES, launch, parameters_length};
use crate::cuda::device::Device;
use crate::cuda::layout::{norm_kind, penalty_kind};
use crate::error::DeviceError;
use crate::loss::Penalty;
use crate::spec::DecoderNorm;

/// Numbers in [`BackwardSegments::sums`] for each segment.
pub(crate) fn segment_length(stride: usize) -> usize {
    2 * stride + 4
}

/// What gradients are summed from.
#[derive(Debug)]
pub struct ActivePairs<'a, B> {
    /// Where features begin.
    pub starts: FeatureStarts<'a, B>,
    /// The pairs' rows, u32 [capacity].
    pub pair_rows: &'a B,
    /// Their activations, [capacity].
    pub feature_values: &'a B,
    /// The penalties' derivatives by them, [capacity].
    pub feature_slopes: &'a B,
    /// The encoder's input, [B,stride].
    pub x: &'a B,
    /// dL/dx̂, [B,stride].
    pub g: &'a B,
    /// B.
    pub rows: usize,
    /// F.
    pub features: usize,
    /// Numbers in a row.
    pub stride: usize,
    /// Pairs that the lists hold.
    pub capacity: usize,
    /// The thresholds' pseudo-derivatives, where pairs come with z in place of their activations.
    pub pseudo: Option<Pseudo<'a, B>>,
    /// The penalty, which counts active features perhaps.
    pub penalty: Penalty,
}

impl<B> ActivePairs<'_, B> {
    fn segments(&self) -> usize {
        most_segments(self.capacity, self.features, self.rows)
    }
}

/// `backward_segments_*`: the gradients' sums over segments of features with many pairs.
#[derive(Debug)]
pub struct BackwardSegments<'a, B> {
    /// The weights, [`parameters_length`]; moments may follow.
    pub parameters: &'a B,
    /// The pairs.
    pub pairs: &'a ActivePairs<'a, B>,
    /// Whose each segment is, u32 [segments].
    pub segment_features: &'a B,
    /// [segments, 2·stride + 4], written.
    pub sums: &'a B,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`.
    pub report: &'a B,
}

impl<B> BackwardSegments<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let pairs = self.pairs;
        let (features, stride, segments) = (pairs.features, pairs.stride, pairs.segments());
        let mut parameters = vec![
            floats("parameters", self.parameters, parameters_length(features, stride)),
            u32s("feature_starts", pairs.starts.pairs, features + 1),
            u32s("segment_starts", pairs.starts.segments, features + 1),
            u32s("segment_features", self.segment_features, segments),
            u32s("pair_rows", pairs.pair_rows, pairs.capacity),
            floats("feature_values", pairs.feature_values, pairs.capacity),
            floats("feature_slopes", pairs.feature_slopes, pairs.capacity),
            floats("x", pairs.x, pairs.rows * stride),
            floats("g", pairs.g, pairs.rows * stride),
            floats("sums", self.sums, segments * segment_length(stride)),
            number("features", features),
            number("stride", stride),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let block = RowBlock::new(stride);
        let kernel = match pairs.pseudo {
            None => {
                let names = [
                    "backward_segments_1",
                    "backward_segments_2",
                    "backward_segments_4",
                    "backward_segments_8",
                ];
                ("backward", block.kernel(names)?)
            }
            Some(pseudo) => {
                let [thresholds, bandwidth, to_input, results] = pseudo.parameters(pairs.rows, features);
                let scalars = bytes("scalars", self.scalars, SCALARS_BYTES);
                parameters.extend([
                    thresholds,
                    bandwidth,
                    to_input,
                    kind("kind", penalty_kind(pairs.penalty)),
                ]);
                parameters.extend([scalars, results]);
                let names = [
                    "backward_segments_jump_1",
                    "backward_segments_jump_2",
                    "backward_segments_jump_4",
                    "backward_segments_jump_8",
                ];
                ("jump", block.kernel(names)?)
            }
        };
        // As many blocks as run at once, the further segments wait their turn in a loop; and no more than there can be
        // segments.
        let blocks = block.at_once(device.properties().multiprocessors).max(1).min(segments);
        launch(device, kernel, (blocks, 1), block.threads, &parameters)
    }
}

/// `backward_update_*`: one optimizer step of every feature from its pairs.
#[derive(Debug)]
pub struct BackwardUpdate<'a, B> {
    /// Weights, first and second moments, 3 · [`parameters_length`], updated.
    pub parameters: &'a B,
    /// Written.
    pub derived: Derived<'a, B>,
    /// The pairs.
    pub pairs: &'a ActivePairs<'a, B>,
    /// The penalty's derivative by ‖W_dec_j‖, [F], where it is weighted by that.
    pub by_norm: Option<&'a B>,
    /// The segments' sums, [segments, 2·stride + 4].
    pub sums: &'a B,
    /// Σ_j db_j W_enc_j over 8 features, [⌈F/8⌉,stride], written; with the pre-bias.
    pub pre_bias: Option<&'a B>,
    /// What becomes of the decoder's norms.
    pub decoder_norm: DecoderNorm,
    /// `Scalars`.
    pub scalars: &'a B,
    /// `Report`: weights that are not finite are entered.
    pub report: &'a B,
}

impl<B> BackwardUpdate<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let pairs = self.pairs;
        let (features, stride, blocks) = (pairs.features, pairs.stride, update_blocks(pairs.features));
        let weights = floats("parameters", self.parameters, 3 * parameters_length(features, stride));
        let gradients = [
            u32s("feature_starts", pairs.starts.pairs, features + 1),
            u32s("segment_starts", pairs.starts.segments, features + 1),
            u32s("pair_rows", pairs.pair_rows, pairs.capacity),
            floats("feature_values", pairs.feature_values, pairs.capacity),
            floats("feature_slopes", pairs.feature_slopes, pairs.capacity),
            floats("by_norm", self.by_norm, features),
            floats("x", pairs.x, pairs.rows * stride),
            floats("g", pairs.g, pairs.rows * stride),
            floats("sums", self.sums, pairs.segments() * segment_length(stride)),
            floats("pre_bias", self.pre_bias, blocks * stride),
            number("features", features),
            number("stride", stride),
            kind("norm_kind", norm_kind(self.decoder_norm)),
            bytes("scalars", self.scalars, SCALARS_BYTES),
            bytes("report", self.report, REPORT_BYTES),
        ];
        let derived = self.derived.parameters(features, stride);
        let mut parameters: Vec<_> = [weights].into_iter().chain(derived).chain(gradients).collect();
        let block = RowBlock::new(stride);
        let kernel = match pairs.pseudo {
            None => {
                let names =
                    ["backward_update_1", "backward_update_2", "backward_update_4", "backward_update_8"];
                ("backward", block.kernel(names)?)
            }
            Some(pseudo) => {
                let [thresholds, bandwidth, to_input, results] = pseudo.parameters(pairs.rows, features);
                let penalty = kind("kind", penalty_kind(pairs.penalty));
                parameters.extend([thresholds, bandwidth, to_input, penalty, results]);
                let names = [
                    "backward_update_jump_1",
                    "backward_update_jump_2",
                    "backward_update_jump_4",
                    "backward_update_jump_8",
                ];
                ("jump", block.kernel(names)?)
            }
        };
        launch(device, kernel, (blocks, 1), block.threads, &parameters)
    }
}

//! Features ranked by z·‖W_dec_j‖: an encoder that has this number for its z.

use super::device::Device;
use super::launch::Slice;
use super::launch::rank::{DivideByNorms, RankEncoder};
use super::panel::Panel;
use crate::error::DeviceError;

/// The encoder whose z features are selected by.
pub(crate) struct Ranking<'a, B> {
    /// [F,stride].
    pub(crate) encoder: Slice<'a, B>,
    /// [F].
    pub(crate) bias: Slice<'a, B>,
    /// The norms of its rows, rounded up, [F].
    pub(crate) norm: &'a B,
}

impl<D: Device> Panel<D> {
    /// What features are ranked by: the encoder itself unless the decoder's norms have a part in it.
    pub(crate) fn ranking(&self) -> Ranking<'_, D::Buffer> {
        let (plan, b) = (&self.plan, &self.buffers);
        match (&b.ranked_encoder, &b.ranked_bias, &b.ranked_norm) {
            (Some(encoder), Some(bias), Some(norm)) => {
                Ranking { encoder: encoder.into(), bias: bias.into(), norm }
            }
            _ => Ranking {
                encoder: self.weights_from(0),
                bias: self.weights_from(plan.encoder_bias_at()),
                norm: &b.feature_norm,
            },
        }
    }

    /// ‖W_dec_j‖, where features are ranked by it.
    pub(crate) fn rank_norms(&self) -> Option<&D::Buffer> {
        self.spec.rank_by_decoder_norm.then_some(&self.buffers.decoder_norm)
    }

    /// Forms that encoder.
    pub(crate) fn rank_encoder(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (Some(ranked), Some(ranked_bias), Some(ranked_norm)) =
            (&b.ranked_encoder, &b.ranked_bias, &b.ranked_norm)
        else {
            return Ok(());
        };
        let rank = RankEncoder {
            encoder: self.weights_from(0),
            encoder_bias: self.weights_from(plan.encoder_bias_at()),
            feature_norm: &b.feature_norm,
            decoder_norm: &b.decoder_norm,
            ranked,
            ranked_bias,
            ranked_norm,
            features: plan.features,
            stride: plan.stride,
            report: &b.report,
        };
        rank.launch(device)
    }

    /// Makes activations of the ranked numbers in the lists.
    pub(crate) fn divide_by_norms(&self, device: &mut D, rows: usize) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let Some(decoder_norm) = self.rank_norms() else { return Ok(()) };
        let divide = DivideByNorms {
            starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            decoder_norm,
            features: plan.features,
            rows,
            capacity: plan.pairs,
            report: &b.report,
        };
        divide.launch(device)
    }
}

//! The second half of a step: the frequency window, gradients and the update.

use super::buffers::Arrivals;
use super::device::Device;
use super::launch::Slice;
use super::launch::backward::{ActivePairs, BackwardSegments, BackwardUpdate};
use super::launch::clip::FeatureGradients;
use super::launch::frequency::WindowFeatures;
use super::launch::jump::MarkNear;
use super::launch::lists::{ByNorm, GatherValues, ListFeatures};
use super::launch::update::{UpdateDecoderBias, update_blocks};
use super::panel::Panel;
use crate::error::DeviceError;
use crate::path::Path;

impl<D: Device> Panel<D> {
    /// Everything after the forward pass of a training step. The report goes where the `reply` is.
    pub(crate) fn train(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        path: Path,
        reply: Slice<'_, D::Buffer>,
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        self.frequencies_and_slopes(device)?;
        self.column_sums(device, self.g(), &b.column_parts, plan.rows)?;
        match path {
            Path::Sparse => self.update_from_pairs(device, batch)?,
            Path::Dense => self.update_dense(device, batch)?,
        }
        self.update_decoder_bias(device, reply)
    }

    fn frequencies_and_slopes(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let window = WindowFeatures {
            counts: &b.counts,
            window: &b.window,
            change_list: &b.changes,
            ring: &b.ring,
            sums: &b.window_sums,
            frequencies: &b.frequencies,
            slopes: &b.slopes,
            steps_since_fired: &b.steps_since_fired,
            partial: &b.term_parts,
            arrived: b.arrivals(Arrivals::Frequencies),
            features: plan.features,
            rows: plan.rows,
            window_length: plan.window,
            targets: &b.targets,
            densities: self.spec.loss.mean_density != 0.0 || self.spec.loss.log_density != 0.0,
            scalars: &b.scalars,
            report: &b.report,
        };
        window.launch(device)
    }

    fn update_from_pairs(&self, device: &mut D, batch: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (mask, counts) = self.add_other_pairs(device)?;
        self.list_features(device, mask, counts)?;
        self.gather_values(device)?;
        self.shift_rows(device)?;
        let pairs = ActivePairs {
            starts: self.feature_starts(),
            pair_rows: &b.pair_rows,
            feature_values: &b.feature_values,
            feature_slopes: &b.feature_slopes,
            x: self.repeated_input(device, batch)?,
            g: self.g(),
            rows: plan.backward_rows(),
            features: plan.features,
            stride: plan.stride,
            capacity: plan.listed_pairs(),
            pseudo: self.pseudo(),
            penalty: self.spec.loss.penalty,
        };
        let segments = BackwardSegments {
            parameters: &b.parameters,
            pairs: &pairs,
            segment_features: &b.segment_features,
            sums: &b.segment_sums,
            scalars: &b.scalars,
            report: &b.report,
        };
        segments.launch(device)?;
        let by_norm = self.spec.loss.weight_by_decoder_norm.then_some(&b.by_norm);
        if let Some((gradients, clipping)) = b.gradients().zip(self.clipping()) {
            let of_features = FeatureGradients {
                parameters: &b.parameters,
                pairs: &pairs,
                by_norm,
                sums: &b.segment_sums,
                gradients,
                scalars: &b.scalars,
                report: &b.report,
            };
            of_features.launch(device)?;
            return self.update_clipped(device, gradients, clipping);
        }
        let update = BackwardUpdate {
            parameters: &b.parameters,
            derived: self.derived(),
            pairs: &pairs,
            by_norm,
            sums: &b.segment_sums,
            pre_bias: b.pre_bias.as_ref(),
            decoder_norm: self.spec.decoder_norm,
            scalars: &b.scalars,
            report: &b.report,
        };
        update.launch(device)
    }

    /// Adds the pairs near thresholds, where those are trained, or those of a loss over dead features. The mask and the counts of
    /// what the lists by feature are to hold.
    fn add_other_pairs(&self, device: &mut D) -> Result<(&D::Buffer, &D::Buffer), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let Some(counts) = &b.listed_counts else { return Ok((&b.mask, &b.counts)) };
        let mask = b.dead_mask.as_ref().unwrap_or(&b.mask);
        if let Some(near) = self.near_pairs() {
            let mark = MarkNear {
                starts: &b.row_starts,
                near,
                mask,
                rows: plan.rows,
                features: plan.features,
                capacity: plan.pairs,
                report: &b.report,
            };
            mark.launch(device)?;
        }
        self.count_bits(device, mask, plan.listed_rows(), Path::Sparse, counts)?;
        Ok((mask, counts))
    }

    fn list_features(&self, device: &mut D, mask: &D::Buffer, counts: &D::Buffer) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let list = ListFeatures {
            mask,
            counts,
            totals: &b.block_totals,
            starts: self.feature_starts(),
            segment_features: &b.segment_features,
            pair_rows: &b.pair_rows,
            features: plan.features,
            rows: plan.listed_rows(),
            capacity: plan.listed_pairs(),
            report: &b.report,
        };
        list.launch(device)
    }

    fn gather_values(&self, device: &mut D) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let gather = GatherValues {
            feature_starts: &b.feature_starts,
            pair_rows: &b.pair_rows,
            row_starts: &b.row_starts,
            row_active: &b.row_active,
            pair_features: &b.pair_features,
            row_values: &b.row_values,
            slopes: &b.slopes,
            by_norm: self.penalty_norms().map(|decoder_norm| ByNorm { decoder_norm, by_norm: &b.by_norm }),
            near: self.near_pairs(),
            dead_row: plan.dead.map(|dead| dead.dead_row),
            feature_values: &b.feature_values,
            feature_slopes: &b.feature_slopes,
            features: plan.features,
            rows: plan.listed_rows(),
            capacity: plan.listed_pairs(),
            penalty: self.spec.loss.penalty,
            scalars: &b.scalars,
            report: &b.report,
        };
        gather.launch(device)
    }

    fn update_decoder_bias(&self, device: &mut D, reply: Slice<'_, D::Buffer>) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        // The norm of a clipped gradient has needed them before.
        if let (Some(lines), Some(parts), None) = (&b.pre_bias, &b.pre_bias_parts, &b.clip) {
            self.column_sums(device, lines, parts, update_blocks(plan.features))?;
        }
        let update = UpdateDecoderBias {
            parameters: &b.parameters,
            parts: &b.column_parts,
            pre_parts: b.pre_bias_parts.as_ref(),
            rows: plan.rows,
            features: plan.features,
            stride: plan.stride,
            scalars: &b.scalars,
            arrived: b.arrivals(Arrivals::DecoderBias),
            report: &b.report,
            reply,
            clip: b.clip.as_ref(),
        };
        update.launch(device)
    }
}

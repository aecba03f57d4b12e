//! The second half of a step whose gradient is clipped: the gradients wait in memory until their norm is known.

use super::buffers::Buffers;
use super::device::Device;
use super::launch::clip::{ClipScale, Gradients, Project, UpdateClipped};
use super::launch::update::update_blocks;
use super::panel::Panel;
use crate::error::DeviceError;

impl<B> Buffers<B> {
    /// Where the sparse path's gradients wait; none where they need not.
    pub(crate) fn gradients(&self) -> Option<Gradients<'_, B>> {
        Some(Gradients {
            encoder: self.encoder_gradient.as_ref()?,
            decoder: self.decoder_gradient.as_ref()?,
            bias: self.bias_gradient.as_ref()?,
            by_norm: self.norm_gradient.as_ref()?,
            threshold: self.threshold_gradient.as_ref(),
            parts: 1,
        })
    }
}

impl<D: Device> Panel<D> {
    /// Clips the gradients and updates the features.
    pub(crate) fn update_clipped(
        &self,
        device: &mut D,
        gradients: Gradients<'_, D::Buffer>,
        (clip, squares): (&D::Buffer, &D::Buffer),
    ) -> Result<(), DeviceError> {
        let (plan, b) = (&self.plan, &self.buffers);
        let (features, stride, report) = (plan.features, plan.stride, &b.report);
        let project = Project {
            parameters: &b.parameters,
            gradients,
            pre_bias: b.pre_bias.as_ref(),
            squares,
            features,
            stride,
            weighted: self.spec.loss.weight_by_decoder_norm,
            decoder_norm: self.spec.decoder_norm,
            report,
        };
        project.launch(device)?;
        if let (Some(lines), Some(parts)) = (&b.pre_bias, &b.pre_bias_parts) {
            self.column_sums(device, lines, parts, update_blocks(features))?;
        }
        let scale = ClipScale {
            squares,
            parts: &b.column_parts,
            pre_parts: b.pre_bias_parts.as_ref(),
            rows: plan.rows,
            features,
            stride,
            clip,
            report,
        };
        scale.launch(device)?;
        let update = UpdateClipped {
            parameters: &b.parameters,
            derived: self.derived(),
            gradients,
            thresholds: self.thresholds(),
            features,
            stride,
            decoder_norm: self.spec.decoder_norm,
            scalars: &b.scalars,
            clip,
            report,
        };
        update.launch(device)
    }

    /// What a clipped step measures and where it leaves the scale; none where nothing is clipped.
    pub(crate) fn clipping(&self) -> Option<(&D::Buffer, &D::Buffer)> {
        self.buffers.clip.as_ref().zip(self.buffers.squares.as_ref())
    }
}

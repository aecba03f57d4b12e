//! A panel: neighbouring features with everything on the device that belongs to them; usually all features.

use bytemuck::Zeroable;

use super::buffers::{Buffers, DenseBuffers, arrivals};
use super::device::Device;
use super::launch::select_batch::HISTOGRAM;
use super::launch::update::{Derive, Derived};
use super::layout::{BatchCut, Clip, Dead, NOTHING, Report, frequency_targets};
use super::places::PanelPart;
use super::plan::{DeviceOptions, DevicePlan};
use crate::error::DeviceError;
use crate::path::{Path, PathChoice};
use crate::precision::Precision;
use crate::spec::StepSpec;

/// One panel of an autoencoder in training.
pub(crate) struct Panel<D: Device> {
    /// What a step is for these features alone.
    pub(crate) spec: StepSpec,
    pub(crate) options: DeviceOptions,
    pub(crate) plan: DevicePlan,
    pub(crate) buffers: Buffers<D::Buffer>,
    /// Allocated at the first dense pass.
    pub(crate) dense: Option<DenseBuffers<D::Buffer>>,
    pub(crate) choice: PathChoice,
    /// θ of BatchTopK, once it has a value, as of the steps done.
    pub(crate) threshold: Option<f64>,
    /// Its place among several panels.
    pub(crate) part: Option<PanelPart<D::Buffer>>,
}

impl<D: Device> Panel<D> {
    /// A panel of an autoencoder that `whole` describes, without weights.
    pub(super) fn new(
        device: &mut D,
        whole: &StepSpec,
        options: DeviceOptions,
        plan: DevicePlan,
        part: Option<PanelPart<D::Buffer>>,
    ) -> Result<Panel<D>, DeviceError> {
        let buffers = Buffers::allocate(device, &plan)?;
        let mut panel = Panel {
            choice: plan.path_choice(),
            spec: StepSpec { features: plan.features, panels: 1, ..*whole },
            options,
            plan,
            buffers,
            dense: None,
            threshold: None,
            part,
        };
        // Densities are means over all features.
        let targets = frequency_targets(&whole.loss, whole.features);
        device.upload(&mut panel.buffers.targets, 0, bytemuck::bytes_of(&targets))?;
        if let (Some(to), Some(most)) = (&mut panel.buffers.clip, whole.gradient_clip) {
            device.upload(to, 0, bytemuck::bytes_of(&Clip { most, scale: 1.0, unused: 0 }))?;
        }
        panel.clear_selection(device)?;
        if let Some(to) = &mut panel.buffers.group_ends {
            let ends: Vec<u32> = whole.prefixes.ends(whole.features).map(|end| end as u32).collect();
            device.upload(to, 0, bytemuck::cast_slice(&ends))?;
        }
        if let (Some(to), Some(loss)) = (&mut panel.buffers.dead, whole.dead) {
            let dead = Dead { coefficient: loss.kind.coefficient(), ..Zeroable::zeroed() };
            device.upload(to, 0, bytemuck::bytes_of(&dead))?;
        }
        device.zero(&mut panel.buffers.report, 0, size_of::<Report>())?;
        device.zero(&mut panel.buffers.arrivals, 0, 4 * arrivals(&panel.plan))?;
        Ok(panel)
    }

    /// What the search for a batch's largest z leaves as it found it.
    fn clear_selection(&mut self, device: &mut D) -> Result<(), DeviceError> {
        let b = &mut self.buffers;
        if let Some(cut) = &mut b.batch_cut {
            device.upload(
                cut,
                0,
                bytemuck::bytes_of(&BatchCut { smallest: NOTHING, ..Zeroable::zeroed() }),
            )?;
        }
        if let Some(histogram) = &mut b.histogram {
            device.zero(histogram, 0, 8 * HISTOGRAM)?;
        }
        Ok(())
    }

    /// Whether bounds are part of the search for candidates and of its recheck.
    pub(crate) fn has_bounds(&self) -> bool {
        self.options.precision != Precision::Bf16
    }

    /// g of all rows, [B,stride], or of the batch behind itself.
    pub(crate) fn g(&self) -> &D::Buffer {
        self.part.as_ref().map_or(&self.buffers.g, |part| part.g())
    }

    /// The rows' results.
    pub(crate) fn results(&self) -> &D::Buffer {
        self.part.as_ref().map_or(&self.buffers.results, |part| part.results())
    }

    /// Makes room for what a step on this path needs.
    pub(super) fn prepare(&mut self, device: &mut D, path: Path) -> Result<(), DeviceError> {
        if (path == Path::Dense || self.plan.selects) && self.dense.is_none() {
            self.dense = Some(DenseBuffers::allocate(device, &self.plan)?);
        }
        Ok(())
    }

    /// The arrays that follow from the weights.
    pub(crate) fn derived(&self) -> Derived<'_, D::Buffer> {
        let b = &self.buffers;
        Derived {
            encoder_bf16: b.encoder_bf16.as_ref(),
            decoder_bf16: b.decoder_bf16.as_ref(),
            feature_base: &b.feature_base,
            feature_norm: &b.feature_norm,
            feature_residual: &b.feature_residual,
            decoder_norm: &b.decoder_norm,
            bounds: self.has_bounds(),
        }
    }

    /// Fills them.
    pub(crate) fn derive(&self, device: &mut D) -> Result<(), DeviceError> {
        let derive = Derive {
            parameters: &self.buffers.parameters,
            derived: self.derived(),
            features: self.plan.features,
            stride: self.plan.stride,
            thresholds: self.thresholds(),
        };
        derive.launch(device)
    }
}

//! What lies on a device between steps: an autoencoder in training, and what was recorded of its steps.

use std::collections::HashMap;

use super::buffers::{Buffers, DenseBuffers};
use super::device::Device;
use super::plan::{DeviceOptions, DevicePlan};
use crate::path::{Path, PathChoice};
use crate::precision::Precision;
use crate::spec::StepSpec;

/// One autoencoder in training on a device. Several can share a device and its batches.
pub struct CudaStep<D: Device> {
    pub(crate) spec: StepSpec,
    pub(crate) options: DeviceOptions,
    pub(crate) plan: DevicePlan,
    pub(crate) buffers: Buffers<D::Buffer>,
    /// Allocated at the first dense pass.
    pub(crate) dense: Option<DenseBuffers<D::Buffer>>,
    pub(crate) choice: PathChoice,
    /// θ of BatchTopK, once it has a value, as of the steps done.
    pub(crate) threshold: Option<f64>,
    /// Steps done, as far as reports have been read.
    pub(crate) done: u64,
    /// Steps queued.
    pub(crate) submitted: u64,
    /// One for each step under way.
    pub(super) mailboxes: Vec<Mailbox<D::Mailbox>>,
    pub(super) recorded: HashMap<RecordingKey, Recording<D::Graph>>,
}

/// What goes in and out with a step.
pub(super) struct Mailbox<M> {
    pub(super) place: M,
    /// The batch of the last step that used it.
    pub(super) batch: u64,
    /// Whether that step is under way.
    pub(super) taken: bool,
}

/// What a recording holds fixed: the path, the batch and the mailbox.
pub(super) type RecordingKey = (Path, u64, usize);

/// The first step on a path with a batch buffer runs as it is queued: kernels are compiled and libraries set up
/// in it. The second is recorded.
pub(super) enum Recording<G> {
    RunOnce,
    Recorded(G),
}

impl<D: Device> CudaStep<D> {
    /// What a step is.
    pub fn spec(&self) -> &StepSpec {
        &self.spec
    }

    /// The step's sizes.
    pub fn plan(&self) -> &DevicePlan {
        &self.plan
    }

    /// Bytes of a batch buffer: [B,d] float32.
    pub fn batch_bytes(&self) -> usize {
        4 * self.plan.rows * self.plan.width
    }

    /// Whether bounds are part of the search for candidates and of its recheck.
    pub(crate) fn has_bounds(&self) -> bool {
        self.options.precision != Precision::Bf16
    }
}

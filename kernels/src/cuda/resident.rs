//! What lies on a device between steps: an autoencoder in training, and what was recorded of its steps.

use std::collections::{HashMap, VecDeque};

use super::device::Device;
use super::panel::Panel;
use super::places::Meeting;
use super::plan::DevicePlan;
use crate::error::DeviceError;
use crate::path::Path;
use crate::spec::StepSpec;

/// One autoencoder in training on a device, or this rank's share of one. Several can share a device and its batches.
pub struct CudaStep<D: Device> {
    /// Of all features.
    pub(crate) spec: StepSpec,
    /// The [panels](crate::panels) that this rank owns; one where features are not divided.
    pub(crate) panels: Vec<Panel<D>>,
    /// Where they meet if there are several, here and on other ranks.
    pub(crate) meeting: Option<Meeting<D::Buffer>>,
    /// Steps done, as far as reports have been read.
    pub(crate) done: u64,
    /// Steps queued.
    pub(crate) submitted: u64,
    /// For each batch of the window, in how many rows features were active, summed over all features.
    pub(crate) window_totals: VecDeque<u64>,
    /// One for each step under way.
    pub(super) mailboxes: Vec<Mailbox<D::Mailbox>>,
    pub(super) recorded: Recordings<D::Graph>,
}

/// What goes in and out with a step.
pub(super) struct Mailbox<M> {
    pub(super) place: M,
    /// The batch of the last step that used it.
    pub(super) batch: u64,
    /// Whether that step is under way.
    pub(super) taken: bool,
}

/// The parts of a step between which ranks exchange bytes. A recording is of one of them: exchanges are not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Segment {
    /// All of a step of one rank.
    Whole,
    /// Up to what the own panels add to the rows.
    Parts,
    /// From the ranks' parts to the own rows' g and results.
    Rows,
    /// From those of all rows to the end.
    Train,
}

/// What a recording holds fixed: the paths of the own panels, the batch and the mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RecordingKey {
    pub(super) segment: Segment,
    pub(super) paths: Paths,
    pub(super) batch: u64,
    pub(super) mailbox: usize,
}

/// The paths of up to 64 panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Paths(u64);

impl Paths {
    pub(super) fn new(paths: impl IntoIterator<Item = Path>) -> Paths {
        let bit = |(at, path)| u64::from(path == Path::Dense) << at;
        Paths(paths.into_iter().enumerate().map(bit).fold(0, |all, bit| all | bit))
    }

    pub(super) fn of(self, panel: usize) -> Path {
        if self.0 >> panel & 1 == 1 { Path::Dense } else { Path::Sparse }
    }

    pub(super) fn set_dense(&mut self, panel: usize) {
        self.0 |= 1 << panel;
    }
}

/// The first step on a path with a batch buffer runs as it is queued: kernels are compiled and libraries set up
/// in it. The second is recorded.
enum Recording<G> {
    RunOnce,
    Recorded(G),
}

/// Recordings kept, of each segment; more buffers than this are taken for a caller who allocates one per batch.
const RECORDINGS: usize = 16;
const SEGMENTS: usize = 3;

/// What was recorded of steps.
pub(super) struct Recordings<G>(HashMap<RecordingKey, Recording<G>>);

impl<G> Default for Recordings<G> {
    fn default() -> Recordings<G> {
        Recordings(HashMap::new())
    }
}

impl<G> Recordings<G> {
    /// Queues `launches`: by replaying their recording, by recording them, or launch by launch.
    pub(super) fn queue<D: Device<Graph = G>>(
        &mut self,
        device: &mut D,
        key: RecordingKey,
        launches: impl Fn(&mut D) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let recording = match self.0.get(&key) {
            Some(Recording::Recorded(graph)) if device.replays() => return device.replay(graph),
            Some(Recording::RunOnce) if device.begin_recording()? => {
                let queued = launches(device);
                let graph = device.end_recording()?;
                queued?;
                device.replay(&graph)?;
                Recording::Recorded(graph)
            }
            _ => {
                launches(device)?;
                Recording::RunOnce
            }
        };
        let most = if key.segment == Segment::Whole { RECORDINGS } else { SEGMENTS * RECORDINGS };
        if self.0.len() >= most && !self.0.contains_key(&key) {
            self.0.clear();
        }
        self.0.insert(key, recording);
        Ok(())
    }
}

impl<D: Device> CudaStep<D> {
    /// What a step is.
    pub fn spec(&self) -> &StepSpec {
        &self.spec
    }

    /// The sizes of the first panel's part of a step.
    pub fn plan(&self) -> &DevicePlan {
        &self.panels[0].plan
    }

    /// Bytes of a batch buffer: [B,d] float32.
    pub fn batch_bytes(&self) -> usize {
        4 * self.spec.batch * self.spec.width
    }
}

//! A whole training step on a device, and the evaluation of a batch.
//!
//! A step is a fixed sequence of launches: whatever depends on data stays on the device. Its first kernel takes the
//! step's constants from a mailbox, its last one leaves the report there, and nobody waits, so that the next step can
//! be queued before this one's report is read ([`CudaStep::submit`], [`CudaStep::finish`]). A step that must
//! not be done (NaN in the batch, a loss that is not finite, more pairs than the lists hold) sets a status on the
//! device, at which every later kernel returns at once, those of steps already queued included. The weights
//! stay as they were until the host has cleared the status.

use std::collections::HashMap;

use bytemuck::Zeroable;

use crate::activation::Activation;
use crate::activations::SparseActivations;
use crate::error::{DeviceError, StepError};
use crate::outcome::{StepReport, Terms};
use crate::parameters::Parameters;
use crate::path::Path;
use crate::spec::{Schedule, StepSpec};
use crate::state::State;
use crate::stats::{Evaluation, Sums};

use super::buffers::{Buffers, DenseBuffers, arrivals};
use super::device::Device;
use super::forward::Purpose;
use super::launch::select_batch::HISTOGRAM;
use super::launch::update::{Derive, Derived};
use super::layout::{
    BatchCut, Clip, Dead, MAILBOX_BYTES, NOTHING, REPLY, ROW_RESULT_BYTES, Report, Scalars,
    frequency_targets, status,
};
use super::plan::{DeviceOptions, DevicePlan};
pub use super::resident::CudaStep;
use super::resident::{Mailbox, Recording};

/// A step under way.
#[derive(Debug)]
pub struct Pending {
    mailbox: usize,
    path: Path,
    step: u64,
}

/// How a step ended that is no error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done(StepReport),
    /// More pairs may be active than the lists hold. Nothing has changed; after [`CudaStep::clear`] the same
    /// batch, submitted again, takes the dense path.
    Refused,
}

/// Mailboxes before one is shared by batches: more than batches are ever under way.
const MAILBOXES: usize = 8;

/// Recordings kept; more buffers than this are taken for a caller who allocates one per batch.
const RECORDINGS: usize = 16;

impl<D: Device> CudaStep<D> {
    /// A run that begins with the given weights and has done no step.
    ///
    /// # Errors
    /// A spec out of range, arrays of other sizes, too little memory.
    pub fn new(
        device: &mut D,
        spec: StepSpec,
        options: DeviceOptions,
        weights: Parameters,
    ) -> Result<CudaStep<D>, StepError> {
        let plan = DevicePlan::new(&spec, &options)?;
        let buffers = Buffers::allocate(device, &plan)?;
        let mut step = CudaStep {
            choice: plan.path_choice(),
            spec,
            options,
            plan,
            buffers,
            dense: None,
            threshold: None,
            done: 0,
            submitted: 0,
            mailboxes: Vec::new(),
            recorded: HashMap::new(),
        };
        let targets = frequency_targets(&spec.loss, spec.features);
        device.upload(&mut step.buffers.targets, 0, bytemuck::bytes_of(&targets))?;
        if let (Some(to), Some(most)) = (&mut step.buffers.clip, spec.gradient_clip) {
            device.upload(to, 0, bytemuck::bytes_of(&Clip { most, scale: 1.0, unused: 0 }))?;
        }
        step.clear_selection(device)?;
        if let Some(to) = &mut step.buffers.group_ends {
            let ends: Vec<u32> = spec.prefixes.ends(spec.features).map(|end| end as u32).collect();
            device.upload(to, 0, bytemuck::cast_slice(&ends))?;
        }
        if let (Some(to), Some(loss)) = (&mut step.buffers.dead, spec.dead) {
            let dead = Dead { coefficient: loss.kind.coefficient(), ..Zeroable::zeroed() };
            device.upload(to, 0, bytemuck::bytes_of(&dead))?;
        }
        device.zero(&mut step.buffers.report, 0, size_of::<Report>())?;
        device.zero(&mut step.buffers.arrivals, 0, 4 * arrivals(&step.plan))?;
        weights.check(&spec)?;
        step.load(device, &State::new(weights))?;
        Ok(step)
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

    /// One optimizer step on `batch` [B,d], whichever path it takes, and its report.
    ///
    /// # Errors
    /// NaN or infinity in the batch or in the loss, a norm of 0 that the MSE divides by: nothing has changed.
    pub fn step(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        schedule: &Schedule,
    ) -> Result<StepReport, StepError> {
        loop {
            let pending = self.submit(device, batch, schedule)?;
            match self.finish(device, pending) {
                Ok(Outcome::Done(report)) => return Ok(report),
                // The path is another one now, on which nothing is refused.
                Ok(Outcome::Refused) => self.clear(device)?,
                Err(error) => {
                    self.clear(device)?;
                    return Err(error);
                }
            }
        }
    }

    /// Queues an optimizer step on `batch` [B,d], which must stay as it is until the step is finished.
    ///
    /// # Errors
    /// What the device says; too little memory for the dense path.
    pub fn submit(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        schedule: &Schedule,
    ) -> Result<Pending, StepError> {
        let step = self.submitted + 1;
        let path = self.choice.of_step(step);
        self.prepare_path(device, path)?;
        let mailbox = self.free_mailbox(device, device.identity(batch))?;
        let scalars = self.scalars(schedule, self.plan.rows, step);
        device.put(&mut self.mailboxes[mailbox].place, 0, bytemuck::bytes_of(&scalars))?;
        self.queue(device, batch, path, mailbox)?;
        device.post(&mut self.mailboxes[mailbox].place)?;
        self.mailboxes[mailbox].taken = true;
        self.submitted = step;
        Ok(Pending { mailbox, path, step })
    }

    /// Waits for a step and reads its report. Steps are finished in the order in which they were submitted.
    ///
    /// # Errors
    /// As [`CudaStep::step`]; after an error, and after a refusal, nothing more is done on the device until
    /// [`CudaStep::clear`].
    pub fn finish(&mut self, device: &mut D, pending: Pending) -> Result<Outcome, StepError> {
        let Pending { mailbox, path, step } = pending;
        let mut report = Report::zeroed();
        device.collect(&self.mailboxes[mailbox].place, REPLY, bytemuck::bytes_of_mut(&mut report))?;
        self.mailboxes[mailbox].taken = false;
        match report.status {
            status::RUNNING => {}
            status::OVERFLOW_OF_PAIRS => {
                self.choice.after_refusal();
                return Ok(Outcome::Refused);
            }
            _ => return Err(self.refusal(&report, step)),
        }
        if report.step != step {
            return Err(StepError::Device(DeviceError::Failed {
                operation: format!("training step {step}"),
                reason: format!("its mailbox holds the report of step {}", report.step),
            }));
        }
        self.done = step;
        if let Activation::BatchTopK { threshold, .. } = self.spec.activation {
            let smallest = (report.smallest != NOTHING).then(|| f32::from_bits(report.smallest));
            self.threshold = threshold.after(step, self.threshold, smallest);
        }
        // What lists would hold: with thresholds more than the active pairs.
        let listed = report.active.max(report.candidates);
        self.choice.done(step, (path == Path::Dense).then_some(listed));
        if report.diverged != 0 {
            return Err(StepError::Diverged { step });
        }
        Ok(Outcome::Done(self.reported(&report, path)))
    }

    /// Forgets a refusal, and with it the steps that were queued behind it: all of them must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn clear(&mut self, device: &mut D) -> Result<(), StepError> {
        device.zero(&mut self.buffers.report, 0, size_of::<Report>())?;
        self.submitted = self.done;
        Ok(())
    }

    /// The forward pass alone on the first `rows` ≤ B rows of `batch`.
    ///
    /// # Errors
    /// NaN or infinity in the batch.
    ///
    /// # Panics
    /// If `rows` is more than B.
    pub fn evaluate(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<Evaluation, StepError> {
        let mut evaluation = Evaluation::new(self.plan.width, self.plan.features);
        if rows == 0 {
            return Ok(evaluation);
        }
        let (report, _) = self.pass(device, batch, rows)?;
        let mut counts = vec![0u32; self.plan.features];
        device.download(&self.buffers.counts, 0, bytemuck::cast_slice_mut(&mut counts))?;
        device.download(&self.buffers.column_sum, 0, bytemuck::cast_slice_mut(&mut evaluation.row_sum))?;
        evaluation.sums = self.sums(&report, rows);
        evaluation.firings = counts.into_iter().map(u64::from).collect();
        Ok(evaluation)
    }

    /// The active features of the first `rows` ≤ B rows of `batch`.
    ///
    /// # Errors
    /// As [`CudaStep::evaluate`].
    ///
    /// # Panics
    /// If `rows` is more than B.
    pub fn encode(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<SparseActivations, StepError> {
        if rows == 0 {
            return Ok(SparseActivations::of_dense(&[], 1));
        }
        let (_, path) = self.pass(device, batch, rows)?;
        match path {
            Path::Sparse => self.listed_activations(device, rows),
            Path::Dense => self.dense_activations(device, rows),
        }
    }

    /// A forward pass, on the dense path if the lists are too short: its report, and the path it took.
    fn pass(&mut self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(Report, Path), StepError> {
        assert!(rows <= self.plan.rows, "an evaluation of {rows} rows in buffers for {}", self.plan.rows);
        let mut path = if self.plan.of_batch { Path::Dense } else { self.choice.next() };
        loop {
            self.prepare_path(device, path)?;
            let scalars = self.scalars(&Schedule::constant(0.0), rows, self.submitted);
            device.upload(&mut self.buffers.scalars, 0, bytemuck::bytes_of(&scalars))?;
            self.forward(device, batch, rows, path, Purpose::Evaluation)?;
            let mut report = Report::zeroed();
            device.download(&self.buffers.report, 0, bytemuck::bytes_of_mut(&mut report))?;
            if report.status == status::RUNNING {
                return Ok((report, path));
            }
            device.zero(&mut self.buffers.report, 0, size_of::<Report>())?;
            if report.status != status::OVERFLOW_OF_PAIRS {
                return Err(self.refusal(&report, self.submitted));
            }
            path = Path::Dense;
        }
    }

    /// ‖x̂ − x‖² of the first `rows` rows of the batch that was evaluated last.
    ///
    /// # Errors
    /// What the device says.
    pub fn squared_errors(&self, device: &mut D, rows: usize) -> Result<Vec<f32>, StepError> {
        let mut results = vec![0u8; rows * ROW_RESULT_BYTES];
        device.download(&self.buffers.results, 0, &mut results)?;
        // The error is the first number of a result.
        let first = |result: &[u8]| bytemuck::pod_read_unaligned(&result[..size_of::<f32>()]);
        Ok(results.chunks_exact(ROW_RESULT_BYTES).map(first).collect())
    }

    fn prepare_path(&mut self, device: &mut D, path: Path) -> Result<(), StepError> {
        if (path == Path::Dense || self.plan.selects) && self.dense.is_none() {
            self.dense = Some(DenseBuffers::allocate(device, &self.plan)?);
        }
        Ok(())
    }

    fn scalars(&self, schedule: &Schedule, rows: usize, step: u64) -> Scalars {
        Scalars::new(&self.spec.loss, &self.spec.adam, schedule, rows, step)
    }

    /// A mailbox that no step under way uses, if possible the one of the last step on this batch, whose recording uses it.
    fn free_mailbox(&mut self, device: &mut D, batch: u64) -> Result<usize, DeviceError> {
        let free = |mailbox: &Mailbox<D::Mailbox>| !mailbox.taken;
        let of_batch = |mailbox: &Mailbox<D::Mailbox>| !mailbox.taken && mailbox.batch == batch;
        let found = self.mailboxes.iter().position(of_batch).or_else(|| {
            // Another batch's keeps its recording while there can be one more.
            let all = self.mailboxes.len() >= MAILBOXES;
            self.mailboxes.iter().position(free).filter(|_| all)
        });
        if let Some(found) = found {
            self.mailboxes[found].batch = batch;
            return Ok(found);
        }
        let place = device.mailbox(MAILBOX_BYTES)?;
        self.mailboxes.push(Mailbox { place, batch, taken: false });
        Ok(self.mailboxes.len() - 1)
    }

    /// Queues a training step: by replaying its recording, by recording it, or launch by launch.
    fn queue(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        path: Path,
        mailbox: usize,
    ) -> Result<(), DeviceError> {
        let key = (path, device.identity(batch), mailbox);
        let recording = match self.recorded.get(&key) {
            Some(Recording::Recorded(graph)) if device.replays() => return device.replay(graph),
            Some(Recording::RunOnce) if device.begin_recording()? => {
                let queued = self.queue_launches(device, batch, path, mailbox);
                let graph = device.end_recording()?;
                queued?;
                device.replay(&graph)?;
                Recording::Recorded(graph)
            }
            _ => {
                self.queue_launches(device, batch, path, mailbox)?;
                Recording::RunOnce
            }
        };
        if self.recorded.len() >= RECORDINGS && !self.recorded.contains_key(&key) {
            self.recorded.clear();
        }
        self.recorded.insert(key, recording);
        Ok(())
    }

    fn queue_launches(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        path: Path,
        mailbox: usize,
    ) -> Result<(), DeviceError> {
        let mailbox = device.memory(&self.mailboxes[mailbox].place);
        self.forward(device, batch, self.plan.rows, path, Purpose::Training(mailbox))?;
        self.train(device, batch, path, mailbox)
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

    fn refusal(&self, report: &Report, step: u64) -> StepError {
        let row = report.row as usize;
        match report.status {
            status::NON_FINITE_ROW => StepError::NonFiniteRow { row },
            status::ZERO_NORM => {
                StepError::ZeroNorm { row: report.zero_row as usize, mse: self.spec.loss.mse }
            }
            status::NON_FINITE_LOSS => StepError::NonFiniteLoss { step, loss: report.loss },
            unknown => StepError::Device(DeviceError::Failed {
                operation: "a training step".into(),
                reason: format!("the device reports the unknown status {unknown}"),
            }),
        }
    }

    /// A training step's report in the words of the host.
    fn reported(&self, report: &Report, path: Path) -> StepReport {
        let cells = self.plan.rows as f64 * self.plan.features as f64;
        StepReport {
            step: report.step,
            terms: Terms {
                mse: report.mse,
                penalty: report.penalty_term,
                min_sparsity: report.min_sparsity,
                max_sparsity: report.max_sparsity,
                density: report.density,
                dead: report.dead,
                below_target: report.below_target as usize,
            },
            sums: self.sums(report, self.plan.rows),
            path,
            rechecked: if path == Path::Sparse { report.candidates as f64 / cells } else { 0.0 },
        }
    }

    fn sums(&self, report: &Report, rows: usize) -> Sums {
        Sums {
            features: self.plan.features as u64,
            rows: rows as u64,
            squared_error: report.squared_error,
            centered_error: report.centered_error,
            uncentered_error: report.uncentered_error,
            rows_off_mean: report.rows_off_mean,
            rows_off_zero: report.rows_off_zero,
            squared_norm: report.squared_norm,
            deviation: report.deviation,
            cosine: report.cosine,
            norm_ratio: report.norm_ratio,
            active: report.active,
            active_squared: report.active_squared,
            l1: report.l1,
            penalty: report.penalty,
        }
    }
}

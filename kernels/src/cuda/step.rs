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
use thiserror::Error;

use crate::cpu::Parameters;
use crate::loss::Mse;
use crate::stats::{Sums, fraction_explained};
use crate::step::{Schedule, StepSpec};

use super::buffers::{Buffers, DenseBuffers, arrivals};
use super::device::{Device, DeviceError};
use super::forward::Purpose;
use super::launch::update::{Derive, Derived};
use super::layout::{MAILBOX_BYTES, REPLY, ROW_RESULT_BYTES, Report, Scalars, frequency_targets, status};
use super::plan::{Options, Path, PathChoice, Plan, PlanError};
pub use super::resident::CudaStep;
use super::resident::{Mailbox, Recording};

/// Why a step or an evaluation did not happen. The state is as before, except after
/// [`StepError::Diverged`] and [`StepError::Device`].
#[derive(Debug, Clone, PartialEq, Error)]
pub enum StepError {
    /// The kernels cannot do such a step.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An array has another length than the step's sizes ask for.
    #[error("{array} has {found} numbers, but {expected} were expected ({rule})")]
    Length {
        /// Which array.
        array: &'static str,
        /// Its length.
        found: usize,
        /// The length asked for.
        expected: usize,
        /// Where that length comes from.
        rule: &'static str,
    },
    /// A row of the batch holds NaN or infinity.
    #[error("row {row} of the batch holds NaN or an infinite value; the weights are unchanged")]
    NonFiniteRow {
        /// The row's number in the batch.
        row: usize,
    },
    /// The MSE divides by a norm that is 0.
    #[error("row {row} of the batch makes the denominator of the {mse:?} MSE 0; the weights are unchanged")]
    ZeroNorm {
        /// The row's number in the batch.
        row: usize,
        /// The MSE.
        mse: Mse,
    },
    /// The loss is not finite though the batch is.
    #[error("the loss of step {step} is {loss}; the weights are unchanged")]
    NonFiniteLoss {
        /// The step that was not done.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The update made a weight NaN or infinite though the loss was finite.
    #[error("step {step} made a weight NaN or infinite though the loss was finite")]
    Diverged {
        /// The step.
        step: u64,
    },
}

/// What a step reports, as of before the weights changed; names as in the training log.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // Each is documented where the training loop's own report declares it.
pub struct Stats {
    pub step: u64,
    pub loss: f64,
    pub mse: f64,
    pub penalty: f64,
    pub min_sparsity: f64,
    pub max_sparsity: f64,
    pub l0: f64,
    pub l0_std: f64,
    pub l1: f64,
    pub mse_sum: f64,
    pub mse_centered: f64,
    pub mse_uncentered: f64,
    pub explained_variance: f64,
    pub explained_variance_uncentered: f64,
    pub cosine_similarity: f64,
    pub l2_ratio: f64,
    pub density: f64,
    pub below_target: usize,
    pub path: Path,
    /// The share of all pairs that were candidates; 0 on the dense path.
    pub rechecked: f64,
}

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
    Done(Stats),
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
        options: Options,
        weights: &Parameters,
    ) -> Result<CudaStep<D>, StepError> {
        let plan = Plan::new(&spec, &options)?;
        let buffers = Buffers::allocate(device, &plan)?;
        let cells = spec.batch as u64 * spec.features as u64;
        let mut step = CudaStep {
            choice: PathChoice::new(plan.pairs, cells),
            spec,
            options,
            plan,
            buffers,
            dense: None,
            done: 0,
            submitted: 0,
            mailboxes: Vec::new(),
            recorded: HashMap::new(),
        };
        let targets = frequency_targets(&spec.loss);
        device.upload(&mut step.buffers.targets, 0, bytemuck::bytes_of(&targets))?;
        device.zero(&mut step.buffers.report, 0, size_of::<Report>())?;
        device.zero(&mut step.buffers.arrivals, 0, 4 * arrivals(&step.plan))?;
        let zeros = Parameters::zeros(spec.width, spec.features);
        step.load(device, [weights, &zeros, &zeros], &[], &vec![0; spec.features])?;
        Ok(step)
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
    ) -> Result<Stats, StepError> {
        loop {
            let pending = self.submit(device, batch, schedule)?;
            match self.finish(device, pending) {
                Ok(Outcome::Done(stats)) => return Ok(stats),
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
        self.choice.done(step, (path == Path::Dense).then_some(report.active));
        if report.diverged != 0 {
            return Err(StepError::Diverged { step });
        }
        Ok(Outcome::Done(self.stats(&report, path)))
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
    pub fn evaluate(&mut self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<Sums, StepError> {
        assert!(rows <= self.plan.rows, "an evaluation of {rows} rows in buffers for {}", self.plan.rows);
        let mut sums = Sums::new(self.plan.width, self.plan.features);
        if rows == 0 {
            return Ok(sums);
        }
        let mut path = self.choice.next();
        let report = loop {
            self.prepare_path(device, path)?;
            let scalars = self.scalars(&Schedule::constant(0.0), rows, self.submitted);
            device.upload(&mut self.buffers.scalars, 0, bytemuck::bytes_of(&scalars))?;
            self.forward(device, batch, rows, path, Purpose::Evaluation)?;
            let mut report = Report::zeroed();
            device.download(&self.buffers.report, 0, bytemuck::bytes_of_mut(&mut report))?;
            if report.status == status::RUNNING {
                break report;
            }
            device.zero(&mut self.buffers.report, 0, size_of::<Report>())?;
            if report.status != status::OVERFLOW_OF_PAIRS {
                return Err(self.refusal(&report, self.submitted));
            }
            path = Path::Dense;
        };
        let mut counts = vec![0u32; self.plan.features];
        device.download(&self.buffers.counts, 0, bytemuck::cast_slice_mut(&mut counts))?;
        device.download(&self.buffers.column_sum, 0, bytemuck::cast_slice_mut(&mut sums.row_sum))?;
        Ok(Sums {
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
            firings: counts.into_iter().map(u64::from).collect(),
            ..sums
        })
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
        if path == Path::Dense && self.dense.is_none() {
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

    fn stats(&self, report: &Report, path: Path) -> Stats {
        let rows = self.plan.rows as f64;
        let (off_mean, off_zero) = (report.rows_off_mean as f64, report.rows_off_zero as f64);
        let l0 = report.active as f64 / rows;
        Stats {
            step: report.step,
            loss: report.loss,
            mse: report.mse,
            penalty: report.penalty_term,
            min_sparsity: report.min_sparsity,
            max_sparsity: report.max_sparsity,
            l0,
            l0_std: (report.active_squared as f64 / rows - l0 * l0).max(0.0).sqrt(),
            l1: report.l1 / rows,
            mse_sum: report.squared_error / rows,
            mse_centered: report.centered_error / off_mean,
            mse_uncentered: report.uncentered_error / off_zero,
            explained_variance: fraction_explained(report.squared_error, report.deviation),
            explained_variance_uncentered: fraction_explained(report.squared_error, report.squared_norm),
            cosine_similarity: report.cosine / off_zero,
            l2_ratio: report.norm_ratio / off_zero,
            density: l0 / self.plan.features as f64,
            below_target: report.below_target as usize,
            path,
            rechecked: report.candidates as f64 / (rows * self.plan.features as f64),
        }
    }
}

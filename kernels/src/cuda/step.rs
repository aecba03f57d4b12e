//! A whole training step on a device, and the evaluation of a batch.
//!
//! A step is a fixed sequence of launches: whatever depends on data stays on the device. Its first kernel takes the
//! step's constants from a mailbox, its last one leaves the report there, and nobody waits, so that the next step can
//! be queued before this one's report is read ([`CudaStep::submit`], [`CudaStep::finish`]). A step that must
//! not be done (NaN in the batch, a loss that is not finite, more pairs than the lists hold) sets a status on the
//! device, at which every later kernel returns at once, those of steps already queued included. The weights
//! stay as they were until the host has cleared the status.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;
use ranks::{Alone, Exchange};

use crate::activation::Activation;
use crate::activations::SparseActivations;
use crate::cpu::peers::Peers;
use crate::error::{DeviceError, StepError};
use crate::outcome::{StepReport, Terms};
use crate::panels::{Share, Tree};
use crate::parameters::Parameters;
use crate::path::Path;
use crate::spec::{Schedule, StepSpec};
use crate::state::{PanelStates, State};
use crate::stats::{Evaluation, Sums};

use super::device::Device;
use super::forward::Purpose;
use super::launch::Slice;
use super::layout::{NOTHING, REPLY, ROW_RESULT_BYTES, Report, Scalars, mailbox_bytes, status};
use super::panel::Panel;
use super::places::Meeting;
use super::plan::{DeviceOptions, DevicePlan};
pub use super::resident::CudaStep;
use super::resident::{Mailbox, Paths, RecordingKey, Recordings, Segment};

/// A step under way.
#[derive(Debug)]
pub struct Pending {
    mailbox: usize,
    paths: Paths,
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
        CudaStep::shared(device, spec, options, weights, Arc::new(Alone))
    }

    /// As [`CudaStep::new`] for one of several ranks, whose devices exchange bytes ([`Device::exchange`]) and all of which are given
    /// the same. They do together what one of them would do alone, bit for bit: each method that has a batch, and those that
    /// return something of all features, are called by all at the same time.
    ///
    /// # Errors
    /// As [`CudaStep::new`], ranks that do not divide the panels, and what cannot be computed panel by panel.
    pub fn shared(
        device: &mut D,
        spec: StepSpec,
        options: DeviceOptions,
        weights: Parameters,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CudaStep<D>, StepError> {
        let mut step = CudaStep::empty(device, spec, options, exchange)?;
        weights.check(&spec)?;
        step.load(device, &State::new(weights))?;
        Ok(step)
    }

    /// As [`CudaStep::shared`] for a rank that is given its own panels alone, and goes on where they are.
    ///
    /// # Errors
    /// As [`CudaStep::shared`] and [`CudaStep::restore_panels`].
    pub fn of_panels(
        device: &mut D,
        spec: StepSpec,
        options: DeviceOptions,
        states: &PanelStates,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CudaStep<D>, StepError> {
        let mut step = CudaStep::empty(device, spec, options, exchange)?;
        step.restore_panels(device, states)?;
        Ok(step)
    }

    /// Without numbers.
    fn empty(
        device: &mut D,
        spec: StepSpec,
        options: DeviceOptions,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CudaStep<D>, StepError> {
        let share = Share::new(&spec, &*exchange)?;
        let plans = DevicePlan::of_panels(&spec, &options, &share)?;
        let (meeting, parts) = Meeting::new(device, &spec, share, Peers(exchange))?;
        let mut panels = Vec::new();
        for (plan, part) in plans.into_iter().zip(parts) {
            panels.push(Panel::new(device, &spec, options, plan, part)?);
        }
        Ok(CudaStep {
            spec,
            panels,
            meeting,
            done: 0,
            submitted: 0,
            window_totals: VecDeque::new(),
            mailboxes: Vec::new(),
            recorded: Recordings::default(),
        })
    }

    /// Bytes of device memory that a step takes always, and those that its dense passes take in addition; the batch apart.
    ///
    /// # Errors
    /// As [`CudaStep::shared`].
    pub fn memory(
        spec: &StepSpec,
        options: &DeviceOptions,
        exchange: &dyn Exchange,
    ) -> Result<(usize, usize), StepError> {
        let share = Share::new(spec, exchange)?;
        let plans = DevicePlan::of_panels(spec, options, &share)?;
        let always: usize = plans.iter().map(DevicePlan::bytes).sum();
        let together = super::places::bytes_of_several(spec, &share);
        Ok((always + together, plans.iter().map(DevicePlan::dense_bytes).sum()))
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
        let paths = Paths::new(self.panels.iter().map(|panel| panel.choice.of_step(step)));
        self.prepare_paths(device, paths)?;
        let mailbox = self.free_mailbox(device, device.identity(batch))?;
        let scalars = self.scalars(schedule, self.spec.batch, step);
        device.put(&mut self.mailboxes[mailbox].place, 0, bytemuck::bytes_of(&scalars))?;
        self.queue(device, batch, paths, mailbox)?;
        device.post(&mut self.mailboxes[mailbox].place)?;
        self.mailboxes[mailbox].taken = true;
        self.submitted = step;
        Ok(Pending { mailbox, paths, step })
    }

    /// Waits for a step and reads its report. Steps are finished in the order in which they were submitted.
    ///
    /// # Errors
    /// As [`CudaStep::step`]; after an error, and after a refusal, nothing more is done on the device until
    /// [`CudaStep::clear`].
    pub fn finish(&mut self, device: &mut D, pending: Pending) -> Result<Outcome, StepError> {
        let Pending { mailbox, paths, step } = pending;
        let mut reports = vec![Report::zeroed(); self.all_panels()];
        let to = bytemuck::cast_slice_mut(&mut reports);
        device.collect(&self.mailboxes[mailbox].place, REPLY, to)?;
        self.mailboxes[mailbox].taken = false;
        if let Some(refused) = refused(&reports) {
            if refused.status != status::OVERFLOW_OF_PAIRS {
                return Err(self.refusal(refused, step));
            }
            let own = &reports[self.own_panels()];
            let full = own.iter().zip(&mut self.panels).filter(|(report, _)| report.status == refused.status);
            full.for_each(|(_, panel)| panel.choice.after_refusal());
            return Ok(Outcome::Refused);
        }
        if let Some(other) = reports.iter().find(|report| report.step != step) {
            return Err(StepError::Device(DeviceError::Failed {
                operation: format!("training step {step}"),
                reason: format!("its mailbox holds the report of step {}", other.step),
            }));
        }
        if self.meeting.is_none() {
            // Nobody else reports it.
            reports[0].dense = u32::from(paths.of(0) == Path::Dense);
        }
        self.done = step;
        self.window_totals.push_back(reports[0].active);
        if self.window_totals.len() > self.spec.sparsity_window {
            self.window_totals.pop_front();
        }
        if let Activation::BatchTopK { threshold, .. } = self.spec.activation {
            let [panel] = &mut self.panels[..] else { unreachable!("a plan refuses to divide batch-topk") };
            let smallest = (reports[0].smallest != NOTHING).then(|| f32::from_bits(reports[0].smallest));
            panel.threshold = threshold.after(step, panel.threshold, smallest);
        }
        let own = &reports[self.own_panels()];
        let whole = self.meeting.is_none();
        for (number, (panel, report)) in self.panels.iter_mut().zip(own).enumerate() {
            // What lists would hold: with thresholds more than the active pairs. Those are the panel's own if it is the only one.
            let listed = if whole { report.active.max(report.candidates) } else { report.candidates };
            panel.choice.done(step, (paths.of(number) == Path::Dense).then_some(listed));
        }
        if reports.iter().any(|report| report.diverged != 0) {
            return Err(StepError::Diverged { step });
        }
        Ok(Outcome::Done(self.reported(&reports)))
    }

    /// Forgets a refusal, and with it the steps that were queued behind it: all of them must have been finished.
    ///
    /// # Errors
    /// What the device says.
    pub fn clear(&mut self, device: &mut D) -> Result<(), StepError> {
        self.clear_reports(device)?;
        self.submitted = self.done;
        Ok(())
    }

    pub(crate) fn clear_reports(&mut self, device: &mut D) -> Result<(), DeviceError> {
        let mut panels = self.panels.iter_mut();
        panels.try_for_each(|panel| device.zero(&mut panel.buffers.report, 0, size_of::<Report>()))
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
        let mut evaluation = Evaluation::new(self.spec.width, self.spec.features);
        if rows == 0 {
            return Ok(evaluation);
        }
        let (report, _) = self.pass(device, batch, rows)?;
        let mut counts = Vec::new();
        for panel in &self.panels {
            let mut own = vec![0u32; panel.plan.features];
            device.download(&panel.buffers.counts, 0, bytemuck::cast_slice_mut(&mut own))?;
            counts.extend(own);
        }
        let sum = bytemuck::cast_slice_mut(&mut evaluation.row_sum);
        device.download(&self.panels[0].buffers.column_sum, 0, sum)?;
        evaluation.sums = self.sums(&report, rows);
        evaluation.firings = self.of_all_features(counts, 1)?.into_iter().map(u64::from).collect();
        Ok(evaluation)
    }

    /// The active features of the first `rows` ≤ B rows of `batch`.
    ///
    /// # Errors
    /// As [`CudaStep::evaluate`], and features on several ranks.
    ///
    /// # Panics
    /// If `rows` is more than B.
    pub fn encode(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
    ) -> Result<SparseActivations, StepError> {
        if self.meeting.as_ref().is_some_and(|meeting| !meeting.is_alone()) {
            return Err(StepError::Divided { what: "encoding rows" });
        }
        if rows == 0 {
            return Ok(SparseActivations::of_dense(&[], 1));
        }
        let (_, paths) = self.pass(device, batch, rows)?;
        let mut parts = Vec::new();
        for (number, panel) in self.panels.iter().enumerate() {
            parts.push(match paths.of(number) {
                Path::Sparse => panel.listed_activations(device, rows)?,
                Path::Dense => panel.dense_activations(device, rows)?,
            });
        }
        let starts = self.panels.iter().scan(0, |start, panel| {
            let own = *start;
            *start += panel.plan.features as u32;
            Some(own)
        });
        Ok(SparseActivations::side_by_side(&starts.zip(parts).collect::<Vec<_>>()))
    }

    /// A forward pass, on the dense path where lists are too short: its report, and the paths it took.
    fn pass(&mut self, device: &mut D, batch: &D::Buffer, rows: usize) -> Result<(Report, Paths), StepError> {
        let most = self.spec.batch;
        assert!(rows <= most, "an evaluation of {rows} rows in buffers for {most}");
        let path = |panel: &Panel<D>| if panel.plan.of_batch { Path::Dense } else { panel.choice.next() };
        let mut paths = Paths::new(self.panels.iter().map(path));
        loop {
            self.prepare_paths(device, paths)?;
            let scalars = self.scalars(&Schedule::constant(0.0), rows, self.submitted);
            for panel in &mut self.panels {
                device.upload(&mut panel.buffers.scalars, 0, bytemuck::bytes_of(&scalars))?;
            }
            self.evaluation(device, batch, rows, paths)?;
            let mut reports = vec![Report::zeroed(); self.panels.len()];
            for (panel, report) in self.panels.iter().zip(&mut reports) {
                device.download(&panel.buffers.report, 0, bytemuck::bytes_of_mut(report))?;
            }
            if reports.iter().all(|report| report.status == status::RUNNING) {
                return Ok((reports[0], paths));
            }
            self.clear_reports(device)?;
            for (number, report) in reports.iter().enumerate() {
                match report.status {
                    status::OVERFLOW_OF_PAIRS => paths.set_dense(number),
                    status::RUNNING | status::REFUSED_BY_OTHERS => {}
                    _ => return Err(self.refusal(report, self.submitted)),
                }
            }
        }
    }

    /// Queues a forward pass.
    fn evaluation(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        rows: usize,
        paths: Paths,
    ) -> Result<(), DeviceError> {
        let purpose = Purpose::Evaluation;
        let Some(meeting) = &self.meeting else {
            return self.panels[0].forward(device, batch, rows, paths.of(0), purpose);
        };
        self.queue_parts(device, batch, (rows, paths), meeting, &purpose)?;
        self.exchange_parts(device, rows, meeting)?;
        self.queue_rows(device, batch, rows, meeting)?;
        self.exchange_rows(device, rows, meeting)?;
        self.panels.iter().try_for_each(|panel| panel.report(device, batch, rows, &purpose))
    }

    /// ‖x̂ − x‖² of the first `rows` rows of the batch that was evaluated last.
    ///
    /// # Errors
    /// What the device says.
    pub fn squared_errors(&self, device: &mut D, rows: usize) -> Result<Vec<f32>, StepError> {
        let mut results = vec![0u8; rows * ROW_RESULT_BYTES];
        device.download(self.panels[0].results(), 0, &mut results)?;
        // The error is the first number of a result.
        let first = |result: &[u8]| bytemuck::pod_read_unaligned(&result[..size_of::<f32>()]);
        Ok(results.chunks_exact(ROW_RESULT_BYTES).map(first).collect())
    }

    /// θ of BatchTopK, once it has a value, as of the last step that was finished.
    pub fn threshold(&self) -> Option<f64> {
        self.panels[0].threshold
    }

    fn prepare_paths(&mut self, device: &mut D, paths: Paths) -> Result<(), DeviceError> {
        let mut panels = self.panels.iter_mut().enumerate();
        panels.try_for_each(|(number, panel)| panel.prepare(device, paths.of(number)))
    }

    /// Panels of all ranks.
    fn all_panels(&self) -> usize {
        self.meeting.as_ref().map_or(1, Meeting::panels)
    }

    /// The numbers of the panels that this rank owns.
    pub fn own_panels(&self) -> Range<usize> {
        self.meeting.as_ref().map_or(0..1, Meeting::own)
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
        let place = device.mailbox(mailbox_bytes(self.all_panels()))?;
        self.mailboxes.push(Mailbox { place, batch, taken: false });
        Ok(self.mailboxes.len() - 1)
    }

    /// Queues a training step.
    fn queue(
        &mut self,
        device: &mut D,
        batch: &D::Buffer,
        paths: Paths,
        mailbox: usize,
    ) -> Result<(), DeviceError> {
        let mut recorded = std::mem::take(&mut self.recorded);
        let queued = self.queue_segments(device, batch, paths, mailbox, &mut recorded);
        self.recorded = recorded;
        queued
    }

    /// The segments of a training step, each replayed, recorded, or queued launch by launch.
    fn queue_segments(
        &self,
        device: &mut D,
        batch: &D::Buffer,
        paths: Paths,
        mailbox: usize,
        recorded: &mut Recordings<D::Graph>,
    ) -> Result<(), DeviceError> {
        let identity = device.identity(batch);
        let key = |segment| RecordingKey { segment, paths, batch: identity, mailbox };
        let place = &self.mailboxes[mailbox].place;
        let rows = self.spec.batch;
        let Some(meeting) = &self.meeting else {
            return recorded.queue(device, key(Segment::Whole), |device| {
                let (panel, mailbox) = (&self.panels[0], device.memory(place));
                panel.forward(device, batch, rows, paths.of(0), Purpose::Training(mailbox))?;
                panel.train(device, batch, paths.of(0), Slice { buffer: mailbox, offset: REPLY })
            });
        };
        let parts = |device: &mut D| {
            let purpose = Purpose::Training(device.memory(place));
            self.queue_parts(device, batch, (rows, paths), meeting, &purpose)
        };
        let own_rows = |device: &mut D| self.queue_rows(device, batch, rows, meeting);
        let train = |device: &mut D| {
            let mailbox = device.memory(place);
            self.queue_training(device, batch, paths, mailbox)
        };
        let report = |device: &mut D| {
            let mailbox = device.memory(place);
            self.exchange_reports(device, mailbox, meeting)
        };
        if meeting.is_alone() {
            return recorded.queue(device, key(Segment::Whole), |device| {
                parts(device)?;
                own_rows(device)?;
                train(device)?;
                report(device)
            });
        }
        recorded.queue(device, key(Segment::Parts), parts)?;
        self.exchange_parts(device, rows, meeting)?;
        recorded.queue(device, key(Segment::Rows), own_rows)?;
        self.exchange_rows(device, rows, meeting)?;
        recorded.queue(device, key(Segment::Train), train)?;
        report(device)
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

    /// The reports of a training step in the words of the host.
    fn reported(&self, reports: &[Report]) -> StepReport {
        let cells = self.spec.batch as f64 * self.spec.features as f64;
        let mut terms = Tree::default();
        for report in reports {
            let Report { min_sparsity, max_sparsity, density, .. } = *report;
            terms.add([min_sparsity, max_sparsity, density], |left: [f64; 3], right| {
                [left[0] + right[0], left[1] + right[1], left[2] + right[2]]
            });
        }
        let [min_sparsity, max_sparsity, density] = terms.sum().unwrap_or_default();
        let sparse = reports.iter().filter(|report| report.dense == 0);
        let rechecked: u64 = sparse.map(|report| report.candidates).sum();
        let first = &reports[0];
        StepReport {
            step: first.step,
            terms: Terms {
                mse: first.mse,
                penalty: first.penalty_term,
                min_sparsity,
                max_sparsity,
                density,
                dead: first.dead,
                below_target: reports.iter().map(|report| report.below_target as usize).sum(),
            },
            sums: self.sums(first, self.spec.batch),
            path: if reports.iter().any(|report| report.dense != 0) { Path::Dense } else { Path::Sparse },
            rechecked: rechecked as f64 / cells,
        }
    }

    fn sums(&self, report: &Report, rows: usize) -> Sums {
        Sums {
            features: self.spec.features as u64,
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

/// The report of the panel that refuses a step, if one does; where others refuse as well because of it, it is the first one.
fn refused(reports: &[Report]) -> Option<&Report> {
    let mut refused = reports.iter().filter(|report| report.status != status::RUNNING);
    let first = refused.clone().next();
    refused.find(|report| report.status != status::REFUSED_BY_OTHERS).or(first)
}

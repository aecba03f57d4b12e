//! The engine on a GPU, or on anything else that implements [`Device`]: drives [`CudaStep`].
//!
//! Three batch buffers take turns. Two steps are in flight, each with a batch of its own, while the next batch travels into
//! the third buffer. It has the time of two steps to pass through pinned memory and over the bus. Its step is queued when
//! the first of the two is done, because that step's report says which path it takes. So a step is reported two calls after
//! it began ([`Engine::submit`]).
//!
//! Several engines can share a device ([`SharedDevice`]) and its batch buffers. A batch travels once for all of them. Their
//! steps on it run one after another, each with its own arrays and its own recorded graphs.

use std::borrow::Cow;
use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;

use half::f16;
use kernels::cpu::{Parameters, transposed};
use kernels::cuda::cuda_device::CudaDevice;
use kernels::cuda::device::{Device, DeviceError};
use kernels::cuda::launch::widen::Widen;
use kernels::cuda::plan::{self, Options, Plan};
use kernels::cuda::step::{CudaStep, Outcome, Pending, Stats, StepError};
use kernels::loss::Mse;
use kernels::stats::Sums;
use kernels::step::{Schedule, StepSpec};

use super::{Engine, EngineError, EngineState, EvalStats, Path, Rows, StepStats, check_length};

/// Trains on an NVIDIA GPU.
pub type CudaEngine = DeviceEngine<CudaDevice>;

/// Steps in flight at a time, and places for batches: one more, for the next.
const UNDER_WAY: usize = 2;
const SLOTS: usize = UNDER_WAY + 1;

/// Trains on a device.
pub struct DeviceEngine<D: Device> {
    // The device is dropped last: buffers and graphs are its own.
    step: CudaStep<D>,
    begun: VecDeque<Begun>,
    shared: SharedDevice<D>,
}

/// A step under way.
struct Begun {
    pending: Pending,
    /// The batch buffer that it reads.
    slot: usize,
    schedule: Schedule,
}

/// A device, and the batches on it, for one engine or for several that train on the same batches.
pub struct SharedDevice<D: Device>(Rc<RefCell<Shared<D>>>);

struct Shared<D: Device> {
    /// Made by the first engine.
    slots: Option<[Slot<D::Buffer>; SLOTS]>,
    /// The slot that is written next.
    next: usize,
    device: D,
}

/// A place for a batch.
struct Slot<B> {
    /// The batch in float32.
    buffer: B,
    /// Where a batch in half precision arrives, once there was one.
    half: Option<B>,
    /// B·d.
    numbers: usize,
    /// The batch in it, if another engine may still ask for it.
    number: Option<u64>,
    /// Steps under way that read it.
    readers: usize,
}

impl<D: Device> Clone for SharedDevice<D> {
    fn clone(&self) -> Self {
        SharedDevice(Rc::clone(&self.0))
    }
}

impl<D: Device> SharedDevice<D> {
    /// A device for engines to share.
    pub fn new(device: D) -> SharedDevice<D> {
        SharedDevice(Rc::new(RefCell::new(Shared { slots: None, next: 0, device })))
    }

    /// Calls `with` with the device.
    pub fn with<R>(&self, with: impl FnOnce(&mut D) -> R) -> R {
        with(&mut self.0.borrow_mut().device)
    }

    /// Checks that engines for all of these steps fit into the device's free memory together, with dense steps, which take
    /// theirs only when the first one comes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with the sum, or a step that the kernels cannot do.
    pub fn check_memory(&self, steps: &[(StepSpec, Options)]) -> Result<(), EngineError> {
        let shared = self.0.borrow();
        let (wanted, free) = (device_memory(steps)?, shared.device.free_memory()?);
        if wanted <= free {
            return Ok(());
        }
        let what = match steps.len() {
            1 => "weights, moments, lists and dense steps".to_owned(),
            engines => format!("weights, moments, lists and dense steps of {engines} autoencoders"),
        };
        Err(DeviceError::OutOfMemory { what, wanted, free }.into())
    }

    fn lock(&self) -> RefMut<'_, Shared<D>> {
        self.0.borrow_mut()
    }
}

impl<D: Device> Shared<D> {
    /// Makes the batch buffers, or checks that the existing ones have this size.
    fn prepare(&mut self, bytes: usize, numbers: usize) -> Result<(), EngineError> {
        if let Some(slots) = &self.slots {
            return check_length("the batch", numbers, slots[0].numbers, "B·d of the engines on this device");
        }
        let mut slot = || -> Result<_, DeviceError> {
            let buffer = self.device.allocate(bytes, "a batch")?;
            Ok(Slot { buffer, half: None, numbers, number: None, readers: 0 })
        };
        self.slots = Some([slot()?, slot()?, slot()?]);
        Ok(())
    }

    /// The slot that holds the batch: where it lies already, if it has the number of one that was placed before, else
    /// the one whose turn it is.
    fn place(&mut self, number: Option<u64>, batch: Rows<'_>) -> Result<usize, EngineError> {
        let Shared { slots, next, device } = self;
        let slots = slots.as_mut().expect("engines make the slots");
        if number.is_some()
            && let Some(slot) = slots.iter().position(|slot| slot.number == number)
        {
            return Ok(slot);
        }
        let at = *next;
        let slot = &mut slots[at];
        if slot.readers > 0 {
            let reason = "a step on the batch whose place it takes is still under way".to_owned();
            return Err(DeviceError::Failed { operation: "placing a batch".to_owned(), reason }.into());
        }
        slot.number = None;
        match batch {
            Rows::F32(numbers) => device.upload(&mut slot.buffer, 0, bytemuck::cast_slice(numbers))?,
            Rows::F16(numbers) => slot.widen(device, numbers)?,
        }
        slot.number = number;
        *next = (at + 1) % SLOTS;
        Ok(at)
    }

    /// Device and slot at once.
    fn slot(&mut self, at: usize) -> (&mut D, &mut Slot<D::Buffer>) {
        (&mut self.device, &mut self.slots.as_mut().expect("engines make the slots")[at])
    }
}

impl<B> Slot<B> {
    /// Uploads a batch as it is and widens it to float32 on the device.
    fn widen<D: Device<Buffer = B>>(&mut self, device: &mut D, batch: &[f16]) -> Result<(), DeviceError> {
        let half = match &mut self.half {
            Some(buffer) => buffer,
            none => none.insert(device.allocate(2 * self.numbers, "a batch in half precision")?),
        };
        device.upload(half, 0, bytemuck::cast_slice(batch))?;
        Widen { from: half, out: &self.buffer, numbers: batch.len() }.launch(device)
    }
}

/// Bytes of device memory that training takes at its peak: for each of `steps` weights and moments, the step's lists and,
/// for the dense steps at the start, dense arrays; and the places for batches, which all share.
///
/// # Errors
/// A step that the kernels cannot do.
pub fn device_memory(steps: &[(StepSpec, Options)]) -> Result<usize, EngineError> {
    let (mut engines, mut batches) = (0, 0);
    for (spec, options) in steps {
        let plan = Plan::new(spec, options)?;
        engines += plan.bytes() + plan.dense_bytes();
        // In float32, and as they may arrive, in half precision.
        batches = batches.max(SLOTS * (4 + 2) * plan.rows * plan.width);
    }
    Ok(engines + batches)
}

impl<D: Device> DeviceEngine<D> {
    /// An engine with a device of its own and the given weights that has done no step yet.
    ///
    /// # Errors
    /// A spec out of range or beyond the kernels' sizes, weights of other sizes, or a device with too little memory
    /// for all of training.
    pub fn new(
        device: D,
        spec: StepSpec,
        weights: &sae::Weights,
        options: Options,
    ) -> Result<DeviceEngine<D>, EngineError> {
        DeviceEngine::on(&SharedDevice::new(device), spec, weights, options)
    }

    /// An engine on a shared device, with the given weights, that has done no step yet. Engines that share
    /// a device have batches of one size.
    ///
    /// # Errors
    /// As [`DeviceEngine::new`]; another size of the batch than engines on this device have. What the others may still
    /// allocate for dense steps is not known here: [`SharedDevice::check_memory`] adds it up beforehand.
    pub fn on(
        shared: &SharedDevice<D>,
        spec: StepSpec,
        weights: &sae::Weights,
        options: Options,
    ) -> Result<DeviceEngine<D>, EngineError> {
        spec.validate()?;
        let (d, f) = (spec.width, spec.features);
        check_length("W_enc", weights.w_enc.len(), d * f, "d·F")?;
        check_length("b_enc", weights.b_enc.len(), f, "F")?;
        check_length("W_dec", weights.w_dec.len(), f * d, "F·d")?;
        check_length("b_dec", weights.b_dec.len(), d, "d")?;
        shared.check_memory(&[(spec, options)])?;
        let parameters = Parameters {
            encoder: transposed(&weights.w_enc, d, f),
            encoder_bias: weights.b_enc.clone(),
            decoder: weights.w_dec.clone(),
            decoder_bias: weights.b_dec.clone(),
        };
        let mut lock = shared.lock();
        let step = CudaStep::new(&mut lock.device, spec, options, &parameters)?;
        lock.prepare(step.batch_bytes(), spec.batch * d)?;
        drop(lock);
        Ok(DeviceEngine { step, begun: VecDeque::new(), shared: shared.clone() })
    }

    /// Calls `with` with the device and the step, for measurements.
    pub fn with_device<R>(&mut self, with: impl FnOnce(&mut D) -> R) -> R {
        self.shared.with(with)
    }

    /// Begins a step on a batch of the right size, which may already lie on the device if it has a number.
    fn submit_batch(
        &mut self,
        number: Option<u64>,
        batch: Rows<'_>,
        schedule: &Schedule,
    ) -> Result<Option<StepStats>, EngineError> {
        let spec = self.step.spec();
        check_length("the batch", batch.numbers(), spec.batch * spec.width, "B·d")?;
        // First of all, so that it travels beside the steps in flight.
        let slot = self.shared.lock().place(number, batch)?;
        let done = if self.begun.len() == UNDER_WAY { self.finish()? } else { None };
        self.begin(slot, *schedule)?;
        Ok(done)
    }

    fn begin(&mut self, slot: usize, schedule: Schedule) -> Result<(), EngineError> {
        let mut shared = self.shared.lock();
        let (device, place) = shared.slot(slot);
        let pending = self.step.submit(device, &place.buffer, &schedule)?;
        place.readers += 1;
        self.begun.push_back(Begun { pending, slot, schedule });
        Ok(())
    }

    /// The forward pass alone on `batch` [rows, d]. More rows than a training batch are taken in parts, each with its own
    /// mean in the `centered` MSE; `after` sees the sums of each.
    fn forward(
        &mut self,
        batch: &[f32],
        mut after: impl FnMut(&CudaStep<D>, &mut D, &Sums) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let spec = self.step.spec();
        let (width, most) = (spec.width, spec.batch);
        let rows = batch.len() / width;
        check_length("the batch", batch.len(), rows * width, "a multiple of d")?;
        for (part, rows) in batch.chunks(most * width).enumerate() {
            let mut shared = self.shared.lock();
            let slot = shared.place(None, rows.into())?;
            let (device, place) = shared.slot(slot);
            match self.step.evaluate(device, &place.buffer, rows.len() / width) {
                Ok(sums) => after(&self.step, device, &sums)?,
                Err(error) => {
                    return Err(match EngineError::from(error) {
                        EngineError::NonFiniteRow { row } => {
                            EngineError::NonFiniteRow { row: row + part * most }
                        }
                        other => other,
                    });
                }
            }
        }
        Ok(())
    }

    /// Waits for the earliest step in flight, if there is one.
    fn next_outcome(&mut self) -> Option<(Result<Outcome, StepError>, usize, Schedule)> {
        let Begun { pending, slot, schedule } = self.begun.pop_front()?;
        let mut shared = self.shared.lock();
        let (device, place) = shared.slot(slot);
        let outcome = self.step.finish(device, pending);
        place.readers -= 1;
        Some((outcome, slot, schedule))
    }

    /// Waits for all steps that were begun, discards their results, and lets the device continue.
    fn abandon(&mut self) -> Result<Vec<(usize, Schedule)>, EngineError> {
        let mut abandoned = Vec::new();
        while let Some((_, slot, schedule)) = self.next_outcome() {
            abandoned.push((slot, schedule));
        }
        self.shared.with(|device| self.step.clear(device))?;
        Ok(abandoned)
    }
}

impl<D: Device> Drop for DeviceEngine<D> {
    /// Engines that share the device continue without this one: its steps in flight no longer hold their batches.
    fn drop(&mut self) {
        while self.next_outcome().is_some() {}
    }
}

impl<D: Device> Engine for DeviceEngine<D> {
    fn spec(&self) -> &StepSpec {
        self.step.spec()
    }

    fn step(&mut self, batch: &[f32], schedule: &Schedule) -> Result<StepStats, EngineError> {
        debug_assert!(self.begun.is_empty(), "a step between steps under way");
        if let Some(stats) = self.submit(batch, schedule)? {
            return Ok(stats);
        }
        Ok(self.finish()?.expect("a step was just begun"))
    }

    fn submit(&mut self, batch: &[f32], schedule: &Schedule) -> Result<Option<StepStats>, EngineError> {
        self.submit_batch(None, batch.into(), schedule)
    }

    fn submit_shared(
        &mut self,
        number: u64,
        batch: Rows<'_>,
        schedule: &Schedule,
    ) -> Result<Option<StepStats>, EngineError> {
        self.submit_batch(Some(number), batch, schedule)
    }

    fn finish(&mut self) -> Result<Option<StepStats>, EngineError> {
        while let Some((outcome, slot, schedule)) = self.next_outcome() {
            match outcome {
                Ok(Outcome::Done(stats)) => return Ok(Some(stats.into())),
                // Nothing has changed since this step; it and the steps after it are redone, another way.
                Ok(Outcome::Refused) => {
                    let behind = self.abandon()?;
                    for (slot, schedule) in [(slot, schedule)].into_iter().chain(behind) {
                        self.begin(slot, schedule)?;
                    }
                }
                Err(error) => {
                    self.abandon()?;
                    return Err(error.into());
                }
            }
        }
        Ok(None)
    }

    fn evaluate(&mut self, batch: &[f32]) -> Result<EvalStats, EngineError> {
        let mut sums = Sums::new(self.step.spec().width, self.step.spec().features);
        self.forward(batch, |_, _, part| {
            sums.merge(part);
            Ok(())
        })?;
        Ok(sums)
    }

    fn squared_errors(&mut self, batch: &[f32]) -> Result<Vec<f32>, EngineError> {
        let mut errors = Vec::new();
        self.forward(batch, |step, device, part| {
            errors.extend(step.squared_errors(device, part.rows as usize)?);
            Ok(())
        })?;
        Ok(errors)
    }

    fn weights(&self) -> Result<sae::Weights, EngineError> {
        let spec = self.step.spec();
        let Parameters { encoder, encoder_bias, decoder, decoder_bias } =
            self.shared.with(|device| self.step.weights(device))?;
        Ok(sae::Weights {
            d_in: spec.width,
            d_sae: spec.features,
            w_enc: transposed(&encoder, spec.features, spec.width),
            b_enc: encoder_bias,
            w_dec: decoder,
            b_dec: decoder_bias,
        })
    }

    fn frequencies(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Owned(self.shared.with(|device| self.step.frequencies(device))?))
    }

    fn steps_since_fired(&self) -> Result<Cow<'_, [u64]>, EngineError> {
        Ok(Cow::Owned(self.shared.with(|device| self.step.steps_since_fired(device))?))
    }

    fn state(&self) -> Result<EngineState, EngineError> {
        Ok(self.shared.with(|device| self.step.state(device))?)
    }

    fn restore(&mut self, state: EngineState) -> Result<(), EngineError> {
        Ok(self.shared.with(|device| self.step.restore(device, &state))?)
    }
}

impl From<Stats> for StepStats {
    fn from(stats: Stats) -> StepStats {
        StepStats {
            step: stats.step,
            loss: stats.loss,
            mse: stats.mse,
            penalty: stats.penalty,
            min_sparsity: stats.min_sparsity,
            max_sparsity: stats.max_sparsity,
            l0: stats.l0,
            l0_std: stats.l0_std,
            l1: stats.l1,
            mse_sum: stats.mse_sum,
            mse_centered: stats.mse_centered,
            mse_uncentered: stats.mse_uncentered,
            explained_variance: stats.explained_variance,
            explained_variance_uncentered: stats.explained_variance_uncentered,
            cosine_similarity: stats.cosine_similarity,
            l2_ratio: stats.l2_ratio,
            density: stats.density,
            below_target: stats.below_target,
            path: match stats.path {
                plan::Path::Dense => Path::Dense,
                plan::Path::Sparse => Path::Sparse,
            },
            rechecked: stats.rechecked,
        }
    }
}

impl From<StepError> for EngineError {
    fn from(error: StepError) -> EngineError {
        match error {
            StepError::Plan(error) => EngineError::Plan(error),
            StepError::Device(error) => EngineError::Device(error),
            StepError::Length { array, found, expected, rule } => {
                EngineError::Length { array, found, expected, rule }
            }
            StepError::NonFiniteRow { row } => EngineError::NonFiniteRow { row },
            StepError::ZeroNorm { row, mse } => {
                let reason = match mse {
                    Mse::Centered => "equals the mean of the batch's rows",
                    Mse::Sum | Mse::Uncentered => "is zero",
                };
                EngineError::ZeroNorm { row, reason, mse }
            }
            StepError::NonFiniteLoss { step, loss } => EngineError::NonFiniteLoss { step, loss },
            StepError::Diverged { step } => EngineError::Diverged { step },
        }
    }
}

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
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use half::f16;
use kernels::activations::SparseActivations;
use kernels::batch::Batch;
use kernels::cpu::decode::reconstruct;
use kernels::cpu::isa::Isa;
use kernels::cuda::cuda_device::CudaDevice;
use kernels::cuda::device::Device;
use kernels::cuda::launch::widen::Widen;
use kernels::cuda::plan::DeviceOptions;
use kernels::cuda::step::{CudaStep, Outcome, Pending};
use kernels::error::{DeviceError, StepError};
use kernels::outcome::StepReport;
use kernels::spec::{Schedule, StepSpec};
use kernels::state::{NewFeature, PanelStates, State};
use kernels::stats::Evaluation;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use ranks::{Alone, Exchange};

use super::layout;
use super::{Engine, Forward, Rows, StoredBatch};

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
    /// [B, d].
    shape: [usize; 2],
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
    pub fn check_memory(&self, steps: &[(StepSpec, DeviceOptions)]) -> Result<(), StepError> {
        self.check_memory_of_rank(steps, &Alone)
    }

    /// The same for one of several ranks, which share each of these steps.
    ///
    /// # Errors
    /// As [`SharedDevice::check_memory`], and what cannot be divided among ranks.
    pub fn check_memory_of_rank(
        &self,
        steps: &[(StepSpec, DeviceOptions)],
        exchange: &dyn Exchange,
    ) -> Result<(), StepError> {
        let shared = self.0.borrow();
        let (wanted, free) = (device_memory_of_rank(steps, exchange)?, shared.device.free_memory()?);
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
    /// Makes the batch buffers, or checks that the existing ones are for batches of this shape.
    fn prepare(&mut self, bytes: usize, shape: [usize; 2]) -> Result<(), StepError> {
        if let Some(slots) = &self.slots {
            return check_shape("the batch", &shape, &slots[0].shape);
        }
        let mut slot = || -> Result<_, DeviceError> {
            let buffer = self.device.allocate(bytes, "a batch")?;
            Ok(Slot { buffer, half: None, shape, number: None, readers: 0 })
        };
        self.slots = Some([slot()?, slot()?, slot()?]);
        Ok(())
    }

    /// The slot that holds the batch: where it lies already, if it has the number of one that was placed before, else
    /// the one whose turn it is.
    fn place(&mut self, number: Option<u64>, batch: Rows<'_>) -> Result<usize, StepError> {
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
            Rows::F32(rows) => device.upload(&mut slot.buffer, 0, bytemuck::cast_slice(row_major(&rows)?))?,
            Rows::F16(rows) => slot.widen(device, row_major(&rows)?)?,
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
            none => {
                let bytes = 2 * self.shape[0] * self.shape[1];
                none.insert(device.allocate(bytes, "a batch in half precision")?)
            }
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
pub fn device_memory(steps: &[(StepSpec, DeviceOptions)]) -> Result<usize, StepError> {
    device_memory_of_rank(steps, &Alone)
}

/// The same for one of several ranks, which share each of `steps`.
///
/// # Errors
/// As [`device_memory`], and what cannot be divided among ranks.
pub fn device_memory_of_rank(
    steps: &[(StepSpec, DeviceOptions)],
    exchange: &dyn Exchange,
) -> Result<usize, StepError> {
    let (mut engines, mut batches) = (0, 0);
    for (spec, options) in steps {
        let (always, dense) = CudaStep::<CudaDevice>::memory(spec, options, exchange)?;
        engines += always + dense;
        // In float32, and as they may arrive, in half precision.
        batches = batches.max(SLOTS * (4 + 2) * spec.batch * spec.width);
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
        options: DeviceOptions,
    ) -> Result<DeviceEngine<D>, StepError> {
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
        options: DeviceOptions,
    ) -> Result<DeviceEngine<D>, StepError> {
        DeviceEngine::of_rank(shared, spec, weights, options, Arc::new(Alone))
    }

    /// As [`DeviceEngine::on`] for one of several ranks that train one autoencoder together: [`CudaStep::shared`].
    ///
    /// # Errors
    /// As [`DeviceEngine::on`], and what cannot be divided among ranks.
    pub fn of_rank(
        shared: &SharedDevice<D>,
        spec: StepSpec,
        weights: &sae::Weights,
        options: DeviceOptions,
        exchange: Arc<dyn Exchange>,
    ) -> Result<DeviceEngine<D>, StepError> {
        spec.validate()?;
        let parameters = layout::parameters(weights);
        parameters.check(&spec)?;
        DeviceEngine::with(shared, (spec, options), exchange, |device, exchange| {
            CudaStep::shared(device, spec, options, parameters, exchange)
        })
    }

    /// As [`DeviceEngine::of_rank`] for a rank that is given its own panels alone: [`CudaStep::of_panels`].
    ///
    /// # Errors
    /// As [`DeviceEngine::of_rank`], and states of other panels or shapes.
    pub fn of_panels(
        shared: &SharedDevice<D>,
        spec: StepSpec,
        states: &PanelStates,
        options: DeviceOptions,
        exchange: Arc<dyn Exchange>,
    ) -> Result<DeviceEngine<D>, StepError> {
        spec.validate()?;
        DeviceEngine::with(shared, (spec, options), exchange, |device, exchange| {
            CudaStep::of_panels(device, spec, options, states, exchange)
        })
    }

    fn with(
        shared: &SharedDevice<D>,
        (spec, options): (StepSpec, DeviceOptions),
        exchange: Arc<dyn Exchange>,
        step: impl FnOnce(&mut D, Arc<dyn Exchange>) -> Result<CudaStep<D>, StepError>,
    ) -> Result<DeviceEngine<D>, StepError> {
        shared.check_memory_of_rank(&[(spec, options)], &*exchange)?;
        let mut lock = shared.lock();
        let step = step(&mut lock.device, exchange)?;
        lock.prepare(step.batch_bytes(), [spec.batch, spec.width])?;
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
    ) -> Result<Option<StepReport>, StepError> {
        let spec = self.step.spec();
        check_shape("the batch", batch.shape(), &[spec.batch, spec.width])?;
        // First of all, so that it travels beside the steps in flight.
        let slot = self.shared.lock().place(number, batch)?;
        let done = if self.begun.len() == UNDER_WAY { self.finish()? } else { None };
        self.begin(slot, *schedule)?;
        Ok(done)
    }

    fn begin(&mut self, slot: usize, schedule: Schedule) -> Result<(), StepError> {
        let mut shared = self.shared.lock();
        let (device, place) = shared.slot(slot);
        let pending = self.step.submit(device, &place.buffer, &schedule)?;
        place.readers += 1;
        self.begun.push_back(Begun { pending, slot, schedule });
        Ok(())
    }

    /// Calls `pass` with each part of `input` [rows, d] that fits into a batch's place, and the number of its rows. Each part
    /// has its own mean in the `centered` MSE.
    fn in_parts(
        &mut self,
        input: ArrayView2<'_, f32>,
        mut pass: impl FnMut(&mut CudaStep<D>, &mut D, &D::Buffer, usize) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let (width, most) = (self.step.spec().width, self.step.spec().batch);
        check_shape("the batch", input.shape(), &[input.nrows(), width])?;
        for (part, rows) in input.axis_chunks_iter(Axis(0), most).enumerate() {
            let mut shared = self.shared.lock();
            let slot = shared.place(None, rows.into())?;
            let (device, place) = shared.slot(slot);
            pass(&mut self.step, device, &place.buffer, rows.nrows()).map_err(|error| match error {
                StepError::NonFiniteRow { row } => StepError::NonFiniteRow { row: row + part * most },
                other => other,
            })?;
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
    fn abandon(&mut self) -> Result<Vec<(usize, Schedule)>, StepError> {
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

/// Why a device does not train a transcoder.
pub(super) const OTHER_TARGETS: StepError = StepError::Unsupported { what: "targets other than the input" };

/// The rows that an autoencoder reads and reconstructs.
fn reconstructed<'a>(batch: &Batch<'a>) -> Result<ArrayView2<'a, f32>, StepError> {
    if batch.has_its_own_target() {
        return Err(OTHER_TARGETS);
    }
    Ok(batch.input)
}

fn check_shape(array: &'static str, found: &[usize], expected: &[usize]) -> Result<(), StepError> {
    if found == expected { Ok(()) } else { Err(StepError::shape(array, found, expected)) }
}

/// The numbers of rows that lie one after another.
fn row_major<'a, T>(rows: &'a ArrayView2<'_, T>) -> Result<&'a [T], StepError> {
    rows.as_slice().ok_or_else(|| {
        DeviceError::Failed {
            operation: "placing a batch".to_owned(),
            reason: "its rows do not lie one after another".to_owned(),
        }
        .into()
    })
}

impl<D: Device> Forward for DeviceEngine<D> {
    fn spec(&self) -> &StepSpec {
        self.step.spec()
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation, StepError> {
        let mut whole = Evaluation::new(self.step.spec().width, self.step.spec().features);
        self.in_parts(reconstructed(&batch)?, |step, device, buffer, rows| {
            whole.merge(&step.evaluate(device, buffer, rows)?);
            Ok(())
        })?;
        Ok(whole)
    }

    fn squared_errors(&mut self, batch: Batch<'_>) -> Result<Array1<f32>, StepError> {
        let mut errors = Vec::new();
        self.in_parts(reconstructed(&batch)?, |step, device, buffer, rows| {
            step.evaluate(device, buffer, rows)?;
            errors.extend(step.squared_errors(device, rows)?);
            Ok(())
        })?;
        Ok(errors.into())
    }

    fn encode(&mut self, input: ArrayView2<'_, f32>) -> Result<SparseActivations, StepError> {
        let mut whole = SparseActivations::of_dense(&[], 1);
        self.in_parts(input, |step, device, buffer, rows| {
            whole.append(&step.encode(device, buffer, rows)?);
            Ok(())
        })?;
        Ok(whole)
    }

    /// The device finds the active features; x̂, a few decoder rows each, is summed here.
    fn reconstruct(&mut self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, StepError> {
        let activations = self.encode(input)?;
        let weights = self.shared.with(|device| self.step.weights(device))?;
        Ok(reconstruct(Isa::detect(), &weights, &activations))
    }

    fn weights(&self) -> Result<sae::Weights, StepError> {
        let parameters = self.shared.with(|device| self.step.weights(device))?;
        Ok(layout::used_weights(&parameters, self.step.spec(), self.step.threshold()))
    }
}

impl<D: Device> Engine for DeviceEngine<D> {
    fn step(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<StepReport, StepError> {
        debug_assert!(self.begun.is_empty(), "a step between steps under way");
        if let Some(report) = self.submit(batch, schedule)? {
            return Ok(report);
        }
        Ok(self.finish()?.expect("a step was just begun"))
    }

    fn submit(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<Option<StepReport>, StepError> {
        self.submit_batch(None, reconstructed(&batch)?.into(), schedule)
    }

    fn submit_shared(
        &mut self,
        number: u64,
        batch: StoredBatch<'_>,
        schedule: &Schedule,
    ) -> Result<Option<StepReport>, StepError> {
        if batch.target.is_some() {
            return Err(OTHER_TARGETS);
        }
        self.submit_batch(Some(number), batch.input, schedule)
    }

    fn finish(&mut self) -> Result<Option<StepReport>, StepError> {
        while let Some((outcome, slot, schedule)) = self.next_outcome() {
            match outcome {
                Ok(Outcome::Done(report)) => return Ok(Some(report)),
                // Nothing has changed since this step; it and the steps after it are redone, another way.
                Ok(Outcome::Refused) => {
                    let behind = self.abandon()?;
                    for (slot, schedule) in [(slot, schedule)].into_iter().chain(behind) {
                        self.begin(slot, schedule)?;
                    }
                }
                Err(error) => {
                    self.abandon()?;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn frequencies(&self) -> Result<Cow<'_, Array1<f32>>, StepError> {
        Ok(Cow::Owned(self.shared.with(|device| self.step.frequencies(device))?))
    }

    fn steps_since_fired(&self) -> Result<Cow<'_, Array1<u64>>, StepError> {
        Ok(Cow::Owned(self.shared.with(|device| self.step.steps_since_fired(device))?))
    }

    fn state(&self) -> Result<State, StepError> {
        self.shared.with(|device| self.step.state(device))
    }

    fn restore(&mut self, state: State) -> Result<(), StepError> {
        self.shared.with(|device| self.step.restore(device, &state))
    }

    fn own_panels(&self) -> Range<usize> {
        self.step.own_panels()
    }

    fn panel_weights(&self, number: usize) -> Result<(usize, sae::Weights), StepError> {
        let (features, parameters) = self.shared.with(|device| self.step.panel_weights(device, number))?;
        let weights = layout::used_weights(&parameters, self.step.spec(), self.step.threshold());
        Ok((features.start, weights))
    }

    fn decoder_norms(&self) -> Result<Vec<f64>, StepError> {
        self.shared.with(|device| self.step.decoder_norms(device))
    }

    fn encoder_norms(&self) -> Result<Vec<f64>, StepError> {
        self.shared.with(|device| self.step.encoder_norms(device))
    }

    fn shared_weights(&self) -> Result<(Array1<f32>, Option<Array2<f32>>), StepError> {
        let first = self.step.own_panels().start;
        let (_, weights) = self.shared.with(|device| self.step.panel_weights(device, first))?;
        Ok((weights.decoder_bias, weights.skip))
    }

    fn replace(&mut self, new: &[NewFeature]) -> Result<(), StepError> {
        self.shared.with(|device| self.step.replace(device, new))
    }

    fn panel_states(&self) -> Result<PanelStates, StepError> {
        self.shared.with(|device| self.step.panel_states(device))
    }

    fn restore_panels(&mut self, states: PanelStates) -> Result<(), StepError> {
        self.shared.with(|device| self.step.restore_panels(device, &states))
    }
}

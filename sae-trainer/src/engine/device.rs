//! The engine on a GPU, or on anything else that is a [`Device`]: drives [`CudaStep`].
//!
//! Two batch buffers take turns: while the device trains on one, the next batch travels into the other, and its step is
//! queued behind. So a step is reported one call later than it was begun ([`Engine::submit`]).

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;

use kernels::cpu::{Parameters, transposed};
use kernels::cuda::State as CudaState;
use kernels::cuda::cuda_device::CudaDevice;
use kernels::cuda::device::{Device, DeviceError, Properties};
use kernels::cuda::plan::{self, Options, Plan};
use kernels::cuda::step::{CudaStep, Outcome, Pending, Stats, StepError};
use kernels::loss::Mse;
use kernels::stats::Sums;
use kernels::step::{Schedule, StepSpec};

use super::{Engine, EngineError, EngineState, EvalStats, Path, StepStats, check_length};

/// Trains on an NVIDIA GPU.
pub type CudaEngine = DeviceEngine<CudaDevice>;

/// Trains on a device.
pub struct DeviceEngine<D: Device> {
    // The device is dropped last: buffers and graphs are its own.
    step: CudaStep<D>,
    batches: [D::Buffer; 2],
    /// The batch buffer that is written next.
    next: usize,
    begun: VecDeque<Begun<D>>,
    device: RefCell<D>,
}

/// A step under way.
struct Begun<D: Device> {
    pending: Pending<D>,
    batch: usize,
    schedule: Schedule,
}

/// Bytes of device memory that training takes at its peak: weights and moments, the step's lists and, for the dense steps
/// at the start, dense arrays; two batches.
pub fn device_memory(
    spec: &StepSpec,
    options: &Options,
    properties: &Properties,
) -> Result<usize, EngineError> {
    let plan = Plan::new(spec, options, properties)?;
    let batches = 2 * 4 * plan.rows * plan.width;
    Ok(plan.bytes(options) + plan.dense_bytes(options) + batches)
}

impl<D: Device> DeviceEngine<D> {
    /// An engine that begins with the given weights and has done no step.
    ///
    /// # Errors
    /// A spec out of range or beyond the kernels' sizes, weights of other sizes, or a device with too little memory
    /// for all of training.
    pub fn new(
        mut device: D,
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
        let (wanted, free) = (device_memory(&spec, &options, device.properties())?, device.free_memory()?);
        if wanted > free {
            let what = "weights, moments, lists and dense steps".to_owned();
            return Err(DeviceError::OutOfMemory { what, wanted, free }.into());
        }
        let parameters = Parameters {
            encoder: transposed(&weights.w_enc, d, f),
            encoder_bias: weights.b_enc.clone(),
            decoder: weights.w_dec.clone(),
            decoder_bias: weights.b_dec.clone(),
        };
        let step = CudaStep::new(&mut device, spec, options, &parameters)?;
        let mut batch = || device.allocate(step.batch_bytes(), "a batch");
        let batches = [batch()?, batch()?];
        Ok(DeviceEngine { step, batches, next: 0, begun: VecDeque::new(), device: RefCell::new(device) })
    }

    /// Calls `with` with the device and the step, for measurements.
    pub fn with_device<R>(&mut self, with: impl FnOnce(&mut D) -> R) -> R {
        with(self.device.get_mut())
    }

    fn begin(&mut self, batch: usize, schedule: Schedule) -> Result<(), EngineError> {
        let pending = self.step.submit(self.device.get_mut(), &self.batches[batch], &schedule)?;
        self.begun.push_back(Begun { pending, batch, schedule });
        Ok(())
    }

    /// Waits for all steps that were begun, whose results are of no interest, and lets the device go on.
    fn abandon(&mut self) -> Result<Vec<(usize, Schedule)>, EngineError> {
        let mut abandoned = Vec::new();
        while let Some(Begun { pending, batch, schedule }) = self.begun.pop_front() {
            let _ = self.step.finish(self.device.get_mut(), pending);
            abandoned.push((batch, schedule));
        }
        self.step.clear(self.device.get_mut())?;
        Ok(abandoned)
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
        let spec = self.step.spec();
        check_length("the batch", batch.len(), spec.batch * spec.width, "B·d")?;
        let buffer = self.next;
        self.device.get_mut().upload(&mut self.batches[buffer], 0, bytemuck::cast_slice(batch))?;
        self.begin(buffer, *schedule)?;
        self.next = 1 - buffer;
        // The other buffer is written next, so the step on it must be over by then.
        if self.begun.len() == self.batches.len() { self.finish() } else { Ok(None) }
    }

    fn finish(&mut self) -> Result<Option<StepStats>, EngineError> {
        while let Some(Begun { pending, batch, schedule }) = self.begun.pop_front() {
            match self.step.finish(self.device.get_mut(), pending) {
                Ok(Outcome::Done(stats)) => return Ok(Some(stats.into())),
                // Nothing has changed since this step; it and those behind it are done again, another way.
                Ok(Outcome::Refused) => {
                    let behind = self.abandon()?;
                    for (batch, schedule) in [(batch, schedule)].into_iter().chain(behind) {
                        self.begin(batch, schedule)?;
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
        let spec = self.step.spec();
        let (width, most) = (spec.width, spec.batch);
        let rows = batch.len() / width;
        check_length("the batch", batch.len(), rows * width, "a multiple of d")?;
        let mut sums = Sums::new(width, spec.features);
        // More rows than a training batch are taken in parts, each with its own mean in the `centered` MSE.
        for (part, rows) in batch.chunks(most * width).enumerate() {
            let buffer = &mut self.batches[self.next];
            self.device.get_mut().upload(buffer, 0, bytemuck::cast_slice(rows))?;
            let evaluated = self.step.evaluate(self.device.get_mut(), buffer, rows.len() / width);
            let error = match evaluated {
                Ok(more) => {
                    sums.merge(&more);
                    continue;
                }
                Err(error) => EngineError::from(error),
            };
            return Err(match error {
                EngineError::NonFiniteRow { row } => EngineError::NonFiniteRow { row: row + part * most },
                other => other,
            });
        }
        Ok(sums)
    }

    fn weights(&self) -> Result<sae::Weights, EngineError> {
        let spec = self.step.spec();
        let Parameters { encoder, encoder_bias, decoder, decoder_bias } =
            self.step.weights(&mut *self.device.borrow_mut())?;
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
        Ok(Cow::Owned(self.step.frequencies(&mut *self.device.borrow_mut())?))
    }

    fn steps_since_fired(&self) -> Result<Cow<'_, [u64]>, EngineError> {
        Ok(Cow::Owned(self.step.steps_since_fired(&mut *self.device.borrow_mut())?))
    }

    fn state(&self) -> Result<EngineState, EngineError> {
        let CudaState { step, weights, first_moments, second_moments, window, steps_since_fired } =
            self.step.state(&mut *self.device.borrow_mut())?;
        Ok(EngineState { step, weights, first_moments, second_moments, window, steps_since_fired })
    }

    fn restore(&mut self, state: EngineState) -> Result<(), EngineError> {
        let EngineState { step, weights, first_moments, second_moments, window, steps_since_fired } = state;
        let state = CudaState { step, weights, first_moments, second_moments, window, steps_since_fired };
        Ok(self.step.restore(self.device.get_mut(), &state)?)
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

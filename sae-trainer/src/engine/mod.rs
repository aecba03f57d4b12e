//! The seam between the training loop and the arithmetic. An [`Engine`] runs optimizer steps on batches of rows; everything
//! above it (schedule, logging, checkpoints, resume) is written once.

mod bench;
pub(crate) mod compute;
mod cpu;
mod device;
mod rows;

pub use bench::{BenchReport, BenchRow, Bound, bench, synthetic};
pub use cpu::{CpuEngine, CpuOptions, CpuThreads};
pub use device::{CudaEngine, DeviceEngine, SharedDevice, device_memory};
pub use rows::Rows;

pub use kernels::cpu::Parameters;
pub use kernels::cpu::encode::Search;
/// Everything a run needs to continue bit for bit, on any engine.
pub use kernels::cuda::State as EngineState;
use kernels::cuda::device::DeviceError;
use kernels::cuda::plan::PlanError;
pub use kernels::cuda::plan::{Options as DeviceOptions, PathChoice, Precision};
pub use kernels::loss::{FrequencyPenalty, LossSpec, Mse, Penalty};
pub use kernels::stats::Sums;
pub use kernels::step::{Adam, DecoderNorm, Schedule, SpecError, StepSpec};

use std::borrow::Cow;

use thiserror::Error;

/// How a step was computed. Both ways give the same numbers within rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Dense products: many activations are non-zero, as early in training.
    Dense,
    /// Only the pairs (row, feature) with a > 0 were touched after the encode.
    Sparse,
}

/// What one optimizer step reports. All values are those before the weights changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// The number of steps done, this one included.
    pub step: u64,
    /// The sum of the four terms below.
    pub loss: f64,
    /// The trained reconstruction term.
    pub mse: f64,
    /// The sparsity penalty with its (scheduled) coefficient; for `approx-l0` of the true L0.
    pub penalty: f64,
    /// The min-sparsity term.
    pub min_sparsity: f64,
    /// The max-sparsity term.
    pub max_sparsity: f64,
    /// Mean over rows of the number of active features.
    pub l0: f64,
    /// Its standard deviation over rows.
    pub l0_std: f64,
    /// Mean over rows of Σ_j a_ij.
    pub l1: f64,
    /// The `sum` MSE.
    pub mse_sum: f64,
    /// The `centered` MSE.
    pub mse_centered: f64,
    /// The `uncentered` MSE.
    pub mse_uncentered: f64,
    /// 1 − Σ‖e‖² / Σ‖x − x̄‖².
    pub explained_variance: f64,
    /// 1 − Σ‖e‖² / Σ‖x‖².
    pub explained_variance_uncentered: f64,
    /// Mean over rows of cos(x, x̂).
    pub cosine_similarity: f64,
    /// Mean over rows of ‖x̂‖ / ‖x‖.
    pub l2_ratio: f64,
    /// L0 / F.
    pub density: f64,
    /// Features with s_j + 1e-10 below the min-sparsity target; 0 without that penalty.
    pub below_target: usize,
    /// How the step was computed.
    pub path: Path,
    /// The share of all pairs (row, feature) that the encode's screening could not rule out and computed
    /// again in float32; 0 without screening.
    pub rechecked: f64,
}

/// What an evaluation reports: sums over rows that add up over batches ([`Sums::merge`]) and the
/// metrics that follow from them.
pub type EvalStats = Sums;

/// Why a step, an evaluation or a restore did not happen. The engine's state is as before, except
/// after [`EngineError::Diverged`].
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EngineError {
    /// The step's description is out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An array's length does not match the engine's sizes.
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
    #[error(
        "row {row} of the batch {reason}, and the {mse:?} MSE divides by that norm; the weights are \
         unchanged (the `sum` MSE has no such denominator)"
    )]
    ZeroNorm {
        /// The row's number in the batch.
        row: usize,
        /// Which norm is 0.
        reason: &'static str,
        /// The MSE.
        mse: Mse,
    },
    /// The loss is not finite though the batch is.
    #[error(
        "the loss of step {step} is {loss}; the weights are unchanged (try a lower learning rate or a \
         warm-up, starting from an earlier checkpoint)"
    )]
    NonFiniteLoss {
        /// The step that was not done.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The update overflowed though the loss was finite. The weights are no longer usable.
    #[error(
        "step {step} made a weight NaN or infinite though the loss was finite; go back to an earlier \
         checkpoint with a lower learning rate"
    )]
    Diverged {
        /// The step.
        step: u64,
    },
    /// The device's kernels do not support this step.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device failed, or has too little memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The worker threads could not be started.
    #[error("could not start {threads} worker threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}

/// An error unless an array has the length that the sizes require.
fn check_length(
    array: &'static str,
    found: usize,
    expected: usize,
    rule: &'static str,
) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(EngineError::Length { array, found, expected, rule }) }
}

/// Something that trains an autoencoder step by step.
pub trait Engine {
    /// What a step is.
    fn spec(&self) -> &StepSpec;

    /// One optimizer step on `batch` [B, d].
    ///
    /// # Errors
    /// A batch of another size, NaN or infinity in the batch or in the loss: the weights are unchanged.
    fn step(&mut self, batch: &[f32], schedule: &Schedule) -> Result<StepStats, EngineError>;

    /// Begins an optimizer step on `batch` [B, d], which may change after the return, and reports the step that was
    /// finished in the meantime, if any. An engine that computes elsewhere is given steps ahead, so that it never waits for
    /// its host, and reports them some calls later. Steps are reported once each, in order.
    /// [`Engine::finish`] reports the rest.
    ///
    /// # Errors
    /// As [`Engine::step`], for the earliest step that failed. Later steps, including this one, have not happened either.
    fn submit(&mut self, batch: &[f32], schedule: &Schedule) -> Result<Option<StepStats>, EngineError> {
        self.step(batch, schedule).map(Some)
    }

    /// As [`Engine::submit`], for a batch in any type that several engines train on in turn: engines that share a device
    /// bring it there once, when the first of them asks for it. `number` is the batch's own: as long as one of these engines has a
    /// step on it in flight, no other batch may have it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    fn submit_shared(
        &mut self,
        number: u64,
        batch: Rows<'_>,
        schedule: &Schedule,
    ) -> Result<Option<StepStats>, EngineError> {
        let _ = number;
        self.submit(&batch.to_f32(), schedule)
    }

    /// Waits for the next step that was begun and not yet reported; `None` if all were. Until it returns `None`, the
    /// methods below may not be called.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    fn finish(&mut self) -> Result<Option<StepStats>, EngineError> {
        Ok(None)
    }

    /// The forward pass alone on any number of rows, `batch` [rows, d].
    ///
    /// # Errors
    /// If the length is not a multiple of d, or the batch holds NaN or infinity.
    fn evaluate(&mut self, batch: &[f32]) -> Result<EvalStats, EngineError>;

    /// ‖x̂ − x‖² of each row of `batch` [rows, d], by the forward pass alone: [rows].
    ///
    /// # Errors
    /// As [`Engine::evaluate`].
    fn squared_errors(&mut self, batch: &[f32]) -> Result<Vec<f32>, EngineError>;

    /// A copy of the weights in their public layout.
    ///
    /// # Errors
    /// A device that fails.
    fn weights(&self) -> Result<sae::Weights, EngineError>;

    /// The running frequencies s_j as of the last step, [F]; zeros before the first.
    ///
    /// # Errors
    /// A device that fails.
    fn frequencies(&self) -> Result<Cow<'_, [f32]>, EngineError>;

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// A device that fails.
    fn steps_since_fired(&self) -> Result<Cow<'_, [u64]>, EngineError>;

    /// Everything a run needs to continue bit for bit.
    ///
    /// # Errors
    /// A device that fails.
    fn state(&self) -> Result<EngineState, EngineError>;

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other sizes.
    fn restore(&mut self, state: EngineState) -> Result<(), EngineError>;
}

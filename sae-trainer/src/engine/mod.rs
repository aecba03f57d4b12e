//! The seam between the training loop and the arithmetic. An [`Engine`] runs optimizer steps on batches of rows; everything
//! above it (schedule, logging, checkpoints, resume) is written once. What only reads an autoencoder needs its [`Forward`].

mod bench;
pub(crate) mod compute;
mod cpu;
mod device;
mod host_memory;
pub(crate) mod layout;
mod rows;

pub use bench::{BenchReport, BenchRow, Bound, Ceilings, bench, synthetic, with_thresholds};
pub use cpu::{CpuEngine, CpuThreads};
pub use device::{CudaEngine, DeviceEngine, SharedDevice, device_memory, device_memory_of_rank};
pub use rows::{Rows, StoredBatch, WideBatch};

pub use kernels::activation::{Activation, ThresholdAverage};
pub use kernels::activations::SparseActivations;
pub use kernels::batch::Batch;
pub use kernels::cpu::encode::Search;
pub use kernels::cpu::options::CpuOptions;
pub use kernels::cuda::plan::DeviceOptions;
pub use kernels::dead::{DeadLoss, DeadLossKind};
pub use kernels::error::{DeviceError, StepError};
pub use kernels::loss::{FrequencyPenalty, LossSpec, Mse, Penalty};
pub use kernels::outcome::{StepReport, Terms};
pub use kernels::parameters::Parameters;
pub use kernels::path::{Path, PathChoice};
pub use kernels::precision::Precision;
pub use kernels::prefixes::Prefixes;
pub use kernels::spec::{Adam, DecoderNorm, Schedule, SpecError, StepSpec};
pub use kernels::state::{NewFeature, PanelStates, State};
pub use kernels::stats::{Evaluation, Sums};

use std::borrow::Cow;
use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2};

/// An autoencoder that can be asked what it makes of rows.
pub trait Forward {
    /// What a step is: sizes and loss.
    fn spec(&self) -> &StepSpec;

    /// The sums over a batch of any number of rows, from which the metrics follow.
    ///
    /// # Errors
    /// If the rows have another width, or the batch holds NaN or infinity.
    fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation, StepError>;

    /// ‖x̂ − x‖² of each row, [rows].
    ///
    /// # Errors
    /// As [`Forward::evaluate`].
    fn squared_errors(&mut self, batch: Batch<'_>) -> Result<Array1<f32>, StepError>;

    /// The active features of each row of `input` [rows, d].
    ///
    /// # Errors
    /// As [`Forward::evaluate`].
    fn encode(&mut self, input: ArrayView2<'_, f32>) -> Result<SparseActivations, StepError>;

    /// x̂ of each row of `input` [rows, d].
    ///
    /// # Errors
    /// As [`Forward::evaluate`].
    fn reconstruct(&mut self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, StepError>;

    /// A copy of the weights in their public layout.
    ///
    /// # Errors
    /// A device that fails.
    fn weights(&self) -> Result<sae::Weights, StepError>;
}

/// Something that trains an autoencoder step by step.
pub trait Engine: Forward {
    /// One optimizer step on a batch of B rows.
    ///
    /// # Errors
    /// A batch of another shape, NaN or infinity in the batch or in the loss: the weights are unchanged.
    fn step(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<StepReport, StepError>;

    /// Begins an optimizer step on a batch of B rows, which may change after the return, and reports the step that was
    /// finished in the meantime, if any. An engine that computes elsewhere is given steps ahead, so that it never waits for
    /// its host, and reports them some calls later. Steps are reported once each, in order.
    /// [`Engine::finish`] reports the rest.
    ///
    /// # Errors
    /// As [`Engine::step`], for the earliest step that failed. Later steps, including this one, have not happened either.
    fn submit(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<Option<StepReport>, StepError> {
        self.step(batch, schedule).map(Some)
    }

    /// As [`Engine::submit`], for rows in any type that several engines train on in turn: engines that share a device
    /// bring them there once, when the first of them asks for it. `number` is the batch's own: as long as one of these engines has a
    /// step on it in flight, no other batch may have it.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    fn submit_shared(
        &mut self,
        number: u64,
        batch: StoredBatch<'_>,
        schedule: &Schedule,
    ) -> Result<Option<StepReport>, StepError> {
        let _ = number;
        self.submit(batch.to_f32().view(), schedule)
    }

    /// Waits for the next step that was begun and not yet reported; `None` if all were. Until it returns `None`, the
    /// methods below and those of [`Forward`] may not be called.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    fn finish(&mut self) -> Result<Option<StepReport>, StepError> {
        Ok(None)
    }

    /// The running frequencies s_j as of the last step, [F]; zeros before the first.
    ///
    /// # Errors
    /// A device that fails.
    fn frequencies(&self) -> Result<Cow<'_, Array1<f32>>, StepError>;

    /// Steps since each feature was last active, [F].
    ///
    /// # Errors
    /// A device that fails.
    fn steps_since_fired(&self) -> Result<Cow<'_, Array1<u64>>, StepError>;

    /// Everything a run needs to continue bit for bit.
    ///
    /// # Errors
    /// A device that fails.
    fn state(&self) -> Result<State, StepError>;

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other shapes.
    fn restore(&mut self, state: State) -> Result<(), StepError>;

    /// The numbers of the panels that this rank owns.
    fn own_panels(&self) -> Range<usize>;

    /// The weights of an own panel's features alone, as [`Forward::weights`] has them, and the first of these features. b_dec is in
    /// each, W_skip in the first panel of a rank. Nothing is exchanged.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If another rank owns it.
    fn panel_weights(&self, number: usize) -> Result<(usize, sae::Weights), StepError>;

    /// The norm of each decoder row, [F].
    ///
    /// # Errors
    /// A device that fails, ranks that are lost.
    fn decoder_norms(&self) -> Result<Vec<f64>, StepError>;

    /// The norm of each feature's column of W_enc, [F].
    ///
    /// # Errors
    /// A device that fails, ranks that are lost.
    fn encoder_norms(&self) -> Result<Vec<f64>, StepError>;

    /// b_dec [d], and W_skip [d, d] if there is one.
    ///
    /// # Errors
    /// A device that fails.
    fn shared_weights(&self) -> Result<(Array1<f32>, Option<Array2<f32>>), StepError>;

    /// Lets features start anew. All ranks are given all of `new`.
    ///
    /// # Errors
    /// A device that fails.
    fn replace(&mut self, new: &[NewFeature]) -> Result<(), StepError>;

    /// The state of the panels that this rank owns; those of all ranks are a state. Nothing is exchanged.
    ///
    /// # Errors
    /// A device that fails.
    fn panel_states(&self) -> Result<PanelStates, StepError>;

    /// Continues from the states of the panels that this rank owns.
    ///
    /// # Errors
    /// States of other panels or shapes.
    fn restore_panels(&mut self, states: PanelStates) -> Result<(), StepError>;
}

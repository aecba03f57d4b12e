//! The engine on CPU threads: runs [`CpuStep`] on a pool of its own or a shared one.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use kernels::activations::SparseActivations;
use kernels::batch::Batch;
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::error::StepError;
use kernels::outcome::StepReport;
use kernels::spec::{Schedule, StepSpec};
use kernels::state::{NewFeature, PanelStates, State};
use kernels::stats::Evaluation;
use ndarray::{Array1, Array2, ArrayView2};
use ranks::{Alone, Exchange};

use super::layout;
use super::{Engine, Forward};

/// Threads for one engine, or for several that step in turn: a step keeps all of them busy by itself, and two at the
/// same time would only share caches and memory bandwidth.
#[derive(Debug, Clone)]
pub struct CpuThreads(Arc<rayon::ThreadPool>);

impl CpuThreads {
    /// So many threads; 0 means one per core.
    ///
    /// # Errors
    /// [`StepError::Threads`] if the system refuses them.
    pub fn new(threads: usize) -> Result<CpuThreads, StepError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("step-{number}"))
            .build()
            .map_err(|error| StepError::Threads { threads, reason: error.to_string() })?;
        Ok(CpuThreads(Arc::new(pool)))
    }
}

/// Trains on CPU threads.
pub struct CpuEngine {
    step: CpuStep,
    pool: Arc<rayon::ThreadPool>,
}

impl CpuEngine {
    /// An engine with the given weights that has done no step yet.
    ///
    /// # Errors
    /// A spec out of range, weights of other shapes, or threads that the system refuses.
    pub fn new(spec: StepSpec, weights: &sae::Weights, options: CpuOptions) -> Result<CpuEngine, StepError> {
        CpuEngine::on(&CpuThreads::new(options.threads)?, spec, weights, options)
    }

    /// As [`CpuEngine::new`], on threads that it shares with other engines.
    ///
    /// # Errors
    /// A spec out of range, weights of other shapes.
    pub fn on(
        threads: &CpuThreads,
        spec: StepSpec,
        weights: &sae::Weights,
        options: CpuOptions,
    ) -> Result<CpuEngine, StepError> {
        CpuEngine::shared(threads, spec, weights, options, Arc::new(Alone))
    }

    /// As [`CpuEngine::on`] for one of several ranks that train one autoencoder together: [`CpuStep::shared`].
    ///
    /// # Errors
    /// As [`CpuEngine::on`], and what cannot be divided among ranks.
    pub fn shared(
        threads: &CpuThreads,
        spec: StepSpec,
        weights: &sae::Weights,
        options: CpuOptions,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CpuEngine, StepError> {
        let step = CpuStep::shared(spec, options, layout::parameters(weights), exchange)?;
        Ok(CpuEngine { step, pool: Arc::clone(&threads.0) })
    }

    /// As [`CpuEngine::shared`] for a rank that is given its own panels alone: [`CpuStep::of_panels`].
    ///
    /// # Errors
    /// As [`CpuEngine::shared`], and states of other panels or shapes.
    pub fn of_panels(
        threads: &CpuThreads,
        spec: StepSpec,
        states: PanelStates,
        options: CpuOptions,
        exchange: Arc<dyn Exchange>,
    ) -> Result<CpuEngine, StepError> {
        let step = CpuStep::of_panels(spec, options, states, exchange)?;
        Ok(CpuEngine { step, pool: Arc::clone(&threads.0) })
    }

    /// The number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// As [`CpuStep::select`].
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn select(&mut self, input: ArrayView2<'_, f32>) -> Result<usize, StepError> {
        self.pool.install(|| self.step.select(input))
    }

    /// Runs `work` on the engine's threads.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

impl Forward for CpuEngine {
    fn spec(&self) -> &StepSpec {
        self.step.spec()
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation, StepError> {
        self.pool.install(|| self.step.evaluate(batch))
    }

    fn squared_errors(&mut self, batch: Batch<'_>) -> Result<Array1<f32>, StepError> {
        self.pool.install(|| self.step.squared_errors(batch))
    }

    fn encode(&mut self, input: ArrayView2<'_, f32>) -> Result<SparseActivations, StepError> {
        self.pool.install(|| self.step.encode(input))
    }

    fn reconstruct(&mut self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, StepError> {
        self.pool.install(|| self.step.reconstruct(input))
    }

    fn weights(&self) -> Result<sae::Weights, StepError> {
        Ok(layout::used_weights(&*self.step.weights()?, self.step.spec(), self.step.threshold()))
    }
}

impl Engine for CpuEngine {
    fn step(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<StepReport, StepError> {
        self.pool.install(|| self.step.step(batch, schedule))
    }

    fn frequencies(&self) -> Result<Cow<'_, Array1<f32>>, StepError> {
        self.step.frequencies()
    }

    fn steps_since_fired(&self) -> Result<Cow<'_, Array1<u64>>, StepError> {
        self.step.steps_since_fired()
    }

    fn state(&self) -> Result<State, StepError> {
        self.step.state()
    }

    fn restore(&mut self, state: State) -> Result<(), StepError> {
        self.step.restore(state)
    }

    fn own_panels(&self) -> Range<usize> {
        self.step.own_panels()
    }

    fn panel_weights(&self, number: usize) -> Result<(usize, sae::Weights), StepError> {
        let (features, parameters) = self.step.panel_weights(number);
        let weights = layout::used_weights(parameters, self.step.spec(), self.step.threshold());
        Ok((features.start, weights))
    }

    fn decoder_norms(&self) -> Result<Vec<f64>, StepError> {
        self.step.decoder_norms()
    }

    fn encoder_norms(&self) -> Result<Vec<f64>, StepError> {
        self.step.encoder_norms()
    }

    fn shared_weights(&self) -> Result<(Array1<f32>, Option<Array2<f32>>), StepError> {
        let (bias, skip) = self.step.shared_weights();
        Ok((bias.clone(), skip.cloned()))
    }

    fn replace(&mut self, new: &[NewFeature]) -> Result<(), StepError> {
        self.step.replace(new);
        Ok(())
    }

    fn panel_states(&self) -> Result<PanelStates, StepError> {
        Ok(self.step.panel_states())
    }

    fn restore_panels(&mut self, states: PanelStates) -> Result<(), StepError> {
        self.step.restore_panels(states)
    }
}

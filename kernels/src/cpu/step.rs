//! A whole training step on the current rayon thread pool, and the forward pass alone.

use ndarray::{Array1, Array2, ArrayView2};

use crate::activation::Activation;
use crate::activations::SparseActivations;
use crate::batch::Batch;
use crate::error::StepError;
use crate::loss::Mse;
use crate::outcome::{StepReport, Terms};
use crate::parameters::Parameters;
use crate::path::Path;
use crate::spec::{AdamStep, Schedule, StepSpec};
use crate::state::State;
use crate::stats::Evaluation;

use super::blocks::TrainedParameters;
use super::decode::{RowActivity, sum_of_rows};
use super::forward::{Buffers, Forward};
use super::frequency::FrequencyWindow;
use super::jump::Jump;
use super::options::{CpuOptions, Purpose};
use super::select::Selected;
use super::sparsity::{Sparsity, frequency_terms};
use super::train::{Activations, GroupGradient, Train, train};

/// One autoencoder in training on CPU threads.
pub struct CpuStep {
    spec: StepSpec,
    options: CpuOptions,
    parameters: TrainedParameters,
    window: FrequencyWindow,
    frequencies: Array1<f32>,
    steps_since_fired: Array1<u64>,
    /// θ of BatchTopK, once it has a value.
    threshold: Option<f64>,
    steps: u64,
    /// The path to encode on first: that of the previous step. Which one is taken depends on the batch alone.
    expected: Path,
    buffers: Buffers,
}

impl CpuStep {
    /// A run that begins with the given weights and has done no step.
    ///
    /// # Errors
    /// A spec out of range, weights of other shapes.
    pub fn new(spec: StepSpec, options: CpuOptions, weights: Parameters) -> Result<CpuStep, StepError> {
        spec.validate()?;
        weights.check(&spec)?;
        let state = State::new(weights);
        let window = FrequencyWindow::new(spec.sparsity_window, spec.batch, spec.features);
        let mut step = CpuStep {
            spec,
            options,
            parameters: TrainedParameters::default(),
            window,
            frequencies: Array1::default(0),
            steps_since_fired: Array1::default(0),
            threshold: None,
            steps: 0,
            expected: Path::Dense,
            buffers: Buffers::default(),
        };
        step.restore(state)?;
        Ok(step)
    }

    /// What a step is.
    pub fn spec(&self) -> &StepSpec {
        &self.spec
    }

    /// One optimizer step on a batch of B rows.
    ///
    /// # Errors
    /// A batch of another shape, NaN or infinity in the batch or in the loss, a norm of 0 that the MSE divides by: nothing
    /// has changed.
    pub fn step(&mut self, batch: Batch<'_>, schedule: &Schedule) -> Result<StepReport, StepError> {
        let (input, target) = batch.numbers(self.spec.batch, self.spec.width)?;
        let (isa, spec) = (self.options.isa, self.spec);
        let sparsity = Sparsity::new(&spec.loss, schedule, spec.batch);
        let mut forward = self.forward(&sparsity, Purpose::Training);
        let found = forward.run(input, target)?;
        forward.check_denominators()?;

        let sums = forward.sums();
        let mut terms = Terms {
            mse: found.prefixes.unwrap_or(match spec.loss.mse {
                Mse::Sum => sums.mse_sum(),
                Mse::Centered => sums.mse_centered(),
                Mse::Uncentered => sums.mse_uncentered(),
            }),
            penalty: spec.loss.coefficient * schedule.coefficient_scale * sums.penalty(),
            dead: forward.dead_loss(input, found.dead),
            ..Terms::default()
        };
        // The frequency terms are finite by their form; nothing has changed up to here.
        if !terms.loss().is_finite() {
            return Err(StepError::NonFiniteLoss { step: self.steps + 1, loss: terms.loss() });
        }
        self.window.push(&found.counts);
        let buffers = &mut self.buffers;
        buffers.slopes.resize(spec.features, 0.0);
        frequency_terms(&spec.loss, &self.window, spec.batch, &mut terms, &mut buffers.slopes);

        let narrower = spec.prefixes.widths().iter().zip(&buffers.prefixes);
        let mut groups: Vec<GroupGradient<'_>> =
            narrower.map(|(end, g)| GroupGradient { end: *end, g }).collect();
        groups.push(GroupGradient { end: spec.features, g: &buffers.gradient });
        let jump = match spec.activation {
            Activation::JumpRelu { bandwidth, to_input } => {
                let mean = sums.l0();
                let of_row = |row: &RowActivity| sparsity.by_count(row.active, mean);
                buffers.by_count = buffers.activity.iter().map(of_row).collect();
                let sees_activations = spec.loss.penalty.sees_activations();
                Some(Jump { bandwidth, to_input, by_count: &buffers.by_count, sees_activations })
            }
            _ => None,
        };
        let backward = Train {
            spec: &spec,
            sparsity: &sparsity,
            adam: &AdamStep::new(&spec.adam, schedule.lr, self.steps + 1),
            slopes: &buffers.slopes,
            products: self.options.products(Purpose::Training),
            x: if spec.pre_bias { &buffers.shifted } else { input },
            skipped: input,
            groups: &groups,
            sum_of_g: &sum_of_rows(groups[0].g, spec.width),
            jump,
            dead: (!buffers.dead.features.is_empty()).then_some(&buffers.dead),
        };
        let activations = match found.path {
            Path::Sparse => Activations::Sparse(&buffers.selected),
            Path::Dense => Activations::Dense {
                activations: &buffers.activations,
                preactivations: jump.map(|_| &buffers.preactivations[..]),
            },
        };
        let Buffers { waiting, packed, .. } = buffers;
        let finite = train(isa, backward, activations, &mut self.parameters, waiting, packed);

        self.steps += 1;
        self.expected = found.encoded;
        if let Activation::BatchTopK { threshold, .. } = spec.activation {
            let kept = &buffers.selected.kept;
            let smallest = match spec.rank_by_decoder_norm {
                true => {
                    let pairs = kept.features.iter().zip(&kept.row_values);
                    pairs.map(|(feature, a)| a * buffers.decoder_norms[*feature as usize]).reduce(f32::min)
                }
                false => kept.row_values.iter().copied().reduce(f32::min),
            };
            self.threshold = threshold.after(self.steps, self.threshold, smallest);
        }
        for (feature, count) in found.counts.iter().enumerate() {
            self.frequencies[feature] = self.window.frequency(feature) as f32;
            let since = &mut self.steps_since_fired[feature];
            *since = if *count > 0 { 0 } else { *since + 1 };
        }
        if !finite {
            return Err(StepError::Diverged { step: self.steps });
        }
        let rechecked = found.rechecked as f64 / (spec.batch * spec.features) as f64;
        Ok(StepReport { step: self.steps, terms, sums, path: found.path, rechecked })
    }

    /// The forward pass alone, on any number of rows.
    ///
    /// # Errors
    /// A batch of another width, NaN or infinity in it.
    pub fn evaluate(&mut self, batch: Batch<'_>) -> Result<Evaluation, StepError> {
        let (input, target) = batch.numbers(batch.rows(), self.spec.width)?;
        let (width, features) = (self.spec.width, self.spec.features);
        if input.is_empty() {
            return Ok(Evaluation::new(width, features));
        }
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), batch.rows());
        let mut forward = self.forward(&sparsity, Purpose::Reading);
        let found = forward.run(input, target)?;
        Ok(Evaluation {
            sums: forward.sums(),
            row_sum: forward.buffers.norms.sum.clone(),
            firings: found.counts.iter().map(|count| u64::from(*count)).collect(),
        })
    }

    /// ‖x̂ − x‖² of each row, [rows].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`].
    pub fn squared_errors(&mut self, batch: Batch<'_>) -> Result<Array1<f32>, StepError> {
        let rows = self.evaluate(batch)?.sums.rows as usize;
        Ok(self.buffers.errors[..rows].iter().map(|row| row.squared_error).collect())
    }

    /// The active features of each row of `input` [rows,d].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`].
    pub fn encode(&mut self, input: ArrayView2<'_, f32>) -> Result<SparseActivations, StepError> {
        let (numbers, _) = Batch::from(input).numbers(input.nrows(), self.spec.width)?;
        if numbers.is_empty() {
            return Ok(SparseActivations::of_dense(&[], 1));
        }
        let features = self.spec.features;
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), input.nrows());
        let mut forward = self.forward(&sparsity, Purpose::Reading);
        forward.check_rows(numbers)?;
        let (path, _, _) = forward.activate(numbers);
        let Buffers { selected: Selected { kept, .. }, activations, .. } = &self.buffers;
        Ok(match path {
            Path::Sparse => SparseActivations {
                row_starts: kept.row_starts.clone(),
                features: kept.features.clone(),
                values: kept.row_values.clone(),
            },
            Path::Dense => SparseActivations::of_dense(activations, features),
        })
    }

    /// Finds the active pairs of B rows as a step does, and returns how many there are: the part of a step that differs
    /// most between activations, for measurements.
    ///
    /// # Errors
    /// As [`CpuStep::step`].
    pub fn select(&mut self, input: ArrayView2<'_, f32>) -> Result<usize, StepError> {
        let (numbers, _) = Batch::from(input).numbers(self.spec.batch, self.spec.width)?;
        let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), self.spec.batch);
        let mut forward = self.forward(&sparsity, Purpose::Training);
        forward.check_rows(numbers)?;
        let (path, _, _) = forward.activate(numbers);
        Ok(match path {
            Path::Sparse => self.buffers.selected.kept.len(),
            Path::Dense => self.buffers.activations.iter().filter(|a| **a > 0.0).count(),
        })
    }

    /// x̂ of each row of `input` [rows,d].
    ///
    /// # Errors
    /// As [`CpuStep::evaluate`].
    pub fn reconstruct(&mut self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, StepError> {
        let (numbers, _) = Batch::from(input).numbers(input.nrows(), self.spec.width)?;
        if !numbers.is_empty() {
            let sparsity = Sparsity::new(&self.spec.loss, &Schedule::constant(0.0), input.nrows());
            let mut forward = self.forward(&sparsity, Purpose::Reading);
            forward.check_rows(numbers)?;
            let (path, _, _) = forward.activate(numbers);
            forward.decode(path, numbers);
        }
        let reconstruction = self.buffers.gradient[..numbers.len()].to_vec();
        Ok(Array2::from_shape_vec(input.dim(), reconstruction).expect("as many numbers as the input"))
    }

    /// The weights.
    pub fn weights(&self) -> &Parameters {
        &self.parameters.weights
    }

    /// The running frequencies s_j as of the last step, [F]; zeros before the first.
    pub fn frequencies(&self) -> &Array1<f32> {
        &self.frequencies
    }

    /// Steps since each feature was last active, [F].
    pub fn steps_since_fired(&self) -> &Array1<u64> {
        &self.steps_since_fired
    }

    /// θ of BatchTopK, once it has a value.
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// Everything a run needs to continue bit for bit.
    pub fn state(&self) -> State {
        State {
            step: self.steps,
            weights: self.parameters.weights.clone(),
            first_moments: self.parameters.first.clone(),
            second_moments: self.parameters.second.clone(),
            window: self.window.counts(),
            steps_since_fired: self.steps_since_fired.clone(),
            threshold: self.threshold,
            path_choice: None,
        }
    }

    /// Continues from a state.
    ///
    /// # Errors
    /// A state of other shapes: nothing has changed then.
    pub fn restore(&mut self, state: State) -> Result<(), StepError> {
        state.check(&self.spec)?;
        let (length, rows) = (self.spec.sparsity_window, self.spec.batch);
        self.window = FrequencyWindow::restored(length, rows, state.window.view());
        self.frequencies = (0..self.spec.features).map(|j| self.window.frequency(j) as f32).collect();
        self.parameters = TrainedParameters {
            weights: state.weights,
            first: state.first_moments,
            second: state.second_moments,
        };
        self.steps_since_fired = state.steps_since_fired;
        self.threshold = state.threshold;
        self.steps = state.step;
        Ok(())
    }

    fn forward<'a>(&'a mut self, sparsity: &'a Sparsity, purpose: Purpose) -> Forward<'a> {
        Forward {
            spec: &self.spec,
            options: &self.options,
            weights: &self.parameters.weights,
            steps_since_fired: &self.steps_since_fired,
            threshold: self.threshold,
            expected: self.expected,
            purpose,
            sparsity,
            buffers: &mut self.buffers,
        }
    }
}

//! A whole training step on the current rayon thread pool, and the forward pass alone.

use matrix_units::Parts;
use ndarray::{Array1, Array2, ArrayView2};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::activations::SparseActivations;
use crate::batch::Batch;
use crate::error::StepError;
use crate::loss::Mse;
use crate::outcome::{StepReport, Terms};
use crate::parameters::{Parameters, numbers};
use crate::path::Path;
use crate::precision::Precision;
use crate::spec::{AdamStep, Schedule, StepSpec};
use crate::state::State;
use crate::stats::{Evaluation, Sums};

use super::blocks::{TrainedParameters, Waiting};
use super::dead::{Dead, DeadGradient};
use super::decode::{
    Decode, Finish, RowActivity, RowError, decode_sparse, decode_sparse_group, finish, sparse_activity,
    sum_of_rows,
};
use super::dense::{
    self, ActivationSums, PackedFactors, add_skip, decode_dense, decode_dense_group, dense_activity,
};
use super::encode::{Cutoff, Encode, EncodeBuffers, Search, encode_above, encode_dense_bf16, encode_sparse};
use super::frequency::FrequencyWindow;
use super::isa::Isa;
use super::jump::Jump;
use super::largest::{Among, Largest};
use super::products::Products;
use super::rows::{RowNorms, first_non_finite_row, round_to_bf16, row_norms, subtract_bias};
use super::select::{Selected, activations_above};
use super::sparsity::{Sparsity, frequency_terms};
use super::train::{Activations, GroupGradient, Train, train};
use super::vector;

/// How a [`CpuStep`] runs. Only `bf16` changes results beyond rounding; `threads` does not change them at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuOptions {
    /// Worker threads of an engine's own pool; 0 means one per core.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Up to this density (active pairs / (B·F)) a step takes the sparse path.
    pub sparse_density: f64,
    /// How the active pairs are searched.
    pub search: Search,
    /// Round the encode's factors to bfloat16 first: z is then what a GPU's tensor cores compute without a recheck.
    /// This shows the effect on a result. On the dense path, AVX512_BF16 forms the products if the CPU has it,
    /// with sums in an order of its own.
    pub bf16: bool,
    /// Form dense products on matrix units, where the instruction set has them, from numbers that are split into bfloat16 parts:
    /// in training three products for one, in an evaluation six, whose errors are those of float32 sums.
    pub split_products: bool,
}

impl CpuOptions {
    /// One thread per core, the widest instruction set, and the density up to which the sparse path was
    /// measured to be the faster one.
    pub fn for_precision(precision: Precision) -> CpuOptions {
        let (search, bf16, split_products) = match precision {
            Precision::Exact => (Search::Screened, false, true),
            Precision::Bf16 => (Search::Screened, true, true),
            Precision::Fp32 => (Search::Plain, false, false),
        };
        CpuOptions { threads: 0, isa: Isa::detect(), sparse_density: 0.25, search, bf16, split_products }
    }
}

impl CpuOptions {
    /// How a step forms dense products.
    pub fn training_products(&self) -> Products {
        self.products(Purpose::Training)
    }

    fn products(&self, purpose: Purpose) -> Products {
        let parts = match purpose {
            Purpose::Training => Parts::Three,
            Purpose::Reading => Parts::Six,
        };
        if self.split_products { Products::of(self.isa, parts) } else { Products::Float32 }
    }
}

impl Default for CpuOptions {
    /// [`CpuOptions::for_precision`] of [`Precision::Exact`].
    fn default() -> CpuOptions {
        CpuOptions::for_precision(Precision::Exact)
    }
}

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

/// Memory that one step leaves to the next; nothing in it outlives a step's results.
#[derive(Default)]
struct Buffers {
    /// Of the target.
    norms: RowNorms,
    /// X − b_dec, with the pre-bias.
    shifted: Vec<f32>,
    /// Encoder and its bias times ‖W_dec_j‖, where features are ranked so: [F,d], [F].
    ranked: (Vec<f32>, Vec<f32>),
    /// The encode's factors in bfloat16, where that is asked for: [B,d], [F,d].
    rounded: (Vec<f32>, Vec<f32>),
    encode: EncodeBuffers,
    selected: Selected,
    /// Only while steps are dense, but for what a skip connection takes.
    packed: PackedFactors,
    /// [B,F], only while steps are dense.
    activations: Vec<f32>,
    /// What there is of them.
    sums: ActivationSums,
    /// z [B,F], only while steps are dense and a threshold is trained.
    preactivations: Vec<f32>,
    /// The cutoffs of features or rows, where they are no tensor: [F] or [B].
    cutoffs: Vec<f32>,
    /// x̂, then g, [B,d].
    gradient: Vec<f32>,
    /// The same of the prefixes, but for the last: [B,d] each. In the end each holds the sum over all that are as wide or wider.
    prefixes: Vec<Vec<f32>>,
    /// x − x̂ [B,d], where dead features have a loss.
    residual: Vec<f32>,
    dead: DeadGradient,
    /// dL/dH_ij, the same for all features of a row: [B].
    by_count: Vec<f32>,
    waiting: Waiting,
    activity: Vec<RowActivity>,
    errors: Vec<RowError>,
    decoder_norms: Vec<f32>,
    slopes: Vec<f32>,
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

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A step follows.
    Training,
    /// The autoencoder is used: a row's activations do not depend on the rows beside it.
    Reading,
}

/// What the forward pass found, besides what lies in the buffers.
struct Found {
    /// Where the active pairs are.
    path: Path,
    /// The path that the encode took.
    encoded: Path,
    /// In how many rows each feature is active, [F].
    counts: Vec<u32>,
    /// Pairs that screening left to recompute.
    rechecked: usize,
    /// The reconstruction term of all prefixes together, where there are any and a step follows.
    prefixes: Option<f64>,
    /// The features that a loss over dead features sees.
    dead: Vec<u32>,
}

/// What the encode multiplies, from the batch `input` [B,d]; `shifted` and `rounded` are memory for it. `ranked` [F,d], [F] is the
/// encoder in place of that of `weights`, where features are ranked by another number than z.
fn factors<'a>(
    options: &CpuOptions,
    spec: &StepSpec,
    weights: &'a Parameters,
    ranked: &'a (Vec<f32>, Vec<f32>),
    input: &'a [f32],
    shifted: &'a mut Vec<f32>,
    rounded: &'a mut (Vec<f32>, Vec<f32>),
) -> Encode<'a> {
    if spec.pre_bias {
        subtract_bias(input, numbers(&weights.decoder_bias), shifted);
    }
    let (encoder, bias) = match spec.rank_by_decoder_norm {
        true => (&ranked.0[..], &ranked.1[..]),
        false => (numbers(&weights.encoder), numbers(&weights.encoder_bias)),
    };
    let mut factors =
        Encode { x: if spec.pre_bias { shifted } else { input }, weights: encoder, bias, width: spec.width };
    if options.bf16 {
        round_to_bf16(factors.x, &mut rounded.0);
        round_to_bf16(factors.weights, &mut rounded.1);
        (factors.x, factors.weights) = (&rounded.0, &rounded.1);
    }
    factors
}

/// How many of z [B,F] are above their cutoffs.
fn count_above(z: &[f32], above: Cutoff<'_>, features: usize) -> usize {
    let in_row = |(row, z): (usize, &[f32])| {
        let of_row = above.of_row(row);
        z.iter().enumerate().filter(|(feature, z)| **z > of_row * above.of_feature(*feature)).count()
    };
    z.par_chunks(features).enumerate().map(in_row).sum()
}

/// One forward pass over a batch.
struct Forward<'a> {
    spec: &'a StepSpec,
    options: &'a CpuOptions,
    weights: &'a Parameters,
    steps_since_fired: &'a Array1<u64>,
    threshold: Option<f64>,
    expected: Path,
    purpose: Purpose,
    sparsity: &'a Sparsity,
    buffers: &'a mut Buffers,
}

impl Forward<'_> {
    /// Fills the buffers with activations, g and what is reported of each row.
    fn run(&mut self, input: &[f32], target: &[f32]) -> Result<Found, StepError> {
        self.check_rows(input)?;
        if !std::ptr::eq(input, target) {
            self.check_rows(target)?;
        }
        row_norms(self.options.isa, target, self.spec.width, &mut self.buffers.norms);
        let (path, encoded, rechecked) = self.activate(input);
        let counts = match path {
            Path::Sparse => self.buffers.selected.kept.counts(),
            Path::Dense => self.buffers.sums.features.clone(),
        };
        let dead = self.dead_features(&counts);
        let prefixes = if self.purpose == Purpose::Training && !self.spec.prefixes.is_empty() {
            Some(self.decode_prefixes(path, input, target, !dead.is_empty()))
        } else {
            self.decode(path, input);
            if !dead.is_empty() {
                self.keep_residual(target);
            }
            self.finish(target);
            None
        };
        Ok(Found { path, encoded, counts, rechecked, prefixes, dead })
    }

    /// Fills the active pairs, or the dense activations. Says where they are, which path the encode took, and how many pairs
    /// screening left to recompute.
    fn activate(&mut self, input: &[f32]) -> (Path, Path, usize) {
        if !self.spec.rank_by_decoder_norm {
            return self.activate_by_rank(input);
        }
        // An encoder times the norms has z·‖W_dec_j‖ for its z, so nothing that finds the largest need know of them.
        self.measure_decoder();
        let Buffers { ranked, decoder_norms: norms, .. } = &mut *self.buffers;
        for (ranked, tensor) in [
            (&mut ranked.0, numbers(&self.weights.encoder)),
            (&mut ranked.1, numbers(&self.weights.encoder_bias)),
        ] {
            ranked.clear();
            ranked.extend_from_slice(tensor);
        }
        let rows = ranked.0.par_chunks_mut(self.spec.width).zip(&mut ranked.1).zip(&*norms);
        rows.for_each(|((row, bias), norm)| {
            row.iter_mut().for_each(|w| *w *= norm);
            *bias *= norm;
        });
        let found = self.activate_by_rank(input);
        let Buffers { selected, activations, sums, decoder_norms: norms, .. } = &mut *self.buffers;
        match found.0 {
            // What is above 0 has a norm above 0.
            Path::Sparse => selected.kept.divide(norms),
            Path::Dense => {
                activations.par_chunks_mut(self.spec.features).for_each(|row| {
                    let active = row.iter_mut().zip(norms.iter()).filter(|(a, _)| **a > 0.0);
                    active.for_each(|(a, norm)| *a /= norm);
                });
                sums.count(self.options.isa, self.spec.features, activations);
            }
        }
        found
    }

    /// ‖W_dec_j‖ of all features into the buffers.
    fn measure_decoder(&mut self) {
        let isa = self.options.isa;
        let rows = numbers(&self.weights.decoder).par_chunks_exact(self.spec.width);
        rows.map(|row| vector::dot(isa, row, row).sqrt()).collect_into_vec(&mut self.buffers.decoder_norms);
    }

    /// The same by the number that features are ranked by; the activations are those of this number.
    fn activate_by_rank(&mut self, input: &[f32]) -> (Path, Path, usize) {
        let Forward { options, spec, weights, purpose, .. } = *self;
        let (isa, search) = (options.isa, options.search);
        if let Activation::Relu = spec.activation {
            let (path, rechecked) = self.encode(input);
            return (path, path, rechecked);
        }
        let threshold = self.threshold.unwrap_or(0.0) as f32;
        let Buffers {
            shifted,
            ranked,
            rounded,
            encode,
            selected,
            activations,
            preactivations: dense_z,
            cutoffs,
            sums,
            packed,
            ..
        } = &mut *self.buffers;
        let products = options.products(purpose);
        let factors = factors(options, spec, weights, ranked, input, shifted, rounded);
        // What is below the cutoffs is neither active nor near; what is above the thresholds is active.
        let thresholds: &[f32] = match (spec.activation, purpose) {
            (Activation::TopK { k }, _) | (Activation::BatchTopK { k, .. }, Purpose::Training) => {
                let among =
                    if let Activation::TopK { .. } = spec.activation { Among::Row } else { Among::Batch };
                let largest = Largest { isa, input: factors, search, k, among };
                let Selected { kept, largest: memory, .. } = selected;
                let rechecked = largest.find(encode, memory, kept);
                return (Path::Sparse, Path::Sparse, rechecked);
            }
            (Activation::BatchTopK { .. }, Purpose::Reading) => {
                cutoffs.clear();
                cutoffs.resize(spec.features, threshold);
                cutoffs
            }
            _ => numbers(weights.threshold.as_ref().expect("JumpReLU's weights have thresholds")),
        };
        let lowest: Vec<f32>;
        let above = match (spec.activation, purpose) {
            (Activation::JumpRelu { bandwidth, to_input }, Purpose::Training) => {
                let jump = Jump { bandwidth, to_input, by_count: &[], sees_activations: false };
                lowest = thresholds.iter().map(|threshold| jump.lowest(*threshold)).collect();
                &lowest[..]
            }
            _ => thresholds,
        };
        let cells = input.len() / spec.width * spec.features;
        let limit = (cells as f64 * options.sparse_density) as usize;
        let found = &mut selected.found;
        let above = Cutoff::OfFeatures(above);
        let mut sparse =
            || encode_above(isa, factors, above, search, limit, encode, found).map(|found| found.rechecked);
        let mut rechecked = if self.expected == Path::Sparse { sparse() } else { None };
        if rechecked.is_none() {
            dense_z.resize(cells, 0.0);
            dense::encode_all(isa, products, factors, packed, dense_z);
            let few = count_above(dense_z, above, spec.features) <= limit;
            rechecked = if few { sparse() } else { None };
        }
        match rechecked {
            Some(rechecked) => {
                for memory in [dense_z, activations] {
                    memory.clear();
                    memory.shrink_to_fit();
                }
                *packed = PackedFactors::default();
                selected.above(thresholds);
                (Path::Sparse, Path::Sparse, rechecked)
            }
            None => {
                activations.resize(cells, 0.0);
                activations_above(thresholds, dense_z, activations);
                sums.count(isa, spec.features, activations);
                (Path::Dense, Path::Dense, 0)
            }
        }
    }

    /// The features that a loss over dead features sees in this step, ascending.
    fn dead_features(&self, counts: &[u32]) -> Vec<u32> {
        let Some(loss) = self.spec.dead.filter(|_| self.purpose == Purpose::Training) else {
            return Vec::new();
        };
        let features = self.steps_since_fired.iter().zip(counts).enumerate();
        let dead = features.filter(|(_, (since, count))| loss.is_dead(**since, **count > 0));
        dead.map(|(feature, _)| feature as u32).collect()
    }

    /// The loss over the `dead` features; its gradient stays in the buffers.
    fn dead_loss(&mut self, input: &[f32], dead: Vec<u32>) -> f64 {
        self.buffers.dead.features.clear();
        let Some(loss) = self.spec.dead.filter(|_| !dead.is_empty()) else { return 0.0 };
        let (spec, weights) = (self.spec, self.weights);
        let Buffers { norms, shifted, residual, decoder_norms, dead: gradient, .. } = &mut *self.buffers;
        let mse = Finish { target: input, norms, mse: spec.loss.mse };
        let denominators: Vec<f32> = (0..spec.batch).map(|row| mse.denominator(row, spec.width)).collect();
        let loss = Dead {
            isa: self.options.isa,
            loss,
            input: Encode {
                x: if spec.pre_bias { shifted } else { input },
                weights: numbers(&weights.encoder),
                bias: numbers(&weights.encoder_bias),
                width: spec.width,
            },
            decoder: numbers(&weights.decoder),
            threshold: weights.threshold.as_ref().map(numbers),
            rank_by: spec.rank_by_decoder_norm.then_some(&decoder_norms[..]),
            residual,
            denominators: &denominators,
            sparsity: self.sparsity,
        };
        loss.loss(dead, gradient)
    }

    /// x − x̂ into the buffers.
    fn keep_residual(&mut self, target: &[f32]) {
        let Buffers { gradient, residual, .. } = &mut *self.buffers;
        residual.clear();
        residual.extend(target.iter().zip(gradient).map(|(x, xhat)| x - *xhat));
    }

    /// An error if a row holds what is not a number.
    fn check_rows(&self, rows: &[f32]) -> Result<(), StepError> {
        match first_non_finite_row(rows, self.spec.width) {
            Some(row) => Err(StepError::NonFiniteRow { row }),
            None => Ok(()),
        }
    }

    /// Fills the pairs above 0 or, if there are too many of them, the dense activations. The density decides;
    /// `expected` only says what to try first. Also returns how many pairs screening left to recompute.
    fn encode(&mut self, input: &[f32]) -> (Path, usize) {
        let (isa, spec, weights) = (self.options.isa, self.spec, self.weights);
        let products = self.options.products(self.purpose);
        let Buffers { shifted, ranked, rounded, encode, selected, activations, sums, packed, .. } =
            &mut *self.buffers;
        let pairs = &mut selected.kept;
        let cells = input.len() / spec.width * spec.features;
        let limit = (cells as f64 * self.options.sparse_density) as usize;
        let factors = factors(self.options, spec, weights, ranked, input, shifted, rounded);
        let search = self.options.search;
        let mut sparse =
            || encode_sparse(isa, factors, search, limit, encode, pairs).map(|found| found.rechecked);
        if self.expected == Path::Sparse
            && let Some(rechecked) = sparse()
        {
            activations.clear();
            activations.shrink_to_fit();
            *packed = PackedFactors::default();
            return (Path::Sparse, rechecked);
        }
        activations.resize(cells, 0.0);
        match self.options.bf16 {
            true => {
                encode_dense_bf16(isa, factors, activations);
                sums.count(isa, spec.features, activations);
            }
            false => dense::encode(isa, products, factors, packed, activations, sums),
        }
        let active: u64 = sums.features.iter().copied().map(u64::from).sum();
        let few = active as usize <= limit;
        match few.then(sparse).flatten() {
            Some(rechecked) => (Path::Sparse, rechecked),
            None => (Path::Dense, 0),
        }
    }

    /// Calls `work` with what the decode's first half reads.
    fn with_decode<R>(&mut self, work: impl FnOnce(Decode<'_>, &mut Buffers) -> R) -> R {
        let (spec, weights) = (self.spec, self.weights);
        if spec.loss.weight_by_decoder_norm {
            self.measure_decoder();
        }
        let decoder_norms = std::mem::take(&mut self.buffers.decoder_norms);
        let decode = Decode {
            weights: numbers(&weights.decoder),
            bias: numbers(&weights.decoder_bias),
            decoder_norms: spec.loss.weight_by_decoder_norm.then_some(&decoder_norms[..]),
            sparsity: self.sparsity,
        };
        let result = work(decode, self.buffers);
        self.buffers.decoder_norms = decoder_norms;
        result
    }

    /// x̂ of the rows `input` [B,d] from their activations: the decode's first half.
    fn decode(&mut self, path: Path, input: &[f32]) {
        let (isa, width) = (self.options.isa, self.spec.width);
        let products = self.options.products(self.purpose);
        let rows = input.len() / width;
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, gradient, activity, packed, .. } = buffers;
            gradient.resize(rows * width, 0.0);
            activity.resize(rows, RowActivity::default());
            match path {
                Path::Sparse => decode_sparse(isa, decode, &selected.kept, gradient, activity),
                Path::Dense => {
                    decode_dense(products, decode, activations, &sums.rows, packed, gradient, activity)
                }
            }
        });
        self.skip(input);
    }

    /// Adds to x̂ in the buffers what a skip connection makes of `input` [B,d].
    fn skip(&mut self, input: &[f32]) {
        if let Some(skip) = &self.weights.skip {
            let products = self.options.products(self.purpose);
            let Buffers { packed, gradient, .. } = &mut *self.buffers;
            add_skip(products, input, numbers(skip), self.spec.width, packed, gradient);
        }
    }

    /// Both halves of the decode for all prefixes: each one's x̂ is the one before and its own group's part. Leaves the sums of
    /// g, and of the last the residual if that is asked for; returns the reconstruction term of all together.
    fn decode_prefixes(&mut self, path: Path, input: &[f32], target: &[f32], residual: bool) -> f64 {
        let (isa, spec) = (self.options.isa, *self.spec);
        let rows = target.len() / spec.width;
        let gradient = &mut self.buffers.gradient;
        gradient.clear();
        gradient.extend((0..rows).flat_map(|_| &self.weights.decoder_bias));
        self.skip(input);
        let products = self.options.products(self.purpose);
        self.with_decode(|decode, buffers| {
            let Buffers { selected, activations, sums, gradient, prefixes, activity, packed, .. } = buffers;
            activity.resize(rows, RowActivity::default());
            match path {
                Path::Sparse => sparse_activity(decode, &selected.kept, activity),
                Path::Dense => dense_activity(decode, activations, &sums.rows, activity),
            }
            prefixes.resize_with(spec.prefixes.widths().len(), Vec::new);
            let mut start = 0;
            for (at, end) in spec.prefixes.ends(spec.features).enumerate() {
                match path {
                    Path::Sparse => decode_sparse_group(isa, decode, &selected.kept, start..end, gradient),
                    Path::Dense => {
                        decode_dense_group(products, decode, activations, start..end, packed, gradient)
                    }
                }
                if let Some(prefix) = prefixes.get_mut(at) {
                    prefix.clone_from(gradient);
                }
                start = end;
            }
        });
        if residual {
            self.keep_residual(target);
        }
        let weight = spec.prefixes.weight();
        let mut prefixes = std::mem::take(&mut self.buffers.prefixes);
        let mut term = 0.0;
        // The last reconstruction's errors are those that stay.
        for prefix in &mut prefixes {
            std::mem::swap(prefix, &mut self.buffers.gradient);
            self.finish(target);
            term += self.reconstruction_term();
            std::mem::swap(prefix, &mut self.buffers.gradient);
        }
        self.finish(target);
        term += self.reconstruction_term();

        // From the widest to the narrowest.
        let mut wider: Option<&[f32]> = None;
        let all = prefixes.iter_mut().chain([&mut self.buffers.gradient]).rev();
        for g in all {
            match wider {
                Some(wider) => {
                    g.par_iter_mut().zip(wider).for_each(|(g, wider)| *g = weight as f32 * *g + wider)
                }
                None => g.par_iter_mut().for_each(|g| *g *= weight as f32),
            }
            wider = Some(g);
        }
        self.buffers.prefixes = prefixes;
        weight * term
    }

    /// The trained error of the reconstruction whose errors lie in the buffers.
    fn reconstruction_term(&self) -> f64 {
        let Buffers { norms, errors, .. } = &*self.buffers;
        let mse = Finish { target: &[], norms, mse: self.spec.loss.mse };
        let rows = errors.iter().enumerate().map(|(row, error)| {
            let denominator = f64::from(mse.denominator(row, self.spec.width));
            if denominator > 0.0 { f64::from(error.squared_error) / denominator } else { 0.0 }
        });
        rows.sum()
    }

    /// From x̂ to g and the rows' errors: the decode's second half.
    fn finish(&mut self, target: &[f32]) {
        let Buffers { norms, gradient, errors, .. } = &mut *self.buffers;
        errors.resize(target.len() / self.spec.width, RowError::default());
        let input = Finish { target, norms, mse: self.spec.loss.mse };
        finish(self.options.isa, input, gradient, errors);
    }

    /// An error if the trained MSE divides by a norm of 0.
    fn check_denominators(&self) -> Result<(), StepError> {
        let mse = self.spec.loss.mse;
        let norms = match mse {
            Mse::Sum => return Ok(()),
            Mse::Centered => &self.buffers.norms.centered,
            Mse::Uncentered => &self.buffers.norms.squared,
        };
        match norms.iter().position(|norm| *norm == 0.0) {
            Some(row) => Err(StepError::ZeroNorm { row, mse }),
            None => Ok(()),
        }
    }

    /// Sums what the pass left in the buffers.
    fn sums(&self) -> Sums {
        let Buffers { norms, activity, errors, .. } = &*self.buffers;
        let mut sums =
            Sums { features: self.spec.features as u64, rows: errors.len() as u64, ..Sums::default() };
        let width = self.spec.width as f64;
        for (row, (activity, error)) in activity.iter().zip(errors).enumerate() {
            let squared_error = f64::from(error.squared_error);
            let norm = f64::from(norms.squared[row]).sqrt();
            let reconstructed_norm = f64::from(error.squared_norm).sqrt();
            let centered = f64::from(norms.centered[row]);
            sums.squared_error += squared_error;
            sums.squared_norm += f64::from(norms.squared[row]);
            sums.active += u64::from(activity.active);
            sums.active_squared += u64::from(activity.active) * u64::from(activity.active);
            sums.l1 += activity.l1;
            sums.penalty += activity.penalty;
            sums.deviation += centered * centered;
            if centered > 0.0 {
                sums.rows_off_mean += 1;
                sums.centered_error += squared_error / (width * centered);
            }
            if norm > 0.0 {
                sums.rows_off_zero += 1;
                sums.uncentered_error += squared_error / (width * norm);
                sums.norm_ratio += reconstructed_norm / norm;
                if reconstructed_norm > 0.0 {
                    sums.cosine += f64::from(error.dot) / (norm * reconstructed_norm);
                }
            }
        }
        // The distances are those from x̄ as float32.
        if let Some(penalty) = self.sparsity.of_mean(sums.l0()) {
            sums.penalty = sums.rows as f64 * penalty;
        }
        let rows = sums.rows as f64;
        let rounding =
            norms.sum.iter().zip(&norms.mean).map(|(sum, mean)| (sum / rows - f64::from(*mean)).powi(2));
        sums.deviation = (sums.deviation - rows * rounding.sum::<f64>()).max(0.0);
        sums
    }
}

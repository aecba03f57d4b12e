//! The engine on CPU threads: runs the pieces of [`kernels::cpu`] in the order of a step.

use std::borrow::Cow;
use std::sync::Arc;

use kernels::cpu::decode::{Decode, RowResult, decode_sparse, sum_of_rows};
use kernels::cpu::dense::{count_active, decode_dense};
use kernels::cpu::encode::{Encode, EncodeBuffers, Search, encode_dense, encode_dense_bf16, encode_sparse};
use kernels::cpu::frequency::FrequencyWindow;
use kernels::cpu::pairs::ActivePairs;
use kernels::cpu::rows::{RowNorms, first_non_finite_row, round_to_bf16, row_norms, subtract_bias};
use kernels::cpu::sparsity::{Sparsity, frequency_terms};
use kernels::cpu::train::{Activations, Train, train};
use kernels::cpu::update::AdamStep;
use kernels::cpu::{Isa, Parameters, TrainedParameters, transposed, vector};
use kernels::loss::Mse;
use kernels::stats::Sums;
use kernels::step::{Schedule, StepSpec};

use super::{Engine, EngineError, EngineState, EvalStats, Path, StepStats, check_length};

/// How a [`CpuEngine`] runs. Only `bf16` changes results beyond rounding; `threads` does not change them at all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuOptions {
    /// Worker threads; 0 means one per core.
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
}

impl Default for CpuOptions {
    /// One thread per core, the widest instruction set, and the density up to which the sparse path was
    /// measured to be the faster one.
    fn default() -> CpuOptions {
        CpuOptions {
            threads: 0,
            isa: Isa::detect(),
            sparse_density: 0.25,
            search: Search::Screened,
            bf16: false,
        }
    }
}

/// Threads for one engine, or for several that step in turn: a step keeps all of them busy by itself, and two at the
/// same time would only share caches and memory bandwidth.
#[derive(Debug, Clone)]
pub struct CpuThreads(Arc<rayon::ThreadPool>);

impl CpuThreads {
    /// So many threads; 0 means one per core.
    ///
    /// # Errors
    /// [`EngineError::Threads`] if the system refuses them.
    pub fn new(threads: usize) -> Result<CpuThreads, EngineError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("step-{number}"))
            .build()
            .map_err(|error| EngineError::Threads { threads, reason: error.to_string() })?;
        Ok(CpuThreads(Arc::new(pool)))
    }
}

/// Trains on CPU threads.
pub struct CpuEngine {
    spec: StepSpec,
    options: CpuOptions,
    pool: Arc<rayon::ThreadPool>,
    parameters: TrainedParameters,
    window: FrequencyWindow,
    frequencies: Vec<f32>,
    steps_since_fired: Vec<u64>,
    steps: u64,
    /// The path to try first: that of the previous step. Which one is taken depends on the batch alone.
    expected: Path,
    buffers: Buffers,
}

/// Memory that one step leaves to the next; nothing in it outlives a step's results.
#[derive(Default)]
struct Buffers {
    norms: RowNorms,
    input: Vec<f32>,
    /// The encode's factors in bfloat16, where that is asked for: [B,d], [F,d].
    rounded: (Vec<f32>, Vec<f32>),
    encode: EncodeBuffers,
    pairs: ActivePairs,
    /// [B,F], only while steps are dense.
    activations: Vec<f32>,
    gradient: Vec<f32>,
    results: Vec<RowResult>,
    decoder_norms: Vec<f32>,
    slopes: Vec<f32>,
}

impl CpuEngine {
    /// An engine with the given weights that has done no step yet.
    ///
    /// # Errors
    /// A spec out of range, weights of other sizes, or threads that the system refuses.
    pub fn new(
        spec: StepSpec,
        weights: &sae::Weights,
        options: CpuOptions,
    ) -> Result<CpuEngine, EngineError> {
        CpuEngine::on(&CpuThreads::new(options.threads)?, spec, weights, options)
    }

    /// As [`CpuEngine::new`], on threads that it shares with other engines.
    ///
    /// # Errors
    /// A spec out of range, weights of other sizes.
    pub fn on(
        threads: &CpuThreads,
        spec: StepSpec,
        weights: &sae::Weights,
        options: CpuOptions,
    ) -> Result<CpuEngine, EngineError> {
        spec.validate()?;
        let (d, f) = (spec.width, spec.features);
        check_length("W_enc", weights.w_enc.len(), d * f, "d·F")?;
        check_length("b_enc", weights.b_enc.len(), f, "F")?;
        check_length("W_dec", weights.w_dec.len(), f * d, "F·d")?;
        check_length("b_dec", weights.b_dec.len(), d, "d")?;
        let parameters = TrainedParameters {
            weights: Parameters {
                encoder: transposed(&weights.w_enc, d, f),
                encoder_bias: weights.b_enc.clone(),
                decoder: weights.w_dec.clone(),
                decoder_bias: weights.b_dec.clone(),
            },
            first: Parameters::zeros(d, f),
            second: Parameters::zeros(d, f),
        };
        Ok(CpuEngine {
            spec,
            options,
            pool: Arc::clone(&threads.0),
            parameters,
            window: FrequencyWindow::new(spec.sparsity_window, spec.batch, f),
            frequencies: vec![0.0; f],
            steps_since_fired: vec![0; f],
            steps: 0,
            expected: Path::Dense,
            buffers: Buffers::default(),
        })
    }

    /// The number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on the engine's threads.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

impl Engine for CpuEngine {
    fn spec(&self) -> &StepSpec {
        &self.spec
    }

    fn step(&mut self, batch: &[f32], schedule: &Schedule) -> Result<StepStats, EngineError> {
        let expected = self.spec.batch * self.spec.width;
        check_length("the batch", batch.len(), expected, "B·d")?;
        let CpuEngine { spec, options, parameters, window, buffers, .. } = self;
        let (frequencies, fired) = (&mut self.frequencies, &mut self.steps_since_fired);
        let (steps, path) = (&mut self.steps, &mut self.expected);
        self.pool.install(|| {
            let mut step = Step { spec, options, buffers };
            step.step(batch, schedule, parameters, window, frequencies, fired, steps, path)
        })
    }

    fn evaluate(&mut self, batch: &[f32]) -> Result<EvalStats, EngineError> {
        let (width, rows) = (self.spec.width, batch.len() / self.spec.width);
        check_length("the batch", batch.len(), rows * width, "a multiple of d")?;
        if rows == 0 {
            return Ok(Sums::new(width, self.spec.features));
        }
        let CpuEngine { spec, options, parameters, buffers, expected, .. } = self;
        self.pool.install(|| {
            let mut step = Step { spec, options, buffers };
            let sparsity = Sparsity::new(&spec.loss, &Schedule::constant(0.0), rows);
            let forward = step.forward(batch, &parameters.weights, &sparsity, *expected)?;
            Ok(step.sums(&forward))
        })
    }

    fn squared_errors(&mut self, batch: &[f32]) -> Result<Vec<f32>, EngineError> {
        let rows = self.evaluate(batch)?.rows as usize;
        Ok(self.buffers.results[..rows].iter().map(|row| row.squared_error).collect())
    }

    fn weights(&self) -> Result<sae::Weights, EngineError> {
        let weights = &self.parameters.weights;
        Ok(sae::Weights {
            d_in: self.spec.width,
            d_sae: self.spec.features,
            w_enc: transposed(&weights.encoder, self.spec.features, self.spec.width),
            b_enc: weights.encoder_bias.clone(),
            w_dec: weights.decoder.clone(),
            b_dec: weights.decoder_bias.clone(),
        })
    }

    fn frequencies(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Borrowed(&self.frequencies))
    }

    fn steps_since_fired(&self) -> Result<Cow<'_, [u64]>, EngineError> {
        Ok(Cow::Borrowed(&self.steps_since_fired))
    }

    fn state(&self) -> Result<EngineState, EngineError> {
        Ok(EngineState {
            step: self.steps,
            weights: self.parameters.weights.clone(),
            first_moments: self.parameters.first.clone(),
            second_moments: self.parameters.second.clone(),
            window: self.window.counts(),
            steps_since_fired: self.steps_since_fired.clone(),
            path_choice: None,
        })
    }

    fn restore(&mut self, state: EngineState) -> Result<(), EngineError> {
        let (d, f) = (self.spec.width, self.spec.features);
        for parameters in [&state.weights, &state.first_moments, &state.second_moments] {
            for (name, array) in parameters.arrays() {
                let (expected, rule) = match name {
                    "encoder_bias" => (f, "F"),
                    "decoder_bias" => (d, "d"),
                    _ => (f * d, "F·d"),
                };
                check_length(name, array.len(), expected, rule)?;
            }
        }
        check_length("steps_since_fired", state.steps_since_fired.len(), f, "F")?;
        let batches = state.window.len() / f;
        check_length("window", state.window.len(), batches * f, "a multiple of F")?;
        check_length(
            "window",
            state.window.len(),
            batches.min(self.spec.sparsity_window) * f,
            "at most F times the sparsity window",
        )?;
        let (length, rows) = (self.spec.sparsity_window, self.spec.batch);
        self.window = FrequencyWindow::restored(length, rows, f, &state.window);
        self.frequencies = (0..f).map(|j| self.window.frequency(j) as f32).collect();
        self.parameters = TrainedParameters {
            weights: state.weights,
            first: state.first_moments,
            second: state.second_moments,
        };
        self.steps_since_fired = state.steps_since_fired;
        self.steps = state.step;
        Ok(())
    }
}

/// What the forward pass leaves behind, besides the buffers.
struct Forward {
    path: Path,
    /// In how many rows each feature is active, [F].
    counts: Vec<u32>,
    /// Pairs that screening left to recompute.
    rechecked: usize,
}

/// One pass over a batch, on the engine's threads.
struct Step<'a> {
    spec: &'a StepSpec,
    options: &'a CpuOptions,
    buffers: &'a mut Buffers,
}

impl Step<'_> {
    /// [`Engine::step`] after the check of the batch's size.
    fn step(
        &mut self,
        batch: &[f32],
        schedule: &Schedule,
        parameters: &mut TrainedParameters,
        window: &mut FrequencyWindow,
        frequencies: &mut [f32],
        steps_since_fired: &mut [u64],
        steps: &mut u64,
        expected: &mut Path,
    ) -> Result<StepStats, EngineError> {
        let (isa, spec) = (self.options.isa, self.spec);
        let sparsity = Sparsity::new(&spec.loss, schedule, spec.batch);
        let forward = self.forward(batch, &parameters.weights, &sparsity, *expected)?;
        self.check_denominators()?;

        let sums = self.sums(&forward);
        let mse = match spec.loss.mse {
            Mse::Sum => sums.mse_sum(),
            Mse::Centered => sums.mse_centered(),
            Mse::Uncentered => sums.mse_uncentered(),
        };
        let penalty = spec.loss.coefficient * schedule.coefficient_scale * sums.penalty();
        // The frequency terms are finite by their form; nothing has changed up to here.
        if !(mse + penalty).is_finite() {
            return Err(EngineError::NonFiniteLoss { step: *steps + 1, loss: mse + penalty });
        }
        window.push(&forward.counts);
        self.buffers.slopes.resize(spec.features, 0.0);
        let terms = frequency_terms(&spec.loss, window, spec.batch, &mut self.buffers.slopes);

        let sum_of_g = sum_of_rows(&self.buffers.gradient, spec.width);
        let input = Train {
            spec,
            sparsity: &sparsity,
            adam: &AdamStep::new(&spec.adam, schedule.lr, *steps + 1),
            slopes: &self.buffers.slopes,
            x: if spec.pre_bias { &self.buffers.input } else { batch },
            g: &self.buffers.gradient,
            sum_of_g: &sum_of_g,
        };
        let activations = match forward.path {
            Path::Sparse => Activations::Sparse(&self.buffers.pairs),
            Path::Dense => Activations::Dense(&self.buffers.activations),
        };
        let finite = train(isa, input, activations, parameters);

        *steps += 1;
        *expected = forward.path;
        for (feature, count) in forward.counts.iter().enumerate() {
            frequencies[feature] = window.frequency(feature) as f32;
            let since = &mut steps_since_fired[feature];
            *since = if *count > 0 { 0 } else { *since + 1 };
        }
        if !finite {
            return Err(EngineError::Diverged { step: *steps });
        }
        Ok(StepStats {
            step: *steps,
            loss: mse + penalty + terms.min + terms.max,
            mse,
            penalty,
            min_sparsity: terms.min,
            max_sparsity: terms.max,
            l0: sums.l0(),
            l0_std: sums.l0_std(),
            l1: sums.l1(),
            mse_sum: sums.mse_sum(),
            mse_centered: sums.mse_centered(),
            mse_uncentered: sums.mse_uncentered(),
            explained_variance: sums.explained_variance(),
            explained_variance_uncentered: sums.explained_variance_uncentered(),
            cosine_similarity: sums.cosine_similarity(),
            l2_ratio: sums.l2_ratio(),
            density: sums.density(),
            below_target: terms.below_target,
            path: forward.path,
            rechecked: forward.rechecked as f64 / (spec.batch * spec.features) as f64,
        })
    }

    /// Encode and decode: fills the buffers with activations, g and the rows' results.
    fn forward(
        &mut self,
        batch: &[f32],
        weights: &Parameters,
        sparsity: &Sparsity,
        expected: Path,
    ) -> Result<Forward, EngineError> {
        let (isa, spec) = (self.options.isa, self.spec);
        if let Some(row) = first_non_finite_row(batch, spec.width) {
            return Err(EngineError::NonFiniteRow { row });
        }
        row_norms(isa, batch, spec.width, &mut self.buffers.norms);
        if spec.pre_bias {
            subtract_bias(batch, &weights.decoder_bias, &mut self.buffers.input);
        }
        let (path, rechecked) = self.encode(batch, weights, expected);

        if spec.loss.weight_by_decoder_norm {
            let rows = weights.decoder.chunks_exact(spec.width);
            self.buffers.decoder_norms = rows.map(|row| vector::dot(isa, row, row).sqrt()).collect();
        }
        let Buffers { norms, pairs, activations, gradient, results, decoder_norms, .. } = &mut *self.buffers;
        let decode = Decode {
            x: batch,
            norms,
            weights: &weights.decoder,
            bias: &weights.decoder_bias,
            decoder_norms: spec.loss.weight_by_decoder_norm.then_some(&decoder_norms[..]),
            mse: spec.loss.mse,
            sparsity,
        };
        gradient.resize(batch.len(), 0.0);
        results.resize(batch.len() / spec.width, RowResult::default());
        let counts = match path {
            Path::Sparse => {
                decode_sparse(isa, decode, pairs, gradient, results);
                pairs.feature_starts.windows(2).map(|at| (at[1] - at[0]) as u32).collect()
            }
            Path::Dense => {
                decode_dense(isa, decode, activations, gradient, results);
                count_active(activations, spec.features)
            }
        };
        Ok(Forward { path, counts, rechecked })
    }

    /// Fills the pairs or, if there are too many of them, the dense activations. The density decides;
    /// `expected` only says what to try first. Also returns how many pairs screening left to recompute.
    fn encode(&mut self, batch: &[f32], weights: &Parameters, expected: Path) -> (Path, usize) {
        let (isa, spec) = (self.options.isa, self.spec);
        let Buffers { input, rounded, encode, pairs, activations, .. } = &mut *self.buffers;
        let cells = batch.len() / spec.width * spec.features;
        let limit = (cells as f64 * self.options.sparse_density) as usize;
        let mut input = Encode {
            x: if spec.pre_bias { input } else { batch },
            weights: &weights.encoder,
            bias: &weights.encoder_bias,
            width: spec.width,
        };
        if self.options.bf16 {
            round_to_bf16(input.x, &mut rounded.0);
            round_to_bf16(input.weights, &mut rounded.1);
            (input.x, input.weights) = (&rounded.0, &rounded.1);
        }
        let search = self.options.search;
        let mut sparse =
            || encode_sparse(isa, input, search, limit, encode, pairs).map(|found| found.rechecked);
        if expected == Path::Sparse
            && let Some(rechecked) = sparse()
        {
            activations.clear();
            activations.shrink_to_fit();
            return (Path::Sparse, rechecked);
        }
        activations.resize(cells, 0.0);
        let dense = if self.options.bf16 { encode_dense_bf16 } else { encode_dense };
        dense(isa, input, activations);
        let active: u64 = count_active(activations, spec.features).into_iter().map(u64::from).sum();
        let few = active as usize <= limit;
        match few.then(sparse).flatten() {
            Some(rechecked) => (Path::Sparse, rechecked),
            None => (Path::Dense, 0),
        }
    }

    /// An error if the trained MSE divides by a norm of 0.
    fn check_denominators(&self) -> Result<(), EngineError> {
        let (norms, reason) = match self.spec.loss.mse {
            Mse::Sum => return Ok(()),
            Mse::Centered => (&self.buffers.norms.centered, "equals the mean of the batch's rows"),
            Mse::Uncentered => (&self.buffers.norms.squared, "is zero"),
        };
        match norms.iter().position(|norm| *norm == 0.0) {
            Some(row) => Err(EngineError::ZeroNorm { row, reason, mse: self.spec.loss.mse }),
            None => Ok(()),
        }
    }

    /// Sums what the forward pass left in the buffers.
    fn sums(&self, forward: &Forward) -> Sums {
        let norms = &self.buffers.norms;
        let mut sums = Sums::new(self.spec.width, self.spec.features);
        sums.rows = self.buffers.results.len() as u64;
        sums.row_sum.copy_from_slice(&norms.sum);
        sums.firings = forward.counts.iter().map(|count| u64::from(*count)).collect();
        let width = self.spec.width as f64;
        for (row, result) in self.buffers.results.iter().enumerate() {
            let squared_error = f64::from(result.squared_error);
            let norm = f64::from(norms.squared[row]).sqrt();
            let reconstructed_norm = f64::from(result.squared_norm).sqrt();
            let centered = f64::from(norms.centered[row]);
            sums.squared_error += squared_error;
            sums.squared_norm += f64::from(norms.squared[row]);
            sums.active += u64::from(result.active);
            sums.active_squared += u64::from(result.active) * u64::from(result.active);
            sums.l1 += result.l1;
            sums.penalty += result.penalty;
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
                    sums.cosine += f64::from(result.dot) / (norm * reconstructed_norm);
                }
            }
        }
        // The distances are those from x̄ as float32.
        let rows = sums.rows as f64;
        let rounding =
            norms.sum.iter().zip(&norms.mean).map(|(sum, mean)| (sum / rows - f64::from(*mean)).powi(2));
        sums.deviation = (sums.deviation - rows * rounding.sum::<f64>()).max(0.0);
        sums
    }
}

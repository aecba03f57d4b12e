//! The roofline of a CPU step: for each part its time, its work, the bound that limits it, and the fraction of that bound
//! that it reaches.
//!
//! Work counts what the formulas require, not what an implementation does. The encode is 2·B·F·d operations even where
//! screening does them in integers (then its fraction can exceed 1). Bytes are those that must come from memory, or from a
//! cache too small for the whole array.

use std::time::Instant;

use kernels::cpu::ceiling::{copy_rate, matrix_unit_rate, multiply_add_rate};
use kernels::cpu::decode::{Decode, Finish, RowActivity, RowError, decode_sparse, finish, sum_of_rows};
use kernels::cpu::dense::{self, ActivationSums, PackedFactors, decode_dense};
use kernels::cpu::encode::{Encode, EncodeBuffers, encode_sparse};
use kernels::cpu::pairs::ActivePairs;
use kernels::cpu::rows::{RowNorms, row_norms};
use kernels::cpu::select::Selected;
use kernels::cpu::sparsity::Sparsity;
use kernels::cpu::train::{Activations, GroupGradient, Train, train};
use kernels::cpu::{TrainedParameters, Waiting};
use kernels::error::StepError;
use kernels::path::Path;
use kernels::spec::{AdamStep, Schedule, StepSpec};
use ndarray::{Array2, ArrayView2};
use sae::Weights;

use super::{CpuEngine, CpuOptions, Engine, layout};

/// What limits a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The rate of float32 multiply-adds.
    Arithmetic,
    /// The rate at which memory is read and written.
    Memory,
}

/// One part of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BenchRow {
    /// The part's name.
    pub part: &'static str,
    /// Median time in seconds.
    pub seconds: f64,
    /// Float32 operations.
    pub operations: f64,
    /// Bytes moved.
    pub bytes: f64,
    /// What limits it: the ceiling under which its work takes longer.
    pub bound: Bound,
    /// The least time that the bound allows, divided by the measured time.
    pub share: f64,
}

/// What the machine can do at most, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Float32 operations per second.
    pub operations: f64,
    /// The same of products of all rows and all features, by whatever forms them: on matrix units that is one bfloat16 product where
    /// they screen, and three where they make a float32 one.
    pub products: f64,
    /// Bytes per second.
    pub bytes: f64,
}

impl Ceilings {
    /// Measures on the current pool, for steps on a path.
    fn measure(options: CpuOptions, path: Path) -> Ceilings {
        let operations = multiply_add_rate(options.isa);
        let units = matrix_unit_rate(options.isa).filter(|_| options.split_products);
        let products = units.map(|rate| if path == Path::Sparse { rate } else { rate / 3.0 });
        Ceilings { operations, products: products.unwrap_or(operations), bytes: copy_rate() }
    }
}

impl BenchRow {
    fn new(part: &'static str, seconds: f64, cost: Cost, ceilings: Ceilings) -> BenchRow {
        let Cost { products, others, bytes } = cost;
        let operations = products + others;
        let (arithmetic, memory) =
            (products / ceilings.products + others / ceilings.operations, bytes / ceilings.bytes);
        let bound = if arithmetic >= memory { Bound::Arithmetic } else { Bound::Memory };
        let share = arithmetic.max(memory) / seconds;
        BenchRow { part, seconds, operations, bytes, bound, share }
    }

    /// Operations per second.
    pub fn operation_rate(&self) -> f64 {
        self.operations / self.seconds
    }

    /// Bytes per second.
    pub fn byte_rate(&self) -> f64 {
        self.bytes / self.seconds
    }
}

/// The roofline of one step on one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchReport {
    /// The parts and, last, the whole step.
    pub rows: Vec<BenchRow>,
    /// Measured.
    pub ceilings: Ceilings,
    /// Mean number of active features of a row.
    pub l0: f64,
    /// The path that follows from the batch's density.
    pub path: Path,
    /// The share of all pairs that screening left to recompute.
    pub rechecked: f64,
    /// Worker threads.
    pub threads: usize,
    /// The instruction set.
    pub isa: &'static str,
    /// Rows per second of the whole step.
    pub rows_per_second: f64,
}

/// Weights and a batch of which each row activates about `l0` of the spec's features, for a bench without a
/// store: rows and weights uniform, the bias at the quantile of their products.
pub fn synthetic(spec: &StepSpec, l0: f64, seed: u64) -> (Weights, Array2<f32>) {
    let (d, f) = (spec.width, spec.features);
    let mut weights = Weights::init(d, f, seed);
    // Rows like the decoder's: as many numbers as a batch needs, spread alike in every direction.
    let batch = Weights::init(d, spec.batch, seed.wrapping_add(1)).w_dec;
    let sample = spec.batch.min(64);
    let mut products: Vec<f32> = Vec::with_capacity(sample * f);
    for row in batch.rows().into_iter().take(sample) {
        let mut z = vec![0.0f32; f];
        for (x, w) in row.iter().zip(weights.w_enc.rows()) {
            z.iter_mut().zip(w).for_each(|(z, w)| *z += x * w);
        }
        products.extend(z);
    }
    let above = ((l0 / f as f64) * products.len() as f64) as usize;
    let rank = products.len() - 1 - above.min(products.len() - 1);
    let (_, quantile, _) = products.select_nth_unstable_by(rank, f32::total_cmp);
    weights.b_enc.fill(-*quantile);
    (weights, batch)
}

/// Gives weights of [`synthetic`] thresholds in place of their bias, and returns a bandwidth for them: a tenth of a threshold.
pub fn with_thresholds(weights: &mut Weights) -> f32 {
    let threshold = weights.b_enc.mapv(|bias| -bias);
    weights.b_enc.fill(0.0);
    let bandwidth = 0.1 * threshold[0].abs().max(f32::MIN_POSITIVE);
    weights.threshold = Some(threshold.mapv(|threshold| threshold.max(0.0)));
    bandwidth
}

/// Times the parts of a step and the whole step on `batch` [B,d], `repeats` times each; medians count. The
/// parts run without the subtraction of the pre-bias, on the path that follows from the batch's density. Of an activation other
/// than ReLU, two parts are told apart: how the active pairs are found, and all the rest.
///
/// # Errors
/// As [`CpuEngine::new`] and [`Engine::step`].
pub fn bench(
    spec: &StepSpec,
    weights: &Weights,
    batch: ArrayView2<'_, f32>,
    options: CpuOptions,
    repeats: usize,
) -> Result<BenchReport, StepError> {
    let mut engine = CpuEngine::new(*spec, weights, options)?;
    let schedule = Schedule::constant(0.0);
    // The first steps find the path and touch the memory.
    engine.step(batch.into(), &schedule)?;
    let report = engine.step(batch.into(), &schedule)?;
    let mut failure = None;
    let whole = median(repeats, || {
        if let Err(error) = engine.step(batch.into(), &schedule) {
            failure = Some(error);
        }
    });
    let work = Work::of(spec, report.sums.active as f64, report.path);
    let ceilings = engine.run(|| Ceilings::measure(options, report.path));
    let mut rows = if spec.activation.is_relu() {
        let parts = || Parts::new(spec, weights, batch, options, report.path).time(repeats, &work, ceilings);
        engine.run(parts)
    } else {
        let selection = median(repeats, || {
            if let Err(error) = engine.select(batch) {
                failure = Some(error);
            }
        });
        let rest = (whole - selection).max(f64::MIN_POSITIVE);
        vec![
            BenchRow::new("encode and selection", selection, work.encode, ceilings),
            BenchRow::new("the rest", rest, work.decode + work.train, ceilings),
        ]
    };
    if let Some(error) = failure {
        return Err(error);
    }
    rows.push(BenchRow::new("whole step", whole, work.encode + work.decode + work.train, ceilings));
    Ok(BenchReport {
        rows,
        ceilings,
        l0: report.sums.l0(),
        path: report.path,
        rechecked: report.rechecked,
        threads: engine.threads(),
        isa: options.isa.name(),
        rows_per_second: spec.batch as f64 / whole,
    })
}

/// Median time in seconds.
fn median(repeats: usize, mut once: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            once();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What a part has to do.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Operations of products of all rows and all features.
    products: f64,
    /// Other operations.
    others: f64,
    /// Bytes.
    bytes: f64,
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, more: Cost) -> Cost {
        Cost {
            products: self.products + more.products,
            others: self.others + more.others,
            bytes: self.bytes + more.bytes,
        }
    }
}

/// What each part has to do.
struct Work {
    encode: Cost,
    decode: Cost,
    train: Cost,
}

impl Work {
    fn of(spec: &StepSpec, pairs: f64, path: Path) -> Work {
        let (b, d, f) = (spec.batch as f64, spec.width as f64, spec.features as f64);
        let cells = b * f;
        // Weights and both moments of encoder and decoder, read and written once.
        let update = 6.0 * 4.0 * 2.0 * f * d;
        let cost = |products, others, bytes| Cost { products, others, bytes };
        match path {
            Path::Sparse => Work {
                encode: cost(2.0 * cells * d, 0.0, 4.0 * (f * d + b * d)),
                decode: cost(0.0, 2.0 * pairs * d, 4.0 * d * (pairs + 2.0 * b)),
                train: cost(0.0, 6.0 * pairs * d + 20.0 * f * d, 8.0 * pairs * d + update),
            },
            Path::Dense => Work {
                encode: cost(2.0 * cells * d, 0.0, 4.0 * (f * d + b * d + cells)),
                decode: cost(2.0 * cells * d, 0.0, 4.0 * (cells + f * d + 2.0 * b * d)),
                train: cost(6.0 * cells * d, 20.0 * f * d, 4.0 * cells + update),
            },
        }
    }
}

const ROW_MAJOR: &str = "parameters are row-major";

/// A step's parts with all their inputs, to be run one by one.
struct Parts<'a> {
    spec: &'a StepSpec,
    options: CpuOptions,
    path: Path,
    batch: &'a [f32],
    norms: RowNorms,
    parameters: TrainedParameters,
    sparsity: Sparsity,
}

impl<'a> Parts<'a> {
    fn new(
        spec: &'a StepSpec,
        weights: &Weights,
        batch: ArrayView2<'a, f32>,
        options: CpuOptions,
        path: Path,
    ) -> Parts<'a> {
        let d = spec.width;
        let batch = batch.to_slice().expect("a step on this batch was done");
        let mut norms = RowNorms::default();
        row_norms(options.isa, batch, d, &mut norms);
        let weights = layout::parameters(weights);
        let (first, second) = (weights.zeros_like(), weights.zeros_like());
        let parameters = TrainedParameters { weights, first, second };
        let sparsity = Sparsity::new(&spec.loss, &Schedule::constant(0.0), spec.batch);
        Parts { spec, options, path, batch, norms, parameters, sparsity }
    }

    fn time(mut self, repeats: usize, work: &Work, ceilings: Ceilings) -> Vec<BenchRow> {
        let (spec, isa) = (self.spec, self.options.isa);
        let (d, f) = (spec.width, spec.features);
        let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
        let (products, mut packed) = (self.options.training_products(), PackedFactors::default());
        let mut sums = ActivationSums::default();
        let mut dense = vec![0.0; if self.path == Path::Dense { spec.batch * f } else { 0 }];
        let weights = &self.parameters.weights;
        let encode = Encode {
            x: self.batch,
            weights: weights.encoder.as_slice().expect(ROW_MAJOR),
            bias: weights.encoder_bias.as_slice().expect(ROW_MAJOR),
            width: d,
        };
        let encode = median(repeats, || match self.path {
            Path::Sparse => {
                let (search, limit) = (self.options.search, spec.batch * f);
                encode_sparse(isa, encode, search, limit, &mut buffers, &mut pairs);
            }
            Path::Dense => dense::encode(isa, products, encode, &mut packed, &mut dense, &mut sums),
        });

        let decode = Decode {
            weights: weights.decoder.as_slice().expect(ROW_MAJOR),
            bias: weights.decoder_bias.as_slice().expect(ROW_MAJOR),
            decoder_norms: None,
            sparsity: &self.sparsity,
        };
        let error = Finish { target: self.batch, norms: &self.norms, mse: spec.loss.mse, first: 0 };
        let mut g = vec![0.0; self.batch.len()];
        let mut activity = vec![RowActivity::default(); spec.batch];
        let mut errors = vec![RowError::default(); spec.batch];
        let decode = median(repeats, || {
            match self.path {
                Path::Sparse => decode_sparse(isa, decode, &pairs, &mut g, &mut activity),
                Path::Dense => {
                    decode_dense(products, decode, &dense, &sums.rows, &mut packed, &mut g, &mut activity);
                }
            }
            finish(isa, error, &mut g, &mut errors);
        });

        let slopes = vec![0.0; f];
        let sum_of_g = sum_of_rows(&g, d);
        let adam = AdamStep::new(&spec.adam, 0.0, 1);
        let groups = [GroupGradient { end: f, g: &g }];
        let input = Train {
            spec,
            sparsity: &self.sparsity,
            adam: &adam,
            slopes: &slopes,
            products,
            x: self.batch,
            skipped: self.batch,
            groups: &groups,
            sum_of_g: &sum_of_g,
            jump: None,
            dead: None,
        };
        let mut selected = Selected::default();
        selected.kept = pairs;
        let activations = match self.path {
            Path::Sparse => Activations::Sparse(&selected),
            Path::Dense => Activations::Dense { activations: &dense, preactivations: None },
        };
        let (parameters, mut waiting) = (&mut self.parameters, Waiting::default());
        let train = median(repeats, || {
            train(isa, input, activations, parameters, &mut waiting, &mut packed);
        });
        vec![
            BenchRow::new("encode", encode, work.encode, ceilings),
            BenchRow::new("decode", decode, work.decode, ceilings),
            BenchRow::new("backward and update", train, work.train, ceilings),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Activation, Adam, DecoderNorm, Forward, LossSpec, Mse};

    fn spec() -> StepSpec {
        StepSpec {
            width: 24,
            features: 400,
            batch: 128,
            pre_bias: false,
            skip: false,
            activation: Activation::Relu,
            loss: LossSpec::reconstruction(Mse::Sum),
            decoder_norm: DecoderNorm::Unit,
            adam: Adam::default(),
            sparsity_window: 3,
            prefixes: Default::default(),
            dead: None,
            rank_by_decoder_norm: false,
            gradient_clip: None,
            panels: 1,
        }
    }

    #[test]
    fn a_synthetic_batch_has_about_the_l0_asked_for() {
        for l0 in [4.0, 40.0, 200.0] {
            let (weights, batch) = synthetic(&spec(), l0, 3);
            let mut engine = CpuEngine::new(spec(), &weights, CpuOptions::default()).unwrap();
            let got = engine.evaluate(batch.view().into()).unwrap().sums.l0();
            assert!((got - l0).abs() < 0.15 * l0, "{got} {l0}");
        }
    }

    #[test]
    fn the_report_covers_every_part_on_both_paths() {
        for (l0, path) in [(4.0, Path::Sparse), (200.0, Path::Dense)] {
            let (weights, batch) = synthetic(&spec(), l0, 3);
            let options = CpuOptions { threads: 2, ..CpuOptions::default() };
            let report = bench(&spec(), &weights, batch.view(), options, 3).unwrap();
            let parts: Vec<&str> = report.rows.iter().map(|row| row.part).collect();
            assert_eq!(parts, ["encode", "decode", "backward and update", "whole step"]);
            assert_eq!((report.path, report.threads), (path, 2));
            for row in &report.rows {
                assert!(row.seconds > 0.0 && row.share > 0.0 && row.operation_rate() > 0.0);
                // Products may have a ceiling of their own, usually the higher one.
                let Ceilings { operations, products, bytes } = report.ceilings;
                let memory = row.bytes / bytes;
                let [least, most] = [products, operations].map(|rate| (row.operations / rate).max(memory));
                let share = row.share * row.seconds;
                assert!(share > 0.999 * least.min(most) && share < 1.001 * least.max(most), "{row:?}");
            }
            let whole = report.rows[3];
            let sum: f64 = report.rows[..3].iter().map(|row| row.operations).sum();
            assert!((whole.operations - sum).abs() < 1e-6 * sum);
        }
    }
}

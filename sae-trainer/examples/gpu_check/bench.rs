//! A step at one size: its time in sequence and one step ahead, then the time of each kernel.

use std::str::FromStr;
use std::time::Instant;

use anyhow::{Result, bail};
use example_steps::rows;
use half::f16;
use kernels::cuda::cuda_device::Timings;
use ndarray::Array2;
use sae::Weights;
use sae_trainer::engine::{
    CudaEngine, DeviceOptions, Engine, Forward, FrequencyPenalty, LossSpec, Mse, Path, Penalty, Precision,
    Rows, Schedule, StepReport, StepSpec, synthetic,
};
use serde_json::json;

use super::{Size, device, figure, median};

/// Active features of a row in the sparse regime.
const L0: f64 = 20.0;
/// Different batches that take turns.
const BATCHES: usize = 4;
/// Steps before the timed ones: until the path is found and the step recorded.
const WARM_UP: usize = 8;
/// Steps in which every kernel is timed.
const TIMED: usize = 10;

/// The regime of a bench: at an L0 of about 20, or as at the start of training, with half of all pairs active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Regime {
    Sparse,
    Dense,
}

impl FromStr for Regime {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Regime> {
        match text {
            "sparse" => Ok(Regime::Sparse),
            "dense" => Ok(Regime::Dense),
            _ => bail!("{text}: a path is sparse or dense"),
        }
    }
}

/// The step of the reference configuration at this size.
pub(crate) fn spec(size: Size) -> StepSpec {
    let loss = LossSpec {
        penalty: Penalty::ApproxL0 { epsilon: 0.2 },
        coefficient: 7e-5,
        min_sparsity: Some(FrequencyPenalty { coefficient: 1e-6, target: 1e-5 }),
        ..LossSpec::reconstruction(Mse::Centered)
    };
    StepSpec::new(size.width, size.features, size.rows, loss)
}

/// An engine that has found its path, and batches for it.
struct Bench {
    engine: CudaEngine,
    batches: Vec<Array2<f32>>,
    schedule: Schedule,
    /// Of the last step.
    report: StepReport,
}

impl Bench {
    fn new(regime: Regime, precision: Precision, size: Size) -> Result<Bench> {
        let spec = spec(size);
        let (sparse, batch) = synthetic(&spec, L0.min(spec.features as f64 / 400.0), 0);
        let weights = match regime {
            Regime::Sparse => sparse,
            Regime::Dense => Weights::init(spec.width, spec.features, 0),
        };
        let options = DeviceOptions::for_precision(precision);
        let mut engine = CudaEngine::new(device(false)?, spec, &weights, options)?;
        // A learning rate of 0 keeps the density; the arithmetic is the same.
        let schedule = Schedule::constant(0.0);
        let noise = rows(spec.batch, spec.width, 3);
        let batches: Vec<Array2<f32>> =
            (0..BATCHES).map(|at| &batch * (noise.clone() * (1e-3 * at as f32) + 1.0)).collect();
        let mut report = engine.step(batches[0].view().into(), &schedule)?;
        for at in 0..WARM_UP {
            report = engine.step(batches[at % BATCHES].view().into(), &schedule)?;
        }
        let wanted = if regime == Regime::Sparse { Path::Sparse } else { Path::Dense };
        if report.path != wanted {
            let (l0, path) = (report.sums.l0(), report.path);
            bail!("an L0 of {l0} was to give {wanted:?} steps, not {path:?} ones");
        }
        Ok(Bench { engine, batches, schedule, report })
    }

    fn step(&mut self, at: usize) -> Result<()> {
        self.engine.step(self.batches[at % BATCHES].view().into(), &self.schedule)?;
        Ok(())
    }

    fn rows(&self) -> f64 {
        self.engine.spec().batch as f64
    }

    /// The median time of a step whose result is waited for.
    fn one_by_one(&mut self, steps: usize) -> Result<f64> {
        let mut seconds: Vec<f64> = Vec::new();
        for at in 0..steps {
            let start = Instant::now();
            self.step(at)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(median(&mut seconds))
    }

    /// The mean time of a step while the next batch is on its way.
    fn ahead(&mut self, steps: usize, half: bool) -> Result<f64> {
        let halves: Vec<Array2<f16>> = self.batches.iter().map(|batch| batch.mapv(f16::from_f32)).collect();
        let start = Instant::now();
        for at in 0..steps {
            let rows = match half {
                false => Rows::F32(self.batches[at % BATCHES].view()),
                true => Rows::F16(halves[at % BATCHES].view()),
            };
            self.engine.submit_shared(at as u64, rows.into(), &self.schedule)?;
        }
        while self.engine.finish()?.is_some() {}
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    }

    /// The times of every kernel in [`TIMED`] steps, which are not replayed from a graph then.
    fn kernels(&mut self) -> Result<Timings> {
        self.engine.with_device(|device| device.start_timing())?;
        for at in 0..TIMED {
            self.step(at)?;
        }
        Ok(self.engine.with_device(|device| device.finish_timing())?)
    }
}

/// Returns the number of failures: none, it measures.
pub(crate) fn bench(regime: Regime, precision: Precision, size: Size, steps: usize) -> Result<usize> {
    let mut bench = Bench::new(regime, precision, size)?;
    let (l0, candidates) = (bench.report.sums.l0(), bench.report.rechecked);
    println!("{regime:?}, {precision:?}, {size:?}: L0 {:.1}, {:.3} % candidates", l0, 100.0 * candidates);
    let rows = bench.rows();
    let report = |name: &str, seconds: f64| {
        println!("{name}: {:.1} µs, {:.2} M tokens/s", seconds * 1e6, rows / seconds / 1e6);
        let tokens_per_second = rows / seconds;
        figure::print(
            name,
            json!({"seconds": seconds, "tokens_per_second": tokens_per_second, "l0": l0, "candidates": candidates}),
        );
    };
    report("a step, one by one", bench.one_by_one(steps)?);
    report("a step ahead, float32", bench.ahead(steps, false)?);
    report("a step ahead, float16", bench.ahead(steps, true)?);
    let timings = bench.kernels()?;
    let pairs = l0 * rows;
    print_kernels(bench.engine.spec(), pairs, candidates, timings);
    Ok(0)
}

/// Sparse steps, kernel by kernel, for a profiler.
pub(crate) fn profile(size: Size) -> Result<usize> {
    Bench::new(Regime::Sparse, Precision::Exact, size)?.kernels()?;
    Ok(0)
}

/// The least work of a kernel where it is known, a step: operations and bytes of memory.
fn work(name: &str, launches: f64, spec: &StepSpec, pairs: f64) -> Option<(f64, f64)> {
    let (b, d, f) = (spec.batch as f64, spec.width as f64, spec.features as f64);
    let product = 2.0 * b * d * f;
    Some(match name {
        "encode_mma" | "encode_wgmma" => (product, 0.0),
        "gemm" => (product * launches, 0.0),
        // Weights and moments read and written once; what is gathered comes from the second-level cache.
        _ if name.starts_with("backward_update") || name.starts_with("update_dense") => {
            (0.0, 6.0 * 4.0 * 2.0 * f * d + 4.0 * f * d)
        }
        _ if name.starts_with("decode_dense") => (0.0, 3.0 * 4.0 * b * d),
        "recheck" => (0.0, 4.0 * pairs * d),
        _ => return None,
    })
}

/// Each kernel's time a step, the longest first.
fn print_kernels(spec: &StepSpec, pairs: f64, candidates: f64, timings: Timings) {
    let mut kernels: Vec<(&str, f64, f64)> = timings
        .into_iter()
        .map(|(name, seconds)| {
            (name, seconds.len() as f64 / TIMED as f64, seconds.iter().sum::<f64>() / TIMED as f64)
        })
        .collect();
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    println!("{:>28} {:>9} {:>9}", "kernel", "launches", "µs/step");
    for (name, launches, seconds) in &kernels {
        println!("{name:>28} {launches:>9.1} {:>9.1}", seconds * 1e6);
        let mut fields = json!({"seconds": seconds, "launches": launches});
        let touched =
            if *name == "recheck" { candidates * spec.batch as f64 * spec.features as f64 } else { pairs };
        if let Some((operations, bytes)) = work(name, *launches, spec, touched) {
            fields["operations"] = operations.into();
            fields["bytes"] = bytes.into();
        }
        figure::print(name, fields);
    }
    let sum: f64 = kernels.iter().map(|kernel| kernel.2).sum();
    println!("{:>28} {:>9} {:>9.1}", "sum", "", sum * 1e6);
    figure::print("all kernels", json!({"seconds": sum}));
}

//! A training run on both engines: the curves must agree.

use std::time::Instant;

use anyhow::Result;
use example_steps::numbers;
use ndarray::Array2;
use sae::Weights;
use sae_trainer::engine::{
    CpuEngine, CpuOptions, CudaEngine, DeviceOptions, Engine, FrequencyPenalty, LossSpec, Mse, Path, Penalty,
    Precision, Schedule, StepSpec,
};

use super::device;

const WIDTH: usize = 64;
const FEATURES: usize = 1024;
const BATCH: usize = 1024;
/// Directions that the rows are made of, and how many each row has.
const DIRECTIONS: usize = 200;
const ACTIVE: usize = 5;

fn spec() -> StepSpec {
    let loss = LossSpec {
        penalty: Penalty::ApproxL0 { epsilon: 0.2 },
        coefficient: 2e-4,
        min_sparsity: Some(FrequencyPenalty { coefficient: 1e-6, target: 1e-3 }),
        ..LossSpec::reconstruction(Mse::Centered)
    };
    StepSpec { sparsity_window: 50, ..StepSpec::new(WIDTH, FEATURES, BATCH, loss) }
}

/// Rows that a sparse autoencoder can learn: sums of a few of many directions.
fn batch(directions: &[f32], step: u64) -> Array2<f32> {
    let mut out = vec![0.0; BATCH * WIDTH];
    let choices = numbers(BATCH * ACTIVE * 2, 5000 + step);
    for (row, choices) in out.chunks_exact_mut(WIDTH).zip(choices.chunks_exact(ACTIVE * 2)) {
        for choice in choices.chunks_exact(2) {
            let at = (((choice[0] + 1.0) / 2.0).powi(2) * DIRECTIONS as f32) as usize;
            let direction = &directions[at.min(DIRECTIONS - 1) * WIDTH..][..WIDTH];
            row.iter_mut().zip(direction).for_each(|(x, d)| *x += (1.5 + choice[1]) * d);
        }
    }
    Array2::from_shape_vec((BATCH, WIDTH), out).expect("as many numbers")
}

/// Returns the number of failures.
pub(crate) fn check(steps: u64) -> Result<usize> {
    let directions = numbers(DIRECTIONS * WIDTH, 1);
    let weights = Weights::init(WIDTH, FEATURES, 7);
    let schedule = Schedule::constant(1e-3);
    let options = CpuOptions { split_products: false, ..CpuOptions::default() };
    let mut cpu = CpuEngine::new(spec(), &weights, options)?;
    let precisions = [Precision::Exact, Precision::Fp32, Precision::Bf16];
    let mut gpus = Vec::new();
    for precision in precisions {
        let options = DeviceOptions { precision, sparse_density: 0.05 };
        gpus.push(CudaEngine::new(device(false)?, spec(), &weights, options)?);
    }
    println!("step, then L0 and MSE: cpu, {precisions:?}");
    let mut worst = [(0.0f64, 0.0f64); 3];
    let (mut seconds, mut sparse) = ([0.0; 4], 0);
    for step in 0..steps {
        let rows = batch(&directions, step);
        let start = Instant::now();
        let expected = cpu.step(rows.view().into(), &schedule)?;
        seconds[3] += start.elapsed().as_secs_f64();
        let mut line = format!("{:6} {:9.3} {:.5e}", expected.step, expected.sums.l0(), expected.terms.mse);
        for (at, gpu) in gpus.iter_mut().enumerate() {
            let start = Instant::now();
            let got = gpu.step(rows.view().into(), &schedule)?;
            seconds[at] += start.elapsed().as_secs_f64();
            sparse += u64::from(got.path == Path::Sparse);
            line += &format!("   {:9.3} {:.5e}", got.sums.l0(), got.terms.mse);
            let off = |got: f64, expected: f64| (got - expected).abs() / expected.abs().max(1e-12);
            worst[at].0 = worst[at].0.max(off(got.terms.mse, expected.terms.mse));
            worst[at].1 = worst[at].1.max(off(got.sums.l0(), expected.sums.l0()));
        }
        if step < 5 || (step + 1).is_multiple_of(steps.div_ceil(20)) {
            println!("{line}");
        }
    }
    let mut failures = 0;
    for (at, precision) in precisions.iter().enumerate() {
        let (mse, l0) = worst[at];
        // Rounding differences grow along a run, until the runs differ as two of different seeds do; a wrong formula
        // shows in the first steps and by far more.
        let limit = if *precision == Precision::Bf16 { 0.2 } else { 0.1 };
        let failed = mse > limit || l0 > limit;
        failures += usize::from(failed);
        println!(
            "{} {precision:?}: largest relative difference of MSE {mse:.1e}, of L0 {l0:.1e}; {:.2} s, cpu {:.2} s",
            if failed { "FAIL" } else { "ok  " },
            seconds[at],
            seconds[3]
        );
    }
    if sparse == 0 {
        println!("FAIL no step was sparse");
        failures += 1;
    }
    Ok(failures)
}

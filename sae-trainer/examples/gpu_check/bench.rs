//! Kernels against their floors, steps and tokens per second, at one size, in the sparse regime and at the dense start.

use std::time::Instant;

use anyhow::Result;
use half::f16;
use kernels::cuda::cuda_device::Timings;
use kernels::cuda::device::Device;
use sae::Weights;
use sae_trainer::engine::{
    Adam, CudaEngine, DecoderNorm, DeviceOptions, Engine, FrequencyPenalty, LossSpec, Mse, Penalty,
    Precision, Rows, Schedule, StepSpec, synthetic,
};

use super::{device, numbers, screens};

/// What one H200 was measured to do: bytes copied and bfloat16 operations per second.
const BYTES: f64 = 4.3e12;
const OPERATIONS: f64 = 790e12;
/// Active features of a row in the sparse regime.
const L0: f64 = 20.0;
/// Different batches that take turns.
const BATCHES: usize = 4;

fn spec(rows: usize, width: usize, features: usize) -> StepSpec {
    StepSpec {
        width,
        features,
        batch: rows,
        pre_bias: false,
        loss: LossSpec {
            penalty: Penalty::ApproxL0 { epsilon: 0.2 },
            coefficient: 7e-5,
            min_sparsity: Some(FrequencyPenalty { coefficient: 1e-6, target: 1e-5 }),
            ..LossSpec::reconstruction(Mse::Centered)
        },
        decoder_norm: DecoderNorm::Unit,
        adam: Adam::default(),
        sparsity_window: 300,
    }
}

/// Returns the number of failures: none, it measures.
pub(crate) fn bench(rows: usize, width: usize, features: usize) -> Result<usize> {
    let spec = spec(rows, width, features);
    println!("B {rows}, d {width}, F {features}; floors at {BYTES:.2e} bytes/s and {OPERATIONS:.2e} FLOP/s");
    time_screens(&spec)?;
    let (sparse, batch) = synthetic(&spec, L0, 0);
    let dense = Weights::init(width, features, 0);
    for precision in [Precision::Exact, Precision::Bf16] {
        run("sparse", &spec, &sparse, &batch, precision, 200)?;
        run("dense", &spec, &dense, &batch, precision, 40)?;
    }
    Ok(0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The tensor-core screens side by side.
fn time_screens(spec: &StepSpec) -> Result<()> {
    let mut device = device(false)?;
    let wgmma = device.properties().compute_capability == (9, 0);
    let case = screens::Case::new(&mut device, (spec.features, spec.batch, spec.width), 0.001)?;
    device.start_timing()?;
    for _ in 0..20 {
        for wgmma in [false].into_iter().chain(wgmma.then_some(true)) {
            device.screen_with(&case.screen(), wgmma)?;
        }
    }
    let operations = 2.0 * (spec.batch * spec.features * spec.width) as f64;
    for (name, mut seconds) in device.finish_timing()? {
        let time = median(&mut seconds);
        println!(
            "{name}: {:.1} µs, {:.0} TFLOP/s, {:.0} % of the floor",
            time * 1e6,
            operations / time / 1e12,
            100.0 * operations / OPERATIONS / time
        );
    }
    Ok(())
}

/// Steps on `batch` and others like it: step time one by one and a step ahead, then the time of every kernel.
fn run(
    name: &str,
    spec: &StepSpec,
    weights: &Weights,
    batch: &[f32],
    precision: Precision,
    steps: usize,
) -> Result<()> {
    let options = DeviceOptions { precision, ..DeviceOptions::default() };
    let mut engine = CudaEngine::new(device(false)?, *spec, weights, options)?;
    // A learning rate of 0 keeps the density; the arithmetic is the same.
    let schedule = Schedule::constant(0.0);
    let noise = numbers(batch.len(), 3);
    let batches: Vec<Vec<f32>> = (0..BATCHES)
        .map(|at| batch.iter().zip(&noise).map(|(x, n)| x * (1.0 + 1e-3 * at as f32 * n)).collect())
        .collect();
    let mut stats = engine.step(&batches[0], &schedule)?;
    for at in 0..8 {
        stats = engine.step(&batches[at % BATCHES], &schedule)?;
    }
    println!(
        "\n{name}, {precision:?}: L0 {:.1}, {:?} path, {:.3} % candidates",
        stats.l0,
        stats.path,
        100.0 * stats.rechecked
    );

    let mut alone: Vec<f64> = Vec::new();
    for at in 0..steps {
        let start = Instant::now();
        engine.step(&batches[at % BATCHES], &schedule)?;
        alone.push(start.elapsed().as_secs_f64());
    }
    println!("step, upload included: one by one {:.1} µs", median(&mut alone) * 1e6);
    let halves: Vec<Vec<f16>> =
        batches.iter().map(|batch| batch.iter().copied().map(f16::from_f32).collect()).collect();
    for (upload, of) in [("float32", 4), ("half-precision", 2)] {
        let start = Instant::now();
        for at in 0..steps {
            let (wide, half) = (&batches[at % BATCHES], &halves[at % BATCHES]);
            let rows = if of == 4 { Rows::F32(wide) } else { Rows::F16(half) };
            engine.submit_shared(at as u64, rows, &schedule)?;
        }
        while engine.finish()?.is_some() {}
        let ahead = start.elapsed().as_secs_f64() / steps as f64;
        println!(
            "a step ahead, {upload} batches: {:.1} µs = {:.2} M tokens/s, {:.1} GB/s of batches",
            ahead * 1e6,
            spec.batch as f64 / ahead / 1e6,
            (of * batch.len()) as f64 / ahead / 1e9
        );
    }

    engine.with_device(|device| device.start_timing())?;
    let timed = 10;
    for at in 0..timed {
        engine.step(&batches[at % BATCHES], &schedule)?;
    }
    let timings = engine.with_device(|device| device.finish_timing())?;
    print_kernels(spec, stats.l0 * spec.batch as f64, timings, timed);
    Ok(())
}

/// Each kernel's time a step and, where its work is known, its share of the floor.
fn print_kernels(spec: &StepSpec, pairs: f64, timings: Timings, steps: usize) {
    let (b, d, f) = (spec.batch as f64, spec.width as f64, spec.features as f64);
    let products = 2.0 * b * d * f / OPERATIONS;
    let update = 6.0 * 4.0 * 2.0 * f * d + 4.0 * f * d;
    let floor = |name: &str, launches: f64| match name {
        "encode_mma" | "encode_wgmma" => Some(products),
        "gemm" => Some(products * launches),
        // Weights and moments read and written once; what is gathered comes from the second-level cache.
        name if name.starts_with("backward_update") || name.starts_with("update_dense") => {
            Some(update / BYTES)
        }
        name if name.starts_with("decode_dense") => Some(3.0 * 4.0 * b * d / BYTES),
        "recheck" => Some(4.0 * pairs * d / BYTES),
        _ => None,
    };
    println!("{:>28} {:>9} {:>9} {:>9} {:>7}", "kernel", "launches", "µs/step", "floor µs", "share");
    let mut lines: Vec<(f64, String)> = timings
        .into_iter()
        .map(|(name, seconds)| {
            let launches = seconds.len() as f64 / steps as f64;
            let time = seconds.iter().sum::<f64>() / steps as f64;
            let floor = floor(name, launches);
            let share = floor.map_or(String::new(), |floor| {
                format!("{:>9.1} {:>5.0} %", floor * 1e6, 100.0 * floor / time)
            });
            (time, format!("{name:>28} {launches:>9.1} {:>9.1} {share}", time * 1e6))
        })
        .collect();
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    let total: f64 = lines.iter().map(|line| line.0).sum();
    lines.iter().for_each(|(_, line)| println!("{line}"));
    println!("{:>28} {:>9} {:>9.1}", "sum", "", total * 1e6);
}

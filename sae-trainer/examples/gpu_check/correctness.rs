//! Steps of every configuration on the GPU against the CPU engine: the same weights, the same batches, in memory that held
//! NaN.

use std::str::FromStr;

use anyhow::{Result, bail};
use example_steps::rows;
use ndarray::{Array2, ArrayView2};
use sae::Weights;
use sae_trainer::engine::{
    Activation, CpuEngine, CpuOptions, CudaEngine, DecoderNorm, DeviceOptions, Engine, Forward, LossSpec,
    Mse, Parameters, Path, Penalty, Precision, Schedule, StepError, StepSpec, Sums,
};
use serde_json::json;

use super::{device, figure};

/// Optimizer steps of a comparison.
const STEPS: u64 = 6;

/// A configuration and what its batches are like.
struct Case {
    name: String,
    spec: StepSpec,
    /// b_enc at the start: far below 0 nothing is active, far above everything.
    bias: f32,
}

fn spec((width, features, batch): (usize, usize, usize)) -> StepSpec {
    let all = example_steps::spec(width, features, batch);
    StepSpec {
        pre_bias: false,
        activation: Activation::Relu,
        loss: LossSpec { weight_by_decoder_norm: false, ..all.loss },
        decoder_norm: DecoderNorm::Unit,
        sparsity_window: 3,
        ..all
    }
}

/// Which sizes are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sizes {
    /// For an emulated GPU.
    Tiny,
    /// For a sanitizer.
    Small,
    All,
}

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Sizes> {
        match text {
            "tiny" => Ok(Sizes::Tiny),
            "small" => Ok(Sizes::Small),
            "all" => Ok(Sizes::All),
            _ => bail!("{text}: sizes are tiny, small or all"),
        }
    }
}

fn cases(sizes: Sizes) -> Vec<Case> {
    let sizes: &[(usize, usize, usize)] = match sizes {
        Sizes::Tiny => &[(9, 20, 33)],
        Sizes::Small => &[(35, 150, 130)],
        Sizes::All => &[(35, 150, 130), (1, 1, 1), (64, 64, 32), (130, 1000, 257), (768, 3072, 512)],
    };
    let mut cases = Vec::new();
    for size in sizes {
        for (what, bias) in [("", 0.0), (" all active", 50.0), (" empty", -50.0)] {
            let name = format!("d {} F {} B {}{what}", size.0, size.1, size.2);
            // A lone row equals the batch's mean, by whose distance the centered MSE divides.
            let mse = if size.2 == 1 { Mse::Sum } else { Mse::Centered };
            let spec = StepSpec { loss: LossSpec { mse, ..spec(*size).loss }, ..spec(*size) };
            cases.push(Case { name, spec, bias });
        }
    }
    let base = spec(sizes[0]);
    let mut add = |name: &str, spec: StepSpec| cases.push(Case { name: name.to_owned(), spec, bias: 0.0 });
    let with_loss = |loss: LossSpec| StepSpec { loss, ..base };
    for (name, penalty) in [
        ("none", Penalty::None),
        ("l1", Penalty::L1),
        ("tanh", Penalty::Tanh { scale: 5.0 }),
        ("log", Penalty::Log { epsilon: 0.2 }),
    ] {
        add(name, with_loss(LossSpec { penalty, ..base.loss }));
    }
    for mse in [Mse::Sum, Mse::Uncentered] {
        add(&format!("{mse:?}"), with_loss(LossSpec { mse, ..base.loss }));
    }
    for decoder_norm in [DecoderNorm::Tied, DecoderNorm::Free] {
        let loss = LossSpec { weight_by_decoder_norm: true, ..base.loss };
        add(&format!("{decoder_norm:?}, weighted"), StepSpec { decoder_norm, loss, ..base });
    }
    add("pre-bias", StepSpec { pre_bias: true, ..base });
    cases
}

/// ‖got − expected‖ / ‖expected‖.
fn difference(got: &[f32], expected: &[f32]) -> f64 {
    let squared = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|v| v * v).sum::<f64>();
    let off = squared(&mut got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = squared(&mut expected.iter().map(|v| f64::from(*v)));
    if got.len() != expected.len() || off.is_nan() { f64::INFINITY } else { (off / size.max(1e-30)).sqrt() }
}

/// Steps in one precision, on the sparse and the dense path. Returns the number of failures.
pub(crate) fn check(precision: Precision, sizes: Sizes) -> Result<usize> {
    let paths: &[Path] =
        if precision == Precision::Bf16 { &[Path::Sparse] } else { &[Path::Sparse, Path::Dense] };
    let (mut failures, mut compared, mut excused, mut crossings) = (0, 0, 0, 0);
    // As long as one device is there, the next one finds the driver's context set up.
    let _first = device(false)?;
    for case in cases(sizes) {
        for path in paths {
            let found = compare(&case, precision, *path)?;
            // In bfloat16 other pairs are active; what is looked at is that nothing is far off.
            let limit = if precision == Precision::Bf16 { 5e-2 } else { 1e-4 };
            let failed = found.off > limit || found.crossings > found.crossings_allowed;
            failures += usize::from(failed);
            compared += 1;
            excused += usize::from(found.excused);
            crossings += found.crossings;
            println!(
                "{} {} {precision:?} {path:?}: {:.1e} ({}){}",
                if failed { "FAIL" } else { "ok  " },
                case.name,
                found.off,
                found.what,
                if found.crossings > 0 {
                    format!(", {} pairs crossed 0", found.crossings)
                } else {
                    String::new()
                }
            );
        }
    }
    println!("{excused} of {compared} comparisons were excused, for {crossings} pairs that crossed 0");
    figure::print(
        "excuses",
        json!({"excused": excused, "comparisons": compared, "pairs_crossed": crossings}),
    );
    failures += check_refusal(precision)?;
    Ok(failures)
}

/// What a comparison found.
struct Found {
    /// The largest relative difference, and where it is.
    off: f64,
    what: String,
    /// Whether features were left out of it because a pair of theirs crossed 0.
    excused: bool,
    /// Pairs active in one engine alone.
    crossings: u64,
    crossings_allowed: u64,
}

impl Found {
    fn note(&mut self, off: f64, what: String) {
        if off > self.off || off.is_nan() {
            (self.off, self.what) = (if off.is_nan() { f64::INFINITY } else { off }, what);
        }
    }
}

/// Some steps on both engines.
fn compare(case: &Case, precision: Precision, path: Path) -> Result<Found> {
    let spec = case.spec;
    let mut weights = Weights::init(spec.width, spec.features, 7);
    weights.b_enc.fill(case.bias);
    // Both sum float32 products: what differs is their order.
    let options = CpuOptions { split_products: false, ..CpuOptions::default() };
    let mut cpu = CpuEngine::new(spec, &weights, options)?;
    let sparse_density = if path == Path::Dense { 0.0 } else { 1.0 };
    let mut gpu =
        CudaEngine::new(device(true)?, spec, &weights, DeviceOptions { precision, sparse_density })?;
    let schedule = Schedule::constant(1e-3);
    let cells = (spec.batch * spec.features) as u64;
    let mut found = Found {
        off: 0.0,
        what: String::new(),
        excused: false,
        crossings: 0,
        // As for the screens: of the bits that the order of a float32 sum decides.
        crossings_allowed: if precision == Precision::Bf16 { u64::MAX } else { 4 + STEPS * cells / 50_000 },
    };
    let mut crossed = vec![false; spec.features];
    for step in 0..STEPS {
        let batch = rows(spec.batch, spec.width, 101 + step);
        let got = gpu.step(batch.view().into(), &schedule)?;
        let expected = cpu.step(batch.view().into(), &schedule)?;
        let off = (got.terms.mse - expected.terms.mse).abs() / expected.terms.mse.abs().max(1e-30);
        found.note(off, format!("mse of step {step}"));
        let active = |sums: &Sums| (sums.active, sums.active_squared);
        if active(&got.sums) != active(&expected.sums) {
            let (got, expected) = (gpu.state()?.window, cpu.state()?.window);
            found.crossings += note_crossings(&mut crossed, got.view(), expected.view());
        }
    }
    let (mut got, mut expected) = (gpu.state()?, cpu.state()?);
    // Dense products sum in another order than the CPU. An activation that this moves over 0 adds or takes away a pair's whole
    // gradient, and Adam makes a step of it: the pair's feature has other weights from then on, and a little of that reaches
    // the others.
    found.excused = path == Path::Dense && precision != Precision::Bf16 && crossed.contains(&true);
    if found.excused {
        for state in [&mut got, &mut expected] {
            forget(&crossed, &mut state.weights);
            forget(&crossed, &mut state.first_moments);
        }
    }
    let (scale, unit) = if found.excused { (100.0, " / 100") } else { (1.0, "") };
    for (kind, got, expected) in [
        ("weights", &got.weights, &expected.weights),
        ("first moments", &got.first_moments, &expected.first_moments),
    ] {
        // Of rows of one number the projection leaves rounding alone; bfloat16's gradients are its own.
        if kind != "weights" && (spec.width == 1 || precision == Precision::Bf16) {
            continue;
        }
        for ((name, got), (_, expected)) in got.tensors().into_iter().zip(expected.tensors()) {
            let (got, expected) = (got.to_slice().unwrap_or(&[]), expected.to_slice().unwrap_or(&[]));
            found.note(difference(got, expected) / scale, format!("{kind} {name}{unit}"));
        }
    }
    let counts = |window: &Array2<u32>| window.iter().map(|count| *count as f32).collect::<Vec<f32>>();
    if precision != Precision::Bf16 {
        found.note(
            difference(&counts(&got.window), &counts(&expected.window)) / 10.0,
            "window / 10".to_owned(),
        );
    }
    let rows = rows(spec.batch / 2 + 1, spec.width, 1000);
    let got = gpu.evaluate(rows.view().into())?.sums;
    let expected = cpu.evaluate(rows.view().into())?.sums;
    found.note(
        (got.mse_sum() - expected.mse_sum()).abs() / expected.mse_sum().max(1e-30),
        "evaluation".to_owned(),
    );
    Ok(found)
}

/// Marks features whose counts of the newest batch differ; the number of pairs by which they do.
fn note_crossings(crossed: &mut [bool], got: ArrayView2<'_, u32>, expected: ArrayView2<'_, u32>) -> u64 {
    let (got, expected) = (got.row(got.nrows() - 1), expected.row(expected.nrows() - 1));
    let mut pairs = 0;
    for ((crossed, got), expected) in crossed.iter_mut().zip(got).zip(expected) {
        *crossed |= got != expected;
        pairs += u64::from(got.abs_diff(*expected));
    }
    pairs
}

/// Sets the parameters of some features to 0.
fn forget(features: &[bool], parameters: &mut Parameters) {
    for feature in (0..features.len()).filter(|feature| features[*feature]) {
        parameters.encoder.row_mut(feature).fill(0.0);
        parameters.decoder.row_mut(feature).fill(0.0);
        parameters.encoder_bias[feature] = 0.0;
    }
}

/// A batch with NaN must change nothing, and training goes on afterwards.
fn check_refusal(precision: Precision) -> Result<usize> {
    let spec = spec((35, 150, 130));
    let weights = Weights::init(spec.width, spec.features, 7);
    let options = DeviceOptions::for_precision(precision);
    let mut gpu = CudaEngine::new(device(true)?, spec, &weights, options)?;
    let schedule = Schedule::constant(1e-3);
    let good = rows(spec.batch, spec.width, 1);
    gpu.step(good.view().into(), &schedule)?;
    let before = gpu.state()?;
    let mut bad = good.clone();
    bad[[57, 0]] = f32::NAN;
    let first = gpu.submit(bad.view().into(), &schedule)?;
    // Whichever call reports it, the step behind it has not happened either.
    let refused = gpu.submit(good.view().into(), &schedule).and_then(|_| gpu.finish());
    let unchanged = gpu.state()? == before;
    let goes_on = gpu.step(good.view().into(), &schedule)?.step == 2;
    let right = first.is_none()
        && matches!(refused, Err(StepError::NonFiniteRow { row: 57 }))
        && unchanged
        && goes_on;
    println!("{} a batch with NaN is refused", if right { "ok  " } else { "FAIL" });
    Ok(usize::from(!right))
}

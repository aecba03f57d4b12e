//! Steps of every configuration on the GPU against the CPU engine, from the same weights on the same batches, in memory
//! that held NaN.

use anyhow::Result;
use sae::Weights;
use sae_trainer::engine::{
    Adam, CpuEngine, CpuOptions, CudaEngine, DecoderNorm, DeviceOptions, Engine, EngineError,
    FrequencyPenalty, LossSpec, Mse, Penalty, Precision, Schedule, StepSpec,
};

use super::{device, numbers};

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
    let frequency = |target| Some(FrequencyPenalty { coefficient: 1e-3, target });
    StepSpec {
        width,
        features,
        batch,
        pre_bias: false,
        loss: LossSpec {
            mse: Mse::Centered,
            penalty: Penalty::ApproxL0 { epsilon: 0.2 },
            coefficient: 1e-3,
            min_sparsity: frequency(0.1),
            max_sparsity: frequency(0.6),
            frequency_epsilon: 0.2,
            weight_by_decoder_norm: false,
        },
        decoder_norm: DecoderNorm::Unit,
        adam: Adam::default(),
        sparsity_window: 3,
    }
}

fn cases(small: bool) -> Vec<Case> {
    let sizes: &[(usize, usize, usize)] = match small {
        true => &[(35, 150, 130)],
        false => &[(35, 150, 130), (1, 1, 1), (64, 64, 32), (130, 1000, 257), (768, 3072, 512)],
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

/// Returns the number of failures.
pub(crate) fn check(small: bool) -> Result<usize> {
    let mut failures = 0;
    let ways = [
        (Precision::Exact, false),
        (Precision::Exact, true),
        (Precision::Fp32, false),
        (Precision::Fp32, true),
        (Precision::Bf16, false),
    ];
    let ways = if small { &ways[..2] } else { &ways[..] };
    // As long as one device is there, the next one finds the driver's context set up.
    let _first = device(false)?;
    for case in cases(small) {
        for &(precision, dense) in ways {
            let (off, what) = compare(&case, precision, dense)?;
            // In bfloat16 other pairs are active; what is looked at is that nothing is far off.
            let limit = if precision == Precision::Bf16 { 5e-2 } else { 1e-4 };
            let failed = off > limit;
            failures += usize::from(failed);
            println!(
                "{} {} {precision:?} {}: {off:.1e} ({what})",
                if failed { "FAIL" } else { "ok  " },
                case.name,
                if dense { "dense" } else { "sparse" }
            );
        }
    }
    failures += check_refusal()?;
    Ok(failures)
}

/// The largest relative difference after some steps, and where it is.
fn compare(case: &Case, precision: Precision, dense: bool) -> Result<(f64, String)> {
    let spec = case.spec;
    let mut weights = Weights::init(spec.width, spec.features, 7);
    weights.b_enc.fill(case.bias);
    let mut cpu = CpuEngine::new(spec, &weights, CpuOptions::default())?;
    let options = DeviceOptions { precision, sparse_density: if dense { 0.0 } else { 1.0 } };
    let mut gpu = CudaEngine::new(device(true)?, spec, &weights, options)?;
    let schedule = Schedule::constant(1e-3);
    let mut worst = (0.0, String::new());
    let mut note = |off: f64, what: String| {
        if off > worst.0 || off.is_nan() {
            worst = (if off.is_nan() { f64::INFINITY } else { off }, what);
        }
    };
    let mut same_pairs = true;
    for step in 0..STEPS {
        let batch = numbers(spec.batch * spec.width, 100 + step);
        let (got, expected) = (gpu.step(&batch, &schedule)?, cpu.step(&batch, &schedule)?);
        same_pairs &= got.l0 == expected.l0 && got.l0_std == expected.l0_std;
        note((got.mse - expected.mse).abs() / expected.mse.abs().max(1e-30), format!("mse of step {step}"));
    }
    let (got, expected) = (gpu.state()?, cpu.state()?);
    let exact = precision != Precision::Bf16;
    for (kind, got, expected) in [
        ("weights", &got.weights, &expected.weights),
        ("first moments", &got.first_moments, &expected.first_moments),
    ] {
        // Of rows of one number the projection leaves rounding alone; bfloat16's gradients are its own.
        if kind != "weights" && (spec.width == 1 || !exact) {
            continue;
        }
        // Dense products sum in another order than the CPU. An activation that this moves over 0 adds or takes away a
        // pair's whole gradient; without one, moments have no such excuse.
        let excused = dense && kind != "weights" && !same_pairs;
        let (scale, unit) = if excused { (100.0, " / 100") } else { (1.0, "") };
        for ((name, got), (_, expected)) in got.arrays().into_iter().zip(expected.arrays()) {
            note(difference(got, expected) / scale, format!("{kind} {name}{unit}"));
        }
    }
    let counts = |window: &[u32]| window.iter().map(|count| *count as f32).collect::<Vec<f32>>();
    if exact {
        note(difference(&counts(&got.window), &counts(&expected.window)) / 10.0, "window / 10".to_owned());
    }
    let rows = numbers((spec.batch / 2 + 1) * spec.width, 999);
    let (got, expected) = (gpu.evaluate(&rows)?, cpu.evaluate(&rows)?);
    note((got.mse_sum() - expected.mse_sum()).abs() / expected.mse_sum().max(1e-30), "evaluation".to_owned());
    Ok(worst)
}

/// A batch with NaN must change nothing, and training goes on afterwards.
fn check_refusal() -> Result<usize> {
    let spec = spec((35, 150, 130));
    let weights = Weights::init(spec.width, spec.features, 7);
    let mut gpu = CudaEngine::new(device(true)?, spec, &weights, DeviceOptions::default())?;
    let schedule = Schedule::constant(1e-3);
    let good = numbers(spec.batch * spec.width, 1);
    gpu.step(&good, &schedule)?;
    let before = gpu.state()?;
    let mut bad = good.clone();
    bad[57 * spec.width] = f32::NAN;
    let first = gpu.submit(&bad, &schedule)?;
    let refused = gpu.submit(&good, &schedule);
    let unchanged = gpu.state()? == before;
    let goes_on = gpu.step(&good, &schedule)?.step == 2;
    let right = first.is_none()
        && matches!(refused, Err(EngineError::NonFiniteRow { row: 57 }))
        && unchanged
        && goes_on;
    println!("{} a batch with NaN is refused", if right { "ok  " } else { "FAIL" });
    Ok(usize::from(!right))
}

//! The CPU engine against PyTorch's 50 steps ([`Golden`]), and its own promises: one result for any number of
//! threads and for either path, exact resume, and weights untouched by a bad batch.

use example_steps::{Golden, numbers, relative_difference, single};
use kernels::cpu::Isa;
use kernels::cpu::rows::round_to_bf16;
use sae::Weights;
use sae_trainer::engine::{
    CpuEngine, CpuOptions, Engine, Mse, Path, Schedule, StepError, StepReport, StepSpec, Sums,
};

/// Options that force one path.
fn only(path: Path) -> CpuOptions {
    let sparse_density = if path == Path::Sparse { 1.0 } else { -1.0 };
    CpuOptions { threads: 2, sparse_density, ..CpuOptions::default() }
}

#[test]
fn fifty_steps_end_at_pytorchs_weights_in_every_configuration() {
    let golden = Golden::read();
    let batches = single(golden.tensor("batches"));
    let mut worst: (f64, String) = (0.0, String::new());
    for (name, case) in &golden.cases {
        let spec = &case.spec;
        let initial = Weights {
            d_in: spec.width,
            d_sae: spec.features,
            w_enc: single(golden.tensor("initial/W_enc")),
            b_enc: single(golden.tensor("initial/b_enc")),
            w_dec: single(golden.tensor("initial/W_dec")),
            b_dec: single(golden.tensor("initial/b_dec")),
        };
        let losses = golden.tensor(&format!("{name}/loss"));
        for path in [Path::Sparse, Path::Dense] {
            let mut engine = CpuEngine::new(*spec, &initial, only(path)).unwrap();
            for ((batch, now), loss) in
                batches.chunks_exact(spec.batch * spec.width).zip(case.schedule()).zip(losses)
            {
                let stats = engine.step(batch, &now).unwrap();
                assert_eq!(stats.path, path);
                let off = (stats.loss - loss).abs() / loss.abs();
                assert!(off < 1e-5, "{name} {path:?} step {}: {} {loss}", stats.step, stats.loss);
            }
            let weights = engine.weights().unwrap();
            for (key, got) in [
                ("W_enc", &weights.w_enc),
                ("b_enc", &weights.b_enc),
                ("W_dec", &weights.w_dec),
                ("b_dec", &weights.b_dec),
            ] {
                let expected = golden.tensor(&format!("{name}/weights/{key}"));
                let off = relative_difference(got, expected);
                assert!(off < 1e-5, "{name} {path:?} {key}: {off:e}");
                if off > worst.0 {
                    worst = (off, format!("{name} {path:?} {key}"));
                }
            }
        }
    }
    println!("largest relative difference {:.1e} ({})", worst.0, worst.1);
}

const WIDTH: usize = 35;
const FEATURES: usize = 150;
const BATCH: usize = 130;

fn spec() -> StepSpec {
    example_steps::spec(WIDTH, FEATURES, BATCH)
}

fn engine(options: CpuOptions) -> CpuEngine {
    CpuEngine::new(spec(), &Weights::init(WIDTH, FEATURES, 7), options).unwrap()
}

fn batch(step: u64) -> Vec<f32> {
    example_steps::batch(&spec(), step)
}

/// Trains and returns what was reported.
fn train(engine: &mut CpuEngine, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let schedule = Schedule::constant(1e-3);
    steps.map(|step| engine.step(&batch(step), &schedule).unwrap()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits_on_both_paths() {
    for path in [Path::Sparse, Path::Dense] {
        let run = |threads| {
            let mut engine = engine(CpuOptions { threads, ..only(path) });
            assert_eq!(engine.threads(), threads);
            let stats = train(&mut engine, 0..6);
            (stats, engine.state().unwrap(), engine.evaluate(&batch(99)).unwrap())
        };
        let one = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == one, "{path:?} with {threads} threads");
        }
    }
}

#[test]
fn both_paths_and_all_instruction_sets_agree_within_rounding() {
    let run = |options| {
        let mut engine = engine(options);
        let stats = train(&mut engine, 0..20);
        (engine.weights().unwrap(), stats)
    };
    let (expected, expected_stats) = run(only(Path::Dense));
    let expected: Vec<f64> = expected.w_enc.iter().chain(&expected.w_dec).map(|w| f64::from(*w)).collect();
    for isa in Isa::available() {
        for path in [Path::Sparse, Path::Dense] {
            let (weights, stats) = run(CpuOptions { isa, ..only(path) });
            let got: Vec<f32> = weights.w_enc.iter().chain(&weights.w_dec).copied().collect();
            let off = relative_difference(&got, &expected);
            assert!(off < 2e-6, "{} {path:?}: {off:e}", isa.name());
            for (a, b) in stats.iter().zip(&expected_stats) {
                assert!((a.loss - b.loss).abs() < 1e-5 * b.loss, "{} {path:?}", isa.name());
                assert!((a.l0 - b.l0).abs() < 0.02, "{} {path:?}", isa.name());
            }
        }
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    // A limit between the densities of two steps, so that both paths occur.
    let densities = train(&mut engine(CpuOptions::default()), 0..40).into_iter().map(|s| s.density);
    let sparse_density = densities.clone().sum::<f64>() / densities.count() as f64;
    let options = CpuOptions { sparse_density, ..CpuOptions::default() };
    let mut whole = engine(options);
    let all = train(&mut whole, 0..40);
    let paths: Vec<Path> = all.iter().map(|stats| stats.path).collect();
    assert!(paths.contains(&Path::Dense) && paths.contains(&Path::Sparse), "{paths:?}");
    for stop in [1, 3, 17, 39] {
        let mut first = engine(options);
        train(&mut first, 0..stop);
        let mut second = CpuEngine::new(spec(), &Weights::init(WIDTH, FEATURES, 1), options).unwrap();
        second.restore(first.state().unwrap()).unwrap();
        assert_eq!(second.frequencies().unwrap(), first.frequencies().unwrap());
        let rest = train(&mut second, stop..40);
        assert_eq!(rest, all[stop as usize..]);
        assert!(second.state().unwrap() == whole.state().unwrap(), "stopped after {stop} steps");
    }
}

#[test]
fn bf16_rounds_only_the_rows_and_weights_of_the_encode() {
    let rounded = |numbers: &[f32]| {
        let mut out = Vec::new();
        round_to_bf16(numbers, &mut out);
        out
    };
    for path in [Path::Sparse, Path::Dense] {
        let options = CpuOptions { bf16: true, ..only(path) };
        let got = engine(options).evaluate(&batch(0)).unwrap();
        let plain = engine(only(path)).evaluate(&batch(0)).unwrap();
        // The same activations as those of an autoencoder whose encoder is in bfloat16 on rows that are.
        let mut weights = engine(only(path)).weights().unwrap();
        weights.w_enc = rounded(&weights.w_enc);
        let mut other = CpuEngine::new(spec(), &weights, only(path)).unwrap();
        let expected = other.evaluate(&rounded(&batch(0))).unwrap();
        // Bit for bit but where AVX512_BF16 adds up the dense path's products in its own order.
        let near = |got: f64, expected: f64| (got - expected).abs() <= 1e-6 * expected;
        assert!(near(got.l1(), expected.l1()), "{} {}", got.l1(), expected.l1());
        assert!((got.l0() - expected.l0()).abs() < 0.1, "{} {}", got.l0(), expected.l0());
        assert!(!near(got.l1(), plain.l1()));
        // The error is that against the rows as they are.
        assert_ne!(got.mse_sum(), expected.mse_sum());
    }
}

#[test]
fn nan_and_infinity_in_a_batch_leave_everything_as_it_was() {
    let mut engine = engine(CpuOptions::default());
    train(&mut engine, 0..3);
    let before = engine.state().unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = batch(3);
        rows[57 * WIDTH + 4] = bad;
        let error = engine.step(&rows, &Schedule::constant(1e-3)).unwrap_err();
        assert_eq!(error, StepError::NonFiniteRow { row: 57 });
        assert_eq!(engine.evaluate(&rows).unwrap_err(), error);
    }
    // Finite rows whose squares are not: the loss is infinite.
    let huge: Vec<f32> = batch(3).iter().map(|x| x * 1e30).collect();
    let error = engine.step(&huge, &Schedule::constant(1e-3)).unwrap_err();
    assert!(matches!(error, StepError::NonFiniteLoss { step: 4, .. }), "{error}");
    assert!(engine.state().unwrap() == before);
}

#[test]
fn a_row_at_the_mean_is_named_when_its_distance_divides() {
    let mut engine = engine(CpuOptions::default());
    let before = engine.state().unwrap();
    let row = numbers(WIDTH, 3);
    let error = engine.step(&row.repeat(BATCH), &Schedule::constant(1e-3)).unwrap_err();
    assert!(matches!(error, StepError::ZeroNorm { row: 0, mse: Mse::Centered, .. }), "{error}");
    assert!(engine.state().unwrap() == before);
}

#[test]
fn wrong_sizes_are_refused_with_both_numbers() {
    let mut engine = engine(CpuOptions::default());
    let error = engine.step(&batch(0)[1..], &Schedule::constant(1e-3)).unwrap_err().to_string();
    assert!(error.contains("4549") && error.contains("4550") && error.contains("B·d"), "{error}");
    let error = engine.evaluate(&batch(0)[1..]).unwrap_err().to_string();
    assert!(error.contains("multiple of d"), "{error}");
    let mut state = engine.state().unwrap();
    state.weights.encoder.pop();
    assert!(engine.restore(state).unwrap_err().to_string().contains("encoder has 5249 numbers"));
    let other = Weights::init(WIDTH, FEATURES + 1, 7);
    assert!(CpuEngine::new(spec(), &other, CpuOptions::default()).is_err());
    let zero = StepSpec { features: 0, ..spec() };
    assert!(CpuEngine::new(zero, &other, CpuOptions::default()).is_err());
}

#[test]
fn a_step_that_overflows_the_weights_says_that_they_are_lost() {
    let mut engine = engine(CpuOptions::default());
    let error = engine.step(&batch(0), &Schedule::constant(1e38)).unwrap_err();
    assert_eq!(error, StepError::Diverged { step: 1 });
}

#[test]
fn evaluation_reports_the_metrics_of_plain_encode_and_decode() {
    let mut trained = engine(CpuOptions::default());
    train(&mut trained, 0..5);
    let weights = trained.weights().unwrap();
    let before = trained.state().unwrap();
    let mut merged = Sums::new(WIDTH, FEATURES);
    let rows = 77;
    let (mut error, mut total, mut active, mut l1, mut cosine) = (0.0, 0.0, 0u64, 0.0, 0.0);
    for part in 0..3 {
        let x = numbers(rows * WIDTH, 500 + part);
        merged.merge(&trained.evaluate(&x).unwrap());
        for row in x.chunks_exact(WIDTH) {
            let mut reconstruction: Vec<f64> = weights.b_dec.iter().map(|b| f64::from(*b)).collect();
            for j in 0..FEATURES {
                let z = (0..WIDTH)
                    .map(|k| {
                        f64::from(row[k] - weights.b_dec[k]) * f64::from(weights.w_enc[k * FEATURES + j])
                    })
                    .sum::<f64>()
                    + f64::from(weights.b_enc[j]);
                if z > 0.0 {
                    active += 1;
                    l1 += z;
                    for k in 0..WIDTH {
                        reconstruction[k] += z * f64::from(weights.w_dec[j * WIDTH + k]);
                    }
                }
            }
            let x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let e: Vec<f64> = reconstruction.iter().zip(&x).map(|(y, x)| y - x).collect();
            error += dot(&e, &e);
            total += dot(&x, &x);
            cosine += dot(&x, &reconstruction) / (dot(&x, &x) * dot(&reconstruction, &reconstruction)).sqrt();
        }
    }
    let count = 3.0 * rows as f64;
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs();
    assert_eq!(merged.rows, 3 * rows as u64);
    assert_eq!(merged.active, active);
    assert_eq!(merged.firings.iter().sum::<u64>(), active);
    assert!(near(merged.mse_sum(), error / count));
    assert!(near(merged.explained_variance_uncentered(), 1.0 - error / total));
    assert!(near(merged.l1(), l1 / count));
    assert!(near(merged.cosine_similarity(), cosine / count));
    assert!(trained.state().unwrap() == before, "evaluation changed the state");
    assert_eq!(trained.evaluate(&[]).unwrap(), Sums::new(WIDTH, FEATURES));
}

#[test]
fn the_loss_falls_on_batches_that_repeat() {
    let mut engine = engine(CpuOptions::default());
    let schedule = Schedule::constant(1e-3);
    let losses: Vec<f64> =
        (0..120).map(|step| engine.step(&batch(step % 2), &schedule).unwrap().mse).collect();
    assert!(losses[119] < 0.5 * losses[0], "{} {}", losses[0], losses[119]);
    assert!(engine.steps_since_fired().unwrap().contains(&0));
}

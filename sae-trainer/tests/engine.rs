//! The CPU engine against PyTorch's 50 steps ([`Golden`]), and its own promises: one result for any number of
//! threads and for either path, exact resume, and weights untouched by a bad batch.

use std::convert::Infallible;

use example_steps::{Golden, relative_difference, rows, single};
use kernels::cpu::Isa;
use kernels::cpu::rows::round_to_bf16;
use ndarray::{Array2, ArrayView2, Axis, s};
use sae::Weights;
use sae_trainer::engine::{
    Activation, Batch, CpuEngine, CpuOptions, Engine, Evaluation, Forward, Mse, Path, Schedule, StepError,
    StepReport, StepSpec,
};

/// Options that force one path.
fn only(path: Path) -> CpuOptions {
    let sparse_density = if path == Path::Sparse { 1.0 } else { -1.0 };
    CpuOptions { threads: 2, sparse_density, ..CpuOptions::default() }
}

/// How far fifty steps with products of bfloat16 parts may end from PyTorch's.
const SPLIT_BOUND: f64 = 2e-4;

#[test]
fn fifty_steps_end_at_pytorchs_weights() {
    let golden = Golden::read();
    let batches = single(golden.tensor("batches"));
    let mut worst: (f64, String) = (0.0, String::new());
    for (name, case) in &golden.cases {
        let spec = &case.spec;
        let thresholds = spec.activation.has_thresholds();
        let optional = sae::Optional { thresholds, skip: spec.skip };
        let initial = Weights::from_numbers(spec.width, spec.features, optional, |name, _| {
            Ok::<_, Infallible>(single(golden.tensor(&format!("initial/{name}"))))
        });
        let Ok(initial) = initial;
        let losses = golden.tensor(&format!("{name}/loss"));
        // Products on matrix units, where there are any, are of another class: three of bfloat16 parts for one of float32.
        for (path, split_products, bound) in
            [(Path::Sparse, false, 1e-5), (Path::Dense, false, 1e-5), (Path::Dense, true, SPLIT_BOUND)]
        {
            let options = CpuOptions { split_products, ..only(path) };
            let mut engine = CpuEngine::new(*spec, &initial, options).unwrap();
            for ((batch, now), expected) in
                batches.chunks_exact(spec.batch * spec.width).zip(case.schedule()).zip(losses)
            {
                let batch = ArrayView2::from_shape((spec.batch, spec.width), batch).unwrap();
                let report = engine.step(batch.into(), &now).unwrap();
                // The largest are found by themselves, however many others there are.
                let always_sparse =
                    matches!(spec.activation, Activation::TopK { .. } | Activation::BatchTopK { .. });
                assert_eq!(report.path, if always_sparse { Path::Sparse } else { path });
                let loss = report.terms.loss();
                let off = (loss - expected).abs() / expected.abs();
                assert!(off < bound, "{name} {path:?} step {}: {loss} {expected}", report.step);
            }
            // Thresholds that are not trained are no part of what PyTorch has.
            let trained = |key: &str| thresholds || key != "threshold";
            let weights = engine.weights().unwrap();
            for (key, got) in weights.tensors().into_iter().filter(|(key, _)| trained(key)) {
                let expected = golden.tensor(&format!("{name}/weights/{key}"));
                let off = relative_difference(got.to_slice().unwrap(), expected);
                assert!(off < bound, "{name} {path:?} {key}: {off:e}");
                if !split_products && off > worst.0 {
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

fn batch(step: u64) -> Array2<f32> {
    example_steps::batch(&spec(), step)
}

/// Trains and returns what was reported.
fn train(engine: &mut CpuEngine, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let schedule = Schedule::constant(1e-3);
    steps.map(|step| engine.step(batch(step).view().into(), &schedule).unwrap()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bits_on_both_paths() {
    for path in [Path::Sparse, Path::Dense] {
        let run = |threads| {
            let mut engine = engine(CpuOptions { threads, ..only(path) });
            assert_eq!(engine.threads(), threads);
            let stats = train(&mut engine, 0..6);
            (stats, engine.state().unwrap(), engine.evaluate(batch(99).view().into()).unwrap())
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
                let (loss, expected) = (a.terms.loss(), b.terms.loss());
                assert!((loss - expected).abs() < 1e-5 * expected, "{} {path:?}", isa.name());
                assert!((a.sums.l0() - b.sums.l0()).abs() < 0.02, "{} {path:?}", isa.name());
            }
        }
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    // A limit between the densities of two steps, so that both paths occur.
    let densities =
        train(&mut engine(CpuOptions::default()), 0..40).into_iter().map(|report| report.sums.density());
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
    let rounded = |matrix: Array2<f32>| {
        let mut out = Vec::new();
        round_to_bf16(matrix.as_slice().unwrap(), &mut out);
        Array2::from_shape_vec(matrix.dim(), out).unwrap()
    };
    for path in [Path::Sparse, Path::Dense] {
        let options = CpuOptions { bf16: true, ..only(path) };
        let got = engine(options).evaluate(batch(0).view().into()).unwrap().sums;
        let plain = engine(only(path)).evaluate(batch(0).view().into()).unwrap().sums;
        // The same activations as those of an autoencoder whose encoder is in bfloat16 on rows that are.
        let mut weights = engine(only(path)).weights().unwrap();
        weights.w_enc = rounded(weights.w_enc);
        let mut other = CpuEngine::new(spec(), &weights, only(path)).unwrap();
        let expected = other.evaluate(rounded(batch(0)).view().into()).unwrap().sums;
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
        rows[[57, 4]] = bad;
        let error = engine.step(rows.view().into(), &Schedule::constant(1e-3)).unwrap_err();
        assert_eq!(error, StepError::NonFiniteRow { row: 57 });
        assert_eq!(engine.evaluate(rows.view().into()).unwrap_err(), error);
    }
    // Finite rows whose squares are not: the loss is infinite.
    let huge = batch(3) * 1e30;
    let error = engine.step(huge.view().into(), &Schedule::constant(1e-3)).unwrap_err();
    assert!(matches!(error, StepError::NonFiniteLoss { step: 4, .. }), "{error}");
    assert!(engine.state().unwrap() == before);
}

#[test]
fn a_row_at_the_mean_is_named_when_its_distance_divides() {
    let mut engine = engine(CpuOptions::default());
    let before = engine.state().unwrap();
    let row = rows(1, WIDTH, 3);
    let repeated = row.broadcast((BATCH, WIDTH)).unwrap().to_owned();
    let error = engine.step(repeated.view().into(), &Schedule::constant(1e-3)).unwrap_err();
    assert!(matches!(error, StepError::ZeroNorm { row: 0, mse: Mse::Centered, .. }), "{error}");
    assert!(engine.state().unwrap() == before);
}

#[test]
fn wrong_sizes_are_refused_with_both_numbers() {
    let mut engine = engine(CpuOptions::default());
    let (rows, narrow) = (rows(BATCH - 1, WIDTH, 0), rows(BATCH, WIDTH - 1, 0));
    let error = engine.step(rows.view().into(), &Schedule::constant(1e-3)).unwrap_err().to_string();
    assert_eq!(error, "the batch is [129, 35], but [130, 35] was expected");
    let error = engine.evaluate(narrow.view().into()).unwrap_err().to_string();
    assert_eq!(error, "the batch is [130, 34], but [130, 35] was expected");
    // The right shape, but the columns' numbers lie one after another.
    let sideways = batch(0).reversed_axes().as_standard_layout().into_owned().reversed_axes();
    assert!(engine.step(sideways.view().into(), &Schedule::constant(1e-3)).is_err());
    let mut state = engine.state().unwrap();
    state.weights.encoder = state.weights.encoder.slice(s![1.., ..]).to_owned();
    let error = engine.restore(state).unwrap_err().to_string();
    assert_eq!(error, "encoder is [149, 35], but [150, 35] was expected");
    let other = Weights::init(WIDTH, FEATURES + 1, 7);
    assert!(CpuEngine::new(spec(), &other, CpuOptions::default()).is_err());
    let zero = StepSpec { features: 0, ..spec() };
    assert!(CpuEngine::new(zero, &other, CpuOptions::default()).is_err());
}

#[test]
fn a_step_that_overflows_the_weights_says_that_they_are_lost() {
    let mut engine = engine(CpuOptions::default());
    let error = engine.step(batch(0).view().into(), &Schedule::constant(1e38)).unwrap_err();
    assert_eq!(error, StepError::Diverged { step: 1 });
}

#[test]
fn evaluation_reports_the_metrics_of_plain_encode_and_decode() {
    let mut trained = engine(CpuOptions::default());
    train(&mut trained, 0..5);
    let weights = trained.weights().unwrap();
    let before = trained.state().unwrap();
    let mut merged = Evaluation::new(WIDTH, FEATURES);
    let count = 77;
    let (mut error, mut total, mut active, mut l1, mut cosine) = (0.0, 0.0, 0u64, 0.0, 0.0);
    for part in 0..3 {
        let x = rows(count, WIDTH, 500 + part);
        merged.merge(&trained.evaluate(x.view().into()).unwrap());
        for row in x.rows() {
            let mut reconstruction: Vec<f64> = weights.b_dec.iter().map(|b| f64::from(*b)).collect();
            for j in 0..FEATURES {
                let z = (0..WIDTH)
                    .map(|k| f64::from(row[k] - weights.b_dec[k]) * f64::from(weights.w_enc[[k, j]]))
                    .sum::<f64>()
                    + f64::from(weights.b_enc[j]);
                if z > 0.0 {
                    active += 1;
                    l1 += z;
                    for k in 0..WIDTH {
                        reconstruction[k] += z * f64::from(weights.w_dec[[j, k]]);
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
    let firings = merged.firings;
    let (merged, rows) = (merged.sums, 3 * count as u64);
    let count = rows as f64;
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs();
    assert_eq!(merged.rows, rows);
    assert_eq!(merged.active, active);
    assert_eq!(firings.iter().sum::<u64>(), active);
    assert!(near(merged.mse_sum(), error / count));
    assert!(near(merged.explained_variance_uncentered(), 1.0 - error / total));
    assert!(near(merged.l1(), l1 / count));
    assert!(near(merged.cosine_similarity(), cosine / count));
    assert!(trained.state().unwrap() == before, "evaluation changed the state");
    let none = Array2::zeros((0, WIDTH));
    assert_eq!(trained.evaluate(none.view().into()).unwrap(), Evaluation::new(WIDTH, FEATURES));
}

#[test]
fn the_loss_falls_on_batches_that_repeat() {
    let mut engine = engine(CpuOptions::default());
    let schedule = Schedule::constant(1e-3);
    let losses: Vec<f64> = (0..120)
        .map(|step| engine.step(batch(step % 2).view().into(), &schedule).unwrap().terms.mse)
        .collect();
    assert!(losses[119] < 0.5 * losses[0], "{} {}", losses[0], losses[119]);
    assert!(engine.steps_since_fired().unwrap().iter().any(|steps| *steps == 0));
}

#[test]
fn the_forward_face_encodes_and_reconstructs_as_the_definition_does() {
    for path in [Path::Sparse, Path::Dense] {
        let mut engine = engine(only(path));
        train(&mut engine, 0..5);
        let weights = engine.weights().unwrap();
        let config = sae::Config::standard(WIDTH, FEATURES, true, sae::Metadata::default());
        let definition = sae::Sae { weights, config, log_sparsity: None };
        let rows = rows(77, WIDTH, 500);
        let expected = definition.encode(rows.view());
        let found = engine.encode(rows.view()).unwrap();
        assert_eq!(found.rows(), 77);
        for (row, expected) in expected.rows().into_iter().enumerate() {
            let mut got = vec![0.0; FEATURES];
            let (features, values) = found.of_row(row);
            assert!(features.is_sorted() && values.iter().all(|value| *value > 0.0));
            features.iter().zip(values).for_each(|(feature, value)| got[*feature as usize] = *value);
            let near = |(got, expected): (&f32, &f32)| (got - expected).abs() < 1e-4;
            assert!(got.iter().zip(expected).all(near), "{path:?} row {row}");
        }
        let reconstruction = engine.reconstruct(rows.view()).unwrap();
        let off = &reconstruction - &definition.decode(expected.view());
        assert!(off.iter().all(|off| off.abs() < 1e-4), "{path:?}");
        // The errors of rows are those of what is reconstructed, also where the target is another batch.
        let target = example_steps::rows(77, WIDTH, 900);
        for target in [&rows, &target] {
            let batch = Batch { input: rows.view(), target: target.view() };
            let errors = engine.squared_errors(batch).unwrap();
            let expected = (&reconstruction - target).mapv(|off| off * off).sum_axis(Axis(1));
            assert!(errors.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{path:?}");
        }
        assert_eq!(engine.encode(rows.slice(s![..0, ..])).unwrap().rows(), 0);
        assert_eq!(engine.reconstruct(rows.slice(s![..0, ..])).unwrap().dim(), (0, WIDTH));
    }
}

#[test]
fn topk_keeps_k_features_of_a_row_whichever_way_they_are_found() {
    let topk = StepSpec { activation: Activation::TopK { k: 7 }, ..spec() };
    let run = |options: CpuOptions| {
        let mut engine = CpuEngine::new(topk, &Weights::init(WIDTH, FEATURES, 7), options).unwrap();
        let reports = train(&mut engine, 0..12);
        let found = engine.encode(batch(99).view()).unwrap();
        (reports, found, engine.state().unwrap())
    };
    // Found by a dense product, and by screening.
    let (dense, dense_found, state) = run(only(Path::Dense));
    for threads in [1, 3] {
        assert!(run(CpuOptions { threads, ..only(Path::Dense) }).2 == state, "{threads} threads");
    }
    let (sparse, sparse_found, _) = run(only(Path::Sparse));
    for report in dense.iter().chain(&sparse) {
        assert_eq!(report.path, Path::Sparse, "what is kept is sparse, however it was found");
        assert!(report.sums.l0() > 6.0 && report.sums.l0() <= 7.0, "{}", report.sums.l0());
    }
    for (dense, sparse) in dense.iter().zip(&sparse) {
        assert!((dense.terms.mse - sparse.terms.mse).abs() < 1e-4 * dense.terms.mse);
    }
    for row in 0..BATCH {
        let ((dense, _), (sparse, _)) = (dense_found.of_row(row), sparse_found.of_row(row));
        assert!(dense.len() <= 7 && sparse.len() <= 7);
        let shared = dense.iter().filter(|feature| sparse.contains(feature)).count();
        assert!(shared + 1 >= dense.len(), "row {row}: {dense:?} {sparse:?}");
    }
}

#[test]
fn a_transcoder_learns_rows_that_it_does_not_read() {
    // The target is a rotation of the input: column k of the one is column k + 1 of the other.
    let turned = |rows: &Array2<f32>| Array2::from_shape_fn(rows.dim(), |(i, k)| rows[[i, (k + 1) % WIDTH]]);
    let spec = StepSpec { pre_bias: false, ..spec() };
    let mut engine = CpuEngine::new(spec, &Weights::init(WIDTH, FEATURES, 7), CpuOptions::default()).unwrap();
    let losses: Vec<f64> = (0..150)
        .map(|step| {
            let (input, schedule) = (batch(step % 2), Schedule::constant(3e-3));
            let target = turned(&input);
            let batch = Batch { input: input.view(), target: target.view() };
            engine.step(batch, &schedule).unwrap().terms.mse
        })
        .collect();
    assert!(losses[149] < 0.5 * losses[0], "{} {}", losses[0], losses[149]);
    let (input, mut bad) = (batch(0), batch(1));
    bad[[9, 0]] = f32::NAN;
    let batch = Batch { input: input.view(), target: bad.view() };
    assert_eq!(engine.evaluate(batch).unwrap_err(), StepError::NonFiniteRow { row: 9 });
}

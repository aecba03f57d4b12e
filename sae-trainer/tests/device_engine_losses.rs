//! The engine that drives a GPU, on an emulated one, follows the CPU engine step by step in every configuration of losses and
//! norms, on both paths.

use emulation::EmulatedDevice;
use example_steps::{PENALTIES, rows};
use ndarray::Array2;
use sae::Weights;
use sae_trainer::engine::{
    Activation, Adam, CpuEngine, CpuOptions, DecoderNorm, DeviceEngine, DeviceOptions, Engine,
    FrequencyPenalty, LossSpec, Mse, Parameters, Path, Precision, Schedule, State, StepSpec,
};

const WIDTH: usize = 21;
const FEATURES: usize = 75;
const BATCH: usize = 70;
const STEPS: u64 = 4;

fn batch(step: u64) -> Array2<f32> {
    rows(BATCH, WIDTH, step + 1)
}

/// Every penalty, alone and weighted by the decoder's norm, with every decoder norm; every MSE, the pre-bias and
/// every combination of frequency terms in turns.
fn configurations() -> Vec<StepSpec> {
    let frequency = |target| Some(FrequencyPenalty { coefficient: 1e-3, target });
    let mut all = Vec::new();
    for penalty in PENALTIES {
        for weight_by_decoder_norm in [false, true] {
            for decoder_norm in [DecoderNorm::Unit, DecoderNorm::Tied, DecoderNorm::Free] {
                let number = all.len();
                all.push(StepSpec {
                    width: WIDTH,
                    features: FEATURES,
                    batch: BATCH,
                    skip: false,
                    pre_bias: number % 2 == 1,
                    activation: Activation::Relu,
                    loss: LossSpec {
                        mse: [Mse::Sum, Mse::Centered, Mse::Uncentered, Mse::Centered][number % 4],
                        penalty,
                        coefficient: 1e-2,
                        min_sparsity: frequency(0.45).filter(|_| number % 3 != 0),
                        max_sparsity: frequency(0.55).filter(|_| number % 5 < 2),
                        mean_density: 0.0,
                        log_density: 0.0,
                        frequency_epsilon: 0.25,
                        weight_by_decoder_norm,
                    },
                    decoder_norm,
                    adam: Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 },
                    sparsity_window: 3,
                    prefixes: Default::default(),
                    dead: None,
                    rank_by_decoder_norm: false,
                    gradient_clip: None,
                    panels: 1,
                });
            }
        }
    }
    all
}

/// The largest ‖got − expected‖ / ‖expected‖ of the tensors, with its name.
fn difference(got: &Parameters, expected: &Parameters) -> (f64, &'static str) {
    let norm =
        |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let arrays = got.tensors().into_iter().zip(expected.tensors());
    let differences = arrays.map(|((name, got), (_, expected))| {
        assert_eq!(got.len(), expected.len());
        let off = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
        let scale = norm(&mut expected.iter().copied());
        (if scale > 0.0 { off / scale } else { off }, name)
    });
    differences.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn it_follows_the_cpu_engine_in_every_configuration() {
    let weights = Weights::init(WIDTH, FEATURES, 7);
    let mut worst = (0.0, String::new());
    for spec in configurations() {
        for path in [Path::Sparse, Path::Dense] {
            let sparse_density = if path == Path::Sparse { 1.0 } else { -1.0 };
            let cpu_options =
                CpuOptions { threads: 1, sparse_density, split_products: false, ..CpuOptions::default() };
            let mut cpu = CpuEngine::new(spec, &weights, cpu_options).unwrap();
            let precision = if path == Path::Sparse { Precision::Exact } else { Precision::Fp32 };
            let options = DeviceOptions { precision, sparse_density };
            let mut device = DeviceEngine::new(EmulatedDevice::new(), spec, &weights, options).unwrap();
            for step in 0..STEPS {
                let schedule = Schedule {
                    lr: 1e-3,
                    coefficient_scale: 0.5 + 0.1 * step as f64,
                    epsilon_scale: 1.0 - 0.1 * step as f64,
                };
                // Each step from the CPU's state: what differs is this step's arithmetic, not a history.
                device.restore(cpu.state().unwrap()).unwrap();
                let expected = cpu.step(batch(step).view().into(), &schedule).unwrap();
                let got = device.step(batch(step).view().into(), &schedule).unwrap();
                let case = || format!("{path:?} step {step} of {spec:?}");
                assert_eq!((got.path, expected.path), (path, path));
                let (terms, expected_terms) = (got.terms, expected.terms);
                let (got, expected) = (got.sums, expected.sums);
                for (name, got, expected) in [
                    ("loss", terms.loss(), expected_terms.loss()),
                    ("mse", terms.mse, expected_terms.mse),
                    ("penalty", terms.penalty, expected_terms.penalty),
                    ("min_sparsity", terms.min_sparsity, expected_terms.min_sparsity),
                    ("max_sparsity", terms.max_sparsity, expected_terms.max_sparsity),
                    ("l0", got.l0(), expected.l0()),
                    ("l0_std", got.l0_std(), expected.l0_std()),
                    ("l1", got.l1(), expected.l1()),
                    ("mse_sum", got.mse_sum(), expected.mse_sum()),
                    ("mse_centered", got.mse_centered(), expected.mse_centered()),
                    ("mse_uncentered", got.mse_uncentered(), expected.mse_uncentered()),
                    ("explained_variance", got.explained_variance(), expected.explained_variance()),
                    ("cosine_similarity", got.cosine_similarity(), expected.cosine_similarity()),
                    ("l2_ratio", got.l2_ratio(), expected.l2_ratio()),
                    ("density", got.density(), expected.density()),
                    ("below_target", terms.below_target as f64, expected_terms.below_target as f64),
                ] {
                    let off = (got - expected).abs();
                    assert!(off <= 1e-5 * expected.abs(), "{name} of {}: {got} {expected}", case());
                }
                let State { step, weights, first_moments, second_moments, window, steps_since_fired, .. } =
                    device.state().unwrap();
                let state = cpu.state().unwrap();
                assert_eq!(step, state.step);
                assert!(window == state.window, "window, {}", case());
                assert!(steps_since_fired == state.steps_since_fired, "steps since fired, {}", case());
                for (name, got, expected) in [
                    ("weights", weights, state.weights),
                    ("first moments", first_moments, state.first_moments),
                    ("second moments", second_moments, state.second_moments),
                ] {
                    let (off, array) = difference(&got, &expected);
                    assert!(off <= 1e-5, "{name} of {array}, {}: {off:e}", case());
                    if off > worst.0 {
                        worst = (off, format!("{name} of {array}, {}", case()));
                    }
                }
            }
        }
    }
    println!("largest relative difference {:.1e} ({})", worst.0, worst.1);
}

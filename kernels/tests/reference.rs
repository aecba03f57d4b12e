//! The float64 definition's gradients against central differences of the functions that they are the gradients of.

use example_steps::{PENALTIES, numbers_f64};
use kernels::activation::Activation;
use kernels::loss::{FrequencyPenalty, LossSpec, Mse};
use kernels::prefixes::Prefixes;
use kernels::reference::{Batch, Parameters, forward, frequency_slopes, gradients, surrogate_loss};
use kernels::spec::{Adam, DecoderNorm, Schedule, StepSpec};

const WIDTH: usize = 5;
const FEATURES: usize = 9;
const BATCH: usize = 8;

/// Weights under which feature 0 is dead, feature 1 dense, and the others on and off.
fn weights() -> Parameters {
    let mut b_enc: Vec<f64> = numbers_f64(FEATURES, 1).iter().map(|b| b * 0.2).collect();
    (b_enc[0], b_enc[1]) = (-20.0, 20.0);
    Parameters {
        w_enc: numbers_f64(WIDTH * FEATURES, 2),
        b_enc,
        w_dec: numbers_f64(FEATURES * WIDTH, 3),
        b_dec: numbers_f64(WIDTH, 4),
        threshold: Vec::new(),
        skip: Vec::new(),
    }
}

fn spec(loss: LossSpec, pre_bias: bool) -> StepSpec {
    StepSpec {
        width: WIDTH,
        features: FEATURES,
        batch: BATCH,
        pre_bias,
        skip: false,
        activation: Activation::Relu,
        loss,
        decoder_norm: DecoderNorm::Free,
        adam: Adam::default(),
        sparsity_window: 1,
        prefixes: Default::default(),
        dead: None,
        rank_by_decoder_norm: false,
        gradient_clip: None,
        panels: 1,
    }
}

fn configurations() -> Vec<StepSpec> {
    let frequency = |target| Some(FrequencyPenalty { coefficient: 0.05, target });
    let mut all = Vec::new();
    for mse in [Mse::Sum, Mse::Centered, Mse::Uncentered] {
        for penalty in PENALTIES {
            for variant in 0..4 {
                let loss = LossSpec {
                    mse,
                    penalty,
                    coefficient: 0.3,
                    min_sparsity: frequency(0.4).filter(|_| variant % 2 == 1),
                    max_sparsity: frequency(0.6).filter(|_| variant % 2 == 1),
                    mean_density: 0.0,
                    log_density: 0.0,
                    frequency_epsilon: 0.25,
                    weight_by_decoder_norm: variant >= 2,
                };
                let plain = spec(loss, variant == 1 || variant == 2);
                all.push(plain);
                let prefixes = Prefixes::new(&[3], 0.5).unwrap();
                all.push(StepSpec { skip: true, prefixes, ..plain });
            }
        }
    }
    all
}

#[test]
fn gradients_equal_central_differences_in_every_configuration() {
    let plain = weights();
    let (x, y) = (numbers_f64(BATCH * WIDTH, 5), numbers_f64(BATCH * WIDTH, 6));
    let schedule = Schedule { lr: 0.0, coefficient_scale: 0.8, epsilon_scale: 0.9 };
    for spec in configurations() {
        // A skip connection and a target of its own go together.
        let skip = if spec.skip { numbers_f64(WIDTH * WIDTH, 7) } else { Vec::new() };
        let weights = Parameters { skip, ..plain.clone() };
        let batch = Batch { input: &x, target: if spec.skip { &y } else { &x } };
        let pass = forward(&spec, &weights, &x);
        let fired = |j: usize| (0..BATCH).filter(|i| pass.activations[i * FEATURES + j] > 0.0).count();
        let frequencies: Vec<f64> = (0..FEATURES).map(|j| fired(j) as f64 / BATCH as f64).collect();
        assert_eq!((frequencies[0], frequencies[1]), (0.0, 1.0));
        assert!(frequencies[2..].iter().filter(|s| **s > 0.0 && **s < 1.0).count() >= 5);
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        let gradient = gradients(&spec, &schedule, &weights, batch, &pass, &slopes);
        for tensor in 0..6 {
            for at in 0..gradient.tensors()[tensor].len() {
                let moved = |by: f64| {
                    let mut moved = weights.clone();
                    moved.tensors_mut()[tensor][at] += by;
                    surrogate_loss(&spec, &schedule, &moved, batch, &slopes)
                };
                let step = 1e-6;
                let difference = (moved(step) - moved(-step)) / (2.0 * step);
                let got = gradient.tensors()[tensor][at];
                // What the two losses lose to rounding, and the rest.
                let rounding = f64::EPSILON * moved(0.0) / step;
                assert!(
                    (got - difference).abs() < rounding + 1e-7 * (1.0 + difference.abs()),
                    "{spec:?} tensor {tensor} at {at}: {got} {difference}"
                );
            }
        }
    }
}

#[test]
fn a_dead_feature_gets_no_gradient_and_a_dense_one_its_frequency() {
    let weights = weights();
    let x = numbers_f64(BATCH * WIDTH, 5);
    let mut spec = spec(LossSpec::reconstruction(Mse::Sum), false);
    let plain = |spec: &StepSpec| {
        let pass = forward(spec, &weights, &x);
        let mut frequencies = vec![0.5; FEATURES];
        (frequencies[0], frequencies[1]) = (0.0, 1.0);
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        gradients(spec, &Schedule::constant(0.0), &weights, x[..].into(), &pass, &slopes)
    };
    let without = plain(&spec);
    let frequency = |target| Some(FrequencyPenalty { coefficient: 0.1, target });
    (spec.loss.min_sparsity, spec.loss.max_sparsity) = (frequency(0.1), frequency(0.9));
    let with = plain(&spec);
    assert_eq!(with.b_enc[0], 0.0);
    assert!(with.b_enc[1] > without.b_enc[1], "too dense a feature must be pushed down");
    assert_eq!(with.b_enc[2..], without.b_enc[2..]);
}

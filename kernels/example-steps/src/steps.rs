//! A spec, weights and batches.

use kernels::activation::Activation;
use kernels::loss::{FrequencyPenalty, LossSpec, Mse, Penalty};
use kernels::parameters::Parameters;
use kernels::spec::{Adam, DecoderNorm, StepSpec};
use kernels::state::NewFeature;

use ndarray::Array2;

use crate::numbers::{numbers, rows};

/// Every penalty, its parameter at a value where the activations of [`weights`] feel its curvature.
pub const PENALTIES: [Penalty; 5] = [
    Penalty::None,
    Penalty::ApproxL0 { epsilon: 0.2 },
    Penalty::L1,
    Penalty::Tanh { scale: 0.7 },
    Penalty::Log { epsilon: 0.3 },
];

/// A spec of this size that uses everything at once: a penalty weighted by the decoder's norm, both frequency terms, the
/// pre-bias, a tied norm.
pub fn spec(width: usize, features: usize, batch: usize) -> StepSpec {
    let frequency = |target| Some(FrequencyPenalty { coefficient: 1e-3, target });
    StepSpec {
        width,
        features,
        batch,
        pre_bias: true,
        skip: false,
        activation: Activation::Relu,
        loss: LossSpec {
            mse: Mse::Centered,
            penalty: Penalty::ApproxL0 { epsilon: 0.2 },
            coefficient: 1e-3,
            min_sparsity: frequency(0.1),
            max_sparsity: frequency(0.6),
            mean_density: 0.0,
            log_density: 0.0,
            frequency_epsilon: 0.2,
            weight_by_decoder_norm: true,
        },
        decoder_norm: DecoderNorm::Tied,
        adam: Adam::default(),
        sparsity_window: 4,
        prefixes: Default::default(),
        dead: None,
        rank_by_decoder_norm: false,
        gradient_clip: None,
        panels: 1,
    }
}

/// Weights whose features are active in few rows (`shift` above 0) or many.
pub fn weights(spec: &StepSpec, shift: f32) -> Parameters {
    let (d, f) = (spec.width, spec.features);
    Parameters {
        encoder: rows(f, d, 11),
        encoder_bias: numbers(f, 12).iter().map(|b| b - shift).collect(),
        decoder: rows(f, d, 13).mapv(|w| w / (d as f32).sqrt()),
        decoder_bias: numbers(d, 14).iter().map(|b| 0.1 * b).collect(),
        threshold: spec
            .activation
            .has_thresholds()
            .then(|| numbers(f, 16).iter().map(|t| 0.5 * t.abs()).collect()),
        skip: spec.skip.then(|| rows(d, d, 15).mapv(|w| 0.3 * w)),
    }
}

/// The batch of step `step`, [B,d].
pub fn batch(spec: &StepSpec, step: u64) -> Array2<f32> {
    rows(spec.batch, spec.width, 100 + step)
}

/// These features with weights of this width to start anew with, and θ = 0.25.
pub fn new_features(width: usize, features: &[usize]) -> Vec<NewFeature> {
    let row = |feature: usize, of: usize| (0..width).map(|k| ((feature + of * k) as f32).sin()).collect();
    let new = |&feature| NewFeature {
        feature,
        encoder: row(feature, 3),
        decoder: row(feature, 5),
        threshold: 0.25,
    };
    features.iter().map(new).collect()
}

//! All terms of the loss together.

use super::forward::{Forward, forward, mean_active};
use super::frequency::{density_penalties, frequency_penalties};
use super::mse::mse;
use super::parameters::{Batch, Parameters};
use super::penalty::{logged_penalty, logged_penalty_of_mean, penalty, penalty_weights, scheduled};
use crate::spec::{Schedule, StepSpec};

/// The terms of a loss, each with its coefficient, and their sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The reconstruction term.
    pub mse: f64,
    /// The sparsity penalty (for `approx-l0` with the true L0).
    pub penalty: f64,
    /// The min-sparsity term.
    pub min_sparsity: f64,
    /// The max-sparsity term.
    pub max_sparsity: f64,
    /// The terms of the mean density and of the mean logarithmic density.
    pub density: f64,
    /// The term for dead features.
    pub dead: f64,
}

impl Loss {
    /// The sum of all terms.
    pub fn total(&self) -> f64 {
        self.mse + self.penalty + self.min_sparsity + self.max_sparsity + self.density + self.dead
    }
}

/// The reconstruction term for `target` [B,d]: that of x̂, or those of all prefixes together.
pub fn reconstruction_loss(spec: &StepSpec, target: &[f64], forward: &Forward) -> f64 {
    let terms = forward.prefixes.iter().map(|xhat| mse(spec.loss.mse, spec.width, target, xhat));
    spec.prefixes.weight() * terms.sum::<f64>()
}

/// The loss for `target` [B,d] as it is logged, but for dead features. `frequencies` [F] are the running frequencies, this batch included.
pub fn loss(
    spec: &StepSpec,
    schedule: &Schedule,
    weights: &Parameters,
    target: &[f64],
    forward: &Forward,
    frequencies: &[f64],
) -> Loss {
    let rows = (target.len() / spec.width) as f64;
    let (kind, coefficient, _) = scheduled(spec, schedule);
    let factors = penalty_weights(spec, weights);
    let sum: f64 = forward
        .activations
        .chunks_exact(spec.features)
        .map(|a| logged_penalty(kind, a.iter().zip(&factors).map(|(a, factor)| a * factor)))
        .sum();
    let of_mean = logged_penalty_of_mean(kind, mean_active(spec, forward));
    let (min_sparsity, max_sparsity) = frequency_penalties(&spec.loss, frequencies);
    Loss {
        mse: reconstruction_loss(spec, target, forward),
        penalty: coefficient * (sum / rows + of_mean),
        min_sparsity,
        max_sparsity,
        density: density_penalties(&spec.loss, frequencies),
        dead: 0.0,
    }
}

/// The scalar function of the weights whose gradient trains them: the reconstruction term, the
/// smooth penalty, and `slopes`_j · s̃_j in place of the frequency penalties. `slopes` [F] come from
/// [`frequency_slopes`](super::frequency_slopes) and count as constants.
pub fn surrogate_loss(
    spec: &StepSpec,
    schedule: &Schedule,
    weights: &Parameters,
    batch: Batch<'_>,
    slopes: &[f64],
) -> f64 {
    let rows = (batch.input.len() / spec.width) as f64;
    let (kind, coefficient, epsilon) = scheduled(spec, schedule);
    let factors = penalty_weights(spec, weights);
    let pass = forward(spec, weights, batch.input);
    let penalties: f64 = pass
        .activations
        .iter()
        .enumerate()
        .map(|(at, a)| {
            let j = at % spec.features;
            coefficient * penalty(kind, a * factors[j]) + slopes[j] * a / (a + epsilon)
        })
        .sum();
    reconstruction_loss(spec, batch.target, &pass) + penalties / rows
}

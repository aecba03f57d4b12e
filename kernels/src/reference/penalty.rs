//! The penalty of activations, and of how many there are.

use super::parameters::Parameters;
use super::vectors::norm;
use crate::loss::Penalty;
use crate::spec::{Schedule, StepSpec};

/// p(a), the function whose derivative trains: for `approx-l0` a/(a+ε), not the count. 0 at a ≤ 0.
pub fn penalty(kind: Penalty, a: f64) -> f64 {
    if a <= 0.0 {
        return 0.0;
    }
    match kind {
        Penalty::None => 0.0,
        Penalty::ApproxL0 { epsilon } => a / (a + f64::from(epsilon)),
        Penalty::L1 => a,
        Penalty::Tanh { scale } => (f64::from(scale) * a).tanh(),
        Penalty::Log { epsilon } => (a / f64::from(epsilon)).ln_1p(),
        Penalty::Step => 1.0,
        Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => 0.0,
    }
}

/// The value that is logged for a row: Σ_j p(a), except that `approx-l0` counts a > 0. 0 where it is one of the batch.
pub fn logged_penalty(kind: Penalty, a: impl Iterator<Item = f64>) -> f64 {
    match kind {
        Penalty::ApproxL0 { .. } | Penalty::Step => a.filter(|a| *a > 0.0).count() as f64,
        Penalty::MeanQuadratic { .. } => 0.0,
        Penalty::Quadratic { target } => {
            let count = a.filter(|a| *a > 0.0).count() as f64;
            2.0 / f64::from(target) * (count - f64::from(target)).powi(2)
        }
        other => a.map(|a| penalty(other, a)).sum(),
    }
}

/// The value that is logged for a batch beside those of its rows; `mean` is L̄0.
pub fn logged_penalty_of_mean(kind: Penalty, mean: f64) -> f64 {
    match kind {
        Penalty::MeanQuadratic { target } => (mean / f64::from(target) - 1.0).powi(2),
        _ => 0.0,
    }
}

/// The derivative of the sum over the rows by how many features are active in a row; `mean` is L̄0.
pub fn penalty_by_count(kind: Penalty, active: usize, mean: f64) -> f64 {
    match kind {
        Penalty::Step => 1.0,
        Penalty::Quadratic { target } => 4.0 / f64::from(target) * (active as f64 - f64::from(target)),
        Penalty::MeanQuadratic { target } => 2.0 / f64::from(target) * (mean / f64::from(target) - 1.0),
        _ => 0.0,
    }
}

/// p'(a) for a ≥ 0, at 0 that from the right.
pub fn penalty_derivative(kind: Penalty, a: f64) -> f64 {
    match kind {
        Penalty::None | Penalty::Step | Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => 0.0,
        Penalty::ApproxL0 { epsilon } => f64::from(epsilon) / (a + f64::from(epsilon)).powi(2),
        Penalty::L1 => 1.0,
        Penalty::Tanh { scale } => {
            let k = f64::from(scale);
            k * (1.0 - (k * a).tanh().powi(2))
        }
        Penalty::Log { epsilon } => 1.0 / (a + f64::from(epsilon)),
    }
}

/// ε of the surrogate s̃ and the penalty, under a schedule.
pub(super) fn scheduled(spec: &StepSpec, schedule: &Schedule) -> (Penalty, f64, f64) {
    let scale = schedule.epsilon_scale as f32;
    let penalty = spec.loss.penalty.with_epsilon_scaled(scale);
    let epsilon = f64::from(spec.loss.frequency_epsilon * scale);
    (penalty, spec.loss.coefficient * schedule.coefficient_scale, epsilon)
}

/// The argument of the penalty: a_ij, or a_ij ‖W_dec_j‖. Returns the factors ‖W_dec_j‖ or 1, [F].
pub(super) fn penalty_weights(spec: &StepSpec, weights: &Parameters) -> Vec<f64> {
    (0..spec.features)
        .map(
            |j| if spec.loss.weight_by_decoder_norm { norm(weights.decoder_row(j, spec.width)) } else { 1.0 },
        )
        .collect()
}

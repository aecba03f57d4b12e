//! `sparsity`: the penalties' values and derivatives at the active pairs, in float32.
//!
//! There is one function for each penalty and its derivative. The formulas are those of [`mod@crate::reference`].

use crate::loss::{LossSpec, Penalty};
use crate::outcome::Terms;
use crate::spec::Schedule;
use crate::stats::FREQUENCY_FLOOR;

use super::frequency::FrequencyWindow;
use super::isa::{Isa, per_isa};

/// The sparsity part of a loss at one step, its coefficients already divided by the batch size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparsity {
    penalty: Penalty,
    /// coefficient · scale / B.
    coefficient: f32,
    frequency_epsilon: f32,
    /// Whether the penalty sees activations times ‖W_dec_j‖.
    weighted: bool,
}

/// p(a) as it is logged, a > 0.
fn logged(penalty: Penalty, a: f32) -> f32 {
    match penalty {
        Penalty::None => 0.0,
        Penalty::ApproxL0 { .. } => 1.0,
        Penalty::L1 => a,
        Penalty::Tanh { scale } => (scale * a).tanh(),
        Penalty::Log { epsilon } => (a / epsilon).ln_1p(),
        Penalty::Step => 1.0,
        Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => {
            unreachable!("they are functions of how many are active, not of an activation")
        }
    }
}

/// p'(a), a ≥ 0, at 0 that from the right.
#[inline(always)]
fn derivative(penalty: Penalty, a: f32) -> f32 {
    match penalty {
        Penalty::None | Penalty::Step | Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => 0.0,
        Penalty::ApproxL0 { epsilon } => epsilon / ((a + epsilon) * (a + epsilon)),
        Penalty::L1 => 1.0,
        Penalty::Tanh { scale } => {
            // 1 − tanh² = 4e/(1 + e)² with e = exp(−2ka), without the cancellation near tanh = 1.
            let e = (-2.0 * scale * a).exp();
            scale * 4.0 * e / ((1.0 + e) * (1.0 + e))
        }
        Penalty::Log { epsilon } => 1.0 / (a + epsilon),
    }
}

impl Sparsity {
    /// The sparsity part of `loss` for batches of B = `rows`.
    pub fn new(loss: &LossSpec, schedule: &Schedule, rows: usize) -> Sparsity {
        let scale = schedule.epsilon_scale as f32;
        Sparsity {
            penalty: loss.penalty.with_epsilon_scaled(scale),
            coefficient: (loss.coefficient * schedule.coefficient_scale / rows as f64) as f32,
            frequency_epsilon: loss.frequency_epsilon * scale,
            weighted: loss.weight_by_decoder_norm,
        }
    }

    /// Σ a and Σ p(a·norm_j), as logged, over the pairs of one row, 0 where [`Sparsity::of_mean`] has it. `norms` [F] are ‖W_dec_j‖, or None
    /// where they are no part of the penalty.
    pub fn row_sums(&self, features: &[u32], values: &[f32], norms: Option<&[f32]>) -> (f64, f64) {
        let l1: f64 = values.iter().map(|a| f64::from(*a)).sum();
        let of_sums = self.of_sums(values.len(), l1, norms.is_some());
        let penalty = of_sums.unwrap_or_else(|| match norms {
            None => values.iter().map(|a| f64::from(logged(self.penalty, *a))).sum(),
            Some(norms) => features
                .iter()
                .zip(values)
                .map(|(feature, a)| f64::from(a * norms[*feature as usize]))
                .filter(|weighted| *weighted > 0.0)
                .map(|weighted| f64::from(logged(self.penalty, weighted as f32)))
                .sum(),
        });
        (l1, penalty)
    }

    /// Σ p(a) of a row, as logged, if it follows from how many features are active and from Σ a. `weighted` tells whether p sees
    /// activations times ‖W_dec_j‖.
    pub(crate) fn of_sums(&self, active: usize, l1: f64, weighted: bool) -> Option<f64> {
        match self.penalty {
            Penalty::None | Penalty::MeanQuadratic { .. } => Some(0.0),
            Penalty::Step => Some(active as f64),
            Penalty::ApproxL0 { .. } if !weighted => Some(active as f64),
            Penalty::L1 if !weighted => Some(l1),
            Penalty::Quadratic { target } => {
                let over = active as f64 - f64::from(target);
                Some(2.0 / f64::from(target) * over * over)
            }
            _ => None,
        }
    }

    /// The penalty of a batch in whose rows `mean` features are active on average, if it is a function of that alone.
    pub fn of_mean(&self, mean: f64) -> Option<f64> {
        match self.penalty {
            Penalty::MeanQuadratic { target } => Some((mean / f64::from(target) - 1.0).powi(2)),
            _ => None,
        }
    }

    /// The derivative of the penalty by how many features are active in a row, of which `active` are, and `mean` on average
    /// over the batch.
    pub fn by_count(&self, active: u32, mean: f64) -> f32 {
        match self.penalty {
            Penalty::Step => self.coefficient,
            Penalty::Quadratic { target } => self.coefficient * 4.0 / target * (active as f32 - target),
            Penalty::MeanQuadratic { target } => {
                self.coefficient * 2.0 / target * (mean / f64::from(target) - 1.0) as f32
            }
            _ => 0.0,
        }
    }

    /// The derivative of the penalties by an activation of 0 from the right, as [`Sparsity::derivatives`]: what a pair near its
    /// threshold would begin with.
    pub fn derivative_at_zero(&self, norm: f32, slope: f32) -> f32 {
        let surrogate = if slope == 0.0 { 0.0 } else { slope / self.frequency_epsilon };
        self.coefficient * derivative(self.penalty, 0.0) * norm + surrogate
    }

    /// The derivative of the penalties by each activation a of one feature, into `out`: that of
    /// coefficient/B · p(a·norm) plus `slope`·a/(a + ε), `slope` being the frequency term's, divided by B.
    /// Returns Σ coefficient/B · p'(a·norm) · a, the derivative by the norm.
    pub fn derivatives(&self, isa: Isa, values: &[f32], norm: f32, slope: f32, out: &mut Vec<f32>) -> f32 {
        out.resize(values.len(), 0.0);
        derivatives(isa, self, values, norm, slope, out);
        let of_norm = values.iter().map(|a| self.by_weighted(a * norm) * a);
        if self.weighted { of_norm.fold(0.0, |sum, by_norm| sum + by_norm) } else { 0.0 }
    }

    /// The penalty's derivative by an activation times ‖W_dec_j‖.
    #[inline(always)]
    fn by_weighted(&self, weighted: f32) -> f32 {
        // A norm of 0 leaves no activation that the penalty could see.
        if weighted > 0.0 { self.coefficient * derivative(self.penalty, weighted) } else { 0.0 }
    }
}

per_isa! {
    /// [`Sparsity::derivatives`] but for what it returns.
    fn derivatives(sparsity: &Sparsity, values: &[f32], norm: f32, slope: f32, out: &mut [f32]) {
        let Sparsity { coefficient, frequency_epsilon: epsilon, .. } = *sparsity;
        // The penalty is the same for all values, which compilers see only when it is chosen outside the loop.
        let penalty = match sparsity.penalty {
            Penalty::ApproxL0 { epsilon } => Some(epsilon),
            _ => None,
        };
        match penalty {
            Some(of_penalty) => {
                for (out, a) in out.iter_mut().zip(values) {
                    let weighted = a * norm;
                    let by_weighted = coefficient * derivative(Penalty::ApproxL0 { epsilon: of_penalty }, weighted);
                    *out = if weighted > 0.0 { by_weighted * norm } else { 0.0 };
                }
            }
            None => {
                for (out, a) in out.iter_mut().zip(values) {
                    *out = sparsity.by_weighted(a * norm) * norm;
                }
            }
        }
        if slope != 0.0 {
            for (out, a) in out.iter_mut().zip(values) {
                *out += slope * epsilon / ((a + epsilon) * (a + epsilon));
            }
        }
    }
}

/// The frequency terms' values into `terms`, and their slopes d/ds̃_j divided by B into `slopes`, of the window's features out of
/// F = `features` (straight-through: values and slopes at the running frequencies, of which the last batch is a part).
pub fn frequency_terms(
    loss: &LossSpec,
    window: &FrequencyWindow,
    rows: usize,
    features: usize,
    terms: &mut Terms,
    slopes: &mut [f32],
) {
    if !loss.uses_frequencies() {
        return slopes.fill(0.0);
    }
    let features = features as f64;
    let (mean_density, log_density) = (loss.mean_density / features, loss.log_density / features);
    for (feature, slope) in slopes.iter_mut().enumerate() {
        let s = window.frequency(feature) + FREQUENCY_FLOOR;
        terms.density += mean_density * (s - FREQUENCY_FLOOR) + log_density * s.log10();
        let mut coefficient = log_density;
        if let Some(min) = loss.min_sparsity.filter(|min| s < min.target) {
            terms.min_sparsity += min.coefficient * (min.target.log10() - s.log10());
            terms.below_target += 1;
            coefficient -= min.coefficient;
        }
        if let Some(max) = loss.max_sparsity.filter(|max| s > max.target) {
            terms.max_sparsity += max.coefficient * (s.log10() - max.target.log10());
            coefficient += max.coefficient;
        }
        let by_log = coefficient / (std::f64::consts::LN_10 * s * rows as f64);
        *slope = (by_log + mean_density / rows as f64) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{FrequencyPenalty, Mse};
    use crate::reference;

    const PENALTIES: [Penalty; 5] = [
        Penalty::None,
        Penalty::ApproxL0 { epsilon: 0.2 },
        Penalty::L1,
        Penalty::Tanh { scale: 1.5 },
        Penalty::Log { epsilon: 0.3 },
    ];

    #[test]
    fn values_and_derivatives_equal_the_definition() {
        for penalty in PENALTIES {
            for a in [1e-30, 1e-6, 0.01, 0.5, 3.0, 40.0, 1e6] {
                let exact = reference::penalty_derivative(penalty, f64::from(a));
                let got = f64::from(derivative(penalty, a));
                // Where exp underflows to 0 the definition's own 1 − tanh² is 0 as well.
                assert!((got - exact).abs() <= 1e-5 * exact.abs() + 1e-15, "{penalty:?} {a}: {got} {exact}");
                let exact = reference::logged_penalty(penalty, [f64::from(a)].into_iter());
                let got = f64::from(logged(penalty, a));
                assert!((got - exact).abs() <= 1e-5 * exact.abs(), "{penalty:?} {a}: {got} {exact}");
            }
        }
    }

    #[test]
    fn derivatives_combine_penalty_norm_and_frequency_slope() {
        let loss = LossSpec {
            penalty: Penalty::ApproxL0 { epsilon: 0.5 },
            coefficient: 3.0,
            frequency_epsilon: 0.25,
            weight_by_decoder_norm: true,
            ..LossSpec::reconstruction(Mse::Sum)
        };
        let schedule = Schedule { coefficient_scale: 2.0, ..Schedule::constant(0.1) };
        let sparsity = Sparsity::new(&loss, &schedule, 4);
        let mut out = Vec::new();
        let by_norm = sparsity.derivatives(Isa::detect(), &[1.5], 2.0, -0.7, &mut out);
        let p = 1.5 * 0.5 / (3.5f32 * 3.5);
        let surrogate = -0.7 * 0.25 / (1.75f32 * 1.75);
        assert!((out[0] - (p * 2.0 + surrogate)).abs() < 1e-6);
        assert!((by_norm - p * 1.5).abs() < 1e-6);
    }

    #[test]
    fn frequency_terms_equal_the_definition_around_the_targets() {
        let penalty = |coefficient, target| Some(FrequencyPenalty { coefficient, target });
        let loss = LossSpec {
            min_sparsity: penalty(1e-3, 0.1),
            max_sparsity: penalty(2e-3, 0.6),
            ..LossSpec::reconstruction(Mse::Sum)
        };
        let mut window = FrequencyWindow::new(3, 40, 5);
        window.push(&[0, 1, 10, 30, 40]);
        let frequencies: Vec<f64> = (0..5).map(|j| window.frequency(j)).collect();
        let mut slopes = vec![f32::NAN; 5];
        let mut terms = Terms::default();
        frequency_terms(&loss, &window, 40, 5, &mut terms, &mut slopes);
        let (min, max) = reference::frequency_penalties(&loss, &frequencies);
        assert!((terms.min_sparsity - min).abs() < 1e-12 && (terms.max_sparsity - max).abs() < 1e-12);
        assert_eq!(terms.below_target, 2);
        let expected = reference::frequency_slopes(&loss, &frequencies);
        for j in 0..5 {
            let exact = expected[j] / 40.0;
            assert!((f64::from(slopes[j]) - exact).abs() <= 1e-6 * exact.abs(), "feature {j}");
        }
    }
}

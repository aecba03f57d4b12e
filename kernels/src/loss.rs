//! A loss as data: a reconstruction term, a sparsity penalty and penalties on how often features fire, each with its
//! coefficient.
//!
//! ```text
//! loss = mse + coefficient · (1/B) Σ_i Σ_j p(a_ij) + min-sparsity + max-sparsity + mean density + log density
//! ```
//!
//! The formulas are in [`mod@crate::reference`] (float64, the definition) and
//! [`crate::cpu::sparsity`] (float32).

use serde::{Deserialize, Serialize};

/// The reconstruction term. e_i = x̂_i − x_i, x̄ = mean of the batch's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mse {
    /// (1/B) Σ_i ‖e_i‖².
    Sum,
    /// The mean over rows and components of e² / ‖x_i − x̄‖, no gradient through the denominator
    /// (E. Farrell, "Experiments with an alternative method to promote sparsity in sparse
    /// autoencoders", April 2024).
    Centered,
    /// The mean over rows and components of e² / ‖x_i‖, no gradient through the denominator.
    Uncentered,
}

/// The sparsity penalty p(a) of one activation a > 0; p(0) = 0 and no gradient at 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Penalty {
    /// p = 0.
    None,
    /// Gradient of a / (a + ε); the value that is logged is the true L0, the count of a > 0.
    ApproxL0 {
        /// ε > 0, in units of the activation.
        epsilon: f32,
    },
    /// p = a.
    L1,
    /// p = tanh(k·a).
    Tanh {
        /// k > 0.
        scale: f32,
    },
    /// p = ln(1 + a/ε).
    Log {
        /// ε > 0, in units of the activation.
        epsilon: f32,
    },
    /// The true L0, Σ_j H(z_ij − θ_j), with JumpReLU's pseudo-derivative.
    Step,
    /// (2/L0*)·(L0_i − L0*)² of each row with L0's pseudo-derivative (Gemma Scope 2, 2025).
    Quadratic {
        /// L0* > 0.
        target: f32,
    },
    /// (L̄0/L0* − 1)² of the mean L̄0 of the batch's rows (dictionary_learning). Its pseudo-derivative sees a where the others
    /// see z: a feature that is silent in a row, with a = 0, is near its threshold where θ_j < w/2, and nowhere else.
    MeanQuadratic {
        /// L0* > 0.
        target: f32,
    },
}

impl Penalty {
    /// Whether it is a function of how many features are active: only trained thresholds have a gradient by it.
    pub fn counts(self) -> bool {
        matches!(self, Penalty::Step | Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. })
    }

    /// Whether the pseudo-derivative of that number sees a, and not z.
    pub fn sees_activations(self) -> bool {
        matches!(self, Penalty::MeanQuadratic { .. })
    }

    /// The penalty with its ε multiplied by `scale` (a schedule of ε); penalties without an ε are
    /// returned as they are.
    pub fn with_epsilon_scaled(self, scale: f32) -> Penalty {
        match self {
            Penalty::ApproxL0 { epsilon } => Penalty::ApproxL0 { epsilon: epsilon * scale },
            Penalty::Log { epsilon } => Penalty::Log { epsilon: epsilon * scale },
            other => other,
        }
    }
}

/// A penalty on features whose running frequency s_j is beyond a target τ, through
/// |log10(s_j + 1e-10) − log10 τ|, summed over the features that are on the wrong side of τ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FrequencyPenalty {
    /// κ (min-sparsity) or δ (max-sparsity), ≥ 0.
    pub coefficient: f64,
    /// τ, a fraction of the rows, in (0, 1].
    pub target: f64,
}

/// Everything that defines the loss of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossSpec {
    /// The reconstruction term.
    pub mse: Mse,
    /// The sparsity penalty.
    pub penalty: Penalty,
    /// The penalty's coefficient, ≥ 0.
    pub coefficient: f64,
    /// Penalises features that fire too rarely (s_j < τ).
    pub min_sparsity: Option<FrequencyPenalty>,
    /// Penalises features that fire too often (s_j > τ).
    pub max_sparsity: Option<FrequencyPenalty>,
    /// δ₁ ≥ 0, of the mean density δ₁ · (1/F) Σ_j s_j.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mean_density: f64,
    /// δ₂ ≥ 0, of the mean logarithmic density δ₂ · (1/F) Σ_j log10(s_j + 1e-10).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_density: f64,
    /// ε of the surrogate s̃_j = (1/B) Σ_i a/(a+ε) through which the frequency penalties' gradient
    /// flows (straight-through).
    pub frequency_epsilon: f32,
    /// Puts ‖W_dec_j‖ inside the penalty, p(a·‖W_dec_j‖), differentiated through both factors
    /// (Anthropic, "Update on how we train SAEs", April 2024).
    pub weight_by_decoder_norm: bool,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl LossSpec {
    /// Whether a term depends on the running frequencies.
    pub fn uses_frequencies(&self) -> bool {
        self.min_sparsity.is_some()
            || self.max_sparsity.is_some()
            || self.mean_density != 0.0
            || self.log_density != 0.0
    }

    /// The reconstruction term alone.
    pub fn reconstruction(mse: Mse) -> LossSpec {
        LossSpec {
            mse,
            penalty: Penalty::None,
            coefficient: 0.0,
            min_sparsity: None,
            max_sparsity: None,
            mean_density: 0.0,
            log_density: 0.0,
            frequency_epsilon: 0.2,
            weight_by_decoder_norm: false,
        }
    }
}

//! From z to a: which features of a row are active.

use serde::{Deserialize, Serialize};

/// How the active features are selected from z.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// a = max(z, 0).
    #[default]
    Relu,
    /// a = max(z, 0) of the k features of a row with the largest z, the lower feature where two are equal; 0 elsewhere
    /// (L. Gao et al., "Scaling and evaluating sparse autoencoders", 2024). The gradient reaches active features alone.
    #[serde(rename = "topk")]
    TopK {
        /// At most so many features of a row are active.
        k: usize,
    },
    /// In training a = max(z, 0) of the k·B largest z of the batch, the lower feature and then the lower row where two are
    /// equal; otherwise z where it is above θ, an average of the smallest a of past batches (B. Bussmann, P. Leask and
    /// N. Nanda, "BatchTopK sparse autoencoders", 2024).
    #[serde(rename = "batch-topk")]
    BatchTopK {
        /// So many features of a row are active in the mean over a batch.
        k: usize,
        /// How θ is averaged.
        threshold: ThresholdAverage,
    },
    /// a = z where z > θ_j ≥ 0, 0 elsewhere; the thresholds are trained (S. Rajamanoharan et al., "Jumping ahead: improving
    /// reconstruction fidelity with JumpReLU sparse autoencoders", 2024). Their pseudo-derivatives are
    /// ∂a/∂θ_j = −(θ_j/w)·[|z − θ_j| < w/2] and ∂H(z − θ_j)/∂θ_j = −(1/w)·[|z − θ_j| < w/2].
    #[serde(rename = "jump-relu")]
    JumpRelu {
        /// w > 0, in units of z.
        bandwidth: f32,
        /// Whether the negated pseudo-derivatives are part of ∂/∂z too (Anthropic, "Circuits Updates", January 2025).
        to_input: bool,
    },
}

/// How BatchTopK's θ follows the smallest positive a of each training batch, m: θ ← (1 − η)·θ + η·m.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThresholdAverage {
    /// η, above 0 and at most 1.
    pub rate: f64,
    /// Steps at the beginning that it leaves out.
    pub skipped_steps: u64,
    /// Whether θ begins as 0, and not as the first m.
    pub from_zero: bool,
}

impl Default for ThresholdAverage {
    /// η = 0.01, from the first step's value on.
    fn default() -> ThresholdAverage {
        ThresholdAverage { rate: 0.01, skipped_steps: 0, from_zero: false }
    }
}

impl ThresholdAverage {
    /// θ after step number `step`, counted from 1, whose smallest positive a is `smallest`; unchanged if there was none.
    pub fn after(&self, step: u64, threshold: Option<f64>, smallest: Option<f32>) -> Option<f64> {
        let Some(smallest) = smallest.filter(|_| step > self.skipped_steps) else { return threshold };
        let before = threshold.or(self.from_zero.then_some(0.0));
        let smallest = f64::from(smallest);
        Some(before.map_or(smallest, |before| (1.0 - self.rate) * before + self.rate * smallest))
    }
}

impl Activation {
    /// Whether it is the one that files leave out.
    pub fn is_relu(&self) -> bool {
        *self == Activation::Relu
    }

    /// Whether the largest z are active, of a row or of a batch.
    pub fn takes_the_largest(&self) -> bool {
        matches!(self, Activation::TopK { .. } | Activation::BatchTopK { .. })
    }

    /// Whether it has thresholds that are trained, θ [F].
    pub fn has_thresholds(&self) -> bool {
        matches!(self, Activation::JumpRelu { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_follows_the_smallest_activations() {
        let average = ThresholdAverage { rate: 0.25, skipped_steps: 1, from_zero: false };
        assert_eq!(average.after(1, None, Some(8.0)), None);
        assert_eq!(average.after(2, None, Some(8.0)), Some(8.0));
        assert_eq!(average.after(3, Some(8.0), Some(4.0)), Some(7.0));
        assert_eq!(average.after(4, Some(7.0), None), Some(7.0));
        let from_zero = ThresholdAverage { from_zero: true, ..average };
        assert_eq!(from_zero.after(2, None, Some(8.0)), Some(2.0));
    }
}

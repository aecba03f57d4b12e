//! What a step reports.

use crate::path::Path;
use crate::stats::Sums;

/// The loss' terms, each with its coefficient as scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// The trained reconstruction term; with prefixes, theirs together.
    pub mse: f64,
    /// The sparsity penalty; for `approx-l0` of the true L0.
    pub penalty: f64,
    /// The min-sparsity term.
    pub min_sparsity: f64,
    /// The max-sparsity term.
    pub max_sparsity: f64,
    /// The terms of the mean density and of the mean logarithmic density.
    pub density: f64,
    /// The term for dead features.
    pub dead: f64,
    /// Features with s_j + 1e-10 below the min-sparsity target; 0 without that penalty.
    pub below_target: usize,
}

impl Terms {
    /// The sum of all terms.
    pub fn loss(&self) -> f64 {
        self.mse + self.penalty + self.min_sparsity + self.max_sparsity + self.density + self.dead
    }
}

/// What one optimizer step reports. All values are those before the weights changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The number of steps done, this one included.
    pub step: u64,
    /// The loss.
    pub terms: Terms,
    /// The sums over the batch from which the metrics follow.
    pub sums: Sums,
    /// How the step was computed.
    pub path: Path,
    /// The share of all pairs (row, feature) that the encode's screening could not rule out and computed
    /// again in float32; 0 without screening.
    pub rechecked: f64,
}

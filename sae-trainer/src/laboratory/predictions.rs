//! How well a language model predicts with reconstructions in place of what stands at a hook.

use std::fmt;

use ndarray::{Array3, ArrayView1, ArrayView2, Axis, s};
use serde::Serialize;

/// Sums over the counted positions of each context.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    /// Positions counted of each context.
    counts: Vec<f64>,
    /// Of each variant, the sum over each context.
    sums: Vec<Vec<f64>>,
}

/// A mean over positions, and the standard error of it as contexts vary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Mean {
    pub(super) mean: f64,
    pub(super) standard_error: f64,
}

impl Sums {
    pub(super) fn new(variants: usize) -> Sums {
        Sums { counts: Vec::new(), sums: vec![Vec::new(); variants] }
    }

    /// Adds `values` [variants, contexts, positions] where `counted` [contexts, positions or more] says so.
    pub(super) fn add(&mut self, values: &Array3<f32>, counted: ArrayView2<'_, bool>) {
        let counted = counted.slice(s![.., ..values.dim().2]);
        let sum = |values: ArrayView1<'_, f32>, counted: ArrayView1<'_, bool>| {
            values
                .iter()
                .zip(counted)
                .filter(|(_, counted)| **counted)
                .map(|(value, _)| f64::from(*value))
                .sum()
        };
        for (context, counted) in counted.rows().into_iter().enumerate() {
            self.counts.push(counted.iter().filter(|counted| **counted).count() as f64);
            for (sums, values) in self.sums.iter_mut().zip(values.outer_iter()) {
                sums.push(sum(values.index_axis(Axis(0), context), counted));
            }
        }
    }

    /// Positions counted.
    pub(super) fn positions(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// The mean of one variant.
    pub(super) fn mean(&self, variant: usize) -> Mean {
        self.ratio(&self.sums[variant], &self.counts)
    }

    /// (zero - variant) / (zero - clean): how much of what is lost by zeros is kept.
    pub(super) fn score(&self, [clean, zero, variant]: [usize; 3]) -> Mean {
        let lost = |than: usize| -> Vec<f64> {
            self.sums[zero].iter().zip(&self.sums[than]).map(|(zero, other)| zero - other).collect()
        };
        self.ratio(&lost(variant), &lost(clean))
    }

    /// Σ a / Σ b over contexts, and its standard error: that of the linearised ratio, contexts being independent (W. Cochran,
    /// "Sampling Techniques", 1977, section 6.4).
    fn ratio(&self, a: &[f64], b: &[f64]) -> Mean {
        let (n, below) = (a.len() as f64, b.iter().sum::<f64>());
        let mean = a.iter().sum::<f64>() / below;
        let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - mean * b).powi(2)).sum();
        Mean { mean, standard_error: (squares * n / (n - 1.0)).sqrt() / below.abs() }
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ± {:.4}", self.mean, self.standard_error)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};

    use super::*;

    #[test]
    fn means_are_over_positions_and_errors_over_contexts() {
        let mut sums = Sums::new(2);
        let values = Array3::from_shape_vec((2, 2, 2), vec![1.0, 9.0, 3.0, 5.0, 2.0, 0.0, 2.0, 2.0]).unwrap();
        // Of the first context the first position alone; a third position has no value.
        sums.add(&values, array![[true, false, true], [true, true, true]].view());
        assert_eq!(sums.positions(), 3.0);
        let mean = sums.mean(0);
        assert_eq!(mean.mean, 3.0);
        // Σ (sum - 3 count)² = (1 - 3)² + (8 - 6)² = 8; √(8 · 2 / 1) / 3.
        assert!((mean.standard_error - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(sums.mean(1), Mean { mean: 2.0, standard_error: 0.0 });
    }

    #[test]
    fn a_score_is_the_share_of_the_loss_that_is_kept() {
        let mut sums = Sums::new(3);
        // Clean 1, zero 5, reconstruction 2: three quarters of what zeros lose.
        let values = Array3::from_shape_vec((3, 2, 1), vec![1.0, 1.0, 5.0, 5.0, 2.0, 2.0]).unwrap();
        sums.add(&values, array![[true], [true]].view());
        assert_eq!(sums.score([0, 1, 2]), Mean { mean: 0.75, standard_error: 0.0 });
        assert_eq!(sums.score([0, 1, 0]).mean, 1.0);
        assert_eq!(sums.score([0, 1, 1]).mean, 0.0);
    }
}

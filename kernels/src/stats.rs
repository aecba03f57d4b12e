//! Sums over rows, from which every metric follows that needs no language model: the only place with a metric's formula.
//!
//! A step reports [`Sums`]. An evaluation keeps what it takes to add up batches beside them ([`Evaluation::merge`]).
//!
//! A mean of quotients is taken over the rows whose divisor is not 0. If there are none, for instance because the rows have
//! no variance to explain, the metric is undefined: NaN.

/// Sums over the rows of one or more batches, float64. x is the target, e = x̂ − x.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// F.
    pub features: u64,
    /// The number of rows summed.
    pub rows: u64,
    /// Σ ‖e_i‖².
    pub squared_error: f64,
    /// Σ ‖e_i‖² / (d ‖x_i − x̄‖), rows with x_i = x̄ left out.
    pub centered_error: f64,
    /// Σ ‖e_i‖² / (d ‖x_i‖), rows with x_i = 0 left out.
    pub uncentered_error: f64,
    /// The number of rows with x_i ≠ x̄.
    pub rows_off_mean: u64,
    /// The number of rows with x_i ≠ 0.
    pub rows_off_zero: u64,
    /// Σ ‖x_i‖².
    pub squared_norm: f64,
    /// Σ ‖x_i − x̄‖², x̄ the mean of all rows summed. As Σ ‖x_i‖² − n ‖x̄‖² it would be nothing but rounding error where
    /// the mean is long beside the spread.
    pub deviation: f64,
    /// Σ cos(x_i, x̂_i), 0 where x̂_i is 0, rows with x_i = 0 left out.
    pub cosine: f64,
    /// Σ ‖x̂_i‖ / ‖x_i‖, rows with x_i = 0 left out.
    pub norm_ratio: f64,
    /// Σ_i L0_i: the number of a_ij > 0.
    pub active: u64,
    /// Σ_i L0_i².
    pub active_squared: u64,
    /// Σ_ij a_ij.
    pub l1: f64,
    /// Σ_ij p(a_ij), the logged value of the penalty (for `approx-l0` the count of a > 0).
    pub penalty: f64,
}

impl Sums {
    /// The mean of a sum over the rows; 0 without rows.
    fn per_row(&self, sum: f64) -> f64 {
        if self.rows == 0 { 0.0 } else { sum / self.rows as f64 }
    }

    /// Mean over rows of the number of active features.
    pub fn l0(&self) -> f64 {
        self.per_row(self.active as f64)
    }

    /// Standard deviation over rows (the population's, not the sample's) of the number of active features.
    pub fn l0_std(&self) -> f64 {
        let mean = self.l0();
        (self.per_row(self.active_squared as f64) - mean * mean).max(0.0).sqrt()
    }

    /// Mean over rows of Σ_j a_ij.
    pub fn l1(&self) -> f64 {
        self.per_row(self.l1)
    }

    /// Mean over rows of Σ_j p(a_ij), as logged: without the coefficient.
    pub fn penalty(&self) -> f64 {
        self.per_row(self.penalty)
    }

    /// The `sum` MSE: mean over rows of ‖e‖².
    pub fn mse_sum(&self) -> f64 {
        self.per_row(self.squared_error)
    }

    /// The `centered` MSE; NaN if all rows equal their batch's mean.
    pub fn mse_centered(&self) -> f64 {
        self.centered_error / self.rows_off_mean as f64
    }

    /// The `uncentered` MSE; NaN if all rows are 0.
    pub fn mse_uncentered(&self) -> f64 {
        self.uncentered_error / self.rows_off_zero as f64
    }

    /// 1 − Σ‖e‖² / Σ‖x − x̄‖², x̄ the mean of all rows summed; NaN if all rows are equal.
    pub fn explained_variance(&self) -> f64 {
        fraction_explained(self.squared_error, self.deviation)
    }

    /// 1 − Σ‖e‖² / Σ‖x‖²; NaN if all rows are 0.
    pub fn explained_variance_uncentered(&self) -> f64 {
        fraction_explained(self.squared_error, self.squared_norm)
    }

    /// Mean over rows of cos(x, x̂); NaN if all rows are 0.
    pub fn cosine_similarity(&self) -> f64 {
        self.cosine / self.rows_off_zero as f64
    }

    /// Mean over rows of ‖x̂‖ / ‖x‖; NaN if all rows are 0.
    pub fn l2_ratio(&self) -> f64 {
        self.norm_ratio / self.rows_off_zero as f64
    }

    /// L0 / F.
    pub fn density(&self) -> f64 {
        self.l0() / self.features.max(1) as f64
    }
}

/// What an evaluation of one or more batches finds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    /// The sums over their rows.
    pub sums: Sums,
    /// Σ x_i, [d].
    pub row_sum: Vec<f64>,
    /// How many rows each feature was active in, [F].
    pub firings: Vec<u64>,
}

impl Evaluation {
    /// Of no rows, d = `width`, F = `features`.
    pub fn new(width: usize, features: usize) -> Evaluation {
        let sums = Sums { features: features as u64, ..Sums::default() };
        Evaluation { sums, row_sum: vec![0.0; width], firings: vec![0; features] }
    }

    /// Adds the evaluation of other rows. All metrics are then those of all rows, with one exception: x̄ in the `centered`
    /// MSE is each batch's own.
    ///
    /// # Panics
    /// If width or features differ.
    pub fn merge(&mut self, other: &Evaluation) {
        assert_eq!(self.row_sum.len(), other.row_sum.len(), "sums of two widths");
        assert_eq!(self.firings.len(), other.firings.len(), "sums of two feature counts");
        let between = self.deviation_between(other);
        let (sums, more) = (&mut self.sums, &other.sums);
        sums.deviation += more.deviation + between;
        sums.rows += more.rows;
        sums.squared_error += more.squared_error;
        sums.centered_error += more.centered_error;
        sums.uncentered_error += more.uncentered_error;
        sums.rows_off_mean += more.rows_off_mean;
        sums.rows_off_zero += more.rows_off_zero;
        sums.squared_norm += more.squared_norm;
        sums.cosine += more.cosine;
        sums.norm_ratio += more.norm_ratio;
        sums.active += more.active;
        sums.active_squared += more.active_squared;
        sums.l1 += more.l1;
        sums.penalty += more.penalty;
        self.row_sum.iter_mut().zip(&other.row_sum).for_each(|(sum, more)| *sum += more);
        self.firings.iter_mut().zip(&other.firings).for_each(|(sum, more)| *sum += more);
    }

    /// What Σ ‖x_i − x̄‖² of all rows is more than the sum of both parts': m n / (m + n) ‖x̄ − ȳ‖² (T. Chan, G. Golub and
    /// R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    fn deviation_between(&self, other: &Evaluation) -> f64 {
        if self.sums.rows == 0 || other.sums.rows == 0 {
            return 0.0;
        }
        let (here, there) = (self.sums.rows as f64, other.sums.rows as f64);
        let means = self.row_sum.iter().zip(&other.row_sum);
        let distance: f64 = means.map(|(x, y)| (x / here - y / there).powi(2)).sum();
        here / (here + there) * there * distance
    }

    /// Each feature's fraction of rows in which it was active, [F].
    pub fn feature_densities(&self) -> Vec<f64> {
        self.firings.iter().map(|count| self.sums.per_row(*count as f64)).collect()
    }

    /// How many features never fired in the rows summed.
    pub fn dead_features(&self) -> usize {
        self.firings.iter().filter(|count| **count == 0).count()
    }

    /// How many features fired in more than the fraction `density` of the rows.
    pub fn features_over(&self, density: f64) -> usize {
        let limit = density * self.sums.rows as f64;
        self.firings.iter().filter(|count| **count as f64 > limit).count()
    }
}

/// Keeps the logarithm of a frequency finite; −10 marks a feature that never fires.
pub const FREQUENCY_FLOOR: f64 = 1e-10;

/// log10(s + 1e-10).
pub fn log10_frequency(frequency: f64) -> f64 {
    (frequency + FREQUENCY_FLOOR).log10()
}

/// 1 − error / total; NaN if there is nothing to explain.
fn fraction_explained(error: f64, total: f64) -> f64 {
    if total > 0.0 { 1.0 - error / total } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(rows: u64) -> Evaluation {
        let sums = Sums {
            features: 3,
            rows,
            squared_error: 2.0 * rows as f64,
            centered_error: 0.5 * rows as f64,
            uncentered_error: 0.25 * rows as f64,
            rows_off_mean: rows,
            rows_off_zero: rows,
            squared_norm: 10.0 * rows as f64,
            deviation: 5.0 * rows as f64,
            cosine: 0.9 * rows as f64,
            norm_ratio: 0.8 * rows as f64,
            active: 3 * rows,
            active_squared: 13 * rows,
            l1: 1.5 * rows as f64,
            penalty: 0.7 * rows as f64,
        };
        Evaluation { sums, row_sum: vec![rows as f64, 2.0 * rows as f64], firings: vec![0, rows / 5, rows] }
    }

    #[test]
    fn metrics_are_means_over_the_rows() {
        let evaluation = example(20);
        let sums = evaluation.sums;
        assert_eq!(sums.l0(), 3.0);
        assert_eq!(sums.l0_std(), 2.0);
        assert_eq!(sums.mse_sum(), 2.0);
        assert_eq!(sums.mse_centered(), 0.5);
        assert_eq!(sums.mse_uncentered(), 0.25);
        assert!((sums.explained_variance() - (1.0 - 2.0 / 5.0)).abs() < 1e-12);
        assert!((sums.explained_variance_uncentered() - 0.8).abs() < 1e-12);
        assert_eq!(sums.density(), 1.0);
        assert_eq!(evaluation.dead_features(), 1);
        assert_eq!(evaluation.features_over(0.1), 2);
        assert_eq!(evaluation.features_over(0.2), 1);
        assert_eq!(evaluation.feature_densities(), [0.0, 0.2, 1.0]);
    }

    #[test]
    fn merging_adds_rows_and_keeps_means() {
        let mut both = Evaluation::new(2, 3);
        both.merge(&example(20));
        both.merge(&example(60));
        let whole = example(80);
        assert_eq!(both.firings, whole.firings);
        assert_eq!(both.row_sum, whole.row_sum);
        let (sums, whole) = (both.sums, whole.sums);
        assert_eq!(sums.rows, 80);
        assert!((sums.l1() - whole.l1()).abs() < 1e-12);
        assert!((sums.explained_variance() - whole.explained_variance()).abs() < 1e-12);
    }

    /// The deviation of each of `parts`, merged.
    fn merged(parts: &[&[f64]]) -> Sums {
        let mut whole = Evaluation::new(1, 1);
        for part in parts {
            let (rows, sum) = (part.len() as f64, part.iter().sum::<f64>());
            let deviation = part.iter().map(|x| (x - sum / rows).powi(2)).sum();
            let squared_norm = part.iter().map(|x| x * x).sum();
            let rows = part.len() as u64;
            let sums = Sums { rows, deviation, squared_norm, ..Evaluation::new(1, 1).sums };
            whole.merge(&Evaluation { sums, row_sum: vec![sum], firings: vec![0] });
        }
        whole.sums
    }

    #[test]
    fn the_variance_is_that_of_all_rows_however_long_their_mean() {
        for mean in [0.0, 1.0, 1e7, 1e12] {
            let sums = merged(&[&[mean - 2.0, mean], &[mean + 1.0], &[mean + 3.0, mean + 3.0, mean + 1.0]]);
            // About the mean + 1.
            // float64 holds the mean itself no closer.
            let allowed = 1e-12 + 1e-14 * mean;
            assert!((sums.deviation - 18.0).abs() < allowed, "{mean}: {}", sums.deviation);
        }
        assert_eq!(merged(&[&[1e7, 1e7], &[1e7]]).deviation, 0.0);
    }

    #[test]
    fn what_has_no_divisor_is_undefined() {
        let sums = Evaluation::new(2, 3).sums;
        assert_eq!((sums.l0_std(), sums.density()), (0.0, 0.0));
        for undefined in [
            sums.explained_variance(),
            sums.explained_variance_uncentered(),
            sums.mse_centered(),
            sums.mse_uncentered(),
            sums.cosine_similarity(),
            sums.l2_ratio(),
        ] {
            assert!(undefined.is_nan());
        }
        // Four rows of which three equal the mean: the quotient of the fourth is the mean of all there are.
        let sums = Sums { rows: 4, rows_off_mean: 1, centered_error: 0.5, ..Sums::default() };
        assert_eq!(sums.mse_centered(), 0.5);
    }
}

//! Sums over rows from which every metric that needs no language model follows.
//!
//! All sums are float64 and add up over batches ([`Sums::merge`]), so that a metric over many
//! batches is that of all their rows, with one exception: x̄ in the `centered` MSE is each batch's own.

/// Sums over the rows of one or more batches. e = x̂ − x.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sums {
    /// The number of rows summed.
    pub rows: u64,
    /// Σ ‖e_i‖².
    pub squared_error: f64,
    /// Σ ‖e_i‖² / (d ‖x_i − x̄‖), rows with x_i = x̄ left out.
    pub centered_error: f64,
    /// Σ ‖e_i‖² / (d ‖x_i‖), rows with x_i = 0 left out.
    pub uncentered_error: f64,
    /// Σ ‖x_i‖².
    pub squared_norm: f64,
    /// Σ x_i, [d].
    pub row_sum: Vec<f64>,
    /// Σ cos(x_i, x̂_i), 0 where one of them is 0.
    pub cosine: f64,
    /// Σ ‖x̂_i‖ / ‖x_i‖, 0 where x_i is 0.
    pub norm_ratio: f64,
    /// Σ_i L0_i: the number of a_ij > 0.
    pub active: u64,
    /// Σ_i L0_i².
    pub active_squared: u64,
    /// Σ_ij a_ij.
    pub l1: f64,
    /// Σ_ij p(a_ij), the logged value of the penalty (for `approx-l0` the count of a > 0).
    pub penalty: f64,
    /// How many rows each feature was active in, [F].
    pub firings: Vec<u64>,
}

impl Sums {
    /// No rows, d = `width`, F = `features`.
    pub fn new(width: usize, features: usize) -> Sums {
        Sums { row_sum: vec![0.0; width], firings: vec![0; features], ..Sums::default() }
    }

    /// Adds the sums over other rows.
    ///
    /// # Panics
    /// If width or features differ.
    pub fn merge(&mut self, other: &Sums) {
        assert_eq!(self.row_sum.len(), other.row_sum.len(), "sums of two widths");
        assert_eq!(self.firings.len(), other.firings.len(), "sums of two feature counts");
        self.rows += other.rows;
        self.squared_error += other.squared_error;
        self.centered_error += other.centered_error;
        self.uncentered_error += other.uncentered_error;
        self.squared_norm += other.squared_norm;
        self.cosine += other.cosine;
        self.norm_ratio += other.norm_ratio;
        self.active += other.active;
        self.active_squared += other.active_squared;
        self.l1 += other.l1;
        self.penalty += other.penalty;
        self.row_sum.iter_mut().zip(&other.row_sum).for_each(|(sum, more)| *sum += more);
        self.firings.iter_mut().zip(&other.firings).for_each(|(sum, more)| *sum += more);
    }

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

    /// The `centered` MSE.
    pub fn mse_centered(&self) -> f64 {
        self.per_row(self.centered_error)
    }

    /// The `uncentered` MSE.
    pub fn mse_uncentered(&self) -> f64 {
        self.per_row(self.uncentered_error)
    }

    /// 1 − Σ‖e‖² / Σ‖x − x̄‖², x̄ the mean of all rows summed; 0 if all rows are equal.
    pub fn explained_variance(&self) -> f64 {
        let mean_norm: f64 = self.row_sum.iter().map(|sum| self.per_row(*sum).powi(2)).sum();
        fraction_explained(self.squared_error, self.squared_norm - self.rows as f64 * mean_norm)
    }

    /// 1 − Σ‖e‖² / Σ‖x‖²; 0 if all rows are 0.
    pub fn explained_variance_uncentered(&self) -> f64 {
        fraction_explained(self.squared_error, self.squared_norm)
    }

    /// Mean over rows of cos(x, x̂).
    pub fn cosine_similarity(&self) -> f64 {
        self.per_row(self.cosine)
    }

    /// Mean over rows of ‖x̂‖ / ‖x‖.
    pub fn l2_ratio(&self) -> f64 {
        self.per_row(self.norm_ratio)
    }

    /// L0 / F.
    pub fn density(&self) -> f64 {
        self.l0() / self.firings.len().max(1) as f64
    }

    /// Each feature's fraction of rows in which it was active, [F].
    pub fn feature_densities(&self) -> Vec<f64> {
        self.firings.iter().map(|count| self.per_row(*count as f64)).collect()
    }

    /// How many features never fired in the rows summed.
    pub fn dead_features(&self) -> usize {
        self.firings.iter().filter(|count| **count == 0).count()
    }

    /// How many features fired in more than the fraction `density` of the rows.
    pub fn features_over(&self, density: f64) -> usize {
        let limit = density * self.rows as f64;
        self.firings.iter().filter(|count| **count as f64 > limit).count()
    }
}

fn fraction_explained(error: f64, total: f64) -> f64 {
    if total > 0.0 { 1.0 - error / total } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(rows: u64) -> Sums {
        Sums {
            rows,
            squared_error: 2.0 * rows as f64,
            centered_error: 0.5 * rows as f64,
            uncentered_error: 0.25 * rows as f64,
            squared_norm: 10.0 * rows as f64,
            row_sum: vec![rows as f64, 2.0 * rows as f64],
            cosine: 0.9 * rows as f64,
            norm_ratio: 0.8 * rows as f64,
            active: 3 * rows,
            active_squared: 13 * rows,
            l1: 1.5 * rows as f64,
            penalty: 0.7 * rows as f64,
            firings: vec![0, rows / 5, rows],
        }
    }

    #[test]
    fn metrics_are_means_over_the_rows() {
        let sums = example(20);
        assert_eq!(sums.l0(), 3.0);
        assert_eq!(sums.l0_std(), 2.0);
        assert_eq!(sums.mse_sum(), 2.0);
        assert_eq!(sums.mse_centered(), 0.5);
        assert_eq!(sums.mse_uncentered(), 0.25);
        // ‖x̄‖² = 1 + 4, so that Σ‖x − x̄‖² = 20 · (10 − 5).
        assert!((sums.explained_variance() - (1.0 - 2.0 / 5.0)).abs() < 1e-12);
        assert!((sums.explained_variance_uncentered() - 0.8).abs() < 1e-12);
        assert_eq!(sums.density(), 1.0);
        assert_eq!(sums.dead_features(), 1);
        assert_eq!(sums.features_over(0.1), 2);
        assert_eq!(sums.features_over(0.2), 1);
        assert_eq!(sums.feature_densities(), [0.0, 0.2, 1.0]);
    }

    #[test]
    fn merging_adds_rows_and_keeps_means() {
        let mut sums = Sums::new(2, 3);
        sums.merge(&example(20));
        sums.merge(&example(60));
        let whole = example(80);
        assert_eq!(sums.rows, 80);
        assert_eq!(sums.firings, whole.firings);
        assert_eq!(sums.row_sum, whole.row_sum);
        assert!((sums.l1() - whole.l1()).abs() < 1e-12);
        assert!((sums.explained_variance() - whole.explained_variance()).abs() < 1e-12);
    }

    #[test]
    fn no_rows_give_zeros_instead_of_nan() {
        let sums = Sums::new(2, 3);
        assert_eq!(sums.l0_std(), 0.0);
        assert_eq!(sums.explained_variance(), 0.0);
        assert_eq!(sums.density(), 0.0);
    }
}

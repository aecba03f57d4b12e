//! The reconstruction term of one x̂.

use super::vectors::norm;
use crate::loss::Mse;

/// The denominator of each row's squared error, [B]: B·1 for `sum` (so that the loss is the plain
/// sum of the quotients), B·d·‖x_i − x̄‖ for `centered`, B·d·‖x_i‖ for `uncentered`.
pub fn mse_denominators(kind: Mse, width: usize, x: &[f64]) -> Vec<f64> {
    let rows = x.len() / width;
    let mean: Vec<f64> =
        (0..width).map(|k| (0..rows).map(|i| x[i * width + k]).sum::<f64>() / rows as f64).collect();
    let scale = (rows * width) as f64;
    x.chunks_exact(width)
        .map(|row| match kind {
            Mse::Sum => rows as f64,
            Mse::Centered => {
                let centered: Vec<f64> = row.iter().zip(&mean).map(|(v, m)| v - m).collect();
                scale * norm(&centered)
            }
            Mse::Uncentered => scale * norm(row),
        })
        .collect()
}

/// The reconstruction term of [`Mse`].
pub fn mse(kind: Mse, width: usize, x: &[f64], reconstruction: &[f64]) -> f64 {
    let denominators = mse_denominators(kind, width, x);
    let squared: Vec<f64> = x.iter().zip(reconstruction).map(|(x, y)| (y - x).powi(2)).collect();
    squared.chunks_exact(width).zip(denominators).map(|(row, d)| row.iter().sum::<f64>() / d).sum()
}

/// g = d mse / d x̂, [B,d].
pub fn mse_gradient(kind: Mse, width: usize, x: &[f64], reconstruction: &[f64]) -> Vec<f64> {
    let denominators = mse_denominators(kind, width, x);
    x.iter()
        .zip(reconstruction)
        .enumerate()
        .map(|(at, (x, y))| 2.0 * (y - x) / denominators[at / width])
        .collect()
}

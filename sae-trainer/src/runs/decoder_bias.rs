//! The decoder bias before the first step.

use ndarray::{Array1, ArrayView1, ArrayView2};

/// The mean of `rows` [n, d] → [d].
pub(crate) fn mean(rows: ArrayView2<'_, f32>) -> Array1<f32> {
    weighted_mean(rows, |_| 1.0).mapv(|m| m as f32)
}

/// The geometric median of `rows` [n, d] → [d]: the point with the least sum of distances to them, by
/// Weiszfeld's iteration from the mean until it moves by less than 1e-6 of its norm.
pub(crate) fn geometric_median(rows: ArrayView2<'_, f32>) -> Array1<f32> {
    let mut median = weighted_mean(rows, |_| 1.0);
    for _ in 0..100 {
        // The floor keeps a row at the median from taking all the weight.
        let next = weighted_mean(rows, |row| 1.0 / distance(row, &median).max(1e-12));
        let moved = median.iter().zip(&next).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let scale = next.iter().map(|m| m * m).sum::<f64>().sqrt();
        median = next;
        if moved <= 1e-6 * scale {
            break;
        }
    }
    median.mapv(|m| m as f32)
}

fn weighted_mean(rows: ArrayView2<'_, f32>, weight: impl Fn(ArrayView1<'_, f32>) -> f64) -> Array1<f64> {
    let mut sum = Array1::zeros(rows.ncols());
    let mut total = 0.0;
    for row in rows.rows() {
        let w = weight(row);
        sum.zip_mut_with(&row, |sum, x| *sum += w * f64::from(*x));
        total += w;
    }
    sum / total
}

fn distance(row: ArrayView1<'_, f32>, point: &Array1<f64>) -> f64 {
    row.iter().zip(point).map(|(x, p)| (f64::from(*x) - p).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, aview1, aview2};

    use super::*;

    #[test]
    fn the_mean_is_the_mean() {
        assert_eq!(mean(aview2(&[[1.0, 10.0], [3.0, -2.0]])), aview1(&[2.0, 4.0]));
    }

    #[test]
    fn the_median_of_a_triangle_is_its_fermat_point() {
        // Right angle with sides 1: every pair of rows is seen from it at 120 degrees, so it lies on the
        // diagonal at t = (3 - sqrt(3)) / 6.
        let median = geometric_median(aview2(&[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]));
        let t = (3.0 - 3.0_f32.sqrt()) / 6.0;
        assert!((median[0] - t).abs() < 1e-4 && (median[1] - t).abs() < 1e-4, "{median:?} against {t}");
    }

    #[test]
    fn an_outlier_moves_the_mean_but_not_the_median() {
        let mut rows = Array2::from_shape_fn((100, 2), |(i, k)| (i % [7, 5][k]) as f32);
        let before = geometric_median(rows.view());
        rows.push_row(aview1(&[1e6, 1e6])).unwrap();
        let after = geometric_median(rows.view());
        assert!((before[0] - after[0]).abs() < 0.1 && (before[1] - after[1]).abs() < 0.1);
        assert!(mean(rows.view())[0] > 1000.0);
    }
}

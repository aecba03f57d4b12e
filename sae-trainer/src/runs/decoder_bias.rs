//! The decoder bias before the first step.

/// Rows from which mean and median are taken.
pub(crate) const SAMPLE_ROWS: usize = 32_768;

/// The mean of `rows` [n, d] → [d].
pub(crate) fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    weighted_mean(rows, width, |_| 1.0).into_iter().map(|m| m as f32).collect()
}

/// The geometric median of `rows` [n, d] → [d]: the point with the least sum of distances to them, by
/// Weiszfeld's iteration from the mean until it moves by less than 1e-6 of its norm.
pub(crate) fn geometric_median(rows: &[f32], width: usize) -> Vec<f32> {
    let mut median = weighted_mean(rows, width, |_| 1.0);
    for _ in 0..100 {
        // The floor keeps a row at the median from taking all the weight.
        let next = weighted_mean(rows, width, |row| 1.0 / distance(row, &median).max(1e-12));
        let moved = median.iter().zip(&next).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let scale = next.iter().map(|m| m * m).sum::<f64>().sqrt();
        median = next;
        if moved <= 1e-6 * scale {
            break;
        }
    }
    median.into_iter().map(|m| m as f32).collect()
}

fn weighted_mean(rows: &[f32], width: usize, weight: impl Fn(&[f32]) -> f64) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    let mut total = 0.0;
    for row in rows.chunks_exact(width) {
        let w = weight(row);
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += w * f64::from(*x));
        total += w;
    }
    sum.iter_mut().for_each(|sum| *sum /= total);
    sum
}

fn distance(row: &[f32], point: &[f64]) -> f64 {
    row.iter().zip(point).map(|(x, p)| (f64::from(*x) - p).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_mean() {
        assert_eq!(mean(&[1.0, 10.0, 3.0, -2.0], 2), [2.0, 4.0]);
    }

    #[test]
    fn the_median_of_a_triangle_is_its_fermat_point() {
        // Right angle with sides 1: every pair of rows is seen from it at 120 degrees, so it lies on the
        // diagonal at t = (3 - sqrt(3)) / 6.
        let median = geometric_median(&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], 2);
        let t = (3.0 - 3.0_f32.sqrt()) / 6.0;
        assert!((median[0] - t).abs() < 1e-4 && (median[1] - t).abs() < 1e-4, "{median:?} against {t}");
    }

    #[test]
    fn an_outlier_moves_the_mean_but_not_the_median() {
        let mut rows = Vec::new();
        for i in 0..100 {
            rows.extend([(i % 7) as f32, (i % 5) as f32]);
        }
        let before = geometric_median(&rows, 2);
        rows.extend([1e6, 1e6]);
        let after = geometric_median(&rows, 2);
        assert!((before[0] - after[0]).abs() < 0.1 && (before[1] - after[1]).abs() < 0.1);
        assert!(mean(&rows, 2)[0] > 1000.0);
    }
}

//! Checks whether a model on a device computes what the same model computes on the CPU.

use ndarray::{ArrayView2, ArrayView3};

use crate::{Error, ModelPrecision, PrefixModel, SelfCheck};

/// The largest [`SelfCheck::difference`] that counts as rounding. Half precision rounds each factor and
/// result to 11 bits (5e-4), a dozen times a block, and a row that is a small difference of large terms shows
/// it magnified: up to 2e-2 in SmolLM2. float32 has 24 bits, but sums over thousands of terms come in another
/// order. A wrong mask, position or layout is off by more than 0.1.
pub fn tolerance(precision: ModelPrecision) -> f32 {
    match precision {
        ModelPrecision::Full => 1e-3,
        ModelPrecision::Half => 5e-2,
    }
}

/// Runs `model` and `reference` on the same ids `[contexts, length]` and compares every row at every hook.
///
/// Both must have the same hooks; `reference` is the same model on the CPU in float32. Meant for the first
/// batch of a long run: a provider that computes something else is found before it has cost a night.
///
/// # Errors
/// When they are farther apart than [`tolerance`] of the model's precision, or either fails to run.
pub fn self_check(
    model: &PrefixModel,
    reference: &PrefixModel,
    ids: ArrayView2<'_, i64>,
) -> Result<SelfCheck, Error> {
    if model.names() != reference.names() {
        return Err(Error::Input("the model and its reference have different hooks".to_string()));
    }
    let (found, expected) = (model.run(ids)?, reference.run(ids)?);
    let half = (0..model.names().len()).any(|hook| found.half_rows(hook).is_some());
    let tolerance = tolerance(if half { ModelPrecision::Half } else { ModelPrecision::Full });
    let mut worst = SelfCheck { hook: String::new(), difference: 0.0, tolerance };
    for (hook, name) in model.names().iter().enumerate() {
        let difference = farthest_row(found.rows(hook).view(), expected.rows(hook).view());
        if worst.hook.is_empty() || difference > worst.difference {
            worst = SelfCheck { hook: name.clone(), difference, tolerance };
        }
    }
    if worst.difference <= tolerance {
        return Ok(worst);
    }
    Err(Error::SelfCheck { provider: model.provider().to_string(), check: worst })
}

/// The largest difference of a row; infinite where one is not a number.
fn farthest_row(found: ArrayView3<'_, f32>, expected: ArrayView3<'_, f32>) -> f32 {
    if found.dim() != expected.dim() {
        return f32::INFINITY;
    }
    let mut norms: Vec<f32> = expected.rows().into_iter().map(|row| norm(row.iter().copied())).collect();
    let rows = found.rows().into_iter().zip(expected.rows());
    let differences: Vec<f32> = rows.map(|(a, b)| norm(a.iter().zip(&b).map(|(a, b)| a - b))).collect();
    let row_norms = norms.clone();
    let middle = norms.len() / 2;
    let median = *norms.select_nth_unstable_by(middle, f32::total_cmp).1;
    let relative = differences.iter().zip(row_norms).map(|(difference, norm)| {
        let relative = difference / norm.max(median).max(f32::MIN_POSITIVE);
        if relative.is_nan() { f32::INFINITY } else { relative }
    });
    relative.fold(0.0, f32::max)
}

fn norm(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr3;

    #[test]
    fn differences_are_relative_to_the_norm_or_the_median_norm() {
        let expected = arr3(&[[[3.0, 4.0], [0.0, 0.01], [300.0, 400.0]]]);
        let mut found = expected.clone();
        found[[0, 2, 0]] += 5.0; // of 500
        assert!((farthest_row(found.view(), expected.view()) - 0.01).abs() < 1e-6);
        found[[0, 1, 1]] += 0.25; // of the median norm, 5
        assert!((farthest_row(found.view(), expected.view()) - 0.05).abs() < 1e-6);
        assert_eq!(farthest_row(expected.view(), expected.view()), 0.0);
    }

    #[test]
    fn what_is_not_a_number_is_infinitely_far() {
        let ones = arr3(&[[[1.0, 1.0]]]);
        for found in [arr3(&[[[f32::NAN, 1.0]]]), arr3(&[[[f32::INFINITY, 1.0]]]), arr3(&[[[1.0]]])] {
            assert_eq!(farthest_row(found.view(), ones.view()), f32::INFINITY);
        }
    }
}

//! The losses over dead features.

use super::forward::{Forward, encoder_input, rank_factors};
use super::mse::mse_denominators;
use super::parameters::{Batch, Parameters};
use super::vectors::{dot, norm};
use crate::dead::DeadLossKind;
use crate::spec::StepSpec;

/// The loss over the features that are `dead` [F], and its gradient.
pub fn dead_loss(
    spec: &StepSpec,
    weights: &Parameters,
    batch: Batch<'_>,
    forward: &Forward,
    dead: &[bool],
) -> (f64, Parameters) {
    let Batch { input: x, target } = batch;
    let (d, f) = (spec.width, spec.features);
    let rows = x.len() / d;
    let mut gradient = weights.zeros_like();
    let features: Vec<usize> = (0..f).filter(|j| dead[*j]).collect();
    let Some(loss) = spec.dead.filter(|_| !features.is_empty()) else { return (0.0, gradient) };
    let input = encoder_input(spec, weights, x);
    let z = |i: usize, j: usize| forward.preactivations[i * f + j];
    // dL/dz of a pair reaches the encoder and no further.
    let add_encoder = |gradient: &mut Parameters, i: usize, j: usize, dz: f64| {
        gradient.b_enc[j] += dz;
        (0..d).for_each(|k| gradient.w_enc[k * f + j] += dz * input[i * d + k]);
        if spec.pre_bias {
            (0..d).for_each(|k| gradient.b_dec[k] -= dz * weights.w_enc[k * f + j]);
        }
    };
    if let DeadLossKind::PreActivation { coefficient } = loss.kind {
        let scale = coefficient / rows as f64;
        let mut value = 0.0;
        for &j in &features {
            let norm = norm(weights.decoder_row(j, d));
            for i in 0..rows {
                let missing = (weights.threshold[j] - z(i, j)).max(0.0);
                value += scale * missing * norm;
                if missing > 0.0 {
                    gradient.threshold[j] += scale * norm;
                    add_encoder(&mut gradient, i, j, -scale * norm);
                    let by_norm = if norm > 0.0 { scale * missing / norm } else { 0.0 };
                    (0..d).for_each(|k| gradient.w_dec[j * d + k] += by_norm * weights.w_dec[j * d + k]);
                }
            }
        }
        return (value, gradient);
    }
    let residual: Vec<f64> = target.iter().zip(&forward.reconstruction).map(|(y, xhat)| y - xhat).collect();
    let mean: Vec<f64> =
        (0..d).map(|k| (0..rows).map(|i| residual[i * d + k]).sum::<f64>() / rows as f64).collect();
    let deviation = |i: usize| norm(&(0..d).map(|k| residual[i * d + k] - mean[k]).collect::<Vec<_>>());
    let spread: f64 = (0..rows).map(|i| deviation(i).powi(2)).sum();
    let denominators = mse_denominators(spec.loss.mse, d, target);
    let factors = rank_factors(spec, weights);
    let mut value = 0.0;
    for i in 0..rows {
        // What each dead feature contributes, and how that follows z.
        let mut a: Vec<(usize, f64, f64)> = match loss.kind {
            DeadLossKind::Ghost => features.iter().map(|&j| (j, z(i, j).exp(), z(i, j).exp())).collect(),
            DeadLossKind::AuxK { .. } => {
                features.iter().map(|&j| (j, z(i, j).max(0.0), f64::from(z(i, j) > 0.0))).collect()
            }
            _ => features.iter().map(|&j| (j, z(i, j), 1.0)).collect(),
        };
        if let DeadLossKind::AuxK { k, .. } | DeadLossKind::AuxKSum { k, .. } = loss.kind {
            a.sort_by(|left, right| (factors[right.0] * right.1).total_cmp(&(factors[left.0] * left.1)));
            a.truncate(k);
        }
        let mut e = vec![0.0; d];
        for (j, a, _) in &a {
            (0..d).for_each(|k| e[k] += a * weights.w_dec[j * d + k]);
        }
        let r = &residual[i * d..][..d];
        // The row's part of the loss, and dL/de.
        let h: Vec<f64> = match loss.kind {
            DeadLossKind::Ghost => {
                let scale = norm(r) / (1e-6 + 2.0 * norm(&e));
                let deviation = deviation(i);
                let parts = e.iter().zip(r).map(|(e, r)| {
                    let error = (scale * e - r).powi(2) / deviation;
                    let rescaled = r * r / denominators[i] / (error + 1e-6);
                    value += rescaled * error;
                    rescaled * 2.0 * (scale * e - r) / deviation * scale
                });
                parts.collect()
            }
            DeadLossKind::AuxK { coefficient, .. } | DeadLossKind::AuxKSum { coefficient, .. } => {
                let scale = match loss.kind {
                    DeadLossKind::AuxKSum { k, .. } => {
                        (features.len() as f64 / k as f64).min(1.0) / rows as f64
                    }
                    _ if spread > 0.0 => 1.0 / spread,
                    _ => 0.0,
                };
                let errors = e.iter().zip(r).map(|(e, r)| e - r);
                value += coefficient * scale * errors.clone().map(|error| error * error).sum::<f64>();
                errors.map(|error| coefficient * scale * 2.0 * error).collect()
            }
            DeadLossKind::PreActivation { .. } => unreachable!("it has returned"),
        };
        for (j, a, by_z) in a {
            (0..d).for_each(|k| gradient.w_dec[j * d + k] += a * h[k]);
            add_encoder(&mut gradient, i, j, by_z * dot(&h, weights.decoder_row(j, d)));
        }
    }
    (value, gradient)
}

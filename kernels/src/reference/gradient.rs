//! The gradient of the loss, and what is done to it and to the decoder.

use super::forward::{Forward, encoder_input, mean_active};
use super::mse::mse_gradient;
use super::parameters::{Batch, Parameters};
use super::penalty::{penalty_by_count, penalty_derivative, penalty_weights, scheduled};
use super::vectors::{dot, norm};
use crate::activation::Activation;
use crate::spec::{CLIP_FLOOR, DecoderNorm, Schedule, StepSpec};

/// The gradient of [`surrogate_loss`](super::surrogate_loss) for all weights, written out by hand; with JumpReLU its pseudo-derivatives.
pub fn gradients(
    spec: &StepSpec,
    schedule: &Schedule,
    weights: &Parameters,
    batch: Batch<'_>,
    forward: &Forward,
    slopes: &[f64],
) -> Parameters {
    let Batch { input: x, target } = batch;
    let (d, f) = (spec.width, spec.features);
    let rows = x.len() / d;
    let (kind, coefficient, epsilon) = scheduled(spec, schedule);
    let factors = penalty_weights(spec, weights);
    let input = encoder_input(spec, weights, x);
    // For each group of features the sum over the prefixes that it is part of.
    let mut g: Vec<Vec<f64>> = Vec::new();
    for xhat in forward.prefixes.iter().rev() {
        let mut of_group = mse_gradient(spec.loss.mse, d, target, xhat);
        of_group.iter_mut().for_each(|g| *g *= spec.prefixes.weight());
        if let Some(wider) = g.last() {
            of_group.iter_mut().zip(wider).for_each(|(g, wider)| *g += wider);
        }
        g.push(of_group);
    }
    g.reverse();
    let group_of =
        |feature: usize| spec.prefixes.ends(f).position(|end| feature < end).expect("the last end is F");
    let mut gradient = weights.zeros_like();
    let mean = mean_active(spec, forward);
    for i in 0..rows {
        for k in 0..d {
            gradient.b_dec[k] += g[0][i * d + k];
            let row = gradient.skip.chunks_exact_mut(d).nth(k).into_iter().flatten();
            row.zip(&x[i * d..]).for_each(|(gradient, x)| *gradient += g[0][i * d + k] * x);
        }
        let active = forward.activations[i * f..][..f].iter().filter(|a| **a > 0.0).count();
        let by_count = coefficient * penalty_by_count(kind, active, mean) / rows as f64;
        for j in 0..f {
            let g_i = &g[group_of(j)][i * d..][..d];
            let a = forward.activations[i * f + j];
            // Those that a threshold's pseudo-derivatives see take part though they are 0: that of a, and that of the count.
            let jump = match spec.activation {
                Activation::JumpRelu { bandwidth, to_input } => {
                    let (z, width) = (forward.preactivations[i * f + j], f64::from(bandwidth));
                    let near = |seen: f64| (seen - weights.threshold[j]).abs() < width / 2.0;
                    let (near, counted) = (near(z), near(if kind.sees_activations() { a } else { z }));
                    let rectangle = |inside: bool| f64::from(inside) / width;
                    (near || counted).then_some((rectangle(near), rectangle(counted), to_input))
                }
                _ => None,
            };
            if a <= 0.0 && jump.is_none() {
                continue;
            }
            let slope = coefficient * penalty_derivative(kind, a * factors[j]) / rows as f64;
            let frequency = slopes[j] * epsilon / (a + epsilon).powi(2) / rows as f64;
            let da = dot(g_i, weights.decoder_row(j, d)) + slope * factors[j] + frequency;
            let by_threshold =
                jump.map_or(0.0, |(near, counted, _)| near * weights.threshold[j] * da + counted * by_count);
            if jump.is_some() {
                gradient.threshold[j] -= by_threshold;
            }
            let to_input = jump.is_some_and(|(.., to_input)| to_input);
            // From here on dL/dz.
            let da = if a > 0.0 { da } else { 0.0 } + if to_input { by_threshold } else { 0.0 };
            for k in 0..d {
                gradient.w_dec[j * d + k] += a * g_i[k];
                if spec.loss.weight_by_decoder_norm && factors[j] > 0.0 {
                    gradient.w_dec[j * d + k] += slope * a * weights.w_dec[j * d + k] / factors[j];
                }
                gradient.w_enc[k * f + j] += da * input[i * d + k];
                if spec.pre_bias {
                    gradient.b_dec[k] -= da * weights.w_enc[k * f + j];
                }
            }
            gradient.b_enc[j] += da;
        }
    }
    gradient
}

/// Removes from each row of dW_dec its component along W_dec_j (not for [`DecoderNorm::Free`]).
pub fn project_decoder_gradient(spec: &StepSpec, weights: &Parameters, gradient: &mut Parameters) {
    if spec.decoder_norm == DecoderNorm::Free {
        return;
    }
    for (row, gradient) in
        weights.w_dec.chunks_exact(spec.width).zip(gradient.w_dec.chunks_exact_mut(spec.width))
    {
        let squared = dot(row, row);
        let along = if squared > 0.0 { dot(row, gradient) / squared } else { 0.0 };
        gradient.iter_mut().zip(row).for_each(|(g, w)| *g -= along * w);
    }
}

/// Scales the gradient of all weights down to the norm that it is allowed, as torch's `clip_grad_norm_` does.
pub fn clip_gradient(spec: &StepSpec, gradient: &mut Parameters) {
    if let Some(most) = spec.gradient_clip {
        let scale = (most / (norm(&gradient.tensors().concat()) + CLIP_FLOOR)).min(1.0);
        gradient.tensors_mut().into_iter().flatten().for_each(|g| *g *= scale);
    }
}

/// Normalises the decoder's rows as [`DecoderNorm`] says; a row of zeros stays one.
pub fn normalise_decoder(spec: &StepSpec, weights: &mut Parameters) {
    if spec.decoder_norm == DecoderNorm::Free {
        return;
    }
    for j in 0..spec.features {
        let row = &mut weights.w_dec[j * spec.width..][..spec.width];
        let removed = norm(row);
        if removed == 0.0 {
            continue;
        }
        row.iter_mut().for_each(|w| *w /= removed);
        if spec.decoder_norm == DecoderNorm::Tied {
            (0..spec.width).for_each(|k| weights.w_enc[k * spec.features + j] *= removed);
            weights.b_enc[j] *= removed;
            weights.threshold.get_mut(j).into_iter().for_each(|threshold| *threshold *= removed);
        }
    }
}

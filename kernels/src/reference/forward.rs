//! The forward pass.

use super::parameters::Parameters;
use super::vectors::{dot, norm};
use crate::activation::Activation;
use crate::spec::StepSpec;

/// What the forward pass computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// z = X W_enc + b_enc, [B,F].
    pub preactivations: Vec<f64>,
    /// a, [B,F].
    pub activations: Vec<f64>,
    /// x̂ = a W_dec + b_dec, with a skip connection + x W_skipᵀ, [B,d].
    pub reconstruction: Vec<f64>,
    /// x̂ of each prefix of the features, all of them last: [B,d] each.
    pub prefixes: Vec<Vec<f64>>,
}

/// The encoder's input: X, or X − b_dec with the pre-bias. [B,d]
pub fn encoder_input(spec: &StepSpec, weights: &Parameters, x: &[f64]) -> Vec<f64> {
    let subtracted = if spec.pre_bias { 1.0 } else { 0.0 };
    x.iter().enumerate().map(|(at, v)| v - subtracted * weights.b_dec[at % spec.width]).collect()
}

/// max(z, 0) of the `count` largest of z [B,F], the lower feature and then the lower row where two are equal; 0 elsewhere.
fn largest(z: &[f64], features: usize, count: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by_key(|at| (at % features, at / features));
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
    let mut a = vec![0.0; z.len()];
    order.into_iter().take(count).for_each(|at| a[at] = z[at].max(0.0));
    a
}

/// a [B,F] in training, from z [B,F]; `threshold` [F] is JumpReLU's.
pub fn select(activation: Activation, z: &[f64], features: usize, threshold: &[f64]) -> Vec<f64> {
    match activation {
        Activation::Relu => z.iter().map(|z| z.max(0.0)).collect(),
        Activation::TopK { k } => z.chunks_exact(features).flat_map(|z| largest(z, features, k)).collect(),
        Activation::BatchTopK { k, .. } => largest(z, features, k * z.len() / features),
        Activation::JumpRelu { .. } => {
            let above = |(at, z): (usize, &f64)| if *z > threshold[at % features] { *z } else { 0.0 };
            z.iter().enumerate().map(above).collect()
        }
    }
}

/// What z is multiplied by where features are ranked, [F]: ‖W_dec_j‖, or 1.
pub fn rank_factors(spec: &StepSpec, weights: &Parameters) -> Vec<f64> {
    let factor = |j| if spec.rank_by_decoder_norm { norm(weights.decoder_row(j, spec.width)) } else { 1.0 };
    (0..spec.features).map(factor).collect()
}

/// z = X W_enc + b_enc, a = [`select`] (z), of z·‖W_dec_j‖ and then divided by ‖W_dec_j‖ where features are ranked so, x̂ = a W_dec + b_dec, with a skip connection + x W_skipᵀ.
pub fn forward(spec: &StepSpec, weights: &Parameters, x: &[f64]) -> Forward {
    let (d, f) = (spec.width, spec.features);
    let rows = x.len() / d;
    let input = encoder_input(spec, weights, x);
    let mut preactivations = vec![0.0; rows * f];
    for i in 0..rows {
        let z = &mut preactivations[i * f..][..f];
        z.copy_from_slice(&weights.b_enc);
        for k in 0..d {
            for j in 0..f {
                z[j] += input[i * d + k] * weights.w_enc[k * f + j];
            }
        }
    }
    let factors = rank_factors(spec, weights);
    let ranked: Vec<f64> = preactivations.iter().enumerate().map(|(at, z)| z * factors[at % f]).collect();
    let mut activations = select(spec.activation, &ranked, f, &weights.threshold);
    // A factor of 0 leaves nothing above 0.
    activations.iter_mut().enumerate().filter(|(_, a)| **a > 0.0).for_each(|(at, a)| *a /= factors[at % f]);
    let decode = |end: usize| {
        let mut xhat = weights.b_dec.repeat(rows);
        let of_row = activations.chunks_exact(f).zip(x.chunks_exact(d));
        for (xhat, (a, x)) in xhat.chunks_exact_mut(d).zip(of_row) {
            xhat.iter_mut().zip(weights.skip.chunks_exact(d)).for_each(|(xhat, row)| *xhat += dot(row, x));
            for j in 0..end {
                for k in 0..d {
                    xhat[k] += a[j] * weights.w_dec[j * d + k];
                }
            }
        }
        xhat
    };
    let prefixes: Vec<Vec<f64>> = spec.prefixes.ends(f).map(decode).collect();
    let reconstruction = prefixes.last().expect("all features are the last prefix").clone();
    Forward { preactivations, activations, reconstruction, prefixes }
}

/// L̄0: how many features are active in a row, on average.
pub fn mean_active(spec: &StepSpec, forward: &Forward) -> f64 {
    let active = forward.activations.iter().filter(|a| **a > 0.0).count();
    (active * spec.features) as f64 / forward.activations.len() as f64
}

//! `update`: projects the decoder's gradient, applies Adam and the decoder norm, in one visit of each of a feature's rows.
//!
//! Cost: 24 bytes of memory traffic per weight (weight and two moments, read and written).

use crate::spec::{AdamStep, DecoderNorm};

use super::blocks::{FeatureBlock, Trained};
use super::isa::{Isa, madd, per_isa};
use super::vector::dot;

/// Moments smaller than this become 0. Their effect on a weight is below lr·1e-22 (ε = 1e-8), and
/// without it the moments of features that stopped firing would end as subnormal numbers, which
/// some CPUs compute with a hundred times slower.
const SMALLEST_FIRST: f32 = 1e-30;
/// The same for second moments: the root of it, 1e-18, vanishes beside ε.
const SMALLEST_SECOND: f32 = 1e-36;

per_isa! {
    /// One Adam step of `weights` with the gradient `g`; all slices have one length.
    pub fn adam(step: &AdamStep, weights: &mut [f32], first: &mut [f32], second: &mut [f32], g: &[f32]) {
        let length = weights.len();
        let (first, second, g) = (&mut first[..length], &mut second[..length], &g[..length]);
        for at in 0..length {
            let m = madd::<FMA>(step.rest1, g[at], step.beta1 * first[at]);
            let v = madd::<FMA>(step.rest2 * g[at], g[at], step.beta2 * second[at]);
            let m = if m.abs() < SMALLEST_FIRST { 0.0 } else { m };
            let v = if v < SMALLEST_SECOND { 0.0 } else { v };
            let root = madd::<FMA>(v.sqrt(), step.root_correction, step.epsilon);
            weights[at] -= step.rate * m / root;
            first[at] = m;
            second[at] = v;
        }
    }
}

per_isa! {
    /// g −= scale·row.
    fn subtract_scaled(g: &mut [f32], scale: f32, row: &[f32]) {
        for (g, w) in g.iter_mut().zip(row) {
            *g = madd::<FMA>(-scale, *w, *g);
        }
    }
}

per_isa! {
    /// row *= scale.
    fn multiply(row: &mut [f32], scale: f32) {
        row.iter_mut().for_each(|w| *w *= scale);
    }
}

impl Trained<'_> {
    /// One Adam step with the gradient `g`.
    pub(crate) fn adam(&mut self, isa: Isa, step: &AdamStep, g: &[f32]) {
        adam(isa, step, self.weights, self.first, self.second, g);
    }
}

/// Removes from dW_dec_j [d] of feature `at` of the block its component along W_dec_j, unless the norm is free.
pub(crate) fn project(
    isa: Isa,
    norm: DecoderNorm,
    block: &FeatureBlock<'_>,
    at: usize,
    gradient: &mut [f32],
) {
    if norm != DecoderNorm::Free {
        let row = &block.decoder.weights[at * gradient.len()..][..gradient.len()];
        let squared = dot(isa, row, row);
        if squared > 0.0 {
            let along = dot(isa, row, gradient) / squared;
            subtract_scaled(isa, gradient, along, row);
        }
    }
}

/// Updates the decoder of feature `at` of the block from dW_dec_j [d], which is projected. Returns the norm
/// that was divided out of W_dec_j (1 if none was), NaN if the new weights are not finite.
pub(crate) fn update_decoder(
    isa: Isa,
    norm: DecoderNorm,
    step: &AdamStep,
    block: &mut FeatureBlock<'_>,
    at: usize,
    gradient: &[f32],
) -> f32 {
    let mut decoder = block.decoder.row(at, gradient.len());
    decoder.adam(isa, step, gradient);
    let squared = dot(isa, decoder.weights, decoder.weights);
    if !squared.is_finite() {
        return f32::NAN;
    }
    if norm == DecoderNorm::Free || squared == 0.0 {
        return 1.0;
    }
    let removed = squared.sqrt();
    multiply(isa, decoder.weights, 1.0 / removed);
    removed
}

/// The gradient of what belongs to a feature's encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderGradient<'a> {
    /// dW_enc_j, [d].
    pub(crate) weights: &'a [f32],
    /// db_enc_j.
    pub(crate) bias: f32,
    /// dθ_j; of no interest without thresholds.
    pub(crate) threshold: f32,
}

/// Updates the encoder of feature `at` of the block, its bias and its threshold; `removed` is the norm
/// that was divided out of W_dec_j. Returns whether the new weights are finite.
pub(crate) fn update_encoder(
    isa: Isa,
    norm: DecoderNorm,
    step: &AdamStep,
    block: &mut FeatureBlock<'_>,
    at: usize,
    gradient: EncoderGradient<'_>,
    removed: f32,
) -> bool {
    let mut encoder = block.encoder.row(at, gradient.weights.len());
    let mut bias = block.encoder_bias.row(at, 1);
    encoder.adam(isa, step, gradient.weights);
    bias.adam(isa, step, &[gradient.bias]);
    let mut threshold = block.threshold.as_mut().map(|threshold| threshold.row(at, 1));
    if let Some(threshold) = &mut threshold {
        threshold.adam(isa, step, &[gradient.threshold]);
        // A negative one would let negative z through. NaN stays NaN, for the check below.
        let value = &mut threshold.weights[0];
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
    if norm == DecoderNorm::Tied {
        multiply(isa, encoder.weights, removed);
        bias.weights[0] *= removed;
        threshold.as_mut().into_iter().for_each(|threshold| threshold.weights[0] *= removed);
    }
    let others = bias.weights[0] + threshold.map_or(0.0, |threshold| threshold.weights[0]);
    (dot(isa, encoder.weights, encoder.weights) + others).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Adam;

    #[test]
    fn adam_steps_by_the_learning_rate_against_the_gradient() {
        for isa in Isa::available() {
            let (mut w, mut m, mut v) = ([1.0, 1.0, 1.0], [0.0; 3], [0.0; 3]);
            let step = AdamStep::new(&Adam::default(), 0.1, 1);
            adam(isa, &step, &mut w, &mut m, &mut v, &[3.0, -1e-3, 0.0]);
            assert!((w[0] - 0.9).abs() < 1e-6 && (w[1] - 1.1).abs() < 1e-5 && w[2] == 1.0);
            assert!((m[0] - 0.3).abs() < 1e-6 && (v[0] - 0.009).abs() < 1e-7);
        }
    }

    #[test]
    fn moments_of_a_silent_weight_end_at_zero_not_subnormal() {
        let (mut w, mut m, mut v) = ([1.0], [1e-6], [1e-12]);
        for t in 1..=100_000 {
            let step = AdamStep::new(&Adam::default(), 1e-3, t);
            adam(Isa::detect(), &step, &mut w, &mut m, &mut v, &[0.0]);
            assert!(m[0] == 0.0 || m[0].is_normal());
            assert!(v[0] == 0.0 || v[0].is_normal());
        }
        assert_eq!((m, v), ([0.0], [0.0]));
    }
}

//! Every formula in float64, dense, as the definition. It is slow on purpose: nothing here is arranged for speed, and
//! nothing else in the project decides what is right.
//!
//! Shapes are the public ones: X [B,d], W_enc [d,F], b_enc [F], W_dec [F,d], b_dec [d].

use crate::activation::Activation;
use crate::dead::DeadLossKind;
use crate::loss::{LossSpec, Mse, Penalty};
use crate::spec::{CLIP_FLOOR, DecoderNorm, Schedule, StepSpec};
use crate::stats::{FREQUENCY_FLOOR, log10_frequency};

/// An autoencoder's weights, or anything of their shapes (gradients, Adam's moments).
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// W_enc, [d,F].
    pub w_enc: Vec<f64>,
    /// b_enc, [F].
    pub b_enc: Vec<f64>,
    /// W_dec, [F,d].
    pub w_dec: Vec<f64>,
    /// b_dec, [d].
    pub b_dec: Vec<f64>,
    /// θ of JumpReLU, [F]; empty without it.
    pub threshold: Vec<f64>,
    /// W_skip, [d,d], row k for output k; empty without it.
    pub skip: Vec<f64>,
}

/// What a step reads.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// What the encoder reads, [B,d].
    pub input: &'a [f64],
    /// What x̂ is compared with, [B,d].
    pub target: &'a [f64],
}

impl<'a> From<&'a [f64]> for Batch<'a> {
    /// Rows that are to be reconstructed themselves.
    fn from(rows: &'a [f64]) -> Batch<'a> {
        Batch { input: rows, target: rows }
    }
}

impl Parameters {
    /// Zeros in the same shapes.
    pub fn zeros_like(&self) -> Parameters {
        let mut zeros = self.clone();
        zeros.tensors_mut().into_iter().for_each(|tensor| tensor.fill(0.0));
        zeros
    }

    /// The tensors, in the order W_enc, b_enc, W_dec, b_dec, θ, W_skip.
    pub fn tensors(&self) -> [&[f64]; 6] {
        [&self.w_enc, &self.b_enc, &self.w_dec, &self.b_dec, &self.threshold, &self.skip]
    }

    /// The tensors, in the order W_enc, b_enc, W_dec, b_dec, θ, W_skip.
    pub fn tensors_mut(&mut self) -> [&mut Vec<f64>; 6] {
        let Parameters { w_enc, b_enc, w_dec, b_dec, threshold, skip } = self;
        [w_enc, b_enc, w_dec, b_dec, threshold, skip]
    }

    fn decoder_row(&self, feature: usize, width: usize) -> &[f64] {
        &self.w_dec[feature * width..][..width]
    }
}

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

/// The terms of a loss, each with its coefficient, and their sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The reconstruction term.
    pub mse: f64,
    /// The sparsity penalty (for `approx-l0` with the true L0).
    pub penalty: f64,
    /// The min-sparsity term.
    pub min_sparsity: f64,
    /// The max-sparsity term.
    pub max_sparsity: f64,
    /// The terms of the mean density and of the mean logarithmic density.
    pub density: f64,
    /// The term for dead features.
    pub dead: f64,
}

impl Loss {
    /// The sum of all terms.
    pub fn total(&self) -> f64 {
        self.mse + self.penalty + self.min_sparsity + self.max_sparsity + self.density + self.dead
    }
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
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

/// p(a), the function whose derivative trains: for `approx-l0` a/(a+ε), not the count. 0 at a ≤ 0.
pub fn penalty(kind: Penalty, a: f64) -> f64 {
    if a <= 0.0 {
        return 0.0;
    }
    match kind {
        Penalty::None => 0.0,
        Penalty::ApproxL0 { epsilon } => a / (a + f64::from(epsilon)),
        Penalty::L1 => a,
        Penalty::Tanh { scale } => (f64::from(scale) * a).tanh(),
        Penalty::Log { epsilon } => (a / f64::from(epsilon)).ln_1p(),
        Penalty::Step => 1.0,
        Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => 0.0,
    }
}

/// The value that is logged for a row: Σ_j p(a), except that `approx-l0` counts a > 0. 0 where it is one of the batch.
pub fn logged_penalty(kind: Penalty, a: impl Iterator<Item = f64>) -> f64 {
    match kind {
        Penalty::ApproxL0 { .. } | Penalty::Step => a.filter(|a| *a > 0.0).count() as f64,
        Penalty::MeanQuadratic { .. } => 0.0,
        Penalty::Quadratic { target } => {
            let count = a.filter(|a| *a > 0.0).count() as f64;
            2.0 / f64::from(target) * (count - f64::from(target)).powi(2)
        }
        other => a.map(|a| penalty(other, a)).sum(),
    }
}

/// The value that is logged for a batch beside those of its rows; `mean` is L̄0.
pub fn logged_penalty_of_mean(kind: Penalty, mean: f64) -> f64 {
    match kind {
        Penalty::MeanQuadratic { target } => (mean / f64::from(target) - 1.0).powi(2),
        _ => 0.0,
    }
}

/// The derivative of the sum over the rows by how many features are active in a row; `mean` is L̄0.
pub fn penalty_by_count(kind: Penalty, active: usize, mean: f64) -> f64 {
    match kind {
        Penalty::Step => 1.0,
        Penalty::Quadratic { target } => 4.0 / f64::from(target) * (active as f64 - f64::from(target)),
        Penalty::MeanQuadratic { target } => 2.0 / f64::from(target) * (mean / f64::from(target) - 1.0),
        _ => 0.0,
    }
}

/// p'(a) for a ≥ 0, at 0 that from the right.
pub fn penalty_derivative(kind: Penalty, a: f64) -> f64 {
    match kind {
        Penalty::None | Penalty::Step | Penalty::Quadratic { .. } | Penalty::MeanQuadratic { .. } => 0.0,
        Penalty::ApproxL0 { epsilon } => f64::from(epsilon) / (a + f64::from(epsilon)).powi(2),
        Penalty::L1 => 1.0,
        Penalty::Tanh { scale } => {
            let k = f64::from(scale);
            k * (1.0 - (k * a).tanh().powi(2))
        }
        Penalty::Log { epsilon } => 1.0 / (a + f64::from(epsilon)),
    }
}

/// The firing fractions of the last n batches and the running frequency s_j that follows from them.
#[derive(Debug, Clone)]
pub struct FrequencyWindow {
    length: usize,
    batches: std::collections::VecDeque<Vec<f64>>,
}

impl FrequencyWindow {
    /// An empty window of n = `length` batches.
    pub fn new(length: usize) -> FrequencyWindow {
        FrequencyWindow { length, batches: std::collections::VecDeque::new() }
    }

    /// Adds a batch's activations [B,F] and returns s_j [F]: the mean of f_t,j over the batches t of
    /// the window, the new one included, with |log10 mean_j f_t,j − log10 mean_j f_now,j| < 0.5.
    pub fn push(&mut self, features: usize, activations: &[f64]) -> Vec<f64> {
        let rows = activations.len() / features;
        let fractions = (0..features)
            .map(|j| (0..rows).filter(|i| activations[i * features + j] > 0.0).count() as f64 / rows as f64)
            .collect();
        self.batches.push_back(fractions);
        if self.batches.len() > self.length {
            self.batches.pop_front();
        }
        let level = |batch: &Vec<f64>| (batch.iter().sum::<f64>() / features as f64).log10();
        let newest = self.batches.len() - 1;
        let now = level(&self.batches[newest]);
        let counted: Vec<&Vec<f64>> = self
            .batches
            .iter()
            .enumerate()
            .filter(|(t, batch)| *t == newest || (level(batch) - now).abs() < 0.5)
            .map(|(_, batch)| batch)
            .collect();
        (0..features)
            .map(|j| counted.iter().map(|batch| batch[j]).sum::<f64>() / counted.len() as f64)
            .collect()
    }
}

/// The terms of the mean density and of the mean logarithmic density at the running frequencies s [F].
pub fn density_penalties(loss: &LossSpec, frequencies: &[f64]) -> f64 {
    let features = frequencies.len() as f64;
    let (sum, logs) =
        frequencies.iter().fold((0.0, 0.0), |(sum, logs), s| (sum + s, logs + log10_frequency(*s)));
    (loss.mean_density * sum + loss.log_density * logs) / features
}

/// The min- and max-sparsity terms at the running frequencies s [F].
pub fn frequency_penalties(loss: &LossSpec, frequencies: &[f64]) -> (f64, f64) {
    let log = |s: &f64| log10_frequency(*s);
    let min = loss.min_sparsity.map_or(0.0, |p| {
        p.coefficient * frequencies.iter().map(|s| (p.target.log10() - log(s)).max(0.0)).sum::<f64>()
    });
    let max = loss.max_sparsity.map_or(0.0, |p| {
        p.coefficient * frequencies.iter().map(|s| (log(s) - p.target.log10()).max(0.0)).sum::<f64>()
    });
    (min, max)
}

/// The derivative of all terms of the frequencies by s̃_j at the running frequencies, [F]. The straight-through gradient of
/// feature j is that of this constant times s̃_j = (1/B) Σ_i a_ij/(a_ij + ε).
pub fn frequency_slopes(loss: &LossSpec, frequencies: &[f64]) -> Vec<f64> {
    frequencies
        .iter()
        .map(|s| {
            let s = s + FREQUENCY_FLOOR;
            let too_low = loss.min_sparsity.filter(|p| s < p.target).map_or(0.0, |p| p.coefficient);
            let too_high = loss.max_sparsity.filter(|p| s > p.target).map_or(0.0, |p| p.coefficient);
            let log_density = loss.log_density / frequencies.len() as f64;
            let mean_density = loss.mean_density / frequencies.len() as f64;
            mean_density + (too_high - too_low + log_density) / (std::f64::consts::LN_10 * s)
        })
        .collect()
}

/// ε of the surrogate s̃ and the penalty, under a schedule.
fn scheduled(spec: &StepSpec, schedule: &Schedule) -> (Penalty, f64, f64) {
    let scale = schedule.epsilon_scale as f32;
    let penalty = spec.loss.penalty.with_epsilon_scaled(scale);
    let epsilon = f64::from(spec.loss.frequency_epsilon * scale);
    (penalty, spec.loss.coefficient * schedule.coefficient_scale, epsilon)
}

/// The argument of the penalty: a_ij, or a_ij ‖W_dec_j‖. Returns the factors ‖W_dec_j‖ or 1, [F].
fn penalty_weights(spec: &StepSpec, weights: &Parameters) -> Vec<f64> {
    (0..spec.features)
        .map(
            |j| if spec.loss.weight_by_decoder_norm { norm(weights.decoder_row(j, spec.width)) } else { 1.0 },
        )
        .collect()
}

/// The reconstruction term for `target` [B,d]: that of x̂, or those of all prefixes together.
pub fn reconstruction_loss(spec: &StepSpec, target: &[f64], forward: &Forward) -> f64 {
    let terms = forward.prefixes.iter().map(|xhat| mse(spec.loss.mse, spec.width, target, xhat));
    spec.prefixes.weight() * terms.sum::<f64>()
}

/// L̄0: how many features are active in a row, on average.
pub fn mean_active(spec: &StepSpec, forward: &Forward) -> f64 {
    let active = forward.activations.iter().filter(|a| **a > 0.0).count();
    (active * spec.features) as f64 / forward.activations.len() as f64
}

/// The loss for `target` [B,d] as it is logged, but for dead features. `frequencies` [F] are the running frequencies, this batch included.
pub fn loss(
    spec: &StepSpec,
    schedule: &Schedule,
    weights: &Parameters,
    target: &[f64],
    forward: &Forward,
    frequencies: &[f64],
) -> Loss {
    let rows = (target.len() / spec.width) as f64;
    let (kind, coefficient, _) = scheduled(spec, schedule);
    let factors = penalty_weights(spec, weights);
    let sum: f64 = forward
        .activations
        .chunks_exact(spec.features)
        .map(|a| logged_penalty(kind, a.iter().zip(&factors).map(|(a, factor)| a * factor)))
        .sum();
    let of_mean = logged_penalty_of_mean(kind, mean_active(spec, forward));
    let (min_sparsity, max_sparsity) = frequency_penalties(&spec.loss, frequencies);
    Loss {
        mse: reconstruction_loss(spec, target, forward),
        penalty: coefficient * (sum / rows + of_mean),
        min_sparsity,
        max_sparsity,
        density: density_penalties(&spec.loss, frequencies),
        dead: 0.0,
    }
}

/// The scalar function of the weights whose gradient trains them: the reconstruction term, the
/// smooth penalty, and `slopes`_j · s̃_j in place of the frequency penalties. `slopes` [F] come from
/// [`frequency_slopes`] and count as constants.
pub fn surrogate_loss(
    spec: &StepSpec,
    schedule: &Schedule,
    weights: &Parameters,
    batch: Batch<'_>,
    slopes: &[f64],
) -> f64 {
    let rows = (batch.input.len() / spec.width) as f64;
    let (kind, coefficient, epsilon) = scheduled(spec, schedule);
    let factors = penalty_weights(spec, weights);
    let pass = forward(spec, weights, batch.input);
    let penalties: f64 = pass
        .activations
        .iter()
        .enumerate()
        .map(|(at, a)| {
            let j = at % spec.features;
            coefficient * penalty(kind, a * factors[j]) + slopes[j] * a / (a + epsilon)
        })
        .sum();
    reconstruction_loss(spec, batch.target, &pass) + penalties / rows
}

/// The gradient of [`surrogate_loss`] for all weights, written out by hand; with JumpReLU its pseudo-derivatives.
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

/// A training run in float64: weights, Adam's moments and the frequency window.
#[derive(Debug, Clone)]
pub struct Trainer {
    /// What a step is.
    pub spec: StepSpec,
    /// The weights.
    pub weights: Parameters,
    /// Adam's first moments.
    pub first: Parameters,
    /// Adam's second moments.
    pub second: Parameters,
    /// The frequency window.
    pub window: FrequencyWindow,
    /// Steps since each feature was last active, [F].
    pub steps_since_fired: Vec<u64>,
    /// BatchTopK's θ.
    pub threshold: Option<f64>,
    /// Steps done.
    pub steps: u64,
}

impl Trainer {
    /// A run that has done no step.
    pub fn new(spec: StepSpec, weights: Parameters) -> Trainer {
        let zeros = weights.zeros_like();
        let window = FrequencyWindow::new(spec.sparsity_window);
        let steps_since_fired = vec![0; spec.features];
        let (first, threshold) = (zeros.clone(), None);
        Trainer { spec, weights, first, second: zeros, window, steps_since_fired, threshold, steps: 0 }
    }

    /// One step on a batch: forward, running frequency, loss, backward, projection, clipping, Adam,
    /// decoder norm. Returns the loss before the step.
    pub fn step<'a>(&mut self, batch: impl Into<Batch<'a>>, schedule: &Schedule) -> Loss {
        let (spec, batch) = (&self.spec, batch.into());
        let pass = forward(spec, &self.weights, batch.input);
        let frequencies = self.window.push(spec.features, &pass.activations);
        let mut value = loss(spec, schedule, &self.weights, batch.target, &pass, &frequencies);
        let slopes = frequency_slopes(&spec.loss, &frequencies);
        let mut gradient = gradients(spec, schedule, &self.weights, batch, &pass, &slopes);
        let fires = |j: usize| (0..spec.batch).any(|i| pass.activations[i * spec.features + j] > 0.0);
        let fired: Vec<bool> = (0..spec.features).map(fires).collect();
        if let Some(loss) = &spec.dead {
            let since = self.steps_since_fired.iter().zip(&fired);
            let dead: Vec<bool> = since.map(|(since, fired)| loss.is_dead(*since, *fired)).collect();
            let (term, more) = dead_loss(spec, &self.weights, batch, &pass, &dead);
            value.dead = term;
            for (gradient, more) in gradient.tensors_mut().into_iter().zip(more.tensors()) {
                gradient.iter_mut().zip(more).for_each(|(gradient, more)| *gradient += more);
            }
        }
        project_decoder_gradient(spec, &self.weights, &mut gradient);
        clip_gradient(spec, &mut gradient);
        self.steps += 1;
        if let Activation::BatchTopK { threshold, .. } = spec.activation {
            let factors = rank_factors(spec, &self.weights);
            let ranked = pass.activations.iter().enumerate().map(|(at, a)| a * factors[at % spec.features]);
            let positive = ranked.filter(|a| *a > 0.0).map(|a| a as f32);
            self.threshold = threshold.after(self.steps, self.threshold, positive.reduce(f32::min));
        }
        for (since, fired) in self.steps_since_fired.iter_mut().zip(&fired) {
            *since = if *fired { 0 } else { *since + 1 };
        }
        self.adam(&gradient, schedule.lr);
        normalise_decoder(&self.spec, &mut self.weights);
        value
    }

    fn adam(&mut self, gradient: &Parameters, lr: f64) {
        let adam = &self.spec.adam;
        let correction1 = 1.0 - adam.beta1.powi(self.steps as i32);
        let correction2 = 1.0 - adam.beta2.powi(self.steps as i32);
        let weights = self.weights.tensors_mut().into_iter();
        let moments = self.first.tensors_mut().into_iter().zip(self.second.tensors_mut());
        for ((w, (m, v)), g) in weights.zip(moments).zip(gradient.tensors()) {
            for at in 0..g.len() {
                m[at] = adam.beta1 * m[at] + (1.0 - adam.beta1) * g[at];
                v[at] = adam.beta2 * v[at] + (1.0 - adam.beta2) * g[at] * g[at];
                let root = (v[at] / correction2).sqrt() + adam.epsilon;
                w[at] -= lr * (m[at] / correction1) / root;
            }
        }
        self.weights.threshold.iter_mut().for_each(|threshold| *threshold = threshold.max(0.0));
    }
}

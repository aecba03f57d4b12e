//! The second half of a step, one block of features at a time: gradients from the active pairs (or a dense panel), then the
//! update of the same rows while they are in the cache. Each weight row is read and written once per step. On the sparse
//! path all decoders come first, then all encoders.

use rayon::prelude::*;

use crate::spec::{AdamStep, DecoderNorm, StepSpec};

use super::backward::{decoder_gradient, encoder_gradient};
use super::blocks::{FeatureBlock, TrainedParameters};
use super::dense::{Panel, PanelGradient, backward_panel};
use super::isa::{Isa, per_isa};
use super::pairs::ActivePairs;
use super::sparsity::Sparsity;
use super::update::{update_decoder, update_encoder};
use super::vector::{add_scaled_inline, dot};

/// Features of a task on the sparse path: few, because their numbers of pairs differ by orders of magnitude.
const SPARSE_BLOCK: usize = 32;
/// Most features of a task on the dense path: each task packs all of x and g anew for its products.
const LARGEST_DENSE_BLOCK: usize = 512;
/// Tasks that the dense path should have at least.
const DENSE_TASKS: usize = 32;

/// The activations that a step found.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// The active pairs.
    Sparse(&'a ActivePairs),
    /// All of them, [B,F].
    Dense(&'a [f32]),
}

/// What the second half of a step reads.
#[derive(Debug, Clone, Copy)]
pub struct Train<'a> {
    /// The step's constants.
    pub spec: &'a StepSpec,
    /// The loss's sparsity term.
    pub sparsity: &'a Sparsity,
    /// The optimizer at this step.
    pub adam: &'a AdamStep,
    /// The frequency terms' slopes divided by B, [F].
    pub slopes: &'a [f32],
    /// The encoder's input, [B,d].
    pub x: &'a [f32],
    /// dL/dx̂, [B,d].
    pub g: &'a [f32],
    /// Σ_i g_i, [d].
    pub sum_of_g: &'a [f64],
}

/// Trains all weights. Returns whether they are still finite.
pub fn train(
    isa: Isa,
    input: Train<'_>,
    activations: Activations<'_>,
    parameters: &mut TrainedParameters,
) -> bool {
    let size = match activations {
        Activations::Sparse(_) => SPARSE_BLOCK,
        // A function of the sizes alone, so that no sum depends on the threads.
        Activations::Dense(_) => {
            let fair = input.spec.features.div_ceil(DENSE_TASKS).next_multiple_of(16);
            fair.clamp(64, LARGEST_DENSE_BLOCK)
        }
    };
    let (mut blocks, mut decoder_bias) = parameters.split(size);
    let outcomes: Vec<BlockOutcome> = match activations {
        Activations::Sparse(pairs) => {
            let decoders: Vec<_> =
                blocks.par_iter_mut().map(|block| train_decoders(isa, &input, pairs, block)).collect();
            let encoders = blocks.par_iter_mut().zip(decoders);
            encoders.map(|(block, decoders)| train_encoders(isa, &input, pairs, block, &decoders)).collect()
        }
        Activations::Dense(dense) => {
            blocks.par_iter_mut().map(|block| train_dense_block(isa, &input, dense, block)).collect()
        }
    };

    let mut gradient = input.sum_of_g.to_vec();
    for part in outcomes.iter().filter_map(|outcome| outcome.pre_bias.as_ref()) {
        gradient.iter_mut().zip(part).for_each(|(gradient, part)| *gradient -= f64::from(*part));
    }
    let gradient: Vec<f32> = gradient.into_iter().map(|g| g as f32).collect();
    decoder_bias.adam(isa, input.adam, &gradient);
    let bias_is_finite = decoder_bias.weights.iter().all(|b| b.is_finite());
    bias_is_finite && outcomes.iter().all(|outcome| outcome.finite)
}

/// What a task hands back.
struct BlockOutcome {
    finite: bool,
    /// Σ_j db_enc_j W_enc_j over the block, [d]: what the pre-bias takes from the gradient of b_dec.
    pre_bias: Option<Vec<f32>>,
}

per_isa! {
    /// out += scale·row.
    fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
        add_scaled_inline::<FMA, 1>(out, [scale], [row]);
    }
}

impl Train<'_> {
    fn start(&self) -> BlockOutcome {
        let pre_bias = self.spec.pre_bias.then(|| vec![0.0; self.spec.width]);
        BlockOutcome { finite: true, pre_bias }
    }

    /// ‖W_dec_j‖ if the penalty is weighted by it, otherwise 1.
    fn penalty_norm(&self, isa: Isa, decoder_row: &[f32]) -> f32 {
        if self.spec.loss.weight_by_decoder_norm { dot(isa, decoder_row, decoder_row).sqrt() } else { 1.0 }
    }

    /// Updates a feature's decoder from its gradient; `by_norm` is that of ‖W_dec_j‖. Returns as [`update_decoder`].
    fn finish_decoder(
        &self,
        isa: Isa,
        block: &mut FeatureBlock<'_>,
        at: usize,
        gradient: &mut [f32],
        by_norm: f32,
    ) -> f32 {
        // The norm's gradient points along W_dec_j: the projection would take it out again.
        if self.spec.loss.weight_by_decoder_norm && self.spec.decoder_norm == DecoderNorm::Free {
            let row = &block.decoder.weights[at * self.spec.width..][..self.spec.width];
            let norm = self.penalty_norm(isa, row);
            if norm > 0.0 {
                add_scaled(isa, gradient, by_norm / norm, row);
            }
        }
        update_decoder(isa, self.spec.decoder_norm, self.adam, block, at, gradient)
    }

    /// Updates a feature's encoder from its gradients, its decoder being updated.
    fn finish_encoder(
        &self,
        isa: Isa,
        block: &mut FeatureBlock<'_>,
        at: usize,
        gradients: (&[f32], f32),
        removed: f32,
        outcome: &mut BlockOutcome,
    ) {
        if let Some(sum) = &mut outcome.pre_bias {
            let width = self.spec.width;
            add_scaled(isa, sum, gradients.1, &block.encoder.weights[at * width..][..width]);
        }
        let norm = self.spec.decoder_norm;
        outcome.finite &= removed.is_finite();
        outcome.finite &= update_encoder(isa, norm, self.adam, block, at, gradients, removed);
    }
}

/// What training a block's decoders leaves for its encoders.
struct Decoders {
    /// da of each of the block's pairs, feature by feature.
    by_value: Vec<f32>,
    /// The norm that was divided out of each W_dec_j, NaN if it is not finite.
    removed: Vec<f32>,
}

fn train_decoders(
    isa: Isa,
    input: &Train<'_>,
    pairs: &ActivePairs,
    block: &mut FeatureBlock<'_>,
) -> Decoders {
    let width = input.spec.width;
    let features = block.first..block.first + block.encoder_bias.weights.len();
    let count = pairs.feature_starts[features.end] - pairs.feature_starts[features.start];
    let mut decoders =
        Decoders { by_value: Vec::with_capacity(count), removed: Vec::with_capacity(features.len()) };
    let (mut penalties, mut gradient) = (Vec::new(), vec![0.0; width]);
    for (at, feature) in features.enumerate() {
        let (rows, values) = pairs.of_feature(feature);
        let decoder_row = &block.decoder.weights[at * width..][..width];
        let norm = input.penalty_norm(isa, decoder_row);
        let by_norm = input.sparsity.derivatives(values, norm, input.slopes[feature], &mut penalties);
        gradient.fill(0.0);
        decoder_gradient(isa, rows, values, input.g, decoder_row, &mut penalties, &mut gradient);
        decoders.by_value.extend_from_slice(&penalties);
        decoders.removed.push(input.finish_decoder(isa, block, at, &mut gradient, by_norm));
    }
    decoders
}

fn train_encoders(
    isa: Isa,
    input: &Train<'_>,
    pairs: &ActivePairs,
    block: &mut FeatureBlock<'_>,
    decoders: &Decoders,
) -> BlockOutcome {
    let mut outcome = input.start();
    let mut gradient = vec![0.0; input.spec.width];
    let mut by_value = &decoders.by_value[..];
    for (at, removed) in decoders.removed.iter().enumerate() {
        let (rows, _) = pairs.of_feature(block.first + at);
        let own = by_value.split_off(..rows.len()).expect("as many as the feature has pairs");
        gradient.fill(0.0);
        let bias = encoder_gradient(isa, rows, own, input.x, &mut gradient);
        input.finish_encoder(isa, block, at, (&gradient, bias), *removed, &mut outcome);
    }
    outcome
}

fn train_dense_block(
    isa: Isa,
    input: &Train<'_>,
    activations: &[f32],
    block: &mut FeatureBlock<'_>,
) -> BlockOutcome {
    let width = input.spec.width;
    let mut outcome = input.start();
    let count = block.encoder_bias.weights.len();
    let mut gradient = PanelGradient::default();
    let panel = Panel {
        activations,
        features: (block.first, count),
        total_features: input.spec.features,
        g: input.g,
        x: input.x,
        decoder: block.decoder.weights,
    };
    let norm =
        |feature: usize| input.penalty_norm(isa, &panel.decoder[(feature - block.first) * width..][..width]);
    let slope = |feature: usize| input.slopes[feature];
    backward_panel(isa, panel, input.sparsity, norm, slope, &mut gradient);
    let rows = gradient.encoder.chunks_exact(width).zip(gradient.decoder.chunks_exact_mut(width));
    for (at, (encoder, decoder)) in rows.enumerate() {
        let removed = input.finish_decoder(isa, block, at, decoder, gradient.by_norm[at]);
        let gradients = (encoder, gradient.encoder_bias[at]);
        input.finish_encoder(isa, block, at, gradients, removed, &mut outcome);
    }
    outcome
}

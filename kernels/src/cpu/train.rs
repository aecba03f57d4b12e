//! The second half of a step, one block of features at a time: gradients from the active pairs (or a dense panel), then the
//! update of the same rows while they are in the cache. Each weight row is read and written once per step. On the sparse
//! path all decoders come first, then all encoders. Only where the gradient is clipped all of it waits in memory until its norm is
//! known.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::spec::{AdamStep, CLIP_FLOOR, DecoderNorm, StepSpec};

use super::backward::{add_dots, add_rows, decoder_gradient};
use super::blocks::{FeatureBlock, Trained, TrainedParameters, Waiting};
use super::cache::working_set;
use super::dead::DeadGradient;
use super::dense::{
    BackwardFactors, JumpPanel, PackedFactors, Panel, PanelGradient, backward_panel, skip_gradient,
};
use super::frequent::{Frequent, Visit};
pub use super::groups::GroupGradient;
use super::isa::{Isa, per_isa};
use super::jump::Jump;
use super::products::Products;
use super::select::Selected;
use super::sparsity::Sparsity;
use super::update::{EncoderGradient, project, update_decoder, update_encoder};
use super::vector::{add_scaled_inline, dot};

/// Features of a task on the sparse path: few, because their numbers of pairs differ by orders of magnitude.
const SPARSE_BLOCK: usize = 32;
/// Most features of a task on the dense path: each task packs all of x and g anew for its products.
const LARGEST_DENSE_BLOCK: usize = 512;
/// Rows of W_skip that a task updates.
const SKIP_ROWS: usize = 32;
/// Tasks that the dense path should have at least.
const DENSE_TASKS: usize = 32;

/// The activations that a step found.
#[derive(Debug, Clone, Copy)]
pub enum Activations<'a> {
    /// The active pairs, and those near a threshold.
    Sparse(&'a Selected),
    /// All of them.
    Dense {
        /// a, [B,F].
        activations: &'a [f32],
        /// z [B,F], where a threshold is trained.
        preactivations: Option<&'a [f32]>,
    },
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
    /// How dense products are formed.
    pub products: Products,
    /// The encoder's input, [B,d].
    pub x: &'a [f32],
    /// What the skip connection reads, where there is one: the rows as they are, [B,d].
    pub skipped: &'a [f32],
    /// dL/dx̂, the last group's end being F.
    pub groups: &'a [GroupGradient<'a>],
    /// Σ_i g_i of the first group, [d].
    pub sum_of_g: &'a [f64],
    /// The thresholds' pseudo-derivatives, where they are trained.
    pub jump: Option<Jump<'a>>,
    /// What a loss over dead features adds to their gradients.
    pub dead: Option<&'a DeadGradient>,
}

/// What the features' gradients leave for what belongs to no feature, and for the gradients that wait.
#[derive(Debug, Clone, PartialEq)]
pub struct FeaturesTrained {
    /// Whether the weights trained so far are finite.
    pub finite: bool,
    /// The sum of the squares of the gradients that wait.
    pub squares: f64,
    /// The gradient of b_dec, as far as it is known here, [d]: `start`, and with the pre-bias what the features take from it.
    pub decoder_bias: Vec<f64>,
}

/// Trains all weights. Returns whether they are still finite. `waiting` is memory for the gradients, where they are clipped,
/// `packed` for the factors of dense products.
pub fn train(
    isa: Isa,
    input: Train<'_>,
    activations: Activations<'_>,
    parameters: &mut TrainedParameters,
    waiting: &mut Waiting,
    packed: &mut PackedFactors,
) -> bool {
    let start = input.sum_of_g.to_vec();
    let trained = train_features(isa, &input, activations, start, parameters, waiting, packed);
    let gradient = WholeGradient::new(input.spec, input.groups, input.skipped, &trained, Vec::new());
    trained.finite & train_rest(isa, input.spec, input.adam, &gradient, parameters, waiting)
}

/// Features of a block, a function of the sizes alone, so that no sum depends on the threads.
fn block_size(spec: &StepSpec, activations: Activations<'_>) -> usize {
    match activations {
        Activations::Sparse(_) => SPARSE_BLOCK,
        Activations::Dense { .. } => {
            let fair = spec.features.div_ceil(DENSE_TASKS).next_multiple_of(16);
            fair.clamp(64, LARGEST_DENSE_BLOCK)
        }
    }
}

/// Trains all that belongs to features or, where the gradient is clipped, leaves their gradients in `waiting`. The gradient of b_dec
/// begins with `start`, [d].
pub fn train_features(
    isa: Isa,
    input: &Train<'_>,
    activations: Activations<'_>,
    start: Vec<f64>,
    parameters: &mut TrainedParameters,
    waiting: &mut Waiting,
    packed: &mut PackedFactors,
) -> FeaturesTrained {
    let size = block_size(input.spec, activations);
    let mut frequent = std::mem::take(&mut waiting.frequent);
    let waits = input.spec.gradient_clip.is_some();
    let (mut blocks, _) = parameters.split(size, waits.then_some(&mut *waiting));
    let outcomes: Vec<BlockOutcome> = match activations {
        Activations::Sparse(selected) => {
            sum_decoders(isa, input, selected, &blocks, &mut frequent);
            let train = |block| train_decoders(isa, input, selected, &frequent, block);
            let decoders: Vec<_> = blocks.par_iter_mut().map(train).collect();
            sum_encoders(isa, input, selected, &decoders, &mut frequent);
            let train = |(block, decoders)| train_encoders(isa, input, selected, &frequent, block, decoders);
            blocks.par_iter_mut().zip(&decoders).map(train).collect()
        }
        Activations::Dense { activations, preactivations } => {
            let factors =
                BackwardFactors::new(input.products, input.x, input.spec.width, input.groups, packed);
            let train = |block| train_dense_block(isa, input, activations, preactivations, &factors, block);
            blocks.par_iter_mut().map(train).collect()
        }
    };
    drop(blocks);
    waiting.frequent = frequent;
    let mut decoder_bias = start;
    for part in outcomes.iter().filter_map(|outcome| outcome.pre_bias.as_ref()) {
        decoder_bias.iter_mut().zip(part).for_each(|(gradient, part)| *gradient -= f64::from(*part));
    }
    FeaturesTrained {
        finite: outcomes.iter().all(|outcome| outcome.finite),
        squares: outcomes.iter().map(|outcome| outcome.squares).sum(),
        decoder_bias,
    }
}

/// The gradients of what belongs to no feature, and what all gradients are scaled by.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeGradient {
    decoder_bias: Vec<f32>,
    /// Of W_skip [d,d], empty without one.
    skip: Vec<f32>,
    scale: f32,
}

impl WholeGradient {
    /// From what the gradients of all features leave; `groups` and `skipped` are those of [`Train`], `skip` is memory.
    pub fn new(
        spec: &StepSpec,
        groups: &[GroupGradient<'_>],
        skipped: &[f32],
        of_all: &FeaturesTrained,
        mut skip: Vec<f32>,
    ) -> WholeGradient {
        let mut decoder_bias: Vec<f32> = of_all.decoder_bias.iter().map(|g| *g as f32).collect();
        skip.resize(if spec.skip { spec.width * spec.width } else { 0 }, 0.0);
        if spec.skip {
            skip_gradient(groups[0].g, skipped, spec.width, &mut skip);
        }
        let mut scale = 1.0;
        if let Some(most) = spec.gradient_clip {
            let of_whole: f64 = decoder_bias.iter().chain(&skip).map(|g| f64::from(*g) * f64::from(*g)).sum();
            scale = (most / ((of_all.squares + of_whole).sqrt() + CLIP_FLOOR)).min(1.0) as f32;
            decoder_bias.iter_mut().chain(&mut skip).for_each(|g| *g *= scale);
        }
        WholeGradient { decoder_bias, skip, scale }
    }

    /// The memory for the gradient of W_skip.
    pub fn into_memory(self) -> Vec<f32> {
        self.skip
    }
}

/// Trains what belongs to no feature, and what waits. Returns whether these weights are finite.
pub fn train_rest(
    isa: Isa,
    spec: &StepSpec,
    adam: &AdamStep,
    gradient: &WholeGradient,
    parameters: &mut TrainedParameters,
    waiting: &mut Waiting,
) -> bool {
    let waits = spec.gradient_clip.is_some();
    let (mut blocks, mut whole) = parameters.split(SPARSE_BLOCK, waits.then_some(waiting));
    let mut finite = true;
    if waits {
        let trained =
            blocks.par_iter_mut().map(|block| train_waiting(isa, spec, adam, block, gradient.scale));
        finite = trained.reduce(|| true, |one, other| one && other);
    }
    drop(blocks);
    whole.decoder_bias.adam(isa, adam, &gradient.decoder_bias);
    finite &= whole.decoder_bias.weights.iter().all(|b| b.is_finite());
    finite && whole.skip.is_none_or(|skip| train_skip(isa, spec, adam, skip, &gradient.skip))
}

/// Updates W_skip from its gradient, [d,d]. Returns whether it is finite.
fn train_skip(isa: Isa, spec: &StepSpec, adam: &AdamStep, skip: Trained<'_>, gradient: &[f32]) -> bool {
    let size = SKIP_ROWS * spec.width;
    let mut blocks: Vec<_> = skip.chunks(size).zip(gradient.chunks(size)).collect();
    let finite = blocks.par_iter_mut().map(|(block, gradient)| {
        block.adam(isa, adam, gradient);
        block.weights.iter().all(|w| w.is_finite())
    });
    finite.reduce(|| true, |one, other| one && other)
}

/// What a task hands back.
struct BlockOutcome {
    finite: bool,
    /// The sum of the squares of the gradients that wait.
    squares: f64,
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
        BlockOutcome { finite: true, squares: 0.0, pre_bias }
    }

    /// g as a feature sees it, [B,d].
    fn g_of(&self, feature: usize) -> &[f32] {
        let group = self.groups.partition_point(|group| group.end <= feature);
        self.groups[group].g
    }

    /// ‖W_dec_j‖ if the penalty is weighted by it, otherwise 1.
    fn penalty_norm(&self, isa: Isa, decoder_row: &[f32]) -> f32 {
        if self.spec.loss.weight_by_decoder_norm { dot(isa, decoder_row, decoder_row).sqrt() } else { 1.0 }
    }

    /// Updates a feature's decoder from its gradient, or lets it wait; `by_norm` is that of ‖W_dec_j‖. Returns as
    /// [`update_decoder`].
    fn finish_decoder(
        &self,
        isa: Isa,
        block: &mut FeatureBlock<'_>,
        at: usize,
        gradient: &mut [f32],
        by_norm: f32,
    ) -> f32 {
        let (width, norm_kind) = (self.spec.width, self.spec.decoder_norm);
        // The norm's gradient points along W_dec_j: the projection would take it out again.
        if self.spec.loss.weight_by_decoder_norm && norm_kind == DecoderNorm::Free {
            let row = &block.decoder.weights[at * width..][..width];
            let norm = self.penalty_norm(isa, row);
            if norm > 0.0 {
                add_scaled(isa, gradient, by_norm / norm, row);
            }
        }
        if let Some((dead, place)) = self.dead.and_then(|dead| dead.of(block.first + at)) {
            add_scaled(isa, gradient, 1.0, &dead.decoder[place * width..][..width]);
        }
        project(isa, norm_kind, block, at, gradient);
        match &mut block.waiting {
            Some(waiting) => {
                waiting.decoder[at * width..][..width].copy_from_slice(gradient);
                1.0
            }
            None => update_decoder(isa, norm_kind, self.adam, block, at, gradient),
        }
    }

    /// Updates a feature's encoder from its gradients, its decoder being updated, or lets them wait.
    fn finish_encoder(
        &self,
        isa: Isa,
        block: &mut FeatureBlock<'_>,
        at: usize,
        (weights, mut bias, mut threshold): (&mut [f32], f32, f32),
        removed: f32,
        outcome: &mut BlockOutcome,
    ) {
        let width = self.spec.width;
        if let Some((dead, place)) = self.dead.and_then(|dead| dead.of(block.first + at)) {
            add_scaled(isa, weights, 1.0, &dead.encoder[place * width..][..width]);
            bias += dead.bias[place];
            threshold += dead.threshold[place];
        }
        if let Some(sum) = &mut outcome.pre_bias {
            add_scaled(isa, sum, bias, &block.encoder.weights[at * width..][..width]);
        }
        if let Some(waiting) = &mut block.waiting {
            waiting.encoder[at * width..][..width].copy_from_slice(weights);
            (waiting.encoder_bias[at], waiting.threshold[at]) = (bias, threshold);
            let decoder = &waiting.decoder[at * width..][..width];
            let squares = dot(isa, weights, weights) + dot(isa, decoder, decoder);
            outcome.squares += f64::from(squares + bias * bias + threshold * threshold);
            return;
        }
        let gradient = EncoderGradient { weights, bias, threshold };
        let norm = self.spec.decoder_norm;
        outcome.finite &= removed.is_finite();
        outcome.finite &= update_encoder(isa, norm, self.adam, block, at, gradient, removed);
    }
}

/// Updates a block from the gradients that waited, each times `scale`. Returns whether its weights are finite.
fn train_waiting(
    isa: Isa,
    spec: &StepSpec,
    adam: &AdamStep,
    block: &mut FeatureBlock<'_>,
    scale: f32,
) -> bool {
    let (width, norm) = (spec.width, spec.decoder_norm);
    let Some(waiting) = block.waiting.take() else { return true };
    waiting.encoder.iter_mut().chain(&mut *waiting.decoder).for_each(|g| *g *= scale);
    let rows = waiting.encoder.chunks_exact(width).zip(waiting.decoder.chunks_exact(width));
    let mut finite = true;
    for (at, (encoder, decoder)) in rows.enumerate() {
        let removed = update_decoder(isa, norm, adam, block, at, decoder);
        let (bias, threshold) = (waiting.encoder_bias[at] * scale, waiting.threshold[at] * scale);
        let gradient = EncoderGradient { weights: encoder, bias, threshold };
        finite &= removed.is_finite();
        finite &= update_encoder(isa, norm, adam, block, at, gradient, removed);
    }
    finite
}

/// What training a block's decoders leaves for its encoders.
struct Decoders {
    /// dL/dz of each of the block's active pairs, feature by feature.
    by_value: Vec<f32>,
    /// The same of the pairs near a threshold.
    near_by_value: Vec<f32>,
    /// dL/dθ_j of each feature, 0 without thresholds.
    by_threshold: Vec<f32>,
    /// The norm that was divided out of each W_dec_j, NaN if it is not finite.
    removed: Vec<f32>,
}

/// Forms dW_dec_j and g_i·W_dec_j of the features with many pairs.
fn sum_decoders(
    isa: Isa,
    input: &Train<'_>,
    selected: &Selected,
    blocks: &[FeatureBlock<'_>],
    frequent: &mut Frequent,
) {
    let (pairs, width) = (&selected.kept, input.spec.width);
    let rows = input.x.len() / width;
    frequent.choose(pairs, rows, width, working_set());
    frequent.sums(pairs, rows, width, true, |visit| {
        let Visit { feature, rows, values, dots, gradient, .. } = visit;
        let block = &blocks[feature / SPARSE_BLOCK];
        let decoder_row = &block.decoder.weights[(feature - block.first) * width..][..width];
        decoder_gradient(isa, rows, values, input.g_of(feature), decoder_row, dots, gradient);
    });
}

/// Forms dW_enc_j of the features with many pairs.
fn sum_encoders(
    isa: Isa,
    input: &Train<'_>,
    selected: &Selected,
    decoders: &[Decoders],
    frequent: &mut Frequent,
) {
    let (pairs, width) = (&selected.kept, input.spec.width);
    frequent.sums(pairs, input.x.len() / width, width, false, |visit| {
        let block = visit.feature / SPARSE_BLOCK;
        let start = pairs.feature_starts[visit.feature] - pairs.feature_starts[block * SPARSE_BLOCK];
        let by_value = &decoders[block].by_value[start + visit.before..][..visit.rows.len()];
        add_rows(isa, visit.rows, by_value, input.x, visit.gradient);
    });
}

fn train_decoders(
    isa: Isa,
    input: &Train<'_>,
    selected: &Selected,
    frequent: &Frequent,
    block: &mut FeatureBlock<'_>,
) -> Decoders {
    let Selected { kept: pairs, near, .. } = selected;
    let width = input.spec.width;
    let features = block.first..block.first + block.encoder_bias.weights.len();
    let count = pairs.feature_starts[features.end] - pairs.feature_starts[features.start];
    let mut decoders = Decoders {
        by_value: Vec::with_capacity(count),
        near_by_value: Vec::new(),
        by_threshold: Vec::with_capacity(features.len()),
        removed: Vec::with_capacity(features.len()),
    };
    let (mut penalties, mut gradient) = (Vec::new(), vec![0.0; width]);
    for (at, feature) in features.enumerate() {
        let (rows, values) = pairs.of_feature(feature);
        let (g, slope) = (input.g_of(feature), input.slopes[feature]);
        let decoder_row = &block.decoder.weights[at * width..][..width];
        let norm = input.penalty_norm(isa, decoder_row);
        let by_norm = input.sparsity.derivatives(isa, values, norm, slope, &mut penalties);
        if let Some((sum, dots)) = frequent.of(feature, width) {
            gradient.copy_from_slice(sum);
            penalties.iter_mut().zip(dots).for_each(|(by_value, dot)| *by_value += dot);
        } else {
            gradient.fill(0.0);
            decoder_gradient(isa, rows, values, g, decoder_row, &mut penalties, &mut gradient);
        }
        let mut by_threshold = 0.0;
        if let (Some(jump), Some(thresholds)) = (&input.jump, &block.threshold) {
            let threshold = thresholds.weights[at];
            let pairs = |rows: &'_ [u32], z: &'_ [f32]| -> Vec<(usize, f32)> {
                rows.iter().zip(z).map(|(row, z)| (*row as usize, *z)).collect()
            };
            by_threshold = jump.derivatives(threshold, pairs(rows, values).into_iter(), &mut penalties);
            let (near_rows, near_z) = near.of_feature(feature);
            let begun = decoders.near_by_value.len();
            let at_zero = input.sparsity.derivative_at_zero(norm, slope);
            decoders.near_by_value.resize(begun + near_rows.len(), at_zero);
            let by_value = &mut decoders.near_by_value[begun..];
            add_dots(isa, near_rows, g, decoder_row, by_value);
            by_threshold += jump.derivatives(threshold, pairs(near_rows, near_z).into_iter(), by_value);
            by_threshold += jump.of_silent_rows(threshold, rows.len());
        }
        decoders.by_value.extend_from_slice(&penalties);
        decoders.by_threshold.push(by_threshold);
        decoders.removed.push(input.finish_decoder(isa, block, at, &mut gradient, by_norm));
    }
    decoders
}

fn train_encoders(
    isa: Isa,
    input: &Train<'_>,
    selected: &Selected,
    frequent: &Frequent,
    block: &mut FeatureBlock<'_>,
    decoders: &Decoders,
) -> BlockOutcome {
    let mut outcome = input.start();
    let width = input.spec.width;
    let mut gradient = vec![0.0; width];
    let mut by_value = &decoders.by_value[..];
    let mut near_by_value = &decoders.near_by_value[..];
    let to_input = input.jump.is_some_and(|jump| jump.to_input);
    for (at, removed) in decoders.removed.iter().enumerate() {
        let (rows, _) = selected.kept.of_feature(block.first + at);
        let own = by_value.split_off(..rows.len()).expect("as many as the feature has pairs");
        if let Some((sum, _)) = frequent.of(block.first + at, width) {
            gradient.copy_from_slice(sum);
        } else {
            gradient.fill(0.0);
            add_rows(isa, rows, own, input.x, &mut gradient);
        }
        let mut bias = own.iter().sum::<f32>();
        if to_input {
            let (rows, _) = selected.near.of_feature(block.first + at);
            let own = near_by_value.split_off(..rows.len()).expect("as many as the feature has near pairs");
            add_rows(isa, rows, own, input.x, &mut gradient);
            bias += own.iter().sum::<f32>();
        }
        let gradients = (&mut gradient[..], bias, decoders.by_threshold[at]);
        input.finish_encoder(isa, block, at, gradients, *removed, &mut outcome);
    }
    outcome
}

thread_local! {
    /// Each worker's memory for a panel: kept, because fresh memory costs as much as filling it.
    static PANEL_GRADIENT: RefCell<PanelGradient> = RefCell::default();
}

fn train_dense_block(
    isa: Isa,
    input: &Train<'_>,
    activations: &[f32],
    preactivations: Option<&[f32]>,
    factors: &BackwardFactors<'_>,
    block: &mut FeatureBlock<'_>,
) -> BlockOutcome {
    let width = input.spec.width;
    let mut outcome = input.start();
    let count = block.encoder_bias.weights.len();
    let mut gradient = PANEL_GRADIENT.take();
    // The block's part of each group.
    let mut start = 0;
    while start < count {
        let first = block.first + start;
        let group = input.groups.partition_point(|group| group.end <= first);
        let end = (input.groups[group].end - block.first).min(count);
        let thresholds = block.threshold.as_ref().map(|thresholds| &thresholds.weights[start..end]);
        let jump = input.jump.zip(preactivations).zip(thresholds);
        let panel = Panel {
            activations,
            features: (first, end - start),
            total_features: input.spec.features,
            rows: input.x.len() / width,
            factors,
            group,
            decoder: &block.decoder.weights[start * width..end * width],
            jump: jump.map(|((jump, z), thresholds)| JumpPanel { jump, z, thresholds }),
        };
        let norm =
            |feature: usize| input.penalty_norm(isa, &panel.decoder[(feature - first) * width..][..width]);
        let slope = |feature: usize| input.slopes[feature];
        backward_panel(isa, panel, input.sparsity, norm, slope, &mut gradient);
        let PanelGradient { encoder, encoder_bias, decoder, by_norm, by_threshold, .. } = &mut gradient;
        let rows = encoder.chunks_exact_mut(width).zip(decoder.chunks_exact_mut(width));
        for (at, (encoder, decoder)) in rows.enumerate() {
            let removed = input.finish_decoder(isa, block, start + at, decoder, by_norm[at]);
            let gradients = (encoder, encoder_bias[at], by_threshold[at]);
            input.finish_encoder(isa, block, start + at, gradients, removed, &mut outcome);
        }
        start = end;
    }
    PANEL_GRADIENT.set(gradient);
    outcome
}

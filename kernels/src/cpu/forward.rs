//! The first part of a forward pass: the activations of a panel of features, found sparse or dense.

use ndarray::Array1;
use rayon::prelude::*;

use crate::activation::Activation;
use crate::parameters::{Parameters, numbers};
use crate::path::Path;
use crate::spec::StepSpec;

use super::blocks::Waiting;
use super::dead::{Dead, DeadGradient};
use super::dense::{self, ActivationSums, PackedFactors};
use super::encode::{Cutoff, Encode, EncodeBuffers, encode_above, encode_dense_bf16, encode_sparse};
use super::finish::Rows;
use super::jump::Jump;
use super::largest::{Among, Largest};
use super::options::{CpuOptions, Purpose};
use super::rows::round_to_bf16;
use super::select::{Selected, activations_above};
use super::sparsity::Sparsity;
use super::vector;

/// Memory of one panel that one step leaves to the next; nothing in it outlives a step's results.
#[derive(Default)]
pub(super) struct Buffers {
    /// Encoder and its bias times ‖W_dec_j‖, where features are ranked so: [F,d], [F].
    pub(super) ranked: (Vec<f32>, Vec<f32>),
    /// The encode's factors in bfloat16, where that is asked for: [B,d], [F,d].
    pub(super) rounded: (Vec<f32>, Vec<f32>),
    pub(super) encode: EncodeBuffers,
    pub(super) selected: Selected,
    /// Only while steps are dense, but for what a skip connection takes.
    pub(super) packed: PackedFactors,
    /// [B,F], only while steps are dense.
    pub(super) activations: Vec<f32>,
    /// What there is of them.
    pub(super) sums: ActivationSums,
    /// z [B,F], only while steps are dense and a threshold is trained.
    pub(super) preactivations: Vec<f32>,
    /// The cutoffs of features or rows, where they are no tensor: [F] or [B].
    pub(super) cutoffs: Vec<f32>,
    pub(super) dead: DeadGradient,
    pub(super) waiting: Waiting,
    pub(super) decoder_norms: Vec<f32>,
    pub(super) slopes: Vec<f32>,
}

/// What the forward pass found, besides what lies in the buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Where the active pairs are.
    pub(super) path: Path,
    /// The path that the encode took.
    pub(super) encoded: Path,
    /// Pairs that screening left to recompute.
    pub(super) rechecked: usize,
}

/// What the encode multiplies, from its input `x` [B,d]; `rounded` is memory for it. `ranked` [F,d], [F] is the encoder in place of
/// that of `weights`, where features are ranked by another number than z.
fn factors<'a>(
    options: &CpuOptions,
    spec: &StepSpec,
    weights: &'a Parameters,
    ranked: &'a (Vec<f32>, Vec<f32>),
    x: &'a [f32],
    rounded: &'a mut (Vec<f32>, Vec<f32>),
) -> Encode<'a> {
    let (encoder, bias) = match spec.rank_by_decoder_norm {
        true => (&ranked.0[..], &ranked.1[..]),
        false => (numbers(&weights.encoder), numbers(&weights.encoder_bias)),
    };
    let mut factors = Encode { x, weights: encoder, bias, width: spec.width };
    if options.bf16 {
        round_to_bf16(factors.x, &mut rounded.0);
        round_to_bf16(factors.weights, &mut rounded.1);
        (factors.x, factors.weights) = (&rounded.0, &rounded.1);
    }
    factors
}

/// How many of z [B,F] are above their cutoffs.
fn count_above(z: &[f32], above: Cutoff<'_>, features: usize) -> usize {
    let in_row = |(row, z): (usize, &[f32])| {
        let of_row = above.of_row(row);
        z.iter().enumerate().filter(|(feature, z)| **z > of_row * above.of_feature(*feature)).count()
    };
    z.par_chunks(features).enumerate().map(in_row).sum()
}

/// A forward pass over a batch, of one panel.
pub(super) struct Forward<'a> {
    /// Of the panel's features alone.
    pub(super) spec: &'a StepSpec,
    pub(super) options: &'a CpuOptions,
    pub(super) weights: &'a Parameters,
    pub(super) steps_since_fired: &'a Array1<u64>,
    pub(super) threshold: Option<f64>,
    pub(super) expected: Path,
    pub(super) purpose: Purpose,
    pub(super) sparsity: &'a Sparsity,
    /// Whether it is the first of all panels, whose sums begin with what belongs to no feature.
    pub(super) is_first: bool,
    pub(super) buffers: &'a mut Buffers,
}

impl Forward<'_> {
    /// Fills the active pairs, or the dense activations, from the encoder's input `x` [B,d]. Where the largest of all panels are
    /// active, these are the largest of the panel. Where features are ranked by another number than z, the activations are those of
    /// this number, until [`Forward::unrank`].
    pub(super) fn activate(&mut self, x: &[f32]) -> Found {
        if !self.spec.rank_by_decoder_norm {
            return self.activate_by_rank(x);
        }
        // An encoder times the norms has z·‖W_dec_j‖ for its z, so nothing that finds the largest need know of them.
        self.measure_decoder();
        let Buffers { ranked, decoder_norms: norms, .. } = &mut *self.buffers;
        for (ranked, tensor) in [
            (&mut ranked.0, numbers(&self.weights.encoder)),
            (&mut ranked.1, numbers(&self.weights.encoder_bias)),
        ] {
            ranked.clear();
            ranked.extend_from_slice(tensor);
        }
        let rows = ranked.0.par_chunks_mut(self.spec.width).zip(&mut ranked.1).zip(&*norms);
        rows.for_each(|((row, bias), norm)| {
            row.iter_mut().for_each(|w| *w *= norm);
            *bias *= norm;
        });
        self.activate_by_rank(x)
    }

    /// From the numbers that features are ranked by to the activations.
    pub(super) fn unrank(&mut self, path: Path) {
        if !self.spec.rank_by_decoder_norm {
            return;
        }
        let Buffers { selected, activations, sums, decoder_norms: norms, .. } = &mut *self.buffers;
        match path {
            // What is above 0 has a norm above 0.
            Path::Sparse => selected.kept.divide(norms),
            Path::Dense => {
                activations.par_chunks_mut(self.spec.features).for_each(|row| {
                    let active = row.iter_mut().zip(norms.iter()).filter(|(a, _)| **a > 0.0);
                    active.for_each(|(a, norm)| *a /= norm);
                });
                sums.count(self.options.isa, self.spec.features, activations);
            }
        }
    }

    /// In how many rows each feature is active, [F].
    pub(super) fn counts(&self, path: Path) -> Vec<u32> {
        match path {
            Path::Sparse => self.buffers.selected.kept.counts(),
            Path::Dense => self.buffers.sums.features.clone(),
        }
    }

    /// ‖W_dec_j‖ of all features into the buffers.
    pub(super) fn measure_decoder(&mut self) {
        let isa = self.options.isa;
        let rows = numbers(&self.weights.decoder).par_chunks_exact(self.spec.width);
        rows.map(|row| vector::dot(isa, row, row).sqrt()).collect_into_vec(&mut self.buffers.decoder_norms);
    }

    fn activate_by_rank(&mut self, x: &[f32]) -> Found {
        let Forward { options, spec, weights, purpose, .. } = *self;
        let (isa, search) = (options.isa, options.search);
        if let Activation::Relu = spec.activation {
            let (path, rechecked) = self.encode(x);
            return Found { path, encoded: path, rechecked };
        }
        let threshold = self.threshold.unwrap_or(0.0) as f32;
        let Buffers {
            ranked,
            rounded,
            encode,
            selected,
            activations,
            preactivations: dense_z,
            cutoffs,
            sums,
            packed,
            ..
        } = &mut *self.buffers;
        let products = options.products(purpose);
        let factors = factors(options, spec, weights, ranked, x, rounded);
        // What is below the cutoffs is neither active nor near; what is above the thresholds is active.
        let thresholds: &[f32] = match (spec.activation, purpose) {
            (Activation::TopK { k }, _) | (Activation::BatchTopK { k, .. }, Purpose::Training) => {
                let among =
                    if let Activation::TopK { .. } = spec.activation { Among::Row } else { Among::Batch };
                let products = options.training_products();
                let k = match among {
                    Among::Row => k.min(spec.features),
                    Among::Batch => k,
                };
                let largest = Largest { isa, input: factors, search, products, k, among };
                let Selected { kept, largest: memory, .. } = selected;
                let rechecked = largest.find(encode, memory, kept);
                return Found { path: Path::Sparse, encoded: Path::Sparse, rechecked };
            }
            (Activation::BatchTopK { .. }, Purpose::Reading) => {
                cutoffs.clear();
                cutoffs.resize(spec.features, threshold);
                cutoffs
            }
            _ => numbers(weights.threshold.as_ref().expect("JumpReLU's weights have thresholds")),
        };
        let lowest: Vec<f32>;
        let above = match (spec.activation, purpose) {
            (Activation::JumpRelu { bandwidth, to_input }, Purpose::Training) => {
                let jump = Jump { bandwidth, to_input, by_count: &[], sees_activations: false };
                lowest = thresholds.iter().map(|threshold| jump.lowest(*threshold)).collect();
                &lowest[..]
            }
            _ => thresholds,
        };
        let cells = x.len() / spec.width * spec.features;
        let limit = (cells as f64 * options.sparse_density) as usize;
        let found = &mut selected.found;
        let above = Cutoff::OfFeatures(above);
        let mut sparse =
            || encode_above(isa, factors, above, search, limit, encode, found).map(|found| found.rechecked);
        let mut rechecked = if self.expected == Path::Sparse { sparse() } else { None };
        if rechecked.is_none() {
            dense_z.resize(cells, 0.0);
            dense::encode_all(isa, products, factors, packed, dense_z);
            let few = count_above(dense_z, above, spec.features) <= limit;
            rechecked = if few { sparse() } else { None };
        }
        match rechecked {
            Some(rechecked) => {
                for memory in [dense_z, activations] {
                    memory.clear();
                    memory.shrink_to_fit();
                }
                *packed = PackedFactors::default();
                selected.above(thresholds);
                Found { path: Path::Sparse, encoded: Path::Sparse, rechecked }
            }
            None => {
                activations.resize(cells, 0.0);
                activations_above(thresholds, dense_z, activations);
                sums.count(isa, spec.features, activations);
                Found { path: Path::Dense, encoded: Path::Dense, rechecked: 0 }
            }
        }
    }

    /// The features that a loss over dead features sees in this step, ascending.
    pub(super) fn dead_features(&self, counts: &[u32]) -> Vec<u32> {
        let Some(loss) = self.spec.dead.filter(|_| self.purpose == Purpose::Training) else {
            return Vec::new();
        };
        let features = self.steps_since_fired.iter().zip(counts).enumerate();
        let dead = features.filter(|(_, (since, count))| loss.is_dead(**since, **count > 0));
        dead.map(|(feature, _)| feature as u32).collect()
    }

    /// The loss over the `dead` features, from the encoder's input `x` and what is known of the rows; its gradient stays in the
    /// buffers.
    pub(super) fn dead_loss(&mut self, x: &[f32], rows: &Rows, dead: Vec<u32>) -> f64 {
        self.buffers.dead.features.clear();
        let Some(loss) = self.spec.dead.filter(|_| !dead.is_empty()) else { return 0.0 };
        let (spec, weights) = (self.spec, self.weights);
        let Buffers { decoder_norms, dead: gradient, .. } = &mut *self.buffers;
        let denominators = rows.denominators(spec.loss.mse, spec.width);
        let loss = Dead {
            isa: self.options.isa,
            loss,
            input: Encode {
                x,
                weights: numbers(&weights.encoder),
                bias: numbers(&weights.encoder_bias),
                width: spec.width,
            },
            decoder: numbers(&weights.decoder),
            threshold: weights.threshold.as_ref().map(numbers),
            rank_by: spec.rank_by_decoder_norm.then_some(&decoder_norms[..]),
            residual: &rows.residual,
            denominators: &denominators,
            sparsity: self.sparsity,
        };
        loss.loss(dead, gradient)
    }

    /// Fills the pairs above 0 or, if there are too many of them, the dense activations. The density decides;
    /// `expected` only says what to try first. Also returns how many pairs screening left to recompute.
    fn encode(&mut self, x: &[f32]) -> (Path, usize) {
        let (isa, spec, weights) = (self.options.isa, self.spec, self.weights);
        let products = self.options.products(self.purpose);
        let Buffers { ranked, rounded, encode, selected, activations, sums, packed, .. } = &mut *self.buffers;
        let pairs = &mut selected.kept;
        let cells = x.len() / spec.width * spec.features;
        let limit = (cells as f64 * self.options.sparse_density) as usize;
        let factors = factors(self.options, spec, weights, ranked, x, rounded);
        let search = self.options.search;
        let mut sparse =
            || encode_sparse(isa, factors, search, limit, encode, pairs).map(|found| found.rechecked);
        if self.expected == Path::Sparse
            && let Some(rechecked) = sparse()
        {
            activations.clear();
            activations.shrink_to_fit();
            *packed = PackedFactors::default();
            return (Path::Sparse, rechecked);
        }
        activations.resize(cells, 0.0);
        match self.options.bf16 {
            true => {
                encode_dense_bf16(isa, factors, activations);
                sums.count(isa, spec.features, activations);
            }
            false => dense::encode(isa, products, factors, packed, activations, sums),
        }
        let active: u64 = sums.features.iter().copied().map(u64::from).sum();
        let few = active as usize <= limit;
        match few.then(sparse).flatten() {
            Some(rechecked) => (Path::Sparse, rechecked),
            None => (Path::Dense, 0),
        }
    }
}

//! One forward pass: activations, found sparse or dense, and what follows from them.

use ndarray::Array1;
use rayon::prelude::*;

use crate::activation::Activation;
use crate::error::StepError;
use crate::parameters::{Parameters, numbers};
use crate::path::Path;
use crate::spec::StepSpec;

use super::blocks::Waiting;
use super::dead::{Dead, DeadGradient};
use super::decode::{Finish, RowActivity, RowError};
use super::dense::{self, ActivationSums, PackedFactors};
use super::encode::{Cutoff, Encode, EncodeBuffers, encode_above, encode_dense_bf16, encode_sparse};
use super::jump::Jump;
use super::largest::{Among, Largest};
use super::options::{CpuOptions, Purpose};
use super::rows::{RowNorms, first_non_finite_row, round_to_bf16, row_norms, subtract_bias};
use super::select::{Selected, activations_above};
use super::sparsity::Sparsity;
use super::vector;

/// Memory that one step leaves to the next; nothing in it outlives a step's results.
#[derive(Default)]
pub(super) struct Buffers {
    /// Of the target.
    pub(super) norms: RowNorms,
    /// X − b_dec, with the pre-bias.
    pub(super) shifted: Vec<f32>,
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
    /// x̂, then g, [B,d].
    pub(super) gradient: Vec<f32>,
    /// The same of the prefixes, but for the last: [B,d] each. In the end each holds the sum over all that are as wide or wider.
    pub(super) prefixes: Vec<Vec<f32>>,
    /// x − x̂ [B,d], where dead features have a loss.
    pub(super) residual: Vec<f32>,
    pub(super) dead: DeadGradient,
    /// dL/dH_ij, the same for all features of a row: [B].
    pub(super) by_count: Vec<f32>,
    pub(super) waiting: Waiting,
    pub(super) activity: Vec<RowActivity>,
    pub(super) errors: Vec<RowError>,
    pub(super) decoder_norms: Vec<f32>,
    pub(super) slopes: Vec<f32>,
}

/// What the forward pass found, besides what lies in the buffers.
pub(super) struct Found {
    /// Where the active pairs are.
    pub(super) path: Path,
    /// The path that the encode took.
    pub(super) encoded: Path,
    /// In how many rows each feature is active, [F].
    pub(super) counts: Vec<u32>,
    /// Pairs that screening left to recompute.
    pub(super) rechecked: usize,
    /// The reconstruction term of all prefixes together, where there are any and a step follows.
    pub(super) prefixes: Option<f64>,
    /// The features that a loss over dead features sees.
    pub(super) dead: Vec<u32>,
}

/// What the encode multiplies, from the batch `input` [B,d]; `shifted` and `rounded` are memory for it. `ranked` [F,d], [F] is the
/// encoder in place of that of `weights`, where features are ranked by another number than z.
fn factors<'a>(
    options: &CpuOptions,
    spec: &StepSpec,
    weights: &'a Parameters,
    ranked: &'a (Vec<f32>, Vec<f32>),
    input: &'a [f32],
    shifted: &'a mut Vec<f32>,
    rounded: &'a mut (Vec<f32>, Vec<f32>),
) -> Encode<'a> {
    if spec.pre_bias {
        subtract_bias(input, numbers(&weights.decoder_bias), shifted);
    }
    let (encoder, bias) = match spec.rank_by_decoder_norm {
        true => (&ranked.0[..], &ranked.1[..]),
        false => (numbers(&weights.encoder), numbers(&weights.encoder_bias)),
    };
    let mut factors =
        Encode { x: if spec.pre_bias { shifted } else { input }, weights: encoder, bias, width: spec.width };
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

/// One forward pass over a batch.
pub(super) struct Forward<'a> {
    pub(super) spec: &'a StepSpec,
    pub(super) options: &'a CpuOptions,
    pub(super) weights: &'a Parameters,
    pub(super) steps_since_fired: &'a Array1<u64>,
    pub(super) threshold: Option<f64>,
    pub(super) expected: Path,
    pub(super) purpose: Purpose,
    pub(super) sparsity: &'a Sparsity,
    pub(super) buffers: &'a mut Buffers,
}

impl Forward<'_> {
    /// Fills the buffers with activations, g and what is reported of each row.
    pub(super) fn run(&mut self, input: &[f32], target: &[f32]) -> Result<Found, StepError> {
        self.check_rows(input)?;
        if !std::ptr::eq(input, target) {
            self.check_rows(target)?;
        }
        row_norms(self.options.isa, target, self.spec.width, &mut self.buffers.norms);
        let (path, encoded, rechecked) = self.activate(input);
        let counts = match path {
            Path::Sparse => self.buffers.selected.kept.counts(),
            Path::Dense => self.buffers.sums.features.clone(),
        };
        let dead = self.dead_features(&counts);
        let prefixes = if self.purpose == Purpose::Training && !self.spec.prefixes.is_empty() {
            Some(self.decode_prefixes(path, input, target, !dead.is_empty()))
        } else {
            self.decode(path, input);
            if !dead.is_empty() {
                self.keep_residual(target);
            }
            self.finish(target);
            None
        };
        Ok(Found { path, encoded, counts, rechecked, prefixes, dead })
    }

    /// Fills the active pairs, or the dense activations. Says where they are, which path the encode took, and how many pairs
    /// screening left to recompute.
    pub(super) fn activate(&mut self, input: &[f32]) -> (Path, Path, usize) {
        if !self.spec.rank_by_decoder_norm {
            return self.activate_by_rank(input);
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
        let found = self.activate_by_rank(input);
        let Buffers { selected, activations, sums, decoder_norms: norms, .. } = &mut *self.buffers;
        match found.0 {
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
        found
    }

    /// ‖W_dec_j‖ of all features into the buffers.
    pub(super) fn measure_decoder(&mut self) {
        let isa = self.options.isa;
        let rows = numbers(&self.weights.decoder).par_chunks_exact(self.spec.width);
        rows.map(|row| vector::dot(isa, row, row).sqrt()).collect_into_vec(&mut self.buffers.decoder_norms);
    }

    /// The same by the number that features are ranked by; the activations are those of this number.
    fn activate_by_rank(&mut self, input: &[f32]) -> (Path, Path, usize) {
        let Forward { options, spec, weights, purpose, .. } = *self;
        let (isa, search) = (options.isa, options.search);
        if let Activation::Relu = spec.activation {
            let (path, rechecked) = self.encode(input);
            return (path, path, rechecked);
        }
        let threshold = self.threshold.unwrap_or(0.0) as f32;
        let Buffers {
            shifted,
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
        let factors = factors(options, spec, weights, ranked, input, shifted, rounded);
        // What is below the cutoffs is neither active nor near; what is above the thresholds is active.
        let thresholds: &[f32] = match (spec.activation, purpose) {
            (Activation::TopK { k }, _) | (Activation::BatchTopK { k, .. }, Purpose::Training) => {
                let among =
                    if let Activation::TopK { .. } = spec.activation { Among::Row } else { Among::Batch };
                let products = options.training_products();
                let largest = Largest { isa, input: factors, search, products, k, among };
                let Selected { kept, largest: memory, .. } = selected;
                let rechecked = largest.find(encode, memory, kept);
                return (Path::Sparse, Path::Sparse, rechecked);
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
        let cells = input.len() / spec.width * spec.features;
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
                (Path::Sparse, Path::Sparse, rechecked)
            }
            None => {
                activations.resize(cells, 0.0);
                activations_above(thresholds, dense_z, activations);
                sums.count(isa, spec.features, activations);
                (Path::Dense, Path::Dense, 0)
            }
        }
    }

    /// The features that a loss over dead features sees in this step, ascending.
    fn dead_features(&self, counts: &[u32]) -> Vec<u32> {
        let Some(loss) = self.spec.dead.filter(|_| self.purpose == Purpose::Training) else {
            return Vec::new();
        };
        let features = self.steps_since_fired.iter().zip(counts).enumerate();
        let dead = features.filter(|(_, (since, count))| loss.is_dead(**since, **count > 0));
        dead.map(|(feature, _)| feature as u32).collect()
    }

    /// The loss over the `dead` features; its gradient stays in the buffers.
    pub(super) fn dead_loss(&mut self, input: &[f32], dead: Vec<u32>) -> f64 {
        self.buffers.dead.features.clear();
        let Some(loss) = self.spec.dead.filter(|_| !dead.is_empty()) else { return 0.0 };
        let (spec, weights) = (self.spec, self.weights);
        let Buffers { norms, shifted, residual, decoder_norms, dead: gradient, .. } = &mut *self.buffers;
        let mse = Finish { target: input, norms, mse: spec.loss.mse };
        let denominators: Vec<f32> = (0..spec.batch).map(|row| mse.denominator(row, spec.width)).collect();
        let loss = Dead {
            isa: self.options.isa,
            loss,
            input: Encode {
                x: if spec.pre_bias { shifted } else { input },
                weights: numbers(&weights.encoder),
                bias: numbers(&weights.encoder_bias),
                width: spec.width,
            },
            decoder: numbers(&weights.decoder),
            threshold: weights.threshold.as_ref().map(numbers),
            rank_by: spec.rank_by_decoder_norm.then_some(&decoder_norms[..]),
            residual,
            denominators: &denominators,
            sparsity: self.sparsity,
        };
        loss.loss(dead, gradient)
    }

    /// x − x̂ into the buffers.
    pub(super) fn keep_residual(&mut self, target: &[f32]) {
        let Buffers { gradient, residual, .. } = &mut *self.buffers;
        residual.clear();
        residual.extend(target.iter().zip(gradient).map(|(x, xhat)| x - *xhat));
    }

    /// An error if a row holds what is not a number.
    pub(super) fn check_rows(&self, rows: &[f32]) -> Result<(), StepError> {
        match first_non_finite_row(rows, self.spec.width) {
            Some(row) => Err(StepError::NonFiniteRow { row }),
            None => Ok(()),
        }
    }

    /// Fills the pairs above 0 or, if there are too many of them, the dense activations. The density decides;
    /// `expected` only says what to try first. Also returns how many pairs screening left to recompute.
    pub(super) fn encode(&mut self, input: &[f32]) -> (Path, usize) {
        let (isa, spec, weights) = (self.options.isa, self.spec, self.weights);
        let products = self.options.products(self.purpose);
        let Buffers { shifted, ranked, rounded, encode, selected, activations, sums, packed, .. } =
            &mut *self.buffers;
        let pairs = &mut selected.kept;
        let cells = input.len() / spec.width * spec.features;
        let limit = (cells as f64 * self.options.sparse_density) as usize;
        let factors = factors(self.options, spec, weights, ranked, input, shifted, rounded);
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

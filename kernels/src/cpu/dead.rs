//! `dead`: a loss over features that have stopped firing, and its gradient; see [`crate::dead`].
//!
//! The dead features' rows are brought together and their z formed densely: 2·B·n·d operations for n of them, and three such
//! products more for the kinds that touch all their pairs. AuxK touches k_aux of a row: 8·d operations for each.

use rayon::prelude::*;

use crate::dead::{DeadLoss, DeadLossKind};

use super::backward::{add_rows, decoder_gradient};
use super::decode::{Decode, RowActivity, decode_sparse};
use super::encode::{Encode, preactivations};
use super::isa::Isa;
use super::pairs::{ActivePairs, Block, Pair, ROW_GROUP};
use super::products::{Matrix, multiply};
use super::sparsity::Sparsity;
use super::vector::dot;

/// Features of a task.
const FEATURE_BLOCK: usize = 64;
/// Rows of a task.
const ROW_BLOCK: usize = 64;

/// What a loss over dead features reads.
#[derive(Debug, Clone, Copy)]
pub struct Dead<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// The loss.
    pub loss: DeadLoss,
    /// Rows and encoder.
    pub input: Encode<'a>,
    /// W_dec, [F,d].
    pub decoder: &'a [f32],
    /// θ [F], where there are thresholds.
    pub threshold: Option<&'a [f32]>,
    /// ‖W_dec_j‖ of all features, [F], where AuxK ranks them by z·‖W_dec_j‖.
    pub rank_by: Option<&'a [f32]>,
    /// x − x̂, [B,d].
    pub residual: &'a [f32],
    /// What the squared errors of each row are divided by in the reconstruction term, 0 where that is nothing: [B].
    pub denominators: &'a [f32],
    /// The term of the sparsity penalty, which this loss has nothing of.
    pub sparsity: &'a Sparsity,
}

/// What the loss adds to the gradients of the dead features.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeadGradient {
    /// The dead features, ascending.
    pub features: Vec<u32>,
    /// [dead,d].
    pub encoder: Vec<f32>,
    /// [dead].
    pub bias: Vec<f32>,
    /// [dead,d].
    pub decoder: Vec<f32>,
    /// [dead].
    pub threshold: Vec<f32>,
}

impl DeadGradient {
    /// The gradient and a feature's place in it, if the feature is dead.
    pub(crate) fn of(&self, feature: usize) -> Option<(&DeadGradient, usize)> {
        self.features.binary_search(&(feature as u32)).ok().map(|place| (self, place))
    }
}

/// The rows of the dead features, brought together.
struct Gathered {
    bias: Vec<f32>,
    decoder: Vec<f32>,
    /// z, [B,dead].
    z: Vec<f32>,
}

impl Dead<'_> {
    /// The loss over the `features`, ascending and at least one, and its gradient into `out`.
    pub fn loss(&self, features: Vec<u32>, out: &mut DeadGradient) -> f64 {
        let (count, width) = (features.len(), self.input.width);
        for (vector, length) in [
            (&mut out.encoder, count * width),
            (&mut out.bias, count),
            (&mut out.decoder, count * width),
            (&mut out.threshold, count),
        ] {
            vector.clear();
            vector.resize(length, 0.0);
        }
        out.features = features;
        let dead = self.gather(&out.features);
        match self.loss.kind {
            DeadLossKind::AuxK { k, coefficient } => {
                let spread: f64 = self.deviations().iter().map(|d| f64::from(*d) * f64::from(*d)).sum();
                let scale = if spread > 0.0 { coefficient / spread } else { 0.0 };
                self.auxiliary(&dead, k, true, scale, out)
            }
            DeadLossKind::AuxKSum { k, coefficient } => {
                let few = (count as f64 / k as f64).min(1.0);
                self.auxiliary(&dead, k, false, coefficient * few / self.rows() as f64, out)
            }
            DeadLossKind::Ghost => self.ghost(&dead, out),
            DeadLossKind::PreActivation { coefficient } => self.pre_activation(&dead, coefficient, out),
        }
    }

    fn rows(&self) -> usize {
        self.input.rows()
    }

    fn gather(&self, features: &[u32]) -> Gathered {
        let width = self.input.width;
        let rows = |of: &[f32]| -> Vec<f32> {
            features.iter().flat_map(|j| &of[*j as usize * width..][..width]).copied().collect()
        };
        let (encoder, decoder) = (rows(self.input.weights), rows(self.decoder));
        let bias: Vec<f32> = features.iter().map(|j| self.input.bias[*j as usize]).collect();
        let mut z = vec![0.0; self.rows() * features.len()];
        let input = Encode { weights: &encoder, bias: &bias, ..self.input };
        preactivations(self.isa, input, &mut z);
        Gathered { bias, decoder, z }
    }

    /// ‖r_i − r̄‖, [B].
    fn deviations(&self) -> Vec<f32> {
        let mut norms = super::rows::RowNorms::default();
        super::rows::row_norms(self.isa, self.residual, self.input.width, &mut norms);
        norms.centered
    }

    /// scale · Σ_i ‖e_i − r_i‖², e from the k largest z of each row, or from those of them above 0 if only the `positive`
    /// count.
    fn auxiliary(
        &self,
        dead: &Gathered,
        k: usize,
        positive: bool,
        scale: f64,
        out: &mut DeadGradient,
    ) -> f64 {
        let (count, width, rows) = (dead.bias.len(), self.input.width, self.rows());
        let factors: Vec<f32> = match self.rank_by {
            Some(norms) => out.features.iter().map(|j| norms[*j as usize]).collect(),
            None => vec![1.0; count],
        };
        let group = |group: usize| {
            let (mut block, mut order) = (Block::default(), Vec::new());
            block.begin_group();
            for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(rows) {
                let z = &dead.z[row * count..][..count];
                order.clear();
                order.extend((0..count as u32).filter(|j| !positive || z[*j as usize] > 0.0));
                if order.len() > k {
                    let rank = |j: &u32| z[*j as usize] * factors[*j as usize];
                    let larger = |a: &u32, b: &u32| rank(b).total_cmp(&rank(a)).then(a.cmp(b));
                    order.select_nth_unstable_by(k - 1, larger);
                    order.truncate(k);
                    order.sort_unstable();
                }
                let pair = |j: &u32| Pair { row: row as u32, feature: *j, value: z[*j as usize] };
                block.pairs.extend(order.iter().map(pair));
            }
            block.begin_group();
            block
        };
        let groups: Vec<Block> = (0..rows.div_ceil(ROW_GROUP)).into_par_iter().map(group).collect();
        let mut pairs = ActivePairs::default();
        pairs.sort(&[groups], rows, count, ROW_GROUP, count);

        let mut h = vec![0.0; rows * width];
        let no_bias = vec![0.0; width];
        let decode =
            Decode { weights: &dead.decoder, bias: &no_bias, decoder_norms: None, sparsity: self.sparsity };
        decode_sparse(self.isa, decode, &pairs, &mut h, &mut vec![RowActivity::default(); rows]);
        let value = self.by_rows(&mut h, |_, e, r| {
            let mut value = 0.0;
            for (e, r) in e.iter_mut().zip(r) {
                let error = *e - r;
                value += scale * f64::from(error) * f64::from(error);
                *e = (2.0 * scale) as f32 * error;
            }
            value
        });

        let gradients = out.encoder.par_chunks_mut(width).zip(out.decoder.par_chunks_mut(width));
        gradients.zip(&mut out.bias).enumerate().for_each(|(at, ((encoder, decoder), bias))| {
            let (rows, values) = pairs.of_feature(at);
            let mut by_value = vec![0.0; rows.len()];
            let decoder_row = &dead.decoder[at * width..][..width];
            decoder_gradient(self.isa, rows, values, &h, decoder_row, &mut by_value, decoder);
            add_rows(self.isa, rows, &by_value, self.input.x, encoder);
            *bias = by_value.iter().sum();
        });
        value
    }

    fn ghost(&self, dead: &Gathered, out: &mut DeadGradient) -> f64 {
        let (count, width, rows) = (dead.bias.len(), self.input.width, self.rows());
        let exponentials: Vec<f32> = dead.z.par_iter().map(|z| z.exp()).collect();
        let mut h = vec![0.0; rows * width];
        h.par_chunks_mut(ROW_BLOCK * width).zip(exponentials.par_chunks(ROW_BLOCK * count)).for_each(
            |(e, a)| {
                let sizes = (a.len() / count, count, width);
                multiply(Matrix::rows(a, count), Matrix::rows(&dead.decoder, width), sizes, e);
            },
        );
        let deviations = self.deviations();
        let value = self.by_rows(&mut h, |row, e, r| {
            let norm = |v: &[f32]| f64::from(dot(self.isa, v, v)).sqrt();
            let scale = norm(r) / (1e-6 + 2.0 * norm(e));
            let deviation = f64::from(deviations[row]);
            let denominator = f64::from(self.denominators[row]);
            let mut value = 0.0;
            for (e, r) in e.iter_mut().zip(r) {
                let r = f64::from(*r);
                let error = scale * f64::from(*e) - r;
                let quotient = error * error / deviation;
                let rescaled = r * r / denominator / (quotient + 1e-6);
                // A row that equals the mean, or has no denominator, has nothing to be scaled by.
                let usable = deviation > 0.0 && denominator > 0.0;
                value += if usable { rescaled * quotient } else { 0.0 };
                *e = if usable { (rescaled * 2.0 * error / deviation * scale) as f32 } else { 0.0 };
            }
            value
        });
        self.by_features(out, |first, panel, encoder, bias, decoder, _| {
            let mut by_value = vec![0.0; panel * rows];
            let w = Matrix::rows(&dead.decoder[first * width..], width);
            let h = Matrix::rows(&h, width);
            multiply(w, h.transposed(), (panel, width, rows), &mut by_value);
            let a = Matrix::rows(&exponentials[first..], count);
            for (at, by_value) in by_value.chunks_exact_mut(rows).enumerate() {
                let column = exponentials[first + at..].iter().step_by(count);
                by_value.iter_mut().zip(column).for_each(|(by_value, a)| *by_value *= a);
                bias[at] = by_value.iter().sum();
            }
            multiply(
                Matrix::rows(&by_value, rows),
                Matrix::rows(self.input.x, width),
                (panel, rows, width),
                encoder,
            );
            multiply(a.transposed(), h, (panel, rows, width), decoder);
        });
        value
    }

    fn pre_activation(&self, dead: &Gathered, coefficient: f64, out: &mut DeadGradient) -> f64 {
        let (count, width, rows) = (dead.bias.len(), self.input.width, self.rows());
        let thresholds = self.threshold.expect("it is a loss of autoencoders with thresholds");
        let features = out.features.clone();
        let scale = coefficient / rows as f64;
        let values = self.by_features(out, |first, panel, encoder, bias, decoder, threshold| {
            let mut by_value = vec![0.0; panel * rows];
            let mut value = 0.0;
            for (at, by_value) in by_value.chunks_exact_mut(rows).enumerate() {
                let row = &dead.decoder[(first + at) * width..][..width];
                let norm = f64::from(dot(self.isa, row, row)).sqrt();
                let limit = thresholds[features[first + at] as usize];
                let (mut missing, mut below) = (0.0, 0u32);
                let column = dead.z[first + at..].iter().step_by(count);
                for (by_value, z) in by_value.iter_mut().zip(column).filter(|(_, z)| **z < limit) {
                    missing += f64::from(limit - z);
                    below += 1;
                    *by_value = -(scale * norm) as f32;
                }
                value += scale * missing * norm;
                threshold[at] = (scale * norm * f64::from(below)) as f32;
                bias[at] = -threshold[at];
                let by_norm = if norm > 0.0 { scale * missing / norm } else { 0.0 };
                let decoder = &mut decoder[at * width..][..width];
                decoder.iter_mut().zip(row).for_each(|(d, w)| *d = (by_norm * f64::from(*w)) as f32);
            }
            multiply(
                Matrix::rows(&by_value, rows),
                Matrix::rows(self.input.x, width),
                (panel, rows, width),
                encoder,
            );
            value
        });
        values.into_iter().sum()
    }

    /// Calls `work` for each row with its number, its part of `h` [B,d] and its residual; returns the sum of what it returns.
    fn by_rows(&self, h: &mut [f32], work: impl Fn(usize, &mut [f32], &[f32]) -> f64 + Sync) -> f64 {
        let width = self.input.width;
        let blocks = h.par_chunks_mut(ROW_BLOCK * width).zip(self.residual.par_chunks(ROW_BLOCK * width));
        let values: Vec<f64> = blocks
            .enumerate()
            .map(|(block, (h, residual))| {
                let rows = h.chunks_exact_mut(width).zip(residual.chunks_exact(width)).enumerate();
                rows.map(|(at, (h, residual))| work(block * ROW_BLOCK + at, h, residual)).sum()
            })
            .collect();
        values.into_iter().sum()
    }

    /// Calls `work` for each block of dead features with the first one's place, their number and their parts of the gradients of
    /// encoder, bias, decoder and threshold.
    fn by_features<R: Send>(
        &self,
        out: &mut DeadGradient,
        work: impl Fn(usize, usize, &mut [f32], &mut [f32], &mut [f32], &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        let size = FEATURE_BLOCK * self.input.width;
        let matrices = out.encoder.par_chunks_mut(size).zip(out.decoder.par_chunks_mut(size));
        let vectors = out.bias.par_chunks_mut(FEATURE_BLOCK).zip(out.threshold.par_chunks_mut(FEATURE_BLOCK));
        matrices
            .zip(vectors)
            .enumerate()
            .map(|(block, ((encoder, decoder), (bias, threshold)))| {
                work(block * FEATURE_BLOCK, bias.len(), encoder, bias, decoder, threshold)
            })
            .collect()
    }
}

//! `frequent`: the backward sums of features that are active in many rows, one block of rows after the other.
//!
//! Features are active unevenly: a tenth of them may have nine tenths of the pairs. One feature at a time, the rows of g and X that
//! its pairs name come from a cache level that holds a whole batch. Here the features with many pairs all visit a block of rows that
//! stays in the second level, and it is their own rows, of W_dec and of gradients, that come from further away: once per block in
//! place of once per pair. The terms of each sum keep their order, so its bits do not depend on the blocks.

use rayon::prelude::*;

use super::pairs::ActivePairs;

/// A feature takes part if it has so many pairs for each block of rows. A block costs three of its rows: W_dec_j, and
/// the gradient that is read and written.
const PAIRS_PER_BLOCK: usize = 4;
/// Features of a task, at least.
const LEAST_FEATURES: usize = 4;

/// Memory for the sums of features with many pairs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Frequent {
    /// Ascending.
    features: Vec<u32>,
    /// Rows of a block.
    block: usize,
    /// The gradients of one kind of weights, [features,d].
    gradients: Vec<f32>,
    /// g_i·W_dec_j of the features' pairs, feature by feature.
    dots: Vec<f32>,
    /// Where each feature's dots begin.
    starts: Vec<usize>,
}

/// The part of a feature's pairs that lies in a block of rows.
pub(crate) struct Visit<'a> {
    /// The feature.
    pub(crate) feature: usize,
    /// How many of its pairs come before.
    pub(crate) before: usize,
    /// The rows.
    pub(crate) rows: &'a [u32],
    /// Their activations.
    pub(crate) values: &'a [f32],
    /// Where the pairs' dot products belong; empty if there is no room for any.
    pub(crate) dots: &'a mut [f32],
    /// The feature's gradient so far, [d].
    pub(crate) gradient: &'a mut [f32],
}

/// A feature on its way through the blocks.
struct Visitor<'a> {
    feature: usize,
    done: usize,
    dots: &'a mut [f32],
    gradient: &'a mut [f32],
}

impl Frequent {
    /// Chooses the features, for a batch of `rows` rows of `width` numbers; blocks of rows take `bytes`.
    pub(crate) fn choose(&mut self, pairs: &ActivePairs, rows: usize, width: usize, bytes: usize) {
        self.block = (bytes / (size_of::<f32>() * width)).max(1);
        let blocks = rows.div_ceil(self.block);
        self.features.clear();
        self.starts.clear();
        let mut total = 0;
        for (feature, range) in pairs.feature_starts.windows(2).enumerate() {
            let count = range[1] - range[0];
            if blocks > 1 && count >= PAIRS_PER_BLOCK * blocks {
                self.features.push(feature as u32);
                self.starts.push(total);
                total += count;
            }
        }
        self.starts.push(total);
        // Adding to −0 changes no number, not even −0.
        self.dots.clear();
        self.dots.resize(total, -0.0);
    }

    /// Lets the features `visit` each block of `rows` rows, with gradients that begin at 0.
    pub(crate) fn sums(
        &mut self,
        pairs: &ActivePairs,
        rows: usize,
        width: usize,
        with_dots: bool,
        visit: impl Fn(Visit<'_>) + Sync,
    ) {
        let Frequent { features, block, gradients, dots, starts } = self;
        gradients.clear();
        gradients.resize(features.len() * width, 0.0);
        let mut rest = if with_dots { &mut dots[..] } else { &mut [] };
        let own = features.iter().zip(starts.windows(2)).zip(gradients.chunks_exact_mut(width));
        let mut visitors: Vec<Visitor<'_>> = own
            .map(|((feature, range), gradient)| {
                let count = if with_dots { range[1] - range[0] } else { 0 };
                let (dots, others) = std::mem::take(&mut rest).split_at_mut(count);
                rest = others;
                Visitor { feature: *feature as usize, done: 0, dots, gradient }
            })
            .collect();
        for first in (0..rows).step_by(*block) {
            let end = first + *block;
            visitors.par_iter_mut().with_min_len(LEAST_FEATURES).for_each(|visitor| {
                let Visitor { feature, done, dots, gradient } = visitor;
                let (rows, values) = pairs.of_feature(*feature);
                let count = rows[*done..].partition_point(|row| (*row as usize) < end);
                let range = *done..*done + count;
                visit(Visit {
                    feature: *feature,
                    before: *done,
                    rows: &rows[range.clone()],
                    values: &values[range.clone()],
                    dots: if with_dots { &mut dots[range] } else { &mut [] },
                    gradient,
                });
                *done += count;
            });
        }
    }

    /// What the last [`Frequent::sums`] left of a feature: its gradient [d], and the dots of the last that had any.
    pub(crate) fn of(&self, feature: usize, width: usize) -> Option<(&[f32], &[f32])> {
        let place = self.features.binary_search(&(feature as u32)).ok()?;
        let dots = &self.dots[self.starts[place]..self.starts[place + 1]];
        Some((&self.gradients[place * width..][..width], dots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::backward::{add_rows, decoder_gradient};
    use crate::cpu::isa::Isa;

    #[test]
    fn sums_by_blocks_of_rows_are_the_same_bit_for_bit() {
        let (rows, width) = (200, 33);
        let numbers = |count: usize, seed: f32| -> Vec<f32> {
            (0..count).map(|at| ((at as f32 + seed) * 1.7).sin()).collect()
        };
        let (g, x, decoder) =
            (numbers(rows * width, 0.1), numbers(rows * width, 5.0), numbers(3 * width, 9.0));
        // Of three features the first is active in all rows, the second in one, the third in every second.
        let mut pairs = ActivePairs { feature_starts: vec![0], ..ActivePairs::default() };
        for every in [1, 200, 2] {
            pairs.rows.extend((0..rows as u32).step_by(every));
            pairs.feature_starts.push(pairs.rows.len());
        }
        pairs.feature_values = numbers(pairs.rows.len(), 2.0);
        for isa in Isa::available() {
            let mut frequent = Frequent::default();
            frequent.choose(&pairs, rows, width, 13 * 4 * width);
            assert_eq!(frequent.features, [0, 2]);
            let row = |feature: usize| &decoder[feature * width..][..width];
            frequent.sums(&pairs, rows, width, true, |visit| {
                let Visit { feature, rows, values, dots, gradient, .. } = visit;
                decoder_gradient(isa, rows, values, &g, row(feature), dots, gradient);
            });
            for feature in [0, 2] {
                let (rows, values) = pairs.of_feature(feature);
                let (mut dots, mut gradient) = (vec![0.0; rows.len()], vec![0.0; width]);
                decoder_gradient(isa, rows, values, &g, row(feature), &mut dots, &mut gradient);
                assert_eq!(frequent.of(feature, width), Some((&gradient[..], &dots[..])), "{}", isa.name());
            }
            frequent.sums(&pairs, rows, width, false, |visit| {
                add_rows(isa, visit.rows, visit.values, &x, visit.gradient);
            });
            for feature in [0, 2] {
                let (rows, values) = pairs.of_feature(feature);
                let mut gradient = vec![0.0; width];
                add_rows(isa, rows, values, &x, &mut gradient);
                assert_eq!(frequent.of(feature, width).unwrap().0, gradient, "{}", isa.name());
            }
            assert_eq!(frequent.of(1, width), None);
        }
    }
}

//! The k largest z of each row, or the k·B largest of a batch, where they are above 0: exactly those of the plain float32
//! product, ties by the lower feature and then the lower row.
//!
//! Nothing but the largest z is looked for. A few rows tell where they begin: a cutoff that is guessed from their z leaves a small
//! multiple of k pairs for a row to be found by [screening](super::screen). At least k pairs above the cutoff prove that the k
//! largest are among them; a row with fewer is searched again without a cutoff. So a guess costs time, and decides nothing.
//!
//! Screening leaves z that are within rounding of the plain product's. Where this could decide which pair is the k-th, the
//! pairs in doubt are formed again in the plain product's order.

use rayon::prelude::*;

use super::encode::{Cutoff, Encode, EncodeBuffers, Search, encode_above, preactivations};
use super::isa::Isa;
use super::pairs::{ActivePairs, Block, Pair, ROW_GROUP, RowPairs};
use super::screen::z_in_order;
use super::vector::dot;

/// Rows whose z are formed to guess cutoffs from: one in so many, within the limits below.
const ROWS_PER_SAMPLE: usize = 64;
/// Fewest of them.
const SMALLEST_SAMPLE: usize = 8;
/// Most of them.
const LARGEST_SAMPLE: usize = 64;

/// What the largest z are the largest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// The k largest of each row.
    Row,
    /// The k·B largest of the batch.
    Batch,
}

/// A search for the largest z.
#[derive(Debug, Clone, Copy)]
pub struct Largest<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Rows and encoder.
    pub input: Encode<'a>,
    /// How pairs are searched.
    pub search: Search,
    /// k, at least 1.
    pub k: usize,
    /// Of a row or of the batch.
    pub among: Among,
}

/// Memory that searches of one size share.
#[derive(Debug, Default)]
pub struct LargestMemory {
    /// A cutoff of each row.
    cutoffs: Vec<f32>,
    found: RowPairs,
    /// The pairs of rows that are searched again.
    again: RowPairs,
    /// For each row, by how much at most its z as found differ from the plain product's.
    margins: Vec<f32>,
}

impl Largest<'_> {
    /// Puts the largest into `kept`; returns how many pairs screening left to recompute.
    pub fn find(
        &self,
        buffers: &mut EncodeBuffers,
        memory: &mut LargestMemory,
        kept: &mut ActivePairs,
    ) -> usize {
        self.guess(&mut memory.cutoffs);
        match self.among {
            Among::Row => self.largest_of_rows(buffers, memory, kept),
            Among::Batch => self.largest_of_batch(buffers, memory, kept),
        }
    }

    fn largest_of_rows(
        &self,
        buffers: &mut EncodeBuffers,
        memory: &mut LargestMemory,
        kept: &mut ActivePairs,
    ) -> usize {
        let LargestMemory { cutoffs, found, again, margins } = memory;
        let (rows, features) = (self.input.rows(), self.input.features());
        let mut rechecked = self.search(self.input, Cutoff::OfRows(cutoffs), buffers, found, margins);
        let short: Vec<usize> =
            (0..rows).filter(|row| found.of_row(*row).0.len() < self.k && cutoffs[*row] > 0.0).collect();
        let x = self.gather(&short);
        if !short.is_empty() {
            let mut margins_again = Vec::new();
            let input = Encode { x: &x, ..self.input };
            rechecked += self.search(input, Cutoff::Zero, buffers, again, &mut margins_again);
            short.iter().zip(margins_again).for_each(|(row, margin)| margins[*row] = margin);
        }
        let of_row = |row| match short.binary_search(&row) {
            Ok(at) => again.of_row(at),
            Err(_) => found.of_row(row),
        };
        let group = |group: usize| {
            let (mut block, mut choice) = (Block::default(), Choice::default());
            block.begin_group();
            for row in group * ROW_GROUP..((group + 1) * ROW_GROUP).min(rows) {
                let (features, values) = of_row(row);
                let exact = |at: usize| z_in_order(self.isa, &self.input, row, features[at] as usize);
                choice.choose(self.k, values, |_| margins[row], exact, |at| (features[at], 0));
                let pairs = features.iter().zip(values).zip(&choice.keep).filter(|(_, keep)| **keep);
                let pair = |((feature, value), _): ((&u32, &f32), _)| Pair {
                    row: row as u32,
                    feature: *feature,
                    value: *value,
                };
                block.pairs.extend(pairs.map(pair));
            }
            block.begin_group();
            block
        };
        let groups: Vec<Block> = (0..rows.div_ceil(ROW_GROUP)).into_par_iter().map(group).collect();
        kept.sort(&[groups], rows, features, ROW_GROUP, features);
        rechecked
    }

    fn largest_of_batch(
        &self,
        buffers: &mut EncodeBuffers,
        memory: &mut LargestMemory,
        kept: &mut ActivePairs,
    ) -> usize {
        let LargestMemory { cutoffs, found, margins, .. } = memory;
        let (rows, features) = (self.input.rows(), self.input.features());
        let count = self.k.saturating_mul(rows);
        let mut rechecked = 0;
        // Guesses that were too high, and at last none.
        for factor in [1.0, 0.25, 0.0] {
            cutoffs.iter_mut().for_each(|cutoff| *cutoff *= factor);
            rechecked += self.search(self.input, Cutoff::OfRows(cutoffs), buffers, found, margins);
            if found.values.len() >= count {
                break;
            }
        }
        let row_of: Vec<u32> =
            (0..rows).flat_map(|row| std::iter::repeat_n(row as u32, found.of_row(row).0.len())).collect();
        let mut choice = Choice::default();
        choice.choose(
            count,
            &found.values,
            |at| margins[row_of[at] as usize],
            |at| z_in_order(self.isa, &self.input, row_of[at] as usize, found.features[at] as usize),
            |at| (found.features[at], row_of[at]),
        );
        kept.sort_some(found, features, |at| choice.keep[at]);
        rechecked
    }

    /// Pairs of `input` above their cutoffs, and the margins of their z.
    fn search(
        &self,
        input: Encode<'_>,
        above: Cutoff<'_>,
        buffers: &mut EncodeBuffers,
        found: &mut RowPairs,
        margins: &mut Vec<f32>,
    ) -> usize {
        let cells = input.rows() * input.features();
        let report = encode_above(self.isa, input, above, self.search, cells, buffers, found)
            .expect("no more pairs than there are");
        buffers.margins(&input, report, margins);
        report.rechecked
    }

    /// The given rows of X one after another.
    fn gather(&self, rows: &[usize]) -> Vec<f32> {
        let width = self.input.width;
        rows.iter().flat_map(|row| &self.input.x[row * width..][..width]).copied().collect()
    }

    /// Guesses cutoffs that leave each row, or the batch, a few more pairs than are wanted.
    fn guess(&self, cutoffs: &mut Vec<f32>) {
        let (rows, features) = (self.input.rows(), self.input.features());
        let count = (rows / ROWS_PER_SAMPLE).clamp(SMALLEST_SAMPLE, LARGEST_SAMPLE).min(rows);
        let sample: Vec<usize> = (0..count).map(|at| at * rows / count).collect();
        let x = self.gather(&sample);
        let mut z = vec![0.0; count * features];
        preactivations(self.isa, Encode { x: &x, ..self.input }, &mut z);
        cutoffs.clear();
        if self.among == Among::Batch {
            let cutoff =
                kth_largest(z.iter().copied(), self.k.saturating_mul(count) * 3 / 2, &mut Vec::new());
            return cutoffs.resize(rows, cutoff.max(0.0));
        }
        // The k-th largest z is about the same in all rows, or in proportion to their norms: whichever leaves fewer pairs.
        let kth: Vec<f32> = z
            .par_chunks(features)
            .map(|z| kth_largest(z.iter().copied(), self.k, &mut Vec::new()).max(0.0))
            .collect();
        let norm = |x: &[f32]| dot(self.isa, x, x).sqrt();
        let norms: Vec<f32> = x.chunks_exact(self.input.width).map(norm).collect();
        let constant = low(kth.clone());
        let ratio = low(kth.iter().zip(&norms).map(|(z, norm)| z / norm).collect());
        let found = |cutoff: &dyn Fn(usize) -> f32| -> usize {
            let rows = z.chunks_exact(features).enumerate();
            rows.map(|(at, z)| z.iter().filter(|z| **z > cutoff(at)).count()).sum()
        };
        if found(&|_| constant) <= found(&|at| ratio * norms[at]) {
            cutoffs.resize(rows, constant);
        } else {
            let rows = self.input.x.par_chunks_exact(self.input.width);
            rows.map(|x| ratio * norm(x)).collect_into_vec(cutoffs);
        }
    }
}

/// A little less than nearly all of `values`, and a number of at least 0.
fn low(mut values: Vec<f32>) -> f32 {
    let place = values.len() / 32;
    let (_, value, _) = values.select_nth_unstable_by(place, f32::total_cmp);
    if value.is_finite() { 0.9 * value.max(0.0) } else { 0.0 }
}

/// The k-th largest of `values`, k ≥ 1; −∞ if there are fewer.
fn kth_largest(values: impl Iterator<Item = f32>, k: usize, memory: &mut Vec<f32>) -> f32 {
    memory.clear();
    memory.extend(values);
    if memory.len() < k {
        return f32::NEG_INFINITY;
    }
    *memory.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Which of some values are the largest.
#[derive(Debug, Default)]
struct Choice {
    /// Whether each of them is.
    keep: Vec<bool>,
    memory: Vec<f32>,
    /// Values that may or may not be, formed exactly, with their place in the order of equals and in the list.
    doubtful: Vec<(f32, (u32, u32), usize)>,
}

impl Choice {
    /// Chooses the `count` largest of values that are known within their `margin`; `exact` forms one anew, and of equal ones
    /// the lowest in `order` are taken.
    fn choose(
        &mut self,
        count: usize,
        values: &[f32],
        margin: impl Fn(usize) -> f32,
        exact: impl Fn(usize) -> f32,
        order: impl Fn(usize) -> (u32, u32),
    ) {
        let Choice { keep, memory, doubtful } = self;
        keep.clear();
        keep.resize(values.len(), true);
        if values.len() <= count {
            return;
        }
        let lower = |at: usize| values[at] - margin(at);
        let upper = |at: usize| values[at] + margin(at);
        // Between these lies the `count`-th largest of the exact values.
        let least = kth_largest((0..values.len()).map(lower), count, memory);
        let most = kth_largest((0..values.len()).map(upper), count, memory);
        doubtful.clear();
        let mut certain = 0;
        for at in 0..values.len() {
            keep[at] = lower(at) > most;
            certain += usize::from(keep[at]);
            if !keep[at] && upper(at) >= least {
                let value = if margin(at) > 0.0 { exact(at) } else { values[at] };
                doubtful.push((value, order(at), at));
            }
        }
        doubtful.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        doubtful.iter().take(count - certain).for_each(|(_, _, at)| keep[*at] = true);
    }
}

#[cfg(test)]
mod tests {
    use example_steps::numbers;

    use super::*;
    use crate::cpu::screen::Grid;

    /// The largest z above 0 by their definition, as (row, feature), row by row.
    fn definition(isa: Isa, input: &Encode<'_>, k: usize, among: Among) -> Vec<(usize, usize)> {
        let (rows, features) = (input.rows(), input.features());
        let z: Vec<f32> =
            (0..rows * features).map(|at| z_in_order(isa, input, at / features, at % features)).collect();
        let largest = |rows: std::ops::Range<usize>, count: usize| {
            let mut order: Vec<(usize, usize)> =
                rows.flat_map(|row| (0..features).map(move |feature| (row, feature))).collect();
            let value = |(row, feature): (usize, usize)| z[row * features + feature];
            order.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then((a.1, a.0).cmp(&(b.1, b.0))));
            order.truncate(count);
            order.retain(|at| value(*at) > 0.0);
            order
        };
        let mut found = match among {
            Among::Row => (0..rows).flat_map(|row| largest(row..row + 1, k)).collect(),
            Among::Batch => largest(0..rows, k * rows),
        };
        found.sort();
        found
    }

    /// Checks every way of searching on every instruction set against the definition.
    fn compare(input: Encode<'_>, k: usize) {
        let searches = [
            Search::Plain,
            Search::Screened,
            Search::ScreenedOn(Grid::Bits8),
            Search::ScreenedOn(Grid::Bits16),
        ];
        for isa in Isa::available() {
            for among in [Among::Row, Among::Batch] {
                let expected = definition(isa, &input, k, among);
                for search in searches {
                    let largest = Largest { isa, input, search, k, among };
                    let (mut buffers, mut memory) = (EncodeBuffers::default(), LargestMemory::default());
                    let mut kept = ActivePairs::default();
                    largest.find(&mut buffers, &mut memory, &mut kept);
                    let of_row =
                        |row: usize| kept.of_row(row).0.iter().map(move |feature| (row, *feature as usize));
                    let got: Vec<(usize, usize)> = (0..input.rows()).flat_map(of_row).collect();
                    assert_eq!(got, expected, "{} {search:?} {among:?} {k}", isa.name());
                }
            }
        }
    }

    #[test]
    fn the_largest_are_those_of_the_plain_product_ties_included() {
        for (rows, width, features) in [(1, 1, 1), (5, 3, 17), (130, 33, 97), (50, 20, 500)] {
            let x = numbers(rows * width, 21);
            let mut weights = numbers(features * width, 22);
            let mut bias: Vec<f32> = numbers(features, 23).iter().map(|b| 0.1 * b).collect();
            // Features that equal another one, and some that differ from one by less than screening can tell.
            for feature in (3..features).step_by(3) {
                let (before, own) = weights.split_at_mut(feature * width);
                own[..width].copy_from_slice(&before[(feature - 3) * width..][..width]);
                bias[feature] = bias[feature - 3] * [1.0, 1.0 + 3e-7, 1.0 - 2e-7][feature / 3 % 3];
            }
            for k in [1, 2, 7, features / 2, features].into_iter().filter(|k| (1..=features).contains(k)) {
                compare(Encode { x: &x, weights: &weights, bias: &bias, width }, k);
            }
        }
    }

    #[test]
    fn rows_of_every_size_and_sign_are_searched_to_the_end() {
        let (rows, width, features) = (140, 24, 90);
        let mut x = numbers(rows * width, 24);
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            // Rows whose largest z lie far below or above what other rows lead to expect, and rows of zeros.
            let factor = [1.0, 1e-6, 1e6, 0.0, 30.0][row % 5];
            x.iter_mut().for_each(|x| *x *= factor);
        }
        let weights = numbers(features * width, 25);
        for shift in [-5.0, -0.3, 0.0, 2.0] {
            let bias: Vec<f32> = numbers(features, 26).iter().map(|b| b + shift).collect();
            compare(Encode { x: &x, weights: &weights, bias: &bias, width }, 6);
        }
        // Nothing is above 0, and everything is equal.
        compare(
            Encode { x: &x, weights: &vec![0.0; features * width], bias: &vec![-1.0; features], width },
            6,
        );
        compare(
            Encode { x: &x, weights: &vec![0.0; features * width], bias: &vec![1.0; features], width },
            6,
        );
    }
}

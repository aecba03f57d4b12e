//! The running frequency s_j of each feature: the mean of its firing fractions over the last n batches. Batches of another
//! sparsity are left out.
//!
//! The window holds counts, and sums over it are integers, hence exact. So a sum that is updated by adding and subtracting
//! batches equals one formed anew, and a resumed run equals an uninterrupted one.

use std::collections::VecDeque;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

/// A batch counts if its mean firing fraction is within this many decades of the newest batch's.
const OUTLIER_DECADES: f64 = 0.5;

/// One batch of the window.
#[derive(Debug, Clone, PartialEq)]
struct Batch {
    /// In how many rows each feature was active, [F].
    counts: Vec<u32>,
    /// Their sum over all features, those of other windows too.
    total: u64,
    /// Whether `counts` are part of the window's sums.
    summed: bool,
}

/// The firing counts of the last n batches of B rows.
#[derive(Debug, Clone, PartialEq)]
pub struct FrequencyWindow {
    length: usize,
    rows: usize,
    batches: VecDeque<Batch>,
    /// Σ of the counts of the batches that are summed, [F]; below 2³² because B·n is.
    sums: Vec<u32>,
    summed: usize,
}

impl FrequencyWindow {
    /// An empty window of n = `length` batches of B = `rows` rows, for F = `features`. B·n must fit 32 bits.
    pub fn new(length: usize, rows: usize, features: usize) -> FrequencyWindow {
        FrequencyWindow { length, rows, batches: VecDeque::new(), sums: vec![0; features], summed: 0 }
    }

    /// Adds the newest batch's counts [F] and drops the one that leaves the window.
    pub fn push(&mut self, counts: &[u32]) {
        self.push_part(counts, total(counts));
    }

    /// As [`FrequencyWindow::push`] for a window of some of the features: `total` is the sum over all.
    pub(crate) fn push_part(&mut self, counts: &[u32], total: u64) {
        assert_eq!(counts.len(), self.sums.len(), "a count per feature");
        let mut batch = Batch { counts: counts.to_vec(), total, summed: false };
        if self.batches.len() == self.length {
            let mut oldest = self.batches.pop_front().expect("the window is not empty");
            self.set_summed(&mut oldest, false);
        }
        self.set_summed(&mut batch, true);
        self.batches.push_back(batch);
        let level = |total: u64| (total as f64).log10();
        for at in 0..self.batches.len() - 1 {
            let near = (level(self.batches[at].total) - level(total)).abs() < OUTLIER_DECADES;
            if near != self.batches[at].summed {
                let mut batch = std::mem::replace(
                    &mut self.batches[at],
                    Batch { counts: Vec::new(), total: 0, summed: false },
                );
                self.set_summed(&mut batch, near);
                self.batches[at] = batch;
            }
        }
    }

    fn set_summed(&mut self, batch: &mut Batch, summed: bool) {
        if batch.summed == summed {
            return;
        }
        batch.summed = summed;
        for (sum, count) in self.sums.iter_mut().zip(&batch.counts) {
            *sum = if summed { *sum + count } else { *sum - count };
        }
        self.summed = if summed { self.summed + 1 } else { self.summed - 1 };
    }

    /// s_j in float64; 0 for an empty window.
    pub fn frequency(&self, feature: usize) -> f64 {
        if self.summed == 0 {
            return 0.0;
        }
        f64::from(self.sums[feature]) / (self.summed * self.rows) as f64
    }

    /// The counts of all batches, the oldest first: [batches, F].
    pub fn counts(&self) -> Array2<u32> {
        let counts = self.batches.iter().flat_map(|batch| batch.counts.iter().copied()).collect();
        let shape = (self.batches.len(), self.sums.len());
        Array2::from_shape_vec(shape, counts).expect("a count per batch and feature")
    }

    /// The window that [`FrequencyWindow::counts`] [batches, F] was taken from. The last batches are taken if there
    /// are more than the window holds.
    pub fn restored(length: usize, rows: usize, counts: ArrayView2<'_, u32>) -> FrequencyWindow {
        let features = 0..counts.ncols();
        FrequencyWindow::restored_part(length, rows, counts, features)
    }

    /// As [`FrequencyWindow::restored`] for a window of some of the features.
    pub(crate) fn restored_part(
        length: usize,
        rows: usize,
        counts: ArrayView2<'_, u32>,
        features: Range<usize>,
    ) -> FrequencyWindow {
        let part = counts.slice(s![.., features]);
        let totals: Vec<u64> =
            counts.rows().into_iter().map(|batch| batch.iter().copied().map(u64::from).sum()).collect();
        FrequencyWindow::restored_alone(length, rows, part, &totals)
    }

    /// The window of some features that [`FrequencyWindow::counts`] and [`FrequencyWindow::totals`] were taken from.
    pub(crate) fn restored_alone(
        length: usize,
        rows: usize,
        counts: ArrayView2<'_, u32>,
        totals: &[u64],
    ) -> FrequencyWindow {
        let mut window = FrequencyWindow::new(length, rows, counts.ncols());
        for (batch, total) in counts.rows().into_iter().zip(totals) {
            window.push_part(&batch.to_vec(), *total);
        }
        window
    }

    /// The sum of each batch's counts over all features, the oldest first: [batches].
    pub(crate) fn totals(&self) -> Vec<u64> {
        self.batches.iter().map(|batch| batch.total).collect()
    }
}

fn total(counts: &[u32]) -> u64 {
    counts.iter().map(|count| u64::from(*count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// A batch of 40 rows in which feature j is active in `counts[j]` rows.
    fn activations(counts: &[u32]) -> Vec<f64> {
        (0..40).flat_map(|row| counts.iter().map(move |count| f64::from(row < *count))).collect()
    }

    #[test]
    fn frequencies_equal_the_definition_while_batches_come_and_go() {
        let mut window = FrequencyWindow::new(4, 40, 3);
        let mut definition = reference::FrequencyWindow::new(4);
        // The fourth batch is ten times denser: an outlier until it is the newest; an all-zero one follows.
        let batches = [
            [1, 2, 0],
            [2, 1, 0],
            [1, 1, 1],
            [40, 20, 3],
            [1, 3, 0],
            [0, 0, 0],
            [2, 0, 1],
            [9, 0, 1],
            [5, 5, 5],
        ];
        for (t, counts) in batches.iter().enumerate() {
            window.push(counts);
            let expected = definition.push(3, &activations(counts));
            for j in 0..3 {
                let got = window.frequency(j);
                assert!((got - expected[j]).abs() < 1e-12, "batch {t} feature {j}: {got} {}", expected[j]);
            }
        }
    }

    #[test]
    fn windows_of_parts_have_the_frequencies_of_the_whole() {
        let mut whole = FrequencyWindow::new(3, 40, 4);
        let mut part = FrequencyWindow::new(3, 40, 2);
        // What is an outlier shows in the other features alone.
        for counts in [[1, 2, 0, 1], [2, 1, 30, 40], [1, 1, 1, 0], [1, 0, 0, 3], [0, 0, 1, 0]] {
            whole.push(&counts);
            part.push_part(&counts[..2], total(&counts));
            let both = (0..2).map(|j| (whole.frequency(j), part.frequency(j)));
            assert!(both.into_iter().all(|(whole, part)| whole == part), "{counts:?}");
            assert_eq!(FrequencyWindow::restored_part(3, 40, whole.counts().view(), 0..2), part);
        }
    }

    #[test]
    fn a_restored_window_goes_on_like_the_old_one() {
        let mut window = FrequencyWindow::new(3, 40, 2);
        for t in 0..10u32 {
            window.push(&[t % 7 * 5, 3]);
            let restored = FrequencyWindow::restored(3, 40, window.counts().view());
            assert_eq!(restored, window);
        }
    }
}

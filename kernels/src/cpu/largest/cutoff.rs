//! Guesses where the largest z begin.

use rayon::prelude::*;

use super::choice::{kth_largest, kth_largest_of_many};
use super::{Among, Largest};
use crate::cpu::encode::{Encode, preactivations};
use crate::cpu::vector::dot;

/// Rows whose z are formed to guess from: one in so many, within the limits below.
const ROWS_PER_SAMPLE: usize = 64;
/// Fewest of them.
const SMALLEST_SAMPLE: usize = 8;
/// Most of them.
const LARGEST_SAMPLE: usize = 64;
/// One in so many rows may have fewer than k pairs above its cutoff. It is searched again, which takes less time than more pairs of
/// all rows would.
const ROWS_PER_SHORT: usize = 32;

impl Largest<'_> {
    /// Guesses cutoffs that leave most rows, or the batch, a few more pairs than are wanted.
    pub(super) fn guess(&self, cutoffs: &mut Vec<f32>) {
        let (rows, features) = (self.input.rows(), self.input.features());
        let count = (rows / ROWS_PER_SAMPLE).clamp(SMALLEST_SAMPLE, LARGEST_SAMPLE).min(rows);
        let sample: Vec<usize> = (0..count).map(|at| at * rows / count).collect();
        let x = self.gather(&sample);
        let mut z = vec![0.0; count * features];
        preactivations(self.isa, Encode { x: &x, ..self.input }, &mut z);
        cutoffs.clear();
        if self.among == Among::Batch {
            // A quarter more, because the sample's rows may have more than their share.
            let wanted = self.k.saturating_mul(count);
            let cutoff = kth_largest_of_many(&z, wanted.saturating_add(wanted / 4), &mut Vec::new());
            return cutoffs.resize(rows, cutoff.max(0.0));
        }
        // The k-th largest z is about the same in all rows, or in proportion to their norms: whichever leaves fewer pairs.
        let kth: Vec<f32> =
            z.par_chunks(features).map(|z| kth_largest(z, self.k, &mut Vec::new()).max(0.0)).collect();
        let norm = |x: &[f32]| dot(self.isa, x, x).sqrt();
        let norms: Vec<f32> = x.chunks_exact(self.input.width).map(norm).collect();
        let constant = low(kth.clone());
        let ratio = low(kth.iter().zip(&norms).map(|(z, norm)| z / norm).collect());
        let found = |cutoff: &dyn Fn(usize) -> f32| -> usize {
            let rows = z.chunks_exact(features).enumerate();
            let above = |(at, z): (usize, &[f32])| {
                let cutoff = cutoff(at);
                z.iter().filter(|z| **z > cutoff).count()
            };
            rows.map(above).sum()
        };
        if found(&|_| constant) <= found(&|at| ratio * norms[at]) {
            cutoffs.resize(rows, constant);
        } else {
            let rows = self.input.x.par_chunks_exact(self.input.width);
            rows.map(|x| ratio * norm(x)).collect_into_vec(cutoffs);
        }
    }
}

/// What most of `values` are above, and a number of at least 0.
fn low(mut values: Vec<f32>) -> f32 {
    let place = values.len() / ROWS_PER_SHORT;
    let (_, value, _) = values.select_nth_unstable_by(place, f32::total_cmp);
    // The sample's own pair is to be found as well.
    if value.is_finite() { 0.999 * value.max(0.0) } else { 0.0 }
}

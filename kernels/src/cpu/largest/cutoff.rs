//! Guesses where the largest z begin.
//!
//! The z of a few rows, the sample, tell three things: where their k-th largest z lies, where it lies in units of the row's norm,
//! and which features are often among the largest. The k-th largest z of a row *among some features* is at most that among all;
//! with the features that are often among the largest it is only a little less. These features' z are formed for all rows,
//! where the sample says that the time they take is well spent.

use rayon::prelude::*;

use super::choice::{kth_largest, kth_largest_in, kth_largest_of_many};
use crate::cpu::dense::{self, PackedFactors};
use crate::cpu::encode::{Encode, preactivations};
use crate::cpu::isa::Isa;
use crate::cpu::products::Products;
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
/// Cutoffs are lower than what they are guessed from by more than rounding, so that the k-th largest is above.
const A_LITTLE_LESS: f32 = 0.999;

/// The z of an autoencoder's frequent features are formed for at most one feature in so many.
const FEATURES_PER_FREQUENT: usize = 8;
/// And for at most so many times k.
const FREQUENT_PER_K: usize = 16;
/// Groups of frequent features for each of the k, of which only the largest z counts.
const GROUPS_PER_K: usize = 4;
/// Forming the z of so many frequent features takes as long as finding and dropping a pair.
const FREQUENT_PER_PAIR: usize = 24;

/// A guess for a search for the largest z.
pub(super) struct Guess<'a> {
    pub(super) isa: Isa,
    pub(super) input: Encode<'a>,
    /// How the frequent features' z are formed.
    pub(super) products: Products,
    pub(super) k: usize,
}

/// Memory for guesses.
#[derive(Debug, Default)]
pub(super) struct GuessMemory {
    z: Vec<f32>,
    packed: PackedFactors,
}

impl GuessMemory {
    /// Whether the last guess was from frequent features.
    #[cfg(test)]
    pub(super) fn has_frequent(&self) -> bool {
        !self.z.is_empty()
    }
}

impl Guess<'_> {
    /// A cutoff that leaves the batch a few more than k pairs a row, for each row the same.
    pub(super) fn of_batch(&self, cutoffs: &mut Vec<f32>) {
        let (x, z) = self.sample();
        // A quarter more, because the sample's rows may have more than their share.
        let wanted = self.k.saturating_mul(x.len() / self.input.width);
        let cutoff = kth_largest_of_many(&z, wanted.saturating_add(wanted / 4), &mut Vec::new());
        cutoffs.clear();
        cutoffs.resize(self.input.rows(), cutoff.max(0.0));
    }

    /// Cutoffs that leave most rows a few more than k pairs.
    pub(super) fn of_rows(&self, memory: &mut GuessMemory, cutoffs: &mut Vec<f32>) {
        let (rows, features) = (self.input.rows(), self.input.features());
        let (x, z) = self.sample();
        let count = x.len() / self.input.width;
        cutoffs.clear();
        let kth: Vec<f32> =
            z.par_chunks(features).map(|z| kth_largest(z, self.k, &mut Vec::new()).max(0.0)).collect();
        let norm = |x: &[f32]| dot(self.isa, x, x).sqrt();
        let norms: Vec<f32> = x.chunks_exact(self.input.width).map(norm).collect();
        let constant = low(kth.clone());
        let ratio = low(kth.iter().zip(&norms).map(|(z, norm)| z / norm).collect());
        let frequent = self.frequent(&z);
        // Half of the sample's rows say which features are frequent, the other half what they are good for.
        let found = |cutoff: &(dyn Fn(usize, &[f32]) -> f32 + Sync)| -> usize {
            let rows = z.par_chunks(features).enumerate().filter(|(at, _)| at % 2 == 1);
            let above = |(at, z): (usize, &[f32])| {
                let cutoff = cutoff(at, z);
                z.iter().filter(|z| **z > cutoff).count()
            };
            rows.map(above).sum()
        };
        let alike = found(&|_, _| constant);
        let by_norm = found(&|at, _| ratio * norms[at]);
        let by_frequent = (!frequent.is_empty()).then(|| {
            let pairs = found(&|_, z| {
                let z: Vec<f32> = frequent.iter().map(|feature| z[*feature as usize]).collect();
                self.at_least(&z, &mut Vec::new())
            });
            pairs + count / 2 * frequent.len() / FREQUENT_PER_PAIR
        });
        if by_frequent.is_some_and(|pairs| pairs < alike.min(by_norm)) {
            self.by_frequent(&frequent, memory, cutoffs);
        } else if alike <= by_norm {
            cutoffs.resize(rows, constant);
        } else {
            let rows = self.input.x.par_chunks_exact(self.input.width);
            rows.map(|x| ratio * norm(x)).collect_into_vec(cutoffs);
        }
    }

    /// Some rows and all their z.
    fn sample(&self) -> (Vec<f32>, Vec<f32>) {
        let rows = self.input.rows();
        let count = (rows / ROWS_PER_SAMPLE).clamp(SMALLEST_SAMPLE, LARGEST_SAMPLE).min(rows);
        let sample: Vec<usize> = (0..count).map(|at| at * rows / count).collect();
        let x = self.input.gather(&sample);
        let mut z = vec![0.0; count * self.input.features()];
        preactivations(self.isa, Encode { x: &x, ..self.input }, &mut z);
        (x, z)
    }

    /// The features that are most often among the 2k largest of every other row of the sample, the most frequent first: as many
    /// as make whole groups. None if these would not be much fewer than all.
    fn frequent(&self, z: &[f32]) -> Vec<u32> {
        let features = self.input.features();
        let groups = self.k.saturating_mul(GROUPS_PER_K);
        let most = (features / FEATURES_PER_FREQUENT).min(self.k.saturating_mul(FREQUENT_PER_K));
        let count = most / groups * groups;
        if count == 0 {
            return Vec::new();
        }
        let mut counts = vec![0u32; features];
        let mut memory = Vec::new();
        for z in z.chunks_exact(features).step_by(2) {
            let least = kth_largest(z, (2 * self.k).min(features), &mut memory);
            counts.iter_mut().zip(z).for_each(|(count, z)| *count += u32::from(*z >= least));
        }
        let mut order: Vec<u32> = (0..features as u32).collect();
        let key = |feature: &u32| (std::cmp::Reverse(counts[*feature as usize]), *feature);
        order.select_nth_unstable_by_key(count - 1, key);
        order.truncate(count);
        order.sort_unstable_by_key(key);
        order
    }

    /// A number that the row's k-th largest z is not below, from the z of the frequent features, and at least 0: the k-th largest
    /// of the largest ones of groups. Groups hold frequent and less frequent features alike.
    fn at_least(&self, z: &[f32], groups: &mut Vec<f32>) -> f32 {
        let (first, others) = z.split_at(self.k * GROUPS_PER_K);
        groups.clear();
        groups.extend_from_slice(first);
        for other in others.chunks_exact(groups.len()) {
            groups.iter_mut().zip(other).for_each(|(most, z)| *most = most.max(*z));
        }
        A_LITTLE_LESS * kth_largest_in(groups, self.k).max(0.0)
    }

    /// Cutoffs from the frequent features' z.
    fn by_frequent(&self, frequent: &[u32], memory: &mut GuessMemory, cutoffs: &mut Vec<f32>) {
        let width = self.input.width;
        let row = |feature: &u32| &self.input.weights[*feature as usize * width..][..width];
        let weights: Vec<f32> = frequent.iter().flat_map(row).copied().collect();
        let bias: Vec<f32> = frequent.iter().map(|feature| self.input.bias[*feature as usize]).collect();
        let input = Encode { weights: &weights, bias: &bias, ..self.input };
        memory.z.resize(input.rows() * frequent.len(), 0.0);
        dense::encode_all(self.isa, self.products, input, &mut memory.packed, &mut memory.z);
        let rows = memory.z.par_chunks_exact(frequent.len());
        rows.map_init(Vec::new, |groups, z| self.at_least(z, groups)).collect_into_vec(cutoffs);
    }
}

/// What most of `values` are above, and a number of at least 0.
fn low(mut values: Vec<f32>) -> f32 {
    let place = values.len() / ROWS_PER_SHORT;
    let (_, value, _) = values.select_nth_unstable_by(place, f32::total_cmp);
    if value.is_finite() { A_LITTLE_LESS * value.max(0.0) } else { 0.0 }
}

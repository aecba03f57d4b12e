//! `select`: between encode and decode. The encode finds the pairs (row, feature) that can matter; the selection says which
//! of them are active, and which others the backward pass has to see. [`largest`](super::largest) is the one that must know
//! its cutoffs before it can search.

use rayon::prelude::*;

use super::largest::LargestMemory;
use super::pairs::{ActivePairs, RowPairs};

/// What a selection leaves of a batch's pairs.
#[derive(Debug, Default)]
pub struct Selected {
    /// The active pairs, which go on to decode, backward and the counts.
    pub kept: ActivePairs,
    /// Pairs that are not active, but whose z lies so near to a threshold that the threshold's gradient sees them. None where
    /// no threshold is trained.
    pub near: ActivePairs,
    /// What the encode found, where that is more than is kept.
    pub(crate) found: RowPairs,
    pub(crate) largest: LargestMemory,
}

impl Selected {
    /// Divides the pairs found above some cutoff into those above their feature's threshold θ [F], which are active, and
    /// the others, which are near.
    pub(crate) fn above(&mut self, thresholds: &[f32]) {
        let Selected { kept, near, found, .. } = self;
        let is_active = |at: usize| found.values[at] > thresholds[found.features[at] as usize];
        kept.take(found, thresholds.len(), is_active);
        near.take(found, thresholds.len(), |at| !is_active(at));
    }
}

/// a [B,F] from z [B,F]: z where it is above θ [F], 0 elsewhere.
pub(crate) fn activations_above(thresholds: &[f32], z: &[f32], activations: &mut [f32]) {
    let rows = activations.par_chunks_mut(thresholds.len()).zip(z.par_chunks(thresholds.len()));
    rows.for_each(|(activations, z)| {
        for ((a, z), threshold) in activations.iter_mut().zip(z).zip(thresholds) {
            *a = if z > threshold { *z } else { 0.0 };
        }
    });
}

//! What a tile of an instruction set reads, and what it says.

use super::operands::{FeatureBounds, RowBound};
use super::rounding::Grid;
use crate::cpu::vector::prefetch;

/// What finding the candidates of a group of rows in a tile's features reads.
pub(super) struct Strip<'a> {
    pub(super) grid: Grid,
    /// Groups of columns.
    pub(super) groups: usize,
    /// The rows' words: for each tile, for each run of groups of columns one run of each row.
    pub(super) rows: &'a [u32],
    /// The rows' shares of the bound.
    pub(super) row_bounds: &'a [RowBound],
    /// The weights' words: for each group of columns one of each feature.
    pub(super) weights: &'a [u32],
    /// The features' shares of the bound.
    pub(super) bounds: &'a [FeatureBounds],
    /// Numbers that are read soon, to be prefetched.
    pub(super) coming: &'a [f32],
}

/// A tile of a strip.
pub(super) struct Tile<'a, const HEIGHT: usize> {
    /// For each run of groups of columns one run of each row.
    pub(super) rows: &'a [u32],
    /// The rows' shares of the bound.
    pub(super) row_bounds: [&'a RowBound; HEIGHT],
    /// The features' shares of the bound.
    pub(super) bounds: &'a [FeatureBounds],
}

/// For each row of a tile a bit for each feature: whether the pair can be active. The bits of what only fills the tile
/// say nothing.
pub(super) type Masks<const HEIGHT: usize> = [u32; HEIGHT];

impl<'a> Strip<'a> {
    /// Calls `possible` for each tile, which gives its masks; inlined into functions of an instruction set.
    #[inline(always)]
    pub(super) fn each_tile<const HEIGHT: usize>(
        &self,
        masks: &mut [u32],
        possible: impl Fn(&Tile<'_, HEIGHT>) -> Masks<HEIGHT>,
    ) {
        let (masks, _) = masks.as_chunks_mut::<HEIGHT>();
        let mut coming = self.coming.chunks(self.coming.len().div_ceil(masks.len()).max(1));
        let tiles = self.rows.chunks_exact(HEIGHT * self.groups);
        for (tile, (masks, rows)) in masks.iter_mut().zip(tiles).enumerate() {
            prefetch(coming.next().unwrap_or_default());
            // The bounds of rows that only fill the tile are of no interest.
            let last = self.row_bounds.len() - 1;
            let row_bounds = std::array::from_fn(|m| &self.row_bounds[(tile * HEIGHT + m).min(last)]);
            *masks = possible(&Tile { rows, row_bounds, bounds: self.bounds });
        }
    }
}

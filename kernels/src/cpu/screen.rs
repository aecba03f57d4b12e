//! Screening: an integer product that rules out most pairs (row, feature) before the exact product.
//!
//! z = x·w + b is split at the batch's mean m, scaled column by column and rotated by an orthogonal matrix R,
//! x' = R (x − m)/c, w' = R (c·w), so that z = x'·w' + (m·w + b). Rows and weights are rounded to integers times a step of
//! their own, x' ≈ x_q, w' ≈ w_q; then
//!
//! ```text
//! |x'·w' − x_q·w_q| ≤ ‖x' − x_q‖·‖w'‖ + ‖x_q‖·‖w' − w_q‖        (Cauchy–Schwarz, with the actual residuals)
//! ```
//!
//! and only pairs with x_q·w_q + (m·w + b) + that bound + the float32 rounding bounds > c can have a z above the cutoff c, which
//! is 0 for ReLU. They are [recomputed](recheck) in float32 from x and w. So the set of pairs that are found is that of the plain
//! product, bit for bit, and values differ only by rounding.
//!
//! Two grids of integers are available ([`Grid`]). The 8-bit product is faster and leaves more pairs to recompute; the
//! 16-bit product leaves hardly more than the active ones. Which is better depends on how sparse the activations are, so
//! both are tried on the first rows of each batch.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod candidates;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operands;
mod recheck;
pub(crate) mod rounding;
mod strip;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use super::isa::{Isa, Level};
use super::operands::{Cutoff, Encode};
use super::pairs::ROW_GROUP;
pub(crate) use candidates::Candidates;
pub(crate) use operands::Screened;
use operands::{BOUND_LANES, Geometry};
pub(crate) use recheck::{Memory as RecheckMemory, recheck, z_in_order};
pub use rounding::Grid;
use strip::Strip;

/// The tiles for which there is code: each brings its own geometry and says which CPUs it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TileCode {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl TileCode {
    /// The fastest one that the instruction set allows on this CPU, if there is any.
    fn of(isa: Isa) -> Option<TileCode> {
        match isa.level() {
            Level::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if isa.has_vnni() => Some(TileCode::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => Some(TileCode::Avx2),
            // Without dotprod the products of integers would take as long as those of floats.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                std::arch::is_aarch64_feature_detected!("dotprod").then_some(TileCode::NeonDotprod)
            }
        }
    }

    fn geometry(self) -> Geometry {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx2 => x86::GEOMETRY,
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx512Vnni => avx512::GEOMETRY,
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => neon::GEOMETRY,
        }
    }

    /// The masks of each row of the strip's tiles.
    fn possible(self, strip: &Strip<'_>, masks: &mut [u32]) {
        match self {
            // SAFETY: this code is only chosen where the CPU has AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx2 => unsafe { x86::possible(strip, masks) },
            // SAFETY: this code is only chosen where the CPU has AVX-512 with VNNI.
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx512Vnni => unsafe { avx512::possible(strip, masks) },
            // SAFETY: this code is only chosen where the CPU has `dotprod`.
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => unsafe { neon::possible(strip, masks) },
        }
    }
}

/// Whether a screening tile exists for the instruction set.
pub(crate) fn available(isa: Isa) -> bool {
    TileCode::of(isa).is_some()
}

const NO_TILE: &str = "screening asks first whether there is a tile";

/// Rounds the first `rows` rows and the first `features` features to `grid`, in the order in which the tile reads them.
pub(crate) fn round(
    isa: Isa,
    screened: &mut Screened,
    input: &Encode<'_>,
    above: Cutoff<'_>,
    grid: Grid,
    rows: usize,
    features: usize,
) {
    let tile = TileCode::of(isa).expect(NO_TILE).geometry();
    screened.round(isa, tile, input, above, grid, rows, features);
}

/// Finds the candidates of the rows `group`, at most [`ROW_GROUP`] of them, among `features`, which begin with a tile.
///
/// A tile's weights are used for all the group's rows while they are in the first cache level. The rows' float32
/// numbers, which lie in the third level at best, are asked for meanwhile: the next thing is to compute the
/// candidates again.
pub(crate) fn find_candidates(
    isa: Isa,
    input: &Encode<'_>,
    screened: &Screened,
    group: Range<usize>,
    features: Range<usize>,
    found: &mut Candidates,
) {
    let tile = TileCode::of(isa).expect(NO_TILE);
    let Geometry { height, width } = tile.geometry();
    assert!(group.len() <= ROW_GROUP && group.start.is_multiple_of(height));
    assert!(features.start.is_multiple_of(width) && features.end <= screened.weights.count);
    let Screened { grid, rows, weights, .. } = screened;
    let Candidates { stride, bits } = found;
    *stride = features.len().div_ceil(64);
    bits.clear();
    bits.resize(group.len() * *stride, 0);
    let groups = grid.column_groups(input.width);
    let lines = group.len().next_multiple_of(height);
    let x = &input.x[group.start * input.width..group.end * input.width];
    let mut coming = x.chunks(x.len().div_ceil(features.len().div_ceil(width)));
    let mut masks = [0; ROW_GROUP];
    for (at, first) in features.clone().step_by(width).enumerate() {
        let strip = Strip {
            grid: *grid,
            groups,
            rows: &rows.words[group.start * groups..][..lines * groups],
            row_bounds: &rows.bounds[group.clone()],
            weights: &weights.words[first * groups..][..width * groups],
            bounds: &weights.bounds[first / BOUND_LANES..][..width / BOUND_LANES],
            coming: coming.next().unwrap_or_default(),
        };
        tile.possible(&strip, &mut masks[..lines]);
        let (word, shift) = (at * width / 64, at * width % 64);
        // Not the features that only fill the tile: a bound that is NaN would not rule them out.
        let existing = u64::MAX >> (64 - width.min(features.end - first));
        for (bits, mask) in bits.chunks_exact_mut(*stride).zip(&masks) {
            bits[word] |= (u64::from(*mask) & existing) << shift;
        }
    }
}

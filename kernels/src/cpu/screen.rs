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
//! and only pairs with x_q·w_q + (m·w + b) + that bound + the float32 rounding bounds > 0 can be active. They
//! are [recomputed](recheck) in float32 from x and w. So the set of active pairs is that of the plain product, bit for bit,
//! and values differ only by rounding.
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
use super::operands::Encode;
use super::pairs::ROW_GROUP;
pub(crate) use candidates::Candidates;
pub(crate) use operands::Screened;
use operands::{TILE_HEIGHT, TILE_WIDTH};
pub(crate) use recheck::{Memory as RecheckMemory, recheck};
pub use rounding::Grid;
use strip::{Masks, Strip};

/// Whether a screening tile exists for the instruction set.
pub(crate) fn available(isa: Isa) -> bool {
    match isa.level() {
        Level::Portable => false,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => true,
        // Without it the products of integers would take as long as those of floats.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
    }
}

/// The masks of each tile of the strip.
fn possible(isa: Isa, strip: &Strip<'_>, masks: &mut [Masks]) {
    match isa.level() {
        // SAFETY: an Isa of this level is only made where the CPU has AVX-512, and VNNI was just found.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if isa.has_vnni() => unsafe { avx512::possible(strip, masks) },
        // SAFETY: an Isa of these levels is only made where the CPU has AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => unsafe { x86::possible(strip, masks) },
        // SAFETY: screening asks first whether there is a tile.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { neon::possible(strip, masks) },
        Level::Portable => unreachable!("screening asks first whether there is a tile"),
    }
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
    const TILES_PER_WORD: usize = 64 / TILE_WIDTH;
    assert!(available(isa), "no screening tile for this instruction set");
    assert!(group.len() <= ROW_GROUP && group.start.is_multiple_of(TILE_HEIGHT));
    assert!(features.start.is_multiple_of(TILE_WIDTH) && features.end <= screened.weights.count);
    let Screened { grid, rows, weights, .. } = screened;
    let Candidates { stride, bits } = found;
    *stride = features.len().div_ceil(64);
    bits.clear();
    bits.resize(group.len() * *stride, 0);
    let groups = grid.column_groups(input.width);
    let tiles = group.len().div_ceil(TILE_HEIGHT);
    let x = &input.x[group.start * input.width..group.end * input.width];
    let mut coming = x.chunks(x.len().div_ceil(features.len().div_ceil(TILE_WIDTH)));
    let mut masks = [[0; TILE_HEIGHT]; ROW_GROUP / TILE_HEIGHT];
    for (at, first) in features.clone().step_by(TILE_WIDTH).enumerate() {
        let strip = Strip {
            grid: *grid,
            groups,
            rows: &rows.words[group.start * groups..][..tiles * TILE_HEIGHT * groups],
            row_bounds: &rows.bounds[group.clone()],
            weights: &weights.words[first * groups..][..TILE_WIDTH * groups],
            bound: &weights.bounds[first / TILE_WIDTH],
            coming: coming.next().unwrap_or_default(),
        };
        possible(isa, &strip, &mut masks[..tiles]);
        let (word, shift) = (at / TILES_PER_WORD, at % TILES_PER_WORD * TILE_WIDTH);
        // Not the features that only fill the tile: a bound that is NaN would not rule them out.
        let existing = u64::MAX >> (64 - TILE_WIDTH.min(features.end - first));
        for (bits, mask) in bits.chunks_exact_mut(*stride).zip(masks.as_flattened()) {
            bits[word] |= (u64::from(*mask) & existing) << shift;
        }
    }
}

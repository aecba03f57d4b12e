//! Screening: a cheap product that rules out most pairs (row, feature) before the exact product.
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
//! There are several grids ([`Grid`]). The 8-bit product is the fastest and leaves most pairs to recompute; the 16-bit product
//! leaves hardly more than the active ones; with matrix units, bfloat16 lies between them. Which is best depends on how sparse
//! the activations are, so they are tried on the first rows of each batch.

#[cfg(target_arch = "x86_64")]
mod amx;
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
mod vnni;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use matrix_units::{MatrixUnits, Tiles};

use super::isa::{Isa, Level};
use super::operands::{Cutoff, Encode};
use super::pairs::ROW_GROUP;
pub(crate) use candidates::Candidates;
use operands::{BOUND_LANES, Geometry};
pub(crate) use operands::{Moments, Screened};
pub(crate) use recheck::{Memory as RecheckMemory, recheck, z_in_order};
use rounding::Form;
pub use rounding::Grid;
use strip::Strip;

/// The tiles for which there is code: each brings its own geometry and says which CPUs it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TileCode {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Amx(MatrixUnits),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

/// What an encode costs by screening, in units of the plain product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    /// The grids that there is code for, the cheapest first, and what they cost besides the candidates.
    pub(crate) grids: &'static [(Grid, f64)],
    /// What computing a candidate again costs, in units of a pair of the plain product: both its rows come from a cache level
    /// that the tile does not wait for.
    pub(crate) recheck: f64,
}

impl TileCode {
    /// The fastest one that the instruction set allows on this CPU, if there is any.
    fn of(isa: Isa) -> Option<TileCode> {
        #[cfg(target_arch = "x86_64")]
        if let Some(units) = isa.matrix_units() {
            return Some(TileCode::Amx(units));
        }
        match isa.level() {
            Level::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if isa.has_vnni() => Some(TileCode::Vnni),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Some(TileCode::Avx512),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Some(TileCode::Avx2),
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
            TileCode::Avx512 => avx512::GEOMETRY,
            #[cfg(target_arch = "x86_64")]
            TileCode::Vnni => vnni::GEOMETRY,
            #[cfg(target_arch = "x86_64")]
            TileCode::Amx(_) => amx::GEOMETRY,
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => neon::GEOMETRY,
        }
    }

    /// In what form it reads a grid's numbers; None if there is no code for that grid.
    fn form(self, grid: Grid) -> Option<Form> {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx2 => x86::form(grid),
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx512 => avx512::form(grid),
            #[cfg(target_arch = "x86_64")]
            TileCode::Vnni => vnni::form(grid),
            #[cfg(target_arch = "x86_64")]
            TileCode::Amx(_) => Some(amx::form(grid)),
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => neon::form(grid),
        }
    }

    /// What it costs: measured, but on aarch64, where it is reckoned from what an instruction does there, four times the
    /// products of float32 for bytes, as many for words.
    fn costs(self) -> Costs {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx2 | TileCode::Avx512 | TileCode::Vnni => {
                Costs { grids: &[(Grid::Bits8, 0.42), (Grid::Bits16, 0.68)], recheck: 6.0 }
            }
            #[cfg(target_arch = "x86_64")]
            TileCode::Amx(_) => Costs {
                grids: &[(Grid::Bits8, 0.13), (Grid::Bfloat16, 0.25), (Grid::Bits16, 0.29)],
                recheck: 8.0,
            },
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => {
                Costs { grids: &[(Grid::Bits8, 0.35), (Grid::Bits16, 1.0)], recheck: 6.0 }
            }
        }
    }

    /// What the current thread needs while tiles are computed.
    fn units(self) -> Option<Tiles> {
        match self {
            #[cfg(target_arch = "x86_64")]
            TileCode::Amx(units) => Some(units.tiles()),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// The masks of each row of the strip's tiles.
    fn possible(self, strip: &Strip<'_>, masks: &mut [u32]) {
        match self {
            // SAFETY: this code is only chosen where the CPU has AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx2 => unsafe { x86::possible(strip, masks) },
            // SAFETY: this code is only chosen where the CPU has AVX-512, BW included.
            #[cfg(target_arch = "x86_64")]
            TileCode::Avx512 => unsafe { avx512::possible(strip, masks) },
            // SAFETY: this code is only chosen where the CPU has AVX-512 with VNNI.
            #[cfg(target_arch = "x86_64")]
            TileCode::Vnni => unsafe { vnni::possible(strip, masks) },
            // SAFETY: where there are matrix units, there is AVX-512; the thread has its tiles.
            #[cfg(target_arch = "x86_64")]
            TileCode::Amx(_) => unsafe { amx::possible(strip, masks) },
            // SAFETY: this code is only chosen where the CPU has `dotprod`.
            #[cfg(target_arch = "aarch64")]
            TileCode::NeonDotprod => unsafe { neon::possible(strip, masks) },
        }
    }
}

/// Whether a screening tile exists for the instruction set and the grid.
pub(crate) fn available(isa: Isa, grid: Grid) -> bool {
    TileCode::of(isa).is_some_and(|tile| tile.form(grid).is_some())
}

/// What screening costs with the instruction set; None if there is no tile for it.
pub(crate) fn costs(isa: Isa) -> Option<Costs> {
    TileCode::of(isa).map(TileCode::costs)
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
    let tile = TileCode::of(isa).expect(NO_TILE);
    let form = tile.form(grid).expect(NO_TILE);
    screened.round(isa, (tile.geometry(), form), input, above, grid, rows, features);
}

/// Rounds all rows to the grid that the weights are rounded to.
pub(crate) fn round_rows(isa: Isa, screened: &mut Screened, input: &Encode<'_>, above: Cutoff<'_>) {
    let tile = TileCode::of(isa).expect(NO_TILE);
    let form = tile.form(screened.grid).expect(NO_TILE);
    screened.round_rows(isa, (tile.geometry(), form), input.x, above);
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
    let Geometry { height, width, .. } = tile.geometry();
    assert!(group.len() <= ROW_GROUP && group.start.is_multiple_of(height));
    assert!(features.start.is_multiple_of(width) && features.end <= screened.weights.count);
    let Screened { grid, groups, rows, weights, .. } = screened;
    let groups = *groups;
    let Candidates { stride, bits } = found;
    *stride = features.len().div_ceil(64);
    bits.clear();
    bits.resize(group.len() * *stride, 0);
    let lines = group.len().next_multiple_of(height);
    let x = &input.x[group.start * input.width..group.end * input.width];
    let mut coming = x.chunks(x.len().div_ceil(features.len().div_ceil(width)));
    let mut masks = [0; ROW_GROUP];
    let units = tile.units();
    for (at, first) in features.clone().step_by(width).enumerate() {
        let strip = Strip {
            grid: *grid,
            groups,
            rows: &rows.words[group.start * groups..][..lines * groups],
            row_bounds: &rows.bounds[group.clone()],
            weights: &weights.words[first * groups..][..width * groups],
            bounds: &weights.bounds[first / BOUND_LANES..][..width / BOUND_LANES],
            // Matrix units read from the second cache level faster than a prefetch lets them.
            coming: if units.is_none() { coming.next().unwrap_or_default() } else { &[] },
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

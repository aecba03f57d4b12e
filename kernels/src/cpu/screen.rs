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
#[cfg(target_arch = "aarch64")]
mod neon;
mod recheck;
mod rounding;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use rayon::prelude::*;

use super::encode::Encode;
use super::isa::{Isa, Level, per_isa};
use super::pairs::ROW_GROUP;
use super::vector::{dot_inline, prefetch};
use recheck::Candidate;
pub(crate) use recheck::{Memory as RecheckMemory, recheck};
pub use rounding::Grid;
pub(crate) use rounding::spread;
use rounding::{Rounder, interleave};

/// Features of a tile.
const TILE_WIDTH: usize = 16;
/// Rows of a tile.
const TILE_HEIGHT: usize = 6;

const _: () = assert!(ROW_GROUP.is_multiple_of(TILE_HEIGHT));

/// The batch and the encoder, rounded.
#[derive(Debug, Default)]
pub(crate) struct Screened {
    columns: Columns,
    grid: Grid,
    rows: Rows,
    weights: Weights,
}

/// How columns are shifted and scaled before rounding. Any choice keeps the result exact.
#[derive(Debug, Default)]
struct Columns {
    /// m, [d].
    centre: Vec<f32>,
    /// c, [d].
    scale: Vec<f32>,
    /// 1/c, [d].
    inverse_scale: Vec<f32>,
    /// ‖m/c‖.
    centre_norm: f32,
}

/// The batch, rounded.
#[derive(Debug, Default)]
struct Rows {
    /// x_q in steps: for each [`TILE_HEIGHT`] rows (what lies beyond the last one counts for nothing), for each group of
    /// columns, the rows' words side by side.
    words: Vec<u32>,
    /// What each row contributes to the bound, [B].
    bounds: Vec<RowBound>,
}

/// A row's share of the bound.
#[derive(Debug, Clone, Copy, Default)]
struct RowBound {
    /// One step of x_q.
    step: f32,
    /// Multiplies ‖w'‖: ‖x' − x_q‖ and all rounding.
    residual: f32,
    /// Multiplies ‖w' − w_q‖: ‖x_q‖.
    norm: f32,
    /// Multiplies ‖w'‖: the rounding of a float32 sum, in whichever order.
    rounding: f32,
}

/// The weights, rounded.
#[derive(Debug, Default)]
struct Weights {
    /// F.
    count: usize,
    /// w_q in steps: for each [`TILE_WIDTH`] features (what lies beyond the last one counts for nothing), for each group
    /// of columns, the features' words side by side.
    words: Vec<u32>,
    /// What each tile's features contribute to the bound.
    bounds: Vec<TileBound>,
}

/// The shares of a tile's features of the bound.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct TileBound {
    /// What a sum begins with.
    start: [i32; TILE_WIDTH],
    /// One step of w_q.
    step: [f32; TILE_WIDTH],
    /// ‖w'‖.
    norm: [f32; TILE_WIDTH],
    /// ‖w' − w_q‖.
    residual: [f32; TILE_WIDTH],
    /// m·w + b and the slack of both.
    base: [f32; TILE_WIDTH],
}

/// How far rounding can move a float32 sum of d products, relative to the product of the norms; generous
/// enough for all sums in here together.
fn rounding(width: usize) -> f32 {
    (width + 64) as f32 * 2.0f32.powi(-22)
}

per_isa! {
    /// R (x − m)·(1/c) into `out`.
    fn turn_row(x: &[f32], centre: &[f32], inverse_scale: &[f32], out: &mut [f32]) {
        let length = out.len();
        let (x, centre, inverse) = (&x[..length], &centre[..length], &inverse_scale[..length]);
        for at in 0..length {
            out[at] = (x[at] - centre[at]) * inverse[at];
        }
        spread(out);
    }
}

per_isa! {
    /// R (c·w) into `out`; returns m·w.
    fn turn_weights(w: &[f32], centre: &[f32], scale: &[f32], out: &mut [f32]) -> f32 {
        for ((out, w), scale) in out.iter_mut().zip(w).zip(scale) {
            *out = w * scale;
        }
        spread(out);
        dot_inline::<FMA>(w, centre)
    }
}

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

impl Columns {
    /// The column's mean, and a scale that gives rows and weights the same spread in every column, so that a column with
    /// large activations does not coarsen all others' steps.
    fn choose(&mut self, input: &Encode<'_>) {
        let width = input.width;
        let moments = |rows: &[f32]| {
            let mut moments = vec![(0.0f64, 0.0f64); width];
            for row in rows.chunks_exact(width) {
                for (moment, x) in moments.iter_mut().zip(row) {
                    let x = f64::from(*x);
                    *moment = (moment.0 + x, moment.1 + x * x);
                }
            }
            moments
        };
        let partial: Vec<_> = input.x.par_chunks(64 * width).map(moments).collect();
        let count = (input.x.len() / width) as f64;
        // A sample of the weight rows is enough to see how large each column's weights are.
        let stride = (input.bias.len() / 128).max(1);
        let sample = input.weights.chunks_exact(width).step_by(stride);
        let mut weight_squares = vec![0.0f64; width];
        for row in sample {
            weight_squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(w * w));
        }
        self.centre.clear();
        self.scale.clear();
        for k in 0..width {
            let (sum, squares) =
                partial.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part[k].0, sum.1 + part[k].1));
            let mean = sum / count;
            let spread = (squares / count - mean * mean).max(0.0).sqrt();
            let ratio = (spread / weight_squares[k].sqrt()).sqrt();
            let usable = ratio.is_finite() && ratio > 1e-6 && ratio < 1e6;
            self.centre.push(mean as f32);
            self.scale.push(if usable { ratio as f32 } else { 1.0 });
        }
        self.inverse_scale = self.scale.iter().map(|scale| 1.0 / scale).collect();
        let scaled = self.centre.iter().zip(&self.inverse_scale).map(|(m, inverse)| m * inverse);
        self.centre_norm = scaled.map(|m| f64::from(m).powi(2)).sum::<f64>().sqrt() as f32 * 1.0001;
    }
}

impl Screened {
    /// Chooses how columns are shifted and scaled; comes first.
    pub(crate) fn choose_columns(&mut self, input: &Encode<'_>) {
        self.columns.choose(input);
    }

    /// Rounds the first `rows` rows and the first `features` features to `grid`.
    pub(crate) fn round(&mut self, isa: Isa, input: &Encode<'_>, grid: Grid, rows: usize, features: usize) {
        self.grid = grid;
        self.rows.round(isa, &self.columns, grid, &input.x[..rows * input.width]);
        self.weights.round(isa, &self.columns, grid, input, features);
    }
}

impl Rows {
    fn round(&mut self, isa: Isa, columns: &Columns, grid: Grid, x: &[f32]) {
        let width = columns.scale.len();
        let groups = grid.column_groups(width);
        let count = x.len() / width;
        self.words.resize(count.next_multiple_of(TILE_HEIGHT) * groups, 0);
        self.bounds.resize(count, RowBound::default());
        let row_groups =
            self.words.par_chunks_mut(ROW_GROUP * groups).zip(self.bounds.par_chunks_mut(ROW_GROUP));
        row_groups.zip(x.par_chunks(ROW_GROUP * width)).for_each(|((words, bounds), x)| {
            let mut turned = vec![0.0; width];
            let mut rounder = Rounder::new(isa, grid, width);
            for (at, (bound, x)) in bounds.iter_mut().zip(x.chunks_exact(width)).enumerate() {
                turn_row(isa, x, &columns.centre, &columns.inverse_scale, &mut turned);
                let rounded = rounder.row(isa, &turned);
                interleave(rounder.words(), at, TILE_HEIGHT, words);
                let rounding = rounding(width) * (rounded.norm + columns.centre_norm);
                *bound = RowBound {
                    step: rounded.step,
                    residual: rounded.residual + rounding,
                    norm: rounded.rounded_norm,
                    rounding,
                };
            }
        });
    }
}

impl Weights {
    fn round(&mut self, isa: Isa, columns: &Columns, grid: Grid, input: &Encode<'_>, features: usize) {
        let width = input.width;
        let groups = grid.column_groups(width);
        let tiles = features.div_ceil(TILE_WIDTH);
        self.count = features;
        self.words.resize(tiles * TILE_WIDTH * groups, 0);
        self.bounds.resize(tiles, TileBound::default());
        let tiles = self.words.par_chunks_mut(TILE_WIDTH * groups).zip(&mut self.bounds);
        let memory = || (vec![0.0; width], Rounder::new(isa, grid, width));
        tiles.enumerate().for_each_init(memory, |(turned, rounder), (tile, (words, bound))| {
            for at in 0..TILE_WIDTH.min(features - tile * TILE_WIDTH) {
                let feature = tile * TILE_WIDTH + at;
                let w = &input.weights[feature * width..][..width];
                let bias = input.bias[feature];
                let centre = turn_weights(isa, w, &columns.centre, &columns.scale, turned);
                let rounded = rounder.weights(isa, turned);
                interleave(rounder.words(), at, TILE_WIDTH, words);
                bound.start[at] = rounder.start();
                bound.step[at] = rounded.step;
                bound.norm[at] = rounded.norm;
                bound.residual[at] = rounded.residual;
                // The last term covers products of two numbers too small for their squares.
                bound.base[at] = centre + bias + rounding(width) * (centre.abs() + bias.abs()) + 1e-35;
            }
        });
    }
}

/// Which pairs of a group of rows and a panel of features can be active.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    /// Words of a row.
    stride: usize,
    /// For each row a bit for each feature, features of the panel from the lowest bit on.
    bits: Vec<u64>,
}

impl Candidates {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The candidates row by row, each row's features ascending.
    fn list(&self, candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (row, words) in self.bits.chunks_exact(self.stride).enumerate() {
            for (word, bits) in words.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let feature = 64 * word as u32 + bits.trailing_zeros();
                    candidates.push(Candidate { row: row as u32, feature });
                    bits &= bits - 1;
                }
            }
        }
    }
}

/// What finding the candidates of a group of rows in a tile's features reads.
struct Strip<'a> {
    grid: Grid,
    /// Groups of columns.
    groups: usize,
    /// The rows' words: for each tile, for each group of columns one of each row.
    rows: &'a [u32],
    /// The rows' shares of the bound.
    row_bounds: &'a [RowBound],
    /// The weights' words: for each group of columns one of each feature.
    weights: &'a [u32],
    /// The features' shares of the bound.
    bound: &'a TileBound,
    /// Numbers that are read soon, to be prefetched.
    coming: &'a [f32],
}

/// A tile of a strip: [`TILE_HEIGHT`] rows × [`TILE_WIDTH`] features.
struct Tile<'a> {
    /// For each group of columns one word of each row.
    rows: &'a [u32],
    /// The rows' shares of the bound.
    row_bounds: [&'a RowBound; TILE_HEIGHT],
    /// The features' shares of the bound.
    bound: &'a TileBound,
}

/// For each row of a tile a bit for each feature: whether the pair can be active. The bits of what only fills the tile
/// say nothing.
type Masks = [u16; TILE_HEIGHT];

impl<'a> Strip<'a> {
    /// Calls `possible` for each tile, which gives its masks; inlined into functions of an instruction set.
    #[inline(always)]
    fn each_tile(&self, masks: &mut [Masks], possible: impl Fn(&Tile<'_>) -> Masks) {
        let mut coming = self.coming.chunks(self.coming.len().div_ceil(masks.len()).max(1));
        let tiles = self.rows.chunks_exact(TILE_HEIGHT * self.groups);
        for (tile, (masks, rows)) in masks.iter_mut().zip(tiles).enumerate() {
            prefetch(coming.next().unwrap_or_default());
            // The bounds of rows that only fill the tile are of no interest.
            let last = self.row_bounds.len() - 1;
            let row_bounds = std::array::from_fn(|m| &self.row_bounds[(tile * TILE_HEIGHT + m).min(last)]);
            *masks = possible(&Tile { rows, row_bounds, bound: self.bound });
        }
    }
}

/// The masks of each tile of the strip.
fn possible(isa: Isa, strip: &Strip<'_>, masks: &mut [Masks]) {
    match isa.level() {
        // SAFETY: an Isa of this level is only made where the CPU has AVX-512, and VNNI was just found.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if avx512::available(isa) => unsafe { avx512::possible(strip, masks) },
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

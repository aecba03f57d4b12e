//! Screening: an integer product that rules out most pairs (row, feature) before the exact one.
//!
//! z = x·w + b is split at the batch's mean m and scaled column by column, x' = (x − m)/c, w' = c·w, so that
//! z = x'·w' + (m·w + b). Rows and weights are rounded to integers times a step of their own, x' ≈ x_q, w' ≈ w_q; then
//!
//! ```text
//! |x'·w' − x_q·w_q| ≤ ‖x' − x_q‖·‖w'‖ + ‖x_q‖·‖w' − w_q‖        (Cauchy–Schwarz, residuals as they are)
//! ```
//!
//! and only pairs with x_q·w_q + (m·w + b) + that bound + the float32 rounding bounds > 0 can be active. They
//! are computed again in float32 from x and w. The float32 sum in the tile's order decides whether a pair is
//! active: where the recheck's own sum, which is formed in another order, is too near 0 to tell, it is formed in
//! that order as well. So the set of active pairs is that of the plain product bit for bit, and values differ
//! by rounding alone.
//!
//! Two grids of integers are at hand ([`Grid`]): 8 bits take less time for the product and leave more pairs to be
//! computed again, 16 bits leave hardly more than the active ones. Which is better depends on how sparse the
//! activations are, so it is tried on the first rows of each batch.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod rounding;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use rayon::prelude::*;

use super::encode::Encode;
use super::isa::{Isa, Level, madd, per_isa};
use super::pairs::{Pair, ROW_GROUP};
use super::vector::{dot_inline, four_dots_inline};
pub use rounding::Grid;
use rounding::{Rounder, interleave};

/// Features of a tile.
const TILE_WIDTH: usize = 16;
/// Rows of a tile.
const TILE_HEIGHT: usize = 6;

const _: () = assert!(ROW_GROUP.is_multiple_of(TILE_HEIGHT));

/// The batch, rounded.
#[derive(Debug, Default)]
pub(crate) struct ScreenedRows {
    /// m, [d].
    centre: Vec<f32>,
    /// c, [d].
    scale: Vec<f32>,
    /// 1/c, [d].
    inverse_scale: Vec<f32>,
    /// ‖m/c‖.
    centre_norm: f32,
    grid: Grid,
    /// x_q in steps: for each [`TILE_HEIGHT`] rows (zeros fill the last ones), for each group of columns, the rows'
    /// words side by side.
    words: Vec<u32>,
    /// What a row contributes to the bound, [B].
    rows: Vec<RowBound>,
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

/// A panel's weights, rounded and packed: for each [`TILE_WIDTH`] features, for each group of columns, the features'
/// words side by side.
#[derive(Debug, Default)]
pub(crate) struct ScreenedPanel {
    /// Features, without those that fill the last tile.
    count: usize,
    words: Vec<u32>,
    features: PanelBound,
}

/// The features' shares of the bound, each [panel, padded to the tile].
#[derive(Debug, Default)]
struct PanelBound {
    /// What a sum begins with.
    start: Vec<i32>,
    /// One step of w_q.
    step: Vec<f32>,
    /// ‖w'‖.
    norm: Vec<f32>,
    /// ‖w' − w_q‖.
    residual: Vec<f32>,
    /// m·w + b and the slack of both.
    base: Vec<f32>,
}

/// How far rounding can move a float32 sum of d products, relative to the product of the norms; generous
/// enough for all sums in here together.
fn rounding(width: usize) -> f32 {
    (width + 64) as f32 * 2.0f32.powi(-22)
}

per_isa! {
    /// (x − m)·(1/c) into `out`.
    fn centre_and_scale(x: &[f32], centre: &[f32], inverse_scale: &[f32], out: &mut [f32]) {
        let length = out.len();
        let (x, centre, inverse) = (&x[..length], &centre[..length], &inverse_scale[..length]);
        for at in 0..length {
            out[at] = (x[at] - centre[at]) * inverse[at];
        }
    }
}

per_isa! {
    /// w·c into `out`; returns m·w.
    fn scale_weights(w: &[f32], centre: &[f32], scale: &[f32], out: &mut [f32]) -> f32 {
        for ((out, w), scale) in out.iter_mut().zip(w).zip(scale) {
            *out = w * scale;
        }
        dot_inline::<FMA>(w, centre)
    }
}

/// Whether a screening tile exists for the instruction set.
pub(crate) fn available(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa.level() >= Level::Avx2;
    #[cfg(not(target_arch = "x86_64"))]
    return isa.level() != Level::Portable;
}

impl ScreenedRows {
    /// Rounds the batch to `grid`; [`ScreenedRows::choose_columns`] comes first.
    pub(crate) fn fill(&mut self, isa: Isa, input: &Encode<'_>, grid: Grid) {
        let width = input.width;
        let groups = grid.column_groups(width);
        let count = input.x.len() / width;
        self.grid = grid;
        self.words.clear();
        self.words.resize(count.next_multiple_of(TILE_HEIGHT) * groups, 0);
        self.rows.resize(count, RowBound::default());
        let ScreenedRows { centre, inverse_scale, centre_norm, words, rows, .. } = self;
        let row_groups = words.par_chunks_mut(ROW_GROUP * groups).zip(rows.par_chunks_mut(ROW_GROUP));
        row_groups.zip(input.x.par_chunks(ROW_GROUP * width)).for_each(|((words, bounds), x)| {
            let mut scaled = vec![0.0; width];
            let mut rounder = Rounder::new(grid, width);
            for (at, (bound, x)) in bounds.iter_mut().zip(x.chunks_exact(width)).enumerate() {
                centre_and_scale(isa, x, centre, inverse_scale, &mut scaled);
                let rounded = rounder.row(isa, &scaled);
                interleave(rounder.words(), at, TILE_HEIGHT, words);
                let rounding = rounding(width) * (rounded.norm + *centre_norm);
                *bound = RowBound {
                    step: rounded.step,
                    residual: rounded.residual + rounding,
                    norm: rounded.rounded_norm,
                    rounding,
                };
            }
        });
    }

    /// Chooses m and c: the column's mean, and a scale that gives rows and weights the same spread in
    /// every column, so that a column with large activations does not coarsen all others' steps. Any choice
    /// keeps the result exact.
    pub(crate) fn choose_columns(&mut self, input: &Encode<'_>) {
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
        // Every so manieth weight row is enough to see how large each column's weights are.
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

impl ScreenedPanel {
    /// Rounds and packs the panel's weights.
    pub(crate) fn fill(&mut self, isa: Isa, input: &Encode<'_>, rows: &ScreenedRows, features: Range<usize>) {
        let groups = rows.grid.column_groups(input.width);
        self.count = features.len();
        let count = features.len().next_multiple_of(TILE_WIDTH);
        self.words.clear();
        self.words.resize(count * groups, 0);
        let PanelBound { start, step, norm, residual, base } = &mut self.features;
        start.clear();
        start.resize(count, 0);
        for (bound, filler) in [(step, 0.0), (norm, 0.0), (residual, 0.0), (base, -1.0)] {
            bound.clear();
            bound.resize(count, filler);
        }
        let width = input.width;
        let mut scaled = vec![0.0; width];
        let mut rounder = Rounder::new(rows.grid, width);
        for (at, feature) in features.enumerate() {
            let w = &input.weights[feature * width..][..width];
            let bias = input.bias[feature];
            let centre = scale_weights(isa, w, &rows.centre, &rows.scale, &mut scaled);
            let rounded = rounder.weights(isa, &scaled);
            interleave(rounder.words(), at, TILE_WIDTH, &mut self.words);
            let bound = &mut self.features;
            bound.start[at] = rounder.start();
            bound.step[at] = rounded.step;
            bound.norm[at] = rounded.norm;
            bound.residual[at] = rounded.residual;
            // The last term covers products of two numbers too small for their squares.
            bound.base[at] = centre + bias + rounding(width) * (centre.abs() + bias.abs()) + 1e-35;
        }
    }
}

/// What a tile reads: [`TILE_HEIGHT`] rows × [`TILE_WIDTH`] features.
struct Tile<'a> {
    /// The rows' words: for each group of columns one of each row.
    rows: &'a [u32],
    /// The weights' words: for each group of columns one of each feature.
    weights: &'a [u32],
    /// The rows' shares of the bound.
    bounds: [&'a RowBound; TILE_HEIGHT],
    /// The features' shares of the bound, as in [`PanelBound`], each [`TILE_WIDTH`] numbers.
    start: &'a [i32],
    step: &'a [f32],
    norm: &'a [f32],
    residual: &'a [f32],
    base: &'a [f32],
}

impl<'a> Tile<'a> {
    /// `count` rows from `row` on (what else fills the tile is of no interest) × the panel's features from `first` on.
    fn new(
        rows: &'a ScreenedRows,
        panel: &'a ScreenedPanel,
        (row, count): (usize, usize),
        first: usize,
    ) -> Self {
        let PanelBound { start, step, norm, residual, base } = &panel.features;
        let groups = panel.words.len() / base.len();
        Tile {
            rows: &rows.words[row * groups..][..TILE_HEIGHT * groups],
            weights: &panel.words[first * groups..][..TILE_WIDTH * groups],
            bounds: std::array::from_fn(|m| &rows.rows[row + m.min(count - 1)]),
            start: &start[first..][..TILE_WIDTH],
            step: &step[first..][..TILE_WIDTH],
            norm: &norm[first..][..TILE_WIDTH],
            residual: &residual[first..][..TILE_WIDTH],
            base: &base[first..][..TILE_WIDTH],
        }
    }

    /// Groups of columns.
    fn groups(&self) -> usize {
        self.weights.len() / TILE_WIDTH
    }
}

/// Candidates of a group of rows: for each row the panel's features that can be active, ascending.
pub(crate) type Candidates = [Vec<u32>; ROW_GROUP];

/// The candidates of the rows `group`, at most [`ROW_GROUP`] of them, as numbers within the panel.
///
/// A tile's weights are used for all the group's rows while they are in the first cache level.
pub(crate) fn candidates(
    isa: Isa,
    rows: &ScreenedRows,
    panel: &ScreenedPanel,
    group: Range<usize>,
    found: &mut Candidates,
) {
    found.iter_mut().for_each(Vec::clear);
    assert!(available(isa), "no screening tile for this instruction set");
    assert!(group.len() <= ROW_GROUP && group.start.is_multiple_of(TILE_HEIGHT));
    for first in (0..panel.features.base.len()).step_by(TILE_WIDTH) {
        for row in group.clone().step_by(TILE_HEIGHT) {
            let found = &mut found[row - group.start..][..TILE_HEIGHT.min(group.end - row)];
            let tile = Tile::new(rows, panel, (row, found.len()), first);
            // A bound that is NaN rules out not even the features that only fill the tile.
            let existing = (1 << panel.count.saturating_sub(first).min(TILE_WIDTH)) - 1;
            // What lies beyond the lists only fills the tile.
            for (mask, found) in possible(isa, rows.grid, &tile).into_iter().zip(found) {
                let mut mask = mask & existing;
                while mask != 0 {
                    found.push(first as u32 + mask.trailing_zeros());
                    mask &= mask - 1;
                }
            }
        }
    }
}

/// For each row the tile's features that can be active, a bit each.
fn possible(isa: Isa, grid: Grid, tile: &Tile<'_>) -> [u32; TILE_HEIGHT] {
    match isa.level() {
        // SAFETY: an Isa of this level is only made where the CPU has AVX-512, and VNNI was just found.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe { avx512::possible(grid, tile) },
        // SAFETY: an Isa of these levels is only made where the CPU has AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => unsafe { x86::possible(grid, tile) },
        Level::Portable => unreachable!("screening asks first whether there is a tile"),
    }
}

per_isa! {
    /// z in the tile's order: the bias, then one product after the other.
    fn in_order(x: &[f32], w: &[f32], bias: f32) -> f32 {
        x.iter().zip(w).fold(bias, |sum, (x, w)| madd::<FMA>(*x, *w, sum))
    }
}

per_isa! {
    /// x·w for each candidate, four at a time, into `products`.
    fn products(x: &[f32], weights: &[f32], candidates: &[u32], products: &mut Vec<f32>) {
        let width = x.len();
        let (fours, rest) = candidates.as_chunks::<4>();
        let row = |at: u32| &weights[at as usize * width..][..width];
        products.clear();
        for four in fours {
            products.extend(four_dots_inline::<FMA>(four.map(row), x));
        }
        match *rest {
            [] => {}
            [a] => products.push(dot_inline::<FMA>(row(a), x)),
            // Four at once, two of them twice, take less time than two or three one after the other.
            [a, b] => products.extend(&four_dots_inline::<FMA>([a, b, a, b].map(row), x)[..2]),
            [a, b, c, ..] => products.extend(&four_dots_inline::<FMA>([a, b, c, a].map(row), x)[..3]),
        }
    }
}

/// Asks for a row that is read soon.
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const CACHE_LINE: usize = 16;
        for line in row.chunks(CACHE_LINE) {
            // SAFETY: a prefetch reads and writes nothing.
            unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Appends the pairs of the rows from `row` on that are active among their candidates, numbers within the panel
/// that begins at feature `first`. `scratch` is memory only.
///
/// A row's numbers are asked for while the candidates of the row before are computed: they lie in the third cache
/// level at best. (The weights are in the second: asking for them as well took more time than it saved.)
pub(crate) fn recheck(
    isa: Isa,
    input: &Encode<'_>,
    rows: &ScreenedRows,
    panel: &ScreenedPanel,
    (row, first): (usize, usize),
    candidates: &Candidates,
    scratch: &mut Vec<f32>,
    pairs: &mut Vec<Pair>,
) {
    let width = input.width;
    let fetch = |at: Option<usize>| {
        if let Some(at) = at {
            prefetch(&input.x[(row + at) * width..][..width]);
        }
    };
    let mut with_candidates = (0..ROW_GROUP).filter(|&at| !candidates[at].is_empty());
    let mut next = with_candidates.next();
    fetch(next);
    while let Some(at) = next {
        next = with_candidates.next();
        fetch(next);
        recheck_row(isa, input, rows, panel, (row + at, first), &candidates[at], scratch, pairs);
    }
}

/// As [`recheck`], of one row.
fn recheck_row(
    isa: Isa,
    input: &Encode<'_>,
    rows: &ScreenedRows,
    panel: &ScreenedPanel,
    (row, first): (usize, usize),
    candidates: &[u32],
    scratch: &mut Vec<f32>,
    pairs: &mut Vec<Pair>,
) {
    let width = input.width;
    let x = &input.x[row * width..][..width];
    let weights = &input.weights[first * width..];
    products(isa, x, weights, candidates, scratch);
    for (at, product) in candidates.iter().zip(&*scratch) {
        let feature = first + *at as usize;
        let bias = input.bias[feature];
        let mut value = product + bias;
        let uncertain = rows.rows[row].rounding * panel.features.norm[*at as usize]
            + rounding(width) * bias.abs()
            + 1e-35;
        let certain = value.abs() > uncertain;
        if !certain {
            value = in_order(isa, x, &weights[*at as usize * width..][..width], bias);
        }
        if value > 0.0 {
            pairs.push(Pair { row: row as u32, feature: feature as u32, value });
        }
    }
}

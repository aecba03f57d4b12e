//! Screening: a 16-bit integer product that rules out most pairs (row, feature) before the exact one.
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
//! Why 16 bits: `madd` multiplies and adds pairs of them at twice the rate of float32's fused multiply-add on any
//! CPU with AVX2, which is what bfloat16 reaches where the CPU has it, and its rounding residuals are a tenth of
//! bfloat16's. 8 bits would be a third faster still, but their bound left 18 % of the pairs of a real autoencoder
//! (d 576, F 4608, L0 225) to be computed again, where 16 bits leave hardly more than the active ones.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use rayon::prelude::*;

use super::encode::Encode;
use super::isa::{Isa, Level, madd, per_isa};
use super::pairs::{Pair, ROW_GROUP};
use super::vector::{dot_inline, four_dots_inline};

/// Largest magnitude of a rounded number.
const LARGEST: f32 = 32_000.0;
/// Largest norm of the integers of a row: by Cauchy–Schwarz no sum of products then leaves 32 bits, not
/// even halfway, rounding (half a unit per column, up to 2¹⁷ columns) included.
const LARGEST_NORM: f32 = 46_000.0;
/// Adding and subtracting 1.5·2²³ rounds a number of magnitude below 2²² to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;
/// Columns are padded to a multiple of this many: the pair that one instruction multiplies and adds.
const COLUMN_GROUP: usize = 2;
/// Magnitudes below this are taken as zeros: their squares underflow.
const TINY: f32 = 1e-18;

/// Features of a vector of the tile, and of a tile.
const TILE_WIDTH: usize = 16;
/// Rows of a tile.
const TILE_HEIGHT: usize = 6;

/// Weight rows of a row's candidates that are asked for beforehand: more would push each other out.
const PREFETCHED: usize = 4;

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
    /// x_q in steps, for each [`TILE_HEIGHT`] rows (zeros fill the last ones), for each two columns, the rows' two
    /// numbers side by side.
    words: Vec<i16>,
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

/// A panel's weights, rounded and packed: for each group of [`TILE_WIDTH`] features, for each two columns, the
/// features' two numbers side by side.
#[derive(Debug, Default)]
pub(crate) struct ScreenedPanel {
    /// Features, without those that fill the last tile.
    count: usize,
    words: Vec<i16>,
    features: PanelBound,
}

/// The features' shares of the bound, each [panel, padded to the tile].
#[derive(Debug, Default)]
struct PanelBound {
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

/// What rounding one vector gives.
struct Rounded {
    step: f32,
    norm: f32,
    residual: f32,
    rounded_norm: f32,
}

per_isa! {
    /// Rounds `values` to integers (as float) times a step.
    fn round(values: &[f32], integers: &mut [f32]) -> Rounded {
        let mut largest = [0.0f32; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for at in 0..16 {
                largest[at] = largest[at].max(chunk[at].abs());
            }
        }
        let largest = largest.iter().chain(rest).fold(0.0f32, |most, v| most.max(v.abs()));
        // What squares too small for float32 leave out is below TINY per number.
        let lost = TINY * (values.len() as f32).sqrt();
        let norm = dot_inline::<FMA>(values, values).sqrt() * 1.0001 + lost;
        let step = (largest / LARGEST).max(norm / LARGEST_NORM);
        let (step, inverse) = if largest > TINY { (step, 1.0 / step) } else { (0.0, 0.0) };
        for (integer, value) in integers.iter_mut().zip(values) {
            *integer = madd::<FMA>(*value, inverse, ROUNDER) - ROUNDER;
        }
        let mut lanes = [[0.0f32; 16]; 2];
        let (integer_chunks, integer_rest) = integers[..values.len()].as_chunks::<16>();
        for (values, integers) in chunks.iter().zip(integer_chunks) {
            for at in 0..16 {
                let residual = values[at] - step * integers[at];
                lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
                lanes[1][at] = madd::<FMA>(integers[at], integers[at], lanes[1][at]);
            }
        }
        for (at, (value, integer)) in rest.iter().zip(integer_rest).enumerate() {
            let residual = value - step * integer;
            lanes[0][at] = madd::<FMA>(residual, residual, lanes[0][at]);
            lanes[1][at] = madd::<FMA>(*integer, *integer, lanes[1][at]);
        }
        let enlarged = |lanes: &[f32; 16]| lanes.iter().sum::<f32>().sqrt() * 1.0001;
        Rounded {
            step,
            norm,
            residual: enlarged(&lanes[0]) + lost,
            rounded_norm: step * enlarged(&lanes[1]),
        }
    }
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

per_isa! {
    /// Integers (as float) to integers.
    fn to_words(integers: &[f32], words: &mut [i16]) {
        for (word, integer) in words.iter_mut().zip(integers) {
            // The sum's lower half is the integer in two's complement.
            *word = (*integer + ROUNDER).to_bits() as i16;
        }
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
    fn padded(width: usize) -> usize {
        width.next_multiple_of(COLUMN_GROUP)
    }

    /// Rounds the batch.
    pub(crate) fn fill(&mut self, isa: Isa, input: &Encode<'_>) {
        let width = input.width;
        self.choose_columns(input);
        let padded = ScreenedRows::padded(width);
        let count = input.x.len() / width;
        self.words.clear();
        self.words.resize(count.next_multiple_of(TILE_HEIGHT) * padded, 0);
        self.rows.resize(count, RowBound::default());
        let ScreenedRows { centre, inverse_scale, centre_norm, words, rows, .. } = self;
        let groups = words.par_chunks_mut(ROW_GROUP * padded).zip(rows.par_chunks_mut(ROW_GROUP));
        groups.zip(input.x.par_chunks(ROW_GROUP * width)).for_each(|((words, bounds), x)| {
            let (mut scaled, mut integers) = (vec![0.0; width], vec![0.0; width]);
            let mut line = vec![0; padded];
            for (at, (bound, x)) in bounds.iter_mut().zip(x.chunks_exact(width)).enumerate() {
                centre_and_scale(isa, x, centre, inverse_scale, &mut scaled);
                let rounded = round(isa, &scaled, &mut integers);
                to_words(isa, &integers, &mut line[..width]);
                interleave(&line, at, TILE_HEIGHT, words);
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
    fn choose_columns(&mut self, input: &Encode<'_>) {
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
        let width = input.width;
        let padded = ScreenedRows::padded(width);
        self.count = features.len();
        let count = features.len().next_multiple_of(TILE_WIDTH);
        self.words.clear();
        self.words.resize(count * padded, 0);
        let PanelBound { step, norm, residual, base } = &mut self.features;
        for (bound, filler) in [(step, 0.0), (norm, 0.0), (residual, 0.0), (base, -1.0)] {
            bound.clear();
            bound.resize(count, filler);
        }
        let (mut scaled, mut integers) = (vec![0.0; width], vec![0.0; width]);
        let mut words = vec![0i16; padded];
        for (at, feature) in features.enumerate() {
            let w = &input.weights[feature * width..][..width];
            let bias = input.bias[feature];
            let centre = scale_weights(isa, w, &rows.centre, &rows.scale, &mut scaled);
            let rounded = round(isa, &scaled, &mut integers);
            to_words(isa, &integers, &mut words[..width]);
            let bound = &mut self.features;
            bound.step[at] = rounded.step;
            bound.norm[at] = rounded.norm;
            bound.residual[at] = rounded.residual;
            // The last term covers products of two numbers too small for their squares.
            bound.base[at] = centre + bias + rounding(width) * (centre.abs() + bias.abs()) + 1e-35;
            interleave(&words, at, TILE_WIDTH, &mut self.words);
        }
    }
}

/// Writes line `at` of many into `packed`, where for each `height` lines and each two columns the lines' two numbers
/// lie side by side: a tile then reads one stream from front to back.
fn interleave(line: &[i16], at: usize, height: usize, packed: &mut [i16]) {
    let tile = &mut packed[at / height * height * line.len()..];
    let places = tile[at % height * 2..].chunks_mut(height * 2);
    for (to, pair) in places.zip(line.as_chunks::<2>().0) {
        to[..2].copy_from_slice(pair);
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
    width: usize,
    group: Range<usize>,
    found: &mut Candidates,
) {
    found.iter_mut().for_each(Vec::clear);
    let padded = ScreenedRows::padded(width);
    assert!(available(isa), "no screening tile for this instruction set");
    assert!(group.len() <= ROW_GROUP && group.start.is_multiple_of(TILE_HEIGHT));
    #[cfg(target_arch = "x86_64")]
    for first in (0..panel.features.base.len()).step_by(TILE_WIDTH) {
        for row in group.clone().step_by(TILE_HEIGHT) {
            let found = &mut found[row - group.start..][..TILE_HEIGHT.min(group.end - row)];
            // SAFETY: the instruction set was just checked.
            unsafe { x86::candidates(rows, panel, padded, row, first, found) };
        }
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
/// Candidates are few and far between, so each costs two rows that no cache holds: they are asked for while the
/// candidates before them are computed.
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
    let weights = &input.weights[first * width..];
    let x = |at: usize| &input.x[(row + at) * width..][..width];
    let w = |feature: u32| &weights[feature as usize * width..][..width];
    let fetch = |next: Option<usize>| {
        let Some(at) = next else { return };
        prefetch(x(at));
        candidates[at].iter().take(PREFETCHED).for_each(|feature| prefetch(w(*feature)));
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

//! The batch and the encoder, shifted, scaled, turned and rounded, and what their rounding contributes to the bound.

use std::sync::Arc;

use rayon::prelude::*;

use super::rounding::{Form, Grid, Rounder, interleave, spread};
use super::words::Words;
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::operands::{Cutoff, Encode};
use crate::cpu::pairs::ROW_GROUP;
use crate::cpu::vector::dot_inline;

/// The shape of an instruction set's tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Rows, a divisor of [`ROW_GROUP`].
    pub(super) height: usize,
    /// Features, a multiple of [`BOUND_LANES`] and at most 32.
    pub(super) width: usize,
    /// Words of a row that lie side by side.
    pub(super) run: usize,
}

impl Geometry {
    /// A tile of this shape.
    pub(super) const fn new(height: usize, width: usize) -> Geometry {
        assert!(ROW_GROUP.is_multiple_of(height));
        assert!(width.is_multiple_of(BOUND_LANES) && width <= 32);
        Geometry { height, width, run: 1 }
    }

    /// The same with rows whose words lie side by side in runs.
    pub(super) const fn in_runs_of(self, run: usize) -> Geometry {
        Geometry { run, ..self }
    }
}

/// Features whose shares of the bound lie side by side.
pub(super) const BOUND_LANES: usize = 16;

/// The batch and the encoder, rounded.
#[derive(Debug, Default)]
pub(crate) struct Screened {
    pub(super) columns: Columns,
    pub(super) grid: Grid,
    /// Words of a row, and of a feature.
    pub(super) groups: usize,
    pub(super) rows: Rows,
    pub(super) weights: Weights,
    /// Of the rows that were searched last, or that will be next.
    pub(crate) moments: Option<Arc<Moments>>,
}

/// Σ x and Σ x² of each column of some rows, [d] each: all that is common to panels that search the same rows.
#[derive(Debug)]
pub(crate) struct Moments {
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Where the rows lie, and how many numbers they are.
    rows: (usize, usize),
}

impl Moments {
    fn new(isa: Isa, x: &[f32], width: usize) -> Moments {
        let moments = |rows: &[f32]| {
            let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
            rows.chunks_exact(width).for_each(|row| add_moments(isa, row, &mut sums, &mut squares));
            (sums, squares)
        };
        let partial: Vec<(Vec<f64>, Vec<f64>)> = x.par_chunks(64 * width).map(moments).collect();
        let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
        for (part, squares_of_part) in &partial {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            squares.iter_mut().zip(squares_of_part).for_each(|(sum, part)| *sum += part);
        }
        Moments { sums, squares, rows: Moments::key(x) }
    }

    fn key(x: &[f32]) -> (usize, usize) {
        (x.as_ptr().addr(), x.len())
    }
}

/// How columns are shifted and scaled before rounding. Any choice keeps the result exact.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// m, [d].
    pub(super) centre: Vec<f32>,
    /// c, [d].
    pub(super) scale: Vec<f32>,
    /// 1/c, [d].
    pub(super) inverse_scale: Vec<f32>,
    /// ‖m/c‖.
    pub(super) centre_norm: f32,
}

/// The batch, rounded.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// x_q in steps: for each tile's rows (what lies beyond the last one counts for nothing), for each run of groups of
    /// columns, the rows' runs side by side.
    pub(super) words: Words,
    /// What each row contributes to the bound, [B].
    pub(super) bounds: Vec<RowBound>,
}

/// A row's share of the bound.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowBound {
    /// One step of x_q.
    pub(super) step: f32,
    /// Multiplies ‖w'‖: ‖x' − x_q‖ and all rounding.
    pub(super) residual: f32,
    /// Multiplies ‖w' − w_q‖: ‖x_q‖.
    pub(super) norm: f32,
    /// Multiplies ‖w'‖: by how much z differs with the order of its sum.
    pub(super) rounding: f32,
    /// The row's factor of the [`Cutoff`].
    pub(super) cutoff: f32,
}

/// The weights, rounded.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// F.
    pub(super) count: usize,
    /// w_q in steps: for each tile's features (what lies beyond the last one counts for nothing), for each group
    /// of columns, the features' words side by side.
    pub(super) words: Words,
    /// What each [`BOUND_LANES`] features contribute to the bound.
    pub(super) bounds: Vec<FeatureBounds>,
    /// The largest ‖w_lo‖/‖w'‖, w_lo being what the products of two low parts are formed of, which are left out.
    pub(super) low_share: f32,
}

/// The shares of [`BOUND_LANES`] features of the bound.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct FeatureBounds {
    /// What a sum begins with.
    pub(super) start: [i32; BOUND_LANES],
    /// One step of w_q.
    pub(super) step: [f32; BOUND_LANES],
    /// ‖w'‖.
    pub(super) norm: [f32; BOUND_LANES],
    /// ‖w' − w_q‖.
    pub(super) residual: [f32; BOUND_LANES],
    /// m·w + b and the slack of both.
    pub(super) base: [f32; BOUND_LANES],
    /// The features' factors of the [`Cutoff`], lowered by more than rounding moves a cutoff.
    pub(super) cutoff: [f32; BOUND_LANES],
}

/// How far rounding can move a float32 sum of d products, relative to the product of the norms; generous
/// enough for all sums in here together: three of d products (the exact z, that with the centre, and the screen's own
/// if its products are floats), each of which moves by d·2⁻²⁴ at most, and the turning.
pub(super) fn rounding(width: usize) -> f32 {
    (width + 64) as f32 * 2.0f32.powi(-22)
}

/// By how much at most the plain tile's z and that of [`recheck`](super::recheck) differ, relative to the product of the norms: the
/// one adds d products to the bias, the other d/16 to each of its lanes, then the lanes, then the bias; each addition, and each
/// product where they are not fused, moves a sum by half a unit in the last place at most. A hundredth more for their squares.
pub(super) fn rounding_of_sums(width: usize) -> f32 {
    1.01 * (width + width / 16 + 16) as f32 * 2.0f32.powi(-24)
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

per_isa! {
    /// Adds a row and its squares.
    fn add_moments(row: &[f32], sums: &mut [f64], squares: &mut [f64]) {
        for ((x, sum), square) in row.iter().zip(sums).zip(squares) {
            let x = f64::from(*x);
            *sum += x;
            *square += x * x;
        }
    }
}

impl Columns {
    /// The column's mean, and a scale that gives rows and weights the same spread in every column, so that a column with
    /// large activations does not coarsen all others' steps.
    fn choose(&mut self, moments: &Moments, input: &Encode<'_>) {
        let width = input.width;
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
            let mean = moments.sums[k] / count;
            let spread = (moments.squares[k] / count - mean * mean).max(0.0).sqrt();
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
    pub(crate) fn choose_columns(&mut self, isa: Isa, input: &Encode<'_>) {
        let known = self.moments.take().filter(|moments| moments.rows == Moments::key(input.x));
        let moments = known.unwrap_or_else(|| Arc::new(Moments::new(isa, input.x, input.width)));
        self.columns.choose(&moments, input);
        self.moments = Some(moments);
    }

    /// Appends by how much at most z of each row differs from the plain product's, when [`recheck`](super::recheck) has
    /// formed it.
    pub(crate) fn margins(&self, input: &Encode<'_>, margins: &mut Vec<f32>) {
        let features = &self.weights.bounds[..self.weights.count.div_ceil(BOUND_LANES)];
        let norm = features.iter().flat_map(|bounds| bounds.norm).fold(0.0, f32::max);
        let bias = input.bias.iter().fold(0.0f32, |most, bias| most.max(bias.abs()));
        let of_all = rounding_of_sums(input.width) * bias + 1e-35;
        margins.extend(self.rows.bounds.iter().map(|row| row.rounding * norm + of_all));
    }

    /// Rounds the first `rows` rows and the first `features` features to `grid`, in the form and the order in which a tile
    /// reads them.
    pub(super) fn round(
        &mut self,
        isa: Isa,
        (tile, form): (Geometry, Form),
        input: &Encode<'_>,
        above: Cutoff<'_>,
        grid: Grid,
        rows: usize,
        features: usize,
    ) {
        self.grid = grid;
        self.groups = form.words(input.width);
        let Screened { columns, weights, .. } = self;
        weights.round(isa, tile.width, columns, form, input, features, above);
        self.round_rows(isa, (tile, form), &input.x[..rows * input.width], above);
    }

    /// Rounds the rows of `x` alone, to the grid and with the columns of the weights.
    pub(super) fn round_rows(
        &mut self,
        isa: Isa,
        (tile, form): (Geometry, Form),
        x: &[f32],
        above: Cutoff<'_>,
    ) {
        let Screened { columns, weights, rows, .. } = self;
        rows.round(isa, tile, columns, form, x, above, weights.low_share);
    }
}

impl Rows {
    fn round(
        &mut self,
        isa: Isa,
        tile: Geometry,
        columns: &Columns,
        form: Form,
        x: &[f32],
        above: Cutoff<'_>,
        low_share: f32,
    ) {
        let width = columns.scale.len();
        let groups = form.words(width);
        let count = x.len() / width;
        self.words.resize(count.next_multiple_of(tile.height) * groups);
        self.bounds.resize(count, RowBound::default());
        let row_groups =
            self.words.par_chunks_mut(ROW_GROUP * groups).zip(self.bounds.par_chunks_mut(ROW_GROUP));
        row_groups.zip(x.par_chunks(ROW_GROUP * width)).enumerate().for_each(
            |(group, ((words, bounds), x))| {
                let mut turned = vec![0.0; width];
                let mut rounder = Rounder::new(form, width);
                for (at, (bound, x)) in bounds.iter_mut().zip(x.chunks_exact(width)).enumerate() {
                    turn_row(isa, x, &columns.centre, &columns.inverse_scale, &mut turned);
                    let rounded = rounder.row(isa, &turned);
                    interleave(rounder.words(), at, tile.height, tile.run, words);
                    let norm = rounded.norm + columns.centre_norm;
                    *bound = RowBound {
                        step: rounded.step,
                        residual: rounded.residual + rounding(width) * norm + low_share * rounded.low,
                        norm: rounded.rounded_norm,
                        rounding: rounding_of_sums(width) * norm,
                        cutoff: above.of_row(group * ROW_GROUP + at),
                    };
                }
            },
        );
    }
}

impl Weights {
    fn round(
        &mut self,
        isa: Isa,
        tile_width: usize,
        columns: &Columns,
        form: Form,
        input: &Encode<'_>,
        features: usize,
        above: Cutoff<'_>,
    ) {
        let width = input.width;
        let groups = form.words(width);
        let tiles = features.div_ceil(tile_width);
        self.count = features;
        self.words.resize(tiles * tile_width * groups);
        self.bounds.resize(tiles * tile_width / BOUND_LANES, FeatureBounds::default());
        let bounds = self.bounds.par_chunks_mut(tile_width / BOUND_LANES);
        let tiles = self.words.par_chunks_mut(tile_width * groups).zip(bounds);
        let memory = || (vec![0.0; width], Rounder::new(form, width));
        let low_shares = tiles.enumerate().map_init(memory, |(turned, rounder), (tile, (words, bounds))| {
            let mut low_share = 0.0f32;
            for at in 0..tile_width.min(features - tile * tile_width) {
                let feature = tile * tile_width + at;
                let w = &input.weights[feature * width..][..width];
                let bias = input.bias[feature];
                let centre = turn_weights(isa, w, &columns.centre, &columns.scale, turned);
                let rounded = rounder.weights(isa, turned);
                interleave(rounder.words(), at, tile_width, 1, words);
                let (bound, lane) = (&mut bounds[at / BOUND_LANES], at % BOUND_LANES);
                bound.start[lane] = rounder.start();
                bound.step[lane] = rounded.step;
                bound.norm[lane] = rounded.norm;
                bound.residual[lane] = rounded.residual;
                // The last term covers products of two numbers too small for their squares.
                bound.base[lane] = centre + bias + rounding(width) * (centre.abs() + bias.abs()) + 1e-35;
                let cutoff = above.of_feature(feature);
                bound.cutoff[lane] = cutoff - 2.0f32.powi(-22) * cutoff.abs();
                low_share = low_share.max(rounded.low / rounded.norm);
            }
            low_share
        });
        // A little more for the quotients' rounding.
        self.low_share = low_shares.reduce(|| 0.0, f32::max) * 1.000_01;
    }
}

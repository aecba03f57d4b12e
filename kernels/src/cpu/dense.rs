//! `dense`: the same step for a batch that is not sparse, with dense products.
//!
//! The [products](super::products) are formed in blocks whose sizes depend on nothing but the shapes, one block per task, so
//! that no sum depends on the number of threads. The activations [B,F] are the only array of that size: their
//! gradients are formed and used one panel of features at a time.

use matrix_units::{Left, MatrixUnits, Out, PANEL, Parts, Right, Start};
use rayon::prelude::*;

use super::decode::{Decode, RowActivity};
use super::encode::{Encode, encode_dense, preactivations};
use super::groups::GroupGradient;
use super::isa::{Isa, per_isa};
use super::jump::Jump;
use super::products::{Factor, Matrix, Products, multiply, pack};
use super::sparsity::Sparsity;
use super::transpose::transpose_columns;

/// Most rows of a decode task: each task packs all of W_dec anew for its product.
const LARGEST_ROW_BLOCK: usize = 512;
/// Tasks that a decode should have at least.
const TASKS: usize = 16;

/// Rows of a decode task: a function of the sizes alone, so that no sum depends on the threads.
fn row_block(rows: usize) -> usize {
    rows.div_ceil(TASKS).next_multiple_of(16).clamp(64, LARGEST_ROW_BLOCK)
}

/// Packed factors of a step's products, where those are formed on matrix units. Their memory stays from step to step.
#[derive(Debug, Default)]
pub struct PackedFactors {
    /// The encoder's input.
    encoded: Option<Left>,
    encoder: Option<Right>,
    decoder: Option<Right>,
    skip: Option<Right>,
    x: Option<Right>,
    /// g of each group of features, as dW_dec and as dL/da take it.
    g: Vec<[Option<Right>; 2]>,
}

/// Columns that an encode finishes while they are in the cache, in panels of the matrix units.
const ENCODED_PANELS: usize = 12;

/// What an encode counts of its activations while they are in the cache.
#[derive(Debug, Default)]
pub struct ActivationSums {
    /// In how many rows each feature is active, [F].
    pub features: Vec<u32>,
    /// How many features are active in each row, and Σ a: [B].
    pub rows: Vec<(u32, f64)>,
}

impl ActivationSums {
    /// Runs `work` on each block of `size` rows with its own sums, and adds them up.
    fn of_blocks(
        &mut self,
        (size, features): (usize, usize),
        out: &mut [f32],
        work: impl Fn(usize, &mut [f32], &mut [u32], &mut [(u32, f64)]) + Sync,
    ) {
        self.rows.clear();
        self.rows.resize(out.len() / features, (0, 0.0));
        let blocks = out.par_chunks_mut(size * features).zip(self.rows.par_chunks_mut(size)).enumerate();
        let partial: Vec<Vec<u32>> = blocks
            .map(|(block, (out, rows))| {
                let mut counts = vec![0; features];
                work(block, out, &mut counts, rows);
                counts
            })
            .collect();
        self.features.clear();
        self.features.resize(features, 0);
        for partial in &partial {
            self.features.iter_mut().zip(partial).for_each(|(count, more)| *count += more);
        }
    }

    /// Those of activations [B,F].
    pub(crate) fn count(&mut self, isa: Isa, features: usize, activations: &mut [f32]) {
        let size = row_block(activations.len() / features);
        self.of_blocks((size, features), activations, |_, activations, counts, rows| {
            for (row, of_row) in activations.chunks_exact_mut(features).zip(rows) {
                *of_row = activate_row(isa, row, counts);
            }
        });
    }
}

/// Fills `out` [B,F] with max(z, 0), and `sums` with what there is of it. In float32, z is bit for bit what the sparse path
/// finds.
pub fn encode(
    isa: Isa,
    products: Products,
    input: Encode<'_>,
    memory: &mut PackedFactors,
    out: &mut [f32],
    sums: &mut ActivationSums,
) {
    let features = input.features();
    let size = row_block(input.rows()).next_multiple_of(PANEL);
    match products {
        Products::Float32 => {
            encode_dense(isa, input, out);
            sums.count(isa, features, out);
        }
        Products::Split(units, parts) => {
            let factors = EncodeFactors::new((units, parts), input, memory);
            sums.of_blocks((size, features), out, |block, out, counts, rows| {
                factors.multiply(block * size / PANEL, out, |first, part| {
                    let mut rows = rows.iter_mut();
                    part.for_each_row(|z| {
                        let counts = &mut counts[first..first + z.len()];
                        let (count, sum) = activate_row(isa, z, counts);
                        let of_row = rows.next().expect("as many as there are rows");
                        *of_row = (of_row.0 + count, of_row.1 + sum);
                    });
                });
            });
        }
    }
}

/// Fills `out` [B,F] with z.
pub fn encode_all(
    isa: Isa,
    products: Products,
    input: Encode<'_>,
    memory: &mut PackedFactors,
    out: &mut [f32],
) {
    let size = row_block(input.rows()).next_multiple_of(PANEL);
    match products {
        Products::Float32 => preactivations(isa, input, out),
        Products::Split(units, parts) => {
            let factors = EncodeFactors::new((units, parts), input, memory);
            let blocks = out.par_chunks_mut(size * input.features()).enumerate();
            blocks.for_each(|(block, out)| factors.multiply(block * size / PANEL, out, |_, _| ()));
        }
    }
}

/// The factors of an encode on matrix units.
struct EncodeFactors<'a> {
    x: &'a Left,
    weights: &'a Right,
    bias: &'a [f32],
}

impl<'a> EncodeFactors<'a> {
    fn new(
        (units, parts): (MatrixUnits, Parts),
        input: Encode<'a>,
        memory: &'a mut PackedFactors,
    ) -> EncodeFactors<'a> {
        let (rows, features, width) = (input.rows(), input.features(), input.width);
        let x = Matrix::rows(input.x, width);
        let weights = Matrix::rows(input.weights, width).transposed();
        EncodeFactors {
            x: pack((units, parts), x, (rows, width), &mut memory.encoded),
            weights: pack((units, parts), weights, (features, width), &mut memory.encoder),
            bias: input.bias,
        }
    }

    /// z of some rows, from those of panel `panel` on; `finish` gets each part with its first feature as soon as it is done.
    fn multiply(&self, panel: usize, out: &mut [f32], mut finish: impl FnMut(usize, &mut Out<'_>)) {
        let features = self.bias.len();
        let rows = out.len() / features;
        let panels = panel..panel + rows.div_ceil(PANEL);
        let mut rest = Out::new(out, rows, features);
        for first in (0..self.weights.panels()).step_by(ENCODED_PANELS) {
            let columns = first..(first + ENCODED_PANELS).min(self.weights.panels());
            let bias = &self.bias[first * PANEL..(columns.end * PANEL).min(features)];
            let (mut part, after) = rest.split_columns(bias.len());
            let start = Start::Row(bias);
            matrix_units::multiply(self.x, panels.clone(), self.weights, columns, start, part.reborrow());
            finish(first * PANEL, &mut part);
            rest = after;
        }
    }
}

per_isa! {
    /// z → max(z, 0); adds 1 to the counts of those above 0, and returns how many those are and their sum.
    fn activate_row(z: &mut [f32], counts: &mut [u32]) -> (u32, f64) {
        for (z, count) in z.iter_mut().zip(counts) {
            *z = z.max(0.0);
            *count += u32::from(*z > 0.0);
        }
        // Eight lanes: one vector of float64 at most, which is what compilers make of it.
        let (mut active, mut sums) = ([0u32; 8], [0.0f64; 8]);
        let (chunks, rest) = z.as_chunks::<8>();
        for chunk in chunks {
            for at in 0..8 {
                active[at] += u32::from(chunk[at] > 0.0);
            }
            for at in 0..8 {
                sums[at] += f64::from(chunk[at]);
            }
        }
        for (at, a) in rest.iter().enumerate() {
            active[at] += u32::from(*a > 0.0);
            sums[at] += f64::from(*a);
        }
        (active.iter().sum(), sums.iter().sum())
    }
}

/// Adds to x̂ [B,d] what the skip connection makes of x [B,d]: x W_skipᵀ, from W_skip [d,d].
pub fn add_skip(
    products: Products,
    x: &[f32],
    skip: &[f32],
    width: usize,
    memory: &mut PackedFactors,
    reconstruction: &mut [f32],
) {
    let size = row_block(reconstruction.len() / width) * width;
    let skip = Matrix::rows(skip, width).transposed();
    let skip = Factor::new(products, skip, (width, width), &mut memory.skip);
    let blocks = reconstruction.par_chunks_mut(size).zip(x.par_chunks(size));
    blocks.for_each(|(reconstruction, x)| {
        skip.multiply(1.0, Matrix::rows(x, width), x.len() / width, reconstruction);
    });
}

/// dW_skip = gᵀ x into `out` [d,d], from g and x [B,d].
pub fn skip_gradient(g: &[f32], x: &[f32], width: usize, out: &mut [f32]) {
    let (rows, size) = (x.len() / width, row_block(width));
    out.par_chunks_mut(size * width).enumerate().for_each(|(block, out)| {
        let sizes = (out.len() / width, rows, width);
        let g = Matrix::rows(&g[block * size..], width).transposed();
        multiply(g, Matrix::rows(x, width), sizes, out);
    });
}

/// Adds to x̂ [B,d] the decoder rows of the features of a group, from `activations` [B,F].
pub(crate) fn decode_dense_group(
    products: Products,
    input: Decode<'_>,
    activations: &[f32],
    group: std::ops::Range<usize>,
    memory: &mut PackedFactors,
    reconstruction: &mut [f32],
) {
    let width = input.bias.len();
    let features = input.weights.len() / width;
    let size = row_block(reconstruction.len() / width);
    let weights = Matrix::rows(&input.weights[group.start * width..], width);
    let weights = Factor::new(products, weights, (group.len(), width), &mut memory.decoder);
    let blocks = reconstruction.par_chunks_mut(size * width).zip(activations.par_chunks(size * features));
    blocks.for_each(|(reconstruction, activations)| {
        let a = Matrix::rows(&activations[group.start..], features);
        weights.multiply(1.0, a, reconstruction.len() / width, reconstruction);
    });
}

/// What is active in each row of `activations` [B,F], into `activity` [B].
pub(crate) fn dense_activity(
    input: Decode<'_>,
    activations: &[f32],
    sums: &[(u32, f64)],
    activity: &mut [RowActivity],
) {
    let features = input.weights.len() / input.bias.len();
    let rows = activity.par_iter_mut().zip(activations.par_chunks(features)).zip(sums);
    rows.for_each(|((activity, row), sums)| {
        let (mut active, mut values) = (Vec::new(), Vec::new());
        activity_of_row(input, row, *sums, (&mut active, &mut values), activity);
    });
}

/// What is active in a row, of which the sums are known; the lists are memory.
fn activity_of_row(
    input: Decode<'_>,
    row: &[f32],
    (count, l1): (u32, f64),
    (active, values): (&mut Vec<u32>, &mut Vec<f32>),
    activity: &mut RowActivity,
) {
    if let Some(penalty) = input.sparsity.of_sums(count as usize, l1, input.decoder_norms.is_some()) {
        *activity = RowActivity { active: count, l1, penalty };
        return;
    }
    active.clear();
    values.clear();
    for (feature, a) in row.iter().enumerate() {
        if *a > 0.0 {
            active.push(feature as u32);
            values.push(*a);
        }
    }
    *activity = input.activity(active, values);
}

/// As [`decode_sparse`](super::decode::decode_sparse), from `activations` [B,F] and their `sums` [B].
pub fn decode_dense(
    products: Products,
    input: Decode<'_>,
    activations: &[f32],
    sums: &[(u32, f64)],
    memory: &mut PackedFactors,
    reconstruction: &mut [f32],
    activity: &mut [RowActivity],
) {
    let width = input.bias.len();
    let features = input.weights.len() / width;
    let size = row_block(activity.len());
    let weights = Matrix::rows(input.weights, width);
    let weights = Factor::new(products, weights, (features, width), &mut memory.decoder);
    let blocks = reconstruction
        .par_chunks_mut(size * width)
        .zip(activity.par_chunks_mut(size).zip(sums.par_chunks(size)))
        .zip(activations.par_chunks(size * features));
    blocks.for_each(|((reconstruction, (activity, sums)), activations)| {
        weights.multiply(0.0, Matrix::rows(activations, features), activity.len(), reconstruction);
        let (mut active, mut active_values) = (Vec::new(), Vec::new());
        let rows = reconstruction.chunks_exact_mut(width).zip(activations.chunks_exact(features));
        for ((values, activations), (activity, sums)) in rows.zip(activity.iter_mut().zip(sums)) {
            values.iter_mut().zip(input.bias).for_each(|(value, bias)| *value += bias);
            activity_of_row(input, activations, *sums, (&mut active, &mut active_values), activity);
        }
    });
}

/// Gradients of a panel of features.
#[derive(Debug, Default)]
pub(crate) struct PanelGradient {
    /// dW_enc, [panel,d].
    pub(crate) encoder: Vec<f32>,
    /// db_enc, [panel].
    pub(crate) encoder_bias: Vec<f32>,
    /// dW_dec without the norm's part of a weighted penalty, [panel,d].
    pub(crate) decoder: Vec<f32>,
    /// Σ_i coefficient/B · p'(a·norm) · a of each feature: the derivative by its norm, [panel].
    pub(crate) by_norm: Vec<f32>,
    /// dL/dθ of each feature, 0 without thresholds: [panel].
    pub(crate) by_threshold: Vec<f32>,
    /// dL/da, then dL/dz, [panel,B].
    by_value: Vec<f32>,
    /// z, where thresholds are trained, [panel,B].
    z: Vec<f32>,
    /// The panel's activations, [panel,B].
    activations: Vec<f32>,
}

/// The right factors of a backward pass.
#[derive(Debug)]
pub(crate) struct BackwardFactors<'a> {
    /// The encoder's input, [B,d].
    x: Factor<'a>,
    /// g of each group of features, [B,d] and [d,B].
    g: Vec<[Factor<'a>; 2]>,
}

impl<'a> BackwardFactors<'a> {
    /// Makes x [B,d] and the groups' g ready.
    pub(crate) fn new(
        products: Products,
        x: &'a [f32],
        width: usize,
        groups: &[GroupGradient<'a>],
        memory: &'a mut PackedFactors,
    ) -> BackwardFactors<'a> {
        let rows = x.len() / width;
        memory.g.resize_with(groups.len(), Default::default);
        let factors_of =
            |(group, [by_weight, by_value]): (&GroupGradient<'a>, &'a mut [Option<Right>; 2])| {
                let g = Matrix::rows(group.g, width);
                let by_weight = Factor::new(products, g, (rows, width), by_weight);
                [by_weight, Factor::new(products, g.transposed(), (width, rows), by_value)]
            };
        BackwardFactors {
            x: Factor::new(products, Matrix::rows(x, width), (rows, width), &mut memory.x),
            g: groups.iter().zip(&mut memory.g).map(factors_of).collect(),
        }
    }
}

/// What the backward pass of a panel reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// The activations, [B,F].
    pub(crate) activations: &'a [f32],
    /// The panel's features.
    pub(crate) features: (usize, usize),
    /// F.
    pub(crate) total_features: usize,
    /// B.
    pub(crate) rows: usize,
    /// What the products have on their right.
    pub(crate) factors: &'a BackwardFactors<'a>,
    /// Which group's g.
    pub(crate) group: usize,
    /// The panel's rows of W_dec, [panel,d].
    pub(crate) decoder: &'a [f32],
    /// Where thresholds are trained.
    pub(crate) jump: Option<JumpPanel<'a>>,
}

/// What the thresholds' pseudo-derivatives in a panel need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JumpPanel<'a> {
    pub(crate) jump: Jump<'a>,
    /// z, [B,F].
    pub(crate) z: &'a [f32],
    /// θ of the panel's features.
    pub(crate) thresholds: &'a [f32],
}

per_isa! {
    /// Where a > 0: da += penalty; elsewhere da = 0. Returns Σ da.
    fn mask(by_value: &mut [f32], activations: &[f32], penalties: &[f32]) -> f32 {
        let length = by_value.len();
        let (activations, penalties) = (&activations[..length], &penalties[..length]);
        for at in 0..length {
            let whole = by_value[at] + penalties[at];
            by_value[at] = if activations[at] > 0.0 { whole } else { 0.0 };
        }
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = by_value.as_chunks::<16>();
        for chunk in chunks {
            for at in 0..16 {
                lanes[at] += chunk[at];
            }
        }
        lanes.iter().chain(rest).sum()
    }
}

/// The gradients of a panel's weights into `out`. `norm` and `slope` give ‖W_dec_j‖ (or 1) and the
/// frequency term's slope of a feature.
pub(crate) fn backward_panel(
    isa: Isa,
    input: Panel<'_>,
    sparsity: &Sparsity,
    norm: impl Fn(usize) -> f32,
    slope: impl Fn(usize) -> f32,
    out: &mut PanelGradient,
) {
    let (first, count) = input.features;
    let width = input.decoder.len() / count;
    let rows = input.rows;
    let [g, g_transposed] = &input.factors.g[input.group];
    out.by_value.resize(count * rows, 0.0);
    g_transposed.multiply(0.0, Matrix::rows(input.decoder, width), count, &mut out.by_value);

    out.activations.resize(count * rows, 0.0);
    transpose_columns(isa, input.activations, input.total_features, first, rows, &mut out.activations);
    if let Some(jump) = input.jump {
        out.z.resize(count * rows, 0.0);
        transpose_columns(isa, jump.z, input.total_features, first, rows, &mut out.z);
    }
    out.encoder_bias.clear();
    out.by_norm.clear();
    out.by_threshold.clear();
    let mut penalties = Vec::new();
    let columns = out.activations.chunks_exact(rows);
    for (at, (by_value, column)) in out.by_value.chunks_exact_mut(rows).zip(columns).enumerate() {
        let feature = first + at;
        out.by_norm.push(sparsity.derivatives(isa, column, norm(feature), slope(feature), &mut penalties));
        let Some(JumpPanel { jump, thresholds, .. }) = input.jump else {
            out.encoder_bias.push(mask(isa, by_value, column, &penalties));
            out.by_threshold.push(0.0);
            continue;
        };
        let at_zero = sparsity.derivative_at_zero(norm(feature), slope(feature));
        for ((by_value, a), penalty) in by_value.iter_mut().zip(column).zip(&penalties) {
            *by_value += if *a > 0.0 { *penalty } else { at_zero };
        }
        let z = out.z[at * rows..][..rows].iter().copied().enumerate();
        let active = column.iter().filter(|a| **a > 0.0).count();
        let by_threshold = jump.derivatives(thresholds[at], z, by_value);
        out.by_threshold.push(by_threshold + jump.of_silent_rows(thresholds[at], active));
        out.encoder_bias.push(by_value.iter().sum());
    }

    out.encoder.resize(count * width, 0.0);
    out.decoder.resize(count * width, 0.0);
    input.factors.x.multiply(0.0, Matrix::rows(&out.by_value, rows), count, &mut out.encoder);
    g.multiply(0.0, Matrix::rows(&out.activations, rows), count, &mut out.decoder);
}

#[cfg(test)]
mod tests {
    use example_steps::numbers;

    use super::*;
    use crate::loss::{LossSpec, Mse};
    use crate::spec::Schedule;

    /// How far a product may be from its exact value, in magnitudes that are added up, besides what adding in float32 takes.
    fn split_error(products: Products) -> f64 {
        match products {
            Products::Split(_, Parts::Three) => 2.0f64.powi(-16),
            _ => 0.0,
        }
    }

    /// a·b and Σ |a_k b_k| of rows of a and columns of b, in float64.
    fn exact(a: &[f32], b: impl Iterator<Item = f32>) -> (f64, f64) {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(b));
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    }

    #[test]
    fn dense_products_are_as_precise_as_they_say_whatever_forms_them() {
        let (rows, width, features) = (131, 70, 97);
        let (x, weights) = (numbers(rows * width, 1), numbers(features * width, 2));
        let (bias, out_bias) = (numbers(features, 3), numbers(width, 4));
        let input = Encode { x: &x, weights: &weights, bias: &bias, width };
        let sparsity = Sparsity::new(&LossSpec::reconstruction(Mse::Sum), &Schedule::constant(0.0), rows);
        for isa in Isa::available() {
            for products in
                [Products::Float32, Products::of(isa, Parts::Three), Products::of(isa, Parts::Six)]
            {
                let bound = |size: f64, length: usize| {
                    size * (split_error(products) + (length + 8) as f64 * 2.0f64.powi(-24))
                };
                let (mut memory, mut sums) = (PackedFactors::default(), ActivationSums::default());
                let (mut z, mut a) = (vec![f32::NAN; rows * features], vec![f32::NAN; rows * features]);
                encode_all(isa, products, input, &mut memory, &mut z);
                encode(isa, products, input, &mut memory, &mut a, &mut sums);
                for (at, z) in z.iter().enumerate() {
                    let (row, feature) = (at / features, at % features);
                    let w = &weights[feature * width..][..width];
                    let (dot, size) = exact(&x[row * width..][..width], w.iter().copied());
                    let b = f64::from(bias[feature]);
                    let error = (f64::from(*z) - (dot + b)).abs();
                    assert!(error <= bound(size + b.abs(), width), "{} {products:?} {error:e}", isa.name());
                    assert_eq!(a[at], z.max(0.0));
                }
                // What is counted is what there is.
                for (row, (count, sum)) in sums.rows.iter().enumerate() {
                    let active = a[row * features..][..features].iter().filter(|a| **a > 0.0);
                    assert_eq!(*count as usize, active.clone().count());
                    let exact: f64 = active.map(|a| f64::from(*a)).sum();
                    assert!((sum - exact).abs() <= 1e-12 * exact, "{sum} {exact}");
                }
                for (feature, count) in sums.features.iter().enumerate() {
                    let active = (0..rows).filter(|row| a[row * features + feature] > 0.0);
                    assert_eq!(*count as usize, active.count());
                }

                let decode =
                    Decode { weights: &weights, bias: &out_bias, decoder_norms: None, sparsity: &sparsity };
                let mut reconstruction = vec![f32::NAN; rows * width];
                let mut activity = vec![RowActivity::default(); rows];
                decode_dense(
                    products,
                    decode,
                    &a,
                    &sums.rows,
                    &mut memory,
                    &mut reconstruction,
                    &mut activity,
                );
                for (at, value) in reconstruction.iter().enumerate() {
                    let (row, column) = (at / width, at % width);
                    let column_of_weights = weights.iter().skip(column).step_by(width).copied();
                    let (dot, size) = exact(&a[row * features..][..features], column_of_weights);
                    let b = f64::from(out_bias[column]);
                    let error = (f64::from(*value) - (dot + b)).abs();
                    assert!(
                        error <= bound(size + b.abs(), features),
                        "{} {products:?} {error:e}",
                        isa.name()
                    );
                }
            }
        }
    }
}

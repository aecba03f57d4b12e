//! `dense`: the same step for a batch that is not sparse, with dense products.
//!
//! The products are matrixmultiply's. They are called on blocks whose sizes depend on nothing but the shapes, one block per
//! task, so that no sum depends on the number of threads. The activations [B,F] are the only array of that size: their
//! gradients are formed and used one panel of features at a time.

use rayon::prelude::*;

use super::decode::{Decode, RowActivity};
use super::isa::{Isa, per_isa};
use super::jump::Jump;
use super::sparsity::Sparsity;

/// Most rows of a decode task: each task packs all of W_dec anew for its product.
const LARGEST_ROW_BLOCK: usize = 512;
/// Tasks that a decode should have at least.
const TASKS: usize = 16;

/// Rows of a decode task: a function of the sizes alone, so that no sum depends on the threads.
fn row_block(rows: usize) -> usize {
    rows.div_ceil(TASKS).next_multiple_of(16).clamp(64, LARGEST_ROW_BLOCK)
}

/// A matrix in memory: element (i, j) lies at i·row_stride + j·column_stride.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    numbers: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows lie `row_stride` numbers apart.
    pub(crate) fn rows(numbers: &'a [f32], row_stride: usize) -> Matrix<'a> {
        Matrix { numbers, row_stride, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Matrix<'a> {
        Matrix { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// Whether a rows×columns matrix lies within the numbers.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
        last < self.numbers.len()
    }
}

/// out [m,n] = a [m,k] · b [k,n].
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, sizes: (usize, usize, usize), out: &mut [f32]) {
    multiply_onto(0.0, a, b, sizes, out);
}

/// out [m,n] = beta·out + a [m,k] · b [k,n].
fn multiply_onto(beta: f32, a: Matrix<'_>, b: Matrix<'_>, (m, k, n): (usize, usize, usize), out: &mut [f32]) {
    assert!(a.holds(m, k) && b.holds(k, n) && out.len() == m * n, "product of matrices of other sizes");
    // SAFETY: all elements that the three strides reach lie within their slices, as just checked.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.numbers.as_ptr(),
            a.row_stride as isize,
            a.column_stride as isize,
            b.numbers.as_ptr(),
            b.row_stride as isize,
            b.column_stride as isize,
            beta,
            out.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

/// Adds to x̂ [B,d] what the skip connection makes of x [B,d]: x W_skipᵀ, from W_skip [d,d].
pub fn add_skip(x: &[f32], skip: &[f32], width: usize, reconstruction: &mut [f32]) {
    let size = row_block(reconstruction.len() / width) * width;
    let blocks = reconstruction.par_chunks_mut(size).zip(x.par_chunks(size));
    blocks.for_each(|(reconstruction, x)| {
        let sizes = (x.len() / width, width, width);
        let skip = Matrix::rows(skip, width).transposed();
        multiply_onto(1.0, Matrix::rows(x, width), skip, sizes, reconstruction);
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

/// In how many rows each feature is active, [F], from the activations [B,F].
pub fn count_active(activations: &[f32], features: usize) -> Vec<u32> {
    let block = row_block(activations.len() / features);
    let partial: Vec<Vec<u32>> = activations
        .par_chunks(block * features)
        .map(|rows| {
            let mut counts = vec![0; features];
            for row in rows.chunks_exact(features) {
                counts.iter_mut().zip(row).for_each(|(count, a)| *count += u32::from(*a > 0.0));
            }
            counts
        })
        .collect();
    let mut counts = vec![0; features];
    for partial in &partial {
        counts.iter_mut().zip(partial).for_each(|(count, more)| *count += more);
    }
    counts
}

/// Adds to x̂ [B,d] the decoder rows of the features of a group, from `activations` [B,F].
pub(crate) fn decode_dense_group(
    input: Decode<'_>,
    activations: &[f32],
    group: std::ops::Range<usize>,
    reconstruction: &mut [f32],
) {
    let width = input.bias.len();
    let features = input.weights.len() / width;
    let size = row_block(reconstruction.len() / width);
    let blocks = reconstruction.par_chunks_mut(size * width).zip(activations.par_chunks(size * features));
    blocks.for_each(|(reconstruction, activations)| {
        let sizes = (reconstruction.len() / width, group.len(), width);
        let a = Matrix::rows(&activations[group.start..], features);
        let weights = Matrix::rows(&input.weights[group.start * width..], width);
        multiply_onto(1.0, a, weights, sizes, reconstruction);
    });
}

/// What is active in each row of `activations` [B,F], into `activity` [B].
pub(crate) fn dense_activity(input: Decode<'_>, activations: &[f32], activity: &mut [RowActivity]) {
    let features = input.weights.len() / input.bias.len();
    activity.par_iter_mut().zip(activations.par_chunks(features)).for_each(|(activity, row)| {
        let (mut active, mut values) = (Vec::new(), Vec::new());
        activity_of_row(input, row, (&mut active, &mut values), activity);
    });
}

/// What is active in a row; the lists are memory.
fn activity_of_row(
    input: Decode<'_>,
    row: &[f32],
    (active, values): (&mut Vec<u32>, &mut Vec<f32>),
    activity: &mut RowActivity,
) {
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

/// As [`decode_sparse`](super::decode::decode_sparse), from `activations` [B,F].
pub fn decode_dense(
    input: Decode<'_>,
    activations: &[f32],
    reconstruction: &mut [f32],
    activity: &mut [RowActivity],
) {
    let width = input.bias.len();
    let features = input.weights.len() / width;
    let size = row_block(activity.len());
    let blocks = reconstruction
        .par_chunks_mut(size * width)
        .zip(activity.par_chunks_mut(size))
        .zip(activations.par_chunks(size * features));
    blocks.for_each(|((reconstruction, activity), activations)| {
        let sizes = (activity.len(), features, width);
        let (a, weights) = (Matrix::rows(activations, features), Matrix::rows(input.weights, width));
        multiply(a, weights, sizes, reconstruction);
        let (mut active, mut active_values) = (Vec::new(), Vec::new());
        let rows = reconstruction.chunks_exact_mut(width).zip(activations.chunks_exact(features));
        for ((values, activations), activity) in rows.zip(activity) {
            values.iter_mut().zip(input.bias).for_each(|(value, bias)| *value += bias);
            activity_of_row(input, activations, (&mut active, &mut active_values), activity);
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

/// What the backward pass of a panel reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// The activations, [B,F].
    pub(crate) activations: &'a [f32],
    /// The panel's features.
    pub(crate) features: (usize, usize),
    /// F.
    pub(crate) total_features: usize,
    /// g, [B,d].
    pub(crate) g: &'a [f32],
    /// The encoder's input, [B,d].
    pub(crate) x: &'a [f32],
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
        let mut sum = 0.0;
        let length = by_value.len();
        let (activations, penalties) = (&activations[..length], &penalties[..length]);
        for at in 0..length {
            let whole = by_value[at] + penalties[at];
            by_value[at] = if activations[at] > 0.0 { whole } else { 0.0 };
        }
        by_value.iter().for_each(|value| sum += value);
        sum
    }
}

/// Columns of a matrix of `width` columns, from `first` on, into the rows of `out` [columns,rows]. Tile by tile: a
/// column's numbers lie a page or more apart, and one page serves a tile's width at once.
fn transpose_columns(matrix: &[f32], width: usize, first: usize, rows: usize, out: &mut [f32]) {
    const TILE: usize = 16;
    let columns = out.len() / rows;
    for row in (0..rows).step_by(TILE) {
        let lines = row..(row + TILE).min(rows);
        for column in (0..columns).step_by(TILE) {
            for at in column..(column + TILE).min(columns) {
                for line in lines.clone() {
                    out[at * rows + line] = matrix[line * width + first + at];
                }
            }
        }
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
    let rows = input.g.len() / width;
    let g = Matrix::rows(input.g, width);
    out.by_value.resize(count * rows, 0.0);
    multiply(Matrix::rows(input.decoder, width), g.transposed(), (count, width, rows), &mut out.by_value);

    out.activations.resize(count * rows, 0.0);
    transpose_columns(input.activations, input.total_features, first, rows, &mut out.activations);
    if let Some(jump) = input.jump {
        out.z.resize(count * rows, 0.0);
        transpose_columns(jump.z, input.total_features, first, rows, &mut out.z);
    }
    out.encoder_bias.clear();
    out.by_norm.clear();
    out.by_threshold.clear();
    let mut penalties = Vec::new();
    let columns = out.activations.chunks_exact(rows);
    for (at, (by_value, column)) in out.by_value.chunks_exact_mut(rows).zip(columns).enumerate() {
        let feature = first + at;
        out.by_norm.push(sparsity.derivatives(column, norm(feature), slope(feature), &mut penalties));
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
    let sizes = (count, rows, width);
    multiply(Matrix::rows(&out.by_value, rows), Matrix::rows(input.x, width), sizes, &mut out.encoder);
    multiply(Matrix::rows(&out.activations, rows), g, sizes, &mut out.decoder);
}

//! `decode`: x̂ = a·W_dec + b_dec from the active pairs, the error, its losses, and g = dL/dx̂.
//!
//! A task owns a block of rows. It adds the decoder rows of i's active features to x̂_i, four at a time.
//! Cost: 2·d operations and 4·d bytes read per active pair.

use rayon::prelude::*;

use crate::loss::Mse;

use super::isa::{Isa, madd, per_isa};
use super::pairs::ActivePairs;
use super::rows::RowNorms;
use super::sparsity::Sparsity;
use super::vector::{add_scaled_inline, line};

/// Rows of a task; sums over rows are formed per block and then over blocks, whatever the threads.
pub(crate) const ROW_BLOCK: usize = 64;

/// What the decode reads.
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    /// X, [B,d].
    pub x: &'a [f32],
    /// The norms of X.
    pub norms: &'a RowNorms,
    /// W_dec, [F,d].
    pub weights: &'a [f32],
    /// b_dec, [d].
    pub bias: &'a [f32],
    /// ‖W_dec_j‖ where the penalty is weighted by it, [F].
    pub decoder_norms: Option<&'a [f32]>,
    /// The loss's reconstruction term.
    pub mse: Mse,
    /// The loss's sparsity term.
    pub sparsity: &'a Sparsity,
}

/// What the decode reports of one row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowResult {
    /// ‖x̂ − x‖².
    pub squared_error: f32,
    /// x·x̂.
    pub dot: f32,
    /// ‖x̂‖².
    pub squared_norm: f32,
    /// The number of active features.
    pub active: u32,
    /// Σ_j a_ij.
    pub l1: f64,
    /// Σ_j p(a_ij), as logged.
    pub penalty: f64,
}

impl Decode<'_> {
    /// The factor from x̂_i − x_i to g_i; 0 where the MSE's denominator is 0.
    fn gradient_scale(&self, row: usize) -> f32 {
        let rows = self.norms.squared.len() as f32;
        let denominator = match self.mse {
            Mse::Sum => rows,
            Mse::Centered => rows * self.bias.len() as f32 * self.norms.centered[row],
            Mse::Uncentered => rows * self.bias.len() as f32 * self.norms.squared[row].sqrt(),
        };
        if denominator > 0.0 { 2.0 / denominator } else { 0.0 }
    }

    /// Turns x̂_i in `row` into g_i.
    pub(crate) fn finish_row(&self, isa: Isa, row: usize, values: &mut [f32]) -> RowResult {
        let width = self.bias.len();
        let x = &self.x[row * width..][..width];
        let [squared_error, dot, squared_norm] = error_to_gradient(isa, x, values, self.gradient_scale(row));
        RowResult { squared_error, dot, squared_norm, ..RowResult::default() }
    }
}

per_isa! {
    /// out += Σ_j a_j W_dec_j over one row's active features.
    fn add_decoder_rows(out: &mut [f32], features: &[u32], values: &[f32], weights: &[f32]) {
        let width = out.len();
        let (fours, rest) = features.as_chunks::<4>();
        let (value_fours, value_rest) = values.as_chunks::<4>();
        for (features, values) in fours.iter().zip(value_fours) {
            let [a, b, c, d] = *features;
            let rows = [line(weights, a, width), line(weights, b, width), line(weights, c, width), line(weights, d, width)];
            add_scaled_inline::<FMA, 4>(out, *values, rows);
        }
        for (feature, value) in rest.iter().zip(value_rest) {
            add_scaled_inline::<FMA, 1>(out, [*value], [line(weights, *feature, width)]);
        }
    }
}

per_isa! {
    /// x̂ → scale·(x̂ − x) in place; returns ‖x̂ − x‖², x·x̂ and ‖x̂‖².
    fn error_to_gradient(x: &[f32], values: &mut [f32], scale: f32) -> [f32; 3] {
        let mut lanes = [[0.0f32; 16]; 3];
        let (chunks, rest) = values.as_chunks_mut::<16>();
        let (x_chunks, x_rest) = x.as_chunks::<16>();
        for (values, x) in chunks.iter_mut().zip(x_chunks) {
            for at in 0..16 {
                let error = values[at] - x[at];
                lanes[0][at] = madd::<FMA>(error, error, lanes[0][at]);
                lanes[1][at] = madd::<FMA>(x[at], values[at], lanes[1][at]);
                lanes[2][at] = madd::<FMA>(values[at], values[at], lanes[2][at]);
                values[at] = scale * error;
            }
        }
        for (at, (value, x)) in rest.iter_mut().zip(x_rest).enumerate() {
            let error = *value - x;
            lanes[0][at] = madd::<FMA>(error, error, lanes[0][at]);
            lanes[1][at] = madd::<FMA>(*x, *value, lanes[1][at]);
            lanes[2][at] = madd::<FMA>(*value, *value, lanes[2][at]);
            *value = scale * error;
        }
        lanes.map(|lanes| lanes.iter().sum())
    }
}

/// Decodes every row: g into `gradient` [B,d], one result per row into `results` [B].
pub fn decode_sparse(
    isa: Isa,
    input: Decode<'_>,
    pairs: &ActivePairs,
    gradient: &mut [f32],
    results: &mut [RowResult],
) {
    let width = input.bias.len();
    let blocks = gradient.par_chunks_mut(ROW_BLOCK * width).zip(results.par_chunks_mut(ROW_BLOCK));
    blocks.enumerate().for_each(|(block, (gradient, results))| {
        for (at, (values, result)) in gradient.chunks_exact_mut(width).zip(results).enumerate() {
            let row = block * ROW_BLOCK + at;
            let (features, activations) = pairs.of_row(row);
            values.copy_from_slice(input.bias);
            add_decoder_rows(isa, values, features, activations, input.weights);
            let (l1, penalty) = input.sparsity.row_sums(features, activations, input.decoder_norms);
            let active = features.len() as u32;
            *result = RowResult { active, l1, penalty, ..input.finish_row(isa, row, values) };
        }
    });
}

/// Σ_i g_i, the gradient of b_dec without the pre-bias' part: [d].
pub fn sum_of_rows(gradient: &[f32], width: usize) -> Vec<f64> {
    let partial_sums: Vec<Vec<f64>> = gradient
        .par_chunks(ROW_BLOCK * width)
        .map(|rows| {
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(*g));
            }
            sum
        })
        .collect();
    let mut sum = vec![0.0; width];
    for partial in &partial_sums {
        sum.iter_mut().zip(partial).for_each(|(sum, more)| *sum += more);
    }
    sum
}

//! `decode`, in two halves: x̂ = a·W_dec + b_dec from the active pairs; then the error, its losses, and g = dL/dx̂. What else
//! adds to x̂ comes between them.
//!
//! A task owns a block of rows. It adds the decoder rows of i's active features to x̂_i, four at a time.
//! Cost: 2·d operations and 4·d bytes read per active pair; 12·d bytes per row for the second half.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use ndarray::Array2;
use rayon::prelude::*;

use crate::activations::SparseActivations;
use crate::loss::Mse;
use crate::parameters::{Parameters, numbers, numbers_mut};

use super::cache::working_set;
use super::isa::{Isa, madd, per_isa};
use super::pairs::ActivePairs;
use super::rows::RowNorms;
use super::sparsity::Sparsity;
use super::vector::{add_scaled_inline, line};

/// Rows of a task; sums over rows are formed per block and then over blocks, whatever the threads.
pub(crate) const ROW_BLOCK: usize = 64;

/// What the first half reads.
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    /// W_dec, [F,d].
    pub weights: &'a [f32],
    /// b_dec, [d].
    pub bias: &'a [f32],
    /// ‖W_dec_j‖ where the penalty is weighted by it, [F].
    pub decoder_norms: Option<&'a [f32]>,
    /// The loss's sparsity term.
    pub sparsity: &'a Sparsity,
}

/// What the second half reads.
#[derive(Debug, Clone, Copy)]
pub struct Finish<'a> {
    /// What x̂ is compared with, X [B,d].
    pub target: &'a [f32],
    /// The norms of X.
    pub norms: &'a RowNorms,
    /// The loss's reconstruction term.
    pub mse: Mse,
    /// Which row of X is the first of x̂.
    pub first: usize,
}

/// What the first half reports of one row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowActivity {
    /// The number of active features.
    pub active: u32,
    /// Σ_j a_ij.
    pub l1: f64,
    /// Σ_j p(a_ij), as logged.
    pub penalty: f64,
}

/// What the second half reports of one row.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RowError {
    /// ‖x̂ − x‖².
    pub squared_error: f32,
    /// x·x̂.
    pub dot: f32,
    /// ‖x̂‖².
    pub squared_norm: f32,
}

impl RowActivity {
    /// Adds what is active in the same row of other features.
    pub(crate) fn add(&mut self, other: &RowActivity) {
        self.active += other.active;
        self.l1 += other.l1;
        self.penalty += other.penalty;
    }
}

impl Decode<'_> {
    /// What is reported of a row with these active features.
    pub(crate) fn activity(&self, features: &[u32], values: &[f32]) -> RowActivity {
        let (l1, penalty) = self.sparsity.row_sums(features, values, self.decoder_norms);
        RowActivity { active: features.len() as u32, l1, penalty }
    }
}

impl Finish<'_> {
    /// What the squared errors of a row are divided by in the reconstruction term; 0 where the norm is.
    pub(crate) fn denominator(&self, row: usize, width: usize) -> f32 {
        let rows = self.norms.squared.len() as f32;
        match self.mse {
            Mse::Sum => rows,
            Mse::Centered => rows * width as f32 * self.norms.centered[row],
            Mse::Uncentered => rows * width as f32 * self.norms.squared[row].sqrt(),
        }
    }

    /// The factor from x̂_i − x_i to g_i; 0 where the MSE's denominator is 0.
    fn gradient_scale(&self, row: usize, width: usize) -> f32 {
        let denominator = self.denominator(row, width);
        if denominator > 0.0 { 2.0 / denominator } else { 0.0 }
    }
}

/// Turns x̂ of neighbouring rows, [rows,d], into g, and reports each one's error in `errors` [rows].
pub fn finish(isa: Isa, input: Finish<'_>, reconstruction: &mut [f32], errors: &mut [RowError]) {
    if errors.is_empty() {
        return;
    }
    let width = reconstruction.len() / errors.len();
    let blocks = reconstruction.par_chunks_mut(ROW_BLOCK * width).zip(errors.par_chunks_mut(ROW_BLOCK));
    blocks.enumerate().for_each(|(block, (reconstruction, errors))| {
        for (at, (values, error)) in reconstruction.chunks_exact_mut(width).zip(errors).enumerate() {
            let row = input.first + block * ROW_BLOCK + at;
            let x = &input.target[row * width..][..width];
            let [squared_error, dot, squared_norm] =
                error_to_gradient(isa, x, values, input.gradient_scale(row, width));
            *error = RowError { squared_error, dot, squared_norm };
        }
    });
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

/// x̂ of every row into `reconstruction` [B,d], and what is active in it into `activity` [B].
pub fn decode_sparse(
    isa: Isa,
    input: Decode<'_>,
    pairs: &ActivePairs,
    reconstruction: &mut [f32],
    activity: &mut [RowActivity],
) {
    let rows_in_cache = working_set() / size_of_val(input.bias);
    let ends = range_ends(pairs, activity.len(), rows_in_cache);
    decode_in_ranges(isa, input, pairs, &ends, reconstruction, activity);
}

/// What is added to the x̂ of a panel: of panels before it.
pub(crate) struct Onto<'a> {
    /// Sums that are added first, in this order.
    pub(crate) nearest: &'a [Vec<f32>],
    /// The sum that takes all, [B,d].
    pub(crate) sum: &'a mut [f32],
}

impl Onto<'_> {
    /// Adds `values`, the panel's own x̂ [B,d].
    pub(crate) fn add(self, isa: Isa, values: &mut [f32], width: usize) {
        let rows = self.sum.par_chunks_mut(width).zip(values.par_chunks_mut(width)).enumerate();
        rows.for_each(|(row, (sum, values))| add_up(isa, self.nearest, row, values, sum));
    }
}

/// sum += nearest + values of a row, in the order of a tree.
fn add_up(isa: Isa, nearest: &[Vec<f32>], row: usize, values: &mut [f32], sum: &mut [f32]) {
    let width = values.len();
    for left in nearest {
        add_row(isa, values, &left[row * width..][..width]);
    }
    add_row(isa, sum, values);
}

per_isa! {
    /// out += row.
    fn add_row(out: &mut [f32], row: &[f32]) {
        for (out, number) in out.iter_mut().zip(row) {
            *out += *number;
        }
    }
}

/// As [`decode_sparse`] for a panel whose x̂ completes sums of panels before it. Each row is added while it is in the cache;
/// `values` is memory for where that cannot be.
pub(crate) fn decode_sparse_onto(
    isa: Isa,
    input: Decode<'_>,
    pairs: &ActivePairs,
    onto: Onto<'_>,
    values: &mut Vec<f32>,
    activity: &mut [RowActivity],
) {
    let width = input.bias.len();
    let ends = range_ends(pairs, activity.len(), working_set() / size_of_val(input.bias));
    if ends.len() > 1 {
        values.resize(onto.sum.len(), 0.0);
        decode_in_ranges(isa, input, pairs, &ends, values, activity);
        return onto.add(isa, values, width);
    }
    let blocks = onto.sum.par_chunks_mut(ROW_BLOCK * width).zip(activity.par_chunks_mut(ROW_BLOCK));
    blocks.enumerate().for_each(|(block, (sums, activity))| {
        let mut values = vec![0.0; width];
        for (at, (sum, activity)) in sums.chunks_exact_mut(width).zip(activity).enumerate() {
            let row = block * ROW_BLOCK + at;
            let (features, activations) = pairs.of_row(row);
            values.copy_from_slice(input.bias);
            *activity = input.activity(features, activations);
            add_decoder_rows(isa, &mut values, features, activations, input.weights);
            add_up(isa, onto.nearest, row, &mut values, sum);
        }
    });
}

/// [`decode_sparse`], one range of features after the other; the last end is F.
fn decode_in_ranges(
    isa: Isa,
    input: Decode<'_>,
    pairs: &ActivePairs,
    ends: &[usize],
    reconstruction: &mut [f32],
    activity: &mut [RowActivity],
) {
    let width = input.bias.len();
    let mut start = 0;
    for (at, &end) in ends.iter().enumerate() {
        let blocks = reconstruction.par_chunks_mut(ROW_BLOCK * width).zip(activity.par_chunks_mut(ROW_BLOCK));
        blocks.enumerate().for_each(|(block, (reconstruction, activity))| {
            let rows = reconstruction.chunks_exact_mut(width).zip(activity).enumerate();
            for (row, (values, activity)) in rows {
                let (features, activations) = pairs.of_row(block * ROW_BLOCK + row);
                if at == 0 {
                    values.copy_from_slice(input.bias);
                    *activity = input.activity(features, activations);
                }
                let own = between(features, start..end);
                add_decoder_rows(isa, values, &features[own.clone()], &activations[own], input.weights);
            }
        });
        start = end;
    }
}

/// A feature is read often enough to stay in a cache if it is active in one of so many rows.
const ROWS_PER_READING: usize = 128;

/// How many pairs there should be for each time that a row of x̂ is read or written once more.
const PAIRS_PER_PASS: usize = 4;

/// Where ranges of features end whose decoder rows stay in the second cache level while all rows of the batch pass: those that
/// are read often are at most `most` in each. One range for all where passing over x̂ again would cost more than that saves.
fn range_ends(pairs: &ActivePairs, rows: usize, most: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut often = 0;
    for (feature, range) in pairs.feature_starts.windows(2).enumerate() {
        often += usize::from((range[1] - range[0]) * ROWS_PER_READING > rows);
        if often > most {
            ends.push(feature);
            often = 1;
        }
    }
    if 2 * rows * ends.len() * PAIRS_PER_PASS > pairs.len() {
        ends.clear();
    }
    ends.push(pairs.feature_starts.len().max(1) - 1);
    ends
}

/// The places of a range of features among a row's.
fn between(features: &[u32], range: Range<usize>) -> Range<usize> {
    let before = |end: usize| features.partition_point(|feature| (*feature as usize) < end);
    before(range.start)..before(range.end)
}

/// Adds to x̂ [B,d] the decoder rows of the active features of a group.
pub(crate) fn decode_sparse_group(
    isa: Isa,
    input: Decode<'_>,
    pairs: &ActivePairs,
    group: Range<usize>,
    reconstruction: &mut [f32],
) {
    let width = input.bias.len();
    reconstruction.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
        let (features, activations) = pairs.of_row(row);
        let of_group = between(features, group.clone());
        add_decoder_rows(isa, values, &features[of_group.clone()], &activations[of_group], input.weights);
    });
}

/// What is active in each row, into `activity` [B].
pub(crate) fn sparse_activity(input: Decode<'_>, pairs: &ActivePairs, activity: &mut [RowActivity]) {
    activity.par_iter_mut().enumerate().for_each(|(row, activity)| {
        let (features, activations) = pairs.of_row(row);
        *activity = input.activity(features, activations);
    });
}

/// x̂ of rows with these active features, [B,d].
pub fn reconstruct(isa: Isa, weights: &Parameters, activations: &SparseActivations) -> Array2<f32> {
    let (decoder, bias) = (numbers(&weights.decoder), numbers(&weights.decoder_bias));
    let mut rows = Array2::zeros((activations.rows(), bias.len()));
    let lines = numbers_mut(&mut rows).par_chunks_mut(bias.len());
    lines.enumerate().for_each(|(row, values)| {
        let (features, activations) = activations.of_row(row);
        values.copy_from_slice(bias);
        add_decoder_rows(isa, values, features, activations, decoder);
    });
    rows
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::LossSpec;
    use crate::spec::Schedule;

    /// Feature j is active in every (1 + j % 3)th row.
    fn pairs(rows: usize, features: usize) -> ActivePairs {
        let mut pairs =
            ActivePairs { row_starts: vec![0], feature_starts: vec![0], ..ActivePairs::default() };
        for row in 0..rows {
            let active = (0..features).filter(|feature| row % (1 + feature % 3) == 0);
            pairs.features.extend(active.map(|feature| feature as u32));
            pairs.row_starts.push(pairs.features.len());
        }
        pairs.row_values = (0..pairs.len()).map(|at| (at as f32 * 0.37).cos()).collect();
        for feature in 0..features {
            let active = rows.div_ceil(1 + feature % 3);
            pairs.feature_starts.push(pairs.feature_starts[feature] + active);
        }
        pairs
    }

    #[test]
    fn decoding_in_ranges_is_the_same_bit_for_bit() {
        let (rows, features, width) = (150, 31, 37);
        let numbers = |count: usize| -> Vec<f32> { (0..count).map(|at| (at as f32 * 1.7).sin()).collect() };
        let (weights, bias, pairs) = (numbers(features * width), numbers(width), pairs(rows, features));
        let sparsity = Sparsity::new(&LossSpec::reconstruction(Mse::Sum), &Schedule::constant(0.0), rows);
        let input = Decode { weights: &weights, bias: &bias, decoder_norms: None, sparsity: &sparsity };
        for isa in Isa::available() {
            let decode = |ends: &[usize]| {
                let (mut xhat, mut activity) =
                    (vec![f32::NAN; rows * width], vec![RowActivity::default(); rows]);
                decode_in_ranges(isa, input, &pairs, ends, &mut xhat, &mut activity);
                let bits: Vec<u32> = xhat.iter().map(|x| x.to_bits()).collect();
                (bits, activity)
            };
            let whole = decode(&[features]);
            for ends in [&[1, 2, 17, features][..], &[0, 30, features], &[features - 1, features]] {
                assert_eq!(decode(ends), whole, "{} {ends:?}", isa.name());
            }
        }
    }

    #[test]
    fn ranges_hold_as_many_frequent_features_as_they_may() {
        let pairs = pairs(150, 31);
        assert_eq!(range_ends(&pairs, 150, 16), [16, 31]);
        assert_eq!(range_ends(&pairs, 150, 31), [31]);
        // Ranges of one feature would pass over x̂ more often than they save readings.
        assert_eq!(range_ends(&pairs, 150, 1), [31]);
    }
}

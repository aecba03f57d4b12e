//! What a step needs from a batch's rows before it looks at any weight: x̄, the norms, the encoder's input.

use rayon::prelude::*;

use super::isa::{Isa, per_isa};
use super::vector::dot_inline;

/// Rows that are summed together, whatever the number of threads.
const ROW_BLOCK: usize = 64;

/// Sums over a batch's rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowNorms {
    /// Σ_i x_i, [d].
    pub sum: Vec<f64>,
    /// x̄, [d].
    pub mean: Vec<f32>,
    /// ‖x_i‖², [B].
    pub squared: Vec<f32>,
    /// ‖x_i − x̄‖, [B].
    pub centered: Vec<f32>,
}

per_isa! {
    /// ‖x − mean‖², or NaN if x holds NaN or infinity.
    fn squared_distance(x: &[f32], mean: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (x_chunks, x_rest) = x.as_chunks::<16>();
        let (mean_chunks, mean_rest) = mean.as_chunks::<16>();
        for (x, mean) in x_chunks.iter().zip(mean_chunks) {
            for at in 0..16 {
                let difference = x[at] - mean[at];
                lanes[at] += difference * difference;
            }
        }
        for ((lane, x), mean) in lanes.iter_mut().zip(x_rest).zip(mean_rest) {
            let difference = x - mean;
            *lane += difference * difference;
        }
        lanes.iter().sum()
    }
}

per_isa! {
    fn squared_norm(x: &[f32]) -> f32 {
        dot_inline::<FMA>(x, x)
    }
}

/// The first row of x [B,d] that holds NaN or infinity.
pub fn first_non_finite_row(x: &[f32], width: usize) -> Option<usize> {
    // 0·v is 0 for every finite v and NaN for the others: a sum that the compiler vectorises.
    let is_finite = |row: &[f32]| {
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        chunks.iter().for_each(|chunk| (0..16).for_each(|at| lanes[at] += chunk[at] * 0.0));
        lanes.iter().chain(rest).all(|value| value.is_finite())
    };
    x.par_chunks(width).position_first(|row| !is_finite(row))
}

/// Fills `norms` for the batch x [B,d], B ≥ 1.
pub fn row_norms(isa: Isa, x: &[f32], width: usize, norms: &mut RowNorms) {
    let partial_sums: Vec<Vec<f64>> = x
        .par_chunks(ROW_BLOCK * width)
        .map(|rows| {
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            sum
        })
        .collect();
    norms.sum = vec![0.0; width];
    for partial in &partial_sums {
        norms.sum.iter_mut().zip(partial).for_each(|(sum, more)| *sum += more);
    }
    let rows = x.len() / width;
    norms.mean = norms.sum.iter().map(|sum| (sum / rows as f64) as f32).collect();
    norms.squared.resize(rows, 0.0);
    norms.centered.resize(rows, 0.0);
    let mean = &norms.mean;
    x.par_chunks(width).zip(&mut norms.squared).zip(&mut norms.centered).for_each(
        |((row, squared), centered)| {
            *squared = squared_norm(isa, row);
            *centered = squared_distance(isa, row, mean).sqrt();
        },
    );
}

/// x − b into `out`, [B,d]: the encoder's input with the pre-bias.
pub fn subtract_bias(x: &[f32], bias: &[f32], out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    out.par_chunks_mut(bias.len()).zip(x.par_chunks(bias.len())).for_each(|(out, x)| {
        for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
            *out = x - bias;
        }
    });
}

/// Each number rounded to the nearest bfloat16, ties to even; NaN and infinity stay.
pub fn round_to_bf16(numbers: &[f32], rounded: &mut Vec<f32>) {
    rounded.resize(numbers.len(), 0.0);
    let chunks = rounded.par_chunks_mut(1 << 14).zip(numbers.par_chunks(1 << 14));
    chunks.for_each(|(rounded, numbers)| {
        for (to, number) in rounded.iter_mut().zip(numbers) {
            let bits = number.to_bits();
            let nearest = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
            *to = if number.is_finite() { nearest } else { *number };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_follow_their_formulas() {
        let x = [1.0, 2.0, 2.0, 3.0, 6.0, 2.0];
        let mut norms = RowNorms::default();
        for isa in Isa::available() {
            row_norms(isa, &x, 3, &mut norms);
            assert_eq!(norms.mean, [2.0, 4.0, 2.0]);
            assert_eq!(norms.squared, [9.0, 49.0]);
            assert_eq!(norms.centered, [5.0f32.sqrt(), 5.0f32.sqrt()]);
        }
    }

    #[test]
    fn the_first_row_with_nan_or_infinity_is_found() {
        for width in [1, 5, 16, 33] {
            let mut x = vec![1e38; 7 * width];
            assert_eq!(first_non_finite_row(&x, width), None);
            x[6 * width] = f32::NAN;
            assert_eq!(first_non_finite_row(&x, width), Some(6));
            x[4 * width - 1] = f32::NEG_INFINITY;
            assert_eq!(first_non_finite_row(&x, width), Some(3));
        }
    }

    #[test]
    fn bfloat16_is_the_nearest_one_and_ties_go_to_even() {
        let exact = [0.0, -0.0, 1.0, -1.5, f32::INFINITY, f32::from_bits(1 << 16)];
        let (below, tie, above) = (0x3f80_7fff, 0x3f80_8000, 0x3f80_8001);
        let numbers = [below, tie, above, 0x3f81_8000].map(f32::from_bits);
        let mut rounded = Vec::new();
        round_to_bf16(&[&exact[..], &numbers].concat(), &mut rounded);
        let expected = [0x3f80_0000, 0x3f80_0000, 0x3f81_0000, 0x3f82_0000].map(f32::from_bits);
        assert_eq!(rounded, [&exact[..], &expected].concat());
        round_to_bf16(&[f32::NAN], &mut rounded);
        assert!(rounded.len() == 1 && rounded[0].is_nan());
    }
}

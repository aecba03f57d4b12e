//! `backward`: the gradients of one feature's weights from its active pairs.
//!
//! ```text
//! da_i = g_i·W_dec_j + d penalties / d a_ij      dW_dec_j = Σ_i a_ij g_i
//! dW_enc_j = Σ_i da_i x_i                        db_enc_j = Σ_i da_i
//! ```
//!
//! Four rows are processed at once: their g_i are read from memory once, for the four dot products, and the sum that
//! follows finds them in the first cache level. The two halves belong to two visits of all features. One reads rows of g,
//! the other rows of X; each alone fits a cache that both together would overflow.
//! Cost: 6·d operations and 8·d bytes read per active pair.

use super::isa::per_isa;
use super::vector::{add_scaled_inline, dot_inline, four_dots_inline, line};

per_isa! {
    /// Adds the pairs (`rows`, `values`) of one feature to dW_dec_j, `gradient` [d], and to each pair's entry of
    /// `by_value`, which holds the derivatives of the penalties, what makes it da_i. `g` [B,d] is dL/dx̂, `decoder_row`
    /// W_dec_j.
    pub(crate) fn decoder_gradient(
        rows: &[u32],
        values: &[f32],
        g: &[f32],
        decoder_row: &[f32],
        by_value: &mut [f32],
        gradient: &mut [f32],
    ) {
        let width = decoder_row.len();
        let (row_chunks, row_rest) = rows.as_chunks::<4>();
        let (value_chunks, value_rest) = values.as_chunks::<4>();
        let (by_value_chunks, by_value_rest) = by_value.as_chunks_mut::<4>();
        for ((rows, values), by_value) in row_chunks.iter().zip(value_chunks).zip(by_value_chunks) {
            let g_rows = rows.map(|row| line(g, row, width));
            let dots = four_dots_inline::<FMA>(g_rows, decoder_row);
            for (by_value, dot) in by_value.iter_mut().zip(dots) {
                *by_value += dot;
            }
            add_scaled_inline::<FMA, 4>(gradient, *values, g_rows);
        }
        for ((row, value), by_value) in row_rest.iter().zip(value_rest).zip(by_value_rest) {
            let g_row = line(g, *row, width);
            *by_value += dot_inline::<FMA>(g_row, decoder_row);
            add_scaled_inline::<FMA, 1>(gradient, [*value], [g_row]);
        }
    }
}

per_isa! {
    /// Adds g_i·W_dec_j to each of `by_value`, for the given rows of g [B,d].
    pub(crate) fn add_dots(rows: &[u32], g: &[f32], decoder_row: &[f32], by_value: &mut [f32]) {
        let width = decoder_row.len();
        let (row_chunks, row_rest) = rows.as_chunks::<4>();
        let (by_value_chunks, by_value_rest) = by_value.as_chunks_mut::<4>();
        for (rows, by_value) in row_chunks.iter().zip(by_value_chunks) {
            let dots = four_dots_inline::<FMA>(rows.map(|row| line(g, row, width)), decoder_row);
            for (by_value, dot) in by_value.iter_mut().zip(dots) {
                *by_value += dot;
            }
        }
        for (row, by_value) in row_rest.iter().zip(by_value_rest) {
            *by_value += dot_inline::<FMA>(line(g, *row, width), decoder_row);
        }
    }
}

per_isa! {
    /// Adds Σ_i da_i x_i, da being `by_value`, to dW_enc_j, `gradient` [d]. `x` [B,d] is the encoder's input.
    pub(crate) fn add_rows(rows: &[u32], by_value: &[f32], x: &[f32], gradient: &mut [f32]) {
        let width = gradient.len();
        let (row_chunks, row_rest) = rows.as_chunks::<4>();
        let (by_value_chunks, by_value_rest) = by_value.as_chunks::<4>();
        for (rows, by_value) in row_chunks.iter().zip(by_value_chunks) {
            add_scaled_inline::<FMA, 4>(gradient, *by_value, rows.map(|row| line(x, row, width)));
        }
        for (row, by_value) in row_rest.iter().zip(by_value_rest) {
            add_scaled_inline::<FMA, 1>(gradient, [*by_value], [line(x, *row, width)]);
        }
    }
}

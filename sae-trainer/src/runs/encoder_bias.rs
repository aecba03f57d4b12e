//! The encoder bias before the first step.

use ndarray::{Array1, ArrayView2, Axis};
use rayon::prelude::*;

/// Features whose products with all rows are formed at once.
const BLOCK: usize = 64;

/// b_enc [F] with which x W_enc + b_enc is above 0 on `share` of the rows x of `rows` [n, d], for each feature of `w_enc` [d, F]
/// (T. Conerly et al., "Dictionary Learning Optimization Techniques", January 2025). At least one row is above 0, and, of several,
/// one is not.
pub(crate) fn for_share(w_enc: ArrayView2<'_, f32>, rows: ArrayView2<'_, f32>, share: f64) -> Array1<f32> {
    let most = rows.nrows().saturating_sub(1).max(1);
    let above = ((share * rows.nrows() as f64).round() as usize).clamp(1, most);
    let blocks: Vec<_> = w_enc.axis_chunks_iter(Axis(1), BLOCK).collect();
    let of_block = |block: ArrayView2<'_, f32>| {
        let products = block.t().dot(&rows.t());
        products.rows().into_iter().map(|row| -cut(row.to_vec(), above)).collect::<Vec<f32>>()
    };
    let biases: Vec<Vec<f32>> = blocks.into_par_iter().map(of_block).collect();
    biases.concat().into()
}

/// A number that `above` of `numbers` are above, halfway to the next one.
fn cut(mut numbers: Vec<f32>, above: usize) -> f32 {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let (_, last, rest) = numbers.select_nth_unstable_by(above - 1, descending);
    let next = rest.iter().copied().max_by(f32::total_cmp).unwrap_or(*last - 1.0);
    next + (*last - next) / 2.0
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn each_feature_fires_on_the_share_of_the_rows() {
        // Products of different signs and sizes; more features than a block has.
        let rows = Array2::from_shape_fn((200, 3), |(i, k)| ((i * 37 + k * 11) % 200) as f32 - 120.0);
        let w_enc = Array2::from_shape_fn((3, 150), |(k, j)| ((k * 7 + j) % 5) as f32 - 1.7);
        for (share, expected) in [(0.1, 20), (0.413, 83), (1e-9, 1), (1.0 - 1e-9, 199)] {
            let z = rows.dot(&w_enc) + &for_share(w_enc.view(), rows.view(), share);
            for column in z.columns() {
                let above = column.iter().filter(|z| **z > 0.0).count();
                assert!(above.abs_diff(expected) <= 2, "{share}: {above} rows in place of {expected}");
            }
        }
    }

    #[test]
    fn one_row_fires_where_there_is_one() {
        let (rows, w_enc) = (Array2::from_elem((1, 2), 3.0), Array2::from_elem((2, 4), -1.0));
        let z = rows.dot(&w_enc) + &for_share(w_enc.view(), rows.view(), 0.3);
        assert!(z.iter().all(|z| *z > 0.0), "{z}");
    }
}

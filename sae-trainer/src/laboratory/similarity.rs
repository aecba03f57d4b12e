//! Cosine similarities of many directions with many others.

use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayView2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows of a task: one product with all rows of the other matrix. The order of no sum depends on it.
const BLOCK: usize = 256;

/// The row with the largest product, the first of equals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Its number.
    pub(crate) feature: u32,
    pub(crate) cosine: f32,
}

/// `rows` [n, d] scaled to norm 1; those of zeros are left.
pub(crate) fn unit_rows(mut rows: Array2<f32>) -> Array2<f32> {
    for mut row in rows.rows_mut() {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.mapv_inplace(|x| (f64::from(x) / norm) as f32);
        }
    }
    rows
}

/// For each row of `a` [n,d] the row of `b` [m,d] with the largest product.
pub(crate) fn best(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<Best> {
    let block = |block: usize| -> Vec<Best> {
        let rows = block * BLOCK..((block + 1) * BLOCK).min(a.nrows());
        let products = a.slice(s![rows, ..]).dot(&b.t());
        products.rows().into_iter().map(|row| largest(row.iter().copied())).collect()
    };
    (0..a.nrows().div_ceil(BLOCK)).into_par_iter().flat_map_iter(block).collect()
}

fn largest(cosines: impl Iterator<Item = f32>) -> Best {
    let least = Best { feature: 0, cosine: f32::NEG_INFINITY };
    cosines.enumerate().fold(least, |best, (at, cosine)| match cosine > best.cosine {
        true => Best { feature: at as u32, cosine },
        false => best,
    })
}

/// For each row of `rows` [n, d] the other row with the largest product, if there is another.
pub(super) fn nearest_others(rows: ArrayView2<'_, f32>) -> Vec<Option<Best>> {
    let block = |block: usize| -> Vec<Option<Best>> {
        let range = block * BLOCK..((block + 1) * BLOCK).min(rows.nrows());
        let mut products = rows.slice(s![range.clone(), ..]).dot(&rows.t());
        for (row, own) in products.rows_mut().into_iter().zip(range) {
            row.into_slice().expect("a product is row-major")[own] = f32::NEG_INFINITY;
        }
        let nearest = products.rows().into_iter().map(|row| largest(row.iter().copied()));
        nearest.map(|best| (best.cosine > f32::NEG_INFINITY).then_some(best)).collect()
    };
    (0..rows.nrows().div_ceil(BLOCK)).into_par_iter().flat_map_iter(block).collect()
}

/// For each row of `range` of `rows` [n, d] the `count` other rows with the largest products, the largest first.
pub(crate) fn nearest(rows: ArrayView2<'_, f32>, range: Range<usize>, count: usize) -> Vec<Vec<Best>> {
    let products = rows.slice(s![range.clone(), ..]).dot(&rows.t());
    let of_row = |(products, own): (ArrayView1<'_, f32>, usize)| {
        let others = products.iter().enumerate().filter(|(at, _)| *at != own);
        let mut others: Vec<Best> =
            others.map(|(at, cosine)| Best { feature: at as u32, cosine: *cosine }).collect();
        let by = |a: &Best, b: &Best| b.cosine.total_cmp(&a.cosine).then(a.feature.cmp(&b.feature));
        if others.len() > count {
            others.select_nth_unstable_by(count, by);
            others.truncate(count);
        }
        others.sort_by(by);
        others
    };
    products.rows().into_iter().zip(range).map(of_row).collect()
}

/// The other rows of `rows` [n, d] by their product with row `own`, the largest first.
pub(super) fn nearest_to(rows: ArrayView2<'_, f32>, own: usize) -> Vec<Best> {
    let products = rows.dot(&rows.row(own));
    let others = products.iter().enumerate().filter(|(at, _)| *at != own);
    let mut others: Vec<Best> =
        others.map(|(at, cosine)| Best { feature: at as u32, cosine: *cosine }).collect();
    others.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
    others
}

/// The mean over the rows of `rows` [n, d], which have norm 1, of the largest cosine with any other of them.
pub(super) fn mean_largest_with_another(rows: ArrayView2<'_, f32>) -> f64 {
    let nearest = nearest_others(rows);
    let cosine = |best: &Option<Best>| best.map_or(f64::NEG_INFINITY, |best| f64::from(best.cosine));
    nearest.iter().map(cosine).sum::<f64>() / nearest.len() as f64
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use sae::Weights;

    use super::*;

    #[test]
    fn blocks_find_what_a_plain_search_finds() {
        let (a, b) = (Weights::init(16, 600, 1), Weights::init(16, 300, 2));
        let (a, b) = (unit_rows(a.w_dec), unit_rows(b.w_dec));
        for (row, found) in a.rows().into_iter().zip(best(a.view(), b.view())) {
            let plain = largest(b.rows().into_iter().map(|other| row.dot(&other)));
            assert!((plain.cosine - found.cosine).abs() < 1e-6);
        }
    }

    #[test]
    fn a_direction_is_not_compared_with_itself() {
        let rows = array![[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]];
        let mean = mean_largest_with_another(rows.view());
        assert!((mean - (0.6 + 0.8 + 0.8) / 3.0).abs() < 1e-6, "{mean}");
        let nearest: Vec<u32> =
            nearest_others(rows.view()).iter().map(|best| best.unwrap().feature).collect();
        assert_eq!(nearest, [1, 2, 1]);
        let order: Vec<u32> = nearest_to(rows.view(), 0).iter().map(|best| best.feature).collect();
        assert_eq!(order, [1, 2]);
        assert_eq!(nearest_others(rows.slice(s![..1, ..])), [None]);
    }

    #[test]
    fn the_nearest_few_are_those_of_a_whole_sort() {
        let rows = unit_rows(Weights::init(16, 300, 1).w_dec);
        let found = nearest(rows.view(), 100..120, 7);
        for (at, found) in found.iter().enumerate() {
            let all: Vec<u32> = nearest_to(rows.view(), 100 + at).iter().map(|best| best.feature).collect();
            assert_eq!(found.iter().map(|best| best.feature).collect::<Vec<_>>(), all[..7]);
        }
        assert_eq!(nearest(rows.view(), 0..1, 1000)[0].len(), 299);
    }
}

//! The largest z against their definition.

use example_steps::numbers;

use super::*;
use crate::cpu::screen::Grid;

/// The largest z above 0 by their definition, as (row, feature), row by row.
fn definition(isa: Isa, input: &Encode<'_>, k: usize, among: Among) -> Vec<(usize, usize)> {
    let (rows, features) = (input.rows(), input.features());
    let z: Vec<f32> =
        (0..rows * features).map(|at| z_in_order(isa, input, at / features, at % features)).collect();
    let largest = |rows: std::ops::Range<usize>, count: usize| {
        let mut order: Vec<(usize, usize)> =
            rows.flat_map(|row| (0..features).map(move |feature| (row, feature))).collect();
        let value = |(row, feature): (usize, usize)| z[row * features + feature];
        order.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then((a.1, a.0).cmp(&(b.1, b.0))));
        order.truncate(count);
        order.retain(|at| value(*at) > 0.0);
        order
    };
    let mut found = match among {
        Among::Row => (0..rows).flat_map(|row| largest(row..row + 1, k)).collect(),
        Among::Batch => largest(0..rows, k * rows),
    };
    found.sort();
    found
}

/// Checks every way of searching on every instruction set against the definition.
fn compare(input: Encode<'_>, k: usize) {
    let searches =
        [Search::Plain, Search::Screened, Search::ScreenedOn(Grid::Bits8), Search::ScreenedOn(Grid::Bits16)];
    for isa in Isa::available() {
        for among in [Among::Row, Among::Batch] {
            let expected = definition(isa, &input, k, among);
            for search in searches {
                let largest = Largest { isa, input, search, k, among };
                let (mut buffers, mut memory) = (EncodeBuffers::default(), LargestMemory::default());
                let mut kept = ActivePairs::default();
                largest.find(&mut buffers, &mut memory, &mut kept);
                let of_row =
                    |row: usize| kept.of_row(row).0.iter().map(move |feature| (row, *feature as usize));
                let got: Vec<(usize, usize)> = (0..input.rows()).flat_map(of_row).collect();
                assert_eq!(got, expected, "{} {search:?} {among:?} {k}", isa.name());
            }
        }
    }
}

#[test]
fn the_largest_are_those_of_the_plain_product_ties_included() {
    for (rows, width, features) in [(1, 1, 1), (5, 3, 17), (130, 33, 97), (50, 20, 500)] {
        let x = numbers(rows * width, 21);
        let mut weights = numbers(features * width, 22);
        let mut bias: Vec<f32> = numbers(features, 23).iter().map(|b| 0.1 * b).collect();
        // Features that equal another one, and some that differ from one by less than screening can tell.
        for feature in (3..features).step_by(3) {
            let (before, own) = weights.split_at_mut(feature * width);
            own[..width].copy_from_slice(&before[(feature - 3) * width..][..width]);
            bias[feature] = bias[feature - 3] * [1.0, 1.0 + 3e-7, 1.0 - 2e-7][feature / 3 % 3];
        }
        for k in [1, 2, 7, features / 2, features].into_iter().filter(|k| (1..=features).contains(k)) {
            compare(Encode { x: &x, weights: &weights, bias: &bias, width }, k);
        }
    }
}

#[test]
fn rows_of_every_size_and_sign_are_searched_to_the_end() {
    let (rows, width, features) = (140, 24, 90);
    let mut x = numbers(rows * width, 24);
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        // Rows whose largest z lie far below or above what other rows lead to expect, and rows of zeros.
        let factor = [1.0, 1e-6, 1e6, 0.0, 30.0][row % 5];
        x.iter_mut().for_each(|x| *x *= factor);
    }
    let weights = numbers(features * width, 25);
    for shift in [-5.0, -0.3, 0.0, 2.0] {
        let bias: Vec<f32> = numbers(features, 26).iter().map(|b| b + shift).collect();
        compare(Encode { x: &x, weights: &weights, bias: &bias, width }, 6);
    }
    // Nothing is above 0, and everything is equal.
    compare(Encode { x: &x, weights: &vec![0.0; features * width], bias: &vec![-1.0; features], width }, 6);
    compare(Encode { x: &x, weights: &vec![0.0; features * width], bias: &vec![1.0; features], width }, 6);
}

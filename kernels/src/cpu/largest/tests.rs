//! The largest z against their definition.

use example_steps::numbers;

use super::*;
use crate::cpu::screen::Grid;
use matrix_units::Parts;

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
                let products = Products::of(isa, Parts::Three);
                let largest = Largest { isa, input, search, products, k, among };
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

#[test]
fn features_that_are_often_among_the_largest_lead_to_cutoffs_below_the_kth() {
    // Rows of which each is near one of two directions: most features are never among the largest, and the k-th largest z differs
    // from row to row, but not with the norm.
    let (rows, width, features, k) = (300, 24, 1600, 4);
    let (directions, noise) = (numbers(2 * width, 31), numbers(rows * width, 32));
    let mut x = vec![0.0; rows * width];
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        let direction = &directions[row / 64 % 2 * width..][..width];
        for at in 0..width {
            x[at] = (1.0 + row as f32 % 9.0) * direction[at] + 0.01 * noise[row * width + at];
        }
        // Most of a row's norm is in a column that no feature reads.
        x[0] = 100.0;
    }
    let mut weights = numbers(features * width, 33);
    weights.iter_mut().for_each(|w| *w *= 0.1);
    for (feature, w) in weights.chunks_exact_mut(width).enumerate().filter(|(feature, _)| feature % 27 == 0) {
        let direction = &directions[feature % 2 * width..][..width];
        w.iter_mut().zip(direction).for_each(|(w, direction)| *w += direction);
    }
    weights.iter_mut().step_by(width).for_each(|w| *w = 0.0);
    let bias = vec![-0.1; features];
    let input = Encode { x: &x, weights: &weights, bias: &bias, width };
    compare(input, k);

    for isa in Isa::available() {
        let products = Products::of(isa, Parts::Three);
        let (mut memory, mut cutoffs) = (GuessMemory::default(), Vec::new());
        Guess { isa, input, products, k }.of_rows(&mut memory, &mut cutoffs);
        assert!(memory.has_frequent(), "{}", isa.name());
        let mut found = 0;
        for (row, cutoff) in cutoffs.iter().enumerate() {
            let z = (0..features).map(|feature| z_in_order(isa, &input, row, feature));
            let above = z.filter(|z| z > cutoff).count();
            assert!(above >= k, "{}: row {row} has {above}", isa.name());
            found += above;
        }
        assert!(found < 4 * k * rows, "{}: {found} pairs above", isa.name());
    }
}

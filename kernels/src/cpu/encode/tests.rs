//! Dense, sparse and screened encodes against the definition and against each other.

use example_steps::numbers;

use super::*;

/// z by the definition: the bias, then one product after the other, in float32.
fn definition(input: &Encode<'_>, fused: bool) -> Vec<f32> {
    let mut z = Vec::new();
    for x in input.x.chunks_exact(input.width) {
        for (weights, bias) in input.weights.chunks_exact(input.width).zip(input.bias) {
            z.push(x.iter().zip(weights).fold(
                *bias,
                |sum, (x, w)| {
                    if fused { x.mul_add(*w, sum) } else { x * w + sum }
                },
            ));
        }
    }
    z
}

const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 3, 17), (48, 8, 48), (49, 7, 50), (131, 33, 97), (1537, 2, 33), (10, 1500, 101)];

#[test]
fn dense_activations_equal_the_definition_bit_for_bit() {
    for (rows, width, features) in SIZES {
        let (x, weights) = (numbers(rows * width, 1), numbers(features * width, 2));
        let bias = numbers(features, 3);
        let input = Encode { x: &x, weights: &weights, bias: &bias, width };
        for isa in Isa::available() {
            let fused = isa.level() != Level::Portable || super::super::isa::PORTABLE_FMA;
            let expected: Vec<f32> = definition(&input, fused).iter().map(|z| z.max(0.0)).collect();
            let mut got = vec![f32::NAN; rows * features];
            encode_dense(isa, input, &mut got);
            assert_eq!(got, expected, "{} {rows} {width} {features}", isa.name());
        }
    }
}

#[test]
fn dense_bf16_activations_equal_the_definition_within_rounding() {
    let rounded = |numbers: Vec<f32>| {
        let mut rounded = Vec::new();
        crate::cpu::rows::round_to_bf16(&numbers, &mut rounded);
        rounded
    };
    for (rows, width, features) in SIZES {
        let (x, weights) = (rounded(numbers(rows * width, 1)), rounded(numbers(features * width, 2)));
        let bias = numbers(features, 3);
        let input = Encode { x: &x, weights: &weights, bias: &bias, width };
        for isa in Isa::available() {
            let mut got = vec![f32::NAN; rows * features];
            encode_dense_bf16(isa, input, &mut got);
            for (at, got) in got.iter().enumerate() {
                let (x, w) =
                    (&x[at / features * width..][..width], &weights[at % features * width..][..width]);
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let bias = f64::from(bias[at % features]);
                // One rounding for each sum, and what flushed subnormal numbers are worth.
                let magnitude: f64 = bias.abs() + products.clone().map(f64::abs).sum::<f64>();
                let bound =
                    magnitude * (width + 1) as f64 * 2.0f64.powi(-24) + width as f64 * 2.0f64.powi(-120);
                let z: f64 = bias + products.sum::<f64>();
                let error = (f64::from(*got) - z.max(0.0)).abs();
                assert!(error <= bound, "{} {rows} {width} {features} {at}: {got} {z}", isa.name());
            }
        }
    }
}

#[test]
fn sparse_lists_hold_exactly_the_dense_activations() {
    for (rows, width, features) in SIZES {
        let (x, weights) = (numbers(rows * width, 4), numbers(features * width, 5));
        let bias: Vec<f32> = numbers(features, 6).iter().map(|b| b - 0.5).collect();
        let input = Encode { x: &x, weights: &weights, bias: &bias, width };
        for isa in Isa::available() {
            let mut dense = vec![0.0; rows * features];
            encode_dense(isa, input, &mut dense);
            let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
            // The second call reuses the first one's memory.
            for _ in 0..2 {
                let limit = rows * features;
                let search = Search::Plain;
                encode_sparse(isa, input, search, limit, &mut buffers, &mut pairs).unwrap();
            }
            for row in 0..rows {
                let line = &dense[row * features..][..features];
                let (indices, values) = pairs.of_row(row);
                let expected: Vec<(u32, f32)> =
                    (0..features).filter(|j| line[*j] > 0.0).map(|j| (j as u32, line[j])).collect();
                let got: Vec<(u32, f32)> = indices.iter().copied().zip(values.iter().copied()).collect();
                assert_eq!(got, expected, "{} row {row}", isa.name());
            }
            for feature in 0..features {
                let (indices, values) = pairs.of_feature(feature);
                let expected: Vec<(u32, f32)> = (0..rows)
                    .map(|i| (i as u32, dense[i * features + feature]))
                    .filter(|(_, a)| *a > 0.0)
                    .collect();
                let got: Vec<(u32, f32)> = indices.iter().copied().zip(values.iter().copied()).collect();
                assert_eq!(got, expected, "{} feature {feature}", isa.name());
            }
        }
    }
}

#[test]
fn as_many_pairs_as_the_limit_pass_and_one_more_does_not() {
    let (rows, width, features) = (100, 4, 130);
    let (x, weights, bias) = (numbers(rows * width, 7), numbers(features * width, 8), numbers(features, 9));
    let input = Encode { x: &x, weights: &weights, bias: &bias, width };
    let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
    let isa = Isa::detect();
    let mut search = |limit| encode_sparse(isa, input, Search::Plain, limit, &mut buffers, &mut pairs);
    assert!(search(rows * features).is_some());
    let mut dense = vec![0.0; rows * features];
    encode_dense(isa, input, &mut dense);
    let count = dense.iter().filter(|a| **a > 0.0).count();
    assert!(count > 1000);
    assert!(search(count - 1).is_none());
    assert!(search(count).is_some());
    assert_eq!(pairs.len(), count);
}

#[test]
fn nan_and_negative_zero_are_not_active() {
    let (x, weights) = ([1.0, f32::NAN], [0.0]);
    let bias = [-0.0];
    let input = Encode { x: &x, weights: &weights, bias: &bias, width: 1 };
    let (mut buffers, mut pairs) = (EncodeBuffers::default(), ActivePairs::default());
    for isa in Isa::available() {
        for search in [Search::Plain, Search::Screened] {
            encode_sparse(isa, input, search, 2, &mut buffers, &mut pairs).unwrap();
            assert!(pairs.is_empty());
        }
    }
}

/// The plain search and all grids' on one input, on every instruction set; checks that they find the same set and
/// values within rounding, and returns the number of active pairs and those that each grid rechecked on the widest.
fn compare_searches(input: Encode<'_>) -> (usize, [usize; 3]) {
    Isa::available().into_iter().map(|isa| compare_searches_on(isa, input)).next_back().unwrap()
}

fn compare_searches_on(isa: Isa, input: Encode<'_>) -> (usize, [usize; 3]) {
    let limit = input.rows() * input.features();
    let (mut buffers, mut plain) = (EncodeBuffers::default(), ActivePairs::default());
    encode_sparse(isa, input, Search::Plain, limit, &mut buffers, &mut plain).unwrap();
    let mut screened = |search| {
        let mut pairs = ActivePairs::default();
        let found = encode_sparse(isa, input, search, limit, &mut buffers, &mut pairs).unwrap();
        assert_same(&input, &pairs, &plain);
        found.rechecked
    };
    let rechecked =
        [Grid::Bits8, Grid::Bfloat16, Grid::Bits16].map(|grid| screened(Search::ScreenedOn(grid)));
    screened(Search::Screened);
    (plain.len(), rechecked)
}

/// The same pairs, values within rounding.
fn assert_same(input: &Encode<'_>, screened: &ActivePairs, plain: &ActivePairs) {
    assert_eq!(screened.row_starts, plain.row_starts);
    assert_eq!(screened.features, plain.features);
    assert_eq!(screened.feature_starts, plain.feature_starts);
    assert_eq!(screened.rows, plain.rows);
    for row in 0..input.rows() {
        let x = &input.x[row * input.width..][..input.width];
        let (features, values) = screened.of_row(row);
        for ((feature, got), expected) in features.iter().zip(values).zip(plain.of_row(row).1) {
            let w = &input.weights[*feature as usize * input.width..][..input.width];
            let magnitude: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
            let bound = (magnitude + input.bias[*feature as usize].abs()) * 2e-7 * 8.0;
            assert!((got - expected).abs() <= bound, "{got} {expected}");
        }
    }
}

#[test]
fn screening_finds_the_plain_products_active_set_bit_for_bit() {
    for (rows, width, features) in SIZES {
        let (x, weights) = (numbers(rows * width, 10), numbers(features * width, 11));
        for shift in [-1.0, 0.0] {
            let bias: Vec<f32> = numbers(features, 12).iter().map(|b| b * 0.1 + shift).collect();
            compare_searches(Encode { x: &x, weights: &weights, bias: &bias, width });
        }
    }
}

#[test]
fn screening_rules_most_pairs_out_where_few_are_active() {
    let (rows, width, features) = (96, 256, 480);
    // Two columns hundreds of times larger than the others, and a mean far from 0, as in a residual stream.
    let mut x = numbers(rows * width, 13);
    for row in x.chunks_exact_mut(width) {
        row[7] = row[7] * 300.0 + 900.0;
        row[99] *= 200.0;
        row.iter_mut().for_each(|x| *x += 2.0);
    }
    let mut weights = numbers(features * width, 14);
    for row in weights.chunks_exact_mut(width) {
        (row[7], row[99]) = (row[7] / 300.0, row[99] / 200.0);
    }
    let bias: Vec<f32> =
        weights.chunks_exact(width).map(|w| -2.0 * w.iter().sum::<f32>() - 900.0 * w[7] - 11.0).collect();
    let cells = rows * features;
    let (active, rechecked) = compare_searches(Encode { x: &x, weights: &weights, bias: &bias, width });
    assert!(active > cells / 200 && active < cells / 10, "{active} of {cells}");
    if screen::available(Isa::detect(), Grid::Bits8) {
        let [coarse, middle, fine] = rechecked;
        assert!(fine >= active && fine < active + cells / 100, "{fine} {active} {cells}");
        assert!(coarse >= fine && coarse < active + cells / 5, "{coarse} {active} {cells}");
        if screen::available(Isa::detect(), Grid::Bfloat16) {
            assert!(middle >= fine && middle < coarse, "{coarse} {middle} {fine}");
        }
    } else {
        assert_eq!(rechecked, [0; 3]);
    }
}

#[test]
fn sums_of_bytes_stay_within_16_bits_at_the_limits_of_the_grid() {
    // Equal magnitudes make the largest sums: of all signs alike, of blocks alike, and of one column in each block.
    let (rows, width, features) = (12, 64, 48);
    let sign = |index: usize, kind: usize| match kind % 4 {
        0 => 1.0,
        1 => -1.0,
        2 => [1.0, -1.0][index / 16 % 2],
        _ => f32::from(u8::from(index.is_multiple_of(16))),
    };
    let mut x: Vec<f32> = (0..rows * width).map(|at| sign(at % width, at / width)).collect();
    let mut weights: Vec<f32> = (0..features * width).map(|at| sign(at % width, at / width / 3)).collect();
    // Spreading undoes itself, so that these are what is rounded.
    x.chunks_exact_mut(width).chain(weights.chunks_exact_mut(width)).for_each(screen::rounding::spread);
    for bias in [-63.9, -15.9, 0.5, -64.0] {
        compare_searches(Encode { x: &x, weights: &weights, bias: &vec![bias; features], width });
    }
}

#[test]
fn screening_is_exact_where_float32_itself_can_hardly_tell() {
    let (rows, width, features) = (52, 24, 60);
    let weights = numbers(features * width, 15);
    let mut x = numbers(rows * width, 16);
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        match row % 7 {
            // Zero rows, subnormal rows, rows with squares beyond float32 or nearly, one large number among
            // small ones, opposite numbers.
            0 => x.fill(0.0),
            1 => x.iter_mut().for_each(|x| *x *= 1e-40),
            2 => x.iter_mut().for_each(|x| *x *= 1e18),
            3 => x[row % width] = 1e6,
            4 => x.iter_mut().for_each(|x| *x *= 1e25),
            5 => (0..width / 2).for_each(|k| x[2 * k + 1] = -x[2 * k]),
            _ => {}
        }
    }
    // Biases at which each feature's products with some row cancel to nothing, or nearly.
    let near_zero: Vec<f32> = (0..features)
        .map(|j| {
            let row = j * 7 % rows;
            let w = &weights[j * width..][..width];
            let product = x[row * width..][..width].iter().zip(w).fold(0.0, |s, (x, w)| x.mul_add(*w, s));
            -product * [1.0, 1.0 + 1e-7, 1.0 - 1e-7][j % 3]
        })
        .collect();
    for bias in [near_zero, vec![0.0; features], vec![-1e-38; features], vec![1e-42; features]] {
        compare_searches(Encode { x: &x, weights: &weights, bias: &bias, width });
    }
    let zeros = vec![0.0; features * width];
    compare_searches(Encode { x: &x, weights: &zeros, bias: &vec![-0.5; features], width });
    compare_searches(Encode { x: &x, weights: &zeros, bias: &vec![0.0; features], width });
}

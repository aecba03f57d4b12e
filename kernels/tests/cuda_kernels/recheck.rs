//! The recheck of candidates in the order of the definition.

use example_steps::numbers;

use crate::case::{Activity, Case};

/// x·w + b as the definition forms it, and as the lanes of a warp do.
fn both_sums(x: &[f32], w: &[f32], bias: f32) -> (f32, f32) {
    let chain = |start: f32, columns: &mut dyn Iterator<Item = usize>| {
        columns
            .filter(|column| *column < x.len())
            .fold(start, |sum, column| x[column].mul_add(w[column], sum))
    };
    let fours = |lane: usize| {
        (0..x.len()).step_by(128).flat_map(move |first| (0..4).map(move |at| first + 4 * lane + at))
    };
    let mut lanes: Vec<f32> = (0..32).map(|lane| chain(0.0, &mut fours(lane))).collect();
    for offset in [16, 8, 4, 2, 1] {
        lanes = (0..32).map(|lane| lanes[lane] + lanes[lane ^ offset]).collect();
    }
    (chain(bias, &mut (0..x.len())), lanes[0] + bias)
}

#[test]
fn the_recheck_decides_where_orders_of_summation_differ() {
    let mut worst = 0.0f64;
    for width in [64, 300, 768, 1024, 1100] {
        // Rows of equal numbers, and features whose third quarter undoes the first two: the definition's sum climbs to d/2 and
        // down again, its roundings in one direction for long stretches, other ones on the way down, while every lane's
        // stays near 0. In other features signs take turns, or numbers of all sizes are undone in another order.
        let (rows, features) = (6, 96);
        let x: Vec<f32> = (0..rows * width)
            .map(|at| {
                1.0 + [0.0, 0.3, 1e-4, 0.77, 3e-6, 0.123_456][at / width]
                    * if at / width == 3 { 1.0 } else { 0.1 }
            })
            .collect();
        let size = |at: usize| (numbers(1, at as u64)[0] * 9.0).exp2();
        let weights: Vec<f32> = (0..features * width)
            .map(|at| {
                let (feature, column) = (at / width, at % width);
                let scale = 1.0 + numbers(1, 1000 + feature as u64)[0] * 0.4;
                let half = width / 2;
                match feature % 3 {
                    0 if column < width / 4 * 2 => scale,
                    0 if column < width / 4 * 3 => -2.0 * scale,
                    1 => scale * if column / 2 % 2 == 0 { 1.0 } else { -1.0 },
                    2 if column < half => size(feature * width + column),
                    2 if column < 2 * half => -size(feature * width + (column - half) * 7 % half),
                    _ => 0.0,
                }
            })
            .collect();
        // Biases at which a row's definition is about to change its sign.
        let bias: Vec<f32> = (0..features)
            .map(|feature| {
                let (row, w) =
                    (&x[feature / 3 % rows * width..][..width], &weights[feature * width..][..width]);
                let (defined, by_lanes) = both_sums(row, w, 0.0);
                [-defined, -by_lanes, -(defined + by_lanes) / 2.0, -0.9 * defined, 1e-9][feature % 5]
            })
            .collect();
        let mut case = Case::new((rows, width, features), Activity::Some).holding(x, weights, bias);
        let mut contested = 0;
        for row in 0..rows {
            for feature in 0..features {
                let (x, w) = (&case.x[row * width..][..width], &case.weights[feature * width..][..width]);
                let (defined, by_lanes) = both_sums(x, w, case.bias[feature]);
                contested += usize::from((defined > 0.0) != (by_lanes > 0.0));
                // How far they are apart, in units of what recheck.cu allows for.
                let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                let stride = case.stride as f64;
                let roundings = stride + stride / 32.0 + 16.0;
                let scale = norm(x) * norm(w) + f64::from(case.bias[feature].abs());
                let apart = f64::from((defined - by_lanes).abs());
                worst = worst.max(apart / (roundings * 2f64.powi(-24) * scale));
            }
        }
        assert!(contested > 10, "{contested} of {} pairs depend on the order at d {width}", rows * features);
        let mask = case.device.holding(&case.mask(|_, _| true));
        let capacity = rows * features;
        let (starts, pairs) = case.row_lists(&mask, capacity);
        case.recheck(&mask, &starts, &pairs, capacity);
        assert!(mask.numbers::<u32>() == case.exact_mask(), "d {width}");
    }
    // The bound holds, and rounding comes as near to it as a thirtieth.
    assert!((0.03..1.0).contains(&worst), "{worst}");
}

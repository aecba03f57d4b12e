//! The selection of the k largest z of each row.

use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::encode::preactivations;
use kernels::cuda::launch::row_mask_words;
use kernels::cuda::launch::select::{LargestNorms, MaskOfRows, SelectRows};

use crate::case::{Activity, Case, padded};

/// How much z are off at most, relative to the product of the norms; far more than rounding.
const ROUGHNESS: f32 = 1e-4;

/// Selects from z that are off in both directions; compares the lists and the mask with the definition's k largest.
fn compare(case: &mut Case, k: usize) {
    let (rows, features, width) = (case.rows, case.features, case.width);
    let mut z = vec![0.0; rows * features];
    preactivations(Isa::detect(), case.encode(), &mut z);
    let norm = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>().sqrt();
    let lengths: Vec<f32> = case.x.chunks_exact(width).map(norm).collect();
    let feature_norms: Vec<f32> = case.weights.chunks_exact(width).map(norm).collect();
    let off = numbers(z.len(), 77);
    let rough: Vec<f32> = (0..z.len())
        .map(|at| {
            let (row, feature) = (at / features, at % features);
            let error = 0.9 * ROUGHNESS * off[at] * lengths[row] * feature_norms[feature];
            z[at] - case.bias[feature] + error
        })
        .collect();
    let line = features.next_multiple_of(64);
    let device_z = case.device.holding(&padded(&rough, features, line));
    let (length, feature_norm) = (case.device.holding(&lengths), case.device.holding(&feature_norms));
    let largest = &case.device.room::<f32>(2);
    let norms = LargestNorms {
        feature_norm: &feature_norm,
        encoder_bias: (&case.device_bias).into(),
        largest,
        features,
        report: &case.report,
    };
    norms.launch(&mut case.device).unwrap();
    let most = |values: &[f32]| values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert_eq!(largest.numbers::<f32>(), [most(&feature_norms), most(&case.bias)]);

    let (starts, pairs) = (case.device.room::<u32>(rows + 1), case.device.room::<u32>(rows * k));
    let row_mask = case.device.room::<u32>(rows * row_mask_words(features));
    let select = SelectRows {
        z: &device_z,
        x: &case.device_x,
        encoder: (&case.device_weights).into(),
        encoder_bias: (&case.device_bias).into(),
        length: &length,
        largest,
        starts: &starts,
        pair_features: &pairs,
        row_mask: &row_mask,
        k,
        features,
        rows,
        stride: case.stride,
        roughness: ROUGHNESS,
        report: &case.report,
    };
    select.launch(&mut case.device).unwrap();
    let mask = case.device.room::<u32>(features * case.words);
    let transposed = MaskOfRows { row_mask: &row_mask, mask: &mask, features, rows, report: &case.report };
    transposed.launch(&mut case.device).unwrap();

    let expected_starts: Vec<u32> = (0..=rows as u32).map(|row| row * k as u32).collect();
    assert_eq!(starts.numbers::<u32>(), expected_starts);
    let listed = pairs.numbers::<u32>();
    let mut set = vec![false; rows * features];
    for (row, listed) in listed.chunks_exact(k).enumerate() {
        assert!(listed.is_sorted_by(|a, b| a < b), "row {row}: {listed:?}");
        let z = &z[row * features..][..features];
        let mut order: Vec<u32> = (0..features as u32).collect();
        order.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b)));
        order.truncate(k);
        // Which of the others fill the list does not matter: they are not active.
        let active = |features: &[u32]| {
            let mut active: Vec<u32> =
                features.iter().copied().filter(|feature| z[*feature as usize] > 0.0).collect();
            active.sort_unstable();
            active
        };
        assert_eq!(active(listed), active(&order), "row {row} of {rows}, {k} of {features}");
        listed.iter().for_each(|feature| set[row * features + *feature as usize] = true);
    }
    assert!(mask.numbers::<u32>() == case.mask(|row, feature| set[row * features + feature]));
}

#[test]
fn the_k_largest_are_the_definitions_where_z_are_rough() {
    for (rows, width, features) in [(1, 1, 1), (5, 3, 17), (40, 33, 97), (70, 20, 700)] {
        let x = numbers(rows * width, 21);
        let mut weights = numbers(features * width, 22);
        let mut bias: Vec<f32> = numbers(features, 23).iter().map(|b| 0.1 * b).collect();
        // Features that equal another one, and some that differ from one by less than the error of z.
        for feature in (3..features).step_by(3) {
            let (before, own) = weights.split_at_mut(feature * width);
            own[..width].copy_from_slice(&before[(feature - 3) * width..][..width]);
            bias[feature] = bias[feature - 3] * [1.0, 1.0 + 3e-7, 1.0 - 2e-7][feature / 3 % 3];
        }
        let mut case = Case::new((rows, width, features), Activity::Some).holding(x, weights, bias);
        for k in [1, 2, 7, features / 2, features].into_iter().filter(|k| (1..=features).contains(k)) {
            compare(&mut case, k);
        }
    }
}

#[test]
fn rows_of_every_size_and_equal_z_are_selected_from() {
    let (rows, width, features) = (30, 24, 90);
    let mut x = numbers(rows * width, 24);
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        let factor = [1.0, 1e-6, 1e6, 0.0, 30.0][row % 5];
        x.iter_mut().for_each(|x| *x *= factor);
    }
    let cases = [(1.0, -5.0), (1.0, -0.3), (1.0, 2.0), (0.0, -1.0), (0.0, 1.0)];
    for (scale, shift) in cases {
        let weights: Vec<f32> = numbers(features * width, 25).iter().map(|w| scale * w).collect();
        let bias: Vec<f32> = numbers(features, 26).iter().map(|b| scale * b + shift).collect();
        let case = Case::new((rows, width, features), Activity::Some);
        compare(&mut case.holding(x.clone(), weights, bias), 6);
    }
}

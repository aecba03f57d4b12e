//! The selection of the largest z of a batch.

use emulation::EmulatedDevice;
use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::encode::preactivations;
use kernels::cuda::launch::select_batch::{
    BatchZ, CountBatch, HISTOGRAM, MarkBatch, Rough, SettleDoubts, SmallestKept, TURNS,
};

use crate::case::{Activity, Case, REPORT_BYTES, SMALLEST, padded};

/// How much z are off at most, relative to the product of the norms; far more than rounding.
const ROUGHNESS: f32 = 1e-4;
const BATCH_CUT_BYTES: usize = 48;

/// The pairs of the definition: the `count` largest z [B,F] where they are above 0.
fn largest(z: &[f32], features: usize, count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then((a % features, *a).cmp(&(b % features, *b))));
    let mut kept = vec![false; z.len()];
    order.into_iter().take(count).for_each(|at| kept[at] = z[at] > 0.0);
    kept
}

/// Selects from z that are off in both directions, and from z as they are; compares the masks with the definition's largest.
fn compare(case: &mut Case, count: usize) {
    let (rows, features, width) = (case.rows, case.features, case.width);
    let mut z = vec![0.0; rows * features];
    preactivations(Isa::detect(), case.encode(), &mut z);
    let norm = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>().sqrt();
    let lengths: Vec<f32> = case.x.chunks_exact(width).map(norm).collect();
    let norms: Vec<f32> = case.weights.chunks_exact(width).map(norm).collect();
    let most = |values: &[f32]| values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let off = numbers(z.len(), 77);
    for roughness in [ROUGHNESS, 0.0] {
        let rough: Vec<f32> = (0..z.len())
            .map(|at| {
                let (row, feature) = (at / features, at % features);
                let error = 0.9 * roughness * off[at] * lengths[row] * norms[feature];
                z[at] - case.bias[feature] + error
            })
            .collect();
        // With their bias again, as the kernels see them.
        let biased = rough.iter().enumerate().map(|(at, z)| z + case.bias[at % features]).collect::<Vec<_>>();
        let decisive = if roughness > 0.0 { &z } else { &biased };
        let line = features.next_multiple_of(64);
        let device_z = case.device.holding(&padded(&rough, features, line));
        let length = case.device.holding(&lengths);
        let largest_norms = case.device.holding(&[most(&norms), most(&case.bias)]);
        let histogram = case.device.holding(&[0u64; HISTOGRAM]);
        let cut = case.device.room::<u8>(BATCH_CUT_BYTES);
        let ties = case.device.room::<u32>(features + 1);
        let arrived = case.device.holding(&[0u32]);
        let encoder_bias = &case.device_bias;
        let mut batch =
            BatchZ { z: &device_z, encoder_bias: Some(encoder_bias.into()), count, features, rows };
        let mut rough = Rough { length: &length, largest: &largest_norms, stride: case.stride, roughness };
        let search = |device: &mut EmulatedDevice, batch, rough| {
            for turn in 0..TURNS {
                let count = CountBatch {
                    batch,
                    rough,
                    histogram: &histogram,
                    cut: &cut,
                    tie_starts: &ties,
                    arrived: (&arrived).into(),
                    turn,
                    report: &case.report,
                };
                count.launch(device).unwrap();
                assert!(histogram.numbers::<u64>().iter().all(|count| *count == 0));
            }
        };
        if roughness > 0.0 {
            search(&mut case.device, batch, rough);
            let settle = SettleDoubts {
                z: &device_z,
                x: &case.device_x,
                encoder: (&case.device_weights).into(),
                encoder_bias: encoder_bias.into(),
                rough,
                cut: &cut,
                features,
                rows,
                report: &case.report,
            };
            settle.launch(&mut case.device).unwrap();
            (batch.encoder_bias, rough.roughness) = (None, 0.0);
        }
        search(&mut case.device, batch, rough);
        let mask = case.device.room::<u32>(features * case.words);
        let mark = MarkBatch {
            batch,
            cut: &cut,
            mask: &mask,
            tie_starts: &ties,
            arrived: (&arrived).into(),
            report: &case.report,
        };
        mark.launch(&mut case.device).unwrap();
        let kept = largest(decisive, features, count);
        let expected = case.mask(|row, feature| kept[row * features + feature]);
        assert!(mask.numbers::<u32>() == expected, "{count} of {rows} × {features}, roughness {roughness}");
    }
}

#[test]
fn the_largest_of_a_batch_are_the_definitions_where_z_are_rough() {
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
        let cells = rows * features;
        for count in [1, rows, 7 * rows, cells / 3, cells].into_iter().filter(|k| (1..=cells).contains(k)) {
            compare(&mut case, count);
        }
    }
}

#[test]
fn batches_of_unequal_rows_and_equal_z_are_selected_from() {
    let (rows, width, features) = (70, 24, 90);
    let mut x = numbers(rows * width, 24);
    for (row, x) in x.chunks_exact_mut(width).enumerate() {
        let factor = [1.0, 1e-6, 1e6, 0.0, 30.0][row % 5];
        x.iter_mut().for_each(|x| *x *= factor);
    }
    // With weights of 0 all z are equal, or those of a feature are: ties go across rows and words of the mask.
    for (scale, shift) in [(1.0, -5.0), (1.0, -0.3), (1.0, 2.0), (0.0, -1.0), (0.0, 1.0)] {
        let weights: Vec<f32> = numbers(features * width, 25).iter().map(|w| scale * w).collect();
        for steps in [0.0, 1.0] {
            let bias: Vec<f32> =
                numbers(features, 26).iter().map(|b| steps * (4.0 * b).round() / 4.0 + shift).collect();
            let case = Case::new((rows, width, features), Activity::Some);
            let mut case = case.holding(x.clone(), weights.clone(), bias);
            for count in [1, 75, 6 * rows] {
                compare(&mut case, count);
            }
        }
    }
}

#[test]
fn the_smallest_activation_of_a_batch_is_found() {
    // Lists with room between them, and numbers that do not count in it.
    let (starts, active) = ([0u32, 3, 3, 43, 50, 60, 61, 64, 65, 70, 70], [2u32, 0, 40, 5, 0, 1, 3, 0, 4, 0]);
    for (lowest, expected) in [(Some(2.5e-3f32), 2.5e-3f32.to_bits()), (None, u32::MAX)] {
        let mut device = EmulatedDevice::new();
        let mut values: Vec<f32> = numbers(70, 5).iter().map(|v| v.abs() + 0.01).collect();
        [2, 48, 55, 64].into_iter().for_each(|behind| values[behind] = 1e-6);
        lowest.into_iter().for_each(|lowest| values[3 + 37] = lowest);
        let row_active = if lowest.is_some() { active } else { [0; 10] };
        let (starts, row_active) = (device.holding(&starts), device.holding(&row_active));
        let (values, report) = (device.holding(&values), device.holding(&[0u8; REPORT_BYTES]));
        let (cut, arrived) = (device.holding(&[u32::MAX; BATCH_CUT_BYTES / 4]), device.holding(&[0u32]));
        let smallest = SmallestKept {
            starts: &starts,
            row_active: &row_active,
            row_values: &values,
            cut: &cut,
            arrived: (&arrived).into(),
            rows: 10,
            capacity: 70,
            report: &report,
        };
        for _ in 0..2 {
            smallest.launch(&mut device).unwrap();
            assert_eq!(report.numbers::<u32>()[SMALLEST], expected);
        }
    }
}

//! The pairs of an auxiliary loss over dead features.

use example_steps::numbers;
use kernels::cpu::Isa;
use kernels::cpu::encode::preactivations;
use kernels::cuda::launch::dead::{DeadKind, DeadPairs, EncodeDead, ListDead, SelectDead};
use kernels::cuda::launch::mask_words;

use crate::case::{Activity, Case};

const DEAD_BYTES: usize = 24;

/// Lists dead features, forms their z and selects from them; compares each with what the CPU has, bit for bit.
fn compare(case: &mut Case, dead_kind: DeadKind, k: usize, after: u64, ranked: bool) {
    let (rows, features) = (case.rows, case.features);
    let silent: Vec<u64> = (0..features as u64).map(|feature| feature * 7 % 5).collect();
    let counts: Vec<u32> = (0..features as u32).map(|feature| u32::from(feature % 3 == 0)).collect();
    let is_dead = |feature: &u32| {
        let at = *feature as usize;
        silent[at] > after && (dead_kind == DeadKind::AuxKSum || counts[at] == 0)
    };
    let expected: Vec<u32> = (0..features as u32).filter(is_dead).collect();
    let (silent, counts) = (case.device.holding(&silent), case.device.holding(&counts));
    let (dead, dead_features) = (case.device.holding(&[0u8; DEAD_BYTES]), case.device.room::<u32>(features));
    let list = ListDead {
        steps_since_fired: &silent,
        counts: &counts,
        dead_features: &dead_features,
        dead: &dead,
        after,
        dead_kind,
        k,
        features,
        rows,
        report: &case.report,
    };
    list.launch(&mut case.device).unwrap();
    assert_eq!(dead.numbers::<u32>()[4] as usize, expected.len());
    assert_eq!(dead_features.numbers::<u32>()[..expected.len()], expected);

    let line = features.next_multiple_of(64);
    let z = case.device.room::<f32>(rows * line);
    let encode = EncodeDead {
        encoder: (&case.device_weights).into(),
        encoder_bias: (&case.device_bias).into(),
        x: &case.device_x,
        dead_features: &dead_features,
        dead: &dead,
        z: &z,
        features,
        rows,
        stride: case.stride,
        report: &case.report,
    };
    encode.launch(&mut case.device).unwrap();
    let mut all = vec![0.0; rows * features];
    preactivations(Isa::detect(), case.encode(), &mut all);
    let got = z.numbers::<f32>();
    for row in 0..rows {
        for (at, feature) in expected.iter().enumerate() {
            assert_eq!(got[row * line + at].to_bits(), all[row * features + *feature as usize].to_bits());
        }
    }

    // Behind lists of another length, in rows behind those of the batch.
    let place = DeadPairs { first: 11, asked: k, k: k.min(features), dead_row: 32 * mask_words(rows + 1) };
    let (all_rows, pairs) = (place.dead_row + rows, place.first + rows * place.k);
    let words = mask_words(all_rows);
    let mask = case.device.holding(&case.mask(|row, feature| (row + feature) % 3 == 0));
    let dead_mask = case.device.room::<u32>(features * words);
    let [starts, row_active] = [0, 1].map(|_| case.device.room::<u32>(all_rows));
    let (pair_features, row_values) = (case.device.room::<u32>(pairs), case.device.room::<f32>(pairs));
    let norms: Vec<f32> = numbers(features, 31).iter().map(|norm| norm.abs() + 0.1).collect();
    let norm = |feature: u32| if ranked { norms[feature as usize] } else { 1.0 };
    let rank_norm = ranked.then(|| case.device.holding(&norms));
    let select = SelectDead {
        z: &z,
        rank_norm: rank_norm.as_ref(),
        dead_features: &dead_features,
        dead: &dead,
        mask: &mask,
        dead_mask: &dead_mask,
        starts: &starts,
        row_active: &row_active,
        pair_features: &pair_features,
        row_values: &row_values,
        dead_kind,
        place,
        features,
        rows,
        report: &case.report,
    };
    select.launch(&mut case.device).unwrap();
    let (starts, active) = (starts.numbers::<u32>(), row_active.numbers::<u32>());
    let (listed, values) = (pair_features.numbers::<u32>(), row_values.numbers::<f32>());
    let mut bits = vec![0u32; features * words];
    for feature in 0..features {
        for row in (0..rows).filter(|row| (row + feature) % 3 == 0) {
            bits[feature * words + row / 32] |= 1 << (row % 32);
        }
    }
    for row in 0..rows {
        let z = |feature: u32| all[row * features + feature as usize];
        let mut order = expected.clone();
        order.sort_by(|a, b| (z(*b) * norm(*b)).total_cmp(&(z(*a) * norm(*a))).then(a.cmp(b)));
        order.truncate(k);
        order.retain(|feature| dead_kind == DeadKind::AuxKSum || z(*feature) > 0.0);
        order.sort_unstable();
        let virtual_row = place.dead_row + row;
        let begin = starts[virtual_row] as usize;
        assert_eq!(begin, place.first + row * place.k);
        let own = begin..begin + active[virtual_row] as usize;
        assert_eq!(listed[own.clone()], order, "row {row}, {k} of {} dead", expected.len());
        assert!(values[own].iter().zip(&order).all(|(value, feature)| *value == z(*feature)));
        for feature in order {
            bits[feature as usize * words + virtual_row / 32] |= 1 << (virtual_row % 32);
        }
    }
    assert!(dead_mask.numbers::<u32>() == bits);
}

#[test]
fn rows_select_the_largest_of_the_dead_features() {
    for (rows, width, features) in [(1, 1, 1), (5, 3, 17), (40, 33, 97), (128, 20, 700)] {
        let x = numbers(rows * width, 21);
        let mut weights = numbers(features * width, 22);
        let mut bias: Vec<f32> = numbers(features, 23).iter().map(|b| 0.1 * b).collect();
        // Features that equal another one.
        for feature in (4..features).step_by(4) {
            let (before, own) = weights.split_at_mut(feature * width);
            own[..width].copy_from_slice(&before[(feature - 4) * width..][..width]);
            bias[feature] = bias[feature - 4];
        }
        let mut case = Case::new((rows, width, features), Activity::Some).holding(x, weights, bias);
        for dead_kind in [DeadKind::AuxK, DeadKind::AuxKSum] {
            for k in [1, 5, features + 1] {
                // Some, most and none of them are dead.
                for after in [2, 0, 9] {
                    compare(&mut case, dead_kind, k, after, k == 5 && after == 0);
                }
            }
        }
    }
}

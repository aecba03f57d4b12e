//! Lists of pairs by row and by feature.

use emulation::Buffer;
use kernels::cpu::Isa;
use kernels::cpu::encode::{EncodeBuffers, Search, encode_sparse};
use kernels::cpu::pairs::ActivePairs;
use kernels::cuda::launch::lists::{CountFeatures, FeatureStarts, GatherValues, ListFeatures};
use kernels::loss::Penalty;

use crate::case::{ACTIVITIES, Activity, Case, SCALAR_BYTES, SIZES};

#[test]
fn lists_hold_a_masks_bits_and_the_recheck_leaves_the_active_pairs() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            // Every pair is a candidate: the worst that a screen could do.
            for everything in [false, true] {
                let mut case = Case::new(sizes, activity);
                let candidates = if everything { case.mask(|_, _| true) } else { case.screen(true) };
                let total: u32 = candidates.iter().map(|word| word.count_ones()).sum();
                let mask = case.device.holding(&candidates);
                let capacity = total as usize;
                let (starts, pairs) = case.row_lists(&mask, capacity);
                assert_eq!(case.status(), 0);
                let (first, listed) = (starts.numbers::<u32>(), pairs.numbers::<u32>());
                for row in 0..case.rows {
                    let expected: Vec<u32> = (0..case.features)
                        .filter(|j| candidates[j * case.words + row / 32] >> (row % 32) & 1 == 1)
                        .map(|j| j as u32)
                        .collect();
                    assert_eq!(listed[first[row] as usize..first[row + 1] as usize], expected, "{sizes:?}");
                }

                let (values, active) = case.recheck(&mask, &starts, &pairs, capacity);
                let (mut buffers, mut expected) = (EncodeBuffers::default(), ActivePairs::default());
                let limit = case.rows * case.features;
                encode_sparse(
                    Isa::detect(),
                    case.encode(),
                    Search::Plain,
                    limit,
                    &mut buffers,
                    &mut expected,
                )
                .unwrap();
                let (listed, values) = (pairs.numbers::<u32>(), values.numbers::<f32>());
                for (row, active) in active.numbers::<u32>().into_iter().enumerate() {
                    let (features, activations) = expected.of_row(row);
                    let range = first[row] as usize..(first[row] + active) as usize;
                    assert_eq!(listed[range.clone()], *features, "{sizes:?} {activity:?} row {row}");
                    for (got, expected) in values[range].iter().zip(activations) {
                        let scale = expected.max((case.width as f32).sqrt());
                        assert!((got - expected).abs() <= 2e-6 * scale, "{sizes:?}: {got} {expected}");
                    }
                }
                assert!(mask.numbers::<u32>() == case.exact_mask(), "{sizes:?} {activity:?}");

                check_feature_lists(&mut case, &mask, (&starts, &active, &pairs), &listed, &values);
            }
        }
    }
}

/// Lists by feature hold the same pairs and values as those by row.
fn check_feature_lists(
    case: &mut Case,
    mask: &Buffer,
    (starts, active, pairs): (&Buffer, &Buffer, &Buffer),
    listed: &[u32],
    values: &[f32],
) {
    let (rows, features, capacity) = (case.rows, case.features, listed.len());
    let device_values = case.device.holding(values);
    let counts = case.device.room::<u32>(features);
    let [feature_starts, segment_starts] = std::array::from_fn(|_| case.device.room::<u32>(features + 1));
    let (totals, arrived) = (case.device.room::<u64>(features.div_ceil(32)), case.device.holding(&[0u32]));
    let starts_of_features = || FeatureStarts { pairs: &feature_starts, segments: &segment_starts };
    let count = CountFeatures {
        mask,
        counts: &counts,
        totals: &totals,
        arrived: (&arrived).into(),
        starts: Some(starts_of_features()),
        features,
        rows,
        report: &case.report,
    };
    count.launch(&mut case.device).unwrap();
    let pair_rows = case.device.room::<u32>(listed.len());
    let segment_features = case.device.room::<u32>(listed.len().div_ceil(32));
    let [feature_values, feature_slopes] = std::array::from_fn(|_| case.device.room::<f32>(listed.len()));
    // No penalty: what it would be is compared in whole steps.
    let (penalties, scalars) =
        (case.device.holding(&vec![0.0f32; features]), case.device.holding(&[0u8; SCALAR_BYTES]));
    let list = ListFeatures {
        mask,
        counts: &counts,
        totals: &totals,
        starts: starts_of_features(),
        segment_features: &segment_features,
        pair_rows: &pair_rows,
        features,
        rows,
        capacity,
        report: &case.report,
    };
    list.launch(&mut case.device).unwrap();
    let gather = GatherValues {
        feature_starts: &feature_starts,
        pair_rows: &pair_rows,
        row_starts: starts,
        row_active: active,
        pair_features: pairs,
        row_values: &device_values,
        slopes: &penalties,
        by_norm: None,
        near: None,
        dead_row: None,
        feature_values: &feature_values,
        feature_slopes: &feature_slopes,
        features,
        rows,
        capacity,
        penalty: Penalty::None,
        scalars: &scalars,
        report: &case.report,
    };
    gather.launch(&mut case.device).unwrap();

    let mut expected: Vec<Vec<(u32, f32)>> = vec![Vec::new(); features];
    let (first, active) = (starts.numbers::<u32>(), active.numbers::<u32>());
    for row in 0..rows {
        for at in first[row]..first[row] + active[row] {
            expected[listed[at as usize] as usize].push((row as u32, values[at as usize]));
        }
    }
    let (begin, pair_rows) = (feature_starts.numbers::<u32>(), pair_rows.numbers::<u32>());
    let (segments, feature_values) = (segment_starts.numbers::<u32>(), feature_values.numbers::<f32>());
    let owners = segment_features.numbers::<u32>();
    for (feature, expected) in expected.iter().enumerate() {
        let range = begin[feature] as usize..begin[feature + 1] as usize;
        let got: Vec<(u32, f32)> = pair_rows[range.clone()]
            .iter()
            .copied()
            .zip(feature_values[range.clone()].iter().copied())
            .collect();
        assert_eq!(got, *expected, "feature {feature}");
        assert!(feature_slopes.numbers::<f32>()[range].iter().all(|&slope| slope == 0.0));
        let count = expected.len().div_ceil(64);
        let count = if expected.len() > 64 { count } else { 0 };
        let own = segments[feature] as usize..segments[feature + 1] as usize;
        assert_eq!(own.len(), count, "feature {feature}");
        assert!(owners[own].iter().all(|owner| *owner as usize == feature), "feature {feature}");
    }
}

#[test]
fn one_candidate_too_many_refuses_the_step_and_no_later_kernel_writes() {
    let mut case = Case::new((131, 33, 97), Activity::Some);
    let candidates = case.exact_mask();
    let total: u32 = candidates.iter().map(|word| word.count_ones()).sum();
    assert!(total > 100);
    let mask = case.device.holding(&candidates);
    case.row_lists(&mask, total as usize);
    assert_eq!(case.status(), 0, "just as many fit");
    let (_, pairs) = case.row_lists(&mask, total as usize - 1);
    assert_eq!(case.status(), 4);
    assert!(pairs.numbers::<u32>().iter().all(|word| *word == u32::MAX), "the list was written");
    assert!(mask.numbers::<u32>() == candidates);
}

//! The screen of pairs in bfloat16.

use crate::case::{ACTIVITIES, Activity, Case, SIZES};

#[test]
fn the_screen_lets_every_active_pair_pass_and_few_others() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            let mut case = Case::new(sizes, activity);
            let (screened, exact) = (case.screen(true), case.exact_mask());
            let missing = exact.iter().zip(&screened).filter(|(exact, screened)| **exact & !**screened != 0);
            assert_eq!(missing.count(), 0, "{sizes:?} {activity:?}");
            let count = |mask: &[u32]| mask.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            let more = count(&screened) - count(&exact);
            assert!(more <= 5 + case.rows * case.features / 100, "{sizes:?} {activity:?}: {more} more");
        }
    }
}

#[test]
fn without_bounds_the_bfloat16_products_sign_decides() {
    for sizes in SIZES {
        let mut case = Case::new(sizes, Activity::Some);
        let mask = case.screen(false);
        let [x, ..] = case.row_bounds(false);
        let [encoder, ..] = case.feature_bounds(false);
        let wide = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
        let (x, encoder) = (x.numbers::<u16>(), encoder.numbers::<u16>());
        for row in 0..case.rows {
            for feature in 0..case.features {
                let products = (0..case.stride)
                    .map(|k| wide(x[row * case.stride + k]) * wide(encoder[feature * case.stride + k]));
                let z = products.sum::<f64>() + f64::from(case.bias[feature]);
                let bit = mask[feature * case.words + row / 32] >> (row % 32) & 1 == 1;
                assert!(bit == (z > 0.0) || z.abs() < 1e-5, "{sizes:?} row {row} feature {feature}: {z}");
            }
        }
    }
}

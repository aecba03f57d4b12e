//! The float32 encode.

use kernels::cuda::launch;

use crate::case::{ACTIVITIES, Case, SIZES};

#[test]
fn the_float32_encode_sets_exactly_the_bits_of_the_cpus_active_pairs() {
    for sizes in SIZES {
        for activity in ACTIVITIES {
            let mut case = Case::new(sizes, activity);
            let mask = case.device.room::<u32>(case.features * case.words);
            let encode = launch::encode::Encode {
                encoder: (&case.device_weights).into(),
                encoder_bias: (&case.device_bias).into(),
                x: &case.device_x,
                mask: &mask,
                features: case.features,
                rows: case.rows,
                stride: case.stride,
                report: &case.report,
                thresholds: None,
            };
            encode.launch(&mut case.device).unwrap();
            assert!(mask.numbers::<u32>() == case.exact_mask(), "{sizes:?} {activity:?}");
        }
    }
}

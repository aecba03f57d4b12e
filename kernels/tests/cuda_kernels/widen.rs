//! Half-precision batches.

use emulation::EmulatedDevice;
use kernels::cuda::launch::widen::Widen;

#[test]
fn every_half_precision_number_becomes_the_same_float32_number() {
    let mut device = EmulatedDevice::new();
    let all_of_them: Vec<u16> = (0..=u16::MAX).collect();
    // A last thread with fewer than its four numbers, too.
    for count in [1, 2, 1023, 1025, all_of_them.len()] {
        let values = &all_of_them[all_of_them.len() - count..];
        let (from, out) = (device.holding(values), device.room::<f32>(count));
        Widen { from: &from, out: &out, numbers: count }.launch(&mut device).unwrap();
        for (got, &bits) in out.numbers::<f32>().into_iter().zip(values) {
            let expected = half::f16::from_bits(bits).to_f32();
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{bits:#x}: {got} instead of {expected}");
        }
    }
}
